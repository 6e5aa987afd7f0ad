//! Web servers that lie: a list, each lie with what is told of it. Whatever they say, what was told is
//! what stands at that place of the object, and no lie ends well.

use std::io::{Result, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::Duration;

use holesync::store::objects::{Web, WebOptions};

use super::server::{Server, close, part_head, range, right};
use super::web::{LENGTH, data, options, read, read_whole};
use crate::support::count;

/// What is read: a range, then the whole.
const END: u64 = 100_000;

/// The exit code where a server is too slow.
const SLOW: u8 = 30;

/// A way to lie: how a range is answered, how the whole is, and what a message says of each; empty: that
/// is no lie there.
struct Lie {
    name: &'static str,
    answer: fn(usize, &str, &mut TcpStream) -> Result<()>,
    range: &'static str,
    whole: &'static str,
    code: u8,
}

fn say(stream: &mut TcpStream, head: &str, body: &[u8]) -> Result<()> {
    stream.write_all(format!("HTTP/1.1 {head}\r\n\r\n").as_bytes())?;
    stream.write_all(body)
}

fn part(stream: &mut TcpStream, content_range: &str, more: &str, body: &[u8]) -> Result<()> {
    let head = format!("206 Partial Content\r\nETag: \"one\"\r\nContent-Range: {content_range}{more}");
    say(stream, &format!("{head}\r\nContent-Length: {}", body.len()), body)
}

fn endless(stream: &mut TcpStream, piece: &[u8], pause: u64) -> Result<()> {
    loop {
        stream.write_all(piece)?;
        sleep(Duration::from_millis(pause));
    }
}

/// What was asked for, of the data; all of it.
fn asked(head: &str) -> Vec<u8> {
    range(head).map_or_else(data, |range| data()[range].to_vec())
}

/// The head of the right answer.
fn right_head(head: &str, length: usize) -> String {
    match range(head) {
        Some(range) => part_head(&data(), &range, "\"one\""),
        None => format!("HTTP/1.1 200 OK\r\nETag: \"one\"\r\nContent-Length: {length}\r\n\r\n"),
    }
}

/// Half of the data, then the end of the connection.
fn half(etag: &str, head: &str, stream: &mut TcpStream) -> Result<()> {
    let text = right_head(head, LENGTH).replace("\"one\"", etag);
    stream.write_all(text.as_bytes())?;
    stream.write_all(&asked(head)[..50_000])?;
    close(stream, "")
}

const LIES: &[Lie] = &[
    Lie {
        name: "a body that always ends too early",
        answer: |_, head, stream| {
            stream.write_all(right_head(head, LENGTH).as_bytes())?;
            stream.write_all(&asked(head)[..10])?;
            close(stream, "")
        },
        range: "closed the connection too early, 3 times in a row",
        whole: "closed the connection too early, 3 times in a row",
        code: 10,
    },
    Lie {
        name: "a body without a length that always ends too early",
        answer: |_, head, stream| {
            let head = right_head(head, LENGTH).replace("Content-Length", "X-Length");
            stream.write_all(head.as_bytes())?;
            close(stream, "")
        },
        range: "bytes early, 3 times in a row",
        whole: "bytes early, 3 times in a row",
        code: 10,
    },
    Lie {
        name: "another part than that asked for",
        answer: |_, _, stream| part(stream, "bytes 10-100009/300000", "", &data()[10..100_010]),
        range: "\"bytes 10-100009/300000\" where bytes=0-99999",
        whole: "a part to who asked for all",
        code: 12,
    },
    Lie {
        name: "a longer part than that asked for",
        answer: |_, _, stream| part(stream, "bytes 0-100000/300000", "", &data()[..100_001]),
        range: "\"bytes 0-100000/300000\" where",
        whole: "",
        code: 12,
    },
    Lie {
        name: "a part that ends beyond its object",
        answer: |_, _, stream| part(stream, "bytes 0-99999/99999", "", &data()[..100_000]),
        range: "\"bytes 0-99999/99999\" where",
        whole: "",
        code: 12,
    },
    Lie {
        name: "a part of a size that no object has",
        answer: |_, _, stream| part(stream, "bytes 0-18446744073709551615/*", "", b""),
        range: "\"bytes 0-18446744073709551615/*\" where",
        whole: "",
        code: 12,
    },
    Lie {
        name: "no Content-Range",
        answer: |_, head, stream| say(stream, "206 Partial Content\r\nContent-Length: 100000", &asked(head)),
        range: "has no Content-Range",
        whole: "",
        code: 12,
    },
    Lie {
        name: "parts of parts",
        answer: |_, _, stream| {
            let head =
                "206 Partial Content\r\nContent-Type: multipart/byteranges; boundary=x\r\nContent-Length: 5";
            say(stream, head, b"--x--")
        },
        range: "has no Content-Range",
        whole: "",
        code: 12,
    },
    Lie {
        name: "a Content-Length that is not that of the part",
        answer: |_, _, stream| {
            let head = "206 Partial Content\r\nContent-Range: bytes 0-99999/300000\r\nContent-Length: 300000";
            say(stream, head, &data())
        },
        range: "and another Content-Length",
        whole: "",
        code: 12,
    },
    Lie {
        name: "a body that goes on beyond its end",
        answer: |_, head, stream| {
            let head = right_head(head, LENGTH).replace("Content-Length", "X-Length").replace("/1.1", "/1.0");
            stream.write_all(head.as_bytes())?;
            stream.write_all(&data())?;
            endless(stream, &[7; 4096], 0)
        },
        range: "goes on beyond its end",
        whole: "goes on beyond its end",
        code: 12,
    },
    Lie {
        name: "chunks that go on beyond their end",
        answer: |_, head, stream| {
            let head =
                right_head(head, LENGTH).replace("Content-Length", "Transfer-Encoding: chunked\r\nX-Length");
            stream.write_all(head.as_bytes())?;
            loop {
                stream.write_all(format!("{:x}\r\n", LENGTH).as_bytes())?;
                stream.write_all(&data())?;
                stream.write_all(b"\r\n")?;
            }
        },
        range: "goes on beyond its end",
        whole: "goes on beyond its end",
        code: 12,
    },
    Lie {
        name: "chunks that are none",
        answer: |_, head, stream| {
            let head =
                right_head(head, LENGTH).replace("Content-Length", "Transfer-Encoding: chunked\r\nX-Length");
            stream.write_all(head.as_bytes())?;
            close(stream, "zzz\r\nzzz\r\n")
        },
        range: "the body is broken",
        whole: "the body is broken",
        code: 10,
    },
    Lie {
        name: "a chunk without an end of its size",
        answer: |_, head, stream| {
            let head =
                right_head(head, LENGTH).replace("Content-Length", "Transfer-Encoding: chunked\r\nX-Length");
            stream.write_all(head.as_bytes())?;
            endless(stream, &[b'1'; 4096], 0)
        },
        range: "3 times in a row",
        whole: "3 times in a row",
        code: 10,
    },
    Lie {
        name: "another ETag in the middle",
        answer: |number, head, stream| match number % 2 {
            0 => half("\"one\"", head, stream),
            _ => half("\"two\"", head, stream),
        },
        range: "its ETag was \"one\" and is \"two\"",
        whole: "its ETag was \"one\" and is \"two\"",
        code: 23,
    },
    Lie {
        name: "an ETag that goes away in the middle",
        answer: |number, head, stream| match number % 2 {
            0 => half("\"one\"", head, stream),
            _ => half("W/\"one\"", head, stream),
        },
        range: "its ETag was \"one\" and is gone",
        whole: "its ETag was \"one\" and is gone",
        code: 23,
    },
    Lie {
        name: "another time in the middle",
        answer: |number, head, stream| {
            let text =
                right_head(head, LENGTH).replace("ETag: \"one\"", &format!("Last-Modified: {}", number % 2));
            stream.write_all(text.as_bytes())?;
            stream.write_all(&asked(head)[..50_000])?;
            close(stream, "")
        },
        range: "its Last-Modified was 0 and is 1",
        whole: "its Last-Modified was 0 and is 1",
        code: 23,
    },
    Lie {
        name: "another length in the middle",
        answer: |number, head, stream| {
            let text = right_head(head, LENGTH).replace("ETag: \"one\"\r\n", "");
            let text = text.replace("/300000", if number % 2 == 0 { "/300000" } else { "/300001" });
            stream.write_all(text.as_bytes())?;
            stream.write_all(&asked(head)[..50_000])?;
            close(stream, "")
        },
        range: "its length was 300000 and is 300001",
        whole: "its length was 300000 and is 300001",
        code: 23,
    },
    Lie {
        name: "ranges that are over in the middle",
        answer: |number, head, stream| match number % 2 {
            0 => half("\"one\"", head, stream),
            _ => right(&data(), "", stream),
        },
        range: "at byte 50000, and the server gives no ranges",
        whole: "at byte 50000, and the server gives no ranges",
        code: 10,
    },
    Lie {
        name: "an object that is too short",
        answer: |_, head, stream| right(&data()[..70_000], &head.replace("-99999", "-69999"), stream),
        range: "has 70000 bytes, and 100000 were expected",
        whole: "has 70000 bytes, and 300000 were expected",
        code: 23,
    },
    Lie {
        name: "no such range",
        answer: |_, _, stream| say(stream, "416 Range Not Satisfiable\r\nContent-Length: 0", b""),
        range: "has no bytes=0-99999",
        whole: "a part to who asked for all",
        code: 0,
    },
    Lie {
        name: "less than a byte of progress each time",
        answer: |_, head, stream| match range(head) {
            Some(range) => right(
                &data(),
                &head.replace(&format!("-{}", range.end - 1), &format!("-{}", range.start)),
                stream,
            ),
            None => half("\"one\"", head, stream),
        },
        range: "less than is asked for, 3 times in a row",
        whole: "less than is asked for, 3 times in a row",
        code: 10,
    },
    Lie {
        name: "redirects without an end",
        answer: |number, _, stream| {
            say(
                stream,
                &format!("307 Temporary Redirect\r\nLocation: /x{number}?secret\r\nContent-Length: 0"),
                b"",
            )
        },
        range: "redirects without an end",
        whole: "redirects without an end",
        code: 12,
    },
    Lie {
        name: "a redirect to nowhere",
        answer: |_, _, stream| say(stream, "302 Found\r\nContent-Length: 0", b""),
        range: "redirects (302) to no URL",
        whole: "redirects (302) to no URL",
        code: 12,
    },
    Lie {
        name: "a redirect to a file here",
        answer: |_, _, stream| {
            say(stream, "302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0", b"")
        },
        range: "redirects (302) to no URL",
        whole: "redirects (302) to no URL",
        code: 12,
    },
    Lie {
        name: "a redirect with a password of its own",
        answer: |_, _, stream| {
            say(stream, "302 Found\r\nLocation: http://u:p@127.0.0.1/\r\nContent-Length: 0", b"")
        },
        range: "or to one with a password",
        whole: "or to one with a password",
        code: 12,
    },
    Lie {
        name: "compressed",
        answer: |_, head, stream| {
            let head = right_head(head, LENGTH).replace("ETag", "Content-Encoding: gzip\r\nETag");
            stream.write_all(head.as_bytes())?;
            stream.write_all(&data()[..100_000])
        },
        range: "in the encoding gzip, which was not asked for",
        whole: "in the encoding gzip, which was not asked for",
        code: 12,
    },
    Lie {
        name: "a header without an end",
        answer: |_, _, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nX: ")?;
            endless(stream, &[b'x'; 4096], 0)
        },
        range: "the header of its answer is too long",
        whole: "the header of its answer is too long",
        code: 12,
    },
    Lie {
        name: "headers without an end",
        answer: |_, _, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
            endless(stream, b"X: y\r\n", 0)
        },
        range: "bad data",
        whole: "bad data",
        code: 12,
    },
    Lie {
        name: "no HTTP",
        answer: |_, _, stream| close(stream, "SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        range: "is not HTTP",
        whole: "is not HTTP",
        code: 12,
    },
    Lie {
        name: "a body that drips",
        answer: |_, head, stream| {
            stream.write_all(right_head(head, LENGTH).as_bytes())?;
            endless(stream, b"x", 50)
        },
        range: "less than 1000 bytes a second came",
        whole: "less than 1000 bytes a second came",
        code: SLOW,
    },
    Lie {
        name: "a body that does not come",
        answer: |_, head, stream| {
            stream.write_all(right_head(head, LENGTH).as_bytes())?;
            sleep(Duration::from_secs(30));
            close(stream, "")
        },
        range: "less than 1000 bytes a second came",
        whole: "less than 1000 bytes a second came",
        code: SLOW,
    },
    Lie {
        name: "a header that drips",
        answer: |_, _, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nX: ")?;
            endless(stream, b"x", 50)
        },
        range: "there was no answer within 2s",
        whole: "there was no answer within 2s",
        code: SLOW,
    },
    Lie {
        name: "no answer",
        answer: |_, _, stream| {
            sleep(Duration::from_secs(30));
            close(stream, "")
        },
        range: "there was no answer within 2s",
        whole: "there was no answer within 2s",
        code: SLOW,
    },
    Lie {
        name: "answers before the answer, without an end",
        answer: |_, _, stream| endless(stream, b"HTTP/1.1 100 Continue\r\n\r\n", 0),
        range: "the header of its answer is too long",
        whole: "the header of its answer is too long",
        code: 12,
    },
    Lie {
        name: "escape sequences",
        answer: |_, _, stream| part(stream, "bytes \u{1b}[2J/1", "", b""),
        range: "is not HTTP",
        whole: "",
        code: 12,
    },
];

