//! From a destination that has all of its content to the file in its place: step 7 of
//! [`apply`](crate::apply).

use crate::apply::commit::group::Waiting;
use crate::apply::way::Way;
use crate::apply::{Destination, Finished};
use crate::error::{Failure, Result};
use crate::hashmap::Hash;

/// How far a destination is once it has all of its content.
pub enum Completion {
    /// It is in its place.
    Finished(Box<Finished>),
    /// It has its attributes, and takes its place when it is on storage.
    Waits(Box<Waiting>),
}

/// The same, where the destination stays what it is.
enum End {
    Finished(Box<Finished>),
    Waits { unset: Option<Failure>, changed: bool },
}

impl Destination {
    /// Makes what was put together the file: step 7. `root` is what it must hash to (the
    /// caller has compared hashes; `--verify` reads it back), `kept` how many bytes of data
    /// were kept.
    ///
    /// # Errors
    ///
    /// Then the old file is as it was, except where it is written directly, or
    /// a sealed log is there to finish it.
    pub fn finish(self, root: &Hash, kept: u64) -> Result<Finished> {
        match self.complete(root, kept)? {
            Completion::Finished(finished) => Ok(*finished),
            Completion::Waits(file) => file.commit(),
        }
    }

    /// The same up to where the file waits for storage, with others: see [`Committer`](crate::apply::Committer). One that
    /// is large, or is not put in its place by a rename, is finished here.
    ///
    /// # Errors
    ///
    /// Those of [`finish`](Destination::finish).
    pub fn complete(mut self, root: &Hash, kept: u64) -> Result<Completion> {
        let completed = self.end(root, kept);
        let ended = completed.map_err(|error| self.make_room_after(error))?;
        Ok(match ended {
            End::Finished(finished) => Completion::Finished(finished),
            End::Waits { unset, changed } => {
                // Nothing is compared any more, and it is another open file.
                self.basis = None;
                Completion::Waits(Box::new(Waiting { destination: self, root: *root, unset, changed }))
            }
        })
    }

    fn end(&mut self, root: &Hash, kept: u64) -> Result<End> {
        self.make_zeros()?;
        let changes_length = self.changes_length();
        let Destination { task, way, basis, .. } = self;
        // Without a basis nobody has looked at what is there.
        let compared = basis.is_some() || task.wanted.length == 0;
        if compared
            && !way.has_begun()
            && let Some(old) = way.old()
            && task.can_leave(old)?
        {
            let unset = task.leave(old, root)?;
            task.place.remove_litter(&task.beside);
            let from_cache = task.counts.from_cache.get();
            let (written, punched) = (0, 0);
            let witness = task.witness.take();
            let left =
                Finished { written, punched, changed: false, from_cache, unset, delayed: None, witness };
            return Ok(End::Finished(Box::new(left)));
        }
        let changed = way.is_resumed() || !compared || changes_length || task.counts.has_changes();
        if let Some(unset) = way.complete(task)? {
            return Ok(End::Waits { unset, changed });
        }
        let unset = match way {
            Way::Direct(direct) => direct.finish(task, root),
            Way::Staged(staged) => staged.finish(task, root, kept),
            Way::Fresh(_) | Way::Replica(_) => Ok(None),
        }?;
        Ok(End::Finished(Box::new(self.finished(changed, unset))))
    }

    /// It is in its place, or delayed.
    pub(super) fn finished(&mut self, changed: bool, unset: Option<Failure>) -> Finished {
        let task = &mut self.task;
        task.place.remove_litter(&task.beside);
        let counts = &task.counts;
        let punched = counts.zeroed.saturating_add(counts.freed);
        let (written, from_cache) = (counts.written, counts.from_cache.get());
        let delayed = task.delayed.take();
        let witness = task.witness.take().filter(|_| delayed.is_none());
        Finished { written, punched, changed, from_cache, unset, delayed, witness }
    }
}
