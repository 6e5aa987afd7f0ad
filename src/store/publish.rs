//! Publishes a version of an image: packs of the blocks that the store lacks, patches against the version
//! before, places, map, and last the head, with which the version is there.
//!
//! 1. The heads, maps and places of the versions that the store has tell which blocks it has. Packs that
//!    are condemned count for none.
//! 2. The image is read once, in order. What is new is packed, and packs are put there as they become full.
//! 3. The image must be in the state still in which reading began.
//! 4. Places, patches and map are put there, each under the hash of its content; then the head.
//! 5. All packs must be there still. Then the head of the newest version becomes the newest.
//!
//! Guaranteed: a version that has a head is whole, whenever this ends, and however many publish at once.
//! What was put there for a version that got no head is of nobody; [`keep`](crate::store::keep) removes it.

mod base;
mod blocks;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::confinement::NamedPath;
use crate::error::{Again, Error, Result, Stop};
use crate::hashmap::map_file::{MapWriter, nameless};
use crate::hashmap::{self, Batch, Block, Grid, Item, MapEntry};
use crate::options::BlockSize;
use crate::remote;
use crate::report::{Event, Phase, Reporter};
use crate::scan::{self, At, FileImage, FileState};
use crate::store::fetched::FetchedVersion;
use crate::store::head::{Digest, Head, PatchesHead, Proven, SealedHead, Subject};
use crate::store::keep::{self, Kept};
use crate::store::name::{ImageName, Kind, Version};
use crate::store::objects::{Content, WritableObjects};
use crate::store::patches::PatchesWriter;
use crate::store::places;
use crate::store::signature;
use base::{Base, Candidate, PatchOver};
pub use blocks::Counts;
use blocks::{BlockWriter, KnownBlocks, Stream, packs_there};

/// How a version is published.
#[derive(Debug, Clone)]
pub struct PublishOptions {
    /// Its name. `None`: the time, in UTC.
    pub version: Option<Version>,
    /// The unit of comparison.
    pub block_size: BlockSize,
    /// False: do not ask for holes, read everything.
    pub hole_map: bool,
    /// How hard zstd tries.
    pub level: i32,
    /// The image lies there as it is: map and head alone.
    pub raw: bool,
    /// The key that signs the head, for ssh-keygen.
    pub sign: Option<std::path::PathBuf>,
}

/// What was published.
#[derive(Debug, Clone)]
pub struct Published {
    /// What the version is.
    pub head: Head,
    /// It was there already.
    pub is_old: bool,
    /// What was written of blocks.
    pub counts: Counts,
    /// Bytes of all objects that were written.
    pub stored: u64,
    /// How many blocks have a patch.
    pub patches: u64,
}

/// Publishes an image.
///
/// # Errors
///
/// When the image cannot be read or changes meanwhile, and when the store cannot be read or written: then
/// there is no new version, unless the error says so.
pub fn publish(
    image: &Path,
    (objects, name): (&dyn WritableObjects, &ImageName),
    options: &PublishOptions,
    reporter: &dyn Reporter,
) -> Result<Published> {
    let (file, length) = scan::open_image(&NamedPath::here(image))?;
    let (state, settled) = FileState::settled(&file).map_err(Error::file("look at", image))?;
    if !settled {
        reporter.event(Event::Warning(&crate::source::doubt(image)));
    }
    let grid = Grid { length, block: options.block_size };
    let allocated =
        file.metadata().map_or(0, |metadata| 512 * std::os::unix::fs::MetadataExt::blocks(&metadata));
    let data = scan::may_hold(allocated, length);
    let source = FileImage::new(file, options.hole_map).sparing_cache_for(data);
    reporter.event(Event::Found(data));
    let kept = keep::kept_versions(objects, name)?;
    let publishing = Publishing { image, source: &source, state, grid, objects, name, options, reporter };
    publishing.refuse_known_version()?;
    if options.raw { publishing.raw(&kept) } else { publishing.packed(&kept) }
}

/// What is being published.
struct Publishing<'a> {
    image: &'a Path,
    source: &'a FileImage,
    state: FileState,
    grid: Grid,
    objects: &'a dyn WritableObjects,
    name: &'a ImageName,
    options: &'a PublishOptions,
    reporter: &'a dyn Reporter,
}

/// What became known of the image as it was read.
struct Read {
    map: File,
    proven: Proven,
    root: hashmap::Hash,
    data: u64,
}

fn working<T>(result: io::Result<T>) -> Result<T> {
    result.map_err(Error::file("write a working file below", std::env::temp_dir()))
}

