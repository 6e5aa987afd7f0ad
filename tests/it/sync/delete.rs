//! What the source does not have is removed, where that was asked for: held against what rsync
//! removes, and what stays whatever was asked for.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::common::lab;
use crate::common::layout::Rng;
use crate::common::process::{Outcome, run};
use crate::common::tree::{
    WAYS, Way, assert_trees, change, grow, mkdir, rsync, set_mode, set_mtime, slash, small, snapshot,
};
use crate::common::users::Common;

const TIMES: [&str; 5] =
    ["--delete", "--delete-before", "--delete-during", "--delete-after", "--delete-delay"];

/// Adds what the source does not have, at random places.
fn litter(dir: &Path, rng: &mut Rng) {
    let directories = walkdir::WalkDir::new(dir).sort_by_file_name().into_iter().filter_map(Result::ok);
    let directories = directories.filter(|entry| entry.file_type().is_dir()).collect::<Vec<_>>();
    for (n, directory) in directories.iter().enumerate() {
        let at = |kind: &str| directory.path().join(format!("{kind} of another {n}"));
        if rng.chance(40) {
            small(at("file"), "left");
        }
        if rng.chance(20) {
            symlink("/etc", at("link")).expect("symlink");
        }
        if rng.chance(20) {
            nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        }
        if rng.chance(20) {
            let inner = mkdir(at("dir"));
            small(mkdir(inner.join("deep")).join("-rf"), "left");
            small(inner.join("line\nbreak"), "left");
            symlink(dir, inner.join("up")).expect("symlink");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to)).ok();
}

/// What a run says that it removes.
fn deleted(stdout: &str) -> BTreeSet<String> {
    stdout.lines().filter_map(|line| line.strip_prefix("deleting ")).map(str::to_owned).collect()
}

#[test]
fn what_the_source_does_not_have_goes_as_with_rsync() {
    for (seed, (way, when)) in (1..)
        .zip(WAYS.into_iter().filter(|way| way.has_agent()).flat_map(|way| TIMES.map(|when| (way, when))))
    {
        let what = format!("{way:?} {when}, seed {seed}");
        let (dir, mut rng) = (lab::scratch(), Rng(seed));
        let dir = dir.path();
        let from = mkdir(dir.join("from"));
        grow(&from, &mut rng);
        copy(&from, &dir.join("ours"));
        litter(&dir.join("ours"), &mut rng);
        change(&from, &mut rng);
        copy(&dir.join("ours"), &dir.join("theirs"));
        let before = snapshot(&dir.join("ours"), true);
        let ours = slash(&dir.join("ours"));
        let dry = way.run(&["-a", "-nv", when], &[&slash(&from)], &ours);
        let Some(dry) = dry else { return };
        assert_eq!(snapshot(&dir.join("ours"), true), before, "{what}: a dry run changed something");
        let done = way.run(&["-av", when], &[&slash(&from)], &ours).expect("as before").ok();
        let args = ["-aS", when].map(OsStr::new);
        assert_eq!(rsync(dir, &[&args[..], &[&slash(&from), OsStr::new("theirs/")]].concat()), 0, "rsync");
        assert_trees(&dir.join("ours"), &dir.join("theirs"), true, &what);
        let removed = deleted(&done.stdout);
        assert!(removed.len() > 3, "{what}: {removed:?}");
        assert_eq!(deleted(&dry.ok().stdout), removed, "{what}");
        let again = way.run(&["-a", "--json", when], &[&slash(&from)], &ours).expect("as before").ok();
        assert_eq!(again.count("files_deleted"), 0, "{what}");
    }
}

