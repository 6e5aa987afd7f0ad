//! A file that is being described to the receiver: how far its blocks and the
//! receiver's map have come.

use std::io;
use std::sync::Arc;

use crate::error::Failure;
use crate::hashmap::plan::{Planner, Run};
use crate::hashmap::{self, Batch, Block, Grid, Hash, Item, MapRecord, Maps, Recorder};
use crate::sender::known::KnownBasis;
use crate::sender::replies::Answered;
use crate::source::OpenSource;

/// Whether more of something comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supply {
    Open,
    Ended,
}

/// Why a file cannot be described to its end.
pub enum Obstacle {
    ReceiverFailed(Failure),
    SourceUnread(io::Error),
}

/// A file that is being described.
pub struct DescribedFile {
    pub id: u64,
    pub grid: Grid,
    pub planner: Planner,
    pub root: Recorder,
    pub cursor: BatchCursor,
    /// Keys and runs of zeros of the receiver's map that came.
    came: usize,
    /// Of these, planned.
    planned: usize,
    /// The receiver's map.
    pub map: Supply,
    /// It may be one that is known here: this is no second try.
    pub may_be_known: bool,
    /// It, if it is one.
    pub known: Option<KnownBasis>,
    /// What the hasher finds.
    pub hashes: Supply,
    /// About how many bytes of data are still to be described.
    pub rest: u64,
    /// Bytes of data that were sent.
    pub bytes: u64,
    /// It is not equal to what the receiver has. Only where nothing is described that counts.
    pub differs: bool,
    pub obstacle: Option<Obstacle>,
    /// If the source had changed while it was read, it would have shown.
    pub settled: bool,
}

impl DescribedFile {
    /// `rest`: about how many bytes of data it has; `saved`: what its map goes to.
    pub fn new(answered: Answered, grid: Grid, rest: u64, saved: Option<MapRecord>) -> DescribedFile {
        let mut planner = Planner::default();
        if !answered.mapped {
            planner.without_basis();
        }
        DescribedFile {
            id: answered.id,
            grid,
            planner,
            root: Recorder::new(&grid, Maps { kept: None, saved }),
            cursor: BatchCursor::default(),
            came: 0,
            planned: 0,
            map: if answered.mapped { Supply::Open } else { Supply::Ended },
            may_be_known: true,
            known: None,
            hashes: Supply::Open,
            rest,
            bytes: 0,
            differs: answered.resized,
            obstacle: None,
            settled: true,
        }
    }

    /// More of the receiver's map.
    pub fn push_basis(&mut self, runs: Vec<Run>) {
        for run in runs {
            self.came += run.entries();
            self.planner.push_basis(run);
        }
    }

    /// More of the receiver's map, which is known here. `false`: it is not after all.
    pub fn push_known(&mut self) -> bool {
        match self.known.as_mut().map(|known| known.runs(&self.grid)) {
            Some(Ok(Some(runs))) => self.push_basis(runs),
            Some(Err(_)) => return false,
            Some(Ok(None)) | None => self.end_basis(),
        }
        true
    }

    /// The receiver's map has no more blocks.
    pub fn end_basis(&mut self) {
        self.planner.end_basis();
        (self.map, self.known) = (Supply::Ended, None);
    }

    /// It is described to its end: its root hash, and its map, if that is saved.
    pub fn end(&mut self) -> (Hash, Option<MapRecord>) {
        let root = std::mem::replace(&mut self.root, Recorder::new(&self.grid, Maps::default()));
        let (root, maps) = root.finish();
        (root, maps.saved)
    }

    /// How much of the map was planned since this was asked last, if anything.
    pub fn newly_planned(&mut self) -> Option<usize> {
        let before = self.planned;
        self.planned = self.came - self.planner.basis_ahead();
        (self.planned > before).then(|| self.planned - before)
    }
}

/// The batch that is being merged, and how far.
#[derive(Default)]
pub struct BatchCursor {
    pub batch: Batch,
    /// Where its bytes are to be had, if it came without them.
    source: Option<Arc<OpenSource>>,
    /// The file, if bytes of this or an earlier batch were read from it.
    read_again: Option<Arc<OpenSource>>,
    item: usize,
    at: u64,
    used: u64,
}

impl BatchCursor {
    /// Takes the next batch and tells the planner and the root hash of it; hands
    /// back the old one's buffer.
    pub fn begin(
        &mut self,
        batch: Batch,
        source: Option<Arc<OpenSource>>,
        grid: &Grid,
        planner: &mut Planner,
        root: &mut Recorder,
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
                    root.add(index, block.data, &block.hash);
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
    pub fn source(&mut self) -> Option<Arc<OpenSource>> {
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
        self.read_again.as_ref().is_some_and(|source| !source.is_unchanged())
    }
}
