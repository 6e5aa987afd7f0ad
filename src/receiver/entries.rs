//! Entries as they are announced: what is no file is made at once, files are queued for the
//! answering thread. Steps 2 and 3 of [`receiver`](crate::receiver).

use std::sync::Arc;

use crate::apply::{Precision, QuickCheck, Wanted};
use crate::error::{Failure, Result, Warning, lock, printable};
use crate::hashmap::Hash;
use crate::options::{Missing, Options};
use crate::protocol::{self, Entry, KNOWN_MAPS, MAX_KNOWN, MAX_LENGTH};
use crate::receiver::Applier;
use crate::receiver::answer::AnnouncedFile;
use crate::receiver::shared::Settles;
use crate::report::{Changes, Event};
use crate::source::{Kind, is_unsafe_link};
use crate::working::names_working_file;

/// What an entry is that the options do not ask for.
fn why_unwanted(entry: &Entry, options: &Options) -> Option<&'static str> {
    match &entry.kind {
        Kind::File { length, .. } if !options.transfer.takes_size(*length) => {
            Some("a file of a size that nobody wants")
        }
        Kind::Symlink(_) if !options.links || options.kinds.follow.all => Some("a symlink that nobody wants"),
        Kind::Symlink(link) if options.safe_links && is_unsafe_link(link, &entry.path) => {
            Some("a symlink that leads out of what is sent")
        }
        Kind::Node(node) if !node.is_wanted(options) => Some("a special file that nobody wants"),
        Kind::HardLink(_) if !options.kinds.hard_links => Some("another name of a file that nobody wants"),
        Kind::Missing if options.missing != Missing::Deleted => Some("a source that is missing"),
        _ => None,
    }
}

impl Applier<'_, '_> {
    /// Takes the root hashes of maps that the sender has: once, before all entries.
    pub(super) fn known(&mut self, roots: Vec<Hash>) -> Result<()> {
        let may_tell = self.shared.version >= KNOWN_MAPS && self.tree.is_some() && self.last.is_none();
        if !may_tell || roots.len() > MAX_KNOWN || self.shared.known.set(roots).is_err() {
            return Err(self.frames.bad("maps that it knows, out of turn"));
        }
        Ok(())
    }

    /// Checks an entry against the rules, and takes it up.
    pub(super) fn entry(&mut self, entry: Entry) -> Result<()> {
        protocol::check_path(&entry.path).map_err(|what| self.frames.bad(what))?;
        let Some(tree) = &mut self.tree else { return Err(self.frames.bad("an entry before the layout")) };
        if tree.root().is_file() {
            // There is one name to write to, and its directory is not ours to change.
            let only = self.only.get_or_insert_with(|| entry.path.clone());
            if *only != entry.path || matches!(entry.kind, Kind::Directory) {
                return Err(self.frames.bad("more than the single file that it promised"));
            }
        }
        if !self.target.is_asked(&entry.path, &entry.kind)
            || !self.target.has_asked_attributes(&entry.metadata)
        {
            return Err(self.frames.bad("it sends what it was not asked for"));
        }
        if let Some(what) = why_unwanted(&entry, &self.shared.options) {
            return Err(self.frames.bad(what));
        }
        if names_working_file(&entry.path) {
            // It could plant a sealed log there, which the next run would finish.
            return Err(self.frames.bad("it names a working file"));
        }
        if self.last.replace(entry.id).is_some_and(|last| entry.id <= last) {
            return Err(self.frames.bad("an entry with the id of another"));
        }
        if !lock(&self.shared.credit).take_for_later() {
            return Err(self.frames.bad("more entries than it has credit for"));
        }
        match &entry.kind {
            &Kind::File { length, allocated, whole, retry } => {
                if length > MAX_LENGTH {
                    return Err(self.frames.bad(format!("a file of {length} bytes")));
                }
                self.shared.feeds.announced();
                self.shared.reporter.event(Event::Found(allocated));
                let whole = whole || self.shared.options.whole_file;
                let attributes = tree.attributes(&entry.kind, &entry.metadata);
                let quick_check =
                    if retry { QuickCheck::SecondTry } else { QuickCheck::Time(Precision::Nanoseconds) };
                let wanted = Wanted { length, data: allocated, whole, quick_check, attributes };
                let root = tree.root().clone();
                let shared = Arc::clone(self.shared);
                // The rest is in what is wanted.
                let entry = Entry { metadata: entry.metadata.without_extended(), ..entry };
                let job = AnnouncedFile { shared, entry, root, wanted };
                // An answering thread that is gone took the connection with it; the next read says so.
                let _ = self.jobs.send(job);
                Ok(())
            }
            Kind::Directory => {
                let made = tree.make_directory(entry.id, &entry.path, &entry.metadata);
                self.settle(&entry, made.map(|changes| (changes, None)))
            }
            Kind::Missing => self.remove_missing(entry.id, &entry.path),
            Kind::Symlink(link) => {
                let made = tree.make_symlink(&entry.path, link, &entry.metadata);
                self.settle(&entry, made)
            }
            &Kind::Node(node) => {
                let Some(why) = tree.why_not_made(node) else {
                    let made = tree.make_node(&entry.path, node, &entry.metadata);
                    return self.settle(&entry, made);
                };
                let path = tree.root().path_of(&entry.path);
                let what = format!("skipping device {}: {why}", printable(&path));
                self.shared.warn(Warning::about(path, what))?;
                self.shared.made(&entry, Changes::default(), false)
            }
            Kind::HardLink(first) => {
                self.refuse_bad_link(first, &entry.kind)?;
                // All files have their results.
                self.put_delayed()?;
                let Some(tree) = &mut self.tree else { return Ok(()) };
                let made = tree.make_hard_link(&entry.path, first);
                self.settle(&entry, made.map(|changes| (changes, None)))
            }
        }
    }

    /// A link leads to what may be written itself.
    fn refuse_bad_link(&mut self, first: &[u8], kind: &Kind) -> Result<()> {
        protocol::check_path(first).map_err(|what| self.frames.bad(what))?;
        if first.is_empty() || !self.target.is_asked(first, kind) || names_working_file(first) {
            return Err(self.frames.bad("another name of a file that it may not name"));
        }
        Ok(())
    }

    /// Reports what became of an entry that is no file.
    fn settle(&self, entry: &Entry, result: Result<(Changes, Option<Failure>)>) -> Result<()> {
        match result {
            Ok((changes, unset)) => {
                self.shared.unset(unset)?;
                let is_there = !self.shared.options.dry_run && !changes.has(Changes::LEFT);
                self.shared.made(entry, changes, is_there)
            }
            Err(error) => self.shared.fail(entry.id, &error, Settles::Entry),
        }
    }
}
