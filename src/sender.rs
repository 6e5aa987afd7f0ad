//! The sending role, over any pair of streams. Announces what there is,
//! without waiting for answers; for each file the receiver wants, reads and
//! hashes it while the receiver's map arrives, and sends what differs.
//!
//! Four threads: the walker announces, the hasher reads and hashes, a reader
//! takes what arrives, and the caller's thread merges and sends. Incoming data
//! is drained whatever the others do, so neither pipe can block the other.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::compress::Compressor;
use crate::error::{Error, Failure, Result, code};
use crate::hashmap::{self, Action, Batch, Block, Grid, Hash, Item, Planner, RootHasher, Run};
use crate::options::Options;
use crate::protocol::{
    Entry, Frame, FrameReader, FrameWriter, Kind, MAX_DATA, MAX_DATA_BLOCKS, MAX_UNANSWERED, Message,
};
use crate::report::{Event, Outcome, Phase, Reporter, Stats};
use crate::scan::FileImage;
use crate::sys;
use crate::tree::{self, Found, Source};

/// Frames and batches that wait for the merging thread.
const QUEUED_FRAMES: usize = 64;
const QUEUED_BATCHES: usize = 2;

/// Whose user the sender serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Failures are reported here.
    Initiator,
    /// Failures are sent to the other end, to be reported there.
    Responder,
}

/// Sends everything below `sources` and waits until the receiver has it.
/// Returns what both ends did; failed files are counted there, not errors.
///
/// # Errors
///
/// When the connection fails or the receiver gives up.
pub fn run<R: Read + Send + 'static, W: Write + Send>(
    input: FrameReader<R>,
    output: FrameWriter<W>,
    sources: &[PathBuf],
    options: &Options,
    side: Side,
    reporter: &dyn Reporter,
) -> Result<Stats> {
    let shared = Shared {
        files: Arc::default(),
        output: Mutex::new(output),
        stats: Mutex::default(),
        options,
        side,
        reporter,
    };
    let (events_in, events) = sync_channel(QUEUED_FRAMES);
    let (jobs_in, jobs) = channel();
    let (batches_in, batches) = sync_channel(QUEUED_BATCHES);
    let (buffers_in, buffers) = channel();
    read_frames(input, Arc::clone(&shared.files), jobs_in, events_in.clone());
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            let count = announce_all(&shared, sources);
            // Only the end of the run closes this channel.
            let _ = events_in.send(Incoming::Walked(count));
        });
        scope.spawn(|| hash_files(&shared, jobs, batches_in, buffers));
        let mut merger = Merger {
            shared: &shared,
            events,
            batches,
            buffers: buffers_in,
            compressor: Compressor::new(options),
            keep: 0,
            announced: None,
            answered: 0,
            again: VecDeque::new(),
            awaited: HashMap::new(),
        };
        let result = merger.run();
        shared.files.close();
        result.map_err(|error| merger.reason(error))
    });
    if let Err(error) = &result {
        shared.lock_output().give_up(error);
    }
    result
}

/// What the threads of a sender share.
struct Shared<'a, W: Write> {
    files: Arc<Files>,
    output: Mutex<FrameWriter<W>>,
    stats: Mutex<Stats>,
    options: &'a Options,
    side: Side,
    reporter: &'a dyn Reporter,
}

