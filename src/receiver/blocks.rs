//! The bytes of the blocks of a frame: hashed while they are written, and written together
//! where they adjoin.

use std::ops::Range;

use crate::apply::Sink;
use crate::error::Result;
use crate::hashmap::{self, Hash, PageMask};

/// Does something while it also hashes blocks, if there are enough bytes to make it
/// worth while. Only the hashing goes to the pool: the rest may wait for the answering
/// thread, which needs the pool.
pub fn while_hashing<T>(
    blocks: &[(PageMask, &[u8])],
    bytes: usize,
    work: impl FnOnce() -> T,
) -> (Vec<Hash>, T) {
    const WORTH_IT: usize = 256 << 10;
    if bytes < WORTH_IT {
        return (hashes_of(blocks), work());
    }
    let mut hashes = Vec::new();
    let done = rayon::in_place_scope(|scope| {
        scope.spawn(|_| hashes = hashes_of(blocks));
        work()
    });
    (hashes, done)
}

/// Splits off the first bytes.
pub fn take<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (first, rest) = bytes.split_at(len);
    *bytes = rest;
    first
}

fn hashes_of(blocks: &[(PageMask, &[u8])]) -> Vec<Hash> {
    blocks.iter().map(|(mask, bytes)| hashmap::hash_block(*mask, std::iter::once(*bytes))).collect()
}

/// The part of a frame that is not written yet.
pub struct Pending<'a> {
    pub at: u64,
    pub len: usize,
    /// It, and what follows it in the frame; nothing in a dry run.
    pub bytes: &'a [u8],
}

impl Pending<'_> {
    /// Adds the next bytes of the frame, which go to `range`.
    pub fn add(&mut self, range: Range<u64>, destination: &mut Sink) -> Result<()> {
        if self.at + self.len as u64 != range.start {
            self.write(destination)?;
            self.at = range.start;
        }
        self.len += (range.end - range.start) as usize;
        Ok(())
    }

    /// Leaves out the next bytes of the frame.
    pub fn skip(&mut self, len: usize, destination: &mut Sink) -> Result<()> {
        self.write(destination)?;
        let len = len.min(self.bytes.len());
        take(&mut self.bytes, len);
        Ok(())
    }

    pub fn write(&mut self, destination: &mut Sink) -> Result<()> {
        let range = self.at..self.at + self.len as u64;
        let (now, later) = self.bytes.split_at(self.len.min(self.bytes.len()));
        (self.bytes, self.len) = (later, 0);
        if range.is_empty() { Ok(()) } else { destination.write(&range, now) }
    }
}
