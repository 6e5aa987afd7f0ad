//! What `object_store` asks, asked by the client that asks web servers, too. Everything is waited for in
//! the thread that polls: each of them runs the futures of its own call to their end.

use std::fmt;
use std::future::{Future, ready};
use std::io::{self, Read};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use object_store::{ClientConfigKey, ClientOptions};
use ureq::http::header::{CONTENT_LENGTH, EXPECT, RANGE};
use ureq::http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use ureq::tls::RootCerts;
use ureq::{Agent, BodyReader, SendBody};

use super::failure::{Answered, Cause};
use crate::store::objects::Traffic;
use crate::store::objects::web::client::agent;
use crate::store::objects::web::connection::{Line, WatchedBody};
use crate::store::objects::web::failure::Limits;
use crate::store::objects::{Proxies, WebOptions};

/// Bytes of an object that are read at a time.
const PIECE: usize = 64 << 10;
/// The longest answer that is no object: a list of a thousand names.
const LONGEST: u64 = 16 << 20;
/// A body of so many bytes is not sent before the server wants it.
const LARGE: usize = 1 << 20;
/// Who tells the keys of this machine is on it, or nowhere.
const METADATA: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Clone)]
pub struct Wire(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// For `http`.
    plain: Agent,
    /// For `https`.
    secure: Agent,
    /// For who tells the keys of this machine.
    metadata: Agent,
    /// Whether that may be in the old way.
    old_metadata: bool,
    line: Arc<Line>,
    requests: AtomicU64,
    bytes: Arc<AtomicU64>,
    /// Whether anybody ever answered.
    answered: AtomicBool,
}

impl Wire {
    /// Nothing is asked yet.
    pub fn new(options: &WebOptions, limits: &Limits, roots: &RootCerts, old_metadata: bool) -> Wire {
        let proxy = options.proxies.http().cloned();
        let WebOptions { rate, least_rate, window, .. } = *options;
        let stop = limits.stop.clone();
        let line = Line { rate, least_rate, window, proxy, stop: stop.clone(), ..Line::default() };
        let line = Arc::new(line);
        line.pace.limit(rate);
        let near = Limits { connect: METADATA, window: METADATA * 2, ..limits.clone() };
        let near_line = Arc::new(Line { least_rate, window: METADATA * 2, stop, ..Line::default() });
        Wire(Arc::new(Shared {
            plain: agent(&line, limits, roots, None),
            secure: agent(&line, limits, roots, Proxies::https(&options.proxies)),
            metadata: agent(&near_line, &near, roots, None),
            old_metadata,
            line,
            requests: AtomicU64::new(0),
            bytes: Arc::default(),
            answered: AtomicBool::new(false),
        }))
    }

    /// What was asked so far, and what came.
    pub fn traffic(&self) -> Traffic {
        let Shared { requests, bytes, line, .. } = &*self.0;
        let [requests, bytes, received, sent] =
            [requests, bytes, &line.received, &line.sent].map(|count| count.load(Ordering::Relaxed));
        Traffic { requests, bytes, received, sent }
    }

    /// Whether anybody ever answered.
    pub fn has_answered(&self) -> bool {
        self.0.answered.load(Ordering::Relaxed)
    }

    fn ask(&self, request: HttpRequest, of_metadata: bool) -> Result<HttpResponse, HttpError> {
        let (mut parts, body) = request.into_parts();
        let Shared { plain, secure, metadata, line, requests, .. } = &*self.0;
        let of_metadata = of_metadata || is_near(&parts.uri);
        let agent = match parts.uri.scheme_str() {
            _ if of_metadata => metadata,
            Some("https") => secure,
            _ => plain,
        };
        let is_object = parts.method == Method::GET && parts.uri.query().is_none();
        let part = parts.headers.contains_key(RANGE);
        requests.fetch_add(1, Ordering::Relaxed);
        let answer = if parts.method == Method::PUT || parts.method == Method::POST {
            let length = body.content_length();
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
            if length >= LARGE && line.proxy_for(&parts.uri).is_none() {
                parts.headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
            }
            let mut chunks = Chunks(body, Bytes::new());
            agent.run(Request::from_parts(parts, SendBody::from_reader(&mut chunks)))
        } else {
            agent.run(Request::from_parts(parts, ()))
        };
        let answer = answer.map_err(|error| match error {
            error if of_metadata => Cause::NobodyAsks(error.to_string()).into_error(),
            error => Cause::Request(error).into_error(),
        })?;
        self.judge(answer, is_object, part, of_metadata)
    }

