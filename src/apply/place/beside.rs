//! The working files beside a destination, and whose they are. Only what is as this process
//! makes it counts: its user's, 0600, with one name, a regular file. What is another's is
//! neither believed nor in the way: this run works under [another name](Naming), and removes
//! it, where that may be, once the file is in its place.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};

use crate::apply::place::{Place, workplace};
use crate::error::Result;
use crate::sys::{self, kind_of};
use crate::working::{Naming, Working, image_of, naming_of};

/// What lies beside a place under the names of working files.
#[derive(Debug, Default)]
pub struct Beside {
    /// Ours, under the names that this run uses.
    pub leftovers: Vec<Working>,
    /// What else is there: another's, and ours under names that this run does not use.
    pub litter: Vec<OsString>,
    /// The same in another directory, where temp files and clones lie.
    pub litter_at_work: Vec<OsString>,
    /// The namings under which there is a log of ours.
    pub logs: Vec<Naming>,
    /// Another user's log, and whose it is.
    pub foreign_log: Option<(OsString, u32)>,
}

impl Beside {
    /// Takes note of a log that was found, under whatever name.
    pub fn add_log(&mut self, place: &Place, name: &OsStr) -> io::Result<()> {
        let is_log = image_of(name, Working::Log).is_some();
        let Some(naming) = naming_of(name).filter(|_| is_log) else { return Ok(()) };
        let is_known = self.foreign_log.as_ref().is_some_and(|(known, _)| known == name);
        if is_known || self.logs.contains(&naming) {
            return Ok(());
        }
        match sys::stat_at(&place.dir, name)? {
            Some(stat) if place.is_ours(&stat, &mut None)? => self.logs.push(naming),
            Some(stat) => {
                self.foreign_log.get_or_insert((name.to_owned(), stat.st_uid));
            }
            None => {}
        }
        Ok(())
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.leftovers.is_empty() && self.litter.is_empty() && self.litter_at_work.is_empty()
    }
}

/// What tells whose a working file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Maker {
    uid: u32,
    /// Permission bits that it has when it is made with 0600.
    mode: u32,
}

impl Maker {
    /// This process, where every file has the owner that made it.
    fn this_process() -> Maker {
        Maker { uid: sys::effective_user(), mode: 0o600 }
    }

    /// As a file shows that this process just made.
    fn of_new(file: &Metadata) -> Maker {
        Maker { uid: file.uid(), mode: file.mode() & 0o7777 }
    }

    /// Whether it made what is so. A temp file has its final permissions for a moment: who
    /// has it open then reads what comes later, so it is no working file any more.
    fn made(self, stat: &FileStat) -> bool {
        let is_private = stat.st_mode & 0o7777 == self.mode;
        kind_of(stat) == SFlag::S_IFREG && stat.st_nlink == 1 && stat.st_uid == self.uid && is_private
    }
}

impl Place {
    /// Looks for working files, and chooses the names under which this run has its own.
    pub(in crate::apply) fn look_beside(&mut self) -> Result<Beside> {
        let failed = self.error("look beside");
        let mut look = || -> io::Result<Beside> {
            let (naming, beside) = self.look(&Working::CONTENT, &[Working::Temp, Working::Log])?;
            self.naming = naming;
            self.look_at_work(beside)
        };
        look().map_err(failed)
    }

    /// Adds what lies in another directory, where temp files and clones are to be: those
    /// beside the file are of runs that had none.
    fn look_at_work(&mut self, mut beside: Beside) -> io::Result<Beside> {
        let is_at_work = |kind: &Working| workplace::KINDS.contains(kind);
        let Some(workplace) = &mut self.workplace else { return Ok(beside) };
        let (naming, there) = workplace.place.look(&workplace::KINDS, &workplace::KINDS)?;
        workplace.place.naming = naming;
        let here = self.naming;
        let (strange, leftovers): (Vec<_>, Vec<_>) = beside.leftovers.into_iter().partition(is_at_work);
        beside.litter.extend(strange.into_iter().map(|kind| kind.name_for(&self.name, here)));
        beside.leftovers = leftovers.into_iter().chain(there.leftovers).collect();
        beside.litter_at_work = there.litter;
        beside.litter_at_work.extend(workplace.stale(&self.dir)?);
        Ok(beside)
    }

    /// `all`: kinds of working files that may be there; `lasting`: those that are looked for
    /// under names that are not used now.
    fn look(&self, all: &[Working], lasting: &[Working]) -> io::Result<(Naming, Beside)> {
        let user = Naming::User(sys::effective_user());
        let (mut beside, mut free) = (Beside::default(), None);
        let mut maker = None;
        for naming in [Naming::Common, user] {
            let mut found = Vec::new();
            let mut is_free = true;
            // Under names that are not used now: a stage lies where its log does, and no clone
            // outlives its run for long.
            let looked_for = if free.is_none() { all } else { lasting };
            for kind in looked_for.iter().copied().chain([Working::Prepared]) {
                // It is beside something else, or of no use.
                if kind == Working::Prepared && found.is_empty() {
                    continue;
                }
                let name = kind.name_for(&self.name, naming);
                let Some(stat) = sys::stat_at(&self.dir, &name)? else { continue };
                if self.is_ours(&stat, &mut maker)? {
                    found.push((kind, name));
                    continue;
                }
                // A mark is for people alone.
                is_free &= kind == Working::Prepared;
                if kind == Working::Log {
                    beside.foreign_log.get_or_insert((name.clone(), stat.st_uid));
                }
                beside.litter.push(name);
            }
            if found.iter().any(|(kind, _)| *kind == Working::Log) {
                beside.logs.push(naming);
            }
            if is_free && free.is_none() {
                free = Some(naming);
                beside.leftovers = found.into_iter().map(|(kind, _)| kind).collect();
            } else {
                beside.litter.extend(found.into_iter().map(|(_, name)| name));
            }
        }
        // A stage is looked for where its log is.
        for naming in beside.logs.iter().filter(|naming| Some(**naming) != free) {
            beside.litter.push(Working::Stage.name_for(&self.name, *naming));
        }
        Ok((free.unwrap_or_else(|| Naming::once(sys::effective_user())), beside))
    }

