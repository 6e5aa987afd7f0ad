//! Another directory for the temp file and the clone of a place: one that the user names for
//! the run, or one of a certain name in each directory, which is made and removed as it is
//! needed. A stage and its log always lie beside the file, where any later run finds them.
//!
//! Whose a working file is goes by the same rules there as beside the file, and nothing else is
//! asked of the directory: others may be able to rename in it. So what is complete gets a name
//! beside its file first, and is looked at there: only then it takes the place of the old one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};
use std::sync::{Arc, Mutex};

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, fstat};

use crate::apply::aside::AsidePath;
use crate::apply::place::Place;
use crate::confinement::NamedPath;
use crate::error::{Error, Result, in_words, lock, printable};
use crate::source::is_plain;
use crate::sys;
use crate::working::{Working, is_working_name};

/// What may lie there.
pub const KINDS: [Working; 2] = [Working::Temp, Working::Clone];

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);

/// Where the temp files and clones of a run lie.
#[derive(Debug)]
pub enum Workplaces {
    /// In one directory, which is held. How to name it to people, and with it the option.
    One(Arc<OwnedFd>, String),
    /// In a directory of this name beside each file.
    Each(OsString, Mutex<HashMap<Identity, usize>>),
}

/// Device and inode.
type Identity = (u64, u64);

impl Workplaces {
    /// Opens a directory that the user named. `base`: the destination, which `dir` is: below that
    /// no symlink is followed, which may be another's.
    ///
    /// # Errors
    ///
    /// [`Error::Destination`] when it cannot be opened.
    pub fn open(path: &AsidePath, base: &NamedPath, dir: &OwnedFd) -> Result<Workplaces> {
        let named = path.resolve(base);
        let shown = printable(named.path());
        let is_below = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
        let opened = match path {
            AsidePath::Relative(path) if is_below(path) => sys::open_beneath(dir.as_fd(), path, DIRECTORY, 0),
            _ => named.open(DIRECTORY),
        };
        let opened = opened.map_err(|error| {
            let instead = match error.raw_os_error() {
                Some(libc::ELOOP | libc::ENOTDIR) => "name a directory; a symlink to one by an absolute path",
                _ => "create it first",
            };
            let what =
                format!("cannot open the directory for new data {shown}: {}; {instead}", in_words(&error));
            Error::Destination(what)
        })?;
        Ok(Workplaces::One(Arc::new(opened), shown))
    }

    /// One of this name in each directory.
    ///
    /// # Errors
    ///
    /// [`Error::Destination`] when that is not the name of an entry.
    pub fn named(name: &[u8]) -> Result<Workplaces> {
        let name = OsString::from_vec(name.to_vec());
        let is_name = is_plain(name.as_bytes()) && !name.as_bytes().contains(&b'/') && !name.is_empty();
        if !is_name || name.len() > 255 || is_working_name(&name) {
            let why = "a directory for partial files is named by an absolute path, or by its name alone";
            return Err(Error::Destination(why.into()));
        }
        Ok(Workplaces::Each(name, Mutex::default()))
    }

    /// Whether this is the directory of the run.
    pub fn are_in(&self, stat: &FileStat) -> bool {
        let Workplaces::One(dir, _) = self else { return false };
        fstat(dir).is_ok_and(|dir| (dir.st_dev, dir.st_ino) == (stat.st_dev, stat.st_ino))
    }

    fn shown(&self) -> String {
        match self {
            Workplaces::One(_, shown) => shown.clone(),
            Workplaces::Each(name, _) => printable(Path::new(name)),
        }
    }
}

/// The open workplace of one place.
#[derive(Debug, Clone)]
pub struct Workplace {
    /// What the working files lie beside there; nothing has this name.
    pub place: Box<Place>,
    /// `None`: it is that of the run, or a dry run looks at it.
    made: Option<Arc<InUse>>,
}

