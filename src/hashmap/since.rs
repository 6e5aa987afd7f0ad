//! What is known of an image before it is read: it was made from another one, of which there is a
//! map. Where both share their extents, or a list says that nothing has changed, that map tells of
//! it, and the rest is read. `docs/since.md` tells what either trusts.
//!
//! 1. What the options name is [opened](Since::open): the old image, or its map as a file; a list is
//!    read to its end.
//! 2. If no map of the old image is kept, and one may be, it is hashed [once](Since::prepare).
//! 3. [`Since::find`] looks which blocks the new one shares with it ([`same_blocks`]), or which ones
//!    are not listed.
//! 4. Some of these are read and held against the map, as of every map that was kept.

pub mod list;
mod same_place;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::confinement::NamedPath;
use crate::error::{Error, Result, Warning, lock, printable};
use crate::hashmap::cache::{Found, MapCache};
use crate::hashmap::known::Sample;
use crate::hashmap::map_file::{MapError, StoredMap, is_map};
use crate::hashmap::{self, Grid, Item, KnownMap};
use crate::options::{self, BlockSize};
use crate::scan::{self, FileImage, FileState, Image};
use crate::sys;

pub use same_place::{Settled, same_blocks};

/// See the module.
#[derive(Debug)]
pub struct Since {
    path: PathBuf,
    old: Old,
    /// A list of what has changed: which bytes. `None`: what both share is the same.
    changed: Option<Vec<Range<u64>>>,
}

/// What the image was made from.
#[derive(Debug)]
enum Old {
    Image(OldImage),
    /// Its map, as a file.
    Map(StoredMap),
}

#[derive(Debug)]
struct OldImage {
    image: FileImage,
    length: u64,
    /// About how many bytes of it are data.
    data: u64,
    /// Once that was looked at: the state in which a map of it is kept, if there is one.
    known: Mutex<Option<Option<FileState>>>,
}

/// What is known of the new image.
pub enum Known {
    /// Nothing, and why.
    Nothing(&'static str),
    /// These blocks are those of the old one, of whose map this was found.
    Found(Found),
}

impl Since {
    /// Opens what the options name, for an image that is here.
    ///
    /// # Errors
    ///
    /// When that cannot be opened, or is no file, a damaged map or no list; [`Error::Usage`] for a
    /// map of other blocks or without a list.
    pub fn open(wanted: &options::Since, image: &Path, block: BlockSize) -> Result<Since> {
        let read = |path: &PathBuf| list::read(path, scan::open_image(&NamedPath::here(image))?.1);
        let changed = wanted.changed.as_ref().map(read).transpose()?;
        let path = wanted.old.clone();
        let old = if is_map(&path) {
            if changed.is_none() {
                return Err(Error::Usage(format!(
                    "{} is a map, which does not tell what an image shares with another: name that image, or a list of \
                     what has changed with --changed",
                    printable(&path)
                )));
            }
            Old::Map(map_in(&path, block)?)
        } else {
            Old::Image(OldImage::open(&path)?)
        };
        Ok(Since { path, old, changed })
    }

    /// Hashes the old image, unless there is a map of it or none may be kept, or that was done
    /// before. Returns how many bytes were read.
    pub fn prepare(&self, maps: &MapCache, block: BlockSize) -> u64 {
        let Old::Image(old) = &self.old else { return 0 };
        let mut known = lock(&old.known);
        if known.is_some() {
            return 0;
        }
        let mut read = 0;
        *known = Some(old.learn(maps, block, &mut read));
        read
    }

    /// The map of the old image, if there is one by now. Nobody has looked at it.
    pub fn map(&self, maps: Option<&MapCache>, block: BlockSize) -> Option<StoredMap> {
        match &self.old {
            Old::Map(map) => Some(map.clone()),
            Old::Image(old) => maps?.map_now(old.image.file(), block),
        }
    }

    /// Whether it is told by a list what has changed: also of what does not show changes, and
    /// whatever else is known.
    pub fn is_listed(&self) -> bool {
        self.changed.is_some()
    }

    /// What an open image in this state has of the old one. Without a list all changes of it must
    /// show.
    pub fn find(
        &self,
        maps: Option<&MapCache>,
        image: &FileImage,
        state: &FileState,
        block: BlockSize,
    ) -> Known {
        let grid = Grid { length: state.length, block };
        match &self.old {
            Old::Map(map) => Known::Found(found_in(map, image, self.unlisted(&grid, map.grid().length))),
            Old::Image(old) => {
                let Some(maps) = maps else {
                    return Known::Nothing("with --no-map-cache there is no map of it");
                };
                let Some(old_state) = lock(&old.known).clone().flatten() else {
                    return Known::Nothing("there is no map of it, and none may be kept");
                };
                let blocks = match self.changed {
                    Some(_) => self.unlisted(&grid, old.length),
                    None => old.shared(&old_state, image, state, block),
                };
                if blocks.is_empty() {
                    return Known::Nothing("it has nothing that SRC is known to have");
                }
                let file = old.image.file();
                let found = maps.find_of(file, &old_state, block, image, blocks);
                if matches!(found, Found::Other) && self.changed.is_none() {
                    maps.forget_map_of(file, &old_state, block);
                }
                Known::Found(found)
            }
        }
    }

