//! Which blocks two files on one xfs or btrfs have in common, as extents that both share: equal
//! without being read.
//!
//! 1. The state of both is looked at, and what was written to either is written back.
//! 2. Stretch by stretch it is asked where the one, the other and the one again lie on storage. What
//!    all three answers have in one place, and as shared, was in one place of both at one moment; so
//!    were holes.
//! 3. Both are still in the state in which they were, so that what lay there was their content.
//!
//! Guaranteed: nothing is an error; where anything is not certain there are fewer blocks. Memory: the
//! answers of one stretch, and half a million runs of blocks. Not guaranteed: what the file systems and the ctimes
//! of both files do not tell.

use std::fs::File;
use std::ops::Range;

use crate::options::BlockSize;
use crate::scan::FileState;
use crate::sys::{self, PlacedExtent, Placement};

/// Runs of blocks that are found; what lies behind them counts as different.
const MOST_RANGES: usize = 1 << 19;

/// An open file, and the state in which it was before anything was asked, all changes of which show.
#[derive(Clone, Copy)]
pub struct Settled<'a> {
    /// The file.
    pub file: &'a File,
    /// Its state.
    pub state: &'a FileState,
}

/// The blocks, in order, that two files have in one place of storage. A block that the end of either
/// cuts is none of them.
pub fn same_blocks(one: Settled, other: Settled, block: BlockSize) -> Vec<Range<u64>> {
    if !sys::share_places(one.file, other.file) {
        return Vec::new();
    }
    let length = one.state.length.min(other.state.length);
    let whole = length - length % block.bytes();
    let mut found = Runs { block: block.bytes(), run: 0..0, blocks: Vec::new() };
    let mut at = 0;
    while at < whole && found.blocks.len() < MOST_RANGES {
        let place = |file| sys::placement(file, &(at..whole)).ok().flatten();
        let answers = [one.file, other.file, one.file].map(place);
        let [Some(first), Some(second), Some(third)] = answers else { return Vec::new() };
        let end = [&first, &second, &third].iter().map(|answer| answer.end).min().unwrap_or(at);
        if end <= at {
            return Vec::new();
        }
        compare([&first, &second, &third], at..end, &mut found);
        at = end;
    }
    let is_still = |settled: Settled| settled.state.is_still(settled.file);
    if is_still(one) && is_still(other) { found.finish() } else { Vec::new() }
}

/// Bytes that are the same, put together to whole blocks.
struct Runs {
    block: u64,
    run: Range<u64>,
    blocks: Vec<Range<u64>>,
}

impl Runs {
    fn push(&mut self, bytes: Range<u64>) {
        if self.run.end == bytes.start {
            self.run.end = bytes.end;
        } else {
            self.close();
            self.run = bytes;
        }
    }

    fn close(&mut self) {
        let blocks = self.run.start.div_ceil(self.block)..self.run.end / self.block;
        if blocks.start < blocks.end {
            self.blocks.push(blocks);
        }
    }

    fn finish(mut self) -> Vec<Range<u64>> {
        self.close();
        self.blocks
    }
}

/// What a file has at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lies {
    Nowhere,
    /// Where others share it.
    At(u64),
    Somewhere,
}

fn compare(answers: [&Placement; 3], bytes: Range<u64>, found: &mut Runs) {
    let mut at = bytes.start;
    while at < bytes.end {
        let [first, second, third] = answers.map(|answer| lies(&answer.extents, at));
        let end = first.1.min(second.1).min(third.1).min(bytes.end);
        if first.0 != Lies::Somewhere && first.0 == second.0 && first.0 == third.0 {
            found.push(at..end);
        }
        at = end;
    }
}

/// What a file has at an offset, and up to where that goes on: behind the offset.
fn lies(extents: &[PlacedExtent], at: u64) -> (Lies, u64) {
    let next = extents.partition_point(|extent| extent.bytes.end <= at);
    match extents.get(next) {
        None => (Lies::Nowhere, u64::MAX),
        Some(extent) if extent.bytes.start > at => (Lies::Nowhere, extent.bytes.start),
        Some(PlacedExtent { bytes, place, is_plainly_shared: true }) => {
            (Lies::At(place.wrapping_add(at - bytes.start)), bytes.end)
        }
        Some(extent) => (Lies::Somewhere, extent.bytes.end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn placement(extents: &[(Range<u64>, u64, bool)]) -> Placement {
        let placed = |(pages, place, is_plainly_shared): &(Range<u64>, u64, bool)| PlacedExtent {
            bytes: pages.start * PAGE..pages.end * PAGE,
            place: place * PAGE,
            is_plainly_shared: *is_plainly_shared,
        };
        Placement { end: u64::MAX, extents: extents.iter().map(placed).collect() }
    }

    fn found(answers: [&Placement; 3], pages: u64) -> Vec<Range<u64>> {
        let mut runs = Runs { block: 4 * PAGE, run: 0..0, blocks: Vec::new() };
        compare(answers, 0..pages * PAGE, &mut runs);
        runs.finish()
    }

    #[test]
    fn whole_blocks_in_one_place_that_all_share_are_found() {
        let old = placement(&[(0..8, 100, true), (8..16, 200, true), (20..24, 300, true)]);
        assert_eq!(found([&old, &old, &old], 24), vec![0..6]);
        // Cut otherwise, and in the same places.
        let cut = placement(&[(0..3, 100, true), (3..8, 103, true), (8..16, 200, true), (20..24, 300, true)]);
        assert_eq!(found([&old, &cut, &old], 24), vec![0..6]);
        // One page elsewhere, or not shared, or a hole.
        for other in [
            placement(&[(0..5, 100, true), (5..6, 900, true), (6..8, 106, true), (8..16, 200, true)]),
            placement(&[(0..5, 100, true), (5..6, 105, false), (6..8, 106, true), (8..16, 200, true)]),
            placement(&[(0..5, 100, true), (6..8, 106, true), (8..16, 200, true)]),
        ] {
            assert_eq!(found([&old, &other, &old], 20), vec![0..1, 2..5]);
            assert_eq!(found([&old, &old, &other], 20), vec![0..1, 2..5]);
            assert_eq!(found([&other, &old, &other], 20), vec![0..1, 2..5]);
        }
    }

    #[test]
    fn places_at_other_offsets_are_others() {
        let one = placement(&[(0..8, 100, true)]);
        let moved = placement(&[(4..12, 100, true)]);
        assert_eq!(found([&one, &moved, &one], 12), vec![]);
    }
}
