//! Which version a destination came from last, so that nobody passes off an older one as the newest. Kept
//! where this user's state is; without a home nothing is known.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::hashmap::map_file::NewFile;
use crate::location::directory_of;
use crate::store::head::Head;
use crate::sys;
use crate::working;

/// Bytes of such a record.
const MOST: u64 = 4096;

/// What a destination came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastVersion {
    /// The name of the image.
    pub name: String,
    /// That of the version.
    pub version: String,
    /// When that was published, in nanoseconds since 1970.
    pub time: u64,
}

/// Where the record of a destination lies.
pub struct LastPlace {
    directory: PathBuf,
    name: String,
}

impl LastPlace {
    /// That of a destination, which may not be there yet, and is not followed if it is a symlink. `None`: there is
    /// none.
    pub fn of(destination: &Path) -> Option<LastPlace> {
        let path = fs::canonicalize(directory_of(destination)).ok()?.join(destination.file_name()?);
        let name = blake3::hash(path.as_os_str().as_bytes()).to_hex().to_string();
        Some(LastPlace { directory: working::state_dir()?.join("pulled"), name })
    }

    /// What is recorded there. What cannot be read is as none.
    pub fn read(&self) -> Option<LastVersion> {
        let directory = working::own_directory(&self.directory, false).ok()?;
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        let file =
            sys::open_beneath(std::os::fd::AsFd::as_fd(&directory), self.name.as_ref(), flags, 0).ok()?;
        let mut text = Vec::new();
        File::from(file).take(MOST).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Records what a destination has come from.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, last: &LastVersion) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let directory = working::own_directory(&self.directory, true)?;
            let mut file = NewFile::create(directory, "new-")?;
            // A struct of numbers and texts.
            file.write_all(&serde_json::to_vec(last).unwrap_or_default())?;
            file.put(self.name.as_ref())
        };
        write().map_err(Error::file("record the version in", &self.directory))
    }
}

impl LastVersion {
    /// That of a head.
    pub fn of(head: &Head, name: &str) -> LastVersion {
        LastVersion { name: name.into(), version: head.version().into(), time: head.time }
    }

    /// Refuses what is told to be the newest version, and is older than this one, or another of the same time.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`], with the address that it came from.
    pub fn refuse_older(&self, head: &Head, address: &str) -> Result<()> {
        let is_same = head.time == self.time && head.version() == self.version;
        if head.time > self.time || is_same {
            return Ok(());
        }
        let what = format!(
            "it names version {} as the newest, and the destination has come from {}, which is newer: the server may be \
             behind, or pass off an old version; name the version (NAME@{}) to pull it all the same",
            head.version(),
            self.version,
            head.version()
        );
        Err(Error::Protocol { peer: address.into(), what })
    }
}
