//! Directory trees, held against what rsync makes of the same input.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::common::check::assert_same;
use crate::common::lab::{self, Fs};
use crate::common::layout::{Change, Layout, Rng, mutate};
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, PROGRAM, holesync, run};
use crate::common::tree::{
    WAYS, Way, assert_trees, change, grow, mkdir, rsync, set_mode, set_mtime, slash, small, snapshot,
};

const SEED: u64 = 20;

/// Runs both programs on the same input, into directories called `ours` and
/// `theirs` in `dir`.
#[track_caller]
fn both(way: Way, dir: &Path, source: &OsStr) -> Option<Outcome> {
    let args = [OsStr::new("-aS"), source, OsStr::new("theirs/")];
    assert_eq!(rsync(dir, &args), 0, "rsync");
    Some(way.run(&["-a", "--json"], &[source], dir.join("ours/").as_os_str())?.ok())
}

/// Two versions of a tree arrive as with rsync, and then there is nothing to do.
fn follow(way: Way, dir: &Path) {
    let from = mkdir(dir.join("from"));
    for path in ["ours", "theirs"] {
        mkdir(dir.join(path));
    }
    let mut rng = Rng(SEED);
    grow(&from, &mut rng);
    for step in ["first", "changed", "changed again"] {
        let Some(outcome) = both(way, dir, &slash(&from)) else { return };
        let what = format!("{way:?}, seed {SEED}, {step}");
        assert_trees(&dir.join("ours"), &dir.join("theirs"), true, &what);
        assert!(outcome.count("files_sent") > 5, "{what}: {outcome}");
        assert_eq!(outcome.count("files_failed"), 0, "{what}");
        assert_idle(way, dir, &slash(&from));
        if step == "first" {
            change(&from, &mut rng);
        } else {
            mkdir(from.join("empty"));
            small(from.join("names/-rf"), "back");
            mkdir(from.join("names/below/-rf"));
            fs::remove_file(from.join("modes/file644")).expect("remove");
            fs::write(from.join("modes/file644"), "a file again").expect("write");
            for (name, target) in [("links/0", "a link again"), ("links/1", "another")] {
                fs::remove_file(from.join(name)).expect("remove");
                symlink(target, from.join(name)).expect("symlink");
            }
            change(&from, &mut rng);
        }
    }
}

