//! The receiving role towards a shell: `sender.sh` lists what the sources have, and sends
//! the files whose size or time differ. Where the shell has GNU tar, holes come as holes;
//! elsewhere zeros travel compressed, and are found here.

mod listing;

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use crate::apply::tree::{DestinationTree, Target};
use crate::apply::{Destination, Finished, Opened, Precision, Preview, QuickCheck, Setup, Wanted};
use crate::error::{Error, Failure, Result, Warning, code, printable};
use crate::filter::ListingRules;
use crate::options::Options;
use crate::report::{Changes, Event, ItemKind, Outcome, Reporter, Stats};
use crate::shell::refusal::Refusal;
use crate::shell::sender::{ArrivingFile, Encoding, FileType, LARGE_FACTOR, ListedEntry, SendingShell};
use crate::shell::{self, ShellSession, relative};
use crate::source::{self, Kind, NOT_SENT, is_unsafe_link};

pub use listing::list;

/// The most bytes of requests that may wait at the other end, which does not read them
/// while it sends: fewer than a pipe holds.
const MAX_REQUESTED: usize = 16 << 10;
/// The most files that may wait so, each with its destination open: up to three
/// descriptors.
const MAX_WAITING: usize = 200;
/// Files with at least as much data are sent by tar in larger blocks.
const LARGE_FILE: u64 = 16 << 20;

/// Receives `sources`, as the user named them, into `target`.
///
/// # Errors
///
/// What ends the run; files that fail are counted in what is returned.
pub fn run(session: ShellSession, sources: &[Vec<u8>], target: &Target) -> Result<Stats> {
    let mut job = ReceiveJob::begin(session)?;
    let options = job.options;
    let mut tree = None;
    for source in sources {
        let found = job.list(source)?;
        let single =
            sources.len() == 1 && !matches!(found.first(), Some(entry) if entry.kind == FileType::Directory);
        let tree = match &mut tree {
            Some(tree) => tree,
            None => tree.insert(DestinationTree::open(target, single, Arc::new(options.clone()))?),
        };
        job.receive(source, found, tree)?;
    }
    if let Some(tree) = tree {
        tree.finish(|_, set| job.settle(set));
    }
    job.far.end()?;
    Ok(job.stats)
}

/// Everything that one run receives.
struct ReceiveJob<'a> {
    far: SendingShell,
    options: &'a Options,
    setup: Setup,
    reporter: &'a dyn Reporter,
    stats: Stats,
    /// The targets that have come already: the first source that has a name is the one
    /// that counts.
    taken: HashSet<Vec<u8>>,
    rules: ListingRules,
}

/// A file that was requested and has not come yet.
struct Requested {
    entry: ListedEntry,
    encoding: Encoding,
    destination: Box<Destination>,
    /// How what was there differed from it.
    changes: Changes,
    /// Bytes of the request.
    bytes: usize,
}

/// What a listing has to offer, and what of it was requested.
struct Requests<'a> {
    /// The source as the user named it.
    source: &'a [u8],
    /// The source is a file, not a directory.
    is_single: bool,
    /// The files that have not come yet, in the order in which they come.
    waiting: VecDeque<Requested>,
    /// Bytes of their requests.
    bytes: usize,
}

impl Requests<'_> {
    fn push(&mut self, requested: Requested) {
        self.bytes += requested.bytes;
        self.waiting.push_back(requested);
    }

    fn pop(&mut self) -> Option<Requested> {
        let next = self.waiting.pop_front()?;
        self.bytes -= next.bytes;
        Some(next)
    }
}

/// Whether an entry of a listing is received.
enum Admission {
    Receive,
    Skip,
    /// Neither this entry nor those after it.
    SkipAll,
}

