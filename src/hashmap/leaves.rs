//! Leaves: the parts of a block that are compared by themselves when both ends
//! have data there and it differs. Pure.

use std::io;

use crate::hashmap::{self, Grid, PAGE, PageMask, page_runs};
use crate::options::BlockSize;
use crate::scan::Image;

/// As much of a hash as tells leaves apart: what a collision spoils shows in the
/// hash of the block.
pub type LeafHash = [u8; 8];

/// What one end has of a block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaves {
    /// The pages that are not all zeros.
    pub data: PageMask,
    /// A hash for each leaf that has such pages, in order.
    pub hashes: Vec<LeafHash>,
}

impl Leaves {
    /// The leaves of a block with these pages of data, whose bytes are `bytes`, packed.
    pub fn of(leaf: BlockSize, grid: &Grid, block: u64, data: PageMask, bytes: &[u8]) -> Leaves {
        let hashes = parts(leaf, data).map(|part| hash(grid, block, data, part, bytes)).collect();
        Leaves { data, hashes }
    }

    /// The leaves of a block of an image.
    ///
    /// # Errors
    ///
    /// What reading reports.
    pub fn read(image: &dyn Image, grid: &Grid, block: u64, leaf: BlockSize) -> io::Result<Leaves> {
        let all = grid.all_pages(block);
        let range = grid.bytes(&(block..block + 1));
        let mut bytes = vec![0; (range.end - range.start) as usize];
        image.read_at(&mut bytes, range.start)?;
        let data = hashmap::nonzero_pages(all, &bytes);
        let pages = bytes.chunks(PAGE as usize).enumerate().filter(|(page, _)| data >> page & 1 == 1);
        let packed: Vec<u8> = pages.flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        Ok(Leaves::of(leaf, grid, block, data, &packed))
    }

    /// The pages of `data`, packed in `bytes`, in leaves that are not among these.
    pub fn differing(
        &self,
        leaf: BlockSize,
        grid: &Grid,
        block: u64,
        data: PageMask,
        bytes: &[u8],
    ) -> PageMask {
        let same = parts(leaf, self.data).zip(&self.hashes).filter(|(part, theirs)| {
            // The mask of the whole leaf: pages that only one end has make a difference.
            data & around(leaf, *part) == *part && hash(grid, block, data, *part, bytes) == **theirs
        });
        same.fold(data, |differing, (part, _)| differing & !part)
    }
}

impl Leaves {
    /// Whether they can be what a block has that is no larger than `all` pages, with leaves of
    /// one page.
    pub fn are_pages_of(&self, all: PageMask) -> bool {
        self.data & !all == 0 && self.hashes.len() == self.data.count_ones() as usize
    }

    /// The pages in which two blocks differ, as far as leaves of one page tell.
    pub fn differing_pages(&self, other: &Leaves) -> PageMask {
        let pages = |leaves: &Leaves| page_runs(leaves.data).flatten();
        let (mut theirs, mut differing) = (pages(other).zip(&other.hashes).peekable(), other.data);
        for (page, hash) in pages(self).zip(&self.hashes) {
            while theirs.next_if(|(at, _)| *at < page).is_some() {}
            let is_same = theirs.next_if(|(at, _)| *at == page).is_some_and(|(_, other)| other == hash);
            differing = if is_same { differing & !(1 << page) } else { differing | 1 << page };
        }
        differing
    }
}

/// What each leaf has of these pages, empty leaves left out.
fn parts(leaf: BlockSize, data: PageMask) -> impl Iterator<Item = PageMask> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let part = rest & around(leaf, rest & rest.wrapping_neg());
        rest &= !part;
        (part != 0).then_some(part)
    })
}

/// All pages of the leaf that the first of these pages lies in.
fn around(leaf: BlockSize, pages: PageMask) -> PageMask {
    if pages == 0 {
        return 0;
    }
    let count = (leaf.bytes() / PAGE) as u32;
    let first = pages.trailing_zeros() / count * count;
    (PageMask::MAX >> (PageMask::BITS - count)) << first
}

