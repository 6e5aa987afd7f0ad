//! The text stream against a naive model: what it reads is what was written, and
//! nothing else is taken for a stream.

mod casync;

use std::cell::Cell;
use std::io::{BufReader, Read};

use holesync::error::{Error, Result};
use holesync::protocol::MAX_LENGTH;
use holesync::stream::{Expand, ImageStream, Record, Sink, read_records};
use proptest::prelude::*;

use crate::support::{Kind, Sparse};

/// A sink that writes down what it is told.
#[derive(Debug, Default, PartialEq)]
struct Noted {
    data: Vec<u8>,
    /// Where each stretch of zeros goes, and its length.
    holes: Vec<(u64, u64)>,
    at: u64,
}

impl Sink for Noted {
    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.data.extend(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn hole(&mut self, len: u64) -> Result<()> {
        self.holes.push((self.at, len));
        self.at += len;
        Ok(())
    }
}

/// Hands out no more than a few bytes at a time, and is interrupted now and then.
struct Dribble<'a> {
    bytes: &'a [u8],
    step: usize,
    interrupted: Cell<bool>,
}

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if !self.interrupted.replace(!self.interrupted.get()) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        let count = buffer.len().min(self.step);
        self.bytes.read(&mut buffer[..count])
    }
}

/// What a stream is, in the shortest way to say it: the size, the data in order
/// and the holes; `None`: it is none.
fn model(mut stream: &[u8], size: Option<u64>) -> Option<(Noted, bool)> {
    let mut noted = Noted::default();
    let mut ended = false;
    while !stream.is_empty() && !ended {
        let mut lines = stream.splitn(3, |&byte| byte == b'\n');
        let (kind, count, rest) = (lines.next()?, lines.next()?, lines.next()?);
        if count.is_empty() || count.len() > 20 || !count.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let count = std::str::from_utf8(count).ok()?.parse::<u64>().ok()?;
        if count > MAX_LENGTH {
            return None;
        }
        stream = rest;
        let end = noted.at.checked_add(count).filter(|&end| end <= size.unwrap_or(MAX_LENGTH));
        match kind {
            b"DATA" => {
                end?;
                let (data, rest) = stream.split_at_checked(usize::try_from(count).ok()?)?;
                noted.data(data).ok()?;
                stream = rest;
            }
            b"HOLE" => {
                end?;
                noted.hole(count).ok()?;
            }
            b"END" if count == noted.at => ended = true,
            _ => return None,
        }
    }
    size.is_none_or(|size| size == noted.at).then_some((noted, ended))
}

/// Reads a stream piece by piece.
fn read(stream: &[u8], size: Option<u64>, step: usize) -> (Result<(u64, bool)>, Noted) {
    let dribble = Dribble { bytes: stream, step, interrupted: Cell::new(false) };
    let mut noted = Noted::default();
    let read = read_records(&mut BufReader::with_capacity(step, dribble), "the test", size, &mut noted);
    (read, noted)
}

/// Demands that `receive` and the model agree.
fn agree(stream: &[u8], size: Option<u64>, step: usize) -> std::result::Result<(), TestCaseError> {
    let (read, noted) = read(stream, size, step);
    match model(stream, size) {
        Some((expected, ended)) => {
            prop_assert_eq!(read.map_err(|error| error.to_string()), Ok((expected.at, ended)));
            prop_assert_eq!(noted, expected);
        }
        None => {
            prop_assert!(matches!(read, Err(Error::Protocol { .. } | Error::Closed { .. })), "{read:?}")
        }
    }
    Ok(())
}

/// Parts of a stream, right and wrong.
fn part() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(vec!["DATA", "HOLE", "END", "data", "DATA ", "", "ENDE"]);
    let number = prop_oneof![
        (0..12u64).prop_map(|n| n.to_string()),
        (0..12u64).prop_map(|n| format!("0{n}")),
        any::<u64>().prop_map(|n| n.to_string()),
        prop::sample::select(vec!["", "-1", "+1", " 1", "1\r", "9223372036854775807", "9223372036854775808"])
            .prop_map(str::to_owned),
    ];
    let bytes = prop::collection::vec(any::<u8>(), 0..12);
    prop_oneof![
        1 => kind.prop_map(|kind| format!("{kind}\n").into_bytes()),
        1 => number.prop_map(|number| format!("{number}\n").into_bytes()),
        1 => bytes.clone(),
        4 => bytes.prop_map(|bytes| [format!("DATA\n{}\n", bytes.len()).as_bytes(), &bytes].concat()),
        4 => (0..12u64).prop_map(|n| Record::Hole(n).to_string().into_bytes()),
        1 => (0..30u64).prop_map(|n| Record::End(n).to_string().into_bytes()),
    ]
}

/// Records that say `Some` data or so many zeros.
fn records() -> impl Strategy<Value = Vec<(Option<Vec<u8>>, u64)>> {
    let data = prop::collection::vec(any::<u8>(), 0..300).prop_map(|data| (Some(data), 0));
    prop::collection::vec(prop_oneof![data, (0..300u64).prop_map(|len| (None, len))], 0..20)
}

