//! A command in the place of the destination: it gets the image to the last
//! byte, or is stopped before it can take a part for the whole.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::account::{odd_names, on};
use crate::common::check::{assert_same, same};
use crate::common::faults::{Direction, Fault};
use crate::common::lab;
use crate::common::layout::{Layout, Rng, layouts};
use crate::common::peer::{Peer, at, shell_word};
use crate::common::process::{PROGRAM, Running, holesync, run, signal_agents, start, wait_until};

const MIB: usize = 1 << 20;
/// Far beyond what anything takes here.
const LIMIT: Duration = Duration::from_secs(60);

/// Where the command runs, and what feeds it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Local,
    Agent,
    Shell,
}

const WAYS: [Way; 3] = [Way::Local, Way::Agent, Way::Shell];

impl Way {
    /// The program, told to use `peer`.
    fn over(self, peer: &Peer, cmd: impl AsRef<OsStr>) -> Command {
        let mut command = match self {
            Way::Local => holesync(),
            Way::Agent => peer.holesync(),
            Way::Shell => peer.shell(),
        };
        command.arg("--through").arg(cmd);
        command
    }

    /// The same over sshd; `None`, and a counted skip, where there is none.
    fn through(self, cmd: impl AsRef<OsStr>, source: &Path, to: impl AsRef<Path>) -> Option<Command> {
        let mut command = match self {
            Way::Local => self.over(&Peer::pipe(source.parent().expect("a parent")), cmd),
            Way::Agent | Way::Shell => self.over(&Peer::sshd()?, cmd),
        };
        command.arg(source).arg(self.to(to));
        Some(command)
    }

    fn to(self, path: impl AsRef<Path>) -> OsString {
        if self == Way::Local { path.as_ref().into() } else { at(path) }
    }
}

/// Content that no pipe holds as a whole.
fn big(dir: &Path) -> PathBuf {
    let source = dir.join("source");
    Layout::dense("source", 4 * MIB, &mut Rng(3)).write(&source);
    source
}

#[test]
fn the_command_gets_every_layout_to_the_last_byte() {
    for way in WAYS {
        let dir = lab::scratch();
        for layout in layouts(&mut Rng(11)) {
            let (source, to) = (dir.path().join(&layout.name), dir.path().join("to"));
            layout.write(&source);
            let cmd = r#"cat >"$HOLESYNC_DEST"; echo "$HOLESYNC_SIZE" >"$HOLESYNC_DEST.size""#;
            let Some(mut command) = way.through(cmd, &source, &to) else { return };
            let outcome = run(command.arg("--json")).ok();
            assert_same(&source, &to);
            let size = fs::read_to_string(dir.path().join("to.size")).expect("read");
            assert_eq!(size, format!("{}\n", layout.len()), "{way:?} {}", layout.name);
            let route = ["local", "agent", "shell"][way as usize];
            assert_eq!(outcome.summary()["route"], route, "{outcome}");
            assert_eq!(outcome.count("sent_data_bytes") == 0, layout.written() == 0, "{outcome}");
        }
    }
}

