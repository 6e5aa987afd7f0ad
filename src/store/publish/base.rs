//! The version before the one that is being published: what blocks that differ from it have in common
//! with it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;

use crate::error::{Result, lock};
use crate::hashmap::{self, Block, Grid, Hash, MapEntry, PageMask};
use crate::store::fetched::{FetchedVersion, VersionBlock, VersionBlocks};
use crate::store::name::{ImageName, Kind};
use crate::store::objects::Objects;
use crate::store::pack::Unpacker;
use crate::store::places::PackId;

/// Frames that are fetched side by side.
const AT_ONCE: usize = 8;

/// Blocks that are compared at a time: their frames unpack to 64 MiB at the most.
const AT_A_TIME: usize = 128;

/// A patch is worth it where it has at most this part of the data of its block.
const WORTH: (u64, u64) = (7, 8);

/// A frame of a pack.
type FramePlace = (PackId, u64);

/// A block that is new, and what the version before has in its place.
pub struct Candidate {
    pub index: u64,
    /// What is there now.
    pub pages: PageMask,
    /// What was there.
    pub before: VersionBlock,
}

/// What a block can be made of.
#[derive(Debug, Clone, Copy)]
pub struct PatchOver {
    pub base: Hash,
    /// The pages that differ.
    pub pages: PageMask,
}

/// See the module.
pub struct Base<'a> {
    objects: &'a dyn Objects,
    name: &'a ImageName,
    grid: Grid,
    /// Bytes of the image that is published.
    length: u64,
    blocks: VersionBlocks,
    current: Option<VersionBlock>,
}

impl<'a> Base<'a> {
    /// That version, from its first block on.
    pub fn new(
        (objects, name): (&'a dyn Objects, &'a ImageName),
        version: &FetchedVersion,
        length: u64,
    ) -> Result<Base<'a>> {
        Ok(Base { objects, name, grid: version.grid(), length, blocks: version.blocks()?, current: None })
    }

    /// What it has in a block, if that is data; indices ascend.
    pub fn at(&mut self, index: u64) -> Result<Option<VersionBlock>> {
        while self.current.is_none_or(|block| block.index + block.entry.blocks() <= index) {
            self.current = self.blocks.advance()?;
            if self.current.is_none() {
                return Ok(None);
            }
        }
        // The last block of an image of another length has pages of other lengths.
        let is_last = index + 1 == self.grid.blocks() && self.grid.length != self.length;
        Ok(self.current.filter(|block| matches!(block.entry, MapEntry::Data { .. }) && !is_last))
    }

    /// What each of these blocks can be made of; `data`: their bytes. One whose old bytes cannot be had, or
    /// differ in most pages, can be made of nothing.
    pub fn compare<'b, D>(
        &self,
        candidates: &[Candidate],
        data: impl Fn(&Candidate) -> D,
    ) -> Vec<Option<PatchOver>>
    where
        D: Iterator<Item = &'b [u8]>,
    {
        // Old blocks that adjoin lie in one frame, mostly; where they do not, no more frames are in memory.
        candidates.chunks(AT_A_TIME).flat_map(|some| self.compare_some(some, &data)).collect()
    }

    fn compare_some<'b, D>(
        &self,
        candidates: &[Candidate],
        data: &impl Fn(&Candidate) -> D,
    ) -> Vec<Option<PatchOver>>
    where
        D: Iterator<Item = &'b [u8]>,
    {
        let frames = self.frames(candidates);
        let compared = candidates.iter().map(|candidate| {
            let MapEntry::Data { pages: before, hash: base } = candidate.before.entry else { return None };
            let (pack, place) = candidate.before.place?;
            let old = frames.get(&(pack, place.offset))?.get(place.raw as usize..)?;
            let old = old.get(..self.grid.masked_bytes(candidate.index, before) as usize)?;
            let new = data(candidate).collect::<Vec<_>>().concat();
            // What is there must be what DEST has by then.
            let found = hashmap::hash_block(before, std::iter::once(old));
            let pages = self.differing(candidate, (before, old), &new);
            let bytes = |mask| self.grid.masked_bytes(candidate.index, mask);
            let is_worth_it = bytes(pages) * WORTH.1 <= bytes(candidate.pages) * WORTH.0;
            (found == base && is_worth_it).then_some(PatchOver { base, pages })
        });
        compared.collect()
    }

    /// The pages of a block that it does not have in common with another.
    fn differing(&self, candidate: &Candidate, (before, old): (PageMask, &[u8]), new: &[u8]) -> PageMask {
        let page_of = |mask: PageMask, bytes: &'_ [u8], page: u32| -> Range<usize> {
            let at = self.grid.masked_bytes(candidate.index, mask & ((1 << page) - 1)) as usize;
            at..(at + self.grid.masked_bytes(candidate.index, 1 << page) as usize).min(bytes.len())
        };
        let differs = |&page: &u32| {
            before >> page & 1 == 0
                || old[page_of(before, old, page)] != new[page_of(candidate.pages, new, page)]
        };
        let pages = hashmap::page_runs(candidate.pages).flatten().filter(differs);
        pages.fold(0, |mask, page| mask | 1 << page)
    }

    /// What the frames unpack to that the old blocks lie in.
    fn frames(&self, candidates: &[Candidate]) -> HashMap<FramePlace, Vec<u8>> {
        let mut wanted: Vec<_> = candidates.iter().filter_map(|candidate| candidate.before.place).collect();
        wanted.sort_by_key(|(pack, place)| (*pack, place.offset));
        wanted.dedup_by_key(|(pack, place)| (*pack, place.offset));
        let (queue, found) = (Mutex::new(wanted.into_iter()), Mutex::new(HashMap::new()));
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(candidates.len()) {
                scope.spawn(|| {
                    let Ok(mut unpacker) = Unpacker::new() else { return };
                    loop {
                        let next = lock(&queue).next();
                        let Some((pack, place)) = next else { return };
                        let mut stored = Vec::new();
                        let read = self.objects.read(
                            &self.name.object(Kind::Pack, &pack.name()),
                            place.frame(),
                            &mut |bytes| {
                                stored.extend(bytes);
                                Ok(())
                            },
                        );
                        // Without it the blocks are had whole.
                        if let (Ok(_), Ok(raw)) = (read, unpacker.frame(&stored)) {
                            lock(&found).insert((pack, place.offset), raw.to_vec());
                        }
                    }
                });
            }
        });
        found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The pages of a patch, packed, of a block whose data are these pages.
pub fn pages_of(grid: &Grid, index: u64, block: &Block, data: &[u8], pages: PageMask) -> Vec<u8> {
    let mut patch = Vec::new();
    for run in hashmap::page_runs(pages) {
        let before = block.data & ((1 << run.start) - 1);
        let at = grid.masked_bytes(index, before) as usize;
        let bytes = grid.pages(index, &run);
        patch.extend(&data[at..at + (bytes.end - bytes.start) as usize]);
    }
    patch
}
