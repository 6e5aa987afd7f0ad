//! An image of a chunk store becomes a file or device:
//!
//! 1. The index is read whole, and what it says is checked.
//! 2. Threads look at its chunks, ahead of what is written and within a bound (`casync/ahead.rs`): one of
//!    zeros is not fetched; one that DEST has at the same offset is not; all others are, and must have
//!    the bytes that the index says.
//! 3. The image is written in order, as one from stdin is.
//!
//! Guaranteed: the old file is whole until every chunk came and was written. Not guaranteed: that the
//! index is that of the image that was meant; whoever can change it decides what comes.

mod ahead;

use std::path::Path;

use crate::error::Result;
use crate::options::Options;
use crate::report::{Event, Phase, Reporter, Stats};
use crate::scan::Content;
use crate::store::casync::{ChunkStore, Index};
use crate::store::objects::Objects;
use crate::stream::plain::Old;
use crate::stream::{PlainImage, make, report};
use ahead::{Ahead, Found};

/// An image that an index names the chunks of.
#[derive(Clone, Copy)]
pub struct Published<'a> {
    /// Where the index is.
    pub objects: &'a dyn Objects,
    /// Its name there.
    pub index: &'a str,
    /// Where its chunks are.
    pub chunks: ChunkStore<'a>,
    /// How many chunks are looked at or fetched at a time; at least one.
    pub jobs: usize,
}

/// What a run came to.
#[derive(Debug)]
pub struct Pulled {
    /// The totals.
    pub stats: Stats,
    /// Bytes that came as chunks.
    pub received: u64,
    /// Chunks that came.
    pub chunks: u64,
}

/// Makes `path` the image. A dry run fetches what the true one would, and tells exactly what would change.
///
/// # Errors
///
/// When the index or a chunk cannot be had, or is not what it must be; when the file or device cannot be
/// read or written. Then the old file is as it was; a device is written as far as it came.
pub fn pull(
    published: &Published,
    path: &Path,
    options: &Options,
    umask: u32,
    reporter: &dyn Reporter,
) -> Result<Pulled> {
    let index = Index::read(published.objects, published.index)?;
    reporter.event(Event::Found(index.length()));
    let mut came = (0, 0);
    let stats = make(path, options, umask, reporter, |image| {
        image.expect(index.length())?;
        let old = image.old();
        let ahead = Ahead::new(&index, published.chunks, &old);
        came = std::thread::scope(|scope| {
            (0..published.jobs.max(1)).for_each(|_| drop(scope.spawn(|| ahead.work())));
            let _ends = ahead.ends();
            let url = published.objects.address(published.index);
            let mut laid = Laid::new(image, &old, options, &url);
            while let Some((chunk, found)) = ahead.next() {
                laid.found(chunk.len(), found?)?;
                reporter.event(Event::Done(Phase::Sending, chunk.len() as u64));
            }
            laid.lay(laid.new.len())?;
            Ok(ahead.came())
        })?;
        Ok(())
    })?;
    report(path, &stats, reporter);
    Ok(Pulled { stats, received: came.0, chunks: came.1 })
}

/// Chunks, laid end to end and cut into whole blocks.
struct Laid<'a> {
    image: &'a mut PlainImage,
    old: &'a Old,
    options: &'a Options,
    url: &'a str,
    /// Bytes that are not written yet, and what is there in their place.
    new: Vec<u8>,
    was: Vec<u8>,
}

impl<'a> Laid<'a> {
    fn new(image: &'a mut PlainImage, old: &'a Old, options: &'a Options, url: &'a str) -> Laid<'a> {
        Laid { image, old, options, url, new: Vec::new(), was: Vec::new() }
    }

    fn found(&mut self, len: usize, found: Found) -> Result<()> {
        let (bytes, was) = match &found {
            Found::Zeros => return self.zeros(len),
            Found::Kept(bytes) => (bytes, bytes),
            Found::Fetched { bytes, was } => (bytes, was),
        };
        self.new.extend_from_slice(bytes);
        self.was.extend_from_slice(was);
        self.lay(self.new.len() / self.block() * self.block())
    }

    fn block(&self) -> usize {
        self.options.block_size.bytes() as usize
    }

    /// Zeros, of which whole blocks are neither read nor written where nothing is.
    fn zeros(&mut self, len: usize) -> Result<()> {
        let first = len.min(self.new.len().next_multiple_of(self.block()) - self.new.len());
        let whole = (len - first) / self.block() * self.block();
        self.some_zeros(first)?;
        if whole > 0 {
            self.lay(self.new.len())?;
            self.image.zero(whole as u64)?;
        }
        self.some_zeros(len - first - whole)
    }

    fn some_zeros(&mut self, len: usize) -> Result<()> {
        let at = self.image.length() + self.new.len() as u64;
        self.was.extend_from_slice(&self.old.read(at, len)?);
        self.new.resize(self.new.len() + len, 0);
        Ok(())
    }

    /// Writes so many bytes: whole blocks, or the last.
    fn lay(&mut self, len: usize) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let is_head = self.image.length() == 0 && self.image.is_device() && !self.options.as_is;
        if let Some(content) = Content::of(&self.new).filter(|_| is_head) {
            return Err(content.refuse_stored(self.url));
        }
        self.image.take_over(&self.new[..len], &self.was[..len])?;
        self.new.drain(..len);
        self.was.drain(..len);
        Ok(())
    }
}
