//! The destination of one file: from what is there to what is wanted. Knows no protocol.
//!
//! 1. [`Destination::open`] looks at what is there and at working files beside it. A dry run
//!    does step 3, and says what there is to compare with. Working files that are not as this
//!    process makes them are another's: they are not read, but a log of another's keeps
//!    step 3 from believing size and time; this run's own get other names, and another's go,
//!    where that may be, after step 7.
//! 2. A sealed log is replayed: without the source, before anything else. One that another
//!    version wrote is an error.
//! 3. A file that passes the quick check gets its attributes, working files go, and that is
//!    all.
//! 4. The old file is locked, and used by nobody else. What its file system can do is tried, once a run.
//! 5. One of four ways is chosen, and says what there is to compare with (a [`Basis`]).
//! 6. Content comes in any order: [`write`](Destination::write), [`zero`](Destination::zero),
//!    [`free`](Destination::free). A way begins, and makes working files, with the first of
//!    these; nothing of the old file changes. Of the old file stays what is said to:
//!    [`keep_range`](Destination::keep_range).
//! 7. [`Destination::finish`], when the caller has compared hashes; or, so that many small files
//!    wait for storage once, [`Destination::complete`] up to the sync, and the rest in
//!    [groups](Committer). In this order: length;
//!    attributes; sync; with `--verify` reading back; the old file is still the one of step
//!    4, and the working file still has its name; rename; sync of the directory; removal of
//!    what earlier runs left. In a directory that this run made, and in which nobody else makes
//!    names, nothing is looked for: what is there all the same is an error. With
//!    `--delay-updates` a file that a rename would put in place
//!    waits after the reading back, on storage, as a temp file in its workplace without its
//!    attributes; the rest is done when everything else has its result ([`Delayed`]), if both
//!    files are still as they were.
//!
//! | there | way | differs in step 7 |
//! |---|---|---|
//! | nothing, a symlink, nothing worth comparing | `fresh`: a temp file | |
//! | a file, and the file system clones; `--commit=atomic`; a file that must not be written; a file system that cannot reserve or punch | `clone`: a clone or copy is patched | |
//! | a file otherwise | `staged`: a stage and its log | completed like the others, or sealed: the old file is still the one of step 4; room is reserved in it; sync of the stage; nobody has touched it since; seal; sync of log and directory; the same look; replay; sync; attributes; sync; removal of the log; reading back |
//! | a file and `--inplace`, a block device | `direct`: itself | length; sync; reading back; attributes; sync |
//!
//! Guaranteed, but for the last row: the file is the old one until the new one is on
//! storage, or a sealed log is from which it will be finished. What came is kept when a run
//! is interrupted; on a full disk, all but a part that makes room. A sealed log goes when its
//! file is whole, and not before. Two runs that lock never write the same file.
//!
//! Not guaranteed: that nobody else writes the file between the last look and the end of a
//! replay, unless it is QEMU, which cannot open it then ([`in_use`](crate::in_use)); the old
//! file's other names after a rename;
//! anything about a crash of the machine with `--no-fsync`; locks where the file system has
//! none.

mod aside;
mod attributes;
mod commit;
mod copy;
mod nodes;
mod open;
mod others;
mod place;
pub mod ranges;
pub mod recover;
mod room;
pub mod stage;
mod synced;
pub mod tree;
mod way;

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use crate::apply::aside::similar;
pub use crate::apply::attributes::Attributes;
pub use crate::apply::attributes::times::{Grain, Precision, TimeRule};
pub use crate::apply::commit::Delayed;
use crate::apply::commit::Task;
pub use crate::apply::commit::completion::Completion;
pub use crate::apply::commit::group::{Committer, Waiting};
pub use crate::apply::commit::prepared::Prepared;
pub use crate::apply::commit::witness::Witness;
pub use crate::apply::open::{Opened, Opening, Preview, Setup, Sink};
pub use crate::apply::place::mark::{Mark, bytes_of};
pub use crate::apply::place::{Place, finish_directory};
use crate::apply::ranges::behind::WriteBehind;
use crate::apply::ranges::zeros::{Zeros, ZerosOver};
pub use crate::apply::room::shortage;
use crate::apply::way::Way;
use crate::error::{Error, Failure, Result, Warning, printable};
use crate::hashmap::{Hash, PAGE};
use crate::scan::{FileState, Image};
use crate::sys;

