//! A file that is compared with another one than is there: what stays of that is copied, as far as
//! it is not there, and hashed as it is copied. What has another hash by then is lacking, and comes
//! in a second try.

use std::ops::Range;

use rayon::prelude::*;

use crate::apply::Own;
use crate::error::Error;
use crate::hashmap::leaves::{LeafHash, Leaves};
use crate::hashmap::{self, Block, Grid, PageMask};
use crate::options::BlockSize;
use crate::receiver::assemble::{ApplyError, OpenFile, Patched, rule};
use crate::receiver::basis_feed::{BasisFeeds, Had};
use crate::receiver::blocks::{Pending, take};
use crate::receiver::places::{self, FoundBlock};

/// Blocks that are read and hashed side by side, in bytes.
const AT_ONCE: u64 = 2 << 20;

/// What a block is to have.
pub(super) struct NewBlock<'a> {
    pub index: u64,
    /// Its pages of data.
    pub data: PageMask,
    /// These, packed; in a dry run a hash of each, or nothing.
    pub bytes: &'a [u8],
    /// Which of them are written whatever is there.
    pub always: PageMask,
    /// There are hashes in the place of bytes.
    pub is_hashed: bool,
}

/// What there is of a block, read as a whole.
struct OwnBlock {
    data: PageMask,
    bytes: Vec<u8>,
}

impl Own {
    /// What it has in a block.
    fn read(&self, grid: &Grid, index: u64) -> std::io::Result<OwnBlock> {
        let range = grid.bytes(&(index..index + 1));
        let Own::There(basis) = self else { return Ok(OwnBlock { data: 0, bytes: Vec::new() }) };
        if range.start >= basis.length {
            return Ok(OwnBlock { data: 0, bytes: Vec::new() });
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        basis.image.read_at(&mut bytes, range.start)?;
        Ok(OwnBlock { data: hashmap::unhashed_block_of(&bytes).data, bytes })
    }
}

impl OwnBlock {
    /// Which of the pages of a new block it has already.
    fn same(&self, grid: &Grid, new: &NewBlock) -> PageMask {
        let (mut left, mut same) = (new.bytes, 0);
        let range = grid.bytes(&(new.index..new.index + 1));
        for page in hashmap::page_runs(new.data).flatten() {
            let at = grid.pages(new.index, &(page..page + 1));
            let own = || &self.bytes[(at.start - range.start) as usize..(at.end - range.start) as usize];
            let len = if new.is_hashed { size_of::<LeafHash>() } else { (at.end - at.start) as usize };
            let len = len.min(left.len());
            let bytes = take(&mut left, len);
            if (self.data & !new.always) >> page & 1 == 0 {
                continue;
            }
            let is_same = if new.is_hashed {
                let leaves = Leaves::of(BlockSize::SMALLEST, grid, new.index, 1 << page, own());
                leaves.hashes.as_flattened() == bytes
            } else {
                own() == bytes
            };
            same |= u64::from(is_same) << page;
        }
        same
    }
}

impl OpenFile {
    /// Makes a block what it is to be, whatever is there.
    pub(super) fn put(&mut self, new: &NewBlock) -> Result<(), ApplyError> {
        let Some(own) = &self.own else { return Ok(()) };
        let there = own.read(&self.grid, new.index);
        let there = there.map_err(Error::file("read the old", self.destination.path()))?;
        let same = there.same(&self.grid, new);
        self.put_over(&there, same, new)
    }

    fn put_over(&mut self, there: &OwnBlock, same: PageMask, new: &NewBlock) -> Result<(), ApplyError> {
        self.zero_pages(new.index, there.data & !new.data, false)?;
        self.keep_pages(new.index, same)?;
        self.kept += self.grid.masked_bytes(new.index, same);
        let mut pending = Pending { at: 0, len: 0, bytes: new.bytes };
        self.add_but(new.index, same, new.data, &mut pending)?;
        Ok(pending.write(&mut self.destination)?)
    }

    /// See [`OpenFile::keep`].
    pub(super) fn keep_other(&mut self, feeds: &BasisFeeds, end: u64) -> Result<u64, ApplyError> {
        let (mut bytes, mut stay) = (0, Vec::new());
        while self.at < end {
            let (count, had) = self.cursor.next(feeds, end - self.at)?;
            match had {
                Had::Unknown => return rule("a block kept that nobody knows"),
                Had::Block(block) if block.data != 0 => {
                    self.root.add(self.at, block.data, &block.hash);
                    bytes += self.grid.masked_bytes(self.at, block.data);
                    stay.push((self.at, block));
                }
                Had::Hole | Had::Block(_) => self.clear(self.at..self.at + count)?,
            }
            self.at += count;
            if stay.len() as u64 * self.grid.block.bytes() >= AT_ONCE {
                self.copy_other(&std::mem::take(&mut stay))?;
            }
        }
        self.copy_other(&stay)?;
        Ok(self.behind_asked(bytes))
    }

