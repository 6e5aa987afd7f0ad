//! Objects of a web server: by ranges where it has them, tried again where that may help, and in one
//! version each. What is asked of a server stands in `docs/store.md`.

pub mod address;
pub(super) mod answer;
pub(super) mod client;
pub(super) mod connection;
mod credentials;
pub(super) mod failure;
mod names;
mod proxy;
pub(super) mod roots;

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ureq::http::Uri;

use crate::error::{Error, Result, lock};
use crate::store::objects::{Objects, Served, Take, Traffic};
use address::shown;
use answer::Version;
use client::{Answer, Client, lie};
use connection::Line;
use failure::{Attempts, Failed, Limits, StopFlag};

pub use credentials::Credentials;
pub use proxy::Proxies;

/// How a web server is asked. The default knows nothing of the environment.
#[derive(Debug, Clone)]
pub struct WebOptions {
    /// A file with the certificates of the authorities that are trusted, as PEM; else those of the system,
    /// and where it has none those of Mozilla, as they were when this program was built.
    pub ca: Option<PathBuf>,
    /// Who asks, if the server of the base URL wants to know.
    pub credentials: Option<Credentials>,
    /// Where that stands, if not in `credentials`: a file as netrc(5) has it; it need not be there.
    pub netrc: Option<PathBuf>,
    /// Who is asked in the place of a server.
    pub proxies: Proxies,
    /// Bytes a second that all connections take together; `None`: any number.
    pub rate: Option<u64>,
    /// Failures in a row after which there is another attempt.
    pub retries: u32,
    /// The longest pause after the first of them; it doubles with each.
    pub backoff: Duration,
    /// The longest pause at all, whatever a server asks for.
    pub longest_wait: Duration,
    /// How long a connection may take.
    pub connect: Duration,
    /// How long an answer may take; and over this time
    pub window: Duration,
    /// so many bytes a second must come while a body is waited for.
    pub least_rate: u64,
}

impl Default for WebOptions {
    fn default() -> WebOptions {
        WebOptions {
            ca: None,
            credentials: None,
            netrc: None,
            proxies: Proxies::default(),
            rate: None,
            retries: 6,
            backoff: Duration::from_millis(500),
            longest_wait: Duration::from_secs(60),
            connect: Duration::from_secs(20),
            window: Duration::from_secs(60),
            least_rate: 100,
        }
    }
}

impl WebOptions {
    /// What the environment says: `SSL_CERT_FILE`, `HOLESYNC_TOKEN`, `HOLESYNC_USER` and
    /// `HOLESYNC_PASSWORD`, `NETRC` or `~/.netrc`, and the variables of proxies.
    ///
    /// # Errors
    ///
    /// When a proxy is none.
    pub fn from_environment() -> Result<WebOptions> {
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Ok(WebOptions {
            ca: path("SSL_CERT_FILE"),
            credentials: Credentials::from_environment(),
            netrc: path("NETRC").or_else(|| Some(path("HOME")?.join(".netrc"))),
            proxies: Proxies::from_environment()?,
            ..WebOptions::default()
        })
    }

    pub(super) fn limits(&self) -> Limits {
        let WebOptions { retries, backoff, longest_wait, connect, window, least_rate, .. } = *self;
        Limits { connect, window, least_rate, retries, backoff, longest_wait, stop: StopFlag::default() }
    }
}

/// Objects below a URL. Many threads may use it at once: each has a connection, which stays for the next
/// request.
#[derive(Debug)]
pub struct Web {
    base: Uri,
    client: Client,
    limits: Limits,
    /// The version of each object that was read, by its name and by the URL that had it.
    versions: Mutex<HashMap<String, Version>>,
}

