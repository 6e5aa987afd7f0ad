//! A version whose map and places were fetched and proven: its blocks, in order.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::hashmap::map_file::{MapError, StoredEntries, StoredMap, nameless};
use crate::hashmap::{Grid, MapEntry};
use crate::scan::At;
use crate::store::head::{Digest, Head, Proven};
use crate::store::name::{ImageName, Kind};
use crate::store::objects::Objects;
use crate::store::places::{PackId, Place, PlacesReader, read_packs};

/// See the module.
pub struct FetchedVersion {
    /// What it is.
    pub head: Head,
    map: StoredMap,
    map_address: String,
    places: Option<Arc<File>>,
    places_address: String,
}

/// Fetches an object to a file without a name.
///
/// # Errors
///
/// When it is not what was proven, or cannot be had or kept.
pub fn fetch(objects: &dyn Objects, name: &str, proven: &Proven) -> Result<File> {
    let failed = |error| Error::file("write a working file for", objects.address(name))(error);
    let mut file = nameless().map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    objects.read_whole(name, proven.length, &mut |bytes| {
        hasher.update(bytes);
        file.write_all(bytes).map_err(failed)
    })?;
    if *hasher.finalize().as_bytes() != proven.digest.0 {
        let what =
            "it is not what the head of its version names: it was damaged, or is being replaced".into();
        return Err(Error::Protocol { peer: objects.address(name), what });
    }
    Ok(file)
}

/// What is wrong with an object that is not what it should be.
pub fn damaged(address: &str, error: &io::Error) -> Error {
    Error::Protocol { peer: address.into(), what: format!("it is not what a store has there: {error}") }
}

fn map_error(address: &str) -> impl Fn(MapError) -> Error + '_ {
    move |error| match error {
        MapError::Read(error) => Error::file("read the map from", address)(error),
        MapError::Version(format) => {
            let what = format!(
                "it is a map of another version of holesync (format {format}): use the version that published it, or have \
                 the image published again"
            );
            Error::Protocol { peer: address.into(), what }
        }
        MapError::NoMap => Error::Protocol { peer: address.into(), what: "it is no map of an image".into() },
        MapError::Damaged(how) => {
            let what = format!("it is not the map of its image ({how}): it was damaged, or is another one");
            Error::Protocol { peer: address.into(), what }
        }
    }
}

impl FetchedVersion {
    /// Fetches map and places, and proves both by the head.
    ///
    /// # Errors
    ///
    /// When they are not what the head names, or cannot be had.
    pub fn fetch(objects: &dyn Objects, name: &ImageName, head: Head) -> Result<FetchedVersion> {
        let map_name = match &head.places {
            Some(_) => name.object(Kind::Map, &head.id.name()),
            None => name.plain_map(),
        };
        let map_address = objects.address(&map_name);
        let file = fetch(objects, &map_name, &head.map)?;
        let map = StoredMap::open(file, 0).map_err(map_error(&map_address))?;
        if Some(map.grid()) != head.grid() || *map.root() != head.root.0 {
            let what = "it is the map of another image than the head of its version names".into();
            return Err(Error::Protocol { peer: map_address, what });
        }
        let places_name = head.places.map(|_| name.object(Kind::Places, &head.id.name()));
        let places_address = objects.address(places_name.as_deref().unwrap_or_default());
        let places = match (&head.places, &places_name) {
            (Some(places), Some(name)) => Some(Arc::new(fetch(objects, name, places)?)),
            _ => None,
        };
        Ok(FetchedVersion { head, map, map_address, places, places_address })
    }

    /// An image that lies in a store as it is, of which there is a map alone: version and time are
    /// not known.
    ///
    /// # Errors
    ///
    /// When the map is none, or cannot be had.
    pub fn plain(
        objects: &dyn Objects,
        name: &ImageName,
        map: File,
        proven: Proven,
    ) -> Result<FetchedVersion> {
        let map_address = objects.address(&name.plain_map());
        let map = StoredMap::open(map, 0).map_err(map_error(&map_address))?;
        let data = VersionBlocks::of(&map, &map_address)?.data()?;
        let head = Head::plain(name, map.grid(), data, Digest(*map.root()), proven);
        Ok(FetchedVersion { head, map, map_address, places: None, places_address: String::new() })
    }

