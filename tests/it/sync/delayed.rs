//! `--delay-updates`: every file is complete before the first one takes its place. rsync says
//! what the outcome has to be.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::common::check::{assert_no_leftovers, leftovers, taken};
use crate::common::faults::{Direction, Fault, await_pause, resume};
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at};
use crate::common::process::{PROGRAM, agents, holesync, run, signal_agents, start, wait_until};
use crate::common::tree::{Way, assert_trees, change, grow, mkdir, rsync, set_mtime, slash, small};

const WAYS: [Way; 3] = [Way::Local, Way::Push, Way::Pull];
const LIMIT: Duration = Duration::from_secs(30);
/// Files that come before a large one.
const FILES: usize = 12;
const LARGE: usize = 16 << 20;
const DIR: &str = ".~tmp~";

/// A source, and a destination where half of the files are there, older.
fn trees(dir: &Path) -> (PathBuf, PathBuf) {
    let (from, to) = (mkdir(dir.join("from")), mkdir(dir.join("to")));
    for nth in 0..FILES {
        let name = format!("{}/file{nth}", ["sub", "sub/deep", "."][nth % 3]);
        for (tree, content) in [(&from, "new"), (&to, "old")] {
            if *tree == from || nth % 2 == 0 {
                let file = tree.join(&name);
                mkdir(file.parent().expect("a directory").to_path_buf());
                set_mtime(&small(file, &content.repeat(30_000 + nth)), 1000 + (*tree == from) as i64, 0);
            }
        }
    }
    small(to.join("gone"), "gone");
    Layout::dense("large", LARGE, &mut Rng(7)).write(&mkdir(from.join("zz")).join("large"));
    (from, to)
}

/// The content of every file, but for working files.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = walkdir::WalkDir::new(dir).into_iter().flatten();
    let files = entries.filter(|entry| entry.file_type().is_file());
    let plain = files.filter(|entry| !entry.file_name().to_string_lossy().contains(".holesync"));
    plain.map(|entry| (entry.path().into(), fs::read(entry.path()).expect("read"))).collect()
}

fn dirs_left(dir: &Path) -> usize {
    walkdir::WalkDir::new(dir).into_iter().flatten().filter(|entry| entry.file_name() == DIR).count()
}

/// Complete files that wait.
fn waiting(to: &Path) -> usize {
    let entries = walkdir::WalkDir::new(to).into_iter().flatten();
    let is_small = |entry: &walkdir::DirEntry| {
        let len = entry.metadata().map_or(0, |file| file.len());
        entry.file_name().to_string_lossy().contains(".holesync.temp") && (90_000..100_000).contains(&len)
    };
    entries.filter(is_small).count()
}

/// All other files are complete, and the large one has begun to come.
fn is_stalled(to: &Path) -> bool {
    let entries = walkdir::WalkDir::new(to).into_iter().flatten();
    let mut large = entries.filter(|entry| entry.file_name().to_string_lossy().contains("large.holesync"));
    waiting(to) == FILES && large.any(|entry| taken(entry.path()) > 1 << 20)
}

/// A run that comes to a stand in the large file, when all others are complete.
fn stall(way: Way, dir: &TempDir, fault: fn(u64) -> Fault) -> (Command, PathBuf) {
    let (from, to) = (slash(&dir.path().join("from")), slash(&dir.path().join("to")));
    let agent = dir.path().join("holesync");
    std::os::unix::fs::symlink(PROGRAM, &agent).expect("link to the program");
    let direction = if way == Way::Pull { Direction::FromAgent } else { Direction::ToAgent };
    // All small files come to less than 1.5 MiB.
    let peer = fault(6 << 20).peer(dir.path(), direction).with_program(&agent);
    let flags = ["-a", "--delete", "--delay-updates"];
    let limited = ["-a", "--delete", "--delay-updates", "--bwlimit=2M"];
    let flags = if way == Way::Local { &limited[..] } else { &flags };
    (way.command(Some(&peer), flags, &[&from], &to), agent)
}

