//! Objects of web servers that are right, that fail for a moment, and that lie.

use std::io::Write;
use std::net::TcpStream;
use std::ops::Range;
use std::time::Duration;

use holesync::error::{Error, Result};
use holesync::store::objects::{Credentials, Objects, Proxies, Served, Web, WebOptions};

use super::server::{Server, close, header, part_head, range, right};
use crate::support::ends;

/// Bytes of the object.
pub const LENGTH: usize = 300_000;

pub fn data() -> Vec<u8> {
    (0..LENGTH as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

/// Pauses that no test waits for.
pub fn options() -> WebOptions {
    WebOptions {
        retries: 2,
        backoff: Duration::from_millis(2),
        longest_wait: Duration::from_millis(20),
        ..WebOptions::default()
    }
}

fn web(server: &Server) -> Web {
    Web::open(&server.url(), &options()).unwrap()
}

/// Reads a range: what was told, and how it ended.
pub fn read(web: &Web, range: Range<u64>) -> (Vec<u8>, Result<Served>) {
    let mut told = Vec::new();
    let read = web.read("a b", range, &mut |bytes| {
        told.extend(bytes);
        Ok(())
    });
    (told, read)
}

pub fn read_whole(web: &Web, length: u64) -> (Vec<u8>, Result<()>) {
    let mut told = Vec::new();
    let read = web.read_whole("a b", length, &mut |bytes| {
        told.extend(bytes);
        Ok(())
    });
    (told, read)
}

/// A server that serves [`data`], with other answers to the first requests.
fn after(
    first: impl Fn(usize, &str, &mut TcpStream) -> Option<std::io::Result<()>> + Send + Sync + 'static,
) -> Server {
    let data = data();
    Server::new(move |number, head, stream| {
        first(number, head, stream).unwrap_or_else(|| right(&data, head, stream))
    })
}

/// A part of the body alone, and no more.
fn broken(head: &str, stream: &mut TcpStream, bytes: usize) -> std::io::Result<()> {
    let data = data();
    let text = range(head).map_or_else(
        || format!("HTTP/1.1 200 OK\r\nETag: \"one\"\r\nContent-Length: {LENGTH}\r\n\r\n"),
        |range| part_head(&data, &range, "\"one\""),
    );
    stream.write_all(text.as_bytes())?;
    let start = range(head).map_or(0, |range| range.start);
    stream.write_all(&data[start..start + bytes])?;
    close(stream, "")
}

#[test]
fn ranges_and_whole_objects_come_over_one_connection() {
    let server = after(|_, _, _| None);
    let web = web(&server);
    for range in [0..10, 5..70_000, 299_999..300_000, 7..7] {
        let (told, read) = read(&web, range.clone());
        assert_eq!(read.unwrap(), Served::Range);
        assert!(told == data()[range.start as usize..range.end as usize], "{range:?}");
    }
    let (told, whole) = read_whole(&web, LENGTH as u64);
    whole.unwrap();
    assert!(told == data());
    assert!(web.get("a b", LENGTH as u64).unwrap().unwrap() == data());
    assert_eq!(web.address("a b"), format!("{}/a%20b", server.url()));
    assert_eq!(server.connections(), 1);
    for head in server.heads() {
        assert!(head.starts_with("GET /store/a%20b HTTP/1.1\r\n"), "{head}");
        assert_eq!(header(&head, "accept-encoding"), Some("identity"));
        assert_eq!(header(&head, "user-agent"), Some(concat!("holesync/", env!("CARGO_PKG_VERSION"))));
        assert_eq!(header(&head, "authorization"), None);
    }
    let traffic = web.traffic();
    assert_eq!((traffic.requests, traffic.bytes), (5, 10 + 69_995 + 1 + 2 * LENGTH as u64));
    assert!(traffic.received > traffic.bytes && traffic.received < traffic.bytes + 1500, "{traffic:?}");
    assert_eq!(traffic.sent, server.heads().iter().map(|head| head.len() as u64).sum::<u64>());
}

#[test]
fn a_dozen_threads_ask_at_once() {
    let server = after(|_, _, _| None);
    let web = web(&server);
    std::thread::scope(|scope| {
        for thread in 0..12 {
            let web = &web;
            scope.spawn(move || {
                for part in 0..10 {
                    let start = (thread * 10 + part) * 2500;
                    let (told, read) = read(web, start..start + 2500);
                    assert_eq!(read.unwrap(), Served::Range);
                    assert!(told == data()[start as usize..start as usize + 2500]);
                }
            });
        }
    });
    assert_eq!(web.traffic().requests, 120);
    assert!(server.connections() <= 12, "{}", server.connections());
}

#[test]
fn a_broken_body_goes_on_from_the_byte() {
    let server = after(|number, head, stream| match number {
        0 => Some(broken(head, stream, 1000)),
        1 => Some(broken(head, stream, 0)),
        2 => Some(close(stream, "")),
        // Much came: the next failure is a first one again.
        3 => Some(broken(head, stream, 100_000)),
        4 => Some(broken(head, stream, 7)),
        _ => None,
    });
    let options = WebOptions { retries: 3, ..options() };
    let web = Web::open(&server.url(), &options).unwrap();
    let (told, read) = read(&web, 10..LENGTH as u64);
    assert_eq!(read.unwrap(), Served::Range);
    assert!(told == data()[10..]);
    let starts: Vec<_> = server.ranges().into_iter().map(|range| range.unwrap()).collect();
    assert!(starts.iter().all(|range| range.end == LENGTH));
    let starts: Vec<_> = starts.iter().map(|range| range.start).collect();
    assert_eq!(starts, [10, 1010, 1010, 1010, 101_010, 101_017]);
}

#[test]
fn a_whole_object_that_breaks_goes_on_by_ranges() {
    let server = after(|number, head, stream| (number < 2).then(|| broken(head, stream, number * 500)));
    let (told, read) = read_whole(&web(&server), LENGTH as u64);
    read.unwrap();
    assert!(told == data());
    assert_eq!(server.ranges(), [None, None, Some(500..LENGTH)]);
    // Nothing was told twice where it has none.
    let without = Server::new(|_, _, stream| broken("", stream, 500));
    let (told, read) = read_whole(&web(&without), LENGTH as u64);
    let error = read.unwrap_err().to_string();
    assert!(error.contains("at byte 500") && error.contains(&without.url()), "{error}");
    assert_eq!((told.len(), without.heads().len()), (500, 2));
}

#[test]
fn a_server_without_ranges_says_so() {
    let server = Server::new(|_, _, stream| right(&data(), "", stream));
    let web = web(&server);
    let (told, read) = read(&web, 10..20);
    assert_eq!((told.len(), read.unwrap()), (0, Served::WholeOnly));
    assert!(read_whole(&web, LENGTH as u64).0 == data());
}

#[test]
fn the_front_of_an_object_of_a_length_that_is_not_told_is_had() {
    let server = after(|_, _, stream| {
        let body = [b"493E0\r\n", data().as_slice(), b"\r\n0\r\n\r\n"].concat();
        let head = b"HTTP/1.1 200 OK\r\nETag: \"one\"\r\nTransfer-Encoding: chunked\r\n\r\n";
        Some(stream.write_all(head).and_then(|()| stream.write_all(&body)))
    });
    let web = web(&server);
    let mut told = Vec::<u8>::new();
    let mut take = |bytes: &[u8]| {
        told.extend(bytes);
        Ok(())
    };
    web.read_front("a b", 100_000, &mut take).unwrap();
    assert_eq!(told, data()[..100_000]);
    read_whole(&web, LENGTH as u64).1.unwrap();
    assert_eq!(read_whole(&web, 100_000).1.unwrap_err().exit_code(), 12);
}

#[test]
fn a_server_that_is_busy_is_asked_again() {
    for answer in [
        "503 Service Unavailable\r\nContent-Length: 3\r\n\r\nno\n",
        "429 Too Many Requests\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n",
        "500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
        "502 Bad Gateway\r\nRetry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n",
    ] {
        let server = after(move |number, _, stream| {
            (number < 2).then(|| stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()))
        });
        let (told, read) = read(&web(&server), 0..5);
        assert_eq!(read.unwrap(), Served::Range);
        assert_eq!(
            (told, server.heads().len(), server.connections()),
            (data()[..5].to_vec(), 3, 1),
            "{answer}"
        );
        let server =
            after(move |_, _, stream| Some(stream.write_all(format!("HTTP/1.1 {answer}").as_bytes())));
        for error in [web(&server).get("a b", 9).unwrap_err(), self::read(&web(&server), 0..5).1.unwrap_err()]
        {
            assert_eq!(error.exit_code(), 10);
            let said = error.to_string();
            let parts = [&answer[..15], "3 times", &server.url(), "run the same command again"];
            assert!(parts.iter().all(|part| said.contains(part)), "{said}");
        }
        assert_eq!(server.heads().len(), 6);
    }
}

#[test]
fn a_server_that_is_not_there_is_tried_again_and_named() {
    let server = after(|_, _, _| None);
    let url = server.url();
    let port = server.port();
    drop(server);
    let error = Web::open(&url, &options()).unwrap().get("x", 9).unwrap_err();
    assert_eq!(error.exit_code(), 10);
    let said = error.to_string();
    assert!(said.contains(&format!("{port}/store/x")) && said.contains("3 times"), "{said}");
    let nowhere = Web::open("http://no-such-host.invalid/x", &options()).unwrap();
    let said = nowhere.get("x", 9).unwrap_err().to_string();
    assert!(said.contains("no host of this name") && !said.contains("times"), "{said}");
    assert_eq!(nowhere.traffic().requests, 1);
}

#[test]
fn what_is_not_there_or_not_allowed_is_told_from_failures() {
    let server = Server::new(|_, head, stream| {
        let status = head.split(['/', ' ']).nth(3).unwrap();
        stream.write_all(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").as_bytes())
    });
    let web = web(&server);
    for missing in ["404", "410"] {
        assert_eq!(web.get(missing, 9).unwrap(), None);
        let error = web.read(missing, 0..9, &mut |_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }) && error.to_string().contains("not there"), "{error}");
    }
    for (status, part) in [
        ("401", ".netrc"),
        ("403", "HOLESYNC_TOKEN"),
        ("407", "http_proxy"),
        ("400", "400"),
        ("204", "204"),
        ("304", "304"),
    ] {
        for error in [
            web.get(status, 9).unwrap_err(),
            web.read(status, 0..9, &mut |_| Ok(())).unwrap_err(),
            web.read_whole(status, 9, &mut |_| Ok(())).unwrap_err(),
        ] {
            let said = error.to_string();
            assert!(matches!(error, Error::Refused { .. }), "{said}");
            assert!(said.contains(part) && said.contains(&format!("{}/{status}", server.url())), "{said}");
        }
    }
    assert_eq!(web.traffic().requests, 4 + 18);
}

