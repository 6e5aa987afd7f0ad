//! A copy on one machine: the sources are walked and the destinations written here, with
//! no roles, no frames and no hashes that travel.
//!
//! 1. The caller's thread walks the sources. It makes directories and symlinks itself, and
//!    queues files.
//! 2. A worker takes a file from the queue and opens its destination, which may turn out
//!    equal by size and time (`open`). Small files are worked on side by side.
//! 3. Where there is nothing worth comparing, the source is cloned, or copied on all cores.
//!    Otherwise both are [compared](crate::hashmap::compare) by their bytes on all cores,
//!    and what differs is written from the bytes that were compared (`update`). The cores
//!    serve one large file at a time.
//! 4. The worker completes the file. Where it then takes the name of another it waits for
//!    storage together with others, in a thread of its own ([`Committer`]); otherwise the worker
//!    waits, and the others go on.
//! 5. Files that changed while they were read are done once more, after all others. Those
//!    that change again fail.
//! 6. With `--delay-updates` files that are complete take their places now.
//! 7. When everything is in its place, other names of files are made, what the sources do not
//!    have is removed, and directories get their attributes. Names that were made or removed
//!    without a sync are on storage then.
//!
//! Guaranteed: the destination gets the bytes that were compared, or the file fails, and
//! the others go on. Directories are there before what lies in them. Memory follows the
//! number of threads, not files. Not guaranteed: the order in which files are done; and
//! where nothing is hashed (no seal can follow, and no `--verify` was asked for), that
//! memory and storage hold what was written.

mod file;
mod same;
mod update;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::apply::tree::{DelayedFile, DestinationRoot, DestinationTree, LastDirectory, Removed, Target};
use crate::apply::{Attributes, Committer, Setup};
use crate::confinement::NamedPath;
use crate::error::{Again, Error, Failure, Result, Warning, code, lock, printable};
use crate::hashmap::map_file::SavedMap;
use crate::location::directory_of;
use crate::options::{DeleteWhen, Options};
use crate::protocol::Pace;
use crate::remote;
use crate::report::{Changes, Event, Outcome, Reporter, Stats};
use crate::source::{self, ContentsTold, Found, Kind, Links, Source, Tells, Told, Walk};
use crate::sync::local::file::Filled;

/// Files that are worked on side by side: while one waits for storage, others go on.
const WORKERS: usize = 4;
/// Files that are found and wait for a worker.
const QUEUED: usize = 1024;

