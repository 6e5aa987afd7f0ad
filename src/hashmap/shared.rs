//! Hashes that several readers of the same files share: each batch of a file is read and hashed
//! once, by whoever needs it first, and every other one takes what is there. Nobody who waits for
//! something else keeps anybody: hashing goes on in stretches, and who stops leaves the next one
//! to another. What was hashed lies in a file without a name, so memory does not follow the
//! length of an image, nor how far apart its readers are.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::error::lock;
use crate::hashmap::map_file::nameless;
use crate::hashmap::{Batch, Block, Grid, Hash, Item, map_rest};
use crate::scan::{FileState, Image};

/// Batches that are hashed in one go, 32 MiB of data: while one is hashed the next is gathered,
/// and who is gone is noticed at the end.
const STRETCH: usize = 8;
/// Files whose hashes are kept at once. A reader that is further behind hashes by itself.
const MOST_FILES: usize = 64;
/// A file with less data is hashed as soon as it is looked up here.
const LEAST: u64 = 256 << 10;
/// Bytes of hashes that are kept of one file: 1.4 TiB of data at the usual block size.
const MOST_BYTES: u64 = 1 << 30;
/// Bytes before each batch: its length here, and how much was read for it.
const HEAD: usize = 16;

/// The hashes of the files that several readers go through.
#[derive(Debug, Default)]
pub struct SharedMaps(Mutex<VecDeque<Arc<SharedMap>>>);

impl SharedMaps {
    /// That of a file in this state, if one of them has it.
    pub fn begun(&self, seen: &FileState, grid: &Grid) -> Option<Arc<SharedMap>> {
        lock(&self.0).iter().find(|map| map.is_of(seen, grid)).map(Arc::clone)
    }

    /// That of a file in this state, which will show when the file is changed; about so many bytes
    /// of it are `data`. `None`: it is not worth it, or there is no room, and each hashes by himself.
    pub fn of(&self, data: u64, seen: &FileState, grid: &Grid) -> Option<Arc<SharedMap>> {
        if data < LEAST {
            return None;
        }
        let mut maps = lock(&self.0);
        if let Some(map) = maps.iter().find(|map| map.is_of(seen, grid)) {
            return Some(Arc::clone(map));
        }
        let map = Arc::new(SharedMap::new(seen.clone(), *grid).ok()?);
        // Whoever reads it goes on to the end of it.
        if maps.len() >= MOST_FILES {
            maps.pop_front();
        }
        maps.push_back(Arc::clone(&map));
        Some(map)
    }
}

/// The hashes of one file, as far as anybody has come.
#[derive(Debug)]
pub struct SharedMap {
    seen: FileState,
    grid: Grid,
    kept: File,
    progress: Mutex<Progress>,
    more: Condvar,
    /// One of the readers keeps the map of the file.
    is_claimed: AtomicBool,
}

/// How far it is.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes of batches that are kept.
    end: u64,
    /// Those of them that a reader has had.
    taken: u64,
    /// The block with which hashing goes on.
    next: u64,
    doing: Doing,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Doing {
    #[default]
    Nothing,
    /// One of the readers hashes.
    Hashing,
    /// There is no room for more: each goes on by himself.
    Full,
    /// The file is through.
    Whole,
}

/// How far one reader is.
#[derive(Debug, Default)]
pub struct Place {
    at: u64,
    block: u64,
}

impl Place {
    /// The next block.
    pub fn block(&self) -> u64 {
        self.block
    }
}

/// What a reader has next.
#[derive(Debug)]
pub enum Next {
    /// A batch without bytes.
    Batch(Batch),
    /// From this block on he hashes by himself.
    Alone(u64),
    /// The file is through.
    End,
}

/// Somebody hashes, and if that panics leaves it to another.
struct Stopped<'a>(&'a SharedMap);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        lock(&self.0.progress).doing = Doing::Nothing;
        self.0.more.notify_all();
    }
}

impl SharedMap {
    fn new(seen: FileState, grid: Grid) -> io::Result<SharedMap> {
        let (progress, more, is_claimed) = Default::default();
        Ok(SharedMap { seen, grid, kept: nameless()?, progress, more, is_claimed })
    }

    /// Whether it is that of a file in this state.
    fn is_of(&self, seen: &FileState, grid: &Grid) -> bool {
        self.seen == *seen && self.grid == *grid
    }

    /// How many blocks the file has.
    pub fn blocks(&self) -> u64 {
        self.grid.blocks()
    }

    /// Whether this reader is the one that keeps the map of the file for later runs: the first that
    /// asks.
    pub fn claim(&self) -> bool {
        !self.is_claimed.swap(true, Ordering::Relaxed)
    }

