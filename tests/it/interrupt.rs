//! Signals in the middle of a transfer: both ends go, the exit code says so,
//! and the next run goes on from what had come.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::common::check::leftovers;
use crate::common::faults::{Direction, Fault};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::Peer;
use crate::common::process::{Outcome, PROGRAM, Running, agents, start, wait_until};
use crate::common::redeploy::{Redeploy, State, every};

const BLOCK: usize = 64 << 10;
/// Far beyond what an end takes to stop.
const LIMIT: Duration = Duration::from_secs(20);

/// A transfer that has come to a stand in its middle, over a real ssh.
struct Stalled {
    running: Running,
    redeploy: Redeploy,
    agent: PathBuf,
    /// For the next run.
    peer: Peer,
    flags: &'static [&'static str],
}

impl Stalled {
    fn new(dirs: [&Path; 2], flags: &'static [&'static str], has_old: bool, pull: bool) -> Option<Stalled> {
        let [sources, target] = dirs;
        let peer = Peer::sshd()?;
        let mut rng = Rng(79);
        let old = Layout::dense("old", 128 * BLOCK, &mut rng);
        let new = every(2, &old, &mut rng);
        let redeploy = Redeploy::new(sources, target, has_old.then_some(&old), &new, &new);
        let agent = sources.join("holesync");
        std::os::unix::fs::symlink(PROGRAM, &agent).expect("link to the program");
        let direction = if pull { Direction::FromAgent } else { Direction::ToAgent };
        // More than the 32 KiB of map that a pull gets first... and less than half of what is to come.
        let script = Fault::Stall(40 * BLOCK as u64).pipeline(
            sources,
            direction,
            &format!("'{}' agent", agent.display()),
        );
        let wrapper = sources.join("stalled");
        std::fs::write(&wrapper, format!("#!/bin/sh\n{script}\n")).expect("write the wrapper");
        let stalled = peer.clone().with_program(&wrapper);
        let mut command = stalled.holesync();
        let words = format!("sh {}", wrapper.display());
        command.args(["--remote-path", &words]).args(flags);
        let running = start(command.args(if pull { redeploy.pull("new") } else { redeploy.push("new") }));
        let stalled =
            Stalled { running, redeploy, agent: agent.clone(), peer: peer.with_program(&agent), flags };
        stalled.await_data(target);
        Some(stalled)
    }

    /// Waits until some data has reached the target, beside the image.
    fn await_data(&self, target: &Path) {
        let some = || {
            leftovers(target)
                .iter()
                .any(|name| std::fs::metadata(target.join(name)).is_ok_and(|m| m.len() > 16 * BLOCK as u64))
        };
        assert!(wait_until(LIMIT, some), "nothing came");
    }
}
