//! The machine that has a store, or a copy of an image, loses power.
//!
//! A run is recorded as its disk sees it, and each state that the disk may be left in is looked at: what
//! [`Change`] promises holds, and the change was made from the moment on at which the run said so.
//! `tests/soak crashes` tries all of them; otherwise it is a sample. What was tried is counted.

use tempfile::TempDir;

use crate::apply::power::{SYNCS, sample, waiter};
use crate::common::disk::{Event, Format, Loss, Mounted, Recorder};
use crate::common::lab::{self, Fs};
use crate::common::process::run;
use crate::common::trace::{Fault, Tracer, When};
use crate::store::Store;
use crate::store::change::{Change, Role};

/// States of a disk that a run of all tests looks at, for each recording.
const SAMPLE: usize = 40;

#[test]
fn without_power_each_version_that_is_told_of_is_whole() {
    lose_power(Role::Publish, Format::Ext4);
    lose_power(Role::Publish, Format::Xfs);
}

#[test]
fn without_power_what_a_prune_keeps_is_whole() {
    lose_power(Role::Prune, Format::Ext4);
}

#[test]
fn without_power_what_was_pulled_over_is_old_or_new_or_can_be_finished() {
    lose_power(Role::Pull, Format::Ext4);
}

/// The tests above can fail.
#[test]
fn without_power_a_publisher_that_syncs_nothing_would_be_found_out() {
    let when = When::Each(&SYNCS, Fault::Pretend);
    let Some(recording) = Recording::new(Role::Publish, Format::Ext4, when, false) else { return };
    let (_, broken) = recording.look_at(&sample(Loss::all(&recording.events, 1), SAMPLE));
    assert!(!broken.is_empty(), "nothing was lost");
}

fn lose_power(role: Role, format: Format) {
    let all = std::env::var_os("HOLESYNC_TEST_FAULTS").is_some_and(|what| what == "all");
    // Once with nothing written that nobody waited for, once with what somebody else waits for.
    for restless in [false, true] {
        let Some(recording) = Recording::new(role, format, When::Never, restless) else { return };
        let losses = Loss::all(&recording.events, if all { 32 } else { 1 });
        let losses = if all { losses } else { sample(losses, SAMPLE) };
        let (made, broken) = recording.look_at(&losses);
        lab::count(&format!(
            "power: {:13} {}: {:4} states of the disk: done {made}; {} broke a promise",
            format!("store, {role:?}").to_lowercase(),
            if restless { "restless" } else { "quiet   " },
            losses.len(),
            broken.len()
        ));
        assert!(broken.is_empty(), "{role:?}, {format:?}: {}", broken.join("\n\n"));
        assert!(made > 0 && made < losses.len(), "{role:?}: {made} of {}", losses.len());
    }
}

/// A run as its disk saw it.
struct Recording {
    change: Change,
    format: Format,
    /// What the disk was, and where its states are mounted.
    place: TempDir,
    events: Vec<Event>,
    /// How much had happened when the run said that all is well.
    said: usize,
}

impl Recording {
    fn new(role: Role, format: Format, when: When, restless: bool) -> Option<Recording> {
        if !lab::is_root() {
            return None;
        }
        // Where the copy of a disk costs nothing.
        let (place, change) = (lab::dir(Fs::Xfs)?, Change::new(role));
        let disk = place.path().join("disk");
        format.make(&disk);
        let recorder = Recorder::new(&disk, &place.path().join("recorder"));
        let mounted = Mounted::new(format, &recorder.file(), &place.path().join("mounted"));
        let store = Store::at(mounted.target());
        change.prepare(&store);
        mounted.sync();
        recorder.begin(&disk, &place.path().join("before"));
        let waiter = restless.then(|| waiter(&mounted.target()));
        let (tracer, mut command) = Tracer::command(place.path(), when, &change.command(&store));
        let outcome = run(&mut command);
        drop(waiter);
        tracer.seen();
        outcome.ok();
        let said = recorder.events();
        mounted.sync();
        drop(mounted);
        Some(Recording { change, format, place, events: recorder.take(), said })
    }

    /// After how many of these losses the change was made, and what broke a promise.
    fn look_at(&self, losses: &[Loss]) -> (usize, Vec<String>) {
        let (mut made, mut broken) = (0, Vec::new());
        for loss in losses {
            match self.after(*loss) {
                Ok(is_made) => made += usize::from(is_made),
                Err(what) => broken.push(format!("{loss:?} of {}: {what}", self.events.len())),
            }
        }
        (made, broken)
    }

    /// Whether a disk with this loss holds the change.
    fn after(&self, loss: Loss) -> Result<bool, String> {
        let copy = self.place.path().join("copy");
        std::fs::copy(self.place.path().join("before"), &copy).expect("copy the disk");
        loss.apply(&self.events, &copy);
        let mounted = Mounted::new(self.format, &copy, &self.place.path().join("after"));
        let store = Store::at(mounted.target());
        let is_made = self.change.is_made(&store)?;
        if loss.after >= self.said && !is_made {
            return Err("success was told, and it is not there".into());
        }
        self.change.next_run(&store)?;
        Ok(is_made)
    }
}
