//! Answers of web servers that are damaged somewhere: nothing panics, nothing hangs, and what ends well
//! has told as much as was asked for.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holesync::store::objects::{Objects, Served, Web, WebOptions};
use proptest::prelude::*;

use super::server::{Server, close};
use super::web::options;

const HEADS: [&str; 6] = [
    "HTTP/1.1 206 Partial Content\r\nETag: \"a\"\r\nContent-Range: bytes 5-24/100\r\nContent-Length: 20\r\n\r\n",
    "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-24/*\r\nTransfer-Encoding: chunked\r\n\r\n14\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 20\r\nConnection: close\r\n\r\n",
    "HTTP/1.0 200 OK\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n",
    "HTTP/1.1 302 Found\r\nLocation: //127.0.0.1:1/x/../y?z#a\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 503 Busy\r\nRetry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 20\r\n\r\n",
];
const BODY: &[u8] = b"\r\n0123456789abcdef\r\n0\r\n\r\n";

/// A place, how many bytes go there, and which come.
fn damage() -> impl Strategy<Value = (usize, usize, Vec<u8>)> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..4),
        prop::sample::select(vec![
            "\r\n",
            "\r\n\r\n",
            ":",
            " ",
            "-",
            "/",
            "18446744073709551615",
            "9",
            "100",
            "-1",
            "\u{0}"
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    (0..200usize, 0..6usize, bytes)
}

#[test]
fn damaged_answers_end_in_an_error_or_in_all_that_was_asked_for() {
    let next = Arc::new(Mutex::new(Vec::new()));
    let answer = Arc::clone(&next);
    let server = Server::new(move |_, _, stream| {
        let bytes = answer.lock().unwrap().clone();
        stream.write_all(&bytes)?;
        close(stream, "")
    });
    let window = Duration::from_millis(500);
    let options = WebOptions { retries: 1, window, connect: window, ..options() };
    let strategy = (0..HEADS.len(), prop::collection::vec(damage(), 0..3));
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |((head, damages) in strategy)| {
        let mut bytes = [HEADS[head].as_bytes(), BODY].concat();
        for (at, gone, come) in damages {
            let at = at.min(bytes.len());
            let end = (at + gone).min(bytes.len());
            bytes.splice(at..end, come);
        }
        *next.lock().unwrap() = bytes;
        let web = Web::open(&server.url(), &options).unwrap();
        let mut told = 0;
        let read = web.read("x", 5..25, &mut |bytes| {
            told += bytes.len();
            Ok(())
        });
        prop_assert!(told <= 20);
        match read {
            Ok(Served::Range) => prop_assert_eq!(told, 20),
            Ok(Served::WholeOnly) => prop_assert_eq!(told, 0),
            Err(error) => prop_assert!(error.to_string().contains("http://")),
        }
        let mut told = 0;
        let read = web.read_whole("y", 20, &mut |bytes| {
            told += bytes.len();
            Ok(())
        });
        prop_assert!(read.map_or(told <= 20, |()| told == 20));
        let got = web.get("z", 30);
        prop_assert!(got.map_or(true, |got| got.is_none_or(|bytes| bytes.len() <= 30)));
    });
}
