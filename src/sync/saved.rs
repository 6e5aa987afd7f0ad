//! Of what the map can be saved.

use crate::error::Result;
use crate::hashmap::map_file::SavedMap;
use crate::location::Location;
use crate::sync::{FilesFrom, stdin};

/// Refuses to save the map of what is no single image, or in the place of an image.
///
/// # Errors
///
/// [`Error::Usage`](crate::error::Error::Usage), [`Error::Refused`](crate::error::Error::Refused).
pub fn check(
    saved: &SavedMap,
    sources: &[Location],
    listed: Option<&FilesFrom>,
    destination: &Location,
) -> Result<()> {
    let [source] = sources else { return Err(saved.needs_one()) };
    let is_tree = matches!(source, Location::Local(path) if path.is_dir());
    if is_tree || listed.is_some() || stdin::is_stdin(source) {
        return Err(saved.needs_one());
    }
    let (Location::Local(path) | Location::Remote(_, path)) = source;
    let name = path.file_name().unwrap_or_default();
    let ends = [source, destination].into_iter().filter_map(|end| match end {
        Location::Local(path) => Some(path),
        Location::Remote(..) => None,
    });
    ends.flat_map(|end| [end.clone(), end.join(name)]).try_for_each(|image| saved.refuse_for(&image))
}
