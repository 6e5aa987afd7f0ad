//! Reads and hashes the sender's files, one after the other, as the receiver
//! asks for them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use crate::announce::Wanted;
use crate::early::{EarlyHashes, EarlyStart};
use crate::error::{Error, Result};
use crate::hashmap::{self, Batch, Grid};
use crate::options::Options;
use crate::protocol::Kind;
use crate::scan::{self, FileImage, Seen};
use crate::tree;

/// What the hasher hands to the merging thread.
pub(crate) enum Hashed {
    Batch(Batch),
    /// One without its bytes, which are to be had from the file.
    Early(Batch, Arc<Opened>),
    /// The file is through; whether it stayed the same meanwhile.
    End(bool),
    Failed(Error),
}

/// A source and the state in which it was hashed.
pub(crate) struct Opened {
    pub image: FileImage,
    pub seen: Seen,
}

/// Reads and hashes files one after the other, as the receiver asks for them. `early`:
/// one may have been begun.
pub(crate) fn hash_files(
    options: &Options,
    mut early: Option<EarlyStart>,
    jobs: Receiver<Wanted>,
    queue: SyncSender<Vec<Hashed>>,
    buffers: Receiver<Vec<u8>>,
) {
    let mut hand = Hand { queue, held: Vec::new(), bytes: 0 };
    while let Some(wanted) = hand.next_job(&jobs) {
        let early = early.take().and_then(EarlyStart::end);
        let last = match hash_file(options, &wanted, early, &mut hand, &buffers) {
            Ok(true) => continue,
            Ok(false) => return,
            Err(error) => Hashed::Failed(error),
        };
        if !hand.give(last) {
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
            Hashed::Batch(batch) | Hashed::Early(batch, _) => batch.bytes_read,
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

/// `false`: nobody listens any more.
fn hash_file(
    options: &Options,
    Wanted { source, compared }: &Wanted,
    early: Option<EarlyHashes>,
    hand: &mut Hand,
    buffers: &Receiver<Vec<u8>>,
) -> Result<bool> {
    let Kind::File { length, allocated, .. } = source.kind else { return Ok(hand.give(Hashed::End(true))) };
    // Small files do not wait for a large one.
    if allocated >= HANDFUL as u64 && !hand.hand_on() {
        return Ok(false);
    }
    let io = |doing| Error::file(doing, &source.path);
    let (file, _) = tree::open_image(&source.path)?;
    let seen = Seen::of(&file).map_err(io("look at"))?;
    if seen.length != length {
        return Ok(hand.give(Hashed::End(false)));
    }
    let grid = Grid { length, block: options.block_size };
    let image = FileImage::new(file, options.hole_map);
    let image = if scan::exceeds_cache(allocated) { image.sparing_cache() } else { image };
    let opened = Arc::new(Opened { image, seen });
    let Opened { image, seen } = opened.as_ref();
    let all_is_sent = !compared && !options.dry_run;
    let mut first = 0;
    if let Some(early) = early.filter(|early| early.fit(&source.path, seen, &grid)) {
        first = early.blocks;
        for (index, mut batch) in early.into_batches() {
            let hashed = if all_is_sent {
                batch.buffer = buffers.try_recv().unwrap_or_default();
                let blocks = Batch::blocks_of(&mut batch.items, index);
                hashmap::read_blocks(image, &grid, blocks, &mut batch.buffer).map_err(io("read"))?;
                Hashed::Batch(batch)
            } else {
                Hashed::Early(batch, Arc::clone(&opened))
            };
            if !hand.give(hashed) {
                return Ok(false);
            }
        }
    }
    let mut heard = true;
    hashmap::map_rest(image, &grid, first, |batch| {
        heard = hand.give(Hashed::Batch(std::mem::take(batch)));
        batch.buffer = buffers.try_recv().unwrap_or_default();
        Ok::<_, std::io::Error>(heard)
    })
    .map_err(io("read"))?;
    Ok(heard && hand.give(Hashed::End(seen.is_still(image.file()))))
}
