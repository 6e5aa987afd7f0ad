//! The log beside a stage: any records with right checks, then anything.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use holesync::apply::stage::log::{self, Identity, LogReader};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static LOG: File = tempfile::tempfile().expect("a file");
}

fuzz_target!(|data: &[u8]| LOG.with(|file| read(file, data)));

fn read(file: &File, data: &[u8]) {
    let identity = Identity::of(file).expect("a file");
    let Some((&count, mut rest)) = data.split_first() else { return };
    let mut bytes = identity.header().to_vec();
    for _ in 0..count {
        let Some((record, behind)) = rest.split_first_chunk::<17>() else { break };
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|nth| record[at + nth]));
        bytes.extend(log::encode(word(0)..word(8), (record[16] % 6).into()));
        rest = behind;
    }
    bytes.extend(rest);
    let digest = blake3::hash(&bytes);
    bytes.extend(digest.as_bytes());
    file.set_len(0).and_then(|()| file.write_all_at(&bytes, 0)).expect("write");
    let _ = log::read_seal(file, identity);
    let Ok(Some(mut reader)) = LogReader::open(file, identity) else { return };
    let Ok(Some(runs)) = reader.load() else { return };
    let mut end = 0;
    for (range, _) in runs.iter() {
        assert!(range.start >= end && range.start < range.end, "{range:?} behind {end}");
        end = range.end;
    }
    let _ = reader.seal();
    let mut at = 0;
    let each = &mut |stretch: std::ops::Range<u64>, _: &_| {
        assert_eq!(stretch.start, at);
        at = stretch.end;
        Ok(())
    };
    if log::each_stretch(file, identity, 0..u64::MAX, 3, each).is_ok() {
        assert_eq!(at, u64::MAX);
    }
}
