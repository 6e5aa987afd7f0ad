//! ACLs and extended attributes that something is to have, and no others: what the source has
//! of those that this process may set.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::SFlag;
use serde::{Deserialize, Serialize};

use crate::apply::attributes::Unset;
use crate::apply::attributes::belongings::ignore_full;
use crate::report::Changes;
use crate::sys;
use crate::sys::xattrs::{self, ACL, Acl, CAPABILITY, DEFAULT_ACL, Xattr};

/// What is to be set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extended {
    /// The ACL, and that which new entries of a directory begin with. `None`: they stay.
    pub acls: Option<(Option<Acl>, Option<Acl>)>,
    /// All extended attributes. `None`: they stay.
    pub xattrs: Option<Vec<Xattr>>,
}

impl Extended {
    /// Whether there is nothing to set.
    pub fn are_none(&self) -> bool {
        self.acls.is_none() && self.xattrs.is_none()
    }

    /// Sets those that a file, directory or symlink, which is so `now`, does not have, and
    /// removes others; `superuser`: those of root, too. Returns whether the permissions may be
    /// others by then.
    ///
    /// # Errors
    ///
    /// Those of storage. What may not be set is noted.
    pub(super) fn set(
        &self,
        file: &File,
        now: &Metadata,
        superuser: bool,
        unset: &mut Unset,
    ) -> io::Result<bool> {
        if let Some(xattrs) = &self.xattrs {
            let set = set_xattrs(xattrs, file, now, superuser);
            unset.note(Some("extended attributes"), set.or_else(ignore_full))?;
        }
        let Some((access, default)) = self.acls.as_ref().filter(|_| !now.is_symlink()) else {
            return Ok(false);
        };
        let set = set_acl(access.as_ref(), file, ACL);
        unset.note(Some("ACL"), set.or_else(ignore_full))?;
        if now.is_dir() {
            let set = set_acl(default.as_ref(), file, DEFAULT_ACL);
            unset.note(Some("default ACL"), set.or_else(ignore_full))?;
        }
        Ok(true)
    }

    /// Which of them a file, directory or symlink has not, or has beyond. What cannot be read
    /// counts as another.
    pub(super) fn changes(&self, file: &File, kind: SFlag, superuser: bool) -> Changes {
        let has_acl = |wanted: &Option<Acl>, name: &str| {
            let now = acl_of(file, OsStr::new(name), wanted.as_ref());
            now.is_ok_and(|now| now.as_ref() == wanted.as_ref().map(|acl| &acl.0))
        };
        let acls = self.acls.as_ref().filter(|_| kind != SFlag::S_IFLNK);
        let other_acl = acls.is_some_and(|(access, default)| {
            !has_acl(access, ACL) || kind == SFlag::S_IFDIR && !has_acl(default, DEFAULT_ACL)
        });
        let other_xattrs = self.xattrs.as_ref().is_some_and(|xattrs| {
            !difference(xattrs, file, superuser)
                .is_ok_and(|found| found.missing.is_empty() && found.excess.is_empty())
        });
        Changes::default().with(Changes::ACL, other_acl).with(Changes::XATTRS, other_xattrs)
    }
}

/// The ACL that a file has.
fn acl_of(file: &File, name: &OsStr, wanted: Option<&Acl>) -> io::Result<Option<Vec<u8>>> {
    match xattrs::get(file, name) {
        // What cannot be there need not be removed.
        Err(error) if wanted.is_none() && xattrs::is_unknown(&error) => Ok(None),
        other => other,
    }
}

fn set_acl(wanted: Option<&Acl>, file: &File, name: &str) -> io::Result<()> {
    let name = OsStr::new(name);
    let now = acl_of(file, name, wanted)?;
    match wanted {
        Some(acl) if now.as_ref() != Some(&acl.0) => xattrs::set(file, name, &acl.0),
        None if now.is_some() => xattrs::remove(file, name),
        _ => Ok(()),
    }
}

/// How extended attributes differ from those that are wanted.
#[derive(Default)]
struct Difference<'a> {
    missing: Vec<(&'a OsStr, &'a Vec<u8>)>,
    excess: Vec<OsString>,
}

fn difference<'a>(wanted: &'a [Xattr], file: &File, superuser: bool) -> io::Result<Difference<'a>> {
    let there = match xattrs::list(file) {
        Err(error) if wanted.is_empty() && xattrs::is_unknown(&error) => return Ok(Difference::default()),
        other => other?,
    };
    let wants = |name: &OsStr| wanted.iter().any(|(wanted, _)| wanted == name.as_bytes());
    let mut missing = Vec::new();
    for (name, value) in wanted.iter().map(|(name, value)| (OsStr::from_bytes(name), value)) {
        // Whatever came: nothing else is set by this.
        if xattrs::is_kept(name, superuser) && xattrs::get(file, name)?.as_ref() != Some(value) {
            missing.push((name, value));
        }
    }
    let excess = there.into_iter().filter(|name| is_removed(name, superuser) && !wants(name)).collect();
    Ok(Difference { missing, excess })
}

fn set_xattrs(wanted: &[Xattr], file: &File, now: &Metadata, superuser: bool) -> io::Result<()> {
    let Difference { missing, excess } = difference(wanted, file, superuser)?;
    if missing.is_empty() && excess.is_empty() {
        return Ok(());
    }
    // Those of the user ask for leave to write the file.
    let mode = now.mode() & 0o7777;
    let is_closed = mode & 0o200 == 0 && !now.is_symlink() && !sys::is_root();
    if is_closed {
        sys::set_mode(file, mode | 0o200)?;
    }
    let set = || {
        excess.iter().try_for_each(|name| xattrs::remove(file, name))?;
        missing.iter().try_for_each(|(name, value)| xattrs::set(file, name, value))
    };
    let result = set();
    if is_closed {
        sys::set_mode(file, mode)?;
    }
    result
}

/// Whether an attribute goes that the source does not have: security labels are this system's.
fn is_removed(name: &OsStr, superuser: bool) -> bool {
    xattrs::is_kept(name, superuser) && (!name.as_bytes().starts_with(b"security.") || name == CAPABILITY)
}
