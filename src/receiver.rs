//! The receiving role, over any pair of streams. Answers each announced file
//! with the map of what it has, puts together what arrives, and makes it the
//! destination when its root hash is right. Trusts nothing that it is told.
//!
//! The caller's thread reads frames and applies them. A mapper answers entries
//! in order and hashes what is there; what it finds goes to the sender and, over
//! a bounded queue, to the caller's thread. Finishers sync and rename, several
//! at a time.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};

use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;

use crate::apply::{self, Destination, Place};
use crate::error::{Error, Result, escape};
use crate::hashmap::{self, Grid, Hash, Item, RootHasher, Run};
use crate::options::Options;
use crate::protocol::{
    self, Data, Entry, Frame, FrameReader, FrameWriter, Kind, MAX_LENGTH, MAX_MAP_KEYS, MAX_MAP_RUNS,
    MAX_UNANSWERED, Message, Metadata,
};
use crate::report::{Event, Outcome, Phase, Reporter, Stats};
use crate::stage::Attributes;
use crate::sys;
use crate::tree::Names;

/// Stretches of maps, and opened destinations, that wait to be applied.
const QUEUED_MAPS: usize = 64;
/// Files that are being synced and renamed at once, and that wait for it.
const FINISHERS: usize = 4;

/// Where everything goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The destination as the user wrote it.
    pub path: PathBuf,
    /// It must be a directory: trailing slash, or several sources.
    pub directory: bool,
    /// The umask of this process.
    pub umask: u32,
}

/// Receives into `target` until the sender is through, and answers with totals.
/// Returns what both ends did.
///
/// # Errors
///
/// When the connection fails, the sender breaks the protocol, or the
/// destination as a whole can't be used. Files that fail are the sender's to count.
pub fn run<R: Read, W: Write + Send>(
    mut input: FrameReader<R>,
    output: FrameWriter<W>,
    target: Target,
    options: &Options,
    reporter: &dyn Reporter,
) -> Result<Stats> {
    let shared = Shared {
        output: Mutex::new(output),
        stats: Mutex::default(),
        unanswered: AtomicUsize::new(0),
        stopped: AtomicBool::new(false),
        options: Arc::new(options.clone()),
        umask: target.umask,
        reporter,
    };
    let (jobs_in, jobs) = sync_channel(MAX_UNANSWERED);
    let (maps_in, maps) = sync_channel(QUEUED_MAPS);
    let (finish_in, finish) = sync_channel(FINISHERS);
    let finish = Mutex::new(finish);
    let result = std::thread::scope(|scope| {
        scope.spawn(|| answer_entries(&shared, jobs, maps_in));
        let finishers: Vec<_> =
            (0..FINISHERS).map(|_| scope.spawn(|| finish_files(&shared, &finish))).collect();
        let mut applier = Applier {
            shared: &shared,
            input: &mut input,
            base: None,
            target,
            jobs: jobs_in,
            maps: Maps { queue: maps, items: VecDeque::new(), ended: true, known: true },
            finish: finish_in,
            names: Names::default(),
            current: Current::None,
            directories: Vec::new(),
        };
        let result = applier.run();
        shared.stopped.store(result.is_err(), Ordering::Relaxed);
        if let Current::File(file) = std::mem::replace(&mut applier.current, Current::None) {
            file.destination.keep();
        }
        let (directories, base) = applier.close();
        for finisher in finishers {
            let _ = finisher.join();
        }
        let theirs = result?;
        finish_directories(&shared, base.as_ref(), directories)?;
        Ok(theirs)
    });
    match result {
        Ok(theirs) => shared.end(theirs),
        Err(error) => {
            shared.lock_output().give_up(&error);
            Err(error)
        }
    }
}

/// What the threads of a receiver share.
struct Shared<'a, W: Write> {
    output: Mutex<FrameWriter<W>>,
    stats: Mutex<Stats>,
    unanswered: AtomicUsize,
    stopped: AtomicBool,
    options: Arc<Options>,
    umask: u32,
    reporter: &'a dyn Reporter,
}

