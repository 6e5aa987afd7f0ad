//! Fetches blocks: neighbours by one request, a dozen requests at a time, each block proven by its hash
//! before it is handed on. Memory: a frame for each request.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::error::{Again, Error, Result, lock};
use crate::hashmap::{self, Grid, Hash, PageMask};
use crate::remote;
use crate::store::objects::{Objects, Served};
use crate::store::pack::Unpacker;
use crate::store::places::Place;

/// Bytes that one request asks for, but for those that ask for whole objects.
const MOST: u64 = 8 << 20;
/// Blocks that one request asks for.
const MOST_BLOCKS: usize = 8 << 10;
/// The same where whole objects are had: 16 GiB of a plain image.
const MOST_BLOCKS_WHOLE: usize = 256 << 10;
/// Requests that neighbours are looked for to add, at a time.
const OPEN: usize = 8;
/// The same where whole objects are had.
const OPEN_WHOLE: usize = 64;
/// What nobody wants between two that are wanted is fetched, too, if it is so little: to begin with, at
/// least, and at most.
const GAP: Range<u64> = 16 << 10..1 << 20;
const FIRST_GAP: u64 = 64 << 10;

/// Where a block is had from.
#[derive(Debug, Clone)]
pub enum From {
    /// From a frame of an object: where that lies, and where the block lies in what it unpacks to.
    Frame {
        /// The name of the object.
        object: Arc<str>,
        /// Of the frame.
        range: Range<u64>,
        /// The first byte of the block in it.
        raw: u32,
    },
    /// From the image as it lies there.
    Plain {
        /// The name of the object.
        object: Arc<str>,
    },
}

impl From {
    /// That which lies at a place in a pack, or the image itself.
    pub fn of(object: Arc<str>, place: Option<&Place>) -> From {
        match place {
            Some(place) => From::Frame { object, range: place.frame(), raw: place.raw },
            None => From::Plain { object },
        }
    }
}

/// A block that is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Which.
    pub index: u64,
    /// The pages that are to be had.
    pub pages: PageMask,
    /// The hash of the block.
    pub hash: Hash,
    /// Its pages, where only some of them are wanted, as those of a patch: then whoever has the others
    /// proves it.
    pub patched: Option<PageMask>,
    /// Where they are.
    pub from: From,
}

/// A block that was had.
#[derive(Debug)]
pub struct Had<'a> {
    /// Which.
    pub index: u64,
    /// The pages that were wanted.
    pub pages: PageMask,
    /// Their bytes, packed.
    pub bytes: &'a [u8],
    /// Of the wish.
    pub hash: Hash,
    /// Of the wish.
    pub patched: Option<PageMask>,
    /// Where it came from, for messages.
    pub address: &'a str,
}

/// A stretch of an object, and what is wanted of it.
struct Piece {
    range: Range<u64>,
    is_frame: bool,
    blocks: Vec<Wanted>,
}

/// What one request asks for.
struct Segment {
    object: Arc<str>,
    range: Range<u64>,
    pieces: Vec<Piece>,
    blocks: usize,
}

/// How blocks are fetched.
pub struct Fetch<'a> {
    /// From where.
    pub objects: &'a dyn Objects,
    /// Of an image on this grid.
    pub grid: Grid,
    /// Requests at a time.
    pub jobs: usize,
    /// Whoever has them gives whole objects alone.
    pub whole: bool,
    /// Nothing is fetched, it is counted what would be.
    pub dry_run: bool,
}

/// What was asked for.
#[derive(Debug, Default)]
pub struct Asked {
    /// Requests; how many a dry run would make depends on the link, which it has not measured.
    pub requests: AtomicU64,
    /// Bytes that are wanted, what lies between them not counted.
    pub bytes: AtomicU64,
}

/// Takes wishes, in the order of the image.
pub struct Planner<'a> {
    grid: Grid,
    whole: bool,
    open: Vec<Segment>,
    queue: Option<SyncSender<Segment>>,
    shared: &'a Shared<'a>,
}

/// What the threads share.
struct Shared<'a> {
    objects: &'a dyn Objects,
    asked: &'a Asked,
    gap: AtomicU64,
    is_stopped: AtomicBool,
    failed: Mutex<Option<Error>>,
}