    /// The next batch, which is hashed now if nobody has done that.
    ///
    /// # Errors
    ///
    /// What seeking and reading report.
    pub fn next(&self, place: &mut Place, image: &dyn Image) -> io::Result<Next> {
        let mut progress = lock(&self.progress);
        while place.at == progress.end {
            match progress.doing {
                Doing::Whole => return Ok(Next::End),
                Doing::Full => return Ok(Next::Alone(place.block)),
                Doing::Hashing => progress = self.wait(progress),
                Doing::Nothing => progress = self.hash_on(progress, image)?,
            }
        }
        drop(progress);
        let at = place.at;
        // What cannot be had from there is hashed again.
        let Ok(batch) = self.read(place) else { return Ok(Next::Alone(place.block)) };
        let mut progress = lock(&self.progress);
        let is_shared = at < progress.taken;
        progress.taken = progress.taken.max(place.at);
        Ok(Next::Batch(Batch { is_shared, ..batch }))
    }

    /// Hashes a stretch, unless somebody does. `false`: there is nothing to do.
    ///
    /// # Errors
    ///
    /// What seeking and reading report.
    pub fn advance(&self, image: &dyn Image) -> io::Result<bool> {
        let progress = lock(&self.progress);
        if progress.doing != Doing::Nothing {
            return Ok(false);
        }
        Ok(self.hash_on(progress, image)?.doing == Doing::Nothing)
    }

    fn wait<'a>(&'a self, progress: MutexGuard<'a, Progress>) -> MutexGuard<'a, Progress> {
        self.more.wait(progress).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Hashes a stretch while the lock is free.
    fn hash_on<'a>(
        &'a self,
        mut progress: MutexGuard<'a, Progress>,
        image: &dyn Image,
    ) -> io::Result<MutexGuard<'a, Progress>> {
        progress.doing = Doing::Hashing;
        let first = progress.next;
        drop(progress);
        let stopped = Stopped(self);
        let (mut batches, mut is_full) = (0, false);
        let hashed = map_rest(image, &self.grid, first, false, |batch| {
            batches += 1;
            is_full = self.keep(batch).is_err();
            Ok::<_, io::Error>(!is_full && batches < STRETCH)
        });
        std::mem::forget(stopped);
        let mut progress = lock(&self.progress);
        progress.doing = match hashed {
            // Another reader may have more luck, or fails by himself.
            Err(_) => Doing::Nothing,
            Ok(()) if is_full => Doing::Full,
            Ok(()) if progress.next == self.grid.blocks() => Doing::Whole,
            Ok(()) => Doing::Nothing,
        };
        self.more.notify_all();
        hashed.map(|()| progress)
    }

    /// Keeps a batch behind those before it.
    fn keep(&self, batch: &Batch) -> io::Result<()> {
        let mut bytes = vec![0; HEAD];
        for item in &batch.items {
            match item {
                Item::Hole(blocks) => bytes.extend([0, *blocks].map(u64::to_le_bytes).concat()),
                Item::Block(Block { hash, data, read, .. }) => {
                    bytes.extend([*read, *data].map(u64::to_le_bytes).concat());
                    bytes.extend(hash);
                }
            }
        }
        let length = bytes.len() as u64;
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        bytes[8..HEAD].copy_from_slice(&(batch.bytes_read as u64).to_le_bytes());
        let at = lock(&self.progress).end;
        if at + bytes.len() as u64 > MOST_BYTES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.kept.write_all_at(&bytes, at)?;
        let mut progress = lock(&self.progress);
        progress.end = at + bytes.len() as u64;
        progress.next += batch.items.iter().map(Item::blocks).sum::<u64>();
        self.more.notify_all();
        Ok(())
    }

    /// Reads the batch at a place that is kept, and goes behind it.
    fn read(&self, place: &mut Place) -> io::Result<Batch> {
        let mut head = [0; HEAD];
        self.kept.read_exact_at(&mut head, place.at)?;
        let mut head = head.as_slice();
        let (length, bytes_read) = (number(&mut head)?, number(&mut head)? as usize);
        let mut bytes = vec![0; (length as usize).saturating_sub(HEAD)];
        self.kept.read_exact_at(&mut bytes, place.at + HEAD as u64)?;
        let (mut rest, mut items) = (bytes.as_slice(), Vec::new());
        while !rest.is_empty() {
            let (read, data) = (number(&mut rest)?, number(&mut rest)?);
            items.push(match read {
                0 => Item::Hole(data),
                read => {
                    Item::Block(Block { hash: take::<{ size_of::<Hash>() }>(&mut rest)?, data, read, at: 0 })
                }
            });
        }
        place.at += length;
        place.block += items.iter().map(Item::blocks).sum::<u64>();
        Ok(Batch { items, bytes_read, ..Batch::default() })
    }
}

