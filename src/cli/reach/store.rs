//! The flags that tell how a store is reached, and what of it is believed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use holesync::error::{Error, Result};
use holesync::location::Location;
use holesync::options::{Options, TransferRules};
use holesync::store::address::{Address, Base, Reach};
use holesync::store::head::Digest;
use holesync::store::objects::WebOptions;
use holesync::store::signature::Trusted;
use holesync::sync::Pulling;

/// Whether this program has the code for stores; all that is behind this is left out where it has not.
pub const HAS_STORES: bool = cfg!(feature = "store");

/// What is told where it has not.
pub fn without_stores() -> Error {
    Error::Usage(
        "this holesync was built without stores: the released program has them, and so has one that was built \
         with the feature \"store\""
            .into(),
    )
}

/// How what a store has is proven, and where it is.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// Pull the image with this root hash alone, as `digest` and `publish` tell it
    #[arg(long, value_name = "HASH")]
    root: Option<Digest>,
    /// Pull what is signed by a key in FILE alone, which has a public key of ssh a line
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// Certificates of the authorities that web servers are believed by, as PEM
    #[arg(long, visible_alias = "cacert", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Where the chunks of x.caibx are [default: default.castr beside it]
    #[arg(long, value_name = "STORE")]
    chunks: Option<String>,
}

/// What of a transfer matters to a store.
pub struct Around<'a> {
    /// Requests at a time.
    pub jobs: Option<usize>,
    /// Tries after a failure.
    pub retries: Option<u32>,
    /// Seconds for a connection.
    pub contimeout: Option<u32>,
    /// The unit of comparison was said.
    pub has_block_size: bool,
    /// A map is to be saved.
    pub saves_map: bool,
    /// How the image is put in place.
    pub options: &'a Options,
    /// Something names files, or another machine, in ways that mean nothing here.
    pub is_other: bool,
}

impl StoreArgs {
    fn is_asked(&self) -> bool {
        self.root.is_some() || self.trust.is_some() || self.ca.is_some() || self.chunks.is_some()
    }

    /// What is pulled, where SRC names a store.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for what makes no sense with that, or without it; when a file of keys cannot be
    /// read.
    pub fn pulling(
        &self,
        sources: &[OsString],
        destination: Option<&Location>,
        around: &Around,
    ) -> Result<Option<Pulling>> {
        let mut named =
            sources.iter().map(|source| Address::of_source(source)).collect::<Result<Vec<_>>>()?;
        let usage = |what: &str| Err(Error::Usage(what.into()));
        if named.iter().all(Option::is_none) {
            return match self.is_asked() {
                true => usage(
                    "--root, --trust, --ca and --chunks are for a SRC in a store: https://host/path/NAME",
                ),
                false => Ok(None),
            };
        }
        if !HAS_STORES {
            return Err(without_stores());
        }
        let (Some(source), true) = (named.pop().flatten(), named.is_empty()) else {
            return usage("one image is pulled from a store at a time: name one SRC, and DEST");
        };
        if destination.is_none() {
            return usage(
                "an image in a store is pulled to a DEST; `holesync versions STORE/NAME` lists a store",
            );
        }
        let options = around.options;
        let picks =
            options.transfer != TransferRules::default() || options.removes() || options.remove_source_files;
        if around.is_other || picks || options.since.is_some() {
            return usage(
                "an image from a store is one file: leave out what picks, places or removes files, what reaches another \
                 machine by ssh, and what is about the image at its source",
            );
        }
        if options.workplace.delay || around.saves_map {
            return usage(
                "an image from a store is one file, of which the store has the map: leave --delay-updates and \
                          --save-map out",
            );
        }
        if around.has_block_size {
            return usage("what a store has is published with a unit of comparison: leave --block-size out");
        }
        let trusted = self.trust.as_deref().map(Trusted::read).transpose()?;
        let reach = self.reach(around)?;
        let chunks = self.chunks.as_deref().map(Base::parse).transpose()?;
        Ok(Some(Pulling { source, reach, root: self.root, trusted, jobs: around.jobs, chunks }))
    }

    fn reach(&self, around: &Around) -> Result<Reach> {
        let Reach { mut web, mut bucket } = Reach::from_environment()?;
        web.ca = self.ca.clone().or(web.ca);
        web.rate = around.options.bandwidth;
        web.retries = around.retries.unwrap_or(web.retries);
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        if let Some(connect) = around.contimeout.filter(|&connect| connect > 0) {
            web.connect = seconds(connect);
        }
        match around.options.timeout {
            Options::TIMEOUT => {}
            0 => web.window = seconds(u32::MAX),
            window => web.window = seconds(window),
        }
        bucket.http = WebOptions { credentials: None, netrc: None, ..web.clone() };
        Ok(Reach { web, bucket })
    }
}
