//! The map of an image as a file: its length, and hash and page mask of every block that is
//! not zero. `docs/map.md` specifies the format. Knows no image and no destination.
//!
//! Guaranteed: what [`MapReader`] tells to its end is what [`MapWriter`] was told, or an error: each
//! section has a check that covers those before it, and the root hash at the end is
//! that of the hashes in it. Memory: one section. Not guaranteed: that any image still has this
//! content; and a check keeps out damage, not somebody who writes a map of his own. Who has a
//! root hash from elsewhere compares it with the one of the map, which is made of its hashes.

mod new_file;
pub mod number;
mod reader;
mod saved;
mod stored;
mod writer;

use std::io;
use std::path::Path;

use blake3::Hasher;

use crate::error::Error;
use crate::hashmap::{Grid, PAGE};

pub use new_file::{NewFile, nameless, nameless_place};
pub use reader::MapReader;
pub use saved::SavedMap;
pub use stored::{StoredEntries, StoredMap};
pub use writer::MapWriter;

/// What a map of this version begins with.
const MAGIC: &[u8; 16] = b"holesync map 1\r\n";
/// What the maps of all versions begin with; a number and a line end follow.
const MAGIC_START: &[u8; 13] = b"holesync map ";
/// Magic, block size and length (8 bytes each), check.
const HEAD: usize = 32 + CHECK;
/// Kind and length of a section.
const SECTION_HEAD: usize = 8;
/// A section of blocks.
const BLOCKS: u32 = 1;
/// The last one: the root hash.
const END: u32 = 2;
/// Blocks with data in one section, and so the bound of its bytes: see [`MAX_BODY`].
const SECTION_BLOCKS: usize = 1024;
/// A section of single blocks of 256 KiB: two numbers of 10 bytes, mask and hash each.
const MAX_BODY: usize = SECTION_BLOCKS * (2 * 10 + 8 + 32);
/// Bytes of a check.
const CHECK: usize = 16;

/// The check of a section: the head of the BLAKE3 of the check before, the section's head and
/// its body.
type Check = [u8; CHECK];

/// Why a map cannot be used. What it says fits behind the name of the file.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// It could not be read.
    #[error("cannot be read: {}", crate::error::in_words(.0))]
    Read(#[from] io::Error),
    /// It does not begin as maps do.
    #[error("is no map of an image: holesync map IMG -o FILE.map writes one")]
    NoMap,
    /// Another version of this program wrote it.
    #[error(
        "is a map of another version of holesync (format {0}): write it anew with holesync map IMG -o FILE.map"
    )]
    Version(u32),
    /// It ends before its end, or was changed.
    #[error("is a damaged map ({0}): write it anew with holesync map IMG -o FILE.map")]
    Damaged(&'static str),
}

impl MapError {
    /// As an error about the file that the map was to be in.
    pub fn about(self, path: &Path) -> Error {
        match self {
            MapError::Read(error) => Error::file("read", path)(error),
            other => Error::refused(path, other.to_string()),
        }
    }
}

/// Whether a path names a map: it ends in `.map`. Content does not make a map of a file: what
/// is written into an image, by a guest for one, must not speak for it.
pub fn is_map(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "map")
}

fn check(before: &Check, parts: &[&[u8]]) -> Check {
    let mut hasher = Hasher::new();
    hasher.update(before);
    for part in parts {
        hasher.update(part);
    }
    let hash = hasher.finalize();
    std::array::from_fn(|nth| hash.as_bytes()[nth])
}

