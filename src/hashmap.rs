//! Files as blocks: parallel hashing in order, and the root hash. Knows no
//! protocol and no destination.
//!
//! A block is [`BlockSize`](crate::options::BlockSize) bytes on a fixed grid, made of 4 KiB *pages*. Its
//! hash covers its non-zero pages and which pages those are, so a block costs
//! what it holds: a hole inside it is neither read nor hashed.

pub mod ahead;
pub mod cache;
pub mod compare;
pub mod difference;
mod entry;
mod gather;
mod grid;
mod known;
pub mod leaves;
pub mod map_file;
pub mod plan;
mod recorder;
pub mod shared;
pub mod since;

use std::io;

use rayon::prelude::*;

pub use crate::hashmap::entry::MapEntry;
use crate::hashmap::gather::{Gather, Gathered};
pub use crate::hashmap::grid::{Grid, MAX_LENGTH, PAGE, PageMask, page_runs};
pub use crate::hashmap::known::KnownMap;
pub use crate::hashmap::recorder::{MapRecord, Maps, Recorder};
use crate::scan::{self, Image};

/// The hash of a block: BLAKE3 over its non-zero pages, in order (the last page
/// of a file as short as it is), then its page mask as 8 bytes, little-endian.
pub type Hash = [u8; 32];

/// As much of a [`type@Hash`] as travels in a map. The root hash is made of whole
/// ones, so a collision here is found out.
pub type Key = [u8; 16];

/// The head of a hash that travels in a map.
pub fn key(hash: &Hash) -> Key {
    std::array::from_fn(|i| hash[i])
}

/// A block with data extents in it, as read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// See [`type@Hash`]; of no meaning when `data` is 0.
    pub hash: Hash,
    /// The pages that are not all zeros. 0: a zero block that is allocated.
    pub data: PageMask,
    /// The pages that lie in data extents; these were read.
    pub read: PageMask,
    /// Where the read pages lie in the batch's buffer, packed.
    pub at: usize,
}

/// What a stretch of a file consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// So many blocks without any data extent.
    Hole(u64),
    /// One block that was read.
    Block(Block),
}

impl Item {
    /// How many blocks it stands for.
    pub fn blocks(&self) -> u64 {
        match self {
            Item::Hole(blocks) => *blocks,
            Item::Block(_) => 1,
        }
    }
}

/// Consecutive blocks of a file and the bytes that were read for them.
#[derive(Debug, Default)]
pub struct Batch {
    /// In file order, without gaps.
    pub items: Vec<Item>,
    /// The read pages of all blocks, one after the other; empty if they are not wanted.
    pub buffer: Vec<u8>,
    /// How many bytes were read for it.
    pub bytes_read: usize,
    /// They were read for another reader of the file.
    pub is_shared: bool,
    /// Bytes of data in it that a kept map tells of: they were not read.
    pub believed: usize,
}

impl Block {
    /// One of which nothing was read.
    pub const HOLE: Block = Block { hash: [0; 32], data: 0, read: 0, at: 0 };

    /// Its non-zero pages as slices of a buffer that holds its read pages, packed,
    /// from `at` on; in file order.
    pub fn data_in<'a>(
        &self,
        grid: &'a Grid,
        index: u64,
        buffer: &'a [u8],
    ) -> impl Iterator<Item = &'a [u8]> + 'a {
        let (read, at) = (self.read, self.at);
        page_runs(self.data).map(move |run| {
            let before = read & ((1u64 << run.start) - 1);
            let start = at + grid.masked_bytes(index, before) as usize;
            let bytes = grid.pages(index, &run);
            &buffer[start..start + (bytes.end - bytes.start) as usize]
        })
    }
}

impl Batch {
    /// The blocks among items, each with its index, if the first item has the index `first`.
    pub fn blocks_of(items: &mut [Item], first: u64) -> impl Iterator<Item = (u64, &mut Block)> {
        let mut next = first;
        items.iter_mut().filter_map(move |item| {
            let index = next;
            next += item.blocks();
            if let Item::Block(block) = item { Some((index, block)) } else { None }
        })
    }

    /// The non-zero pages of a block as slices of the buffer, in file order.
    pub fn data_of<'a>(
        &'a self,
        grid: &'a Grid,
        index: u64,
        block: &Block,
    ) -> impl Iterator<Item = &'a [u8]> + 'a {
        block.data_in(grid, index, &self.buffer)
    }
}

