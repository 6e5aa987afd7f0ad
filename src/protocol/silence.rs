//! A connection whose other end says nothing: both directions wait by poll(2), no longer
//! than silence may last. What counts is time spent in waiting: an end that does something
//! else meanwhile, or is stopped, learns nothing about the other one.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::protocol::Pace;
use crate::sys;

/// The longest single wait: after it is looked whether the connection is over.
const SLICE: Duration = Duration::from_secs(1);

/// The values of [`Silence::state`].
const ALIVE: u8 = 0;
const SILENT: u8 = 1;
const SUPERSEDED: u8 = 2;
/// Nothing more can be read: who writes waits for nobody.
const CLOSED: u8 = 3;

/// What both directions of a connection know of its silence.
#[derive(Debug, Default)]
pub struct Silence {
    /// Milliseconds that silence may last; 0: for ever.
    limit: AtomicU64,
    /// The limit is that of a connection that is being made.
    is_starting: AtomicBool,
    /// Reads that brought something.
    heard: AtomicU64,
    state: AtomicU8,
}

impl Silence {
    /// Until the other end has answered, silence may last so long; `None`: for ever.
    pub fn limit_start(&self, limit: Option<Duration>) {
        self.limit(limit);
        self.is_starting.store(true, Ordering::Relaxed);
    }

    /// From now on silence may last so long; `None`: for ever.
    pub fn limit(&self, limit: Option<Duration>) {
        self.is_starting.store(false, Ordering::Relaxed);
        let millis = limit.map_or(0, |limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1));
        self.limit.store(millis, Ordering::Relaxed);
    }

    /// Ends all waiting, now and later: another connection takes the place of this one.
    pub fn supersede(&self) {
        self.state.store(SUPERSEDED, Ordering::Relaxed);
    }

    /// Waits until a descriptor is ready. What is heard meanwhile ends a silence.
    fn wait(&self, fd: BorrowedFd, events: PollFlags) -> io::Result<()> {
        let mut waited = Duration::ZERO;
        let mut heard = self.heard.load(Ordering::Relaxed);
        loop {
            let limit = match self.limit.load(Ordering::Relaxed) {
                0 => Duration::MAX,
                millis => Duration::from_millis(millis),
            };
            match self.state.load(Ordering::Relaxed) {
                ALIVE => {}
                CLOSED if events == PollFlags::POLLIN => {}
                CLOSED => return Err(io::ErrorKind::BrokenPipe.into()),
                SUPERSEDED => return Err(io::Error::other("a later connection of this run took its place")),
                _ => return Err(self.timed_out(limit)),
            }
            let slice = SLICE.min(limit.saturating_sub(waited));
            if is_ready(fd, events, slice)? {
                return Ok(());
            }
            waited += slice;
            if heard != self.heard.load(Ordering::Relaxed) {
                (waited, heard) = (Duration::ZERO, self.heard.load(Ordering::Relaxed));
            } else if waited >= limit {
                self.become_first(SILENT);
            }
        }
    }

    /// What ends a connection first is the reason.
    fn become_first(&self, state: u8) {
        let _ = self.state.compare_exchange(ALIVE, state, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn timed_out(&self, limit: Duration) -> io::Error {
        let option = if self.is_starting.load(Ordering::Relaxed) { "--contimeout" } else { "--timeout" };
        let text = format!("nothing was heard for {} s (see {option})", limit.as_secs_f64());
        io::Error::new(io::ErrorKind::TimedOut, text)
    }
}

fn is_ready(fd: BorrowedFd, events: PollFlags, wait: Duration) -> io::Result<bool> {
    // Rounded up, or the last part of a millisecond would be waited for without a rest.
    let millis = wait.as_micros().div_ceil(1000);
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd, events)], timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The direction from the other end.
#[derive(Debug)]
pub struct TimedReader<R> {
    input: R,
    silence: Arc<Silence>,
}

impl<R: Read + AsFd> TimedReader<R> {
    /// Reads from a pipe, a socket or a terminal.
    pub fn new(input: R, silence: Arc<Silence>) -> TimedReader<R> {
        TimedReader { input, silence }
    }
}

