//! Streams that end early or arrive changed: never a success, never anything
//! but the old image or the new one.

use std::ffi::OsString;
use std::time::Duration;

use crate::common::faults::{Direction, Fault};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::Peer;
use crate::common::process::{Outcome, run, start};
use crate::common::redeploy::{Redeploy, State, every};

const BLOCK: usize = 64 << 10;
/// Magic, versions and features.
const GREETING: u64 = 16;
/// Far beyond what any of these runs needs.
const LIMIT: Duration = Duration::from_secs(20);

/// Bytes that a whole run sends to the agent and gets from it.
fn wire(outcome: &Outcome) -> [(Direction, u64); 2] {
    [
        (Direction::ToAgent, outcome.count("wire_bytes_sent")),
        (Direction::FromAgent, outcome.count("wire_bytes_received")),
    ]
}

/// A few offsets of each message at the start and at the end, some in between.
fn offsets(from: u64, end: u64, rng: &mut Rng) -> Vec<u64> {
    let middle: Vec<u64> = (0..12).map(|_| from + rng.below((end - from) as usize) as u64).collect();
    let mut offsets: Vec<u64> = (from..end.min(from + 230)).step_by(7).collect();
    offsets.extend(middle);
    offsets.extend((end.saturating_sub(60).max(from)..end).rev().step_by(2));
    offsets.sort_unstable();
    offsets.dedup();
    offsets
}

/// Goes through every fault that `faults` makes of the offsets in both directions.
fn with_each_fault(seed: u64, first: u64, fault_at: impl Fn(u64, &mut Rng) -> Fault) {
    with_each_fault_in(Redeploy::push, seed, first, &fault_at);
    with_each_fault_in(Redeploy::pull, seed + 1, first, &fault_at);
}

fn with_each_fault_in(
    paths: impl Fn(&Redeploy, &str) -> [OsString; 2],
    seed: u64,
    first: u64,
    fault_at: impl Fn(u64, &mut Rng) -> Fault,
) {
    let Some(target) = lab::dir(Fs::Ext4) else { return };
    let (sources, mut rng) = (lab::scratch(), Rng(seed));
    let old = Layout::dense("old", 10 * BLOCK + 3, &mut rng);
    let new = every(5, &old, &mut rng);
    let redeploy = Redeploy::new(sources.path(), target.path(), Some(&old), &new, &new);
    let whole = run(Peer::pipe(sources.path()).holesync().arg("--json").args(paths(&redeploy, "new"))).ok();
    for (direction, total) in wire(&whole) {
        for at in offsets(first, total, &mut rng) {
            redeploy.reset();
            let fault = fault_at(at, &mut rng);
            let peer = fault.peer(sources.path(), direction);
            let outcome = start(peer.holesync().args(paths(&redeploy, "new")));
            let outcome = outcome.finish_within(LIMIT);
            let state = redeploy.state();
            assert!(state != State::Replaying, "partly written after {fault:?} {direction:?}: {outcome}");
            // Damaged data is asked for again; an end that came too early is not.
            let may_succeed = matches!(fault, Fault::Flip(..)) && state == State::New;
            assert!(
                outcome.code != 0 || may_succeed,
                "success after {fault:?} {direction:?}, image {state:?}: {outcome}"
            );
        }
    }
    redeploy.finish(&Peer::pipe(sources.path()), &[], "new");
}

#[test]
fn a_truncated_stream_is_never_a_success() {
    with_each_fault(31, 0, |at, _| Fault::Cut(at));
}

#[test]
fn a_changed_byte_is_never_a_success() {
    with_each_fault(37, GREETING, |at, rng| Fault::Flip(at, 1 << rng.below(8)));
}
