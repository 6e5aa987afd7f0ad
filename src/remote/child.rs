//! A child process (ssh or another program) as a pair of streams. Its stderr is drained
//! and shown, its exit status is awaited and turned into the error. Knows nothing of what
//! goes over the streams.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::unistd::Pid;

use crate::error::{Error, Result, code, escape, in_words, lock};
use crate::location::Host;
use crate::remote::bootstrap::RemoteOptions;
use crate::remote::running::Watch;
use crate::sys;

/// The program that reaches a host, unless a command is given.
pub const SSH_PROGRAM: &str = "ssh";
/// The most bytes of a line of a child's stderr.
const MAX_LINE: u64 = 4096;
/// How long a line of a child's stderr is held back before it is shown: it may be the last one, and
/// then the error has it, once.
const HELD: u16 = 300; // milliseconds
/// How long a child may take to end by itself.
const EXIT_PATIENCE: Duration = Duration::from_secs(10);

/// How long the stderr of a child may stay open after its end: a connection that ssh keeps
/// for later (ControlPersist), or a job left behind, holds it for as long as it lives.
const STDERR_PATIENCE: Duration = Duration::from_millis(300);

/// A host at the other end of a child process.
#[derive(Debug)]
pub struct RemoteProcess {
    child: Child,
    /// Gone when the child has ended.
    watch: Option<Watch>,
    stderr: Stderr,
    host: Host,
    program: String,
}

/// The stderr of a child, which a thread shows as it comes.
#[derive(Debug)]
struct Stderr {
    thread: JoinHandle<()>,
    /// The last line that came, escaped, if it was not shown yet.
    held: Arc<Mutex<Option<String>>>,
    /// Shows a line, if there is one.
    show: fn(Option<String>),
}

/// Starts a command on a host. Returns the connection, and the command's stdout and stdin.
///
/// The command that reaches a host is split like a shell splits words;
/// options, the host and the command follow these words, as ssh takes them. The login shell
/// there, whichever it is, reads the command. `options` are those
/// that ssh takes behind `-o`, see ssh_config(5).
///
/// # Errors
///
/// [`Error::Usage`] when what reaches a host is no command, [`Error::Start`] when it cannot
/// be run.
pub fn connect(
    host: &Host,
    remote: &RemoteOptions,
    options: &[String],
    command: &str,
    program: &str,
) -> Result<(RemoteProcess, ChildStdout, ChildStdin)> {
    let words = command_line(host, remote.rsh.as_deref(), options, command)?;
    let mut child = Command::new(&words[0]);
    if remote.asks_nothing && remote.rsh.is_none() {
        // What is typed to end this process ends it alone, which may still have something to tell.
        child.process_group(0);
    }
    let spawned =
        child.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| {
        Error::Start(format!("cannot run {:?} to reach {host}: {}; see --rsh", words[0], in_words(&error)))
    })?;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(Error::Start("the child process has no pipes".into()));
    };
    let watch = Some(Watch::child(Pid::from_raw(child.id() as i32)));
    sys::grow_pipe(&stdin);
    sys::grow_pipe(&stdout);
    let held = Arc::default();
    let last = Arc::clone(&held);
    // Who asked for it is elsewhere, and is told why it failed, if it did.
    let show = if remote.is_onward { drop } else { show };
    let thread = std::thread::spawn(move || show_stderr(BufReader::new(stderr), &last, show));
    let stderr = Stderr { thread, held, show };
    let connection = RemoteProcess { child, watch, stderr, host: host.clone(), program: program.into() };
    Ok((connection, stdout, stdin))
}

fn command_line(host: &Host, rsh: Option<&str>, options: &[String], command: &str) -> Result<Vec<OsString>> {
    let rsh = rsh.unwrap_or(SSH_PROGRAM);
    let mut words: Vec<OsString> = shlex::split(rsh)
        .filter(|words| !words.is_empty())
        .ok_or_else(|| Error::Usage(format!("--rsh {rsh:?} is no command")))?
        .into_iter()
        .map(OsString::from)
        .collect();
    words.extend(options.iter().flat_map(|option| ["-o".into(), option.into()]));
    words.extend(host_words(host));
    words.push(command.into());
    Ok(words)
}

/// A host as words for ssh.
pub fn host_words(host: &Host) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    if let Some(port) = host.port {
        words.extend(["-p".into(), port.to_string().into()]);
    }
    if let Some(user) = &host.user {
        words.extend(["-l".into(), user.into()]);
    }
    words.push(OsString::from(&host.name));
    words
}

