//! Zeros that are still to be made in a destination: gathered while they adjoin, so that each
//! hole is punched once.

use std::ops::Range;

use crate::apply::ranges::MAX_UNIT;
use crate::hashmap::PAGE;

/// What was gathered.
#[derive(Debug, Default)]
pub struct Zeros {
    /// Where.
    pub range: Range<u64>,
    /// What is there.
    pub over: ZerosOver,
}

/// What is in a range that is to be a hole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ZerosOver {
    /// Data, as far as anybody knows.
    #[default]
    Data,
    /// Zeros that take room.
    Zeros,
}

impl Zeros {
    /// Adds a range. What does not adjoin it is to be made now.
    pub fn gather(&mut self, range: Range<u64>, over: ZerosOver) -> Option<Zeros> {
        if range.is_empty() {
            return None;
        }
        if range.start == self.range.end && over == self.over {
            self.range.end = range.end;
            return None;
        }
        Some(std::mem::replace(self, Zeros { range, over })).filter(Zeros::is_some)
    }

    /// All that was gathered.
    pub fn take(&mut self) -> Option<Zeros> {
        Some(std::mem::take(self)).filter(Zeros::is_some)
    }

    /// Whether a range has a part of it.
    pub fn overlap(&self, range: &Range<u64>) -> bool {
        range.start < self.range.end && self.range.start < range.end
    }

    fn is_some(&self) -> bool {
        !self.range.is_empty()
    }

    /// The part that a file system gives back whose files have blocks of `unit` bytes.
    pub fn whole_blocks(&self, unit: u64) -> Range<u64> {
        let unit = unit.clamp(PAGE, MAX_UNIT);
        self.range.start.div_ceil(unit) * unit..self.range.end / unit * unit
    }
}
