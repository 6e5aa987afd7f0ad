//! The receiving role, over any pair of streams. Answers each announced file
//! with the map of what it has, puts together what arrives, and makes it the
//! destination when its root hash is right. Trusts nothing that it is told.
//!
//! A reader takes frames in, the caller's thread applies them. A mapper answers
//! files in order and hashes what is there; what it finds goes to the sender and,
//! over a bounded queue, to the caller's thread. Finishers sync and rename, several at
//! a time. A writer sends off what the others have to say.

pub(crate) mod answer;
pub(crate) mod assemble;
pub(crate) mod inbox;
pub(crate) mod outbox;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use crate::apply;
use crate::apply::tree::DestinationTree;
pub use crate::apply::tree::Target;
use crate::error::{Error, Result};
use crate::hashmap::Hash;
use crate::hashmap::ahead::EarlyStart;
use crate::options::Options;
use crate::protocol::{
    self, Answer, Differ, Entry, Frame, FrameReader, FrameWriter, MAX_LENGTH, MAX_UNANSWERED, Message,
};
use crate::receiver::answer::{Job, answer_files};
use crate::receiver::assemble::{ApplyError, Maps, OpenFile};
use crate::receiver::inbox::Inbox;
use crate::receiver::outbox::Shared;
use crate::report::{Event, Outcome, Phase, Reporter, Stats};
use crate::source::Kind;
use crate::working::names_working_file;

/// Stretches of maps, and opened destinations, that wait to be applied.
const QUEUED_MAPS: usize = 64;
/// Files that are being synced and renamed at once, and that wait for it.
const FINISHERS: usize = 4;
/// A file of which more than this arrived takes a moment to be written back.
const WORTH_TELLING: u64 = 8 << 20;

/// Receives into `target` until the sender is through, and answers with totals. `early`:
/// what was begun already of what is there.
/// Returns what both ends did; failed files are counted there, not errors.
///
/// # Errors
///
/// When the connection fails, the sender breaks the protocol, or the
/// destination as a whole can't be used.
pub fn run<R: Read + Send + 'static, W: Write + Send>(
    input: FrameReader<R>,
    output: FrameWriter<W>,
    target: Target,
    early: Option<EarlyStart>,
    options: &Options,
    reporter: &dyn Reporter,
) -> Result<Stats> {
    let (outbox, outgoing) = outbox::queue();
    let shared = Shared {
        outbox,
        stats: Mutex::default(),
        unanswered: AtomicUsize::new(0),
        asked: AtomicUsize::new(0),
        stopped: AtomicBool::new(false),
        given_up: AtomicU64::new(u64::MAX),
        options: Arc::new(options.clone()),
        beside_source: target.beside_source,
        reporter,
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| outgoing.write_to(output, &shared.unanswered));
        let received = receive(&shared, Inbox::open(input), target, early);
        let ours = shared.lock_stats().clone();
        let told = match &received {
            Ok(_) => shared.tell(Message::End(Box::new(ours.clone()))),
            Err(error) => {
                shared.outbox.give_up(error);
                Ok(())
            }
        };
        shared.outbox.close();
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let mut theirs = received?;
        written.and(told)?;
        theirs.add_receiver(&ours);
        Ok(theirs)
    })
}

