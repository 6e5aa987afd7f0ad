//! Senders that lie to a receiver.

use std::fs;
use std::io;

use holesync::error::{Failure, Result};
use holesync::hashmap::{Grid, Hash, root_of};
use holesync::options::{Commit, Delete, DeleteWhen, Options};
use holesync::protocol::{Entry, Frame, MAX_CONTROL, MAX_DATA, MAX_LENGTH, MAX_PATH, Message, Request};
use holesync::report::{Changes, Stats};
use holesync::source::{Kind, Metadata, Node, Owner};
use holesync::sys::xattrs::{AclEntry, Acls};

use super::{Liar, MEMORY, is_alone, is_protocol_error, peak_memory};
use crate::roles::{Snapshot, Trees, entry, options, snapshot, start_receiver, wait};
use crate::support::Sparse;

/// What became of a receiver.
struct Told {
    ended: Result<Stats>,
    before: Snapshot,
    after: Snapshot,
    answers: Vec<Frame>,
}

/// A receiver that hears this and then nothing.
fn tell(what: &str, options: Options, script: impl FnOnce(&mut Liar)) -> Told {
    let trees = Trees::new();
    let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
    let received = start_receiver(forth.0, back.1, trees.target(), options);
    let mut liar = Liar::new(back.0, forth.1);
    script(&mut liar);
    // It stays connected: the receiver ends by itself.
    let ended = wait(&received, "receiver", what);
    let answers = liar.answers();
    let after = snapshot(&trees.target());
    Told { ended, before: trees.old, after, answers }
}

struct Lie {
    lie: &'static str,
    /// What is said of it.
    why: &'static str,
    script: fn(&mut Liar),
}

fn lie(lie: &'static str, why: &'static str, script: fn(&mut Liar)) -> Lie {
    Lie { lie, why, script }
}

fn layout(liar: &mut Liar) {
    liar.say(&Message::Layout { single: false });
}

fn file(path: impl Into<Vec<u8>>, length: u64, id: u64) -> Message {
    let kind = Kind::File { length, allocated: length, whole: false, retry: false };
    Message::Entry(Entry { id, path: path.into(), kind, metadata: Metadata::default() })
}

fn named(liar: &mut Liar, path: impl Into<Vec<u8>>) {
    layout(liar);
    liar.say(&file(path, 1, 0));
}

/// Something that is no file.
fn made(liar: &mut Liar, path: &str, kind: Kind) {
    layout(liar);
    liar.say(&Message::Entry(Entry { id: 0, path: path.into(), kind, metadata: Metadata::default() }));
}

/// A new file of ten blocks of 8 KiB, begun.
fn begun(liar: &mut Liar) {
    layout(liar);
    liar.say(&entry(0, "new", 80 << 10));
    content(liar, 0);
}

/// Begins a file that the receiver wants.
fn content(liar: &mut Liar, id: u64) {
    liar.hear(|message| matches!(message, Message::NoBasis { id: wanted, device: false } if *wanted == id));
    liar.say(&Message::Content { id });
}

/// A data frame: its head, and what comes behind it.
fn data(liar: &mut Liar, kind: u8, head: (u64, u32, u8, u32), rest: &[u8]) {
    let (first, count, width, bytes) = head;
    let head = [&first.to_le_bytes()[..], &count.to_le_bytes(), &[width], &bytes.to_le_bytes()].concat();
    liar.frame(kind, &[&head, rest].concat());
}

