//! The receiving role towards a shell: `sender.sh` tells what there is, and sends
//! the files whose size or time differ. Holes come as they are where GNU tar is
//! there; elsewhere zeros are found here, and travel compressed.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use crate::apply::root::{Base, Target, attributes_of, make_directory, make_symlink};
use crate::apply::{self, Attributes, Destination, Opened, Precision, QuickCheck, Setup, Wanted};
use crate::error::{Error, Failure, Result, code, escape, printable};
use crate::options::Options;
use crate::protocol;
use crate::remote::bootstrap::{Input, Output};
use crate::report::{Event, Outcome, Reporter, Stats};
use crate::shell::sender::{ArrivingFile, Entry, How, LARGE_FACTOR, SendingShell, Type, read_entry};
use crate::shell::{self, below};
use crate::source::names_contents;
use crate::source::owners::Names;
use crate::working::names_working_file;

/// Bytes of requests that may wait at the other end, which reads them while it
/// sends: less than a pipe holds.
const REQUESTED: usize = 16 << 10;
/// Files that may wait so, each with its destination open: up to three descriptors.
const OPEN: usize = 200;
/// Files with at least as much data are sent by tar in larger blocks.
const LARGE: u64 = 16 << 20;

/// Receives `sources`, as the user named them, into `target`.
///
/// # Errors
///
/// What ends the run; files that fail are counted in what is returned.
pub fn run(
    input: Input,
    output: Output,
    sources: &[Vec<u8>],
    target: &Target,
    options: &Options,
    host: &str,
    reporter: &dyn Reporter,
) -> Result<Stats> {
    shell::refuse_what_needs_an_agent(options, host, reporter)?;
    if options.checksum || options.ignore_times {
        let what = format!("{host} has no holesync to compare contents with: every file is sent whole");
        reporter.event(Event::Warning(&what));
    }
    let mut download = Download {
        far: SendingShell::begin(input, output, host)?,
        setup: Setup::new(Arc::new(options.clone())),
        options,
        umask: target.umask,
        reporter,
        stats: Stats::default(),
        names: Names::default(),
        taken: HashSet::new(),
        directories: Vec::new(),
    };
    let mut base = None;
    for source in sources {
        let found = download.list(source)?;
        let single =
            sources.len() == 1 && !matches!(found.first(), Some(entry) if entry.kind == Type::Directory);
        let base = match &base {
            Some(base) => base,
            None => base.insert(Base::find(target, single, options.dry_run)?),
        };
        download.receive(source, found, base)?;
    }
    if let Some(dir) = base.as_ref().and_then(|base| base.dir.as_ref()) {
        for (path, attributes) in std::mem::take(&mut download.directories).into_iter().rev() {
            let path = Path::new(OsStr::from_bytes(&path));
            if let Err(error) = apply::finish_directory(dir.as_fd(), path, &attributes) {
                download.fail(&Error::file("set the attributes of", path)(error));
            }
        }
    }
    download.far.end()?;
    Ok(download.stats)
}

/// One run.
struct Download<'a> {
    far: SendingShell,
    options: &'a Options,
    setup: Setup,
    umask: u32,
    reporter: &'a dyn Reporter,
    stats: Stats,
    names: Names,
    /// What has come already: the first source that has a name is the one that counts.
    taken: HashSet<Vec<u8>>,
    /// To be given their attributes when everything is in them.
    directories: Vec<(Vec<u8>, Attributes)>,
}

/// A file that was asked for.
struct Asked {
    entry: Entry,
    how: How,
    destination: Box<Destination>,
    /// Bytes of the request.
    bytes: usize,
}

