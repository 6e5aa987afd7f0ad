//! Every system call that std lacks, behind safe functions, and the only
//! `unsafe` of the crate. "Not supported here" is a value, never an error; an
//! I/O error is always an error.
#![allow(unsafe_code)]

mod clock;
mod fiemap;
mod file_system;
mod locks;
mod names;
mod process;
mod seek;
pub mod xattrs;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, FcntlArg, PosixFadviseAdvice};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, Whence};

pub use clock::{LocalTime, local_time, now, seconds_of};
pub use fiemap::{PlacedExtent, Placement, placement, share_places};
pub use file_system::{
    clones, dates_every_change, file_system_id, file_time_now, free_space, is_cached, is_posix, lacks_inodes,
    may_punch, sync_file_system, syncs_wholly, unwritten,
};
pub use names::{
    is_no_directory, is_no_link, kind_of, link_between, make_dir_at, make_node_at, names_in, open,
    open_below, open_beneath, open_dir, open_on_same_mount, read_link_at, remove_dir_at, rename_at,
    rename_between, rename_new_at, rename_new_between, stat_at, symlink_at, sync_dir, unlink_at,
};

pub use locks::{LockKind, hold_shared, is_open_here_alone, is_written_by_nobody, lock_in_the_way};
pub use process::{
    acts_as_owner, effective_user, is_in_group, is_root, memory, open_files_limit, raise_open_files_limit,
    thread_time,
};
pub use seek::{Sought, seek_data, seek_hole};

/// The size of a block device, which `stat` does not tell.
pub fn device_size(file: &File) -> io::Result<u64> {
    Ok(nix::unistd::lseek(file, 0, Whence::SeekEnd)? as u64)
}

/// Major and minor number of a device; makedev(3).
pub fn device_numbers(device: u64) -> (u32, u32) {
    (nix::sys::stat::major(device) as u32, nix::sys::stat::minor(device) as u32)
}

fn offset(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| Errno::EOVERFLOW.into())
}

/// Deallocates a range, which then reads as zeros. The length of the file stays.
/// `false`: the file system cannot.
pub fn punch_hole(file: &File, range: Range<u64>) -> io::Result<bool> {
    fallocate(file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, range)
}

/// Makes a range read as zeros and keeps it allocated. `false`: cannot.
pub fn zero_range(file: &File, range: Range<u64>) -> io::Result<bool> {
    fallocate(file, FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE, range)
}

/// Allocates a range without changing what is there or the length. `false`: cannot.
pub fn allocate(file: &File, range: Range<u64>) -> io::Result<bool> {
    fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, range)
}

