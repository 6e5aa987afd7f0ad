//! How fast each stage of a transfer is by itself, where there is one beside
//! the simplest thing that touches the same bytes: `cargo bench --bench stages`.
//!
//! Everything is in the page cache or in memory, and nothing waits for storage:
//! these are the speeds of the code.

use std::fs::File;
use std::hint::black_box;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use holesync::apply::{Attributes, Destination, Opened, Place, QuickCheck, Setup, Wanted};
use holesync::hashmap::plan::{BlockMap, Run};
use holesync::hashmap::{self, Grid, Key, PAGE};
use holesync::options::{BlockSize, Options};
use holesync::protocol::{FrameReader, FrameWriter};
use holesync::scan::{self, FileImage};

use rayon::prelude::*;
use tempfile::TempDir;

const MIB: usize = 1 << 20;
const BLOCK: usize = 64 << 10;
/// Data in most of the measurements.
const DATA: usize = 32 * MIB;

criterion_main!(stages);
criterion_group! {
    name = stages;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = scanning, zeros, mapping, planning, frames, applying
}

/// Finding the extents of a file that is nothing but pages and holes in turn.
fn scanning(criterion: &mut Criterion) {
    const EXTENTS: u64 = 20_000;
    let dir = directory();
    let file = sparse_file(&dir.path().join("image"), (0..EXTENTS).map(|nth| nth * 2 * PAGE), PAGE as usize);
    let mut group = criterion.benchmark_group("scan");
    group.throughput(Throughput::Elements(EXTENTS));
    group.bench_function("extents", |bencher| {
        bencher.iter(|| scan::data_extents(&file, 0..EXTENTS * 2 * PAGE).map(Result::unwrap).count());
    });
}

/// Telling zero pages from others, as it is done with every page that is read.
/// Data shows in its first bytes, so its figure is no memory speed: it says how
/// little a page of data costs.
fn zeros(criterion: &mut Criterion) {
    const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
    let mut late = vec![0; MIB];
    late.iter_mut().skip(PAGE as usize - 1).step_by(PAGE as usize).for_each(|byte| *byte = 1);
    let mut group = criterion.benchmark_group("zeros");
    group.throughput(Throughput::Bytes(MIB as u64));
    for (what, bytes) in [("zeros", vec![0; MIB]), ("data", random(MIB)), ("zeros but the last byte", late)] {
        let count =
            |test: fn(&[u8]) -> bool| black_box(&bytes).chunks(ZEROS.len()).filter(|page| test(page)).count();
        group.bench_function(format!("{what}, is_zero"), |bencher| bencher.iter(|| count(scan::is_zero)));
        group.bench_function(format!("{what}, memcmp"), |bencher| {
            bencher.iter(|| count(|page| page == ZEROS))
        });
    }
}

/// Reading and hashing an image block by block, beside hashing the bytes alone:
/// block by block, and as one long hash, which is what b3sum computes.
fn mapping(criterion: &mut Criterion) {
    let dir = directory();
    let mut group = criterion.benchmark_group("map");
    group.throughput(Throughput::Bytes(DATA as u64));
    for (name, extent) in [("dense", BLOCK), ("sparse", BLOCK / 4)] {
        let starts = (0..(DATA / extent) as u64).map(|nth| nth * BLOCK as u64);
        let file = sparse_file(&dir.path().join(name), starts, extent);
        let grid = Grid { length: file.metadata().unwrap().len(), block: BlockSize::default() };
        let image = FileImage::new(file, true);
        group.bench_function(format!("{name} image"), |bencher| {
            bencher.iter(|| hashmap::root_of(&image, &grid, |_| true).unwrap());
        });
    }
    let bytes = random(DATA);
    group.bench_function("blake3 alone, one thread", |bencher| bencher.iter(|| hash_blocks(&bytes)));
    group.bench_function("blake3 alone, all threads", |bencher| {
        bencher.iter(|| bytes.par_chunks(MIB).for_each(hash_blocks));
    });
    group.bench_function("one long blake3, one thread", |bencher| bencher.iter(|| blake3::hash(&bytes)));
    group.bench_function("one long blake3, all threads", |bencher| {
        let (left, right) = bytes.split_at(left_subtree_len(DATA as u64) as usize);
        let hash = || {
            let start = left.len() as u64;
            let (left, right) = rayon::join(|| subtree(left, 0), || subtree(right, start));
            merge_subtrees_root(&left, &right, Mode::Hash)
        };
        assert_eq!(hash(), blake3::hash(&bytes));
        bencher.iter(hash);
    });
}