/// Nothing is left to do: nothing is named, next to nothing travels.
fn assert_idle(way: Way, dir: &Path, source: &OsStr) {
    let to = dir.join("ours/");
    let before = snapshot(&to, true);
    let Some(outcome) = way.run(&["-a", "--json"], &[source], to.as_os_str()) else { return };
    let outcome = outcome.ok();
    assert_eq!(outcome.count("files_sent"), 0, "{outcome}");
    assert_eq!(outcome.count("sent_data_bytes"), 0, "{outcome}");
    let (sent, received) = (outcome.count("wire_bytes_sent"), outcome.count("wire_bytes_received"));
    let entries = before.len() as u64;
    // Links of 4000 bytes and names of 255 are among them; a shell reads its script, too.
    let script = if way.has_agent() { 0 } else { 12_000 };
    assert!(sent + received <= 8000 + script + entries * 160, "{entries} entries: {outcome}");
    assert!(!outcome.stdout.contains(r#""action":"sent""#), "{outcome}");
    assert_eq!(snapshot(&to, true), before, "an idle run changed something");
    let Some(outcome) = way.run(&["-a", "-v"], &[source], to.as_os_str()) else { return };
    let said = outcome.ok().stdout.lines().filter(|line| !line.is_empty()).count();
    assert_eq!(said, 1, "more than the summary");
}

#[test]
fn a_local_tree_arrives_as_with_rsync_and_follows_its_changes() {
    if lab::is_root() {
        follow(Way::Local, lab::scratch().path());
    }
}

#[test]
fn a_pushed_tree_arrives_as_with_rsync_and_follows_its_changes() {
    if lab::is_root() {
        follow(Way::Push, lab::scratch().path());
    }
}

#[test]
fn a_pulled_tree_arrives_as_with_rsync_and_follows_its_changes() {
    if lab::is_root() {
        follow(Way::Pull, lab::scratch().path());
    }
}

#[test]
fn a_tree_pushed_to_a_shell_arrives_as_with_rsync_and_follows_its_changes() {
    if lab::is_root() {
        follow(Way::PushShell, lab::scratch().path());
    }
}

#[test]
fn a_tree_pulled_from_a_shell_arrives_as_with_rsync_and_follows_its_changes() {
    if lab::is_root() {
        follow(Way::PullShell, lab::scratch().path());
    }
}

#[test]
fn a_tree_follows_its_changes_on_file_systems_that_clone_and_in_memory() {
    for fs in [Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        if lab::is_root()
            && let Some(dir) = lab::dir(fs)
        {
            follow(Way::Local, dir.path());
        }
    }
}

/// The input of the naming cases: files, directories, and links to them.
fn lay_out(dir: &Path) {
    small(mkdir(dir.join("src/sub")).join("inner"), "inner");
    small(dir.join("src/file"), "in src");
    small(mkdir(dir.join("other")).join("file"), "in other");
    small(dir.join("other/more"), "more");
    mkdir(dir.join("void"));
    small(dir.join("one"), "one");
    small(dir.join("two"), "two");
    symlink("src", dir.join("link")).expect("symlink");
    mkdir(dir.join("there/src"));
    small(dir.join("there/one"), "old one");
    small(dir.join("file"), "a file");
    symlink("there", dir.join("to-there")).expect("symlink");
    symlink("file", dir.join("to-file")).expect("symlink");
    for (nth, entry) in walkdir::WalkDir::new(dir).contents_first(true).into_iter().flatten().enumerate() {
        set_mtime(entry.path(), 1_000_000 + nth as i64, 5);
    }
}

#[test]
fn slashes_and_new_names_mean_what_they_mean_to_rsync() {
    let cases: &[&[&str]] = &[
        &["src", "there"],
        &["src", "there/"],
        &["src/", "there"],
        &["src/.", "there"],
        &["src/./", "there/"],
        &["./src", "there"],
        &["src//", "there"],
        &["src/sub", "there"],
        &["src/sub/..", "there"],
        &["src", "new"],
        &["src", "new/"],
        &["src/", "new"],
        &["src/", "new/"],
        &["void/", "new"],
        &["one", "new"],
        &["one", "new/"],
        &["one", "there"],
        &["one", "there/"],
        &["one", "there/new"],
        &["one", "there/new/"],
        &["one", "there/one"],
        &["one", "."],
        &["one", "file"],
        &["one", "to-file"],
        &["one", "to-there"],
        &["src/", "to-there"],
        &["src/", "to-there/"],
        &["src", "to-there"],
        &["link", "there"],
        &["link", "new/"],
        &["link", "new"],
        &["link/", "there"],
        &["link/", "new"],
        &["one", "two", "there"],
        &["one", "two", "new"],
        &["one", "src", "void/", "new"],
        &["src/", "other/", "new"],
        &["other/", "src/", "new"],
        &["src", "other", "one", "there"],
        &["one", "src/file", "other/file", "there"],
    ];
    let inside: &[&[&str]] =
        &[&[".", "../new"], &["./", "../there"], &["sub", "../there"], &["..", "../../new"]];
    let cases = cases.iter().map(|case| (".", case)).chain(inside.iter().map(|case| ("src", case)));
    for (at, case) in cases {
        let dir = lab::scratch();
        let sides = ["ours/side", "theirs/side"].map(|side| mkdir(dir.path().join(side)));
        sides.iter().for_each(|side| lay_out(side));
        let theirs = rsync(&sides[1].join(at), &[&["-rlptS"], *case].concat());
        // Asked for, or a directory that is there keeps its mode and time.
        let ours = run(holesync().current_dir(sides[0].join(at)).arg("-pt").args(*case));
        assert_eq!(theirs, 0, "rsync {case:?}");
        assert_eq!(ours.code, 0, "{case:?}: {ours}");
        assert_trees(&dir.path().join("ours"), &dir.path().join("theirs"), false, &format!("{case:?}"));
    }
}

/// A version of the input of the option cases.
fn optional(dir: &Path, version: usize) {
    for (name, mode) in [("plain", 0o664), ("setuid", 0o4755), ("secret", 0o600), ("wide", 0o666)] {
        let path = small(dir.join(name), &"content".repeat(version));
        set_mode(&path, mode ^ if version > 1 { 0o011 } else { 0 });
        std::os::unix::fs::chown(&path, Some(1000 + version as u32), Some(2000)).expect("chown");
        set_mode(&path, mode ^ if version > 1 { 0o011 } else { 0 });
        set_mtime(&path, 1_000_000 * version as i64, 77);
    }
    for mode in [0o700, 0o777, 0o2775] {
        let path = mkdir(dir.join(format!("dir{mode:o}/below")));
        small(path.join(format!("file{version}")), "below");
        set_mode(path.parent().expect("a parent"), mode);
        set_mtime(path.parent().expect("a parent"), 2_000_000 * version as i64, 7);
    }
    let link = dir.join("link");
    let _ = fs::remove_file(&link);
    symlink(format!("version{version}"), &link).expect("symlink");
}

/// Files that are in the destination before the first run.
fn meet(dir: &Path) {
    set_mode(&small(dir.join("plain"), "old and longer"), 0o606);
    set_mode(&mkdir(dir.join("dir777")), 0o711);
}

#[test]
fn each_option_has_the_effect_it_has_for_rsync() {
    if !lab::is_root() {
        return;
    }
    let cases: &[&[&str]] = &[
        &["-r", "-l", "-p", "-t"],
        &["-r", "-l", "-p", "-t", "-o", "-g"],
        &["-a"],
        &["-a", "--no-perms"],
        &["-a", "--no-p", "--no-o"],
        &["-a", "--no-group"],
        &["-a", "--no-g", "--no-owner"],
        &["-a", "--no-links"],
        &["-a", "--no-l"],
        &["-a", "--no-times"],
        &["-a", "--no-t", "--no-p"],
        &["-a", "--no-recursive"],
        &["-a", "--no-r"],
    ];
    for flags in cases {
        for umask in [0o022, 0o077, 0o002] {
            compare_options(flags, umask);
        }
    }
}

fn compare_options(flags: &[&str], umask: u32) {
    let what = format!("{flags:?}, umask {umask:o}");
    let dir = lab::scratch();
    let from = mkdir(dir.path().join("from"));
    let sides = ["ours", "theirs"].map(|side| mkdir(dir.path().join(side)));
    sides.iter().for_each(|side| meet(side));
    let masked = |program: &str, flags: &[&str], to: &Path| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("umask {umask:o}; exec \"$@\""), "sh", program]).args(flags);
        run(command.args([slash(&from), slash(to)])).ok()
    };
    // Without -o and -g rsync gives what it replaces to who runs it; here it stays whose it was.
    let owners = !flags.iter().any(|flag| ["--no-o", "--no-owner", "--no-g", "--no-group"].contains(flag));
    // With rsync a program runs as whoever owns it there; here only as the owner that was asked for.
    let has_owner = flags.contains(&"-o") || flags.contains(&"-a") && !flags.contains(&"--no-owner");
    let theirs: &[&str] = if has_owner { &["-S"] } else { &["-S", "--chmod=Fu-s"] };
    for version in 1..3 {
        optional(&from, version);
        masked("rsync", &[theirs, flags].concat(), &sides[1]);
        let flags = if flags.contains(&"-a") || flags.contains(&"-o") {
            flags.to_vec()
        } else {
            [flags, &["--no-o", "--no-g"]].concat()
        };
        masked(PROGRAM, &flags, &sides[0]);
        assert_trees(&sides[0], &sides[1], owners, &format!("{what}, version {version}"));
    }
}

