//! Both roles where credit runs out, and where a file fails or ends at an awkward moment:
//! neither waits for ever, and neither takes the other for one that breaks rules.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use holesync::confinement::NamedPath;
use holesync::error::{Error, Failure, code};
use holesync::hashmap::leaves::Leaves;
use holesync::hashmap::plan::Run;
use holesync::hashmap::{Grid, Item, Key, hash_image, key};
use holesync::options::{BlockSize, Commit, Compress, Options};
use holesync::protocol::{Entry, Frame, FrameReader, FrameWriter, LeafAnswer, MAX_AHEAD, Message};
use holesync::report::Changes;
use holesync::scan::{FileImage, open_image};
use holesync::source::{Kind, Metadata};

use crate::roles::pipes::tiny_pipe;
use crate::roles::{options, start_receiver, start_sender, wait};
use crate::support::fill;

/// Bytes without a page of zeros.
fn dense(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, 0, 1);
    bytes.iter_mut().for_each(|byte| *byte |= 1);
    bytes
}

/// The keys of a file whose blocks all have data.
fn keys_of(path: &Path, grid: &Grid) -> Vec<Key> {
    let image = FileImage::new(open_image(&NamedPath::here(path)).unwrap().0, true);
    let mut keys = Vec::new();
    let hashed = hash_image(&image, grid, |batch| {
        keys.extend(batch.items.iter().filter_map(|item| match item {
            Item::Block(block) => Some(key(&block.hash)),
            Item::Hole(_) => None,
        }));
        Ok::<_, io::Error>(true)
    });
    assert!(hashed.is_ok());
    keys
}

/// The sender has all its answers and writes its last patch when the receiver's disk is
/// full. Whatever it says at the end of that file, it has to know of the failure.
#[test]
fn a_failure_that_comes_while_a_file_is_finished_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    let bytes = dense(64 << 16);
    fs::write(&from, &bytes).unwrap();
    let options = Options { fsync: false, compress: Compress::None, ..Options::default() };
    let mut keys = keys_of(&from, &Grid { length: bytes.len() as u64, block: options.block_size });
    assert_eq!(keys.len(), 64);
    // The first ones are sent; the others are asked about, and in the last patch.
    (0..4).chain(20..23).for_each(|at| keys[at] = [9; 16]);
    let (forth, back) = (tiny_pipe(), io::pipe().unwrap());
    let sent = start_sender(back.0, forth.1, from, options);
    let mut input = FrameReader::new(forth.0, "the sender");
    let mut output = FrameWriter::new(back.1, "the receiver");
    let failure = Failure::new(code::PARTIAL, "disk full");
    let mut asked = 0;
    loop {
        match input.read().unwrap() {
            Frame::Message(Message::Entry(Entry { id, .. })) => {
                output.message(&Message::Map { id, device: false }).unwrap();
                output.map(id, &[Run::Keys(std::mem::take(&mut keys))]).unwrap();
                output.message(&Message::MapEnd { id }).and_then(|()| output.flush()).unwrap();
            }
            Frame::Differ(differ) => {
                asked += differ.hashes.len();
                assert!(matches!(input.read().unwrap(), Frame::Message(Message::Keep { .. })));
                let leaves = Leaves { data: 0xffff, hashes: vec![[0; 8]; 16] };
                let blocks = vec![leaves.into(); differ.hashes.len()];
                output.leaves(&LeafAnswer { id: 0, blocks }).and_then(|()| output.flush()).unwrap();
                // It fills the pipe, which nobody reads, with the patch.
                std::thread::sleep(Duration::from_millis(500));
                let failed = Message::Failed { id: 0, failure: failure.clone() };
                output.message(&failed).and_then(|()| output.flush()).unwrap();
                std::thread::sleep(Duration::from_millis(300));
            }
            Frame::Message(Message::Finish { .. } | Message::Abandon) => break,
            _ => {}
        }
    }
    assert_eq!(asked, 3);
    assert!(matches!(input.read().unwrap(), Frame::Message(Message::End(_))));
    output.message(&Message::End(Box::default())).and_then(|()| output.flush()).unwrap();
    let stats = wait(&sent, "sender", "a late failure").unwrap();
    assert_eq!((stats.files_failed, stats.worst_code), (1, code::PARTIAL));
}

/// Thousands of files are announced while a file is asked about as fast as that goes: the
/// entries and questions arrive in the order in which they took credit.
#[test]
fn no_question_overtakes_an_entry() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from/"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    let mut bytes = dense(96 << 20);
    fs::write(from.join("a"), &bytes).unwrap();
    bytes.iter_mut().step_by(16384).for_each(|byte| *byte ^= 2);
    fs::write(to.join("a"), &bytes).unwrap();
    (0..6000).for_each(|nth| fs::write(from.join(format!("f{nth}")), b"x").unwrap());
    let leaf_size = BlockSize::new(4096).unwrap();
    let options = Options { leaf_size, checksum: true, ..options(Commit::InPlace) };
    let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
    let sent = start_sender(back.0, forth.1, from, options.clone());
    let received = start_receiver(forth.0, back.1, to, options);
    let stats = wait(&sent, "sender", "many").unwrap();
    assert_eq!((stats.files_failed, stats.files_sent), (0, 6001));
    wait(&received, "receiver", "many").unwrap();
}

