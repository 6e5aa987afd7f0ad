//! Objects of a real web server, nginx: ranges, TLS, passwords, limits, caches, restarts.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use holesync::error::{Error, Result};
use holesync::store::objects::{Objects, Served, Web, WebOptions};

use crate::common::check::assert_same;
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::nginx::{Nginx, certificate};
use crate::common::process::{holesync, run};
use crate::store::Store;

fn data(seed: u32) -> Vec<u8> {
    (0..1_000_000u32).map(|at| (at.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

/// Pauses that no test waits for.
fn options() -> WebOptions {
    let (backoff, longest_wait) = (Duration::from_millis(20), Duration::from_millis(200));
    WebOptions { backoff, longest_wait, retries: 20, ..WebOptions::default() }
}

fn read(web: &Web, name: &str, range: Range<u64>) -> Result<Vec<u8>> {
    let mut told = Vec::new();
    let served = web.read(name, range, &mut |bytes| {
        told.extend(bytes);
        Ok(())
    })?;
    assert_eq!(served, Served::Range);
    Ok(told)
}

/// Reads all of an object in parts of 10,000 bytes, by 12 threads at once.
fn read_by_a_dozen(web: &Web, name: &str, expected: &[u8]) {
    let next = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                loop {
                    let start = next.fetch_add(10_000, std::sync::atomic::Ordering::Relaxed);
                    if start >= expected.len() as u64 {
                        return;
                    }
                    let told = read(web, name, start..start + 10_000).unwrap();
                    assert!(told == expected[start as usize..start as usize + 10_000], "{start}");
                }
            });
        }
    });
}

#[test]
fn a_dozen_connections_are_used_again_and_again() {
    let Some(nginx) = Nginx::plain() else { return };
    let data = data(0);
    fs::create_dir(nginx.root().join("a store")).unwrap();
    fs::write(nginx.root().join("a store/50% ü"), &data).unwrap();
    let web = Web::open(&nginx.url("a%20store"), &options()).unwrap();
    read_by_a_dozen(&web, "50% ü", &data);
    let mut whole: Vec<u8> = Vec::new();
    let take = &mut |bytes: &[u8]| {
        whole.extend(bytes);
        Ok(())
    };
    web.read_whole("50% ü", data.len() as u64, take).unwrap();
    assert!(whole == data);
    assert!(web.get("50% ü", 1_000_000).unwrap().unwrap() == data);
    assert!(web.get("50% ü", 999_999).is_err());
    assert_eq!(web.get("missing", 9).unwrap(), None);
    let answered = nginx.answered(104);
    assert_eq!(answered.len(), 104);
    let parts: Vec<_> = answered.iter().filter(|answered| answered.status == 206).collect();
    assert!(parts.len() == 100 && parts.iter().all(|part| part.bytes == 10_000 && part.method == "GET"));
    let connections: HashSet<_> = answered.iter().map(|answered| answered.connection).collect();
    assert!(connections.len() <= 13, "{connections:?}");
    assert_eq!(web.traffic().requests, 104);
    assert_eq!(read(&web, "missing", 0..9).unwrap_err().exit_code(), 23);
    let said = read(&web, "50% ü", 999_990..1_000_010).unwrap_err().to_string();
    assert!(said.contains("has 1000000 bytes, and 1000010 were expected"), "{said}");
}

#[test]
fn an_object_that_is_replaced_is_told_of() {
    let Some(nginx) = Nginx::plain() else { return };
    let path = nginx.root().join("x");
    fs::write(&path, data(0)).unwrap();
    let web = Web::open(&nginx.url(""), &options()).unwrap();
    read(&web, "x", 0..10).unwrap();
    fs::write(&path, &data(1)[..999_999]).unwrap();
    let said = read(&web, "x", 10..20).unwrap_err().to_string();
    assert!(said.contains("changed while it was read") && said.contains(&nginx.url("x")), "{said}");
    // Small ones are not held to anything: they name what is newest.
    assert_eq!(web.get("x", 1_000_000).unwrap().unwrap().len(), 999_999);
}

