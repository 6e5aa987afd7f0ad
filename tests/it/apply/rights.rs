//! Several users, and what they may not do: content comes first, and what cannot be set is a
//! warning. What a program may run as comes only with whom it means.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::check::{assert_no_leftovers, assert_same};
use crate::common::faults::{can_trace, killed_at};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::process::{Outcome, run, run_on};
use crate::common::redeploy::{Redeploy, State, every};
use crate::common::tree::{WAYS, Way, set_mode, set_mtime, slash};
use crate::common::users::{Common, as_user};

const BLOCK: usize = 64 << 10;
const PROGRAM_BITS: u32 = 0o6000;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("stat").permissions().mode() & 0o7777
}

/// An image of 2 MiB, mode 664, that differs from other versions in a block.
fn image(path: &Path, version: u8) -> PathBuf {
    let mut bytes = vec![7; 2 << 20];
    bytes[BLOCK * usize::from(version)..][..BLOCK].fill(version);
    fs::write(path, bytes).expect("write");
    set_mode(path, 0o664);
    set_mtime(path, 1_600_000_000 + i64::from(version), 1);
    path.to_owned()
}

/// A directory on `fs` for everybody, and what is in it.
fn open_dir(place: Fs) -> Option<tempfile::TempDir> {
    let dir = lab::dir(place).filter(|_| lab::is_root())?;
    set_mode(dir.path(), 0o777);
    Some(dir)
}

/// strace that makes every call of this name fail.
fn failing<'a>(trace: &'a str, inject: &'a str) -> [&'a str; 10] {
    ["strace", "-f", "-qq", "-o", "/dev/null", "-e", trace, "-e", inject, "--"]
}

#[test]
fn two_operators_share_an_image_by_their_group() {
    let common = Common::new();
    for (place, way) in [Fs::Ext4, Fs::Xfs].into_iter().flat_map(|place| WAYS.map(|way| (place, way))) {
        let Some(dir) = open_dir(place) else { return };
        chown(dir.path(), Some(1001), Some(5000)).expect("chown");
        set_mode(dir.path(), 0o2775);
        let there = dir.path().join("vm");
        let versions = [1, 2, 3].map(|version| image(&common.dir().join(format!("v{version}")), version));
        let [owner, other] = [as_user("1001", "5000"), as_user("1002", "5000")];
        for (who, version) in [(&owner, 0), (&other, 1), (&other, 2), (&owner, 1), (&owner, 0)] {
            common.run(who, way, &[], &versions[version], &there).ok();
            assert_same(&versions[version], &there);
            let found = fs::metadata(&there).expect("stat");
            assert_eq!((found.gid(), mode(&there)), (5000, 0o664), "{place:?} {way:?}");
            assert_no_leftovers(dir.path());
        }
    }
}

/// A file, a symlink and a directory of somebody else's.
fn foreign_tree(root: &Path) -> PathBuf {
    let tree = root.join("tree");
    fs::create_dir_all(tree.join("dir")).expect("mkdir");
    symlink("dir/image", tree.join("link")).expect("symlink");
    image(&tree.join("dir/image"), 1);
    for name in ["dir", "link", "dir/image"] {
        lchown(tree.join(name), Some(1000), Some(1000)).expect("chown");
    }
    tree
}

#[test]
fn an_owner_that_has_no_number_here_is_a_warning() {
    let common = Common::new();
    let tree = foreign_tree(common.dir());
    let wrap = ["unshare", "--user", "--map-root-user"];
    for way in WAYS {
        let Some(dir) = open_dir(Fs::Ext4) else { return };
        let there = dir.path().join("tree");
        let outcome = common.run(&wrap, way, &["-a"], &tree, dir.path()).code(23);
        for name in ["dir", "link", "dir/image"] {
            let name = there.join(name).display().to_string();
            assert!(outcome.stderr.contains(&format!("{name} is in place, but its ")), "{name}: {outcome}");
        }
        let outcome = outcome.says(&["owner", "are in place without all of their attributes"]);
        assert!(!outcome.stderr.contains("could not be transferred"), "{outcome}");
        assert_same(&tree.join("dir/image"), &there.join("dir/image"));
        assert_eq!(mode(&there.join("dir/image")), 0o664);
        assert_no_leftovers(dir.path());
    }
}

