//! Block devices as sources and as destinations: loop devices over files.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::check::{assert_begins_with, assert_holes_kept, assert_same};
use crate::common::lab::{self, Loop};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, holesync, run, run_on};

const MIB: usize = 1 << 20;
const BLOCK: usize = 64 << 10;

/// A device of 8 MiB full of garbage, and the file behind it.
struct Garbage {
    dir: tempfile::TempDir,
    device: Loop,
}

impl Garbage {
    /// `None`, and a counted skip, where devices cannot be made.
    fn new() -> Option<Garbage> {
        if !lab::is_root() {
            return None;
        }
        let dir = lab::scratch();
        let behind = dir.path().join("behind");
        Layout::dense("behind", 8 * MIB, &mut Rng(99)).write(&behind);
        let device = Loop::over(&behind);
        Some(Garbage { dir, device })
    }

    fn path(&self) -> &Path {
        &self.device.0
    }

    /// A file beside it.
    fn file(&self, layout: &Layout) -> PathBuf {
        let path = self.dir.path().join(&layout.name);
        layout.write(&path);
        path
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).expect("read the device")
    }

    /// Makes the device this image, over pipes.
    #[track_caller]
    fn push(&self, flags: &[&str], image: &Path) -> Outcome {
        let peer = Peer::pipe(self.dir.path());
        run(peer.holesync().arg("--json").args(flags).arg(image).arg(at(self.path())))
    }
}

/// Holes, allocated zeros, an odd length.
fn image() -> Layout {
    let rng = &mut Rng(5);
    let layout = Layout::dense("image", 5 * MIB + 1234, rng).punch(MIB..3 * MIB);
    layout.zeros(4 * MIB..4 * MIB + 3 * BLOCK).punch(3 * MIB + 4096..3 * MIB + 8192)
}

#[test]
fn an_image_on_a_device_is_equal_holes_included_and_the_rest_is_left_alone() {
    for flags in [&[][..], &["--inplace"], &["-W"], &["--no-hole-map"], &["--verify"], &["-B", "4K"]] {
        let Some(garbage) = Garbage::new() else { return };
        let (before, layout) = (garbage.bytes(), image());
        let path = garbage.file(&layout);
        garbage.push(flags, &path).ok();
        assert_begins_with(garbage.path(), &path);
        assert!(garbage.bytes()[layout.len()..] == before[layout.len()..], "{flags:?}: beyond the image");
    }
}

#[test]
fn a_device_that_has_the_image_is_not_written() {
    let Some(garbage) = Garbage::new() else { return };
    let path = garbage.file(&image());
    garbage.push(&[], &path).ok();
    let again = garbage.push(&[], &path).ok();
    for count in ["sent_data_bytes", "written_bytes", "punched_bytes", "files_sent"] {
        assert_eq!(again.count(count), 0, "{count}: {again}");
    }
    let path = garbage.file(&image().data(9 * BLOCK..9 * BLOCK + 1, &mut Rng(2)));
    let changed = garbage.push(&[], &path).ok();
    assert_eq!(changed.count("sent_data_bytes"), BLOCK as u64, "{changed}");
    assert_begins_with(garbage.path(), &path);
}

#[test]
fn a_device_that_is_too_small_is_refused_before_anything_is_written() {
    let Some(garbage) = Garbage::new() else { return };
    let before = garbage.bytes();
    let path = garbage.file(&Layout::dense("image", 8 * MIB + 1, &mut Rng(1)));
    for flags in [&[][..], &["-n"], &["-W"]] {
        let outcome = garbage.push(flags, &path).code(23);
        for part in ["8388608", "8388609", "nothing was written", garbage.path().to_str().expect("a path")] {
            assert!(outcome.stdout.contains(part), "{part:?} is not in {outcome}");
        }
        assert!(garbage.bytes() == before, "{flags:?}");
    }
}

