//! Signals in the middle of a transfer: both ends go, the exit code says so,
//! and the next run goes on from what had come.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::common::check::{assert_no_leftovers, leftovers, taken};
use crate::common::faults::{Direction, Fault, await_pause, resume};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::Peer;
use crate::common::process::{PROGRAM, agents, holesync, start, wait_until};
use crate::common::redeploy::{Redeploy, State, every};

const BLOCK: usize = 64 << 10;
/// Half of them differ between the versions.
const BLOCKS: usize = 128;
/// Where the transfer comes to a stand.
const STALL: usize = 40 * BLOCK;
/// Far beyond what an end takes to stop.
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn an_interrupted_push_ends_with_code_20_and_is_gone_on_from() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        interrupt(signal, true, false);
    }
    interrupt(Signal::SIGINT, false, false);
}

#[test]
fn a_run_whose_time_is_over_ends_with_code_30_and_is_gone_on_from() {
    let dir = lab::scratch();
    let (redeploy, agent) = versions(dir.path(), true);
    let peer = Fault::Stall(STALL as u64).peer(dir.path(), Direction::ToAgent).with_program(&agent);
    let date = Command::new("date").args(["-d", "+1 minute", "+%H:%M"]).output().expect("run date");
    let minute = format!("--stop-at={}", String::from_utf8(date.stdout).expect("digits").trim());
    let running = start(peer.holesync().arg(minute).args(redeploy.push("new")));
    await_data(&dir.path().join("target"));
    let outcome = running.finish_within(LIMIT + Duration::from_secs(60)).code(30);
    outcome.says(&["--stop-at", "goes on"]);
    assert_eq!(redeploy.state(), State::Old);
    redeploy.finish(&Peer::pipe(dir.path()), &[], "new");
}

#[test]
fn an_interrupted_pull_ends_with_code_20_and_is_gone_on_from() {
    interrupt(Signal::SIGINT, true, true);
    interrupt(Signal::SIGTERM, false, true);
}

#[test]
fn an_agent_that_is_stopped_ends_the_run_and_is_gone_on_from() {
    let stalled = |redeploy: &Redeploy, dir: &Path, agent: &Path| {
        let peer = Fault::Stall(STALL as u64).peer(dir, Direction::ToAgent).with_program(agent);
        let running = start(peer.holesync().args(redeploy.push("new")));
        await_data(&dir.join("target"));
        agents(agent).into_iter().for_each(|pid| kill(pid, Signal::SIGTERM).expect("signal the agent"));
        assert_ne!(running.finish_within(LIMIT).code, 0);
    };
    let dir = lab::scratch();
    let (redeploy, agent) = versions(dir.path(), true);
    stalled(&redeploy, dir.path(), &agent);
    assert_eq!(redeploy.state(), State::Old);
    redeploy.finish(&Peer::pipe(dir.path()), &[], "new");
}

/// As below nohup(1): a terminal that goes takes nothing along.
#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    let dir = lab::scratch();
    let (redeploy, _) = versions(dir.path(), true);
    let peer = Fault::Pause(STALL as u64).peer(dir.path(), Direction::ToAgent);
    let mut plain = peer.holesync();
    let plain = plain.args(redeploy.push("new"));
    let mut nohup = Command::new("nohup");
    let running = start(nohup.arg(plain.get_program()).args(plain.get_args()));
    await_pause(dir.path());
    running.signal(Signal::SIGHUP);
    resume(dir.path());
    running.finish().ok();
    assert_eq!(redeploy.state(), State::New);
}

/// What waits for storage with others takes its place, and nothing new is begun.
#[test]
fn an_interrupted_copy_of_many_files_leaves_no_working_files() {
    let Some(target) = lab::dir(Fs::Ext4) else { return };
    let sources = lab::scratch();
    for number in 0..4000 {
        std::fs::write(sources.path().join(number.to_string()), [7; 1000]).expect("write");
    }
    // At this rate it does not end by itself.
    let to = target.path().join("to");
    let running = start(holesync().args(["-a", "--bwlimit=100"]).arg(sources.path().join("")).arg(&to));
    let count = || std::fs::read_dir(&to).map_or(0, Iterator::count);
    assert!(wait_until(LIMIT, || count() > 100), "nothing came");
    running.signal(Signal::SIGINT);
    running.finish_within(LIMIT).code(20).says(&["interrupted", "run the same command again"]);
    assert!((100..4000).contains(&count()), "{} files", count());
    assert_no_leftovers(&to);
}

/// ssh gets the signal, too, and its end may be seen first.
#[test]
fn an_interrupted_connection_is_no_failure_of_ssh() {
    let dir = lab::scratch();
    let script = dir.path().join("ssh.sh");
    std::fs::write(&script, "kill -INT $PPID; exit 255").expect("write");
    for _ in 0..30 {
        let mut command = holesync();
        let command =
            command.args(["-e", &format!("sh {}", script.display())]).arg(&script).arg("host:there");
        let outcome = start(command).finish_within(LIMIT).code(20);
        assert!(!outcome.stderr.contains("ssh to"), "{outcome}");
    }
}

fn interrupt(signal: Signal, has_old: bool, pull: bool) {
    eprintln!("{signal}, old image: {has_old}, pull: {pull}");
    let dir = lab::scratch();
    let (redeploy, agent) = versions(dir.path(), has_old);
    let (direction, paths) = match pull {
        false => (Direction::ToAgent, redeploy.push("new")),
        true => (Direction::FromAgent, redeploy.pull("new")),
    };
    let peer = Fault::Stall(STALL as u64).peer(dir.path(), direction).with_program(&agent);
    let running = start(peer.holesync().args(&paths));
    await_data(&dir.path().join("target"));
    running.signal(signal);
    running.finish_within(LIMIT).code(20).says(&["interrupted", "goes on from there"]);
    assert!(wait_until(LIMIT, || agents(&agent).is_empty()), "an agent outlives its connection");
    assert_eq!(redeploy.state(), State::Old);
    let outcome = redeploy.complete(Peer::pipe(dir.path()).holesync().args(paths), "new");
    let differs = (if has_old { BLOCKS / 2 } else { BLOCKS }) * BLOCK;
    // A frame and what was on its way may be lost.
    let most = (differs - STALL + 20 * BLOCK) as u64;
    assert!(outcome.count("sent_data_bytes") <= most, "more than {most}: {outcome}");
}

/// Two versions, and the program under a name of the test's own, so that its
/// agents can be told from those of others.
fn versions(dir: &Path, has_old: bool) -> (Redeploy, PathBuf) {
    let (sources, target) = (dir.join("sources"), dir.join("target"));
    [&sources, &target].into_iter().for_each(|dir| std::fs::create_dir(dir).expect("create"));
    let rng = &mut Rng(79);
    let old = Layout::dense("old", BLOCKS * BLOCK, rng);
    let new = every(2, &old, rng);
    let agent = dir.join("holesync");
    std::os::unix::fs::symlink(PROGRAM, &agent).expect("link to the program");
    (Redeploy::new(&sources, &target, has_old.then_some(&old), &new, &new), agent)
}

/// Waits until some data has reached the target, beside the image.
fn await_data(target: &Path) {
    let some = || leftovers(target).iter().any(|name| taken(&target.join(name)) > 30 * BLOCK as u64);
    assert!(wait_until(LIMIT, some), "nothing came: {:?}", leftovers(target));
}
