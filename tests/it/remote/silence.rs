//! Other ends that say nothing any more, and such as only take their time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::check::{assert_no_leftovers, assert_same};
use crate::common::faults::{Direction, Fault, await_pause, can_trace, resume};
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, PROGRAM, agents, holesync, run, signal_agents, start, wait_until};
use crate::common::redeploy::{Redeploy, State, every};

const BLOCK: usize = 64 << 10;
/// Half of them differ between the versions.
const BLOCKS: usize = 128;
/// Where the transfer comes to a stand, in bytes.
pub(super) const STALL: u64 = 40 * BLOCK as u64;
/// Only ends hangs.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// Two versions, and a directory in which nothing else happens.
pub(super) struct Case {
    pub dir: tempfile::TempDir,
    pub redeploy: Redeploy,
    /// The program under a name of its own, by which its agents are found.
    pub agent: PathBuf,
}

impl Case {
    pub fn new() -> Case {
        let dir = lab::scratch();
        let (sources, target) = (dir.path().join("sources"), dir.path().join("target"));
        [&sources, &target].into_iter().for_each(|dir| fs::create_dir(dir).expect("create"));
        let rng = &mut Rng(81);
        let old = Layout::dense("old", BLOCKS * BLOCK, rng);
        let new = every(2, &old, rng);
        let agent = dir.path().join("holesync");
        std::os::unix::fs::symlink(PROGRAM, &agent).expect("link to the program");
        Case { redeploy: Redeploy::new(&sources, &target, Some(&old), &new, &new), dir, agent }
    }

    /// A far side that suffers a fault; its agent leaves its exit code in a file.
    fn peer(&self, fault: Fault, direction: Direction) -> Peer {
        let agent = format!("{{ agent; echo $? >'{}'; }}", self.code().display());
        let pipeline = fault.pipeline(self.dir.path(), direction, &agent);
        Peer::script(self.dir.path(), &pipeline).with_program(&self.agent)
    }

    pub fn code(&self) -> PathBuf {
        self.dir.path().join("code")
    }

    #[track_caller]
    pub fn agent_ends_with(&self, code: &str) {
        let ended = || fs::read_to_string(self.code()).is_ok_and(|text| text.ends_with('\n'));
        assert!(wait_until(LIMIT, ended), "the agent goes on");
        assert_eq!(fs::read_to_string(self.code()).expect("read").trim(), code);
    }

    pub fn signal_agents(&self, signal: Signal) {
        assert!(!agents(&self.agent).is_empty(), "no agent");
        signal_agents(&self.agent, signal);
    }

    /// Nothing came to harm, and the next run goes on.
    #[track_caller]
    pub fn is_gone_on_from(&self, command: &mut Command) {
        assert_eq!(self.redeploy.state(), State::Old);
        Case::assert_gone_on(&self.redeploy.complete(command, "new"));
    }

    /// A run has not sent what had come already.
    #[track_caller]
    pub fn assert_gone_on(outcome: &Outcome) {
        // A frame and what was on its way may be lost.
        let most = (BLOCKS / 2 * BLOCK) as u64 - STALL + 20 * BLOCK as u64;
        assert!(outcome.count("sent_data_bytes") <= most, "more than {most}: {outcome}");
    }
}

#[test]
fn silence_on_the_way_there_ends_both_ends_with_code_30() {
    let case = Case::new();
    let peer = case.peer(Fault::Stall(STALL), Direction::ToAgent);
    let push = run(peer.holesync().arg("--timeout=2").args(case.redeploy.push("new")));
    push.code(30).says(&[
        "timed out while reading",
        "nothing was heard for 2 s",
        "run the same command again",
    ]);
    case.agent_ends_with("30");
    case.is_gone_on_from(Peer::pipe(case.dir.path()).holesync().args(case.redeploy.push("new")));
}

#[test]
fn silence_on_the_way_back_ends_a_pull_with_code_30() {
    let case = Case::new();
    let peer = case.peer(Fault::Stall(STALL), Direction::FromAgent);
    let pull = run(peer.holesync().arg("--timeout=2").args(case.redeploy.pull("new")));
    pull.code(30).says(&[
        "connection to peer timed out while reading",
        "nothing was heard for 2 s",
        "--timeout",
    ]);
    case.is_gone_on_from(Peer::pipe(case.dir.path()).holesync().args(case.redeploy.pull("new")));
}

#[test]
fn an_agent_that_is_stopped_ends_the_run_with_code_30() {
    for paths in [Redeploy::push, Redeploy::pull] {
        let case = Case::new();
        let peer = case.peer(Fault::Pause(STALL), Direction::ToAgent);
        // In a pull little goes there.
        let pulls = paths(&case.redeploy, "new")[0] == at(case.redeploy.version("new"));
        let peer = if pulls { case.peer(Fault::Pause(STALL), Direction::FromAgent) } else { peer };
        let running = start(peer.holesync().arg("--timeout=2").args(paths(&case.redeploy, "new")));
        await_pause(case.dir.path());
        case.signal_agents(Signal::SIGSTOP);
        resume(case.dir.path());
        running.finish().code(30).says(&["timed out", "nothing was heard for 2 s"]);
        assert_eq!(case.redeploy.state(), State::Old);
    }
}

#[test]
fn an_initiator_that_is_stopped_leaves_no_agent_and_no_lock() {
    let case = Case::new();
    let peer = case.peer(Fault::Pause(STALL), Direction::ToAgent);
    let running = start(peer.holesync().arg("--timeout=2").args(case.redeploy.push("new")));
    await_pause(case.dir.path());
    running.signal(Signal::SIGSTOP);
    case.agent_ends_with("30");
    case.is_gone_on_from(Peer::pipe(case.dir.path()).holesync().args(case.redeploy.push("new")));
}

