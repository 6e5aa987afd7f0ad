//! The machine loses power: what a disk had been told to write and to flush decides what is there.
//!
//! A redeployment is recorded as its disk sees it. Each state that the disk may be left in, write after
//! write, and with parts of what no flush had made safe, is mounted and looked at: the image is the
//! old or the new one, or one that its sealed log finishes, or, in place, one that the next run makes
//! right; and the new one from the moment on at which the run said so. `tests/soak crashes` tries all
//! of them; otherwise it is a sample. What was tried is counted.

mod together;
mod tree;

use std::path::Path;
use std::process::Command;

use crate::common::check::{leftovers, same};
use crate::common::disk::{Event, Format, Loss, Mounted, Recorder};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::Peer;
use crate::common::process::{Outcome, Running, holesync, run, start};
use crate::common::redeploy::{Redeploy, every};
use crate::common::trace::{Fault, Tracer, When};

const BLOCK: usize = 64 << 10;

/// States of a disk that a run of all tests looks at, for each recording.
const SAMPLE: usize = 60;

/// Calls that wait for a disk.
pub const SYNCS: [&str; 4] = ["fsync", "fdatasync", "sync_file_range", "syncfs"];

/// What may be seen besides the old image and the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    Nothing,
    Sealed,
    Torn,
}

/// A redeployment on a disk that can lose its power.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    format: Format,
    flags: &'static [&'static str],
    /// Every how many blocks one changes; `None`: there is no old image.
    changes: Option<usize>,
    between: Between,
}

const STAGED: Way =
    Way { name: "sealed", format: Format::Ext4, flags: &[], changes: Some(4), between: Between::Sealed };
const ATOMIC: Way = Way { name: "atomic", flags: &["--commit=atomic"], between: Between::Nothing, ..STAGED };
const COMPLETE: Way = Way { name: "complete", changes: Some(1), between: Between::Nothing, ..STAGED };
const FRESH: Way = Way { name: "fresh", changes: None, between: Between::Nothing, ..STAGED };
const IN_PLACE: Way = Way { name: "in place", flags: &["--inplace"], between: Between::Torn, ..STAGED };
const BASIS: &[&str] = &["--basis=../golden"];
const CLONE: Way = Way { name: "clone", format: Format::Xfs, between: Between::Nothing, ..STAGED };

#[test]
fn without_power_a_staged_image_is_old_or_new_or_can_be_finished() {
    lose_power(STAGED);
}

#[test]
fn without_power_a_completed_stage_is_old_or_new() {
    lose_power(COMPLETE);
}

#[test]
fn without_power_an_atomic_copy_is_old_or_new() {
    lose_power(ATOMIC);
}

#[test]
fn without_power_a_new_image_is_complete_or_absent() {
    lose_power(FRESH);
    lose_power(Way { name: "fresh, xfs", format: Format::Xfs, ..FRESH });
}

/// It begins as a copy of another image there.
#[test]
fn without_power_a_new_image_that_has_a_basis_is_complete_or_absent() {
    let basis = Way { name: "basis", flags: BASIS, ..FRESH };
    lose_power(basis);
    lose_power(Way { name: "basis, xfs", format: Format::Xfs, ..basis });
}

#[test]
fn without_power_a_clone_is_old_or_new() {
    lose_power(CLONE);
}

#[test]
fn without_power_the_next_run_makes_right_what_was_written_in_place() {
    lose_power(IN_PLACE);
    lose_power(Way { name: "in place, xfs", format: Format::Xfs, ..IN_PLACE });
}

/// The test above can fail.
#[test]
fn without_power_a_run_that_syncs_nothing_would_be_found_out() {
    for way in [STAGED, FRESH] {
        let Some(recording) = Recording::new(way, When::Each(&SYNCS, Fault::Pretend), false) else { return };
        let seen = recording.look_at(&sample(Loss::all(&recording.events, 1), SAMPLE));
        assert!(!seen.broken.is_empty(), "{}: nothing was lost", way.name);
    }
}

fn lose_power(way: Way) {
    let all = std::env::var_os("HOLESYNC_TEST_FAULTS").is_some_and(|what| what == "all");
    // Once with nothing written that nobody waited for, once with what somebody else waits for.
    for restless in [false, true] {
        let Some(recording) = Recording::new(way, When::Never, restless) else { return };
        let losses = Loss::all(&recording.events, if all { 32 } else { 1 });
        let losses = if all { losses } else { sample(losses, SAMPLE) };
        let seen = recording.look_at(&losses);
        lab::count(&format!(
            "power: {:13} {}: {:3} writes, {:3} flushes, {:4} states of the disk: {seen}",
            way.name,
            if restless { "restless" } else { "quiet   " },
            recording.writes(),
            recording.events.len() - recording.writes(),
            losses.len(),
        ));
        assert!(seen.broken.is_empty(), "{}: {}", way.name, seen.broken.join("\n\n"));
        assert!(seen.old + seen.between > 0 && seen.new > 0, "{}: {seen}", way.name);
        assert!(way.between != Between::Sealed || seen.between > 0, "no replay was met: {seen}");
    }
}

/// What was on the disk.
#[derive(Debug, Default)]
struct Seen {
    old: usize,
    new: usize,
    /// Something else, as [`Between`] has it.
    between: usize,
    broken: Vec<String>,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Seen { old, new, between, broken } = self;
        write!(f, "old {old}, new {new}, partly written {between}; {} broke a promise", broken.len())
    }
}

