//! The directory that everything is received into, and what a tree needs there beside
//! the content of its files: directories, symlinks, attributes. Called by whoever takes
//! entries: from a connection, from a shell, or from a walk on this machine.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;

pub use crate::apply::aside::Asides;
use crate::apply::aside::backup::Backups;
use crate::apply::aside::similar::Similar;
use crate::apply::attributes::Attributes;
pub use crate::apply::others::Removed;
use crate::apply::others::{Others, Root, in_the_way};
use crate::apply::place::{self, Place};
use crate::confinement::NamedPath;
use crate::error::{Error, Failure, Result, printable};
use crate::options::{Commit, Options};
use crate::source::Metadata;
use crate::source::Names;
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
    /// Under which names something may come, right below the destination. `None`: any.
    pub asked: Option<Vec<Vec<u8>>>,
    /// Paths beside it.
    pub asides: Asides,
}

impl Target {
    /// A destination for whatever comes.
    pub fn new(path: NamedPath, directory: bool, umask: u32) -> Target {
        Target { path, directory, umask, asked: None, asides: Asides::default() }
    }

    /// Whether something was asked for that goes there.
    pub fn is_asked(&self, path: &[u8]) -> bool {
        let top = path.split(|&byte| byte == b'/').next().unwrap_or_default();
        self.asked.as_ref().is_none_or(|asked| asked.iter().any(|name| name == top))
    }
}

/// The directory that entries are relative to.
#[derive(Clone)]
pub struct DestinationRoot {
    /// `None`: a dry run, and it is not there.
    dir: Option<Arc<OwnedFd>>,
    /// The single file goes under this name.
    rename: Option<OsString>,
    /// The directory was made for this run.
    is_new: bool,
    shown: PathBuf,
    backups: Option<Arc<Backups>>,
    similar: Option<Arc<Similar>>,
}

