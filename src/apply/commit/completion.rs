//! From a destination that has all of its content to the file in its place: step 7 of
//! [`apply`](crate::apply).

use crate::apply::commit::group::Waiting;
use crate::apply::way::Way;
use crate::apply::way::staged::Ready;
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

    /// Whether the old file is all that is wanted but for its attributes; nothing more comes.
    pub(super) fn can_be_left(&mut self) -> Result<bool> {
        self.make_zeros()?;
        match self.way.old().filter(|_| !self.way.has_begun()) {
            Some(old) if self.is_compared() => self.task.can_leave(old),
            _ => Ok(false),
        }
    }

    /// Without a basis nobody has looked at what is there.
    fn is_compared(&self) -> bool {
        self.basis.is_some() || self.task.wanted.length == 0
    }

    /// Whether content or length changed, as far as anybody compared.
    fn is_changed(&self) -> bool {
        let has_changes = self.changes_length() || self.task.counts.has_changes();
        self.way.is_resumed() || !self.is_compared() || has_changes
    }

    fn end(&mut self, root: &Hash, kept: u64) -> Result<End> {
        if self.can_be_left()?
            && let Some(old) = self.way.old()
        {
            let task = &mut self.task;
            let unset = task.leave(old, root)?;
            task.place.remove_litter(&task.beside);
            let from_cache = task.counts.from_cache.get();
            let (written, punched) = (0, 0);
            let witness = task.witness.take();
            let left =
                Finished { written, punched, changed: false, from_cache, unset, delayed: None, witness };
            return Ok(End::Finished(Box::new(left)));
        }
        let changed = self.is_changed();
        let Destination { task, way, .. } = self;
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

    /// The same of a stage that is ready.
    pub(super) fn conclude(mut self, ready: Ready, root: &Hash) -> Result<Finished> {
        let changed = self.is_changed();
        let Destination { task, way: Way::Staged(staged), .. } = &mut self else {
            return Err(self.task.place.replaced());
        };
        let concluded = staged.conclude(task, root, ready);
        match concluded {
            Ok(unset) => Ok(self.finished(changed, unset)),
            Err(error) => Err(self.make_room_after(error)),
        }
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
