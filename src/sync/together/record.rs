//! The record of a decision: which image goes to which hosts, whatever happens. It is on storage
//! before any of them is told, and loses a host when that has it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::apply::bytes_of;
use crate::error::{Error, Result, escape};
use crate::hashmap::Hash;
use crate::options::DeploymentId;
use crate::report::hex;
use crate::sys;
use crate::working;

/// Bytes of a record at most.
const MOST: u64 = 16 << 20;

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

impl Record {
    /// The decisions about an image, in whatever state, that concern one of these hosts. Makes
    /// the directory that they lie in.
    ///
    /// # Errors
    ///
    /// [`Error::File`], also for one that is damaged.
    pub fn find(image: &ImageState, hosts: &[String]) -> Result<Vec<Record>> {
        let dir = directory()?;
        let failed = |error| Error::file("read", &dir)(error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            remove_unfinished(&path);
            if path.extension().is_none_or(|extension| extension != "decision") {
                continue;
            }
            let mut text = String::new();
            let read = File::open(&path).and_then(|file| file.take(MOST).read_to_string(&mut text));
            read.map_err(Error::file("read", &path))?;
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

    /// Has it on storage; without hosts, has it go.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn write(&self) -> Result<()> {
        let dir = directory()?;
        let path = dir.join(format!("{}.decision", hex(&self.run)));
        let put = || -> io::Result<()> {
            if self.hosts.is_empty() {
                return fs::remove_file(&path).or_else(|error| match error.kind() {
                    io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                });
            }
            let new = path.with_extension("new");
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            // A file system without locks has none for who looks for it, either.
            let _ = file.try_lock();
            file.write_all(self.text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        let synced = put().and_then(|()| sys::sync_dir(File::open(&dir)?.as_fd()).map(drop));
        synced.map_err(Error::file("record the decision in", &path))
    }

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

/// Removes what is no record yet, unless a run is at work with it.
fn remove_unfinished(path: &Path) {
    if path.extension().is_some_and(|extension| extension == "new")
        && File::open(path).is_ok_and(|file| file.try_lock().is_ok())
    {
        // It is in nobody's way.
        let _ = fs::remove_file(path);
    }
}

/// A path in a record.
fn name_of(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes())
}

/// Where records lie; it is made.
fn directory() -> Result<PathBuf> {
    let Some(dir) = working::state_dir() else {
        let what = "--together records its decision below $XDG_STATE_HOME or ~/.local/state: set one of XDG_STATE_HOME and \
                    HOME";
        return Err(Error::Usage(what.into()));
    };
    let dir = dir.join("together");
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(Error::file("make", &dir))?;
    Ok(dir)
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
