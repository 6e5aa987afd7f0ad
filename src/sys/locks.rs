//! Locks on ranges of bytes, which belong to an open file: fcntl(2), "Open file
//! description locks".

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// A kind of lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// Others may hold such a lock, too.
    Shared,
    /// Nobody else may hold any.
    Exclusive,
}

/// Another program's lock that would be in the way of one of this kind on these bytes
/// (`F_OFD_GETLK`): the process that holds it, or `None` where it belongs to an open
/// file. No lock where there can be none: the file system has no locks, or the file is open
/// as a path alone.
pub fn lock_in_the_way(file: &File, kind: LockKind, bytes: Range<u64>) -> io::Result<Option<Option<u32>>> {
    let mut lock = request(kind, &bytes);
    match fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)) {
        Ok(_) if i32::from(lock.l_type) == libc::F_UNLCK => Ok(None),
        Ok(_) => Ok(Some(u32::try_from(lock.l_pid).ok().filter(|&pid| pid > 0))),
        Err(errno) if is_unsupported(errno) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Holds a shared lock on these bytes for as long as the file is open (`F_OFD_SETLK`).
/// `false`: another program has one that excludes it.
pub fn hold_shared(file: &File, bytes: Range<u64>) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&request(LockKind::Shared, &bytes))) {
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) if !is_unsupported(errno) => Err(errno.into()),
        _ => Ok(true),
    }
}

/// Whether nobody else has the file of this descriptor open, or mapped: only then it gets a lease
/// for writing, which is given back at once (fcntl(2), `F_SETLEASE`). False, too, where that
/// cannot be asked: the file is another user's.
pub fn is_open_here_alone(file: &File) -> bool {
    gets_lease(file, libc::F_WRLCK)
}

/// Whether nobody has the file of this descriptor open to write to it, or mapped; the descriptor
/// must be for reading alone: only then it gets a lease for reading. False, too, where that cannot be
/// asked.
pub fn is_written_by_nobody(file: &File) -> bool {
    gets_lease(file, libc::F_RDLCK)
}

fn gets_lease(file: &File, kind: libc::c_int) -> bool {
    // Of `asm-generic/fcntl.h`.
    const F_SETSIG: libc::c_int = 10;
    let descriptor = file.as_raw_fd();
    // SAFETY: the descriptor is open for the length of the calls, which take numbers alone. A
    // signal for whom opens the file in between is one that is ignored unless it is asked for.
    unsafe {
        libc::fcntl(descriptor, F_SETSIG, libc::SIGURG) == 0
            && libc::fcntl(descriptor, libc::F_SETLEASE, kind) == 0
            && libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_UNLCK) == 0
    }
}

fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EBADF)
}

/// An end of `u64::MAX` means wherever the file ends.
fn request(kind: LockKind, bytes: &Range<u64>) -> libc::flock {
    let kind = if kind == LockKind::Shared { libc::F_RDLCK } else { libc::F_WRLCK };
    let length = if bytes.end == u64::MAX { 0 } else { bytes.end - bytes.start };
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: bytes.start as libc::off_t,
        l_len: length as libc::off_t,
        l_pid: 0,
    }
}
