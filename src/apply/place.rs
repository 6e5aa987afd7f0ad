//! A name in an open directory, and what is done to it there: working files
//! beside it, locks, links. No path is resolved twice. Knows nothing of content.

pub mod beside;
mod inode;
pub(super) mod listing;
pub mod mark;
pub(super) mod workplace;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};

use crate::apply::aside::alternate::Alternates;
use crate::apply::aside::backup::{Backup, Backups};
use crate::apply::aside::similar::{self, Similar};
use crate::apply::attributes::Attributes;
use crate::apply::synced::Synced;
use crate::error::{Error, Failure, Result, lock};
use crate::sys::{self, kind_of};
use crate::working::{Naming, Working};
pub use inode::Inode;
use workplace::{Workplace, Workplaces};

/// A name in an open directory: where a destination is. Nobody can put another
/// directory in the place of an open one.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory.
    pub dir: Arc<OwnedFd>,
    /// A plain name in it.
    pub name: OsString,
    /// How to name it to people.
    pub path: PathBuf,
    /// The user named it himself, as the destination.
    pub(super) is_named_itself: bool,
    /// This run made the directory, nobody else makes names in it, and working files lie there:
    /// nothing need be looked for before something gets a name that is not taken.
    pub(super) is_own: bool,
    /// A dry run looks at it: no working file is made or removed.
    pub(super) is_dry: bool,
    /// Whose names working files have.
    pub(super) naming: Naming,
    /// Where what is replaced or removed is kept.
    pub(super) backup: Option<Backup>,
    /// What a new file may be begun from.
    pub(super) similar: Option<Arc<Similar>>,
    /// What else may have what is missing here.
    pub(super) alternates: Option<Alternates>,
    /// Where its temp file and its clone are to lie, if not beside it.
    pub(super) workplaces: Option<Arc<Workplaces>>,
    /// Where they lie, once that is open.
    pub(super) workplace: Option<Workplace>,
}

/// What may be done with an old file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Write,
    /// It is read-only, or a busy program: it can be replaced.
    Read,
    /// It can be replaced unread.
    None,
}

/// The file that was there, open and locked.
pub(super) struct Old {
    pub file: File,
    /// What it was like before anything was done to it.
    pub state: Metadata,
    pub access: Access,
    /// Keeps other names of the file from being opened.
    pub turn: Option<Turn>,
}

impl Old {
    pub fn is_device(&self) -> bool {
        !self.state.is_file()
    }
}

/// Who may open a file that has several names: in one run, one name at a time is replaced,
/// and two would lock each other out.
#[derive(Debug, Default)]
pub(super) struct Turns {
    open: Mutex<OpenFiles>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct OpenFiles {
    /// Files of which this run has one name open, by device and inode.
    files: HashSet<(u64, u64)>,
    is_over: bool,
}

/// Dropped, it lets another name of the same file be opened.
pub(super) struct Turn {
    turns: Arc<Turns>,
    id: (u64, u64),
}

impl Turns {
    /// Waits until no other name of a file is open. `None`: it has no other name.
    pub fn take(self: &Arc<Turns>, place: &Place, stat: &FileStat) -> Result<Option<Turn>> {
        if stat.st_nlink < 2 {
            return Ok(None);
        }
        let id = (stat.st_dev, stat.st_ino);
        let mut open = lock(&self.open);
        while !open.is_over && !open.files.insert(id) {
            open = self.changed.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
        if open.is_over {
            return Err(Error::refused(&place.path, "the run ended before its turn came; run again"));
        }
        Ok(Some(Turn { turns: Arc::clone(self), id }))
    }

    /// Nobody has to wait any more.
    pub fn end(&self) {
        lock(&self.open).is_over = true;
        self.changed.notify_all();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.turns.open).files.remove(&self.id);
        self.turns.changed.notify_all();
    }
}

impl Place {
    /// A name in a directory.
    pub fn new(dir: Arc<OwnedFd>, name: OsString, path: PathBuf) -> Place {
        Place {
            dir,
            name,
            path,
            is_named_itself: false,
            is_own: false,
            is_dry: false,
            naming: Naming::Common,
            backup: None,
            similar: None,
            alternates: None,
            workplaces: None,
            workplace: None,
        }
    }

