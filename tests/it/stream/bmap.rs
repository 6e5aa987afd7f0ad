//! `map --bmap`, with bmaptool as the judge: it flashes what the bmap tells of, and checks every range.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::common::account::which;
use crate::common::check::assert_same;
use crate::common::lab::{self, Fs, Loop, Mounted};
use crate::common::layout::{Layout, Rng, layouts};
use crate::common::process::{Outcome, holesync, run};

const PAGE: usize = 4096;

fn map(words: &[&dyn AsRef<OsStr>]) -> Outcome {
    let mut command = holesync();
    command.arg("map").args(words.iter().map(|word| word.as_ref()));
    run(&mut command)
}

/// Whether there is a bmaptool; if not, a counted skip.
fn has_bmaptool() -> bool {
    let found = which("bmaptool").exists();
    if !found {
        lab::skip("there is no bmaptool");
    }
    found
}

fn flash(image: &Path, bmap: &Path, to: &Path) -> Outcome {
    run(Command::new("bmaptool").args(["copy", "--bmap"]).arg(bmap).arg(image).arg(to))
}

/// The number that stands in an element.
fn number(bmap: &str, name: &str) -> usize {
    let (_, rest) = bmap.split_once(&format!("<{name}>")).expect("an element");
    rest.split_once('<').expect("its end").0.trim().parse().expect("a number")
}

#[test]
fn bmaptool_flashes_every_layout_of_every_file_system() {
    if !has_bmaptool() {
        return;
    }
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        for layout in layouts(&mut Rng(61)).iter().filter(|layout| layout.len() > 0) {
            let [image, bmap, to] = ["image", "a.bmap", "to"].map(|name| dir.path().join(name));
            layout.write(&image);
            map(&[&image, &"--bmap", &"-o", &bmap]).ok();
            let told = fs::read_to_string(&bmap).expect("read");
            assert_eq!(map(&[&image, &"--bmap"]).ok().stdout, told, "{fs:?} {}", layout.name);
            assert_eq!(number(&told, "ImageSize"), layout.len());
            assert_eq!(number(&told, "BlocksCount"), layout.len().div_ceil(PAGE));
            if fs != Fs::Btrfs {
                assert_eq!(number(&told, "MappedBlocksCount"), layout.written() / PAGE, "{fs:?} {told}");
            }
            flash(&image, &bmap, &to).ok();
            assert_same(&image, &to);
            fs::remove_file(&image).and_then(|()| fs::remove_file(&to)).expect("remove");
        }
    }
}

/// Extents that begin and end within blocks of 4 KiB, some of them in the same one.
#[test]
fn extents_of_a_file_system_with_small_blocks_are_rounded() {
    if !has_bmaptool() || !lab::is_root() {
        return;
    }
    let mounted = Mounted::new(16, &["mkfs.ext4", "-q", "-b", "1024"], &["-o", "loop"]);
    let [image, bmap, to] = ["image", "a.bmap", "to"].map(|name| mounted.path().join(name));
    let file = File::create(&image).expect("create");
    file.set_len(100 * 1024 + 7).expect("set the length");
    // In KiB: two in one block, across a border, up to a border, from one on, in the last block.
    for (at, count) in [(1, 1), (3, 1), (10, 4), (21, 3), (24, 1), (41, 2), (45, 1), (99, 1)] {
        file.write_all_at(&vec![at as u8; count << 10], at << 10).expect("write");
    }
    map(&[&image, &"--bmap", &"-o", &bmap]).ok();
    let told = fs::read_to_string(&bmap).expect("read");
    for range in ["> 0 <", "> 2-3 <", "> 5-6 <", "> 10 <", "> 11 <", "> 24 <"] {
        assert!(told.contains(range), "{range} in {told}");
    }
    assert_eq!(number(&told, "MappedBlocksCount"), 8, "{told}");
    flash(&image, &bmap, &to).ok();
    assert_same(&image, &to);
}

#[test]
fn bmaptool_refuses_an_image_or_a_bmap_that_was_changed() {
    if !has_bmaptool() {
        return;
    }
    let dir = lab::scratch();
    let [image, bmap, to] = ["image", "a.bmap", "to"].map(|name| dir.path().join(name));
    Layout::hole("image", 9 << 20).data(3 << 20..(5 << 20) + 99, &mut Rng(62)).write(&image);
    map(&[&image, &"--bmap", &"-o", &bmap]).ok();
    flash(&image, &bmap, &to).ok();
    let file = File::options().write(true).open(&image).expect("open");
    file.write_all_at(b"x", (5 << 20) + 98).expect("write");
    flash(&image, &bmap, &to).code(1).says(&["checksum mismatch for blocks range 768-1280"]);
    let told = fs::read_to_string(&bmap).expect("read").replace("768-1280", "768-1279");
    fs::write(&bmap, told).expect("write");
    flash(&image, &bmap, &to).code(1).says(&["checksum mismatch for bmap file"]);
}

#[test]
fn a_device_is_one_range() {
    if !has_bmaptool() || !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    let [backing, bmap, to] = ["backing", "a.bmap", "to"].map(|name| dir.path().join(name));
    Layout::hole("backing", 2 << 20).data(5000..90_000, &mut Rng(63)).write(&backing);
    let device = Loop::over(&backing);
    let told = map(&[&device.0, &"--bmap", &"--json", &"-o", &bmap]).ok().stdout;
    let told: serde_json::Value = serde_json::from_str(&told).expect("an object");
    assert_eq!((&told["length"], &told["data_bytes"]), (&(2 << 20).into(), &(2 << 20).into()));
    flash(&device.0, &bmap, &to).ok();
    assert_same(&backing, &to);
}

#[test]
fn what_is_no_image_here_or_no_name_of_a_bmap_is_refused() {
    let dir = lab::scratch();
    let [image, a_map, bmap] = ["image", "a.map", "a.bmap"].map(|name| dir.path().join(name));
    Layout::dense("image", 70_000, &mut Rng(64)).write(&image);
    map(&[&image, &"-o", &a_map]).ok();
    map(&[&"host:/images/x", &"--bmap"]).code(1).says(&["holesync map /images/x --bmap there", "host"]);
    map(&[&a_map, &"--bmap"]).code(23).says(&["is a map, which has no bytes"]);
    map(&[&image, &"--bmap", &"-o", &a_map]).code(1).says(&["is one of a holesync map", "FILE.bmap"]);
    map(&[&image, &"--bmap", &"-o", &image]).code(23).says(&["is the image itself"]);
    map(&[&image, &"--bmap", &"--json"]).code(1).says(&["-o FILE.bmap"]);
    map(&[&image, &"--bmap", &"--hashes"]).code(1);
    fs::write(&image, "").expect("write");
    fs::write(&bmap, "as it was").expect("write");
    map(&[&image, &"--bmap", &"-o", &bmap]).code(23).says(&["has no bytes"]);
    assert_eq!(fs::read(&bmap).expect("read"), b"as it was");
}
