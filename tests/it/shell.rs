//! A far side with nothing but a shell and a few tools: every login shell,
//! BusyBox alone, and what must not happen to the old file when things break.

mod errors;
mod in_use;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::common::account::{Account, noting_ssh, odd_names, on, which};
use crate::common::check::{
    assert_begins_with, assert_holes_kept, assert_no_leftovers, assert_same, leftovers, same,
};
use crate::common::faults::{Direction, Fault};
use crate::common::lab::{self, Fs, Loop};
use crate::common::layout::{Change, Layout, Rng, layouts, mutate};
use crate::common::peer::{Peer, at, shell_word};
use crate::common::process::{Outcome, PROGRAM, holesync, run, start, wait_until};
use crate::common::tree::{grow, mkdir, set_mode, set_mtime, slash, snapshot};

const MIB: usize = 1 << 20;

/// A stand-in for ssh whose shell has only these tools, beside those of a plain
/// shell; `extra` are scripts of the test's own.
fn with_tools(dir: &Path, without: &[&str], extra: &[(&str, &str)]) -> Peer {
    let bin = dir.join("bin");
    fs::create_dir(&bin).expect("create a directory");
    let tools = [
        "sh",
        "dd",
        "cat",
        "chmod",
        "find",
        "mkdir",
        "mv",
        "rm",
        "ln",
        "readlink",
        "id",
        "stat",
        "touch",
        "cut",
        "grep",
        "sha256sum",
        "fallocate",
        "uname",
        "truncate",
        "head",
        "gzip",
        "zstd",
        "tar",
        "mkfifo",
        "mktemp",
        "setsid",
        "rmdir",
        "chown",
        "wc",
        "chgrp",
    ];
    for tool in tools.iter().filter(|tool| !without.contains(tool)) {
        let path = which(tool);
        if path.is_absolute() {
            symlink(path, bin.join(tool)).expect("symlink");
        }
    }
    for (name, body) in extra {
        lab::script(&bin.join(name), format!("#!/bin/sh\n{body}\n"));
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
    let nothing_there = ["-e", peer.rsh(), "--agent=auto", "--remote-path", "/no/such/holesync", "--json"];
    let mut rng = Rng(7);
    // All of them elsewhere: here the login shell is what counts.
    for (nth, layout) in layouts(&mut rng).into_iter().step_by(3).enumerate() {
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
        for name in ["dev", "tmp", "root"] {
            fs::create_dir(root.path().join(name)).expect("create a directory");
        }
        let copy = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/copy-alone");
        run(Command::new(copy).arg(which("busybox")).arg(root.path()).arg("bin/busybox")).ok();
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
        assert_holes_kept(&source, &there);
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
    assert_no_leftovers(&alone.path("tmp"));
    // More than its tools count in 32 bits.
    let large = dir.path().join("large");
    Layout::hole("large", 5).data(0..5, &mut rng).write(&large);
    fs::File::options().write(true).open(&large).and_then(|file| file.set_len(5 << 30)).expect("grow");
    push(&mut alone.holesync(), &large, Path::new("/tmp/large")).ok();
    assert_same(&large, &alone.path("tmp/large"));
    run(alone.holesync().arg("--inplace").arg(at("/tmp/large")).arg(&large)).ok();
    let from = mkdir(dir.path().join("tree"));
    grow(&from, &mut rng);
    run(alone.holesync().arg("-a").arg(slash(&from)).arg(at("/tmp/there"))).ok();
    run(alone.holesync().arg("-a").arg(at("/tmp/there/")).arg(dir.path().join("back-tree"))).ok();
    // Its tools set times in whole seconds, and none before 1970: names and contents are compared.
    let names = |dir: &Path| snapshot(dir, true).into_keys().collect::<Vec<_>>();
    assert_eq!(names(&dir.path().join("back-tree")), names(&from));
    for name in names(&from) {
        if from.join(&name).symlink_metadata().expect("stat").is_file() {
            assert_same(&from.join(&name), &dir.path().join("back-tree").join(&name));
        }
    }
}

/// What is there before and after a run that must fail.
#[track_caller]
fn assert_untouched(outcome: &Outcome, old: &Path, to: &Path) {
    assert_ne!(outcome.code, 0, "{outcome}");
    if old.exists() {
        assert_same(old, to);
    } else {
        assert!(!to.exists(), "{outcome}");
    }
    assert_no_leftovers(to.parent().expect("a parent"));
}

/// Cuts the way to the far side, or from it, after `count` random numbers of bytes.
fn cut_at_random(options: &[&str], direction: Direction, old: bool, seed: u64, count: usize) {
    let mut rng = Rng(seed);
    let dir = lab::scratch();
    let far = mkdir(dir.path().join("far"));
    let (source, before, to) = (dir.path().join("source"), dir.path().join("before"), far.join("to"));
    let layout = Layout::hole("image", 3 * MIB + 77).data(0..300_000, &mut rng).data(MIB..MIB + 9, &mut rng);
    layout.write(&source);
    let deploy = |peer: &Peer| run(peer.shell().args(options).arg(&source).arg(at(&to)));
    // How much travels when nothing goes wrong.
    let whole = Peer::pipe(dir.path());
    if old {
        mutate(layout.clone(), Change::Touch, &mut rng).write(&before);
    }
    let lay_out = || {
        let _ = fs::remove_file(&to);
        if old {
            fs::copy(&before, &to).expect("copy");
        }
    };
    lay_out();
    let sent = run(whole.shell().args(options).arg("--json").arg(&source).arg(at(&to))).ok();
    assert_same(&source, &to);
    let key = match direction {
        Direction::ToAgent => "wire_bytes_sent",
        Direction::FromAgent => "wire_bytes_received",
    };
    let total = sent.count(key) as usize;
    for _ in 0..count {
        lay_out();
        let at = rng.below(total) as u64;
        let outcome = deploy(&Fault::Cut(at).peer(dir.path(), direction));
        match direction {
            Direction::ToAgent => {
                settle(&far);
                assert_untouched(&outcome, &before, &to);
            }
            // The far side may have come to its end; then it has all of it.
            Direction::FromAgent => {
                assert_ne!(outcome.code, 0, "after {at} bytes: {outcome}");
                settle(&far);
                assert!(
                    same(&source, &to) || same(&before, &to) || !old && !to.exists(),
                    "after {at}: {outcome}"
                );
                assert_no_leftovers(&far);
            }
        }
    }
}

/// Waits until the far side has noticed that nobody is there any more.
fn settle(dir: &Path) {
    let limit = std::time::Duration::from_secs(20);
    assert!(wait_until(limit, || leftovers(dir).is_empty()), "{:?} stay", leftovers(dir));
}

#[test]
fn a_push_that_is_cut_off_leaves_nothing_new() {
    cut_at_random(&[], Direction::ToAgent, false, 1, 60);
}

#[test]
fn a_push_that_is_cut_off_leaves_the_old_file() {
    cut_at_random(&[], Direction::ToAgent, true, 2, 60);
}

#[test]
fn a_comparison_that_is_cut_off_leaves_the_old_file() {
    cut_at_random(&["-c"], Direction::ToAgent, true, 3, 50);
}

#[test]
fn many_records_that_are_cut_off_leave_the_old_file() {
    let mut rng = Rng(6);
    let dir = lab::scratch();
    let far = mkdir(dir.path().join("far"));
    let (source, before, to) = (dir.path().join("source"), dir.path().join("before"), far.join("to"));
    let mut layout = Layout::hole("image", 4 * MIB);
    for at in (0..layout.len()).step_by(128 << 10) {
        layout = layout.data(at..at + 4096, &mut rng);
    }
    layout.write(&source);
    fs::write(&before, "old").expect("write");
    fs::copy(&before, &to).expect("copy");
    let total = push(Peer::pipe(dir.path()).shell().arg("--json"), &source, &to).ok();
    let total = total.count("wire_bytes_sent") as usize;
    assert_same(&source, &to);
    for _ in 0..30 {
        fs::copy(&before, &to).expect("copy");
        let peer = Fault::Cut(rng.below(total) as u64).peer(dir.path(), Direction::ToAgent);
        let outcome = push(&mut peer.shell(), &source, &to);
        settle(&far);
        assert_untouched(&outcome, &before, &to);
    }
    let dies = "head -c 20000 >/dev/null\nkill -9 $$";
    let probe = format!("case $2 in print*) exec {} \"$@\" ;; esac\n{dies}", which("perl").display());
    let tools = mkdir(dir.path().join("tools"));
    let peer = with_tools(&tools, &["perl"], &[("perl", &probe)]);
    assert_untouched(&push(&mut peer.shell(), &source, &to), &before, &to);
}

#[test]
fn a_push_whose_answers_are_cut_off_fails_and_leaves_the_old_file_or_the_new() {
    cut_at_random(&[], Direction::FromAgent, true, 4, 30);
}

#[test]
fn a_pull_that_is_cut_off_leaves_the_old_file() {
    let mut rng = Rng(5);
    let dir = lab::scratch();
    let near = mkdir(dir.path().join("near"));
    let (source, before, to) = (dir.path().join("source"), dir.path().join("before"), near.join("to"));
    let layout = Layout::hole("image", 3 * MIB + 77).data(0..300_000, &mut rng).data(MIB..MIB + 9, &mut rng);
    layout.write(&source);
    mutate(layout, Change::Grow, &mut rng).write(&before);
    for (nth, without) in
        [&[][..], &["tar"], &["tar", "zstd"], &["tar", "zstd", "gzip"]].into_iter().enumerate()
    {
        let tools = mkdir(dir.path().join(format!("tools-{nth}")));
        let peer = with_tools(&tools, without, &[]);
        let pull = |peer: &Peer, json: &[&str]| run(peer.shell().args(json).arg(at(&source)).arg(&to));
        fs::copy(&before, &to).expect("copy");
        let total = pull(&peer, &["--json"]).ok().count("wire_bytes_received") as usize;
        assert_same(&source, &to);
        assert_holes_kept(&source, &to);
        for _ in 0..15 {
            fs::copy(&before, &to).expect("copy");
            let at = rng.below(total) as u64;
            let bin = shell_word(&tools.join("bin"));
            let cut = Fault::Cut(at).pipeline(&tools, Direction::FromAgent, &format!("(PATH={bin} agent)"));
            let outcome = pull(&Peer::script(&tools, &cut), &[]);
            assert_untouched(&outcome, &before, &to);
        }
    }
}

#[test]
fn one_connection_is_made_whatever_is_there() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let (script, log) = noting_ssh(dir.path(), &peer);
    let rsh = format!("sh {}", shell_word(&script));
    let one = image(dir.path().join("one"), 1);
    let tree = mkdir(dir.path().join("tree/below"));
    image(tree.join("two"), 2);
    let (tree, to) = (dir.path().join("tree"), dir.path().join("to"));
    let cases: [(&[&str], Vec<OsString>, &str); 9] = [
        (&["--agent=none"], vec![one.clone().into(), at(&to)], "shell"),
        (&["--agent=none", "-c"], vec![one.clone().into(), at(&to)], "shell"),
        (&["--agent=none"], vec![tree.clone().into(), at(dir.path().join("trees/"))], "shell"),
        (&["--agent=none"], vec![at(&tree), dir.path().join("back").into()], "shell"),
        (&["--agent=none", "--through", "cat >/dev/null"], vec![one.clone().into(), at(&to)], "shell"),
        (&["--agent=auto", "--remote-path=/no/such"], vec![one.clone().into(), at(&to)], "shell"),
        (&["--agent=auto", "--remote-path=/no/such"], vec![at(&one), dir.path().join("b").into()], "shell"),
        (
            &["--remote-path", PROGRAM, "--through", "cat >/dev/null"],
            vec![one.clone().into(), at(&to)],
            "agent",
        ),
        (&["--remote-path", PROGRAM], vec![one.clone().into(), at(&to)], "agent"),
    ];
    for (options, paths, route) in cases {
        let outcome = run(holesync().args(["-e", &rsh, "--json"]).args(options).args(&paths)).ok();
        assert_eq!(outcome.summary()["route"], route, "{outcome}");
        let noted = fs::read_to_string(&log).expect("read");
        assert_eq!(noted.lines().count(), 1, "{options:?} {paths:?}: {noted}");
        fs::remove_file(&log).expect("remove");
    }
}

#[test]
fn what_does_not_differ_does_not_travel() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let mut rng = Rng(9);
    let (source, to) = (dir.path().join("source"), dir.path().join("to"));
    let layout =
        Layout::hole("image", 96 * MIB).data(0..64 * MIB, &mut rng).data(80 * MIB..81 * MIB, &mut rng);
    layout.write(&source);
    push(&mut peer.shell(), &source, &to).ok();
    let again = push(peer.shell().arg("--json"), &source, &to).ok();
    assert_eq!(again.count("files_sent"), 0, "{again}");
    // One of its blocks of 1 MiB, and one that became zero.
    let layout = layout.data(7 * MIB + 5..7 * MIB + 6, &mut rng).punch(30 * MIB..31 * MIB);
    layout.write(&source);
    for options in [&["-c"][..], &["-c", "--inplace"]] {
        let outcome = push(peer.shell().arg("--json").args(options), &source, &to).ok();
        assert_same(&source, &to);
        assert_holes_kept(&source, &to);
        let wire = outcome.count("wire_bytes_sent") + outcome.count("wire_bytes_received");
        assert!(wire < 65 * MIB as u64 / 20, "{wire} bytes: {outcome}");
        mutate(layout.clone(), Change::Nothing, &mut rng)
            .data(50 * MIB..50 * MIB + 1, &mut rng)
            .write(&source);
    }
    // The same content under another time is only given its time.
    let equal = push(peer.shell().args(["-c", "--inplace", "--json"]), &source, &to).ok();
    assert_same(&source, &to);
    assert_eq!(equal.count("sent_data_bytes") / MIB as u64, 1, "{equal}");
    set_mtime(&source, 1_000_000_000, 5);
    let equal = push(peer.shell().args(["-c", "--json"]), &source, &to).ok();
    assert_eq!((equal.count("files_sent"), equal.count("sent_data_bytes")), (0, 0), "{equal}");
    assert_eq!(snapshot(&source, true), snapshot(&to, true));
}

