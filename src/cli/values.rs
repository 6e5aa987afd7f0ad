//! How values of options are written.

use std::time::Duration;

use clap::ValueEnum;
use holesync::error::Result;
use holesync::options::BlockSize;

/// How new content becomes the destination.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub enum CommitArg {
    /// Clone and rename, or change in place from a sealed log, whichever the file system allows
    Auto,
    /// Always end in a rename
    Atomic,
    /// Write into the destination directly
    Inplace,
}

/// Whether data is compressed on its way.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CompressArg {
    /// Where the connection is slower than the compressor
    Auto,
    /// All data that shrinks; rsync's other methods stand for it
    #[value(aliases = ["zlib", "zlibx", "lz4"])]
    Zstd,
    /// Nothing
    None,
}

/// The block size that was asked for, or the default.
///
/// # Errors
///
/// [`Error::Usage`](holesync::error::Error::Usage) when it cannot be used.
pub fn block_size(bytes: Option<u64>) -> Result<BlockSize> {
    bytes.map_or(Ok(BlockSize::default()), BlockSize::new)
}

/// The unit of comparison that comes next to what was asked for: rsync's may be any number.
///
/// # Errors
///
/// Those of [`BlockSize::new`], which takes what is asked of it here.
pub fn unit_of_comparison(bytes: Option<u64>) -> Result<BlockSize> {
    let bytes = bytes.filter(|&bytes| bytes > 0);
    block_size(
        bytes.map(|bytes| bytes.clamp(BlockSize::MIN.into(), BlockSize::MAX.into()).next_power_of_two()),
    )
}

/// A size with an optional suffix: K, M, G or T, in powers of 1024.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        other => return Err(format!("{other:?} is no suffix: use K, M, G or T")),
    };
    let number = digits.parse::<u64>().map_err(|_| format!("{digits:?} is no number"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too much"))
}

/// A time with a unit: s, m, h, d or w.
pub fn age(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(format!("{text:?} is no time: write 90s, 30m, 12h, 30d or 8w")),
    };
    let number = digits.parse::<u64>().map_err(|_| format!("{digits:?} is no number"))?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| format!("{text} is too much"))
}

/// Bytes a second, as rsync has them: units of 1024 bytes, or a suffix, K, M, G, T or P, that
/// means powers of 1024, of 1000 with B behind it; a number may have decimals, and 1 may be
/// added to what comes out, or taken from it. 0: any number.
pub fn rate(text: &str) -> Result<u64, String> {
    const LEAST: f64 = 512.0;
    let wrong = || format!("{text:?} is no rate: write 500, 1.5m or 2MB");
    let (plain, more) = match (text.strip_suffix("+1"), text.strip_suffix("-1")) {
        (Some(plain), _) => (plain, 1.0),
        (_, Some(plain)) if !plain.is_empty() => (plain, -1.0),
        _ => (text, 0.0),
    };
    let digits = plain.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = plain[digits.len()..].to_ascii_uppercase();
    let is_number = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let number = digits.parse::<f64>().ok().filter(|_| is_number).ok_or_else(wrong)?;
    let (letter, base) = match (suffix.get(..1).unwrap_or("K"), suffix.get(1..).unwrap_or("")) {
        (letter, "" | "IB") => (letter, 1024.0_f64),
        (letter, "B") if letter != "B" => (letter, 1000.0),
        _ => return Err(wrong()),
    };
    let power = "BKMGTP".find(letter).ok_or_else(wrong)? as i32;
    let rate = number * base.powi(power) + more;
    match rate {
        0.0 => Ok(0),
        LEAST..=1e18 => Ok(rate as u64),
        ..LEAST => Err(format!("{text} is too little: at least 512b")),
        _ => Err(format!("{text} is too much")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_written_as_for_rsync() {
        for (text, want) in [
            ("0", 0),
            ("100", 102_400),
            ("1.5m", 1_572_864),
            ("1K", 1024),
            ("1kb", 1000),
            ("2MiB", 2 << 20),
            ("512b", 512),
            ("100+1", 102_401),
            ("1g-1", (1 << 30) - 1),
        ] {
            assert_eq!(rate(text), Ok(want), "{text}");
        }
        for text in ["x", "", "-1", "511b", "0.1", "1x", "1kbb", "1e3", "nan", "inf", "9999999p"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_take_suffixes() {
        assert_eq!(size("4K"), Ok(4096));
        assert_eq!(size("1m"), Ok(1 << 20));
        assert_eq!(size("2T"), Ok(2 << 40));
        assert_eq!(size("7"), Ok(7));
        assert!(size("4X").is_err() && size("K").is_err() && size("99999999T").is_err());
    }
}
