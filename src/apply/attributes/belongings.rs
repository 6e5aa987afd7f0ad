//! What belongs to a file and neither the source nor the options speak of: its ACL, its
//! `user.` attributes, its security label, whether it is copied on write. It goes along when
//! another inode takes the file's name, or rights are narrowed; they are never widened, not
//! by a default ACL of the directory either (acl(5), xattr(7)). What the old content could
//! do ends with it: capabilities, set-id bits, signatures.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use crate::apply::attributes::{Unset, is_policy};
use crate::apply::place::{Access, Old};
use crate::sys;
use crate::sys::xattrs::{self, ACL, Acl, CAPABILITY, DEFAULT_ACL, is_none};

/// Who may: where it cannot be handed on, the system's own rules decide.
const LABELS: [&str; 3] = ["security.selinux", "security.SMACK64", NFS4_ACL];
const NFS4_ACL: &str = "system.nfs4_acl";

/// What the permissions of a new file may be at most.
pub struct Handed {
    /// Permission bits of the owning group, and of others, whatever the mode is to be.
    most: u32,
    /// The same, where the mode is that of the old file, whose group the new one lacks.
    most_kept: u32,
    /// The ACL was looked at: the mode may be another now.
    pub has_acl: bool,
}

impl Default for Handed {
    fn default() -> Handed {
        Handed { most: 0o7777, most_kept: 0o7777, has_acl: false }
    }
}

impl Handed {
    /// What is left of a mode; `kept`: that of the old file.
    pub fn limit(&self, mode: u32, kept: bool) -> u32 {
        mode & self.most & if kept { self.most_kept } else { 0o7777 }
    }
}

/// Has a new file, which is empty, copied on write as the old one is. Where that cannot be,
/// it is slower, and no more.
pub fn prepare(old: Option<&Old>, new: &File) {
    if let Some(old) = old
        && old.access != Access::None
        && sys::is_nocow(&old.file)
    {
        sys::set_nocow(new);
    }
}

/// Gives a new file what belongs to the old one. The new file is for its owner alone until
/// then. `is_strange`: its group is neither the old one nor that which was asked for.
///
/// # Errors
///
/// Those of storage. What may not be set is noted.
pub fn hand_on(old: &Old, new: &File, is_strange: bool, unset: &mut Unset) -> io::Result<Handed> {
    let names = or_none(xattrs::list(&old.file))?;
    let inherited = or_none(xattrs::list(new))?;
    for name in names.iter().filter(|name| is_handed_on(name)) {
        let copied = xattrs::get(&old.file, name)
            .and_then(|value| value.map_or(Ok(()), |value| xattrs::set(new, name, &value)));
        // A label that may not be set is that of any new file here.
        let what = name.as_bytes().starts_with(b"user.").then_some("extended attribute");
        unset.note(what, copied.or_else(ignore_full))?;
    }
    let has = |names: &[OsString]| names.iter().any(|name| name == ACL);
    if !has(&names) {
        let mut handed = Handed { has_acl: has(&inherited), ..Handed::default() };
        if handed.has_acl && xattrs::remove(new, OsStr::new(ACL)).is_err() {
            handed.most = 0o7707;
        }
        if is_strange {
            handed.most_kept = shared_by_group_and_others(old.state.mode());
        }
        // It sets the mode as well.
        handed.has_acl |= names.iter().any(|name| name == NFS4_ACL);
        return Ok(handed);
    }
    hand_on_acl(old, new, is_strange, unset)
}