#[test]
fn many_short_holes_stay_holes_whatever_writes_them() {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        let mut rng = Rng(12);
        let mut layout = Layout::hole("image", 20 * MIB);
        for at in (0..layout.len()).step_by(20 << 10) {
            layout = layout.data(at..at + 4096, &mut rng);
        }
        let source = dir.path().join("source");
        layout.write(&source);
        // By perl; by zeros that are dug out again; by a process for each.
        for (nth, without) in [&[][..], &["perl"], &["perl", "fallocate"]].into_iter().enumerate() {
            let tools = mkdir(dir.path().join(format!("tools-{nth}")));
            let peer = with_tools(&tools, without, &[]);
            let to = tools.join("to");
            push(&mut peer.shell(), &source, &to).ok();
            assert_same(&source, &to);
            assert_holes_kept(&source, &to);
            let changed = dir.path().join("changed");
            mutate(layout.clone(), Change::Punch, &mut rng).write(&changed);
            for options in [&["-c"][..], &["-c", "--inplace"], &["--inplace", "-W"], &["--preallocate", "-W"]]
            {
                push(peer.shell().args(options), &changed, &to).ok();
                assert_same(&changed, &to);
            }
        }
    }
}

#[test]
fn every_file_system_keeps_its_holes() {
    let Some(peer) = Peer::sshd() else { return };
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        let layouts = layouts(&mut Rng(13));
        mkdir(from.clone());
        for layout in &layouts {
            layout.write(&from.join(&layout.name));
        }
        for options in [&[][..], &["--inplace", "-I"], &["-I"], &["--preallocate", "-W", "-I"]] {
            push(peer.shell().arg("-r").args(options), &from.join(""), &to).ok();
            for layout in &layouts {
                let (source, to) = (from.join(&layout.name), to.join(&layout.name));
                assert_same(&source, &to);
                if !options.contains(&"--preallocate") {
                    assert_holes_kept(&source, &to);
                } else if fs != Fs::Btrfs {
                    let allocated = crate::common::check::allocated(&to);
                    assert!(allocated >= layout.len() as u64, "{fs:?} {}: {allocated}", layout.name);
                }
            }
        }
    }
}

