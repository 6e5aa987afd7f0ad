//! The way of a file of which nothing is there, or nothing worth comparing: into a temp
//! file, which takes the name when it is whole. What an earlier run left in one is gone on
//! from.

use std::fs::File;
use std::io;

use crate::apply::attributes::belongings;
use crate::apply::commit::{OldFile, Task};
use crate::apply::place::Old;
use crate::error::{Failure, Result};
use crate::hashmap::Hash;
use crate::sys;
use crate::working::Working;

pub struct Fresh {
    old: Option<Old>,
    /// Made when there is something to write.
    temp: Option<File>,
    is_resumed: bool,
}

impl Fresh {
    pub fn new(old: Option<Old>) -> Fresh {
        Fresh { old, temp: None, is_resumed: false }
    }

    /// Goes on with the temp file of an earlier run, which is locked.
    pub fn resumed(old: Option<Old>, temp: File) -> Fresh {
        Fresh { old, temp: Some(temp), is_resumed: true }
    }

    pub fn old(&self) -> Option<&Old> {
        self.old.as_ref()
    }

    pub fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    pub fn has_begun(&self) -> bool {
        self.temp.is_some()
    }

    /// The temp file.
    pub fn file(&mut self, task: &Task) -> Result<&File> {
        match &mut self.temp {
            Some(temp) => Ok(temp),
            none => Ok(none.insert(begin(task, self.old.as_ref())?)),
        }
    }

    /// The temp file, if there is one.
    pub fn temp(&self) -> Option<&File> {
        self.temp.as_ref()
    }

    /// See step 7 of [`apply`](crate::apply).
    pub fn finish(&mut self, task: &Task, root: &Hash) -> Result<Option<Failure>> {
        self.file(task)?;
        let Some(temp) = &self.temp else { return Err(task.place.replaced()) };
        task.replace(temp, Working::Temp, self.old.as_ref(), root)
    }
}

fn begin(task: &Task, old: Option<&Old>) -> Result<File> {
    let failed = |error| task.failed("create the temp file of", error, OldFile::Whole);
    let place = &task.place;
    let temp = match place.create_new(Working::Temp) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match place.leftover(Working::Temp).map_err(place.error("open the temp file of"))? {
                Some(leftover) => leftover,
                None => place.create(Working::Temp).map_err(failed)?,
            }
        }
        other => other.map_err(failed)?,
    };
    let temp = place.locked_temp(temp)?;
    // ext4 writes back at its close what was emptied once (auto_da_alloc, ext4(5)).
    if temp.metadata().map_err(place.error("look at"))?.len() > 0 {
        temp.set_len(0).map_err(place.error("write"))?;
    }
    belongings::prepare(old, &temp);
    if task.options.preallocate {
        sys::allocate(&temp, 0..task.wanted.length)
            .map_err(|error| task.failed("allocate", error, OldFile::Whole))?;
    }
    Ok(temp)
}
