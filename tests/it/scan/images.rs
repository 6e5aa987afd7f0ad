//! What every image that can be read promises, held for each kind of image: the next kind
//! gets a constructor here and the same checks.

use std::fs::{self, File};
use std::path::Path;

use holesync::apply::stage::overlay::{Overlay, RangeKind, Runs};
use holesync::hashmap::{Grid, root_of};
use holesync::options::BlockSize;
use holesync::scan::{FileImage, Image};

use crate::common::lab::{self, Fs, Loop};
use crate::common::layout::{Layout, Rng, layouts};

const PAGE: usize = 4 << 10;

/// A kind of image.
trait Kind {
    /// An image that reads as this layout, made in a directory; `None`, and a counted
    /// skip, where this kind cannot be made.
    fn image(&mut self, layout: &Layout, dir: &Path) -> Option<Box<dyn Image>>;

    /// Whether its extents leave out what the layout leaves out.
    fn has_holes(&self) -> bool;
}

struct Plain;

impl Kind for Plain {
    fn image(&mut self, layout: &Layout, dir: &Path) -> Option<Box<dyn Image>> {
        Some(Box::new(FileImage::new(written(layout, dir), true)))
    }

    fn has_holes(&self) -> bool {
        true
    }
}

/// Read past the page cache, where the system can do that.
struct SparingCache;

impl Kind for SparingCache {
    fn image(&mut self, layout: &Layout, dir: &Path) -> Option<Box<dyn Image>> {
        Some(Box::new(FileImage::new(written(layout, dir), true).sparing_cache()))
    }

    fn has_holes(&self) -> bool {
        true
    }
}

/// Read whole, its holes too.
struct NoHoleMap;

impl Kind for NoHoleMap {
    fn image(&mut self, layout: &Layout, dir: &Path) -> Option<Box<dyn Image>> {
        Some(Box::new(FileImage::new(written(layout, dir), false)))
    }

    fn has_holes(&self) -> bool {
        false
    }
}

/// A block device, kept attached for as long as its image is read.
#[derive(Default)]
struct Device {
    attached: Option<Loop>,
}

impl Kind for Device {
    fn image(&mut self, layout: &Layout, dir: &Path) -> Option<Box<dyn Image>> {
        if !lab::is_root() {
            return None;
        }
        self.attached = None;
        drop(written(layout, dir));
        let device = self.attached.insert(Loop::over(&dir.join(&layout.name)));
        let file = File::open(&device.0).expect("open the device");
        Some(Box::new(FileImage::new(file, true)))
    }

    fn has_holes(&self) -> bool {
        false
    }
}

/// An old file of other bytes, with a stage over it that holds what the layout has:
/// in every third page the old file is right already.
struct Staged;

impl Kind for Staged {
    fn image(&mut self, layout: &Layout, dir: &Path) -> Option<Box<dyn Image>> {
        let bytes = content(layout, dir);
        let mut old = bytes.clone();
        let mut runs = Runs::default();
        for (page, chunk) in old.chunks_mut(PAGE).enumerate().filter(|(page, _)| page % 3 != 0) {
            let start = (page * PAGE) as u64;
            let kind = if chunk.iter().all(|&byte| byte == 0) { RangeKind::Zero } else { RangeKind::Data };
            runs.insert(start..start + chunk.len() as u64, kind);
            chunk.fill(0x55);
        }
        let [old_path, stage_path] = ["old", "stage"].map(|name| dir.join(name));
        fs::write(&old_path, &old).expect("write the old file");
        layout.write(&stage_path);
        let open = |path| File::open(path).expect("open");
        Some(Box::new(Overlay::new(FileImage::new(open(&old_path), true), open(&stage_path), runs)))
    }

    fn has_holes(&self) -> bool {
        false
    }
}

fn written(layout: &Layout, dir: &Path) -> File {
    let path = dir.join(&layout.name);
    layout.write(&path);
    File::open(path).expect("open")
}

fn content(layout: &Layout, dir: &Path) -> Vec<u8> {
    let path = dir.join("content");
    layout.write(&path);
    fs::read(path).expect("read")
}

