//! Questions about blocks that differ, and the leaves that answer them.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use crate::apply::{Basis, Own};
use crate::error::{Result, lock};
use crate::hashmap::leaves::Leaves;
use crate::hashmap::{self, Hash, PageMask};
use crate::options::BlockSize;
use crate::protocol::{BlockAnswer, Credit, Differ, LeafAnswer, MAX_UNPATCHED, Patch};
use crate::receiver::assemble::{ApplyError, OpenFile, Patched, UnpatchedBlock, rule};
use crate::receiver::basis_feed::{BasisFeeds, Had};
use crate::receiver::blocks::{Pending, take};
use crate::receiver::places::{self, FoundBlock, Places};
use crate::receiver::shared::ReceiverShared;
use crate::receiver::{Applier, Current};
use crate::report::Phase;

/// Blocks that were asked about and not found, after which more is hashed to find them.
const WORTH_HASHING: usize = 32;

/// Hashes what may have blocks that are missing. What cannot be read has none.
pub(super) fn hash_named(shared: &ReceiverShared, unhashed: Receiver<Basis>) {
    for basis in unhashed {
        let is_over = || shared.is_stopped();
        let _ = shared.places.hash(&basis, shared.options.block_size, is_over);
    }
}

impl Applier<'_, '_> {
    /// Answers with what is there of blocks that differ.
    pub(super) fn compare(&mut self, differ: &Differ) -> Result<()> {
        let units = self.take_credit(differ)?;
        let mut answer = None;
        let leaf = self.shared.options.leaf_size;
        let places = self.shared.copies.then_some(&self.shared.places);
        self.describe(Phase::Mapping, |feeds, file| {
            let (blocks, bytes) = file.compare(feeds, differ, leaf, places)?;
            answer = Some(LeafAnswer { id: file.id, blocks });
            Ok(bytes)
        })?;
        self.hash_named(answer.as_ref());
        match answer {
            Some(answer) => self.shared.outbox.leaves(answer, units),
            None => self.shared.outbox.settle(units),
        }
    }

    /// Has what the user named hashed, to find blocks in it wherever they are: what nobody is told
    /// of at once, and the rest, once so much was not found.
    pub(super) fn hash_named(&mut self, answer: Option<&LeafAnswer>) {
        let is_missing = |block: &&BlockAnswer| matches!(block, BlockAnswer::Leaves(_));
        self.missing += answer.map_or(0, |answer| answer.blocks.iter().filter(is_missing).count());
        let Current::File(file) = &self.current else { return };
        let Some(place) = file.place.as_ref().filter(|_| self.shared.copies) else { return };
        let bases = place.named_bases();
        let longest = place.longest_basis();
        for (nth, basis) in bases.iter().enumerate() {
            let is_next = Some(nth) != longest || self.missing >= WORTH_HASHING && !file.is_told(basis);
            // A thread that is gone ended with the run.
            if is_next && self.hashed.insert(nth) {
                _ = self.unhashed.as_ref().map(|unhashed| unhashed.send(basis.clone()));
            }
        }
    }

    /// The units of credit that a question takes, if there are so many.
    fn take_credit(&self, differ: &Differ) -> Result<usize> {
        let units = Credit::of_question(differ.hashes.len());
        let fits = lock(&self.shared.credit).take(units);
        if fits { Ok(units) } else { Err(self.frames.bad("more questions than it has credit for")) }
    }
}

impl OpenFile {
    /// The next blocks get new data in place of what the basis has of them, which is
    /// returned; what they lack comes as patches, in this order. `places`: where they are looked
    /// for, if the sender knows of that. Also returns bytes of data that were found.
    pub fn compare(
        &mut self,
        feeds: &BasisFeeds,
        differ: &Differ,
        leaf: BlockSize,
        places: Option<&Places>,
    ) -> Result<(Vec<BlockAnswer>, u64), ApplyError> {
        self.end_of(differ.hashes.len() as u64)?;
        if differ.first != self.at || self.asked.len() + differ.hashes.len() > MAX_UNPATCHED {
            return rule("a question out of place, or one too many");
        }
        let places = places.filter(|_| !self.whole);
        self.changed.add(self.at..self.at + differ.hashes.len() as u64);
        let (mut answers, mut bytes) = (Vec::with_capacity(differ.hashes.len()), 0);
        for &hash in &differ.hashes {
            let had = match self.cursor.next(feeds, 1)? {
                (_, Had::Block(had)) if had.data != 0 || places.is_some() => had,
                (_, Had::Hole) if places.is_some() => hashmap::Block::HOLE,
                _ => return rule("a question about a block without data"),
            };
            let answer = match places.and_then(|places| self.find(&hash, places)) {
                Some(found) => {
                    self.root.add(self.at, found.data, &hash);
                    bytes += self.place_found(&had, &found)?;
                    BlockAnswer::Had
                }
                None => {
                    self.root.promise(self.at, &hash);
                    self.ask_for(had, hash, leaf)?.into()
                }
            };
            answers.push(answer);
            self.at += 1;
        }
        Ok((answers, self.behind_asked(bytes)))
    }

