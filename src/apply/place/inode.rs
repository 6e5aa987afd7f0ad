//! What has a name and is neither file nor directory, and other names of files: made under a
//! temporary name, and renamed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};

use crate::apply::attributes::Attributes;
use crate::apply::place::Place;
use crate::error::{Error, Failure, Result};
use crate::source::Node;
use crate::sys;
use crate::working::{Naming, Working};

/// A symlink, device node, fifo or socket.
#[derive(Debug, Clone, Copy)]
pub enum Inode<'a> {
    /// A symlink to this.
    Symlink(&'a OsStr),
    /// Anything else of these.
    Node(Node),
}

impl Inode<'_> {
    /// Which kind it is.
    pub fn kind(&self) -> SFlag {
        match self {
            Inode::Symlink(_) => SFlag::S_IFLNK,
            Inode::Node(Node::Fifo) => SFlag::S_IFIFO,
            Inode::Node(Node::Socket) => SFlag::S_IFSOCK,
            Inode::Node(Node::CharDevice(..)) => SFlag::S_IFCHR,
            Inode::Node(Node::BlockDevice(..)) => SFlag::S_IFBLK,
        }
    }

    /// Whether what a name has, which is so, is one like it. `may_be_shared`: it may have other
    /// names.
    pub fn is_at(&self, place: &Place, stat: Option<&FileStat>, may_be_shared: bool) -> bool {
        let Some(stat) = stat.filter(|stat| may_be_shared || stat.st_nlink == 1) else { return false };
        match self {
            Inode::Symlink(link) => {
                sys::kind_of(stat) == SFlag::S_IFLNK
                    && sys::read_link_at(&place.dir, &place.name).is_ok_and(|now| now == **link)
            }
            Inode::Node(node) => Node::of(stat) == Some(*node),
        }
    }

    fn make(&self, place: &Place, name: &OsStr) -> io::Result<()> {
        let numbers = match self {
            Inode::Symlink(link) => return sys::symlink_at(&place.dir, link, name),
            Inode::Node(Node::CharDevice(major, minor) | Node::BlockDevice(major, minor)) => (*major, *minor),
            Inode::Node(_) => (0, 0),
        };
        // Nobody uses it before it has its owner and permissions.
        sys::make_node_at(&place.dir, name, self.kind(), 0, numbers)
    }
}

impl Place {
    /// Makes or replaces one, with its attributes. Returns which of these may not be set.
    ///
    /// # Errors
    ///
    /// What the system calls report: a directory in its place, for one.
    pub fn put_inode(&self, inode: &Inode, wanted: &Attributes) -> Result<Option<Failure>> {
        let doing = match inode {
            Inode::Symlink(_) => "create the symlink",
            Inode::Node(_) => "create the special file",
        };
        let new = Attributes { mode: wanted.mode.or(Some(wanted.new_mode)), ..wanted.clone() };
        let (temp, ()) = self.make_temp(|name| inode.make(self, name)).map_err(self.error(doing))?;
        self.put_temp(&temp, doing, || self.set_attributes_of_inode(&temp, inode, false, &new))
    }

    /// Makes it another name of what has the other place, and is so.
    ///
    /// # Errors
    ///
    /// What the system calls report, and when another file has that name by now.
    pub fn put_link(&self, to: &Place, target: &FileStat) -> Result<()> {
        const DOING: &str = "link";
        let link = |name: &OsStr| sys::link_between(&to.dir, &to.name, &self.dir, name);
        let (temp, ()) = self.make_temp(link).map_err(self.error(DOING))?;
        self.put_temp(&temp, DOING, || {
            let made = sys::stat_at(&self.dir, &temp).map_err(self.error(DOING))?;
            let is_same = |made: &FileStat| (made.st_dev, made.st_ino) == (target.st_dev, target.st_ino);
            if made.as_ref().is_some_and(is_same) { Ok(()) } else { Err(to.replaced()) }
        })?;
        self.forget_link(&temp).map_err(self.error(DOING))
    }

    /// Removes the name that a link was made under, if it was not renamed: of two names of one
    /// file both stay; rename(2).
    pub(in crate::apply) fn forget_link(&self, temp: &OsStr) -> io::Result<()> {
        sys::unlink_at(&self.dir, temp).map(drop)
    }

    /// Makes something under the name of a temp file, and says how that is. What an earlier run
    /// left there goes.
    pub(in crate::apply) fn make_temp<T>(
        &self,
        make: impl Fn(&OsStr) -> io::Result<T>,
    ) -> io::Result<(OsString, T)> {
        let make_as = |naming: Naming| {
            let temp = Working::Temp.name_for(&self.name, naming);
            let made = match make(&temp) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.clear(&temp)?;
                    make(&temp)?
                }
                other => other?,
            };
            Ok((temp, made))
        };
        // What has the common name may be another's.
        make_as(Naming::Common).or_else(|_| make_as(Naming::once(sys::effective_user())))
    }

    /// Gives it what it is to have, and its name.
    fn put_temp<T>(
        &self,
        temp: &OsStr,
        doing: &'static str,
        complete: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let put = || {
            let completed = complete()?;
            self.keep_backup()?;
            sys::rename_at(&self.dir, temp, &self.name).map_err(self.error(doing))?;
            Ok(completed)
        };
        put().inspect_err(|_: &Error| {
            // That error is the one to report.
            let _ = sys::unlink_at(&self.dir, temp);
        })
    }

    /// Sets the attributes of a name, and of nothing of another kind that may have it by now.
    /// `may_be_shared`: it may have other names; otherwise it might be somebody else's.
    ///
    /// # Errors
    ///
    /// What the system calls report of storage.
    pub fn set_attributes_of_inode(
        &self,
        name: &OsStr,
        inode: &Inode,
        may_be_shared: bool,
        wanted: &Attributes,
    ) -> Result<Option<Failure>> {
        let failed = || self.error("set the attributes of");
        let file = self.open(name, OFlag::O_PATH).map_err(failed())?;
        let now = file.metadata().map_err(failed())?;
        let is_such = now.mode() & SFlag::S_IFMT.bits() == inode.kind().bits();
        if !is_such || now.nlink() > 1 && !may_be_shared {
            return Err(self.replaced());
        }
        wanted.set(&file, &self.path)
    }
}
