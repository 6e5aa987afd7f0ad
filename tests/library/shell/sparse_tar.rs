//! Archives of GNU tar with one sparse file: what tar writes is read back; what is cut off,
//! damaged, made up or too large is an error.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use holesync::error::{Error, Result};
use holesync::protocol::MAX_LENGTH;
use holesync::shell::sparse_tar::receive;
use holesync::stream::Sink;

const PAGE: u64 = 4096;
/// Bytes in a block of an archive.
const TAR_BLOCK: usize = 512;
/// The most bytes in a pax header.
const MAX_RECORDS: u64 = 1 << 20;

/// Bytes of which none is zero, and where they are.
type Piece = (u64, Vec<u8>);

/// What came: how much, all of the data in order, and where something is not zero.
#[derive(Debug, Default, Clone, PartialEq)]
struct Received {
    at: u64,
    data: Vec<u8>,
    pieces: Vec<Piece>,
}

impl Sink for Received {
    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.data.extend(bytes);
        for (&byte, at) in bytes.iter().zip(self.at..).filter(|(byte, _)| **byte != 0) {
            match self.pieces.last_mut() {
                Some((start, piece)) if *start + piece.len() as u64 == at => piece.push(byte),
                _ => self.pieces.push((at, vec![byte])),
            }
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn hole(&mut self, len: u64) -> Result<()> {
        self.at += len;
        Ok(())
    }
}

fn read(archive: &[u8], size: u64, factor: u64) -> (Result<bool>, Received) {
    let mut received = Received::default();
    // Pieces that respect no block.
    let mut input = BufReader::with_capacity(1000, archive);
    let read = receive(&mut input, "the test", size, factor, &mut received);
    let mut rest = Vec::new();
    if read.is_ok() {
        input.read_to_end(&mut rest).unwrap();
    }
    assert!(rest.is_empty(), "{} bytes were left", rest.len());
    (read, received)
}

fn fill(start: u64, len: u64) -> Piece {
    (start, (start..start + len).map(|at| (at % 255) as u8 + 1).collect())
}

/// What GNU tar makes of such a file; `None` where there is another tar.
fn pack(dir: &Path, name: &str, size: u64, pieces: &[Piece], factor: u64) -> Option<Vec<u8>> {
    let version = Command::new("tar").arg("--version").output().ok()?;
    if !String::from_utf8_lossy(&version.stdout).contains("GNU tar") {
        eprintln!("SKIPPED: no GNU tar");
        return None;
    }
    let file = File::create(dir.join(name)).unwrap();
    file.set_len(size).unwrap();
    for (start, bytes) in pieces {
        file.write_all_at(bytes, *start).unwrap();
    }
    file.sync_all().unwrap();
    let mut tar = Command::new("tar");
    tar.current_dir(dir).args(["-c", "--sparse", "--format=posix", "-f", "-", "-b"]);
    let tar = tar.arg(factor.to_string()).arg("--").arg(name).stderr(Stdio::inherit());
    let output = tar.output().unwrap();
    assert!(output.status.success());
    Some(output.stdout)
}

/// A small sparse file of three extents, and its archive.
fn small(dir: &Path) -> Option<(u64, Vec<Piece>, Vec<u8>)> {
    let pieces = vec![fill(PAGE, 700), fill(5 * PAGE, PAGE), fill(9 * PAGE + 1, 99)];
    let archive = pack(dir, "small", 12 * PAGE + 5, &pieces, 1)?;
    assert!(archive.len() < 24 << 10, "it is not sparse");
    Some((12 * PAGE + 5, pieces, archive))
}

#[test]
fn what_gnu_tar_writes_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let long = "n".repeat(250);
    let many: Vec<Piece> = (0..11_000).map(|nth| fill(2 * nth * PAGE, PAGE)).collect();
    let cases: [(&str, u64, Vec<Piece>); 11] = [
        ("empty", 0, vec![]),
        ("one-byte", 1, vec![fill(0, 1)]),
        ("dense", 300_001, vec![fill(0, 300_001)]),
        ("block", 10_240, vec![fill(0, 10_240)]),
        ("all-hole", 1 << 20, vec![]),
        ("hole-first", 90_000, vec![fill(81_920, 8_080)]),
        ("hole-tail", 500_000, vec![fill(0, 10_000)]),
        ("many", 22_000 * PAGE, many),
        ("large", (9 << 30) + 5, vec![fill(PAGE, 9), fill(9 << 30, 5)]),
        (&long, 100_000, vec![fill(40_960, 10)]),
        ("-odd\nname=\u{fc}", 100_000, vec![fill(40_960, 10)]),
    ];
    for (name, size, pieces) in cases {
        for factor in [1, 20] {
            let Some(archive) = pack(dir.path(), name, size, &pieces, factor) else { return };
            let (read, received) = read(&archive, size, factor);
            assert!(matches!(read, Ok(true)), "{name}: {read:?}");
            assert_eq!(received.at, size, "{name}");
            assert!(received.pieces == pieces, "{name}: other content");
            let holes = pieces.iter().map(|piece| piece.1.len() as u64).sum::<u64>() + 3 * PAGE < size;
            assert!(!holes || (received.data.len() as u64) < size, "{name}: no holes");
        }
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
}

#[test]
fn an_archive_without_a_file_is_none_and_one_of_two_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for factor in [1, 20] {
        let blocks = 2u64.next_multiple_of(factor) as usize;
        assert!(matches!(read(&vec![0; blocks * TAR_BLOCK], 7, factor).0, Ok(false)));
    }
    let Some((size, _, archive)) = small(dir.path()) else { return };
    let one = archive.len() - 2 * TAR_BLOCK;
    assert!(matches!(read(&[&archive[..one], &archive].concat(), size, 1).0, Err(Error::Protocol { .. })));
    for wrong in [0, size - 1, size + 1] {
        let (read, received) = read(&archive, wrong, 1);
        assert!(matches!(read, Err(Error::Protocol { .. })), "{wrong}: {read:?}");
        assert_eq!(received, Received::default(), "{wrong}: it was begun");
    }
}

