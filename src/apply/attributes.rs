//! What a file, directory or symlink carries besides its content, and the functions that
//! set it. By descriptor: what a name leads to may change, an open file stays the same.
//! What may not be set is told and is no error: the content counts. Knows nothing of how
//! content gets there.

pub mod belongings;
mod changes;
mod extended;
pub mod times;

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{FileStat, SFlag};
use serde::{Deserialize, Serialize};

use crate::apply::attributes::belongings::Handed;
use crate::apply::place::{Old, Place};
use crate::error::{Error, Failure, Result, code, in_words, printable};
use crate::sys;
pub use extended::Extended;

/// What a finished file is to carry besides its content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits to set; `None` leaves those that are there.
    pub mode: Option<u32>,
    /// Set-id bits among them that the user named himself: they come whoever owns the file.
    pub asked_set_id: u32,
    /// Permission bits of a file that was not there before.
    pub new_mode: u32,
    /// Where permission bits are not to be set: whether the file is executable.
    pub executable: Option<bool>,
    /// Modification time of the source in seconds, whether it is to be set or not.
    pub source_time: Option<i64>,
    /// Modification time to set, seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// Access time to set, likewise.
    pub atime: Option<(i64, u32)>,
    /// User number to set.
    pub uid: Option<u32>,
    /// Group number to set.
    pub gid: Option<u32>,
    /// The owner is to be told of if it cannot be set, as only root can.
    pub superuser: bool,
    /// ACLs and extended attributes to have, and no others.
    pub extended: Extended,
}

/// What a program runs as: the owner of its file (setuid), or the group (setgid).
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;

impl Attributes {
    /// Whether something that is so has all of them.
    pub(super) fn are_those_of(&self, stat: &FileStat) -> bool {
        self.plain_are_those_of(stat) && self.extended.are_none()
    }

    /// The same, but for ACLs and extended attributes.
    fn plain_are_those_of(&self, stat: &FileStat) -> bool {
        let kind = sys::kind_of(stat);
        let (is_link, is_file) = (kind == SFlag::S_IFLNK, kind == SFlag::S_IFREG);
        let mode =
            self.mode.map(|mode| if is_file { self.safe_mode(mode, stat.st_uid, stat.st_gid) } else { mode });
        self.uid.is_none_or(|uid| uid == stat.st_uid)
            && self.gid.is_none_or(|gid| gid == stat.st_gid)
            && (is_link || mode.is_none_or(|mode| mode == stat.st_mode & 0o7777))
            && (is_link || self.with_executability(stat.st_mode & 0o7777).is_none())
            && self.mtime.is_none_or(|mtime| mtime == (stat.st_mtime, stat.st_mtime_nsec as u32))
            && self.atime.is_none_or(|atime| atime == (stat.st_atime, stat.st_atime_nsec as u32))
    }

    /// The same of an open file, whatever is wanted of ACLs and extended attributes.
    pub(super) fn are_all_of(&self, stat: &FileStat, file: &File) -> bool {
        let kind = sys::kind_of(stat);
        self.plain_are_those_of(stat) && self.extended.changes(file, kind, self.superuser).is_empty()
    }

    /// Whether something that is so `now` gets another modification time.
    pub(super) fn changes_mtime(&self, now: &Metadata) -> bool {
        self.mtime.is_some_and(|mtime| mtime != (now.mtime(), now.mtime_nsec() as u32))
    }

    /// What becomes of permission bits that stay but for those that make a file executable,
    /// which follow those to read it; `None`: nothing.
    fn with_executability(&self, now: u32) -> Option<u32> {
        let executable = self.executable.filter(|_| self.mode.is_none())?;
        let mode = match executable {
            true if now & 0o111 == 0 => now | (now & 0o444) >> 2,
            true => now,
            false => now & !0o111,
        };
        (mode != now).then_some(mode)
    }

