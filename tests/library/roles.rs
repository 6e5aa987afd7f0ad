//! Both roles in one process, over two pipes, with a fault at every frame.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, SystemTime};

use holesync::error::Result;
use holesync::frames::{FrameReader, FrameWriter};
use holesync::options::Options;
use holesync::receiver::{self, Target};
use holesync::report::{Silent, Stats};
use holesync::sender::{self, Side};
use tempfile::TempDir;

/// Far beyond what a run takes: it only ends hangs.
const LIMIT: Duration = Duration::from_secs(60);
const BLOCK: usize = 64 << 10;

/// What befalls a direction.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// It ends after so many bytes.
    Cut(usize),
    /// The lowest bit of this byte is flipped.
    Flip(usize),
    /// It is passed on in pieces of so many bytes.
    Pieces(usize),
}

/// Passes one pipe on to another; everything that passed.
fn relay(mut from: impl Read, mut to: impl Write, fault: Fault) -> Vec<u8> {
    let mut passed = Vec::new();
    let mut buffer = vec![0; if let Fault::Pieces(size) = fault { size } else { 4096 }];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let start = passed.len();
        passed.extend(&buffer[..n]);
        match fault {
            Fault::Cut(at) if passed.len() >= at => {
                // The other end may be gone already.
                let _ = to.write_all(&passed[start..at.max(start)]);
                break;
            }
            Fault::Flip(at) if (start..passed.len()).contains(&at) => passed[at] ^= 1,
            _ => {}
        }
        if to.write_all(&passed[start..]).is_err() {
            break;
        }
    }
    passed
}

/// A source tree, a destination with some of it, and how they began.
struct Pair {
    dir: TempDir,
    before: Vec<Option<Vec<u8>>>,
}

const FILES: [&str; 4] = ["new", "changed", "same", "below/shrunk"];

fn content(seed: u8, blocks: usize) -> Vec<u8> {
    let page = |page: usize| (page % 3 != 1).then_some((page as u8).wrapping_mul(31) ^ seed);
    (0..blocks * BLOCK + 77)
        .map(|at| page(at / 4096).map_or(0, |byte| byte.wrapping_add((at % 251) as u8)))
        .collect()
}

impl Pair {
    fn new() -> Pair {
        let dir = tempfile::tempdir().expect("a directory");
        for side in ["from", "to"] {
            fs::create_dir_all(dir.path().join(side).join("below")).expect("create");
        }
        let pair = Pair { dir, before: Vec::new() };
        pair.put("from/new", &content(1, 3));
        pair.put("from/changed", &[content(2, 2), content(3, 3)].concat());
        pair.put("to/changed", &[content(2, 2), content(4, 4)].concat());
        pair.put("from/same", &content(5, 2));
        pair.put("to/same", &content(5, 2));
        pair.put("from/below/shrunk", &content(6, 1));
        pair.put("to/below/shrunk", &content(6, 4));
        std::os::unix::fs::symlink("same", pair.dir.path().join("from/link")).expect("link");
        let day = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        for same in ["from/same", "to/same"] {
            let file = fs::File::options().write(true).open(pair.dir.path().join(same)).expect("open");
            file.set_modified(day).expect("set the time");
        }
        let before = FILES.map(|name| pair.get("to", name)).to_vec();
        Pair { before, ..pair }
    }

    /// Writes a file, its zero pages left out.
    fn put(&self, name: &str, bytes: &[u8]) {
        let file = fs::File::create(self.dir.path().join(name)).expect("create");
        file.set_len(bytes.len() as u64).expect("set the length");
        for (page, bytes) in bytes.chunks(4096).enumerate().filter(|(_, bytes)| bytes.iter().any(|&b| b != 0))
        {
            file.write_all_at(bytes, page as u64 * 4096).expect("write");
        }
    }

    fn get(&self, side: &str, name: &str) -> Option<Vec<u8>> {
        fs::read(self.dir.path().join(side).join(name)).ok()
    }

    fn is_equal(&self) -> bool {
        FILES.iter().all(|name| self.get("from", name) == self.get("to", name))
            && fs::read_link(self.dir.path().join("to/link")).is_ok_and(|link| link == Path::new("same"))
    }

    /// Each file is what it was, or what it is to be.
    fn assert_old_or_new(&self, what: &str) {
        for (name, before) in FILES.iter().zip(&self.before) {
            let now = self.get("to", name);
            assert!(now == *before || now == self.get("from", name), "{what}: {name} is neither old nor new");
        }
    }

    /// Runs both roles; what each returned, and what passed in each direction.
    fn run(&self, to_receiver: Fault, to_sender: Fault) -> Outcome {
        let mut pipes = (0..4).map(|_| io::pipe().expect("a pipe"));
        let mut pipe = || pipes.next().expect("four pipes");
        let ((a_out, a_in), (b_out, b_in), (c_out, c_in), (d_out, d_in)) = (pipe(), pipe(), pipe(), pipe());
        let source = self.dir.path().join("from/");
        let target = Target { path: self.dir.path().join("to"), directory: false, umask: 0o022 };
        let options = Options { fsync: false, checksum: true, ..Options::default() };
        let sent = spawn({
            let options = options.clone();
            move || {
                let (input, output) =
                    (FrameReader::new(d_out, "receiver"), FrameWriter::new(a_in, "receiver"));
                let sources: [PathBuf; 1] = [source.join("")];
                sender::run(input, output, &sources, &options, Side::Initiator, &Silent)
            }
        });
        let forth = spawn(move || relay(a_out, b_in, to_receiver));
        let received = spawn(move || {
            let (input, output) = (FrameReader::new(b_out, "sender"), FrameWriter::new(c_in, "sender"));
            receiver::run(input, output, target, &options, &Silent)
        });
        let back = spawn(move || relay(c_out, d_in, to_sender));
        let what = format!("{to_receiver:?} {to_sender:?}");
        Outcome {
            sent: await_end(&sent, "sender", &what),
            received: await_end(&received, "receiver", &what),
            forth: await_end(&forth, "way forth", &what),
            back: await_end(&back, "way back", &what),
            what,
        }
    }
}

