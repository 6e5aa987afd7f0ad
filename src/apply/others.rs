//! What directories of the destination have and those of the source have not: it is removed,
//! where that was asked for. Below the directory that is held, over no symlink and into no
//! other file system, as far as nobody else is at work with it.

pub mod in_the_way;

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};

use crate::apply::aside::backup::Backups;
use crate::apply::place::Place;
use crate::apply::place::workplace::Workplaces;
use crate::apply::tree::Unsynced;
use crate::error::{Error, Failure, Result, code, printable};
use crate::filter::{DirectoryRules, FilterSide};
use crate::in_use;
use crate::options::Options;
use crate::source::{self, Contents};
use crate::sys::{self, kind_of};
use crate::working::is_working_name;

/// Bytes of names that are remembered where directories are made of several sources. Of others
/// one at a time is.
const MAX_BYTES: usize = 256 << 20;

/// What a name takes beside its bytes.
const OVERHEAD: usize = 64;

/// How deep a directory may be below one that is removed.
const MAX_DEPTH: usize = 256;

/// For a directory whose names are read.
const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY);

/// What became of an entry that the source does not have.
#[derive(Debug)]
pub enum Removed<'a> {
    /// It is removed, or would be; its path below the destination, with a slash behind a
    /// directory's.
    Gone(&'a [u8]),
    /// It stays, and why.
    Stays(Failure),
}

/// What a directory of the source has.
#[derive(Debug, Default)]
struct Known {
    names: HashSet<Vec<u8>>,
    /// That is all.
    is_whole: bool,
}

/// What the source has, as far as it was told of.
#[derive(Debug, Default)]
pub struct Others {
    contents: BTreeMap<Vec<u8>, Known>,
    /// Bytes in these names.
    bytes: usize,
    removed: u64,
    /// It was told that there are too many to be removed.
    is_limited: bool,
    /// Those of the user.
    rules: Option<DirectoryRules>,
}

impl Others {
    /// A directory of the source has these names, and maybe more.
    pub fn has(&mut self, contents: Contents) {
        let Contents { directory, names, is_whole } = contents;
        let bytes = names.iter().map(|name| name.len() + OVERHEAD).sum::<usize>();
        self.bytes = self.bytes.saturating_add(directory.len() + OVERHEAD).saturating_add(bytes);
        if self.bytes > MAX_BYTES {
            self.contents.clear();
        } else {
            let known = self.contents.entry(directory).or_default();
            known.names.extend(names);
            known.is_whole |= is_whole;
        }
    }

    /// Removes what else is in the directories that were told of since this was called last.
    /// `each` is told of every entry.
    ///
    /// # Errors
    ///
    /// Those of `each`.
    pub fn remove(
        &mut self,
        root: Root,
        options: &Options,
        unsynced: &mut Unsynced,
        each: &mut dyn FnMut(Removed) -> Result<()>,
    ) -> Result<()> {
        let Some(delete) = options.delete else { return Ok(()) };
        let bytes = std::mem::take(&mut self.bytes);
        if bytes > MAX_BYTES {
            let why = "is made of too many names from several sources; what they do not have stays";
            return each(Removed::Stays(Error::refused(root.shown, why).to_failure()));
        }
        let (removed, is_limited) = (self.removed, self.is_limited);
        let rules = self.rules_for(root, options).clone();
        let most = delete.most;
        let mut removal = Removal { root, options, most, rules, removed, is_limited, unsynced, each };
        for (directory, known) in std::mem::take(&mut self.contents) {
            if known.is_whole {
                removal.in_directory(&directory, &known.names)?;
            }
        }
        (self.removed, self.is_limited) = (removal.removed, removal.is_limited);
        Ok(())
    }

    /// Whether something may not be removed that the source does not have.
    ///
    /// # Errors
    ///
    /// What is wrong with a file of rules.
    pub fn protects(
        &mut self,
        root: Root,
        options: &Options,
        path: &[u8],
        is_directory: bool,
    ) -> Result<bool, String> {
        let rules = self.rules_for(root, options);
        let directory = Path::new(OsStr::from_bytes(path)).parent().unwrap_or(Path::new(""));
        Ok(rules_in(rules, root, options, directory)?.protects(path, is_directory, false))
    }

    fn rules_for(&mut self, root: Root, options: &Options) -> &DirectoryRules {
        self.rules.get_or_insert_with(|| {
            let delete_excluded = options.delete.is_some_and(|delete| delete.excluded);
            let path = std::path::absolute(root.shown).unwrap_or_else(|_| root.shown.to_path_buf());
            let side = FilterSide::Receiver { delete_excluded };
            DirectoryRules::new(&options.filter, side, path.as_os_str().as_bytes())
        })
    }
}

/// The rules that hold in a directory of the destination: its files of rules and those above
/// it count, as they are there.
fn rules_in(
    rules: &DirectoryRules,
    root: Root,
    options: &Options,
    directory: &Path,
) -> Result<DirectoryRules, String> {
    let mut rules = rules.clone();
    if !options.filter.has_dir_merges() {
        return Ok(rules);
    }
    let above = directory.ancestors().collect::<Vec<_>>();
    for below in above.into_iter().rev() {
        let dir = sys::open_dir(root.dir.as_fd(), below, DIRECTORY, root.follow);
        let dir = dir.map_err(|error| error.to_string())?;
        rules = rules.enter(below.as_os_str().as_bytes(), &mut |_, name| {
            source::read_rules(dir.as_fd(), root.dir.as_fd(), below, name)
        })?;
    }
    Ok(rules)
}

