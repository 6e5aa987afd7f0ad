//! A stream of records from anywhere, made into a file, or into plain bytes.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use crate::apply::place::Attributes;
use crate::apply::tree::{DestinationRoot, Target};
use crate::apply::{Destination, Request};
use crate::error::{Error, Result};
use crate::hashmap::Hash;
use crate::options::Options;
use crate::stream::{self, Expand, Sink};

/// Who writes the stream, in errors.
const PEER: &str = "stdin";
const BUFFER: usize = 1 << 20;

/// Makes `path` the image that a stream describes. With a `size`, it must have so
/// many bytes. A stream without an END record, and without a size, is taken to be
/// whole where it ends.
///
/// # Errors
///
/// When the stream breaks off or is none, and when the file cannot be written.
/// Then there is no new file.
pub fn run(input: File, path: &Path, size: Option<u64>, options: Options, umask: u32) -> Result<()> {
    let target = Target { path: path.to_path_buf(), directory: false, umask };
    let root = DestinationRoot::find(&target, true, false)?;
    let directory = || Error::refused(path, "is a directory: name the file that is to be written");
    if !root.is_file() {
        return Err(directory());
    }
    let place = root.place(b"", false)?.ok_or_else(directory)?;
    let attributes = Attributes { new_mode: 0o666 & !umask, ..Attributes::default() };
    let request = Request { length: size.unwrap_or(0), data: 0, whole: true, attributes };
    // Whoever was to write it is more likely to have died than to mean an empty image.
    let keeps = size.is_none() && std::fs::metadata(path).is_ok_and(|old| !old.is_file() || old.len() > 0);
    let destination = Destination::open(place, request, Arc::new(options))?;
    let mut sink = GrowingFile { destination, at: 0 };
    match receive(input, size, keeps, &mut sink) {
        Ok(size) => {
            sink.destination.extend(size)?;
            sink.destination.finish(&Hash::default(), 0).map(drop)
        }
        Err(error) => {
            sink.destination.discard();
            Err(error)
        }
    }
}

/// Writes the plain bytes of the image that a stream describes.
///
/// # Errors
///
/// When the stream breaks off or is none, or nobody reads.
pub fn expand(input: File, out: File, size: Option<u64>) -> Result<()> {
    let mut sink = Expand { out, what: "stdout".into() };
    receive(input, size, false, &mut sink).map(drop)
}

/// The whole of the input, which may have to be something; the size of the image.
fn receive(input: File, size: Option<u64>, not_nothing: bool, sink: &mut impl Sink) -> Result<u64> {
    let mut input = BufReader::with_capacity(BUFFER, input);
    if not_nothing && stream::fill(&mut input, PEER)?.is_empty() {
        let what = "nothing at all, and the old file is not empty; --size 0 would make it so".into();
        return Err(Error::Protocol { peer: PEER.into(), what });
    }
    let (size, ended) = stream::receive(&mut input, PEER, size, sink)?;
    if !ended || stream::fill(&mut input, PEER)?.is_empty() {
        return Ok(size);
    }
    Err(Error::Protocol { peer: PEER.into(), what: "something behind the end".into() })
}

/// A file that grows as the stream goes on.
struct GrowingFile {
    destination: Destination,
    at: u64,
}

impl Sink for GrowingFile {
    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let at = self.at;
        self.at += bytes.len() as u64;
        if !self.destination.is_blank() {
            self.destination.extend(self.at)?;
        }
        self.destination.write(at, bytes)
    }

    fn hole(&mut self, len: u64) -> Result<()> {
        let range = self.at..self.at + len;
        self.at = range.end;
        // Some file systems allocate ahead of a file that grows by writes.
        self.destination.extend(range.end)?;
        if self.destination.is_blank() { Ok(()) } else { self.destination.zero(range) }
    }
}