impl<W: Write> Shared<'_, W> {
    fn lock_output(&self) -> MutexGuard<'_, FrameWriter<W>> {
        self.output.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn lock_stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Writes messages and sends them off at once.
    fn tell(&self, messages: &[Message]) -> Result<()> {
        let mut output = self.lock_output();
        messages.iter().try_for_each(|message| output.message(message))?;
        output.flush()
    }

    fn answer(&self, message: Message) -> Result<()> {
        self.unanswered.fetch_sub(1, Ordering::Relaxed);
        self.tell(&[message])
    }

    fn failed(&self, id: u64, error: &Error, answer: bool) -> Message {
        let failure = error.to_failure();
        self.reporter.event(Event::Failed(&failure));
        Message::Failed { id, failure, answer }
    }

    fn report(&self, path: &[u8], outcome: Outcome) {
        self.reporter.event(Event::File(Path::new(OsStr::from_bytes(path)), outcome));
    }

    fn end(&self, mut theirs: Stats) -> Result<Stats> {
        let ours = self.lock_stats().clone();
        self.tell(&[Message::End(Box::new(ours.clone()))])?;
        theirs.add_receiver(&ours);
        Ok(theirs)
    }
}

/// The directory that entries are relative to.
#[derive(Clone)]
struct Base {
    /// `None`: a dry run, and it is not there.
    dir: Option<Arc<OwnedFd>>,
    /// The single file goes under this name.
    rename: Option<OsString>,
    shown: PathBuf,
}

impl Base {
    /// Finds, or makes, what the destination names.
    fn find(target: &Target, single: bool, dry_run: bool) -> Result<Base> {
        let path = match target.path.strip_prefix("~") {
            Ok(rest) => std::env::home_dir().unwrap_or_default().join(rest),
            Err(_) => target.path.clone(),
        };
        let path = if path.as_os_str().is_empty() { PathBuf::from(".") } else { path };
        let there = std::fs::metadata(&path);
        if there.as_ref().is_ok_and(|metadata| metadata.is_dir()) {
            return Base::open(&path, None);
        }
        let shown = escape(path.as_os_str().as_bytes());
        if single && !target.directory {
            let device = there.is_ok_and(|metadata| !metadata.is_file());
            let path = if device { path.canonicalize().unwrap_or(path) } else { path };
            let Some(name) = path.file_name() else {
                return Err(Error::Destination(format!("{shown} names no file")));
            };
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            return Base::open(parent, Some(name.to_owned()));
        }
        match there {
            Ok(_) => Err(Error::Destination(format!(
                "{shown} is not a directory, and more than one file is to go there"
            ))),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Destination(format!("cannot open the directory {shown}: {error}")))
            }
            Err(_) if dry_run => Ok(Base { dir: None, rename: None, shown: path }),
            Err(_) => {
                std::fs::create_dir(&path).map_err(|error| {
                    Error::Destination(format!(
                        "cannot create the directory {shown}: {error}; create its parent first"
                    ))
                })?;
                Base::open(&path, None)
            }
        }
    }

    fn open(path: &Path, rename: Option<OsString>) -> Result<Base> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty()).map_err(|errno| {
            let shown = escape(path.as_os_str().as_bytes());
            Error::Destination(format!(
                "cannot open the directory {shown}: {}; create it first",
                errno.desc()
            ))
        })?;
        Ok(Base { dir: Some(Arc::new(dir)), rename, shown: path.to_path_buf() })
    }

    /// Where an entry goes. `None`: its directory is not there, in a dry run.
    fn place(&self, entry: &[u8], dry_run: bool) -> Result<Option<Place>> {
        let relative = match &self.rename {
            Some(name) => Path::new(name),
            None => Path::new(OsStr::from_bytes(entry)),
        };
        let path = self.shown.join(relative);
        let (Some(base), Some(name)) = (&self.dir, relative.file_name()) else {
            if dry_run {
                return Ok(None);
            }
            return Err(Error::refused(path, "there is a directory where a file must go; remove it first"));
        };
        let parent = relative.parent().unwrap_or(Path::new(""));
        if parent.as_os_str().is_empty() {
            return Ok(Some(Place { dir: Arc::clone(base), name: name.to_owned(), path }));
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match sys::open_beneath(base.as_fd(), parent, flags, 0) {
            Ok(dir) => Ok(Some(Place { dir: Arc::new(dir), name: name.to_owned(), path })),
            Err(error) if dry_run && error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("open the directory of", &path)(error)),
        }
    }
}

/// A file that was announced.
struct Job {
    id: u64,
    entry: Vec<u8>,
    base: Base,
    request: apply::Request,
    retry: bool,
}

