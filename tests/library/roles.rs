//! Sender and receiver in one process over two pipes, undisturbed and with
//! every kind of damage at every frame. A run that reports success made the
//! destination equal; whatever happened, each file is the old or the new one.

mod credit;
mod known;
mod leaves;
mod liars;
mod pipes;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use holesync::confinement::NamedPath;
use holesync::error::{Error, Failure, Result, code};
use holesync::options::{BlockSize, Commit, Compress, Options};
use holesync::protocol::{
    CREDIT, Connection, Entry, Frame, FrameReader, FrameWriter, MAX_AHEAD, MAX_LENGTH, Message, RESERVED,
};
use holesync::receiver::{self, Target};
use holesync::report::{Changes, Event, Outcome, Reporter, Silent, Stats, Summary};
use holesync::sender::{self, Side};
use holesync::source::Kind as EntryKind;
use holesync::source::Metadata;
use holesync::sys;
use holesync::working::is_working_name;
use proptest::prelude::*;
use tempfile::TempDir;
use walkdir::WalkDir;

use crate::roles::pipes::{DATA, Fault, Faulty, PATCH, Pace, Slow, Spot, Tape, tiny_pipe};
use crate::support::{Kind, Sparse, versions};

/// Ends a hang; nothing here takes a tenth of it.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A source tree and a destination that has an older version of it.
struct Trees {
    dir: TempDir,
    old: Snapshot,
    new: Snapshot,
}

/// What is where, working files left out.
type Snapshot = BTreeMap<PathBuf, Node>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    File { bytes: Vec<u8>, mode: u32, mtime: SystemTime },
    Link(PathBuf),
    Dir,
}

impl Trees {
    /// One file that is new, two that changed, one that did not, a directory
    /// and a symlink.
    fn new() -> Trees {
        use Kind::{Data, Hole, Zeros};
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        for tree in [&source, &target] {
            fs::create_dir_all(tree.join("sub")).unwrap();
        }
        let put = |tree: &Path, name: &str, pieces: &[(Kind, usize)]| {
            let path = tree.join(name);
            let file = Sparse::of(pieces).write(&path);
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + pieces.len() as u64))
                .unwrap();
            file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
        };
        let same = [(Data(1), 50_000), (Hole, 30_000)];
        for tree in [&source, &target] {
            put(tree, "same", &same);
        }
        put(&source, "changed", &[(Data(1), 70_000), (Hole, 40_000), (Zeros, 9000), (Data(2), 50_000)]);
        put(&target, "changed", &[(Data(1), 70_000), (Data(3), 60_000), (Hole, 20_000)]);
        put(&source, "sub/new", &[(Hole, 100_000), (Data(2), 33_333), (Hole, 7)]);
        put(&source, "sub/shorter", &[(Data(2), 40_000), (Hole, 10_000)]);
        put(&target, "sub/shorter", &[(Data(3), 60_000), (Data(1), 100_000), (Hole, 3)]);
        symlink("sub/new", source.join("link")).unwrap();
        symlink("same", target.join("link")).unwrap();
        let (old, new) = (snapshot(&target), snapshot(&source));
        Trees { dir, old, new }
    }

    /// Two files of which so much differs that the receiver is asked what it has.
    fn asking() -> Trees {
        let trees = Trees::new();
        for name in ["asked", "sub/asked"] {
            // A page of each block of 8 KiB, and of some more.
            let mut bytes = vec![0; (1 << 20) + 50_000];
            crate::support::fill(&mut bytes, 0, 1);
            bytes.iter_mut().for_each(|byte| *byte |= 1);
            fs::write(trees.source().join(name), &bytes).unwrap();
            bytes.iter_mut().skip(4096 + 100).step_by(8192).for_each(|byte| *byte ^= 2);
            bytes[40_960..49_152].fill(0);
            bytes.truncate((1 << 20) + 30_000);
            fs::write(trees.target().join(name), &bytes).unwrap();
        }
        let (old, new) = (snapshot(&trees.target()), snapshot(&trees.source()));
        Trees { old, new, ..trees }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source/")
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    /// Demands that each file is the old or the new one and that nothing else is there.
    fn assert_old_or_new(&self, what: &str) {
        let now = snapshot(&self.target());
        let content = |node: Option<&Node>| match node {
            Some(Node::File { bytes, .. }) => Some(bytes.clone()),
            _ => None,
        };
        for path in self.new.keys().chain(now.keys()) {
            let (is, old, new) = (now.get(path), self.old.get(path), self.new.get(path));
            assert!(new.is_some(), "{what}: {} was never sent", path.display());
            let files = matches!(new, Some(Node::File { .. }));
            let fits = is == old
                || is == new
                || files && (content(is) == content(old) || content(is) == content(new));
            assert!(fits, "{what}: {} is neither old nor new", path.display());
        }
    }

    fn assert_new(&self, what: &str) {
        let now = snapshot(&self.target());
        let names = |tree: &Snapshot| tree.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&now), names(&self.new), "{what}");
        for (path, node) in &now {
            assert!(Some(node) == self.new.get(path), "{what}: {} differs", path.display());
        }
    }

    fn assert_nothing_left(&self, what: &str) {
        let all = WalkDir::new(self.target()).into_iter().flatten();
        let left: Vec<_> =
            all.map(|entry| entry.file_name().to_owned()).filter(|name| is_working_name(name)).collect();
        assert!(left.is_empty(), "{what}: {left:?}");
    }
}

