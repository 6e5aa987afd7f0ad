//! How fast the connection takes what is written to it.

use std::time::{Duration, Instant};

/// Bytes, or time spent in writing, after which something can be said.
const ENOUGH_BYTES: u64 = 8 << 20;
const ENOUGH_TIME: Duration = Duration::from_millis(250);

/// Watches writes. What is buffered on the way makes a link look fast at first.
#[derive(Debug, Default)]
pub struct LinkSpeed {
    bytes: u64,
    blocked: Duration,
    seconds_per_byte: Option<f64>,
}

impl LinkSpeed {
    /// Runs a write of so many bytes.
    pub fn watch<T>(&mut self, bytes: u64, write: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = write();
        self.record(bytes, start.elapsed());
        result
    }

    /// Learns of a write that took so long.
    pub fn record(&mut self, bytes: u64, time: Duration) {
        self.bytes += bytes;
        self.blocked += time;
        if self.bytes >= ENOUGH_BYTES || self.blocked >= ENOUGH_TIME {
            self.seconds_per_byte = Some(self.blocked.as_secs_f64() / self.bytes.max(1) as f64);
            // What is older counts less and less.
            self.bytes /= 2;
            self.blocked /= 2;
        }
    }

    /// How long a byte takes it, in seconds; `None`: that is not known yet.
    pub fn seconds_per_byte(&self) -> Option<f64> {
        self.seconds_per_byte
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_before_enough_was_seen() {
        let mut link = LinkSpeed::default();
        link.record(1 << 20, Duration::from_millis(100));
        assert_eq!(link.seconds_per_byte(), None);
        link.record(1 << 20, Duration::from_millis(150));
        assert_eq!(link.seconds_per_byte(), Some(0.25 / f64::from(2 << 20)));
    }

    #[test]
    fn what_is_new_outweighs_what_is_old() {
        let mut link = LinkSpeed::default();
        let second = Duration::from_secs(1);
        (0..10).for_each(|_| link.record(8 << 20, second));
        (0..10).for_each(|_| link.record(8 << 20, second / 100));
        let rate = link.seconds_per_byte().unwrap() * f64::from(8 << 20);
        assert!((0.01..0.02).contains(&rate), "{rate}");
    }
}
