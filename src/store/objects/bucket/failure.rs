//! Why a request came to nothing: what the wire saw is carried through `object_store`'s errors, and told
//! in the words of who uses a bucket.

use std::error::Error as StdError;
use std::fmt;
use std::io::{self, Read};
use std::sync::Mutex;
use std::time::Duration;

use object_store::client::{HttpError, HttpErrorKind};
use ureq::http::response::Parts;
use ureq::http::{HeaderMap, StatusCode};

use crate::error::{Again, Error, escape, in_words, lock};
use crate::store::objects::web::answer;
use crate::store::objects::web::client::lie;
use crate::store::objects::web::failure::{Failed, Limits};

/// What is being done where nothing is changed.
pub const READING: &str = "reading from it";
/// So much of what a server says is repeated.
const TOLD: usize = 300;
/// How somebody is let in.
const LET_IN: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them into a profile of \
                      ~/.aws/credentials, which AWS_PROFILE names; AWS_SKIP_SIGNATURE=true reads what everybody may read";

/// What the wire saw.
#[derive(Debug)]
pub enum Cause {
    /// There was no answer.
    Request(ureq::Error),
    /// The answer broke off.
    Body(io::Error),
    /// The answer was no.
    Answered(Answered),
    /// All of an object was about to come, and a part was asked for.
    Whole,
    /// Nobody told who asks: what came of looking where machines are told.
    NobodyAsks(String),
}

impl Cause {
    /// It, on its way through `object_store`, which is not to try again.
    pub fn into_error(self) -> HttpError {
        HttpError::new(HttpErrorKind::Unknown, Carrier(Mutex::new(Some(self))))
    }

    /// What is on its way in an error.
    fn of(error: &object_store::Error) -> Option<Cause> {
        let mut at: &(dyn StdError + 'static) = error;
        loop {
            if let Some(Carrier(cause)) = at.downcast_ref() {
                return lock(cause).take();
            }
            at = at.source()?;
        }
    }
}

#[derive(Debug)]
struct Carrier(Mutex<Option<Cause>>);

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("the request failed")
    }
}

impl StdError for Carrier {}

/// A refusal.
#[derive(Debug)]
pub struct Answered {
    status: StatusCode,
    /// Its reason, as programs know it; empty: there was none.
    code: String,
    /// And as people do.
    message: String,
    /// In which region the bucket is, if the server says that.
    region: Option<String>,
    /// How long the server wants to be left alone.
    wait: Option<Duration>,
}

impl Answered {
    /// That which a server gave.
    pub fn read(parts: &Parts, body: impl Read) -> Answered {
        let mut text = Vec::new();
        // What came of it before it broke off is told.
        let _ = body.take(64 << 10).read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text);
        let element = |name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>"))?;
            Some(rest.split_once("</")?.0.chars().take(TOLD).collect::<String>())
        };
        let header = |headers: &HeaderMap, name| {
            headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Answered {
            status: parts.status,
            code: element("Code").unwrap_or_default(),
            message: element("Message").unwrap_or_default(),
            region: header(&parts.headers, "x-amz-bucket-region").or_else(|| element("Region")),
            wait: answer::wait(&parts.headers),
        }
    }

    fn name(&self) -> String {
        let status = self.status.canonical_reason().unwrap_or_default();
        let mut name = format!("{} {status}", self.status.as_u16()).trim_end().to_string();
        if !self.code.is_empty() {
            name = format!("{name}, {}", self.code);
        }
        if !self.message.is_empty() {
            name = format!("{name}: {}", self.message.trim_end_matches('.'));
        }
        escape(name.as_bytes())
    }

    fn passes(&self) -> bool {
        let passing = ["RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "SlowDown"];
        self.status.is_server_error() && self.status != StatusCode::NOT_IMPLEMENTED
            || matches!(self.status.as_u16(), 408 | 425 | 429)
            || passing.contains(&self.code.as_str())
    }

    fn advice(&self) -> String {
        let region = self.region.as_deref().map(|region| escape(region.as_bytes()));
        let misplaced = [
            "PermanentRedirect",
            "TemporaryRedirect",
            "AuthorizationHeaderMalformed",
            "IllegalLocationConstraintException",
        ];
        match (self.code.as_str(), region) {
            (code, region) if self.status.is_redirection() || misplaced.contains(&code) => match region {
                Some(region) => format!("; the bucket is in the region {region}: set AWS_REGION={region}"),
                None => "; the bucket is in another region, or at another endpoint: set AWS_REGION, and \
                         AWS_ENDPOINT_URL where it is not one of Amazon"
                    .into(),
            },
            ("InvalidAccessKeyId" | "NotSignedUp" | "InvalidToken", _) => {
                "; the key is unknown at this endpoint: look at AWS_ACCESS_KEY_ID, AWS_PROFILE and AWS_ENDPOINT_URL".into()
            }
            ("SignatureDoesNotMatch", _) => {
                "; the secret is not that of the key: look at AWS_SECRET_ACCESS_KEY, or at the profile".into()
            }
            ("ExpiredToken" | "TokenRefreshRequired", _) => "; get new keys for a session".into(),
            ("RequestTimeTooSkewed", _) => "; the clock of this machine is wrong".into(),
            (_, _) if matches!(self.status.as_u16(), 401 | 403) => {
                format!("; who asks may not do that, or nobody was told who asks: {LET_IN}")
            }
            _ => String::new(),
        }
    }
}

