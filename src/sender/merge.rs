//! Merges the sender's blocks with the arriving map, in file order, so that what
//! differs is sent.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use crate::error::{Error, Failure, Result};
use crate::hashmap::plan::Action;
use crate::hashmap::{BATCH, Batch, Block, Grid, Hash};
use crate::protocol::{Frame, MAX_UNANSWERED, Message};
use crate::report::{Event, Outcome, Phase, Stats};
use crate::sender::announce::{Shared, Side, announce, lock};
use crate::sender::deferred::Later;
use crate::sender::describe::{self, Describer, Step};
use crate::sender::file_state::Description;
use crate::sender::hasher::{Hashed, Opened};
use crate::source::Kind;
use crate::source::{self, Source};

/// Keys that may be known ahead of the source. A receiver that waits for what is
/// described, as it has to, stays well below.
const MAX_AHEAD: usize = 1 << 18;

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
    hashed: Receiver<Vec<Hashed>>,
    /// Taken from there.
    in_hand: VecDeque<Hashed>,
    buffers: Sender<Vec<u8>>,
    describer: Describer<'a, W>,
    announced: Option<u64>,
    answered: u64,
    again: VecDeque<Source>,
    /// Answers for the files after the one that is described.
    later: Later,
    awaited: HashMap<u64, Sent>,
    /// Failures that the receiver told of.
    heard: Stats,
    /// The reader has ended: nothing more will come.
    closed: bool,
}

/// How describing a file to the receiver ended.
enum Described {
    Whole(Hash),
    SourceChanged,
    SourceFailed(Error),
    SourceUnread(io::Error),
    ReceiverFailed(Failure),
}

