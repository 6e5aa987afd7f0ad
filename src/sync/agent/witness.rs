//! Whether two agents would write to the same place, as the same user: one bears witness of a token, the
//! other one asks for it. From another host a name may lead elsewhere.
//!
//! The witness listens on an abstract socket, unix(7), whose name follows from the token, and shows
//! the hash of all that decides where paths lead and what is made there: the namespace of mounts, the root, the
//! directory that the process is in, its home, its groups and its umask. The kernel tells either whose the
//! other one is. An agent that is confined has another place of its own, and is never the same.

use std::fs;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use nix::unistd::{getegid, getgroups};

use crate::protocol::RunId;
use crate::sync::takeover::{reach, same_user};

/// How long either may take to say what it has to.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bears witness until this process ends.
///
/// # Errors
///
/// When nobody can listen here, or it cannot be told where this is.
pub fn bear(token: &RunId, umask: u32) -> io::Result<()> {
    let place = place(umask)?;
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name_of(token))?)?;
    std::thread::Builder::new().spawn(move || {
        for asking in listener.incoming() {
            match asking {
                // Who asks may be gone, or a stranger.
                Ok(asking) => drop(show(asking, &place)),
                // Too many files are open, for one: that may pass.
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    })?;
    Ok(())
}

fn show(mut asking: UnixStream, place: &blake3::Hash) -> io::Result<()> {
    same_user(&asking)?;
    asking.set_write_timeout(Some(PATIENCE))?;
    asking.write_all(place.as_bytes())
}

/// Whether the witness of this token is this user's, and where this process is.
pub fn is_here(token: &RunId, umask: u32) -> bool {
    let ask = || -> io::Result<bool> {
        let (mut witness, _) = reach(&name_of(token))?;
        witness.set_read_timeout(Some(PATIENCE))?;
        let mut shown = [0; blake3::OUT_LEN];
        witness.read_exact(&mut shown)?;
        Ok(place(umask)? == shown)
    };
    ask().unwrap_or(false)
}

/// The token itself is not shown to those who list sockets.
fn name_of(token: &RunId) -> String {
    format!("holesync-witness-{}", &blake3::hash(token).to_hex()[..32])
}

/// All that decides where paths lead, and whose what is made there is.
fn place(umask: u32) -> io::Result<blake3::Hash> {
    let mut place = blake3::Hasher::new();
    for path in ["/proc/self/ns/mnt", "/", "."] {
        let at = fs::metadata(path)?;
        place.update(&at.dev().to_le_bytes()).update(&at.ino().to_le_bytes());
    }
    let mut groups: Vec<u32> = getgroups()?.into_iter().map(|group| group.as_raw()).collect();
    groups.sort_unstable();
    for number in [umask, getegid().as_raw()].into_iter().chain(groups) {
        place.update(&number.to_le_bytes());
    }
    place.update(std::env::home_dir().unwrap_or_default().as_os_str().as_bytes());
    Ok(place.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_bears_witness_of_a_token_and_would_make_the_same_of_it_is_here() {
        let [ours, other] = [1, 2].map(|number| [number; 16].map(|byte: u8| byte ^ std::process::id() as u8));
        assert!(!is_here(&ours, 0o022), "nobody has said so yet");
        bear(&ours, 0o022).unwrap();
        assert!(is_here(&ours, 0o022) && is_here(&ours, 0o022));
        assert!(!is_here(&ours, 0o077), "another umask");
        assert!(!is_here(&other, 0o022));
        assert!(bear(&ours, 0o022).is_err(), "there is one already");
    }
}