fn fallocate(file: &File, mode: FallocateFlags, range: Range<u64>) -> io::Result<bool> {
    if range.is_empty() {
        return Ok(true);
    }
    let (start, len) = (offset(range.start)?, offset(range.end - range.start)?);
    loop {
        match nix::fcntl::fallocate(file, mode, start, len) {
            Ok(()) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV | Errno::EINVAL) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[allow(missing_docs)] // the macros leave no place for a comment
mod ioctl {
    nix::ioctl_write_int_bad!(ficlone, libc::FICLONE);
    nix::ioctl_write_ptr!(ficlonerange, 0x94, 13, super::CloneRange);
    // BLKZEROOUT of linux/fs.h, `_IO(0x12, 127)`: start and length in bytes.
    nix::ioctl_write_ptr_bad!(blkzeroout, 0x127f, [u64; 2]);
    // LOOP_GET_STATUS64 of linux/loop.h.
    nix::ioctl_read_bad!(loop_get_status64, 0x4c05, super::LoopInfo64);
    nix::ioctl_read!(fsgetxattr, b'X', 31, super::FsXattr);
    nix::ioctl_write_ptr!(fssetxattr, b'X', 32, super::FsXattr);
    nix::ioctl_read!(fs_ioc_getflags, b'f', 1, libc::c_long);
    nix::ioctl_write_ptr!(fs_ioc_setflags, b'f', 2, libc::c_long);
}

/// Makes `to` share all data of `from`; ioctl_ficlone(2). `false`: these two cannot.
pub fn clone_file(from: &File, to: &File) -> io::Result<bool> {
    // SAFETY: both descriptors are open for the length of the call, and FICLONE
    // takes a descriptor by value and writes no memory of this process.
    cloned(unsafe { ioctl::ficlone(to.as_raw_fd(), from.as_raw_fd()) })
}

fn cloned(result: nix::Result<libc::c_int>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(
            Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EPERM,
        ) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// `struct file_clone_range` of linux/fs.h.
#[repr(C)]
struct CloneRange {
    source: i64,
    source_offset: u64,
    source_length: u64,
    offset: u64,
}

/// Makes `to` share the first `len` bytes of `from`, whole blocks of the file system, or
/// with 0 all of them; ioctl_ficlonerange(2). `false`: these two cannot.
pub fn clone_start(from: &File, to: &File, len: u64) -> io::Result<bool> {
    let range =
        CloneRange { source: from.as_raw_fd().into(), source_offset: 0, source_length: len, offset: 0 };
    // SAFETY: both descriptors are open for the length of the call, and the kernel only
    // reads `range`, which outlives it.
    cloned(unsafe { ioctl::ficlonerange(to.as_raw_fd(), &range) })
}

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// Has xfs set aside no more than one page around what is written into a clone,
/// instead of 128 KiB, or (`false`) go back to that; ioctl_xfs_fssetxattr(2),
/// `fsx_cowextsize`. Only a hint: other file systems have no such thing.
pub fn allocate_exactly(clone: &File, exactly: bool) {
    const FS_XFLAG_COWEXTSIZE: u32 = 0x0001_0000;
    let mut attributes = FsXattr::default();
    // SAFETY: the descriptor is open, and the kernel writes one `struct fsxattr`
    // into `attributes`, which has its layout.
    if unsafe { ioctl::fsgetxattr(clone.as_raw_fd(), &mut attributes) }.is_err() {
        return;
    }
    (attributes.xflags, attributes.cowextsize) = if exactly {
        (attributes.xflags | FS_XFLAG_COWEXTSIZE, 4096)
    } else {
        (attributes.xflags & !FS_XFLAG_COWEXTSIZE, 0)
    };
    // SAFETY: the kernel only reads `attributes`, which outlives the call.
    let _ = unsafe { ioctl::fssetxattr(clone.as_raw_fd(), &attributes) };
}

/// Whether a file's data is overwritten where it lies, on a file system that copies on
/// write; ioctl_iflags(2), `FS_NOCOW_FL`.
pub fn is_nocow(file: &File) -> bool {
    inode_flags(file).is_some_and(|flags| flags & FS_NOCOW_FL != 0)
}

/// Has the data of a file, which must be empty, overwritten where it lies. Only a hint.
pub fn set_nocow(file: &File) {
    let Some(flags) = inode_flags(file).map(|flags| flags | FS_NOCOW_FL) else { return };
    // SAFETY: the descriptor is open, and the kernel only reads `flags`, which outlives the call.
    let _ = unsafe { ioctl::fs_ioc_setflags(file.as_raw_fd(), &flags) };
}

const FS_NOCOW_FL: libc::c_long = 0x0080_0000;

fn inode_flags(file: &File) -> Option<libc::c_long> {
    let mut flags = 0;
    // SAFETY: the descriptor is open, and the kernel writes one int into `flags`, a long.
    unsafe { ioctl::fs_ioc_getflags(file.as_raw_fd(), &mut flags) }.ok().map(|_| flags)
}

/// Makes a range of a block device read as zeros, the fastest way it knows
/// (`BLKZEROOUT`, linux/fs.h; the kernel writes zeros where the device has no
/// command for it). The range must be a multiple of 512. `false`: cannot.
pub fn zero_out_device(file: &File, range: Range<u64>) -> io::Result<bool> {
    let argument = [range.start, range.end - range.start];
    // SAFETY: the descriptor is open, and the kernel only reads the two words
    // of `argument`, which outlives the call.
    match unsafe { ioctl::blkzeroout(file.as_raw_fd(), &argument) } {
        Ok(_) => Ok(true),
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// `struct loop_info64` of linux/loop.h; what is not asked for here is one field.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    others: [u64; 27],
}

/// Device and inode of the file behind a loop device; loop(4).
pub fn loop_backing(device: &File) -> io::Result<(u64, u64)> {
    let mut info = LoopInfo64 { device: 0, inode: 0, others: [0; 27] };
    // SAFETY: the descriptor is open, and the kernel writes one `struct loop_info64`, which
    // has the 232 bytes of `info`.
    unsafe { ioctl::loop_get_status64(device.as_raw_fd(), &mut info) }?;
    Ok((info.device, info.inode))
}

/// Reads some bytes at `at`, and leaves no more of them in the page cache than was
/// there before; preadv2(2) with `RWF_DONTCACHE`, Linux 6.14. `None`: this kernel or
/// this file system cannot.
pub fn read_uncached(file: &File, buffer: &mut [u8], at: u64) -> io::Result<Option<usize>> {
    let at = offset(at)?;
    let room = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the descriptor is open, and `room` is all of `buffer`, which outlives the call.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &room, 1, at, libc::RWF_DONTCACHE) };
    match Errno::result(read) {
        Ok(read) => Ok(Some(read as usize)),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Starts to write a range back without waiting for it, so that a later `fsync`
/// is short; sync_file_range(2). Only a hint: failure is of no consequence.
pub fn start_writeback(file: &File, range: Range<u64>) {
    let (Ok(start), Ok(len)) = (offset(range.start), offset(range.end - range.start)) else { return };
    // SAFETY: the descriptor is open and no memory is passed.
    unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Writes a range back, waits for that, and has its pages leave the cache;
/// sync_file_range(2), posix_fadvise(2). Only a hint.
pub fn write_back_and_drop(file: &File, range: Range<u64>) {
    let (Ok(start), Ok(len)) = (offset(range.start), offset(range.end - range.start)) else { return };
    if len == 0 {
        return;
    }
    let wait =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the descriptor is open and no memory is passed.
    unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, wait) };
    drop_cached(file, range);
}

/// Forgets the cached pages of a range; dirty pages stay. Only a hint (posix_fadvise(2)).
pub fn drop_cached(file: &File, range: Range<u64>) {
    let (Ok(start), Ok(len)) = (offset(range.start), offset(range.end - range.start)) else { return };
    let _ = nix::fcntl::posix_fadvise(file, start, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

/// Tells that a file will be read here and there, or again as usual: then the system reads ahead. For
/// all who share the open file. Only a hint (posix_fadvise(2)).
pub fn will_be_scattered(file: &File, scattered: bool) {
    let advice = match scattered {
        true => PosixFadviseAdvice::POSIX_FADV_RANDOM,
        false => PosixFadviseAdvice::POSIX_FADV_NORMAL,
    };
    let _ = nix::fcntl::posix_fadvise(file, 0, 0, advice);
}

/// Writes dirty pages back, so that a later store through a mapping is a fault again,
/// which sets the file's times; sync_file_range(2). Waits for what is under way already,
/// not for the end of the rest. Where nothing is dirty it looks at no page. A system or
/// file system without it has nothing to say here.
pub fn write_back(file: &File) -> io::Result<()> {
    const HOW: libc::c_uint = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: the descriptor is open and no memory is passed; a length of 0 is all of it.
    match Errno::result(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, HOW) }) {
        Ok(_) | Err(Errno::ENOSYS | Errno::EINVAL | Errno::ESPIPE) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Forgets the cached pages of a file, so that the next read comes from
/// storage; dirty pages stay, so sync first. Only a hint (posix_fadvise(2)).
pub fn drop_cache(file: &File) {
    let _ = nix::fcntl::posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

/// cachestat(2), which has one number on all machines that Rust's std knows.
const SYS_CACHESTAT: libc::c_long = 451;

/// How many pages of a file the page cache has; cachestat(2), Linux 6.5. `None`: nobody
/// knows.
pub fn cached_pages(file: &File) -> Option<u64> {
    // `struct cachestat_range`, offset and length, of which 0 means up to the end; `struct
    // cachestat`: pages in the cache, dirty, written back, evicted, lately evicted.
    let (range, mut found) = ([0u64; 2], [0u64; 5]);
    // SAFETY: the descriptor is open; both structures have the layout of linux/mman.h and
    // outlive the call, which writes to the second alone.
    let asked =
        unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range.as_ptr(), found.as_mut_ptr(), 0) };
    Errno::result(asked).ok().map(|_| found[0])
}

/// Copies up to `len` bytes at `offset` from one file to the same place in
/// another, within the kernel; copy_file_range(2). `None`: these two cannot.
pub fn copy_range(from: &File, to: &File, at: u64, len: usize) -> io::Result<Option<usize>> {
    let (mut source, mut target) = (offset(at)?, offset(at)?);
    match nix::fcntl::copy_file_range(from, Some(&mut source), to, Some(&mut target), len) {
        Ok(copied) => Ok(Some(copied)),
        Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Sends up to `len` bytes at `at` of a file to a pipe or socket without copying them;
/// sendfile(2). How many were sent; 0 at the end of the file.
pub fn send_file(from: &File, at: u64, to: impl AsFd, len: usize) -> io::Result<usize> {
    let mut source = offset(at)?;
    Ok(nix::sys::sendfile::sendfile64(to, from, Some(&mut source), len)?)
}

// What follows sets attributes by descriptor, `O_PATH` descriptors included, which give
// no access to content and which some of the older calls refuse with `EBADF`.

/// Sets the modification time of an open file: seconds and nanoseconds.
pub fn set_mtime(file: &File, seconds: i64, nanoseconds: u32) -> io::Result<()> {
    set_times(file, None, Some((seconds, nanoseconds)))
}

/// Sets access and modification time of an open file; `None` leaves either.
pub fn set_times(file: &File, atime: Option<(i64, u32)>, mtime: Option<(i64, u32)>) -> io::Result<()> {
    let time = |time: Option<(i64, u32)>| {
        time.map_or(TimeSpec::UTIME_OMIT, |(seconds, nanoseconds)| TimeSpec::new(seconds, nanoseconds.into()))
    };
    let (atime, mtime) = (time(atime), time(mtime));
    let by_path = || {
        let times = [*atime.as_ref(), *mtime.as_ref()];
        // SAFETY: the descriptor is open; the path and the two times outlive the call.
        let set =
            unsafe { libc::utimensat(file.as_raw_fd(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH) };
        Errno::result(set).map(drop)
    };
    let by_proc = || {
        let follow = UtimensatFlags::FollowSymlink;
        nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, proc_path(file).as_str(), &atime, &mtime, follow)
    };
    match nix::sys::stat::futimens(file, &atime, &mtime) {
        // Linux 5.8 takes an empty path.
        Err(Errno::EBADF) => Ok(by_path().or_else(|errno| match errno {
            Errno::EINVAL | Errno::ENOENT => by_proc(),
            other => Err(other),
        })?),
        other => Ok(other?),
    }
}

/// Sets user and group of an open file; `None` leaves either.
pub fn set_owner(file: &File, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    Ok(nix::unistd::fchownat(file, "", uid, gid, AtFlags::AT_EMPTY_PATH)?)
}

/// fchmodat2(2), which has one number on all machines that Rust's std knows.
const SYS_FCHMODAT2: libc::c_long = 452;

/// Sets the permission bits of an open file (`07777`).
pub fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    let bits = Mode::from_bits_truncate(mode);
    let by_path = || {
        // SAFETY: the descriptor is open, and the path outlives the call.
        let set = unsafe {
            let (fd, path) = (file.as_raw_fd(), c"".as_ptr());
            libc::syscall(SYS_FCHMODAT2, fd, path, bits.bits(), libc::AT_EMPTY_PATH)
        };
        Errno::result(set).map(drop)
    };
    let by_proc = || {
        let follow = FchmodatFlags::FollowSymlink;
        nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, proc_path(file).as_str(), bits, follow)
    };
    match nix::sys::stat::fchmod(file, bits) {
        // Linux 6.6 has fchmodat2; a filter of system calls may say EPERM to what it does not know.
        Err(Errno::EBADF) => Ok(by_path().or_else(|errno| match errno {
            Errno::ENOSYS | Errno::EPERM | Errno::EINVAL => by_proc(),
            other => Err(other),
        })?),
        other => Ok(other?),
    }
}

/// A path that leads to an open file itself, whatever has its name now; proc_pid_fd(5).
pub fn proc_path(file: impl AsFd) -> String {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

/// Sets the permission bits of a name that is no symlink, also where it may not be opened.
pub fn set_mode_at(dir: impl AsFd, name: &OsStr, mode: u32) -> io::Result<()> {
    let flag = FchmodatFlags::NoFollowSymlink;
    Ok(nix::sys::stat::fchmodat(dir, name, Mode::from_bits_truncate(mode), flag)?)
}

/// The process's umask. Reading it means setting it for a moment, so call this
/// before there are other threads.
pub fn umask() -> u32 {
    let mask = nix::sys::stat::umask(Mode::from_bits_truncate(0o077));
    nix::sys::stat::umask(mask);
    mask.bits()
}

/// Lets this process have more files open than most need, if it may; setrlimit(2). Each
/// source that was named is held open, and so is each destination that is under way.
pub fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // What is started from here inherits it, and may try to close all that there could be.
    const MANY: u64 = 1 << 16;
    // Where it cannot be raised, what does not fit is an error with a name.
    let _ = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(now, most)| setrlimit(Resource::RLIMIT_NOFILE, now.max(most.min(MANY)), most));
}

/// Whether whoever started this process had it ignore a signal, as nohup(1) does.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: all bytes zero are a valid `struct sigaction`; with no new action the call
    // only writes the present one, which outlives it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Asks for a larger pipe, so that a writer sleeps less often; only a hint.
pub fn grow_pipe(pipe: impl AsFd) {
    let _ = nix::fcntl::fcntl(pipe, FcntlArg::F_SETPIPE_SZ(1 << 20));
}
