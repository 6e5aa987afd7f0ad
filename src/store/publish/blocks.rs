//! The blocks of the version that is being published: those that the store lacks go into packs, and the
//! place of each is told in the order of the map.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::hashmap::map_file::nameless;
use crate::hashmap::{self, Hash, Key, MapEntry};
use crate::store::fetched::FetchedVersion;
use crate::store::name::{ImageName, Kind};
use crate::store::objects::{Content, WritableObjects};
use crate::store::pack::{self, ENOUGH_RAW, PackWriter};
use crate::store::places::{PackId, Place, PlacesWriter};
use crate::store::publish::{IsUsable, working};

/// Blocks whose places are known, at most: they fill a table of 2^21 places, about 100 MiB, to 7/8, and would
/// make it twice as large. What is beyond that is written again.
const MOST_KNOWN: usize = 7 << 18;
/// Places that wait for a frame to be closed; beyond that frames are closed early.
const MOST_WAITING: usize = 16 << 10;

/// A kind of new blocks: each has packs of its own, so that who wants the one need not have the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Everybody wants them who has not got them.
    Whole = 0,
    /// There is a patch for each.
    Patched = 1,
}

impl Stream {
    /// Bytes that close a frame. Who wants a block for which there is a patch that does not fit wants it alone,
    /// mostly.
    fn enough(self) -> usize {
        match self {
            Stream::Whole => ENOUGH_RAW,
            Stream::Patched => ENOUGH_RAW / 4,
        }
    }
}

/// In which pack a block lies: of an earlier version, or of this one, by its number among these.
#[derive(Debug, Clone, Copy)]
enum Lies {
    Earlier(u32),
    Own(u32),
}

/// Which block lies where.
#[derive(Default)]
pub struct KnownBlocks {
    places: HashMap<Key, (Lies, Place)>,
    /// The packs of earlier versions.
    packs: Vec<PackId>,
    numbers: HashMap<PackId, u32>,
    /// Blocks of the batch at hand that the version before has in the same place.
    near: HashMap<Key, (Lies, Place)>,
}

impl KnownBlocks {
    /// A block of an earlier version lies there.
    fn add(&mut self, hash: &Hash, pack: PackId, place: Place) {
        let number = self.number(pack);
        self.insert(hash, Lies::Earlier(number), place);
    }

    /// All blocks of an earlier version that can be had. Returns whether that is so for all.
    ///
    /// # Errors
    ///
    /// When its map or its places are damaged.
    pub fn add_version(&mut self, version: &FetchedVersion, is_usable: &IsUsable) -> Result<bool> {
        let (mut blocks, mut is_whole) = (version.blocks()?, true);
        while let Some(block) = blocks.advance()? {
            let (MapEntry::Data { hash, .. }, Some((pack, place))) = (&block.entry, block.place) else {
                continue;
            };
            if is_usable(&pack, &place) {
                self.add(hash, pack, place);
            } else {
                is_whole = false;
            }
        }
        Ok(is_whole)
    }

    /// Whether no more blocks can be known.
    pub fn is_full(&self) -> bool {
        self.places.len() >= MOST_KNOWN
    }

    fn number(&mut self, pack: PackId) -> u32 {
        *self.numbers.entry(pack).or_insert_with(|| {
            self.packs.push(pack);
            self.packs.len() as u32 - 1
        })
    }

    fn insert(&mut self, hash: &Hash, lies: Lies, place: Place) {
        if !self.is_full() {
            self.places.entry(hashmap::key(hash)).or_insert((lies, place));
        }
    }

    fn find(&self, hash: &Hash) -> Option<(Lies, Place)> {
        let key = hashmap::key(hash);
        self.places.get(&key).or_else(|| self.near.get(&key)).copied()
    }
}

/// A frame that is being filled, or was, and what it becomes part of.
#[derive(Default)]
struct Frame {
    raw: Vec<u8>,
    /// Its blocks, and where each begins.
    blocks: Vec<(Hash, u32)>,
}

/// The frames and packs of one kind.
struct StreamOfPacks {
    frame: Frame,
    /// Frames that are full, to be packed.
    full: Vec<Frame>,
    /// How many frames were closed before.
    closed: u64,
    /// Those that were written and of which places wait; the number of the first of them.
    written: VecDeque<Written>,
    first_written: u64,
    pack: Option<(u32, PackWriter)>,
}

/// Where a frame lies.
#[derive(Clone, Copy)]
struct Written {
    pack: u32,
    offset: u64,
    stored: u32,
}

/// The place of a block, as far as it is known.
enum Waiting {
    Known(Place, u32),
    InFrame { stream: Stream, frame: u64, raw: u32, bytes: u32 },
}

