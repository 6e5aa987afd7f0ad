//! What other programs use is not written by a shell either, as far as its tools tell; and
//! what it says is done is on storage.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::account::which;
use crate::common::check::{assert_no_leftovers, assert_same};
use crate::common::faults::can_trace;
use crate::common::guests::qemu;
use crate::common::lab::{self, Fs, Loop, Mounted};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at, shell_word};
use crate::common::process::{run, wait_until};
use crate::common::tree::set_mtime;

const MIB: usize = 1 << 20;

/// A far side whose shell and tools are those of BusyBox.
fn busybox(dir: &Path) -> Peer {
    let bin = dir.join("busybox");
    fs::create_dir(&bin).expect("create a directory");
    let busybox = which("busybox");
    let applets = run(Command::new(&busybox).arg("--list")).ok();
    for applet in applets.stdout.lines() {
        symlink(&busybox, bin.join(applet)).expect("symlink");
    }
    let bin = shell_word(&bin);
    Peer::script(dir, &format!("export PATH={bin}\nexec {bin}/sh -c \"$command\""))
}

fn peers(dir: &Path) -> [Peer; 2] {
    let other = dir.join("other");
    fs::create_dir(&other).expect("create a directory");
    [Peer::pipe(&other), busybox(dir)]
}

/// An old image and a new one.
fn pair(dir: &Path) -> (PathBuf, PathBuf) {
    let [new, image] = ["new", "image"].map(|name| dir.join(name));
    Layout::dense("new", 2 * MIB, &mut Rng(1)).write(&new);
    Layout::dense("image", 2 * MIB, &mut Rng(2)).write(&image);
    set_mtime(&new, 86_400, 0);
    (new, image)
}

#[test]
fn a_mounted_device_is_not_written() {
    if !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    let (new, behind) = pair(dir.path());
    let device = Loop::over(&behind);
    let mount = dir.path().join("mount");
    fs::create_dir(&mount).expect("create");
    run(Command::new("mkfs.ext4").arg("-q").arg(&device.0)).ok();
    for peer in peers(dir.path()) {
        run(Command::new("mount").args(["-o", "ro"]).arg(&device.0).arg(&mount)).ok();
        let before = fs::read(&device.0).expect("read");
        let outcome = run(peer.shell().arg(&new).arg(at(&device.0)));
        let same = fs::read(&device.0).expect("read") == before;
        run(Command::new("umount").arg(&mount)).ok();
        outcome.code(23).says(&["in use", "mounted at", mount.to_str().expect("a path"), "--force-in-use"]);
        assert!(same, "written");
    }
    run(Peer::pipe(dir.path()).shell().arg(&new).arg(at(&device.0))).ok();
}

#[test]
fn a_part_of_a_device_in_use_is_use_of_the_whole() {
    if !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    let (new, behind) = pair(dir.path());
    fs::File::options().write(true).open(&behind).and_then(|file| file.set_len(32 << 20)).expect("grow");
    let device = Loop::over(&behind);
    run(Command::new("addpart").arg(&device.0).args(["1", "2048", "61440"])).ok();
    let part = PathBuf::from(format!("{}p1", device.0.display()));
    let mount = dir.path().join("mount");
    fs::create_dir(&mount).expect("create");
    run(Command::new("mkfs.ext4").arg("-q").arg(&part)).ok();
    run(Command::new("mount").args(["-o", "ro"]).arg(&part).arg(&mount)).ok();
    let [whole, agent] = [true, false].map(|shell| {
        let peer = Peer::pipe(dir.path());
        let mut command = if shell { peer.shell() } else { peer.holesync() };
        run(command.arg(&new).arg(at(&device.0)))
    });
    run(Command::new("umount").arg(&mount)).ok();
    // Who looked at it may have it open for a moment longer.
    let delete = || run(Command::new("delpart").arg(&device.0).arg("1")).code == 0;
    assert!(wait_until(Duration::from_secs(10), delete), "the part stays");
    whole.code(23).says(&["in use", "mounted at"]);
    agent.code(23).says(&["in use", "mounted at"]);
}

#[test]
fn an_image_that_qemu_has_open_is_not_written() {
    for fs in [Fs::Ext4, Fs::Btrfs] {
        let Some(dir) = lab::dir(fs) else { return };
        let (new, image) = pair(dir.path());
        let before = fs::read(&image).expect("read");
        for (peer, flags) in peers(dir.path()).iter().zip([&[][..], &["--inplace"]]) {
            let guest = qemu(&image, &[]);
            let outcome = run(peer.shell().args(flags).arg(&new).arg(at(&image)));
            outcome.code(23).says(&["in use", "holds a lock on it", "--force-in-use"]);
            assert!(fs::read(&image).expect("read") == before, "written");
            let copy = dir.path().join("copy");
            let pulled = run(peer.shell().arg(at(&image)).arg(&copy)).ok();
            assert_eq!(pulled.stderr.matches("may be inconsistent").count(), 1, "{pulled}");
            assert_same(&image, &copy);
            fs::remove_file(&copy).expect("remove");
            drop(guest);
            let quiet = run(peer.shell().arg(at(&image)).arg(&copy)).ok();
            assert!(!quiet.stderr.contains("inconsistent"), "{quiet}");
            fs::remove_file(&copy).expect("remove");
        }
        let _guest = qemu(&image, &[]);
        let peer = Peer::pipe(dir.path());
        run(peer.shell().arg("--force-in-use").arg(&new).arg(at(&image))).ok();
        assert_same(&new, &image);
        assert_no_leftovers(dir.path());
    }
}