fn snapshot(root: &Path) -> Snapshot {
    let entries = WalkDir::new(root).min_depth(1).into_iter().map(|entry| entry.unwrap());
    let entries = entries.filter(|entry| !is_working_name(entry.file_name()));
    entries
        .map(|entry| {
            let metadata = entry.metadata().unwrap();
            let node = if metadata.is_symlink() {
                Node::Link(fs::read_link(entry.path()).unwrap())
            } else if metadata.is_dir() {
                Node::Dir
            } else {
                let mode = metadata.permissions().mode() & 0o7777;
                let mtime = metadata.modified().unwrap();
                Node::File { bytes: fs::read(entry.path()).unwrap(), mode, mtime }
            };
            (entry.path().strip_prefix(root).unwrap().to_owned(), node)
        })
        .collect()
}

pub(super) fn options(commit: Commit) -> Options {
    // Small blocks for many frames; no sync, for no test here cuts the power.
    Options { commit, fsync: false, block_size: BlockSize::new(8 << 10).unwrap(), ..Options::default() }
}

/// How both roles ended.
pub(super) struct Ended {
    pub sent: Result<Stats>,
    pub received: Result<Stats>,
}

impl Ended {
    /// Whether the sender says that all is well.
    pub fn is_success(&self) -> bool {
        self.sent.as_ref().is_ok_and(|stats| stats.files_failed == 0)
    }
}

pub(super) fn start<T: Send + 'static>(role: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (result_in, result) = channel();
    std::thread::spawn(move || result_in.send(role()));
    result
}

pub(super) fn start_sender(
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
    source: PathBuf,
    options: Options,
) -> Receiver<Result<Stats>> {
    start(move || {
        let input = FrameReader::new(input, "the receiver");
        let output = FrameWriter::new(output, "the receiver");
        let connection = Connection { input, output, options: &options, reporter: &Silent, saved: None };
        sender::run(connection, &[NamedPath::here(source)], None, Side::Initiator)
    })
}

pub(super) fn start_receiver(
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
    path: PathBuf,
    options: Options,
) -> Receiver<Result<Stats>> {
    start_receiver_of(input, output, Target::new(NamedPath::here(path), false, 0o022), options)
}

pub(super) fn start_receiver_of(
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
    target: Target,
    options: Options,
) -> Receiver<Result<Stats>> {
    start(move || {
        let input = FrameReader::new(input, "the sender");
        let output = FrameWriter::new(output, "the sender");
        let connection = Connection { input, output, options: &options, reporter: &Silent, saved: None };
        receiver::run(connection, target, None)
    })
}

pub(super) fn wait<T>(result: &Receiver<T>, who: &str, what: &str) -> T {
    result.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what}: the {who} hangs"))
}

/// Runs both roles over these streams: sender to receiver, receiver to sender.
fn run_over(
    trees: &Trees,
    options: &Options,
    forth: (impl Read + Send + 'static, impl Write + Send + 'static),
    back: (impl Read + Send + 'static, impl Write + Send + 'static),
    what: &str,
) -> Ended {
    let sent = start_sender(back.0, forth.1, trees.source(), options.clone());
    let received = start_receiver(forth.0, back.1, trees.target(), options.clone());
    Ended { sent: wait(&sent, "sender", what), received: wait(&received, "receiver", what) }
}

/// Which of the two streams a fault is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forth,
    Back,
}

/// Runs with a fault; what went through the stream that had it, and the other one.
fn run_with(
    trees: &Trees,
    options: &Options,
    fault: Option<(Direction, Spot, Fault)>,
    what: &str,
) -> (Ended, Tape, Tape) {
    let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
    let of =
        |wanted| fault.filter(|(direction, ..)| *direction == wanted).map(|(_, spot, fault)| (spot, fault));
    let (forth_out, forth_tape) = Faulty::new(forth.0, of(Direction::Forth));
    let (back_out, back_tape) = Faulty::new(back.0, of(Direction::Back));
    let ended = run_over(trees, options, (forth_out, forth.1), (back_out, back.1), what);
    let take = |tape: std::sync::Arc<std::sync::Mutex<Tape>>| std::mem::take(&mut *tape.lock().unwrap());
    let (forth, back) = (take(forth_tape), take(back_tape));
    (ended, forth, back)
}

