//! `--since`: what is known of the only source before it is read, looked at before anything is
//! reached.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::hashmap::since::Since;
use crate::location::Location;
use crate::options::Options;
use crate::sync::{FilesFrom, stdin};

/// Opens what the options name, if they do. `destination`: `None`, if there are several.
///
/// # Errors
///
/// [`Error::Usage`] where it is of no use; those of [`Since::open`].
pub fn open(
    sources: &[Location],
    listed: Option<&FilesFrom>,
    destination: Option<&Location>,
    options: &Options,
) -> Result<Option<Arc<Since>>> {
    let Some(wanted) = &options.since else { return Ok(None) };
    let refused = |what: &str| Err(Error::Usage(format!("--since is for one image that is here: {what}")));
    if sources.iter().any(stdin::is_stdin) {
        return refused("what comes from stdin shares nothing with a file, so leave it out");
    }
    let [source] = sources else { return refused("name one SRC, or leave it out") };
    let Location::Local(path) = source else {
        return refused("SRC is on another machine; run holesync there, or leave it out");
    };
    if path.is_dir() || listed.is_some() {
        return refused("SRC is a directory; name a file in it, or leave --since out");
    }
    if matches!(destination, Some(Location::Local(_))) {
        return refused(
            "with DEST here, too, no map is needed, and what they share is not read anyway; leave it out",
        );
    }
    Since::open(wanted, path, options.block_size).map(|since| Some(Arc::new(since)))
}
