//! The bucket: what is asked of it for each of what can be done to an object, again where that may help.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use futures_util::StreamExt;
use object_store::aws::AmazonS3;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore};

use super::BucketOptions;
use super::address::Address;
use super::failure::{Asking, READING, Trouble};
use super::settings::Settings;
use super::wire::Wire;
use crate::error::{Error, Result, lock};
use crate::store::objects::web::client::lie;
use crate::store::objects::web::failure::{Attempts, Failed, Limits};
use crate::store::objects::web::roots;
use crate::store::objects::{Objects, Served, Take, Traffic};

/// Objects of a bucket. Many threads may use it at once: each has a connection, which stays for the next
/// request.
#[derive(Debug)]
pub struct Bucket {
    pub(super) address: Address,
    endpoint: String,
    pub(super) store: AmazonS3,
    wire: Wire,
    limits: Limits,
    /// The version of each object that was read.
    versions: Mutex<HashMap<String, Version>>,
    /// Whether the bucket is known to be there.
    is_there: AtomicBool,
}

/// Of which version an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    etag: Option<String>,
    modified: SystemTime,
    length: u64,
}

/// What is read of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Portion {
    /// A range of it.
    Part,
    /// All of it, which has no more bytes than are expected.
    All,
    /// What it begins with, where ranges cannot be had.
    Front,
}

impl Version {
    fn of(object: &ObjectMeta) -> Version {
        let etag = object.e_tag.clone().filter(|etag| etag.starts_with('"'));
        // A store that has ETags may tell other times from each of its machines.
        let modified = if etag.is_some() { SystemTime::UNIX_EPOCH } else { object.last_modified.into() };
        Version { etag, modified, length: object.size }
    }
}

impl Bucket {
    /// That of `s3://bucket/prefix`. Nothing is asked yet.
    ///
    /// # Errors
    ///
    /// When that names no bucket; when what the environment or a profile says of it cannot be used; when
    /// certificates cannot be read.
    pub fn open(url: &str, options: &BucketOptions) -> Result<Bucket> {
        let address = Address::parse(url)?;
        let settings = Settings::find(&options.variables)?;
        let http = &options.http;
        let roots = roots::read(settings.ca.as_deref().or(http.ca.as_deref()))?;
        let limits = http.limits();
        let wire = Wire::new(http, &limits, &roots, settings.old_metadata);
        let endpoint = settings.endpoint.clone();
        let store = settings.build(&address.bucket, wire.clone())?;
        let (versions, is_there) = Default::default();
        Ok(Bucket { address, endpoint, store, wire, limits, versions, is_there })
    }