/// The hash of a file, and how long it is.
fn proven(file: &File) -> Result<Proven> {
    let mut hasher = blake3::Hasher::new();
    let length = working(io::copy(&mut At::new(file, 0), &mut hasher))?;
    Ok(Proven { digest: Digest(*hasher.finalize().as_bytes()), length })
}

impl Publishing<'_> {
    /// The image in packs.
    fn packed(&self, kept: &[Kept]) -> Result<Published> {
        let condemned = keep::condemned_packs(self.objects, self.name)?;
        let there = packs_there(self.objects, self.name)?;
        let is_usable = |pack: &places::PackId| there.contains(pack) && !condemned.contains(pack);
        let versions = self.fetch(kept)?;
        let known = self.known(&versions, &is_usable)?;
        let base = versions.first().filter(|version| version.grid().block == self.grid.block);
        let mut base = base
            .map(|version| Base::new((self.objects, self.name), version, self.grid.length))
            .transpose()?;
        let level = self.options.level;
        let mut writer =
            BlockWriter::new((self.objects, self.name), level, known, (&condemned, there.clone()))?;
        let mut patches = working(PatchesWriter::new(level))?;
        let mut patched = 0;
        let read = self.read(|batch, first| {
            let over = self.patches_over(batch, first, (&mut writer, &is_usable), base.as_mut())?;
            patched += self.add(batch, first, &over, &mut writer, &mut patches)?;
            writer.write()
        })?;
        if let Some(same) = self.same_as_newest(kept, &read) {
            // Whoever published it may have been killed before this.
            self.put_newest()?;
            return Ok(same);
        }
        let (packs, runs, counts) = writer.finish()?;
        let places = self.put_places(&packs, &runs)?;
        let patches = self.put_patches(patches)?;
        let map = self.name.object(Kind::Map, &read.proven.digest.name());
        self.objects.put(&map, Content::File(&read.map))?;
        let extra = patches.as_ref().map_or(0, |(_, length)| *length);
        let stored = counts.stored + places.length + read.proven.length + extra;
        let head = self.head(kept, &read, Some(places), patches.map(|(head, _)| head))?;
        let line = self.seal(&head)?;
        let version = Version::new(head.version())?;
        self.objects.put(&self.name.version(&version), Content::Bytes(&line))?;
        self.check_packs(&packs, &version)?;
        self.put_newest()?;
        let stored = stored + 2 * line.len() as u64;
        Ok(Published { head, is_old: false, counts, stored, patches: patched })
    }

    /// The image as it lies there.
    fn raw(&self, kept: &[Kept]) -> Result<Published> {
        let plain = self.name.to_string();
        if self.objects.length(&plain)? != Some(self.grid.length) {
            let why = "is not there with the length of the image: --raw is for an image that a web server has as it is; \
                       put it there first, or leave --raw out";
            return Err(Error::refused(self.objects.address(&plain), why));
        }
        let read = self.read(|_, _| Ok(()))?;
        self.objects.put(&self.name.plain_map(), Content::File(&read.map))?;
        let head = self.head(kept, &read, None, None)?;
        let line = self.seal(&head)?;
        self.objects.put(&self.name.newest(), Content::Bytes(&line))?;
        let stored = read.proven.length + line.len() as u64;
        Ok(Published { head, is_old: false, counts: Counts::default(), stored, patches: 0 })
    }

    /// The versions that are there in packs, the newest first.
    fn fetch(&self, kept: &[Kept]) -> Result<Vec<FetchedVersion>> {
        let packed = kept.iter().filter(|kept| kept.head.places.is_some());
        packed.map(|kept| FetchedVersion::fetch(self.objects, self.name, kept.head.clone())).collect()
    }

    /// Which blocks are where.
    fn known(
        &self,
        versions: &[FetchedVersion],
        is_usable: &dyn Fn(&places::PackId) -> bool,
    ) -> Result<KnownBlocks> {
        let mut known = KnownBlocks::default();
        for version in versions.iter().filter(|version| version.grid().block == self.grid.block) {
            let mut blocks = version.blocks()?;
            while let Some(block) = blocks.advance()? {
                if let (MapEntry::Data { hash, .. }, Some((pack, place))) = (&block.entry, block.place)
                    && is_usable(&pack)
                {
                    known.add(hash, pack, place);
                }
            }
        }
        Ok(known)
    }

    /// Reads the image and writes its map; each batch is told, with its first block.
    fn read(&self, mut each: impl FnMut(&Batch, u64) -> Result<()>) -> Result<Read> {
        let mut map = working(nameless().and_then(|file| MapWriter::new(BufWriter::new(file), &self.grid)))?;
        let (mut index, mut data, mut stopped) = (0, 0, false);
        let mapped = hashmap::map_image(self.source, &self.grid, |batch| {
            let first = index;
            for entry in MapEntry::of(&batch.items) {
                if let MapEntry::Data { pages, .. } = entry {
                    data += self.grid.masked_bytes(index, pages);
                }
                index += entry.blocks();
                working(map.add(&entry)).map_err(Stop::Taken)?;
            }
            each(batch, first).map_err(Stop::Taken)?;
            self.reporter.event(Event::Done(Phase::Sending, batch.bytes_read as u64));
            stopped = remote::is_interrupted();
            Ok(!stopped)
        });
        mapped.map_err(|stop: Stop| stop.or_read(Error::file("read", self.image)))?;
        if stopped {
            return Err(Error::Interrupted(Again::StartsAnew));
        }
        if !self.state.is_still(self.source.file()) {
            let why = "changed while it was read, and is not published: publish it when nothing writes to it, or from a \
                       snapshot";
            return Err(Error::refused(self.image, why));
        }
        let (output, root) = working(map.finish())?;
        let map = working(output.into_inner().map_err(io::IntoInnerError::into_error))?;
        Ok(Read { proven: proven(&map)?, map, root, data })
    }

    /// What the new blocks of a batch can be made of, by their indices. One that the version before has in
    /// the same place is not new, however many blocks there are.
    fn patches_over(
        &self,
        batch: &Batch,
        first: u64,
        (writer, is_usable): (&mut BlockWriter, &dyn Fn(&places::PackId) -> bool),
        base: Option<&mut Base>,
    ) -> Result<Vec<(u64, PatchOver)>> {
        let Some(base) = base else { return Ok(Vec::new()) };
        let mut candidates = Vec::new();
        let mut blocks = Vec::new();
        for (index, block) in data_blocks(batch, first) {
            if !writer.has(&block.hash)
                && let Some(before) = base.at(index)?
            {
                if let (MapEntry::Data { hash, .. }, Some((pack, place))) = (&before.entry, before.place)
                    && *hash == block.hash
                    && is_usable(&pack)
                {
                    writer.add_near(hash, pack, place);
                    continue;
                }
                candidates.push(Candidate { index, pages: block.data, before });
                blocks.push((index, block));
            }
        }
        let data = |candidate: &Candidate| {
            let at = blocks.partition_point(|(index, _)| *index < candidate.index);
            batch.data_of(&self.grid, candidate.index, blocks[at].1).collect::<Vec<_>>().into_iter()
        };
        let over = base.compare(&candidates, data);
        let found = candidates.iter().zip(over);
        Ok(found.filter_map(|(candidate, over)| Some((candidate.index, over?))).collect())
    }

    /// Hands the blocks of a batch on. Returns how many got a patch.
    fn add(
        &self,
        batch: &Batch,
        first: u64,
        over: &[(u64, PatchOver)],
        writer: &mut BlockWriter,
        patches: &mut PatchesWriter,
    ) -> Result<u64> {
        let (mut over, mut patched) = (over.iter().peekable(), 0);
        for (index, block) in data_blocks(batch, first) {
            let patch = over.next_if(|(of, _)| *of == index).map(|(_, patch)| patch);
            if writer.has(&block.hash) {
                writer.add_known(&block.hash, self.grid.masked_bytes(index, block.data) as u32);
                continue;
            }
            let patch = patch.filter(|_| patches.has_room());
            let stream = if patch.is_some() { Stream::Patched } else { Stream::Whole };
            writer.add_new(stream, &block.hash, batch.data_of(&self.grid, index, block));
            if let Some(PatchOver { base, pages }) = patch {
                let data = batch.data_of(&self.grid, index, block).collect::<Vec<_>>().concat();
                let bytes = base::pages_of(&self.grid, index, block, &data, *pages);
                working(patches.add(index, &hashmap::key(base), *pages, &bytes))?;
                patched += 1;
            }
        }
        Ok(patched)
    }

    /// The newest version, if it is this image.
    fn same_as_newest(&self, kept: &[Kept], read: &Read) -> Option<Published> {
        let is_wanted = |kept: &&Kept| {
            let is_signed = self.options.sign.is_none() || !kept.sealed.signature.is_empty();
            self.options.version.is_none() && is_signed && kept.head.root.0 == read.root
        };
        let newest = kept.first().filter(is_wanted)?;
        let (head, counts) = (newest.head.clone(), Counts::default());
        Some(Published { head, is_old: true, counts, stored: 0, patches: 0 })
    }

    fn put_places(&self, packs: &[places::PackId], runs: &File) -> Result<Proven> {
        let mut whole = working(nameless())?;
        working(whole.write_all(&places::head_of(packs)))?;
        working(io::copy(&mut At::new(runs, 0), &mut whole))?;
        let proven = proven(&whole)?;
        self.objects.put(&self.name.object(Kind::Places, &proven.digest.name()), Content::File(&whole))?;
        Ok(proven)
    }

    fn put_patches(&self, patches: PatchesWriter) -> Result<Option<(PatchesHead, u64)>> {
        let Some((index, whole)) = working(patches.finish())? else { return Ok(None) };
        let all = proven(&whole)?;
        self.objects.put(&self.name.object(Kind::Patches, &all.digest.name()), Content::File(&whole))?;
        let digest = Digest(*blake3::hash(&index).as_bytes());
        let index = Proven { digest, length: index.len() as u64 };
        Ok(Some((PatchesHead { object: all.digest, index }, all.length)))
    }

    fn head(
        &self,
        kept: &[Kept],
        read: &Read,
        places: Option<Proven>,
        patches: Option<PatchesHead>,
    ) -> Result<Head> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let newest = keep::newest(self.objects, self.name).ok().flatten();
        let newest = newest.into_iter().chain(kept.first().cloned());
        let last = newest.map(|kept| kept.head.time).max().unwrap_or(0);
        let time = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).max(last.saturating_add(1));
        // Another publisher may have been faster.
        self.refuse_known_version()?;
        let version = self.options.version.clone().map_or_else(|| Version::of_time(time), Ok)?;
        let modified = self.state.times().map(|times| (times[0], times[1] as u32));
        let subject = Subject {
            name: self.name,
            version: &version,
            time,
            modified,
            grid: self.grid,
            data: read.data,
            root: read.root,
        };
        Ok(Head::new(subject, read.proven, places, patches))
    }

    /// What is published stays as it is.
    fn refuse_known_version(&self) -> Result<()> {
        let Some(version) = &self.options.version else { return Ok(()) };
        if self.objects.length(&self.name.version(version))?.is_none() {
            return Ok(());
        }
        let why = format!(
            "has a version {version} already, and what is published stays as it is: give another name"
        );
        Err(Error::refused(self.objects.address(&self.name.to_string()), why))
    }

    fn seal(&self, head: &Head) -> Result<Vec<u8>> {
        let line = head.to_line();
        let signature = self.options.sign.as_deref().map(|key| signature::sign(&line, key)).transpose()?;
        Ok(SealedHead { line, signature: signature.unwrap_or_default() }.to_bytes())
    }

    /// What removes what nobody names may have run meanwhile.
    fn check_packs(&self, packs: &[places::PackId], version: &Version) -> Result<()> {
        let there = packs_there(self.objects, self.name)?;
        // A prune that does not know of this version yet has said so before it removes anything.
        let condemned = keep::condemned_packs(self.objects, self.name)?;
        if packs.iter().all(|pack| there.contains(pack) && !condemned.contains(pack)) {
            return Ok(());
        }
        self.objects.remove(&self.name.version(version))?;
        let why = "lost a pack while the version was being published (did a prune with a short --grace run?), and the \
                   version was taken back: publish it again";
        Err(Error::refused(self.objects.address(&self.name.to_string()), why))
    }

    /// Who publishes at the same time does the same, and the last one of all has the newest.
    fn put_newest(&self) -> Result<()> {
        let is_raw = |kept: &Kept| kept.head.places.is_none();
        loop {
            let Some(newest) = keep::kept_versions(self.objects, self.name)?.into_iter().next() else {
                return Ok(());
            };
            // One that cannot be read is replaced.
            let there = keep::newest(self.objects, self.name).ok().flatten();
            if there.is_some_and(|there| there.head.time >= newest.head.time && !is_raw(&there)) {
                return Ok(());
            }
            self.objects.put(&self.name.newest(), Content::Bytes(&newest.sealed.to_bytes()))?;
        }
    }
}

/// The blocks of a batch that are not zero, with their indices.
fn data_blocks(batch: &Batch, first: u64) -> impl Iterator<Item = (u64, &Block)> {
    let mut next = first;
    let blocks = batch.items.iter().filter_map(move |item| {
        let index = next;
        next += item.blocks();
        if let Item::Block(block) = item { Some((index, block)) } else { None }
    });
    blocks.filter(|(_, block)| block.data != 0)
}