/// Bytes of a page mask of this grid.
fn mask_bytes(grid: &Grid) -> usize {
    (grid.block.bytes() / PAGE).div_ceil(8) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hashmap::MapEntry;
    use crate::options::BlockSize;

    fn grid(length: u64, block: u64) -> Grid {
        Grid { length, block: BlockSize::new(block).expect("a size") }
    }

    fn data(pages: u64, byte: u8) -> MapEntry {
        MapEntry::Data { pages, hash: [byte; 32] }
    }

    fn written(grid: &Grid, entries: &[MapEntry]) -> Vec<u8> {
        let mut writer = MapWriter::new(Vec::new(), grid).expect("write");
        entries.iter().for_each(|entry| writer.add(entry).expect("write"));
        writer.finish().expect("write").0
    }

    fn read(bytes: &[u8]) -> Result<Vec<MapEntry>, MapError> {
        let mut reader = MapReader::new(bytes)?;
        let mut entries = Vec::new();
        while let Some(told) = reader.entries()? {
            entries.extend(told);
        }
        Ok(entries)
    }

    fn sample() -> (Grid, Vec<MapEntry>) {
        let grid = grid(3000 * 65536 - 5000, 65536);
        let mut entries = vec![MapEntry::Zero(7), data(1, 1), data(0xffff, 2), MapEntry::Zero(1)];
        entries.extend((0..2500).map(|nth| data(0xfffe, nth as u8)));
        entries.push(MapEntry::Zero(3000 - 2510 - 1));
        entries.push(data(0x7fff, 9));
        (grid, entries)
    }

    #[test]
    fn what_was_written_is_read() {
        let (grid, entries) = sample();
        let bytes = written(&grid, &entries);
        let mut reader = MapReader::new(&bytes[..]).expect("a map");
        assert_eq!(reader.grid(), grid);
        assert_eq!(reader.root(), None);
        let mut told = Vec::new();
        while let Some(entries) = reader.entries().expect("a map") {
            told.extend(entries);
        }
        assert_eq!(told, entries);
        assert!(reader.root().is_some());
    }

    #[test]
    fn nothing_a_hole_and_blocks_of_one_page_and_of_64() {
        for (length, block, entries) in [
            (0, 65536, vec![]),
            (16 << 40, 65536, vec![MapEntry::Zero((16 << 40) / 65536)]),
            (4097, 4096, vec![data(1, 3), data(1, 4)]),
            (2 << 18, 1 << 18, vec![data(u64::MAX, 3), data(1 << 63, 4)]),
        ] {
            assert_eq!(read(&written(&grid(length, block), &entries)).expect("a map"), entries);
        }
    }

    #[test]
    fn a_block_of_64_kib_takes_34_bytes() {
        let entries: Vec<_> = (0..16384).map(|nth| data(0xffff, nth as u8)).collect();
        let bytes = written(&grid(1 << 30, 65536), &entries).len();
        assert!((34 * 16384..34 * 16384 + 1024).contains(&bytes), "{bytes}");
    }

    #[test]
    fn no_changed_byte_and_no_cut_is_taken_for_a_map() {
        let (grid, entries) = sample();
        let whole = written(&grid, &entries);
        for at in (0..whole.len()).filter(|at| at % 97 == 0 || *at < 100 || at + 100 > whole.len()) {
            assert!(read(&whole[..at]).is_err(), "cut at {at}");
            let mut changed = whole.clone();
            changed[at] ^= 1 << (at % 8);
            assert!(read(&changed).is_err(), "changed at {at}");
        }
        let longer = [&whole[..], b"x"].concat();
        assert!(matches!(read(&longer), Err(MapError::Damaged(_))));
    }

    #[test]
    fn other_files_and_other_versions_are_told_apart() {
        assert!(matches!(read(b""), Err(MapError::NoMap)));
        assert!(matches!(read(&[0; 4096]), Err(MapError::NoMap)));
        assert!(matches!(
            read(b"holesync map 23\r\n and the rest of it, which nobody knows"),
            Err(MapError::Version(23))
        ));
    }

    #[test]
    fn a_map_of_another_image_than_its_grid_says_is_not_written() {
        let grid = grid(3 * 65536, 65536);
        let mut writer = MapWriter::new(Vec::new(), &grid).expect("write");
        writer.add(&MapEntry::Zero(2)).expect("write");
        assert!(writer.finish().is_err());
        let mut writer = MapWriter::new(Vec::new(), &grid).expect("write");
        assert!(writer.add(&MapEntry::Zero(4)).is_err());
    }
}
