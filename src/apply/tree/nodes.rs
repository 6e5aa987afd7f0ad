//! What a tree has beside files and directories: symlinks, device nodes, fifos, sockets, and
//! other names of files. Each is made under a temporary name, and renamed: there is always
//! either the old one or the new.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use nix::sys::stat::{FileStat, SFlag};

use crate::apply::others::in_the_way;
use crate::apply::place::{Inode, Place};
use crate::apply::tree::DestinationTree;
use crate::error::{Error, Failure, Result};
use crate::in_use;
use crate::report::Changes;
use crate::source::{Kind, Metadata, Node};
use crate::sys::{self, kind_of};

/// How something differs from what was there, and which attributes may not be set.
type Made = Result<(Changes, Option<Failure>)>;

impl DestinationTree {
    /// Why a node is not made here, if it is not: that is no failure, as for rsync.
    pub fn why_not_made(&self, node: Node) -> Option<&'static str> {
        if !node.is_device() {
            return None;
        }
        if !self.makes_devices {
            return Some("this agent is confined to a directory, and makes no device nodes");
        }
        let may_try = self.options.attributes.acts_as_superuser();
        (!may_try).then_some("only root makes device nodes")
    }

    /// Makes or replaces a symlink to `link`. A dry run makes none. A directory in its place
    /// goes first. In the place of a destination that was named itself, only another symlink
    /// is replaced. Returns how it differs from what was there, and which attributes may not be
    /// set.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or a directory that may not go is in its place.
    pub fn make_symlink(&mut self, path: &[u8], link: &[u8], metadata: &Metadata) -> Made {
        let made = self.make_inode(path, &Inode::Symlink(OsStr::from_bytes(link)), metadata);
        self.noted(path, made)
    }

    /// The same for a device node, fifo or socket.
    ///
    /// # Errors
    ///
    /// Those of [`DestinationTree::make_symlink`].
    pub fn make_node(&mut self, path: &[u8], node: Node, metadata: &Metadata) -> Made {
        let made = self.make_inode(path, &Inode::Node(node), metadata);
        self.noted(path, made)
    }

    /// Notes what could not be made: nothing becomes another name of what is there instead.
    fn noted<T>(&mut self, path: &[u8], made: Result<T>) -> Result<T> {
        if made.is_err() && self.options.kinds.hard_links {
            self.failed.insert(path.to_vec());
        }
        made
    }

    fn make_inode(&mut self, path: &[u8], inode: &Inode, metadata: &Metadata) -> Made {
        if self.stays(path)? {
            return Ok((self.left(path)?, None));
        }
        let kind = match inode {
            Inode::Symlink(link) => Kind::Symlink(link.as_bytes().to_vec()),
            Inode::Node(node) => Kind::Node(*node),
        };
        let attributes = self.attributes(&kind, metadata);
        let changes = self.changes_of_inode(path, inode, &attributes);
        if self.options.dry_run {
            return Ok((changes, None));
        }
        let Some(place) = self.root.place(path, false)? else { return Ok((changes, None)) };
        let old = place.stat()?;
        if self.root.is_file() {
            refuse_to_lose(&place, old.as_ref(), inode)?;
        }
        let may_be_shared = self.options.kinds.hard_links;
        let is_there = inode.is_at(&place, old.as_ref(), may_be_shared);
        let unset = if is_there {
            place.set_attributes_of_inode(&place.name, inode, may_be_shared, &attributes)?
        } else if old.is_none() && place.take_inode_elsewhere(inode, &attributes)? {
            None
        } else {
            self.make_room(&place, old.as_ref())?;
            place.put_inode(inode, &attributes)?
        };
        self.has_name(&place, !is_there)?;
        Ok((changes, unset))
    }

    /// Makes something another name of what has the path `first`, which is in its place. A dry
    /// run makes none. Returns how it differs from what was there.
    ///
    /// # Errors
    ///
    /// When that is not there, or is a directory; when what has the name may not go, or is in
    /// use.
    pub fn make_hard_link(&mut self, path: &[u8], first: &[u8]) -> Result<Changes> {
        if self.stays(path)? {
            return self.left(path);
        }
        let dry_run = self.options.dry_run;
        let (place, first_place) = (self.root.place(path, dry_run)?, self.root.place(first, dry_run)?);
        let Some((place, first_place)) = place.zip(first_place) else { return Ok(Changes::NEW) };
        let target = first_place.stat()?.filter(|stat| kind_of(stat) != SFlag::S_IFDIR);
        let old = place.stat()?;
        let identity = |stat: &FileStat| (stat.st_dev, stat.st_ino);
        if !self.failed.contains(first)
            && old.is_some()
            && old.as_ref().map(identity) == target.as_ref().map(identity)
        {
            self.has_name(&place, false)?;
            return Ok(Changes::default());
        }
        let changes = if old.is_some() { Changes::VALUE } else { Changes::NEW };
        if dry_run {
            return Ok(changes);
        }
        let Some(target) = target.filter(|_| !self.failed.contains(first)) else {
            let what = "could not become another name of a file that was not transferred; run again";
            return Err(Error::refused(&place.path, what));
        };
        self.make_room(&place, old.as_ref())?;
        let old = old.filter(|old| kind_of(old) == SFlag::S_IFREG).map(|_| place.open_old()).transpose()?;
        if let Some(old) = old.as_ref().filter(|_| !self.options.force_in_use) {
            in_use::refuse(&old.file, &old.state, &place.path)?;
        }
        place.put_link(&first_place, &target)?;
        self.has_name(&place, true)?;
        Ok(changes)
    }

    /// Something has its name, which may be new: that is on storage at the end. Where its source
    /// is removed as soon as that is told, it is at once.
    fn has_name(&mut self, place: &Place, is_new: bool) -> Result<()> {
        if self.options.remove_source_files && self.options.fsync && !self.options.dry_run {
            return sys::sync_dir(place.dir.as_fd()).map(drop).map_err(place.error("sync the directory of"));
        }
        if is_new {
            self.unsynced.add(&place.dir);
        }
        Ok(())
    }

    /// Removes a directory that has the name.
    fn make_room(&self, place: &Place, old: Option<&FileStat>) -> Result<()> {
        let is_directory = old.is_some_and(|old| kind_of(old) == SFlag::S_IFDIR);
        if is_directory { in_the_way::remove(place, &self.options) } else { Ok(()) }
    }

    /// What is told of what stays as it is, or is not made.
    pub(super) fn left(&self, path: &[u8]) -> Result<Changes> {
        let above = path.iter().rposition(|&byte| byte == b'/').map_or(&b""[..], |at| &path[..at]);
        let (is_new, is_below) = (!self.is_there(path)?, !self.is_there(above)?);
        Ok(Changes::LEFT.with(Changes::NEW, is_new).with(Changes::BELOW, is_below))
    }

    /// Whether something stays as it is, or is not made, by rules that go by whether it is
    /// there.
    fn stays(&self, path: &[u8]) -> Result<bool> {
        let rules = &self.options.transfer;
        if !(rules.existing || rules.ignore_existing) {
            return Ok(false);
        }
        Ok(if self.is_there(path)? { rules.ignore_existing } else { rules.existing })
    }
}

/// What the user named as the destination becomes such a thing only if there is none, a
/// symlink, or one of its kind.
fn refuse_to_lose(place: &Place, old: Option<&FileStat>, inode: &Inode) -> Result<()> {
    let kind = old.map(kind_of);
    if kind.is_none_or(|kind| kind == SFlag::S_IFLNK || kind == inode.kind()) {
        return Ok(());
    }
    let why = match inode {
        Inode::Symlink(_) => {
            "would be replaced by a symlink; remove it first, or name a source that is a file"
        }
        Inode::Node(_) => {
            "would be replaced by a special file; remove it first, or name a source that is a file"
        }
    };
    Err(Error::refused(&place.path, why))
}
