//! The decision of a run to several hosts together. Each host prepares its file and waits; when all
//! have, the decision is [recorded](record) here, on storage, and only then is any of them told to put
//! it in its place.
//!
//! 1. A host that has nothing to do counts as prepared.
//! 2. One that fails before the decision ends it for all: nothing is put in place. One whose
//!    connection died and is made again waits as if it had not been prepared.
//! 3. The image must then be in the state in which the run began with it, and what all hosts
//!    prepared the same.
//! 4. After the decision nothing is taken back. A host that is lost then is in the record, and the
//!    next run with that image and that host has it put in place what it prepared, without waiting
//!    for others.

mod record;

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::confinement::NamedPath;
use crate::error::{Error, Failure, Result, code, lock};
use crate::hashmap::Hash;
use crate::location::Host;
use crate::options::{Commit, DeploymentId, Options};
use crate::protocol::{Request, TOGETHER};
use crate::receiver::Target;
use crate::remote::{self, Agent, Finishing, RemoteOptions};
use crate::report::hex;
use crate::sender::Decision;
use record::{ImageState, Record, Records};

/// How long one look at the decision may take.
const SLICE: Duration = Duration::from_millis(50);

/// How far a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vote {
    /// Not prepared.
    Waiting,
    /// It could put its file in place.
    Prepared,
    /// It has it, or nothing is to be done.
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Undecided,
    Commit,
    /// Why.
    Abort {
        why: String,
        host: Option<usize>,
    },
}

struct State {
    votes: Vec<Vote>,
    /// Which hosts are being sent to.
    sending: Vec<bool>,
    verdict: Verdict,
    /// What was prepared.
    root: Option<Hash>,
    /// More hosts that may be sent to now.
    free: usize,
    /// A signal waits until all are told.
    _finishing: Option<Finishing>,
}

/// What all hosts of a run wait for.
pub(super) struct Together {
    state: Mutex<State>,
    changed: Condvar,
    names: Vec<String>,
    /// What the record names them.
    places: Vec<String>,
    run: DeploymentId,
    image: ImageState,
    /// What was decided by earlier runs, and for which of these hosts.
    before: Vec<Record>,
    /// The same of other states of the image.
    stale: Vec<Record>,
}

/// One host of them.
#[derive(Clone)]
pub(super) struct Seat {
    together: Arc<Together>,
    at: usize,
}

/// A shell cannot wait for a decision.
pub(super) fn no_holesync(host: &Host) -> Error {
    let message = "there is no holesync, which --together needs to have the image ready and wait: install one there, \
                   bring this one along with --agent=push, or name it with --remote-path";
    Error::Remote { peer: host.to_string(), failure: Failure::new(code::START, message) }
}

/// Refuses what cannot wait for a decision. `directory`: the destination must be one, as there is more
/// than one source, or a list of names.
///
/// # Errors
///
/// [`Error::Usage`], and when SRC cannot be looked at.
pub(super) fn check<'a>(
    sources: &'a [NamedPath],
    directory: bool,
    options: &Options,
    remote: &RemoteOptions,
) -> Result<&'a Path> {
    let refuse = |what: &str| Err(Error::Usage(format!("--together {what}")));
    let ([source], false) = (sources, directory) else {
        return refuse("sends one image: name one SRC, and no list");
    };
    let kind =
        fs::symlink_metadata(source.path()).map_err(Error::file("look at", source.path()))?.file_type();
    if !(kind.is_file() || kind.is_block_device() && !options.kinds.devices) {
        return refuse("sends one image: SRC is a file, or a block device without -D");
    }
    if options.commit == Commit::InPlace {
        return refuse("wants the old file whole until all hosts are prepared: leave --inplace out");
    }
    if remote.agent == Agent::None {
        return refuse(
            "needs a holesync at each host: leave --agent=none out, or bring one along with --agent=push",
        );
    }
    if !options.fsync {
        return refuse("is of no use when nothing is sure to be on storage: leave --no-fsync out");
    }
    if options.workplace != Default::default() {
        return refuse(
            "keeps what is prepared beside the file: leave --temp-dir, --partial-dir and --delay-updates out",
        );
    }
    if options.backup.is_some() {
        return refuse("has done all that may need room when it is decided: leave --backup out");
    }
    if options.transfer != Default::default() {
        return refuse(
            "makes all hosts equal: leave out what keeps a file as it is, as --existing and --update do",
        );
    }
    if options.alternates.is_some() {
        return refuse("puts nothing in place early: leave --compare-dest, --copy-dest and --link-dest out");
    }
    Ok(source.path())
}

