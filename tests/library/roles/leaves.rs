//! Blocks that differ in a few pages: how much of them travels, whatever the grain,
//! and ends that answer or ask what they should not.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use holesync::error::{Error, Failure, Result, code};
use holesync::hashmap::leaves::Leaves;
use holesync::hashmap::plan::Run;
use holesync::hashmap::{Block, Grid, Hash, Item, key, map_image, root_of};
use holesync::options::{BlockSize, Commit, Compress, Options};
use holesync::protocol::{
    BlockAnswer, Differ, Entry, Frame, FrameReader, FrameWriter, LeafAnswer, MAX_DIFFER, MAX_MAP_KEYS,
    MAX_UNPATCHED, Message, Patch,
};
use holesync::report::{Changes, Stats};
use holesync::source::Kind as EntryKind;
use holesync::source::Metadata;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::roles::pipes::{DIFFER, Fault, Faulty, LEAVES, PATCH, Pace, Slow, Spot, Tape};
use crate::roles::{Ended, PATIENCE, options, start, start_receiver, start_sender, wait};
use crate::support::Sparse;

const PAGE: usize = 4096;

/// Bytes of which no page is zero.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.iter_mut().step_by(100).for_each(|byte| *byte |= 1);
    bytes
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// Writes a file with holes in the place of its zero pages, or without any.
fn write(path: &std::path::Path, bytes: &[u8], holes: bool) {
    let file = File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (page, at) in bytes.chunks(PAGE).zip((0..).step_by(PAGE)) {
        if !holes || !is_zero(page) {
            file.write_all_at(page, at).unwrap();
        }
    }
}

/// A file and an older version of it.
struct Pair {
    dir: TempDir,
    source: Vec<u8>,
    basis: Vec<u8>,
}

impl Pair {
    fn new(source: Vec<u8>, basis: Vec<u8>, holes: bool) -> Pair {
        let pair = Pair { dir: tempfile::tempdir().unwrap(), source, basis };
        write(&pair.from(), &pair.source, holes);
        write(&pair.to(), &pair.basis, holes);
        pair
    }

    fn from(&self) -> PathBuf {
        self.dir.path().join("from")
    }

    fn to(&self) -> PathBuf {
        self.dir.path().join("to")
    }

    /// Makes the old one the new one, over a link that counts as slow once a large piece
    /// went through it; what travelled, forth and back.
    fn run(&self, options: &Options, fault: Option<(Spot, Fault)>, what: &str) -> (Ended, Tape, Tape) {
        let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
        let (forth_out, forth_tape) = Faulty::new(forth.0, fault);
        let (back_out, back_tape) = Faulty::new(back.0, None);
        let output = Slow::new(forth.1, Pace::Stalled);
        let sent = start_sender(back_out, output, self.from(), options.clone());
        let received = start_receiver(forth_out, back.1, self.to(), options.clone());
        let ended = Ended { sent: wait(&sent, "sender", what), received: wait(&received, "receiver", what) };
        let take = |tape: Arc<Mutex<Tape>>| std::mem::take(&mut *tape.lock().unwrap());
        (ended, take(forth_tape), take(back_tape))
    }

    fn assert_equal(&self, what: &str) {
        assert!(fs::read(self.to()).unwrap() == self.source, "{what}: the content differs");
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 2, "{what}: something is left");
    }

    fn succeed(&self, options: &Options, what: &str) -> (Stats, Tape, Tape) {
        let (ended, forth, back) = self.run(options, None, what);
        assert!(
            ended.is_success() && ended.received.is_ok(),
            "{what}: {:?}, {:?}",
            ended.sent,
            ended.received
        );
        self.assert_equal(what);
        (ended.sent.unwrap(), forth, back)
    }

    /// The bytes of a block in the source, and in the basis as long as that.
    fn block(&self, size: usize, index: usize) -> (&[u8], Vec<u8>) {
        let source = &self.source[index * size..self.source.len().min((index + 1) * size)];
        let mut basis = self.basis.get(index * size..).unwrap_or_default().to_vec();
        basis.resize(source.len(), 0);
        (source, basis)
    }

    /// Whether a block has data in both files and hashes to something else. A last page
    /// that is cut short is another one.
    fn may_be_asked(&self, size: usize, index: usize) -> bool {
        let (source, basis) = self.block(size, index);
        let end = self.basis.len();
        let cut = end < self.source.len()
            && !end.is_multiple_of(PAGE)
            && end / size == index
            && !is_zero(&self.basis[end / PAGE * PAGE..]);
        !is_zero(source) && !is_zero(&basis) && (source != basis || cut)
    }

    /// Bytes of the leaves of a block that differ, zero pages left out.
    fn lacking(&self, size: usize, leaf: usize, index: usize) -> usize {
        let (source, basis) = self.block(size, index);
        let leaves = source.chunks(leaf).zip(basis.chunks(leaf)).filter(|(a, b)| a != b);
        leaves.map(|(leaf, _)| data_in(leaf)).sum()
    }
}

/// Bytes in pages that are not zero.
fn data_in(bytes: &[u8]) -> usize {
    bytes.chunks(PAGE).filter(|page| !is_zero(page)).map(<[u8]>::len).sum()
}

fn frames_in(tape: &Tape) -> Vec<Frame> {
    let mut reader = FrameReader::new(tape.bytes.as_slice(), "the tape");
    std::iter::from_fn(|| reader.read().ok()).collect()
}

