//! The machine loses power: what has reached the disk at that moment is all
//! there is. The file system lives in an image that is copied at some moment of
//! a redeployment, without unmounting or syncing it, and mounted elsewhere.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::faults::{can_trace, killed_at};
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::peer::Peer;
use crate::common::process::{run, wait_until};
use crate::common::redeploy::{Redeploy, State, every};

const BLOCK: usize = 64 << 10;

/// A mounted image, unmounted when dropped.
struct Mounted {
    at: PathBuf,
    device: String,
}

impl Mounted {
    fn new(image: &Path) -> Mounted {
        let at = image.with_extension("mounted");
        std::fs::create_dir_all(&at).expect("create a mount point");
        let attached = run(Command::new("losetup").args(["--find", "--show"]).arg(image)).ok();
        let device = attached.stdout.trim().to_owned();
        // A device stays read-only if the one before us left it so.
        run(Command::new("blockdev").args(["--setrw", &device])).ok();
        // Nothing is to be written that nobody waits for: not by the clock, and not because ext4 takes
        // pity on programs that forget to.
        run(Command::new("mount").args(["-o", "commit=600,noauto_da_alloc", &device]).arg(&at)).ok();
        Mounted { at, device }
    }

    /// The directory that images are put into.
    fn target(&self) -> PathBuf {
        let target = self.at.join("target");
        std::fs::create_dir_all(&target).expect("create the target");
        target
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A process that another test has just forked may hold it for a moment longer. Nothing better
        // than trying can be done while a test fails.
        let unmount = || Command::new("umount").arg("-q").arg(&self.at).status().is_ok_and(|s| s.success());
        wait_until(Duration::from_secs(10), unmount);
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

/// A redeployment on a disk that can lose its power.
struct Way {
    flags: &'static [&'static str],
    changes: Option<usize>,
    replays: bool,
    calls: &'static [(&'static str, usize)],
}

/// Where the power goes: before the call of this name, the nth of a thread.
const STAGED: [(&str, usize); 11] = [
    ("fallocate", 1),
    ("fdatasync", 1),
    ("fdatasync", 2),
    ("fsync", 1),
    ("copy_file_range", 1),
    ("copy_file_range", 4),
    ("ftruncate", 1),
    ("utimensat", 1),
    ("fsync", 2),
    ("fsync", 3),
    ("pwrite64", 3),
];
const RENAMED: [(&str, usize); 6] =
    [("fchmod", 1), ("utimensat", 1), ("fsync", 1), ("renameat", 1), ("renameat", 2), ("fsync", 2)];

#[test]
fn without_power_a_staged_image_is_old_or_new_or_can_be_finished() {
    lose_power(&Way { flags: &[], changes: Some(4), replays: true, calls: &STAGED });
}

#[test]
fn without_power_a_completed_stage_is_old_or_new() {
    lose_power(&Way { flags: &[], changes: Some(1), replays: false, calls: &RENAMED });
}

#[test]
fn without_power_an_atomic_copy_is_old_or_new() {
    lose_power(&Way { flags: &["--commit=atomic"], changes: Some(4), replays: false, calls: &RENAMED });
}

#[test]
fn without_power_a_new_image_is_complete_or_absent() {
    lose_power(&Way { flags: &[], changes: None, replays: false, calls: &RENAMED });
}

fn lose_power(way: &Way) {
    if !lab::is_root() || !can_trace() {
        return;
    }
    let (scratch, mut rng) = (lab::scratch(), Rng(83));
    let disk = scratch.path().join("disk");
    File::create(&disk).expect("create a disk").set_len(24 << 20).expect("set its size");
    run(Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&disk))
        .ok();
    // Dropped last, so that nothing is open there when it goes.
    let mounted = Mounted::new(&disk);
    let old = Layout::dense("old", 32 * BLOCK, &mut rng);
    let new = every(way.changes.unwrap_or(4), &old, &mut rng).punch(20 * BLOCK..22 * BLOCK);
    let old = way.changes.map(|_| old);
    let redeploy = Redeploy::new(scratch.path(), &mounted.target(), old.as_ref(), &new, &new);
    let dir = File::open(mounted.target()).expect("open the target");
    let mut seen = Vec::new();
    for &(call, nth) in way.calls {
        redeploy.reset();
        let peer = killed_at(scratch.path(), call, nth);
        let outcome = run(peer.holesync().args(way.flags).args(redeploy.push("new")));
        // First with nothing written that nobody waited for, then with more and more of it.
        let image = File::open(redeploy.image()).ok();
        for written_back in ["nothing", "the image", "everything"] {
            match (written_back, &image) {
                ("the image", Some(image)) => image.sync_all().expect("sync the image"),
                ("everything", _) => nix::unistd::syncfs(&dir).expect("sync the file system"),
                _ => {}
            }
            let state = after_power_loss(&disk, scratch.path(), &redeploy, way);
            eprintln!("{call} {nth}, {written_back} written back, code {}: {state:?}", outcome.code);
            assert!(outcome.code != 0 || state == State::New, "done, and gone: {state:?} after {outcome}");
            seen.push(state);
        }
    }
    assert!(seen.contains(&State::Old), "{seen:?}");
    assert_eq!(seen.contains(&State::Replaying), way.replays, "{seen:?}");
}

/// What is found on the disk as it is now, and that a run makes it right.
fn after_power_loss(disk: &Path, scratch: &Path, before: &Redeploy, way: &Way) -> State {
    let copy = scratch.join("copy");
    std::fs::copy(disk, &copy).expect("copy the disk");
    let mounted = Mounted::new(&copy);
    let redeploy = before.on(&mounted.target());
    let state = redeploy.state();
    assert!(state != State::Replaying || way.replays, "partly written");
    if state == State::Replaying {
        redeploy.recover();
    }
    redeploy.finish(&Peer::pipe(scratch), way.flags, "new");
    state
}