#[test]
fn directories_of_several_sources_have_what_any_of_them_has() {
    for (way, when) in WAYS.into_iter().filter(|way| way.has_agent()).zip(TIMES) {
        let dir = lab::scratch();
        let dir = dir.path();
        for (source, names) in [("a", ["both/a", "one/x"]), ("b", ["both/b", "two/y"])] {
            for name in names {
                let path = dir.join(source).join(name);
                fs::create_dir_all(path.parent().expect("a parent")).expect("create directories");
                small(path, name);
            }
        }
        small(dir.join("single"), "single");
        let to = mkdir(dir.join("to"));
        for gone in ["both", "one", "three"] {
            small(mkdir(to.join(gone)).join("gone"), "");
        }
        let sources = [slash(&dir.join("a")), slash(&dir.join("b")), dir.join("single").into_os_string()];
        let sources = sources.iter().map(|source| source.as_os_str()).collect::<Vec<_>>();
        let Some(outcome) = way.run(&["--json", when], &sources, &slash(&to)) else { return };
        assert_eq!(outcome.ok().count("files_deleted"), 4, "{way:?} {when}");
        let left = walkdir::WalkDir::new(&to)
            .sort_by_file_name()
            .into_iter()
            .map(|entry| entry.expect("walk").path().strip_prefix(&to).expect("below").display().to_string());
        let expected = ["", "both", "both/a", "both/b", "one", "one/x", "single", "two", "two/y"];
        assert_eq!(left.collect::<Vec<_>>(), expected, "{way:?} {when}");
    }
}

/// Beside a directory that was named without a slash, nothing is the source's to speak of.
#[test]
fn nothing_goes_beside_what_was_sent() {
    for way in WAYS.into_iter().filter(|way| way.has_agent()) {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
        small(from.join("x"), "x");
        small(mkdir(to.join("from")).join("gone"), "");
        small(to.join("beside"), "");
        let Some(outcome) = way.run(&["--delete"], &[from.as_os_str()], &slash(&to)) else { return };
        outcome.ok();
        assert!(to.join("beside").exists() && !to.join("from/gone").exists(), "{way:?}");
        let single = way.run(&["--delete"], &[from.join("x").as_os_str()], to.join("beside").as_os_str());
        single.expect("as before").ok();
        assert!(to.join("from/x").exists(), "{way:?}");
    }
}

#[test]
fn without_a_holesync_there_a_deletion_is_refused() {
    for way in [Way::PushShell, Way::PullShell] {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
        small(to.join("stays"), "");
        let Some(outcome) = way.run(&["--delete"], &[&slash(&from)], &slash(&to)) else { return };
        outcome.code(1).says(&["--delete needs a holesync on"]);
        assert!(to.join("stays").exists());
    }
}

/// What cannot be read may be there: nothing is removed, unless that is asked for.
#[test]
fn nothing_goes_when_something_failed() {
    if !lab::is_root() {
        return;
    }
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    for way in [Way::Local, Way::Push, Way::Pull] {
        for when in ["--delete", "--delete-before"] {
            let common = Common::new();
            let (from, to) = (mkdir(common.dir().join("from")), mkdir(common.dir().join("to")));
            small(from.join("x"), "x");
            small(mkdir(from.join("closed")).join("y"), "y");
            set_mode(&from.join("closed"), 0o700);
            for dir in [&to, &mkdir(to.join("closed"))] {
                nix::unistd::chown(dir, Some(65534.into()), Some(65534.into())).expect("chown");
            }
            small(to.join("closed/y"), "y");
            small(to.join("gone"), "");
            let run = |flags: &[&str]| common.run(&user, way, flags, &from.join(""), &to.join(""));
            run(&[when]).code(23).says(&["nothing more was removed", "--ignore-errors"]);
            assert!(to.join("gone").exists() && to.join("closed/y").exists(), "{way:?} {when}");
            run(&[when, "--ignore-errors"]).code(23);
            assert!(!to.join("gone").exists(), "{way:?} {when}");
            assert!(to.join("closed/y").exists(), "{way:?} {when}: what could not be read");
        }
    }
}

