//! Where the content of a file goes: into a destination, or in a dry run nowhere, and it is
//! counted what a true run would do.

use std::ops::Range;
use std::path::Path;

use crate::apply::open::Preview;
use crate::apply::{Basis, BasisState, Completion, Destination, Own};
use crate::error::{Error, Result};
use crate::hashmap::cache::MapCache;
use crate::hashmap::{Grid, Hash, MapRecord};
use crate::sys;

/// Where content goes. What is said of the methods of [`Destination`] holds for these.
pub enum Sink {
    Destination(Box<Destination>),
    Preview(Box<Preview>),
}

impl Sink {
    /// How to name it to people.
    pub fn path(&self) -> &Path {
        match self {
            Sink::Destination(destination) => destination.path(),
            Sink::Preview(preview) => preview.path(),
        }
    }

    /// What to compare with.
    pub fn basis(&self) -> Option<Basis> {
        match self {
            Sink::Destination(destination) => destination.basis(),
            Sink::Preview(preview) => preview.other.as_ref().or(preview.basis.as_ref()).cloned(),
        }
    }

    /// What of that stays as it is while it is written.
    pub fn unwritten_basis(&self) -> Option<Basis> {
        match self {
            Sink::Destination(destination) => destination.unwritten_basis(),
            Sink::Preview(_) => self.basis(),
        }
    }

    /// What it has itself, where that is compared with another file.
    pub fn own(&self) -> Option<Own> {
        match self {
            Sink::Destination(destination) => destination.own(),
            Sink::Preview(preview) => {
                preview.other.as_ref()?;
                Some(preview.basis.clone().map_or(Own::Nothing, Own::There))
            }
        }
    }

    /// What is known of what it has.
    pub fn basis_state(&self) -> BasisState {
        match self {
            Sink::Destination(destination) => destination.basis_state(),
            Sink::Preview(preview) => preview.state(),
        }
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        match self {
            Sink::Destination(destination) => destination.is_device(),
            Sink::Preview(preview) => preview.device.is_some(),
        }
    }

    /// Whether what is there is written itself, and changes with each write.
    pub fn is_written_itself(&self) -> bool {
        match self {
            Sink::Destination(destination) => destination.is_written_itself(),
            Sink::Preview(preview) => preview.is_direct,
        }
    }

    /// Whether it holds files open.
    pub fn is_open(&self) -> bool {
        match self {
            Sink::Destination(destination) => destination.is_open(),
            Sink::Preview(preview) => preview.basis.is_some(),
        }
    }

    /// Whether this is a dry run.
    pub fn is_preview(&self) -> bool {
        matches!(self, Sink::Preview(_))
    }

    /// Whether completing it takes a rename, and no more.
    pub fn is_renamed(&self) -> bool {
        match self {
            Sink::Destination(destination) => destination.is_renamed(),
            Sink::Preview(_) => true,
        }
    }

    /// Whether [completing](Sink::complete) it takes a root hash that is right.
    pub fn needs_root(&self) -> bool {
        match self {
            Sink::Destination(destination) => destination.needs_root(),
            Sink::Preview(_) => false,
        }
    }

    /// Begins the map of what it is to have, with so many bytes of `data`, if that may be kept. What stays of an
    /// old file was hashed as it was: from before that on, all changes must show.
    pub fn record_map(&mut self, maps: &MapCache, grid: &Grid, data: u64) -> Option<MapRecord> {
        let map = maps.record(grid, data)?;
        self.watch().then_some(map)
    }

    /// Has the file that is to be the new one be watched, so that its state can be told when it is in place.
    /// Returns whether it is.
    pub fn watch(&mut self) -> bool {
        let Sink::Destination(destination) = self else { return false };
        let own = match destination.own() {
            Some(Own::There(basis)) => Some(basis),
            Some(Own::Nothing) => None,
            None => destination.basis(),
        };
        if let Some(basis) = own {
            let Some((state, file)) = basis.state.as_ref().zip(basis.image.plain_file()) else {
                return false;
            };
            // A write that is under way has left its time already.
            if !state.will_show_changes(file) || !state.is_still(file) || !sys::is_open_here_alone(file) {
                return false;
            }
        }
        destination.watch()
    }

    /// Puts data into a range, whose bytes a dry run need not have.
    ///
    /// # Errors
    ///
    /// Those of the destination; so below.
    pub fn write(&mut self, range: &Range<u64>, bytes: &[u8]) -> Result<()> {
        match self {
            Sink::Destination(destination) => destination.write(range.start, bytes),
            Sink::Preview(preview) => {
                preview.write(range);
                Ok(())
            }
        }
    }

    /// Makes a range zero.
    pub fn zero(&mut self, range: Range<u64>) -> Result<()> {
        match self {
            Sink::Destination(destination) => destination.zero(range),
            Sink::Preview(preview) => {
                preview.zero(range);
                Ok(())
            }
        }
    }

    /// Gives zeros back that take room.
    pub fn free(&mut self, range: Range<u64>) -> Result<()> {
        match self {
            Sink::Destination(destination) => destination.free(range),
            Sink::Preview(preview) => {
                preview.free(range);
                Ok(())
            }
        }
    }

    /// Data in a range stays.
    pub fn keep_range(&mut self, range: Range<u64>) -> Result<()> {
        match self {
            Sink::Destination(destination) => destination.keep_range(range),
            Sink::Preview(_) => Ok(()),
        }
    }

    /// The source may have changed unseen.
    pub fn forget_time(&mut self) {
        if let Sink::Destination(destination) = self {
            destination.forget_time();
        }
    }

    /// Completes it. `length`: that of the source.
    pub fn complete(self, root: &Hash, kept: u64, length: u64) -> Result<Completion> {
        match self {
            Sink::Destination(destination) => destination.complete(root, kept),
            Sink::Preview(preview) => Ok(Completion::Finished(Box::new(preview.finish(length)))),
        }
    }

    /// Keeps what was gathered for the next run.
    pub fn keep(self) {
        if let Sink::Destination(destination) = self {
            destination.keep();
        }
    }

    /// The same after this error, which is returned.
    pub fn give_up(self, error: Error) -> Error {
        match self {
            Sink::Destination(destination) => destination.give_up(error),
            Sink::Preview(_) => error,
        }
    }
}
