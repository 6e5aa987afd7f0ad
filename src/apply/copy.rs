//! All data of one file into a destination that is blank, zeros left out, on all cores.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rayon::prelude::*;

use crate::apply::commit::OldFile;
use crate::apply::{BasisState, Destination};
use crate::error::{Error, Result, Stop};
use crate::hashmap::PAGE;
use crate::scan::{self, FileImage, Image};
use crate::sys;

/// What one thread copies at a time; its end is on this grid.
const PIECE: u64 = 512 << 10;
/// What is copied before there is word of it.
const ROUND: u64 = 32 << 20;

impl Destination {
    /// Shares all data of another file on this machine with a destination that is
    /// [blank](BasisState::Blank), and to which nothing was written. Returns bytes of data;
    /// `None`: the file system cannot.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] for a destination that is not blank; what the system reports.
    pub fn clone_from(&mut self, source: &File) -> Result<Option<u64>> {
        if self.basis_state() != BasisState::Blank || self.task.counts.written > 0 {
            return Err(Error::refused(self.path(), "there is something already"));
        }
        let Destination { task, way, .. } = self;
        let cloned = sys::clone_file(source, way.file(task)?);
        if !cloned.map_err(|error| task.failed("clone into", error, OldFile::Whole))? {
            return Ok(None);
        }
        task.wrote(0..task.wanted.length, task.wanted.data);
        Ok(Some(task.counts.written))
    }

    /// Fills such a destination with all that another file on this machine has, zeros left
    /// out. `progress` is told bytes. Returns bytes of data.
    ///
    /// # Errors
    ///
    /// What reading and writing report.
    pub fn copy_from(
        &mut self,
        image: &FileImage,
        path: &Path,
        mut progress: impl FnMut(u64),
    ) -> Result<u64> {
        let length = self.task.wanted.length;
        if length <= PIECE {
            let mut bytes = vec![0; length as usize];
            image.read_at(&mut bytes, 0).map_err(Error::file("read", path))?;
            if is_one_run(&bytes) {
                self.write(0, &bytes)?;
                progress(length);
                return Ok(length);
            }
        }
        self.grow()?;
        let Destination { task, way, behind, .. } = self;
        let target = way.file(task)?;
        let copied = copy_data(image, target, length, |range, bytes| {
            task.wrote(range.clone(), bytes);
            progress(bytes);
            behind.wrote(target, range);
        });
        copied.map_err(|error| match error {
            Stop::Read(error) => Error::file("read", path)(error),
            Stop::Taken(error) => task.failed("write", error, OldFile::Whole),
        })?;
        Ok(self.task.counts.written)
    }
}

/// Copies what is data in `from`, up to its `length` in bytes. `done` is told which
/// range has been copied, and how many bytes of data it had. Memory: one piece a thread.
///
/// # Errors
///
/// What reading reports, and ([`Stop::Taken`]) writing.
pub fn copy_data(
    from: &dyn Image,
    to: &File,
    length: u64,
    mut done: impl FnMut(Range<u64>, u64),
) -> Result<(), Stop<io::Error>> {
    let mut pieces: Vec<Range<u64>> = Vec::new();
    let mut bytes = 0;
    let mut copy = |pieces: &mut Vec<Range<u64>>| {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { return Ok(()) };
        let round = first.start..last.end;
        let copied = pieces
            .par_iter()
            .map_init(Vec::new, |buffer, piece| copy_piece(from, to, piece, buffer))
            .try_reduce(|| 0, |a, b| Ok(a + b))?;
        pieces.clear();
        done(round, copied);
        Ok(())
    };
    for extent in from.extents(0..length) {
        let extent = extent.map_err(Stop::Read)?;
        let mut at = extent.start;
        while at < extent.end {
            let end = extent.end.min((at / PIECE + 1) * PIECE);
            pieces.push(at..end);
            bytes += end - at;
            at = end;
            if bytes >= ROUND {
                copy(&mut pieces)?;
                bytes = 0;
            }
        }
    }
    copy(&mut pieces)
}

/// Copies the pages of a piece that are not zero; how many bytes that were.
fn copy_piece(
    from: &dyn Image,
    to: &File,
    piece: &Range<u64>,
    buffer: &mut Vec<u8>,
) -> Result<u64, Stop<io::Error>> {
    buffer.resize((piece.end - piece.start) as usize, 0);
    from.read_at(buffer, piece.start).map_err(Stop::Read)?;
    let mut copied = 0;
    for run in runs_of_data(buffer, piece.start) {
        to.write_all_at(&buffer[run.clone()], piece.start + run.start as u64).map_err(Stop::Taken)?;
        copied += run.len() as u64;
    }
    Ok(copied)
}

/// Whether the bytes of a file have no page of zeros.
fn is_one_run(bytes: &[u8]) -> bool {
    matches!(&runs_of_data(bytes, 0)[..], [run] if run.len() == bytes.len())
}

/// The runs of pages that are not zero, of bytes that begin at this offset of a file.
fn runs_of_data(bytes: &[u8], offset: u64) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let to_border = (PAGE - (offset + at as u64) % PAGE) as usize;
        let end = bytes.len().min(at + to_border);
        if !scan::is_zero(&bytes[at..end]) {
            match runs.last_mut() {
                Some(last) if last.end == at => last.end = end,
                _ => runs.push(at..end),
            }
        }
        at = end;
    }
    runs
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // one run is meant, not its bytes
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_from_the_start_of_the_file() {
        let mut bytes = vec![0; 3 * 4096];
        bytes[95] = 1;
        bytes[4096 + 96] = 1;
        assert_eq!(runs_of_data(&bytes, 4000), [0..96, 4192..8288]);
        assert_eq!(runs_of_data(&bytes, 0), [0..8192]);
        assert_eq!(runs_of_data(&bytes[..96], 4000), [0..96]);
        assert!(runs_of_data(&[], 4000).is_empty());
    }

    #[test]
    fn a_copy_has_the_data_and_nothing_else() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let length = ROUND * 2 + 12345;
        [&from, &to].into_iter().for_each(|file| file.set_len(length).unwrap());
        for at in (0..length).step_by(777_777) {
            from.write_all_at(b"data", at).unwrap();
        }
        from.write_all_at(&[0; 100_000], 5_000_000).unwrap();
        let mut told = 0;
        let image = FileImage::new(from.try_clone().unwrap(), true);
        assert!(copy_data(&image, &to, length, |_, bytes| told += bytes).is_ok());
        let bytes = |file: &File| {
            let mut bytes = vec![0; length as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(bytes(&from) == bytes(&to));
        let pages = length.div_ceil(777_777);
        assert!(told <= (pages + 1) * 2 * PAGE, "{told} bytes for {pages} places");
    }
}
