//! Deployments: every awkward layout, after every change, on every file system,
//! in every commit mode, by push, pull and on one machine.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use holesync::scan::{FileImage, Image};
use holesync::sys;

use crate::common::check::{
    allocated, assert_holes_kept, assert_no_leftovers, assert_same, data_extents, leftovers,
};
use crate::common::faults::{Direction, Fault};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Change, Layout, Rng, layouts, mutate};
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, holesync, run};
use crate::common::redeploy::{every, set_day};

const MIB: usize = 1 << 20;
const BLOCK: usize = 64 << 10;
const PAGE: usize = 4 << 10;

/// How the two ends are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Push,
    Pull,
    Local,
    /// Without a holesync at the other end.
    PushShell,
    PullShell,
}

impl Way {
    /// Makes what is at `to` equal to what is at `from`.
    fn run(self, peer: &Peer, flags: &[&str], from: &str, to: &str) -> Outcome {
        let mut command = match self {
            Way::Local => holesync(),
            Way::Push | Way::Pull => peer.holesync(),
            Way::PushShell | Way::PullShell => peer.shell(),
        };
        command.arg("--json").args(flags);
        match self {
            Way::Push | Way::PushShell => command.arg(from).arg(at(to)),
            Way::Pull | Way::PullShell => command.arg(at(from)).arg(to),
            Way::Local => command.arg(from).arg(to),
        };
        run(&mut command).ok()
    }
}

#[test]
fn every_layout_survives_every_change_on_ext4() {
    survive_everything(Fs::Ext4);
}

#[test]
fn every_layout_survives_every_change_on_xfs() {
    survive_everything(Fs::Xfs);
}

#[test]
fn every_layout_survives_every_change_on_btrfs() {
    survive_everything(Fs::Btrfs);
}

#[test]
fn every_layout_survives_every_change_on_tmpfs() {
    survive_everything(Fs::Tmpfs);
}

fn survive_everything(fs: Fs) {
    let (Some(there), Some(peer)) = (lab::dir(fs), Peer::sshd()) else { return };
    for (way, mode) in [
        (Way::Push, "auto"),
        (Way::Pull, "auto"),
        (Way::Local, "auto"),
        (Way::Push, "atomic"),
        (Way::Pull, "inplace"),
        (Way::PushShell, "auto"),
        (Way::PushShell, "inplace"),
        (Way::PullShell, "auto"),
        (Way::PullShell, "inplace"),
    ] {
        let here = lab::scratch();
        let copies = there.path().join(format!("{way:?}-{mode}"));
        let (from, to) = (format!("{}/", here.path().display()), copies.display().to_string());
        let mode = format!("--commit={mode}");
        let mut rng = Rng(5);
        let mut all = layouts(&mut rng);
        for change in [Change::Nothing].into_iter().chain(Change::ALL) {
            all = all.into_iter().map(|layout| mutate(layout, change, &mut rng)).collect();
            all.iter().for_each(|layout| put(layout, here.path(), &mut rng));
            // A shell compares only when it is asked to.
            let compare: &[&str] = if way == Way::PushShell { &["-c"] } else { &[] };
            let outcome = way.run(&peer, &[&[mode.as_str()], compare].concat(), &from, &to);
            let what = format!("{fs:?} {way:?} {mode} {change:?}");
            all.iter().for_each(|layout| check(&what, layout, here.path(), &copies));
            assert_no_leftovers(&copies);
            let data: usize = all.iter().map(Layout::written).sum();
            assert!(outcome.count("sent_data_bytes") <= data as u64, "{what}: {outcome}");
            // Nor does it tell that a file with large holes has nothing else in them.
            let compare = if matches!(way, Way::PushShell | Way::PullShell) { "--stats" } else { "-c" };
            let again = way.run(&peer, &[&mode, compare], &from, &to);
            assert_eq!(again.count("sent_data_bytes"), 0, "{what}: {again}");
            assert_eq!(again.count("files_sent"), 0, "{what}: {again}");
        }
    }
}

