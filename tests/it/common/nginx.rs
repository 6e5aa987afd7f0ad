//! A real web server: nginx, on ports of a test's own, with what it was asked for in its log.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::lab;
use super::process::{run, wait_until};

/// A line of the log: one request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Where it came in.
    pub port: u16,
    pub method: String,
    pub path: String,
    pub status: u16,
    /// Of the body.
    pub bytes: u64,
    /// Which connection it came over.
    pub connection: u64,
    /// What was asked for; "-": all.
    pub range: String,
    /// HIT, MISS and the like of a cache; "-": there is none.
    pub cache: String,
}

/// It, below a directory of its own; it ends when this is dropped.
pub struct Nginx {
    dir: TempDir,
    ports: Vec<u16>,
    child: Child,
}

impl Nginx {
    /// Starts it with these ports and what stands in its block `http`; `PORT0` is the first port, `PORT1` the
    /// next, `PREFIX` its directory, of which `root` is served where nothing else is said. `None`, and a
    /// counted skip, where there is no nginx.
    pub fn start(ports: usize, http: &str) -> Option<Nginx> {
        if !Command::new("nginx")
            .arg("-v")
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
        {
            lab::skip("no nginx");
            return None;
        }
        // Another process may take a port that was free just before.
        (0..5).find_map(|_| Nginx::try_to_start(ports, http)).or_else(|| panic!("nginx does not start"))
    }

    /// One that serves the files of its `root`, and nothing else.
    pub fn plain() -> Option<Nginx> {
        Nginx::start(1, "server { listen 127.0.0.1:PORT0; }")
    }

    fn try_to_start(ports: usize, http: &str) -> Option<Nginx> {
        let dir = lab::scratch();
        let listeners: Vec<_> =
            (0..ports).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let ports: Vec<u16> = listeners.iter().map(|l| l.local_addr().expect("an address").port()).collect();
        drop(listeners);
        fs::create_dir(dir.path().join("root")).expect("mkdir");
        let user = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path PREFIX/temp/{kind};\n"))
            .concat();
        fs::create_dir(dir.path().join("temp")).expect("mkdir");
        let mut config = format!(
            "{user} daemon off; pid PREFIX/pid; error_log PREFIX/error.log; worker_processes 1;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n{temp}\
             log_format counted '$server_port $request_method $request_uri $status $body_bytes_sent $connection \
             \"$http_range\" \"$upstream_cache_status\"';\n\
             access_log PREFIX/access.log counted;\n\
             default_type application/octet-stream; sendfile on; keepalive_requests 100000; root PREFIX/root;\n\
             {http}\n}}\n"
        );
        for (number, port) in ports.iter().enumerate() {
            config = config.replace(&format!("PORT{number}"), &port.to_string());
        }
        config = config.replace("PREFIX", dir.path().to_str().expect("a plain path"));
        fs::write(dir.path().join("nginx.conf"), config).expect("write the configuration");
        let child = spawn(dir.path());
        let mut nginx = Nginx { dir, ports, child };
        nginx.is_up().then_some(nginx)
    }

    /// Whether it came to listen on all of its ports.
    fn is_up(&mut self) -> bool {
        let ports = self.ports.clone();
        let up = || ports.iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok());
        let mut ended = false;
        let settled = wait_until(Duration::from_secs(10), || {
            ended = self.child.try_wait().is_ok_and(|status| status.is_some());
            ended || up()
        });
        settled && !ended
    }

    /// Ends it in the middle of whatever it does, and starts it again on the same ports.
    pub fn restart(&mut self) {
        self.end();
        self.child = spawn(self.dir.path());
        assert!(self.is_up(), "{}", self.errors());
    }

    fn end(&mut self) {
        // Its workers are in its process group.
        let _ = killpg(Pid::from_raw(self.child.id().try_into().expect("a pid")), Signal::SIGKILL);
        let _ = self.child.wait();
    }

    pub fn port(&self, number: usize) -> u16 {
        self.ports[number]
    }

    /// A URL on its first port.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.ports[0])
    }

    /// The directory that is served.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Its own directory.
    pub fn prefix(&self) -> &Path {
        self.dir.path()
    }

    /// What it complained of.
    pub fn errors(&self) -> String {
        fs::read_to_string(self.dir.path().join("error.log")).unwrap_or_default()
    }

    /// What was answered so far, once that is `count` requests: a line comes shortly after the answer.
    #[track_caller]
    pub fn answered(&self, count: usize) -> Vec<Answered> {
        let lines = || fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default();
        let enough = || lines().lines().count() >= count;
        assert!(wait_until(Duration::from_secs(10), enough), "fewer than {count}: {}", lines());
        lines().lines().map(parse).collect()
    }

    /// Has it forget what was answered. The last line may be yet to come, but comes before that of what is
    /// asked now: it has one worker.
    #[track_caller]
    pub fn forget(&self) {
        static TIMES: AtomicU64 = AtomicU64::new(0);
        let log = self.dir.path().join("access.log");
        let last = format!("/forget-{}", TIMES.fetch_add(1, Ordering::Relaxed));
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports[0])).expect("connect");
        stream.write_all(format!("GET {last} HTTP/1.0\r\n\r\n").as_bytes()).expect("ask");
        let line = format!("{} GET {last} ", self.ports[0]);
        let is_there = || fs::read_to_string(&log).is_ok_and(|log| log.contains(&line));
        assert!(wait_until(Duration::from_secs(10), is_there), "no {line} in its log");
        let file = fs::OpenOptions::new().write(true).open(log);
        file.and_then(|file| file.set_len(0)).expect("empty the log");
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(dir: &Path) -> Child {
    let mut command = Command::new("nginx");
    command.arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf")).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("start nginx")
}

fn parse(line: &str) -> Answered {
    let mut words = line.split(' ');
    let mut word =
        || words.next().unwrap_or_else(|| panic!("a short line: {line}")).trim_matches('"').to_string();
    Answered {
        port: word().parse().expect("a port"),
        method: word(),
        path: word(),
        status: word().parse().expect("a status"),
        bytes: word().parse().expect("a length"),
        connection: word().parse().expect("a connection"),
        range: word(),
        cache: word(),
    }
}

/// A certificate for localhost and 127.0.0.1, and the authority that it is of: `ca.pem`, `cert.pem` and
/// `key.pem` in `dir`.
pub fn certificate(dir: &Path) {
    fs::write(dir.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").expect("write");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for arguments in [
        format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=holesync-tests"),
        format!("req {key} -keyout key.pem -out request.pem -subj /CN=localhost"),
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out cert.pem -extfile names".into(),
    ] {
        run(Command::new("openssl").args(arguments.split(' ')).current_dir(dir)).ok();
    }
}
