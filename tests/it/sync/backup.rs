//! What is replaced or removed is kept, where that was asked for: held against what rsync keeps.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::common::check::{assert_no_leftovers, assert_same, leftovers};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::process::run;
use crate::common::redeploy::every;
use crate::common::tree::{Way, assert_trees, mkdir, rsync, set_mode, set_mtime, slash, small};

const WAYS: [Way; 3] = [Way::Local, Way::Push, Way::Pull];

/// A source, and a destination in `to` that differs in every way that matters here.
fn trees(dir: &Path, to: &Path) {
    for (n, dir) in [dir, to].into_iter().enumerate() {
        mkdir(dir.join("sub"));
        for name in ["changed", "sub/changed", "line\nbreak", "-rf"] {
            set_mtime(&small(dir.join(name), &format!("{n} {name}")), 1000 + n as i64, 0);
        }
        set_mtime(&small(dir.join("same"), "same"), 1000, 0);
        symlink(format!("{n}"), dir.join("link")).expect("symlink");
    }
    for name in ["gone", "sub/gone", "changed~"] {
        set_mtime(&small(to.join(name), name), 1000, 0);
    }
    symlink("gone", to.join("gone link")).expect("symlink");
    small(mkdir(to.join("gone dir")).join("gone"), "gone");
}

#[test]
fn what_is_replaced_or_removed_is_kept_as_with_rsync() {
    for way in WAYS {
        for flags in [
            &["-b"][..],
            &["-b", "--suffix=.old"],
            &["--backup-dir=../kept"],
            &["--backup-dir=../kept/deep", "--suffix=.old", "--delete"],
            &["-b", "--delete"],
            &["-b", "--delete", "--filter=R *~"],
            &["-b", "--inplace"],
        ] {
            let dir = lab::scratch();
            let from = mkdir(dir.path().join("from"));
            for who in ["ours", "theirs"] {
                let to = mkdir(mkdir(dir.path().join(who)).join("to"));
                let source = if who == "ours" { &from } else { &mkdir(dir.path().join("unused")) };
                trees(source, &to);
            }
            let ours = slash(&dir.path().join("ours/to"));
            let flags_of = [&["-a"][..], flags].concat();
            let Some(outcome) = way.run(&flags_of, &[&slash(&from)], &ours) else { return };
            outcome.ok();
            let args = flags_of.iter().map(OsStr::new).collect::<Vec<_>>();
            let source = slash(&from);
            let theirs = [&args[..], &[&source, OsStr::new("theirs/to/")]].concat();
            assert_eq!(rsync(dir.path(), &theirs), 0, "rsync {flags:?}");
            let what = format!("{way:?} {flags:?}");
            assert_trees(&dir.path().join("ours"), &dir.path().join("theirs"), true, &what);
            assert_no_leftovers(dir.path());
        }
    }
}

/// On every file system, whichever way the new image becomes the file.
#[test]
fn the_old_image_is_kept_whole() {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
        let Some(dir) = lab::dir(fs) else { return };
        let dir = dir.path();
        let mut rng = Rng(3);
        let old = Layout::dense("old", 3 << 20, &mut rng);
        let (v1, v2, there) = (dir.join("v1"), dir.join("v2"), dir.join("there"));
        old.write(&v1);
        every(7, &old, &mut rng).write(&v2);
        run(Command::new("cp").arg("-a").args([&v1, &there])).ok();
        set_mtime(&there, 1000, 0);
        let inode = fs::metadata(&there).expect("stat").ino();
        for (flags, kept) in
            [(&["-b"][..], dir.join("there~")), (&["--backup-dir=kept"], dir.join("kept/there"))]
        {
            let outcome = Way::Local.run(flags, &[v2.as_os_str()], there.as_os_str());
            outcome.expect("it is here").ok();
            assert_same(&there, &v2);
            assert_same(&kept, &v1);
            let stat = fs::metadata(&kept).expect("stat");
            assert_eq!((stat.ino(), stat.nlink()), (inode, 1), "{fs:?} {flags:?}");
            // Back to the old one, and the same inode for the next way.
            fs::rename(&kept, &there).expect("rename");
            set_mtime(&there, 1000, 0);
        }
        assert_no_leftovers(dir);
    }
}

