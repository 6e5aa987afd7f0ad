//! What becomes known of a file block by block: its root hash, and its map on the way to a
//! file, where somebody keeps that.

use std::collections::VecDeque;
use std::io::{self, BufWriter};

use crate::hashmap::map_file::{MapWriter, NewFile};
use crate::hashmap::{Grid, Hash, Item, MapEntry, PageMask, RootHasher};

/// Blocks that wait for the pages of one before them: about 28 MiB. Beyond that no map is kept.
const MAX_WAITING: usize = 1 << 19;

/// See the module.
#[derive(Debug)]
pub struct Recorder {
    root: RootHasher,
    maps: Maps,
}

/// The maps that are written of a file.
#[derive(Debug, Default)]
pub struct Maps {
    /// One that later runs believe.
    pub kept: Option<MapRecord>,
    /// One that the user asked for.
    pub saved: Option<MapRecord>,
}

impl Maps {
    fn each(&mut self) -> impl Iterator<Item = &mut MapRecord> {
        self.kept.iter_mut().chain(&mut self.saved)
    }
}

impl Recorder {
    /// For a file on this grid; `maps`: what its map goes to.
    pub fn new(grid: &Grid, maps: Maps) -> Recorder {
        Recorder { root: RootHasher::new(grid), maps }
    }

    /// Adds the next block that is not zero; indices ascend.
    pub fn add(&mut self, index: u64, pages: PageMask, hash: &Hash) {
        self.root.add(index, hash);
        self.maps.each().for_each(|map| map.add(index, Some(pages), hash));
    }

    /// The same of one of which the pages [are told](Recorder::tell_pages) later.
    pub fn promise(&mut self, index: u64, hash: &Hash) {
        self.root.add(index, hash);
        self.maps.each().for_each(|map| map.add(index, None, hash));
    }

    /// The pages with data of the first block that waits for them.
    pub fn tell_pages(&mut self, pages: PageMask) {
        self.maps.each().for_each(|map| map.tell_pages(pages));
    }

    /// The root hash, and the maps that are written.
    pub fn finish(self) -> (Hash, Maps) {
        (self.root.finish(), self.maps)
    }
}

/// A block of a map that waits: where it is, which pages it has, if they are known, and its hash.
type Waiting = (u64, Option<PageMask>, Hash);

/// A map that is being written, block by block.
#[derive(Debug)]
pub struct MapRecord {
    writer: Box<MapWriter<BufWriter<NewFile>>>,
    grid: Grid,
    /// Blocks of data that it may still have.
    left: u64,
    /// The block behind the last one that was written.
    next: u64,
    /// From the first one on whose pages are not known.
    waiting: VecDeque<Waiting>,
    failed: Option<io::Error>,
}

impl MapRecord {
    /// Begins the map of a file on this grid where `output` is at; of more blocks of data than `most`
    /// it becomes none.
    ///
    /// # Errors
    ///
    /// What writing reports.
    pub fn new(output: NewFile, grid: &Grid, most: u64) -> io::Result<MapRecord> {
        let writer = Box::new(MapWriter::new(BufWriter::new(output), grid)?);
        Ok(MapRecord { writer, grid: *grid, left: most, next: 0, waiting: VecDeque::new(), failed: None })
    }

    /// The grid of the file.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Adds blocks that were hashed, of which the first has this index.
    pub fn add_items(&mut self, first: u64, items: &[Item]) {
        let mut index = first;
        for item in items {
            if let Item::Block(block) = item
                && block.data != 0
            {
                self.add(index, Some(block.data), &block.hash);
            }
            index += item.blocks();
        }
    }

    fn add(&mut self, index: u64, pages: Option<PageMask>, hash: &Hash) {
        match pages {
            _ if self.failed.is_some() => {}
            Some(pages) if self.waiting.is_empty() => self.write(index, pages, *hash),
            _ if self.waiting.len() == MAX_WAITING => {
                self.failed = Some(io::Error::other("too many blocks of the map wait"));
                self.waiting = VecDeque::new();
            }
            _ => self.waiting.push_back((index, pages, *hash)),
        }
    }

