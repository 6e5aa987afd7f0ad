//! A list of what has changed in an image, as other programs print it: `offset length` a line, what
//! `nbdinfo --map` and `rbd diff` print, as tables or as JSON, and the XML of `thin_delta`.
//!
//! Guaranteed: a list that is no such thing, or cannot be that of the image, is an error that tells
//! where: a line or entry of another form, ranges that overlap or lie outside, a map of nbdinfo that
//! does not tell of every byte. Memory: 1048576 ranges, 128 MiB of a list in one piece. Not guaranteed:
//! that a list is complete where its form does not show that.

mod json;
mod table;
mod thin_delta;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result, in_words, printable};

/// Ranges in one list.
const MOST: usize = 1 << 20;
/// Bytes of one: what JSON takes for as many ranges.
const MOST_BYTES: u64 = 128 << 20;

/// Reads which bytes of an image of so many have changed, in order.
///
/// # Errors
///
/// When the file cannot be read; [`Error::Usage`] when it is no such list.
pub fn read(path: &Path, length: u64) -> Result<Vec<Range<u64>>> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    let mut input = BufReader::new(file.take(MOST_BYTES));
    let told = changed(&mut input, length);
    let told = if input.get_ref().limit() == 0 { Err("it is longer than any list".into()) } else { told };
    told.map_err(|why| {
        Error::Usage(format!("{} is no list of changes of this image: {why}", printable(path)))
    })
}

/// The same of what is read.
///
/// # Errors
///
/// Why it is no such list, in words.
pub fn changed(mut input: impl BufRead, length: u64) -> Result<Vec<Range<u64>>, String> {
    let mut ranges = Ranges { length, listed: Vec::new() };
    match first_byte(&mut input).map_err(unread)? {
        Some(b'[') => json::read(input, &mut ranges)?,
        Some(b'<') => thin_delta::read(input, &mut ranges)?,
        _ => table::read(input, &mut ranges)?,
    }
    ranges.finish()
}

fn unread(error: io::Error) -> String {
    format!("it cannot be read: {}", in_words(&error))
}

/// The first byte that is no space, which stays.
fn first_byte(input: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        let bytes = input.fill_buf()?;
        let Some(&first) = bytes.first() else { return Ok(None) };
        if !b" \t\r".contains(&first) {
            return Ok(Some(first));
        }
        input.consume(1);
    }
}

/// What a list says of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// It has changed. What is not listed has not.
    Changed,
    /// It is dirty in a map that tells of every byte.
    Dirty,
    /// It is not.
    Clean,
}

impl Says {
    /// What type and description of a map by nbdinfo mean.
    fn of_nbd(number: u64, description: &str) -> Result<Says, String> {
        match (number, description) {
            (0, "clean") => Ok(Says::Clean),
            (1, "dirty") => Ok(Says::Dirty),
            _ => Err(format!(
                "type {number}, {description}, tells what is allocated, and not what has changed: nbdinfo \
                 --map=qemu:dirty-bitmap:NAME does"
            )),
        }
    }
}

/// A range, and where it stands.
#[derive(Debug)]
struct Listed {
    bytes: Range<u64>,
    says: Says,
    /// The number of its line or entry.
    at: u32,
}

/// What was read of a list.
#[derive(Debug)]
struct Ranges {
    /// Bytes of the image.
    length: u64,
    listed: Vec<Listed>,
}