fn run_undisturbed(trees: &Trees, options: &Options, what: &str) -> (Ended, Tape, Tape) {
    let (ended, forth, back) = run_with(trees, options, None, what);
    assert!(ended.is_success(), "{what}: {:?}, {:?}", ended.sent, ended.received);
    assert!(ended.received.is_ok(), "{what}: {:?}", ended.received);
    trees.assert_new(what);
    trees.assert_nothing_left(what);
    (ended, forth, back)
}

/// Strikes with `faults` at every frame in one direction, for each way to commit.
fn damage_everywhere(direction: Direction, faults: &[Fault]) {
    for commit in [Commit::Auto, Commit::Atomic] {
        damage_all(Trees::new, commit, direction, faults);
    }
    damage_all(Trees::asking, Commit::Auto, direction, &faults[..1]);
}

fn damage_all(trees: fn() -> Trees, commit: Commit, direction: Direction, faults: &[Fault]) {
    let options = options(commit);
    let (_, forth, back) = run_undisturbed(&trees(), &options, "the first run");
    let frames = if direction == Direction::Forth { forth.frames } else { back.frames };
    assert!(frames > 5, "only {frames} frames");
    for frame in 0..frames {
        for spot in [Spot::Before(frame), Spot::Inside(frame), Spot::AlmostBehind(frame)] {
            faults.iter().for_each(|&fault| damage_once(trees, &options, direction, spot, fault));
        }
    }
}

fn damage_once(trees: fn() -> Trees, options: &Options, direction: Direction, spot: Spot, fault: Fault) {
    let what = format!("{:?}, {direction:?}, {fault:?} {spot:?}", options.commit);
    let trees = trees();
    let (ended, forth, back) = run_with(&trees, options, Some((direction, spot, fault)), &what);
    let struck = if direction == Direction::Forth { forth.struck } else { back.struck };
    if ended.is_success() {
        trees.assert_new(&what);
    }
    // The order of what the receiver says is not fixed, so the spot may not come up.
    let broken = struck && !matches!(fault, Fault::Flip(_));
    assert!(!(broken && ended.is_success()), "{what}: success over a broken stream");
    trees.assert_old_or_new(&what);
    run_undisturbed(&trees, options, &format!("after {what}"));
}

#[test]
fn a_stream_that_ends_early_on_its_way_to_the_receiver_is_never_a_success() {
    damage_everywhere(Direction::Forth, &[Fault::Cut]);
}

#[test]
fn a_stream_that_ends_early_on_its_way_to_the_sender_is_never_a_success() {
    damage_everywhere(Direction::Back, &[Fault::Cut]);
}

#[test]
fn a_stream_that_fails_is_never_a_success() {
    damage_everywhere(Direction::Forth, &[Fault::Broken]);
    damage_everywhere(Direction::Back, &[Fault::Broken]);
}

#[test]
fn a_wrong_bit_on_its_way_to_the_receiver_is_never_a_wrong_file() {
    damage_everywhere(Direction::Forth, &[Fault::Flip(0), Fault::Flip(6)]);
}

#[test]
fn a_wrong_bit_on_its_way_to_the_sender_is_never_a_wrong_file() {
    damage_everywhere(Direction::Back, &[Fault::Flip(0), Fault::Flip(6)]);
}

fn count_again(tape: &Tape) -> usize {
    let mut frames = FrameReader::new(tape.bytes.as_slice(), "the receiver");
    std::iter::from_fn(|| frames.read().ok())
        .filter(|frame| matches!(frame, Frame::Message(Message::Again { .. })))
        .count()
}

#[test]
fn content_that_arrives_damaged_once_is_asked_for_again() {
    for commit in [Commit::Auto, Commit::Atomic] {
        let trees = Trees::new();
        let fault = (Direction::Forth, Spot::First(DATA), Fault::Flip(3));
        let (ended, forth, back) = run_with(&trees, &options(commit), Some(fault), "once");
        assert!(forth.struck && ended.is_success(), "{:?}", ended.sent);
        assert_eq!(count_again(&back), 1);
        trees.assert_new("once");
        trees.assert_nothing_left("once");
    }
}

#[test]
fn patches_that_arrive_damaged_are_asked_for_again_and_sent_whole() {
    // Whether the second file is patched, too, depends on how quick the first answer was.
    for (spot, most) in [(Spot::First(PATCH), 1), (Spot::Every(PATCH), 2)] {
        for commit in [Commit::Auto, Commit::Atomic] {
            let trees = Trees::asking();
            let fault = (Direction::Forth, spot, Fault::Flip(3));
            let (ended, forth, back) = run_with(&trees, &options(commit), Some(fault), "patches");
            assert!(forth.struck && ended.is_success(), "{:?}", ended.sent);
            assert!((1..=most).contains(&count_again(&back)), "{spot:?}");
            trees.assert_new("patches");
            trees.assert_nothing_left("patches");
        }
    }
}

