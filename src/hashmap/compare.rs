//! Two images at hand, compared by their bytes: which pages of the new one the old one
//! lacks, and which of its own become zeros. Where no network lies between them this is
//! cheaper than two maps. Knows no destination.
//!
//! 1. The blocks of both images are gathered side by side, as their extents tell them.
//!    What is a hole in both costs nothing.
//! 2. A batch of them is compared on all cores. A task reads one block of each image at a
//!    time, into room that stays in the cache of a processor, compares it page by page, and
//!    hashes the new one if hashes are wanted.
//! 3. Meanwhile the batch before is handed on, with the bytes of the pages that the old
//!    image lacks, and the next one is gathered.
//!
//! Guaranteed: batches come in file order and cover the file without gaps; a page of the
//! new image is read once, so that what is handed on is what was compared and hashed.
//! Memory: two batches, and two blocks a thread. Not guaranteed: anything about an image
//! that somebody writes meanwhile.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use rayon::prelude::*;

use crate::hashmap::gather::{Gather, Gathered};
use crate::hashmap::{BATCH, Block, Grid, Hash, Item, PAGE, PageMask, TASK};
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
    /// The pages that are zeros in both images and take room in the old one.
    pub free: PageMask,
    /// The hash of the new block; of no meaning when `data` is 0 or none were wanted.
    pub hash: Hash,
}

impl BlockDiff {
    /// Whether the old image reads otherwise.
    pub fn differs(&self) -> bool {
        self.new | self.zero != 0
    }
}

/// Some blocks, in file order.
#[derive(Debug, Default)]
pub struct DiffPiece {
    /// The blocks; what lies between them is a hole in both images.
    pub blocks: Vec<BlockDiff>,
    /// The bytes of their `new` pages, one after the other.
    pub bytes: Vec<u8>,
}

/// A stretch of a file.
#[derive(Debug, Default)]
pub struct DiffBatch {
    /// The blocks that it covers; those that are in no piece are holes in both images.
    pub range: Range<u64>,
    /// What differs in it, and what does not.
    pub pieces: Vec<DiffPiece>,
}

/// Holds `new`, which lies on `grid`, against `old`, and hands out what it found.
///
/// # Errors
///
/// What seeking and reading report, and what `sink` returns.
pub fn compare<E: From<ReadError>>(
    new: &dyn Image,
    old: OldContent,
    grid: &Grid,
    hashing: Hashing,
    mut sink: impl FnMut(DiffBatch) -> Result<(), E>,
) -> Result<(), E> {
    let old_grid = match old {
        OldContent::Image(_, length) => Grid { length: length.min(grid.length), ..*grid },
        OldContent::Zeros | OldContent::Unknown => Grid { length: 0, ..*grid },
    };
    let comparison = Comparison { new, old, grid, hashing };
    let mut pairs = Pairs::new(&comparison, &old_grid);
    let mut gathered = pairs.batch()?;
    if pairs.is_through() {
        return gathered.map_or(Ok(()), |batch| sink(comparison.batch(&batch)?));
    }
    let mut compared: Option<DiffBatch> = None;
    while let Some(batch) = gathered {
        let mut result = Ok(DiffBatch::default());
        let (next, taken) = rayon::in_place_scope(|scope| {
            scope.spawn(|_| result = comparison.batch(&batch));
            (pairs.batch(), compared.take().map_or(Ok(()), &mut sink))
        });
        taken?;
        compared = Some(result?);
        gathered = next?;
    }
    compared.map_or(Ok(()), sink)
}

/// The pages that data extents of the two images cover in one block.
#[derive(Debug, Clone, Copy)]
struct Pair {
    index: u64,
    new: PageMask,
    old: PageMask,
}

/// Consecutive blocks that have pages in one of the images at least.
struct PairBatch {
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

    /// The next batch, if there is one. The last reaches to the end of the grid.
    fn batch(&mut self) -> Result<Option<PairBatch>, ReadError> {
        let start = self.next;
        let (mut pairs, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH as u64 {
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
        Ok((start < self.next).then_some(PairBatch { range: start..self.next, pairs }))
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
}

/// The read pages of one block of either image, packed.
#[derive(Default)]
struct Room {
    new: Vec<u8>,
    old: Vec<u8>,
}

impl Comparison<'_> {
    fn batch(&self, PairBatch { range, pairs }: &PairBatch) -> Result<DiffBatch, ReadError> {
        let per_task = (TASK / self.grid.block.bytes() as usize).max(1);
        let pieces = if pairs.len() <= per_task {
            vec![self.piece(pairs, &mut Room::default())?]
        } else {
            let tasks = pairs.par_chunks(per_task);
            tasks.map_init(Room::default, |room, task| self.piece(task, room)).collect::<Result<_, _>>()?
        };
        Ok(DiffBatch { range: range.clone(), pieces })
    }

    fn piece(&self, pairs: &[Pair], room: &mut Room) -> Result<DiffPiece, ReadError> {
        let mut piece = DiffPiece::default();
        for pair in pairs {
            let diff = self.block(pair, room)?;
            for run in page_runs(diff.new) {
                let (start, end) = (at_in(pair.new, run.start), at_in(pair.new, run.end));
                piece.bytes.extend_from_slice(&room.new[start..end.min(room.new.len())]);
            }
            piece.blocks.push(diff);
        }
        Ok(piece)
    }

    fn block(&self, pair: &Pair, room: &mut Room) -> Result<BlockDiff, ReadError> {
        let &Pair { index, new: read, .. } = pair;
        read_pages(self.new, self.grid, index, read, &mut room.new).map_err(ReadError::New)?;
        let data = nonzero_pages(read, &room.new);
        let hash = match self.hashing {
            Hashing::Wanted if data != 0 => {
                hash_read(&Block { hash: Hash::default(), data, read, at: 0 }, &room.new)
            }
            _ => Hash::default(),
        };
        let diff = BlockDiff { index, read, data, new: data, zero: 0, free: 0, hash };
        match self.old {
            OldContent::Zeros => Ok(diff),
            OldContent::Unknown => Ok(BlockDiff { zero: self.grid.all_pages(index) & !data, ..diff }),
            OldContent::Image(image, _) => {
                read_pages(image, self.grid, index, pair.old, &mut room.old).map_err(ReadError::Old)?;
                Ok(against(diff, pair, room))
            }
        }
    }
}

/// Holds what was read of a block against what the old image has of it.
fn against(diff: BlockDiff, pair: &Pair, room: &Room) -> BlockDiff {
    let same = same_pages(pair, room);
    let data = diff.data;
    let (mut zero, mut free) = (0, 0);
    for page in page_runs(pair.old & !data).flatten() {
        let bit = 1 << page;
        let is_zero = if pair.new & bit != 0 {
            same & bit != 0
        } else {
            scan::is_zero(page_of(pair.old, &room.old, page))
        };
        if is_zero { free |= bit } else { zero |= bit }
    }
    if data == 0 && zero != 0 {
        // All of the block becomes a hole, at once.
        (zero, free) = (pair.old, 0);
    }
    BlockDiff { new: data & !same, zero, free, ..diff }
}

/// The pages that were read of both images and are the same.
fn same_pages(pair: &Pair, room: &Room) -> PageMask {
    if pair.new == pair.old && room.new == room.old {
        return pair.new;
    }
    let common = page_runs(pair.new & pair.old).flatten();
    let same =
        common.filter(|&page| page_of(pair.new, &room.new, page) == page_of(pair.old, &room.old, page));
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
