//! Initiators that lie to an agent.

use std::io;
use std::path::Path;

use holesync::confinement::Confinement;
use holesync::error::{Error, Result};
use holesync::hashmap::{Hash, hash_block};
use holesync::protocol::{
    Differ, Frame, FrameReader, ImageMessage, MAGIC, MAX_NOISE, Message, OLDEST, Request, VERSION,
};
use holesync::sync;

use super::{Liar, MEMORY, is_alone, peak_memory};
use crate::roles::{start, wait};

/// How an agent ends that hears this and then nothing, and what it says.
fn tell(what: &str, script: impl FnOnce(&mut Liar)) -> (Result<()>, Result<Frame>) {
    let (forth, back) = (io::pipe().unwrap(), io::pipe().unwrap());
    let ended = start(move || sync::serve(forth.0, back.1, 0o022, &Confinement::default()));
    let mut answers = FrameReader::new(back.0, "the agent");
    answers.await_greeting(0).unwrap();
    // What it hears is read here.
    let mut liar = Liar::new(io::pipe().unwrap().0, forth.1);
    script(&mut liar);
    // It stays connected: the agent ends by itself.
    let ended = wait(&ended, "agent", what);
    (ended, answers.read())
}

fn greet(liar: &mut Liar) {
    liar.bytes(&[&MAGIC[..], &OLDEST.to_le_bytes(), &VERSION.to_le_bytes(), &[0; 4]].concat());
}

/// The bytes of a request, the options in it changed by `lie`.
fn request(lie: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let request = Request::Digest { paths: vec![b"/etc/hostname".to_vec().into()] };
    let mut bytes = postcard::to_stdvec(&Message::Start(Box::default(), request, None)).unwrap();
    lie(&mut bytes);
    bytes
}

/// Where the block size of 64 KiB stands in a request.
fn block_size(bytes: &[u8]) -> usize {
    let size = postcard::to_stdvec(&(64u32 << 10)).unwrap();
    bytes.windows(size.len()).position(|window| window == size).unwrap()
}

struct Lie {
    lie: &'static str,
    script: fn(&mut Liar),
}

fn lie(lie: &'static str, script: fn(&mut Liar)) -> Lie {
    Lie { lie, script }
}

#[test]
fn a_lying_initiator_ends_its_session() {
    if !is_alone() {
        return;
    }
    let lies = [
        lie("noise without end before its greeting", |liar| liar.bytes(&vec![b'x'; 2 * MAX_NOISE])),
        lie("a version that nobody speaks", |liar| {
            liar.bytes(&[&MAGIC[..], &[0xff; 4], &[0; 4]].concat());
        }),
        lie("a version of nothing", |liar| liar.bytes(&[&MAGIC[..], &[0; 4], &[0; 4]].concat())),
        lie("something else than a request", |liar| {
            greet(liar);
            liar.say(&Message::Layout { single: true });
        }),
        lie("a request of an unknown kind", |liar| {
            greet(liar);
            liar.frame(
                1,
                &request(|bytes| {
                    let kind = bytes.len() - 16;
                    bytes[kind..].fill(0x7f);
                }),
            );
        }),
        lie("a block size that is no power of two", |liar| {
            greet(liar);
            liar.frame(
                1,
                &request(|bytes| {
                    let at = block_size(bytes);
                    bytes[at] |= 1;
                }),
            );
        }),
        lie("a block of four GiB", |liar| {
            greet(liar);
            liar.frame(
                1,
                &request(|bytes| {
                    let at = block_size(bytes);
                    bytes.splice(at..at + 3, [0x80, 0x80, 0x80, 0x80, 8]);
                }),
            );
        }),
        lie("a request that is cut off", |liar| {
            greet(liar);
            liar.frame(1, &request(|bytes| bytes.truncate(12)));
        }),
        lie("more sources than a request may have", |liar| {
            greet(liar);
            let sources = vec![b"/etc/hostname".to_vec().into(); 1025];
            liar.say(&Message::Start(Box::default(), Request::Send { sources, listed: false }, None));
        }),
        lie("a decision before anything is prepared", |liar| {
            greet(liar);
            let destination = b"/nowhere/image".to_vec().into();
            liar.say(&Message::Start(
                Box::default(),
                Request::Together { destination, directory: false, run: [1; 16] },
                None,
            ));
            liar.say(&Message::Commit);
        }),
        lie("a decision that was not to be waited for", |liar| {
            greet(liar);
            let destination = b"/nowhere/image".to_vec().into();
            liar.say(&Message::Start(
                Box::default(),
                Request::Receive { destination, directory: false },
                None,
            ));
            liar.say(&Message::Commit);
        }),
        lie("data in the place of a request", |liar| {
            greet(liar);
            liar.tell(|output| output.data(0, &[1], &[&[1; 4096]]));
        }),
    ];
    let memory = peak_memory();
    for Lie { lie, script } in lies {
        let (ended, said) = tell(lie, script);
        let error = ended.unwrap_err();
        let refused = matches!(error.exit_code(), 2 | 5 | 12);
        assert!(refused, "{lie}: {error}");
        assert!(matches!(said, Err(Error::Remote { .. } | Error::Closed { .. })), "{lie}: {said:?}");
    }
    assert!(peak_memory() < memory + MEMORY);
}