/// What was written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Blocks that the store had not.
    pub blocks: u64,
    /// Bytes of data in them.
    pub data: u64,
    /// Bytes of their packs.
    pub stored: u64,
}

/// See the module.
pub struct BlockWriter<'a> {
    objects: &'a dyn WritableObjects,
    name: &'a ImageName,
    level: i32,
    /// Names that no pack may have.
    taken: &'a HashSet<PackId>,
    known: KnownBlocks,
    streams: [StreamOfPacks; 2],
    waiting: VecDeque<Waiting>,
    places: PlacesWriter<File>,
    /// The packs of this version, by the numbers in its places. `None`: it is still being written.
    packs: Vec<Option<PackId>>,
    numbers: HashMap<PackId, u32>,
    /// Packs that are there, and how long they are.
    there: HashMap<PackId, u64>,
    /// What was written.
    pub counts: Counts,
}

impl<'a> BlockWriter<'a> {
    /// For an image of whose blocks `known` are there already. `taken`: names that no pack may have; `there`: packs
    /// that are there.
    ///
    /// # Errors
    ///
    /// When there is no room for working files.
    pub fn new(
        (objects, name): (&'a dyn WritableObjects, &'a ImageName),
        level: i32,
        known: KnownBlocks,
        (taken, there): (&'a HashSet<PackId>, HashMap<PackId, u64>),
    ) -> Result<BlockWriter<'a>> {
        let stream = || StreamOfPacks {
            frame: Frame::default(),
            full: Vec::new(),
            closed: 0,
            written: VecDeque::new(),
            first_written: 0,
            pack: None,
        };
        Ok(BlockWriter {
            objects,
            name,
            level,
            taken,
            known,
            streams: [stream(), stream()],
            waiting: VecDeque::new(),
            places: working(nameless().and_then(PlacesWriter::new))?,
            packs: Vec::new(),
            numbers: HashMap::new(),
            there,
            counts: Counts::default(),
        })
    }

    /// A block of the next batch lies there.
    pub fn add_near(&mut self, hash: &Hash, pack: PackId, place: Place) {
        let number = self.known.number(pack);
        self.known.near.insert(hashmap::key(hash), (Lies::Earlier(number), place));
    }

    /// Whether the store has a block.
    pub fn has(&self, hash: &Hash) -> bool {
        self.known.find(hash).is_some()
    }

    /// Adds the next block of the image if it lies in the store already. Returns whether it does.
    pub fn add_known(&mut self, hash: &Hash, bytes: u32) -> bool {
        let Some((lies, place)) = self.known.find(hash) else { return false };
        let pack = match lies {
            Lies::Earlier(number) => self.number(self.known.packs[number as usize]),
            Lies::Own(number) => number,
        };
        self.waiting.push_back(Waiting::Known(Place { pack, ..place }, bytes));
        true
    }

