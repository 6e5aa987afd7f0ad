//! Connections to servers, below TLS: bytes are counted, kept to a rate, and waited for no longer than
//! is allowed, nor than until somebody interrupts.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::RcvBuf};
use ureq::http::Uri;
use ureq::unversioned::resolver::ResolvedSocketAddrs;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Error, Proxy, Timeout};

use super::credentials::basic;
use super::failure::StopFlag;
use crate::protocol::Pace;

/// How long is waited before somebody looks whether to go on waiting.
pub const SLICE: Duration = Duration::from_millis(200);
/// Bytes that are read at a time, where no rate wants fewer.
const INPUT: usize = 64 << 10;
/// More than any request has.
const OUTPUT: usize = 16 << 10;
/// The longest header of an answer: the smallest buffer for input holds it.
pub const HEADER: usize = (16 << 10) - 1;
/// More than anybody waits for a connection.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long nothing of a request may be taken in.
const SENDING: Duration = Duration::from_secs(30);

/// Bytes that may come without a byte of a body: a header, and what TLS says before, but no trailers without
/// an end.
const BARREN: u64 = 256 << 10;

thread_local! {
    /// Bytes that came since the last of a body, for the request that this thread waits for.
    static BARE: Cell<u64> = const { Cell::new(0) };
}

/// The body of an answer, which has to come with what comes.
pub struct WatchedBody<R>(pub R);

impl<R: Read> Read for WatchedBody<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(into)?;
        if read > 0 {
            BARE.set(0);
        }
        Ok(read)
    }
}

/// How requests begin.
const METHODS: [&[u8]; 5] = [b"GET ", b"HEAD ", b"PUT ", b"POST ", b"DELETE "];

/// What all connections share.
#[derive(Debug, Default)]
pub struct Line {
    /// The rate that they keep to together.
    pub pace: Pace,
    /// That rate, in bytes a second.
    pub rate: Option<u64>,
    /// What a server must send at the least while it is waited for, in bytes a second,
    pub least_rate: u64,
    /// over this time.
    pub window: Duration,
    /// Who is asked for `http` URLs in the place of their servers.
    pub proxy: Option<Proxy>,
    /// Bytes that came over connections, TLS and headers included.
    pub received: AtomicU64,
    /// Bytes that went.
    pub sent: AtomicU64,
    /// Ends all waiting.
    pub stop: StopFlag,
}

impl Line {
    /// So many bytes came or went: keeps to the rate.
    fn passed(&self, bytes: usize) {
        self.stop.pause(self.pace.due(bytes));
    }

    /// Who is asked for a URL in the place of its server.
    pub fn proxy_for(&self, uri: &Uri) -> Option<&Proxy> {
        let plain = !super::address::is_secure(uri);
        self.proxy.as_ref().filter(|proxy| plain && !proxy.is_no_proxy(uri))
    }

    fn input(&self) -> usize {
        self.rate.map_or(INPUT, |rate| usize::try_from(rate / 20).unwrap_or(INPUT).clamp(HEADER + 1, INPUT))
    }
}

/// Makes connections.
#[derive(Debug)]
pub struct Dial(pub Arc<Line>);

impl<In: Transport> Connector<In> for Dial {
    type Out = Either<In, Wire>;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        if let Some(chained) = chained {
            // Through a proxy, which was reached in this way.
            return Ok(Some(Either::A(chained)));
        }
        let line = Arc::clone(&self.0);
        let stream = reach(&details.addrs, details.timeout, &line.stop)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SLICE))?;
        stream.set_write_timeout(Some(SLICE))?;
        if let Some(rate) = line.rate {
            // What the system takes in ahead is a burst as well.
            let bytes = usize::try_from(rate / 8).unwrap_or(INPUT).clamp(8 << 10, 4 << 20);
            setsockopt(&stream, RcvBuf, &bytes).map_err(io::Error::from)?;
        }
        let through = line.proxy_for(details.uri).map(|proxy| Through::new(proxy, details.uri));
        let buffers = LazyBuffers::new(line.input(), OUTPUT);
        Ok(Some(Either::B(Wire {
            line,
            stream,
            buffers,
            through,
            asks: true,
            waited: Duration::ZERO,
            came: 0,
        })))
    }
}