#[test]
fn without_a_timeout_silence_lasts() {
    let case = Case::new();
    let peer = case.peer(Fault::Pause(STALL), Direction::ToAgent);
    let running = start(peer.holesync().arg("--timeout=0").args(case.redeploy.push("new")));
    await_pause(case.dir.path());
    case.signal_agents(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(3));
    case.signal_agents(Signal::SIGCONT);
    resume(case.dir.path());
    running.finish().ok();
    assert_eq!(case.redeploy.state(), State::New);
}

/// An agent whose calls take long: what strace injects.
fn slow(dir: &Path, inject: &str) -> Peer {
    let strace = format!("exec strace -f -qq -o /dev/null -e 'trace={inject}' $command");
    Peer::script(dir, &strace.replace("trace=", "inject="))
}

#[test]
fn a_slow_disk_is_no_dead_link() {
    if !can_trace() {
        return;
    }
    for slow_call in [
        "fsync,fdatasync:delay_enter=7000000:when=1",
        "pwrite64:delay_enter=7000000:when=3",
        "pread64,?preadv2:delay_enter=7000000:when=9",
    ] {
        let case = Case::new();
        let peer = slow(case.dir.path(), slow_call);
        case.redeploy.complete(peer.holesync().arg("--timeout=3").args(case.redeploy.push("new")), "new");
    }
    let case = Case::new();
    let peer = slow(case.dir.path(), "pread64,?preadv2:delay_enter=7000000:when=9");
    case.redeploy.complete(peer.holesync().arg("--timeout=3").args(case.redeploy.pull("new")), "new");
    let digest = |peer: &Peer| {
        let mut command = holesync();
        command.args(["digest", "--timeout=3", "-e", peer.rsh(), "--remote-path", PROGRAM]);
        run(command.arg(at(case.redeploy.image()))).ok()
    };
    assert_eq!(digest(&peer).stdout, digest(&Peer::pipe(case.dir.path())).stdout);
}

/// It would take minutes.
#[test]
fn a_digest_that_nobody_waits_for_is_not_worked_out() {
    if !can_trace() {
        return;
    }
    let case = Case::new();
    let image = case.dir.path().join("large");
    Layout::dense("large", 4096 * BLOCK, &mut Rng(82)).write(&image);
    let peer = slow(case.dir.path(), "pread64,?preadv2:delay_enter=300000").with_program(&case.agent);
    let mut command = holesync();
    command.args(["digest", "--timeout=1", "-e", peer.rsh(), "--remote-path"]).arg(&case.agent);
    let running = start(command.arg(at(&image)));
    assert!(wait_until(LIMIT, || !agents(&case.agent).is_empty()), "no agent started");
    // It is reading by now, or will be.
    std::thread::sleep(Duration::from_secs(1));
    // It alone: what it started goes with the group.
    running.signal(Signal::SIGKILL);
    assert!(wait_until(LIMIT, || agents(&case.agent).is_empty()), "it works on for nobody");
}

#[test]
fn the_file_is_finished_when_the_link_dies_behind_the_seal() {
    if !can_trace() {
        return;
    }
    let case = Case::new();
    // The directory is synced behind the seal, then the file that was written.
    let peer = slow(case.dir.path(), "fsync:delay_enter=5000000:when=2").with_program(&case.agent);
    let running = start(peer.holesync().arg("--timeout=2").args(case.redeploy.push("new")));
    let log = case.dir.path().join("target/.image.holesync.log");
    assert!(wait_until(LIMIT, || case.redeploy.state() != State::Old && log.exists()), "no replay");
    running.signal(Signal::SIGSTOP);
    assert!(wait_until(LIMIT, || agents(&case.agent).is_empty()), "the agent goes on");
    assert_same(&case.redeploy.image(), &case.redeploy.version("new"));
    assert_no_leftovers(&case.dir.path().join("target"));
}

#[test]
fn a_host_that_does_not_answer_is_waited_for_as_long_as_was_said() {
    let dir = lab::scratch();
    fs::write(dir.path().join("source"), "x").expect("write");
    let peer = Peer::script(dir.path(), "exec sleep 100");
    let push = run(peer
        .holesync()
        .arg("--contimeout=1")
        .arg(dir.path().join("source"))
        .arg(at(dir.path().join("to"))));
    push.code(30).says(&[
        "connection to peer timed out while starting",
        "nothing was heard for 1 s (see --contimeout)",
    ]);
}

#[test]
fn a_command_that_takes_its_time_is_no_dead_link() {
    let dir = lab::scratch();
    fs::write(dir.path().join("source"), "x").expect("write");
    let mut through = Peer::pipe(dir.path()).holesync();
    through.args(["--timeout=3", "--through", "cat >/dev/null; sleep 8"]);
    run(through.arg(dir.path().join("source")).arg(at(dir.path().join("to")))).ok();
}

#[test]
fn what_follows_the_first_answer_is_no_part_of_it() {
    let dir = lab::scratch();
    fs::write(dir.path().join("source"), "x").expect("write");
    let late = "{ printf '\\nholesync shell 1 no no Linux x86_64\\n'; sleep 3; echo 'none too late'; }";
    let peer = Peer::script(dir.path(), late);
    let mut push = crate::common::process::holesync();
    push.args(["--contimeout=1", "-e", peer.rsh(), "--agent=push"]);
    let push = run(push.arg(dir.path().join("source")).arg(at(dir.path().join("to"))));
    assert_ne!(push.code, 30, "{push}");
    push.says(&["too late"]);
}
