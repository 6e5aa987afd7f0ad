//! Runs the program as its users do: as a child process, watched by a clock.

use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde_json::Value;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_holesync");

/// Far beyond what any run needs: it only ends hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// The program, in an environment that does not depend on who runs the tests.
pub fn holesync() -> Command {
    let mut command = Command::new(PROGRAM);
    command.env("LC_ALL", "C").env("COLUMNS", "100").env_remove("RSYNC_RSH");
    command
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; -1 when a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    what: String,
}

impl Outcome {
    /// Demands this exit code.
    #[track_caller]
    pub fn code(self, want: i32) -> Outcome {
        assert_eq!(self.code, want, "exit code of {self}");
        self
    }

    /// Demands success.
    #[track_caller]
    pub fn ok(self) -> Outcome {
        self.code(0)
    }

    /// Demands that the messages mention each of these.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Outcome {
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in the messages of {self}");
        }
        self
    }

    /// The last line of `--json`.
    #[track_caller]
    pub fn summary(&self) -> Value {
        let last = self.stdout.lines().last().unwrap_or_else(|| panic!("no output from {self}"));
        let value: Value =
            serde_json::from_str(last).unwrap_or_else(|e| panic!("{e} in the last line of {self}"));
        assert_eq!(value["event"], "summary", "last line of {self}");
        value
    }

    /// A number from the summary.
    #[track_caller]
    pub fn count(&self, key: &str) -> u64 {
        self.summary()[key].as_u64().unwrap_or_else(|| panic!("no number {key} in the summary of {self}"))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcome { code, stdout, stderr, what } = self;
        write!(f, "{what}\n-- exit code {code}\n-- stdout\n{stdout}\n-- stderr\n{stderr}")
    }
}

/// A run in progress, in a process group of its own. Dropping it ends the group.
pub struct Running {
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    what: String,
}

/// Starts a command in the background.
#[track_caller]
pub fn start(command: &mut Command) -> Running {
    start_on(command, Stdio::null())
}

/// Starts a command that reads `stdin`.
#[track_caller]
pub fn start_on(command: &mut Command, stdin: Stdio) -> Running {
    let what = format!("{command:?}");
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
    let stdout = Some(drain(child.stdout.take().expect("a pipe")));
    let stderr = Some(drain(child.stderr.take().expect("a pipe")));
    Running { child, stdout, stderr, what }
}

/// Runs a command to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    start(command).finish()
}

/// Runs a command that reads these bytes to its end.
#[track_caller]
pub fn run_on(command: &mut Command, input: &[u8]) -> Outcome {
    let mut file = tempfile::tempfile().expect("create a file");
    file.write_all(input).and_then(|()| file.rewind()).expect("write the input");
    start_on(command, file.into()).finish()
}

fn drain(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is still worth showing.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

impl Running {
    /// Waits for the end; a run that does not end fails the test.
    #[track_caller]
    pub fn finish(self) -> Outcome {
        self.finish_within(LIMIT)
    }

    /// Waits for the end, but not longer than `limit`.
    #[track_caller]
    pub fn finish_within(mut self, limit: Duration) -> Outcome {
        let in_time = wait_until(limit, || self.has_ended());
        // Also what the program left behind, or it would keep the pipes open.
        self.kill_group();
        let status = self.child.wait().expect("wait for the child");
        let text = |reader: Option<JoinHandle<Vec<u8>>>| {
            let bytes = reader.expect("taken once").join().expect("a reader");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let outcome = Outcome {
            code: status.code().unwrap_or(-1),
            stdout: text(self.stdout.take()),
            stderr: text(self.stderr.take()),
            what: std::mem::take(&mut self.what),
        };
        assert!(in_time, "still running after {limit:?}: {outcome}");
        outcome
    }

    /// Whether the program itself has ended. It stays a zombie until it is
    /// waited for, so its process group cannot be another's meanwhile.
    pub fn has_ended(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        !matches!(waitid(Id::Pid(self.pid()), flags), Ok(WaitStatus::StillAlive))
    }

    /// Signals the program alone, as `kill` does.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("signal a child that was not waited for");
    }

    fn kill_group(&self) {
        // ESRCH: nobody is left.
        let _ = killpg(self.pid(), Signal::SIGKILL);
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().expect("a pid"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.stdout.is_some() {
            self.kill_group();
            let _ = self.child.wait();
        }
    }
}

/// Polls until something is so; false when it did not come to be in time.
pub fn wait_until(limit: Duration, mut so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if so() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The processes that run `program` under exactly this name as an agent.
pub fn agents(program: &Path) -> Vec<Pid> {
    let program = program.as_os_str().as_encoded_bytes();
    let processes = std::fs::read_dir("/proc").expect("list /proc").flatten();
    processes
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let cmdline = std::fs::read(entry.path().join("cmdline")).ok()?;
            let mut words = cmdline.split(|&b| b == 0);
            let agent = words.next()? == program && words.next()? == b"agent";
            agent.then_some(Pid::from_raw(pid))
        })
        .collect()
}

/// Signals them all. Of two, one may end with the other before it is its turn.
#[track_caller]
pub fn signal_agents(program: &Path, signal: Signal) {
    for agent in agents(program) {
        let signalled = kill(agent, signal);
        assert!(matches!(signalled, Ok(()) | Err(Errno::ESRCH)), "{signalled:?}");
    }
}