/// Writes a layout with a mode and a time of its own.
fn put(layout: &Layout, dir: &Path, rng: &mut Rng) {
    let path = dir.join(&layout.name);
    layout.write(&path);
    let mode = [0o600, 0o644, 0o755, 0o440][rng.below(4)];
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set the mode");
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_500_000_000 + rng.next() % 9999, 123_456_789);
    fs::File::open(&path).expect("open").set_modified(time).expect("set the time");
}

#[track_caller]
fn check(what: &str, layout: &Layout, from: &Path, to: &Path) {
    eprintln!("{what}: {}", layout.name);
    let (source, copy) = (from.join(&layout.name), to.join(&layout.name));
    assert_same(&source, &copy);
    let (a, b) = (source.metadata().expect("stat"), copy.metadata().expect("stat"));
    assert_eq!((a.mode(), a.mtime(), a.mtime_nsec()), (b.mode(), b.mtime(), b.mtime_nsec()));
    let (written, taken) = (layout.written() as u64, allocated(&copy));
    assert!(taken <= written + written / 100 + (64 << 10), "{taken} bytes taken for {written}");
    let data = data_extents(&std::fs::File::open(&copy).expect("open"), b.len()).expect("seek");
    let data: u64 = data.iter().map(|extent| extent.end.next_multiple_of(PAGE as u64) - extent.start).sum();
    assert!(data <= written, "{data} bytes of data for {written}");
}

/// A source, a copy that an earlier run made of another version, and an agent
/// over pipes.
struct Pair {
    dir: tempfile::TempDir,
    peer: Peer,
}

impl Pair {
    /// In `dir`, deployed once.
    fn new(dir: tempfile::TempDir, old: &Layout) -> Pair {
        let peer = Peer::pipe(dir.path());
        let pair = Pair { dir, peer };
        pair.source(old, 1);
        pair.push(&[]);
        pair
    }

    fn source_path(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn copy_path(&self) -> PathBuf {
        self.dir.path().join("copy")
    }

    /// Makes the source this, as of some day.
    fn source(&self, layout: &Layout, day: u64) {
        layout.write(&self.source_path());
        set_day(&self.source_path(), day);
    }

    /// Deploys, and checks that the copy is equal.
    #[track_caller]
    fn push(&self, flags: &[&str]) -> Outcome {
        let outcome = self.run(flags);
        assert_same(&self.source_path(), &self.copy_path());
        assert_eq!(leftovers(self.dir.path()), Vec::<String>::new(), "{outcome}");
        outcome
    }

    #[track_caller]
    fn run(&self, flags: &[&str]) -> Outcome {
        let mut command = self.peer.holesync();
        run(command.arg("--json").args(flags).arg(self.source_path()).arg(at(self.copy_path()))).ok()
    }
}

fn dense(blocks: usize) -> Layout {
    Layout::dense("image", blocks * BLOCK, &mut Rng(8))
}

#[test]
fn what_size_and_time_hide_is_found_with_checksum_and_ignore_times_only() {
    for flag in ["-c", "--checksum", "-I", "--ignore-times"] {
        let pair = Pair::new(lab::scratch(), &dense(20));
        pair.source(&dense(20).data(7 * BLOCK..8 * BLOCK, &mut Rng(1)), 1);
        let quick = pair.run(&[]);
        assert_eq!((quick.count("files_sent"), quick.count("hashed_bytes")), (0, 0), "{quick}");
        let found = pair.push(&[flag]);
        assert_eq!((found.count("files_sent"), found.count("sent_data_bytes")), (1, BLOCK as u64), "{found}");
    }
}

#[test]
fn size_only_takes_files_of_one_size_for_equal() {
    let pair = Pair::new(lab::scratch(), &dense(4));
    pair.source(&dense(4).data(0..10, &mut Rng(1)), 2);
    assert_eq!(pair.run(&["--size-only"]).count("files_sent"), 0);
    assert_eq!(pair.push(&["-c"]).count("files_sent"), 1);
}

#[test]
fn whole_file_sends_all_data_and_no_holes() {
    for mode in ["--commit=auto", "--commit=atomic", "--inplace"] {
        let layout = dense(20).punch(3 * BLOCK..9 * BLOCK);
        let pair = Pair::new(lab::scratch(), &dense(25));
        pair.source(&layout, 2);
        let outcome = pair.push(&["-W", mode]);
        assert_eq!(outcome.count("sent_data_bytes"), layout.written() as u64, "{outcome}");
        assert_holes_kept(&pair.source_path(), &pair.copy_path());
    }
}

#[test]
fn one_changed_byte_costs_one_block() {
    for (size, bytes) in [("4K", 4 << 10), ("16K", 16 << 10), ("64K", 64 << 10), ("256K", 256 << 10)] {
        let pair = Pair::new(lab::scratch(), &dense(64));
        pair.source(&dense(64).data(17 * BLOCK + 5..17 * BLOCK + 6, &mut Rng(3)), 2);
        let outcome = pair.push(&["-B", size]);
        assert_eq!(outcome.count("sent_data_bytes"), bytes, "-B {size}: {outcome}");
        assert!(outcome.count("wire_bytes_sent") < bytes + 1000, "-B {size}: {outcome}");
    }
}

#[test]
fn of_a_block_that_comes_whole_only_the_pages_that_differ_are_written() {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        for mode in ["--commit=auto", "--commit=atomic", "--inplace"] {
            let Some(dir) = lab::dir(fs) else { continue };
            let pair = Pair::new(dir, &dense(64).zeros(21 * BLOCK..21 * BLOCK + PAGE));
            // Pages change, become zero, and are data where there was a hole.
            let layout = dense(64)
                .data(17 * BLOCK + 3 * PAGE..17 * BLOCK + 5 * PAGE, &mut Rng(3))
                .data(18 * BLOCK..18 * BLOCK + 1, &mut Rng(4))
                .zeros(19 * BLOCK + PAGE..19 * BLOCK + 2 * PAGE);
            pair.source(&layout, 2);
            let outcome = pair.push(&["--leaf-size=64K", mode]);
            assert_eq!(outcome.count("written_bytes"), 4 * PAGE as u64, "{mode} on {fs:?}: {outcome}");
        }
    }
}

