//! Joins what is wanted to requests.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::error::{Again, Error, Result};
use crate::hashmap::Grid;
use crate::store::pull::fetch::reader::Piece;
use crate::store::pull::fetch::{From, Shared, Wanted};

/// Bytes that one request asks for, but for those that ask for whole objects.
const MOST: u64 = 8 << 20;
/// Blocks that one request asks for.
const MOST_BLOCKS: usize = 8 << 10;
/// The same where whole objects are had.
const MOST_BLOCKS_WHOLE: usize = 256 << 10;
/// Blocks of an image as it lies there that wait until they come by.
const MOST_COMING: usize = 1 << 10;
/// Requests that neighbours are looked for to add, at a time.
const OPEN: usize = 8;
/// The same where whole objects are had.
const OPEN_WHOLE: usize = 64;

/// What one request asks for.
pub struct Segment {
    pub object: Arc<str>,
    pub range: Range<u64>,
    pub pieces: Vec<Piece>,
    blocks: usize,
    /// More pieces, as it becomes known that they are wanted.
    pub coming: Option<Receiver<Piece>>,
}

/// An image as it lies there, which is read once.
struct Coming {
    object: Arc<str>,
    /// Behind the last piece.
    end: u64,
    /// `None`: nothing is fetched.
    pieces: Option<SyncSender<Piece>>,
}

/// Takes wishes, in the order of the image.
pub struct Planner<'a> {
    grid: Grid,
    whole: bool,
    open: Vec<Segment>,
    coming: Option<Coming>,
    queue: Option<SyncSender<Segment>>,
    shared: &'a Shared<'a>,
}

impl<'a> Planner<'a> {
    /// Requests for an image on this grid go to a queue, if there is one; `whole`: for whole objects.
    pub(super) fn new(
        grid: Grid,
        whole: bool,
        queue: Option<SyncSender<Segment>>,
        shared: &'a Shared<'a>,
    ) -> Planner<'a> {
        Planner { grid, whole, open: Vec::new(), coming: None, queue, shared }
    }

    /// Whether there is still sense in looking for what is wanted.
    ///
    /// # Errors
    ///
    /// When a request failed meanwhile, or somebody interrupted.
    pub fn go_on(&self) -> Result<()> {
        self.shared.go_on()
    }

    /// A block is wanted.
    ///
    /// # Errors
    ///
    /// When a request failed meanwhile.
    pub fn want(&mut self, wanted: Wanted) -> Result<()> {
        self.go_on()?;
        let (object, range, is_frame) = match &wanted.from {
            From::Frame { object, range, .. } => (Arc::clone(object), range.clone(), true),
            From::Plain { object } => (Arc::clone(object), self.pages_of(&wanted), false),
        };
        if self.whole && !is_frame {
            return self.comes_by(object, Piece { range, is_frame, blocks: vec![wanted] });
        }
        let (gap, whole) = (self.shared.gap.load(Ordering::Relaxed), self.whole);
        let of_it = self.open.iter_mut().find(|open| {
            let has_room = open.blocks < if whole { MOST_BLOCKS_WHOLE } else { MOST_BLOCKS };
            let is_last =
                || has_room && open.pieces.last().is_some_and(|piece| is_frame && piece.range == range);
            open.object == object && (is_last() || open.takes(&range, gap, whole))
        });
        if let Some(open) = of_it {
            open.add(range, is_frame, wanted);
            return Ok(());
        }
        if self.open.len() >= if self.whole { OPEN_WHOLE } else { OPEN } {
            let first = self.open.remove(0);
            self.send(first)?;
        }
        let range_so_far = range.start..range.start;
        let mut new = Segment { object, range: range_so_far, pieces: Vec::new(), blocks: 0, coming: None };
        new.add(range, is_frame, wanted);
        self.open.push(new);
        Ok(())
    }

    /// A piece of an image is taken as it comes by, behind the one before it.
    fn comes_by(&mut self, object: Arc<str>, piece: Piece) -> Result<()> {
        let is_behind = |coming: &Coming| coming.object == object && coming.end <= piece.range.start;
        if !self.coming.as_ref().is_some_and(is_behind) {
            self.coming = None;
            let (pieces, coming) = sync_channel(MOST_COMING);
            let (range, pieces) = (0..self.grid.length, self.queue.is_some().then_some(pieces));
            self.coming = Some(Coming { object: Arc::clone(&object), end: 0, pieces });
            self.send(Segment { object, range, pieces: Vec::new(), blocks: 0, coming: Some(coming) })?;
        }
        let Some(coming) = &mut self.coming else { return Ok(()) };
        coming.end = piece.range.end;
        self.shared.asked.bytes.fetch_add(piece.range.end - piece.range.start, Ordering::Relaxed);
        let Some(pieces) = &coming.pieces else { return Ok(()) };
        // Whoever takes them is gone only after an error.
        pieces.send(piece).map_err(|_| Error::Interrupted(Again::GoesOn))
    }

    /// From the first to the last page of a block that is wanted, where it lies in the image.
    fn pages_of(&self, wanted: &Wanted) -> Range<u64> {
        let (first, last) = (wanted.pages.trailing_zeros(), 63 - wanted.pages.leading_zeros());
        self.grid.pages(wanted.index, &(first..last + 1))
    }

    fn send(&self, segment: Segment) -> Result<()> {
        self.shared.asked.requests.fetch_add(1, Ordering::Relaxed);
        let wanted: u64 = segment.pieces.iter().map(|piece| piece.range.end - piece.range.start).sum();
        self.shared.asked.bytes.fetch_add(wanted, Ordering::Relaxed);
        let Some(queue) = &self.queue else { return Ok(()) };
        // Those who take them are gone only after an error.
        queue.send(segment).map_err(|_| Error::Interrupted(Again::GoesOn))
    }

    /// Nothing more is wanted.
    pub fn finish(mut self) -> Result<()> {
        self.coming = None;
        let open = std::mem::take(&mut self.open);
        open.into_iter().try_for_each(|segment| self.send(segment))
    }
}

impl Segment {
    /// What is wanted of patches, which lie in an object of their own.
    pub fn patched(&self) -> Vec<Wanted> {
        let wanted = self.pieces.iter().flat_map(|piece| &piece.blocks);
        wanted.filter(|wanted| wanted.patched.is_some()).cloned().collect()
    }

    /// Whether a stretch behind it is to be had by the same request.
    fn takes(&self, range: &Range<u64>, gap: u64, whole: bool) -> bool {
        let is_behind = range.start >= self.range.end;
        let is_near = whole || range.start.saturating_sub(self.range.end) <= gap;
        let is_small = match whole {
            true => self.blocks < MOST_BLOCKS_WHOLE,
            false => range.end.saturating_sub(self.range.start) <= MOST && self.blocks < MOST_BLOCKS,
        };
        is_behind && is_near && is_small
    }

    fn add(&mut self, range: Range<u64>, is_frame: bool, wanted: Wanted) {
        self.blocks += 1;
        match self.pieces.last_mut() {
            Some(piece) if is_frame && piece.range == range => piece.blocks.push(wanted),
            _ => {
                self.range.end = range.end;
                self.pieces.push(Piece { range, is_frame, blocks: vec![wanted] });
            }
        }
    }
}
