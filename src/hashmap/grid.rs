//! The grid of blocks and pages that is laid over every file, and masks of pages. Knows
//! no bytes: numbers alone.

use std::ops::Range;

use crate::options::BlockSize;

/// The grain in which zeros are told from data: the block size of every common
/// file system, and the page size of the cache.
pub const PAGE: u64 = 4096;

/// The longest image, in bytes: the largest offset that system calls take.
pub const MAX_LENGTH: u64 = i64::MAX as u64;

/// Which pages of a block are meant: bit 0 is the first.
pub type PageMask = u64;

/// The runs of consecutive pages in a mask.
pub fn page_runs(mask: PageMask) -> impl Iterator<Item = Range<u32>> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        let start = rest.trailing_zeros();
        if start == 64 {
            return None;
        }
        let len = (rest >> start).trailing_ones();
        rest &= PageMask::MAX.checked_shl(start + len).unwrap_or(0);
        Some(start..start + len)
    })
}

/// The block grid over a file of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Bytes in the file.
    pub length: u64,
    /// Bytes in a block.
    pub block: BlockSize,
}

impl Grid {
    /// How many blocks there are; the last may be short.
    pub fn blocks(&self) -> u64 {
        self.length.div_ceil(self.block.bytes())
    }

    /// Whether a map of the file `old` tells of all that it has within this one: the end of this one
    /// cuts none of its blocks.
    pub fn cuts_no_block_of(&self, old: &Grid) -> bool {
        let is_on_border = self.length.is_multiple_of(self.block.bytes());
        self.block == old.block && (old.length <= self.length || is_on_border)
    }

    /// Where a run of blocks lies in the file, clipped to its length.
    pub fn bytes(&self, blocks: &Range<u64>) -> Range<u64> {
        let at = |block: u64| block.saturating_mul(self.block.bytes()).min(self.length);
        at(blocks.start)..at(blocks.end)
    }

    /// Where a run of pages of one block lies in the file, clipped to its length.
    pub fn pages(&self, block: u64, pages: &Range<u32>) -> Range<u64> {
        let start = block * self.block.bytes();
        let at = |page: u32| (start + u64::from(page) * PAGE).min(self.length);
        at(pages.start)..at(pages.end)
    }

    /// How many bytes the pages of a mask hold in this block.
    pub fn masked_bytes(&self, block: u64, mask: PageMask) -> u64 {
        page_runs(mask).map(|run| self.pages(block, &run)).map(|r| r.end - r.start).sum()
    }

    /// All pages that this block has.
    pub fn all_pages(&self, block: u64) -> PageMask {
        let bytes = self.bytes(&(block..block + 1));
        let count = (bytes.end - bytes.start).div_ceil(PAGE);
        if count >= 64 { PageMask::MAX } else { (1 << count) - 1 }
    }
}
