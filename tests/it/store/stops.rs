//! A signal ends whatever waits for a store.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::check::{assert_no_leftovers, assert_same};
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::process::{start, wait_until};
use crate::store::Store;

/// A server that does what it is told with each request; how many came.
fn server(say: &'static [u8]) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, count) = (stream.unwrap(), Arc::clone(&count));
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                while matches!(lines.read_line(&mut line), Ok(1..)) {
                    if line == "\r\n" {
                        stream.write_all(say).unwrap();
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                    line.clear();
                }
            });
        }
    });
    (format!("http://{address}"), asked)
}

#[test]
fn a_signal_ends_a_pause_and_a_wait() {
    let store = Store::new(lab::scratch());
    let image = store.path("image");
    Layout::dense("disk", 1 << 20, &mut Rng(1)).write(&image);
    std::fs::copy(&image, store.copy()).unwrap();
    let (image_text, copy) = (image.to_str().unwrap(), store.copy().to_str().unwrap().to_string());
    for say in [
        // For a minute, which is the longest pause.
        &b"HTTP/1.1 503 Busy\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n"[..],
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    ] {
        let (url, asked) = server(say);
        let (web, index) = (format!("{url}/disk"), format!("{url}/x.caibx"));
        let bucket = "s3://images/disk";
        for (words, code) in [
            (&[web.as_str(), &copy][..], 20),
            (&[index.as_str(), &copy], 20),
            (&[bucket, &copy], 20),
            (&["publish", image_text, bucket], 20),
            (&["versions", bucket], 20),
            (&["check", bucket], 20),
            (&["prune", bucket, "--keep=1"], 20),
        ] {
            asked.store(0, Ordering::SeqCst);
            let mut command = store.holesync();
            command.args(words).env("AWS_ENDPOINT_URL", &url).env("AWS_ACCESS_KEY_ID", "x");
            command.env("AWS_SECRET_ACCESS_KEY", "x");
            let waits = start(&mut command);
            let is_asked = || asked.load(Ordering::SeqCst) > 0;
            assert!(wait_until(Duration::from_secs(60), is_asked), "{words:?}");
            // Not SIGINT, which a shell has its background jobs ignore.
            waits.signal(Signal::SIGTERM);
            // Far sooner than it would be over.
            waits.finish_within(Duration::from_secs(40)).code(code);
            assert_same(&image, &store.copy());
            assert_no_leftovers(&store.path("to"));
        }
    }
}

#[test]
fn a_publisher_that_waits_for_its_key_is_stopped() {
    let store = Store::new(lab::scratch());
    let (_, image) = store.begin();
    let (bin, key) = (store.path("bin"), store.path("key"));
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(&key, "").unwrap();
    let begun = store.path("begun");
    let waits = format!("#!/bin/sh\necho >'{}'\nexec sleep 20\n", begun.display());
    lab::script(&bin.join("ssh-keygen"), waits);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut command = store.holesync();
    command.env("PATH", path).args(["publish", "--sign"]).arg(&key).arg(&image).arg(store.image());
    let publisher = start(&mut command);
    assert!(wait_until(Duration::from_secs(60), || begun.exists()));
    publisher.signal(Signal::SIGTERM);
    let told = publisher.finish_within(Duration::from_secs(30)).code(20);
    told.says(&["interrupted; run the same command again: what is there already"]);
}

#[test]
fn a_check_that_is_stopped_does_not_say_that_all_is_well() {
    const VERSIONS: usize = 12;
    let store = Store::new(lab::scratch());
    let (mut layout, image) = store.begin();
    let mut rng = Rng(3);
    for nth in 1..VERSIONS {
        layout = layout.data(nth << 12..(nth + 1) << 12, &mut rng);
        layout.write(&image);
        store.publish(&image, &[]);
    }
    for pause in 0..20 {
        let mut check = store.holesync();
        let check = start(check.arg("check").arg(store.image()));
        thread::sleep(Duration::from_millis(10 * pause));
        check.signal(Signal::SIGTERM);
        let outcome = check.finish_within(Duration::from_secs(30));
        let told = outcome.stdout.lines().count();
        // Before it listens for signals, one kills it.
        assert!([-1, 20].contains(&outcome.code) || outcome.code == 0 && told == VERSIONS, "{outcome}");
    }
}
