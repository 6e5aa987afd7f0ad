//! Reads the only file of an archive that GNU tar wrote with `--sparse` and
//! `--format=posix`: pax headers, and for a file with holes a map before its data
//! (tar(5), "pax interchange format"; the manual of GNU tar, "PAX Format, Version
//! 1.0"). Everything in it is checked before it is used.

use std::io::{BufRead, Read};
use std::ops::Range;

use crate::error::{Error, Result};
use crate::protocol::MAX_LENGTH;
use crate::stream::{self, Sink};

/// Archives consist of blocks of this many bytes.
const TAR_BLOCK: usize = 512;
/// The most bytes in the records of one pax header.
const MAX_RECORDS: u64 = 1 << 20;
/// The most extents in a map, 16 bytes of memory each.
const MAX_EXTENTS: u64 = 1 << 22;

/// Reads an archive to the end of its last block of `factor` times 512 bytes, and
/// its only file, of `size` bytes, into `sink`; `false`: there is none. `peer`
/// names the other end in errors.
///
/// # Errors
///
/// [`Error::Closed`] when it breaks off, [`Error::Protocol`] when it is not what
/// was asked for, and those of the sink.
pub fn receive(
    input: &mut impl BufRead,
    peer: &str,
    size: u64,
    factor: u64,
    sink: &mut impl Sink,
) -> Result<bool> {
    let mut tar = Tar { input, peer, at: 0 };
    let record = factor * TAR_BLOCK as u64;
    let Some(member) = tar.member()? else {
        tar.skip(tar.at.next_multiple_of(record) - tar.at)?;
        return Ok(false);
    };
    if member.size != size {
        return Err(tar.bad(format!("a file of {} bytes, where one of {size} was", member.size)));
    }
    let mut at = 0;
    for extent in member.extents {
        if extent.start > at {
            sink.hole(extent.start - at)?;
        }
        tar.copy(extent.end - extent.start, sink)?;
        at = extent.end;
    }
    if at < size {
        sink.hole(size - at)?;
    }
    tar.pad()?;
    if tar.member()?.is_some() {
        return Err(tar.bad("an archive of more than one file"));
    }
    tar.skip(tar.at.next_multiple_of(record) - tar.at)?;
    Ok(true)
}

struct Tar<'a, R: BufRead> {
    input: &'a mut R,
    peer: &'a str,
    at: u64,
}

/// A regular file: its size, and which of it is data, in order.
struct Member {
    size: u64,
    extents: Vec<Range<u64>>,
}

/// The records of a pax header that are of use here. They are about the next file.
#[derive(Default)]
struct Pax {
    size: Option<u64>,
    sparse: bool,
    real_size: Option<u64>,
}

