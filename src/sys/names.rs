//! Names in open directories: none is looked up twice, and no symlink is followed but by
//! [`open`] and [`open_below`].

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag};
use nix::sys::stat::{FileStat, Mode, SFlag};
use nix::unistd::UnlinkatFlags;

/// open(2): wherever the path leads.
pub fn open(path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Opens `path`, which is relative, below `dir`. Symlinks are followed as long as neither
/// they nor `..` lead out of `dir` (`EXDEV`); openat2(2). Where the kernel lacks that, no
/// component may be either.
pub fn open_below(dir: BorrowedFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let flags = flags | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags).resolve(resolve);
    loop {
        match nix::fcntl::openat2(dir, path, how) {
            Err(Errno::ENOSYS | Errno::EPERM) => {
                return open_stepwise(dir, path, flags | OFlag::O_NOFOLLOW, Mode::empty());
            }
            // Something was renamed while `..` was looked up.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Opens a directory below `dir`, as [`open_beneath`] does, or with `follow` wherever symlinks
/// lead; open(2).
pub fn open_dir(dir: BorrowedFd, path: &Path, flags: OFlag, follow: bool) -> io::Result<OwnedFd> {
    if !follow || path.as_os_str().is_empty() {
        return open_beneath(dir, path, flags, 0);
    }
    Ok(nix::fcntl::openat(dir, path, flags | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY, Mode::empty())?)
}

/// Opens `path` below `dir`: no component may be a symlink or lead out of
/// `dir` (openat2(2); where the kernel lacks it, one component at a time).
/// `path` must hold plain names only; an empty one is `dir` itself.
pub fn open_beneath(dir: BorrowedFd, path: &Path, flags: OFlag, mode: u32) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let create = Mode::from_bits_truncate(mode);
    let creates = flags.contains(OFlag::O_CREAT) || flags.contains(OFlag::O_TMPFILE);
    let how = OpenHow::new()
        .flags(flags)
        .mode(if creates { create } else { Mode::empty() })
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    match nix::fcntl::openat2(dir, path, how) {
        Err(Errno::ENOSYS | Errno::EPERM) => open_stepwise(dir, path, flags, create),
        other => Ok(other?),
    }
}

/// Opens the directory `name` of `dir`, but neither a symlink nor a place where something is
/// mounted (`EXDEV`; openat2(2), `RESOLVE_NO_XDEV`; where the kernel lacks that, as far as
/// device numbers tell).
pub fn open_on_same_mount(dir: BorrowedFd, name: &OsStr, flags: OFlag) -> io::Result<OwnedFd> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    match nix::fcntl::openat2(dir, name, OpenHow::new().flags(flags).resolve(resolve)) {
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let opened = open_stepwise(dir, Path::new(name), flags, Mode::empty())?;
            let device = |fd: BorrowedFd| nix::sys::stat::fstat(fd).map(|stat| stat.st_dev);
            if device(opened.as_fd())? == device(dir)? { Ok(opened) } else { Err(Errno::EXDEV.into()) }
        }
        other => Ok(other?),
    }
}

fn open_stepwise(dir: BorrowedFd, path: &Path, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
    let mut at = dir.try_clone_to_owned()?;
    let mut names = path.iter().peekable();
    while let Some(name) = names.next() {
        if name == ".." || name == "/" {
            return Err(Errno::EXDEV.into());
        }
        if names.peek().is_none() {
            return Ok(nix::fcntl::openat(&at, name, flags, mode)?);
        }
        let step = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        at = nix::fcntl::openat(&at, name, step, Mode::empty())?;
    }
    Err(Errno::ENOENT.into())
}

/// `fstatat` without following a symlink; `None`: nothing has this name.
pub fn stat_at(dir: impl AsFd, name: &OsStr) -> io::Result<Option<FileStat>> {
    match nix::sys::stat::fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The kind of file that a state tells of.
pub fn kind_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// `renameat` within one directory.
pub fn rename_at(dir: impl AsFd, from: &OsStr, to: &OsStr) -> io::Result<()> {
    let dir = dir.as_fd();
    Ok(nix::fcntl::renameat(dir, from, dir, to)?)
}

/// `renameat` from one directory to another.
pub fn rename_between(dir: impl AsFd, from: &OsStr, to: impl AsFd, name: &OsStr) -> io::Result<()> {
    Ok(nix::fcntl::renameat(dir, from, to, name)?)
}

/// Whether an error says that a path leads to no directory: nothing is there, or something
/// else.
pub fn is_no_directory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
}