impl Together {
    /// For hosts that have these names and places, of which so many are sent to at once.
    ///
    /// # Errors
    ///
    /// When the image cannot be looked at, or no decision could be recorded.
    pub fn begin(
        source: &Path,
        names: Vec<String>,
        places: Vec<String>,
        jobs: usize,
    ) -> Result<Arc<Together>> {
        let image = ImageState::of(source)?;
        let earlier = Records::open()?.find(&image, &places)?;
        let (before, stale) = earlier.into_iter().partition::<Vec<_>, _>(|record| record.image == image);
        let mut run = DeploymentId::default();
        match before.first() {
            Some(record) => run = record.run,
            None => getrandom::fill(&mut run)
                .map_err(|error| Error::file("read", "random bytes")(std::io::Error::other(error)))?,
        }
        let state = State {
            votes: vec![Vote::Waiting; names.len()],
            sending: vec![false; names.len()],
            verdict: Verdict::Undecided,
            root: None,
            free: jobs,
            _finishing: None,
        };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        Ok(Arc::new(Together { state, changed, names, places, run, image, before, stale }))
    }

    /// The place of a host among all of them.
    pub fn seat(self: &Arc<Together>, at: usize) -> Seat {
        Seat { together: Arc::clone(self), at }
    }

    /// Whether it was decided to put it in place.
    pub fn has_decided(&self) -> bool {
        lock(&self.state).verdict == Verdict::Commit
    }

    /// The same for a host, now or earlier.
    pub fn has_decided_for(&self, at: usize) -> bool {
        self.has_decided() || self.was_decided(at)
    }

    /// The host because of which nothing was put in place.
    pub fn reason(&self) -> Option<&str> {
        match lock(&self.state).verdict {
            Verdict::Abort { host, .. } => host.map(|at| self.names[at].as_str()),
            _ => None,
        }
    }

    /// Whether an earlier run decided for a host.
    fn was_decided(&self, at: usize) -> bool {
        self.before.iter().any(|record| record.hosts.contains(&self.places[at]))
    }

    /// A host is through.
    pub fn ended(&self, at: usize, has_failed: bool) {
        let mut state = lock(&self.state);
        if !has_failed {
            state.votes[at] = Vote::Done;
            self.decide(&mut state);
        } else if state.verdict == Verdict::Undecided && !self.was_decided(at) {
            let why = format!("{} failed before all hosts were prepared", self.names[at]);
            state.verdict = Verdict::Abort { why, host: Some(at) };
        }
        self.changed.notify_all();
    }

    /// Nobody can be waited for any more.
    pub fn give_up(&self, why: String) {
        let mut state = lock(&self.state);
        if state.verdict == Verdict::Undecided {
            state.verdict = Verdict::Abort { why, host: None };
        }
        self.changed.notify_all();
    }

    /// All hosts are through: what is left of records.
    ///
    /// # Errors
    ///
    /// When they cannot be written.
    pub fn end(&self) -> Result<()> {
        let state = lock(&self.state);
        let is_done = |place: &String| {
            let at = self.places.iter().position(|other| other == place);
            at.is_some_and(|at| state.votes[at] == Vote::Done)
        };
        let records = Records::open()?;
        let known: Vec<_> =
            self.before.iter().chain(&self.stale).map(|record| record.run).chain([self.run]).collect();
        // Others are those of runs that are at work with another state of the image.
        let ours = |record: &Record| known.contains(&record.run);
        for mut record in records.find(&self.image, &self.places)?.into_iter().filter(ours) {
            let before = record.hosts.len();
            record.hosts.retain(|place| !is_done(place));
            if record.hosts.len() < before {
                records.write(&record)?;
            }
        }
        Ok(())
    }

    /// Decides, if all hosts are prepared.
    fn decide(&self, state: &mut MutexGuard<State>) {
        let waits = |at: &usize| !self.was_decided(*at);
        let mut votes = (0..self.names.len()).filter(waits).map(|at| state.votes[at]);
        let is_complete = votes.clone().all(|vote| vote != Vote::Waiting);
        let has_work = votes.any(|vote| vote == Vote::Prepared);
        if state.verdict != Verdict::Undecided || !is_complete || !has_work {
            return;
        }
        let Some(finishing) = remote::finish_first() else { return };
        match self.record(state) {
            Ok(()) => {
                state.verdict = Verdict::Commit;
                state._finishing = Some(finishing);
            }
            Err(error) => state.verdict = Verdict::Abort { why: error.to_string(), host: None },
        }
    }

    /// Has the decision on storage.
    fn record(&self, state: &State) -> Result<()> {
        let Some(root) = state.root else { return Ok(()) };
        let path = Path::new(&self.image.path);
        if self.image != ImageState::of(path)? {
            return Err(Error::refused(path, "changed while the hosts were prepared"));
        }
        let records = Records::open()?;
        // What another run has left of it by now.
        let known =
            records.find(&self.image, &self.places)?.into_iter().find(|record| record.run == self.run);
        let mut hosts = known.map(|record| record.hosts).unwrap_or_default();
        let prepared = (0..self.places.len()).filter(|at| state.votes[*at] == Vote::Prepared);
        hosts.extend(prepared.map(|at| self.places[at].clone()));
        hosts.sort();
        hosts.dedup();
        records.write(&Record { run: self.run, root, image: self.image.clone(), hosts })
    }
}

