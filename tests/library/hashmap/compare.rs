//! Two images compared by their bytes, against a model that looks at every page.

use std::io;
use std::ops::Range;

use holesync::hashmap::compare::{BlockDiff, Hashing, OldContent, ReadError, Stretch, compare};
use holesync::hashmap::{self, Grid, PAGE, PageMask, RootHasher, page_runs};
use holesync::options::BlockSize;
use holesync::scan::{Extent, Image};
use proptest::prelude::*;

use crate::support::{Kind, Sparse, versions};

fn grid(new: &Sparse, block: u64) -> Grid {
    Grid { length: new.len(), block: BlockSize::new(block).unwrap() }
}

fn stretches(new: &Sparse, old: OldContent, grid: &Grid, hashing: Hashing) -> Vec<Stretch> {
    let mut found = Vec::new();
    compare(new, old, grid, hashing, &[], |stretch| {
        found.push(stretch);
        Ok::<_, Failed>(())
    })
    .unwrap();
    found
}

#[derive(Debug, PartialEq)]
enum Failed {
    New,
    Old,
    Sink,
}

impl From<ReadError> for Failed {
    fn from(error: ReadError) -> Failed {
        match error {
            ReadError::New(_) => Failed::New,
            ReadError::Old(_) => Failed::Old,
        }
    }
}

/// A page of a file as long as the grid says; what the file lacks is zero.
fn page(sparse: &Sparse, range: &Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    sparse.read_at(&mut bytes, range.start).unwrap();
    bytes
}

/// The pages of a block that data extents cover.
fn covered(sparse: &Sparse, grid: &Grid, index: u64) -> PageMask {
    let touches = |page: &u32| sparse.extents(grid.pages(index, &(*page..page + 1))).next().is_some();
    let pages = page_runs(grid.all_pages(index)).flatten().filter(touches);
    pages.fold(0, |mask, page| mask | 1 << page)
}

/// What a block has to be found as, looking at every page.
fn model(new: &Sparse, old: &Sparse, grid: &Grid, index: u64) -> BlockDiff {
    let (read, old_read) = (covered(new, grid, index), covered(old, grid, index));
    let (hash, is_known) = ([0; 32], false);
    let mut diff = BlockDiff { index, read, data: 0, new: 0, zero: 0, free: 0, old: 0, hash, is_known };
    let mut data = Vec::new();
    for at in page_runs(grid.all_pages(index)).flatten() {
        let range = grid.pages(index, &(at..at + 1));
        let (ours, theirs, bit) = (page(new, &range), page(old, &range), 1 << at);
        let is_zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
        match (is_zero(&ours), is_zero(&theirs)) {
            (false, _) if ours != theirs => diff.new |= bit,
            (true, false) => diff.zero |= bit,
            (true, true) if old_read & bit != 0 => diff.free |= bit,
            _ => {}
        }
        if !is_zero(&theirs) {
            diff.old |= bit;
        }
        if !is_zero(&ours) {
            diff.data |= bit;
            data.push(ours);
        }
    }
    if diff.data == 0 && diff.zero != 0 {
        (diff.zero, diff.free) = (old_read, 0);
    }
    if diff.data != 0 {
        diff.hash = hashmap::hash_block(diff.data, data.iter().map(Vec::as_slice));
    }
    diff
}

