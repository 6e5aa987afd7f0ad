//! The receiving role towards a shell: `sender.sh` tells what there is, and sends
//! the files whose size or time differ. Holes come as they are where GNU tar is
//! there; elsewhere zeros are found here, and travel compressed.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ChildStdout;
use std::sync::Arc;

use flate2::bufread::GzDecoder;

use crate::apply::{self, Destination};
use crate::base::{Base, Target, attributes_of, make_directory, make_symlink, names_working_file};
use crate::error::{Error, Failure, Result, code, escape, printable};
use crate::frames::Plain;
use crate::hashmap::{Hash, PAGE};
use crate::ladder::{self, Input, Output};
use crate::options::Options;
use crate::place::{self, Attributes, Place};
use crate::protocol::{self, MAX_LENGTH, MAX_PATH, Metadata, Owner};
use crate::report::{Event, Outcome, Phase, Reporter, Stats};
use crate::scan::is_zero;
use crate::shell::{self, Answer, Record, below};
use crate::stream::Sink;
use crate::tarball;
use crate::tree::{Names, names_contents};

/// Bytes of requests that may wait at the other end, which reads them while it
/// sends: less than a pipe holds.
const REQUESTED: usize = 16 << 10;
/// Files at least as large are asked of tar in blocks of this many times 512 bytes.
const LARGE: (u64, u64) = (16 << 20, 2048);
const SMALL_FACTOR: u64 = 20;
/// Memory for what zstd looks back at, as a power of two. Level 1 wants less.
const MAX_WINDOW: u32 = 23;

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
    shell::refuse_what_needs_an_agent(options, host)?;
    if options.checksum || options.ignore_times {
        let what = format!("{host} has no holesync to compare contents with: every file is sent whole");
        reporter.event(Event::Warning(&what));
    }
    let mut download = Download {
        far: Far::begin(input, output, host)?,
        options: Arc::new(options.clone()),
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
            if let Err(error) = place::finish_directory(dir.as_fd(), path, &attributes) {
                download.fail(&Error::file("set the attributes of", path)(error));
            }
        }
    }
    download.far.end()?;
    Ok(download.stats)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    File,
    Directory,
    Symlink,
    Device,
    Other,
}

/// Something that the other end has.
#[derive(Debug, Clone)]
struct Entry {
    /// Below its source.
    name: Vec<u8>,
    /// Below the destination.
    target: Vec<u8>,
    kind: Type,
    length: u64,
    allocated: u64,
    metadata: Metadata,
    /// The time has its nanoseconds.
    is_exact: bool,
}

impl Entry {
    /// Below the destination.
    fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.target))
    }
}

/// How the bytes of a file travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Whole,
    Gzip,
    Zstd,
    Tar(u64),
}

