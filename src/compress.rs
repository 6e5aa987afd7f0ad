//! Whether and how a data frame is compressed. Knows nothing of files.

use std::time::{Duration, Instant};

use crate::options::{Compress, Options};

/// A link slower than this, in bytes a second, is worth compressing for: about
/// half of what one core puts through zstd -1.
const SLOW_LINK: f64 = 200e6;
/// Bytes over which the speed of the link is judged.
const WINDOW: u64 = 8 << 20;
/// Frames smaller than this gain nothing.
const SMALL: usize = 512;

/// Compresses frames, where asked or where the link holds us up.
pub struct Compressor {
    mode: Compress,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    bytes: u64,
    blocked: Duration,
    slow: bool,
}

impl Compressor {
    /// As the options say.
    pub fn new(options: &Options) -> Compressor {
        let zstd = match options.compress {
            Compress::None => None,
            _ => zstd::bulk::Compressor::new(options.compress_level).ok(),
        };
        Compressor { mode: options.compress, zstd, bytes: 0, blocked: Duration::ZERO, slow: false }
    }

    /// The frame's bytes compressed, if that is wanted and saves at least a sixteenth.
    pub fn compress(&mut self, parts: &[&[u8]]) -> Option<Vec<u8>> {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        if len < SMALL || self.mode == Compress::Auto && !self.slow {
            return None;
        }
        let packed = self.zstd.as_mut()?.compress(&parts.concat()).ok()?;
        (packed.len() < len - len / 16).then_some(packed)
    }

    /// Runs a write of so many bytes and learns how fast the link takes them.
    pub fn watch<T>(&mut self, bytes: u64, write: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = write();
        self.blocked += start.elapsed();
        self.bytes += bytes;
        if self.bytes >= WINDOW {
            self.slow = (self.bytes as f64) < SLOW_LINK * self.blocked.as_secs_f64();
            (self.bytes, self.blocked) = (0, Duration::ZERO);
        }
        result
    }
}
