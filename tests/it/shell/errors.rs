//! What is said where something fails and the far side has only a shell: the file with its host,
//! what failed, no line of a tool; and the other files go on.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::account::which;
use crate::common::check::{assert_no_leftovers, assert_same, leftovers};
use crate::common::faults::{Direction, Fault, await_pause, can_trace, resume};
use crate::common::lab::{self, Mounted};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at, shell_word};
use crate::common::process::{Outcome, PROGRAM, run, start, wait_until};
use crate::common::tree::{mkdir, slash};

const MIB: usize = 1 << 20;
const SHELLS: [&str; 3] = ["dash", "bash", "busybox"];

/// A far side whose shell is this one; that of BusyBox has nothing but the tools of BusyBox.
/// `wrap` stands before the shell.
fn far_side(dir: &Path, shell: &str, wrap: &str) -> Peer {
    Peer::script(dir, &far_command(dir, shell, wrap))
}

/// What its script runs.
fn far_command(dir: &Path, shell: &str, wrap: &str) -> String {
    let bin = mkdir(dir.join(format!("bin-{shell}")));
    let program = which(shell);
    symlink(&program, bin.join("sh")).expect("symlink");
    if shell == "busybox" {
        for applet in run(Command::new(&program).arg("--list")).ok().stdout.lines() {
            // One of them is the shell.
            let _ = symlink(&program, bin.join(applet));
        }
    }
    let rest = if shell == "busybox" { "" } else { ":$PATH" };
    let strace = which("strace");
    let wrap = wrap.replace("strace", strace.to_str().expect("a path"));
    format!("export PATH={bin}{rest}\nexec {wrap} {bin}/sh -c \"$command\"", bin = shell_word(&bin))
}

/// Whether no line comes from a tool as it is.
#[track_caller]
fn assert_in_words_of_the_job(outcome: &Outcome) {
    for line in outcome.stderr.lines() {
        assert!(line.starts_with("holesync: "), "{line:?} in {outcome}");
        assert!(!line.contains("peer: peer"), "the host twice: {outcome}");
    }
}

/// Three images, the one in the middle of 90 MiB where it is `large`.
fn three(dir: &Path, large: bool) -> PathBuf {
    let from = mkdir(dir.join("from"));
    let mut rng = Rng(1);
    for (name, len) in [("a", MIB / 2), ("b", if large { 90 * MIB } else { MIB / 2 }), ("c", MIB / 2)] {
        Layout::dense(name, len, &mut rng).write(&from.join(name));
    }
    from
}

/// What is wrong with the destination.
#[derive(Debug, Clone, Copy)]
enum Wrong {
    Full,
    ReadOnly,
    /// A file that may not be replaced.
    Immutable,
    /// Storage fails when it is waited for.
    Storage,
    /// A directory in the place of a file.
    Directory,
}

/// What is wrong, the options, the code, what is said, and which files arrive all the same.
type Row = (Wrong, &'static [&'static str], i32, &'static [&'static str], &'static [&'static str]);

