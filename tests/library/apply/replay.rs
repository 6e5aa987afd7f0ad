//! Every way from a stage to the new file, with ranges that respect nothing:
//! replayed, replayed again after a crash half way, completed, or written into a
//! copy.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use holesync::apply::Attributes;
use holesync::apply::ranges::cover::Cover;
use holesync::apply::stage::Stage;
use holesync::apply::stage::log::{Identity, Seal, read_seal};
use holesync::apply::stage::overlay::Overlay;
use holesync::scan::{FileImage, Image};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::support::{Sparse, fill, sparse};

/// Bytes of a log's header and of a record, and what kind of record holds data.
const HEADER: usize = 32;
const RECORD: usize = 24;
const DATA: u32 = 1;

#[derive(Debug, Clone)]
enum Step {
    Write(Range<u64>, u8),
    Zero(Range<u64>),
    /// Gives back what is zero there already.
    Free(Range<u64>),
    /// The run is interrupted and gone on from.
    Resume,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![1..9u64, 1..9000u64, (1..9u64).prop_map(|pages| pages * 4096)];
    let place = prop_oneof![0..300_000u64, (0..70u64).prop_map(|page| page * 4096)];
    let range = (place, len).prop_map(|(start, len)| start..start + len).boxed();
    let step = prop_oneof![
        4 => (range.clone(), 1..9u8).prop_map(|(range, seed)| Step::Write(range, seed)),
        3 => range.clone().prop_map(Step::Zero),
        1 => range.prop_map(Step::Free),
        1 => Just(Step::Resume),
    ];
    prop::collection::vec(step, 0..20)
}

/// An old file, a stage with all steps taken, and what they mean.
struct Staged {
    dir: TempDir,
    old: File,
    stage: Option<Stage>,
    model: Vec<u8>,
}

impl Staged {
    fn new(old: &Sparse, steps: &[Step]) -> Staged {
        let dir = tempfile::tempdir().expect("a directory");
        let file = old.write(&dir.path().join("old"));
        let mut staged = Staged { dir, old: file, stage: None, model: old.bytes.clone() };
        let begun = Stage::begin(staged.open("stage"), staged.open("log"), staged.identity());
        staged.stage = Some(begun.expect("begin"));
        steps.iter().for_each(|step| staged.take(step));
        staged.stage().flush().expect("flush");
        staged
    }

    fn open(&self, name: &str) -> File {
        let path = self.dir.path().join(name);
        File::options().read(true).write(true).create(true).truncate(false).open(path).expect("open")
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join(name)).expect("read")
    }

    fn identity(&self) -> Identity {
        Identity::of(&self.old).expect("identify")
    }

    fn stage(&mut self) -> &mut Stage {
        self.stage.as_mut().expect("a stage")
    }

    fn take(&mut self, step: &Step) {
        let reach = |model: &mut Vec<u8>, range: &Range<u64>| {
            model.resize(model.len().max(range.end as usize), 0);
            range.start as usize..range.end as usize
        };
        match step {
            Step::Write(range, seed) => {
                let place = reach(&mut self.model, range);
                fill(&mut self.model[place.clone()], range.start, *seed);
                let bytes = self.model[place].to_vec();
                self.stage().write(range.start, &bytes).expect("write");
            }
            Step::Zero(range) => {
                let place = reach(&mut self.model, range);
                self.model[place].fill(0);
                self.stage().zero(range.clone()).expect("zero");
            }
            Step::Free(range) => {
                let there = self.model.get(range.start as usize..range.end as usize);
                if there.is_some_and(|bytes| bytes.iter().all(|&byte| byte == 0)) {
                    self.stage().free(range.clone()).expect("free");
                }
            }
            Step::Resume => {
                self.stage().flush().expect("flush");
                self.resume();
            }
        }
    }

    /// What the next run finds.
    fn resume(&mut self) -> Overlay {
        self.stage = None;
        let resumed = Stage::resume(self.open("stage"), self.open("log"), self.identity());
        let (stage, runs) = resumed.expect("resume").expect("a log of this file");
        self.stage = Some(stage);
        Overlay::new(FileImage::new(self.open("old"), true), self.open("stage"), runs)
    }

    /// What the file of this length is to be.
    fn wanted(&self, length: u64) -> Vec<u8> {
        let mut wanted = self.model.clone();
        wanted.resize(length as usize, 0);
        wanted
    }

    fn seal(&mut self, length: u64) -> holesync::apply::stage::Sealed {
        let attributes = Attributes { new_mode: 0o600, ..Attributes::default() };
        let seal = Seal { length, block_size: 65536, root: [7; 32], attributes, preallocate: false };
        self.stage.take().expect("a stage").seal(&seal, false).expect("seal")
    }
}