#[test]
fn redirects_are_followed_and_credentials_stay_at_home() {
    let other = after(|_, _, _| None);
    let elsewhere = other.url();
    let home = after(move |number, _, stream| {
        let to = ["/store/b", "../c?d=secret", elsewhere.as_str()][number.min(2)];
        let body = "x".repeat(100);
        Some(stream.write_all(
            format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 100\r\n\r\n{body}").as_bytes(),
        ))
    });
    let credentials = Credentials::Password { user: "u".into(), password: "sesame".into() };
    let options = WebOptions { credentials: Some(credentials), ..options() };
    let web = Web::open(&home.url(), &options).unwrap();
    let (told, read) = read(&web, 5..9);
    assert_eq!((read.unwrap(), told), (Served::Range, data()[5..9].to_vec()));
    let heads = home.heads();
    let lines: Vec<_> = heads.iter().map(|head| head.lines().next().unwrap()).collect();
    assert_eq!(lines, ["GET /store/a%20b HTTP/1.1", "GET /store/b HTTP/1.1", "GET /c?d=secret HTTP/1.1"]);
    for head in heads {
        assert_eq!(header(&head, "authorization"), Some("Basic dTpzZXNhbWU="));
    }
    assert_eq!(home.connections(), 1);
    let [head] = &other.heads()[..] else { panic!("one request") };
    assert_eq!((header(head, "authorization"), range(head)), (None, Some(5..9)));
}

