//! One file of a local copy, from its name to its result.

use std::io;
use std::path::PathBuf;

use crate::apply::tree::{DelayedFile, LastDirectory};
use crate::apply::{
    BasisState, Committer, Completion, Destination, Finished, Opened, Opening, Precision, Preview,
    QuickCheck, Sink, Wanted,
};
use crate::error::{Error, Result, lock};
use crate::hashmap::compare::{Hashing, OldContent};
use crate::hashmap::map_file::SavedMap;
use crate::hashmap::{self, Grid, Hash, Item, MapRecord};
use crate::in_use;
use crate::options::DeleteWhen;
use crate::remote;
use crate::report::{Changes, Event, Outcome, Phase};
use crate::scan::{self, Content};
use crate::source::{self, Kind, OpenSource, Source};
use crate::sync::local::update::{Compared, Update};
use crate::sync::local::{Job, LocalCopy};

/// Files with more data than this have all cores to themselves.
const LARGE: u64 = 1 << 20;
/// A file of which more than this was written takes a moment to be written back.
const WORTH_TELLING: u64 = 8 << 20;

/// Why a file was not made equal.
pub(super) enum FileError {
    /// The source changed while it was read.
    Changed,
    /// The source cannot be read.
    Source(Error),
    /// The destination cannot be made equal.
    Destination(Error),
}

impl From<Error> for FileError {
    fn from(error: Error) -> FileError {
        FileError::Destination(error)
    }
}

/// What was put into a destination.
pub(super) struct Filled {
    source: Source,
    /// How to name the destination to people.
    path: PathBuf,
    changes: Changes,
    /// The root hash of the source; of no meaning when nobody needs it.
    root: Hash,
    counts: Compared,
    /// Every change of the source since then shows.
    settled: bool,
    /// The map of the source, if that is saved.
    map: Option<MapRecord>,
}

/// How a source was read.
struct Read {
    /// Its root hash; of no meaning when nobody needs it.
    root: Hash,
    /// What was done with it.
    counts: Compared,
    /// Every change of it since then shows.
    settled: bool,
    /// Its map, if that is saved.
    map: Option<MapRecord>,
}

/// What came of a file so far.
enum Made {
    /// Its result.
    Done(Outcome),
    /// It will be told when it is in its place.
    Later,
}

