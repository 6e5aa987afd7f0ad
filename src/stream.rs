//! A sparse image as a stream of text records, in and out: `DATA\n<n>\n` and n
//! bytes, `HOLE\n<n>\n`, and, where the end has to be told from a break,
//! `END\n<size>\n`. Any shell can read it. A stream becomes a file (`receive`) or the
//! stdin of a command (`through`). A plain image becomes a file or device (`plain`, `made`),
//! also one of a chunk store (`casync`); any image is told as a bmap (`bmap`).

mod bmap;
pub mod casync;
mod made;
mod plain;
mod receive;
mod record;
mod through;

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use crate::confinement::NamedPath;
use crate::error::{Error, Result};
use crate::protocol::MAX_LENGTH;
use crate::scan::{self, FileImage, FileState, Image};

pub use bmap::Bmap;
pub use made::{make, report};
pub use plain::PlainImage;
pub use receive::{expand, receive_file};
pub use record::Record;
pub use through::run_command;

/// Bytes read or written at a time.
const CHUNK: usize = 1 << 20;
/// Takes the content of a stream, in order.
pub trait Sink {
    /// Takes the next bytes.
    ///
    /// # Errors
    ///
    /// When they cannot be written.
    fn data(&mut self, bytes: &[u8]) -> Result<()>;

    /// Takes this many zeros.
    ///
    /// # Errors
    ///
    /// When they cannot be written.
    fn hole(&mut self, len: u64) -> Result<()>;
}

/// A sink that writes the plain bytes of an image, zeros included.
#[derive(Debug)]
pub struct Expand<W: Write> {
    /// Where the bytes are written to.
    pub out: W,
    /// The name of `out`, for the error.
    pub what: String,
}

impl<W: Write> Sink for Expand<W> {
    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(Error::file("write to", &self.what))
    }

    fn hole(&mut self, len: u64) -> Result<()> {
        static ZEROS: [u8; 128 << 10] = [0; 128 << 10];
        let mut left = len;
        while left > 0 {
            let n = left.min(ZEROS.len() as u64);
            self.data(&ZEROS[..n as usize])?;
            left -= n;
        }
        Ok(())
    }
}

/// An image that is read to be written as a stream.
#[derive(Debug)]
pub struct ImageStream {
    path: PathBuf,
    image: FileImage,
    /// Its length in bytes.
    pub length: u64,
    seen: FileState,
}

impl ImageStream {
    /// Opens a regular file or block device. `hole_map` false: read its holes too.
    ///
    /// # Errors
    ///
    /// When it is neither, or cannot be opened.
    pub fn open(path: &Path, hole_map: bool) -> Result<ImageStream> {
        let (file, _) = scan::open_image(&NamedPath::here(path))?;
        let (seen, _) = FileState::settled(&file).map_err(Error::file("look at", path))?;
        let (image, length) = (FileImage::new(file, hole_map), seen.length);
        Ok(ImageStream { path: path.to_path_buf(), image, length, seen })
    }

    /// Gives the records to `write`, in parts: one for each extent and each
    /// hole, and with `end` one for the end. Returns how many bytes of data that were.
    ///
    /// # Errors
    ///
    /// When the image cannot be read, or changed meanwhile (then there is no record
    /// for the end), and those of `write`.
    pub fn send(&self, end: bool, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
        let sent = self.read(|part| match part {
            Part::Hole(len) => write(Record::Hole(len).to_string().as_bytes()),
            Part::Data(len) => write(Record::Data(len).to_string().as_bytes()),
            Part::Bytes(bytes) => write(bytes),
        })?;
        if end {
            write(Record::End(self.length).to_string().as_bytes())?;
        }
        Ok(sent)
    }

    /// Puts the image into a sink without a stream between. Returns how many bytes of data
    /// that were.
    ///
    /// # Errors
    ///
    /// As for [`ImageStream::send`].
    pub fn pour(&self, sink: &mut impl Sink) -> Result<u64> {
        self.read(|part| match part {
            Part::Hole(len) => sink.hole(len),
            Part::Data(_) => Ok(()),
            Part::Bytes(bytes) => sink.data(bytes),
        })
    }