/// One run.
struct Download<'a> {
    far: Far,
    options: Arc<Options>,
    umask: u32,
    reporter: &'a dyn Reporter,
    stats: Stats,
    names: Names,
    /// What has come already: the first source that has a name is the one that counts.
    taken: HashSet<Vec<u8>>,
    /// To be given their attributes when everything is in them.
    directories: Vec<(Vec<u8>, Attributes)>,
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
            entry.target = match (prefix.is_empty(), entry.name.is_empty()) {
                (true, _) => entry.name.clone(),
                (false, true) => prefix.clone(),
                (false, false) => [&prefix, &b"/"[..], &entry.name].concat(),
            };
            found.push(entry);
            Some(())
        })?;
        if status != b"0" {
            let why =
                format!("{}: {}: could not be looked at, or not all of it", self.far.host, escape(source));
            self.failed(Failure { code: code::PARTIAL, message: why });
        }
        Ok(found)
    }

    /// Makes what a source has; its files in the order in which they were listed.
    fn receive(&mut self, source: &[u8], found: Vec<Entry>, base: &Base) -> Result<()> {
        let is_single =
            found.first().is_some_and(|entry| entry.name.is_empty() && entry.kind != Type::Directory);
        if !is_single {
            self.far.command(&[b"enter", source])?;
        }
        let mut asked = VecDeque::new();
        let mut requested = 0;
        for entry in found {
            if names_working_file(&entry.target) || !self.taken.insert(entry.target.clone()) {
                continue;
            }
            if let Err(what) = protocol::check_path(&entry.target) {
                self.failed_there(&entry, &what);
                continue;
            }
            let name = if is_single { source.to_vec() } else { below(&entry.name) };
            match entry.kind {
                Type::Other => self.skip("special file", source, &entry),
                Type::Device if !is_single => self.skip("special file", source, &entry),
                Type::Directory if !self.options.recursive => {
                    self.skip("directory", source, &entry);
                    break;
                }
                Type::Symlink if !self.options.links => self.skip("symlink", source, &entry),
                Type::Directory if !self.options.dry_run => self.directory(entry, base),
                Type::Symlink if !self.options.dry_run => {
                    self.far.command(&[b"link", &name])?;
                    self.wait_for(&mut asked, base)?;
                    requested = 0;
                    self.symlink(entry, base)?;
                }
                Type::Directory | Type::Symlink => {}
                Type::File | Type::Device => {
                    let Some(how) = self.wanted(&entry, base) else { continue };
                    let factor = if let How::Tar(factor) = how { factor } else { 0 };
                    let (length, factor) = (entry.length.to_string(), factor.to_string());
                    let words: [&[u8]; 5] = [b"get", how.word(), length.as_bytes(), factor.as_bytes(), &name];
                    let bytes = self.far.command(&words)?;
                    asked.push_back(Asked { entry, how, bytes });
                    requested += bytes;
                    while requested > REQUESTED {
                        let Some(next) = asked.pop_front() else { break };
                        requested -= next.bytes;
                        self.file(next, base)?;
                    }
                }
            }
        }
        self.wait_for(&mut asked, base)
    }

    fn wait_for(&mut self, asked: &mut VecDeque<Asked>, base: &Base) -> Result<()> {
        while let Some(next) = asked.pop_front() {
            self.file(next, base)?;
        }
        Ok(())
    }

    fn skip(&self, what: &str, source: &[u8], entry: &Entry) {
        let path = Path::new(OsStr::from_bytes(source)).join(OsStr::from_bytes(&entry.name));
        self.reporter.event(Event::Warning(&format!("skipping {what} {}", printable(&path))));
    }

    fn directory(&mut self, entry: Entry, base: &Base) {
        let attributes = attributes_of(&entry.metadata, &self.options, self.umask, &mut self.names);
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
        let attributes = attributes_of(&entry.metadata, &self.options, self.umask, &mut self.names);
        if let Err(error) = make_symlink(base, &entry.target, &link, &attributes) {
            self.fail(&error);
        }
        Ok(())
    }

    /// Whether a file has to be sent, and how.
    fn wanted(&mut self, entry: &Entry, base: &Base) -> Option<How> {
        self.stats.files_total += 1;
        self.stats.apparent_bytes = self.stats.apparent_bytes.saturating_add(entry.length);
        self.reporter.event(Event::Found(entry.allocated));
        let place = match base.place(&entry.target, self.options.dry_run) {
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
            let attributes = attributes_of(&entry.metadata, &self.options, self.umask, &mut self.names);
            if !self.options.dry_run
                && let Err(error) = place::touch(place, &attributes)
            {
                self.fail(&error);
            }
            return None;
        }
        if self.options.dry_run {
            self.stats.files_sent += 1;
            self.report(entry, Outcome::Sent(entry.allocated));
            return None;
        }
        let is_sparse = entry.kind == Type::Device || entry.allocated < entry.length;
        let (large, factor) = LARGE;
        Some(match self.far.sparse {
            _ if !is_sparse => How::Whole,
            How::Tar(_) if entry.kind == Type::Device => How::Whole,
            How::Tar(_) if entry.allocated >= large => How::Tar(factor),
            other => other,
        })
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
    fn file(&mut self, asked: Asked, base: &Base) -> Result<()> {
        let Asked { entry, how, .. } = asked;
        if let Err(why) = self.far.answer(b"sent")? {
            self.failed_there(&entry, &why);
            return Ok(());
        }
        let destination = self.open(&entry, base);
        let mut sink = FileSink { destination, at: 0, data: 0, reporter: self.reporter };
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

    fn open(&mut self, entry: &Entry, base: &Base) -> Result<Destination> {
        let attributes = attributes_of(&entry.metadata, &self.options, self.umask, &mut self.names);
        let request = apply::Request { length: entry.length, data: entry.allocated, whole: true, attributes };
        let Some(place) = base.place(&entry.target, false)? else {
            return Err(Error::refused(entry.path(), "has no directory"));
        };
        Destination::open(place, request, Arc::clone(&self.options))
    }

    fn failed_there(&mut self, entry: &Entry, why: &str) {
        let message = format!("{}: {}: {why}", self.far.host, escape(&entry.target));
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

/// `mode size blocks mtime uid gid user group ./name`, as stat prints it.
fn read_entry(record: &[u8]) -> Option<Entry> {
    let mut words = record.splitn(9, |&byte| byte == b' ');
    let mut word = || std::str::from_utf8(words.next()?).ok();
    let mode = u32::from_str_radix(word()?, 16).ok()?;
    let length = word()?.parse().ok().filter(|&length| length <= MAX_LENGTH)?;
    let allocated = word()?.parse::<u64>().ok()?.saturating_mul(512).min(length);
    let (seconds, nanoseconds) = shell::read_stamp(word()?)?;
    let (uid, gid) = (word()?.parse().ok()?, word()?.parse().ok()?);
    let (user, group) = (word()?.to_owned(), word()?.to_owned());
    let name = words.next()?;
    let kind = match mode & libc::S_IFMT {
        libc::S_IFREG => Type::File,
        libc::S_IFDIR => Type::Directory,
        libc::S_IFLNK => Type::Symlink,
        libc::S_IFBLK => Type::Device,
        _ => Type::Other,
    };
    let metadata = if kind == Type::Device {
        Metadata::default()
    } else {
        Metadata {
            mode: Some(mode & 0o7777),
            mtime: Some((seconds, nanoseconds.unwrap_or(0))),
            owner: Some(Owner { uid, gid, user, group }),
        }
    };
    Some(Entry {
        name: if name == b"." { Vec::new() } else { name.strip_prefix(b"./").unwrap_or(name).to_vec() },
        target: Vec::new(),
        kind,
        length,
        allocated,
        metadata,
        is_exact: nanoseconds.is_some(),
    })
}

impl How {
    fn word(self) -> &'static [u8] {
        match self {
            How::Whole => b"whole",
            How::Gzip => b"gzip",
            How::Zstd => b"zstd",
            How::Tar(_) => b"tar",
        }
    }
}

/// The shell at the other end.
struct Far {
    input: Plain<ChildStdout>,
    output: Output,
    host: String,
    /// How files with holes are sent.
    sparse: How,
}

impl Far {
    /// Has the shell read its script.
    fn begin(input: Input, mut output: Output, host: &str) -> Result<Far> {
        output.plain(&ladder::script(&[], include_str!("sender.sh"))?)?;
        let mut far = Far { input: input.into_plain(), output, host: host.into(), sparse: How::Whole };
        far.sparse = match far.line()?.as_slice() {
            b"sends tar" => How::Tar(SMALL_FACTOR),
            b"sends zstd" => How::Zstd,
            b"sends gzip" => How::Gzip,
            b"sends no" => How::Whole,
            other => return Err(shell::bad(other, host)),
        };
        Ok(far)
    }

    /// Sends a command; how many bytes that were.
    fn command(&mut self, words: &[&[u8]]) -> Result<usize> {
        let line = shell::command_line(words);
        self.output.plain(&line)?;
        Ok(line.len())
    }

    fn line(&mut self) -> Result<Vec<u8>> {
        self.output.flush()?;
        shell::check(self.input.line()?, &self.host)
    }

    fn answer(&mut self, good: &[u8]) -> Result<Answer> {
        let line = self.line()?;
        shell::read_answer(&line, good, &self.host)
    }

    /// What a source is made of; the exit status of what looked.
    fn list(&mut self, mut take: impl FnMut(&[u8]) -> Option<()>) -> Result<Vec<u8>> {
        let mut record = Record::default();
        loop {
            let line = self.line()?;
            if record.is_empty()
                && let Some(status) = line.strip_prefix(b"listed ")
            {
                return Ok(status.to_vec());
            }
            if let Some(entry) = record.add(&line) {
                take(&entry).ok_or_else(|| shell::bad(&entry, &self.host))?;
            }
        }
    }

    /// What a symlink says.
    fn link(&mut self) -> Result<std::result::Result<Vec<u8>, String>> {
        let line = self.line()?;
        let Some(length) = line.strip_prefix(b"link ") else {
            return Ok(shell::read_answer(&line, b"", &self.host)?.map(|()| Vec::new()));
        };
        let length = std::str::from_utf8(length).ok().and_then(|text| text.parse().ok());
        let length = length.filter(|length| (1..=MAX_PATH).contains(length));
        let mut link = vec![0; length.ok_or_else(|| shell::bad(&line, &self.host))? + 1];
        let read = self.input.read_exact(&mut link);
        read.map_err(|_| Error::Closed { peer: self.host.clone(), detail: String::new() })?;
        match link.pop() {
            Some(b'\n') => Ok(Ok(link)),
            _ => Err(shell::bad(&link, &self.host)),
        }
    }

    /// The bytes of a file.
    fn content(&mut self, entry: &Entry, how: How, sink: &mut FileSink) -> Result<()> {
        let Far { input, host, .. } = self;
        let length = entry.length;
        let unpacked = |source| Error::Protocol {
            peer: host.clone(),
            what: format!("{}: {source}", escape(&entry.target)),
        };
        match how {
            How::Whole => pour(&mut input.take(length), length, sink).map_err(unpacked),
            How::Gzip => pour(&mut GzDecoder::new(input), length, sink).map_err(unpacked),
            How::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(input).and_then(|mut decoder| {
                    decoder.window_log_max(MAX_WINDOW)?;
                    Ok(decoder.single_frame())
                });
                pour(&mut decoder.map_err(unpacked)?, length, sink).map_err(unpacked)
            }
            How::Tar(factor) => {
                if !tarball::receive(input, host, length, factor, sink)? {
                    sink.destination = Err(Error::refused(entry.path(), "tar could not read it"));
                }
                Ok(())
            }
        }
    }

    fn end(&mut self) -> Result<()> {
        self.command(&[b"end"])?;
        match self.line()?.as_slice() {
            b"end" => Ok(()),
            other => Err(shell::bad(other, &self.host)),
        }
    }
}

/// All of what is read, which must be so many bytes.
fn pour(from: &mut impl Read, length: u64, sink: &mut FileSink) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        at += count as u64;
        if count == 0 && at == length {
            return Ok(());
        }
        if count == 0 || at > length {
            return Err(io::Error::other(format!("{at} bytes came of a file of {length}")));
        }
        sink.put(&buffer[..count]);
    }
}