/// Connects to the first of these that answers.
fn reach(addresses: &ResolvedSocketAddrs, timeout: NextTimeout, stop: &StopFlag) -> Result<TcpStream, Error> {
    let end = Instant::now() + LONGEST.min(*timeout.after);
    let mut last = Error::HostNotFound;
    for (at, address) in addresses.iter().enumerate() {
        let left = end.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - at).unwrap_or(1);
        if share.is_zero() {
            return Err(Error::Timeout(timeout.reason));
        }
        match reach_one(*address, share, stop) {
            Err(_) if stop.is_set() => return Err(interrupted()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => last = Error::Timeout(timeout.reason),
            Err(error) => last = Error::Io(error),
            Ok(stream) => return Ok(stream),
        }
    }
    Err(last)
}

fn reach_one(address: SocketAddr, within: Duration, stop: &StopFlag) -> io::Result<TcpStream> {
    elsewhere(move || TcpStream::connect_timeout(&address, within), within + SLICE, stop)
}

/// Does what cannot be interrupted in a thread of its own, and leaves it behind when its time is over.
pub fn elsewhere<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
    within: Duration,
    stop: &StopFlag,
) -> io::Result<T> {
    let end = Instant::now() + within;
    let (done, result) = mpsc::sync_channel(1);
    // Nobody waits any more where the result cannot be handed over.
    thread::Builder::new().spawn(move || drop(done.send(work())))?;
    loop {
        match result.recv_timeout(SLICE) {
            Ok(result) => return result,
            Err(_) if stop.is_set() => return Err(io::Error::other("interrupted")),
            Err(_) if Instant::now() >= end => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => {}
        }
    }
}

fn interrupted() -> Error {
    // Not the kind of that name: that is tried again at once.
    Error::Io(io::Error::other("interrupted"))
}

/// What a proxy for `http` wants to know with each request: RFC 9112, 3.2.2.
struct Through {
    origin: String,
    authorization: String,
}

impl Through {
    fn new(proxy: &Proxy, target: &Uri) -> Through {
        let authority = target.authority().map_or("", |authority| authority.as_str());
        let authorization = proxy.username().map_or(String::new(), |user| {
            let value = basic(user, proxy.password().unwrap_or_default());
            format!("Proxy-Authorization: {value}\r\n")
        });
        Through { origin: format!("http://{authority}"), authorization }
    }

    /// A request of `/path` as it is made to a proxy.
    fn rewrite(&self, request: &[u8]) -> Vec<u8> {
        let line = request.windows(2).position(|two| two == b"\r\n").map_or(request.len(), |at| at + 2);
        let (first, rest) = request.split_at(line);
        let method = METHODS.iter().find(|method| first.starts_with(method));
        let Some(method) = method.filter(|_| first.ends_with(b" HTTP/1.1\r\n")) else {
            return request.to_vec();
        };
        let (method, path) = first.split_at(method.len());
        [method, self.origin.as_bytes(), path, self.authorization.as_bytes(), rest].concat()
    }
}

