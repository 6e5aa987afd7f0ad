//! Makes a destination equal to a version of an image in a store.
//!
//! 1. The head of the version is fetched: of the newest, or of the one that was named. It must be of this
//!    image, signed where that was asked for, have the root hash that was asked for, and be no older than the
//!    version that the destination came from last.
//! 2. A destination that nobody touched since it was pulled is equal, and so is a file of another directory that
//!    has the root hash. Otherwise map and places are fetched, each proven by the head.
//! 3. What is there is hashed, or believed where its map was kept, and held against the map. What differs
//!    is fetched: a patch where the destination has exactly the block that it goes on top of, else the block.
//! 4. Each block is proven by its hash before it is written. The map proves to be that of the root hash
//!    at its end.
//! 5. The destination is completed as every other one.
//!
//! Guaranteed: nothing that the store says is believed but what the root hash proves, and that one is as
//! good as the signature, or as where it came from. Not guaranteed: that there is no newer version.

mod content;
pub(in crate::store) mod fetch;
mod fill;
mod find;
mod last;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::apply::tree::{DestinationTree, Target};
use crate::apply::{
    Attributes, Basis, BasisState, Completion, Destination, Finished, Opened, Opening, Place, Precision,
    Preview, QuickCheck, Setup, Sink, Wanted,
};
use crate::confinement::NamedPath;
use crate::error::{Error, Result, Warning};
use crate::hashmap::ahead::Head as KnownHead;
use crate::hashmap::cache::{self, Found, MapCache};
use crate::hashmap::map_file::nameless;
use crate::options::Options;
use crate::report::{Changes, Event, Item, ItemKind, Outcome, Phase, Reporter, Stats};
use crate::scan::{At, FileState};
use crate::store::fetched::{FetchedVersion, damaged};
use crate::store::head::{Digest, Head, PatchesHead};
use crate::store::name::{ImageName, Kind, Version};
use crate::store::objects::{Objects, Served};
use crate::store::patches::PatchesReader;
use crate::store::signature::Trusted;
use fetch::{Asked, Fetch};
use fill::{Filled, Filling, Patches};
use find::Source;
use last::{LastPlace, LastVersion, ProvenBy};

/// Requests at a time, unless told otherwise.
pub const JOBS: usize = 12;

/// What is pulled.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Which version. `None`: the newest.
    pub version: Option<Version>,
    /// The root hash that it must have.
    pub root: Option<Digest>,
    /// Whose signature it must have.
    pub trusted: Option<Trusted>,
    /// Requests at a time.
    pub jobs: usize,
}

/// What was pulled.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// What was done.
    pub stats: Stats,
    /// The version.
    pub head: Head,
}

/// See the module.
pub struct Pull<'a> {
    /// Where objects are read.
    pub objects: &'a dyn Objects,
    /// The image.
    pub name: &'a ImageName,
    /// What of it.
    pub pull: &'a PullOptions,
    /// How it is put in place.
    pub options: &'a Arc<Options>,
    /// The umask of this process.
    pub umask: u32,
    /// Who is told.
    pub reporter: &'a dyn Reporter,
}

