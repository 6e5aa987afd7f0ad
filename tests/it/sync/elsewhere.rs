//! Blocks that the destination has, but elsewhere: they are copied there, and not sent.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::common::check::{assert_begins_with, assert_no_leftovers, assert_same};
use crate::common::lab::{self, Fs, Loop};
use crate::common::layout::{Layout, Rng};
use crate::common::process::{Outcome, wait_until};
use crate::common::redeploy::every;
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

/// It has nothing that anybody need know of, also where others are looked through.
#[test]
fn an_empty_file_is_written_in_place_beside_one_that_is_compared() {
    for way in WAYS {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
        image(1).write(&to.join("a"));
        fs::write(to.join("b"), "").expect("write");
        image(2).write(&from.join("a"));
        image(3).write(&from.join("b"));
        if sent(way, &["-r", "--inplace"], &from, &to).is_none() {
            return;
        }
        for name in ["a", "b"] {
            assert_same(&to.join(name), &from.join(name));
        }
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

/// A device.
struct Slot {
    device: Loop,
}

impl Slot {
    fn with(dir: &Path, name: &str, content: &Layout) -> Slot {
        let behind = dir.join(name);
        content.write(&behind);
        Slot { device: Loop::over(&behind) }
    }

    fn path(&self) -> &Path {
        &self.device.0
    }
}

/// What went over the wire both ways.
fn on_the_wire(outcome: &Outcome) -> u64 {
    outcome.count("wire_bytes_sent") + outcome.count("wire_bytes_received")
}

/// A version of an image, and the next one.
fn two_versions() -> (Layout, Layout) {
    let old = image(1);
    let new = every(8, &old, &mut Rng(5));
    (old, new)
}

#[test]
fn a_slot_gets_from_the_other_one_what_that_has() {
    if !lab::is_root() {
        return;
    }
    let (old, new) = two_versions();
    for way in WAYS {
        let dir = lab::scratch();
        let from = dir.path().join("new");
        new.write(&from);
        let flags = ["--json"];
        let there = Slot::with(dir.path(), "there", &old);
        let Some(in_place) = way.run(&flags, &[from.as_os_str()], there.path().as_os_str()) else { return };
        let in_place = in_place.ok();
        let active = Slot::with(dir.path(), "active", &old);
        let basis = format!("--basis={}", active.path().display());
        let contents = [
            image(9),
            Layout::hole("blank", SIZE),
            every(5, &old, &mut Rng(7)),
            Layout::dense("garbage", SIZE + BLOCK, &mut Rng(8)),
        ];
        for (n, content) in contents.into_iter().enumerate() {
            let slot = Slot::with(dir.path(), &format!("slot{n}"), &content);
            for (again, most) in [(false, on_the_wire(&in_place) * 11 / 10), (true, on_the_wire(&in_place))] {
                let args = [&from];
                let run = |dry: &[&str]| {
                    let flags = [&["--json", &basis], dry].concat();
                    way.run(&flags, &args.map(|path| path.as_os_str()), slot.path().as_os_str())
                        .expect("as before")
                        .ok()
                };
                let (told, done) = (run(&["-n"]), run(&[]));
                for count in ["sent_data_bytes", "matched_bytes", "written_bytes", "files_sent"] {
                    assert_eq!(told.count(count), done.count(count), "{way:?} {n} {again}: {count}");
                }
                assert!(on_the_wire(&done) <= most, "{way:?} {n} {again}: {done} {in_place}");
                assert_eq!(done.count("files_sent"), u64::from(!again), "{way:?} {n}");
                assert_begins_with(slot.path(), &from);
            }
        }
    }
}

#[test]
fn a_version_gets_from_the_last_one_what_that_has() {
    let (old, new) = two_versions();
    for (fs, way) in [Fs::Ext4, Fs::Xfs].into_iter().flat_map(|fs| WAYS.map(|way| (fs, way))) {
        let Some(dir) = lab::dir(fs) else { return };
        let (from, to) = (dir.path().join("new"), mkdir(dir.path().join("to")));
        new.write(&from);
        old.write(&to.join("v1"));
        let in_place = way.run(&["--json", "-I"], &[from.as_os_str()], to.join("v1").as_os_str());
        let Some(in_place) = in_place else { return };
        let in_place = in_place.ok().count("sent_data_bytes");
        old.write(&to.join("v1"));
        let named = |name: &str, flags: &[&str]| {
            sent(way, &[&["--basis=v1"], flags].concat(), &from, &to.join(name)).expect("as before")
        };
        let new_name = named("v2", &[]);
        assert!(new_name <= in_place, "{fs:?} {way:?}: {new_name} {in_place}");
        assert_same(&to.join("v2"), &from);
        for (name, flags) in
            [("staged", &[][..]), ("in place", &["--inplace"]), ("atomic", &["--commit=atomic"])]
        {
            Layout::dense("other", SIZE / 2 + 77, &mut Rng(9)).write(&to.join(name));
            let there = named(name, flags);
            assert!(there <= in_place, "{fs:?} {way:?} {name}: {there} {in_place}");
            assert_same(&to.join(name), &from);
            // And where that is what is there.
            assert_eq!(named(name, flags), 0, "{fs:?} {way:?} {name}");
        }
        let moved = dir.path().join("moved");
        new.clone().shift(3 * BLOCK, &mut Rng(2)).write(&moved);
        let flags = ["--basis=v2"];
        let shifted = sent(way, &flags, &moved, &to.join("v3")).expect("as before");
        assert!(shifted <= 3 * BLOCK as u64, "{fs:?} {way:?}: {shifted}");
        assert_same(&to.join("v3"), &moved);
        assert_no_leftovers(dir.path());
    }
}

#[test]
fn clones_of_a_golden_image_get_from_it_what_they_have_of_it() {
    let golden = image(1);
    for (fs, way) in [Fs::Ext4, Fs::Btrfs].into_iter().flat_map(|fs| WAYS.map(|way| (fs, way))) {
        let Some(dir) = lab::dir(fs) else { return };
        let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
        let shown = dir.path().join("golden");
        golden.write(&shown);
        for n in 0..3 {
            golden
                .clone()
                .data(n * BLOCK..(n + 1) * BLOCK, &mut Rng(n as u64 + 7))
                .write(&from.join(format!("{n}")));
        }
        let basis = format!("--basis={}", shown.display());
        let Some(sent) = sent(way, &["-r", &basis], &from, &to) else { return };
        assert_eq!(sent, 3 * BLOCK as u64, "{fs:?} {way:?}");
        for n in 0..3 {
            assert_same(&to.join(format!("{n}")), &from.join(format!("{n}")));
        }
        let Some(again) = self::sent(way, &["-r", &basis], &from, &to) else { return };
        assert_eq!(again, 0, "{fs:?} {way:?}");
    }
}

/// What is not compared is hashed beside the rest; nothing waits for that.
#[test]
fn blocks_that_lie_anywhere_in_a_second_basis_are_found() {
    const MIB: usize = 1 << 20;
    for way in WAYS {
        let dir = lab::scratch();
        let (from, to) = (dir.path().join("new"), mkdir(dir.path().join("to")));
        let first = Layout::dense("first", 16 * MIB, &mut Rng(1));
        let second = Layout::dense("second", 12 * MIB, &mut Rng(2));
        first.write(&to.join("first"));
        second.write(&to.join("second"));
        // Behind all of the first, of which a part takes its time, all of the second.
        let mut bytes = fs::read(to.join("first")).expect("read");
        Rng(3).fill(&mut bytes[..2 * MIB]);
        bytes.extend(fs::read(to.join("second")).expect("read"));
        fs::write(&from, bytes).expect("write");
        let flags = ["--json", "--bwlimit=1M", "--basis=first", "--basis=second"];
        let outcome = way.run(&flags, &[from.as_os_str()], to.join("third").as_os_str());
        let Some(outcome) = outcome else { return };
        let sent = outcome.ok().count("sent_data_bytes");
        assert!(sent <= 4 * MIB as u64, "{way:?}: {sent}");
        assert_same(&to.join("third"), &from);
    }
}

fn first_block(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut block = vec![0; BLOCK];
    fs::File::open(path)?.read_exact_at(&mut block, 0)?;
    Ok(block)
}

/// The slot that something runs from is written while it is copied: what is there is not what was
/// told.
#[test]
fn what_changes_while_it_is_copied_is_sent() {
    if !lab::is_root() {
        return;
    }
    for way in WAYS {
        let mut tries = 0;
        loop {
            let dir = lab::scratch();
            let from = dir.path().join("new");
            let old = Layout::dense("old", SIZE, &mut Rng(1));
            old.clone().data(0..4 * BLOCK, &mut Rng(2)).write(&from);
            let (active, slot) =
                (Slot::with(dir.path(), "active", &old), Slot::with(dir.path(), "slot", &image(3)));
            let basis = format!("--basis={}", active.path().display());
            let [path, to] = [&active, &slot].map(|slot| slot.path().to_path_buf());
            let first = first_block(&from).expect("read");
            let writer = std::thread::spawn(move || {
                // All was told when something comes, and more that differs has yet to come.
                let has_begun = || first_block(&to).is_ok_and(|block| block == first);
                assert!(wait_until(Duration::from_secs(60), has_begun), "nothing came");
                let file = OpenOptions::new().write(true).open(path).expect("open");
                file.write_all_at(&vec![7; SIZE / 2], (SIZE / 2) as u64).expect("write");
            });
            let flags = ["--json", "--bwlimit=200K", &basis];
            let outcome = way.run(&flags, &[from.as_os_str()], slot.path().as_os_str());
            writer.join().expect("the writer");
            let Some(outcome) = outcome else { return };
            let outcome = outcome.ok();
            assert_begins_with(slot.path(), &from);
            // It was hashed for a second try; what was right by then was not sent again.
            if outcome.count("hashed_bytes") > SIZE as u64 {
                let sent = outcome.count("sent_data_bytes");
                assert!(sent <= (SIZE / 2 + 4 * BLOCK) as u64, "{way:?}: {sent}");
                break;
            }
            tries += 1;
            assert!(tries < 5, "{way:?}: nothing changed while it was copied");
        }
    }
}

/// The same of a file, where that is cloned, and where it is copied.
#[test]
fn a_file_that_changes_while_it_is_begun_from_does_no_harm() {
    for (fs, way) in [Fs::Ext4, Fs::Xfs].into_iter().flat_map(|fs| WAYS.map(|way| (fs, way))) {
        let Some(dir) = lab::dir(fs) else { return };
        let (from, active) = (dir.path().join("new"), dir.path().join("active"));
        let old = Layout::dense("old", SIZE, &mut Rng(1));
        old.clone().data(0..4 * BLOCK, &mut Rng(2)).write(&from);
        old.write(&active);
        let basis = format!("--basis={}", active.display());
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(700));
            let file = OpenOptions::new().write(true).open(active).expect("open");
            file.write_all_at(&vec![7; SIZE / 2], (SIZE / 2) as u64).expect("write");
        });
        let to = dir.path().join("to");
        let flags = ["--json", "--bwlimit=200K", &basis];
        let outcome = way.run(&flags, &[from.as_os_str()], to.as_os_str());
        writer.join().expect("the writer");
        let Some(outcome) = outcome else { return };
        outcome.ok();
        assert_same(&to, &from);
        assert_no_leftovers(dir.path());
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
