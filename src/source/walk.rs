//! The walk: everything below the sources, reached from descriptors that are held. What
//! becomes a symlink after its name was read is not followed.

mod look;

use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::dir::{Dir, Type};
use nix::sys::stat::{FileStat, SFlag};

use crate::confinement::NamedPath;
use crate::error::{Error, Failure, Result, printable};
use crate::filter::DirectoryRules;
use crate::options::{OneFileSystem, Options};
use crate::source::named::{Named, base_name, is, names_contents};
use crate::source::path::{NOT_SENT, is_unsafe_link, why_not_sent};
use crate::source::rules;
use crate::source::together::Together;
use crate::source::{self, Identity, Kind, Names, Origin, Source, SourceRoot};
use crate::sys;
use crate::working::is_working_name;
use look::{DIRECTORY, Opened, is_directory, look};

/// Directories that are open at once, for one source: the deepest ones. Those above are
/// opened again when the walk comes back to them.
const MAX_OPEN: usize = 32;

/// What a walk finds.
#[derive(Debug)]
pub enum Found {
    /// An entry to send.
    Source(Source),
    /// An entry that cannot be read, or not be sent.
    Failed(Failure),
    /// An entry that is left out on purpose.
    Skipped(String),
    /// Where entries are removed that the source does not have: what a directory holds.
    Contents(Contents),
}

/// What of all that is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tells {
    /// Entries to send.
    Entries,
    /// Contents of directories, too.
    Both,
    /// Contents of directories alone: nothing else is looked at.
    Contents,
}

/// The names in a directory of the source that no rule hides, whether they are sent or not.
#[derive(Debug)]
pub struct Contents {
    /// Where it goes.
    pub directory: Vec<u8>,
    /// Without working files.
    pub names: Vec<Vec<u8>>,
}

/// Everything below the sources, parents before children, names in order. A symlink that
/// is named as a source is followed to a file or device.
pub struct Walk<'a> {
    /// Not begun.
    sources: std::slice::Iter<'a, NamedPath>,
    options: &'a Options,
    /// The only source, which was found already.
    only: Option<io::Result<Named>>,
    /// The directory that is being walked.
    tree: Option<TreeWalk>,
    names: Names,
    /// Where something goes already, if there are several sources.
    taken: Option<HashSet<Vec<u8>>>,
    /// How several sources go together.
    together: Together,
    tells: Tells,
    /// Found, and not handed out yet.
    later: Option<Found>,
}

impl<'a> Walk<'a> {
    /// Begins a walk. Nothing is read yet, but a single source is held from now on.
    pub fn new(sources: &'a [NamedPath], options: &'a Options) -> Walk<'a> {
        let only = if let [only] = sources { Some(Named::find(only)) } else { None };
        let taken = only.is_none().then(HashSet::new);
        let (together, names) = (Together::of(sources), Names::default());
        let (tells, later) = (Tells::Entries, None);
        Walk { sources: sources.iter(), options, only, tree: None, names, taken, together, tells, later }
    }

    /// The same, for what else is to be told.
    pub fn telling(self, tells: Tells) -> Walk<'a> {
        Walk { tells, ..self }
    }

    /// Whether there is a single source and it is no directory: then the destination may
    /// name the file itself.
    pub fn is_single(&self) -> bool {
        self.only.as_ref().is_some_and(|only| !only.as_ref().is_ok_and(Named::is_directory))
    }

    /// The next of what is found, names of owners left out.
    fn find(&mut self) -> Option<Found> {
        loop {
            let next = self.later.take().or_else(|| self.tree.as_mut().and_then(TreeWalk::next));
            if next.is_some() {
                return next;
            }
            let from = self.sources.next()?;
            let named = self.only.take().unwrap_or_else(|| Named::find(from));
            let begun = named.map_err(Error::file("read", from.path()));
            let begun = begun.and_then(|named| self.begin(from, named));
            match begun {
                Ok(Some(found)) => return Some(found),
                Ok(None) => {}
                Err(error) => return Some(Found::Failed(error.to_failure())),
            }
        }
    }

    /// Takes up a source. A directory is walked next.
    fn begin(&mut self, from: &NamedPath, named: Named) -> Result<Option<Found>> {
        let path = from.path();
        let contents = names_contents(path);
        let prefix = if contents { Vec::new() } else { base_name(path) };
        if let Some(why) = why_not_sent(&prefix) {
            return Err(Error::refused(path, why));
        }
        let top = rules::rules_for(from, self.options);
        if !prefix.is_empty() && top.hides(&prefix, named.is_directory()) {
            return Ok(None);
        }
        if self.tells != Tells::Entries && self.together == Together::AtTheTop && !contents {
            // Beside what other sources hold.
            self.later =
                Some(Found::Contents(Contents { directory: Vec::new(), names: vec![prefix.clone()] }));
        }
        if named.is_directory() {
            if !self.options.recursive {
                return Ok(Some(skipped("directory", path)));
            }
            self.tree = Some(TreeWalk::begin(from, prefix, named, self.options, self.tells, top));
            return Ok(None);
        }
        let source = Source {
            path: path.to_path_buf(),
            target: prefix,
            kind: Kind::Directory,
            metadata: source::metadata_of(&named.stat),
            identity: Identity::of(&named.stat),
            origin: Origin::Named(from.clone()),
        };
        if is(&named.stat, SFlag::S_IFBLK) {
            return source.device().map(|device| Some(Found::Source(device)));
        }
        if ![SFlag::S_IFREG, SFlag::S_IFLNK].iter().any(|&kind| is(&named.stat, kind)) {
            return Err(Error::refused(path, NOT_SENT));
        }
        Ok(Some(inspect(source, &named.stat, Some(&named.fd), self.options.links)))
    }
}

