//! Fetches blocks: neighbours by one request, a dozen requests at a time, each block proven by its hash
//! before it is handed on. Of an image as it lies there, where it is had whole alone, blocks are taken as they
//! come by, by one request. Memory: a frame for each request. What is wrong with patches is told with
//! what was wanted of them: it can be had whole.

mod planner;
mod reader;

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::error::{Again, Error, Result, lock};
use crate::hashmap::{Grid, Hash, PageMask};
use crate::remote;
use crate::store::objects::{Objects, Served};
use crate::store::pack::Unpacker;
use crate::store::places::Place;
pub use planner::Planner;
use planner::Segment;
use reader::{Piece, SegmentReader, hand_on};

/// What nobody wants between two that are wanted is fetched, too, if it is so little: to begin with, at
/// least, and at most.
const GAP: Range<u64> = 16 << 10..1 << 20;
const FIRST_GAP: u64 = 64 << 10;
/// Blocks that are had whole where their patches are not what they should be: about 20 MiB. More is an error.
const MOST_SPOILT: usize = 128 << 10;

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
    /// The block, where only some of its pages are wanted, those of a patch: then whoever has the others
    /// proves it.
    pub patched: Option<Whole>,
    /// Where they are.
    pub from: From,
}

/// A block of which a patch is wanted.
#[derive(Debug, Clone)]
pub struct Whole {
    /// All of its pages.
    pub pages: PageMask,
    /// Where they are.
    pub from: From,
}

impl Wanted {
    /// It, without a patch.
    pub fn whole(self) -> Wanted {
        match self.patched {
            Some(Whole { pages, from }) => Wanted { pages, from, patched: None, ..self },
            None => self,
        }
    }
}

/// What was wanted of patches that are not what they should be.
#[derive(Debug, Default)]
pub struct Spoilt {
    /// All that was asked for with them.
    pub wanted: Vec<Wanted>,
    /// What is wrong with the first.
    pub why: Option<Error>,
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
    /// All pages of the block, where these are those of a patch.
    pub patched: Option<PageMask>,
    /// Where it came from, for messages.
    pub address: &'a str,
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

/// What the threads share.
struct Shared<'a> {
    objects: &'a dyn Objects,
    asked: &'a Asked,
    gap: AtomicU64,
    is_stopped: AtomicBool,
    failed: Mutex<Option<Error>>,
    spoilt: Mutex<Spoilt>,
}

impl Shared<'_> {
    /// The first error is that of the run, but for one of who was stopped, or found nobody any more to hand
    /// something to: that is for another one's, which may come later. Whoever waits for an answer waits no more.
    fn fail(&self, error: Error) {
        let mut failed = lock(&self.failed);
        let is_stopped = self.is_stopped.swap(true, Ordering::Relaxed);
        let tells_more = matches!(*failed, None | Some(Error::Interrupted(_)));
        if !is_stopped || tells_more && !matches!(error, Error::Interrupted(_)) {
            *failed = Some(error);
        }
        if !is_stopped {
            self.objects.stop();
        }
    }

    /// What is wanted of these is to be had without patches.
    fn spoil(&self, patched: Vec<Wanted>, error: Error) {
        let mut spoilt = lock(&self.spoilt);
        if spoilt.wanted.len() + patched.len() > MOST_SPOILT {
            drop(spoilt);
            return self.fail(error);
        }
        spoilt.wanted.extend(patched);
        spoilt.why.get_or_insert(error);
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
    /// from several threads at once. Returns what is to be had whole; some of that was handed on.
    ///
    /// # Errors
    ///
    /// The first of what `feed`, a request or `put` comes to.
    pub fn run(
        &self,
        asked: &Asked,
        feed: impl FnOnce(&mut Planner) -> Result<()>,
        put: &(dyn Fn(Had) -> Result<()> + Sync),
    ) -> Result<Spoilt> {
        let shared = Shared {
            objects: self.objects,
            asked,
            gap: AtomicU64::new(FIRST_GAP),
            is_stopped: AtomicBool::new(false),
            failed: Mutex::new(None),
            spoilt: Mutex::default(),
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
            let queue = (!self.dry_run).then_some(queue_in);
            let mut planner = Planner::new(self.grid, self.whole, queue, &shared);
            if let Err(error) = feed(&mut planner).and_then(|()| planner.finish()) {
                shared.fail(error);
            }
        });
        let failed = shared.failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        let spoilt = shared.spoilt.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        failed.map_or(Ok(spoilt), Err)
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
            let patched = segment.patched();
            // What is wrong with where blocks go is no fault of what they came from.
            let is_refused = Cell::new(false);
            let put = |had: Had| {
                put(had).inspect_err(|error| is_refused.set(!matches!(error, Error::Protocol { .. })))
            };
            if let Err(error) = self.segment(segment, shared, &mut unpacker, &put) {
                let is_about_it =
                    matches!(error, Error::Protocol { .. } | Error::Refused { .. } | Error::File { .. });
                match is_about_it && !is_refused.get() && !patched.is_empty() {
                    true => shared.spoil(patched, error),
                    false => shared.fail(error),
                }
            }
        }
    }

    fn segment(
        &self,
        segment: Segment,
        shared: &Shared,
        unpacker: &mut Unpacker,
        put: &dyn Fn(Had) -> Result<()>,
    ) -> Result<()> {
        let address = self.objects.address(&segment.object);
        let start = Instant::now();
        let mut first = None;
        let (range, comes_by) = (segment.range.clone(), segment.coming.is_some());
        let pieces = segment.pieces.into_iter().chain(segment.coming.into_iter().flatten());
        let at = if self.whole { 0 } else { range.start };
        let mut reader = SegmentReader::new(at, pieces, |piece: &Piece, bytes: &[u8]| {
            hand_on(&self.grid, (piece, bytes), &address, unpacker, put)
        });
        let mut take = |bytes: &[u8]| {
            first.get_or_insert_with(|| start.elapsed());
            shared.go_on()?;
            reader.take(bytes)?;
            // Nobody wants more of it.
            if comes_by && reader.is_done() { Err(Error::Interrupted(Again::GoesOn)) } else { Ok(()) }
        };
        match self.whole {
            true => {
                let read = self.objects.read_front(&segment.object, range.end, &mut take);
                if !(comes_by && reader.is_done()) {
                    read?;
                }
            }
            false if self.objects.read(&segment.object, range.clone(), &mut take)? == Served::WholeOnly => {
                let what = "it answers a request for a part with the whole (200 where 206 is wanted): that does for a \
                            first deploy alone; use a server that has ranges, or -W";
                return Err(Error::Protocol { peer: address, what: what.into() });
            }
            false => {}
        }
        if !reader.has_all() {
            let what = "less of it came than was asked for, without an error".into();
            return Err(Error::Protocol { peer: address, what });
        }
        // What the link carries while a request waits for its answer is as cheap as that request.
        let (latency, all) = (first.unwrap_or_default().as_secs_f64(), start.elapsed().as_secs_f64());
        let rate = (range.end - range.start) as f64 / (all - latency).max(1e-3);
        shared.gap.store(((latency * rate) as u64).clamp(GAP.start, GAP.end), Ordering::Relaxed);
        Ok(())
    }
}
