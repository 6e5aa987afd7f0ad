//! Directories in which names were made or removed that nothing has synced. At the end of a
//! run they are on storage, too: what it told of is there when the power goes afterwards.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;

use crate::sys;

/// Directories that are synced by themselves; of more than these all of the file system is.
const ALONE: usize = 16;

/// Directories to sync, for one run.
#[derive(Debug, Default)]
pub struct Unsynced {
    /// By device and inode.
    directories: Vec<((u64, u64), Arc<OwnedFd>)>,
    /// There were more.
    is_cut: bool,
}

impl Unsynced {
    /// A name in a directory was made or removed.
    pub fn add(&mut self, dir: &Arc<OwnedFd>) {
        let Ok(stat) = fstat(dir) else { return };
        let id = (stat.st_dev, stat.st_ino);
        if self.is_cut || self.directories.iter().any(|(known, _)| *known == id) {
            return;
        }
        if self.directories.len() == ALONE {
            self.is_cut = true;
        } else {
            self.directories.push((id, Arc::clone(dir)));
        }
    }

    /// Has them on storage. `root`: a directory of their file system, if they are many.
    ///
    /// # Errors
    ///
    /// Those of the sync.
    pub fn sync(self, root: &OwnedFd) -> io::Result<()> {
        if self.is_cut {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            let dir = sys::open_beneath(root.as_fd(), "".as_ref(), flags, 0);
            if let Ok(dir) = dir {
                return sys::sync_file_system(&File::from(dir));
            }
        }
        self.directories.iter().try_for_each(|(_, dir)| sys::sync_dir(dir.as_fd()).map(drop))
    }
}