/// Blocks that were asked about, and blocks that were sent whole.
fn told(tape: &Tape) -> (BTreeSet<usize>, BTreeSet<usize>) {
    let (mut asked, mut whole) = (BTreeSet::new(), BTreeSet::new());
    for frame in frames_in(tape) {
        let (set, first, count) = match frame {
            Frame::Differ(differ) => (&mut asked, differ.first as usize, differ.hashes.len()),
            Frame::Data(data) => (&mut whole, data.first as usize, data.masks.len()),
            _ => continue,
        };
        (first..first + count).for_each(|block| assert!(set.insert(block), "block {block} twice"));
    }
    (asked, whole)
}

fn grain(block: u64, leaf: u64, commit: Commit) -> Options {
    let of = |bytes| BlockSize::new(bytes).unwrap();
    Options { block_size: of(block), leaf_size: of(leaf), checksum: true, ..options(commit) }
}

/// Runs, and demands that of each block as much travelled as it had to.
fn assert_only_leaves_travel(pair: &Pair, options: &Options, what: &str) -> BTreeSet<usize> {
    let (stats, forth, _) = pair.succeed(options, what);
    let size = options.block_size.bytes() as usize;
    let leaf = options.leaf_size.bytes() as usize;
    let (asked, whole) = told(&forth);
    let may: BTreeSet<_> =
        (0..pair.source.len().div_ceil(size)).filter(|&at| pair.may_be_asked(size, at)).collect();
    assert!(asked.is_disjoint(&whole) && asked.is_subset(&may), "{what}: {asked:?}, {whole:?}, {may:?}");
    assert!(asked.is_empty() || leaf < size, "{what}: questions about leaves as large as blocks");
    let lacking = asked.iter().map(|&at| pair.lacking(size, leaf, at)).sum::<usize>();
    let new = whole.iter().map(|&at| data_in(pair.block(size, at).0)).sum::<usize>();
    assert_eq!(stats.sent_data_bytes as usize, lacking + new, "{what}: {asked:?}, {whole:?}");
    asked
}

#[test]
fn of_a_block_with_one_changed_page_one_leaf_travels() {
    for (block, leaf) in [(8, 4), (64, 4), (64, 16), (256, 4), (256, 128)] {
        for commit in [Commit::Auto, Commit::InPlace] {
            let (size, what) = (block << 10, format!("{block}K, {leaf}K, {commit:?}"));
            // The first blocks are new; of the others there are more than go unasked. The last page
            // is short.
            let (new, differing) = (size.max(64 << 10), 12.max((512 << 10) / size));
            let source = noise(1, new + differing * size - 100);
            let mut basis = source.clone();
            basis[..new].fill(0);
            (new..source.len()).step_by(size).for_each(|at| basis[at + size / 2 - 1] ^= 1);
            *basis.last_mut().unwrap() ^= 1;
            let pair = Pair::new(source, basis, true);
            let asked = assert_only_leaves_travel(&pair, &grain(size as u64, leaf << 10, commit), &what);
            assert_eq!(asked.len(), differing, "{what}");
        }
    }
}

#[test]
fn leaves_as_large_as_a_block_or_larger_ask_nothing() {
    for (block, leaf) in [(4, 4), (4, 256), (64, 64), (64, 128), (256, 256)] {
        let (size, what) = (block << 10, format!("{block}K, {leaf}K"));
        let source = noise(1, 3 << 20);
        let mut basis = source.clone();
        basis.iter_mut().step_by(size).for_each(|byte| *byte ^= 1);
        let pair = Pair::new(source, basis, false);
        let asked = assert_only_leaves_travel(&pair, &grain(size as u64, leaf << 10, Commit::Auto), &what);
        assert!(asked.is_empty(), "{what}: {asked:?}");
    }
}

#[test]
fn a_file_of_several_mib_is_asked_about_after_its_first_changes() {
    // Single blocks far apart, on a link of which nothing is known.
    let source = noise(1, 12 << 20);
    let mut basis = source.clone();
    (0..source.len()).step_by(128 << 10).for_each(|at| basis[at + 50_000] ^= 1);
    let pair = Pair::new(source, basis, false);
    let asked = assert_only_leaves_travel(&pair, &grain(64 << 10, 4 << 10, Commit::Atomic), "96 blocks");
    assert!(!asked.is_empty() && !asked.contains(&0), "{asked:?}");
}

/// What becomes of a page of the old version.
#[derive(Debug, Clone, Copy)]
enum Edit {
    Stays,
    Changes,
    BecomesZero,
    BecomesData,
    StaysZero,
}

fn edit() -> impl Strategy<Value = Edit> {
    use Edit::*;
    prop_oneof![
        8 => Just(Stays), 2 => Just(Changes), 1 => Just(BecomesZero), 1 => Just(BecomesData), 2 => Just(StaysZero)
    ]
}