impl<'a> ReceiveJob<'a> {
    /// Begins the conversation.
    fn begin(session: ShellSession<'a>) -> Result<ReceiveJob<'a>> {
        let ShellSession { input, output, options, host, reporter } = session;
        shell::refuse_what_needs_an_agent(options, host, reporter)?;
        shell::refuse_what_a_listing_lacks(options, host)?;
        if options.bandwidth.is_some() {
            return Err(Error::Usage(format!(
                "--bwlimit needs a holesync on {host}, which is the end that writes: install it there, or bring it with \
             --agent=push"
            )));
        }
        if options.checksum || options.ignore_times {
            let what = format!("{host} has no holesync to compare contents with: every file is sent whole");
            reporter.event(Event::Warning(&Warning::new(what).of(host)));
        }
        Ok(ReceiveJob {
            far: SendingShell::begin(input, output, host)?,
            setup: Setup::new(Arc::new(options.clone())),
            options,
            reporter,
            stats: Stats::default(),
            taken: HashSet::new(),
            rules: ListingRules::new(&options.filter),
        })
    }
}

impl ReceiveJob<'_> {
    /// Receives everything that a source has, in the order of its listing.
    fn receive(&mut self, source: &[u8], found: Vec<ListedEntry>, tree: &mut DestinationTree) -> Result<()> {
        let is_single =
            found.first().is_some_and(|entry| entry.name.is_empty() && entry.kind != FileType::Directory);
        if found.is_empty() {
            return Ok(());
        }
        if !is_single {
            self.far.command(&[b"enter", source])?;
        }
        let mut requests = Requests { source, is_single, waiting: VecDeque::new(), bytes: 0 };
        for entry in found {
            match self.admit(&entry) {
                Admission::Receive => self.entry(entry, &mut requests, tree)?,
                Admission::Skip => {}
                Admission::SkipAll => break,
            }
        }
        self.wait_for_all(&mut requests)
    }

    fn entry(
        &mut self,
        entry: ListedEntry,
        requests: &mut Requests,
        tree: &mut DestinationTree,
    ) -> Result<()> {
        let is_single = requests.is_single;
        let name = if is_single { requests.source.to_vec() } else { relative(&entry.name) };
        match entry.kind {
            FileType::Other if is_single => self.refuse(&entry, NOT_SENT),
            FileType::Other => self.skip("special file", &entry),
            FileType::Device if !is_single => self.skip("special file", &entry),
            FileType::Symlink if !self.options.links => self.skip("symlink", &entry),
            FileType::Directory => self.directory(entry, tree),
            FileType::Symlink if !self.options.dry_run || self.options.tells_changes.is_asked() => {
                self.far.command(&[b"link", &name])?;
                self.wait_for_all(requests)?;
                self.symlink(entry, tree)?;
            }
            FileType::Symlink => {}
            FileType::File | FileType::Device => {
                if self.has_other_names(&entry, tree) {
                    // One of them may be open, and wait for its content.
                    self.wait_for_all(requests)?;
                }
                if let Some((destination, changes)) = self.open(&entry, tree) {
                    let (encoding, bytes) = self.request_file(&entry, &name)?;
                    let requested = Requested { entry, encoding, destination, changes, bytes };
                    self.receive_what_is_due(requested, requests)?;
                }
            }
        }
        Ok(())
    }

    /// Requests a file. Returns how it will come, and the length of the request.
    fn request_file(&mut self, entry: &ListedEntry, name: &[u8]) -> Result<(Encoding, usize)> {
        let encoding = self.choose_encoding(entry);
        let factor = if let Encoding::Tar(factor) = encoding { factor } else { 0 };
        let (length, factor) = (entry.length.to_string(), factor.to_string());
        let words: [&[u8]; 5] = [b"get", encoding.word(), length.as_bytes(), factor.as_bytes(), name];
        Ok((encoding, self.far.command(&words)?))
    }

    /// Receives the files before this one, if too many requests wait.
    fn receive_what_is_due(&mut self, requested: Requested, requests: &mut Requests) -> Result<()> {
        requests.push(requested);
        while requests.bytes > MAX_REQUESTED || requests.waiting.len() > MAX_WAITING {
            let Some(next) = requests.pop() else { break };
            self.file(next)?;
        }
        Ok(())
    }

    fn wait_for_all(&mut self, requests: &mut Requests) -> Result<()> {
        while let Some(next) = requests.pop() {
            self.file(next)?;
        }
        Ok(())
    }

    fn skip(&self, what: &str, entry: &ListedEntry) {
        let what = format!("skipping {what} {}", printable(&entry.source));
        self.reporter.event(Event::Warning(&Warning::about(&entry.source, what).of(&self.far.host)));
    }

    fn directory(&mut self, entry: ListedEntry, tree: &mut DestinationTree) {
        match tree.make_directory(0, &entry.target, &entry.metadata) {
            Ok(changes) => self.made(&entry, ItemKind::Directory, changes),
            Err(error) => self.fail(&error),
        }
    }