    fn tell_pages(&mut self, pages: PageMask) {
        if let Some((_, waits, _)) = self.waiting.front_mut() {
            *waits = Some(pages);
        }
        while let Some((index, Some(pages), hash)) = self.waiting.front().copied() {
            self.waiting.pop_front();
            self.write(index, pages, hash);
        }
    }

    fn write(&mut self, index: u64, pages: PageMask, hash: Hash) {
        let mut write = || {
            self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::FileTooLarge)?;
            self.skip_to(index)?;
            self.next = index + 1;
            self.writer.add(&MapEntry::Data { pages, hash })
        };
        if let Err(error) = write() {
            self.failed = Some(error);
        }
    }

    /// What lies between is zero.
    fn skip_to(&mut self, index: u64) -> io::Result<()> {
        let zeros = index.saturating_sub(self.next);
        if zeros == 0 { Ok(()) } else { self.writer.add(&MapEntry::Zero(zeros)) }
    }

    /// The complete map.
    ///
    /// # Errors
    ///
    /// What writing reported at any time; a map that is not whole.
    pub fn finish(mut self) -> io::Result<NewFile> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if !self.waiting.is_empty() {
            return Err(io::Error::other("a block of the map waits for its pages"));
        }
        self.skip_to(self.grid.blocks())?;
        let (output, _) = self.writer.finish()?;
        output.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, SeekFrom};

    use super::*;
    use crate::hashmap::map_file::MapReader;
    use crate::options::BlockSize;

    fn read(file: &NewFile) -> (Vec<MapEntry>, Hash) {
        let mut file = file.file().try_clone().expect("a descriptor");
        file.seek(SeekFrom::Start(0)).expect("seek");
        let mut map = MapReader::new(file).expect("a map");
        let mut entries = Vec::new();
        while let Some(more) = map.entries().expect("whole") {
            entries.extend(more);
        }
        (entries, map.root().expect("whole"))
    }

    fn kept(record: io::Result<MapRecord>) -> Maps {
        Maps { kept: Some(record.expect("write")), saved: None }
    }

    #[test]
    fn blocks_that_wait_for_their_pages_come_in_their_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let grid = Grid { length: 9 * 65536, block: BlockSize::default() };
        let new = NewFile::create(File::open(dir.path()).expect("open"), "x").expect("create");
        let mut recorder = Recorder::new(&grid, kept(MapRecord::new(new, &grid, 99)));
        recorder.add(1, 1, &[1; 32]);
        recorder.promise(3, &[3; 32]);
        recorder.add(4, 4, &[4; 32]);
        recorder.promise(5, &[5; 32]);
        recorder.tell_pages(3);
        recorder.add(7, 7, &[7; 32]);
        recorder.tell_pages(5);
        let (root, maps) = recorder.finish();
        let file = maps.kept.expect("kept").finish().expect("whole");
        let data = |pages, byte| MapEntry::Data { pages, hash: [byte; 32] };
        let zero = MapEntry::Zero(1);
        let expected =
            vec![zero, data(1, 1), zero, data(3, 3), data(4, 4), data(5, 5), zero, data(7, 7), zero];
        assert_eq!(read(&file), (expected, root));
        file.rename("map".as_ref()).expect("rename");
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_map_without_all_pages_is_none_and_leaves_no_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let grid = Grid { length: 65536, block: BlockSize::default() };
        let new = NewFile::create(File::open(dir.path()).expect("open"), "x").expect("create");
        let mut recorder = Recorder::new(&grid, kept(MapRecord::new(new, &grid, 99)));
        recorder.promise(0, &[1; 32]);
        assert!(recorder.finish().1.kept.expect("kept").finish().is_err());
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 0);
    }
}