#[test]
fn a_request_without_a_lie_is_answered() {
    let (ended, said) = tell("no lie", |liar| {
        greet(liar);
        liar.frame(1, &request(|_| ()));
    });
    ended.unwrap();
    assert!(matches!(said, Ok(Frame::Message(Message::Digest { .. }))), "{said:?}");
}

/// An image onto a file that is there.
fn image(liar: &mut Liar, path: &Path, script: fn(&mut Liar)) {
    greet(liar);
    let destination = path.into();
    liar.say(&Message::Start(Box::default(), Request::Image { destination }, None));
    script(liar);
}

/// A block that the old file lacks.
fn ask(liar: &mut Liar, first: u64, hash: Hash) {
    liar.tell(|output| output.differ(&Differ { first, hashes: vec![hash] }));
}

fn length(liar: &mut Liar, bytes: u64) {
    liar.say(&Message::Image(ImageMessage::Length(bytes)));
}

#[test]
fn an_image_with_a_lie_in_it_leaves_the_old_file() {
    let lies = [
        lie("data that was not asked for", |liar| liar.tell(|output| output.data(0, &[1], &[&[1; 4096]]))),
        lie("a block with another hash", |liar| {
            ask(liar, 3, [1; 32]);
            liar.tell(|output| output.data(3, &[1], &[&[1; 4096]]));
        }),
        lie("another block than was asked for", |liar| {
            ask(liar, 3, [1; 32]);
            liar.tell(|output| output.data(4, &[1], &[&[1; 4096]]));
        }),
        lie("a page beyond the end", |liar| {
            length(liar, 4096);
            ask(liar, 0, hash_block(2, [&[1; 4096][..]].into_iter()));
            liar.tell(|output| output.data(0, &[2], &[&[1; 4096]]));
        }),
        lie("blocks that go back", |liar| {
            ask(liar, 3, [1; 32]);
            ask(liar, 2, [1; 32]);
        }),
        lie("a block beyond the largest file", |liar| ask(liar, u64::MAX, [1; 32])),
        lie("a block beyond the end", |liar| {
            length(liar, 65_536);
            ask(liar, 1, [1; 32]);
        }),
        lie("a length before what came", |liar| {
            ask(liar, 3, [1; 32]);
            length(liar, 65_536);
        }),
        lie("two lengths", |liar| (0..2).for_each(|_| length(liar, 65_536))),
        lie("a length that no file has", |liar| length(liar, u64::MAX)),
        lie("an end without a length", |liar| liar.say(&Message::End(Box::default()))),
        lie("an end before what was asked for", |liar| {
            ask(liar, 0, [1; 32]);
            length(liar, 65_536);
            liar.say(&Message::End(Box::default()));
        }),
        lie("an entry", |liar| liar.say(&Message::Layout { single: true })),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, [7; 300_000]).unwrap();
    for Lie { lie, script } in lies {
        let (ended, said) = tell(lie, |liar| image(liar, &path, script));
        assert!(ended.is_err(), "{lie}");
        let opened = Message::Image(ImageMessage::Opened { device: false });
        assert_eq!(said.unwrap(), Frame::Message(opened), "{lie}");
        assert!(std::fs::read(&path).unwrap() == [7; 300_000], "{lie}");
    }
    let (ended, _) = tell("no lie", |liar| {
        image(liar, &path, |liar| {
            ask(liar, 2, hash_block(1, [&[1; 4096][..]].into_iter()));
            liar.tell(|output| output.data(2, &[1], &[&[1; 4096]]));
            length(liar, 200_000);
            liar.say(&Message::End(Box::default()));
        });
    });
    ended.unwrap();
    let mut image = vec![0; 200_000];
    image[131_072..135_168].fill(1);
    assert!(std::fs::read(&path).unwrap() == image);
}
