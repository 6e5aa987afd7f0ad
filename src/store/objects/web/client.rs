//! One request and its answer: redirects, who is told a password, what a status means, and whether
//! asking again may help.

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ureq::http::header::{AUTHORIZATION, LOCATION, RANGE};
use ureq::http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, RustlsConnector};
use ureq::{Agent, Body, Proxy};

use super::address::{Origin, follow, is_secure, shown};
use super::answer;
use super::connection::{Dial, HEADER, Line, WatchedBody};
use super::failure::{Failed, Limits};
use super::names::Names;
use super::proxy::Proxies;
use crate::error::{Error, escape};
use crate::store::objects::Take;

/// As many redirects are followed.
const REDIRECTS: usize = 10;
/// Connections that are kept for the next request.
const KEPT: usize = 32;
/// How long they are.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// What is read of a body that nobody wants, so that its connection can be used again.
const UNWANTED: u64 = 64 << 10;
/// Bytes that are read at a time.
const PIECE: u64 = 64 << 10;

/// An answer of which the body was not read yet.
pub struct Answer {
    /// Who gave it, for messages.
    pub url: String,
    /// 200, 206, 404, 410 or 416.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    body: Body,
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    /// For `http`.
    plain: Agent,
    /// For `https`.
    secure: Agent,
    /// Who is told the credentials.
    origin: Origin,
    authorization: Option<HeaderValue>,
    limits: Limits,
    /// What all connections share.
    pub line: Arc<Line>,
    /// Requests that were made.
    pub requests: AtomicU64,
    /// Bytes of bodies that came.
    pub bytes: AtomicU64,
    /// Whether anybody ever answered.
    answered: AtomicBool,
}

impl Client {
    /// Nothing is asked yet. The credentials are for `base` alone.
    pub fn new(
        base: &Uri,
        authorization: Option<HeaderValue>,
        roots: RootCerts,
        proxies: &Proxies,
        line: Line,
        limits: Limits,
    ) -> Client {
        let line = Arc::new(line);
        let plain = agent(&line, &limits, &roots, None);
        let secure = agent(&line, &limits, &roots, proxies.https());
        let origin = Origin::of(base);
        let (requests, bytes, answered) = Default::default();
        Client { plain, secure, origin, authorization, limits, line, requests, bytes, answered }
    }

    /// Asks for an object or a part of it. Other answers than those of [`Answer`] are failures.
    pub fn ask(&self, object: &Uri, range: Option<&Range<u64>>) -> Result<Answer, Failed> {
        let mut uri = object.clone();
        for _ in 0..=REDIRECTS {
            let answer = self.ask_once(&uri, range)?;
            if !is_redirect(answer.status) {
                return self.judge(answer, &uri);
            }
            let location =
                answer.headers.get(LOCATION).map(|value| value.as_bytes().to_vec()).unwrap_or_default();
            let told = String::from_utf8_lossy(&location);
            let to = follow(&uri, &told).filter(|_| !location.is_empty()).ok_or_else(|| {
                let status = answer.status.as_u16();
                lie(
                    &answer.url,
                    format!("it redirects ({status}) to no URL of http or https, or to one with a password"),
                )
            })?;
            if is_secure(&uri) && !is_secure(&to) {
                let why = format!(
                    "it redirects from https to {}, where anybody on the way reads and changes what comes: it was \
                     not asked there",
                    shown(&to)
                );
                return Err(lie(&answer.url, why));
            }
            discard(answer.body);
            uri = to;
        }
        Err(lie(
            &shown(object),
            format!("it redirects without an end: {REDIRECTS} times, at last to {}", shown(&uri)),
        ))
    }

