//! Where all sources of a run are, and their names where a list has these.

pub mod names;

use std::os::unix::ffi::OsStrExt;

use crate::confinement::NamedPath;
use crate::error::{Error, Result};
use crate::location::{Host, Location};

/// All sources, which are on one machine.
pub enum Origin {
    /// This one.
    Local(Vec<NamedPath>),
    /// Another one, and the paths there.
    Remote(Host, Vec<Vec<u8>>),
}

/// The machine that all of them are on.
///
/// # Errors
///
/// [`Error::Usage`] where there are several.
pub fn origin(sources: &[Location]) -> Result<Origin> {
    let mut local = Vec::new();
    let mut remote: Option<(Host, Vec<Vec<u8>>)> = None;
    for source in sources {
        match source {
            Location::Local(path) => local.push(NamedPath::here(path)),
            Location::Remote(host, path) => {
                let (first, paths) = remote.get_or_insert_with(|| (host.clone(), Vec::new()));
                if first != host {
                    return Err(Error::Usage(format!(
                        "all sources must be on one machine, not on {first} and {host}"
                    )));
                }
                paths.push(path.as_os_str().as_bytes().to_vec());
            }
        }
    }
    match remote {
        None => Ok(Origin::Local(local)),
        Some((host, paths)) if local.is_empty() => Ok(Origin::Remote(host, paths)),
        Some((host, _)) => Err(Error::Usage(format!(
            "all sources must be on one machine, not here and on {host}: the last operand alone is DEST; several hosts are \
             named with --to or --hosts"
        ))),
    }
}