/// Reads the bytes of blocks that were hashed without keeping them into `buffer`, from
/// its start on; what else is in it stays.
///
/// # Errors
///
/// What reading reports.
pub fn read_blocks<'a>(
    image: &dyn Image,
    grid: &Grid,
    blocks: impl Iterator<Item = (u64, &'a mut Block)>,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    let mut at = 0;
    for (index, block) in blocks {
        block.at = at;
        for run in page_runs(block.read) {
            let range = grid.pages(index, &run);
            let end = at + (range.end - range.start) as usize;
            if buffer.len() < end {
                buffer.resize(end, 0);
            }
            image.read_at(&mut buffer[at..end], range.start)?;
            at = end;
        }
    }
    Ok(())
}

/// How much is read before a batch is handed on. Several are in flight, so this
/// bounds memory; it is large enough to keep every core busy.
pub const BATCH: usize = 4 << 20;

/// How much of a batch one task reads and hashes.
const TASK: usize = 256 << 10;

/// Reads and hashes an image block by block and hands it out in batches, in
/// file order, until it is through or `sink` returns `false`.
///
/// `sink` may leave a batch's buffer in place to have it used again. Memory is
/// bounded by one batch here and whatever `sink` holds on to.
///
/// # Errors
///
/// Whatever seeking and reading report, and what `sink` returns.
pub fn map_image<E: From<io::Error>>(
    image: &dyn Image,
    grid: &Grid,
    sink: impl FnMut(&mut Batch) -> Result<bool, E>,
) -> Result<(), E> {
    map_rest(image, grid, 0, true, sink)
}

/// The same for who wants the hashes alone: batches come without bytes, which are
/// read into room that stays in the cache of a processor.
///
/// # Errors
///
/// Those of [`map_image`].
pub fn hash_image<E: From<io::Error>>(
    image: &dyn Image,
    grid: &Grid,
    sink: impl FnMut(&mut Batch) -> Result<bool, E>,
) -> Result<(), E> {
    map_rest(image, grid, 0, false, sink)
}

/// Either of them from the block `first` on.
///
/// # Errors
///
/// Those of [`map_image`].
pub fn map_rest<E: From<io::Error>>(
    image: &dyn Image,
    grid: &Grid,
    first: u64,
    keeps_bytes: bool,
    mut sink: impl FnMut(&mut Batch) -> Result<bool, E>,
) -> Result<(), E> {
    if first > 0 && first < grid.blocks() {
        // A map that was believed tells no more.
        image.expect_scattered_reads(false);
    }
    let mut gather = Gather::new(image, grid, first);
    let mut spare = Vec::new();
    let mut gathered = gather.batch()?;
    while let Some(Gathered { first, mut batch }) = gathered {
        batch.buffer = std::mem::take(&mut spare);
        batch.buffer.resize(if keeps_bytes { batch.bytes_read } else { 0 }, 0);
        let mut hash = || read_and_hash(image, grid, first, &mut batch);
        let (next, hashed) =
            if gather.is_through() { (Ok(None), hash()) } else { rayon::join(|| gather.batch(), hash) };
        hashed?;
        if !sink(&mut batch)? {
            return Ok(());
        }
        spare = batch.buffer;
        gathered = next?;
    }
    Ok(())
}

/// One block of a batch and the room for its bytes, if they are kept.
struct Work<'a> {
    index: u64,
    block: &'a mut Block,
    bytes: Option<&'a mut [u8]>,
}

/// `first`: the index of the first block in the batch. What is known of a block stays.
fn read_and_hash(image: &dyn Image, grid: &Grid, first: u64, batch: &mut Batch) -> io::Result<()> {
    let keeps_bytes = !batch.buffer.is_empty();
    let mut room = batch.buffer.as_mut_slice();
    let mut work: Vec<Work> = Batch::blocks_of(&mut batch.items, first)
        .filter(|(_, block)| block.data == 0)
        .map(|(index, block)| {
            let bytes = keeps_bytes.then(|| {
                let len = grid.masked_bytes(index, block.read) as usize;
                let (bytes, rest) = std::mem::take(&mut room).split_at_mut(len);
                room = rest;
                bytes
            });
            Work { index, block, bytes }
        })
        .collect();
    let per_task = (TASK / grid.block.bytes() as usize).max(1);
    if work.len() <= per_task {
        return hash_task(image, grid, &mut work, &mut Vec::new());
    }
    work.par_chunks_mut(per_task)
        .map_init(Vec::new, |scratch, task| hash_task(image, grid, task, scratch))
        .collect()
}

