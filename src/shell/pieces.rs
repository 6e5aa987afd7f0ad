//! What a shell has to be told of a file: runs of data, of holes, and of blocks
//! that it has already, as large as they can be, since each costs it a process.

use std::io;
use std::ops::Range;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::error::{Result, Stop};
use crate::hashmap::PAGE;
use crate::scan::{Extent, Image, is_zero};
use crate::stream::Record;

/// Bytes in a block that is compared by its SHA-256. Two processes there for each.
pub(crate) const BLOCK: u64 = 1 << 20;
/// The SHA-256 of a block.
pub(crate) type Sum = [u8; 32];

/// Where each record costs a process at the other end, and holes can be dug there,
/// a hole shorter than this is sent as zeros. A process takes 0.6 ms, in which ssh
/// carries 270 KiB at 450 MB/s, and 7 KiB at 12 MB/s. Zeros of at least this size
/// in data become a hole.
pub(crate) const SHORT: u64 = 64 << 10;
/// The most that is read, and that one record holds.
const CHUNK: u64 = 8 << 20;

/// A part of a file.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece<'a> {
    Data(&'a [u8]),
    Hole(u64),
    /// So many bytes that the other end has.
    Keep(u64),
}

/// The blocks of a file that are the same at both ends.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Kept {
    /// Of these all, in order; not touching.
    runs: Vec<Range<u64>>,
}

impl Kept {
    /// Of the blocks that were hashed, those whose hashes agree.
    pub fn new(blocks: &[Range<u64>], ours: &[Sum], theirs: &[Option<Sum>]) -> Kept {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let hashes = ours.iter().zip(theirs.iter().chain(std::iter::repeat(&None)));
        for (block, _) in blocks.iter().cloned().flatten().zip(hashes).filter(|(_, (a, b))| Some(**a) == **b)
        {
            match runs.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
        Kept { runs }
    }

    /// Whether that is the whole of a file.
    pub fn is_everything(&self, length: u64) -> bool {
        let blocks = length.div_ceil(BLOCK);
        blocks == 0 || self.runs == [Range { start: 0, end: blocks }]
    }

    /// How many bytes of a file that is.
    pub fn bytes(&self, length: u64) -> u64 {
        bytes_in(&self.runs, length)
    }

    /// The parts of a file, in order, and whether they are kept.
    fn parts(&self, length: u64) -> Vec<(Range<u64>, bool)> {
        let mut parts = Vec::new();
        let mut at = 0;
        for run in &self.runs {
            let kept = run.start * BLOCK..(run.end * BLOCK).min(length);
            parts.push((at..kept.start, false));
            at = kept.end;
            parts.push((kept, true));
        }
        parts.push((at..length, false));
        parts.retain(|(range, _)| !range.is_empty());
        parts
    }
}

/// The blocks that are worth hashing: those with data, or all, if they are not
/// many more; then equal files can be told.
pub(crate) fn candidates(image: &impl Image, length: u64) -> io::Result<Vec<Range<u64>>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for extent in image.extents(0..length) {
        let extent = extent?;
        let blocks = extent.start / BLOCK..extent.end.div_ceil(BLOCK);
        match runs.last_mut() {
            Some(run) if run.end >= blocks.start => run.end = run.end.max(blocks.end),
            _ => runs.push(blocks),
        }
    }
    let (all, data) = (length.div_ceil(BLOCK), runs.iter().map(|run| run.end - run.start).sum::<u64>());
    Ok(if all <= 2 * data { vec![Range { start: 0, end: all }] } else { runs })
}

/// Whether a file has no holes, as far as its first extent tells.
pub(crate) fn is_dense(image: &impl Image, length: u64) -> bool {
    image.extents(0..length).next().is_none_or(|first| first.is_ok_and(|extent| extent == (0..length)))
}

/// How many bytes of a file these blocks are.
pub(crate) fn bytes_in(blocks: &[Range<u64>], length: u64) -> u64 {
    blocks.iter().map(|run| (run.end * BLOCK).min(length) - (run.start * BLOCK).min(length)).sum()
}