/// The destination.
#[derive(Clone, Copy)]
pub struct Root<'a> {
    pub dir: &'a OwnedFd,
    /// How to name it to people.
    pub shown: &'a Path,
    /// Where what is removed is kept.
    pub backups: Option<&'a Arc<Backups>>,
    /// Where new content gathers.
    pub workplaces: Option<&'a Workplaces>,
    /// Symlinks to directories are as good as directories.
    pub follow: bool,
}

struct Removal<'a> {
    root: Root<'a>,
    options: &'a Options,
    /// How many entries at most.
    most: Option<u64>,
    /// Those of the user.
    rules: DirectoryRules,
    removed: u64,
    is_limited: bool,
    unsynced: &'a mut Unsynced,
    each: &'a mut dyn FnMut(Removed) -> Result<()>,
}

/// An open directory at the destination.
struct Open {
    dir: Arc<OwnedFd>,
    /// Below the destination.
    path: Vec<u8>,
    shown: PathBuf,
    /// How deep it lies below a directory that is to go; 0: it stays.
    depth: usize,
    rules: DirectoryRules,
}

impl Open {
    fn path_of(&self, name: &OsStr) -> Vec<u8> {
        let mut path = self.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(name.as_bytes());
        path
    }
}

impl Removal<'_> {
    /// Removes what a directory has besides `names`.
    fn in_directory(&mut self, directory: &[u8], names: &HashSet<Vec<u8>>) -> Result<()> {
        let relative = Path::new(OsStr::from_bytes(directory));
        let Root { dir: root, shown, .. } = self.root;
        let shown = if directory.is_empty() { shown.to_path_buf() } else { shown.join(relative) };
        let dir = match sys::open_dir(root.as_fd(), relative, DIRECTORY, self.root.follow) {
            Ok(dir) => dir,
            // It was not made, and that was said.
            Err(error) if sys::is_no_directory(&error) => return Ok(()),
            Err(error) => return self.stays(Error::file("read", &shown)(error)),
        };
        let rules = match rules_in(&self.rules, self.root, self.options, relative) {
            Ok(rules) => rules,
            Err(why) => return self.stays(Error::refused(shown, why)),
        };
        let open = Open { dir: Arc::new(dir), path: directory.to_vec(), shown, depth: 0, rules };
        let found = match names_of(&open) {
            Ok(found) => found,
            Err(error) => return self.stays(error),
        };
        let before = self.removed;
        for name in found {
            if !names.contains(name.as_bytes()) && !is_working_name(&name) {
                self.entry(&open, &name)?;
            }
        }
        if self.removed > before && !self.options.dry_run {
            self.unsynced.add(&open.dir);
        }
        Ok(())
    }

    /// Removes an entry, and what is below it. Returns whether nothing of it is left there.
    fn entry(&mut self, open: &Open, name: &OsStr) -> Result<bool> {
        let place = Place::new(Arc::clone(&open.dir), name.to_owned(), open.shown.join(name));
        // A backup goes for good.
        let backups = self.root.backups.filter(|backups| !backups.is_one(name));
        let place = place.with_backup(backups, Path::new(OsStr::from_bytes(&open.path)));
        let stat = match place.stat() {
            Ok(Some(stat)) => stat,
            Ok(None) => return Ok(true),
            Err(error) => return self.stays(error).map(|()| false),
        };
        let are_kept = |backups: &Arc<Backups>| backups.are_in(&stat) || backups.have_made(&open.dir, name);
        if self.root.backups.is_some_and(are_kept) {
            return Ok(false);
        }
        if self.root.workplaces.is_some_and(|workplaces| workplaces.are_in(&stat)) {
            return Ok(false);
        }
        let kind = kind_of(&stat);
        let is_directory = kind == SFlag::S_IFDIR;
        if open.rules.protects(&open.path_of(name), is_directory, open.depth > 0) {
            return Ok(false);
        }
        if is_directory && !self.is_at_limit() && !self.emptied(open, &place, &stat)? {
            return Ok(false);
        }
        if self.is_at_limit() {
            return self.limit(&place).map(|()| false);
        }
        let removed = match kind {
            SFlag::S_IFDIR => self.remove_directory(&place),
            SFlag::S_IFREG => self.remove_file(place),
            _ => self.unlink(&place),
        };
        if let Err(error) = removed {
            return self.stays(error).map(|()| false);
        }
        self.removed += 1;
        let mut path = open.path_of(name);
        path.extend(is_directory.then_some(b'/'));
        let stays = !is_directory && backups.is_some_and(|backups| backups.are_beside());
        (self.each)(Removed::Gone(&path)).map(|()| !stays)
    }

    fn is_at_limit(&self) -> bool {
        self.most.is_some_and(|most| self.removed >= most)
    }

    /// Removes everything in a directory that is to go. One of this user's that its mode
    /// closes is opened to him for that, and closed again if it stays. Whoever may not do
    /// that is told so when it is read. Returns whether nothing is left.
    fn emptied(&mut self, open: &Open, place: &Place, stat: &FileStat) -> Result<bool> {
        const OWNER: u32 = 0o700;
        let mode = stat.st_mode & 0o7777;
        let is_closed = mode & OWNER != OWNER && !sys::is_root() && !self.options.dry_run;
        let set = |mode| sys::set_mode_at(&place.dir, &place.name, mode);
        let is_opened = is_closed && set(mode | OWNER).is_ok();
        let is_empty = self.below(open, &place.name)?;
        if is_opened && !is_empty {
            // It is as it was but for that.
            let _ = set(mode);
        }
        Ok(is_empty)
    }

    /// Removes everything in a directory that is to go. Returns whether nothing is left.
    fn below(&mut self, open: &Open, name: &OsStr) -> Result<bool> {
        let shown = open.shown.join(name);
        let opened = sys::open_on_same_mount(open.dir.as_fd(), name, DIRECTORY);
        let opened = opened.map_err(|error| match error.raw_os_error() {
            Some(libc::EXDEV) => Error::refused(&shown, "is a mount point: unmount it first"),
            _ => Error::file("read", &shown)(error),
        });
        let inner = opened.and_then(|dir| {
            let depth = open.depth + 1;
            if depth > MAX_DEPTH {
                return Err(Error::refused(&shown, "lies too deep to be removed; remove it by hand"));
            }
            let (path, root) = (open.path_of(name), self.root.dir.as_fd());
            let rules = open.rules.enter(&path, &mut |_, file| {
                source::read_rules(dir.as_fd(), root, Path::new(OsStr::from_bytes(&path)), file)
            });
            let rules = rules.map_err(|why| Error::refused(&shown, why))?;
            let inner = Open { dir: Arc::new(dir), path, shown: shown.clone(), depth, rules };
            names_of(&inner).map(|names| (inner, names))
        });
        let (inner, names) = match inner {
            Ok(found) => found,
            Err(error) => return self.stays(error).map(|()| false),
        };
        let (mut is_empty, before) = (true, self.removed);
        // Working files that are nobody's go with their directory, unless a run is at work.
        for name in names {
            is_empty &= self.entry(&inner, &name)?;
        }
        if !is_empty && self.removed > before && !self.options.dry_run {
            self.unsynced.add(&inner.dir);
        }
        Ok(is_empty)
    }

    fn remove_directory(&self, place: &Place) -> Result<()> {
        if self.options.dry_run {
            return Ok(());
        }
        match sys::remove_dir_at(&place.dir, &place.name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(place.error("remove")),
        }
    }

    /// Removes a file that nobody is at work with, and what runs left beside it.
    fn remove_file(&self, mut place: Place) -> Result<()> {
        // Who may remove a file need not be one who may read it.
        if let Ok(file) = place.open(&place.name, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            refuse_busy(&file, &place, self.options)?;
        }
        if self.options.dry_run {
            return Ok(());
        }
        let beside = if is_working_name(&place.name) { None } else { Some(place.look_beside()?) };
        self.unlink(&place)?;
        if let Some(beside) = beside {
            place.remove_leftovers(&beside.leftovers);
        }
        Ok(())
    }

    fn unlink(&self, place: &Place) -> Result<()> {
        if !self.options.dry_run && !place.move_to_backup()? {
            sys::unlink_at(&place.dir, &place.name).map_err(place.error("remove"))?;
        }
        Ok(())
    }

    fn stays(&mut self, error: Error) -> Result<()> {
        (self.each)(Removed::Stays(error.to_failure()))
    }

    fn limit(&mut self, place: &Place) -> Result<()> {
        if std::mem::replace(&mut self.is_limited, true) {
            return Ok(());
        }
        let path = printable(&place.path);
        let message =
            format!("{path} stays, as does what else would be removed: --max-delete allows no more");
        (self.each)(Removed::Stays(Failure::new(code::DELETE_LIMIT, message).about(&place.path)))
    }
}

/// Refuses a file that another program has locked, or another run of this one. A dry run does not
/// look for the latter: it would be in its way.
fn refuse_busy(file: &File, place: &Place, options: &Options) -> Result<()> {
    let state = file.metadata().map_err(place.error("look at"))?;
    let may_lock = state.is_file() && !options.dry_run;
    if may_lock && matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
        return Err(Error::refused(&place.path, "another holesync run is writing it; wait for it to end"));
    }
    if options.force_in_use { Ok(()) } else { in_use::refuse(file, &state, &place.path) }
}

/// The names in a directory, the last first, as rsync removes them.
fn names_of(open: &Open) -> Result<Vec<OsString>> {
    let read = || -> io::Result<_> {
        let mut dir = Dir::from_fd(open.dir.try_clone()?)?;
        let mut names = sys::names_in(&mut dir).map(|found| Ok(found?.0)).collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names)
    };
    read().map_err(Error::file("read", &open.shown))
}