#[test]
fn content_that_arrives_damaged_twice_fails_and_leaves_the_old_file() {
    for commit in [Commit::Auto, Commit::Atomic] {
        let trees = Trees::new();
        let fault = (Direction::Forth, Spot::Every(DATA), Fault::Flip(3));
        let (ended, _, back) = run_with(&trees, &options(commit), Some(fault), "always");
        let stats = ended.sent.unwrap();
        assert_eq!((stats.files_failed, count_again(&back)), (3, 3));
        assert_eq!(stats.worst_code, 23);
        for name in ["changed", "sub/new", "sub/shorter"].map(PathBuf::from) {
            assert!(snapshot(&trees.target()).get(&name) == trees.old.get(&name), "{name:?} was touched");
        }
        run_undisturbed(&trees, &options(commit), "after it");
    }
}

#[test]
fn slow_short_and_tiny_pipes_make_no_difference() {
    let paces = [Pace::Short(1), Pace::Short(7), Pace::Uneven(1), Pace::Uneven(2), Pace::Uneven(3)];
    paces.into_iter().for_each(|pace| run_at(pace, Trees::new));
    [Pace::Short(100), Pace::Uneven(1), Pace::Uneven(2)]
        .into_iter()
        .for_each(|pace| run_at(pace, Trees::asking));
}

fn run_at(pace: Pace, trees: fn() -> Trees) {
    for tiny in [false, true] {
        let what = format!("{pace:?}, tiny: {tiny}");
        let pipe = || if tiny { tiny_pipe() } else { io::pipe().unwrap() };
        let slow = |(input, output)| (Slow::new(input, pace), Slow::new(output, pace));
        let trees = trees();
        let ended = run_over(&trees, &options(Commit::Auto), slow(pipe()), slow(pipe()), &what);
        assert!(ended.is_success(), "{what}: {:?}, {:?}", ended.sent, ended.received);
        trees.assert_new(&what);
        trees.assert_nothing_left(&what);
    }
}

