//! Whether and how the bytes of a frame are compressed, from what the link and the
//! processor are seen to do. Knows nothing of files.

use std::borrow::Cow;
use std::time::Instant;

use crate::options::{Compress, Options};
use crate::protocol::link_speed::LinkSpeed;

/// Frames smaller than this gain nothing.
const SMALL: usize = 512;
/// Unless told otherwise; also what zstd takes itself.
const DEFAULT_LEVEL: i32 = 3;
/// Higher levels cost much more than they gain on frames of this size.
const HIGHEST: i32 = 9;
/// How much of a frame shows whether the rest will shrink: four pieces of this size.
const SAMPLE: usize = 4 << 10;
/// Bytes after which it is tried whether compressing pays; four times as many after
/// each try that says no, so that it costs nothing where it never does.
const FIRST_TRY: u64 = 2 << 20;
const LAST_TRY: u64 = 512 << 20;
/// Bytes of a frame that such a try compresses.
const TRIED: usize = 128 << 10;

/// Compresses frames, where asked or where the link holds us up.
pub struct Compressor {
    mode: Compress,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    /// The level follows from what is seen.
    adapts: bool,
    level: i32,
    /// It pays at present.
    on: bool,
    /// Bytes since the last try, and after how many to try again.
    since: u64,
    patience: u64,
    /// What the last frames came to.
    seen: Measured,
}

/// How fast and how well something was compressed.
#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    seconds_per_byte: f64,
    /// Bytes out for each byte in.
    ratio: f64,
}

impl Compressor {
    /// As the options say.
    pub fn new(options: &Options) -> Compressor {
        let level = match (options.compress_level, options.compress) {
            (Some(level), _) => level,
            (None, Compress::Auto) => 1,
            (None, _) => DEFAULT_LEVEL,
        };
        let zstd = match options.compress {
            Compress::None => None,
            _ => zstd::bulk::Compressor::new(level).ok(),
        };
        Compressor {
            mode: options.compress,
            zstd,
            adapts: options.compress == Compress::Auto && options.compress_level.is_none(),
            level,
            on: options.compress == Compress::Zstd,
            since: 0,
            patience: FIRST_TRY,
            seen: Measured::default(),
        }
    }

    /// Whether a frame of so many bytes goes as it is, whatever is in it.
    pub fn skips(&mut self, len: usize) -> bool {
        let since = self.since + len as u64;
        let skips = len < SMALL || self.zstd.is_none() || !self.on && since < self.patience;
        if skips {
            self.since = since;
        }
        skips
    }

    /// The frame's bytes compressed, if that pays and saves at least a sixteenth.
    pub fn compress(&mut self, parts: &[&[u8]], link: &LinkSpeed) -> Option<Vec<u8>> {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        if self.skips(len) {
            return None;
        }
        self.since += len as u64;
        if !self.on && !self.would_pay(parts, link) {
            return None;
        }
        let bytes = match parts {
            [whole] => Cow::Borrowed(*whole),
            parts => Cow::Owned(parts.concat()),
        };
        if !self.shrinks(&bytes) {
            return None;
        }
        let (packed, seen) = self.measured(&bytes)?;
        if self.mode == Compress::Auto {
            self.adapt(seen, link);
        }
        (packed.len() < len - len / 16).then_some(packed)
    }

    /// Whether samples of a frame get smaller.
    fn shrinks(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() < 16 * SAMPLE {
            return true;
        }
        let quarter = bytes.len() / 4;
        let sample: Vec<&[u8]> = (0..4).map(|nth| &bytes[nth * quarter..nth * quarter + SAMPLE]).collect();
        let packed = self.zstd.as_mut().and_then(|zstd| zstd.compress(&sample.concat()).ok());
        packed.is_some_and(|packed| packed.len() < 4 * SAMPLE - SAMPLE / 4)
    }

    fn measured(&mut self, bytes: &[u8]) -> Option<(Vec<u8>, Measured)> {
        let start = Instant::now();
        let packed = self.zstd.as_mut()?.compress(bytes).ok()?;
        let len = bytes.len() as f64;
        let seconds_per_byte = start.elapsed().as_secs_f64() / len;
        let ratio = packed.len() as f64 / len;
        Some((packed, Measured { seconds_per_byte, ratio }))
    }