/// Two versions after a new stretch of `new` bytes that makes the link known.
fn edited(new: usize, edits: &[Edit], cut: usize, resize: i32) -> (Vec<u8>, Vec<u8>) {
    let mut source = noise(3, new + edits.len() * PAGE);
    let mut basis = source.clone();
    basis[..new].fill(0);
    for (edit, at) in edits.iter().zip((new..).step_by(PAGE)) {
        let page = at..at + PAGE;
        match edit {
            Edit::Stays => {}
            Edit::Changes => basis[at + 77] ^= 255,
            Edit::BecomesZero => source[page].fill(0),
            Edit::BecomesData => basis[page].fill(0),
            Edit::StaysZero => {
                source[page.clone()].fill(0);
                basis[page].fill(0);
            }
        }
    }
    source.truncate(source.len() - cut);
    let len = (basis.len() as i64 - cut as i64 + i64::from(resize)).max(new as i64) as usize;
    let more = noise(4, len.saturating_sub(basis.len()));
    basis.extend(more);
    basis.truncate(len);
    (source, basis)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_pages_of_any_blocks_travel_as_leaves(
        block in 12..=18u32, leaf in 12..=18u32, edits in prop::collection::vec(edit(), 1..200),
        cut in prop_oneof![Just(0), 0..2 * PAGE], resize in prop_oneof![Just(0), -100_000..100_000i32, (-20..20i32).prop_map(|n| n * PAGE as i32)],
        commit in prop_oneof![Just(Commit::Auto), Just(Commit::Atomic), Just(Commit::InPlace)],
        holes in any::<bool>(), packed in any::<bool>(), preallocate in any::<bool>(),
    ) {
        let cut = cut.min(edits.len() * PAGE - 1);
        let (source, basis) = edited((1 << block).max(64 << 10), &edits, cut, resize);
        let pair = Pair::new(source, basis, holes);
        let compress = if packed { Compress::Zstd } else { Compress::None };
        let options = Options { compress, preallocate, ..grain(1 << block, 1 << leaf, commit) };
        assert_only_leaves_travel(&pair, &options, "first");
        let (stats, ..) = pair.succeed(&options, "again");
        prop_assert_eq!(stats.sent_data_bytes, 0);
    }

    #[test]
    fn a_run_that_breaks_off_is_gone_on_from_with_questions(
        at in any::<prop::sample::Index>(), kind in prop_oneof![Just(None), Just(Some(DIFFER)), Just(Some(PATCH))],
        commit in prop_oneof![Just(Commit::Auto), Just(Commit::Atomic), Just(Commit::InPlace)],
    ) {
        // Every block differs; the changes that were sent before the end are in the way of the
        // second run, which sends another version.
        let source = noise(5, (2 << 20) - 999);
        let mut basis = source.clone();
        basis[..64 << 10].fill(0);
        basis.iter_mut().skip(5000).step_by(16 << 10).for_each(|byte| *byte ^= 1);
        let mut pair = Pair::new(source, basis, false);
        let options = grain(16 << 10, 4 << 10, commit);
        let spot = kind.map_or_else(|| Spot::Inside(3 + at.index(8)), Spot::First);
        let (ended, forth, _) = pair.run(&options, Some((spot, Fault::Cut)), "cut");
        prop_assert!(!forth.struck || !ended.is_success());
        // Sent whole, and with it the link is known again.
        pair.source[..64 << 10].copy_from_slice(&noise(6, 64 << 10));
        pair.source.iter_mut().skip(70_000).step_by(40 << 10).for_each(|byte| *byte ^= 1);
        write(&pair.from(), &pair.source, false);
        let (_, forth, back) = pair.succeed(&options, "gone on");
        prop_assert!(count(&forth, DIFFER) > 0 && count(&back, LEAVES) > 0);
    }
}

/// How many frames of a type went through.
fn count(tape: &Tape, kind: u8) -> usize {
    let is = |frame: &Frame| match frame {
        Frame::Differ(_) => kind == DIFFER,
        Frame::Leaves(_) => kind == LEAVES,
        Frame::Patch(_) => kind == PATCH,
        _ => false,
    };
    frames_in(tape).iter().filter(|frame| is(frame)).count()
}

/// Many small questions over one connection, where each file's map comes while answers for
/// the one before are on their way.
#[test]
fn several_files_one_after_the_other_are_asked_about() {
    for commit in [Commit::Auto, Commit::Atomic] {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from/"), dir.path().join("to"));
        fs::create_dir_all(&from).unwrap();
        fs::create_dir_all(&to).unwrap();
        for nth in 0..8 {
            let source = noise(nth, 600_000 + 1000 * nth as usize);
            let mut basis = source.clone();
            // The first file makes the link known.
            basis[..if nth == 0 { 64 << 10 } else { 0 }].fill(0);
            basis.iter_mut().skip(9000).step_by(8 << 10).for_each(|byte| *byte ^= 1);
            write(&from.join(nth.to_string()), &source, false);
            write(&to.join(nth.to_string()), &basis, false);
        }
        let (forth, back) = (crate::roles::pipes::tiny_pipe(), crate::roles::pipes::tiny_pipe());
        let (forth_out, tape) = Faulty::new(forth.0, None);
        let options = Options { checksum: true, ..options(commit) };
        let sent = start_sender(back.0, Slow::new(forth.1, Pace::Stalled), from.clone(), options.clone());
        let received = start_receiver(forth_out, back.1, to.clone(), options);
        assert_eq!(wait(&sent, "sender", "several").unwrap().files_failed, 0);
        wait(&received, "receiver", "several").unwrap();
        for nth in 0..8 {
            let read = |dir: &std::path::Path| fs::read(dir.join(nth.to_string())).unwrap();
            assert!(read(&from) == read(&to), "{nth}");
        }
        assert!(count(&tape.lock().unwrap(), DIFFER) > 0);
    }
}

/// One end, which the test plays.
struct Peer<T> {
    frames: Receiver<Frame>,
    output: FrameWriter<PipeWriter>,
    /// How the other end ended.
    ended: Receiver<T>,
}