/// What the mapper hands to the applying thread, per file in this order.
enum Mapped {
    Begin(Box<Begun>),
    Items(Vec<Item>),
    End,
    /// The basis cannot be read; the sender was told.
    Broken,
}

struct Begun {
    id: u64,
    entry: Vec<u8>,
    destination: Destination,
    grid: Grid,
    has_map: bool,
    blank: bool,
    whole: bool,
}

/// Answers files in the order in which they were announced.
fn answer_entries<W: Write>(shared: &Shared<W>, jobs: Receiver<Job>, maps: SyncSender<Mapped>) {
    for job in jobs {
        if shared.stopped.load(Ordering::Relaxed) {
            return;
        }
        let id = job.id;
        let answered = match prepare(shared, job) {
            Ok(Prepared::Unchanged(entry)) => {
                shared.report(&entry, Outcome::Unchanged);
                shared.answer(Message::Unchanged { id })
            }
            Ok(Prepared::Missing) => shared.answer(Message::NoBasis { id }),
            Ok(Prepared::Open(begun)) => map_basis(shared, *begun, &maps),
            Err(error) => shared.answer(shared.failed(id, &error, true)),
        };
        // A connection that is gone ends the applying thread, too; it says so.
        if answered.is_err() {
            return;
        }
    }
}

enum Prepared {
    Unchanged(Vec<u8>),
    /// Nothing is there, and nothing is to be made: a dry run.
    Missing,
    Open(Box<Begun>),
}

fn prepare<W: Write>(shared: &Shared<W>, job: Job) -> Result<Prepared> {
    let options = &shared.options;
    let Some(place) = job.base.place(&job.entry, options.dry_run)? else { return Ok(Prepared::Missing) };
    if !options.dry_run && apply::settle(&place, options.fsync)?.is_some() {
        let path = escape(place.path.as_os_str().as_bytes());
        shared.tell(&[Message::Warning(format!(
            "finished what an interrupted run had begun to write into {path}"
        ))])?;
    }
    let there = place.stat()?;
    let regular =
        there.filter(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG);
    let skip = !(options.checksum || options.ignore_times || options.verify || job.retry);
    if skip
        && regular.is_some_and(|stat| {
            stat.st_size as u64 == job.request.length
                && (options.size_only || same_time(job.request.attributes.mtime, &stat))
        })
    {
        if !options.dry_run {
            apply::touch(&place, &job.request.attributes)?;
        }
        return Ok(Prepared::Unchanged(job.entry));
    }
    if options.dry_run && there.is_none() {
        return Ok(Prepared::Missing);
    }
    let grid = Grid { length: job.request.length, block: options.block_size };
    let whole = job.request.whole;
    let destination = Destination::open(place, job.request, Arc::clone(options))?;
    let (has_map, blank) = (destination.basis().is_some(), destination.is_blank());
    let Job { id, entry, .. } = job;
    Ok(Prepared::Open(Box::new(Begun { id, entry, destination, grid, has_map, blank, whole })))
}

/// Whether a file has this time; a file system without nanoseconds has it, too.
fn same_time(mtime: Option<(i64, u32)>, stat: &nix::sys::stat::FileStat) -> bool {
    mtime.is_some_and(|(seconds, nanoseconds)| {
        stat.st_mtime == seconds && (stat.st_mtime_nsec == i64::from(nanoseconds) || stat.st_mtime_nsec == 0)
    })
}