/// As many of them as that, from the first to the last.
pub fn sample(losses: Vec<Loss>, most: usize) -> Vec<Loss> {
    let step = losses.len().div_ceil(most).max(1);
    losses.into_iter().rev().step_by(step).collect()
}

/// The old image, if there is one, of which every so many blocks change, and the new one.
fn images(changes: Option<usize>) -> (Option<Layout>, Layout) {
    let mut rng = Rng(83);
    let old = Layout::dense("old", 24 * BLOCK, &mut rng);
    let new = every(changes.unwrap_or(4), &old, &mut rng).punch(14 * BLOCK..16 * BLOCK);
    let new = new.resize(25 * BLOCK + 99).data(25 * BLOCK..25 * BLOCK + 99, &mut rng);
    (changes.map(|_| old), new)
}

/// A run as its disk saw it.
struct Recording {
    way: Way,
    /// What the disk was, and where its states are mounted.
    place: tempfile::TempDir,
    _sources: tempfile::TempDir,
    redeploy: Redeploy,
    peer: Peer,
    events: Vec<Event>,
    /// How much had happened when the run said that all is well.
    said: usize,
}

impl Recording {
    fn new(way: Way, when: When, restless: bool) -> Option<Recording> {
        if !lab::is_root() {
            return None;
        }
        // Where the copy of a disk costs nothing.
        let (place, sources) = (lab::dir(Fs::Xfs)?, lab::scratch());
        let disk = place.path().join("disk");
        way.format.make(&disk);
        let recorder = Recorder::new(&disk, &place.path().join("recorder"));
        let mounted = Mounted::new(way.format, &recorder.file(), &place.path().join("mounted"));
        let (old, new) = images(way.changes);
        if way.flags == BASIS {
            // What a new image is made from.
            images(Some(4)).0.expect("an old one").write(&mounted.target().with_file_name("golden"));
        }
        let redeploy = Redeploy::new(sources.path(), &mounted.target(), old.as_ref(), &new, &new);
        mounted.sync();
        recorder.begin(&disk, &place.path().join("before"));
        let (tracer, peer) = Tracer::agent(sources.path(), when);
        let waiter = restless.then(|| waiter(&mounted.target()));
        let outcome = run(peer.holesync().args(way.flags).args(redeploy.push("new")));
        drop(waiter);
        tracer.seen();
        outcome.ok();
        let said = recorder.events();
        mounted.sync();
        drop(mounted);
        let peer = Peer::pipe(sources.path());
        Some(Recording { way, place, redeploy, peer, events: recorder.take(), said, _sources: sources })
    }

    fn writes(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Write { .. })).count()
    }

    fn look_at(&self, losses: &[Loss]) -> Seen {
        let mut seen = Seen::default();
        for &loss in losses {
            if let Err(what) = self.after(loss, &mut seen) {
                seen.broken.push(format!("{loss:?} of {}: {what}", self.events.len()));
            }
        }
        seen
    }

    /// What a disk with this loss holds, and what becomes of it.
    fn after(&self, loss: Loss, seen: &mut Seen) -> Result<(), String> {
        let copy = self.place.path().join("copy");
        std::fs::copy(self.place.path().join("before"), &copy).expect("copy the disk");
        loss.apply(&self.events, &copy);
        let mounted = Mounted::new(self.way.format, &copy, &self.place.path().join("after"));
        let redeploy = self.redeploy.on(&mounted.target());
        let image = redeploy.image();
        let is_new = || same(&image, &redeploy.version("new"));
        let is_old = || match self.way.changes {
            Some(_) => same(&image, &redeploy.version("old")),
            None => !image.exists(),
        };
        let whole = is_new() || is_old();
        match (is_new(), whole) {
            (true, _) => seen.new += 1,
            (_, true) => seen.old += 1,
            _ => seen.between += 1,
        }
        let found = leftovers(&mounted.target());
        demand(loss.after < self.said || is_new(), "success was told, and it is not there")?;
        demand(whole || self.way.between != Between::Nothing, "neither old nor new")?;
        if image.exists() {
            let recovered = run(holesync().arg("recover").arg(&image));
            let told = |what: &str| format!("{what}, with {found:?} before: {recovered}");
            demand(recovered.code != 101, &told("it panics"))?;
            let finished = is_new() || whole && is_old() || self.way.between == Between::Torn;
            demand(finished, &told("not finished by recover"))?;
        }
        let outcome = run(self.peer.holesync().args(self.way.flags).args(redeploy.push("new")));
        self.is_right(&redeploy, &mounted, &outcome)
    }

    fn is_right(&self, redeploy: &Redeploy, mounted: &Mounted, outcome: &Outcome) -> Result<(), String> {
        let left = leftovers(&mounted.target());
        let equal = same(&redeploy.image(), &redeploy.version("new"));
        let told = format!("after the next run equal: {equal}, left behind: {left:?}: {outcome}");
        demand(outcome.code == 0 && equal && left.is_empty(), &told)
    }
}

fn demand(holds: bool, or: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(or.to_owned()) }
}

/// Somebody who waits for the disk over and over.
pub fn waiter(target: &Path) -> Running {
    start(Command::new("sh").args(["-c", "while :; do sync -f \"$0\"; sleep 0.002; done"]).arg(target))
}
