//! What the receiver's threads share, above all the way back to the sender.
//!
//! Nobody but the writing thread ever waits for the connection: messages queue
//! up, and there are never many of them. Maps are bulky, so the thread that
//! makes them waits for room, and it is the only one that may. Therefore what
//! arrives is always drained, and neither direction can block the other.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::hashmap::plan::Run;
use crate::options::Options;
use crate::protocol::{Answer, FrameWriter, Message};
use crate::report::{Event, Outcome, Reporter, Stats};

/// Map frames that wait to be written.
const QUEUED_MAPS: usize = 16;
/// How long a message may wait for others to go with.
const LINGER: Duration = Duration::from_millis(1);

/// The queue of what goes to the sender.
pub(crate) struct Outbox {
    queue: Sender<Out>,
    room: SyncSender<()>,
}

enum Out {
    Message(Message),
    Map(Vec<Run>),
    Leaves(Answer),
    Close,
}

/// The other end of an [`Outbox`].
pub(crate) struct Outgoing {
    queue: Receiver<Out>,
    room: Receiver<()>,
}

/// A queue, and what has to be written from it.
pub(crate) fn queue() -> (Outbox, Outgoing) {
    let (queue_in, queue) = channel();
    let (room_in, room) = sync_channel(QUEUED_MAPS);
    (Outbox { queue: queue_in, room: room_in }, Outgoing { queue, room })
}

impl Outbox {
    /// Queues a message. An error means that the connection is gone.
    pub fn tell(&self, message: Message) -> Result<()> {
        self.put(Out::Message(message))
    }

    /// Queues what is there of blocks that were asked about. There are no more of these
    /// than blocks in maps that were sent, and maps wait for room.
    pub fn leaves(&self, answer: Answer) -> Result<()> {
        self.put(Out::Leaves(answer))
    }

    /// Queues a stretch of a map when there is room for it.
    pub fn map(&self, runs: Vec<Run>) -> Result<()> {
        self.room.send(()).map_err(|_| gone())?;
        self.put(Out::Map(runs))
    }

    /// Tells the other side why it is being left, unless it knows. It may be gone.
    pub fn give_up(&self, error: &Error) {
        if let Some(message) = Message::farewell(error) {
            let _ = self.tell(message);
        }
    }

    /// Has the writing thread end after what is queued. It may have ended.
    pub fn close(&self) {
        let _ = self.put(Out::Close);
    }

    fn put(&self, out: Out) -> Result<()> {
        self.queue.send(out).map_err(|_| gone())
    }
}

fn gone() -> Error {
    Error::Closed { peer: "the sender".into(), detail: String::new() }
}

impl Outgoing {
    /// Writes until the queue is closed; sends off what is there whenever
    /// nothing more waits. News of files waits a moment for more, once: each that
    /// leaves by itself is a packet, and wakes half a dozen threads on its way. Only
    /// what is written counts as answered, so that a sender that does not read cannot
    /// have answers pile up.
    pub fn write_to<W: Write>(self, mut output: FrameWriter<W>, unanswered: &AtomicUsize) -> Result<()> {
        // All that waits to be sent off is news of files, and it has not lingered yet.
        let mut patient = false;
        loop {
            let mut next = self.queue.try_recv();
            if patient && next.is_err() {
                std::thread::sleep(LINGER);
                patient = false;
                next = self.queue.try_recv();
            }
            let next = match next {
                Ok(next) => next,
                Err(_) => {
                    output.flush()?;
                    patient = true;
                    let Ok(next) = self.queue.recv() else { return Ok(()) };
                    next
                }
            };
            patient &= matches!(next, Out::Message(_));
            match next {
                Out::Message(message) => {
                    unanswered.fetch_sub(usize::from(message.is_answer()), Ordering::Relaxed);
                    output.message(&message)?;
                }
                Out::Map(runs) => {
                    output.map(&runs)?;
                    // Whoever queued the map has paid for its place.
                    let _ = self.room.recv();
                }
                Out::Leaves(answer) => output.leaves(&answer)?,
                Out::Close => return output.flush(),
            }
        }
    }
}

/// What the threads of a receiver share.
pub(crate) struct Shared<'a> {
    pub outbox: Outbox,
    pub stats: Mutex<Stats>,
    /// Files announced and not yet answered.
    pub unanswered: AtomicUsize,
    /// Files that were asked for and are not described yet.
    pub asked: AtomicUsize,
    /// The run has failed: no more work need be done.
    pub stopped: AtomicBool,
    /// The file, by id, whose map nobody needs any more.
    pub given_up: AtomicU64,
    pub options: Arc<Options>,
    /// Sources can be opened here.
    pub beside_source: bool,
    pub reporter: &'a dyn Reporter,
}

impl Shared<'_> {
    pub fn lock_stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn tell(&self, message: Message) -> Result<()> {
        self.outbox.tell(message)
    }

    /// Whether mapping this file is of no more use.
    pub fn is_given_up(&self, id: u64) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.given_up.load(Ordering::Relaxed) == id
    }

    /// Counts a failed entry, shows it here, and has it shown there. `answer`:
    /// nothing was answered for it yet.
    pub fn fail(&self, id: u64, error: &Error, answer: bool) -> Result<()> {
        let failure = error.to_failure();
        self.lock_stats().count_failure(failure.code);
        self.reporter.event(Event::Failed(&failure));
        self.tell(Message::Failed { id, failure, answer })
    }

    /// Warns the user, wherever they are.
    pub fn warn(&self, text: String) -> Result<()> {
        self.reporter.event(Event::Warning(&text));
        self.tell(Message::Warning(text))
    }

    pub fn report(&self, entry: &[u8], outcome: Outcome) {
        self.reporter.event(Event::File(Path::new(OsStr::from_bytes(entry)), outcome));
    }
}
