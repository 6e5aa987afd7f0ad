//! A file system that is full: the error says what was needed, the old image is whole, what
//! came is kept but for a part that is given back, and with room made the same command goes
//! on from it.

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};
use tempfile::TempDir;

use crate::common::check::{allocated, assert_no_leftovers, assert_same, leftovers, same};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, holesync, run, run_on};
use crate::common::redeploy::set_day;

const MIB: usize = 1 << 20;
const BLOCK: usize = 64 << 10;

/// The small file system, and sources to fill it with.
struct Small {
    lab: lab::Small,
    sources: TempDir,
}

impl Small {
    fn new() -> Option<Small> {
        Some(Small { lab: lab::small()?, sources: lab::scratch() })
    }

    fn image(&self) -> PathBuf {
        self.lab.dir.path().join("image")
    }

    fn filler(&self) -> PathBuf {
        self.lab.dir.path().join("filler")
    }

    /// Takes all but `mib` MiB.
    fn leave(&self, mib: u64) {
        File::open(self.lab.dir.path()).expect("open").sync_all().expect("sync");
        let filler = File::create(self.filler()).expect("create the filler");
        let len = free(self.lab.dir.path()) - (mib << 20);
        fallocate(&filler, FallocateFlags::empty(), 0, len as i64).expect("fill the file system");
    }

    fn make_room(&self) {
        std::fs::remove_file(self.filler()).expect("remove the filler");
    }

    fn push(&self, flags: &[&str], source: &Path) -> Outcome {
        let mut command = Peer::pipe(self.sources.path()).holesync();
        run(command.args(flags).arg("--json").arg(source).arg(at(self.image())))
    }
}

/// Bytes that root can still write: nothing is kept back from it.
fn free(dir: &Path) -> u64 {
    let stat = nix::sys::statvfs::statvfs(dir).expect("ask for free space");
    stat.blocks_free() * stat.fragment_size()
}

/// A deployment for which there is no room.
struct Case {
    name: &'static str,
    flags: &'static [&'static str],
    old: Option<Layout>,
    new: Layout,
    /// MiB that are free.
    free: u64,
    /// Whether the old image may be partly written.
    in_place: bool,
    /// The working files in which what came is kept.
    kept: &'static [&'static str],
    /// MiB of data that the next run sends at most.
    sends: u64,
}

fn cases(rng: &mut Rng) -> Vec<Case> {
    let dense = Layout::dense("old", 10 * MIB, rng);
    let sparse = Layout::hole("old", 12 * MIB).data(0..7 * MIB, rng);
    let changed = dense.clone().data(2 * MIB..6 * MIB, rng);
    let case = |name, flags, old, new, free| {
        let (in_place, kept, sends) = (false, &[][..], 10);
        Case { name, flags, old, new, free, in_place, kept, sends }
    };
    let kept = |kept, sends, case| Case { kept, sends, ..case };
    let stage = &["log", "stage"][..];
    vec![
        kept(&["temp"][..], 7, case("nothing there", &[], None, dense.clone(), 6)),
        case("--preallocate", &["--preallocate"], None, Layout::hole("new", 20 * MIB), 6),
        kept(stage, 3, case("the stage does not fit", &[], Some(dense.clone()), changed.clone(), 3)),
        kept(
            stage,
            2,
            case(
                "what replaying needs does not fit",
                &[],
                Some(sparse.clone()),
                sparse.clone().data(8 * MIB..12 * MIB, rng),
                6,
            ),
        ),
        case("the copy does not fit", &["--commit=atomic"], Some(dense.clone()), changed.clone(), 5),
        kept(&["temp"][..], 10, case("--whole-file", &["-W"], Some(dense), changed, 6)),
        Case {
            in_place: true,
            ..case("--inplace", &["--inplace"], Some(sparse.clone()), sparse.data(7 * MIB..12 * MIB, rng), 3)
        },
    ]
}

#[test]
fn a_full_disk_is_an_error_that_says_what_was_needed_and_keeps_what_came() {
    for case in cases(&mut Rng(3)) {
        eprintln!("{}", case.name);
        let Some(small) = Small::new() else { return };
        fails_and_then_succeeds(&small, &case);
    }
}