impl Download<'_> {
    /// What a source is, and what is below it.
    fn list(&mut self, source: &[u8]) -> Result<Vec<Entry>> {
        self.far.command(&[b"source", source])?;
        let path = Path::new(OsStr::from_bytes(source));
        let prefix = if names_contents(path) || path == Path::new("~") {
            Vec::new()
        } else {
            path.file_name().unwrap_or_default().as_bytes().to_vec()
        };
        let mut found = Vec::new();
        let status = self.far.list(|record| {
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
        if status != b"0" {
            let why = format!("{}: cannot read {}, or not all of it", self.far.host, escape(source));
            self.failed(Failure { code: code::PARTIAL, message: why });
        }
        Ok(found)
    }

    /// Makes what a source has; its files in the order in which they were listed.
    fn receive(&mut self, source: &[u8], found: Vec<Entry>, base: &Base) -> Result<()> {
        let is_single =
            found.first().is_some_and(|entry| entry.name.is_empty() && entry.kind != Type::Directory);
        if found.is_empty() {
            return Ok(());
        }
        if !is_single {
            self.far.command(&[b"enter", source])?;
        }
        let mut asked = VecDeque::new();
        let mut requested = 0;
        for entry in found {
            if entry.kind == Type::Directory && !self.options.recursive {
                self.skip("directory", &entry);
                break;
            }
            if names_working_file(&entry.target) {
                if entry.name.is_empty() {
                    self.failed_there(&entry, "is named like a working file: give it another name");
                    break;
                }
                continue;
            }
            if !self.taken.insert(entry.target.clone()) {
                continue;
            }
            if let Err(what) = protocol::check_path(&entry.target) {
                self.failed_there(&entry, &what);
                continue;
            }
            let name = if is_single { source.to_vec() } else { below(&entry.name) };
            match entry.kind {
                Type::Other => self.skip("special file", &entry),
                Type::Device if !is_single => self.skip("special file", &entry),
                Type::Symlink if !self.options.links => self.skip("symlink", &entry),
                Type::Directory if !self.options.dry_run => self.directory(entry, base),
                Type::Symlink if !self.options.dry_run => {
                    self.far.command(&[b"link", &name])?;
                    self.wait_for(&mut asked)?;
                    requested = 0;
                    self.symlink(entry, base)?;
                }
                Type::Directory | Type::Symlink => {}
                Type::File | Type::Device => {
                    let Some(destination) = self.open(&entry, base) else { continue };
                    let how = self.how(&entry);
                    let factor = if let How::Tar(factor) = how { factor } else { 0 };
                    let (length, factor) = (entry.length.to_string(), factor.to_string());
                    let words: [&[u8]; 5] = [b"get", how.word(), length.as_bytes(), factor.as_bytes(), &name];
                    let bytes = self.far.command(&words)?;
                    asked.push_back(Asked { entry, how, destination, bytes });
                    requested += bytes;
                    while requested > REQUESTED || asked.len() > OPEN {
                        let Some(next) = asked.pop_front() else { break };
                        requested -= next.bytes;
                        self.file(next)?;
                    }
                }
            }
        }
        self.wait_for(&mut asked)
    }

    fn wait_for(&mut self, asked: &mut VecDeque<Asked>) -> Result<()> {
        while let Some(next) = asked.pop_front() {
            self.file(next)?;
        }
        Ok(())
    }

    fn skip(&self, what: &str, entry: &Entry) {
        self.reporter.event(Event::Warning(&format!("skipping {what} {}", printable(&entry.source))));
    }

    fn directory(&mut self, entry: Entry, base: &Base) {
        let attributes = attributes_of(&entry.metadata, self.options, self.umask, &mut self.names);
        match make_directory(base, &entry.target, attributes.new_mode) {
            Ok(mode) => {
                let attributes = Attributes { mode: attributes.mode.or(mode), ..attributes };
                self.directories.push((entry.target, attributes));
            }
            Err(error) => self.fail(&error),
        }
    }

    fn symlink(&mut self, entry: Entry, base: &Base) -> Result<()> {
        let link = match self.far.link()? {
            Ok(link) => link,
            Err(why) => {
                self.failed_there(&entry, &why);
                return Ok(());
            }
        };
        let attributes = attributes_of(&entry.metadata, self.options, self.umask, &mut self.names);
        if let Err(error) = make_symlink(base, &entry.target, &link, &attributes) {
            self.fail(&error);
        }
        Ok(())
    }

    /// Where a file goes that has to be sent; `None`: it need not be, or failed.
    fn open(&mut self, entry: &Entry, base: &Base) -> Option<Box<Destination>> {
        self.stats.files_total += 1;
        self.stats.apparent_bytes = self.stats.apparent_bytes.saturating_add(entry.length);
        self.reporter.event(Event::Found(entry.allocated));
        match self.look(entry, base) {
            Ok(Some(Opened::Different(destination))) => return Some(destination),
            Ok(Some(Opened::Equal)) => {
                self.stats.data_bytes = self.stats.data_bytes.saturating_add(entry.allocated);
                self.report(entry, Outcome::Unchanged);
            }
            Ok(Some(Opened::Preview(_)) | None) => self.count_sent(entry, entry.allocated),
            Err(error) => self.fail(&error),
        }
        None
    }

    /// What is there; `None`: not even its directory, in a dry run.
    fn look(&mut self, entry: &Entry, base: &Base) -> Result<Option<Opened>> {
        let Some(place) = base.place(&entry.target, self.options.dry_run)? else { return Ok(None) };
        let path = place.path.clone();
        let precision = if entry.is_exact { Precision::Nanoseconds } else { Precision::Seconds };
        let wanted = Wanted {
            length: entry.length,
            data: entry.allocated,
            whole: true,
            quick_check: QuickCheck::Time(precision),
            attributes: attributes_of(&entry.metadata, self.options, self.umask, &mut self.names),
        };
        let opening = Destination::open(place, wanted, &self.setup)?;
        if let Some(warning) = opening.recovered.warning(&path) {
            self.reporter.event(Event::Warning(&warning));
        }
        Ok(Some(opening.opened))
    }

    /// How a file is to be sent.
    fn how(&self, entry: &Entry) -> How {
        let is_sparse = entry.kind == Type::Device || entry.allocated < entry.length;
        match self.far.sparse {
            _ if !is_sparse || !self.options.hole_map => How::Whole,
            How::Tar(_) if entry.kind == Type::Device => How::Whole,
            How::Tar(_) if entry.allocated >= LARGE => How::Tar(LARGE_FACTOR),
            other => other,
        }
    }

    fn count_sent(&mut self, entry: &Entry, data: u64) {
        let stats = &mut self.stats;
        stats.files_sent += 1;
        stats.data_bytes = stats.data_bytes.saturating_add(data);
        stats.sent_data_bytes = stats.sent_data_bytes.saturating_add(data);
        self.report(entry, Outcome::Sent(data));
    }

    /// Takes the answer to a request: the file, or why there is none.
    fn file(&mut self, asked: Asked) -> Result<()> {
        let Asked { entry, how, destination, .. } = asked;
        if let Err(why) = self.far.answer(b"sent")? {
            self.failed_there(&entry, &why);
            return Ok(());
        }
        let mut sink = ArrivingFile::new(*destination, self.reporter);
        let sent = match self.far.content(&entry, how, &mut sink).and_then(|()| self.far.answer(b"done")) {
            Ok(sent) => sent,
            Err(error) => {
                sink.discard();
                return Err(error);
            }
        };
        let data = sink.data;
        let finished = sink.finish(sent.is_ok());
        match (sent, finished) {
            (Err(why), _) => self.failed_there(&entry, &why),
            (Ok(()), Err(error)) => self.fail(&error),
            (Ok(()), Ok(done)) => {
                let stats = &mut self.stats;
                stats.written_bytes += done.map_or(0, |done| done.written);
                let punched = done.map_or(0, |done| done.punched);
                stats.punched_bytes = stats.punched_bytes.saturating_add(punched);
                self.count_sent(&entry, data);
            }
        }
        Ok(())
    }

    fn failed_there(&mut self, entry: &Entry, why: &str) {
        let message = format!("{}: {}: {why}", self.far.host, printable(&entry.source));
        self.failed(Failure { code: code::PARTIAL, message });
    }

    fn fail(&mut self, error: &Error) {
        self.failed(error.to_failure());
    }

    fn failed(&mut self, failure: Failure) {
        self.stats.count_failure(failure.code);
        self.reporter.event(Event::Failed(&failure));
    }

    fn report(&self, entry: &Entry, outcome: Outcome) {
        self.reporter.event(Event::File(entry.path(), outcome));
    }
}
