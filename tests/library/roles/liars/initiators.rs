//! Initiators that lie to an agent.

use std::io;

use holesync::confinement::Confinement;
use holesync::error::{Error, Result};
use holesync::protocol::{Frame, FrameReader, MAGIC, MAX_NOISE, Message, OLDEST, Request, VERSION};
use holesync::sync;

use super::{Liar, MEMORY, peak_memory};
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
