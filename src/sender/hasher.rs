//! Reads and hashes the sender's files, one after the other, as the receiver
//! asks for them.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use crate::error::{Error, Result};
use crate::hashmap::ahead::{EarlyHashes, EarlyStart};
use crate::hashmap::{self, Batch, Grid};
use crate::options::{Compress, Options};
use crate::scan::{self, FileImage, FileState};
use crate::sender::announce::Wanted;
use crate::source::Kind;
use crate::sys;

/// What the hasher hands to the merging thread.
pub(crate) enum Hashed {
    Batch(Batch),
    /// One without its bytes, which are to be had from the file.
    Bare(Batch, Arc<Opened>),
    /// The file is through; whether it stayed the same meanwhile.
    End(bool),
    Failed(Error),
}

/// A source and the state in which it was hashed.
pub(crate) struct Opened {
    pub image: FileImage,
    pub seen: FileState,
}

/// Reads and hashes files one after the other, as the receiver asks for them. `early`:
/// one may have been begun. `direct`: bytes of files need not be read to be sent.
pub(crate) fn hash_files(
    options: &Options,
    direct: bool,
    mut early: Option<EarlyStart>,
    jobs: Receiver<Wanted>,
    queue: SyncSender<Vec<Hashed>>,
    buffers: Receiver<Vec<u8>>,
) {
    let hand = Hand { queue, held: Vec::new(), bytes: 0 };
    let mut hasher = Hasher { options, direct, buffers, hand };
    while let Some(wanted) = hasher.hand.next_job(&jobs) {
        let early = early.take().and_then(EarlyStart::end);
        let last = match hasher.file(&wanted, early) {
            Ok(true) => continue,
            Ok(false) => return,
            Err(error) => Hashed::Failed(error),
        };
        if !hasher.hand.give(last) {
            return;
        }
    }
}

/// Bytes of small files that go to the merging thread together, so that it wakes less
/// often.
const HANDFUL: usize = 256 << 10;
/// What a file counts for at least.
const LEAST: usize = 4 << 10;

/// What was hashed, on its way to the merging thread.
struct Hand {
    queue: SyncSender<Vec<Hashed>>,
    held: Vec<Hashed>,
    bytes: usize,
}

impl Hand {
    /// Adds something; `false`: nobody listens any more.
    fn give(&mut self, hashed: Hashed) -> bool {
        self.bytes += match &hashed {
            Hashed::Batch(batch) | Hashed::Bare(batch, _) => batch.bytes_read,
            Hashed::End(_) | Hashed::Failed(_) => LEAST,
        };
        self.held.push(hashed);
        self.bytes < HANDFUL || self.hand_on()
    }

    fn hand_on(&mut self) -> bool {
        self.bytes = 0;
        self.held.is_empty() || self.queue.send(std::mem::take(&mut self.held)).is_ok()
    }

    /// The next file. What is held goes on before this waits for one.
    fn next_job(&mut self, jobs: &Receiver<Wanted>) -> Option<Wanted> {
        match jobs.try_recv() {
            Ok(job) => Some(job),
            Err(_) if self.hand_on() => jobs.recv().ok(),
            Err(_) => None,
        }
    }
}

struct Hasher<'a> {
    options: &'a Options,
    direct: bool,
    /// Room that the merging thread is done with.
    buffers: Receiver<Vec<u8>>,
    hand: Hand,
}

impl Hasher<'_> {
    /// Hashes a file; `false`: nobody listens any more.
    fn file(&mut self, Wanted { source, compared }: &Wanted, early: Option<EarlyHashes>) -> Result<bool> {
        let Kind::File { length, allocated, retry, .. } = source.kind else {
            return Ok(self.hand.give(Hashed::End(true)));
        };
        // Small files do not wait for a large one.
        let is_small = allocated < HANDFUL as u64;
        if !is_small && !self.hand.hand_on() {
            return Ok(false);
        }
        let io = |doing| Error::file(doing, &source.path);
        let (file, _) = scan::open_image(&source.path)?;
        let seen = FileState::of(&file).map_err(io("look at"))?;
        if seen.length != length {
            return Ok(self.hand.give(Hashed::End(false)));
        }
        let grid = Grid { length, block: self.options.block_size };
        let image = FileImage::new(file, self.options.hole_map);
        let exceeds_cache = scan::exceeds_cache(allocated);
        let image = if exceeds_cache { image.sparing_cache() } else { image };
        let opened = Arc::new(Opened { image, seen });
        let Opened { image, seen } = opened.as_ref();
        // One that changed unseen before may do so again.
        let is_read_once = is_small || exceeds_cache || retry || !seen.shows_changes();
        let keeps_bytes = is_read_once || !sys::is_cached(image.file()) || self.wants_bytes(*compared);
        let mut first = 0;
        if let Some(early) = early.filter(|early| early.fit(seen, &grid)) {
            first = early.blocks;
            for (index, batch) in early.into_batches() {
                let hashed = if keeps_bytes && !*compared {
                    Hashed::Batch(self.read(&opened, &grid, index, batch).map_err(io("read"))?)
                } else {
                    Hashed::Bare(batch, Arc::clone(&opened))
                };
                if !self.hand.give(hashed) {
                    return Ok(false);
                }
            }
        }
        let mut heard = true;
        hashmap::map_rest(image, &grid, first, keeps_bytes, |batch| {
            let hashed = std::mem::take(batch);
            if keeps_bytes {
                heard = self.hand.give(Hashed::Batch(hashed));
                batch.buffer = self.buffers.try_recv().unwrap_or_default();
            } else {
                heard = self.hand.give(Hashed::Bare(hashed, Arc::clone(&opened)));
            }
            Ok::<_, io::Error>(heard)
        })
        .map_err(io("read"))?;
        Ok(heard && self.hand.give(Hashed::End(seen.is_still(image.file()))))
    }

    /// Whether the merging thread needs all bytes: most are sent, and not past us.
    /// Otherwise what is only hashed stays in the cache of a processor.
    fn wants_bytes(&self, compared: bool) -> bool {
        let passes_them_by = self.direct && self.options.compress != Compress::Zstd;
        !compared && !self.options.dry_run && !passes_them_by
    }

    /// Reads the bytes of a batch whose first block is the one with this index.
    fn read(&self, opened: &Opened, grid: &Grid, index: u64, mut batch: Batch) -> io::Result<Batch> {
        batch.buffer = self.buffers.try_recv().unwrap_or_default();
        let blocks = Batch::blocks_of(&mut batch.items, index);
        hashmap::read_blocks(&opened.image, grid, blocks, &mut batch.buffer)?;
        Ok(batch)
    }
}
