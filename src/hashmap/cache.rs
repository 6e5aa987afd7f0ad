//! Maps that this user's runs have learned and keep: a file that is still in the state in which
//! it was hashed is not read again. `docs/cache.md` tells what that trusts.
//!
//! 1. Who hashes a file, or completes one, [begins a record](MapCache::record) and tells it each
//!    block.
//! 2. It is [kept](MapCache::keep) under the state that the file was in: on a file system that
//!    dates every change, and once any further change gives the file another ctime.
//! 3. [`MapCache::find`] gives the map of a file that is in that state, when some of its blocks
//!    were read and are what the map says.
//!
//! Guaranteed: an entry that is damaged, of another boot, file system or file, or of another
//! state, is as none; so is a directory that others may write to. What cannot be written is no
//! error. Not guaranteed: that a change shows which leaves the ctime as it was, as one of the disk
//! below the file system does.

mod state;
mod store;

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;

use crate::error::{Warning, printable};
use crate::hashmap::known::{KnownMap, Sample};
use crate::hashmap::map_file::{NewFile, StoredMap};
use crate::hashmap::{Grid, Hash, MapRecord};
use crate::options::{BlockSize, Options};
use crate::scan::{FileState, Image};
use crate::sys;
use nix::fcntl::OFlag;
use state::{HEAD, KeptState};
pub use store::{Kept, clear, kept};

/// A file of less data is hashed sooner than its map is looked at.
const LEAST: u64 = 16 << 20;

/// What is known of a file.
pub enum Found {
    /// Nothing: it is to be read.
    Nothing,
    /// Its map.
    Known(Box<KnownMap>),
    /// A map that it does not have, although it is in the same state.
    Other,
}

/// What only this file is, as long as it has this content: of its root hash and the state that it is in, which
/// must be one of which all changes show from then on. `None`: nothing tells that of it.
pub fn mark_of(file: &File, state: &FileState, block: BlockSize, root: &Hash) -> Option<Hash> {
    let state = KeptState::of(file, state, block)?;
    Some(*blake3::Hasher::new().update(&state.head()).update(root).finalize().as_bytes())
}

/// The maps of this user, in a directory of theirs alone.
#[derive(Debug)]
pub struct MapCache {
    directory: OnceLock<OwnedFd>,
    /// Nothing is changed in it.
    is_read_only: bool,
    /// Maps are taken from it, and not only put there.
    believes: bool,
}

impl MapCache {
    /// The cache of this user for a run with these options. `None`: it may use none.
    pub fn open(options: &Options) -> Option<MapCache> {
        if !options.map_cache {
            return None;
        }
        // Both say that content is to be looked at.
        let believes = !options.checksum && !options.verify;
        Some(MapCache { directory: OnceLock::new(), is_read_only: options.dry_run, believes })
    }

    /// The directory; `make`: also where there was none.
    fn directory(&self, make: bool) -> Option<&OwnedFd> {
        if self.directory.get().is_none() {
            // Another thread may have been faster.
            let _ = self.directory.set(store::open(make)?);
        }
        self.directory.get()
    }

    /// What is known of an open file that is in this state, all changes of which show from now
    /// on.
    pub fn find(&self, image: &dyn Image, state: &FileState, block: BlockSize) -> Found {
        let Some(file) = image.plain_file() else { return Found::Nothing };
        let all = Grid { length: state.length, block }.blocks();
        let found = self.find_of(file, state, block, image, std::iter::once(0..all).collect());
        if matches!(found, Found::Other) {
            self.forget_map_of(file, state, block);
        }
        found
    }

    /// What is known of an image that has these blocks, in order, of an open file in this state.
    pub fn find_of(
        &self,
        file: &File,
        state: &FileState,
        block: BlockSize,
        image: &dyn Image,
        blocks: Vec<Range<u64>>,
    ) -> Found {
        let Some(wanted) = self.wanted(file, state, block) else { return Found::Nothing };
        let name = wanted.name();
        let Some(map) = self.entry(&name).and_then(|entry| map_in(entry, &wanted)) else {
            return Found::Nothing;
        };
        let Ok(sample) = Sample::of(&map, &blocks) else {
            self.forget(&name);
            return Found::Nothing;
        };
        match sample.is_right(image) {
            Ok(true) => {}
            Ok(false) => return Found::Other,
            // Who reads the file reports it.
            Err(_) => return Found::Nothing,
        }
        if !self.is_read_only {
            store::used(map.file());
        }
        KnownMap::of(&map, blocks).map_or(Found::Nothing, |map| Found::Known(Box::new(map)))
    }

