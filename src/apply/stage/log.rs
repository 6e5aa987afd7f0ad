//! The log beside a stage: which ranges of it are new, and, once it is sealed,
//! everything that finishing the file needs.
//!
//! It is a header (magic, then what identifies the old file), records of 24
//! bytes (start, end, kind, check) and, once sealed, a record whose body is the
//! [`Seal`], followed by the BLAKE3 of everything before it. All numbers are
//! little-endian. A torn record ends the log; everything before it counts. What
//! another version of this program wrote is an error, [`UnknownFormat`]: it may
//! be all that a half-written file can be finished from.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::apply::attributes::Attributes;
use crate::apply::stage::overlay::{RangeKind, Runs};
use crate::hashmap::Hash;
use crate::scan::{self, At};

const MAGIC: &[u8; 16] = b"holesync log 3\r\n";
/// What the logs of all versions begin with; a number and a line end follow.
const MAGIC_START: &[u8] = b"holesync log ";
const VERSION: &str = "3";
pub const HEADER: usize = 32;
pub const RECORD: usize = 24;
const KIND_DATA: u32 = 1;
const KIND_ZERO: u32 = 2;
const KIND_FREE: u32 = 3;
pub const KIND_SEAL: u32 = 4;
/// Bytes of a seal, whose attributes may be all that an entry may carry: see
/// [`MAX_EXTENDED`](crate::source::MAX_EXTENDED).
pub const MAX_SEAL: u64 = 256 << 10;

/// Separate ranges that are kept in memory when a log is read back. A log with more of
/// them is read for a stretch of the file at a time, and not sealed.
pub const MAX_RUNS: usize = 1 << 20;

/// Another version of this program wrote a log, or its seal.
#[derive(Debug, thiserror::Error)]
#[error("another version of holesync wrote it")]
pub struct UnknownFormat;

impl UnknownFormat {
    /// Whether this is what an error of reading a log says.
    pub fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<UnknownFormat>())
    }
}

/// The header of a log, or zeros where there is none.
///
/// # Errors
///
/// [`UnknownFormat`], and what reading reports.
pub fn read_header(log: &File) -> io::Result<[u8; HEADER]> {
    let mut header = [0; HEADER];
    scan::read_or_zeros(log, &mut header, 0)?;
    if is_of_another_version(&header[..MAGIC.len()]) {
        return Err(io::Error::other(UnknownFormat));
    }
    Ok(header)
}

/// Whether the first bytes of a log are those of another version. Damaged ones are not.
fn is_of_another_version(magic: &[u8]) -> bool {
    let Some(rest) = magic.strip_prefix(MAGIC_START) else { return false };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    digits > 0 && &rest[..digits] != VERSION.as_bytes() && rest.get(digits).is_none_or(|&end| end == b'\r')
}

/// The seal of a log that belongs to a file, if it is whole.
pub fn read_seal(log: &File, identity: Identity) -> io::Result<Option<Seal>> {
    let Some(mut reader) = LogReader::open(log, identity)? else { return Ok(None) };
    while reader.next_record()?.is_some() {}
    reader.seal()
}

/// How a log ends that has no seal of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogEnd {
    /// After a record, or within the last one.
    Open,
    /// In something that is neither a record nor the start of one.
    Damaged,
    /// In the seal of another file.
    OfAnotherFile,
}

/// How a log ends that has no seal of the file in whose place it was looked for.
pub fn end_of(log: &File) -> io::Result<LogEnd> {
    let header = read_header(log)?;
    let len = log.metadata()?.len();
    if len < HEADER as u64 {
        return Ok(LogEnd::Open);
    }
    let Some(identity) = Identity::in_header(&header) else { return Ok(LogEnd::Damaged) };
    let Some(mut reader) = LogReader::open(log, identity)? else { return Ok(LogEnd::Damaged) };
    while reader.next_record()?.is_some() {}
    Ok(match reader.seal()? {
        Some(_) => LogEnd::OfAnotherFile,
        None if len < reader.at + RECORD as u64 => LogEnd::Open,
        None => LogEnd::Damaged,
    })
}

