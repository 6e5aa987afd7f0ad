//! What stores have comes to this machine: images that were published, and those of casync.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::location::Location;
use crate::options::Options;
use crate::report::{KeepsFirst, Reporter, Route, Stats, Summary};
use crate::store::address::{Address, Base, CHUNKS, Named, Reach};
use crate::store::casync::ChunkStore;
use crate::store::head::Digest;
use crate::store::objects::{Objects, Traffic};
use crate::store::pull::{JOBS, Pull, PullOptions};
use crate::store::signature::Trusted;
use crate::stream::casync;

/// What is pulled, and how.
#[derive(Debug, Clone)]
pub struct Pulling {
    /// From where.
    pub source: Address,
    /// How it is reached.
    pub reach: Reach,
    /// The root hash that it must have.
    pub root: Option<Digest>,
    /// Whose signature it must have.
    pub trusted: Option<Trusted>,
    /// Requests at a time; `None`: a dozen.
    pub jobs: Option<usize>,
    /// Where the chunks of an index of casync are; `None`: beside it.
    pub chunks: Option<Base>,
}

/// Makes `destination` equal to what a store has, and reports it.
///
/// # Errors
///
/// Whatever is wrong with the store, what it has, or the destination; [`Error::Partial`] when that is in
/// place without all of its attributes.
pub fn pull(
    pulling: &Pulling,
    destination: &Location,
    options: &Options,
    umask: u32,
    reporter: &dyn Reporter,
) -> Result<()> {
    let start = Instant::now();
    let first = KeepsFirst::new(reporter);
    let Location::Local(path) = destination else {
        let what = "DEST is on another machine, and what a store has is pulled by the machine that wants it: run holesync \
                    there, with the same SRC";
        return Err(Error::Usage(what.into()));
    };
    let objects = pulling.source.base.open(&pulling.reach)?;
    let (stats, more) = match &pulling.source.named {
        Named::Image(name, version) => {
            let wanted = PullOptions {
                version: version.clone(),
                root: pulling.root,
                trusted: pulling.trusted.clone(),
                jobs: pulling.jobs.unwrap_or(JOBS),
            };
            let (objects, options) = (objects.as_ref(), &Arc::new(options.clone()));
            let pull = Pull { objects, name, pull: &wanted, options, umask, reporter: &first };
            (pull.run(path)?.stats, Traffic::default())
        }
        Named::Index(index) => pulling.index(objects.as_ref(), index, path, options, umask, &first)?,
    };
    let Traffic { received, sent, .. } = objects.traffic();
    let summary = Summary {
        stats,
        tries: 1,
        wire_sent: sent + more.sent,
        wire_received: received + more.received,
        route: Route::Store,
        elapsed: start.elapsed(),
        dry_run: options.dry_run,
    };
    first.summary(&summary);
    first.verdict(&summary.stats)
}

impl Pulling {
    /// An image of casync. Also returns what its chunks took, where they lie elsewhere.
    fn index(
        &self,
        objects: &dyn Objects,
        index: &str,
        path: &Path,
        options: &Options,
        umask: u32,
        reporter: &dyn Reporter,
    ) -> Result<(Stats, Traffic)> {
        if self.root.is_some() || self.trusted.is_some() {
            let what = "an index of casync has neither root hash nor signature of holesync: leave --root and --trust out";
            return Err(Error::Usage(what.into()));
        }
        // The credentials of the environment are for the server that has the index. A netrc names its hosts.
        let open = |chunks: &Base| {
            let mut reach = self.reach.clone();
            if !chunks.is_on_server_of(&self.source.base) {
                reach.web.credentials = None;
            }
            chunks.open(&reach)
        };
        let elsewhere = self.chunks.as_ref().map(open).transpose()?;
        let beside = format!("{CHUNKS}/");
        let chunks = match &elsewhere {
            Some(objects) => ChunkStore { objects: objects.as_ref(), prefix: "" },
            None => ChunkStore { objects, prefix: &beside },
        };
        let published = casync::Published { objects, index, chunks, jobs: self.jobs.unwrap_or(JOBS) };
        let stats = casync::pull(&published, path, options, umask, reporter)?.stats;
        Ok((stats, elsewhere.map_or(Traffic::default(), |objects| objects.traffic())))
    }
}
