//! Maps that both ends have: what the sender tells of, what it takes from the receiver in the place
//! of a map, and that nothing of that is taken on trust.

use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use holesync::confinement::NamedPath;
use holesync::error::{Error, Result};
use holesync::hashmap::map_file::MapWriter;
use holesync::hashmap::plan::Run;
use holesync::hashmap::since::Since;
use holesync::hashmap::{Grid, Hash, MapEntry, hash_image, key};
use holesync::options::{self, Commit, Options};
use holesync::protocol::{
    Connection, Frame, FrameReader, FrameWriter, KNOWN_MAPS, MAGIC, MAX_KNOWN, Message, OLDEST,
};
use holesync::receiver::{self, Target};
use holesync::report::{Changes, Silent, Stats};
use holesync::scan::FileImage;
use holesync::sender::{self, Hasher, Side};
use tempfile::TempDir;

use super::{options, start, wait};

const BLOCK: usize = 8 << 10;
/// More than a section of a map.
const BLOCKS: usize = 3000;

/// An image of which the sender has the map of an older state, and is told what has changed since.
struct Rig {
    dir: TempDir,
    root: Hash,
    /// The map, as it would travel.
    runs: Vec<Run>,
}

/// A sender and the receiver that a test plays.
struct Played {
    input: FrameReader<PipeReader>,
    output: FrameWriter<PipeWriter>,
    sent: Receiver<Result<Stats>>,
}

impl Rig {
    /// The block with this index is new.
    fn new(changed: usize) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let mut old = vec![0; BLOCKS * BLOCK];
        crate::support::fill(&mut old, 0, 1);
        old[7 * BLOCK..9 * BLOCK].fill(0);
        let image = dir.path().join("image");
        fs::write(&image, &old).unwrap();
        let (runs, root) = write_map(&image, &dir.path().join("old.map"));
        old[changed * BLOCK..(changed + 1) * BLOCK].fill(9);
        fs::write(&image, &old).unwrap();
        fs::write(dir.path().join("list"), format!("{} {BLOCK}\n", changed * BLOCK)).unwrap();
        Rig { dir, root, runs }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A sender of this source that speaks this version; what the other end hears and says.
    fn send(&self, source: &str, version: u16) -> Played {
        let options = options(Commit::Auto);
        let wanted = options::Since { old: self.path("old.map"), changed: Some(self.path("list")) };
        let since = Since::open(&wanted, &self.path("image"), options.block_size).unwrap();
        let source = NamedPath::here(self.path(source));
        let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
        let mut output = back.1;
        output.write_all(&greeting(version)).unwrap();
        let sent = start(move || {
            let mut input = FrameReader::new(back.0, "the receiver");
            input.await_greeting(0)?;
            let output = FrameWriter::new(forth.1, "the receiver");
            let hasher = Hasher::start(&options, None, None, Some(Arc::new(since)));
            let connection = Connection { input, output, options: &options, reporter: &Silent, saved: None };
            sender::run(connection, &[source], Some(hasher), Side::Initiator)
        });
        let input = FrameReader::new(forth.0, "the sender");
        Played { input, output: FrameWriter::new(output, "the sender"), sent }
    }
}

/// The map of an image, as it travels, and its root hash.
fn write_map(image: &PathBuf, to: &PathBuf) -> (Vec<Run>, Hash) {
    let file = File::open(image).unwrap();
    let grid = Grid { length: file.metadata().unwrap().len(), block: options(Commit::Auto).block_size };
    let mut entries = Vec::new();
    hash_image(&FileImage::new(file, true), &grid, |batch| {
        entries.extend(MapEntry::of(&batch.items));
        Ok::<_, io::Error>(true)
    })
    .unwrap();
    let mut writer = MapWriter::new(File::create(to).unwrap(), &grid).unwrap();
    entries.iter().for_each(|entry| writer.add(entry).unwrap());
    let (_, root) = writer.finish().unwrap();
    let runs = entries.iter().map(|entry| match entry {
        MapEntry::Zero(blocks) => Run::Zero(*blocks),
        MapEntry::Data { hash, .. } => Run::Keys(vec![key(hash)]),
    });
    (runs.collect(), root)
}

fn greeting(version: u16) -> Vec<u8> {
    [&MAGIC[..], &OLDEST.to_le_bytes(), &version.to_le_bytes(), &[0; 4]].concat()
}

impl Played {
    /// Everything up to the message that is wanted, and that.
    #[track_caller]
    fn hear(&mut self, wanted: impl Fn(&Message) -> bool) -> Vec<Frame> {
        let mut heard = Vec::new();
        loop {
            let frame = self.input.read().expect("the sender goes on");
            let is_it = matches!(&frame, Frame::Message(message) if wanted(message));
            heard.push(frame);
            if is_it {
                return heard;
            }
        }
    }