    fn judge(
        &self,
        answer: Response<ureq::Body>,
        is_object: bool,
        part: bool,
        of_metadata: bool,
    ) -> Result<HttpResponse, HttpError> {
        let (parts, body) = answer.into_parts();
        let body = body.into_with_config();
        if of_metadata {
            // The first version of it is asked where the second is forbidden, and somebody allows that.
            let is_asked_again = self.0.old_metadata && parts.status == StatusCode::FORBIDDEN;
            if !parts.status.is_success() && !is_asked_again {
                return Err(Cause::NobodyAsks(format!("it answered {}", parts.status)).into_error());
            }
        } else if !parts.status.is_success() {
            self.0.answered.store(true, Ordering::Relaxed);
            let body = WatchedBody(body.limit(LONGEST).reader());
            return Err(Cause::Answered(Answered::read(&parts, body)).into_error());
        } else if part && parts.status != StatusCode::PARTIAL_CONTENT {
            return Err(Cause::Whole.into_error());
        }
        self.0.answered.store(true, Ordering::Relaxed);
        let limit = if is_object { u64::MAX } else { LONGEST };
        let bytes = is_object.then(|| Arc::clone(&self.0.bytes));
        let body = Coming { reader: WatchedBody(body.limit(limit).reader()), bytes };
        Ok(Response::from_parts(parts, HttpResponseBody::new(body)))
    }
}

/// Whether it is an address of this link alone, at which machines and containers are told their keys.
fn is_near(uri: &Uri) -> bool {
    uri.host().is_some_and(|host| host.starts_with("169.254.") || host == "[fd00:ec2::254]")
}

impl HttpConnector for Wire {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // Who asks for the keys of this machine gives that so much time.
        let told = |options: &ClientOptions| options.get_config_value(&ClientConfigKey::ConnectTimeout);
        let of_metadata = told(options) == told(&ClientOptions::new().with_connect_timeout(METADATA));
        Ok(HttpClient::new(Service { wire: self.clone(), of_metadata }))
    }
}

#[derive(Debug)]
struct Service {
    wire: Wire,
    of_metadata: bool,
}

impl HttpService for Service {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(ready(self.wire.ask(request, self.of_metadata)))
    }
}

/// The body of a request, which is in memory.
struct Chunks(HttpRequestBody, Bytes);

impl Read for Chunks {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.1.is_empty() {
            match pin!(&mut self.0).poll_frame(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(Ok(frame))) => self.1 = frame.into_data().unwrap_or_default(),
                Poll::Ready(Some(Err(error))) => return Err(io::Error::other(error)),
                Poll::Ready(None) | Poll::Pending => return Ok(0),
            }
        }
        let some = self.1.split_to(self.1.len().min(into.len()));
        into[..some.len()].copy_from_slice(&some);
        Ok(some.len())
    }
}

/// The body of an answer.
struct Coming {
    reader: WatchedBody<BodyReader<'static>>,
    /// Counts what comes of objects.
    bytes: Option<Arc<AtomicU64>>,
}

impl fmt::Debug for Coming {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Coming")
    }
}

impl Body for Coming {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let mut piece = vec![0; PIECE];
        Poll::Ready(match self.reader.read(&mut piece) {
            Ok(0) => None,
            Ok(read) => {
                piece.truncate(read);
                if let Some(bytes) = &self.bytes {
                    bytes.fetch_add(read as u64, Ordering::Relaxed);
                }
                Some(Ok(Frame::data(piece.into())))
            }
            Err(error) => Some(Err(Cause::Body(error).into_error())),
        })
    }
}
