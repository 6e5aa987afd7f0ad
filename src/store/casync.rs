//! Images as casync and desync publish them: an index (`.caibx`), which names the chunks of an image by
//! their digests, in order, and a store that has each chunk once, packed. Both formats are theirs:
//! `caformat.h` of casync, `format.go` of desync. An image index is believed in what it says is the
//! image; a chunk is believed in nothing.
//!
//! Memory: the index as it is, 40 bytes a chunk, up to a bound.

mod chunks;

use std::ops::Range;
use std::sync::OnceLock;

use sha2::{Digest, Sha256, Sha512_256};

use crate::error::{Error, Result};
use crate::hashmap::MAX_LENGTH;
use crate::report::hex;
use crate::store::objects::Objects;

pub use chunks::ChunkStore;

/// The longest index that is read: 6.7 million chunks, 400 GiB of image at casync's usual 64 KiB.
const MAX_INDEX: u64 = 256 << 20;
/// The longest chunk that casync makes or reads.
const MAX_CHUNK: u64 = 128 << 20;
/// Size, type, feature flags, least, usual and greatest length of a chunk.
const HEAD: usize = 48;
/// Size and type of the table.
const TABLE_HEAD: usize = 16;
/// Where a chunk ends, and its digest; the tail is as long.
const ITEM: usize = 40;
/// `CA_FORMAT_INDEX`, `CA_FORMAT_TABLE`, `CA_FORMAT_TABLE_TAIL_MARKER`.
const INDEX: u64 = 0x9682_4d9c_7b12_9ff9;
const TABLE: u64 = 0xe75b_9e11_2f17_417d;
const TAIL: u64 = 0x4b4f_050e_5549_ecd1;
/// `CA_FORMAT_SHA512_256`; without it digests are SHA-256.
const SHA512_256: u64 = 1 << 61;
/// Flags that tell what of files is kept: an archive of a directory has some.
const OF_ARCHIVES: u64 = (1 << 60) - 1;

/// The digest of a chunk.
pub type Id = [u8; 32];

/// Why an index cannot be used. What it says fits behind its address.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It does not begin as an index does.
    #[error("is no index of an image: casync make x.caibx IMG writes one")]
    NoIndex,
    /// What it indexes is a directory.
    #[error("is the index of a directory, and not of an image: casync make x.caibx IMG writes one of those")]
    Archive,
    /// It ends before its end, or was changed.
    #[error("is a damaged index ({0}): publish it anew")]
    Damaged(&'static str),
}

/// A chunk of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where it lies in the image; not empty.
    pub range: Range<u64>,
    /// What its bytes must hash to.
    pub id: Id,
}

impl Chunk {
    /// How many bytes it has: no more than [`MAX_CHUNK`].
    pub fn len(&self) -> usize {
        (self.range.end - self.range.start) as usize
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Its name in a store, before what tells how it is packed.
    fn name(&self) -> String {
        let name = hex(&self.id);
        format!("{}/{name}", &name[..4])
    }
}

/// An index that was found to be whole: chunks follow each other from the beginning of the image to its
/// end, and none is longer than it says that they are.
#[derive(Debug)]
pub struct Index {
    bytes: Vec<u8>,
    sha512: bool,
    /// The greatest length of a chunk.
    most: usize,
    /// The digest of as many zeros, once it was asked for.
    zeros: OnceLock<Id>,
}

impl Index {
    /// Reads an index.
    ///
    /// # Errors
    ///
    /// When it cannot be had, or is none: each names the address.
    pub fn read(objects: &dyn Objects, name: &str) -> Result<Index> {
        let missing = || Error::refused(objects.address(name), "is not there");
        let bytes = objects.get(name, MAX_INDEX)?.ok_or_else(missing)?;
        Index::parse(bytes).map_err(|error| Error::refused(objects.address(name), error.to_string()))
    }

    /// Takes these bytes for an index.
    ///
    /// # Errors
    ///
    /// When they are none.
    pub fn parse(bytes: Vec<u8>) -> Result<Index, IndexError> {
        let number = |at: usize| number(&bytes, at);
        if number(0) != Some(HEAD as u64) || number(8) != Some(INDEX) {
            return Err(IndexError::NoIndex);
        }
        let flags = number(16).ok_or(IndexError::Damaged("it ends too early"))?;
        if flags & OF_ARCHIVES != 0 {
            return Err(IndexError::Archive);
        }
        let [least, usual, most] = [24, 32, 40].map(|at| number(at).unwrap_or(0));
        if least == 0 || least > usual || usual > most || most > MAX_CHUNK {
            return Err(IndexError::Damaged("lengths of chunks that cannot be"));
        }
        if number(HEAD) != Some(u64::MAX) || number(HEAD + 8) != Some(TABLE) {
            return Err(IndexError::Damaged("it has no table"));
        }
        let table = bytes.len() - HEAD;
        if table < TABLE_HEAD + ITEM || !(table - TABLE_HEAD).is_multiple_of(ITEM) {
            return Err(IndexError::Damaged("it ends too early"));
        }
        let tail = bytes.len() - ITEM;
        let tail = [0, 8, 16, 24, 32].map(|at| number(tail + at));
        if tail != [0, 0, HEAD as u64, table as u64, TAIL].map(Some) {
            return Err(IndexError::Damaged("it has no end"));
        }
        let sha512 = flags & SHA512_256 != 0;
        let index = Index { bytes, sha512, most: most as usize, zeros: OnceLock::new() };
        for nth in 0..index.len() {
            let chunk = index.chunk(nth).ok_or(IndexError::Damaged("it ends too early"))?.range;
            if chunk.is_empty() || chunk.end - chunk.start > most || chunk.end > MAX_LENGTH {
                return Err(IndexError::Damaged("a chunk of a length that cannot be"));
            }
        }
        Ok(index)
    }

    /// How many chunks it names.
    pub fn len(&self) -> usize {
        (self.bytes.len() - HEAD - TABLE_HEAD) / ITEM - 1
    }

    /// Whether it names none: the image has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The length of the image in bytes.
    pub fn length(&self) -> u64 {
        self.end_before(self.len())
    }

    /// A chunk; `None` behind the last.
    pub fn chunk(&self, nth: usize) -> Option<Chunk> {
        if nth >= self.len() {
            return None;
        }
        let at = HEAD + TABLE_HEAD + nth * ITEM;
        let id = self.bytes.get(at + 8..at + ITEM)?.try_into().ok()?;
        Some(Chunk { range: self.end_before(nth)..self.end_before(nth + 1), id })
    }

    /// Where the chunks before this one end.
    fn end_before(&self, nth: usize) -> u64 {
        let before = nth.checked_sub(1).map(|before| HEAD + TABLE_HEAD + before * ITEM);
        before.and_then(|at| number(&self.bytes, at)).unwrap_or(0)
    }

    /// Whether these are the bytes of a chunk.
    pub fn is_of(&self, chunk: &Chunk, bytes: &[u8]) -> bool {
        bytes.len() == chunk.len() && digest(self.sha512, bytes) == chunk.id
    }

    /// Whether a chunk is known to be zeros by its digest: one of the greatest length, of which a long
    /// stretch of zeros is made.
    pub fn is_zeros(&self, chunk: &Chunk) -> bool {
        let zeros = || digest(self.sha512, &vec![0; self.most]);
        chunk.len() == self.most && *self.zeros.get_or_init(zeros) == chunk.id
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn digest(sha512: bool, bytes: &[u8]) -> Id {
    if sha512 { Sha512_256::digest(bytes).into() } else { Sha256::digest(bytes).into() }
}
