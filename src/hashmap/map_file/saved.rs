//! The map of the one image of a run, saved when the destination has that image.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::fcntl::OFlag;

use crate::error::{Error, Result, lock};
use crate::hashmap::map_file::NewFile;
use crate::hashmap::{Grid, MapRecord};
use crate::location::directory_of;
use crate::sys;

/// What is at the place of the map meanwhile stays there until [`put`](SavedMap::put). Whoever
/// describes the image [begins](SavedMap::begin) a record, tells it each block, and hands it
/// [back](SavedMap::keep) when the image is complete. What fails fails in the end: the image goes on.
#[derive(Debug)]
pub struct SavedMap {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
    made: Mutex<Made>,
}

#[derive(Debug)]
enum Made {
    Nothing,
    Record(MapRecord),
    Failed(Error),
}

impl SavedMap {
    /// For a map that is to be at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] for what is there and is no file; when its directory cannot be opened.
    pub fn open(path: &Path) -> Result<SavedMap> {
        let (Some(name), false) = (path.file_name(), fs::metadata(path).is_ok_and(|there| !there.is_file()))
        else {
            return Err(Error::refused(path, "is no place for a map: name a file"));
        };
        let directory = sys::open(directory_of(path), OFlag::O_PATH | OFlag::O_DIRECTORY);
        let directory = directory.map_err(Error::file("open the directory of", path))?;
        Ok(SavedMap { path: path.into(), directory, name: name.into(), made: Mutex::new(Made::Nothing) })
    }

    /// Why there is none of what is no single image.
    pub fn needs_one(&self) -> Error {
        let path = self.path.display();
        Error::Usage(format!("--save-map {path} is for one image, and SRC is a directory, or more than one"))
    }

    /// Refuses to be put in the place of an image, whether that is there by now or not.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`].
    pub fn refuse_for(&self, image: &Path) -> Result<()> {
        let at =
            |path: &Path| Some((fs::canonicalize(directory_of(path)).ok()?, path.file_name()?.to_owned()));
        let is_same = |one: &Metadata, other: &Metadata| (one.dev(), one.ino()) == (other.dev(), other.ino());
        let is_it = match (fs::metadata(image), fs::metadata(&self.path)) {
            (Ok(image), Ok(there)) => is_same(&image, &there),
            _ => at(image).is_some_and(|image| at(&self.path) == Some(image)),
        };
        let why = "is the image itself, which would be lost: name another file";
        if is_it { Err(Error::refused(&self.path, why)) } else { Ok(()) }
    }

    /// Begins the map of the image, again when the image is sent again. `None`: it cannot be written.
    pub fn begin(&self, grid: &Grid) -> Option<MapRecord> {
        let file = NewFile::beside(&self.directory, &self.name);
        let record = file.and_then(|file| MapRecord::new(file, grid, u64::MAX));
        record.map_err(|error| *lock(&self.made) = Made::Failed(self.failed(error))).ok()
    }

    /// Keeps the record of the image until the run is through.
    pub fn keep(&self, record: MapRecord) {
        *lock(&self.made) = Made::Record(record);
    }

    /// Puts the map in its place, synced.
    ///
    /// # Errors
    ///
    /// What writing reported at any time; [`Error::Refused`] where no image was kept.
    pub fn put(&self) -> Result<()> {
        match std::mem::replace(&mut *lock(&self.made), Made::Nothing) {
            Made::Record(record) => {
                let put = record.finish().and_then(|file| file.put(&self.name));
                put.map_err(|error| self.failed(error))
            }
            Made::Failed(error) => Err(error),
            Made::Nothing => Err(Error::refused(
                &self.path,
                "was not written: the destination was left as it is, and nobody knows whether it has the image; run \
                 again without what keeps it, as --existing and --update do",
            )),
        }
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::file("write the map", &self.path)(error)
    }
}