impl<W: Write> Shared<'_, W> {
    fn lock_output(&self) -> MutexGuard<'_, FrameWriter<W>> {
        lock(&self.output)
    }

    fn send(&self, message: &Message) -> Result<()> {
        self.lock_output().message(message)
    }

    /// Counts a source that failed, and has it shown where the user is.
    fn source_failed(&self, failure: Failure) -> Result<()> {
        if failure.code == code::VANISHED {
            lock(&self.stats).files_vanished += 1;
        }
        lock(&self.stats).count_failure(failure.code);
        match self.side {
            Side::Initiator => self.reporter.event(Event::Failed(&failure)),
            Side::Responder => self.send(&Message::SourceFailed(failure))?,
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Files announced and not yet settled, and room for more.
#[derive(Default)]
struct Files {
    table: Mutex<Table>,
    room: Condvar,
}

#[derive(Default)]
struct Table {
    pending: HashMap<u64, Source>,
    unanswered: usize,
    next: u64,
    closed: bool,
}

impl Files {
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
        while is_file && table.unanswered >= MAX_UNANSWERED && !table.closed {
            table = self.room.wait(table).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        if table.closed {
            return None;
        }
        let id = table.next;
        table.next += 1;
        if is_file {
            table.unanswered += 1;
            table.pending.insert(id, source.clone());
        }
        Some(id)
    }

    fn answered(&self) {
        let mut table = lock(&self.table);
        table.unanswered = table.unanswered.saturating_sub(1);
        self.room.notify_all();
    }

    fn get(&self, id: u64) -> Option<Source> {
        lock(&self.table).pending.get(&id).cloned()
    }

    fn take(&self, id: u64) -> Option<Source> {
        lock(&self.table).pending.remove(&id)
    }

    fn close(&self) {
        lock(&self.table).closed = true;
        self.room.notify_all();
    }
}

/// What reaches the merging thread.
enum Incoming {
    Frame(Frame),
    /// Everything is announced: so many files.
    Walked(Result<u64>),
    Closed(Error),
}

/// Reads until the stream ends. The thread outlives the role when that fails:
/// it ends with the connection.
fn read_frames<R: Read + Send + 'static>(
    mut input: FrameReader<R>,
    files: Arc<Files>,
    jobs: Sender<Source>,
    events: SyncSender<Incoming>,
) {
    std::thread::spawn(move || {
        loop {
            let event = match input.read() {
                Ok(frame) => Incoming::Frame(frame),
                Err(error) => Incoming::Closed(error),
            };
            if let Incoming::Frame(Frame::Message(message)) = &event {
                match message {
                    Message::Map { id } | Message::NoBasis { id } => {
                        files.answered();
                        // Looked up here, before the merging thread can take it. An unknown id is
                        // that thread's to report; a hasher that is gone needs no more work.
                        if let Some(source) = files.get(*id) {
                            let _ = jobs.send(source);
                        }
                    }
                    Message::Unchanged { .. } => files.answered(),
                    Message::Failed { answer: true, .. } => files.answered(),
                    _ => {}
                }
            }
            let last =
                matches!(event, Incoming::Closed(_) | Incoming::Frame(Frame::Message(Message::End(_))));
            if events.send(event).is_err() || last {
                return;
            }
        }
    });
}

/// Walks the sources and announces what is there; how many files that were.
fn announce_all<W: Write>(shared: &Shared<W>, sources: &[PathBuf]) -> Result<u64> {
    shared.send(&Message::Layout { single: tree::is_single(sources) })?;
    let mut count = 0;
    for found in tree::walk(sources, shared.options) {
        match found {
            Found::Failed(failure) => shared.source_failed(failure)?,
            Found::Skipped(what) if shared.side == Side::Initiator => {
                shared.reporter.event(Event::Warning(&what));
            }
            Found::Skipped(what) => shared.send(&Message::Warning(what))?,
            Found::Source(source) => {
                if let Kind::File { length, allocated, .. } = source.kind {
                    let mut stats = lock(&shared.stats);
                    stats.files_total += 1;
                    stats.apparent_bytes += length;
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
fn announce<W: Write>(shared: &Shared<W>, source: Source) -> Result<bool> {
    let mut flushed = Ok(());
    let id = shared.files.add(&source, || flushed = shared.lock_output().flush());
    flushed?;
    let Some(id) = id else { return Ok(false) };
    let Source { target, kind, metadata, .. } = source;
    shared.send(&Message::Entry(Entry { id, path: target, kind, metadata }))?;
    Ok(true)
}

/// What the hasher hands to the merging thread.
enum Hashed {
    Batch(Batch),
    /// The file is through; whether it stayed the same meanwhile.
    End(bool),
    Failed(Error),
}

/// Reads and hashes files one after the other, as the receiver asks for them.
fn hash_files<W: Write>(
    shared: &Shared<W>,
    jobs: Receiver<Source>,
    batches: SyncSender<Hashed>,
    buffers: Receiver<Vec<u8>>,
) {
    for source in jobs {
        let last = match hash_file(shared, &source, &batches, &buffers) {
            Ok(Some(same)) => Hashed::End(same),
            Ok(None) => return,
            Err(error) => Hashed::Failed(error),
        };
        if batches.send(last).is_err() {
            return;
        }
    }
}

/// `None`: nobody listens any more.
fn hash_file<W: Write>(
    shared: &Shared<W>,
    source: &Source,
    batches: &SyncSender<Hashed>,
    buffers: &Receiver<Vec<u8>>,
) -> Result<Option<bool>> {
    let Kind::File { length, .. } = source.kind else { return Ok(Some(true)) };
    let io = |doing| Error::file(doing, &source.path);
    let file = File::open(&source.path).map_err(io("open"))?;
    let before = Seen::of(&file).map_err(io("look at"))?;
    if before.length != length {
        return Ok(Some(false));
    }
    let grid = Grid { length, block: shared.options.block_size };
    let image = FileImage::new(file, shared.options.hole_map);
    let mut heard = true;
    hashmap::map_image(&image, &grid, |batch| {
        heard = batches.send(Hashed::Batch(std::mem::take(batch))).is_ok();
        batch.buffer = buffers.try_recv().unwrap_or_default();
        Ok::<_, std::io::Error>(heard)
    })
    .map_err(io("read"))?;
    let after = Seen::of(image.file()).map_err(io("look at"))?;
    Ok(heard.then_some(before == after))
}

/// What tells that a file was changed. A device's times say nothing.
#[derive(PartialEq)]
struct Seen {
    length: u64,
    times: Option<[i64; 4]>,
}

impl Seen {
    fn of(file: &File) -> std::io::Result<Seen> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(Seen { length: sys::device_size(file)?, times: None });
        }
        let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
        Ok(Seen { length: metadata.len(), times: Some(times) })
    }
}

/// What a file was sent for and awaits its result.
struct Sent {
    source: Source,
    bytes: u64,
    changed: bool,
}

/// The merging thread's state.
struct Merger<'a, W: Write> {
    shared: &'a Shared<'a, W>,
    events: Receiver<Incoming>,
    batches: Receiver<Hashed>,
    buffers: Sender<Vec<u8>>,
    compressor: Compressor,
    /// Blocks to keep that the receiver was not told of yet.
    keep: u64,
    announced: Option<u64>,
    answered: u64,
    again: VecDeque<Source>,
    awaited: HashMap<u64, Sent>,
}

/// How describing a file to the receiver ended.
enum Described {
    Whole { bytes: u64, changed: bool, root: Hash },
    SourceChanged,
    SourceFailed(Error),
    ReceiverFailed(Failure),
}

impl<W: Write> Merger<'_, W> {
    fn run(&mut self) -> Result<Stats> {
        while !self.is_through()? {
            match self.next_frame()? {
                Some(Frame::Message(Message::Map { id })) => self.describe(id, true)?,
                Some(Frame::Message(Message::NoBasis { id })) => self.describe(id, false)?,
                Some(frame) => self.take_note(frame)?,
                None => {}
            }
        }
        self.end()
    }

    /// Whether every file has its result; announces those that need another try.
    fn is_through(&mut self) -> Result<bool> {
        let Some(announced) = self.announced else { return Ok(false) };
        if self.answered < announced || !self.awaited.is_empty() {
            return Ok(false);
        }
        // No more than may be unanswered at once, or this thread would wait for itself.
        for source in self.again.drain(..self.again.len().min(MAX_UNANSWERED)).collect::<Vec<_>>() {
            self.announced = self.announced.map(|count| count + 1);
            announce(self.shared, source)?;
        }
        Ok(self.announced == Some(self.answered))
    }

    /// Exchanges totals.
    fn end(&mut self) -> Result<Stats> {
        let mut stats = lock(&self.shared.stats).clone();
        self.shared.send(&Message::End(Box::new(stats.clone())))?;
        loop {
            match self.next_frame()? {
                Some(Frame::Message(Message::End(theirs))) => {
                    // The receiver's late failures (times of directories) came before its end.
                    let late = lock(&self.shared.stats).clone();
                    (stats.files_failed, stats.worst_code) = (late.files_failed, late.worst_code);
                    stats.add_receiver(&theirs);
                    return Ok(stats);
                }
                Some(frame) => self.take_note(frame)?,
                None => {}
            }
        }
    }

    /// The next frame, after everything written so far is on its way.
    fn next_frame(&mut self) -> Result<Option<Frame>> {
        let event = match self.events.try_recv() {
            Ok(event) => event,
            Err(_) => {
                self.tell_keep()?;
                self.shared.lock_output().flush()?;
                self.events.recv().map_err(|_| self.unexpected("its reader ended"))?
            }
        };
        match event {
            Incoming::Frame(frame) => Ok(Some(frame)),
            Incoming::Walked(count) => {
                self.announced = Some(count?);
                Ok(None)
            }
            Incoming::Closed(error) => Err(error),
        }
    }

    /// When a write fails, the other side may have said why.
    fn reason(&mut self, error: Error) -> Error {
        if !matches!(error, Error::Closed { .. }) {
            return error;
        }
        let patience = std::time::Duration::from_secs(2);
        while let Ok(event) = self.events.recv_timeout(patience) {
            if let Incoming::Closed(reason @ Error::Remote { .. }) = event {
                return reason;
            }
        }
        error
    }

    fn unexpected(&self, what: &str) -> Error {
        Error::Protocol { peer: "the receiver".into(), what: what.into() }
    }

    /// Deals with what belongs to no file being described.
    fn take_note(&mut self, frame: Frame) -> Result<()> {
        let Frame::Message(message) = frame else { return Err(self.unexpected("a map out of turn")) };
        match message {
            Message::Unchanged { id } => {
                self.answered += 1;
                let Some(source) = self.shared.files.take(id) else { return Ok(()) };
                if let Kind::File { allocated, .. } = source.kind {
                    lock(&self.shared.stats).data_bytes += allocated;
                    self.shared.reporter.event(Event::Done(Phase::Mapping, allocated));
                }
                self.report(&source.target, Outcome::Unchanged);
            }
            Message::Failed { id, failure, answer } => {
                self.answered += u64::from(answer);
                self.shared.files.take(id);
                self.awaited.remove(&id);
                self.receiver_failed(&failure);
            }
            Message::Done { id } => {
                if let Some(sent) = self.awaited.remove(&id) {
                    let outcome = if sent.changed { Outcome::Sent(sent.bytes) } else { Outcome::Unchanged };
                    lock(&self.shared.stats).files_sent += u64::from(sent.changed);
                    self.report(&sent.source.target, outcome);
                }
            }
            Message::Again { id } => {
                let Some(sent) = self.awaited.remove(&id) else { return Ok(()) };
                self.try_again(sent.source, true)?;
            }
            Message::Busy(phase) => self.shared.reporter.event(Event::Phase(phase)),
            Message::Warning(text) => self.shared.reporter.event(Event::Warning(&text)),
            _ => return Err(self.unexpected("a message out of turn")),
        }
        Ok(())
    }

    fn report(&self, target: &[u8], outcome: Outcome) {
        let path = Path::new(OsStr::from_bytes(target));
        self.shared.reporter.event(Event::File(path, outcome));
    }

    /// The receiver's user sees its failures there; ours sees them here.
    fn receiver_failed(&self, failure: &Failure) {
        lock(&self.shared.stats).count_failure(failure.code);
        if self.shared.side == Side::Initiator {
            self.shared.reporter.event(Event::Failed(failure));
        }
    }

    /// Queues a second try; a third one is a failure.
    fn try_again(&mut self, source: Source, whole_again: bool) -> Result<()> {
        if matches!(source.kind, Kind::File { retry: true, .. }) {
            let why = if whole_again {
                "did not arrive intact twice; check memory and storage on both sides"
            } else {
                "changed while it was read, twice; send it when nothing writes to it, or from a snapshot"
            };
            return self.shared.source_failed(Error::refused(&source.path, why).to_failure());
        }
        match tree::look_again(&source) {
            Ok(mut source) => {
                if let Kind::File { whole, retry, .. } = &mut source.kind {
                    (*whole, *retry) = (whole_again, true);
                }
                self.again.push_back(source);
                Ok(())
            }
            Err(error) => self.shared.source_failed(error.to_failure()),
        }
    }

    /// Describes one file to the receiver from its first block to its last.
    fn describe(&mut self, id: u64, has_map: bool) -> Result<()> {
        self.answered += 1;
        let Some(source) = self.shared.files.take(id) else {
            return Err(self.unexpected("an answer for no file"));
        };
        let Kind::File { length, .. } = source.kind else { return Ok(()) };
        let grid = Grid { length, block: self.shared.options.block_size };
        let dry_run = self.shared.options.dry_run;
        if !dry_run {
            self.shared.send(&Message::Content { id })?;
        }
        let described = self.merge(id, &grid, has_map)?;
        self.tell_keep()?;
        let abandon = |merger: &Self| if dry_run { Ok(()) } else { merger.shared.send(&Message::Abandon) };
        match described {
            Described::Whole { bytes, changed, .. } if dry_run => {
                let outcome = if changed { Outcome::Sent(bytes) } else { Outcome::Unchanged };
                lock(&self.shared.stats).files_sent += u64::from(changed);
                self.report(&source.target, outcome);
                Ok(())
            }
            Described::Whole { bytes, changed, root } => {
                self.shared.send(&Message::Finish { root })?;
                self.awaited.insert(id, Sent { source, bytes, changed });
                Ok(())
            }
            Described::SourceChanged => {
                abandon(self)?;
                self.try_again(source, false)
            }
            Described::SourceFailed(error) => {
                abandon(self)?;
                self.shared.source_failed(error.to_failure())
            }
            Described::ReceiverFailed(failure) => {
                abandon(self)?;
                self.receiver_failed(&failure);
                Ok(())
            }
        }
    }

    /// Merges the source's blocks with the arriving map, and sends what differs.
    fn merge(&mut self, id: u64, grid: &Grid, has_map: bool) -> Result<Described> {
        let mut planner = Planner::default();
        let mut root = RootHasher::new(grid);
        let mut walk = BatchWalk::default();
        let mut map_open = has_map;
        let (mut bytes, mut changed) = (0, !has_map);
        if !has_map {
            planner.without_basis();
        }
        let mut through = None;
        let mut failed = None;
        loop {
            while let Some((blocks, action)) = planner.step() {
                changed |= action != Action::Keep;
                bytes += self.act(grid, &mut walk, blocks, action)?;
            }
            if through.is_none() && failed.is_none() && !planner.wants_basis() {
                match self.batches.recv().map_err(|_| self.unexpected("the hasher ended"))? {
                    Hashed::Batch(batch) => {
                        self.recycle(walk.begin(batch, grid, &mut planner, &mut root));
                        let mut stats = lock(&self.shared.stats);
                        stats.hashed_bytes += walk.batch.buffer.len() as u64;
                        stats.data_bytes += walk.batch.buffer.len() as u64;
                    }
                    Hashed::End(same) => through = Some(Ok(same)),
                    Hashed::Failed(error) => through = Some(Err(error)),
                }
            } else if map_open {
                match self.next_frame()? {
                    Some(Frame::Map(runs)) => runs.into_iter().for_each(|run| planner.push_basis(run)),
                    Some(Frame::Message(Message::MapEnd)) => {
                        planner.end_basis();
                        map_open = false;
                    }
                    Some(Frame::Message(Message::Failed { id: of, failure, answer: false })) if of == id => {
                        failed = Some(failure);
                    }
                    Some(frame) => self.take_note(frame)?,
                    None => {}
                }
            } else {
                break;
            }
        }
        Ok(match (failed, through) {
            (Some(failure), through) => {
                if through.is_none() {
                    self.drain_hasher()?;
                }
                Described::ReceiverFailed(failure)
            }
            (None, Some(Err(error))) => Described::SourceFailed(error),
            (None, Some(Ok(true))) => Described::Whole { bytes, changed, root: root.finish() },
            (None, _) => Described::SourceChanged,
        })
    }

    fn drain_hasher(&mut self) -> Result<()> {
        loop {
            match self.batches.recv().map_err(|_| self.unexpected("the hasher ended"))? {
                Hashed::Batch(batch) => self.recycle(batch.buffer),
                Hashed::End(_) | Hashed::Failed(_) => return Ok(()),
            }
        }
    }

    fn recycle(&self, buffer: Vec<u8>) {
        // A hasher that is gone needs no buffers.
        let _ = self.buffers.send(buffer);
    }

    /// Does one step of the plan; how much data was sent.
    fn act(
        &mut self,
        grid: &Grid,
        walk: &mut BatchWalk,
        blocks: std::ops::Range<u64>,
        action: Action,
    ) -> Result<u64> {
        let (found, read) = walk.take(blocks.end);
        let bytes = found.iter().map(|(index, block)| grid.masked_bytes(*index, block.data)).sum::<u64>();
        let phase = if action == Action::Data { Phase::Sending } else { Phase::Mapping };
        self.shared.reporter.event(Event::Done(phase, read));
        match action {
            Action::Keep => {
                lock(&self.shared.stats).matched_bytes += bytes;
                self.keep += blocks.end - blocks.start;
                return Ok(0);
            }
            _ if self.shared.options.dry_run => {}
            Action::Zero => {
                self.tell_keep()?;
                self.shared.send(&Message::Zero { blocks: blocks.end - blocks.start })?;
            }
            Action::Data => {
                self.tell_keep()?;
                for (first, count) in frames_of(grid, &found) {
                    self.send_data(grid, &walk.batch, &found[first..first + count])?;
                }
            }
        }
        if action == Action::Data {
            lock(&self.shared.stats).sent_data_bytes += bytes;
        }
        Ok(bytes)
    }

    fn send_data(&mut self, grid: &Grid, batch: &Batch, blocks: &[(u64, Block)]) -> Result<()> {
        let Some((first, _)) = blocks.first() else { return Ok(()) };
        let masks: Vec<_> = blocks.iter().map(|(_, block)| block.data).collect();
        let parts: Vec<&[u8]> =
            blocks.iter().flat_map(|(index, block)| batch.data_of(grid, *index, block)).collect();
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        let packed = self.compressor.compress(&parts);
        let shared = self.shared;
        self.compressor.watch(len as u64, || {
            let mut output = shared.lock_output();
            match &packed {
                Some(packed) => output.data_zstd(*first, &masks, len, packed),
                None => output.data(*first, &masks, &parts),
            }
        })
    }

    fn tell_keep(&mut self) -> Result<()> {
        let blocks = std::mem::take(&mut self.keep);
        if blocks > 0 && !self.shared.options.dry_run {
            self.shared.send(&Message::Keep { blocks })?;
        }
        Ok(())
    }
}

/// The frames for these adjoining blocks: index of the first, and how many.
fn frames_of(grid: &Grid, blocks: &[(u64, Block)]) -> Vec<(usize, usize)> {
    let mut frames: Vec<(usize, usize)> = Vec::new();
    let mut bytes = 0;
    for (at, (index, block)) in blocks.iter().enumerate() {
        let more = grid.masked_bytes(*index, block.data) as usize;
        match frames.last_mut() {
            Some((_, count)) if bytes + more <= MAX_DATA && *count < MAX_DATA_BLOCKS => {
                *count += 1;
                bytes += more;
            }
            _ => {
                frames.push((at, 1));
                bytes = more;
            }
        }
    }
    frames
}

/// The batch that is being merged, and how far.
#[derive(Default)]
struct BatchWalk {
    batch: Batch,
    item: usize,
    at: u64,
    used: u64,
}

impl BatchWalk {
    /// Takes the next batch and tells the planner and the root hash of it; hands
    /// back the old one's buffer.
    fn begin(&mut self, batch: Batch, grid: &Grid, planner: &mut Planner, root: &mut RootHasher) -> Vec<u8> {
        let old = std::mem::replace(&mut self.batch, batch);
        (self.item, self.used) = (0, 0);
        let mut index = self.at;
        for item in &self.batch.items {
            match item {
                Item::Hole(blocks) => {
                    planner.push_source(Run::Zero(*blocks));
                    index += blocks;
                }
                Item::Block(block) if block.data == 0 => {
                    planner.push_source(Run::Zero(1));
                    index += 1;
                }
                Item::Block(block) => {
                    planner.push_source(Run::Keys(vec![hashmap::key(&block.hash)]));
                    root.add(index, &block.hash);
                    index += 1;
                }
            }
        }
        debug_assert!(index <= grid.blocks());
        old.buffer
    }

    /// The blocks that were read, up to the block `end`, and how many bytes they have.
    fn take(&mut self, end: u64) -> (Vec<(u64, Block)>, u64) {
        let mut found = Vec::new();
        let mut read = 0;
        while self.at < end {
            let (left, block) = match self.batch.items.get(self.item) {
                Some(Item::Hole(blocks)) => (blocks - self.used, None),
                Some(Item::Block(block)) => (1, Some(*block)),
                None => break,
            };
            if let Some(block) = block {
                found.push((self.at, block));
                read += u64::from(block.read.count_ones()) * hashmap::PAGE;
            }
            let step = left.min(end - self.at);
            self.at += step;
            self.used += step;
            if step == left {
                self.item += 1;
                self.used = 0;
            }
        }
        (found, read)
    }
}
