//! Objects of a bucket of Amazon S3, or of what speaks its protocol: Garage, MinIO, Ceph, … `docs/store.md`
//! says what is asked of it, and how its users let this program in.

#[cfg(not(feature = "bucket"))]
mod absent;
#[cfg(feature = "bucket")]
mod address;
#[cfg(feature = "bucket")]
mod failure;
#[cfg(feature = "bucket")]
mod part;
#[cfg(feature = "bucket")]
mod profile;
#[cfg(feature = "bucket")]
mod settings;
#[cfg(feature = "bucket")]
mod store;
#[cfg(feature = "bucket")]
mod wire;
#[cfg(feature = "bucket")]
mod writing;

use std::collections::BTreeMap;
use std::fmt;

use crate::error::Result;
use crate::store::objects::WebOptions;

#[cfg(not(feature = "bucket"))]
pub use absent::Bucket;
#[cfg(feature = "bucket")]
pub use store::Bucket;

/// How a bucket is reached. The default knows nothing of the environment.
#[derive(Clone, Default)]
pub struct BucketOptions {
    /// What programs for S3 find in their environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    /// `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_PROFILE`, `AWS_SKIP_SIGNATURE`, …; and
    /// `HOME`, for the profiles of `~/.aws/credentials` and `~/.aws/config`.
    pub variables: BTreeMap<String, String>,
    /// Rate, attempts, how long somebody is waited for, proxies and certificates. Its credentials and its
    /// netrc are for other servers, and told to no bucket.
    pub http: WebOptions,
}

impl fmt::Debug for BucketOptions {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // Some of the values are secrets.
        let names: Vec<&String> = self.variables.keys().collect();
        f.debug_struct("BucketOptions").field("variables", &names).field("http", &self.http).finish()
    }
}

impl BucketOptions {
    /// What the environment says.
    ///
    /// # Errors
    ///
    /// Those of [`WebOptions::from_environment`].
    pub fn from_environment() -> Result<BucketOptions> {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
            (name.starts_with("AWS_") || name == "HOME").then_some((name, value))
        });
        let http = WebOptions { credentials: None, netrc: None, ..WebOptions::from_environment()? };
        Ok(BucketOptions { variables: variables.collect(), http })
    }
}
