//! The stage and its log against a model in memory: whatever is written, however
//! often it is interrupted, and wherever the log is torn.

use std::fs::File;
use std::os::unix::fs::FileExt;

use holesync::apply::Attributes;
use holesync::apply::stage::log::{Identity, Seal};
use holesync::apply::stage::overlay::{Overlay, RangeKind, Runs};
use holesync::apply::stage::{Sealed, Stage};
use holesync::scan::{FileImage, Image};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::support::{Sparse, sparse};

const PAGE: usize = 4096;

/// What happens to a stage.
#[derive(Debug, Clone)]
enum Step {
    Write(usize, usize, u8),
    Zero(usize, usize),
    /// The run is interrupted and gone on from.
    Resume,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..40usize, 1..9usize);
    prop_oneof![
        4 => (range(), 1..=255u8).prop_map(|((page, pages), byte)| Step::Write(page, pages, byte)),
        3 => range().prop_map(|(page, pages)| Step::Zero(page, pages)),
        1 => Just(Step::Resume),
    ]
}

/// Within one run: going on from a log frees what it no longer needs of the stage.
fn uninterrupted() -> impl Strategy<Value = Step> {
    step().prop_filter("one run", |step| !matches!(step, Step::Resume))
}

/// Files of a destination without clones.
struct Files {
    dir: TempDir,
    old: File,
}

impl Files {
    fn new(old: &Sparse) -> Files {
        let dir = tempfile::tempdir().expect("a directory");
        let old = old.write(&dir.path().join("old"));
        Files { dir, old }
    }

    fn open(&self, name: &str) -> File {
        let path = self.dir.path().join(name);
        File::options().read(true).write(true).create(true).truncate(false).open(path).expect("open")
    }

    fn identity(&self) -> Identity {
        Identity::of(&self.old).expect("identify")
    }

    fn begin(&self) -> Stage {
        Stage::begin(self.open("stage"), self.open("log"), self.identity()).expect("begin")
    }

    fn resume(&self) -> (Stage, Runs) {
        let resumed = Stage::resume(self.open("stage"), self.open("log"), self.identity());
        resumed.expect("resume").expect("a log of this file")
    }

    fn overlay(&self, runs: Runs) -> Overlay {
        Overlay::new(FileImage::new(self.open("old"), true), self.open("stage"), runs)
    }

    fn sealed(&self) -> Option<Sealed> {
        Sealed::open(self.open("stage"), self.open("log"), self.identity()).expect("open")
    }

    fn old(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("old")).expect("read")
    }
}

fn take(files: &Files, stage: &mut Option<Stage>, model: &mut Vec<u8>, step: &Step) {
    let range = |page: usize, pages: usize| page * PAGE..(page + pages) * PAGE;
    let open = stage.as_mut().expect("a stage");
    match *step {
        Step::Write(page, pages, byte) => {
            let range = range(page, pages);
            model.resize(model.len().max(range.end), 0);
            model[range.clone()].fill(byte);
            open.write(range.start as u64, &vec![byte; range.len()]).expect("write");
        }
        Step::Zero(page, pages) => {
            let range = range(page, pages);
            model.resize(model.len().max(range.end), 0);
            model[range.clone()].fill(0);
            open.zero(range.start as u64..range.end as u64).expect("zero");
        }
        Step::Resume => {
            open.flush().expect("flush");
            *stage = None;
            *stage = Some(files.resume().0);
        }
    }
}

fn seal(length: usize) -> Seal {
    let attributes = Attributes { new_mode: 0o600, ..Attributes::default() };
    Seal { length: length as u64, block_size: 65536, root: [7; 32], attributes, preallocate: false }
}