#[test]
fn a_device_in_use_is_refused() {
    let Some(garbage) = Garbage::new() else { return };
    run(Command::new("mkfs.ext4").arg("-q").arg(garbage.path())).ok();
    let mount = garbage.dir.path().join("mount");
    fs::create_dir(&mount).expect("create");
    run(Command::new("mount").arg(garbage.path()).arg(&mount)).ok();
    let path = garbage.file(&image());
    let outcome = garbage.push(&[], &path);
    run(Command::new("umount").arg(&mount)).ok();
    let outcome = outcome.code(23);
    for part in ["in use", "mounted at", mount.to_str().expect("a path"), "--force-in-use"] {
        assert!(outcome.stdout.contains(part), "{part:?} is not in {outcome}");
    }
    garbage.push(&[], &path).ok();
}

#[test]
fn a_mounted_device_is_refused_in_a_dry_run_warned_of_as_a_source_and_written_by_force() {
    let Some(garbage) = Garbage::new() else { return };
    run(Command::new("mkfs.ext4").arg("-q").arg(garbage.path())).ok();
    let mount = garbage.dir.path().join("mount");
    fs::create_dir(&mount).expect("create");
    let (path, copy) = (garbage.file(&image()), garbage.dir.path().join("copy"));
    for (rights, warnings) in [("ro", 0), ("rw", 1)] {
        run(Command::new("mount").args(["-o", rights]).arg(garbage.path()).arg(&mount)).ok();
        let dry = run(holesync().arg("-n").arg(&path).arg(garbage.path()));
        let read = run(holesync().arg(garbage.path()).arg(&copy));
        run(Command::new("umount").arg(&mount)).ok();
        dry.code(23).says(&["in use", "mounted at"]);
        assert_eq!(read.stderr.matches("may be inconsistent").count(), warnings, "{read}");
    }
    // Mounted, since there is no other way to hold it here.
    run(Command::new("mount").args(["-o", "ro"]).arg(garbage.path()).arg(&mount)).ok();
    let forced = garbage.push(&["--force-in-use"], &path);
    let written = fs::read(garbage.path()).expect("read the device");
    run(Command::new("umount").arg(&mount)).ok();
    forced.ok();
    assert!(written.starts_with(&fs::read(&path).expect("read the image")));
}

/// A directory below `/dev` of the test's own.
struct NodeDirectory(PathBuf);

impl NodeDirectory {
    fn new() -> Option<NodeDirectory> {
        if !lab::is_root() {
            return None;
        }
        let path = PathBuf::from(format!("/dev/holesync-test-{}", std::process::id()));
        fs::create_dir(&path).expect("create a directory below /dev");
        Some(NodeDirectory(path))
    }
}

impl Drop for NodeDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn where_a_device_node_is_missing_no_file_is_made() {
    let Some(nodes) = NodeDirectory::new() else { return };
    let dir = lab::scratch();
    let path = dir.path().join("image");
    image().write(&path);
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).expect("create");
    fs::copy(&path, tree.join("vm")).expect("copy");
    let peer = Peer::pipe(dir.path());
    let node = nodes.0.join("vm");
    let link = dir.path().join("link");
    symlink(&node, &link).expect("link");
    let says = ["no such device", "set the device up first"];
    for target in [&node, &link] {
        for flags in [&[][..], &["-n"], &["--inplace"], &["-W"]] {
            run(holesync().args(flags).arg(&path).arg(target)).code(23).says(&says);
            run(peer.holesync().args(flags).arg(&path).arg(at(target))).code(23).says(&says);
            run(peer.holesync().args(flags).arg(at(&path)).arg(target)).code(23).says(&says);
        }
        run(peer.shell().arg(at(&path)).arg(target)).code(23).says(&says);
        run(peer.shell().arg(&path).arg(at(target))).code(23).says(&["no such device"]);
        run_on(holesync().arg("recv").arg(target), b"DATA\n1\nx").code(23).says(&says);
    }
    run(holesync().arg(tree.join("")).arg(&nodes.0)).code(23).says(&says);
    assert!(fs::read_dir(&nodes.0).expect("list").next().is_none() && link.is_symlink());
    // Memory that is for files is none of this.
    let memory = PathBuf::from(format!("/dev/shm/holesync-test-{}", std::process::id()));
    if Path::new("/dev/shm").is_dir() {
        let outcome = run(holesync().arg(&path).arg(&memory));
        let _ = fs::remove_file(&memory);
        outcome.ok();
    }
}

