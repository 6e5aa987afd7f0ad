//! The data extents of a file, from SEEK_DATA and SEEK_HOLE. Answers that contradict each
//! other mean data: what is read twice costs time, what is taken for a hole is lost.

use std::fs::File;
use std::io;
use std::ops::Range;

use crate::scan::Extent;
use crate::sys::{self, Sought};

/// Of a place where seeks contradict each other, so much is taken for data before they are
/// asked again.
const DOUBT: u64 = 4096;

/// The data extents of `file` within `range`, from SEEK_DATA and SEEK_HOLE.
///
/// A file without a map (`EINVAL`) is one extent. A hole counts when both seeks agree that
/// it begins where it does; where they do not, there is data. A file that shrinks meanwhile
/// ends early. An error is handed out once and ends the iteration. Two system calls an
/// extent, and one more where a hole comes first.
pub fn data_extents(file: &File, range: Range<u64>) -> Extents<'_> {
    Extents { file, at: range.start, end: range.end, is_hole: false }
}

/// See [`data_extents`].
#[derive(Debug)]
pub struct Extents<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    /// SEEK_HOLE has said that a hole begins here.
    is_hole: bool,
}

impl Iterator for Extents<'_> {
    type Item = io::Result<Extent>;

    fn next(&mut self) -> Option<io::Result<Extent>> {
        if self.at >= self.end {
            return None;
        }
        let found = self.find_extent();
        match &found {
            Ok(Some(extent)) => self.at = extent.end,
            Ok(None) | Err(_) => self.at = self.end,
        }
        found.transpose()
    }
}

impl Extents<'_> {
    fn find_extent(&mut self) -> io::Result<Option<Extent>> {
        let data = match sys::seek_data(self.file, self.at)? {
            Sought::At(data) => data.max(self.at),
            Sought::End => u64::MAX,
            Sought::NoMap => return Ok(Some(self.at..self.end)),
        };
        if data > self.at && !self.is_hole {
            match sys::seek_hole(self.file, self.at)? {
                Sought::At(hole) if hole == self.at => {}
                Sought::End if self.ends_at(self.at)? => return Ok(None),
                Sought::At(hole) if hole > self.at => return Ok(Some(self.data_to(self.at, hole))),
                Sought::At(_) | Sought::End | Sought::NoMap => return Ok(Some(self.doubt(self.at))),
            }
        }
        if data >= self.end {
            return Ok(None);
        }
        Ok(match sys::seek_hole(self.file, data)? {
            Sought::At(hole) if hole > data => Some(self.data_to(data, hole)),
            Sought::NoMap => Some(data..self.end),
            // Data that is gone by the time its end is asked for was cut off.
            Sought::End if self.ends_at(data)? => None,
            Sought::At(_) | Sought::End => Some(self.doubt(data)),
        })
    }

    /// Whether the file has no more than so many bytes.
    fn ends_at(&self, at: u64) -> io::Result<bool> {
        Ok(self.file.metadata()?.len() <= at)
    }

    fn data_to(&mut self, start: u64, hole: u64) -> Extent {
        self.is_hole = true;
        start..hole.min(self.end)
    }

    /// Up to the next border, nobody knows better.
    fn doubt(&mut self, start: u64) -> Extent {
        self.is_hole = false;
        start..(start / DOUBT * DOUBT).saturating_add(DOUBT).min(self.end)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // one extent is meant, not its bytes
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    fn collect(file: &File, len: u64) -> Vec<Extent> {
        data_extents(file, 0..len).map(Result::unwrap).collect()
    }

    fn sparse(len: u64, data: &[Extent]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        for extent in data {
            file.write_all_at(&vec![7; (extent.end - extent.start) as usize], extent.start).unwrap();
        }
        file
    }

    #[test]
    fn empty_and_all_hole_files_have_no_extents() {
        assert!(collect(&sparse(0, &[]), 0).is_empty());
        assert!(collect(&sparse(1 << 40, &[]), 1 << 40).is_empty());
    }

    #[test]
    fn one_byte_is_one_extent_clipped_to_the_file() {
        assert_eq!(collect(&sparse(1, &[0..1]), 1), [0..1]);
    }

    #[test]
    fn extents_are_clipped_to_the_range() {
        let file = sparse(3 << 20, &[0..8192, 1 << 20..(1 << 20) + 4096, (3 << 20) - 5..3 << 20]);
        let all = collect(&file, 3 << 20);
        assert_eq!(all.len(), 3);
        assert_eq!(all[0], 0..8192);
        assert_eq!(all[2].end, 3 << 20);
        let within: Vec<_> = data_extents(&file, 4096..(1 << 20) + 1).map(Result::unwrap).collect();
        assert_eq!(within, [4096..8192, 1 << 20..(1 << 20) + 1]);
    }

    #[test]
    fn a_file_that_shrank_ends_early() {
        let file = sparse(1 << 20, &[0..1 << 20]);
        file.set_len(4096).unwrap();
        assert_eq!(collect(&file, 1 << 20), [0..4096]);
        assert!(data_extents(&file, 8192..1 << 20).next().is_none());
    }

    #[test]
    fn a_pipe_reports_its_error_once() {
        let (reader, _writer) = io::pipe().unwrap();
        let file = File::from(reader.as_fd().try_clone_to_owned().unwrap());
        let mut extents = data_extents(&file, 0..10);
        assert_eq!(extents.next().unwrap().unwrap_err().raw_os_error(), Some(libc::ESPIPE));
        assert!(extents.next().is_none());
    }

    #[test]
    fn two_hundred_thousand_alternating_extents() {
        let count = 200_000u64;
        let file = sparse(count * 8192, &[]);
        for i in 0..count {
            file.write_all_at(&[1; 4096], i * 8192).unwrap();
        }
        let extents = collect(&file, count * 8192);
        assert_eq!(extents.len() as u64, count);
        assert!(extents.iter().enumerate().all(|(i, e)| *e == (i as u64 * 8192..i as u64 * 8192 + 4096)));
    }
}
