//! What the sender announces: every entry below its sources, under ids that the
//! receiver answers to, no more unanswered than the protocol allows.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::error::{Failure, Result, code};
use crate::options::Options;
use crate::protocol::{Entry, FrameWriter, MAX_UNANSWERED, Message};
use crate::report::{Event, Reporter, Stats};
use crate::source::Kind;
use crate::source::{self, Found, Source};

/// Whose user the sender serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Failures are reported here.
    Initiator,
    /// Failures are sent to the other end, to be reported there.
    Responder,
    /// The receiver is in this process: failures are reported here, and it can open
    /// sources itself.
    Both,
}

impl Side {
    /// Whether the user is here.
    pub fn has_user(self) -> bool {
        self != Side::Responder
    }
}

/// What the threads of a sender share.
pub(crate) struct Shared<'a, W: Write> {
    pub files: Arc<Files>,
    pub output: Mutex<FrameWriter<W>>,
    pub stats: Mutex<Stats>,
    pub options: &'a Options,
    pub side: Side,
    pub reporter: &'a dyn Reporter,
}

impl<W: Write> Shared<'_, W> {
    pub fn lock_output(&self) -> MutexGuard<'_, FrameWriter<W>> {
        lock(&self.output)
    }

    pub fn send(&self, message: &Message) -> Result<()> {
        self.lock_output().message(message)
    }

    /// Counts a source that failed, and has it shown where the user is.
    pub fn source_failed(&self, failure: Failure) -> Result<()> {
        if failure.code == code::VANISHED {
            lock(&self.stats).files_vanished += 1;
        }
        lock(&self.stats).count_failure(failure.code);
        match self.side {
            Side::Responder => self.send(&Message::SourceFailed(failure))?,
            Side::Initiator | Side::Both => self.reporter.event(Event::Failed(&failure)),
        }
        Ok(())
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A file that the receiver wants.
pub(crate) struct Wanted {
    pub source: Source,
    /// The receiver has something to compare it with.
    pub compared: bool,
}

/// Files announced and not yet settled, and room for more.
pub(crate) struct Files {
    table: Mutex<Table>,
    room: Condvar,
}

struct Table {
    pending: HashMap<u64, Source>,
    unanswered: usize,
    next: u64,
    /// Files up to this one have been hashed, or will not be.
    wanted: Option<u64>,
    /// The way to the hasher; `None`: the run is over.
    jobs: Option<Sender<Wanted>>,
}

impl Files {
    /// None so far. Those that the receiver wants go to `jobs`.
    pub fn new(jobs: Sender<Wanted>) -> Files {
        let table = Table { pending: HashMap::new(), unanswered: 0, next: 0, wanted: None, jobs: Some(jobs) };
        Files { table: Mutex::new(table), room: Condvar::new() }
    }

    /// Takes an id for a source; waits while too many are unanswered, after
    /// `before_waiting`. `None`: the run is over.
    fn add(&self, source: &Source, before_waiting: impl FnOnce()) -> Option<u64> {
        let is_file = matches!(source.kind, Kind::File { .. });
        let mut table = lock(&self.table);
        if is_file && table.unanswered >= MAX_UNANSWERED {
            drop(table);
            before_waiting();
            table = lock(&self.table);
        }
        while is_file && table.unanswered >= MAX_UNANSWERED && table.jobs.is_some() {
            table = self.room.wait(table).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        table.jobs.as_ref()?;
        let id = table.next;
        table.next += 1;
        if is_file {
            table.unanswered += 1;
            table.pending.insert(id, source.clone());
        }
        Some(id)
    }

    pub fn answered(&self) {
        let mut table = lock(&self.table);
        table.unanswered = table.unanswered.saturating_sub(1);
        self.room.notify_all();
    }

    /// Has a file hashed, once. An unknown id is the merging thread's to report, and a
    /// hasher that is gone needs no more work.
    pub fn want(&self, id: u64, compared: bool) {
        let mut table = lock(&self.table);
        if table.wanted.is_some_and(|last| id <= last) {
            return;
        }
        table.wanted = Some(id);
        if let (Some(source), Some(jobs)) = (table.pending.get(&id), &table.jobs) {
            let _ = jobs.send(Wanted { source: source.clone(), compared });
        }
    }

    /// Whether a file was announced and its answer is not taken yet.
    pub fn is_pending(&self, id: u64) -> bool {
        lock(&self.table).pending.contains_key(&id)
    }

    pub fn take(&self, id: u64) -> Option<Source> {
        lock(&self.table).pending.remove(&id)
    }

    /// Lets the walker and the hasher end, which wait for more work.
    pub fn close(&self) {
        lock(&self.table).jobs = None;
        self.room.notify_all();
    }
}

/// Walks the sources and announces what is there; how many files that were.
pub(crate) fn announce_all<W: Write>(shared: &Shared<W>, sources: &[PathBuf]) -> Result<u64> {
    shared.send(&Message::Layout { single: source::is_single(sources) })?;
    let mut count = 0;
    for found in source::walk(sources, shared.options) {
        match found {
            Found::Failed(failure) => shared.source_failed(failure)?,
            Found::Skipped(what) if shared.side.has_user() => {
                shared.reporter.event(Event::Warning(&what));
            }
            Found::Skipped(what) => shared.send(&Message::Warning(what))?,
            Found::Source(source) => {
                if let Kind::File { length, allocated, .. } = source.kind {
                    let mut stats = lock(&shared.stats);
                    stats.files_total += 1;
                    stats.apparent_bytes = stats.apparent_bytes.saturating_add(length);
                    count += 1;
                    shared.reporter.event(Event::Found(allocated));
                }
                if !announce(shared, source)? {
                    break;
                }
            }
        }
    }
    shared.lock_output().flush()?;
    Ok(count)
}

/// Announces one source; `false`: the run is over.
pub(crate) fn announce<W: Write>(shared: &Shared<W>, source: Source) -> Result<bool> {
    let mut flushed = Ok(());
    let id = shared.files.add(&source, || flushed = shared.lock_output().flush());
    flushed?;
    let Some(id) = id else { return Ok(false) };
    let Source { target, kind, metadata, .. } = source;
    shared.send(&Message::Entry(Entry { id, path: target, kind, metadata }))?;
    Ok(true)
}