/// A short while for those that are slow, which is enough for a header on a machine that has much to do.
fn impatient() -> WebOptions {
    WebOptions { window: Duration::from_secs(2), least_rate: 1000, ..options() }
}

#[test]
fn no_lie_of_a_web_server_is_believed() {
    let tried: usize = std::thread::scope(|scope| {
        let tests: Vec<_> = LIES.iter().map(|lie| scope.spawn(move || try_lie(lie))).collect();
        tests.into_iter().map(|test| test.join().unwrap()).sum()
    });
    assert_eq!(tried, LIES.iter().map(|lie| 1 + usize::from(!lie.whole.is_empty())).sum::<usize>());
    count(&format!("{tried} lies of web servers, none believed"));
}

fn try_lie(lie: &Lie) -> usize {
    let mut tried = 0;
    for (said, whole) in [(lie.range, false), (lie.whole, true)] {
        if said.is_empty() {
            continue;
        }
        let server = Server::new(lie.answer);
        let options = if lie.code == SLOW { impatient() } else { options() };
        let web = Web::open(&server.url(), &options).unwrap();
        let (told, most, result) = if whole {
            let (told, result) = read_whole(&web, LENGTH as u64);
            (told, LENGTH, result)
        } else {
            let (told, result) = read(&web, 0..END);
            (told, END as usize, result.map(drop))
        };
        let error = result.expect_err(lie.name);
        let message = error.to_string();
        assert!(message.contains(said), "{}: {message}", lie.name);
        assert!(message.contains(&format!("127.0.0.1:{}/", server.port())), "{}: {message}", lie.name);
        assert!(!message.contains('\u{1b}') && !message.contains("secret"), "{}: {message}", lie.name);
        assert!(lie.code == 0 || error.exit_code() == lie.code, "{}: {message}", lie.name);
        assert!(
            told.len() <= most && (told == data()[..told.len()] || told.iter().all(|byte| *byte == b'x')),
            "{}",
            lie.name
        );
        tried += 1;
    }
    tried
}
