//! Other directories that may have what is missing at the destination, under the same path.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};

use crate::apply::Attributes;
use crate::apply::aside::AsidePath;
use crate::apply::place::{Inode, Place};
use crate::confinement::NamedPath;
use crate::error::{Error, Result, in_words, printable};
use crate::options::AlternateKind;
use crate::sys::{self, kind_of};

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);

/// Those that the user named and that are there.
#[derive(Debug)]
pub struct AlternateDirs {
    kind: AlternateKind,
    dirs: Vec<OwnedFd>,
}

impl AlternateDirs {
    /// Opens them, as far as there are such. `base`: the destination.
    ///
    /// # Errors
    ///
    /// [`Error::Destination`] when one cannot be opened.
    pub fn open(kind: AlternateKind, paths: &[AsidePath], base: &NamedPath) -> Result<AlternateDirs> {
        let mut dirs = Vec::new();
        for path in paths {
            let path = path.resolve(base);
            match path.open(DIRECTORY) {
                Ok(dir) => dirs.push(dir),
                // The first of a row of backups has none before it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let shown = printable(path.path());
                    let why =
                        format!("cannot look for files in {shown}: {}; name a directory", in_words(&error));
                    return Err(Error::Destination(why));
                }
            }
        }
        Ok(AlternateDirs { kind, dirs })
    }
}

/// What else may have what a place lacks.
#[derive(Debug, Clone)]
pub struct Alternates {
    /// In which directories.
    pub dirs: Arc<AlternateDirs>,
    /// The directory below these that the place lies in.
    pub below: PathBuf,
}

/// Something in another directory that is as it is wanted.
pub struct Alike {
    /// Where it is.
    pub place: Place,
    /// What it is.
    pub stat: FileStat,
}

impl Place {
    /// What is done about an entry that another directory has; `None`: nobody looks there.
    pub(in crate::apply) fn alternate_kind(&self) -> Option<AlternateKind> {
        self.alternates.as_ref().map(|alternates| alternates.dirs.kind)
    }

    /// What the other directories have under the same path.
    pub(in crate::apply) fn elsewhere(&self) -> impl Iterator<Item = Alike> {
        let dirs = self.alternates.iter().flat_map(|Alternates { dirs, below }| {
            dirs.dirs.iter().filter_map(|dir| sys::open_beneath(dir.as_fd(), below, DIRECTORY, 0).ok())
        });
        dirs.filter_map(|dir| {
            let place = Place::new(Arc::new(dir), self.name.clone(), self.path.clone());
            let stat = place.stat().ok().flatten()?;
            Some(Alike { place, stat })
        })
    }

    /// The first file that another directory has under the same path, and that can be read.
    pub(in crate::apply) fn file_elsewhere(&self, flags: OFlag) -> Option<std::fs::File> {
        let mut files = self.elsewhere().filter(|alike| kind_of(&alike.stat) == SFlag::S_IFREG);
        files.find_map(|alike| alike.place.open(&self.name, flags).ok())
    }

    /// Makes a symlink, device node, fifo or socket what another directory has, if it is wanted
    /// so there. Returns whether that is done.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub(in crate::apply) fn take_inode_elsewhere(&self, inode: &Inode, wanted: &Attributes) -> Result<bool> {
        let is_wanted = |alike: &Alike| {
            inode.is_at(&alike.place, Some(&alike.stat), true)
                && alike
                    .place
                    .open(&self.name, OFlag::O_PATH)
                    .is_ok_and(|it| wanted.are_all_of(&alike.stat, &it))
        };
        let Some(kind) = self.alternate_kind().filter(|kind| *kind != AlternateKind::Copy) else {
            return Ok(false);
        };
        let Some(alike) = self.elsewhere().find(is_wanted) else { return Ok(false) };
        if kind == AlternateKind::Compare {
            return Ok(true);
        }
        self.put_link_if_possible(&alike)
    }

    /// Makes it another name of what another directory has. `false`: these two cannot share it.
    ///
    /// # Errors
    ///
    /// What else the system calls report.
    pub(in crate::apply) fn put_link_if_possible(&self, alike: &Alike) -> Result<bool> {
        let is_apart = |error: &io::Error| error.raw_os_error() == Some(libc::EXDEV);
        match self.put_link(&alike.place, &alike.stat) {
            Ok(()) => Ok(true),
            Err(Error::File { source, .. }) if is_apart(&source) || sys::is_no_link(&source) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The directory that entries of a tree lie in, for those that look elsewhere.
pub fn at(dirs: Option<&Arc<AlternateDirs>>, below: &Path) -> Option<Alternates> {
    dirs.map(|dirs| Alternates { dirs: Arc::clone(dirs), below: below.to_path_buf() })
}