    fn read(&self, mut take: impl FnMut(Part) -> Result<()>) -> Result<u64> {
        let unread = || Error::file("read", &self.path);
        let mut buffer = vec![0; CHUNK];
        let (mut at, mut sent) = (0, 0);
        for extent in self.image.extents(0..self.length) {
            let extent = extent.map_err(unread())?;
            if extent.start > at {
                take(Part::Hole(extent.start - at))?;
            }
            take(Part::Data(extent.end - extent.start))?;
            sent += extent.end - extent.start;
            at = extent.start;
            while at < extent.end {
                let n = (extent.end - at).min(CHUNK as u64) as usize;
                self.image.read_at(&mut buffer[..n], at).map_err(unread())?;
                take(Part::Bytes(&buffer[..n]))?;
                at += n as u64;
            }
        }
        if at < self.length {
            take(Part::Hole(self.length - at))?;
        }
        if FileState::of(self.image.file()).map_err(unread())? != self.seen {
            return Err(Error::refused(&self.path, "changed while it was read; send a snapshot"));
        }
        Ok(sent)
    }
}

/// What reading an image comes upon, in order.
enum Part<'a> {
    Hole(u64),
    /// An extent of this length begins; its bytes follow in pieces.
    Data(u64),
    Bytes(&'a [u8]),
}

/// Reads a stream up to its END record, or up to its end if it has none, and
/// returns the size of the image and whether there was such a record. With a
/// `size`, that is what it must be. `peer` names the other end in errors.
///
/// # Errors
///
/// [`Error::Closed`] when the stream breaks off, [`Error::Protocol`] for
/// anything that is no such stream, and those of the sink.
pub fn read_records(
    input: &mut impl BufRead,
    peer: &str,
    size: Option<u64>,
    sink: &mut impl Sink,
) -> Result<(u64, bool)> {
    let broken = |what: String| Error::Protocol { peer: peer.into(), what };
    let mut at: u64 = 0;
    loop {
        let record = Record::read(input, peer)?;
        let (Some(Record::Data(count) | Record::Hole(count)), limit) = (record, size.unwrap_or(MAX_LENGTH))
        else {
            let ends_well = |end| end == at && size.is_none_or(|size| size == at);
            return match record {
                Some(Record::End(end)) if ends_well(end) => Ok((at, true)),
                Some(Record::End(end)) => Err(broken(format!("an end at {end} after {at} bytes"))),
                _ if ends_well(at) => Ok((at, false)),
                _ => Err(closed(peer)),
            };
        };
        let next = at.checked_add(count).filter(|&next| next <= limit);
        let next =
            next.ok_or_else(|| broken(format!("a record of {count} bytes at {at}, beyond {limit}")))?;
        match record {
            Some(Record::Data(_)) => copy(input, peer, count, sink)?,
            _ => sink.hole(count)?,
        }
        at = next;
    }
}

fn copy(input: &mut impl BufRead, peer: &str, mut left: u64, sink: &mut impl Sink) -> Result<()> {
    while left > 0 {
        let bytes = fill(input, peer)?;
        if bytes.is_empty() {
            return Err(closed(peer));
        }
        let n = (bytes.len() as u64).min(left) as usize;
        sink.data(&bytes[..n])?;
        input.consume(n);
        left -= n as u64;
    }
    Ok(())
}

/// The next bytes, as many as are in the buffer or are read at once; none at the end.
pub(crate) fn fill<'a>(input: &'a mut impl BufRead, peer: &str) -> Result<&'a [u8]> {
    loop {
        // The buffer is asked for twice: a borrow that is returned cannot end in a loop.
        match input.fill_buf() {
            // The end is not read again: a terminal would wait for more.
            Ok([]) => return Ok(&[]),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::link("reading", peer, source)),
        }
    }
    input.fill_buf().map_err(|source| Error::link("reading", peer, source))
}

fn closed(peer: &str) -> Error {
    Error::closed(peer)
}