fn any_options() -> impl Strategy<Value = Options> {
    let commit = prop_oneof![Just(Commit::Auto), Just(Commit::Atomic), Just(Commit::InPlace)];
    (12..=18u32, commit, any::<[bool; 5]>()).prop_map(
        |(bits, commit, [whole_file, preallocate, verify, hole_map, packed])| Options {
            block_size: BlockSize::new(1 << bits).unwrap(),
            compress: if packed { Compress::Zstd } else { Compress::None },
            checksum: true,
            whole_file,
            preallocate,
            verify,
            hole_map,
            ..options(commit)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_version_becomes_any_other(
        (source, basis) in versions(8), there in prop::bool::weighted(0.8), options in any_options(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        source.write(&from);
        if there {
            basis.write(&to);
        }
        let run = |what: &str| {
            let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
            let sent = start_sender(back.0, forth.1, from.clone(), options.clone());
            let received = start_receiver(forth.0, back.1, to.clone(), options.clone());
            wait(&received, "receiver", what).unwrap();
            wait(&sent, "sender", what).unwrap()
        };
        prop_assert_eq!(run("first").files_failed, 0);
        prop_assert!(fs::read(&to).unwrap() == source.bytes, "the content differs");
        let again = run("again");
        prop_assert_eq!(again.files_failed, 0);
        prop_assert!(options.whole_file || again.sent_data_bytes == 0, "{} bytes were sent again", again.sent_data_bytes);
        prop_assert!(fs::read(&to).unwrap() == source.bytes, "the content differs afterwards");
        prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}

/// The receiver answers far ahead of what it has been sent, while files wait
/// for storage: neither side may wait for the other.
#[test]
fn a_receiver_that_is_far_ahead_does_not_block_the_sender() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source/"), dir.path().join("target"));
    fs::create_dir_all(&source).unwrap();
    fs::create_dir_all(&target).unwrap();
    let put = |tree: &Path, name: &str, kind, len| drop(Sparse::of(&[(kind, len)]).write(&tree.join(name)));
    for nth in 0..20 {
        put(&source, &format!("a{nth}"), Kind::Data(1), 120_000);
        put(&target, &format!("a{nth}"), Kind::Data(2), 120_000);
    }
    for nth in 0..200 {
        // In the way of a file: the receiver says so at length.
        put(&source, &format!("b{nth}"), Kind::Data(1), 10);
        fs::create_dir_all(target.join(format!("b{nth}/full"))).unwrap();
    }
    put(&source, "c", Kind::Data(1), 48 << 20);
    put(&target, "c", Kind::Data(1), (48 << 20) + 1);
    let options =
        Options { block_size: BlockSize::new(4096).unwrap(), ignore_times: true, ..Options::default() };
    let (forth, back) = (tiny_pipe(), tiny_pipe());
    let sent = start_sender(back.0, forth.1, source.clone(), options.clone());
    let received = start_receiver(forth.0, back.1, target.clone(), options);
    let stats = wait(&sent, "sender", "far ahead").unwrap();
    wait(&received, "receiver", "far ahead").unwrap();
    assert_eq!((stats.files_failed, stats.files_sent), (200, 21));
    assert!(fs::read(source.join("c")).unwrap() == fs::read(target.join("c")).unwrap());
}

/// A sender under test, and its other end in the test's hands.
fn sender_alone()
-> (TempDir, Receiver<Result<Stats>>, FrameReader<io::PipeReader>, FrameWriter<io::PipeWriter>) {
    let trees = Trees::new();
    let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
    let sent = start_sender(back.0, forth.1, trees.source(), options(Commit::Auto));
    (trees.dir, sent, FrameReader::new(forth.0, "the sender"), FrameWriter::new(back.1, "the sender"))
}

#[test]
fn failures_that_a_peer_told_of_count_whatever_its_totals_say() {
    let (_dir, sent, mut input, mut output) = sender_alone();
    // It may be asked only after it was announced, and ends when all is.
    loop {
        match input.read().unwrap() {
            Frame::Message(Message::Entry(Entry { id, kind: EntryKind::File { .. }, .. })) => {
                let failure = Failure::new(code::FILE_IO, "no room");
                output.message(&Message::Failed { id, failure }).unwrap();
                output.flush().unwrap();
            }
            Frame::Message(Message::End(_)) => break,
            _ => {}
        }
    }
    output.message(&Message::End(Box::default())).and_then(|()| output.flush()).unwrap();
    let stats = wait(&sent, "sender", "totals without failures").unwrap();
    assert!(stats.files_failed > 0, "{stats:?}");
    assert_eq!((stats.files_sent, stats.worst_code), (0, code::FILE_IO));
}

#[test]
fn a_sender_ends_when_its_peer_breaks_a_rule_and_stays_connected() {
    let wrong = [
        Message::Map { id: 77, device: false },
        Message::NoBasis { id: 77, device: false },
        Message::MapEnd { id: 77 },
        Message::Keep { blocks: 1 },
        Message::Layout { single: true },
        Message::End(Box::default()),
    ];
    for message in wrong {
        let (_dir, sent, _input, mut output) = sender_alone();
        output.message(&message).and_then(|()| output.flush()).unwrap();
        let error = wait(&sent, "sender", &format!("{message:?}")).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{message:?}: {error}");
    }
}

fn entry(id: u64, path: &str, length: u64) -> Message {
    let kind = EntryKind::File { length, allocated: length, whole: false, retry: false };
    Message::Entry(Entry { id, path: path.into(), kind, metadata: Metadata::default() })
}

#[test]
fn a_receiver_ends_when_its_peer_breaks_a_rule_and_stays_connected() {
    let layout = || Message::Layout { single: false };
    let begun =
        |more: &[Message]| [&[layout(), entry(0, "same", 80_000), Message::Content { id: 0 }], more].concat();
    let wrong = [
        vec![Message::Keep { blocks: 1 }],
        vec![entry(0, "a", 1)],
        vec![layout(), layout()],
        vec![layout(), entry(0, "../a", 1)],
        vec![layout(), entry(0, "/a", 1)],
        vec![layout(), entry(0, "a//b", 1)],
        vec![layout(), entry(0, "a", MAX_LENGTH + 1)],
        vec![layout(), entry(0, "a", 1), entry(0, "b", 1)],
        vec![layout(), entry(1, "a", 1), entry(0, "b", 1)],
        vec![layout(), Message::Content { id: 0 }],
        vec![layout(), entry(0, "a", 1), Message::Content { id: 1 }],
        vec![layout(), Message::Done { id: 0, changed: None, changes: Changes::default() }],
        vec![layout(), Message::Abandon],
        vec![layout(), Message::Finish { root: [0; 32], settled: true }],
        begun(&[Message::Keep { blocks: 1 << 40 }]),
        begun(&[Message::Zero { blocks: u64::MAX }]),
        begun(&[Message::Content { id: 0 }]),
        begun(&[Message::End(Box::default())]),
        begun(&[Message::Finish { root: [0; 32], settled: true }]),
    ];
    for messages in wrong {
        let (ended, before, after) = receive(&messages);
        let error = ended.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{messages:?}: {error}");
        assert!(before == after, "{messages:?} changed something");
    }
}

/// A receiver that is told all this and then nothing; the tree before and after.
fn receive(messages: &[Message]) -> (Result<Stats>, Snapshot, Snapshot) {
    let trees = Trees::new();
    let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
    let received = start_receiver(forth.0, back.1, trees.target(), options(Commit::Auto));
    // Somebody reads the answers, however many.
    let answers = start(move || io::copy(&mut { back.0 }, &mut io::sink()));
    let mut output = FrameWriter::new(forth.1, "the receiver");
    for message in messages {
        // It may have had enough before it was told everything.
        let _ = output.message(message);
    }
    let _ = output.flush();
    let ended = wait(&received, "receiver", &format!("{messages:.300?}"));
    wait(&answers, "receiver", "its answers").unwrap();
    let after = snapshot(&trees.target());
    (ended, trees.old, after)
}

#[test]
fn data_that_does_not_fit_the_file_breaks_a_rule() {
    let page = [1; 4096];
    let cases: [(&str, u64, &[u64], usize); 6] = [
        ("out of place", 1, &[1], 4096),
        ("an empty mask", 0, &[0], 4096),
        ("pages beyond the block", 0, &[4], 4096),
        ("too short", 0, &[3], 4096),
        ("too long", 0, &[1], 8192),
        ("blocks beyond the end", 0, &[1; 4096], 4096),
    ];
    for (what, first, masks, len) in cases {
        let trees = Trees::new();
        let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
        let received = start_receiver(forth.0, back.1, trees.target(), options(Commit::Auto));
        let mut output = FrameWriter::new(forth.1, "the receiver");
        for message in [Message::Layout { single: false }, entry(0, "a", 80_000), Message::Content { id: 0 }]
        {
            output.message(&message).unwrap();
        }
        output.data(first, masks, &[&[page, page].concat()[..len]]).and_then(|()| output.flush()).unwrap();
        let error = wait(&received, "receiver", what).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{what}: {error}");
        drop(back.0);
        trees.assert_old_or_new(what);
    }
}

/// What a peer gets said to a receiver whose answers it does not read, and how that ends.
fn unread(messages: impl Iterator<Item = Message>) -> (usize, Result<Stats>) {
    let trees = Trees::new();
    let (forth, back) = (tiny_pipe(), tiny_pipe());
    let received = start_receiver(forth.0, back.1, trees.target(), options(Commit::Auto));
    let mut output = FrameWriter::new(forth.1, "the receiver");
    output.message(&Message::Layout { single: false }).unwrap();
    let said = messages.take_while(|message| {
        let written = output.message(message).and_then(|()| output.flush());
        written.is_ok()
    });
    let said = said.count();
    drop(back.0);
    (said, wait(&received, "receiver", "too many"))
}

/// A path that is long, and that is nowhere.
fn nowhere() -> String {
    format!("{}/x", vec!["d".repeat(200); 15].join("/"))
}

#[test]
fn a_sender_that_announces_without_end_is_refused() {
    // The answers are long, and nobody reads them: a few fill buffer and pipe.
    let link = |id| Entry {
        id,
        path: nowhere().into(),
        kind: EntryKind::Symlink(b"x".to_vec()),
        metadata: Metadata::default(),
    };
    let directory = |id| Entry { kind: EntryKind::Directory, ..link(id) };
    type Entries<'a> = Box<dyn Iterator<Item = Message> + 'a>;
    let all: [(&str, Entries); 4] = [
        ("files", Box::new((0..).map(|id| entry(id, &nowhere(), 1)))),
        ("directories that cannot be made", Box::new((0..).map(|id| Message::Entry(directory(id))))),
        ("symlinks that cannot be made", Box::new((0..).map(|id| Message::Entry(link(id))))),
        (
            "one after the other",
            Box::new((0..).map(|id| {
                if id % 2 == 0 { Message::Entry(directory(id)) } else { entry(id, &nowhere(), 1) }
            })),
        ),
    ];
    for (what, messages) in all {
        let (said, ended) = unread(messages);
        let error = ended.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{what}: {error}");
        assert!(error.to_string().contains("credit"), "{what}: {error}");
        // Its credit, what was written before the way back was full, and what lies in the
        // pipe and in the queue of frames.
        let least = CREDIT - RESERVED;
        assert!((least..least + 512).contains(&said), "{what}: {said}");
    }
}

#[test]
fn directories_that_can_be_made_do_not_use_credit_up() {
    let trees = Trees::new();
    let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
    let received = start_receiver(forth.0, back.1, trees.target(), options(Commit::Auto));
    let granted = start(move || {
        let mut input = FrameReader::new(back.0, "the receiver");
        let mut granted = 0;
        while let Ok(frame) = input.read() {
            match frame {
                Frame::Message(Message::Granted { units }) => granted += units as usize,
                Frame::Message(Message::End(_)) => break,
                other => panic!("{other:?}"),
            }
        }
        granted
    });
    let mut output = FrameWriter::new(forth.1, "the receiver");
    output.message(&Message::Layout { single: false }).unwrap();
    // As many as are credited at once, and not one more.
    let count = CREDIT - RESERVED;
    for id in 0..count {
        let path = format!("d{}", id % 7).into_bytes();
        let entry = Entry { id: id as u64, path, kind: EntryKind::Directory, metadata: Metadata::default() };
        output.message(&Message::Entry(entry)).unwrap();
    }
    output.message(&Message::End(Box::default())).and_then(|()| output.flush()).unwrap();
    assert_eq!(wait(&received, "receiver", "directories").unwrap().files_failed, 0);
    // All but what is not worth a message.
    let granted = wait(&granted, "receiver", "grants");
    assert!((count - CREDIT / 16..=count).contains(&granted), "{granted}");
}

/// Thousands of tiny files are announced, which takes all credit for entries, while a large
/// one is described that needs questions, answers, and an end.
#[test]
fn files_that_come_later_leave_credit_for_the_file_in_hand() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source/"), dir.path().join("target"));
    fs::create_dir_all(&source).unwrap();
    fs::create_dir_all(&target).unwrap();
    let mut large = vec![0; 24 << 20];
    crate::support::fill(&mut large, 0, 1);
    large.iter_mut().for_each(|byte| *byte |= 1);
    fs::write(source.join("a"), &large).unwrap();
    // A page of each block of 8 KiB: it is asked about.
    large.iter_mut().skip(100).step_by(8192).for_each(|byte| *byte ^= 2);
    fs::write(target.join("a"), &large).unwrap();
    for nth in 0..3000 {
        fs::write(source.join(format!("b{nth}")), nth.to_string()).unwrap();
    }
    for (forth, back) in [(tiny_pipe(), tiny_pipe()), (io::pipe().unwrap(), io::pipe().unwrap())] {
        let options = Options { checksum: true, ..options(Commit::Auto) };
        let (forth_out, tape) = Faulty::new(forth.0, None);
        let output = Slow::new(forth.1, Pace::Stalled);
        let sent = start_sender(back.0, output, source.clone(), options.clone());
        let received = start_receiver(forth_out, back.1, target.clone(), options);
        let stats = wait(&sent, "sender", "many").unwrap();
        wait(&received, "receiver", "many").unwrap();
        assert_eq!((stats.files_failed, stats.files_total), (0, 3001));
        assert!(fs::read(source.join("a")).unwrap() == fs::read(target.join("a")).unwrap());
        assert!(
            (0..3000)
                .all(|nth| fs::read_to_string(target.join(format!("b{nth}"))).unwrap() == nth.to_string())
        );
        let bytes = std::mem::take(&mut tape.lock().unwrap().bytes);
        let mut frames = FrameReader::new(bytes.as_slice(), "the sender");
        let (mut asked, mut announced, mut before) = (0, 0, 0);
        while let Ok(frame) = frames.read() {
            match frame {
                Frame::Differ(differ) => asked += differ.hashes.len(),
                Frame::Message(Message::Entry(_)) => announced += 1,
                Frame::Message(Message::Finish { .. }) if before == 0 => before = announced,
                _ => {}
            }
        }
        // The first time through: entries were announced up to their credit meanwhile.
        if stats.files_sent == 3001 {
            assert!(asked > 1000 && before >= CREDIT - RESERVED - 512, "{asked} blocks, {before} entries");
        }
        fs::write(target.join("a"), &large).unwrap();
    }
}

/// More blocks than maps may be ahead: where nothing is described, the sender has to say how
/// far it has compared.
#[test]
fn a_dry_run_compares_more_than_maps_may_be_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let mut bytes = vec![7; (3 * MAX_AHEAD + 100) * 4096];
    fs::write(&to, &bytes).unwrap();
    bytes[2 * MAX_AHEAD * 4096] ^= 1;
    fs::write(&from, &bytes).unwrap();
    for dry_run in [true, false] {
        let block_size = BlockSize::new(4096).unwrap();
        let options = Options { block_size, dry_run, checksum: true, ..options(Commit::InPlace) };
        let (forth, back) = (tiny_pipe(), tiny_pipe());
        let sent = start_sender(back.0, forth.1, from.clone(), options.clone());
        let received = start_receiver(forth.0, back.1, to.clone(), options);
        let stats = wait(&sent, "sender", "far").unwrap();
        wait(&received, "receiver", "far").unwrap();
        assert_eq!((stats.files_sent, stats.sent_data_bytes), (1, 4096));
        assert_eq!(fs::read(&to).unwrap() == bytes, !dry_run);
    }
}

/// Blocks that come whole in the place of others: pages that stay are not written again.
#[test]
fn of_blocks_that_come_whole_only_pages_that_differ_are_written() {
    let size = 8 << 20;
    let mut new = vec![0; size];
    crate::support::fill(&mut new, 0, 1);
    new.iter_mut().for_each(|byte| *byte |= 1);
    let mut old = new.clone();
    old.iter_mut().skip(5000).step_by(8 << 10).for_each(|byte| *byte ^= 2);
    let other: Vec<u8> = new.iter().map(|byte| byte ^ 2).collect();
    for (basis, written) in [(old, size / 2), (other, size)] {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, &new).unwrap();
        fs::write(&to, &basis).unwrap();
        let leaf_size = BlockSize::new(8 << 10).unwrap();
        let options = Options { leaf_size, checksum: true, ..options(Commit::InPlace) };
        let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
        let sent = start_sender(back.0, forth.1, from, options.clone());
        let received = start_receiver(forth.0, back.1, to.clone(), options);
        let stats = wait(&sent, "sender", "whole").unwrap();
        wait(&received, "receiver", "whole").unwrap();
        assert_eq!((stats.sent_data_bytes, stats.written_bytes), (size as u64, written as u64));
        assert!(fs::read(&to).unwrap() == new);
    }
}

