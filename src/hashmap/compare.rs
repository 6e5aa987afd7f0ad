//! Two images at hand, compared by their bytes: which pages of the new one the old one
//! lacks, and which of its own become zeros. Where no network lies between them this is
//! cheaper than two maps. Knows no destination.
//!
//! 1. The blocks of both images are gathered side by side, as their extents tell them.
//!    What is a hole in both costs nothing.
//! 2. Stretches of about 512 KiB are compared on all cores, up to 32 of them at once or
//!    waiting. A task reads one block of each image at a time, into buffers that stays in the
//!    cache of a processor, compares it page by page, and hashes the new one if hashes are
//!    wanted.
//! 3. The caller's thread hands on what was found, stretch by stretch, with the bytes of the
//!    pages that the old image lacks. Nobody waits for a stretch that comes later.
//!
//! Blocks that are known to be the same are passed by: no page of them is read.
//!
//! Guaranteed: stretches come in file order and cover the file without gaps; a page of the
//! new image is read once, so that what is handed on is what was compared and hashed.
//! Memory: the bytes of pages that differ in 32 stretches, and two blocks a thread. Not
//! guaranteed: anything about an image that somebody writes meanwhile.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::mpsc::sync_channel;

use crate::hashmap::gather::{Gather, Gathered};
use crate::hashmap::{Block, Grid, Hash, Item, PAGE, PageMask};
use crate::hashmap::{hash_read, nonzero_pages, page_runs};
use crate::scan::{self, Image};

/// What a new image is held against.
#[derive(Clone, Copy)]
pub enum OldContent<'a> {
    /// An image of this length in bytes; what lies beyond is zero.
    Image(&'a dyn Image, u64),
    /// Zeros.
    Zeros,
    /// Nobody knows: all of it is to be written, zeros included.
    Unknown,
}

/// Whether blocks of the new image are hashed on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hashing {
    /// They are.
    Wanted,
    /// They are not: there is nobody to check what was made of them.
    Unneeded,
}

/// Which of two images could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// The new one.
    New(io::Error),
    /// The old one.
    Old(io::Error),
}

/// A block in which either image has a data extent. The masks `new`, `zero` and `free` do
/// not overlap; pages in none of them stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockDiff {
    /// Its place on the grid.
    pub index: u64,
    /// The pages that were read of the new image.
    pub read: PageMask,
    /// The pages of the new image that are not all zeros.
    pub data: PageMask,
    /// Those of them that the old image lacks.
    pub new: PageMask,
    /// The pages that hold data in the old image, or may, and become zero.
    pub zero: PageMask,
    /// The pages that are zeros in both images and take buffers in the old one.
    pub free: PageMask,
    /// The pages of the old image that are not all zeros.
    pub old: PageMask,
    /// The hash of the new block; of no meaning when `data` is 0 or none were wanted.
    pub hash: Hash,
    /// It was known to be the same: nothing was read, and all that either may have counts as data.
    pub is_known: bool,
}

impl BlockDiff {
    /// Whether the old image reads otherwise.
    pub fn differs(&self) -> bool {
        self.new | self.zero != 0
    }
}

/// A stretch of a file.
#[derive(Debug, Default)]
pub struct Stretch {
    /// The blocks that it covers.
    pub range: Range<u64>,
    /// Those in which either image has a data extent, in file order; the others are holes
    /// in both.
    pub blocks: Vec<BlockDiff>,
    /// The bytes of their `new` pages, one after the other.
    pub bytes: Vec<u8>,
}

/// How much is compared by one task, in bytes of either image.
const STRETCH: u64 = 512 << 10;
/// How many stretches are compared, or wait to be handed on.
const UNDER_WAY: usize = 32;

/// Holds `new`, which lies on `grid`, against `old`, and hands out what it found. `same`: blocks, in
/// order, that are known to be the same, where no hashes are wanted. Waits for threads of rayon's pool, so that it must not run on one of them.
///
/// # Errors
///
/// What seeking and reading report, and what `sink` returns.
pub fn compare<E: From<ReadError>>(
    new: &dyn Image,
    old: OldContent,
    grid: &Grid,
    hashing: Hashing,
    same: &[Range<u64>],
    mut sink: impl FnMut(Stretch) -> Result<(), E>,
) -> Result<(), E> {
    let old_grid = match old {
        OldContent::Image(_, length) => Grid { length: length.min(grid.length), ..*grid },
        OldContent::Zeros | OldContent::Unknown => Grid { length: 0, ..*grid },
    };
    let comparison = &Comparison { new, old, grid, hashing, same };
    let mut gathered = Pairs::new(comparison, &old_grid);
    let first = gathered.stretch()?;
    if gathered.is_through() {
        return first
            .map_or(Ok(()), |UnreadStretch { range, pairs }| sink(comparison.stretch(range, &pairs)?));
    }
    rayon::in_place_scope(|scope| {
        let mut next = first;
        let mut under_way = VecDeque::new();
        loop {
            while under_way.len() < UNDER_WAY
                && let Some(UnreadStretch { range, pairs }) = next.take()
            {
                let (result, compared) = sync_channel(1);
                // Nobody waits for it when what came before failed.
                scope.spawn(move |_| drop(result.send(comparison.stretch(range, &pairs))));
                under_way.push_back(compared);
                next = gathered.stretch()?;
            }
            // A task that panicked takes this thread along at the end of the scope.
            let Some(Ok(compared)) = under_way.pop_front().map(|compared| compared.recv()) else {
                return Ok(());
            };
            sink(compared?)?;
        }
    })
}

