//! What a thread that hashes does before it has its first job: it hashes the file that
//! this job will probably be about, while the connection is still being made and the
//! processors have little else to do.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use crate::confinement::NamedPath;
use crate::hashmap::cache::MapCache;
use crate::hashmap::shared::{Next, Place, SharedMap, SharedMaps};
use crate::hashmap::{self, Batch, Grid, Item, KnownMap};
use crate::options::BlockSize;
use crate::scan::{self, FileImage, FileState, Image};
use crate::sys;

/// More is not kept in memory: 4 GiB of dense data at the usual block size.
const MAX_ITEMS: usize = 1 << 16;

/// A file that will probably be asked for.
#[derive(Debug, Clone)]
pub struct Likely {
    /// Where it is.
    pub path: PathBuf,
    /// The grid on which it will be hashed.
    pub block: BlockSize,
    /// False: do not ask for holes, read everything.
    pub hole_map: bool,
    /// A file of which a map is kept is not hashed.
    pub maps: Option<Arc<MapCache>>,
}

/// What need not be read of a file that is wanted now, or not by this reader alone: the blocks from
/// its first one on.
pub enum Head {
    /// All of it is to be read.
    Unread,
    /// These were hashed while there was nothing else to do.
    Hashed {
        /// Each with the index of its first block.
        batches: std::vec::IntoIter<(u64, Batch)>,
        /// How many blocks they stand for.
        blocks: u64,
    },
    /// They are hashed for several.
    Shared {
        /// What they are hashed to.
        map: Arc<SharedMap>,
        /// How far this reader is.
        place: Place,
        /// The block with which it goes on by itself.
        next: u64,
    },
    /// Of these, or some of them, a map was kept.
    Known(Box<KnownMap>),
    /// Some of these are those of another file, of which a map was kept: what is told of them is as
    /// good as if all had been hashed.
    Alike(Box<KnownMap>),
}

impl Head {
    /// The next blocks, without bytes, with the index of the first. `grid`: where they are wanted,
    /// which may end before the file does.
    ///
    /// # Errors
    ///
    /// What reading reports, where blocks are hashed now.
    pub fn batch(&mut self, grid: &Grid, image: &dyn Image) -> io::Result<Option<(u64, Batch)>> {
        Ok(match self {
            Head::Unread => None,
            Head::Hashed { batches, .. } => batches.next(),
            Head::Shared { map, place, next } => {
                let first = place.block();
                match map.next(place, image)? {
                    Next::Batch(batch) => Some((first, batch)),
                    Next::Alone(block) => {
                        *next = block;
                        None
                    }
                    Next::End => {
                        *next = map.blocks();
                        None
                    }
                }
            }
            Head::Known(map) | Head::Alike(map) => map.batch(grid, image)?,
        })
    }

    /// The block with which reading begins, once there is no more here.
    pub fn next_block(&self) -> u64 {
        match self {
            Head::Unread => 0,
            Head::Hashed { blocks, .. } => *blocks,
            Head::Shared { next, .. } => *next,
            Head::Known(map) | Head::Alike(map) => map.next_block(),
        }
    }
}

impl From<Ahead> for Head {
    fn from(ahead: Ahead) -> Head {
        Head::Hashed { batches: ahead.batches.into_iter(), blocks: ahead.blocks }
    }
}

impl From<Arc<SharedMap>> for Head {
    fn from(map: Arc<SharedMap>) -> Head {
        Head::Shared { map, place: Place::default(), next: 0 }
    }
}

/// The blocks of a file from its first one on, as far as they were hashed.
pub struct Ahead {
    seen: FileState,
    grid: Grid,
    /// Without bytes, each with the index of its first block.
    batches: Vec<(u64, Batch)>,
    /// How many blocks they stand for.
    blocks: u64,
}

/// Waits for the first job, and hashes meanwhile: for itself, or for all who share. `None`: there
/// will be no job.
pub fn await_job<J>(
    jobs: &Receiver<J>,
    likely: Option<Likely>,
    shared: Option<&SharedMaps>,
) -> Option<(J, Option<Ahead>)> {
    let mut first = None;
    let is_enough = || match jobs.try_recv() {
        Ok(job) => {
            first = Some(job);
            true
        }
        Err(TryRecvError::Empty) => false,
        Err(TryRecvError::Disconnected) => true,
    };
    let ahead = likely.and_then(|likely| Subject::of(&likely)).and_then(|subject| match shared {
        Some(maps) => {
            subject.hash_for_all(maps, is_enough);
            None
        }
        None => Ahead::of(subject, is_enough),
    });
    let job = first.map_or_else(|| jobs.recv().ok(), Some)?;
    Some((job, ahead))
}

/// A likely file that can be hashed ahead.
struct Subject {
    image: FileImage,
    seen: FileState,
    grid: Grid,
    /// About how much of it is data.
    data: u64,
}