/// Checks everything that is said of two files, and that doing it makes one of the other.
fn check(new: &Sparse, old: &Sparse, block: u64) {
    let grid = grid(new, block);
    let found = stretches(new, OldContent::Image(old, old.len()), &grid, Hashing::Wanted);
    let mut made = old.bytes.clone();
    made.resize(new.bytes.len(), 0);
    let mut root = RootHasher::new(&grid);
    let (mut reached, mut next) = (0, 0);
    let is_hole = |index| covered(new, &grid, index) | covered(old, &grid, index) == 0;
    for stretch in &found {
        assert_eq!(stretch.range.start, reached);
        assert!(stretch.range.end > reached);
        reached = stretch.range.end;
        let mut bytes = stretch.bytes.as_slice();
        for diff in &stretch.blocks {
            assert!(stretch.range.contains(&diff.index));
            assert!((next..diff.index).all(is_hole));
            assert_eq!(*diff, model(new, old, &grid, diff.index));
            next = diff.index + 1;
            for run in page_runs(diff.new) {
                let range = grid.pages(diff.index, &run);
                let (now, rest) = bytes.split_at((range.end - range.start) as usize);
                bytes = rest;
                made[range.start as usize..range.end as usize].copy_from_slice(now);
            }
            for run in page_runs(diff.zero | diff.free) {
                let range = grid.pages(diff.index, &run);
                made[range.start as usize..range.end as usize].fill(0);
            }
            if diff.data != 0 {
                root.add(diff.index, &diff.hash);
            }
        }
        assert!(bytes.is_empty());
    }
    assert_eq!(reached, grid.blocks());
    assert!((next..grid.blocks()).all(is_hole));
    assert!(made == new.bytes);
    assert_eq!(root.finish(), hashmap::root_of(new, &grid, |_| true).unwrap().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_is_found_is_what_a_look_at_every_page_finds(
        (new, old) in versions(12),
        block in prop::sample::select(vec![4096u64, 16384, 65536, 262144]),
    ) {
        check(&new, &old, block);
        // Zeros that the new file has allocated, and those that the old one has.
        check(&new.dense(), &old, block);
        check(&new, &old.dense(), block);
    }

    #[test]
    fn of_a_file_that_nobody_knows_all_is_to_be_made((new, _) in versions(8)) {
        let grid = grid(&new, 65536);
        for (old, fills) in [(OldContent::Unknown, true), (OldContent::Zeros, false)] {
            for stretch in stretches(&new, old, &grid, Hashing::Unneeded) {
                for diff in &stretch.blocks {
                    prop_assert_eq!(diff.new, diff.data);
                    let zeros = if fills { grid.all_pages(diff.index) & !diff.data } else { 0 };
                    prop_assert_eq!((diff.zero, diff.free, diff.hash), (zeros, 0, [0; 32]));
                }
            }
        }
    }
}

/// Many stretches' worth of data, with holes, zeros and changes in it.
fn large() -> (Sparse, Sparse) {
    let pieces = |seed: u8| -> Vec<(Kind, usize)> {
        let piece = |at: usize| match at % 7 {
            0 => (Kind::Hole, 300_000),
            1 => (Kind::Zeros, 50_000),
            3 => (Kind::Data(seed), 70_001),
            _ => (Kind::Data(1), 600_000),
        };
        (0..60).map(piece).collect()
    };
    (Sparse::of(&pieces(2)), Sparse::of(&pieces(3)))
}

#[test]
fn stretches_come_in_order_and_are_bounded() {
    let (new, old) = large();
    check(&new, &old, 65536);
    let found = stretches(&new, OldContent::Zeros, &grid(&new, 65536), Hashing::Unneeded);
    assert!(found.len() > 30, "{}", found.len());
    for stretch in found {
        let bytes = stretch.bytes.len();
        assert!(bytes <= 600_000, "{bytes}");
    }
}

#[test]
fn equal_files_have_no_bytes_and_their_zeros_are_given_back() {
    let (new, _) = large();
    let grid = grid(&new, 65536);
    for old in [new.clone(), new.dense()] {
        let mut free = 0;
        for stretch in stretches(&new, OldContent::Image(&old, old.len()), &grid, Hashing::Unneeded) {
            assert!(stretch.bytes.is_empty() && stretch.blocks.iter().all(|block| !block.differs()));
            free +=
                stretch.blocks.iter().map(|block| grid.masked_bytes(block.index, block.free)).sum::<u64>();
        }
        assert!(free > PAGE, "{free}");
    }
}

/// An image that cannot be read from a place on.
struct Broken<'a>(&'a Sparse, u64);

impl Image for Broken<'_> {
    fn extents<'a>(&'a self, range: Range<u64>) -> Box<dyn Iterator<Item = io::Result<Extent>> + Send + 'a> {
        self.0.extents(range)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        if at >= self.1 { Err(io::Error::from_raw_os_error(5)) } else { self.0.read_at(buffer, at) }
    }
}

#[test]
fn what_cannot_be_read_is_told_apart_and_ends_it() {
    let (new, old) = large();
    let grid = grid(&new, 65536);
    for place in [0, 9 << 20, new.len() - 1_000_000] {
        let mut reached = 0;
        let mut go = |new: &dyn Image, old: &dyn Image, length| {
            reached = 0;
            compare(new, OldContent::Image(old, length), &grid, Hashing::Wanted, &[], |stretch| {
                reached = grid.bytes(&stretch.range).end;
                Ok::<_, Failed>(())
            })
        };
        assert_eq!(go(&Broken(&new, place), &old, old.len()), Err(Failed::New));
        assert_eq!(go(&new, &Broken(&old, place), old.len()), Err(Failed::Old));
        assert!(reached <= place + 65536, "{reached} {place}");
    }
}

#[test]
fn a_sink_that_fails_ends_it() {
    let (new, old) = large();
    let mut calls = 0;
    let ended =
        compare(&new, OldContent::Image(&old, old.len()), &grid(&new, 65536), Hashing::Unneeded, &[], |_| {
            calls += 1;
            if calls < 3 { Ok(()) } else { Err(Failed::Sink) }
        });
    assert_eq!((ended, calls), (Err(Failed::Sink), 3));
}

#[test]
fn blocks_that_are_known_to_be_the_same_are_not_read() {
    let sparse = Sparse::of(&[(Kind::Data(7), 10 * 65536)]);
    let (new, old) = (Broken(&sparse, 7 * 65536), Broken(&sparse, 7 * 65536));
    let grid = grid(&sparse, 65536);
    let look = |hashing, same: &[Range<u64>]| {
        let mut known = Vec::new();
        compare(&new, OldContent::Image(&old, grid.length), &grid, hashing, same, |stretch| {
            known.extend(stretch.blocks.iter().map(|block| (block.is_known, block.differs())));
            Ok::<_, Failed>(())
        })
        .map(|()| known)
    };
    let same = [Range { start: 2, end: 3 }, Range { start: 7, end: 10 }];
    let expected: Vec<_> = (0..10).map(|index| (index == 2 || index >= 7, false)).collect();
    assert_eq!(look(Hashing::Unneeded, &same), Ok(expected));
    assert_eq!(look(Hashing::Wanted, &same), Err(Failed::New));
    assert_eq!(look(Hashing::Unneeded, &[]), Err(Failed::New));
}
