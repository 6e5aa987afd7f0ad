//! The data extents of a file, in order, on anything that can be read, and the
//! test for zeros. Knows nothing of blocks, hashes or destinations.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::sys::{self, Sought};

/// A run of bytes of which some may be data; everything between two of them
/// reads as zeros.
pub type Extent = Range<u64>;

/// Something that reads as one long row of bytes and knows where its data is.
pub trait Image: Sync {
    /// The data extents within `range`, ascending, not empty, not overlapping,
    /// clipped to `range`.
    fn extents<'a>(&'a self, range: Range<u64>) -> Box<dyn Iterator<Item = io::Result<Extent>> + Send + 'a>;

    /// Fills `buffer` from `at`; what lies beyond the end reads as zeros.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
}

/// An open file or block device as an [`Image`].
#[derive(Debug)]
pub struct FileImage {
    file: File,
    hole_map: bool,
    /// What is read leaves the page cache as it was, if the system can do that.
    spares_cache: AtomicBool,
}

impl FileImage {
    /// `hole_map` false: do not ask for holes, read everything.
    pub fn new(file: File, hole_map: bool) -> FileImage {
        FileImage { file, hole_map, spares_cache: AtomicBool::new(false) }
    }

    /// Reads without leaving in the page cache what was not there before. For who reads
    /// more than the cache can hold, once.
    pub fn sparing_cache(mut self) -> FileImage {
        *self.spares_cache.get_mut() = true;
        self
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Image for FileImage {
    fn extents<'a>(&'a self, range: Range<u64>) -> Box<dyn Iterator<Item = io::Result<Extent>> + Send + 'a> {
        if self.hole_map {
            Box::new(data_extents(&self.file, range))
        } else {
            Box::new((!range.is_empty()).then_some(Ok(range)).into_iter())
        }
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        fill(buffer, at, |rest, at| {
            if self.spares_cache.load(Ordering::Relaxed) {
                match sys::read_uncached(&self.file, rest, at)? {
                    Some(read) => return Ok(read),
                    None => self.spares_cache.store(false, Ordering::Relaxed),
                }
            }
            self.file.read_at(rest, at)
        })
    }
}

/// Opens a regular file or block device; also returns its length.
///
/// # Errors
///
/// [`Error::Refused`] for anything else.
pub fn open_image(path: &Path) -> Result<(File, u64)> {
    // Without waiting: opening a fifo would, for its other end.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(Error::file("open", path))?;
    let metadata = file.metadata().map_err(Error::file("look at", path))?;
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok((file, metadata.len()));
    }
    if !kind.is_block_device() {
        let what = if kind.is_dir() { "is a directory" } else { "is neither a file nor a block device" };
        return Err(Error::refused(path, what));
    }
    let length = sys::device_size(&file).map_err(Error::file("find the size of", path))?;
    Ok((file, length))
}

/// The data extents of `file` within `range`, from SEEK_DATA and SEEK_HOLE.
///
/// A file without a map (`EINVAL`) is one extent. `ENXIO` ends the iteration;
/// any other error is handed out once and ends it too. A file that shrinks
/// meanwhile ends early. Two system calls an extent.
pub fn data_extents(file: &File, range: Range<u64>) -> Extents<'_> {
    Extents { file, at: range.start, end: range.end }
}

/// See [`data_extents`].
#[derive(Debug)]
pub struct Extents<'a> {
    file: &'a File,
    at: u64,
    end: u64,
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
    fn find_extent(&self) -> io::Result<Option<Extent>> {
        let start = match sys::seek_data(self.file, self.at)? {
            Sought::At(start) if start < self.end => start.max(self.at),
            Sought::At(_) | Sought::End => return Ok(None),
            Sought::NoMap => return Ok(Some(self.at..self.end)),
        };
        let end = match sys::seek_hole(self.file, start)? {
            Sought::At(end) if end > start => end.min(self.end),
            // Data that is gone by the time its end is asked for was cut off.
            Sought::At(_) | Sought::End => return Ok(None),
            Sought::NoMap => self.end,
        };
        Ok(Some(start..end))
    }
}

/// Reads until `buffer` is full or the file ends, and fills the rest with zeros.
pub fn read_or_zeros(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    fill(buffer, at, |rest, at| file.read_at(rest, at))
}

fn fill(buffer: &mut [u8], at: u64, read: impl Fn(&mut [u8], u64) -> io::Result<usize>) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match read(&mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer[done..].fill(0);
    Ok(())
}

