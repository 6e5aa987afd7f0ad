//! What is replaced or removed, kept under another name where that was asked for: with a
//! suffix in its directory, or under its own path below another one.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, fstat};

use crate::apply::aside::AsidePath;
use crate::apply::aside::copied::{give_way, rename_over};
use crate::apply::place::Place;
use crate::confinement::NamedPath;
use crate::error::{Error, Result, in_words, lock, printable};
use crate::options::{DeleteWhen, Options};
use crate::sys;

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);

/// Where what is replaced or removed goes, for one run.
#[derive(Debug)]
pub struct Backups {
    suffix: OsString,
    /// `None`: it stays in its directory.
    dir: Option<OwnedFd>,
    /// With `fsync` a backup in another directory has its name on storage before the old one
    /// goes.
    options: Options,
    /// Those that this run made beside what they are of, if it removes entries later, by device
    /// and inode of their directory and name: they stay, whatever the rules say of backups.
    made: Mutex<HashSet<(u64, u64, OsString)>>,
}

impl Backups {
    /// Makes the directory, if there is to be one. `base`: the destination.
    ///
    /// # Errors
    ///
    /// [`Error::Destination`] when it cannot be had.
    pub fn open(
        suffix: &[u8],
        dir: Option<&AsidePath>,
        base: &NamedPath,
        options: &Options,
    ) -> Result<Backups> {
        let (suffix, options) = (OsStr::from_bytes(suffix).to_owned(), options.clone());
        let Some(dir) = dir else {
            return Ok(Backups { suffix, dir: None, options, made: Mutex::default() });
        };
        let dir = dir.resolve(base);
        let opened = dir.create_all().and_then(|()| dir.open(DIRECTORY));
        let opened = opened.map_err(|error| {
            let shown = printable(dir.path());
            Error::Destination(format!("cannot open the directory for backups {shown}: {}", in_words(&error)))
        })?;
        Ok(Backups { suffix, dir: Some(opened), options, made: Mutex::default() })
    }

    /// Whether a name is that of a backup: it is no entry that the source could have.
    pub fn is_one(&self, name: &OsStr) -> bool {
        self.options.backup.as_ref().is_some_and(|backup| backup.is_one(name.as_bytes()))
    }

    /// Whether this run made what has this name beside what it is of.
    pub fn have_made(&self, dir: &OwnedFd, name: &OsStr) -> bool {
        let made = lock(&self.made);
        // Of each that is removed a look at its directory would be one too many.
        !made.is_empty() && fstat(dir).is_ok_and(|dir| made.contains(&(dir.st_dev, dir.st_ino, name.into())))
    }

    /// Takes note of one.
    fn add(&self, to: &Place) -> Result<()> {
        let removes_later = self.options.delete.is_some_and(|delete| delete.when != DeleteWhen::Before);
        if self.dir.is_none() && removes_later {
            let dir = fstat(&to.dir).map_err(|errno| to.error("look at the directory of")(errno.into()))?;
            lock(&self.made).insert((dir.st_dev, dir.st_ino, to.name.clone()));
        }
        Ok(())
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
    /// backup. Where a file system links nothing, it only has the other one then; on another
    /// one its copy gets it.
    fn keep(&self, place: &Place, below: &Path) -> Result<()> {
        let to = self.goes_to(place, below)?;
        let move_over = || sys::rename_between(&place.dir, &place.name, &to.dir, &to.name);
        let linked = to.make_temp(|temp| match sys::link_between(&place.dir, &place.name, &to.dir, temp) {
            // An interrupted run made it. It is locked, as the old file is by this run.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_same(place, &to, temp)? => {
                Ok(())
            }
            other => other,
        });
        let kept = match linked {
            // It is the one that was kept by a run that was interrupted, or it failed.
            Ok((temp, ())) => rename_over(&to, &temp).and(to.forget_link(&temp)),
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
                place.copy_to(&to, &self.options)?;
                Ok(())
            }
            Err(error) if sys::is_no_link(&error) => give_way(&to, move_over),
            Err(error) => Err(error),
        };
        kept.map_err(place.error("keep a backup of"))?;
        self.add(&to)?;
        self.sync(&to)
    }

    /// Gives what has the name of a place its other name, and only that; on another file
    /// system its copy gets it.
    fn move_away(&self, place: &Place, below: &Path) -> Result<()> {
        let to = self.goes_to(place, below)?;
        let move_over = || sys::rename_between(&place.dir, &place.name, &to.dir, &to.name);
        match give_way(&to, move_over) {
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
                place.copy_to(&to, &self.options)?;
                self.sync(&to)?;
                sys::unlink_at(&place.dir, &place.name).map(drop).map_err(place.error("remove"))
            }
            other => other.map_err(place.error("keep a backup of")),
        }
    }

    /// Has the names beside a backup on storage, if it lies in another directory: in one, names
    /// change in the order in which they were changed.
    fn sync(&self, to: &Place) -> Result<()> {
        if self.dir.is_some() { self.sync_always(to) } else { Ok(()) }
    }

    fn sync_always(&self, to: &Place) -> Result<()> {
        if self.options.fsync {
            to.sync_dir().map_err(to.error("sync the directory of"))?;
        }
        Ok(())
    }

    /// Where the backup of a place goes.
    fn goes_to(&self, place: &Place, below: &Path) -> Result<Place> {
        let mut name = place.name.clone();
        name.push(&self.suffix);
        let dir = match &self.dir {
            None => Arc::clone(&place.dir),
            Some(dir) => {
                let made = make_below(dir, below);
                Arc::new(made.map_err(place.error("make a directory for the backup of"))?)
            }
        };
        let shown = place.path.with_file_name(&name);
        Ok(Place::new(dir, name, shown))
    }
}

/// Whether a name beside a backup is another one of what is to be kept.
fn is_same(place: &Place, to: &Place, name: &OsStr) -> io::Result<bool> {
    let id = |stat: FileStat| (stat.st_dev, stat.st_ino);
    let (old, there) = (sys::stat_at(&place.dir, &place.name)?, sys::stat_at(&to.dir, name)?);
    Ok(old.map(id) == there.map(id))
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

    /// Keeps a copy of an open file that has this name, where that was asked for, before it is
    /// written.
    pub(in crate::apply) fn copy_to_backup(&self, file: &File) -> Result<()> {
        let Some(Backup { backups, below }) = &self.backup else { return Ok(()) };
        let to = backups.goes_to(self, below)?;
        self.copy_file_to(file, &to, &backups.options)?;
        backups.add(&to)?;
        // The old content goes next: what is kept of it must have its name by then, in whichever
        // directory.
        backups.sync_always(&to)
    }

    /// Keeps what is there, where that was asked for, in the place of removing it. Returns
    /// whether it was.
    pub(in crate::apply) fn move_to_backup(&self) -> Result<bool> {
        let Some(Backup { backups, below }) = &self.backup else { return Ok(false) };
        backups.move_away(self, below).map(|()| true)
    }
}