#[test]
fn one_page_in_a_block_travels_alone() {
    let hole = Layout::hole("image", 64 * BLOCK);
    let pair = Pair::new(lab::scratch(), &hole);
    pair.source(&hole.data(9 * BLOCK + PAGE..9 * BLOCK + 2 * PAGE, &mut Rng(3)), 2);
    let outcome = pair.push(&[]);
    assert_eq!(outcome.count("sent_data_bytes"), PAGE as u64, "{outcome}");
    assert_holes_kept(&pair.source_path(), &pair.copy_path());
}

#[test]
fn compressed_data_arrives_equal_and_costs_less() {
    let text: Vec<u8> = (0..4 * MIB).map(|i| b"the quick brown fox "[i % 20]).collect();
    for (flags, shrinks) in [
        (&["-z"][..], true),
        (&["--compress=zstd", "--compress-level=9"], true),
        (&["-z", "--compress-level", "-5"], true),
        (&["--compress=none"], false),
        (&["--compress=auto"], false),
    ] {
        let pair = Pair::new(lab::scratch(), &dense(1));
        fs::write(pair.source_path(), &text).expect("write");
        let outcome = pair.push(flags);
        let wire = outcome.count("wire_bytes_sent");
        assert_eq!(outcome.count("sent_data_bytes"), text.len() as u64, "{outcome}");
        assert!((wire < text.len() as u64 / 4) == shrinks, "{flags:?}: {outcome}");
    }
}

#[test]
fn data_that_does_not_shrink_costs_no_more_when_it_is_to_be_compressed() {
    for flags in [&["-z"][..], &["--compress=zstd", "--compress-level=19"], &["--compress=auto"]] {
        let pair = Pair::new(lab::scratch(), &dense(1));
        pair.source(&dense(80), 2);
        let outcome = pair.push(flags);
        let (wire, data) = (outcome.count("wire_bytes_sent"), dense(80).len() as u64);
        assert!(wire <= data + data / 100, "{flags:?}: {outcome}");
    }
}