struct Outcome {
    sent: Result<Stats>,
    received: Result<Stats>,
    forth: Vec<u8>,
    back: Vec<u8>,
    what: String,
}

fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (done, result) = channel();
    thread::spawn(move || done.send(work()));
    result
}

fn await_end<T>(result: &Receiver<T>, who: &str, what: &str) -> T {
    result.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("{what}: the {who} hangs, or panicked"))
}

fn leftovers(dir: &Path) -> Vec<PathBuf> {
    let all = walkdir::WalkDir::new(dir).into_iter().flatten().map(|entry| entry.into_path());
    all.filter(|path| path.to_string_lossy().contains(".holesync.")).collect()
}

/// Each frame: where it begins, its type, and the length of its body.
fn frames(stream: &[u8]) -> Vec<(usize, u8, usize)> {
    let mut frames = Vec::new();
    let mut at = 0;
    while let Some(&[kind, a, b, c, d]) = stream.get(at..at + 5) {
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        frames.push((at, kind, len));
        at += 9 + len + if matches!(kind, 2 | 3) { 0 } else { 4 };
    }
    assert_eq!(at, stream.len(), "whole frames");
    frames
}

/// Where frames begin, a byte before and after that, and within their headers.
fn boundaries(stream: &[u8]) -> Vec<usize> {
    let around = |(at, ..): (usize, u8, usize)| [at.saturating_sub(1), at, at + 1, at + 5, at + 9];
    let places = frames(stream).into_iter().flat_map(around);
    places.filter(|&place| place < stream.len()).collect()
}

fn undisturbed() -> Outcome {
    let pair = Pair::new();
    let outcome = pair.run(Fault::None, Fault::None);
    assert!(pair.is_equal());
    assert_eq!(outcome.sent.as_ref().expect("sent").files_failed, 0);
    assert_eq!(leftovers(pair.dir.path()), Vec::<PathBuf>::new());
    outcome
}

/// A run with this fault, and one without.
fn survive(to_receiver: Fault, to_sender: Fault, must_fail: bool) {
    let pair = Pair::new();
    let Outcome { sent, received, what, .. } = pair.run(to_receiver, to_sender);
    pair.assert_old_or_new(&what);
    let success = sent.as_ref().is_ok_and(|stats| stats.files_failed == 0);
    assert!(!success || pair.is_equal(), "{what}: success, and not equal");
    assert!(!must_fail || sent.is_err() || received.is_err(), "{what}: both ends are content");
    let again = pair.run(Fault::None, Fault::None);
    assert_eq!(again.sent.expect("sent").files_failed, 0, "{what}, then again");
    assert!(pair.is_equal(), "{what}, then again");
    assert_eq!(leftovers(pair.dir.path()), Vec::<PathBuf>::new(), "{what}, then again");
}

#[test]
fn a_stream_cut_at_any_frame_is_an_error_and_leaves_old_or_new() {
    let whole = undisturbed();
    for place in boundaries(&whole.forth) {
        survive(Fault::Cut(place), Fault::None, true);
    }
    for place in boundaries(&whole.back) {
        survive(Fault::None, Fault::Cut(place), true);
    }
}

#[test]
fn a_bit_flipped_at_any_frame_is_never_a_wrong_success() {
    let whole = undisturbed();
    for place in boundaries(&whole.forth) {
        survive(Fault::Flip(place), Fault::None, false);
    }
    for place in boundaries(&whole.back) {
        survive(Fault::None, Fault::Flip(place), false);
    }
}

#[test]
fn damaged_data_is_asked_for_again_and_arrives() {
    let whole = undisturbed();
    // The last byte of a data frame belongs to a page.
    let data = frames(&whole.forth).into_iter().find(|&(_, kind, _)| kind == 2);
    let (at, _, len) = data.expect("a data frame");
    let pair = Pair::new();
    let outcome = pair.run(Fault::Flip(at + 9 + len - 1), Fault::None);
    let stats = outcome.sent.expect("sent");
    assert_eq!((stats.files_failed, pair.is_equal()), (0, true));
    assert!(outcome.forth.len() > whole.forth.len() + 4096, "nothing was sent twice");
    assert_eq!(leftovers(pair.dir.path()), Vec::<PathBuf>::new());
}

#[test]
fn pieces_of_any_size_make_no_difference() {
    for pieces in [1, 7, 4095] {
        let pair = Pair::new();
        let outcome = pair.run(Fault::Pieces(pieces), Fault::Pieces(pieces));
        assert_eq!(outcome.sent.expect("sent").files_failed, 0);
        assert!(outcome.received.is_ok() && pair.is_equal(), "{}", outcome.what);
    }
}
