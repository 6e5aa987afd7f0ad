//! A backup that cannot be the old inode itself: it lies on another file system, or the old
//! one is written in place. It is a copy with the same attributes, as far as they may be set.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};

use crate::apply::aside::similar::READ;
use crate::apply::attributes::Attributes;
use crate::apply::copy::copy_data;
use crate::apply::place::{Access, Inode, Old, Place};
use crate::error::{Error, Result, Stop};
use crate::options::Options;
use crate::scan::{FileImage, FileState};
use crate::source::Node;
use crate::sys::{self, kind_of};

impl Place {
    /// Copies what has this name to another place, where it takes the place of what is there.
    ///
    /// # Errors
    ///
    /// What reading and writing report; when it changes meanwhile; for a directory.
    pub(super) fn copy_to(&self, to: &Place, options: &Options) -> Result<()> {
        let Some(stat) = self.stat()? else { return Err(self.replaced()) };
        match kind_of(&stat) {
            SFlag::S_IFREG => {
                let file = self.open(&self.name, READ).map_err(self.error("keep a backup of"))?;
                self.copy_file_to(&file, to, options)
            }
            SFlag::S_IFLNK => {
                let link = sys::read_link_at(&self.dir, &self.name).map_err(self.error("read"))?;
                to.put_inode(&Inode::Symlink(&link), &attributes_of(&stat)).map(drop)
            }
            _ => {
                let node = Node::of(&stat).ok_or_else(|| self.replaced())?;
                to.put_inode(&Inode::Node(node), &attributes_of(&stat)).map(drop)
            }
        }
    }

    /// The same of an open file that has this name.
    pub(super) fn copy_file_to(&self, file: &File, to: &Place, options: &Options) -> Result<()> {
        let failed = || self.error("keep a backup of");
        let state = FileState::of(file).map_err(failed())?;
        let found = file.metadata().map_err(failed())?;
        let create = |temp: &OsStr| to.open(temp, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL);
        let (temp, new) = to.make_temp(create).map_err(failed())?;
        let copied = || -> Result<()> {
            fill(file, &new, found.len(), options.hole_map).map_err(failed())?;
            take_over(file, found, &new, to)?;
            let is_same = self.is_named(&self.name, file).map_err(failed())?;
            if !is_same || FileState::of(file).map_err(failed())? != state {
                let why = "changed while a backup of it was made; see what writes to it, then run again";
                return Err(Error::refused(&self.path, why));
            }
            if options.fsync {
                new.sync_all().map_err(failed())?;
            }
            rename_over(to, &temp).map_err(failed())
        };
        copied().inspect_err(|_| {
            // That error is the one to report.
            let _ = sys::unlink_at(&to.dir, &temp);
        })
    }
}

/// Gives a new file all content of another, holes left out.
fn fill(file: &File, new: &File, length: u64, hole_map: bool) -> io::Result<()> {
    if sys::clone_file(file, new)? {
        return Ok(());
    }
    new.set_len(length)?;
    let image = FileImage::new(file.try_clone()?, hole_map);
    copy_data(&image, new, length, |_, _| {}).map_err(|stop| match stop {
        Stop::Read(error) | Stop::Taken(error) => error,
    })
}

/// Gives a copy the attributes of the file that it is of, and what else belongs to that. What
/// may not be set is not: who may not keep an owner has no backup of one either.
fn take_over(file: &File, state: Metadata, new: &File, to: &Place) -> Result<()> {
    let wanted = Attributes {
        mode: Some(state.mode() & 0o7777),
        uid: Some(state.uid()),
        gid: Some(state.gid()),
        mtime: Some((state.mtime(), state.mtime_nsec() as u32)),
        ..Attributes::default()
    };
    let file = file.try_clone().map_err(to.error("keep a backup as"))?;
    let old = Old { file, state, access: Access::Read, turn: None };
    wanted.set_on_new(new, None, Some(&old), to).map(drop)
}

fn attributes_of(stat: &FileStat) -> Attributes {
    let mode = stat.st_mode & 0o7777;
    Attributes {
        mode: Some(mode),
        new_mode: mode,
        uid: Some(stat.st_uid),
        gid: Some(stat.st_gid),
        mtime: Some((stat.st_mtime, stat.st_mtime_nsec as u32)),
        ..Attributes::default()
    }
}

/// Renames a temp file over what has the name of a place; an empty directory gives way.
pub(super) fn rename_over(to: &Place, temp: &OsStr) -> io::Result<()> {
    give_way(to, || sys::rename_at(&to.dir, temp, &to.name))
}

/// Does something to a name that an empty directory may have.
pub(super) fn give_way(to: &Place, act: impl Fn() -> io::Result<()>) -> io::Result<()> {
    match act() {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EISDIR | libc::EEXIST | libc::ENOTEMPTY)) => {
            sys::remove_dir_at(&to.dir, &to.name)?;
            act()
        }
        other => other,
    }
}
