//! A map on its way to a name: a file under a name of its own, which goes unless it is renamed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;

use crate::sys;
use crate::working::unforeseen;

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
        let name = OsString::from(format!("{prefix}{:016x}", unforeseen()));
        let directory = directory.as_fd().try_clone_to_owned()?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = File::from(sys::open_beneath(directory.as_fd(), Path::new(&name), flags, 0o600)?);
        Ok(NewFile { file, directory, name, is_in_place: false })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
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
