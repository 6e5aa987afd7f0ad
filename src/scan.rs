//! The data extents of a file, in order, on anything that can be read, and the
//! test for zeros. Knows nothing of blocks, hashes or destinations.

mod at;
mod cache;
mod content;
mod extents;

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;

use crate::confinement::NamedPath;
use crate::error::{Error, Result};
use crate::sys;

pub use at::At;
pub use cache::exceeds_cache;
pub use content::Content;
pub use extents::{Extents, data_extents};

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

    /// The file that all of it lies in, as it is, if there is one.
    fn plain_file(&self) -> Option<&File> {
        None
    }

    /// Tells that blocks here and there will be read, some of them again, or everything as usual.
    fn expect_scattered_reads(&self, _are_scattered: bool) {}
}

/// An open file or block device as an [`Image`].
#[derive(Debug)]
pub struct FileImage {
    file: File,
    hole_map: bool,
    /// What is read leaves the page cache as it was, if the system can do that.
    spares_cache: AtomicBool,
    /// So it would be where all of it is read.
    is_large: bool,
}

impl FileImage {
    /// `hole_map` false: do not ask for holes, read everything.
    pub fn new(file: File, hole_map: bool) -> FileImage {
        FileImage { file, hole_map, spares_cache: AtomicBool::new(false), is_large: false }
    }

    /// Reads without leaving in the page cache what was not there before. For who reads
    /// more than the cache can hold, once.
    pub fn sparing_cache(mut self) -> FileImage {
        *self.spares_cache.get_mut() = true;
        self.is_large = true;
        self
    }