#[test]
fn the_command_is_told_the_destination_as_it_was_written() {
    for way in WAYS {
        let dir = lab::scratch();
        let source = dir.path().join("source");
        fs::write(&source, "content").expect("write");
        let (there, got) = (dir.path().join("it's \"there\"\nin a place"), dir.path().join("got"));
        fs::create_dir(&there).expect("create a directory");
        for name in odd_names() {
            let to = there.join(&name);
            let cmd = format!(r#"cat >"$HOLESYNC_DEST"; printf %s "$HOLESYNC_DEST" >{}"#, shell_word(&got));
            let Some(mut command) = way.through(cmd, &source, &to) else { return };
            run(&mut command).ok();
            assert_same(&source, &to);
            assert_eq!(OsStr::from_bytes(&fs::read(&got).expect("read")), to.as_os_str(), "{way:?}");
        }
    }
}

#[test]
fn the_command_finds_a_relative_path_from_the_home_there() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let source = dir.path().join("source");
    fs::write(&source, "content").expect("write");
    let got = dir.path().join("got");
    let home = run(Command::new(peer.rsh()).args(["peer", "pwd"])).ok().stdout;
    let home = home.trim_end();
    let cmd = format!(
        r#"cat >/dev/null; case $HOLESYNC_DEST in /*) ;; *) cd "$PWD/${{HOLESYNC_DEST%/*}}"; printf %s/ "$PWD" ;; esac >{0}; printf %s "${{HOLESYNC_DEST##*/}}" >>{0}"#,
        shell_word(&got)
    );
    let tilde = format!(r#"cat >/dev/null; printf %s "$HOLESYNC_DEST" >{}"#, shell_word(&got));
    for way in [Way::Agent, Way::Shell] {
        let cases = [("./a 'b", &cmd, "a 'b"), ("~/a 'b", &tilde, "a 'b"), ("~/a/\nb", &tilde, "a/\nb")];
        for (to, cmd, arrives) in cases {
            run(way.over(&peer, cmd).arg(&source).arg(on("peer", to))).ok();
            let got = fs::read_to_string(&got).expect("read");
            assert_eq!(got, format!("{home}/{arrives}"), "{way:?} {to:?}");
        }
    }
}

#[test]
fn the_command_itself_may_be_written_in_any_way() {
    for way in WAYS {
        let dir = lab::scratch();
        let source = dir.path().join("source");
        fs::write(&source, "content").expect("write");
        let to = dir.path().join("to");
        let cmd = b"{ cat\nprintf '%s\\n' '\xff $HOME `id` \\ \"*\"' # a comment\n} >\"$HOLESYNC_DEST\"\n";
        let Some(mut command) = way.through(OsStr::from_bytes(cmd), &source, &to) else { return };
        run(&mut command).ok();
        let want = b"content\xff $HOME `id` \\ \"*\"\n";
        assert_eq!(fs::read(&to).expect("read"), want, "{way:?}");
    }
}

#[test]
fn what_the_command_prints_reaches_the_user_and_not_the_answers() {
    for way in WAYS {
        let dir = lab::scratch();
        let source = big(dir.path());
        let cmd = "echo done; echo 'fatal lie'; cat >/dev/null; echo end; echo complaint >&2";
        let Some(mut command) = way.through(cmd, &source, dir.path().join("to")) else { return };
        let outcome = run(command.arg("--json")).ok();
        outcome.stdout.lines().for_each(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|e| panic!("{e}: {outcome}"));
        });
        outcome.says(&["done\n", "fatal lie\n", "end\n", "complaint\n"]);
    }
}

#[test]
fn a_command_that_fails_fails_the_run_and_its_status_is_named() {
    for way in WAYS {
        let dir = lab::scratch();
        let source = big(dir.path());
        for (cmd, status, in_the_shell) in [
            ("cat >/dev/null; exit 1", "exit status: 1", "status 1"),
            ("cat >/dev/null; exit 3", "exit status: 3", "status 3"),
            ("cat >/dev/null; no-such-command", "exit status: 127", "status 127"),
            ("cat >/dev/null; kill -9 $$", "signal: 9", "status 137"),
            ("cat >/dev/null; kill -15 $$", "signal: 15", "status 143"),
            ("head -c 1000 >/dev/null; exit 4", "exit status: 4", "status 4"),
        ] {
            let Some(mut command) = way.through(cmd, &source, dir.path().join("to")) else { return };
            let status = if way == Way::Shell { in_the_shell } else { status };
            run(&mut command).code(23).says(&[status]);
        }
    }
}

#[test]
fn a_command_that_does_not_read_all_fails_the_run_whatever_its_status() {
    for way in WAYS {
        let dir = lab::scratch();
        let source = big(dir.path());
        for cmd in ["true", "head -c 1000 >/dev/null", "exec <&-; exit 0", "exec </dev/null; cat"] {
            let Some(mut command) = way.through(cmd, &source, dir.path().join("to")) else { return };
            run(&mut command).code(23).says(&["the whole image"]);
        }
    }
}

#[test]
fn a_command_is_waited_for_after_it_has_read_all() {
    for way in WAYS {
        let dir = lab::scratch();
        let source = big(dir.path());
        let (to, gate) = (dir.path().join("to"), dir.path().join("gate"));
        run(Command::new("mkfifo").arg(&gate)).ok();
        let cmd = format!(
            r#"cat >"$HOLESYNC_DEST"; read line <{}; echo "$line" >>"$HOLESYNC_DEST""#,
            shell_word(&gate)
        );
        let Some(mut command) = way.through(cmd, &source, &to) else { return };
        let running = start(&mut command);
        assert!(wait_until(LIMIT, || same(&source, &to)), "{way:?}: the command got no image");
        assert!(!running.has_ended(), "{way:?}");
        fs::write(&gate, "more\n").expect("let it go on");
        running.finish().ok();
        assert!(fs::read(&to).expect("read").ends_with(b"more\n"), "{way:?}");
    }
}

