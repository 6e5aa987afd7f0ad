//! A name in an open directory, and what is done to it there: working files
//! beside it, locks, attributes, links. No path is resolved twice.

use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sys;
use crate::working::Working;

/// A name in an open directory: where a destination is. No path is resolved
/// twice, so nobody can move it under our hands.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory.
    pub dir: Arc<OwnedFd>,
    /// A plain name in it.
    pub name: OsString,
    /// How to name it to people.
    pub path: PathBuf,
}

/// What may be done with an old file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Write,
    /// It is read-only, or a busy program: it can be replaced.
    Read,
    /// It can be replaced unread.
    None,
}

impl Place {
    pub(crate) fn error(&self, doing: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = self.path.clone();
        move |source| Error::File { doing, path, source }
    }

    pub(crate) fn open(&self, name: &OsStr, flags: OFlag) -> io::Result<File> {
        Ok(sys::open_beneath(self.dir.as_fd(), name.as_ref(), flags, 0o600)?.into())
    }

    /// A working file of an earlier run. What has its name and is not ours alone
    /// (a link, another user's file) is none, and goes.
    pub(crate) fn leftover(&self, kind: Working) -> io::Result<Option<File>> {
        let name = kind.name_for(&self.name);
        let Some(stat) = sys::stat_at(&self.dir, &name)? else { return Ok(None) };
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG {
            let file = self.open(&name, OFlag::O_RDWR | OFlag::O_NONBLOCK)?;
            let metadata = file.metadata()?;
            let ours = metadata.uid() == nix::unistd::geteuid().as_raw();
            if metadata.is_file() && metadata.nlink() == 1 && ours {
                return Ok(Some(file));
            }
        }
        sys::unlink_at(&self.dir, &name)?;
        Ok(None)
    }

    /// The file that is there, with as much access as there is.
    pub(crate) fn open_old(&self) -> io::Result<(File, Access)> {
        let ways = [(OFlag::O_RDWR, Access::Write), (OFlag::O_RDONLY, Access::Read)];
        for (flags, access) in ways {
            match self.open(&self.name, flags) {
                Ok(file) => return Ok((file, access)),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::ETXTBSY)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((self.open(&self.name, OFlag::O_PATH)?, Access::None))
    }

    /// Whether there is a working file of this kind, whoever made it.
    pub fn has(&self, kind: Working) -> io::Result<bool> {
        Ok(sys::stat_at(&self.dir, &kind.name_for(&self.name))?.is_some())
    }

    /// A working file as it is, for reading, with its owner; nothing is removed.
    pub(crate) fn peek(&self, kind: Working) -> io::Result<Option<(File, u32)>> {
        match self.open(&kind.name_for(&self.name), OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            Ok(file) => {
                let metadata = file.metadata()?;
                Ok(metadata.is_file().then_some((file, metadata.uid())))
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ELOOP)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A new working file; there must be none.
    pub(crate) fn create(&self, kind: Working) -> io::Result<File> {
        self.open(&kind.name_for(&self.name), OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL)
    }

    /// A file without a name, to try things out on.
    pub(crate) fn unnamed(&self) -> io::Result<File> {
        self.open(OsStr::new("."), OFlag::O_TMPFILE | OFlag::O_RDWR)
    }

    pub(crate) fn remove(&self, kinds: &[Working]) -> io::Result<()> {
        kinds.iter().try_for_each(|kind| sys::unlink_at(&self.dir, &kind.name_for(&self.name)).map(|_| ()))
    }

    pub(crate) fn sync_dir(&self) -> io::Result<()> {
        let dir = sys::open_beneath(self.dir.as_fd(), "".as_ref(), OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)?;
        File::from(dir).sync_all()
    }

    /// A temp file, locked. Between opening and locking it, another run may have
    /// finished and made it the destination: then it must not be touched.
    pub(crate) fn locked_temp(&self, file: File) -> Result<File> {
        let file = self.locked(file)?;
        let named = sys::stat_at(&self.dir, &Working::Temp.name_for(&self.name));
        let named = named.map_err(self.error("look at the temp file of"))?;
        let ours = file.metadata().map_err(self.error("look at the temp file of"))?;
        if named.map(|stat| (stat.st_dev, stat.st_ino)) != Some((ours.dev(), ours.ino())) {
            return Err(Error::refused(&self.path, "another holesync run has just written it; run again"));
        }
        Ok(file)
    }

    /// What is there now, not following a symlink.
    pub fn stat(&self) -> Result<Option<FileStat>> {
        sys::stat_at(&self.dir, &self.name).map_err(self.error("look at"))
    }

    /// Locks a file against other runs. One that was just killed may hold it for a
    /// moment longer, while it is being taken down.
    pub(crate) fn locked(&self, file: File) -> Result<File> {
        const PATIENCE: Duration = Duration::from_secs(1);
        const PAUSE: Duration = Duration::from_millis(10);
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    let why = "another holesync run is writing it; wait for it to end";
                    return Err(Error::refused(&self.path, why));
                }
                // A file system without locks: there is nothing to hold on to.
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(file),
            }
        }
    }
}

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

