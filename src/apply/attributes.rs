//! What a file, directory or symlink carries besides its content, and the one function
//! that sets it. By descriptor: what a name leads to may change, an open file stays the
//! same. Knows nothing of how content gets there.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::{FileStat, SFlag};
use serde::{Deserialize, Serialize};

use crate::sys;

/// What a finished file is to carry besides its content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits to set; `None` leaves those that are there.
    pub mode: Option<u32>,
    /// Permission bits of a file that was not there before.
    pub new_mode: u32,
    /// Modification time to set, seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// User number to set.
    pub uid: Option<u32>,
    /// Group number to set.
    pub gid: Option<u32>,
}

impl Attributes {
    /// Whether something that is so has all of them.
    pub(super) fn are_those_of(&self, stat: &FileStat) -> bool {
        let is_link = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK;
        self.uid.is_none_or(|uid| uid == stat.st_uid)
            && self.gid.is_none_or(|gid| gid == stat.st_gid)
            && (is_link || self.mode.is_none_or(|mode| mode == stat.st_mode & 0o7777))
            && self.mtime.is_none_or(|(s, ns)| (s, i64::from(ns)) == (stat.st_mtime, stat.st_mtime_nsec))
    }

    /// Whether this process may set them on a file that is so once its content was
    /// written: its owner and root may.
    pub(super) fn may_be_set_on(&self, file: &Metadata) -> bool {
        let euid = nix::unistd::geteuid();
        let mode_differs = self.mode.is_some_and(|mode| mode != file.mode() & 0o7777);
        euid.is_root() || euid.as_raw() == file.uid() || !(mode_differs || self.mtime.is_some())
    }

    /// Those of a file that takes the place of one that is so, or of nothing: what is
    /// not wanted otherwise stays.
    pub(super) fn replacing(&self, old: Option<&Metadata>) -> Attributes {
        let old_mode = old.map(|old| old.mode() & 0o7777);
        Attributes {
            mode: Some(self.mode.or(old_mode).unwrap_or(self.new_mode)),
            uid: self.uid.or(old.map(Metadata::uid)),
            gid: self.gid.or(old.map(Metadata::gid)),
            ..self.clone()
        }
    }

    /// Sets those that an open file does not have; a descriptor from `O_PATH` will do.
    ///
    /// # Errors
    ///
    /// What the system calls report; that only root gives files away is none.
    pub(super) fn set(&self, file: &File) -> io::Result<()> {
        let now = file.metadata()?;
        let gid = self.gid.filter(|&gid| gid != now.gid());
        let uid = self.uid.filter(|&uid| uid != now.uid());
        // The group by itself: its members may set it, where only root sets the owner.
        if gid.is_some() {
            forgive_owner(sys::set_owner(file, None, gid))?;
        }
        if uid.is_some() {
            forgive_owner(sys::set_owner(file, uid, None))?;
        }
        // Either clears the setuid and setgid bits of a program (chown(2)).
        let is_stale = uid.or(gid).is_some();
        let mode = self.mode.filter(|&mode| is_stale || mode != now.mode() & 0o7777);
        if let Some(mode) = mode.filter(|_| !now.is_symlink()) {
            sys::set_mode(file, mode)?;
        }
        match self.mtime.filter(|&(s, ns)| (s, i64::from(ns)) != (now.mtime(), now.mtime_nsec())) {
            Some((seconds, nanoseconds)) => sys::set_mtime(file, seconds, nanoseconds),
            None => Ok(()),
        }
    }
}

/// As for rsync: only root can give files away.
fn forgive_owner(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::PermissionDenied { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{OpenOptionsExt, symlink};

    fn path_only(path: &std::path::Path) -> File {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        File::options().read(true).custom_flags(flags).open(path).unwrap()
    }

    #[test]
    fn attributes_are_set_through_any_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "x").unwrap();
        symlink("file", &link).unwrap();
        let wanted = Attributes { mode: Some(0o2751), mtime: Some((-5, 7)), ..Attributes::default() };
        let path_only = [path_only(&file), path_only(&link), path_only(dir.path())];
        let opened = [File::open(&file).unwrap(), File::open(dir.path()).unwrap()];
        for descriptor in path_only.iter().chain(&opened) {
            wanted.set(descriptor).unwrap();
            let found = descriptor.metadata().unwrap();
            assert_eq!((found.mtime(), found.mtime_nsec()), (-5, 7));
            assert!(found.is_symlink() || found.mode() & 0o7777 == 0o2751, "{:o}", found.mode());
            Attributes { mode: Some(0o700), mtime: Some((9, 0)), ..wanted.clone() }.set(descriptor).unwrap();
        }
        assert_eq!(std::fs::metadata(&file).unwrap().mtime(), 9, "a link is not followed");
    }

    #[test]
    fn a_new_owner_does_not_clear_the_bits_that_are_wanted() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let file = tempfile::tempfile().unwrap();
        let owner = |uid, gid| Attributes { uid: Some(uid), gid: Some(gid), ..Attributes::default() };
        let wanted = Attributes { mode: Some(0o6755), ..owner(1, 2) };
        wanted.set(&file).unwrap();
        Attributes { mode: Some(0o6755), ..owner(3, 4) }.set(&file).unwrap();
        let found = file.metadata().unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (3, 4, 0o6755));
    }
}