/// A far side that suffers this. It is no part of the run's process group: what
/// ends the run does not reach it, as behind a real connection.
fn suffering(fault: Fault, dir: &Path) -> Peer {
    Peer::script(dir, &fault.pipeline(dir, Direction::ToAgent, r#"setsid sh -c "$command""#))
}

/// A command that says who it is, writes what it gets to `out`, and makes
/// `whole` when it takes that for the whole.
struct Witness(PathBuf);

impl Witness {
    fn command(&self) -> String {
        self.that(&format!("cat >{}", shell_word(&self.0.join("out"))))
    }

    /// The same, with another way to take it.
    fn that(&self, takes: &str) -> String {
        let file = |name: &str| shell_word(&self.0.join(name));
        format!("echo $$ >{}; {takes}; : >{}", file("pid"), file("whole"))
    }

    /// Demands that it is gone and did not take what it got for the whole.
    #[track_caller]
    fn saw_no_end(&self, what: &str) {
        let process = fs::read_to_string(self.0.join("pid")).unwrap_or_default();
        let stat = format!("/proc/{}/stat", process.trim());
        // What has ended and was not yet waited for counts as gone.
        let gone =
            || process.is_empty() || fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z "));
        assert!(wait_until(LIMIT, gone), "{what}: the command goes on");
        assert!(!self.0.join("whole").exists(), "{what}: the command took a part for the whole");
    }

    fn forget(&self) {
        for name in ["pid", "out", "whole"] {
            let _ = fs::remove_file(self.0.join(name));
        }
    }

    /// Waits until it has got something.
    #[track_caller]
    fn await_some(&self) {
        let some = || fs::metadata(self.0.join("out")).is_ok_and(|file| file.len() > 0);
        assert!(wait_until(LIMIT, some), "the command got nothing");
    }
}

#[test]
fn a_connection_that_breaks_is_no_end_of_the_image_to_the_command() {
    let rng = &mut Rng(17);
    for way in [Way::Agent, Way::Shell] {
        let dir = lab::scratch();
        let source = dir.path().join("source");
        Layout::hole("source", 300_000).data(4096..90_000, rng).data(200_000..203_000, rng).write(&source);
        let witness = Witness(dir.path().into());
        let push = |peer: &Peer| {
            witness.forget();
            run(way.over(peer, witness.command()).arg("--json").arg(&source).arg(at("anywhere")))
        };
        let whole = push(&Peer::pipe(dir.path())).ok();
        assert!(dir.path().join("whole").exists(), "{way:?}: {whole}");
        assert_same(&source, &dir.path().join("out"));
        let total = whole.count("wire_bytes_sent");
        let mut cuts: Vec<u64> = (0..25).map(|_| rng.below(total as usize) as u64).collect();
        // After that comes the farewell to a shell.
        let image = if way == Way::Shell { total - "end\n".len() as u64 } else { total };
        cuts.extend((1..25).map(|before| image - before));
        for at in cuts {
            let broken = push(&suffering(Fault::Cut(at), dir.path()));
            let what = format!("{way:?}, cut at {at} of {total}");
            assert_ne!(broken.code, 0, "{what}: {broken}");
            witness.saw_no_end(&what);
        }
    }
}

#[test]
fn an_end_that_is_not_confirmed_is_a_failure() {
    for way in [Way::Agent, Way::Shell] {
        let dir = lab::scratch();
        let source = big(dir.path());
        let push = |peer: &Peer| {
            let mut command = way.over(peer, "cat >/dev/null");
            run(command.arg("--json").arg(&source).arg(at("anywhere")))
        };
        let total = push(&Peer::pipe(dir.path())).ok().count("wire_bytes_received");
        for bytes in 0..total {
            let broken = push(&Fault::Cut(bytes).peer(dir.path(), Direction::FromAgent));
            assert_ne!(broken.code, 0, "{way:?}, cut at {bytes} of {total}: {broken}");
        }
    }
}

#[test]
fn an_interrupted_run_is_no_end_of_the_image_to_the_command() {
    for way in WAYS {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            let dir = lab::scratch();
            let (running, witness) = stalled(way, dir.path());
            running.signal(signal);
            running.finish().code(20).says(&["interrupted"]);
            witness.saw_no_end(&format!("{way:?} {signal}"));
        }
    }
}

#[test]
fn an_agent_that_is_stopped_is_no_end_of_the_image_to_the_command() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let dir = lab::scratch();
        let (running, witness) = stalled(Way::Agent, dir.path());
        signal_agents(&dir.path().join("holesync"), signal);
        assert_ne!(running.finish().code, 0);
        witness.saw_no_end(&format!("{signal}"));
    }
}

