//! Blocks, maps, plans and root hashes against naive models.

use std::io;
use std::ops::Range;

use holesync::hashmap::plan::{Action, BlockMap, Planner, Run, plan};
use holesync::hashmap::{Block, Grid, Hash, Item, PAGE, hash_block, key, map_image, root_of};
use holesync::options::BlockSize;
use holesync::scan::{Extent, Image};
use proptest::prelude::*;

use crate::support::{Kind, Sparse, sparse, versions};

fn block_size() -> impl Strategy<Value = BlockSize> {
    (12..=18u32).prop_map(|bits| BlockSize::new(1 << bits).unwrap())
}

/// What [`map_image`] hands out, checked for order, as one row.
fn items_of(image: &dyn Image, grid: &Grid) -> Vec<(u64, Item, Vec<u8>)> {
    let mut found = Vec::new();
    let mut index = 0;
    map_image(image, grid, |batch| {
        for item in &batch.items {
            let data = match item {
                Item::Hole(_) => Vec::new(),
                Item::Block(block) => batch.data_of(grid, index, block).collect::<Vec<_>>().concat(),
            };
            found.push((index, item.clone(), data));
            index += match item {
                Item::Hole(blocks) => *blocks,
                Item::Block(_) => 1,
            };
        }
        Ok::<_, io::Error>(true)
    })
    .unwrap();
    assert_eq!(index, grid.blocks(), "every block once");
    found
}

fn map_of(image: &dyn Image, grid: &Grid) -> BlockMap {
    let runs = items_of(image, grid).into_iter().map(|(_, item, _)| match item {
        Item::Hole(blocks) => Run::Zero(blocks),
        Item::Block(block) if block.data == 0 => Run::Zero(1),
        Item::Block(block) => Run::Keys(vec![key(&block.hash)]),
    });
    BlockMap { runs: runs.collect() }
}

fn root(image: &Sparse, block: BlockSize) -> Hash {
    root_of(image, &Grid { length: image.len(), block }, |_| true).unwrap().unwrap()
}

/// What the basis becomes when a plan's ranges are applied to it.
fn applied(source: &Sparse, basis: &Sparse, grid: &Grid, steps: &[(Range<u64>, Action)]) -> Vec<u8> {
    let mut bytes = basis.bytes.clone();
    bytes.resize(source.bytes.len(), 0);
    for (blocks, action) in steps {
        let range = grid.bytes(blocks);
        let range = range.start as usize..range.end as usize;
        match action {
            Action::Keep => {}
            Action::Zero => bytes[range].fill(0),
            Action::Data | Action::Update => bytes[range.clone()].copy_from_slice(&source.bytes[range]),
        }
    }
    bytes
}

/// The grids of a source and of the part of the basis that counts.
fn grids(source: &Sparse, basis: &Sparse, block: BlockSize) -> (Grid, Grid) {
    let length = source.len();
    (Grid { length, block }, Grid { length: length.min(basis.len()), block })
}

/// The run in pieces, cut where `cuts` says.
fn split(run: Run, cuts: &mut impl Iterator<Item = usize>) -> Vec<Run> {
    let cut = |len: u64, cuts: &mut dyn Iterator<Item = usize>| cuts.next().unwrap_or(0) as u64 % (len + 1);
    match run {
        Run::Zero(blocks) => {
            let at = cut(blocks, cuts);
            vec![Run::Zero(at), Run::Zero(blocks - at)]
        }
        Run::Keys(mut keys) => {
            let at = cut(keys.len() as u64, cuts);
            let rest = keys.split_off(at as usize);
            vec![Run::Keys(keys), Run::Keys(rest)]
        }
    }
}

/// Neighbouring keys as one run, as maps on the wire have them.
fn joined(map: BlockMap) -> BlockMap {
    let mut runs: Vec<Run> = Vec::new();
    for run in map.runs {
        match (runs.last_mut(), run) {
            (Some(Run::Keys(keys)), Run::Keys(more)) => keys.extend(more),
            (Some(Run::Zero(blocks)), Run::Zero(more)) => *blocks += more,
            (_, run) => runs.push(run),
        }
    }
    BlockMap { runs }
}

