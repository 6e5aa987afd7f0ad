//! What is to be read of an image, gathered from its data extents into batches of
//! blocks, in file order. Reads no bytes itself.

use std::io;
use std::ops::Range;

use crate::hashmap::{BATCH, Batch, Block, Grid, Item, PAGE, PageMask};
use crate::scan::{Extent, Image};

/// What is to be read, gathered from the data extents of an image: many short ones take
/// as long to find as to hash.
pub struct Gather<'a> {
    grid: &'a Grid,
    extents: Box<dyn Iterator<Item = io::Result<Extent>> + Send + 'a>,
    /// What is left of the current extent.
    extent: Extent,
    /// The block after the last one that was gathered.
    next: u64,
    /// The block at which it ends.
    end: u64,
    /// The last block of the batch before: this extent, or the next, can add pages to it.
    held: Option<(u64, Block)>,
    through: bool,
}

/// A batch that was not read yet, and the index of the first block in it.
pub struct Gathered {
    pub first: u64,
    pub batch: Batch,
}

impl<'a> Gather<'a> {
    /// From the block `first` on.
    pub fn new(image: &'a dyn Image, grid: &'a Grid, first: u64) -> Gather<'a> {
        Gather::range(image, grid, first..grid.blocks())
    }

    /// These blocks.
    pub fn range(image: &'a dyn Image, grid: &'a Grid, blocks: Range<u64>) -> Gather<'a> {
        let extents = image.extents(grid.bytes(&blocks));
        let Range { start: next, end } = blocks;
        Gather { grid, extents, extent: 0..0, next, end, held: None, through: false }
    }

    /// Whether there are no more batches.
    pub fn is_through(&self) -> bool {
        self.through
    }

    /// The next batch, if there is one.
    pub fn batch(&mut self) -> io::Result<Option<Gathered>> {
        let mut batch = Batch::default();
        let mut first = self.next;
        if let Some((index, block)) = self.held.take() {
            first = index;
            batch.bytes_read = self.grid.masked_bytes(index, block.read) as usize;
            batch.items.push(Item::Block(Block { at: 0, ..block }));
        }
        while batch.bytes_read < BATCH && self.find_extent()? {
            self.add_block(&mut batch);
        }
        if self.through {
            self.hole_until(self.end, &mut batch);
        } else if let Some(&Item::Block(block)) = batch.items.last() {
            batch.items.pop();
            batch.bytes_read = block.at;
            self.held = Some((self.next - 1, block));
        }
        Ok((!batch.items.is_empty()).then_some(Gathered { first, batch }))
    }

    /// Whether there is an extent to go on with.
    fn find_extent(&mut self) -> io::Result<bool> {
        while self.extent.is_empty() {
            match self.extents.next() {
                Some(extent) => self.extent = extent?,
                None => {
                    self.through = true;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Adds the part of the current extent that lies in its first block.
    fn add_block(&mut self, batch: &mut Batch) {
        let size = self.grid.block.bytes();
        let index = self.extent.start / size;
        let end = self.extent.end.min((index + 1) * size);
        let first = (self.extent.start % size / PAGE) as u32;
        let last = ((end - index * size).div_ceil(PAGE)) as u32;
        let pages = (PageMask::MAX >> (64 - (last - first))) << first;
        if index >= self.next {
            self.hole_until(index, batch);
            let block = Block { hash: [0; 32], data: 0, read: 0, at: batch.bytes_read };
            batch.items.push(Item::Block(block));
            self.next = index + 1;
        }
        if let Some(Item::Block(block)) = batch.items.last_mut() {
            let new = pages & !block.read;
            block.read |= new;
            batch.bytes_read += self.grid.masked_bytes(index, new) as usize;
        }
        self.extent.start = end;
    }

    fn hole_until(&mut self, index: u64, batch: &mut Batch) {
        if index > self.next {
            batch.items.push(Item::Hole(index - self.next));
            self.next = index;
        }
    }
}