    fn symlink(&mut self, entry: ListedEntry, tree: &mut DestinationTree) -> Result<()> {
        let link = match self.far.link()? {
            Ok(link) => link,
            Err(why) => {
                self.fail_far(&entry, why);
                return Ok(());
            }
        };
        if self.options.safe_links && is_unsafe_link(&link, &entry.target) {
            let warning = source::ignored_link(&entry.source, &link).of(&self.far.host);
            self.reporter.event(Event::Warning(&warning));
            return Ok(());
        }
        let made = tree.make_symlink(&entry.target, &link, &entry.metadata);
        self.settle(made.map(|(changes, unset)| {
            self.made(&entry, ItemKind::Symlink(&link), changes);
            unset
        }));
        Ok(())
    }

    /// Tells of a directory or symlink, where that is asked for.
    fn made(&self, entry: &ListedEntry, kind: ItemKind, changes: Changes) {
        if self.options.tells_changes.is_asked() {
            self.reporter.event(Event::Made(entry.item(kind), changes));
        }
    }

    /// Whether there is a file that has other names, too. What cannot be looked at fails when
    /// it is opened.
    fn has_other_names(&self, entry: &ListedEntry, tree: &DestinationTree) -> bool {
        let place = tree.root().place(&entry.target, self.options.dry_run);
        matches!(place, Ok(Some(place)) if place.has_other_names().unwrap_or(false))
    }

    /// The destination of a file that has to be sent, and how what is there differs. `None`: it
    /// need not be, or its destination failed.
    fn open(
        &mut self,
        entry: &ListedEntry,
        tree: &mut DestinationTree,
    ) -> Option<(Box<Destination>, Changes)> {
        self.stats.files_total += 1;
        self.stats.apparent_bytes = self.stats.apparent_bytes.saturating_add(entry.length);
        self.reporter.event(Event::Found(entry.allocated));
        match self.open_destination(entry, tree) {
            Ok((Opened::Different(destination), changes)) => return Some((destination, changes)),
            Ok((Opened::Equal { unset }, changes)) => {
                self.unset(unset);
                self.stats.data_bytes = self.stats.data_bytes.saturating_add(entry.allocated);
                self.report(entry, Outcome::Unchanged, changes);
            }
            Ok((Opened::Preview(mut preview), changes)) => {
                preview.wrote(entry.allocated);
                self.stats.written_bytes += preview.finish(entry.length).written;
                self.count_sent(entry, entry.allocated, changes);
            }
            Err(error) => self.fail(&error),
        }
        None
    }

    /// What there is at the destination of a file, and how that differs.
    fn open_destination(
        &mut self,
        entry: &ListedEntry,
        tree: &mut DestinationTree,
    ) -> Result<(Opened, Changes)> {
        let existing = self.options.transfer.existing;
        let Some(place) = tree.root().place(&entry.target, self.options.dry_run || existing)? else {
            if existing {
                return Ok((Opened::Equal { unset: None }, Changes::LEFT));
            }
            let preview = Box::new(Preview::of_nothing(&tree.root().path_of(&entry.target)));
            return Ok((Opened::Preview(preview), Changes::NEW.with(Changes::TRANSFER, true)));
        };
        let path = place.path.clone();
        let (length, allocated) = (entry.length, entry.allocated);
        let kind = Kind::File { length, allocated, whole: true, retry: false };
        let precision = if entry.is_exact { Precision::Nanoseconds } else { Precision::Seconds };
        let wanted = Wanted {
            length,
            data: allocated,
            whole: true,
            quick_check: QuickCheck::Time(precision),
            attributes: tree.attributes(&kind, &entry.metadata),
        };
        let opening = Destination::open(place, wanted, &self.setup)?;
        if let Some(warning) = opening.recovered.warning(&path) {
            self.reporter.event(Event::Warning(&warning));
        }
        if let Opened::Different(destination) = &opening.opened
            && let Some(shortage) = destination.shortage()
        {
            self.reporter.event(Event::Warning(&shortage));
        }
        Ok((opening.opened, opening.changes))
    }