/// A run whose command has got something, and then no more.
fn stalled(way: Way, dir: &Path) -> (Running, Witness) {
    let source = big(dir);
    let witness = Witness(dir.into());
    // Under a name of the test's own, so that its agents can be told from others.
    let agent = dir.join("holesync");
    symlink(PROGRAM, &agent).expect("link to the program");
    let mut command = if way == Way::Local {
        let gate = dir.join("gate");
        run(Command::new("mkfifo").arg(&gate)).ok();
        // It takes no more before it is let to.
        let (gate, out) = (shell_word(&gate), shell_word(&dir.join("out")));
        let takes = format!("head -c 1000 >{out}; read x <{gate}; cat >>{out}");
        way.over(&Peer::pipe(dir), witness.that(&takes))
    } else {
        // dd there passes on a MiB at a time.
        let peer = suffering(Fault::Stall(2 * MIB as u64), dir).with_program(&agent);
        way.over(&peer, witness.command())
    };
    let running = start(command.arg(&source).arg(way.to("anywhere")));
    witness.await_some();
    (running, witness)
}

#[test]
fn an_image_that_changes_while_it_is_read_is_no_image_to_the_command() {
    for way in WAYS {
        let dir = lab::scratch();
        // More than all pipes and sockets hold that are on the way.
        let source = dir.path().join("source");
        Layout::dense("source", 32 * MIB, &mut Rng(3)).write(&source);
        let witness = Witness(dir.path().into());
        let cmd = format!("head -c 1 >/dev/null; echo x >>{}; {}", shell_word(&source), witness.command());
        let Some(mut command) = way.through(cmd, &source, dir.path().join("to")) else { return };
        run(&mut command).code(23).says(&["changed while it was read"]);
        witness.saw_no_end(&format!("{way:?}"));
    }
}

#[test]
fn what_cannot_go_through_a_command_is_a_usage_error() {
    let dir = lab::scratch();
    let (source, ran) = (dir.path().join("source"), dir.path().join("ran"));
    fs::write(&source, "content").expect("write");
    let peer = Peer::pipe(dir.path());
    let source = source.as_os_str();
    let (there, to) = (at(source), at(dir.path().join("to")));
    let cases: [&[&OsStr]; 5] = [
        &[source, source, &to],
        &[&there, "to".as_ref()],
        &[&there, &to],
        &["-n".as_ref(), source, &to],
        &["-n".as_ref(), source, "to".as_ref()],
    ];
    for way in [Way::Agent, Way::Shell] {
        for case in cases {
            let cmd = format!("cat >{}", shell_word(&ran));
            run(way.over(&peer, cmd).args(case)).code(1).says(&["--through"]);
            assert!(!ran.exists(), "{case:?}");
        }
    }
}

#[test]
fn an_image_that_cannot_be_read_starts_no_command() {
    for way in WAYS {
        let dir = lab::scratch();
        let ran = dir.path().join("ran");
        for source in [dir.path().join("missing"), dir.path().to_owned()] {
            let cmd = format!("cat >{}", shell_word(&ran));
            let Some(mut command) = way.through(cmd, &source, dir.path().join("to")) else { return };
            let outcome = run(&mut command);
            assert_ne!(outcome.code, 0, "{outcome}");
            assert!(!ran.exists(), "{way:?} {source:?}");
        }
    }
}

#[test]
fn a_converter_makes_its_own_format_of_the_image() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return;
    }
    for way in WAYS {
        let dir = lab::scratch();
        let (source, to, back) = (dir.path().join("source"), dir.path().join("to"), dir.path().join("back"));
        Layout::hole("source", 8 * MIB).data(3 * MIB..4 * MIB, &mut Rng(1)).write(&source);
        let cmd = r#"cat >"$HOLESYNC_DEST.raw" && qemu-img convert -f raw -O qcow2 "$HOLESYNC_DEST.raw" "$HOLESYNC_DEST""#;
        let Some(mut command) = way.through(cmd, &source, &to) else { return };
        run(&mut command).ok();
        assert!(fs::read(&to).expect("read").starts_with(b"QFI\xfb"), "{way:?}");
        run(Command::new("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw"]).arg(&to).arg(&back)).ok();
        assert_same(&source, &back);
    }
}