/// Every way of committing meets every call that may be refused.
#[test]
fn what_may_not_be_set_is_a_warning_and_the_content_is_there() {
    if !can_trace() || !lab::is_root() {
        return;
    }
    let common = Common::new();
    let [old, new] = [1, 2].map(|version| image(&common.dir().join(format!("v{version}")), version));
    chown(&new, Some(1000), Some(1000)).expect("chown");
    set_mode(&new, 0o640);
    let refusals = [
        ("fchownat", "EPERM", "its group could not be set"),
        ("fchownat", "EINVAL", "its owner could not be set"),
        ("fchmod", "EPERM", "its mode could not be set"),
        ("fchmod", "EOPNOTSUPP", "its mode could not be set"),
        ("utimensat", "EPERM", "its time could not be set"),
    ];
    let ends: [(Fs, bool, &[&str]); 5] = [
        (Fs::Ext4, true, &["-a"]),
        (Fs::Xfs, true, &["-a"]),
        (Fs::Ext4, false, &["-a"]),
        (Fs::Ext4, true, &["-a", "--inplace"]),
        (Fs::Ext4, true, &["-a", "--size-only"]),
    ];
    for ((call, errno, says), (place, is_there, flags)) in
        refusals.into_iter().flat_map(|refusal| ends.map(|end| (refusal, end)))
    {
        let Some(dir) = open_dir(place) else { return };
        let there = dir.path().join("vm");
        if is_there {
            fs::copy(&old, &there).expect("copy");
        }
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error={errno}"));
        let outcome = common.run(&failing(&trace, &inject), Way::Local, flags, &new, &there).code(23);
        outcome.says(&[&format!("{} is in place, but ", there.display()), says]);
        assert_same(if flags.contains(&"--size-only") { &old } else { &new }, &there);
        assert_no_leftovers(dir.path());
    }
}

#[test]
fn nobody_asks_for_a_mode_with_no_p() {
    if !can_trace() || !lab::is_root() {
        return;
    }
    let common = Common::new();
    let [old, new] = [1, 2].map(|version| image(&common.dir().join(format!("v{version}")), version));
    for (place, is_there) in [(Fs::Ext4, true), (Fs::Xfs, true), (Fs::Ext4, false)] {
        let Some(dir) = open_dir(place) else { return };
        let there = dir.path().join("vm");
        if is_there {
            fs::copy(&old, &there).expect("copy");
        }
        let wrap = failing("trace=fchmod", "inject=fchmod:error=EPERM");
        common.run(&wrap, Way::Local, &["--no-p"], &new, &there).ok();
        assert_same(&new, &there);
    }
}

#[test]
fn an_error_of_storage_is_one_also_where_attributes_are_set() {
    if !can_trace() || !lab::is_root() {
        return;
    }
    let common = Common::new();
    let new = image(&common.dir().join("new"), 2);
    for call in ["fchmod", "utimensat"] {
        let dir = lab::scratch();
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error=EIO"));
        let there = dir.path().join("vm");
        common.run(&failing(&trace, &inject), Way::Local, &[], &new, &there).code(11);
        assert!(!there.exists());
    }
}

#[test]
fn a_directory_that_cannot_be_synced_is_no_failure_and_one_that_failed_is() {
    if !can_trace() || !lab::is_root() {
        return;
    }
    let common = Common::new();
    let new = image(&common.dir().join("new"), 2);
    for (errno, code) in [("EINVAL", 0), ("EBADF", 0), ("EIO", 11)] {
        let dir = lab::scratch();
        // The first is that of the file.
        let inject = format!("inject=fsync:error={errno}:when=2");
        let wrap = failing("trace=fsync", &inject);
        common.run(&wrap, Way::Local, &[], &new, &dir.path().join("vm")).code(code);
        assert_same(&new, &dir.path().join("vm"));
    }
}

#[test]
fn a_directory_that_its_owner_may_not_read_takes_files() {
    let common = Common::new();
    let new = image(&common.dir().join("new"), 2);
    let Some(dir) = open_dir(Fs::Ext4) else { return };
    let below = dir.path().join("below");
    fs::create_dir(&below).expect("mkdir");
    chown(&below, Some(1001), Some(1001)).expect("chown");
    set_mode(&below, 0o300);
    common.run(&as_user("1001", "1001"), Way::Local, &[], &new, &below.join("vm")).ok();
    assert_same(&new, &below.join("vm"));
}

