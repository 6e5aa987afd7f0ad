//! Merges the sender's blocks with the arriving map, in file order, and sends
//! what differs.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender};

use crate::announce::{Shared, Side, announce, lock};
use crate::compress::Compressor;
use crate::error::{Error, Failure, Result};
use crate::hasher::Hashed;
use crate::hashmap::{self, Batch, Block, Grid, Hash, Item, RootHasher};
use crate::plan::{Action, Planner, Run};
use crate::protocol::{Frame, Kind, MAX_DATA, MAX_DATA_BLOCKS, MAX_UNANSWERED, Message};
use crate::report::{Event, Outcome, Phase, Stats};
use crate::tree::{self, Source};

/// What reaches the merging thread.
pub(crate) enum Incoming {
    Frame(Frame),
    /// Everything is announced: so many files.
    Walked(Result<u64>),
    Closed(Error),
}

/// What a file was sent for and awaits its result.
struct Sent {
    source: Source,
    bytes: u64,
    changed: bool,
}

/// The merging thread's state.
pub(crate) struct Merger<'a, W: Write> {
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
    /// Failures that the receiver told of.
    heard: Stats,
    /// The reader has ended: nothing more will come.
    closed: bool,
}

/// What is still to come of a file.
struct Left {
    /// More of the receiver's map.
    map: bool,
    /// More from the hasher.
    hashes: bool,
}

/// How describing a file to the receiver ended.
enum Described {
    Whole { bytes: u64, changed: bool, root: Hash },
    SourceChanged,
    SourceFailed(Error),
    ReceiverFailed(Failure),
}

