//! The receiving role towards a shell: `sender.sh` tells what there is, and sends
//! the files whose size or time differ. Holes come as they are where GNU tar is
//! there; elsewhere zeros are found here, and travel compressed.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use crate::apply::open;
use crate::apply::place::{self, Place};
use crate::apply::tree::{DestinationTree, Target};
use crate::apply::{self, Destination};
use crate::error::{Error, Failure, Result, code, escape, printable};
use crate::options::Options;
use crate::protocol;
use crate::remote::bootstrap::{Input, Output};
use crate::report::{Event, Outcome, Reporter, Stats};
use crate::shell::sender::{ArrivingFile, Entry, How, LARGE_FACTOR, SendingShell, Type, read_entry};
use crate::shell::{self, below};
use crate::source::names_contents;
use crate::working::names_working_file;

/// Bytes of requests that may wait at the other end, which reads them while it
/// sends: less than a pipe holds.
const REQUESTED: usize = 16 << 10;
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
        options: Arc::new(options.clone()),
        reporter,
        stats: Stats::default(),
        taken: HashSet::new(),
    };
    let mut tree = None;
    for source in sources {
        let found = download.list(source)?;
        let single =
            sources.len() == 1 && !matches!(found.first(), Some(entry) if entry.kind == Type::Directory);
        let tree = match &mut tree {
            Some(tree) => tree,
            None => tree.insert(DestinationTree::open(target, single, Arc::clone(&download.options))?),
        };
        download.receive(source, found, tree)?;
    }
    for (_, error) in tree.map(DestinationTree::finish).unwrap_or_default() {
        download.fail(&error);
    }
    download.far.end()?;
    Ok(download.stats)
}

/// One run.
struct Download<'a> {
    far: SendingShell,
    options: Arc<Options>,
    reporter: &'a dyn Reporter,
    stats: Stats,
    /// What has come already: the first source that has a name is the one that counts.
    taken: HashSet<Vec<u8>>,
}