#[test]
fn an_empty_file_that_nobody_may_read_is_found_equal_or_replaced() {
    let common = Common::new();
    let Some(dir) = open_dir(Fs::Ext4) else { return };
    let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
    for flags in [&["--verify"][..], &["-c"], &[], &["--no-p", "--verify"]] {
        for path in [&from, &to] {
            fs::write(path, "").expect("write");
            chown(path, Some(1001), Some(1001)).expect("chown");
        }
        set_mtime(&from, 1_000_000, 5);
        set_mode(&to, 0);
        common.run(&as_user("1001", "1001"), Way::Local, flags, &from, &to).ok();
        assert_eq!(fs::metadata(&to).expect("stat").mtime(), 1_000_000, "{flags:?}");
        fs::remove_file(&to).expect("remove");
    }
}

/// A program that is setuid or setgid, what is asked for, and what arrives.
#[test]
fn set_id_bits_come_with_the_owner_and_group_that_they_mean() {
    if !lab::is_root() {
        return;
    }
    let common = Common::new();
    let table: [(&[&str], u32); 6] = [
        (&[], 0o755),
        (&["-o"], 0o4755),
        (&["-g"], 0o2755),
        (&["-a"], 0o6755),
        (&["-a", "--no-o"], 0o2755),
        (&["-a", "--inplace"], 0o6755),
    ];
    let tree = common.dir().join("tree");
    fs::create_dir(&tree).expect("mkdir");
    let tool = image(&tree.join("tool"), 1);
    for path in [&tree, &tool] {
        chown(path, Some(1001), Some(1002)).expect("chown");
        set_mode(path, 0o6755);
    }
    for ((flags, expected), way) in table.into_iter().flat_map(|row| WAYS.map(|way| (row, way))) {
        let dir = lab::scratch();
        // Onto nothing, onto what is equal, and onto an old program of root's.
        for round in 0..3 {
            common.run(&[], way, flags, &tree, dir.path()).ok();
            let there = dir.path().join("tree/tool");
            assert_same(&tool, &there);
            let found = fs::metadata(&there).expect("stat");
            assert_eq!(mode(&there), expected, "{way:?} {flags:?} {round}");
            assert!(expected & 0o4000 == 0 || found.uid() == 1001);
            assert!(expected & 0o2000 == 0 || found.gid() == 1002);
            assert_eq!(mode(&dir.path().join("tree")) & 0o2000, 0o2000, "a directory keeps it");
            if round == 1 {
                image(&there, 5);
                chown(&there, Some(0), Some(0)).expect("chown");
                set_mode(&there, 0o6755);
            }
        }
    }
}

#[test]
fn a_user_who_cannot_give_the_owner_gets_no_set_id_bits() {
    let common = Common::new();
    if !lab::is_root() {
        return;
    }
    let tool = image(&common.dir().join("tool"), 1);
    chown(&tool, Some(1001), Some(1001)).expect("chown");
    set_mode(&tool, 0o6755);
    for way in WAYS {
        let Some(dir) = open_dir(Fs::Ext4) else { return };
        let there = dir.path().join("tool");
        let outcome = common.run(&as_user("1002", "1002"), way, &["-a"], &tool, &there).code(23);
        outcome.says(&["group could not be set"]);
        assert_same(&tool, &there);
        assert_eq!(mode(&there), 0o755, "{way:?}");
        // To whom they belong, they come.
        fs::remove_file(&there).expect("remove");
        common.run(&as_user("1001", "1001"), way, &["-a"], &tool, &there).ok();
        assert_eq!(mode(&there), 0o6755, "{way:?}");
    }
}

fn has_capability(path: &Path) -> bool {
    let listed =
        run(Command::new("getfattr").args(["-m", "security.capability", "--absolute-names"]).arg(path));
    listed.ok().stdout.contains("security.capability")
}