fn merged(steps: Vec<(Range<u64>, Action)>) -> Vec<(Range<u64>, Action)> {
    let mut merged: Vec<(Range<u64>, Action)> = Vec::new();
    for (range, action) in steps {
        match merged.last_mut() {
            Some((last, same)) if *same == action && last.end == range.start => last.end = range.end,
            _ => merged.push((range, action)),
        }
    }
    merged
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_turns_the_basis_into_the_source((source, basis) in versions(8), block in block_size()) {
        let (grid, known) = grids(&source, &basis, block);
        let steps = plan(map_of(&source, &grid), map_of(&basis, &known));
        let mut at = 0;
        for (range, _) in &steps {
            prop_assert_eq!(range.start, at);
            prop_assert!(range.end > at);
            at = range.end;
        }
        prop_assert_eq!(at, grid.blocks());
        prop_assert!(applied(&source, &basis, &grid, &steps) == source.bytes);
    }

    #[test]
    fn without_a_basis_every_block_is_told(source in sparse(8), block in block_size()) {
        let grid = Grid { length: source.len(), block };
        let mut planner = Planner::default();
        planner.without_basis();
        map_of(&source, &grid).runs.into_iter().for_each(|run| planner.push_source(run));
        let steps: Vec<_> = std::iter::from_fn(|| planner.step()).collect();
        prop_assert!(steps.iter().all(|(_, action)| *action != Action::Keep));
        let garbage = Sparse { bytes: vec![0xa5; source.bytes.len()], extents: Vec::new() };
        prop_assert!(applied(&source, &garbage, &grid, &steps) == source.bytes);
    }

    #[test]
    fn a_plan_between_equal_files_keeps_everything(source in sparse(8), block in block_size()) {
        let grid = Grid { length: source.len(), block };
        let steps = plan(map_of(&source, &grid), map_of(&source.dense(), &grid));
        let wanted: Vec<_> = (grid.blocks() > 0).then_some((0..grid.blocks(), Action::Keep)).into_iter().collect();
        prop_assert_eq!(steps, wanted);
    }

    #[test]
    fn a_planner_fed_in_pieces_plans_the_same(
        (source, basis) in versions(8),
        block in block_size(),
        cuts in prop::collection::vec(any::<u16>().prop_map(usize::from), 64),
        order in prop::collection::vec(any::<bool>(), 64),
    ) {
        let (grid, known) = grids(&source, &basis, block);
        let (source, basis) = (joined(map_of(&source, &grid)), joined(map_of(&basis, &known)));
        let mut cuts = cuts.into_iter().cycle();
        let mut pieces = |map: &BlockMap| {
            map.runs.iter().flat_map(|run| split(run.clone(), &mut cuts)).collect::<Vec<_>>().into_iter()
        };
        let (mut ours, mut theirs) = (pieces(&source), pieces(&basis));
        let mut planner = Planner::default();
        let mut steps = Vec::new();
        let mut turns = order.into_iter().cycle();
        let (mut source_left, mut basis_left) = (true, true);
        while source_left || basis_left {
            let feed_source = turns.next().unwrap_or(true) && source_left || !basis_left;
            match if feed_source { ours.next() } else { theirs.next() } {
                Some(run) if feed_source => planner.push_source(run),
                Some(run) => planner.push_basis(run),
                None if feed_source => source_left = false,
                None => {
                    planner.end_basis();
                    basis_left = false;
                }
            }
            steps.extend(std::iter::from_fn(|| planner.step()));
        }
        prop_assert_eq!(merged(steps), plan(source, basis));
    }

    #[test]
    fn batches_hold_each_block_once_and_exactly_its_data(image in sparse(12), block in block_size()) {
        check_items(&image, block);
    }

    #[test]
    fn a_root_does_not_depend_on_the_layout(image in sparse(8), block in block_size()) {
        prop_assert_eq!(root(&image, block), root(&image.dense(), block));
        let tight = Sparse { extents: nonzero_runs(&image.bytes), ..image.clone() };
        prop_assert_eq!(root(&image, block), root(&tight, block));
    }

    #[test]
    fn a_root_depends_on_every_byte_and_on_the_length(
        image in sparse(8),
        block in block_size(),
        at in any::<prop::sample::Index>(),
        flip in 1..=255u8,
        more in 1..100_000usize,
    ) {
        let before = root(&image, block);
        let mut longer = image.dense();
        longer.bytes.resize(longer.bytes.len() + more, 0);
        prop_assert_ne!(before, root(&longer, block));
        if !image.bytes.is_empty() {
            let mut other = image.dense();
            other.bytes[at.index(image.bytes.len())] ^= flip;
            prop_assert_ne!(before, root(&other, block));
        }
    }
}

