//! What entries carry beside their content, and entries that are neither files nor
//! directories: rsync makes the same tree with the same flags, and is the judge of both.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::common::lab;
use crate::common::process::{Outcome, run};
use crate::common::tree::{Way, mkdir, set_mode, set_mtime, slash, small};
use crate::common::users::{Common, as_user};

/// One program with these words behind it.
fn tool(dir: &Path, line: &str) {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().expect("a program"));
    run(command.args(words).current_dir(dir)).ok();
}

fn link(dir: &Path, from: &str, to: &str) {
    std::fs::hard_link(dir.join(from), dir.join(to)).expect("link");
}

/// A tree with one of everything that its maker may make.
fn grow(dir: &Path, is_root: bool) {
    for name in ["dir", "dir/sub", "odd name", "closed", "empty"] {
        mkdir(dir.join(name));
    }
    for (name, text) in
        [("file", "one"), ("dir/plain", "x"), ("setuid", "s"), ("program", "#!"), ("closed/read-only", "f")]
    {
        small(dir.join(name), text);
    }
    small(dir.join("image"), &"image".repeat(50_000));
    link(dir, "file", "dir/hard");
    link(dir, "file", "odd name/hard");
    link(dir, "image", "dir/sub/image");
    for (to, name) in [
        ("file", "link"),
        ("nowhere", "broken"),
        ("dir", "link to dir"),
        ("../beside", "up"),
        ("/etc/hostname", "far"),
    ] {
        symlink(to, dir.join(name)).expect("symlink");
    }
    link(dir, "link", "link too");
    let node = |name: &str, kind, device| {
        mknod(&dir.join(name), kind, Mode::S_IRWXU | Mode::S_IRGRP, device).expect("mknod");
    };
    node("fifo", SFlag::S_IFIFO, 0);
    link(dir, "fifo", "dir/fifo");
    node("socket", SFlag::S_IFSOCK, 0);
    small(dir.join("acl"), "acl");
    tool(dir, "setfacl -m u:daemon:rw,g:bin:r,u:54321:x acl");
    tool(dir, "setfacl -m o::r,u:bin:rwx dir");
    tool(dir, "setfacl -d -m u:daemon:rwx,g:54322:rx dir");
    for name in ["acl", "dir", "closed/read-only"] {
        tool(dir, &format!("setfattr -n user.one -v 1 {name}"));
    }
    tool(dir, "setfattr -n user.empty acl");
    if is_root {
        node("character", SFlag::S_IFCHR, makedev(1, 3));
        node("block", SFlag::S_IFBLK, makedev(0, 77));
        for line in [
            "setfattr -n trusted.one -v 2 acl",
            "setfattr -h -n trusted.link -v 3 link",
            "setcap cap_net_raw+ep program",
            "chown 1:2 setuid",
            "chown 12345:54321 dir/plain",
        ] {
            tool(dir, line);
        }
    }
    for (name, mode) in
        [("setuid", 0o6755), ("program", 0o755), ("closed/read-only", 0o444), ("closed", 0o555)]
    {
        set_mode(&dir.join(name), mode);
    }
    for name in ["file", "dir", "dir/sub", "image", "link"] {
        set_mtime(&dir.join(name), 1_000_000_000, 500_000_000);
    }
}

/// What is there before, some of it in the way. Only what the flags ask for has attributes: a
/// file that takes the place of another keeps its own here, and loses them with rsync.
fn grow_old(dir: &Path, flags: &str) {
    for name in ["dir", "fifo", "link"] {
        mkdir(dir.join(name));
    }
    for (name, text) in [
        ("file", "old"),
        ("acl", "before"),
        ("dir/hard", "zzz"),
        ("image", "old"),
        ("gone", "gone"),
        ("program", "p"),
    ] {
        small(dir.join(name), text);
    }
    link(dir, "file", "was hard");
    link(dir, "image", "dir/was image");
    symlink("other", dir.join("broken")).expect("symlink");
    if flags.contains('K') {
        mkdir(dir.join("linked"));
        symlink("linked", dir.join("odd name")).expect("symlink");
    }
    mknod(&dir.join("socket"), SFlag::S_IFIFO, Mode::S_IRWXU, 0).expect("mkfifo");
    if flags.contains("AX") {
        tool(dir, "setfacl -m u:sync:rwx acl");
        tool(dir, "setfattr -n user.gone -v 1 acl");
        tool(dir, "setfattr -n user.gone -v 2 dir");
    }
}

