//! Puts one file together: what the sender describes, block by block, held
//! against what the basis has, and written into the destination.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, TryRecvError};

use crate::apply::{Basis, Destination};
use crate::error::{Error, Result};
use crate::hashmap::leaves::Leaves;
use crate::hashmap::{self, Grid, Hash, Item, PageMask, RootHasher};
use crate::options::BlockSize;
use crate::protocol::{Data, Differ, MAX_ASKED, Patch};
use crate::receiver::answer::{Begun, Mapped};
use crate::scan::{self, FileState};

/// What the basis has in the next blocks.
enum Had {
    /// Nothing: a hole, or beyond the end.
    Hole,
    /// This.
    Block(hashmap::Block),
    /// Nobody knows.
    Unknown,
}

/// The basis of the current file, as the mapper finds it.
pub(crate) struct Maps {
    queue: Receiver<Mapped>,
    items: VecDeque<Item>,
    /// The mapper has no more of the current file.
    ended: bool,
    /// What lies beyond its end is zero, not unknown.
    known: bool,
}

impl Maps {
    /// Fed by the mapper through `queue`.
    pub fn new(queue: Receiver<Mapped>) -> Maps {
        Maps { queue, items: VecDeque::new(), ended: true, known: true }
    }

    /// The file `id`, if it is the next that was answered.
    pub fn begin(&mut self, id: u64) -> Result<OpenFile, ApplyError> {
        // What was left of a file that was given up; its end came before this.
        while !self.ended {
            match self.queue.try_recv() {
                Ok(Mapped::Items(_)) => {}
                Ok(Mapped::End | Mapped::Broken) => self.ended = true,
                Ok(Mapped::Begin(_)) | Err(TryRecvError::Empty) => {
                    return Err(ApplyError::Rule(
                        "the content of a file before the map of the last ended".into(),
                    ));
                }
                Err(TryRecvError::Disconnected) => return Err(ApplyError::Gone),
            }
        }
        let begun = match self.queue.try_recv() {
            Ok(Mapped::Begin(begun)) if begun.id == id => begun,
            Err(TryRecvError::Disconnected) => return Err(ApplyError::Gone),
            _ => return Err(ApplyError::Rule("the content of a file it was not asked for".into())),
        };
        (self.ended, self.known) = (!begun.has_map, begun.has_map || begun.blank);
        self.items.clear();
        Ok(OpenFile::new(*begun))
    }

    /// What the next blocks are, and how many alike, at most `limit`.
    fn next(&mut self, limit: u64) -> Result<(u64, Had), ApplyError> {
        loop {
            match self.items.pop_front() {
                Some(Item::Block(block)) => return Ok((1, Had::Block(block))),
                Some(Item::Hole(blocks)) => {
                    if blocks > limit {
                        self.items.push_front(Item::Hole(blocks - limit));
                    }
                    return Ok((blocks.min(limit), Had::Hole));
                }
                None if self.ended && self.known => return Ok((limit, Had::Hole)),
                None if self.ended => return Ok((limit, Had::Unknown)),
                None => match self.queue.recv() {
                    Ok(Mapped::Items(items)) => self.items.extend(items),
                    Ok(Mapped::End) => self.ended = true,
                    Ok(Mapped::Broken) => {
                        self.ended = true;
                        return Err(ApplyError::Told);
                    }
                    Ok(Mapped::Begin(_)) | Err(_) => return Err(ApplyError::Gone),
                },
            }
        }
    }

