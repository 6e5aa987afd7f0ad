//! The merging thread over a whole run: what the receiver answers, what became of each
//! file, second tries, totals. Steps 2 and 5 to 7 of [`sender`](crate::sender).

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use crate::error::lock;
use crate::error::{Error, Failure, Result, Warning};
use crate::hashmap::{Grid, Hash, MapRecord};
use crate::protocol::{COPIES, CREDIT, Entry, Message};
use crate::report::{Changes, Event, Outcome, Phase, Stats};
use crate::sender::announce::announce;
use crate::sender::describe::Describer;
use crate::sender::described_file::DescribedFile;
use crate::sender::hasher::Hashed;
use crate::sender::inbox::{Arrival, Inbox};
use crate::sender::merge::Merged;
use crate::sender::replies::Answered;
use crate::sender::shared::{SenderShared, Side};
use crate::source::{self, Kind, Source};

/// A file that is described and awaits its result.
pub(super) struct Sent {
    source: Source,
    bytes: u64,
    root: Hash,
    /// Every change since it was read shows.
    settled: bool,
    /// Its map, if that is saved.
    map: Option<MapRecord>,
}

/// The merging thread's state.
pub struct Session<'a, W: Write> {
    pub(super) shared: &'a SenderShared<'a, W>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) hashed: Receiver<Vec<Hashed>>,
    /// Taken from there.
    pub(super) taken: VecDeque<Hashed>,
    pub(super) buffers: Sender<Vec<u8>>,
    pub(super) describer: Describer<'a, W>,
    /// Everything below the sources is announced.
    walked: bool,
    /// Files that need a second try, and then other names of files.
    again: VecDeque<Source>,
    /// Sources that the destination has, and that are removed at the end.
    arrived: Vec<Source>,
    pub(super) awaited: HashMap<u64, Sent>,
    /// The receiver has prepared what is decided about all hosts.
    pub(super) is_prepared: bool,
    /// It was told that it may put it in its place.
    pub(super) is_decided: bool,
    /// Failures that the receiver told of.
    told: Stats,
    /// Has the walker tell, when everything has arrived, what the receiver may remove the
    /// rest of.
    remove: Option<Sender<()>>,
    /// Nothing more will come, and why is known.
    closed: bool,
}

