//! Buckets that fail for a moment, and that lie.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::ops::Range;
use std::time::{Duration, Instant};

use holesync::error::{Error, Result};
use holesync::store::objects::{
    Bucket, BucketOptions, Content, Objects, Proxies, Served, WebOptions, WritableObjects,
};

use super::server::{Server, close, header, part_head, range, right};

const LENGTH: usize = 300_000;

fn data() -> Vec<u8> {
    (0..LENGTH as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

fn options(variables: &[(&str, &str)]) -> BucketOptions {
    let http = WebOptions {
        retries: 2,
        backoff: Duration::from_millis(2),
        longest_wait: Duration::from_millis(20),
        ..WebOptions::default()
    };
    let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    BucketOptions { variables: variables.collect(), http }
}

fn bucket(server: &Server) -> Bucket {
    let endpoint = format!("http://127.0.0.1:{}", server.port());
    let variables = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "sesame"),
    ];
    Bucket::open("s3://images/x", &options(&variables)).unwrap()
}

fn read(bucket: &Bucket, range: Range<u64>) -> (Vec<u8>, Result<Served>) {
    let mut told = Vec::new();
    let read = bucket.read("a", range, &mut |bytes| {
        told.extend(bytes);
        Ok(())
    });
    (told, read)
}

/// A server that gives these answers one after the other, and the last one ever after.
fn saying(answers: &'static [&'static str]) -> Server {
    Server::new(move |number, _, stream| close(stream, answers[number.min(answers.len() - 1)]))
}

fn ends(server: &Server) -> [Error; 2] {
    let bucket = bucket(server);
    [bucket.get("a", 9).unwrap_err(), read(&bucket, 5..9).1.unwrap_err()]
}

#[test]
fn answers_that_are_none_are_not_believed() {
    let parts: [&[&str]; 5] = [
        &["HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\n\r\nabcd"],
        &["HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-3/9\r\nContent-Length: 4\r\n\r\nabcd"],
        &["HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-3/9\r\nContent-Length: 4\r\n\r\nabcd"],
        &[
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-99999999999999999999/9\r\nContent-Length: 4\r\n\r\nabcd",
        ],
        &["no HTTP\r\n\r\n"],
    ];
    for answers in parts {
        let server = saying(answers);
        let (told, read) = read(&bucket(&server), 5..9);
        let error = read.unwrap_err();
        assert!(told.is_empty() && matches!(error, Error::Protocol { .. }), "{answers:?} {error}");
        assert!(error.to_string().contains("s3://images/x/a"), "{error}");
        assert_eq!(server.heads().len(), 1, "{answers:?}");
    }
    // A body that always breaks off is asked for again as often as is allowed, and no more.
    let short = saying(&[
        "HTTP/1.1 206 Partial Content\r\nETag: \"e\"\r\nContent-Range: bytes 5-8/9\r\nContent-Length: 4\r\n\r\n",
    ]);
    let (told, read) = read(&bucket(&short), 5..9);
    assert!(told.is_empty() && read.unwrap_err().exit_code() == 10);
    assert_eq!(short.heads().len(), 3);
    let long = saying(&["HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nab"]);
    let error = bucket(&long).get("a", 9).unwrap_err();
    assert!(error.to_string().contains("it is longer than 9 bytes"), "{error}");
}

