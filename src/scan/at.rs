//! A file that is read from some place on.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;
use std::os::unix::fs::FileExt;

/// Reads a file without touching its position, whoever else reads it.
#[derive(Debug)]
pub struct At<F> {
    file: F,
    at: u64,
}

impl<F: Deref<Target = File>> At<F> {
    /// From this offset on.
    pub fn new(file: F, at: u64) -> At<F> {
        At { file, at }
    }
}

impl<F: Deref<Target = File>> Read for At<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read_at(buffer, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}
