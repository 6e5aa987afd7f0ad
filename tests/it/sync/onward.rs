//! From a host to another one that it reaches by itself: two accounts of a real sshd, of which one
//! has an ssh of its own.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::account::{Account, on, which};
use crate::common::check::{assert_holes_kept, assert_no_leftovers, assert_same, leftovers, same, taken};
use crate::common::lab;
use crate::common::layout::{Layout, Rng, layouts};
use crate::common::peer::shell_word;
use crate::common::process::{Outcome, Running, agents, holesync, run, start, wait_until};
use crate::common::redeploy::{every, set_day};
use crate::common::tree::{assert_trees, change, grow, mkdir, slash};

const BLOCK: usize = 64 << 10;
/// Far beyond what an end takes to stop.
const LIMIT: Duration = Duration::from_secs(20);
/// What is said with -v where it works.
const BY_ITSELF: &str = "sends to two by itself";

/// A host with the sources, which is an account that knows the other host as `two`.
struct Hosts {
    one: Account,
    from: PathBuf,
    to: PathBuf,
}

impl Hosts {
    /// `None`, and a counted skip, where there can be none.
    fn new() -> Option<Hosts> {
        let sshd = lab::root()?.join("sshd");
        if !sshd.is_dir() {
            lab::skip("no private sshd");
            return None;
        }
        let one = Account::new(Path::new("/bin/sh"))?;
        let place = &one.place.path().to_path_buf();
        let key = place.join("key");
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)).ok();
        let hosts = Hosts { from: place.join("from"), to: mkdir(place.join("there")).join("to"), one };
        hosts.trust(&key, "");
        // ssh wants its key to be the user's alone.
        hosts.one.keep(".ssh/key", &fs::read(&key).expect("read the key"));
        fs::set_permissions(hosts.one.home.join(".ssh/key"), PermissionsExt::from_mode(0o600))
            .expect("chmod");
        let known = fs::read(sshd.join("known_hosts")).expect("read");
        hosts.one.keep(".ssh/known", &known);
        hosts.reaches("Host two\nUser root\nIdentityFile ~/.ssh/key\n");
        // From here both are reached with the key of the lab.
        let config = format!(
            "Include {0}/config\nHost two\nHostName 127.0.0.1\nPort {1}\nUser root\nHostKeyAlias peer\n\
             IdentityFile {0}/user_key\nUserKnownHostsFile {0}/known_hosts\n",
            sshd.display(),
            hosts.port()
        );
        fs::write(place.join("config"), config).expect("write");
        let script = format!(
            "#!/bin/sh\nexec {} -F {} \"$@\"\n",
            shell_word(&which("ssh")),
            place.join("config").display()
        );
        fs::write(place.join("script"), script).expect("write");
        mkdir(place.join("bin"));
        run(Command::new("install").args(["-m", "755"]).arg(place.join("script")).arg(place.join("bin/ssh")))
            .ok();
        Some(hosts)
    }

    fn port(&self) -> String {
        let port = lab::root().map(|root| fs::read_to_string(root.join("sshd/port")).expect("read"));
        port.unwrap_or_default().trim().into()
    }

    /// Lets a key in, as whom it likes.
    fn trust(&self, key: &Path, options: &str) {
        let public = fs::read_to_string(key.with_extension("pub")).expect("read the key");
        let keys = lab::root().expect("a lab").join("sshd/more_keys");
        let mut keys = fs::File::options().append(true).open(keys).expect("open");
        keys.write_all(format!("{options}{public}").as_bytes()).expect("add a key");
    }

    /// What the first host's ssh has for the other one, before what is always so.
    fn reaches(&self, host: &str) {
        let always = format!(
            "Host two\nHostName 127.0.0.1\nPort {}\nHostKeyAlias peer\nUserKnownHostsFile ~/.ssh/known\nIdentitiesOnly yes\n",
            self.port()
        );
        self.one.keep(".ssh/config", format!("{host}{always}").as_bytes());
    }

    /// Has the first host reach the other one by a key that is bound to a command, as root.
    fn reaches_by(&self, name: &str, command: &str) {
        let key = self.one.place.path().join(name);
        let _ = fs::remove_file(&key);
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)).ok();
        self.trust(&key, &format!("command=\"{command}\" "));
        self.keep_key(&key, name);
        self.reaches(&format!("Host two\nUser root\nIdentityFile ~/.ssh/{name}\n"));
    }

    /// ssh wants its key to be the user's alone.
    fn keep_key(&self, key: &Path, name: &str) {
        let kept = self.one.keep(Path::new(".ssh").join(name), &fs::read(key).expect("read the key"));
        fs::set_permissions(kept, PermissionsExt::from_mode(0o600)).expect("chmod");
    }

    fn command(&self) -> Command {
        let mut path = vec![self.one.place.path().join("bin")];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let mut command = holesync();
        command.env("PATH", std::env::join_paths(path).expect("a plain path"));
        command.env("XDG_CACHE_HOME", self.one.place.path().join("cache")).env_remove("SSH_AUTH_SOCK");
        command
    }

    fn run(&self, flags: &[&str]) -> Outcome {
        let mut command = self.command();
        run(command.args(flags).arg(on(&self.one.host(), &self.from)).arg(on("two", &self.to)))
    }

    /// The copy is equal then.
    #[track_caller]
    fn sync(&self, flags: &[&str]) -> Outcome {
        let outcome = self.run(&[&["-vv"], flags].concat()).ok();
        if !flags.contains(&"-n") {
            assert_same(&self.from, &self.to);
            assert_no_leftovers(&self.one.place.path().join("there"));
        }
        outcome
    }
}