/// The hash of a part of the pages of a block.
fn hash(grid: &Grid, block: u64, data: PageMask, part: PageMask, bytes: &[u8]) -> LeafHash {
    let before = data & ((1u64 << part.trailing_zeros()) - 1);
    let start = grid.masked_bytes(block, before) as usize;
    let len = grid.masked_bytes(block, part) as usize;
    let whole = hashmap::hash_block(part, std::iter::once(&bytes[start..start + len]));
    std::array::from_fn(|i| whole[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 64 << 10;

    fn grid() -> Grid {
        Grid { length: 10 * BLOCK - 100, block: BlockSize::new(BLOCK).unwrap() }
    }

    /// The pages of a block, each filled with its number and what `change` adds.
    fn bytes(block: u64, data: PageMask, change: impl Fn(u32) -> u8) -> Vec<u8> {
        let fill = |page: u32| {
            let range = grid().pages(block, &(page..page + 1));
            vec![page as u8 + 1 + change(page); (range.end - range.start) as usize]
        };
        (0..64).filter(|page| data >> page & 1 == 1).flat_map(fill).collect()
    }

    #[test]
    fn only_leaves_with_a_difference_differ() {
        for (leaf, expected) in [(4, 0b10_0000), (8, 0b11_0000), (16, 0b1111_0000), (64, 0xffff)] {
            let leaf = BlockSize::new(leaf << 10).unwrap();
            for block in [0, 9] {
                let all = grid().all_pages(block);
                let theirs = Leaves::of(leaf, &grid(), block, all, &bytes(block, all, |_| 0));
                let mine = bytes(block, all, |page| u8::from(page == 5) * 100);
                assert_eq!(theirs.differing(leaf, &grid(), block, all, &mine), expected, "{leaf:?} {block}");
                let same = bytes(block, all, |_| 0);
                assert_eq!(theirs.differing(leaf, &grid(), block, all, &same), 0);
            }
        }
    }

    #[test]
    fn a_page_that_only_one_end_has_makes_its_leaf_differ() {
        let leaf = BlockSize::new(8 << 10).unwrap();
        let theirs = Leaves::of(leaf, &grid(), 0, 0b1101, &bytes(0, 0b1101, |_| 0));
        assert_eq!(theirs.hashes.len(), 2);
        let differing = |data| theirs.differing(leaf, &grid(), 0, data, &bytes(0, data, |_| 0));
        assert_eq!(differing(0b1101), 0);
        assert_eq!(differing(0b1111), 0b0011);
        assert_eq!(differing(0b0101), 0b0100);
        assert_eq!(differing(0b11_0000), 0b11_0000);
    }

    #[test]
    fn two_answers_tell_the_pages_that_differ() {
        let leaves = |data, change: fn(u32) -> u8| {
            Leaves::of(BlockSize::SMALLEST, &grid(), 0, data, &bytes(0, data, change))
        };
        let mine = leaves(0b1101_0011, |_| 0);
        assert!(mine.are_pages_of(0xffff) && !mine.are_pages_of(0x7f));
        assert_eq!(mine.differing_pages(&mine), 0);
        assert_eq!(mine.differing_pages(&Leaves::default()), 0b1101_0011);
        assert_eq!(Leaves::default().differing_pages(&mine), 0b1101_0011);
        let theirs = leaves(0b0111_0101, |page| u8::from(page == 4) * 100);
        assert_eq!(mine.differing_pages(&theirs), 0b1011_0110);
        assert_eq!(theirs.differing_pages(&mine), 0b1011_0110);
    }

    #[test]
    fn the_largest_block_has_one_leaf_or_many() {
        let grid = Grid { length: 1 << 20, block: BlockSize::new(256 << 10).unwrap() };
        let bytes = vec![7; 256 << 10];
        for (leaf, count) in [(4 << 10, 64), (128 << 10, 2), (256 << 10, 1)] {
            let leaf = BlockSize::new(leaf).unwrap();
            assert_eq!(Leaves::of(leaf, &grid, 3, u64::MAX, &bytes).hashes.len(), count);
        }
    }
}
