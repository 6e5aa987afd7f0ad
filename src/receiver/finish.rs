//! Completes files that are described: attributes, sync, rename. Step 5 of
//! [`receiver`](crate::receiver).

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::Receiver;

use crate::apply::tree::DelayedFile;
use crate::apply::{Completion, Finished, Prepared, Sink};
use crate::error::{Error, Result, lock};
use crate::hashmap::{Hash, Maps};
use crate::protocol::{Entry, Message};
use crate::receiver::assemble::OpenFile;
use crate::receiver::shared::{ReceiverShared, Settles};
use crate::report::{Changes, Event, Outcome, Phase, Stats};

/// A file of which more than this arrived takes a moment to be written back.
const WORTH_TELLING: u64 = 8 << 20;
/// A file to which less than this was written is completed where it was applied: handing it on
/// would cost more.
const AT_ONCE: u64 = 256 << 10;

/// A file whose content is complete.
pub struct Complete {
    pub file: Box<OpenFile>,
    pub root: Hash,
}

impl Complete {
    /// Whether no other thread need complete it.
    pub fn is_quick(&self) -> bool {
        let is_small = self.file.received + self.file.copied < AT_ONCE && self.file.maps.kept.is_none();
        is_small && self.file.destination.is_renamed()
    }
}

/// What is told of a file when it is in its place.
pub struct Completed {
    id: u64,
    entry: Entry,
    path: PathBuf,
    received: u64,
    changes: Changes,
    maps: Maps,
}

/// Completes files until the applying thread has no more.
pub fn finish_files(shared: &ReceiverShared, queue: &Mutex<Receiver<Complete>>) {
    loop {
        let next = lock(queue).recv();
        let Ok(complete) = next else { return };
        let _finishing = shared.finishing();
        finish(shared, complete);
    }
}

/// Completes a file, or has it wait for storage with others.
pub fn finish(shared: &ReceiverShared, complete: Complete) {
    let Complete { file, root } = complete;
    let path = file.destination.path().to_path_buf();
    let length = file.length();
    let OpenFile { id, entry, destination, kept, received, changes, maps, .. } = *file;
    if received > WORTH_TELLING && !destination.is_preview() {
        shared.reporter.event(Event::Phase(Phase::WritingBack));
        // Only a hint for the other end; a broken connection shows below.
        let _ = shared.tell(Message::Busy(Phase::WritingBack), Settles::Nothing);
    }
    let completed = Completed { id, entry, path, received, changes, maps };
    let destination = match (destination, shared.options.together) {
        (Sink::Destination(destination), Some(run)) => {
            return match destination.prepare(&root, kept, &run) {
                Ok(prepared) => wait_for_commit(shared, prepared, completed),
                Err(error) => finished_one(shared, Err(error), completed),
            };
        }
        (destination, _) => destination,
    };
    match destination.complete(&root, kept, length) {
        Ok(Completion::Finished(finished)) => finished_one(shared, Ok(*finished), completed),
        Ok(Completion::Waits(waiting)) if waiting.may_gather() => {
            shared.committer.add(*waiting, completed, shared.feeds.all_described());
        }
        Ok(Completion::Waits(waiting)) => finished_one(shared, waiting.commit(), completed),
        Err(error) => finished_one(shared, Err(error), completed),
    }
}

/// A file waits until it is decided about all hosts of the run.
fn wait_for_commit(shared: &ReceiverShared, prepared: Prepared, completed: Completed) {
    let id = completed.id;
    lock(&shared.prepared).push((prepared, completed));
    // When nobody hears it, nobody decides.
    let _ = shared.tell(Message::Prepared { id }, Settles::Nothing);
}

/// What is prepared takes its place.
///
/// # Errors
///
/// What is wrong with that, where nothing is.
pub fn commit_prepared(shared: &ReceiverShared) -> Result<(), &'static str> {
    let prepared = std::mem::take(&mut *lock(&shared.prepared));
    if prepared.is_empty() {
        return Err("a decision before anything was prepared");
    }
    let _finishing = shared.finishing();
    for (prepared, completed) in prepared {
        finished_one(shared, prepared.commit(), completed);
    }
    Ok(())
}

/// The run is over. What it has decided against goes on as what any run leaves; what it had not
/// decided stays prepared, if the next run can find it.
pub fn leave_prepared(shared: &ReceiverShared, received: &Result<Stats>) {
    let is_against = matches!(received, Err(Error::Remote { .. }));
    for (prepared, _) in std::mem::take(&mut *lock(&shared.prepared)) {
        if is_against || !prepared.is_found_again() {
            prepared.give_up();
        }
    }
}

/// Has files that are complete take their places, in groups, until there will be no more.
pub fn commit_files(shared: &ReceiverShared) {
    shared
        .committer
        .run(|| shared.finishing(), |finished, completed| finished_one(shared, finished, completed));
}

/// Tells what became of a file.
fn finished_one(shared: &ReceiverShared, finished: Result<Finished>, completed: Completed) {
    // The file is complete even when nobody is left to hear it.
    let _ = tell(shared, finished, completed);
}

fn tell(shared: &ReceiverShared, finished: Result<Finished>, completed: Completed) -> Result<()> {
    let Completed { id, entry, path, received, changes, maps } = completed;
    let finished = match finished {
        Ok(finished) => finished,
        Err(error) => return shared.fail(id, &error, Settles::Entry),
    };
    let note = finished.note(&path);
    let Finished { written, punched, changed, unset, delayed, witness, .. } = finished;
    if let Some(delayed) = delayed {
        lock(&shared.delayed).push(DelayedFile { id, path: entry.path.clone(), delayed });
    }
    let mut stats = shared.lock_stats();
    stats.written_bytes += written;
    stats.punched_bytes = stats.punched_bytes.saturating_add(punched);
    drop(stats);
    let outcome = if changed { Outcome::Sent(received) } else { Outcome::Unchanged };
    shared.report(&entry, outcome, changes);
    let changed = changed.then(|| written.saturating_add(punched));
    note.map_or(Ok(()), |note| shared.warn(note))?;
    shared.unset(unset)?;
    let told = shared.tell(Message::Done { id, changed, changes }, Settles::Entry);
    if let (Some(cache), Some(map), Some(witness)) = (&shared.maps, maps.kept, witness)
        && let Some((file, state)) = witness.state()
    {
        cache.keep(map, &file, &state);
    }
    if let (Some(saved), Some(map)) = (shared.saved, maps.saved) {
        saved.keep(map);
    }
    told
}
