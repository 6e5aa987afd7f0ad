//! The index of the patches of a version: any bytes, and any records that zstd unpacks.
#![no_main]

use holesync::hashmap::Grid;
use holesync::options::BlockSize;
use holesync::store::pack::{MOST_RAW, MOST_STORED};
use holesync::store::patches::PatchesReader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[shift, pages], index)) = data.split_first_chunk() else { return };
    let block = BlockSize::new(4096 << (shift % 7)).expect("a size");
    let grid = Grid { length: u64::from(pages) * 4096 + u64::from(shift), block };
    read(index, grid);
    read(&zstd::bulk::compress(index, 1).expect("compress"), grid);
});

fn read(index: &[u8], grid: Grid) {
    let Ok(mut patches) = PatchesReader::new(index, grid) else { return };
    for block in 0..grid.blocks() {
        let Ok(found) = patches.find(block) else { return };
        let Some(patch) = found else { continue };
        assert!(patch.index == block && patch.pages & !grid.all_pages(block) == 0, "{patch:?}");
        assert!(patch.stored as usize <= MOST_STORED, "{patch:?}");
        let end = u64::from(patch.raw) + grid.masked_bytes(block, patch.pages);
        assert!(end <= MOST_RAW as u64, "{patch:?}");
    }
}
