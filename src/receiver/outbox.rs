//! The way back to the sender (step 6 of [`receiver`](crate::receiver)).
//!
//! Nobody but the writing thread ever waits for the connection: what there is to say
//! queues up, but for maps and the names of what was removed, whose threads may wait. So the
//! queue is bounded: a sender that does not read has no credit for more messages, and maps and
//! names wait until others are written.

use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::error::{Error, Result, lock};
use crate::hashmap::plan::Run;
use crate::protocol::{Credit, FrameWriter, LeafAnswer, MAX_AHEAD, Message};
use crate::report::Phase;

/// How long a message may wait for others to go with.
const LINGER: Duration = Duration::from_millis(1);

/// The queue of what goes to the sender.
pub struct Outbox {
    queue: Sender<Queued>,
    maps: Arc<QueuedMaps>,
}

/// What is queued of maps. The credit for maps does not bound it: a sender may describe
/// what it has not read.
#[derive(Default)]
struct QueuedMaps {
    state: Mutex<MapState>,
    changed: Condvar,
}

#[derive(Default)]
struct MapState {
    /// Keys, runs of zeros and names that are queued and not written.
    unwritten: usize,
    /// Nothing more is written, or the run is over: nobody need wait.
    stopped: bool,
    /// A thread waits for `changed`. Waking nobody is a system call, too.
    waiting: bool,
}

/// Something in the queue, and the units of credit that are free when it is written.
struct Queued {
    what: OutFrame,
    units: usize,
}

enum OutFrame {
    Message(Message),
    Map(u64, Vec<Run>),
    Leaves(LeafAnswer),
    /// Nothing: there was nothing to say.
    Silence,
    Close,
}

/// The other end of an [`Outbox`].
pub struct Unsent {
    queue: Receiver<Queued>,
    maps: Arc<QueuedMaps>,
}

/// A queue, and what has to be written from it.
pub fn queue() -> (Outbox, Unsent) {
    let (queue_in, queue) = channel();
    let maps = Arc::<QueuedMaps>::default();
    (Outbox { queue: queue_in, maps: Arc::clone(&maps) }, Unsent { queue, maps })
}

impl Outbox {
    /// Queues a message. An error means that the connection is gone.
    pub fn message(&self, message: Message, units: usize) -> Result<()> {
        self.put(OutFrame::Message(message), units)
    }

    /// Queues what is there of blocks that were asked about.
    pub fn leaves(&self, answer: LeafAnswer, units: usize) -> Result<()> {
        self.put(OutFrame::Leaves(answer), units)
    }

    /// Queues a stretch of a map; waits while too much of maps is queued.
    pub fn map(&self, id: u64, runs: Vec<Run>) -> Result<()> {
        self.maps.take(entries_of(&runs));
        self.put(OutFrame::Map(id, runs), 0)
    }

    /// Queues the names of what was removed; waits while too much of maps and names is queued.
    pub fn removed(&self, paths: Vec<Vec<u8>>) -> Result<()> {
        self.maps.take(paths.len());
        self.put(OutFrame::Message(Message::Removed { paths }), 0)
    }

    /// The run is over: maps need not wait any more.
    pub fn stop(&self) {
        self.maps.stop();
    }

    /// What took so many units causes no message.
    pub fn settle(&self, units: usize) -> Result<()> {
        self.put(OutFrame::Silence, units)
    }

    /// Tells the other side why it is being left, unless it knows. It may be gone.
    pub fn give_up(&self, error: &Error) {
        if let Some(message) = Message::farewell(error) {
            let _ = self.message(message, 0);
        }
    }

    /// Has the writing thread end after what is queued. It may have ended.
    pub fn close(&self) {
        let _ = self.put(OutFrame::Close, 0);
    }

    fn put(&self, what: OutFrame, units: usize) -> Result<()> {
        self.queue.send(Queued { what, units }).map_err(|_| gone())
    }
}

impl QueuedMaps {
    fn take(&self, entries: usize) {
        let mut state = lock(&self.state);
        while !state.stopped && state.unwritten + entries > MAX_AHEAD {
            state.waiting = true;
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        state.unwritten += entries;
    }

    fn written(&self, entries: usize) {
        let mut state = lock(&self.state);
        state.unwritten -= entries;
        self.wake(&mut state);
    }

    fn stop(&self) {
        let mut state = lock(&self.state);
        state.stopped = true;
        self.wake(&mut state);
    }

    fn wake(&self, state: &mut MapState) {
        if std::mem::take(&mut state.waiting) {
            self.changed.notify_all();
        }
    }
}

fn entries_of(runs: &[Run]) -> usize {
    runs.iter().map(Run::entries).sum()
}

/// The error of a connection that is gone.
pub fn gone() -> Error {
    Error::closed("the sender")
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.maps.stop();
    }
}