/// What is told of each entry, in order.
fn entries(outcome: &Outcome) -> Vec<String> {
    let lines = outcome.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let mut entries: Vec<String> = lines
        .filter(|line| line["event"] == "entry" || line["event"] == "removed")
        .map(|line| line.to_string())
        .collect();
    entries.sort();
    entries
}

fn is_by_itself(outcome: &Outcome) -> bool {
    [&outcome.stdout, &outcome.stderr].iter().any(|text| text.contains(BY_ITSELF))
}

#[test]
fn images_go_from_one_to_the_other_and_not_through_here() {
    let Some(hosts) = Hosts::new() else { return };
    let rng = &mut Rng(71);
    for layout in layouts(rng).into_iter().step_by(4) {
        layout.write(&hosts.from);
        set_day(&hosts.from, 1);
        let first = hosts.sync(&["--json"]);
        assert!(is_by_itself(&first), "{first}");
        assert_eq!(first.count("files_sent"), 1, "{first}");
        assert_holes_kept(&hosts.from, &hosts.to);
        every(3, &layout, rng).write(&hosts.from);
        set_day(&hosts.from, 2);
        let foretold = hosts.sync(&["--json", "-n"]);
        let again = hosts.sync(&["--json"]);
        for field in ["sent_data_bytes", "files_sent", "written_bytes", "punched_bytes", "data_bytes"] {
            let counted = [&again, &foretold].map(|outcome| outcome.count(field));
            assert_eq!(counted[0], counted[1], "{} {field}", layout.name);
        }
        assert_eq!(hosts.sync(&["--json"]).count("files_sent"), 0);
    }
    // Through here all goes over two connections.
    let image = Layout::dense("dense", 100 * BLOCK, rng);
    let wire = |flags: &[&str]| {
        image.write(&hosts.from);
        let _ = fs::remove_file(&hosts.to);
        let outcome = hosts.sync(&[&["--json", "-z", "--compress-level=1"], flags].concat());
        assert_eq!(outcome.count("sent_data_bytes"), 100 * BLOCK as u64, "{outcome}");
        outcome.count("wire_bytes_sent") + outcome.count("wire_bytes_received")
    };
    let (direct, through_here) = (wire(&[]), wire(&["--relay"]));
    assert!(direct < 102 * BLOCK as u64 && through_here > 200 * BLOCK as u64, "{direct}, {through_here}");
}

