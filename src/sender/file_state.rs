//! A file that is being described to the receiver: how far its blocks and the
//! receiver's map have come.

use std::io::{self, Write};
use std::sync::Arc;

use crate::error::Failure;
use crate::hashmap::plan::{Planner, Run};
use crate::hashmap::{self, Batch, Block, Grid, Item, RootHasher};
use crate::sender::announce::{Shared, lock};
use crate::sender::hasher::Opened;

/// A file that is being described.
pub(crate) struct Description {
    pub id: u64,
    pub grid: Grid,
    pub planner: Planner,
    pub root: RootHasher,
    pub walk: BatchWalk,
    /// More of the receiver's map is to come.
    pub map: bool,
    /// More is to come from the hasher.
    pub hashes: bool,
    /// About how many bytes of data are still to be described.
    pub rest: u64,
    /// Bytes of data that were sent.
    pub bytes: u64,
    pub changed: bool,
    /// The receiver has given up.
    pub failed: Option<Failure>,
    /// The source cannot be read.
    pub unread: Option<io::Error>,
}

impl Description {
    /// `map`: the receiver's map comes; `rest`: about how many bytes of data it has.
    pub fn new(id: u64, grid: Grid, map: bool, changed: bool, rest: u64) -> Description {
        let mut planner = Planner::default();
        if !map {
            planner.without_basis();
        }
        let (root, walk) = (RootHasher::new(&grid), BatchWalk::default());
        Description {
            id,
            grid,
            planner,
            root,
            walk,
            map,
            hashes: true,
            rest,
            bytes: 0,
            changed,
            failed: None,
            unread: None,
        }
    }

    /// Counts data that was sent.
    pub fn sent<W: Write>(&mut self, shared: &Shared<W>, bytes: u64) {
        self.bytes += bytes;
        lock(&shared.stats).sent_data_bytes += bytes;
    }
}

/// The batch that is being merged, and how far.
#[derive(Default)]
pub(crate) struct BatchWalk {
    pub batch: Batch,
    /// Where its bytes are to be had, if it came without them.
    source: Option<Arc<Opened>>,
    /// The same, if some of this or an earlier batch were read from there.
    read_again: Option<Arc<Opened>>,
    item: usize,
    at: u64,
    used: u64,
}

impl BatchWalk {
    /// Takes the next batch and tells the planner and the root hash of it; hands
    /// back the old one's buffer.
    pub fn begin(
        &mut self,
        batch: Batch,
        source: Option<Arc<Opened>>,
        grid: &Grid,
        planner: &mut Planner,
        root: &mut RootHasher,
    ) -> Vec<u8> {
        let mut old = std::mem::replace(&mut self.batch, batch);
        if source.is_some() {
            self.batch.buffer = std::mem::take(&mut old.buffer);
        }
        self.source = source;
        (self.item, self.used) = (0, 0);
        let mut index = self.at;
        for item in &self.batch.items {
            match item {
                Item::Hole(blocks) => {
                    planner.push_source(Run::Zero(*blocks));
                    index += blocks;
                }
                Item::Block(block) if block.data == 0 => {
                    planner.push_source(Run::Zero(1));
                    index += 1;
                }
                Item::Block(block) => {
                    planner.push_source(Run::Keys(vec![hashmap::key(&block.hash)]));
                    root.add(index, &block.hash);
                    index += 1;
                }
            }
        }
        debug_assert!(index <= grid.blocks());
        old.buffer
    }

    /// The blocks that were read, up to the block `end`, and how many bytes they have.
    pub fn take(&mut self, end: u64) -> (Vec<(u64, Block)>, u64) {
        let mut found = Vec::new();
        let mut read = 0;
        while self.at < end {
            let (left, block) = match self.batch.items.get(self.item) {
                Some(Item::Hole(blocks)) => (blocks - self.used, None),
                Some(Item::Block(block)) => (1, Some(*block)),
                None => break,
            };
            if let Some(block) = block {
                found.push((self.at, block));
                read += u64::from(block.read.count_ones()) * hashmap::PAGE;
            }
            let step = left.min(end - self.at);
            self.at += step;
            self.used += step;
            if step == left {
                self.item += 1;
                self.used = 0;
            }
        }
        (found, read)
    }

    /// The file in which its bytes are to be had, if it came without. From now on it
    /// counts as read again.
    pub fn source(&mut self) -> Option<Arc<Opened>> {
        self.read_again = self.source.clone().or(self.read_again.take());
        self.source.clone()
    }

    /// Reads the bytes of some of its blocks, if it came without.
    ///
    /// # Errors
    ///
    /// What reading reports.
    pub fn fetch(&mut self, grid: &Grid, found: &mut [(u64, Block)]) -> io::Result<()> {
        let Some(source) = self.source() else { return Ok(()) };
        let blocks = found.iter_mut().map(|(index, block)| (*index, block));
        hashmap::read_blocks(&source.image, grid, blocks, &mut self.batch.buffer)
    }

    /// Whether bytes may be others than were hashed.
    pub fn is_stale(&self) -> bool {
        self.read_again.as_ref().is_some_and(|source| !source.seen.is_still(source.image.file()))
    }
}
