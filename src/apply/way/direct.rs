//! The way of a block device, and of a file that the user wants written in place: what comes
//! goes where it belongs, at once.

use std::fs::File;
use std::io;
use std::ops::Range;

use crate::apply::commit::{OldFile, Task};
use crate::apply::place::Old;
use crate::apply::ranges;
use crate::apply::recover::forget_stage;
use crate::error::Result;
use crate::hashmap::Hash;

pub struct Direct {
    old: Old,
}

impl Direct {
    pub fn new(old: Old) -> Direct {
        Direct { old }
    }

    pub fn old(&self) -> &Old {
        &self.old
    }

    pub fn file(&self) -> &File {
        &self.old.file
    }

    /// Makes a range zero.
    pub fn zero(&self, task: &Task, range: Range<u64>) -> io::Result<()> {
        if self.old.is_device() {
            return ranges::zero_device(self.file(), range);
        }
        ranges::make_zero(self.file(), task.to_page_at_end(range), task.options.preallocate)
    }

    /// Content first: a time that is right says that the content is. See step 7 of [`apply`](crate::apply).
    pub fn finish(&self, task: &Task, root: &Hash) -> Result<()> {
        let (file, place) = (&self.old.file, &task.place);
        if self.old.is_device() {
            task.sync(file, OldFile::PartlyWritten)?;
            return task.verify(file, root);
        }
        task.set_length(file, Some(&self.old))
            .map_err(|error| task.failed("set the length of", error, OldFile::PartlyWritten))?;
        task.sync(file, OldFile::PartlyWritten)?;
        task.verify(file, root)?;
        task.wanted.attributes.set(file).map_err(place.error("set the attributes of"))?;
        task.sync(file, OldFile::PartlyWritten)?;
        if !place.is_named(&place.name, file).map_err(place.error("look at"))? {
            return Err(place.replaced());
        }
        if task.has_leftover_stage() {
            forget_stage(place, task.options.fsync).map_err(place.error("clean up after"))?;
        }
        Ok(())
    }
}