#[test]
fn what_cannot_be_written_there_is_named_and_the_rest_arrives() {
    if !lab::is_root() {
        return;
    }
    let table: [Row; 7] = [
        (
            Wrong::Full,
            &[],
            11,
            &["no space left for {}/b", "it is as it was before", "starts anew"],
            &["a", "c"],
        ),
        (Wrong::Full, &["--inplace"], 11, &["no space left for {}/b"], &["a", "c"]),
        (
            Wrong::ReadOnly,
            &[],
            23,
            &["cannot write {}/a: the file system is read-only", "cannot write {}/c"],
            &[],
        ),
        (Wrong::Immutable, &[], 23, &["cannot replace {}/b: Operation not permitted"], &["a", "c"]),
        (Wrong::Immutable, &["--inplace"], 23, &["cannot write in place {}/b: Operation not"], &["a", "c"]),
        (Wrong::Storage, &[], 11, &["cannot write {}/a: I", "cannot write {}/c: I", "3 of the files"], &[]),
        (Wrong::Directory, &[], 23, &["{}/b: there is a directory"], &["a", "c"]),
    ];
    for shell in SHELLS {
        for (wrong, options, code, says, arrive) in table {
            let dir = lab::scratch();
            let from = three(dir.path(), matches!(wrong, Wrong::Full));
            let small = if let Wrong::Full = wrong { lab::small() } else { None };
            let mounted = if let Wrong::ReadOnly = wrong {
                let mounted = Mounted::new(8, &["mkfs.ext4", "-q"], &["-o", "loop"]);
                run(Command::new("mount").args(["-o", "remount,ro"]).arg(mounted.path())).ok();
                Some(mounted)
            } else {
                None
            };
            let to = match (&small, &mounted) {
                (Some(small), _) => small.dir.path().to_path_buf(),
                (_, Some(mounted)) => mounted.path().to_path_buf(),
                _ => mkdir(dir.path().join("to")),
            };
            let mut wrap = "";
            match wrong {
                Wrong::Full | Wrong::ReadOnly => {}
                Wrong::Immutable => fs::write(to.join("b"), "old").expect("write"),
                Wrong::Storage => {
                    wrap = "strace -f -qq -o /dev/null -e trace=fsync -e inject=fsync:error=EIO --"
                }
                Wrong::Directory => fs::write(mkdir(to.join("b")).join("inner"), "old").expect("write"),
            }
            if let Wrong::Immutable = wrong {
                run(Command::new("chattr").arg("+i").arg(to.join("b"))).ok();
            }
            let peer = far_side(dir.path(), shell, wrap);
            let outcome = run(peer.shell().args(options).arg("-r").arg(slash(&from)).arg(at(&to)));
            if let Wrong::Immutable = wrong {
                run(Command::new("chattr").arg("-i").arg(to.join("b"))).ok();
            }
            let outcome = outcome.code(code);
            for part in says {
                let part = part.replace("{}", to.to_str().expect("a path"));
                assert!(
                    outcome.stderr.contains(&part),
                    "{shell} {wrong:?}: {part:?} is missing in {outcome}"
                );
            }
            let last = outcome.stderr.lines().last().expect("a line");
            let first = if let Wrong::ReadOnly | Wrong::Storage = wrong { "a" } else { "b" };
            let first = format!("peer:{}", to.join(first).display());
            assert!(
                last.contains(&first) && last.contains("could not be transferred"),
                "{shell} {wrong:?}: {outcome}"
            );
            assert_in_words_of_the_job(&outcome);
            for name in arrive {
                assert!(to.join(name).exists(), "{shell} {wrong:?}: {name} is missing: {outcome}");
                assert_same(&from.join(name), &to.join(name));
            }
            assert_no_leftovers(&to);
        }
    }
}

/// The program as a user without any rights, from and to whom nothing else is kept.
fn as_nobody(program: &Path, peer: &Peer) -> Command {
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program);
    nobody.args(["-e", peer.rsh(), "--agent=none"]);
    nobody
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, PermissionsExt::from_mode(0o777)).expect("chmod");
}

#[test]
fn a_directory_without_permission_is_named() {
    if !lab::is_root() {
        return;
    }
    for shell in SHELLS {
        let dir = lab::scratch();
        open_to_all(dir.path());
        let program = lab::install(PROGRAM.as_ref(), dir.path());
        let from = three(dir.path(), false);
        fs::write(mkdir(from.join("d")).join("e"), "e").expect("write");
        let to = mkdir(dir.path().join("to"));
        open_to_all(&mkdir(to.join("d")));
        let peer = far_side(dir.path(), shell, "");
        let outcome = run(as_nobody(&program, &peer).arg("-r").arg(slash(&from)).arg(at(&to))).code(23);
        let path = |name: &str| to.join(name).to_str().expect("a path").to_owned();
        let outcome = outcome.says(&[
            &format!("peer: cannot create the temp file of {}: Permission denied", path("a")),
            &format!("peer: cannot create the temp file of {}: Permission denied", path("c")),
            "3 of the files could not be transferred",
        ]);
        assert_in_words_of_the_job(&outcome);
        assert_eq!(fs::read_to_string(to.join("d/e")).expect("read"), "e");
        // A directory that would have to be made is the destination as a whole.
        let missing = to.join("new");
        let outcome = run(as_nobody(&program, &peer).arg("-r").arg(slash(&from)).arg(at(&missing))).code(3);
        let outcome =
            outcome.says(&[&format!("cannot create the directory {}: Permission denied", missing.display())]);
        assert_in_words_of_the_job(&outcome);
    }
}

