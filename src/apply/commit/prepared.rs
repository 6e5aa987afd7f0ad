//! A destination that could take its place, and waits for the decision about all hosts of a run:
//! all that may fail before has been done, and nothing that shows. What waits is what an
//! interrupted run leaves, with a [mark](crate::apply::place::mark) beside it.
//!
//! 1. Nothing needs to be done: then that is all.
//! 2. A temp file has its length, is on storage, and for its owner alone; with `--verify` it was
//!    read back.
//! 3. A stage is on storage with its log, which has no seal; in the old file there is room for it,
//!    or it is completed.
//! 4. The mark is on storage, unless something is in its way.

use std::fs::File;

use crate::apply::commit::{OldFile, Task};
use crate::apply::place::Old;
use crate::apply::place::mark::Mark;
use crate::apply::recover::ReadBack;
use crate::apply::way::Way;
use crate::apply::way::staged::Ready;
use crate::apply::{Destination, Finished};
use crate::error::{Error, Result};
use crate::hashmap::Hash;
use crate::options::DeploymentId;
use crate::working::Working;

/// A destination that waits. Dropped, it stays as it is, with its mark.
pub struct Prepared {
    destination: Destination,
    root: Hash,
    /// Bytes of data that were kept.
    kept: u64,
    /// How a stage ends.
    ready: Option<Ready>,
    /// Nobody else removes it.
    _mark: Option<File>,
}

impl Destination {
    /// Does all of [`finish`](Destination::finish) that may fail and does not show, for a run.
    ///
    /// # Errors
    ///
    /// Those of `finish`; what there is stays for the next run.
    pub fn prepare(mut self, root: &Hash, kept: u64, run: &DeploymentId) -> Result<Prepared> {
        match self.make_ready(root, kept, run) {
            Ok((ready, mark)) => Ok(Prepared { destination: self, root: *root, kept, ready, _mark: mark }),
            Err(error) => Err(self.give_up(error)),
        }
    }

    fn make_ready(
        &mut self,
        root: &Hash,
        kept: u64,
        run: &DeploymentId,
    ) -> Result<(Option<Ready>, Option<File>)> {
        if self.can_be_left()? {
            return Ok((None, None));
        }
        let Destination { task, way, .. } = self;
        let ready = match &mut *way {
            Way::Direct(_) => return Err(task.no_preparing()),
            Way::Staged(staged) => {
                let ready = staged.ready(task, kept)?;
                staged.sync(task)?;
                Some(ready)
            }
            way => {
                way.check_ready(task)?;
                let temp = way.temp().ok_or_else(|| task.place.replaced())?;
                task.prepare(temp, way.old(), root)?;
                None
            }
        };
        if let Some(Ready::Complete(data)) = &ready {
            // With --preallocate also room for all of it.
            task.prepare(data, way.old(), root)?;
        }
        let mark = Mark { run: *run, root: *root };
        let is_synced = task.options.fsync;
        // It is for people alone: what keeps it away, as what another user has put there, keeps nothing else.
        let put = || task.place.put_mark(&mark, is_synced).ok();
        let mark = if task.place.finds_again() { put() } else { None };
        if mark.is_none() && is_synced {
            task.place.sync_dir().map_err(task.place.error("sync the directory of"))?;
        }
        Ok((ready, mark))
    }
}

impl Task {
    /// Has the new file ready to take the place of the old one.
    fn prepare(&self, new: &File, old: Option<&Old>, root: &Hash) -> Result<()> {
        self.fill(new, old)?;
        self.sync(new, OldFile::Whole)?;
        self.verify(new, root, ReadBack::Temp)?;
        self.counts.is_read_back.set(true);
        self.check_old(old)
    }

    /// What is written itself is not as it was, whatever is decided.
    pub(in crate::apply) fn no_preparing(&self) -> Error {
        let why = "--together wants a file that is whole until all hosts are prepared: devices, and files that are \
                   written in place, are not; nothing was written";
        Error::refused(&self.place.path, why)
    }
}

impl Prepared {
    /// It takes its place.
    ///
    /// # Errors
    ///
    /// Those of [`finish`](Destination::finish).
    pub fn commit(self) -> Result<Finished> {
        let Prepared { destination, root, kept, ready, _mark } = self;
        let place = destination.task.place.clone();
        let is_gone = destination.remove_mark();
        let finished = match ready {
            Some(ready) => destination.conclude(ready, &root),
            None => destination.finish(&root, kept),
        };
        if !is_gone {
            // It may go now: a run that finds the file equal does not look for it.
            let _ = place.remove(&[Working::Prepared]);
        }
        finished
    }

    /// Whether the next run finds what waits here.
    pub fn is_found_again(&self) -> bool {
        self.destination.task.place.finds_again()
    }

    /// It was decided against: what there is stays for the next run, as after any interruption.
    pub fn give_up(self) {
        let Prepared { mut destination, ready, .. } = self;
        destination.remove_mark();
        if let (Way::Staged(staged), Some(ready)) = (&mut destination.way, ready) {
            staged.give_room_back(&destination.task, ready);
        }
        destination.keep();
    }
}

impl Destination {
    /// It tells of something that is no more: otherwise whoever goes on removes it. Whether it is gone.
    fn remove_mark(&self) -> bool {
        self.task.place.remove(&[Working::Prepared]).is_ok()
    }
}