/// Has the stderr of a child shown line by line and escaped; holds the last line back for a moment.
fn show_stderr(mut input: BufReader<ChildStderr>, held: &Mutex<Option<String>>, show: fn(Option<String>)) {
    let mut line = Vec::new();
    loop {
        let may_wait = input.buffer().is_empty() && lock(held).is_some();
        if may_wait && !is_readable(input.get_ref()) {
            // The lock is free before anything is written: a terminal may be stopped.
            let line = lock(held).take();
            show(line);
        }
        let read = std::io::Read::take(&mut input, MAX_LINE).read_until(b'\n', &mut line);
        if !read.is_ok_and(|n| n > 0) {
            return;
        }
        // ssh ends its lines with CR LF.
        let earlier = lock(held).replace(escape(line.trim_ascii_end()));
        show(earlier);
        line.clear();
    }
}

/// Waits for something to be read, or the end, for as long as a line is held back.
fn is_readable(stderr: &ChildStderr) -> bool {
    let mut polled = [PollFd::new(stderr.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, HELD).is_ok_and(|ready| ready > 0)
}

fn show(line: Option<String>) {
    if let Some(line) = line {
        // A failure to write to stderr cannot be shown anywhere else.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

impl Stderr {
    /// The last line that was not shown, when no more are to be expected.
    fn last_words(&self) -> Option<String> {
        let start = Instant::now();
        while !self.thread.is_finished() && start.elapsed() < STDERR_PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
        lock(&self.held).take()
    }
}

/// Whether a process that ended with this status failed by itself. One whose connection was
/// cut did not: it is done, stopped by a signal, which a shell adds to 128 (POSIX, 2.8.2), or
/// an agent that says so.
fn tells_of_a_failure(status: i32) -> bool {
    let cut = [0, code::LINK.into(), code::STREAM.into(), code::TIMEOUT.into()];
    !cut.contains(&status) && status <= 128
}

impl RemoteProcess {
    /// Waits for the child, whose streams are closed by now, and combines how it ended with
    /// the result of the run.
    ///
    /// # Errors
    ///
    /// The error of the run, with the child's last words; that of the child, if the run
    /// itself had none.
    pub fn finish<T>(mut self, result: Result<T>) -> Result<T> {
        let status = self.wait(if result.is_ok() { EXIT_PATIENCE } else { Duration::from_secs(2) });
        self.watch = None;
        let ended_with = status.and_then(|status| status.code());
        let words = self.stderr.last_words().filter(|words| !words.is_empty());
        if !self.explains(&result, ended_with) {
            (self.stderr.show)(words);
            return result;
        }
        let detail = words.map_or(String::new(), |words| format!(": {words}"));
        let (host, program) = (self.host.to_string(), &self.program);
        match (result, ended_with) {
            (Ok(_), _) => {
                let ended = status.map_or("did not end".into(), |status| format!("ended with {status}"));
                Err(Error::Exited { peer: host, detail: format!(" (its process {ended}){detail}") })
            }
            (Err(Error::Unanswered { .. } | Error::Closed { .. } | Error::Link { .. }), Some(255)) => {
                Err(Error::Ssh { host, detail })
            }
            (Err(Error::Unanswered { .. }), Some(126 | 127)) if program == "sh" => {
                Err(Error::Start(format!(
                    "no shell can be run on {host}, which has to find a holesync there, or take its part{detail}"
                )))
            }
            (Err(Error::Unanswered { .. }), Some(126 | 127)) => Err(Error::Start(format!(
                "there is no {program} on {host}: copy this program into its PATH, name it with --remote-path, or \
                 leave --agent=require and --remote-path out{detail}"
            ))),
            (Err(error @ Error::Unanswered { .. }), _) => Err(Error::Start(format!(
                "{error}; can {program} be run on {host}, and does its login shell keep quiet? See --remote-path{detail}"
            ))),
            (Err(Error::Closed { peer, again, .. }), _) => {
                let ended = status.map_or(String::new(), |status| format!(" ({status})"));
                let detail = format!("{ended}{detail}");
                let failed = ended_with.is_some_and(tells_of_a_failure);
                Err(if failed {
                    Error::Exited { peer, detail }
                } else {
                    Error::Closed { peer, detail, again }
                })
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Whether how this child ended explains what comes of the run: an error is of this connection,
    /// and not of another one that ended within it.
    fn explains<T>(&self, result: &Result<T>, ended_with: Option<i32>) -> bool {
        let is_here = |peer: &str| peer == self.host.to_string();
        match result {
            Ok(_) => ended_with != Some(0),
            Err(Error::Link { peer, .. }) => ended_with == Some(255) && is_here(peer),
            Err(Error::Closed { peer, detail, .. }) => detail.is_empty() && is_here(peer),
            Err(Error::Unanswered { peer, .. }) => is_here(peer),
            Err(_) => false,
        }
    }

    /// The child's status. A child that does not end in time is stopped.
    fn wait(&mut self, patience: Duration) -> Option<std::process::ExitStatus> {
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if start.elapsed() < patience => std::thread::sleep(Duration::from_millis(2)),
                Ok(None) | Err(_) => break,
            }
        }
        // A child that cannot be stopped is left to init.
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }
}
