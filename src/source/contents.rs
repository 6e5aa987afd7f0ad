//! What the directories of the sources hold, told by itself: for who removes what else is
//! at the destination.

use crate::confinement::NamedPath;
use crate::error::{Failure, Result, code};
use crate::options::{Delete, DeleteWhen, Options};
use crate::source::{Contents, Found, Tells, Walk, merges};

/// What is told.
#[derive(Debug)]
pub enum Told {
    /// A directory holds this, and maybe more.
    Contents(Contents),
    /// What else is in directories that were told of since this came last can go.
    RemoveOthers,
}

/// What the user is told where nothing is removed any more.
pub const NOTHING_REMOVED: &str = "nothing more was removed that the source does not have, since not everything could be \
                                   read or transferred; --ignore-errors removes it all the same";

impl Delete {
    /// When entries are removed of directories that may be `merged` from several sources:
    /// not before all of those are known.
    fn when_merged(self, merged: bool) -> DeleteWhen {
        match self.when {
            DeleteWhen::During if merged => DeleteWhen::After,
            when => when,
        }
    }

    /// Whether nothing may be removed after a failure: what could not be read may be there.
    pub fn is_ended_by(self, failure: &Failure) -> bool {
        !self.ignore_errors && failure.code != code::VANISHED
    }
}

/// When entries are removed that these sources do not have, if they are. What a directory holds
/// is known late where empty ones are pruned.
pub fn deletes(sources: &[NamedPath], options: &Options) -> Option<DeleteWhen> {
    let merged = options.directories.prune_empty || merges(sources);
    options.delete.map(|delete| delete.when_merged(merged))
}

/// What a walk of its own for the contents of directories came to.
#[derive(Debug, Default)]
pub struct ContentsTold {
    /// Not everything that can go was told of.
    pub is_cut: bool,
    /// What could not be read first.
    pub failure: Option<Failure>,
}

/// Tells of all directories below the sources, in a walk of its own, up to what cannot be read.
///
/// # Errors
///
/// Those of `tell`.
pub fn tell_contents(
    sources: &[NamedPath],
    options: &Options,
    tell: &mut dyn FnMut(Told) -> Result<()>,
) -> Result<ContentsTold> {
    let mut told = ContentsTold::default();
    let Some(delete) = options.delete else { return Ok(told) };
    let walk = || Walk::new(sources, options).telling(Tells::Contents);
    let mut ends = |found: &Found| {
        let Found::Failed(failure) = found else { return false };
        told.failure.get_or_insert_with(|| failure.clone());
        told.is_cut = delete.is_ended_by(failure);
        told.is_cut
    };
    if delete.when == DeleteWhen::Before && walk().any(|found| ends(&found)) {
        return Ok(told);
    }
    let merges = merges(sources);
    for found in walk() {
        if ends(&found) {
            return Ok(told);
        }
        let Found::Contents(contents) = found else { continue };
        tell(Told::Contents(contents))?;
        if !merges {
            tell(Told::RemoveOthers)?;
        }
    }
    tell(Told::RemoveOthers).map(|()| told)
}
