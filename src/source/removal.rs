//! Sources that are removed when the destination has them: what was sent, as long as it is as
//! it was.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag, fstat};

use crate::error::{Error, Result};
use crate::in_use;
use crate::options::Options;
use crate::source::{Identity, Kind, Origin, READ, Source};
use crate::sys;

/// What tells that something was changed since it was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    kind: u32,
    size: i64,
    /// The numbers of a device node.
    device: u64,
    mtime: (i64, i64),
    /// `None`: other names of it may come and go.
    ctime: Option<(i64, i64)>,
}

impl Seen {
    pub(super) fn of(stat: &FileStat) -> Seen {
        Seen {
            kind: sys::kind_of(stat).bits(),
            size: stat.st_size,
            device: stat.st_rdev,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_nlink <= 1).then_some((stat.st_ctime, stat.st_ctime_nsec)),
        }
    }

    fn is_still(&self, stat: &FileStat) -> bool {
        let now = Seen::of(stat);
        *self == Seen { ctime: if self.ctime.is_some() { now.ctime } else { None }, ..now }
    }
}

impl Source {
    /// Removes it, now that the destination has it, if its name leads to what was sent and
    /// that is as it was. A symlink that was followed goes in its place. A directory stays, and
    /// a device whose content was sent.
    ///
    /// # Errors
    ///
    /// When something else has its name, it may not be removed, or another program uses it
    /// and the options do not say that this is no matter.
    pub fn remove(&self, options: &Options) -> Result<()> {
        let is_device = self.seen.kind == SFlag::S_IFBLK.bits() && matches!(self.kind, Kind::File { .. });
        if is_device || matches!(self.kind, Kind::Directory | Kind::Missing) {
            return Ok(());
        }
        let failed = || Error::file("remove", &self.path);
        let (dir, name) = self.open_parent()?;
        let Some(now) = sys::stat_at(&dir, &name).map_err(failed())? else { return Ok(()) };
        if !self.is_still_at(&dir, &name, &now)? {
            return Err(Error::refused(
                &self.path,
                "changed after it was sent, and was not removed; run again",
            ));
        }
        // Who may remove a file need not be one who may read it.
        if sys::kind_of(&now) == SFlag::S_IFREG
            && !options.force_in_use
            && let Ok(file) = sys::open_beneath(dir.as_fd(), name.as_ref(), READ, 0).map(File::from)
        {
            in_use::refuse(&file, &file.metadata().map_err(failed())?, &self.path)?;
        }
        sys::unlink_at(&dir, &name).map(drop).map_err(failed())
    }

    /// Whether a name, which leads to what is so `now`, is that of what was sent, as it was.
    fn is_still_at(&self, dir: &OwnedFd, name: &OsStr, now: &FileStat) -> Result<bool> {
        let is_same = |stat: &FileStat| self.is_at(stat) && self.seen.is_still(stat);
        if sys::kind_of(now) == SFlag::S_IFLNK && self.seen.kind != SFlag::S_IFLNK.bits() {
            // Only what was named, or is found behind a symlink that was followed, leads on.
            let Origin::Named(named) = &self.origin else { return Ok(false) };
            let followed = named.open(OFlag::O_PATH).and_then(|fd| Ok(fstat(&fd)?));
            return Ok(is_same(&followed.map_err(Error::file("look at", &self.path))?));
        }
        Ok(is_same(now)
            && match &self.kind {
                Kind::Symlink(target) => {
                    let link = sys::read_link_at(dir, name).map_err(Error::file("read", &self.path))?;
                    link.as_bytes() == target
                }
                _ => true,
            })
    }

    /// The directory that it lies in, and its name there.
    fn open_parent(&self) -> Result<(OwnedFd, OsString)> {
        const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);
        let opened = match &self.origin {
            Origin::Named(named) => named.parent().open(DIRECTORY),
            Origin::Below(root) => {
                let parent = self.below().parent().unwrap_or(Path::new(""));
                sys::open_beneath(root.fd.as_fd(), parent, DIRECTORY, 0)
            }
        };
        let dir = opened.map_err(Error::file("open the directory of", &self.path))?;
        Ok((dir, self.path.file_name().unwrap_or_default().to_owned()))
    }
}
