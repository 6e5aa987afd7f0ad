//! Connects again where a connection died, and goes on from what came: another try is the
//! same command once more, whose receiver finds what is there.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, code};
use crate::options::Options;
use crate::protocol::RunId;
use crate::remote;
use crate::report::{Event, Reporter};

/// Tries after the first, where ssh asks its user nothing and nobody has said how many.
const RETRIES: u32 = 3;

/// What all tries of one run share.
#[derive(Debug, Default)]
pub struct Tries {
    wanted: Option<u32>,
    /// An ssh was started that asks its user nothing.
    is_batch: AtomicBool,
    /// One was that may ask.
    asks: AtomicBool,
    /// Once the other end has answered.
    has_worked: AtomicBool,
    /// A host was sent to by another one.
    went_onward: AtomicBool,
    failed: AtomicU32,
    sent: AtomicU64,
    received: AtomicU64,
    run: OnceLock<RunId>,
}

impl Tries {
    /// `wanted`: how many tries may follow the first one, if the user has said so.
    pub fn new(wanted: Option<u32>) -> Tries {
        Tries { wanted, ..Tries::default() }
    }

    /// The same for a transfer. What one try took from the source the next would miss there, and
    /// remove at the destination.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] when more is wanted than can be.
    pub fn of(options: &Options, wanted: Option<u32>) -> Result<Tries> {
        if !(options.remove_source_files && options.removes()) {
            return Ok(Tries::new(wanted));
        }
        if wanted.is_some_and(|retries| retries > 0) {
            let what = "with --remove-source-files and --delete or --delete-missing-args there is one try: the \
                        next would remove at DEST what this one moved there; leave --retries out";
            return Err(Error::Usage(what.into()));
        }
        Ok(Tries::new(Some(0)))
    }

    /// A connection is being made; by an ssh that asks nothing, or not.
    pub fn connecting(&self, is_batch: bool) {
        let so = if is_batch { &self.is_batch } else { &self.asks };
        so.store(true, Ordering::Relaxed);
    }

    /// Whether an ssh may ask its user something.
    pub fn asks(&self) -> bool {
        self.asks.load(Ordering::Relaxed)
    }

    /// The other end has answered.
    pub fn answered(&self) {
        self.has_worked.store(true, Ordering::Relaxed);
    }

    /// One host sends to another by itself.
    pub fn goes_onward(&self) {
        self.went_onward.store(true, Ordering::Relaxed);
    }

    /// Whether one did, and its way may have died.
    pub fn went_onward(&self) -> bool {
        self.went_onward.load(Ordering::Relaxed)
    }

    /// Bytes went through a connection. Returns what went through all of them.
    pub fn wire(&self, sent: u64, received: u64) -> (u64, u64) {
        let add = |sum: &AtomicU64, more| sum.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        (add(&self.sent, sent), add(&self.received, received))
    }

    /// How many tries there were.
    pub fn count(&self) -> u32 {
        self.failed.load(Ordering::Relaxed) + 1
    }

    /// What tells the agents of this run from others; `None` where there is one try, or no
    /// randomness.
    pub fn run(&self) -> Option<RunId> {
        if self.most() == 0 {
            return None;
        }
        if let Some(run) = self.run.get() {
            return Some(*run);
        }
        let mut run = RunId::default();
        getrandom::fill(&mut run).ok()?;
        Some(*self.run.get_or_init(|| run))
    }

    /// The same for another agent of this run, which may be on the same host.
    pub fn second_run(&self) -> Option<RunId> {
        self.run().map(|mut run| {
            run[0] = !run[0];
            run
        })
    }

    fn may_try_again_unasked(&self) -> bool {
        self.is_batch.load(Ordering::Relaxed) && !self.asks()
    }

    fn most(&self) -> u32 {
        self.wanted.unwrap_or(if self.may_try_again_unasked() { RETRIES } else { 0 })
    }

