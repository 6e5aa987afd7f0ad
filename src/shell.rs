//! The conversation with a far side that is nothing but a shell: commands to
//! `receiver.sh`, and its answers in order. `docs/remote.md` has both.

use std::collections::HashMap;
use std::process::ChildStdout;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use crate::error::{Error, Failure, Result, code, escape};
use crate::frames::Plain;
use crate::ladder::{self, Input, Output};
use crate::options::Options;

/// Bytes in a block that is compared by its SHA-256. Two processes there for each.
pub(crate) const BLOCK: u64 = 1 << 20;
/// The SHA-256 of a block.
pub(crate) type Sum = [u8; 32];

/// A shell at the other end that runs `receiver.sh`.
pub(crate) struct Shell {
    output: Output,
    answers: Receiver<Result<Vec<u8>>>,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BaseKind {
    Directory,
    Name,
    Absent,
}

/// How exactly times can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Times {
    No,
    Seconds,
    Nanoseconds,
}

/// Something that is there.
#[derive(Debug, Clone)]
pub(crate) struct There {
    /// Type and permissions, as stat(2) has them.
    pub mode: u32,
    pub size: u64,
    pub mtime: i64,
    /// `None`: the tools there do not tell.
    pub nanoseconds: Option<u32>,
    pub uid: u32,
    pub gid: u32,
}

/// What became of something that was asked for.
pub(crate) type Answer = std::result::Result<(), String>;

impl Shell {
    /// Has the shell read its script. `host` names it in errors.
    pub fn begin(input: Input, mut output: Output, host: &str) -> Result<Shell> {
        output.plain(&ladder::script(&[], include_str!("receiver.sh"))?)?;
        let (answers_in, answers) = channel();
        // Ends with the connection.
        std::thread::spawn(move || {
            read_answers(input.into_plain(), |answer| answers_in.send(answer).is_ok())
        });
        Ok(Shell { output, answers, host: host.into() })
    }

