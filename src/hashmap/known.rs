//! A map in the place of reading the file, or those blocks of it that the map tells of.

use std::io;
use std::ops::Range;

use rayon::prelude::*;

use crate::hashmap::gather::{Gather, Gathered};
use crate::hashmap::map_file::{MapError, StoredEntries, StoredMap};
use crate::hashmap::{self, BATCH, Batch, Block, Grid, Hash, Item, MapEntry, PageMask};
use crate::scan::Image;
use crate::working::unforeseen;

/// Blocks that are read of a file before its map is believed.
const SAMPLES: usize = 64;

/// Blocks of a map, chosen at random, all equally likely.
pub struct Sample {
    grid: Grid,
    /// Index, pages with data, hash.
    blocks: Vec<(u64, PageMask, Hash)>,
    /// What is believed is more than half of what has data.
    is_most: bool,
}

impl Sample {
    /// Of these blocks of a map, in order. Reads all of it, which proves to be whole then.
    pub fn of(map: &StoredMap, believed: &[Range<u64>]) -> Result<Sample, MapError> {
        let mut map = map.entries()?;
        let mut blocks = Vec::with_capacity(SAMPLES);
        let (mut index, mut seen, mut data) = (0, 0, 0);
        let mut rest = believed.iter().peekable();
        while let Some(entries) = map.entries()? {
            for entry in entries {
                while rest.next_if(|range| range.end <= index).is_some() {}
                data += u64::from(matches!(entry, MapEntry::Data { .. }));
                let is_believed = rest.peek().is_some_and(|range| range.contains(&index));
                if let MapEntry::Data { pages, hash } = entry
                    && is_believed
                {
                    seen += 1;
                    let block = (index, pages, hash);
                    if blocks.len() < SAMPLES {
                        blocks.push(block);
                    } else if let Some(place) = blocks.get_mut((unforeseen() % seen) as usize) {
                        *place = block;
                    }
                }
                index += entry.blocks();
            }
        }
        Ok(Sample { grid: map.grid(), blocks, is_most: seen > data / 2 })
    }

    /// Whether an image has these hashes there. If so, and if that is most of it, the rest is read here and
    /// there, and nothing is read ahead.
    ///
    /// # Errors
    ///
    /// What reading reports.
    pub fn is_right(&self, image: &dyn Image) -> io::Result<bool> {
        let is_same = |(index, pages, hash): &(u64, PageMask, Hash)| {
            let range = self.grid.bytes(&(*index..index + 1));
            let mut bytes = vec![0; (range.end - range.start) as usize];
            image.read_at(&mut bytes, range.start)?;
            let found = hashmap::block_of(&bytes);
            Ok(found.data == *pages && found.hash == *hash)
        };
        image.expect_scattered_reads(self.is_most);
        let is_right = self.blocks.par_iter().map(is_same).try_reduce(|| true, |one, other| Ok(one && other));
        if !matches!(is_right, Ok(true)) {
            image.expect_scattered_reads(false);
        }
        is_right
    }
}

/// A map that is believed of some blocks of a file, batch by batch.
pub struct KnownMap {
    map: StoredEntries,
    /// The root hash of the file that the map is of.
    root: Hash,
    entries: std::vec::IntoIter<MapEntry>,
    /// What was not told of an entry that was told in part.
    cut: Option<MapEntry>,
    /// Blocks of which it is believed, in order.
    believed: std::vec::IntoIter<Range<u64>>,
    /// What is left of the first of them.
    range: Range<u64>,
    /// The next block.
    next: u64,
}

