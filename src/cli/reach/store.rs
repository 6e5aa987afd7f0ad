//! The flags that tell how a store is reached, and what of it is believed.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use holesync::error::{Error, Result};
use holesync::options::Options;
use holesync::store::address::{Address, Base, Named, Reach};
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
    /// How the image is put in place.
    pub options: &'a Options,
}

impl StoreArgs {
    /// Whether any of it is asked for.
    pub fn is_asked(&self) -> bool {
        self.root.is_some() || self.trust.is_some() || self.ca.is_some() || self.chunks.is_some()
    }

    /// What is asked for that a store of this kind does not have.
    pub fn means_nothing(&self, source: &Address) -> Option<&'static str> {
        if self.chunks.is_some() && matches!(source.named, Named::Image(..)) {
            Some(
                "--chunks is for an index of casync, x.caibx: leave it out for an image that holesync published",
            )
        } else if self.ca.is_some() && matches!(source.base, Base::Directory(_)) {
            Some("--ca is for a store that is reached by https: leave it out for one in a directory")
        } else {
            None
        }
    }

    /// What is pulled from there.
    ///
    /// # Errors
    ///
    /// When a file of keys cannot be read, or what the environment says cannot be used.
    pub fn pulling(&self, source: Address, around: &Around) -> Result<Pulling> {
        let trusted = self.trust.as_deref().map(Trusted::read).transpose()?;
        let reach = self.reach(around)?;
        let chunks = self.chunks.as_deref().map(Base::parse).transpose()?;
        Ok(Pulling { source, reach, root: self.root, trusted, jobs: around.jobs, chunks })
    }

    fn reach(&self, around: &Around) -> Result<Reach> {
        let Reach { mut web, mut bucket } = Reach::from_environment()?;
        web.ca = self.ca.clone().or(web.ca);
        web.rate = around.options.bandwidth;
        web.retries = around.retries.unwrap_or(web.retries);
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        if let Some(connect) = around.contimeout {
            web.connect = seconds(if connect == 0 { u32::MAX } else { connect });
        }
        match around.options.timeout {
            Options::TIMEOUT => {}
            0 => web.window = seconds(u32::MAX),
            window => web.window = seconds(window),
        }
        if let Some(ca) = &self.ca {
            // It goes before what the environment and profiles name.
            bucket.variables.insert("AWS_CA_BUNDLE".into(), ca.to_string_lossy().into_owned());
        }
        bucket.http = WebOptions { credentials: None, netrc: None, ..web.clone() };
        Ok(Reach { web, bucket })
    }
}
