//! Cuts what is wanted out of the bytes of an object, and proves it.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::hashmap::{self, Grid};
use crate::store::pack::Unpacker;
use crate::store::pull::fetch::{From, Had, Wanted};

/// A stretch of an object, and what is wanted of it.
pub struct Piece {
    /// Where it lies.
    pub range: Range<u64>,
    /// It is a frame, and not bytes of the image.
    pub is_frame: bool,
    /// Those blocks.
    pub blocks: Vec<Wanted>,
}

/// Cuts pieces out of what comes.
pub struct SegmentReader<I, H> {
    /// Where in the object the next byte lies.
    at: u64,
    /// What came of the current piece.
    bytes: Vec<u8>,
    pieces: I,
    /// There are no more of them.
    is_done: bool,
    current: Option<Piece>,
    handle: H,
}

impl<I: Iterator<Item = Piece>, H: FnMut(&Piece, &[u8]) -> Result<()>> SegmentReader<I, H> {
    /// Bytes of an object come from `at` on, and pieces are handed to `handle`.
    pub fn new(at: u64, pieces: I, handle: H) -> SegmentReader<I, H> {
        SegmentReader { at, bytes: Vec::new(), pieces, is_done: false, current: None, handle }
    }

    /// Whether all pieces came.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Whether no piece is waited for any more, when the last bytes have come.
    pub fn has_all(&mut self) -> bool {
        self.is_done = self.is_done || self.current.is_none() && self.pieces.next().is_none();
        self.is_done
    }

    /// The next bytes.
    ///
    /// # Errors
    ///
    /// Those of the handler.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let Some(piece) = self.current.take().or_else(|| self.pieces.next()) else {
                self.is_done = true;
                return Ok(());
            };
            let skipped = piece.range.start.saturating_sub(self.at).min(bytes.len() as u64);
            (self.at, bytes) = (self.at + skipped, &bytes[skipped as usize..]);
            let len = (piece.range.end - self.at.min(piece.range.end)).min(bytes.len() as u64);
            let (now, later) = bytes.split_at(len as usize);
            let is_whole = self.at >= piece.range.start && self.at + len == piece.range.end;
            // What comes in one go need not be copied.
            if is_whole && self.bytes.is_empty() {
                (self.handle)(&piece, now)?;
            } else {
                self.bytes.extend(now);
            }
            (self.at, bytes) = (self.at + len, later);
            if !is_whole {
                self.current = Some(piece);
            } else if !self.bytes.is_empty() {
                (self.handle)(&piece, &self.bytes)?;
                self.bytes.clear();
            }
        }
        Ok(())
    }
}

/// Proves the blocks of a piece, and hands them on.
///
/// # Errors
///
/// [`Error::Protocol`] for what is not what is wanted; those of `put`.
pub fn hand_on(
    grid: &Grid,
    (piece, bytes): (&Piece, &[u8]),
    address: &str,
    unpacker: &mut Unpacker,
    put: &dyn Fn(Had) -> Result<()>,
) -> Result<()> {
    let wrong = |what: String| Error::Protocol { peer: address.into(), what };
    let raw = match piece.is_frame {
        true => unpacker.frame(bytes).map_err(|error| {
            wrong(format!("what lies at {} is no frame of blocks: {error}", piece.range.start))
        })?,
        false => bytes,
    };
    let mut packed = Vec::new();
    for wanted in &piece.blocks {
        let length = grid.masked_bytes(wanted.index, wanted.pages) as usize;
        let bytes = match &wanted.from {
            From::Frame { raw: at, .. } => {
                let bytes = raw.get(*at as usize..).and_then(|behind| behind.get(..length));
                bytes.ok_or_else(|| wrong(format!("the frame at {} has too few bytes", piece.range.start)))?
            }
            From::Plain { .. } => {
                packed.clear();
                for run in hashmap::page_runs(wanted.pages) {
                    let range = grid.pages(wanted.index, &run);
                    let at = (range.start - piece.range.start) as usize;
                    packed.extend(&raw[at..at + (range.end - range.start) as usize]);
                }
                packed.as_slice()
            }
        };
        let is_right = || hashmap::hash_block(wanted.pages, std::iter::once(bytes)) == wanted.hash;
        if wanted.patched.is_none() && !is_right() {
            let what = format!("block {} of the image has another hash than its map says", wanted.index);
            return Err(wrong(what));
        }
        let &Wanted { index, pages, hash, .. } = wanted;
        let patched = wanted.patched.as_ref().map(|whole| whole.pages);
        put(Had { index, pages, bytes, hash, patched, address })?;
    }
    Ok(())
}