impl Web {
    /// Those below a URL of `http` or `https`. Nothing is asked yet.
    ///
    /// # Errors
    ///
    /// When that is no such URL, or has what may be a secret in it; when the certificates or the netrc
    /// cannot be read.
    pub fn open(url: &str, options: &WebOptions) -> Result<Web> {
        let base = address::parse_base(url)?;
        let credentials = match (&options.credentials, &options.netrc) {
            (None, Some(netrc)) => Credentials::from_netrc(netrc, &address::Origin::of(&base).host)?,
            (given, _) => given.clone(),
        };
        let authorization = credentials.map(|credentials| credentials.header()).transpose()?;
        let roots = roots::read(options.ca.as_deref())?;
        let WebOptions { rate, window, least_rate, .. } = *options;
        let proxy = options.proxies.http().cloned();
        let limits = options.limits();
        let stop = limits.stop.clone();
        let line = Line { rate, least_rate, window, proxy, stop, ..Line::default() };
        line.pace.limit(rate);
        let client = Client::new(&base, authorization, roots, &options.proxies, line, limits.clone());
        Ok(Web { base, client, limits, versions: Mutex::default() })
    }

    /// Holds an object to the version of which its first bytes were. Servers that it is redirected to agree
    /// about its length, each has its own ETag of it.
    fn hold(&self, name: &str, answer: &Answer, length: Option<u64>) -> Result<(), Failed> {
        let mut versions = lock(&self.versions);
        let told = Version::of(&answer.headers, length);
        for (key, version) in [(name, Version::of_length(length)), (&answer.url, told)] {
            let held = versions.entry(key.into()).or_insert_with(|| version.clone());
            if let Some(difference) = held.difference(&version) {
                let why = format!(
                    "it was changed while it was read: {difference}; run the same command again to have the new one"
                );
                return refused(&answer.url, why);
            }
            held.learn(&version);
        }
        Ok(())
    }

    /// Reads on at `at`, which it leaves where it came to.
    fn read_on(
        &self,
        name: &str,
        uri: &Uri,
        at: &mut u64,
        end: u64,
        take: &mut Take,
    ) -> Result<Served, Failed> {
        let asked = *at..end;
        let answer = self.client.ask(uri, Some(&asked))?;
        match answer.status.as_u16() {
            200 => return Ok(Served::WholeOnly),
            206 => {}
            416 => {
                return refused(&answer.url, format!("it is too short: it has no {}", answer::bytes(&asked)));
            }
            status => return missing(&answer, status),
        }
        let (part, total) =
            answer::part(&answer.headers, &asked).map_err(|what| lie(&answer.url, format!("it {what}")))?;
        self.hold(name, &answer, total)?;
        if let Some(total) = total.filter(|total| *total < end) {
            return refused(
                &answer.url,
                format!("it is too short: it has {total} bytes, and {end} were expected"),
            );
        }
        self.client.tell(answer, part.end - part.start, true, at, take)?;
        Ok(Served::Range)
    }

    /// Reads from the beginning.
    fn begin(
        &self,
        name: &str,
        uri: &Uri,
        (length, exactly): (u64, bool),
        at: &mut u64,
        take: &mut Take,
    ) -> Result<Served, Failed> {
        let answer = self.ask_whole(uri)?;
        if answer.status.as_u16() != 200 {
            return missing(&answer, answer.status.as_u16());
        }
        let told = answer::length(&answer.headers);
        self.hold(name, &answer, told)?;
        let is_other = |told: &u64| if exactly { *told != length } else { *told < length };
        if let Some(told) = told.filter(is_other) {
            return refused(&answer.url, format!("it has {told} bytes, and {length} were expected"));
        }
        self.client.tell(answer, length, told.map_or(exactly, |told| told == length), at, take)?;
        Ok(Served::Range)
    }

    fn ask_whole(&self, uri: &Uri) -> Result<Answer, Failed> {
        let answer = self.client.ask(uri, None)?;
        match answer.status.as_u16() {
            206 | 416 => Err(lie(&answer.url, "it answers with a part to who asked for all".into())),
            _ => Ok(answer),
        }
    }

