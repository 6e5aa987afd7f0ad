//! Sparse files of the awkward kinds, and what may happen to them between two
//! deployments. Everything follows from a seed, so a failure can be repeated.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The unit in which file systems allocate.
const PAGE: usize = 4 << 10;
/// The default unit of comparison.
const BLOCK: usize = 64 << 10;
const MIB: usize = 1 << 20;

/// Numbers that look random and are always the same (splitmix64).
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// Between 0 and 1.
    pub fn fraction(&mut self) -> f64 {
        self.below(1 << 20) as f64 / f64::from(1 << 20)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A file's content, and which of its pages are written rather than left out.
#[derive(Debug, Clone)]
pub struct Layout {
    pub name: String,
    bytes: Vec<u8>,
    written: Vec<bool>,
}

impl Layout {
    /// A file of `len` bytes without any data.
    pub fn hole(name: &str, len: usize) -> Layout {
        Layout { name: name.to_owned(), bytes: vec![0; len], written: vec![false; len.div_ceil(PAGE)] }
    }

    /// A file full of data.
    pub fn dense(name: &str, len: usize, rng: &mut Rng) -> Layout {
        Layout::hole(name, len).data(0..len, rng)
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes in the pages that are written.
    pub fn written(&self) -> usize {
        self.written.iter().filter(|&&w| w).count() * PAGE
    }

    pub fn data(mut self, range: Range<usize>, rng: &mut Rng) -> Layout {
        rng.fill(&mut self.bytes[range.clone()]);
        self.mark(range, true);
        self
    }

    /// Zeros that are written, as opposed to a hole.
    pub fn zeros(mut self, range: Range<usize>) -> Layout {
        self.bytes[range.clone()].fill(0);
        self.mark(range, true);
        self
    }

    /// A hole in place of the whole pages in `range`.
    pub fn punch(mut self, range: Range<usize>) -> Layout {
        let pages = range.start.div_ceil(PAGE) * PAGE..range.end / PAGE * PAGE;
        if !pages.is_empty() {
            self.bytes[pages.clone()].fill(0);
            self.mark(pages, false);
        }
        self
    }

    pub fn resize(mut self, len: usize) -> Layout {
        self.bytes.resize(len, 0);
        self.written.resize(len.div_ceil(PAGE), false);
        self
    }

    /// Moves everything up by `by` bytes and puts data before it.
    pub fn shift(self, by: usize, rng: &mut Rng) -> Layout {
        let mut moved = Layout::hole(&self.name, self.len() + by).data(0..by, rng);
        for (page, bytes) in self.bytes.chunks(PAGE).enumerate() {
            if self.written[page] {
                let range = by + page * PAGE..by + page * PAGE + bytes.len();
                moved.bytes[range.clone()].copy_from_slice(bytes);
                moved.mark(range, true);
            }
        }
        moved
    }

    fn mark(&mut self, range: Range<usize>, written: bool) {
        if !range.is_empty() {
            self.written[range.start / PAGE..range.end.div_ceil(PAGE)].fill(written);
        }
    }

    /// Makes `path` this file, with exactly these holes.
    pub fn write(&self, path: &Path) {
        let file = File::create(path).expect("create a test file");
        file.set_len(self.len() as u64).expect("set the length");
        for run in self.runs() {
            file.write_all_at(&self.bytes[run.clone()], run.start as u64).expect("write test data");
        }
    }

    /// The written parts, each as long as possible.
    fn runs(&self) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for page in (0..self.written.len()).filter(|&page| self.written[page]) {
            let range = page * PAGE..self.len().min((page + 1) * PAGE);
            match runs.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => runs.push(range),
            }
        }
        runs
    }
}

/// One of each awkward kind.
pub fn layouts(rng: &mut Rng) -> Vec<Layout> {
    let hole = Layout::hole;
    let mut alternating = hole("alternating", MIB + 4321);
    for start in (0..alternating.len() - PAGE).step_by(2 * PAGE) {
        alternating = alternating.data(start..start + PAGE, rng);
    }
    let mut zero_pages = Layout::dense("zero-pages", 512 << 10, rng);
    for start in (PAGE..zero_pages.len()).step_by(7 * PAGE) {
        zero_pages = zero_pages.zeros(start..start + PAGE);
    }
    let mut straddling = hole("straddling", MIB);
    for (nth, edge) in (BLOCK..MIB).step_by(BLOCK).enumerate() {
        // One byte too early, one byte too late, or exactly one on each side.
        let range = [edge - 1..edge + PAGE, edge - PAGE..edge + 1, edge - 1..edge + 1][nth % 3].clone();
        straddling = straddling.data(range, rng);
    }
    let mut speckled = hole("speckled", 8 * MIB);
    for mib in 0..8 {
        let at = mib * MIB + rng.below(MIB);
        speckled = speckled.data(at..at + 1, rng);
    }
    let mut mixed = hole("mixed", 2 * MIB + 99);
    for start in (0..mixed.len()).step_by(PAGE) {
        let page = start..mixed.len().min(start + PAGE);
        mixed = match rng.below(4) {
            0 => mixed.zeros(page),
            1 => mixed,
            _ => mixed.data(page, rng),
        };
    }
    vec![
        hole("empty", 0),
        Layout::dense("one-byte", 1, rng),
        hole("all-hole", MIB),
        hole("odd-hole", MIB + 777),
        Layout::dense("odd-tail", (300 << 10) + 13, rng),
        hole("only-the-end", 3 * MIB + 5).data(3 * MIB..3 * MIB + 5, rng),
        hole("hole-tail", 2 * MIB).data(0..200_000, rng),
        hole("written-zeros", 512 << 10).zeros(BLOCK..5 * BLOCK).data(400_000..400_010, rng),
        Layout::dense("dense", MIB + 1, rng),
        alternating,
        zero_pages,
        straddling,
        speckled,
        mixed,
    ]
}

/// What may happen to a file between two deployments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Nothing,
    Grow,
    Shrink,
    Punch,
    Zero,
    Touch,
    Shift,
}

impl Change {
    pub const ALL: [Change; 7] = [
        Change::Nothing,
        Change::Grow,
        Change::Shrink,
        Change::Punch,
        Change::Zero,
        Change::Touch,
        Change::Shift,
    ];
}

/// The file after the change. One that is too short for it stays as it is.
pub fn mutate(layout: Layout, change: Change, rng: &mut Rng) -> Layout {
    let len = layout.len();
    let some = |rng: &mut Rng| {
        let start = rng.below(len.max(1));
        start..len.min(start + 1 + rng.below(3 * BLOCK))
    };
    match change {
        Change::Nothing => layout,
        Change::Grow => layout.resize(len + 100_001).data(len + 70_000..len + 70_001, rng),
        Change::Shrink => layout.resize(len - len.min(1 + rng.below(BLOCK) * 2)),
        Change::Punch => layout.punch(some(rng)),
        Change::Zero => layout.zeros(some(rng)),
        Change::Touch => {
            let at = rng.below(len.max(1));
            layout.data(at..len.min(at + 3), rng)
        }
        Change::Shift => layout.shift(513, rng),
    }
}
