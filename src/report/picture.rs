//! Pictures of images: where there is data, and where two of them differ, from the start to the
//! end of the longest. What is told is counted in a few thousand columns, so a picture takes the
//! same room whatever the size. Drawn for a terminal (`picture/strip.rs`) and as SVG
//! (`picture/svg.rs`).

mod strip;
mod svg;

use std::ops::Range;

use indicatif::BinaryBytes;

pub use strip::Style;

/// The most columns that are counted.
const COLUMNS: u64 = 1920;
/// The finest that is counted: a page.
const FINEST: u64 = 4096;

/// What a band of a picture shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shows {
    /// Where an image has data.
    Data,
    /// Where two images differ.
    Difference,
}

/// One row of a picture.
#[derive(Debug)]
struct Band {
    /// A few letters that stand before it.
    label: String,
    /// What stands above it.
    title: String,
    shows: Shows,
    /// Where it ends, in bytes.
    length: u64,
    /// Bytes that it shows.
    total: u64,
    /// The same by columns.
    columns: Vec<u64>,
}

/// Bands over one scale.
#[derive(Debug)]
pub struct Picture {
    /// What stands above all.
    heading: String,
    /// Bytes from the left to the right.
    length: u64,
    count: u64,
    bands: Vec<Band>,
}

impl Picture {
    /// Without bands, over so many bytes.
    pub fn new(length: u64) -> Picture {
        let count = length.div_ceil(FINEST).min(COLUMNS);
        Picture { heading: String::new(), length, count, bands: Vec::new() }
    }

    /// Puts a line above it.
    pub fn set_heading(&mut self, heading: String) {
        self.heading = heading;
    }

    /// Adds a band below the others, for something of this length in bytes. Returns its number.
    pub fn add_band(&mut self, label: &str, title: &str, shows: Shows, length: u64) -> usize {
        let columns = vec![0; self.count as usize];
        let (label, title) = (label.into(), title.into());
        self.bands.push(Band { label, title, shows, length, total: 0, columns });
        self.bands.len() - 1
    }

    /// A band shows something in this range.
    pub fn mark(&mut self, band: usize, bytes: &Range<u64>) {
        let (count, length) = (self.count, self.length);
        let Some(band) = self.bands.get_mut(band).filter(|_| bytes.start < bytes.end) else { return };
        band.total += bytes.end - bytes.start;
        let column_of = |at: u64| (u128::from(at) * u128::from(count) / u128::from(length.max(1))) as u64;
        for column in column_of(bytes.start)..=column_of(bytes.end - 1).min(count.saturating_sub(1)) {
            let covered = bounds(length, count, &(column..column + 1));
            let within = covered.end.min(bytes.end).saturating_sub(covered.start.max(bytes.start));
            band.columns[column as usize] += within;
        }
    }

    /// How full a part of a band is, of `width` parts; `None` beyond the end of what it shows.
    fn share(&self, band: &Band, part: usize, width: usize) -> Option<Share> {
        let (part, width) = (part as u64, width as u64);
        let first = part * self.count / width;
        let last = ((part + 1) * self.count / width).max(first + 1);
        let covered = bounds(self.length, self.count, &(first..last));
        let shown: u64 = band.columns[first as usize..last as usize].iter().sum();
        let there = covered.end.min(band.length).saturating_sub(covered.start);
        (there > 0).then(|| Share::of(shown, there))
    }
}

/// Where a run of columns lies.
fn bounds(length: u64, count: u64, columns: &Range<u64>) -> Range<u64> {
    let at = |column: u64| (u128::from(column) * u128::from(length) / u128::from(count.max(1))) as u64;
    at(columns.start)..at(columns.end)
}

/// How much of a part shows something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Share {
    None,
    /// Up to a hundredth: something, however little.
    Trace,
    /// Up to a tenth.
    Little,
    /// Up to a third.
    Some,
    /// Up to two thirds.
    Much,
    /// More.
    Most,
}

impl Share {
    fn of(shown: u64, there: u64) -> Share {
        let percent = 100.0 * shown as f64 / there as f64;
        match percent {
            _ if shown == 0 => Share::None,
            ..=1.0 => Share::Trace,
            ..=10.0 => Share::Little,
            ..=33.4 => Share::Some,
            ..=66.7 => Share::Much,
            _ => Share::Most,
        }
    }
}

/// The places of a scale that are worth a number, in bytes, and their unit.
fn ticks(length: u64) -> Vec<(u64, String)> {
    const UNITS: [(u64, &str); 7] = [
        (1 << 60, "EiB"),
        (1 << 50, "PiB"),
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
        (1, "B"),
    ];
    const MOST: u64 = 6;
    let (unit, name) = UNITS.into_iter().find(|(unit, _)| length / 4 >= *unit).unwrap_or((1, "B"));
    let units = length / unit;
    let steps =
        (0..19).flat_map(|power| [1, 2, 5].map(|step| 10u64.saturating_pow(power).saturating_mul(step)));
    let step = steps.into_iter().find(|step| units / step <= MOST).unwrap_or(u64::MAX);
    (0..=units / step).map(|nth| (nth * step * unit, format!("{} {name}", nth * step))).collect()
}

/// A size as people read it.
fn size(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_where_they_lie() {
        let mut picture = Picture::new(100 << 30);
        let band = picture.add_band("", "", Shows::Data, 50 << 30);
        picture.mark(band, &(0..4096));
        picture.mark(band, &((25 << 30)..(30 << 30)));
        let band = &picture.bands[band];
        assert_eq!(band.total, 4096 + (5 << 30));
        assert_eq!(band.columns.iter().sum::<u64>(), band.total);
        let shares: Vec<_> = (0..20).map(|part| picture.share(band, part, 20)).collect();
        assert_eq!(shares[0], Some(Share::Trace));
        assert_eq!(shares[1..5], [Some(Share::None); 4]);
        assert_eq!(shares[5], Some(Share::Most));
        assert_eq!(shares[6..10], [Some(Share::None); 4]);
        assert_eq!(shares[10..], [None; 10]);
    }

    #[test]
    fn small_and_empty_images_have_pictures() {
        for length in [1, 4095, 4096, 4097, 10_000, 1 << 20, u64::MAX / 2] {
            let mut picture = Picture::new(length);
            let band = picture.add_band("", "", Shows::Data, length);
            picture.mark(band, &(0..length));
            assert_eq!(picture.bands[band].columns.iter().sum::<u64>(), length);
            for width in [1, 7, 80, 1000] {
                let full = |part| picture.share(&picture.bands[band], part, width) == Some(Share::Most);
                assert!((0..width).all(full), "{length} {width}");
            }
        }
        let mut empty = Picture::new(0);
        let band = empty.add_band("", "", Shows::Data, 0);
        empty.mark(band, &(0..0));
        assert_eq!(empty.bands[band].total, 0);
    }

    #[test]
    fn scales_have_few_round_numbers() {
        let shown = |length| ticks(length).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        assert_eq!(shown(100 << 30), ["0 GiB", "20 GiB", "40 GiB", "60 GiB", "80 GiB", "100 GiB"]);
        assert_eq!(shown(3 << 40)[1], "500 GiB");
        assert_eq!(shown(3), ["0 B", "1 B", "2 B", "3 B"]);
        for length in [0, 1, 4096, 65_536, 1 << 20, 10 << 30, 16 << 40, u64::MAX] {
            let ticks = ticks(length);
            assert!((1..=7).contains(&ticks.len()) && ticks.iter().all(|(at, _)| *at <= length), "{ticks:?}");
        }
    }
}