    /// The same place, which lies in the directory `below` of the destination, with backups.
    pub(super) fn with_backup(self, backups: Option<&Arc<Backups>>, below: &Path) -> Place {
        let backup = |backups: &Arc<Backups>| Backup { backups: Arc::clone(backups), below: below.into() };
        Place { backup: backups.map(backup), ..self }
    }

    /// It, if the user named it himself: what is there then is not replaced by something of
    /// another kind, and a block device is written.
    pub fn named_itself(self, is_named_itself: bool) -> Place {
        Place { is_named_itself, ..self }
    }

    /// The same place, with working files of other names.
    pub(super) fn under(&self, naming: Naming) -> Place {
        Place { naming, ..self.clone() }
    }

    pub(super) fn error(&self, doing: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = self.path.clone();
        move |source| Error::File { doing, path, source }
    }

    pub(super) fn open(&self, name: &OsStr, flags: OFlag) -> io::Result<File> {
        Ok(sys::open_beneath(self.dir.as_fd(), name.as_ref(), flags, 0o600)?.into())
    }

    /// The regular file that is there, if it can be read.
    pub fn open_to_read(&self) -> Option<File> {
        let file = self.open(&self.name, similar::READ).ok()?;
        file.metadata().is_ok_and(|metadata| metadata.is_file()).then_some(file)
    }

    /// The name of a working file beside this place.
    pub(super) fn name_of(&self, kind: Working) -> OsString {
        kind.name_for(&self.name, self.naming)
    }

    /// The file that is there, locked, with as much access as there is.
    pub(super) fn open_old(&self) -> Result<Old> {
        let (file, access) = self.open_readable().map_err(self.error("open"))?;
        let file = self.locked(file)?;
        let state = file.metadata().map_err(self.error("look at"))?;
        if !state.is_file() {
            return Err(self.replaced());
        }
        Ok(Old { file, state, access, turn: None })
    }