    /// Whether this process may set them on a file that is there: its owner may, and who
    /// has his rights.
    pub(super) fn may_be_set_on(&self, old: &Old) -> bool {
        let state = &old.state;
        let mode = self.mode.map(|mode| self.safe_mode(mode, state.uid(), state.gid()));
        let differ = self.mtime.is_some()
            || mode.is_some_and(|mode| mode != state.mode() & 0o7777)
            || self.gid.is_some_and(|gid| gid != state.gid());
        !differ || sys::effective_user() == state.uid() || sys::acts_as_owner(&old.file)
    }

    /// A program keeps the bits that let it run as somebody else only where that is who
    /// was asked for: its file with this owner and group has no other's rights.
    fn safe_mode(&self, mode: u32, uid: u32, gid: u32) -> u32 {
        self.without_set_id(mode, self.uid == Some(uid), self.gid == Some(gid))
    }

    /// What is left of a mode where the owner, or the group, is or is not who was asked for.
    fn without_set_id(&self, mode: u32, has_owner: bool, has_group: bool) -> u32 {
        let lost = if has_owner { 0 } else { SET_UID } | if has_group { 0 } else { SET_GID };
        mode & !(lost & !self.asked_set_id)
    }

    /// Those of a file that takes the place of one that is so, or of nothing: what is not
    /// wanted otherwise stays, but for the bits that let the old content run as somebody.
    fn replacing(&self, old: Option<&Metadata>) -> Attributes {
        let old_mode = old.map(|old| old.mode() & 0o1777);
        let old_mode = old_mode.map(|mode| self.with_executability(mode).unwrap_or(mode));
        let mode = self.mode.map(|mode| self.without_set_id(mode, self.uid.is_some(), self.gid.is_some()));
        Attributes {
            mode: Some(mode.or(old_mode).unwrap_or(self.new_mode)),
            uid: self.uid.or(old.map(Metadata::uid)),
            gid: self.gid.or(old.map(Metadata::gid)),
            ..self.clone()
        }
    }

    /// Sets those that an open file, directory or symlink does not have; a descriptor from
    /// `O_PATH` will do. What may not be set is returned, as the user should be told of it.
    ///
    /// # Errors
    ///
    /// What the system calls report of storage.
    pub(super) fn set(&self, file: &File, path: &Path) -> Result<Option<Failure>> {
        let mut unset = Unset::default();
        let mut set = || -> io::Result<()> {
            let mut now = self.set_owner(file, file.metadata()?, self, &mut unset)?;
            if self.extended.set(file, &now, self.superuser, &mut unset)? {
                now = file.metadata()?;
            }
            self.set_mode(file, &now, self, &mut unset)?;
            self.set_times(file, Some(&now), &mut unset)
        };
        set().map_err(Error::file("set the attributes of", path))?;
        Ok(unset.into_failure(path))
    }

    /// The same for a new file that takes the place of `old`, or of nothing: with them go
    /// the [`belongings`] of the old one. `made`: how it was before anything was written to it.
    ///
    /// # Errors
    ///
    /// Those of [`Attributes::set`].
    pub(super) fn set_on_new(
        &self,
        new: &File,
        made: Option<&Metadata>,
        old: Option<&Old>,
        place: &Place,
    ) -> Result<Option<Failure>> {
        let mut unset = Unset::default();
        let mut set = || -> io::Result<()> {
            if place.workplace.is_some() {
                belongings::inherit(&place.unnamed()?, new)?;
            }
            let mut wanted = self.replacing(old.map(|old| &old.state));
            let made = made.cloned().map_or_else(|| new.metadata(), Ok)?;
            let mut now = wanted.set_owner(new, made, self, &mut unset)?;
            let mut most = match old {
                Some(old) => {
                    let is_strange = wanted.gid != Some(now.gid());
                    belongings::hand_on(old, new, is_strange, &mut unset)?
                }
                None if self.mode.is_none() => belongings::most_of_a_new_file(&place.dir)?,
                None => Handed::default(),
            };
            if self.extended.set(new, &now, self.superuser, &mut unset)? || most.has_acl {
                now = new.metadata()?;
            }
            if self.extended.acls.is_some() {
                // They have been asked for, and are there or were told of.
                most = Handed::default();
            }
            let kept = self.mode.is_none();
            wanted.mode = wanted.mode.map(|mode| most.limit(mode, kept));
            wanted.set_mode(new, &now, self, &mut unset)?;
            self.set_times(new, None, &mut unset)
        };
        set().map_err(place.error("set the attributes of"))?;
        Ok(unset.into_failure(&place.path))
    }

