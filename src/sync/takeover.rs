//! One agent of a run at a time. An agent whose connection died may not know it yet, and
//! holds locks; the next one of the same run asks it to end, and waits until it has.
//!
//! It listens on an abstract socket, unix(7), whose name follows from the id of the run. Who
//! asks must be the same user and know the id; who is asked must be the same user. An agent
//! that is asked ends as if its connection had broken: what it received is kept, and a file
//! whose log is sealed is finished first. The end of its process ends the socket.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::unistd::{Pid, geteuid};

use crate::error::Result;
use crate::protocol::{RunId, Silence};

/// How long the agent before may take to finish what it is at.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long who asks may take to say for which run.
const ASKING: Duration = Duration::from_secs(1);

/// Has the agent that served this run before end. `waiting` is called after each `pause`
/// until it has. Where it does not end in time, its locks tell so.
///
/// # Errors
///
/// Those of `waiting`.
pub fn end_earlier(run: &RunId, pause: Duration, mut waiting: impl FnMut() -> Result<()>) -> Result<()> {
    let Ok(mut earlier) = ask(run) else { return Ok(()) };
    let start = Instant::now();
    while start.elapsed() < PATIENCE && earlier.set_read_timeout(Some(pause)).is_ok() {
        match earlier.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => waiting()?,
            _ => break,
        }
    }
    Ok(())
}

/// Asks the agent that serves a run to end, if there is one of this user.
fn ask(run: &RunId) -> io::Result<UnixStream> {
    let (mut asking, other) = reach(&name_of(run))?;
    asking.write_all(run)?;
    // One that is stopped does not listen.
    kill(other, Signal::SIGCONT)?;
    Ok(asking)
}

/// Connects to a process of this user that listens on an abstract socket, and which that is.
///
/// # Errors
///
/// When there is none, or others fill its queue: nobody is waited for.
pub(super) fn reach(name: &str) -> io::Result<(UnixStream, Pid)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
    let pid = same_user(&socket)?;
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(false)?;
    Ok((socket, pid))
}

/// The process at the other end, which must be this user's.
///
/// # Errors
///
/// When it is not, or cannot be told.
pub(super) fn same_user(socket: &impl AsFd) -> io::Result<Pid> {
    let other = socket::getsockopt(socket, sockopt::PeerCredentials)?;
    if other.uid() != geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(Pid::from_raw(other.pid()))
}

/// Has this agent end when a later one of its run asks. Where that cannot be, the later one
/// finds its locks.
pub fn end_when_asked(run: RunId, silence: Arc<Silence>) {
    let bound = SocketAddr::from_abstract_name(name_of(&run)).and_then(|name| UnixListener::bind_addr(&name));
    let Ok(listener) = bound else { return };
    std::thread::spawn(move || {
        // They stay open: their end is that of this process.
        let mut asked = Vec::new();
        for asking in listener.incoming() {
            match asking {
                Ok(asking) if is_entitled(&asking, &run) => {
                    silence.supersede();
                    asked.push(asking);
                }
                Ok(_) => {}
                // Too many files are open, for one: that may pass.
                Err(_) => std::thread::sleep(ASKING),
            }
        }
    });
}

fn is_entitled(mut asking: &UnixStream, run: &RunId) -> bool {
    let mut said = RunId::default();
    same_user(&asking).is_ok()
        && asking.set_read_timeout(Some(ASKING)).is_ok()
        && asking.read_exact(&mut said).is_ok()
        && said == *run
}

/// The id itself is not shown to those who list sockets.
fn name_of(run: &RunId) -> String {
    format!("holesync-{}", &blake3::hash(run).to_hex()[..32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Again, Error};

    #[test]
    fn nobody_is_asked_where_there_is_nobody() {
        end_earlier(&[1; 16], Duration::from_millis(1), || panic!("somebody answers")).unwrap();
    }

    #[test]
    fn only_the_same_run_is_asked() {
        end_when_asked([2; 16], Arc::default());
        end_earlier(&[3; 16], Duration::from_millis(1), || panic!("somebody answers")).unwrap();
        let mut count = 0;
        // It lives as long as this process.
        let waited = end_earlier(&[2; 16], Duration::from_millis(1), || {
            count += 1;
            if count == 3 { Err(Error::Interrupted(Again::GoesOn)) } else { Ok(()) }
        });
        assert!(waited.is_err());
    }
}
