//! The walk: everything below the sources, reached from descriptors that are held. What
//! becomes a symlink after its name was read is not followed.

mod look;
mod prune;
mod top;
mod tree;

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::sys::stat::{FileStat, SFlag};

use crate::confinement::NamedPath;
use crate::error::{Error, Failure, Warning, printable};
use crate::filter::DirectoryRules;
use crate::options::Options;
use crate::source::links::FirstNames;
use crate::source::named::{Named, is};
use crate::source::path::is_unsafe_link;
use crate::source::together::merges;
use crate::source::{self, Kind, Metadata, Names, Source};
use crate::sys;
use tree::TreeWalk;

/// What a walk finds.
#[derive(Debug)]
pub enum Found {
    /// An entry to send.
    Source(Box<Source>),
    /// An entry that cannot be read, or not be sent.
    Failed(Failure),
    /// An entry that is left out on purpose.
    Skipped(Warning),
    /// Where entries are removed that the source does not have: what a directory holds.
    Contents(Contents),
}

impl From<Source> for Found {
    fn from(source: Source) -> Found {
        Found::Source(Box::new(source))
    }
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
    /// What else is there can go; otherwise these names are of it whoever tells of all.
    pub is_whole: bool,
}

/// Everything below the sources, parents before children; in a directory what is none
/// before directories, names in order. A symlink that is named as a source is followed to a
/// file or device, unless the options say otherwise.
pub struct Walk<'a> {
    /// Not begun.
    sources: std::slice::Iter<'a, NamedPath>,
    options: &'a Options,
    /// The only source, which was found already.
    only: Option<io::Result<Named>>,
    /// The directory that is being walked.
    tree: Option<TreeWalk<'a>>,
    names: Names,
    /// The rules that hold for the source that is being walked.
    rules: Option<DirectoryRules>,
    /// Where something goes already, if there are several sources.
    taken: Option<HashSet<Vec<u8>>>,
    first_names: FirstNames,
    /// Directories on the way to sources that were told of.
    implied: HashSet<Vec<u8>>,
    /// What directories hold may be told of in pieces.
    merges: bool,
    tells: Tells,
    /// Found, and not handed out yet.
    later: VecDeque<Found>,
    /// How many sources were handed out.
    count: u64,
}

impl<'a> Walk<'a> {
    /// Begins a walk. Nothing is read yet, but a single source is held from now on.
    pub fn new(sources: &'a [NamedPath], options: &'a Options) -> Walk<'a> {
        let follow = options.kinds.follow;
        let only = if let [only] = sources { Some(Named::find(only, follow)) } else { None };
        let taken = only.is_none().then(HashSet::new);
        Walk {
            sources: sources.iter(),
            options,
            only,
            tree: None,
            names: Names::default(),
            rules: None,
            taken,
            first_names: FirstNames::default(),
            implied: HashSet::new(),
            merges: merges(sources),
            tells: Tells::Entries,
            later: VecDeque::new(),
            count: 0,
        }
    }

    /// The same, for what else is to be told.
    pub fn telling(self, tells: Tells) -> Walk<'a> {
        Walk { tells, ..self }
    }

    /// Whether there is a single source and it is no directory: then the destination may
    /// name the file itself.
    pub fn is_single(&self) -> bool {
        let goes_deeper = |source: &NamedPath| source.is_listed() || source.target().contains(&b'/');
        self.only.as_ref().is_some_and(|only| !only.as_ref().is_ok_and(Named::is_directory))
            && !self.sources.as_slice().iter().any(goes_deeper)
    }

    /// The next of what is found, names of owners left out.
    fn find(&mut self) -> Option<Found> {
        loop {
            let next = self.later.pop_front().or_else(|| self.tree.as_mut().and_then(|tree| tree.next()));
            if next.is_some() {
                return next;
            }
            let from = self.sources.next()?;
            let named = self.only.take().unwrap_or_else(|| Named::find(from, self.options.kinds.follow));
            match self.take_up(from, named) {
                Ok(found) => self.later.extend(found),
                Err(error) => return Some(Found::Failed(error.to_failure())),
            }
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            match self.find()? {
                Found::Source(mut source) => {
                    match &source.kind {
                        Kind::File { length, .. } if !self.options.transfer.takes_size(*length) => continue,
                        Kind::Symlink(link)
                            if self.options.safe_links && is_unsafe_link(link, &source.target) =>
                        {
                            return Some(Found::Skipped(source::ignored_link(&source.path, link)));
                        }
                        _ => {}
                    }
                    // As with rsync, of several sources with one name the first counts.
                    // A directory of which only the name is kept may come as itself later.
                    let is_bare = source.is_bare_directory();
                    let is_new = |taken: &mut HashSet<_>| {
                        if is_bare {
                            !taken.contains(&source.target)
                        } else {
                            taken.insert(source.target.clone())
                        }
                    };
                    if !self.taken.as_mut().is_none_or(is_new) {
                        continue;
                    }
                    if self.options.kinds.hard_links
                        && let Some(first) = self.first_names.of(&source)
                    {
                        source.kind = Kind::HardLink(first);
                    } else if !is_bare {
                        self.complete(&mut source);
                    }
                    source.order = self.count;
                    self.count += 1;
                    return Some(Found::Source(source));
                }
                other => return Some(other),
            }
        }
    }
}

impl Walk<'_> {
    /// Adds what is known of an entry beside what its inode says.
    fn complete(&mut self, source: &mut Source) {
        if !self.options.attributes.atimes {
            source.metadata.atime = None;
        }
        if let Some(rules) = &self.rules
            && let Err(error) = source.read_extended(self.options, rules)
        {
            self.later.push_back(Found::Failed(source::lost(&error)));
        }
        let Metadata { owner, acls, .. } = &mut source.metadata;
        if let Some(owner) = owner {
            self.names.fill(owner);
        }
        for entry in acls.iter_mut().flat_map(|acls| acls.access.iter_mut().chain(&mut acls.default)) {
            self.names.fill_entry(entry);
        }
        if let Err(error) = source.limit_extended() {
            self.later.push_back(Found::Failed(error.to_failure()));
        }
    }
}

fn skipped(what: &str, path: &Path) -> Found {
    Found::Skipped(Warning::about(path, format!("skipping {what} {}", printable(path))))
}

/// A source that is no directory, as it is to be sent. `link`: it, if it is a symlink.
fn inspect(source: Source, stat: &FileStat, link: Option<&OwnedFd>, links: bool) -> Found {
    if is(stat, SFlag::S_IFREG) {
        return source::regular(source, stat)
            .map_or_else(|error| Found::Failed(error.to_failure()), Found::from);
    }
    match link {
        Some(link) if is(stat, SFlag::S_IFLNK) && links => match sys::read_link_at(link, OsStr::new("")) {
            Ok(target) => Source { kind: Kind::Symlink(target.into_vec()), ..source }.into(),
            Err(error) => Found::Failed(source::lost(&Error::file("read", source.path)(error))),
        },
        _ => skipped(if is(stat, SFlag::S_IFLNK) { "symlink" } else { "special file" }, &source.path),
    }
}
