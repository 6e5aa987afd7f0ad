//! Which version a destination came from last, so that nobody passes off an older one as the newest. Kept
//! where this user's state is; without a home nothing is known.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, in_words};
use crate::hashmap::map_file::NewFile;
use crate::location::directory_of;
use crate::store::head::{Digest, Head, MOST_AHEAD};
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
    /// Whether a trusted key has signed it.
    pub signed: bool,
    /// What the destination was when it was complete, by [`mark_of`](crate::hashmap::cache::mark_of).
    pub mark: Option<Digest>,
}

/// By what the head of a version is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProvenBy {
    /// By the way that it came.
    Way,
    /// By its root hash alone: its name and its time are not.
    Root,
    /// By a signature.
    Signature,
}

/// Where the record of a destination lies.
pub struct LastPlace {
    directory: PathBuf,
    name: String,
}

impl LastPlace {
    /// That of a destination which is `named` so and was found at a path; it may not be there yet, and is not
    /// followed if it is a symlink. `None`: there is none.
    pub fn of(named: &Path, found: &Path) -> Option<LastPlace> {
        // Devices get their names anew at each start of the machine, and links to them, as in /dev/disk, do not.
        let is_device = fs::metadata(found).is_ok_and(|there| there.file_type().is_block_device());
        let destination = if is_device { named } else { found };
        let path = fs::canonicalize(directory_of(destination)).ok()?.join(destination.file_name()?);
        let name = blake3::hash(path.as_os_str().as_bytes()).to_hex().to_string();
        Some(LastPlace { directory: working::state_dir()?.join("pulled"), name })
    }

    /// What is recorded there, if anything is.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is no record: then it is not known what would be too old.
    pub fn read(&self) -> Result<Option<LastVersion>> {
        // Where this user does not even get, nothing of theirs was recorded.
        let absent = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory, io::ErrorKind::PermissionDenied];
        let looked = fs::symlink_metadata(self.directory.join(&self.name));
        let is_absent = looked.is_err_and(|error| absent.contains(&error.kind()));
        match self.try_to_read() {
            Err(_) if is_absent => Ok(None),
            Err(error) => {
                let why = format!(
                    "says which version the destination has come from, and cannot be read ({}): it, and the directory that \
                     it lies in, must be yours alone; to pull whatever version there is, remove it, or name the version \
                     (NAME@VERSION) or its root hash (--root)",
                    in_words(&error)
                );
                Err(Error::refused(self.directory.join(&self.name), why))
            }
            Ok(last) => Ok(Some(last)),
        }
    }

    fn try_to_read(&self) -> io::Result<LastVersion> {
        let directory = working::own_directory(&self.directory, false)?;
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        let file = sys::open_beneath(directory.as_fd(), self.name.as_ref(), flags, 0)?;
        let mut text = Vec::new();
        File::from(file).take(MOST).read_to_end(&mut text)?;
        serde_json::from_slice(&text).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is damaged"))
    }

    /// Records what a destination has come from.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, last: &LastVersion) -> Result<()> {
        let write = || -> io::Result<()> {
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
    /// What is recorded behind `before`, when a destination has become the version of a head. What is not proven
    /// makes nothing older that is, and nothing comes from a time that is yet to come.
    pub fn after(
        before: Option<&LastVersion>,
        head: &Head,
        (name, proven): (&str, ProvenBy),
        mark: Option<Digest>,
    ) -> LastVersion {
        let signed = proven == ProvenBy::Signature;
        let new =
            LastVersion { name: name.into(), version: head.version().into(), time: head.time, signed, mark };
        let before = before.filter(|before| before.name == name);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let is_to_come = u128::from(head.time) > now + u128::from(MOST_AHEAD);
        let is_fine = before.is_none_or(|before| match proven {
            ProvenBy::Signature => true,
            ProvenBy::Way => !before.signed,
            ProvenBy::Root => !before.signed && head.time >= before.time,
        });
        match before {
            _ if is_fine && !is_to_come => new,
            Some(before) => LastVersion { mark, ..before.clone() },
            None => LastVersion { time: 0, signed: false, ..new },
        }
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
        let (told, named) = match head.is_unversioned() {
            true => ("it has no version".into(), "give".into()),
            false => {
                let version = head.version();
                let named = format!("name the version ({}@{version}), or", self.name);
                (format!("it names version {version} as the newest"), named)
            }
        };
        let what = format!(
            "{told}, and the destination has come from {}, which is newer: the server may be behind, or pass off an old \
             version; to pull it all the same {named} its root hash (--root)",
            self.version
        );
        Err(Error::Protocol { peer: address.into(), what })
    }
}
