//! A directory that was named, and all below it, reached from descriptors that are held.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::dir::{Dir, Type};
use nix::sys::stat::{FileStat, SFlag};

use crate::confinement::NamedPath;
use crate::error::{Error, in_words};
use crate::filter::DirectoryRules;
use crate::options::{OneFileSystem, Options};
use crate::source::named::{Named, is};
use crate::source::path::{is_unsafe_link, why_not_sent};
use crate::source::removal::Seen;
use crate::source::rules;
use crate::source::walk::look::{DIRECTORY, Opened, is_directory, look};
use crate::source::walk::prune::Pruning;
use crate::source::walk::{Contents, Found, Tells, inspect, skipped};
use crate::source::{self, Identity, Kind, Node, Origin, Source, SourceRoot};
use crate::sys;
use crate::working::is_working_name;

/// Directories that are open at once, for one source: the deepest ones. Those above are
/// opened again when the walk comes back to them.
const MAX_OPEN: usize = 32;

/// A directory that was named, and the way down to where the walk is.
pub struct TreeWalk<'a> {
    from: NamedPath,
    root: Arc<SourceRoot>,
    /// Where the directory itself goes.
    prefix: Vec<u8>,
    options: &'a Options,
    tells: Tells,
    pruning: Option<Pruning>,
    /// The file system of the root.
    device: u64,
    /// The directory that is being read, below the root.
    below: PathBuf,
    levels: Vec<Level>,
    /// Found, and not handed out yet.
    later: VecDeque<Found>,
}

/// A directory of which some names are still to come.
struct Level {
    /// `None`: closed for the sake of deeper ones.
    dir: Option<Dir>,
    /// A symlink was followed on the way to it.
    is_followed: bool,
    identity: Identity,
    rules: DirectoryRules,
    names: std::vec::IntoIter<(OsString, Option<Type>)>,
}

