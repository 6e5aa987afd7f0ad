//! Connections that die, and runs that go on over another one: a network that is cut
//! without a word, agents that do not know it yet.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ciphers::{Client, config};
use super::silence::{Case, LIMIT, STALL};
use crate::common::account::which;
use crate::common::faults::{Direction, Fault, await_pause, resume};
use crate::common::lab;
use crate::common::peer::{Peer, shell_word};
use crate::common::process::{Outcome, PROGRAM, Running, agents, run, start, wait_until};
use crate::common::redeploy::State;

/// An sshd behind a cable of its own: in a network namespace, at the end of a veth pair.
struct Network {
    name: String,
    host: String,
    _sshd: Running,
}

impl Network {
    /// `None`, and a counted skip, where there can be none.
    fn new(dir: &Path) -> Option<Network> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let lab = config().filter(|_| lab::is_root())?;
        let nth = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hs{}x{nth}", std::process::id());
        if !run(Command::new("ip").args(["netns", "add", &name])).code.eq(&0) {
            lab::skip("no network namespaces");
            return None;
        }
        // 198.18.0.0/15 is for tests of networks: RFC 2544.
        let at = format!("198.18.{}", (std::process::id() + nth) % 256);
        let (ours, theirs) = (format!("{at}.1/30"), format!("{at}.2/30"));
        ip(&["link", "add", &name, "type", "veth", "peer", "name", "far", "netns", &name]);
        ip(&["address", "add", &ours, "dev", &name]);
        ip(&["link", "set", &name, "up"]);
        ip(&["-n", &name, "address", "add", &theirs, "dev", "far"]);
        ip(&["-n", &name, "link", "set", "far", "up"]);
        let host = format!("{at}.2");
        let text =
            fs::read_to_string(lab.with_file_name("sshd_config")).expect("read").replace("127.0.0.1", &host);
        let own = dir.join("sshd_config");
        fs::write(&own, text).expect("write");
        let sshd = std::env::split_paths("/usr/sbin:/usr/local/sbin").map(|dir| dir.join("sshd"));
        let sshd = sshd.into_iter().find(|path| path.exists()).unwrap_or_else(|| which("sshd"));
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{name}")).arg(sshd).args(["-D", "-e", "-f"]).arg(own);
        let network = Network { name, host, _sshd: start(&mut command) };
        network.await_sshd();
        Some(network)
    }

    fn await_sshd(&self) {
        let answers = || run(Command::new("sh").arg("-c").arg(format!("{} peer true", self.ssh()))).code == 0;
        assert!(wait_until(LIMIT, answers), "no sshd behind the cable");
    }

    /// The command that reaches it.
    fn ssh(&self) -> String {
        let config = config().expect("a private sshd");
        format!("ssh -F {} -o HostName={}", shell_word(&config), self.host)
    }

    /// A far side there, from the second connection on without the fault.
    fn peer(&self, case: &Case, fault: Fault) -> Peer {
        let agent = case.dir.path().join("noting");
        let code = shell_word(&case.code());
        let text = format!("#!/bin/sh\n{} \"$@\"\necho $? >>{code}\n", shell_word(&case.agent));
        fs::write(&agent, text).expect("write");
        let ssh = format!("{} \"$host\" \"$command\"", self.ssh());
        let faulty = fault.pipeline(case.dir.path(), Direction::ToAgent, &ssh);
        let tries = shell_word(&tries(case));
        let body = format!("echo >>{tries}\nif [ $(wc -l <{tries}) -gt 1 ]; then exec {ssh}; fi\n{faulty}");
        let wrapped = format!("sh {}", agent.display());
        Peer::script(case.dir.path(), &body).with_program(Path::new(&wrapped))
    }

    fn set(&self, state: &str) {
        ip(&["-n", &self.name, "link", "set", "far", state]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let pids = run(Command::new("ip").args(["netns", "pids", &self.name])).stdout;
        for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        run(Command::new("ip").args(["link", "delete", &self.name]));
        run(Command::new("ip").args(["netns", "delete", &self.name]));
    }
}

#[track_caller]
fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments)).ok();
}

/// A line for each connection that was made.
fn tries(case: &Case) -> PathBuf {
    case.dir.path().join("tries")
}

fn count_tries(case: &Case) -> usize {
    fs::read_to_string(tries(case)).map_or(0, |text| text.lines().count())
}

