//! Bytes from the other side as they come: text lines, and what is in no frame.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::protocol::MAX_CONTROL;
use crate::protocol::frame::link_error;

/// Bytes as they come, counted.
#[derive(Debug)]
pub struct Plain<R: Read> {
    input: BufReader<R>,
    peer: String,
    received: Arc<AtomicU64>,
}

impl<R: Read> Read for Plain<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.received.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl<R: Read> BufRead for Plain<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.received.fetch_add(count as u64, Ordering::Relaxed);
        self.input.consume(count);
    }
}

impl<R: Read> Plain<R> {
    /// `peer` names the other side in errors.
    pub fn new(input: R, peer: &str) -> Plain<R> {
        Plain {
            input: BufReader::with_capacity(64 << 10, input),
            peer: peer.into(),
            received: Arc::default(),
        }
    }

    /// Where they come from.
    pub fn source(&self) -> &R {
        self.input.get_ref()
    }

    /// What has arrived and was not read yet.
    pub fn arrived(&self) -> &[u8] {
        self.input.buffer()
    }

    /// Who the other side is.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Bytes read so far; stays readable when the reader is given away.
    pub fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }

    /// A line of text, without its end: what a shell says.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] when there is no whole line any more,
    /// [`Error::Protocol`] for one of more than [`MAX_CONTROL`] bytes.
    pub fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        let limit = MAX_CONTROL as u64;
        let read = self.by_ref().take(limit).read_until(b'\n', &mut line);
        let read = read.map_err(|source| link_error(&self.peer, "reading", source))?;
        match line.pop() {
            Some(b'\n') => Ok(line),
            Some(_) if read as u64 == limit => {
                Err(Error::Protocol { peer: self.peer.clone(), what: "a line without an end".into() })
            }
            _ => Err(Error::closed(&self.peer)),
        }
    }
}
