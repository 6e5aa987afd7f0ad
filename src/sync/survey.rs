//! What images hold and where they differ, without moving their data: `map` and `diff`, of
//! images here and on hosts.
//!
//! 1. Two images here are compared page by page ([`compare`](crate::hashmap::compare)).
//! 2. Otherwise both are hashed block by block, each where it is; a host tells the hashes
//!    (`survey/answer.rs`, `survey/far.rs`). Blocks whose hashes are equal are equal.
//! 3. Of blocks that have data in both and other hashes, both are asked for the hashes of their
//!    pages (`survey/merge.rs`). Questions do not wait for each other.
//! 4. A map file stands for the image that it was made of; of blocks that differ from its own, all
//!    pages with data count as different, since it has no leaves (`survey/saved.rs`).
//! 5. What one image has beyond the end of the other differs, whatever it holds; its extents
//!    tell what that is.
//!
//! Guaranteed: spans come in order and cover the longer image; what is said to differ does; what
//! is said to be equal has equal hashes of 32 bytes a block or, within a block that differs, 8
//! bytes a page. Memory: what may be told ahead of the other image, a bound of each side. Not
//! guaranteed: anything about an image that somebody writes meanwhile.

mod answer;
mod digest;
mod far;
mod here;
mod merge;
mod saved;

use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use rayon::prelude::*;

use crate::confinement::NamedPath;
use crate::error::{Error, Failure, Result, code, lock};
use crate::hashmap::compare::{Hashing, OldContent, ReadError, compare};
use crate::hashmap::difference::{BlockPages, Content, Lengths, Span, Spans};
use crate::hashmap::leaves::Leaves;
use crate::hashmap::map_file;
use crate::hashmap::{Grid, Hash, MapEntry};
use crate::location::{Host, Location};
use crate::options::{BlockSize, Options};
use crate::protocol::{Request, SURVEY, VERSION, keep_alive};
use crate::remote::{FarSide, Input, Output, RemoteOptions};
use crate::report::{Event, Phase, Reporter};
use crate::scan::{self, Extent, FileImage, Image};
use crate::sync::retry::Tries;
use crate::sync::{Initiator, Shared};

pub(super) use answer::answer;
pub use digest::digest;
use far::FarImage;
use here::HereImage;
use saved::SavedMap;

/// How an image is looked at.
#[derive(Clone, Copy)]
pub struct Looking<'a> {
    /// The unit of hashes; how a host is spoken with.
    pub options: &'a Options,
    /// How a host is reached.
    pub remote: &'a RemoteOptions,
    /// Who is told what happens meanwhile.
    pub reporter: &'a dyn Reporter,
}

/// Hands on the data extents of an image, with its length. Returns the length.
///
/// # Errors
///
/// When it cannot be read, or its host not be reached; what `sink` returns.
pub fn extents(
    location: &Location,
    looking: Looking,
    sink: &mut dyn FnMut(u64, Extent) -> Result<()>,
) -> Result<u64> {
    looking.open(location, &mut |image| {
        let length = image.length();
        looking.found(length);
        image.extents(0, &mut |extent| sink(length, extent))?;
        looking.done(length);
        Ok(length)
    })
}

/// Hands on the blocks of an image in order, each with the index of its first one. Returns the
/// grid that they lie on.
///
/// # Errors
///
/// Those of [`extents`].
pub fn blocks(
    location: &Location,
    looking: Looking,
    sink: &mut dyn FnMut(&Grid, u64, &MapEntry) -> Result<()>,
) -> Result<Grid> {
    looking.open(location, &mut |image| {
        let block = image.block_size().unwrap_or(looking.options.block_size);
        let grid = Grid { length: image.length(), block };
        looking.found(grid.length);
        image.start(&grid)?;
        let mut index = 0;
        while let Some(told) = image.blocks()? {
            let bytes = grid.bytes(&(index..index + told.iter().map(MapEntry::blocks).sum::<u64>()));
            looking.done(bytes.end - bytes.start);
            for blocks in &told {
                sink(&grid, index, blocks)?;
                index += blocks.blocks();
            }
        }
        Ok(grid)
    })
}

/// Hands on what two images have, span by span, with their lengths. Returns the lengths.
///
/// # Errors
///
/// Those of [`extents`].
pub fn diff(
    a: &Location,
    b: &Location,
    looking: Looking,
    sink: &mut dyn FnMut(Lengths, Span) -> Result<()>,
) -> Result<Lengths> {
    let saved = block_size_of_maps([a, b])?;
    if let (Location::Local(a), Location::Local(b), None) = (a, b, saved) {
        return diff_here(a, b, looking, sink);
    }
    let block_size = saved.unwrap_or(looking.options.block_size);
    let options = &Options { block_size, ..looking.options.clone() };
    let looking = Looking { options, ..looking };
    looking.open(a, &mut |a| {
        looking.open(b, &mut |b| {
            let lengths = Lengths { a: a.length(), b: b.length() };
            let mut spans = Spans::new(|span| sink(lengths, span));
            let grid = Grid { length: lengths.common(), block: looking.options.block_size };
            looking.found(grid.length);
            a.start(&grid)?;
            b.start(&grid)?;
            merge::merge(a, b, &grid, &mut |bytes| looking.done(bytes), &mut spans)?;
            tail(lengths, &mut spans, &mut |from, take| {
                if lengths.a > lengths.b { a.extents(from, take) } else { b.extents(from, take) }
            })?;
            spans.finish()?;
            Ok(lengths)
        })
    })
}

