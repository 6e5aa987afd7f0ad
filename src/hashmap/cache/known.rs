//! A kept map, in the place of reading the file.

use std::fs::File;
use std::io::BufReader;

use crate::hashmap::map_file::{MapError, MapReader};
use crate::hashmap::{BATCH, Batch, Block, Grid, Hash, Item, MapEntry, PageMask};
use crate::working::unforeseen;

/// Blocks that are read of a file before its map is believed.
const SAMPLES: usize = 64;

/// Blocks of a map, chosen at random, all equally likely.
pub struct Sample {
    pub grid: Grid,
    /// Index, pages with data, hash.
    pub blocks: Vec<(u64, PageMask, Hash)>,
}

impl Sample {
    /// Reads all of a map, which proves to be whole then.
    pub fn of(mut map: MapReader<BufReader<File>>) -> Result<Sample, MapError> {
        let mut blocks = Vec::with_capacity(SAMPLES);
        let (mut index, mut seen) = (0, 0);
        while let Some(entries) = map.entries()? {
            for entry in entries {
                if let MapEntry::Data { pages, hash } = entry {
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
        Ok(Sample { grid: map.grid(), blocks })
    }
}

/// A map that is believed, batch by batch.
pub struct KnownMap {
    map: MapReader<BufReader<File>>,
    entries: std::vec::IntoIter<MapEntry>,
    /// The next block.
    next: u64,
}

impl KnownMap {
    /// From its start.
    pub fn new(map: MapReader<BufReader<File>>) -> KnownMap {
        KnownMap { map, entries: Vec::new().into_iter(), next: 0 }
    }

    /// The next blocks that lie wholly on `grid`, which may end before the file does, without
    /// bytes; with the index of the first. `None`: from [`next_block`](KnownMap::next_block) on
    /// the file is to be read, if anything is left.
    pub fn batch(&mut self, grid: &Grid) -> Option<(u64, Batch)> {
        let first = self.next;
        let mut batch = Batch::default();
        // The last block of a file that is longer is another one there.
        let end = if grid.length == self.map.grid().length {
            grid.blocks()
        } else {
            grid.length / grid.block.bytes()
        };
        while self.next < end && batch.believed < BATCH {
            let Some(entry) = self.entry() else { break };
            let blocks = entry.blocks().min(end - self.next);
            batch.items.push(match entry {
                MapEntry::Zero(_) => Item::Hole(blocks),
                MapEntry::Data { pages, hash } => {
                    batch.believed += grid.masked_bytes(self.next, pages) as usize;
                    Item::Block(Block { hash, data: pages, read: pages, at: 0 })
                }
            });
            self.next += blocks;
        }
        (!batch.items.is_empty()).then_some((first, batch))
    }

    /// The block with which reading goes on.
    pub fn next_block(&self) -> u64 {
        self.next
    }

    /// What cannot be read now was right when it was read before: the file itself tells the rest.
    fn entry(&mut self) -> Option<MapEntry> {
        loop {
            match self.entries.next() {
                Some(entry) => return Some(entry),
                None => self.entries = self.map.entries().ok()??.into_iter(),
            }
        }
    }
}