#[test]
fn of_scattered_changes_little_more_than_their_pages_travels_over_ssh() {
    let (blocks, changed) = (160, 100);
    let old = Layout::dense("image", blocks * BLOCK, &mut Rng(8));
    let changes = (0..changed).map(|nth| (nth * blocks / changed) * BLOCK + nth * 601);
    let new = changes.fold(old.clone(), |layout, at| layout.data(at..at + 4, &mut Rng(at as u64 + 1)));
    let whole = (changed * BLOCK) as u64;
    for (fs, way, flags) in [
        (Fs::Ext4, Way::Push, &["--commit=auto"][..]),
        (Fs::Ext4, Way::Pull, &["--commit=auto"]),
        (Fs::Ext4, Way::Push, &["--commit=atomic", "-z"]),
        (Fs::Xfs, Way::Push, &["--commit=auto"]),
        (Fs::Btrfs, Way::Pull, &["--commit=auto"]),
        (Fs::Tmpfs, Way::Push, &["--inplace"]),
    ] {
        let (Some(there), Some(peer)) = (lab::dir(fs), Peer::sshd()) else { return };
        let here = lab::scratch();
        let paths = [here.path().join("image"), there.path().join("image")];
        let deploy = |layout: &Layout, flags: &[&str], day: u64| {
            layout.write(&paths[0]);
            set_day(&paths[0], day);
            let [from, to] = paths.each_ref().map(|path| path.to_str().expect("a plain path"));
            let outcome = way.run(&peer, flags, from, to);
            assert_same(&paths[0], &paths[1]);
            assert_no_leftovers(there.path());
            outcome
        };
        let wire =
            |outcome: &Outcome| outcome.count("wire_bytes_sent") + outcome.count("wire_bytes_received");
        deploy(&old, flags, 1);
        let outcome = deploy(&new, flags, 2);
        // The first changes, about 1 MB, are sent whole.
        assert!(wire(&outcome) < whole / 3, "{fs:?} {way:?} {flags:?}: {outcome}");
        let outcome = deploy(&old, &[flags, &["--leaf-size=64K"]].concat(), 3);
        assert_eq!(outcome.count("sent_data_bytes"), whole, "{fs:?} {way:?} {flags:?}: {outcome}");
        assert!(wire(&outcome) > whole * 99 / 100 && wire(&outcome) < whole + whole / 50, "{outcome}");
    }
}

#[test]
fn compressible_data_travels_as_less_than_half_over_ssh_and_changes_to_it_as_less_than_that() {
    let Some(peer) = Peer::sshd() else { return };
    let (here, there) = (lab::scratch(), lab::scratch());
    let paths = [here.path().join("image"), there.path().join("image")];
    let mut text: Vec<u8> = (0..10 * MIB).map(|i| b"the quick brown fox "[i * i / 7 % 20]).collect();
    for (way, day) in [(Way::Push, 1), (Way::Pull, 2)] {
        let _ = fs::remove_file(&paths[1]);
        for change in [false, true] {
            if change {
                text.iter_mut().step_by(BLOCK).for_each(|byte| *byte ^= 1);
            }
            fs::write(&paths[0], &text).expect("write");
            set_day(&paths[0], day * 2 + u64::from(change));
            let [from, to] = paths.each_ref().map(|path| path.to_str().expect("a plain path"));
            let outcome = way.run(&peer, &["-z"], from, to);
            assert_same(&paths[0], &paths[1]);
            let wire = outcome.count("wire_bytes_sent") + outcome.count("wire_bytes_received");
            assert!(wire < outcome.count("sent_data_bytes") / 2, "{way:?} {change}: {outcome}");
        }
    }
}

#[test]
fn zeros_are_freed_unless_they_are_to_stay_allocated() {
    let source = dense(64).punch(8 * BLOCK..60 * BLOCK);
    let zeros = dense(64).zeros(8 * BLOCK..60 * BLOCK);
    let apparent = source.len() as u64;
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        for mode in ["--commit=auto", "--commit=atomic", "--inplace"] {
            let Some(dir) = lab::dir(fs) else { return };
            let pair = Pair::new(dir, &zeros);
            let copy = pair.copy_path();
            zeros.write(&copy);
            assert!(allocated(&copy) >= apparent, "{fs:?} keeps written zeros");
            pair.source(&source, 2);
            let outcome = pair.push(&[mode]);
            assert_eq!(outcome.count("sent_data_bytes"), 0, "{fs:?} {mode}: {outcome}");
            assert_holes_kept(&pair.source_path(), &copy);

            zeros.write(&copy);
            pair.source(&source.clone().data(0..10, &mut Rng(1)), 3);
            pair.push(&[mode, "--preallocate"]);
            assert!(allocated(&copy) >= apparent, "{fs:?} {mode} --preallocate");
            fs::remove_file(&copy).expect("remove");
            pair.push(&[mode, "--preallocate"]);
            assert!(allocated(&copy) >= apparent, "{fs:?} {mode} --preallocate, new");
        }
    }
}

