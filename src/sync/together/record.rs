//! The record of a decision: which image goes to which hosts, whatever happens. It is on storage
//! before any of them is told, and loses a host when that has it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::OFlag;
use serde_json::{Value, json};

use crate::apply::bytes_of;
use crate::error::{Error, Result, escape};
use crate::hashmap::Hash;
use crate::hashmap::map_file::NewFile;
use crate::options::DeploymentId;
use crate::report::hex;
use crate::sys;
use crate::working;

/// Bytes of a record at most.
const MOST: u64 = 16 << 20;
/// How the name of a record ends.
const EXTENSION: &str = "decision";
/// How that of one in the making begins.
const UNFINISHED: &str = ".new-";

/// Which image, and in which state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageState {
    /// From the root directory.
    pub path: PathBuf,
    length: u64,
    modified: (i64, i64),
}

impl ImageState {
    /// As it is now.
    pub fn of(path: &Path) -> Result<ImageState> {
        let failed = |error| Error::file("look at", path)(error);
        let found = fs::metadata(path).map_err(failed)?;
        let path = std::path::absolute(path).map_err(failed)?;
        Ok(ImageState { path, length: found.len(), modified: (found.mtime(), found.mtime_nsec()) })
    }
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub run: DeploymentId,
    pub root: Hash,
    pub image: ImageState,
    /// Those that may not have it yet.
    pub hosts: Vec<String>,
}

/// The directory of this user's records. No other run changes them while this is held.
pub struct Records {
    directory: File,
    path: PathBuf,
}

impl Records {
    /// Makes it, where there is none, and waits for other runs.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] where this user has no place for it; [`Error::File`].
    pub fn open() -> Result<Records> {
        let Some(state) = working::state_dir() else {
            let what = "--together records its decision below $XDG_STATE_HOME or ~/.local/state: set one of XDG_STATE_HOME \
                        and HOME";
            return Err(Error::Usage(what.into()));
        };
        let path = state.join("together");
        let opened = working::own_directory(&path, true);
        let directory =
            File::from(opened.map_err(Error::file("open, as a directory of this user alone,", &path))?);
        // Where a file system has no locks there are none for others, either.
        let _ = directory.lock();
        Ok(Records { directory, path })
    }

    /// The decisions about an image, in whatever state, that concern one of these hosts.
    ///
    /// # Errors
    ///
    /// [`Error::File`], also for one that is damaged.
    pub fn find(&self, image: &ImageState, hosts: &[String]) -> Result<Vec<Record>> {
        let failed = |error| Error::file("read", &self.path)(error);
        let again = || {
            sys::open_beneath(self.directory.as_fd(), "".as_ref(), OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)
        };
        let mut listed = Dir::from_fd(again().map_err(failed)?).map_err(|errno| failed(errno.into()))?;
        let mut found = Vec::new();
        for entry in sys::names_in(&mut listed) {
            let (name, _) = entry.map_err(failed)?;
            if name.as_bytes().starts_with(UNFINISHED.as_bytes()) {
                // Nobody else is at work with it, and it is in nobody's way.
                let _ = sys::unlink_at(&self.directory, &name);
            }
            if Path::new(&name).extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            let path = self.path.join(&name);
            let text = self.text_of(&name).map_err(Error::file("read", &path))?;
            let record = Record::parse(&text, image).map_err(|()| {
                let why = "is no record of a decision, or of another version of holesync: remove it, if no run with \
                           --together is to be ended";
                Error::refused(&path, why)
            })?;
            let concerns = |record: &Record| record.hosts.iter().any(|host| hosts.contains(host));
            found.extend(record.filter(concerns));
        }
        Ok(found)
    }

    fn text_of(&self, name: &OsStr) -> io::Result<String> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        let file = File::from(sys::open_beneath(self.directory.as_fd(), Path::new(name), flags, 0)?);
        let found = file.metadata()?;
        if !found.is_file() || found.uid() != sys::effective_user() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut text = String::new();
        file.take(MOST).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Has a record on storage; without hosts, has it go. One that cannot be synced does not stay.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn write(&self, record: &Record) -> Result<()> {
        let name = OsString::from(format!("{}.{EXTENSION}", hex(&record.run)));
        let path = self.path.join(&name);
        let earlier = match self.text_of(&name) {
            Ok(earlier) => Some(earlier),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::file("read the decision in", &path)(error)),
        };
        let put = if record.hosts.is_empty() { self.remove(&name) } else { self.put(&name, &record.text()) };
        put.map_err(|error| {
            // What was there before is what counts. If that fails as well, the next run tells of it.
            let _ = match earlier {
                Some(earlier) => self.put(&name, &earlier),
                None => self.remove(&name),
            };
            Error::file("record the decision in", &path)(error)
        })
    }

    fn put(&self, name: &OsStr, text: &str) -> io::Result<()> {
        let mut new = NewFile::create(&self.directory, UNFINISHED)?;
        new.write_all(text.as_bytes())?;
        new.put(name)
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        match sys::unlink_at(&self.directory, name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        sys::sync_dir(self.directory.as_fd()).map(drop)
    }
}

impl Record {
    fn text(&self) -> String {
        let ImageState { path, length, modified } = &self.image;
        let value = json!({
            "holesync_decision": 1, "run": hex(&self.run), "root": hex(&self.root),
            "image": name_of(path), "length": length, "modified": [modified.0, modified.1], "hosts": self.hosts,
        });
        format!("{value:#}\n")
    }

    /// `None`: it is about another image.
    fn parse(text: &str, image: &ImageState) -> std::result::Result<Option<Record>, ()> {
        let value: Value = serde_json::from_str(text).map_err(drop)?;
        let parse = || {
            let text = |name: &str| value[name].as_str();
            let run = bytes_of(text("run")?)?;
            let root = bytes_of(text("root")?)?;
            let modified = (value["modified"][0].as_i64()?, value["modified"][1].as_i64()?);
            let hosts = value["hosts"].as_array()?.iter().map(|host| host.as_str().map(str::to_owned));
            let (hosts, length) = (hosts.collect::<Option<Vec<_>>>()?, value["length"].as_u64()?);
            let state = ImageState { path: image.path.clone(), length, modified };
            let is_it = text("image")? == name_of(&image.path);
            (value["holesync_decision"] == 1).then_some(is_it.then_some(Record {
                run,
                root,
                image: state,
                hosts,
            }))
        };
        parse().ok_or(())
    }
}

/// A path in a record.
fn name_of(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let image = ImageState { path: "/i \u{1b}".into(), length: 7, modified: (-1, 3) };
        let hosts = vec!["h:/p".into(), "u@[::1]:22:/q".into()];
        let record = Record { run: [3; 16], root: [0xfe; 32], image: image.clone(), hosts };
        let text = record.text();
        assert_eq!(Record::parse(&text, &image), Ok(Some(record)));
        let other = ImageState { path: "/other".into(), ..image.clone() };
        assert_eq!(Record::parse(&text, &other), Ok(None));
        for bad in ["", "{}", &text[..text.len() - 3], &text.replace("fefe", "fex!")] {
            assert_eq!(Record::parse(bad, &image), Err(()), "{bad}");
        }
    }
}
