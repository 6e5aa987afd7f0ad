//! Progress as the reporters show it where no bar can be drawn: counted all the time,
//! shown now and then.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::error::lock;
use crate::report::Phase;

/// The name of a phase, for people and programs.
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Mapping => "comparing",
        Phase::Sending => "sending",
        Phase::WritingBack => "writing",
        Phase::Waiting => "waiting",
        Phase::Removing => "removing",
    }
}

/// Counts progress, and tells when it is time to show it.
#[derive(Debug)]
pub struct Ticker(Mutex<Progress>);

#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Bytes of data to look at.
    pub found: u64,
    /// Those of them that are done.
    pub done: u64,
    shown: Instant,
}

impl Default for Ticker {
    fn default() -> Ticker {
        Ticker(Mutex::new(Progress { found: 0, done: 0, shown: Instant::now() }))
    }
}

impl Ticker {
    const PAUSE: Duration = Duration::from_millis(500);

    /// Counts from the beginning.
    pub fn restart(&self) {
        let mut progress = lock(&self.0);
        (progress.found, progress.done) = (0, 0);
    }

    /// Adds to the counts. Returns them when it is time to show them.
    pub fn add(&self, found: u64, done: u64) -> Option<Progress> {
        let mut progress = lock(&self.0);
        progress.found = progress.found.saturating_add(found);
        progress.done = progress.done.saturating_add(done);
        if progress.shown.elapsed() < Ticker::PAUSE {
            return None;
        }
        progress.shown = Instant::now();
        Some(*progress)
    }
}
