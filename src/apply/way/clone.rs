//! The way of a file that can be cloned, or must not be written itself: a clone or a copy of
//! it is patched, and takes its name.

use std::fs::File;

use crate::apply::commit::{OldFile, Task};
use crate::apply::place::Old;
use crate::apply::ranges;
use crate::error::Result;
use crate::hashmap::Hash;
use crate::sys;
use crate::working::Working;

pub struct Replica {
    old: Old,
    /// Made when there is something to change.
    temp: Option<File>,
}

impl Replica {
    pub fn new(old: Old) -> Replica {
        Replica { old, temp: None }
    }

    pub fn old(&self) -> &Old {
        &self.old
    }

    pub fn has_begun(&self) -> bool {
        self.temp.is_some()
    }

    /// The clone or copy.
    pub fn file(&mut self, task: &Task) -> Result<&File> {
        match &mut self.temp {
            Some(temp) => Ok(temp),
            none => Ok(none.insert(begin(task, &self.old)?)),
        }
    }

    /// See step 7 of [`apply`](crate::apply).
    pub fn finish(mut self, task: &Task, root: &Hash) -> Result<()> {
        self.file(task)?;
        let Replica { old, temp: Some(temp) } = self else { return Err(task.place.replaced()) };
        task.replace(&temp, Working::Temp, Some(&old), root)
    }
}

/// The name of a temp file is for what is equal to the old file already, since the next run
/// goes on from it; until then it is a clone in the making.
fn begin(task: &Task, old: &Old) -> Result<File> {
    let place = &task.place;
    let temp = place.create(Working::Clone).map_err(place.error("create the temp file of"))?;
    let temp = place.locked(temp)?;
    ranges::copy_all(&old.file, &temp).map_err(|error| task.failed("copy", error, OldFile::Whole))?;
    if task.has_excess(&old.file).map_err(place.error("look at"))? {
        let all = 0..ranges::page_up(old.state.len());
        ranges::free_holes_of(&old.file, &temp, all).map_err(place.error("punch holes into"))?;
    }
    let names = [Working::Clone, Working::Temp].map(|kind| place.name_of(kind));
    sys::rename_at(&place.dir, &names[0], &names[1]).map_err(place.error("create the temp file of"))?;
    Ok(temp)
}
