//! What the ways to the new file have in common: which there are, and length, sync, check,
//! attributes, and the rename. Every failure is an error.

pub(super) mod completion;
mod delayed;
pub(super) mod group;
pub(super) mod prepared;
pub(super) mod witness;

use std::cell::{Cell, OnceCell};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use nix::sys::stat::SFlag;

use crate::apply::Wanted;
use crate::apply::commit::witness::{Witness, Writes};
use crate::apply::others::in_the_way;
use crate::apply::place::beside::Beside;
use crate::apply::place::{Access, Old, Place};
use crate::apply::ranges::behind::LastWritten;
use crate::apply::ranges::cover::Cover;
use crate::apply::ranges::{self, Abilities};
use crate::apply::recover::{ReadBack, Recovered, check_root};
use crate::apply::synced::Synced;
use crate::error::{Error, Failure, Result};
use crate::hashmap::{Grid, Hash};
use crate::in_use;
use crate::options::Options;
use crate::scan;
use crate::sys::{self, kind_of};
use crate::working::Working;
pub use delayed::Delayed;

/// What is to be done with one file, and how far that is.
pub(super) struct Task {
    pub place: Place,
    pub wanted: Wanted,
    pub options: Arc<Options>,
    /// What the file system can do; nothing where nothing is compared.
    pub can: Abilities,
    /// The kind of what is there and to be replaced, if that is neither a file nor a symlink.
    pub replaces: Option<SFlag>,
    /// Working files of earlier runs.
    pub beside: Beside,
    /// What became of a sealed log of an earlier run.
    pub recovered: Recovered,
    pub counts: Counts,
    /// What the files of this run have on storage without its doing.
    pub synced: Arc<Synced>,
    /// Where the new file has data, as far as that is known: what was written, and what was
    /// found to be data and stays.
    pub data: Cover,
    /// The file beside it that it is begun from, if that was chosen by its name.
    pub begun_from: Option<OsString>,
    /// The new file waits, when it is complete.
    pub delays: bool,
    /// It does so.
    pub delayed: OnceCell<Delayed>,
    /// Its map is kept if nobody else touches it.
    pub watches: bool,
    /// The file that becomes it, or stays it, since nobody else may touch that.
    pub witness: Cell<Option<Witness>>,
}

/// What was done to the file, or to what it is made from, in bytes.
#[derive(Default)]
pub(super) struct Counts {
    pub written: u64,
    /// Data that became zeros.
    pub zeroed: u64,
    /// Zeros that took room and were given back.
    pub freed: u64,
    pub last_written: LastWritten,
    /// All of a new file was written at once, and it has its length.
    pub at_once: bool,
    /// What was read back came from memory, in part at least.
    pub from_cache: Cell<bool>,
    /// The new file was read back, as it waits.
    pub is_read_back: Cell<bool>,
}

impl Counts {
    /// Whether content changed: room that is given back leaves it as it was.
    pub fn has_changes(&self) -> bool {
        self.written > 0 || self.zeroed > 0
    }
}

/// What became of a new file that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    InPlace,
    /// It is [`Delayed`].
    Waits,
}

/// What an error leaves of the old file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OldFile {
    Whole,
    PartlyWritten,
}

/// Bytes of which the sync takes longer than one need lose.
pub(super) const LARGE: u64 = 16 << 20;

/// Somebody else wrote the destination, or took its name.
fn changed_meanwhile(place: &Place) -> Error {
    let why = "changed while it was being updated; it was left alone: see what writes to it, then run again";
    Error::refused(&place.path, why)
}

impl Task {
    /// A range was written, which has so many bytes of data.
    pub fn wrote(&mut self, range: Range<u64>, data: u64) {
        self.counts.written += data;
        self.counts.last_written.add(range.clone());
        self.data.add(range);
    }