    fn open_readable(&self) -> io::Result<(File, Access)> {
        let ways = [(OFlag::O_RDWR, Access::Write), (OFlag::O_RDONLY, Access::Read)];
        for (flags, access) in ways {
            match self.open(&self.name, flags | OFlag::O_NONBLOCK) {
                Ok(file) => return Ok((file, access)),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::ETXTBSY)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((self.open(&self.name, OFlag::O_PATH)?, Access::None))
    }

    /// What has this name is not what had it before.
    pub(super) fn replaced(&self) -> Error {
        Error::refused(&self.path, "it was removed or replaced meanwhile; run again")
    }

    /// Whether there is a file that has other names, too.
    pub fn has_other_names(&self) -> Result<bool> {
        Ok(self.stat()?.is_some_and(|stat| kind_of(&stat) == SFlag::S_IFREG && stat.st_nlink > 1))
    }

    /// Whether there is a working file of this kind, whoever made it.
    pub(super) fn has(&self, kind: Working) -> io::Result<bool> {
        let home = self.home_of(kind);
        Ok(sys::stat_at(&home.dir, &home.name_of(kind))?.is_some())
    }

    /// A file without a name, to try things out on. Where the file system has none such, a
    /// working file loses its name at once. A dry run has none.
    pub(super) fn unnamed(&self) -> io::Result<File> {
        if self.is_dry {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.unnamed_at_once().or_else(|_| {
            let naming = Naming::once(sys::effective_user());
            let name = Working::Clone.name_for(&self.name, naming);
            let file = self.open(&name, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL)?;
            sys::unlink_at(&self.dir, &name)?;
            Ok(file)
        })
    }

    /// A file that never had a name, also in a dry run: nobody sees it.
    pub(super) fn unnamed_at_once(&self) -> io::Result<File> {
        self.open(OsStr::new("."), OFlag::O_TMPFILE | OFlag::O_RDWR)
    }

    /// Whether a name in the directory leads to this open file.
    pub(super) fn is_named(&self, name: &OsStr, file: &File) -> io::Result<bool> {
        let named = sys::stat_at(&self.dir, name)?;
        let ours = file.metadata()?;
        Ok(named.map(|stat| (stat.st_dev, stat.st_ino)) == Some((ours.dev(), ours.ino())))
    }

    /// Whether the name of a working file leads to this open file.
    pub(super) fn is_at_work(&self, kind: Working, file: &File) -> io::Result<bool> {
        let home = self.home_of(kind);
        home.is_named(&home.name_of(kind), file)
    }

    pub(super) fn remove(&self, kinds: &[Working]) -> io::Result<()> {
        let remove = |kind: &Working| {
            let home = self.home_of(*kind);
            sys::unlink_at(&home.dir, &home.name_of(*kind)).map(drop)
        };
        kinds.iter().try_for_each(remove)
    }

    /// Has the names in the directory on storage, where it can be synced.
    pub(super) fn sync_dir(&self) -> io::Result<()> {
        sys::sync_dir(self.dir.as_fd()).map(drop)
    }

    /// A temp file, locked. Between opening and locking it, another run may have
    /// finished and made it the destination: then it must not be touched.
    pub(super) fn locked_temp(&self, file: File) -> Result<File> {
        let file = self.locked(file)?;
        let is_named = self.is_at_work(Working::Temp, &file);
        if !is_named.map_err(self.error("look at the temp file of"))? {
            return Err(Error::refused(&self.path, "another holesync run has just written it; run again"));
        }
        Ok(file)
    }

    /// Sets the attributes of what has this name and is so `now`. What has them all is not
    /// opened. `synced`: a time that is right says that the content is, so that is on
    /// storage first.
    pub(super) fn set_attributes_of(
        &self,
        now: &FileStat,
        wanted: &Attributes,
        synced: Option<&Synced>,
    ) -> Result<Option<Failure>> {
        if wanted.are_those_of(now) {
            return Ok(None);
        }
        let failed = || self.error("set the attributes of");
        let there = (now.st_mtime, now.st_mtime_nsec as u32);
        let synced = synced.filter(|_| wanted.mtime.is_some_and(|mtime| mtime != there));
        let (file, has_content) = self.open_for_attributes(synced.is_some()).map_err(failed())?;
        let opened = file.metadata().map_err(failed())?;
        if (opened.dev(), opened.ino()) != (now.st_dev, now.st_ino) {
            return Err(self.replaced());
        }
        if let Some(synced) = synced.filter(|_| has_content) {
            synced.ensure(&file, &opened).map_err(self.error("sync"))?;
        }
        wanted.set(&file, &self.path)
    }

    /// What has this name, for its attributes; `content`: and to be synced, unless its owner
    /// may not read it, who then relies on nothing in it. Returns whether it can be.
    fn open_for_attributes(&self, content: bool) -> io::Result<(File, bool)> {
        if content {
            match self.open(&self.name, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                other => return Ok((other?, true)),
            }
        }
        Ok((self.open(&self.name, OFlag::O_PATH)?, false))
    }

    /// What is there now, not following a symlink.
    pub fn stat(&self) -> Result<Option<FileStat>> {
        sys::stat_at(&self.dir, &self.name).map_err(self.error("look at"))
    }

    /// Locks a file against other runs. One that was just killed may hold it for a
    /// moment longer, while it is being taken down.
    pub(super) fn locked(&self, file: File) -> Result<File> {
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

/// Sets the attributes of a directory that was opened. `identity`: device and inode of the
/// directory that is meant, if that was looked at. `shown`: how to name it to people.
/// Returns what may not be set.
///
/// # Errors
///
/// What the system calls report of storage.
pub fn finish_directory(
    dir: io::Result<OwnedFd>,
    identity: Option<(u64, u64)>,
    wanted: &Attributes,
    shown: &Path,
) -> Result<Option<Failure>> {
    let failed = || Error::file("set the attributes of", shown);
    let dir = File::from(dir.map_err(failed())?);
    let found = dir.metadata().map_err(failed())?;
    if identity.is_some_and(|identity| identity != (found.dev(), found.ino())) {
        return Err(Error::refused(
            shown,
            "another directory has its name now; its attributes were left alone",
        ));
    }
    wanted.set(&dir, shown)
}