/// The pages that data extents of the two images cover in one block.
#[derive(Debug, Clone, Copy)]
struct Pair {
    index: u64,
    new: PageMask,
    old: PageMask,
}

/// A stretch that was not read yet.
struct UnreadStretch {
    range: Range<u64>,
    pairs: Vec<Pair>,
}

/// The blocks of both images, side by side.
struct Pairs<'a> {
    grid: &'a Grid,
    new: Pages<'a>,
    old: Option<Pages<'a>>,
    next: u64,
}

impl<'a> Pairs<'a> {
    fn new(comparison: &Comparison<'a>, old_grid: &'a Grid) -> Pairs<'a> {
        let &Comparison { new, old, grid, .. } = comparison;
        let old = match old {
            OldContent::Image(image, _) => Some(Pages::of(image, old_grid)),
            OldContent::Zeros | OldContent::Unknown => None,
        };
        Pairs { grid, new: Pages::of(new, grid), old, next: 0 }
    }

    fn is_through(&self) -> bool {
        self.next == self.grid.blocks()
    }

    /// The next stretch, if there is one: its blocks, and what is to be compared of them. The
    /// last one reaches to the end of the grid.
    fn stretch(&mut self) -> Result<Option<UnreadStretch>, ReadError> {
        let start = self.next;
        let (mut pairs, mut bytes) = (Vec::new(), 0);
        while bytes < STRETCH {
            let new = self.new.peek().map_err(ReadError::New)?;
            let old = self.old.as_mut().map_or(Ok(None), Pages::peek).map_err(ReadError::Old)?;
            let Some(index) = new.iter().chain(&old).map(|&(index, _)| index).min() else {
                self.next = self.grid.blocks();
                break;
            };
            let mut pair = Pair { index, new: 0, old: 0 };
            if let Some((_, mask)) = new.filter(|&(at, _)| at == index) {
                self.new.found.pop_front();
                pair.new = mask;
            }
            if let (Some((_, mask)), Some(pages)) = (old.filter(|&(at, _)| at == index), &mut self.old) {
                pages.found.pop_front();
                pair.old = mask;
            }
            bytes += self.grid.masked_bytes(index, pair.new | pair.old);
            self.next = index + 1;
            pairs.push(pair);
        }
        Ok((start < self.next).then_some(UnreadStretch { range: start..self.next, pairs }))
    }
}

/// The blocks of one image that have data extents in them, and the pages that these cover.
struct Pages<'a> {
    gather: Gather<'a>,
    found: VecDeque<(u64, PageMask)>,
}

impl<'a> Pages<'a> {
    fn of(image: &'a dyn Image, grid: &'a Grid) -> Pages<'a> {
        Pages { gather: Gather::new(image, grid, 0), found: VecDeque::new() }
    }

    fn peek(&mut self) -> io::Result<Option<(u64, PageMask)>> {
        while self.found.is_empty() && !self.gather.is_through() {
            let Some(Gathered { first, batch }) = self.gather.batch()? else { break };
            let mut index = first;
            for item in &batch.items {
                if let Item::Block(block) = item {
                    self.found.push_back((index, block.read));
                }
                index += item.blocks();
            }
        }
        Ok(self.found.front().copied())
    }
}

/// What is compared with what.
struct Comparison<'a> {
    new: &'a dyn Image,
    old: OldContent<'a>,
    grid: &'a Grid,
    hashing: Hashing,
    same: &'a [Range<u64>],
}

/// The read pages of one block of either image, packed.
#[derive(Default)]
struct PageBuffers {
    new: Vec<u8>,
    old: Vec<u8>,
}