impl Shared<'_> {
    /// The first error is that of the run: who stops for another one's reports nothing. Whoever waits for an
    /// answer waits no more.
    fn fail(&self, error: Error) {
        let mut failed = lock(&self.failed);
        if !self.is_stopped.swap(true, Ordering::Relaxed) {
            *failed = Some(error);
            self.objects.stop();
        }
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    /// Fails when an error, which comes first, or a signal has ended the run.
    fn go_on(&self) -> Result<()> {
        let is_over = self.is_stopped() || remote::is_interrupted();
        if is_over { Err(Error::Interrupted(Again::GoesOn)) } else { Ok(()) }
    }
}

impl Fetch<'_> {
    /// Runs `feed`, which tells what is wanted, beside the requests for it; what is had is handed to `put`,
    /// from several threads at once.
    ///
    /// # Errors
    ///
    /// The first of what `feed`, a request or `put` comes to.
    pub fn run(
        &self,
        asked: &Asked,
        feed: impl FnOnce(&mut Planner) -> Result<()>,
        put: &(dyn Fn(Had) -> Result<()> + Sync),
    ) -> Result<()> {
        let shared = Shared {
            objects: self.objects,
            asked,
            gap: AtomicU64::new(FIRST_GAP),
            is_stopped: AtomicBool::new(false),
            failed: Mutex::new(None),
        };
        std::thread::scope(|scope| {
            let (queue_in, queue) = sync_channel(self.jobs);
            let queue = Arc::new(Mutex::new(queue));
            if !self.dry_run {
                for _ in 0..self.jobs {
                    let (queue, shared) = (Arc::clone(&queue), &shared);
                    scope.spawn(move || self.work(&queue, shared, put));
                }
            }
            drop(queue);
            let mut planner = Planner {
                grid: self.grid,
                whole: self.whole,
                open: Vec::new(),
                queue: (!self.dry_run).then_some(queue_in),
                shared: &shared,
            };
            if let Err(error) = feed(&mut planner).and_then(|()| planner.finish()) {
                shared.fail(error);
            }
        });
        let failed = shared.failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        failed.map_or(Ok(()), Err)
    }

    fn work(
        &self,
        queue: &Mutex<Receiver<Segment>>,
        shared: &Shared,
        put: &(dyn Fn(Had) -> Result<()> + Sync),
    ) {
        let mut unpacker = match Unpacker::new() {
            Ok(unpacker) => unpacker,
            Err(error) => return shared.fail(Error::file("use", "zstd")(error)),
        };
        loop {
            let next = lock(queue).recv();
            let Ok(segment) = next else { return };
            if shared.is_stopped() {
                // The queue is emptied, so that whoever fills it gets on.
                continue;
            }
            if let Err(error) = self.segment(segment, shared, &mut unpacker, put) {
                shared.fail(error);
            }
        }
    }

    fn segment(
        &self,
        segment: Segment,
        shared: &Shared,
        unpacker: &mut Unpacker,
        put: &(dyn Fn(Had) -> Result<()> + Sync),
    ) -> Result<()> {
        let address = self.objects.address(&segment.object);
        let start = Instant::now();
        let mut first = None;
        let mut reader = SegmentReader {
            at: if self.whole { 0 } else { segment.range.start },
            bytes: Vec::new(),
            pieces: segment.pieces.into_iter(),
            current: None,
            handle: |piece: &Piece, bytes: &[u8]| {
                hand_on(&self.grid, (piece, bytes), &address, unpacker, put)
            },
        };
        let mut take = |bytes: &[u8]| {
            first.get_or_insert_with(|| start.elapsed());
            shared.go_on()?;
            reader.take(bytes)
        };
        let range = segment.range.clone();
        match self.whole {
            true => self.objects.read_front(&segment.object, range.end, &mut take)?,
            false if self.objects.read(&segment.object, range.clone(), &mut take)? == Served::WholeOnly => {
                let what = "it answers a request for a part with the whole (200 where 206 is wanted): that does for a \
                            first deploy alone; use a server that has ranges, or -W";
                return Err(Error::Protocol { peer: address, what: what.into() });
            }
            false => {}
        }
        // What the link carries while a request waits for its answer is as cheap as that request.
        let (latency, all) = (first.unwrap_or_default().as_secs_f64(), start.elapsed().as_secs_f64());
        let rate = (range.end - range.start) as f64 / (all - latency).max(1e-3);
        shared.gap.store(((latency * rate) as u64).clamp(GAP.start, GAP.end), Ordering::Relaxed);
        Ok(())
    }
}