impl<T> Peer<T> {
    fn new(input: PipeReader, output: PipeWriter, ended: Receiver<T>) -> Peer<T> {
        let (frames_in, frames) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut input = FrameReader::new(input, "the other end");
            while let Ok(frame) = input.read() {
                // It comes whenever an end has long been silent, and ends no wait.
                let counts = !matches!(frame, Frame::Message(Message::Busy(_)));
                if counts && frames_in.send(frame).is_err() {
                    break;
                }
            }
        });
        Peer { frames, output: FrameWriter::new(output, "the other end"), ended }
    }

    fn say(&mut self, message: &Message) {
        self.tell(|output| output.message(message));
    }

    /// The other end may have had enough already.
    fn tell(&mut self, write: impl FnOnce(&mut FrameWriter<PipeWriter>) -> Result<()>) {
        let _ = write(&mut self.output).and_then(|()| self.output.flush());
    }

    fn next(&self) -> Frame {
        self.frames.recv_timeout(PATIENCE).expect("the other end says something")
    }

    /// What comes up to the first of some sort.
    fn until<U>(&self, mut wanted: impl FnMut(&Frame) -> Option<U>) -> U {
        loop {
            if let Some(found) = wanted(&self.next()) {
                return found;
            }
        }
    }

    fn message(&self, wanted: impl Fn(&Message) -> bool) {
        self.until(|frame| matches!(frame, Frame::Message(message) if wanted(message)).then_some(()));
    }
}

fn is_protocol_error(ended: &Result<Stats>) -> bool {
    ended.as_ref().is_err_and(|error| {
        matches!(error, Error::Protocol { .. }) && error.to_failure().code == code::STREAM
    })
}

const BLOCK: usize = 8 << 10;

/// A receiver under test that has a file of so many blocks of noise, the third a hole
/// and one page of the fourth.
struct Victim {
    peer: Peer<Result<Stats>>,
    pair: Pair,
    grid: Grid,
}

impl Victim {
    fn new(blocks: usize) -> Victim {
        let mut basis = noise(1, blocks * BLOCK - 100);
        basis[2 * BLOCK..3 * BLOCK + PAGE].fill(0);
        let pair = Pair::new(basis.clone(), basis, true);
        let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
        let options = grain(BLOCK as u64, PAGE as u64, Commit::Auto);
        let block = options.block_size;
        let ended = start_receiver(forth.0, back.1, pair.to(), options);
        let grid = Grid { length: pair.basis.len() as u64, block };
        let mut victim = Victim { peer: Peer::new(back.0, forth.1, ended), pair, grid };
        victim.peer.say(&Message::Layout { single: true });
        victim.announce(0, false);
        victim.peer.message(|message| matches!(message, Message::MapEnd { .. }));
        victim.peer.say(&Message::Content { id: 0 });
        victim
    }

    fn announce(&mut self, id: u64, whole: bool) {
        let kind = EntryKind::File { length: self.grid.length, allocated: 0, whole, retry: whole };
        self.peer.say(&Message::Entry(Entry { id, path: "to".into(), kind, metadata: Metadata::default() }));
    }

    fn differ(&mut self, first: u64, hashes: Vec<Hash>) {
        self.peer.tell(|output| output.differ(&Differ { first, hashes }));
    }

    fn patch(&mut self, first: u64, masks: &[(u64, u64)], bytes: Vec<u8>) {
        let (masks, sent) = masks.iter().copied().unzip();
        self.peer.tell(|output| output.patch(&Patch { first, masks, sent, bytes }, None));
    }

    fn leaves(&self) -> LeafAnswer {
        self.peer.until(|frame| if let Frame::Leaves(answer) = frame { Some(answer.clone()) } else { None })
    }

    fn assert_refused(self, what: &str) {
        let ended = wait(&self.peer.ended, "receiver", what);
        assert!(is_protocol_error(&ended), "{what}: {ended:?}");
        assert!(fs::read(self.pair.to()).unwrap() == self.pair.basis, "{what}: the file was touched");
    }

    /// What the whole file hashes to when these are its bytes.
    fn root(&self, bytes: &[u8]) -> Hash {
        let image = Sparse { bytes: bytes.to_vec(), extents: Vec::new() }.dense();
        root_of(&image, &self.grid, |_| true).unwrap().unwrap()
    }
}

/// The blocks of some bytes, in order.
fn blocks_of(bytes: &[u8], grid: &Grid) -> Vec<Block> {
    let image = Sparse { bytes: bytes.to_vec(), extents: Vec::new() }.dense();
    let mut blocks = Vec::new();
    map_image(&image, grid, |batch| {
        blocks.extend(batch.items.iter().map(|item| match item {
            Item::Block(block) => *block,
            Item::Hole(_) => panic!("a hole in what is dense"),
        }));
        Ok::<_, io::Error>(true)
    })
    .unwrap();
    blocks
}