/// All that an entry may carry is found again after a crash; more is refused before the seal.
#[test]
fn a_seal_is_read_back_with_whatever_it_carries() {
    for (bytes, fits) in [(0, true), (5000, true), (48 << 10, true), (200 << 10, true), (300 << 10, false)] {
        let mut staged = Staged::new(&Sparse::default(), &[]);
        let mut attributes = Attributes { new_mode: 0o600, ..Attributes::default() };
        attributes.extended.xattrs = Some(vec![(b"user.all".to_vec(), vec![7; bytes])]);
        let seal = Seal { length: 9, block_size: 65536, root: [7; 32], attributes, preallocate: false };
        let sealed = staged.stage.take().expect("a stage").seal(&seal, false);
        assert_eq!(sealed.is_ok(), fits, "{bytes}");
        let found = read_seal(&staged.open("log"), staged.identity()).expect("read");
        assert!(found == fits.then_some(seal), "{bytes}");
    }
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![0..400_000u64, (0..80u64).prop_map(|page| page * 4096)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_overlay_has_all_its_data_in_its_extents(old in sparse(5), steps in steps()) {
        let mut staged = Staged::new(&old, &steps);
        let overlay = staged.resume();
        let length = staged.model.len() as u64;
        prop_assert_eq!(overlay.length().expect("stat"), length.max(old.len()));
        let mut found = vec![0xee; staged.model.len()];
        overlay.read_at(&mut found, 0).expect("read");
        prop_assert!(found == staged.model, "the bytes differ");
        let mut at = 0;
        for extent in overlay.extents(0..length) {
            let extent = extent.expect("seek");
            prop_assert!(at <= extent.start && extent.start < extent.end && extent.end <= length);
            prop_assert!(found[at as usize..extent.start as usize].iter().all(|&byte| byte == 0), "data in a hole");
            at = extent.end;
        }
        prop_assert!(found[at as usize..].iter().all(|&byte| byte == 0), "data in a hole");
    }

    #[test]
    fn a_replay_that_stopped_anywhere_is_finished_by_the_next(
        old in sparse(5), steps in steps(), length in length(), at in any::<prop::sample::Index>(), part in 0..4096u64,
    ) {
        let mut staged = Staged::new(&old, &steps);
        let (log, wanted) = (staged.read("log"), staged.wanted(length));
        let sealed = staged.seal(length);
        let records = log[HEADER..].chunks(RECORD);
        let stop = at.index(records.len() + 1);
        for (nth, record) in records.enumerate().take(stop) {
            let word = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().expect("8 bytes"));
            let (start, mut end) = (word(0).min(length), word(8).min(length));
            if nth + 1 == stop {
                end = end.min(start + part);
            }
            let mut bytes = vec![0; (end - start) as usize];
            if word(16) as u32 == DATA {
                staged.open("stage").read_exact_at(&mut bytes, start).expect("read");
            }
            staged.old.write_all_at(&bytes, start).expect("write");
        }
        for _ in 0..2 {
            sealed.replay(&staged.old).expect("replay");
            prop_assert!(staged.read("old") == wanted, "the file differs");
        }
    }

    #[test]
    fn a_stage_completed_from_the_old_file_is_the_new_one(old in sparse(5), steps in steps(), length in length()) {
        let mut staged = Staged::new(&old, &steps);
        let (file, identity) = (staged.open("old"), staged.identity());
        let mut kept = Cover::default();
        kept.add(0..old.bytes.len() as u64);
        staged.stage().complete(&file, &kept, length, identity).expect("complete");
        let mut found = staged.read("stage");
        found.resize(length as usize, 0);
        prop_assert!(found == staged.wanted(length), "the stage differs");
        prop_assert!(staged.read("old") == old.bytes, "the old file was touched");
    }

    #[test]
    fn room_made_for_a_replay_changes_no_byte(old in sparse(5), steps in steps(), length in length()) {
        let mut staged = Staged::new(&old, &steps);
        let file = staged.open("old");
        staged.stage().reserve(&file, length, true).expect("reserve");
        prop_assert!(staged.read("old") == old.bytes, "the old file was touched");
        let sealed = staged.seal(length);
        sealed.replay(&staged.old).expect("replay");
        prop_assert!(staged.read("old") == staged.wanted(length), "the file differs");
    }

    /// After a crash of the machine the log may know of data that is gone.
    #[test]
    fn a_stage_that_lost_its_end_is_gone_on_from(
        old in sparse(5), steps in steps(), lost in any::<prop::sample::Index>(),
    ) {
        let mut staged = Staged::new(&old, &steps);
        let data = staged.open("stage");
        data.set_len(lost.index(data.metadata().expect("stat").len() as usize + 1) as u64).expect("cut");
        let overlay = staged.resume();
        let mut found = vec![0xee; overlay.length().expect("stat") as usize];
        overlay.read_at(&mut found, 0).expect("read");
        let sealed = staged.seal(found.len() as u64);
        sealed.replay(&staged.old).expect("replay");
        prop_assert!(staged.read("old") == found, "the file differs from what was compared");
    }
}