/// Everything up to the sender's totals, and what has to wait for them.
fn receive(shared: &Shared, inbox: Inbox, target: Target, early: Option<EarlyStart>) -> Result<Stats> {
    let (jobs_in, jobs) = sync_channel(MAX_UNANSWERED);
    let (maps_in, maps) = sync_channel(QUEUED_MAPS);
    let (finish_in, finish) = sync_channel(FINISHERS);
    let finish = Mutex::new(finish);
    let (result, tree) = std::thread::scope(|scope| {
        scope.spawn(|| answer_files(shared, early, jobs, maps_in));
        for _ in 0..FINISHERS {
            scope.spawn(|| finish_files(shared, &finish));
        }
        let mut applier = Applier {
            shared,
            inbox,
            tree: None,
            target,
            jobs: jobs_in,
            maps: Maps::new(maps),
            finish: finish_in,
            current: Current::None,
            only: None,
        };
        let result = applier.run();
        shared.stopped.store(result.is_err(), Ordering::Relaxed);
        applier.fail();
        // The other threads end when there can be no more work for them.
        let Applier { jobs, maps, finish, tree, .. } = applier;
        drop((jobs, maps, finish));
        (result, tree)
    });
    let theirs = result?;
    for (id, error) in tree.map(DestinationTree::finish).unwrap_or_default() {
        shared.fail(id, &error, false)?;
    }
    Ok(theirs)
}

/// What the caller's thread is at.
enum Current {
    None,
    File(Box<OpenFile>),
    /// It failed; the rest of its description is skipped.
    Failed,
}

/// A file whose content is complete.
struct Complete {
    file: Box<OpenFile>,
    root: Hash,
}

/// The caller's thread.
struct Applier<'a> {
    shared: &'a Shared<'a>,
    inbox: Inbox,
    target: Target,
    tree: Option<DestinationTree>,
    jobs: SyncSender<Job>,
    maps: Maps,
    finish: SyncSender<Complete>,
    current: Current,
    /// The entry that goes under the destination's own name, where there is only one.
    only: Option<Vec<u8>>,
}