    /// Sets owner and group of a file that is so `now`; how it is then. The group by itself: its members may set
    /// it, where only root sets the owner.
    fn set_owner(
        &self,
        file: &File,
        now: Metadata,
        asked: &Attributes,
        unset: &mut Unset,
    ) -> io::Result<Metadata> {
        let gid = self.gid.filter(|&gid| gid != now.gid());
        let uid = self.uid.filter(|&uid| uid != now.uid());
        if gid.is_some() {
            unset.note(asked.gid.map(|_| "group"), sys::set_owner(file, None, gid))?;
        }
        if uid.is_some() {
            let is_asked = asked.uid.is_some() && asked.superuser;
            unset.note(is_asked.then_some("owner"), sys::set_owner(file, uid, None))?;
        }
        if uid.or(gid).is_some() { file.metadata() } else { Ok(now) }
    }

    fn set_mode(&self, file: &File, now: &Metadata, asked: &Attributes, unset: &mut Unset) -> io::Result<()> {
        let executable = || self.with_executability(now.mode() & 0o7777).filter(|_| now.is_file());
        let Some(mode) = self.mode.or_else(executable).filter(|_| !now.is_symlink()) else { return Ok(()) };
        let mode = if now.is_file() { self.safe_mode(mode, now.uid(), now.gid()) } else { mode };
        if mode == now.mode() & 0o7777 {
            return Ok(());
        }
        let is_asked = asked.mode.is_some() || asked.executable.is_some();
        unset.note(is_asked.then_some("mode"), sys::set_mode(file, mode))
    }

    /// `now`: how the file is, whose times stay that are right. `None`: it is new.
    fn set_times(&self, file: &File, now: Option<&Metadata>, unset: &mut Unset) -> io::Result<()> {
        let mtime = self.mtime.filter(|_| now.is_none_or(|now| self.changes_mtime(now)));
        let is_other = |now: &Metadata, atime| atime != (now.atime(), now.atime_nsec() as u32);
        let atime = self.atime.filter(|&atime| now.is_none_or(|now| is_other(now, atime)));
        if mtime.or(atime).is_none() {
            return Ok(());
        }
        unset.note(Some("time"), sys::set_times(file, atime, mtime))
    }
}

