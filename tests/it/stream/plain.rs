//! `-` as SRC: a plain image from stdin, into files and devices, here and on a host.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::check::{assert_begins_with, assert_holes_kept, assert_no_leftovers, assert_same};
use crate::common::faults::{Direction, Fault};
use crate::common::lab::{self, Fs, Loop};
use crate::common::layout::{Layout, Rng, layouts};
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, holesync, run_on, start_on};

const MIB: usize = 1 << 20;
const BLOCK: usize = 64 << 10;

/// Where the destination is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Where {
    Here,
    /// At an agent over two pipes.
    There,
}

const BOTH: [Where; 2] = [Where::Here, Where::There];

impl Where {
    fn command(self, dir: &Path, flags: &[&str], to: &Path) -> Command {
        let (mut command, to): (Command, OsString) = match self {
            Where::Here => (holesync(), to.into()),
            Where::There => (Peer::pipe(dir).holesync(), at(to)),
        };
        command.args(flags).arg("-").arg(to);
        command
    }

    #[track_caller]
    fn run(self, dir: &Path, flags: &[&str], image: &[u8], to: &Path) -> Outcome {
        run_on(&mut self.command(dir, flags, to), image)
    }
}

/// An image without zeros, and the same with other bytes in some places.
fn old_and_new(len: usize, changed: &[usize]) -> (Vec<u8>, Vec<u8>) {
    let mut old = vec![0; len];
    Rng(3).fill(&mut old);
    let mut new = old.clone();
    changed.iter().for_each(|&at| new[at] ^= 1);
    (old, new)
}

#[test]
fn an_image_of_any_layout_becomes_a_file_with_holes_over_whatever_was_there() {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        let (scratch, source, copy) = (lab::scratch(), dir.path().join("source"), dir.path().join("copy"));
        for side in BOTH {
            for layout in layouts(&mut Rng(7)) {
                eprintln!("{} on {fs:?}, {side:?}", layout.name);
                layout.write(&source);
                // The length and content of the one before it are what there is to compare with.
                let image = fs::read(&source).expect("read");
                if image.is_empty() {
                    continue;
                }
                side.run(scratch.path(), &["--verify"], &image, &copy).ok();
                assert_same(&source, &copy);
                File::open(&copy).expect("open").sync_all().expect("sync");
                assert_holes_kept(&source, &copy);
                let before = fs::metadata(&copy).expect("look").ino();
                let again = side.run(scratch.path(), &["--json"], &image, &copy).ok();
                assert_eq!(again.count("files_sent"), 0, "{again}");
                assert_eq!(again.count("sent_data_bytes"), 0, "{again}");
                assert_eq!(fs::metadata(&copy).expect("look").ino(), before, "it stays the file that it was");
                fs::remove_file(&source).expect("remove");
            }
            assert!(fs::remove_file(&copy).is_ok(), "{copy:?}");
            assert_no_leftovers(dir.path());
        }
    }
}

#[test]
fn only_blocks_that_differ_travel() {
    let dir = lab::scratch();
    let copy = dir.path().join("copy");
    // The last block is short, and differs, too.
    let len = 5 * MIB + 12_345;
    let (old, new) = old_and_new(len, &[70_000, 3 * MIB, 3 * MIB + 1, len - 1]);
    fs::write(&copy, &old).expect("write");
    let tried = Where::There.run(dir.path(), &["--json", "-n"], &new, &copy).ok();
    assert!(fs::read(&copy).expect("read") == old, "a dry run changes nothing");
    assert_no_leftovers(dir.path());
    let done = Where::There.run(dir.path(), &["--json", "--compress=none"], &new, &copy).ok();
    assert!(fs::read(&copy).expect("read") == new);
    let sent = (2 * BLOCK + 12_345) as u64;
    for outcome in [&tried, &done] {
        assert_eq!(outcome.count("sent_data_bytes"), sent, "{outcome}");
        assert_eq!(outcome.count("apparent_bytes"), len as u64, "{outcome}");
        assert_eq!(outcome.count("files_sent"), 1, "{outcome}");
    }
    let wire = done.count("wire_bytes_sent");
    assert!((sent..sent + 16_384).contains(&wire), "{done}");
    // Pages that did not change are not written.
    assert!(done.count("written_bytes") <= 4 * 4096, "{done}");
    let here = Where::Here.run(dir.path(), &["--json"], &old, &copy).ok();
    assert!(fs::read(&copy).expect("read") == old);
    assert!(here.count("written_bytes") <= 4 * 4096, "{here}");
}

#[test]
fn a_device_gets_what_differs_and_zeros_where_it_has_none() {
    if !lab::is_root() {
        return;
    }
    for side in BOTH {
        let dir = lab::scratch();
        let (behind, image) = (dir.path().join("behind"), dir.path().join("image"));
        Layout::dense("behind", 3 * MIB, &mut Rng(6)).write(&behind);
        Layout::dense("image", 2 * MIB + 5000, &mut Rng(5)).punch(200_000..900_000).write(&image);
        let device = Loop::over(&behind);
        let tail = fs::read(&device.0).expect("read")[2 * MIB + 5000..].to_vec();
        let bytes = fs::read(&image).expect("read");
        side.run(dir.path(), &["-n"], &bytes, &device.0).ok();
        assert!(fs::read(&device.0).expect("read")[..MIB] != bytes[..MIB], "a dry run changes nothing");
        side.run(dir.path(), &["--verify"], &bytes, &device.0).ok();
        assert_begins_with(&device.0, &image);
        assert!(fs::read(&device.0).expect("read")[2 * MIB + 5000..] == tail, "what is behind it stays");
        let again = side.run(dir.path(), &["--json"], &bytes, &device.0).ok();
        assert_eq!((again.count("sent_data_bytes"), again.count("written_bytes")), (0, 0), "{again}");
        // Nothing is compared: zeros are written all the same.
        let (_, other) = old_and_new(2 * MIB + 5000, &[]);
        fs::write(&device.0, other).expect("write");
        side.run(dir.path(), &["-W"], &bytes, &device.0).ok();
        assert_begins_with(&device.0, &image);
    }
}