    /// See [`OpenFile::data`]: what came in the place of data may be there, what is new is not.
    pub(super) fn place_over_other(
        &mut self,
        feeds: &BasisFeeds,
        blocks: &[(PageMask, &[u8])],
    ) -> Result<(), ApplyError> {
        for &(data, bytes) in blocks {
            let is_new = match self.cursor.next(feeds, 1)?.1 {
                Had::Block(block) => block.data == 0,
                Had::Hole | Had::Unknown => true,
            };
            let always = if is_new { data } else { 0 };
            let is_hashed = self.destination.is_preview();
            self.put(&NewBlock { index: self.at, data, bytes, always, is_hashed })?;
            self.at += 1;
        }
        Ok(())
    }

    /// A block that was asked about has what the other file has in `kept`, and what came in `sent`.
    pub(super) fn patch_over_other(
        &mut self,
        index: u64,
        (kept, old): (PageMask, &[u8]),
        (sent, new): (PageMask, &[u8]),
    ) -> Result<(), ApplyError> {
        // A dry run has nothing of what comes, and does not look at it.
        let zeros = vec![0; self.grid.masked_bytes(index, sent) as usize];
        let new = if self.destination.is_preview() { zeros.as_slice() } else { new };
        let bytes = self.interleave(index, (kept, old), (sent, new)).collect::<Vec<_>>().concat();
        self.put(&NewBlock { index, data: kept | sent, bytes: &bytes, always: sent, is_hashed: false })
    }

    /// Blocks of the other file stay: they are copied. Of one that cannot be read, or has another
    /// hash by now, nothing is.
    fn copy_other(&mut self, mut blocks: &[(u64, Block)]) -> Result<(), ApplyError> {
        let (Some(own), Some(basis)) = (self.own.clone(), self.basis.clone()) else { return Ok(()) };
        let grid = self.grid;
        let many = (AT_ONCE / grid.block.bytes()).max(1) as usize;
        while !blocks.is_empty() {
            let (now, later) = blocks.split_at(many.min(blocks.len()));
            blocks = later;
            let look = |(index, block): &(u64, Block)| {
                let at = index * grid.block.bytes();
                let found = places::read(basis.image.as_ref(), &grid, *index, at, &block.hash);
                Some((found?, own.read(&grid, *index)))
            };
            let looked: Vec<_> = now.par_iter().map(look).collect();
            for ((index, _), found) in now.iter().zip(looked) {
                let Some((found, there)) = found else {
                    self.patched = Patched::Otherwise;
                    continue;
                };
                let there = there.map_err(Error::file("read the old", self.destination.path()))?;
                let new = found.as_new(*index);
                let same = there.same(&grid, &new);
                let bytes = grid.masked_bytes(*index, new.data & !same);
                self.put_over(&there, same, &new)?;
                self.copied += bytes;
            }
        }
        Ok(())
    }

    /// Blocks become zeros, or are zeros in the other file.
    pub(super) fn clear(&mut self, blocks: Range<u64>) -> Result<(), ApplyError> {
        let Some(Own::There(basis)) = self.own.clone() else { return Ok(()) };
        let (bytes, size) = (self.grid.bytes(&blocks), self.grid.block.bytes());
        let end = bytes.end.min(basis.length);
        let mut next = blocks.start;
        for extent in basis.image.extents(bytes.start.min(end)..end) {
            let extent = extent.map_err(Error::file("read the old", self.destination.path()))?;
            let covered = next.max(extent.start / size)..extent.end.div_ceil(size);
            next = next.max(covered.end);
            for first in covered.clone().step_by((AT_ONCE / size).max(1) as usize) {
                self.clear_all(first..covered.end.min(first + (AT_ONCE / size).max(1)))?;
            }
        }
        Ok(())
    }

    /// The same of a few blocks, all of which are read.
    fn clear_all(&mut self, blocks: Range<u64>) -> Result<(), ApplyError> {
        let (Some(own), grid) = (self.own.clone(), self.grid) else { return Ok(()) };
        let there: Vec<_> = blocks.clone().into_par_iter().map(|index| own.read(&grid, index)).collect();
        for (index, there) in blocks.zip(there) {
            let there = there.map_err(Error::file("read the old", self.destination.path()))?;
            self.zero_pages(index, there.data, false)?;
        }
        Ok(())
    }

    /// The next block was found somewhere; see [`OpenFile::put`].
    pub(super) fn put_found(&mut self, found: &FoundBlock) -> Result<u64, ApplyError> {
        let kept = self.kept;
        self.put(&found.as_new(self.at))?;
        let bytes = self.grid.masked_bytes(self.at, found.data);
        self.copied += bytes - (self.kept - kept);
        Ok(bytes)
    }
}

impl FoundBlock {
    fn as_new(&self, index: u64) -> NewBlock<'_> {
        NewBlock { index, data: self.data, bytes: &self.bytes, always: 0, is_hashed: false }
    }
}
