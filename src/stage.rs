//! The stage of a destination whose file system cannot clone: new data gathers
//! in a sparse file beside the old one, at its own offsets, and a log says
//! which ranges are new. Sealed, the two can be written into the old file, as
//! often as it takes, without the source.
//!
//! The log is a header (magic, then device and inode of the old file), records
//! of 24 bytes (start, end, kind, check) and, once sealed, a record whose body
//! is the [`Seal`], followed by the BLAKE3 of everything before it. All numbers
//! are little-endian. A torn record ends the log; everything before it counts.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use serde::{Deserialize, Serialize};

use crate::hashmap::{Hash, PAGE};
use crate::scan::{self, Extent, FileImage, Image};
use crate::sys;

const MAGIC: &[u8; 16] = b"holesync log 1\r\n";
const HEADER: usize = 32;
const RECORD: usize = 24;
const KIND_DATA: u32 = 1;
const KIND_ZERO: u32 = 2;
const KIND_SEAL: u32 = 3;
const MAX_SEAL: u64 = 4096;

/// Separate ranges that are kept in memory when a log is read back; a log with
/// more of them is replayed as a stream or given up, never loaded.
pub const MAX_RUNS: usize = 1 << 20;

/// What a logged range holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum New {
    /// The bytes that the stage has there.
    Data,
    /// Zeros.
    Zero,
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

/// What a finished file is to carry besides its content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits to set; `None` leaves those that are there.
    pub mode: Option<u32>,
    /// Permission bits of a file that was not there before.
    pub new_mode: u32,
    /// Modification time to set, seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// User number to set.
    pub uid: Option<u32>,
    /// Group number to set.
    pub gid: Option<u32>,
}

/// The old file that a log belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// Of an open file.
    pub fn of(file: &File) -> io::Result<Identity> {
        let metadata = file.metadata()?;
        Ok(Identity { device: metadata.dev(), inode: metadata.ino() })
    }

    fn header(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..16].copy_from_slice(MAGIC);
        header[16..24].copy_from_slice(&self.device.to_le_bytes());
        header[24..].copy_from_slice(&self.inode.to_le_bytes());
        header
    }
}

/// A stage that is being filled.
#[derive(Debug)]
pub struct Stage {
    data: File,
    log: BufWriter<File>,
    /// The record that still grows.
    open: Option<(Range<u64>, New)>,
    bytes: u64,
    unflushed: u64,
}

/// Data bytes after which the log is flushed, so that a killed run loses little.
const FLUSH_EVERY: u64 = 16 << 20;

impl Stage {
    /// Begins with two empty files.
    pub fn begin(data: File, log: File, identity: Identity) -> io::Result<Stage> {
        data.set_len(0)?;
        log.set_len(0)?;
        log.write_all_at(&identity.header(), 0)?;
        Stage::at_end(data, log, 0)
    }

    /// Goes on with what an interrupted run left, if it fits this file and can
    /// be used: the stage and what it holds already.
    pub fn resume(data: File, log: File, identity: Identity) -> io::Result<Option<(Stage, Runs)>> {
        let Some(mut reader) = LogReader::open(&log, identity)? else { return Ok(None) };
        let Some(runs) = reader.load()? else { return Ok(None) };
        log.set_len(reader.at)?;
        // Bytes that were staged and never logged must not surface later.
        for gap in runs.gaps_in_data(data.metadata()?.len()) {
            if !sys::punch_hole(&data, gap)? {
                return Ok(None);
            }
        }
        let bytes = runs.data_bytes();
        Ok(Some((Stage::at_end(data, log, bytes)?, runs)))
    }

    fn at_end(data: File, mut log: File, bytes: u64) -> io::Result<Stage> {
        log.seek(SeekFrom::End(0))?;
        Ok(Stage { data, log: BufWriter::with_capacity(32 << 10, log), open: None, bytes, unflushed: 0 })
    }

    /// Bytes of new data, those of earlier runs included.
    pub fn data_bytes(&self) -> u64 {
        self.bytes
    }

    /// The file that holds the data.
    pub fn data(&self) -> &File {
        &self.data
    }