impl Iterator for Walk<'_> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            match self.find()? {
                Found::Source(Source { kind: Kind::File { length, .. }, .. })
                    if !self.options.transfer.takes_size(length) => {}
                Found::Source(Source { kind: Kind::Symlink(link), target, path, .. })
                    if self.options.safe_links && is_unsafe_link(&link, &target) =>
                {
                    return Some(skipped("unsafe symlink", &path));
                }
                Found::Source(mut source) => {
                    // As with rsync, of several sources with one name the first counts.
                    let is_new = |taken: &mut HashSet<_>| taken.insert(source.target.clone());
                    if !self.taken.as_mut().is_none_or(is_new) {
                        continue;
                    }
                    if let Some(owner) = &mut source.metadata.owner {
                        self.names.fill(owner);
                    }
                    return Some(Found::Source(source));
                }
                other => return Some(other),
            }
        }
    }
}

/// A directory that was named, and the way down to where the walk is.
struct TreeWalk {
    root: Arc<SourceRoot>,
    /// Where the directory itself goes.
    prefix: Vec<u8>,
    /// Symlinks are sent.
    links: bool,
    tells: Tells,
    one_file_system: OneFileSystem,
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
    identity: Identity,
    rules: DirectoryRules,
    names: std::vec::IntoIter<(OsString, Option<Type>)>,
}

impl TreeWalk {
    fn begin(
        from: &NamedPath,
        prefix: Vec<u8>,
        named: Named,
        options: &Options,
        tells: Tells,
        top: DirectoryRules,
    ) -> TreeWalk {
        let Named { fd, stat } = named;
        let links = options.links;
        let (one_file_system, device) = (options.one_file_system, stat.st_dev);
        let opened = sys::open_beneath(fd.as_fd(), Path::new(""), DIRECTORY, 0);
        let root = Arc::new(SourceRoot { fd, path: from.path().to_path_buf() });
        let (below, levels) = (PathBuf::new(), Vec::new());
        let later = VecDeque::new();
        let mut tree = TreeWalk { root, prefix, links, tells, one_file_system, device, below, levels, later };
        let source = tree.source(PathBuf::new(), &stat);
        let held = tree.root.clone();
        let rules = rules::enter_first(&top, &source.target, from, held.fd.as_fd());
        tree.enter(source, opened, rules);
        tree
    }

    fn next(&mut self) -> Option<Found> {
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
        if self.tells == Tells::Contents && hint.is_some_and(|hint| hint != Type::Directory) {
            return;
        }
        let below = self.below.join(name);
        let Some(dir) = self.levels.last().and_then(|level| level.dir.as_ref()) else { return };
        let looked = look(dir.as_fd(), name, hint);
        let (stat, opened) = match looked {
            Ok(found) => found,
            Err(error) => return self.failed(&Error::file("read", self.root.path.join(below))(error)),
        };
        let source = self.source(below, &stat);
        let Some(level) = self.levels.last() else { return };
        if level.rules.hides(&source.target, is(&stat, SFlag::S_IFDIR)) {
            return;
        }
        if let Some(why) = why_not_sent(&source.target) {
            return self.failed(&Error::refused(source.path, why));
        }
        let found = match opened {
            Opened::Directory(_) if source.identity.0 != self.device && self.stays_on_its_file_system() => {
                if self.one_file_system == OneFileSystem::WithoutMountPoints {
                    return;
                }
                Found::Source(source)
            }
            Opened::Directory(opened) => {
                let rules = self.rules_in(&level.rules, &source, &opened);
                return self.enter(source, opened, rules);
            }
            // Only a device that is named itself is read, as one reads an image.
            _ if is(&stat, SFlag::S_IFBLK) => skipped("special file", &source.path),
            Opened::Link(Err(error)) => return self.failed(&Error::file("read", source.path)(error)),
            Opened::Link(Ok(link)) => inspect(source, &stat, Some(&link), self.links),
            Opened::No => inspect(source, &stat, None, self.links),
        };
        self.later.push_back(found);
    }