fn number(bytes: &mut &[u8]) -> io::Result<u64> {
    take(bytes).map(u64::from_le_bytes)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> io::Result<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
    *bytes = rest;
    Ok(*first)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::hashmap::hash_image;
    use crate::options::BlockSize;
    use crate::scan::{Extent, FileImage};

    /// Counts what is read of a file.
    struct Counted(FileImage, AtomicU64);

    impl Image for Counted {
        fn extents<'a>(
            &'a self,
            range: Range<u64>,
        ) -> Box<dyn Iterator<Item = io::Result<Extent>> + Send + 'a> {
            self.0.extents(range)
        }

        fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
            self.1.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            self.0.read_at(buffer, at)
        }
    }

    /// A file with holes, pages of zeros and a last page that is cut off.
    fn file() -> (File, Grid) {
        let file = tempfile::tempfile().unwrap();
        let grid = Grid { length: (150 << 20) + 77, block: BlockSize::default() };
        file.set_len(grid.length).unwrap();
        for at in 0..100 {
            let bytes: Vec<u8> =
                (0..1 << 20).map(|nth| if at % 7 == 3 { 0 } else { (nth + at) as u8 | 1 }).collect();
            file.write_all_at(&bytes, (at << 20) + at / 10 * (5 << 20)).unwrap();
        }
        (file, grid)
    }

    fn whole(map: &SharedMap, image: &dyn Image) -> (Vec<Item>, u64) {
        let (mut place, mut items, mut first) = (Place::default(), Vec::new(), 0);
        loop {
            match map.next(&mut place, image).unwrap() {
                Next::Batch(batch) => {
                    first += if batch.is_shared { 0 } else { batch.bytes_read as u64 };
                    items.extend(batch.items.into_iter().map(without_place));
                }
                Next::End => return (items, first),
                Next::Alone(_) => panic!("there is room"),
            }
        }
    }

    fn without_place(item: Item) -> Item {
        match item {
            Item::Block(block) => Item::Block(Block { at: 0, ..block }),
            hole => hole,
        }
    }

    #[test]
    fn all_readers_have_the_same_and_each_byte_is_read_once() {
        let (file, grid) = file();
        let image = Counted(FileImage::new(file.try_clone().unwrap(), true), AtomicU64::new(0));
        let mut alone = Vec::new();
        hash_image(&image, &grid, |batch| {
            alone.extend(std::mem::take(&mut batch.items).into_iter().map(without_place));
            Ok::<_, io::Error>(true)
        })
        .unwrap();
        let once = image.1.swap(0, Ordering::Relaxed);
        let maps = SharedMaps::default();
        let seen = FileState::of(&file).unwrap();
        let map = maps.of(LEAST, &seen, &grid).unwrap();
        assert!(map.advance(&image).unwrap(), "there is more than a stretch");
        let hashed: Vec<(Vec<Item>, u64)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..5)
                .map(|_| scope.spawn(|| whole(&maps.of(LEAST, &seen, &grid).unwrap(), &image)))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(image.1.load(Ordering::Relaxed), once);
        assert_eq!(hashed.iter().map(|(_, first)| first).sum::<u64>(), once);
        assert!(hashed.iter().all(|(items, _)| blocks(items) == blocks(&alone)));
        assert!(!map.advance(&image).unwrap());
    }

    /// Holes as so many single blocks: where they are cut depends on where a stretch begins.
    fn blocks(items: &[Item]) -> Vec<Option<Block>> {
        let each = |item: &Item| match item {
            Item::Hole(blocks) => vec![None; *blocks as usize],
            Item::Block(block) => vec![Some(*block)],
        };
        items.iter().flat_map(each).collect()
    }

    #[test]
    fn a_file_that_changed_is_another() {
        let (file, grid) = file();
        let maps = SharedMaps::default();
        let first = maps.of(LEAST, &FileState::of(&file).unwrap(), &grid).unwrap();
        file.set_len(1 << 20).unwrap();
        let second = maps.of(LEAST, &FileState::of(&file).unwrap(), &grid).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn no_more_than_so_many_are_kept() {
        let maps = SharedMaps::default();
        let block = BlockSize::default();
        let file = tempfile::tempfile().unwrap();
        let seen = FileState::of(&file).unwrap();
        let of = |length| maps.of(LEAST, &seen, &Grid { length, block }).unwrap();
        let first = of(0);
        (1..=MOST_FILES as u64).for_each(|length| drop(of(length)));
        assert!(!Arc::ptr_eq(&first, &of(0)));
        assert_eq!(lock(&maps.0).len(), MOST_FILES);
    }

    /// One whose image cannot be read fails alone.
    #[test]
    fn a_reader_that_fails_leaves_the_next_stretch_to_another() {
        struct Broken;
        impl Image for Broken {
            fn extents<'a>(
                &'a self,
                range: Range<u64>,
            ) -> Box<dyn Iterator<Item = io::Result<Extent>> + Send + 'a> {
                Box::new(std::iter::once(Ok(range)))
            }

            fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
                Err(io::Error::other("broken"))
            }
        }
        let (file, grid) = file();
        let map = SharedMaps::default().of(LEAST, &FileState::of(&file).unwrap(), &grid).unwrap();
        assert!(map.next(&mut Place::default(), &Broken).is_err());
        let image = FileImage::new(file, true);
        assert_eq!(whole(&map, &image).0.iter().map(Item::blocks).sum::<u64>(), grid.blocks());
    }
}
