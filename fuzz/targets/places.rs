//! Where the blocks of a version lie: any bytes, and any runs behind a head that is right.
#![no_main]

use holesync::store::pack::{MOST_RAW, MOST_STORED};
use holesync::store::name::ObjectId;
use holesync::store::places::{PlacesReader, head_of};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    read(data);
    if let Some((&packs, runs)) = data.split_first() {
        let packed = zstd::bulk::compress(runs, 1).expect("compress");
        read(&[head_of(&vec![ObjectId([7; 16]); usize::from(packs % 8)]), packed].concat());
    }
});

fn read(bytes: &[u8]) {
    let Ok(mut places) = PlacesReader::new(bytes) else { return };
    let packs = places.packs().len();
    for bytes in (1..64).map(|pages| pages * 4096).cycle().take(1000) {
        let Ok(place) = places.next(bytes) else { return };
        assert!((place.pack as usize) < packs && places.pack_of(&place).0.len() == 16, "{place:?}");
        let frame = place.frame();
        assert!(frame.end - frame.start <= MOST_STORED as u64, "{place:?}");
        assert!(u64::from(place.raw) + bytes <= MOST_RAW as u64, "{place:?}");
    }
}
