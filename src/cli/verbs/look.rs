//! The flags of the verbs that look at images, here or on hosts, and change nothing.

use clap::Args;
use holesync::error::{Error, Result};
use holesync::options::Options;
use holesync::sync::RemoteOptions;

use crate::cli::values::size;
use crate::cli::{self, AgentArg, RemoteArgs};

/// How images are looked at.
#[derive(Debug, Args)]
pub struct LookArgs {
    /// Unit of the hashes
    #[arg(short = 'B', long, value_name = "SIZE", value_parser = size)]
    block_size: Option<u64>,
    /// Which holesync has to run on a host: "auto" is one that is installed or was brought along
    /// before [default: auto; with --remote-path: require]
    #[arg(long, value_enum)]
    agent: Option<AgentArg>,
    #[command(flatten)]
    remote: RemoteArgs,
}

impl LookArgs {
    /// What the library takes.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`].
    pub fn options(self, umask: u32) -> Result<(Options, RemoteOptions)> {
        if self.agent == Some(AgentArg::None) {
            return Err(Error::Usage("a shell tells no hashes: leave --agent=none out".into()));
        }
        self.remote.check(self.agent)?;
        let options = Options {
            block_size: cli::block_size(self.block_size)?,
            timeout: self.remote.timeout,
            ..Options::default()
        };
        let agent = self.remote.agent(self.agent);
        Ok((options, self.remote.options(agent, umask)))
    }
}