/// The directory below a root that was opened last: mostly the next entry lies in it,
/// too. It belongs to that root.
#[derive(Default)]
pub struct LastDirectory(Option<(PathBuf, Arc<OwnedFd>)>);

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
            path.create_parents().map_err(|error| {
                Error::Destination(format!("cannot make the way to {}: {error}", printable(path.path())))
            })?;
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
                let (rename, shown) = (Some(name.to_owned()), path.path().to_path_buf());
                return Ok(DestinationRoot {
                    dir: None,
                    rename,
                    is_new: true,
                    shown,
                    backups: None,
                    similar: None,
                });
            }
            return DestinationRoot::open(&path.parent(), Some(name.to_owned()), false);
        }
        match there {
            Ok(_) => Err(Error::Destination(format!(
                "{shown} is not a directory, and more than one file is to go there"
            ))),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Destination(format!("cannot open the directory {shown}: {error}")))
            }
            Err(_) if options.dry_run => Ok(DestinationRoot {
                dir: None,
                rename: None,
                is_new: true,
                shown: path.path().to_path_buf(),
                backups: None,
                similar: None,
            }),
            Err(_) => {
                path.create_dir().map_err(|error| {
                    Error::Destination(format!(
                        "cannot create the directory {shown}: {error}; create its parent first"
                    ))
                })?;
                DestinationRoot::open(path, None, true)
            }
        }
    }

    fn open(path: &NamedPath, rename: Option<OsString>, is_new: bool) -> Result<DestinationRoot> {
        let dir = path.open(OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(|error| {
            let shown = printable(path.path());
            Error::Destination(format!("cannot open the directory {shown}: {error}; create it first"))
        })?;
        let shown = path.path().to_path_buf();
        Ok(DestinationRoot { dir: Some(Arc::new(dir)), rename, is_new, shown, backups: None, similar: None })
    }

    /// The same, with what the options name beside it: for what is replaced or removed, and to
    /// begin from.
    fn with_asides(mut self, target: &Target, options: &Options) -> Result<DestinationRoot> {
        let base = if self.is_file() { target.path.parent() } else { target.path.clone() };
        if let Some(backup) = options.backup.as_ref().filter(|_| !options.dry_run) {
            let backups = Backups::open(&backup.suffix, target.asides.backup_dir.as_ref(), &base)?;
            self.backups = Some(Arc::new(backups));
        }
        if !target.asides.basis.is_empty() {
            self.similar = Some(Arc::new(Similar::open(&target.asides.basis, &base)?));
        }
        Ok(self)
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
        let dir = match &last.0 {
            _ if parent.as_os_str().is_empty() => Arc::clone(root),
            Some((opened, dir)) if opened == parent => Arc::clone(dir),
            _ => match sys::open_beneath(root.as_fd(), parent, OFlag::O_PATH | OFlag::O_DIRECTORY, 0) {
                Ok(dir) => {
                    let dir = Arc::new(dir);
                    last.0 = Some((parent.to_path_buf(), Arc::clone(&dir)));
                    dir
                }
                Err(error) if dry_run && error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Error::file("open the directory of", &path)(error)),
            },
        };
        let place = Place::new(dir, name.to_owned(), path).named_itself(self.is_file());
        let place = place.with_backup(self.backups.as_ref(), parent);
        Ok(Some(Place { similar: self.similar.clone(), ..place }))
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

/// A tree that is being received.
pub struct DestinationTree {
    root: DestinationRoot,
    options: Arc<Options>,
    umask: u32,
    names: Names,
    /// Directories that get their attributes when everything is in them.
    directories: Vec<Directory>,
    others: Others,
}

struct Directory {
    id: u64,
    path: Vec<u8>,
    /// Device and inode; `None`: that of the root, which is held.
    identity: Option<(u64, u64)>,
    attributes: Attributes,
    /// The permissions that it has to get back, as it was opened to be filled.
    closed: Option<u32>,
}

impl DestinationTree {
    /// Finds, or makes, what the destination names. `single`: there is one source, and it
    /// is no directory.
    ///
    /// # Errors
    ///
    /// [`Error::Destination`] when it cannot be had.
    pub fn open(target: &Target, single: bool, options: Arc<Options>) -> Result<DestinationTree> {
        let root = DestinationRoot::find(target, single, &options)?.with_asides(target, &options)?;
        let (umask, names) = (target.umask, Names::default());
        let others = Others::default();
        Ok(DestinationTree { root, options, umask, names, directories: Vec::new(), others })
    }

    /// The directory that entries are relative to.
    pub fn root(&self) -> &DestinationRoot {
        &self.root
    }

    /// What an entry is to carry, as the options want it.
    pub fn attributes(&mut self, metadata: &Metadata) -> Attributes {
        let Metadata { mode, mtime, owner } = metadata;
        let options = &self.options;
        let mode = mode.map(|mode| mode & 0o7777);
        let numbers = owner.as_ref().filter(|_| options.owner || options.group);
        let numbers = numbers.map(|owner| self.names.numbers_of(owner));
        Attributes {
            mode: mode.filter(|_| options.perms),
            new_mode: mode.unwrap_or(0o666) & 0o777 & !self.umask,
            source_time: mtime.map(|(seconds, _)| seconds),
            mtime: mtime.filter(|_| options.times).map(|(s, ns)| (s, ns.min(999_999_999))),
            uid: numbers.filter(|_| options.owner).map(|(uid, _)| uid),
            gid: numbers.filter(|_| options.group).map(|(_, gid)| gid),
        }
    }

    /// Makes a directory that its owner can fill meanwhile. It gets its attributes from
    /// [`DestinationTree::finish`]; `id` is the caller's number for it. A dry run makes none.
    /// What was there, and was only named as the destination, keeps mode and time unless
    /// they are asked for.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or what is in its place may not go.
    pub fn make_directory(&mut self, id: u64, path: &[u8], metadata: &Metadata) -> Result<()> {
        if self.options.dry_run {
            return Ok(());
        }
        if self.options.transfer.existing && !self.is_there(path)? {
            return Ok(());
        }
        let attributes = self.attributes(metadata);
        let Made { closed, identity } = make_directory(&self.root, path, attributes.new_mode, &self.options)?;
        let mut attributes = Attributes { mode: attributes.mode.or(closed), ..attributes };
        if path.is_empty() && !self.root.is_new {
            attributes.mode.take_if(|_| !self.options.destination_perms);
            attributes.mtime.take_if(|_| !self.options.destination_times);
        }
        self.directories.push(Directory { id, path: path.to_vec(), identity, attributes, closed });
        Ok(())
    }

    /// Whether something has the name of an entry.
    fn is_there(&self, path: &[u8]) -> Result<bool> {
        if path.is_empty() {
            return Ok(true);
        }
        let place = self.root.place(path, true)?;
        Ok(place.map(|place| place.stat()).transpose()?.flatten().is_some())
    }

    /// Makes or replaces a symlink to `link`; a temporary one is renamed over the old. A
    /// dry run makes none. A directory in its place goes first. In the place of a destination that was named itself, only another
    /// symlink is replaced. Returns which attributes may not be set.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or a directory that may not go is in its place.
    pub fn make_symlink(&mut self, path: &[u8], link: &[u8], metadata: &Metadata) -> Result<Option<Failure>> {
        if self.options.dry_run {
            return Ok(None);
        }
        let rules = &self.options.transfer;
        if rules.existing || rules.ignore_existing {
            let stays = if self.is_there(path)? { rules.ignore_existing } else { rules.existing };
            if stays {
                return Ok(None);
            }
        }
        let attributes = self.attributes(metadata);
        let Some(place) = self.root.place(path, false)? else { return Ok(None) };
        let link = OsStr::from_bytes(link);
        if self.root.is_file() {
            refuse_to_lose(&place)?;
        }
        if sys::read_link_at(&place.dir, &place.name).is_ok_and(|now| now == link) {
            place.set_attributes_of_link(&place.name, &attributes)
        } else {
            if is_directory(&place)? {
                in_the_way::remove(&place, &self.options)?;
            }
            place.put_symlink(link, &attributes)
        }
    }

    /// A directory of the source has these names, and maybe more.
    pub fn source_has(&mut self, directory: Vec<u8>, names: Vec<Vec<u8>>) {
        self.others.has(directory, names);
    }

    /// Removes what else is in the directories that were told of since this was called last.
    /// A dry run removes nothing. `each` is told of every entry.
    ///
    /// # Errors
    ///
    /// Those of `each`.
    pub fn remove_others(&mut self, each: &mut dyn FnMut(Removed) -> Result<()>) -> Result<()> {
        let DestinationRoot { dir: Some(dir), rename: None, shown, backups, .. } = &self.root else {
            return Ok(());
        };
        let root = Root { dir, shown, backups: backups.as_ref() };
        self.others.remove(root, &self.options, each)
    }

    /// Gives directories their attributes, the deepest first: files that are made in a
    /// directory change its time, and its permissions may forbid to make them. `each` gets
    /// the number of every directory, and which attributes may not be set, or why it failed.
    pub fn finish(mut self, mut each: impl FnMut(u64, Result<Option<Failure>>)) {
        let directories = std::mem::take(&mut self.directories);
        let Some(root) = &self.root.dir else { return };
        for Directory { id, path, identity, attributes, .. } in directories.into_iter().rev() {
            let (shown, path) = (self.root.path_of(&path), Path::new(OsStr::from_bytes(&path)));
            each(id, place::finish_directory(root.as_fd(), path, identity, &attributes, &shown));
        }
    }
}

/// A run that ends early leaves no directory open that was not.
impl Drop for DestinationTree {
    fn drop(&mut self) {
        let Some(root) = &self.root.dir else { return };
        for Directory { path, identity, closed, .. } in self.directories.iter().rev() {
            let Some(mode) = *closed else { continue };
            let (path, attributes) = (
                Path::new(OsStr::from_bytes(path)),
                Attributes { mode: Some(mode), ..Attributes::default() },
            );
            // The error of the run is the one to report.
            let _ = place::finish_directory(root.as_fd(), path, *identity, &attributes, path);
        }
    }
}

/// What the user named as the destination becomes a symlink only if there is none or another.
fn refuse_to_lose(place: &Place) -> Result<()> {
    let kind = place.stat()?.as_ref().map(sys::kind_of);
    if kind.is_none_or(|kind| kind == SFlag::S_IFLNK) {
        return Ok(());
    }
    let why = "would be replaced by a symlink; remove it first, or name a source that is a file";
    Err(Error::refused(&place.path, why))
}

fn is_directory(place: &Place) -> Result<bool> {
    Ok(place.stat()?.is_some_and(|stat| sys::kind_of(&stat) == SFlag::S_IFDIR))
}

/// A directory that can be filled.
#[derive(Default)]
struct Made {
    /// The permissions that it is to have at the end, if they are not those that it has now.
    closed: Option<u32>,
    /// Device and inode.
    identity: Option<(u64, u64)>,
}

/// Makes a directory that its owner can fill meanwhile.
fn make_directory(root: &DestinationRoot, path: &[u8], mode: u32, options: &Options) -> Result<Made> {
    const OWNER: u32 = 0o700;
    if path.is_empty() {
        return Ok(Made::default());
    }
    let Some(place) = root.place(path, false)? else { return Ok(Made::default()) };
    let make = || {
        let made = sys::make_dir_at(&place.dir, &place.name, mode | OWNER);
        made.map_err(Error::file("create the directory", &place.path))
    };
    let mut is_new = make()?;
    if !is_new && !is_directory(&place)? {
        in_the_way::remove(&place, options)?;
        is_new = make()?;
    }
    let stat = place.stat()?.filter(|stat| sys::kind_of(stat) == SFlag::S_IFDIR);
    let Some(stat) = stat else {
        return Err(Error::refused(&place.path, "is in the way of a directory; remove it first"));
    };
    let identity = Some((stat.st_dev, stat.st_ino));
    if is_new {
        return Ok(Made { closed: (mode & OWNER != OWNER).then_some(mode), identity });
    }
    let mode = stat.st_mode & 0o7777;
    if mode & OWNER == OWNER || nix::unistd::geteuid().is_root() {
        return Ok(Made { closed: None, identity });
    }
    // It may be somebody else's, and writable all the same.
    let opened = sys::set_mode_at(&place.dir, &place.name, mode | OWNER).is_ok();
    Ok(Made { closed: opened.then_some(mode), identity })
}
