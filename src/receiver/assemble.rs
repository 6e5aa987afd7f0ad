//! Puts one file together: what the sender describes, block by block, held
//! against what the basis has, and written into the destination. In a dry run no data comes: of
//! pages that may be there already their hashes, of all others which they are.

use std::collections::VecDeque;

use crate::apply::{Basis, Own, Place, Sink};
use crate::error::{Error, Result};
use crate::hashmap::leaves::{LeafHash, Leaves};
use crate::hashmap::{self, Grid, Hash, Maps, PageMask, Recorder};
use crate::options::BlockSize;
use crate::protocol::{Data, Entry};
use crate::receiver::answer::Begun;
use crate::receiver::basis_feed::{BasisCursor, BasisFeeds, Had};
use crate::receiver::blocks::{Pending, take, while_hashing};
use crate::receiver::places::{Changed, Search};
use crate::report::Changes;

/// What goes wrong while a file is put together.
pub enum ApplyError {
    /// The sender broke a rule.
    Rule(String),
    /// The file failed here.
    File(Error),
    /// The basis cannot be read, and the sender was told.
    Told,
    /// The run is over.
    Gone,
}

impl From<Error> for ApplyError {
    fn from(error: Error) -> ApplyError {
        ApplyError::File(error)
    }
}

pub(super) fn rule<T>(what: impl Into<String>) -> Result<T, ApplyError> {
    Err(ApplyError::Rule(what.into()))
}

/// A file that is being put together.
pub struct OpenFile {
    pub id: u64,
    pub entry: Entry,
    /// How what was there differed from it.
    pub changes: Changes,
    pub destination: Sink,
    /// Nothing was compared: all of it was asked for.
    pub whole: bool,
    /// Bytes of data that the basis had.
    pub kept: u64,
    /// Bytes of data that arrived.
    pub received: u64,
    /// Bytes of data that were copied from elsewhere.
    pub copied: u64,
    /// Its basis among those in which blocks are looked for.
    pub image: Option<u32>,
    /// What of that does not stay.
    pub changed: Changed,
    /// Where it goes.
    pub place: Option<Place>,
    pub(super) basis: Option<Basis>,
    /// What is there, where `basis` is another file.
    pub(super) own: Option<Own>,
    /// Where else its blocks are looked for.
    pub(super) search: Search,
    pub(super) cursor: BasisCursor,
    pub(super) grid: Grid,
    pub(super) root: Recorder,
    /// Its maps, once all of it is described.
    pub maps: Maps,
    /// The next block.
    pub(super) at: u64,
    /// Blocks that the sender asked about, and has not sent yet what they lack.
    pub(super) asked: VecDeque<UnpatchedBlock>,
    pub(super) patched: Patched,
}

/// What blocks became of which only parts came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patched {
    AsPromised,
    /// One of them at least has another hash.
    Otherwise,
}

/// A block that waits for what it lacks.
pub(super) struct UnpatchedBlock {
    pub(super) index: u64,
    /// What the basis has.
    pub(super) had: hashmap::Block,
    /// What it is to be.
    pub(super) hash: Hash,
    /// Bytes of data between it and the next of these: they stay, and count as done with it.
    pub(super) behind: u64,
}

impl OpenFile {
    /// `cursor`: what is known of its basis.
    pub fn new(begun: Begun, cursor: BasisCursor) -> OpenFile {
        let Begun { id, entry, changes, destination, grid, whole, image, place, maps } = begun;
        let written = image.filter(|_| destination.is_written_itself());
        OpenFile {
            id,
            entry,
            changes,
            basis: destination.basis(),
            own: destination.own(),
            cursor,
            destination,
            whole,
            kept: 0,
            received: 0,
            copied: 0,
            image,
            changed: Changed::default(),
            place,
            search: Search::new(written),
            grid,
            root: Recorder::new(&grid, maps),
            maps: Maps::default(),
            at: 0,
            asked: VecDeque::new(),
            patched: Patched::AsPromised,
        }
    }

    /// Blocks stay; allocated zeros among them become holes. Returns bytes of data, but for
    /// those that count with a block before them.
    pub fn keep(&mut self, feeds: &BasisFeeds, blocks: u64) -> Result<u64, ApplyError> {
        let end = self.end_of(blocks)?;
        if self.own.is_some() {
            return self.keep_other(feeds, end);
        }
        let mut bytes = 0;
        while self.at < end {
            let (count, had) = self.cursor.next(feeds, end - self.at)?;
            match had {
                Had::Unknown => return rule("a block kept that nobody knows"),
                Had::Hole => {}
                Had::Block(block) => {
                    if block.data != 0 {
                        self.root.add(self.at, block.data, &block.hash);
                        bytes += self.grid.masked_bytes(self.at, block.data);
                        self.keep_pages(self.at, block.data)?;
                    }
                    self.zero_pages(self.at, block.read & !block.data, true)?;
                }
            }
            self.at += count;
        }
        self.kept += bytes;
        Ok(self.behind_asked(bytes))
    }