/// As with rsync, whoever owns a directory need not open it first.
#[test]
fn a_directory_that_its_owner_closed_goes() {
    if !lab::is_root() {
        return;
    }
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    for way in [Way::Local, Way::Push, Way::Pull] {
        let common = Common::new();
        let (from, to) = (mkdir(common.dir().join("from")), mkdir(common.dir().join("to")));
        let closed = mkdir(to.join("closed"));
        let inner = mkdir(closed.join("inner"));
        small(inner.join("file"), "");
        for (dir, mode) in [(&inner, 0o500), (&closed, 0), (&to, 0o755)] {
            nix::unistd::chown(dir, Some(65534.into()), Some(65534.into())).expect("chown");
            set_mode(dir, mode);
        }
        common.run(&user, way, &["--delete"], &from.join(""), &to.join("")).ok();
        assert!(!closed.exists(), "{way:?}");
    }
}

#[test]
fn no_more_goes_than_is_allowed() {
    for way in [Way::Local, Way::Push, Way::Pull] {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
        for n in 0..5 {
            small(mkdir(to.join(format!("{n}"))).join("file"), "");
            mkdir(from.join(format!("{n}")));
        }
        let run = |most: &str| way.run(&["--json", "--delete", most], &[&slash(&from)], &slash(&to));
        let Some(limited) = run("--max-delete=2") else { return };
        let limited = limited.code(25);
        assert_eq!(limited.count("files_deleted"), 2, "{way:?}");
        assert_eq!(limited.stdout.matches("--max-delete").count(), 1, "{way:?}: {limited}");
        assert_eq!(run("--max-delete=3").expect("as before").ok().count("files_deleted"), 3, "{way:?}");
    }
}

/// Locks a byte as QEMU does.
fn lock_a_byte(guest: &File) {
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 100,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(guest, FcntlArg::F_OFD_SETLK(&lock)).expect("lock");
}

/// What others are at work with, or have mounted, and working files.
#[test]
fn what_is_in_use_stays() {
    let dir = lab::scratch();
    let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
    let delete = |flags: &[&str]| -> Outcome {
        let flags = [&["--delete"][..], flags].concat();
        Way::Local.run(&flags, &[&slash(&from)], &slash(&to)).expect("it is here")
    };
    let guest =
        File::options().read(true).write(true).open(small(to.join("disk"), "a guest's")).expect("open");
    lock_a_byte(&guest);
    delete(&[]).code(23).says(&["is in use"]);
    guest.write_all_at(b"still", 0).expect("write");
    assert!(to.join("disk").exists());
    delete(&["--force-in-use"]).ok();
    assert!(!to.join("disk").exists());

    let busy = File::open(small(to.join("busy"), "")).expect("open");
    busy.lock().expect("lock");
    delete(&[]).code(23).says(&["another holesync run"]);
    // Not by closing it: a program that another test starts just now has it open, too.
    busy.unlock().expect("unlock");

    // A run that was killed before its file was there: the next one goes on from it.
    let temp = small(to.join(".new.holesync.temp"), "half");
    let leftovers = [".busy.holesync.temp", ".busy.holesync.stage"].map(|name| small(to.join(name), "half"));
    leftovers.iter().for_each(|path| set_mode(path, 0o600));
    delete(&[]).ok();
    assert!(temp.exists() && leftovers.iter().all(|path| !path.exists()));
    assert!(!to.join("busy").exists());
    let gone = mkdir(to.join("gone"));
    fs::rename(temp, gone.join(".new.holesync.temp")).expect("rename");
    delete(&[]).ok();
    assert!(!gone.exists());
}

#[test]
fn what_is_mounted_stays() {
    if !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
    let outside = mkdir(dir.path().join("outside"));
    small(outside.join("data"), "");
    let mounted = mkdir(mkdir(to.join("gone")).join("mounted"));
    run(Command::new("mount").arg("--bind").args([&outside, &mounted])).ok();
    let outcome = Way::Local.run(&["--delete"], &[&slash(&from)], &slash(&to)).expect("it is here");
    run(Command::new("umount").arg(&mounted)).ok();
    outcome.code(23).says(&["is a mount point"]);
    assert!(outside.join("data").exists());
}

