//! Block maps, and the plan that turns one file into another. Pure: two maps in,
//! ranges out.

use std::collections::VecDeque;
use std::ops::Range;

use crate::hashmap::Key;

/// A stretch of a block map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// So many zero blocks, holes or not.
    Zero(u64),
    /// Consecutive blocks that are not zero.
    Keys(Vec<Key>),
}

impl Run {
    /// What it takes in memory, in keys.
    pub fn entries(&self) -> usize {
        match self {
            Run::Zero(_) => 1,
            Run::Keys(keys) => keys.len(),
        }
    }
}

/// A file's blocks in order, each zero or a hash. Whatever lies beyond its end
/// is zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockMap {
    /// The stretches.
    pub runs: Vec<Run>,
}

/// What is to be done with a range of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The basis has it.
    Keep,
    /// It becomes zero.
    Zero,
    /// It becomes the source's data; the basis has none, or nobody knows what it has.
    Data,
    /// It becomes the source's data; the basis has other data.
    Update,
}

/// The ranges of blocks that turn `basis` into `source`, in order, adjoining,
/// neighbours merged. Pure: no bytes, no files.
pub fn plan(source: BlockMap, basis: BlockMap) -> Vec<(Range<u64>, Action)> {
    let mut planner = Planner::default();
    basis.runs.into_iter().for_each(|run| planner.push_basis(run));
    planner.end_basis();
    source.runs.into_iter().for_each(|run| planner.push_source(run));
    let mut steps: Vec<(Range<u64>, Action)> = Vec::new();
    while let Some((range, action)) = planner.step() {
        match steps.last_mut() {
            Some((last, same)) if *same == action => last.end = range.end,
            _ => steps.push((range, action)),
        }
    }
    steps
}

/// [`plan`], fed from both ends as the maps arrive: memory is what was pushed
/// and not yet planned.
#[derive(Debug, Default)]
pub struct Planner {
    source: Queue,
    basis: Queue,
    basis_ended: bool,
    unknown: bool,
    at: u64,
}

impl Planner {
    /// Appends to the source's map.
    pub fn push_source(&mut self, run: Run) {
        self.source.push(run);
    }

    /// Appends to the basis's map.
    pub fn push_basis(&mut self, run: Run) {
        self.basis.push(run);
    }

    /// The basis has no more blocks: what follows is zero.
    pub fn end_basis(&mut self) {
        self.basis_ended = true;
    }

    /// Nothing is known of the basis: zeros, too, have to be told.
    pub fn without_basis(&mut self) {
        self.unknown = true;
        self.basis_ended = true;
    }

    /// How many blocks of the basis are known that the source has not reached, each
    /// run of zeros counted as one.
    pub fn basis_ahead(&self) -> usize {
        self.basis.ahead
    }

    /// Whether the next step waits for the basis and not for the source.
    pub fn wants_basis(&self) -> bool {
        self.basis.is_empty() && !self.basis_ended && !self.source.is_empty()
    }

    /// The next range of blocks for which both sides are known.
    pub fn step(&mut self) -> Option<(Range<u64>, Action)> {
        let start = self.at;
        let mut action = None;
        while let Some((blocks, next)) = self.compare() {
            if *action.get_or_insert(next) != next {
                break;
            }
            self.source.skip(blocks);
            self.basis.skip(blocks);
            self.at += blocks;
        }
        action.map(|action| (start..self.at, action))
    }

    /// What the next blocks need, and how many alike are known on both sides.
    fn compare(&self) -> Option<(u64, Action)> {
        let source = self.source.front()?;
        if self.unknown {
            return Some(match source {
                Front::Zero(blocks) => (blocks, Action::Zero),
                Front::Key(_) => (1, Action::Data),
            });
        }
        let basis = match self.basis.front() {
            None if !self.basis_ended => return None,
            None => Front::Zero(u64::MAX),
            Some(front) => front,
        };
        Some(match (source, basis) {
            (Front::Zero(a), Front::Zero(b)) => (a.min(b), Action::Keep),
            (Front::Zero(_), Front::Key(_)) => (1, Action::Zero),
            (Front::Key(_), Front::Zero(_)) => (1, Action::Data),
            (Front::Key(a), Front::Key(b)) => (1, if a == b { Action::Keep } else { Action::Update }),
        })
    }
}

enum Front {
    Zero(u64),
    Key(Key),
}

/// Runs not yet consumed, with how much of the first one is.
#[derive(Debug, Default)]
struct Queue {
    runs: VecDeque<Run>,
    used: u64,
    /// Keys and runs of zeros in it.
    ahead: usize,
}

impl Queue {
    fn push(&mut self, run: Run) {
        let empty = matches!(&run, Run::Zero(0)) || matches!(&run, Run::Keys(keys) if keys.is_empty());
        if !empty {
            self.ahead += run.entries();
            self.runs.push_back(run);
        }
    }

    fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    fn front(&self) -> Option<Front> {
        Some(match self.runs.front()? {
            Run::Zero(blocks) => Front::Zero(blocks - self.used),
            Run::Keys(keys) => Front::Key(keys[self.used as usize]),
        })
    }

    /// Consumes blocks of the first run; nothing when there is none.
    fn skip(&mut self, blocks: u64) {
        let Some(run) = self.runs.front() else { return };
        let len = match run {
            Run::Zero(blocks) => *blocks,
            Run::Keys(keys) => keys.len() as u64,
        };
        self.used += blocks;
        if self.used >= len {
            self.used = 0;
            self.ahead -= run.entries();
            self.runs.pop_front();
        }
    }
}