#[test]
fn what_cannot_be_read_there_is_named_and_the_rest_arrives() {
    if !lab::is_root() {
        return;
    }
    for shell in SHELLS {
        let dir = lab::scratch();
        open_to_all(dir.path());
        let program = lab::install(PROGRAM.as_ref(), dir.path());
        let from = three(dir.path(), false);
        let locked = mkdir(from.join("it's locked"));
        for path in [&locked, &from.join("b")] {
            fs::set_permissions(path, PermissionsExt::from_mode(0o000)).expect("chmod");
        }
        let to = mkdir(dir.path().join("to"));
        open_to_all(&to);
        let peer = far_side(dir.path(), shell, "");
        let outcome = run(as_nobody(&program, &peer).arg("-r").arg(at(slash(&from))).arg(&to)).code(23);
        let outcome = outcome.says(&[
            &format!("peer: cannot read {}: Permission denied", locked.display()),
            &format!("peer: cannot read {}: Permission denied", from.join("b").display()),
            "2 of the files could not be transferred",
        ]);
        assert_in_words_of_the_job(&outcome);
        for name in ["a", "c"] {
            assert_same(&from.join(name), &to.join(name));
        }
        assert_no_leftovers(&to);
        let missing = from.join("missing");
        let outcome = run(peer.shell().arg(at(&missing)).arg(&to)).code(23);
        let outcome =
            outcome.says(&[&format!("peer: cannot read {}: No such file or directory", missing.display())]);
        assert_in_words_of_the_job(&outcome);
    }
}

#[test]
fn what_vanishes_there_is_named_and_the_rest_arrives() {
    // That of BusyBox may run its own tools, whatever is in its PATH.
    for shell in ["dash", "bash"] {
        let dir = lab::scratch();
        let from = three(dir.path(), false);
        let to = mkdir(dir.path().join("to"));
        let bin = mkdir(dir.path().join("gone"));
        // The last one goes when everything is listed and the first one is read.
        let listed = run(Command::new("find").arg(&from).args(["-type", "f"])).ok();
        let last = PathBuf::from(listed.stdout.lines().last().expect("a name"));
        let gone = shell_word(&last);
        let text = format!("#!/bin/sh\nrm -f {gone}\nexec {} \"$@\"\n", which("head").display());
        lab::script(&bin.join("head"), text);
        let peer = far_side(dir.path(), shell, &format!("env PATH={}:$PATH", shell_word(&bin)));
        let outcome = run(peer.shell().arg("-r").arg(at(slash(&from))).arg(&to)).code(24);
        let outcome = outcome.says(&[&format!("peer: {} vanished before it was read", last.display())]);
        assert_in_words_of_the_job(&outcome);
        for name in ["a", "b", "c"].into_iter().filter(|name| from.join(name) != last) {
            assert_same(&from.join(name), &to.join(name));
        }
        assert_no_leftovers(&to);
    }
}

/// How a file comes: the shell, the tools that it does not have, and whether the file has a hole.
const WAYS: [(&str, &[&str], bool); 6] = [
    ("dash", &[], false),
    ("bash", &[], true),
    ("dash", &["tar"], true),
    ("dash", &["tar", "zstd"], true),
    ("busybox", &[], false),
    ("busybox", &[], true),
];