#[test]
fn a_sender_that_asks_or_patches_what_it_may_not_is_refused() {
    type Say = fn(&mut Victim);
    let cases: [(&str, Say); 17] = [
        ("a patch never asked for", |v| v.patch(0, &[(3, 1)], noise(9, PAGE))),
        ("a question out of place", |v| v.differ(1, vec![[7; 32]])),
        ("a question beyond the end", |v| v.differ(0, vec![[7; 32]; 9])),
        ("a question far beyond the end", |v| v.differ(u64::MAX, vec![[7; 32]])),
        ("a question about a hole", |v| v.differ(0, vec![[7; 32]; 3])),
        ("a patch out of order", |v| {
            v.differ(0, vec![[7; 32]; 2]);
            v.patch(1, &[(3, 1)], noise(9, PAGE));
        }),
        ("a patch twice", |v| {
            v.differ(0, vec![[7; 32]; 2]);
            v.patch(0, &[(3, 1)], noise(9, PAGE));
            v.patch(0, &[(3, 1)], noise(9, PAGE));
        }),
        ("a patch for more than was asked about", |v| {
            v.differ(0, vec![[7; 32]]);
            v.patch(0, &[(3, 0), (3, 0)], Vec::new());
        }),
        ("sent pages outside the mask", |v| {
            v.differ(0, vec![[7; 32]]);
            v.patch(0, &[(1, 2)], noise(9, PAGE));
        }),
        ("pages that the block does not have", |v| {
            v.differ(0, vec![[7; 32]]);
            v.patch(0, &[(7, 4)], noise(9, PAGE));
        }),
        ("a page kept that the basis has not", |v| {
            v.peer.say(&Message::Keep { blocks: 3 });
            v.differ(3, vec![[7; 32]]);
            v.patch(3, &[(3, 2)], noise(9, PAGE));
        }),
        ("a patch too short", |v| {
            v.differ(0, vec![[7; 32]]);
            v.patch(0, &[(3, 3)], noise(9, 2 * PAGE - 1));
        }),
        ("a patch too long", |v| {
            v.differ(0, vec![[7; 32]]);
            v.patch(0, &[(3, 3)], noise(9, 2 * PAGE + 1));
        }),
        ("a file with a block that is not patched", |v| {
            v.differ(0, vec![[7; 32]; 2]);
            v.patch(0, &[(3, 1)], noise(9, PAGE));
            v.peer.say(&Message::Keep { blocks: 6 });
            v.peer.say(&Message::Finish { root: [0; 32], settled: true });
        }),
        ("leaves from a sender", |v| {
            v.peer.tell(|output| output.leaves(&LeafAnswer { id: 0, blocks: Vec::new() }))
        }),
        ("a question without a file", |v| {
            v.peer.say(&Message::Abandon);
            v.differ(0, vec![[7; 32]]);
        }),
        ("a patch without a file", |v| {
            v.peer.say(&Message::Abandon);
            v.patch(0, &[(3, 1)], noise(9, PAGE));
        }),
    ];
    for (what, say) in cases {
        let mut victim = Victim::new(8);
        say(&mut victim);
        victim.assert_refused(what);
    }
}

#[test]
fn more_questions_than_may_be_open_are_refused() {
    let mut victim = Victim::new(MAX_UNPATCHED + 300);
    victim.peer.say(&Message::Keep { blocks: 4 });
    for nth in 0..MAX_UNPATCHED / MAX_DIFFER {
        victim.differ((4 + nth * MAX_DIFFER) as u64, vec![[7; 32]; MAX_DIFFER]);
        assert_eq!(victim.leaves().blocks.len(), MAX_DIFFER);
    }
    victim.differ((4 + MAX_UNPATCHED) as u64, vec![[7; 32]]);
    victim.assert_refused("one too many");
}

#[test]
fn a_question_without_a_basis_is_refused() {
    let mut victim = Victim::new(8);
    victim.peer.say(&Message::Abandon);
    victim.announce(1, true);
    victim.peer.message(|message| matches!(message, Message::NoBasis { .. }));
    victim.peer.say(&Message::Content { id: 1 });
    victim.differ(0, vec![[7; 32]]);
    victim.assert_refused("no basis");
}

/// A patch that does not make the block that was promised is never a file, even if the root
/// hash is that of what was promised: it is asked for again, whole, and fails then.
#[test]
fn a_block_that_is_not_what_was_promised_is_asked_for_again() {
    for lies_again in [false, true] {
        let mut victim = Victim::new(8);
        let basis = victim.pair.basis.clone();
        let mut wanted = basis.clone();
        wanted[..PAGE].copy_from_slice(&noise(9, PAGE));
        let root = victim.root(&wanted);
        let promised = blocks_of(&wanted, &victim.grid)[0].hash;
        victim.differ(0, vec![promised]);
        assert!(matches!(&victim.leaves().blocks[0], BlockAnswer::Leaves(leaves) if leaves.data == 3));
        victim.patch(0, &[(3, 1)], noise(8, PAGE));
        victim.peer.say(&Message::Keep { blocks: 7 });
        victim.peer.say(&Message::Finish { root, settled: true });
        victim.peer.message(|message| *message == Message::Again { id: 0 });
        assert!(fs::read(victim.pair.to()).unwrap() == basis);
        victim.announce(1, true);
        victim.peer.message(|message| matches!(message, Message::NoBasis { .. }));
        victim.peer.say(&Message::Content { id: 1 });
        let mut sent = wanted.clone();
        sent[7] ^= u8::from(lies_again);
        for (index, block) in blocks_of(&sent, &victim.grid).iter().enumerate() {
            let bytes = &sent[index * BLOCK..sent.len().min((index + 1) * BLOCK)];
            match block.data {
                0 => victim.peer.say(&Message::Zero { blocks: 1 }),
                data => {
                    let skip = if data & 1 == 0 { PAGE } else { 0 };
                    victim.peer.tell(|output| output.data(index as u64, &[data], &[&bytes[skip..]]));
                }
            }
        }
        victim.peer.say(&Message::Finish { root, settled: true });
        let done = victim.peer.until(|frame| match frame {
            Frame::Message(Message::Done { id: 1, .. }) => Some(true),
            Frame::Message(Message::Failed { id: 1, .. }) => Some(false),
            _ => None,
        });
        assert_eq!(done, !lies_again);
        victim.peer.say(&Message::End(Box::default()));
        let stats = wait(&victim.peer.ended, "receiver", "promised").unwrap();
        assert_eq!(stats.files_failed, u64::from(lies_again));
        assert!(fs::read(victim.pair.to()).unwrap() == if lies_again { basis } else { wanted });
    }
}