fn hand_on_acl(old: &Old, new: &File, is_strange: bool, unset: &mut Unset) -> io::Result<Handed> {
    let mut acl = xattrs::get(&old.file, OsStr::new(ACL)).map(|value| value.map(Acl));
    let mut handed = Handed { has_acl: true, ..Handed::default() };
    if let (true, Ok(Some(acl))) = (is_strange, &mut acl) {
        // Its group is another one now, whose members were others.
        let shared = acl.perm_of(Acl::GROUP_OBJ) & acl.perm_of(Acl::OTHER);
        acl.narrow(Acl::GROUP_OBJ, shared);
        acl.narrow(Acl::OTHER, shared);
        handed.most_kept = 0o7770 | shared;
    }
    let set = match &acl {
        Ok(Some(acl)) => xattrs::set(new, OsStr::new(ACL), &acl.0),
        Ok(None) => return Ok(handed),
        Err(error) => Err(io::Error::from(error.kind())),
    };
    if set.is_err() {
        let group = acl.as_ref().ok().and_then(Option::as_ref).map_or(0, |acl| acl.perm_of(Acl::GROUP_OBJ));
        // Without its entries the group bits are the group's own, and no longer the mask.
        let is_plain = xattrs::remove(new, OsStr::new(ACL));
        handed.most = 0o7707 | if is_plain.is_ok() { group << 3 } else { 0 };
    }
    unset.note(Some("ACL"), set.or_else(ignore_full))?;
    Ok(handed)
}

/// What the permissions of a file may be at most that nobody has asked for, where there was
/// none: what a default ACL of its directory says, if there is one.
///
/// # Errors
///
/// Those of storage.
pub fn most_of_a_new_file(dir: impl AsFd) -> io::Result<Handed> {
    let found = xattr::get_deref(sys::proc_path(dir), DEFAULT_ACL);
    let acl = match found {
        Err(error) if is_none(&error) || is_policy(&error) || error.kind() == io::ErrorKind::NotFound => None,
        other => other?,
    };
    let most = acl.map_or(0o7777, |acl| 0o7000 | Acl(acl).mode());
    Ok(Handed { most, ..Handed::default() })
}

/// Gives a file that was made in another directory what one has that is made where it goes: the
/// group, the ACL and the label that come from a directory. What may not be set stays as it is.
///
/// # Errors
///
/// Those of storage.
pub fn inherit(model: &File, new: &File) -> io::Result<()> {
    let may_stay = |error: io::Error| if is_none(&error) || is_policy(&error) { Ok(()) } else { Err(error) };
    let gid = model.metadata()?.gid();
    if gid != new.metadata()?.gid() {
        sys::set_owner(new, None, Some(gid)).or_else(may_stay)?;
    }
    let (there, here) = (or_none(xattrs::list(model))?, or_none(xattrs::list(new))?);
    for name in there.iter().filter(|name| *name == ACL || LABELS.iter().any(|label| *name == label)) {
        let copied = xattrs::get(model, name)
            .and_then(|value| value.map_or(Ok(()), |value| xattrs::set(new, name, &value)));
        copied.or_else(ignore_full).or_else(may_stay)?;
    }
    if here.iter().any(|name| name == ACL) && !there.iter().any(|name| name == ACL) {
        xattrs::remove(new, OsStr::new(ACL)).or_else(may_stay)?;
    }
    Ok(())
}

/// Before content changes in place: what the old content could do ends with it. The kernel
/// takes it from a file that a user writes, and not always from one that root writes.
///
/// # Errors
///
/// Those of storage.
pub fn end_privileges(file: &File) -> io::Result<()> {
    let may_stay = |error: io::Error| if is_none(&error) || is_policy(&error) { Ok(()) } else { Err(error) };
    xattrs::remove(file, OsStr::new(CAPABILITY)).or_else(may_stay)?;
    let mode = file.metadata()?.mode() & 0o7777;
    if mode & 0o6000 == 0 { Ok(()) } else { sys::set_mode(file, mode & 0o1777).or_else(may_stay) }
}

fn is_handed_on(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"user.") || LABELS.iter().any(|label| name == *label)
}

/// A file system without such things has none.
fn or_none(names: io::Result<Vec<OsString>>) -> io::Result<Vec<OsString>> {
    names.or_else(|error| if is_policy(&error) { Ok(Vec::new()) } else { Err(error) })
}

/// Some file systems have little room for these (ext4(5): one block).
pub(super) fn ignore_full(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::E2BIG | libc::ERANGE | libc::EDQUOT) => {
            Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
        }
        _ => Err(error),
    }
}

/// The permission bits of a file whose group has become another one: what both the old
/// group and others could do.
fn shared_by_group_and_others(mode: u32) -> u32 {
    let shared = mode >> 3 & mode & 0o7;
    0o7700 | shared << 3 | shared
}
