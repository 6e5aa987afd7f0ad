//! The head of one record of a stream: two short lines that any shell can read. Knows
//! nothing of the order in which records make an image.

use std::io::BufRead;

use crate::error::{Error, Result, escape};
use crate::protocol::MAX_LENGTH;
use crate::stream::{closed, fill};

/// The longest line: a number of 64 bits.
const MAX_LINE: usize = 20;

/// The head of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// This many bytes follow.
    Data(u64),
    /// This many bytes are zero.
    Hole(u64),
    /// The image has this many bytes, and all of them were described.
    End(u64),
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Record::Data(count) => write!(f, "DATA\n{count}\n"),
            Record::Hole(count) => write!(f, "HOLE\n{count}\n"),
            Record::End(size) => write!(f, "END\n{size}\n"),
        }
    }
}

impl Record {
    /// Reads the head of the next record. `None`: the stream ends before it.
    pub(super) fn read(input: &mut impl BufRead, peer: &str) -> Result<Option<Record>> {
        let bad = |what: &str, line: &[u8]| Error::Protocol {
            peer: peer.into(),
            what: format!("{what} \"{}\"", escape(line)),
        };
        let Some(kind) = read_line(input, peer)? else { return Ok(None) };
        let record: fn(u64) -> Record = match kind.as_slice() {
            b"DATA" => Record::Data,
            b"HOLE" => Record::Hole,
            b"END" => Record::End,
            other => return Err(bad("a record of the unknown kind", other)),
        };
        let count = read_line(input, peer)?.ok_or_else(|| closed(peer))?;
        let digits = std::str::from_utf8(&count).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let number = digits.and_then(|text| text.parse().ok()).filter(|&number| number <= MAX_LENGTH);
        number.map(|number| Some(record(number))).ok_or_else(|| bad("a record whose size is", &count))
    }
}

/// Reads a short line, without its end. `None`: the stream ends before it.
fn read_line(input: &mut impl BufRead, peer: &str) -> Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let Some(&byte) = fill(input, peer)?.first() else {
            return if line.is_empty() { Ok(None) } else { Err(closed(peer)) };
        };
        input.consume(1);
        if byte == b'\n' {
            return Ok(Some(line));
        }
        line.push(byte);
        if line.len() > MAX_LINE {
            let what = format!("a line that begins with \"{}\" where a record must be", escape(&line));
            return Err(Error::Protocol { peer: peer.into(), what });
        }
    }
}
