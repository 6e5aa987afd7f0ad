//! An image that was made from another one, of which a map is kept: where both share their extents
//! that map tells of it, and the rest is read. `docs/since.md` tells what that trusts.
//!
//! 1. The old image is [opened](Since::open), and if no map of it is kept, and one may be, it is
//!    hashed [once](Since::prepare).
//! 2. [`Since::find`] looks which [blocks](same_blocks) the new one shares with it.
//! 3. Some of these are read and held against the map, as of every map that was kept.

mod same_place;

use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::confinement::NamedPath;
use crate::error::{Result, Warning, lock, printable};
use crate::hashmap::cache::{Found, MapCache};
use crate::hashmap::{self, Grid};
use crate::options::{self, BlockSize};
use crate::scan::{self, FileImage, FileState};
use crate::sys;

pub use same_place::{Settled, same_blocks};

/// See the module.
#[derive(Debug)]
pub struct Since {
    path: PathBuf,
    old: FileImage,
    /// About how many bytes of it are data.
    data: u64,
    /// Once that was looked at: the state in which a map of it is kept, if there is one.
    known: Mutex<Option<Option<FileState>>>,
}

/// What is known of the new image.
pub enum Shares {
    /// Nothing, and why.
    Nothing(&'static str),
    /// These blocks are those of the old one, of whose map this was found.
    Blocks(Found),
}

impl Since {
    /// Opens what the options name.
    ///
    /// # Errors
    ///
    /// When that cannot be opened, or is no file.
    pub fn open(wanted: &options::Since) -> Result<Since> {
        let (file, length) = scan::open_image(&NamedPath::here(&wanted.old))?;
        let allocated = file.metadata().map_or(0, |metadata| 512 * metadata.blocks());
        let data = scan::may_hold(allocated, length);
        let old = FileImage::new(file, true).sparing_cache_for(data);
        Ok(Since { path: wanted.old.clone(), old, data, known: Mutex::default() })
    }

    /// Hashes the old image, unless there is a map of it or none may be kept, or that was done
    /// before. Returns how many bytes were read.
    pub fn prepare(&self, maps: &MapCache, block: BlockSize) -> u64 {
        let mut known = lock(&self.known);
        if known.is_some() {
            return 0;
        }
        let mut read = 0;
        *known = Some(self.learn(maps, block, &mut read));
        read
    }

    fn learn(&self, maps: &MapCache, block: BlockSize, read: &mut u64) -> Option<FileState> {
        let file = self.old.file();
        let (state, settled) = FileState::settled(file).ok()?;
        if !settled || !state.shows_changes() {
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
        let hashed = hashmap::hash_image(&self.old, &grid, |batch| {
            record.add_items(at, &batch.items);
            at += batch.items.iter().map(hashmap::Item::blocks).sum::<u64>();
            *read += batch.bytes_read as u64;
            Ok::<_, io::Error>(true)
        });
        hashed.ok().filter(|()| state.is_still(file))?;
        maps.keep(record, file, &state);
        maps.knows(file, &state, block).then_some(state)
    }

    /// What an open image in this state, all changes of which show, has of the old one.
    pub fn find(&self, maps: &MapCache, image: &FileImage, state: &FileState, block: BlockSize) -> Shares {
        let Some(old) = lock(&self.known).clone().flatten() else {
            return Shares::Nothing("there is no map of it, and none may be kept");
        };
        let blocks = self.shared(&old, image, state, block);
        if blocks.is_empty() {
            return Shares::Nothing(
                "they share nothing on one xfs or btrfs, or one of them is being changed",
            );
        }
        Shares::Blocks(maps.find_of(self.old.file(), &old, block, image, blocks))
    }

    fn shared(
        &self,
        old: &FileState,
        image: &FileImage,
        state: &FileState,
        block: BlockSize,
    ) -> Vec<Range<u64>> {
        let old = Settled { file: self.old.file(), state: old };
        same_blocks(old, Settled { file: image.file(), state }, block)
    }

    /// What to tell of a file that does not have what the map says.
    pub fn differs(&self, path: &Path) -> Warning {
        let what = format!(
            "{} does not have what it shares with {}, as the map of that says: all of it is read, and that map is \
             gone; see docs/since.md",
            printable(path),
            printable(&self.path)
        );
        Warning::about(path, what)
    }

    /// What to tell where all is read.
    pub fn is_of_no_use(&self, why: &str) -> Warning {
        let what =
            format!("all is read, whatever --since {} says: {why}; see docs/since.md", printable(&self.path));
        Warning::about(&self.path, what)
    }
}
