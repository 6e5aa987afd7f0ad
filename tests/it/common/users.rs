//! Runs the program as somebody else, or below another program.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::lab;
use super::peer::Peer;
use super::process::{Outcome, PROGRAM, run};
use super::tree::{Way, set_mode};

/// A program and a peer that any user may run.
pub struct Common {
    dir: TempDir,
    program: PathBuf,
    peer: Peer,
}

impl Common {
    pub fn new() -> Common {
        let dir = lab::scratch();
        set_mode(dir.path(), 0o755);
        let program = lab::install(Path::new(PROGRAM), dir.path());
        let peer = Peer::pipe(dir.path()).with_program(&program);
        Common { dir, program, peer }
    }

    /// A directory that any user may read.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The program, run by `wrap`.
    pub fn program(&self, wrap: &[&str]) -> Command {
        wrapped(wrap, &self.program)
    }

    /// One run, of both ends, below `wrap`.
    pub fn run(&self, wrap: &[&str], way: Way, flags: &[&str], from: &Path, to: &Path) -> Outcome {
        let sources: [&OsStr; 1] = [from.as_ref()];
        let plain = way.command(Some(&self.peer), flags, &sources, to.as_ref());
        run(self.program(wrap).args(plain.get_args()))
    }
}

/// A program below another one.
pub fn wrapped(wrap: &[&str], program: &Path) -> Command {
    let mut command = match wrap {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    command.env("LC_ALL", "C").env_remove("RSYNC_RSH");
    command
}

/// What runs a command as a user with this number, and the group's.
pub const fn as_user<'a>(uid: &'a str, gid: &'a str) -> [&'a str; 7] {
    ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--"]
}