/// What is wanted of a destination.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The length of the source.
    pub length: u64,
    /// Bytes of data in the source, for messages.
    pub data: u64,
    /// Do not compare with what is there.
    pub whole: bool,
    /// Whether size and time may tell that the file is equal.
    pub quick_check: QuickCheck,
    /// What the file is to carry.
    pub attributes: Attributes,
}

/// Whether size and time may tell that a file is equal, where the options let them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuickCheck {
    /// They may not: the source has neither, or this is a second try.
    Never,
    /// They may not, nor is another file told in the place of this one: it may have changed when
    /// the first try was made.
    SecondTry,
    /// They may; the time of the source is known so exactly.
    Time(Precision),
    /// They may not, but the content may.
    Content {
        /// The root hash that proves another file to be equal.
        root: Hash,
        /// Whether what is there is known to have it.
        is_known: bool,
    },
}

/// What a destination has already, to compare with.
#[derive(Clone)]
pub struct Basis {
    /// Its bytes.
    pub image: Arc<dyn Image + Send + Sync>,
    /// Its length.
    pub length: u64,
    /// The state it is in, if it is a file as it is.
    pub state: Option<FileState>,
}

impl fmt::Debug for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Basis").field("length", &self.length).finish_non_exhaustive()
    }
}

/// What a destination has itself where it is compared with another file.
#[derive(Clone)]
pub enum Own {
    /// Nothing: zeros.
    Nothing,
    /// This.
    There(Basis),
}

/// What is known of the content that a destination has before anything is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BasisState {
    /// It can be mapped: there is a [`Basis`].
    Mapped,
    /// It is zeros, and need not be told of any.
    Blank,
    /// Nothing: it must be told of every zero.
    Unknown,
}

/// What finishing a destination came to.
#[derive(Debug)]
pub struct Finished {
    /// Bytes that were written.
    pub written: u64,
    /// Bytes that were made zero, or given back.
    pub punched: u64,
    /// Whether content or length changed, as far as anybody compared: room that is given
    /// back leaves both as they were.
    pub changed: bool,
    /// What was read back came from memory, in part at least: the system did not drop it, or
    /// does not tell.
    pub from_cache: bool,
    /// Attributes that may not be set: the content is in place all the same.
    pub unset: Option<Failure>,
    /// It is complete, and not in place yet.
    pub delayed: Option<Delayed>,
    /// It in its place, if that [was asked for](Destination::watch).
    pub witness: Option<Witness>,
}

impl Finished {
    /// What the user should be told of it.
    pub fn note(&self, path: &Path) -> Option<Warning> {
        let what =
            "was read back, but from memory in part: the system does not drop what it has cached of it";
        self.from_cache.then(|| Warning::about(path, format!("{} {what}", printable(path))))
    }
}

/// One file that is being made equal.
pub struct Destination {
    task: Task,
    way: Way,
    /// What it has.
    basis: Option<Basis>,
    /// What it is compared with in the place of that: a file that the user named.
    other: Option<Basis>,
    /// What the basis was cloned from, where that is written.
    cloned_from: Option<Basis>,
    behind: WriteBehind,
    zeros: Zeros,
}

/// Fails when a device holds fewer than `length` bytes; `state`: what became of it.
fn check_device_size(place: &Place, size: u64, length: u64, state: &str) -> Result<()> {
    if size < length {
        let why = format!("the device holds {size} bytes and the image has {length}; {state}");
        return Err(Error::refused(&place.path, why));
    }
    Ok(())
}

impl Destination {
    /// What to compare with; `None`: nothing, all of the source is needed.
    pub fn basis(&self) -> Option<Basis> {
        self.other.as_ref().or(self.basis.as_ref()).cloned()
    }

    /// What stays as it is while this is written, as far as that can be: the basis, or what that was
    /// cloned from.
    pub fn unwritten_basis(&self) -> Option<Basis> {
        self.cloned_from.clone().or_else(|| self.basis())
    }

    /// What it has itself, where the [basis](Destination::basis) is another file: what stays of
    /// that has to be written, as far as it is not there.
    pub fn own(&self) -> Option<Own> {
        self.other.as_ref()?;
        Some(self.basis.clone().map_or(Own::Nothing, Own::There))
    }

    /// Has [`Finished`] tell whether anybody else touched it from the end of a comparison on.
    /// `false`: it cannot. What is written itself before that end, as what an earlier run left is, has
    /// no such moment.
    pub fn watch(&mut self) -> bool {
        self.task.watches = !matches!(self.way, Way::Direct(_)) && !self.way.is_resumed();
        self.task.watches
    }

