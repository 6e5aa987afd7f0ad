//! Writes frames: messages, data, maps, questions and patches.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::hashmap::PageMask;
use crate::hashmap::leaves::Leaves;
use crate::hashmap::plan::Run;
use crate::protocol::frame::*;
use crate::protocol::{
    BlockAnswer, Differ, FEATURE_AES, FEATURE_NO_AES, FEATURE_NO_MAP_CACHE, LeafAnswer, MAGIC, Message,
    OLDEST, Patch, Tap, TimedWriter, VERSION,
};
use crate::report::Phase;
use crate::scan;

/// Writes frames and counts bytes. Small ones gather until [`FrameWriter::flush`].
#[derive(Debug)]
pub struct FrameWriter<W: Write> {
    out: BufWriter<W>,
    peer: String,
    sent: Arc<AtomicU64>,
    frames: u64,
    /// Frames that were written when it was looked last.
    frames_seen: u64,
    /// The last message was written.
    has_ended: bool,
    /// Where `out` leads, if bytes of files can go there without passing through us.
    direct: Option<TimedWriter<File>>,
    /// Who is told what passes.
    tap: Option<Tap>,
}

impl<W: Write + AsFd> FrameWriter<TimedWriter<W>> {
    /// Has bytes of files go to the descriptor of a pipe or socket without being copied,
    /// where the system can do that.
    pub fn direct(out: TimedWriter<W>, peer: &str) -> FrameWriter<TimedWriter<W>> {
        let direct = out.duplicate().ok();
        FrameWriter { direct, ..FrameWriter::new(out, peer) }
    }
}

impl<W: Write> FrameWriter<W> {
    /// `peer` names the other side in errors.
    pub fn new(out: W, peer: &str) -> FrameWriter<W> {
        let out = BufWriter::with_capacity(32 << 10, out);
        FrameWriter {
            out,
            peer: peer.into(),
            sent: Arc::default(),
            frames: 0,
            frames_seen: 0,
            has_ended: false,
            direct: None,
            tap: None,
        }
    }

    /// Has somebody be told what is written from now on, before it is.
    pub fn tapped(self, tap: Tap) -> FrameWriter<W> {
        FrameWriter { tap: Some(tap), ..self }
    }

    /// Whether bytes of files need not be read to be sent.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Bytes written so far; stays readable when the writer is given away.
    pub fn sent(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }

    /// Writes the greeting: magic, oldest and newest version (2 bytes each,
    /// little-endian), features (4 bytes): whether this processor has instructions for
    /// AES, if that is known, and whether kept maps may be used.
    pub fn greet(&mut self, aes: Option<bool>, map_cache: bool) -> Result<()> {
        let [old, new] = [OLDEST.to_le_bytes(), VERSION.to_le_bytes()];
        let features = aes.map_or(0, |aes| if aes { FEATURE_AES } else { FEATURE_NO_AES });
        let features = features | if map_cache { 0 } else { FEATURE_NO_MAP_CACHE };
        self.put(&[&MAGIC, &old, &new, &features.to_le_bytes()])?;
        self.flush()
    }

    /// Writes bytes that are in no frame: what a shell reads before there is an
    /// agent, or in its place.
    pub fn plain(&mut self, bytes: &[u8]) -> Result<()> {
        self.put(&[bytes])
    }

    /// Writes a control message.
    pub fn message(&mut self, message: &Message) -> Result<()> {
        let body = postcard::to_stdvec(message).map_err(|e| self.broken("encoding", io::Error::other(e)))?;
        self.has_ended |= matches!(message, Message::End(_) | Message::Fatal(_));
        self.tap.as_ref().map_or(Ok(()), |tap| tap.message(message))?;
        self.frame(TYPE_CONTROL, &[&body])
    }

    /// Has the other end hear something, if nothing was said since the last call, and has
    /// all leave that was written.
    pub fn keep_alive(&mut self, busy_with: Phase) -> Result<()> {
        if !self.has_ended && self.frames == self.frames_seen {
            self.message(&Message::Busy(busy_with))?;
        }
        self.frames_seen = self.frames;
        self.flush()
    }