/// A dry run whose only file vanishes as soon as it is announced: its map is cut short, by
/// far or by a little, and the run ends for both.
fn vanishing(blocks: usize) {
    let what = format!("{blocks} blocks");
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::write(&to, vec![7; blocks * 4096]).unwrap();
    fs::write(&from, vec![7; blocks * 4096]).unwrap();
    let block_size = BlockSize::new(4096).unwrap();
    let options = Options { block_size, dry_run: true, checksum: true, ..options(Commit::InPlace) };
    let (said, passed, back) = (io::pipe().unwrap(), io::pipe().unwrap(), io::pipe().unwrap());
    let sent = start_sender(back.0, said.1, from.clone(), options.clone());
    let (mut said, mut passed_on) = (said.0, passed.1);
    let announced = move || {
        let mut chunk = [0; 65536];
        let mut len = said.read(&mut chunk)?;
        fs::remove_file(&from)?;
        while len > 0 {
            passed_on.write_all(&chunk[..len])?;
            len = said.read(&mut chunk)?;
        }
        io::Result::Ok(())
    };
    std::thread::spawn(announced);
    let received = start_receiver(passed.0, back.1, to, options);
    let stats = wait(&sent, "sender", &what).unwrap();
    assert_eq!((stats.files_failed, stats.files_sent), (1, 0), "{what}");
    wait(&received, "receiver", &what).unwrap();
}

#[test]
fn a_dry_run_ends_though_its_last_map_is_cut_short() {
    [1000, MAX_AHEAD - 1000, MAX_AHEAD - 1000, 3 * MAX_AHEAD].into_iter().for_each(vanishing);
}

/// A sender that describes a file without reading its map, and has a directory made behind it:
/// the receiver gets there only when the map is read.
#[test]
fn a_map_that_nobody_reads_is_not_queued_without_end() {
    const BLOCKS: usize = 2 * MAX_AHEAD;
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();
    fs::write(to.join("a"), dense(BLOCKS * 4096)).unwrap();
    let block_size = BlockSize::new(4096).unwrap();
    let options = Options { block_size, ..options(Commit::InPlace) };
    let (forth, back) = (io::pipe().unwrap(), tiny_pipe());
    let received = start_receiver(forth.0, back.1, to.clone(), options);
    let mut output = FrameWriter::new(forth.1, "the receiver");
    let mut input = FrameReader::new(back.0, "the receiver");
    let mut keys = 0;
    let entry = |id, path: &str, kind| {
        Message::Entry(Entry { id, path: path.into(), kind, metadata: Metadata::default() })
    };
    let file = Kind::File { length: BLOCKS as u64 * 4096, allocated: 0, whole: false, retry: true };
    for message in [
        Message::Layout { single: false },
        entry(0, "a", file),
        Message::Content { id: 0 },
        Message::Keep { blocks: BLOCKS as u64 },
        Message::Abandon,
        entry(1, "d", Kind::Directory),
        Message::End(Box::default()),
    ] {
        // It is not asked for before its map begins to come.
        if matches!(message, Message::Content { .. }) {
            output.flush().unwrap();
            while keys == 0 {
                if let Frame::Map(_, runs) = input.read().unwrap() {
                    keys += runs.iter().map(Run::entries).sum::<usize>();
                }
            }
        }
        output.message(&message).unwrap();
    }
    output.flush().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!to.join("d").exists(), "all of the map was queued");
    loop {
        match input.read().unwrap() {
            Frame::Map(_, runs) => keys += runs.iter().map(Run::entries).sum::<usize>(),
            Frame::Message(Message::End(_)) => break,
            _ => {}
        }
    }
    assert_eq!(keys, BLOCKS);
    assert_eq!(wait(&received, "receiver", "the map").unwrap().files_failed, 0);
    assert!(to.join("d").is_dir());
}

/// What a sender makes of these frames about its only file.
fn refused(dry_run: bool, frames: &[Frame]) -> Error {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::write(&from, dense(1 << 20)).unwrap();
    let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
    let sent = start_sender(back.0, forth.1, from, Options { dry_run, ..options(Commit::Auto) });
    let mut input = FrameReader::new(forth.0, "the sender");
    while !matches!(input.read().unwrap(), Frame::Message(Message::Entry(_))) {}
    let mut output = FrameWriter::new(back.1, "the receiver");
    for frame in frames {
        // It may have had enough before it was told everything.
        let _ = match frame {
            Frame::Message(message) => output.message(message),
            Frame::Map(id, runs) => output.map(*id, runs),
            other => panic!("{other:?}"),
        };
    }
    let _ = output.flush();
    while input.read().is_ok() {}
    wait(&sent, "sender", "wrong answers").unwrap_err()
}

#[test]
fn answers_of_another_kind_of_run_and_maps_behind_their_end_break_a_rule() {
    let message = Frame::Message;
    let preview = |mapped| {
        message(Message::Preview {
            id: 0,
            device: false,
            mapped,
            resized: false,
            changes: Changes::default(),
        })
    };
    let map = || message(Message::Map { id: 0, device: false });
    let map_end = || message(Message::MapEnd { id: 0 });
    let runs = || Frame::Map(0, vec![Run::Keys(vec![[7; 16]])]);
    let cases: [(bool, Vec<Frame>); 7] = [
        (false, vec![preview(true)]),
        (false, vec![preview(false)]),
        (true, vec![map()]),
        (true, vec![message(Message::NoBasis { id: 0, device: false })]),
        (false, vec![map(), map_end(), map_end()]),
        (false, vec![map(), runs(), map_end(), runs()]),
        (true, vec![preview(false), runs()]),
    ];
    for (dry_run, frames) in cases {
        let error = refused(dry_run, &frames);
        assert!(matches!(error, Error::Protocol { .. }), "dry run: {dry_run}, {frames:?}: {error}");
        assert!(error.to_string().contains("out of turn"), "dry run: {dry_run}, {frames:?}: {error}");
    }
}
