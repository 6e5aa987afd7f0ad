//! The commands that `receiver.sh` has not answered yet. Answers come in the order of
//! the commands, and no command waits for the answer to the one before it.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Result, code, printable};
use crate::report::{Changes, Event, Item, ItemKind, Outcome, Reporter, Stats};
use crate::shell::receiver::ReceivingShell;
use crate::shell::refusal::{CommandResult, Refusal};

/// A shell at the other end, with the commands that it has still to answer.
pub struct PendingCommands<'a> {
    pub shell: ReceivingShell,
    pub stats: Stats,
    /// The paths of the commands that failed at the other end.
    pub failed: HashSet<Vec<u8>>,
    waiting: VecDeque<PendingCommand>,
    host: &'a str,
    root: &'a Path,
    /// The root is the only file, not a directory.
    is_file: bool,
    reporter: &'a dyn Reporter,
}

struct PendingCommand {
    path: Vec<u8>,
    /// What the answer is about.
    about: About,
}

enum About {
    /// A name or its attributes: only a failure is reported.
    Name,
    /// A file, of which so many bytes of data were sent.
    File(u64),
    /// A file that this end has stopped describing, and reports by itself.
    StoppedFile,
}

impl<'a> PendingCommands<'a> {
    /// `root`: what paths are relative to, for messages.
    pub fn new(
        shell: ReceivingShell,
        host: &'a str,
        root: &'a Path,
        is_file: bool,
        reporter: &'a dyn Reporter,
    ) -> PendingCommands<'a> {
        // Where nothing is named the home is meant.
        let root = if root.as_os_str().is_empty() { Path::new("~") } else { root };
        let (stats, failed, waiting) = (Stats::default(), HashSet::new(), VecDeque::new());
        PendingCommands { shell, stats, failed, waiting, host, root, is_file, reporter }
    }

    /// Sends a command about a name, which is answered with how it went.
    pub fn send(&mut self, command: &[&[u8]], path: &[u8]) -> Result<()> {
        self.send_about(command, path, About::Name)
    }

    /// Sends the command for a file; its records follow, and it is answered after them.
    pub fn send_file(&mut self, command: &[&[u8]], path: &[u8]) -> Result<()> {
        self.send_about(command, path, About::File(0))
    }

    fn send_about(&mut self, command: &[&[u8]], path: &[u8], about: About) -> Result<()> {
        self.shell.command(command)?;
        self.waiting.push_back(PendingCommand { path: path.to_vec(), about });
        self.drain_answers()
    }

    /// Keeps how many bytes of data were sent for the last command.
    pub fn set_last_sent(&mut self, sent: u64) {
        self.set_last(About::File(sent));
    }

    /// Keeps that the file of the last command was not described to its end.
    pub fn set_last_stopped(&mut self) {
        self.set_last(About::StoppedFile);
    }

    fn set_last(&mut self, about: About) {
        if let Some(last) = self.waiting.back_mut() {
            last.about = about;
        }
    }

    /// Whether the other end still wants the file that is being described. Its command is
    /// the last one, and is answered before the file's end only if it failed.
    pub fn last_is_live(&mut self) -> Result<bool> {
        self.drain_answers()?;
        Ok(!self.waiting.is_empty())
    }

    /// Waits until every command is answered.
    pub fn wait_for_all(&mut self) -> Result<()> {
        while !self.waiting.is_empty() {
            let answer = self.shell.answer()?;
            self.on_answer(answer);
        }
        Ok(())
    }

    /// Deals with the answers that have come already.
    fn drain_answers(&mut self) -> Result<()> {
        while !self.waiting.is_empty()
            && let Some(answer) = self.shell.answer_so_far()?
        {
            self.on_answer(answer);
        }
        Ok(())
    }

    /// Deals with the answer to the oldest command.
    fn on_answer(&mut self, answer: CommandResult<Option<String>>) {
        let Some(PendingCommand { path, about }) = self.waiting.pop_front() else { return };
        match (answer, about) {
            (_, About::StoppedFile) => {}
            (Ok(unset), about) => {
                if let Some(what) = unset {
                    self.unset_far(&path, &what);
                }
                if let About::File(sent) = about {
                    self.stats.files_sent += 1;
                    self.report(&path, Outcome::Sent(sent));
                }
            }
            (Err(why), About::Name | About::File(_)) => {
                self.fail_far(&path, why);
                self.failed.insert(path);
            }
        }
    }

    /// Counts and shows what failed at the other end.
    pub fn fail_far(&mut self, path: &[u8], why: Refusal) {
        self.fail(why.error(self.path_of(path)).to_failure().on(self.host));
    }

    /// Counts and shows what is in place at the other end without all of its attributes.
    fn unset_far(&mut self, path: &[u8], what: &str) {
        let message = format!("{} is in place, but its {what} could not be set", self.name(path));
        self.stats.count_unset(code::PARTIAL);
        let failure = Failure::new(code::PARTIAL, message).about(self.path_of(path)).on(self.host);
        self.reporter.event(Event::Unset(&failure));
    }

    /// How something is named at the other end.
    pub fn path_of(&self, path: &[u8]) -> PathBuf {
        let path = Path::new(OsStr::from_bytes(path));
        // The root of a tree, too, has a name without a slash behind it.
        let is_root = self.is_file || path.as_os_str().is_empty();
        if is_root { self.root.into() } else { self.root.join(path) }
    }

    /// The same for people.
    fn name(&self, path: &[u8]) -> String {
        printable(&self.path_of(path))
    }

    /// Counts and shows a failure.
    pub fn fail(&mut self, failure: Failure) {
        self.stats.count_failure(failure.code);
        self.reporter.event(Event::Failed(&failure));
    }

    /// Shows what became of a file.
    pub fn report(&self, target: &[u8], outcome: Outcome) {
        let item = Item::new(target, ItemKind::File { length: None });
        self.reporter.event(Event::File(item, outcome, Changes::default()));
    }
}
