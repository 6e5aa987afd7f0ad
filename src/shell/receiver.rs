//! The conversation with `receiver.sh` at the other end: commands, and its answers
//! in order. `docs/remote.md` has both.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use crate::error::{Error, Failure, Result, code, escape};
use crate::options::{Commit, Options};
use crate::protocol::Plain;
use crate::remote::{self, Incoming, Input, Output};
use crate::report::{Event, Phase};
use crate::shell::compare::{SUM_BLOCK, Sum};
use crate::shell::refusal::{self, CommandResult, Refusal};
use crate::shell::{self, FarFile, RecordLines, ShellSession, Times, relative};
use crate::source::Metadata;
use crate::stream::ImageStream;

/// The most bytes of answers that may wait to be read.
const MAX_QUEUED: usize = 32 << 20;

/// A shell at the other end that runs `receiver.sh`.
pub struct ReceivingShell {
    output: Output,
    answers: Receiver<Result<Vec<u8>>>,
    /// Bytes of answers that nobody has read yet.
    queued: Arc<AtomicUsize>,
    host: String,
}

/// Where everything goes at the other end, and what the tools there can do.
#[derive(Debug, Clone)]
pub struct FarRoot {
    pub kind: FarRootKind,
    /// The name is that of a block device, or of a symlink to one.
    pub is_device: bool,
    pub umask: u32,
    pub is_root: bool,
    pub times: Times,
    /// `find` and `stat` tell what the other end has.
    pub can_list: bool,
    /// `sha256sum` hashes blocks.
    pub can_hash: bool,
    /// `fallocate` digs holes where zeros were sent for short ones.
    pub can_dig_holes: bool,
    /// `perl` writes many records with one process.
    pub has_bulk_writer: bool,
    /// Bytes that were free at the start, if something there tells.
    pub free: Option<u64>,
}

impl FarRoot {
    /// The words for mode, time, user and group (name, number) of an entry; `far` is what
    /// the other end has in its place. The mode has five digits: with fewer, chmod leaves a
    /// directory its setgid bit. A file keeps set-id bits only where the owner or group that
    /// they mean is asked for; the script clears them where it cannot be given.
    pub fn attributes(
        &self,
        metadata: &Metadata,
        is_directory: bool,
        far: Option<&FarFile>,
        options: &Options,
    ) -> [String; 6] {
        let none = || "-".to_string();
        let in_place = options.commit == Commit::InPlace;
        let kept = far.filter(|_| !in_place);
        let mode = match (metadata.mode.filter(|_| options.perms), kept) {
            (Some(mode), _) if is_directory => format!("{:05o}", mode & 0o7777),
            (Some(mode), _) => format!("{:05o}", shell::safe_mode(mode & 0o7777, options, true, true)),
            (None, Some(kept)) if is_directory => format!("{:05o}", kept.mode & 0o7777),
            (None, Some(kept)) => format!("{:05o}", kept.mode & 0o1777),
            (None, None) if far.is_some() => none(),
            (None, None) => {
                let usual = if is_directory { 0o777 } else { 0o666 };
                format!("{:05o}", metadata.mode.unwrap_or(usual) & 0o777 & !self.umask)
            }
        };
        let owner = metadata.owner.as_ref();
        let kept = kept.filter(|_| self.is_root);
        let pair = |wanted: Option<(&String, u32)>, kept: Option<u32>| match (wanted, kept) {
            (Some((name, number)), _) => {
                [if name.is_empty() { none() } else { name.clone() }, number.to_string()]
            }
            (None, Some(number)) => [none(), number.to_string()],
            (None, None) => [none(), none()],
        };
        let user = owner.filter(|_| options.owner).map(|owner| (&owner.user, owner.uid));
        let group = owner.filter(|_| options.group).map(|owner| (&owner.group, owner.gid));
        let [user, uid] = pair(user, kept.map(|far| far.uid));
        let [group, gid] = pair(group, kept.map(|far| far.gid));
        [mode, self.time(metadata, options), user, uid, group, gid]
    }

    fn time(&self, metadata: &Metadata, options: &Options) -> String {
        let mtime = metadata.mtime.filter(|_| options.times && self.can_set_time(metadata.mtime));
        match (mtime, self.times) {
            (Some((seconds, nanoseconds)), Times::Nanoseconds) => shell::format_time(seconds, nanoseconds),
            (Some((seconds, _)), Times::Seconds) => seconds.to_string(),
            (Some(_), Times::No) | (None, _) => "-".into(),
        }
    }

    /// Whether touch there can set a time, as far as it can set any: one that sets
    /// whole seconds sets none before 1970.
    pub fn can_set_time(&self, mtime: Option<(i64, u32)>) -> bool {
        self.times != Times::Seconds || mtime.is_none_or(|(seconds, _)| seconds >= 0)
    }
}

