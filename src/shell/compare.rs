//! Which blocks of a file both ends have, where a shell at the other end computes
//! SHA-256 with its tools. Knows nothing of what is sent then.

use std::io;
use std::ops::Range;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::error::Stop;
use crate::scan::Image;
use crate::shell::receiver::ReceivingShell;

/// Bytes in a block that is compared by its SHA-256: each costs two processes at the
/// other end.
pub const SUM_BLOCK: u64 = 1 << 20;
/// The SHA-256 of a block.
pub type Sum = [u8; 32];

/// The blocks of a file that are the same at both ends.
#[derive(Debug, Default, PartialEq)]
pub struct KeptBlocks {
    /// Ranges of block numbers, in order; no two of them touch.
    runs: Vec<Range<u64>>,
}

impl KeptBlocks {
    /// Those of the blocks that were hashed whose hashes agree.
    fn new(blocks: &[Range<u64>], ours: &[Sum], theirs: &[Option<Sum>]) -> KeptBlocks {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let hashes = ours.iter().zip(theirs.iter().chain(std::iter::repeat(&None)));
        for (block, _) in blocks.iter().cloned().flatten().zip(hashes).filter(|(_, (a, b))| Some(**a) == **b)
        {
            match runs.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
        KeptBlocks { runs }
    }

    /// Whether these blocks are the whole of a file.
    pub fn is_everything(&self, length: u64) -> bool {
        let blocks = length.div_ceil(SUM_BLOCK);
        blocks == 0 || self.runs == [Range { start: 0, end: blocks }]
    }

    /// How many bytes of a file these blocks are.
    pub fn bytes(&self, length: u64) -> u64 {
        bytes_in(&self.runs, length)
    }

    /// The parts of a file, in order, and whether they are kept.
    pub fn parts(&self, length: u64) -> Vec<(Range<u64>, bool)> {
        let mut parts = Vec::new();
        let mut at = 0;
        for run in &self.runs {
            let kept = run.start * SUM_BLOCK..(run.end * SUM_BLOCK).min(length);
            parts.push((at..kept.start, false));
            at = kept.end;
            parts.push((kept, true));
        }
        parts.push((at..length, false));
        parts.retain(|(range, _)| !range.is_empty());
        parts
    }
}

/// The blocks that are worth hashing: those with data; or all of them where these are
/// at most twice as many, since only a file that is hashed whole can turn out equal.
pub fn candidates(image: &impl Image, length: u64) -> io::Result<Vec<Range<u64>>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for extent in image.extents(0..length) {
        let extent = extent?;
        let blocks = extent.start / SUM_BLOCK..extent.end.div_ceil(SUM_BLOCK);
        match runs.last_mut() {
            Some(run) if run.end >= blocks.start => run.end = run.end.max(blocks.end),
            _ => runs.push(blocks),
        }
    }
    let (all, data) = (length.div_ceil(SUM_BLOCK), runs.iter().map(|run| run.end - run.start).sum::<u64>());
    Ok(if all <= 2 * data { vec![Range { start: 0, end: all }] } else { runs })
}

/// How many bytes of a file are in these blocks.
pub fn bytes_in(blocks: &[Range<u64>], length: u64) -> u64 {
    blocks.iter().map(|run| (run.end * SUM_BLOCK).min(length) - (run.start * SUM_BLOCK).min(length)).sum()
}

/// The hashes of blocks, in order; the last block may be short.
fn hash_blocks(image: &impl Image, length: u64, blocks: &[Range<u64>]) -> io::Result<Vec<Sum>> {
    let blocks: Vec<u64> = blocks.iter().cloned().flatten().collect();
    let sum = |buffer: &mut Vec<u8>, block: u64| {
        let at = block * SUM_BLOCK;
        buffer.resize((length - at).min(SUM_BLOCK) as usize, 0);
        image.read_at(buffer, at)?;
        Ok(Sum::from(Sha256::digest(&buffer)))
    };
    blocks.into_par_iter().map_init(Vec::new, sum).collect()
}

/// Has both ends hash these blocks of a file at the same time. `target` names the file at
/// the other end, where no other answer may be due.
pub fn compare(
    shell: &mut ReceivingShell,
    target: &[u8],
    image: &impl Image,
    length: u64,
    blocks: &[Range<u64>],
) -> Result<KeptBlocks, Stop> {
    shell.request_sums(target, blocks)?;
    let ours = hash_blocks(image, length, blocks);
    let count = blocks.iter().map(|run| (run.end - run.start) as usize).sum();
    let theirs = shell.read_sums(count)?;
    Ok(KeptBlocks::new(blocks, &ours?, &theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_kept_where_both_hashes_agree() {
        let [a, b] = [[1; 32], [2; 32]];
        let kept =
            KeptBlocks::new(&[0..2, 5..8], &[a, a, a, a, a], &[Some(a), Some(b), Some(a), Some(a), None]);
        assert_eq!(kept.runs, [0..1, 5..7]);
        let mib = SUM_BLOCK;
        assert_eq!(
            kept.parts(6 * mib + 5),
            [(0..mib, true), (mib..5 * mib, false), (5 * mib..6 * mib + 5, true)]
        );
        assert!(!kept.is_everything(6 * mib + 5) && KeptBlocks::default().is_everything(0));
        assert_eq!(kept.bytes(6 * mib + 5), 2 * mib + 5);
    }
}