/// Without `-p`, too, and where content changes in place.
#[test]
fn what_the_old_content_could_do_ends_with_it() {
    if !lab::is_root() {
        return;
    }
    let common = Common::new();
    let [old, new] = [1, 2].map(|version| image(&common.dir().join(format!("v{version}")), version));
    let whole = image(&common.dir().join("whole"), 0);
    let ends: [(Fs, &Path, &[&str]); 7] = [
        (Fs::Ext4, &new, &["--no-p"]),
        (Fs::Ext4, &whole, &["--no-p", "-W"]),
        (Fs::Ext4, &new, &["--no-p", "--inplace"]),
        (Fs::Ext4, &new, &["--no-p", "--commit=atomic"]),
        (Fs::Xfs, &new, &["--no-p"]),
        (Fs::Btrfs, &new, &["--no-p"]),
        (Fs::Ext4, &new, &[]),
    ];
    for ((place, from, flags), way) in ends.into_iter().flat_map(|end| WAYS.map(|way| (end, way))) {
        let Some(dir) = lab::dir(place) else { return };
        let there = dir.path().join("tool");
        fs::copy(&old, &there).expect("copy");
        set_mode(&there, 0o6755);
        run(Command::new("setcap").arg("cap_net_raw+ep").arg(&there)).ok();
        assert!(has_capability(&there));
        common.run(&[], way, flags, from, &there).ok();
        assert_same(from, &there);
        let what = format!("{place:?} {way:?} {flags:?}");
        assert_eq!(mode(&there) & PROGRAM_BITS, 0, "{what}");
        assert_eq!(mode(&there), if flags.is_empty() { 0o664 } else { 0o755 }, "{what}");
        assert!(!has_capability(&there), "{what}");
    }
}

#[test]
fn a_stream_leaves_no_rights_of_the_old_program() {
    if !lab::is_root() {
        return;
    }
    let common = Common::new();
    let dir = lab::scratch();
    let there = image(&dir.path().join("tool"), 1);
    set_mode(&there, 0o6751);
    let outcome = run_on(common.program(&[]).arg("recv").arg(&there), b"DATA\n3\nabcEND\n3\n");
    outcome.ok();
    assert_eq!((fs::read(&there).expect("read"), mode(&there)), (b"abc".to_vec(), 0o751));
}

/// A directory that is only named as the destination.
#[test]
fn a_directory_that_was_there_keeps_mode_and_time_unless_they_are_asked_for() {
    if !lab::is_root() {
        return;
    }
    let common = Common::new();
    let tree = common.dir().join("tree");
    fs::create_dir(&tree).expect("mkdir");
    image(&tree.join("image"), 1);
    set_mode(&tree, 0o755);
    set_mtime(&tree, 1_000_000, 0);
    let contents = PathBuf::from(slash(&tree));
    let table: [(&[&str], bool, bool); 5] = [
        (&[], false, false),
        (&["-t"], false, true),
        (&["-p"], true, false),
        (&["-a"], true, true),
        (&["-a", "--no-t"], true, false),
    ];
    for ((flags, has_mode, has_time), way) in table.into_iter().flat_map(|row| WAYS.map(|way| (row, way))) {
        let dir = lab::scratch();
        let there = dir.path().join("there");
        fs::create_dir(&there).expect("mkdir");
        set_mode(&there, 0o750);
        common.run(&[], way, flags, &contents, &there).ok();
        assert_same(&tree.join("image"), &there.join("image"));
        let what = format!("{way:?} {flags:?}");
        assert_eq!(mode(&there), if has_mode { 0o755 } else { 0o750 }, "{what}");
        assert_eq!(fs::metadata(&there).expect("stat").mtime() == 1_000_000, has_time, "{what}");
        // One that is made for it is given both.
        let made = dir.path().join("made");
        common.run(&[], way, flags, &contents, &made).ok();
        assert_eq!(mode(&made), 0o755, "{what}");
        let time = fs::metadata(&made).expect("stat").mtime();
        assert_eq!(time == 1_000_000, !flags.contains(&"--no-t"), "{what}");
    }
}