    /// Blocks become zeros.
    pub fn zero(&mut self, feeds: &BasisFeeds, blocks: u64) -> Result<u64, ApplyError> {
        let end = self.end_of(blocks)?;
        while self.at < end {
            let (count, had) = self.cursor.next(feeds, end - self.at)?;
            match had {
                _ if self.own.is_some() => self.clear(self.at..self.at + count)?,
                Had::Hole => {}
                Had::Block(block) => self.zero_pages(self.at, block.read, block.data == 0)?,
                Had::Unknown => self.destination.zero(self.grid.bytes(&(self.at..self.at + count)))?,
            }
            self.changed.add(self.at..self.at + count);
            self.at += count;
        }
        Ok(0)
    }

    /// Blocks get new data; what is not data in them becomes zeros. Returns bytes of data.
    pub fn data(&mut self, feeds: &BasisFeeds, data: &Data) -> Result<u64, ApplyError> {
        self.end_of(data.masks.len() as u64)?;
        if data.first != self.at {
            return rule("a data frame out of place");
        }
        if self.destination.is_preview() {
            return self.data_in_hashes(feeds, data);
        }
        let blocks = self.blocks_of(data, |grid, index, mask| grid.masked_bytes(index, mask) as usize)?;
        let (hashes, placed) =
            while_hashing(&blocks, data.bytes.len(), || self.place(feeds, &blocks, &data.bytes));
        placed?;
        let found = hashes.iter().zip(&data.masks).zip(data.first..);
        found.for_each(|((hash, pages), index)| self.root.add(index, *pages, hash));
        self.received += data.bytes.len() as u64;
        Ok(data.bytes.len() as u64)
    }

    /// The same in a dry run: a hash for each page, or none where the basis has no data.
    fn data_in_hashes(&mut self, feeds: &BasisFeeds, data: &Data) -> Result<u64, ApplyError> {
        let size = if data.bytes.is_empty() { 0 } else { size_of::<LeafHash>() };
        let blocks = self.blocks_of(data, |_, _, mask| mask.count_ones() as usize * size)?;
        let masks = (data.first..).zip(&data.masks);
        let bytes = masks.map(|(index, mask)| self.grid.masked_bytes(index, *mask)).sum::<u64>();
        self.place(feeds, &blocks, &[])?;
        self.received += bytes;
        Ok(bytes)
    }