    fn try_to_get(&self, uri: &Uri, most: u64) -> Result<Option<Vec<u8>>, Failed> {
        let answer = self.ask_whole(uri)?;
        if answer.status.as_u16() != 200 {
            return Ok(None);
        }
        let (url, told) = (answer.url.clone(), answer::length(&answer.headers));
        let too_long = || Err(lie(&url, format!("it is longer than {most} bytes")));
        if told.is_some_and(|told| told > most) {
            return too_long();
        }
        self.client.read(answer, most)?.map_or_else(too_long, |bytes| Ok(Some(bytes)))
    }

    /// Does it until all is told. `once` leaves `at` where it came to.
    fn tell_all(
        &self,
        uri: &Uri,
        range: Range<u64>,
        mut once: impl FnMut(&mut u64) -> Result<Served, Failed>,
    ) -> Result<Served> {
        let mut at = range.start;
        let mut attempts = Attempts::new(&self.limits);
        loop {
            let before = at;
            let failed = match once(&mut at) {
                Ok(Served::WholeOnly) => return Ok(Served::WholeOnly),
                Ok(Served::Range) if at == range.end => return Ok(Served::Range),
                // A server may give less than it was asked for.
                Ok(Served::Range) => {
                    self.limits.passing(&shown(uri), "it gives less than is asked for".into(), None)
                }
                Err(failed) => failed,
            };
            attempts.failed(failed, at - before)?;
        }
    }
}

fn refused<T>(url: &str, why: String) -> Result<T, Failed> {
    Err(Failed::Lasting(Error::refused(url, why)))
}

fn missing<T>(answer: &Answer, status: u16) -> Result<T, Failed> {
    refused(&answer.url, format!("it is not there ({status})"))
}

impl Objects for Web {
    fn stop(&self) {
        self.limits.stop.set();
    }

    fn traffic(&self) -> Traffic {
        let Client { requests, bytes, line, .. } = &self.client;
        let [requests, bytes, received, sent] =
            [requests, bytes, &line.received, &line.sent].map(|count| count.load(Ordering::Relaxed));
        Traffic { requests, bytes, received, sent }
    }

    fn address(&self, name: &str) -> String {
        address::of_object(&self.base, name).map_or_else(|_| shown(&self.base), |uri| shown(&uri))
    }

    fn get(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let uri = address::of_object(&self.base, name)?;
        let mut attempts = Attempts::new(&self.limits);
        loop {
            match self.try_to_get(&uri, most) {
                Ok(got) => return Ok(got),
                Err(failed) => attempts.failed(failed, 0)?,
            }
        }
    }

    fn read(&self, name: &str, range: Range<u64>, take: &mut Take) -> Result<Served> {
        let uri = address::of_object(&self.base, name)?;
        if range.is_empty() {
            return Ok(Served::Range);
        }
        let (start, end) = (range.start, range.end);
        self.tell_all(&uri, range, |at| match self.read_on(name, &uri, at, end, take)? {
            Served::WholeOnly if *at > start => Err(no_more_ranges(&uri, *at)),
            served => Ok(served),
        })
    }

    fn read_whole(&self, name: &str, length: u64, take: &mut Take) -> Result<()> {
        self.read_from_start(name, (length, true), take)
    }

    fn read_front(&self, name: &str, length: u64, take: &mut Take) -> Result<()> {
        self.read_from_start(name, (length, false), take)
    }
}

impl Web {
    /// By a request for all; `exactly`: the object has no more bytes.
    fn read_from_start(&self, name: &str, (length, exactly): (u64, bool), take: &mut Take) -> Result<()> {
        let uri = address::of_object(&self.base, name)?;
        let told = self.tell_all(&uri, 0..length, |at| match *at {
            0 => self.begin(name, &uri, (length, exactly), at, take),
            _ => match self.read_on(name, &uri, at, length, take)? {
                Served::WholeOnly => Err(no_more_ranges(&uri, *at)),
                served => Ok(served),
            },
        });
        told.map(drop)
    }
}

/// What was told is not told again.
fn no_more_ranges(uri: &Uri, at: u64) -> Failed {
    let why =
        format!("the connection broke at byte {at}, and the server gives no ranges to go on from there");
    Failed::Lasting(failure::link(&shown(uri), std::io::Error::other(why)))
}
