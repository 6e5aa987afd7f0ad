//! The flags that tell how to reach a host, and what has to run there.

mod between;
mod hosts;
mod pulled;
mod store;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use holesync::error::{Error, Result};
use holesync::options::Options;
use holesync::sync::{Addresses, Agent, Cipher, RemoteOptions};

pub use between::BetweenArgs;
pub use hosts::{FailedList, HostsArgs, SeveralHosts};
pub use store::{Around, HAS_STORES, StoreArgs, without_stores};

/// How to reach a host.
#[derive(Debug, Args)]
pub struct RemoteArgs {
    /// The command that reaches a host [default: $RSYNC_RSH, or ssh]
    #[arg(short = 'e', long, value_name = "CMD")]
    pub rsh: Option<String>,
    /// The holesync to run there, and nothing else [default: holesync, or else the shell]
    #[arg(long, visible_alias = "rsync-path", value_name = "PATH")]
    pub remote_path: Option<String>,
    /// What --agent=push brings along [default: holesync-MACHINE beside this program, as uname -m
    /// names the machine, or this program]
    #[arg(long, value_name = "FILE")]
    pub agent_program: Option<PathBuf>,
    /// Run what runs there as root, by sudo -n
    #[arg(long)]
    pub sudo: bool,
    /// Have ssh use IPv4
    #[arg(short = '4', long, overrides_with = "ipv6")]
    pub ipv4: bool,
    /// Have ssh use IPv6
    #[arg(short = '6', long, overrides_with = "ipv4")]
    pub ipv6: bool,
    /// Who chooses the cipher of a connection without --rsh
    #[arg(long, value_enum, default_value_t = CipherArg::Auto)]
    pub cipher: CipherArg,
    /// Seconds that the other end may take to answer; 0: for ever [default: 0, with several hosts 60]
    #[arg(long, value_name = "SECONDS")]
    pub contimeout: Option<u32>,
    /// Seconds for which the other end may be silent; 0: for ever
    #[arg(long, value_name = "SECONDS", default_value_t = Options::TIMEOUT)]
    pub timeout: u32,
    #[command(flatten)]
    pub hosts: HostsArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CipherArg {
    /// AES-GCM where processors have instructions for it and ssh's configuration names no ciphers
    Auto,
    /// ssh and its configuration
    Ssh,
}

impl RemoteArgs {
    /// Whether anything is said of how ssh reaches a host, and of what runs there.
    pub fn is_about_ssh(&self) -> bool {
        let has_cipher = matches!(self.cipher, CipherArg::Ssh);
        let has_program = self.remote_path.is_some() || self.agent_program.is_some() || self.sudo;
        self.rsh.is_some() || has_program || self.ipv4 || self.ipv6 || has_cipher
    }

    /// Refuses a program at the other end that makes no sense with who is to take part there.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`].
    pub fn check(&self, agent: Option<AgentArg>) -> Result<()> {
        let Some(path) = &self.remote_path else { return Ok(()) };
        let is_rsync = |word: &str| word == "rsync" || word.ends_with("/rsync");
        let what = match agent {
            Some(AgentArg::Push) => "--agent=push brings the program that runs: leave --remote-path out",
            Some(AgentArg::None) => "--agent=none runs no holesync there: leave --remote-path out",
            _ if path.split_whitespace().any(is_rsync) => {
                "--remote-path (--rsync-path) names the holesync to run there, such as 'sudo holesync', and no rsync"
            }
            _ => return Ok(()),
        };
        Err(Error::Usage(what.into()))
    }

    /// What has to run there: a program that was named by hand is not replaced by something
    /// else in silence.
    pub fn agent(&self, asked: Option<AgentArg>) -> AgentArg {
        let unless_asked = if self.remote_path.is_some() { AgentArg::Require } else { AgentArg::Auto };
        asked.unwrap_or(unless_asked)
    }

    /// What the library takes.
    pub fn options(self, agent: AgentArg, umask: u32) -> RemoteOptions {
        let from_environment = || std::env::var("RSYNC_RSH").ok().filter(|command| !command.is_empty());
        let agent = match agent {
            AgentArg::Auto => Agent::Auto,
            AgentArg::Require => Agent::Require,
            AgentArg::Push => Agent::Push,
            AgentArg::None => Agent::None,
        };
        let cipher = match self.cipher {
            CipherArg::Auto => Cipher::Auto,
            CipherArg::Ssh => Cipher::Ssh,
        };
        let addresses = match (self.ipv4, self.ipv6) {
            (true, _) => Addresses::V4,
            (_, true) => Addresses::V6,
            _ => Addresses::Any,
        };
        let several = self.hosts.are_several();
        RemoteOptions {
            addresses,
            rsh: self.rsh.or_else(from_environment),
            remote_path: self.remote_path,
            sudo: self.sudo,
            agent,
            agent_program: self.agent_program,
            dry_run: false,
            contimeout: self.contimeout.unwrap_or(if several { Options::TIMEOUT } else { 0 }),
            retries: None,
            asks_nothing: several,
            is_onward: false,
            forward_agent: false,
            relay: false,
            no_map_cache: false,
            cipher,
            umask,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub enum AgentArg {
    /// A holesync where there is one, else the shell
    Auto,
    /// A holesync that is installed there
    Require,
    /// This program, brought along and kept there for the next time
    Push,
    /// The shell
    None,
}