impl<R: BufRead> Tar<'_, R> {
    /// Reads the headers of the next file, and its map. `None`: there is no other file.
    fn member(&mut self) -> Result<Option<Member>> {
        let mut pax = Pax::default();
        loop {
            let mut header = [0; TAR_BLOCK];
            self.fill(&mut header)?;
            if header.iter().all(|&byte| byte == 0) {
                // The end is two blocks of zeros.
                self.fill(&mut header)?;
                return if header == [0; TAR_BLOCK] {
                    Ok(None)
                } else {
                    Err(self.bad("an archive with a hole in it"))
                };
            }
            let size = self.check(&header)?;
            match header[156] {
                b'x' => pax = self.records(size)?,
                b'g' => {
                    self.records(size)?;
                }
                b'0' | 0 => return self.file(pax.size.unwrap_or(size), &pax).map(Some),
                other => return Err(self.bad(format!("an archive with something of type {other}"))),
            }
        }
    }

    /// Checks the sum of a header, and returns the size in it.
    fn check(&self, header: &[u8; TAR_BLOCK]) -> Result<u64> {
        let field = 148..156;
        let bytes = header.iter().enumerate();
        let sum: u64 = bytes.map(|(at, &byte)| if field.contains(&at) { 32 } else { u64::from(byte) }).sum();
        if number(&header[field.clone()]) != Some(sum) {
            return Err(self.bad("a damaged header of an archive"));
        }
        number(&header[124..136]).ok_or_else(|| self.bad("a header of an archive without a size"))
    }

    /// Reads the records of a pax header: `<length> <key>=<value>\n`, again and again.
    fn records(&mut self, size: u64) -> Result<Pax> {
        if size > MAX_RECORDS {
            return Err(self.bad(format!("a pax header of {size} bytes")));
        }
        let mut bytes = vec![0; size as usize];
        self.fill(&mut bytes)?;
        self.pad()?;
        let mut pax = Pax::default();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let space = rest.iter().position(|&byte| byte == b' ').unwrap_or(0);
            let length = decimal(&rest[..space]).and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            let record = rest.get(space + 1..length).filter(|record| record.ends_with(b"\n"));
            let Some((record, equals)) =
                record.and_then(|record| Some((record, record.iter().position(|&byte| byte == b'=')?)))
            else {
                return Err(self.bad("a pax header that makes no sense"));
            };
            let value = &record[equals + 1..record.len() - 1];
            let wanted = match &record[..equals] {
                b"size" => Some(&mut pax.size),
                b"GNU.sparse.realsize" => Some(&mut pax.real_size),
                b"GNU.sparse.major" => {
                    pax.sparse = value == b"1";
                    None
                }
                _ => None,
            };
            if let Some(wanted) = wanted {
                *wanted = Some(decimal(value).ok_or_else(|| self.bad("a pax header without a number"))?);
            }
            rest = &rest[length..];
        }
        Ok(pax)
    }

    /// Reads the map of a file, if it has one. `size`: the bytes of the file in the archive,
    /// its map included.
    fn file(&mut self, size: u64, pax: &Pax) -> Result<Member> {
        if !pax.sparse {
            if pax.real_size.is_some() {
                return Err(self.bad("a sparse file of another format than 1.0"));
            }
            let extents = if size > 0 { vec![Range { start: 0, end: size }] } else { Vec::new() };
            return Ok(Member { size, extents });
        }
        let real = pax.real_size.ok_or_else(|| self.bad("a sparse file without a size"))?;
        let start = self.at;
        let count = self.map_number()?;
        if count > MAX_EXTENTS {
            return Err(self.bad(format!("a file of {count} extents, more than {MAX_EXTENTS}")));
        }
        let mut extents = Vec::new();
        let (mut at, mut data) = (0, 0);
        for _ in 0..count {
            let (from, len) = (self.map_number()?, self.map_number()?);
            let end = from.checked_add(len).filter(|&end| from >= at && end <= real);
            at = end.ok_or_else(|| self.bad("a map of a sparse file that makes no sense"))?;
            data += len;
            if len > 0 {
                extents.push(from..at);
            }
        }
        self.pad()?;
        if self.at - start + data != size {
            return Err(self.bad("a sparse file whose map does not fit its size"));
        }
        Ok(Member { size: real, extents })
    }

    /// Reads a number on a line of its own.
    fn map_number(&mut self) -> Result<u64> {
        let mut digits = Vec::new();
        loop {
            let mut byte = [0];
            self.fill(&mut byte)?;
            match byte {
                [b'\n'] => break,
                [digit] if digits.len() < 20 => digits.push(digit),
                _ => return Err(self.bad("a map of a sparse file without an end")),
            }
        }
        decimal(&digits).ok_or_else(|| self.bad("a map of a sparse file that is none"))
    }

    fn copy(&mut self, mut left: u64, sink: &mut impl Sink) -> Result<()> {
        while left > 0 {
            let bytes = stream::fill(self.input, self.peer)?;
            if bytes.is_empty() {
                return Err(Error::closed(self.peer));
            }
            let n = (bytes.len() as u64).min(left) as usize;
            sink.data(&bytes[..n])?;
            self.input.consume(n);
            self.at += n as u64;
            left -= n as u64;
        }
        Ok(())
    }

    /// Skips the rest of the block.
    fn pad(&mut self) -> Result<()> {
        self.skip(self.at.next_multiple_of(TAR_BLOCK as u64) - self.at)
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        let skipped = std::io::copy(&mut self.input.by_ref().take(count), &mut std::io::sink());
        let skipped = skipped.map_err(|source| self.link(source))?;
        self.at += skipped;
        if skipped < count { Err(Error::closed(self.peer)) } else { Ok(()) }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.input.read_exact(buffer).map_err(|source| self.link(source))?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    fn link(&self, source: std::io::Error) -> Error {
        if source.kind() == std::io::ErrorKind::UnexpectedEof {
            return Error::closed(self.peer);
        }
        Error::link("reading", self.peer, source)
    }

    fn bad(&self, what: impl Into<String>) -> Error {
        Error::Protocol { peer: self.peer.into(), what: what.into() }
    }
}

/// Reads a number of a header: octal digits, or bytes after a set high bit.
fn number(field: &[u8]) -> Option<u64> {
    if let [0x80, bytes @ ..] = field {
        let [high @ .., _, _, _, _, _, _, _, _] = bytes else { return None };
        let low = u64::from_be_bytes(bytes[high.len()..].try_into().ok()?);
        return (high.iter().all(|&byte| byte == 0) && low <= MAX_LENGTH).then_some(low);
    }
    let digits = field.split(|byte| matches!(byte, b' ' | 0)).find(|part| !part.is_empty())?;
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    u64::from_str_radix(text, 8).ok().filter(|&number| number <= MAX_LENGTH)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    text.parse().ok().filter(|&number| number <= MAX_LENGTH)
}
