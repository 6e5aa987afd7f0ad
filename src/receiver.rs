//! The receiving role, over any pair of streams. Trusts nothing that it is told.
//!
//! Nine threads: a reader, the caller's thread, which applies what arrives, the answering
//! thread, four finishers, the committing thread, and the writing thread; with `--basis` a tenth,
//! which hashes what was named and not told of. Numbers in other files are
//! those of these steps.
//!
//! 1. The reader takes frames in, a few ahead of the applying thread.
//! 2. The answering thread answers announced files in order: equal; nothing to compare
//!    with; or a map, which is sent as it is hashed. What it finds of a file goes to a
//!    queue of that file first, so that it is there when the sender describes it. It waits
//!    while maps are ahead of what is described or written, or many files are open; for
//!    nothing else.
//! 3. The applying thread makes directories and symlinks, and takes up the files that are
//!    described, one after the other, in the order of the answers: holds the description
//!    against what is there, writes, and answers questions about leaves.
//!    Where the sender says so, it removes what the sender does not have, and may wait for the
//!    way back, which has the names of it.
//! 4. A file is described to its end and its root hash right: it goes to the finishers. It
//!    is not: the sender is told to send it whole. Abandoned, or failed here: what there is
//!    of it stays for the next run, its queue is dropped, and the answering thread stops.
//! 5. Finishers complete files: attributes, sync, rename. Small ones get their attributes from
//!    the applying thread, and the committing thread has a group of them on storage, renames
//!    them, and syncs each directory. Done is said then.
//! 6. The writing thread sends off what the others have to say. What it has written frees
//!    the credit of what caused it, which goes back to the sender in batches.
//! 7. After the sender's totals, when every file is finished, those that waited for that
//!    (`--delay-updates`) take their places, unless other names of files or removals had them
//!    do so before; directories get their attributes, deepest first, and the totals go back.
//!
//! Guaranteed: a file is the old one or the new one, and the new one only if its root hash
//! is the sender's; each entry gets one result, and a file that waited a failure behind it, if
//! it cannot take its place; what a sender causes by not reading stays
//! within its credit. The applying thread waits for the sender, for finishers, and for a
//! map of which the sender has seen as much; never for the way back.
//!
//! Not guaranteed: the order of results; that what a result says is on storage before the
//! next file is (with `--no-fsync`, at all).

mod answer;
mod assemble;
mod basis_feed;
mod blocks;
mod entries;
mod finish;
mod list;
mod other_basis;
mod others;
mod outbox;
mod places;
mod questions;
mod read_ahead;
mod shared;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};

use answer::AnnouncedFile;
pub use answer::Answerer;
use assemble::{ApplyError, OpenFile};
use basis_feed::BasisFeeds;
use finish::{Complete, commit_files, finish_files};
pub use list::list;
use others::Lost;
use read_ahead::ReadAhead;
use shared::{ReceiverShared, Settles};

use crate::apply::Basis;
use crate::apply::tree::DestinationTree;
pub use crate::apply::tree::{Asides, Target};
use crate::error::{Error, Failure, Result};
use crate::hashmap::Hash;
use crate::protocol::{Connection, Frame, Message};
use crate::report::{Event, Outcome, Phase, Stats};
use crate::source::Contents;

/// Files that are being synced and renamed at once, and that wait for it.
const FINISHERS: usize = 4;

