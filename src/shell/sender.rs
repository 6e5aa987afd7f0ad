//! The conversation with `sender.sh` at the other end: what it has, and the bytes
//! of files, however they travel. `docs/remote.md` has the commands.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ChildStdout;

use flate2::bufread::GzDecoder;

use crate::apply::Destination;
use crate::error::{Error, Result, escape};
use crate::hashmap::{Hash, PAGE};
use crate::protocol::{MAX_LENGTH, MAX_PATH, Plain};
use crate::remote::bootstrap::{self, Input, Output};
use crate::report::{Event, Phase, Reporter};
use crate::scan::is_zero;
use crate::shell::sparse_tar;
use crate::shell::{self, Answer, Listing};
use crate::source::Metadata;
use crate::source::Owner;
use crate::stream::Sink;

/// Tar sends in blocks of so many times 512 bytes: small files, and those of at
/// least so many bytes.
pub(crate) const SMALL_FACTOR: u64 = 20;
pub(crate) const LARGE_FACTOR: u64 = 2048;
/// Memory for what zstd looks back at, as a power of two. Level 1 wants less.
const MAX_WINDOW: u32 = 23;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    File,
    Directory,
    Symlink,
    Device,
    Other,
}

/// Something that the other end has.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Below its source.
    pub name: Vec<u8>,
    /// There, as the user wrote it.
    pub source: PathBuf,
    /// Below the destination.
    pub target: Vec<u8>,
    pub kind: Type,
    pub length: u64,
    pub allocated: u64,
    pub metadata: Metadata,
    /// The time has its nanoseconds.
    pub is_exact: bool,
}

impl Entry {
    /// Below the destination.
    pub fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.target))
    }
}

/// How the bytes of a file travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Whole,
    Gzip,
    Zstd,
    Tar(u64),
}

/// `mode size blocks mtime uid gid user/group/ ./name`, as stat prints it.
pub(crate) fn read_entry(record: &[u8]) -> Option<Entry> {
    let mut words = record.splitn(7, |&byte| byte == b' ');
    let mut word = || std::str::from_utf8(words.next()?).ok();
    let mode = u32::from_str_radix(word()?, 16).ok()?;
    let length = word()?.parse().ok().filter(|&length| length <= MAX_LENGTH)?;
    let allocated = word()?.parse::<u64>().ok()?.saturating_mul(512).min(length);
    let (seconds, nanoseconds) = shell::read_stamp(word()?)?;
    let (uid, gid) = (word()?.parse().ok()?, word()?.parse().ok()?);
    let (user, group, name) = shell::read_names(words.next()?)?;
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
        name,
        source: PathBuf::new(),
        target: Vec::new(),
        kind,
        length,
        allocated,
        metadata,
        is_exact: nanoseconds.is_some(),
    })
}

impl How {
    pub fn word(self) -> &'static [u8] {
        match self {
            How::Whole => b"whole",
            How::Gzip => b"gzip",
            How::Zstd => b"zstd",
            How::Tar(_) => b"tar",
        }
    }
}

/// A shell at the other end that runs `sender.sh`.
pub(crate) struct SendingShell {
    input: Plain<ChildStdout>,
    output: Output,
    pub host: String,
    /// How files with holes are sent.
    pub sparse: How,
}

impl SendingShell {
    /// Has the shell read its script.
    pub fn begin(input: Input, mut output: Output, host: &str) -> Result<SendingShell> {
        output.plain(&bootstrap::script(&[], &[shell::WORDS, include_str!("sender.sh")])?)?;
        let mut far =
            SendingShell { input: input.into_plain(), output, host: host.into(), sparse: How::Whole };
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
    pub fn command(&mut self, words: &[&[u8]]) -> Result<usize> {
        let line = shell::command_line(words);
        self.output.plain(&line)?;
        Ok(line.len())
    }

    fn line(&mut self) -> Result<Vec<u8>> {
        let line = self.next_line()?;
        shell::check(line, &self.host)
    }

    fn next_line(&mut self) -> Result<Vec<u8>> {
        self.output.flush()?;
        self.input.line()
    }

    pub fn answer(&mut self, good: &[u8]) -> Result<Answer> {
        let line = self.line()?;
        shell::read_answer(&line, good, &self.host)
    }

    /// What a source is made of; the exit status of what looked.
    pub fn list(&mut self, mut take: impl FnMut(&[u8]) -> Option<()>) -> Result<Vec<u8>> {
        let mut record = Listing::default();
        loop {
            let line = self.next_line()?;
            if record.is_empty()
                && let Some(status) = line.strip_prefix(b"listed ")
            {
                return Ok(status.to_vec());
            }
            // In the middle of a name a line can say anything.
            let line = if record.is_empty() { shell::check(line, &self.host)? } else { line };
            if let Some(entry) = record.add(&line, &self.host)? {
                take(&entry).ok_or_else(|| shell::bad(&entry, &self.host))?;
            }
        }
    }

    /// What a symlink says.
    pub fn link(&mut self) -> Result<std::result::Result<Vec<u8>, String>> {
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
    pub fn content(&mut self, entry: &Entry, how: How, sink: &mut ArrivingFile) -> Result<()> {
        let SendingShell { input, host, .. } = self;
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
                if !sparse_tar::receive(input, host, length, factor, sink)? {
                    sink.destination = Err(Error::refused(entry.path(), "tar could not read it"));
                }
                Ok(())
            }
        }
    }

    pub fn end(&mut self) -> Result<()> {
        self.command(&[b"end"])?;
        match self.line()?.as_slice() {
            b"end" => Ok(()),
            other => Err(shell::bad(other, &self.host)),
        }
    }
}

/// All of what is read, which must be so many bytes.
fn pour(from: &mut impl Read, length: u64, sink: &mut ArrivingFile) -> io::Result<()> {
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
pub(crate) struct ArrivingFile<'a> {
    destination: Result<Destination>,
    at: u64,
    /// Bytes that were no zeros.
    pub data: u64,
    reporter: &'a dyn Reporter,
}

impl Sink for ArrivingFile<'_> {
    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.put(bytes);
        Ok(())
    }

    fn hole(&mut self, len: u64) -> Result<()> {
        self.zeros(len);
        Ok(())
    }
}

impl<'a> ArrivingFile<'a> {
    pub fn new(destination: Result<Destination>, reporter: &'a dyn Reporter) -> ArrivingFile<'a> {
        ArrivingFile { destination, at: 0, data: 0, reporter }
    }

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
    pub fn finish(self, is_whole: bool) -> Result<(u64, u64)> {
        if is_whole {
            return self.destination?.finish(&Hash::default(), 0);
        }
        self.discard();
        Ok((0, 0))
    }

    /// What came of a part of it is of no use: nobody there can go on from it.
    pub fn discard(self) {
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