impl Comparison<'_> {
    fn stretch(&self, range: Range<u64>, pairs: &[Pair]) -> Result<Stretch, ReadError> {
        let mut stretch = Stretch { range, ..Stretch::default() };
        let mut buffers = PageBuffers::default();
        for pair in pairs {
            let diff = self.block(pair, &mut buffers)?;
            for run in page_runs(diff.new) {
                let (start, end) = (at_in(pair.new, run.start), at_in(pair.new, run.end));
                stretch.bytes.extend_from_slice(&buffers.new[start..end.min(buffers.new.len())]);
            }
            stretch.blocks.push(diff);
        }
        Ok(stretch)
    }

    fn is_known(&self, index: u64) -> bool {
        let next = self.same.partition_point(|range| range.end <= index);
        self.hashing == Hashing::Unneeded && self.same.get(next).is_some_and(|range| range.contains(&index))
    }

    fn block(&self, pair: &Pair, buffers: &mut PageBuffers) -> Result<BlockDiff, ReadError> {
        let &Pair { index, new: read, .. } = pair;
        if read == pair.old && self.is_known(index) {
            let (hash, is_known) = (Hash::default(), true);
            let [new, zero, free] = [0; 3];
            return Ok(BlockDiff { index, read, data: read, new, zero, free, old: read, hash, is_known });
        }
        read_pages(self.new, self.grid, index, read, &mut buffers.new).map_err(ReadError::New)?;
        let data = nonzero_pages(read, &buffers.new);
        let hash = match self.hashing {
            Hashing::Wanted if data != 0 => {
                hash_read(&Block { hash: Hash::default(), data, read, at: 0 }, &buffers.new)
            }
            _ => Hash::default(),
        };
        let (new, is_known) = (data, false);
        let diff = BlockDiff { index, read, data, new, zero: 0, free: 0, old: 0, hash, is_known };
        match self.old {
            OldContent::Zeros => Ok(diff),
            OldContent::Unknown => Ok(BlockDiff { zero: self.grid.all_pages(index) & !data, ..diff }),
            OldContent::Image(image, _) => {
                read_pages(image, self.grid, index, pair.old, &mut buffers.old).map_err(ReadError::Old)?;
                Ok(against(diff, pair, buffers))
            }
        }
    }
}

/// Holds what was read of a block against what the old image has of it.
fn against(diff: BlockDiff, pair: &Pair, buffers: &PageBuffers) -> BlockDiff {
    let same = same_pages(pair, buffers);
    let data = diff.data;
    let (mut zero, mut free) = (0, 0);
    for page in page_runs(pair.old & !data).flatten() {
        let bit = 1 << page;
        let is_zero = if pair.new & bit != 0 {
            same & bit != 0
        } else {
            scan::is_zero(page_of(pair.old, &buffers.old, page))
        };
        if is_zero { free |= bit } else { zero |= bit }
    }
    let replaced = page_runs(pair.old & data & !same).flatten();
    let was_zero = replaced.filter(|&page| scan::is_zero(page_of(pair.old, &buffers.old, page)));
    let old = was_zero.fold(pair.old & !free, |old, page| old & !(1 << page));
    if data == 0 && zero != 0 {
        // All of the block becomes a hole, at once.
        (zero, free) = (pair.old, 0);
    }
    BlockDiff { new: data & !same, zero, free, old, ..diff }
}

/// The pages that were read of both images and are the same.
fn same_pages(pair: &Pair, buffers: &PageBuffers) -> PageMask {
    if pair.new == pair.old && buffers.new == buffers.old {
        return pair.new;
    }
    let common = page_runs(pair.new & pair.old).flatten();
    let same =
        common.filter(|&page| page_of(pair.new, &buffers.new, page) == page_of(pair.old, &buffers.old, page));
    same.fold(0, |mask, page| mask | 1 << page)
}

/// Where a page lies among the packed pages of a mask.
fn at_in(mask: PageMask, page: u32) -> usize {
    let before = if page < 64 { mask & ((1 << page) - 1) } else { mask };
    before.count_ones() as usize * PAGE as usize
}

/// One of the packed pages of a mask. The last page of a file may be short.
fn page_of(mask: PageMask, bytes: &[u8], page: u32) -> &[u8] {
    let start = at_in(mask, page);
    &bytes[start..bytes.len().min(start + PAGE as usize)]
}

/// Reads pages of a block, packed.
fn read_pages(
    image: &dyn Image,
    grid: &Grid,
    index: u64,
    mask: PageMask,
    bytes: &mut Vec<u8>,
) -> io::Result<()> {
    bytes.resize(grid.masked_bytes(index, mask) as usize, 0);
    let mut at = 0;
    for run in page_runs(mask) {
        let range = grid.pages(index, &run);
        let end = at + (range.end - range.start) as usize;
        image.read_at(&mut bytes[at..end], range.start)?;
        at = end;
    }
    Ok(())
}