    fn stays_on_its_file_system(&self) -> bool {
        self.one_file_system != OneFileSystem::No
    }

    fn failed(&mut self, error: &Error) {
        self.later.push_back(Found::Failed(source::lost(error)));
    }

    /// An entry below the root, as if it were a directory.
    fn source(&self, below: PathBuf, stat: &FileStat) -> Source {
        Source {
            path: self.root.path.join(&below),
            target: joined(&self.prefix, below.as_os_str()),
            kind: Kind::Directory,
            metadata: source::metadata_of(stat),
            identity: Identity::of(stat),
            origin: Origin::Below(Arc::clone(&self.root)),
        }
    }

    /// The rules that hold in a directory.
    fn rules_in(
        &self,
        above: &DirectoryRules,
        source: &Source,
        opened: &io::Result<OwnedFd>,
    ) -> std::result::Result<DirectoryRules, String> {
        // What cannot be read has no rules either.
        let Ok(dir) = opened else { return Ok(above.clone()) };
        rules::enter(above, &source.target, dir.as_fd(), self.root.fd.as_fd(), source.below())
    }

    /// Takes up a directory: what is in it comes next. One that cannot be read is
    /// there all the same. Where it is not known what its rules hide, nothing in it is sent.
    fn enter(
        &mut self,
        source: Source,
        opened: io::Result<OwnedFd>,
        rules: std::result::Result<DirectoryRules, String>,
    ) {
        let (path, identity) = (source.path.clone(), source.identity);
        let directory = source.target.clone();
        let below = source.below().to_path_buf();
        self.later.push_back(Found::Source(source));
        let mut dir = match opened.and_then(|fd| Ok(Dir::from_fd(fd)?)) {
            Ok(dir) => dir,
            Err(error) => return self.failed(&Error::file("read", path)(error)),
        };
        let rules = match rules {
            Ok(rules) => rules,
            Err(why) => {
                let why = format!("has rules that cannot be used, and nothing in it is sent: {why}");
                return self.failed(&Error::refused(path, why));
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
        if self.tells != Tells::Entries && is_whole {
            let is_hidden = |name: &OsStr, hint: Option<Type>| {
                let path = joined(&directory, name);
                rules.hides(&path, is_directory(dir.as_fd(), name, hint))
            };
            let names = names.iter().filter(|(name, hint)| !is_hidden(name, *hint));
            let names = names.map(|(name, _)| name.as_bytes().to_vec()).collect();
            self.later.push_back(Found::Contents(Contents { directory, names }));
        }
        self.below = below;
        self.levels.push(Level { dir: Some(dir), identity, rules, names: names.into_iter() });
        if let Some(above) = self.levels.len().checked_sub(MAX_OPEN + 1) {
            self.levels[above].dir = None;
        }
    }

    /// Goes back to the directory above, which may have to be opened again.
    fn leave(&mut self) {
        self.levels.pop();
        self.below.pop();
        let Some(level) = self.levels.last_mut().filter(|level| level.dir.is_none()) else { return };
        let opened = sys::open_beneath(self.root.fd.as_fd(), &self.below, DIRECTORY, 0);
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

fn skipped(what: &str, path: &Path) -> Found {
    Found::Skipped(format!("skipping {what} {}", printable(path)))
}

/// A source that is no directory, as it is to be sent. `link`: it, if it is a symlink.
fn inspect(source: Source, stat: &FileStat, link: Option<&OwnedFd>, links: bool) -> Found {
    if is(stat, SFlag::S_IFREG) {
        return source::regular(source, stat)
            .map_or_else(|error| Found::Failed(error.to_failure()), Found::Source);
    }
    match link {
        Some(link) if is(stat, SFlag::S_IFLNK) && links => match sys::read_link_at(link, OsStr::new("")) {
            Ok(target) => Found::Source(Source { kind: Kind::Symlink(target.into_vec()), ..source }),
            Err(error) => Found::Failed(source::lost(&Error::file("read", source.path)(error))),
        },
        _ => skipped(if is(stat, SFlag::S_IFLNK) { "symlink" } else { "special file" }, &source.path),
    }
}