#[test]
fn special_files_in_a_tree_are_skipped_with_a_warning_and_the_rest_arrives() {
    if !lab::is_root() {
        return;
    }
    for way in WAYS {
        let dir = lab::scratch();
        let from = mkdir(dir.path().join("from"));
        small(from.join("a"), "before");
        small(mkdir(from.join("z")).join("z"), "after");
        // A block device with 0 as its major number can't be opened.
        for node in [&["fifo", "p"][..], &["zero", "c", "1", "5"], &["disk", "b", "0", "77"]] {
            let made = Command::new("mknod").current_dir(&from).args(node).status().expect("run mknod");
            assert!(made.success());
        }
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).expect("bind");
        mkdir(dir.path().join("theirs"));
        let args = [OsString::from("-rlptgoS"), slash(&from), "theirs".into()];
        assert_eq!(rsync(dir.path(), &args), 0);
        let to = dir.path().join("ours");
        let Some(outcome) = way.run(&["-a", "--no-D"], &[&slash(&from)], &slash(&to)) else { return };
        outcome.ok().says(&["from/fifo", "from/zero", "from/disk", "from/socket", "skipping special file"]);
        assert_trees(&to, &dir.path().join("theirs"), true, &format!("{way:?}"));
    }
}

#[test]
fn a_dry_run_changes_nothing_and_foretells_what_is_sent() {
    if !lab::is_root() {
        return;
    }
    for way in WAYS {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), dir.path().join("to"));
        let mut rng = Rng(SEED + 1);
        grow(&from, &mut rng);
        for step in ["nothing there", "changed", "equal"] {
            let before = to.exists().then(|| snapshot(&to, true));
            let go = |flags: &[&str]| way.run(flags, &[&slash(&from)], to.as_os_str());
            let Some(foretold) = go(&["-an", "--json"]) else { return };
            let foretold = foretold.ok();
            let after = to.exists().then(|| snapshot(&to, true));
            assert_eq!(after, before, "{way:?}, {step}");
            let done = go(&["-a", "--json"]).expect("as before").ok();
            for key in ["files_total", "files_sent"] {
                assert_eq!(foretold.count(key), done.count(key), "{way:?}, {step}, {key}: {foretold}{done}");
            }
            assert_eq!(done.count("files_sent") > 0, step != "equal", "{way:?}, {step}: {done}");
            if step == "nothing there" {
                change(&from, &mut rng);
            }
        }
    }
}