    /// How a file is to be sent.
    fn choose_encoding(&self, entry: &ListedEntry) -> Encoding {
        let is_sparse = entry.kind == FileType::Device || entry.allocated < entry.length;
        match self.far.sparse {
            // A tar takes a file without blocks for one hole, and there may be content.
            Encoding::Tar(_) if entry.allocated == 0 => Encoding::Whole,
            _ if !is_sparse || !self.options.hole_map => Encoding::Whole,
            Encoding::Tar(_) if entry.kind == FileType::Device => Encoding::Whole,
            Encoding::Tar(_) if entry.allocated >= LARGE_FILE => Encoding::Tar(LARGE_FACTOR),
            other => other,
        }
    }

    fn count_sent(&mut self, entry: &ListedEntry, data: u64, changes: Changes) {
        let stats = &mut self.stats;
        stats.files_sent += 1;
        stats.data_bytes = stats.data_bytes.saturating_add(data);
        stats.sent_data_bytes = stats.sent_data_bytes.saturating_add(data);
        self.report(entry, Outcome::Sent(data), changes);
    }

    /// Receives what answers a request: the file, or why there is none.
    fn file(&mut self, requested: Requested) -> Result<()> {
        let Requested { entry, encoding, destination, changes, .. } = requested;
        let (busy, sent) = self.far.sent(encoding)?;
        if let Some(who) = busy {
            let path = printable(&entry.source);
            let what = format!("{path} is in use: {who}; the copy may be inconsistent, send a snapshot");
            self.reporter.event(Event::Warning(&Warning::about(&entry.source, what).on(&self.far.host)));
        }
        let encoding = match sent {
            Ok(encoding) => encoding,
            Err(why) => {
                self.fail_far(&entry, why);
                return Ok(());
            }
        };
        let is_checked = destination.is_device() && !self.options.as_is;
        let unchecked = is_checked.then(|| entry.source.clone());
        let mut sink = ArrivingFile::new(*destination, unchecked, self.reporter);
        let came = self.far.content(&entry, encoding, &mut sink);
        let sent = match came.and_then(|came| Ok(self.far.answer(b"done")?.and(came))) {
            Ok(sent) => sent,
            Err(error) => {
                sink.discard();
                return Err(error);
            }
        };
        let data = sink.data;
        let finished = sink.finish(sent.is_ok());
        match (sent, finished) {
            (Err(why), _) => self.fail_far(&entry, why),
            (Ok(()), Err(error)) => self.fail(&error),
            (Ok(()), Ok(finished)) => {
                let stats = &mut self.stats;
                if let Some(Finished { written, punched, unset, .. }) = finished {
                    stats.written_bytes += written;
                    stats.punched_bytes = stats.punched_bytes.saturating_add(punched);
                    self.unset(unset);
                }
                self.count_sent(&entry, data, changes);
            }
        }
        Ok(())
    }

    fn fail_far(&mut self, entry: &ListedEntry, why: Refusal) {
        let failure = source::lost(&why.error(&entry.source));
        if failure.code == code::VANISHED {
            self.stats.files_vanished += 1;
        }
        self.failed(failure.on(&self.far.host));
    }

    /// The same of what was named.
    fn fail_far_at(&mut self, path: &Path, why: Refusal) {
        self.failed(why.error(path).to_failure().on(&self.far.host));
    }

    fn refuse(&mut self, entry: &ListedEntry, why: &str) {
        self.fail_far(entry, Refusal::Because(why.into()));
    }

    /// Counts and shows what could not be made, or not with all of its attributes.
    fn settle(&mut self, made: Result<Option<Failure>>) {
        match made {
            Ok(unset) => self.unset(unset),
            Err(error) => self.fail(&error),
        }
    }

    fn unset(&mut self, unset: Option<Failure>) {
        if let Some(failure) = unset {
            self.stats.count_unset(failure.code);
            self.reporter.event(Event::Unset(&failure));
        }
    }

    fn fail(&mut self, error: &Error) {
        self.failed(error.to_failure());
    }

    fn failed(&mut self, failure: Failure) {
        self.stats.count_failure(failure.code);
        self.reporter.event(Event::Failed(&failure));
    }

    fn report(&self, entry: &ListedEntry, outcome: Outcome, changes: Changes) {
        let item = entry.item(ItemKind::File { length: Some(entry.length) });
        self.reporter.event(Event::File(item, outcome, changes));
    }
}
