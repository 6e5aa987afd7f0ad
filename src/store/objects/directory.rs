//! Objects as files of a directory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{FileStat, SFlag};

use crate::error::{Error, Result};
use crate::hashmap::map_file::NewFile;
use crate::store::objects::{Content, Listed, Objects, Served, Take, WritableObjects};
use crate::sys;

/// What directories of a store are made with, less the umask.
pub const DIRECTORY_MODE: u32 = 0o777;
/// Bytes that are read at a time.
const PIECE: usize = 256 << 10;
/// How often somebody else's lock is tried, and how long after the time before.
const LOCK_ATTEMPTS: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// See the module. No symlink below it is followed.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    directory: OwnedFd,
}

impl Directory {
    /// A directory that is there.
    ///
    /// # Errors
    ///
    /// When it is not, or cannot be opened.
    pub fn open(path: &Path) -> Result<Directory> {
        let directory = sys::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        let directory = directory.map_err(Error::file("open the store", path))?;
        Ok(Directory { path: path.to_path_buf(), directory })
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens an object; `None`: there is none.
    fn find(&self, name: &str) -> Result<Option<(File, u64)>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        let opened = sys::open_beneath(self.directory.as_fd(), Path::new(name), flags, 0).map(File::from);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("open", name)(error)),
        };
        let metadata = file.metadata().map_err(Error::file("look at", self.path_of(name)))?;
        if !metadata.is_file() {
            return Err(Error::refused(self.path_of(name), "is no object of a store: it is not a file"));
        }
        Ok(Some((file, metadata.len())))
    }

    /// What could not be done to an object.
    fn failed(&self, doing: &'static str, name: &str) -> impl Fn(io::Error) -> Error {
        let path = self.path_of(name);
        move |error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOTDIR | Errno::ELOOP) => {
                let why = "leads through a symlink or a file: below a store there are directories and files alone (mount \
                           what lies elsewhere)";
                Error::refused(&path, why)
            }
            _ => Error::file(doing, &path)(error),
        }
    }

    fn found(&self, name: &str) -> Result<(File, u64)> {
        let missing = || Error::file("open", self.path_of(name))(Errno::ENOENT.into());
        self.find(name)?.ok_or_else(missing)
    }

    /// Opens the directory that an object lies in; `make`: makes it where there is none. `None`: there
    /// is none.
    fn parent(&self, name: &str, make: bool) -> io::Result<Option<OwnedFd>> {
        let mut directory = self.directory.try_clone()?;
        let parents = name.rsplit_once('/').map_or("", |(parents, _)| parents);
        for part in parents.split('/').filter(|part| !part.is_empty()).map(OsStr::new) {
            if make && sys::make_dir_at(&directory, part, DIRECTORY_MODE)? {
                sys::sync_dir(directory.as_fd())?;
            }
            directory = match open_directory(directory.as_fd(), part) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                opened => opened?,
            };
        }
        Ok(Some(directory))
    }

    fn try_to_put(&self, name: &str, content: Content) -> io::Result<()> {
        let directory = self.parent(name, true)?.ok_or(Errno::ENOENT)?;
        let last = last_part(name);
        let mut new = NewFile::beside(&directory, last)?;
        match content {
            Content::Bytes(bytes) => io::Write::write_all(&mut new, bytes)?,
            Content::File(file) => {
                let mut from = file.try_clone()?;
                io::Seek::seek(&mut from, io::SeekFrom::Start(0))?;
                io::copy(&mut from, &mut new)?;
            }
        }
        new.put(last)
    }

    fn try_to_put_new(&self, name: &str, bytes: &[u8]) -> io::Result<bool> {
        let directory = self.parent(name, true)?.ok_or(Errno::ENOENT)?;
        let last = last_part(name);
        let mut new = NewFile::beside(&directory, last)?;
        io::Write::write_all(&mut new, bytes)?;
        match new.put_new(last) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            put => put.map(|()| true),
        }
    }

    /// Keeps others from replacing what this directory has, if they ask, too. Whoever may read the directory can
    /// have that for as long as they like: nobody is waited for longer than a moment, and then this goes on.
    fn lock(&self) -> Option<Flock<OwnedFd>> {
        let mut directory = self.directory.try_clone().ok()?;
        for _ in 0..LOCK_ATTEMPTS {
            match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Some(lock),
                Err((back, Errno::EWOULDBLOCK)) => directory = back,
                // There are no such locks here.
                Err(_) => return None,
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        None
    }
}

fn last_part(name: &str) -> &OsStr {
    OsStr::new(name.rsplit('/').next().unwrap_or(name))
}

fn open_directory(directory: BorrowedFd, name: &OsStr) -> io::Result<OwnedFd> {
    sys::open_beneath(directory, Path::new(name), OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)
}

