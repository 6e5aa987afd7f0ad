//! Copies on one machine: every option makes the same tree, what is reported is what was
//! done, and files that somebody writes, removes or replaces meanwhile are errors or are
//! done again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use holesync::error::{Error, Result, code};
use holesync::location::Location;
use holesync::options::{BlockSize, Commit, Options};
use holesync::report::{Event, Outcome, Phase, Reporter, Stats, Summary};
use holesync::sync::{self, RemoteOptions};
use holesync::working::is_working_name;
use proptest::prelude::*;
use tempfile::TempDir;
use walkdir::WalkDir;

use crate::support::{Kind, Sparse, versions};

use Kind::{Data, Hole, Zeros};

/// Keeps what is reported, and does something at each event.
#[derive(Default)]
struct Told<'a> {
    outcomes: Mutex<BTreeMap<PathBuf, Outcome>>,
    failures: Mutex<Vec<(u8, String)>>,
    warnings: Mutex<Vec<String>>,
    done: Mutex<u64>,
    found: Mutex<u64>,
    stats: Mutex<Stats>,
    at_event: Option<&'a (dyn Fn(&Event) + Sync)>,
}

impl Reporter for Told<'_> {
    fn event(&self, event: Event) {
        if let Some(at_event) = self.at_event {
            at_event(&event);
        }
        match event {
            Event::File(item, outcome, _) => {
                let path = PathBuf::from(OsStr::from_bytes(item.path));
                let before = self.outcomes.lock().unwrap().insert(path.clone(), outcome);
                assert!(before.is_none(), "{} was reported twice", path.display());
            }
            Event::Failed(failure) => {
                self.failures.lock().unwrap().push((failure.code, failure.message.clone()));
            }
            Event::Warning(warning) => self.warnings.lock().unwrap().push(warning.message.clone()),
            Event::Done(_, bytes) => *self.done.lock().unwrap() += bytes,
            Event::Found(bytes) => *self.found.lock().unwrap() += bytes,
            Event::Made(..)
            | Event::Listed(_)
            | Event::Removed(_)
            | Event::Phase(_)
            | Event::Connected(_)
            | Event::Hint(_)
            | Event::Note(_)
            | Event::Choice(_)
            | Event::Retry(_)
            | Event::Unset(_) => {}
        }
    }

    fn summary(&self, summary: &Summary) {
        *self.stats.lock().unwrap() = summary.stats.clone();
    }
}

impl Told<'_> {
    fn stats(&self) -> Stats {
        self.stats.lock().unwrap().clone()
    }

    fn outcomes(&self) -> BTreeMap<PathBuf, Outcome> {
        self.outcomes.lock().unwrap().clone()
    }

    /// Demands one failure with this code, which says this.
    fn assert_failed(&self, code: u8, says: &str) {
        let failures = self.failures.lock().unwrap();
        let [(found, message)] = &failures[..] else { panic!("{failures:?}") };
        assert!(*found == code && message.contains(says), "{failures:?}");
        assert_eq!((self.stats().files_failed, self.stats().worst_code), (1, code));
    }
}

fn copy(sources: &[&Path], to: &Path, options: &Options, told: &Told) -> Result<()> {
    let reach = RemoteOptions { umask: 0o022, ..RemoteOptions::default() };
    let sources: Vec<_> = sources.iter().map(|path| Location::Local(path.to_path_buf())).collect();
    sync::run(&sources, None, &Location::Local(to.to_path_buf()), None, options, &reach, told)
}

/// No sync: no test here cuts the power.
fn options() -> Options {
    Options { fsync: false, destination_perms: true, destination_times: true, ..Options::default() }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    File { bytes: Vec<u8>, mode: u32, mtime: SystemTime },
    Link(PathBuf),
    Dir { mode: u32, mtime: SystemTime },
}