    /// The source may have changed unseen: the file gets a time that tells the next run to
    /// look at it, if it is to get any.
    pub fn forget_time(&mut self) {
        let attributes = &mut self.task.wanted.attributes;
        attributes.mtime = attributes.mtime.map(|_| (0, 0));
    }

    /// Whether it holds files open before anything is written to it.
    pub fn is_open(&self) -> bool {
        self.way.old().is_some() || self.way.has_begun() || self.basis.is_some()
    }

    /// Whether another file takes its name in the end, which need not be read back, and nobody
    /// waits for that to open another name of the old one.
    pub fn is_renamed(&self) -> bool {
        let is_renamed = matches!(self.way, Way::Fresh(_) | Way::Replica(_));
        let is_awaited = self.way.old().is_some_and(|old| old.turn.is_some());
        is_renamed && !is_awaited && !self.task.options.verify
    }

    /// What is known of what it has.
    pub fn basis_state(&self) -> BasisState {
        match (self.basis(), &self.way) {
            (Some(_), _) => BasisState::Mapped,
            // An empty file has nothing that anybody need know.
            (None, Way::Direct(direct)) if direct.old().is_device() || direct.old().state.len() > 0 => {
                BasisState::Unknown
            }
            (None, _) => BasisState::Blank,
        }
    }

    /// Whether [`finish`](Destination::finish) takes a root hash that is right: a log may
    /// be sealed, or what was written is read back.
    pub fn needs_root(&self) -> bool {
        self.task.options.verify || matches!(self.way, Way::Staged(_))
    }

    /// What is to be told of what it is begun from, if that was chosen by its name. `path`: its
    /// own, below the destination.
    pub fn choice(&self, path: &[u8]) -> Option<String> {
        self.task.begun_from.as_ref().map(|name| similar::choice(path, name))
    }

    /// Whether what is there is written itself, and changes with each write.
    pub fn is_written_itself(&self) -> bool {
        matches!(self.way, Way::Direct(_))
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        self.way.is_device()
    }

    /// How to name it to people.
    pub fn path(&self) -> &Path {
        &self.task.place.path
    }

    /// Whether there is nothing yet, or a file of another length. A device keeps its own.
    pub fn changes_length(&self) -> bool {
        let length = self.task.wanted.length;
        self.way.old().is_none_or(|old| !old.is_device() && old.state.len() != length)
    }

    /// For a source whose length shows only as it arrives: it is so long at least.
    ///
    /// # Errors
    ///
    /// When the file cannot be made as long, or the device is not.
    pub fn extend(&mut self, length: u64) -> Result<()> {
        if self.way.is_device() {
            // What is said of a device that is too small follows from what was done to it.
            self.make_zeros()?;
        }
        let Destination { task, way, .. } = self;
        let old = way.old_file();
        let is_device = way.is_device();
        let file = way.file(task)?;
        task.wanted.length = length;
        task.counts.at_once = false;
        if is_device {
            let size = sys::device_size(file).map_err(task.place.error("find the size of"))?;
            let changes = task.counts.has_changes();
            let state = if changes { "it is partly written" } else { "nothing was written" };
            return check_device_size(&task.place, size, length, state);
        }
        let extended = ranges::set_length(file, length, task.options.preallocate);
        extended.map_err(|error| task.failed("set the length of", error, old))
    }