impl<'a, W: Write> Session<'a, W> {
    /// Fed by a reader through `inbox` and by the hasher through `hashed`, whose buffers
    /// go back to it. `remove` has the walker tell once more what directories hold.
    pub fn new(
        shared: &'a SenderShared<'a, W>,
        inbox: Arc<Inbox>,
        hashed: Receiver<Vec<Hashed>>,
        buffers: Sender<Vec<u8>>,
        remove: Option<Sender<()>>,
    ) -> Session<'a, W> {
        Session {
            shared,
            inbox,
            hashed,
            taken: VecDeque::new(),
            buffers,
            describer: Describer::new(shared),
            walked: false,
            again: VecDeque::new(),
            arrived: Vec::new(),
            awaited: HashMap::new(),
            is_prepared: false,
            is_decided: false,
            told: Stats::default(),
            remove,
            closed: false,
        }
    }

    /// Serves the receiver until everything has its result; what both ends did.
    pub fn run(&mut self) -> Result<Stats> {
        while !self.is_through()? {
            match self.wait(None)? {
                Arrival::Answered(answered) => self.describe(answered)?,
                other => self.on_arrival(other)?,
            }
        }
        self.remove_others()?;
        std::mem::take(&mut self.arrived).iter().try_for_each(|source| self.remove(source))?;
        self.end()
    }

    /// Has the receiver remove what the sources do not have, if everything has arrived.
    fn remove_others(&mut self) -> Result<()> {
        let Some(remove) = self.remove.take() else { return Ok(()) };
        let ignores = self.shared.options.delete.is_some_and(|delete| delete.ignore_errors);
        if !ignores && (lock(&self.shared.stats).has_failed() || self.told.has_failed()) {
            return self.shared.warn(Warning::new(source::NOTHING_REMOVED));
        }
        self.walked = remove.send(()).is_err();
        while !self.walked {
            let arrival = self.wait(None)?;
            self.on_arrival(arrival)?;
        }
        Ok(())
    }

    /// Whether every file has its result; announces those that need another try, and then other
    /// names of files, which have no result (step 6).
    fn is_through(&mut self) -> Result<bool> {
        if !self.walked || !self.shared.files.all_answered() || !self.awaited.is_empty() {
            return Ok(false);
        }
        if self.again.is_empty() {
            let (links, failures) = lock(&self.shared.links).take();
            self.again.extend(links);
            failures.into_iter().try_for_each(|failure| self.shared.source_failed(failure))?;
        }
        // Without credit this thread would wait for itself.
        while self.shared.files.may_announce()
            && let Some(source) = self.again.pop_front()
        {
            announce(self.shared, source)?;
        }
        let all_told = !self.shared.options.remove_source_files || self.shared.files.all_told();
        Ok(self.again.is_empty() && self.shared.files.all_answered() && all_told)
    }

    /// Exchanges totals (step 7).
    fn end(&mut self) -> Result<Stats> {
        let mut stats = lock(&self.shared.stats).clone();
        self.inbox.end();
        if self.shared.side == Side::Responder
            && let Some(believed) = Message::believed(&stats, self.shared.version)
        {
            self.shared.send(&believed)?;
        }
        self.shared.send(&Message::End(Box::new(stats.clone())))?;
        loop {
            match self.wait(None)? {
                Arrival::Message(Message::End(mut theirs)) => {
                    // Totals cannot take back what was said before.
                    theirs.count_told(&self.told);
                    theirs.believed_bytes = self.told.believed_bytes;
                    stats.add_receiver(&theirs);
                    return Ok(stats);
                }
                // The receiver reads nothing any more.
                Arrival::Grant(_) => {}
                other => self.on_arrival(other)?,
            }
        }
    }

    /// What is here already, of the file `of` or, without one, of any.
    pub(super) fn try_next(&mut self, of: Option<u64>) -> Result<Option<Arrival>> {
        let next = self.inbox.try_next(of);
        self.closed |= next.is_err();
        next
    }

    /// The same; what was held back is on its way before this waits.
    pub(super) fn wait(&mut self, of: Option<u64>) -> Result<Arrival> {
        if let Some(event) = self.try_next(of)? {
            return Ok(event);
        }
        self.describer.flush_pending()?;
        self.shared.lock_output().flush()?;
        let next = self.inbox.next(of);
        self.closed |= next.is_err();
        next
    }

    /// When a write fails, the other side may have said why, or broken a rule.
    pub fn reason(&mut self, error: Error) -> Error {
        if self.closed || !matches!(error, Error::Closed { .. }) {
            return error;
        }
        match self.inbox.reason() {
            Some(reason @ (Error::Remote { .. } | Error::Protocol { .. })) => reason,
            _ => error,
        }
    }

    pub(super) fn unexpected(&self, what: &str) -> Error {
        Error::Protocol { peer: "the receiver".into(), what: what.into() }
    }

    /// Deals with what concerns no file that is being described.
    pub(super) fn on_arrival(&mut self, event: Arrival) -> Result<()> {
        match event {
            Arrival::Message(message) => self.on_message(message),
            Arrival::Grant(units) => self.shared.send(&Message::Granted { units: units as u64 }),
            Arrival::Walked(result) => {
                self.walked = true;
                result
            }
            // Nothing of these is taken without a file, or with one.
            Arrival::Answered(_) | Arrival::File(_) => Ok(()),
        }
    }

    fn on_message(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Unchanged { id, changes } => {
                let Some(source) = self.shared.files.take(id) else {
                    return Err(self.unexpected("an answer for no file"));
                };
                if let Kind::File { allocated, .. } = source.kind {
                    lock(&self.shared.stats).data_bytes += allocated;
                    self.shared.reporter.event(Event::Done(Phase::Mapping, allocated));
                }
                self.report(&source, Outcome::Unchanged, changes);
                self.arrived(source)?;
            }
            Message::Failed { id, failure } => {
                self.shared.files.take_other(id);
                let sent = self.awaited.remove(&id).map(|sent| sent.source);
                if let Some(source) = self.shared.files.take(id).or(sent) {
                    lock(&self.shared.links).failed(&source);
                }
                self.receiver_failed(&failure);
            }
            Message::Unset(failure) => {
                self.told.count_unset(failure.code);
                if self.shared.side == Side::Initiator {
                    self.shared.reporter.event(Event::Unset(&failure.on(&self.shared.peer)));
                }
            }
            Message::Done { .. } if self.shared.decision.is_some() && !self.is_decided => {
                return Err(self.unexpected("a file in its place, before the decision"));
            }
            Message::Done { id, changed, changes } => {
                if let Some(sent) = self.awaited.remove(&id) {
                    lock(&self.shared.stats).files_sent += u64::from(changed.is_some());
                    let outcome = changed.map_or(Outcome::Unchanged, |_| Outcome::Sent(sent.bytes));
                    self.report(&sent.source, outcome, changes);
                    if let (Some(saved), Some(map)) = (self.shared.saved, sent.map) {
                        saved.keep(map);
                    }
                    if sent.settled {
                        self.arrived(sent.source)?;
                    }
                }
            }
            Message::Made { id, is_there, changes } => {
                let Some(source) = self.shared.files.take_other(id) else {
                    return Err(self.unexpected("an answer for no directory or symlink"));
                };
                if self.shared.options.tells_changes.is_asked() {
                    self.shared.reporter.event(Event::Made(source.item(), changes));
                }
                if is_there {
                    self.arrived(source)?;
                }
            }
            Message::Again { id } => {
                if let Some(sent) = self.awaited.remove(&id) {
                    self.try_again(sent.source, true)?;
                }
            }
            Message::Lacking { id } if self.shared.version >= COPIES => {
                if let Some(sent) = self.awaited.remove(&id) {
                    self.try_again(sent.source, false)?;
                }
            }
            Message::Prepared { id } => {
                let awaited = self.shared.decision.zip(self.awaited.get(&id));
                let Some((decision, root)) = awaited.map(|(decision, sent)| (decision, sent.root)) else {
                    return Err(self.unexpected("a prepared file that nobody waits for"));
                };
                self.await_decision(decision, id, &root)?;
            }
            Message::Believed { bytes } => self.told.believed_bytes = bytes,
            Message::Granted { units } => {
                let units = usize::try_from(units).unwrap_or(usize::MAX);
                if !self.shared.files.give_back(units) {
                    return Err(self.unexpected("more credit than was taken"));
                }
            }
            Message::Removed { paths } if self.shared.options.removes() => {
                paths.iter().for_each(|path| self.shared.reporter.event(Event::Removed(path)));
            }
            Message::Stays(failure) if self.shared.options.removes() => self.receiver_failed(&failure),
            Message::Busy(phase) => self.shared.reporter.event(Event::Phase(phase)),
            message @ (Message::Warning(_) | Message::WarningAbout { .. }) => {
                let warning = message.into_warning(&self.shared.peer);
                warning.iter().for_each(|warning| self.shared.reporter.event(Event::Warning(warning)));
            }
            _ => return Err(self.unexpected("a message out of turn")),
        }
        Ok(())
    }

    /// The destination has something. What may have other names here is changed when one of them
    /// goes, and may be read under another: it waits. So does all where directories are still to
    /// be told of: what is gone by then would go at the destination, too.
    fn arrived(&mut self, source: Source) -> Result<()> {
        let options = self.shared.options;
        if !options.remove_source_files || options.dry_run {
            return Ok(());
        }
        if source.kind != Kind::Directory && (source.has_other_names() || self.remove.is_some()) {
            self.arrived.push(source);
            return Ok(());
        }
        self.remove(&source)
    }

    fn remove(&self, source: &Source) -> Result<()> {
        source.remove(self.shared.options).or_else(|error| self.shared.source_failed(error.to_failure()))
    }

    fn report(&self, source: &Source, outcome: Outcome, changes: Changes) {
        self.shared.reporter.event(Event::File(source.item(), outcome, changes));
    }

    /// The receiver counts its failures, and shows them where it is the initiator.
    fn receiver_failed(&mut self, failure: &Failure) {
        self.told.count_failure(failure.code);
        if self.shared.side == Side::Initiator {
            self.shared.reporter.event(Event::Failed(&failure.clone().on(&self.shared.peer)));
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
            return self.source_failed(&source, &Error::refused(&source.path, why));
        }
        match source.look_again(self.shared.options) {
            Ok(mut source) => {
                if let Kind::File { whole, retry, .. } = &mut source.kind {
                    (*whole, *retry) = (whole_again, true);
                }
                self.again.push_back(source);
                Ok(())
            }
            Err(error) => self.source_failed(&source, &error),
        }
    }

    /// A file could not be read; its other names are not made then.
    fn source_failed(&self, source: &Source, error: &Error) -> Result<()> {
        lock(&self.shared.links).failed(source);
        self.shared.source_failed(source::lost(error))
    }

    /// Describes one file to the receiver from its first block to its last (step 4).
    fn describe(&mut self, answered: Answered) -> Result<()> {
        let (id, changes) = (answered.id, answered.changes);
        let Some(source) = self.shared.files.take(id) else {
            return Err(self.unexpected("an answer for no file"));
        };
        let Kind::File { length, allocated, whole, retry } = source.kind else { return Ok(()) };
        let grid = Grid { length, block: self.shared.options.block_size };
        if self.shared.describes {
            self.shared.send(&Message::Content { id })?;
        }
        self.describer.begin(answered.mapped, whole || self.shared.options.whole_file);
        let saved = self.shared.saved.filter(|_| self.shared.describes && !self.shared.options.dry_run);
        let map = saved.and_then(|saved| saved.begin(&grid));
        let mut file = DescribedFile::new(answered, grid, allocated, map);
        file.may_be_known = !retry;
        let merged = self.merge(&mut file)?;
        // The receiver waits for no Finish of a file that has failed.
        let merged = self.inbox.forget(id).map_or(merged, Merged::ReceiverFailed);
        match merged {
            Merged::Whole(..) => {}
            _ => self.abandon(&file)?,
        }
        match merged {
            Merged::Whole(..) if !self.shared.describes => self.compared(source, &file, changes),
            Merged::Whole(root, map) => {
                if !file.settled {
                    self.shared.warn(source::doubt(&source.path))?;
                }
                self.shared.send(&Message::Finish { root, settled: file.settled })?;
                self.awaited.insert(id, Sent { source, bytes: file.bytes, root, settled: file.settled, map });
                if self.awaited.len() > CREDIT {
                    return Err(self.unexpected("credit for files without a result"));
                }
                Ok(())
            }
            Merged::SourceChanged => self.try_again(source, false),
            Merged::SourceFailed(error) => self.source_failed(&source, &error),
            Merged::SourceUnfit(content) => {
                let runs_through = self.shared.side == Side::Initiator;
                self.source_failed(&source, &content.refuse(&source.path, runs_through))
            }
            Merged::SourceUnread(error) => {
                self.source_failed(&source, &Error::file("read", &source.path)(error))
            }
            Merged::ReceiverFailed(failure) => {
                lock(&self.shared.links).failed(&source);
                self.receiver_failed(&failure);
                Ok(())
            }
        }
    }

    /// What a dry run without descriptions found out about a file.
    fn compared(&self, source: Source, file: &DescribedFile, changes: Changes) -> Result<()> {
        let outcome = if file.differs { Outcome::Sent(file.bytes) } else { Outcome::Unchanged };
        lock(&self.shared.stats).files_sent += u64::from(file.differs);
        self.report(&source, outcome, changes);
        if self.shared.side == Side::Initiator {
            return Ok(());
        }
        let would_send = file.differs.then_some(file.bytes);
        let Source { target: path, kind, metadata, .. } = source;
        // Only what is shown of it.
        let metadata = metadata.without_extended();
        let entry = Entry { id: file.id, path, kind, metadata };
        self.shared.send(&Message::Compared { entry, changes, would_send })
    }
}