/// The hash of a part of a longer input that begins at `start`, as a subtree of
/// the whole hash, computed on all threads.
fn subtree(bytes: &[u8], start: u64) -> ChainingValue {
    if bytes.len() <= MIB {
        return blake3::Hasher::new().set_input_offset(start).update(bytes).finalize_non_root();
    }
    let (left, right) = bytes.split_at(left_subtree_len(bytes.len() as u64) as usize);
    let middle = start + left.len() as u64;
    let (left, right) = rayon::join(|| subtree(left, start), || subtree(right, middle));
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

fn hash_blocks(bytes: &[u8]) {
    bytes.chunks(BLOCK).for_each(|block| {
        black_box(blake3::hash(block));
    });
}

/// Comparing two maps of which 1 % differs; half of the blocks are holes.
fn planning(criterion: &mut Criterion) {
    const BLOCKS: usize = 200_000;
    let map = |seed: u8| {
        let key = |nth: usize| {
            let mut key = Key::default();
            key[..8].copy_from_slice(&nth.to_le_bytes());
            key[8] = if nth.is_multiple_of(100) { seed } else { 0 };
            key
        };
        let stretch = |first: usize| [Run::Keys((first..first + 50).map(key).collect()), Run::Zero(50)];
        BlockMap { runs: (0..BLOCKS).step_by(100).flat_map(stretch).collect() }
    };
    let (source, basis) = (map(1), map(2));
    let mut group = criterion.benchmark_group("plan");
    group.throughput(Throughput::Elements(BLOCKS as u64));
    group.bench_function("blocks", |bencher| {
        let maps = || (source.clone(), basis.clone());
        bencher.iter_batched(
            maps,
            |(source, basis)| holesync::hashmap::plan::plan(source, basis),
            BatchSize::LargeInput,
        );
    });
}

/// Data frames into memory and out of it again, beside copying the bytes.
fn frames(criterion: &mut Criterion) {
    let bytes = random(DATA);
    let masks = [0xffff; MIB / BLOCK];
    let encode = |wire: &mut Vec<u8>| {
        wire.clear();
        let mut writer = FrameWriter::new(wire, "nobody");
        for (nth, frame) in bytes.chunks(MIB).enumerate() {
            writer.data((nth * masks.len()) as u64, &masks, &[frame]).unwrap();
        }
        writer.flush().unwrap();
    };
    let mut wire = Vec::new();
    let mut group = criterion.benchmark_group("frames");
    group.throughput(Throughput::Bytes(DATA as u64));
    group.bench_function("encode", |bencher| bencher.iter(|| encode(&mut wire)));
    encode(&mut wire);
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            let mut reader = FrameReader::new(wire.as_slice(), "nobody");
            (0..DATA / MIB).for_each(|_| drop(black_box(reader.read().unwrap())));
        });
    });
    let mut copy = vec![0; DATA];
    group.bench_function("memcpy alone", |bencher| bencher.iter(|| copy.copy_from_slice(black_box(&bytes))));
}

/// Making a file, and changing a part of one, beside the system calls alone that
/// write, copy or, where the file system can, clone a file.
fn applying(criterion: &mut Criterion) {
    let dir = directory();
    let bytes = random(DATA);
    let (source, copy, changed) =
        (dir.path().join("source"), dir.path().join("copy"), dir.path().join("changed"));
    std::fs::write(&source, &bytes).unwrap();
    std::fs::write(&changed, &bytes).unwrap();
    let mut group = criterion.benchmark_group("apply");
    group.throughput(Throughput::Bytes(DATA as u64));
    let absent = || drop(std::fs::remove_file(&copy));
    group.bench_function("new file", |bencher| {
        bencher.iter_batched(absent, |()| apply(&copy, &bytes, 0..DATA), BatchSize::PerIteration);
    });
    group.bench_function("new file, std::fs::copy", |bencher| {
        bencher.iter_batched(absent, |()| std::fs::copy(&source, &copy).unwrap(), BatchSize::PerIteration);
    });
    group.bench_function("new file, std::fs::write", |bencher| {
        bencher.iter_batched(absent, |()| std::fs::write(&copy, &bytes).unwrap(), BatchSize::PerIteration);
    });
    if clone(&source, &copy) {
        group.bench_function("new file, a clone", |bencher| {
            bencher.iter_batched(absent, |()| assert!(clone(&source, &copy)), BatchSize::PerIteration);
        });
    }
    patching(&mut group, &changed, &bytes);
}

fn patching(group: &mut BenchmarkGroup<WallTime>, path: &Path, bytes: &[u8]) {
    let part = DATA / 2..DATA / 2 + DATA / 8;
    group.throughput(Throughput::Bytes(part.len() as u64));
    group.bench_function("an eighth of a file", |bencher| bencher.iter(|| apply(path, bytes, part.clone())));
    let file = File::options().write(true).open(path).unwrap();
    group.bench_function("an eighth of a file, pwrite", |bencher| {
        bencher.iter(|| file.write_all_at(&bytes[part.clone()], part.start as u64).unwrap());
    });
}

/// False where the file system has no clones.
fn clone(from: &Path, to: &Path) -> bool {
    holesync::sys::clone_file(&File::open(from).unwrap(), &File::create(to).unwrap()).unwrap()
}

/// Writes a part of what a file shall hold, in pieces as large as frames.
fn apply(path: &Path, bytes: &[u8], part: Range<usize>) {
    let dir = File::open(path.parent().unwrap()).unwrap();
    let name = path.file_name().unwrap().to_owned();
    let place = Place::new(Arc::new(dir.into()), name, path.to_path_buf());
    let length = bytes.len() as u64;
    let attributes = Attributes { new_mode: 0o600, ..Attributes::default() };
    let quick_check = QuickCheck::Never;
    let wanted = Wanted { length, data: length, whole: false, quick_check, attributes };
    let setup = Setup::new(Arc::new(Options { fsync: false, ..Options::default() }));
    let opening = Destination::open(place, wanted, &setup).unwrap();
    let Opened::Different(mut destination) = opening.opened else { unreachable!() };
    for start in part.clone().step_by(MIB) {
        destination.write(start as u64, &bytes[start..part.end.min(start + MIB)]).unwrap();
    }
    let kept = (bytes.len() - part.len()) as u64;
    // Nothing reads the file back, so the root hash is never looked at.
    destination.finish(&[0; 32], kept).unwrap();
}

/// Random bytes, the same in every run: the endless output of BLAKE3.
fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(b"stages").finalize_xof().fill(&mut bytes);
    bytes
}

/// On the file system that holds the build, which has holes where /tmp may not.
fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Makes a file with data of this length at each of these places.
fn sparse_file(path: &Path, starts: impl Iterator<Item = u64>, len: usize) -> File {
    File::create(path).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let bytes = random(len);
    starts.for_each(|start| file.write_all_at(&bytes, start).unwrap());
    file.sync_all().unwrap();
    file
}
