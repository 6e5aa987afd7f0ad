//! Either end killed at random moments of a redeployment. `HOLESYNC_TEST_ROUNDS`
//! says how often.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::Peer;
use crate::common::process::{PROGRAM, agents, start, wait_until};
use crate::common::redeploy::{Redeploy, State, every};

const BLOCK: usize = 64 << 10;
const PAGE: usize = 4 << 10;
/// Far beyond what a process needs that has lost its other end.
const LIMIT: Duration = Duration::from_secs(60);
/// Rounds from which on it would be odd never to have met the replay.
const MANY: usize = 100;

fn rounds() -> usize {
    std::env::var("HOLESYNC_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(15)
}

#[test]
fn killed_at_random_on_ext4_an_image_is_old_or_new_or_can_be_finished() {
    kill_at_random(Fs::Ext4, &[], true, 61);
}

#[test]
fn killed_at_random_on_xfs_an_image_is_old_or_new() {
    kill_at_random(Fs::Xfs, &[], false, 67);
}

#[test]
fn killed_at_random_with_an_atomic_commit_an_image_is_old_or_new() {
    kill_at_random(Fs::Ext4, &["--commit=atomic"], false, 71);
}

/// How many rounds ended in what.
#[derive(Debug, Default)]
struct Seen {
    interrupted: usize,
    replaying: usize,
}

fn kill_at_random(fs: Fs, flags: &[&str], replays: bool, seed: u64) {
    let (sources, mut rng) = (lab::scratch(), Rng(seed));
    // Over ssh once: most of a run is its greeting then, and most kills come too early.
    let peer = if fs == Fs::Xfs { Peer::sshd() } else { Some(Peer::pipe(sources.path())) };
    let (Some(target), Some(peer)) = (lab::dir(fs), peer) else { return };
    let redeploy = versions(sources.path(), target.path(), &mut rng);
    let agent = own_program(sources.path());
    let peer = peer.with_program(&agent);
    let flags = &[flags, &["-B", "4K"]].concat();
    let length = length_of_a_run(&redeploy, &peer, flags);
    let mut seen = Seen::default();
    for round in 0..10 * rounds() {
        // Of few, all may have come too early or too late.
        if round >= rounds() && seen.interrupted > 0 {
            break;
        }
        redeploy.reset();
        for attempt in 0..1 + rng.below(2) {
            let after = length.mul_f64(rng.fraction());
            eprintln!("round {round}.{attempt} of seed {seed}: kill after {after:?}");
            killed_run(&redeploy, &peer, flags, &agent, after, &mut rng, &mut seen);
        }
        assert!(redeploy.state() != State::Replaying || replays, "partly written");
        if redeploy.state() == State::Replaying && rng.chance(50) {
            redeploy.recover();
        }
        let next = ["new", "old", "third"][rng.below(3)];
        redeploy.finish(&peer, flags, next);
    }
    eprintln!("{seen:?}");
    assert!(seen.interrupted > 0, "no kill came in time: {seen:?}");
    assert!(!replays || rounds() < MANY || seen.replaying > 0, "no replay was met: {seen:?}");
}

/// Many separate changes, so that replaying them takes a while.
fn versions(sources: &Path, target: &Path, rng: &mut Rng) -> Redeploy {
    let old = Layout::dense("old", 160 * BLOCK, rng);
    let changes = (0..old.len()).step_by(3 * PAGE).map(|at| at..at + PAGE);
    let new = changes.fold(old.clone(), |new, page| new.data(page, rng)).punch(100 * BLOCK..110 * BLOCK);
    let third = every(7, &new, rng).resize(150 * BLOCK + 12);
    Redeploy::new(sources, target, Some(&old), &new, &third)
}

/// The program under a name of this test's own, so that its agents can be told
/// from those of others.
fn own_program(dir: &Path) -> PathBuf {
    let own = dir.join("holesync");
    std::os::unix::fs::symlink(PROGRAM, &own).expect("link to the program");
    own
}

fn length_of_a_run(redeploy: &Redeploy, peer: &Peer, flags: &[&str]) -> Duration {
    let begun = Instant::now();
    redeploy.finish(peer, flags, "new");
    begun.elapsed()
}

/// A push or a pull of which one end is killed, if it has not ended before.
fn killed_run(
    redeploy: &Redeploy,
    peer: &Peer,
    flags: &[&str],
    agent: &Path,
    after: Duration,
    rng: &mut Rng,
    seen: &mut Seen,
) {
    let paths = if rng.chance(50) { redeploy.push("new") } else { redeploy.pull("new") };
    let running = start(peer.holesync().args(flags).args(paths));
    // The moment is meant to be a random one: nothing is waited for.
    std::thread::sleep(after);
    if rng.chance(50) {
        running.signal(Signal::SIGKILL);
    } else {
        for pid in agents(agent) {
            // It may have ended by itself.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
    let outcome = running.finish_within(LIMIT);
    assert!(wait_until(LIMIT, || agents(agent).is_empty()), "an agent outlives its connection");
    let state = redeploy.state();
    assert!(outcome.code != 0 || state == State::New, "{state:?} after {outcome}");
    seen.interrupted += usize::from(outcome.code != 0 && state != State::New);
    seen.replaying += usize::from(state == State::Replaying);
}
