//! Receivers that lie to a sender.

use std::io;

use holesync::error::{Error, Failure, Result};
use holesync::hashmap::plan::Run;
use holesync::options::{Commit, Options};
use holesync::protocol::{CREDIT, Entry, Frame, FrameReader, FrameWriter, MAX_TEXT, Message};
use holesync::report::{Changes, Stats};
use holesync::source::Kind;

use super::{Liar, MEMORY, is_alone, is_protocol_error, peak_memory};
use crate::roles::{Trees, options, snapshot, start_sender, wait};

/// A sender that hears this when it has announced all it has; how it ended.
fn tell(what: &str, options: Options, script: impl FnOnce(&mut Liar, &[u64])) -> Result<Stats> {
    let trees = Trees::new();
    let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
    let sent = start_sender(back.0, forth.1, trees.source(), options);
    let mut input = FrameReader::new(forth.0, "the sender");
    let mut files = Vec::new();
    while files.len() < 4 {
        if let Frame::Message(Message::Entry(Entry { id, kind: Kind::File { .. }, .. })) =
            input.read().unwrap()
        {
            files.push(id);
        }
    }
    let mut liar = Liar::after(input, back.1);
    script(&mut liar, &files);
    let ended = wait(&sent, "sender", what);
    drop(liar);
    assert!(snapshot(&trees.source()) == trees.new, "{what}: the source changed");
    ended
}

struct Lie {
    lie: &'static str,
    /// What is said of it.
    why: &'static str,
    script: fn(&mut Liar, &[u64]),
}

fn lie(lie: &'static str, why: &'static str, script: fn(&mut Liar, &[u64])) -> Lie {
    Lie { lie, why, script }
}

fn keys(liar: &mut Liar, id: u64, count: usize) {
    liar.tell(|output| output.map(id, &[Run::Keys(vec![[7; 16]; count])]));
}

#[test]
fn a_lying_receiver_ends_its_session() {
    if !is_alone() {
        return;
    }
    let lies = [
        lie("a map of nobody's file", "an answer for no file", |liar, _| {
            liar.say(&Message::Map { id: 77, device: false })
        }),
        lie("a wish for nobody's file", "an answer for no file", |liar, _| {
            liar.say(&Message::NoBasis { id: 77, device: false })
        }),
        lie("a wish for one file twice", "an answer for no file", |liar, files| {
            liar.say(&Message::NoBasis { id: files[0], device: false });
            liar.say(&Message::NoBasis { id: files[0], device: false });
        }),
        lie("wishes that go backwards", "an answer for no file", |liar, files| {
            liar.say(&Message::NoBasis { id: files[1], device: false });
            liar.say(&Message::NoBasis { id: files[0], device: false });
        }),
        lie("the end of nobody's map", "a map out of turn", |liar, _| liar.say(&Message::MapEnd { id: 77 })),
        lie("the end of a map twice", "a map out of turn", |liar, files| {
            // The first stays open, so that the second is not described yet.
            liar.say(&Message::Map { id: files[0], device: false });
            liar.say(&Message::Map { id: files[1], device: false });
            liar.say(&Message::MapEnd { id: files[1] });
            liar.say(&Message::MapEnd { id: files[1] });
        }),
        lie("keys of nobody's file", "a map out of turn", |liar, _| keys(liar, 77, 1)),
        lie("a map of more keys than a frame may have", "a map with", |liar, files| {
            liar.say(&Message::Map { id: files[0], device: false });
            liar.frame(4, &[&[files[0] as u8, 1][..], &[0xff, 0xff, 3]].concat());
        }),
        lie("a run of nothing", "a map run without a length", |liar, files| {
            liar.say(&Message::Map { id: files[0], device: false });
            liar.frame(4, &[files[0] as u8, 0, 0]);
        }),
        lie("a run of an unknown kind", "a map run of the unknown kind", |liar, files| {
            liar.say(&Message::Map { id: files[0], device: false });
            liar.frame(4, &[files[0] as u8, 9, 1]);
        }),
        lie("a map of no id", "a map of no file", |liar, _| liar.frame(4, &[])),
        lie("an answer that was not asked for", "an answer for no file", |liar, _| {
            liar.say(&Message::Unchanged { id: 77, changes: Changes::default() })
        }),
        lie("an answer twice", "an answer for no file", |liar, files| {
            liar.say(&Message::Unchanged { id: files[0], changes: Changes::default() });
            liar.say(&Message::Unchanged { id: files[0], changes: Changes::default() });
        }),
        lie("prepared for nobody", "a prepared file that nobody waits for", |liar, files| {
            liar.say(&Message::Prepared { id: files[0] });
        }),
        lie("the result of no directory", "an answer for no directory or symlink", |liar, files| {
            liar.say(&Message::Made { id: files[0], is_there: true, changes: Changes::NEW });
        }),
        lie("leaves of too many pages", "leaves that cannot be read", |liar, files| {
            let mut body = files[0].to_le_bytes().to_vec();
            body.extend(1u64.to_le_bytes());
            body.push(200);
            liar.frame(6, &body);
        }),
        lie("credit that was not taken", "more credit than was taken", |liar, _| {
            liar.say(&Message::Granted { units: CREDIT as u64 + 1 })
        }),
        lie("credit without end", "more credit than was taken", |liar, _| {
            liar.say(&Message::Granted { units: u64::MAX });
            liar.say(&Message::Granted { units: u64::MAX });
        }),
        lie("a warning of more than 4 KiB", "a text that is too long", |liar, _| {
            liar.say(&Message::Warning("w".repeat(MAX_TEXT + 1)))
        }),
        lie("a failure of more than 4 KiB", "a text that is too long", |liar, _| {
            let failure = Failure::new(23, "f".repeat(MAX_TEXT + 1));
            liar.say(&Message::Failed { id: 0, failure });
        }),
        lie("totals while files are open", "a message out of turn", |liar, _| {
            liar.say(&Message::End(Box::default()))
        }),
        lie("a preview outside a dry run", "a message out of turn", |liar, files| {
            liar.say(&Message::Preview {
                id: files[0],
                device: false,
                mapped: false,
                resized: false,
                changes: Changes::default(),
            });
        }),
        lie("removals that nobody asked for", "a message out of turn", |liar, _| {
            liar.say(&Message::Removed { paths: vec![b"x".to_vec()] });
        }),
        lie("something that stays where nothing goes", "a message out of turn", |liar, _| {
            liar.say(&Message::Stays(Failure::new(23, String::new())));
        }),
        lie("more names than a message may have", "too many names", |liar, _| {
            liar.say(&Message::Removed { paths: vec![vec![b'x'; 4096]; 5] });
        }),
        lie("names without bytes, without end", "too many names", |liar, _| {
            liar.say(&Message::Removed { paths: vec![Vec::new(); 60_000] });
        }),
        lie("what only senders say", "a message out of turn", |liar, _| {
            liar.say(&Message::Keep { blocks: 1 })
        }),
        lie("entries of its own", "a message out of turn", |liar, _| {
            liar.say(&Message::Layout { single: true })
        }),
        lie("a question of its own", "something that only senders say", |liar, _| {
            liar.tell(|output| output.differ(&question()))
        }),
        lie("data of its own", "something that only senders say", |liar, _| {
            liar.tell(|output| output.data(0, &[1], &[&[1; 4096]]))
        }),
        lie("a hash that nobody asked for", "a message out of turn", |liar, _| {
            liar.say(&Message::Digest { root: [0; 32] })
        }),
        lie("maps without end of a file that is through", "a map without an end", |liar, files| {
            liar.say(&Message::NoBasis { id: files[0], device: false });
            liar.hear(|message| matches!(message, Message::Finish { .. }));
            (0..2000).for_each(|_| keys(liar, files[0], 4096));
        }),
    ];
    let memory = peak_memory();
    for Lie { lie, why, script } in lies {
        let ended = tell(lie, options(Commit::Auto), script);
        assert!(is_protocol_error(&ended), "{lie}: {ended:?}");
        let error = ended.unwrap_err().to_string();
        assert!(error.contains(why), "{lie}: {error}");
    }
    assert!(peak_memory() < memory + MEMORY);
}