/// What is below a directory.
fn tree(root: &Path) -> BTreeMap<PathBuf, Node> {
    let entries = WalkDir::new(root).into_iter().map(Result::unwrap);
    let node = |entry: walkdir::DirEntry| {
        let metadata = entry.metadata().unwrap();
        let (mode, mtime) = (metadata.permissions().mode() & 0o7777, metadata.modified().unwrap());
        let node = if metadata.is_symlink() {
            Node::Link(fs::read_link(entry.path()).unwrap())
        } else if metadata.is_dir() {
            Node::Dir { mode, mtime }
        } else {
            Node::File { bytes: fs::read(entry.path()).unwrap(), mode, mtime }
        };
        (entry.path().strip_prefix(root).unwrap().to_owned(), node)
    };
    entries.map(node).collect()
}

fn assert_nothing_left(root: &Path) {
    let all = WalkDir::new(root).into_iter().map(Result::unwrap);
    let left: Vec<_> = all.map(|entry| entry.file_name().to_owned()).filter(|n| is_working_name(n)).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn put(path: PathBuf, pieces: &[(Kind, usize)], day: u64) -> Sparse {
    let sparse = Sparse::of(pieces);
    let file = sparse.write(&path);
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::new(86400 * day, 123_456_789)).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
    sparse
}

/// A tree, and an older version of it.
struct Trees {
    dir: TempDir,
}

impl Trees {
    fn new() -> Trees {
        let dir = tempfile::tempdir().unwrap();
        let trees = Trees { dir };
        let (from, to) = (trees.from(), trees.to());
        for root in [&from, &to] {
            fs::create_dir_all(root.join("sub/below")).unwrap();
            put(root.join("same"), &[(Data(1), 50_000), (Hole, 30_000)], 1);
        }
        put(from.join("changed"), &[(Data(1), 70_000), (Hole, 40_000), (Zeros, 9000), (Data(2), 50_000)], 2);
        put(to.join("changed"), &[(Data(1), 70_000), (Data(3), 60_000), (Hole, 20_000)], 1);
        put(
            from.join("large"),
            &[(Data(1), 3 << 20), (Data(2), 70_000), (Hole, 1 << 20), (Data(1), 6 << 20)],
            2,
        );
        put(
            to.join("large"),
            &[(Data(1), 3 << 20), (Data(3), 70_000), (Zeros, 1 << 20), (Data(1), 5 << 20)],
            1,
        );
        put(from.join("sub/new"), &[(Hole, 100_000), (Data(2), 33_333), (Hole, 7)], 2);
        put(from.join("sub/large and new"), &[(Data(2), 2 << 20), (Hole, 1 << 20), (Zeros, 5000)], 2);
        put(from.join("sub/below/shorter"), &[(Data(2), 40_000), (Hole, 10_000)], 2);
        put(to.join("sub/below/shorter"), &[(Data(3), 60_000), (Data(1), 100_000), (Hole, 3)], 1);
        put(from.join("empty"), &[], 2);
        put(to.join("empty"), &[(Data(1), 5)], 1);
        put(from.join("was empty"), &[(Data(1), 5)], 2);
        put(to.join("was empty"), &[], 1);
        for file in 0..60 {
            put(from.join(format!("sub/{file}")), &[(Data(file), usize::from(file) * 300)], 2);
        }
        symlink("sub/new", from.join("link")).unwrap();
        symlink("same", to.join("link")).unwrap();
        fs::set_permissions(from.join("sub/below"), fs::Permissions::from_mode(0o555)).unwrap();
        let day = SystemTime::UNIX_EPOCH + Duration::from_secs(86400);
        for below in ["sub/below", "sub"] {
            File::open(from.join(below)).unwrap().set_modified(day).unwrap();
        }
        trees
    }

    fn from(&self) -> PathBuf {
        self.dir.path().join("from/")
    }

    fn to(&self) -> PathBuf {
        self.dir.path().join("to")
    }

    /// Demands that the destination is the source, and nothing is left beside it.
    fn assert_equal(&self, what: &str) {
        let (from, to) = (tree(&self.from()), tree(&self.to()));
        assert_eq!(to.keys().collect::<Vec<_>>(), from.keys().collect::<Vec<_>>(), "{what}");
        for (path, node) in &to {
            // The root of a tree has an mtime of its own only after it is set.
            assert!(from.get(path) == Some(node), "{what}: {} differs", path.display());
        }
        assert_nothing_left(&self.to());
    }
}