fn hash_task(image: &dyn Image, grid: &Grid, task: &mut [Work], scratch: &mut Vec<u8>) -> io::Result<()> {
    for work in task {
        let bytes = match &mut work.bytes {
            Some(bytes) => &mut **bytes,
            None => {
                scratch.resize(grid.masked_bytes(work.index, work.block.read) as usize, 0);
                scratch.as_mut_slice()
            }
        };
        let mut at = 0;
        for run in page_runs(work.block.read) {
            let range = grid.pages(work.index, &run);
            let len = (range.end - range.start) as usize;
            image.read_at(&mut bytes[at..at + len], range.start)?;
            at += len;
        }
        work.block.data = nonzero_pages(work.block.read, bytes);
        work.block.hash = hash_read(work.block, bytes);
    }
    Ok(())
}

/// The pages of `read` that are not all zeros; `bytes` holds these pages, packed.
fn nonzero_pages(read: PageMask, bytes: &[u8]) -> PageMask {
    let mut pages = bytes.chunks(PAGE as usize);
    let mut data = 0;
    for run in page_runs(read) {
        for page in run {
            if pages.next().is_some_and(|bytes| !scan::is_zero(bytes)) {
                data |= 1 << page;
            }
        }
    }
    data
}

fn hash_read(block: &Block, bytes: &[u8]) -> Hash {
    if block.data == block.read {
        return hash_block(block.data, [bytes].into_iter());
    }
    let mut read = 0..64u32;
    let pages =
        bytes.chunks(PAGE as usize).zip(std::iter::from_fn(|| read.find(|page| block.read >> page & 1 == 1)));
    hash_block(block.data, pages.filter(|(_, page)| block.data >> page & 1 == 1).map(|(bytes, _)| bytes))
}

/// The block that has these bytes, all of which were read.
pub fn block_of(bytes: &[u8]) -> Block {
    let block = unhashed_block_of(bytes);
    Block { hash: hash_read(&block, bytes), ..block }
}

/// The same without its hash.
pub fn unhashed_block_of(bytes: &[u8]) -> Block {
    let pages = bytes.len().div_ceil(PAGE as usize) as u32;
    let read = PageMask::MAX.checked_shr(PageMask::BITS.saturating_sub(pages)).unwrap_or(0);
    Block { hash: Hash::default(), data: nonzero_pages(read, bytes), read, at: 0 }
}

/// The hash of a block with this page mask and these bytes in those pages.
pub fn hash_block<'a>(data: PageMask, pages: impl Iterator<Item = &'a [u8]>) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for bytes in pages {
        hasher.update(bytes);
    }
    hasher.update(&data.to_le_bytes());
    *hasher.finalize().as_bytes()
}

/// Builds the root hash: BLAKE3 over a tag, the block size and the length (8
/// bytes each, little-endian), then index (8 bytes) and hash of every block
/// that is not zero, in order. Holes cost nothing and the layout does not matter.
#[derive(Debug, Clone)]
pub struct RootHasher(blake3::Hasher);

impl RootHasher {
    /// For a file on this grid.
    pub fn new(grid: &Grid) -> RootHasher {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"holesync root 1\n");
        hasher.update(&grid.block.bytes().to_le_bytes());
        hasher.update(&grid.length.to_le_bytes());
        RootHasher(hasher)
    }

    /// Adds the next block that is not zero; indices ascend.
    pub fn add(&mut self, index: u64, hash: &Hash) {
        self.0.update(&index.to_le_bytes());
        self.0.update(hash);
    }

    /// The root hash.
    pub fn finish(self) -> Hash {
        *self.0.finalize().as_bytes()
    }
}

/// The root hash of a whole image. `progress` is told bytes read, and may stop
/// the work by returning `false`: then the result is `None`.
///
/// # Errors
///
/// Whatever seeking and reading report.
pub fn root_of(
    image: &dyn Image,
    grid: &Grid,
    mut progress: impl FnMut(u64) -> bool,
) -> io::Result<Option<Hash>> {
    let mut root = RootHasher::new(grid);
    let (mut index, mut stopped) = (0, false);
    hash_image(image, grid, |batch| {
        for item in &batch.items {
            match item {
                Item::Hole(blocks) => index += blocks,
                Item::Block(block) => {
                    if block.data != 0 {
                        root.add(index, &block.hash);
                    }
                    index += 1;
                }
            }
        }
        stopped = !progress(batch.bytes_read as u64);
        Ok::<_, io::Error>(!stopped)
    })?;
    Ok((!stopped).then(|| root.finish()))
}
