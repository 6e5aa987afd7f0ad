//! Blocks that the destination has, but elsewhere: they are copied there, and not sent.

use std::fs;
use std::path::Path;

use crate::common::check::{assert_no_leftovers, assert_same};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::process::Outcome;
use crate::common::tree::{Way, mkdir, slash};

const WAYS: [Way; 2] = [Way::Push, Way::Pull];
const BLOCK: usize = 64 << 10;
const SIZE: usize = 8 << 20;
/// What differs at the start of a file is sent without a question.
const UNASKED: u64 = 256 << 10;

fn image(seed: u64) -> Layout {
    Layout::dense("image", SIZE, &mut Rng(seed)).punch(SIZE / 4..SIZE / 2)
}

/// What was sent, which a dry run has told before; what the destination had counts as that.
#[track_caller]
fn sent(way: Way, flags: &[&str], from: &Path, to: &Path) -> Option<u64> {
    let all = |dry: &[&'static str]| [&["--json", "-I"], flags, dry].concat();
    let run = |dry: &[&'static str]| {
        if from.is_dir() {
            way.run(&all(dry), &[&slash(from)], &slash(to))
        } else {
            way.run(&all(dry), &[from.as_os_str()], to.as_os_str())
        }
    };
    let told = run(&["-n"])?.ok();
    let done = run(&[])?.ok();
    let counts = |outcome: &Outcome| {
        ["sent_data_bytes", "matched_bytes", "written_bytes"].map(|name| outcome.count(name))
    };
    assert_eq!(counts(&told), counts(&done), "{way:?} {flags:?}: foretold, done");
    Some(done.count("sent_data_bytes"))
}

#[test]
fn blocks_that_moved_in_a_file_are_not_sent() {
    for (fs, way) in [Fs::Ext4, Fs::Xfs].into_iter().flat_map(|fs| WAYS.map(|way| (fs, way))) {
        let Some(dir) = lab::dir(fs) else { return };
        let (from, to) = (dir.path().join("new"), mkdir(dir.path().join("to")).join("image"));
        let moved = image(1).shift(3 * BLOCK, &mut Rng(2));
        for (flags, new) in [
            (&[][..], moved.clone()),
            (&["--commit=atomic"], moved),
            (&["-B", "16K"], image(1).shift(5 * BLOCK, &mut Rng(3))),
        ] {
            image(1).write(&to);
            new.write(&from);
            let Some(sent) = sent(way, flags, &from, &to) else { return };
            assert!(sent <= UNASKED + 2 * BLOCK as u64, "{fs:?} {way:?} {flags:?}: {sent}");
            assert_same(&to, &from);
        }
        assert_no_leftovers(dir.path());
    }
}

/// In place a block is copied from where nothing was written yet.
#[test]
fn in_place_blocks_are_copied_from_behind_those_that_are_written() {
    for way in WAYS {
        let dir = lab::scratch();
        let (old, new, to) = (dir.path().join("old"), dir.path().join("new"), dir.path().join("to"));
        image(1).write(&old);
        image(1).shift(3 * BLOCK, &mut Rng(2)).write(&new);
        fs::copy(&new, &to).expect("copy");
        let Some(down) = sent(way, &["--inplace"], &old, &to) else { return };
        assert!(down <= UNASKED, "{way:?}: {down}");
        assert_same(&to, &old);
        let Some(up) = sent(way, &["--inplace"], &new, &to) else { return };
        assert!(up > SIZE as u64 / 2, "{way:?}: {up}");
        assert_same(&to, &new);
    }
}

#[test]
fn blocks_of_another_image_of_the_tree_are_not_sent() {
    for way in WAYS {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
        let changed = image(1).data(9 * BLOCK..10 * BLOCK, &mut Rng(3));
        for (name, there, new) in [("a", image(1), changed), ("b", image(2), image(1))] {
            there.write(&to.join(name));
            new.write(&from.join(name));
        }
        let Some(sent) = sent(way, &["-r"], &from, &to) else { return };
        assert!(sent <= UNASKED + 2 * BLOCK as u64, "{way:?}: {sent}");
        for name in ["a", "b"] {
            assert_same(&to.join(name), &from.join(name));
        }
    }
}

/// Where there is nothing, nobody is asked.
#[test]
fn a_first_deployment_asks_nothing() {
    for way in WAYS {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
        let new = image(1);
        ["a", "b"].iter().for_each(|name| new.write(&from.join(name)));
        let Some(sent) = sent(way, &["-r"], &from, &to) else { return };
        assert_eq!(sent, 2 * new.written() as u64, "{way:?}");
    }
}
