//! Complete files that wait in their workplace until everything else has its result.

use std::cell::{Cell, OnceCell};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;

use crate::apply::attributes::Attributes;
use crate::apply::commit::{Counts, OldFile, Task, changed_meanwhile};
use crate::apply::open::Setup;
use crate::apply::place::beside::Beside;
use crate::apply::place::{Old, Place, Turns};
use crate::apply::ranges::Abilities;
use crate::apply::ranges::cover::Cover;
use crate::apply::recover::Recovered;
use crate::apply::{QuickCheck, Wanted};
use crate::error::{Error, Failure, Result};
use crate::working::{Naming, Working};

/// A complete file that has not taken its place: nothing of it is open. It is for its owner
/// alone, as the next run goes on from it if this one ends before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delayed {
    /// What it is to carry.
    attributes: Attributes,
    /// How it is, with the name of a temp file.
    new: State,
    naming: Naming,
    /// How the file was whose place it takes.
    old: Option<State>,
    /// The kind of what else is there and to be replaced.
    replaces: Option<SFlag>,
    /// Working files that go when it is in its place.
    leftovers: Vec<Working>,
}

/// What tells a file from another, and from itself with other content.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    /// `None`: it has other names, of which this run may replace one.
    changed: Option<(i64, i64)>,
}

impl State {
    fn of(file: &Metadata) -> State {
        State {
            device: file.dev(),
            inode: file.ino(),
            length: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.nlink() == 1).then(|| (file.ctime(), file.ctime_nsec())),
        }
    }

    /// Whether a file is still so.
    fn is_still(&self, file: &Metadata) -> bool {
        let now = State::of(file);
        let changed = now.changed.filter(|_| self.changed.is_some());
        State { changed, ..now } == *self
    }
}

impl Delayed {
    /// A complete file, for a task that is over with this.
    pub(super) fn new(task: &Task, new: &Metadata, old: Option<&Old>) -> Delayed {
        Delayed {
            attributes: task.wanted.attributes.clone(),
            new: State::of(new),
            naming: task.place.home_of(Working::Temp).naming,
            old: old.map(|old| State::of(&old.state)),
            replaces: task.replaces,
            leftovers: task.beside.leftovers.clone(),
        }
    }

    /// Has it take its place, if both files are still as they were. `turns`: other names of the
    /// old file wait for it. Returns which attributes may not be set.
    ///
    /// # Errors
    ///
    /// Those of [`Destination::finish`](crate::apply::Destination::finish): the old file is as
    /// it was.
    pub(in crate::apply) fn put_in_place(
        self,
        mut place: Place,
        setup: &Setup,
        turns: &Arc<Turns>,
    ) -> Result<Option<Failure>> {
        let stat = place.stat()?;
        let _turn = stat.map(|stat| turns.take(&place, &stat)).transpose()?;
        place.enter_workplace()?;
        let Some(workplace) = &mut place.workplace else { return Err(is_lost(&place)) };
        workplace.place.naming = self.naming;
        let home = place.home_of(Working::Temp);
        let new = home.open(&home.name_of(Working::Temp), OFlag::O_RDWR | OFlag::O_NONBLOCK);
        let new = new.map_err(|_| is_lost(&place))?;
        let new = place.locked_temp(new)?;
        if !self.new.is_still(&new.metadata().map_err(place.error("look at"))?) {
            return Err(is_lost(&place));
        }
        let old = self.old.as_ref().map(|_| place.open_old()).transpose()?;
        if let (Some(before), Some(old)) = (&self.old, &old)
            && !before.is_still(&old.state)
        {
            return Err(changed_meanwhile(&place));
        }
        let (length, attributes) = (self.new.length, self.attributes);
        let wanted = Wanted { length, data: 0, whole: false, quick_check: QuickCheck::Never, attributes };
        let task = Task {
            place,
            wanted,
            options: Arc::clone(&setup.options),
            can: Abilities::default(),
            replaces: self.replaces,
            beside: Beside { leftovers: self.leftovers, ..Beside::default() },
            recovered: Recovered::Nothing,
            counts: Counts::default(),
            synced: Arc::clone(&setup.synced),
            data: Cover::default(),
            begun_from: None,
            delays: false,
            delayed: OnceCell::new(),
            watches: false,
            witness: Cell::default(),
        };
        let unset = task.wanted.attributes.set_on_new(&new, None, old.as_ref(), &task.place)?;
        task.sync(&new, OldFile::Whole)?;
        task.check_old(old.as_ref())?;
        task.put(&new, Working::Temp, old.as_ref())?;
        task.sync_dir()?;
        task.forget_leftovers(Working::Temp)?;
        Ok(unset)
    }
}

fn is_lost(place: &Place) -> Error {
    let why = "what had been put together for it was changed or removed before it took its place; see what \
               works in that directory, then run again";
    Error::refused(&place.path, why)
}