impl<R> TimedReader<R> {
    /// How long the other end may be silent from now on; `None`: for ever.
    pub fn limit(&self, silence: Option<Duration>) {
        self.silence.limit(silence);
    }
}

impl<R: Read + AsFd> Read for TimedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.silence.wait(self.input.as_fd(), PollFlags::POLLIN)?;
            match self.input.read(buffer) {
                // Both directions may be one socket, which does not wait by itself.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    match read {
                        Ok(count) if count > 0 || buffer.is_empty() => {
                            self.silence.heard.fetch_add(1, Ordering::Relaxed);
                        }
                        _ => self.silence.become_first(CLOSED),
                    }
                    return read;
                }
            }
        }
    }
}

/// Sets `O_NONBLOCK`, and returns the flags before; `None` where nothing was changed: what
/// cannot be set so waits longer than it may, and nothing else.
fn stop_waiting(fd: BorrowedFd) -> Option<OFlag> {
    let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain).ok()?;
    if flags.contains(OFlag::O_NONBLOCK) {
        return None;
    }
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).ok().map(|_| flags)
}

/// The direction to the other end.
#[derive(Debug)]
pub struct TimedWriter<W: AsFd> {
    out: W,
    silence: Arc<Silence>,
    pace: Arc<Pace>,
    /// The flags that the descriptor had, where they were changed.
    flags: Option<OFlag>,
    /// The last write did not take all: the next one would not take anything.
    is_full: bool,
}

impl<W: Write + AsFd> TimedWriter<W> {
    /// Writes to a pipe, a socket or a terminal. Until this is dropped, the descriptor, and
    /// what shares it, does not wait by itself: fcntl(2), `O_NONBLOCK`. A terminal stays as
    /// it is: a shell shares it.
    pub fn new(out: W, silence: Arc<Silence>) -> TimedWriter<W> {
        let flags = if out.as_fd().is_terminal() { None } else { stop_waiting(out.as_fd()) };
        TimedWriter { out, silence, pace: Arc::default(), flags, is_full: false }
    }

    /// The same, no faster than this.
    #[must_use]
    pub fn paced(mut self, pace: &Arc<Pace>) -> TimedWriter<W> {
        self.pace = Arc::clone(pace);
        self
    }

    /// The same direction once more.
    pub fn duplicate(&self) -> io::Result<TimedWriter<File>> {
        let out = File::from(self.out.as_fd().try_clone_to_owned()?);
        let (silence, pace) = (Arc::clone(&self.silence), Arc::clone(&self.pace));
        Ok(TimedWriter { out, silence, pace, flags: None, is_full: false })
    }

    /// Sends up to `len` bytes at `at` of a file without copying them, as
    /// [`sys::send_file`].
    pub fn send_file(&mut self, from: &File, at: u64, len: usize) -> io::Result<usize> {
        let len = self.pace.piece(len);
        self.retry(len, |out| sys::send_file(from, at, out, len))
    }

    fn retry(&mut self, len: usize, mut write: impl FnMut(&mut W) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            if self.is_full {
                self.silence.wait(self.out.as_fd(), PollFlags::POLLOUT)?;
            }
            match write(&mut self.out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_full = true,
                written => {
                    self.is_full = written.as_ref().is_ok_and(|&written| written < len);
                    self.pace.wrote(*written.as_ref().unwrap_or(&0));
                    return written;
                }
            }
        }
    }
}

impl<W: AsFd> Drop for TimedWriter<W> {
    fn drop(&mut self) {
        if let Some(flags) = self.flags {
            // What took the flag keeps it where it cannot be taken back.
            let _ = fcntl(self.out.as_fd(), FcntlArg::F_SETFL(flags));
        }
    }
}

