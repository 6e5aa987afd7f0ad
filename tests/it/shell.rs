//! A far side with nothing but a shell and a few tools: every login shell,
//! BusyBox alone, and what must not happen to the old file when things break.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::common::account::{Account, noting_ssh, odd_names, on, which};
use crate::common::check::{
    assert_begins_with, assert_holes_kept, assert_no_leftovers, assert_same, same,
};
use crate::common::faults::{Direction, Fault};
use crate::common::lab::{self, Fs, Loop};
use crate::common::layout::{Change, Layout, Rng, layouts, mutate};
use crate::common::peer::{Peer, at, shell_word};
use crate::common::process::{Outcome, holesync, run};
use crate::common::tree::{self, snapshot};

const MIB: usize = 1 << 20;

/// A stand-in for ssh whose shell has only these tools, beside those of a plain
/// shell; `extra` are scripts of the test's own.
fn with_tools(dir: &Path, without: &[&str], extra: &[(&str, &str)]) -> Peer {
    let bin = dir.join("bin");
    fs::create_dir(&bin).expect("create a directory");
    let tools = [
        "sh", "dd", "cat", "chmod", "find", "mkdir", "mv", "rm", "ln", "readlink", "id", "stat", "touch", "cut",
        "grep", "sha256sum", "fallocate", "uname", "truncate", "head", "gzip", "zstd", "tar", "mkfifo", "mktemp",
        "setsid", "rmdir", "chown", "chgrp",
    ];
    for tool in tools.iter().filter(|tool| !without.contains(tool)) {
        let path = which(tool);
        if path.is_absolute() {
            symlink(path, bin.join(tool)).expect("symlink");
        }
    }
    for (name, body) in extra {
        let path = bin.join(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("write");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("chmod");
    }
    Peer::script(dir, &format!("export PATH={}\nagent", shell_word(&bin)))
}

#[track_caller]
fn push(command: &mut Command, from: &Path, to: &Path) -> Outcome {
    run(command.arg(from).arg(at(to)))
}

fn image(path: PathBuf, seed: u64) -> PathBuf {
    let mut rng = Rng(seed);
    Layout::hole("image", 3 * MIB + 77)
        .data(70_000..150_000, &mut rng)
        .data(2 * MIB..2 * MIB + 5, &mut rng)
        .write(&path);
    path
}

/// Deploys and redeploys awkward images, both ways, through a login shell.
fn deploy_through(shell: &Path) {
    let Some(peer) = Peer::sshd() else { return };
    let Some(account) = Account::new(shell) else { return };
    let dir = lab::scratch();
    let host = account.host();
    // As if there were no holesync: the shell takes over in the same connection.
    let nothing_there = ["-e", peer.rsh(), "--remote-path", "/no/such/holesync", "--json"];
    let mut rng = Rng(7);
    for (nth, layout) in layouts(&mut rng).into_iter().enumerate() {
        let (source, name) = (dir.path().join(&layout.name), format!("{nth} {}", layout.name));
        layout.write(&source);
        let arrived = account.home.join(&name);
        let outcome = run(holesync().args(nothing_there).arg(&source).arg(on(&host, &name))).ok();
        assert_eq!(outcome.summary()["route"], "shell", "{outcome}");
        assert_same(&source, &arrived);
        assert_holes_kept(&source, &arrived);
        let back = dir.path().join(format!("back {nth}"));
        run(peer.shell().arg(on(&host, &name)).arg(&back)).ok();
        assert_same(&source, &back);
        assert_holes_kept(&source, &back);
    }
    exchange_odd_names(&account, &peer);
    assert_no_leftovers(&account.home);
    assert_no_leftovers(dir.path());
}

/// Pushes and pulls files with odd names, to and from a directory with one.
fn exchange_odd_names(account: &Account, peer: &Peer) {
    let names = odd_names();
    let odd = Path::new("-in a $HOME 'dir' \"of\" `odd`\nnames;*\\");
    let dir = lab::scratch();
    for (nth, name) in names.iter().enumerate() {
        fs::write(dir.path().join(name), format!("pushed {nth}")).expect("write");
        account.keep(odd.join("there").join(name), format!("pulled {nth}").as_bytes());
    }
    let mut push = peer.shell();
    push.current_dir(dir.path()).args(names.iter().map(|name| Path::new(".").join(name)));
    run(push.arg(on(&account.host(), odd.join("pushed/")))).ok();
    let mut pull = peer.shell();
    pull.args(names.iter().map(|name| on(&account.host(), odd.join("there").join(name))));
    run(pull.arg(dir.path().join("-pulled"))).ok();
    for (nth, name) in names.iter().enumerate() {
        let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_else(|e| format!("{name:?}: {e}"));
        assert_eq!(read(account.home.join(odd).join("pushed").join(name)), format!("pushed {nth}"));
        assert_eq!(read(dir.path().join("-pulled").join(name)), format!("pulled {nth}"));
    }
    // Each as a destination of its own.
    let one = fs::canonicalize(dir.path()).expect("resolve").join("it's");
    let single = Path::new("$(x) '\"é\n").as_os_str();
    run(peer.shell().arg(&one).arg(on(&account.host(), single))).ok();
    assert_same(&one, &account.home.join(single));
}

#[test]
fn a_shell_receives_and_sends_under_bash() {
    deploy_through(&which("bash"));
}

#[test]
fn a_shell_receives_and_sends_under_dash() {
    deploy_through(&which("dash"));
}

#[test]
fn a_shell_receives_and_sends_under_zsh() {
    deploy_through(&which("zsh"));
}

#[test]
fn a_shell_receives_and_sends_under_fish() {
    deploy_through(&which("fish"));
}

#[test]
fn a_shell_receives_and_sends_under_tcsh() {
    deploy_through(&which("tcsh"));
}

#[test]
fn a_shell_receives_and_sends_under_busybox_ash() {
    let dir = lab::scratch();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let ash = dir.path().join("ash");
    symlink(which("busybox"), &ash).expect("symlink");
    deploy_through(&ash);
}

/// A root directory that holds BusyBox and nothing else.
struct Alone {
    root: TempDir,
    rsh: String,
}

impl Alone {
    fn new(peer: &Peer) -> Option<Alone> {
        if !lab::is_root() {
            return None;
        }
        let root = lab::scratch();
        for name in ["bin", "dev", "tmp", "root"] {
            fs::create_dir(root.path().join(name)).expect("create a directory");
        }
        let busybox = root.path().join("bin/busybox");
        fs::copy(which("busybox"), &busybox).expect("copy");
        for (name, minor) in [("null", "3"), ("zero", "5")] {
            run(Command::new("mknod").arg(root.path().join("dev").join(name)).args(["c", "1", minor])).ok();
        }
        run(Command::new("chroot").arg(root.path()).args(["/bin/busybox", "--install", "-s", "/bin"])).ok();
        // The real sshd, and then the chroot: it gives the command to BusyBox's shell as sshd would.
        let script = root.path().join("rsh.sh");
        let body = format!(
            "while [ \"$1\" != peer ]; do shift; done; shift\n\
             word=$(printf %s \"$*\" | sed \"s/'/'\\\\\\\\''/g\")\n\
             exec {} peer \"cd / && PATH=/bin HOME=/root exec {} {} /bin/sh -c '$word'\"\n",
            peer.rsh(),
            which("chroot").display(),
            root.path().display()
        );
        fs::write(&script, body).expect("write");
        let rsh = format!("sh {}", shell_word(&script));
        Some(Alone { root, rsh })
    }

    fn holesync(&self) -> Command {
        let mut command = holesync();
        command.args(["-e", &self.rsh]);
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }
}

#[test]
fn busybox_alone_is_enough() {
    let Some(peer) = Peer::sshd() else { return };
    let Some(alone) = Alone::new(&peer) else { return };
    let dir = lab::scratch();
    let mut rng = Rng(11);
    for layout in layouts(&mut rng) {
        let source = dir.path().join(&layout.name);
        let there = alone.path(&format!("tmp/{}", layout.name));
        layout.write(&source);
        push(&mut alone.holesync(), &source, &Path::new("/tmp").join(&layout.name)).ok();
        assert_same(&source, &there);
        if layout.name != "alternating" && layout.name != "mixed" {
            // Its fallocate digs no holes: short ones stay as the zeros that were sent for them.
            assert_holes_kept(&source, &there);
        }
        let back = dir.path().join("back");
        run(alone.holesync().arg(at(Path::new("/tmp").join(&layout.name))).arg(&back)).ok();
        assert_same(&source, &back);
        // Unchanged, by its size and whole seconds.
        let again = push(alone.holesync().arg("--json"), &source, &Path::new("/tmp").join(&layout.name)).ok();
        assert_eq!(again.count("files_sent"), 0, "{again}");
        // Changed, and compared by its sha256sum.
        let source = dir.path().join("changed");
        mutate(layout.clone(), Change::Touch, &mut rng).write(&source);
        push(alone.holesync().arg("-c"), &source, &Path::new("/tmp").join(&layout.name)).ok();
        assert_same(&source, &there);
        mutate(layout.clone(), Change::Grow, &mut rng).write(&source);
        push(alone.holesync().args(["-c", "--inplace"]), &source, &Path::new("/tmp").join(&layout.name)).ok();
        assert_same(&source, &there);
    }
    let [tree, _] = tree::versions(&dir.path().join("tree"));
    let there = alone.path("tmp/there");
    run(alone.holesync().arg(tree.join("")).arg(at("/tmp/there"))).code(0);
    let back = dir.path().join("back-tree");
    run(alone.holesync().arg(at("/tmp/there/")).arg(&back)).ok();
    assert_no_leftovers(&there);
}