impl Workplace {
    /// What a run of rsync left there: the file under its own name. It goes, where nobody else
    /// can have put it there. `above`: the directory of the place.
    pub fn stale(&self, above: &OwnedFd) -> io::Result<Option<OsString>> {
        let name = &self.place.name;
        let is_private = |dir: &OwnedFd| -> io::Result<bool> {
            let stat = fstat(dir)?;
            Ok(stat.st_uid == sys::effective_user() && stat.st_mode & 0o022 == 0)
        };
        let dir = &self.place.dir;
        let is_there = self.made.is_some() && sys::stat_at(dir, name)?.is_some();
        Ok((is_there && is_private(dir)? && is_private(above)?).then(|| name.clone()))
    }
}

/// A directory that is removed when it is empty, and nobody in this run is at work in it.
#[derive(Debug)]
struct InUse {
    workplaces: Arc<Workplaces>,
    above: Arc<OwnedFd>,
    id: Identity,
}

impl Drop for InUse {
    fn drop(&mut self) {
        let Workplaces::Each(name, users) = &*self.workplaces else { return };
        let mut users = lock(users);
        let Entry::Occupied(mut count) = users.entry(self.id) else { return };
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
            // Where something is left in it, it stays. A file of the next run has it removed
            // that could not be now.
            let _ = sys::remove_dir_at(&self.above, name);
        }
    }
}

impl Place {
    /// The place beside which its working files of this kind lie.
    pub(in crate::apply) fn home_of(&self, kind: Working) -> &Place {
        match &self.workplace {
            Some(workplace) if KINDS.contains(&kind) => &workplace.place,
            _ => self,
        }
    }

    /// The same place, with its temp file and its clone elsewhere.
    pub(in crate::apply) fn with_workplaces(self, workplaces: Option<&Arc<Workplaces>>) -> Place {
        Place { workplaces: workplaces.cloned(), ..self }
    }

    /// Opens the other directory where its working files are to lie, if it is there.
    ///
    /// # Errors
    ///
    /// What the system calls report.
    pub(in crate::apply) fn enter_workplace(&mut self) -> Result<()> {
        self.workplace = self.workplace(false)?;
        Ok(())
    }

    /// The same; what is missing is made.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] where no file can get from there to this place.
    pub(in crate::apply) fn make_workplace(&mut self) -> Result<()> {
        if self.workplace.is_none() {
            self.workplace = self.workplace(true)?;
        }
        Ok(())
    }

    fn workplace(&self, make: bool) -> Result<Option<Workplace>> {
        let Some(workplaces) = &self.workplaces else { return Ok(None) };
        let failed = || self.error("open the directory for new data of");
        let above = fstat(&self.dir).map_err(|errno| failed()(errno.into()))?;
        let (dir, name, made) = match &**workplaces {
            Workplaces::One(dir, _) => (Arc::clone(dir), unique(&self.name, above.st_ino), None),
            Workplaces::Each(name, users) => {
                let id = (above.st_dev, above.st_ino);
                // Nobody removes it meanwhile.
                let mut users = lock(users);
                let Some(dir) = open_or_make(self, name, make)? else { return Ok(None) };
                let in_use = || {
                    *users.entry(id).or_default() += 1;
                    let (workplaces, above) = (Arc::clone(workplaces), Arc::clone(&self.dir));
                    Arc::new(InUse { workplaces, above, id })
                };
                (Arc::new(dir), self.name.clone(), (!self.is_dry).then(in_use))
            }
        };
        let device = fstat(&dir).map_err(|errno| failed()(errno.into()))?.st_dev;
        if device != above.st_dev {
            return if make { Err(self.is_far_away()) } else { Ok(None) };
        }
        let place = Place { is_dry: self.is_dry, ..Place::new(dir, name, self.path.clone()) };
        let place = Box::new(place);
        Ok(Some(Workplace { place, made }))
    }

    fn is_far_away(&self) -> Error {
        let dir = self.workplaces.as_ref().map(|workplaces| workplaces.shown()).unwrap_or_default();
        let why = format!(
            "new data would gather in {dir}, which is on another file system, and could not take its place in one \
             step; name a directory on the same one with --temp-dir or --partial-dir, or leave that out"
        );
        Error::refused(&self.path, why)
    }