impl Ranges {
    /// Adds a range, which may end less than `unit` behind the image.
    fn add(&mut self, (start, bytes): (u64, u64), unit: u64, says: Says, at: u32) -> Result<(), String> {
        let length = self.length;
        if bytes == 0 {
            return Err("a range of no bytes".into());
        }
        let end = start.checked_add(bytes).filter(|end| start < length && end - end.min(&length) < unit);
        let end =
            end.ok_or_else(|| format!("{bytes} bytes at {start} lie outside the image, which has {length}"))?;
        if self.listed.len() >= MOST {
            return Err(format!("there are more than {MOST} ranges: leave --changed out"));
        }
        self.listed.push(Listed { bytes: start..end.min(length), says, at });
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Range<u64>>, String> {
        self.listed.sort_by_key(|listed| listed.bytes.start);
        for pair in self.listed.windows(2) {
            if let [one, other] = pair
                && other.bytes.start < one.bytes.end
            {
                return Err(format!(
                    "ranges {} and {} of it overlap",
                    one.at.min(other.at),
                    one.at.max(other.at)
                ));
            }
        }
        if self.listed.iter().any(|listed| listed.says != Says::Changed) {
            self.check_every_byte()?;
        }
        let changed = self.listed.into_iter().filter(|listed| listed.says != Says::Clean);
        Ok(changed.map(|listed| listed.bytes).collect())
    }

    /// A map of nbdinfo has no gaps, from the first byte to the last.
    fn check_every_byte(&self) -> Result<(), String> {
        let mut at = 0;
        for listed in &self.listed {
            if listed.bytes.start != at {
                break;
            }
            at = listed.bytes.end;
        }
        match at == self.length {
            true => Ok(()),
            false => Err(format!(
                "a map of nbdinfo tells of every byte, and this one not of that at {at}, of {}: it was cut off, or is of \
                 another image",
                self.length
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn read(text: &str) -> Result<Vec<Range<u64>>, String> {
        changed(text.as_bytes(), 64 * MIB)
    }

    /// As nbdinfo 1.14 printed it of a bitmap of qemu 7.2.
    const NBDINFO: &str = include_str!("list/samples/nbdinfo.txt");
    const NBDINFO_JSON: &str = include_str!("list/samples/nbdinfo.json");
    const NBDINFO_ALLOCATED: &str = include_str!("list/samples/nbdinfo-allocated.txt");
    /// In the form of rbd of Ceph 17.
    const RBD: &str = include_str!("list/samples/rbd.txt");
    const RBD_JSON: &str = include_str!("list/samples/rbd.json");
    /// As thin_delta 0.9 printed it.
    const THIN_DELTA: &str = include_str!("list/samples/thin_delta.xml");
    const THIN_DELTA_VERBOSE: &str = include_str!("list/samples/thin_delta-verbose.xml");

    #[test]
    fn plain_lines_are_ranges() {
        let text = "# what has changed\n\n  0x100000 4096\n512 0x200 # a sector\n\t3145728\t1";
        assert_eq!(read(text), Ok(vec![512..1024, MIB..MIB + 4096, 3 * MIB..3 * MIB + 1]));
        assert_eq!(read("# nothing\n"), Ok(vec![]));
    }

    #[test]
    fn what_other_programs_print_is_read() {
        let bitmap = vec![MIB..MIB + 65536, 3 * MIB..3 * MIB + 196_608, 10 * MIB..10 * MIB + 65536];
        assert_eq!(read(NBDINFO), Ok(bitmap.clone()));
        assert_eq!(read(NBDINFO_JSON), Ok(bitmap));
        let objects = vec![0..4 * MIB, 12 * MIB..13 * MIB, 60 * MIB..64 * MIB];
        assert_eq!(read(RBD), Ok(objects.clone()));
        assert_eq!(read(RBD_JSON), Ok(objects));
        assert_eq!(read("[]"), Ok(vec![]));
        let block = 65536;
        let thin = vec![5 * block..8 * block, 18 * block..20 * block, 30 * block..33 * block];
        assert_eq!(read(THIN_DELTA), Ok(thin.clone()));
        assert_eq!(read(THIN_DELTA_VERBOSE), Ok(thin));
        // A device of LVM need not be a multiple of the blocks of its pool.
        let odd = changed(THIN_DELTA.as_bytes(), 32 * block + 512);
        assert_eq!(odd.map(|ranges| ranges[2].clone()), Ok(30 * block..32 * block + 512));
    }

    #[track_caller]
    fn refused(text: &str, parts: &[&str]) {
        let why = read(text).expect_err(text);
        parts.iter().for_each(|part| assert!(why.contains(part), "{part:?} is not in {why}"));
    }

    #[test]
    fn what_is_no_such_list_is_refused_and_told_where() {
        refused("", &["nothing"]);
        refused("0 4096\nabc 5\n", &["line 2"]);
        refused("0\n", &["line 1"]);
        refused("0 4096 maybe\n", &["line 1"]);
        refused("0 -5\n", &["line 1"]);
        refused("0 0x\n", &["line 1"]);
        refused("0 18446744073709551616\n", &["line 1"]);
        refused("# one\n4096 0\n", &["line 2", "no bytes"]);
        refused("67108864 1\n", &["line 1", "outside"]);
        refused("67108863 2\n", &["line 1", "outside"]);
        refused("18446744073709551615 2\n", &["line 1", "outside"]);
        refused("0 4096\n8192 4096\n\n4095 1\n", &["1 and 4", "overlap"]);
        refused(&"0".repeat(5000), &["line 1"]);
        refused(NBDINFO_ALLOCATED, &["line 1", "allocated"]);
        let (cut, _) = NBDINFO.trim_end().rsplit_once('\n').expect("lines");
        refused(cut, &["every byte", "10551296"]);
        refused(&NBDINFO.replacen("clean", "data", 1), &["line 1"]);
    }

    #[test]
    fn damaged_json_and_xml_are_refused() {
        refused("[ { \"offset\": 0 } ]", &["line 1", "length"]);
        refused("[ { \"offset\": -1, \"length\": 5 } ]", &["line 1"]);
        refused("[ { \"offset\": 0, \"length\": 67108865 } ]", &["line 1", "outside"]);
        refused("[ { \"offset\": 0, \"length\": 5, \"typo\": 1 } ]", &["typo"]);
        refused("[ { \"offset\": 0, \"length\": 5 } ] 1", &["line 1"]);
        refused("[1]", &["line 1"]);
        for whole in [NBDINFO_JSON, RBD_JSON, THIN_DELTA, THIN_DELTA_VERBOSE] {
            let whole = whole.trim_end();
            for end in 1..whole.len() {
                assert!(read(&whole[..end]).is_err(), "{}", &whole[..end]);
            }
        }
        refused(&THIN_DELTA.replace(" data_block_size=\"128\"", ""), &["data_block_size"]);
        refused(&THIN_DELTA.replace("\"128\"", "\"0\""), &["data_block_size"]);
        refused(&THIN_DELTA.replace("\"128\"", "\"18446744073709551615\""), &["data_block_size"]);
        refused(&THIN_DELTA.replace("length=\"2\"", "length=\"20\""), &["overlap"]);
        refused(&THIN_DELTA.replace("length=\"2\"", "size=\"2\""), &["left_only", "length"]);
        refused(&THIN_DELTA.replace("begin=\"30\"", "begin=\"3000\""), &["outside"]);
        refused(&THIN_DELTA.replace("begin=\"30\"", "begin=\"300000000000000000\""), &["outside"]);
        refused(&THIN_DELTA.replace("right_only", "both"), &["both"]);
        refused("<html></html>", &["html"]);
    }
}
