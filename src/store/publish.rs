//! Publishes a version of an image: packs of the blocks that the store lacks, patches against the version
//! before, places, map, and last the head, with which the version is there.
//!
//! 1. The heads, maps and places of the versions that the store has tell which blocks it has; with a key that
//!    signs, of those alone that it signed. Packs that are condemned count for none.
//! 2. The image is read once, in order. What is new is packed, and packs are put there as they become full.
//! 3. The image must be in the state still in which reading began.
//! 4. Places, patches and map are put there, under a name that nothing had before. All of it must be there
//!    still; then the head is put there, if no other version got its name meanwhile.
//! 5. All of it must be there still, or the version is taken back. Then the head of the newest version
//!    becomes the newest.
//!
//! Guaranteed: all that a version with a head names is there, whenever this ends, and however many publish at
//! once. What this wrote is what it should be; what earlier versions are built of is believed to hold what they
//! say, where it is long enough: [`check`](crate::store::check) reads it. What was put there for a version that
//! got no head is of nobody; [`keep`](crate::store::keep) removes it.

mod base;
mod blocks;
mod built;
mod ending;
mod plain;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::confinement::NamedPath;
use crate::error::{Again, Error, Result, Stop, Warning, printable};
use crate::hashmap::map_file::{MapWriter, nameless, nameless_place};
use crate::hashmap::{self, Batch, Block, Grid, Item, MapEntry};
use crate::options::BlockSize;
use crate::remote;
use crate::report::{Event, Phase, Reporter};
use crate::scan::{self, At, FileImage, FileState};
use crate::store::head::{Digest, Head, PatchesHead, Proven};
use crate::store::keep::{self, Kept};
use crate::store::name::{ImageName, Kind, ObjectId, Version};
use crate::store::objects::{Content, WritableObjects};
use crate::store::patches::PatchesWriter;
use crate::store::places;
use crate::store::signature::Signer;
use base::{Base, Candidate, PatchOver};
pub use blocks::Counts;
use blocks::{BlockWriter, Stream, packs_there};
use built::Built;
use ending::HeadPut;

/// How often an image is published of which a prune took something meanwhile.
const MOST_LOST: u32 = 3;
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
    /// What signs the head.
    pub sign: Option<Signer>,
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
    let (file, _) = scan::open_image(&NamedPath::here(image))?;
    let (state, settled) = FileState::settled(&file).map_err(Error::file("look at", image))?;
    if !settled {
        let what = "may be changed unseen while it is read: publish it when nothing writes to it, or from a snapshot";
        reporter.event(Event::Warning(&Warning::about(image, format!("{} {what}", printable(image)))));
    }
    // That which the state has: it may have grown since it was opened.
    let length = state.length;
    let grid = Grid { length, block: options.block_size };
    let allocated =
        file.metadata().map_or(0, |metadata| 512 * std::os::unix::fs::MetadataExt::blocks(&metadata));
    let data = scan::may_hold(allocated, length);
    let source = FileImage::new(file, options.hole_map).sparing_cache_for(data);
    reporter.event(Event::Found(data));
    let versions = keep::versions(objects, name)?;
    for damaged in versions.damaged {
        reporter.event(Event::Warning(&Warning::new(format!("passed over: {damaged}"))));
    }
    let publishing = Publishing { image, source: &source, state, grid, objects, name, options, reporter };
    // Before all is read.
    publishing.last(&versions.kept)?;
    if options.raw { publishing.raw(&versions.kept) } else { publishing.packed(versions.kept) }
}

impl Published {
    fn already(kept: &Kept) -> Published {
        Published { head: kept.head.clone(), is_old: true, counts: Counts::default(), stored: 0, patches: 0 }
    }
}

/// Whether a pack has a place still.
type IsUsable<'a> = dyn Fn(&places::PackId, &places::Place) -> bool + 'a;

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

/// What became of an image in packs.
enum Packed {
    Published(Box<Published>),
    /// A prune took this object of it.
    Lost(String),
    /// It was this version, which is the newest no more, or another one since.
    Overtaken,
}

/// What became known of the image as it was read.
struct Read {
    map: File,
    proven: Proven,
    root: hashmap::Hash,
    data: u64,
}

fn working<T>(result: io::Result<T>) -> Result<T> {
    result.map_err(Error::file("write a working file below", nameless_place()))
}

