//! What the threads of a receiver share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crate::apply::tree::{DelayedFile, DestinationTree};
use crate::apply::{Committer, Prepared, Setup};
use crate::error::{Error, Failure, Result, Warning, lock};
use crate::hashmap::Hash;
use crate::hashmap::cache::MapCache;
use crate::hashmap::map_file::SavedMap;
use crate::options::Options;
use crate::protocol::{COPIES, Credit, Entry, Message, describes_in_dry_runs, shortened};
use crate::receiver::basis_feed::BasisFeeds;
use crate::receiver::finish::Completed;
use crate::receiver::outbox::Outbox;
use crate::receiver::places::Places;
use crate::report::{Changes, Event, Outcome, Phase, Reporter, Stats};

/// What is settled when a message is written: an entry holds a unit of credit until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settles {
    /// The entry: this is its result, or the last message about it.
    Entry,
    /// There is more to come about its entry, or it has none.
    Nothing,
}

impl Settles {
    /// Units of credit that are free when it is written.
    pub fn units(self) -> usize {
        usize::from(self == Settles::Entry)
    }
}

/// What the threads of a receiver share.
pub struct ReceiverShared<'a> {
    pub outbox: Outbox,
    /// What the sender may cause; see [`Credit`].
    pub credit: Mutex<Credit>,
    /// What the answering thread finds, on its way to the applying thread.
    pub feeds: BasisFeeds,
    /// The sender describes files. In a dry run one that is too old only compares them.
    pub describes: bool,
    /// The sender knows that it may be told that a block is here.
    pub copies: bool,
    /// Root hashes of maps that the sender has, too, once it has told.
    pub known: OnceLock<Vec<Hash>>,
    /// Where blocks lie that the basis of a file lacks.
    pub places: Places,
    /// Of the protocol that both ends speak.
    pub version: u16,
    pub stats: Mutex<Stats>,
    /// The run has failed: no more work need be done.
    stopped: AtomicBool,
    /// Files that are being completed.
    finishing: AtomicUsize,
    pub options: Arc<Options>,
    /// What all destinations share.
    pub setup: Setup,
    /// Maps that were kept.
    pub maps: Option<MapCache>,
    /// Files that are complete, and take their places when all others are.
    pub delayed: Mutex<Vec<DelayedFile>>,
    /// Files that are prepared, and wait for what is decided about all hosts of the run.
    pub prepared: Mutex<Vec<(Prepared, Completed)>>,
    /// Files that are complete, and wait for storage.
    pub committer: Committer<Completed>,
    pub reporter: &'a dyn Reporter,
    /// What the map of the image is saved as.
    pub saved: Option<&'a SavedMap>,
}

impl<'a> ReceiverShared<'a> {
    /// `version`: of the protocol that both ends speak.
    pub fn new(
        outbox: Outbox,
        options: &Options,
        version: u16,
        (reporter, saved): (&'a dyn Reporter, Option<&'a SavedMap>),
    ) -> ReceiverShared<'a> {
        let options = Arc::new(options.clone());
        ReceiverShared {
            outbox,
            credit: Mutex::new(Credit::for_messages()),
            feeds: BasisFeeds::new(),
            copies: version >= COPIES && options.leaf_size.bytes() < options.block_size.bytes(),
            known: OnceLock::new(),
            places: Places::default(),
            version,
            describes: !options.dry_run || describes_in_dry_runs(version),
            stats: Mutex::default(),
            stopped: AtomicBool::new(false),
            finishing: AtomicUsize::new(0),
            setup: Setup::new(Arc::clone(&options)).delaying().copying(),
            delayed: Mutex::default(),
            prepared: Mutex::default(),
            maps: MapCache::open(&options),
            committer: Committer::default(),
            options,
            reporter,
            saved,
        }
    }

    pub fn lock_stats(&self) -> MutexGuard<'_, Stats> {
        lock(&self.stats)
    }

    /// Has the other threads stop.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.feeds.stop();
        self.setup.end();
        self.outbox.stop();
    }

    /// Has files take their places that waited for all others; whether all of them could.
    pub fn put_delayed(&self, tree: &mut DestinationTree) -> Result<bool> {
        let files = std::mem::take(&mut *lock(&self.delayed));
        let (mut told, mut is_whole) = (Ok(()), true);
        let _finishing = self.finishing();
        tree.put_delayed(files, &self.setup, |id, put| {
            is_whole &= put.is_ok();
            let now =
                put.map_or_else(|error| self.fail(id, &error, Settles::Nothing), |unset| self.unset(unset));
            if told.is_ok() {
                told = now;
            }
        });
        told.map(|()| is_whole)
    }

    /// An announced file needs no description.
    pub fn settled(&self) {
        if self.feeds.settled() {
            self.committer.hurry();
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// A file is being completed until this is dropped.
    pub fn finishing(&self) -> Finishing<'_> {
        self.finishing.fetch_add(1, Ordering::Relaxed);
        Finishing(&self.finishing)
    }

    /// What to say where there is nothing else.
    pub fn busy_with(&self) -> Phase {
        match self.finishing.load(Ordering::Relaxed) {
            0 => Phase::Mapping,
            _ => Phase::WritingBack,
        }
    }

    pub fn tell(&self, message: Message, settles: Settles) -> Result<()> {
        self.outbox.message(message, settles.units())
    }

    /// Tells what this end did not read.
    pub fn tell_believed(&self, ours: &Stats) -> Result<()> {
        let believed = Message::believed(ours, self.version);
        believed.map_or(Ok(()), |believed| self.tell(believed, Settles::Nothing))
    }

    /// Counts a failed entry, shows it here, and has it shown there.
    pub fn fail(&self, id: u64, error: &Error, settles: Settles) -> Result<()> {
        let failure = error.to_failure();
        self.lock_stats().count_failure(failure.code);
        self.reporter.event(Event::Failed(&failure));
        let failure = Failure { message: shortened(failure.message), ..failure };
        self.tell(Message::Failed { id, failure }, settles)
    }

    /// Counts something that is in place without all of its attributes, and shows it at both
    /// ends. It has its own result.
    pub fn unset(&self, unset: Option<Failure>) -> Result<()> {
        let Some(failure) = unset else { return Ok(()) };
        self.lock_stats().count_unset(failure.code);
        self.reporter.event(Event::Unset(&failure));
        let failure = Failure { message: shortened(failure.message), ..failure };
        self.tell(Message::Unset(failure), Settles::Nothing)
    }

    /// Warns the user, wherever they are.
    pub fn warn(&self, warning: Warning) -> Result<()> {
        self.reporter.event(Event::Warning(&warning));
        self.tell(Message::warning(warning, self.version), Settles::Nothing)
    }

    pub fn report(&self, entry: &Entry, outcome: Outcome, changes: Changes) {
        self.reporter.event(Event::File(entry.item(), outcome, changes));
    }

    /// The result of what is no file, which is there by now or not.
    pub fn made(&self, entry: &Entry, changes: Changes, is_there: bool) -> Result<()> {
        if !self.options.tells_others() {
            return self.outbox.settle(Settles::Entry.units());
        }
        if self.options.tells_changes.is_asked() {
            self.reporter.event(Event::Made(entry.item(), changes));
        }
        self.tell(Message::Made { id: entry.id, is_there, changes }, Settles::Entry)
    }
}

/// See [`ReceiverShared::finishing`].
pub struct Finishing<'s>(&'s AtomicUsize);

impl Drop for Finishing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