impl Planner<'_> {
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
        let mut new = Segment { object, range: range.start..range.start, pieces: Vec::new(), blocks: 0 };
        new.add(range, is_frame, wanted);
        self.open.push(new);
        Ok(())
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

    fn finish(mut self) -> Result<()> {
        let open = std::mem::take(&mut self.open);
        open.into_iter().try_for_each(|segment| self.send(segment))
    }
}

impl Segment {
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

/// Cuts pieces out of what comes.
struct SegmentReader<H> {
    /// Where in the object the next byte lies.
    at: u64,
    /// What came of the current piece.
    bytes: Vec<u8>,
    pieces: std::vec::IntoIter<Piece>,
    current: Option<Piece>,
    handle: H,
}

impl<H: FnMut(&Piece, &[u8]) -> Result<()>> SegmentReader<H> {
    fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let Some(piece) = self.current.take().or_else(|| self.pieces.next()) else { return Ok(()) };
            let skipped = piece.range.start.saturating_sub(self.at).min(bytes.len() as u64);
            (self.at, bytes) = (self.at + skipped, &bytes[skipped as usize..]);
            let len = (piece.range.end - self.at.min(piece.range.end)).min(bytes.len() as u64);
            let (now, later) = bytes.split_at(len as usize);
            let is_whole = self.at >= piece.range.start && self.at + len == piece.range.end;
            // What comes in one go need not be copied.
            if is_whole && self.bytes.is_empty() {
                (self.handle)(&piece, now)?;
            } else {
                self.bytes.extend(now);
            }
            (self.at, bytes) = (self.at + len, later);
            if !is_whole {
                self.current = Some(piece);
            } else if !self.bytes.is_empty() {
                (self.handle)(&piece, &self.bytes)?;
                self.bytes.clear();
            }
        }
        Ok(())
    }
}

/// Proves the blocks of a piece, and hands them on.
fn hand_on(
    grid: &Grid,
    (piece, bytes): (&Piece, &[u8]),
    address: &str,
    unpacker: &mut Unpacker,
    put: &(dyn Fn(Had) -> Result<()> + Sync),
) -> Result<()> {
    let wrong = |what: String| Error::Protocol { peer: address.into(), what };
    let raw = match piece.is_frame {
        true => unpacker.frame(bytes).map_err(|error| {
            wrong(format!("what lies at {} is no frame of blocks: {error}", piece.range.start))
        })?,
        false => bytes,
    };
    let mut packed = Vec::new();
    for wanted in &piece.blocks {
        let length = grid.masked_bytes(wanted.index, wanted.pages) as usize;
        let bytes = match &wanted.from {
            From::Frame { raw: at, .. } => {
                let bytes = raw.get(*at as usize..).and_then(|behind| behind.get(..length));
                bytes.ok_or_else(|| wrong(format!("the frame at {} has too few bytes", piece.range.start)))?
            }
            From::Plain { .. } => {
                packed.clear();
                for run in hashmap::page_runs(wanted.pages) {
                    let range = grid.pages(wanted.index, &run);
                    let at = (range.start - piece.range.start) as usize;
                    packed.extend(&raw[at..at + (range.end - range.start) as usize]);
                }
                packed.as_slice()
            }
        };
        let is_right = || hashmap::hash_block(wanted.pages, std::iter::once(bytes)) == wanted.hash;
        if wanted.patched.is_none() && !is_right() {
            let what = format!("block {} of the image has another hash than its map says", wanted.index);
            return Err(wrong(what));
        }
        let &Wanted { index, pages, hash, patched, .. } = wanted;
        put(Had { index, pages, bytes, hash, patched, address })?;
    }
    Ok(())
}
