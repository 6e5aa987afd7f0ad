//! The conversation with `sender.sh` at the other end: listings, and the bytes of files in
//! whichever encoding they travel. `docs/remote.md` has the commands.

use std::io::{self, Read};
use std::path::PathBuf;

use flate2::bufread::GzDecoder;

use crate::apply::{BasisState, Destination, Finished};
use crate::error::{Error, Result, escape};
use crate::hashmap::{Hash, PAGE};
use crate::protocol::{MAX_LENGTH, MAX_PATH, Plain};
use crate::remote::{self, Incoming, Input, Output};
use crate::report::{Event, Item, ItemKind, Phase, Reporter};
use crate::scan::{Content, is_zero};
use crate::shell::refusal::{self, CommandResult, Refusal};
use crate::shell::{self, RecordLines, sparse_tar};
use crate::source::{Metadata, Owner};
use crate::stream::Sink;

/// The blocking factor of tar, in units of 512 bytes: for most files, and for large ones.
const SMALL_FACTOR: u64 = 20;
/// See [`SMALL_FACTOR`].
pub const LARGE_FACTOR: u64 = 2048;
/// The most complaints about one listing that are shown.
const MAX_COMPLAINTS: usize = 1000;
/// The memory for the window of zstd, as a power of two. Level 1 needs less.
const MAX_WINDOW: u32 = 23;

/// What a listed entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    File,
    Directory,
    Symlink,
    Device,
    Other,
}

/// An entry of a listing from the other end.
#[derive(Debug, Clone)]
pub struct ListedEntry {
    /// Its path below its source; empty for the source itself.
    pub name: Vec<u8>,
    /// Its path at the other end, beginning as the user wrote it.
    pub source: PathBuf,
    /// Its path below the destination.
    pub target: Vec<u8>,
    pub kind: FileType,
    pub length: u64,
    pub allocated: u64,
    pub metadata: Metadata,
    /// Whether the time is known to the nanosecond.
    pub is_exact: bool,
}

impl ListedEntry {
    /// It, for the user.
    pub fn item<'a>(&'a self, kind: ItemKind<'a>) -> Item<'a> {
        let Metadata { mode, mtime, .. } = self.metadata;
        let owner = self.metadata.owner.as_ref().map(|owner| (owner.uid, owner.gid));
        Item { mode, mtime, owner, ..Item::new(&self.target, kind) }
    }
}

/// The form in which the bytes of a file travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Whole,
    Gzip,
    Zstd,
    Tar(u64),
}

