//! Where the parts of a file lie on the storage of its file system: FIEMAP of linux/fiemap.h.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sys::statfs::{self, FsType};

use super::FsXattr;

/// What one call tells of at most: 28 KiB.
const EXTENTS: usize = 512;

const FIEMAP_FLAG_SYNC: u32 = 1;
const FIEMAP_EXTENT_LAST: u32 = 1;
const FIEMAP_EXTENT_MERGED: u32 = 0x1000;
const FIEMAP_EXTENT_SHARED: u32 = 0x2000;

/// `struct fiemap` of linux/fiemap.h without its extents.
#[repr(C)]
struct Head {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Request {
    head: Head,
    extents: [Extent; EXTENTS],
}

/// `struct btrfs_ioctl_fs_info_args` of linux/btrfs.h; what is not asked for here is one field.
#[repr(C)]
struct BtrfsInfo {
    max_id: u64,
    devices: u64,
    id: [u8; 16],
    others: [u64; 124],
}

#[allow(missing_docs)] // the macros leave no place for a comment
mod ioctl {
    nix::ioctl_readwrite!(fiemap, b'f', 11, super::Head);
    nix::ioctl_read!(btrfs_fs_info, 0x94, 31, super::BtrfsInfo);
}

/// An extent of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedExtent {
    /// Where it lies in the file.
    pub bytes: Range<u64>,
    /// Where its start lies on storage.
    pub place: u64,
    /// It is written there as it is read, and belongs to other files, too: `SHARED`, and beside
    /// that `LAST` and `MERGED` alone.
    pub is_plainly_shared: bool,
}

/// Where a stretch of a file lies on storage.
#[derive(Debug)]
pub struct Placement {
    /// Up to where it is told.
    pub end: u64,
    /// The extents, in order; what lies between them are holes.
    pub extents: Vec<PlacedExtent>,
}

/// Where the start of a range of a file, of at least one byte, lies on storage once all that was
/// written to it is there. `None`: this file system does not tell.
pub fn placement(file: &File, range: &Range<u64>) -> io::Result<Option<Placement>> {
    let head = Head {
        start: range.start,
        length: range.end - range.start,
        flags: FIEMAP_FLAG_SYNC,
        mapped_extents: 0,
        extent_count: EXTENTS as u32,
        reserved: 0,
    };
    let mut request = Box::new(Request { head, extents: [Extent::default(); EXTENTS] });
    // SAFETY: the descriptor is open, and the kernel writes to the head and to the
    // `extent_count` extents behind it, all of which are in `request`.
    match unsafe { ioctl::fiemap(file.as_raw_fd(), (&raw mut *request).cast()) } {
        Ok(_) => {}
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EBADR | Errno::ENOSYS) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    let found = (request.head.mapped_extents as usize).min(EXTENTS);
    let extents: Vec<_> = request.extents[..found].iter().map(placed).collect();
    let end = match extents.last() {
        Some(last) if found == EXTENTS => last.bytes.end.min(range.end),
        _ => range.end,
    };
    Ok(Some(Placement { end, extents }))
}

fn placed(extent: &Extent) -> PlacedExtent {
    let &Extent { logical, physical, length, flags, .. } = extent;
    let is_plainly_shared = flags & !(FIEMAP_EXTENT_LAST | FIEMAP_EXTENT_MERGED) == FIEMAP_EXTENT_SHARED;
    PlacedExtent { bytes: logical..logical.saturating_add(length), place: physical, is_plainly_shared }
}

/// Whether two open files lie on one file system that places what they share where both say: xfs,
/// but for its realtime device, or btrfs, also in different subvolumes.
pub fn share_places(one: &File, other: &File) -> bool {
    let both = |kind: FsType| {
        [one, other]
            .iter()
            .all(|file| statfs::fstatfs(file).is_ok_and(|found| found.filesystem_type() == kind))
    };
    if both(statfs::XFS_SUPER_MAGIC) {
        let device = |file: &File| file.metadata().ok().map(|metadata| metadata.dev());
        device(one).is_some() && device(one) == device(other) && is_on_data(one) && is_on_data(other)
    } else {
        both(statfs::BTRFS_SUPER_MAGIC) && btrfs_id(one).is_some() && btrfs_id(one) == btrfs_id(other)
    }
}

/// Whether a file of xfs has its data where most have it: places on the realtime device are counted
/// by themselves.
fn is_on_data(file: &File) -> bool {
    const FS_XFLAG_REALTIME: u32 = 1;
    let mut attributes = FsXattr::default();
    // SAFETY: the descriptor is open, and the kernel writes one `struct fsxattr` into `attributes`,
    // which has its layout.
    let asked = unsafe { super::ioctl::fsgetxattr(file.as_raw_fd(), &mut attributes) };
    asked.is_ok() && attributes.xflags & FS_XFLAG_REALTIME == 0
}

/// What tells one btrfs from all others that are mounted: each subvolume has a device number and a
/// file system id of its own.
fn btrfs_id(file: &File) -> Option<[u8; 16]> {
    let mut info = BtrfsInfo { max_id: 0, devices: 0, id: [0; 16], others: [0; 124] };
    // SAFETY: the descriptor is open, and the kernel writes one `struct btrfs_ioctl_fs_info_args`
    // into `info`, which has its 1024 bytes.
    let asked = unsafe { ioctl::btrfs_fs_info(file.as_raw_fd(), &mut info) };
    asked.ok().map(|_| info.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_kernel() {
        assert_eq!((size_of::<Head>(), size_of::<Extent>(), size_of::<BtrfsInfo>()), (32, 56, 1024));
    }
}
