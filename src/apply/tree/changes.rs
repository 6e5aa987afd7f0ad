//! How directories, symlinks and special files that are there differ from those that are wanted.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag, fstat};

use crate::apply::attributes::Attributes;
use crate::apply::place::Inode;
use crate::apply::tree::DestinationTree;
use crate::report::Changes;
use crate::sys;

impl DestinationTree {
    /// Of a directory that is to be made, or is there. Empty where nobody is told.
    pub(super) fn changes_of_directory(&self, path: &[u8], wanted: &Attributes) -> Changes {
        if !self.options.tells_changes.is_asked() {
            return Changes::default();
        }
        match (self.look_at_directory(path), &self.root.dir) {
            (Some(stat), Some(root)) if path.is_empty() => {
                wanted.all_changes(&stat, || root.try_clone().map(File::from))
            }
            (Some(stat), _) => wanted.all_changes(&stat, || self.open_entry(path)),
            (None, _) => Changes::NEW,
        }
    }

    /// The same of a symlink, or special file.
    pub(super) fn changes_of_inode(&self, path: &[u8], inode: &Inode, wanted: &Attributes) -> Changes {
        if !self.options.tells_changes.is_asked() {
            return Changes::default();
        }
        let is_such = |stat: &FileStat| sys::kind_of(stat) == inode.kind();
        let Some(stat) = self.look(path).filter(is_such) else { return Changes::NEW };
        let place = self.root.place(path, true).ok().flatten();
        let is_same = place.is_some_and(|place| inode.is_at(&place, Some(&stat), true));
        wanted.all_changes(&stat, || self.open_entry(path)).with(Changes::VALUE, !is_same)
    }

    /// What has the name of an entry, for its attributes.
    fn open_entry(&self, path: &[u8]) -> io::Result<File> {
        let place = self.root.place(path, true).ok().flatten().ok_or(io::ErrorKind::NotFound)?;
        place.open(&place.name, OFlag::O_PATH)
    }

    /// What is there; nothing either where it cannot be looked at, which shows when it is made.
    fn look(&self, path: &[u8]) -> Option<FileStat> {
        self.root.place(path, true).ok().flatten()?.stat().ok().flatten()
    }

    /// The directory that is there, or that a symlink leads to where those are followed.
    pub(super) fn look_at_directory(&self, path: &[u8]) -> Option<FileStat> {
        if path.is_empty() {
            let dir = self.root.dir.as_ref().filter(|_| !self.root.is_new)?;
            return fstat(dir).ok();
        }
        if self.root.follows_links() {
            let place = self.root.place(path, true).ok().flatten()?;
            let dir = sys::open_dir(place.dir.as_fd(), place.name.as_ref(), OFlag::O_PATH, true).ok()?;
            return fstat(&dir).ok();
        }
        self.look(path).filter(|stat| sys::kind_of(stat) == SFlag::S_IFDIR)
    }
}
