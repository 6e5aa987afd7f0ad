//! Makes a file or device here a plain image that is told in order, and reports what became of it.

use std::path::Path;

use crate::confinement::NamedPath;
use crate::error::Result;
use crate::options::Options;
use crate::report::{Changes, Event, Item, ItemKind, Outcome, Phase, Reporter, Stats};
use crate::stream::PlainImage;

/// Makes `path` the image that `fill` tells.
///
/// # Errors
///
/// When it cannot be written; what `fill` returns. Then the old file is as it was; a device is written.
pub fn make(
    path: &Path,
    options: &Options,
    umask: u32,
    reporter: &dyn Reporter,
    fill: impl FnOnce(&mut PlainImage) -> Result<()>,
) -> Result<Stats> {
    let mut image = PlainImage::open(&NamedPath::here(path), options, umask)?;
    image.warning.iter().for_each(|warning| reporter.event(Event::Warning(warning)));
    if let Err(error) = fill(&mut image) {
        return Err(image.give_up(error));
    }
    let mut stats = Stats { files_total: 1, apparent_bytes: image.length(), ..Stats::default() };
    (stats.matched_bytes, stats.sent_data_bytes) = (image.kept, image.lacked);
    stats.data_bytes = image.kept + image.lacked;
    reporter.event(Event::Phase(Phase::WritingBack));
    let (finished, changed) = image.finish()?;
    stats.files_sent = changed.into();
    finished.note(path).iter().for_each(|note| reporter.event(Event::Warning(note)));
    (stats.written_bytes, stats.punched_bytes) = (finished.written, finished.punched);
    if let Some(failure) = finished.unset {
        stats.count_unset(failure.code);
        reporter.event(Event::Unset(&failure));
    }
    Ok(stats)
}

/// Tells of the only file of a run.
pub fn report(path: &Path, stats: &Stats, reporter: &dyn Reporter) {
    let item = Item {
        path: path.as_os_str().as_encoded_bytes(),
        source: None,
        order: None,
        kind: ItemKind::File { length: Some(stats.apparent_bytes) },
        mode: None,
        mtime: None,
        owner: None,
    };
    let outcome =
        if stats.files_sent > 0 { Outcome::Sent(stats.sent_data_bytes) } else { Outcome::Unchanged };
    reporter.event(Event::File(item, outcome, Changes::default()));
}