/// A sender under test with files of noise, each so many blocks of 64 KiB; every one has a
/// changed page in the basis that this end claims to have.
struct Asker {
    peer: Peer<Result<Stats>>,
    dir: TempDir,
    files: Vec<(Vec<u8>, Vec<u8>)>,
    grid: Grid,
}

const LARGE: usize = 64 << 10;
/// Blocks of a file that is large enough to be asked about after a slow answer, too: that
/// of a busy machine about the first 40 blocks of another.
const BUSY: usize = 250;

impl Asker {
    fn new(files: usize, blocks: usize) -> Asker {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<_> = (0..files)
            .map(|nth| {
                let source = noise(nth as u64, blocks * LARGE);
                let mut basis = source.clone();
                basis.iter_mut().step_by(LARGE).for_each(|byte| *byte ^= 1);
                write(&dir.path().join(nth.to_string()), &source, false);
                (source, basis)
            })
            .collect();
        let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
        let options = grain(LARGE as u64, PAGE as u64, Commit::Auto);
        let grid = Grid { length: (blocks * LARGE) as u64, block: options.block_size };
        let ended = start_sender(back.0, forth.1, dir.path().join(""), options);
        let asker = Asker { peer: Peer::new(forth.0, back.1, ended), dir, files, grid };
        // All are announced, with ids in the order of their names.
        (0..asker.files.len()).for_each(|_| {
            asker.peer.message(|message| {
                matches!(message, Message::Entry(Entry { kind: EntryKind::File { .. }, .. }))
            });
        });
        asker
    }

    /// The id of a file: the directory has the first.
    fn id(&self, nth: usize) -> u64 {
        nth as u64 + 1
    }

    /// Answers with a map of what differs everywhere; `more` is still to come.
    fn map(&mut self, nth: usize, blocks: usize, more: bool) {
        let id = self.id(nth);
        self.peer.say(&Message::Map { id, device: false });
        self.keys(nth, blocks);
        if !more {
            self.peer.say(&Message::MapEnd { id });
        }
    }

    fn keys(&mut self, nth: usize, blocks: usize) {
        let id = self.id(nth);
        self.peer.tell(|output| output.map(id, &[Run::Keys(vec![[7; 16]; blocks])]));
    }

    /// What this end has of the blocks of a question.
    fn answer_to(&self, nth: usize, differ: &Differ) -> LeafAnswer {
        let (_, basis) = &self.files[nth];
        let leaves = |index: u64| {
            let bytes = &basis[index as usize * LARGE..(index as usize + 1) * LARGE];
            Leaves::of(BlockSize::SMALLEST, &self.grid, index, self.grid.all_pages(index), bytes)
        };
        let blocks =
            (differ.first..differ.first + differ.hashes.len() as u64).map(leaves).map(Into::into).collect();
        LeafAnswer { id: self.id(nth), blocks }
    }

    fn question(&self) -> Differ {
        self.peer.until(|frame| if let Frame::Differ(differ) = frame { Some(differ.clone()) } else { None })
    }

    fn say_leaves(&mut self, answer: &LeafAnswer) {
        self.peer.tell(|output| output.leaves(answer));
    }

    /// Answers all questions about a file up to its end; patches must be what differs.
    fn serve(&mut self, nth: usize, mut open: Vec<Differ>) -> usize {
        let mut patched = 0;
        loop {
            for differ in std::mem::take(&mut open) {
                let answer = self.answer_to(nth, &differ);
                self.say_leaves(&answer);
            }
            match self.peer.next() {
                Frame::Differ(differ) => open.push(differ),
                Frame::Patch(patch) => {
                    assert!(patch.sent.iter().all(|&sent| sent == 1), "{:?}", patch.sent);
                    assert_eq!(patch.bytes.len(), patch.sent.len() * PAGE);
                    patched += patch.masks.len();
                }
                Frame::Message(Message::Finish { .. }) => break,
                _ => {}
            }
        }
        let id = self.id(nth);
        self.peer.say(&Message::Done { id, changed: Some(4096), changes: Changes::default() });
        patched
    }

    fn end(mut self) -> Stats {
        self.peer.message(|message| matches!(message, Message::End(_)));
        self.peer.say(&Message::End(Box::default()));
        wait(&self.peer.ended, "sender", "the end").unwrap()
    }

    fn assert_refused(self, what: &str) {
        let ended = wait(&self.peer.ended, "sender", what);
        assert!(is_protocol_error(&ended), "{what}: {ended:?}");
    }
}

#[test]
fn maps_of_files_that_come_later_wait_while_answers_are_awaited() {
    let mut asker = Asker::new(3, BUSY);
    (0..3).for_each(|nth| asker.map(nth, if nth == 0 { 40 } else { BUSY }, false));
    // The last answer comes behind all maps, and so does every other.
    let first = asker.question();
    assert!(asker.serve(0, vec![first]) > 0);
    // Whether others are asked about goes by how long that took.
    for nth in 1..3 {
        asker.serve(nth, Vec::new());
    }
    let stats = asker.end();
    assert_eq!((stats.files_sent, stats.files_failed), (3, 0));
}