    /// The next block, if it lies somewhere: at the same place in what is there, or in what the user
    /// named, or anywhere.
    fn find(&mut self, hash: &Hash, places: &Places) -> Option<FoundBlock> {
        let own = self.own.iter().filter_map(|own| match own {
            Own::There(basis) => Some(basis),
            Own::Nothing => None,
        });
        let named = self.place.iter().flat_map(|place| place.named_bases());
        let at = self.at * self.grid.block.bytes();
        // What was told has another hash.
        let mut there = own.chain(named).filter(|basis| at < basis.length && !self.is_told(basis));
        there
            .find_map(|basis| places::read(basis.image.as_ref(), &self.grid, self.at, at, hash))
            .or_else(|| places.find(hash, &self.grid, self.at, &mut self.search))
    }

    /// Whether the sender was told of this.
    fn is_told(&self, basis: &Basis) -> bool {
        self.basis.as_ref().is_some_and(|told| Arc::ptr_eq(&told.image, &basis.image))
    }

    /// What the basis has of the next block, of which the rest is to come.
    fn ask_for(&mut self, had: hashmap::Block, hash: Hash, leaf: BlockSize) -> Result<Leaves, ApplyError> {
        let bytes = self.old_bytes(self.at, had.data)?;
        if self.own.is_none() {
            // What arrives of it is written over that.
            self.keep_pages(self.at, had.data)?;
        }
        self.asked.push_back(UnpatchedBlock { index: self.at, had, hash, behind: 0 });
        Ok(Leaves::of(leaf, &self.grid, self.at, had.data, &bytes))
    }

    /// The next block was found elsewhere; the basis has `had` in its place. Returns bytes of data.
    fn place_found(&mut self, had: &hashmap::Block, found: &FoundBlock) -> Result<u64, ApplyError> {
        if self.own.is_some() {
            return self.put_found(found);
        }
        let mask = found.data;
        self.zero_pages(self.at, had.data & !mask, false)?;
        self.zero_pages(self.at, had.read & !had.data & !mask, true)?;
        let same = self.same_pages(had.data & mask, (mask, &found.bytes), false)?;
        let mut pending = Pending { at: 0, len: 0, bytes: &found.bytes };
        self.add_but(self.at, same, mask, &mut pending)?;
        pending.write(&mut self.destination)?;
        let bytes = self.grid.masked_bytes(self.at, mask);
        self.copied += bytes - self.grid.masked_bytes(self.at, same);
        Ok(bytes)
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
            let is_preview = self.destination.is_preview();
            let Some((new, behind)) = left.split_at_checked(if is_preview { 0 } else { comes as usize })
            else {
                return rule("a patch that is too short");
            };
            left = behind;
            let is_read = !is_preview || self.own.is_some();
            let old = if is_read { self.old_bytes(index, kept)? } else { Vec::new() };
            if !is_preview {
                let found = hashmap::hash_block(mask, self.interleave(index, (kept, &old), (sent, new)));
                if found != hash {
                    self.patched = Patched::Otherwise;
                }
            }
            self.root.tell_pages(mask);
            self.received += comes;
            bytes += stays + comes + kept_behind;
            if self.own.is_some() {
                self.patch_over_other(index, (kept, &old), (sent, new))?;
                pending.bytes = left;
                continue;
            }
            self.zero_pages(index, had.data & !mask, false)?;
            self.zero_pages(index, had.read & !had.data & !mask, true)?;
            for run in hashmap::page_runs(sent) {
                pending.add(self.grid.pages(index, &run), &mut self.destination)?;
            }
            self.kept += stays;
        }
        if !left.is_empty() {
            return rule("a patch that is too long");
        }
        pending.write(&mut self.destination)?;
        Ok(bytes)
    }

    /// The pages of two masks in their order; their bytes are packed.
    pub(super) fn interleave<'a>(
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
}