#[test]
fn a_device_is_written_zeros_included() {
    let Some(peer) = Peer::sshd() else { return };
    if !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    let backing = dir.path().join("backing");
    let mut rng = Rng(14);
    Layout::dense("device", 8 * MIB, &mut rng).write(&backing);
    let device = Loop::over(&backing);
    let source = image(dir.path().join("source"), 15);
    push(&mut peer.shell(), &source, &device.0).ok();
    assert_begins_with(&device.0, &source);
    let link = dir.path().join("link");
    symlink(&device.0, &link).expect("symlink");
    let other = image(dir.path().join("other"), 16);
    push(&mut peer.shell(), &other, &link).ok();
    assert_begins_with(&device.0, &other);
    assert!(link.is_symlink());
    let back = dir.path().join("back");
    run(peer.shell().arg(at(&device.0)).arg(&back)).ok();
    assert_begins_with(&device.0, &back);
    let large = dir.path().join("large");
    Layout::hole("large", 9 * MIB).write(&large);
    push(&mut peer.shell(), &large, &device.0).code(23).says(&["nothing was written"]);
    assert_begins_with(&device.0, &other);
}

#[test]
fn a_full_disk_leaves_the_old_file() {
    let Some(peer) = Peer::sshd() else { return };
    let Some(small) = lab::small() else { return };
    let dir = lab::scratch();
    let mut rng = Rng(17);
    let (source, before, to) =
        (dir.path().join("source"), dir.path().join("before"), small.dir.path().join("to"));
    Layout::dense("large", 90 * MIB, &mut rng).write(&source);
    Layout::dense("before", MIB, &mut rng).write(&before);
    fs::copy(&before, &to).expect("copy");
    let outcome = push(&mut peer.shell(), &source, &to).code(11);
    let outcome = outcome.says(&["no space left for", to.to_str().expect("a path"), "starts anew"]);
    assert_untouched(&outcome, &before, &to);
    // And here, when pulling.
    let outcome = run(peer.shell().arg(at(&source)).arg(&to)).code(11).says(&["no space left"]);
    assert_untouched(&outcome, &before, &to);
}