/// On btrfs the kernel names the file of a lock by other numbers than stat(2) does.
#[test]
fn a_lock_on_btrfs_is_seen_and_one_of_another_btrfs_is_not_taken_for_it() {
    if !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    let (new, _) = pair(dir.path());
    let disks = [(); 2].map(|()| Mounted::new(256, &["mkfs.btrfs", "-q"], &[]));
    let [image, other] = disks.each_ref().map(|disk| disk.path().join("image"));
    [&image, &other].into_iter().for_each(|path| fs::write(path, "old").expect("write"));
    let inode = |path: &Path| fs::metadata(path).expect("stat").ino();
    assert_eq!(inode(&image), inode(&other));
    for peer in peers(dir.path()) {
        let locked = fs::File::open(&other).expect("open");
        locked.lock().expect("lock");
        let push = |to: &Path| run(peer.shell().arg("-I").arg(&new).arg(at(to)));
        push(&image).ok();
        assert_same(&new, &image);
        push(&other).code(23).says(&["in use", "holds a lock on it"]);
        assert_eq!(fs::read(&other).expect("read"), b"old");
        fs::write(&image, "old").expect("write");
    }
}

#[test]
fn a_file_behind_a_loop_device_is_not_written() {
    if !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    let (new, image) = pair(dir.path());
    let before = fs::read(&image).expect("read");
    let device = Loop::over(&image);
    for peer in peers(dir.path()) {
        let outcome = run(peer.shell().arg(&new).arg(at(&image)));
        outcome.code(23).says(&["in use", device.0.to_str().expect("a path")]);
        assert!(fs::read(&image).expect("read") == before, "written");
    }
}

#[test]
fn the_directory_is_synced_after_the_last_rename() {
    if !can_trace() {
        return;
    }
    let dir = lab::scratch();
    let (new, _) = pair(dir.path());
    let target = dir.path().join("target");
    fs::create_dir(&target).expect("create");
    let log = dir.path().join("log");
    let peer = Peer::script(
        dir.path(),
        &format!("exec strace -f -y -qq -o {} -e trace=fsync,/rename sh -c \"$command\"", shell_word(&log)),
    );
    run(peer.shell().arg(&new).arg(at(target.join("image")))).ok();
    let calls = fs::read_to_string(&log).expect("read the calls");
    let last = |is: &dyn Fn(&str) -> bool| calls.lines().enumerate().filter(|(_, line)| is(line)).last();
    let is_sync = |line: &str| line.contains("fsync(") && line.contains(&format!("<{}>", target.display()));
    let (renamed, synced) = (last(&|line| line.contains("rename")), last(&is_sync));
    let [renamed, synced] = [renamed, synced].map(|found| found.map(|(index, _)| index));
    assert!(renamed.is_some() && synced > renamed, "{calls}");
    fs::remove_file(&log).expect("remove");
    set_mtime(&new, 2 * 86_400, 0);
    run(peer.shell().arg("--no-fsync").arg(&new).arg(at(target.join("image")))).ok();
    let calls = fs::read_to_string(&log).expect("read the calls");
    assert!(!calls.contains("fsync("), "{calls}");
}

#[test]
fn a_shell_that_nobody_asked_for_is_told_of_once() {
    let dir = lab::scratch();
    let (new, _) = pair(dir.path());
    let peer = Peer::script(dir.path(), "PATH=/usr/bin:/bin agent");
    let rsh = peer.rsh().to_owned();
    let mut auto = crate::common::process::holesync();
    auto.args(["-e", &rsh, "--agent=auto", "--remote-path", "no-such-holesync"])
        .arg(&new)
        .arg(at(dir.path().join("auto")));
    // A log need not have it each night.
    let quiet = run(&mut auto).ok();
    assert!(!quiet.stderr.contains("takes part"), "{quiet}");
    let outcome = run(auto.arg("-v")).ok();
    assert_eq!(outcome.stderr.matches("takes part without a holesync").count(), 1, "{outcome}");
    let asked = run(peer.shell().arg(&new).arg(at(dir.path().join("asked")))).ok();
    assert_eq!(asked.stderr, "");
}

#[test]
fn a_file_without_blocks_is_no_hole() {
    // sysfs counts no blocks for any file.
    let source = Path::new("/sys/kernel/btf/vmlinux");
    if !source.exists() {
        return lab::skip("this kernel has no /sys/kernel/btf/vmlinux");
    }
    let dir = lab::scratch();
    for (index, peer) in peers(dir.path()).iter().enumerate() {
        let copy = dir.path().join(format!("copy-{index}"));
        run(peer.shell().arg(at(source)).arg(&copy)).ok();
        assert_same(source, &copy);
    }
}
