//! What is asked of a whole file system, by way of a file on it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use nix::sys::statfs::{self, FsType};

/// The time that a change of a file would get now: the clock of the last tick, which the
/// kernel gives to files (`ktime_get_coarse_real_ts64` in its fs/inode.c); seconds and
/// nanoseconds.
pub fn file_time_now() -> (i64, i64) {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME_COARSE);
    now.map_or((i64::MIN, 0), |now| (now.tv_sec(), now.tv_nsec()))
}

/// Has on storage all that was written to the file system of a file; syncfs(2).
pub fn sync_file_system(file: &File) -> io::Result<()> {
    Ok(nix::unistd::syncfs(file)?)
}

/// Whether a file lies on a file system of this machine that keeps pages in the cache:
/// what was just read can be had again at once.
pub fn is_cached(file: impl AsFd) -> bool {
    is_one_of(file, &LOCAL)
}

/// Whether an open file lies on a file system of this machine where permission bits tell who
/// may do what: ACLs are those of acl(5), and nobody else decides.
pub fn is_posix(file: impl AsFd) -> bool {
    is_one_of(file, &LOCAL)
}

/// File systems of this machine.
const LOCAL: [FsType; 6] = [
    statfs::EXT4_SUPER_MAGIC,
    statfs::XFS_SUPER_MAGIC,
    statfs::BTRFS_SUPER_MAGIC,
    statfs::F2FS_SUPER_MAGIC,
    statfs::TMPFS_MAGIC,
    statfs::OVERLAYFS_SUPER_MAGIC,
];

/// Whether files on the file system of an open file can share data, as far as its kind tells.
pub fn clones(file: impl AsFd) -> bool {
    is_one_of(file, &[statfs::BTRFS_SUPER_MAGIC, statfs::XFS_SUPER_MAGIC])
}

/// Whether room can be given back from within a file there, as far as the kind of the file system
/// tells.
pub fn may_punch(file: impl AsFd) -> bool {
    !is_one_of(file, &[statfs::MSDOS_SUPER_MAGIC])
}

fn is_one_of(file: impl AsFd, known: &[FsType]) -> bool {
    statfs::fstatfs(file).is_ok_and(|found| known.contains(&found.filesystem_type()))
}

/// Whether a sync of the whole file system of an open file waits until all of it is on storage,
/// and tells of any that was lost since the file was opened. That it tells: Linux 5.8
/// (syncfs(2)); that it waits, of these file systems alone.
pub fn syncs_wholly(file: impl AsFd) -> bool {
    is_one_of(file, &ON_DISK) && kernel_version() >= Some((5, 8))
}

/// Whether every change of a file there gives it another ctime, also a store through a mapping
/// of pages that were written back before. tmpfs keeps none of these; FUSE and network file
/// systems tell what somebody else tells them.
pub fn dates_every_change(file: impl AsFd) -> bool {
    is_one_of(file, &ON_DISK)
}

/// Which file system of this machine an open file lies on, of those that are mounted; statvfs(3),
/// `f_fsid`.
pub fn file_system_id(file: impl AsFd) -> io::Result<u64> {
    Ok(nix::sys::statvfs::fstatvfs(file)?.filesystem_id())
}

/// File systems of this machine that keep what they have on disks. ext2 to ext4 have one number.
const ON_DISK: [FsType; 3] = [statfs::EXT4_SUPER_MAGIC, statfs::XFS_SUPER_MAGIC, statfs::BTRFS_SUPER_MAGIC];

/// The version of the running kernel; uname(2).
fn kernel_version() -> Option<(u32, u32)> {
    let name = nix::sys::utsname::uname().ok()?;
    let mut numbers = name.release().to_str()?.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Bytes on this machine that wait to be written to any storage; proc_meminfo(5). `None`:
/// nobody knows.
pub fn unwritten() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes = |name: &str| -> Option<u64> {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    Some((kibibytes("Dirty:")? + kibibytes("Writeback:")?) << 10)
}

/// Whether the file system of an open file has a number of inodes, and all are taken.
pub fn lacks_inodes(file: impl AsFd) -> bool {
    nix::sys::statvfs::fstatvfs(file).is_ok_and(|stat| stat.files() > 0 && stat.files_available() == 0)
}

/// Bytes free for this user on the file system of an open file. What ext2 to ext4 keep back from
/// others is root's.
pub fn free_space(file: impl AsFd) -> io::Result<u64> {
    let stat = nix::sys::statvfs::fstatvfs(&file)?;
    let may_take_all = crate::sys::effective_user() == 0 && is_one_of(file, &[statfs::EXT4_SUPER_MAGIC]);
    let blocks = if may_take_all { stat.blocks_free() } else { stat.blocks_available() };
    Ok(blocks as u64 * stat.fragment_size() as u64)
}
