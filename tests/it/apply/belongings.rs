//! What belongs to a file stays with it when another inode takes its name, or rights are
//! narrowed: ACL, `user.` attributes, NOCOW.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::check::{assert_no_leftovers, assert_same};
use crate::common::faults::can_trace;
use crate::common::lab::{self, Fs};
use crate::common::process::{run, run_on};
use crate::common::tree::{WAYS, Way, set_mode, set_mtime};
use crate::common::users::{Common, as_user};

const BLOCK: usize = 64 << 10;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("stat").mode() & 0o7777
}

/// An image of 2 MiB, mode 640, that differs from other versions in a block.
fn image(path: &Path, version: u8) -> PathBuf {
    let mut bytes = vec![7; 2 << 20];
    bytes[BLOCK * usize::from(version)..][..BLOCK].fill(version);
    fs::write(path, bytes).expect("write");
    set_mode(path, 0o640);
    set_mtime(path, 1_600_000_000 + i64::from(version), 1);
    path.to_owned()
}

fn tool(program: &str, words: &[&str], path: &Path) -> String {
    run(Command::new(program).args(words).arg(path)).ok().stdout
}

fn acl(path: &Path) -> String {
    tool("getfacl", &["-c", "-n", "-E", "--absolute-names"], path)
}

fn attribute(path: &Path, name: &str) -> bool {
    tool("getfattr", &["-m", "-", "--absolute-names"], path).lines().any(|line| line == name)
}

/// Every way in which a file is replaced, or changed where it is.
const ENDS: [(Fs, &[&str]); 7] = [
    (Fs::Ext4, &[]),
    (Fs::Ext4, &["-W"]),
    (Fs::Ext4, &["--commit=atomic"]),
    (Fs::Ext4, &["--inplace"]),
    (Fs::Xfs, &[]),
    (Fs::Btrfs, &[]),
    (Fs::Btrfs, &["-W"]),
];

/// An old file, a new one, and a directory whose default ACL gives more than the old file.
struct Case {
    _dir: tempfile::TempDir,
    there: PathBuf,
}

impl Case {
    fn on(place: Fs) -> Option<Case> {
        let dir = lab::dir(place).filter(|_| lab::is_root())?;
        tool("setfacl", &["-d", "-m", "u:1002:rwx,g::rwx,o::rwx"], dir.path());
        let there = image(&dir.path().join("vm"), 1);
        tool("setfacl", &["-b"], &there);
        set_mode(&there, 0o640);
        Some(Case { _dir: dir, there })
    }
}

#[test]
fn an_acl_and_user_attributes_stay_with_the_file() {
    let common = Common::new();
    let new = image(&common.dir().join("new"), 2);
    for (((place, flags), way), perms) in ENDS
        .into_iter()
        .flat_map(|end| WAYS.map(|way| (end, way)))
        .flat_map(|row| [(row, true), (row, false)])
    {
        let Some(case) = Case::on(place) else { return };
        tool("setfacl", &["-m", "u:1001:rw,g:5000:r,m::rw"], &case.there);
        tool("setfattr", &["-n", "user.note", "-v", "it"], &case.there);
        tool("setfattr", &["-n", "trusted.note", "-v", "it"], &case.there);
        let (before, inode) = (acl(&case.there), fs::metadata(&case.there).expect("stat").ino());
        let mut flags = flags.to_vec();
        flags.extend((!perms).then_some("--no-p"));
        let outcome = common.run(&[], way, &flags, &new, &case.there).ok();
        let what = format!("{place:?} {way:?} {flags:?}: {outcome}");
        assert_same(&new, &case.there);
        // As with chmod, the mode of the source is the mask.
        let wanted = if perms { before.replace("mask::rw-", "mask::r--") } else { before };
        assert_eq!(acl(&case.there), wanted, "{what}");
        let replaced = fs::metadata(&case.there).expect("stat").ino() != inode;
        assert!(way == Way::PushShell && replaced || attribute(&case.there, "user.note"), "{what}");
        assert_eq!(attribute(&case.there, "trusted.note"), !replaced, "{what}");
    }
}

#[test]
fn a_default_acl_gives_nobody_what_the_old_file_did_not() {
    let common = Common::new();
    let new = image(&common.dir().join("new"), 2);
    for ((place, flags), way) in ENDS.into_iter().flat_map(|end| WAYS.map(|way| (end, way))) {
        for no_perms in [&[][..], &["--no-p"]] {
            let Some(case) = Case::on(place) else { return };
            let before = acl(&case.there);
            common.run(&[], way, &[flags, no_perms].concat(), &new, &case.there).ok();
            assert_same(&new, &case.there);
            assert_eq!(acl(&case.there), before, "{place:?} {way:?} {flags:?} {no_perms:?}");
        }
    }
}