    /// Writes file data: one mask a block, and the bytes of their pages, which
    /// may lie in several places. At most [`MAX_DATA`] bytes, [`MAX_DATA_BLOCKS`] blocks.
    pub fn data(&mut self, first: u64, masks: &[PageMask], bytes: &[&[u8]]) -> Result<()> {
        self.pages(TYPE_DATA, first, &[masks], len_of(bytes), bytes)
    }

    /// Like [`FrameWriter::data`], for bytes that lie in these ranges of a file. What
    /// cannot be read of them goes as zeros: then the inner result is an error.
    pub fn data_of_file(
        &mut self,
        first: u64,
        masks: &[PageMask],
        file: &File,
        ranges: &[Range<u64>],
    ) -> Result<io::Result<()>> {
        let len = ranges.iter().map(|range| range.end - range.start).sum::<u64>() as usize;
        let head = data_head(first, &[masks], len);
        self.tap.as_ref().map_or(Ok(()), |tap| tap.data(len))?;
        self.put(&[&header_of(self.frames, TYPE_DATA, (head.len() + len) as u32), &head])?;
        self.frames += 1;
        let mut result = Ok(());
        for range in ranges {
            let read = self.put_range(file, range)?;
            result = result.and(read);
        }
        Ok(result)
    }

    /// Writes a range of a file, as far as possible without a copy.
    fn put_range(&mut self, file: &File, range: &Range<u64>) -> Result<io::Result<()>> {
        // What was written before must not be overtaken.
        self.flush()?;
        let mut at = range.start;
        while at < range.end
            && let Some(direct) = &mut self.direct
        {
            match direct.send_file(file, at, (range.end - at) as usize) {
                Ok(sent) if sent > 0 => {
                    at += sent as u64;
                    self.sent.fetch_add(sent as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The file is shorter now, or these two cannot; what fails shows below.
                Ok(_) | Err(_) => break,
            }
        }
        let mut result = Ok(());
        while at < range.end {
            let mut chunk = [0; 16 << 10];
            let len = (range.end - at).min(chunk.len() as u64) as usize;
            if result.is_ok() {
                result = scan::read_or_zeros(file, &mut chunk[..len], at);
            }
            self.put(&[&chunk[..len]])?;
            at += len as u64;
        }
        Ok(result)
    }

    /// Like [`FrameWriter::data`], for `len` bytes that zstd made into `compressed`.
    pub fn data_zstd(&mut self, first: u64, masks: &[PageMask], len: usize, compressed: &[u8]) -> Result<()> {
        self.pages(TYPE_DATA_ZSTD, first, &[masks], len, &[compressed])
    }

    /// Writes what blocks lack that were asked about. At most [`MAX_DATA`] bytes,
    /// [`MAX_DATA_BLOCKS`] blocks. `compressed`: what zstd made of the bytes.
    pub fn patch(&mut self, patch: &Patch, compressed: Option<&[u8]>) -> Result<()> {
        let kind = if compressed.is_some() { TYPE_PATCH_ZSTD } else { TYPE_PATCH };
        let bytes = compressed.unwrap_or(&patch.bytes);
        self.pages(kind, patch.first, &[&patch.masks, &patch.sent], patch.bytes.len(), &[bytes])
    }

    fn pages(
        &mut self,
        kind: u8,
        first: u64,
        masks: &[&[PageMask]],
        len: usize,
        bytes: &[&[u8]],
    ) -> Result<()> {
        let head = data_head(first, masks, len);
        self.tap.as_ref().map_or(Ok(()), |tap| tap.data(len))?;
        let parts: Vec<&[u8]> = std::iter::once(head.as_slice()).chain(bytes.iter().copied()).collect();
        self.frame(kind, &parts)
    }

    /// Asks about blocks that differ; at most [`MAX_DIFFER`].
    pub fn differ(&mut self, differ: &Differ) -> Result<()> {
        self.frame(TYPE_DIFFER, &[&differ.first.to_le_bytes(), differ.hashes.as_flattened()])
    }

    /// Answers with what is there of such blocks.
    pub fn leaves(&mut self, answer: &LeafAnswer) -> Result<()> {
        let mut body = answer.id.to_le_bytes().to_vec();
        for block in &answer.blocks {
            let (data, count, hashes) = match block {
                BlockAnswer::Had => (0, HAD, &[][..]),
                BlockAnswer::Leaves(Leaves { data, hashes }) => {
                    (*data, hashes.len() as u8, hashes.as_slice())
                }
            };
            body.extend(data.to_le_bytes());
            body.push(count);
            body.extend(hashes.as_flattened());
        }
        self.frame(TYPE_LEAVES, &[&body])
    }

    /// Writes a stretch of the map of a file; at most [`MAX_MAP_RUNS`] runs and
    /// [`MAX_MAP_KEYS`] keys.
    pub fn map(&mut self, id: u64, runs: &[Run]) -> Result<()> {
        let mut body = Vec::new();
        put_varint(&mut body, id);
        for run in runs {
            match run {
                Run::Zero(blocks) => {
                    body.push(0);
                    put_varint(&mut body, *blocks);
                }
                Run::Keys(keys) => {
                    body.push(1);
                    put_varint(&mut body, keys.len() as u64);
                    body.extend(keys.as_flattened());
                }
            }
        }
        self.frame(TYPE_MAP, &[&body])
    }

    /// Tells the other side why it is being left, unless it knows. It may be gone.
    pub fn give_up(&mut self, error: &Error) {
        if let Some(message) = Message::farewell(error) {
            let _ = self.message(&message).and_then(|()| self.flush());
        }
    }

    /// Has everything that was written leave this process.
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(|e| self.broken("writing", e))
    }

    pub(super) fn frame(&mut self, kind: u8, parts: &[&[u8]]) -> Result<()> {
        let len = len_of(parts) as u32;
        self.put(&[&header_of(self.frames, kind, len)])?;
        self.frames += 1;
        self.put(parts)?;
        if is_data(kind) { Ok(()) } else { self.put(&[&check_of(parts)]) }
    }

    fn put(&mut self, parts: &[&[u8]]) -> Result<()> {
        for part in parts {
            self.out.write_all(part).map_err(|e| self.broken("writing", e))?;
            self.sent.fetch_add(part.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn broken(&self, doing: &'static str, source: io::Error) -> Error {
        link_error(&self.peer, doing, source)
    }
}

fn data_head(first: u64, masks: &[&[PageMask]], len: usize) -> Vec<u8> {
    let widest = masks.iter().copied().flatten().fold(0, |any, mask| any | mask);
    let width = (PageMask::BITS - widest.leading_zeros()).div_ceil(8).max(1) as usize;
    let mut head = Vec::with_capacity(DATA_HEAD + masks[0].len() * masks.len() * width);
    head.extend(first.to_le_bytes());
    head.extend((masks[0].len() as u32).to_le_bytes());
    head.push(width as u8);
    head.extend((len as u32).to_le_bytes());
    masks.iter().copied().flatten().for_each(|mask| head.extend(&mask.to_le_bytes()[..width]));
    head
}

/// Has the other end hear something now and then, whatever other threads do, until that is
/// `over`. `life_sign`: how long this end may be silent.
pub fn keep_alive<W: Write>(output: &Mutex<FrameWriter<W>>, life_sign: Duration, over: &Receiver<()>) {
    // What was said just before a look lasts until the next one.
    while over.recv_timeout(life_sign / 2) == Err(RecvTimeoutError::Timeout) {
        // Whoever holds it is writing, and finds out by itself that the connection is gone.
        if let Ok(mut output) = output.try_lock() {
            let _ = output.keep_alive(Phase::Mapping);
        }
    }
}
