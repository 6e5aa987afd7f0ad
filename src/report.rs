//! What a run tells its user: events through [`Reporter`], counters in
//! [`Stats`]. The library never prints; the implementations are a
//! terminal, JSON lines, a log file beside another one, and silence.

mod bar;
mod first;
mod format;
mod hosts;
mod item;
mod json;
mod listing;
mod log;
mod meter;
mod order;
pub mod picture;
mod progress;
mod remarks;
mod terminal;

use std::time::Duration;

use indicatif::HumanBytes;
use serde::{Deserialize, Serialize};

use crate::error::{Failure, Warning};

pub use first::KeepsFirst;
pub use format::{ITEMIZED, LineFormat, NAMES, RunFacts};
pub use hosts::{HostsReporter, JsonHosts, TerminalHosts, Verdict};
pub use item::{Changes, Item, ItemKind};
pub use json::{JsonLines, print_error};
pub use log::{LogFile, Logged};
pub use meter::Traffic;
pub use order::InOrder;
pub use remarks::Remarks;
pub use terminal::{Progress, Terminal, Units, Verbosity, stats_table};

/// What a run did, in bytes unless another unit is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Regular files and devices that were looked at (count).
    pub files_total: u64,
    /// Files of which something was sent or changed (count).
    pub files_sent: u64,
    /// Files that could not be transferred (count).
    pub files_failed: u64,
    /// Source files that were gone before they could be read (count).
    pub files_vanished: u64,
    /// Sum of the lengths of the files.
    pub apparent_bytes: u64,
    /// Those of the bytes that are in data extents. Whole files that were skipped count as the
    /// system says they are allocated.
    pub data_bytes: u64,
    /// Data that the destination had already, in compared files.
    pub matched_bytes: u64,
    /// Data that travelled, counted before compression.
    pub sent_data_bytes: u64,
    /// Bytes hashed on the sending side.
    pub hashed_bytes: u64,
    /// Bytes hashed on the receiving side.
    pub basis_hashed_bytes: u64,
    /// Bytes of data at both ends that kept maps told of, and that were not read. What the other end
    /// believed it says in a message of its own.
    #[serde(skip)]
    pub believed_bytes: u64,
    /// Bytes written into destinations and what they are made from.
    pub written_bytes: u64,
    /// Bytes of the destinations that were made into holes.
    pub punched_bytes: u64,
    /// Files, directories and symlinks that are in place without all of their attributes.
    pub attributes_unset: u64,
    /// Entries that the source does not have and that were removed, or would be (count).
    pub removed: u64,
    /// The exit code that the worst failure asks for; 0 if there was none.
    pub worst_code: u8,
}

impl Stats {
    /// Adds the counters that only the receiving side knows.
    pub fn add_receiver(&mut self, other: &Stats) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.basis_hashed_bytes, other.basis_hashed_bytes);
        add(&mut self.believed_bytes, other.believed_bytes);
        add(&mut self.written_bytes, other.written_bytes);
        add(&mut self.punched_bytes, other.punched_bytes);
        add(&mut self.files_failed, other.files_failed);
        add(&mut self.attributes_unset, other.attributes_unset);
        add(&mut self.removed, other.removed);
        self.remember_code(other.worst_code);
    }

    /// Whether anything could not be transferred that was there.
    pub fn has_failed(&self) -> bool {
        self.files_failed > self.files_vanished
    }

    /// Counts a failure and remembers the code that matters most.
    pub fn count_failure(&mut self, code: u8) {
        self.files_failed += 1;
        self.remember_code(code);
    }

    /// Counts something that is in place without all of its attributes.
    pub fn count_unset(&mut self, code: u8) {
        self.attributes_unset += 1;
        self.remember_code(code);
    }

    /// Counts no fewer failures than were told of.
    pub fn count_told(&mut self, told: &Stats) {
        self.files_failed = self.files_failed.max(told.files_failed);
        self.attributes_unset = self.attributes_unset.max(told.attributes_unset);
        self.remember_code(told.worst_code);
    }

    fn remember_code(&mut self, code: u8) {
        let rank = |code: u8| [0, 25, 24, 23].iter().position(|&c| c == code).unwrap_or(usize::MAX);
        if rank(code) > rank(self.worst_code) {
            self.worst_code = code;
        }
    }
}

