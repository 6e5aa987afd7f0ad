//! The receiving end, killed at every system call that changes anything.

use crate::common::faults::{can_trace, killed_at};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::Peer;
use crate::common::process::run;
use crate::common::redeploy::{Redeploy, State, every};

const BLOCK: usize = 64 << 10;

/// Calls that change the destination or something beside it.
const CALLS: [&str; 14] = [
    "openat2",
    "pwrite64",
    "write",
    "ftruncate",
    "fallocate",
    "copy_file_range",
    "ioctl",
    "fchmod",
    "utimensat",
    "fsync",
    "fdatasync",
    "renameat",
    "unlinkat",
    "sync_file_range",
];

/// How a destination is taken from old to new.
struct Way {
    fs: Fs,
    flags: &'static [&'static str],
    /// Every how many blocks one changes; `None`: there is no old image.
    changes: Option<usize>,
    /// Whether the old image may be seen partly written, with a sealed log.
    replays: bool,
}

#[test]
fn killed_at_any_call_a_staged_image_is_old_or_new_or_can_be_finished() {
    kill_everywhere(&Way { fs: Fs::Ext4, flags: &[], changes: Some(4), replays: true });
}

#[test]
fn killed_at_any_call_a_completed_stage_is_old_or_new() {
    kill_everywhere(&Way { fs: Fs::Ext4, flags: &[], changes: Some(1), replays: false });
}

#[test]
fn killed_at_any_call_a_clone_is_old_or_new() {
    kill_everywhere(&Way { fs: Fs::Xfs, flags: &[], changes: Some(4), replays: false });
}

#[test]
fn killed_at_any_call_an_atomic_copy_is_old_or_new() {
    let flags = &["--commit=atomic"];
    kill_everywhere(&Way { fs: Fs::Ext4, flags, changes: Some(4), replays: false });
}

#[test]
fn killed_at_any_call_a_new_image_is_complete_or_absent() {
    kill_everywhere(&Way { fs: Fs::Ext4, flags: &[], changes: None, replays: false });
}

fn kill_everywhere(way: &Way) {
    let (Some(target), true) = (lab::dir(way.fs), can_trace()) else { return };
    let sources = lab::scratch();
    let redeploy = versions(way, sources.path(), target.path());
    let mut seen = Vec::new();
    for call in CALLS {
        let mut nth = 1;
        while let Some(state) = kill_at(way, &redeploy, sources.path(), call, nth) {
            seen.push(state);
            nth += 1;
        }
    }
    let count = |state| seen.iter().filter(|&&s| s == state).count();
    assert!(count(State::Old) > 12 && count(State::New) > 0, "too few kills: {seen:?}");
    assert_eq!(count(State::Replaying) > 0, way.replays, "{seen:?}");
}

/// Images with a hole, new zeros and an odd length each.
fn versions(way: &Way, sources: &std::path::Path, target: &std::path::Path) -> Redeploy {
    let mut rng = Rng(17);
    let old = Layout::dense("old", 20 * BLOCK + 777, &mut rng).punch(8 * BLOCK..10 * BLOCK);
    let new = every(way.changes.unwrap_or(4), &old, &mut rng).punch(14 * BLOCK..15 * BLOCK);
    let new = new.resize(21 * BLOCK + 99).data(21 * BLOCK..21 * BLOCK + 99, &mut rng);
    let third = every(3, &new, &mut rng).resize(17 * BLOCK + 1);
    Redeploy::new(sources, target, way.changes.map(|_| &old), &new, &third)
}

/// What the destination was after the kill; `None`: the run survived.
fn kill_at(
    way: &Way,
    redeploy: &Redeploy,
    scratch: &std::path::Path,
    call: &str,
    nth: usize,
) -> Option<State> {
    redeploy.reset();
    let peer = killed_at(scratch, call, nth);
    let outcome = run(peer.holesync().args(way.flags).args(redeploy.push("new")));
    eprintln!("kill at {call} {nth}: exit code {}", outcome.code);
    let state = redeploy.state();
    assert!(state != State::Replaying || way.replays, "partly written");
    if outcome.code == 0 {
        assert_eq!(state, State::New, "{outcome}");
        assert!(nth < 500, "never ends");
        return None;
    }
    if state == State::Replaying && nth.is_multiple_of(2) {
        redeploy.recover();
    }
    let next = match nth % 3 {
        0 if way.changes.is_some() => "old",
        1 => "third",
        _ => "new",
    };
    redeploy.finish(&Peer::pipe(scratch), way.flags, next);
    Some(state)
}