#[test]
fn a_tool_that_dies_leaves_the_old_file() {
    let mut rng = Rng(18);
    for nth in 1..=7 {
        let dir = lab::scratch();
        let far = mkdir(dir.path().join("far"));
        let (source, before, to) = (dir.path().join("source"), dir.path().join("before"), far.join("to"));
        Layout::hole("image", 4 * MIB).data(0..MIB, &mut rng).data(2 * MIB..3 * MIB, &mut rng).write(&source);
        fs::write(&before, "old").expect("write");
        fs::copy(&before, &to).expect("copy");
        // The nth dd is killed half way through its work.
        let count = shell_word(&dir.path().join("count"));
        let dd = format!(
            "echo >>{count}\nif [ $(wc -l <{count}) = {nth} ]; then\n\
             case $* in *if=*) ;; *) head -c 1000 >/dev/null ;; esac\nkill -9 $$\nfi\nexec {} \"$@\"",
            which("dd").display()
        );
        let peer = with_tools(dir.path(), &["dd"], &[("dd", &dd)]);
        let outcome = push(&mut peer.shell(), &source, &to);
        if outcome.code == 0 {
            // Those that only try out what dd can do may fail; what is copied then is copied right.
            assert_same(&source, &to);
        } else {
            assert_untouched(&outcome, &before, &to);
        }
        let used = fs::read_to_string(dir.path().join("count")).expect("read").lines().count();
        assert!(used >= nth, "only {used} are started");
    }
}

