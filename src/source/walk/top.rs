//! How a walk takes up what was named: a source, the directories on the way to it, and what is
//! told of it beside other sources.

use std::io;

use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;

use crate::confinement::NamedPath;
use crate::error::{Error, Result};
use crate::filter::DirectoryRules;
use crate::options::Missing;
use crate::source::named::{Named, is};
use crate::source::path::{NOT_SENT, slashes, why_not_sent};
use crate::source::removal::Seen;
use crate::source::walk::prune::Pruning;
use crate::source::walk::{Contents, Found, Tells, TreeWalk, Walk, inspect, skipped};
use crate::source::{self, Identity, Kind, Metadata, Node, Origin, Source, rules};

impl Walk<'_> {
    /// Takes up a source. A directory is walked next.
    pub(super) fn take_up(&mut self, from: &NamedPath, named: io::Result<Named>) -> Result<Option<Found>> {
        let path = from.path();
        let target = from.target();
        if let Some(why) = why_not_sent(&target) {
            return Err(Error::refused(path, why));
        }
        let directories = &self.options.directories;
        let makes_directories = self.options.recursive || directories.without_recursion;
        let has_root = from.keeps().is_below_root && directories.implied && makes_directories;
        if has_root && self.implied.insert(Vec::new()) {
            let root = self.kept_root(from)?;
            self.later.extend(root.map(Found::from));
        }
        let named = match named {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.absent(from, error),
            other => other.map_err(Error::file("read", path))?,
        };
        let top = rules::rules_for(from, self.options);
        if !target.is_empty() && top.hides(&target, named.is_directory()) {
            return Ok(None);
        }
        if self.merges && self.tells != Tells::Entries {
            self.tell_beside(&target);
        }
        self.rules = Some(top.clone());
        if named.is_directory() && !makes_directories {
            return Ok(Some(skipped("directory", path)));
        }
        let implied = self.implied(from)?;
        if named.is_directory() {
            self.directory(from, named, top, implied);
            return Ok(None);
        }
        self.later.extend(implied.into_iter().map(Found::from));
        let source = named_source(from, &named);
        if is(&named.stat, SFlag::S_IFBLK) && !from.is_listed() {
            return source.device().map(|device| Some(Found::from(device)));
        }
        if let Some(node) = Node::of(&named.stat).filter(|node| node.is_wanted(self.options)) {
            return Ok(Some(source.node(node, &named.stat).into()));
        }
        if ![SFlag::S_IFREG, SFlag::S_IFLNK].iter().any(|&kind| is(&named.stat, kind)) {
            if from.is_listed() {
                return Ok(Some(skipped("special file", path)));
            }
            return Err(Error::refused(path, NOT_SENT));
        }
        Ok(Some(inspect(source, &named.stat, Some(&named.fd), self.options.links)))
    }

    /// Takes up a source that is not there.
    fn absent(&mut self, from: &NamedPath, error: io::Error) -> Result<Option<Found>> {
        match self.options.missing {
            Missing::Failed => Err(Error::file("read", from.path())(error)),
            Missing::Ignored => Ok(None),
            Missing::Deleted => {
                let implied = self.implied(from)?;
                self.later.extend(implied.into_iter().map(Found::from));
                Ok(Some(missing(from).into()))
            }
        }
    }

    /// Takes up a source that is a directory. `implied`: those on the way to it.
    fn directory(&mut self, from: &NamedPath, named: Named, top: DirectoryRules, implied: Vec<Source>) {
        let (recursive, directories) = (self.options.recursive, self.options.directories);
        let (mut pruning, implied) = if directories.prune_empty {
            let (pruning, first) = Pruning::new(self.options, implied);
            (Some(pruning), first)
        } else {
            (None, implied)
        };
        self.later.extend(implied.into_iter().map(Found::from));
        if recursive || from.names_contents() {
            let tree = TreeWalk::begin(from, from.target(), named, self.options, self.tells, top, pruning);
            self.tree = Some(tree);
            return;
        }
        let source = named_source(from, &named);
        match &mut pruning {
            Some(pruning) => self.later.extend(pruning.pass(source)),
            None => self.later.push_back(source.into()),
        }
    }

    /// Tells that a source is in the directories that it goes to, beside what other sources
    /// hold of them.
    fn tell_beside(&mut self, target: &[u8]) {
        let ends = slashes(target).chain((!target.is_empty()).then_some(target.len()));
        let mut begin = 0;
        for end in ends {
            let contents = Contents {
                directory: target[..begin.max(1) - 1].to_vec(),
                names: vec![target[begin..end].to_vec()],
                is_whole: false,
            };
            self.later.push_back(Found::Contents(contents));
            begin = end + 1;
        }
    }

    /// The directory that what a source keeps of its path begins in, as `./` asks for it.
    fn kept_root(&self, from: &NamedPath) -> Result<Option<Source>> {
        let Some(path) = from.kept_below() else { return Ok(None) };
        let named = Named::look(&path, OFlag::O_PATH).map_err(Error::file("read", path.path()))?;
        Ok(Some(Source { target: Vec::new(), ..named_source(&path, &named) }))
    }

    /// The directories on the way to a source that were not told of.
    fn implied(&mut self, from: &NamedPath) -> Result<Vec<Source>> {
        let mut sources = Vec::new();
        for (path, target) in from.implied() {
            if !self.implied.insert(target.clone()) && !self.options.directories.prune_empty {
                continue;
            }
            let named = Named::look(&path, OFlag::O_PATH).map_err(Error::file("read", path.path()))?;
            let mut source = named_source(&path, &named);
            source.target = target;
            if !self.options.directories.implied {
                source.metadata = Metadata::default();
            }
            sources.push(source);
        }
        Ok(sources)
    }
}

/// What was named and is not there.
fn missing(from: &NamedPath) -> Source {
    Source {
        path: from.path().to_path_buf(),
        target: from.target(),
        kind: Kind::Missing,
        metadata: Metadata::default(),
        identity: Identity(0, 0),
        seen: Seen::default(),
        has_other_names: false,
        order: 0,
        origin: Origin::Named(from.clone()),
    }
}

/// What was named, as if it were a directory.
fn named_source(from: &NamedPath, named: &Named) -> Source {
    Source {
        path: from.path().to_path_buf(),
        target: from.target(),
        kind: Kind::Directory,
        metadata: source::metadata_of(&named.stat),
        identity: Identity::of(&named.stat),
        seen: Seen::of(&named.stat),
        has_other_names: named.stat.st_nlink > 1,
        order: 0,
        origin: Origin::Named(from.clone()),
    }
}