    /// Whether this process made a working file. On a file system where all files have one
    /// owner, or one mode, a file is made and looked at: once, into `maker`.
    fn is_ours(&self, stat: &FileStat, maker: &mut Option<Maker>) -> io::Result<bool> {
        if Maker::this_process().made(stat) {
            return Ok(true);
        }
        let maker = match maker {
            Some(maker) => *maker,
            // Where none can be made, none of ours is there.
            none => *none.insert(match self.unnamed() {
                Ok(file) => Maker::of_new(&file.metadata()?),
                Err(_) => Maker::this_process(),
            }),
        };
        Ok(maker.made(stat))
    }

    /// Whether the next run finds the working files of this one.
    pub(in crate::apply) fn finds_again(&self) -> bool {
        !matches!(self.home_of(Working::Temp).naming, Naming::Once(..))
    }

    /// A working file of an earlier run, to go on from.
    pub(in crate::apply) fn leftover(&self, kind: Working) -> io::Result<Option<File>> {
        self.open_ours(kind, OFlag::O_RDWR)
    }

    /// A working file as it is, for reading, if it is ours.
    pub(in crate::apply) fn peek(&self, kind: Working) -> io::Result<Option<File>> {
        self.open_ours(kind, OFlag::O_RDONLY)
    }

    fn open_ours(&self, kind: Working, flags: OFlag) -> io::Result<Option<File>> {
        let home = self.home_of(kind);
        let file = match home.open(&home.name_of(kind), flags | OFlag::O_NONBLOCK) {
            // It may be ours, and be kept from us.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
                let stat = sys::stat_at(&home.dir, &home.name_of(kind))?;
                let is_ours = stat.is_some_and(|stat| Maker::this_process().made(&stat));
                return if is_ours { Err(error) } else { Ok(None) };
            }
            Err(error) if is_not_ours(&error) => return Ok(None),
            other => other?,
        };
        let stat = nix::sys::stat::fstat(&file)?;
        let is_ours = home.is_ours(&stat, &mut None)?;
        Ok(is_ours.then_some(file))
    }

    /// Whether somebody else may have put a file of ours under the name of a working file,
    /// or made it: others may rename in this directory, or all files there have one owner
    /// or mode.
    pub(in crate::apply) fn is_shared(&self) -> io::Result<bool> {
        let dir = nix::sys::stat::fstat(&self.dir)?;
        let (euid, others) = (sys::effective_user(), 0o022);
        if dir.st_uid != euid || dir.st_mode & others != 0 {
            return Ok(true);
        }
        // Where none can be made, as on a full disk, nobody knows.
        let made = self.unnamed().and_then(|file| file.metadata());
        Ok(!made.is_ok_and(|made| Maker::of_new(&made) == Maker::this_process()))
    }

    /// A new working file; there must be none.
    pub(in crate::apply) fn create_new(&self, kind: Working) -> io::Result<File> {
        let home = self.home_of(kind);
        home.open(&home.name_of(kind), OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL)
    }

    /// A new working file, in the place of what somebody else put there since
    /// [`look_beside`](Place::look_beside). A log or stage of ours is another run's, which
    /// may have sealed it.
    pub(in crate::apply) fn create(&self, kind: Working) -> io::Result<File> {
        const TRIES: usize = 8;
        for _ in 1..TRIES {
            match self.create_new(kind) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if matches!(kind, Working::Log | Working::Stage) && self.peek(kind)?.is_some() {
                        return Err(error);
                    }
                    let home = self.home_of(kind);
                    home.clear(&home.name_of(kind))?;
                }
                other => return other,
            }
        }
        self.create_new(kind)
    }

    /// Removes what earlier runs left, unless another run is at work with it.
    pub(in crate::apply) fn remove_leftovers(&self, kinds: &[Working]) {
        for kind in kinds {
            let home = self.home_of(*kind);
            // It is in nobody's way.
            let _ = home.clear(&home.name_of(*kind));
        }
    }

    /// Removes what is another's or of no use any more, where that may be.
    pub(in crate::apply) fn remove_litter(&self, beside: &Beside) {
        let home = self.home_of(Working::Temp);
        let there = beside.litter_at_work.iter().map(|name| (home, name));
        for (place, name) in beside.litter.iter().map(|name| (self, name)).chain(there) {
            // It is in nobody's way.
            let _ = place.clear(name);
        }
    }

    /// Removes what has a name, a directory too. Another's that is locked is at work: it
    /// stays, as an error.
    pub(in crate::apply) fn clear(&self, name: &OsStr) -> io::Result<()> {
        if let Ok(file) = self.open(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK)
            && file.metadata()?.is_file()
            && matches!(file.try_lock(), Err(TryLockError::WouldBlock))
        {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        match sys::unlink_at(&self.dir, name) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => sys::remove_dir_at(&self.dir, name),
            other => other.map(drop),
        }
    }
}

/// Whether an error of opening a working file says that it is gone, or not ours.
fn is_not_ours(error: &io::Error) -> bool {
    let known = [libc::ENOENT, libc::ELOOP, libc::EISDIR, libc::ENXIO];
    error.raw_os_error().is_some_and(|errno| known.contains(&errno))
}