#[test]
fn a_tool_that_is_missing_is_named() {
    let dir = lab::scratch();
    let source = image(dir.path().join("source"), 19);
    for tool in ["dd", "chmod", "find", "mkdir", "mv", "rm"] {
        let tools = mkdir(dir.path().join(tool));
        let peer = with_tools(&tools, &[tool], &[]);
        let to = dir.path().join("to");
        push(&mut peer.shell(), &source, &to).code(5).says(&["peer", tool, "--agent=push"]);
        assert!(!to.exists());
    }
    let old_dd = "case $* in *iflag*) echo unknown operand >&2; exit 1;; esac\nexec /bin/dd \"$@\"";
    let tools = mkdir(dir.path().join("old-dd"));
    let peer = with_tools(&tools, &["dd"], &[("dd", old_dd)]);
    push(&mut peer.shell(), &source, &dir.path().join("to")).code(5).says(&["iflag=fullblock,count_bytes"]);
    for tool in ["stat", "head"] {
        let tools = mkdir(dir.path().join(format!("pull-{tool}")));
        let peer = with_tools(&tools, &[tool], &[]);
        run(peer.shell().arg(at(&source)).arg(dir.path().join("to"))).code(5).says(&[tool]);
    }
}

#[test]
fn what_cannot_be_done_without_a_tool_is_said_and_the_rest_is_done() {
    let dir = lab::scratch();
    let source = image(dir.path().join("source"), 20);
    for (without, says) in [("stat", "every file is sent"), ("sha256sum", "sha256sum"), ("touch", "touch")] {
        let tools = mkdir(dir.path().join(without));
        let peer = with_tools(&tools, &[without], &[]);
        let to = tools.join("to");
        push(&mut peer.shell(), &source, &to).ok();
        push(peer.shell().arg("-c"), &source, &to).ok().says(&[says]);
        assert_same(&source, &to);
        assert_holes_kept(&source, &to);
    }
}

#[test]
fn a_file_that_cannot_be_made_fails_and_the_others_arrive() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
    for name in ["a", "b", "c"] {
        image(from.join(name), 21);
    }
    mkdir(from.join("d/e"));
    image(from.join("d/e/f"), 22);
    mkdir(to.join("b/in the way"));
    symlink(dir.path(), to.join("d")).expect("symlink");
    let outcome = push(peer.shell().arg("--json"), &from.join(""), &to).code(23);
    for (name, arrives) in [("a", true), ("b", false), ("c", true), ("d/e/f", true)] {
        assert_eq!(same(&from.join(name), &to.join(name)), arrives, "{name}: {outcome}");
    }
    assert!(!dir.path().join("e").exists(), "a symlink was followed: {outcome}");
    assert!(!to.join("d").is_symlink(), "{outcome}");
    assert_no_leftovers(&to);
}

#[test]
fn sources_that_cannot_be_read_fail_and_the_others_arrive() {
    let Some(peer) = Peer::sshd() else { return };
    let Some(account) = Account::new(&which("bash")) else { return };
    let dir = lab::scratch();
    for name in ["tree/a", "tree/secret", "tree/z"] {
        account.keep(name, name.as_bytes());
    }
    run(Command::new("chown").arg("root").arg(account.home.join("tree/secret"))).ok();
    fs::set_permissions(account.home.join("tree/secret"), PermissionsExt::from_mode(0o600)).expect("chmod");
    let to = dir.path().join("to");
    run(peer.shell().arg(on(&account.host(), "tree/")).arg(&to)).code(23).says(&["secret"]);
    assert_eq!(fs::read_to_string(to.join("z")).expect("read"), "tree/z");
    assert!(!to.join("secret").exists());
    run(peer.shell().arg(on(&account.host(), "missing")).arg(dir.path().join("x")))
        .code(23)
        .says(&["missing"]);
    assert!(!dir.path().join("x").exists());
}

#[test]
fn verify_needs_an_agent_and_says_so() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let source = image(dir.path().join("source"), 23);
    push(peer.shell().arg("--verify"), &source, &dir.path().join("to")).code(1).says(&["--agent=push"]);
}

#[test]
fn bad_destinations_are_refused_before_anything_is_sent() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let source = image(dir.path().join("source"), 24);
    let tree = mkdir(dir.path().join("tree"));
    for (from, to) in [(&source, "no/where"), (&tree, "source"), (&source, "no/where/")] {
        push(&mut peer.shell(), from, &dir.path().join(to)).code(3).says(&["peer"]);
    }
    assert_same(&source, &image(dir.path().join("again"), 24));
}