/// These records as a stream, and as plain bytes.
fn written(records: &[(Option<Vec<u8>>, u64)]) -> (Vec<u8>, Vec<u8>) {
    let (mut stream, mut plain) = (Vec::new(), Vec::new());
    for (data, zeros) in records {
        match data {
            Some(data) => {
                stream.extend(Record::Data(data.len() as u64).to_string().bytes());
                stream.extend(data);
                plain.extend(data);
            }
            None => {
                stream.extend(Record::Hole(*zeros).to_string().bytes());
                plain.resize(plain.len() + *zeros as usize, 0);
            }
        }
    }
    (stream, plain)
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_bytes_are_read_as_the_model_reads_them(
        bytes in prop::collection::vec(any::<u8>(), 0..300), size in prop::option::of(0..9u64), step in 1..40usize,
    ) {
        agree(&bytes, size, step)?;
    }

    #[test]
    fn any_parts_of_a_stream_are_read_as_the_model_reads_them(
        parts in prop::collection::vec(part(), 0..8), size in prop::option::of(0..40u64), step in 1..40usize,
    ) {
        agree(&parts.concat(), size, step)?;
    }

    #[test]
    fn records_are_the_bytes_they_were_made_from(records in records(), end in any::<bool>(), step in 1..2000usize) {
        let (mut stream, plain) = written(&records);
        let len = plain.len() as u64;
        if end {
            stream.extend(Record::End(len).to_string().bytes());
        }
        for size in [None, Some(len)] {
            let dribble = Dribble { bytes: &stream, step, interrupted: Cell::new(false) };
            let mut sink = Expand { out: Vec::new(), what: "memory".into() };
            let read = read_records(&mut BufReader::with_capacity(step, dribble), "the test", size, &mut sink);
            prop_assert_eq!(read.map_err(|error| error.to_string()), Ok((len, end)));
            prop_assert_eq!(&sink.out, &plain);
        }
        for wrong in [Some(len + 1), len.checked_sub(1)].into_iter().flatten() {
            prop_assert!(read(&stream, Some(wrong), step).0.is_err());
        }
    }

    #[test]
    fn a_stream_that_is_cut_off_has_no_end(records in records(), at in any::<prop::sample::Index>(), step in 1..99usize) {
        let (mut stream, plain) = written(&records);
        stream.extend(Record::End(plain.len() as u64).to_string().bytes());
        let (read, _) = read(&stream[..at.index(stream.len())], None, step);
        prop_assert!(matches!(read, Err(Error::Closed { .. }) | Ok((_, false))), "{read:?}");
    }

    #[test]
    fn a_changed_byte_is_in_the_data_or_makes_another_stream(
        records in records(), at in any::<prop::sample::Index>(), flip in 1..=255u8,
    ) {
        let (mut stream, plain) = written(&records);
        stream.extend(Record::End(plain.len() as u64).to_string().bytes());
        let at = at.index(stream.len());
        stream[at] ^= flip;
        agree(&stream, Some(plain.len() as u64), 4096)?;
    }

    #[test]
    fn an_image_is_sent_as_its_extents_and_poured_as_its_bytes(
        pieces in prop::collection::vec((prop_oneof![
            Just(Kind::Hole), Just(Kind::Zeros), any::<u8>().prop_map(Kind::Data),
        ], 0..40_000usize), 0..8),
        end in any::<bool>(), hole_map in any::<bool>(),
    ) {
        let sparse = Sparse::of(&pieces);
        let file = tempfile::NamedTempFile::new().expect("create a file");
        sparse.write(file.path());
        let image = ImageStream::open(file.path(), hole_map).expect("open");
        let mut stream = Vec::new();
        let sent = image.send(end, |bytes| { stream.extend(bytes); Ok(()) }).expect("send");
        let (read, noted) = read(&stream, Some(sparse.len()), 4096);
        prop_assert_eq!(read.map_err(|error| error.to_string()), Ok((sparse.len(), end)));
        prop_assert_eq!(noted.data.len() as u64, sent);
        let mut plain = Expand { out: Vec::new(), what: "memory".into() };
        read_records(&mut stream.as_slice(), "the test", None, &mut plain).expect("receive");
        prop_assert!(plain.out == sparse.bytes);
        let (mut poured, mut bytes) = (Noted::default(), Expand { out: Vec::new(), what: "memory".into() });
        prop_assert_eq!(image.pour(&mut poured).expect("pour"), sent);
        image.pour(&mut bytes).expect("pour");
        prop_assert!(bytes.out == sparse.bytes);
        prop_assert_eq!(poured, noted);
        if !hole_map {
            prop_assert_eq!(sent, sparse.len());
        }
    }
}

#[test]
fn a_record_that_claims_too_much_takes_nothing() {
    let largest = Record::Data(MAX_LENGTH).to_string();
    let (result, noted) = read(largest.as_bytes(), None, 4096);
    assert!(matches!(result, Err(Error::Closed { .. })), "{result:?}");
    assert_eq!(noted, Noted::default());
    for stream in [
        Record::Data(MAX_LENGTH + 1).to_string(),
        format!("{}{}", Record::Hole(MAX_LENGTH), Record::Hole(1)),
        format!("{}{}", Record::Hole(1), Record::Data(MAX_LENGTH)),
    ] {
        for size in [None, Some(MAX_LENGTH), Some(u64::MAX)] {
            if size == Some(u64::MAX) && stream.len() > 30 {
                continue;
            }
            let (result, noted) = read(stream.as_bytes(), size, 4096);
            assert!(matches!(result, Err(Error::Protocol { .. })), "{stream:?}: {result:?}");
            assert!(noted.data.is_empty());
        }
    }
}