impl Unsent {
    /// Writes until the queue is closed; sends off what is there whenever nothing more
    /// waits. News of files waits a moment for more, once: each that leaves by itself is a
    /// packet, and wakes half a dozen threads on its way. Only what is written frees
    /// `credit`. Where there is nothing to say for `pause`, it says what goes on.
    pub fn write_to<W: Write>(
        self,
        mut output: FrameWriter<W>,
        credit: &Mutex<Credit>,
        pause: Duration,
        busy_with: impl Fn() -> Phase,
    ) -> Result<()> {
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
                    match self.queue.recv_timeout(pause) {
                        Ok(next) => next,
                        Err(RecvTimeoutError::Disconnected) => return Ok(()),
                        Err(RecvTimeoutError::Timeout) => {
                            output.message(&Message::Busy(busy_with()))?;
                            continue;
                        }
                    }
                }
            };
            patient &= matches!(next.what, OutFrame::Message(_) | OutFrame::Silence);
            match next.what {
                OutFrame::Message(message) => {
                    output.message(&message)?;
                    if let Message::Removed { paths } = message {
                        self.maps.written(paths.len());
                    }
                }
                OutFrame::Map(id, runs) => {
                    output.map(id, &runs)?;
                    self.maps.written(entries_of(&runs));
                }
                OutFrame::Leaves(answer) => output.leaves(&answer)?,
                OutFrame::Silence => {}
                OutFrame::Close => return output.flush(),
            }
            let granted = if next.units > 0 { lock(credit).settle(next.units) } else { None };
            if let Some(units) = granted {
                output.message(&Message::Granted { units: units as u64 })?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{CREDIT, Frame, FrameReader};
    use std::sync::mpsc::channel;

    fn keys(count: usize) -> Vec<Run> {
        vec![Run::Keys(vec![[7; 16]; count])]
    }

    fn write_out(unsent: Unsent, to: &mut Vec<u8>, credit: &Mutex<Credit>) {
        let output = FrameWriter::new(to, "the sender");
        unsent.write_to(output, credit, Duration::from_secs(60), || Phase::Mapping).unwrap();
    }

    #[test]
    fn maps_wait_until_others_are_written() {
        let (outbox, unsent) = queue();
        let (queued_in, queued) = channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..5 {
                    outbox.map(0, keys(MAX_AHEAD / 4)).unwrap();
                    queued_in.send(()).unwrap();
                }
                outbox.close();
            });
            assert!((0..4).all(|_| queued.recv().is_ok()));
            assert!(queued.recv_timeout(Duration::from_millis(100)).is_err(), "five were queued");
            let credit = Mutex::new(Credit::for_messages());
            write_out(unsent, &mut Vec::new(), &credit);
            queued.recv().unwrap();
        });
    }

    #[test]
    fn maps_wait_for_nobody_who_is_gone() {
        for is_stopped in [true, false] {
            let (outbox, unsent) = queue();
            outbox.map(0, keys(MAX_AHEAD)).unwrap();
            let outbox = Arc::new(outbox);
            let (ended_in, ended) = channel();
            let waiting = Arc::clone(&outbox);
            std::thread::spawn(move || ended_in.send(waiting.map(0, keys(1)).is_ok()));
            assert!(ended.recv_timeout(Duration::from_millis(50)).is_err(), "too much was queued");
            let unsent = is_stopped.then_some(unsent);
            if unsent.is_some() {
                outbox.stop();
            }
            let queued = ended.recv_timeout(Duration::from_secs(10)).unwrap();
            assert!(queued || !is_stopped);
        }
    }

    #[test]
    fn what_is_written_is_granted_in_batches_and_nothing_else_is() {
        let credit = Mutex::new(Credit::for_messages());
        assert!(lock(&credit).take(CREDIT));
        let (outbox, unsent) = queue();
        (0..300).for_each(|_| outbox.message(Message::Warning("w".into()), 1).unwrap());
        (0..300).for_each(|_| outbox.settle(1).unwrap());
        (0..300).for_each(|_| outbox.message(Message::MapEnd { id: 0 }, 0).unwrap());
        outbox.close();
        let mut written = Vec::new();
        write_out(unsent, &mut written, &credit);
        let mut reader = FrameReader::new(written.as_slice(), "the receiver");
        let granted: Vec<u64> = std::iter::from_fn(|| reader.read().ok())
            .filter_map(|frame| match frame {
                Frame::Message(Message::Granted { units }) => Some(units),
                _ => None,
            })
            .collect();
        assert_eq!(granted, [256, 256]);
        assert!(lock(&credit).take(512) && !lock(&credit).take(1));
    }

    #[test]
    fn an_idle_writer_says_what_goes_on() {
        let (outbox, unsent) = queue();
        let (input, output) = std::io::pipe().unwrap();
        let writer = std::thread::spawn(move || {
            let credit = Mutex::new(Credit::for_messages());
            let output = FrameWriter::new(output, "the sender");
            unsent.write_to(output, &credit, Duration::from_millis(5), || Phase::WritingBack)
        });
        let mut reader = FrameReader::new(input, "the receiver");
        for _ in 0..3 {
            assert_eq!(reader.read().unwrap(), Frame::Message(Message::Busy(Phase::WritingBack)));
        }
        outbox.close();
        writer.join().unwrap().unwrap();
    }
}