#[test]
fn mirrors_have_an_object_of_one_length_each_with_its_own_etag() {
    let mirror = |etag: &'static str, more: usize| {
        Server::new(move |_, head, stream| {
            let data = vec![7; LENGTH + more];
            let range = range(head).unwrap();
            stream.write_all(part_head(&data, &range, etag).as_bytes())?;
            stream.write_all(&data[range])
        })
    };
    let mirrors = [mirror("\"a\"", 0), mirror("\"b\"", 0), mirror("\"c\"", 1)];
    let urls = [0, 1, 1, 2].map(|at: usize| mirrors[at].url());
    let home = after(move |number, _, stream| {
        let to = &urls[number];
        let head = format!("HTTP/1.1 307 There\r\nLocation: {to}/x\r\nContent-Length: 0\r\n\r\n");
        Some(stream.write_all(head.as_bytes()))
    });
    let web = web(&home);
    for start in [0, 10, 20] {
        assert_eq!(read(&web, start..start + 10).0, [7; 10]);
    }
    let said = read(&web, 30..40).1.unwrap_err().to_string();
    assert!(said.contains(&mirrors[2].url()) && said.contains("was 300000 and is 300001"), "{said}");
}

#[test]
fn a_token_or_an_entry_of_a_netrc_is_told_to_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let netrc = dir.path().join("netrc");
    std::fs::write(&netrc, "machine 127.0.0.1\nlogin u\npassword p\n").unwrap();
    let server = after(|_, _, _| None);
    let with = |credentials, netrc| {
        let web = Web::open(&server.url(), &WebOptions { credentials, netrc, ..options() }).unwrap();
        web.get("x", LENGTH as u64).unwrap();
        let head = server.heads().pop().unwrap();
        header(&head, "authorization").map(str::to_string)
    };
    assert_eq!(with(None, Some(netrc.clone())).as_deref(), Some("Basic dTpw"));
    assert_eq!(with(Some(Credentials::Token("t".into())), Some(netrc)).as_deref(), Some("Bearer t"));
    assert_eq!(with(None, Some(dir.path().join("missing"))), None);
    let unreadable = WebOptions { netrc: Some(dir.path().into()), ..options() };
    assert!(Web::open(&server.url(), &unreadable).is_err());
}

