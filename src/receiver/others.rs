//! What the sender does not have: the applying thread removes it when it is told to.

use crate::apply::tree::Removed;
use crate::error::{Failure, Result, Warning};
use crate::options::DeleteWhen;
use crate::protocol::{self, MAX_NAMES, MAX_PATH, Message, shortened};
use crate::receiver::Applier;
use crate::receiver::shared::{ReceiverShared, Settles};
use crate::report::Event;
use crate::source::{self, Contents, is_plain};

/// Whether something that had arrived is not in its place: then nothing is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    No,
    Yes,
    /// That nothing is removed was said.
    Told,
}

impl Applier<'_, '_> {
    /// A directory of the source has these names.
    pub(super) fn contents(&mut self, contents: Contents) -> Result<()> {
        let Contents { directory, names, is_whole } = &contents;
        protocol::check_path(directory).map_err(|what| self.frames.bad(what))?;
        if *is_whole && !self.target.is_asked_whole(directory) {
            return Err(self.frames.bad("it tells of what it was not asked for"));
        }
        let is_name = |name: &Vec<u8>| !name.is_empty() && !name.contains(&b'/') && is_plain(name);
        if !names.iter().all(is_name) {
            return Err(self.frames.bad("it names what is no name"));
        }
        match &mut self.tree {
            Some(tree) => tree.source_has(contents),
            None => return Err(self.frames.bad("names before the layout")),
        }
        Ok(())
    }

    /// Removes what has the name of a source that is missing.
    pub(super) fn remove_missing(&mut self, id: u64, path: &[u8]) -> Result<()> {
        let Some(tree) = &mut self.tree else { return Err(self.frames.bad("an entry before the layout")) };
        match tree.remove_missing(path) {
            Ok(removed) => {
                let mut names = Names { shared: self.shared, paths: Vec::new(), bytes: 0 };
                removed.map_or(Ok(()), |path| names.add(&path))?;
                names.tell()?;
                self.shared.outbox.settle(Settles::Entry.units())
            }
            Err(error) => self.shared.fail(id, &error, Settles::Entry),
        }
    }

    /// Has files take their places that waited until all had their results.
    pub(super) fn put_delayed(&mut self) -> Result<()> {
        let Some(tree) = &mut self.tree else { return Ok(()) };
        if !self.shared.put_delayed(tree)? && self.lost == Lost::No {
            self.lost = Lost::Yes;
        }
        Ok(())
    }

    /// Removes what the sender does not have, as far as it told.
    pub(super) fn remove_others(&mut self) -> Result<()> {
        let delete = self.shared.options.delete;
        if delete.is_some_and(|delete| delete.when == DeleteWhen::After) {
            // All files have their results.
            self.put_delayed()?;
        }
        if self.lost != Lost::No && !delete.is_some_and(|delete| delete.ignore_errors) {
            return match std::mem::replace(&mut self.lost, Lost::Told) {
                Lost::Told => Ok(()),
                _ => self.shared.warn(Warning::new(source::NOTHING_REMOVED)),
            };
        }
        let Some(tree) = &mut self.tree else { return Err(self.frames.bad("a removal before the layout")) };
        let mut names = Names { shared: self.shared, paths: Vec::new(), bytes: 0 };
        tree.remove_others(&mut |removed| match removed {
            Removed::Gone(path) => names.add(path),
            Removed::Stays(failure) => names.stays(failure),
        })?;
        names.tell()
    }
}

/// What was removed and is not told of.
struct Names<'s, 'a> {
    shared: &'s ReceiverShared<'a>,
    paths: Vec<Vec<u8>>,
    bytes: usize,
}

impl Names<'_, '_> {
    fn add(&mut self, path: &[u8]) -> Result<()> {
        self.shared.lock_stats().removed += 1;
        self.shared.reporter.event(Event::Removed(path));
        if path.len() > MAX_PATH {
            return Ok(());
        }
        if self.bytes + path.len() + 1 > MAX_NAMES {
            self.tell()?;
        }
        self.bytes += path.len() + 1;
        self.paths.push(path.to_vec());
        Ok(())
    }

    fn tell(&mut self) -> Result<()> {
        let paths = std::mem::take(&mut self.paths);
        self.bytes = 0;
        if paths.is_empty() { Ok(()) } else { self.shared.outbox.removed(paths) }
    }

    fn stays(&self, failure: Failure) -> Result<()> {
        self.shared.lock_stats().count_failure(failure.code);
        self.shared.reporter.event(Event::Failed(&failure));
        let failure = Failure { message: shortened(failure.message), ..failure };
        self.shared.tell(Message::Stays(failure), Settles::Nothing)
    }
}
