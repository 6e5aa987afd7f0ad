//! Directories that this run made and in which nobody else can make names: what it puts there
//! needs no look at what is there already, nor at whether a name still leads to the file that
//! it was given to.
//!
//! Whoever runs as the same user can, of course: a second run meets its locks, and a name that
//! is taken is never replaced unseen.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::Mutex;

use nix::sys::stat::{FileStat, fstat};

use crate::error::lock;
use crate::sys;

/// The directories that a run made, by device and inode.
#[derive(Debug, Default)]
pub struct OwnDirectories(Mutex<HashSet<(u64, u64)>>);

impl OwnDirectories {
    /// A directory was made, and is so.
    pub fn add(&self, stat: &FileStat) {
        if is_closed(stat) {
            lock(&self.0).insert((stat.st_dev, stat.st_ino));
        }
    }

    /// Whether an open directory is one of them, and nobody else can make names in it.
    pub fn has(&self, dir: impl AsFd) -> bool {
        if lock(&self.0).is_empty() {
            return false;
        }
        let is_own = |stat: FileStat| {
            is_closed(&stat) && lock(&self.0).contains(&(stat.st_dev, stat.st_ino)) && sys::is_posix(&dir)
        };
        fstat(&dir).is_ok_and(is_own)
    }
}

/// Whether permissions let nobody but this user, and root, make names in a directory. An ACL
/// would show in the bits of the group (acl(5)).
fn is_closed(stat: &FileStat) -> bool {
    stat.st_uid == sys::effective_user() && stat.st_mode & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_what_was_made_and_is_closed_to_others_is_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, mode: u32| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            File::open(&path).unwrap()
        };
        let own = OwnDirectories::default();
        let closed = make("closed", 0o755);
        assert!(!own.has(&closed), "nobody said that it was made");
        own.add(&fstat(&closed).unwrap());
        // Others tell of ACLs that permission bits do not show.
        assert_eq!(own.has(&closed), sys::is_posix(&closed));
        for (name, mode) in [("group", 0o775), ("sticky", 0o1777)] {
            let open = make(name, mode);
            own.add(&fstat(&open).unwrap());
            assert!(!own.has(&open), "{name}");
        }
        fs::set_permissions(dir.path().join("closed"), Permissions::from_mode(0o757)).unwrap();
        assert!(!own.has(&closed), "it was opened to others meanwhile");
    }
}
