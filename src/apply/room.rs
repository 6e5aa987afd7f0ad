//! Room on the file system of a destination. Whether there is enough is told before data
//! travels: zeros that take room, quotas and compression make it uncertain, so nothing is
//! refused. When a disk is full, what came stays for the next run, but for a part that is
//! given back.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use crate::apply::commit::Task;
use crate::apply::ranges::behind::share_to_give_back;
use crate::apply::way::Way;
use crate::apply::{Destination, ranges};
use crate::error::{Error, printable};
use crate::report::human;
use crate::sys;
use crate::working::Working;

/// Files that need less, in bytes, are not looked at.
const WORTH_ASKING: u64 = 1 << 20;

impl Destination {
    /// What the user should be told where more room will be needed than is free.
    pub fn shortage(&self) -> Option<String> {
        let needed = self.room_needed();
        if needed < WORTH_ASKING {
            return None;
        }
        let free = sys::free_space(&self.task.place.dir).ok().filter(|free| *free < needed)?;
        let (path, needed, free) = (printable(self.path()), human(needed), human(free));
        Some(format!("{path} will need up to {needed}, and {free} are free there"))
    }

    /// How many bytes will be allocated, as far as that can be told: where the old file is
    /// written in the end, what it lacks; how much of it changes shows only later.
    fn room_needed(&self) -> u64 {
        let wanted = &self.task.wanted;
        let new = if self.task.options.preallocate { wanted.length } else { wanted.data };
        let there = self.way.old().map_or(0, |old| 512 * old.state.blocks());
        match &self.way {
            _ if self.way.is_device() => 0,
            Way::Fresh(fresh) => {
                let came = fresh.temp().and_then(|temp| temp.metadata().ok());
                new.saturating_sub(came.map_or(0, |came| 512 * came.blocks()))
            }
            Way::Replica(_) if !self.task.can.clone => new.max(there),
            Way::Replica(_) | Way::Staged(_) | Way::Direct(_) => new.saturating_sub(there),
        }
    }

    /// Removes what was gathered, which is of no use to anybody. After an error on a full
    /// disk, what earlier runs left goes, too: it would only be in the way.
    pub fn discard(&self, error: Option<&Error>) {
        // What cannot be removed is found by the next run.
        let _ = self.task.place.remove(self.way.working_files());
        if matches!(error, Some(Error::Space { .. })) {
            self.task.remove_leftovers(&[]);
        }
    }

    /// Keeps what was gathered before this error for the next run. On a full disk some of
    /// it is given back, so that the disk can be used.
    pub fn give_up(mut self, error: &Error) {
        self.make_room_after(error);
        self.keep();
    }

    pub(super) fn make_room_after(&mut self, error: &Error) {
        let Destination { task, way, .. } = self;
        let is_sealed = matches!(way, Way::Staged(staged) if staged.is_sealed());
        if is_sealed || !matches!(error, Error::Space { .. }) {
            return;
        }
        task.remove_leftovers(way.working_files());
        if let Way::Staged(staged) = way {
            staged.give_back();
        }
        if let Some(temp) = way.temp() {
            // The disk is in trouble already.
            let _ = task.give_back(temp);
        }
    }
}

impl Task {
    /// On a full disk, removes what earlier runs left and nobody goes on from, and nothing
    /// that is `in_use`: a sealed log, from which an old file might be finished, stays with
    /// its stage.
    fn remove_leftovers(&self, in_use: &[Working]) {
        let is_damaged = self.recovered.is_doubtful();
        let stays = |kind: &Working| {
            in_use.contains(kind) || is_damaged && matches!(kind, Working::Log | Working::Stage)
        };
        let kinds: Vec<Working> = Working::ALL.into_iter().filter(|kind| !stays(kind)).collect();
        self.place.remove_leftovers(&kinds);
    }

    /// On a full disk, gives back the last of what came into a temp file, and what is
    /// allocated there and holds no data.
    fn give_back(&mut self, temp: &File) -> io::Result<()> {
        let metadata = temp.metadata()?;
        if self.options.preallocate {
            ranges::free_holes(temp, 0..metadata.len(), self.options.hole_map)?;
        }
        let share = share_to_give_back(512 * temp.metadata()?.blocks());
        for range in self.counts.last_written.take(share) {
            sys::punch_hole(temp, range)?;
        }
        Ok(())
    }
}