/// Nothing is seen of a run that is killed, and the next one sends little more than the rest.
#[test]
fn nothing_is_in_its_place_before_all_is_there() {
    for way in WAYS {
        let dir = lab::scratch();
        let (from, to) = trees(dir.path());
        let before = contents(&to);
        let (mut command, agent) = stall(way, &dir, Fault::Stall);
        let running = start(&mut command);
        assert!(wait_until(LIMIT, || is_stalled(&to)), "{way:?}: {} wait", waiting(&to));
        assert!(!running.has_ended(), "{way:?}");
        assert_eq!(contents(&to), before, "{way:?}");
        signal_agents(&agent, Signal::SIGKILL);
        running.signal(Signal::SIGKILL);
        assert_ne!(running.finish_within(LIMIT).code, 0);
        assert!(wait_until(LIMIT, || agents(&agent).is_empty()), "an agent lives on");
        assert_eq!(contents(&to), before, "{way:?}");
        assert_eq!(waiting(&to), FILES);
        let modes = walkdir::WalkDir::new(&to).into_iter().flatten();
        let working = modes.filter(|entry| entry.file_name().to_string_lossy().contains(".holesync"));
        assert!(working.into_iter().all(|entry| entry.metadata().expect("stat").mode() & 0o777 == 0o600));
        let flags = ["-a", "--delete", "--delay-updates", "--json"];
        let mut next = way.command(Some(&Peer::pipe(dir.path())), &flags, &[&slash(&from)], &slash(&to));
        let sent = run(&mut next).ok().count("sent_data_bytes");
        assert!(sent <= LARGE as u64, "{way:?}: {sent} sent, the small files again");
        assert_same_trees(dir.path(), "from/", "to/", &format!("{way:?}"));
        assert_no_leftovers(dir.path());
        assert_eq!(dirs_left(&to), 0, "{way:?}");
    }
}

#[track_caller]
fn assert_same_trees(dir: &Path, from: &str, to: &str, what: &str) {
    let args = ["-anH", "--delete", "-c", "-i", from, to];
    let output = Command::new("rsync").current_dir(dir).args(args).output().expect("run rsync");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{what}");
}

/// What changes while it waits, here or there, is a failure of its own: nothing is lost, nothing
/// is removed, and the next run makes it right.
#[test]
fn what_changes_meanwhile_is_left_alone() {
    for way in [Way::Push, Way::Pull] {
        let dir = lab::scratch();
        let (_, to) = trees(dir.path());
        fs::hard_link(dir.path().join("from/sub/file0"), dir.path().join("from/sub/zz other")).expect("link");
        let (mut command, _) = stall(way, &dir, Fault::Pause);
        let running = start(command.arg("-H"));
        await_pause(dir.path());
        assert!(wait_until(LIMIT, || is_stalled(&to)), "{way:?}: {} wait", waiting(&to));
        small(to.join("sub/file0"), "changed meanwhile");
        small(to.join("sub/deep/file1"), "came meanwhile");
        let planted = to.join(DIR).join(".file2.holesync.temp");
        let length = fs::metadata(&planted).expect("it waits").len();
        fs::write(&planted, vec![b'x'; length as usize]).expect("write");
        resume(dir.path());
        let outcome = running.finish_within(LIMIT).code(23);
        outcome.says(&[
            "changed while it was being updated",
            "what had been put together for it",
            "other name",
        ]);
        let read = |name: &str| fs::read_to_string(to.join(name)).expect("read");
        assert_eq!(read("sub/file0"), "changed meanwhile");
        assert_eq!(read("sub/deep/file1"), "came meanwhile");
        assert!(read("file2").starts_with("old") && read("gone") == "gone");
        assert!(read("sub/file3").starts_with("new") && read("file5").starts_with("new"));
        assert!(!to.join("sub/zz other").exists());
        let flags = ["-aH", "--delete", "--delay-updates"];
        let (from, peer) = (slash(&dir.path().join("from")), Peer::pipe(dir.path()));
        run(&mut way.command(Some(&peer), &flags, &[&from], &slash(&to))).ok();
        assert_same_trees(dir.path(), "from/", "to/", &format!("{way:?}"));
        assert_eq!((leftovers(dir.path()), dirs_left(&to)), (Vec::new(), 0));
    }
}