    /// Removes the map of a file in this state.
    pub fn forget_map_of(&self, file: &File, state: &FileState, block: BlockSize) {
        if let Some(wanted) = self.wanted(file, state, block) {
            self.forget(&wanted.name());
        }
    }

    /// Whether there is a map of a file in this state, which nobody has looked at.
    pub fn knows(&self, file: &File, state: &FileState, block: BlockSize) -> bool {
        self.map_of(file, state, block).is_some()
    }

    /// The map of a file as it is now, whether or not all changes of it show. Nobody has looked at it.
    pub fn map_now(&self, file: &File, block: BlockSize) -> Option<StoredMap> {
        self.map_of(file, &FileState::of(file).ok()?, block)
    }

    fn map_of(&self, file: &File, state: &FileState, block: BlockSize) -> Option<StoredMap> {
        let wanted = self.wanted(file, state, block)?;
        map_in(self.entry(&wanted.name())?, &wanted)
    }

    /// Whether a map of a file in this state could be kept, and found again.
    pub fn could_know(&self, file: &File, state: &FileState, block: BlockSize) -> bool {
        !self.is_read_only && self.wanted(file, state, block).is_some()
    }

    /// What an entry about a file must be about.
    fn wanted(&self, file: &File, state: &FileState, block: BlockSize) -> Option<KeptState> {
        let is_worth_it = self.believes && state.length >= LEAST;
        if is_worth_it { KeptState::of(file, state, block) } else { None }
    }

    fn entry(&self, name: &str) -> Option<File> {
        let directory = self.directory(false)?.as_fd();
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        let entry = File::from(sys::open_beneath(directory, Path::new(name), flags, 0).ok()?);
        entry.metadata().is_ok_and(|found| found.is_file()).then_some(entry)
    }

    /// Whether the map of a file on this grid may come to be kept: who hashes it asks first whether it
    /// is being written. All who hash one file have the same answer.
    pub fn may_keep(&self, grid: &Grid) -> bool {
        !self.is_read_only && grid.length >= LEAST
    }

    /// Begins the map of a file that holds so many bytes of data. `None`: it is not worth it, or
    /// cannot be written.
    pub fn record(&self, grid: &Grid, data: u64) -> Option<MapRecord> {
        let is_worth_it = data >= LEAST && data / grid.block.bytes() <= store::MOST_BLOCKS;
        if !is_worth_it || !self.may_keep(grid) {
            return None;
        }
        let mut file = NewFile::create(self.directory(true)?, store::UNFINISHED).ok()?;
        // Nobody finds it before the state is put there.
        file.write_all(&[0; HEAD]).ok()?;
        MapRecord::new(file, grid, store::MOST_BLOCKS).ok()
    }

    /// Keeps the map of a file that was in this state when it was hashed, or completed: from then
    /// on all changes of it show.
    pub fn keep(&self, record: MapRecord, file: &File, state: &FileState) {
        // The next run hashes what cannot be kept.
        let _ = self.try_to_keep(record, file, state);
    }

    fn try_to_keep(&self, record: MapRecord, file: &File, state: &FileState) -> Option<()> {
        let block = record.grid().block;
        let map = record.finish().ok()?;
        let state = KeptState::of(file, state, block)?;
        map.file().write_all_at(&state.head(), 0).ok()?;
        let bytes = map.file().metadata().ok()?.len();
        store::make_room(self.directory(true)?, bytes)?;
        map.rename(state.name().as_ref()).ok()
    }

    fn forget(&self, name: &str) {
        if let Some(directory) = self.directory(false).filter(|_| !self.is_read_only) {
            // One that stays is found to be of no use again.
            let _ = sys::unlink_at(directory, name.as_ref());
        }
    }
}

/// What to tell of a file that was in the state of a kept map, and another.
pub fn differs(path: &Path) -> Warning {
    let what = format!(
        "{} has changed since its map was kept, and its ctime has not: all of it is read, and that map is gone; see \
         docs/cache.md, and --no-map-cache where this happens again",
        printable(path)
    );
    Warning::about(path, what)
}

/// The map in an entry, if that is of a file in this state.
fn map_in(entry: File, wanted: &KeptState) -> Option<StoredMap> {
    let mut head = [0; HEAD];
    entry.read_exact_at(&mut head, 0).ok()?;
    if head != wanted.head() {
        return None;
    }
    let map = StoredMap::open(entry, HEAD as u64).ok()?;
    (map.grid() == wanted.grid()).then_some(map)
}
