//! Looks at what a run left behind.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Demands that two files hold the same bytes, at a cost that follows their
/// data.
#[track_caller]
pub fn assert_same(a: &Path, b: &Path) {
    if let Some(difference) = difference(a, b).expect("compare") {
        panic!("{} and {} differ: {difference}", a.display(), b.display());
    }
}

/// Whether two files hold the same bytes. A missing one equals nothing.
pub fn same(a: &Path, b: &Path) -> bool {
    matches!(difference(a, b), Ok(None))
}

fn difference(a: &Path, b: &Path) -> io::Result<Option<String>> {
    let (a, b) = (File::open(a)?, File::open(b)?);
    let len = a.metadata()?.len();
    if len != b.metadata()?.len() {
        return Ok(Some(format!("{len} bytes and {} bytes", b.metadata()?.len())));
    }
    // What is data in neither is zero in both.
    for range in data_extents(&a, len)?.into_iter().chain(data_extents(&b, len)?) {
        if let Some(at) = first_difference(&a, &b, range)? {
            return Ok(Some(format!("first in the MiB at {at}")));
        }
    }
    Ok(None)
}

/// Demands that the first `len` bytes of `device` are exactly the file `image`.
#[track_caller]
pub fn assert_begins_with(device: &Path, image: &Path) {
    let (a, b) = (File::open(device).expect("open"), File::open(image).expect("open"));
    let len = b.metadata().expect("stat").len();
    assert_eq!(first_difference(&a, &b, 0..len).expect("compare"), None, "{} differs", device.display());
}

fn first_difference(a: &File, b: &File, range: Range<u64>) -> io::Result<Option<u64>> {
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = range.start;
    while at < range.end {
        let n = (range.end - at).min(1 << 20) as usize;
        a.read_exact_at(&mut left[..n], at)?;
        b.read_exact_at(&mut right[..n], at)?;
        if left[..n] != right[..n] {
            return Ok(Some(at));
        }
        at += n as u64;
    }
    Ok(None)
}

/// Where the file system says that there is data.
pub fn data_extents(file: &File, len: u64) -> io::Result<Vec<Range<u64>>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match lseek(file, at as i64, Whence::SeekData) {
            Ok(start) => start as u64,
            Err(Errno::ENXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = lseek(file, start as i64, Whence::SeekHole)? as u64;
        extents.push(start..end.min(len));
        at = end;
    }
    Ok(extents)
}

/// Bytes that the file takes on its file system.
pub fn allocated(path: &Path) -> u64 {
    // Without this some file systems count what they have only reserved.
    File::open(path).expect("open").sync_all().expect("sync");
    std::fs::metadata(path).expect("stat").blocks() * 512
}

/// Bytes that a file takes so far, as far as it is there: to be asked for again and again.
pub fn taken(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |file| file.blocks() * 512)
}

/// Demands that the destination takes no more room than the source, but for 1 %
/// and what a file system needs for its own records.
#[track_caller]
pub fn assert_holes_kept(source: &Path, destination: &Path) {
    let (from, to) = (allocated(source), allocated(destination));
    assert!(
        to <= from + from / 100 + (64 << 10),
        "{} takes {to} bytes, its source only {from}",
        destination.display()
    );
}

/// Demands that nothing of holesync's own is left anywhere below `dir`.
#[track_caller]
pub fn assert_no_leftovers(dir: &Path) {
    assert_eq!(leftovers(dir), Vec::<String>::new(), "left behind in {}", dir.display());
}

/// The names of holesync's working files anywhere below `dir`.
pub fn leftovers(dir: &Path) -> Vec<String> {
    walkdir::WalkDir::new(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with('.') && name.contains(".holesync"))
        .collect()
}
