//! The conversation with `receiver.sh` at the other end: commands, and its answers
//! in order. `docs/remote.md` has both.

use std::collections::HashMap;
use std::process::ChildStdout;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use crate::error::{Error, Failure, Result, code, escape};
use crate::options::{Commit, Options};
use crate::protocol::Plain;
use crate::remote::bootstrap::{self, Input, Output};
use crate::shell::pieces::{BLOCK, Sum};
use crate::shell::{self, Answer, Listing, There, Times, below};
use crate::source::Metadata;
use crate::stream::Outgoing;

/// Bytes of answers that may wait to be taken.
const MAX_QUEUED: usize = 32 << 20;

/// A shell at the other end that runs `receiver.sh`.
pub(crate) struct ReceivingShell {
    output: Output,
    answers: Receiver<Result<Vec<u8>>>,
    /// Bytes of answers that nobody has taken yet.
    queued: Arc<AtomicUsize>,
    host: String,
}

/// What the tools at the other end can do, and where they are.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    /// A directory, the name of a file in one, or nothing yet (in a dry run).
    pub kind: BaseKind,
    pub umask: u32,
    pub is_root: bool,
    pub times: Times,
    /// What is there can be looked at.
    pub lists: bool,
    /// Blocks can be hashed.
    pub sums: bool,
    /// Holes can be dug where zeros were sent for short ones.
    pub digs: bool,
    /// Many records cost no process each.
    pub bulk: bool,
}