/// Sets the attributes of something that needs nothing else, a symlink included.
///
/// # Errors
///
/// What the system calls report; that only root gives files away is none.
pub fn touch(place: &Place, wanted: &Attributes) -> Result<()> {
    place.stat()?.map_or(Ok(()), |now| touch_from(place, &now, wanted))
}

/// The same for who knows what there is `now`.
///
/// # Errors
///
/// Those of [`touch`].
pub fn touch_from(place: &Place, now: &FileStat, wanted: &Attributes) -> Result<()> {
    let failed = || place.error("set the attributes of");
    let owner = (wanted.uid.filter(|&uid| uid != now.st_uid), wanted.gid.filter(|&gid| gid != now.st_gid));
    let mut now = *now;
    if owner != (None, None) {
        forgive_owner(sys::chown_at(&place.dir, &place.name, owner.0, owner.1)).map_err(failed())?;
        // Which clears the setuid and setgid bits of a program (chown(2)).
        let Some(after) = place.stat()? else { return Ok(()) };
        now = after;
    }
    let is_link = SFlag::from_bits_truncate(now.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK;
    if let Some(mode) = wanted.mode.filter(|&mode| mode != now.st_mode & 0o7777 && !is_link) {
        sys::set_mode_at(&place.dir, &place.name, mode).map_err(failed())?;
    }
    match wanted.mtime.filter(|&(s, ns)| (s, i64::from(ns)) != (now.st_mtime, now.st_mtime_nsec)) {
        Some((s, ns)) => sys::set_mtime_at(&place.dir, &place.name, s, ns).map_err(failed()),
        None => Ok(()),
    }
}

/// Makes or replaces a symlink: there is always either the old one or the new.
///
/// # Errors
///
/// What the system calls report: a directory in its place, for one.
pub fn put_symlink(place: &Place, link: &OsStr) -> Result<()> {
    let temp = Working::Temp.name_for(&place.name);
    let put = || -> io::Result<()> {
        sys::unlink_at(&place.dir, &temp)?;
        sys::symlink_at(&place.dir, link, &temp)?;
        sys::rename_at(&place.dir, &temp, &place.name).inspect_err(|_| {
            // The rename's error is the one to report.
            let _ = sys::unlink_at(&place.dir, &temp);
        })
    };
    put().map_err(place.error("create the symlink"))
}

/// Sets the attributes of a directory below `base`.
///
/// # Errors
///
/// What the system calls report.
pub fn finish_directory(base: BorrowedFd, path: &Path, wanted: &Attributes) -> io::Result<()> {
    let dir = sys::open_beneath(base, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)?;
    set_attributes(&File::from(dir), wanted, wanted.mode)
}

/// Sets the attributes of an open file that differ from `wanted`, but for the
/// permissions, which become `mode`.
pub(crate) fn set_attributes(file: &File, wanted: &Attributes, mode: Option<u32>) -> io::Result<()> {
    let now = file.metadata()?;
    let changed = |wanted: Option<u32>, now: u32| wanted.filter(|&wanted| wanted != now);
    let (uid, gid) = (changed(wanted.uid, now.uid()), changed(wanted.gid, now.gid()));
    if uid.is_some() || gid.is_some() {
        forgive_owner(std::os::unix::fs::fchown(file, uid, gid))?;
    }
    if let Some(mode) = mode.filter(|&mode| mode != file.metadata().map_or(u32::MAX, |m| m.mode() & 0o7777)) {
        sys::set_mode(file, mode)?;
    }
    if let Some((seconds, nanoseconds)) = wanted.mtime {
        sys::set_mtime(file, seconds, nanoseconds)?;
    }
    Ok(())
}

/// As for rsync: only root can give files away.
fn forgive_owner(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::PermissionDenied { Ok(()) } else { Err(error) })
}