/// Runs the checks over every awkward layout that this kind can take.
fn hold_contract(mut kind: impl Kind, fs: Fs, takes: impl Fn(&Layout) -> bool) {
    let Some(dir) = lab::dir(fs) else { return };
    let mut rng = Rng(7);
    let mut checked = 0;
    for layout in layouts(&mut rng).into_iter().filter(takes) {
        let bytes = content(&layout, dir.path());
        let Some(image) = kind.image(&layout, dir.path()) else { return };
        let what = format!("{fs:?} {}", layout.name);
        let data = extents(image.as_ref(), 0..bytes.len() as u64, &bytes, &what);
        if kind.has_holes() {
            assert!(data <= layout.written() as u64 + PAGE as u64, "{what}: {data} bytes in extents");
        }
        for _ in 0..20 {
            let start = rng.below(bytes.len() + 1);
            let end = start + rng.below(bytes.len() + 1 - start);
            extents(image.as_ref(), start as u64..end as u64, &bytes, &what);
            reads(image.as_ref(), start, rng.below(3 * PAGE), &bytes, &what);
        }
        reads(image.as_ref(), bytes.len().saturating_sub(1), PAGE, &bytes, &what);
        reads_from_two_threads(image.as_ref(), &bytes, &what);
        hashes_as_its_bytes_do(image.as_ref(), &bytes, &what);
        checked += 1;
    }
    assert!(checked > 3, "{checked} layouts");
}

/// Extents ascend, are not empty, keep to the range, and leave out nothing but zeros.
/// Returns how many bytes they are.
fn extents(image: &dyn Image, range: std::ops::Range<u64>, bytes: &[u8], what: &str) -> u64 {
    let (mut at, mut data) = (range.start, 0);
    for extent in image.extents(range.clone()) {
        let extent = extent.expect("an extent");
        assert!(extent.start >= at && extent.start < extent.end, "{what}: {extent:?} after {at}");
        assert!(extent.end <= range.end, "{what}: {extent:?} beyond {range:?}");
        let skipped = &bytes[at as usize..extent.start as usize];
        assert!(skipped.iter().all(|&byte| byte == 0), "{what}: data before {extent:?}");
        data += extent.end - extent.start;
        at = extent.end;
    }
    assert!(bytes[at as usize..range.end as usize].iter().all(|&byte| byte == 0), "{what}: data from {at}");
    data
}

/// A read gives the bytes, and zeros beyond the end.
fn reads(image: &dyn Image, at: usize, len: usize, bytes: &[u8], what: &str) {
    let mut found = vec![0xee; len];
    image.read_at(&mut found, at as u64).expect("read");
    let mut expected = bytes[at..bytes.len().min(at + len)].to_vec();
    expected.resize(len, 0);
    assert!(found == expected, "{what}: {len} bytes at {at}");
}

/// Reads share no position.
fn reads_from_two_threads(image: &dyn Image, bytes: &[u8], what: &str) {
    std::thread::scope(|scope| {
        for odd in [0, 1] {
            scope.spawn(move || {
                for page in (0..bytes.len() / PAGE).filter(|page| page % 2 == odd) {
                    reads(image, page * PAGE, PAGE, bytes, what);
                }
            });
        }
    });
}

/// The layout of an image does not show in its root hash.
fn hashes_as_its_bytes_do(image: &dyn Image, bytes: &[u8], what: &str) {
    let grid = Grid { length: bytes.len() as u64, block: BlockSize::default() };
    let plain = tempfile::NamedTempFile::new().expect("a file");
    fs::write(plain.path(), bytes).expect("write");
    let plain = FileImage::new(plain.reopen().expect("open"), false);
    let root = |image: &dyn Image| root_of(image, &grid, |_| true).expect("read").expect("not stopped");
    assert_eq!(root(image), root(&plain), "{what}");
}

fn any(_: &Layout) -> bool {
    true
}

#[test]
fn a_file_keeps_the_contract() {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        hold_contract(Plain, fs, any);
    }
}

#[test]
fn a_file_that_is_read_past_the_cache_keeps_the_contract() {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        hold_contract(SparingCache, fs, any);
    }
}

#[test]
fn a_file_without_a_hole_map_keeps_the_contract() {
    hold_contract(NoHoleMap, Fs::Ext4, any);
}

#[test]
fn a_device_keeps_the_contract() {
    // A loop device is whole sectors long, and there is none without any.
    hold_contract(Device::default(), Fs::Ext4, |layout| layout.len() > 0 && layout.len() % 512 == 0);
}

#[test]
fn a_stage_over_an_old_file_keeps_the_contract() {
    for fs in [Fs::Ext4, Fs::Tmpfs] {
        hold_contract(Staged, fs, any);
    }
}
