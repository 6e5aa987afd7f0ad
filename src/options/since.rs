//! What is known of the only source before any of it is read.

use std::path::PathBuf;

/// What the source was made from, and where it is told what has changed since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Since {
    /// An image that is here; with a list also the map of one.
    pub old: PathBuf,
    /// A list of what has changed. `None`: what both files share is the same.
    pub changed: Option<PathBuf>,
}
