//! Fills a destination with a version: what it has of that stays, what it lacks is fetched.

mod patching;
mod source;
mod target;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::apply::{Basis, BasisState, Sink};
use crate::error::{Error, Result, Stop};
use crate::hashmap::ahead::Head as KnownHead;
use crate::hashmap::{
    self, Batch, Block, Grid, Hash, Item, Key, MapEntry, MapRecord, Maps, PageMask, Recorder,
};
use crate::report::{Event, Phase, Reporter, Stats};
use crate::store::fetched::{FetchedVersion, VersionBlock};
use crate::store::name::{ImageName, Kind};
use crate::store::places::{PackId, Place};
use crate::store::pull::fetch::{Asked, Fetch, From, Had, Planner, Spoilt, Wanted, Whole};
pub use patching::{Patches, without_patches};
use source::SourceCursor;
use target::Target;

/// Blocks of what is there whose hashes are remembered, so that one that moved is not fetched: about 28 MiB.
const MOST_FOUND: usize = 512 << 10;
/// Blocks that wait until all of what is there is known; beyond that they are fetched.
const MOST_WAITING: usize = 16 << 10;

/// What a destination was filled with.
pub struct Filled {
    /// Its root hash.
    pub root: Hash,
    /// Bytes of data that stay.
    pub kept: u64,
    /// Bytes of data that were elsewhere in what is there.
    pub copied: u64,
    /// Bytes of data that are new.
    pub new: u64,
    /// The map of it, if that is kept.
    pub map: Option<MapRecord>,
    /// What was read of what was there.
    pub stats: Stats,
}

/// What there is in a block.
#[derive(Debug, Clone, Copy)]
enum There {
    Zeros,
    Block(Block),
    Unknown,
}

/// A destination that is being filled.
pub struct Filling<'a> {
    /// How blocks are fetched.
    pub fetch: Fetch<'a>,
    /// Of this image.
    pub name: &'a ImageName,
    /// What it is to have.
    pub version: &'a FetchedVersion,
    /// Who is told.
    pub reporter: &'a dyn Reporter,
}