#[test]
fn an_archive_that_is_cut_off_anywhere_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let Some((size, _, archive)) = small(dir.path()) else { return };
    for end in 0..archive.len() {
        let (read, _) = read(&archive[..end], size, 1);
        assert!(matches!(read, Err(Error::Closed { .. })), "{end}: {read:?}");
    }
}

#[test]
fn a_changed_byte_changes_no_content_but_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let Some((size, pieces, archive)) = small(dir.path()) else { return };
    let (whole, original) = read(&archive, size, 1);
    assert!(matches!(whole, Ok(true)) && original.pieces == pieces);
    let find = |what: &[u8]| archive.windows(what.len()).position(|window| window == what).unwrap();
    let data = find(&pieces[0].1);
    let data = data..data + original.data.len();
    // The map fills one block; its numbers, which nothing checks, say where data goes.
    let map = data.start - TAR_BLOCK..data.start;
    // In a header everything counts but the sum's own padding.
    let summed = |at: usize| {
        let block = &archive[at / TAR_BLOCK * TAR_BLOCK..][..TAR_BLOCK];
        &block[257..262] == b"ustar" && !(148..156).contains(&(at % TAR_BLOCK))
    };
    for at in 0..archive.len() {
        for flip in [0x01, 0x02, 0x04, 0x08, 0x10, 0x80, 0xff] {
            let mut changed = archive.clone();
            changed[at] ^= flip;
            let mut received = Received::default();
            let read = receive(&mut changed.as_slice(), "the test", size, 1, &mut received);
            match read {
                Ok(true) if summed(at) => panic!("{at}, {flip}: a header that is damaged"),
                Ok(true) => assert_eq!(received.at, size, "{at}, {flip}"),
                Err(Error::Protocol { .. } | Error::Closed { .. }) if !data.contains(&at) => continue,
                other => panic!("{at}, {flip}: {other:?}"),
            }
            if data.contains(&at) {
                let differ = received.data.iter().zip(&original.data).filter(|(a, b)| a != b).count();
                assert_eq!((differ, received.data.len()), (1, original.data.len()), "{at}, {flip}");
            } else if map.contains(&at) {
                assert!(received.data == original.data, "{at}, {flip}: other bytes");
            } else {
                assert!(received == original, "{at}, {flip}: other content");
            }
        }
    }
}