fn question() -> holesync::protocol::Differ {
    holesync::protocol::Differ { first: 0, hashes: vec![[0; 32]] }
}

#[test]
fn answers_to_nobody_cost_nothing() {
    let ended = tell("answers to nobody", options(Commit::Auto), |liar, files| {
        for id in [77, u64::MAX] {
            liar.say(&Message::Done { id, changed: Some(u64::MAX), changes: Changes::default() });
            liar.say(&Message::Again { id });
        }
        liar.say(&Message::Busy(holesync::report::Phase::WritingBack));
        files.iter().for_each(|&id| liar.say(&Message::Unchanged { id, changes: Changes::default() }));
        liar.hear(|message| matches!(message, Message::End(_)));
        liar.say(&Message::End(Box::new(Stats {
            files_sent: u64::MAX,
            written_bytes: u64::MAX,
            ..Stats::default()
        })));
    });
    let stats = ended.unwrap();
    assert_eq!((stats.files_failed, stats.files_sent), (0, 0), "{stats:?}");
}

#[test]
fn a_receiver_that_wants_everything_and_reads_nothing_costs_no_memory() {
    if !is_alone() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let file = std::fs::File::create(&source).unwrap();
    std::io::copy(&mut io::Read::take(io::repeat(7), 512 << 20), &mut { file }).unwrap();
    let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
    let memory = peak_memory();
    let sent = start_sender(back.0, forth.1, source, options(Commit::Auto));
    let mut input = FrameReader::new(forth.0, "the sender");
    let is_entry = |frame| matches!(frame, Frame::Message(Message::Entry(_)));
    while !is_entry(input.read().unwrap()) {}
    let wish = Message::NoBasis { id: 0, device: false };
    let mut output = FrameWriter::new(back.1, "the sender");
    output.message(&wish).and_then(|()| output.flush()).unwrap();
    // It goes on until the pipe is full, and the queues behind it.
    sent.recv_timeout(std::time::Duration::from_secs(2)).expect_err("it waits for a reader");
    assert!(peak_memory() < memory + MEMORY);
    drop((input, output));
    let error = wait(&sent, "sender", "unread").unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error}");
}
