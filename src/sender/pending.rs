//! Blocks on their way out: those that wait for an answer, and how those that are sent whole are put
//! into frames. Pure but for reading blocks again.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::hashmap::{self, Block, Grid, PageMask, page_runs};
use crate::protocol::{MAX_DATA, MAX_DATA_BLOCKS};
use crate::source::OpenSource;

/// A block that waits for an answer.
pub struct PendingBlock {
    pub index: u64,
    pub since: Instant,
    pub data: PageMask,
    pub bytes: PendingBytes,
    /// Bytes of data between it and the next of these that count as done with it.
    pub behind: u64,
}

/// The pages of data of a block, packed.
pub enum PendingBytes {
    Held(Vec<u8>),
    /// They are to be read again.
    In(Arc<OpenSource>),
}

impl PendingBytes {
    pub fn held(&self) -> usize {
        match self {
            PendingBytes::Held(bytes) => bytes.len(),
            PendingBytes::In(_) => 0,
        }
    }

    pub fn read(self, grid: &Grid, index: u64, data: PageMask) -> io::Result<Vec<u8>> {
        match self {
            PendingBytes::Held(bytes) => Ok(bytes),
            PendingBytes::In(source) => {
                let mut block = Block { hash: [0; 32], data, read: data, at: 0 };
                let mut bytes = Vec::new();
                hashmap::read_blocks(&source.image, grid, std::iter::once((index, &mut block)), &mut bytes)?;
                Ok(bytes)
            }
        }
    }
}

/// The frames for these adjoining blocks: index of the first, and how many.
pub fn frames_of(grid: &Grid, blocks: &[(u64, Block)]) -> Vec<(usize, usize)> {
    let mut frames: Vec<(usize, usize)> = Vec::new();
    let mut bytes = 0;
    for (at, (index, block)) in blocks.iter().enumerate() {
        let more = grid.masked_bytes(*index, block.data) as usize;
        match frames.last_mut() {
            Some((_, count)) if bytes + more <= MAX_DATA && *count < MAX_DATA_BLOCKS => {
                *count += 1;
                bytes += more;
            }
            _ => {
                frames.push((at, 1));
                bytes = more;
            }
        }
    }
    frames
}

/// Where in the file the data of these adjoining blocks is.
pub fn ranges_of(grid: &Grid, blocks: &[(u64, Block)]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (index, block) in blocks {
        for range in page_runs(block.data).map(|run| grid.pages(*index, &run)) {
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
    }
    ranges
}