#[test]
fn a_forced_command_is_met_without_a_shell() {
    let dir = lab::scratch();
    let source = image(dir.path().join("source"), 25);
    // Whatever it is asked for, as with command="holesync agent" in authorized_keys.
    let forced = Peer::script(dir.path(), &format!("exec {} agent", shell_word(Path::new(PROGRAM))));
    for (agent, to) in [("auto", "auto"), ("require", "require"), ("none", "none"), ("push", "push")] {
        let (pushed, pulled) = (dir.path().join(to), dir.path().join(format!("{to} back")));
        let command = || {
            let mut command = holesync();
            command.args(["-e", forced.rsh(), "--agent", agent, "--json"]);
            command
        };
        if matches!(agent, "none" | "push") {
            // They want a shell there, and there is none.
            push(&mut command(), &source, &pushed).code(5).says(&["a forced command"]);
            continue;
        }
        let outcome = push(&mut command(), &source, &pushed).ok();
        assert_eq!(outcome.summary()["route"], "agent", "{outcome}");
        assert_same(&source, &pushed);
        run(command().arg(at(&source)).arg(&pulled)).ok();
        assert_same(&source, &pulled);
    }
}

#[test]
fn what_the_far_side_says_out_of_turn_ends_the_run() {
    let dir = lab::scratch();
    let source = image(dir.path().join("source"), 26);
    let to = dir.path().join("to");
    let mark = r"\nholesync shell 1 no unknown Linux x86_64\n";
    for (says, code) in [
        ("base directory 0022 0 nanoseconds yes no no no -\\nlisted\\nnonsense\\n", 12),
        ("base directory 0022\\n", 12),
        ("base directory 9999 0 nanoseconds yes no no no -\\nlisted\\n", 12),
        ("lacks dd\\n", 5),
        ("refused is odd \\033[31m\\n", 3),
        ("fatal is broken\\n", 11),
        ("base directory 0022 0 nanoseconds yes no no no -\\nlisted\\nfailed is odd\\nend\\n", 23),
        ("", 12),
    ] {
        let body = format!("printf '{mark}{says}'; exec cat >/dev/null");
        let peer = Peer::script(dir.path(), &body);
        let outcome = push(&mut peer.shell(), &source, &to).code(code);
        assert!(!outcome.stderr.contains('\u{1b}'), "{outcome}");
    }
    for (says, code) in [
        ("sends what\\n", 12),
        ("sends tar\\n81a4 5 8 1.000000000 0 0 a/b/ .//\\nlisted 0\\nsent\\nno archive", 12),
        ("sends no\\n81a4 x 8 1.000000000 0 0 a/b/ .//\\nlisted 0\\n", 12),
        ("sends no\\n81a4 5 8 1.000000000 0 0 a/b/ .//\\nlisted 0\\nsent\\n123", 12),
        ("sends no\\n81a4 5 8 1.000000000 0 0 a/b/ .//\\nlisted 0\\nsent\\n12345nonsense\\n", 12),
        ("sends gzip\\n81a4 5 0 1.000000000 0 0 a/b/ .//\\nlisted 0\\nsent\\nnot packed", 12),
        ("sends zstd\\n81a4 5 0 1.000000000 0 0 a/b/ .//\\nlisted 0\\nsent\\nnot packed", 12),
        (
            "sends no\\n41ed 5 8 1.000000000 0 0 a/b/ .//\\n81a4 5 8 1.000000000 0 0 a/b/ ./../x//\\nlisted 0\\nend\\n",
            23,
        ),
    ] {
        let body = format!("printf '{mark}{says}'; exec cat >/dev/null");
        let peer = Peer::script(dir.path(), &body);
        run(peer.shell().arg(at("/from/somewhere")).arg(&to)).code(code);
        assert!(!to.is_file(), "{says}");
        assert!(!dir.path().join("x").exists(), "{says}");
    }
    assert_no_leftovers(dir.path());
}

#[test]
fn a_hash_that_is_missing_makes_no_other_block_equal() {
    let dir = lab::scratch();
    let mut rng = Rng(31);
    let (source, to) = (dir.path().join("source"), dir.path().join("to"));
    let layout = Layout::dense("image", 4 * MIB, &mut rng);
    layout.write(&source);
    // The old first block differs; the others are all alike, so that sums could shift unseen.
    let block = fs::read(&source).expect("read")[..MIB].to_vec();
    fs::write(&source, block.repeat(4)).expect("write");
    fs::write(&to, [vec![7; MIB], block.repeat(3)].concat()).expect("write");
    let peer = with_tools(dir.path(), &["sha256sum"], &[("sha256sum", &sums_but_one(dir.path()))]);
    push(peer.shell().arg("-c"), &source, &to).ok();
    assert_same(&source, &to);
}

