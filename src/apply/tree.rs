//! The directory that everything is received into, and what a tree needs there beside
//! the content of its files: directories, symlinks, attributes. Called by whoever takes
//! entries: from a connection, from a shell, or from a walk on this machine.

mod changes;
mod root;

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::{FileStat, SFlag};

pub use crate::apply::aside::Asides;
use crate::apply::attributes::Attributes;
pub use crate::apply::others::Removed;
use crate::apply::others::{Others, Root, in_the_way};
use crate::apply::place::{self, Place};
use crate::error::{Error, Failure, Result};
use crate::options::Options;
use crate::report::Changes;
use crate::source::Metadata;
use crate::source::Names;
use crate::sys;
pub use root::{DestinationRoot, LastDirectory, Target};

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
    /// they are asked for. Returns how it differs from what was there.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or what is in its place may not go.
    pub fn make_directory(&mut self, id: u64, path: &[u8], metadata: &Metadata) -> Result<Changes> {
        if self.options.transfer.existing && !self.is_there(path)? {
            return Ok(Changes::default());
        }
        let mut attributes = self.attributes(metadata);
        let is_only_named = path.is_empty() && !self.root.is_new;
        if is_only_named {
            attributes.mode.take_if(|_| !self.options.destination_perms);
            attributes.mtime.take_if(|_| !self.options.destination_times);
        }
        let changes = self.changes_of_directory(path, &attributes);
        if self.options.dry_run {
            return Ok(changes);
        }
        let Made { closed, identity } = make_directory(&self.root, path, attributes.new_mode, &self.options)?;
        let attributes = Attributes { mode: attributes.mode.or(closed), ..attributes };
        self.directories.push(Directory { id, path: path.to_vec(), identity, attributes, closed });
        Ok(changes)
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
    /// dry run makes none. A directory in its place goes first. In the place of a destination
    /// that was named itself, only another symlink is replaced. Returns how it differs from what
    /// was there, and which attributes may not be set.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or a directory that may not go is in its place.
    pub fn make_symlink(
        &mut self,
        path: &[u8],
        link: &[u8],
        metadata: &Metadata,
    ) -> Result<(Changes, Option<Failure>)> {
        let rules = &self.options.transfer;
        if rules.existing || rules.ignore_existing {
            let stays = if self.is_there(path)? { rules.ignore_existing } else { rules.existing };
            if stays {
                return Ok((Changes::default(), None));
            }
        }
        let attributes = self.attributes(metadata);
        let changes = self.changes_of_symlink(path, link, &attributes);
        if self.options.dry_run {
            return Ok((changes, None));
        }
        let Some(place) = self.root.place(path, false)? else { return Ok((changes, None)) };
        let link = OsStr::from_bytes(link);
        if self.root.is_file() {
            refuse_to_lose(&place)?;
        }
        let unset = if sys::read_link_at(&place.dir, &place.name).is_ok_and(|now| now == link) {
            place.set_attributes_of_link(&place.name, &attributes)
        } else {
            if place.stat()?.is_some_and(|stat| sys::kind_of(&stat) == SFlag::S_IFDIR) {
                in_the_way::remove(&place, &self.options)?;
            }
            place.put_symlink(link, &attributes)
        }?;
        Ok((changes, unset))
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
    let is_directory = |stat: &FileStat| sys::kind_of(stat) == SFlag::S_IFDIR;
    let (mut is_new, mut stat) = (make()?, place.stat()?);
    if !is_new && !stat.as_ref().is_some_and(is_directory) {
        in_the_way::remove(&place, options)?;
        (is_new, stat) = (make()?, place.stat()?);
    }
    let Some(stat) = stat.filter(is_directory) else {
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
