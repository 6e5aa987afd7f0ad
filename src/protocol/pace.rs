//! Keeps a direction below a rate, in pieces so small that nothing on the way sees bursts.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::lock;

/// Pieces a second, where they do not become too small.
const PIECES: u64 = 100;
/// The fewest bytes that are worth a piece.
const SMALLEST: u64 = 512;

/// How fast one end may write.
#[derive(Debug, Default)]
pub struct Pace {
    /// Bytes a second; 0: any number.
    rate: AtomicU64,
    /// When the next piece may be written.
    due: Mutex<Option<Instant>>,
}

impl Pace {
    /// From now on so many bytes a second; `None`: any number.
    pub fn limit(&self, rate: Option<u64>) {
        self.rate.store(rate.unwrap_or(0), Ordering::Relaxed);
    }

    /// How many of `len` bytes may be written at once.
    pub fn piece(&self, len: usize) -> usize {
        match self.rate.load(Ordering::Relaxed) {
            0 => len,
            rate => len.min(usize::try_from((rate / PIECES).max(SMALLEST)).unwrap_or(usize::MAX)),
        }
    }

    /// So many bytes were written: waits until more may be.
    pub fn wrote(&self, bytes: usize) {
        std::thread::sleep(self.due(bytes));
    }

    /// So many bytes were written: how long it is until more may be. Time in which nothing was written
    /// is not made up for.
    pub fn due(&self, bytes: usize) -> Duration {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 || bytes == 0 {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let mut due = lock(&self.due);
        let next = due.map_or(now, |due| due.max(now)) + takes;
        *due = Some(next);
        next - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_takes_its_time_and_comes_in_small_pieces() {
        let pace = Pace::default();
        assert_eq!(pace.piece(1 << 20), 1 << 20);
        pace.wrote(1 << 30);
        pace.limit(Some(1_000_000));
        assert_eq!((pace.piece(1 << 20), pace.piece(7)), (10_000, 7));
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(100));
        for _ in 0..20 {
            pace.wrote(10_000);
        }
        assert!(start.elapsed() >= Duration::from_millis(295), "{:?}", start.elapsed());
        pace.limit(Some(1000));
        assert_eq!(pace.piece(1 << 20), 512);
    }
}
