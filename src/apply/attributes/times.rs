//! Whether a file has the time of its source: in the grain in which its file system keeps
//! times.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use crate::sys;

/// How exactly the time of a source is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As the source has it.
    Nanoseconds,
    /// In whole seconds.
    Seconds,
}

/// What a file system cuts times down to, in nanoseconds: 100 on NTFS, 10 million on exFAT,
/// two seconds on FAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grain(u64);

impl Default for Grain {
    /// It keeps what it is given.
    fn default() -> Grain {
        Grain(1)
    }
}

const SECOND: u64 = 1_000_000_000;
/// The grains that there are (`s_time_gran` in Linux), and those between.
const GRAINS: [u64; 11] =
    [1, 10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, SECOND, 2 * SECOND];
/// More than any of them is off, in seconds.
const COARSEST: u64 = 2;

impl Grain {
    /// That of the file system of a file, whose time is changed for it.
    ///
    /// # Errors
    ///
    /// When its time cannot be set, or be told.
    pub fn of(file: &File) -> io::Result<Grain> {
        // Every grain makes something else of it.
        const ASKED: (i64, u32) = (1_700_000_001, 123_456_789);
        sys::set_mtime(file, ASKED.0, ASKED.1)?;
        let metadata = file.metadata()?;
        Ok(Grain::between(ASKED, (metadata.mtime(), metadata.mtime_nsec() as u32)))
    }

    /// The grain that makes `kept` of `given`, seconds and nanoseconds.
    pub fn between(given: (i64, u32), kept: (i64, u32)) -> Grain {
        GRAINS.into_iter().map(Grain).find(|grain| grain.cut(given) == kept).unwrap_or_default()
    }

    fn cut(self, (seconds, nanoseconds): (i64, u32)) -> (i64, u32) {
        let all = i128::from(seconds) * i128::from(SECOND) + i128::from(nanoseconds);
        let cut = all - all.rem_euclid(i128::from(self.0));
        (cut.div_euclid(i128::from(SECOND)) as i64, cut.rem_euclid(i128::from(SECOND)) as u32)
    }
}

/// When a time counts as that of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeRule {
    /// How exactly that one is known.
    pub precision: Precision,
    /// rsync's `--modify-window`: so many seconds apart is the same; with less than 0
    /// nanoseconds count, with 0 they do not.
    pub window: Option<i32>,
}

impl TimeRule {
    /// Whether `source` and the time `there`, seconds and nanoseconds, are the same. `grain`
    /// is asked for that of the file system there, if it matters.
    pub fn is_same(self, source: (i64, u32), there: (i64, u32), grain: impl FnOnce() -> Grain) -> bool {
        let apart = source.0.abs_diff(there.0);
        let is_exact = source == there || self.precision == Precision::Seconds && apart == 0;
        match self.window {
            Some(seconds @ 0..) => apart <= u64::from(seconds.unsigned_abs()),
            Some(_) => is_exact,
            None => is_exact || apart <= COARSEST && grain().cut(source) == there,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: (i64, u32) = (1_700_000_001, 123_456_789);

    fn is_same(there: (i64, u32), grain: u64) -> bool {
        TimeRule { precision: Precision::Nanoseconds, window: None }.is_same(SOURCE, there, || Grain(grain))
    }

    #[test]
    fn a_time_is_cut_to_the_grain_and_no_further() {
        for (there, grain) in [
            ((1_700_000_001, 123_456_700), 100),
            ((1_700_000_001, 120_000_000), 10_000_000),
            ((1_700_000_001, 0), SECOND),
            ((1_700_000_000, 0), 2 * SECOND),
        ] {
            assert!(is_same(there, grain), "{there:?}");
            assert!(!is_same(there, 1), "{there:?}");
            assert_eq!(Grain::between(SOURCE, there), Grain(grain));
        }
        assert!(!is_same((1_700_000_001, 123_456_800), 100));
        assert_eq!(Grain(100).cut((-1, 999_999_999)), (-1, 999_999_900));
        assert_eq!(Grain(2 * SECOND).cut((-1, 5)), (-2, 0));
    }

    #[test]
    fn nobody_is_asked_where_it_does_not_matter() {
        let rule = TimeRule { precision: Precision::Nanoseconds, window: None };
        let unasked = || -> Grain { panic!("asked") };
        assert!(rule.is_same(SOURCE, SOURCE, unasked));
        assert!(!rule.is_same(SOURCE, (SOURCE.0 + 3, SOURCE.1), unasked));
        let rule = TimeRule { precision: Precision::Seconds, ..rule };
        assert!(rule.is_same((7, 0), (7, 5), unasked));
        assert!(!rule.is_same((7, 0), (8, 0), Grain::default));
    }

    #[test]
    fn a_window_is_that_of_rsync() {
        let same = |window, there| {
            let rule = TimeRule { precision: Precision::Nanoseconds, window: Some(window) };
            rule.is_same(SOURCE, there, || panic!("asked"))
        };
        assert!(same(0, (SOURCE.0, 5)) && !same(0, (SOURCE.0 + 1, SOURCE.1)));
        assert!(same(1, (SOURCE.0 - 1, 0)) && !same(1, (SOURCE.0 + 2, 0)));
        assert!(same(-1, SOURCE) && !same(-1, (SOURCE.0, 0)));
    }
}