impl Filling<'_> {
    /// Fills a destination, of which `known` need not be read.
    ///
    /// # Errors
    ///
    /// When blocks cannot be had, or the destination cannot be read or written: then `sink` has what came.
    pub fn fill(
        &self,
        sink: &mut Sink,
        known: KnownHead,
        patches: Option<Patches>,
        map: Option<MapRecord>,
        asked: &Asked,
    ) -> Result<Filled> {
        let (basis, state, own) = (sink.basis(), sink.basis_state(), sink.own());
        // What moved is wanted late, and whole objects are read once, in order.
        let stays = !sink.is_written_itself() && !self.fetch.whole;
        let path = sink.path().to_path_buf();
        let grid = self.fetch.grid;
        let target = Target { grid, basis: basis.clone(), own, path, sink: Mutex::new(sink) };
        let maps = Maps { kept: map, saved: None };
        let (mut filled, came) = (None, AtomicU64::new(0));
        let spoilt = self.fetch.run(
            asked,
            |planner| {
                let source = SourceCursor::new(self.version.blocks()?);
                let mut plan = Plan {
                    filling: self,
                    target: &target,
                    planner,
                    source,
                    patches,
                    recorder: Recorder::new(&grid, maps),
                    at: 0,
                    kept: 0,
                    copied: 0,
                    new: 0,
                    found: stays.then(HashMap::new),
                    waiting: Vec::new(),
                    stats: Stats::default(),
                    objects: HashMap::new(),
                };
                match &basis {
                    Some(basis) => plan.over(basis, known)?,
                    None if state == BasisState::Unknown => plan.rest(There::Unknown)?,
                    None => plan.rest(There::Zeros)?,
                }
                filled = Some(plan.end()?);
                Ok(())
            },
            &|had| self.put(&target, &had, &came),
        )?;
        let filled = filled.ok_or_else(|| Error::refused(&target.path, "was not filled; run again"))?;
        let filled = self.fill_spoilt((&target, &came), spoilt, asked, filled)?;
        self.have_all(&filled, came.into_inner())?;
        Ok(filled)
    }

    /// All that is new has come: whatever was asked for and how.
    fn have_all(&self, filled: &Filled, came: u64) -> Result<()> {
        if came >= filled.new || self.fetch.dry_run {
            return Ok(());
        }
        let peer = self.fetch.objects.address(&self.name.to_string());
        let what = format!("{came} bytes of blocks came, of {} that were asked for", filled.new);
        Err(Error::Protocol { peer, what })
    }

    /// Of blocks of which patches are not what they should be the whole is had.
    fn fill_spoilt(
        &self,
        (target, came): (&Target, &AtomicU64),
        spoilt: Spoilt,
        asked: &Asked,
        filled: Filled,
    ) -> Result<Filled> {
        let Some(why) = spoilt.why else { return Ok(filled) };
        self.reporter.event(Event::Warning(&without_patches(&why)));
        let bytes = |wanted: &Wanted, pages| self.fetch.grid.masked_bytes(wanted.index, pages);
        let stays = |wanted: &Wanted| {
            let pages = wanted.patched.as_ref().map_or(0, |whole| whole.pages & !wanted.pages);
            bytes(wanted, pages)
        };
        let more = spoilt.wanted.iter().map(stays).sum::<u64>();
        let mut wanted = spoilt.wanted.into_iter().map(Wanted::whole).collect::<Vec<_>>();
        wanted.sort_by_key(|wanted| wanted.index);
        self.fetch.run(
            asked,
            |planner| wanted.into_iter().try_for_each(|wanted| planner.want(wanted)),
            &|had| self.put(target, &had, came),
        )?;
        Ok(Filled { kept: filled.kept - more, new: filled.new + more, ..filled })
    }

    fn put(&self, target: &Target, had: &Had, came: &AtomicU64) -> Result<()> {
        target.put(had)?;
        let bytes = self.fetch.grid.masked_bytes(had.index, had.pages);
        came.fetch_add(bytes, Ordering::Relaxed);
        self.reporter.event(Event::Done(Phase::Sending, bytes));
        Ok(())
    }
}

/// Goes through what there is and what is wanted, side by side.
struct Plan<'a, 'b, 'c> {
    filling: &'a Filling<'a>,
    target: &'a Target<'a>,
    planner: &'b mut Planner<'c>,
    source: SourceCursor,
    patches: Option<Patches>,
    recorder: Recorder,
    /// The next block.
    at: u64,
    kept: u64,
    copied: u64,
    new: u64,
    /// Which blocks of what is there have which data, where that stays as it is meanwhile.
    found: Option<HashMap<Key, u64>>,
    /// Blocks that may be there, in another place.
    waiting: Vec<Wanted>,
    stats: Stats,
    /// The names of objects, by their packs.
    objects: HashMap<PackId, Arc<str>>,
}