#[test]
fn what_is_told_is_what_is_told_through_here() {
    let Some(hosts) = Hosts::new() else { return };
    let place = hosts.one.place.path();
    let [from, here, there] = ["tree", "here", "there/tree"].map(|name| mkdir(place.join(name)));
    let rng = &mut Rng(72);
    grow(&from, rng);
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(&from)).ok();
    let source = on(&hosts.one.host(), slash(&from));
    for flags in [&["-a"][..], &["-a", "-n", "--delete"], &["-a", "--delete", "-c"]] {
        let told = [&here, &there].map(|to| {
            let mut command = hosts.command();
            command.args(["-vv", "--json"]).args(flags);
            let relayed = to == &here;
            command.args(relayed.then_some("--relay")).arg(&source).arg(on("two", to));
            let outcome = run(&mut command);
            assert_eq!(is_by_itself(&outcome), !relayed, "{outcome}");
            // What that account may not read fails alike.
            assert!([0, 23].contains(&outcome.code), "{outcome}");
            (outcome.code, entries(&outcome), outcome.count("files_total"), outcome.count("files_deleted"))
        });
        assert_eq!(told[0], told[1], "{flags:?}");
        assert!(!told[0].1.is_empty(), "{flags:?}");
        assert_trees(&here, &there, true, "both ways");
        if flags.len() == 1 {
            change(&from, rng);
            run(Command::new("chmod").args(["-R", "a+rX"]).arg(&from)).ok();
        }
    }
    // One that cannot be read.
    let image = place.join("secret");
    fs::write(&image, "x").expect("write");
    fs::set_permissions(&image, PermissionsExt::from_mode(0o600)).expect("chmod");
    let mut command = hosts.command();
    let failed =
        run(command.arg("-vv").arg(on(&hosts.one.host(), &image)).arg(on("two", &hosts.to))).code(23);
    failed.says(&[BY_ITSELF, &format!("{}: ", hosts.one.host()), "secret", "Permission denied"]);
    assert!(!hosts.to.exists());
}

/// A name may be that of another machine there, or another user's login: nothing is written there.
#[test]
fn only_who_is_meant_is_written_to() {
    let Some(hosts) = Hosts::new() else { return };
    Layout::dense("image", 20 * BLOCK, &mut Rng(73)).write(&hosts.from);
    let check = |why: &[&str]| {
        let _ = fs::remove_file(&hosts.to);
        let outcome = hosts.sync(&[]).says(why).says(&["does not reach two by itself"]);
        assert!(!is_by_itself(&outcome), "{outcome}");
        let owner = fs::metadata(&hosts.to).expect("it is there").uid();
        assert_eq!(owner, 0, "the one that is reached from here wrote it");
        // It goes through here as if nothing had been tried.
        let quiet = hosts.run(&["-I"]).ok();
        assert_eq!(quiet.stderr, "", "{quiet}");
    };
    // Another user: the directory would let it write.
    let there = hosts.to.parent().expect("a directory");
    fs::set_permissions(there, PermissionsExt::from_mode(0o777)).expect("chmod");
    hosts.reaches(&format!("Host two\nUser {}\nIdentityFile ~/.ssh/key\n", hosts.one.name()));
    check(&["two is another machine there, or another user or place on it"]);
    // Another machine: what is mounted is its own.
    let another = "two is another machine there, or another user or place on it";
    hosts.reaches_by("unshare", "exec unshare -m sh -c \\\"$SSH_ORIGINAL_COMMAND\\\"");
    check(&[another]);
    // Another place: all paths lead below a directory, or begin at another one.
    let bound = mkdir(hosts.one.place.path().join("bound"));
    let agent = lab::root().expect("a lab").join("bin/holesync");
    for access in ["", "--read-only"] {
        let command = format!("{} agent --root {} {access}", agent.display(), bound.display());
        hosts.reaches_by(&format!("key-{}", access.len()), &command);
        check(&[another]);
    }
    for (name, setting) in
        [("key-cwd", "cd /tmp"), ("key-home", "export HOME=/tmp"), ("key-umask", "umask 077")]
    {
        hosts.reaches_by(name, &format!("{setting}; exec sh -c \\\"$SSH_ORIGINAL_COMMAND\\\""));
        check(&[another]);
    }
    // Nobody that the host with the sources knows, whatever its configuration would let pass.
    hosts.reaches("Host two\nUser root\nIdentityFile ~/.ssh/key\nStrictHostKeyChecking accept-new\nUserKnownHostsFile ~/.ssh/none\n");
    check(&["ssh to two failed", "Host key verification failed"]);
    // No key of its own.
    hosts.reaches("Host two\nUser root\nIdentityFile ~/.ssh/none\n");
    check(&["ssh to two failed", "Permission denied"]);
    // Nothing that answers.
    hosts.reaches("Host two\nPort 1\n");
    check(&["ssh to two failed"]);
    // Not even an ssh.
    let holesync = lab::root().expect("a lab").join("bin/holesync");
    let mut program = std::ffi::OsString::from("env PATH=/nowhere ");
    program.push(&holesync);
    let mut command = hosts.command();
    command.args(["-vv", "-I", "--remote-path"]).arg(program);
    let outcome = run(command.arg(on(&hosts.one.host(), &hosts.from)).arg(on("two", &hosts.to))).ok();
    assert!(!is_by_itself(&outcome), "{outcome}");
}

