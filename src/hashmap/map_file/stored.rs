//! A map in a file that stays open: read as often as it is needed, by as many as need it.

use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::hashmap::map_file::{CHECK, END, MapError, MapReader, SECTION_HEAD};
use crate::hashmap::{Grid, Hash};
use crate::scan::At;

/// See the module. What it says of its root hash is proven when all of it was read.
#[derive(Debug, Clone)]
pub struct StoredMap {
    file: Arc<File>,
    /// Where in the file it begins.
    start: u64,
    grid: Grid,
    root: Hash,
}

/// One reading of it.
pub type StoredEntries = MapReader<BufReader<At<Arc<File>>>>;

impl StoredMap {
    /// The map that goes from `start` to the end of a file. Only its head and its end are looked at.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn open(file: File, start: u64) -> Result<StoredMap, MapError> {
        let file = Arc::new(file);
        let grid = read(&file, start)?.grid();
        let mut end = [0; SECTION_HEAD + size_of::<Hash>() + CHECK];
        let at = file.metadata()?.len().checked_sub(end.len() as u64);
        file.read_exact_at(&mut end, at.ok_or(MapError::Damaged("it ends too early"))?)?;
        let (head, rest) = end.split_at(SECTION_HEAD);
        if head != [END.to_le_bytes(), (size_of::<Hash>() as u32).to_le_bytes()].concat() {
            return Err(MapError::Damaged("it has no root hash"));
        }
        let root = std::array::from_fn(|nth| rest[nth]);
        Ok(StoredMap { file, start, grid, root })
    }

    /// The file that it is in.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What the image is laid out on.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// The root hash of the image.
    pub fn root(&self) -> &Hash {
        &self.root
    }

    /// It from its start.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn entries(&self) -> Result<StoredEntries, MapError> {
        read(&self.file, self.start)
    }
}

fn read(file: &Arc<File>, start: u64) -> Result<StoredEntries, MapError> {
    MapReader::new(BufReader::new(At::new(Arc::clone(file), start)))
}