/// Makes `target` equal to `sources`. Failed files are counted in what it returns; they
/// are no errors.
///
/// # Errors
///
/// When the destination as a whole cannot be used.
pub fn run(
    sources: &[NamedPath],
    target: Target,
    options: &Options,
    (reporter, saved): (&dyn Reporter, Option<&SavedMap>),
) -> Result<Stats> {
    if options.recursive {
        sources.iter().try_for_each(|source| refuse_inside(source, target.path.path()))?;
    }
    let when = source::deletes(sources, options);
    let during = when == Some(DeleteWhen::During);
    let walk = Walk::new(sources, options);
    let walk = walk.telling(if during { Tells::Both } else { Tells::Entries });
    let single = walk.is_single();
    let options = Arc::new(options.clone());
    let mut tree = DestinationTree::open(&target, single, Arc::clone(&options))?;
    let copy = LocalCopy {
        root: tree.root().clone(),
        setup: Setup::new(Arc::clone(&options)).delaying(),
        options,
        when,
        saved,
        reporter,
        pace: Pace::default(),
        stats: Mutex::default(),
        again: Mutex::default(),
        delayed: Mutex::default(),
        links: Mutex::default(),
        arrived: Mutex::default(),
        cores: Mutex::default(),
    };
    copy.pace.limit(copy.options.bandwidth);
    if when == Some(DeleteWhen::Before) {
        copy.remove_others(sources, &mut tree);
    }
    copy.with_workers(if single { 1 } else { WORKERS }, |jobs| copy.walk(walk, &mut tree, jobs))?;
    let again = std::mem::take(&mut *lock(&copy.again));
    if !again.is_empty() {
        copy.with_workers(WORKERS.min(again.len()), |jobs| {
            for source in again {
                copy.queue(source, &mut tree, jobs);
            }
        })?;
    }
    let delayed = std::mem::take(&mut *lock(&copy.delayed));
    tree.put_delayed(delayed, &copy.setup, |_, put| copy.settle(put));
    copy.make_links(&mut tree);
    if when == Some(DeleteWhen::After) {
        copy.remove_others(sources, &mut tree);
    }
    std::mem::take(&mut *lock(&copy.arrived)).iter().for_each(|source| copy.remove(source));
    tree.finish(|_, set| copy.settle(set));
    Ok(copy.stats.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

/// A file to be made equal.
struct Job {
    source: Source,
    /// What it is to carry.
    attributes: Attributes,
}

/// What the threads of a local copy share.
struct LocalCopy<'a> {
    root: DestinationRoot,
    setup: Setup,
    options: Arc<Options>,
    /// When what the sources do not have is removed.
    when: Option<DeleteWhen>,
    /// What the map of the image is saved as.
    saved: Option<&'a SavedMap>,
    reporter: &'a dyn Reporter,
    stats: Mutex<Stats>,
    /// Files that changed while they were read.
    again: Mutex<Vec<Source>>,
    /// Files that are complete, and take their places when all others are.
    delayed: Mutex<Vec<DelayedFile>>,
    /// How fast data may be written.
    pace: Pace,
    /// Other names of files.
    links: Mutex<Links>,
    /// Sources that the destination has, and that are removed at the end.
    arrived: Mutex<Vec<Source>>,
    /// Held by the one large file that all cores work on.
    cores: Mutex<()>,
}

impl LocalCopy<'_> {
    /// Runs `feed`, which queues files, beside so many threads that work on them. Fails where the
    /// run is to stop: files that were begun are in their places.
    fn with_workers(&self, count: usize, feed: impl FnOnce(&SyncSender<Job>)) -> Result<()> {
        let (jobs_in, jobs) = sync_channel(QUEUED);
        // Owned by the workers alone: when none is left, nobody waits for room in the queue.
        let jobs = Arc::new(Mutex::new(jobs));
        let committer = Committer::default();
        std::thread::scope(|scope| {
            scope.spawn(|| committer.run(|| (), |finished, filled| self.completed(finished, filled)));
            std::thread::scope(|scope| {
                for _ in 0..count {
                    let jobs = Arc::clone(&jobs);
                    scope.spawn(|| self.work(jobs, &committer));
                }
                drop(jobs);
                feed(&jobs_in);
                drop(jobs_in);
            });
            committer.close();
        });
        if remote::is_interrupted() { Err(Error::Interrupted(Again::GoesOn)) } else { Ok(()) }
    }

    /// Takes files until there are no more.
    fn work(&self, jobs: Arc<Mutex<Receiver<Job>>>, committer: &Committer<Filled>) {
        let mut last = LastDirectory::default();
        loop {
            let next = lock(&jobs).recv();
            let Ok(job) = next else { return };
            if remote::is_interrupted() {
                return;
            }
            self.file(job, &mut last, committer);
        }
    }

    /// Makes directories and symlinks, and queues files.
    fn walk(&self, walk: Walk, tree: &mut DestinationTree, jobs: &SyncSender<Job>) {
        let mut removes = self.options.delete.filter(|_| self.when == Some(DeleteWhen::During));
        for found in walk.take_while(|_| !remote::is_interrupted()) {
            match found {
                Found::Failed(failure) => {
                    if removes.take_if(|delete| delete.is_ended_by(&failure)).is_some() {
                        self.reporter.event(Event::Warning(&Warning::new(source::NOTHING_REMOVED)));
                    }
                    self.source_failed(&failure);
                }
                Found::Contents(contents) if removes.is_some() => {
                    self.told(Told::Contents(contents), tree);
                    self.told(Told::RemoveOthers, tree);
                }
                Found::Contents(_) => {}
                Found::Skipped(what) => self.reporter.event(Event::Warning(&what)),
                Found::Source(source) => {
                    let now = self.links().keep(*source);
                    if let Some(source) = now {
                        self.entry(source, tree, jobs);
                    }
                }
            }
        }
    }

    /// Removes what the sources do not have, unless something failed.
    fn remove_others(&self, sources: &[NamedPath], tree: &mut DestinationTree) {
        let ignores = self.options.delete.is_some_and(|delete| delete.ignore_errors);
        let is_whole = ignores || !self.stats().has_failed();
        let told = is_whole.then(|| {
            source::tell_contents(sources, &self.options, &mut |told| {
                self.told(told, tree);
                Ok(())
            })
        });
        // Telling cannot fail here.
        let Some(Ok(ContentsTold { is_cut, failure })) = told else {
            return self.reporter.event(Event::Warning(&Warning::new(source::NOTHING_REMOVED)));
        };
        let is_new = !self.stats().has_failed();
        if let Some(failure) = failure.filter(|_| is_new) {
            self.source_failed(&failure);
        }
        if is_cut {
            self.reporter.event(Event::Warning(&Warning::new(source::NOTHING_REMOVED)));
        }
    }

    fn told(&self, told: Told, tree: &mut DestinationTree) {
        match told {
            Told::Contents(contents) => tree.source_has(contents),
            Told::RemoveOthers => {
                // Reporting cannot fail here.
                let _ = tree.remove_others(&mut |removed| {
                    match removed {
                        Removed::Gone(path) => {
                            self.stats().removed += 1;
                            self.reporter.event(Event::Removed(path));
                        }
                        Removed::Stays(failure) => self.failed(&failure),
                    }
                    Ok(())
                });
            }
        }
    }

    fn entry(&self, source: Source, tree: &mut DestinationTree, jobs: &SyncSender<Job>) {
        let made = match &source.kind {
            Kind::Missing => return self.settle(self.remove_missing(&source.target, tree)),
            // Its directory is not ours to change, and other entries would go under its name.
            _ if tree.root().is_file() && source.kind == Kind::Directory => {
                Err(Error::refused(&source.path, "became a directory meanwhile; run again"))
            }
            &Kind::File { length, allocated, .. } => {
                let mut stats = self.stats();
                stats.files_total += 1;
                stats.apparent_bytes = stats.apparent_bytes.saturating_add(length);
                drop(stats);
                self.reporter.event(Event::Found(allocated));
                return self.queue(source, tree, jobs);
            }
            Kind::Directory => {
                tree.make_directory(0, &source.target, &source.metadata).map(|changes| (changes, None))
            }
            Kind::Symlink(link) => tree.make_symlink(&source.target, link, &source.metadata),
            &Kind::Node(node) => match tree.why_not_made(node) {
                Some(why) => {
                    let what = format!("skipping device {}: {why}", printable(&source.path));
                    return self.reporter.event(Event::Warning(&Warning::about(&source.path, what)));
                }
                None => tree.make_node(&source.target, node, &source.metadata),
            },
            // It waits for the others.
            Kind::HardLink(_) => return,
        };
        self.made(&source, made);
    }

    /// Counts and reports what is no file.
    fn made(&self, source: &Source, made: Result<(Changes, Option<Failure>)>) {
        let is_there = made.as_ref().is_ok_and(|(changes, _)| !changes.has(Changes::LEFT));
        self.settle(made.map(|(changes, unset)| {
            if self.options.tells_changes.is_asked() {
                self.reporter.event(Event::Made(source.item(), changes));
            }
            unset
        }));
        if is_there {
            self.arrived(source);
        }
    }

    /// Removes what has the name of a source that is missing.
    fn remove_missing(&self, path: &[u8], tree: &mut DestinationTree) -> Result<Option<Failure>> {
        if let Some(path) = tree.remove_missing(path)? {
            self.stats().removed += 1;
            self.reporter.event(Event::Removed(&path));
        }
        Ok(None)
    }

    /// Counts and reports what could not be made, or not with all of its attributes.
    fn settle(&self, made: Result<Option<Failure>>) {
        match made {
            Ok(unset) => self.unset(unset),
            Err(error) => self.failed(&error.to_failure()),
        }
    }

    /// Counts and reports what is in place without all of its attributes.
    fn unset(&self, unset: Option<Failure>) {
        if let Some(failure) = unset {
            self.stats().count_unset(failure.code);
            self.reporter.event(Event::Unset(&failure));
        }
    }

    fn queue(&self, source: Source, tree: &mut DestinationTree, jobs: &SyncSender<Job>) {
        let attributes = tree.attributes(&source.kind, &source.metadata);
        // Workers that are gone panicked, and take the run with them.
        let _ = jobs.send(Job { source, attributes });
    }

    /// Makes other names of files that are in their places.
    fn make_links(&self, tree: &mut DestinationTree) {
        let (links, failures) = self.links().take();
        for source in links {
            if let Kind::HardLink(first) = &source.kind {
                let made = tree.make_hard_link(&source.target, first);
                self.made(&source, made.map(|changes| (changes, None)));
            }
        }
        failures.iter().for_each(|failure| self.failed(failure));
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        lock(&self.links)
    }

    fn stats(&self) -> MutexGuard<'_, Stats> {
        lock(&self.stats)
    }

    fn report(&self, source: &Source, outcome: Outcome, changes: Changes) {
        self.reporter.event(Event::File(source.item(), outcome, changes));
    }

    /// Counts and reports what went wrong at a destination.
    fn failed(&self, failure: &Failure) {
        self.stats().count_failure(failure.code);
        self.reporter.event(Event::Failed(failure));
    }

    /// Counts and reports what went wrong with a source.
    fn source_failed(&self, failure: &Failure) {
        if failure.code == code::VANISHED {
            self.stats().files_vanished += 1;
        }
        self.failed(failure);
    }
}

/// A directory copied into itself would meet its own copies on the way.
fn refuse_inside(source: &NamedPath, destination: &Path) -> Result<()> {
    let (Ok(from), Some(mut to)) = (source.path().canonicalize(), resolve(destination)) else {
        return Ok(());
    };
    if !from.is_dir() {
        return Ok(());
    }
    to.push(OsStr::from_bytes(&source.target()));
    if to == from || !to.starts_with(&from) {
        return Ok(());
    }
    let (from, to) = (printable(source.path()), printable(destination));
    Err(Error::Destination(format!("cannot copy {from} into itself: choose a destination outside, not {to}")))
}

/// The path without symlinks, whether its last name is there or not.
fn resolve(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok().or_else(|| Some(directory_of(path).canonicalize().ok()?.join(path.file_name()?)))
}