#[test]
fn an_agent_of_the_user_goes_along_only_where_that_is_asked_for() {
    let Some(hosts) = Hosts::new() else { return };
    Layout::dense("image", 20 * BLOCK, &mut Rng(74)).write(&hosts.from);
    hosts.reaches("Host two\nUser root\nIdentitiesOnly no\n");
    let socket = hosts.one.place.path().join("agent");
    let agent = start(Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket));
    // The socket is there before somebody listens.
    assert!(wait_until(LIMIT, || UnixStream::connect(&socket).is_ok()), "an agent that listens");
    run(Command::new("ssh-add").arg(hosts.one.place.path().join("key")).env("SSH_AUTH_SOCK", &socket)).ok();
    let sync = |flags: &[&str]| {
        let mut command = hosts.command();
        command.env("SSH_AUTH_SOCK", &socket).args(["-vv", "-I"]).args(flags);
        let outcome = run(command.arg(on(&hosts.one.host(), &hosts.from)).arg(on("two", &hosts.to))).ok();
        assert_same(&hosts.from, &hosts.to);
        outcome
    };
    let unasked = sync(&[]);
    assert!(!is_by_itself(&unasked), "{unasked}");
    let asked = sync(&["--forward-agent"]);
    assert!(is_by_itself(&asked), "{asked}");
    drop(agent);
    for (flags, says) in [
        (&["--forward-agent", "-e", "ssh"][..], "--forward-agent is for ssh without --rsh"),
        (&["--forward-agent", "--relay"], "cannot be used with"),
        (&["--forward-agent", "--agent=push"], "--forward-agent is of no use"),
        (&["--forward-agent", "-4"], "--forward-agent is of no use"),
    ] {
        hosts.run(flags).code(1).says(&[says]);
    }
    for flag in ["--forward-agent", "--relay"] {
        let mut command = hosts.command();
        command.arg(flag).arg(&hosts.from).arg(on("two", &hosts.to));
        run(&mut command).code(1).says(&["for a SRC on one host and a DEST on another"]);
    }
}

/// A run that takes a while, of which a part is there already. `flags` are added.
struct Slow {
    hosts: Hosts,
    running: Running,
}

impl Slow {
    fn start(flags: &[&str]) -> Option<Slow> {
        let hosts = Hosts::new()?;
        Layout::dense("image", 2000 * BLOCK, &mut Rng(75)).write(&hosts.from);
        Layout::dense("old", 40 * BLOCK, &mut Rng(76)).write(&hosts.to);
        let mut command = hosts.command();
        command.args(["-vv", "-I", "--bwlimit=20m", "--remote-path"]).arg(&hosts.one.program).args(flags);
        let running = start(command.arg(on(&hosts.one.host(), &hosts.from)).arg(on("two", &hosts.to)));
        let there = hosts.to.parent().expect("a directory").to_path_buf();
        let come = || walkdir::WalkDir::new(&there).into_iter().flatten().map(|entry| taken(entry.path()));
        assert!(wait_until(LIMIT, || come().sum::<u64>() > 300 * BLOCK as u64), "data come");
        Some(Slow { hosts, running })
    }