/// Directories that are opened to be filled are closed again when the run ends early.
#[test]
fn a_run_that_breaks_off_leaves_directories_as_they_were() {
    let common = Common::new();
    let Some(dir) = open_dir(Fs::Ext4).filter(|_| can_trace()) else { return };
    let tree = common.dir().join("tree");
    for root in [&tree, &dir.path().join("tree")] {
        fs::create_dir_all(root.join("closed")).expect("mkdir");
        chown(root, Some(1001), Some(1001)).expect("chown");
        chown(root.join("closed"), Some(1001), Some(1001)).expect("chown");
        set_mode(&root.join("closed"), 0o555);
    }
    image(&tree.join("closed/image"), 1);
    // The agent is gone before it said what to send.
    let peer = killed_at(common.dir(), "sendfile,pread64", 1);
    let mut command = common.program(&as_user("1001", "1001"));
    command.args(["-e", peer.rsh(), "--agent=require", "--remote-path"]).arg(common.dir().join("holesync"));
    let from = format!("peer:{}", tree.display());
    let outcome = run(command.arg(from).arg(dir.path()));
    assert_ne!(outcome.code, 0, "{outcome}");
    assert_eq!(mode(&dir.path().join("tree/closed")), 0o555, "{outcome}");
}

/// As after a power cut between the seal's attributes and its content, by older versions.
#[test]
fn a_file_of_ones_own_that_is_read_only_is_finished() {
    let Some(target) = open_dir(Fs::Ext4).filter(|_| can_trace()) else { return };
    let common = Common::new();
    let mut rng = Rng(5);
    let old = Layout::dense("old", 24 * BLOCK, &mut rng);
    let new = every(6, &old, &mut rng).resize(25 * BLOCK + 5);
    let redeploy = Redeploy::new(common.dir(), target.path(), Some(&old), &new, &new);
    let peer = killed_at(common.dir(), "copy_file_range", 3);
    let outcome: Outcome = run(peer.holesync().args(redeploy.push("new")));
    assert_ne!(outcome.code, 0, "{outcome}");
    assert_eq!(redeploy.state(), State::Replaying);
    for entry in fs::read_dir(target.path()).expect("list").flatten() {
        chown(entry.path(), Some(1001), Some(1001)).expect("chown");
    }
    // Where others may rename, a seal's attributes would not count.
    chown(target.path(), Some(1001), Some(1001)).expect("chown");
    set_mode(target.path(), 0o755);
    for closed in [0o444, 0] {
        let file = redeploy.image();
        set_mode(&file, closed);
        let mut recover = common.program(&as_user("1001", "1001"));
        let outcome = run(recover.arg("recover").arg(&file)).ok();
        if closed == 0o444 {
            assert!(outcome.stdout.contains("finished from its log"), "{outcome}");
        }
        assert_same(&redeploy.version("new"), &file);
        assert_eq!(mode(&file), if closed == 0 { 0 } else { mode(&redeploy.version("new")) });
    }
}

/// A time that is right says that the content is.
#[test]
fn content_is_synced_before_the_time_that_vouches_for_it() {
    if !can_trace() || !lab::is_root() {
        return;
    }
    let common = Common::new();
    let from = image(&common.dir().join("from"), 1);
    for (flags, synced) in [(&["-c"][..], true), (&["--size-only"], true), (&["-c", "--no-fsync"], false)] {
        let dir = lab::scratch();
        let (there, log) = (dir.path().join("vm"), dir.path().join("calls"));
        fs::copy(&from, &there).expect("copy");
        let log_name = log.to_str().expect("a plain path");
        let wrap = ["strace", "-f", "-qq", "-o", log_name, "-e", "trace=fdatasync,utimensat", "--"];
        common.run(&wrap, Way::Local, flags, &from, &there).ok();
        let calls = fs::read_to_string(&log).expect("read");
        let at = |call: &str| calls.find(call);
        assert!(at("utimensat").is_some(), "{calls}");
        assert_eq!(
            at("fdatasync").is_some_and(|sync| Some(sync) < at("utimensat")),
            synced,
            "{flags:?} {calls}"
        );
        // What has its time is not looked at again.
        common.run(&wrap, Way::Local, &[], &from, &there).ok();
        assert_eq!(fs::read_to_string(&log).expect("read"), "");
    }
}

