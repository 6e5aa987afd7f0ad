//! What the answering thread finds of each file, on its way to the applying thread: a
//! queue for each file, all of them together within the credit for maps.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::error::{Result, lock};
use crate::hashmap::{self, Item};
use crate::protocol::Credit;
use crate::receiver::answer::Begun;
use crate::receiver::assemble::ApplyError;
use crate::sys;

/// Files that are answered and not described yet, and open, at most and at least; see
/// [`sys::open_files_limit`].
const MAX_OPEN: usize = 1024;
const MIN_OPEN: usize = 64;

/// How what is known of a basis ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedEnd {
    /// What lies behind it is zero.
    Whole,
    /// Nobody knows what is behind it.
    Unknown,
    /// It cannot be read; the sender was told.
    Broken,
}

/// The queues of all files.
pub struct BasisFeeds {
    state: Mutex<Feeds>,
    changed: Condvar,
    /// Files that are answered, not described and open, at most.
    max_open: usize,
}

struct Feeds {
    /// Files that were announced and are not described yet.
    undescribed: usize,
    /// Those of them that are answered, in order.
    begun: VecDeque<Box<Begun>>,
    /// How many of them are open.
    open: usize,
    feeds: HashMap<u64, Feed>,
    /// What the sender was told and has not described.
    ahead: Credit,
    stopped: bool,
    /// A thread waits for a change. Waking nobody is a system call, too.
    waiting: bool,
}

#[derive(Default)]
struct Feed {
    queue: VecDeque<Vec<Item>>,
    /// Its part of all that is not described.
    ahead: usize,
    end: Option<FeedEnd>,
    /// The sender knows all of it.
    is_known: bool,
}

impl BasisFeeds {
    pub fn new() -> BasisFeeds {
        let state = Feeds {
            undescribed: 0,
            begun: VecDeque::new(),
            open: 0,
            feeds: HashMap::new(),
            ahead: Credit::for_maps(),
            stopped: false,
            waiting: false,
        };
        let max_open = (sys::open_files_limit() / 8).clamp(MIN_OPEN, MAX_OPEN);
        BasisFeeds { state: Mutex::new(state), changed: Condvar::new(), max_open }
    }

    /// A file was announced.
    pub fn announced(&self) {
        lock(&self.state).undescribed += 1;
    }

    /// An announced file needs no description. Whether none needs one any more.
    pub fn settled(&self) -> bool {
        let mut state = lock(&self.state);
        state.undescribed -= 1;
        state.undescribed == 0
    }

    /// Whether every announced file is described, or needs no description.
    pub fn all_described(&self) -> bool {
        lock(&self.state).undescribed == 0
    }

    /// A file that may be described as soon as the sender knows; waits while many others
    /// are open. `end`: nothing will be told of its basis. `false`: the run is over.
    pub fn open(&self, begun: Box<Begun>, end: Option<FeedEnd>) -> bool {
        let is_open = begun.destination.is_open();
        let mut state = self.wait_while(|state| is_open && state.open >= self.max_open);
        state.open += usize::from(is_open);
        state.feeds.insert(begun.id, Feed { end, ..Feed::default() });
        state.begun.push_back(begun);
        !state.stopped
    }

    /// Waits until these may be told of a file, and keeps them for the applying thread. They
    /// count one by one, which is as much as the keys and runs of zeros that are told, or
    /// more. `false`: nobody needs them any more.
    pub fn push(&self, id: u64, items: Vec<Item>) -> bool {
        let count = items.len();
        let mut state = self.wait_while(|state| state.feeds.contains_key(&id) && !state.ahead.take(count));
        if state.stopped {
            return false;
        }
        let Some(feed) = state.feeds.get_mut(&id) else { return false };
        feed.ahead += count;
        feed.queue.push_back(items);
        self.wake(&mut state);
        true
    }

