//! What is replaced or removed, kept under another name where that was asked for: with a
//! suffix in its directory, or under its own path below another one.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, fstat};

use crate::apply::aside::AsidePath;
use crate::apply::place::Place;
use crate::confinement::NamedPath;
use crate::error::{Error, Result, printable};
use crate::sys;
use crate::working::{Naming, Working};

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);

/// Where what is replaced or removed goes, for one run.
#[derive(Debug)]
pub struct Backups {
    suffix: OsString,
    /// `None`: it stays in its directory.
    dir: Option<OwnedFd>,
    /// A backup in another directory has its name on storage before the old one goes.
    fsync: bool,
}

impl Backups {
    /// Makes the directory, if there is to be one. `base`: the destination.
    ///
    /// # Errors
    ///
    /// [`Error::Destination`] when it cannot be had.
    pub fn open(suffix: &[u8], dir: Option<&AsidePath>, base: &NamedPath, fsync: bool) -> Result<Backups> {
        let suffix = OsStr::from_bytes(suffix).to_owned();
        let Some(dir) = dir else { return Ok(Backups { suffix, dir: None, fsync }) };
        let dir = dir.resolve(base);
        let opened = dir.create_all().and_then(|()| dir.open(DIRECTORY));
        let opened = opened.map_err(|error| {
            let shown = printable(dir.path());
            Error::Destination(format!("cannot open the directory for backups {shown}: {error}"))
        })?;
        Ok(Backups { suffix, dir: Some(opened), fsync })
    }

    /// Whether a name is that of a backup: it is no entry that the source could have.
    pub fn is_one(&self, name: &OsStr) -> bool {
        self.dir.is_none() && name.as_bytes().ends_with(self.suffix.as_bytes())
    }

    /// Whether what is removed stays in its directory under another name.
    pub fn are_beside(&self) -> bool {
        self.dir.is_none()
    }

    /// Whether this is the directory that they are in.
    pub fn are_in(&self, stat: &FileStat) -> bool {
        let dir = self.dir.as_ref().and_then(|dir| fstat(dir).ok());
        dir.is_some_and(|dir| (dir.st_dev, dir.st_ino) == (stat.st_dev, stat.st_ino))
    }

    /// Gives what has the name of a place its other name, too, in the place of an older
    /// backup. Where a file system links nothing, it only has the other one then.
    fn keep(&self, place: &Place, below: &Path) -> Result<()> {
        let (dir, name) = self.goes_to(place, below)?;
        let to = dir.as_ref().map_or(place.dir.as_fd(), AsFd::as_fd);
        let temp = Working::Temp.name_for(&name, Naming::once(nix::unistd::geteuid().as_raw()));
        let kept = match sys::link_between(&place.dir, &place.name, to, &temp) {
            Ok(()) => sys::rename_between(to, &temp, to, &name).inspect_err(|_| {
                // That error is the one to report.
                let _ = sys::unlink_at(to, &temp);
            }),
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) => return Err(elsewhere(place)),
            Err(error) if sys::is_no_link(&error) => sys::rename_between(&place.dir, &place.name, to, &name),
            Err(error) => Err(error),
        };
        let synced = kept.and_then(|()| match &dir {
            Some(dir) if self.fsync => sys::sync_dir(dir.as_fd()).map(drop),
            _ => Ok(()),
        });
        synced.map_err(place.error("keep a backup of"))
    }

    /// Gives what has the name of a place its other name, and only that.
    fn move_away(&self, place: &Place, below: &Path) -> Result<()> {
        let (dir, name) = self.goes_to(place, below)?;
        let to = dir.as_ref().map_or(place.dir.as_fd(), AsFd::as_fd);
        match sys::rename_between(&place.dir, &place.name, to, &name) {
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) => Err(elsewhere(place)),
            other => other.map_err(place.error("keep a backup of")),
        }
    }

    /// The directory, if it is another one, and the name there.
    fn goes_to(&self, place: &Place, below: &Path) -> Result<(Option<OwnedFd>, OsString)> {
        let mut name = place.name.clone();
        name.push(&self.suffix);
        let Some(dir) = &self.dir else { return Ok((None, name)) };
        let made = make_below(dir, below).map_err(place.error("make a directory for the backup of"))?;
        Ok((Some(made), name))
    }
}

fn elsewhere(place: &Place) -> Error {
    let why = "its backup would lie on another file system: name a --backup-dir on that of the destination";
    Error::refused(&place.path, why)
}

/// Opens a directory, and makes it with all above it where they are missing.
fn make_below(dir: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    match sys::open_beneath(dir.as_fd(), path, DIRECTORY, 0) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut at = sys::open_beneath(dir.as_fd(), Path::new(""), DIRECTORY, 0)?;
    for name in path {
        sys::make_dir_at(&at, name, 0o777)?;
        at = sys::open_beneath(at.as_fd(), Path::new(name), DIRECTORY, 0)?;
    }
    Ok(at)
}

/// Where the backup of one entry goes.
#[derive(Debug, Clone)]
pub(in crate::apply) struct Backup {
    pub backups: Arc<Backups>,
    /// The directory that the entry lies in, below the destination.
    pub below: PathBuf,
}

impl Place {
    /// Keeps what is there, where that was asked for, before it is replaced.
    pub(in crate::apply) fn keep_backup(&self) -> Result<()> {
        match &self.backup {
            Some(Backup { backups, below }) if self.stat()?.is_some() => backups.keep(self, below),
            _ => Ok(()),
        }
    }

    /// Keeps what is there, where that was asked for, in the place of removing it. Returns
    /// whether it was.
    pub(in crate::apply) fn move_to_backup(&self) -> Result<bool> {
        let Some(Backup { backups, below }) = &self.backup else { return Ok(false) };
        backups.move_away(self, below).map(|()| true)
    }
}