fn nonzero_runs(bytes: &[u8]) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
        match runs.last_mut() {
            Some(run) if run.end == at as u64 => run.end += 1,
            _ => runs.push(at as u64..at as u64 + 1),
        }
    }
    runs
}

/// Compares what [`map_image`] hands out with what the bytes say.
fn check_items(image: &Sparse, block: BlockSize) {
    let grid = Grid { length: image.len(), block };
    for (index, item, data) in items_of(image, &grid) {
        match item {
            Item::Hole(blocks) => {
                let range = grid.bytes(&(index..index + blocks));
                assert!(image.extents(range).next().is_none(), "an extent in the hole at block {index}");
            }
            Item::Block(found) => check_block(image, &grid, index, &found, &data),
        }
    }
}

fn check_block(image: &Sparse, grid: &Grid, index: u64, found: &Block, data: &[u8]) {
    let range = grid.bytes(&(index..index + 1));
    let bytes = &image.bytes[range.start as usize..range.end as usize];
    let pages = || bytes.chunks(PAGE as usize).enumerate();
    let mask = |wanted: &dyn Fn(usize, &[u8]) -> bool| {
        pages().filter(|(page, bytes)| wanted(*page, bytes)).fold(0u64, |mask, (page, _)| mask | 1 << page)
    };
    let touched = mask(&|page, bytes| {
        let start = range.start + page as u64 * PAGE;
        image.extents(start..start + bytes.len() as u64).next().is_some()
    });
    let nonzero = mask(&|_, bytes| bytes.iter().any(|&byte| byte != 0));
    assert_eq!((found.read, found.data), (touched, nonzero), "block {index}");
    let wanted: Vec<&[u8]> =
        pages().map(|(_, bytes)| bytes).filter(|bytes| bytes.iter().any(|&byte| byte != 0)).collect();
    assert!(data == wanted.concat(), "data of block {index}");
    if nonzero != 0 {
        assert_eq!(found.hash, hash_block(nonzero, wanted.into_iter()), "hash of block {index}");
    }
}

/// A batch is 4 MiB of data: here one ends, give or take a page, within a block
/// of which more is to come.
#[test]
fn a_block_that_straddles_two_batches_is_whole() {
    let (page, block) = (PAGE as usize, BlockSize::new(64 << 10).unwrap());
    for missing in 0..4 {
        for tail in [0, 1, 3 * page, 200_000] {
            let pieces = [
                (Kind::Data(1), (4 << 20) - (missing + 1) * page),
                (Kind::Hole, (missing + 1) * page),
                (Kind::Data(2), page),
                (Kind::Hole, 2 * page),
                (Kind::Data(3), page + 5),
                (Kind::Hole, tail),
            ];
            check_items(&Sparse::of(&pieces), block);
        }
    }
}

#[test]
fn a_sink_that_has_enough_ends_the_reading() {
    let image = Sparse::of(&[(Kind::Data(1), 12 << 20)]);
    let grid = Grid { length: image.len(), block: BlockSize::default() };
    let mut batches = 0;
    map_image(&image, &grid, |_| {
        batches += 1;
        Ok::<_, io::Error>(false)
    })
    .unwrap();
    assert_eq!(batches, 1);
    assert_eq!(root_of(&image, &grid, |_| false).unwrap(), None);
}

/// An image of which no more can be found out behind a place.
struct Broken(Sparse, u64);

impl Image for Broken {
    fn extents<'a>(&'a self, range: Range<u64>) -> Box<dyn Iterator<Item = io::Result<Extent>> + Send + 'a> {
        let known = self.0.extents(range.start..range.end.min(self.1));
        Box::new(known.chain(std::iter::once(Err(io::Error::other("no map")))))
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_at(buffer, at)
    }
}

#[test]
fn what_lies_before_a_failing_seek_is_handed_out_first() {
    let image = Broken(Sparse::of(&[(Kind::Data(1), 12 << 20)]), 10 << 20);
    let grid = Grid { length: 12 << 20, block: BlockSize::default() };
    let mut bytes = 0;
    let result = map_image(&image, &grid, |batch| {
        bytes += batch.bytes_read;
        Ok::<_, io::Error>(true)
    });
    assert_eq!(result.unwrap_err().to_string(), "no map");
    // Full batches, each but for the block that the next one begins with.
    assert_eq!(bytes, (8 << 20) - (128 << 10));
}