/// Three images of which that in the middle is of 16 MiB, and the old one in its place.
fn three_and_old(dir: &Path, sparse: bool) -> (PathBuf, PathBuf, PathBuf) {
    let from = three(dir, false);
    let (to, old) = (mkdir(dir.join("to")), dir.join("old"));
    let mut rng = Rng(2);
    let layout = Layout::hole("b", if sparse { 17 * MIB } else { 16 * MIB });
    layout.data(0..16 * MIB, &mut rng).write(&from.join("b"));
    Layout::dense("old", 18 * MIB, &mut rng).write(&old);
    fs::copy(&old, to.join("b")).expect("copy");
    (from, to, old)
}

/// What the script of a far side of such a way runs.
fn far_way(dir: &Path, (shell, without, _): (&str, &[&str], bool), wrap: &str) -> String {
    let command = far_command(dir, shell, wrap);
    if without.is_empty() {
        return command;
    }
    let bin = dir.join(format!("bin-{shell}"));
    for tool in ["cat", "find", "grep", "gzip", "head", "readlink", "stat", "tar", "uname", "zstd"] {
        if !without.contains(&tool) {
            symlink(which(tool), bin.join(tool)).expect("symlink");
        }
    }
    command.replace(":$PATH", "")
}

#[test]
fn what_gets_shorter_there_while_it_is_read_is_named_and_the_rest_arrives() {
    for way in WAYS {
        for (options, left) in [(&["-r"][..], 2 * MIB), (&["-r"], 5 * MIB), (&["-r", "--inplace"], 2 * MIB)] {
            let dir = lab::scratch();
            let (from, to, old) = three_and_old(dir.path(), way.2);
            let command = format!("({})", far_way(dir.path(), way, ""));
            let slow = Fault::Pause(3 * MIB as u64).pipeline(dir.path(), Direction::FromAgent, &command);
            let peer = Peer::script(dir.path(), &slow);
            let pull = start(peer.shell().args(options).arg(at(slash(&from))).arg(&to));
            await_pause(dir.path());
            let source = fs::File::options().write(true).open(from.join("b")).expect("open");
            source.set_len(left as u64).expect("cut");
            resume(dir.path());
            let path = from.join("b");
            let outcome = pull.finish().code(23).says(&[
                &format!("peer: {}: changed while it was read; send a snapshot", path.display()),
                &format!("peer:{} could not be transferred", path.display()),
            ]);
            assert_in_words_of_the_job(&outcome);
            for name in ["a", "c"] {
                assert_same(&from.join(name), &to.join(name));
            }
            if options.contains(&"--inplace") {
                // What did not come takes no place; some was on its way.
                let read = |path: &Path| fs::read(path).expect("read").split_off(15 * MIB);
                assert!(read(&to.join("b")) == read(&old), "{way:?}");
            } else {
                assert_same(&old, &to.join("b"));
            }
            assert_no_leftovers(&to);
        }
    }
}

#[test]
fn what_cannot_be_read_to_its_end_there_is_named_and_the_rest_arrives() {
    if !can_trace() {
        return;
    }
    for way in WAYS {
        let dir = lab::scratch();
        let (from, to, old) = three_and_old(dir.path(), way.2);
        let path = from.join("b");
        let calls = "read,pread64,sendfile,splice,copy_file_range";
        let wrap = format!(
            "strace -f -qq -o /dev/null -P {} -e trace={calls} -e inject={calls}:error=EIO:when=3+ --",
            shell_word(&path)
        );
        let peer = Peer::script(dir.path(), &far_way(dir.path(), way, &wrap));
        let outcome = run(peer.shell().arg("-r").arg(at(slash(&from))).arg(&to));
        let outcome = outcome.code(11).says(&[
            &format!("peer: cannot read {}: Input/output error", path.display()),
            &format!("peer:{} could not be transferred", path.display()),
        ]);
        assert_in_words_of_the_job(&outcome);
        for name in ["a", "c"] {
            assert_same(&from.join(name), &to.join(name));
        }
        assert_same(&old, &to.join("b"));
        assert_no_leftovers(&to);
    }
}

