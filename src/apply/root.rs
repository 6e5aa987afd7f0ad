//! The directory that everything is received into, and what is made in it by
//! name alone: directories and symlinks.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;

use crate::apply::attributes::Attributes;
use crate::apply::place::Place;
use crate::error::{Error, Result, escape};
use crate::options::Options;
use crate::source::Metadata;
use crate::source::owners::Names;
use crate::sys;

/// Where everything goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The destination as the user wrote it.
    pub path: PathBuf,
    /// It must be a directory: trailing slash, or several sources.
    pub directory: bool,
    /// The umask of this process.
    pub umask: u32,
    /// The sender is in this process: sources can be opened here.
    pub beside_source: bool,
}

/// The directory that entries are relative to.
#[derive(Clone)]
pub(crate) struct Base {
    /// `None`: a dry run, and it is not there.
    pub dir: Option<Arc<OwnedFd>>,
    /// The single file goes under this name.
    pub rename: Option<OsString>,
    pub shown: PathBuf,
}

/// The directory below a base that was opened last: mostly the next entry lies in it,
/// too. Of use with that base only.
#[derive(Default)]
pub(crate) struct LastDirectory(Option<(PathBuf, Arc<OwnedFd>)>);

impl Base {
    /// Finds, or makes, what the destination names.
    pub fn find(target: &Target, single: bool, dry_run: bool) -> Result<Base> {
        let path = target.path.clone();
        let there = std::fs::metadata(&path);
        if there.as_ref().is_ok_and(|metadata| metadata.is_dir()) {
            return Base::open(&path, None);
        }
        let shown = escape(path.as_os_str().as_bytes());
        if single && !target.directory {
            let device = there.is_ok_and(|metadata| !metadata.is_file());
            let path = if device { path.canonicalize().unwrap_or(path) } else { path };
            let Some(name) = path.file_name() else {
                return Err(Error::Destination(format!("{shown} names no file")));
            };
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            return Base::open(parent, Some(name.to_owned()));
        }
        match there {
            Ok(_) => Err(Error::Destination(format!(
                "{shown} is not a directory, and more than one file is to go there"
            ))),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Destination(format!("cannot open the directory {shown}: {error}")))
            }
            Err(_) if dry_run => Ok(Base { dir: None, rename: None, shown: path }),
            Err(_) => {
                std::fs::create_dir(&path).map_err(|error| {
                    Error::Destination(format!(
                        "cannot create the directory {shown}: {error}; create its parent first"
                    ))
                })?;
                Base::open(&path, None)
            }
        }
    }

    fn open(path: &Path, rename: Option<OsString>) -> Result<Base> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty()).map_err(|errno| {
            let shown = escape(path.as_os_str().as_bytes());
            Error::Destination(format!(
                "cannot open the directory {shown}: {}; create it first",
                errno.desc()
            ))
        })?;
        Ok(Base { dir: Some(Arc::new(dir)), rename, shown: path.to_path_buf() })
    }

    /// Where an entry goes. `None`: its directory is not there, in a dry run.
    pub fn place(&self, entry: &[u8], dry_run: bool) -> Result<Option<Place>> {
        self.place_after(&mut LastDirectory::default(), entry, dry_run)
    }

    /// The same, for entries of one base, one after the other.
    pub fn place_after(
        &self,
        last: &mut LastDirectory,
        entry: &[u8],
        dry_run: bool,
    ) -> Result<Option<Place>> {
        let relative = match &self.rename {
            Some(name) => Path::new(name),
            None => Path::new(OsStr::from_bytes(entry)),
        };
        let path = self.shown.join(relative);
        let (Some(base), Some(name)) = (&self.dir, relative.file_name()) else {
            if dry_run {
                return Ok(None);
            }
            return Err(Error::refused(path, "there is a directory where a file must go; remove it first"));
        };
        let parent = relative.parent().unwrap_or(Path::new(""));
        let dir = match &last.0 {
            _ if parent.as_os_str().is_empty() => Arc::clone(base),
            Some((opened, dir)) if opened == parent => Arc::clone(dir),
            _ => match sys::open_beneath(base.as_fd(), parent, OFlag::O_PATH | OFlag::O_DIRECTORY, 0) {
                Ok(dir) => {
                    let dir = Arc::new(dir);
                    last.0 = Some((parent.to_path_buf(), Arc::clone(&dir)));
                    dir
                }
                Err(error) if dry_run && error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Error::file("open the directory of", &path)(error)),
            },
        };
        Ok(Some(Place { dir, name: name.to_owned(), path }))
    }
}

/// Makes a directory that its owner can fill meanwhile. Returns the permissions
/// that it is to have at the end, if they are not those that it has now.
pub(crate) fn make_directory(base: &Base, path: &[u8], mode: u32) -> Result<Option<u32>> {
    const OWNER: u32 = 0o700;
    if path.is_empty() {
        return Ok(None);
    }
    let Some(place) = base.place(path, false)? else { return Ok(None) };
    let made = sys::make_dir_at(&place.dir, &place.name, mode | OWNER);
    if made.map_err(Error::file("create the directory", &place.path))? {
        return Ok(Some(mode));
    }
    let stat = place
        .stat()?
        .filter(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR);
    let Some(stat) = stat else {
        return Err(Error::refused(&place.path, "is in the way of a directory; remove it first"));
    };
    let mode = stat.st_mode & 0o7777;
    if mode & OWNER == OWNER || nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    // It may be somebody else's, and writable all the same.
    let opened = sys::set_mode_at(&place.dir, &place.name, mode | OWNER).is_ok();
    Ok(opened.then_some(mode))
}

/// Makes or replaces a symlink; a temporary one is renamed over the old.
pub(crate) fn make_symlink(base: &Base, path: &[u8], link: &[u8], attributes: &Attributes) -> Result<()> {
    let Some(place) = base.place(path, false)? else { return Ok(()) };
    let link = OsStr::from_bytes(link);
    if sys::read_link_at(&place.dir, &place.name).is_ok_and(|now| now == link) {
        return place.set_attributes(attributes);
    }
    place.put_symlink(link)?;
    place.set_attributes(attributes)
}

/// What an entry is to carry, as the options want it.
pub(crate) fn attributes_of(
    metadata: &Metadata,
    options: &Options,
    umask: u32,
    names: &mut Names,
) -> Attributes {
    let Metadata { mode, mtime, owner } = metadata;
    let mode = mode.map(|mode| mode & 0o7777);
    let numbers = owner.as_ref().filter(|_| options.owner || options.group);
    let numbers = numbers.map(|owner| names.numbers_of(owner));
    Attributes {
        mode: mode.filter(|_| options.perms),
        new_mode: mode.unwrap_or(0o666) & 0o777 & !umask,
        mtime: mtime.filter(|_| options.times).map(|(s, ns)| (s, ns.min(999_999_999))),
        uid: numbers.filter(|_| options.owner).map(|(uid, _)| uid),
        gid: numbers.filter(|_| options.group).map(|(_, gid)| gid),
    }
}
