//! A file that is missing, and that another directory has: it is linked or copied from there,
//! or not made, as the options want it, and nothing of it is sent.

use std::fs::File;

use crate::apply::aside::alternate::Alike;
use crate::apply::aside::similar::{From, READ};
use crate::apply::commit::Task;
use crate::apply::open::{Opened, Opening, Setup};
use crate::apply::place::{Access, Old, Place};
use crate::apply::way::Way;
use crate::apply::way::clone::Replica;
use crate::apply::{Destination, Finished, QuickCheck, Wanted};
use crate::error::Result;
use crate::hashmap::{self, Grid, Hash};
use crate::options::AlternateKind;
use crate::report::Changes;
use crate::scan::{FileImage, FileState};

/// What can be done about a file that is missing.
pub enum Elsewhere {
    /// Nothing: no other directory has it, as far as can be told.
    No,
    /// It is as wanted: linked, or not made. How the destination differed.
    Done(Changes),
    /// Its content is copied from there.
    Copied(Box<From>),
}

/// Looks in the other directories, and links what can be linked. A dry run makes nothing.
///
/// # Errors
///
/// When a link cannot be made.
pub fn take(place: &Place, wanted: &Wanted, setup: &Setup) -> Result<Elsewhere> {
    let Some(kind) = place.alternate_kind() else { return Ok(Elsewhere::No) };
    let mut equal: Vec<(File, Alike)> =
        place.elsewhere().filter_map(|alike| open_equal(alike, wanted, setup)).collect();
    let has_all = |(file, alike): &(File, Alike)| wanted.attributes.are_all_of(&alike.stat, file);
    let exact = equal.iter().position(has_all);
    if equal.is_empty() {
        return Ok(Elsewhere::No);
    }
    let (file, alike) = equal.swap_remove(exact.unwrap_or(0));
    let is_done = match kind {
        _ if setup.options.dry_run => true,
        AlternateKind::Compare => exact.is_some(),
        AlternateKind::Link => exact.is_some() && place.put_link_if_possible(&alike)?,
        AlternateKind::Copy => false,
    };
    if is_done {
        let is_left = kind == AlternateKind::Compare && exact.is_some();
        return Ok(Elsewhere::Done(Changes::default().with(Changes::NEW, !is_left)));
    }
    let error = || place.error("open what to begin from for");
    let (state, settled) = FileState::settled(&file).map_err(error())?;
    if !settled {
        return Ok(Elsewhere::No);
    }
    let metadata = file.metadata().map_err(error())?;
    let old = Old { file, state: metadata, access: Access::Read, turn: None };
    Ok(Elsewhere::Copied(Box::new(From { old, state, name: None, is_named: false })))
}

/// Makes the file a clone or copy of that.
///
/// # Errors
///
/// Those of [`Destination::finish`].
pub fn copy(task: Task, from: Box<From>) -> Result<Opening> {
    let recovered = task.recovered.clone();
    let way = Way::Replica(Replica::of_another(*from));
    let Finished { unset, .. } = Destination::new(task, way, None).finish(&Hash::default(), 0)?;
    Ok(Opening { recovered, opened: Opened::Equal { unset }, changes: Changes::NEW })
}

/// Opens a file of another directory, if it is equal.
fn open_equal(alike: Alike, wanted: &Wanted, setup: &Setup) -> Option<(File, Alike)> {
    let open = || alike.place.open(&alike.place.name, READ).ok();
    let file = match wanted.quick_check {
        QuickCheck::Content { root, .. } if setup.may_be_equal(&alike.stat, wanted) => {
            open().filter(|file| has_content(file, &root, wanted.length, setup))
        }
        _ if setup.is_equal(&alike.place, &alike.stat, wanted) => open(),
        _ => None,
    };
    file.map(|file| (file, alike))
}

/// Whether a file that nobody writes to has the content of a root hash.
fn has_content(file: &File, root: &Hash, length: u64, setup: &Setup) -> bool {
    let Ok((state, true)) = FileState::settled(file) else { return false };
    let Ok(image) = file.try_clone() else { return false };
    let grid = Grid { length, block: setup.options.block_size };
    let found = hashmap::root_of(&FileImage::new(image, setup.options.hole_map), &grid, |_| true);
    found.is_ok_and(|found| found == Some(*root)) && state.is_still(file)
}