/// Has `each` told the ranges of a log, for one stretch of the file after the other, which
/// together are `stretch`: as few of them as hold no more than `most` ranges each.
pub fn each_stretch(
    log: &File,
    identity: Identity,
    stretch: Range<u64>,
    most: usize,
    each: &mut dyn FnMut(Range<u64>, &Runs) -> io::Result<()>,
) -> io::Result<()> {
    let damaged = || io::Error::other("the log is damaged");
    let mut reader = LogReader::open(log, identity)?.ok_or_else(damaged)?;
    if let Some(runs) = reader.load_within(&stretch, most)? {
        return each(stretch, &runs);
    }
    let middle = stretch.start + (stretch.end - stretch.start) / 2;
    if middle == stretch.start {
        return Err(damaged());
    }
    each_stretch(log, identity, stretch.start..middle, most, each)?;
    each_stretch(log, identity, middle..stretch.end, most, each)
}

/// The ranges of the last records of a log that has no seal, as many as hold so many bytes
/// of data, the last one first; and where in the log the first of them begins.
pub fn last_records(log: &File, bytes: u64) -> io::Result<(u64, Vec<Range<u64>>)> {
    let header = HEADER as u64;
    let records = log.metadata()?.len().saturating_sub(header) / RECORD as u64;
    let mut end = header + records * RECORD as u64;
    let (mut left, mut ranges) = (bytes, Vec::new());
    while left > 0 && end > header {
        let mut record = [0; RECORD];
        scan::read_or_zeros(log, &mut record, end - RECORD as u64)?;
        end -= RECORD as u64;
        if let Some((range, KIND_DATA)) = decode(&record) {
            left = left.saturating_sub(range.end - range.start);
            ranges.push(range);
        }
    }
    Ok((end, ranges))
}

/// Everything that finishing needs besides the ranges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The new length of the file.
    pub length: u64,
    /// The block size of the root hash.
    pub block_size: u32,
    /// What the finished file must hash to.
    pub root: Hash,
    /// The attributes it ends with.
    pub attributes: Attributes,
    /// Zeros stay allocated.
    pub preallocate: bool,
}

/// The old file that a log belongs to: its inode and when that was made, which
/// outlive a reboot (device numbers need not) and which a file that takes its
/// place does not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    inode: u64,
    /// Nanoseconds since 1970; 0 where the file system does not tell (statx(2)).
    born: u64,
}

impl Identity {
    /// Of an open file.
    pub fn of(file: &File) -> io::Result<Identity> {
        let metadata = file.metadata()?;
        let since_1970 = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        Ok(Identity { inode: metadata.ino(), born: since_1970.map_or(0, |age| age.as_nanos() as u64) })
    }

    /// The file whose log has this header, if it is one.
    fn in_header(header: &[u8; HEADER]) -> Option<Identity> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        header.starts_with(MAGIC).then(|| Identity { inode: word(16), born: word(24) })
    }

    /// The header of a log of this file.
    pub fn header(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..16].copy_from_slice(MAGIC);
        header[16..24].copy_from_slice(&self.inode.to_le_bytes());
        header[24..].copy_from_slice(&self.born.to_le_bytes());
        header
    }
}

/// The number of a kind of range.
pub fn kind_of(new: RangeKind) -> u32 {
    match new {
        RangeKind::Data => KIND_DATA,
        RangeKind::Zero => KIND_ZERO,
        RangeKind::Free => KIND_FREE,
    }
}

/// A record of a range, or the head of a seal whose body is as long as its end says.
pub fn encode(range: Range<u64>, kind: u32) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..8].copy_from_slice(&range.start.to_le_bytes());
    record[8..16].copy_from_slice(&range.end.to_le_bytes());
    record[16..20].copy_from_slice(&kind.to_le_bytes());
    let check = blake3::hash(&record[..20]);
    record[20..].copy_from_slice(&check.as_bytes()[..4]);
    record
}