#[test]
fn options_that_must_not_change_the_result_do_not() {
    for flags in [&["--no-hole-map"][..], &["--verify"], &["--no-fsync"], &["--threads", "1"]] {
        let pair = Pair::new(lab::scratch(), &dense(30));
        let changed = mutate(dense(30).punch(4 * BLOCK..9 * BLOCK), Change::Grow, &mut Rng(2));
        pair.source(&changed, 2);
        let outcome = pair.push(flags);
        assert_holes_kept(&pair.source_path(), &pair.copy_path());
        assert_eq!(outcome.count("files_sent"), 1, "{flags:?}: {outcome}");
        let again = pair.push(flags);
        assert_eq!(again.count("files_sent"), 0, "{flags:?}: {again}");
        if flags == ["--no-hole-map"] {
            assert!(outcome.count("hashed_bytes") >= changed.len() as u64, "holes were not read: {outcome}");
        }
    }
}

#[test]
fn sixteen_tebibytes_cost_what_their_data_costs() {
    for fs in [Fs::Xfs, Fs::Tmpfs] {
        let Some(dir) = lab::dir(fs) else { return };
        let pair = Pair::new(dir, &Layout::dense("image", 3 * BLOCK, &mut Rng(1)));
        // Not by way of a layout, which holds every byte in memory.
        let far = |at: u64, bytes: &[u8]| {
            use std::os::unix::fs::FileExt;
            let file = fs::File::options().write(true).open(pair.source_path()).expect("open");
            file.set_len(16 << 40).expect("a file of 16 TiB");
            file.write_all_at(bytes, at).expect("write");
        };
        far((16 << 40) - 1, &[7]);
        far(5 << 40, &[9; 5000]);
        let outcome = pair.push(&[]);
        assert_eq!(outcome.count("apparent_bytes"), 16 << 40, "{outcome}");
        assert!(outcome.count("hashed_bytes") < 1 << 20, "{outcome}");
        far(3 << 40, &[1]);
        let outcome = pair.push(&[]);
        assert_eq!(outcome.count("sent_data_bytes"), PAGE as u64, "{outcome}");
        assert_eq!(pair.push(&["-c"]).count("sent_data_bytes"), 0);
    }
}

#[test]
fn two_hundred_thousand_extents_arrive_and_are_found_again() {
    use std::os::unix::fs::FileExt;
    let Some(dir) = lab::dir(Fs::Tmpfs) else { return };
    let peer = Peer::pipe(dir.path());
    let (source, copy) = (dir.path().join("source"), dir.path().join("copy"));
    let file = fs::File::create(&source).expect("create");
    let count = 200_000u64;
    file.set_len(count * 8192).expect("set the length");
    for i in 0..count {
        file.write_all_at(&(i + 1).to_le_bytes(), i * 8192).expect("write");
    }
    let push = || run(peer.holesync().args(["--json", "-c"]).arg(&source).arg(at(&copy))).ok();
    assert_eq!(push().count("sent_data_bytes"), count * PAGE as u64);
    assert_same(&source, &copy);
    assert_eq!(allocated(&copy), count * PAGE as u64);
    file.write_all_at(&[255; 8], 77 * 8192).expect("write");
    // Two extents of a page each lie in the block around it, and six more.
    assert_eq!(push().count("sent_data_bytes"), 8 * PAGE as u64);
    assert_same(&source, &copy);
}