    /// For a dry run, where nothing is kept: waits until so much may be told.
    /// `false`: the run is over.
    pub fn take_credit(&self, entries: usize) -> bool {
        !self.wait_while(|state| !state.ahead.take(entries)).stopped
    }

    /// So much of what was told is compared. `false`: more than was told.
    pub fn give_back(&self, entries: usize) -> bool {
        let mut state = lock(&self.state);
        let fits = state.ahead.give_back(entries);
        self.wake(&mut state);
        fits
    }

    /// The sender knows all of a file's basis: it may describe it before it is found here.
    pub fn known(&self, id: u64) {
        if let Some(feed) = lock(&self.state).feeds.get_mut(&id) {
            feed.is_known = true;
        }
    }

    /// All is told of a file.
    pub fn end(&self, id: u64, end: FeedEnd) {
        let mut state = lock(&self.state);
        if let Some(feed) = state.feeds.get_mut(&id) {
            feed.end = Some(end);
            self.wake(&mut state);
        }
    }

    /// A basis cannot be read. `tell` has the sender know, unless nobody needs the basis any
    /// more: the file may have failed before. Under one lock: what the file holds of the
    /// credit is freed behind its failure.
    pub fn end_broken(&self, id: u64, tell: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut state = lock(&self.state);
        let Some(feed) = state.feeds.get_mut(&id) else { return Ok(()) };
        feed.end = Some(FeedEnd::Broken);
        let told = tell();
        self.wake(&mut state);
        told
    }

    /// A file fails here: drops what there is of it, as [`BasisFeeds::forget`]. `tell` has the
    /// sender know first, unless it was told that the basis cannot be read.
    pub fn fail(&self, id: u64, tell: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut state = lock(&self.state);
        let is_told = state.feeds.get(&id).is_some_and(|feed| feed.end == Some(FeedEnd::Broken));
        let told = if is_told { Ok(()) } else { tell() };
        self.remove(&mut state, id);
        told
    }

    /// The run is over: nobody waits any more.
    pub fn stop(&self) {
        let mut state = lock(&self.state);
        state.stopped = true;
        self.wake(&mut state);
    }

    /// Whether anybody needs what is found of a file.
    pub fn is_needed(&self, id: u64) -> bool {
        let state = lock(&self.state);
        !state.stopped && state.feeds.contains_key(&id)
    }

    fn wait_while(&self, mut condition: impl FnMut(&mut Feeds) -> bool) -> MutexGuard<'_, Feeds> {
        let mut state = lock(&self.state);
        while !state.stopped && condition(&mut state) {
            state.waiting = true;
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        state
    }

    fn wake(&self, state: &mut Feeds) {
        if std::mem::take(&mut state.waiting) {
            self.changed.notify_all();
        }
    }

    /// Takes up the file `id`, if it is the next one.
    pub fn begin(&self, id: u64) -> Option<(Box<Begun>, BasisCursor)> {
        let mut state = lock(&self.state);
        state.begun.front().filter(|begun| begun.id == id)?;
        let begun = state.begun.pop_front()?;
        state.undescribed -= 1;
        if begun.destination.is_open() {
            state.open -= 1;
            // Who waits for room has something to do for a while then.
            if state.open == self.max_open / 2 {
                self.wake(&mut state);
            }
        }
        Some((begun, BasisCursor { id, items: VecDeque::new(), count: 0, end: None }))
    }

    /// Drops what there is of a file, and has the answering thread find out no more.
    pub fn forget(&self, id: u64) {
        self.remove(&mut lock(&self.state), id);
    }

    fn remove(&self, state: &mut Feeds, id: u64) {
        if let Some(feed) = state.feeds.remove(&id) {
            // What a feed has was taken.
            let _ = state.ahead.give_back(feed.ahead);
            self.wake(state);
        }
    }

