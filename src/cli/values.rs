//! How values of options are written.

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
    /// All data that shrinks
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_suffixes() {
        assert_eq!(size("4K"), Ok(4096));
        assert_eq!(size("1m"), Ok(1 << 20));
        assert_eq!(size("2T"), Ok(2 << 40));
        assert_eq!(size("7"), Ok(7));
        assert!(size("4X").is_err() && size("K").is_err() && size("99999999T").is_err());
    }
}