/// The hashes of blocks, in order; the last one may be short.
pub(crate) fn sums(image: &impl Image, length: u64, blocks: &[Range<u64>]) -> io::Result<Vec<Sum>> {
    let blocks: Vec<u64> = blocks.iter().cloned().flatten().collect();
    let sum = |buffer: &mut Vec<u8>, block: u64| {
        let at = block * BLOCK;
        buffer.resize((length - at).min(BLOCK) as usize, 0);
        image.read_at(buffer, at)?;
        Ok(Sum::from(Sha256::digest(&buffer)))
    };
    blocks.into_par_iter().map_init(Vec::new, sum).collect()
}

/// Joins what follows each other and holds no data to one record.
#[derive(Default)]
pub(crate) struct Run {
    kind: &'static str,
    count: u64,
}

impl Run {
    /// What has to be written before the bytes of a piece, if it has some.
    pub fn add(&mut self, piece: &Piece) -> String {
        let (kind, count) = match piece {
            Piece::Data(data) => return format!("{}{}", self.flush(), Record::Data(data.len() as u64)),
            Piece::Hole(count) => ("HOLE", *count),
            Piece::Keep(count) => ("KEEP", *count),
        };
        if self.kind == kind {
            self.count += count;
            return String::new();
        }
        let before = self.flush();
        *self = Run { kind, count };
        before
    }

    /// What is left to be written.
    pub fn flush(&mut self) -> String {
        let Run { kind, count } = std::mem::take(self);
        if count == 0 { String::new() } else { format!("{kind}\n{count}\n") }
    }
}

/// Cuts a file into pieces. In a file that is written in place, a block that is
/// kept stays as it is, its holes too.
pub(crate) struct Cutter {
    buffer: Vec<u8>,
    in_place: bool,
    short: u64,
    /// Bytes of holes that went as zeros.
    pub filled: u64,
}

impl Cutter {
    /// `in_place`: the other end writes into the file that it has. `short`: holes
    /// of fewer bytes go as zeros.
    pub fn new(in_place: bool, short: u64) -> Cutter {
        Cutter { buffer: Vec::new(), in_place, short, filled: 0 }
    }