/// Receives into `target` until the sender is through, and answers with totals.
/// `answerer`: one that has begun already.
/// Returns what both ends did; failed files are counted there, not errors.
///
/// # Errors
///
/// When the connection fails, the sender breaks the protocol, or the
/// destination as a whole can't be used.
pub fn run<'a, R: Read + Send + 'static, W: Write + Send>(
    connection: Connection<'a, R, W>,
    target: Target,
    answerer: Option<Answerer<'a>>,
) -> Result<Stats> {
    let Connection { input, output, options, reporter, saved } = connection;
    let (outbox, unsent) = outbox::queue();
    let shared = Arc::new(ReceiverShared::new(outbox, options, input.version(), (reporter, saved)));
    std::thread::scope(|scope| {
        let writer = scope
            .spawn(|| unsent.write_to(output, &shared.credit, options.life_sign(), || shared.busy_with()));
        let received = receive(&shared, ReadAhead::open(input), target, answerer);
        let ours = shared.lock_stats().clone();
        let told = match &received {
            Ok(_) => shared
                .tell_believed(&ours)
                .and_then(|()| shared.tell(Message::End(Box::new(ours.clone())), Settles::Nothing)),
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
fn receive<'a>(
    shared: &Arc<ReceiverShared<'a>>,
    frames: ReadAhead,
    target: Target,
    answerer: Option<Answerer<'a>>,
) -> Result<Stats> {
    let (result, tree) = std::thread::scope(|scope| {
        scope.spawn(|| commit_files(shared));
        let applied = apply(shared, frames, target, answerer);
        shared.committer.close();
        applied
    });
    finish::leave_prepared(shared, &result);
    let (theirs, mut tree) = (result?, tree);
    tree.as_mut().map_or(Ok(true), |tree| shared.put_delayed(tree))?;
    // As many as there are directories; each of them takes memory here anyway.
    let mut told = Ok(());
    let mut tell = |id, set: Result<Option<Failure>>| {
        let now =
            set.map_or_else(|error| shared.fail(id, &error, Settles::Nothing), |unset| shared.unset(unset));
        if told.is_ok() {
            told = now;
        }
    };
    if let Some(tree) = tree {
        tree.finish(&mut tell);
    }
    told.map(|()| theirs)
}

/// Everything up to the sender's totals, until every file is completed or waits for storage.
fn apply<'a>(
    shared: &Arc<ReceiverShared<'a>>,
    frames: ReadAhead,
    target: Target,
    answerer: Option<Answerer<'a>>,
) -> (Result<Stats>, Option<DestinationTree>) {
    let (finish_in, finish) = sync_channel(FINISHERS);
    let finish = Mutex::new(finish);
    std::thread::scope(|scope| {
        let answerer = answerer.unwrap_or_else(|| Answerer::start(scope, None));
        for _ in 0..FINISHERS {
            scope.spawn(|| finish_files(shared, &finish));
        }
        let unhashed = (!shared.options.basis.is_empty()).then(|| {
            let (unhashed_in, unhashed) = channel();
            scope.spawn(|| questions::hash_named(shared, unhashed));
            unhashed_in
        });
        let mut applier = Applier {
            shared,
            frames,
            tree: None,
            target,
            jobs: answerer.jobs,
            finish: finish_in,
            current: Current::None,
            last: None,
            only: None,
            lost: Lost::No,
            missing: 0,
            unhashed,
            hashed: HashSet::new(),
        };
        let result = applier.run();
        // Also after the sender's totals: in a dry run it may have left a map half read, and
        // grants nothing for the rest.
        shared.stop();
        applier.fail();
        // The other threads end when there can be no more work for them.
        let Applier { jobs, finish, tree, unhashed, .. } = applier;
        drop((jobs, finish, unhashed));
        (result, tree)
    })
}

/// What the caller's thread is at.
enum Current {
    None,
    File(Box<OpenFile>),
    /// It failed; the rest of its description is skipped.
    Failed,
}

/// The caller's thread.
struct Applier<'s, 'a> {
    shared: &'s Arc<ReceiverShared<'a>>,
    frames: ReadAhead,
    target: Target,
    tree: Option<DestinationTree>,
    jobs: Sender<AnnouncedFile<'a>>,
    finish: SyncSender<Complete>,
    current: Current,
    /// The id of the last entry.
    last: Option<u64>,
    /// The entry that goes under the destination's own name, where there is only one.
    only: Option<Vec<u8>>,
    /// Whether files that waited could not take their places.
    lost: Lost,
    /// Blocks that were asked about, and not found.
    missing: usize,
    /// Takes what is hashed to find them.
    unhashed: Option<Sender<Basis>>,
    /// What of that was given to it.
    hashed: HashSet<usize>,
}

impl Applier<'_, '_> {
    /// Handles frames until the sender's totals.
    fn run(&mut self) -> Result<Stats> {
        loop {
            match self.frames.next()? {
                Frame::Message(Message::End(stats)) if matches!(self.current, Current::None) => {
                    if !self.shared.feeds.all_described() {
                        return Err(self.frames.bad("an end before every file was described"));
                    }
                    return Ok(*stats);
                }
                Frame::Message(message) => self.message(message)?,
                Frame::Data(data) => {
                    self.describe(Phase::Sending, |feeds, file| file.data(feeds, &data))?;
                    self.frames.recycle(data);
                }
                Frame::Differ(differ) => self.compare(&differ)?,
                Frame::Patch(patch) => self.describe(Phase::Sending, |_, file| file.patch(&patch))?,
                Frame::Map(..) | Frame::Leaves(_) => {
                    return Err(self.frames.bad("something that only receivers say"));
                }
            }
        }
    }

    fn message(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Layout { single } if self.tree.is_none() => {
                if !single && let Some(saved) = self.shared.saved {
                    return Err(saved.needs_one());
                }
                let options = Arc::clone(&self.shared.options);
                self.tree = Some(DestinationTree::open(&self.target, single, options)?);
                Ok(())
            }
            Message::Knows { roots } => self.known(roots),
            Message::Entry(entry) => self.entry(entry),
            Message::Contents { directory, names, is_whole } if self.shared.options.delete.is_some() => {
                self.contents(Contents { directory, names, is_whole })
            }
            Message::RemoveOthers if self.shared.options.delete.is_some() => self.remove_others(),
            Message::Content { id } if matches!(self.current, Current::None) => self.begin(id),
            Message::Keep { blocks } => self.describe(Phase::Mapping, |feeds, file| file.keep(feeds, blocks)),
            Message::Zero { blocks } => self.describe(Phase::Mapping, |feeds, file| file.zero(feeds, blocks)),
            Message::Finish { root, settled } => self.finish(root, settled),
            Message::Abandon => self.abandon(),
            Message::Commit if self.shared.options.together.is_some() => {
                finish::commit_prepared(self.shared).map_err(|what| self.frames.bad(what))
            }
            Message::Granted { units } if !self.shared.describes => {
                let fits = usize::try_from(units).is_ok_and(|units| self.shared.feeds.give_back(units));
                if fits { Ok(()) } else { Err(self.frames.bad("more credit than was taken")) }
            }
            Message::Busy(phase) => {
                // What goes on here is the longer wait.
                let phase = if phase == Phase::Mapping { self.shared.busy_with() } else { phase };
                self.shared.reporter.event(Event::Phase(phase));
                Ok(())
            }
            message @ (Message::Warning(_) | Message::WarningAbout { .. }) => {
                let warning = message.into_warning(self.frames.peer());
                warning.iter().for_each(|warning| self.shared.reporter.event(Event::Warning(warning)));
                Ok(())
            }
            Message::Compared { entry, changes, would_send } if !self.shared.describes => {
                self.shared.report(&entry, would_send.map_or(Outcome::Unchanged, Outcome::Sent), changes);
                Ok(())
            }
            Message::Believed { bytes } if matches!(self.current, Current::None) => {
                let mut stats = self.shared.lock_stats();
                stats.believed_bytes = stats.believed_bytes.saturating_add(bytes);
                Ok(())
            }
            Message::SourceFailed(failure) => {
                self.shared.reporter.event(Event::Failed(&failure.on(self.frames.peer())));
                Ok(())
            }
            _ => Err(self.frames.bad("a message out of turn")),
        }
    }

    /// The sender describes the next file that has an answer.
    fn begin(&mut self, id: u64) -> Result<()> {
        let Some((begun, cursor)) = self.shared.feeds.begin(id) else {
            return Err(self.frames.bad("the content of a file it was not asked for"));
        };
        self.current = Current::File(Box::new(OpenFile::new(*begun, cursor)));
        self.hash_named(None);
        Ok(())
    }

    /// Applies one piece of the description, which came in this phase of the sender.
    fn describe(
        &mut self,
        phase: Phase,
        apply: impl FnOnce(&BasisFeeds, &mut OpenFile) -> Result<u64, ApplyError>,
    ) -> Result<()> {
        let file = match &mut self.current {
            Current::File(file) => file,
            Current::Failed => return Ok(()),
            Current::None => return Err(self.frames.bad("content without a file")),
        };
        match apply(&self.shared.feeds, file) {
            Ok(bytes) => {
                if bytes > 0 {
                    self.shared.reporter.event(Event::Done(phase, bytes));
                }
                Ok(())
            }
            Err(error) => {
                let id = file.id;
                self.failed(id, error)
            }
        }
    }

    /// What goes wrong with a file fails this file only, unless the sender broke
    /// a rule.
    fn failed(&mut self, id: u64, error: ApplyError) -> Result<()> {
        match error {
            ApplyError::Rule(what) => Err(self.frames.bad(what)),
            ApplyError::Gone => Err(Error::closed("the sender")),
            ApplyError::Told => {
                self.fail();
                Ok(())
            }
            ApplyError::File(error) => {
                let error = match std::mem::replace(&mut self.current, Current::Failed) {
                    Current::File(mut file) => {
                        self.release(&mut file);
                        file.destination.give_up(error)
                    }
                    Current::None | Current::Failed => error,
                };
                // Before the credit for its map is free: others use it at once.
                self.shared.feeds.fail(id, || self.shared.fail(id, &error, Settles::Nothing))
            }
        }
    }

    /// Gives the current file up and keeps what there is of it for the next run.
    fn fail(&mut self) {
        if let Current::File(mut file) = std::mem::replace(&mut self.current, Current::Failed) {
            self.release(&mut file);
            // The answering thread stops with it.
            self.shared.feeds.forget(file.id);
            file.destination.keep();
        }
    }

    /// What is there of a file is held open for others no more: it is locked as long. What the user
    /// named is not.
    fn release(&self, file: &mut OpenFile) {
        if let Some(image) = file.image.take().filter(|_| file.own.is_none()) {
            self.shared.places.close(image, file.place.take(), std::mem::take(&mut file.changed));
        }
    }

    fn finish(&mut self, root: Hash, settled: bool) -> Result<()> {
        let mut found = None;
        self.describe(Phase::Mapping, |_, file| {
            found = Some(file.end()?);
            Ok(0)
        })?;
        match (std::mem::replace(&mut self.current, Current::None), found) {
            (Current::File(mut file), Some(found)) => {
                if !settled {
                    file.destination.forget_time();
                }
                self.complete(file, found, root)
            }
            // It failed, and that was said.
            _ => self.shared.outbox.settle(Settles::Entry.units()),
        }
    }

    /// `found`: what the file hashes to here, if its patches were right; `root`: there.
    fn complete(&mut self, mut file: Box<OpenFile>, found: Option<Hash>, root: Hash) -> Result<()> {
        if !self.shared.feeds.has_ended(file.id) {
            return Err(self.frames.bad("the end of a file out of turn"));
        }
        self.shared.feeds.forget(file.id);
        self.release(&mut file);
        if found == Some(root) || file.destination.is_preview() {
            let complete = Complete { file, root };
            if complete.is_quick() {
                finish::finish(self.shared, complete);
            } else {
                // A finisher that is gone would have taken the whole run with it.
                let _ = self.finish.send(complete);
            }
            return Ok(());
        }
        let (id, whole, is_other) = (file.id, file.whole, file.own.is_some());
        let why = "did not arrive as it was sent; check memory and storage on both sides";
        let error = Error::refused(file.destination.path(), why);
        file.destination.keep();
        // What it was compared with has changed since: what came of it is right.
        let is_lacking = is_other && found.is_none() && self.shared.copies;
        match whole {
            true => self.shared.fail(id, &error, Settles::Entry),
            false if is_lacking => self.shared.tell(Message::Lacking { id }, Settles::Entry),
            false => self.shared.tell(Message::Again { id }, Settles::Entry),
        }
    }

    fn abandon(&mut self) -> Result<()> {
        if matches!(self.current, Current::None) {
            return Err(self.frames.bad("an abandoned file that was never begun"));
        }
        self.fail();
        self.current = Current::None;
        self.shared.outbox.settle(Settles::Entry.units())
    }
}