#[test]
fn verbose_names_what_is_sent_and_nothing_else() {
    let dir = lab::scratch();
    let from = mkdir(dir.path().join("from/sub")).parent().expect("a parent").to_path_buf();
    for name in ["a", "sub/b", "sub/c"] {
        small(from.join(name), name);
    }
    let to = slash(&dir.path().join("to"));
    let names = || {
        let outcome = run(holesync().args(["-a", "-v"]).args([slash(&from), to.clone()])).ok();
        let (lines, last) = outcome.stdout.split_once("\n\n").unwrap_or(("", &outcome.stdout));
        let last = last.trim_start().split(',').next().unwrap_or_default().to_owned();
        (lines.lines().map(str::to_owned).collect::<Vec<_>>(), last)
    };
    let made = format!("created directory {}", dir.path().join("to").display());
    let all = [made.as_str(), "./", "a", "sub/", "sub/b", "sub/c"].map(String::from).to_vec();
    assert_eq!(names(), (all, "sent 3 of 3 files".into()));
    small(from.join("sub/c"), "changed");
    assert_eq!(names(), (vec!["sub/c".into()], "sent 1 of 3 files".into()));
    assert_eq!(names(), (vec![], "sent 0 of 3 files".into()));
}

#[test]
fn a_time_that_differs_by_a_nanosecond_is_another_time() {
    let dir = lab::scratch();
    let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
    for (content, nanoseconds, sent) in [("old", 5, 1), ("new", 6, 1), ("new", 6, 0), ("odd", 4, 1)] {
        set_mtime(&small(from.clone(), content), 1_000, nanoseconds);
        let outcome = run(holesync().arg("--json").args([&from, &to])).ok();
        assert_eq!(outcome.count("files_sent"), sent, "{content} {nanoseconds}: {outcome}");
        assert_eq!(fs::read_to_string(&to).expect("read"), content);
        assert_trees(&to, &from, false, "one file");
    }
}

#[test]
fn of_two_sources_with_a_name_in_common_the_first_wins_as_with_rsync() {
    for way in WAYS {
        let dir = lab::scratch();
        let [one, two] = ["one", "two"].map(|name| mkdir(dir.path().join(name)));
        let mut rng = Rng(SEED + 2);
        for nth in 0..40 {
            let (layout, other) =
                (Layout::dense("", 300_000, &mut rng), Layout::dense("", 200_000, &mut rng));
            layout.write(&mkdir(one.join("same")).join(nth.to_string()));
            other.write(&mkdir(two.join("same")).join(nth.to_string()));
            small(two.join(format!("only{nth}")), "only here");
        }
        symlink("one", one.join("link")).expect("symlink");
        symlink("two", two.join("link")).expect("symlink");
        let to = mkdir(dir.path().join("ours"));
        mkdir(dir.path().join("theirs"));
        let sources = [slash(&one), slash(&two), slash(&two)];
        let args = [&[OsString::from("-rlpt")], &sources[..], &["theirs".into()]].concat();
        assert_eq!(rsync(dir.path(), &args), 0);
        let sources: Vec<&OsStr> = sources.iter().map(|source| source.as_os_str()).collect();
        let Some(outcome) = way.run(&["--json"], &sources, &slash(&to)) else { return };
        assert_eq!(outcome.ok().count("files_sent"), 80, "{way:?}");
        assert_trees(&to, &dir.path().join("theirs"), true, &format!("{way:?}"));
    }
}

/// The program, or rsync, as a user without any rights.
fn as_nobody(program: &OsStr, args: &[&OsStr]) -> Outcome {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program).args(args);
    run(&mut command)
}

