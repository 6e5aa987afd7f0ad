//! Where the data and the holes of a file are.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::unistd::Whence;

use crate::sys::offset;

/// What a seek for data or for a hole found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sought {
    /// The next data or hole begins here.
    At(u64),
    /// There is no data from here on (`ENXIO`).
    End,
    /// This file has no map (`EINVAL`): block devices, some file systems.
    NoMap,
}

/// `lseek(fd, from, SEEK_DATA)`; lseek(2).
pub fn seek_data(file: &File, from: u64) -> io::Result<Sought> {
    sought(nix::unistd::lseek(file, offset(from)?, Whence::SeekData))
}

/// `lseek(fd, from, SEEK_HOLE)`; lseek(2). The end of the file counts as a hole.
pub fn seek_hole(file: &File, from: u64) -> io::Result<Sought> {
    sought(nix::unistd::lseek(file, offset(from)?, Whence::SeekHole))
}

fn sought(result: nix::Result<libc::off_t>) -> io::Result<Sought> {
    match result {
        Ok(at) => Ok(Sought::At(at as u64)),
        Err(Errno::ENXIO) => Ok(Sought::End),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Sought::NoMap),
        Err(errno) => Err(errno.into()),
    }
}