/// A header, with the size as the 12 bytes that say it.
fn header(kind: u8, size: &[u8]) -> Vec<u8> {
    let mut header = vec![0; TAR_BLOCK];
    header[..4].copy_from_slice(b"name");
    header[124..124 + size.len()].copy_from_slice(size);
    header[148..156].fill(b' ');
    header[156] = kind;
    let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

fn octal(size: u64) -> Vec<u8> {
    format!("{size:011o}\0").into_bytes()
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(TAR_BLOCK), 0);
    padded
}

/// A pax header of these records.
fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        // The length counts its own digits.
        let length = (1..9).map(|digits| rest + digits).find(|n| n.to_string().len() + rest == *n);
        text += &format!("{} {key}={value}\n", length.unwrap());
    }
    [header(b'x', &octal(text.len() as u64)), padded(text.as_bytes())].concat()
}

/// A plain file behind whatever comes before it.
fn plain(before: &[u8], size: &[u8], content: &[u8]) -> Vec<u8> {
    [before, &header(b'0', size), &padded(content), &[0; 2 * TAR_BLOCK]].concat()
}

/// A sparse file of 100,000 bytes with this map and content.
fn sparse(map: &str, content: &[u8]) -> Vec<u8> {
    let keys = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "100000")];
    let inside = [&padded(map.as_bytes())[..], content].concat();
    plain(&pax(&keys), &octal(inside.len() as u64), &inside)
}

#[track_caller]
fn refused(archive: &[u8], size: u64) -> Received {
    let (read, received) = read(archive, size, 1);
    assert!(matches!(read, Err(Error::Protocol { .. })), "{read:?}");
    received
}

#[test]
fn a_size_is_octal_or_binary_or_in_a_pax_record() {
    let binary = [&[0x80, 0, 0, 0][..], &5u64.to_be_bytes()].concat();
    let size = pax(&[("mtime", "1.5"), ("size", "5"), ("path", "a = b\nc")]);
    for archive in [
        plain(&[], &octal(5), b"hello"),
        plain(&[], b"          5 ", b"hello"),
        plain(&[], b"5", b"hello"),
        plain(&[], &binary, b"hello"),
        plain(&size, &octal(0), b"hello"),
        plain(&size, &octal(0o77_777_777_777), b"hello"),
        // One for all files does not matter, the last one for this file does.
        plain(&[header(b'g', &octal(0)), size.clone()].concat(), &octal(0), b"hello"),
        plain(&[pax(&[("size", "9")]), size].concat(), &octal(0), b"hello"),
    ] {
        let (read, received) = read(&archive, 5, 1);
        assert!(matches!(read, Ok(true)), "{read:?}");
        assert_eq!(received.data, b"hello");
    }
    for bad in
        [&b""[..], b"8", b"-5", b"+5", b"5x", b"0x5", &[0xff; 12], &[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]]
    {
        refused(&plain(&[], bad, b"hello"), 5);
    }
    for bad in ["", "-5", "+5", " 5", "5 ", "five", "9223372036854775808", "99999999999999999999"] {
        refused(&plain(&pax(&[("size", bad)]), &octal(5), b"hello"), 5);
    }
}

#[test]
fn an_archive_holds_a_regular_file_and_nothing_else() {
    for kind in (0..=255).filter(|kind| !matches!(kind, 0 | b'0' | b'x' | b'g')) {
        refused(&[header(kind, &octal(0)), vec![0; 2 * TAR_BLOCK]].concat(), 0);
    }
    refused(b"tar: cannot open\n".repeat(99).as_slice(), 0);
    refused(&[vec![0; TAR_BLOCK], header(b'0', &octal(0)), vec![0; 2 * TAR_BLOCK]].concat(), 0);
}

