//! A store of chunks: `1a2b/1a2b….cacnk`, packed with zstd or gzip.

use std::io::Read;

use flate2::read::GzDecoder;

use crate::error::{Error, Result};
use crate::store::casync::{Chunk, Index};
use crate::store::objects::Objects;

/// See the module.
#[derive(Clone, Copy)]
pub struct ChunkStore<'a> {
    /// Where its objects are.
    pub objects: &'a dyn Objects,
    /// What the names of all chunks begin with there: empty, or a folder and `/`.
    pub prefix: &'a str,
}

/// A chunk that was fetched.
#[derive(Debug)]
pub struct Fetched {
    /// Its bytes, which are the right ones.
    pub bytes: Vec<u8>,
    /// How many travelled.
    pub received: u64,
}

impl ChunkStore<'_> {
    /// Fetches a chunk.
    ///
    /// # Errors
    ///
    /// When it cannot be had, or has other bytes than the index says: each names its address.
    pub fn fetch(&self, index: &Index, chunk: &Chunk) -> Result<Fetched> {
        let name = format!("{}{}.cacnk", self.prefix, chunk.name());
        let address = || self.objects.address(&name);
        let packed = self.objects.get(&name, most_packed(chunk.len()))?.ok_or_else(|| {
            Error::refused(address(), "is not there, and the index names it: publish the image anew")
        })?;
        let bad = |what: &str| Error::Protocol { peer: address(), what: what.into() };
        let bytes = unpack(&packed, chunk.len()).map_err(bad)?;
        if !index.is_of(chunk, &bytes) {
            return Err(bad("other bytes than the index says"));
        }
        Ok(Fetched { bytes, received: packed.len() as u64 })
    }
}

/// How long a chunk of so many bytes may be when it is packed: more than any packer makes of it.
fn most_packed(len: usize) -> u64 {
    len as u64 + len as u64 / 64 + (64 << 10)
}

/// Unpacks no more than `len` bytes. What is wrong, if anything is.
fn unpack(packed: &[u8], len: usize) -> Result<Vec<u8>, &'static str> {
    match packed {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            zstd::bulk::decompress(packed, len).map_err(|_| "a chunk that zstd cannot unpack into its length")
        }
        [0x1f, 0x8b, ..] => {
            let mut bytes = Vec::with_capacity(len);
            let read = GzDecoder::new(packed).take(len as u64 + 1).read_to_end(&mut bytes);
            read.map(|_| bytes).map_err(|_| "a chunk that gzip cannot unpack")
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            Err("a chunk that is packed with xz, which is not read here: publish it with --compression=zstd")
        }
        _ => Err("a chunk that is packed with neither zstd nor gzip"),
    }
}
