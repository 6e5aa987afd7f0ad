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
    /// Of what came behind them, one directory of each file system, by device.
    file_systems: Vec<(u64, Arc<OwnedFd>)>,
}

impl Unsynced {
    /// A name in a directory was made or removed.
    pub fn add(&mut self, dir: &Arc<OwnedFd>) {
        let Ok(stat) = fstat(dir) else { return };
        let (device, id) = (stat.st_dev, (stat.st_dev, stat.st_ino));
        if self.directories.iter().any(|(known, _)| *known == id) {
            return;
        }
        if self.directories.len() < ALONE {
            self.directories.push((id, Arc::clone(dir)));
        } else if !self.file_systems.iter().any(|(known, _)| *known == device) {
            self.file_systems.push((device, Arc::clone(dir)));
        }
    }

    /// Has them on storage. A directory that this process may not read cannot be synced.
    ///
    /// # Errors
    ///
    /// Those of the sync.
    pub fn sync(self) -> io::Result<()> {
        for (_, dir) in &self.file_systems {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            match sys::open_beneath(dir.as_fd(), "".as_ref(), flags, 0) {
                Ok(dir) => sys::sync_file_system(&File::from(dir))?,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(error),
            }
        }
        self.directories.iter().try_for_each(|(_, dir)| sys::sync_dir(dir.as_fd()).map(drop))
    }
}