/// Options that must not change the result.
fn ways() -> Vec<(&'static str, Options)> {
    let base = options;
    vec![
        ("as it is", base()),
        ("synced", Options { fsync: true, ..base() }),
        ("--checksum", Options { checksum: true, ..base() }),
        ("--ignore-times", Options { ignore_times: true, ..base() }),
        ("--whole-file", Options { whole_file: true, ..base() }),
        ("--whole-file --inplace", Options { whole_file: true, commit: Commit::InPlace, ..base() }),
        ("--inplace", Options { commit: Commit::InPlace, ..base() }),
        ("--commit=atomic", Options { commit: Commit::Atomic, ..base() }),
        ("--verify", Options { verify: true, ..base() }),
        ("--verify --whole-file", Options { verify: true, whole_file: true, ..base() }),
        ("--preallocate", Options { preallocate: true, ..base() }),
        ("--preallocate --inplace", Options { preallocate: true, commit: Commit::InPlace, ..base() }),
        ("--no-hole-map", Options { hole_map: false, ..base() }),
        ("-B 4K", Options { block_size: BlockSize::new(4 << 10).unwrap(), ..base() }),
        ("-B 256K", Options { block_size: BlockSize::new(256 << 10).unwrap(), ..base() }),
    ]
}

#[test]
fn every_way_makes_the_same_tree_and_then_finds_nothing_to_do() {
    for (what, options) in ways() {
        let trees = Trees::new();
        // Nothing tells these that a file is equal.
        let sends_all = options.whole_file && options.verify;
        let is_sent = |outcome: &Outcome| matches!(outcome, Outcome::Sent(_));
        let told = Told::default();
        copy(&[&trees.from()], &trees.to(), &options, &told).unwrap();
        trees.assert_equal(what);
        let outcomes = told.outcomes();
        assert_eq!(outcomes.len(), 68, "{what}");
        for (path, outcome) in &outcomes {
            let sent = sends_all || *path != Path::new("same");
            assert_eq!(is_sent(outcome), sent, "{what}: {}", path.display());
        }
        let stats = told.stats();
        let sent = if sends_all { 68 } else { 67 };
        assert_eq!((stats.files_total, stats.files_sent, stats.files_failed), (68, sent, 0), "{what}");
        let (done, found) = (*told.done.lock().unwrap(), *told.found.lock().unwrap());
        assert!(done > 9 << 20 && found > 11 << 20, "{what}: {done} of {found}");

        let again = Told::default();
        copy(&[&trees.from()], &trees.to(), &options, &again).unwrap();
        trees.assert_equal(what);
        assert_eq!(again.outcomes().values().filter(|o| is_sent(o)).count() as u64, again.stats().files_sent);
        // Of an empty file there is nothing to send.
        assert_eq!(again.stats().files_sent, if sends_all { 66 } else { 0 }, "{what}");
        assert!(sends_all || again.stats().sent_data_bytes == 0, "{what}");
    }
}

#[test]
fn size_only_takes_files_of_equal_length_for_equal() {
    let trees = Trees::new();
    put(trees.to().join("sub/1"), &[(Data(9), 300)], 1);
    put(trees.to().join("sub/2"), &[(Data(9), 601)], 1);
    let options = Options { size_only: true, ..options() };
    let told = Told::default();
    copy(&[&trees.from()], &trees.to(), &options, &told).unwrap();
    assert_eq!(told.outcomes()[Path::new("sub/1")], Outcome::Unchanged);
    assert!(matches!(told.outcomes()[Path::new("sub/2")], Outcome::Sent(_)));
    assert_eq!(fs::read(trees.to().join("sub/1")).unwrap(), Sparse::of(&[(Data(9), 300)]).bytes);
}