    /// The next stretch of a file, in exchange for one of which the sender has described all;
    /// waits for it.
    fn next(&self, id: u64, described: usize) -> Option<std::result::Result<Vec<Item>, FeedEnd>> {
        self.described(id, described);
        let waits = |state: &mut Feeds| {
            state.feeds.get(&id).is_some_and(|feed| feed.queue.is_empty() && feed.end.is_none())
        };
        let mut state = self.wait_while(waits);
        let feed = state.feeds.get_mut(&id)?;
        feed.queue.pop_front().map(Ok).or_else(|| feed.end.map(Err))
    }

    fn described(&self, id: u64, entries: usize) {
        if entries == 0 {
            return;
        }
        let mut state = lock(&self.state);
        if let Some(feed) = state.feeds.get_mut(&id) {
            feed.ahead -= entries;
            let _ = state.ahead.give_back(entries);
            self.wake(&mut state);
        }
    }

    /// Whether all was told of a file, and it can be described to its end. Waits until all is found
    /// of what the sender knows.
    pub fn has_ended(&self, id: u64) -> bool {
        let waits =
            |state: &mut Feeds| state.feeds.get(&id).is_some_and(|feed| feed.is_known && feed.end.is_none());
        let state = self.wait_while(waits);
        let Some(feed) = state.feeds.get(&id) else { return false };
        feed.end.map_or(feed.is_known, |end| end != FeedEnd::Broken)
    }
}

/// What the basis has in the next blocks.
pub enum Had {
    /// Nothing: a hole, or beyond the end.
    Hole,
    /// This.
    Block(hashmap::Block),
    /// Nobody knows.
    Unknown,
}

/// The basis of the file that is being put together, block by block.
pub struct BasisCursor {
    id: u64,
    items: VecDeque<Item>,
    /// How many came with them, and count as long as there are any.
    count: usize,
    end: Option<FeedEnd>,
}

impl BasisCursor {
    /// What the next blocks are, and how many alike, at most `limit`.
    pub fn next(&mut self, feeds: &BasisFeeds, limit: u64) -> Result<(u64, Had), ApplyError> {
        loop {
            let taken = match self.items.pop_front() {
                Some(Item::Block(block)) => (1, Had::Block(block)),
                Some(Item::Hole(blocks)) => {
                    if blocks > limit {
                        self.items.push_front(Item::Hole(blocks - limit));
                    }
                    (blocks.min(limit), Had::Hole)
                }
                None => match self.end {
                    Some(FeedEnd::Whole) => return Ok((limit, Had::Hole)),
                    Some(FeedEnd::Unknown) => return Ok((limit, Had::Unknown)),
                    Some(FeedEnd::Broken) => return Err(ApplyError::Told),
                    None => {
                        match feeds.next(self.id, std::mem::take(&mut self.count)) {
                            Some(Ok(items)) => {
                                self.count = items.len();
                                self.items.extend(items);
                            }
                            Some(Err(end)) => self.end = Some(end),
                            None => return Err(ApplyError::Gone),
                        }
                        continue;
                    }
                },
            };
            if self.items.is_empty() {
                // More may come before it is asked for: the answering thread may wait for this.
                feeds.described(self.id, std::mem::take(&mut self.count));
            }
            return Ok(taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// The sender may be through with what it knows before that is found here.
    #[test]
    fn the_end_of_what_the_sender_knows_is_waited_for() {
        let feeds = BasisFeeds::new();
        lock(&feeds.state).feeds.extend([1, 2].map(|id| (id, Feed::default())));
        feeds.known(1);
        assert!(!feeds.has_ended(2), "it cannot be through with what it was not told");
        std::thread::scope(|scope| {
            let (ended_in, ended) = channel();
            let feeds = &feeds;
            scope.spawn(move || ended_in.send(feeds.has_ended(1)));
            ended.recv_timeout(Duration::from_millis(50)).expect_err("more may come");
            feeds.end(1, FeedEnd::Whole);
            assert_eq!(ended.recv(), Ok(true));
        });
    }
}