    /// The next block of the image is new.
    pub fn add_new<'b>(&mut self, stream: Stream, hash: &Hash, data: impl Iterator<Item = &'b [u8]>) {
        let of = &mut self.streams[stream as usize];
        let raw = of.frame.raw.len();
        data.for_each(|bytes| of.frame.raw.extend(bytes));
        let bytes = (of.frame.raw.len() - raw) as u32;
        of.frame.blocks.push((*hash, raw as u32));
        self.waiting.push_back(Waiting::InFrame { stream, frame: of.closed, raw: raw as u32, bytes });
        self.counts.blocks += 1;
        self.counts.data += u64::from(bytes);
        if of.frame.raw.len() >= stream.enough() {
            of.close_frame();
        }
    }

    /// Writes what is full.
    ///
    /// # Errors
    ///
    /// When working files or packs cannot be written.
    pub fn write(&mut self) -> Result<()> {
        self.known.near.clear();
        if self.waiting.len() > MOST_WAITING {
            self.streams.iter_mut().for_each(StreamOfPacks::close_frame);
        }
        for stream in [Stream::Whole, Stream::Patched] {
            self.write_frames(stream)?;
        }
        self.tell_places()
    }

    fn write_frames(&mut self, stream: Stream) -> Result<()> {
        let level = self.level;
        let full = std::mem::take(&mut self.streams[stream as usize].full);
        let packed: io::Result<Vec<_>> =
            full.par_iter().map(|frame| pack::compress(&frame.raw, level)).collect();
        for (frame, stored) in full.iter().zip(working(packed)?) {
            let of = &mut self.streams[stream as usize];
            let (number, writer) = match &mut of.pack {
                Some(pack) => pack,
                none => {
                    self.packs.push(None);
                    none.insert((self.packs.len() as u32 - 1, working(PackWriter::new())?))
                }
            };
            let offset = working(writer.add(&stored))?;
            let stored = stored.len() as u32;
            let (pack, is_enough) = (*number, writer.is_enough());
            of.written.push_back(Written { pack, offset, stored });
            for (hash, raw) in &frame.blocks {
                self.known.insert(hash, Lies::Own(pack), Place { pack, offset, stored, raw: *raw });
            }
            if is_enough {
                self.end_pack(stream)?;
            }
        }
        Ok(())
    }

    /// Puts the pack of a stream where it belongs.
    fn end_pack(&mut self, stream: Stream) -> Result<()> {
        let Some((number, writer)) = self.streams[stream as usize].pack.take() else { return Ok(()) };
        let (file, id) = working(writer.finish(|id| self.taken.contains(id)))?;
        let length = working(file.metadata())?.len();
        let object = self.name.object(Kind::Pack, &id.name());
        let is_there =
            self.there.insert(id, length) == Some(length) && pack_is(self.objects, &object, (id, length))?;
        if !is_there {
            self.objects.put(&object, Content::File(&file))?;
            self.counts.stored += length;
        }
        self.packs[number as usize] = Some(id);
        self.numbers.insert(id, number);
        Ok(())
    }

    /// Tells places as far as they are known.
    fn tell_places(&mut self) -> Result<()> {
        while let Some(next) = self.waiting.front() {
            let (place, bytes) = match *next {
                Waiting::Known(place, bytes) => (place, bytes),
                Waiting::InFrame { stream, frame, raw, bytes } => {
                    let of = &mut self.streams[stream as usize];
                    // Places of a stream wait in the order of its frames.
                    while of.first_written < frame && !of.written.is_empty() {
                        of.written.pop_front();
                        of.first_written += 1;
                    }
                    let Some(&Written { pack, offset, stored }) = of.written.front() else { return Ok(()) };
                    (Place { pack, offset, stored, raw }, bytes)
                }
            };
            self.waiting.pop_front();
            working(self.places.add(place, bytes))?;
        }
        Ok(())
    }

    /// The number of a pack of an earlier version among those of this one.
    fn number(&mut self, pack: PackId) -> u32 {
        *self.numbers.entry(pack).or_insert_with(|| {
            self.packs.push(Some(pack));
            self.packs.len() as u32 - 1
        })
    }

    /// Writes what is left. Returns the packs of the version, and the places in them.
    ///
    /// # Errors
    ///
    /// Those of [`BlockWriter::write`].
    pub fn finish(mut self) -> Result<(Vec<PackId>, File, Counts)> {
        self.streams.iter_mut().for_each(StreamOfPacks::close_frame);
        self.write()?;
        for stream in [Stream::Whole, Stream::Patched] {
            self.end_pack(stream)?;
        }
        // Of one that was not ended the number would be that of the next.
        let packs: Option<Vec<_>> = self.packs.into_iter().collect();
        let packs = working(packs.ok_or_else(|| io::Error::other("a pack has no end")))?;
        Ok((packs, working(self.places.finish())?, self.counts))
    }
}

impl StreamOfPacks {
    fn close_frame(&mut self) {
        if !self.frame.raw.is_empty() {
            self.full.push(std::mem::take(&mut self.frame));
            self.closed += 1;
        }
    }
}

/// Whether a pack that is there is what its name says.
fn pack_is(objects: &dyn WritableObjects, object: &str, (id, length): (PackId, u64)) -> Result<bool> {
    let mut hasher = blake3::Hasher::new();
    let read = objects.read_whole(object, length, &mut |bytes| {
        hasher.update(bytes);
        Ok(())
    });
    match read {
        Err(error) if is_damage(&error) => Ok(false),
        read => read.map(|()| pack::id_from(&hasher) == id),
    }
}

/// Whether an object is not there, or not what it should be: other errors may pass.
pub fn is_damage(error: &Error) -> bool {
    match error {
        Error::Protocol { .. } | Error::Refused { .. } => true,
        Error::File { source, .. } => source.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

/// The packs of an image, and how long they are.
///
/// # Errors
///
/// When they cannot be listed.
pub fn packs_there(objects: &dyn WritableObjects, name: &ImageName) -> Result<HashMap<PackId, u64>> {
    let prefix = name.all(Kind::Pack);
    let listed = objects.list(&prefix)?.into_iter();
    Ok(listed
        .filter_map(|object| Some((PackId::parse(object.name.strip_prefix(&prefix)?)?, object.length)))
        .collect())
}
