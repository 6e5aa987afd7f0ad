//! How several sources go together at the destination.

use std::collections::HashSet;
use std::path::Path;

use crate::confinement::NamedPath;
use crate::source::named::{base_name, names_contents};

/// Whether what a directory holds may have to be told of in several pieces: it is made of
/// several sources.
pub fn merges(sources: &[NamedPath]) -> bool {
    Together::of(sources) != Together::Apart
}

/// How several sources go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Together {
    /// Each goes to a place of its own.
    Apart,
    /// Some have one name.
    UnderOneName,
    /// The contents of one go where the others go.
    AtTheTop,
}

impl Together {
    pub fn of(sources: &[NamedPath]) -> Together {
        let named = sources.iter().map(NamedPath::path);
        let goes_to = |path: &Path| if names_contents(path) { Vec::new() } else { base_name(path) };
        let places = named.map(goes_to).collect::<HashSet<_>>();
        match sources.len() {
            0 | 1 => Together::Apart,
            _ if places.contains(&Vec::new()) => Together::AtTheTop,
            count if places.len() < count => Together::UnderOneName,
            _ => Together::Apart,
        }
    }
}
