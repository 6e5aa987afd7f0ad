//! The directory that everything is received into, and what a tree needs there beside
//! the content of its files: directories, symlinks, attributes. Called by whoever takes
//! entries: from a connection, from a shell, or from a walk on this machine.

mod changes;
mod delayed;
mod nodes;
mod own;
mod root;
mod unsynced;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag, fstat};

pub use crate::apply::aside::Asides;
use crate::apply::attributes::{Attributes, Extended};
pub use crate::apply::others::Removed;
use crate::apply::others::{Others, Root, in_the_way};
use crate::apply::place::{self, Place};
use crate::error::{Error, Failure, Result};
use crate::options::Options;
use crate::report::Changes;
use crate::source::{Contents, Kind, Metadata, Names};
use crate::sys;
use crate::sys::xattrs::{Acl, AclEntry};
pub use delayed::DelayedFile;
pub use root::{DestinationRoot, LastDirectory, Target};
pub(in crate::apply) use unsynced::Unsynced;

/// For a directory that gets its attributes.
const PATH_ONLY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);

/// A tree that is being received.
pub struct DestinationTree {
    root: DestinationRoot,
    options: Arc<Options>,
    umask: u32,
    names: Names,
    /// Directories that get their attributes when everything is in them.
    directories: Vec<Directory>,
    others: Others,
    /// A device node gives access to the device, wherever it lies.
    makes_devices: bool,
    /// What is no file, and could not be made.
    failed: HashSet<Vec<u8>>,
    /// Where names were made or removed.
    unsynced: Unsynced,
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
        let (umask, mut names) = (target.umask, Names::default());
        names.check(&options.attributes)?;
        Ok(DestinationTree {
            root,
            options,
            umask,
            names,
            directories: Vec::new(),
            others: Others::default(),
            makes_devices: !target.path.is_confined(),
            failed: HashSet::new(),
            unsynced: Unsynced::default(),
        })
    }

    /// The directory that entries are relative to.
    pub fn root(&self) -> &DestinationRoot {
        &self.root
    }

    /// What an entry of this kind is to carry, as the options want it.
    pub fn attributes(&mut self, kind: &Kind, metadata: &Metadata) -> Attributes {
        let Metadata { mode, mtime, atime, owner, acls, xattrs } = metadata;
        let (options, rules) = (&self.options, &self.options.attributes);
        let is_directory = *kind == Kind::Directory;
        let omits_times = match kind {
            Kind::Directory => rules.omit_dir_times,
            Kind::Symlink(_) => rules.omit_link_times,
            _ => false,
        };
        let mode = mode.map(|mode| rules.chmod.apply(mode & 0o7777, is_directory));
        let numbers = owner.as_ref().filter(|_| options.owner || options.group);
        let numbers = numbers.map(|owner| self.names.numbers_of(owner, rules));
        let time = |(seconds, nanoseconds): (i64, u32)| (seconds, nanoseconds.min(999_999_999));
        let is_executable = mode.map(|mode| mode & 0o111 != 0);
        let names = &mut self.names;
        let mut numbered = |entries: &[AclEntry]| {
            let entry =
                |entry: &AclEntry| AclEntry { number: names.number_of(entry, rules), ..entry.clone() };
            let entries: Vec<_> = entries.iter().map(entry).collect();
            (!entries.is_empty()).then(|| Acl::of(&entries))
        };
        let acls = acls.as_ref().filter(|_| rules.acls);
        let acls = acls.map(|acls| (numbered(&acls.access), numbered(&acls.default)));
        let xattrs = xattrs.clone().filter(|_| rules.xattrs);
        Attributes {
            mode: mode.filter(|_| options.perms),
            asked_set_id: rules.chmod.apply(0, is_directory) & 0o6000,
            new_mode: mode.unwrap_or(0o666) & 0o777 & !self.umask,
            executable: is_executable.filter(|_| rules.executability && matches!(kind, Kind::File { .. })),
            source_time: mtime.map(|(seconds, _)| seconds),
            mtime: mtime.filter(|_| options.times && !omits_times).map(time),
            atime: atime.filter(|_| rules.atimes && !omits_times).map(time),
            uid: numbers.filter(|_| options.owner && rules.superuser != Some(false)).map(|(uid, _)| uid),
            gid: numbers.filter(|_| options.group).map(|(_, gid)| gid).filter(|&gid| rules.may_give_to(gid)),
            superuser: rules.acts_as_superuser(),
            extended: Extended { acls, xattrs },
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
        let rules = &self.options.transfer;
        let is_in_the_way = || Ok(self.is_there(path)? && self.look_at_directory(path).is_none());
        if rules.existing && !self.is_there(path)?
            || rules.ignore_existing && !path.is_empty() && is_in_the_way()?
        {
            return self.left(path);
        }
        let mut attributes = self.attributes(&Kind::Directory, metadata);
        // Of one that is on the way to a source the name alone may be told.
        if *metadata == Metadata::default() {
            self.refuse_to_replace(path)?;
            attributes.new_mode = 0o777 & !self.umask;
        }
        let is_only_named = path.is_empty() && !self.root.is_new;
        if is_only_named {
            attributes.mode.take_if(|_| !self.options.destination_perms);
            attributes.mtime.take_if(|_| !self.options.destination_times);
        }
        let changes = self.changes_of_directory(path, &attributes);
        if self.options.dry_run {
            return Ok(changes);
        }
        // What is set at the end need not be open to others until then.
        let mode = attributes.new_mode & if attributes.mode.is_some() { !0o022 } else { !0 };
        let Made { closed, identity } = make_directory(&self.root, path, mode, &self.options)?;
        let attributes = Attributes { mode: attributes.mode.or(closed), ..attributes };
        self.directories.push(Directory { id, path: path.to_vec(), identity, attributes, closed });
        Ok(changes)
    }

    /// Refuses what is no directory and has the name of one that is only on the way.
    fn refuse_to_replace(&self, path: &[u8]) -> Result<()> {
        if path.is_empty() {
            return Ok(());
        }
        let Some(place) = self.root.place(path, true)? else { return Ok(()) };
        match place.stat()?.as_ref().map(sys::kind_of) {
            None | Some(SFlag::S_IFDIR) => Ok(()),
            Some(_) => Err(is_in_the_way(&place)),
        }
    }

    /// Whether something has the name of an entry.
    fn is_there(&self, path: &[u8]) -> Result<bool> {
        if path.is_empty() {
            return Ok(true);
        }
        let place = self.root.place(path, true)?;
        Ok(place.map(|place| place.stat()).transpose()?.flatten().is_some())
    }

    /// Removes what has the name of a source that is missing. What the user's rules protect
    /// stays, as does a directory that is not empty, unless the options say so, and a
    /// destination that was named itself. Returns its path, with a slash behind a directory's,
    /// if something was there.
    ///
    /// # Errors
    ///
    /// When it cannot be removed, or is in use.
    pub fn remove_missing(&mut self, path: &[u8]) -> Result<Option<Vec<u8>>> {
        if path.is_empty() || self.root.is_file() {
            return Ok(None);
        }
        let Some(place) = self.root.place(path, true)? else { return Ok(None) };
        let Some(stat) = place.stat()? else { return Ok(None) };
        if self.protects(path, sys::kind_of(&stat) == SFlag::S_IFDIR)? {
            return Ok(None);
        }
        if self.options.dry_run {
            in_the_way::check(&place, &self.options)?;
        } else {
            in_the_way::remove(&place, &self.options)?;
            self.unsynced.add(&place.dir);
        }
        let slash: &[u8] = if sys::kind_of(&stat) == SFlag::S_IFDIR { b"/" } else { b"" };
        Ok(Some([path, slash].concat()))
    }

    /// Whether a rule of the user's keeps something that the source does not have.
    fn protects(&mut self, path: &[u8], is_directory: bool) -> Result<bool> {
        let Some(root) = others_in(&self.root) else { return Ok(false) };
        let protects = self.others.protects(root, &self.options, path, is_directory);
        protects.map_err(|why| Error::refused(self.root.path_of(path), why))
    }

    /// A directory of the source has these names, and maybe more.
    pub fn source_has(&mut self, contents: Contents) {
        self.others.has(contents);
    }

    /// Removes what else is in the directories that were told of since this was called last.
    /// A dry run removes nothing. `each` is told of every entry.
    ///
    /// # Errors
    ///
    /// Those of `each`.
    pub fn remove_others(&mut self, each: &mut dyn FnMut(Removed) -> Result<()>) -> Result<()> {
        let Some(root) = others_in(&self.root) else { return Ok(()) };
        self.others.remove(root, &self.options, &mut self.unsynced, each)
    }

    /// Gives directories their attributes, the deepest first: files that are made in a
    /// directory change its time, and its permissions may forbid to make them. Names that were
    /// made or removed without a sync are on storage then. `each` gets the number of every
    /// directory, and which attributes may not be set, or why it failed.
    pub fn finish(mut self, mut each: impl FnMut(u64, Result<Option<Failure>>)) {
        let directories = std::mem::take(&mut self.directories);
        let unsynced = std::mem::take(&mut self.unsynced);
        let Some(root) = &self.root.dir else { return };
        if self.options.fsync
            && let Err(error) = unsynced.sync()
        {
            let first = directories.first().map_or(0, |directory| directory.id);
            each(first, Err(Error::file("sync what was made and removed in", &self.root.shown)(error)));
        }
        for Directory { id, path, identity, attributes, .. } in directories.into_iter().rev() {
            let (shown, path) = (self.root.path_of(&path), Path::new(OsStr::from_bytes(&path)));
            let dir = sys::open_dir(root.as_fd(), path, PATH_ONLY, self.root.follows_links());
            each(id, place::finish_directory(dir, identity, &attributes, &shown));
        }
    }
}