    /// Hands out the pieces in order, as long as `take` returns true; whether
    /// it always did.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, and those of `take`.
    pub fn cut(
        &mut self,
        image: &impl Image,
        length: u64,
        kept: &Kept,
        mut take: impl FnMut(Piece) -> Result<bool>,
    ) -> Result<bool, Stop> {
        for (part, is_kept) in kept.parts(length) {
            let going = match (is_kept, self.in_place) {
                (true, true) => take(Piece::Keep(part.end - part.start))?,
                (true, false) => each_extent(image.extents(part.clone()), part, |is_data, range| {
                    let len = range.end - range.start;
                    Ok(take(if is_data { Piece::Keep(len) } else { Piece::Hole(len) })?)
                })?,
                (false, _) => {
                    let mut filled = 0;
                    let joined = join(image.extents(part.clone()), self.short, &mut filled);
                    let going = each_extent(joined, part, |is_data, range| {
                        if is_data {
                            self.data(image, range, &mut take)
                        } else {
                            Ok(take(Piece::Hole(range.end - range.start))?)
                        }
                    })?;
                    self.filled += filled;
                    going
                }
            };
            if !going {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Data as it is read, but for long runs of zeros.
    fn data(
        &mut self,
        image: &impl Image,
        range: Range<u64>,
        take: &mut impl FnMut(Piece) -> Result<bool>,
    ) -> Result<bool, Stop> {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(CHUNK) as usize;
            self.buffer.resize(len, 0);
            image.read_at(&mut self.buffer, at)?;
            for (is_data, part) in split_zeros(&self.buffer) {
                let piece =
                    if is_data { Piece::Data(&self.buffer[part]) } else { Piece::Hole(part.len() as u64) };
                if !take(piece)? {
                    return Ok(false);
                }
            }
            at += len as u64;
        }
        Ok(true)
    }
}

/// Extents and what lies between them, in order.
fn each_extent(
    extents: impl Iterator<Item = io::Result<Extent>>,
    part: Range<u64>,
    mut take: impl FnMut(bool, Range<u64>) -> Result<bool, Stop>,
) -> Result<bool, Stop> {
    let mut at = part.start;
    for extent in extents {
        let extent = extent?;
        if extent.start > at && !take(false, at..extent.start)? {
            return Ok(false);
        }
        at = extent.end;
        if !take(true, extent)? {
            return Ok(false);
        }
    }
    if at < part.end { take(false, at..part.end) } else { Ok(true) }
}

/// Joins extents with less than `short` bytes between them, and adds those up.
fn join(
    extents: impl Iterator<Item = io::Result<Extent>>,
    short: u64,
    filled: &mut u64,
) -> impl Iterator<Item = io::Result<Extent>> {
    let mut extents = extents.peekable();
    std::iter::from_fn(move || {
        let mut joined = match extents.next()? {
            Ok(extent) => extent,
            Err(error) => return Some(Err(error)),
        };
        while let Some(Ok(next)) =
            extents.next_if(|next| next.as_ref().is_ok_and(|next| next.start - joined.end < short))
        {
            *filled += next.start - joined.end;
            joined.end = next.end;
        }
        Some(Ok(joined))
    })
}

/// Data and runs of zero pages of at least [`SHORT`] bytes, in turn.
fn split_zeros(bytes: &[u8]) -> Vec<(bool, Range<usize>)> {
    let mut parts: Vec<(bool, Range<usize>)> = Vec::new();
    for (nth, page) in bytes.chunks(PAGE as usize).enumerate() {
        let (start, is_data) = (nth * PAGE as usize, !is_zero(page));
        match parts.last_mut() {
            Some((kind, range)) if *kind == is_data => range.end += page.len(),
            _ => parts.push((is_data, start..start + page.len())),
        }
    }
    let mut merged: Vec<(bool, Range<usize>)> = Vec::new();
    for (is_data, range) in parts {
        let counts_as_data = is_data || (range.len() as u64) < SHORT;
        match merged.last_mut() {
            Some((kind, last)) if *kind == counts_as_data => last.end = range.end,
            _ => merged.push((counts_as_data, range)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: usize = 1 << 10;

    #[test]
    fn only_long_runs_of_zeros_are_left_out() {
        let mut bytes = vec![1; 400 * K];
        bytes[4 * K..64 * K].fill(0);
        bytes[100 * K..200 * K].fill(0);
        assert_eq!(
            split_zeros(&bytes),
            [(true, 0..100 * K), (false, 100 * K..200 * K), (true, 200 * K..400 * K)]
        );
        assert_eq!(split_zeros(&[0; 70 * K]), [(false, 0..70 * K)]);
        assert_eq!(split_zeros(&[0; 10]), [(true, 0..10)]);
        assert_eq!(split_zeros(&[]), []);
    }

    #[test]
    fn extents_are_joined_over_short_holes() {
        let extents = [0..4096, 8192..12288, 200_000..300_000].map(Ok);
        let mut filled = 0;
        let joined: Vec<_> = join(extents.into_iter(), SHORT, &mut filled).map(Result::unwrap).collect();
        assert_eq!(joined, [0..12288, 200_000..300_000]);
        assert_eq!(filled, 4096);
    }

    #[test]
    fn a_block_is_kept_where_both_hashes_agree() {
        let [a, b] = [[1; 32], [2; 32]];
        let kept = Kept::new(&[0..2, 5..8], &[a, a, a, a, a], &[Some(a), Some(b), Some(a), Some(a), None]);
        assert_eq!(kept.runs, [0..1, 5..7]);
        let mib = BLOCK;
        assert_eq!(
            kept.parts(6 * mib + 5),
            [(0..mib, true), (mib..5 * mib, false), (5 * mib..6 * mib + 5, true)]
        );
        assert!(!kept.is_everything(6 * mib + 5) && Kept::default().is_everything(0));
        assert_eq!(kept.bytes(6 * mib + 5), 2 * mib + 5);
    }
}
