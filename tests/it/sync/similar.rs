//! Where nothing is yet, and another file is like what comes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::common::check::{assert_no_leftovers, assert_same};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::process::Outcome;
use crate::common::redeploy::every;
use crate::common::tree::{Way, mkdir, slash, small};

const WAYS: [Way; 3] = [Way::Local, Way::Push, Way::Pull];
const SIZE: usize = 4 << 20;

/// Two versions of an image, the first of them at the destination under `name`.
fn versions(dir: &Path, name: &str) -> (PathBuf, PathBuf, PathBuf) {
    let mut rng = Rng(11);
    let old = Layout::dense("old", SIZE, &mut rng);
    let to = mkdir(dir.join("to"));
    let (there, new) = (to.join(name), dir.join("image-v2.img"));
    old.write(&there);
    every(8, &old, &mut rng).write(&new);
    (there, new, to)
}

fn assert_begun_from_it(outcome: Outcome, way: Way) {
    let sent = outcome.ok().count("sent_data_bytes");
    assert!(sent > 0 && sent < SIZE as u64 / 4, "{way:?}: {sent} bytes");
}

#[test]
fn a_new_image_is_begun_from_the_one_beside_it() {
    for (fs, way) in [Fs::Ext4, Fs::Xfs, Fs::Btrfs].into_iter().flat_map(|fs| WAYS.map(|way| (fs, way))) {
        let Some(dir) = lab::dir(fs) else { return };
        let (there, new, to) = versions(dir.path(), "image-v1.img");
        small(to.join("image-notes.txt"), "of no use");
        let before = fs::metadata(&there).expect("stat");
        let target = to.join("image-v2.img");
        let dry = way.run(&["--fuzzy", "--json", "-n"], &[new.as_os_str()], target.as_os_str());
        let Some(dry) = dry else { return };
        assert_begun_from_it(dry, way);
        assert!(!target.exists());
        let done = way.run(&["-y", "--json"], &[new.as_os_str()], target.as_os_str()).expect("as before");
        assert_begun_from_it(done, way);
        assert_same(&target, &new);
        let after = fs::metadata(&there).expect("stat");
        let state = |m: &fs::Metadata| (m.ino(), m.mtime(), m.ctime(), m.ctime_nsec(), m.nlink());
        assert_eq!(state(&after), state(&before), "{fs:?} {way:?}: what it was begun from was touched");
        assert_no_leftovers(dir.path());
    }
}

#[test]
fn what_a_new_image_is_begun_from_is_told_where_that_is_asked_for() {
    for way in [Way::Local, Way::Pull] {
        let dir = lab::scratch();
        let (_, new, to) = versions(dir.path(), "image-v1.img");
        let outcome = way.run(&["-y", "--debug=fuzzy,nstr"], &[new.as_os_str()], &slash(&to));
        let Some(outcome) = outcome else { return };
        let lines: Vec<_> = outcome.ok().stdout.lines().map(str::to_owned).collect();
        let want = ["checksum: blake3", "compress: ", "fuzzy basis selected for image-v2.img: image-v1.img"];
        assert!(
            lines.len() == 3 && lines.iter().zip(want).all(|(line, want)| line.starts_with(want)),
            "{lines:?}"
        );
    }
}

#[test]
fn a_new_image_is_begun_from_the_one_that_is_named() {
    for way in WAYS {
        let dir = lab::scratch();
        let (there, new, to) = versions(dir.path(), "golden");
        let shown = there.to_str().expect("a plain path");
        for (n, basis) in ["golden", "../to/golden", shown].into_iter().enumerate() {
            let target = to.join(format!("{n}"));
            let flag = format!("--basis={basis}");
            let outcome = way.run(&[&flag, "--json"], &[new.as_os_str()], target.as_os_str());
            let Some(outcome) = outcome else { return };
            assert_begun_from_it(outcome, way);
            assert_same(&target, &new);
        }
        let whole = to.join("whole");
        let outcome = way.run(&["--fuzzy", "--json"], &[new.as_os_str()], whole.as_os_str());
        let sent = outcome.expect("as before").ok().count("sent_data_bytes");
        assert!(sent > SIZE as u64 / 2, "{way:?}: no name there is like it");
        let missing = way.run(&["--basis=no such"], &[new.as_os_str()], to.join("x").as_os_str());
        missing.expect("as before").code(3).says(&["cannot begin from", "no such"]);
        let dir = way.run(&["--basis=."], &[new.as_os_str()], to.join("x").as_os_str());
        dir.expect("as before").code(3).says(&["neither a regular file nor a block device"]);
        assert!(!to.join("x").exists());
    }
}

#[test]
fn without_a_holesync_there_nothing_is_begun_from_another_file() {
    for (way, flag) in [(Way::PushShell, "--fuzzy"), (Way::PullShell, "--basis=golden")] {
        let dir = lab::scratch();
        let (_, new, to) = versions(dir.path(), "golden");
        let Some(outcome) = way.run(&[flag], &[new.as_os_str()], to.join("x").as_os_str()) else { return };
        outcome.code(1).says(&["needs a holesync on"]);
    }
}

/// A copy of all of it costs more than what is saved.
#[test]
fn a_small_file_is_not_begun_from_a_large_one() {
    for way in WAYS {
        let dir = lab::scratch();
        let (_, _, to) = versions(dir.path(), "golden");
        let from = mkdir(dir.path().join("from"));
        small(from.join("small"), "small");
        fs::write(from.join("golden-notes"), vec![7; 100_000]).expect("write");
        let outcome = way.run(&["--basis=golden", "--fuzzy", "--json"], &[&slash(&from)], &slash(&to));
        let Some(outcome) = outcome else { return };
        let hashed = outcome.ok().count("hashed_bytes");
        assert!(hashed < SIZE as u64, "{way:?}: {hashed} bytes were hashed");
        assert_same(&to.join("golden-notes"), &from.join("golden-notes"));
    }
}