    /// What comes before the first entry, and its id.
    fn hear_entry(&mut self) -> (Vec<Frame>, u64) {
        let mut heard = self.hear(|message| matches!(message, Message::Entry(_)));
        match heard.pop() {
            Some(Frame::Message(Message::Entry(entry))) => (heard, entry.id),
            other => panic!("{other:?}"),
        }
    }

    fn say(&mut self, messages: &[Message]) {
        for message in messages {
            // It may be gone after the first of them.
            let _ = self.output.message(message).and_then(|()| self.output.flush());
        }
    }

    /// The file has its result, and the run its end.
    fn end(mut self, id: u64) -> Stats {
        self.say(&[
            Message::Done { id, changed: Some(1), changes: Changes::default() },
            Message::End(Box::default()),
        ]);
        wait(&self.sent, "sender", "the end").unwrap()
    }

    #[track_caller]
    fn assert_refused(self, why: &str, what: &str) {
        let Played { mut input, output: _output, sent } = self;
        // It may have begun to say more than a pipe takes before it heard what it refuses.
        start(move || while input.read().is_ok() {});
        let error = wait(&sent, "sender", what).expect_err(what);
        assert!(
            matches!(error, Error::Protocol { .. }) && error.to_string().contains(why),
            "{what}: {error}"
        );
    }
}

fn finish(message: &Message) -> bool {
    matches!(message, Message::Finish { .. })
}

/// Blocks that are kept and others that are described, in order.
fn described(heard: &[Frame]) -> Vec<(&'static str, u64)> {
    let told = heard.iter().filter_map(|frame| match frame {
        Frame::Message(Message::Keep { blocks }) => Some(("keep", *blocks)),
        Frame::Message(Message::Zero { blocks }) => Some(("zero", *blocks)),
        Frame::Data(data) => Some(("new", data.masks.len() as u64)),
        Frame::Differ(differ) => Some(("new", differ.hashes.len() as u64)),
        _ => None,
    });
    told.collect()
}

#[test]
fn a_file_is_described_by_the_map_that_both_have_as_by_one_that_travels() {
    let rig = Rig::new(2000);
    let expected = [("keep", 2000), ("new", 1), ("keep", BLOCKS as u64 - 2001)];
    for travels in [false, true] {
        let mut played = rig.send("image", KNOWN_MAPS);
        let (before, id) = played.hear_entry();
        let knows = Message::Knows { roots: vec![rig.root] };
        assert!(before.contains(&Frame::Message(knows)), "{before:?}");
        played.say(&[Message::Map { id, device: false }]);
        if travels {
            for runs in rig.runs.chunks(1000) {
                played.output.map(id, runs).unwrap();
            }
            played.say(&[Message::MapEnd { id }]);
        } else {
            played.say(&[Message::AsKnown { id, root: rig.root }]);
        }
        let heard = played.hear(finish);
        assert_eq!(described(&heard), expected, "travels: {travels}");
        assert_eq!(played.end(id).files_sent, 1);
    }
}

#[test]
fn an_older_receiver_and_one_of_several_files_hear_of_no_maps() {
    let rig = Rig::new(3);
    fs::create_dir(rig.path("tree")).unwrap();
    fs::rename(rig.path("image"), rig.path("tree/image")).unwrap();
    fs::copy(rig.path("tree/image"), rig.path("image")).unwrap();
    for (source, version) in [("image", KNOWN_MAPS - 1), ("tree/", KNOWN_MAPS)] {
        let mut played = rig.send(source, version);
        let mut heard = Vec::new();
        let is_file = |message: &Message| matches!(message, Message::Entry(entry) if matches!(entry.kind, holesync::source::Kind::File { .. }));
        heard.extend(played.hear(is_file));
        let told = heard.iter().any(|frame| matches!(frame, Frame::Message(Message::Knows { .. })));
        assert!(!told, "{source}, version {version}");
        let Some(Frame::Message(Message::Entry(entry))) = heard.pop() else { panic!("no entry") };
        played.say(&[
            Message::Map { id: entry.id, device: false },
            Message::AsKnown { id: entry.id, root: rig.root },
        ]);
        played.assert_refused("a map that it was not told of", source);
    }
}