#[test]
fn a_receiver_that_answers_with_more_leaves_than_it_was_asked_for_is_refused() {
    let mut asker = Asker::new(1, 40);
    asker.map(0, 40, false);
    asker.question();
    let id = asker.id(0);
    // The file has not so many blocks.
    asker.say_leaves(&LeafAnswer { id, blocks: vec![Leaves::default().into(); 41] });
    asker.assert_refused("too many leaves");
}

/// One of a version that copies nothing from elsewhere.
#[test]
fn a_block_that_an_old_receiver_says_to_have_is_refused() {
    let mut asker = Asker::new(1, 40);
    asker.map(0, 40, false);
    asker.question();
    asker.say_leaves(&LeafAnswer { id: asker.id(0), blocks: vec![BlockAnswer::Had] });
    asker.assert_refused("a block that it has");
}

#[test]
fn leaves_that_nobody_asked_for_are_refused_or_dropped() {
    // Of a file that is described, before any question.
    let mut asker = Asker::new(1, 40);
    let id = asker.id(0);
    asker.map(0, 1, true);
    asker.peer.message(|message| matches!(message, Message::Content { .. }));
    asker.say_leaves(&LeafAnswer { id, blocks: vec![Leaves::default().into(); 2] });
    asker.assert_refused("leaves before a question");
    // Of another file, and of none.
    let mut asker = Asker::new(2, BUSY);
    let unknown = LeafAnswer { id: 77, blocks: vec![Leaves::default().into()] };
    asker.say_leaves(&unknown);
    asker.map(0, 40, false);
    let differ = asker.question();
    asker.say_leaves(&unknown);
    let other = LeafAnswer { id: asker.id(1), ..asker.answer_to(0, &differ) };
    asker.say_leaves(&other);
    assert!(asker.serve(0, vec![differ]) > 0);
    asker.map(1, BUSY, false);
    asker.serve(1, Vec::new());
    let stats = asker.end();
    assert_eq!((stats.files_sent, stats.files_failed), (2, 0));
}

#[test]
fn an_answer_in_pieces_is_an_answer() {
    let mut asker = Asker::new(1, 40);
    asker.map(0, 40, false);
    let differ = asker.question();
    let answer = asker.answer_to(0, &differ);
    for leaves in answer.blocks {
        asker.say_leaves(&LeafAnswer { id: answer.id, blocks: Vec::new() });
        asker.say_leaves(&LeafAnswer { id: answer.id, blocks: vec![leaves] });
    }
    assert!(asker.serve(0, Vec::new()) > 0);
    assert_eq!(asker.end().files_sent, 1);
}

#[test]
fn a_receiver_whose_maps_run_ahead_of_its_answers_is_refused() {
    let mut asker = Asker::new(2, 40);
    asker.map(0, 40, false);
    asker.question();
    asker.map(1, MAX_MAP_KEYS, true);
    // More than the sender puts off, and than lies in queues and pipes.
    (0..160).for_each(|_| asker.keys(1, MAX_MAP_KEYS));
    asker.assert_refused("a map that runs ahead");
}

#[test]
fn a_file_that_fails_while_answers_are_awaited_is_abandoned() {
    for map_is_open in [false, true] {
        let mut asker = Asker::new(2, 40);
        asker.map(0, if map_is_open { 39 } else { 40 }, map_is_open);
        let differ = asker.question();
        let failure = Failure::new(code::FILE_IO, "no room");
        let id = asker.id(0);
        asker.peer.say(&Message::Failed { id, failure });
        asker.peer.message(|message| *message == Message::Abandon);
        if map_is_open {
            asker.peer.say(&Message::MapEnd { id });
        }
        // It was under way.
        let late = asker.answer_to(0, &differ);
        asker.say_leaves(&late);
        asker.map(1, 40, false);
        asker.serve(1, Vec::new());
        let stats = asker.end();
        assert_eq!((stats.files_sent, stats.files_failed), (1, 1), "{map_is_open}");
    }
}

/// What it says of the next file comes before its answer, and waits to be looked at.
#[test]
fn a_file_that_fails_while_its_map_waits_fails_alone() {
    let mut asker = Asker::new(2, 40);
    asker.map(0, 40, false);
    let differ = asker.question();
    asker.map(1, 20, true);
    let failure = Failure::new(code::FILE_IO, "cannot be read");
    let id = asker.id(1);
    asker.peer.say(&Message::Failed { id, failure });
    asker.peer.say(&Message::MapEnd { id });
    assert!(asker.serve(0, vec![differ]) > 0);
    asker.peer.message(|message| *message == Message::Abandon);
    let stats = asker.end();
    assert_eq!((stats.files_sent, stats.files_failed), (1, 1));
}