    /// A request that concerns an object, or what its address names.
    pub(super) fn asking<'a>(&'a self, address: &'a str, doing: &'static str) -> Asking<'a> {
        let answered = self.wire.has_answered();
        Asking { address, doing, endpoint: &self.endpoint, answered, limits: &self.limits }
    }

    /// Runs requests to their end.
    pub(super) fn run<T>(&self, requests: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
        self.limits.go_on().map_err(Failed::Lasting)?;
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let cannot = |error| Failed::Lasting(Error::Start(format!("cannot begin a request: {error}")));
        let result = runtime.map_err(cannot)?.block_on(requests);
        if result.is_ok() {
            self.is_there.store(true, Ordering::Relaxed);
        }
        result
    }

    /// Does it until it goes well, or there is no sense in another attempt. An object that is not there is
    /// `None`, but where its bucket is not there.
    pub(super) fn persist<T>(
        &self,
        asking: Asking,
        mut once: impl FnMut() -> Result<T, Trouble>,
    ) -> Result<Option<T>> {
        let mut attempts = Attempts::new(&self.limits);
        loop {
            let failed = match once() {
                Ok(done) => return Ok(Some(done)),
                Err(Trouble::Missing(_)) => match self.look_for_bucket(asking) {
                    Ok(()) => return Ok(None),
                    Err(failed) => failed,
                },
                Err(trouble) => asking.failed(trouble),
            };
            attempts.failed(failed, 0)?;
        }
    }

    /// That an object is not there is an error where its bucket is not there.
    fn look_for_bucket(&self, asking: Asking) -> Result<(), Failed> {
        if self.is_there.load(Ordering::Relaxed) {
            return Ok(());
        }
        let options = PaginatedListOptions { max_keys: Some(1), ..PaginatedListOptions::default() };
        let looked = self.run(async {
            let listed = self.store.list_paginated(None, options).await;
            listed.map(drop).map_err(|error| asking.trouble(&error))
        });
        match looked {
            Err(Trouble::NoBucket | Trouble::Missing(_)) => Err(asking.no_bucket()),
            Err(Trouble::Other(failed @ Failed::Passing { .. })) => Err(failed),
            // Who may read objects may be forbidden to list them.
            _ => Ok(()),
        }
    }

    /// What is read of it from now on is of the version that is there then.
    pub(super) fn forget(&self, name: &str) {
        lock(&self.versions).remove(name);
    }

    /// Holds an object to the version of which its first bytes were.
    fn hold(&self, name: &str, object: &ObjectMeta) -> Result<(), Trouble> {
        let version = Version::of(object);
        let mut versions = lock(&self.versions);
        let held = versions.entry(name.into()).or_insert_with(|| version.clone());
        if *held == version { Ok(()) } else { Err(Trouble::Changed) }
    }

    async fn ask(
        &self,
        name: &str,
        asking: Asking<'_>,
        range: Option<Range<u64>>,
    ) -> Result<GetResult, Trouble> {
        let path = self.address.path(name)?;
        let if_match = lock(&self.versions).get(name).and_then(|version| version.etag.clone());
        let options = GetOptions { range: range.map(GetRange::Bounded), if_match, ..GetOptions::default() };
        let result = self.store.get_opts(&path, options).await.map_err(|error| asking.trouble(&error))?;
        self.hold(name, &result.meta)?;
        Ok(result)
    }

    /// Reads on at `at`, which it leaves where it came to, up to `end`.
    fn read_on(
        &self,
        name: &str,
        asking: Asking,
        (at, end, portion): (&mut u64, u64, Portion),
        take: &mut Take,
    ) -> Result<(), Trouble> {
        self.run(async {
            let part = (portion == Portion::Part).then_some(*at..end);
            let result = self.ask(name, asking, part).await?;
            let (has, range) = (result.meta.size, result.range.clone());
            let is_right = match portion {
                Portion::Part => range == (*at..end),
                Portion::All => range == (*at..end) && has == end,
                Portion::Front => range == (*at..has) && has >= end,
            };
            if !is_right {
                return Err(asking.refused(format!("it has {has} bytes, and {end} were expected")).into());
            }
            let mut coming = result.into_stream();
            // Where more than is wanted would come, its connection is closed.
            while (portion != Portion::Front || *at < end)
                && let Some(piece) = coming.next().await
            {
                let mut piece = piece.map_err(|error| asking.trouble(&error))?;
                let left = end - *at;
                if portion == Portion::Front {
                    piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                }
                if piece.len() as u64 > left {
                    return Err(lie(asking.address, "its body goes on beyond its end".into()).into());
                }
                take(&piece)?;
                *at += piece.len() as u64;
            }
            if *at < end { Err(asking.passing("the body ended too early").into()) } else { Ok(()) }
        })
    }

    /// Reads a range, or what an object begins with, and goes on where a connection broke.
    fn tell_all(&self, name: &str, range: Range<u64>, portion: Portion, take: &mut Take) -> Result<Served> {
        let address = self.address(name);
        let asking = self.asking(&address, READING);
        let mut at = range.start;
        let mut attempts = Attempts::new(&self.limits);
        loop {
            let before = at;
            let rest_of = if before > range.start { Portion::Part } else { portion };
            let rest = (&mut at, range.end, rest_of);
            let failed = match self.read_on(name, asking, rest, take) {
                Ok(()) => return Ok(Served::Range),
                Err(Trouble::Whole) if portion == Portion::Part && at == range.start => {
                    return Ok(Served::WholeOnly);
                }
                Err(Trouble::Missing(_)) => match self.look_for_bucket(asking) {
                    Ok(()) => asking.refused("it is not there".into()),
                    Err(failed) => failed,
                },
                Err(trouble) => asking.failed(trouble),
            };
            attempts.failed(failed, at - before)?;
        }
    }
}

impl Objects for Bucket {
    fn stop(&self) {
        self.limits.stop.set();
    }

    fn traffic(&self) -> Traffic {
        self.wire.traffic()
    }

    fn address(&self, name: &str) -> String {
        self.address.shown(name)
    }

    fn get(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let (address, path) = (self.address(name), self.address.path(name)?);
        let asking = self.asking(&address, READING);
        self.persist(asking, || {
            self.run(async {
                let got = self.store.get_opts(&path, GetOptions::default()).await;
                let got = got.map_err(|error| asking.trouble(&error))?;
                let length = got.meta.size;
                let (mut bytes, mut coming) = (Vec::new(), got.into_stream());
                // Whatever length is told, no more is kept than is wanted.
                while length <= most
                    && let Some(piece) = coming.next().await
                {
                    bytes.extend_from_slice(&piece.map_err(|error| asking.trouble(&error))?);
                    if bytes.len() as u64 > most {
                        break;
                    }
                }
                match bytes.len() as u64 {
                    came if length > most || came > most => {
                        Err(asking.lie(format!("it is longer than {most} bytes")).into())
                    }
                    came if came < length => Err(asking.passing("the body ended too early").into()),
                    _ => Ok(bytes),
                }
            })
        })
    }

    fn read(&self, name: &str, range: Range<u64>, take: &mut Take) -> Result<Served> {
        if range.is_empty() {
            return Ok(Served::Range);
        }
        self.tell_all(name, range, Portion::Part, take)
    }

    fn read_whole(&self, name: &str, length: u64, take: &mut Take) -> Result<()> {
        self.tell_all(name, 0..length, Portion::All, take).map(drop)
    }

    fn read_front(&self, name: &str, length: u64, take: &mut Take) -> Result<()> {
        self.tell_all(name, 0..length, Portion::Front, take).map(drop)
    }
}