/// What became of a request for an object.
#[derive(Debug)]
pub enum Trouble {
    /// Its bucket is not there.
    NoBucket,
    /// It is not there, or its bucket is not.
    Missing(Answered),
    /// It is of another version than what was read before.
    Changed,
    /// It has no such bytes.
    TooShort,
    /// Whoever has it knows no such request.
    Unknown(Answered),
    /// It comes as a whole alone.
    Whole,
    /// Something else.
    Other(Failed),
}

impl From<Failed> for Trouble {
    fn from(failed: Failed) -> Trouble {
        Trouble::Other(failed)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Failed::Lasting(error).into()
    }
}

/// Who asks for what.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// The address of an object, safe to show.
    pub address: &'a str,
    /// What is being done, as it stands behind "while".
    pub doing: &'static str,
    /// Where the bucket is.
    pub endpoint: &'a str,
    /// Whether anybody there ever answered.
    pub answered: bool,
    /// How long somebody is waited for.
    pub limits: &'a Limits,
}

impl Asking<'_> {
    /// Why there is no result.
    pub fn trouble(&self, error: &object_store::Error) -> Trouble {
        match Cause::of(error) {
            Some(Cause::Answered(answered)) => match answered.status.as_u16() {
                404 if answered.code == "NoSuchBucket" => Trouble::NoBucket,
                404 => Trouble::Missing(answered),
                412 => Trouble::Changed,
                416 => Trouble::TooShort,
                501 => Trouble::Unknown(answered),
                _ => Trouble::Other(self.refusal(&answered)),
            },
            Some(Cause::Whole) => Trouble::Whole,
            Some(Cause::Request(error)) => {
                let failed = self.limits.of_request(error, self.address, self.answered);
                Trouble::Other(self.worded(failed))
            }
            Some(Cause::Body(error)) => Trouble::Other(self.worded(self.limits.of_body(error, self.address))),
            Some(Cause::NobodyAsks(why)) => Trouble::Other(self.refused(format!(
                "nobody was told who asks, and this machine has no keys of its own ({}): {LET_IN}",
                escape(why.as_bytes())
            ))),
            None => Trouble::Other(lie(self.address, format!("its answer cannot be read: {error}"))),
        }
    }

    /// What cannot be helped.
    pub fn failed(&self, trouble: Trouble) -> Failed {
        match trouble {
            Trouble::Other(failed) => failed,
            Trouble::NoBucket => self.no_bucket(),
            Trouble::Missing(answered) | Trouble::Unknown(answered) => self.refusal(&answered),
            Trouble::Changed => self.refused(
                "it was changed while it was read; run the same command again to have the new one".into(),
            ),
            Trouble::TooShort => self.refused("it is too short: it has no such bytes".into()),
            Trouble::Whole => {
                self.refused("it is read in parts, and the server gives it as a whole alone".into())
            }
        }
    }

    /// What is not to be had.
    pub fn refused(&self, why: String) -> Failed {
        Failed::Lasting(Error::refused(self.address, why))
    }

    /// An object that is not what it should be.
    pub fn lie(&self, what: String) -> Failed {
        Failed::Lasting(Error::Protocol { peer: self.address.into(), what })
    }

    /// A connection that failed for a moment.
    pub fn passing(&self, why: &str) -> Failed {
        self.worded(self.limits.passing(self.address, why.into(), None))
    }

    /// What a server refuses.
    fn refusal(&self, answered: &Answered) -> Failed {
        let name = answered.name();
        if answered.passes() {
            let failed =
                self.limits.passing(self.address, format!("the server answered {name}"), answered.wait);
            return self.worded(failed);
        }
        let advice = answered.advice();
        self.refused(format!("the server at {} answered {name}{advice}", self.endpoint))
    }

    /// There is no bucket.
    pub fn no_bucket(&self) -> Failed {
        self.refused(format!(
            "there is no such bucket at {}: make it there, or set AWS_ENDPOINT_URL or AWS_REGION to where it is",
            self.endpoint
        ))
    }

    /// In the words of this request, with where it went.
    fn worded(&self, mut failed: Failed) -> Failed {
        let (Failed::Passing { error, .. } | Failed::Lasting(error)) = &mut failed;
        let puts = self.doing != READING;
        if let Error::Link { doing, source, again, .. } | Error::Timeout { doing, source, again, .. } = error
        {
            *doing = self.doing;
            *again = if puts { Again::Puts } else { Again::Fetches };
            *source = io::Error::new(source.kind(), format!("{} ({})", in_words(source), self.endpoint));
        }
        failed
    }
}