    /// The blocks of a data frame, each with what is there of it: so many bytes.
    fn blocks_of<'a>(
        &self,
        data: &'a Data,
        size: impl Fn(&Grid, u64, PageMask) -> usize,
    ) -> Result<Vec<(PageMask, &'a [u8])>, ApplyError> {
        let mut left = data.bytes.as_slice();
        let mut blocks = Vec::with_capacity(data.masks.len());
        for (&mask, index) in data.masks.iter().zip(data.first..) {
            if mask == 0 || mask & !self.grid.all_pages(index) != 0 {
                return rule("a data frame with an impossible page mask");
            }
            let Some((bytes, behind)) = left.split_at_checked(size(&self.grid, index, mask)) else {
                return rule("a data frame that is too short");
            };
            left = behind;
            blocks.push((mask, bytes));
        }
        if left.is_empty() { Ok(blocks) } else { rule("a data frame that is too long") }
    }

    /// Puts the next blocks in their place; `bytes` are those of all of them.
    fn place(
        &mut self,
        feeds: &BasisFeeds,
        blocks: &[(PageMask, &[u8])],
        bytes: &[u8],
    ) -> Result<(), ApplyError> {
        self.changed.add(self.at..self.at + blocks.len() as u64);
        if self.own.is_some() {
            return self.place_over_other(feeds, blocks);
        }
        // What adjoins in the file and in the frame is written at once.
        let mut pending = Pending { at: 0, len: 0, bytes };
        // Pages that stay need not be written, at the price of reading the old ones. Where one
        // block of a frame has none, those behind it are not looked at.
        let mut alike = true;
        for &(mask, new) in blocks {
            let (_, had) = self.cursor.next(feeds, 1)?;
            let (there, zero, known) = match had {
                Had::Hole => (0, 0, 0),
                Had::Block(block) => (block.data, block.read & !block.data, block.data),
                Had::Unknown => (self.grid.all_pages(self.at), 0, 0),
            };
            self.zero_pages(self.at, there & !mask, false)?;
            self.zero_pages(self.at, zero & !mask, true)?;
            let common = if alike { known & mask } else { 0 };
            let same = self.same_pages(common, (mask, new), self.destination.is_preview())?;
            alike &= common == 0 || same != 0;
            self.add_but(self.at, same, mask, &mut pending)?;
            self.at += 1;
        }
        Ok(pending.write(&mut self.destination)?)
    }

    /// Adds the pages of a block to what is to be written, but for those that stay.
    pub(super) fn add_but(
        &mut self,
        index: u64,
        same: PageMask,
        mask: PageMask,
        pending: &mut Pending,
    ) -> Result<()> {
        for page in hashmap::page_runs(mask).flatten() {
            let range = self.grid.pages(index, &(page..page + 1));
            if same >> page & 1 == 1 {
                pending.skip((range.end - range.start) as usize, &mut self.destination)?;
            } else {
                pending.add(range, &mut self.destination)?;
            }
        }
        Ok(())
    }

    /// Which pages of the next block stay as they are, of those that the basis has in common
    /// with `new`: the pages that it is to have, and their bytes or, in a dry run, hashes.
    pub(super) fn same_pages(
        &mut self,
        common: PageMask,
        new: (PageMask, &[u8]),
        is_preview: bool,
    ) -> Result<PageMask, ApplyError> {
        let (mask, mut new) = new;
        if common == 0 {
            return Ok(0);
        }
        let bytes = self.old_bytes(self.at, common)?;
        let pages = is_preview.then(|| Leaves::of(BlockSize::SMALLEST, &self.grid, self.at, common, &bytes));
        let mut old = pages.as_ref().map_or(bytes.as_slice(), |pages| pages.hashes.as_flattened());
        let mut same = 0;
        for page in hashmap::page_runs(mask).flatten() {
            let bytes = self.grid.masked_bytes(self.at, 1 << page) as usize;
            let len = if is_preview { size_of::<LeafHash>() } else { bytes };
            let len = len.min(new.len());
            let new = take(&mut new, len);
            if common >> page & 1 == 1 && take(&mut old, len) == new {
                same |= 1 << page;
            }
        }
        self.kept += self.grid.masked_bytes(self.at, same);
        self.keep_pages(self.at, same)?;
        Ok(same)
    }

    /// So much data is where it belongs; what of it counts now, and not with a block before it.
    pub(super) fn behind_asked(&mut self, bytes: u64) -> u64 {
        match self.asked.back_mut() {
            Some(asked) => {
                asked.behind += bytes;
                0
            }
            None => bytes,
        }
    }

    /// The bytes that the basis has in some pages of a block, packed.
    pub(super) fn old_bytes(&self, block: u64, pages: PageMask) -> Result<Vec<u8>, ApplyError> {
        let mut bytes = vec![0; self.grid.masked_bytes(block, pages) as usize];
        let mut left = bytes.as_mut_slice();
        for run in hashmap::page_runs(pages) {
            let range = self.grid.pages(block, &run);
            let (part, behind) = left.split_at_mut((range.end - range.start) as usize);
            left = behind;
            let Some(basis) = &self.basis else { return rule("a question where there is nothing") };
            basis
                .image
                .read_at(part, range.start)
                .map_err(Error::file("read the old", self.destination.path()))?;
        }
        Ok(bytes)
    }

    /// The file is described to its end; what it hashes to. `None`: a patch did not
    /// make what it was to make.
    pub fn end(&mut self) -> Result<Option<Hash>, ApplyError> {
        if !self.asked.is_empty() {
            return rule("a file without all that it asked about");
        }
        if self.at != self.grid.blocks() {
            return rule(format!("a file of {} blocks for {}", self.at, self.grid.blocks()));
        }
        let root = std::mem::replace(&mut self.root, Recorder::new(&self.grid, Maps::default()));
        let (root, maps) = root.finish();
        self.maps = maps;
        Ok((self.patched == Patched::AsPromised).then_some(root))
    }

    /// The length that it is to have.
    pub fn length(&self) -> u64 {
        self.grid.length
    }

    pub(super) fn end_of(&self, blocks: u64) -> Result<u64, ApplyError> {
        if blocks > self.grid.blocks() - self.at {
            return rule(format!("{blocks} blocks beyond the end of a file"));
        }
        Ok(self.at + blocks)
    }

    /// Pages of a block are data that stays.
    pub(super) fn keep_pages(&mut self, block: u64, mask: PageMask) -> Result<(), ApplyError> {
        for range in hashmap::page_runs(mask).map(|run| self.grid.pages(block, &run)) {
            self.destination.keep_range(range)?;
        }
        Ok(())
    }

    /// Makes pages of a block zero, if any; `already`: they only take room.
    pub(super) fn zero_pages(&mut self, block: u64, mask: PageMask, already: bool) -> Result<(), ApplyError> {
        for range in hashmap::page_runs(mask).map(|run| self.grid.pages(block, &run)) {
            if already { self.destination.free(range)? } else { self.destination.zero(range)? }
        }
        Ok(())
    }
}