fn decode(record: &[u8; RECORD]) -> Option<(Range<u64>, u32)> {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| record[at + i]));
    let range = word(0)..word(8);
    let kind = word(16) as u32;
    (encode(range.clone(), kind) == *record && range.start < range.end).then_some((range, kind))
}

/// BLAKE3 of the first `len` bytes of a file.
pub fn digest_of(file: &File, len: u64) -> io::Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut reader = At::new(file, 0).take(len);
    if io::copy(&mut reader, &mut hasher)? < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Reads a log as far as it is whole.
pub struct LogReader<'a> {
    log: &'a File,
    input: BufReader<At<&'a File>>,
    /// The end of the last good record.
    pub at: u64,
    /// The length of the seal, if the records end with one.
    seal: Option<u64>,
}

impl<'a> LogReader<'a> {
    /// `None`: this is no log of that file.
    ///
    /// # Errors
    ///
    /// [`UnknownFormat`], and what reading reports; so below.
    pub fn open(log: &'a File, identity: Identity) -> io::Result<Option<LogReader<'a>>> {
        let header = read_header(log)?;
        let at = HEADER as u64;
        let input = BufReader::with_capacity(24 << 10, At::new(log, at));
        Ok((header == identity.header()).then_some(LogReader { log, input, at, seal: None }))
    }

    /// The next range; `None` at the end, wherever that is.
    pub fn next_record(&mut self) -> io::Result<Option<(Range<u64>, RangeKind)>> {
        let mut record = [0; RECORD];
        match self.input.read_exact(&mut record) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let Some((range, kind)) = decode(&record) else { return Ok(None) };
        let new = match kind {
            KIND_DATA => RangeKind::Data,
            KIND_ZERO => RangeKind::Zero,
            KIND_FREE => RangeKind::Free,
            KIND_SEAL => {
                self.seal = (range.end <= MAX_SEAL).then_some(range.end);
                return Ok(None);
            }
            // Its check is right, so it was written like this.
            _ => return Err(io::Error::other(UnknownFormat)),
        };
        self.at += RECORD as u64;
        Ok(Some((range, new)))
    }

    /// All records as ranges; `None`: too many to keep.
    pub fn load(&mut self) -> io::Result<Option<Runs>> {
        self.load_within(&(0..u64::MAX), MAX_RUNS)
    }

    /// The parts of all records that lie in a stretch of the file; `None`: more than `most`.
    pub fn load_within(&mut self, stretch: &Range<u64>, most: usize) -> io::Result<Option<Runs>> {
        let mut runs = Runs::default();
        while let Some((range, new)) = self.next_record()? {
            let range = range.start.max(stretch.start)..range.end.min(stretch.end);
            if range.start >= range.end {
                continue;
            }
            runs.insert(range, new);
            if runs.len() > most {
                return Ok(None);
            }
        }
        Ok(Some(runs))
    }

    /// After the last record: the seal, if it and everything before it is whole.
    pub fn seal(&mut self) -> io::Result<Option<Seal>> {
        let Some(len) = self.seal else { return Ok(None) };
        let mut body = vec![0; len as usize];
        let mut digest = Hash::default();
        let start = self.at + RECORD as u64;
        scan::read_or_zeros(self.log, &mut body, start)?;
        scan::read_or_zeros(self.log, &mut digest, start + len)?;
        // What was read behind the end of the log are zeros, as a digest may end in.
        let end = start + len + digest.len() as u64;
        if self.log.metadata()?.len() < end || digest_of(self.log, start + len)? != digest {
            return Ok(None);
        }
        let seal = postcard::from_bytes(&body).map_err(|_| io::Error::other(UnknownFormat))?;
        Ok(Some(seal))
    }
}