    /// Drops what is here of the current file, so that the mapper can go on to its
    /// end. Waits for nothing.
    pub fn discard(&mut self) {
        self.items.clear();
        while !self.ended {
            match self.queue.try_recv() {
                Ok(Mapped::End | Mapped::Broken) => self.ended = true,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// Skips what is left of the current file. `false`: the mapper is gone.
    pub fn drain(&mut self) -> bool {
        self.items.clear();
        while !self.ended {
            match self.queue.recv() {
                Ok(Mapped::Items(_)) => {}
                Ok(Mapped::End | Mapped::Broken) => self.ended = true,
                Ok(Mapped::Begin(_)) | Err(_) => return false,
            }
        }
        true
    }
}

/// What goes wrong while a file is put together.
pub(crate) enum ApplyError {
    /// The sender broke a rule.
    Rule(String),
    /// The file failed here.
    File(Error),
    /// The file failed while it was mapped, and the sender was told.
    Told,
    /// The mapper is gone, with the connection.
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
pub(crate) struct OpenFile {
    pub id: u64,
    pub entry: Vec<u8>,
    pub destination: Destination,
    /// Nothing was compared: all of it was asked for.
    pub whole: bool,
    /// Bytes of data that the basis had.
    pub kept: u64,
    /// Bytes of data that arrived.
    pub received: u64,
    basis: Option<Basis>,
    grid: Grid,
    root: RootHasher,
    /// The next block.
    at: u64,
    /// Blocks that the sender asked about, and has not sent yet what they lack.
    asked: VecDeque<Asked>,
    /// A patched block is not what it was to be.
    spoiled: bool,
    likeness: Likeness,
    zeros: Zeros,
}

/// A block that waits for what it lacks.
struct Asked {
    index: u64,
    /// What the basis has.
    had: hashmap::Block,
    /// What it is to be.
    hash: Hash,
}

/// How often blocks that came whole had pages that stay. Those need not be written, at
/// the price of reading the old ones.
#[derive(Default)]
struct Likeness {
    blocks: u64,
    looked: u64,
    found: u64,
}

impl Likeness {
    /// Where one block in eight is like that, and now and then to see whether that changes.
    fn is_worth_a_look(&mut self) -> bool {
        self.blocks += 1;
        // What is older counts less and less.
        if self.looked >= 256 {
            self.looked /= 2;
            self.found /= 2;
        }
        let looks = (self.found + 2) * 8 > self.looked || self.blocks.is_multiple_of(16);
        self.looked += u64::from(looks);
        looks
    }
}

/// Zeros that are still to be made, gathered over blocks so that each hole is
/// punched once.
#[derive(Default)]
struct Zeros {
    range: Range<u64>,
    /// It is zero already, and allocated.
    already: bool,
}

impl OpenFile {
    fn new(begun: Begun) -> OpenFile {
        let Begun { id, entry, destination, grid, whole, .. } = begun;
        OpenFile {
            id,
            entry,
            basis: destination.basis(),
            destination,
            whole,
            kept: 0,
            received: 0,
            grid,
            root: RootHasher::new(&grid),
            at: 0,
            asked: VecDeque::new(),
            spoiled: false,
            likeness: Likeness::default(),
            zeros: Zeros::default(),
        }
    }

    /// Blocks stay; allocated zeros among them become holes. Returns bytes of data.
    pub fn keep(&mut self, maps: &mut Maps, blocks: u64) -> Result<u64, ApplyError> {
        let end = self.end_of(blocks)?;
        let mut bytes = 0;
        while self.at < end {
            let (count, had) = maps.next(end - self.at)?;
            match had {
                Had::Unknown => return rule("a block kept that nobody knows"),
                Had::Hole => {}
                Had::Block(block) => {
                    if block.data != 0 {
                        self.root.add(self.at, &block.hash);
                        bytes += self.grid.masked_bytes(self.at, block.data);
                    }
                    self.zero_pages(self.at, block.read & !block.data, true)?;
                }
            }
            self.at += count;
        }
        self.kept += bytes;
        Ok(bytes)
    }

    /// Blocks become zeros.
    pub fn zero(&mut self, maps: &mut Maps, blocks: u64) -> Result<u64, ApplyError> {
        let end = self.end_of(blocks)?;
        while self.at < end {
            let (count, had) = maps.next(end - self.at)?;
            match had {
                Had::Hole => {}
                Had::Block(block) => self.zero_pages(self.at, block.read, block.data == 0)?,
                Had::Unknown => self.zero_range(self.grid.bytes(&(self.at..self.at + count)), false)?,
            }
            self.at += count;
        }
        Ok(0)
    }

    /// Blocks get new data; what is not data in them becomes zeros. Returns bytes of data.
    pub fn data(&mut self, maps: &mut Maps, data: &Data) -> Result<u64, ApplyError> {
        self.end_of(data.masks.len() as u64)?;
        if data.first != self.at {
            return rule("a data frame out of place");
        }
        let blocks = self.blocks_of(data)?;
        let (hashes, placed) =
            while_hashing(&blocks, data.bytes.len(), || self.place(maps, &blocks, &data.bytes));
        placed?;
        hashes.iter().zip(data.first..).for_each(|(hash, index)| self.root.add(index, hash));
        self.received += data.bytes.len() as u64;
        Ok(data.bytes.len() as u64)
    }

    /// The blocks of a data frame, each with its bytes.
    fn blocks_of<'a>(&self, data: &'a Data) -> Result<Vec<(PageMask, &'a [u8])>, ApplyError> {
        let mut left = data.bytes.as_slice();
        let mut blocks = Vec::with_capacity(data.masks.len());
        for (&mask, index) in data.masks.iter().zip(data.first..) {
            if mask == 0 || mask & !self.grid.all_pages(index) != 0 {
                return rule("a data frame with an impossible page mask");
            }
            let Some((bytes, behind)) = left.split_at_checked(self.grid.masked_bytes(index, mask) as usize)
            else {
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
        maps: &mut Maps,
        blocks: &[(PageMask, &[u8])],
        bytes: &[u8],
    ) -> Result<(), ApplyError> {
        // What adjoins in the file and in the frame is written at once.
        let mut pending = Pending { at: 0, len: 0, bytes };
        for &(mask, new) in blocks {
            let (_, had) = maps.next(1)?;
            let (there, zero, known) = match had {
                Had::Hole => (0, 0, 0),
                Had::Block(block) => (block.data, block.read & !block.data, block.data),
                Had::Unknown => (self.grid.all_pages(self.at), 0, 0),
            };
            self.zero_pages(self.at, there & !mask, false)?;
            self.zero_pages(self.at, zero & !mask, true)?;
            let same = self.same_pages(known, (mask, new))?;
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
        pending.write(&mut self.destination)
    }

    /// Which pages of the next block stay as they are, of those that the basis is known
    /// to have; `new`: the pages that it is to have, and their bytes.
    fn same_pages(&mut self, known: PageMask, new: (PageMask, &[u8])) -> Result<PageMask, ApplyError> {
        let (mask, mut new) = new;
        let common = known & mask;
        if common == 0 || !self.likeness.is_worth_a_look() {
            return Ok(0);
        }
        let bytes = self.old_bytes(self.at, common)?;
        let mut old = bytes.as_slice();
        let mut same = 0;
        for page in hashmap::page_runs(mask).flatten() {
            let len = self.grid.masked_bytes(self.at, 1 << page) as usize;
            let new = take(&mut new, len);
            if common >> page & 1 == 1 && take(&mut old, len) == new {
                same |= 1 << page;
            }
        }
        self.likeness.found += u64::from(same != 0);
        self.kept += self.grid.masked_bytes(self.at, same);
        Ok(same)
    }

    /// The next blocks get new data in place of what the basis has of them, which is
    /// returned; what they lack comes as patches, in this order.
    pub fn compare(
        &mut self,
        maps: &mut Maps,
        differ: &Differ,
        leaf: BlockSize,
    ) -> Result<Vec<Leaves>, ApplyError> {
        self.end_of(differ.hashes.len() as u64)?;
        if differ.first != self.at || self.asked.len() + differ.hashes.len() > MAX_ASKED {
            return rule("a question out of place, or one too many");
        }
        let mut leaves = Vec::with_capacity(differ.hashes.len());
        for &hash in &differ.hashes {
            let had = match maps.next(1)? {
                (_, Had::Block(had)) if had.data != 0 => had,
                _ => return rule("a question about a block without data"),
            };
            let bytes = self.old_bytes(self.at, had.data)?;
            leaves.push(Leaves::of(leaf, &self.grid, self.at, had.data, &bytes));
            self.root.add(self.at, &hash);
            self.asked.push_back(Asked { index: self.at, had, hash });
            self.at += 1;
        }
        Ok(leaves)
    }

    /// Blocks that were asked about get what they lack. Returns bytes of data.
    pub fn patch(&mut self, patch: &Patch) -> Result<u64, ApplyError> {
        if self.asked.front().is_none_or(|asked| asked.index != patch.first) {
            return rule("a patch out of place");
        }
        let mut pending = Pending { at: 0, len: 0, bytes: &patch.bytes };
        let mut left = patch.bytes.as_slice();
        let mut bytes = 0;
        for (&mask, &sent) in patch.masks.iter().zip(&patch.sent) {
            let Some(Asked { index, had, hash }) = self.asked.pop_front() else {
                return rule("a patch for more blocks than were asked about");
            };
            let kept = mask & !sent;
            let possible = mask != 0 && mask & !self.grid.all_pages(index) == 0 && sent & !mask == 0;
            if !possible || kept & !had.data != 0 {
                return rule("a patch with an impossible page mask");
            }
            let Some((new, behind)) = left.split_at_checked(self.grid.masked_bytes(index, sent) as usize)
            else {
                return rule("a patch that is too short");
            };
            left = behind;
            let old = self.old_bytes(index, kept)?;
            let found = hashmap::hash_block(mask, self.interleave(index, (kept, &old), (sent, new)));
            self.spoiled |= found != hash;
            self.zero_pages(index, had.data & !mask, false)?;
            self.zero_pages(index, had.read & !had.data & !mask, true)?;
            for run in hashmap::page_runs(sent) {
                pending.add(self.grid.pages(index, &run), &mut self.destination)?;
            }
            self.kept += old.len() as u64;
            bytes += (old.len() + new.len()) as u64;
        }
        if !left.is_empty() {
            return rule("a patch that is too long");
        }
        pending.write(&mut self.destination)?;
        self.received += patch.bytes.len() as u64;
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

    /// The destination, which is empty, becomes what a file on this machine is.
    /// `false`: that file has changed meanwhile.
    pub fn copy(
        &mut self,
        path: &Path,
        hole_map: bool,
        progress: impl FnMut(u64),
    ) -> Result<bool, ApplyError> {
        let (source, _) = scan::open_image(path)?;
        let before = FileState::of(&source).map_err(Error::file("look at", path))?;
        if before.length != self.grid.length {
            return Ok(false);
        }
        self.received = self.destination.copy_from(&source, path, hole_map, progress)?;
        self.at = self.grid.blocks();
        Ok(before.is_still(&source))
    }

    /// The file is described to its end; what it hashes to. `None`: a patch did not
    /// make what it was to make.
    pub fn end(&mut self) -> Result<Option<Hash>, ApplyError> {
        self.flush_zeros()?;
        if !self.asked.is_empty() {
            return rule("a file without all that it asked about");
        }
        if self.at != self.grid.blocks() {
            return rule(format!("a file of {} blocks for {}", self.at, self.grid.blocks()));
        }
        let root = std::mem::replace(&mut self.root, RootHasher::new(&self.grid)).finish();
        Ok((!self.spoiled).then_some(root))
    }

    fn end_of(&self, blocks: u64) -> Result<u64, ApplyError> {
        if blocks > self.grid.blocks() - self.at {
            return rule(format!("{blocks} blocks beyond the end of a file"));
        }
        Ok(self.at + blocks)
    }

    /// Makes pages of a block zero, if any; `already`: they only take room.
    fn zero_pages(&mut self, block: u64, mask: PageMask, already: bool) -> Result<(), ApplyError> {
        hashmap::page_runs(mask).try_for_each(|run| self.zero_range(self.grid.pages(block, &run), already))
    }

    fn zero_range(&mut self, range: Range<u64>, already: bool) -> Result<(), ApplyError> {
        if range.start == self.zeros.range.end && already == self.zeros.already {
            self.zeros.range.end = range.end;
            return Ok(());
        }
        self.flush_zeros()?;
        self.zeros = Zeros { range, already };
        Ok(())
    }

    fn flush_zeros(&mut self) -> Result<(), ApplyError> {
        let Zeros { range, already } = std::mem::take(&mut self.zeros);
        match (range.is_empty(), already) {
            (true, _) => {}
            (false, true) => self.destination.free(range)?,
            (false, false) => self.destination.zero(range)?,
        }
        Ok(())
    }
}

/// Does something while it also hashes blocks, if there are enough bytes to make it
/// worth while. Only the hashing goes to the pool: the rest may wait for the mapper,
/// which needs the pool.
fn while_hashing<T>(blocks: &[(PageMask, &[u8])], bytes: usize, work: impl FnOnce() -> T) -> (Vec<Hash>, T) {
    const WORTH_IT: usize = 256 << 10;
    if bytes < WORTH_IT {
        return (hashes_of(blocks), work());
    }
    let mut hashes = Vec::new();
    let done = rayon::in_place_scope(|scope| {
        scope.spawn(|_| hashes = hashes_of(blocks));
        work()
    });
    (hashes, done)
}

/// Splits off the first bytes.
fn take<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (first, rest) = bytes.split_at(len);
    *bytes = rest;
    first
}

fn hashes_of(blocks: &[(PageMask, &[u8])]) -> Vec<Hash> {
    blocks.iter().map(|(mask, bytes)| hashmap::hash_block(*mask, std::iter::once(*bytes))).collect()
}

/// The part of a frame that is not written yet.
struct Pending<'a> {
    at: u64,
    len: usize,
    /// It, and what follows it in the frame.
    bytes: &'a [u8],
}

impl Pending<'_> {
    /// Adds the next bytes of the frame, which go to `range`.
    fn add(&mut self, range: Range<u64>, destination: &mut Destination) -> Result<(), ApplyError> {
        if self.at + self.len as u64 != range.start {
            self.write(destination)?;
            self.at = range.start;
        }
        self.len += (range.end - range.start) as usize;
        Ok(())
    }

    /// Leaves out the next bytes of the frame.
    fn skip(&mut self, len: usize, destination: &mut Destination) -> Result<(), ApplyError> {
        self.write(destination)?;
        take(&mut self.bytes, len);
        Ok(())
    }

    fn write(&mut self, destination: &mut Destination) -> Result<(), ApplyError> {
        let (now, later) = self.bytes.split_at(self.len);
        (self.bytes, self.len) = (later, 0);
        if !now.is_empty() {
            destination.write(self.at, now)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many blocks are looked at; `alike`: each has pages that stay.
    fn looks(likeness: &mut Likeness, blocks: u64, alike: bool) -> u64 {
        (0..blocks)
            .filter(|_| {
                let looks = likeness.is_worth_a_look();
                likeness.found += u64::from(looks && alike);
                looks
            })
            .count() as u64
    }

    #[test]
    fn old_pages_are_read_where_some_of_them_stay() {
        let mut likeness = Likeness::default();
        assert_eq!(looks(&mut likeness, 1000, true), 1000);
        // After a while one in sixteen, however long it lasts, and soon all again.
        looks(&mut likeness, 10_000, false);
        assert!((600..=700).contains(&looks(&mut likeness, 10_000, false)));
        looks(&mut likeness, 1_000, true);
        assert_eq!(looks(&mut likeness, 100, true), 100);
    }
}
