//! Extended attributes and ACLs of open files, `O_PATH` descriptors included, which the calls
//! for them refuse (xattr(7)): then they go by `/proc/self/fd`, which leads to the file itself.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;

use serde::{Deserialize, Serialize};
use xattr::FileExt;

use crate::sys;

/// The attribute that holds an ACL.
pub const ACL: &str = "system.posix_acl_access";
/// That which holds the ACL that new files of a directory begin with.
pub const DEFAULT_ACL: &str = "system.posix_acl_default";
/// Who runs a program may do what this says; capabilities(7).
pub const CAPABILITY: &str = "security.capability";

/// A name and a value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// Names and values of all.
///
/// # Errors
///
/// What listxattr(2) reports.
pub fn list(file: &File) -> io::Result<Vec<OsString>> {
    let names = file.list_xattr().map(Iterator::collect);
    or_by_path(names, || xattr::list_deref(sys::proc_path(file)).map(Iterator::collect))
}

/// The value of one; `None`: there is none.
///
/// # Errors
///
/// What getxattr(2) reports.
pub fn get(file: &File, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    or_by_path(file.get_xattr(name), || xattr::get_deref(sys::proc_path(file), name))
}

/// Sets one.
///
/// # Errors
///
/// What setxattr(2) reports.
pub fn set(file: &File, name: &OsStr, value: &[u8]) -> io::Result<()> {
    or_by_path(file.set_xattr(name, value), || xattr::set_deref(sys::proc_path(file), name, value))
}

/// Removes one, if it is there.
///
/// # Errors
///
/// What removexattr(2) reports.
pub fn remove(file: &File, name: &OsStr) -> io::Result<()> {
    let removed = or_by_path(file.remove_xattr(name), || xattr::remove_deref(sys::proc_path(file), name));
    removed.or_else(|error| if is_none(&error) { Ok(()) } else { Err(error) })
}

fn or_by_path<T>(result: io::Result<T>, by_path: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => by_path().map_err(no_proc),
        other => other,
    }
}

/// What is open is there: it is the way to it that is not.
fn no_proc(error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::NotFound {
        return error;
    }
    io::Error::new(io::ErrorKind::PermissionDenied, "that takes /proc, which is not mounted")
}

/// Whether an error says that there is no such attribute.
pub fn is_none(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODATA)
}

/// Whether an error says that the file system has no attributes of this kind.
pub fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

/// The ACLs of an entry; without entries there is none, and the permissions say all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acls {
    /// Who may do what.
    pub access: Vec<AclEntry>,
    /// What new entries of a directory begin with.
    pub default: Vec<AclEntry>,
}

/// One entry of an ACL; acl(5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AclEntry {
    /// Whom it is about; linux/posix_acl.h.
    pub tag: u16,
    /// What they may do: 4 to read, 2 to write, 1 to execute.
    pub permissions: u16,
    /// The number of a user or group that is named.
    pub number: u32,
    /// Its name, empty if unknown.
    pub name: String,
}

impl AclEntry {
    /// Whether it names a user.
    pub fn is_user(&self) -> bool {
        self.tag == Acl::USER
    }

    /// Whether it names a group.
    pub fn is_group(&self) -> bool {
        self.tag == Acl::GROUP
    }
}

/// An ACL as its extended attribute has it (linux/posix_acl_xattr.h): a version, then 8
/// bytes an entry: tag and permissions, 16 bits each, and a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acl(pub Vec<u8>);

impl Acl {
    const USER_OBJ: u16 = 0x01;
    const USER: u16 = 0x02;
    /// The owning group.
    pub const GROUP_OBJ: u16 = 0x04;
    const GROUP: u16 = 0x08;
    const MASK: u16 = 0x10;
    /// All others.
    pub const OTHER: u16 = 0x20;
    const VERSION: u32 = 2;
    /// The number of an entry that has none.
    const NOBODY: u32 = u32::MAX;

    /// What these entries make.
    pub fn of(entries: &[AclEntry]) -> Acl {
        let mut bytes = Acl::VERSION.to_le_bytes().to_vec();
        for entry in entries {
            let number = if entry.is_user() || entry.is_group() { entry.number } else { Acl::NOBODY };
            bytes.extend(entry.tag.to_le_bytes());
            bytes.extend(entry.permissions.to_le_bytes());
            bytes.extend(number.to_le_bytes());
        }
        Acl(bytes)
    }

    /// Its entries, without names.
    pub fn entries(&self) -> Vec<AclEntry> {
        let entries = self.0.get(4..).unwrap_or_default().chunks_exact(8);
        let entry = |bytes: &[u8]| AclEntry {
            tag: u16::from_le_bytes([bytes[0], bytes[1]]),
            permissions: u16::from_le_bytes([bytes[2], bytes[3]]),
            number: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            name: String::new(),
        };
        entries.map(entry).collect()
    }

    /// The permissions of the only entry of its kind, if there is one.
    fn find(&self, tag: u16) -> Option<u32> {
        self.entries().iter().find(|entry| entry.tag == tag).map(|entry| u32::from(entry.permissions & 7))
    }

    /// What such an entry comes to.
    pub fn perm_of(&self, tag: u16) -> u32 {
        let perm = self.find(tag).unwrap_or(0);
        if tag == Acl::GROUP_OBJ { perm & self.find(Acl::MASK).unwrap_or(7) } else { perm }
    }

    /// Leaves such entries no more than these permissions.
    pub fn narrow(&mut self, tag: u16, most: u32) {
        let entries = self.0.get_mut(4..).unwrap_or_default().chunks_exact_mut(8);
        for entry in entries.filter(|entry| entry[..2] == tag.to_le_bytes()) {
            entry[2] &= most as u8;
        }
    }

    /// The permission bits that go with it; acl(5).
    pub fn mode(&self) -> u32 {
        let group = self.find(Acl::MASK).or_else(|| self.find(Acl::GROUP_OBJ)).unwrap_or(0);
        self.perm_of(Acl::USER_OBJ) << 6 | group << 3 | self.perm_of(Acl::OTHER)
    }
}

/// Whether attributes of this name are kept: those of ACLs are none of them, and what is not
/// the user's own is root's to keep; xattr(7).
pub fn is_kept(name: &OsStr, superuser: bool) -> bool {
    let name = name.as_bytes();
    if superuser { !name.starts_with(b"system.") } else { name.starts_with(b"user.") }
}