/// Whether an error of [`link_between`] says that this file gets no other name there, although
/// that is the same file system; linkat(2).
pub fn is_no_link(error: &io::Error) -> bool {
    let known = [libc::EPERM, libc::EACCES, libc::EMLINK, libc::EOPNOTSUPP, libc::ENOSYS];
    error.raw_os_error().is_some_and(|errno| known.contains(&errno))
}

/// `linkat`, of a symlink the link itself.
pub fn link_between(dir: impl AsFd, from: &OsStr, to: impl AsFd, name: &OsStr) -> io::Result<()> {
    Ok(nix::unistd::linkat(dir, from, to, name, AtFlags::empty())?)
}

/// `renameat2` within one directory, to a name that nothing has: what has it is an error
/// (`EEXIST`). A file system that cannot promise that renames all the same.
pub fn rename_new_at(dir: impl AsFd, from: &OsStr, to: &OsStr) -> io::Result<()> {
    let dir = dir.as_fd();
    rename_new_between(dir, from, dir, to)
}

/// The same from one directory to another.
pub fn rename_new_between(dir: impl AsFd, from: &OsStr, to: impl AsFd, name: &OsStr) -> io::Result<()> {
    let (dir, to) = (dir.as_fd(), to.as_fd());
    match nix::fcntl::renameat2(dir, from, to, name, RenameFlags::RENAME_NOREPLACE) {
        Err(Errno::EINVAL | Errno::ENOSYS) => rename_between(dir, from, to, name),
        other => Ok(other?),
    }
}

/// Removes an empty directory.
pub fn remove_dir_at(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    Ok(nix::unistd::unlinkat(dir, name, UnlinkatFlags::RemoveDir)?)
}

/// Removes a name that is not a directory; whether there was one.
pub fn unlink_at(dir: impl AsFd, name: &OsStr) -> io::Result<bool> {
    match nix::unistd::unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// `mkdirat`; whether the directory is new.
pub fn make_dir_at(dir: impl AsFd, name: &OsStr, mode: u32) -> io::Result<bool> {
    match nix::sys::stat::mkdirat(dir, name, Mode::from_bits_truncate(mode)) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// `symlinkat`.
pub fn symlink_at(dir: impl AsFd, target: &OsStr, name: &OsStr) -> io::Result<()> {
    Ok(nix::unistd::symlinkat(target, dir, name)?)
}

/// `mknodat`: a device node, fifo or socket, with these permissions (`07777`); of a device its
/// major and minor number.
pub fn make_node_at(
    dir: impl AsFd,
    name: &OsStr,
    kind: SFlag,
    mode: u32,
    (major, minor): (u32, u32),
) -> io::Result<()> {
    let device = nix::sys::stat::makedev(major.into(), minor.into());
    Ok(nix::sys::stat::mknodat(dir, name, kind, Mode::from_bits_truncate(mode), device)?)
}

/// `readlinkat`.
pub fn read_link_at(dir: impl AsFd, name: &OsStr) -> io::Result<OsString> {
    Ok(nix::fcntl::readlinkat(dir, name)?)
}

/// Has the names in a directory on storage; fsync(2). `false`: this directory cannot be
/// synced, or not be opened by this process.
pub fn sync_dir(dir: BorrowedFd) -> io::Result<bool> {
    let synced = open_beneath(dir, "".as_ref(), OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0).map(File::from);
    match synced.and_then(|dir| dir.sync_all()) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(
                libc::EINVAL | libc::EBADF | libc::EOPNOTSUPP | libc::ENOSYS | libc::EACCES | libc::EPERM,
            ) => Ok(false),
            _ => Err(error),
        },
    }
}

/// The names in a directory, working files and all, and what each is said to be. An error
/// is the last: it would come again.
pub fn names_in(dir: &mut Dir) -> impl Iterator<Item = io::Result<(OsString, Option<Type>)>> + '_ {
    let mut failed = false;
    let entries = dir.iter().take_while(move |entry| !std::mem::replace(&mut failed, entry.is_err()));
    entries.filter_map(|entry| match entry {
        Ok(entry) => {
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            (name != "." && name != "..").then(|| Ok((name.to_owned(), entry.file_type())))
        }
        Err(errno) => Some(Err(errno.into())),
    })
}
