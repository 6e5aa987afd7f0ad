//! What is asked of a whole file system, by way of a file on it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

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
pub fn is_cached(file: &File) -> bool {
    use nix::sys::statfs as fs;
    // ext2 to ext4 have one number.
    let known = [
        fs::EXT4_SUPER_MAGIC,
        fs::XFS_SUPER_MAGIC,
        fs::BTRFS_SUPER_MAGIC,
        fs::F2FS_SUPER_MAGIC,
        fs::TMPFS_MAGIC,
        fs::OVERLAYFS_SUPER_MAGIC,
    ];
    fs::fstatfs(file).is_ok_and(|found| known.contains(&found.filesystem_type()))
}

/// Bytes free for this user on the file system of an open file.
pub fn free_space(file: impl AsFd) -> io::Result<u64> {
    let stat = nix::sys::statvfs::fstatvfs(file)?;
    Ok(stat.blocks_available() as u64 * stat.fragment_size() as u64)
}