#[test]
fn a_network_that_is_cut_without_a_word_ends_both_ends_and_the_next_run_goes_on() {
    let case = Case::new();
    let Some(network) = Network::new(case.dir.path()) else { return };
    let peer = network.peer(&case, Fault::Pause(STALL));
    let push = start(peer.holesync().arg("--timeout=3").args(case.redeploy.push("new")));
    await_pause(case.dir.path());
    network.set("down");
    resume(case.dir.path());
    push.finish().code(30).says(&["connection to peer timed out", "nothing was heard for 3 s"]);
    case.agent_ends_with("30");
    network.set("up");
    network.await_sshd();
    case.is_gone_on_from(peer.holesync().args(case.redeploy.push("new")));
}

#[test]
fn a_run_goes_on_by_itself_when_the_network_comes_back() {
    let case = Case::new();
    let Some(network) = Network::new(case.dir.path()) else { return };
    let peer = network.peer(&case, Fault::Pause(STALL));
    let flags = ["--timeout=3", "--retries=3", "--json"];
    let push = start(peer.holesync().args(flags).args(case.redeploy.push("new")));
    await_pause(case.dir.path());
    network.set("down");
    resume(case.dir.path());
    assert!(wait_until(LIMIT, || count_tries(&case) > 1), "no other try");
    network.set("up");
    has_gone_on(&case, &push.finish().ok());
}