/// Answers with what the destination has, block by block.
fn map_basis<W: Write>(shared: &Shared<W>, begun: Begun, maps: &SyncSender<Mapped>) -> Result<()> {
    let (id, basis, dry_run) = (begun.id, begun.destination.basis(), shared.options.dry_run);
    let length = begun.grid.length.min(basis.as_ref().map_or(0, |basis| basis.length));
    let grid = Grid { length, ..begun.grid };
    let path = begun.destination.path().to_path_buf();
    // The applying thread may be gone only when the run is over.
    let pass_on = |mapped| dry_run || maps.send(mapped).is_ok();
    if !pass_on(Mapped::Begin(Box::new(begun))) {
        return Ok(());
    }
    let Some(basis) = basis else { return shared.answer(Message::NoBasis { id }) };
    shared.answer(Message::Map { id })?;
    let result = hashmap::map_image(basis.image.as_ref(), &grid, |batch| {
        if shared.stopped.load(Ordering::Relaxed) {
            return Ok(false);
        }
        shared.lock_stats().basis_hashed_bytes += batch.buffer.len() as u64;
        let mut output = shared.lock_output();
        for runs in runs_of(&batch.items) {
            output.map(&runs).map_err(MapError::Link)?;
        }
        output.flush().map_err(MapError::Link)?;
        drop(output);
        Ok(pass_on(Mapped::Items(std::mem::take(&mut batch.items))))
    });
    match result {
        Ok(()) => {
            pass_on(Mapped::End);
            shared.tell(&[Message::MapEnd])
        }
        Err(MapError::Link(error)) => Err(error),
        Err(MapError::Read(source)) => {
            let error = Error::file("read the old", &path)(source);
            let failed = shared.failed(id, &error, false);
            pass_on(Mapped::Broken);
            shared.tell(&[failed, Message::MapEnd])
        }
    }
}

enum MapError {
    Read(std::io::Error),
    Link(Error),
}

impl From<std::io::Error> for MapError {
    fn from(error: std::io::Error) -> MapError {
        MapError::Read(error)
    }
}

/// The items of a batch as map frames.
fn runs_of(items: &[Item]) -> Vec<Vec<Run>> {
    let mut frames = vec![Vec::new()];
    let mut keys = 0;
    for item in items {
        if frames.last().is_some_and(|runs: &Vec<Run>| runs.len() >= MAX_MAP_RUNS) || keys >= MAX_MAP_KEYS {
            frames.push(Vec::new());
            keys = 0;
        }
        let Some(runs) = frames.last_mut() else { continue };
        match (item, runs.last_mut()) {
            (Item::Hole(blocks), Some(Run::Zero(zeros))) => *zeros += blocks,
            (Item::Hole(blocks), _) => runs.push(Run::Zero(*blocks)),
            (Item::Block(block), Some(Run::Zero(zeros))) if block.data == 0 => *zeros += 1,
            (Item::Block(block), _) if block.data == 0 => runs.push(Run::Zero(1)),
            (Item::Block(block), last) => {
                keys += 1;
                let key = hashmap::key(&block.hash);
                match last {
                    Some(Run::Keys(keys)) => keys.push(key),
                    _ => runs.push(Run::Keys(vec![key])),
                }
            }
        }
    }
    frames
}

/// What the basis has in the next blocks.
enum Had {
    /// Nothing: a hole, or beyond the end.
    Hole,
    /// This.
    Block(hashmap::Block),
    /// Nobody knows.
    Unknown,
}

/// The basis of the current file, as the mapper finds it.
struct Maps {
    queue: Receiver<Mapped>,
    items: VecDeque<Item>,
    ended: bool,
    known: bool,
}

impl Maps {
    /// What the next blocks are, and how many alike, at most `limit`.
    fn next(&mut self, limit: u64) -> Result<(u64, Had), ApplyError> {
        loop {
            match self.items.pop_front() {
                Some(Item::Block(block)) => return Ok((1, Had::Block(block))),
                Some(Item::Hole(blocks)) => {
                    if blocks > limit {
                        self.items.push_front(Item::Hole(blocks - limit));
                    }
                    return Ok((blocks.min(limit), Had::Hole));
                }
                None if self.ended && self.known => return Ok((limit, Had::Hole)),
                None if self.ended => return Ok((limit, Had::Unknown)),
                None => match self.queue.recv() {
                    Ok(Mapped::Items(items)) => self.items.extend(items),
                    Ok(Mapped::End) => self.ended = true,
                    Ok(Mapped::Broken) => {
                        self.ended = true;
                        return Err(ApplyError::Told);
                    }
                    Ok(Mapped::Begin(_)) | Err(_) => return Err(ApplyError::Gone),
                },
            }
        }
    }

    /// Skips what is left of the current file. `false`: the mapper is gone.
    fn drain(&mut self) -> bool {
        self.items.clear();
        while !self.ended {
            match self.queue.recv() {
                Ok(Mapped::Items(_)) => {}
                Ok(Mapped::End | Mapped::Broken) => self.ended = true,
                Ok(Mapped::Begin(_)) | Err(_) => return false,
            }
        }
        true
    }
}

