//! Finds out who takes part at the other end of a connection that stands: a holesync
//! that is installed there, else one that was brought there (`push.rs`), else the shell.
//! `docs/remote.md` has the order.

use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout};

use crate::error::{Error, Result};
use crate::location::Host;
use crate::protocol::MAX_NOISE;
use crate::protocol::{FrameReader, FrameWriter, Greeting, Silence, TimedReader, TimedWriter};
use crate::remote::cipher::{self, Cipher};
use crate::remote::push;
use crate::report::{Event, Reporter};

/// The command for a login shell, whichever it is (bash, dash, zsh, fish, tcsh, ash): it
/// has a plain sh read a script, up to a line with a dot, and run it. What follows the
/// script stays in the pipe, as `read` takes one byte after the other.
const LOADER: &str = r#"exec sh -c 'n=$(printf "\n."); n=${n%.}; s=; while IFS= read -r l && [ "$l" != . ]; do s=$s$l$n; done; eval "$s"'"#;
const BOOTSTRAP_SCRIPT: &str = include_str!("bootstrap.sh");
/// What the shell prints when it is to be the far side.
const MARK: &[u8] = b"\nholesync shell 1 ";
/// The program to run at the other end, unless another one is named.
const PROGRAM: &str = "holesync";
/// The version of this program, which a pushed one must have.
pub const PROGRAM_VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the far side says.
pub type Incoming = TimedReader<ChildStdout>;
/// The way to the far side.
pub type Outgoing = TimedWriter<ChildStdin>;
/// Where the frames and the plain bytes of the far side are read from.
pub type Input = FrameReader<Incoming>;
/// Where frames and plain bytes for the far side are written to.
pub type Output = FrameWriter<Outgoing>;

/// What has to run at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Agent {
    /// A holesync, where there is one, else the shell.
    #[default]
    Auto,
    /// A holesync.
    Require,
    /// This program, brought along; where that is not possible, the shell.
    Push,
    /// The shell.
    None,
}

/// Which addresses of a host ssh may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Addresses {
    /// Those that its configuration allows.
    #[default]
    Any,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// How to reach a host, and what has to run there.
#[derive(Debug, Clone, Default)]
pub struct RemoteOptions {
    /// The command that reaches a host; ssh unless given.
    pub rsh: Option<String>,
    /// Which of its addresses ssh uses.
    pub addresses: Addresses,
    /// What to run there; `holesync` in its PATH unless given.
    pub remote_path: Option<String>,
    /// All that runs there runs as root, by sudo, which asks for no password.
    pub sudo: bool,
    /// What has to run there.
    pub agent: Agent,
    /// The program to bring along; this one, or one beside it, unless given.
    pub agent_program: Option<PathBuf>,
    /// What is brought along goes to a temporary directory, and with it at the end.
    pub dry_run: bool,
    /// Seconds for which a connection that is being made may be silent; 0: for ever.
    pub contimeout: u32,
    /// Tries that may follow one whose connection died; `None`: 3 where ssh asks its user
    /// nothing, else 0.
    pub retries: Option<u32>,
    /// ssh must not ask its user anything: several would ask on one terminal.
    pub asks_nothing: bool,
    /// One host reaches another, for somebody elsewhere: only one whose key is known there, and what
    /// ssh says of it is kept for the error.
    pub is_onward: bool,
    /// Of two hosts the one with SRC may use the ssh agent of this user.
    pub forward_agent: bool,
    /// Of two hosts none is to reach the other.
    pub relay: bool,
    /// Neither end uses maps that it kept.
    pub no_map_cache: bool,
    /// Who chooses the cipher.
    pub cipher: Cipher,
    /// The umask of this process.
    pub umask: u32,
}

/// Who takes part at the other end, and what is known of its processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrapped {
    /// Who answered.
    pub far_side: FarSide,
    /// Whether the processor there has instructions for AES, if that is known.
    pub aes: Option<bool>,
}

/// Who answered at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FarSide {
    /// A holesync, which has greeted and was greeted.
    Agent,
    /// A shell that reads scripts; see [`script`].
    Shell,
}

/// The command to give to the login shell of the other end, and the program that
/// it runs.
///
/// # Errors
///
/// [`Error::Usage`] for a program that cannot be named.
pub fn command(remote: &RemoteOptions) -> Result<(String, &str)> {
    let program = remote.remote_path.as_deref().unwrap_or(PROGRAM);
    if program.contains(['\n', '\0']) {
        return Err(Error::Usage("--remote-path: a command of more than one line".into()));
    }
    let sudo = if remote.sudo { "sudo -n " } else { "" };
    Ok(match remote.agent {
        Agent::Require => (format!("{sudo}{program} agent"), program),
        Agent::Auto | Agent::Push | Agent::None => {
            (LOADER.replacen("exec ", &format!("exec {sudo}"), 1), "sh")
        }
    })
}

