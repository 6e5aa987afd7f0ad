//! Maps that the sender has of what the receiver may have: its source as it was, and what that was
//! made from. The receiver is told of their root hashes, and if it has one of these no map travels.

use std::io::Write;
use std::sync::{Arc, OnceLock};

use crate::confinement::NamedPath;
use crate::error::Result;
use crate::hashmap::cache::MapCache;
use crate::hashmap::map_file::{MapError, StoredEntries, StoredMap};
use crate::hashmap::plan::Run;
use crate::hashmap::since::Since;
use crate::hashmap::{self, Grid, Hash, MapEntry};
use crate::options::BlockSize;
use crate::protocol::{KNOWN_MAPS, Message};
use crate::scan;
use crate::sender::shared::SenderShared;

/// See the module.
#[derive(Default)]
pub struct KnownMaps {
    /// Maps that were kept.
    cache: Option<Arc<MapCache>>,
    /// What the only file was made from.
    since: Option<Arc<Since>>,
    /// Those that the receiver is told of.
    told: OnceLock<Vec<StoredMap>>,
}

impl KnownMaps {
    /// `since`: what the only file was made from.
    pub fn new(cache: Option<Arc<MapCache>>, since: Option<Arc<Since>>) -> KnownMaps {
        KnownMaps { cache, since, told: OnceLock::new() }
    }

    /// Those of a run that has this source alone. Waits for nothing: a map that is still to be made
    /// is none.
    fn of(&self, source: &NamedPath, block: BlockSize) -> &[StoredMap] {
        self.told.get_or_init(|| {
            let cache = self.cache.as_deref();
            let old = self.since.as_ref().and_then(|since| since.map(cache, block));
            let kept = || cache?.map_now(&scan::open_image(source).ok()?.0, block);
            let mut maps: Vec<StoredMap> = old.into_iter().chain(kept()).collect();
            maps.dedup_by(|one, other| one.root() == other.root());
            maps
        })
    }

    /// The one with this root hash, if the receiver was told of it.
    pub fn told(&self, root: &Hash) -> Option<&StoredMap> {
        self.told.get()?.iter().find(|map| map.root() == root)
    }
}

/// Tells the receiver which maps are known, of a run with one source that is no directory.
pub fn tell<W: Write>(shared: &SenderShared<W>, source: &NamedPath) -> Result<()> {
    if shared.version < KNOWN_MAPS {
        return Ok(());
    }
    let roots: Vec<Hash> =
        shared.known.of(source, shared.options.block_size).iter().map(|map| *map.root()).collect();
    if roots.is_empty() { Ok(()) } else { shared.send(&Message::Knows { roots }) }
}

/// The map of a basis, which does not travel.
pub struct KnownBasis {
    /// `None`: it cannot be read.
    entries: Option<StoredEntries>,
    root: Hash,
    /// The next block.
    next: u64,
}

impl KnownBasis {
    /// From its start.
    pub fn of(map: &StoredMap) -> KnownBasis {
        KnownBasis { entries: map.entries().ok(), root: *map.root(), next: 0 }
    }

    /// The next stretch of it, as far as it lies on `grid`. `None`: that was all, and it is what the
    /// receiver has.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or turns out to be another one.
    pub fn runs(&mut self, grid: &Grid) -> Result<Option<Vec<Run>>, MapError> {
        let changed = MapError::Damaged("it has changed");
        let Some(map) = &mut self.entries else { return Err(changed) };
        let Some(entries) = map.entries()? else {
            return if map.root() == Some(self.root) { Ok(None) } else { Err(changed) };
        };
        let mut runs = Vec::new();
        for entry in entries {
            let is_beyond = self.next >= grid.blocks();
            self.next += entry.blocks();
            match (entry, runs.last_mut()) {
                _ if is_beyond => {}
                (MapEntry::Zero(blocks), _) => runs.push(Run::Zero(blocks)),
                (MapEntry::Data { hash, .. }, Some(Run::Keys(keys))) => keys.push(hashmap::key(&hash)),
                (MapEntry::Data { hash, .. }, _) => runs.push(Run::Keys(vec![hashmap::key(&hash)])),
            }
        }
        Ok(Some(runs))
    }
}
