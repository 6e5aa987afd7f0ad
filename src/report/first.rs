//! Keeps what failed first, for the last line of a run, and passes everything on.

use std::sync::Mutex;

use crate::error::{Error, Failure, Result, code, lock};
use crate::report::{Event, Reporter, Stats, Summary};

/// Remembers the first failure. One that is no more than an attribute counts where there is no
/// other.
pub struct KeepsFirst<'a> {
    shown: &'a dyn Reporter,
    failed: Mutex<Option<Failure>>,
    unset: Mutex<Option<Failure>>,
}

impl<'a> KeepsFirst<'a> {
    /// Passes everything on to `shown`.
    pub fn new(shown: &'a dyn Reporter) -> KeepsFirst<'a> {
        KeepsFirst { shown, failed: Mutex::default(), unset: Mutex::default() }
    }

    /// Tells whether something failed in a run that did this.
    ///
    /// # Errors
    ///
    /// [`Error::Partial`], with the name of what failed first.
    pub fn verdict(&self, stats: &Stats) -> Result<()> {
        let Stats { files_failed: failed, attributes_unset: unset, worst_code: worst, .. } = *stats;
        // An agent that reports failures may leave out their code.
        let code = if worst == 0 { code::PARTIAL } else { worst };
        let first = lock(&self.failed).clone().or_else(|| lock(&self.unset).clone());
        let first = first.map_or(String::new(), |first| first.subject());
        if failed + unset > 0 { Err(Error::Partial { failed, unset, first, code }) } else { Ok(()) }
    }
}

impl Reporter for KeepsFirst<'_> {
    fn event(&self, event: Event) {
        let (kept, failure) = match event {
            Event::Failed(failure) => (&self.failed, failure),
            Event::Unset(failure) => (&self.unset, failure),
            _ => return self.shown.event(event),
        };
        lock(kept).get_or_insert_with(|| failure.clone());
        self.shown.event(event);
    }

    fn summary(&self, summary: &Summary) {
        self.shown.summary(summary);
    }
}