/// Writes what comes, but for zeros. The stream goes on after a failure here:
/// it is kept for later.
struct FileSink<'a> {
    destination: Result<Destination>,
    at: u64,
    /// Bytes that were no zeros.
    data: u64,
    reporter: &'a dyn Reporter,
}

impl Sink for FileSink<'_> {
    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.put(bytes);
        Ok(())
    }

    fn hole(&mut self, len: u64) -> Result<()> {
        self.zeros(len);
        Ok(())
    }
}

impl FileSink<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (is_data, len) = first_run(rest, self.at);
            let (run, behind) = rest.split_at(len);
            if is_data {
                let at = self.at;
                self.with(|destination| destination.write(at, run));
                self.at += len as u64;
                self.data += len as u64;
                self.reporter.event(Event::Done(Phase::Sending, len as u64));
            } else {
                self.zeros(len as u64);
            }
            rest = behind;
        }
    }

    fn zeros(&mut self, len: u64) {
        let range = self.at..self.at + len;
        self.with(|destination| if destination.is_blank() { Ok(()) } else { destination.zero(range) });
        self.at += len;
    }

    fn with(&mut self, write: impl FnOnce(&mut Destination) -> Result<()>) {
        let Ok(destination) = &mut self.destination else { return };
        if let Err(error) = write(destination) {
            destination.discard();
            self.destination = Err(error);
        }
    }

    /// The file takes its place, if it arrived whole. Returns bytes written and punched.
    fn finish(self, is_whole: bool) -> Result<(u64, u64)> {
        if is_whole {
            return self.destination?.finish(&Hash::default(), 0);
        }
        self.discard();
        Ok((0, 0))
    }

    /// What came of a part of it is of no use: nobody there can go on from it.
    fn discard(self) {
        if let Ok(destination) = self.destination {
            destination.discard();
        }
    }
}

/// How many bytes from here, which is at `at` in the file, are data, or zeros: in
/// whole pages of the file, but for the first and the last.
fn first_run(bytes: &[u8], at: u64) -> (bool, usize) {
    let to_page = (PAGE - at % PAGE) as usize;
    let pages = std::iter::once(&bytes[..to_page.min(bytes.len())])
        .chain(bytes.get(to_page..).unwrap_or_default().chunks(PAGE as usize));
    let mut pages = pages.map(|page| (!is_zero(page), page.len()));
    let Some((is_data, mut len)) = pages.next() else { return (false, 0) };
    len += pages.take_while(|&(other, _)| other == is_data).map(|(_, len)| len).sum::<usize>();
    (is_data, len)
}
