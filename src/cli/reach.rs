//! The flags that tell how to reach a host, and what has to run there.

use clap::{Args, ValueEnum};
use holesync::options::Options;
use holesync::sync::{Agent, Cipher, RemoteOptions};

/// How to reach a host.
#[derive(Debug, Args)]
pub struct RemoteArgs {
    /// The command that reaches a host [default: $RSYNC_RSH, or ssh]
    #[arg(short = 'e', long, value_name = "CMD")]
    pub rsh: Option<String>,
    /// The holesync to run there [default: holesync]
    #[arg(long, visible_alias = "rsync-path", value_name = "PATH")]
    pub remote_path: Option<String>,
    /// Who chooses the cipher of a connection without --rsh
    #[arg(long, value_enum, default_value_t = CipherArg::Auto)]
    pub cipher: CipherArg,
    /// Seconds that the other end may take to answer; 0: for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub contimeout: u32,
    /// Seconds for which the other end may be silent; 0: for ever
    #[arg(long, value_name = "SECONDS", default_value_t = Options::TIMEOUT)]
    pub timeout: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CipherArg {
    /// AES-GCM where processors have instructions for it and ssh's configuration names no ciphers
    Auto,
    /// ssh and its configuration
    Ssh,
}

impl RemoteArgs {
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
        RemoteOptions {
            rsh: self.rsh.or_else(from_environment),
            remote_path: self.remote_path,
            agent,
            contimeout: self.contimeout,
            retries: None,
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