fn fails_and_then_succeeds(small: &Small, case: &Case) {
    let (source, copy) = (small.sources.path().join("new"), small.sources.path().join("old"));
    case.new.write(&source);
    if let Some(old) = &case.old {
        old.write(&copy);
        old.write(&small.image());
        set_day(&small.image(), 1);
    }
    let before = case.old.as_ref().map(|_| allocated(&small.image()));
    small.leave(case.free);
    let room = free(small.lab.dir.path());
    let outcome = small.push(case.flags, &source).code(11);
    for part in ["no space left for", "image", "needed", "are free now", "make room"] {
        assert!(outcome.stdout.contains(part), "{part:?} is not in {outcome}");
    }
    let names: Vec<String> = case.kept.iter().map(|kind| format!(".image.holesync.{kind}")).collect();
    let mut left = leftovers(small.lab.dir.path());
    left.sort();
    assert_eq!(left, names, "{outcome}");
    let came: u64 = names.iter().map(|name| allocated(&small.lab.dir.path().join(name))).sum();
    // What is said of what is kept, and of the old image.
    let says = |part| outcome.stdout.contains(part);
    let is_kept = ("came and are kept", !case.kept.is_empty());
    let is_not = ("nothing of it is kept", case.kept.is_empty() && !case.in_place);
    let is_whole = ("; the old file is untouched; ", case.old.is_some() && !case.in_place);
    let is_torn = ("; it is partly written; ", case.in_place);
    for (part, is_so) in [is_kept, is_not, is_whole, is_torn] {
        assert_eq!(says(part), is_so, "{part:?} in {outcome}");
    }
    if !case.in_place {
        assert!(!says(" 0 B are free now"), "a part was given back: {outcome}");
        assert!(before.is_none() && !small.image().exists() || same(&small.image(), &copy), "{outcome}");
        if let Some(before) = before {
            // But for a block of the file system's own records of it.
            assert!(allocated(&small.image()) <= before + (16 << 10), "the old image has grown: {outcome}");
        }
        let now = free(small.lab.dir.path());
        assert!(now + came + (256 << 10) >= room, "less room than before: {outcome}");
        assert!(20 * (now + (64 << 10)) >= came, "{now} bytes are free, {came} bytes stay: {outcome}");
    }
    small.make_room();
    let outcome = small.push(case.flags, &source).code(0);
    assert!(outcome.count("sent_data_bytes") <= case.sends << 20, "{outcome}");
    assert_same(&small.image(), &source);
    assert_no_leftovers(small.lab.dir.path());
}

/// Of a quota nobody says how much is free.
#[test]
fn a_quota_that_is_used_up_is_told_from_a_full_disk() {
    if !lab::is_root() || lab::dir(Fs::Btrfs).is_none() {
        return;
    }
    let (disk, sources) = (lab::Mounted::new(160, &["mkfs.btrfs", "-q"], &[]), lab::scratch());
    let (there, source) = (disk.path().join("there"), sources.path().join("source"));
    let dir = there.to_str().expect("a plain name");
    let btrfs = |args: &[&str]| run(std::process::Command::new("btrfs").args(args)).ok();
    btrfs(&["quota", "enable", disk.path().to_str().expect("a plain name")]);
    btrfs(&["subvolume", "create", dir]);
    btrfs(&["qgroup", "limit", "4M", dir]);
    Layout::dense("new", 8 * MIB, &mut Rng(9)).write(&source);
    let image = there.join("image");
    for to in [image.clone().into_os_string(), at(&image)] {
        let peer = Peer::pipe(sources.path());
        let outcome = run(peer.holesync().arg(&source).arg(to)).code(11);
        let outcome = outcome.says(&[
            "the disk quota leaves no space for ",
            "/image: up to 8.00 MiB were needed for the data of this image, ",
            " came and are kept; have the quota raised, or make room, and run the same command again",
        ]);
        assert!(!outcome.stderr.contains("are free") && !outcome.stderr.contains("old file"), "{outcome}");
        assert!(!image.exists());
    }
    btrfs(&["qgroup", "limit", "none", dir]);
    let outcome = run(holesync().arg("--json").arg(&source).arg(&image)).ok();
    assert!(outcome.count("sent_data_bytes") < 7 << 20, "it does not go on: {outcome}");
    assert_same(&image, &source);
    assert_no_leftovers(&there);
}

#[test]
fn a_disk_that_can_hold_no_more_files_is_told_from_a_full_one() {
    if !lab::is_root() {
        return;
    }
    let (disk, sources) = (lab::Mounted::new(8, &["mkfs.ext4", "-q", "-N", "16"], &[]), lab::scratch());
    let source = sources.path().join("source");
    std::fs::write(&source, "new").expect("write");
    let full = (0..100).find(|n| File::create(disk.path().join(n.to_string())).is_err());
    assert!(full.is_some(), "it holds any number of files");
    let outcome = run(holesync().arg(&source).arg(disk.path().join("image"))).code(11);
    outcome.says(&["no space left for ", "nothing of it is kept", "no room for more files (inodes)"]);
}