/// Reads `mode size blocks mtime uid gid user/group/ ./name`, as stat prints it.
pub fn read_entry(record: &[u8]) -> Option<ListedEntry> {
    let mut words = record.splitn(7, |&byte| byte == b' ');
    let mut word = || std::str::from_utf8(words.next()?).ok();
    let mode = u32::from_str_radix(word()?, 16).ok()?;
    let length = word()?.parse().ok().filter(|&length| length <= MAX_LENGTH)?;
    let allocated = word()?.parse::<u64>().ok()?.saturating_mul(512).min(length);
    let (seconds, nanoseconds) = shell::read_time(word()?)?;
    let (uid, gid) = (word()?.parse().ok()?, word()?.parse().ok()?);
    let (user, group, name) = shell::read_names(words.next()?)?;
    let kind = match mode & libc::S_IFMT {
        libc::S_IFREG => FileType::File,
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFBLK => FileType::Device,
        _ => FileType::Other,
    };
    let metadata = if kind == FileType::Device {
        Metadata::default()
    } else {
        Metadata {
            mode: Some(mode & 0o7777),
            mtime: Some((seconds, nanoseconds.unwrap_or(0))),
            owner: Some(Owner { uid, gid, user, group }),
            ..Metadata::default()
        }
    };
    Some(ListedEntry {
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

impl Encoding {
    /// Its name in the command that requests a file.
    pub fn word(self) -> &'static [u8] {
        match self {
            Encoding::Whole => b"whole",
            Encoding::Gzip => b"gzip",
            Encoding::Zstd => b"zstd",
            Encoding::Tar(_) => b"tar",
        }
    }
}

/// A shell at the other end that runs `sender.sh`.
pub struct SendingShell {
    input: Plain<Incoming>,
    output: Output,
    pub host: String,
    /// The encoding for files with holes.
    pub sparse: Encoding,
}

impl SendingShell {
    /// Has the shell read its script. `host` names the shell in errors.
    pub fn begin(input: Input, mut output: Output, host: &str) -> Result<SendingShell> {
        output.plain(&remote::script(&[], &[shell::COMMON_SCRIPT, include_str!("sender.sh")])?)?;
        let mut far =
            SendingShell { input: input.into_plain(), output, host: host.into(), sparse: Encoding::Whole };
        far.sparse = match far.line()?.as_slice() {
            b"sends tar" => Encoding::Tar(SMALL_FACTOR),
            b"sends zstd" => Encoding::Zstd,
            b"sends gzip" => Encoding::Gzip,
            b"sends no" => Encoding::Whole,
            other => return Err(shell::unexpected(other, host)),
        };
        Ok(far)
    }

    /// Sends a command, and returns how many bytes it had.
    pub fn command(&mut self, words: &[&[u8]]) -> Result<usize> {
        let line = shell::command_line(words);
        self.output.plain(&line)?;
        Ok(line.len())
    }

    fn line(&mut self) -> Result<Vec<u8>> {
        let line = self.next_line()?;
        shell::check_line(line, &self.host)
    }

    fn next_line(&mut self) -> Result<Vec<u8>> {
        self.output.flush()?;
        self.input.line()
    }

    pub fn answer(&mut self, good: &[u8]) -> Result<CommandResult> {
        let line = self.line()?;
        refusal::read_result(&line, good, &self.host)
    }

    /// Reads who else uses a file, if that is known, and how it comes that was asked for in this
    /// encoding, or why it does not.
    pub fn sent(&mut self, asked: Encoding) -> Result<(Option<String>, CommandResult<Encoding>)> {
        let mut line = self.line()?;
        let busy = line.strip_prefix(b"busy ").map(escape);
        if busy.is_some() {
            line = self.line()?;
        }
        let sent = match line.strip_prefix(b"sent ") {
            Some(how) if how == asked.word() => Ok(asked),
            Some(how) if how == Encoding::Whole.word() => Ok(Encoding::Whole),
            Some(_) => return Err(shell::unexpected(&line, &self.host)),
            None => refusal::read_result(&line, b"", &self.host)?.map(|()| asked),
        };
        Ok((busy, sent))
    }

    /// Reads a listing. Returns what the commands that made it complained of, and whether they
    /// ended well.
    pub fn list(&mut self, mut take: impl FnMut(&[u8]) -> Option<()>) -> Result<(Vec<Vec<u8>>, bool)> {
        let mut record = RecordLines::default();
        let mut complaints = Vec::new();
        loop {
            let line = self.next_line()?;
            if record.is_empty()
                && let Some(status) = line.strip_prefix(b"listed ")
            {
                return Ok((complaints, status == b"0"));
            }
            if record.is_empty()
                && let Some(complaint) = line.strip_prefix(b"said ")
            {
                if complaints.len() < MAX_COMPLAINTS {
                    complaints.push(complaint.to_vec());
                }
                continue;
            }
            // A line in the middle of a name may be anything.
            let line = if record.is_empty() { shell::check_line(line, &self.host)? } else { line };
            if let Some(entry) = record.add(&line, &self.host)? {
                take(&entry).ok_or_else(|| shell::unexpected(&entry, &self.host))?;
            }
        }
    }

    /// Reads the target of a symlink.
    pub fn link(&mut self) -> Result<CommandResult<Vec<u8>>> {
        let line = self.line()?;
        let Some(length) = line.strip_prefix(b"link ") else {
            return Ok(refusal::read_result(&line, b"", &self.host)?.map(|()| Vec::new()));
        };
        let length = std::str::from_utf8(length).ok().and_then(|text| text.parse().ok());
        let length = length.filter(|length| (1..=MAX_PATH).contains(length));
        let mut link = vec![0; length.ok_or_else(|| shell::unexpected(&line, &self.host))? + 1];
        let read = self.input.read_exact(&mut link);
        read.map_err(|_| Error::closed(&self.host))?;
        match link.pop() {
            Some(b'\n') => Ok(Ok(link)),
            _ => Err(shell::unexpected(&link, &self.host)),
        }
    }

    /// Reads the bytes of a file, and whether these are all that it has.
    pub fn content(
        &mut self,
        entry: &ListedEntry,
        encoding: Encoding,
        sink: &mut ArrivingFile,
    ) -> Result<CommandResult> {
        let SendingShell { input, host, .. } = self;
        let length = entry.length;
        let unpacked = |source: io::Error| match source.kind() {
            io::ErrorKind::UnexpectedEof => Error::closed(host),
            _ => Error::Protocol { peer: host.clone(), what: format!("{}: {source}", escape(&entry.target)) },
        };
        let is_whole = match encoding {
            Encoding::Whole => {
                if !pour(&mut input.take(length), length, sink).map_err(unpacked)? {
                    return Err(unpacked(io::ErrorKind::UnexpectedEof.into()));
                }
                true
            }
            Encoding::Gzip => pour(&mut GzDecoder::new(input), length, sink).map_err(unpacked)?,
            Encoding::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(input).and_then(|mut decoder| {
                    decoder.window_log_max(MAX_WINDOW)?;
                    Ok(decoder.single_frame())
                });
                pour(&mut decoder.map_err(unpacked)?, length, sink).map_err(unpacked)?
            }
            Encoding::Tar(factor) => sparse_tar::receive(input, host, length, factor, sink)?,
        };
        let unread = Refusal::Because("could not be read to its end".into());
        Ok(if is_whole { Ok(()) } else { Err(unread) })
    }

    pub fn end(&mut self) -> Result<()> {
        self.command(&[b"end"])?;
        match self.line()?.as_slice() {
            b"end" => Ok(()),
            other => Err(shell::unexpected(other, &self.host)),
        }
    }
}

/// Puts up to `length` bytes of what can be read into the sink. Returns whether it was as many.
fn pour(from: &mut impl Read, length: u64, sink: &mut ArrivingFile) -> io::Result<bool> {
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if count == 0 {
            return Ok(at == length);
        }
        if at + count as u64 <= length {
            sink.put(&buffer[..count]);
        }
        at += count as u64;
    }
}