impl LocalCopy<'_> {
    /// Makes one file equal, and reports it, now or when it is on storage.
    pub(super) fn file(&self, job: Job, last: &mut LastDirectory, committer: &Committer<Filled>) {
        match self.make_equal(&job, last, committer) {
            Ok((Made::Done(outcome), changes)) => self.report(&job.source, outcome, changes),
            Ok((Made::Later, _)) => {}
            Err(FileError::Changed) => self.try_again(job.source),
            Err(FileError::Source(error)) => self.file_failed(&job.source, &error),
            Err(FileError::Destination(error)) => self.destination_failed(&job.source, &error),
        }
    }

    fn destination_failed(&self, source: &Source, error: &Error) {
        self.links().failed(source);
        self.failed(&error.to_failure());
    }

    fn make_equal(
        &self,
        job: &Job,
        last: &mut LastDirectory,
        committer: &Committer<Filled>,
    ) -> Result<(Made, Changes), FileError> {
        let source = &job.source;
        let (opened, changes) = self.open(job, last)?;
        let made = match opened {
            Opened::Equal { unset } => {
                self.unset(unset);
                if let Kind::File { allocated, .. } = source.kind {
                    self.stats().data_bytes += allocated;
                    self.reporter.event(Event::Done(Phase::Mapping, allocated));
                }
                self.arrived(source);
                Made::Done(Outcome::Unchanged)
            }
            Opened::Preview(preview) => self.make(source, Sink::Preview(preview), changes, committer)?,
            Opened::Different(destination) => {
                self.make(source, Sink::Destination(destination), changes, committer)?
            }
        };
        Ok((made, changes))
    }

    /// Steps 3 and 4 of [`local`](crate::sync::local).
    fn make(
        &self,
        source: &Source,
        sink: Sink,
        changes: Changes,
        committer: &Committer<Filled>,
    ) -> Result<Made, FileError> {
        let filled = self.fill(source, sink, changes)?;
        self.finish(filled, committer);
        Ok(Made::Later)
    }

    /// Step 2 of [`local`](crate::sync::local).
    fn open(&self, job: &Job, last: &mut LastDirectory) -> Result<(Opened, Changes)> {
        let Kind::File { length, allocated, retry, .. } = job.source.kind else {
            return Ok((Opened::Equal { unset: None }, Changes::default()));
        };
        let options = &self.options;
        let may_lack = options.dry_run || options.transfer.existing;
        let Some(place) = self.root.place_after(last, &job.source.target, may_lack)? else {
            if options.transfer.existing {
                return Ok((Opened::Equal { unset: None }, Changes::LEFT.with(Changes::BELOW, true)));
            }
            let preview = Box::new(Preview::of_nothing(&self.root.path_of(&job.source.target)));
            return Ok((Opened::Preview(preview), Changes::NEW.with(Changes::TRANSFER, true)));
        };
        let path = place.path.clone();
        let quick_check = if retry { QuickCheck::Never } else { QuickCheck::Time(Precision::Nanoseconds) };
        let (whole, attributes) = (options.whole_file, job.attributes.clone());
        let wanted = Wanted { length, data: allocated, whole, quick_check, attributes };
        let opening = Destination::open(place, wanted, &self.setup);
        last.after(&opening);
        let Opening { recovered, opened, changes } = opening?;
        if let Some(warning) = recovered.warning(&path) {
            self.reporter.event(Event::Warning(&warning));
        }
        if let Opened::Different(destination) = &opened
            && let Some(choice) = destination.choice(&job.source.target)
        {
            self.reporter.event(Event::Choice(&choice));
        }
        Ok((opened, changes))
    }

    /// Step 3 of [`local`](crate::sync::local).
    fn fill(&self, source: &Source, mut sink: Sink, changes: Changes) -> Result<(Sink, Filled), FileError> {
        let copies = self.copies(source, &sink) && self.may_be_hashed_later(source)?;
        let filled = match &mut sink {
            Sink::Destination(destination) if copies => self.copy(source, destination),
            Sink::Preview(preview) if copies => match self.foretell_clone(source, preview) {
                Ok(Some(cloned)) => Ok(cloned),
                Ok(None) => self.update(source, &mut sink),
                Err(error) => Err(error),
            },
            _ => self.update(source, &mut sink),
        };
        match filled {
            Ok(Read { root, counts, settled, map }) => {
                let path = sink.path().to_path_buf();
                let filled = Filled { source: source.clone(), path, changes, root, counts, settled, map };
                Ok((sink, filled))
            }
            Err(FileError::Destination(error)) => Err(FileError::Destination(sink.give_up(error))),
            Err(error) => {
                match (&error, sink) {
                    // A copy that was torn is of no use.
                    (FileError::Changed, Sink::Destination(destination)) if copies => destination.discard(),
                    (_, sink) => sink.keep(),
                }
                Err(error)
            }
        }
    }

    fn warn_of_shortage(&self, destination: &Destination) {
        if let Some(shortage) = destination.shortage() {
            self.reporter.event(Event::Warning(&shortage));
        }
    }

    /// Whether all of a source is copied, as nothing is there. Where it is to be read back,
    /// or zeros are to be allocated, it is compared with nothing.
    fn copies(&self, source: &Source, destination: &Sink) -> bool {
        let has_content = matches!(source.kind, Kind::File { length: 1.., .. });
        let is_plain = !self.options.verify && !self.options.preallocate;
        destination.basis_state() == BasisState::Blank && has_content && is_plain
    }

    /// Whether a map that is saved may be that of a source which is read once more for it: its changes
    /// show. Otherwise what is written is what was hashed.
    fn may_be_hashed_later(&self, source: &Source) -> Result<bool, FileError> {
        if self.saved.is_none() || self.options.dry_run {
            return Ok(true);
        }
        let opened = source.open(&self.options).map_err(FileError::Source)?.ok_or(FileError::Changed)?;
        Ok(opened.settled && opened.state.shows_changes())
    }

    /// What a dry run can tell without comparing: that all is shared with a source. `None`: it may
    /// not be.
    fn foretell_clone(&self, source: &Source, preview: &mut Preview) -> Result<Option<Read>, FileError> {
        let Kind::File { allocated: sent, .. } = source.kind else { return Err(FileError::Changed) };
        let opened = self.open_source(source, preview.device.is_some())?;
        if !preview.would_clone(opened.image.file()) {
            return Ok(None);
        }
        preview.wrote(sent);
        let mut stats = self.stats();
        (stats.data_bytes, stats.sent_data_bytes) = (stats.data_bytes + sent, stats.sent_data_bytes + sent);
        drop(stats);
        self.reporter.event(Event::Done(Phase::Sending, sent));
        let counts = Compared { sent, kept: 0 };
        Ok(Some(Read { root: Hash::default(), counts, settled: opened.settled, map: None }))
    }

    /// Fills a destination that is empty.
    fn copy(&self, source: &Source, destination: &mut Destination) -> Result<Read, FileError> {
        let Kind::File { length, allocated, .. } = source.kind else { return Err(FileError::Changed) };
        let opened = self.open_source(source, destination.is_device())?;
        self.stats().data_bytes += allocated;
        let _cores = (scan::may_hold(allocated, length) > LARGE).then(|| lock(&self.cores));
        let told = |bytes| {
            self.stats().sent_data_bytes += bytes;
            self.reporter.event(Event::Done(Phase::Sending, bytes));
        };
        let sent = match destination.clone_from(opened.image.file())? {
            Some(bytes) => {
                told(bytes);
                bytes
            }
            None => {
                self.warn_of_shortage(destination);
                let paced = |bytes| {
                    told(bytes);
                    self.pace.wrote(usize::try_from(bytes).unwrap_or(usize::MAX));
                };
                destination.copy_from(&opened.image, &source.path, paced)?
            }
        };
        let map = self.saved.map(|saved| self.map_of(source, &opened, saved)).transpose()?.flatten();
        let settled = self.check_source(source, &opened)?;
        if !settled {
            destination.forget_time();
        }
        Ok(Read { root: Hash::default(), counts: Compared { sent, kept: 0 }, settled, map })
    }

    /// The map of a source that was copied unread.
    fn map_of(
        &self,
        source: &Source,
        opened: &OpenSource,
        saved: &SavedMap,
    ) -> Result<Option<MapRecord>, FileError> {
        let grid = Grid { length: opened.state.length, block: self.options.block_size };
        let Some(mut map) = saved.begin(&grid) else { return Ok(None) };
        let mut at = 0;
        let hashed = hashmap::hash_image(&opened.image, &grid, |batch| {
            map.add_items(at, &batch.items);
            at += batch.items.iter().map(Item::blocks).sum::<u64>();
            self.stats().hashed_bytes += batch.bytes_read as u64;
            Ok::<_, io::Error>(!remote::is_interrupted())
        });
        hashed.map_err(Error::file("read", &source.path)).map_err(FileError::Source)?;
        Ok(Some(map))
    }

    /// Holds a source against what the destination has, and writes what differs.
    fn update(&self, source: &Source, destination: &mut Sink) -> Result<Read, FileError> {
        if let Sink::Destination(destination) = destination {
            self.warn_of_shortage(destination);
        }
        let Kind::File { length, allocated, .. } = source.kind else { return Err(FileError::Changed) };
        let opened = self.open_source(source, destination.is_device())?;
        let basis = destination.basis();
        let old = match &basis {
            Some(basis) => OldContent::Image(basis.image.as_ref(), basis.length),
            None if destination.basis_state() == BasisState::Blank => OldContent::Zeros,
            None => OldContent::Unknown,
        };
        let most = scan::may_hold(allocated, length).max(basis.as_ref().map_or(0, |basis| basis.length));
        let _cores = (most > LARGE).then(|| lock(&self.cores));
        let saved = self.saved.filter(|_| !destination.is_preview());
        let is_hashed = destination.needs_root() || saved.is_some();
        let hashing = if is_hashed { Hashing::Wanted } else { Hashing::Unneeded };
        let grid = Grid { length: opened.state.length, block: self.options.block_size };
        let map = saved.and_then(|saved| saved.begin(&grid));
        let path = destination.path().to_path_buf();
        let mut update = Update::new(self, &mut *destination, opened.state.length, (hashing, map));
        let same = if most > LARGE { self.same_blocks(&opened, basis.as_ref(), hashing) } else { Vec::new() };
        update.run(&opened.image, old, &same).map_err(|error| error.named(&source.path, &path))?;
        let (root, counts, map) = update.end();
        let settled = self.check_source(source, &opened)?;
        if !settled {
            destination.forget_time();
        }
        Ok(Read { root, counts, settled, map })
    }

    /// Looks whether a source that was read changed meanwhile. Returns whether a change would show.
    fn check_source(&self, source: &Source, opened: &OpenSource) -> Result<bool, FileError> {
        if !opened.is_unchanged() {
            return Err(FileError::Changed);
        }
        if !opened.settled {
            self.reporter.event(Event::Warning(&source::doubt(&source.path)));
        }
        Ok(opened.settled)
    }

    /// The destination has something. What may have other names here is changed when one of them
    /// goes, and may be read under another: it waits. So does all where directories are still to
    /// be told of: what is gone by then would go at the destination, too.
    pub(super) fn arrived(&self, source: &Source) {
        if !self.options.remove_source_files || self.options.dry_run || source.kind == Kind::Directory {
            return;
        }
        let waits = source.has_other_names() || self.when == Some(DeleteWhen::After);
        if waits { lock(&self.arrived).push(source.clone()) } else { self.remove(source) }
    }

    /// Removes a source that the destination has.
    pub(super) fn remove(&self, source: &Source) {
        let removed = || -> Result<()> {
            let place = self.root.place(&source.target, false)?;
            let there = place.map(|place| place.stat()).transpose()?.flatten();
            if there.is_some_and(|there| source.is_at(&there)) {
                let why = "is the same file as its destination, and was not removed";
                return Err(Error::refused(&source.path, why));
            }
            source.remove(&self.options)
        };
        if let Err(error) = removed() {
            self.failed(&error.to_failure());
        }
    }

    /// Opens a source, which must be as long as it was found, and warns of who uses it. What
    /// goes onto a `device` must be fit for one.
    fn open_source(&self, source: &Source, device: bool) -> Result<OpenSource, FileError> {
        let opened = source.open(&self.options).map_err(FileError::Source)?.ok_or(FileError::Changed)?;
        if device && !self.options.as_is {
            let content = Content::read(&opened.image, opened.state.length);
            let content = content.map_err(Error::file("read", &source.path)).map_err(FileError::Source)?;
            let unfit = content.map(|content| content.refuse(&source.path, true));
            unfit.map_or(Ok(()), |error| Err(FileError::Source(error)))?;
        }
        if matches!(source.kind, Kind::File { retry: false, .. })
            && let Some(warning) = in_use::warning(opened.image.file(), &source.path)
        {
            self.reporter.event(Event::Warning(&warning));
        }
        Ok(opened)
    }

    /// Completes a file that has its content: step 4 of [`local`](crate::sync::local).
    fn finish(&self, (sink, filled): (Sink, Filled), committer: &Committer<Filled>) {
        if filled.counts.sent > WORTH_TELLING && !sink.is_preview() {
            self.reporter.event(Event::Phase(Phase::WritingBack));
        }
        let Kind::File { length, .. } = filled.source.kind else { return };
        match sink.complete(&filled.root, filled.counts.kept, length) {
            Ok(Completion::Finished(finished)) => self.completed(Ok(*finished), filled),
            Ok(Completion::Waits(waiting)) if waiting.may_gather() => {
                committer.add(*waiting, filled, false);
            }
            Ok(Completion::Waits(waiting)) => self.completed(waiting.commit(), filled),
            Err(error) => self.completed(Err(error), filled),
        }
    }

    /// Counts and reports a file that is in its place, or failed.
    pub(super) fn completed(&self, finished: Result<Finished>, filled: Filled) {
        let Filled { source, path, changes, counts, settled, map, .. } = filled;
        let finished = match finished {
            Ok(finished) => finished,
            Err(error) => return self.destination_failed(&source, &error),
        };
        if let Some(note) = finished.note(&path) {
            self.reporter.event(Event::Warning(&note));
        }
        let mut stats = self.stats();
        stats.written_bytes += finished.written;
        stats.punched_bytes = stats.punched_bytes.saturating_add(finished.punched);
        drop(stats);
        self.unset(finished.unset);
        if let Some(delayed) = finished.delayed {
            let path = source.target.clone();
            lock(&self.delayed).push(DelayedFile { id: 0, path, delayed });
        }
        let outcome = self.outcome(&counts, finished.changed);
        if let (Some(saved), Some(map)) = (self.saved, map) {
            saved.keep(map);
        }
        if settled {
            self.arrived(&source);
        }
        self.report(&source, outcome, changes);
    }

    fn outcome(&self, counts: &Compared, changed: bool) -> Outcome {
        if !changed {
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
            return self.file_failed(&source, &Error::refused(&source.path, why));
        }
        match source.look_again(&self.options) {
            Ok(mut source) => {
                if let Kind::File { retry, .. } = &mut source.kind {
                    *retry = true;
                }
                lock(&self.again).push(source);
            }
            Err(error) => self.file_failed(&source, &error),
        }
    }

    /// A file could not be read; its other names are not made then.
    fn file_failed(&self, source: &Source, error: &Error) {
        self.links().failed(source);
        self.source_failed(&source::lost(error));
    }
}