impl Base {
    /// Mode, time, user and group (name, number) of something; `there` is what it replaces,
    /// or is. Five digits: with fewer, chmod leaves a directory its setgid bit.
    pub fn attributes(&self, metadata: &Metadata, there: Option<&There>, options: &Options) -> [String; 6] {
        let none = || "-".to_string();
        let in_place = options.commit == Commit::InPlace;
        let kept = there.filter(|_| !in_place);
        let mode = match (metadata.mode.filter(|_| options.perms), kept) {
            (Some(mode), _) => format!("{:05o}", mode & 0o7777),
            (None, Some(there)) => format!("{:05o}", there.mode & 0o7777),
            (None, None) if there.is_some() => none(),
            (None, None) => format!("{:05o}", metadata.mode.unwrap_or(0o666) & 0o777 & !self.umask),
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
        let [user, uid] = pair(user, kept.map(|there| there.uid));
        let [group, gid] = pair(group, kept.map(|there| there.gid));
        [mode, self.time(metadata, options), user, uid, group, gid]
    }

    fn time(&self, metadata: &Metadata, options: &Options) -> String {
        let mtime = metadata.mtime.filter(|_| options.times && self.can_set(metadata.mtime));
        match (mtime, self.times) {
            (Some((seconds, nanoseconds)), Times::Nanoseconds) => shell::stamp(seconds, nanoseconds),
            (Some((seconds, _)), Times::Seconds) => seconds.to_string(),
            (Some(_), Times::No) | (None, _) => "-".into(),
        }
    }

    /// Whether touch there can set a time, as far as it can set any: one that sets
    /// whole seconds sets none before 1970.
    pub fn can_set(&self, mtime: Option<(i64, u32)>) -> bool {
        self.times != Times::Seconds || mtime.is_none_or(|(seconds, _)| seconds >= 0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BaseKind {
    Directory,
    Name,
    Absent,
}

impl ReceivingShell {
    /// Has the shell read its script. `host` names it in errors.
    pub fn begin(input: Input, mut output: Output, host: &str) -> Result<ReceivingShell> {
        output.plain(&bootstrap::script(&[], &[shell::WORDS, include_str!("receiver.sh")])?)?;
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
        self.output.plain(bytes).map_err(|error| self.reason(error))
    }

    /// The next answer to what is not answered with a list.
    pub fn answer(&mut self) -> Result<Answer> {
        let line = self.line()?;
        self.read_answer(&line)
    }

    /// The same, if it has come already.
    pub fn answer_so_far(&mut self) -> Result<Option<Answer>> {
        match self.answers.try_recv() {
            Ok(line) => {
                let line = line?;
                self.queued.fetch_sub(line.len(), Ordering::Relaxed);
                self.checked(Ok(line)).and_then(|line| self.read_answer(&line)).map(Some)
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => Ok(None),
        }
    }

    fn read_answer(&self, line: &[u8]) -> Result<Answer> {
        shell::read_answer(line, b"done", &self.host)
    }

    /// Finds, or makes, the directory that everything goes to.
    pub fn base(&mut self, path: &[u8], is_file: bool, dry_run: bool) -> Result<Base> {
        let kind: &[u8] = if is_file { b"file" } else { b"directory" };
        self.command(&[b"base", kind, if dry_run { b"dry" } else { b"real" }, path])?;
        let line = self.line().map_err(|error| match error {
            Error::Remote { peer, failure: Failure { code: code @ code::SELECT, message } } => {
                let message = format!("{}: {message}", escape(path));
                Error::Remote { peer, failure: Failure { code, message } }
            }
            other => other,
        })?;
        let text = String::from_utf8_lossy(&line).into_owned();
        let words: Vec<&str> = text.split(' ').collect();
        let ["base", kind, umask, user, times, lists, sums, digs, bulk] = words[..] else {
            return Err(self.bad(&line));
        };
        Ok(Base {
            kind: match kind {
                "directory" => BaseKind::Directory,
                "yes" => BaseKind::Name,
                _ => BaseKind::Absent,
            },
            umask: u32::from_str_radix(umask, 8).map_err(|_| self.bad(&line))?,
            is_root: user == "0",
            times: match times {
                "nanoseconds" => Times::Nanoseconds,
                "seconds" => Times::Seconds,
                _ => Times::No,
            },
            lists: lists == "yes",
            sums: sums == "yes",
            digs: digs == "yes",
            bulk: bulk == "yes",
        })
    }

    /// What is there of these paths and below them.
    pub fn list<'a>(&mut self, roots: impl Iterator<Item = &'a [u8]>) -> Result<HashMap<Vec<u8>, There>> {
        self.command(&[b"list"])?;
        for root in roots {
            self.command(&[&below(root)])?;
        }
        self.write(b"//\n")?;
        let mut found = HashMap::new();
        let mut record = Listing::default();
        loop {
            // In the middle of a name a line can say anything.
            let line = if record.is_empty() { self.line()? } else { self.next_line()? };
            if record.is_empty() && line == b"listed" {
                return Ok(found);
            }
            // What cannot be read is looked at as if it were not there.
            found.extend(record.add(&line, &self.host)?.as_deref().and_then(shell::read_there));
        }
    }

    /// Asks for the sums of blocks; [`ReceivingShell::sums`] gets them.
    pub fn ask_sums(&mut self, path: &[u8], blocks: &[std::ops::Range<u64>]) -> Result<()> {
        self.command(&[b"sums", BLOCK.to_string().as_bytes(), &below(path)])?;
        for run in blocks {
            self.write(format!("{} {}\n", run.start, run.end - run.start).as_bytes())?;
        }
        self.write(b".\n")?;
        self.flush()
    }

    /// The sums that were asked for, so many. `None` for what could not be hashed.
    pub fn sums(&mut self, count: usize) -> Result<Vec<Option<Sum>>> {
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

    /// Has everything that was written leave this process.
    pub fn flush(&mut self) -> Result<()> {
        self.output.flush().map_err(|error| self.reason(error))
    }

    /// The shell has done all and leaves.
    pub fn end(&mut self) -> Result<()> {
        self.command(&[b"end"])?;
        match self.line()?.as_slice() {
            b"end" => Ok(()),
            other => Err(self.bad(other)),
        }
    }

    /// The next line, when it comes.
    fn line(&mut self) -> Result<Vec<u8>> {
        let line = self.next_line();
        self.checked(line)
    }

    /// The same, whatever it says.
    fn next_line(&mut self) -> Result<Vec<u8>> {
        self.flush()?;
        let line = self.answers.recv().unwrap_or_else(|_| Err(self.closed()))?;
        self.queued.fetch_sub(line.len(), Ordering::Relaxed);
        Ok(line)
    }

    fn checked(&self, line: Result<Vec<u8>>) -> Result<Vec<u8>> {
        line.and_then(|line| shell::check(line, &self.host))
    }

    /// Why nothing can be written any more, if the shell has said it.
    fn reason(&self, error: Error) -> Error {
        while let Ok(line) = self.answers.recv() {
            match self.checked(line) {
                Err(told @ Error::Remote { .. }) => return told,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        error
    }

    fn closed(&self) -> Error {
        Error::Closed { peer: self.host.clone(), detail: String::new() }
    }

    fn bad(&self, line: &[u8]) -> Error {
        shell::bad(line, &self.host)
    }
}

/// Takes lines as they come, whatever the caller's thread does: the shell must
/// never have to wait to be heard. One that says far too much is not listened to.
fn read_answers(
    mut input: Plain<ChildStdout>,
    answers: &Sender<Result<Vec<u8>>>,
    queued: &AtomicUsize,
    host: &str,
) {
    loop {
        let line = input.line().and_then(|line| {
            let before = queued.fetch_add(line.len(), Ordering::Relaxed);
            if before > MAX_QUEUED { Err(shell::bad(&line, host)) } else { Ok(line) }
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

/// Has a command at the other end read an image; `watch` sees what is sent.
/// Returns how many bytes of data that were.
///
/// # Errors
///
/// When either end fails.
pub fn through(
    input: Input,
    output: Output,
    image: &Outgoing,
    command: &[u8],
    destination: &[u8],
    host: &str,
    watch: impl Fn(&[u8]),
) -> Result<u64> {
    // That a command failed is no failure of a disk.
    let told = |error| match error {
        Error::Remote { peer, failure: Failure { code: code::FILE_IO, message } } => {
            Error::Remote { peer, failure: Failure { code: code::PARTIAL, message } }
        }
        other => other,
    };
    let mut shell = ReceivingShell::begin(input, output, host)?;
    shell.command(&[b"through", image.length.to_string().as_bytes(), destination, command])?;
    let sent = image.send(true, |bytes| {
        watch(bytes);
        shell.write(bytes)
    });
    let sent = sent.map_err(told)?;
    match shell.answer().map_err(told)? {
        Ok(()) => shell.end().map(|()| sent),
        Err(why) => {
            Err(Error::Remote { peer: host.into(), failure: Failure { code: code::PARTIAL, message: why } })
        }
    }
}