#[test]
fn a_source_that_changes_while_answers_are_awaited_is_described_again() {
    let mut asker = Asker::new(1, 400);
    asker.map(0, 60, true);
    let differ = asker.question();
    // The hasher waits, far from the end, for the rest of the map.
    let path = asker.dir.path().join("0");
    File::options().write(true).open(path).unwrap().write_all_at(b"x", 3).unwrap();
    // The rest is as it was: nothing more is asked about.
    let keys = blocks_of(&asker.files[0].0, &asker.grid)[60..].iter().map(|block| key(&block.hash)).collect();
    let id = asker.id(0);
    asker.peer.tell(|output| output.map(id, &[Run::Keys(keys)]));
    asker.peer.say(&Message::MapEnd { id });
    asker.peer.message(|message| *message == Message::Abandon);
    let late = asker.answer_to(0, &differ);
    asker.say_leaves(&late);
    let (id, retry) = asker.peer.until(|frame| match frame {
        Frame::Message(Message::Entry(Entry { id, kind: EntryKind::File { retry, .. }, .. })) => {
            Some((*id, *retry))
        }
        _ => None,
    });
    assert!(retry);
    asker.peer.say(&Message::Unchanged { id, changes: Changes::default() });
    let stats = asker.end();
    assert_eq!((stats.files_sent, stats.files_failed), (0, 0));
}

/// Both roles, with somebody on the way back who says something else about leaves. A lie
/// costs bytes; it is never a wrong file.
#[test]
fn leaves_that_lie_are_never_a_wrong_file() {
    type Lie = fn(&Pair, &mut usize, &mut Leaves);
    let lies: [(&str, Lie); 4] = [
        ("it has what it has not", |pair, at, leaves| {
            let grid =
                Grid { length: pair.source.len() as u64, block: BlockSize::new(LARGE as u64).unwrap() };
            let bytes = pair.block(LARGE, *at).0;
            *leaves = Leaves::of(BlockSize::SMALLEST, &grid, *at as u64, grid.all_pages(*at as u64), bytes);
        }),
        ("it has nothing alike", |_, _, leaves| leaves.hashes.iter_mut().for_each(|hash| hash[0] ^= 1)),
        ("it has nothing", |_, _, leaves| *leaves = Leaves::default()),
        ("fewer hashes than leaves", |_, _, leaves| leaves.hashes.truncate(3)),
    ];
    for (what, lie) in lies {
        let source = noise(1, 40 * LARGE - 100);
        let mut basis = source.clone();
        basis.iter_mut().step_by(LARGE).for_each(|byte| *byte ^= 1);
        let pair = Arc::new(Pair::new(source, basis, false));
        let options = grain(LARGE as u64, PAGE as u64, Commit::Auto);
        let (forth, back, way) = (io::pipe().unwrap(), io::pipe().unwrap(), io::pipe().unwrap());
        let sent = start_sender(back.0, forth.1, pair.from(), options.clone());
        let received = start_receiver(forth.0, way.1, pair.to(), options);
        let liar = start({
            let pair = Arc::clone(&pair);
            move || pass_on(way.0, back.1, |at, leaves| lie(&pair, at, leaves))
        });
        let ended = wait(&sent, "sender", what);
        let _ = wait(&received, "receiver", what);
        assert!(wait(&liar, "liar", what) > 0, "{what}: nothing was asked");
        assert!(ended.as_ref().is_ok_and(|stats| stats.files_failed == 0), "{what}: {ended:?}");
        pair.assert_equal(what);
    }
}

/// Of blocks that the receiver claims to have as they are nothing is lacking: patches are
/// many and have no bytes. The sender has to send them to ask about more.
#[test]
fn more_blocks_than_may_be_open_are_asked_about_when_nothing_is_lacking() {
    let size = 8 << 10;
    // All blocks are alike, so that it need not be known which of them are asked about.
    let source = noise(1, size).repeat(MAX_UNPATCHED + 900);
    let mut basis = source.clone();
    basis.iter_mut().step_by(size).for_each(|byte| *byte ^= 1);
    let pair = Pair::new(source, basis, false);
    let options = grain(size as u64, PAGE as u64, Commit::Auto);
    let (forth, back, way) = (io::pipe().unwrap(), io::pipe().unwrap(), io::pipe().unwrap());
    let sent = start_sender(back.0, forth.1, pair.from(), options.clone());
    let received = start_receiver(forth.0, way.1, pair.to(), options.clone());
    let liar = start({
        let grid = Grid { length: pair.source.len() as u64, block: options.block_size };
        let all = Leaves::of(BlockSize::SMALLEST, &grid, 0, grid.all_pages(0), &pair.source[..size]);
        move || pass_on(way.0, back.1, |_, leaves| *leaves = all.clone())
    });
    let ended = wait(&sent, "sender", "nothing lacking");
    let _ = wait(&received, "receiver", "nothing lacking");
    assert!(wait(&liar, "liar", "nothing lacking") > MAX_UNPATCHED);
    assert!(ended.as_ref().is_ok_and(|stats| stats.files_failed == 0), "{ended:?}");
    pair.assert_equal("nothing lacking");
}

/// Passes frames on, leaves changed by `lie`, which is told the place of each block; how many.
fn pass_on(from: PipeReader, to: PipeWriter, lie: impl Fn(&mut usize, &mut Leaves)) -> usize {
    let mut input = FrameReader::new(from, "the receiver");
    let mut output = FrameWriter::new(to, "the sender");
    let mut at = 0;
    while let Ok(frame) = input.read() {
        let _ = match frame {
            Frame::Message(message) => output.message(&message),
            Frame::Map(id, runs) => output.map(id, &runs),
            Frame::Leaves(mut answer) => {
                for answer in &mut answer.blocks {
                    let BlockAnswer::Leaves(leaves) = answer else { panic!("had what was not told") };
                    lie(&mut at, leaves);
                    at += 1;
                }
                output.leaves(&answer)
            }
            _ => panic!("what only senders say"),
        }
        .and_then(|()| output.flush());
    }
    at
}