/// The root hash of the image that a map file is of.
///
/// # Errors
///
/// When it cannot be read, or is damaged.
pub fn root_of_map(path: &Path) -> Result<Hash> {
    let (file, _) = scan::open_image(&NamedPath::here(path))?;
    saved::root(path, &file)
}

/// The block size of those of two images that are maps; `None` where neither is.
fn block_size_of_maps(images: [&Location; 2]) -> Result<Option<BlockSize>> {
    let mut found: Option<BlockSize> = None;
    for location in images {
        let Location::Local(path) = location else { continue };
        if !map_file::is_map(path) {
            continue;
        }
        let (file, _) = scan::open_image(&NamedPath::here(path))?;
        let block = saved::grid(path, &file)?.block;
        if let Some(other) = found.replace(block).filter(|other| *other != block) {
            return Err(Error::Usage(format!(
                "two maps of blocks of {} and of {} bytes cannot be compared: write one of them anew with -B",
                other.bytes(),
                block.bytes()
            )));
        }
    }
    Ok(found)
}

/// An image that tells what it holds, wherever it is. Blocks are told on the grid that `start`
/// was given; leaves of blocks may be asked for then.
trait Surveyed {
    /// In bytes.
    fn length(&self) -> u64;
    /// The only size of blocks that it can tell of, where it has no leaves either.
    fn block_size(&self) -> Option<BlockSize> {
        None
    }
    /// Its data extents from an offset on.
    fn extents(&mut self, from: u64, sink: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()>;
    /// Begins to hash the blocks of a grid, which ends where the image does or before.
    fn start(&mut self, grid: &Grid) -> Result<()>;
    /// The next of them; `None` behind the last.
    fn blocks(&mut self) -> Result<Option<Vec<MapEntry>>>;
    /// Asks for the leaves of blocks, a page each.
    fn ask(&mut self, blocks: &[u64]) -> Result<()>;
    /// The answer to the oldest question that has none.
    fn answer(&mut self) -> Result<Vec<Leaves>>;
}

/// What is done with an image that is open.
type Work<'a, T> = &'a mut dyn FnMut(&mut dyn Surveyed) -> Result<T>;

impl Looking<'_> {
    /// So much of an image is going to be read.
    fn found(self, bytes: u64) {
        self.reporter.event(Event::Found(bytes));
    }

    /// So much of it was, holes included.
    fn done(self, bytes: u64) {
        self.reporter.event(Event::Done(Phase::Mapping, bytes));
    }

    /// Opens an image, here or on its host, for `work`.
    fn open<T>(self, location: &Location, work: Work<T>) -> Result<T> {
        match location {
            Location::Local(path) => {
                let (file, length) = scan::open_image(&NamedPath::here(path))?;
                if map_file::is_map(path) {
                    return work(&mut SavedMap::open(path, &file)?);
                }
                let image = FileImage::new(file, self.options.hole_map);
                std::thread::scope(|scope| work(&mut HereImage::new(scope, path, &image, length)))
            }
            Location::Remote(host, path) => self.open_there(host, path, work),
        }
    }

    fn open_there<T>(self, host: &Host, path: &Path, work: Work<T>) -> Result<T> {
        self.connect(host, |initiator, input, mut output| {
            if input.version() < SURVEY {
                return Err(too_old(host, input.version()));
            }
            initiator.request(&mut output, Request::Survey { path: path.into() })?;
            let output = Mutex::new(output);
            std::thread::scope(|scope| {
                let (_until_here, over) = channel();
                let output = &output;
                scope.spawn(move || keep_alive(output, self.options.life_sign(), &over));
                let mut image = FarImage::open(input, output)?;
                let result = work(&mut image);
                match &result {
                    Ok(_) => image.close()?,
                    Err(error) => lock(output).give_up(error),
                }
                result
            })
        })
    }

    /// Reaches a holesync on a host, which has to be there or to be brought along, and asks it.
    pub(super) fn connect<T>(
        self,
        host: &Host,
        ask: impl FnOnce(Initiator, Input, Output) -> Result<T>,
    ) -> Result<T> {
        let Looking { options, remote, reporter } = self;
        let tries = &Tries::new(Some(0));
        let shared = &Shared::alone(options);
        let initiator = Initiator { options, remote, reporter, tries, shared, saved: None };
        let completed =
            initiator.connect(host, options.silence(), |far_side, input, output| match far_side {
                FarSide::Agent => ask(initiator, input, output),
                FarSide::Shell => Err(no_holesync(host)),
            })?;
        Ok(completed.value)
    }
}

