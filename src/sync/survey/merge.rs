//! Holds the blocks of two images against each other as they are told, and asks both about
//! those that have data in both and differ. Spans are handed on in order: what follows a
//! question waits for its answer, up to a bound.

use std::collections::VecDeque;

use crate::error::{Error, Result};
use crate::hashmap::difference::{BlockPages, Span, Spans};
use crate::hashmap::leaves::Leaves;
use crate::hashmap::{Grid, MapEntry};
use crate::protocol::MAX_DIFFER;
use crate::sync::survey::Surveyed;

/// Entries that may wait for an answer.
const MAX_WAITING: usize = 4096;

/// Holds `a` against `b`, both of which were started on `grid`. `done` is told bytes that were.
///
/// # Errors
///
/// When either cannot be read any more; what `spans` hands back.
pub fn merge<F: FnMut(Span) -> Result<()>>(
    a: &mut dyn Surveyed,
    b: &mut dyn Surveyed,
    grid: &Grid,
    done: &mut dyn FnMut(u64),
    spans: &mut Spans<F>,
) -> Result<()> {
    let mut merge = Merge {
        a: Side::of(a),
        b: Side::of(b),
        grid,
        spans,
        have_leaves: false,
        waiting: VecDeque::new(),
        asking: Vec::new(),
        asked: 0,
    };
    merge.have_leaves = [&merge.a, &merge.b].iter().all(|side| side.image.block_size().is_none());
    let mut at = 0;
    while let (Some(a), Some(b)) = (merge.a.front()?, merge.b.front()?) {
        let count = a.blocks().min(b.blocks());
        merge.take(at, count, a, b)?;
        merge.a.skip(count);
        merge.b.skip(count);
        let bytes = grid.bytes(&(at..at + count));
        done(bytes.end - bytes.start);
        at += count;
    }
    if at != grid.blocks() {
        let what = "fewer blocks than the image has".into();
        return Err(Error::Protocol { peer: "one of the two ends".into(), what });
    }
    merge.settle(0)
}

/// What one image told and is not merged yet.
struct Side<'a> {
    image: &'a mut dyn Surveyed,
    told: VecDeque<MapEntry>,
    /// Blocks of the first of these that are merged.
    used: u64,
    answers: VecDeque<Leaves>,
}

impl<'a> Side<'a> {
    fn of(image: &'a mut dyn Surveyed) -> Side<'a> {
        Side { image, told: VecDeque::new(), used: 0, answers: VecDeque::new() }
    }

    /// The next blocks; `None` behind the last.
    fn front(&mut self) -> Result<Option<MapEntry>> {
        while self.told.is_empty() {
            let Some(told) = self.image.blocks()? else { return Ok(None) };
            self.told.extend(told);
        }
        Ok(self.told.front().map(|front| match front {
            MapEntry::Zero(blocks) => MapEntry::Zero(blocks - self.used),
            data => *data,
        }))
    }

    fn skip(&mut self, blocks: u64) {
        self.used += blocks;
        if self.told.front().is_some_and(|front| front.blocks() == self.used) {
            self.told.pop_front();
            self.used = 0;
        }
    }

    /// The answer about the next block that was asked about.
    fn answer(&mut self) -> Result<Leaves> {
        while self.answers.is_empty() {
            self.answers.extend(self.image.answer()?);
        }
        Ok(self.answers.pop_front().unwrap_or_default())
    }
}

/// Blocks whose spans are not handed on.
#[derive(Clone, Copy)]
enum Waiting {
    /// Zeros in both, from this block on, so many.
    Zeros(u64, u64),
    /// All is known of this block.
    Known(u64, BlockPages),
    /// Of this block the pages that differ are not known.
    Asked(u64, BlockPages),
}

struct Merge<'a, F> {
    a: Side<'a>,
    b: Side<'a>,
    grid: &'a Grid,
    spans: &'a mut Spans<F>,
    /// Both can be asked about single pages.
    have_leaves: bool,
    waiting: VecDeque<Waiting>,
    /// Blocks that are asked about next.
    asking: Vec<u64>,
    /// Blocks that were asked about and whose answer was not used.
    asked: usize,
}

impl<F: FnMut(Span) -> Result<()>> Merge<'_, F> {
    fn take(&mut self, at: u64, count: u64, a: MapEntry, b: MapEntry) -> Result<()> {
        use MapEntry::{Data, Zero};
        self.waiting.push_back(match (a, b) {
            (Zero(_), Zero(_)) => Waiting::Zeros(at, count),
            (Zero(_), Data { pages, .. }) => {
                Waiting::Known(at, BlockPages { a: 0, b: pages, differing: pages })
            }
            (Data { pages, .. }, Zero(_)) => {
                Waiting::Known(at, BlockPages { a: pages, b: 0, differing: pages })
            }
            (Data { pages, hash }, Data { hash: other, .. }) if hash == other => {
                Waiting::Known(at, BlockPages { a: pages, b: pages, differing: 0 })
            }
            (Data { pages: a, .. }, Data { pages: b, .. }) if !self.have_leaves => {
                Waiting::Known(at, BlockPages { a, b, differing: a | b })
            }
            (Data { pages: a, .. }, Data { pages: b, .. }) => {
                self.asking.push(at);
                Waiting::Asked(at, BlockPages { a, b, differing: a | b })
            }
        });
        if self.asking.len() >= MAX_DIFFER {
            self.ask()?;
        }
        self.settle(MAX_WAITING)
    }

    fn ask(&mut self) -> Result<()> {
        let asking = std::mem::take(&mut self.asking);
        self.asked += asking.len();
        self.a.image.ask(&asking)?;
        self.b.image.ask(&asking)
    }

    /// Hands on what is known, and has answers come until no more than so many wait.
    fn settle(&mut self, most: usize) -> Result<()> {
        while let Some(&next) = self.waiting.front() {
            match next {
                Waiting::Zeros(first, count) => self.spans.zeros(self.grid, &(first..first + count))?,
                Waiting::Known(block, pages) => self.spans.block(self.grid, block, pages)?,
                Waiting::Asked(..) if self.waiting.len() <= most => return Ok(()),
                Waiting::Asked(block, told) => {
                    if self.asked == 0 {
                        self.ask()?;
                    }
                    self.asked -= 1;
                    let (a, b) = (self.a.answer()?, self.b.answer()?);
                    // What 8 bytes a page do not tell apart differs somewhere.
                    let differing = match a.differing_pages(&b) {
                        0 => told.differing,
                        pages => pages,
                    };
                    self.spans.block(self.grid, block, BlockPages { a: a.data, b: b.data, differing })?;
                }
            }
            self.waiting.pop_front();
        }
        Ok(())
    }
}