impl Subject {
    /// A device does not show that it changed.
    fn of(likely: &Likely) -> Option<Subject> {
        let metadata = likely.path.metadata().ok()?;
        // What the cache does not keep is to be read once, and opening a fifo is felt.
        let data = scan::may_hold(512 * metadata.blocks(), metadata.len());
        if !metadata.is_file() || scan::exceeds_cache(data) {
            return None;
        }
        let (file, _) = scan::open_image(&NamedPath::here(&likely.path)).ok()?;
        if !sys::is_cached(&file) {
            return None;
        }
        let seen = FileState::of(&file).ok()?;
        let is_known = |maps: &Arc<MapCache>| maps.knows(&file, &seen, likely.block);
        if likely.maps.as_ref().is_some_and(is_known) || !seen.will_show_changes(&file) {
            return None;
        }
        let grid = Grid { length: seen.length, block: likely.block };
        // A write that is under way has left its time already.
        let is_kept = likely.maps.as_ref().is_some_and(|maps| maps.may_keep(&grid));
        if is_kept && !sys::is_written_by_nobody(&file) {
            return None;
        }
        Some(Subject { image: FileImage::new(file, likely.hole_map), seen, grid, data })
    }

    /// Hashes until it is enough, or another one does it.
    fn hash_for_all(&self, maps: &SharedMaps, mut is_enough: impl FnMut() -> bool) {
        let Some(map) = maps.of(self.data, &self.seen, &self.grid) else { return };
        while !is_enough() && map.advance(&self.image).is_ok_and(|more| more) {}
    }
}

impl Ahead {
    /// Hashes until it is enough. What goes wrong goes wrong again when the file is read in
    /// earnest, and is reported then.
    fn of(subject: Subject, mut is_enough: impl FnMut() -> bool) -> Option<Ahead> {
        let Subject { image, seen, grid, .. } = subject;
        let mut ahead = Ahead { seen, grid, batches: Vec::new(), blocks: 0 };
        let mut items = 0;
        let hashed = hashmap::hash_image(&image, &grid, |batch| {
            let batch = std::mem::take(batch);
            items += batch.items.len();
            let first = ahead.blocks;
            ahead.blocks += batch.items.iter().map(Item::blocks).sum::<u64>();
            ahead.batches.push((first, batch));
            Ok::<_, std::io::Error>(!is_enough() && items < MAX_ITEMS)
        });
        hashed.ok().map(|()| ahead)
    }

    /// It, if it is that of a file in this state.
    pub fn fitting(self, seen: &FileState, grid: &Grid) -> Option<Ahead> {
        (self.seen == *seen && self.grid == *grid).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::sync::mpsc::channel;

    use super::*;

    fn likely(path: &Path) -> Likely {
        Likely { path: path.to_path_buf(), block: BlockSize::default(), hole_map: true, maps: None }
    }

    fn items(ahead: Ahead) -> Vec<Item> {
        ahead.batches.into_iter().flat_map(|(_, batch)| batch.items).collect()
    }

    #[test]
    fn what_was_hashed_before_the_job_is_the_head_of_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let grid = Grid { length: 20 << 20, block: BlockSize::default() };
        file.as_file().set_len(grid.length).unwrap();
        (0..12).for_each(|at| file.as_file().write_all_at(&[at as u8 + 1; 1 << 20], at << 20).unwrap());
        let whole = Ahead::of(Subject::of(&likely(file.path())).unwrap(), || false).unwrap();
        assert_eq!(whole.blocks, grid.blocks());
        // The job is there already.
        let (jobs_in, jobs) = channel();
        jobs_in.send(7).unwrap();
        let (job, head) = await_job(&jobs, Some(likely(file.path())), None).unwrap();
        let head = head.unwrap();
        assert_eq!(job, 7);
        assert!((1..grid.blocks()).contains(&head.blocks), "{}", head.blocks);
        let seen = FileState::of(file.as_file()).unwrap();
        let whole = whole.fitting(&seen, &grid).unwrap();
        assert!(whole.batches.iter().all(|(_, batch)| batch.buffer.is_empty()));
        assert_eq!(whole.batches.iter().map(|(_, batch)| batch.bytes_read).sum::<usize>(), 12 << 20);
        let mut at = 0;
        for (first, batch) in &whole.batches {
            assert_eq!(*first, at);
            at += batch.items.iter().map(Item::blocks).sum::<u64>();
        }
        let (whole, head) = (items(whole), items(head));
        assert_eq!(whole[..head.len()], head);
    }

    #[test]
    fn it_is_of_no_use_for_a_file_that_changed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&[1; 4096], 0).unwrap();
        let ahead = Ahead::of(Subject::of(&likely(file.path())).unwrap(), || false).unwrap();
        file.as_file().write_all_at(&[2; 8192], 0).unwrap();
        let (seen, grid) = (FileState::of(file.as_file()).unwrap(), ahead.grid);
        assert!(ahead.fitting(&seen, &grid).is_none());
    }

    #[test]
    fn without_a_job_to_come_it_ends() {
        let (jobs_in, jobs) = channel::<u8>();
        drop(jobs_in);
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(await_job(&jobs, Some(likely(file.path())), None).is_none());
    }
}