#[test]
fn a_lying_sender_ends_its_session_and_changes_nothing() {
    if !is_alone() {
        return;
    }
    let lies = [
        lie("a name that is `..`", "it names the path", |liar| named(liar, "..")),
        lie("`..` within a path", "it names the path", |liar| named(liar, "sub/../../x")),
        lie("an absolute path", "it names the path", |liar| named(liar, "/tmp/x")),
        lie("an empty name", "it names the path", |liar| named(liar, "sub//x")),
        lie("a name that is `.`", "it names the path", |liar| named(liar, "./x")),
        lie("a NUL in a name", "it names the path", |liar| named(liar, "x\0y")),
        lie("a name of 256 bytes", "it names the path", |liar| named(liar, "x".repeat(256))),
        lie("a path of more than 4096 bytes", "it names the path", |liar| {
            named(liar, "x/".repeat(MAX_PATH / 2) + "x")
        }),
        lie("the name of a working file", "it names a working file", |liar| {
            named(liar, ".same.holesync.log")
        }),
        lie("an entry below a working file", "it names a working file", |liar| {
            named(liar, ".same.holesync.stage/x")
        }),
        lie("an entry before the layout", "an entry before the layout", |liar| liar.say(&entry(0, "x", 1))),
        lie("the layout twice", "a message out of turn", |liar| {
            layout(liar);
            layout(liar);
        }),
        lie("an id twice", "an entry with the id of another", |liar| {
            named(liar, "x");
            liar.say(&file("y", 1, 0));
        }),
        lie("ids that go backwards", "an entry with the id of another", |liar| {
            layout(liar);
            liar.say(&file("x", 1, 9));
            liar.say(&file("y", 1, 8));
        }),
        lie("a length above that of any file", "a file of", |liar| {
            layout(liar);
            liar.say(&entry(0, "x", MAX_LENGTH + 1));
        }),
        lie(
            "content of an id that was not announced",
            "the content of a file it was not asked for",
            |liar| {
                named(liar, "x");
                liar.say(&Message::Content { id: 7 });
            },
        ),
        lie("content while another file is open", "a message out of turn", |liar| {
            begun(liar);
            liar.say(&Message::Content { id: 0 });
        }),
        lie("blocks kept of no file", "content without a file", |liar| {
            layout(liar);
            liar.say(&Message::Keep { blocks: 1 });
        }),
        lie("blocks kept beyond the end", "blocks beyond the end of a file", |liar| {
            begun(liar);
            liar.say(&Message::Keep { blocks: u64::MAX });
        }),
        lie("zeros beyond the end", "blocks beyond the end of a file", |liar| {
            begun(liar);
            liar.say(&Message::Zero { blocks: u64::MAX });
        }),
        lie("more zeros once the end is reached", "blocks beyond the end of a file", |liar| {
            begun(liar);
            liar.say(&Message::Zero { blocks: 10 });
            liar.say(&Message::Zero { blocks: 1 });
        }),
        lie("an end before all is described", "a file of", |liar| {
            begun(liar);
            liar.say(&Message::Zero { blocks: 9 });
            liar.say(&Message::Finish { root: [0; 32], settled: true });
        }),
        lie("the end of a file twice", "content without a file", |liar| {
            layout(liar);
            liar.say(&file("new", 0, 0));
            content(liar, 0);
            liar.say(&Message::Finish { root: [0; 32], settled: true });
            liar.say(&Message::Finish { root: [0; 32], settled: true });
        }),
        lie("no file abandoned", "an abandoned file that was never begun", |liar| {
            layout(liar);
            liar.say(&Message::Abandon);
        }),
        lie("totals within a file", "a message out of turn", |liar| {
            begun(liar);
            liar.say(&Message::End(Box::default()));
        }),
        lie("totals before every file is described", "an end before every file was described", |liar| {
            named(liar, "x");
            liar.say(&Message::End(Box::default()));
        }),
        lie("data far beyond the end", "a data frame out of place", |liar| {
            begun(liar);
            liar.tell(|output| output.data(u64::MAX, &[1], &[&[1; 4096]]));
        }),
        lie(
            "data of pages that a block does not have",
            "a data frame with an impossible page mask",
            |liar| {
                begun(liar);
                liar.tell(|output| output.data(0, &[1 << 63], &[&[1; 4096]]));
            },
        ),
        lie("data of no page", "a data frame with an impossible page mask", |liar| {
            begun(liar);
            data(liar, 2, (0, 1, 1, 0), &[0]);
        }),
        lie("fewer bytes than its masks want", "a data frame that is too short", |liar| {
            begun(liar);
            liar.tell(|output| output.data(0, &[3], &[&[1; 4096]]));
        }),
        lie("data of no blocks", "a data frame of", |liar| {
            begun(liar);
            data(liar, 2, (0, 0, 1, 0), &[]);
        }),
        lie("a mask of no width", "a data frame of", |liar| {
            begun(liar);
            data(liar, 2, (0, 1, 0, 0), &[]);
        }),
        lie("more blocks than a frame may have", "a data frame of", |liar| {
            begun(liar);
            data(liar, 2, (0, u32::MAX, 8, 0), &[]);
        }),
        lie("a zstd bomb", "compressed data that does not unpack", |liar| {
            begun(liar);
            let mut bomb = zstd::Encoder::new(Vec::new(), 3).unwrap();
            io::copy(&mut io::Read::take(io::repeat(0), 1 << 30), &mut bomb).unwrap();
            let bomb = bomb.finish().unwrap();
            data(liar, 3, (0, 1, 1, MAX_DATA as u32), &[&[1][..], &bomb].concat());
        }),
        lie("a zstd bomb of four GiB", "a data frame of", |liar| {
            begun(liar);
            let bomb = zstd::bulk::compress(&vec![0; 1 << 20], 3).unwrap();
            data(liar, 3, (0, 1, 1, u32::MAX), &[&[1][..], &bomb].concat());
        }),
        lie("compressed data that is none", "compressed data that does not unpack", |liar| {
            begun(liar);
            data(liar, 3, (0, 1, 1, 4096), &[&[1][..], &[0xa5; 100]].concat());
        }),
        lie("a frame of four GiB", "a frame of type", |liar| liar.frame_of(2, u32::MAX, &[])),
        lie("a message of more than 64 KiB", "a frame of type", |liar| {
            liar.frame_of(1, MAX_CONTROL as u32 + 1, &[])
        }),
        lie("a frame of an unknown type", "a frame of the unknown type", |liar| liar.frame(99, b"x")),
        lie("a message of an unknown kind", "a message that cannot be read", |liar| {
            liar.frame(1, &[0xff, 0xff, 3])
        }),
        lie("a message with something behind it", "a message with something behind it", |liar| {
            liar.frame(1, &[&message(), &b"x"[..]].concat())
        }),
        lie("a frame with the number of another", "a damaged frame, or one out of order", |liar| {
            liar.frames = 7;
            layout(liar);
        }),
        lie("a data frame without its head", "a data frame without its head", |liar| liar.frame(2, b"x")),
        lie("a list that claims more than it has", "a message that cannot be read", |liar| {
            liar.frame(1, &[2, 0, 0xff, 0xff, 0xff, 0xff, 0x0f])
        }),
        lie("a request within a session", "a message out of turn", |liar| {
            let request = Request::Send { sources: vec![b"/etc".to_vec().into()], listed: false };
            liar.say(&Message::Start(Box::default(), request, None));
        }),
        lie("a symlink that nobody wants", "a symlink that nobody wants", |liar| {
            made(liar, "x", Kind::Symlink(b"/etc".to_vec()));
        }),
        lie("a device that nobody wants", "a special file that nobody wants", |liar| {
            made(liar, "x", Kind::Node(Node::BlockDevice(8, 0)));
        }),
        lie("a fifo that nobody wants", "a special file that nobody wants", |liar| {
            made(liar, "x", Kind::Node(Node::Fifo));
        }),
        lie("another name that nobody wants", "another name of a file that nobody wants", |liar| {
            made(liar, "x", Kind::HardLink(b"sub/image".to_vec()));
        }),
        lie("another name of what lies outside", "it names the path", |liar| {
            made(liar, "x", Kind::HardLink(b"../outside".to_vec()));
        }),
        lie("another name of the destination itself", "that it may not name", |liar| {
            made(liar, "x", Kind::HardLink(Vec::new()));
        }),
        lie("another name of a working file", "that it may not name", |liar| {
            made(liar, "x", Kind::HardLink(b".x.holesync-0.log".to_vec()));
        }),
        lie("what only receivers say", "a message out of turn", |liar| {
            layout(liar);
            liar.say(&Message::Done { id: 0, changed: None, changes: Changes::default() });
        }),
        lie("a map", "something that only receivers say", |liar| liar.tell(|output| output.map(0, &[]))),
        lie("credit outside a dry run", "a message out of turn", |liar| {
            liar.say(&Message::Granted { units: u64::MAX })
        }),
        lie("a comparison outside a dry run", "a message out of turn", |liar| {
            liar.say(&Message::Compared {
                entry: Entry {
                    id: 0,
                    path: b"x".to_vec(),
                    kind: Kind::Directory,
                    metadata: Metadata::default(),
                },
                changes: Changes::default(),
                would_send: None,
            });
        }),
    ];
    let memory = peak_memory();
    for Lie { lie, why, script } in lies {
        let mut options = Options { links: lie != "a symlink that nobody wants", ..options(Commit::Auto) };
        options.kinds.hard_links = lie != "another name that nobody wants";
        let told = tell(lie, options, script);
        assert!(is_protocol_error(&told.ended), "{lie}: {:?}", told.ended);
        let error = told.ended.unwrap_err().to_string();
        assert!(error.contains(why), "{lie}: {error}");
        assert!(told.before == told.after, "{lie}: something changed");
    }
    assert!(peak_memory() < memory + MEMORY);
}