/// A run came to its end with more than one connection.
#[track_caller]
fn has_gone_on(case: &Case, outcome: &Outcome) {
    assert_eq!(case.redeploy.state(), State::New);
    assert!(outcome.count("tries") > 1, "{outcome}");
    Case::assert_gone_on(outcome);
    // All tries count there.
    assert!(outcome.count("wire_bytes_sent") >= outcome.count("sent_data_bytes") + STALL, "{outcome}");
    assert!(outcome.stdout.contains(r#""event":"retry""#), "{outcome}");
}

/// A far side whose first connection can be ended without its agent noticing: what the
/// agent reads from and writes to stays open.
fn unnoticed(case: &Case) -> Peer {
    let at = |name: &str| shell_word(&case.dir.path().join(name));
    let (tries, fifo_in, fifo_out, pid) = (shell_word(&tries(case)), at("in"), at("out"), at("pid"));
    let filter = Fault::Pause(STALL).pipeline(case.dir.path(), Direction::ToAgent, "cat");
    let filter = filter.lines().nth(1).and_then(|line| line.split(" | ").next()).expect("a filter");
    let body = format!(
        "echo >>{tries}\n\
         if [ $(wc -l <{tries}) -gt 1 ]; then agent; exit; fi\n\
         mkfifo {fifo_in} {fifo_out}\n\
         sleep 1000 <>{fifo_in} >/dev/null 2>&1 &\n\
         sleep 1000 <>{fifo_out} >/dev/null 2>&1 &\n\
         sh -c \"$command\" <{fifo_in} >{fifo_out} 2>/dev/null &\n\
         exec 4<&0\n\
         {filter} >{fifo_in} &\n\
         echo $$ >{pid}\n\
         exec cat <{fifo_out} 4<&-"
    );
    Peer::script(case.dir.path(), &body).with_program(&case.agent)
}

/// The connection dies; its agent does not know.
fn end_connection(case: &Case) {
    let pid = fs::read_to_string(case.dir.path().join("pid")).expect("read the pid");
    kill(Pid::from_raw(pid.trim().parse().expect("a pid")), Signal::SIGKILL).expect("kill");
}

#[test]
fn an_agent_that_does_not_know_that_it_is_alone_gives_up_its_lock() {
    for stopped in [false, true] {
        let case = Case::new();
        let flags = ["--timeout=0", "--retries=1", "--json"];
        let push = start(unnoticed(&case).holesync().args(flags).args(case.redeploy.push("new")));
        await_pause(case.dir.path());
        if stopped {
            case.signal_agents(Signal::SIGSTOP);
        }
        end_connection(&case);
        has_gone_on(&case, &push.finish().ok());
        assert!(agents(&case.agent).is_empty(), "the first agent goes on");
    }
}

#[test]
fn a_pull_whose_connection_died_goes_on() {
    let case = Case::new();
    let tries_made = shell_word(&tries(&case));
    let cut = Fault::Cut(STALL).pipeline(case.dir.path(), Direction::FromAgent, "agent");
    let body =
        format!("echo >>{tries_made}\nif [ $(wc -l <{tries_made}) -gt 1 ]; then agent; exit; fi\n{cut}");
    let peer = Peer::script(case.dir.path(), &body);
    let pull = run(peer.holesync().args(["--retries=1", "--json"]).args(case.redeploy.pull("new"))).ok();
    assert_eq!((case.redeploy.state(), pull.count("tries")), (State::New, 2));
    Case::assert_gone_on(&pull);
}

#[test]
fn there_is_no_other_try_after_the_last_nor_before_the_first_answer_nor_after_a_signal() {
    let case = Case::new();
    let made = shell_word(&tries(&case));
    // No two tries bring all.
    let cut = Fault::Cut(STALL / 4).pipeline(case.dir.path(), Direction::ToAgent, "agent");
    let always = Peer::script(case.dir.path(), &format!("echo >>{made}\n{cut}"));
    let push = |flags: &[&str]| {
        let _ = fs::remove_file(tries(&case));
        start(always.holesync().args(flags).args(case.redeploy.push("new")))
    };
    push(&[]).finish().code(12);
    assert_eq!(count_tries(&case), 1, "nobody asked for more");
    push(&["--retries=1"]).finish().code(12).says(&["try 2 of 2 in 1 s"]);
    assert_eq!(count_tries(&case), 2);
    let interrupted = push(&["--retries=5"]);
    // The pause before it takes 4 s.
    assert!(wait_until(LIMIT, || count_tries(&case) == 2), "no second try");
    interrupted.signal(Signal::SIGINT);
    interrupted.finish().code(20);
    assert_eq!(count_tries(&case), 2);
    // A far side that never answered; and one that has, and then failed by itself.
    for (body, code) in [("exit 255".into(), 255), (format!("{{ {cut}; }}; exit 1"), 12)] {
        let peer = Peer::script(case.dir.path(), &format!("echo >>{made}\n{body}"));
        let _ = fs::remove_file(tries(&case));
        run(peer.holesync().arg("--retries=3").args(case.redeploy.push("new"))).code(code);
        assert_eq!(count_tries(&case), 1);
    }
    assert_eq!(case.redeploy.state(), State::Old);
}

#[test]
fn ssh_that_is_ours_to_start_is_told_of_time() {
    let Some(client) = Client::new(r#"printf '%s\n' "$*" >>"$(dirname "$0")/../noted""#) else { return };
    let noted = || fs::read_to_string(client.dir.path().join("noted")).expect("read");
    // The lab's ssh has BatchMode: Debian's has an interval of its own then.
    client.run(&["--contimeout=7"]);
    let text = noted();
    for option in ["-o ConnectTimeout=7", "-o ServerAliveInterval=20", "-o ServerAliveCountMax=3"] {
        assert!(text.contains(option), "{option}: {text}");
    }
    client.run(&["--contimeout=4294967295"]);
    assert!(noted().contains("-o ConnectTimeout=2147483647 "), "{}", noted());
    let before = noted().matches("ServerAlive").count();
    client.run(&["--timeout=0"]);
    assert_eq!(noted().matches("ServerAlive").count(), before, "{}", noted());
    client.run(&["--timeout=2", "--cipher=ssh"]);
    assert!(noted().contains("-o ServerAliveInterval=1 "), "{}", noted());
    let lab = config().expect("a private sshd");
    client.configure(&format!("ServerAliveInterval 7\nInclude {}\n", lab.display()));
    client.run(&[]);
    assert_eq!(noted().matches("ServerAlive").count(), before + 2, "{}", noted());
}

/// Of several hosts, ssh would ask for passwords on one terminal.
#[test]
fn ssh_to_several_hosts_asks_nothing_and_waits_so_long() {
    let Some(client) = Client::new(r#"printf '%s\n' "$*" >>"$(dirname "$0")/../noted""#) else { return };
    let noted = || fs::read_to_string(client.dir.path().join("noted")).expect("read");
    client.run(&[]);
    assert!(!noted().contains("BatchMode") && !noted().contains("ConnectTimeout"), "{}", noted());
    client.run_to_several();
    for option in ["-o BatchMode=yes", "-o ConnectTimeout=60"] {
        assert_eq!(noted().matches(option).count(), 2, "{option}: {}", noted());
    }
}

#[test]
fn ssh_that_asks_nothing_is_tried_again_unless_the_user_says_otherwise() {
    let Some(client) = Client::new("") else { return };
    // The agent dies at its first start, when it has answered.
    let (agent, flag) = (client.dir.path().join("agent"), client.dir.path().join("died"));
    let text = format!(
        "#!/bin/sh\n[ -e {flag} ] && exec {program} \"$@\"\n: >{flag}\n{program} \"$@\" | head -c 16\n",
        flag = shell_word(&flag),
        program = PROGRAM
    );
    lab::script(&agent, text);
    let agent = format!("sh {}", agent.display());
    let flags = ["--agent=require", "--timeout=3", "--remote-path", &agent, "--json"];
    let again = client.push("peer", &client.dir.path().join("to"), &flags);
    assert_eq!(again.count("tries"), 2, "{again}");
}

#[test]
fn a_command_is_not_run_again() {
    let mut command = crate::common::process::holesync();
    run(command.args(["--retries=1", "--through", "cat", "/a", "peer:/b"])).code(1).says(&["--retries"]);
}
