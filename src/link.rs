//! How fast the connection takes what is written to it.

use std::time::{Duration, Instant};

/// Bytes, or time spent in writing, after which something can be said.
const ENOUGH_BYTES: u64 = 8 << 20;
const ENOUGH_TIME: Duration = Duration::from_millis(250);

/// Watches writes. What is buffered on the way makes a link look fast at first.
#[derive(Debug, Default)]
pub struct Link {
    bytes: u64,
    blocked: Duration,
    seconds_per_byte: Option<f64>,
}

impl Link {
    /// Runs a write of so many bytes.
    pub fn watch<T>(&mut self, bytes: u64, write: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = write();
        self.took(bytes, start.elapsed());
        result
    }

    /// Learns of a write that took so long.
    pub fn took(&mut self, bytes: u64, time: Duration) {
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