/// What the root at the other end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FarRootKind {
    Directory,
    /// A directory that was made for this run.
    New,
    /// The name of a file in a directory.
    Name,
    /// Nothing yet, in a dry run.
    Absent,
}

impl ReceivingShell {
    /// Has the shell read its script. `host` names the shell in errors.
    pub fn begin(input: Input, mut output: Output, host: &str) -> Result<ReceivingShell> {
        output.plain(&remote::script(&[], &[shell::COMMON_SCRIPT, include_str!("receiver.sh")])?)?;
        let (answers_in, answers) = channel();
        let queued = Arc::default();
        let count = Arc::clone(&queued);
        let peer = host.to_owned();
        // Ends with the connection.
        std::thread::spawn(move || read_answers(input.into_plain(), &answers_in, &count, &peer));
        Ok(ReceivingShell { output, answers, queued, host: host.into() })
    }

    /// Sends a command: a verb and its words.
    pub fn command(&mut self, words: &[&[u8]]) -> Result<()> {
        self.write(&shell::command_line(words))
    }

    /// Sends bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.plain(bytes).map_err(|error| self.cause(error))
    }

    /// Waits for the answer to a command that is answered with a single line.
    pub fn answer(&mut self) -> Result<CommandResult<Option<String>>> {
        let line = self.line()?;
        self.read_answer(&line)
    }

    /// The answer to such a command, if it has come already.
    pub fn answer_so_far(&mut self) -> Result<Option<CommandResult<Option<String>>>> {
        match self.answers.try_recv() {
            Ok(line) => {
                let line = line?;
                self.queued.fetch_sub(line.len(), Ordering::Relaxed);
                self.checked(Ok(line)).and_then(|line| self.read_answer(&line)).map(Some)
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => Ok(None),
        }
    }

    /// Where it is done, which attributes could not be set, if any.
    fn read_answer(&self, line: &[u8]) -> Result<CommandResult<Option<String>>> {
        if let Some(what) = line.strip_prefix(b"unset ") {
            return Ok(Ok(Some(escape(what))));
        }
        Ok(refusal::read_result(line, b"done", &self.host)?.map(|()| None))
    }

    /// Finds, or makes, the directory that everything goes to.
    pub fn open_root(&mut self, path: &[u8], is_file: bool, options: &Options) -> Result<FarRoot> {
        let kind: &[u8] = if is_file { b"file" } else { b"directory" };
        let dry = if options.dry_run { b"dry".as_slice() } else { b"real" };
        let sync = if options.fsync { b"sync".as_slice() } else { b"nosync" };
        let guard = if options.force_in_use { b"force".as_slice() } else { b"guard" };
        self.command(&[b"base", kind, dry, path, sync, guard])?;
        let line = self.line().map_err(|error| match error {
            Error::Remote { peer, failure: Failure { code: code @ code::SELECT, message, .. } } => {
                let path = PathBuf::from(OsStr::from_bytes(path));
                let failure = match Refusal::read(message.as_bytes()) {
                    Some(refusal) => refusal.about_a_parent(path),
                    None => Error::refused(path, message).to_failure(),
                };
                Error::Remote { peer, failure: Failure { code, ..failure } }
            }
            other => other,
        })?;
        let text = String::from_utf8_lossy(&line).into_owned();
        let words: Vec<&str> = text.split(' ').collect();
        let ["base", kind, umask, user, times, can_list, can_hash, can_dig_holes, has_bulk_writer, free] =
            words[..]
        else {
            return Err(self.bad(&line));
        };
        Ok(FarRoot {
            kind: match kind {
                "directory" => FarRootKind::Directory,
                "new" => FarRootKind::New,
                "yes" | "device" => FarRootKind::Name,
                _ => FarRootKind::Absent,
            },
            is_device: kind == "device",
            umask: u32::from_str_radix(umask, 8).map_err(|_| self.bad(&line))?,
            is_root: user == "0",
            times: match times {
                "nanoseconds" => Times::Nanoseconds,
                "seconds" => Times::Seconds,
                _ => Times::No,
            },
            can_list: can_list == "yes",
            can_hash: can_hash == "yes",
            can_dig_holes: can_dig_holes == "yes",
            has_bulk_writer: has_bulk_writer == "yes",
            free: free.parse().ok(),
        })
    }

    /// Lists what the other end has of these paths, and below them.
    pub fn list<'a>(&mut self, roots: impl Iterator<Item = &'a [u8]>) -> Result<HashMap<Vec<u8>, FarFile>> {
        self.command(&[b"list"])?;
        for root in roots {
            self.command(&[&relative(root)])?;
        }
        self.write(b"//\n")?;
        let mut found = HashMap::new();
        let mut record = RecordLines::default();
        loop {
            // A line in the middle of a name may be anything.
            let line = if record.is_empty() { self.line()? } else { self.next_line()? };
            if record.is_empty() && line == b"listed" {
                return Ok(found);
            }
            // A record that cannot be read counts as if there were no such file.
            found.extend(record.add(&line, &self.host)?.as_deref().and_then(shell::read_far_file));
        }
    }

    /// Requests the hashes of blocks; [`ReceivingShell::read_sums`] gets them.
    pub fn request_sums(&mut self, path: &[u8], blocks: &[std::ops::Range<u64>]) -> Result<()> {
        self.command(&[b"sums", SUM_BLOCK.to_string().as_bytes(), &relative(path)])?;
        for run in blocks {
            self.write(format!("{} {}\n", run.start, run.end - run.start).as_bytes())?;
        }
        self.write(b".\n")?;
        self.flush()
    }

    /// Reads the hashes of so many blocks. `None` for a block that could not be hashed.
    pub fn read_sums(&mut self, count: usize) -> Result<Vec<Option<Sum>>> {
        let mut sums = Vec::new();
        loop {
            let line = self.line()?;
            if line == b"summed" && sums.len() == count {
                return Ok(sums);
            }
            if sums.len() == count || line == b"summed" {
                return Err(self.bad(&line));
            }
            sums.push(line.get(..64).and_then(read_sum));
        }
    }

    /// Sends what was written and is still in a buffer here.
    pub fn flush(&mut self) -> Result<()> {
        self.output.flush().map_err(|error| self.cause(error))
    }

    /// Ends the conversation.
    pub fn end(&mut self) -> Result<()> {
        self.command(&[b"end"])?;
        match self.line()?.as_slice() {
            b"end" => Ok(()),
            other => Err(self.bad(other)),
        }
    }

    /// Waits for the next line, which may be one that ends the run.
    fn line(&mut self) -> Result<Vec<u8>> {
        let line = self.next_line();
        self.checked(line)
    }

    /// Waits for the next line, whatever is in it.
    fn next_line(&mut self) -> Result<Vec<u8>> {
        self.flush()?;
        let line = self.answers.recv().unwrap_or_else(|_| Err(self.closed()))?;
        self.queued.fetch_sub(line.len(), Ordering::Relaxed);
        Ok(line)
    }

    fn checked(&self, line: Result<Vec<u8>>) -> Result<Vec<u8>> {
        line.and_then(|line| shell::check_line(line, &self.host))
    }

    /// Why nothing can be written any more: the shell's last words, if there are any.
    fn cause(&self, error: Error) -> Error {
        while let Ok(line) = self.answers.recv() {
            match self.checked(line) {
                Err(reported @ Error::Remote { .. }) => return reported,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        error
    }

    fn closed(&self) -> Error {
        Error::closed(&self.host)
    }

    fn bad(&self, line: &[u8]) -> Error {
        shell::unexpected(line, &self.host)
    }
}

/// Reads lines as they come, whatever the caller's thread does: the shell must never
/// have to wait until its answers are read. A shell that sends far too many is an error.
fn read_answers(
    mut input: Plain<Incoming>,
    answers: &Sender<Result<Vec<u8>>>,
    queued: &AtomicUsize,
    host: &str,
) {
    loop {
        let line = input.line().and_then(|line| {
            let before = queued.fetch_add(line.len(), Ordering::Relaxed);
            if before > MAX_QUEUED { Err(shell::unexpected(&line, host)) } else { Ok(line) }
        });
        let last = line.is_err();
        if answers.send(line).is_err() || last {
            return;
        }
    }
}

fn read_sum(digits: &[u8]) -> Option<Sum> {
    let mut sum = Sum::default();
    for (byte, pair) in sum.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(sum)
}

/// Has a command at the other end read an image. Returns how many bytes of data were
/// sent.
///
/// # Errors
///
/// When either end fails.
pub fn run_command(
    session: ShellSession,
    image: &ImageStream,
    command: &[u8],
    destination: &[u8],
) -> Result<u64> {
    let ShellSession { input, output, host, reporter, .. } = session;
    // A command that failed is no failure of a disk.
    let partial = |error| match error {
        Error::Remote { peer, failure: Failure { code: code::FILE_IO, message, .. } } => {
            Error::Remote { peer, failure: Failure::new(code::PARTIAL, message) }
        }
        other => other,
    };
    let mut shell = ReceivingShell::begin(input, output, host)?;
    shell.command(&[b"through", image.length.to_string().as_bytes(), destination, command])?;
    let sent = image.send(true, |bytes| {
        reporter.event(Event::Done(Phase::Sending, bytes.len() as u64));
        shell.write(bytes)
    });
    let sent = sent.map_err(partial)?;
    match shell.answer().map_err(partial)? {
        Ok(_) => shell.end().map(|()| sent),
        Err(why) => {
            let path = OsStr::from_bytes(destination);
            Err(Error::Remote { peer: host.into(), failure: why.error(path).to_failure() })
        }
    }
}
