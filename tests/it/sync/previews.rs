//! What a dry run foretells, against what the same command then does.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::common::check::assert_same;
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::process::Outcome;
use crate::common::tree::{Way, mkdir, set_mtime, slash, small};

const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 512;

/// An image at both ends, with pages that differ in a third of its blocks, some of them new
/// holes and some new data, and whole blocks that differ.
fn images(from: &Path, to: &Path) {
    let old = Layout::dense("image", BLOCKS * BLOCK, &mut Rng(1)).zeros(9 * BLOCK..30 * BLOCK);
    old.write(to);
    old.write(from);
    let file = fs::File::options().write(true).open(from).expect("open");
    for block in (0..BLOCKS).step_by(3) {
        let at = block * BLOCK + block % 16 * 4096;
        file.write_all_at(&block.to_le_bytes(), at as u64).expect("write");
    }
    file.write_all_at(&[7; 3 * BLOCK], 100 * BLOCK as u64 + 5).expect("write");
    file.write_all_at(&[0; 2 * BLOCK], 200 * BLOCK as u64).expect("write");
    set_mtime(to, 1, 0);
}

/// Runs with `-n`, and then truly; what each of these counts.
fn twice(way: Way, flags: &[&str], from: &OsStr, to: &OsStr) -> Option<[Outcome; 2]> {
    let run = |dry: &[&str]| way.run(&[&["--json"], flags, dry].concat(), &[from], to);
    Some([run(&["-n"])?.ok(), run(&[])?.ok()])
}

#[track_caller]
fn assert_foretold(case: &str, [dry, real]: &[Outcome; 2]) {
    let [foretold, sent] = [dry, real].map(|outcome| outcome.count("sent_data_bytes"));
    assert!(sent > 0 && foretold.abs_diff(sent) <= sent / 100, "{case}: {foretold} for {sent}: {dry} {real}");
    for field in ["files_sent", "files_deleted", "files_total"] {
        assert_eq!(dry.count(field), real.count(field), "{case}: {field}");
    }
}

#[test]
fn as_much_of_an_image_travels_as_a_dry_run_says() {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        for (way, flags) in [
            (Way::Push, &[][..]),
            (Way::Pull, &[]),
            (Way::Push, &["-W"]),
            (Way::Push, &["--leaf-size=16K"]),
            (Way::Push, &["--leaf-size=64K", "-B", "16K"]),
            (Way::Push, &["--inplace"]),
            (Way::PushShell, &["-c"]),
            (Way::PushShell, &[]),
        ] {
            let (from, to) = (dir.path().join("from"), dir.path().join("to"));
            images(&from, &to);
            let Some(both) = twice(way, flags, from.as_os_str(), to.as_os_str()) else { return };
            assert_same(&from, &to);
            assert_foretold(&format!("{way:?} {flags:?} on {fs:?}"), &both);
        }
    }
}

#[test]
fn as_much_of_a_tree_travels_and_goes_as_a_dry_run_says() {
    let dir = lab::scratch();
    for way in [Way::Push, Way::Pull] {
        let name = |what: &str| mkdir(dir.path().join(format!("{way:?} {what}")));
        let (from, to) = (name("from"), name("to"));
        // More files than a receiver has open for questions.
        for number in 0..100 {
            small(from.join(format!("small {number}")), &number.to_string());
            let [new, old] = [&from, &to].map(|side| side.join(format!("image {number}")));
            small(new, &"x".repeat(300_000));
            let old = small(old, &["x".repeat(150_000 + number), "y".repeat(150_000 - number)].concat());
            set_mtime(&old, 1, 0);
            small(to.join(format!("gone {number}")), "x");
        }
        images(&from.join("image"), &to.join("image"));
        let Some(both) = twice(way, &["-a", "--delete"], &slash(&from), &slash(&to)) else { return };
        assert_foretold(&format!("{way:?}"), &both);
    }
}