#[test]
fn a_proxy_is_asked_in_the_place_of_the_server() {
    let proxy = after(|_, _, _| None);
    let address = format!("http://u:p@127.0.0.1:{}", proxy.port());
    let through = |except: &str| {
        let proxies = Proxies::new(Some(&address), Some(&address), except).unwrap();
        Web::open("http://images.invalid:81/store", &WebOptions { proxies, ..options() }).unwrap()
    };
    assert!(through("").get("x", LENGTH as u64).unwrap().unwrap() == data());
    let head = &proxy.heads()[0];
    assert!(head.starts_with("GET http://images.invalid:81/store/x HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(head, "proxy-authorization"), Some("Basic dTpw"));
    assert_eq!(header(head, "host"), Some("images.invalid:81"));
    assert!(through("invalid").get("x", 9).unwrap_err().to_string().contains("no host of this name"));
    assert_eq!(proxy.heads().len(), 1);
    // TLS passes through it.
    let proxies = Proxies::new(None, Some(&address), "").unwrap();
    let secure = Web::open("https://images.invalid/store", &WebOptions { proxies, ..options() }).unwrap();
    secure.get("x", 9).unwrap_err();
    let head = &proxy.heads()[1];
    assert!(head.starts_with("CONNECT images.invalid:443 HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(head, "proxy-authorization"), Some("Basic dTpw"));
}

#[test]
fn a_rate_is_kept_by_all_connections_together() {
    let server = after(|_, _, _| None);
    let web = Web::open(&server.url(), &WebOptions { rate: Some(1_000_000), ..options() }).unwrap();
    let started = std::time::Instant::now();
    std::thread::scope(|scope| {
        for start in [0, 100_000, 200_000] {
            let web = &web;
            scope.spawn(move || read(web, start..start + 100_000).1.unwrap());
        }
    });
    // No less: the rate says so, and not the machine.
    assert!(started.elapsed() >= Duration::from_millis(290), "{:?}", started.elapsed());
}

#[test]
fn an_answer_that_goes_on_without_a_body_is_given_up() {
    for (head, said, requests) in [
        ("200 OK", "no more of a body comes", 1),
        ("503 Service Unavailable", "503 Service Unavailable, 3 times in a row", 3),
        ("302 Found\r\nLocation: /elsewhere", "redirects without an end", 11),
    ] {
        let server = Server::new(move |_, _, stream: &mut TcpStream| {
            let head = format!("HTTP/1.1 {head}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n");
            stream.write_all(head.as_bytes())?;
            loop {
                stream.write_all(b"X-A: b\r\n")?;
            }
        });
        let (url, heads) = (server.url(), || server.heads().len());
        let error =
            ends(move || Web::open(&url, &options()).unwrap().get("x", 1000).unwrap_err().to_string());
        assert!(error.contains(said), "{error}");
        assert_eq!(heads(), requests, "{error}");
    }
}