/// The differences that rsync finds between two trees made with these flags: what they leave
/// alone of times is that of the run.
fn differences(dir: &Path, flags: &str) -> String {
    let omits_times = flags.contains('O') || flags.contains("--backup");
    let omitted = [("O", omits_times), ("J", flags.contains('J'))];
    let omitted: String = omitted.iter().filter_map(|&(letter, is_so)| is_so.then_some(letter)).collect();
    let kept = format!("-aHAXn{omitted}");
    let args = [&kept, "--delete", "-c", "-i", "ours/", "theirs/"];
    let output = Command::new("rsync").current_dir(dir).args(args).output().expect("run rsync");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Both programs with these flags, ours run by `ours` and rsync below `wrap`, as this user.
/// `false`: this way there is none here.
fn compare(
    flags: &str,
    user: Option<&str>,
    wrap: &[&str],
    ours: impl Fn(&[&str], &Path, &Path) -> Option<Outcome>,
) -> bool {
    let dir = lab::scratch();
    set_mode(dir.path(), 0o755);
    let [from, to] = ["from", "ours"].map(|name| mkdir(dir.path().join(name)));
    small(mkdir(dir.path().join("beside")).join("file"), "beside");
    grow(&from, user.is_none());
    grow_old(&to, flags);
    if let Some(user) = user {
        tool(dir.path(), &format!("chown -hR {user}:{user} from ours"));
    }
    tool(dir.path(), "cp -a ours theirs");
    let words: Vec<&str> = flags.split(' ').collect();
    let Some(outcome) = ours(&words, &from, &to) else { return false };
    let args = [wrap, &["rsync"], &words[..], &["from/", "theirs/"]].concat();
    let theirs = run(Command::new(args[0]).args(&args[1..]).current_dir(dir.path()));
    assert_eq!(outcome.code, theirs.code, "{flags}: {outcome}\n{theirs}");
    assert_eq!(differences(dir.path(), flags), "", "{flags}: {outcome}");
    // What is there is found to be so.
    let again = ours(&[&words[..], &["--json"]].concat(), &from, &to).expect("there was one before");
    assert_eq!(again.count("files_sent"), 0, "{flags}: {again}");
    assert_eq!(differences(dir.path(), flags), "", "{flags}, again: {again}");
    true
}

fn compare_as_root(way: Way, flags: &str) -> bool {
    compare(flags, None, &[], |flags, from, to| way.run(flags, &[&slash(from)], &slash(to)))
}

const KEPT: &[&str] = &[
    "-aHAX --force",
    "-aAX --delete",
    "-aHAX --delete --inplace",
    "-aHAXU --delete",
    "-aHAX --delete --backup --suffix=.old",
    "-aA --force --no-D",
    "-aX --force --devices --no-specials",
    "-aHAX --force --numeric-ids",
    "-aAX --force --chmod=Du=rwx,Fgo-w,+X",
    "-aAX --force --chmod=D2755,F640 --chmod=ugo=rwX",
    "-aAX --force --chown=daemon:bin",
    "-aAX --force --usermap=12345:sync,*:games --groupmap=54321:7,bin:9",
    "-aLA --force",
    "-akA --force",
    "-aA --force --copy-unsafe-links",
    "-aAX --force -O",
    "-aAX --force -J",
    "-rlt --no-p -E --force",
];

/// What each way over ssh is tried with, too; with `HOLESYNC_TEST_ROUNDS` it is all.
const OFTEN: &[&str] = &["-aHAX --delete", "-aLA --force --chown=daemon:7 --chmod=Fo-r", "-aHAXKO --force"];

#[test]
fn reading_leaves_access_times_alone_where_that_is_asked_for() {
    for way in [Way::Local, Way::Push, Way::Pull] {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), dir.path().join("to"));
        let file = small(from.join("file"), &"data".repeat(50_000));
        let read_at = || std::fs::metadata(&file).expect("stat").atime();
        for (flags, stays) in [(&["-aI", "--open-noatime"][..], true), (&["-aI"], false)] {
            // Older than it was written: then it is set whenever it is read; mount(8), relatime.
            set_mtime(&file, 1_000_000_000, 0);
            tool(&from, "touch -a -d @900000000 file");
            let Some(outcome) = way.run(flags, &[&slash(&from)], &slash(&to)) else { return };
            outcome.ok();
            assert_eq!(read_at() == 900_000_000, stays, "{way:?} {flags:?}");
        }
    }
}

/// What the user names himself comes also where the owner does not.
#[test]
fn set_id_bits_come_by_hand_as_with_rsync() {
    let dir = lab::scratch();
    let from = mkdir(dir.path().join("from"));
    set_mode(&small(from.join("file"), "x"), 0o4755);
    for (nth, changes) in ["a+s", "u+s", "g+s", "u=g", "g=u,+t"].iter().enumerate() {
        let modes = ["rsync", env!("CARGO_BIN_EXE_holesync")].map(|program| {
            let to = dir.path().join(format!("{}{nth}", program.len()));
            let mut command = Command::new(program);
            run(command.args(["-rp", &format!("--chmod=u-s,{changes}")]).arg(slash(&from)).arg(&to)).ok();
            std::fs::metadata(to.join("file")).expect("stat").mode() & 0o7777
        });
        assert_eq!(modes[0], modes[1], "{changes}");
    }
}

