//! A map file in the place of the image that it was made of. It has no leaves: of a block
//! that differs nobody can tell which of its pages do.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use crate::error::{Error, Result};
use crate::hashmap::leaves::Leaves;
use crate::hashmap::map_file::{MapError, MapReader};
use crate::hashmap::{Grid, Hash, MapEntry, page_runs};
use crate::options::BlockSize;
use crate::scan::{At, Extent};
use crate::sync::survey::Surveyed;

/// What is read of the file at once.
const BUFFER: usize = 64 << 10;

/// See the module.
pub struct SavedMap<'a> {
    path: &'a Path,
    file: &'a File,
    grid: Grid,
    /// What blocks are told on, and the map as far as it is read.
    told: Option<(Grid, Reader<'a>)>,
    /// The block that is told next.
    index: u64,
}

type Reader<'a> = MapReader<BufReader<At<&'a File>>>;

fn reader(file: &File) -> Result<Reader<'_>, MapError> {
    MapReader::new(BufReader::with_capacity(BUFFER, At::new(file, 0)))
}

/// The grid of a map.
pub fn grid(path: &Path, file: &File) -> Result<Grid> {
    reader(file).map(|map| map.grid()).map_err(|error| error.about(path))
}

/// The root hash of the image that a map is of, all of which is read.
pub fn root(path: &Path, file: &File) -> Result<Hash> {
    let read = || {
        let mut map = reader(file)?;
        while map.entries()?.is_some() {}
        map.root().ok_or(MapError::Damaged("it has no root hash"))
    };
    read().map_err(|error| error.about(path))
}

impl<'a> SavedMap<'a> {
    /// Over a file that is named as a map.
    pub fn open(path: &'a Path, file: &'a File) -> Result<SavedMap<'a>> {
        Ok(SavedMap { path, file, grid: grid(path, file)?, told: None, index: 0 })
    }

    /// The part of an entry that lies on a grid that may end earlier than the image.
    fn cut(&mut self, grid: &Grid, entry: MapEntry) -> Option<MapEntry> {
        let (index, left) = (self.index, grid.blocks().saturating_sub(self.index));
        self.index += entry.blocks();
        if left == 0 {
            return None;
        }
        let block = index..index + 1;
        Some(match entry {
            MapEntry::Zero(blocks) => MapEntry::Zero(blocks.min(left)),
            MapEntry::Data { .. } if grid.bytes(&block) == self.grid.bytes(&block) => entry,
            MapEntry::Data { pages, .. } => match pages & grid.all_pages(index) {
                0 => MapEntry::Zero(1),
                // Nobody knows what a part of it hashes to: no block has this hash.
                pages => MapEntry::Data { pages, hash: Hash::default() },
            },
        })
    }
}

impl Surveyed for SavedMap<'_> {
    fn length(&self) -> u64 {
        self.grid.length
    }

    fn block_size(&self) -> Option<BlockSize> {
        Some(self.grid.block)
    }

    fn extents(&mut self, from: u64, sink: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
        let unusable = |error: MapError| error.about(self.path);
        let mut map = reader(self.file).map_err(unusable)?;
        let (mut index, mut last) = (0, 0..0);
        while let Some(entries) = map.entries().map_err(unusable)? {
            for entry in entries {
                if let MapEntry::Data { pages, .. } = entry {
                    for run in page_runs(pages) {
                        let found = self.grid.pages(index, &run);
                        if found.start == last.end {
                            last.end = found.end;
                            continue;
                        }
                        let extent = std::mem::replace(&mut last, found);
                        hand_on(extent, from, sink)?;
                    }
                }
                index += entry.blocks();
            }
        }
        hand_on(last, from, sink)
    }

    fn start(&mut self, grid: &Grid) -> Result<()> {
        if grid.block != self.grid.block {
            return Err(Error::refused(self.path, "was replaced while it was read"));
        }
        let map = reader(self.file).map_err(|error| error.about(self.path))?;
        (self.told, self.index) = (Some((*grid, map)), 0);
        Ok(())
    }

    fn blocks(&mut self) -> Result<Option<Vec<MapEntry>>> {
        let Some((grid, mut map)) = self.told.take() else { return Ok(None) };
        let read = map.entries().map_err(|error| error.about(self.path))?;
        let told =
            read.map(|entries| entries.into_iter().filter_map(|entry| self.cut(&grid, entry)).collect());
        if told.is_some() {
            self.told = Some((grid, map));
        }
        Ok(told)
    }

    fn ask(&mut self, _blocks: &[u64]) -> Result<()> {
        Ok(())
    }

    fn answer(&mut self) -> Result<Vec<Leaves>> {
        Ok(Vec::new())
    }
}

/// Hands on what of an extent lies behind an offset.
fn hand_on(extent: Extent, from: u64, sink: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
    let extent = extent.start.max(from)..extent.end;
    if extent.is_empty() { Ok(()) } else { sink(extent) }
}