/// Hashes all that it is given but for the second file: the first is what is tried out.
fn sums_but_one(dir: &Path) -> String {
    let count = shell_word(&dir.join("sums"));
    let sum = which("sha256sum");
    format!("echo >>{count}\n[ $(wc -l <{count}) != 2 ] || exit 1\nexec {} \"$@\"", sum.display())
}

#[test]
fn nothing_is_done_through_a_symlink_that_stands_for_a_directory() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let (one, two, to) = (dir.path().join("one"), dir.path().join("two"), mkdir(dir.path().join("to")));
    let victim = mkdir(dir.path().join("victim"));
    set_mode(&victim, 0o711);
    set_mtime(&victim, 1_000_000_000, 1);
    for path in ["one/d", "one/e", "two/d", "one/file"] {
        let below = mkdir(dir.path().join(path));
        set_mode(&below, 0o777);
        image(below.join("f"), 33);
    }
    for name in ["d", "e"] {
        symlink(&victim, to.join(name)).expect("symlink");
    }
    let before = snapshot(&victim, true);
    run(peer.shell().args([slash(&one), slash(&two), at(&to)])).ok();
    assert_eq!(snapshot(&victim, true), before);
    for name in ["d", "e"] {
        assert!(!to.join(name).is_symlink() && to.join(name).join("f").is_file(), "{name}");
    }
}

#[test]
fn two_dots_mean_what_they_mean_to_the_system() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let source = image(dir.path().join("source"), 34);
    mkdir(dir.path().join("real/sub"));
    mkdir(dir.path().join("q"));
    symlink("../real/sub", dir.path().join("q/link")).expect("symlink");
    push(&mut peer.shell(), &source, &dir.path().join("q/link/../img")).ok();
    assert_same(&source, &dir.path().join("real/img"));
    assert!(!dir.path().join("q/img").exists());
    run(peer.shell().arg(at(slash(&dir.path().join("q/link/..")))).arg(dir.path().join("back"))).ok();
    assert_same(&source, &dir.path().join("back/img"));
}

#[test]
fn a_source_that_is_written_while_it_is_pulled_is_no_success() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let (source, to) = (dir.path().join("source"), dir.path().join("to"));
    Layout::dense("image", 24 * MIB, &mut Rng(35)).write(&source);
    fs::write(&to, "old").expect("write");
    let body =
        "while :; do dd if=/dev/zero of=\"$0\" bs=1 count=1 seek=20000000 conv=notrunc status=none; done";
    let writer = start(Command::new("sh").args(["-c", body]).arg(&source));
    for _ in 0..5 {
        let outcome = run(peer.shell().arg(at(&source)).arg(&to));
        assert_ne!(outcome.code, 0, "{outcome}");
        assert_eq!(fs::read_to_string(&to).expect("read"), "old");
    }
    drop(writer);
    assert_no_leftovers(dir.path());
}

#[test]
fn a_file_that_comes_short_ends_the_run_and_leaves_the_old_one() {
    for (tool, without) in
        [("head", &["tar", "zstd", "gzip"][..]), ("gzip", &["tar", "zstd"]), ("zstd", &["tar"])]
    {
        let dir = lab::scratch();
        let near = mkdir(dir.path().join("near"));
        let (source, before, to) = (dir.path().join("source"), dir.path().join("before"), near.join("to"));
        let layout = Layout::hole("image", 4 * MIB).data(0..MIB, &mut Rng(36));
        layout.write(&source);
        fs::write(&before, "old").expect("write");
        fs::copy(&before, &to).expect("copy");
        let short = format!(
            "{} \"$@\" | dd bs=1000 count=100 iflag=fullblock status=none; exit 1",
            which(tool).display()
        );
        let peer = with_tools(dir.path(), &[without, &[tool]].concat(), &[(tool, &short)]);
        let outcome = run(peer.shell().arg(at(&source)).arg(&to)).code(12);
        assert_untouched(&outcome, &before, &to);
    }
}

#[test]
fn a_listing_that_breaks_off_is_no_listing() {
    for pulls in [false, true] {
        let dir = lab::scratch();
        let (source, to) = (image(dir.path().join("source"), 37), mkdir(dir.path().join("to")));
        let stat = "case $* in *./*) printf '81a4 5 7'; kill -9 $$ ;; esac\n";
        let stat = format!("{stat}exec {} \"$@\"", which("stat").display());
        let peer = with_tools(dir.path(), &["stat"], &[("stat", &stat)]);
        let outcome = if pulls {
            let tree = mkdir(dir.path().join("tree"));
            fs::copy(&source, tree.join("f")).expect("copy");
            run(peer.shell().arg(at(slash(&tree))).arg(&to))
        } else {
            push(&mut peer.shell(), &source, &to)
        };
        if pulls {
            assert_ne!(outcome.code, 0, "{outcome}");
        } else {
            outcome.ok();
            assert_same(&source, &to.join("source"));
        }
    }
}

