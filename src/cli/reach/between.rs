//! The flags for a transfer from one host to another.

use clap::Args;
use holesync::error::{Error, Result};
use holesync::location::Location;

/// How one of two hosts may reach the other.
#[derive(Debug, Clone, Copy, Args)]
pub struct BetweenArgs {
    /// From a host to another: have the ssh agent forwarded to the host with SRC, for its ssh to DEST
    #[arg(long, conflicts_with = "relay")]
    pub forward_agent: bool,
    /// From a host to another: all goes through here, also where one could reach the other
    #[arg(long)]
    pub relay: bool,
}

impl BetweenArgs {
    /// Refuses them where they do nothing. `has_hosts`: SRC is sent to hosts.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`].
    pub fn check(self, sources: &[Location], has_hosts: bool) -> Result<()> {
        let is_far = |location: &Location| matches!(location, Location::Remote(..));
        if !(self.forward_agent || self.relay) || has_hosts && sources.iter().all(is_far) {
            return Ok(());
        }
        let what =
            "--forward-agent and --relay are for a SRC on one host and a DEST on another: leave them out";
        Err(Error::Usage(what.into()))
    }
}