    /// Tries it with a part of a frame, and switches compressing on if it pays.
    fn would_pay(&mut self, parts: &[&[u8]], link: &LinkSpeed) -> bool {
        self.since = 0;
        let Some(link) = link.seconds_per_byte() else { return false };
        let Some((_, seen)) = self.measured(&head_of(parts, TRIED)) else { return false };
        self.on = seen.pays(link);
        self.seen = seen;
        self.patience = if self.on { FIRST_TRY } else { (self.patience * 4).min(LAST_TRY) };
        self.on
    }

    /// Follows what the last frame came to: a higher level while the link is slower
    /// than the compressor, a lower one or none when it is not.
    fn adapt(&mut self, now: Measured, link: &LinkSpeed) {
        const WEIGHT: f64 = 0.2;
        self.seen.seconds_per_byte += (now.seconds_per_byte - self.seen.seconds_per_byte) * WEIGHT;
        self.seen.ratio += (now.ratio - self.seen.ratio) * WEIGHT;
        let Some(link) = link.seconds_per_byte() else { return };
        if self.since < FIRST_TRY {
            return;
        }
        self.since = 0;
        let writing = link * self.seen.ratio;
        let level = match self.seen.seconds_per_byte / writing {
            _ if !self.seen.pays(link) && (self.level == 1 || !self.adapts) => {
                self.on = false;
                return;
            }
            share if share > 0.9 => self.level - 1,
            share if share < 0.4 => self.level + 1,
            _ => self.level,
        };
        let level = level.clamp(1, HIGHEST);
        let changes = self.adapts && level != self.level;
        if changes && self.zstd.as_mut().is_some_and(|zstd| zstd.set_compression_level(level).is_ok()) {
            self.level = level;
        }
    }
}

/// The first bytes of some parts, at most so many.
fn head_of(parts: &[&[u8]], limit: usize) -> Vec<u8> {
    parts.iter().copied().flatten().copied().take(limit).collect()
}

impl Measured {
    /// Whether a link that takes so long for a byte is done sooner with this, by a
    /// margin: what is compressed goes out while the next frame is compressed.
    fn pays(&self, link: f64) -> bool {
        self.seconds_per_byte.max(link * self.ratio) < 0.8 * link
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(seconds_per_byte: f64) -> LinkSpeed {
        let mut link = LinkSpeed::default();
        link.record(64 << 20, std::time::Duration::from_secs_f64(seconds_per_byte * f64::from(64 << 20)));
        link
    }

    fn auto() -> Compressor {
        Compressor::new(&Options { compress: Compress::Auto, ..Options::default() })
    }

    fn noise() -> Vec<u8> {
        let mut noise = vec![0; 1 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        noise
    }

    /// Shrinks to half of its size.
    fn text() -> Vec<u8> {
        let mut text = noise();
        text.chunks_mut(512).step_by(2).for_each(|chunk| chunk.fill(b' '));
        text
    }

    #[test]
    fn a_slow_link_switches_it_on_and_a_fast_one_never() {
        for (seconds_per_byte, expected) in [(1e-6, true), (1e-12, false)] {
            let (mut compressor, text) = (auto(), text());
            let packed = (0..8).filter(|_| compressor.compress(&[&text], &link(seconds_per_byte)).is_some());
            assert_eq!(packed.count() > 4, expected);
        }
    }

    #[test]
    fn it_ends_when_the_link_gets_fast() {
        let (mut compressor, text) = (auto(), text());
        (0..8).for_each(|_| drop(compressor.compress(&[&text], &link(1e-6))));
        assert!(compressor.on && compressor.level > 1);
        (0..99).for_each(|_| drop(compressor.compress(&[&text], &link(1e-12))));
        assert!(!compressor.on);
    }

    #[test]
    fn what_does_not_shrink_is_sent_as_it_is() {
        let noise = noise();
        let mut compressor = Compressor::new(&Options { compress: Compress::Zstd, ..Options::default() });
        assert!(compressor.compress(&[&noise], &LinkSpeed::default()).is_none());
        assert!(compressor.compress(&[&text()], &LinkSpeed::default()).is_some());
    }
}
