//! Puts one file together: what the sender describes, block by block, held
//! against what the basis has, and written into the destination. In a dry run no data comes: of
//! pages that may be there already their hashes, of all others which they are.

use std::collections::VecDeque;

use crate::apply::{Basis, Sink};
use crate::error::{Error, Result};
use crate::hashmap::leaves::{LeafHash, Leaves};
use crate::hashmap::{self, Grid, Hash, PageMask, RootHasher};
use crate::options::BlockSize;
use crate::protocol::{Data, Differ, Entry, MAX_UNPATCHED, Patch};
use crate::receiver::answer::Begun;
use crate::receiver::basis_feed::{BasisCursor, BasisFeeds, Had};
use crate::receiver::blocks::{Pending, take, while_hashing};
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

fn rule<T>(what: impl Into<String>) -> Result<T, ApplyError> {
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
    basis: Option<Basis>,
    cursor: BasisCursor,
    grid: Grid,
    root: RootHasher,
    /// The next block.
    at: u64,
    /// Blocks that the sender asked about, and has not sent yet what they lack.
    asked: VecDeque<UnpatchedBlock>,
    patched: Patched,
}

/// What blocks became of which only parts came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patched {
    AsPromised,
    /// One of them at least has another hash.
    Otherwise,
}

/// A block that waits for what it lacks.
struct UnpatchedBlock {
    index: u64,
    /// What the basis has.
    had: hashmap::Block,
    /// What it is to be.
    hash: Hash,
    /// Bytes of data between it and the next of these: they stay, and count as done with it.
    behind: u64,
}

impl OpenFile {
    /// `cursor`: what is known of its basis.
    pub fn new(begun: Begun, cursor: BasisCursor) -> OpenFile {
        let Begun { id, entry, changes, destination, grid, whole } = begun;
        OpenFile {
            id,
            entry,
            changes,
            basis: destination.basis(),
            cursor,
            destination,
            whole,
            kept: 0,
            received: 0,
            grid,
            root: RootHasher::new(&grid),
            at: 0,
            asked: VecDeque::new(),
            patched: Patched::AsPromised,
        }
    }

    /// Blocks stay; allocated zeros among them become holes. Returns bytes of data, but for
    /// those that count with a block before them.
    pub fn keep(&mut self, feeds: &BasisFeeds, blocks: u64) -> Result<u64, ApplyError> {
        let end = self.end_of(blocks)?;
        let mut bytes = 0;
        while self.at < end {
            let (count, had) = self.cursor.next(feeds, end - self.at)?;
            match had {
                Had::Unknown => return rule("a block kept that nobody knows"),
                Had::Hole => {}
                Had::Block(block) => {
                    if block.data != 0 {
                        self.root.add(self.at, &block.hash);
                        bytes += self.grid.masked_bytes(self.at, block.data);
                        self.keep_pages(self.at, block.data)?;
                    }
                    self.zero_pages(self.at, block.read & !block.data, true)?;
                }
            }
            self.at += count;
        }
        self.kept += bytes;
        match self.asked.back_mut() {
            Some(asked) => asked.behind += bytes,
            None => return Ok(bytes),
        }
        Ok(0)
    }

    /// Blocks become zeros.
    pub fn zero(&mut self, feeds: &BasisFeeds, blocks: u64) -> Result<u64, ApplyError> {
        let end = self.end_of(blocks)?;
        while self.at < end {
            let (count, had) = self.cursor.next(feeds, end - self.at)?;
            match had {
                Had::Hole => {}
                Had::Block(block) => self.zero_pages(self.at, block.read, block.data == 0)?,
                Had::Unknown => self.destination.zero(self.grid.bytes(&(self.at..self.at + count)))?,
            }
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
        hashes.iter().zip(data.first..).for_each(|(hash, index)| self.root.add(index, hash));
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
            let same = self.same_pages(common, (mask, new))?;
            alike &= common == 0 || same != 0;
            for page in hashmap::page_runs(mask).flatten() {
                let range = self.grid.pages(self.at, &(page..page + 1));
                if same >> page & 1 == 1 {
                    pending.skip((range.end - range.start) as usize, &mut self.destination)?;
                } else {
                    pending.add(range, &mut self.destination)?;
                }
            }
            self.at += 1;
        }
        Ok(pending.write(&mut self.destination)?)
    }