#[test]
fn trees_of_everything_become_what_rsync_makes_of_them() {
    if !lab::is_root() {
        return;
    }
    for flags in KEPT.iter().chain(OFTEN) {
        compare_as_root(Way::Local, flags);
    }
    let all = std::env::var_os("HOLESYNC_TEST_ROUNDS").map_or(&[][..], |_| KEPT);
    for way in [Way::Push, Way::Pull] {
        assert!(OFTEN.iter().chain(all).all(|flags| compare_as_root(way, flags)), "{way:?}");
    }
}

#[test]
fn a_user_gets_what_rsync_gives_him() {
    if !lab::is_root() {
        return;
    }
    let (common, wrap) = (Common::new(), as_user("1234", "1234"));
    for way in [Way::Local, Way::Push, Way::Pull] {
        for flags in
            ["-aHAX --delete", "-aAX --force --chmod=u+w,Dg+s", "-rltHE --no-p --force", "-aL --force"]
        {
            compare(flags, Some("1234"), &wrap, |flags, from, to| {
                Some(common.run(&wrap, way, flags, Path::new(&slash(from)), Path::new(&slash(to))))
            });
        }
    }
}

/// A tree as it was before, and a destination that lacks it; what another directory has counts
/// for what is missing.
fn compare_beside(way: Way, flags: &str) {
    let dir = lab::scratch();
    let [from, before, ours] = ["from", "before", "ours"].map(|name| mkdir(dir.path().join(name)));
    grow(&from, true);
    tool(dir.path(), "cp -a from/. before/");
    // Changed in content, in attributes alone, and by its time alone.
    small(before.join("image"), &"imago".repeat(50_000));
    set_mode(&before.join("program"), 0o700);
    set_mtime(&before.join("file"), 5, 0);
    tool(dir.path(), "setfattr -n user.other -v 7 before/acl");
    small(ours.join("dir"), "in the way");
    tool(dir.path(), "cp -a ours theirs");
    let words: Vec<&str> = flags.split(' ').collect();
    let outcome = way.run(&words, &[&slash(&from)], &slash(&ours)).expect("there is a way");
    let args = [&["rsync"], &words[..], &["from/", "theirs/"]].concat();
    let theirs = run(Command::new(args[0]).args(&args[1..]).current_dir(dir.path()));
    assert_eq!(outcome.code, theirs.code, "{way:?} {flags}: {outcome}\n{theirs}");
    assert_eq!(differences(dir.path(), flags), "", "{way:?} {flags}: {outcome}");
    let shared = |tree: &str| {
        let names = walkdir::WalkDir::new(dir.path().join(tree)).sort_by_file_name().into_iter();
        let names = names.map(|entry| entry.expect("walk")).filter(|entry| !entry.file_type().is_dir());
        let below = |path: &Path| path.strip_prefix(dir.path().join(tree)).expect("below").to_path_buf();
        let inode = |path: &Path| std::fs::symlink_metadata(path).map(|metadata| metadata.ino()).ok();
        let is_shared = |path: &Path| inode(path) == inode(&before.join(below(path)));
        names.map(|entry| (below(entry.path()), is_shared(entry.path()))).collect::<Vec<_>>()
    };
    assert_eq!(shared("ours"), shared("theirs"), "{way:?} {flags}: {outcome}");
}

/// What an earlier run left beside a file that is linked or copied now.
#[test]
fn nothing_is_left_beside_what_another_directory_has() {
    for flags in ["--link-dest", "--copy-dest"] {
        let dir = lab::scratch();
        let [from, before, to] = ["from", "before", "to"].map(|name| mkdir(dir.path().join(name)));
        for tree in [&from, &before] {
            set_mtime(&small(tree.join("image"), "image"), 1_000_000, 0);
        }
        for kind in ["temp", "clone"] {
            set_mode(&small(to.join(format!(".image.holesync.{kind}")), "left"), 0o600);
        }
        let flags = format!("{flags}=../before");
        Way::Local.run(&["-a", &flags], &[&slash(&from)], &slash(&to)).expect("there is a way").ok();
        let names: Vec<_> =
            std::fs::read_dir(&to).expect("read").map(|it| it.expect("read").file_name()).collect();
        assert_eq!(names, ["image"], "{flags}");
    }
}

#[test]
fn what_another_directory_has_is_linked_copied_or_left_out_as_by_rsync() {
    if !lab::is_root() {
        return;
    }
    for flags in [
        "-aHAX --link-dest=../before",
        "-a --link-dest=../nothing --link-dest=../before",
        "-aA --copy-dest=../before",
        "-aAX --compare-dest=../before",
        "-a --delete --link-dest=../before -n",
    ] {
        for way in [Way::Local, Way::Push, Way::Pull] {
            compare_beside(way, flags);
        }
    }
    // Compared by content: what is equal is linked all the same.
    compare_beside(Way::Local, "-aA --force --copy-dest=../before -c");
}
