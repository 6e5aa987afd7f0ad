//! Reads frames, and bounds every length and count before it is used or allocated for.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::error::{Error, Failure, Result, escape};
use crate::hashmap::leaves::{LeafHash, Leaves};
use crate::hashmap::plan::Run;
use crate::hashmap::{Hash, Key, PageMask};
use crate::protocol::frame::*;
use crate::protocol::lines::Plain;
use crate::protocol::{
    BlockAnswer, Data, Differ, FEATURE_AES, FEATURE_NO_AES, FEATURE_NO_MAP_CACHE, Frame, LeafAnswer, MAGIC,
    MAX_CONTROL, MAX_DATA, MAX_DATA_BLOCKS, MAX_DIFFER, MAX_MAP_KEYS, MAX_MAP_RUNS, Message, OLDEST, Patch,
    Tap, TimedReader, VERSION, shortened,
};

/// What the other side's greeting says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// The version that both speak.
    pub version: u16,
    /// Whether the processor there has instructions for AES, if that is known.
    pub aes: Option<bool>,
    /// Whether kept maps may be used, as far as the other end is concerned.
    pub map_cache: bool,
}

/// Reads frames, bounds everything, counts bytes.
#[derive(Debug)]
pub struct FrameReader<R: Read> {
    input: Plain<R>,
    body: Vec<u8>,
    /// Room for the bytes of the next data frame.
    room: Vec<u8>,
    frames: u64,
    /// See [`FrameReader::version`].
    version: u16,
    /// Who is told which messages pass.
    tap: Option<Tap>,
}

impl<R: Read + AsFd> FrameReader<TimedReader<R>> {
    /// How long the other end may be silent from now on; `None`: for ever.
    pub fn limit_silence(&self, silence: Option<Duration>) {
        self.input.source().limit(silence);
    }
}

impl<R: Read> FrameReader<R> {
    /// `peer` names the other side in errors.
    pub fn new(input: R, peer: &str) -> FrameReader<R> {
        let input = Plain::new(input, peer);
        FrameReader { input, body: Vec::new(), room: Vec::new(), frames: 0, version: 0, tap: None }
    }

    /// Bytes read so far; stays readable when the reader is given away.
    pub fn received(&self) -> Arc<AtomicU64> {
        self.input.received()
    }

    /// Who the other side is.
    pub fn peer(&self) -> &str {
        self.input.peer()
    }

    /// The version that both ends speak; 0 before the greeting.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Has somebody be told which messages are read from now on.
    pub fn tapped(self, tap: Tap) -> FrameReader<R> {
        FrameReader { tap: Some(tap), ..self }
    }

    /// Takes the room of a data frame that is done with, for the next one.
    pub fn reuse(&mut self, data: Data) {
        self.room = data.bytes;
    }

    /// What comes where there are no frames yet.
    pub fn plain(&mut self) -> &mut Plain<R> {
        &mut self.input
    }

    /// For where there will be none.
    pub fn into_plain(self) -> Plain<R> {
        self.input
    }

    /// Waits for the other side's greeting and settles on a version. Up to
    /// `noise` bytes may come first.
    ///
    /// # Errors
    ///
    /// [`Error::Unanswered`] with the noise when the greeting never comes,
    /// [`Error::Version`] when no version is common.
    pub fn await_greeting(&mut self, noise: usize) -> Result<Greeting> {
        self.skip_to(&[&MAGIC], noise)?;
        self.greeted()
    }

    /// The same where a shell may answer instead, with `mark`: then `None`, and
    /// what comes next is what follows the mark.
    ///
    /// # Errors
    ///
    /// Those of [`FrameReader::await_greeting`].
    pub fn await_greeting_or(&mut self, mark: &[u8], noise: usize) -> Result<Option<Greeting>> {
        match self.skip_to(&[&MAGIC, mark], noise)? {
            0 => self.greeted().map(Some),
            _ => Ok(None),
        }
    }

