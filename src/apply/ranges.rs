//! Whole ranges of open files: copied, made zero, given back to the file system,
//! each the cheapest way that works there; and which ways a file system has.

pub mod behind;
pub mod cover;
pub mod zeros;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::hashmap::PAGE;
use crate::scan;
use crate::sys;

/// What a file system can do, as far as a destination depends on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Files there can share data with the old file.
    pub clone: bool,
    /// Room can be reserved in a file.
    pub reserve: bool,
    /// Room can be given back from within a file.
    pub punch: bool,
}

/// What a file system was found to do with an unnamed file of its own.
#[derive(Debug)]
pub struct Probe {
    file: File,
    reserve: bool,
    punch: bool,
}

impl Probe {
    /// Tries what does not depend on the old file on a new, empty one.
    pub fn of(file: File) -> io::Result<Probe> {
        let reserve =
            sys::allocate(&file, 0..PAGE).or_else(|error| is_full(&error).then_some(true).ok_or(error))?;
        let punch = sys::punch_hole(&file, 0..PAGE)?;
        Ok(Probe { file, reserve, punch })
    }

    /// What can be done about one old file, which is only read: whether its data can be
    /// shared is a matter of the file (btrfs with `chattr +C`), too.
    pub fn abilities(&self, old: &File) -> io::Result<Abilities> {
        let metadata = old.metadata()?;
        let block = metadata.blksize().clamp(PAGE, MAX_UNIT);
        let len = if metadata.len() <= block { 0 } else { block };
        let clone = sys::clone_start(old, &self.file, len).unwrap_or(false);
        Ok(Abilities { clone, reserve: self.reserve, punch: self.punch })
    }
}

/// File systems that call more than this a block mean something else by it.
pub(super) const MAX_UNIT: u64 = 1 << 20;

/// Whether there is no room, as opposed to any other error.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes `to` share all data of `from`; whether it can.
pub fn clone(from: &File, to: &File) -> io::Result<bool> {
    let cloned = sys::clone_file(from, to)?;
    if cloned {
        sys::allocate_exactly(to, true);
    }
    Ok(cloned)
}

/// Copies a range from one file to the same place in another.
pub fn copy_between(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(1 << 30) as usize;
        match sys::copy_range(from, to, at, len)? {
            Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(copied) => at += copied as u64,
            None => return copy_through_memory(from, to, at..range.end),
        }
    }
    Ok(())
}

fn copy_through_memory(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(buffer.len() as u64) as usize;
        from.read_exact_at(&mut buffer[..len], at)?;
        to.write_all_at(&buffer[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

/// Makes a range of a regular file zero: a hole if the file system can, else
/// written zeros. With `keep_allocated` never a hole.
pub fn make_zero(file: &File, range: Range<u64>, keep_allocated: bool) -> io::Result<()> {
    let zero = if keep_allocated { sys::zero_range } else { sys::punch_hole };
    if range.is_empty() || zero(file, range.clone())? {
        return Ok(());
    }
    write_zeros(file, range)
}

/// Writes zeros, the last resort.
pub fn write_zeros(file: &File, range: Range<u64>) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..len as usize], at)?;
        at += len;
    }
    Ok(())
}

/// Makes a range of a block device zero, the cheapest way it knows; what is not
/// a multiple of its sectors is written.
pub fn zero_device(device: &File, range: Range<u64>) -> io::Result<()> {
    let inner = page_up(range.start)..range.end / PAGE * PAGE;
    if inner.start >= inner.end {
        return write_zeros(device, range);
    }
    write_zeros(device, range.start..inner.start)?;
    if !sys::punch_hole(device, inner.clone())? && !sys::zero_out_device(device, inner.clone())? {
        write_zeros(device, inner.clone())?;
    }
    write_zeros(device, inner.end..range.end)
}

/// Gives back what is allocated in a range and holds no data. Without a `hole_map` to be
/// trusted, that is what reads as zeros.
pub fn free_holes(file: &File, range: Range<u64>, hole_map: bool) -> io::Result<()> {
    if hole_map { free_holes_of(file, file, range) } else { free_zeros(file, range) }
}

fn free_zeros(file: &File, range: Range<u64>) -> io::Result<()> {
    let mut page = [0; PAGE as usize];
    let mut zeros = range.start..range.start;
    for at in (range.start..range.end).step_by(PAGE as usize) {
        let end = range.end.min(at + PAGE);
        let bytes = &mut page[..(end - at) as usize];
        scan::read_or_zeros(file, bytes, at)?;
        if scan::is_zero(bytes) {
            zeros.end = end;
        } else {
            sys::punch_hole(file, zeros)?;
            zeros = end..end;
        }
    }
    sys::punch_hole(file, zeros).map(drop)
}

/// Gives back what `file`, a copy of `original`, has allocated in its holes. The
/// original is asked for them: on btrfs a clone reports room set aside as data.
pub fn free_holes_of(original: &File, file: &File, range: Range<u64>) -> io::Result<()> {
    let mut at = range.start;
    for extent in scan::data_extents(original, range.clone()) {
        let extent = extent?;
        sys::punch_hole(file, at..extent.start)?;
        at = extent.end;
    }
    sys::punch_hole(file, at..range.end).map(drop)
}

/// Gives a file its length. What is new is a hole, also the end of the last page,
/// which the file system may fill with zeros, and what it had set aside behind it,
/// unless that is to stay allocated.
pub fn set_length(file: &File, length: u64, keep_allocated: bool) -> io::Result<()> {
    let now = file.metadata()?.len();
    if now >= length || keep_allocated {
        return file.set_len(length);
    }
    let page = now / PAGE * PAGE;
    let mut tail = [0; PAGE as usize];
    scan::read_or_zeros(file, &mut tail, page)?;
    file.set_len(length)?;
    sys::punch_hole(file, if scan::is_zero(&tail) { page } else { now }..length).map(drop)
}

/// The first page border at or after a place.
pub fn page_up(at: u64) -> u64 {
    at.div_ceil(PAGE).saturating_mul(PAGE)
}
