//! The root hash of a file or device, here or at the other end of a connection.

use crate::confinement::NamedPath;
use crate::error::Result;
use crate::hashmap::{Hash, map_file};
use crate::location::Location;
use crate::protocol::{Frame, Message, Request};
use crate::sync::agent;
use crate::sync::survey::{self, Looking};

/// The root hash of a file here or on a host; of a map, that of its image.
///
/// # Errors
///
/// When it cannot be read, the host cannot be reached, or there is no holesync.
pub fn digest(location: &Location, looking: Looking) -> Result<Hash> {
    let (host, path) = match location {
        Location::Local(path) if map_file::is_map(path) => return survey::root_of_map(path),
        Location::Local(path) => return agent::digest(&NamedPath::here(path), looking.options, || true),
        Location::Remote(host, path) => (host, path),
    };
    looking.connect(host, |initiator, mut input, mut output| {
        initiator.request(&mut output, Request::Digest { paths: vec![path.as_path().into()] })?;
        loop {
            match input.read()? {
                Frame::Message(Message::Busy(_)) => {}
                Frame::Message(Message::Digest { root }) => return Ok(root),
                _ => return Err(input.bad("something else than a hash")),
            }
        }
    })
}