fn message() -> Vec<u8> {
    postcard::to_stdvec(&Message::Layout { single: false }).unwrap()
}

#[test]
fn a_lying_sender_loses_its_file_and_the_others_come() {
    let lies = [
        lie("another root hash", "", |liar| {
            liar.say(&entry(0, "lie", 80 << 10));
            content(liar, 0);
            liar.say(&Message::Zero { blocks: 10 });
            liar.say(&Message::Finish { root: [7; 32], settled: true });
        }),
        lie("a file of 2^63 - 1 bytes", "", |liar| {
            liar.say(&entry(0, "lie", MAX_LENGTH));
            content(liar, 0);
            liar.say(&Message::Zero { blocks: MAX_LENGTH.div_ceil(8 << 10) });
            liar.say(&Message::Finish { root: [7; 32], settled: true });
        }),
        lie("an entry below a symlink that it sent", "", |liar| {
            let kind = Kind::Symlink(b"/tmp".to_vec());
            let link = Entry { id: 0, path: "lie".into(), kind, metadata: Metadata::default() };
            liar.say(&Message::Entry(link));
            liar.say(&entry(1, "lie/holesync-was-here", 0));
        }),
        lie("a file in the place of a directory", "", |liar| liar.say(&entry(0, "sub", 0))),
        lie("attributes out of every range", "", |liar| {
            let owner =
                Owner { uid: u32::MAX, gid: u32::MAX, user: "u".repeat(9999), group: "\0\x1b[2J".into() };
            let far = (i64::MIN, u32::MAX);
            let entry = AclEntry { tag: 7, permissions: u16::MAX, number: u32::MAX, name: "\0".into() };
            let metadata = Metadata {
                mode: Some(u32::MAX),
                mtime: Some(far),
                atime: Some(far),
                owner: Some(owner),
                acls: Some(Box::new(Acls { access: vec![entry.clone(); 99], default: vec![entry] })),
                xattrs: Some(vec![
                    (b"system.posix_acl_access".to_vec(), vec![]),
                    (vec![0; 300], vec![1; 99]),
                ]),
            };
            let kind = Kind::File { length: 0, allocated: u64::MAX, whole: false, retry: false };
            liar.say(&Message::Entry(Entry { id: 0, path: "lie".into(), kind, metadata }));
            content(liar, 0);
            liar.say(&Message::Finish { root: [7; 32], settled: true });
        }),
    ];
    for Lie { lie, script, .. } in lies {
        let told = tell(lie, options(Commit::Auto), |liar| {
            layout(liar);
            script(liar);
            liar.say(&entry(5, "true", 0));
            content(liar, 5);
            liar.say(&Message::Finish { root: root_of_nothing(), settled: true });
            let totals = Stats {
                files_total: u64::MAX,
                data_bytes: u64::MAX,
                files_failed: u64::MAX,
                ..Stats::default()
            };
            liar.say(&Message::End(Box::new(totals)));
        });
        told.ended.as_ref().unwrap_or_else(|error| panic!("{lie}: {error}"));
        let answered = |wanted: fn(&Message) -> bool| {
            told.answers.iter().any(|frame| matches!(frame, Frame::Message(message) if wanted(message)))
        };
        let lost = |message: &Message| {
            matches!(message, Message::Again { id: 0 } | Message::Failed { id: 0 | 1, .. })
        };
        assert!(answered(lost), "{lie}: {:?}", told.answers);
        assert!(
            answered(|message| matches!(message, Message::Done { id: 5, .. })),
            "{lie}: {:?}",
            told.answers
        );
        let mut after = told.after;
        after.remove(std::path::Path::new("true")).expect(lie);
        after.remove(std::path::Path::new("lie"));
        assert!(after == told.before, "{lie}: something changed");
        assert!(fs::symlink_metadata("/tmp/holesync-was-here").is_err(), "{lie}");
    }
}

