//! The way of a block device, and of a file that the user wants written in place: what comes
//! goes where it belongs, at once.

use std::fs::File;
use std::io;
use std::ops::Range;

use crate::apply::attributes::belongings;
use crate::apply::commit::{OldFile, Task};
use crate::apply::place::Old;
use crate::apply::ranges;
use crate::apply::recover::{ReadBack, forget_stage};
use crate::error::{Failure, Result};
use crate::hashmap::Hash;

pub struct Direct {
    old: Old,
    /// Its content may have changed.
    has_begun: bool,
}

impl Direct {
    pub fn new(old: Old) -> Direct {
        Direct { old, has_begun: false }
    }

    pub fn old(&self) -> &Old {
        &self.old
    }

    /// The file, to be written.
    pub fn file(&mut self, task: &Task) -> Result<&File> {
        if !self.has_begun && !self.old.is_device() {
            task.place.copy_to_backup(&self.old.file)?;
            belongings::end_privileges(&self.old.file).map_err(task.place.error("write"))?;
        }
        self.has_begun = true;
        Ok(&self.old.file)
    }

    /// Makes a range zero.
    pub fn zero(&mut self, task: &Task, range: Range<u64>) -> Result<io::Result<()>> {
        let is_device = self.old.is_device();
        let file = self.file(task)?;
        Ok(if is_device {
            ranges::zero_device(file, range)
        } else {
            ranges::make_zero(file, task.to_page_at_end(range), task.options.preallocate)
        })
    }

    /// Content first: a time that is right says that the content is. See step 7 of [`apply`](crate::apply).
    pub fn finish(&mut self, task: &Task, root: &Hash) -> Result<Option<Failure>> {
        if self.old.state.len() != task.wanted.length {
            self.file(task)?;
        }
        let (file, place) = (&self.old.file, &task.place);
        if self.old.is_device() {
            task.sync(file, OldFile::PartlyWritten)?;
            task.verify(file, root, ReadBack::Written)?;
            return Ok(None);
        }
        task.set_length(file, Some(&self.old))
            .map_err(|error| task.failed("set the length of", error, OldFile::PartlyWritten))?;
        task.sync(file, OldFile::PartlyWritten)?;
        task.verify(file, root, ReadBack::Written)?;
        let unset = task.wanted.attributes.set(file, &place.path)?;
        task.sync(file, OldFile::PartlyWritten)?;
        if !place.is_named(&place.name, file).map_err(place.error("look at"))? {
            return Err(place.replaced());
        }
        if task.has_leftover_stage() {
            forget_stage(place, task.options.fsync).map_err(place.error("clean up after"))?;
        }
        Ok(unset)
    }
}