impl State {
    /// Another host may be sent to. Who is prepared holds up nobody.
    fn release(&mut self, at: usize) {
        self.free += usize::from(std::mem::take(&mut self.sending[at]));
    }
}

impl Seat {
    /// What is to be told of this host before anything else.
    pub fn note(&self) -> Option<String> {
        let Together { before, stale, places, .. } = &*self.together;
        let of = |records: &[Record]| {
            let record = records.iter().find(|record| record.hosts.contains(&places[self.at]))?;
            Some(hex(&record.run))
        };
        match (of(before), of(stale)) {
            (Some(run), _) => {
                Some(format!("run {run} has decided to put this image in place, which is done now"))
            }
            (None, Some(run)) => Some(format!(
                "run {run} had decided to put the image in place, which has changed since: this is a new run, {}",
                hex(&self.together.run)
            )),
            (None, None) => None,
        }
    }

    /// A failure of this host, with what follows from the decision.
    pub fn explained(&self, failure: Failure) -> Failure {
        if !self.together.has_decided_for(self.at) {
            return failure;
        }
        let message = format!(
            "{}; run {} has decided to put the image in place, and this host may not have it yet: the same command does \
             it, without sending again what is prepared there",
            failure.message,
            hex(&self.together.run)
        );
        Failure { message, ..failure }
    }

    /// What is asked of the agent there, which speaks this version.
    ///
    /// # Errors
    ///
    /// [`Error::Start`] when it is too old.
    pub fn request(&self, host: &Host, target: &Target, version: u16) -> Result<Request> {
        if version < TOGETHER {
            let message = format!(
                "the holesync there is too old for --together (it speaks version {version} of the protocol, and {TOGETHER} \
                 is needed): update it, or bring this one along with --agent=push"
            );
            return Err(Error::Remote {
                peer: host.to_string(),
                failure: Failure::new(code::VERSION, message),
            });
        }
        let (destination, directory) = (target.path.path().into(), target.directory);
        Ok(Request::Together { destination, directory, run: self.together.run })
    }

    /// Waits until this host may be sent to; it may be until the result is dropped, or it is
    /// prepared.
    ///
    /// # Errors
    ///
    /// When it was decided against all.
    pub fn begin(&self) -> Result<Turn<'_>> {
        let mut state = lock(&self.together.state);
        loop {
            self.together.check(self.at, &state)?;
            if remote::is_interrupted() {
                return Err(Error::Interrupted(remote::again()));
            }
            if state.free > 0 {
                state.free -= 1;
                state.sending[self.at] = true;
                return Ok(Turn { seat: self });
            }
            state = self.together.wait(state);
        }
    }
}

impl Together {
    /// Whether a host may still have it put in place.
    fn check(&self, at: usize, state: &State) -> Result<()> {
        match &state.verdict {
            Verdict::Abort { why, .. } if !self.was_decided(at) => Err(Error::Together { why: why.clone() }),
            _ => Ok(()),
        }
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, SLICE);
        waited.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state)
    }
}

/// A host is being sent to until this is dropped.
pub(super) struct Turn<'a> {
    seat: &'a Seat,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Seat { together, at } = self.seat;
        let mut state = lock(&together.state);
        state.release(*at);
        if state.votes[*at] == Vote::Prepared && state.verdict != Verdict::Commit {
            state.votes[*at] = Vote::Waiting;
        }
        together.changed.notify_all();
    }
}

impl Decision for Seat {
    fn prepared(&self, root: &Hash) -> Result<()> {
        let Together { state, image, before, run, .. } = &*self.together;
        let mut state = lock(state);
        let mut known = before.iter().map(|record| record.root).chain(state.root);
        if known.any(|known| known != *root) {
            let why = format!(
                "is not what run {} prepared elsewhere, though its length and its time are the same: see what writes it, \
                 have it get another time (touch), then run again",
                hex(run)
            );
            return Err(Error::refused(&*image.path, why));
        }
        state.root = Some(*root);
        state.votes[self.at] = Vote::Prepared;
        state.release(self.at);
        self.together.decide(&mut state);
        self.together.changed.notify_all();
        Ok(())
    }

    fn still_open(&self) -> Result<()> {
        self.together.check(self.at, &lock(&self.together.state))
    }

    fn decided(&self) -> Option<Result<()>> {
        let together = &*self.together;
        if together.was_decided(self.at) {
            return Some(Ok(()));
        }
        let mut state = lock(&together.state);
        if state.verdict == Verdict::Undecided {
            state = together.wait(state);
        }
        match state.verdict {
            Verdict::Undecided => None,
            _ => Some(together.check(self.at, &state)),
        }
    }
}