impl Pull<'_> {
    /// Makes `destination`, a file, a device or a directory, equal to the version.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the store, what it has, or the destination: that is as it was then, and what
    /// came is kept for the next run.
    pub fn run(&self, destination: &Path) -> Result<Pulled> {
        let source = self.find()?;
        let head = match &source {
            Source::Version(kept, _) => kept.head.clone(),
            Source::Plain(version) => version.head.clone(),
        };
        let what = format!("{} {} of {}", self.name, head.version(), crate::report::human(head.length));
        self.reporter.event(Event::Note(&what));
        let stats = self.put(source, &head, destination)?;
        Ok(Pulled { stats, head })
    }

    /// Steps 2 to 5.
    fn put(&self, source: Source, head: &Head, destination: &Path) -> Result<Stats> {
        let slash = destination.as_os_str().as_encoded_bytes().ends_with(b"/");
        let asides =
            crate::apply::tree::Asides::find(self.options, |path| Ok(NamedPath::here(path.into_path())))?;
        let target = Target { asides, ..Target::new(NamedPath::here(destination), slash, self.umask) };
        // What is read back, or finished after a crash, is hashed as it was published.
        let options = Options {
            block_size: head.grid().map_or(self.options.block_size, |grid| grid.block),
            ..(**self.options).clone()
        };
        let options = Arc::new(options);
        let tree = DestinationTree::open(&target, true, Arc::clone(&options))?;
        let root = tree.root();
        let setup = Setup::new(options).copying();
        let below = if root.is_file() { Vec::new() } else { self.name.to_string().into_bytes() };
        let shown = root.path_of(&below);
        let last = LastPlace::of(destination, &shown);
        self.refuse_older(&source, head, last.as_ref())?;
        let mut stats =
            Stats { files_total: 1, apparent_bytes: head.length, data_bytes: head.data, ..Stats::default() };
        self.reporter.event(Event::Found(head.data));
        let place = root.place(&below, self.options.dry_run)?;
        let (opened, changes) = match place {
            Some(place) => self.open(place, head, (&setup, last.as_ref()))?,
            None => {
                let nothing = Preview::of_nothing(&root.path_of(&below));
                (Opened::Preview(Box::new(nothing)), Changes::NEW.with(Changes::TRANSFER, true))
            }
        };
        let sink = match opened {
            Opened::Equal { unset } => {
                self.unset(unset, &mut stats);
                self.reporter.event(Event::Done(Phase::Mapping, head.data));
                self.file(head, Outcome::Unchanged, changes);
                // A length alone says of no version that it is there.
                if !self.options.size_only {
                    self.record(head, last.as_ref(), None);
                }
                return Ok(stats);
            }
            Opened::Preview(preview) => Sink::Preview(preview),
            Opened::Different(destination) => Sink::Destination(destination),
        };
        // Another run may have had it meanwhile.
        if let Err(error) = self.refuse_older(&source, head, last.as_ref()) {
            return Err(sink.give_up(error));
        }
        let is_first = changes.has(Changes::NEW);
        let (finished, sent, mark) =
            self.fill((source, head), (sink, is_first), last.as_ref(), &mut stats)?;
        stats.written_bytes += finished.written;
        stats.punched_bytes = stats.punched_bytes.saturating_add(finished.punched);
        finished.note(&shown).iter().for_each(|note| self.reporter.event(Event::Warning(note)));
        self.unset(finished.unset, &mut stats);
        let outcome = if finished.changed { Outcome::Sent(sent) } else { Outcome::Unchanged };
        stats.files_sent = u64::from(finished.changed);
        self.file(head, outcome, changes);
        self.record(head, last.as_ref(), mark);
        Ok(stats)
    }

    /// Refuses what is older than what the destination came from, unless it is what was named.
    fn refuse_older(&self, source: &Source, head: &Head, last: Option<&LastPlace>) -> Result<()> {
        let is_named = self.pull.version.is_some() || self.pull.root.is_some();
        let Some(last) = last.filter(|_| !is_named) else { return Ok(()) };
        let Some(known) = last.read()?.filter(|known| known.name == self.name.to_string()) else {
            return Ok(());
        };
        match source {
            Source::Version(_, address) => known.refuse_older(head, address),
            Source::Plain(_) => known.refuse_older(head, &self.objects.address(&self.name.plain_map())),
        }
    }

    /// Records what the destination came from, and what it is known by; else that stays.
    fn record(&self, head: &Head, last: Option<&LastPlace>, mark: Option<Digest>) {
        if let Err(error) = self.try_to_record(head, last, mark) {
            self.reporter.event(Event::Warning(&Warning::new(error.to_string())));
        }
    }

    fn try_to_record(&self, head: &Head, last: Option<&LastPlace>, mark: Option<Digest>) -> Result<()> {
        let Some(last) = last.filter(|_| !self.options.dry_run) else { return Ok(()) };
        let proven = match (&self.pull.trusted, self.pull.root) {
            (Some(_), _) => ProvenBy::Signature,
            (None, Some(_)) => ProvenBy::Root,
            (None, None) => ProvenBy::Way,
        };
        // What cannot be read has ended all but the pull of what was named.
        let before = last.read().ok().flatten();
        let mark = mark.or_else(|| before.as_ref().and_then(|before| before.mark));
        let now = LastVersion::after(before.as_ref(), head, (&self.name.to_string(), proven), mark);
        if before.as_ref() == Some(&now) { Ok(()) } else { last.write(&now) }
    }

    /// Whether what is there has this content still, as it was recorded. That it has the time of the image proves
    /// nothing.
    fn is_known_to_be(&self, head: &Head, path: &Path, last: Option<&LastPlace>) -> bool {
        let recorded = last.and_then(|last| last.read().ok().flatten()).and_then(|last| last.mark);
        let mark = || {
            let (file, _) = crate::scan::open_image(&NamedPath::here(path)).ok()?;
            let state = FileState::of(&file).ok()?;
            cache::mark_of(&file, &state, head.grid()?.block, &head.root.0).map(Digest)
        };
        recorded.is_some() && recorded == mark()
    }

    fn open(
        &self,
        place: Place,
        head: &Head,
        (setup, last): (&Setup, Option<&LastPlace>),
    ) -> Result<(Opened, Changes)> {
        let options = self.options;
        let path = place.path.clone();
        let attributes = Attributes {
            new_mode: 0o666 & !self.umask,
            source_time: head.modified.map(|(seconds, _)| seconds),
            mtime: head.modified.filter(|_| options.times),
            ..Attributes::default()
        };
        // Who pins nothing, and says that lengths are enough, is believed.
        let is_pinned = self.pull.root.is_some() || self.pull.trusted.is_some();
        let quick_check = match options.size_only && !is_pinned {
            true => QuickCheck::Time(Precision::Nanoseconds),
            false => {
                QuickCheck::Content { root: head.root.0, is_known: self.is_known_to_be(head, &path, last) }
            }
        };
        let (length, data, whole) = (head.length, head.data, options.whole_file);
        let opening =
            Destination::open(place, Wanted { length, data, whole, quick_check, attributes }, setup)?;
        let Opening { recovered, opened, changes } = opening;
        if let Some(warning) = recovered.warning(&path) {
            self.reporter.event(Event::Warning(&warning));
        }
        if let Opened::Different(destination) = &opened {
            destination.shortage().iter().for_each(|shortage| self.reporter.event(Event::Warning(shortage)));
            let choice = destination.choice(self.name.to_string().as_bytes());
            choice.iter().for_each(|choice| self.reporter.event(Event::Choice(choice)));
        }
        Ok((opened, changes))
    }

    fn unset(&self, unset: Option<crate::error::Failure>, stats: &mut Stats) {
        if let Some(failure) = unset {
            stats.count_unset(failure.code);
            self.reporter.event(Event::Unset(&failure));
        }
    }

    fn file(&self, head: &Head, outcome: Outcome, changes: Changes) {
        let name = self.name.to_string();
        let item = Item::new(name.as_bytes(), ItemKind::File { length: Some(head.length) });
        self.reporter.event(Event::File(item, outcome, changes));
    }

    /// Steps 3 to 5; `is_first`: nothing has the name of the destination. Returns what finishing came to, and
    /// bytes of data that were new, and what the destination is to be known by.
    fn fill(
        &self,
        (source, head): (Source, &Head),
        (mut sink, is_first): (Sink, bool),
        last: Option<&LastPlace>,
        stats: &mut Stats,
    ) -> Result<(Finished, u64, Option<Digest>)> {
        let version = match source {
            Source::Plain(version) => Ok(*version),
            Source::Version(..) => FetchedVersion::fetch(self.objects, self.name, head.clone())
                .and_then(|version| version.prove().map(|()| version)),
        };
        let mut block = self.options.block_size;
        let filled = version.and_then(|version| {
            block = version.grid().block;
            let maps = MapCache::open(self.options);
            let filled = self.fill_with(&version, (&mut sink, is_first), maps.as_ref())?;
            // The blocks are those of the map, which has proven to be that of this hash.
            if filled.root != head.root.0 {
                let what = "its blocks are not those of its root hash".into();
                return Err(Error::Protocol { peer: self.objects.address(&self.name.to_string()), what });
            }
            Ok((filled, maps))
        });
        let (filled, maps) = match filled {
            Ok(filled) => filled,
            Err(error) => return Err(sink.give_up(error)),
        };
        let Filled { root, kept, copied, new, map, stats: read } = filled;
        (stats.basis_hashed_bytes, stats.believed_bytes) = (read.basis_hashed_bytes, read.believed_bytes);
        (stats.matched_bytes, stats.sent_data_bytes) = (kept + copied, new);
        self.reporter.event(Event::Phase(Phase::WritingBack));
        // Whoever is killed from now on may have put it in place. That it cannot be recorded is told when it is.
        let _ = self.try_to_record(head, last, None);
        let mut finished = match sink.complete(&root, kept, head.length)? {
            Completion::Finished(finished) => *finished,
            Completion::Waits(waiting) => waiting.commit()?,
        };
        let mut mark = None;
        if let Some((file, state)) = finished.witness.take().and_then(|witness| witness.state()) {
            mark = cache::mark_of(&file, &state, block, &root).map(Digest);
            if let (Some(maps), Some(map)) = (&maps, map) {
                maps.keep(map, &file, &state);
            }
        }
        Ok((finished, new, mark))
    }

    fn fill_with(
        &self,
        version: &FetchedVersion,
        (sink, is_first): (&mut Sink, bool),
        maps: Option<&MapCache>,
    ) -> Result<Filled> {
        let grid = version.grid();
        let compares = sink.basis_state() == BasisState::Mapped;
        let known = match sink.basis() {
            Some(basis) => self.known(&basis, sink.path(), maps, grid.block),
            None => KnownHead::Unread,
        };
        let is_watched = sink.watch();
        let map = maps.filter(|_| is_watched).and_then(|maps| maps.record(&grid, version.head.data));
        let patches = if compares { self.patches(version)? } else { None };
        let whole = (is_first || !compares) && self.has_no_ranges(version)?;
        if whole && compares {
            let what = format!(
                "{}: the server has no ranges: objects are read from their beginning, what is here already included",
                self.objects.address(&self.name.to_string())
            );
            self.reporter.event(Event::Warning(&Warning::new(what)));
        }
        let jobs = self.pull.jobs.max(1);
        let fetch = Fetch { objects: self.objects, grid, jobs, whole, dry_run: false };
        if sink.is_device()
            && !self.options.as_is
            && let Some(content) = content::of(&fetch, self.name, version)?
        {
            let address = self.objects.address(&self.name.to_string());
            return Err(content.refuse_stored(&address));
        }
        let fetch = Fetch { dry_run: sink.is_preview(), ..fetch };
        let asked = Asked::default();
        let filling = Filling { fetch, name: self.name, version, reporter: self.reporter };
        let filled = filling.fill(sink, known, patches, map, &asked)?;
        let (requests, bytes) = (asked.requests.load(Ordering::Relaxed), asked.bytes.load(Ordering::Relaxed));
        let bytes = crate::report::human(bytes);
        let noun = if requests == 1 { "request" } else { "requests" };
        let what = match sink.is_preview() {
            true => format!("{bytes} of blocks"),
            false => format!("{bytes} of blocks by {requests} {noun}"),
        };
        self.reporter.event(Event::Note(&what));
        Ok(filled)
    }

    /// What need not be read of what is there.
    fn known(
        &self,
        basis: &Basis,
        path: &Path,
        maps: Option<&MapCache>,
        block: crate::options::BlockSize,
    ) -> KnownHead {
        let found =
            basis.state.as_ref().zip(maps).map(|(state, maps)| maps.find(basis.image.as_ref(), state, block));
        match found {
            Some(Found::Known(map)) => KnownHead::Known(map),
            Some(Found::Other) => {
                self.reporter.event(Event::Warning(&cache::differs(path)));
                KnownHead::Unread
            }
            Some(Found::Nothing) | None => KnownHead::Unread,
        }
    }

    /// The patches of the version, if it has any. Without them whole blocks are fetched.
    fn patches(&self, version: &FetchedVersion) -> Result<Option<Patches>> {
        let Some(head) = &version.head.patches else { return Ok(None) };
        match self.fetch_patches(version, head) {
            Err(error @ (Error::Protocol { .. } | Error::Refused { .. } | Error::File { .. })) => {
                self.reporter.event(Event::Warning(&fill::without_patches(&error)));
                Ok(None)
            }
            patches => patches,
        }
    }

    fn fetch_patches(&self, version: &FetchedVersion, head: &PatchesHead) -> Result<Option<Patches>> {
        let object = self.name.object(Kind::Patches, &version.head.id.name());
        let address = self.objects.address(&object);
        let failed = |error| Error::file("write a working file for", &address)(error);
        let mut file = nameless().map_err(failed)?;
        let mut hasher = blake3::Hasher::new();
        let served = self.objects.read(&object, 0..head.index.length, &mut |bytes| {
            hasher.update(bytes);
            io::Write::write_all(&mut file, bytes).map_err(failed)
        })?;
        if served == Served::WholeOnly {
            return Ok(None);
        }
        if *hasher.finalize().as_bytes() != head.index.digest.0 {
            let what = "its index is not what the head of its version names".into();
            return Err(Error::Protocol { peer: address, what });
        }
        let reader = PatchesReader::new(At::new(Arc::<File>::new(file), 0), version.grid());
        let reader = reader.map_err(|error| damaged(&address, &error))?;
        Ok(Some(Patches { reader, object: object.into(), behind: head.index.length, address }))
    }

    /// Whether whoever has the blocks gives whole objects alone.
    fn has_no_ranges(&self, version: &FetchedVersion) -> Result<bool> {
        let object = match version.packs()?.first() {
            Some(pack) => self.name.object(Kind::Pack, &pack.name()),
            None if version.head.places.is_some() || version.head.data == 0 => return Ok(false),
            None => self.name.to_string(),
        };
        Ok(self.objects.read(&object, 0..1, &mut |_| Ok(()))? == Served::WholeOnly)
    }
}