impl Applier<'_> {
    /// Handles frames until the sender's totals.
    fn run(&mut self) -> Result<Stats> {
        loop {
            match self.inbox.next()? {
                Frame::Message(Message::End(stats)) if matches!(self.current, Current::None) => {
                    let open = [&self.shared.unanswered, &self.shared.asked];
                    if open.iter().any(|count| count.load(Ordering::Relaxed) > 0) {
                        return Err(self.inbox.bad("an end before every file was described"));
                    }
                    return Ok(*stats);
                }
                Frame::Message(message) => self.message(message)?,
                Frame::Data(data) => {
                    self.describe(|maps, file| file.data(maps, &data))?;
                    self.inbox.recycle(data);
                }
                Frame::Differ(differ) => self.compare(&differ)?,
                Frame::Patch(patch) => self.describe(|_, file| file.patch(&patch))?,
                Frame::Map(_) | Frame::Leaves(_) => {
                    return Err(self.inbox.bad("something that only receivers say"));
                }
            }
        }
    }

    fn message(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Layout { single } if self.tree.is_none() => {
                let options = Arc::clone(&self.shared.options);
                self.tree = Some(DestinationTree::open(&self.target, single, options)?);
                Ok(())
            }
            Message::Entry(entry) => self.entry(entry),
            Message::Content { id } if matches!(self.current, Current::None) => self.begin(id),
            Message::Keep { blocks } => self.describe(|maps, file| file.keep(maps, blocks)),
            Message::Zero { blocks } => self.describe(|maps, file| file.zero(maps, blocks)),
            Message::Finish { root } => self.finish(root),
            Message::Lend { path } if self.shared.beside_source => {
                self.copy(Path::new(OsStr::from_bytes(&path)))
            }
            Message::Abandon => self.abandon(),
            Message::Warning(text) => {
                self.shared.reporter.event(Event::Warning(&text));
                Ok(())
            }
            Message::Compared { path, would_send } if self.shared.options.dry_run => {
                self.shared.report(&path, would_send.map_or(Outcome::Unchanged, Outcome::Sent));
                Ok(())
            }
            Message::SourceFailed(failure) => {
                self.shared.reporter.event(Event::Failed(&failure));
                Ok(())
            }
            _ => Err(self.inbox.bad("a message out of turn")),
        }
    }

    fn entry(&mut self, entry: Entry) -> Result<()> {
        protocol::check_path(&entry.path).map_err(|what| self.inbox.bad(what))?;
        let Some(tree) = &mut self.tree else { return Err(self.inbox.bad("an entry before the layout")) };
        if tree.root().is_file() {
            // There is one name to write to, and its directory is not ours to change.
            let only = self.only.get_or_insert_with(|| entry.path.clone());
            if *only != entry.path || matches!(entry.kind, Kind::Directory) {
                return Err(self.inbox.bad("more than the single file that it promised"));
            }
        }
        if names_working_file(&entry.path) {
            // It could plant a sealed log there, which the next run would finish.
            return Err(self.inbox.bad("it names a working file"));
        }
        match entry.kind {
            Kind::File { length, allocated, whole, retry } => {
                let unanswered = self.shared.unanswered.fetch_add(1, Ordering::Relaxed);
                if length > MAX_LENGTH || unanswered >= MAX_UNANSWERED {
                    return Err(self.inbox.bad(format!("a file of {length} bytes, {unanswered} unanswered")));
                }
                self.shared.reporter.event(Event::Found(allocated));
                let whole = whole || self.shared.options.whole_file;
                let attributes = tree.attributes(&entry.metadata);
                let request = apply::Request { length, data: allocated, whole, attributes };
                let root = tree.root().clone();
                let job = Job { id: entry.id, entry: entry.path, root, request, retry };
                // A mapper that is gone took the connection with it; the next read says so.
                let _ = self.jobs.send(job);
                Ok(())
            }
            Kind::Directory => {
                let made = tree.make_directory(entry.id, &entry.path, &entry.metadata);
                self.settle_entry(entry.id, made)
            }
            Kind::Symlink(link) => {
                let made = tree.make_symlink(&entry.path, &link, &entry.metadata);
                self.settle_entry(entry.id, made)
            }
        }
    }

    fn settle_entry(&self, id: u64, result: Result<()>) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(error) => self.shared.fail(id, &error, false),
        }
    }

    /// The sender describes the next file that has an answer.
    fn begin(&mut self, id: u64) -> Result<()> {
        match self.maps.begin(id) {
            Ok(file) => {
                self.shared.asked.fetch_sub(1, Ordering::Relaxed);
                self.current = Current::File(Box::new(file));
                Ok(())
            }
            Err(error) => self.failed(id, error),
        }
    }

    /// Applies one piece of the description.
    fn describe(
        &mut self,
        apply: impl FnOnce(&mut Maps, &mut OpenFile) -> Result<u64, ApplyError>,
    ) -> Result<()> {
        let file = match &mut self.current {
            Current::File(file) => file,
            Current::Failed => return Ok(()),
            Current::None => return Err(self.inbox.bad("content without a file")),
        };
        match apply(&mut self.maps, file) {
            Ok(bytes) => {
                self.shared.reporter.event(Event::Done(Phase::Sending, bytes));
                Ok(())
            }
            Err(error) => {
                let id = file.id;
                self.failed(id, error)
            }
        }
    }

    /// Answers with what is there of blocks that differ.
    fn compare(&mut self, differ: &Differ) -> Result<()> {
        let mut answer = None;
        let leaf = self.shared.options.leaf_size;
        self.describe(|maps, file| {
            answer = Some(Answer { id: file.id, blocks: file.compare(maps, differ, leaf)? });
            Ok(0)
        })?;
        answer.map_or(Ok(()), |answer| self.shared.outbox.leaves(answer))
    }

    /// What goes wrong with a file fails this file only, unless the sender broke
    /// a rule.
    fn failed(&mut self, id: u64, error: ApplyError) -> Result<()> {
        match error {
            ApplyError::Rule(what) => Err(self.inbox.bad(what)),
            ApplyError::Gone => Err(Error::Closed { peer: "the sender".into(), detail: String::new() }),
            ApplyError::Told => {
                self.fail();
                Ok(())
            }
            ApplyError::File(error) => {
                self.give_up(id);
                match (&error, std::mem::replace(&mut self.current, Current::Failed)) {
                    // On a full disk it would only be in the way.
                    (Error::Space { .. }, Current::File(file)) => file.destination.discard(),
                    (_, Current::File(file)) => file.destination.keep(),
                    _ => {}
                }
                self.shared.fail(id, &error, false)
            }
        }
    }

    /// Gives the current file up and keeps what there is of it for the next run.
    fn fail(&mut self) {
        if let Current::File(file) = std::mem::replace(&mut self.current, Current::Failed) {
            self.give_up(file.id);
            file.destination.keep();
        }
    }

    /// Has the mapper, which may wait for this thread, stop with a file. This thread
    /// never waits for it: it has to read on, or the sender could not.
    fn give_up(&mut self, id: u64) {
        self.shared.given_up.store(id, Ordering::Relaxed);
        self.maps.discard();
    }

    fn finish(&mut self, root: Hash) -> Result<()> {
        let mut found = None;
        self.describe(|_, file| {
            found = Some(file.end()?);
            Ok(0)
        })?;
        let current = std::mem::replace(&mut self.current, Current::None);
        let (Current::File(file), Some(found)) = (current, found) else { return Ok(()) };
        if !self.maps.drain() {
            return Err(self.inbox.bad("the end of a file out of turn"));
        }
        if found == Some(root) {
            // A finisher that is gone would have taken the whole run with it.
            let _ = self.finish.send(Complete { file, root });
            return Ok(());
        }
        let (id, whole) = (file.id, file.whole);
        let why = "did not arrive as it was sent; check memory and storage on both sides";
        let error = Error::refused(file.destination.path(), why);
        file.destination.keep();
        if whole {
            self.shared.fail(id, &error, false)
        } else {
            self.shared.tell(Message::Again { id, changed: false })
        }
    }

    /// Copies the source of the current file, which is on this machine.
    fn copy(&mut self, source: &Path) -> Result<()> {
        let (shared, mut same) = (self.shared, false);
        self.describe(|_, file| {
            same = file.copy(source, shared.options.hole_map, |bytes| {
                // A connection that is gone is noticed when the copy is done.
                let _ = shared.tell(Message::Copied(bytes));
            })?;
            Ok(0)
        })?;
        match std::mem::replace(&mut self.current, Current::None) {
            Current::File(file) if same => {
                // Nothing was hashed, and nothing will be read back. See `finish`.
                let _ = self.finish.send(Complete { file, root: Hash::default() });
                Ok(())
            }
            Current::File(file) => {
                file.destination.discard();
                shared.tell(Message::Again { id: file.id, changed: true })
            }
            _ => Ok(()),
        }
    }

    fn abandon(&mut self) -> Result<()> {
        if matches!(self.current, Current::None) {
            return Err(self.inbox.bad("an abandoned file that was never begun"));
        }
        self.fail();
        self.current = Current::None;
        Ok(())
    }
}

/// Completes files until the applying thread has no more.
fn finish_files(shared: &Shared, queue: &Mutex<Receiver<Complete>>) {
    loop {
        let next = queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).recv();
        let Ok(Complete { file, root }) = next else { return };
        let OpenFile { id, entry, destination, kept, received, resized, .. } = *file;
        let changed = resized || destination.is_changed();
        if received > WORTH_TELLING {
            shared.reporter.event(Event::Phase(Phase::WritingBack));
            // Only a hint for the other end; a broken connection shows below.
            let _ = shared.tell(Message::Busy(Phase::WritingBack));
        }
        // The file is complete even when nobody is left to hear it.
        let _ = match destination.finish(&root, kept) {
            Ok((written, punched)) => {
                let mut stats = shared.lock_stats();
                stats.written_bytes += written;
                stats.punched_bytes = stats.punched_bytes.saturating_add(punched);
                drop(stats);
                shared.report(&entry, if changed { Outcome::Sent(received) } else { Outcome::Unchanged });
                shared.tell(Message::Done { id })
            }
            Err(error) => shared.fail(id, &error, false),
        };
    }
}