/// The destination as that from which something is removed, if it is a directory.
fn others_in(root: &DestinationRoot) -> Option<Root<'_>> {
    let follow = root.follows_links();
    match root {
        DestinationRoot { dir: Some(dir), rename: None, shown, backups, workplaces, .. } => {
            let (backups, workplaces) = (backups.as_ref(), workplaces.as_deref());
            Some(Root { dir, shown, backups, workplaces, follow })
        }
        _ => None,
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
            let dir = sys::open_dir(root.as_fd(), path, PATH_ONLY, self.root.follows_links());
            let _ = place::finish_directory(dir, *identity, &attributes, path);
        }
    }
}

/// A directory that can be filled.
#[derive(Default)]
struct Made {
    /// The permissions that it is to have at the end, if they are not those that it has now.
    closed: Option<u32>,
    /// Device and inode.
    identity: Option<(u64, u64)>,
}

/// What its owner needs to fill a directory.
const OWNER: u32 = 0o700;

/// Makes a directory that its owner can fill meanwhile.
fn make_directory(root: &DestinationRoot, path: &[u8], mode: u32, options: &Options) -> Result<Made> {
    if path.is_empty() {
        return Ok(Made::default());
    }
    let Some(place) = root.place(path, false)? else { return Ok(Made::default()) };
    let make = || {
        let made = sys::make_dir_at(&place.dir, &place.name, mode | OWNER);
        made.map_err(Error::file("create the directory", &place.path))
    };
    let is_directory = |stat: &FileStat| sys::kind_of(stat) == SFlag::S_IFDIR;
    if root.follows_links()
        && let Ok(dir) = sys::open_dir(place.dir.as_fd(), place.name.as_ref(), PATH_ONLY, true)
    {
        let stat = fstat(&dir).map_err(|errno| Error::file("look at", &place.path)(errno.into()))?;
        return Ok(opened(&place, &stat));
    }
    let (mut is_new, mut stat) = (make()?, place.stat()?);
    if !is_new && !stat.as_ref().is_some_and(is_directory) {
        in_the_way::remove(&place, options)?;
        (is_new, stat) = (make()?, place.stat()?);
    }
    let Some(stat) = stat.filter(is_directory) else {
        return Err(is_in_the_way(&place));
    };
    let identity = Some((stat.st_dev, stat.st_ino));
    if is_new {
        root.own.add(&stat);
        return Ok(Made { closed: (mode & OWNER != OWNER).then_some(mode), identity });
    }
    Ok(opened(&place, &stat))
}

fn is_in_the_way(place: &Place) -> Error {
    Error::refused(&place.path, "is in the way of a directory; remove it first")
}

/// Lets its owner fill a directory that is there and is so.
fn opened(place: &Place, stat: &FileStat) -> Made {
    let (mode, identity) = (stat.st_mode & 0o7777, Some((stat.st_dev, stat.st_ino)));
    if mode & OWNER == OWNER || sys::is_root() {
        return Made { closed: None, identity };
    }
    // It may be somebody else's, and writable all the same.
    let opened = sys::set_mode_at(&place.dir, &place.name, mode | OWNER).is_ok();
    Made { closed: opened.then_some(mode), identity }
}
