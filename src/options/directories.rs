//! Which directories of the sources are made, and what of a source is not there.

use serde::{Deserialize, Serialize};

/// Which directories of the sources are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directories {
    /// A source keeps its path, and not only its last name.
    pub relative: bool,
    /// The directories on the way to it are made as they are at the source.
    pub implied: bool,
    /// A directory is made that is not descended into.
    pub without_recursion: bool,
    /// Those in which nothing else lies are left out.
    pub prune_empty: bool,
}

/// What becomes of a source that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Missing {
    /// It is an error.
    Failed,
    /// Nothing.
    Ignored,
    /// What the destination has in its place is removed.
    Deleted,
}