#[test]
fn more_names_than_are_asked_for_one_by_one_are_compared_all_the_same() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
    for nth in 0..1001 {
        fs::write(from.join(format!("{nth}")), "").expect("write");
    }
    // All but two are there already.
    run(Command::new("cp").arg("-a").arg(from.join(".")).arg(&to)).ok();
    fs::remove_file(to.join("5")).expect("remove");
    fs::write(from.join("6"), "changed").expect("write");
    let outcome = run(peer.shell().arg("--json").arg(slash(&from)).arg(at(&to))).ok();
    assert_eq!(outcome.count("files_sent"), 2, "{outcome}");
    assert_eq!(snapshot(&from, true), snapshot(&to, true));
}

#[test]
fn a_name_that_looks_like_an_answer_is_a_name() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let (from, to) = (mkdir(dir.path().join("from")), dir.path().join("to"));
    for name in ["x\nfatal boo", "x\nlisted", "x\nlisted 0", "x\nrefused y"] {
        fs::write(from.join(name), name).expect("write");
    }
    for _ in 0..2 {
        run(peer.shell().arg(slash(&from)).arg(at(&to))).ok();
        run(peer.shell().arg(at(slash(&to))).arg(dir.path().join("back"))).ok();
    }
    assert_eq!(snapshot(&from, true), snapshot(&to, true));
    assert_eq!(snapshot(&from, true), snapshot(&dir.path().join("back"), true));
}

#[test]
fn permissions_that_are_not_asked_for_stay() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let from = mkdir(dir.path().join("from/d")).parent().expect("a parent").to_path_buf();
    let (file, to) = (image(from.join("d/f"), 38), dir.path().join("to"));
    run(peer.shell().arg(slash(&from)).arg(at(&to))).ok();
    set_mode(&to.join("d"), 0o700);
    set_mode(&to.join("d/f"), 0o600);
    set_mtime(&file, 1_234_567_890, 0);
    for options in [&["--no-perms", "--size-only"][..], &["--no-perms", "-c"], &["--no-perms"]] {
        run(peer.shell().args(options).arg(slash(&from)).arg(at(&to))).ok();
        let mode = |name: &str| fs::metadata(to.join(name)).expect("stat").permissions().mode() & 0o7777;
        assert_eq!((mode("d"), mode("d/f")), (0o700, 0o600), "{options:?}");
    }
    // A setgid bit that the source does not have goes.
    set_mode(&to.join("d"), 0o2755);
    run(peer.shell().arg(slash(&from)).arg(at(&to))).ok();
    assert_eq!(snapshot(&from, true), snapshot(&to, true));
}

#[test]
fn a_directory_that_its_owner_may_not_write_is_filled_again() {
    let Some(peer) = Peer::sshd() else { return };
    let Some(account) = Account::new(&which("dash")) else { return };
    let dir = lab::scratch();
    let below = mkdir(dir.path().join("from/ro"));
    for nth in 0..2 {
        set_mode(&below, 0o755);
        image(below.join("f"), 40 + nth);
        set_mode(&below, 0o555);
        run(peer.shell().arg(slash(&dir.path().join("from"))).arg(on(&account.host(), "to"))).ok();
        assert_same(&below.join("f"), &account.home.join("to/ro/f"));
        let mode = fs::metadata(account.home.join("to/ro")).expect("stat").permissions().mode();
        assert_eq!(mode & 0o7777, 0o555);
    }
}

#[test]
fn a_source_named_like_a_working_file_fails_and_says_so() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let source = image(dir.path().join(".f.holesync.temp"), 42);
    let to = mkdir(dir.path().join("to"));
    push(&mut peer.shell(), &source, &to).code(23).says(&["working file"]);
    run(peer.shell().arg(at(&source)).arg(&to)).code(23).says(&["working file"]);
    assert_no_leftovers(&to);
}

#[test]
fn many_records_for_which_there_is_no_room_are_one_failure() {
    let Some(small) = lab::small() else { return };
    let dir = lab::scratch();
    let source = dir.path().join("source");
    let mut layout = Layout::hole("image", 100 * MIB);
    for at in (0..layout.len()).step_by(MIB) {
        layout = layout.data(at..at + MIB - 4096, &mut Rng(43));
    }
    layout.write(&source);
    let to = small.dir.path().join("to");
    let outcome = push(&mut Peer::pipe(dir.path()).shell(), &source, &to).code(11);
    let outcome = outcome.says(&["no space left for", "could not be transferred"]);
    assert!(!to.exists(), "{outcome}");
    assert_no_leftovers(small.dir.path());
}

#[test]
fn room_is_kept_by_zeros_where_nothing_else_keeps_it() {
    let dir = lab::scratch();
    let source = image(dir.path().join("source"), 44);
    let peer = with_tools(dir.path(), &["fallocate"], &[]);
    let to = dir.path().join("to");
    push(peer.shell().arg("--preallocate"), &source, &to).ok();
    assert_same(&source, &to);
    let allocated = crate::common::check::allocated(&to);
    assert!(allocated >= 3 * MIB as u64, "{allocated}");
}
