//! A command in the place of a destination: it reads the whole image, zeros
//! included, from its stdin, and the image counts only if it ends well.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::remote;
use crate::stream::Expand;

/// Runs `command` in a shell, has `feed` write the image to it, and waits for it.
/// The command finds `destination` in HOLESYNC_DEST and the image's size, in bytes, in
/// HOLESYNC_SIZE. What it prints goes to stderr: stdout may be for other things.
///
/// # Errors
///
/// When the command cannot be started, does not read all or does not end with 0; those of
/// `feed`, after which the command is killed: it must not take a part for the whole.
pub fn run_command(
    command: &OsStr,
    destination: &Path,
    size: u64,
    feed: impl FnOnce(&mut Expand<ChildStdin>) -> Result<()>,
) -> Result<()> {
    let stderr = io::stderr().as_fd().try_clone_to_owned();
    let stderr = stderr.map_err(Error::file("use", "stderr"))?;
    let spawned = Command::new("sh")
        .arg("-c")
        .arg(command)
        .env("HOLESYNC_DEST", destination)
        .env("HOLESYNC_SIZE", size.to_string())
        .stdin(Stdio::piped())
        .stdout(stderr)
        .process_group(0)
        .spawn();
    let mut child = spawned.map_err(Error::file("run", "sh"))?;
    let group = Pid::from_raw(child.id() as i32);
    let _watch = remote::Watch::group(group);
    feed_child(&mut child, destination, command, feed, group)
}

fn feed_child(
    child: &mut Child,
    destination: &Path,
    command: &OsStr,
    feed: impl FnOnce(&mut Expand<ChildStdin>) -> Result<()>,
    group: Pid,
) -> Result<()> {
    let what = format!("the command {}", command.to_string_lossy());
    let Some(out) = child.stdin.take() else {
        return Err(Error::refused(destination, "the command has no stdin"));
    };
    let mut sink = Expand { out, what: what.clone() };
    let fed = feed(&mut sink);
    // A command that does not read the rest has closed its stdin.
    let unread =
        matches!(&fed, Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe);
    if fed.is_err() && !unread {
        // The command may have ended by itself.
        let _ = killpg(group, Signal::SIGKILL);
    }
    drop(sink);
    let status = child.wait().map_err(Error::file("wait for", &what))?;
    match fed {
        Err(error) if !unread => Err(error),
        _ if !status.success() => Err(Error::refused(destination, format!("{what} ended with {status}"))),
        Err(_) => {
            Err(Error::refused(destination, format!("{what} ended before it had read the whole image")))
        }
        Ok(()) => Ok(()),
    }
}
