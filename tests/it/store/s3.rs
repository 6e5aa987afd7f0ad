//! A real S3 server, `tests/s3`, which `tests/run` builds; or one that somebody names in the environment:
//! see `tests/garage`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use holesync::store::objects::{Bucket, BucketOptions, WebOptions};
use tempfile::TempDir;

use crate::common::lab;

pub const KEY: &str = "AKIDTESTS";
pub const SECRET: &str = "a secret of the tests";

/// A server with the empty bucket `images`.
pub struct S3 {
    program: PathBuf,
    dir: TempDir,
    address: SocketAddr,
    /// `None`: it is down.
    process: Mutex<Option<Child>>,
}

impl S3 {
    /// `None`, and a counted skip, where there is no such program.
    pub fn start() -> Option<S3> {
        let program = lab::root().map(|root| root.join("holesync-s3")).filter(|path| path.is_file());
        if program.is_none() {
            lab::skip("no S3 server was built");
        }
        let dir = lab::scratch();
        fs::create_dir(dir.path().join("images")).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = S3 { program: program?, dir, address, process: Mutex::default() };
        server.address = server.begin();
        Some(server)
    }

    fn begin(&self) -> SocketAddr {
        let mut command = Command::new(&self.program);
        command.arg(self.dir.path()).args([&self.address.to_string(), KEY, SECRET]).stdout(Stdio::piped());
        let mut process = command.spawn().expect("a server");
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        *self.process.lock().unwrap() = Some(process);
        line.trim().parse().unwrap_or_else(|_| panic!("an address: {line:?}"))
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap()
    }

    /// Kills it, with SIGKILL.
    pub fn kill(&self) {
        if let Some(mut process) = self.process().take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Starts it once more, at its address.
    pub fn restart(&self) {
        self.kill();
        assert_eq!(self.begin(), self.address);
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The file of an object.
    pub fn file(&self, key: &str) -> PathBuf {
        self.dir.path().join("images").join(key)
    }

    pub fn options(&self) -> BucketOptions {
        options(&format!("http://{}", self.address))
    }

    pub fn bucket(&self, prefix: &str) -> Bucket {
        Bucket::open(&format!("s3://images/{prefix}"), &self.options()).unwrap()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Who asks at an endpoint, with pauses that no test waits for.
pub fn options(endpoint: &str) -> BucketOptions {
    let variables =
        [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_ENDPOINT_URL", endpoint)];
    BucketOptions { variables: variables_of(&variables), http: patient() }
}

pub fn variables_of(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
    variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// Many attempts that follow each other soon: who waits for a server that comes back does not give up.
pub fn patient() -> WebOptions {
    WebOptions {
        retries: 200,
        backoff: Duration::from_millis(5),
        longest_wait: Duration::from_millis(100),
        ..WebOptions::default()
    }
}

/// Stands between a client and a server, and does something to the first connections.
pub struct Between {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// It is answered with this status by nobody who knows more.
    Status(&'static str),
    /// So many bytes go to the client, then it breaks.
    BreakDown(u64),
    /// So many bytes go to the server, then it breaks.
    BreakUp(u64),
}

impl Between {
    pub fn new(server: SocketAddr, faults: &[Fault]) -> Between {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let between = Between { address: listener.local_addr().unwrap(), connections: Arc::default() };
        let (connections, faults) = (Arc::clone(&between.connections), faults.to_vec());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let fault = faults.get(connections.fetch_add(1, Ordering::Relaxed)).copied();
                thread::spawn(move || pass(client, server, fault));
            }
        });
        between
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

fn pass(client: TcpStream, server: SocketAddr, fault: Option<Fault>) {
    if let Some(Fault::Status(status)) = fault {
        let mut head = [0; 4096];
        let _ = (&client).read(&mut head);
        let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        let _ = (&client).write_all(answer.as_bytes());
        return;
    }
    let Ok(server) = TcpStream::connect(server) else { return };
    let (up, down) = match fault {
        Some(Fault::BreakUp(bytes)) => (bytes, u64::MAX),
        Some(Fault::BreakDown(bytes)) => (u64::MAX, bytes),
        _ => (u64::MAX, u64::MAX),
    };
    let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let forth = thread::spawn(move || copy(&from, &to, up));
    copy(&server, &client, down);
    let _ = forth.join();
}

/// Copies so many bytes, and closes both ways.
fn copy(mut from: &TcpStream, mut to: &TcpStream, most: u64) {
    let _ = std::io::copy(&mut Read::take(&mut from, most), &mut to);
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
