//! A destination on every way to become one, against a model in memory: what is
//! written and zeroed is what is there in the end, and what was there stays
//! until then.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use holesync::apply::recover::{Recovered, recover};
use holesync::apply::{Attributes, Destination, Mark, Opened, Place, QuickCheck, Setup, Wanted};
use holesync::hashmap::{Grid, Hash, root_of};
use holesync::options::{BlockSize, Commit, Options};
use holesync::working::is_working_name;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::support::{Sparse, fill, sparse};

const PAGE: u64 = 4096;

/// A way to the finished file.
#[derive(Debug, Clone)]
struct Way {
    old: Option<Sparse>,
    length: u64,
    commit: Commit,
    whole: bool,
    preallocate: bool,
    verify: bool,
    /// The old file has another name, too.
    linked: bool,
    /// Much was kept: changing the old file costs less than copying it.
    much_kept: bool,
}

/// Something done to a destination; places are fractions of its length.
#[derive(Debug, Clone)]
enum Step {
    Write(Range<u16>, u8),
    Zero(Range<u16>),
}

fn way() -> impl Strategy<Value = Way> {
    let commit = prop_oneof![Just(Commit::Auto), Just(Commit::Atomic), Just(Commit::InPlace)];
    let length =
        prop_oneof![Just(None), (0..400_000u64).prop_map(Some), (0..60u64).prop_map(|n| Some(n * PAGE))];
    (prop::option::weighted(0.8, sparse(6)), length, commit, any::<[bool; 5]>()).prop_map(
        |(old, length, commit, [whole, preallocate, verify, linked, much_kept])| {
            let length = length.unwrap_or_else(|| old.as_ref().map_or(0, Sparse::len));
            Way { old, length, commit, whole, preallocate, verify, linked, much_kept }
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || {
        (any::<u16>(), prop_oneof![1..3000u16, any::<u16>()]).prop_map(|(a, len)| a..a.saturating_add(len))
    };
    let step = prop_oneof![
        (range(), 1..9u8).prop_map(|(range, seed)| Step::Write(range, seed)),
        range().prop_map(Step::Zero)
    ];
    prop::collection::vec(step, 0..8)
}

struct Lab {
    dir: TempDir,
    way: Way,
    /// What the destination would be if it ended here.
    model: Vec<u8>,
}

impl Lab {
    fn new(way: &Way) -> Lab {
        let dir = tempfile::tempdir().expect("a directory");
        let lab = Lab { dir, way: way.clone(), model: Vec::new() };
        if let Some(old) = &way.old {
            old.write(&lab.path());
            if way.linked {
                fs::hard_link(lab.path(), lab.dir.path().join("other")).expect("link");
            }
        }
        let mut model = lab.base();
        model.resize(way.length as usize, 0);
        Lab { model, ..lab }
    }

    /// What is there before anything is written.
    fn base(&self) -> Vec<u8> {
        match &self.way.old {
            Some(old) if !self.way.whole || self.way.commit == Commit::InPlace => old.bytes.clone(),
            _ => Vec::new(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn open(&self, whole: bool) -> Destination {
        let Way { commit, preallocate, verify, .. } = self.way;
        let dir = Arc::new(File::open(self.dir.path()).expect("open").into());
        let place = Place::new(dir, "image".into(), self.path());
        let attributes = Attributes { mode: Some(0o604), mtime: Some((1000, 7)), ..Attributes::default() };
        let quick_check = QuickCheck::Never;
        let wanted = Wanted { length: self.way.length, data: 0, whole, quick_check, attributes };
        let options = Options { commit, preallocate, verify, fsync: false, ..Options::default() };
        let opening = Destination::open(place, wanted, &Setup::new(Arc::new(options)));
        let mut destination = match opening.expect("open the destination").opened {
            Opened::Different(destination) => *destination,
            _ => panic!("not open"),
        };
        // All of it, but for what steps do to it.
        let kept = destination.basis().map_or(0, |basis| basis.length);
        destination.keep_range(0..kept).expect("keep");
        destination
    }

    /// Where in the file a place of a step is.
    fn at(&self, place: u16) -> u64 {
        u64::from(place) * (self.way.length + 1) / (1 << 16)
    }

    fn take(&mut self, destination: &mut Destination, step: &Step) {
        let at = |place: u16| self.at(place);
        match step {
            Step::Write(range, seed) => {
                let range = at(range.start)..at(range.end);
                let mut bytes = vec![0; (range.end - range.start) as usize];
                fill(&mut bytes, range.start, *seed);
                if !bytes.is_empty() {
                    destination.write(range.start, &bytes).expect("write");
                    self.model[range.start as usize..range.end as usize].copy_from_slice(&bytes);
                }
            }
            Step::Zero(range) => {
                let range = at(range.start)..at(range.end);
                if !range.is_empty() {
                    destination.zero(range.clone()).expect("zero");
                    self.model[range.start as usize..range.end as usize].fill(0);
                }
            }
        }
    }

    fn root(&self) -> Hash {
        let image = Sparse { bytes: self.model.clone(), extents: Vec::new() }.dense();
        let grid = Grid { length: self.way.length, block: BlockSize::default() };
        root_of(&image, &grid, |_| true).expect("memory").expect("nobody stops it")
    }

    fn finish(&self, destination: Destination) {
        let kept = if self.way.much_kept { u64::MAX } else { 0 };
        destination.finish(&self.root(), kept).expect("finish");
        self.assert_new();
    }

    /// As `holesync recover` does.
    fn recover(&self) -> Recovered {
        let dir = Arc::new(File::open(self.dir.path()).expect("open").into());
        recover(&Place::new(dir, "image".into(), self.path()), None, &Options::default()).expect("recover")
    }

    fn assert_new(&self) {
        assert!(fs::read(self.path()).expect("read") == self.model, "the content differs");
        let metadata = fs::metadata(self.path()).expect("stat");
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1000, 7));
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o604);
        assert_eq!(self.left(), Vec::<String>::new());
        self.assert_other_name_is_old();
    }

    fn left(&self) -> Vec<String> {
        let names =
            fs::read_dir(self.dir.path()).expect("list").map(|entry| entry.expect("list").file_name());
        names.filter(|name| is_working_name(name)).map(|name| name.to_string_lossy().into_owned()).collect()
    }

    /// Nothing was done yet to what was there.
    fn assert_old(&self) {
        let now = fs::read(self.path()).ok();
        let old = self.way.old.as_ref().map(|old| old.bytes.clone());
        assert!(now == old || self.way.commit == Commit::InPlace, "the old file was touched");
    }

    fn assert_other_name_is_old(&self) {
        let other = fs::read(self.dir.path().join("other")).ok();
        let old = self.way.old.as_ref().filter(|_| self.way.linked && self.way.commit != Commit::InPlace);
        assert!(
            old.is_none_or(|old| other.as_ref() == Some(&old.bytes)),
            "the other name's file was touched"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_finished_destination_is_what_was_written(way in way(), steps in steps()) {
        let mut lab = Lab::new(&way);
        let mut destination = lab.open(way.whole);
        for step in &steps {
            lab.take(&mut destination, step);
            lab.assert_old();
        }
        lab.finish(destination);
    }

    #[test]
    fn what_was_kept_is_the_basis_of_the_next_run(way in way(), steps in steps(), more in steps()) {
        // A run that compares nothing has no basis.
        let mut lab = Lab::new(&Way { whole: false, ..way });
        let mut destination = lab.open(false);
        steps.iter().for_each(|step| lab.take(&mut destination, step));
        destination.keep();
        lab.assert_old();
        lab.assert_other_name_is_old();
        let mut destination = lab.open(false);
        let mut found = vec![0; lab.model.len()];
        if let Some(basis) = destination.basis() {
            basis.image.read_at(&mut found, 0).expect("read");
            let beyond = found.get(basis.length as usize..).unwrap_or_default();
            prop_assert!(beyond.iter().all(|&byte| byte == 0), "data beyond the length of the basis");
        }
        if found != lab.model {
            // Zeros that were all there was to do may be left to the next run.
            let writes = |step: &Step| {
                matches!(step, Step::Write(range, _) if lab.at(range.start) < lab.at(range.end))
            };
            prop_assert!(!steps.iter().any(writes), "the basis differs");
            let mut old = lab.way.old.as_ref().map(|old| old.bytes.clone()).unwrap_or_default();
            old.resize(found.len(), 0);
            prop_assert!(found == old, "the basis is neither the old file nor what was made of it");
            steps.iter().for_each(|step| lab.take(&mut destination, step));
        }
        more.iter().for_each(|step| lab.take(&mut destination, step));
        lab.finish(destination);
    }

    #[test]
    fn what_is_prepared_shows_nothing_and_goes_on_whatever_is_decided(
        way in way(), steps in steps(), end in 0..3,
    ) {
        let run = [9; 16];
        let commit = if way.commit == Commit::InPlace { Commit::Auto } else { way.commit };
        let mut lab = Lab::new(&Way { whole: false, commit, ..way });
        let mut destination = lab.open(false);
        steps.iter().for_each(|step| lab.take(&mut destination, step));
        let kept = if lab.way.much_kept { u64::MAX } else { 0 };
        let prepared = destination.prepare(&lab.root(), kept, &run).expect("prepare");
        lab.assert_old();
        lab.assert_other_name_is_old();
        let is_marked = !lab.left().is_empty();
        match end {
            0 => {
                prepared.commit().expect("commit");
                lab.assert_new();
                return Ok(());
            }
            1 => drop(prepared),
            _ => prepared.give_up(),
        }
        lab.assert_old();
        let mark = Mark { run, root: lab.root() };
        let is_told = lab.recover() == Recovered::Prepared(mark);
        prop_assert_eq!(is_told, end == 1 && is_marked);
        lab.assert_old();
        let destination = lab.open(false);
        prop_assert!(!lab.left().iter().any(|name| name.ends_with(".prepared")), "the mark is believed");
        let mut found = vec![0; lab.model.len()];
        if let Some(basis) = destination.basis() {
            basis.image.read_at(&mut found, 0).expect("read");
        }
        prop_assert!(found == lab.model, "data would be sent again");
        lab.finish(destination);
    }

    #[test]
    fn what_is_discarded_leaves_nothing(way in way(), steps in steps()) {
        let mut lab = Lab::new(&way);
        let mut destination = lab.open(way.whole);
        steps.iter().for_each(|step| lab.take(&mut destination, step));
        destination.discard();
        drop(destination);
        prop_assert_eq!(lab.left(), Vec::<String>::new());
        lab.assert_old();
    }
}

#[test]
fn a_second_run_on_the_same_destination_is_refused() {
    for old in [None, Some(Sparse::of(&[(crate::support::Kind::Data(1), 9000)]))] {
        let way = Way {
            old,
            length: 9000,
            commit: Commit::Auto,
            whole: false,
            preallocate: false,
            verify: false,
            linked: false,
            much_kept: false,
        };
        let mut lab = Lab::new(&way);
        let mut first = lab.open(false);
        lab.take(&mut first, &Step::Write(0..u16::MAX, 3));
        let second =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lab.open(false).changes_length()));
        assert!(second.is_err(), "two runs have the same destination");
        lab.finish(first);
    }
}

/// What a seek said to whoever hashed the old file, and says no more when it is copied.
#[test]
fn what_was_found_to_be_data_gets_into_a_copy() {
    let lab = Lab::new(&Way {
        old: None,
        length: 64 * PAGE,
        commit: Commit::Atomic,
        whole: false,
        preallocate: false,
        verify: false,
        linked: false,
        much_kept: false,
    });
    let old = File::create(lab.path()).expect("create");
    old.set_len(64 * PAGE).expect("set the length");
    let dir = Arc::new(File::open(lab.dir.path()).expect("open").into());
    let place = Place::new(dir, "image".into(), lab.path());
    let (attributes, quick_check) = (Attributes::default(), QuickCheck::Never);
    let wanted = Wanted { length: 64 * PAGE, data: 0, whole: false, quick_check, attributes };
    let options = Options { commit: Commit::Atomic, fsync: false, ..Options::default() };
    let opened = Destination::open(place, wanted, &Setup::new(Arc::new(options))).expect("open").opened;
    let Opened::Different(mut destination) = opened else { panic!("not open") };
    let range = 8 * PAGE..9 * PAGE;
    // The copy is made, and there is a hole for every seek.
    destination.write(0, &[1; 4096]).expect("write");
    old.write_all_at(&[2; 4096], range.start).expect("write");
    destination.keep_range(range).expect("keep");
    destination.keep();
    let temp = fs::read(lab.dir.path().join(".image.holesync.temp")).expect("a temp file");
    assert!(temp[..4096] == [1; 4096] && temp[8 * 4096..9 * 4096] == [2; 4096]);
    assert!(temp[9 * 4096..].iter().all(|byte| *byte == 0));
}

/// A patch may come after all that was described behind it: what lies between takes no room.
#[test]
fn a_late_patch_leaves_holes_that_lie_behind_it_alone() {
    let length = 64 << 20;
    for commit in [Commit::Auto, Commit::Atomic] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        let old = File::create(&path).expect("create");
        old.set_len(length).expect("set the length");
        for at in [0, length / 4, length - PAGE] {
            old.write_all_at(&[1; PAGE as usize], at).expect("write");
        }
        let place =
            Place::new(Arc::new(File::open(dir.path()).expect("open").into()), "image".into(), path.clone());
        let (attributes, quick_check) = (Attributes::default(), QuickCheck::Never);
        let wanted = Wanted { length, data: 4 * PAGE, whole: false, quick_check, attributes };
        let options = Options { commit, fsync: false, ..Options::default() };
        let opened = Destination::open(place, wanted, &Setup::new(Arc::new(options))).expect("open").opened;
        let Opened::Different(mut destination) = opened else { panic!("not open") };
        for at in [0, length / 4, length - PAGE] {
            destination.keep_range(at..at + PAGE).expect("keep");
        }
        for at in [length / 2, PAGE] {
            destination.write(at, &[2; PAGE as usize]).expect("write");
        }
        // Less is kept than came: a stage is completed. Nothing is read back.
        destination.finish(&Hash::default(), 0).expect("finish");
        let found = fs::metadata(&path).expect("stat");
        assert!(found.blocks() * 512 <= 32 * PAGE, "{commit:?}: {} blocks", found.blocks());
        let bytes = fs::read(&path).expect("read");
        let at = |at: u64| bytes[at as usize];
        assert_eq!([at(0), at(PAGE), at(length / 4), at(length / 2), at(length - PAGE)], [1, 2, 1, 2, 1]);
    }
}
