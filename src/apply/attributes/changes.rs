//! How what is there differs from what is wanted, for people to be told of.

use std::fs::File;
use std::io;

use nix::sys::stat::{FileStat, SFlag};
use nix::unistd::geteuid;

use crate::apply::attributes::Attributes;
use crate::report::Changes;
use crate::sys;

impl Attributes {
    /// Which of them something that is so has not, as far as this process may set them.
    pub(in crate::apply) fn changes(&self, stat: &FileStat) -> Changes {
        let kind = sys::kind_of(stat);
        let mode = self.mode.filter(|_| kind != SFlag::S_IFLNK).map(|mode| {
            if kind == SFlag::S_IFREG { self.safe_mode(mode, stat.st_uid, stat.st_gid) } else { mode }
        });
        let mode = mode.or_else(|| self.with_executability(stat.st_mode & 0o7777));
        let other_owner = self.uid.is_some_and(|uid| uid != stat.st_uid) && self.superuser;
        let other_group =
            self.gid.is_some_and(|gid| gid != stat.st_gid && (geteuid().is_root() || sys::is_in_group(gid)));
        let is_read_alone = !matches!(kind, SFlag::S_IFDIR | SFlag::S_IFLNK);
        let atime = (stat.st_atime, stat.st_atime_nsec as u32);
        Changes::default()
            .with(
                Changes::TIME,
                self.mtime.is_some_and(|time| time != (stat.st_mtime, stat.st_mtime_nsec as u32)),
            )
            .with(Changes::MODE, mode.is_some_and(|mode| mode != stat.st_mode & 0o7777))
            // Reading a directory changes it, and a symlink's.
            .with(Changes::ACCESS_TIME, is_read_alone && self.atime.is_some_and(|time| time != atime))
            .with(Changes::OWNER, other_owner)
            .with(Changes::GROUP, other_group)
    }
}

impl Attributes {
    /// The same, with ACLs and extended attributes; `open` gives a descriptor of it, for which
    /// `O_PATH` will do.
    pub(in crate::apply) fn all_changes(
        &self,
        stat: &FileStat,
        open: impl FnOnce() -> io::Result<File>,
    ) -> Changes {
        let changes = self.changes(stat);
        if self.extended.are_none() {
            return changes;
        }
        let opened = open().map(|file| self.extended.changes(&file, sys::kind_of(stat), self.superuser));
        // What cannot be opened shows when they are set.
        opened.map_or(changes, |more| changes.with(more, true))
    }
}