    /// Stages new data.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.data.write_all_at(bytes, at)?;
        self.bytes += bytes.len() as u64;
        self.unflushed += bytes.len() as u64;
        self.record(at..at + bytes.len() as u64, New::Data)?;
        if self.unflushed >= FLUSH_EVERY {
            self.unflushed = 0;
            self.flush()?;
        }
        Ok(())
    }

    /// Notes that a range becomes zeros.
    pub fn zero(&mut self, range: Range<u64>) -> io::Result<()> {
        self.record(range, New::Zero)
    }

    /// Has every record reach the log file, so that the next run finds it.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Some((range, new)) = self.open.take() {
            self.put(range, kind_of(new))?;
        }
        self.log.flush()
    }

    fn record(&mut self, range: Range<u64>, new: New) -> io::Result<()> {
        match &mut self.open {
            Some((open, same)) if *same == new && open.end == range.start => open.end = range.end,
            _ => {
                if let Some((range, new)) = self.open.replace((range, new)) {
                    self.put(range, kind_of(new))?;
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, range: Range<u64>, kind: u32) -> io::Result<()> {
        self.log.write_all(&encode(range, kind))
    }

    /// Makes old file, stage and log a unit that can be finished whatever
    /// happens: everything is on storage when this returns (unless `sync` is
    /// false: then only a crash of the machine can still undo it).
    pub fn seal(mut self, seal: &Seal, sync: bool) -> io::Result<Sealed> {
        self.flush()?;
        let mut log = self.log.into_inner().map_err(|error| error.into_error())?;
        if sync {
            self.data.sync_data()?;
        }
        let body = postcard::to_stdvec(seal).map_err(io::Error::other)?;
        log.write_all(&encode(0..body.len() as u64, KIND_SEAL))?;
        log.write_all(&body)?;
        let digest = digest_of(&log, log.metadata()?.len())?;
        log.write_all(&digest)?;
        if sync {
            log.sync_data()?;
        }
        Ok(Sealed { data: self.data, log, seal: seal.clone() })
    }

    /// Allocates in the old file what replaying will need, so that a full disk
    /// shows before the point of no return. `false`: the file system cannot.
    pub fn reserve(&mut self, old: &File, length: u64) -> io::Result<bool> {
        self.flush()?;
        let log = self.log.get_ref();
        let Some(mut reader) = LogReader::open(log, Identity::of(old)?)? else { return Ok(false) };
        while let Some((range, new)) = reader.next_record()? {
            let range = range.start.min(length)..range.end.min(length);
            if new == New::Data && !sys::allocate(old, range)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Copies what is not new from the old file, so that the stage is all of
    /// the new one. `None`, with the stage as it was: there are too many ranges.
    pub fn complete(&mut self, old: &File, length: u64, identity: Identity) -> io::Result<Option<u64>> {
        self.flush()?;
        let runs = match LogReader::open(self.log.get_ref(), identity)? {
            Some(mut reader) => reader.load()?,
            None => None,
        };
        let Some(runs) = runs else { return Ok(None) };
        let mut copied = 0;
        for extent in runs.kept_extents(scan::data_extents(old, 0..length)) {
            let extent = extent?;
            copied += extent.end - extent.start;
            copy_between(old, &self.data, extent)?;
        }
        for (range, new) in runs.iter() {
            if new == New::Zero && range.start < self.data.metadata()?.len() {
                make_zero(&self.data, range, false)?;
            }
        }
        Ok(Some(copied))
    }
}

/// A stage whose log is sealed.
#[derive(Debug)]
pub struct Sealed {
    data: File,
    log: File,
    /// What the log says about the finished file.
    pub seal: Seal,
}

impl Sealed {
    /// The sealed log that belongs to a file, if it is whole.
    pub fn open(data: File, log: File, identity: Identity) -> io::Result<Option<Sealed>> {
        let Some(mut reader) = LogReader::open(&log, identity)? else { return Ok(None) };
        while reader.next_record()?.is_some() {}
        let Some(seal) = reader.seal()? else { return Ok(None) };
        Ok(Some(Sealed { data, log, seal }))
    }

    /// Writes the stage into the old file. Doing it twice does no harm. Returns
    /// bytes written and bytes made zero.
    pub fn replay(&self, old: &File) -> io::Result<(u64, u64)> {
        let (mut written, mut zeroed) = (0, 0);
        let identity = Identity::of(old)?;
        let mut reader =
            LogReader::open(&self.log, identity)?.ok_or_else(|| io::Error::other("the log is damaged"))?;
        while let Some((range, new)) = reader.next_record()? {
            let range = range.start.min(self.seal.length)..range.end.min(self.seal.length);
            match new {
                New::Data => {
                    written += range.end - range.start;
                    copy_between(&self.data, old, range)?;
                }
                New::Zero => {
                    zeroed += range.end - range.start;
                    make_zero(old, range, self.seal.preallocate)?;
                }
            }
        }
        old.set_len(self.seal.length)?;
        Ok((written, zeroed))
    }
}

/// Makes a range of a regular file zero: a hole if the file system can, else
/// written zeros. With `keep_allocated` never a hole.
pub fn make_zero(file: &File, range: Range<u64>, keep_allocated: bool) -> io::Result<()> {
    let zero = if keep_allocated { sys::zero_range } else { sys::punch_hole };
    if range.is_empty() || zero(file, range.clone())? {
        return Ok(());
    }
    write_zeros(file, range)
}

/// Writes zeros, the last resort.
pub fn write_zeros(file: &File, range: Range<u64>) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..len as usize], at)?;
        at += len;
    }
    Ok(())
}