#[test]
fn a_dry_run_changes_nothing_and_tells_what_would_be_sent() {
    for (what, options) in ways().into_iter().filter(|(_, options)| options.commit == Commit::Auto) {
        let trees = Trees::new();
        let before = tree(&trees.to());
        let [dry, real] = [Told::default(), Told::default()];
        copy(&[&trees.from()], &trees.to(), &Options { dry_run: true, ..options.clone() }, &dry).unwrap();
        assert!(tree(&trees.to()) == before, "{what}");
        let (stats, outcomes) = (dry.stats(), dry.outcomes());
        copy(&[&trees.from()], &trees.to(), &options, &real).unwrap();
        let names = |outcomes: &BTreeMap<PathBuf, Outcome>| -> Vec<(PathBuf, bool)> {
            outcomes.iter().map(|(path, o)| (path.clone(), *o != Outcome::Unchanged)).collect()
        };
        assert_eq!(names(&outcomes), names(&real.outcomes()), "{what}");
        let sent = real.stats().sent_data_bytes;
        assert_eq!(stats.sent_data_bytes, sent, "{what}");
        let done = |stats: Stats| (stats.written_bytes, stats.punched_bytes);
        assert_eq!(done(stats), done(real.stats()), "{what}");
        let each = outcomes.values().map(|o| if let Outcome::Sent(bytes) = o { *bytes } else { 0 });
        assert_eq!(each.sum::<u64>(), sent, "{what}");
    }
}

#[test]
fn a_dry_run_into_nothing_makes_no_directory() {
    let trees = Trees::new();
    let (to, told) = (trees.dir.path().join("none"), Told::default());
    copy(&[&trees.from()], &to, &Options { dry_run: true, ..options() }, &told).unwrap();
    assert!(!to.exists());
    assert_eq!(told.stats().files_sent, 68);
}