#[test]
fn files_of_the_source_go_when_they_have_arrived() {
    for way in [Way::Local, Way::Push, Way::Pull] {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
        small(mkdir(from.join("sub")).join("new"), "new");
        small(from.join("same"), "same");
        symlink("same", from.join("link")).expect("symlink");
        copy(&from.join("same"), &to);
        // A directory is in its way.
        small(from.join("failed"), "failed");
        small(mkdir(to.join("failed")).join("full"), "");
        let run = |flags: &[&str]| way.run(flags, &[&slash(&from)], &slash(&to));
        let Some(dry) = run(&["-n", "--remove-source-files"]) else { return };
        assert!(matches!(dry.code, 0 | 23) && from.join("sub/new").exists(), "{way:?}: {dry}");
        run(&["--remove-source-files"]).expect("as before").code(23);
        let left = walkdir::WalkDir::new(&from).sort_by_file_name().into_iter().map(|entry| {
            entry.expect("walk").path().strip_prefix(&from).expect("below").display().to_string()
        });
        assert_eq!(left.collect::<Vec<_>>(), ["", "failed", "sub"], "{way:?}");
        assert_eq!(fs::read_to_string(to.join("sub/new")).expect("read"), "new", "{way:?}");
    }
}

/// Names that rules are about, in directories that stay and in ones that go.
fn filtered(dir: &Path, is_source: bool) {
    for below in ["", "sub", "sub/deep"] {
        let dir = mkdir(dir.join(below));
        for name in ["a.o", "b.img", "keep", "core", "x~"] {
            if is_source == (name == "b.img") || name == "core" {
                set_mtime(&small(dir.join(name), name), 1000, 0);
            }
        }
    }
    if is_source {
        small(dir.join("a.o"), "of the source");
        small(dir.join("sub/.rules"), "- keep\n");
    } else {
        small(dir.join("sub/.rules"), "- keep\n- gone/a.o\n");
        small(mkdir(dir.join("gone")).join("a.o"), "");
        small(mkdir(dir.join("sub/gone")).join("a.o"), "");
        small(dir.join("sub/gone/other"), "");
    }
}

#[test]
fn rules_protect_and_risk_as_with_rsync() {
    for (way, flags) in [Way::Local, Way::Push, Way::Pull].into_iter().flat_map(|way| {
        [
            &["--exclude=*.o"][..],
            &["--exclude=*.o", "--delete-excluded"],
            &["--exclude=/sub/"],
            &["--exclude=/sub/", "--delete-excluded"],
            &["-f", "P keep", "-f", "- core"],
            &["-f", "P keep", "--delete-excluded"],
            &["-f", "R a.o", "-f", "- *.o"],
            &["-f", "H b.img"],
            &["-f", "S core", "-f", "P *"],
            &["-f", "-p *.o"],
            &["-C"],
            &["--include=*/", "--include=*.img", "--exclude=*"],
            &["-f", ": .rules"],
            &["-f", ":- .rules", "--delete-excluded"],
        ]
        .map(|flags| (way, flags))
    }) {
        let dir = lab::scratch();
        let dir = dir.path();
        let from = mkdir(dir.join("from"));
        filtered(&from, true);
        for who in ["ours", "theirs"] {
            filtered(&mkdir(dir.join(who)), false);
        }
        let source = slash(&from);
        // Rules in files are those that have arrived by then.
        let all = [&["-a", "--delete-after"][..], flags].concat();
        let Some(outcome) = way.run(&all, &[&source], &slash(&dir.join("ours"))) else { return };
        let what = format!("{way:?} {flags:?} {outcome}");
        let args = all.iter().map(OsStr::new).collect::<Vec<_>>();
        assert_eq!(rsync(dir, &[&args[..], &[&source, OsStr::new("theirs/")]].concat()), 0, "{what}");
        let names = |dir: &Path| snapshot(dir, false).into_keys().collect::<Vec<_>>();
        assert_eq!(names(&dir.join("ours")), names(&dir.join("theirs")), "{what}");
        assert!(matches!(outcome.code, 0), "{what}");
    }
}