    /// Skips what comes before the first of some marks; which that was.
    fn skip_to(&mut self, marks: &[&[u8]], noise: usize) -> Result<usize> {
        let mut seen = Vec::new();
        loop {
            if let Some(nth) = marks.iter().position(|mark| seen.ends_with(mark)) {
                return Ok(nth);
            }
            if seen.len() >= noise + MAGIC.len() {
                return Err(no_greeting(self.input.peer(), &seen, "went on"));
            }
            let Some(byte) = self.next_byte()? else {
                return Err(no_greeting(self.input.peer(), &seen, "ended"));
            };
            seen.push(byte);
        }
    }

    fn greeted(&mut self) -> Result<Greeting> {
        let mut rest = [0; 8];
        self.fill(&mut rest)?;
        let [oldest, newest] = [[rest[0], rest[1]], [rest[2], rest[3]]].map(u16::from_le_bytes);
        let features = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]);
        let version = newest.min(VERSION);
        if version < OLDEST || version < oldest {
            let peer = self.input.peer().into();
            return Err(Error::Version { peer, theirs: (oldest, newest), ours: (OLDEST, VERSION) });
        }
        self.version = version;
        let aes = match features & (FEATURE_AES | FEATURE_NO_AES) {
            FEATURE_AES => Some(true),
            FEATURE_NO_AES => Some(false),
            _ => None,
        };
        Ok(Greeting { version, aes, map_cache: features & FEATURE_NO_MAP_CACHE == 0 })
    }

    fn next_byte(&mut self) -> Result<Option<u8>> {
        let mut byte = [0];
        match self.input.read(&mut byte) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(byte[0])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.next_byte(),
            Err(error) => Err(link_error(self.input.peer(), "starting", error)),
        }
    }

    /// The next frame.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] at the end of the stream, wherever it comes;
    /// [`Error::Remote`] for a fatal error of the other side;
    /// [`Error::Protocol`] for anything that breaks a rule.
    pub fn read(&mut self) -> Result<Frame> {
        let (kind, len) = self.header()?;
        if is_data(kind) {
            return self.next_data(kind, len);
        }
        let mut body = std::mem::take(&mut self.body);
        self.body(kind, len, &mut body)?;
        let frame = match kind {
            TYPE_MAP => self.decode_map(&body),
            TYPE_DIFFER => self.decode_differ(&body),
            TYPE_LEAVES => self.decode_leaves(&body),
            _ => self.decode_message(&body),
        };
        self.body = body;
        if let (Some(tap), Ok(Frame::Message(message))) = (&self.tap, &frame) {
            tap.message(message)?;
        }
        frame
    }

    /// The kind of the next frame, and how long its body is.
    pub(super) fn header(&mut self) -> Result<(u8, usize)> {
        let mut header = [0; HEADER];
        self.fill(&mut header)?;
        let [kind, len @ .., _, _, _, _] = header;
        let len = u32::from_le_bytes(len);
        if header != header_of(self.frames, kind, len) {
            return Err(self.bad("a damaged frame, or one out of order"));
        }
        self.frames += 1;
        let len = len as usize;
        let limit = match kind {
            TYPE_CONTROL => MAX_CONTROL,
            _ if is_data(kind) => MAX_BODY,
            TYPE_MAP => MAX_MAP,
            TYPE_DIFFER => 8 + MAX_DIFFER * size_of::<Hash>(),
            TYPE_LEAVES => 8 + MAX_DIFFER * MAX_LEAVES,
            _ => return Err(self.bad(format!("a frame of the unknown type {kind}"))),
        };
        if len > limit {
            return Err(self.bad(format!("a frame of type {kind} with {len} bytes, more than {limit}")));
        }
        Ok((kind, len))
    }

    /// The body of a frame, as it came.
    pub(super) fn body(&mut self, kind: u8, len: usize, body: &mut Vec<u8>) -> Result<()> {
        body.resize(len, 0);
        self.fill(body)?;
        if is_data(kind) {
            return Ok(());
        }
        let mut check = [0; CHECK];
        self.fill(&mut check)?;
        if check == check_of(&[body]) { Ok(()) } else { Err(self.bad("a damaged frame")) }
    }

    /// Whether the next frame is all here, so that reading it waits for nothing.
    pub fn has_arrived(&self) -> bool {
        let arrived = self.input.arrived();
        let Some((header, body)) = arrived.split_first_chunk::<HEADER>() else { return false };
        let [kind, len @ .., _, _, _, _] = *header;
        let check = if is_data(kind) { 0 } else { CHECK };
        body.len() as u64 >= u64::from(u32::from_le_bytes(len)) + check as u64
    }

    fn next_data(&mut self, kind: u8, len: usize) -> Result<Frame> {
        let is_patch = matches!(kind, TYPE_PATCH | TYPE_PATCH_ZSTD);
        let mut head = [0; DATA_HEAD];
        if len < DATA_HEAD {
            return Err(self.bad("a data frame without its head"));
        }
        self.fill(&mut head)?;
        let (first, rest) = head.split_at(8);
        let first = u64::from_le_bytes(first.try_into().unwrap_or_default());
        let count = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        let width = rest[4] as usize;
        let bytes = u32::from_le_bytes([rest[5], rest[6], rest[7], rest[8]]) as usize;
        let lists = if is_patch { 2 } else { 1 };
        let fits = (1..=MAX_DATA_BLOCKS).contains(&count) && (1..=8).contains(&width) && bytes <= MAX_DATA;
        let Some(rest) = (len - DATA_HEAD).checked_sub(count.saturating_mul(width * lists)).filter(|_| fits)
        else {
            return Err(self.bad(format!("a data frame of {count} blocks and {bytes} bytes")));
        };
        let masks = self.masks(count, width)?;
        let sent = if is_patch { self.masks(count, width)? } else { Vec::new() };
        let mut body = std::mem::take(&mut self.room);
        body.resize(rest, 0);
        self.fill(&mut body)?;
        let bytes = match kind {
            TYPE_DATA | TYPE_PATCH if rest == bytes => body,
            TYPE_DATA_ZSTD | TYPE_PATCH_ZSTD => zstd::bulk::decompress(&body, bytes)
                .ok()
                .filter(|plain| plain.len() == bytes)
                .ok_or_else(|| self.bad("compressed data that does not unpack"))?,
            _ => return Err(self.bad(format!("a data frame with {rest} bytes for {bytes}"))),
        };
        Ok(if is_patch {
            Frame::Patch(Patch { first, masks, sent, bytes })
        } else {
            Frame::Data(Data { first, masks, bytes })
        })
    }

    fn masks(&mut self, count: usize, width: usize) -> Result<Vec<PageMask>> {
        let mut masks = vec![0; count * width];
        self.fill(&mut masks)?;
        let masks = masks.chunks_exact(width).map(|bytes| {
            let mut mask = [0; 8];
            mask[..width].copy_from_slice(bytes);
            PageMask::from_le_bytes(mask)
        });
        Ok(masks.collect())
    }

    fn decode_differ(&self, body: &[u8]) -> Result<Frame> {
        let hashes = body.split_first_chunk().map(|(first, rest)| (*first, rest.as_chunks()));
        match hashes {
            Some((first, (hashes, []))) if !hashes.is_empty() => {
                Ok(Frame::Differ(Differ { first: u64::from_le_bytes(first), hashes: hashes.to_vec() }))
            }
            _ => Err(self.bad(format!("hashes of blocks in {} bytes", body.len()))),
        }
    }

    fn decode_leaves(&self, body: &[u8]) -> Result<Frame> {
        let decode = |body: &[u8]| {
            let (id, mut left) = body.split_first_chunk()?;
            let mut blocks = Vec::new();
            while let Some((data, rest)) = left.split_first_chunk() {
                let data = PageMask::from_le_bytes(*data);
                let (&count, rest) = rest.split_first()?;
                if blocks.len() >= MAX_DIFFER {
                    return None;
                }
                if (data, count) == (0, HAD) {
                    blocks.push(BlockAnswer::Had);
                    left = rest;
                    continue;
                }
                if u32::from(count) > data.count_ones() {
                    return None;
                }
                let (hashes, rest) = rest.split_at_checked(usize::from(count) * size_of::<LeafHash>())?;
                blocks.push(Leaves { data, hashes: hashes.as_chunks().0.to_vec() }.into());
                left = rest;
            }
            left.is_empty().then_some(Frame::Leaves(LeafAnswer { id: u64::from_le_bytes(*id), blocks }))
        };
        decode(body).ok_or_else(|| self.bad("leaves that cannot be read"))
    }

    /// A message of which a host tells that it passed.
    ///
    /// # Errors
    ///
    /// Those of [`FrameReader::read`] for one.
    pub fn heard(&self, encoded: &[u8]) -> Result<Message> {
        match self.decode_message(encoded)? {
            Frame::Message(message) => Ok(message),
            _ => Err(self.bad("something else than a message")),
        }
    }

    pub(super) fn decode_message(&self, body: &[u8]) -> Result<Frame> {
        match postcard::take_from_bytes(body) {
            Ok((Message::Fatal(failure), _)) => {
                Err(Error::Remote { peer: self.input.peer().into(), failure: bounded(failure) })
            }
            Ok((message, [])) => Ok(Frame::Message(message)),
            Ok(_) => Err(self.bad("a message with something behind it")),
            Err(error) => Err(self.bad(format!("a message that cannot be read ({error})"))),
        }
    }

    fn decode_map(&self, body: &[u8]) -> Result<Frame> {
        let Ok((id, mut body)) = postcard::take_from_bytes(body) else {
            return Err(self.bad("a map of no file"));
        };
        let mut runs = Vec::new();
        let mut keys = 0;
        while let Some((&kind, rest)) = body.split_first() {
            // A run of nothing would weigh as much as another, and count for nothing.
            let Some((count, rest)) =
                postcard::take_from_bytes::<u64>(rest).ok().filter(|(count, _)| *count > 0)
            else {
                return Err(self.bad("a map run without a length"));
            };
            let (run, rest) = match kind {
                0 => (Run::Zero(count), rest),
                1 => {
                    let wanted = usize::try_from(count).ok().filter(|&count| count <= MAX_MAP_KEYS);
                    let found = wanted.and_then(|count| rest.split_at_checked(count * size_of::<Key>()));
                    let (found, rest) = found.ok_or_else(|| self.bad(format!("a map with {count} keys")))?;
                    let found = found.as_chunks().0.to_vec();
                    keys += found.len();
                    (Run::Keys(found), rest)
                }
                _ => return Err(self.bad(format!("a map run of the unknown kind {kind}"))),
            };
            body = rest;
            runs.push(run);
            if runs.len() > MAX_MAP_RUNS || keys > MAX_MAP_KEYS {
                return Err(self.bad(format!("a map of {} runs and {keys} keys", runs.len())));
            }
        }
        Ok(Frame::Map(id, runs))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.input.read_exact(buffer).map_err(|e| link_error(self.input.peer(), "reading", e))
    }

    /// An error that blames the other side.
    pub fn bad(&self, what: impl Into<String>) -> Error {
        Error::Protocol { peer: self.input.peer().into(), what: what.into() }
    }
}

/// Codes from the other side stay within those that say "failed", texts are cut.
fn bounded(failure: Failure) -> Failure {
    let code = if failure.code == 0 { crate::error::code::STREAM } else { failure.code };
    let path = failure.path.filter(|path| path.len() <= crate::protocol::MAX_PATH);
    Failure { path, ..Failure::new(code, shortened(failure.message)) }
}

fn no_greeting(peer: &str, seen: &[u8], how: &str) -> Error {
    let shown = escape(&seen[..seen.len().min(512)]);
    let said = if seen.is_empty() { "without a word".into() } else { format!("saying \"{shown}\"") };
    Error::Unanswered { peer: peer.into(), how: format!("{how} {said}") }
}