impl Objects for Directory {
    fn address(&self, name: &str) -> String {
        self.path_of(name).to_string_lossy().into_owned()
    }

    fn get(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let Some((file, _)) = self.find(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(most + 1).read_to_end(&mut bytes).map_err(Error::file("read", self.path_of(name)))?;
        if bytes.len() as u64 > most {
            let what = format!("it is longer than {most} bytes");
            return Err(Error::Protocol { peer: self.address(name), what });
        }
        Ok(Some(bytes))
    }

    fn read(&self, name: &str, range: Range<u64>, take: &mut Take) -> Result<Served> {
        let (file, _) = self.found(name)?;
        let mut piece = vec![0; PIECE.min(usize::try_from(range.end - range.start).unwrap_or(PIECE))];
        let mut at = range.start;
        while at < range.end {
            let len = piece.len().min(usize::try_from(range.end - at).unwrap_or(PIECE));
            match file.read_exact_at(&mut piece[..len], at) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    let what = format!("it is too short: it ends before byte {}", at + len as u64);
                    return Err(Error::Protocol { peer: self.address(name), what });
                }
                read => read.map_err(Error::file("read", self.path_of(name)))?,
            }
            take(&piece[..len])?;
            at += len as u64;
        }
        Ok(Served::Range)
    }

    fn read_whole(&self, name: &str, length: u64, take: &mut Take) -> Result<()> {
        let (_, there) = self.found(name)?;
        if there != length {
            let what = format!("it has {there} bytes, and {length} were expected");
            return Err(Error::Protocol { peer: self.address(name), what });
        }
        self.read(name, 0..length, take).map(drop)
    }

    fn read_front(&self, name: &str, length: u64, take: &mut Take) -> Result<()> {
        self.read(name, 0..length, take).map(drop)
    }
}

impl WritableObjects for Directory {
    fn put(&self, name: &str, content: Content) -> Result<()> {
        self.try_to_put(name, content).map_err(self.failed("write", name))
    }

    fn put_if(&self, name: &str, there: Option<&[u8]>, bytes: &[u8]) -> Result<bool> {
        let Some(there) = there else {
            return self.try_to_put_new(name, bytes).map_err(self.failed("write", name));
        };
        let _lock = self.lock();
        let found = match self.length(name)? {
            Some(length) if length == there.len() as u64 => self.get(name, length)?,
            _ => None,
        };
        if found.as_deref() != Some(there) {
            return Ok(false);
        }
        self.put(name, Content::Bytes(bytes)).map(|()| true)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let failed = self.failed("list", prefix);
        let Some(directory) = self.parent(prefix, false).map_err(&failed)? else { return Ok(Vec::new()) };
        let mut listed = Vec::new();
        let mut open = Dir::from_fd(directory).map_err(|errno| failed(errno.into()))?;
        let names: io::Result<Vec<_>> = sys::names_in(&mut open).collect();
        for (name, kind) in names.map_err(&failed)? {
            // A name that is no text is no object; one that begins with a dot is still being written.
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            let name = format!("{prefix}{name}");
            // A directory is no object either.
            if kind.is_some_and(|kind| kind != Type::File) {
                continue;
            }
            let Some((file, length)) = self.find(&name)? else { continue };
            let modified = file.metadata().and_then(|metadata| metadata.modified());
            let modified = modified.map_err(Error::file("look at", self.path_of(&name)))?;
            listed.push(Listed { name, length, modified });
        }
        listed.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(listed)
    }