    /// Puts data at its place.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        if self.zeros.overlap(&(at..at + bytes.len() as u64)) {
            self.make_zeros()?;
        }
        let at_once = self.is_all_of_a_new_file(at, bytes);
        if !at_once {
            self.grow()?;
        }
        let Destination { task, way, .. } = self;
        match way {
            Way::Staged(staged) => staged.write(task, at, bytes)?,
            way => {
                let (old, written) = (way.old_file(), way.file(task)?.write_all_at(bytes, at));
                written.map_err(|error| task.failed("write", error, old))?;
            }
        }
        let range = at..at + bytes.len() as u64;
        self.task.wrote(range.clone(), bytes.len() as u64);
        self.task.counts.at_once = at_once;
        self.behind.wrote(self.way.file(&self.task)?, range);
        Ok(())
    }

    /// Whether that is all of a new file, of which nothing is there, so that its length follows.
    fn is_all_of_a_new_file(&self, at: u64, bytes: &[u8]) -> bool {
        let Destination { task, way, .. } = self;
        let is_new = matches!(way, Way::Fresh(_)) && !way.has_begun() && task.place.is_own;
        is_new && at == 0 && bytes.len() as u64 == task.wanted.length && !task.options.preallocate
    }

    /// Makes a range zero: a hole, unless zeros are to stay allocated. It may be done with
    /// what adjoins it, later.
    pub fn zero(&mut self, range: Range<u64>) -> Result<()> {
        self.gather_zeros(range, ZerosOver::Data)
    }

    /// What the [`Basis`] has in a range was found to be data that stays. All that stays must
    /// be said, in ascending order: where the old file is copied, nothing else is sure to be.
    pub fn keep_range(&mut self, range: Range<u64>) -> Result<()> {
        self.task.data.add(range.clone());
        if let Way::Replica(replica) = &mut self.way { replica.keep(&self.task, range) } else { Ok(()) }
    }

    /// Gives allocated zeros back to the file system, unless they are to stay; on
    /// one that cannot take them nothing happens, and without a hole map nobody knows
    /// whether they are allocated.
    pub fn free(&mut self, range: Range<u64>) -> Result<()> {
        let is_wanted = !self.task.options.preallocate && self.task.options.hole_map;
        if !is_wanted || self.way.is_device() || !self.task.can.punch {
            return Ok(());
        }
        self.gather_zeros(range, ZerosOver::Zeros)
    }

    fn gather_zeros(&mut self, range: Range<u64>, over: ZerosOver) -> Result<()> {
        self.zeros.gather(range, over).map_or(Ok(()), |gathered| self.make(gathered))
    }

    /// Makes the zeros that were gathered.
    fn make_zeros(&mut self) -> Result<()> {
        self.zeros.take().map_or(Ok(()), |gathered| self.make(gathered))
    }

    fn make(&mut self, zeros: Zeros) -> Result<()> {
        match zeros.over {
            ZerosOver::Data => self.make_zero(zeros.range),
            ZerosOver::Zeros => self.give_back(&zeros),
        }
    }

    fn make_zero(&mut self, range: Range<u64>) -> Result<()> {
        let Destination { task, way, .. } = self;
        let bytes = range.end - range.start;
        let old = way.old_file();
        let zeroed: io::Result<()> = match way {
            Way::Staged(staged) => {
                staged.zero(task, range)?;
                Ok(())
            }
            Way::Direct(direct) => direct.zero(task, range)?,
            way => {
                let range = task.to_page_at_end(range);
                ranges::make_zero(way.file(task)?, range, task.options.preallocate)
            }
        };
        zeroed.map_err(|error| task.failed("punch holes into", error, old))?;
        self.task.counts.zeroed = self.task.counts.zeroed.saturating_add(bytes);
        Ok(())
    }

    fn give_back(&mut self, zeros: &Zeros) -> Result<()> {
        let Destination { task, way, .. } = self;
        let whole = zeros.whole_blocks(way.old().map_or(PAGE, |old| old.state.blksize()));
        if whole.is_empty() {
            return Ok(());
        }
        let bytes = whole.end - whole.start;
        match way {
            Way::Staged(staged) => staged.free(task, whole)?,
            way => {
                let (old, freed) = (way.old_file(), sys::punch_hole(way.file(task)?, whole));
                freed.map_err(|error| task.failed("punch holes into", error, old))?;
            }
        }
        self.task.counts.freed = self.task.counts.freed.saturating_add(bytes);
        Ok(())
    }

    /// Keeps what was gathered for the next run.
    pub fn keep(mut self) {
        if !self.task.place.finds_again() {
            return self.discard();
        }
        if self.way.has_begun() {
            // Zeros that are not made are only found to be missing by the next run.
            let _ = self.make_zeros();
        }
        if let Way::Staged(staged) = &mut self.way {
            staged.keep();
        }
    }

    /// Before the first write the file gets its length: some file systems (xfs)
    /// allocate ahead of writes that make a file longer, and leave that in its holes.
    fn grow(&mut self) -> Result<()> {
        let Destination { task, way, .. } = self;
        if task.counts.written > 0 || way.is_device() {
            return Ok(());
        }
        let old = way.old_file();
        let file = way.file(task)?;
        let length = file.metadata().map_err(task.place.error("look at"))?.len();
        if length < task.wanted.length {
            let grown = ranges::set_length(file, task.wanted.length, task.options.preallocate);
            grown.map_err(|error| task.failed("set the length of", error, old))?;
        }
        Ok(())
    }
}
