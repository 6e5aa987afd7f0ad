//! The way of a file that can be cloned, or must not be written itself: a clone or a copy of
//! it is patched, and takes its name.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use crate::apply::aside::similar;
use crate::apply::attributes::belongings;
use crate::apply::commit::{OldFile, Task};
use crate::apply::copy::copy_data;
use crate::apply::place::Old;
use crate::apply::ranges;
use crate::apply::ranges::behind::WriteBehind;
use crate::apply::ranges::cover::Cover;
use crate::error::{Failure, Result, Stop};
use crate::scan::{self, FileImage, FileState};
use crate::sys;
use crate::working::Working;

pub struct Replica {
    /// What is cloned or copied.
    from: Old,
    /// Nothing is there yet: `from` is another file, which was in this state.
    another: Option<FileState>,
    /// That was cloned before anything was compared: what becomes of it is no matter.
    is_snapshot: bool,
    /// Made when there is something to change.
    temp: Option<File>,
    /// It is a clone and no copy.
    is_clone: bool,
    /// What a copy did not get of the old file, which had no data there.
    left_out: Cover,
    /// The device that it lies on.
    device: Option<u64>,
}

impl Replica {
    pub fn new(old: Old) -> Replica {
        Replica {
            from: old,
            another: None,
            is_snapshot: false,
            temp: None,
            is_clone: false,
            left_out: Cover::default(),
            device: None,
        }
    }

    /// Of a file elsewhere, for one that is not there yet.
    pub fn of_another(from: similar::From) -> Replica {
        Replica { another: Some(from.state), ..Replica::new(from.old) }
    }

    /// Clones the file at once, so that it may change while the clone is compared. `None`: it was
    /// copied, which takes a while.
    pub fn snapshot(&mut self, task: &Task) -> Result<Option<&File>> {
        self.file(task)?;
        self.is_snapshot = self.is_clone;
        Ok(self.temp.as_ref().filter(|_| self.is_snapshot))
    }

    pub fn old(&self) -> Option<&Old> {
        self.another.is_none().then_some(&self.from)
    }

    pub fn has_begun(&self) -> bool {
        self.temp.is_some()
    }

    /// The clone or copy.
    pub fn file(&mut self, task: &Task) -> Result<&File> {
        let old = self.another.is_none().then_some(&self.from);
        match &mut self.temp {
            Some(temp) => Ok(temp),
            none => {
                let (temp, left_out, made) = begin(task, &self.from, old)?;
                self.is_clone = left_out.is_none();
                (self.left_out, self.device) = (left_out.unwrap_or_default(), Some(made.dev()));
                Ok(none.insert(temp))
            }
        }
    }

    /// What the old file has in a range was found to be data, and stays: the new one gets
    /// it, whatever a seek says now.
    pub fn keep(&mut self, task: &Task, range: Range<u64>) -> Result<()> {
        let Some(temp) = &self.temp else { return Ok(()) };
        for part in self.left_out.within(range) {
            let copied = ranges::copy_between(&self.from.file, temp, part);
            copied.map_err(|error| task.failed("copy", error, OldFile::Whole))?;
        }
        Ok(())
    }

    /// The clone or copy, if there is one.
    pub fn temp(&self) -> Option<&File> {
        self.temp.as_ref()
    }

    /// The device that the clone or copy lies on, if there is one.
    pub fn device(&self) -> Option<u64> {
        self.device
    }

    /// See step 7 of [`apply`](crate::apply): the clone or copy gets length and attributes.
    pub fn complete(&mut self, task: &Task) -> Result<Option<Failure>> {
        self.check_ready(task)?;
        let Some(temp) = &self.temp else { return Err(task.place.replaced()) };
        task.complete(temp, self.old(), None)
    }

    /// Makes the clone or copy, if there is none yet, and demands that what it was made of has not
    /// changed by then.
    pub fn check_ready(&mut self, task: &Task) -> Result<()> {
        self.file(task)?;
        // What is kept of it was hashed before it was copied.
        let is_changed = |state: &FileState| !self.is_snapshot && !state.is_still(&self.from.file);
        if self.another.as_ref().is_some_and(is_changed) {
            return Err(similar::changed(&task.place));
        }
        // All is copied: what becomes of it is no matter.
        self.is_snapshot = true;
        Ok(())
    }
}

/// The name of a temp file is for what is equal to the old file already, since the next run
/// goes on from it; until then it is a clone in the making. Also returns what a copy lacks of
/// the old file, which has no data there; `None`: it is a clone.
fn begin(task: &Task, from: &Old, old: Option<&Old>) -> Result<(File, Option<Cover>, Metadata)> {
    let place = &task.place;
    let temp = place.create(Working::Clone);
    let temp = temp.map_err(|error| task.failed("create the temp file of", error, OldFile::Whole))?;
    let temp = place.locked(temp)?;
    belongings::prepare(old, &temp);
    let made = temp.metadata().map_err(place.error("look at"))?;
    if task.options.fsync {
        task.synced.watch(&made, &place.dir);
    }
    let copied = ranges::clone(&from.file, &temp).and_then(|cloned| match cloned {
        true => Ok(None),
        false => copy(task, from, &temp).map(Some),
    });
    let left_out = copied.map_err(|error| task.failed("copy", error, OldFile::Whole))?;
    if task.has_excess(&from.file).map_err(place.error("look at"))? {
        let all = 0..ranges::page_up(from.state.len());
        ranges::free_holes_of(&from.file, &temp, all).map_err(place.error("punch holes into"))?;
    }
    let home = place.home_of(Working::Temp);
    let names = [Working::Clone, Working::Temp].map(|kind| home.name_of(kind));
    sys::rename_at(&home.dir, &names[0], &names[1]).map_err(place.error("create the temp file of"))?;
    Ok((temp, left_out, made))
}

/// Copies what is data in the old file, and what was found to be data so far in any case.
/// Without a hole map that is what reads as anything but zeros.
fn copy(task: &Task, old: &Old, temp: &File) -> io::Result<Cover> {
    let length = old.state.len();
    let mut behind = WriteBehind::new(task.options.fsync, 512 * old.state.blocks());
    temp.set_len(length)?;
    let mut left_out = Cover::default();
    if !task.options.hole_map {
        let image = FileImage::new(old.file.try_clone()?, false).sparing_cache_for(length);
        copy_data(&image, temp, length, |range, _| behind.wrote(temp, range))
            .map_err(|(Stop::Read(error) | Stop::Taken(error))| error)?;
        return Ok(left_out);
    }
    let mut at = 0;
    for extent in scan::data_extents(&old.file, 0..length) {
        let extent = extent?;
        left_out.add(at..extent.start);
        at = extent.end;
        behind.copy(&old.file, temp, extent)?;
    }
    left_out.add(at..length);
    for part in task.data.within(0..length).flat_map(|range| left_out.within(range)) {
        behind.copy(&old.file, temp, part)?;
    }
    Ok(left_out)
}