    fn length(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.find(name)?.map(|(_, length)| length))
    }

    fn have_last(&self, prefix: &str) -> Result<()> {
        let synced = || -> io::Result<()> {
            sys::sync_dir(self.directory.as_fd())?;
            for (at, _) in prefix.match_indices('/') {
                if let Some(directory) = self.parent(&prefix[..=at], false)? {
                    sys::sync_dir(directory.as_fd())?;
                }
            }
            Ok(())
        };
        synced().map_err(self.failed("sync", prefix))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let removed = || -> io::Result<()> {
            if let Some(directory) = self.parent(name, false)? {
                sys::unlink_at(&directory, last_part(name))?;
                sys::sync_dir(directory.as_fd())?;
            }
            Ok(())
        };
        removed().map_err(self.failed("remove", name))
    }

    fn remove_unfinished(&self, prefix: &str, before: SystemTime) -> Result<()> {
        let failed = self.failed("remove what is unfinished from", prefix);
        let Some(directory) = self.parent(prefix, false).map_err(&failed)? else { return Ok(()) };
        let mut open =
            Dir::from_fd(directory.try_clone().map_err(&failed)?).map_err(|errno| failed(errno.into()))?;
        let names: io::Result<Vec<_>> = sys::names_in(&mut open).collect();
        let before = before.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        for (name, _) in names.map_err(&failed)? {
            if !NewFile::is_beside(&name, last_part(prefix)) {
                continue;
            }
            let stat = sys::stat_at(&directory, &name).map_err(&failed)?;
            let is_left = |stat: &FileStat| {
                sys::kind_of(stat) == SFlag::S_IFREG
                    && u64::try_from(stat.st_mtime).is_ok_and(|time| time <= before)
            };
            if stat.as_ref().is_some_and(is_left) {
                sys::unlink_at(&directory, &name).map_err(&failed)?;
            }
        }
        Ok(())
    }

    fn as_file(&self, name: &str) -> Result<Option<File>> {
        Ok(self.find(name)?.map(|(file, _)| file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_put_listed_read_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Directory::open(dir.path()).unwrap();
        assert_eq!(store.get("a/b", 9).unwrap(), None);
        assert_eq!(store.list("a/").unwrap(), []);
        store.put("a/b", Content::Bytes(b"one")).unwrap();
        store.put("a/b", Content::Bytes(b"three")).unwrap();
        assert_eq!(store.get("a/b", 5).unwrap().unwrap(), b"three");
        assert!(store.get("a/b", 4).is_err());
        let mut told = Vec::<u8>::new();
        let mut take = |bytes: &[u8]| {
            told.extend(bytes);
            Ok(())
        };
        assert_eq!(store.read("a/b", 1..4, &mut take).unwrap(), Served::Range);
        assert!(store.read("a/b", 1..6, &mut take).is_err());
        assert_eq!(told, b"hre");
        let found = store.list("a/").unwrap();
        assert_eq!((found.len(), found[0].name.as_str(), found[0].length), (1, "a/b", 5));
        assert_eq!(store.length("a/b").unwrap(), Some(5));
        store.have_last("a/").unwrap();
        store.have_last("none/at all/").unwrap();
        store.remove("a/b").unwrap();
        store.remove("a/b").unwrap();
        assert_eq!(store.length("a/b").unwrap(), None);
    }

    #[test]
    fn what_is_there_is_replaced_only_where_it_is_what_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let store = Directory::open(dir.path()).unwrap();
        assert!(store.put_if("a/b", None, b"one").unwrap());
        assert!(!store.put_if("a/b", None, b"other").unwrap());
        assert!(!store.put_if("a/b", Some(b"on"), b"other").unwrap());
        assert!(!store.put_if("a/none", Some(b"one"), b"other").unwrap());
        assert_eq!(store.get("a/b", 9).unwrap().unwrap(), b"one");
        assert!(store.put_if("a/b", Some(b"one"), b"two").unwrap());
        assert_eq!(store.get("a/b", 9).unwrap().unwrap(), b"two");
        // Somebody who holds the lock for ever holds up nobody for long.
        let _lock = Flock::lock(File::open(dir.path()).unwrap(), FlockArg::LockExclusive).unwrap();
        assert!(store.put_if("a/b", Some(b"two"), b"three").unwrap());
        assert_eq!(store.list("a/").unwrap().len(), 1);
    }

    #[test]
    fn what_is_unfinished_goes_when_it_is_old_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let store = Directory::open(dir.path()).unwrap();
        store.put("a/b", Content::Bytes(b"one")).unwrap();
        let old = SystemTime::now() - Duration::from_secs(1000);
        let unfinished = [".disk.newest.holesync-0123456789abcdef", "a/.b.holesync-0123456789abcdef"];
        let others =
            [".disk2.newest.holesync-0123456789abcdef", "a/.b.holesync-0123456789abcdeg", "a/.hidden"];
        for name in unfinished.iter().chain(&others) {
            File::create(dir.path().join(name)).unwrap().set_modified(old).unwrap();
        }
        let young = "a/.c.holesync-0123456789abcdef";
        std::fs::write(dir.path().join(young), "").unwrap();
        for prefix in ["a/", "disk.newest", "none/"] {
            store.remove_unfinished(prefix, old + Duration::from_secs(9)).unwrap();
        }
        assert!(unfinished.iter().all(|name| !dir.path().join(name).exists()));
        assert!(others.iter().chain([&young, &"a/b"]).all(|name| dir.path().join(name).exists()));
    }

    #[test]
    fn nothing_leads_out_of_a_store() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        let inner = dir.path().join("store");
        std::fs::create_dir(&inner).unwrap();
        std::os::unix::fs::symlink("../secret", inner.join("link")).unwrap();
        let store = Directory::open(&inner).unwrap();
        for name in ["../secret", "link"] {
            assert!(store.get(name, 9).is_err(), "{name}");
        }
    }
}