#[test]
fn an_interrupted_run_is_gone_on_from() {
    let blocks = 640;
    let new = Layout::dense("image", blocks * BLOCK, &mut Rng(4));
    for (fs, old, mode) in [
        (Fs::Ext4, None, "auto"),
        (Fs::Ext4, Some(every(2, &new, &mut Rng(9))), "auto"),
        (Fs::Ext4, Some(every(2, &new, &mut Rng(9))), "atomic"),
        (Fs::Xfs, Some(every(2, &new, &mut Rng(9))), "auto"),
    ] {
        let Some(dir) = lab::dir(fs) else { return };
        let pair = match &old {
            Some(old) => Pair::new(dir, old),
            None => Pair { peer: Peer::pipe(dir.path()), dir },
        };
        pair.source(&new, 2);
        let mode = format!("--commit={mode}");
        let differs = if old.is_some() { blocks / 2 } else { blocks } * BLOCK;
        let cut = Fault::Cut(differs as u64 * 3 / 4).peer(pair.dir.path(), Direction::ToAgent);
        let mut command = cut.holesync();
        let broken = run(command.arg(&mode).arg(pair.source_path()).arg(at(pair.copy_path())));
        assert_ne!(broken.code, 0, "{broken}");
        // The script of the peer is one path for both.
        let pair = Pair { peer: Peer::pipe(pair.dir.path()), ..pair };
        let outcome = pair.push(&[&mode]);
        // What is lost is what the last flush of the log did not cover.
        let (sent, lost) = (outcome.count("sent_data_bytes"), 3 * MIB as u64);
        assert!(sent <= differs as u64 / 4 + lost, "{fs:?} {mode}: {outcome}");
        assert!(sent < differs as u64, "{fs:?} {mode}: {outcome}");
    }
}

#[test]
fn a_dry_run_predicts_what_is_sent_and_changes_nothing() {
    for fs in [Fs::Ext4, Fs::Xfs] {
        let Some(dir) = lab::dir(fs) else { return };
        let pair = Pair::new(dir, &dense(10));
        pair.source(&dense(9).data(3 * BLOCK..5 * BLOCK, &mut Rng(2)), 2);
        let before = listing(pair.dir.path());
        let dry = pair.run(&["-n"]);
        assert_eq!(listing(pair.dir.path()), before, "{fs:?}: {dry}");
        let real = pair.push(&[]);
        assert_eq!(dry.count("files_sent"), real.count("files_sent"), "{dry} {real}");
        assert_eq!(dry.summary()["dry_run"], true);
        assert!(dry.count("wire_bytes_sent") < 2000, "{dry}");
        let unchanged = pair.run(&["-n", "-c"]);
        assert_eq!(unchanged.count("files_sent"), 0, "{unchanged}");
    }
}

/// Names, sizes, times and inodes of everything in a directory.
fn listing(dir: &Path) -> String {
    let outcome = run(Command::new("stat")
        .args(["-c", "%n %i %s %y %z %b"])
        .args(fs::read_dir(dir).expect("list").flatten().map(|entry| entry.path())));
    let mut lines: Vec<&str> = outcome.stdout.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// How much of a file the page cache holds, in bytes.
fn cached(path: &Path) -> u64 {
    let output = Command::new("fincore").args(["-nb", "-o", "RES"]).arg(path).output().expect("run fincore");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

#[test]
fn reading_can_leave_the_page_cache_as_it_was() {
    let Some(dir) = lab::dir(Fs::Ext4) else { return };
    let path = dir.path().join("image");
    Layout::dense("image", 8 * MIB, &mut Rng(5)).write(&path);
    let file = fs::File::open(&path).expect("open");
    file.sync_all().expect("sync");
    let mut buffer = vec![0; MIB];
    if sys::read_uncached(&file, &mut buffer, 0).expect("read").is_none() {
        return lab::skip("this kernel keeps in the cache what it reads");
    }
    let image = |spares: bool| {
        let image = FileImage::new(fs::File::open(&path).expect("open"), true);
        if spares { image.sparing_cache() } else { image }
    };
    let mut read = |image: FileImage| {
        (0..8).for_each(|at| image.read_at(&mut buffer, at * MIB as u64).expect("read"));
        cached(&path)
    };
    sys::drop_cache(&file);
    assert!(read(image(true)) < MIB as u64);
    assert_eq!(read(image(false)), 8 * MIB as u64);
    assert_eq!(read(image(true)), 8 * MIB as u64, "what was there before is gone");
}