/// How a run is stopped while the large one of three files is under way.
#[derive(Debug, Clone, Copy)]
enum Stopped {
    By(Signal),
    /// The line is cut.
    Cut,
}

#[test]
fn a_run_that_is_stopped_says_what_is_kept_and_what_starts_anew() {
    for stopped in [Stopped::By(Signal::SIGINT), Stopped::By(Signal::SIGTERM), Stopped::Cut] {
        for pull in [false, true] {
            let dir = lab::scratch();
            let (from, to, old) = three_and_old(dir.path(), false);
            let direction = if pull { Direction::FromAgent } else { Direction::ToAgent };
            let paths = match pull {
                true => [at(slash(&from)), to.clone().into()],
                false => [slash(&from), at(&to)],
            };
            let (code, what, outcome) = match stopped {
                Stopped::By(signal) => {
                    let peer = Fault::Pause(3 * MIB as u64).peer(dir.path(), direction);
                    let running = start(peer.shell().arg("-r").args(&paths));
                    await_pause(dir.path());
                    running.signal(signal);
                    assert!(wait_until(Duration::from_secs(20), || running.has_ended()));
                    // The way to the far side ends then, too, as ssh does.
                    resume(dir.path());
                    assert!(wait_until(Duration::from_secs(20), || pull || leftovers(&to).is_empty()));
                    (20, "interrupted; ", running.finish())
                }
                Stopped::Cut => {
                    let peer = Fault::Cut(3 * MIB as u64).peer(dir.path(), direction);
                    (12, "peer closed the connection", run(peer.shell().arg("-r").args(&paths)))
                }
            };
            let outcome = outcome.code(code).says(&[
                what,
                "the old file is whole",
                "the file that was under way starts anew, and complete ones are not sent again",
            ]);
            assert!(!outcome.stderr.contains("goes on"), "{outcome}");
            let is_clean = || pull || leftovers(&to).is_empty();
            assert!(wait_until(Duration::from_secs(20), is_clean), "{outcome}");
            assert_same(&old, &to.join("b"));
            let complete = ["a", "c"].into_iter().filter(|name| to.join(name).exists()).count() as u64;
            let again = run(Peer::pipe(dir.path()).shell().args(["-r", "--json"]).args(&paths)).ok();
            assert_eq!(again.count("files_sent"), 3 - complete, "{again}");
            assert_same(&from.join("b"), &to.join("b"));
            assert_no_leftovers(&to);
        }
    }
}

#[test]
fn a_disk_that_is_too_small_is_told_before() {
    let Some(small) = lab::small() else { return };
    for (shell, has_stat) in [("dash", true), ("dash", false), ("bash", true), ("busybox", true)] {
        let dir = lab::scratch();
        let from = three(dir.path(), true);
        let command = far_command(dir.path(), shell, "");
        if !has_stat {
            let stat = dir.path().join(format!("bin-{shell}/stat"));
            let real = which("stat");
            let text = format!("#!/bin/sh\n[ \"$1\" != -f ] || exit 1\nexec {} \"$@\"\n", real.display());
            lab::script(&stat, text);
        }
        let peer = Peer::script(dir.path(), &command);
        let to = small.dir.path();
        let outcome = run(peer.shell().arg("-r").arg(slash(&from)).arg(at(to))).code(11);
        let said = outcome.says(&["MiB are free there", "no space left for"]).stderr;
        let warning = format!("holesync: peer: {}/b will need up to 90.00 MiB, and ", to.display());
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines[0].starts_with(&warning), "{shell}: {said}");
        assert!(!said.contains("/a will need"), "{shell}: {said}");
        for name in ["a", "c"] {
            fs::remove_file(to.join(name)).expect("remove");
        }
    }
}
