//! A look at one name of a directory that is held.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use nix::dir::Type;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag, fstat};

use crate::source::Identity;
use crate::source::named::is;
use crate::sys;

/// For a directory whose names are read.
pub const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY);
/// For a symlink itself.
const LINK: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW);

/// Whether a name is a directory's; `hint`: what it is said to be, where the file system says
/// that with its names.
pub fn is_directory(dir: BorrowedFd, name: &OsStr, hint: Option<Type>) -> bool {
    let looked = || sys::stat_at(dir, name).ok().flatten().is_some_and(|stat| is(&stat, SFlag::S_IFDIR));
    hint.map_or_else(looked, |hint| hint == Type::Directory)
}

/// What was opened to be looked at.
pub enum Opened {
    /// Nothing: there is no need to.
    No,
    /// A directory whose names can be read, if it can be opened.
    Directory(io::Result<OwnedFd>),
    /// A symlink itself.
    Link(io::Result<OwnedFd>),
}

/// Looks at a name, which is a directory or symlink only if it can be opened as one.
/// `hint`: what it is said to be.
pub fn look(dir: BorrowedFd, name: &OsStr, hint: Option<Type>) -> io::Result<(FileStat, Opened)> {
    let open = |flags| sys::open_beneath(dir, Path::new(name), flags, 0);
    if hint == Some(Type::Directory)
        && let Ok(fd) = open(DIRECTORY)
    {
        return Ok((fstat(&fd)?, Opened::Directory(Ok(fd))));
    }
    if hint == Some(Type::Symlink)
        && let Ok(fd) = open(LINK)
        && let Some(stat) = fstat(&fd).ok().filter(|stat| is(stat, SFlag::S_IFLNK))
    {
        return Ok((stat, Opened::Link(Ok(fd))));
    }
    let stat = sys::stat_at(dir, name)?.ok_or(nix::errno::Errno::ENOENT)?;
    let same = |fd| Identity::of(&stat).check(fd);
    let opened = if is(&stat, SFlag::S_IFDIR) {
        Opened::Directory(open(DIRECTORY).and_then(same))
    } else if is(&stat, SFlag::S_IFLNK) {
        Opened::Link(open(LINK).and_then(same))
    } else {
        Opened::No
    };
    Ok((stat, opened))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// Not every file system says with its names what they are.
    #[test]
    fn a_directory_is_one_whether_that_is_said_or_not() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("dir")).unwrap();
        std::fs::write(place.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("dir", place.path().join("link")).unwrap();
        let dir = sys::open(place.path(), DIRECTORY).unwrap();
        for (name, hint, expected) in [
            ("dir", Type::Directory, true),
            ("file", Type::File, false),
            ("link", Type::Symlink, false),
            ("gone", Type::File, false),
        ] {
            for hint in [Some(hint), None] {
                assert_eq!(is_directory(dir.as_fd(), OsStr::new(name), hint), expected, "{name} {hint:?}");
            }
        }
    }
}