/// A file that is being put together.
struct OpenFile {
    id: u64,
    entry: Vec<u8>,
    destination: Destination,
    grid: Grid,
    root: RootHasher,
    at: u64,
    kept: u64,
    received: u64,
    whole: bool,
    /// Zeros that are still to be made, gathered over blocks.
    zeros: Range<u64>,
}

enum Current {
    None,
    File(Box<OpenFile>),
    /// It failed; the rest of its description is skipped.
    Failed,
}

/// A file whose content is complete.
struct Complete {
    file: Box<OpenFile>,
    root: Hash,
}

/// The caller's thread.
struct Applier<'a, 'b, R: Read, W: Write> {
    shared: &'a Shared<'a, W>,
    input: &'b mut FrameReader<R>,
    target: Target,
    base: Option<Base>,
    jobs: SyncSender<Job>,
    maps: Maps,
    finish: SyncSender<Complete>,
    names: Names,
    current: Current,
    directories: Vec<(Vec<u8>, Attributes)>,
}

impl<R: Read, W: Write> Applier<'_, '_, R, W> {
    /// Lets the other threads end, which wait for more work; what is left to do.
    fn close(self) -> (Vec<(Vec<u8>, Attributes)>, Option<Base>) {
        (self.directories, self.base)
    }

    /// Handles frames until the sender's totals.
    fn run(&mut self) -> Result<Stats> {
        loop {
            match self.input.read()? {
                Frame::Message(Message::End(stats)) if matches!(self.current, Current::None) => {
                    return Ok(*stats);
                }
                Frame::Message(message) => self.message(message)?,
                Frame::Data(data) => self.describe(|maps, file| apply_data(maps, file, &data))?,
                Frame::Map(_) => return Err(self.input.bad("a map from the sender")),
            }
        }
    }