impl Plan<'_, '_, '_> {
    /// Over something that can be read.
    fn over(&mut self, basis: &Basis, mut known: KnownHead) -> Result<()> {
        let whole = self.target.grid;
        let grid = Grid { length: whole.length.min(basis.length), ..whole };
        let image = basis.image.as_ref();
        let failed = |error| Error::file("read the old", &self.target.path)(error);
        while let Some((_, mut batch)) = known.batch(&grid, image).map_err(failed)? {
            self.batch(&mut batch)?;
        }
        let read = hashmap::map_rest(image, &grid, known.next_block(), false, |batch| {
            self.batch(batch).map_err(Stop::Taken)?;
            Ok(true)
        });
        let path = self.target.path.clone();
        read.map_err(|stop: Stop| stop.or_read(Error::file("read the old", &path)))?;
        self.rest(There::Zeros)?;
        self.settle()
    }

    fn batch(&mut self, batch: &mut Batch) -> Result<()> {
        self.planner.go_on()?;
        self.stats.basis_hashed_bytes += batch.bytes_read as u64;
        self.stats.believed_bytes += batch.believed as u64;
        batch.items.iter().try_for_each(|item| match item {
            Item::Hole(blocks) => self.stretch(*blocks, There::Zeros),
            Item::Block(block) => {
                self.learn(block);
                self.stretch(1, There::Block(*block))
            }
        })
    }

    /// Behind all that is there.
    fn rest(&mut self, there: There) -> Result<()> {
        self.stretch(self.target.grid.blocks() - self.at, there)
    }

    /// The next blocks, all of which have the same.
    fn stretch(&mut self, mut blocks: u64, there: There) -> Result<()> {
        while blocks > 0 {
            let Some((count, wanted)) = self.source.next(blocks)? else {
                let why = "has fewer blocks than its length says";
                return Err(Error::refused(&self.target.path, why));
            };
            match wanted.entry {
                MapEntry::Zero(_) => self.zero(count, there)?,
                MapEntry::Data { pages, hash } => self.data(&wanted, (pages, &hash), there)?,
            }
            self.at += count;
            blocks -= count;
        }
        Ok(())
    }

    /// Blocks become, or are, zeros.
    fn zero(&mut self, count: u64, there: There) -> Result<()> {
        match there {
            There::Unknown => self.target.clear(self.target.grid.bytes(&(self.at..self.at + count))),
            _ if self.target.own.is_some() => {
                self.target.clear(self.target.grid.bytes(&(self.at..self.at + count)))
            }
            There::Zeros => Ok(()),
            There::Block(Block { data: 0, read, .. }) => self.target.each(self.at, read, Sink::free),
            There::Block(block) => self.target.each(self.at, block.read, Sink::zero),
        }
    }

    /// A block has data.
    fn data(&mut self, wanted: &VersionBlock, (pages, hash): (PageMask, &Hash), there: There) -> Result<()> {
        self.recorder.add(self.at, pages, hash);
        match there {
            // The hash covers the pages: others are a lie of the map, which shows when the block comes.
            There::Block(block) if block.data != 0 && (block.hash, block.data) == (*hash, pages) => {
                self.keep(wanted, &block)
            }
            _ => self.lack(wanted, (pages, hash), there),
        }
    }

    /// It is there.
    fn keep(&mut self, wanted: &VersionBlock, block: &Block) -> Result<()> {
        if self.target.own.is_some() && !self.copy(block)? {
            return self.lack(wanted, (block.data, &block.hash), There::Zeros);
        }
        let bytes = self.target.grid.masked_bytes(self.at, block.data);
        self.kept += bytes;
        self.filling.reporter.event(Event::Done(Phase::Mapping, bytes));
        if self.target.own.is_some() {
            return Ok(());
        }
        self.target.each(self.at, block.data, Sink::keep_range)?;
        self.target.each(self.at, block.read & !block.data, Sink::free)
    }

    /// It is in another file, from which it is copied; `false`: it is no more.
    fn copy(&mut self, block: &Block) -> Result<bool> {
        let Ok(bytes) = self.target.read_basis(self.at, block.data) else { return Ok(false) };
        if hashmap::hash_block(block.data, std::iter::once(bytes.as_slice())) != block.hash {
            return Ok(false);
        }
        self.target.put_over_own(self.at, block.data, &bytes)?;
        Ok(true)
    }

    /// It is to be had.
    fn lack(&mut self, wanted: &VersionBlock, (pages, hash): (PageMask, &Hash), there: There) -> Result<()> {
        let (target, index) = (self.target, self.at);
        let patch = self.patch(pages, there);
        match there {
            There::Unknown => target.each(index, target.grid.all_pages(index) & !pages, Sink::zero)?,
            _ if target.own.is_some() => {
                let own = target.read_own(index)?.0;
                target.each(index, own & !pages, Sink::zero)?;
            }
            There::Block(block) => {
                target.each(index, block.data & !pages, Sink::zero)?;
                target.each(index, block.read & !block.data & !pages, Sink::free)?;
            }
            There::Zeros => {}
        }
        let whole = Whole { pages, from: self.from(wanted.place) };
        let (sent, from, patched) = match &patch {
            Some((patch, object, behind)) => {
                let start = behind + patch.offset;
                let range = start..start + u64::from(patch.stored);
                let from = From::Frame { object: Arc::clone(object), range, raw: patch.raw };
                (patch.pages, from, Some(whole))
            }
            None => (pages, whole.from, None),
        };
        if patch.is_some() && target.own.is_none() {
            target.each(index, pages & !sent, Sink::keep_range)?;
        }
        let bytes = target.grid.masked_bytes(index, sent);
        self.new += bytes;
        self.kept += target.grid.masked_bytes(index, pages & !sent);
        if self.filling.fetch.dry_run {
            let written = if target.own.is_some() { pages } else { sent };
            target.each(index, written, |sink, range| sink.write(&range, &[]))?;
        }
        let wanted = Wanted { index, pages: sent, hash: *hash, patched, from };
        if sent == 0 {
            return self.take_less(pages, wanted);
        }
        let may_be_there = self.found.is_some() && target.basis.is_some() && patch.is_none();
        if may_be_there && self.waiting.len() < MOST_WAITING {
            self.waiting.push(wanted);
            return Ok(());
        }
        self.planner.want(wanted)
    }

    /// The next block of what is there has these data.
    fn learn(&mut self, block: &Block) {
        let index = self.at;
        if let Some(found) = self.found.as_mut().filter(|found| block.data != 0 && found.len() < MOST_FOUND) {
            found.entry(hashmap::key(&block.hash)).or_insert(index);
        }
    }

    /// All of what is there is known: what moved is copied, and the rest fetched.
    fn settle(&mut self) -> Result<()> {
        for wanted in std::mem::take(&mut self.waiting) {
            let key = hashmap::key(&wanted.hash);
            let moved = self.found.as_ref().and_then(|found| found.get(&key)).copied();
            match moved {
                Some(from) if self.copy_moved(from, &wanted)? => {
                    let bytes = self.target.grid.masked_bytes(wanted.index, wanted.pages);
                    (self.new, self.copied) = (self.new - bytes, self.copied + bytes);
                    self.filling.reporter.event(Event::Done(Phase::Mapping, bytes));
                }
                _ => self.planner.want(wanted)?,
            }
        }
        Ok(())
    }

    /// A block is there in another place; `false`: no more.
    fn copy_moved(&self, from: u64, wanted: &Wanted) -> Result<bool> {
        let Ok(bytes) = self.target.read_basis(from, wanted.pages) else { return Ok(false) };
        if hashmap::hash_block(wanted.pages, std::iter::once(bytes.as_slice())) != wanted.hash {
            return Ok(false);
        }
        // A dry run has counted it.
        if !self.filling.fetch.dry_run {
            self.target.write(wanted.index, wanted.pages, &bytes)?;
        }
        Ok(true)
    }

    fn from(&mut self, place: Option<(PackId, Place)>) -> From {
        let name = self.filling.name;
        let Some((pack, place)) = place else { return From::of(name.to_string().into(), None) };
        let object = self.objects.entry(pack).or_insert_with(|| name.object(Kind::Pack, &pack.name()).into());
        From::of(Arc::clone(object), Some(&place))
    }

    fn end(mut self) -> Result<Filled> {
        if self.source.next(1)?.is_some() {
            return Err(Error::refused(&self.target.path, "has more blocks than its length says"));
        }
        let (root, maps) = self.recorder.finish();
        Ok(Filled {
            root,
            kept: self.kept,
            copied: self.copied,
            new: self.new,
            map: maps.kept,
            stats: self.stats,
        })
    }
}
