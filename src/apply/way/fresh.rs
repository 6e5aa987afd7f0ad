//! The way of a file of which nothing is there, or nothing worth comparing: into a temp
//! file, which takes the name when it is whole. What an earlier run left in one is gone on
//! from.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;

use crate::apply::attributes::belongings;
use crate::apply::commit::{OldFile, Task};
use crate::apply::place::Old;
use crate::error::{Failure, Result};
use crate::sys;
use crate::working::Working;

pub struct Fresh {
    old: Option<Old>,
    /// Made when there is something to write.
    temp: Option<File>,
    /// How it was then; `None`: it is an earlier run's.
    made: Option<Metadata>,
    is_resumed: bool,
}

impl Fresh {
    pub fn new(old: Option<Old>) -> Fresh {
        Fresh { old, temp: None, made: None, is_resumed: false }
    }

    /// Goes on with the temp file of an earlier run, which is locked.
    pub fn resumed(old: Option<Old>, temp: File) -> Fresh {
        Fresh { old, temp: Some(temp), made: None, is_resumed: true }
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
            none => {
                let (temp, made) = begin(task, self.old.as_ref())?;
                self.made = Some(made);
                Ok(none.insert(temp))
            }
        }
    }

    /// The temp file, if there is one.
    pub fn temp(&self) -> Option<&File> {
        self.temp.as_ref()
    }

    /// The device that the temp file lies on, if this run made it.
    pub fn device(&self) -> Option<u64> {
        self.made.as_ref().map(Metadata::dev)
    }

    /// See step 7 of [`apply`](crate::apply): the temp file gets length and attributes.
    pub fn complete(&mut self, task: &Task) -> Result<Option<Failure>> {
        self.file(task)?;
        let Some(temp) = &self.temp else { return Err(task.place.replaced()) };
        task.complete(temp, self.old.as_ref(), self.made.as_ref())
    }
}

/// A temp file, and how it is as it was made.
fn begin(task: &Task, old: Option<&Old>) -> Result<(File, Metadata)> {
    let place = &task.place;
    let (temp, made) = create(task)?;
    // ext4 writes back at its close what was emptied once (auto_da_alloc, ext4(5)).
    if made.len() > 0 {
        temp.set_len(0).map_err(place.error("write"))?;
    }
    belongings::prepare(old, &temp);
    if task.options.fsync {
        task.synced.watch(&made, &place.dir);
    }
    if task.options.preallocate {
        sys::allocate(&temp, 0..task.wanted.length)
            .map_err(|error| task.failed("allocate", error, OldFile::Whole))?;
    }
    Ok((temp, made))
}

/// A temp file of this run alone: its own, or what an earlier one left and nobody holds.
fn create(task: &Task) -> Result<(File, Metadata)> {
    let place = &task.place;
    let failed = |error| task.failed("create the temp file of", error, OldFile::Whole);
    let look = |temp: File| {
        let made = temp.metadata().map_err(place.error("look at"))?;
        Ok((temp, made))
    };
    let temp = match place.create_new(Working::Temp) {
        Ok(temp) if place.is_own => {
            let (temp, made) = look(place.locked(temp)?)?;
            // Another run of this user that went on from it before it was locked has filled it.
            return if made.len() == 0 { Ok((temp, made)) } else { Err(place.replaced()) };
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match place.leftover(Working::Temp).map_err(place.error("open the temp file of"))? {
                Some(leftover) => leftover,
                None => place.create(Working::Temp).map_err(failed)?,
            }
        }
        other => other.map_err(failed)?,
    };
    look(place.locked_temp(temp)?)
}
