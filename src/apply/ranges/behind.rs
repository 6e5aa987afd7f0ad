//! What was written and is not on storage yet, and what may be given back of it on a full
//! disk.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;

use crate::apply::ranges::copy_between;
use crate::scan;
use crate::sys;

/// Bytes after which writing them back is begun.
const WRITEBACK: u64 = 8 << 20;
/// What is copied within the kernel at a time.
const PIECE: u64 = 64 << 20;

/// Writes back behind what is written to one file, so that the sync at the end is short.
#[derive(Debug)]
pub struct WriteBehind {
    /// It will be synced.
    syncs: bool,
    /// It is more than the page cache should take: what is on storage leaves it.
    spares_cache: bool,
    /// What was written since the last time lies in here.
    span: Range<u64>,
    bytes: u64,
    /// What was being written back then.
    last: Range<u64>,
}

impl WriteBehind {
    /// For a file that gets this many bytes.
    pub fn new(syncs: bool, bytes: u64) -> WriteBehind {
        WriteBehind { syncs, spares_cache: scan::exceeds_cache(bytes), span: 0..0, bytes: 0, last: 0..0 }
    }

    /// A range was written.
    pub fn wrote(&mut self, file: &File, range: Range<u64>) {
        let bytes = self.bytes + (range.end - range.start);
        self.span = if self.bytes == 0 {
            range
        } else {
            self.span.start.min(range.start)..self.span.end.max(range.end)
        };
        self.bytes = bytes;
        if bytes < WRITEBACK || !(self.syncs || self.spares_cache) {
            return;
        }
        let span = std::mem::take(&mut self.span);
        self.bytes = 0;
        sys::start_writeback(file, span.clone());
        if self.spares_cache {
            sys::write_back_and_drop(file, std::mem::replace(&mut self.last, span));
        }
    }

    /// Copies a range from one file to the same place in another.
    pub fn copy(&mut self, from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let piece = at..range.end.min(at + PIECE);
            at = piece.end;
            copy_between(from, to, piece.clone())?;
            if self.spares_cache {
                sys::drop_cached(from, piece.clone());
            }
            self.wrote(to, piece);
        }
        Ok(())
    }
}

/// The last ranges that were written to a working file.
#[derive(Debug, Default)]
pub struct LastWritten {
    ranges: VecDeque<Range<u64>>,
}

impl LastWritten {
    /// The most ranges that are remembered.
    const MOST: usize = 4096;

    /// A range was written.
    pub fn add(&mut self, range: Range<u64>) {
        match self.ranges.back_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push_back(range),
        }
        if self.ranges.len() > LastWritten::MOST {
            self.ranges.pop_front();
        }
    }

    /// Takes the last so many bytes, the last one first.
    pub fn take(&mut self, bytes: u64) -> Vec<Range<u64>> {
        let mut taken = Vec::new();
        let mut left = bytes;
        while left > 0
            && let Some(last) = self.ranges.pop_back()
        {
            let part = last.end.saturating_sub(left).max(last.start)..last.end;
            left -= part.end - part.start;
            if last.start < part.start {
                self.ranges.push_back(last.start..part.start);
            }
            taken.push(part);
        }
        taken
    }
}

/// How much of what came is given back on a full disk, so that the disk can be used: of
/// `came` bytes.
pub fn share_to_give_back(came: u64) -> u64 {
    const MOST: u64 = 64 << 20;
    came.div_ceil(20).min(MOST)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // one range is meant, not its bytes
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_given_back_first() {
        let mut last = LastWritten::default();
        [0..10, 10..30, 50..55].into_iter().for_each(|range| last.add(range));
        assert_eq!(last.take(8), [50..55, 27..30]);
        assert_eq!(last.take(7), [20..27]);
        assert_eq!(last.take(99), [0..20]);
        assert!(last.take(1).is_empty());
    }

    #[test]
    fn a_share_is_bounded() {
        assert_eq!([0, 1, 100, 1 << 40].map(share_to_give_back), [0, 1, 5, 64 << 20]);
    }
}
