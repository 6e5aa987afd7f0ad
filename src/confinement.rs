//! Where the paths lead that somebody names. A user's own lead anywhere. A request carries
//! [`RequestPath`]s, and only the [`Confinement`] of the agent makes [`NamedPath`]s of them,
//! which are all that can be opened: no kind of request can forget to ask.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, in_words};
use crate::location::directory_of;
use crate::options::Options;
use crate::sys;

/// A path as it came in a request: bytes, and no way to open them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestPath(Vec<u8>);

impl From<&Path> for RequestPath {
    fn from(path: &Path) -> RequestPath {
        RequestPath(path.as_os_str().as_bytes().to_vec())
    }
}

impl From<Vec<u8>> for RequestPath {
    fn from(bytes: Vec<u8>) -> RequestPath {
        RequestPath(bytes)
    }
}

impl RequestPath {
    /// The path, for who may open whatever it leads to.
    pub fn into_path(self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.0))
    }
}

/// What may be asked of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Whatever it can do; below a directory, to read and to write.
    #[default]
    Full,
    /// To tell what is there.
    ReadOnly,
    /// To take what is sent.
    WriteOnly,
}

/// What an agent may do for its initiator, and where.
#[derive(Debug, Default)]
pub struct Confinement {
    /// `None`: anywhere.
    root: Option<Arc<OwnedFd>>,
    access: Access,
    /// Nothing is removed that the other end does not have.
    keeps_all: bool,
}

impl Confinement {
    /// To what lies below `root`, and to one kind of access.
    ///
    /// # Errors
    ///
    /// [`Error::Destination`] when the directory cannot be opened. The initiator reads that,
    /// so it does not say which one.
    pub fn below(root: &Path, access: Access) -> Result<Confinement> {
        let opened = NamedPath::here(root).open(OFlag::O_PATH | OFlag::O_DIRECTORY);
        let root = opened.map_err(|error| {
            let why = in_words(&error);
            Error::Destination(format!("cannot open the directory that this agent is confined to: {why}"))
        })?;
        Ok(Confinement { root: Some(Arc::new(root)), access, keeps_all: false })
    }

    /// Which keeps what the other end does not have.
    pub fn keeping_all(self, keeps_all: bool) -> Confinement {
        Confinement { keeps_all, ..self }
    }

    /// Whether there is any.
    pub fn is_any(&self) -> bool {
        self.root.is_some() || self.access != Access::Full || self.keeps_all
    }

    /// Refuses what the options ask for and this agent does not do.
    ///
    /// # Errors
    ///
    /// [`Error::Start`] when entries would be removed that are to stay.
    pub fn allow(&self, options: &Options) -> Result<()> {
        if self.keeps_all && options.delete.is_some() {
            return Err(Error::Start("this agent removes nothing: leave --delete out".into()));
        }
        if self.keeps_all && options.removes() {
            return Err(Error::Start("this agent removes nothing: leave --delete-missing-args out".into()));
        }
        if self.keeps_all && options.force {
            return Err(Error::Start("this agent removes nothing: leave --force out".into()));
        }
        if self.root.is_some() && options.kinds.keep_dir_links {
            let what = "this agent is confined to a directory, and follows no symlinks: leave -K out";
            return Err(Error::Start(what.into()));
        }
        if options.remove_source_files && (self.keeps_all || self.access == Access::ReadOnly) {
            return Err(Error::Start("this agent removes nothing: leave --remove-source-files out".into()));
        }
        Ok(())
    }

    /// A path that is to be read.
    ///
    /// # Errors
    ///
    /// [`Error::Start`] when nothing may be read.
    pub fn readable(&self, path: RequestPath) -> Result<NamedPath> {
        if self.access == Access::WriteOnly {
            return Err(Error::Start("this agent only takes what is sent to it, and sends nothing".into()));
        }
        Ok(self.named(path))
    }

    /// A path that is to be written.
    ///
    /// # Errors
    ///
    /// [`Error::Start`] when nothing may be written.
    pub fn writable(&self, path: RequestPath) -> Result<NamedPath> {
        if self.access == Access::ReadOnly {
            return Err(Error::Start("this agent only sends what it has, and writes nothing".into()));
        }
        Ok(self.named(path))
    }

    /// A path for a command of the initiator's, which may do what it likes with it.
    ///
    /// # Errors
    ///
    /// [`Error::Start`] when there is any confinement.
    pub fn unconfined(&self, path: RequestPath) -> Result<PathBuf> {
        if self.root.is_some() || self.access != Access::Full {
            return Err(Error::Start("this agent is confined to a directory, and runs no commands".into()));
        }
        Ok(self.named(path).path)
    }

