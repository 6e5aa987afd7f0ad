//! Who publishes, who prunes and who pulls, with every system call failing at its turn: with an error,
//! cut short, or as the last thing that the process does.
//!
//! Whatever it was, what [`Change`] promises holds, code 0 says that the change was made, and nothing
//! panics. `tests/soak faults` tries every fault at every call; otherwise it is a sample. What was tried is
//! counted.

use std::fs;
use std::process::Command;

use nix::errno::Errno;

use crate::apply::every_call::{Case, cases, demand};
use crate::common::lab::{self, Fs};
use crate::common::process::{Outcome, run};
use crate::common::trace::{Fault, Seen, Tracer, When};
use crate::store::Store;
use crate::store::change::{Change, Role};

/// One of how many cases a run of all tests tries. It shares no factor with the number of faults.
const SAMPLE: usize = 31;

/// What a run may change.
const STATE: [&str; 3] = ["store", "to", "home"];

#[test]
fn whatever_call_of_a_publisher_fails_each_version_is_whole() {
    fail_everywhere(Role::Publish);
}

#[test]
fn whatever_call_of_a_prune_fails_what_stays_is_whole() {
    fail_everywhere(Role::Prune);
}

#[test]
fn whatever_call_of_a_pull_from_a_store_fails_the_image_can_be_finished() {
    fail_everywhere(Role::Pull);
}

fn fail_everywhere(role: Role) {
    let Some(dir) = lab::dir(Fs::Ext4) else { return };
    let bench = Bench::new(role, Store::new(dir));
    bench.reset();
    let (outcome, undisturbed) = bench.run(When::Never);
    outcome.ok();
    assert!(undisturbed.unknown.is_empty(), "calls that no list knows: {:?}", undisturbed.unknown);
    let (mut faults, mut failed, mut made, mut broken) = (0, 0, 0, Vec::new());
    for case in cases(&undisturbed, |_| true, SAMPLE, role as usize) {
        match bench.suffers(case) {
            Ok(None) => continue,
            Ok(Some((is_failed, is_made))) => {
                failed += usize::from(is_failed);
                made += usize::from(is_made);
            }
            Err(what) => broken.push(what),
        }
        faults += 1;
    }
    lab::count(&format!(
        "faults: {:14} {:5} calls {faults:5} faults: {failed} runs failed; {made} had done it; {} broke a promise",
        format!("store, {role:?}").to_lowercase(),
        undisturbed.calls.values().sum::<usize>(),
        broken.len()
    ));
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
    assert!(failed > 0, "no fault was felt");
}

/// A change, and what it is reset to.
struct Bench {
    change: Change,
    store: Store,
}

impl Bench {
    fn new(role: Role, store: Store) -> Bench {
        let change = Change::new(role);
        change.prepare(&store);
        fs::create_dir(store.path("begin")).unwrap();
        run(Command::new("cp").arg("-a").args(STATE.map(|name| store.path(name))).arg(store.path("begin")))
            .ok();
        Bench { change, store }
    }

    /// Puts all where it begins.
    fn reset(&self) {
        for name in STATE {
            let _ = fs::remove_dir_all(self.store.path(name));
        }
        let begin = STATE.map(|name| self.store.path("begin").join(name));
        run(Command::new("cp").arg("-a").args(begin).arg(self.store.path(""))).ok();
    }

    /// One run, which is followed.
    fn run(&self, when: When) -> (Outcome, Seen) {
        let command = self.change.command(&self.store);
        let (tracer, mut command) = Tracer::command(&self.store.path(""), when, &command);
        (run(&mut command), tracer.seen())
    }

    /// One call suffers one fault: whether the run failed, and whether it had made the change. `None`: it
    /// suffered none.
    fn suffers(&self, case: Case) -> Result<Option<(bool, bool)>, String> {
        let Case { call, nth, fault } = case;
        self.reset();
        eprintln!("{:?}: {fault:?} at {call} {nth}", self.change.role);
        let (outcome, seen) = self.run(When::Nth(call, nth, fault));
        // A thread came too late for it this time.
        let Some(hit) = seen.hit else { return Ok(None) };
        let syncs = matches!(call, "fsync" | "fdatasync" | "syncfs");
        let is_lost = fault == Fault::Fails(Errno::EIO) && syncs && outcome.code == 0;
        let judge = || {
            demand(outcome.code != 101 && !outcome.stderr.contains("panicked"), "it panics")?;
            demand((0..128).contains(&outcome.code) || fault == Fault::Kill, "a signal ends it")?;
            demand(!is_lost, "a lost write is a success")?;
            let is_made = self.change.is_made(&self.store)?;
            demand(outcome.code != 0 || is_made, "success, and it is not so")?;
            self.change.next_run(&self.store)?;
            Ok(Some((outcome.code != 0, is_made)))
        };
        judge().map_err(|what: String| format!("{fault:?} at {hit}: {what}; the run was {outcome}"))
    }
}