#[test]
fn a_file_that_was_not_there_gets_no_more_than_its_directory_gives() {
    let common = Common::new();
    let new = image(&common.dir().join("new"), 2);
    set_mode(&new, 0o666);
    for place in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
        let Some(dir) = lab::dir(place).filter(|_| lab::is_root()) else { return };
        tool("setfacl", &["-d", "-m", "u:1002:rw,g::r,o::-"], dir.path());
        let there = dir.path().join("vm");
        for way in [Way::Local, Way::Push, Way::Pull, Way::PullShell] {
            common.run(&[], way, &["--no-p"], &new, &there).ok();
            let found = acl(&there);
            assert!(found.contains("user:1002:rw-") && found.contains("other::---"), "{way:?} {found}");
            fs::remove_file(&there).expect("remove");
        }
        run_on(common.program(&[]).arg("recv").arg(&there), b"DATA\n3\nabcEND\n3\n").ok();
        assert!(acl(&there).contains("other::---"), "{}", acl(&there));
    }
}

#[test]
fn an_acl_that_cannot_be_handed_on_leaves_its_group_what_it_had() {
    let common = Common::new();
    let new = image(&common.dir().join("new"), 2);
    for perms in [true, false] {
        let Some(case) = Case::on(Fs::Xfs).filter(|_| can_trace()) else { return };
        tool("setfacl", &["-m", "u:1001:rw,g::-,m::rw"], &case.there);
        assert_eq!(mode(&case.there), 0o660);
        let inject = ["-e", "trace=fsetxattr", "-e", "inject=fsetxattr:error=EPERM", "--"];
        let wrap = [&["strace", "-f", "-qq", "-o", "/dev/null"][..], &inject].concat();
        let flags: &[&str] = if perms { &[] } else { &["--no-p"] };
        let outcome = common.run(&wrap, Way::Local, flags, &new, &case.there).code(23);
        outcome.says(&["its ACL could not be set"]);
        assert_same(&new, &case.there);
        assert_eq!(mode(&case.there), 0o600);
        assert!(!acl(&case.there).contains("user:1"), "{}", acl(&case.there));
    }
}

/// A file whose group the new one cannot have: who was in it or not has no more now.
#[test]
fn a_group_that_cannot_be_kept_takes_its_rights_along() {
    let common = Common::new();
    let new = image(&common.dir().join("new"), 2);
    set_mode(&new, 0o644);
    for (before, after) in [(0o660, 0o600), (0o664, 0o644), (0o604, 0o600), (0o666, 0o666)] {
        let Some(dir) = lab::dir(Fs::Ext4).filter(|_| lab::is_root()) else { return };
        set_mode(dir.path(), 0o777);
        let there = image(&dir.path().join("vm"), 1);
        chown(&there, Some(1001), Some(5000)).expect("chown");
        set_mode(&there, before);
        let flags = ["--no-p", "--commit=atomic"];
        common.run(&as_user("1002", "1002"), Way::Local, &flags, &new, &there).ok();
        assert_same(&new, &there);
        assert_eq!(fs::metadata(&there).expect("stat").gid(), 1002);
        assert_eq!(mode(&there), after, "{before:o}");
    }
}

#[test]
fn what_is_not_copied_on_write_stays_so() {
    let common = Common::new();
    let new = image(&common.dir().join("new"), 2);
    let (first, second): (&[&str], &[&str]) = (&[], &["--commit=atomic"]);
    let ways = [Way::Local, Way::Push, Way::Pull, Way::PullShell];
    for (flags, way) in [first, second, &["-W"]].into_iter().flat_map(|flags| ways.map(|way| (flags, way))) {
        let Some(dir) = lab::dir(Fs::Btrfs) else { return };
        let there = dir.path().join("vm");
        fs::write(&there, "").expect("write");
        tool("chattr", &["+C"], &there);
        image(&there, 1);
        common.run(&[], way, flags, &new, &there).ok();
        assert_same(&new, &there);
        let found = tool("lsattr", &[], &there);
        assert!(found.split(' ').next().expect("flags").contains('C'), "{flags:?} {way:?} {found}");
        assert_no_leftovers(dir.path());
    }
}
