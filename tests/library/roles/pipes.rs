//! Pipes between two roles that can be slow, short or broken at a chosen byte.

use std::io::{self, PipeReader, Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// Bytes before the body of a frame: type, length, check.
const HEADER: usize = 9;
/// Bytes behind the body of one that is not data.
const CHECK: usize = 4;
/// Types of frames.
pub const DATA: u8 = 2;
pub const DIFFER: u8 = 5;
pub const LEAVES: u8 = 6;
pub const PATCH: u8 = 7;

/// Where in a stream something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spot {
    /// Before the first byte of this frame.
    Before(usize),
    /// After its first byte.
    Inside(usize),
    /// Before its last byte.
    AlmostBehind(usize),
    /// At the last byte of the first frame of this type.
    First(u8),
    /// At the last byte of every frame of this type.
    Every(u8),
}

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The stream ends.
    Cut,
    /// Reading fails, from there on.
    Broken,
    /// One bit of the byte there is wrong.
    Flip(u8),
}

/// Follows the frames of a stream.
#[derive(Debug, Default)]
struct Cursor {
    frame: usize,
    offset: usize,
    size: usize,
    kind: u8,
    /// Types that came, a bit each.
    seen: u16,
    len: [u8; 4],
}

impl Cursor {
    /// Whether the next byte, if it is this one, is at the spot.
    fn is_at(&self, spot: Spot) -> bool {
        let last = self.size > 0 && self.offset + 1 == self.size;
        match spot {
            Spot::Before(frame) => self.frame == frame && self.offset == 0,
            Spot::Inside(frame) => self.frame == frame && self.offset == 1,
            Spot::AlmostBehind(frame) => self.frame == frame && last,
            Spot::First(kind) => last && self.kind == kind && self.seen >> kind & 1 == 0,
            Spot::Every(kind) => last && self.kind == kind,
        }
    }

    fn pass(&mut self, byte: u8) {
        match self.offset {
            0 => self.kind = byte,
            at @ 1..=4 => self.len[at - 1] = byte,
            _ => {}
        }
        self.offset += 1;
        if self.offset == HEADER {
            // Data and patches, compressed or not, have no check of their own.
            let behind = if matches!(self.kind, 2 | 3 | 7 | 8) { 0 } else { CHECK };
            self.size = HEADER + u32::from_le_bytes(self.len) as usize + behind;
        }
        if self.offset == self.size {
            self.seen |= 1 << self.kind;
            (self.frame, self.offset, self.size) = (self.frame + 1, 0, 0);
        }
    }
}

/// What went through a stream, as it was written.
#[derive(Debug, Default)]
pub struct Tape {
    pub bytes: Vec<u8>,
    /// Frames that were passed whole.
    pub frames: usize,
    /// Whether the fault came.
    pub struck: bool,
}

/// The reading end of a pipe with a fault in it.
pub struct Faulty {
    inner: Option<PipeReader>,
    fault: Option<(Spot, Fault)>,
    cursor: Cursor,
    ready: Vec<u8>,
    tape: Arc<Mutex<Tape>>,
}

impl Faulty {
    pub fn new(inner: PipeReader, fault: Option<(Spot, Fault)>) -> (Faulty, Arc<Mutex<Tape>>) {
        let tape = Arc::<Mutex<Tape>>::default();
        let cursor = Cursor::default();
        let faulty = Faulty { inner: Some(inner), fault, cursor, ready: Vec::new(), tape: Arc::clone(&tape) };
        (faulty, tape)
    }

    /// Passes bytes on up to the place where the stream breaks.
    fn pass(&mut self, buffer: &mut [u8]) -> usize {
        let mut tape = self.tape.lock().unwrap();
        let mut passed = 0;
        for (to, &byte) in buffer.iter_mut().zip(&self.ready) {
            *to = byte;
            if let Some((spot, fault)) = self.fault
                && self.cursor.is_at(spot)
            {
                tape.struck = true;
                match fault {
                    Fault::Flip(bit) => *to ^= 1 << bit,
                    Fault::Cut | Fault::Broken => break,
                }
            }
            self.cursor.pass(byte);
            tape.bytes.push(byte);
            passed += 1;
        }
        tape.frames = self.cursor.frame;
        drop(tape);
        self.ready.drain(..passed);
        passed
    }
}

impl Read for Faulty {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(inner) = &mut self.inner else { return Ok(0) };
        if self.ready.is_empty() {
            let len = inner.read(buffer)?;
            if len == 0 {
                return Ok(0);
            }
            self.ready.extend(&buffer[..len]);
        }
        match (self.pass(buffer), self.fault) {
            (0, Some((_, Fault::Cut))) => {
                // The writer learns of it, too.
                self.inner = None;
                Ok(0)
            }
            (0, _) => Err(io::Error::other("the test broke the stream here")),
            (passed, _) => Ok(passed),
        }
    }
}

/// How a slow stream is slow.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// At most so many bytes a call.
    Short(usize),
    /// Any number of bytes, now and then a pause; from this seed.
    Uneven(u64),
    /// The first large piece takes so long that the link counts as slow.
    Stalled,
}

/// A reader or writer at a slower pace.
pub struct Slow<T> {
    inner: T,
    pace: Pace,
    rng: TestRng,
    has_stalled: bool,
}

impl<T> Slow<T> {
    pub fn new(inner: T, pace: Pace) -> Slow<T> {
        let seed = if let Pace::Uneven(seed) = pace { seed } else { 0 };
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Slow { inner, pace, rng: TestRng::from_seed(RngAlgorithm::ChaCha, &bytes), has_stalled: false }
    }

    /// How many of `len` bytes to pass now.
    fn limit(&mut self, len: usize) -> usize {
        match self.pace {
            Pace::Short(most) => len.min(most),
            Pace::Uneven(_) => {
                let random = self.rng.next_u32() as usize;
                if random.is_multiple_of(8) {
                    std::thread::sleep(Duration::from_micros(random as u64 >> 8 & 511));
                }
                len.min(1 + (random >> 8) % 20_000)
            }
            Pace::Stalled => {
                if len >= 8 << 10 && !self.has_stalled {
                    self.has_stalled = true;
                    std::thread::sleep(Duration::from_millis(300));
                }
                len
            }
        }
    }
}

impl<T: Read> Read for Slow<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = self.limit(buffer.len());
        self.inner.read(&mut buffer[..limit])
    }
}

impl<T: Write> Write for Slow<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let limit = self.limit(bytes.len());
        self.inner.write(&bytes[..limit])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A pipe that holds no more than a page.
pub fn tiny_pipe() -> (PipeReader, io::PipeWriter) {
    let pipe = io::pipe().unwrap();
    nix::fcntl::fcntl(&pipe.1, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    pipe
}