fn root_of_nothing() -> Hash {
    let grid = Grid { length: 0, block: options(Commit::Auto).block_size };
    root_of(&Sparse::default(), &grid, |_| true).unwrap().unwrap()
}

#[test]
fn a_sender_that_fails_at_length_is_cut_short() {
    let told = tell("a fatal error", options(Commit::Auto), |liar| {
        let message = "\x1b[2J".repeat(15_000);
        liar.say(&Message::Fatal(Failure::new(0, message)));
    });
    let failure = told.ended.unwrap_err().to_failure();
    assert!(failure.message.len() < 5000, "{}", failure.message.len());
    assert_ne!(failure.code, 0);
}

#[test]
fn a_named_destination_is_not_replaced_by_a_symlink() {
    for (there, is_lost) in [("same", false), ("link", true), ("nothing", true)] {
        let trees = Trees::new();
        let path = trees.target().join(there);
        let before = fs::symlink_metadata(&path).map(|metadata| metadata.len());
        let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
        // A link that is named is followed to a directory only.
        let received = start_receiver(forth.0, back.1, path.clone(), options(Commit::Auto));
        let mut liar = Liar::new(back.0, forth.1);
        liar.say(&Message::Layout { single: true });
        let kind = Kind::Symlink(b"/dev/full".to_vec());
        liar.say(&Message::Entry(Entry { id: 0, path: "evil".into(), kind, metadata: Metadata::default() }));
        liar.say(&Message::End(Box::default()));
        let stats = wait(&received, "receiver", there).unwrap();
        assert_eq!(stats.files_failed, u64::from(!is_lost), "{there}");
        let after = fs::symlink_metadata(&path).unwrap();
        assert_eq!(after.is_symlink(), is_lost, "{there}");
        assert!(is_lost || after.len() == before.unwrap(), "{there}");
    }
}

