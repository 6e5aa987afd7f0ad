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
    batches: SyncSender<Hashed>,
    buffers: Receiver<Vec<u8>>,
) {
    for wanted in jobs {
        let early = early.take().and_then(EarlyStart::end);
        let last = match hash_file(options, &wanted, early, &batches, &buffers) {
            Ok(Some(same)) => Hashed::End(same),
            Ok(None) => return,
            Err(error) => Hashed::Failed(error),
        };
        if batches.send(last).is_err() {
            return;
        }
    }
}

/// `None`: nobody listens any more.
fn hash_file(
    options: &Options,
    Wanted { source, compared }: &Wanted,
    early: Option<EarlyHashes>,
    batches: &SyncSender<Hashed>,
    buffers: &Receiver<Vec<u8>>,
) -> Result<Option<bool>> {
    let Kind::File { length, allocated, .. } = source.kind else { return Ok(Some(true)) };
    let io = |doing| Error::file(doing, &source.path);
    let (file, _) = tree::open_image(&source.path)?;
    let seen = Seen::of(&file).map_err(io("look at"))?;
    if seen.length != length {
        return Ok(Some(false));
    }
    let grid = Grid { length, block: options.block_size };
    let image = FileImage::new(file, options.hole_map);
    let image = if scan::exceeds_cache(allocated) { image.sparing_cache() } else { image };
    let opened = Arc::new(Opened { image, seen });
    let Opened { image, seen } = opened.as_ref();
    let mut first = 0;
    if let Some(early) = early.filter(|early| early.fit(&source.path, seen, &grid)) {
        first = early.blocks;
        for (index, mut batch) in early.into_batches() {
            let hashed = if *compared {
                Hashed::Early(batch, Arc::clone(&opened))
            } else {
                // All of it will be sent.
                batch.buffer = buffers.try_recv().unwrap_or_default();
                let blocks = Batch::blocks_of(&mut batch.items, index);
                hashmap::read_blocks(image, &grid, blocks, &mut batch.buffer).map_err(io("read"))?;
                Hashed::Batch(batch)
            };
            if batches.send(hashed).is_err() {
                return Ok(None);
            }
        }
    }
    let mut heard = true;
    hashmap::map_rest(image, &grid, first, |batch| {
        heard = batches.send(Hashed::Batch(std::mem::take(batch))).is_ok();
        batch.buffer = buffers.try_recv().unwrap_or_default();
        Ok::<_, std::io::Error>(heard)
    })
    .map_err(io("read"))?;
    Ok(heard.then(|| seen.is_still(image.file())))
}
