//! The flags of the verbs that look at images, here or on hosts, and change nothing.

use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Args;
use holesync::error::{Error, Result};
use holesync::location::Location;
use holesync::options::Options;
use holesync::report::{Ends, Event, Reporter, Summary, Terminal, Verbosity};
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
    /// Whether a unit of hashes is named.
    pub fn names_a_unit(&self) -> bool {
        self.block_size.is_some()
    }

    /// Whether it is named what has to run on a host.
    pub fn names_an_agent(&self) -> bool {
        self.agent.is_some()
    }

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

/// What is shown while images are read: a bar on a terminal, and what goes to stdout beside it.
pub struct Watch {
    terminal: Terminal,
    /// Connections that do not stand yet.
    missing: AtomicUsize,
}

impl Watch {
    /// While these images are read. `quiet`: nothing is shown.
    pub fn new(images: &[&Location], quiet: bool) -> Watch {
        let hosts = images.iter().filter_map(|image| match image {
            Location::Remote(host, _) => Some(host.to_string()),
            Location::Local(_) => None,
        });
        let missing = AtomicUsize::new(hosts.clone().count());
        let ends = Ends { host: hosts.into_iter().next(), reads: true, ..Ends::default() };
        let show = Verbosity { quiet, ..Verbosity::default() };
        Watch { terminal: Terminal::new(show, &ends), missing }
    }

    /// Prints a line. A reader that is gone is an error, as for any filter.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn print_line(&self, line: &str) -> Result<()> {
        self.terminal.write_line(line).map_err(Error::file("write to", "stdout"))
    }

    /// Everything was read, or nothing more will be.
    pub fn finish(&self) {
        self.terminal.finish();
    }
}

impl Reporter for Watch {
    fn event(&self, event: Event) {
        // While another connection is made, ssh may ask for a password.
        if matches!(event, Event::Connected(_)) && self.missing.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        self.terminal.event(event);
    }

    fn summary(&self, _: &Summary) {}
}