#[test]
fn a_map_that_is_said_to_be_known_and_cannot_be_is_refused() {
    let rig = Rig::new(3);
    type Lie = fn(&mut Played, u64, &Rig);
    let lies: [(&str, &str, Lie); 7] = [
        ("another root hash", "a map that it was not told of", |played, id, _| {
            played.say(&[Message::Map { id, device: false }, Message::AsKnown { id, root: [7; 32] }]);
        }),
        ("twice", "a map out of turn", |played, id, rig| {
            let known = Message::AsKnown { id, root: rig.root };
            played.say(&[Message::Map { id, device: false }, known.clone(), known]);
        }),
        ("of a file that is compared with nothing", "a map out of turn", |played, id, rig| {
            played.say(&[Message::NoBasis { id, device: false }, Message::AsKnown { id, root: rig.root }]);
        }),
        ("before an answer", "a map out of turn", |played, id, rig| {
            played.say(&[Message::AsKnown { id, root: rig.root }]);
        }),
        ("behind a part of a map", "a map out of turn", |played, id, rig| {
            played.say(&[Message::Map { id, device: false }]);
            played.output.map(id, &[Run::Zero(1)]).unwrap();
            played.say(&[Message::AsKnown { id, root: rig.root }]);
        }),
        ("before its end", "a map out of turn", |played, id, rig| {
            played.say(&[Message::Map { id, device: false }, Message::AsKnown { id, root: rig.root }]);
            played.say(&[Message::MapEnd { id }]);
        }),
        ("in a second try", "a map out of turn", |played, id, rig| {
            let known = |id| [Message::Map { id, device: false }, Message::AsKnown { id, root: rig.root }];
            played.say(&known(id));
            played.hear(finish);
            played.say(&[Message::Again { id }]);
            let (_, id) = played.hear_entry();
            played.say(&known(id));
        }),
    ];
    for (what, why, tell) in lies {
        let mut played = rig.send("image", KNOWN_MAPS);
        let (_, id) = played.hear_entry();
        tell(&mut played, id, &rig);
        played.assert_refused(why, what);
    }
    // One that tells less than what is there within a shorter file.
    OpenOptions::new()
        .write(true)
        .open(rig.path("image"))
        .unwrap()
        .set_len((99 * BLOCK + 5000) as u64)
        .unwrap();
    let mut played = rig.send("image", KNOWN_MAPS);
    let (_, id) = played.hear_entry();
    played.say(&[Message::Map { id, device: false }, Message::AsKnown { id, root: rig.root }]);
    played.assert_refused("a map that it was not told of", "a file that is cut");
}

/// What the sender has of it is damaged by then: the file is announced once more, and its map travels.
#[test]
fn a_map_that_is_not_what_was_told_is_given_up() {
    let rig = Rig::new(3);
    let damage: [fn(&File); 2] = [
        |map| map.set_len(60_000).unwrap(),
        |map| std::os::unix::fs::FileExt::write_all_at(map, &[1], 60_000).unwrap(),
    ];
    let whole = fs::read(rig.path("old.map")).unwrap();
    for damage in damage {
        fs::write(rig.path("old.map"), &whole).unwrap();
        let mut played = rig.send("image", KNOWN_MAPS);
        let (_, id) = played.hear_entry();
        damage(&OpenOptions::new().write(true).open(rig.path("old.map")).unwrap());
        played.say(&[Message::Map { id, device: false }, Message::AsKnown { id, root: rig.root }]);
        played.hear(|message| matches!(message, Message::Abandon));
        let (_, id) = played.hear_entry();
        played.say(&[Message::Map { id, device: false }]);
        for runs in rig.runs.chunks(1000) {
            played.output.map(id, runs).unwrap();
        }
        played.say(&[Message::MapEnd { id }]);
        let heard = played.hear(finish);
        assert_eq!(described(&heard), [("keep", 3), ("new", 1), ("keep", BLOCKS as u64 - 4)]);
        assert_eq!(played.end(id).files_failed, 0);
    }
}

/// A sender that tells of maps when it may not.
#[test]
fn maps_that_a_sender_tells_of_out_of_turn_are_refused() {
    let knows = |count| Message::Knows { roots: vec![[1; 32]; count] };
    let layout = || Message::Layout { single: true };
    for (version, said) in [
        (KNOWN_MAPS, vec![knows(1)]),
        (KNOWN_MAPS, vec![layout(), knows(1), knows(1)]),
        (KNOWN_MAPS, vec![layout(), knows(MAX_KNOWN + 1)]),
        (KNOWN_MAPS - 1, vec![layout(), knows(1)]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
        let mut output = forth.1;
        output.write_all(&greeting(version)).unwrap();
        let target = Target::new(NamedPath::here(dir.path().join("to")), false, 0o022);
        let received = start(move || {
            let options: Options = options(Commit::Auto);
            let mut input = FrameReader::new(forth.0, "the sender");
            input.await_greeting(0)?;
            let output = FrameWriter::new(back.1, "the sender");
            let connection = Connection { input, output, options: &options, reporter: &Silent, saved: None };
            receiver::run(connection, target, None)
        });
        let mut output = FrameWriter::new(output, "the receiver");
        said.iter().for_each(|message| output.message(message).and_then(|()| output.flush()).unwrap());
        let error = wait(&received, "receiver", "maps out of turn").unwrap_err();
        assert!(error.to_string().contains("maps that it knows"), "{said:?}: {error}");
        drop(back.0);
    }
}
