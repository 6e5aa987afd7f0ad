//! What failed, and whether it is tried again: how often, and how long after.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ureq::Timeout;

use super::client::lie;
use super::connection::SLICE;
use crate::error::{Again, Error, Result, escape, in_words};
use crate::remote;

/// What is being done, for messages.
const READING: &str = "reading from it";
/// So many bytes more make the next failure a first one.
const PROGRESS: u64 = 64 << 10;

/// Why there is no answer, or not all of it.
#[derive(Debug)]
pub enum Failed {
    /// It may go better next time.
    Passing {
        /// What is told where it does not.
        error: Error,
        /// How long the server wants to be left alone.
        wait: Option<Duration>,
    },
    /// It would not.
    Lasting(Error),
}

/// Whether nobody wants answers any more: somebody has interrupted, or what they were for has failed.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// From now on nobody does.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether that is so.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) || remote::is_interrupted()
    }

    /// Waits, in slices: no longer than until it is set.
    pub fn pause(&self, time: Duration) {
        let start = Instant::now();
        while !self.is_set()
            && let left = time.saturating_sub(start.elapsed())
            && !left.is_zero()
        {
            thread::sleep(left.min(SLICE));
        }
    }
}

/// How long somebody is waited for, and how often.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For a connection.
    pub connect: Duration,
    /// For an answer, and for as many bytes of a body
    pub window: Duration,
    /// as this makes: bytes a second.
    pub least_rate: u64,
    /// After so many failures in a row there is no other attempt.
    pub retries: u32,
    /// The longest pause after the first of them; it doubles with each.
    pub backoff: Duration,
    /// The longest pause at all.
    pub longest_wait: Duration,
    /// Ends all waiting.
    pub stop: StopFlag,
}

impl Limits {
    /// Whether an answer is wanted still.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`].
    pub fn go_on(&self) -> Result<()> {
        if self.stop.is_set() { Err(Error::Interrupted(Again::Fetches)) } else { Ok(()) }
    }

    /// A failure that may pass.
    pub fn passing(&self, url: &str, why: String, wait: Option<Duration>) -> Failed {
        Failed::Passing { error: link(url, io::Error::other(why)), wait }
    }

    /// Why a request got no answer. `answered`: an earlier one did.
    pub fn of_request(&self, error: ureq::Error, url: &str, answered: bool) -> Failed {
        use ureq::Error::*;
        match error {
            Protocol(error) => lie(url, format!("its answer is not HTTP: {error}")),
            LargeResponseHeader(..) => lie(url, "the header of its answer is too long".into()),
            // What an earlier request had may be away for a moment; a name that is wrong is wrong.
            HostNotFound if !answered => {
                let why = "there is no host of this name, or no name service that knows it";
                Failed::Lasting(link(url, io::Error::new(io::ErrorKind::NotFound, why)))
            }
            // Nothing came of the answer, or too little.
            Timeout(ureq::Timeout::PerRead) => self.of_any(Timeout(ureq::Timeout::RecvResponse), url),
            error => self.of_any(error, url),
        }
    }

    /// Why a body broke off.
    pub fn of_body(&self, error: io::Error, url: &str) -> Failed {
        self.of_any(error.into(), url)
    }

    fn of_any(&self, error: ureq::Error, url: &str) -> Failed {
        if let Err(interrupted) = self.go_on() {
            return Failed::Lasting(interrupted);
        }
        let passing = |error| Failed::Passing { error, wait: None };
        let named = |name: &str| link(url, io::Error::other(name));
        match error {
            ureq::Error::Timeout(which) => passing(self.timeout(which, url)),
            // TLS: a certificate that is not trusted, or somebody who speaks something else.
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                Failed::Lasting(link(url, about_tls(&error.to_string())))
            }
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                lie(url, "its answer goes on, and no more of a body comes".into())
            }
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                passing(link(url, io::Error::new(error.kind(), "the server closed the connection too early")))
            }
            ureq::Error::Io(error) => passing(link(url, error)),
            ureq::Error::HostNotFound => passing(named("no name service knows its host any more")),
            ureq::Error::ConnectionFailed | ureq::Error::BodyStalled => {
                passing(named("the connection failed"))
            }
            ureq::Error::ConnectProxyFailed(why) => {
                passing(named(&format!("the proxy did not connect: {}", escape(why.as_bytes()))))
            }
            ureq::Error::Protocol(error) => passing(named(&format!("the body is broken: {error}"))),
            error @ (ureq::Error::Rustls(_) | ureq::Error::Tls(_)) => {
                Failed::Lasting(link(url, about_tls(&error.to_string())))
            }
            error => Failed::Lasting(named(&escape(error.to_string().as_bytes()))),
        }
    }

    fn timeout(&self, which: Timeout, url: &str) -> Error {
        let Limits { connect, window, least_rate, .. } = self;
        let why = match which {
            Timeout::PerRead => format!("less than {least_rate} bytes a second came for {window:?}"),
            Timeout::Connect | Timeout::Resolve => format!("there was no connection within {connect:?}"),
            _ => format!("there was no answer within {window:?}"),
        };
        let source = io::Error::new(io::ErrorKind::TimedOut, why);
        Error::Timeout { doing: READING, peer: url.into(), source, again: Again::Fetches }
    }
}

/// A connection that failed.
pub fn link(url: &str, source: io::Error) -> Error {
    Error::Link { doing: READING, peer: url.into(), source, again: Again::Fetches }
}

fn about_tls(error: &str) -> io::Error {
    let text = format!(
        "{}; a server with a certificate of an authority of its own needs the file with that authority's: \
         SSL_CERT_FILE names one",
        escape(error.as_bytes())
    );
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Attempts to do one thing.
#[derive(Debug)]
pub struct Attempts<'a> {
    limits: &'a Limits,
    /// Those in a row that came to nothing.
    failures: u32,
}

impl<'a> Attempts<'a> {
    /// None was made yet.
    pub fn new(limits: &'a Limits) -> Attempts<'a> {
        Attempts { limits, failures: 0 }
    }

    /// One failed, after so many bytes: waits until it is time for another.
    ///
    /// # Errors
    ///
    /// When there is no sense in another one.
    pub fn failed(&mut self, failed: Failed, bytes: u64) -> Result<()> {
        let (error, wait) = match failed {
            Failed::Lasting(error) => return Err(error),
            Failed::Passing { error, wait } => (error, wait),
        };
        if bytes >= PROGRESS {
            self.failures = 0;
        }
        if self.failures >= self.limits.retries {
            return Err(times(error, self.failures + 1));
        }
        let &Limits { backoff, longest_wait, .. } = self.limits;
        let most = backoff.saturating_mul(2u32.saturating_pow(self.failures)).min(longest_wait);
        self.failures += 1;
        // Many hosts that failed together come back one by one.
        self.limits.stop.pause(wait.unwrap_or_default().min(longest_wait) + most.mul_f64(random()));
        self.limits.go_on()
    }
}

/// From 0 to 1.
fn random() -> f64 {
    // Without chance the longest pause is as good.
    getrandom::u32().map_or(1.0, |number| f64::from(number) / f64::from(u32::MAX))
}

fn times(mut error: Error, times: u32) -> Error {
    if let Error::Link { source, .. } | Error::Timeout { source, .. } = &mut error
        && times > 1
    {
        *source = io::Error::new(source.kind(), format!("{}, {times} times in a row", in_words(source)));
    }
    error
}
