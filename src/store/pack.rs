//! Packs: blocks of one version, some of them together as a frame of zstd, one frame behind the other.
//!
//! Magic, a number of 8 bytes that is 0 unless the pack needs another name, frames. What a frame unpacks
//! to are the pages with data of its blocks, packed. Which blocks these are stands in the places of
//! each version that has them.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use crate::hashmap::Hash;
use crate::hashmap::map_file::nameless;
use crate::store::head::Proven;
use crate::store::name::ObjectId;
use crate::store::places::PackId;

const MAGIC: &[u8; 16] = b"holesync pack 1\n";
/// Bytes before the first frame.
const HEAD: usize = 24;
/// A frame is closed when its blocks have so many bytes.
pub const ENOUGH_RAW: usize = 256 << 10;
/// What a frame may unpack to: one block less than enough, and the largest block.
pub const MOST_RAW: usize = 2 * ENOUGH_RAW;
/// What a frame may have: zstd makes nothing much larger.
pub const MOST_STORED: usize = MOST_RAW + MOST_RAW / 128 + 512;
/// The window of a stream of zstd that is unpacked, as a power of two: level 9 makes none larger.
pub const MOST_WINDOW: u32 = 23;
/// A pack is closed when it has so many bytes.
const ENOUGH_PACK: u64 = 64 << 20;
/// What a pack may have.
pub const MOST_PACK: u64 = 1 << 30;

/// A pack that is being written, to a file without a name.
pub struct PackWriter {
    file: File,
    length: u64,
}

impl PackWriter {
    /// One without a frame.
    ///
    /// # Errors
    ///
    /// When there is no room for it.
    pub fn new() -> io::Result<PackWriter> {
        let mut file = nameless()?;
        file.write_all(&[MAGIC.as_slice(), &[0; 8]].concat())?;
        Ok(PackWriter { file, length: HEAD as u64 })
    }

    /// Whether it is large enough.
    pub fn is_enough(&self) -> bool {
        self.length >= ENOUGH_PACK
    }

    /// Adds a frame. Returns where it begins.
    ///
    /// # Errors
    ///
    /// What writing reports.
    pub fn add(&mut self, frame: &[u8]) -> io::Result<u64> {
        let at = self.length;
        self.file.write_all(frame)?;
        self.length += frame.len() as u64;
        Ok(at)
    }

    /// The file, and the name that follows from its content. `is_taken`: it may not have that name.
    ///
    /// # Errors
    ///
    /// What reading reports.
    pub fn finish(self, is_taken: impl Fn(&PackId) -> bool) -> io::Result<(File, PackId)> {
        let mut salt = 0_u64;
        loop {
            self.file.write_all_at(&salt.to_le_bytes(), MAGIC.len() as u64)?;
            let id = id_of(&self.file)?;
            if !is_taken(&id) {
                return Ok((self.file, id));
            }
            salt += 1;
        }
    }
}

/// The name of the pack in a file.
fn id_of(file: &File) -> io::Result<PackId> {
    Ok(id_in(&Proven::of(file)?.digest.0))
}

/// The name of a pack whose bytes were hashed.
pub fn id_from(hasher: &blake3::Hasher) -> PackId {
    id_in(hasher.finalize().as_bytes())
}

fn id_in(hash: &Hash) -> PackId {
    ObjectId(std::array::from_fn(|nth| hash[nth]))
}

/// Packs the bytes of a frame.
///
/// # Errors
///
/// What zstd reports.
pub fn compress(raw: &[u8], level: i32) -> io::Result<Vec<u8>> {
    zstd::bulk::compress(raw, level)
}

/// Unpacks frames, one after the other, into one buffer.
pub struct Unpacker {
    zstd: zstd::bulk::Decompressor<'static>,
    raw: Vec<u8>,
}

impl Unpacker {
    /// With room for a frame.
    ///
    /// # Errors
    ///
    /// What zstd reports.
    pub fn new() -> io::Result<Unpacker> {
        Ok(Unpacker { zstd: zstd::bulk::Decompressor::new()?, raw: Vec::new() })
    }

    /// What a frame unpacks to: never more than [`MOST_RAW`].
    ///
    /// # Errors
    ///
    /// For what is no frame, or of more.
    pub fn frame(&mut self, stored: &[u8]) -> io::Result<&[u8]> {
        self.raw.clear();
        self.raw.reserve_exact(MOST_RAW);
        self.zstd.decompress_to_buffer(stored, &mut self.raw)?;
        Ok(&self.raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_of_more_than_it_may_have_is_refused() {
        let mut unpacker = Unpacker::new().unwrap();
        for (bytes, is_fine) in [(0, true), (MOST_RAW, true), (MOST_RAW + 1, false), (64 << 20, false)] {
            let frame = compress(&vec![7; bytes], 3).unwrap();
            assert_eq!(unpacker.frame(&frame).is_ok_and(|raw| raw.len() == bytes), is_fine, "{bytes}");
        }
        assert!(unpacker.frame(b"no frame").is_err());
    }

    #[test]
    fn a_pack_that_may_not_have_its_name_gets_another() {
        let pack = || {
            let mut pack = PackWriter::new().unwrap();
            assert_eq!(pack.add(b"frame").unwrap(), HEAD as u64);
            pack
        };
        let (_, id) = pack().finish(|_| false).unwrap();
        assert_eq!(pack().finish(|_| false).unwrap().1, id);
        let (file, other) = pack().finish(|taken| *taken == id).unwrap();
        assert_ne!(other, id);
        assert_eq!(id_of(&file).unwrap(), other);
    }
}