/// One connection.
pub struct Wire {
    line: Arc<Line>,
    stream: TcpStream,
    buffers: LazyBuffers,
    through: Option<Through>,
    /// Whether what is sent next begins a request.
    asks: bool,
    /// How long the server was waited for since the window began,
    waited: Duration,
    /// and the bytes that came meanwhile.
    came: u64,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl Wire {
    /// Whether the server is too slow: what it sends is as good as nothing.
    fn check_rate(&mut self) -> Result<(), Error> {
        if self.waited < self.line.window {
            return Ok(());
        }
        let least = self.line.least_rate.max(1) as f64 * self.waited.as_secs_f64();
        if (self.came as f64) < least {
            return Err(Error::Timeout(Timeout::PerRead));
        }
        (self.waited, self.came) = (Duration::ZERO, 0);
        Ok(())
    }

    fn took(&mut self, bytes: usize) -> Result<bool, Error> {
        self.buffers.input_appended(bytes);
        self.line.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.line.passed(bytes);
        self.came += bytes as u64;
        self.asks = true;
        BARE.set(BARE.get().saturating_add(bytes as u64));
        if BARE.get() > BARREN {
            return Err(Error::Io(io::Error::new(io::ErrorKind::FileTooLarge, "no body comes")));
        }
        self.check_rate()?;
        Ok(bytes > 0)
    }
}

impl Transport for Wire {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let output = &self.buffers.output()[..amount];
        let through = self.through.as_ref().filter(|_| self.asks);
        let rewritten = through.map(|through| through.rewrite(output));
        let output = rewritten.as_deref().unwrap_or(output);
        send(&mut &self.stream, &self.line, output, timeout)?;
        self.asks = false;
        BARE.set(0);
        (self.waited, self.came) = (Duration::ZERO, 0);
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let begun = Instant::now();
        loop {
            // Also where there is always something to read.
            if begun.elapsed() >= *timeout.after {
                return Err(Error::Timeout(timeout.reason));
            }
            let started = Instant::now();
            let buffer = self.buffers.input_append_buf();
            let most = self.line.pace.piece(buffer.len());
            let read = self.stream.read(&mut buffer[..most]);
            self.waited += started.elapsed();
            match read {
                Ok(bytes) => return self.took(bytes),
                Err(error) if has_timed_out(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Io(error)),
            }
            if self.line.stop.is_set() {
                return Err(interrupted());
            }
            self.check_rate()?;
        }
    }

    fn is_open(&mut self) -> bool {
        let probe = || -> io::Result<bool> {
            self.stream.set_nonblocking(true)?;
            let peeked = self.stream.peek(&mut [0]);
            self.stream.set_nonblocking(false)?;
            // What was not asked for is no good sign, nor is the end.
            Ok(peeked.is_err_and(|error| has_timed_out(&error)))
        };
        probe().unwrap_or(false)
    }
}

/// Sends all of it, in pieces that keep to the rate.
fn send(to: &mut impl Write, line: &Line, output: &[u8], timeout: NextTimeout) -> Result<(), Error> {
    let mut left = output;
    let mut progress = Instant::now();
    while !left.is_empty() {
        if line.stop.is_set() {
            return Err(interrupted());
        }
        match to.write(&left[..line.pace.piece(left.len())]) {
            Ok(0) => return Err(Error::Io(io::ErrorKind::WriteZero.into())),
            Ok(bytes) => {
                line.sent.fetch_add(bytes as u64, Ordering::Relaxed);
                line.passed(bytes);
                left = &left[bytes..];
                progress = Instant::now();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if !has_timed_out(&error) => return Err(Error::Io(error)),
            Err(_) if progress.elapsed() >= SENDING => return Err(Error::Timeout(timeout.reason)),
            Err(_) => {}
        }
    }
    Ok(())
}

fn has_timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_no_longer_than_an_answer_is_wanted() {
        let line = Line::default();
        line.pace.limit(Some(1));
        line.stop.set();
        // An hour.
        line.passed(3600);
    }

    #[test]
    fn a_proxy_is_asked_for_the_whole_url() {
        let proxy = Proxy::new("http://u:p@proxy:3128").unwrap();
        let through = Through::new(&proxy, &"http://h:81/x".parse().unwrap());
        let asked = through.rewrite(b"GET /x?y HTTP/1.1\r\nHost: h:81\r\n\r\n");
        let expected =
            "GET http://h:81/x?y HTTP/1.1\r\nProxy-Authorization: Basic dTpw\r\nHost: h:81\r\n\r\n";
        assert_eq!(String::from_utf8_lossy(&asked), expected);
        let asked = through.rewrite(b"PUT /x HTTP/1.1\r\n\r\n");
        assert!(asked.starts_with(b"PUT http://h:81/x HTTP/1.1\r\n"));
        for other in [&b"\r\n"[..], b"PUT /x is no request"] {
            assert_eq!(through.rewrite(other), other);
        }
    }
}