impl KnownMap {
    /// From its start; `believed`: what the file has as the map says, blocks in order.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn of(map: &StoredMap, believed: Vec<Range<u64>>) -> Result<KnownMap, MapError> {
        let (root, map) = (*map.root(), map.entries()?);
        let (entries, believed) = (Vec::new().into_iter(), believed.into_iter());
        Ok(KnownMap { map, root, entries, cut: None, believed, range: 0..0, next: 0 })
    }

    /// The root hash and the grid of the file that the map is of.
    pub fn whole(&self) -> (Hash, Grid) {
        (self.root, self.map.grid())
    }

    /// The next blocks that lie wholly on `grid`, which may end before the file does, without
    /// bytes; with the index of the first. Those that are not believed are read and hashed.
    /// `None`: from [`next_block`](KnownMap::next_block) on the file is to be read, if anything is
    /// left.
    ///
    /// # Errors
    ///
    /// What seeking and reading report.
    pub fn batch(&mut self, grid: &Grid, image: &dyn Image) -> io::Result<Option<(u64, Batch)>> {
        let first = self.next;
        let mut batch = Batch::default();
        // The last block of a file that is longer is another one there.
        let end = if grid.length == self.map.grid().length {
            grid.blocks()
        } else {
            grid.length / grid.block.bytes()
        };
        while batch.believed < BATCH && batch.bytes_read < BATCH {
            let Some(range) = self.range_before(end) else { break };
            let told = match self.next < range.start {
                true => self.read(grid, image, range.start, &mut batch)?,
                false => self.believe(grid, range.end, &mut batch),
            };
            if told.is_none() {
                // What cannot be read now was right when it was read before: the file itself tells
                // the rest.
                (self.believed, self.range) = (Vec::new().into_iter(), 0..0);
                break;
            }
        }
        hashmap::read_and_hash(image, grid, first, &mut batch)?;
        Ok((!batch.items.is_empty()).then_some((first, batch)))
    }

    /// The block with which reading goes on.
    pub fn next_block(&self) -> u64 {
        self.next
    }

    /// The believed blocks that come next, up to `end`.
    fn range_before(&mut self, end: u64) -> Option<Range<u64>> {
        while self.range.end <= self.next {
            self.range = self.believed.next()?;
        }
        let range = self.range.start.max(self.next)..self.range.end.min(end);
        (range.start < range.end).then_some(range)
    }

    /// Adds the next blocks as the map has them, up to `end`. `None`: it cannot be read.
    fn believe(&mut self, grid: &Grid, end: u64, batch: &mut Batch) -> Option<()> {
        let entry = self.entry(end - self.next)?;
        batch.items.push(match entry {
            MapEntry::Zero(blocks) => Item::Hole(blocks),
            MapEntry::Data { pages, hash } => {
                batch.believed += grid.masked_bytes(self.next, pages) as usize;
                Item::Block(Block { hash, data: pages, read: pages, at: 0 })
            }
        });
        self.next += entry.blocks();
        Some(())
    }

    /// Adds some of the next blocks as they are to be read, up to `end`, and goes past them in the
    /// map. The inner `None`: it cannot be read.
    fn read(
        &mut self,
        grid: &Grid,
        image: &dyn Image,
        end: u64,
        batch: &mut Batch,
    ) -> io::Result<Option<()>> {
        let mut gather = Gather::range(image, grid, self.next..end);
        let Some(Gathered { batch: found, .. }) = gather.batch()? else { return Ok(None) };
        let blocks = found.items.iter().map(Item::blocks).sum::<u64>();
        let mut left = blocks;
        while left > 0 {
            let Some(entry) = self.entry(left) else { return Ok(None) };
            left -= entry.blocks();
        }
        batch.items.extend(found.items.into_iter().map(|item| match item {
            Item::Block(block) => Item::Block(Block { at: batch.bytes_read + block.at, ..block }),
            hole => hole,
        }));
        batch.bytes_read += found.bytes_read;
        self.next += blocks;
        Ok(Some(()))
    }

    /// The next entry, of at most so many blocks.
    fn entry(&mut self, most: u64) -> Option<MapEntry> {
        loop {
            match self.cut.take().or_else(|| self.entries.next()) {
                Some(MapEntry::Zero(blocks)) if blocks > most => {
                    self.cut = Some(MapEntry::Zero(blocks - most));
                    return Some(MapEntry::Zero(most));
                }
                Some(entry) => return Some(entry),
                None => self.entries = self.map.entries().ok()??.into_iter(),
            }
        }
    }
}
