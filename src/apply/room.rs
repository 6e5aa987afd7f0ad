//! Room on the file system of a destination. Whether there is enough is told before data
//! travels: zeros that take room, quotas and compression make it uncertain, so nothing is
//! refused. When a disk is full, what came stays for the next run, but for a part that is
//! given back.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::apply::commit::Task;
use crate::apply::ranges::behind::{LastWritten, share_to_give_back};
use crate::apply::way::Way;
use crate::apply::{Destination, ranges};
use crate::error::{Error, Warning, is_quota, printable};
use crate::report::human;
use crate::scan;
use crate::sys;
use crate::working::Working;

/// Files that need less, in bytes, are not looked at.
const WORTH_ASKING: u64 = 1 << 20;

/// What the user should be told of a file that needs more room than is free, both in bytes.
pub fn shortage(path: &Path, needed: u64, free: impl FnOnce() -> Option<u64>) -> Option<Warning> {
    if needed < WORTH_ASKING {
        return None;
    }
    let free = free().filter(|free| *free < needed)?;
    let (name, needed, free) = (printable(path), human(needed), human(free));
    Some(Warning::about(path, format!("{name} will need up to {needed}, and {free} are free there")))
}

impl Destination {
    /// What the user should be told where more room will be needed than is free.
    pub fn shortage(&self) -> Option<Warning> {
        shortage(self.path(), self.room_needed(), || sys::free_space(&self.task.place.dir).ok())
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

    /// Removes what was gathered, which is of no use to anybody.
    pub fn discard(&self) {
        // What cannot be removed is found by the next run.
        let _ = self.task.place.remove(self.way.working_files());
    }

    /// The same after an error, which is returned. On a full disk what earlier runs left goes,
    /// too: it would only be in the way.
    pub fn discard_after(&self, error: Error) -> Error {
        self.discard();
        match error {
            Error::Space { source, .. } => {
                self.task.remove_leftovers(&[]);
                self.no_room(source, 0)
            }
            other => other,
        }
    }

    /// Keeps what was gathered before this error for the next run. On a full disk some of
    /// it is given back, so that the disk can be used. Returns the error, which tells then what
    /// is kept.
    pub fn give_up(mut self, error: Error) -> Error {
        if !self.task.place.finds_again() {
            return self.discard_after(error);
        }
        let error = self.make_room_after(error);
        self.keep();
        error
    }

    pub(super) fn make_room_after(&mut self, error: Error) -> Error {
        let is_sealed = matches!(&self.way, Way::Staged(staged) if staged.is_sealed());
        match error {
            Error::Space { source, .. } if !is_sealed => {
                self.make_room();
                self.no_room(source, self.kept())
            }
            other => other,
        }
    }

    fn make_room(&mut self) {
        let Destination { task, way, .. } = self;
        task.remove_leftovers(way.working_files());
        if let Way::Staged(staged) = way {
            staged.give_back();
        }
        if let Some(temp) = way.temp() {
            // The disk is in trouble already.
            let _ = task.give_back(temp);
        }
    }

    /// Bytes that came and that the next run goes on from.
    fn kept(&self) -> u64 {
        let allocated = |file: &File| file.metadata().map_or(0, |metadata| 512 * metadata.blocks());
        match &self.way {
            Way::Fresh(fresh) => fresh.temp().map_or(0, allocated),
            Way::Staged(staged) => staged.data().map_or(0, allocated),
            // What it shares with the old file did not come.
            Way::Replica(replica) => {
                if replica.has_begun() {
                    self.task.counts.written
                } else {
                    0
                }
            }
            Way::Direct(_) => 0,
        }
    }

    /// Why it does not fit, and what there is now; `kept`: bytes for the next run.
    fn no_room(&self, source: io::Error, kept: u64) -> Error {
        let task = &self.task;
        let kept = match kept {
            _ if matches!(self.way, Way::Direct(_)) => None,
            0 => Some("nothing of it is kept".into()),
            kept => Some(format!("{} came and are kept", human(kept))),
        };
        let free = sys::free_space(&task.place.dir).ok().filter(|_| !is_quota(&source));
        let free = free.map(|free| format!("{} are free now", human(free)));
        let state = match (&self.way, self.way.old()) {
            (Way::Direct(_), _) => Some("it is partly written"),
            (_, Some(_)) => Some("the old file is untouched"),
            (_, None) => None,
        };
        let parts = kept.into_iter().chain(free).collect::<Vec<_>>();
        let needed = task.explain_shortage(&source, &parts, state);
        Error::Space { path: task.place.path.clone(), needed, source }
    }
}

impl Task {
    /// What is said of a file that does not fit: how much it needs, what else is known of that,
    /// what state the old file is in, and what to do next.
    pub fn explain_shortage(&self, source: &io::Error, known: &[String], state: Option<&str>) -> String {
        let needed = if self.options.preallocate { self.wanted.length } else { self.wanted.data };
        let needed = match needed {
            // A stream does not say how much comes.
            0 => "it is not known how much is needed".into(),
            bytes => format!("up to {} were needed for the data of this image", human(bytes)),
        };
        let mut facts = vec![needed];
        facts.extend_from_slice(known);
        let todo = match is_quota(source) {
            true => "have the quota raised, or make room, and run the same command again",
            false if sys::lacks_inodes(&self.place.dir) => {
                "the file system has no room for more files (inodes): remove some, and run the same command again"
            }
            false => "make room and run the same command again",
        };
        let state = state.map(|state| format!("; {state}")).unwrap_or_default();
        format!("{}{state}; {todo}", facts.join(", "))
    }

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
        let mut last = self.counts.last_written.take(share);
        if last.is_empty() {
            // What is copied whole is noted when all of it is there.
            let mut data = LastWritten::default();
            for extent in scan::data_extents(temp, 0..metadata.len()) {
                data.add(extent?);
            }
            last = data.take(share);
        }
        for range in last {
            sys::punch_hole(temp, range)?;
        }
        Ok(())
    }
}
