//! `holesync recover`: finishes images from the logs that lie beside them, and says of each
//! log what became of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holesync::apply::Place;
use holesync::apply::recover::{self, Recovered};
use holesync::error::{Error, Result, printable};
use holesync::location::directory_of;
use holesync::options::Options;
use holesync::report::hex;
use holesync::sys;
use holesync::working::{Working, image_of, is_working_file_of, naming_of};
use nix::fcntl::OFlag;
use walkdir::{DirEntry, WalkDir};

use crate::cli::verbs::{each, print_line};

/// Finishes files, and every file below a directory that a log lies beside. One that fails
/// does not keep the others from it.
///
/// # Errors
///
/// [`Error::Refused`] for a file that may be half written and cannot be finished; what
/// opening files and directories reports.
pub fn run(paths: &[PathBuf], options: &Options) -> Result<()> {
    each(paths, |path| if path.is_dir() { recover_tree(path, options) } else { recover_file(path, options) })
}

fn recover_file(path: &Path, options: &Options) -> Result<()> {
    let Some(name) = path.file_name() else { return Err(Error::refused(path, "names no file")) };
    let parent = directory_of(path);
    let dir = File::open(parent).map_err(Error::file("open", parent))?;
    let place = Place::new(Arc::new(dir.into()), name.to_owned(), path.to_path_buf());
    match left_beside(parent, name) {
        Ok(left) if left.is_empty() => print_line(&format!("{}: nothing to finish", printable(path))),
        Ok(left) => each(&left, |left| recover_at(&place, Some(left), options)),
        // A directory that may not be listed: the usual names are tried.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => recover_at(&place, None, options),
        Err(error) => Err(Error::file("read", parent)(error)),
    }
}

/// The names of the logs of an image, and of marks that lie beside no log, under whatever names they
/// are there.
fn left_beside(dir: &Path, image: &OsStr) -> std::io::Result<Vec<OsString>> {
    let mut left = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        if is_working_file_of(&name, image) && image_of_left(dir, &name).is_some() {
            left.push(name);
        }
    }
    Ok(left)
}

/// The image that something was left of which there is something to say: a log, or a mark without
/// one. Its name, if that was not cut.
fn image_of_left<'a>(dir: &Path, name: &'a OsStr) -> Option<&'a OsStr> {
    image_of(name, Working::Log).or_else(|| {
        let image = image_of(name, Working::Prepared)?;
        let log = Working::Log.name_for(image, naming_of(name)?);
        let has_log = dir.join(log).symlink_metadata().is_ok();
        (!has_log).then_some(image)
    })
}

/// Everything below `root` is reached from its descriptor: others may move what lies there.
fn recover_tree(path: &Path, options: &Options) -> Result<()> {
    let root = OwnedFd::from(File::open(path).map_err(Error::file("open", path))?);
    each(WalkDir::new(path).min_depth(1).sort_by_file_name(), |entry| {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(path).to_path_buf();
            Error::file("read", path)(error.into())
        })?;
        match image_of_left(entry.path().parent().unwrap_or(path), entry.file_name()) {
            Some(literal) => recover_beside(&root, path, &entry, literal, options),
            None => Ok(()),
        }
    })
}

/// Finishes the image that a log belongs to, or tells of a mark. `literal`: its name, if that was not cut.
fn recover_beside(
    root: &OwnedFd,
    above: &Path,
    left: &DirEntry,
    literal: &OsStr,
    options: &Options,
) -> Result<()> {
    let parent = left.path().parent().unwrap_or(above);
    let below = parent.strip_prefix(above).unwrap_or(Path::new(""));
    let dir = sys::open_beneath(root.as_fd(), below, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0);
    let dir = Arc::new(dir.map_err(Error::file("open", parent))?);
    let name = match sys::stat_at(&dir, literal) {
        Ok(None) => cut_name(parent, left.file_name()).unwrap_or_else(|| literal.to_owned()),
        _ => literal.to_owned(),
    };
    let path = parent.join(&name);
    recover_at(&Place::new(dir, name, path), Some(left.file_name()), options)
}

/// The name in a directory that was too long for that of its log.
fn cut_name(dir: &Path, log: &OsStr) -> Option<OsString> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    entries.map(|entry| entry.file_name()).find(|name| is_working_file_of(log, name))
}

fn recover_at(place: &Place, left: Option<&OsStr>, options: &Options) -> Result<()> {
    let shown = printable(&place.path);
    let refused = |why: &str| Err(Error::refused(&place.path, why));
    match recover::recover(place, left, options)? {
        Recovered::Finished { root, unset } => {
            print_line(&format!("{shown}: finished from its log and verified, root hash {}", hex(&root)))?;
            unset.map_or(Ok(()), |unset| Err(Error::Unset(unset)))
        }
        Recovered::Nothing => print_line(&format!("{shown}: nothing to finish")),
        Recovered::NotBegun => print_line(&format!(
            "{shown}: nothing to finish, an interrupted run had not begun to write into it; the next run goes on"
        )),
        Recovered::Prepared(mark) => print_line(&format!(
            "{shown}: prepared by run {} for the new image, root hash {}, and waits for its other hosts: it is as it \
             was; the same command as then goes on",
            hex(&mark.run),
            hex(&mark.root)
        )),
        Recovered::Unreadable => refused(
            "the log that lies beside it is damaged: if that was sealed, the image is half written; compare it with \
             its source (--checksum)",
        ),
        Recovered::Replaced => refused(
            "the sealed log that lies beside it belongs to a file that is no longer there; if this is a copy of that \
             file, compare it with its source (--checksum), and else remove the .holesync. files",
        ),
        Recovered::Damaged => refused(
            "what an interrupted run left to finish it from is damaged and was not applied; send the image again",
        ),
        Recovered::Foreign(uid) => refused(&format!(
            "user {uid} has the log that lies beside it, and may have to finish it: run holesync recover as that \
             user, or send the image again"
        )),
    }
}