/// What could not be set, for a reason of policy.
#[derive(Default)]
pub(super) struct Unset(Vec<(&'static str, io::Error)>);

impl Unset {
    /// Notes what may not be set. `what` it is; `None`: nobody asked for it.
    ///
    /// # Errors
    ///
    /// Those that are no answer to the question who may.
    pub fn note(&mut self, what: Option<&'static str>, result: io::Result<()>) -> io::Result<()> {
        match result {
            Err(error) if is_policy(&error) => {
                self.0.extend(what.map(|what| (what, error)));
                Ok(())
            }
            other => other,
        }
    }

    fn into_failure(self, path: &Path) -> Option<Failure> {
        let reasons =
            self.0.iter().map(|(what, why)| format!("its {what} could not be set: {}", in_words(why)));
        let reasons = reasons.collect::<Vec<_>>().join("; ");
        let message = format!("{} is in place, but {reasons}", printable(path));
        (!self.0.is_empty()).then(|| Failure::new(code::PARTIAL, message).about(path))
    }
}

/// Whether a call was refused because of who asked, or because the file system has no such
/// thing; chown(2), chmod(2), utimensat(2), setxattr(2). `EINVAL` and `EOVERFLOW`: a number
/// that has no mapping in a user namespace, or on the mount.
pub(super) fn is_policy(error: &io::Error) -> bool {
    let known = [libc::EPERM, libc::EACCES, libc::EINVAL, libc::EOVERFLOW, libc::EOPNOTSUPP, libc::ENOSYS];
    let is_known = |errno| known.contains(&errno);
    error.raw_os_error().map_or(error.kind() == io::ErrorKind::PermissionDenied, is_known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{OpenOptionsExt, symlink};

    fn path_only(path: &std::path::Path) -> File {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        File::options().read(true).custom_flags(flags).open(path).unwrap()
    }

    fn set(wanted: &Attributes, file: &File) -> Metadata {
        assert_eq!(wanted.set(file, Path::new("it")).unwrap(), None);
        file.metadata().unwrap()
    }

    #[test]
    fn attributes_are_set_through_any_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "x").unwrap();
        symlink("file", &link).unwrap();
        let wanted = Attributes { mode: Some(0o1751), mtime: Some((-5, 7)), ..Attributes::default() };
        let path_only = [path_only(&file), path_only(&link), path_only(dir.path())];
        let opened = [File::open(&file).unwrap(), File::open(dir.path()).unwrap()];
        for descriptor in path_only.iter().chain(&opened) {
            let found = set(&wanted, descriptor);
            assert_eq!((found.mtime(), found.mtime_nsec()), (-5, 7));
            assert!(found.is_symlink() || found.mode() & 0o7777 == 0o1751, "{:o}", found.mode());
            set(&Attributes { mode: Some(0o700), mtime: Some((9, 0)), ..wanted.clone() }, descriptor);
        }
        assert_eq!(std::fs::metadata(&file).unwrap().mtime(), 9, "a link is not followed");
    }

    /// What is asked for, mode included, and the mode that a file and a directory end with.
    #[test]
    fn set_id_bits_come_with_the_owner_and_group_that_they_mean() {
        if !sys::is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().metadata().unwrap();
        let same = (Some(root.uid()), Some(root.gid()));
        let table = [
            ((None, None), 0o0755),
            ((Some(7), None), 0o4755),
            ((None, Some(7)), 0o2755),
            ((Some(7), Some(8)), 0o6755),
            (same, 0o6755),
        ];
        for ((uid, gid), expected) in table {
            let wanted = Attributes { mode: Some(0o6755), uid, gid, ..Attributes::default() };
            let found = set(&wanted, &tempfile::tempfile().unwrap());
            assert_eq!(found.mode() & 0o7777, expected, "{wanted:?}");
            assert!(uid.is_none_or(|uid| uid == found.uid()) && gid.is_none_or(|gid| gid == found.gid()));
            let by_hand = Attributes { asked_set_id: 0o4000, ..wanted.clone() };
            let found_by_hand = set(&by_hand, &tempfile::tempfile().unwrap());
            assert_eq!(found_by_hand.mode() & 0o7777, expected | 0o4000, "{by_hand:?}");
            // Another owner clears them; they are set again.
            let file = tempfile::tempfile().unwrap();
            set(
                &Attributes { uid: Some(1), gid: Some(2), mode: Some(0o6711), ..Attributes::default() },
                &file,
            );
            let found = set(&wanted, &file);
            assert_eq!(found.mode() & 0o7777, expected, "{wanted:?}");
            let found = set(&wanted, &File::open(dir.path()).unwrap());
            assert_eq!(found.mode() & 0o7777, 0o6755, "a directory; {wanted:?}");
        }
    }

    #[test]
    fn what_takes_the_place_of_a_file_keeps_its_mode_without_set_id_bits() {
        let file = tempfile::tempfile().unwrap();
        sys::set_mode(&file, 0o6751).unwrap();
        let old = file.metadata().unwrap();
        assert_eq!(Attributes::default().replacing(Some(&old)).mode, Some(0o751));
        let wanted = Attributes { mode: Some(0o6711), uid: Some(1), ..Attributes::default() };
        assert_eq!(wanted.replacing(Some(&old)).mode, Some(0o4711));
    }
}