    fn message(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Layout { single } if self.base.is_none() => {
                self.base = Some(Base::find(&self.target, single, self.shared.options.dry_run)?);
                Ok(())
            }
            Message::Entry(entry) => self.entry(entry),
            Message::Content { id } if matches!(self.current, Current::None) => self.begin(id),
            Message::Keep { blocks } => self.describe(|maps, file| apply_keep(maps, file, blocks)),
            Message::Zero { blocks } => self.describe(|maps, file| apply_zero(maps, file, blocks)),
            Message::Finish { root } => self.finish(root),
            Message::Abandon => self.abandon(),
            Message::Warning(text) => {
                self.shared.reporter.event(Event::Warning(&text));
                Ok(())
            }
            Message::SourceFailed(failure) => {
                self.shared.reporter.event(Event::Failed(&failure));
                Ok(())
            }
            _ => Err(self.input.bad("a message out of turn")),
        }
    }

    fn entry(&mut self, entry: Entry) -> Result<()> {
        protocol::check_path(&entry.path).map_err(|what| self.input.bad(what))?;
        let Some(base) = self.base.clone() else { return Err(self.input.bad("an entry before the layout")) };
        let attributes = self.attributes(&entry);
        match entry.kind {
            Kind::File { length, allocated, whole, retry } => {
                let unanswered = self.shared.unanswered.fetch_add(1, Ordering::Relaxed);
                if length > MAX_LENGTH || unanswered >= MAX_UNANSWERED {
                    return Err(self.input.bad(format!("a file of {length} bytes, {unanswered} unanswered")));
                }
                self.shared.reporter.event(Event::Found(allocated));
                let whole = whole || self.shared.options.whole_file;
                let request = apply::Request { length, data: allocated, whole, attributes };
                let job = Job { id: entry.id, entry: entry.path, base, request, retry };
                // A mapper that is gone took the connection with it; the next read says so.
                let _ = self.jobs.send(job);
                Ok(())
            }
            _ if self.shared.options.dry_run => Ok(()),
            Kind::Directory => {
                let made = make_directory(&base, &entry.path);
                let mode =
                    attributes.mode.or(made.as_ref().is_ok_and(|&new| new).then_some(attributes.new_mode));
                self.directories.push((entry.path, Attributes { mode, ..attributes }));
                self.settle_entry(entry.id, made.map(|_| ()))
            }
            Kind::Symlink(link) => {
                let result = make_symlink(&base, &entry.path, &link, &attributes);
                self.settle_entry(entry.id, result)
            }
        }
    }

    fn settle_entry(&self, id: u64, result: Result<()>) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(error) => self.shared.tell(&[self.shared.failed(id, &error, false)]),
        }
    }

    fn attributes(&mut self, entry: &Entry) -> Attributes {
        let options = &self.shared.options;
        let Metadata { mode, mtime, owner } = &entry.metadata;
        let mode = mode.map(|mode| mode & 0o7777);
        let numbers = owner.as_ref().filter(|_| options.owner || options.group);
        let numbers = numbers.map(|owner| self.names.numbers_of(owner));
        Attributes {
            mode: mode.filter(|_| options.perms),
            new_mode: mode.unwrap_or(0o666) & 0o777 & !self.shared.umask,
            mtime: mtime.filter(|_| options.times).map(|(s, ns)| (s, ns.min(999_999_999))),
            uid: numbers.filter(|_| options.owner).map(|(uid, _)| uid),
            gid: numbers.filter(|_| options.group).map(|(_, gid)| gid),
        }
    }

    /// The sender describes the next file that has an answer.
    fn begin(&mut self, id: u64) -> Result<()> {
        let begun = match self.maps.queue.recv() {
            Ok(Mapped::Begin(begun)) if begun.id == id => begun,
            _ => return Err(self.input.bad("the content of a file it was not asked for")),
        };
        let Begun { entry, destination, grid, has_map, blank, whole, .. } = *begun;
        (self.maps.ended, self.maps.known) = (!has_map, has_map || blank);
        self.maps.items.clear();
        self.current = Current::File(Box::new(OpenFile {
            id,
            entry,
            destination,
            grid,
            root: RootHasher::new(&grid),
            at: 0,
            kept: 0,
            received: 0,
            whole,
            zeros: 0..0,
        }));
        Ok(())
    }

    /// Applies one piece of the description. What goes wrong here fails this
    /// file only, unless the sender broke a rule.
    fn describe(
        &mut self,
        apply: impl FnOnce(&mut Maps, &mut OpenFile) -> Result<u64, ApplyError>,
    ) -> Result<()> {
        let file = match &mut self.current {
            Current::File(file) => file,
            Current::Failed => return Ok(()),
            Current::None => return Err(self.input.bad("content without a file")),
        };
        match apply(&mut self.maps, file) {
            Ok(bytes) => {
                self.shared.reporter.event(Event::Done(Phase::Sending, bytes));
                Ok(())
            }
            Err(ApplyError::Rule(what)) => Err(self.input.bad(what)),
            Err(ApplyError::Gone) => Err(Error::Closed { peer: "the sender".into(), detail: String::new() }),
            Err(ApplyError::Told) => {
                self.fail();
                Ok(())
            }
            Err(ApplyError::File(error)) => {
                let id = file.id;
                self.fail_with(&error);
                self.shared.tell(&[self.shared.failed(id, &error, false)])
            }
        }
    }

    /// Gives the current file up; on a full disk nothing of it stays.
    fn fail_with(&mut self, error: &Error) {
        let Current::File(file) = std::mem::replace(&mut self.current, Current::Failed) else { return };
        if matches!(error, Error::Space { .. }) {
            file.destination.discard();
        } else {
            file.destination.keep();
        }
    }

    fn fail(&mut self) {
        if let Current::File(file) = std::mem::replace(&mut self.current, Current::Failed) {
            file.destination.keep();
        }
    }

    fn finish(&mut self, root: Hash) -> Result<()> {
        self.describe(|_, file| flush_zeros(file).map(|()| 0))?;
        let current = std::mem::replace(&mut self.current, Current::None);
        if !self.maps.drain() {
            return Err(self.input.bad("the end of a file out of turn"));
        }
        let Current::File(mut file) = current else { return Ok(()) };
        if file.at != file.grid.blocks() {
            return Err(self.input.bad(format!("a file of {} blocks for {}", file.at, file.grid.blocks())));
        }
        let computed = std::mem::replace(&mut file.root, RootHasher::new(&file.grid)).finish();
        if computed != root {
            let id = file.id;
            if file.whole {
                let why = "did not arrive as it was sent; check memory and storage on both sides";
                let error = Error::refused(file.destination.path(), why);
                return self.shared.tell(&[self.shared.failed(id, &error, false)]);
            }
            file.destination.keep();
            return self.shared.tell(&[Message::Again { id }]);
        }
        // A finisher that is gone would have taken the whole run with it.
        let _ = self.finish.send(Complete { file, root });
        Ok(())
    }

    fn abandon(&mut self) -> Result<()> {
        if matches!(self.current, Current::None) {
            return Err(self.input.bad("an abandoned file that was never begun"));
        }
        self.fail();
        self.current = Current::None;
        if self.maps.drain() { Ok(()) } else { Err(self.input.bad("an abandoned file out of turn")) }
    }
}