#[test]
fn what_its_own_owner_may_not_touch_follows_its_source_all_the_same() {
    if !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    set_mode(dir.path(), 0o755);
    let program = lab::install(PROGRAM.as_ref(), dir.path());
    let from = mkdir(dir.path().join("from"));
    let modes = [(0o400, 0o500), (0o000, 0o555), (0o644, 0o755), (0o200, 0o500), (0o444, 0o500)];
    let names = ["ours", "theirs"].map(|name| mkdir(dir.path().join(name)));
    names.iter().for_each(|path| std::os::unix::fs::chown(path, Some(65534), None).expect("chown"));
    for (step, (file, below)) in modes.into_iter().enumerate() {
        for name in ["still", "changes"] {
            let path = mkdir(from.join("dir")).join(name);
            // What cannot be read cannot be sent: then only its mode changes.
            if !path.exists() || (name == "changes" && file & 0o400 != 0) {
                small(path.clone(), &format!("version {step}"));
                set_mtime(&path, 1_000 + step as i64, 3);
            }
            set_mode(&path, file);
            std::os::unix::fs::chown(&path, Some(65534), None).expect("chown");
        }
        set_mode(&from.join("dir"), below);
        set_mtime(&from.join("dir"), 2_000 + step as i64, 4);
        std::os::unix::fs::chown(from.join("dir"), Some(65534), None).expect("chown");
        let source = slash(&from);
        as_nobody(OsStr::new("rsync"), &["-rlpt".as_ref(), &source, names[1].as_os_str()]).ok();
        as_nobody(program.as_os_str(), &[&source, names[0].as_os_str()]).ok();
        assert_trees(&names[0], &names[1], true, &format!("step {step}"));
    }
}

#[test]
fn an_unchanged_program_that_gets_another_owner_keeps_its_setuid_bit() {
    if !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    let [from, to] = ["from", "to"].map(|name| mkdir(dir.path().join(name)));
    for (side, owner) in [(&from, 1001), (&to, 1002)] {
        let path = small(side.join("program"), "content");
        std::os::unix::fs::chown(&path, Some(owner), None).expect("chown");
        set_mode(&path, 0o4755);
        set_mtime(&path, 1_000, 3);
    }
    run(holesync().arg("-a").arg(slash(&from)).arg(&to)).ok();
    assert_trees(&to, &from, true, "owner and mode");
    let metadata = fs::metadata(to.join("program")).expect("look");
    assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (1001, 0o4755));
}

#[test]
fn a_file_with_a_second_name_elsewhere_leaves_the_other_alone() {
    for fs in [Fs::Ext4, Fs::Btrfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        let mut rng = Rng(SEED + 3);
        let layout = Layout::dense("image", 2 << 20, &mut rng);
        let (from, to) = (dir.path().join("from"), mkdir(dir.path().join("to")));
        let (kept, image) = (dir.path().join("snapshot"), to.join("image"));
        layout.write(&kept);
        fs::hard_link(&kept, &image).expect("link");
        let before = fs::read(&kept).expect("read");
        mutate(layout, Change::Touch, &mut rng).write(&from);
        run(holesync().arg("-c").args([&from, &image])).ok();
        assert_same(&from, &image);
        assert!(fs::read(&kept).expect("read") == before, "{fs:?}: the other name's content changed");
    }
}

#[test]
fn two_names_of_one_file_become_two_files() {
    let Some(dir) = lab::dir(Fs::Ext4) else { return };
    let Some(peer) = Peer::sshd() else { return };
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    for way in ["local", "push", "pull", "push to a shell", "pull from a shell"] {
        [&from, &to].into_iter().for_each(|path| drop(mkdir(path.clone())));
        // Large enough to be under way when the second name comes.
        for (name, seed) in [("a", 1), ("b", 2)] {
            Layout::dense(name, 48 << 20, &mut Rng(seed)).write(&from.join(name));
        }
        fs::copy(from.join("a"), to.join("a")).expect("copy");
        File::options()
            .write(true)
            .open(to.join("a"))
            .and_then(|old| old.write_all_at(b"other", 9))
            .expect("write");
        fs::hard_link(to.join("a"), to.join("b")).expect("link");
        let mut command = match way {
            "local" => holesync(),
            "push" | "pull" => peer.holesync(),
            _ => peer.shell(),
        };
        match way {
            "local" => command.arg(slash(&from)).arg(&to),
            "push" | "push to a shell" => command.arg(slash(&from)).arg(at(&to)),
            _ => command.arg(at(slash(&from))).arg(&to),
        };
        run(&mut command).ok();
        ["a", "b"].into_iter().for_each(|name| assert_same(&from.join(name), &to.join(name)));
        [&from, &to].into_iter().for_each(|path| fs::remove_dir_all(path).expect("remove"));
    }
}
