//! What the threads of a sender share.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::{Failure, Result, Warning, code, lock};
use crate::hashmap::map_file::SavedMap;
use crate::options::Options;
use crate::protocol::{FrameWriter, Message};
use crate::report::{Event, Phase, Reporter, Stats};
use crate::sender::announce::Files;
use crate::sender::known::KnownMaps;
use crate::sender::together::Decision;
use crate::source::Links;

/// Whose user the sender serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Failures are reported here.
    Initiator,
    /// Failures are sent to the other end, to be reported there.
    Responder,
}

/// What the threads of a sender share.
pub struct SenderShared<'a, W: Write> {
    pub files: Arc<Files>,
    pub output: Mutex<FrameWriter<W>>,
    pub stats: Mutex<Stats>,
    /// Other names of files.
    pub links: Mutex<Links>,
    pub options: &'a Options,
    pub side: Side,
    /// Of the protocol that both ends speak.
    pub version: u16,
    /// Who the receiver is, for people.
    pub peer: String,
    /// Files are described to the receiver: not to one that is too old in a dry run.
    pub describes: bool,
    /// What prepared files wait for, if they do.
    pub decision: Option<&'a dyn Decision>,
    /// Others send the same files from here.
    pub is_shared: bool,
    /// Maps that need not travel.
    pub known: KnownMaps,
    pub reporter: &'a dyn Reporter,
    /// What the map of the image is saved as.
    pub saved: Option<&'a SavedMap>,
}

impl<W: Write> SenderShared<'_, W> {
    pub fn lock_output(&self) -> MutexGuard<'_, FrameWriter<W>> {
        lock(&self.output)
    }

    pub fn send(&self, message: &Message) -> Result<()> {
        self.lock_output().message(message)
    }

    /// So much data is where it belongs, or has left.
    pub fn done(&self, phase: Phase, bytes: u64) {
        if bytes > 0 {
            self.reporter.event(Event::Done(phase, bytes));
        }
    }

    /// Has a warning shown where the user is.
    pub fn warn(&self, warning: Warning) -> Result<()> {
        match self.side {
            Side::Responder => self.send(&Message::warning(warning, self.version))?,
            Side::Initiator => self.reporter.event(Event::Warning(&warning)),
        }
        Ok(())
    }

    /// Counts a source that failed, and has it shown where the user is.
    pub fn source_failed(&self, failure: Failure) -> Result<()> {
        if failure.code == code::VANISHED {
            lock(&self.stats).files_vanished += 1;
        }
        lock(&self.stats).count_failure(failure.code);
        match self.side {
            Side::Responder => self.send(&Message::SourceFailed(failure))?,
            Side::Initiator => self.reporter.event(Event::Failed(&failure)),
        }
        Ok(())
    }
}