/// The sync of a file is a flush of the disk, also where there is nothing left to write.
#[test]
fn many_files_that_only_get_a_time_are_synced_together_before_it() {
    if !can_trace() || !lab::is_root() {
        return;
    }
    const FILES: usize = 60;
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
        let Some(dir) = lab::dir(fs) else { return };
        let (from, there, log) =
            (dir.path().join("from"), dir.path().join("there"), dir.path().join("calls"));
        for dir in [&from, &there] {
            fs::create_dir(dir).expect("create a directory");
            for n in 0..FILES {
                fs::write(dir.join(format!("{n}")), format!("content {n}")).expect("write");
            }
        }
        for n in 0..FILES {
            set_mtime(&there.join(format!("{n}")), 1, 0);
        }
        let calls = || {
            let log = log.to_str().expect("a plain path");
            let wrap = ["strace", "-f", "-qq", "-o", log, "-e", "trace=fdatasync,syncfs,utimensat", "--"];
            let common = Common::new();
            let from = from.join("");
            common.run(&wrap, Way::Local, &["-rt"], &from, &there.join("")).ok();
            fs::read_to_string(log).expect("read")
        };
        // What changed within the tick in which all is synced is synced by itself.
        std::thread::sleep(std::time::Duration::from_millis(50));
        let first = calls();
        let count = |call: &str| first.lines().filter(|line| line.contains(&format!("{call}("))).count();
        assert_eq!((count("fdatasync"), count("syncfs")), (16, 1), "{fs:?} {first}");
        assert!(count("utimensat") >= FILES, "{fs:?} {first}");
        assert_same(&from.join("59"), &there.join("59"));
        let time = |dir: &Path| fs::metadata(dir.join("59")).expect("stat").mtime();
        assert_eq!(time(&there), time(&from));
        let again = calls();
        assert!(!again.contains("sync"), "{fs:?} {again}");
    }
}

/// Looks for working files beside every file of a directory cost more than its listing.
#[test]
fn a_directory_at_rest_is_listed_in_the_place_of_looks_beside_its_files() {
    if !can_trace() {
        return;
    }
    const FILES: usize = 600;
    let Some(dir) = lab::dir(Fs::Ext4) else { return };
    let (from, there, log) = (dir.path().join("from"), dir.path().join("there"), dir.path().join("calls"));
    for dir in [&from, &there] {
        fs::create_dir(dir).expect("create a directory");
        for n in 0..FILES {
            fs::write(dir.join(format!("{n}")), "content").expect("write");
            set_mtime(&dir.join(format!("{n}")), 1, 0);
        }
    }
    let looks = || {
        let log = log.to_str().expect("a plain path");
        let wrap = ["strace", "-f", "-qq", "-o", log, "-e", "trace=%%stat", "--"];
        Common::new().run(&wrap, Way::Local, &["-rt"], &from.join(""), &there.join("")).ok();
        let calls = fs::read_to_string(log).expect("read");
        calls.lines().filter(|line| line.contains(".holesync")).count()
    };
    // Longer than the coarsest tick of a local file system.
    std::thread::sleep(std::time::Duration::from_secs(4));
    // Six names a file. While one of four workers lists it, the others go on and look for
    // themselves.
    let looked = looks();
    assert!((6 * 15..6 * FILES).contains(&looked), "{looked}");
    // What a killed run left goes, whichever file it lies beside.
    let left = there.join(".59.holesync.temp");
    fs::write(&left, "").expect("write");
    fs::set_permissions(&left, fs::Permissions::from_mode(0o600)).expect("set the mode");
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert!(looks() >= 6 * FILES);
    assert!(!left.exists());
}

/// A symlink to a file that is named as the only destination.
#[test]
fn a_named_symlink_is_followed_in_place_and_replaced_otherwise() {
    let common = Common::new();
    let [old, new] = [1, 2].map(|version| image(&common.dir().join(format!("v{version}")), version));
    for (flags, way) in [&["--inplace"][..], &[]].into_iter().flat_map(|flags| WAYS.map(|way| (flags, way))) {
        let dir = lab::scratch();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::copy(&old, &file).expect("copy");
        symlink("file", &link).expect("symlink");
        let inode = fs::metadata(&file).expect("stat").ino();
        common.run(&[], way, flags, &new, &link).ok();
        let what = format!("{way:?} {flags:?}");
        assert_eq!(link.is_symlink(), !flags.is_empty(), "{what}");
        assert_same(&new, &link);
        assert_same(if flags.is_empty() { &old } else { &new }, &file);
        assert_eq!(fs::metadata(&file).expect("stat").ino(), inode, "{what}");
        assert_no_leftovers(dir.path());
    }
}
