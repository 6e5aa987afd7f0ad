//! Reads and hashes the sender's files, one after the other, as the receiver
//! asks for them.

use std::sync::mpsc::{Receiver, SyncSender};

use crate::error::{Error, Result};
use crate::hashmap::{self, Batch, Grid};
use crate::options::Options;
use crate::protocol::Kind;
use crate::scan::{FileImage, Seen};
use crate::tree::{self, Source};

/// What the hasher hands to the merging thread.
pub(crate) enum Hashed {
    Batch(Batch),
    /// The file is through; whether it stayed the same meanwhile.
    End(bool),
    Failed(Error),
}

/// Reads and hashes files one after the other, as the receiver asks for them.
pub(crate) fn hash_files(
    options: &Options,
    jobs: Receiver<Source>,
    batches: SyncSender<Hashed>,
    buffers: Receiver<Vec<u8>>,
) {
    for source in jobs {
        let last = match hash_file(options, &source, &batches, &buffers) {
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
    source: &Source,
    batches: &SyncSender<Hashed>,
    buffers: &Receiver<Vec<u8>>,
) -> Result<Option<bool>> {
    let Kind::File { length, .. } = source.kind else { return Ok(Some(true)) };
    let io = |doing| Error::file(doing, &source.path);
    let (file, _) = tree::open_image(&source.path)?;
    let before = Seen::of(&file).map_err(io("look at"))?;
    if before.length != length {
        return Ok(Some(false));
    }
    let grid = Grid { length, block: options.block_size };
    let image = FileImage::new(file, options.hole_map);
    let mut heard = true;
    hashmap::map_image(&image, &grid, |batch| {
        heard = batches.send(Hashed::Batch(std::mem::take(batch))).is_ok();
        batch.buffer = buffers.try_recv().unwrap_or_default();
        Ok::<_, std::io::Error>(heard)
    })
    .map_err(io("read"))?;
    let after = Seen::of(image.file()).map_err(io("look at"))?;
    Ok(heard.then_some(before == after))
}