    /// The same, where so many bytes are more than the cache should take.
    pub fn sparing_cache_for(self, bytes: u64) -> FileImage {
        if exceeds_cache(bytes) { self.sparing_cache() } else { self }
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

    fn plain_file(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn expect_scattered_reads(&self, are_scattered: bool) {
        sys::will_be_scattered(&self.file, are_scattered);
        self.spares_cache.store(self.is_large && !are_scattered, Ordering::Relaxed);
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

/// Bytes that a file may hold, of what is allocated to it and its length: some file systems
/// (FUSE, procfs, sysfs) tell of no blocks where there is content.
pub fn may_hold(allocated: u64, length: u64) -> u64 {
    if allocated == 0 { length } else { allocated.min(length) }
}

/// Opens a regular file or block device; also returns its length.
///
/// # Errors
///
/// [`Error::Refused`] for anything else.
pub fn open_image(named: &NamedPath) -> Result<(File, u64)> {
    let path = named.path();
    // Without waiting: opening a fifo would, for its other end.
    let file = named.open(OFlag::O_RDONLY | OFlag::O_NONBLOCK).map(File::from);
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

/// The longest tick of the clock that file systems take times from: CONFIG_HZ=100.
const TICK: Duration = Duration::from_millis(10);

/// Sleeps, if there is anything to wait for.
fn pause(wait: Duration) {
    if !wait.is_zero() {
        std::thread::sleep(wait);
    }
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
        FileState::with(file, &file.metadata()?)
    }

    /// The same, with what is known of the file.
    ///
    /// # Errors
    ///
    /// When a device does not tell its size.
    pub fn with(file: &File, metadata: &Metadata) -> io::Result<FileState> {
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

    /// When it was modified and changed last, in seconds and nanoseconds each. `None`: that does
    /// not show.
    pub fn times(&self) -> Option<[i64; 4]> {
        self.times
    }

    /// Whether it shows when the file is changed.
    pub fn shows_changes(&self) -> bool {
        self.times.is_some()
    }

    /// Whether it shows when the file is changed from now on: dirty pages are written back,
    /// and the end of the clock's tick is waited for. Where that is too long, as in file
    /// systems with times in seconds, the answer is no.
    pub fn will_show_changes(&self, file: &File) -> bool {
        sys::write_back(file).is_ok() && self.will_show_stores()
    }

    /// The same of a file that nobody has mapped: nothing need be written back.
    pub fn will_show_stores(&self) -> bool {
        let wait = self.until_changes_show();
        let soon = self.shows_changes() && wait <= TICK;
        if soon {
            pause(wait);
        }
        soon
    }

    /// The state of a file that is about to be read, and whether it will show when it is
    /// changed from then on. Waits for that as long as it takes, and gives up on a file that
    /// changes meanwhile, again and again, or cannot be written back.
    ///
    /// # Errors
    ///
    /// Those of [`FileState::of`].
    pub fn settled(file: &File) -> io::Result<(FileState, bool)> {
        const LOOKS: usize = 2;
        let mut state = FileState::of(file)?;
        if !state.shows_changes() {
            return Ok((state, true));
        }
        for _ in 0..LOOKS {
            // In this order: what is stored after it shows, compared with the state.
            if sys::write_back(file).is_err() {
                return Ok((state, false));
            }
            let wait = state.until_changes_show();
            if wait.is_zero() {
                return Ok((state, true));
            }
            // Past the border of a whole second, so that what goes on writing has left its time.
            pause(if wait > TICK { wait + 2 * TICK } else { wait });
            let now = FileState::of(file)?;
            if now == state {
                return Ok((state, true));
            }
            state = now;
        }
        Ok((state, false))
    }

    /// How long it takes until another change shows. Times advance in ticks of the clock:
    /// a change within the tick of the last one leaves them as they are. A time that is to
    /// come was set by another clock, or before this one was set back.
    fn until_changes_show(&self) -> Duration {
        let Some([_, _, seconds, nanoseconds]) = self.times else { return Duration::ZERO };
        // Whole seconds, of which FAT has every other one.
        let tick = if nanoseconds == 0 { Duration::from_secs(2) } else { TICK };
        let changed = Duration::new(seconds.max(0) as u64, nanoseconds as u32);
        let Some(changed) = UNIX_EPOCH.checked_add(changed) else { return Duration::ZERO };
        match SystemTime::now().duration_since(changed) {
            Ok(age) => tick.saturating_sub(age),
            Err(ahead) if ahead.duration() < tick => tick + ahead.duration(),
            Err(_) => Duration::ZERO,
        }
    }

    /// Whether a file is still in this state. One that cannot be looked at is not.
    pub fn is_still(&self, file: &File) -> bool {
        FileState::of(file).is_ok_and(|now| now == *self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_past_the_end_gives_zeros() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 3], 0).unwrap();
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
            let (seen, settled) = FileState::settled(&file).unwrap();
            assert!(settled && seen.will_show_changes(&file));
            file.write_all_at(&[byte + 1], 0).unwrap();
            assert!(!seen.is_still(&file));
        }
    }

    fn changed(age: Duration) -> FileState {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - age;
        let times = Some([0, 0, since.as_secs() as i64, i64::from(since.subsec_nanos().max(1))]);
        FileState { length: 1, times, device: 1, inode: 1 }
    }

    #[test]
    fn the_tick_of_the_last_change_is_waited_for() {
        // Where times are finer than ticks, a real file would not show that it is.
        let wait = changed(Duration::ZERO).until_changes_show();
        assert!(!wait.is_zero() && wait <= TICK, "{wait:?}");
        assert!(changed(Duration::from_millis(11)).until_changes_show().is_zero());
    }

    #[test]
    fn whole_seconds_tell_nothing_of_what_happens_in_this_one() {
        let file = tempfile::tempfile().unwrap();
        let whole = |age: u64| {
            let mut state = changed(Duration::from_secs(age));
            state.times.as_mut().unwrap()[3] = 0;
            state
        };
        assert!(whole(0).until_changes_show() > TICK);
        assert!(!whole(0).will_show_changes(&file));
        assert!(whole(5).will_show_changes(&file));
        assert!(!FileState { times: None, ..whole(5) }.will_show_changes(&file));
    }

    #[test]
    fn times_of_another_clock_are_not_waited_for() {
        let day = Duration::from_secs(86_400);
        let mut ahead = changed(Duration::ZERO);
        ahead.times.as_mut().unwrap()[2] += 2 * day.as_secs() as i64;
        assert!(ahead.until_changes_show().is_zero());
    }
}