    /// Runs `attempt`, again and again while its connection dies.
    pub fn run_until_done<T>(&self, reporter: &dyn Reporter, attempt: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            let error = match attempt() {
                Err(error) if self.is_worth_another(&error) => error,
                result => return result,
            };
            let failed = self.failed.fetch_add(1, Ordering::Relaxed);
            let pause = pause_after(failed);
            let what = format!(
                "{error} (code {}); try {} of {} in {} s",
                error.exit_code(),
                failed + 2,
                self.most() + 1,
                pause.as_secs()
            );
            reporter.event(Event::Retry(&what));
            if !waited(pause) {
                return Err(error);
            }
        }
    }

    fn is_worth_another(&self, error: &Error) -> bool {
        has_died(error)
            && self.has_worked.load(Ordering::Relaxed)
            && self.failed.load(Ordering::Relaxed) < self.most()
            && !remote::is_interrupted()
    }
}

/// Whether the connection died, and not what either end wanted: that would fail again.
pub(super) fn has_died(error: &Error) -> bool {
    match error {
        Error::Timeout { .. } | Error::Link { .. } | Error::Ssh { .. } | Error::Closed { .. } => true,
        Error::Remote { failure, .. } => matches!(failure.code, code::LINK | code::TIMEOUT),
        _ => false,
    }
}

/// 1, 4, 16, and from then on 60 s.
fn pause_after(failed: u32) -> Duration {
    Duration::from_secs(4u64.saturating_pow(failed).min(60))
}

/// `false`: a signal came.
fn waited(pause: Duration) -> bool {
    let start = Instant::now();
    while start.elapsed() < pause && !remote::is_interrupted() {
        std::thread::sleep(Duration::from_millis(20));
    }
    !remote::is_interrupted()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Again, Failure};
    use crate::options::Missing;
    use crate::report::Silent;
    use std::io;

    fn lost() -> Error {
        let source = io::Error::from(io::ErrorKind::TimedOut);
        Error::Timeout { doing: "reading", peer: "h".into(), source, again: Again::GoesOn }
    }

    #[test]
    fn what_moves_and_deletes_is_tried_once() {
        let most = |options: &Options| {
            let tries = Tries::of(options, None).unwrap();
            tries.connecting(true);
            tries.most()
        };
        let mut options = Options { missing: Missing::Deleted, ..Options::default() };
        assert_eq!(most(&options), RETRIES);
        options.remove_source_files = true;
        assert_eq!(most(&options), 0);
        assert!(Tries::of(&options, Some(1)).is_err() && Tries::of(&options, Some(0)).is_ok());
        options.missing = Missing::Failed;
        assert_eq!(most(&options), RETRIES);
    }

    #[test]
    fn pauses_grow_up_to_a_minute() {
        assert_eq!([0, 1, 2, 3, 90].map(|failed| pause_after(failed).as_secs()), [1, 4, 16, 60, 60]);
    }

    #[test]
    fn only_a_connection_that_had_worked_is_made_again_and_so_often() {
        let counted = |tries: &Tries, fail: fn() -> Error| {
            let count = AtomicU32::new(0);
            let attempt = || -> Result<()> {
                count.fetch_add(1, Ordering::Relaxed);
                Err(fail())
            };
            tries.run_until_done(&Silent, attempt).unwrap_err();
            count.into_inner()
        };
        let twice = Tries::new(Some(1));
        assert_eq!(counted(&twice, lost), 1, "it never worked");
        twice.answered();
        assert_eq!(counted(&twice, || Error::Usage("x".into())), 1);
        assert_eq!(counted(&twice, lost), 2);
        assert_eq!(twice.count(), 2);
        let unsaid = Tries::new(None);
        unsaid.answered();
        assert_eq!(counted(&unsaid, lost), 1);
        unsaid.connecting(true);
        assert!(unsaid.is_worth_another(&lost()) && unsaid.run().is_some());
        assert_eq!(unsaid.run(), unsaid.run());
    }

    #[test]
    fn what_an_end_refuses_is_not_asked_for_again() {
        let remote = |code| Error::Remote { peer: "h".into(), failure: Failure::new(code, "x") };
        let closed = Error::closed("h");
        let ssh = Error::Ssh { host: "h".into(), detail: String::new() };
        for error in [lost(), closed, ssh, remote(code::LINK), remote(code::TIMEOUT)] {
            assert!(has_died(&error), "{error}");
        }
        let exited = Error::Exited { peer: "h".into(), detail: String::new() };
        let bad = Error::Protocol { peer: "h".into(), what: "x".into() };
        for error in [exited, bad, remote(code::STREAM), remote(code::SSH), remote(code::FILE_IO)] {
            assert!(!has_died(&error), "{error}");
        }
    }
}