    /// The working file `kind` has all of the new content: it takes the place of the old
    /// file, or waits for that. Step 7 of [`apply`](crate::apply). Returns which attributes may
    /// not be set.
    pub fn replace(
        &self,
        new: &File,
        kind: Working,
        old: Option<&Old>,
        root: &Hash,
    ) -> Result<Option<Failure>> {
        let unset = self.complete(new, old, None)?;
        self.sync(new, OldFile::Whole)?;
        if self.take_place(new, kind, old, root)? == Placed::InPlace {
            self.sync_dir()?;
            self.forget_leftovers(kind)?;
        }
        Ok(unset)
    }

    /// Gives the new file its length, and what it is to carry unless it waits. `made`: how it
    /// was before anything was written to it. Returns which attributes may not be set.
    pub fn complete(
        &self,
        new: &File,
        old: Option<&Old>,
        made: Option<&Metadata>,
    ) -> Result<Option<Failure>> {
        self.fill(new, old)?;
        if self.delays {
            return self.delay(new, old).map(|()| None);
        }
        // As long as nobody else may write to it.
        self.watch(new, Writes::None);
        let unset = self.wanted.attributes.set_on_new(new, made, old, &self.place)?;
        self.attributes_are_set();
        Ok(unset)
    }

    /// Gives the new file its length, and no more room than it takes.
    fn fill(&self, new: &File, old: Option<&Old>) -> Result<()> {
        if !self.counts.at_once {
            let set = self.set_length(new, old);
            set.map_err(|error| self.failed("set the length of", error, OldFile::Whole))?;
        }
        if self.options.fsync && self.counts.written >= LARGE {
            // That takes long: until then it is a working file of ours that a run goes on from.
            new.sync_data().map_err(|error| self.failed("sync", error, OldFile::Whole))?;
        }
        if !self.counts.at_once {
            sys::allocate_exactly(new, false);
        }
        Ok(())
    }

    /// The new file, which is on storage, takes its place, or waits for that.
    pub fn take_place(&self, new: &File, kind: Working, old: Option<&Old>, root: &Hash) -> Result<Placed> {
        self.verify(new, root, ReadBack::Temp)?;
        self.check_old(old)?;
        if self.delays {
            return self.check_at_work(new, kind).map(|()| Placed::Waits);
        }
        self.put(new, kind, old).map(|()| Placed::InPlace)
    }

    /// Notes how the new file is that has all of its content, and waits: what is written to it
    /// from now on shows.
    fn delay(&self, new: &File, old: Option<&Old>) -> Result<()> {
        let state = new.metadata().map_err(self.place.error("look at"))?;
        // It is delayed once.
        let _ = self.delayed.set(Delayed::new(self, &state, old));
        Ok(())
    }

    /// Demands that the name of a working file leads to the new file.
    fn check_at_work(&self, new: &File, kind: Working) -> Result<()> {
        let place = &self.place;
        let is_at_work = place.is_at_work(kind, new).map_err(place.error("look at the temp file of"))?;
        if is_at_work { Ok(()) } else { Err(place.replaced()) }
    }

    /// Has the new file take its place.
    fn put(&self, new: &File, kind: Working, old: Option<&Old>) -> Result<()> {
        let place = &self.place;
        let name = place.bring_home(kind, new)?;
        self.rename(&name, old).inspect_err(|_| place.take_back(kind, &name))
    }

    /// Has what earlier runs left go, now that the name of the new file is on storage.
    pub fn forget_leftovers(&self, kind: Working) -> Result<()> {
        let place = &self.place;
        if kind == Working::Stage {
            place.remove(&[Working::Log]).map_err(place.error("clean up after"))?;
        }
        if self.has_leftover_stage() {
            let both = [Working::Log, Working::Stage];
            place.remove(&both).map_err(place.error("clean up after"))?;
        }
        Ok(())
    }

