//! A file that its receiver has prepared waits until it is decided about all hosts of the run.

use std::io::Write;

use crate::error::Result;
use crate::hashmap::Hash;
use crate::protocol::Message;
use crate::report::{Event, Phase};
use crate::sender::session::Session;

/// Decides whether what all hosts of a run have prepared is put in place.
pub trait Decision: Sync {
    /// A host has prepared what has this root hash.
    ///
    /// # Errors
    ///
    /// When others have prepared something else.
    fn prepared(&self, root: &Hash) -> Result<()>;

    /// Whether it was decided against, without waiting.
    ///
    /// # Errors
    ///
    /// Then.
    fn still_open(&self) -> Result<()>;

    /// What was decided, if anything was: `Ok` to have it put in place. May wait a moment for it.
    fn decided(&self) -> Option<Result<()>>;
}

impl<W: Write> Session<'_, W> {
    /// Demands that what is being sent may still be put in place.
    ///
    /// # Errors
    ///
    /// What was decided against it.
    pub(super) fn check_decision(&self) -> Result<()> {
        self.shared.decision.map_or(Ok(()), Decision::still_open)
    }

    /// Waits for the decision about a file, and tells it. Meanwhile it is seen when the receiver is
    /// gone.
    ///
    /// # Errors
    ///
    /// What was decided against it; those of the connection.
    pub(super) fn await_decision(&mut self, decision: &dyn Decision, id: u64, root: &Hash) -> Result<()> {
        if std::mem::replace(&mut self.is_prepared, true) {
            return Err(self.unexpected("something prepared twice"));
        }
        decision.prepared(root)?;
        loop {
            if let Some(decided) = decision.decided() {
                decided?;
                break;
            }
            while let Some(arrival) = self.try_next(None)? {
                self.on_arrival(arrival)?;
            }
            if !self.awaited.contains_key(&id) {
                return Err(self.unexpected("the end of what it had prepared, before the decision"));
            }
        }
        self.is_decided = true;
        self.shared.reporter.event(Event::Phase(Phase::WritingBack));
        self.shared.send(&Message::Commit)
    }
}