#[test]
fn a_redirect_is_not_followed_with_a_signature() {
    let server = saying(&[
        "HTTP/1.1 301 Moved\r\nx-amz-bucket-region: eu-central-1\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    ]);
    for error in ends(&server) {
        let text = error.to_string();
        assert!(text.contains("set AWS_REGION=eu-central-1") && error.exit_code() == 23, "{text}");
    }
    assert_eq!(server.heads().len(), 2);
}

#[test]
fn what_a_server_says_is_told_in_short_and_without_tricks() {
    let server = saying(&[
        "HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n<Error><Code>SignatureDoesNotMatch</Code>\
                           <Message>no\x1b[2J</Message><StringToSign>sesame</StringToSign></Error>",
    ]);
    for error in ends(&server) {
        let text = error.to_string();
        assert!(text.contains("SignatureDoesNotMatch") && text.contains("AWS_SECRET_ACCESS_KEY"), "{text}");
        assert!(!text.contains('\x1b') && !text.contains("sesame"), "{text}");
    }
}

#[test]
fn a_server_without_ranges_gives_whole_objects() {
    let data = data();
    let server = Server::new({
        let data = data.clone();
        move |_, _, stream: &mut TcpStream| {
            let head = format!("HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: {}\r\n\r\n", data.len());
            stream.write_all(head.as_bytes())?;
            stream.write_all(&data)
        }
    });
    let bucket = bucket(&server);
    let (told, served) = read(&bucket, 5..9);
    assert!(told.is_empty() && served.unwrap() == Served::WholeOnly);
    let mut whole = Vec::new();
    let read = bucket.read_whole("a", LENGTH as u64, &mut |bytes| {
        whole.extend_from_slice(bytes);
        Ok(())
    });
    assert!(read.is_ok());
    assert!(whole == data);
    let mut front = Vec::new();
    let read = bucket.read_front("a", 100_000, &mut |bytes| {
        front.extend_from_slice(bytes);
        Ok(())
    });
    assert!(read.is_ok());
    assert!(front == data[..100_000]);
    assert!(bucket.read_front("a", LENGTH as u64 + 1, &mut |_| Ok(())).is_err());
}

#[test]
fn each_request_wants_the_version_of_the_first() {
    let server = Server::new({
        let data = data();
        move |number, head, stream: &mut TcpStream| {
            let range = range(head).unwrap();
            if number == 0 {
                stream.write_all(part_head(&data, &range, "\"one\"").as_bytes())?;
                return close(stream, "abc");
            }
            assert_eq!(header(head, "if-match"), Some("\"one\""));
            let etag = if number < 3 { "\"one\"" } else { "\"other\"" };
            stream.write_all(part_head(&data, &range, etag).as_bytes())?;
            stream.write_all(&data[range])
        }
    });
    let bucket = bucket(&server);
    let (told, served) = read(&bucket, 0..1000);
    assert!(served.is_ok() && told.len() == 1000 && told[3..] == data()[3..1000]);
    assert_eq!(server.ranges()[..2], [Some(0..1000), Some(3..1000)]);
    assert!(read(&bucket, 1000..2000).1.is_ok());
    let error = read(&bucket, 2000..3000).1.unwrap_err();
    assert!(error.to_string().contains("it was changed while it was read"), "{error}");
}

#[test]
fn a_list_without_an_end_is_given_up() {
    let server = Server::new(|_, _, stream: &mut TcpStream| {
        let body = "<ListBucketResult><Name>images</Name><IsTruncated>true</IsTruncated>\
                    <NextContinuationToken>t</NextContinuationToken></ListBucketResult>";
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(text.as_bytes())
    });
    let error = bucket(&server).list("n/").unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    assert_eq!(server.heads().len(), 2);
}

#[test]
fn a_machine_without_keys_says_so_soon() {
    let server = saying(&["HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"]);
    let metadata = format!("http://127.0.0.1:{}", server.port());
    for metadata in [metadata.as_str(), "http://127.0.0.1:1"] {
        let variables = [("AWS_ENDPOINT_URL", "http://127.0.0.1:1"), ("AWS_METADATA_ENDPOINT", metadata)];
        let bucket = Bucket::open("s3://images/x", &options(&variables)).unwrap();
        let text = bucket.get("a", 9).unwrap_err().to_string();
        assert!(text.contains("nobody was told who asks") && text.contains("AWS_ACCESS_KEY_ID"), "{text}");
    }
    assert_eq!(server.heads().len(), 1);
}

#[test]
fn a_machine_is_told_its_keys_once() {
    let metadata = Server::new(|number, _, stream: &mut TcpStream| {
        let body = match number {
            0 => "token".to_string(),
            1 => "role".to_string(),
            _ => r#"{"AccessKeyId":"OFTHEMACHINE","SecretAccessKey":"s","Token":"t","Expiration":"2099-01-01T00:00:00Z"}"#.to_string(),
        };
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(text.as_bytes())
    });
    let server = Server::new(|_, head, stream| right(b"here", head, stream));
    let [endpoint, metadata_at] =
        [&server, &metadata].map(|server| format!("http://127.0.0.1:{}", server.port()));
    let variables =
        [("AWS_ENDPOINT_URL", endpoint.as_str()), ("AWS_METADATA_ENDPOINT", metadata_at.as_str())];
    let bucket = Bucket::open("s3://images/x", &options(&variables)).unwrap();
    for _ in 0..2 {
        assert_eq!(bucket.get("a", 9).unwrap().unwrap(), b"here");
    }
    let heads = server.heads();
    let authorization = header(&heads[1], "authorization").unwrap();
    assert!(authorization.contains("OFTHEMACHINE") && header(&heads[1], "x-amz-security-token") == Some("t"));
    assert_eq!(metadata.heads().len(), 3);
}

#[test]
fn everybody_reads_without_a_signature() {
    let server = Server::new(|_, head, stream| right(b"here", head, stream));
    let endpoint = format!("http://127.0.0.1:{}", server.port());
    let variables = [("AWS_ENDPOINT_URL", endpoint.as_str()), ("AWS_SKIP_SIGNATURE", "true")];
    let bucket = Bucket::open("s3://images", &options(&variables)).unwrap();
    assert_eq!(bucket.get("a b", 9).unwrap().unwrap(), b"here");
    let heads = server.heads();
    assert!(heads[0].starts_with("GET /images/a%20b HTTP/1.1\r\n"), "{}", heads[0]);
    assert_eq!(header(&heads[0], "authorization"), None);
}

#[test]
fn a_proxy_passes_on_what_is_put() {
    let proxy = saying(&["HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: 0\r\n\r\n"]);
    let mut options = options(&[
        ("AWS_ENDPOINT_URL", "http://far.example"),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "sesame"),
    ]);
    options.http.proxies =
        Proxies::new(Some(&format!("http://127.0.0.1:{}", proxy.port())), None, "").unwrap();
    let bucket = Bucket::open("s3://images", &options).unwrap();
    bucket.put("a", Content::Bytes(b"x")).unwrap();
    let heads = proxy.heads();
    assert!(heads[0].starts_with("PUT http://far.example/images/a HTTP/1.1\r\n"), "{}", heads[0]);
}

#[test]
fn a_server_that_takes_nothing_in_is_given_up() {
    let server = Server::new(|_, _, stream: &mut TcpStream| {
        std::thread::sleep(Duration::from_secs(3600));
        close(stream, "")
    });
    let mut options = options(&[("AWS_SKIP_SIGNATURE", "true")]);
    options.variables.insert("AWS_ENDPOINT_URL".into(), format!("http://127.0.0.1:{}", server.port()));
    options.http = WebOptions { retries: 0, window: Duration::from_millis(300), ..options.http };
    let bucket = Bucket::open("s3://images", &options).unwrap();
    let begun = Instant::now();
    let error = bucket.get("a", 9).unwrap_err();
    assert!(error.exit_code() == 30 && begun.elapsed() >= Duration::from_millis(300), "{error}");
    let variables: BTreeMap<String, String> = options.variables;
    assert_eq!(variables.len(), 2);
}
