//! Getting hold of the far side in one connection: of a holesync that is there,
//! else of one that was brought there, else of its shell.

use std::process::{ChildStdin, ChildStdout};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result, escape};
use crate::location::Host;
use crate::protocol::MAX_NOISE;
use crate::protocol::{FrameReader, FrameWriter, Greeting};
use crate::remote::cipher::{self, Cipher};
use crate::report::{Event, Reporter, human};

/// What a login shell is given, whichever it is (bash, dash, zsh, fish, tcsh,
/// ash): has a plain sh read a script, up to a line with a dot, and run it.
/// What follows stays in the pipe, as `read` takes one byte after the other.
const LOADER: &str = r#"exec sh -c 'n=$(printf "\n."); n=${n%.}; s=; while IFS= read -r l && [ "$l" != . ]; do s=$s$l$n; done; eval "$s"'"#;
const LADDER: &str = include_str!("bootstrap.sh");
const PUSHER: &str = include_str!("push.sh");
/// What the shell says when it has become the far side.
const MARK: &[u8] = b"\nholesync shell 1 ";
/// The program to run at the other end, unless told otherwise.
const PROGRAM: &str = "holesync";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is read from the far side, and what is written to it.
pub type Input = FrameReader<ChildStdout>;
/// See [`Input`].
pub type Output = FrameWriter<ChildStdin>;

/// What has to run at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Agent {
    /// A holesync, where there is one, else the shell.
    #[default]
    Auto,
    /// A holesync.
    Require,
    /// This program, brought along; where that cannot be, the shell.
    Push,
    /// The shell.
    None,
}

/// How to reach the other end.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// The command that reaches a host; ssh unless given.
    pub rsh: Option<String>,
    /// What to run there; `holesync` in its PATH unless given.
    pub remote_path: Option<String>,
    /// What has to run there.
    pub agent: Agent,
    /// Who chooses the cipher.
    pub cipher: Cipher,
    /// The umask of this process.
    pub umask: u32,
}

/// What was found at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Who answered.
    pub far: Far,
    /// Whether the processor there has instructions for AES, if that is known.
    pub aes: Option<bool>,
}

/// Who answered at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Far {
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
pub fn command(reach: &Reach) -> Result<(String, &str)> {
    let program = reach.remote_path.as_deref().unwrap_or(PROGRAM);
    if program.contains(['\n', '\0']) {
        return Err(Error::Usage("--remote-path: a command of more than one line".into()));
    }
    Ok(match reach.agent {
        Agent::Require => (format!("{program} agent"), program),
        Agent::Auto | Agent::Push | Agent::None => (LOADER.into(), "sh"),
    })
}

/// Learns who is at the other end of that command, and brings an agent along if
/// that is wanted. What could not be done as wished is told.
///
/// # Errors
///
/// [`Error::Start`] when nobody answers, [`Error::Version`] when an agent speaks
/// another version of the protocol.
pub fn climb(
    input: &mut Input,
    output: &mut Output,
    host: &Host,
    reach: &Reach,
    reporter: &dyn Reporter,
) -> Result<Found> {
    let mut aes = None;
    let greeting = if reach.agent == Agent::Require {
        Some(input.await_greeting(MAX_NOISE)?)
    } else {
        let program = match reach.agent {
            Agent::Push | Agent::None => "",
            Agent::Auto | Agent::Require => reach.remote_path.as_deref().unwrap_or(PROGRAM),
        };
        output.plain(&script(&[("program", program), ("version", VERSION)], &[LADDER])?)?;
        output.flush()?;
        match input.await_greeting_or(MARK, MAX_NOISE)? {
            Some(greeting) => Some(greeting),
            None => {
                let shell = Shell::read(input)?;
                aes = shell.aes;
                push(&shell, input, output, host, reach, reporter)?
            }
        }
    };
    let Some(Greeting { version, aes }) = greeting else {
        reporter
            .event(Event::Note(&format!("the shell answered on {host}, and takes part without a holesync")));
        return Ok(Found { far: Far::Shell, aes });
    };
    reporter.event(Event::Note(&format!("holesync answered on {host}, protocol {version}")));
    output.greet(cipher::aes_here())?;
    Ok(Found { far: Far::Agent, aes })
}

/// A script as the shell at the other end loads it, of several texts, with variables
/// set before.
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

/// What the shell says of itself behind [`MARK`].
struct Shell {
    /// Whether a program of this version was left there earlier.
    pushed: bool,
    /// Whether the processor has instructions for AES, if it could tell.
    aes: Option<bool>,
    /// What `uname -sm` says.
    system: String,
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

/// Runs the agent that was brought to the other end before, or brings it there:
/// its greeting. `None`: the shell has to do.
fn push(
    shell: &Shell,
    input: &mut Input,
    output: &mut Output,
    host: &Host,
    reach: &Reach,
    reporter: &dyn Reporter,
) -> Result<Option<Greeting>> {
    let wanted = reach.agent == Agent::Push;
    if !wanted && (reach.agent == Agent::None || !shell.pushed) {
        return Ok(None);
    }
    let cannot = |why: &str| {
        let what = format!("cannot bring holesync to {host}: {why}; its shell takes part instead");
        reporter.event(Event::Warning(&what));
        Ok(None)
    };
    if !fits(&shell.system) {
        return cannot(&format!(
            "it is \"{}\", and this is a program for another",
            escape(shell.system.as_bytes())
        ));
    }
    let program = match std::fs::read("/proc/self/exe") {
        Ok(program) => program,
        Err(error) => return cannot(&format!("this program cannot be read: {error}")),
    };
    let sum = hex(&Sha256::digest(&program));
    let variables = [
        ("name", &*format!("agent-{VERSION}-{}", &sum[..16])),
        ("sum", &sum),
        ("size", &program.len().to_string()),
        ("send", if wanted { "yes" } else { "no" }),
    ];
    output.plain(&script(&variables, &[PUSHER])?)?;
    output.flush()?;
    let mut broken = None;
    loop {
        let line = input.plain().line().map_err(|error| broken.take().unwrap_or(error))?;
        match line.as_slice() {
            b"want" => {
                reporter.event(Event::Note(&format!("bringing {} to {host}", human(program.len() as u64))));
                // Where it cannot be written there, the next line says so.
                if let Err(error) = output.plain(&program).and_then(|()| output.flush()) {
                    broken = Some(error);
                }
            }
            note if note.starts_with(b"note ") => {
                reporter.event(Event::Warning(&format!("{host}: {}", escape(&note[5..]))));
            }
            b"have" => return input.await_greeting(0).map(Some),
            other if other.starts_with(b"lost ") => {
                let why = "this program did not arrive there whole: is there room in the cache directory?";
                return Err(Error::Start(format!("{host}: {why}")));
            }
            other => {
                let why = escape(other.strip_prefix(b"none ").unwrap_or(other));
                return if wanted { cannot(&why) } else { Ok(None) };
            }
        }
    }
}

/// Whether this program runs on what `uname -sm` said.
fn fits(system: &str) -> bool {
    let machine = match std::env::consts::ARCH {
        "x86" => &["i386", "i486", "i586", "i686", "x86_64"][..],
        "arm" => &["armv6l", "armv7l", "armv8l"],
        other => &[other],
    };
    system.strip_prefix("Linux ").is_some_and(|found| machine.contains(&found))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