fn bytes_of(image: &dyn Image, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    image.read_at(&mut bytes, 0).expect("read");
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_overlay_and_a_replay_are_what_was_written(
        old in sparse(5), steps in prop::collection::vec(step(), 0..25), cut in 0..3usize,
    ) {
        let files = Files::new(&old);
        let (mut stage, mut model) = (Some(files.begin()), old.bytes.clone());
        steps.iter().for_each(|step| take(&files, &mut stage, &mut model, step));
        stage.as_mut().expect("a stage").flush().expect("flush");
        let (mut stage, runs) = { drop(stage); files.resume() };
        prop_assert!(bytes_of(&files.overlay(runs), model.len()) == model, "the overlay differs");

        let length = model.len().saturating_sub(cut * 1000);
        let sealed = stage.seal(&seal(length), false).expect("seal");
        for _ in 0..2 {
            sealed.replay(&files.old).expect("replay");
            prop_assert!(files.old() == model[..length], "the replay differs");
        }
        let found = files.sealed().map(|sealed| sealed.seal);
        prop_assert_eq!(found, Some(seal(length)));
    }

    #[test]
    fn a_torn_log_goes_on_from_a_whole_number_of_records(
        old in sparse(4), steps in prop::collection::vec(uninterrupted(), 1..8), at in any::<prop::sample::Index>(),
    ) {
        let files = Files::new(&old);
        let mut models = vec![old.bytes.clone()];
        let mut stage = Some(files.begin());
        for step in &steps {
            // Going on frees what later records made zero: no shorter log was ever whole since.
            if matches!(step, Step::Resume) {
                continue;
            }
            // Always the same byte: data of later steps is in the stage already, where
            // ranges of earlier ones may reach.
            let step = match *step {
                Step::Write(page, pages, _) => &Step::Write(page, pages, 9),
                _ => step,
            };
            let mut model = models.last().expect("one").clone();
            take(&files, &mut stage, &mut model, step);
            // Every step is a record of its own.
            stage.as_mut().expect("a stage").flush().expect("flush");
            models.push(model);
        }
        drop(stage);
        let log = files.open("log");
        let length = log.metadata().expect("stat").len();
        let header = 32;
        log.set_len(header + at.index((length - header + 1) as usize) as u64).expect("tear");
        let (_, runs) = files.resume();
        let longest = models.iter().map(Vec::len).max().expect("some");
        let found = bytes_of(&files.overlay(runs), longest);
        let is = |model: &Vec<u8>| found[..model.len()] == model[..] && found[model.len()..].iter().all(|&b| b == 0);
        prop_assert!(models.iter().any(is), "no prefix of the steps");
    }

    #[test]
    fn a_seal_that_is_torn_or_damaged_is_none(
        steps in prop::collection::vec(step(), 0..6), at in any::<prop::sample::Index>(), bit in 0..8u8,
    ) {
        let files = Files::new(&Sparse::default());
        let (mut stage, mut model) = (Some(files.begin()), Vec::new());
        steps.iter().for_each(|step| take(&files, &mut stage, &mut model, step));
        stage.expect("a stage").seal(&seal(model.len()), false).expect("seal");
        let log = files.open("log");
        let length = log.metadata().expect("stat").len() as usize;
        prop_assert!(files.sealed().is_some());
        let mut byte = [0];
        let at = at.index(length);
        log.read_exact_at(&mut byte, at as u64).expect("read");
        log.write_all_at(&[byte[0] ^ 1 << bit], at as u64).expect("write");
        // Another digit of the version is that of another version, and an error.
        let damaged = Sealed::open(files.open("stage"), files.open("log"), files.identity());
        prop_assert!(matches!(damaged, Ok(None)) || at == 13 && damaged.is_err(), "a bit is flipped at {at} of {length}");
        log.write_all_at(&byte, at as u64).expect("write");
        log.set_len(at as u64).expect("tear");
        prop_assert!(files.sealed().is_none(), "torn at {at} of {length}");
    }

    #[test]
    fn runs_are_what_was_inserted_last(inserts in prop::collection::vec((0..60u64, 1..20u64, any::<bool>()), 0..40)) {
        let mut runs = Runs::default();
        let mut model = [None; 80];
        for &(start, len, data) in &inserts {
            let new = if data { RangeKind::Data } else { RangeKind::Zero };
            runs.insert(start..start + len, new);
            model[start as usize..(start + len) as usize].fill(Some(new));
        }
        let mut found = [None; 80];
        let mut last: Option<(u64, RangeKind)> = None;
        for (range, new) in runs.iter() {
            prop_assert!(range.start < range.end);
            prop_assert!(last.is_none_or(|(end, kind)| end < range.start || end == range.start && kind != new));
            last = Some((range.end, new));
            found[range.start as usize..range.end as usize].fill(Some(new));
        }
        prop_assert_eq!(found, model);
    }
}

/// A log that recovery would not look at as a whole must not be sealed.
#[test]
fn more_ranges_than_are_looked_at_are_not_sealed() {
    let many = (1 << 20) + 1;
    let files = Files::new(&Sparse::default());
    let mut stage = files.begin();
    for nth in 0..many - 1 {
        stage.free(nth * 3..nth * 3 + 1).unwrap();
    }
    assert!(stage.can_be_sealed());
    // The last one is not in the log yet.
    stage.free(many * 3..many * 3 + 1).unwrap();
    assert!(!stage.can_be_sealed());

    // A range that falls into one of an earlier run makes three of it.
    let files = Files::new(&Sparse::default());
    let mut stage = files.begin();
    stage.zero(0..1 << 34).unwrap();
    stage.flush().unwrap();
    drop(stage);
    let (mut stage, _) = files.resume();
    for nth in 0..many / 2 - 1 {
        stage.free(nth * 8192 + 1..nth * 8192 + 2).unwrap();
    }
    assert!(stage.can_be_sealed());
    stage.free(1 << 33..(1 << 33) + 1).unwrap();
    assert!(!stage.can_be_sealed());
}