    /// Sends a command: a verb and its words.
    pub fn command(&mut self, words: &[&[u8]]) -> Result<()> {
        self.write(&command_line(words))
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
            Ok(line) => self.checked(line).and_then(|line| self.read_answer(&line)).map(Some),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => Ok(None),
        }
    }

    fn read_answer(&self, line: &[u8]) -> Result<Answer> {
        read_answer(line, b"done", &self.host)
    }

    /// Finds, or makes, the directory that everything goes to.
    pub fn base(&mut self, path: &[u8], is_file: bool, dry_run: bool) -> Result<Base> {
        let kind: &[u8] = if is_file { b"file" } else { b"directory" };
        self.command(&[b"base", kind, if dry_run { b"dry" } else { b"real" }, path])?;
        let line = self.line()?;
        let text = String::from_utf8_lossy(&line).into_owned();
        let words: Vec<&str> = text.split(' ').collect();
        let ["base", kind, umask, user, times, lists, sums, digs] = words[..] else {
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
        })
    }

    /// What is there of these paths and below them.
    pub fn list<'a>(&mut self, roots: impl Iterator<Item = &'a [u8]>) -> Result<HashMap<Vec<u8>, There>> {
        self.command(&[b"list"])?;
        for root in roots {
            self.command(&[&below(root)])?;
        }
        self.write(b".\n")?;
        let mut found = HashMap::new();
        let mut record = Record::default();
        loop {
            let line = self.line()?;
            if record.is_empty() && line == b"listed" {
                return Ok(found);
            }
            // What cannot be read is looked at as if it were not there.
            found.extend(record.add(&line).as_deref().and_then(read_there));
        }
    }

    /// Asks for the sums of blocks; [`Shell::sums`] gets them.
    pub fn ask_sums(&mut self, path: &[u8], blocks: &[std::ops::Range<u64>]) -> Result<()> {
        self.command(&[b"sums", BLOCK.to_string().as_bytes(), &below(path)])?;
        for run in blocks {
            self.write(format!("{} {}\n", run.start, run.end - run.start).as_bytes())?;
        }
        self.write(b".\n")?;
        self.flush()
    }

    /// The sums that were asked for. `None` for what could not be hashed.
    pub fn sums(&mut self) -> Result<Vec<Option<Sum>>> {
        let mut sums = Vec::new();
        loop {
            let line = self.line()?;
            if line == b"summed" {
                return Ok(sums);
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
        self.flush()?;
        let line = self.answers.recv().unwrap_or_else(|_| Err(self.closed()));
        self.checked(line)
    }

    fn checked(&self, line: Result<Vec<u8>>) -> Result<Vec<u8>> {
        line.and_then(|line| check(line, &self.host))
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
        bad(line, &self.host)
    }
}

/// Reads the answer that is `good`, or says why it failed.
pub(crate) fn read_answer(line: &[u8], good: &[u8], host: &str) -> Result<Answer> {
    match line.strip_prefix(b"failed ") {
        Some(why) => Ok(Err(escape(why))),
        None if line == good => Ok(Ok(())),
        None => Err(bad(line, host)),
    }
}

/// A line, unless it is one of those that end the run.
pub(crate) fn check(line: Vec<u8>, host: &str) -> Result<Vec<u8>> {
    let (verb, rest) = line.split_at(line.iter().position(|&b| b == b' ').map_or(line.len(), |at| at + 1));
    let rest = escape(rest);
    let (code, message) = match verb {
        b"fatal " => (code::FILE_IO, rest),
        b"refused " => (code::SELECT, format!("the destination {rest}")),
        b"lacks " => (
            code::START,
            format!(
                "there is no {rest}, without which its shell cannot take part: install coreutils or a newer \
                 BusyBox there, or use --agent=push"
            ),
        ),
        _ => return Ok(line),
    };
    Err(Error::Remote { peer: host.into(), failure: Failure { code, message } })
}

/// What is no answer.
pub(crate) fn bad(line: &[u8], host: &str) -> Error {
    let what = format!("\"{}\" where an answer must be", escape(&line[..line.len().min(256)]));
    Error::Protocol { peer: host.into(), what }
}

/// Collects the lines of a record, which ends in two slashes: a name may have
/// line ends in it, but no path that find prints has two slashes.
#[derive(Default)]
pub(crate) struct Record(Vec<u8>);

impl Record {
    /// Whether a line cannot be a part of one that is not complete.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The record, when this line completes it.
    pub fn add(&mut self, line: &[u8]) -> Option<Vec<u8>> {
        self.0.extend(line);
        if self.0.ends_with(b"//") {
            self.0.truncate(self.0.len() - 2);
            return Some(std::mem::take(&mut self.0));
        }
        self.0.push(b'\n');
        None
    }
}

/// What a shell cannot do is an error, not left out in silence.
pub(crate) fn refuse_what_needs_an_agent(options: &Options, host: &str) -> Result<()> {
    if options.verify {
        return Err(Error::Usage(format!(
            "--verify needs a holesync on {host}: install it there, or bring it with --agent=push"
        )));
    }
    Ok(())
}

fn read_answers(mut input: Plain<ChildStdout>, mut take: impl FnMut(Result<Vec<u8>>) -> bool) {
    loop {
        let line = input.line();
        let last = line.is_err();
        if !take(line) || last {
            return;
        }
    }
}

/// A path in the form that no tool takes for an option.
pub(crate) fn below(path: &[u8]) -> Vec<u8> {
    if path.is_empty() { b".".to_vec() } else { [b"./", path].concat() }
}

/// A verb and its words as a line.
pub(crate) fn command_line(words: &[&[u8]]) -> Vec<u8> {
    let words: Vec<Vec<u8>> = words.iter().map(|word| encode(word)).collect();
    let mut line = words.join(&b' ');
    line.push(b'\n');
    line
}

/// A word that `read` does not take apart and that printf's %b turns back.
fn encode(word: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(word.len());
    for &byte in word {
        if byte.is_ascii_alphanumeric() || b"/._+,@%=:-".contains(&byte) {
            encoded.push(byte);
        } else {
            encoded.extend(format!("\\0{byte:03o}").bytes());
        }
    }
    encoded
}

/// `mode size mtime uid gid ./name`, as stat prints it; the mode in hex.
fn read_there(record: &[u8]) -> Option<(Vec<u8>, There)> {
    let mut words = record.splitn(6, |&byte| byte == b' ');
    let mut word = || std::str::from_utf8(words.next()?).ok();
    let mode = u32::from_str_radix(word()?, 16).ok()?;
    let size = word()?.parse().ok()?;
    let (mtime, nanoseconds) = read_stamp(word()?)?;
    let (uid, gid) = (word()?.parse().ok()?, word()?.parse().ok()?);
    let name = words.next()?;
    let name = name.strip_prefix(b"./").unwrap_or(if name == b"." { b"" } else { name });
    Some((name.to_vec(), There { mode, size, mtime, nanoseconds, uid, gid }))
}

/// Seconds since 1970 as stat and touch write them: a decimal number, with a minus
/// before all of it. Seconds are rounded down, as the system calls have them; no
/// nanoseconds are given without nine digits for them.
pub(crate) fn read_stamp(text: &str) -> Option<(i64, Option<u32>)> {
    let (seconds, fraction) = text.split_once('.').map_or((text, None), |(s, f)| (s, Some(f)));
    let whole: i64 = seconds.parse().ok()?;
    let nanoseconds = fraction.filter(|digits| digits.len() == 9).and_then(|digits| digits.parse().ok());
    match nanoseconds {
        Some(above @ 1..) if text.starts_with('-') => Some((whole - 1, Some(1_000_000_000 - above))),
        other => Some((whole, other)),
    }
}

/// The same in the other direction.
pub(crate) fn stamp(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (..0, 1..) => format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds),
        _ => format!("{seconds}.{nanoseconds:09}"),
    }
}

fn read_sum(digits: &[u8]) -> Option<Sum> {
    let mut sum = Sum::default();
    for (byte, pair) in sum.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_their_way_through_text() {
        for time in [(0, 0), (-1, 999_999_999), (-1, 0), (-2, 1), (10, 1), (1_700_000_000, 999_999_999)] {
            let (seconds, nanoseconds) = time;
            assert_eq!(read_stamp(&stamp(seconds, nanoseconds)), Some((seconds, Some(nanoseconds))));
        }
        assert_eq!(stamp(-1, 999_999_999), "-0.000000001");
        assert_eq!(read_stamp("-5"), Some((-5, None)));
        assert_eq!(read_stamp("7.5"), Some((7, None)));
        assert_eq!(read_stamp("x"), None);
    }

    #[test]
    fn words_hold_nothing_that_a_shell_takes_apart() {
        assert_eq!(encode(b"./a b'c\n\xff"), b"./a\\0040b\\0047c\\0012\\0377");
        assert_eq!(command_line(&[b"dir", b"./x"]), b"dir ./x\n");
    }

    #[test]
    fn a_name_with_line_ends_is_one_record() {
        let mut record = Record::default();
        assert_eq!(record.add(b"81a4 5 7.000000001 0 0 ./a"), None);
        let found = record.add(b"b//").and_then(|record| read_there(&record));
        let (name, there) = found.expect("a record");
        assert_eq!((name.as_slice(), there.size, there.nanoseconds), (&b"a\nb"[..], 5, Some(1)));
        assert!(record.is_empty());
    }
}