#[test]
fn what_is_counted_is_what_was_done() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    const BLOCK: usize = 64 << 10;
    // Without zero pages: those are no data.
    let mut bytes = vec![7; 64 * BLOCK];
    fs::write(&to, &bytes).unwrap();
    bytes[BLOCK + 5] = 8;
    bytes[30 * BLOCK..31 * BLOCK].fill(0);
    fs::write(&from, &bytes).unwrap();
    for (commit, verify) in [(Commit::Auto, false), (Commit::InPlace, false), (Commit::InPlace, true)] {
        fs::write(&to, vec![7; 64 * BLOCK]).unwrap();
        let told = Told::default();
        let options = Options { commit, verify, ignore_times: true, ..options() };
        copy(&[&from], &to, &options, &told).unwrap();
        assert!(fs::read(&to).unwrap() == bytes);
        let stats = told.stats();
        let all = 64 * BLOCK as u64;
        assert_eq!((stats.files_total, stats.files_sent, stats.apparent_bytes), (1, 1, all));
        assert_eq!((stats.data_bytes, stats.matched_bytes), (all, all - 2 * BLOCK as u64));
        assert_eq!((stats.sent_data_bytes, stats.written_bytes), (BLOCK as u64, 4096));
        assert_eq!(stats.punched_bytes, BLOCK as u64);
        assert_eq!(*told.done.lock().unwrap(), all);
        match (commit, verify) {
            (Commit::InPlace, false) => assert_eq!(stats.hashed_bytes, 0),
            (Commit::InPlace, true) => assert_eq!(stats.hashed_bytes, all),
            _ => assert!([0, all].contains(&stats.hashed_bytes), "{stats:?}"),
        }
        assert_eq!(stats.basis_hashed_bytes, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_version_becomes_any_other(
        (new, old) in versions(10),
        way in prop::sample::select(ways()),
        leftover in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        new.write(&from);
        old.write(&to);
        if leftover && new.len() > 0 {
            // What an interrupted run may have left.
            old.dense().write(&dir.path().join(".to.holesync.temp"));
        }
        let (what, options) = way;
        let options = Options { ignore_times: true, ..options };
        copy(&[&from], &to, &options, &Told::default()).unwrap();
        prop_assert!(fs::read(&to).unwrap() == new.bytes, "{}", what);
        assert_nothing_left(dir.path());
    }
}

/// Does something at the first event of this kind, or at every one.
fn at(phases: &'static [Phase], always: bool, act: impl Fn() + Sync) -> impl Fn(&Event) + Sync {
    let over = Mutex::new(false);
    move |event| {
        let fits = matches!(event, Event::Done(phase, _) if phases.contains(phase));
        let mut over = over.lock().unwrap();
        if fits && (always || !*over) {
            *over = true;
            act();
        }
    }
}

const ANY: &[Phase] = &[Phase::Mapping, Phase::Sending];

/// A file to be changed, which the destination may have an older version of.
fn meddled(has_old: bool) -> (TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    put(from.clone(), &[(Data(1), 5 << 20), (Data(2), 70_000), (Data(1), 5 << 20)], 2);
    if has_old {
        put(to.clone(), &[(Data(1), 5 << 20), (Data(3), 70_000), (Data(1), 5 << 20)], 1);
    }
    (dir, from, to)
}

fn scribble(path: &Path, at: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(b"scribble", at).unwrap();
    // A clock may not have ticked since the last time.
    let now = file.metadata().unwrap().modified().unwrap();
    file.set_modified(now + Duration::from_secs(1)).unwrap();
}

#[test]
fn a_source_that_changes_once_while_it_is_read_is_done_again() {
    for (has_old, commit) in [(false, Commit::Auto), (true, Commit::Auto), (true, Commit::InPlace)] {
        let (dir, from, to) = meddled(has_old);
        let change = at(ANY, false, || scribble(&from, 9 << 20));
        let told = Told { at_event: Some(&change), ..Told::default() };
        copy(&[&from], &to, &Options { commit, ..options() }, &told).unwrap();
        assert!(fs::read(&to).unwrap() == fs::read(&from).unwrap(), "{has_old} {commit:?}");
        let stats = told.stats();
        assert_eq!((stats.files_total, stats.files_failed), (1, 0));
        // What the first try wrote is there at the second, but for a copy: that is torn.
        assert!(has_old || stats.files_sent == 1, "{stats:?}");
        assert_nothing_left(dir.path());
    }
}

#[test]
fn a_source_that_changes_whenever_it_is_read_fails_and_the_old_file_stays() {
    for has_old in [false, true] {
        let (dir, from, to) = meddled(has_old);
        let before = fs::read(&to).ok();
        let change = at(ANY, true, || scribble(&from, 9 << 20));
        let told = Told { at_event: Some(&change), ..Told::default() };
        let ended = copy(&[&from], &to, &options(), &told);
        assert!(matches!(ended, Err(Error::Partial { failed: 1, code: code::PARTIAL, .. })), "{ended:?}");
        told.assert_failed(code::PARTIAL, "changed while it was read, twice");
        assert!(fs::read(&to).ok() == before);
        assert_eq!(told.outcomes().len(), 0);
        copy(&[&from], &to, &options(), &Told::default()).unwrap();
        assert!(fs::read(&to).unwrap() == fs::read(&from).unwrap());
        assert_nothing_left(dir.path());
    }
}

#[test]
fn a_source_that_grows_after_it_was_found_is_done_again() {
    let (_dir, from, to) = meddled(true);
    let grow = |event: &Event| {
        if matches!(event, Event::Found(_)) {
            File::options().write(true).open(&from).unwrap().write_all_at(b"more", 11 << 20).unwrap();
        }
    };
    let told = Told { at_event: Some(&grow), ..Told::default() };
    copy(&[&from], &to, &options(), &told).unwrap();
    assert!(fs::read(&to).unwrap() == fs::read(&from).unwrap());
}

#[test]
fn a_source_that_vanishes_ends_with_code_24_and_the_others_arrive() {
    for there in [false, true] {
        let trees = Trees::new();
        let gone = trees.from().join("changed");
        if !there {
            fs::remove_file(trees.to().join("changed")).unwrap();
        }
        let remove = |event: &Event| {
            if matches!(event, Event::Found(_)) {
                let _ = fs::remove_file(&gone);
            }
        };
        let told = Told { at_event: Some(&remove), ..Told::default() };
        let ended = copy(&[&trees.from()], &trees.to(), &options(), &told);
        assert!(matches!(ended, Err(Error::Partial { failed: 1, code: code::VANISHED, .. })), "{ended:?}");
        told.assert_failed(code::VANISHED, "changed");
        assert_eq!(told.stats().files_vanished, 1);
        assert_eq!(told.outcomes().len(), 67);
        assert_eq!(trees.to().join("changed").exists(), there);
        assert_nothing_left(&trees.to());
    }
}

#[test]
fn a_destination_that_somebody_changes_meanwhile_is_left_alone() {
    for (has_old, whole_file) in [(true, false), (true, true), (false, false)] {
        let (dir, from, to) = meddled(has_old);
        let change = at(ANY, false, || {
            fs::write(dir.path().join("other"), "mine").unwrap();
            fs::rename(dir.path().join("other"), &to).unwrap();
        });
        let told = Told { at_event: Some(&change), ..Told::default() };
        let options = Options { whole_file, ..options() };
        assert!(copy(&[&from], &to, &options, &told).is_err());
        told.assert_failed(code::PARTIAL, "changed while it was being updated");
        assert_eq!(fs::read(&to).unwrap(), b"mine");
        copy(&[&from], &to, &options, &Told::default()).unwrap();
        assert!(fs::read(&to).unwrap() == fs::read(&from).unwrap());
        assert_nothing_left(dir.path());
    }
}

#[test]
fn what_cannot_be_made_equal_fails_alone() {
    let trees = Trees::new();
    fs::remove_file(trees.to().join("link")).unwrap();
    for name in ["sub/new", "link"] {
        fs::create_dir_all(trees.to().join(name).join("full")).unwrap();
    }
    let told = Told::default();
    let ended = copy(&[&trees.from()], &trees.to(), &options(), &told);
    assert!(matches!(ended, Err(Error::Partial { failed: 2, code: code::PARTIAL, .. })), "{ended:?}");
    let failures = told.failures.lock().unwrap();
    assert!(failures.iter().any(|(_, message)| message.contains("sub/new: a directory that is not empty")));
    assert!(failures.iter().any(|(_, message)| message.contains("to/link")), "{failures:?}");
    assert_eq!(told.outcomes().len(), 67);
}

#[test]
fn a_source_that_is_named_like_a_working_file_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (odd, good, to) =
        (dir.path().join(".x.holesync.log"), dir.path().join("good"), dir.path().join("to/"));
    [&odd, &good].into_iter().for_each(|path| fs::write(path, "some bytes").unwrap());
    let told = Told::default();
    assert!(copy(&[&odd, &good], &to, &options(), &told).is_err());
    told.assert_failed(code::PARTIAL, "working file");
    assert_eq!(fs::read(to.join("good")).unwrap(), b"some bytes");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
}