/// Whether every byte is zero, odd tails included.
///
/// Written as a fold over fixed strides, which the compiler turns into vector
/// code; data usually ends the search in its first stride.
pub fn is_zero(bytes: &[u8]) -> bool {
    const STRIDE: usize = 256;
    let strides = bytes.chunks_exact(STRIDE);
    let tail = strides.remainder();
    let clear = |chunk: &[u8]| chunk.iter().fold(0, |any, byte| any | byte) == 0;
    strides.into_iter().all(clear) && clear(tail)
}

/// Whether this many bytes take more of the page cache than one file should.
pub fn exceeds_cache(bytes: u64) -> bool {
    static MEMORY: OnceLock<Option<u64>> = OnceLock::new();
    MEMORY.get_or_init(sys::memory).is_some_and(|memory| bytes > memory / 2)
}

/// What tells that a file was changed, or is another. A device's times say nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct FileState {
    /// Its length in bytes.
    pub length: u64,
    times: Option<[i64; 4]>,
    /// The device that it lies on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

impl FileState {
    /// The state that an open file is in.
    ///
    /// # Errors
    ///
    /// When the system cannot tell; `InvalidInput` for what is neither a file nor a block
    /// device.
    pub fn of(file: &File) -> io::Result<FileState> {
        let metadata = file.metadata()?;
        let (device, inode) = (metadata.dev(), metadata.ino());
        if !metadata.is_file() {
            if !metadata.file_type().is_block_device() {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            return Ok(FileState { length: sys::device_size(file)?, times: None, device, inode });
        }
        let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
        Ok(FileState { length: metadata.len(), times: Some(times), device, inode })
    }

    /// Whether it shows when the file is changed.
    pub fn shows_changes(&self) -> bool {
        self.times.is_some()
    }

    /// Whether it shows when the file is changed from now on. Times advance in ticks of
    /// the clock: a change within the tick of the last one leaves them as they are. Waits
    /// for the end of that tick; where it is too long, as in file systems with times in
    /// seconds, the answer is no.
    pub fn will_show_changes(&self) -> bool {
        // The longest that Linux has, with CONFIG_HZ=100.
        const TICK: Duration = Duration::from_millis(10);
        let Some([_, _, seconds, nanoseconds]) = self.times else { return false };
        let changed = Duration::new(seconds.max(0) as u64, nanoseconds as u32);
        let Some(changed) = UNIX_EPOCH.checked_add(changed) else { return false };
        let age = SystemTime::now().duration_since(changed).unwrap_or_default();
        if nanoseconds == 0 {
            return age > Duration::from_secs(2);
        }
        std::thread::sleep(TICK.saturating_sub(age));
        true
    }

    /// Whether a file is still in this state. One that cannot be looked at is not.
    pub fn is_still(&self, file: &File) -> bool {
        FileState::of(file).is_ok_and(|now| now == *self)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // one extent is meant, not its bytes
mod tests {
    use super::*;
    use std::os::fd::AsFd;

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

    #[test]
    fn reading_past_the_end_gives_zeros() {
        let file = sparse(3, &[0..3]);
        let mut buffer = [9; 8];
        read_or_zeros(&file, &mut buffer, 1).unwrap();
        assert_eq!(buffer, [7, 7, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn is_zero_finds_a_single_bit_anywhere() {
        for len in [0, 1, 7, 255, 256, 257, 4095, 4096, 4097] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes), "{len}");
            for at in 0..len {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "{len} {at}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn a_change_shows_after_it_was_said_to() {
        let file = tempfile::tempfile().unwrap();
        for byte in 0..50 {
            file.write_all_at(&[byte], 0).unwrap();
            let seen = FileState::of(&file).unwrap();
            assert!(seen.will_show_changes());
            file.write_all_at(&[byte + 1], 0).unwrap();
            assert!(!seen.is_still(&file));
        }
    }

    #[test]
    fn the_tick_of_the_last_change_is_waited_for() {
        // Where times are finer than ticks, a real file would not show that it is.
        let changed = SystemTime::now();
        let age = changed.duration_since(UNIX_EPOCH).unwrap();
        let times = Some([0, 0, age.as_secs() as i64, i64::from(age.subsec_nanos().max(1))]);
        assert!(FileState { length: 1, times, device: 1, inode: 1 }.will_show_changes());
        assert!(changed.elapsed().unwrap() >= Duration::from_millis(10));
    }

    #[test]
    fn whole_seconds_tell_nothing_of_what_happens_in_this_one() {
        let changed = |age: u64| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            let times = Some([0, 0, (now - age) as i64, 0]);
            FileState { length: 1, times, device: 1, inode: 1 }
        };
        assert!(!changed(1).will_show_changes());
        assert!(changed(5).will_show_changes());
        assert!(!FileState { times: None, ..changed(5) }.will_show_changes());
    }
}
