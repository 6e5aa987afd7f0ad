//! Chunks of an index in order, looked at and fetched by several threads ahead of who takes them.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::error::{Error, Result, lock};
use crate::store::casync::{Chunk, ChunkStore, Index};
use crate::stream::plain::Old;

/// Bytes of chunks that are under way or wait. Each is in memory up to three times: as it was there, as
/// it came, and unpacked. A longer chunk goes alone.
const AHEAD: usize = 8 << 20;

/// What was found of a chunk.
pub enum Found {
    /// It is zeros.
    Zeros,
    /// These are its bytes, and are there.
    Kept(Vec<u8>),
    /// It came.
    Fetched {
        /// Its bytes.
        bytes: Vec<u8>,
        /// What is there in their place.
        was: Vec<u8>,
    },
}

/// See the module.
pub struct Ahead<'a> {
    index: &'a Index,
    store: ChunkStore<'a>,
    old: &'a Old,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The chunk that is looked at next.
    next: usize,
    /// The chunk that is taken next.
    taken: usize,
    /// Bytes of those between the two.
    bytes: usize,
    found: HashMap<usize, Found>,
    /// The first error of all, whichever chunk it is of.
    failed: Option<Error>,
    /// Nobody takes any more.
    is_over: bool,
    /// Bytes and chunks that came.
    came: (u64, u64),
}

/// Ends the work of the threads when it goes.
pub struct Ends<'a>(&'a Ahead<'a>);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.is_over = true;
        if self.0.index.chunk(state.taken).is_some() {
            self.0.store.objects.stop();
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

impl<'a> Ahead<'a> {
    /// Chunks of an image whose place has `old`.
    pub fn new(index: &'a Index, store: ChunkStore<'a>, old: &'a Old) -> Ahead<'a> {
        Ahead { index, store, old, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Has the threads end once this goes.
    pub fn ends(&self) -> Ends<'_> {
        Ends(self)
    }

    /// Bytes and chunks that came.
    pub fn came(&self) -> (u64, u64) {
        lock(&self.state).came
    }

    /// Looks at chunks until there are no more, or nobody wants them.
    pub fn work(&self) {
        while let Some((nth, chunk)) = self.claim() {
            let found = self.find(&chunk);
            let mut state = lock(&self.state);
            match found {
                Ok(found) => drop(state.found.insert(nth, found)),
                Err(error) => state.failed = state.failed.take().or(Some(error)),
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// The next chunk, and what was found of it; `None` behind the last. An error of any chunk is told at once.
    pub fn next(&self) -> Option<(Chunk, Result<Found>)> {
        let mut state = lock(&self.state);
        let nth = state.taken;
        let chunk = self.index.chunk(nth)?;
        let found = loop {
            if let Some(error) = state.failed.take() {
                return Some((chunk, Err(error)));
            }
            match state.found.remove(&nth) {
                Some(found) => break found,
                None => state = self.wait(state),
            }
        };
        state.taken += 1;
        state.bytes -= chunk.len();
        drop(state);
        self.changed.notify_all();
        Some((chunk, Ok(found)))
    }

    fn wait<'b>(&self, state: MutexGuard<'b, State>) -> MutexGuard<'b, State> {
        self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits for room, and takes the next chunk to look at.
    fn claim(&self) -> Option<(usize, Chunk)> {
        let mut state = lock(&self.state);
        loop {
            let nth = state.next;
            let chunk = self.index.chunk(nth).filter(|_| !state.is_over)?;
            if state.bytes == 0 || state.bytes + chunk.len() <= AHEAD {
                state.next += 1;
                state.bytes += chunk.len();
                return Some((nth, chunk));
            }
            state = self.wait(state);
        }
    }

    fn find(&self, chunk: &Chunk) -> Result<Found> {
        if self.index.is_zeros(chunk) {
            return Ok(Found::Zeros);
        }
        let was = self.old.read(chunk.range.start, chunk.len())?;
        if self.old.reaches(&chunk.range) && self.index.is_of(chunk, &was) {
            return Ok(Found::Kept(was));
        }
        let fetched = self.store.fetch(self.index, chunk)?;
        let mut state = lock(&self.state);
        state.came = (state.came.0 + fetched.received, state.came.1 + 1);
        Ok(Found::Fetched { bytes: fetched.bytes, was })
    }
}
