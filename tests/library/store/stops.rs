//! The first error of a pull ends it at once, whatever other requests wait for, and is the one that is told.

use std::fs;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use holesync::error::{Error, Result};
use holesync::options::{BlockSize, Options};
use holesync::report::Silent;
use holesync::store::name::ImageName;
use holesync::store::objects::{Directory, Web, WebOptions};
use holesync::store::publish::{PublishOptions, publish};
use holesync::store::pull::{Pull, PullOptions, Pulled};

use super::server::{Server, close, part_head, range, right};
use crate::support::{Kind, Sparse, ends};

/// Stretches of data, each by a request of its own.
const STRETCH: usize = 64 << 10;
const APART: usize = 4 << 20;

/// Nobody is waited for less than an hour.
pub fn patient() -> WebOptions {
    let hour = Duration::from_secs(3600);
    WebOptions { longest_wait: hour, window: hour, connect: hour, ..WebOptions::default() }
}

/// Wants to be left alone for an hour.
pub fn busy(stream: &mut impl Write) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n")
}

/// How the stretches of a plain image are answered, the first being 0.
type Answer = fn(usize, &[u8], &str, &mut std::net::TcpStream) -> std::io::Result<()>;

/// Pulls an image of four stretches. The last is answered wrongly once the others wait.
fn pull(answer: Answer) -> Result<Pulled> {
    let dir = tempfile::tempdir().unwrap();
    let (path, name) = (dir.path().join("disk"), ImageName::new("disk").unwrap());
    let pieces = [(Kind::Data(1), STRETCH), (Kind::Hole, APART - STRETCH)].repeat(4);
    let image = Sparse::of(&pieces);
    image.write(&path);
    let raw = PublishOptions {
        version: None,
        block_size: BlockSize::default(),
        hole_map: true,
        level: 3,
        raw: true,
        sign: None,
    };
    publish(&path, (&Directory::open(dir.path()).unwrap(), &name), &raw, &Silent).unwrap();
    let small = ["newest", "map"].map(|end| fs::read(dir.path().join(format!("disk.{end}"))).unwrap());
    let waiting = Arc::new(AtomicUsize::new(0));
    let server = Server::new(move |_, head, stream| {
        let asked = range(head);
        match &asked {
            _ if head.starts_with("GET /store/disk.newest ") => right(&small[0], head, stream),
            _ if head.starts_with("GET /store/disk.map ") => right(&small[1], head, stream),
            Some(range) if range.end - range.start == 1 => right(&image.bytes, head, stream),
            Some(range) if range.start / APART < 3 => {
                waiting.fetch_add(1, Ordering::SeqCst);
                answer(range.start / APART, &image.bytes, head, stream)
            }
            _ => {
                while waiting.load(Ordering::SeqCst) < 3 {
                    thread::yield_now();
                }
                close(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            }
        }
    });
    let web = Web::open(&server.url(), &patient()).unwrap();
    let wanted = PullOptions { version: None, root: None, trusted: None, jobs: 4 };
    let options = Arc::new(Options::default());
    let pull =
        Pull { objects: &web, name: &name, pull: &wanted, options: &options, umask: 0o22, reporter: &Silent };
    let to = dir.path().join("to");
    let pulled = pull.run(&to);
    assert!(!to.exists());
    pulled
}

#[track_caller]
fn ends_with_the_first_error(answer: Answer) {
    let error = ends(move || pull(answer)).unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, Error::Refused { .. }) && said.contains("it is not there (404)"), "{said}");
}

#[test]
fn whoever_pauses_before_another_attempt_is_woken() {
    ends_with_the_first_error(|_, _, _, stream| busy(stream));
}

#[test]
fn whoever_waits_for_an_answer_or_for_a_body_is_woken() {
    ends_with_the_first_error(|nth, image, head, stream| {
        if nth > 0 {
            stream.write_all(part_head(image, &range(head).unwrap(), "\"one\"").as_bytes())?;
            stream.write_all(&[0; 9][..nth])?;
        }
        loop {
            thread::park();
        }
    });
}
