//! Sparse content made of random pieces, as memory, as an image and as a file.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use holesync::scan::{Extent, Image};
use proptest::prelude::*;

/// Says what a test has counted; `tests/run` shows it at its end.
pub fn count(what: &str) {
    eprintln!("{what}");
    if let Some(path) = std::env::var_os("HOLESYNC_TEST_COUNTS") {
        let mut file = File::options().append(true).create(true).open(path).unwrap();
        file.write_all(format!("{what}\n").as_bytes()).unwrap();
    }
}

/// Does it, and demands that it ends at all.
#[track_caller]
pub fn ends<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || drop(done.send(work())));
    result.recv_timeout(std::time::Duration::from_secs(100)).expect("an end")
}

/// What a stretch of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Hole,
    /// Zeros that are allocated.
    Zeros,
    /// Bytes that follow from a seed; some of its pages are zero.
    Data(u8),
}

/// Content, and where it is allocated: extents that need not respect pages.
#[derive(Debug, Clone, Default)]
pub struct Sparse {
    pub bytes: Vec<u8>,
    pub extents: Vec<Extent>,
}

impl Sparse {
    pub fn of(pieces: &[(Kind, usize)]) -> Sparse {
        let mut sparse = Sparse::default();
        for &(kind, len) in pieces {
            let start = sparse.bytes.len();
            sparse.bytes.resize(start + len, 0);
            if let Kind::Data(seed) = kind {
                fill(&mut sparse.bytes[start..], start as u64, seed);
            }
            if kind != Kind::Hole && len > 0 {
                sparse.extents.push(start as u64..(start + len) as u64);
            }
        }
        sparse
    }

    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The same bytes, all of them allocated.
    pub fn dense(&self) -> Sparse {
        let all = (!self.bytes.is_empty()).then_some(0..self.len());
        Sparse { bytes: self.bytes.clone(), extents: all.into_iter().collect() }
    }

    /// Makes `path` this file.
    pub fn write(&self, path: &Path) -> File {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        file.set_len(self.len()).unwrap();
        for extent in &self.extents {
            let range = extent.start as usize..extent.end as usize;
            file.write_all_at(&self.bytes[range], extent.start).unwrap();
        }
        file
    }
}

impl Image for Sparse {
    fn extents<'a>(&'a self, range: Range<u64>) -> Box<dyn Iterator<Item = io::Result<Extent>> + Send + 'a> {
        let clip = move |extent: &Extent| extent.start.max(range.start)..extent.end.min(range.end);
        Box::new(self.extents.iter().map(clip).filter(|extent| !extent.is_empty()).map(Ok))
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let from = self.bytes.get(at as usize..).unwrap_or_default();
        let len = from.len().min(buffer.len());
        buffer[..len].copy_from_slice(&from[..len]);
        buffer[len..].fill(0);
        Ok(())
    }
}

/// Bytes that depend on where they are; one page in five is zero.
pub fn fill(bytes: &mut [u8], at: u64, seed: u8) {
    for (byte, at) in bytes.iter_mut().zip(at..) {
        let page = at / 4096;
        let zero_page = (page + u64::from(seed)).is_multiple_of(5);
        *byte = if zero_page { 0 } else { (at * 31 + page * 7) as u8 ^ seed };
    }
}

/// Lengths around the borders of pages and blocks, tiny ones, and any.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => (1..20usize).prop_map(|pages| pages * 4096),
        2 => 1..200usize,
        1 => (1..5usize, 0..3usize).prop_map(|(blocks, by)| blocks * 65536 + by - 1),
        2 => 1..60_000usize,
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Hole), Just(Kind::Zeros), (1..4u8).prop_map(Kind::Data)]
}

/// Any sparse content of so many pieces at most, the empty one included.
pub fn sparse(pieces: usize) -> impl Strategy<Value = Sparse> {
    prop::collection::vec((kind(), length()), 0..pieces).prop_map(|pieces| Sparse::of(&pieces))
}

/// Two versions of a file: pieces replaced, cut off or added.
pub fn versions(pieces: usize) -> impl Strategy<Value = (Sparse, Sparse)> {
    let piece = || (kind(), length());
    let edit = prop_oneof![6 => Just(None), 1 => kind().prop_map(Some)];
    let old = prop::collection::vec((piece(), edit), 0..pieces);
    (old, prop::collection::vec(piece(), 0..3), 0..4usize).prop_map(|(old, more, cut)| {
        let basis: Vec<_> = old.iter().map(|(piece, _)| *piece).collect();
        let keep = old.len().saturating_sub(cut);
        let changed = old[..keep].iter().map(|((kind, len), edit)| (edit.unwrap_or(*kind), *len));
        let source: Vec<_> = changed.chain(more).collect();
        (Sparse::of(&source), Sparse::of(&basis))
    })
}
