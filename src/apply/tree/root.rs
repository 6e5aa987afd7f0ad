//! The directory that entries are relative to, and the places in it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;

use crate::apply::aside::Asides;
use crate::apply::aside::alternate::{self, AlternateDirs};
use crate::apply::aside::backup::Backups;
use crate::apply::aside::similar::Similar;
use crate::apply::place::Place;
use crate::apply::place::workplace::Workplaces;
use crate::apply::tree::own::OwnDirectories;
use crate::apply::{Opened, Opening};
use crate::confinement::NamedPath;
use crate::error::{Error, Result, failed, printable};
use crate::options::{Commit, Options};
use crate::source::{Asked, Kind, Metadata};
use crate::sys;

/// The destination of a run.
#[derive(Debug, Clone)]
pub struct Target {
    /// The destination as the user wrote it.
    pub path: NamedPath,
    /// It must be a directory: trailing slash, or several sources.
    pub directory: bool,
    /// The umask of this process.
    pub umask: u32,
    /// What may come, and where. `None`: anything, anywhere.
    pub asked: Option<Asked>,
    /// Paths beside it.
    pub asides: Asides,
}

impl Target {
    /// A destination for whatever comes.
    pub fn new(path: NamedPath, directory: bool, umask: u32) -> Target {
        Target { path, directory, umask, asked: None, asides: Asides::default() }
    }

    /// Whether something was asked for that is so.
    pub fn is_asked(&mut self, path: &[u8], kind: &Kind) -> bool {
        self.asked.as_mut().is_none_or(|asked| asked.allows(path, kind))
    }

    /// Whether a directory was asked for with what it holds.
    pub fn is_asked_whole(&mut self, directory: &[u8]) -> bool {
        self.asked.as_mut().is_none_or(|asked| asked.allows_what_is_in(directory))
    }

    /// Whether what is asked for has all of these extended attributes.
    pub fn has_asked_attributes(&self, metadata: &Metadata) -> bool {
        self.asked.as_ref().is_none_or(|asked| asked.allows_attributes(metadata))
    }
}

/// The directory that entries are relative to.
#[derive(Clone)]
pub struct DestinationRoot {
    /// `None`: a dry run, and it is not there.
    pub(super) dir: Option<Arc<OwnedFd>>,
    /// The single file goes under this name.
    pub(super) rename: Option<OsString>,
    /// The directory was made for this run.
    pub(super) is_new: bool,
    /// Directories that were made, and in which nobody else makes names.
    pub(super) own: Arc<OwnDirectories>,
    /// It is one of them.
    is_own: bool,
    pub(super) shown: PathBuf,
    pub(super) backups: Option<Arc<Backups>>,
    similar: Option<Arc<Similar>>,
    alternates: Option<Arc<AlternateDirs>>,
    pub(super) workplaces: Option<Arc<Workplaces>>,
    /// Symlinks to directories are as good as directories.
    follow: bool,
}

/// The directory below a root that was opened last: mostly the next entry lies in it,
/// too. It belongs to that root.
#[derive(Default)]
pub struct LastDirectory(Option<OpenedDirectory>);

struct OpenedDirectory {
    path: PathBuf,
    dir: Arc<OwnedFd>,
    /// This run made it, and nobody else makes names in it.
    is_own: bool,
}

impl LastDirectory {
    /// It is kept as long as nothing is written: somebody may put another in the place of one
    /// that is not ours alone. `opening`: what became of a destination in it.
    pub fn after(&mut self, opening: &Result<Opening>) {
        let is_equal = matches!(opening, Ok(Opening { opened: Opened::Equal { .. }, .. }));
        self.0.take_if(|opened| !(is_equal || opened.is_own));
    }
}