#[test]
fn a_map_that_makes_no_sense_is_refused() {
    let content = vec![7; 1024];
    let (fine, received) = read(&sparse("3\n512\n512\n4096\n512\n100000\n0\n", &content), 100_000, 1);
    assert!(matches!(fine, Ok(true)), "{fine:?}");
    assert_eq!((received.at, received.pieces), (100_000, vec![(512, vec![7; 512]), (4096, vec![7; 512])]));
    for map in [
        // Overlapping, backwards, beyond the end, too much.
        "2\n512\n512\n1023\n512\n",
        "2\n4096\n512\n512\n512\n",
        "2\n512\n512\n512\n512\n",
        "2\n512\n512\n99489\n512\n",
        "3\n512\n512\n4096\n512\n100001\n0\n",
        "1\n100000\n1024\n",
        "2\n9223372036854775807\n512\n0\n512\n",
        "2\n512\n9223372036854775807\n1024\n9223372036854775807\n",
        "1\n18446744073709551615\n1\n",
        // More or less data than there is.
        "1\n512\n512\n",
        "1\n512\n1025\n",
        "0\n",
        // Counts and numbers that are none.
        "\n512\n1024\n",
        "-1\n512\n1024\n",
        "1\n+512\n1024\n",
        "1\n 512\n1024\n",
        "1\n512\n\n1024\n",
        "1\r\n512\r\n1024\r\n",
        "2\n512\n1024\n",
        "4194305\n512\n1024\n",
        "99999999999999999999\n512\n1024\n",
        "000000000000000000001\n512\n1024\n",
        "1",
    ] {
        let received = refused(&sparse(map, &content), 100_000);
        assert_eq!(received, Received::default(), "{map:?}: something was taken");
    }
    let (many, _) = read(&sparse("4194305\n512\n1024\n", &content), 100_000, 1);
    assert!(many.unwrap_err().to_string().contains("more than 4194304"));
    let other = |keys: &[(&str, &str)]| plain(&pax(keys), &octal(1024), &[7; 1024]);
    refused(&other(&[("GNU.sparse.major", "1")]), 1024);
    refused(&other(&[("GNU.sparse.major", "0"), ("GNU.sparse.realsize", "1024")]), 1024);
    refused(&other(&[("GNU.sparse.realsize", "1024")]), 1024);
}

#[test]
fn pax_records_that_make_no_sense_are_refused() {
    for text in [
        "\n",
        "x",
        "0 \n",
        "1 \n",
        "5 a=b\n",
        "7 a=b\n",
        "6 a=b ",
        "6 a=b\n6",
        "6 a=b\n6 c=d",
        " 6 a=b\n",
        "6  a=b\n\0",
        "+6 a=b\n",
        "6 abc\n",
        "18446744073709551615 a=b\n",
        "99999999999999999999999 a=b\n",
        "9223372036854775807 a=b\n",
    ] {
        let before = [header(b'x', &octal(text.len() as u64)), padded(text.as_bytes())].concat();
        refused(&plain(&before, &octal(5), b"hello"), 5);
    }
}

#[test]
fn what_claims_to_be_large_is_refused_before_it_is_read() {
    // Behind each there is no end of input: who believes it does not come back.
    let endless = |head: &[u8], byte: u8, taken: usize| {
        let mut input = BufReader::with_capacity(TAR_BLOCK, head.chain(io::repeat(byte)).take(1 << 30));
        let mut received = Received::default();
        let read = receive(&mut input, "the test", 100_000, 1, &mut received);
        assert!(matches!(read, Err(Error::Protocol { .. })), "{read:?}");
        assert_eq!(received, Received::default());
        let left = input.into_inner().limit();
        assert!((1 << 30) - left <= (head.len() + taken) as u64, "{} bytes were read", (1 << 30) - left);
    };
    for size in [MAX_RECORDS + 1, 1 << 32] {
        endless(&header(b'x', &octal(size)), b'1', 2 * TAR_BLOCK);
        endless(&header(b'g', &octal(size)), b'1', 2 * TAR_BLOCK);
    }
    endless(&header(b'x', &[&[0x80, 0, 0, 0][..], &MAX_LENGTH.to_be_bytes()].concat()), b'1', 2 * TAR_BLOCK);
    endless(&header(b'0', &[&[0x80, 0, 0, 0][..], &MAX_LENGTH.to_be_bytes()].concat()), b'1', 2 * TAR_BLOCK);
    let keys = [("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "100000")];
    let head = [pax(&keys), header(b'0', &octal(1 << 20))].concat();
    endless(&head, b'1', 2 * TAR_BLOCK);
    endless(&[&head, &b"4194304\n"[..]].concat(), b'1', 2 * TAR_BLOCK);
    endless(&[&head, &b"9223372036854775807\n"[..]].concat(), b'1', 2 * TAR_BLOCK);
}