#[test]
fn a_device_becomes_a_sparse_file() {
    let Some(garbage) = Garbage::new() else { return };
    let sparse = garbage.file(&image());
    garbage.push(&[], &sparse).ok();
    // Beyond the image there is garbage, so that the device has no zeros but the image's.
    let link = garbage.dir.path().join("link");
    symlink(garbage.path(), &link).expect("link");
    let behind = garbage.dir.path().join("behind");
    let peer = Peer::pipe(garbage.dir.path());
    for source in [garbage.path(), &link] {
        let copy = garbage.dir.path().join("copy");
        run(peer.holesync().arg(source).arg(at(&copy))).ok();
        assert_same(&behind, &copy);
        assert_holes_kept(&behind, &copy);
        fs::remove_file(&copy).expect("remove");
        run(peer.holesync().arg(at(source)).arg(&copy)).ok();
        assert_same(&behind, &copy);
        fs::remove_file(&copy).expect("remove");
        run(holesync().arg(source).arg(&copy)).ok();
        assert_same(&behind, &copy);
        assert_holes_kept(&behind, &copy);
        fs::remove_file(&copy).expect("remove");
    }
}

#[test]
fn a_symlink_to_a_device_names_the_device() {
    let Some(garbage) = Garbage::new() else { return };
    let path = garbage.file(&image());
    let link = garbage.dir.path().join("link");
    symlink(garbage.path(), &link).expect("link");
    run(holesync().arg(&path).arg(&link)).ok();
    assert_begins_with(garbage.path(), &path);
    assert!(link.is_symlink(), "the link is replaced");
}

#[test]
fn a_device_is_reached_over_ssh_too() {
    let (Some(garbage), Some(peer)) = (Garbage::new(), Peer::sshd()) else { return };
    let path = garbage.file(&image());
    run(peer.holesync().arg(&path).arg(at(garbage.path()))).ok();
    assert_begins_with(garbage.path(), &path);
    let other = garbage.dir.path().join("other");
    File::create(&other).and_then(|file| file.write_all_at(&[0], 8 * MIB as u64 - 1)).expect("create");
    let copy = Loop::over(&other);
    run(peer.holesync().arg(at(garbage.path())).arg(&copy.0)).ok();
    assert!(garbage.bytes() == fs::read(&copy.0).expect("read"), "from device to device");
}

#[test]
fn no_named_destination_is_replaced_by_a_symlink() {
    let Some(garbage) = Garbage::new() else { return };
    let dir = garbage.dir.path();
    // What is named is followed, but for a directory.
    fs::create_dir(dir.join("directory")).expect("mkdir");
    symlink("directory", dir.join("link")).expect("symlink");
    fs::write(dir.join("file"), "kept").expect("write");
    nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    let peer = Peer::pipe(dir);
    let device = garbage.path().to_path_buf();
    let before = garbage.bytes();
    for to in [&device, &dir.join("file"), &dir.join("fifo")] {
        let kind = fs::symlink_metadata(to).expect("stat").file_type();
        for (mut command, from) in [
            (holesync(), dir.join("link").into_os_string()),
            (peer.holesync(), at(dir.join("link"))),
            (peer.shell(), at(dir.join("link"))),
        ] {
            let outcome = run(command.arg(&from).arg(to)).code(23);
            outcome.says(&["would be replaced by a symlink"]);
            assert_eq!(fs::symlink_metadata(to).expect("stat").file_type(), kind);
        }
    }
    assert_eq!(fs::read(dir.join("file")).expect("read"), b"kept");
    assert!(garbage.bytes() == before, "the device was written");
}