    /// Which pages of the next block stay as they are, of those that the basis has in common
    /// with `new`: the pages that it is to have, and their bytes.
    fn same_pages(&mut self, common: PageMask, new: (PageMask, &[u8])) -> Result<PageMask, ApplyError> {
        let (mask, mut new) = new;
        if common == 0 {
            return Ok(0);
        }
        let bytes = self.old_bytes(self.at, common)?;
        let is_preview = self.destination.is_preview();
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

    /// The next blocks get new data in place of what the basis has of them, which is
    /// returned; what they lack comes as patches, in this order.
    pub fn compare(
        &mut self,
        feeds: &BasisFeeds,
        differ: &Differ,
        leaf: BlockSize,
    ) -> Result<Vec<Leaves>, ApplyError> {
        self.end_of(differ.hashes.len() as u64)?;
        if differ.first != self.at || self.asked.len() + differ.hashes.len() > MAX_UNPATCHED {
            return rule("a question out of place, or one too many");
        }
        let mut leaves = Vec::with_capacity(differ.hashes.len());
        for &hash in &differ.hashes {
            let had = match self.cursor.next(feeds, 1)? {
                (_, Had::Block(had)) if had.data != 0 => had,
                _ => return rule("a question about a block without data"),
            };
            let bytes = self.old_bytes(self.at, had.data)?;
            leaves.push(Leaves::of(leaf, &self.grid, self.at, had.data, &bytes));
            // What arrives of it is written over that.
            self.keep_pages(self.at, had.data)?;
            self.root.add(self.at, &hash);
            self.asked.push_back(UnpatchedBlock { index: self.at, had, hash, behind: 0 });
            self.at += 1;
        }
        Ok(leaves)
    }

    /// Blocks that were asked about get what they lack. Returns bytes of data, with what stays
    /// behind them.
    pub fn patch(&mut self, patch: &Patch) -> Result<u64, ApplyError> {
        if self.asked.front().is_none_or(|asked| asked.index != patch.first) {
            return rule("a patch out of place");
        }
        let mut pending = Pending { at: 0, len: 0, bytes: &patch.bytes };
        let mut left = patch.bytes.as_slice();
        let mut bytes = 0;
        for (&mask, &sent) in patch.masks.iter().zip(&patch.sent) {
            let Some(UnpatchedBlock { index, had, hash, behind: kept_behind }) = self.asked.pop_front()
            else {
                return rule("a patch for more blocks than were asked about");
            };
            let kept = mask & !sent;
            let possible = mask != 0 && mask & !self.grid.all_pages(index) == 0 && sent & !mask == 0;
            if !possible || kept & !had.data != 0 {
                return rule("a patch with an impossible page mask");
            }
            let (stays, comes) = (self.grid.masked_bytes(index, kept), self.grid.masked_bytes(index, sent));
            if !self.destination.is_preview() {
                let Some((new, behind)) = left.split_at_checked(comes as usize) else {
                    return rule("a patch that is too short");
                };
                left = behind;
                let old = self.old_bytes(index, kept)?;
                let found = hashmap::hash_block(mask, self.interleave(index, (kept, &old), (sent, new)));
                if found != hash {
                    self.patched = Patched::Otherwise;
                }
            }
            self.received += comes;
            self.zero_pages(index, had.data & !mask, false)?;
            self.zero_pages(index, had.read & !had.data & !mask, true)?;
            for run in hashmap::page_runs(sent) {
                pending.add(self.grid.pages(index, &run), &mut self.destination)?;
            }
            self.kept += stays;
            bytes += stays + comes + kept_behind;
        }
        if !left.is_empty() {
            return rule("a patch that is too long");
        }
        pending.write(&mut self.destination)?;
        Ok(bytes)
    }

    /// The bytes that the basis has in some pages of a block, packed.
    fn old_bytes(&self, block: u64, pages: PageMask) -> Result<Vec<u8>, ApplyError> {
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

    /// The pages of two masks in their order; their bytes are packed.
    fn interleave<'a>(
        &self,
        block: u64,
        one: (PageMask, &'a [u8]),
        other: (PageMask, &'a [u8]),
    ) -> impl Iterator<Item = &'a [u8]> {
        let grid = self.grid;
        let (mut ones, mut others) = (one.1, other.1);
        hashmap::page_runs(one.0 | other.0).flatten().map(move |page| {
            let range = grid.pages(block, &(page..page + 1));
            let from = if one.0 >> page & 1 == 1 { &mut ones } else { &mut others };
            take(from, (range.end - range.start) as usize)
        })
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
        let root = std::mem::replace(&mut self.root, RootHasher::new(&self.grid)).finish();
        Ok((self.patched == Patched::AsPromised).then_some(root))
    }

    /// The length that it is to have.
    pub fn length(&self) -> u64 {
        self.grid.length
    }

    fn end_of(&self, blocks: u64) -> Result<u64, ApplyError> {
        if blocks > self.grid.blocks() - self.at {
            return rule(format!("{blocks} blocks beyond the end of a file"));
        }
        Ok(self.at + blocks)
    }

    /// Pages of a block are data that stays.
    fn keep_pages(&mut self, block: u64, mask: PageMask) -> Result<(), ApplyError> {
        for range in hashmap::page_runs(mask).map(|run| self.grid.pages(block, &run)) {
            self.destination.keep_range(range)?;
        }
        Ok(())
    }

    /// Makes pages of a block zero, if any; `already`: they only take room.
    fn zero_pages(&mut self, block: u64, mask: PageMask, already: bool) -> Result<(), ApplyError> {
        for range in hashmap::page_runs(mask).map(|run| self.grid.pages(block, &run)) {
            if already { self.destination.free(range)? } else { self.destination.zero(range)? }
        }
        Ok(())
    }
}