/// What the receiver says of a file and what the sender says of it both follow what was
/// written.
#[test]
fn both_ends_say_the_same_of_what_changed() {
    #[derive(Clone, Copy, Debug)]
    enum Case {
        /// Equal, but with room that holds no data behind its end.
        Loose,
        /// Equal content in a temp file of an earlier run, and an old file.
        Temp,
        Equal,
        /// Zeros that are allocated become a hole.
        Zeros,
    }
    // Room that is given back changes neither content nor length.
    for (case, changes) in
        [(Case::Loose, false), (Case::Temp, true), (Case::Equal, false), (Case::Zeros, false)]
    {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let data = |seed| Sparse::of(&[(Kind::Data(seed), 300_000), (Kind::Hole, 4 << 20)]);
        data(1).write(&from);
        match case {
            Case::Loose => {
                let file = data(1).write(&to);
                sys::allocate(&file, 1 << 20..4 << 20).unwrap();
            }
            Case::Temp => {
                data(2).write(&to);
                let temp = data(1).write(&dir.path().join(".to.holesync.temp"));
                temp.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
            }
            Case::Equal => {
                fs::write(&from, [7; 300_000]).unwrap();
                fs::write(&to, [7; 300_000]).unwrap();
            }
            Case::Zeros => drop(Sparse::of(&[(Kind::Data(1), 300_000), (Kind::Zeros, 4 << 20)]).write(&to)),
        }
        let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
        let options = Options { checksum: true, ..options(Commit::Auto) };
        let (sender, receiver) = (Arc::new(Said::default()), Arc::new(Said::default()));
        let sent = start({
            let (said, options, from) = (Arc::clone(&sender), options.clone(), from.clone());
            move || {
                let (input, output) = (FrameReader::new(back.0, "r"), FrameWriter::new(forth.1, "r"));
                let connection =
                    Connection { input, output, options: &options, reporter: &*said, saved: None };
                sender::run(connection, &[NamedPath::here(from)], None, Side::Initiator)
            }
        });
        let received = start({
            let (said, path) = (Arc::clone(&receiver), to.clone());
            move || {
                let (input, output) = (FrameReader::new(forth.0, "s"), FrameWriter::new(back.1, "s"));
                let connection =
                    Connection { input, output, options: &options, reporter: &*said, saved: None };
                receiver::run(connection, Target::new(NamedPath::here(path), false, 0o022), None)
            }
        });
        let stats = wait(&sent, "sender", "changed").unwrap();
        wait(&received, "receiver", "changed").unwrap();
        let said = |said: &Said| said.0.lock().unwrap().clone();
        let (sender, receiver) = (said(&sender), said(&receiver));
        assert_eq!(sender, receiver, "{case:?}");
        assert_eq!(sender.len(), 1, "{case:?}");
        assert_eq!(stats.files_sent, u64::from(sender[0]), "{case:?}");
        assert_eq!(changes, sender[0], "{case:?}");
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
    }
}

/// Whether each file that was reported changed.
#[derive(Default)]
struct Said(Mutex<Vec<bool>>);

impl Reporter for Said {
    fn event(&self, event: Event) {
        if let Event::File(_, outcome, _) = event {
            self.0.lock().unwrap().push(matches!(outcome, Outcome::Sent(_)));
        }
    }

    fn summary(&self, _: &Summary) {}
}