/// A sink that writes the data that comes, and leaves zeros out. The stream goes on after
/// a failure here: the failure is kept until the file has come.
pub struct ArrivingFile<'a> {
    destination: Result<Destination>,
    at: u64,
    /// How far it is written; zeros follow up to `at`. The last of a file may stand for what
    /// could not be read, and must not take the place of what is there.
    written: u64,
    /// Bytes of data, without zeros.
    pub data: u64,
    reporter: &'a dyn Reporter,
    /// The source, if it goes onto a device and is not looked at yet.
    unchecked: Option<PathBuf>,
}

impl Sink for ArrivingFile<'_> {
    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.put(bytes);
        Ok(())
    }

    fn hole(&mut self, len: u64) -> Result<()> {
        self.at += len;
        Ok(())
    }
}

impl<'a> ArrivingFile<'a> {
    /// `unchecked`: the source, if it is to be fit for a device.
    pub fn new(
        destination: Destination,
        unchecked: Option<PathBuf>,
        reporter: &'a dyn Reporter,
    ) -> ArrivingFile<'a> {
        ArrivingFile { destination: Ok(destination), at: 0, written: 0, data: 0, reporter, unchecked }
    }

    fn put(&mut self, bytes: &[u8]) {
        let unchecked = self.unchecked.take().filter(|_| self.at == 0);
        if let Some(unfit) = unchecked.and_then(|source| Some(Content::of(bytes)?.refuse(&source, false))) {
            self.with(|_| Err(unfit));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let (is_data, len) = first_stretch(rest, self.at);
            let (run, behind) = rest.split_at(len);
            let at = self.at;
            self.at += len as u64;
            if is_data {
                self.write_zeros(at);
                self.with(|destination| destination.write(at, run));
                self.written = self.at;
                self.data += len as u64;
                self.reporter.event(Event::Done(Phase::Sending, len as u64));
            }
            rest = behind;
        }
    }

    /// Writes the zeros that came last, which end at `end`.
    fn write_zeros(&mut self, end: u64) {
        let range = std::mem::replace(&mut self.written, end)..end;
        self.with(|destination| match destination.basis_state() {
            BasisState::Mapped | BasisState::Unknown if !range.is_empty() => destination.zero(range),
            _ => Ok(()),
        });
    }

    fn with(&mut self, write: impl FnOnce(&mut Destination) -> Result<()>) {
        let Ok(destination) = &mut self.destination else { return };
        if let Err(error) = write(destination) {
            self.destination = Err(destination.discard_after(error));
        }
    }

    /// Puts the file in its place, if it arrived whole.
    pub fn finish(mut self, is_whole: bool) -> Result<Option<Finished>> {
        if is_whole {
            self.write_zeros(self.at);
            return self.destination?.finish(&Hash::default(), 0).map(Some);
        }
        self.discard();
        Ok(None)
    }

    /// Discards what came of a file: a shell cannot go on from a part.
    pub fn discard(self) {
        if let Ok(destination) = self.destination {
            destination.discard();
        }
    }
}

/// How many of these bytes, which begin at `at` in the file, are data, or zeros. They are
/// looked at in pages of the file, of which the first and the last may be short.
fn first_stretch(bytes: &[u8], at: u64) -> (bool, usize) {
    let to_page = (PAGE - at % PAGE) as usize;
    let pages = std::iter::once(&bytes[..to_page.min(bytes.len())])
        .chain(bytes.get(to_page..).unwrap_or_default().chunks(PAGE as usize));
    let mut pages = pages.map(|page| (!is_zero(page), page.len()));
    let Some((is_data, mut len)) = pages.next() else { return (false, 0) };
    len += pages.take_while(|&(other, _)| other == is_data).map(|(_, len)| len).sum::<usize>();
    (is_data, len)
}
