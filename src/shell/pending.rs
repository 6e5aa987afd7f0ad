//! What was asked of `receiver.sh` and is not answered yet. Answers come in order,
//! and nobody waits for one before the next thing is asked.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Failure, Result, code, printable};
use crate::report::{Event, Outcome, Reporter, Stats};
use crate::shell::Answer;
use crate::shell::receiver::ReceivingShell;

/// A shell at the other end, with what it still owes.
pub(crate) struct Asked<'a> {
    pub shell: ReceivingShell,
    pub stats: Stats,
    /// What failed at the other end.
    pub failed: HashSet<Vec<u8>>,
    waiting: VecDeque<Waiting>,
    host: &'a str,
    root: &'a Path,
    /// The root is the only file, not a directory.
    is_file: bool,
    reporter: &'a dyn Reporter,
}

struct Waiting {
    path: Vec<u8>,
    /// A file of which so much was sent.
    sent: Option<u64>,
    /// Its description was broken off here.
    stopped: bool,
}

impl<'a> Asked<'a> {
    /// `root`: what paths are relative to, for messages.
    pub fn new(
        shell: ReceivingShell,
        host: &'a str,
        root: &'a Path,
        is_file: bool,
        reporter: &'a dyn Reporter,
    ) -> Asked<'a> {
        let (stats, failed, waiting) = (Stats::default(), HashSet::new(), VecDeque::new());
        Asked { shell, stats, failed, waiting, host, root, is_file, reporter }
    }

    /// Sends a command that is answered with how it went. `sent`: it is for a file.
    pub fn ask(&mut self, command: &[&[u8]], path: &[u8], sent: Option<u64>) -> Result<()> {
        self.shell.command(command)?;
        self.waiting.push_back(Waiting { path: path.to_vec(), sent, stopped: false });
        self.take_what_came()
    }

    /// So much was sent of what was asked for last.
    pub fn last_has(&mut self, sent: u64) {
        self.waiting.back_mut().into_iter().for_each(|last| last.sent = Some(sent));
    }

    /// What was asked for last was broken off: its answer is no news.
    pub fn last_is_stopped(&mut self) {
        self.waiting.back_mut().into_iter().for_each(|last| last.stopped = true);
    }

    /// Whether the other end still wants the file that is being described: that is
    /// the last that was asked for, and it is answered early only if it failed.
    pub fn wants_the_last(&mut self) -> Result<bool> {
        self.take_what_came()?;
        Ok(!self.waiting.is_empty())
    }

    /// Waits until everything is answered.
    pub fn settle(&mut self) -> Result<()> {
        while !self.waiting.is_empty() {
            let answer = self.shell.answer()?;
            self.take(answer);
        }
        Ok(())
    }

    /// Takes note of the answers that have come already.
    fn take_what_came(&mut self) -> Result<()> {
        while !self.waiting.is_empty()
            && let Some(answer) = self.shell.answer_so_far()?
        {
            self.take(answer);
        }
        Ok(())
    }

    /// Takes note of the answer to what was asked for first.
    fn take(&mut self, answer: Answer) {
        let Some(Waiting { path, sent, stopped }) = self.waiting.pop_front() else { return };
        match (answer, sent) {
            (Ok(()), Some(sent)) => {
                self.stats.files_sent += 1;
                self.report(&path, Outcome::Sent(sent));
            }
            (Ok(()), None) => {}
            (Err(_), _) if stopped => {}
            (Err(why), _) => {
                self.fail_there(&path, &why);
                self.failed.insert(path);
            }
        }
    }

    /// Counts and shows what failed at the other end.
    pub fn fail_there(&mut self, path: &[u8], why: &str) {
        let path = Path::new(OsStr::from_bytes(path));
        let path = if self.is_file { self.root.into() } else { self.root.join(path) };
        let message = format!("{}: {}: {why}", self.host, printable(&path));
        self.fail(Failure { code: code::PARTIAL, message });
    }

    /// Counts and shows a failure.
    pub fn fail(&mut self, failure: Failure) {
        self.stats.count_failure(failure.code);
        self.reporter.event(Event::Failed(&failure));
    }

    /// Shows what became of a file.
    pub fn report(&self, target: &[u8], outcome: Outcome) {
        self.reporter.event(Event::File(Path::new(OsStr::from_bytes(target)), outcome));
    }
}