    /// The blocks that no range of the list touches, and that are whole in both images, or the last
    /// of both.
    fn unlisted(&self, grid: &Grid, old_length: u64) -> Vec<Range<u64>> {
        let size = grid.block.bytes();
        let end = match grid.length == old_length {
            true => grid.blocks(),
            false => grid.length.min(old_length) / size,
        };
        let mut blocks = Vec::new();
        let mut next = 0;
        for bytes in self.changed.iter().flatten() {
            let touched = (bytes.start / size).min(end)..bytes.end.div_ceil(size);
            if next < touched.start {
                blocks.push(next..touched.start);
            }
            next = next.max(touched.end);
        }
        if next < end {
            blocks.push(next..end);
        }
        blocks
    }

    /// What to tell of a file that does not have what the map says. That of a kept map goes, where no
    /// list may be what is wrong.
    pub fn differs(&self, path: &Path) -> Warning {
        let (path_shown, old) = (printable(path), printable(&self.path));
        let what = match self.changed {
            None => format!("{path_shown} does not have what it shares with {old}, as the map of that says"),
            Some(_) => format!("{path_shown} differs from {old} where --changed tells of no change"),
        };
        Warning::about(path, format!("{what}: all of it is read; see docs/since.md"))
    }

    /// What to tell where all is read.
    pub fn is_of_no_use(&self, why: &str) -> Warning {
        let what =
            format!("all is read, whatever --since {} says: {why}; see docs/since.md", printable(&self.path));
        Warning::about(&self.path, what)
    }
}

/// The map in a file, which is read to its end: then it is whole.
fn map_in(path: &Path, block: BlockSize) -> Result<StoredMap> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    let read = || {
        let map = StoredMap::open(file, 0)?;
        let mut entries = map.entries()?;
        while entries.entries()?.is_some() {}
        Ok(map)
    };
    let map = read().map_err(|error: MapError| error.about(path))?;
    if map.grid().block != block {
        return Err(Error::Usage(format!(
            "{} is a map of blocks of {1} bytes: give -B {1}",
            printable(path),
            map.grid().block.bytes()
        )));
    }
    Ok(map)
}

/// What a map says of an image that has these blocks of it.
fn found_in(map: &StoredMap, image: &dyn Image, blocks: Vec<Range<u64>>) -> Found {
    let known = || -> Option<Found> {
        if !Sample::of(map, &blocks).ok()?.is_right(image).ok()? {
            return Some(Found::Other);
        }
        Some(Found::Known(Box::new(KnownMap::of(map, blocks).ok()?)))
    };
    known().unwrap_or(Found::Nothing)
}

impl OldImage {
    fn open(path: &Path) -> Result<OldImage> {
        let (file, length) = scan::open_image(&NamedPath::here(path))?;
        let allocated = file.metadata().map_or(0, |metadata| 512 * metadata.blocks());
        let data = scan::may_hold(allocated, length);
        let image = FileImage::new(file, true).sparing_cache_for(data);
        Ok(OldImage { image, length, data, known: Mutex::default() })
    }

    fn learn(&self, maps: &MapCache, block: BlockSize, read: &mut u64) -> Option<FileState> {
        let file = self.image.file();
        let (state, settled) = FileState::settled(file).ok()?;
        if !settled || !state.shows_changes() || state.length != self.length {
            return None;
        }
        if maps.knows(file, &state, block) {
            return Some(state);
        }
        let grid = Grid { length: state.length, block };
        // A write that is under way has left its time already.
        if !maps.could_know(file, &state, block) || !sys::is_written_by_nobody(file) {
            return None;
        }
        let mut record = maps.record(&grid, self.data)?;
        let mut at = 0;
        let hashed = hashmap::hash_image(&self.image, &grid, |batch| {
            record.add_items(at, &batch.items);
            at += batch.items.iter().map(Item::blocks).sum::<u64>();
            *read += batch.bytes_read as u64;
            Ok::<_, io::Error>(true)
        });
        hashed.ok().filter(|()| state.is_still(file))?;
        maps.keep(record, file, &state);
        maps.knows(file, &state, block).then_some(state)
    }

    fn shared(
        &self,
        old: &FileState,
        image: &FileImage,
        state: &FileState,
        block: BlockSize,
    ) -> Vec<Range<u64>> {
        let old = Settled { file: self.image.file(), state: old };
        same_blocks(old, Settled { file: image.file(), state }, block)
    }
}