    /// Has a working file take the name of the destination. Where nothing was, what came
    /// meanwhile is not replaced.
    fn rename(&self, working: &OsStr, old: Option<&Old>) -> Result<()> {
        let place = &self.place;
        if self.replaces == Some(SFlag::S_IFDIR) {
            in_the_way::remove(place, &self.options)?;
        }
        let renamed = if old.is_none() {
            sys::rename_new_at(&place.dir, working, &place.name)
        } else {
            place.keep_backup()?;
            sys::rename_at(&place.dir, working, &place.name)
        };
        let renamed = match renamed {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // A symlink is replaced, and what is of the kind that was found.
                self.check_none()?;
                place.keep_backup()?;
                sys::rename_at(&place.dir, working, &place.name)
            }
            other => other,
        };
        renamed.map_err(|error| self.failed("put in place", error, OldFile::Whole))
    }

    /// The old file turned out to be all that is wanted but for its attributes. A time that
    /// is right says that the content is, so that is on storage first.
    pub fn leave(&self, old: &Old, root: &Hash) -> Result<Option<Failure>> {
        let place = &self.place;
        self.watch(&old.file, Writes::None);
        self.check_old(Some(old))?;
        self.verify(&old.file, root, ReadBack::AsItWas)?;
        let attributes = &self.wanted.attributes;
        // Without access to the content nothing of it was compared: it is empty.
        let sync = self.options.fsync && old.access != Access::None && attributes.changes_mtime(&old.state);
        if sync {
            self.synced.ensure(&old.file, &old.state).map_err(place.error("sync"))?;
        }
        let unset = attributes.set(&old.file, &place.path)?;
        self.attributes_are_set();
        place.remove_leftovers(&self.beside.leftovers);
        Ok(unset)
    }

    /// Whether the old file, of which nothing was found to differ, can be left as it is.
    pub fn can_leave(&self, old: &Old) -> Result<bool> {
        let readable = old.access != Access::None || !self.options.verify;
        let same_length = old.state.len() == self.wanted.length;
        if !readable || !same_length || old.is_device() {
            return Ok(false);
        }
        self.has_excess(&old.file).map(|excess| !excess).map_err(self.place.error("look at"))
    }

    /// Gives a file its length, and back what room it takes without need.
    pub fn set_length(&self, file: &File, old: Option<&Old>) -> io::Result<()> {
        ranges::set_length(file, self.wanted.length, self.options.preallocate)?;
        if self.options.preallocate {
            return sys::allocate(file, 0..self.wanted.length).map(drop);
        }
        if old.is_some() { self.free_excess(file) } else { Ok(()) }
    }

    /// A range to be made zero. A hole that reaches the end of the file may take the rest of
    /// its page along.
    pub fn to_page_at_end(&self, range: Range<u64>) -> Range<u64> {
        let at_end = range.end == self.wanted.length && !self.options.preallocate;
        range.start..if at_end { ranges::page_up(range.end) } else { range.end }
    }

    /// Frees what is allocated and holds no data: no seek tells it from a hole.
    pub fn free_excess(&self, file: &File) -> io::Result<()> {
        if !self.has_excess(file)? {
            return Ok(());
        }
        let mut at = 0;
        let end = ranges::page_up(self.wanted.length);
        // What is known to be data stays, whatever a seek says now.
        for data in self.data.within(0..end) {
            ranges::free_holes(file, at..data.start.max(at), true)?;
            at = at.max(data.end);
        }
        ranges::free_holes(file, at..end, true)
    }

    /// Whether notably more is allocated than there is data, and is to be freed: only a
    /// map that is trusted tells that.
    pub fn has_excess(&self, file: &File) -> io::Result<bool> {
        const SLACK: u64 = 1 << 20;
        if self.options.preallocate || !self.options.hole_map {
            return Ok(false);
        }
        let allocated = file.metadata()?.blocks() * 512;
        if allocated <= SLACK {
            return Ok(false);
        }
        let mut data = 0;
        for extent in scan::data_extents(file, 0..self.wanted.length) {
            data += extent.map(|extent| extent.end - extent.start)?;
        }
        Ok(allocated > data + data / 64 + SLACK)
    }

    /// Has a file on storage.
    pub fn sync(&self, file: &File, old: OldFile) -> Result<()> {
        if self.options.fsync {
            file.sync_all().map_err(|error| self.failed("sync", error, old))?;
        }
        Ok(())
    }

    /// Has the names in the directory on storage.
    pub fn sync_dir(&self) -> Result<()> {
        if self.options.fsync {
            self.place.sync_dir().map_err(self.place.error("sync the directory of"))?;
        }
        Ok(())
    }

    /// Reads a file back from storage, if that is wanted: all of it, since a map that is
    /// wrong would hide what it hid before.
    pub fn verify(&self, file: &File, root: &Hash, what: ReadBack) -> Result<()> {
        if !self.options.verify || self.counts.is_read_back.get() {
            return Ok(());
        }
        file.sync_data().map_err(self.place.error("sync"))?;
        sys::drop_cache(file);
        let stays = sys::cached_pages(file).is_none_or(|pages| pages > 0);
        self.counts.from_cache.set(self.counts.from_cache.get() || stays);
        let grid = Grid { length: self.wanted.length, block: self.options.block_size };
        check_root(&self.place, file, &grid, root, false, what).inspect_err(|_| {
            // The next run must not take it for equal by its time.
            let _ = sys::set_mtime(file, 0, 0);
        })
    }

    /// Watches the file that is to be the new one, from before the last look at the old one, if its map
    /// is to be kept. `writes`: what comes from here until it is.
    pub fn watch(&self, file: &File, writes: Writes) {
        if self.watches {
            self.witness.set(Witness::of(file, writes));
        }
    }

    /// From now on every change of what is watched is another's, unless a log is replayed.
    fn attributes_are_set(&self) {
        self.witness.set(self.witness.take().and_then(Witness::past_own_times));
    }

    /// Demands that nobody else uses the old file.
    pub fn refuse_in_use(&self, old: &Old) -> Result<()> {
        if self.options.force_in_use {
            Ok(())
        } else {
            in_use::refuse(&old.file, &old.state, &self.place.path)
        }
    }

    /// The same of a file that is to be written itself, which QEMU cannot open from now on.
    pub fn claim(&self, old: &Old) -> Result<()> {
        if self.options.force_in_use {
            Ok(())
        } else {
            in_use::claim(&old.file, &old.state, &self.place.path)
        }
    }

    /// Demands that the old file is still what it was, and used by nobody; that there is
    /// still nothing, a symlink, or what is to be replaced, where there was none.
    pub fn check_old(&self, old: Option<&Old>) -> Result<()> {
        match old {
            Some(old) => self.check_state(old, &old.state),
            // Nobody else can have put anything there, and the rename replaces nothing.
            None if self.place.is_own => Ok(()),
            None => self.check_none(),
        }
    }

    fn check_none(&self) -> Result<()> {
        let kind = self.place.stat()?.as_ref().map(kind_of);
        let same = kind.is_none_or(|kind| kind == SFlag::S_IFLNK || Some(kind) == self.replaces);
        if same { Ok(()) } else { Err(changed_meanwhile(&self.place)) }
    }

    /// Demands that the old file is still in this state, and used by nobody.
    pub fn check_state(&self, old: &Old, expected: &Metadata) -> Result<()> {
        let named = self.place.stat()?.map(|stat| (stat.st_dev, stat.st_ino));
        let now = old.file.metadata().map_err(self.place.error("look at"))?;
        let state = |m: &Metadata| (m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        if state(&now) != state(expected) || named != Some((now.dev(), now.ino())) {
            return Err(changed_meanwhile(&self.place));
        }
        self.refuse_in_use(old)
    }

    /// Whether an earlier run left a log or a stage.
    pub fn has_leftover_stage(&self) -> bool {
        [Working::Log, Working::Stage].iter().any(|kind| self.beside.leftovers.contains(kind))
    }

    /// An error while content was being put together. What is left of it on a full disk is told
    /// when room was made there: see [`Destination::give_up`](crate::apply::Destination::give_up).
    pub fn failed(&self, doing: &'static str, source: io::Error, old: OldFile) -> Error {
        let path = self.place.path.clone();
        if !ranges::is_full(&source) {
            return Error::File { doing, path, source };
        }
        let state = match old {
            OldFile::PartlyWritten => Some("it is partly written"),
            OldFile::Whole => None,
        };
        let needed = self.explain_shortage(&source, &[], state);
        Error::Space { path, needed, source }
    }
}
