//! Objects of a bucket: all that can be done to them, at a real server, that fails and comes back too.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::thread;
use std::time::Duration;

use holesync::error::{Error, Result};
use holesync::store::objects::{
    Bucket, BucketOptions, Content, Objects, Served, WebOptions, WritableObjects,
};

use super::s3::{Between, Fault, KEY, S3, options, patient, variables_of};
use crate::common::process::wait_until;

/// More than one request takes.
const LONG: usize = (8 << 20) + (5 << 20) + 12_345;
/// How long something is waited for that comes.
const LIMIT: Duration = Duration::from_secs(60);

fn data(length: usize) -> Vec<u8> {
    (0..length as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

fn read(bucket: &Bucket, name: &str, range: Range<u64>) -> (Vec<u8>, Result<Served>) {
    let mut told = Vec::new();
    let read = bucket.read(name, range, &mut |bytes| {
        told.extend_from_slice(bytes);
        Ok(())
    });
    (told, read)
}

fn read_whole(bucket: &Bucket, name: &str, length: u64) -> (Vec<u8>, Result<()>) {
    let mut told = Vec::new();
    let read = bucket.read_whole(name, length, &mut |bytes| {
        told.extend_from_slice(bytes);
        Ok(())
    });
    (told, read)
}

/// A file of its own with these bytes, which stands somewhere in it.
fn file(bytes: &[u8]) -> fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.seek(SeekFrom::Start(7)).unwrap();
    file
}

/// What every server of S3 does; `tests/garage` has these tests run at others. `HOLESYNC_TEST_S3` names an
/// empty prefix of a bucket of one, to which the environment lets in.
mod anywhere {
    use super::*;

    /// Below a prefix of its own.
    fn place(prefix: &str) -> Option<(Option<S3>, Bucket)> {
        if let Ok(url) = std::env::var("HOLESYNC_TEST_S3") {
            let options = BucketOptions { http: patient(), ..BucketOptions::from_environment().unwrap() };
            return Some((None, Bucket::open(&format!("{url}/{prefix}"), &options).unwrap()));
        }
        let server = S3::start()?;
        let bucket = server.bucket(prefix);
        Some((Some(server), bucket))
    }

    #[test]
    fn what_is_there_is_replaced_only_where_it_is_what_is_known() {
        let Some((_server, bucket)) = place("if") else { return };
        assert!(!bucket.put_if("a/b", Some(b"one"), b"other").unwrap());
        assert!(bucket.put_if("a/b", None, b"one").unwrap());
        assert!(!bucket.put_if("a/b", None, b"other").unwrap());
        assert!(!bucket.put_if("a/b", Some(b"on"), b"other").unwrap());
        assert_eq!(bucket.get("a/b", 9).unwrap().unwrap(), b"one");
        // An answer may have been lost: what is there is what was put.
        assert!(bucket.put_if("a/b", None, b"one").unwrap());
        assert!(bucket.put_if("a/b", Some(b"one"), b"two").unwrap());
        assert_eq!(bucket.get("a/b", 9).unwrap().unwrap(), b"two");
    }

    #[test]
    fn of_many_who_put_what_is_not_there_at_once_one_does() {
        let Some((_server, bucket)) = place("at once") else { return };
        // Others look first, and then write: Garage, and the server that is brought along.
        let is_one = std::env::var_os("HOLESYNC_TEST_CONDITIONS").is_some();
        for round in 0..10 {
            let (name, texts) = (format!("{round}"), ["one", "two", "three", "four", "five", "six"]);
            let put = thread::scope(|scope| {
                let put = |text: &'static str| bucket.put_if(&name, None, text.as_bytes()).unwrap();
                let putting = texts.map(|text| scope.spawn(move || put(text).then_some(text)));
                putting.into_iter().filter_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            let there = bucket.get(&name, 9).unwrap().unwrap();
            assert!(put.iter().any(|text| text.as_bytes() == there), "{put:?}");
            assert!(put.len() == 1 || !is_one, "{put:?}");
        }
    }

    #[test]
    fn objects_are_put_listed_read_and_removed() {
        let Some((_server, bucket)) = place("one by one") else { return };
        assert_eq!(bucket.get("a/b ü%20+", 9).unwrap(), None);
        assert_eq!(bucket.list("a/").unwrap(), []);
        bucket.put("a/b ü%20+", Content::Bytes(b"one")).unwrap();
        bucket.put("a/b ü%20+", Content::Bytes(b"three")).unwrap();
        bucket.put("a/c/d", Content::Bytes(b"")).unwrap();
        assert_eq!(bucket.get("a/b ü%20+", 5).unwrap().unwrap(), b"three");
        let error = bucket.get("a/b ü%20+", 4).unwrap_err();
        assert!(error.to_string().contains("/one by one/a/b ü%20+: it is longer than 4 bytes"), "{error}");
        assert_eq!(bucket.get("a/c/d", 0).unwrap().unwrap(), b"");
        let (told, served) = read(&bucket, "a/b ü%20+", 1..4);
        assert_eq!((told.as_slice(), served.unwrap()), (&b"hre"[..], Served::Range));
        assert_eq!(read(&bucket, "none", 3..3).1.unwrap(), Served::Range);
        let found = bucket.list("a/").unwrap();
        assert_eq!((found.len(), found[0].name.as_str(), found[0].length), (1, "a/b ü%20+", 5));
        assert!(found[0].modified.elapsed().is_ok_and(|age| age < Duration::from_secs(3600)));
        assert_eq!(bucket.length("a/b ü%20+").unwrap(), Some(5));
        for _ in 0..2 {
            bucket.remove("a/b ü%20+").unwrap();
        }
        assert_eq!(bucket.length("a/b ü%20+").unwrap(), None);
        bucket.remove("a/c/d").unwrap();
    }

    #[test]
    fn what_is_long_is_put_in_parts_and_read_in_ranges() {
        let Some((_server, bucket)) = place("long") else { return };
        let data = data(LONG);
        bucket.put("packs/p", Content::File(&file(&data))).unwrap();
        bucket.put("packs/q", Content::Bytes(&data)).unwrap();
        for name in ["packs/p", "packs/q"] {
            assert_eq!(bucket.length(name).unwrap(), Some(LONG as u64));
            let (told, whole) = read_whole(&bucket, name, LONG as u64);
            assert!(whole.is_ok() && told == data);
        }
        for range in [0..1, 8_388_000..8_390_000, LONG as u64 - 1..LONG as u64] {
            let (told, served) = read(&bucket, "packs/p", range.clone());
            assert_eq!(served.unwrap(), Served::Range);
            assert!(told == data[range.start as usize..range.end as usize]);
        }
        let listed = bucket.list("packs/").unwrap();
        let names: Vec<&str> = listed.iter().map(|object| object.name.as_str()).collect();
        assert_eq!(names, ["packs/p", "packs/q"]);
        for name in names {
            bucket.remove(name).unwrap();
        }
    }

    #[test]
    fn an_object_is_read_in_one_version() {
        let Some((_server, bucket)) = place("versions") else { return };
        let (one, other) = (data(100_000), vec![7; 100_000]);
        bucket.put("x", Content::Bytes(&one)).unwrap();
        let reader = place_again(&bucket, _server.as_ref(), "versions");
        assert_eq!(read(&reader, "x", 0..10).0, one[..10]);
        bucket.put("x", Content::Bytes(&other)).unwrap();
        let (told, served) = read(&reader, "x", 10..20);
        let error = served.unwrap_err();
        assert!(told.is_empty() && error.to_string().contains("it was changed while it was read"), "{error}");
        assert!(read_whole(&reader, "x", 100_000).1.is_err());
        // Who begins anew has the new one, and so has who asks for what is small.
        assert_eq!(reader.get("x", 100_000).unwrap().unwrap(), other);
        assert_eq!(read(&bucket, "x", 10..20).0, other[10..20]);
        bucket.remove("x").unwrap();
    }

    /// Somebody else, who reads there.
    fn place_again(bucket: &Bucket, server: Option<&S3>, prefix: &str) -> Bucket {
        let options = match server {
            Some(server) => server.options(),
            None => BucketOptions { http: patient(), ..BucketOptions::from_environment().unwrap() },
        };
        let address = bucket.address("x");
        assert!(address.ends_with(&format!("{prefix}/x")));
        Bucket::open(address.strip_suffix("/x").unwrap(), &options).unwrap()
    }

    #[test]
    fn another_length_than_the_expected_one_is_an_error() {
        let Some((_server, bucket)) = place("lengths") else { return };
        bucket.put("x", Content::Bytes(&data(1000))).unwrap();
        for range in [0..1001, 999..1001, 1000..1001] {
            let error = read(&bucket, "x", range.clone()).1.unwrap_err();
            assert!(
                error.exit_code() == 23 && error.to_string().contains("lengths/x: it "),
                "{range:?} {error}"
            );
        }
        for length in [999, 1001] {
            let error = read_whole(&bucket, "x", length).1.unwrap_err();
            assert!(error.to_string().contains(&format!("it has 1000 bytes, and {length}")), "{error}");
        }
        let error = read(&bucket, "none", 0..1).1.unwrap_err();
        assert!(error.exit_code() == 23 && error.to_string().contains("it is not there"), "{error}");
        bucket.remove("x").unwrap();
    }

    #[test]
    fn a_list_has_many_pages() {
        let Some((_server, bucket)) = place("many") else { return };
        let names: Vec<String> = (0..1203).map(|number| format!("n/{number:05}")).collect();
        thread::scope(|scope| {
            for some in names.chunks(names.len().div_ceil(12)) {
                scope.spawn(|| {
                    some.iter().for_each(|name| bucket.put(name, Content::Bytes(name.as_bytes())).unwrap());
                });
            }
        });
        let listed: Vec<String> = bucket.list("n/").unwrap().into_iter().map(|object| object.name).collect();
        assert!(listed == names, "{} of {}", listed.len(), names.len());
        thread::scope(|scope| {
            for some in names.chunks(names.len().div_ceil(12)) {
                scope.spawn(|| some.iter().for_each(|name| bucket.remove(name).unwrap()));
            }
        });
        assert_eq!(bucket.list("n/").unwrap(), []);
    }
}

#[test]
fn who_is_not_let_in_is_told_why() {
    let Some(server) = S3::start() else { return };
    let url = "s3://images/x";
    let endpoint = format!("http://{}", server.address());
    let with = |variables: &[(&str, &str)]| {
        let mut all = server.options();
        all.variables.extend(variables_of(variables));
        Bucket::open(url, &all).unwrap()
    };
    let wrong_secret = with(&[("AWS_SECRET_ACCESS_KEY", "sesame")]);
    let wrong_key = with(&[("AWS_ACCESS_KEY_ID", "NOBODY")]);
    let anybody = with(&[("AWS_SKIP_SIGNATURE", "true")]);
    for bucket in [&wrong_secret, &wrong_key, &anybody] {
        for error in [
            bucket.get("a", 9).unwrap_err(),
            read(bucket, "a", 0..1).1.unwrap_err(),
            bucket.put("a", Content::Bytes(b"x")).unwrap_err(),
            bucket.put("a", Content::File(&file(&vec![0; LONG]))).unwrap_err(),
            bucket.list("").unwrap_err(),
            bucket.remove("a").unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(error.exit_code() == 23 && text.starts_with("s3://images/x/"), "{text}");
            assert!(text.contains(&endpoint) && text.contains("403") && text.contains("AWS_"), "{text}");
            assert!(!text.contains("sesame") && !text.contains("a secret"), "{text}");
        }
        assert_eq!(bucket.length("a").unwrap_err().exit_code(), 23);
    }
    assert!(!server.file("x/a").exists());
}

#[test]
fn a_bucket_that_is_not_there_is_no_empty_one() {
    let Some(server) = S3::start() else { return };
    let bucket = Bucket::open("s3://none/x", &server.options()).unwrap();
    let ends = [
        bucket.get("a", 9).map(drop),
        bucket.length("a").map(drop),
        read(&bucket, "a", 0..1).1.map(drop),
        bucket.list("").map(drop),
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let text = end.unwrap_err().to_string();
        assert!(
            text.starts_with("s3://none/x/") && text.contains("there is no such bucket at http://127"),
            "{number} {text}"
        );
    }
}

#[test]
fn who_asks_is_found_in_a_profile() {
    let Some(server) = S3::start() else { return };
    server.bucket("x").put("a", Content::Bytes(b"here")).unwrap();
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".aws")).unwrap();
    let secret = super::s3::SECRET;
    let credentials = format!(
        "[default]\naws_access_key_id = NOBODY\naws_secret_access_key = x\n\n[tests]\naws_access_key_id = {KEY}\n\
         aws_secret_access_key = {secret}\n"
    );
    fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
    let config = format!(
        "[profile tests]\nregion = us-east-1\nendpoint_url = http://localhost:{}\n",
        server.address().port()
    );
    fs::write(home.path().join(".aws/config"), config).unwrap();
    let home = home.path().to_str().unwrap();
    let open = |variables: &[(&str, &str)]| {
        let options = BucketOptions { variables: variables_of(variables), http: patient() };
        Bucket::open("s3://images/x", &options).unwrap()
    };
    assert_eq!(open(&[("HOME", home), ("AWS_PROFILE", "tests")]).get("a", 9).unwrap().unwrap(), b"here");
    let endpoint = format!("http://{}", server.address());
    let default = open(&[("HOME", home), ("AWS_ENDPOINT_URL", &endpoint)]);
    assert_eq!(default.get("a", 9).unwrap_err().exit_code(), 23);
}

#[test]
fn a_server_that_is_down_is_waited_for() {
    let Some(server) = S3::start() else { return };
    server.bucket("x").put("a", Content::Bytes(b"here")).unwrap();
    server.kill();
    let mut impatient = server.options();
    impatient.http.retries = 2;
    let given_up = Bucket::open("s3://images/x", &impatient).unwrap();
    let error = given_up.get("a", 9).unwrap_err();
    let text = error.to_string();
    assert!(error.exit_code() == 10 && text.contains("s3://images/x/a"), "{text}");
    assert!(text.contains("3 times in a row") && text.contains(&server.address().to_string()), "{text}");
    assert_eq!(given_up.traffic().requests, 3);
    let bucket = server.bucket("x");
    thread::scope(|scope| {
        let got = scope.spawn(|| bucket.get("a", 9));
        assert!(wait_until(LIMIT, || bucket.traffic().requests > 3));
        server.restart();
        assert_eq!(got.join().unwrap().unwrap().unwrap(), b"here");
    });
}

#[test]
fn a_server_that_is_killed_while_it_is_read_from_comes_back() {
    let Some(server) = S3::start() else { return };
    let data = data(LONG);
    server.bucket("x").put("a", Content::Bytes(&data)).unwrap();
    let bucket = server.bucket("x");
    let (mut told, mut kills) = (Vec::new(), 0);
    let read = bucket.read("a", 5..LONG as u64, &mut |bytes| {
        told.extend_from_slice(bytes);
        if told.len() > kills * (5 << 20) + 1000 {
            server.restart();
            kills += 1;
        }
        Ok(())
    });
    assert_eq!((read.unwrap(), kills), (Served::Range, 3));
    assert!(told == data[5..]);
}

#[test]
fn a_server_that_is_killed_while_it_is_written_to_comes_back() {
    let Some(server) = S3::start() else { return };
    let data = data(2 * LONG);
    // What is left after the last mark takes longer than to notice it.
    let http = WebOptions { rate: Some(8 << 20), ..patient() };
    let bucket = Bucket::open("s3://images/x", &BucketOptions { http, ..server.options() }).unwrap();
    thread::scope(|scope| {
        let put = scope.spawn(|| bucket.put("a", Content::File(&file(&data))));
        for mib in [2, 12, 18] {
            assert!(wait_until(LIMIT, || bucket.traffic().sent > mib << 20 || put.is_finished()));
            assert!(!put.is_finished());
            server.restart();
        }
        put.join().unwrap().unwrap();
    });
    assert!(fs::read(server.file("x/a")).unwrap() == data);
    let (told, whole) = read_whole(&bucket, "a", data.len() as u64);
    assert!(whole.is_ok() && told == data);
}

#[test]
fn connections_that_break_and_servers_that_are_busy_are_tried_again() {
    let Some(server) = S3::start() else { return };
    let data = data(3 << 20);
    let faults = [
        Fault::Status("503 Slow Down"),
        Fault::BreakUp(100_000),
        Fault::Status("500 Internal Server Error"),
        Fault::Status("429 Too Many Requests"),
    ];
    let between = Between::new(server.address(), &faults);
    let bucket = Bucket::open("s3://images/x", &options(&between.endpoint())).unwrap();
    bucket.put("a", Content::File(&file(&data))).unwrap();
    assert_eq!(between.connections(), faults.len() + 1);
    let faults = [Fault::BreakDown(1_000_000), Fault::Status("502 Bad Gateway"), Fault::BreakDown(1_000_000)];
    let between = Between::new(server.address(), &faults);
    let bucket = Bucket::open("s3://images/x", &options(&between.endpoint())).unwrap();
    let (told, served) = read(&bucket, "a", 0..data.len() as u64);
    assert_eq!(served.unwrap(), Served::Range);
    assert!(told == data);
    // It goes on from the byte.
    let traffic = bucket.traffic();
    assert_eq!((between.connections(), traffic.bytes), (faults.len() + 1, data.len() as u64));
    let refused = Between::new(server.address(), &[Fault::Status("400 Bad Request")]);
    let bucket = Bucket::open("s3://images/x", &options(&refused.endpoint())).unwrap();
    let error = bucket.get("a", 9).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }) && refused.connections() == 1, "{error}");
}