impl DestinationRoot {
    /// Finds, or makes, what the destination names. `single`: there is one source, and it
    /// is no directory.
    ///
    /// # Errors
    ///
    /// [`Error::Destination`] when it cannot be had.
    pub fn find(target: &Target, single: bool, options: &Options) -> Result<DestinationRoot> {
        let path = &target.path;
        if options.mkpath && !options.dry_run {
            path.parent()
                .create_all()
                .map_err(|error| Error::Destination(failed("make the way to", path.path(), &error)))?;
        }
        let there = path.metadata();
        if there.as_ref().is_ok_and(|metadata| metadata.is_dir()) {
            return DestinationRoot::open(path, None, false);
        }
        let shown = printable(path.path());
        if single && !target.directory {
            // A file that is written in place is found through symlinks, as a device is.
            let is_symlink = || path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
            let in_place = options.commit == Commit::InPlace && is_symlink();
            let followed = there.is_ok_and(|metadata| in_place || !metadata.is_file());
            let path = if followed { followed_path(path)? } else { path.clone() };
            let Some(name) = path.path().file_name() else {
                return Err(Error::Destination(format!("{shown} names no file")));
            };
            if options.mkpath && options.dry_run && path.parent().is_missing() {
                return Ok(DestinationRoot::absent(&path, Some(name.to_owned())));
            }
            return DestinationRoot::open(&path.parent(), Some(name.to_owned()), false);
        }
        match there {
            Ok(_) => Err(Error::Destination(format!(
                "{shown} is not a directory, and more than one file is to go there"
            ))),
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                Err(Error::Destination(format!(
                    "{shown} is no directory, which a slash at the end asks for: leave the slash out to name a file"
                )))
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Destination(failed("open the directory", path.path(), &error)))
            }
            Err(_) if options.dry_run => Ok(DestinationRoot::absent(path, None)),
            Err(_) => {
                path.create_dir().map_err(|error| {
                    let todo = match error.kind() {
                        std::io::ErrorKind::NotFound => "; create its parent first, or give --mkpath",
                        _ => "",
                    };
                    Error::Destination(failed("create the directory", path.path(), &error) + todo)
                })?;
                DestinationRoot::open(path, None, true)
            }
        }
    }

    /// In a dry run: it would be made.
    fn absent(path: &NamedPath, rename: Option<OsString>) -> DestinationRoot {
        let shown = path.path().to_path_buf();
        DestinationRoot {
            dir: None,
            rename,
            is_new: true,
            own: Arc::default(),
            is_own: false,
            shown,
            backups: None,
            similar: None,
            alternates: None,
            workplaces: None,
            follow: false,
        }
    }

    fn open(path: &NamedPath, rename: Option<OsString>, is_new: bool) -> Result<DestinationRoot> {
        let dir = path.open(OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(|error| {
            let is_missing = error.kind() == std::io::ErrorKind::NotFound;
            let todo = match is_missing {
                true if path.path().starts_with("/dev") => "; lsblk shows which devices there are",
                true => "; create it first",
                false => "",
            };
            Error::Destination(failed("open the directory", path.path(), &error) + todo)
        })?;
        let shown = path.path().to_path_buf();
        let own = Arc::<OwnDirectories>::default();
        if is_new && let Ok(stat) = fstat(&dir) {
            own.add(&stat);
        }
        let is_own = own.has(&dir);
        Ok(DestinationRoot {
            dir: Some(Arc::new(dir)),
            rename,
            is_new,
            own,
            is_own,
            shown,
            backups: None,
            similar: None,
            alternates: None,
            workplaces: None,
            follow: false,
        })
    }

    /// The same, with what the options name beside it: for what is replaced or removed, and to
    /// begin from.
    pub(super) fn with_asides(mut self, target: &Target, options: &Options) -> Result<DestinationRoot> {
        let base = if self.is_file() { target.path.parent() } else { target.path.clone() };
        if let Some(backup) = options.backup.as_ref().filter(|_| !options.dry_run) {
            let dir = target.asides.backup_dir.as_ref();
            let backups = Backups::open(&backup.suffix, dir, &base, options)?;
            self.backups = Some(Arc::new(backups));
        }
        if !target.asides.basis.is_empty() {
            self.similar = Some(Arc::new(Similar::open(&target.asides.basis, &base, options.hole_map)?));
        }
        if let Some(alternates) = &options.alternates {
            let dirs = AlternateDirs::open(alternates.kind, &target.asides.alternates, &base)?;
            self.alternates = Some(Arc::new(dirs));
        }
        self.workplaces = match (&target.asides.workplace, &options.workplace.partial_dir) {
            (Some(path), _) => match &self.dir {
                Some(dir) => Some(Arc::new(Workplaces::open(path, &base, dir)?)),
                None => None,
            },
            (None, Some(name)) => Some(Arc::new(Workplaces::named(name)?)),
            _ => None,
        };
        self.follow = options.kinds.keep_dir_links;
        Ok(self)
    }

    /// Whether symlinks to directories are as good as directories.
    pub(super) fn follows_links(&self) -> bool {
        self.follow
    }

    /// Whether the destination names the single file itself, and not a directory.
    pub fn is_file(&self) -> bool {
        self.rename.is_some()
    }

    /// How to name the destination of an entry to people.
    pub fn path_of(&self, entry: &[u8]) -> PathBuf {
        self.shown.join(self.relative(entry))
    }

    fn relative<'a>(&'a self, entry: &'a [u8]) -> &'a Path {
        self.rename.as_ref().map_or(Path::new(OsStr::from_bytes(entry)), Path::new)
    }

    /// Where an entry goes. `None`: its directory is not there, in a dry run, or where
    /// nothing new is made.
    ///
    /// # Errors
    ///
    /// When its directory cannot be opened.
    pub fn place(&self, entry: &[u8], dry_run: bool) -> Result<Option<Place>> {
        self.place_after(&mut LastDirectory::default(), entry, dry_run)
    }

    /// Where an entry goes, for callers that place the entries of one root one after the
    /// other: `last` spares them the lookup of a directory that was just opened.
    ///
    /// # Errors
    ///
    /// Those of [`DestinationRoot::place`].
    pub fn place_after(
        &self,
        last: &mut LastDirectory,
        entry: &[u8],
        dry_run: bool,
    ) -> Result<Option<Place>> {
        let (relative, path) = (self.relative(entry), self.path_of(entry));
        let (Some(root), Some(name)) = (&self.dir, relative.file_name()) else {
            if dry_run {
                return Ok(None);
            }
            return Err(Error::refused(path, "there is a directory where a file must go; remove it first"));
        };
        let parent = relative.parent().unwrap_or(Path::new(""));
        let (dir, is_own) = match &last.0 {
            _ if parent.as_os_str().is_empty() => (Arc::clone(root), self.is_own),
            Some(opened) if opened.path == parent => (Arc::clone(&opened.dir), opened.is_own),
            _ => match sys::open_dir(root.as_fd(), parent, OFlag::O_PATH | OFlag::O_DIRECTORY, self.follow) {
                Ok(dir) => {
                    let (is_own, dir) = (self.own.has(&dir), Arc::new(dir));
                    let path = parent.to_path_buf();
                    last.0 = Some(OpenedDirectory { path, dir: Arc::clone(&dir), is_own });
                    (dir, is_own)
                }
                Err(error) if dry_run && sys::is_no_directory(&error) => return Ok(None),
                Err(error) => return Err(Error::file("open the directory of", &path)(error)),
            },
        };
        let place = Place::new(dir, name.to_owned(), path).named_itself(self.is_file());
        let place = place.with_backup(self.backups.as_ref(), parent);
        let place = place.with_workplaces(self.workplaces.as_ref());
        let alternates = alternate::at(self.alternates.as_ref(), parent);
        let is_own = is_own && self.workplaces.is_none();
        Ok(Some(Place { similar: self.similar.clone(), alternates, is_own, ..place }))
    }
}

/// Where a path leads, for a destination that is written as it is found there.
fn followed_path(path: &NamedPath) -> Result<NamedPath> {
    if !path.is_confined() {
        return Ok(NamedPath::here(path.path().canonicalize().unwrap_or(path.path().to_path_buf())));
    }
    if path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) {
        let shown = printable(path.path());
        return Err(Error::Destination(format!("{shown} is a symlink: name the place that it leads to")));
    }
    Ok(path.clone())
}
