//! One file of a local copy, from its name to its result.

use crate::apply::Destination;
use crate::apply::tree::LastDirectory;
use crate::error::{Error, Result};
use crate::hashmap::Hash;
use crate::hashmap::compare::{Hashing, OldContent};
use crate::report::{Event, Outcome, Phase};
use crate::scan::{self, FileImage, Seen};
use crate::source::{self, Kind, Source};
use crate::sync::local::open::{Found, Preview};
use crate::sync::local::update::{Counts, Update};
use crate::sync::local::{Job, LocalCopy, lock};

/// Files with more data than this have all cores to themselves.
const LARGE: u64 = 1 << 20;
/// A file of which more than this was written takes a moment to be written back.
const WORTH_TELLING: u64 = 8 << 20;

/// Why a file was not made equal.
pub(super) enum Stop {
    /// The source changed while it was read.
    Changed,
    /// The source cannot be read.
    Source(Error),
    /// The destination cannot be made equal.
    Destination(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Destination(error)
    }
}

/// What was put into a destination.
struct Filled {
    /// The root hash of the source; of no meaning when nobody needs it.
    root: Hash,
    counts: Counts,
}

/// A source that is being read, and the state that it was in before.
struct Opened {
    image: FileImage,
    seen: Seen,
}

impl LocalCopy<'_> {
    /// Makes one file equal, and reports it.
    pub(super) fn file(&self, job: Job, last: &mut LastDirectory) {
        match self.make_equal(&job, last) {
            Ok(outcome) => self.report(&job.source, outcome),
            Err(Stop::Changed) => self.try_again(job.source),
            Err(Stop::Source(error)) => self.source_failed(&source::lost(&error)),
            Err(Stop::Destination(error)) => self.failed(&error.to_failure()),
        }
    }

    fn make_equal(&self, job: &Job, last: &mut LastDirectory) -> Result<Outcome, Stop> {
        let source = &job.source;
        match self.open(job, last)? {
            Found::Equal => {
                if let Kind::File { allocated, .. } = source.kind {
                    self.stats().data_bytes += allocated;
                    self.reporter.event(Event::Done(Phase::Mapping, allocated));
                }
                Ok(Outcome::Unchanged)
            }
            Found::Preview(preview) => self.preview(source, &preview),
            Found::Open(mut destination, resized) => {
                let empty = destination.is_empty() && !self.options.verify && !self.options.preallocate;
                let filled = if empty {
                    self.copy(source, &mut destination)
                } else {
                    self.update(source, &mut destination)
                };
                match filled {
                    Ok(filled) => self.finish(*destination, filled, resized),
                    // On a full disk it would only be in the way, and a copy that was torn
                    // is no better.
                    Err(stop @ Stop::Destination(Error::Space { .. })) => {
                        destination.discard();
                        Err(stop)
                    }
                    Err(Stop::Changed) if empty => {
                        destination.discard();
                        Err(Stop::Changed)
                    }
                    Err(stop) => {
                        destination.keep();
                        Err(stop)
                    }
                }
            }
        }
    }

    /// Finds out what would be sent.
    fn preview(&self, source: &Source, preview: &Preview) -> Result<Outcome, Stop> {
        let Opened { image, seen } = open_source(source, self.options.hole_map)?;
        let old = match &preview.basis {
            Some(basis) => OldContent::Image(basis.image.as_ref(), basis.length),
            None => OldContent::Zeros,
        };
        let _cores = lock(&self.cores);
        let mut update = Update::new(self, None, seen.length, Hashing::Unneeded);
        update.run(&image, old).map_err(|error| error.named(&source.path, &preview.path))?;
        if !seen.is_still(image.file()) {
            return Err(Stop::Changed);
        }
        let (_, counts) = update.end()?;
        Ok(self.outcome(&counts, preview.resized))
    }

    /// Fills a destination that is empty.
    fn copy(&self, source: &Source, destination: &mut Destination) -> Result<Filled, Stop> {
        let Kind::File { allocated, .. } = source.kind else { return Err(Stop::Changed) };
        let Opened { image, seen } = open_source(source, self.options.hole_map)?;
        self.stats().data_bytes += allocated;
        let _cores = (allocated > LARGE).then(|| lock(&self.cores));
        let sent = destination.copy_from(image.file(), &source.path, self.options.hole_map, |bytes| {
            self.stats().sent_data_bytes += bytes;
            self.reporter.event(Event::Done(Phase::Sending, bytes));
        })?;
        if !seen.is_still(image.file()) {
            return Err(Stop::Changed);
        }
        Ok(Filled { root: Hash::default(), counts: Counts { sent, kept: 0, differs: true } })
    }

    /// Holds a source against what the destination has, and writes what differs.
    fn update(&self, source: &Source, destination: &mut Destination) -> Result<Filled, Stop> {
        let Kind::File { allocated, .. } = source.kind else { return Err(Stop::Changed) };
        let Opened { image, seen } = open_source(source, self.options.hole_map)?;
        let image = if scan::exceeds_cache(allocated) { image.sparing_cache() } else { image };
        let basis = destination.basis();
        let old = match &basis {
            Some(basis) => OldContent::Image(basis.image.as_ref(), basis.length),
            None if destination.is_blank() => OldContent::Zeros,
            None => OldContent::Unknown,
        };
        let most = allocated.max(basis.as_ref().map_or(0, |basis| basis.length));
        let _cores = (most > LARGE).then(|| lock(&self.cores));
        let hashing = if self.wants_root(destination) { Hashing::Wanted } else { Hashing::Unneeded };
        let path = destination.path().to_path_buf();
        let mut update = Update::new(self, Some(destination), seen.length, hashing);
        update.run(&image, old).map_err(|error| error.named(&source.path, &path))?;
        if !seen.is_still(image.file()) {
            return Err(Stop::Changed);
        }
        let (root, counts) = update.end()?;
        Ok(Filled { root, counts })
    }

    /// Completes a file that has its content.
    fn finish(&self, destination: Destination, filled: Filled, resized: bool) -> Result<Outcome, Stop> {
        let Filled { root, counts } = filled;
        if counts.sent > WORTH_TELLING {
            self.reporter.event(Event::Phase(Phase::WritingBack));
        }
        let (written, punched) = destination.finish(&root, counts.kept)?;
        let mut stats = self.stats();
        stats.written_bytes += written;
        stats.punched_bytes = stats.punched_bytes.saturating_add(punched);
        drop(stats);
        Ok(self.outcome(&counts, resized))
    }

    fn outcome(&self, counts: &Counts, resized: bool) -> Outcome {
        if !(counts.differs || resized) {
            return Outcome::Unchanged;
        }
        self.stats().files_sent += 1;
        Outcome::Sent(counts.sent)
    }

    /// Queues a second try; a third one is a failure.
    fn try_again(&self, source: Source) {
        if matches!(source.kind, Kind::File { retry: true, .. }) {
            let why =
                "changed while it was read, twice; send it when nothing writes to it, or from a snapshot";
            return self.source_failed(&Error::refused(&source.path, why).to_failure());
        }
        match source::look_again(&source) {
            Ok(mut source) => {
                if let Kind::File { retry, .. } = &mut source.kind {
                    *retry = true;
                }
                lock(&self.again).push(source);
            }
            Err(error) => self.source_failed(&source::lost(&error)),
        }
    }
}

/// Opens a source, which must be as long as it was found.
fn open_source(source: &Source, hole_map: bool) -> Result<Opened, Stop> {
    let (file, _) = scan::open_image(&source.path).map_err(Stop::Source)?;
    let seen = Seen::of(&file).map_err(Error::file("look at", &source.path)).map_err(Stop::Source)?;
    match source.kind {
        Kind::File { length, .. } if length == seen.length => {
            Ok(Opened { image: FileImage::new(file, hole_map), seen })
        }
        _ => Err(Stop::Changed),
    }
}