    /// The agents of the host with the sources, or of the other one.
    fn agents(&self, of_one: bool) -> Vec<Pid> {
        let user = fs::metadata(&self.hosts.one.home).expect("a home").uid();
        let is_theirs = |pid: &Pid| {
            fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| (process.uid() == user) == of_one)
        };
        agents(&self.hosts.one.program).into_iter().filter(is_theirs).collect()
    }

    fn signal(&self, of_one: bool, signal: Signal) {
        let agents = self.agents(of_one);
        assert!(!agents.is_empty(), "they run");
        for pid in agents {
            // Of two, one may end with the other before it is its turn.
            let signalled = kill(pid, signal);
            assert!(matches!(signalled, Ok(()) | Err(Errno::ESRCH)), "{signalled:?}");
        }
    }

    /// It fails with this code; the old image is whole, and the next run goes on.
    fn fails(self, code: i32) {
        let Slow { hosts, running } = self;
        let outcome = running.finish_within(3 * LIMIT).code(code);
        assert!(is_by_itself(&outcome), "{outcome}");
        let old = hosts.one.place.path().join("old");
        Layout::dense("old", 40 * BLOCK, &mut Rng(76)).write(&old);
        assert!(same(&hosts.to, &old), "the old image is whole");
        agents(&hosts.one.program).into_iter().for_each(|pid| {
            // One that was stopped.
            let _ = kill(pid, Signal::SIGCONT);
        });
        assert!(wait_until(LIMIT, || agents(&hosts.one.program).is_empty()), "an agent outlives its run");
        let next = hosts.sync(&["-I", "--json"]);
        assert!(next.count("sent_data_bytes") < 1900 * BLOCK as u64, "{next}");
    }
}

#[test]
fn a_host_that_dies_ends_the_run_and_the_next_goes_on() {
    for of_one in [true, false] {
        let Some(slow) = Slow::start(&["--retries=0"]) else { return };
        slow.signal(of_one, Signal::SIGKILL);
        slow.fails(if of_one { 12 } else { 10 });
    }
}

#[test]
fn silence_between_them_ends_it_as_any_silence() {
    let Some(slow) = Slow::start(&["--retries=0", "--timeout=3"]) else { return };
    slow.signal(false, Signal::SIGSTOP);
    slow.fails(30);
}

/// A way that died may be no good.
#[test]
fn the_next_try_goes_through_here() {
    let Some(slow) = Slow::start(&["--retries=1"]) else { return };
    slow.signal(false, Signal::SIGKILL);
    let Slow { hosts, running } = slow;
    let outcome = running.finish_within(3 * LIMIT).ok();
    assert_eq!(outcome.stderr.matches(BY_ITSELF).count(), 1, "{outcome}");
    assert_same(&hosts.from, &hosts.to);
}

/// What was the witness is of no use any more once the two have met.
#[test]
fn nothing_waits_for_the_connection_that_is_not_needed() {
    let Some(slow) = Slow::start(&["--retries=0"]) else { return };
    let is_alone = || slow.agents(false).len() == 1;
    assert!(wait_until(LIMIT, is_alone), "the witness is there still");
    let Slow { hosts, running } = slow;
    running.finish_within(3 * LIMIT).ok();
    assert_same(&hosts.from, &hosts.to);
}

#[test]
fn a_signal_here_ends_it_there() {
    let Some(hosts) = Hosts::new() else { return };
    let program = hosts.one.program.clone();
    Layout::dense("image", 2000 * BLOCK, &mut Rng(77)).write(&hosts.from);
    let mut command = hosts.command();
    command.args(["-vv", "--bwlimit=20m", "--remote-path"]).arg(&program);
    let running = start(command.arg(on(&hosts.one.host(), &hosts.from)).arg(on("two", &hosts.to)));
    let there = hosts.one.place.path().join("there");
    assert!(wait_until(LIMIT, || !leftovers(&there).is_empty()), "data come");
    running.signal(Signal::SIGINT);
    running.finish_within(LIMIT).code(20).says(&[BY_ITSELF, "interrupted", "goes on from there"]);
    assert!(wait_until(LIMIT, || agents(&program).is_empty()), "an agent outlives its run");
    assert!(!hosts.to.exists());
    hosts.sync(&[]);
}

#[test]
fn several_hosts_get_it_from_one() {
    let Some(hosts) = Hosts::new() else { return };
    Layout::dense("image", 20 * BLOCK, &mut Rng(78)).write(&hosts.from);
    let places = ["x", "y"].map(|name| hosts.one.place.path().join("there").join(name));
    let mut command = hosts.command();
    command.args(["-vv", "--json"]).arg(on(&hosts.one.host(), &hosts.from));
    for place in &places {
        let mut to = std::ffi::OsString::from("--to=");
        to.push(on("two", place));
        command.arg(to);
    }
    let outcome = run(&mut command).ok();
    assert_eq!(outcome.stdout.matches(BY_ITSELF).count(), 2, "{outcome}");
    places.iter().for_each(|place| assert_same(&hosts.from, place));
}
