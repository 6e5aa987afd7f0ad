//! The four ways in which new content becomes the file: the table in [`apply`](crate::apply).

pub mod clone;
pub mod direct;
pub mod fresh;
pub mod staged;

use std::fs::File;

use crate::apply::commit::{OldFile, Task};
use crate::apply::place::Old;
use crate::apply::way::clone::Replica;
use crate::apply::way::direct::Direct;
use crate::apply::way::fresh::Fresh;
use crate::apply::way::staged::Staged;
use crate::error::{Failure, Result};
use crate::working::Working;

/// How new content becomes the file.
pub enum Way {
    Fresh(Fresh),
    Replica(Replica),
    Staged(Staged),
    Direct(Direct),
}

impl Way {
    /// The file that was there.
    pub fn old(&self) -> Option<&Old> {
        match self {
            Way::Fresh(fresh) => fresh.old(),
            Way::Replica(replica) => replica.old(),
            Way::Staged(staged) => Some(staged.old()),
            Way::Direct(direct) => Some(direct.old()),
        }
    }

    /// Whether working files were made, or what is there is written itself.
    pub fn has_begun(&self) -> bool {
        match self {
            Way::Fresh(fresh) => fresh.has_begun(),
            Way::Replica(replica) => replica.has_begun(),
            Way::Staged(staged) => staged.has_begun(),
            Way::Direct(_) => true,
        }
    }

    /// Whether it goes on from what an interrupted run had made.
    pub fn is_resumed(&self) -> bool {
        match self {
            Way::Fresh(fresh) => fresh.is_resumed(),
            Way::Staged(staged) => staged.is_resumed(),
            Way::Replica(_) | Way::Direct(_) => false,
        }
    }

    /// Whether it is begun from a file elsewhere.
    pub fn is_of_another(&self) -> bool {
        matches!(self, Way::Replica(replica) if replica.old().is_none())
    }

    /// Has what is to be renamed ready for that: length, attributes. `None`: this way ends
    /// otherwise. The inner one: which attributes may not be set.
    pub fn complete(&mut self, task: &Task) -> Result<Option<Option<Failure>>> {
        match self {
            Way::Fresh(fresh) => fresh.complete(task).map(Some),
            Way::Replica(replica) => replica.complete(task).map(Some),
            Way::Staged(_) | Way::Direct(_) => Ok(None),
        }
    }

    /// Has what is to be renamed made, as it may have to wait.
    pub fn check_ready(&mut self, task: &Task) -> Result<()> {
        match self {
            Way::Replica(replica) => replica.check_ready(task),
            way => way.file(task).map(drop),
        }
    }

    /// The file that is written to.
    pub fn file(&mut self, task: &Task) -> Result<&File> {
        match self {
            Way::Fresh(fresh) => fresh.file(task),
            Way::Replica(replica) => replica.file(task),
            Way::Staged(staged) => staged.file(task),
            Way::Direct(direct) => direct.file(task),
        }
    }

    /// The temp file, where there is one.
    pub fn temp(&self) -> Option<&File> {
        match self {
            Way::Fresh(fresh) => fresh.temp(),
            Way::Replica(replica) => replica.temp(),
            Way::Staged(_) | Way::Direct(_) => None,
        }
    }

    pub fn is_device(&self) -> bool {
        matches!(self, Way::Direct(direct) if direct.old().is_device())
    }

    /// The device that its temp file lies on, if it has one.
    pub fn device(&self) -> Option<u64> {
        match self {
            Way::Fresh(fresh) => fresh.device(),
            Way::Replica(replica) => replica.device(),
            Way::Staged(_) | Way::Direct(_) => None,
        }
    }

    /// What an error before the end leaves of the old file.
    pub fn old_file(&self) -> OldFile {
        if matches!(self, Way::Direct(_)) { OldFile::PartlyWritten } else { OldFile::Whole }
    }

    /// What was made so far beside the old file.
    pub fn working_files(&self) -> &'static [Working] {
        match self {
            _ if !self.has_begun() => &[],
            Way::Fresh(_) | Way::Replica(_) => &[Working::Temp],
            Way::Staged(_) => &[Working::Log, Working::Stage],
            Way::Direct(_) => &[],
        }
    }
}
