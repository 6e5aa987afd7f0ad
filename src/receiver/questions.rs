//! Questions about blocks that differ, and the leaves that answer them: of the file that is put
//! together, or in a dry run of the old one.

use crate::error::{Result, lock};
use crate::protocol::{Credit, Differ, LeafAnswer};
use crate::receiver::Applier;
use crate::receiver::shared::Settles;
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

    /// In a dry run the sender comes to a file of which it was told what is there.
    pub(super) fn begin_preview(&mut self, id: u64) -> Result<()> {
        self.previewed = self.shared.previews.as_ref().and_then(|previews| previews.begin(id));
        if self.previewed.is_some() { Ok(()) } else { Err(self.frames.bad("a file it was told nothing of")) }
    }

    /// Answers with what the old file has of blocks that differ.
    pub(super) fn compare_preview(&mut self, differ: &Differ) -> Result<()> {
        let units = self.take_credit(differ)?;
        let Some(previewed) = &self.previewed else {
            return self.shared.outbox.settle(units);
        };
        let id = previewed.id;
        match previewed.leaves(differ, self.shared.options.leaf_size) {
            Ok(Some(blocks)) => self.shared.outbox.leaves(LeafAnswer { id, blocks }, units),
            Ok(None) => Err(self.frames.bad("a question about what is not there")),
            Err(error) => {
                self.previewed = None;
                self.shared.outbox.settle(units)?;
                self.shared.fail(id, &error, Settles::Nothing)
            }
        }
    }
}