#[test]
fn a_local_copy_goes_on_from_what_came() {
    let Some(small) = Small::new() else { return };
    let source = small.sources.path().join("new");
    Layout::dense("new", 10 * MIB, &mut Rng(8)).write(&source);
    small.leave(6);
    let copy = || run(holesync().arg("--json").arg(&source).arg(small.image()));
    let outcome = copy().code(11);
    assert!(outcome.stdout.contains("will need up to 10"), "{outcome}");
    assert_eq!(leftovers(small.lab.dir.path()), [".image.holesync.temp"]);
    small.make_room();
    let outcome = copy().ok();
    assert!(outcome.count("sent_data_bytes") < 7 << 20, "{outcome}");
    assert_same(&small.image(), &source);
    assert_no_leftovers(small.lab.dir.path());
}

/// Of a copy nothing is noted before much of it is there.
#[test]
fn a_local_copy_gives_a_part_back() {
    if !lab::is_root() {
        return;
    }
    let disk = lab::Mounted::new(1, &["true"], &["-t", "tmpfs", "-o", "size=6M"]);
    let (sources, image) = (lab::scratch(), disk.path().join("image"));
    let source = sources.path().join("new");
    Layout::dense("new", 10 * MIB, &mut Rng(10)).write(&source);
    run(holesync().arg(&source).arg(&image)).code(11).says(&["came and are kept, ", "KiB are free now"]);
    let came = allocated(&disk.path().join(".image.holesync.temp"));
    assert!(20 * free(disk.path()) >= came, "{came} bytes stay");
}

#[test]
fn a_stage_that_cannot_be_completed_is_written_in_place() {
    let Some(small) = Small::new() else { return };
    let mut rng = Rng(4);
    let (source, image) = (small.sources.path().join("new"), small.image());
    let old = Layout::dense("old", 14 * MIB, &mut rng);
    // More is new than kept, so completing the stage comes first; there is no room for it. With
    // this many ranges the log ends just before a page does: sealing it takes room, too.
    let ranges = (0..169).map(|n| n * BLOCK..n * BLOCK + BLOCK / 4 * 3);
    ranges.fold(old.clone(), |new, range| new.data(range, &mut rng)).write(&source);
    old.write(&image);
    set_day(&image, 1);
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&image).expect("stat"));
    let before = inode();
    small.leave(10);
    let outcome = small.push(&["-B", "16K"], &source).code(0);
    assert!(outcome.stdout.contains("\"files_sent\":1"), "{outcome}");
    assert_same(&image, &source);
    assert_no_leftovers(small.lab.dir.path());
    assert_eq!(inode(), before, "it was renamed: there was room");
}

#[test]
fn a_file_that_does_not_fit_does_not_keep_small_ones_from_it() {
    let Some(small) = Small::new() else { return };
    let mut rng = Rng(5);
    let tree = small.sources.path().join("tree");
    std::fs::create_dir(&tree).expect("create a directory");
    for (name, blocks) in [("a", 16), ("b", 192), ("c", 2)] {
        Layout::dense(name, blocks * BLOCK, &mut rng).write(&tree.join(name));
    }
    small.leave(6);
    let outcome = small.push(&[], &tree.join("")).code(11);
    assert_eq!(outcome.count("files_failed"), 1, "{outcome}");
    let there = |name| small.image().join(name);
    assert!(!there("b").exists());
    for name in ["a", "c"] {
        assert_same(&there(name), &tree.join(name));
    }
    assert_eq!(leftovers(&small.image()), [".b.holesync.temp"]);
}

#[test]
fn a_stream_that_does_not_fit_leaves_nothing() {
    let Some(small) = Small::new() else { return };
    let mut rng = Rng(6);
    let (old, new) = (small.sources.path().join("old"), small.sources.path().join("new"));
    Layout::dense("old", MIB, &mut rng).write(&old);
    Layout::hole("new", 16 * MIB).data(MIB..13 * MIB, &mut rng).write(&new);
    small.leave(6);
    let receive = |flags: &[&str]| {
        let sent = holesync().arg("send").arg(&new).output().expect("run");
        assert!(sent.status.success());
        run_on(holesync().arg("recv").args(flags).arg(small.image()), &sent.stdout)
    };
    for (flags, there) in [(&[][..], false), (&["--size", "16M"], false), (&["--no-fsync"], true)] {
        if there {
            std::fs::copy(&old, small.image()).expect("copy");
        }
        let said = ["no space left for", "image", "how much is needed", "are free now", "make room"];
        receive(flags).code(11).says(&said);
        assert!(same(&small.image(), &old) == there && small.image().exists() == there, "{flags:?}");
        assert_no_leftovers(small.lab.dir.path());
    }
    small.make_room();
    receive(&[]).ok();
    assert_same(&small.image(), &new);
    assert_no_leftovers(small.lab.dir.path());
}