/// Every byte of a log, cut off there or damaged.
#[test]
fn no_damage_to_a_sealed_log_goes_unnoticed() {
    let steps = [Step::Write(0..5000, 1), Step::Zero(8192..9000), Step::Write(70_000..70_001, 2)];
    let mut staged = Staged::new(&Sparse::default(), &steps);
    let seal = staged.seal(70_001).seal;
    let (log, whole, identity) = (staged.open("log"), staged.read("log"), staged.identity());
    let sealed = || {
        let sealed = holesync::apply::stage::Sealed::open(staged.open("stage"), staged.open("log"), identity);
        sealed.map(|sealed| sealed.map(|sealed| sealed.seal))
    };
    assert_eq!(sealed().expect("open"), Some(seal));
    for at in 0..whole.len() {
        for flip in [1, 0x80] {
            log.write_all_at(&[whole[at] ^ flip], at as u64).expect("write");
            match sealed() {
                Ok(found) => assert_eq!(found, None, "byte {at} of {} damaged", whole.len()),
                // The last digit of the version: what looks like another one is none of ours.
                Err(error) => assert!(at == 13 && flip == 1, "byte {at}: {error}"),
            }
        }
        log.write_all_at(&whole[at..=at], at as u64).expect("write");
    }
    for at in (0..whole.len()).rev() {
        // Going on from the last one has cut it further.
        log.set_len(0).and_then(|()| log.write_all_at(&whole[..at], 0)).expect("cut");
        assert_eq!(sealed().expect("open"), None, "cut at {at} of {}", whole.len());
        let resumed = Stage::resume(staged.open("stage"), staged.open("log"), identity).expect("resume");
        let runs = resumed.map(|(_, runs)| runs.len());
        let records = at.checked_sub(HEADER).map(|bytes| (bytes / RECORD).min(3));
        assert_eq!(runs, records, "cut at {at}");
    }
}

/// What lies behind the end of a file reads as zeros here, and a digest may end in one.
#[test]
fn a_seal_without_the_zero_that_it_ends_in_is_none() {
    let ends_in_zero = (0..20_000).find_map(|length| {
        let mut staged = Staged::new(&Sparse::default(), &[]);
        staged.seal(length);
        (staged.read("log").last() == Some(&0)).then_some(staged)
    });
    let staged = ends_in_zero.expect("one of 256");
    let (log, identity) = (staged.open("log"), staged.identity());
    assert!(read_seal(&log, identity).expect("read").is_some());
    log.set_len(log.metadata().expect("look").len() - 1).expect("cut");
    assert_eq!(read_seal(&log, identity).expect("read"), None);
}
