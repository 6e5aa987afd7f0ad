//! What a source has: how a shell lists it, what of that is wanted, and the role that shows
//! no more than that.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::Result;
use crate::protocol;
use crate::report::{Event, ItemKind, Stats};
use crate::shell::receive::{Admission, ReceiveJob};
use crate::shell::refusal::Refusal;
use crate::shell::sender::{FileType, ListedEntry, read_entry};
use crate::shell::{ShellSession, relative};
use crate::source::{self, names_contents};
use crate::working::names_working_file;

/// Tells of everything that `sources` have.
///
/// # Errors
///
/// What ends the run; what cannot be read is counted in what is returned.
pub fn list(session: ShellSession, sources: &[Vec<u8>]) -> Result<Stats> {
    let mut job = ReceiveJob::begin(session)?;
    for source in sources {
        let found = job.list(source)?;
        job.show(source, &found)?;
    }
    job.far.end()?;
    Ok(job.stats)
}

impl ReceiveJob<'_> {
    /// Lists a source and what is below it.
    pub(super) fn list(&mut self, source: &[u8]) -> Result<Vec<ListedEntry>> {
        self.far.command(&[b"source", source])?;
        // Where nothing is named the home is meant.
        let path = Path::new(OsStr::from_bytes(if source.is_empty() { b"~" } else { source }));
        let prefix = if names_contents(path) || path == Path::new("~") {
            Vec::new()
        } else {
            path.file_name().unwrap_or_default().as_bytes().to_vec()
        };
        let mut found = Vec::new();
        let (complaints, is_whole) = self.far.list(|record| {
            let mut entry = read_entry(record)?;
            entry.source =
                if entry.name.is_empty() { path.into() } else { path.join(OsStr::from_bytes(&entry.name)) };
            entry.target = match (prefix.is_empty(), entry.name.is_empty()) {
                (true, _) => entry.name.clone(),
                (false, true) => prefix.clone(),
                (false, false) => [&prefix, &b"/"[..], &entry.name].concat(),
            };
            found.push(entry);
            Some(())
        })?;
        let mut unread = complaints.iter().filter_map(|line| Refusal::read_complaint(line)).peekable();
        if !is_whole && unread.peek().is_none() {
            let why = Refusal::Because("not all of it can be listed".into());
            self.fail_far_at(path, why);
        }
        for (name, why) in unread {
            match name.strip_prefix(b"./").filter(|_| !found.is_empty()) {
                Some(below) => {
                    let error = why.error(path.join(OsStr::from_bytes(below)));
                    self.failed(source::lost(&error).on(&self.far.host));
                }
                None => self.fail_far_at(path, why),
            }
        }
        Ok(found)
    }

    /// Whether an entry is received.
    pub(super) fn admit(&mut self, entry: &ListedEntry) -> Admission {
        if entry.kind == FileType::File && !self.options.transfer.takes_size(entry.length) {
            return Admission::Skip;
        }
        if self.rules.hides(&entry.target, entry.kind == FileType::Directory) {
            return Admission::Skip;
        }
        if entry.kind == FileType::Directory && !self.options.recursive {
            self.skip("directory", entry);
            return Admission::SkipAll;
        }
        if names_working_file(&entry.target) {
            if entry.name.is_empty() {
                self.refuse(entry, "is named like a working file: give it another name");
                return Admission::SkipAll;
            }
            return Admission::Skip;
        }
        if !self.taken.insert(entry.target.clone()) {
            return Admission::Skip;
        }
        if let Err(what) = protocol::check_path(&entry.target) {
            self.refuse(entry, &what);
            return Admission::Skip;
        }
        Admission::Receive
    }

    /// Shows what of a listing would be received.
    fn show(&mut self, source: &[u8], found: &[ListedEntry]) -> Result<()> {
        let Some(first) = found.first() else { return Ok(()) };
        let is_single = first.name.is_empty() && first.kind != FileType::Directory;
        if !is_single {
            self.far.command(&[b"enter", source])?;
        }
        for entry in found {
            match self.admit(entry) {
                Admission::Receive => self.show_entry(source, is_single, entry)?,
                Admission::Skip => {}
                Admission::SkipAll => break,
            }
        }
        Ok(())
    }

    fn show_entry(&mut self, source: &[u8], is_single: bool, entry: &ListedEntry) -> Result<()> {
        let link;
        let kind = match entry.kind {
            FileType::Directory => ItemKind::Directory,
            FileType::File | FileType::Device => {
                self.stats.files_total += 1;
                self.stats.apparent_bytes = self.stats.apparent_bytes.saturating_add(entry.length);
                ItemKind::File { length: Some(entry.length) }
            }
            FileType::Symlink if self.options.links => {
                let name = if is_single { source.to_vec() } else { relative(&entry.name) };
                self.far.command(&[b"link", &name])?;
                match self.far.link()? {
                    Ok(found) => link = found,
                    Err(why) => {
                        self.fail_far(entry, why);
                        return Ok(());
                    }
                }
                ItemKind::Symlink(&link)
            }
            FileType::Symlink => {
                self.skip("symlink", entry);
                return Ok(());
            }
            FileType::Other => {
                self.skip("special file", entry);
                return Ok(());
            }
        };
        self.reporter.event(Event::Listed(entry.item(kind)));
        Ok(())
    }
}