impl<'a, W: Write> Merger<'a, W> {
    /// Fed by a reader through `events` and by the hasher through `hashed`, whose
    /// buffers go back to it.
    pub fn new(
        shared: &'a Shared<'a, W>,
        events: Receiver<Incoming>,
        hashed: Receiver<Vec<Hashed>>,
        buffers: Sender<Vec<u8>>,
    ) -> Merger<'a, W> {
        Merger {
            shared,
            events,
            hashed,
            in_hand: VecDeque::new(),
            buffers,
            describer: Describer::new(shared),
            announced: None,
            answered: 0,
            again: VecDeque::new(),
            later: Later::default(),
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
                Some(Frame::Message(Message::Borrow { id })) if self.shared.side == Side::Both => {
                    self.lend(id)?
                }
                Some(frame) => self.note(frame)?,
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
                Some(frame) => self.note(frame)?,
                None => {}
            }
        }
    }

    /// The next frame that was not handled yet.
    fn next_frame(&mut self) -> Result<Option<Frame>> {
        match self.later.pop() {
            Some(frame) => Ok(Some(frame)),
            None => self.await_frame(),
        }
    }

    /// What arrives next, after everything written so far is on its way.
    fn await_frame(&mut self) -> Result<Option<Frame>> {
        let event = match self.events.try_recv() {
            Ok(event) => event,
            Err(_) => {
                self.describer.say()?;
                self.shared.lock_output().flush()?;
                self.events.recv().map_err(|_| self.unexpected("its reader ended"))?
            }
        };
        self.frame_of(event)
    }

    fn frame_of(&mut self, event: Incoming) -> Result<Option<Frame>> {
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
    fn note(&mut self, frame: Frame) -> Result<()> {
        let message = match frame {
            Frame::Message(message) => message,
            // An answer for a file that was abandoned meanwhile.
            Frame::Leaves(_) => return Ok(()),
            _ => return Err(self.unexpected("a map out of turn")),
        };
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
            Message::Again { id, changed } => {
                let Some(sent) = self.awaited.remove(&id) else { return Ok(()) };
                self.try_again(sent.source, !changed)?;
            }
            Message::Copied(bytes) => {
                lock(&self.shared.stats).sent_data_bytes += bytes;
                self.shared.reporter.event(Event::Done(Phase::Sending, bytes));
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
        if self.shared.side.has_user() {
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
        match source::look_again(&source) {
            Ok(mut source) => {
                if let Kind::File { whole, retry, .. } = &mut source.kind {
                    (*whole, *retry) = (whole_again, true);
                }
                self.again.push_back(source);
                Ok(())
            }
            Err(error) => self.shared.source_failed(source::lost(&error)),
        }
    }

    /// Has the receiver copy a file itself.
    fn lend(&mut self, id: u64) -> Result<()> {
        self.count_answer();
        let Some(source) = self.shared.files.take(id) else {
            return Err(self.unexpected("an answer for no file"));
        };
        let Kind::File { allocated, .. } = source.kind else { return Ok(()) };
        lock(&self.shared.stats).data_bytes += allocated;
        self.shared.send(&Message::Content { id })?;
        self.shared.send(&Message::Lend { path: source.path.as_os_str().as_bytes().to_vec() })?;
        self.awaited.insert(id, Sent { source, bytes: allocated, changed: true });
        Ok(())
    }

    /// Describes one file to the receiver from its first block to its last.
    fn describe(&mut self, id: u64, has_map: bool, resized: bool) -> Result<()> {
        self.count_answer();
        let Some(source) = self.shared.files.take(id) else {
            return Err(self.unexpected("an answer for no file"));
        };
        let Kind::File { length, allocated, .. } = source.kind else { return Ok(()) };
        let grid = Grid { length, block: self.shared.options.block_size };
        let dry_run = self.shared.options.dry_run;
        if !dry_run {
            self.shared.send(&Message::Content { id })?;
        }
        self.describer.begin();
        let mut file = Description::new(id, grid, has_map, resized, allocated);
        let described = self.merge(&mut file)?;
        let Description { bytes, changed, .. } = file;
        if !matches!(described, Described::Whole(_)) {
            self.abandon(file)?;
        }
        match described {
            Described::Whole(_) if dry_run => {
                let outcome = if changed { Outcome::Sent(bytes) } else { Outcome::Unchanged };
                lock(&self.shared.stats).files_sent += u64::from(changed);
                self.report(&source.target, outcome);
                if self.shared.side.has_user() {
                    return Ok(());
                }
                let would_send = changed.then_some(bytes);
                self.shared.send(&Message::Compared { path: source.target, would_send })
            }
            Described::Whole(root) => {
                self.shared.send(&Message::Finish { root })?;
                self.awaited.insert(id, Sent { source, bytes, changed });
                Ok(())
            }
            Described::SourceChanged => self.try_again(source, false),
            Described::SourceFailed(error) => self.shared.source_failed(source::lost(&error)),
            Described::SourceUnread(error) => {
                self.shared.source_failed(source::lost(&Error::file("read", &source.path)(error)))
            }
            Described::ReceiverFailed(failure) => {
                self.receiver_failed(&failure);
                Ok(())
            }
        }
    }

    /// Leaves a file half described. The receiver is told at once: its mapper may
    /// wait for it to go on, and what is left of the map comes only then.
    fn abandon(&mut self, mut file: Description) -> Result<()> {
        self.describer.begin();
        if !self.shared.options.dry_run {
            self.shared.send(&Message::Abandon)?;
        }
        while file.map {
            match self.next_frame()? {
                Some(Frame::Map(_)) | None => {}
                Some(Frame::Message(Message::MapEnd)) => file.map = false,
                Some(Frame::Message(Message::Failed { id, failure, answer: false })) if id == file.id => {
                    self.receiver_failed(&failure);
                }
                Some(frame) => self.note(frame)?,
            }
        }
        if file.hashes { self.drain_hasher() } else { Ok(()) }
    }

    /// Merges the source's blocks with the arriving map, and sends what differs.
    fn merge(&mut self, file: &mut Description) -> Result<Described> {
        loop {
            self.hear_arrived(file)?;
            while file.failed.is_none()
                && file.unread.is_none()
                && let Some((blocks, action)) = file.planner.step()
            {
                self.act(file, blocks, action)?;
            }
            if let Some(failure) = file.failed.take() {
                return Ok(Described::ReceiverFailed(failure));
            }
            if let Some(error) = file.unread.take() {
                return Ok(Described::SourceUnread(error));
            }
            if file.hashes && !file.planner.wants_basis() {
                match self.next_hashed()? {
                    Hashed::Batch(batch) => self.begin_batch(file, batch, None),
                    Hashed::Bare(batch, source) => self.begin_batch(file, batch, Some(source)),
                    Hashed::End(same) => {
                        file.hashes = false;
                        if !same {
                            return Ok(Described::SourceChanged);
                        }
                    }
                    Hashed::Failed(error) => {
                        file.hashes = false;
                        return Ok(Described::SourceFailed(error));
                    }
                }
            } else if file.map {
                self.hear_next(file)?;
            } else if self.describer.awaits_answers() {
                self.describer.flush()?;
                self.hear_next(file)?;
            } else if file.walk.is_stale() {
                return Ok(Described::SourceChanged);
            } else {
                if !self.shared.options.dry_run {
                    self.describer.finish()?;
                }
                return Ok(Described::Whole(file.root.clone().finish()));
            }
        }
    }

    fn begin_batch(&self, file: &mut Description, batch: Batch, source: Option<Arc<Opened>>) {
        let mut stats = lock(&self.shared.stats);
        stats.hashed_bytes += batch.bytes_read as u64;
        stats.data_bytes += batch.bytes_read as u64;
        let Description { walk, grid, planner, root, .. } = file;
        self.recycle(walk.begin(batch, source, grid, planner, root));
    }

    /// Takes what has come already, so that answers do not wait behind the map.
    fn hear_arrived(&mut self, file: &mut Description) -> Result<()> {
        while (file.map && file.planner.basis_ahead() < MAX_AHEAD) || self.describer.awaits_answers() {
            let stored = if file.map { self.later.pop() } else { None };
            let frame = match stored {
                Some(frame) => Some(frame),
                None => match self.events.try_recv() {
                    Ok(event) => self.frame_of(event)?,
                    Err(_) => return Ok(()),
                },
            };
            frame.map_or(Ok(()), |frame| self.hear(file, frame))?;
        }
        Ok(())
    }

    /// Waits for the next thing that the receiver says while a file is described.
    fn hear_next(&mut self, file: &mut Description) -> Result<()> {
        // When its map has ended, what was put off is about files that come later.
        let frame = if file.map { self.next_frame()? } else { self.await_frame()? };
        frame.map_or(Ok(()), |frame| self.hear(file, frame))
    }

    fn hear(&mut self, file: &mut Description, frame: Frame) -> Result<()> {
        match frame {
            Frame::Map(runs) if file.map => {
                runs.into_iter().for_each(|run| file.planner.push_basis(run));
                if file.planner.basis_ahead() > 2 * MAX_AHEAD {
                    return Err(self.unexpected("a map that runs ahead"));
                }
                Ok(())
            }
            Frame::Message(Message::MapEnd) if file.map => {
                file.planner.end_basis();
                file.map = false;
                Ok(())
            }
            Frame::Leaves(answer) if answer.id == file.id => {
                let (sent, had) = self.describer.take_answer(&file.grid, answer)?;
                file.bytes += sent;
                let mut stats = lock(&self.shared.stats);
                stats.sent_data_bytes += sent;
                stats.matched_bytes += had;
                Ok(())
            }
            Frame::Message(Message::Failed { id, failure, answer: false }) if id == file.id => {
                file.failed = Some(failure);
                Ok(())
            }
            // It failed while it was mapped, and its answer waits to be taken.
            Frame::Message(Message::Failed { id, answer: false, .. }) if self.shared.files.is_pending(id) => {
                self.put_off(frame)
            }
            Frame::Message(message) if !message.is_about_later() => self.note(Frame::Message(message)),
            Frame::Leaves(_) => Ok(()),
            later if !file.map => self.put_off(later),
            other => self.note(other),
        }
    }

    /// Keeps what is about a file that comes later.
    fn put_off(&mut self, frame: Frame) -> Result<()> {
        self.later.push(frame);
        if self.later.weight() > 2 * MAX_AHEAD {
            return Err(self.unexpected("a map that runs ahead"));
        }
        Ok(())
    }

    fn next_hashed(&mut self) -> Result<Hashed> {
        loop {
            if let Some(next) = self.in_hand.pop_front() {
                return Ok(next);
            }
            self.in_hand.extend(self.hashed.recv().map_err(|_| self.unexpected("the hasher ended"))?);
        }
    }

    fn drain_hasher(&mut self) -> Result<()> {
        loop {
            match self.next_hashed()? {
                Hashed::Batch(batch) | Hashed::Bare(batch, _) => self.recycle(batch.buffer),
                Hashed::End(_) | Hashed::Failed(_) => return Ok(()),
            }
        }
    }

    fn recycle(&self, buffer: Vec<u8>) {
        // Only that of a batch that was about full is room for another: those of small
        // files, of which many are under way, would all grow to that size.
        if buffer.capacity() >= BATCH / 2 {
            // A hasher that is gone needs none.
            let _ = self.buffers.send(buffer);
        }
    }

    /// Does one step of the plan.
    fn act(&mut self, file: &mut Description, blocks: Range<u64>, action: Action) -> Result<()> {
        let (mut found, read) = file.walk.take(blocks.end);
        let bytes =
            found.iter().map(|(index, block)| file.grid.masked_bytes(*index, block.data)).sum::<u64>();
        let sends = matches!(action, Action::Data | Action::Update);
        let phase = if sends { Phase::Sending } else { Phase::Mapping };
        self.shared.reporter.event(Event::Done(phase, read));
        file.changed |= action != Action::Keep;
        file.rest = file.rest.saturating_sub(read);
        if action == Action::Keep {
            lock(&self.shared.stats).matched_bytes += bytes;
        }
        match action {
            _ if self.shared.options.dry_run => {
                file.sent(self.shared, if sends { bytes } else { 0 });
                Ok(())
            }
            Action::Keep => self.describer.keep(blocks.end - blocks.start),
            Action::Zero => self.describer.zero(blocks.end - blocks.start),
            Action::Data => self.send(file, &mut found),
            Action::Update => self.update(file, &mut found),
        }
    }

    fn send(&mut self, file: &mut Description, blocks: &mut [(u64, Block)]) -> Result<()> {
        match self.describer.send(&file.grid, &mut file.walk, blocks)? {
            Ok(sent) => file.sent(self.shared, sent),
            Err(error) => file.unread = Some(error),
        }
        Ok(())
    }

    /// Sends what the receiver lacks of adjoining blocks that differ.
    fn update(&mut self, file: &mut Description, mut blocks: &mut [(u64, Block)]) -> Result<()> {
        while !blocks.is_empty() && file.unread.is_none() {
            let (now, later) = blocks.split_at_mut(describe::at_once(&file.grid, blocks));
            blocks = later;
            if self.describer.decide(&file.grid, now, file.rest) == Step::Send {
                self.send(file, now)?;
                continue;
            }
            if let Err(error) = file.walk.fetch(&file.grid, now) {
                file.unread = Some(error);
                return Ok(());
            }
            for (index, block) in now {
                while self.describer.is_full() && file.failed.is_none() {
                    self.describer.flush()?;
                    if self.describer.awaits_answers() {
                        self.hear_next(file)?;
                    }
                }
                // It is abandoned next, and more questions than may be open break a rule.
                if file.failed.is_some() {
                    return Ok(());
                }
                self.describer.wonder(&file.grid, &file.walk.batch, *index, block)?;
            }
        }
        Ok(())
    }
}