#[test]
fn what_cannot_be_kept_is_not_replaced() {
    let dir = lab::scratch();
    let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
    small(from.join("x"), "new");
    set_mtime(&small(to.join("x"), "old"), 1000, 0);
    let copy = |flags: &[&str]| Way::Local.run(flags, &[&slash(&from)], &slash(&to)).expect("it is here");
    copy(&["-b", "--suffix=a/b"]).code(1).says(&["--suffix"]);
    // A directory is where the backup would go.
    small(mkdir(to.join("x~")).join("full"), "");
    copy(&["-b"]).code(23).says(&["cannot keep a backup of"]);
    assert_eq!(fs::read_to_string(to.join("x")).expect("read"), "old");
    copy(&["-b", "--inplace"]).code(23).says(&["cannot keep a backup of"]);
    assert_eq!(fs::read_to_string(to.join("x")).expect("read"), "old");
    if let Some(small_one) = lab::small() {
        let flag = format!("--backup-dir={}", small_one.dir.path().display());
        File::create(to.join("x")).and_then(|file| file.write_all_at(&vec![7; 80 << 20], 0)).expect("write");
        copy(&[&flag]).code(11).says(&["cannot keep a backup of"]);
        assert_eq!(fs::metadata(to.join("x")).expect("stat").len(), 80 << 20);
        assert_no_leftovers(small_one.dir.path());
    }
    for way in [Way::PushShell, Way::PullShell] {
        let Some(outcome) = way.run(&["-b"], &[&slash(&from)], &slash(&to)) else { return };
        outcome.code(1).says(&["--backup needs a holesync on"]);
    }
    let left = leftovers(dir.path());
    assert!(!left.iter().any(|name| name.contains("x~")), "{left:?}");
}

/// A run that was interrupted has kept it.
#[test]
fn a_backup_that_is_the_old_inode_already_leaves_nothing_behind() {
    let dir = lab::scratch();
    let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
    small(from.join("x"), "new");
    set_mtime(&small(to.join("x"), "old"), 1000, 0);
    fs::hard_link(to.join("x"), to.join("x~")).expect("link");
    fs::hard_link(to.join("x"), to.join(".x~.holesync.temp")).expect("link");
    Way::Local.run(&["-b"], &[&slash(&from)], &slash(&to)).expect("it is here").ok();
    assert_eq!(fs::read_to_string(to.join("x")).expect("read"), "new");
    assert_eq!(fs::read_to_string(to.join("x~")).expect("read"), "old");
    assert_no_leftovers(&to);
}

/// There the old inode cannot be what is kept.
#[test]
fn backups_on_another_file_system_are_copies() {
    for way in WAYS {
        for flags in [&["-a"][..], &["-a", "--inplace"], &["-a", "--delete"]] {
            let (dir, other) = (lab::scratch(), lab::dir(Fs::Xfs));
            let Some(other) = other else { return };
            let from = mkdir(dir.path().join("from"));
            for who in ["ours", "theirs"] {
                let to = mkdir(mkdir(dir.path().join(who)).join("to"));
                let source = if who == "ours" { &from } else { &mkdir(dir.path().join("unused")) };
                trees(source, &to);
                let sparse = small(to.join("sparse"), "data");
                File::options()
                    .write(true)
                    .open(&sparse)
                    .and_then(|file| file.set_len(64 << 20))
                    .expect("grow");
                set_mode(&sparse, 0o640);
                run(Command::new("mkfifo").arg(to.join("link that was"))).ok();
            }
            small(from.join("sparse"), "shorter");
            symlink("x", from.join("link that was")).expect("symlink");
            // An empty directory gives way to a backup, as with rsync.
            let kept = ["ours", "theirs"].map(|who| mkdir(other.path().join(who)));
            let gives_way = !flags.contains(&"--inplace");
            kept.iter().filter(|_| gives_way).for_each(|kept| drop(mkdir(kept.join("changed"))));
            let args = |nth: usize| {
                let dir = format!("--backup-dir={}", kept[nth].display());
                flags.iter().map(ToString::to_string).chain([dir]).collect::<Vec<_>>()
            };
            let ours = args(0);
            let ours = ours.iter().map(String::as_str).collect::<Vec<_>>();
            let Some(outcome) = way.run(&ours, &[&slash(&from)], &slash(&dir.path().join("ours/to"))) else {
                return;
            };
            outcome.ok();
            let (theirs, source) = (args(1), slash(&from));
            let theirs = theirs.iter().map(OsStr::new).chain([source.as_os_str(), OsStr::new("theirs/to/")]);
            assert_eq!(rsync(dir.path(), &theirs.collect::<Vec<_>>()), 0, "rsync {flags:?}");
            let what = format!("{way:?} {flags:?}");
            assert_trees(&dir.path().join("ours"), &dir.path().join("theirs"), true, &what);
            assert_trees(&kept[0], &kept[1], true, &what);
            assert!(fs::metadata(kept[0].join("sparse")).expect("stat").blocks() < 100, "{what}");
            [dir.path(), other.path()].into_iter().for_each(assert_no_leftovers);
        }
    }
}

/// The directory of the backups is not what the source lacks.
#[test]
fn backups_below_the_destination_stay() {
    for way in WAYS {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
        small(from.join("x"), "new");
        set_mtime(&small(to.join("x"), "old"), 1000, 0);
        small(to.join("gone"), "gone");
        for _ in 0..2 {
            let Some(outcome) = way.run(&["--delete", "--backup-dir=kept"], &[&slash(&from)], &slash(&to))
            else {
                return;
            };
            outcome.ok();
            assert_eq!(fs::read_to_string(to.join("kept/x")).expect("read"), "old", "{way:?}");
            assert!(to.join("kept/gone").exists() && !to.join("gone").exists(), "{way:?}");
        }
    }
}
