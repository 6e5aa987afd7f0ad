//! The directory of the kept maps: this user's alone, bounded in bytes, the oldest out first.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;

use crate::error::{Error, Result};
use crate::sys;
use crate::working::{cache_dir, own_directory};

/// Bytes of all entries: the maps of 2 TiB of data at the usual block size.
const MOST: u64 = 1 << 30;
/// Blocks of data in one entry: it is never larger than all may be.
pub const MOST_BLOCKS: u64 = MOST / 48;
/// What the names of entries in the making begin with.
pub const UNFINISHED: &str = "new-";
/// One in the making that is so old was left by a run that was killed; seconds.
const LEFT_BEHIND: i64 = 86_400;

/// Where it is.
fn path() -> Option<PathBuf> {
    cache_dir().map(|cache| cache.join("maps"))
}

/// Opens the directory; `make`: makes it, where there is none. `None`: there is none, or it is
/// not this user's alone.
pub fn open(make: bool) -> Option<OwnedFd> {
    own_directory(&path()?, make).ok()
}

/// An entry was of use: it stays longer.
pub fn used(entry: &File) {
    // It only goes earlier otherwise.
    let _ = entry.set_modified(SystemTime::now());
}

struct Entry {
    name: OsString,
    bytes: u64,
    /// When it was made or of use last, in seconds.
    used: i64,
}

/// All entries, the oldest first, those in the making among them.
fn entries(directory: &OwnedFd) -> nix::Result<Vec<Entry>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let listed = Dir::openat(directory.as_fd(), ".", flags, nix::sys::stat::Mode::empty())?;
    let mut entries = Vec::new();
    for entry in listed {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_os_string();
        let Ok(Some(found)) = sys::stat_at(directory, &name) else { continue };
        if sys::kind_of(&found) == SFlag::S_IFREG {
            entries.push(Entry { name, bytes: 512 * found.st_blocks.cast_unsigned(), used: found.st_mtime });
        }
    }
    entries.sort_by_key(|entry| entry.used);
    Ok(entries)
}

fn is_unfinished(name: &OsStr) -> bool {
    name.as_bytes().starts_with(UNFINISHED.as_bytes())
}

/// Makes room for an entry of so many bytes. `None`: it is too large.
pub fn make_room(directory: &OwnedFd, bytes: u64) -> Option<()> {
    let mut left = MOST.checked_sub(bytes)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
    // The newest first: those stay that fit.
    for Entry { name, bytes, used } in entries(directory).ok()?.into_iter().rev() {
        let is_over = match is_unfinished(&name) {
            true => now.saturating_sub(used) > LEFT_BEHIND,
            false => bytes > left,
        };
        if is_over {
            left = if is_unfinished(&name) { left } else { 0 };
            // Who uses it has it open.
            let _ = sys::unlink_at(directory, &name);
        } else if !is_unfinished(&name) {
            left -= bytes;
        }
    }
    Some(())
}

/// What is kept for this user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Where.
    pub path: PathBuf,
    /// How many maps.
    pub maps: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Bytes that they take at most.
    pub most: u64,
    /// For how long the oldest was of no use.
    pub oldest: Option<Duration>,
}

/// What is kept for this user.
///
/// # Errors
///
/// When there can be no cache, or it cannot be listed.
pub fn kept() -> Result<Kept> {
    let path = path().ok_or_else(no_home)?;
    let mut kept = Kept { path, maps: 0, bytes: 0, most: MOST, oldest: None };
    for_each(&kept.path.clone(), |_, entry| {
        if is_unfinished(&entry.name) {
            return Ok(());
        }
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(entry.used.max(0).cast_unsigned());
        let age = SystemTime::now().duration_since(since).unwrap_or_default();
        (kept.maps, kept.bytes) = (kept.maps + 1, kept.bytes + entry.bytes);
        kept.oldest = kept.oldest.max(Some(age));
        Ok(())
    })?;
    Ok(kept)
}

/// Removes all maps that are kept for this user; how many there were.
///
/// # Errors
///
/// When there can be no cache, or one of them cannot be removed.
pub fn clear() -> Result<u64> {
    let path = path().ok_or_else(no_home)?;
    let mut removed = 0;
    for_each(&path, |directory, entry| {
        let gone = sys::unlink_at(directory, &entry.name);
        gone.map_err(Error::file("remove", path.join(&entry.name)))?;
        removed += u64::from(!is_unfinished(&entry.name));
        Ok(())
    })?;
    Ok(removed)
}

fn no_home() -> Error {
    Error::Usage("there is no cache: neither XDG_CACHE_HOME nor a home directory is known".into())
}

fn for_each(path: &Path, mut each: impl FnMut(&OwnedFd, &Entry) -> Result<()>) -> Result<()> {
    let directory = match sys::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(Error::file("open", path))?,
    };
    let entries = entries(&directory).map_err(|errno| Error::file("list", path)(errno.into()))?;
    entries.iter().try_for_each(|entry| each(&directory, entry))
}