#[test]
fn what_does_not_fit_a_device_is_refused() {
    if !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    let behind = dir.path().join("behind");
    Layout::dense("behind", MIB, &mut Rng(6)).write(&behind);
    let device = Loop::over(&behind);
    let before = fs::read(&device.0).expect("read");
    for side in BOTH {
        let packed = [&b"\xfd7zXZ\0"[..], &before[..9000]].concat();
        let says = ["is packed (xz)", "xz -d < FILE | holesync - DEST", "--as-is"];
        side.run(dir.path(), &[], &packed, &device.0).code(23).says(&says);
        assert!(fs::read(&device.0).expect("read") == before, "{side:?}: something was written");
        side.run(dir.path(), &["--as-is"], &packed, &device.0).ok();
        fs::write(&device.0, &before).expect("write");
        let (_, large) = old_and_new(2 * MIB, &[]);
        for flags in [&["-n"][..], &[]] {
            let outcome = side.run(dir.path(), flags, &large, &device.0);
            outcome.code(23).says(&["the device holds 1048576 bytes and the image has"]);
        }
        fs::write(&device.0, &before).expect("write");
    }
}

#[test]
fn an_image_that_breaks_off_leaves_the_old_one() {
    let len = 6 * MIB;
    let (old, new) = old_and_new(len, &(0..len).step_by(BLOCK).collect::<Vec<_>>());
    for fs in [Fs::Ext4, Fs::Xfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        let scratch = lab::scratch();
        let copy = dir.path().join("copy");
        fs::write(&copy, &old).expect("write");
        let before = fs::metadata(&copy).expect("look").ino();
        for (fault, direction) in [
            (Fault::Cut(600), Direction::ToAgent),
            (Fault::Cut(2_000_000), Direction::ToAgent),
            (Fault::Flip(2_000_000, 1), Direction::ToAgent),
            (Fault::Cut(60), Direction::FromAgent),
        ] {
            let peer = fault.peer(scratch.path(), direction);
            let outcome = run_on(peer.holesync().args(["--compress=none", "-"]).arg(at(&copy)), &new);
            assert!([10, 12].contains(&outcome.code), "{fault:?} {direction:?}: {outcome}");
            assert!(fs::read(&copy).expect("read") == old, "{fs:?}, {fault:?}: the old image is whole");
            assert_eq!(fs::metadata(&copy).expect("look").ino(), before);
        }
        // What cannot be read has no end that counts.
        for side in BOTH {
            let directory = File::open(scratch.path()).expect("open");
            let mut command = side.command(scratch.path(), &[], &copy);
            start_on(&mut command, Stdio::from(directory)).finish().code(23).says(&["cannot read stdin"]);
            side.run(scratch.path(), &[], b"", &copy).code(23).says(&["nothing at all came from it"]);
        }
        assert!(fs::read(&copy).expect("read") == old);
        Where::There.run(scratch.path(), &[], &new, &copy).ok();
        assert!(fs::read(&copy).expect("read") == new);
        assert_no_leftovers(dir.path());
    }
}

#[test]
fn what_does_not_go_with_it_is_said() {
    let dir = lab::scratch();
    let copy = dir.path().join("copy");
    fs::write(&copy, "old").expect("write");
    for (flags, says) in [
        (&["-c"][..], "leave -c, -I and --size-only out"),
        (&["--retries=2"], "leave --retries out"),
        (&["--files-from=-"], "leave --files-from out"),
        (&["--delete"], "leave out what picks, places or removes"),
        (&["--update"], "leave out what picks, places or removes"),
        (&["--backup"], "leave --backup"),
        (&["other"], "leave the other sources out; a file of that name is ./-"),
    ] {
        Where::Here
            .run(dir.path(), flags, b"new", &copy)
            .code(1)
            .says(&["- as SRC is one image from stdin", says]);
    }
    Where::Here
        .run(dir.path(), &["--through", "cat"], b"new", &copy)
        .code(1)
        .says(&["--through tells its command"]);
    for side in BOTH {
        side.run(dir.path(), &[], b"new", dir.path())
            .code(23)
            .says(&["is a directory", "name the file or device itself"]);
    }
    let peer = Peer::pipe(dir.path());
    let outcome = run_on(peer.shell().arg("-").arg(at(&copy)), b"new");
    outcome.code(5).says(&["an image from stdin needs a holesync there", "--agent=push"]);
    assert_eq!(fs::read(&copy).expect("read"), b"old");
}

#[test]
fn in_place_and_over_ssh_it_is_the_same() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let copy = dir.path().join("copy");
    let (old, new) = old_and_new(2 * MIB + 77, &[0, MIB]);
    fs::write(&copy, &old).expect("write");
    let before = fs::metadata(&copy).expect("look").ino();
    run_on(peer.holesync().args(["--inplace", "-"]).arg(at(&copy)), &new).ok();
    assert!(fs::read(&copy).expect("read") == new);
    assert_eq!(fs::metadata(&copy).expect("look").ino(), before);
    run_on(peer.holesync().arg("-").arg(at(&copy)), &old[..MIB]).ok();
    assert!(fs::read(&copy).expect("read") == old[..MIB], "a shorter one");
    run_on(peer.holesync().args(["-B", "4K", "-z", "-"]).arg(at(&copy)), &new).ok();
    assert!(fs::read(&copy).expect("read") == new, "a longer one");
}
