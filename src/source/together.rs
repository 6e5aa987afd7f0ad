//! How several sources go together at the destination.

use crate::confinement::NamedPath;

/// Whether what a directory holds may have to be told of in several pieces: a source goes
/// where another one goes, or below that.
pub fn merges(sources: &[NamedPath]) -> bool {
    if sources.len() < 2 {
        return false;
    }
    let as_directory = |source: &NamedPath| {
        let mut target = source.target();
        if !target.is_empty() {
            target.push(b'/');
        }
        target
    };
    let mut places: Vec<_> = sources.iter().map(as_directory).collect();
    places.sort_unstable();
    places.windows(2).any(|pair| matches!(pair, [a, b] if b.starts_with(a)))
}
