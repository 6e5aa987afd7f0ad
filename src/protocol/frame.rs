//! What a frame looks like on the wire: types, header, checks. The writer makes
//! them, the reader takes them apart.

use std::io;

use crate::error::{Again, Error};
use crate::hashmap::Key;
use crate::hashmap::leaves::LeafHash;
use crate::protocol::{MAX_DATA, MAX_DATA_BLOCKS, MAX_MAP_KEYS, MAX_MAP_RUNS};

pub(super) const TYPE_CONTROL: u8 = 1;
pub(super) const TYPE_DATA: u8 = 2;
pub(super) const TYPE_DATA_ZSTD: u8 = 3;
pub(super) const TYPE_MAP: u8 = 4;
pub(super) const TYPE_DIFFER: u8 = 5;
pub(super) const TYPE_LEAVES: u8 = 6;
pub(super) const TYPE_PATCH: u8 = 7;
pub(super) const TYPE_PATCH_ZSTD: u8 = 8;
/// Type, length, check.
pub(super) const HEADER: usize = 1 + 4 + CHECK;
/// Bytes of BLAKE3 that tell a damaged stream: over the number of the frame,
/// its type and length in a header; over the body behind a body whose damage no
/// root hash would show.
pub(super) const CHECK: usize = 4;
/// First block, number of blocks, width of a mask, bytes of data.
pub(super) const DATA_HEAD: usize = 8 + 4 + 1 + 4;
pub(super) const MAX_BODY: usize = DATA_HEAD + MAX_DATA_BLOCKS * 8 * 2 + MAX_DATA;
/// The mask of a block and the hash of each of its pages, with how many those are.
pub(super) const MAX_LEAVES: usize = 8 + 1 + 64 * size_of::<LeafHash>();
/// In the place of a number of leaves: the block is there. No block has as many.
pub(super) const HAD: u8 = u8::MAX;

/// Bytes of the longest number with 7 bits a byte.
const MAX_VARINT: usize = 10;
/// The id of a file, kinds and lengths of runs, keys.
pub(super) const MAX_MAP: usize =
    MAX_VARINT + MAX_MAP_RUNS * (1 + MAX_VARINT) + MAX_MAP_KEYS * size_of::<Key>();

/// Appends a number as control messages have it: 7 bits a byte, lowest first.
pub(super) fn put_varint(body: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        body.push(number as u8 | 0x80);
        number >>= 7;
    }
    body.push(number as u8);
}

pub(super) fn is_data(kind: u8) -> bool {
    matches!(kind, TYPE_DATA | TYPE_DATA_ZSTD | TYPE_PATCH | TYPE_PATCH_ZSTD)
}

pub(super) fn header_of(frame: u64, kind: u8, len: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = kind;
    header[1..5].copy_from_slice(&len.to_le_bytes());
    let check = check_of(&[&frame.to_le_bytes(), &header[..5]]);
    header[5..].copy_from_slice(&check);
    header
}

pub(super) fn check_of(parts: &[&[u8]]) -> [u8; CHECK] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut check = [0; CHECK];
    hasher.finalize_xof().fill(&mut check);
    check
}

pub(super) fn len_of(parts: &[&[u8]]) -> usize {
    parts.iter().map(|part| part.len()).sum()
}

/// A peer that is gone, and one that is silent, is told from a pipe that fails.
pub(super) fn link_error(peer: &str, doing: &'static str, source: io::Error) -> Error {
    use io::ErrorKind::*;
    match source.kind() {
        BrokenPipe | ConnectionReset | UnexpectedEof => Error::closed(peer),
        TimedOut => Error::Timeout { doing, peer: peer.into(), source, again: Again::GoesOn },
        _ => Error::link(doing, peer, source),
    }
}
