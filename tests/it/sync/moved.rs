//! What is removed from the source when it has arrived: what rsync removes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::common::lab;
use crate::common::process::{holesync, run};
use crate::common::tree::{Way, assert_trees, mkdir, rsync, slash, small, snapshot};

const WAYS: [Way; 3] = [Way::Local, Way::Push, Way::Pull];

/// Entries of every kind, some with several names.
fn grow(dir: &Path) {
    let sub = mkdir(dir.join("sub"));
    mkdir(dir.join("empty"));
    for path in ["file", "sub/deep", "same", "blocked", "name1", "-x"] {
        small(dir.join(path), path);
    }
    for (name, target) in [
        ("link", "file"),
        ("dangling", "no/such"),
        ("to sub", "sub"),
        ("same link", "same"),
        ("blocked link", "x"),
    ] {
        symlink(target, dir.join(name)).expect("symlink");
    }
    for name in ["fifo", "blocked fifo"] {
        nix::unistd::mkfifo(&dir.join(name), Mode::S_IRWXU).expect("mkfifo");
    }
    mknod(&dir.join("null"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 3)).expect("mknod");
    mknod(&dir.join("loop"), SFlag::S_IFBLK, Mode::S_IRWXU, makedev(7, 99)).expect("mknod");
    drop(UnixListener::bind(sub.join("socket")).expect("bind"));
    for (first, other) in [
        ("name1", "name2"),
        ("name1", "sub/name3"),
        ("name1", "sub/name4"),
        ("dangling", "dangling too"),
        ("fifo", "sub/fifo"),
        ("null", "null too"),
    ] {
        fs::hard_link(dir.join(first), dir.join(other)).expect("link");
    }
}

fn names(dir: &Path) -> Vec<PathBuf> {
    snapshot(dir, false).into_keys().collect()
}

#[test]
fn what_has_arrived_goes_as_with_rsync() {
    if !lab::is_root() {
        return;
    }
    for (way, flags) in WAYS.into_iter().flat_map(|way| {
        [
            &["-a"][..],
            &["-aH"],
            &["-rlt"],
            &["-rt", "--no-l"],
            &["-aHi"],
            &["-a", "--exclude=name*"],
            &["-aH", "--delete"],
            &["-a", "--delete-before"],
            &["-a", "--delete-during", "-m"],
            &["-aH", "--delete-after"],
        ]
        .map(|flags| (way, flags))
    }) {
        let dir = lab::scratch();
        let dir = dir.path();
        for who in ["ours", "theirs"] {
            let from = mkdir(dir.join(format!("{who} from")));
            grow(&from);
            let to = mkdir(dir.join(who));
            assert_eq!(rsync(&from, &["-a", "same", "same link", &format!("{}/", to.display())]), 0);
            for name in ["blocked", "blocked link", "blocked fifo"] {
                let full = mkdir(to.join(name));
                small(full.join("full"), "");
            }
        }
        let all = [&["--remove-source-files"][..], flags].concat();
        let dry = [&["-n"][..], &all].concat();
        let (from, to) = (slash(&dir.join("ours from")), slash(&dir.join("ours")));
        let before = names(&dir.join("ours from"));
        let Some(outcome) = way.run(&dry, &[&from], &to) else { return };
        assert!(names(&dir.join("ours from")) == before, "{way:?} {flags:?}: {outcome}");
        let outcome = way.run(&all, &[&from], &to).expect("as before");
        let args = [&all[..], &["theirs from/", "theirs/"]].concat();
        let code = rsync(dir, &args);
        let what = format!("{way:?} {flags:?}, rsync {code}: {outcome}");
        assert_eq!(names(&dir.join("ours from")), names(&dir.join("theirs from")), "{what}");
        assert_eq!(outcome.code, code, "{what}");
        assert_eq!(names(&dir.join("ours")), names(&dir.join("theirs")), "{what}");
    }
}

/// What is found behind a symlink that is followed is somebody else's: the symlink goes.
#[test]
fn a_symlink_that_was_followed_goes_and_what_it_leads_to_stays() {
    for way in WAYS {
        let dir = lab::scratch();
        let dir = dir.path();
        for who in ["ours", "theirs"] {
            let from = mkdir(dir.join(format!("{who} from")));
            small(mkdir(dir.join("elsewhere")).join("image"), "only here");
            symlink("../elsewhere/image", from.join("link")).expect("symlink");
            small(from.join("file"), "");
            mkdir(dir.join(who));
        }
        let all = ["--remove-source-files", "-rL"];
        let Some(outcome) = way.run(&all, &[&slash(&dir.join("ours from"))], &slash(&dir.join("ours")))
        else {
            return;
        };
        outcome.ok();
        assert_eq!(rsync(dir, &[&all[..], &["theirs from/", "theirs/"]].concat()), 0);
        assert_eq!(names(&dir.join("ours from")), names(&dir.join("theirs from")), "{way:?}");
        assert!(dir.join("elsewhere/image").exists());
        assert_trees(&dir.join("ours"), &dir.join("theirs"), false, &format!("{way:?}"));
    }
}

/// Where the first name of a file cannot be had, all of its names stay.
#[test]
fn names_of_a_file_that_did_not_arrive_stay() {
    for way in WAYS {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
        for (first, other) in [("a", "b"), ("c", "d")] {
            small(from.join(first), first);
            fs::hard_link(from.join(first), from.join(other)).expect("link");
        }
        small(mkdir(to.join("a")).join("full"), "");
        small(mkdir(to.join("d")).join("full"), "");
        let flags = ["-H", "--remove-source-files"];
        let Some(outcome) = way.run(&flags, &[&slash(&from)], &slash(&to)) else { return };
        outcome.code(23);
        let left = names(&from);
        let expected = ["", "a", "b", "d"].map(PathBuf::from);
        assert_eq!(left, expected, "{way:?}");
    }
}

/// What a name leads to on both sides has not arrived anywhere.
#[test]
fn a_symlink_that_is_its_own_destination_stays() {
    let dir = lab::scratch();
    let from = mkdir(dir.path().join("from"));
    symlink("nowhere", from.join("link")).expect("symlink");
    symlink("from", dir.path().join("to")).expect("symlink");
    let to = dir.path().join("to/");
    let outcome =
        Way::Local.run(&["-l", "--remove-source-files"], &[OsStr::new(&slash(&from))], to.as_os_str());
    assert_ne!(outcome.expect("it is here").code, 0);
    assert!(from.join("link").is_symlink());
}

/// The next try would take what this one moved for what the source never had.
#[test]
fn where_something_is_moved_and_something_deleted_there_is_one_try() {
    let dir = lab::scratch();
    let file = small(dir.path().join("file"), "");
    for flag in ["--delete", "--delete-missing-args"] {
        let mut command = holesync();
        command.args(["--retries=2", "--remove-source-files", flag]).arg(&file).arg(dir.path().join("to/"));
        run(&mut command).code(1).says(&["there is one try"]);
    }
    assert!(file.exists());
}