/// Finds out who answers at the other end of [`command`], and brings this program along
/// if that is wanted. The first answer ends the limit of `silence`. What could not be done as wished is reported.
///
/// # Errors
///
/// [`Error::Start`] when nobody answers, [`Error::Version`] when an agent speaks
/// another version of the protocol.
pub fn bootstrap(
    input: &mut Input,
    output: &mut Output,
    silence: &Silence,
    host: &Host,
    remote: &RemoteOptions,
    reporter: &dyn Reporter,
) -> Result<Bootstrapped> {
    let mut aes = None;
    let greeting = if remote.agent == Agent::Require {
        Some(input.await_greeting(MAX_NOISE)?)
    } else {
        let program = match remote.agent {
            Agent::Push | Agent::None => "",
            Agent::Auto | Agent::Require => remote.remote_path.as_deref().unwrap_or(PROGRAM),
        };
        let script = script(&[("program", program), ("version", PROGRAM_VERSION)], &[BOOTSTRAP_SCRIPT])?;
        let written = output.plain(&script).and_then(|()| output.flush());
        // Where nobody reads, what came instead of an answer says why.
        let answer = input.await_greeting_or(MARK, MAX_NOISE)?;
        written?;
        // What is brought along may take longer.
        silence.limit(None);
        match answer {
            Some(greeting) => {
                refuse_if_unbidden(remote.agent, host)?;
                Some(greeting)
            }
            None => {
                let shell = Shell::read(input)?;
                aes = shell.aes;
                push::agent(&shell, input, output, host, remote, reporter)?
            }
        }
    };
    let Some(Greeting { version, aes, .. }) = greeting else {
        let what = format!("the shell answered on {host}, and takes part without a holesync");
        match remote.agent {
            // Nobody asked for it, and it promises less.
            Agent::Auto => reporter.event(Event::Hint(&format!(
                "{what}, which promises less: no hashes are compared; --agent=require would not do that, --agent=push brings one"
            ))),
            _ => reporter.event(Event::Note(&what)),
        }
        return Ok(Bootstrapped { far_side: FarSide::Shell, aes });
    };
    reporter.event(Event::Note(&format!("holesync answered on {host}, protocol {version}")));
    output.greet(cipher::aes_here(), !remote.no_map_cache)?;
    Ok(Bootstrapped { far_side: FarSide::Agent, aes })
}

/// A holesync that answers where none was to be run is a command that the key is bound to.
fn refuse_if_unbidden(agent: Agent, host: &Host) -> Result<()> {
    let asked = match agent {
        Agent::Auto | Agent::Require => return Ok(()),
        Agent::Push => "--agent=push cannot bring another",
        Agent::None => "--agent=none cannot have a shell",
    };
    Err(Error::Start(format!(
        "{host} runs a holesync whatever it is asked for (a forced command), so that {asked}: leave --agent out"
    )))
}

/// Several texts as one script in the form that the shell at the other end loads,
/// without their comments; `variables` are set before.
///
/// # Errors
///
/// [`Error::Usage`] for a value that no shell can hold.
pub fn script(variables: &[(&str, &str)], texts: &[&str]) -> Result<Vec<u8>> {
    let mut script = String::new();
    for (name, value) in variables {
        let quoted = shlex::try_quote(value)
            .map_err(|error| Error::Usage(format!("{value:?} cannot be given to a shell: {error}")))?;
        script.push_str(&format!("{name}={quoted}\n"));
    }
    for line in texts.iter().flat_map(|text| text.lines()).filter(|line| !line.trim_start().starts_with('#'))
    {
        script.push_str(line.trim_start());
        script.push('\n');
    }
    script.push_str(".\n");
    Ok(script.into_bytes())
}

/// What the shell prints about its machine behind [`MARK`].
pub struct Shell {
    /// Whether a program of this version was left there earlier.
    pub pushed: bool,
    /// Whether the processor has instructions for AES, if that could be found out.
    pub aes: Option<bool>,
    /// The output of `uname -sm`.
    pub system: String,
}

impl Shell {
    fn read(input: &mut Input) -> Result<Shell> {
        let line = String::from_utf8_lossy(&input.plain().line()?).into_owned();
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().unwrap_or_default();
        let pushed = word() == "yes";
        let aes = match word() {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        };
        Ok(Shell { pushed, aes, system: word().into() })
    }
}