enum ApplyError {
    /// The sender broke a rule.
    Rule(String),
    /// The file failed here.
    File(Error),
    /// The file failed while it was mapped, and the sender was told.
    Told,
    /// The mapper is gone, with the connection.
    Gone,
}

impl From<Error> for ApplyError {
    fn from(error: Error) -> ApplyError {
        ApplyError::File(error)
    }
}

fn check_room(file: &OpenFile, blocks: u64) -> Result<(), ApplyError> {
    if blocks > file.grid.blocks() - file.at {
        return Err(ApplyError::Rule(format!("{blocks} blocks beyond the end of a file")));
    }
    Ok(())
}

/// Blocks stay; allocated zeros among them become holes.
fn apply_keep(maps: &mut Maps, file: &mut OpenFile, blocks: u64) -> Result<u64, ApplyError> {
    check_room(file, blocks)?;
    let end = file.at + blocks;
    let mut bytes = 0;
    while file.at < end {
        let (count, had) = maps.next(end - file.at)?;
        match had {
            Had::Unknown => return Err(ApplyError::Rule("a block kept that nobody knows".into())),
            Had::Hole => {}
            Had::Block(block) => {
                if block.data != 0 {
                    file.root.add(file.at, &block.hash);
                    bytes += file.grid.masked_bytes(file.at, block.data);
                }
                zero_pages(file, block.read & !block.data)?;
            }
        }
        file.at += count;
    }
    file.kept += bytes;
    Ok(bytes)
}

/// Blocks become zeros.
fn apply_zero(maps: &mut Maps, file: &mut OpenFile, blocks: u64) -> Result<u64, ApplyError> {
    check_room(file, blocks)?;
    let end = file.at + blocks;
    while file.at < end {
        let (count, had) = maps.next(end - file.at)?;
        match had {
            Had::Hole => {}
            Had::Block(block) => zero_pages(file, block.read)?,
            Had::Unknown => {
                let range = file.grid.bytes(&(file.at..file.at + count));
                zero_range(file, range)?;
            }
        }
        file.at += count;
    }
    Ok(0)
}

/// Blocks get new data; what is not data in them becomes zeros.
fn apply_data(maps: &mut Maps, file: &mut OpenFile, data: &Data) -> Result<u64, ApplyError> {
    check_room(file, data.masks.len() as u64)?;
    let wrong = |what: &str| Err(ApplyError::Rule(format!("a data frame {what}")));
    if data.first != file.at {
        return wrong("out of place");
    }
    let mut left = data.bytes.as_slice();
    // A stretch of the frame that is one stretch of the file, to be written at once.
    let mut open: Option<(u64, &[u8])> = None;
    let mut rest = data.bytes.as_slice();
    for &mask in &data.masks {
        let (at, all) = (file.at, file.grid.all_pages(file.at));
        if mask == 0 || mask & !all != 0 {
            return wrong("with an impossible page mask");
        }
        let len = file.grid.masked_bytes(at, mask) as usize;
        let Some((bytes, behind)) = left.split_at_checked(len) else { return wrong("that is too short") };
        left = behind;
        file.root.add(at, &hashmap::hash_block(mask, std::iter::once(bytes)));
        let (_, had) = maps.next(1)?;
        let there = match had {
            Had::Hole => 0,
            Had::Block(block) => block.read,
            Had::Unknown => all,
        };
        zero_pages(file, there & !mask)?;
        for run in hashmap::page_runs(mask) {
            let range = file.grid.pages(at, &run);
            let len = (range.end - range.start) as usize;
            open = match open {
                Some((start, bytes)) if start + bytes.len() as u64 == range.start => {
                    Some((start, &rest[..bytes.len() + len]))
                }
                Some((start, bytes)) => {
                    file.destination.write(start, bytes)?;
                    rest = &rest[bytes.len()..];
                    Some((range.start, &rest[..len]))
                }
                None => Some((range.start, &rest[..len])),
            };
        }
        file.at += 1;
    }
    if !left.is_empty() {
        return wrong("that is too long");
    }
    if let Some((start, bytes)) = open {
        file.destination.write(start, bytes)?;
    }
    file.received += data.bytes.len() as u64;
    Ok(data.bytes.len() as u64)
}