fn no_holesync(host: &Host) -> Error {
    let message = "there is no holesync, which has to tell hashes of the image: install one there, bring this one along \
                   with --agent=push, or name it with --remote-path";
    Error::Remote { peer: host.to_string(), failure: Failure::new(code::START, message) }
}

fn too_old(host: &Host, version: u16) -> Error {
    Error::Version { peer: host.to_string(), theirs: (version, version), ours: (SURVEY, VERSION) }
}

/// The leaves of blocks of an image, a page each.
fn leaves_of(path: &Path, image: &FileImage, grid: &Grid, blocks: &[u64]) -> Result<Vec<Leaves>> {
    let leaves = blocks.par_iter().map(|&block| Leaves::read(image, grid, block, BlockSize::SMALLEST));
    leaves.collect::<Result<_, _>>().map_err(Error::file("read", path))
}

/// Two images here.
fn diff_here(
    a: &Path,
    b: &Path,
    looking: Looking,
    sink: &mut dyn FnMut(Lengths, Span) -> Result<()>,
) -> Result<Lengths> {
    let options = looking.options;
    let open = |path: &Path| {
        let (file, length) = scan::open_image(&NamedPath::here(path))?;
        Ok::<_, Error>((FileImage::new(file, options.hole_map), length))
    };
    let ((image_a, length_a), (image_b, length_b)) = (open(a)?, open(b)?);
    let lengths = Lengths { a: length_a, b: length_b };
    let grid = Grid { length: lengths.common(), block: options.block_size };
    looking.found(grid.length);
    let mut spans = Spans::new(|span| sink(lengths, span));
    let old = OldContent::Image(&image_a, grid.length);
    let compared = compare(&image_b, old, &grid, Hashing::Unneeded, &[], |stretch| {
        let (mut at, bytes) = (stretch.range.start, grid.bytes(&stretch.range));
        looking.done(bytes.end - bytes.start);
        for block in &stretch.blocks {
            spans.zeros(&grid, &(at..block.index))?;
            let differing = block.new | block.old & !block.data;
            spans.block(&grid, block.index, BlockPages { a: block.old, b: block.data, differing })?;
            at = block.index + 1;
        }
        spans.zeros(&grid, &(at..stretch.range.end)).map_err(Unfinished::Taken)
    });
    compared.map_err(|unfinished| match unfinished {
        Unfinished::Read(ReadError::New(error)) => Error::file("read", b)(error),
        Unfinished::Read(ReadError::Old(error)) => Error::file("read", a)(error),
        Unfinished::Taken(error) => error,
    })?;
    tail(lengths, &mut spans, &mut |from, take| {
        let (path, image) = if lengths.a > lengths.b { (a, &image_a) } else { (b, &image_b) };
        each_extent(path, image, from..lengths.longest(), take)
    })?;
    spans.finish()?;
    Ok(lengths)
}

/// Why a comparison here did not come to its end.
enum Unfinished {
    Read(ReadError),
    Taken(Error),
}

impl From<ReadError> for Unfinished {
    fn from(error: ReadError) -> Unfinished {
        Unfinished::Read(error)
    }
}

impl From<Error> for Unfinished {
    fn from(error: Error) -> Unfinished {
        Unfinished::Taken(error)
    }
}

fn each_extent(
    path: &Path,
    image: &FileImage,
    range: Range<u64>,
    sink: &mut dyn FnMut(Extent) -> Result<()>,
) -> Result<()> {
    image.extents(range).try_for_each(|extent| sink(extent.map_err(Error::file("map", path))?))
}

/// Hands on the data extents of an image from an offset on.
type ExtentsFrom<'a> = &'a mut dyn FnMut(u64, &mut dyn FnMut(Extent) -> Result<()>) -> Result<()>;

/// What the longer image has beyond the end of the other.
fn tail<F: FnMut(Span) -> Result<()>>(
    lengths: Lengths,
    spans: &mut Spans<F>,
    extents: ExtentsFrom,
) -> Result<()> {
    let mut at = lengths.common();
    if at == lengths.longest() {
        return Ok(());
    }
    let span = |bytes: Range<u64>, content| {
        let (a, b) =
            if lengths.a > lengths.b { (content, Content::Absent) } else { (Content::Absent, content) };
        Span { bytes, a, b, differs: true }
    };
    extents(at, &mut |extent| {
        spans.push(span(at..extent.start, Content::Zeros))?;
        at = extent.end;
        spans.push(span(extent, Content::Data))
    })?;
    spans.push(span(at..lengths.longest(), Content::Zeros))
}