#[test]
fn of_sources_of_one_name_the_first_counts_and_what_is_skipped_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let of = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), name).unwrap();
        path.join("file")
    };
    let (one, two, to) = (of("one"), of("two"), dir.path().join("to"));
    nix::unistd::mkfifo(&dir.path().join("one/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let told = Told::default();
    copy(&[&one, &two], &to, &options(), &told).unwrap();
    let again = Told::default();
    copy(&[&dir.path().join("one/")], &to, &options(), &again).unwrap();
    assert_eq!(fs::read(to.join("file")).unwrap(), b"one");
    assert_eq!(told.stats().files_total, 1);
    let warnings = again.warnings.lock().unwrap();
    assert!(matches!(&warnings[..], [text] if text.contains("skipping special file")), "{warnings:?}");
}

#[test]
fn a_destination_that_cannot_be_used_is_an_error_before_anything_else() {
    let trees = Trees::new();
    let told = Told::default();
    let file = trees.to().join("same");
    let ended = copy(&[&trees.from()], &file, &options(), &told);
    assert!(matches!(ended, Err(Error::Destination(_))), "{ended:?}");
    let ended = copy(&[&trees.from()], &trees.from().join("sub/into"), &options(), &told);
    assert!(matches!(ended, Err(Error::Destination(_))), "{ended:?}");
    assert_eq!((told.outcomes().len(), told.stats()), (0, Stats::default()));
}