impl<'a> TreeWalk<'a> {
    /// Begins with a directory that is held.
    pub fn begin(
        from: &NamedPath,
        prefix: Vec<u8>,
        named: Named,
        options: &'a Options,
        tells: Tells,
        top: DirectoryRules,
        pruning: Option<Pruning>,
    ) -> TreeWalk<'a> {
        let Named { fd, stat } = named;
        let opened = sys::open_beneath(fd.as_fd(), Path::new(""), DIRECTORY, 0);
        let root = Arc::new(SourceRoot { fd, path: from.path().to_path_buf() });
        let mut tree = TreeWalk {
            from: from.clone(),
            root,
            prefix,
            options,
            tells,
            pruning,
            device: stat.st_dev,
            below: PathBuf::new(),
            levels: Vec::new(),
            later: VecDeque::new(),
        };
        let source = tree.source(Path::new(""), &stat, false);
        let held = tree.root.clone();
        let rules = rules::enter_first(&top, &source.target, from, held.fd.as_fd());
        tree.enter(source, PathBuf::new(), opened, rules, false);
        tree
    }

    /// What is found next.
    pub fn next(&mut self) -> Option<Found> {
        loop {
            if let Some(found) = self.later.pop_front() {
                return Some(found);
            }
            match self.levels.last_mut()?.names.next() {
                Some((name, hint)) => self.entry(&name, hint),
                None => self.leave(),
            }
        }
    }

    /// What is found under the next name.
    fn entry(&mut self, name: &OsStr, hint: Option<Type>) {
        let may_be_followed = hint == Some(Type::Symlink) && self.options.kinds.follow.any();
        if self.tells == Tells::Contents
            && hint.is_some_and(|hint| hint != Type::Directory)
            && !may_be_followed
        {
            return;
        }
        let below = self.below.join(name);
        let Some(level) = self.levels.last() else { return };
        let Some(dir) = &level.dir else { return };
        let looked = look(dir.as_fd(), name, hint).and_then(|(stat, opened)| {
            Ok(self
                .followed(&below, &opened)?
                .map_or((stat, opened, level.is_followed), |(stat, opened)| (stat, opened, true)))
        });
        let (stat, opened, is_followed) = match looked {
            Ok(found) => found,
            Err(error) => return self.failed(&Error::file("read", self.root.path.join(below))(error)),
        };
        let source = self.source(&below, &stat, is_followed);
        if level.rules.hides(&source.target, is(&stat, SFlag::S_IFDIR)) {
            return;
        }
        if let Some(why) = why_not_sent(&source.target) {
            return self.failed(&Error::refused(source.path, why));
        }
        let found = match opened {
            Opened::Directory(_) if source.identity.0 != self.device && self.stays_on_its_file_system() => {
                if self.options.one_file_system == OneFileSystem::WithoutMountPoints {
                    return;
                }
                return self.leaf_directory(source);
            }
            Opened::Directory(_) if !self.options.recursive => return self.leaf_directory(source),
            Opened::Directory(_) if is_followed && self.is_in(source.identity) => {
                let why = "leads back to a directory that it lies in, and is left out";
                return self.failed(&Error::refused(source.path, why));
            }
            Opened::Directory(opened) => {
                let rules = self.rules_in(&level.rules, &source, &below, &opened);
                return self.enter(source, below, opened, rules, is_followed);
            }
            Opened::Link(Err(error)) => return self.failed(&Error::file("read", source.path)(error)),
            Opened::Link(Ok(link)) => inspect(source, &stat, Some(&link), self.options.links),
            Opened::No => match Node::of(&stat) {
                // Only a device that is named itself is read, as one reads an image.
                Some(node) if node.is_wanted(self.options) => source.node(node, &stat).into(),
                Some(_) => skipped("special file", &source.path),
                None => inspect(source, &stat, None, self.options.links),
            },
        };
        self.later.push_back(found);
    }

    /// What is sent in the place of a symlink.
    fn followed(&self, below: &Path, opened: &Opened) -> io::Result<Option<(FileStat, Opened)>> {
        let (follow, Opened::Link(Ok(link))) = (self.options.kinds.follow, opened) else { return Ok(None) };
        if !follow.any() {
            return Ok(None);
        }
        let leaves = || -> io::Result<bool> {
            let to = sys::read_link_at(link, OsStr::new(""))?;
            Ok(is_unsafe_link(to.as_bytes(), &joined(&self.prefix, below.as_os_str())))
        };
        let is_meant = follow.all || follow.leaving && leaves()?;
        let path = self.from.join(below);
        let named = match Named::follow(&path) {
            Ok(named) if is_meant || named.is_directory() && follow.to_directories => named,
            Err(error) if is_meant => {
                let why = in_words(&error);
                let why = format!("it is a symlink, and what it leads to cannot be read: {why}");
                return Err(io::Error::other(why));
            }
            _ => return Ok(None),
        };
        let opened = if named.is_directory() {
            let identity = Identity::of(&named.stat);
            Opened::Directory(path.open(DIRECTORY).and_then(|fd| identity.check(fd)))
        } else {
            Opened::No
        };
        Ok(Some((named.stat, opened)))
    }

    /// Whether the walk is in this directory, or below it.
    fn is_in(&self, directory: Identity) -> bool {
        self.levels.iter().any(|level| level.identity == directory)
    }

    fn stays_on_its_file_system(&self) -> bool {
        self.options.one_file_system != OneFileSystem::No
    }

    fn failed(&mut self, error: &Error) {
        self.later.push_back(Found::Failed(source::lost(error)));
    }

    /// An entry below the root, as if it were a directory. `is_followed`: a symlink was
    /// followed on the way to it, as whoever started this wants it.
    fn source(&self, below: &Path, stat: &FileStat, is_followed: bool) -> Source {
        let origin = if is_followed {
            Origin::Named(self.from.join(below))
        } else {
            Origin::Below(Arc::clone(&self.root))
        };
        Source {
            path: self.root.path.join(below),
            target: joined(&self.prefix, below.as_os_str()),
            kind: Kind::Directory,
            metadata: source::metadata_of(stat),
            identity: Identity::of(stat),
            seen: Seen::of(stat),
            has_other_names: stat.st_nlink > 1,
            order: 0,
            origin,
        }
    }

    /// The rules that hold in a directory.
    fn rules_in(
        &self,
        above: &DirectoryRules,
        source: &Source,
        below: &Path,
        opened: &io::Result<OwnedFd>,
    ) -> Result<DirectoryRules, String> {
        // What cannot be read has no rules either.
        let Ok(dir) = opened else { return Ok(above.clone()) };
        rules::enter(above, &source.target, dir.as_fd(), self.root.fd.as_fd(), below)
    }

    /// Takes up a directory: what is in it comes next. One that cannot be read is
    /// there all the same. Where it is not known what its rules hide, nothing in it is sent.
    fn enter(
        &mut self,
        source: Source,
        below: PathBuf,
        opened: io::Result<OwnedFd>,
        rules: Result<DirectoryRules, String>,
        is_followed: bool,
    ) {
        let (path, identity) = (source.path.clone(), source.identity);
        let directory = source.target.clone();
        match &mut self.pruning {
            Some(pruning) => self.later.extend(pruning.enter(source)),
            None => self.later.push_back(source.into()),
        }
        let mut dir = match opened.and_then(|fd| Ok(Dir::from_fd(fd)?)) {
            Ok(dir) => dir,
            Err(error) => return self.not_entered(&Error::file("read", path)(error)),
        };
        let rules = match rules {
            Ok(rules) => rules,
            Err(why) => {
                let why = format!("has rules that cannot be used, and nothing in it is sent: {why}");
                return self.not_entered(&Error::refused(path, why));
            }
        };
        let (mut names, mut is_whole) = (Vec::new(), true);
        for found in sys::names_in(&mut dir) {
            match found {
                Ok((name, _)) if is_working_name(&name) => {}
                Ok(found) => names.push(found),
                Err(error) => {
                    is_whole = false;
                    self.failed(&Error::file("read", &path)(error));
                }
            }
        }
        names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let is_directory = |name: &OsStr, hint: Option<Type>| is_directory(dir.as_fd(), name, hint);
        let is_hidden = |name: &OsStr, hint: Option<Type>| {
            rules.hides(&joined(&directory, name), is_directory(name, hint))
        };
        if let Some(pruning) = &mut self.pruning {
            let seen = names.iter().filter(|(name, hint)| !is_hidden(name, *hint));
            let files = seen.filter(|(name, hint)| !is_directory(name, *hint));
            let files = files.map(|(name, _)| name.as_bytes().to_vec()).collect();
            self.later.extend(pruning.holds(files, is_whole));
        } else if self.tells != Tells::Entries && is_whole {
            let names = names.iter().filter(|(name, hint)| !is_hidden(name, *hint));
            let names = names.map(|(name, _)| name.as_bytes().to_vec()).collect();
            self.later.push_back(Found::Contents(Contents { directory, names, is_whole }));
        }
        // Files first, as rsync has it.
        names.sort_by_cached_key(|(name, hint)| is_directory(name, *hint));
        self.below = below;
        self.levels.push(Level { dir: Some(dir), is_followed, identity, rules, names: names.into_iter() });
        if let Some(above) = self.levels.len().checked_sub(MAX_OPEN + 1) {
            self.levels[above].dir = None;
        }
    }

    fn not_entered(&mut self, error: &Error) {
        self.pruning.as_mut().map(Pruning::leave);
        self.failed(error);
    }

    /// There is a directory that is not entered.
    fn leaf_directory(&mut self, source: Source) {
        match &mut self.pruning {
            Some(pruning) => self.later.extend(pruning.pass(source)),
            None => self.later.push_back(source.into()),
        }
    }

    /// Goes back to the directory above, which may have to be opened again.
    fn leave(&mut self) {
        self.levels.pop();
        if let Some(pruning) = &mut self.pruning {
            let contents = pruning.leave().filter(|_| self.tells != Tells::Entries);
            self.later.extend(contents.map(Found::Contents));
        }
        self.below.pop();
        let Some(level) = self.levels.last_mut().filter(|level| level.dir.is_none()) else { return };
        let opened = if level.is_followed {
            self.from.join(&self.below).open(DIRECTORY)
        } else {
            sys::open_beneath(self.root.fd.as_fd(), &self.below, DIRECTORY, 0)
        };
        let opened = opened.and_then(|fd| level.identity.check(fd)).and_then(|fd| Ok(Dir::from_fd(fd)?));
        match opened {
            Ok(dir) => level.dir = Some(dir),
            Err(error) => {
                level.names = Vec::new().into_iter();
                self.failed(&Error::file("read", self.root.path.join(&self.below))(error));
            }
        }
    }
}

/// A path below another one; both may be empty.
fn joined(path: &[u8], below: &OsStr) -> Vec<u8> {
    let slash = if path.is_empty() || below.is_empty() { &b""[..] } else { b"/" };
    [path, slash, below.as_bytes()].concat()
}
