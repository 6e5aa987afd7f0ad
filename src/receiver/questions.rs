//! Questions about blocks that differ, and the leaves that answer them.

use crate::error::{Result, lock};
use crate::protocol::{Credit, Differ, LeafAnswer};
use crate::receiver::Applier;
use crate::report::Phase;

impl Applier<'_, '_> {
    /// Answers with what is there of blocks that differ.
    pub(super) fn compare(&mut self, differ: &Differ) -> Result<()> {
        let units = self.take_credit(differ)?;
        let mut answer = None;
        let leaf = self.shared.options.leaf_size;
        self.describe(Phase::Mapping, |feeds, file| {
            answer = Some(LeafAnswer { id: file.id, blocks: file.compare(feeds, differ, leaf)? });
            Ok(0)
        })?;
        match answer {
            Some(answer) => self.shared.outbox.leaves(answer, units),
            None => self.shared.outbox.settle(units),
        }
    }

    /// The units of credit that a question takes, if there are so many.
    fn take_credit(&self, differ: &Differ) -> Result<usize> {
        let units = Credit::of_question(differ.hashes.len());
        let fits = lock(&self.shared.credit).take(units);
        if fits { Ok(units) } else { Err(self.frames.bad("more questions than it has credit for")) }
    }
}