impl<W: Write + AsFd> Write for TimedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..self.pace.piece(bytes.len())];
        self.retry(bytes.len(), |out| out.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn limited(millis: u64) -> Arc<Silence> {
        let silence = Arc::<Silence>::default();
        silence.limit(Some(Duration::from_millis(millis)));
        silence
    }

    #[test]
    fn nothing_to_read_is_silence_and_ends_the_other_direction_too() {
        let silence = limited(50);
        let ((input, _held), (_unread, out)) = (io::pipe().unwrap(), io::pipe().unwrap());
        let error = TimedReader::new(input, Arc::clone(&silence)).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("0.05 s"), "{error}");
        silence.limit(None);
        let error = TimedWriter::new(out, silence).write_all(&vec![0; 1 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_write_that_moves_nothing_is_silence_unless_something_is_heard() {
        let silence = limited(1000);
        let ((input, said), (mut unread, out)) = (io::pipe().unwrap(), io::pipe().unwrap());
        let hearing = Arc::clone(&silence);
        let reader = thread::spawn(move || TimedReader::new(input, hearing).read_to_end(&mut Vec::new()));
        let writer = thread::spawn(move || {
            let mut writer = TimedWriter::new(out, silence);
            writer.write_all(&vec![7; 1 << 20]).map(|()| writer)
        });
        for _ in 0..30 {
            thread::sleep(Duration::from_millis(50));
            (&said).write_all(&[0]).unwrap();
        }
        unread.read_exact(&mut vec![0; 1 << 20]).unwrap();
        let mut writer = writer.join().unwrap().unwrap();
        assert_eq!(writer.write_all(&vec![7; 1 << 20]).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(reader.join().unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(said);
    }

    #[test]
    fn who_writes_waits_for_nobody_who_says_nothing_more() {
        let silence = Arc::<Silence>::default();
        let ((input, said), (_unread, out)) = (io::pipe().unwrap(), io::pipe().unwrap());
        drop(said);
        let mut reader = TimedReader::new(input, Arc::clone(&silence));
        assert!([0, 0].into_iter().all(|end| reader.read(&mut [0]).unwrap() == end));
        let error = TimedWriter::new(out, silence).write_all(&vec![0; 1 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_descriptor_that_others_share_is_left_as_it_was() {
        let (_unread, out) = io::pipe().unwrap();
        let waits = |shared: &io::PipeWriter| {
            !OFlag::from_bits_retain(fcntl(shared, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK)
        };
        let shared = out.try_clone().unwrap();
        let writer = TimedWriter::new(out, Arc::default());
        assert!(!waits(&shared));
        drop(writer);
        assert!(waits(&shared));
    }

    #[test]
    fn what_is_paced_comes_evenly() {
        let (mut input, out) = io::pipe().unwrap();
        let pace = Arc::<Pace>::default();
        pace.limit(Some(1 << 20));
        let mut writer = TimedWriter::new(out, Arc::default()).paced(&pace);
        let start = std::time::Instant::now();
        let writing = thread::spawn(move || writer.write_all(&vec![7; 1 << 19]));
        let (mut buffer, mut total) = (vec![0; 1 << 20], 0);
        while total < 1 << 19 {
            total += input.read(&mut buffer).unwrap();
            // A reader that waited for its turn has more to read at once.
            let due = (start.elapsed().as_secs_f64() * f64::from(1 << 20)) as usize;
            assert!(total <= due + (1 << 20) / 20, "{total} bytes, of which {due} are due");
        }
        writing.join().unwrap().unwrap();
        assert!(start.elapsed() > Duration::from_millis(480), "{:?}", start.elapsed());
    }

    #[test]
    fn a_terminal_is_not_changed() {
        let terminal = File::options().read(true).write(true).open("/dev/ptmx").unwrap();
        let shared = terminal.try_clone().unwrap();
        let _writer = TimedWriter::new(terminal, Arc::default());
        let flags = OFlag::from_bits_retain(fcntl(&shared, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn a_connection_that_is_superseded_waits_no_more() {
        let silence = Arc::<Silence>::default();
        let (input, _held) = io::pipe().unwrap();
        let mut reader = TimedReader::new(input, Arc::clone(&silence));
        let waiting = thread::spawn(move || reader.read(&mut [0]));
        silence.supersede();
        assert!(waiting.join().unwrap().unwrap_err().to_string().contains("took its place"));
    }
}
