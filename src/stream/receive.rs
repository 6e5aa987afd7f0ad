//! A stream of records from stdin becomes a file, or plain bytes.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use crate::apply::tree::{DestinationRoot, Target};
use crate::apply::{Attributes, BasisState, Destination, Opened, QuickCheck, Setup, Wanted};
use crate::confinement::NamedPath;
use crate::error::{Error, Result};
use crate::hashmap::Hash;
use crate::options::Options;
use crate::stream::{self, Expand, Sink};

/// The name of the stream in errors.
const PEER: &str = "stdin";
const BUFFER: usize = 1 << 20;

/// Makes `path` the image that a stream describes. With a `size`, it must have so
/// many bytes. A stream without an END record, and without a size, is taken to be
/// whole where it ends. What an interrupted run left half written is finished first;
/// `warn` is told.
///
/// # Errors
///
/// When the stream breaks off or is none, and when the file cannot be written.
/// Then there is no new file.
pub fn receive_file(
    input: File,
    path: &Path,
    size: Option<u64>,
    options: Options,
    umask: u32,
    warn: impl FnOnce(&str),
) -> Result<()> {
    let target = Target::new(NamedPath::here(path), false, umask);
    let root = DestinationRoot::find(&target, true, &options)?;
    let directory = || Error::refused(path, "is a directory: name the file that is to be written");
    if !root.is_file() {
        return Err(directory());
    }
    let place = root.place(b"", false)?.ok_or_else(directory)?;
    let attributes = Attributes { new_mode: 0o666 & !umask, ..Attributes::default() };
    let (length, quick_check) = (size.unwrap_or(0), QuickCheck::Never);
    let wanted = Wanted { length, data: 0, whole: true, quick_check, attributes };
    // An empty input where there is an image more likely means that its writer has died.
    let refuse_empty =
        size.is_none() && std::fs::metadata(path).is_ok_and(|old| !old.is_file() || old.len() > 0);
    let opening = Destination::open(place, wanted, &Setup::new(Arc::new(options)))?;
    if let Some(warning) = opening.recovered.warning(path) {
        warn(&warning.message);
    }
    // A stream is neither compared nor only tried.
    let Opened::Different(destination) = opening.opened else { return Ok(()) };
    let mut sink = GrowingFile { destination: *destination, at: 0 };
    match receive(input, size, refuse_empty, &mut sink) {
        Ok(size) => {
            sink.destination.extend(size)?;
            let finished = sink.destination.finish(&Hash::default(), 0)?;
            finished.unset.map_or(Ok(()), |unset| Err(Error::Unset(unset)))
        }
        Err(error) => Err(sink.destination.discard_after(error)),
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

/// Reads the whole input and returns the size of the image. `refuse_empty`: an input without
/// a single byte is an error.
fn receive(input: File, size: Option<u64>, refuse_empty: bool, sink: &mut impl Sink) -> Result<u64> {
    let mut input = BufReader::with_capacity(BUFFER, input);
    if refuse_empty && stream::fill(&mut input, PEER)?.is_empty() {
        let what = "nothing at all, and the old file is not empty; --size 0 would make it so".into();
        return Err(Error::Protocol { peer: PEER.into(), what });
    }
    refuse_image(stream::fill(&mut input, PEER)?)?;
    let (size, ended) = stream::read_records(&mut input, PEER, size, sink)?;
    if !ended || stream::fill(&mut input, PEER)?.is_empty() {
        return Ok(size);
    }
    Err(Error::Protocol { peer: PEER.into(), what: "something behind the end".into() })
}

/// An image in the place of a stream of records is told from one that is damaged.
fn refuse_image(head: &[u8]) -> Result<()> {
    let begins = |kind: &[u8]| head.starts_with(kind) || kind.starts_with(head);
    if [&b"DATA\n"[..], b"HOLE\n", b"END\n"].into_iter().any(begins) {
        return Ok(());
    }
    let what = "no stream of records, as holesync send writes it: a plain image is sent with holesync IMG FILE, or from \
                stdin with ... | holesync - FILE, a packed one when it is unpacked";
    Err(Error::Protocol { peer: PEER.into(), what: what.into() })
}

/// A sink that writes a file, which grows as the stream goes on.
struct GrowingFile {
    destination: Destination,
    at: u64,
}

impl Sink for GrowingFile {
    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let at = self.at;
        self.at += bytes.len() as u64;
        if self.destination.basis_state() != BasisState::Blank {
            self.destination.extend(self.at)?;
        }
        self.destination.write(at, bytes)
    }

    fn hole(&mut self, len: u64) -> Result<()> {
        let range = self.at..self.at + len;
        self.at = range.end;
        // Some file systems allocate ahead of a file that grows by writes.
        self.destination.extend(range.end)?;
        match self.destination.basis_state() {
            BasisState::Blank => Ok(()),
            BasisState::Mapped | BasisState::Unknown => self.destination.zero(range),
        }
    }
}
