//! Old files that a dry run has told of, and that the sender may ask about as it does in a true
//! run. They are taken up in the order in which they were told of.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use crate::error::{Error, Result, lock};
use crate::hashmap::Grid;
use crate::hashmap::leaves::Leaves;
use crate::options::BlockSize;
use crate::protocol::Differ;
use crate::scan::Image;

/// How many of them are open at most.
const MAX_OPEN: usize = 64;

/// An old file.
pub struct Previewed {
    pub id: u64,
    pub path: PathBuf,
    pub image: Arc<dyn Image + Send + Sync>,
    pub grid: Grid,
}

impl Previewed {
    /// What it has of blocks that differ. `None`: it has no such blocks.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn leaves(&self, differ: &Differ, leaf: BlockSize) -> Result<Option<Vec<Leaves>>> {
        let end = differ.first.checked_add(differ.hashes.len() as u64);
        let Some(end) = end.filter(|end| *end <= self.grid.blocks()) else { return Ok(None) };
        let leaves =
            (differ.first..end).map(|block| Leaves::read(self.image.as_ref(), &self.grid, block, leaf));
        leaves.collect::<Result<_, _>>().map(Some).map_err(Error::file("read the old", &self.path))
    }
}

/// Those that were told of and not taken up.
#[derive(Default)]
pub struct Previews {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Previewed>,
    stopped: bool,
}

impl Previews {
    /// Adds one; waits while there are many. `false`: the run is over.
    pub fn hold(&self, previewed: Previewed) -> bool {
        let mut state = lock(&self.state);
        while !state.stopped && state.waiting.len() >= MAX_OPEN {
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        if !state.stopped {
            state.waiting.push_back(previewed);
        }
        !state.stopped
    }

    /// The sender comes to this one, and asks about none before it any more.
    pub fn begin(&self, id: u64) -> Option<Previewed> {
        let mut state = lock(&self.state);
        while state.waiting.front().is_some_and(|previewed| previewed.id < id) {
            state.waiting.pop_front();
        }
        let is_next = state.waiting.front().is_some_and(|previewed| previewed.id == id);
        let taken = if is_next { state.waiting.pop_front() } else { None };
        self.changed.notify_all();
        taken
    }

    /// The run is over: nobody need wait.
    pub fn stop(&self) {
        lock(&self.state).stopped = true;
        self.changed.notify_all();
    }
}
