//! Hashing begins while the connection is still being made, when the processors have
//! little else to do: a file that is to be sent, or one that is to be compared with what
//! comes. It ends when that file's turn comes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::hashmap::{self, BATCH, Batch, Grid, Item};
use crate::options::BlockSize;
use crate::scan::{self, FileImage, FileState};
use crate::sys;

/// More is not kept in memory: 4 GiB of dense data at the usual block size.
const MAX_ITEMS: usize = 1 << 16;

/// A file that is being hashed ahead. Dropped, it is left alone.
pub struct EarlyStart {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<EarlyHashes>>>,
}

/// The blocks of a file from its first one on, as far as they were hashed.
pub(crate) struct EarlyHashes {
    seen: FileState,
    grid: Grid,
    items: Vec<Item>,
    /// How many blocks they stand for.
    pub blocks: u64,
}

impl EarlyStart {
    /// Begins with a file. `hole_map` false: do not ask for holes, read everything.
    pub fn begin(path: &Path, block: BlockSize, hole_map: bool) -> EarlyStart {
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (path.to_path_buf(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || EarlyHashes::of(&path, block, hole_map, &stopped));
        EarlyStart { stop, thread: Some(thread) }
    }

    /// What was hashed by now, if anything. Waits for the batch that is in work.
    pub(crate) fn end(mut self) -> Option<EarlyHashes> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take()?.join().ok()?
    }
}

impl Drop for EarlyStart {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl EarlyHashes {
    /// Hashes until told to stop. What goes wrong goes wrong again when the file is
    /// read in earnest, and is reported then. A device does not show that it changed.
    fn of(path: &Path, block: BlockSize, hole_map: bool, stop: &AtomicBool) -> Option<EarlyHashes> {
        let metadata = path.metadata().ok()?;
        // What the cache does not keep is to be read once, and opening a fifo is felt.
        if !metadata.is_file() || scan::exceeds_cache(512 * metadata.blocks()) {
            return None;
        }
        let (file, length) = scan::open_image(path).ok()?;
        if !sys::is_cached(&file) {
            return None;
        }
        let seen = FileState::of(&file).ok()?;
        if !seen.will_show_changes() {
            return None;
        }
        let grid = Grid { length, block };
        let image = FileImage::new(file, hole_map);
        let mut items = Vec::new();
        let hashed = hashmap::hash_image(&image, &grid, |batch| {
            items.append(&mut batch.items);
            Ok::<_, std::io::Error>(!stop.load(Ordering::Relaxed) && items.len() < MAX_ITEMS)
        });
        hashed.ok()?;
        let blocks = items.iter().map(Item::blocks).sum();
        Some(EarlyHashes { seen, grid, items, blocks })
    }

    /// Whether they are those of a file that is in this state.
    pub fn fit(&self, seen: &FileState, grid: &Grid) -> bool {
        self.seen == *seen && self.grid == *grid
    }

    /// Batches without bytes, each with the index of its first block.
    pub fn into_batches(self) -> Vec<(u64, Batch)> {
        let mut batches: Vec<(u64, Batch)> = Vec::new();
        let mut index = 0;
        for item in self.items {
            if batches.last().is_none_or(|(_, batch)| batch.bytes_read >= BATCH) {
                batches.push((index, Batch::default()));
            }
            let Some((_, batch)) = batches.last_mut() else { continue };
            if let Item::Block(block) = &item {
                batch.bytes_read += self.grid.masked_bytes(index, block.read) as usize;
            }
            index += item.blocks();
            batch.items.push(item);
        }
        batches
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn hashes(path: &Path, stop: bool) -> EarlyHashes {
        EarlyHashes::of(path, BlockSize::default(), true, &AtomicBool::new(stop)).unwrap()
    }

    #[test]
    fn what_was_hashed_before_the_stop_is_the_head_of_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let grid = Grid { length: 20 << 20, block: BlockSize::default() };
        file.as_file().set_len(grid.length).unwrap();
        (0..12).for_each(|at| file.as_file().write_all_at(&[at as u8 + 1; 1 << 20], at << 20).unwrap());
        let whole = hashes(file.path(), false);
        assert_eq!(whole.blocks, grid.blocks());
        let head = hashes(file.path(), true);
        assert!((1..grid.blocks()).contains(&head.blocks), "{}", head.blocks);
        assert_eq!(whole.items[..head.items.len()], head.items);
        let seen = FileState::of(file.as_file()).unwrap();
        assert!(whole.fit(&seen, &grid));
        let items = whole.items.clone();
        let batches: Vec<_> = whole.into_batches().into_iter().map(|(_, batch)| batch).collect();
        assert!(batches.iter().all(|batch| batch.buffer.is_empty() && batch.bytes_read <= 5 << 20));
        assert_eq!(batches.iter().map(|batch| batch.bytes_read).sum::<usize>(), 12 << 20);
        assert_eq!(batches.into_iter().flat_map(|batch| batch.items).collect::<Vec<_>>(), items);
    }

    #[test]
    fn they_are_of_no_use_for_a_file_that_changed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&[1; 4096], 0).unwrap();
        let early = hashes(file.path(), false);
        file.as_file().write_all_at(&[2; 8192], 0).unwrap();
        let seen = FileState::of(file.as_file()).unwrap();
        assert!(!early.fit(&seen, &early.grid));
    }
}