    /// Gives a complete working file a name beside the file that it is to become, and returns
    /// that. It is the file that is open.
    ///
    /// # Errors
    ///
    /// When another file has its name, or it cannot get there.
    pub(in crate::apply) fn bring_home(&self, kind: Working, new: &File) -> Result<OsString> {
        let (home, name) = (self.home_of(kind), self.name_of(kind));
        const DOING: &str = "put in place";
        if self.is_own {
            return Ok(name);
        }
        if !self.is_at_work(kind, new).map_err(self.error(DOING))? {
            return Err(self.replaced());
        }
        if self.workplace.is_none() || !KINDS.contains(&kind) {
            return Ok(name);
        }
        let bring = || sys::rename_new_between(&home.dir, &home.name_of(kind), &self.dir, &name);
        let brought = match bring() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.clear(&name).and_then(|()| bring())
            }
            other => other,
        };
        brought.map_err(|error| match error.raw_os_error() {
            Some(libc::EXDEV) => self.is_far_away(),
            _ => self.error(DOING)(error),
        })?;
        // Whoever may rename there may have given its name to another one.
        if !self.is_named(&name, new).map_err(self.error(DOING))? {
            // That it is another one is the error to report.
            let _ = sys::unlink_at(&self.dir, &name);
            return Err(self.replaced());
        }
        Ok(name)
    }

    /// Gives back what was brought, as it could not take its place: the next run looks for it
    /// there.
    pub(in crate::apply) fn take_back(&self, kind: Working, name: &OsStr) {
        if self.workplace.is_some() && KINDS.contains(&kind) {
            let home = self.home_of(kind);
            // It is found beside the file, too, and goes.
            let _ = sys::rename_new_between(&self.dir, name, &home.dir, &home.name_of(kind));
        }
    }
}

/// Opens the directory of this name beside a place. `make`: a missing one is made, for this
/// user alone.
fn open_or_make(place: &Place, name: &OsStr, make: bool) -> Result<Option<OwnedFd>> {
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::ELOOP | libc::ENOTDIR) => {
            let shown = printable(Path::new(name));
            let why = format!(
                "new data is to gather in the directory {shown} beside it, and that is no directory; remove it, or name another one with --partial-dir"
            );
            Error::refused(&place.path, why)
        }
        _ => place.error("open the directory for new data of")(error),
    };
    let open = || sys::open_beneath(place.dir.as_fd(), Path::new(name), DIRECTORY, 0);
    match open() {
        Ok(dir) => Ok(Some(dir)),
        Err(_) if !make => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = sys::make_dir_at(&place.dir, name, 0o700);
            made.map_err(place.error("make the directory for new data of"))?;
            open().map(Some).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// A name for what becomes the file `name` of the directory with this inode, in a directory of
/// the same file system: always the same, so that the next run finds it, and no other file's.
fn unique(name: &OsStr, inode: u64) -> OsString {
    let mut hash = blake3::Hasher::new();
    hash.update(&inode.to_le_bytes()).update(name.as_bytes());
    let mut unique = name.to_owned();
    unique.push(format!("~{}", &hash.finalize().to_hex()[..16]));
    unique
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_beside_a_file_is_a_plain_name() {
        for name in [&b".part"[..], b"...", b"\xff", &[b'n'; 255]] {
            assert!(Workplaces::named(name).is_ok(), "{name:?}");
        }
        let bad = [&b""[..], b".", b"..", b"a/b", b"/a", b"a/", b"a\0", b".x.holesync.temp", &[b'n'; 256]];
        for name in bad {
            assert!(Workplaces::named(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn working_names_elsewhere_are_known_again_and_differ() {
        let names = ["x", "x~", "\u{20ac}"].map(|name| name.repeat(85));
        let mut seen = std::collections::HashSet::new();
        for (name, inode) in names.iter().flat_map(|name| [1, 2, u64::MAX].map(|inode| (name, inode))) {
            let working =
                Working::Temp.name_for(&unique(OsStr::new(name), inode), crate::working::Naming::Common);
            assert!(is_working_name(&working) && working.len() <= 255, "{working:?}");
            assert!(seen.insert(working));
        }
    }
}