    fn named(&self, path: RequestPath) -> NamedPath {
        let path = path.into_path();
        let Some(root) = &self.root else { return NamedPath::here(home(&path)) };
        // The directory stands for the root of this machine, and for a home.
        let path = path.strip_prefix("~").map_or(path.clone(), |rest| kept_slash(&path, rest.to_path_buf()));
        let bytes = path.as_os_str().as_bytes();
        let from = bytes.iter().position(|&byte| byte != b'/').unwrap_or(bytes.len());
        let relative = if bytes[from..].is_empty() { b"." } else { &bytes[from..] };
        NamedPath { below: Some(Arc::clone(root)), ..NamedPath::here(OsStr::from_bytes(relative)) }
    }
}

/// A path with `~/` replaced, as a shell at this end would do it.
fn home(path: &Path) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(rest) => kept_slash(path, std::env::home_dir().unwrap_or_default().join(rest)),
        Err(_) => path.to_path_buf(),
    }
}

/// `to`, with a slash at its end if `from` has one.
fn kept_slash(from: &Path, to: PathBuf) -> PathBuf {
    if from.as_os_str().as_bytes().ends_with(b"/") { to.join("") } else { to }
}

/// A path that a user or a request named, and the directory that it may not lead out of.
/// Symlinks in it are followed; below a directory only as far as they stay there.
#[derive(Debug, Clone)]
pub struct NamedPath {
    below: Option<Arc<OwnedFd>>,
    path: PathBuf,
    keeps: Keeps,
}

/// Under which part of its path something goes to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keeps {
    /// What begins at this byte; `None`: its last name.
    pub from: Option<usize>,
    /// The directory before that goes with it.
    pub is_below_root: bool,
    /// It stands in a list.
    pub is_listed: bool,
}

impl NamedPath {
    /// A path of this machine, which leads anywhere.
    pub fn here(path: impl Into<PathBuf>) -> NamedPath {
        NamedPath { below: None, path: path.into(), keeps: Keeps::default() }
    }

    /// The same, of which another part is kept.
    pub fn keeping(self, keeps: Keeps) -> NamedPath {
        NamedPath { keeps, ..self }
    }

    /// What of it is kept at the destination.
    pub fn keeps(&self) -> Keeps {
        self.keeps
    }

    /// How it is shown: as it was named, below the directory if there is one.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it may not lead out of a directory.
    pub fn is_confined(&self) -> bool {
        self.below.is_some()
    }

    /// Another path from the same place: absolute, it is one of the directory that may not
    /// be left, if there is one.
    pub fn elsewhere(&self, path: &Path) -> NamedPath {
        let relative = path.strip_prefix("/").ok().filter(|_| self.is_confined());
        let path = match relative {
            Some(path) if path.as_os_str().is_empty() => Path::new("."),
            other => other.unwrap_or(path),
        };
        NamedPath { below: self.below.clone(), ..NamedPath::here(path) }
    }

    /// The directory that it lies in.
    pub fn parent(&self) -> NamedPath {
        NamedPath { below: self.below.clone(), ..NamedPath::here(directory_of(&self.path)) }
    }

    /// A path below it, or above it, if it leads there.
    pub fn join(&self, path: &Path) -> NamedPath {
        NamedPath { below: self.below.clone(), ..NamedPath::here(self.path.join(path)) }
    }

    /// Opens it.
    ///
    /// # Errors
    ///
    /// Those of openat2(2), and `PermissionDenied` when it leads out of the directory.
    pub fn open(&self, flags: OFlag) -> io::Result<OwnedFd> {
        let Some(below) = &self.below else { return sys::open(&self.path, flags) };
        sys::open_below(below.as_fd(), &self.path, flags).map_err(|error| match error.raw_os_error() {
            Some(libc::EXDEV) => {
                let why = "it leads out of the directory that this agent is confined to";
                io::Error::new(io::ErrorKind::PermissionDenied, why)
            }
            _ => error,
        })
    }

    /// What it leads to.
    ///
    /// # Errors
    ///
    /// Those of [`NamedPath::open`] and stat(2).
    pub fn metadata(&self) -> io::Result<Metadata> {
        match &self.below {
            None => self.path.metadata(),
            Some(_) => File::from(self.open(OFlag::O_PATH)?).metadata(),
        }
    }

