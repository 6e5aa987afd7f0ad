//! How directories and symlinks that are there differ from those that are wanted.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use nix::sys::stat::{FileStat, SFlag};

use crate::apply::attributes::Attributes;
use crate::apply::tree::DestinationTree;
use crate::report::Changes;
use crate::sys;

impl DestinationTree {
    /// Of a directory that is to be made, or is there. Empty where nobody is told.
    pub(super) fn changes_of_directory(&self, path: &[u8], wanted: &Attributes) -> Changes {
        if !self.options.tells_changes {
            return Changes::default();
        }
        let stat = if path.is_empty() { self.look_at_root() } else { self.look(path) };
        match stat.filter(|stat| sys::kind_of(stat) == SFlag::S_IFDIR) {
            Some(stat) => wanted.changes(&stat),
            None => Changes::NEW,
        }
    }

    /// The same of a symlink to `link`.
    pub(super) fn changes_of_symlink(&self, path: &[u8], link: &[u8], wanted: &Attributes) -> Changes {
        if !self.options.tells_changes {
            return Changes::default();
        }
        let is_symlink = |stat: &FileStat| sys::kind_of(stat) == SFlag::S_IFLNK;
        let Some(stat) = self.look(path).filter(is_symlink) else { return Changes::NEW };
        let now = self.root.place(path, true).ok().flatten();
        let now = now.and_then(|place| sys::read_link_at(&place.dir, &place.name).ok());
        wanted.changes(&stat).with(Changes::VALUE, now.is_none_or(|now| now != OsStr::from_bytes(link)))
    }

    /// What is there; nothing either where it cannot be looked at, which shows when it is made.
    fn look(&self, path: &[u8]) -> Option<FileStat> {
        self.root.place(path, true).ok().flatten()?.stat().ok().flatten()
    }

    fn look_at_root(&self) -> Option<FileStat> {
        let dir = self.root.dir.as_ref().filter(|_| !self.root.is_new)?;
        nix::sys::stat::fstat(dir).ok()
    }
}