/// Makes pages of the current block zero, if any.
fn zero_pages(file: &mut OpenFile, mask: hashmap::PageMask) -> Result<(), ApplyError> {
    hashmap::page_runs(mask).try_for_each(|run| {
        let range = file.grid.pages(file.at, &run);
        zero_range(file, range)
    })
}

/// Gathers adjoining zeros, so that each hole is punched once.
fn zero_range(file: &mut OpenFile, range: Range<u64>) -> Result<(), ApplyError> {
    if range.start != file.zeros.end {
        flush_zeros(file)?;
        file.zeros = range;
    } else {
        file.zeros.end = range.end;
    }
    Ok(())
}

fn flush_zeros(file: &mut OpenFile) -> Result<(), ApplyError> {
    let zeros = std::mem::replace(&mut file.zeros, 0..0);
    if !zeros.is_empty() {
        file.destination.zero(zeros)?;
    }
    Ok(())
}

/// Completes files until the applying thread has no more.
fn finish_files<W: Write>(shared: &Shared<W>, queue: &Mutex<Receiver<Complete>>) {
    loop {
        let next = queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).recv();
        let Ok(Complete { file, root }) = next else { return };
        let OpenFile { id, entry, destination, kept, received, .. } = *file;
        let changed = destination.is_changed();
        if received > (8 << 20) {
            shared.reporter.event(Event::Phase(Phase::WritingBack));
            // Only a hint for the other end; a broken connection shows below.
            let _ = shared.tell(&[Message::Busy(Phase::WritingBack)]);
        }
        let message = match destination.finish(&root, kept) {
            Ok((written, punched)) => {
                let mut stats = shared.lock_stats();
                stats.written_bytes += written;
                stats.punched_bytes += punched;
                shared.report(&entry, if changed { Outcome::Sent(received) } else { Outcome::Unchanged });
                Message::Done { id }
            }
            Err(error) => shared.failed(id, &error, false),
        };
        // The file is complete even when nobody is left to hear it.
        let _ = shared.tell(&[message]);
    }
}

/// Whether the directory is new.
fn make_directory(base: &Base, path: &[u8]) -> Result<bool> {
    if path.is_empty() {
        return Ok(false);
    }
    let Some(place) = base.place(path, false)? else { return Ok(false) };
    let made = sys::make_dir_at(&place.dir, &place.name, 0o700);
    let made = made.map_err(Error::file("create the directory", &place.path))?;
    if !made {
        let is_dir = place
            .stat()?
            .is_some_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR);
        if !is_dir {
            return Err(Error::refused(&place.path, "is in the way of a directory; remove it first"));
        }
    }
    Ok(made)
}

/// Makes or replaces a symlink; a temporary one is renamed over the old.
fn make_symlink(base: &Base, path: &[u8], link: &[u8], attributes: &Attributes) -> Result<()> {
    let Some(place) = base.place(path, false)? else { return Ok(()) };
    let link = OsStr::from_bytes(link);
    if sys::read_link_at(&place.dir, &place.name).is_ok_and(|now| now == link) {
        return apply::touch(&place, attributes);
    }
    apply::put_symlink(&place, link)?;
    apply::touch(&place, attributes)
}

/// Directories get their attributes last: making files in them changes times,
/// and their permissions may forbid it.
fn finish_directories<W: Write>(
    shared: &Shared<W>,
    base: Option<&Base>,
    directories: Vec<(Vec<u8>, Attributes)>,
) -> Result<()> {
    let Some(base) = base else { return Ok(()) };
    for (path, attributes) in directories.into_iter().rev() {
        let result = match &base.dir {
            Some(dir) => {
                apply::finish_directory(dir.as_fd(), Path::new(OsStr::from_bytes(&path)), &attributes)
                    .map_err(Error::file("set the attributes of", base.shown.join(OsStr::from_bytes(&path))))
            }
            None => Ok(()),
        };
        if let Err(error) = result {
            shared.tell(&[Message::Warning(error.to_string())])?;
        }
    }
    Ok(())
}