#[test]
fn tls_wants_an_authority_that_is_trusted_and_is_not_left() {
    let keys = lab::scratch();
    certificate(keys.path());
    let at = keys.path().display();
    let Some(nginx) = Nginx::start(
        3,
        &format!(
            "ssl_certificate {at}/cert.pem; ssl_certificate_key {at}/key.pem;
             server {{ listen 127.0.0.1:PORT0 ssl; root PREFIX/root;
                 location /away/ {{ return 302 http://127.0.0.1:PORT1/x; }}
                 location /home/ {{ return 308 /x; }} }}
             server {{ listen 127.0.0.1:PORT1; location /up/ {{ return 307 https://localhost:PORT0/x; }} }}
             server {{ listen 127.0.0.1:PORT2 ssl; ssl_protocols TLSv1.2; }}"
        ),
    ) else {
        return;
    };
    let data = data(0);
    fs::write(nginx.root().join("x"), &data).unwrap();
    let trusting = WebOptions { ca: Some(keys.path().join("ca.pem")), ..options() };
    let open = |url: String, options: &WebOptions| Web::open(&url, options).unwrap();
    let secure = |path: &str| format!("https://localhost:{}/{path}", nginx.port(0));
    let web = open(secure(""), &trusting);
    read_by_a_dozen(&web, "x", &data);
    let connections: HashSet<_> = nginx.answered(100).iter().map(|answered| answered.connection).collect();
    assert!(connections.len() <= 12, "{connections:?}");
    let traffic = web.traffic();
    assert!(traffic.bytes == 1_000_000 && traffic.received > 1_010_000, "{traffic:?}");
    read_by_a_dozen(&open(secure("home"), &trusting), "x", &data);
    let older = format!("https://127.0.0.1:{}/", nginx.port(2));
    assert_eq!(read(&open(older, &trusting), "x", 5..9).unwrap(), data[5..9]);
    let upwards = format!("http://127.0.0.1:{}/up", nginx.port(1));
    assert_eq!(read(&open(upwards, &trusting), "x", 5..9).unwrap(), data[5..9]);

    nginx.forget();
    let refuse = |url: String, options: &WebOptions, code: u8, parts: &[&str]| {
        let error = read(&open(url.clone(), options), "x", 0..9).unwrap_err();
        let said = error.to_string();
        assert_eq!(error.exit_code(), code, "{said}");
        assert!(parts.iter().all(|part| said.contains(part)) && said.contains(&url), "{said}");
    };
    refuse(secure("away"), &trusting, 12, &["redirects from https to http://127.0.0.1", "not asked there"]);
    assert_eq!(nginx.answered(1).len(), 1);
    refuse(secure(""), &options(), 10, &["UnknownIssuer", "SSL_CERT_FILE"]);
    let elsewhere = format!("https://127.0.0.2:{}/", nginx.port(0));
    let Err(Error::Link { .. }) = read(&open(elsewhere, &trusting), "x", 0..9) else {
        panic!("no such address")
    };
    refuse(format!("https://127.0.0.1:{}/", nginx.port(1)), &trusting, 10, &["SSL_CERT_FILE"]);
    // What an http server says to TLS is no HTTP, and the other way round it is a bad request.
    refuse(format!("http://127.0.0.1:{}/", nginx.port(0)), &trusting, 23, &["400"]);
    for (ca, part) in [("missing", "cannot read the certificates of"), ("names", "has no certificate")] {
        let bad = WebOptions { ca: Some(keys.path().join(ca)), ..options() };
        let said = Web::open(&secure(""), &bad).unwrap_err().to_string();
        assert!(said.contains(part), "{said}");
    }
}

/// A proxy that passes bytes on; the heads of what it was asked for.
fn proxy() -> (u16, Arc<Mutex<Vec<String>>>) {
    let (listener, heads) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::<Mutex<Vec<String>>>::default());
    let (port, asked) = (listener.local_addr().unwrap().port(), Arc::clone(&heads));
    let serve = move |mut from: TcpStream| -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            from.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let to = head.split(' ').nth(1).unwrap_or_default().to_string();
        asked.lock().unwrap().push(head);
        let mut to = TcpStream::connect(to)?;
        from.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        let (mut back_from, mut back_to) = (to.try_clone()?, from.try_clone()?);
        thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
        std::io::copy(&mut from, &mut to).map(drop)
    };
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    (port, heads)
}

#[test]
fn tls_goes_through_a_proxy_that_sees_none_of_it() {
    let keys = lab::scratch();
    certificate(keys.path());
    let at = keys.path().display();
    let tls = format!("ssl_certificate {at}/cert.pem; ssl_certificate_key {at}/key.pem;");
    let Some(nginx) = Nginx::start(1, &format!("{tls} server {{ listen 127.0.0.1:PORT0 ssl; }}")) else {
        return;
    };
    let store = Store::new(lab::scratch());
    let image = store.path("image");
    Layout::hole("disk", 40 << 20).data(1 << 20..30 << 20, &mut Rng(1)).write(&image);
    run(holesync().arg("publish").arg(&image).arg(nginx.root().join("disk"))).ok();
    let (port, heads) = proxy();
    let server = format!("localhost:{}", nginx.port(0));
    let pull = |ca: bool, variables: &[(&str, &str)]| {
        let _ = fs::remove_file(store.copy());
        let mut command = store.holesync();
        for name in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"] {
            command.env_remove(name);
        }
        if ca {
            command.arg("--ca").arg(keys.path().join("ca.pem"));
        }
        // Who is away is away.
        command.arg("--retries=0").envs(variables.iter().copied()).env_remove("SSL_CERT_FILE");
        run(command.arg(format!("https://{server}/disk")).arg(store.copy()))
    };
    let through = format!("http://user:sesame@127.0.0.1:{port}");
    pull(true, &[("https_proxy", &through)]).ok();
    assert_same(&image, &store.copy());
    let asked = std::mem::take(&mut *heads.lock().unwrap());
    assert!((1..=14).contains(&asked.len()), "a connection is used again: {asked:?}");
    for head in asked {
        assert!(head.starts_with(&format!("CONNECT {server} HTTP/1.1\r\n")), "{head}");
        assert!(head.contains("dXNlcjpzZXNhbWU="), "{head}");
    }
    // A proxy proves nothing.
    let refused = pull(false, &[("HTTPS_PROXY", &through)]).code(10).says(&["UnknownIssuer"]);
    assert!(!refused.stderr.contains("sesame"), "{refused}");
    heads.lock().unwrap().clear();
    pull(true, &[("ALL_PROXY", &through), ("no_proxy", "localhost")]).ok();
    assert_eq!(heads.lock().unwrap().len(), 0);
    // One that is gone.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = format!("http://user:sesame@{closed}");
    let failed = pull(true, &[("https_proxy", &gone)]);
    assert!(failed.code == 10 && !failed.stderr.contains("sesame"), "{failed}");
}

#[test]
fn a_password_of_a_netrc_lets_in() {
    let Some(nginx) = Nginx::start(
        1,
        "server { listen 127.0.0.1:PORT0; auth_basic store; auth_basic_user_file PREFIX/users; }",
    ) else {
        return;
    };
    fs::write(nginx.prefix().join("users"), "user:{PLAIN}open sesame\n").unwrap();
    fs::write(nginx.root().join("x"), "content").unwrap();
    let netrc = nginx.prefix().join("netrc");
    let get = |lines: &str| {
        fs::write(&netrc, lines).unwrap();
        let options = WebOptions { netrc: Some(netrc.clone()), ..options() };
        Web::open(&nginx.url(""), &options).unwrap().get("x", 99)
    };
    assert_eq!(get("machine 127.0.0.1 login user password \"open sesame\"\n").unwrap().unwrap(), b"content");
    let said = get("machine 127.0.0.1 login user password sesame\n").unwrap_err().to_string();
    assert!(said.contains("401") && said.contains("may be wrong") && !said.contains("sesame"), "{said}");
    let said = get("machine other login user password sesame\n").unwrap_err().to_string();
    assert!(said.contains("401") && said.contains("machine HOST login"), "{said}");
}

#[test]
fn a_server_that_limits_its_guests_is_asked_again() {
    for status in [503, 429] {
        let Some(nginx) = Nginx::start(
            1,
            &format!(
                "limit_req_zone $binary_remote_addr zone=guests:1m rate=50r/s; limit_req zone=guests burst=2 nodelay; \
                 limit_req_status {status}; server {{ listen 127.0.0.1:PORT0; }}"
            ),
        ) else {
            return;
        };
        let data = data(0);
        fs::write(nginx.root().join("x"), &data[..300_000]).unwrap();
        let web = Web::open(&nginx.url(""), &options()).unwrap();
        read_by_a_dozen(&web, "x", &data[..300_000]);
        let requests = usize::try_from(web.traffic().requests).unwrap();
        let answered = nginx.answered(requests);
        let right = answered.iter().filter(|answered| answered.status == 206).count();
        let limited = answered.iter().filter(|answered| answered.status == status).count();
        assert_eq!((right, right + limited), (30, requests));
        assert!(limited > 0);
    }
}

#[test]
fn a_cache_in_front_asks_the_origin_once() {
    let Some(nginx) = Nginx::start(
        2,
        "proxy_cache_path PREFIX/cache keys_zone=cache:1m;
         server { listen 127.0.0.1:PORT0; location / {
             slice 100k; proxy_cache cache; proxy_cache_lock on; proxy_cache_key $uri$slice_range;
             proxy_set_header Range $slice_range; proxy_http_version 1.1; proxy_cache_valid 200 206 1h;
             proxy_pass http://127.0.0.1:PORT1; } }
         server { listen 127.0.0.1:PORT1; }",
    ) else {
        return;
    };
    let data = data(0);
    fs::write(nginx.root().join("x"), &data).unwrap();
    for _ in 0..3 {
        let web = Web::open(&nginx.url(""), &options()).unwrap();
        read_by_a_dozen(&web, "x", &data);
        assert_eq!(web.traffic().requests, 100);
    }
    let answered = nginx.answered(310);
    let origin: Vec<_> = answered.iter().filter(|answered| answered.port == nginx.port(1)).collect();
    assert_eq!((origin.len(), answered.len()), (10, 310));
    assert_eq!(origin.iter().map(|answered| answered.bytes).sum::<u64>(), 1_000_000);
    assert!(answered.iter().any(|answered| answered.cache == "HIT"));
}

#[test]
fn a_server_that_starts_again_goes_on_from_the_byte() {
    let Some(mut nginx) = Nginx::start(1, "server { listen 127.0.0.1:PORT0; limit_rate 400k; }") else {
        return;
    };
    let data = data(0);
    fs::write(nginx.root().join("x"), &data).unwrap();
    let web = Web::open(&nginx.url(""), &options()).unwrap();
    let mut told: Vec<u8> = Vec::new();
    let served = web.read("x", 0..1_000_000, &mut |bytes| {
        if told.is_empty() {
            nginx.restart();
        }
        told.extend(bytes);
        Ok(())
    });
    assert_eq!(served.unwrap(), Served::Range);
    assert!(told == data);
    let last = nginx.answered(1).pop().unwrap();
    assert!(last.status == 206 && last.bytes < 1_000_000, "{last:?}");
    assert!(web.traffic().bytes == 1_000_000);
}