    fn ask_once(&self, uri: &Uri, range: Option<&Range<u64>>) -> Result<Answer, Failed> {
        let url = shown(uri);
        self.limits.go_on().map_err(Failed::Lasting)?;
        let mut request = Request::get(uri.clone());
        if let Some(range) = range {
            request = request.header(RANGE, answer::bytes(range));
        }
        if let Some(authorization) = self.authorization_for(uri) {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let request =
            request.body(()).map_err(|error| Failed::Lasting(Error::Usage(format!("{url}: {error}"))))?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let agent = if is_secure(uri) { &self.secure } else { &self.plain };
        let answered = self.answered.load(Ordering::Relaxed);
        let response = agent.run(request).map_err(|error| self.limits.of_request(error, &url, answered))?;
        self.answered.store(true, Ordering::Relaxed);
        let (parts, body) = response.into_parts();
        Ok(Answer { url, status: parts.status, headers: parts.headers, body })
    }

    fn authorization_for(&self, uri: &Uri) -> Option<&HeaderValue> {
        self.authorization.as_ref().filter(|_| Origin::of(uri) == self.origin)
    }

    /// What a status means.
    fn judge(&self, answer: Answer, uri: &Uri) -> Result<Answer, Failed> {
        let Answer { url, status, headers, .. } = &answer;
        let refused = |why: String| Err(Failed::Lasting(Error::refused(url, why)));
        let name = format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
        let name = name.trim_end();
        match status.as_u16() {
            200 | 206 => match answer::encoding(headers) {
                Some(encoding) => Err(lie(
                    url,
                    format!("it sends its body in the encoding {encoding}, which was not asked for"),
                )),
                None => Ok(answer),
            },
            404 | 410 | 416 => Ok(answer),
            401 | 403 => {
                refused(format!("the server does not let it be read ({name}){}", self.about_credentials(uri)))
            }
            407 => refused(format!(
                "the proxy wants to know who asks ({name}): write http://USER:PASSWORD@HOST:PORT into http_proxy or \
                 https_proxy"
            )),
            408 | 429 | 500..=599 => {
                let wait = answer::wait(headers);
                let failed = self.limits.passing(url, format!("the server answered {name}"), wait);
                discard(answer.body);
                Err(failed)
            }
            _ => refused(format!("the server answered {name}, which is no answer to what was asked")),
        }
    }

    fn about_credentials(&self, uri: &Uri) -> &'static str {
        match (&self.authorization, self.authorization_for(uri)) {
            (_, Some(_)) => {
                ": it was told who asks, so the token or the password may be wrong or of somebody without that right; an \
                 object store says so also of what is not there"
            }
            (Some(_), None) => {
                ": it lies elsewhere than what was asked for, and credentials are told to nobody else"
            }
            (None, None) => {
                ": put \"machine HOST login USER password PASSWORD\" into ~/.netrc, or set HOLESYNC_TOKEN, or HOLESYNC_USER \
                 and HOLESYNC_PASSWORD; an object store says so also of what is not there"
            }
        }
    }

    /// Tells the first `length` bytes of the body, which `is_all` of it; `told` counts them.
    pub fn tell(
        &self,
        answer: Answer,
        length: u64,
        is_all: bool,
        told: &mut u64,
        take: &mut Take,
    ) -> Result<(), Failed> {
        let Answer { url, body, .. } = answer;
        let mut reader = WatchedBody(body.into_with_config().limit(u64::MAX).reader());
        let mut piece = vec![0; usize::try_from(length.clamp(1, PIECE)).unwrap_or(1)];
        let mut left = length;
        while left > 0 {
            self.limits.go_on().map_err(Failed::Lasting)?;
            let most = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = reader.read(&mut piece[..most]).map_err(|error| self.limits.of_body(error, &url))?;
            if read == 0 {
                return Err(self.limits.passing(&url, format!("the body ended {left} bytes early"), None));
            }
            self.bytes.fetch_add(read as u64, Ordering::Relaxed);
            take(&piece[..read]).map_err(Failed::Lasting)?;
            *told += read as u64;
            left -= read as u64;
        }
        if !is_all {
            return Ok(());
        }
        // Its end is read as well, or the connection could not be used again. All is there, whatever that says.
        match reader.read(&mut piece[..1]) {
            Ok(1) => Err(lie(&url, "its body goes on beyond its end".into())),
            _ => Ok(()),
        }
    }

    /// All of a body of at most `most` bytes; `None`: it is longer.
    pub fn read(&self, answer: Answer, most: u64) -> Result<Option<Vec<u8>>, Failed> {
        let Answer { url, body, .. } = answer;
        let mut bytes = Vec::new();
        let reader = WatchedBody(body.into_with_config().limit(u64::MAX).reader());
        let read = reader.take(most.saturating_add(1)).read_to_end(&mut bytes);
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        read.map_err(|error| self.limits.of_body(error, &url))?;
        Ok((bytes.len() as u64 <= most).then_some(bytes))
    }
}

/// Makes requests, and gives whatever answer comes. `proxy`: who passes them on; those for `http` that are made
/// to a proxy are the business of the line.
pub fn agent(line: &Arc<Line>, limits: &Limits, roots: &RootCerts, proxy: Option<&Proxy>) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .user_agent(concat!("holesync/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .proxy(proxy.cloned())
        .tls_config(TlsConfig::builder().root_certs(roots.clone()).build())
        .max_response_header_size(HEADER)
        .max_idle_connections(KEPT)
        .max_idle_connections_per_host(KEPT)
        .max_idle_age(KEPT_FOR)
        .timeout_resolve(Some(limits.connect))
        .timeout_connect(Some(limits.connect))
        .timeout_send_request(Some(limits.window))
        .timeout_recv_response(Some(limits.window))
        .build();
    let connector = ().chain(ConnectProxyConnector::default()).chain(Dial(Arc::clone(line)));
    let connector = connector.chain(RustlsConnector::default());
    Agent::with_parts(config, connector, Names::new(Arc::clone(line)))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// What no server may say.
pub fn lie(url: &str, what: String) -> Failed {
    Failed::Lasting(Error::Protocol { peer: url.into(), what: escape(what.as_bytes()) })
}

/// Reads what nobody wants, if it is little.
pub fn discard(body: Body) {
    // Else its connection is closed, and that is all.
    let mut reader = WatchedBody(body.into_with_config().limit(UNWANTED).reader());
    let _ = std::io::copy(&mut reader, &mut std::io::sink());
}
