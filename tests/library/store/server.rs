//! A web server that says what a test wants it to say.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Answers the request of this number, the first is 0; the second is its head. An error closes the connection.
pub type Answer = dyn Fn(usize, &str, &mut TcpStream) -> std::io::Result<()> + Send + Sync;

/// On a port of its own; ends when it is dropped.
pub struct Server {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
    over: Arc<AtomicBool>,
}

impl Server {
    pub fn new(
        answer: impl Fn(usize, &str, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            address: listener.local_addr().unwrap(),
            heads: Arc::default(),
            connections: Arc::default(),
            over: Arc::default(),
        };
        let (heads, connections, over) =
            (Arc::clone(&server.heads), Arc::clone(&server.connections), Arc::clone(&server.over));
        let answer: Arc<Answer> = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                *connections.lock().unwrap() += 1;
                let (heads, answer) = (Arc::clone(&heads), Arc::clone(&answer));
                thread::spawn(move || serve(stream.unwrap(), &heads, &*answer));
            }
        });
        server
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The URL of a store.
    pub fn url(&self) -> String {
        format!("http://{}/store", self.address)
    }

    /// The heads of all requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }

    /// The ranges that were asked for, one a request; `None`: all.
    pub fn ranges(&self) -> Vec<Option<Range<usize>>> {
        self.heads().iter().map(|head| range(head)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut stream: TcpStream, heads: &Mutex<Vec<String>>, answer: &Answer) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if !matches!(reader.read_line(&mut head), Ok(1..)) {
                return;
            }
        }
        let number = {
            let mut heads = heads.lock().unwrap();
            heads.push(head.clone());
            heads.len() - 1
        };
        if answer(number, &head, &mut stream).is_err() {
            return;
        }
    }
}

/// A header of a request.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The range that a request asks for.
pub fn range(head: &str) -> Option<Range<usize>> {
    let (first, last) = header(head, "range")?.strip_prefix("bytes=")?.split_once('-')?;
    Some(first.parse().unwrap()..last.parse::<usize>().unwrap() + 1)
}

/// Says it, and closes the connection.
pub fn close(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    stream.write_all(text.as_bytes())?;
    Err(std::io::ErrorKind::ConnectionAborted.into())
}

/// The head of an answer of a part of `data`, with this ETag.
pub fn part_head(data: &[u8], range: &Range<usize>, etag: &str) -> String {
    format!(
        "HTTP/1.1 206 Partial Content\r\nETag: {etag}\r\nContent-Range: bytes {}-{}/{}\r\nContent-Length: {}\r\n\r\n",
        range.start,
        range.end - 1,
        data.len(),
        range.len(),
    )
}

/// Serves `data` as a server should.
pub fn right(data: &[u8], head: &str, stream: &mut TcpStream) -> std::io::Result<()> {
    match range(head) {
        Some(range) => {
            stream.write_all(part_head(data, &range, "\"one\"").as_bytes())?;
            stream.write_all(&data[range])
        }
        None => {
            let head = format!("HTTP/1.1 200 OK\r\nETag: \"one\"\r\nContent-Length: {}\r\n\r\n", data.len());
            stream.write_all(head.as_bytes())?;
            stream.write_all(data)
        }
    }
}