/// What is its own destination has not arrived anywhere.
#[test]
fn a_file_that_is_its_own_destination_stays() {
    let dir = lab::scratch();
    let (file, other) = (small(dir.path().join("file"), "only here"), dir.path().join("other"));
    fs::hard_link(&file, &other).expect("link");
    for to in [&file, &other] {
        let outcome = Way::Local.run(&["--remove-source-files"], &[file.as_os_str()], to.as_os_str());
        let outcome = outcome.expect("it is here");
        assert_ne!(outcome.code, 0, "{outcome}");
        assert_eq!(fs::read_to_string(&file).expect("read"), "only here");
    }
}

#[test]
fn a_file_of_the_source_that_a_guest_has_locked_stays() {
    let dir = lab::scratch();
    let (from, to) = (small(dir.path().join("from"), "a guest's"), dir.path().join("to"));
    let guest = File::options().read(true).write(true).open(&from).expect("open");
    lock_a_byte(&guest);
    let copy = |flags: &[&str]| {
        let flags = [&["--remove-source-files"][..], flags].concat();
        Way::Local.run(&flags, &[from.as_os_str()], to.as_os_str()).expect("it is here")
    };
    copy(&[]).code(23).says(&["is in use"]);
    assert!(from.exists() && to.exists());
    copy(&["--force-in-use"]).ok();
    assert!(!from.exists());
}

/// A directory that stays gets its mode back.
#[test]
fn a_closed_directory_in_which_something_stays_is_closed_again() {
    if !lab::is_root() {
        return;
    }
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let common = Common::new();
    let (from, to) = (mkdir(common.dir().join("from")), mkdir(common.dir().join("to")));
    let closed = mkdir(to.join("closed"));
    let busy = small(closed.join("busy"), "");
    set_mode(&busy, 0o644);
    for (path, mode) in [(&closed, 0o500), (&to, 0o755)] {
        nix::unistd::chown(path, Some(65534.into()), Some(65534.into())).expect("chown");
        set_mode(path, mode);
    }
    let busy = File::open(busy).expect("open");
    busy.lock().expect("lock");
    let run = |flags: &[&str]| common.run(&user, Way::Local, flags, &from.join(""), &to.join(""));
    let mode = || fs::metadata(&closed).expect("stat").permissions().mode() & 0o7777;
    run(&["--delete"]).code(23).says(&["another holesync run"]);
    assert_eq!(mode(), 0o500);
    run(&["--delete", "--max-delete=0"]).code(25);
    assert_eq!(mode(), 0o500);
}

/// What fails on the way ends the removal, and that is said.
#[test]
fn a_removal_that_ends_on_the_way_is_told_of() {
    if !lab::is_root() {
        return;
    }
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    for way in [Way::Local, Way::Push, Way::Pull] {
        let common = Common::new();
        let (from, to) = (mkdir(common.dir().join("from")), mkdir(common.dir().join("to")));
        set_mode(&mkdir(from.join("b")), 0o700);
        for name in ["a", "c"] {
            mkdir(from.join(name));
            let there = mkdir(to.join(name));
            small(there.join("gone"), "");
            nix::unistd::chown(&there, Some(65534.into()), Some(65534.into())).expect("chown");
        }
        nix::unistd::chown(&to, Some(65534.into()), Some(65534.into())).expect("chown");
        let outcome = common.run(&user, way, &["--delete-during"], &from.join(""), &to.join(""));
        outcome.code(23).says(&["nothing more was removed"]);
        assert!(!to.join("a/gone").exists() && to.join("c/gone").exists(), "{way:?}");
    }
}
