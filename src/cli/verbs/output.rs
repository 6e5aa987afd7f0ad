//! A file that a verb writes: put in the place of what is there, whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use holesync::error::{Error, Result, printable};
use holesync::hashmap::map_file::{self, NewFile};
use holesync::location::{Location, directory_of};
use holesync::sys;
use nix::fcntl::OFlag;
use nix::unistd::{AccessFlags, access};

/// Fails early where a file could not be written, or is one of the images that are looked at.
///
/// # Errors
///
/// [`Error::File`], [`Error::Refused`].
pub fn check(path: &Path, images: &[&Location]) -> Result<()> {
    if let Ok(there) = fs::metadata(path) {
        if there.file_type().is_block_device() {
            return Err(Error::refused(path, "is a block device: name a file"));
        }
        let is_it = |image: &&Location| match image {
            Location::Local(image) => fs::metadata(image).is_ok_and(|image| {
                there.is_file() && (image.dev(), image.ino()) == (there.dev(), there.ino())
            }),
            Location::Remote(..) => false,
        };
        if images.iter().any(is_it) {
            return Err(Error::refused(path, "is the image itself, which would be lost: name another file"));
        }
    }
    access(directory_of(path), AccessFlags::W_OK)
        .map_err(|errno| Error::file("write into the directory of", path)(errno.into()))
}

/// Refuses a name that is none of a map.
///
/// # Errors
///
/// [`Error::Usage`].
pub fn check_map(path: &Path) -> Result<()> {
    match map_file::is_map(path) {
        true => Ok(()),
        false => Err(Error::Usage(format!("{}: the name of a map ends in .map", printable(path)))),
    }
}

/// Refuses the name of a map for what is none.
///
/// # Errors
///
/// [`Error::Usage`].
pub fn check_no_map(path: &Path) -> Result<()> {
    match map_file::is_map(path) {
        true => Err(Error::Usage(format!(
            "{}: this name is one of a holesync map, which a bmap is not: name it FILE.bmap",
            printable(path)
        ))),
        false => Ok(()),
    }
}

/// Puts what `write` writes in the place of what is there, all of it at once, when it is synced.
/// What is no file, as `/dev/stdout`, is written to.
///
/// # Errors
///
/// [`Error::File`], and what `write` returns: then what was there is there.
pub fn put<T>(path: &Path, write: impl FnOnce(&File) -> Result<T>) -> Result<T> {
    let failed = |error| Error::file("write", path)(error);
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return write(&OpenOptions::new().write(true).open(path).map_err(failed)?);
    }
    let Some(name) = path.file_name() else { return Err(Error::refused(path, "names no file")) };
    let directory = sys::open(directory_of(path), OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(failed)?;
    let file = NewFile::beside(directory, name).map_err(failed)?;
    let value = write(file.file())?;
    file.put(name).map_err(failed)?;
    Ok(value)
}