/// Names that a sender says it has.
fn contents(directory: &str, names: &[&str]) -> Message {
    let names = names.iter().map(|name| name.as_bytes().to_vec()).collect();
    Message::Contents { directory: directory.into(), names, is_whole: true }
}

fn deleting() -> Options {
    let delete = Delete { when: DeleteWhen::After, excluded: false, most: None, ignore_errors: false };
    Options { delete: Some(delete), ..options(Commit::Auto) }
}

#[test]
fn a_sender_that_lies_about_what_it_has_removes_nothing() {
    let lies = [
        lie("what another directory has", "it names the path", |liar| {
            layout(liar);
            liar.say(&contents("../out", &[]));
        }),
        lie("an absolute directory", "it names the path", |liar| {
            layout(liar);
            liar.say(&contents("/etc", &[]));
        }),
        lie("a name that leads on", "it names what is no name", |liar| {
            layout(liar);
            liar.say(&contents("", &["sub/x"]));
        }),
        lie("a name that is `..` among those it has", "it names what is no name", |liar| {
            layout(liar);
            liar.say(&contents("", &[".."]));
        }),
        lie("names before the layout", "names before the layout", |liar| liar.say(&contents("", &[]))),
        lie("a removal before the layout", "a removal before the layout", |liar| {
            liar.say(&Message::RemoveOthers);
        }),
    ];
    for Lie { lie, why, script } in lies {
        let told = tell(lie, deleting(), script);
        assert!(is_protocol_error(&told.ended), "{lie}: {:?}", told.ended);
        let error = told.ended.unwrap_err().to_string();
        assert!(error.contains(why), "{lie}: {error}");
        assert!(told.after == told.before, "{lie}: something changed");
    }
    for message in [contents("", &[]), Message::RemoveOthers] {
        let told = tell("a removal that nobody wants", options(Commit::Auto), |liar| {
            layout(liar);
            liar.say(&message);
        });
        assert!(is_protocol_error(&told.ended) && told.after == told.before, "{message:?}");
    }
}

/// What a sender may cause with its names, at its worst.
#[test]
fn names_of_a_lying_sender_lead_nowhere_and_take_bounded_memory() {
    if !is_alone() {
        return;
    }
    let trees = Trees::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("data"), "data").unwrap();
    std::os::unix::fs::symlink(outside.path(), trees.target().join("way out")).unwrap();
    let memory = peak_memory();
    let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
    let received = start_receiver(forth.0, back.1, trees.target(), deleting());
    let mut liar = Liar::new(back.0, forth.1);
    layout(&mut liar);
    liar.say(&contents("way out", &[]));
    liar.say(&contents("same", &["no directory"]));
    liar.say(&contents("not there", &[]));
    liar.say(&Message::RemoveOthers);
    let long = "x".repeat(200);
    for n in 0..30_000 {
        let names = (0..75).map(|m| format!("{n} {m} {long}")).collect::<Vec<_>>();
        liar.say(&contents("", &names.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    liar.say(&Message::RemoveOthers);
    liar.say(&Message::End(Box::default()));
    let stats = wait(&received, "receiver", "names without end").unwrap();
    assert_eq!((stats.removed, stats.files_failed), (0, 1));
    assert!(outside.path().join("data").exists() && trees.target().join("same").exists());
    assert!(peak_memory() < memory + (1 << 30), "names took {} MiB", (peak_memory() - memory) >> 20);
}