/// With all that happens around it.
#[test]
fn the_outcome_is_that_of_rsync() {
    if !lab::is_root() {
        return;
    }
    for way in WAYS {
        for flags in [
            &["-aH"][..],
            &["-aHAX", "--delete"],
            &["-aH", "--delete-before"],
            &["-aH", "--delete-during"],
            &["-aHI", "--partial-dir=.part"],
            &["-aH", "--delete", "--partial-dir=/var/tmp"],
        ] {
            let dir = lab::scratch();
            let (from, work) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("work")));
            let work = format!("--partial-dir={}", work.display());
            let flags: Vec<_> =
                flags.iter().map(|flag| flag.replace("--partial-dir=/var/tmp", &work)).collect();
            let mut rng = Rng(11);
            grow(&from, &mut rng);
            fs::hard_link(from.join("images/dense"), from.join("names/other name")).expect("link");
            for who in ["ours", "theirs"] {
                let to = mkdir(dir.path().join(who)).join("to");
                assert_eq!(rsync(dir.path(), &["-aH", "from/", to.to_str().expect("plain")]), 0);
                // Names of one file at the destination, which are several in the source.
                let (one, two) = (to.join("names/.hidden"), to.join("names/..."));
                fs::remove_file(&two).expect("remove");
                fs::hard_link(&one, &two).expect("link");
                small(to.join("gone"), "gone");
                for name in ["names", "."] {
                    set_mtime(&to.join(name), 1_000_000, 0);
                }
            }
            change(&from, &mut rng);
            small(from.join("names/.hidden"), "another");
            small(from.join("names/..."), "a third");
            let ours = slash(&dir.path().join("ours/to"));
            let args: Vec<&str> = flags.iter().map(String::as_str).chain(["--delay-updates"]).collect();
            let Some(outcome) = way.run(&args, &[&slash(&from)], &ours) else { return };
            outcome.ok();
            // There two files of one name have one place to rsync.
            let args = args.iter().filter(|arg| !arg.starts_with("--partial-dir=/"));
            let args = args.map(OsStr::new).collect::<Vec<_>>();
            let theirs = [&args[..], &[OsStr::new("from/"), OsStr::new("theirs/to/")]].concat();
            assert_eq!(rsync(dir.path(), &theirs), 0, "rsync {flags:?}");
            let what = format!("{way:?} {flags:?}");
            assert_trees(&dir.path().join("ours"), &dir.path().join("theirs"), true, &what);
            assert_eq!(fs::read_dir(dir.path().join("work")).expect("list").count(), 0, "{what}");
        }
    }
}

/// What is replaced or removed is kept as without it.
#[test]
fn what_is_replaced_in_the_end_is_kept() {
    for way in WAYS {
        for flags in [&["-b", "--delete"][..], &["--backup-dir=../kept", "--suffix=.old"]] {
            let dir = lab::scratch();
            let (from, to) = trees(dir.path());
            let (ours, theirs) = (mkdir(dir.path().join("ours")), mkdir(dir.path().join("theirs")));
            for who in [&ours, &theirs] {
                run(Command::new("cp").arg("-a").arg(&to).arg(who.join("to"))).ok();
            }
            let args = [&["-a", "--delay-updates"][..], flags].concat();
            let Some(outcome) = way.run(&args, &[&slash(&from)], &slash(&ours.join("to"))) else { return };
            outcome.ok();
            assert_eq!(rsync(dir.path(), &[&args[..], &["from/", "theirs/to/"]].concat()), 0);
            assert_trees(&ours, &theirs, true, &format!("{way:?} {flags:?}"));
        }
    }
}

/// A single file, and a user who is not root.
#[test]
fn a_user_may_have_it_so() {
    if !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    let (from, to) = trees(dir.path());
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(dir.path())).ok();
    run(Command::new("chown").args(["-R", "65534:65534"]).arg(&to)).ok();
    let program = lab::install(Path::new(PROGRAM), dir.path());
    let user = |args: &[&OsStr]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        run(command.args(["-rlpt", "--delay-updates", "--delete"]).args(args)).ok();
    };
    user(&[&slash(&from), &slash(&to)]);
    let args = ["-rlptn", "--delete", "-c", "-i", "from/", "to/"];
    let output = Command::new("rsync").current_dir(dir.path()).args(args).output().expect("run rsync");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert_eq!(dirs_left(&to), 0);
    let single = to.join("single");
    for _ in 0..2 {
        run(holesync().args(["-aI", "--delay-updates"]).args([&from.join("file2"), &single])).ok();
    }
    assert_eq!(fs::read(&single).expect("read"), fs::read(from.join("file2")).expect("read"));
    assert_eq!((leftovers(&to), dirs_left(&to)), (Vec::new(), 0));
}

#[test]
fn it_is_refused_where_it_cannot_be() {
    let dir = lab::scratch();
    let (from, to) = (small(dir.path().join("from"), "new"), dir.path().join("to"));
    for (flags, parts) in [
        (&["--inplace"][..], &["--inplace", "--delay-updates"][..]),
        (&["--commit=inplace"], &["--inplace", "--delay-updates"]),
        (&["--remove-source-files"], &["--delay-updates", "--remove-source-files"]),
        (&["--through=cat"], &["--through", "--delay-updates"]),
    ] {
        run(holesync().arg("--delay-updates").args(flags).args([&from, &to])).code(1).says(parts);
    }
    let Some(peer) = Peer::sshd() else { return };
    let outcome = run(peer.shell().args(["-a", "--delay-updates"]).arg(&from).arg(at(&to)));
    outcome.code(1).says(&["--delay-updates needs a holesync"]);
    run(holesync().args(["--delay-updates", "--no-delay-updates", "--inplace"]).args([&from, &to])).ok();
}