impl Publishing<'_> {
    /// The image in packs. What a prune takes meanwhile, because it forgets the version that has it, is
    /// published anew.
    fn packed(&self, kept: Vec<Kept>) -> Result<Published> {
        let (mut kept, mut attempts) = (kept, 1);
        loop {
            match self.pack(&kept)? {
                Packed::Published(published) => return Ok(*published),
                // Somebody else has got on.
                Packed::Overtaken => {}
                Packed::Lost(lost) if attempts == MOST_LOST => return Err(self.is_lost(&lost)),
                Packed::Lost(lost) => {
                    attempts += 1;
                    let lost = self.objects.address(&lost);
                    let what = format!(
                        "{lost} went, or is about to, by a prune that ran meanwhile: all is looked at anew"
                    );
                    self.reporter.event(Event::Warning(&Warning::new(what)));
                }
            }
            kept = keep::versions(self.objects, self.name)?.kept;
        }
    }

    /// The same once.
    fn pack(&self, kept: &[Kept]) -> Result<Packed> {
        let same = self.may_be_same(kept)?;
        let condemned_objects = keep::condemned_objects(self.objects, self.name)?;
        let condemned = keep::packs_of(&condemned_objects, self.name);
        let there = packs_there(self.objects, self.name)?;
        let is_usable = |pack: &places::PackId, place: &places::Place| {
            there.get(pack).is_some_and(|length| *length >= place.frame().end) && !condemned.contains(pack)
        };
        let Built { known, before, whole } = self.known(kept, &is_usable, &condemned_objects)?;
        let base = before.map(|version| Base::new((self.objects, self.name), &version, self.grid.length));
        let mut base = base.transpose()?;
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
        let is_same = |same: &&Kept| same.head.root.0 == read.root && writer.counts.blocks == 0;
        if let Some(same) = same.filter(is_same)
            && let Some(packs) = whole.get(&same.head.id)
        {
            return self.is_there_still(same, packs, kept);
        }
        let (packs, runs, counts) = writer.finish()?;
        let id = ObjectId::unforeseen();
        let places = self.put_places(id, &packs, &runs)?;
        let patches = self.put_patches(id, patches)?;
        self.objects.put(&self.name.object(Kind::Map, &id.name()), Content::File(&read.map))?;
        let extra = patches.as_ref().map_or(0, |(_, length)| *length);
        let patches = patches.map(|(head, _)| head);
        let mut head = self.head(kept, &read, id, Some(places), patches)?;
        let sealed = loop {
            match self.put_head(&head, &packs)? {
                HeadPut::There(sealed) => break sealed,
                HeadPut::Lost(lost) => return Ok(Packed::Lost(lost)),
                // Somebody published at the same time, to the nanosecond.
                HeadPut::NameIsTaken if self.options.version.is_none() => head = head.a_moment_later(),
                HeadPut::NameIsTaken => return Err(self.is_known(head.version())),
            }
        };
        ending::name_newest(self.store(), kept.to_vec()).inspect_err(|_| {
            let what = format!(
                "version {} is there, and is not named the newest yet: publish the image once more",
                head.version()
            );
            self.reporter.event(Event::Warning(&Warning::new(what)));
        })?;
        let stored = counts.stored + places.length + read.proven.length + extra;
        let stored = stored + 2 * sealed.to_bytes().len() as u64;
        let published = Published { head, is_old: false, counts, stored, patches: patched };
        Ok(Packed::Published(Box::new(published)))
    }

    /// What was found to be this image, if it is that still: reading it took its time.
    fn is_there_still(&self, same: &Kept, packs: &[places::PackId], kept: &[Kept]) -> Result<Packed> {
        // Whoever published it may have been killed before this.
        ending::name_newest(self.store(), kept.to_vec())?;
        let now = keep::versions(self.objects, self.name)?.kept;
        if self.may_be_same(&now)?.is_none_or(|there| there.sealed != same.sealed) {
            return Ok(Packed::Overtaken);
        }
        Ok(match ending::lost(self.store(), &same.head, packs)? {
            Some(lost) => Packed::Lost(lost),
            None => Packed::Published(Box::new(Published::already(same))),
        })
    }

    fn store(&self) -> (&dyn WritableObjects, &ImageName) {
        (self.objects, self.name)
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
            return Err(Error::Interrupted(Again::Puts));
        }
        if !self.state.is_still(self.source.file()) {
            let why = "changed while it was read, and is not published: publish it when nothing writes to it, or from a \
                       snapshot";
            return Err(Error::refused(self.image, why));
        }
        let (output, root) = working(map.finish())?;
        let map = working(output.into_inner().map_err(io::IntoInnerError::into_error))?;
        Ok(Read { proven: working(Proven::of(&map))?, map, root, data })
    }

    /// What the new blocks of a batch can be made of, by their indices. One that the version before has in
    /// the same place is not new, however many blocks there are.
    fn patches_over(
        &self,
        batch: &Batch,
        first: u64,
        (writer, is_usable): (&mut BlockWriter, &IsUsable),
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
                    && is_usable(&pack, &place)
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
            if writer.add_known(&block.hash, self.grid.masked_bytes(index, block.data) as u32) {
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

    /// The version that is there already if it is this image: of this name, or the newest.
    fn may_be_same<'k>(&self, kept: &'k [Kept]) -> Result<Option<&'k Kept>> {
        let same = match &self.options.version {
            None => {
                // It may have been published as it lies there since.
                let told = keep::newest(self.objects, self.name).ok().flatten();
                let told = told.filter(|told| told.head.places.is_none());
                kept.first().filter(|kept| told.is_none_or(|told| told.head.time < kept.head.time))
            }
            Some(version) => {
                let is_named = |kept: &&Kept| kept.head.version() == version.to_string();
                let told = keep::newest(self.objects, self.name).ok().flatten();
                if told.as_ref().filter(is_named).is_some_and(|told| told.head.places.is_none()) {
                    return Err(self.is_known(&version.to_string()));
                }
                let known = kept.iter().find(is_named);
                // A publisher that was killed may have left it at that, with another one named the newest.
                if known.is_some_and(|known| known.head.grid() != Some(self.grid)) {
                    return Err(self.is_known(&version.to_string()));
                }
                known
            }
        };
        Ok(same.filter(|same| self.is_signed_so(same)))
    }

    /// Whether a version is signed by the key that is to sign, if there is one.
    fn is_signed_so(&self, kept: &Kept) -> bool {
        let Kept { sealed, .. } = kept;
        self.options.sign.as_ref().is_none_or(|key| key.has_signed(&sealed.line, &sealed.signature))
    }

    fn put_places(&self, id: ObjectId, packs: &[places::PackId], runs: &File) -> Result<Proven> {
        let mut whole = working(nameless())?;
        working(whole.write_all(&places::head_of(packs)))?;
        working(io::copy(&mut At::new(runs, 0), &mut whole))?;
        let proven = working(Proven::of(&whole))?;
        self.objects.put(&self.name.object(Kind::Places, &id.name()), Content::File(&whole))?;
        Ok(proven)
    }

    fn put_patches(&self, id: ObjectId, patches: PatchesWriter) -> Result<Option<(PatchesHead, u64)>> {
        let Some((index, whole)) = working(patches.finish())? else { return Ok(None) };
        let all = working(Proven::of(&whole))?;
        self.objects.put(&self.name.object(Kind::Patches, &id.name()), Content::File(&whole))?;
        let digest = Digest(*blake3::hash(&index).as_bytes());
        let index = Proven { digest, length: index.len() as u64 };
        Ok(Some((PatchesHead { object: all.digest, index }, all.length)))
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::report::Silent;
    use crate::store::check::{check, check_newest};
    use crate::store::keep::meanwhile::{Meanwhile, Op, image, put};
    use crate::store::keep::{PruneRules, prune, versions};
    use crate::store::objects::Directory;

    /// The version that is there already goes while the image is read, or is the newest no more.
    #[test]
    fn what_is_there_already_is_there_when_that_is_said() {
        for (version, prunes) in [(Some("v1"), true), (None, true), (None, false)] {
            let (dir, name) = (tempfile::tempdir().unwrap(), ImageName::new("disk").unwrap());
            std::fs::create_dir(dir.path().join("store")).unwrap();
            let store = Directory::open(&dir.path().join("store")).unwrap();
            let (one, other) = (image(dir.path(), 1), image(dir.path(), 2));
            put(&one, (&store, &name), Some("v1"));
            let once = AtomicBool::new(false);
            let meanwhile = Meanwhile::new(&store, |op, prefix| {
                if op == Op::Listed && prefix.ends_with("/packs/") && !once.swap(true, Ordering::Relaxed) {
                    put(&other, (&store, &name), Some("v2"));
                    let rules =
                        PruneRules { keep: 1, older_than: None, grace: Duration::ZERO, dry_run: false };
                    let _ = prunes.then(|| prune((&store, &name), &rules).unwrap());
                }
                Ok(())
            });
            let published = put(&one, (&meanwhile, &name), version);
            assert!(!published.is_old, "{version:?} {prunes}");
            let kept = versions(&store, &name).unwrap().whole().unwrap();
            assert_eq!(kept[0].head, published.head, "{version:?} {prunes}");
            for kept in &kept {
                check((&store, &name), kept, &Silent).unwrap();
            }
            assert!(check_newest((&store, &name), &kept).unwrap().is_none());
        }
    }
}