    /// What has this name, which may be a symlink.
    ///
    /// # Errors
    ///
    /// Those of [`NamedPath::metadata`].
    pub fn symlink_metadata(&self) -> io::Result<Metadata> {
        match &self.below {
            None => self.path.symlink_metadata(),
            Some(_) => File::from(self.open(OFlag::O_PATH | OFlag::O_NOFOLLOW)?).metadata(),
        }
    }

    /// Makes a directory of this name, whose parent must be there.
    ///
    /// # Errors
    ///
    /// Those of [`NamedPath::open`] and mkdir(2).
    pub fn create_dir(&self) -> io::Result<()> {
        let (Some(_), Some(name)) = (&self.below, self.path.file_name()) else {
            return std::fs::create_dir(&self.path);
        };
        let parent = self.parent().open(OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        match sys::make_dir_at(parent, name, 0o777)? {
            true => Ok(()),
            false => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    /// Makes a directory of this name, and those that it lies in, where they are missing.
    ///
    /// # Errors
    ///
    /// Those of [`NamedPath::create_dir`].
    pub fn create_all(&self) -> io::Result<()> {
        if !self.is_missing() {
            return Ok(());
        }
        self.parent().create_all()?;
        match self.create_dir() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    }

    /// Whether nothing has this name.
    pub fn is_missing(&self) -> bool {
        self.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(confinement: &Confinement, path: &str) -> String {
        let path = RequestPath::from(Path::new(path));
        confinement.readable(path).unwrap().path().to_str().unwrap().to_owned()
    }

    #[test]
    fn every_path_is_taken_below_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let confinement = Confinement::below(dir.path(), Access::ReadOnly).unwrap();
        for (named, expected) in [
            ("/etc/passwd", "etc/passwd"),
            ("///etc/", "etc/"),
            ("vm.img", "vm.img"),
            ("~/vm.img", "vm.img"),
            ("~/", "."),
            ("~", "."),
            ("/", "."),
            ("", "."),
            (".", "."),
            ("~user/x", "~user/x"),
        ] {
            assert_eq!(shown(&confinement, named), expected, "{named}");
        }
        assert_eq!(shown(&Confinement::default(), "/etc/"), "/etc/");
    }

    #[test]
    fn what_leads_out_is_refused_and_what_stays_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::create_dir(inside.join("sub")).unwrap();
        std::fs::write(&outside, "secret").unwrap();
        std::fs::write(inside.join("image"), "image").unwrap();
        for (target, name) in [
            ("../outside", "out"),
            ("..", "up"),
            ("/", "root"),
            ("/proc/self/root", "magic"),
            ("image", "in"),
            ("../image", "sub/back"),
        ] {
            std::os::unix::fs::symlink(target, inside.join(name)).unwrap();
        }
        let confinement = Confinement::below(&inside, Access::Full).unwrap();
        let named = |path: &str| confinement.writable(RequestPath::from(Path::new(path))).unwrap();
        for path in ["image", "/image", "in", "sub/../image", "sub/back", "."] {
            named(path).open(OFlag::O_RDONLY).unwrap();
            named(path).metadata().unwrap();
        }
        for path in [
            "..",
            "../outside",
            "sub/../../outside",
            "out",
            "up/outside",
            "root/etc/passwd",
            "magic/etc/passwd",
            "magic",
        ] {
            let refused = named(path).open(OFlag::O_RDONLY).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{path}: {refused}");
            assert!(named(path).metadata().is_err(), "{path}");
        }
        assert!(named("../new").create_dir().is_err() && named("up/new").create_dir().is_err());
        assert!(!dir.path().join("new").exists());
        named("new").create_dir().unwrap();
        assert!(inside.join("new").is_dir());
        assert!(named("out").symlink_metadata().unwrap().is_symlink());
    }

    #[test]
    fn each_access_gives_what_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = || RequestPath::from(Path::new("x"));
        for (access, reads, writes) in
            [(Access::Full, true, true), (Access::ReadOnly, true, false), (Access::WriteOnly, false, true)]
        {
            let confined = Confinement::below(dir.path(), access).unwrap();
            assert_eq!(confined.readable(path()).is_ok(), reads, "{access:?}");
            assert_eq!(confined.writable(path()).is_ok(), writes, "{access:?}");
            assert!(confined.unconfined(path()).is_err(), "{access:?}");
        }
        assert_eq!(Confinement::default().unconfined(path()).unwrap(), Path::new("x"));
    }
}
