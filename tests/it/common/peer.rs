//! The far side: a real sshd, or a shell script in the place of ssh.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use holesync::protocol::{Frame, FrameReader, MAX_NOISE, Message};

use super::lab;
use super::process::{PROGRAM, holesync};

/// A stand-in for ssh. Like sshd it hands the words after the host, joined by
/// spaces, to a shell; that is `"$command"` here. `agent` runs it, and `noted FILE` notes there what it says.
const PROLOGUE: &str = r#"
while [ $# -gt 0 ]; do
    case $1 in
        -[plobcDEeFIiJLmORSWw]) shift 2 ;;
        -*) shift ;;
        *) break ;;
    esac
done
host=$1
shift
command=$*
agent() { sh -c "$command"; }
noted() {
    : >"$1"
    { agent; echo $? >"$1.code"; } | tee -a "$1"
    return "$(cat "$1.code")"
}
"#;

/// A way to reach the far side.
#[derive(Debug, Clone)]
pub struct Peer {
    rsh: String,
    program: String,
    agent: &'static str,
}

impl Peer {
    /// The private sshd; `None`, and a counted skip, where there is none.
    pub fn sshd() -> Option<Peer> {
        let ssh = lab::root().map(|root| root.join("sshd/ssh")).filter(|path| path.is_file());
        if ssh.is_none() {
            lab::skip("no private sshd");
        }
        ssh.map(|path| Peer::over(path.to_str().expect("a plain path"), "auto"))
    }

    /// A shell script in the place of ssh, kept in `dir`.
    pub fn script(dir: &Path, body: &str) -> Peer {
        let path = dir.join("peer.sh");
        std::fs::write(&path, format!("{PROLOGUE}\n{body}\n")).expect("write the script");
        // Through sh, since a file just written may still be open for writing
        // in a child that another test forks at this moment (ETXTBSY).
        Peer::over(&format!("sh {}", path.to_str().expect("a plain path")), "require")
    }

    /// An agent at the other end of two pipes, without ssh.
    pub fn pipe(dir: &Path) -> Peer {
        Peer::script(dir, "agent")
    }

    /// Another command in the place of ssh.
    pub fn over(rsh: &str, agent: &'static str) -> Peer {
        Peer { rsh: rsh.to_owned(), program: PROGRAM.to_owned(), agent }
    }

    /// The same, with another program as the agent.
    pub fn with_program(self, program: &Path) -> Peer {
        Peer { program: program.to_str().expect("a plain path").to_owned(), ..self }
    }

    /// The command that stands for ssh.
    pub fn rsh(&self) -> &str {
        &self.rsh
    }

    /// The program, told how to reach the far side.
    pub fn holesync(&self) -> Command {
        let mut command = holesync();
        command.args(["-e", &self.rsh, "--remote-path", &self.program, "--agent", self.agent]);
        command
    }

    /// The same, but with no use for a holesync at the other end.
    pub fn shell(&self) -> Command {
        let mut command = holesync();
        command.args(["-e", &self.rsh, "--agent=none"]);
        command
    }
}

/// Whether an agent whose words are noted there has said that it waits for the others.
pub fn is_prepared(noted: &Path) -> bool {
    let Ok(noted) = File::open(noted) else { return false };
    let mut said = FrameReader::new(noted, "the agent");
    if said.await_greeting(MAX_NOISE).is_err() {
        return false;
    }
    // What has not come yet is an error as any other.
    std::iter::from_fn(|| said.read().ok())
        .any(|frame| matches!(frame, Frame::Message(Message::Prepared { .. })))
}

/// `path` on the host that every [`Peer`] knows.
pub fn at(path: impl AsRef<Path>) -> OsString {
    let mut location = OsString::from("peer:");
    location.push(path.as_ref());
    location
}

/// A path as a word of the shell.
pub fn shell_word(path: &Path) -> String {
    format!("'{}'", path.to_str().expect("a plain path").replace('\'', r"'\''"))
}
