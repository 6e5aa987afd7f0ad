//! Ranges of a file in bounded memory.

use std::ops::Range;

use crate::hashmap::PAGE;

/// Ranges, added in any order; cheap where they ascend. Where there are too many to keep,
/// what lies between close ones counts as covered, too: never less than was added.
#[derive(Debug, Default)]
pub struct Cover {
    /// In order, and none touches the next.
    ranges: Vec<Range<u64>>,
    /// Ranges no further apart than this, in bytes, count as one.
    gap: u64,
}

impl Cover {
    /// The most ranges that are kept.
    const MOST: usize = 1 << 20;

    /// Adds a range.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let gap = self.gap;
        let lies_before = |covered: &Range<u64>| covered.end.saturating_add(gap) < range.start;
        let first = match self.ranges.last() {
            Some(last) if !lies_before(last) => self.ranges.partition_point(lies_before),
            _ => self.ranges.len(),
        };
        let touched =
            self.ranges[first..].partition_point(|covered| covered.start <= range.end.saturating_add(gap));
        if touched == 0 {
            self.ranges.insert(first, range);
        } else {
            let start = range.start.min(self.ranges[first].start);
            let end = range.end.max(self.ranges[first + touched - 1].end);
            self.ranges[first] = start..end;
            self.ranges.drain(first + 1..first + touched);
        }
        if self.ranges.len() > Cover::MOST {
            self.join();
        }
    }

    /// Joins the closest ranges until half of them are left.
    fn join(&mut self) {
        while self.ranges.len() > Cover::MOST / 2 {
            self.gap = (2 * self.gap).max(PAGE);
            let gap = self.gap;
            self.ranges.dedup_by(|next, last| {
                let joins = next.start <= last.end.saturating_add(gap);
                if joins {
                    last.end = last.end.max(next.end);
                }
                joins
            });
        }
    }

    /// The covered parts of a range, in order.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self.ranges.partition_point(|covered| covered.end <= range.start);
        let touched = self.ranges[first..].iter().take_while(move |covered| covered.start < range.end);
        touched.map(move |covered| covered.start.max(range.start)..covered.end.min(range.end))
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // one range is meant, not its bytes
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_of_the_ranges() {
        let mut cover = Cover::default();
        [30..40, 0..10, 80..90, 10..20, 100..100, 70..75, 50..60]
            .into_iter()
            .for_each(|range| cover.add(range));
        assert_eq!(cover.ranges, [0..20, 30..40, 50..60, 70..75, 80..90]);
        [5..35, 58..85, 45..46].into_iter().for_each(|range| cover.add(range));
        assert_eq!(cover.ranges, [0..40, 45..46, 50..90]);
        let mut cover = Cover::default();
        [0..20, 30..40, 50..60].into_iter().for_each(|range| cover.add(range));
        assert_eq!(cover.within(15..55).collect::<Vec<_>>(), [15..20, 30..40, 50..55]);
        assert_eq!(cover.within(20..30).count() + cover.within(60..99).count(), 0);
    }

    #[test]
    fn memory_is_bounded_and_nothing_that_was_added_is_lost() {
        let mut cover = Cover::default();
        let range = |at: u64| at * 2 * PAGE..(at * 2 + 1) * PAGE;
        for at in 0..Cover::MOST as u64 * 5 {
            cover.add(range(at));
            assert!(cover.ranges.len() <= Cover::MOST);
        }
        let all = |at: u64| cover.within(range(at)).map(|part| part.end - part.start).sum::<u64>();
        assert!((0..Cover::MOST as u64 * 5).all(|at| all(at) == PAGE));
    }
}
