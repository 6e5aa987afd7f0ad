//! How much one end may cause the other to hold, counted alike at both ends. Pure.
//!
//! Whoever sends something that makes the other end keep or say something takes credit
//! first. The other end counts the same, so that more than the credit is a broken rule
//! and not a longer queue, and gives credit back when it holds nothing for it any more.

/// Units for entries and questions. An entry takes one until its result is written, a
/// question one for every [`LEAF_BLOCKS`] blocks until its answer is. A unit stands for
/// a few messages, 4 KiB of text, or as much of leaves.
pub const CREDIT: usize = 4096;
/// Units that entries leave to the questions about the file that is being described.
pub const RESERVED: usize = 2048;
/// Blocks of a question that take a unit.
pub const LEAF_BLOCKS: usize = 4;
/// Keys and runs of zeros that maps may be ahead of what is described.
pub const MAX_AHEAD: usize = 16 << 10;

/// Credit that one end takes and the other gives back.
#[derive(Debug)]
pub struct Credit {
    limit: usize,
    reserved: usize,
    /// Units after which a grant is worth a message.
    batch: usize,
    taken: usize,
    /// Of these, no longer needed and not given back yet.
    due: usize,
}

impl Credit {
    /// For what makes the receiver say something.
    pub fn for_messages() -> Credit {
        Credit { limit: CREDIT, reserved: RESERVED, batch: CREDIT / 16, taken: 0, due: 0 }
    }

    /// For what is known of maps and not described.
    pub fn for_maps() -> Credit {
        Credit { limit: MAX_AHEAD, reserved: 0, batch: MAX_AHEAD / 4, taken: 0, due: 0 }
    }

    /// Takes units, if there are so many.
    pub fn take(&mut self, units: usize) -> bool {
        let fits = units <= self.limit - self.taken;
        self.taken += if fits { units } else { 0 };
        fits
    }

    /// Takes a unit for what comes later, if the reserve stays.
    pub fn take_for_later(&mut self) -> bool {
        self.has_for_later() && self.take(1)
    }

    /// Whether there is a unit for what comes later.
    pub fn has_for_later(&self) -> bool {
        self.taken + self.reserved < self.limit
    }

    /// Units that came back. `false`: more than were taken.
    #[must_use]
    pub fn give_back(&mut self, units: usize) -> bool {
        let fits = units <= self.taken;
        self.taken -= if fits { units } else { 0 };
        fits
    }

    /// Units that are no longer needed at the end that gives them back. How many to give
    /// back now, when that is worth a message: what is held back never keeps the other end
    /// waiting, for it has more than that.
    #[must_use]
    pub fn settle(&mut self, units: usize) -> Option<usize> {
        self.due = (self.due + units).min(self.taken);
        if self.due < self.batch {
            return None;
        }
        self.taken -= self.due;
        Some(std::mem::take(&mut self.due))
    }

    /// Units that a question about so many blocks takes.
    pub fn of_question(blocks: usize) -> usize {
        blocks.div_ceil(LEAF_BLOCKS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{MAX_DIFFER, MAX_UNPATCHED};

    #[test]
    fn no_more_is_taken_than_there_is() {
        let mut credit = Credit::for_messages();
        assert!(credit.take(CREDIT - 1) && !credit.take(2) && credit.take(1) && !credit.take(1));
        assert!(!credit.give_back(CREDIT + 1));
        assert!(credit.give_back(1) && credit.take(1) && !credit.take(usize::MAX));
    }

    #[test]
    fn entries_leave_all_questions_that_one_file_may_have_open() {
        let mut credit = Credit::for_messages();
        let entries = (0..CREDIT).filter(|_| credit.take_for_later()).count();
        assert_eq!(entries, CREDIT - RESERVED);
        for _ in 0..MAX_UNPATCHED / MAX_DIFFER {
            assert!(credit.take(Credit::of_question(MAX_DIFFER)));
        }
        assert!(!credit.has_for_later());
    }

    #[test]
    fn what_is_held_back_keeps_nobody_waiting() {
        for (mut credit, step) in [(Credit::for_messages(), 1), (Credit::for_maps(), 2050)] {
            let mut other = Credit { taken: 0, ..credit };
            // One end takes as it can; the other settles only when that one would wait.
            for _ in 0..100_000 {
                if other.take(step) {
                    assert!(credit.take(step));
                    continue;
                }
                let granted = (0..).find_map(|_| credit.settle(step)).unwrap();
                assert!(other.give_back(granted));
            }
        }
    }

    #[test]
    fn grants_come_in_batches_and_are_all_that_was_settled() {
        let mut credit = Credit::for_messages();
        assert!(credit.take(1000));
        let granted: Vec<usize> = (0..1000).filter_map(|_| credit.settle(1)).collect();
        assert_eq!(granted, [256, 256, 256]);
        assert_eq!(credit.taken, 1000 - 768);
    }
}