/// Copies a range from one file to the same place in another.
pub fn copy_between(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(1 << 30) as usize;
        match sys::copy_range(from, to, at, len)? {
            Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(copied) => at += copied as u64,
            None => return copy_by_hand(from, to, at..range.end),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(buffer.len() as u64) as usize;
        from.read_exact_at(&mut buffer[..len], at)?;
        to.write_all_at(&buffer[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

fn kind_of(new: New) -> u32 {
    match new {
        New::Data => KIND_DATA,
        New::Zero => KIND_ZERO,
    }
}

fn encode(range: Range<u64>, kind: u32) -> [u8; RECORD] {
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
fn digest_of(file: &File, len: u64) -> io::Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut reader = At { file, at: 0 }.take(len);
    if io::copy(&mut reader, &mut hasher)? < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Reads a file from some place on, without touching its position.
struct At<'a> {
    file: &'a File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

struct LogReader<'a> {
    log: &'a File,
    input: BufReader<At<'a>>,
    /// The end of the last good record.
    at: u64,
    /// The length of the seal, if the records end with one.
    seal: Option<u64>,
}

impl<'a> LogReader<'a> {
    /// `None`: this is no log of that file.
    fn open(log: &'a File, identity: Identity) -> io::Result<Option<LogReader<'a>>> {
        let mut header = [0; HEADER];
        scan::read_or_zeros(log, &mut header, 0)?;
        let at = HEADER as u64;
        let input = BufReader::with_capacity(24 << 10, At { file: log, at });
        Ok((header == identity.header()).then_some(LogReader { log, input, at, seal: None }))
    }

    fn next_record(&mut self) -> io::Result<Option<(Range<u64>, New)>> {
        let mut record = [0; RECORD];
        match self.input.read_exact(&mut record) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let Some((range, kind)) = decode(&record) else { return Ok(None) };
        let new = match kind {
            KIND_DATA => New::Data,
            KIND_ZERO => New::Zero,
            _ => {
                self.seal = (kind == KIND_SEAL && range.end <= MAX_SEAL).then_some(range.end);
                return Ok(None);
            }
        };
        self.at += RECORD as u64;
        Ok(Some((range, new)))
    }

    /// All records as ranges; `None`: too many to keep.
    fn load(&mut self) -> io::Result<Option<Runs>> {
        let mut runs = Runs::default();
        while let Some((range, new)) = self.next_record()? {
            runs.insert(range, new);
            if runs.len() > MAX_RUNS {
                return Ok(None);
            }
        }
        Ok(Some(runs))
    }

    /// After the last record: the seal, if it and everything before it is whole.
    fn seal(&mut self) -> io::Result<Option<Seal>> {
        let Some(len) = self.seal else { return Ok(None) };
        let mut body = vec![0; len as usize];
        let mut digest = Hash::default();
        let start = self.at + RECORD as u64;
        scan::read_or_zeros(self.log, &mut body, start)?;
        scan::read_or_zeros(self.log, &mut digest, start + len)?;
        if self.log.metadata()?.len() < start + len || digest_of(self.log, start + len)? != digest {
            return Ok(None);
        }
        Ok(postcard::from_bytes(&body).ok())
    }
}

/// The ranges of a log, later ones over earlier ones, neighbours merged.
#[derive(Debug, Clone, Default)]
pub struct Runs(std::collections::BTreeMap<u64, (u64, New)>);

impl Runs {
    /// How many separate ranges there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (Range<u64>, New)> + '_ {
        self.0.iter().map(|(&start, &(end, new))| (start..end, new))
    }

    /// Puts a range over what was there.
    pub fn insert(&mut self, range: Range<u64>, new: New) {
        let (mut start, mut end) = (range.start, range.end);
        let touched: Vec<u64> = self
            .0
            .range(..=range.end)
            .rev()
            .take_while(|&(_, &(end, _))| end >= range.start)
            .map(|(&start, _)| start)
            .collect();
        for at in touched {
            let Some((old_end, old)) = self.0.remove(&at) else { continue };
            if old == new {
                (start, end) = (start.min(at), end.max(old_end));
                continue;
            }
            if at < range.start {
                self.0.insert(at, (range.start, old));
            }
            if old_end > range.end {
                self.0.insert(range.end, (old_end, old));
            }
        }
        self.0.insert(start, (end, new));
    }

    /// Bytes of new data.
    pub fn data_bytes(&self) -> u64 {
        self.iter().filter(|(_, new)| *new == New::Data).map(|(range, _)| range.end - range.start).sum()
    }

    /// The run at or after a place.
    fn at_or_after(&self, at: u64) -> Option<(Range<u64>, New)> {
        let before = self.0.range(..=at).next_back().filter(|(_, (end, _))| *end > at);
        before.or_else(|| self.0.range(at..).next()).map(|(&start, &(end, new))| (start..end, new))
    }

    /// What lies between the data runs, up to `length`.
    fn gaps_in_data(&self, length: u64) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = 0;
        for (range, _) in self.iter().filter(|(_, new)| *new == New::Data) {
            gaps.push(at..range.start.min(length));
            at = range.end;
        }
        gaps.push(at..length);
        gaps.retain(|gap| gap.start < gap.end);
        gaps
    }

    /// The parts of ascending extents that no run covers.
    fn kept_extents<'a>(
        &'a self,
        extents: impl Iterator<Item = io::Result<Extent>> + 'a,
    ) -> impl Iterator<Item = io::Result<Extent>> + 'a {
        extents.flat_map(|extent| {
            let mut parts = Vec::new();
            match extent {
                Err(error) => parts.push(Err(error)),
                Ok(extent) => {
                    let mut at = extent.start;
                    while at < extent.end {
                        let run = self.at_or_after(at).map(|(run, _)| run).filter(|r| r.start < extent.end);
                        let end = run.as_ref().map_or(extent.end, |run| run.start.max(at));
                        if at < end {
                            parts.push(Ok(at..end));
                        }
                        at = run.map_or(extent.end, |run| run.end);
                    }
                }
            }
            parts
        })
    }
}

/// The old file with an interrupted run's stage over it.
#[derive(Debug)]
pub struct Overlay {
    old: FileImage,
    stage: File,
    runs: Runs,
}

impl Overlay {
    /// What the file would be if the log ended here.
    pub fn new(old: FileImage, stage: File, runs: Runs) -> Overlay {
        Overlay { old, stage, runs }
    }

    /// Its length in bytes: new data may reach beyond the old end.
    pub fn length(&self) -> io::Result<u64> {
        let end = self.runs.iter().last().map_or(0, |(range, _)| range.end);
        Ok(self.old.file().metadata()?.len().max(end))
    }
}

impl Image for Overlay {
    fn extents<'a>(&'a self, range: Range<u64>) -> Box<dyn Iterator<Item = io::Result<Extent>> + 'a> {
        let clip = move |run: Range<u64>| run.start.max(range.start)..run.end.min(range.end);
        let new = self.runs.iter().filter(|(_, new)| *new == New::Data).map(move |(run, _)| clip(run));
        let new = new.filter(|run| run.start < run.end).map(Ok);
        let kept = self.runs.kept_extents(self.old.extents(range));
        Box::new(merge(kept.peekable(), new.peekable()))
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let here = at + done as u64;
            let run = self.runs.at_or_after(here);
            let (len, new) = match run {
                Some((run, new)) if run.start <= here => (run.end - here, Some(new)),
                Some((run, _)) => (run.start - here, None),
                None => (u64::MAX, None),
            };
            let len = len.min((buffer.len() - done) as u64) as usize;
            let part = &mut buffer[done..done + len];
            match new {
                None => self.old.read_at(part, here)?,
                Some(New::Data) => scan::read_or_zeros(&self.stage, part, here)?,
                Some(New::Zero) => part.fill(0),
            }
            done += len;
        }
        Ok(())
    }
}

/// Two ascending rows of extents, which do not overlap, as one.
fn merge<'a>(
    mut a: std::iter::Peekable<impl Iterator<Item = io::Result<Extent>> + 'a>,
    mut b: std::iter::Peekable<impl Iterator<Item = io::Result<Extent>> + 'a>,
) -> impl Iterator<Item = io::Result<Extent>> + 'a {
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(Ok(x)), Some(Ok(y))) if y.start < x.start => b.next(),
        (Some(_), _) => a.next(),
        (None, _) => b.next(),
    })
}

/// The first page border at or after a place.
pub fn page_up(at: u64) -> u64 {
    at.div_ceil(PAGE).saturating_mul(PAGE)
}