#[test]
fn a_rate_is_kept_to_in_both_directions() {
    let Some(server) = S3::start() else { return };
    let data = data(1 << 20);
    let with_rate = |rate| {
        let http = WebOptions { rate: Some(rate), ..patient() };
        Bucket::open("s3://images/x", &BucketOptions { http, ..server.options() }).unwrap()
    };
    let begun = std::time::Instant::now();
    with_rate(2 << 20).put("a", Content::Bytes(&data)).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(490));
    let begun = std::time::Instant::now();
    let (told, whole) = read_whole(&with_rate(2 << 20), "a", data.len() as u64);
    assert!(whole.is_ok() && told == data && begun.elapsed() >= Duration::from_millis(490));
}

#[test]
fn what_is_asked_is_counted() {
    let Some(server) = S3::start() else { return };
    let bucket = server.bucket("x");
    bucket.put("a", Content::Bytes(&data(100_000))).unwrap();
    let put = bucket.traffic();
    assert!(put.requests == 1 && put.bytes == 0 && (100_000..110_000).contains(&put.sent), "{put:?}");
    assert!(read(&bucket, "a", 0..50_000).1.is_ok());
    let read = bucket.traffic();
    assert!(
        read.requests == 2 && read.bytes == 50_000 && (50_000..60_000).contains(&read.received),
        "{read:?}"
    );
    assert_eq!(
        Bucket::open("s3://images", &options("http://127.0.0.1:1")).unwrap().traffic(),
        Default::default()
    );
    assert!(!format!("{bucket:?}{:?}", server.options()).contains(super::s3::SECRET));
}