impl<'a, W: Write> Merger<'a, W> {
    /// Fed by a reader through `events` and by the hasher through `batches`, whose
    /// buffers go back to it.
    pub fn new(
        shared: &'a Shared<'a, W>,
        events: Receiver<Incoming>,
        batches: Receiver<Hashed>,
        buffers: Sender<Vec<u8>>,
    ) -> Merger<'a, W> {
        Merger {
            shared,
            events,
            batches,
            buffers,
            compressor: Compressor::new(shared.options),
            keep: 0,
            announced: None,
            answered: 0,
            again: VecDeque::new(),
            awaited: HashMap::new(),
            heard: Stats::default(),
            closed: false,
        }
    }

    /// Serves the receiver until everything has its result; what both ends did.
    pub fn run(&mut self) -> Result<Stats> {
        while !self.is_through()? {
            match self.next_frame()? {
                Some(Frame::Message(Message::Map { id, resized })) => self.describe(id, true, resized)?,
                Some(Frame::Message(Message::NoBasis { id, resized })) => {
                    self.describe(id, false, resized)?
                }
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
                Some(Frame::Message(Message::End(mut theirs))) => {
                    // Totals cannot take back what was said before.
                    if theirs.files_failed < self.heard.files_failed {
                        theirs.files_failed = self.heard.files_failed;
                        theirs.worst_code = self.heard.worst_code;
                    }
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
            Incoming::Closed(error) => {
                self.closed = true;
                Err(error)
            }
        }
    }

    /// When a write fails, the other side may have said why, or broken a rule.
    pub fn reason(&mut self, error: Error) -> Error {
        if self.closed || !matches!(error, Error::Closed { .. }) {
            return error;
        }
        let patience = std::time::Duration::from_secs(2);
        while let Ok(event) = self.events.recv_timeout(patience) {
            match event {
                Incoming::Closed(reason @ (Error::Remote { .. } | Error::Protocol { .. })) => return reason,
                Incoming::Closed(_) => break,
                Incoming::Frame(_) | Incoming::Walked(_) => {}
            }
        }
        error
    }

    fn count_answer(&mut self) {
        self.answered += 1;
        self.shared.files.answered();
    }

    fn unexpected(&self, what: &str) -> Error {
        Error::Protocol { peer: "the receiver".into(), what: what.into() }
    }

    /// Deals with what belongs to no file being described.
    fn take_note(&mut self, frame: Frame) -> Result<()> {
        let Frame::Message(message) = frame else { return Err(self.unexpected("a map out of turn")) };
        match message {
            Message::Unchanged { id } => {
                self.count_answer();
                let Some(source) = self.shared.files.take(id) else { return Ok(()) };
                if let Kind::File { allocated, .. } = source.kind {
                    lock(&self.shared.stats).data_bytes += allocated;
                    self.shared.reporter.event(Event::Done(Phase::Mapping, allocated));
                }
                self.report(&source.target, Outcome::Unchanged);
            }
            Message::Failed { id, failure, answer } => {
                if answer {
                    self.count_answer();
                }
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

    /// The receiver counts its failures, and shows them where it is the initiator.
    fn receiver_failed(&mut self, failure: &Failure) {
        self.heard.count_failure(failure.code);
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
            Err(error) => self.shared.source_failed(tree::lost(&error)),
        }
    }

    /// Describes one file to the receiver from its first block to its last.
    fn describe(&mut self, id: u64, has_map: bool, resized: bool) -> Result<()> {
        self.count_answer();
        let Some(source) = self.shared.files.take(id) else {
            return Err(self.unexpected("an answer for no file"));
        };
        let Kind::File { length, .. } = source.kind else { return Ok(()) };
        let grid = Grid { length, block: self.shared.options.block_size };
        let dry_run = self.shared.options.dry_run;
        if !dry_run {
            self.shared.send(&Message::Content { id })?;
        }
        let mut left = Left { map: has_map, hashes: true };
        let described = self.merge(id, &grid, resized, &mut left)?;
        if matches!(described, Described::Whole { .. }) {
            self.tell_keep()?;
        } else {
            self.abandon(id, left)?;
        }
        match described {
            Described::Whole { bytes, changed, .. } if dry_run => {
                let outcome = if changed { Outcome::Sent(bytes) } else { Outcome::Unchanged };
                lock(&self.shared.stats).files_sent += u64::from(changed);
                self.report(&source.target, outcome);
                if self.shared.side == Side::Initiator {
                    return Ok(());
                }
                let would_send = changed.then_some(bytes);
                self.shared.send(&Message::Compared { path: source.target, would_send })
            }
            Described::Whole { bytes, changed, root } => {
                self.shared.send(&Message::Finish { root })?;
                self.awaited.insert(id, Sent { source, bytes, changed });
                Ok(())
            }
            Described::SourceChanged => self.try_again(source, false),
            Described::SourceFailed(error) => self.shared.source_failed(tree::lost(&error)),
            Described::ReceiverFailed(failure) => {
                self.receiver_failed(&failure);
                Ok(())
            }
        }
    }

    /// Leaves a file half described. The receiver is told at once: its mapper may
    /// wait for it to go on, and what is left of the map comes only then.
    fn abandon(&mut self, id: u64, left: Left) -> Result<()> {
        self.keep = 0;
        if !self.shared.options.dry_run {
            self.shared.send(&Message::Abandon)?;
        }
        let mut map_open = left.map;
        while map_open {
            match self.next_frame()? {
                Some(Frame::Map(_)) | None => {}
                Some(Frame::Message(Message::MapEnd)) => map_open = false,
                Some(Frame::Message(Message::Failed { id: of, failure, answer: false })) if of == id => {
                    self.receiver_failed(&failure);
                }
                Some(frame) => self.take_note(frame)?,
            }
        }
        if left.hashes { self.drain_hasher() } else { Ok(()) }
    }

    /// Merges the source's blocks with the arriving map, and sends what differs.
    fn merge(&mut self, id: u64, grid: &Grid, resized: bool, left: &mut Left) -> Result<Described> {
        let mut planner = Planner::default();
        let mut root = RootHasher::new(grid);
        let mut walk = BatchWalk::default();
        let (mut bytes, mut changed) = (0, resized);
        if !left.map {
            planner.without_basis();
        }
        loop {
            while let Some((blocks, action)) = planner.step() {
                changed |= action != Action::Keep;
                bytes += self.act(grid, &mut walk, blocks, action)?;
            }
            if left.hashes && !planner.wants_basis() {
                match self.batches.recv().map_err(|_| self.unexpected("the hasher ended"))? {
                    Hashed::Batch(batch) => {
                        self.recycle(walk.begin(batch, grid, &mut planner, &mut root));
                        let mut stats = lock(&self.shared.stats);
                        stats.hashed_bytes += walk.batch.buffer.len() as u64;
                        stats.data_bytes += walk.batch.buffer.len() as u64;
                    }
                    Hashed::End(same) => {
                        left.hashes = false;
                        if !same {
                            return Ok(Described::SourceChanged);
                        }
                    }
                    Hashed::Failed(error) => {
                        left.hashes = false;
                        return Ok(Described::SourceFailed(error));
                    }
                }
            } else if left.map {
                match self.next_frame()? {
                    Some(Frame::Map(runs)) => runs.into_iter().for_each(|run| planner.push_basis(run)),
                    Some(Frame::Message(Message::MapEnd)) => {
                        planner.end_basis();
                        left.map = false;
                    }
                    Some(Frame::Message(Message::Failed { id: of, failure, answer: false })) if of == id => {
                        return Ok(Described::ReceiverFailed(failure));
                    }
                    Some(frame) => self.take_note(frame)?,
                    None => {}
                }
            } else {
                return Ok(Described::Whole { bytes, changed, root: root.finish() });
            }
        }
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