    /// Proves, before anything is done by them, that map and places are those of the image of this root hash:
    /// a head that nobody signed says nothing of them.
    ///
    /// # Errors
    ///
    /// When they are not.
    pub fn prove(&self) -> Result<()> {
        let (has, told) = (self.blocks()?.data()?, self.head.data);
        if has == told {
            return Ok(());
        }
        let what = format!("it has {has} bytes of data, and the head of its version says {told}");
        Err(Error::Protocol { peer: self.map_address.clone(), what })
    }

    /// What the image is laid out on.
    pub fn grid(&self) -> Grid {
        self.map.grid()
    }

    /// The map.
    pub fn map(&self) -> &StoredMap {
        &self.map
    }

    /// Its blocks from the first one on.
    ///
    /// # Errors
    ///
    /// When what was fetched is no map, or no places.
    pub fn blocks(&self) -> Result<VersionBlocks> {
        let blocks = VersionBlocks::of(&self.map, &self.map_address)?;
        let places = self.places.as_ref().map(|file| PlacesReader::new(At::new(Arc::clone(file), 0)));
        let places = places.transpose().map_err(|error| damaged(&self.places_address, &error))?;
        Ok(VersionBlocks { places, places_address: self.places_address.clone(), ..blocks })
    }

    /// The packs that it lies in.
    ///
    /// # Errors
    ///
    /// When what was fetched are no places.
    pub fn packs(&self) -> Result<Vec<PackId>> {
        let Some(places) = &self.places else { return Ok(Vec::new()) };
        packs_in(Arc::clone(places), &self.places_address)
    }
}

fn packs_in(places: Arc<File>, address: &str) -> Result<Vec<PackId>> {
    read_packs(&mut At::new(places, 0)).map_err(|error| damaged(address, &error))
}

/// The packs that a version lies in, of which nothing else is fetched.
///
/// # Errors
///
/// When its places are not what the head names, or cannot be had.
pub fn packs_of(objects: &dyn Objects, name: &ImageName, head: &Head) -> Result<Vec<PackId>> {
    let Some(places) = &head.places else { return Ok(Vec::new()) };
    let object = name.object(Kind::Places, &head.id.name());
    packs_in(Arc::new(fetch(objects, &object, places)?), &objects.address(&object))
}

/// A stretch of a version.
#[derive(Debug, Clone, Copy)]
pub struct VersionBlock {
    /// Its first block.
    pub index: u64,
    /// What it has there.
    pub entry: MapEntry,
    /// Where that lies, if it lies in a pack.
    pub place: Option<(PackId, Place)>,
}

impl VersionBlock {
    /// How many bytes of data it has.
    pub fn bytes(&self, grid: &Grid) -> u64 {
        match self.entry {
            MapEntry::Zero(_) => 0,
            MapEntry::Data { pages, .. } => grid.masked_bytes(self.index, pages),
        }
    }
}

/// The blocks of a version, read in order.
pub struct VersionBlocks {
    entries: StoredEntries,
    map_address: String,
    grid: Grid,
    read: std::vec::IntoIter<MapEntry>,
    places: Option<PlacesReader<At<Arc<File>>>>,
    places_address: String,
    next: u64,
}

impl VersionBlocks {
    /// Those of a map alone.
    fn of(map: &StoredMap, address: &str) -> Result<VersionBlocks> {
        Ok(VersionBlocks {
            entries: map.entries().map_err(map_error(address))?,
            map_address: address.into(),
            grid: map.grid(),
            read: Vec::new().into_iter(),
            places: None,
            places_address: String::new(),
            next: 0,
        })
    }

    /// Goes through all of them: how many bytes of data they have.
    fn data(mut self) -> Result<u64> {
        let mut data = 0;
        while let Some(block) = self.advance()? {
            data += block.bytes(&self.grid);
        }
        Ok(data)
    }

    /// The next stretch: zeros, or one block; `None` behind the last, when the map has proven to be whole.
    ///
    /// # Errors
    ///
    /// When the map is damaged, or places do not fit it.
    pub fn advance(&mut self) -> Result<Option<VersionBlock>> {
        let entry = loop {
            if let Some(entry) = self.read.next() {
                break entry;
            }
            match self.entries.entries().map_err(map_error(&self.map_address))? {
                Some(more) => self.read = more.into_iter(),
                None => return Ok(None),
            }
        };
        let mut block = VersionBlock { index: self.next, entry, place: None };
        self.next += entry.blocks();
        if let (MapEntry::Data { .. }, Some(places)) = (entry, &mut self.places) {
            let place = places.next(block.bytes(&self.grid));
            let place = place.map_err(|error| damaged(&self.places_address, &error))?;
            block.place = Some((places.pack_of(&place), place));
        }
        Ok(Some(block))
    }
}