/// What is to be done with a file that was asked for.
struct Asked {
    entry: Entry,
    how: How,
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
    fn receive(&mut self, source: &[u8], found: Vec<Entry>, tree: &mut DestinationTree) -> Result<()> {
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
                Type::Directory => self.directory(entry, tree),
                Type::Symlink if !self.options.dry_run => {
                    self.far.command(&[b"link", &name])?;
                    self.wait_for(&mut asked, tree)?;
                    requested = 0;
                    self.symlink(entry, tree)?;
                }
                Type::Symlink => {}
                Type::File | Type::Device => {
                    let Some(how) = self.wanted(&entry, tree) else { continue };
                    let factor = if let How::Tar(factor) = how { factor } else { 0 };
                    let (length, factor) = (entry.length.to_string(), factor.to_string());
                    let words: [&[u8]; 5] = [b"get", how.word(), length.as_bytes(), factor.as_bytes(), &name];
                    let bytes = self.far.command(&words)?;
                    asked.push_back(Asked { entry, how, bytes });
                    requested += bytes;
                    while requested > REQUESTED {
                        let Some(next) = asked.pop_front() else { break };
                        requested -= next.bytes;
                        self.file(next, tree)?;
                    }
                }
            }
        }
        self.wait_for(&mut asked, tree)
    }

    fn wait_for(&mut self, asked: &mut VecDeque<Asked>, tree: &mut DestinationTree) -> Result<()> {
        while let Some(next) = asked.pop_front() {
            self.file(next, tree)?;
        }
        Ok(())
    }

    fn skip(&self, what: &str, entry: &Entry) {
        self.reporter.event(Event::Warning(&format!("skipping {what} {}", printable(&entry.source))));
    }

    fn directory(&mut self, entry: Entry, tree: &mut DestinationTree) {
        if let Err(error) = tree.make_directory(0, &entry.target, &entry.metadata) {
            self.fail(&error);
        }
    }

    fn symlink(&mut self, entry: Entry, tree: &mut DestinationTree) -> Result<()> {
        let link = match self.far.link()? {
            Ok(link) => link,
            Err(why) => {
                self.failed_there(&entry, &why);
                return Ok(());
            }
        };
        if let Err(error) = tree.make_symlink(&entry.target, &link, &entry.metadata) {
            self.fail(&error);
        }
        Ok(())
    }

    /// Whether a file has to be sent, and how.
    fn wanted(&mut self, entry: &Entry, tree: &mut DestinationTree) -> Option<How> {
        self.stats.files_total += 1;
        self.stats.apparent_bytes = self.stats.apparent_bytes.saturating_add(entry.length);
        self.reporter.event(Event::Found(entry.allocated));
        let place = match tree.root().place(&entry.target, self.options.dry_run) {
            Ok(place) => place,
            Err(error) => {
                self.fail(&error);
                return None;
            }
        };
        if let Some(place) = &place
            && self.is_unchanged(place, entry)
        {
            self.stats.data_bytes = self.stats.data_bytes.saturating_add(entry.allocated);
            self.report(entry, Outcome::Unchanged);
            let attributes = tree.attributes(&entry.metadata);
            if !self.options.dry_run
                && let Err(error) = place::touch(place, &attributes)
            {
                self.fail(&error);
            }
            return None;
        }
        if self.options.dry_run {
            self.foretell(entry, place.as_ref(), tree);
            return None;
        }
        let is_sparse = entry.kind == Type::Device || entry.allocated < entry.length;
        Some(match self.far.sparse {
            _ if !is_sparse || !self.options.hole_map => How::Whole,
            How::Tar(_) if entry.kind == Type::Device => How::Whole,
            How::Tar(_) if entry.allocated >= LARGE => How::Tar(LARGE_FACTOR),
            other => other,
        })
    }

    /// What a run would do with a file.
    fn foretell(&mut self, entry: &Entry, place: Option<&Place>, tree: &mut DestinationTree) {
        let request = self.request(entry, tree);
        if let Some(Err(error)) = place.map(|place| open::preview(place, &request)) {
            return self.fail(&error);
        }
        let stats = &mut self.stats;
        stats.files_sent += 1;
        stats.data_bytes = stats.data_bytes.saturating_add(entry.allocated);
        stats.sent_data_bytes = stats.sent_data_bytes.saturating_add(entry.allocated);
        self.report(entry, Outcome::Sent(entry.allocated));
    }

    fn request(&self, entry: &Entry, tree: &mut DestinationTree) -> apply::Request {
        let attributes = tree.attributes(&entry.metadata);
        apply::Request { length: entry.length, data: entry.allocated, whole: true, attributes }
    }

    fn is_unchanged(&self, place: &Place, entry: &Entry) -> bool {
        let options = &self.options;
        let Ok(Some(stat)) = place.stat() else { return false };
        // What is known, or kept, in whole seconds is compared in whole seconds.
        let exact = entry.is_exact && stat.st_mtime_nsec != 0;
        let same_time = options.times
            && entry.metadata.mtime.is_some_and(|(seconds, nanoseconds)| {
                seconds == stat.st_mtime && (!exact || i64::from(nanoseconds) == stat.st_mtime_nsec)
            });
        stat.st_mode & libc::S_IFMT == libc::S_IFREG
            && stat.st_size as u64 == entry.length
            && !(options.checksum || options.ignore_times)
            && (options.size_only || same_time)
    }

    /// Takes the answer to a request: the file, or why there is none.
    fn file(&mut self, asked: Asked, tree: &mut DestinationTree) -> Result<()> {
        let Asked { entry, how, .. } = asked;
        if let Err(why) = self.far.answer(b"sent")? {
            self.failed_there(&entry, &why);
            return Ok(());
        }
        let destination = self.open(&entry, tree);
        let mut sink = ArrivingFile::new(destination, self.reporter);
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
            (Ok(()), Ok((written, punched))) => {
                let stats = &mut self.stats;
                stats.files_sent += 1;
                stats.data_bytes = stats.data_bytes.saturating_add(data);
                stats.sent_data_bytes += data;
                stats.written_bytes += written;
                stats.punched_bytes = stats.punched_bytes.saturating_add(punched);
                self.report(&entry, Outcome::Sent(data));
            }
        }
        Ok(())
    }

    fn open(&mut self, entry: &Entry, tree: &mut DestinationTree) -> Result<Destination> {
        let request = self.request(entry, tree);
        let Some(place) = tree.root().place(&entry.target, false)? else {
            return Err(Error::refused(entry.path(), "has no directory"));
        };
        Destination::open(place, request, Arc::clone(&self.options))
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
