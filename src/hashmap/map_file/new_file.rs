//! A file on its way to a name: under a name of its own, which goes unless it is renamed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::sys;
use crate::working::unforeseen;

/// Bytes of a name that another one begins with.
const MOST_OF_NAME: usize = 200;

/// See the module.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    directory: OwnedFd,
    name: OsString,
    is_in_place: bool,
}

impl NewFile {
    /// Makes a file for this user alone in an open directory, under a name that begins with
    /// `prefix`.
    ///
    /// # Errors
    ///
    /// What the system reports.
    pub fn create(directory: impl AsFd, prefix: &str) -> io::Result<NewFile> {
        NewFile::with_mode(directory, prefix, 0o600)
    }

    /// Makes a file in an open directory that is to have this name there later, with the mode of
    /// any new file.
    ///
    /// # Errors
    ///
    /// What the system reports.
    pub fn beside(directory: impl AsFd, name: &OsStr) -> io::Result<NewFile> {
        let name = name.to_string_lossy();
        let prefix = format!(".{}.holesync-", &name[..name.floor_char_boundary(MOST_OF_NAME)]);
        NewFile::with_mode(directory, &prefix, 0o666)
    }

    fn with_mode(directory: impl AsFd, prefix: &str, mode: u32) -> io::Result<NewFile> {
        let name = OsString::from(format!("{prefix}{:016x}", unforeseen()));
        let directory = directory.as_fd().try_clone_to_owned()?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = File::from(sys::open_beneath(directory.as_fd(), Path::new(&name), flags, mode)?);
        Ok(NewFile { file, directory, name, is_in_place: false })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Has it take a name in its directory, in the place of what has it, when it is synced; and syncs that.
    ///
    /// # Errors
    ///
    /// What the system reports: then it goes, unless the directory alone could not be synced.
    pub fn put(self, name: &OsStr) -> io::Result<()> {
        self.file.sync_all()?;
        let directory = self.directory.try_clone()?;
        self.rename(name)?;
        // Where a directory cannot be synced, nothing more can be done.
        sys::sync_dir(directory.as_fd()).map(drop)
    }

    /// The same, of a name that nothing has.
    ///
    /// # Errors
    ///
    /// Those of [`NewFile::put`]; `AlreadyExists` where something has it.
    pub fn put_new(mut self, name: &OsStr) -> io::Result<()> {
        self.file.sync_all()?;
        // Renaming to a name that nothing has is not known everywhere: over NFS it is not.
        match sys::link_between(&self.directory, &self.name, &self.directory, name) {
            Err(error) if sys::is_no_link(&error) => {
                sys::rename_new_at(&self.directory, &self.name, name)?;
                self.is_in_place = true;
            }
            // The name that it had goes.
            linked => linked?,
        }
        sys::sync_dir(self.directory.as_fd()).map(drop)
    }

    /// Whether a name is one that [`NewFile::beside`] gives to what is to be `name`, or if that is empty to
    /// anything.
    pub fn is_beside(given: &OsStr, name: &OsStr) -> bool {
        let stem = given.to_str().and_then(|given| given.strip_prefix('.')?.rsplit_once(".holesync-"));
        let Some((of, random)) = stem else { return false };
        let is_random = random.len() == 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_random && (name.is_empty() || name == of)
    }

    /// Has it take a name in its directory, in the place of what has it.
    ///
    /// # Errors
    ///
    /// What the system reports: then it goes.
    pub fn rename(mut self, name: &OsStr) -> io::Result<()> {
        sys::rename_at(&self.directory, &self.name, name)?;
        self.is_in_place = true;
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_in_place {
            // What is left behind is of no use, and does no harm.
            let _ = sys::unlink_at(&self.directory, &self.name);
        }
    }
}

/// Where files without a name are, for messages.
pub fn nameless_place() -> PathBuf {
    nameless_places().next().unwrap_or_default()
}

fn nameless_places() -> impl Iterator<Item = PathBuf> {
    let wanted = std::env::var_os("TMPDIR").map(PathBuf::from).filter(|path| path.is_absolute());
    wanted.into_iter().chain(["/var/tmp", "/tmp"].map(PathBuf::from))
}

/// A file that nobody else finds, where there is room for what is large.
///
/// # Errors
///
/// What the system reports.
pub fn nameless() -> io::Result<File> {
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for place in nameless_places() {
        match nameless_in(&place) {
            Ok(file) => return Ok(file),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn nameless_in(place: &Path) -> io::Result<File> {
    // Its name goes at once.
    NewFile::create(File::open(place)?, ".holesync-")?.file().try_clone()
}