/// How the two ends were joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Both ends on this machine.
    Local,
    /// A holesync agent at the other end.
    Agent,
    /// Nothing but a shell at the other end.
    Shell,
    /// A store: a web server, a bucket, a directory.
    Store,
}

/// The totals of a run.
#[derive(Debug, Clone)]
pub struct Summary {
    /// What both ends did.
    pub stats: Stats,
    /// How often a connection was made: its work is counted for the last one alone, what
    /// went over the wire for all.
    pub tries: u32,
    /// Bytes sent through the connections.
    pub wire_sent: u64,
    /// Bytes received through the connections.
    pub wire_received: u64,
    /// How the two ends were joined.
    pub route: Route,
    /// From start to end.
    pub elapsed: Duration,
    /// Whether the run changed nothing on purpose.
    pub dry_run: bool,
}

/// What a part of a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Reading and comparing.
    Mapping,
    /// Data is travelling.
    Sending,
    /// The destination is being completed and synced to storage.
    WritingBack,
    /// Somebody else has to finish first.
    Waiting,
    /// What the source does not have is being removed.
    Removing,
}

/// Between whom a run goes on, for what is said of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ends {
    /// The host at the other end, if there is one.
    pub host: Option<String>,
    /// The destination is on this machine.
    pub pulls: bool,
    /// The destination is read back.
    pub verifies: bool,
    /// Images are read, and nothing goes anywhere.
    pub reads: bool,
}

/// What became of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The file was made equal; this much data travelled.
    Sent(u64),
    /// The file was equal already.
    Unchanged,
}

/// Something a user may want to know.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A connection stands, and this goes through it.
    Connected(&'a Traffic),
    /// A file was found, with this much data to be looked at.
    Found(u64),
    /// This much of the data is done, in this phase.
    Done(Phase, u64),
    /// A phase was entered.
    Phase(Phase),
    /// A file is equal now, and how it differed before.
    File(Item<'a>, Outcome, Changes),
    /// A directory or symlink is made, or found to be there, and how it differed before. Told
    /// where [`Options::tells_changes`](crate::options::Options::tells_changes) asks for it.
    Made(Item<'a>, Changes),
    /// An entry of a source, where they are listed and not transferred.
    Listed(Item<'a>),
    /// An entry that the source does not have was removed, or would be; the path is relative
    /// to the destination, with a slash behind a directory's.
    Removed(&'a [u8]),
    /// A file failed; the run goes on.
    Failed(&'a Failure),
    /// Something is in place, but not all of its attributes could be set; the run goes on.
    Unset(&'a Failure),
    /// Something unexpected that is no failure.
    Warning(&'a Warning),
    /// The connection died, and the run begins again: why, and when.
    Retry(&'a str),
    /// What would do better the next time: for people, not for a log.
    Hint(&'a str),
    /// What goes on besides, for whom that is wanted.
    Note(&'a str),
    /// What was chosen of several that would do, in the words of rsync.
    Choice(&'a str),
}

/// Where events go.
pub trait Reporter: Sync {
    /// Deals with an event. Called from several threads.
    fn event(&self, event: Event);
    /// Shows the totals of the run, which is over.
    fn summary(&self, summary: &Summary);
}

/// Shows nothing.
#[derive(Debug, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn event(&self, _: Event) {}
    fn summary(&self, _: &Summary) {}
}

/// A size for a message, in units people read.
pub fn human(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// Bytes that are so many, of hexadecimal digits.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        let (high, low) = digit(pair[0]).zip(digit(pair[1]))?;
        *byte = (high * 16 + low) as u8;
    }
    Some(bytes)
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
