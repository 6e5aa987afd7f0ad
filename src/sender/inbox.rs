//! What arrives from the receiver, read by a thread of its own that waits for nothing
//! but the connection.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::error::lock;
use crate::error::{Error, Failure, Result};
use crate::protocol::{Frame, FrameReader, Message};
use crate::sender::announce::Files;
use crate::sender::replies::{Answered, FileReply, Replies};

/// What reaches the merging thread.
pub enum Arrival {
    /// It concerns no file that is being described.
    Message(Message),
    /// A file may be described.
    Answered(Answered),
    /// It concerns the file that is being described.
    File(FileReply),
    /// In a dry run: the receiver is to be granted so much.
    Grant(usize),
    /// Everything is announced.
    Walked(Result<()>),
}

/// What arrived and was not taken yet.
pub struct Inbox {
    state: Mutex<Received>,
    arrived: Condvar,
    dry_run: bool,
}

struct Received {
    replies: Replies,
    walked: Option<Result<()>>,
    /// Why nothing more will come.
    closed: Option<Error>,
    /// A thread waits for `arrived`. Waking nobody is a system call, too.
    waiting: bool,
    /// Only the receiver's last words are to come: they may wait in the connection.
    ending: bool,
}

impl Inbox {
    /// `describes`: files are described.
    pub fn new(dry_run: bool, describes: bool) -> Inbox {
        let state = Received {
            replies: Replies::new(!describes),
            walked: None,
            closed: None,
            waiting: false,
            ending: false,
        };
        Inbox { state: Mutex::new(state), arrived: Condvar::new(), dry_run }
    }

    /// Reads until the stream ends. The thread outlives the role when that fails: it ends
    /// with the connection.
    pub fn fill<R: Read + Send + 'static>(self: &Arc<Inbox>, mut input: FrameReader<R>, files: Arc<Files>) {
        let inbox = Arc::clone(self);
        std::thread::spawn(move || {
            let error = loop {
                let frame = match input.read() {
                    Ok(frame) => frame,
                    Err(error) => break error,
                };
                let last = matches!(frame, Frame::Message(Message::End(_)));
                if let Err(what) = inbox.take_in(frame, &files) {
                    break input.bad(what);
                }
                if last {
                    return;
                }
            };
            let mut state = lock(&inbox.state);
            state.closed = Some(error);
            inbox.wake(&mut state);
        });
    }

    fn take_in(&self, frame: Frame, files: &Files) -> Result<(), &'static str> {
        let answered = match frame {
            Frame::Message(Message::Map { id, device }) => Some(Answered::of(id, true, device)),
            Frame::Message(Message::NoBasis { id, device }) => Some(Answered::of(id, false, device)),
            Frame::Message(Message::Preview { id, device, mapped, resized, changes }) => {
                Some(Answered { id, mapped, device, resized, changes })
            }
            _ => None,
        };
        if answered.is_some() && self.dry_run != matches!(frame, Frame::Message(Message::Preview { .. })) {
            return Err("a message out of turn");
        }
        // Before the merging thread can take it.
        if answered.as_ref().is_some_and(|answered| !files.want(answered)) {
            return Err("an answer for no file");
        }
        let mut state = lock(&self.state);
        match answered {
            Some(answered) => state.replies.open(answered),
            None => state.replies.take_in(frame)?,
        }
        self.wake(&mut state);
        while state.replies.is_overrun() {
            if !state.ending {
                return Err("more than it was asked for");
            }
            state.waiting = true;
            state = self.arrived.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        Ok(())
    }

    /// All sources were walked.
    pub fn walked(&self, result: Result<()>) {
        let mut state = lock(&self.state);
        state.walked = Some(result);
        self.wake(&mut state);
    }

    fn wake(&self, state: &mut Received) {
        if std::mem::take(&mut state.waiting) {
            self.arrived.notify_all();
        }
    }

    /// The sender sends its totals: what comes behind them may wait.
    pub fn end(&self) {
        lock(&self.state).ending = true;
    }

    /// The next thing that is here, of the file `of` or, without one, of any.
    ///
    /// # Errors
    ///
    /// Why nothing more will come, behind all that came.
    pub fn try_next(&self, of: Option<u64>) -> Result<Option<Arrival>> {
        let mut state = lock(&self.state);
        let next = state.next(of);
        self.let_in(&mut state);
        next
    }

    /// The same; waits for it.
    ///
    /// # Errors
    ///
    /// Those of [`Inbox::try_next`].
    pub fn next(&self, of: Option<u64>) -> Result<Arrival> {
        let mut state = lock(&self.state);
        loop {
            let next = state.next(of);
            self.let_in(&mut state);
            if let Some(event) = next? {
                return Ok(event);
            }
            state.waiting = true;
            state = self.arrived.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// At the end the reader may wait for room.
    fn let_in(&self, state: &mut Received) {
        if state.ending {
            self.wake(state);
        }
    }

    /// Why nothing more comes, if that shows soon.
    pub fn reason(&self) -> Option<Error> {
        const PATIENCE: Duration = Duration::from_secs(2);
        let until = Instant::now() + PATIENCE;
        let mut state = lock(&self.state);
        while state.closed.is_none() {
            let left = until.checked_duration_since(Instant::now())?;
            state.waiting = true;
            let waited = self.arrived.wait_timeout(state, left);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        state.closed.take()
    }

    /// So many keys and runs of zeros of a file are described.
    pub fn described(&self, id: u64, entries: usize) {
        lock(&self.state).replies.described(id, entries);
    }

    /// Drops what is said of a file, now and later, but for a failure that nobody has taken.
    pub fn forget(&self, id: u64) -> Option<Failure> {
        lock(&self.state).replies.forget(id)
    }
}

impl Received {
    fn next(&mut self, of: Option<u64>) -> Result<Option<Arrival>> {
        if let Some(message) = self.replies.next_message() {
            return Ok(Some(Arrival::Message(message)));
        }
        if let Some(units) = self.replies.next_grant() {
            return Ok(Some(Arrival::Grant(units)));
        }
        let event = match of {
            Some(id) => self.replies.next_of(id).map(Arrival::File),
            None => self.replies.next_answered().map(Arrival::Answered),
        };
        let event = event.or_else(|| self.walked.take().map(Arrival::Walked));
        match event {
            None => self.closed.take().map_or(Ok(None), Err),
            event => Ok(event),
        }
    }
}
