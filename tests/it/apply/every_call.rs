//! Each end, with every system call failing at its turn: with an error, cut short, or as the
//! last thing that the process does.
//!
//! Whatever it was, the image is the old or the new one, or one that a sealed log finishes, or,
//! written in place, one that the next run makes right; code 0 says that it is the new one; nothing
//! panics; and the next run ends well and leaves nothing behind. `tests/soak faults` tries every
//! fault at every call; otherwise it is a sample, another one for each way. What was tried is counted.

mod group;
mod tree;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::errno::Errno;
use tempfile::TempDir;

use crate::common::check::{leftovers, same};
use crate::common::lab::{self, Fs, Loop};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::Peer;
use crate::common::process::{Outcome, holesync, run, start_on};
use crate::common::redeploy::{Redeploy, State, every};
use crate::common::trace::{Fault, Seen, Tracer, When, moves_an_amount};
use crate::common::tree::mkdir;

const BLOCK: usize = 64 << 10;
/// Wants a run for several hosts.
const TOGETHER: &str = "--together";

/// What befalls each call; a short one only those that move an amount.
const FAULTS: [Fault; 8] = [
    Fault::Fails(Errno::EIO),
    Fault::Fails(Errno::ENOSPC),
    Fault::Fails(Errno::EACCES),
    Fault::Fails(Errno::EINTR),
    Fault::Fails(Errno::EINVAL),
    Fault::Fails(Errno::EPERM),
    Fault::Short,
    Fault::Kill,
];

/// One of how many cases a run of all tests tries. It shares no factor with the number of faults.
const SAMPLE: usize = 29;

/// Which process suffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The receiving agent of a push.
    Receiver,
    /// The sending end of a push.
    Sender,
    /// The receiving end of a pull.
    PullReceiver,
    /// The sending agent of a pull.
    PullSender,
    /// A copy on one machine.
    Copy,
    /// `recv`, from a file.
    Stream,
    /// `recover`, after a run that was killed in its replay.
    Recover,
}

/// What may be seen between two runs, besides the old image and the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    Nothing,
    /// A file partly written, with a sealed log.
    Sealed,
    /// A file partly written.
    Torn,
}

/// How a destination is taken from old to new.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    role: Role,
    fs: Fs,
    flags: &'static [&'static str],
    /// Every how many blocks one changes; `None`: there is no old image.
    changes: Option<usize>,
    between: Between,
}

impl Way {
    const fn new(name: &'static str, role: Role, fs: Fs) -> Way {
        Way { name, role, fs, flags: &[], changes: Some(4), between: Between::Nothing }
    }
}

#[test]
fn whatever_call_fails_a_staged_image_is_old_or_new_or_can_be_finished() {
    let between = Between::Sealed;
    fail_everywhere(&Way { between, ..Way::new("sealed", Role::Receiver, Fs::Ext4) });
}

#[test]
fn whatever_call_fails_a_completed_stage_is_old_or_new() {
    fail_everywhere(&Way { changes: Some(1), ..Way::new("complete", Role::Receiver, Fs::Ext4) });
}

#[test]
fn whatever_call_fails_a_clone_on_xfs_is_old_or_new() {
    fail_everywhere(&Way::new("clone, xfs", Role::Receiver, Fs::Xfs));
}

#[test]
fn whatever_call_fails_a_clone_on_btrfs_is_old_or_new() {
    fail_everywhere(&Way::new("clone, btrfs", Role::Receiver, Fs::Btrfs));
}

#[test]
fn whatever_call_fails_an_atomic_copy_is_old_or_new() {
    fail_everywhere(&Way { flags: &["--commit=atomic"], ..Way::new("atomic", Role::Receiver, Fs::Ext4) });
}

#[test]
fn whatever_call_fails_a_new_image_is_complete_or_absent() {
    fail_everywhere(&Way { changes: None, ..Way::new("fresh", Role::Receiver, Fs::Ext4) });
}

#[test]
fn whatever_call_fails_a_new_image_that_has_a_basis_is_complete_or_absent() {
    let way =
        Way { flags: &["--basis=../golden"], changes: None, ..Way::new("basis", Role::Receiver, Fs::Ext4) };
    fail_everywhere(&way);
    fail_everywhere(&Way { name: "basis, clone", fs: Fs::Xfs, ..way });
}

/// The old image is whole until the decision, whoever fails.
#[test]
fn whatever_call_fails_a_host_that_waits_is_old_until_the_decision() {
    let way = Way { flags: &[TOGETHER], ..Way::new("together", Role::Receiver, Fs::Ext4) };
    fail_everywhere(&Way { between: Between::Sealed, ..way });
    fail_everywhere(&Way { name: "together, new", changes: None, ..way });
}

#[test]
fn whatever_call_of_who_decides_fails_the_old_image_is_whole_until_the_decision() {
    let way = Way { flags: &[TOGETHER], ..Way::new("together, here", Role::Sender, Fs::Ext4) };
    fail_everywhere(&Way { between: Between::Sealed, ..way });
}

#[test]
fn whatever_call_fails_the_next_run_makes_right_what_is_written_in_place() {
    let way = Way::new("in place", Role::Receiver, Fs::Ext4);
    fail_everywhere(&Way { flags: &["--inplace"], between: Between::Torn, ..way });
}

#[test]
fn whatever_call_fails_the_next_run_makes_a_device_right() {
    if lab::is_root() {
        fail_everywhere(&Way { between: Between::Torn, ..Way::new("device", Role::Receiver, Fs::Ext4) });
    }
}

#[test]
fn whatever_call_fails_recover_keeps_what_it_needs() {
    fail_everywhere(&Way { between: Between::Sealed, ..Way::new("recover", Role::Recover, Fs::Ext4) });
}

#[test]
fn whatever_call_of_a_copy_fails_the_image_can_be_finished() {
    fail_everywhere(&Way { between: Between::Sealed, ..Way::new("copy", Role::Copy, Fs::Ext4) });
    fail_everywhere(&Way::new("copy, clone", Role::Copy, Fs::Xfs));
}

#[test]
fn whatever_call_of_a_pull_fails_the_image_can_be_finished() {
    fail_everywhere(&Way { between: Between::Sealed, ..Way::new("pull", Role::PullReceiver, Fs::Ext4) });
    fail_everywhere(&Way {
        between: Between::Sealed,
        ..Way::new("pull, sender", Role::PullSender, Fs::Ext4)
    });
}

#[test]
fn whatever_call_of_a_sender_fails_the_image_can_be_finished() {
    fail_everywhere(&Way { between: Between::Sealed, ..Way::new("push, sender", Role::Sender, Fs::Ext4) });
}

#[test]
fn whatever_call_of_a_stream_fails_the_image_is_old_or_new() {
    fail_everywhere(&Way::new("recv", Role::Stream, Fs::Ext4));
    fail_everywhere(&Way { changes: None, ..Way::new("recv, fresh", Role::Stream, Fs::Ext4) });
}

/// One way of committing, and the place where it happens.
struct Bench<'a> {
    way: &'a Way,
    sources: TempDir,
    target: TempDir,
    redeploy: Redeploy,
    device: Option<Loop>,
    stream: PathBuf,
}

/// How many cases ended in what.
#[derive(Debug, Default)]
struct Counts {
    calls: usize,
    faults: usize,
    old: usize,
    new: usize,
    sealed: usize,
    torn: usize,
    failed: usize,
}

/// One fault: at which call, at which turn of it.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub call: &'static str,
    pub nth: usize,
    pub fault: Fault,
}

impl Case {
    /// Whether it can befall a process.
    fn applies(&self) -> bool {
        // Nothing of Linux fails to close a directory but by a signal, and std panics if it does.
        let closes = self.call != "close" || matches!(self.fault, Fault::Kill | Fault::Fails(Errno::EINTR));
        closes && (self.fault != Fault::Short || moves_an_amount(self.call))
    }
}

/// Whether every fault is tried at every call.
fn tries_all() -> bool {
    std::env::var_os("HOLESYNC_TEST_FAULTS").is_some_and(|what| what == "all")
}

/// The faults to be tried at the calls that a process makes undisturbed, of those that are `telling`;
/// of these one of so many is a `sample`, and `seed` says which.
pub fn cases(
    undisturbed: &Seen,
    telling: impl Fn(&Case) -> bool,
    sample: usize,
    seed: usize,
) -> impl Iterator<Item = Case> {
    let all = tries_all();
    let calls = undisturbed.calls.iter().flat_map(|(&call, &most)| (1..=most).map(move |nth| (call, nth)));
    let cases = calls.flat_map(|(call, nth)| FAULTS.map(|fault| Case { call, nth, fault }));
    let cases = cases.filter(telling).enumerate();
    let cases = cases.filter(move |(number, _)| all || (number + seed).is_multiple_of(sample));
    cases.map(|(_, case)| case).filter(Case::applies)
}

fn fail_everywhere(way: &Way) {
    let Some(target) = lab::dir(way.fs) else { return };
    let bench = Bench::new(way, target);
    bench.reset();
    let (outcome, undisturbed) = bench.run(When::Never);
    outcome.ok();
    assert!(undisturbed.unknown.is_empty(), "calls that no list knows: {:?}", undisturbed.unknown);
    let mut counts = Counts { calls: undisturbed.calls.values().sum(), ..Counts::default() };
    let seed = way.name.bytes().fold(0, |sum, byte| sum + usize::from(byte));
    let mut broken = Vec::new();
    // The same calls as those of a run for itself, but for some.
    let sample = if bench.waits() { 3 * SAMPLE } else { SAMPLE };
    for case in cases(&undisturbed, |_| true, sample, seed) {
        broken.extend(bench.suffers(case, &mut counts).err());
    }
    let Counts { calls, faults, old, new, sealed, torn, failed } = counts;
    lab::count(&format!(
        "faults: {:14} {calls:5} calls {faults:5} faults: {failed} runs failed; then old {old}, new {new}, \
         sealed {sealed}, partly written {torn}; {} broke a promise",
        way.name,
        broken.len()
    ));
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
    assert!(failed > 0, "no fault was felt");
}

impl Bench<'_> {
    fn new(way: &Way, target: TempDir) -> Bench<'_> {
        let (sources, mut rng) = (lab::scratch(), Rng(17));
        // With a hole, new zeros and an odd length each.
        let old = Layout::dense("old", 20 * BLOCK + 777, &mut rng).punch(8 * BLOCK..10 * BLOCK);
        let new = every(way.changes.unwrap_or(4), &old, &mut rng).punch(14 * BLOCK..15 * BLOCK);
        let new = new.resize(21 * BLOCK + 99).data(21 * BLOCK..21 * BLOCK + 99, &mut rng);
        let old = way.changes.map(|_| &old);
        let redeploy = Redeploy::new(sources.path(), &mkdir(target.path().join("in")), old, &new, &new);
        // What a new image may be made from.
        Layout::dense("golden", 20 * BLOCK, &mut Rng(17)).write(&target.path().join("golden"));
        let device = (way.name == "device").then(|| {
            let backing = sources.path().join("device");
            std::fs::write(&backing, vec![0; 22 * BLOCK]).expect("make a device");
            Loop::over(&backing)
        });
        let stream = sources.path().join("stream");
        if way.role == Role::Stream {
            let sent = holesync().arg("send").arg(redeploy.version("new")).output().expect("run");
            std::fs::write(&stream, sent.stdout).expect("keep the stream");
        }
        Bench { way, sources, target, redeploy, device, stream }
    }

    /// Puts the destination where it begins.
    fn reset(&self) {
        if let Some(device) = &self.device {
            let old = std::fs::read(self.redeploy.version("old")).expect("read");
            std::fs::OpenOptions::new()
                .write(true)
                .open(&device.0)
                .and_then(|device| std::os::unix::fs::FileExt::write_all_at(&device, &old, 0))
                .expect("write the old image");
            return;
        }
        self.redeploy.reset();
        if self.way.role == Role::Recover {
            let when = When::Nth("copy_file_range", 2, Fault::Kill);
            let (tracer, peer) = Tracer::agent(self.sources.path(), when);
            let outcome = run(peer.holesync().args(self.redeploy.push("new")));
            tracer.seen();
            assert_eq!(self.redeploy.state(), State::Replaying, "{outcome}");
        }
    }

    /// Where the image goes.
    fn image(&self) -> PathBuf {
        self.device.as_ref().map_or_else(|| self.redeploy.image(), |device| device.0.clone())
    }

    /// Whether a decision is waited for.
    fn waits(&self) -> bool {
        self.way.flags.contains(&TOGETHER)
    }

    /// Whether there is the record of one.
    fn is_decided(&self) -> bool {
        let listed = std::fs::read_dir(self.sources.path().join("state/holesync/together"));
        let mut listed = listed.into_iter().flatten().flatten();
        listed.any(|entry| entry.path().extension().is_some_and(|extension| extension == "decision"))
    }

    /// Nothing but a decision makes what waits another image.
    fn stays_undecided(&self) -> Result<(), String> {
        let recovered = run(holesync().arg("recover").arg(self.target.path()));
        let (_, is_old) = self.is_new_or_old();
        demand(is_old, &format!("without a decision it is not the old one any more: {recovered}"))
    }

    /// One run, in which one process is followed.
    fn run(&self, when: When) -> (Outcome, Seen) {
        let dir = self.sources.path();
        let (new, image) = (self.redeploy.version("new"), self.image());
        let there = |path: &Path| crate::common::peer::at(path);
        let follows_agent = matches!(self.way.role, Role::Receiver | Role::PullSender);
        let (agent, peer) = match follows_agent {
            true => {
                let (tracer, peer) = Tracer::agent(dir, when);
                (Some(tracer), peer)
            }
            false => (None, Peer::pipe(dir)),
        };
        let mut command = peer.holesync();
        command.args(self.way.flags);
        match self.way.role {
            Role::Receiver | Role::Sender if self.waits() => {
                let mut to = OsString::from("--to=");
                to.push(there(&image));
                command.env("XDG_STATE_HOME", self.sources.path().join("state")).arg(to).arg(&new)
            }
            Role::Receiver | Role::Sender => command.arg(&new).arg(there(&image)),
            Role::PullReceiver | Role::PullSender => command.arg(there(&new)).arg(&image),
            Role::Copy => {
                command = holesync();
                command.args(self.way.flags).arg(&new).arg(&image)
            }
            Role::Stream => {
                command = holesync();
                command.arg("recv").args(self.way.flags).arg(&image)
            }
            Role::Recover => {
                command = holesync();
                command.arg("recover").arg(&image)
            }
        };
        let (tracer, mut command) = match agent {
            Some(tracer) => (tracer, command),
            None => Tracer::command(dir, when, &command),
        };
        let input = match self.way.role {
            Role::Stream => std::fs::File::open(&self.stream).expect("open the stream").into(),
            _ => Stdio::null(),
        };
        let outcome = start_on(&mut command, input).finish();
        (outcome, tracer.seen())
    }

    /// One call suffers one fault.
    fn suffers(&self, case: Case, counts: &mut Counts) -> Result<(), String> {
        let Case { call, nth, fault } = case;
        self.reset();
        eprintln!("{}: {fault:?} at {call} {nth}", self.way.name);
        let (outcome, seen) = self.run(When::Nth(call, nth, fault));
        // A thread came too late for it this time.
        let Some(hit) = seen.hit else { return Ok(()) };
        counts.faults += 1;
        counts.failed += usize::from(outcome.code != 0);
        let between = self.judge(&outcome, counts);
        let next = between.and_then(|()| {
            let panicked = outcome.code == 101 || outcome.stderr.contains("panicked");
            // sync_file_range is a hint at the destination, and a doubt at the source; a mark is for people.
            let syncs = matches!(call, "fsync" | "fdatasync" | "syncfs") && !hit.ends_with(".prepared");
            let lost = fault == Fault::Fails(Errno::EIO) && syncs && outcome.code == 0;
            demand(!panicked, "it panics")?;
            demand((0..128).contains(&outcome.code) || fault == Fault::Kill, "a signal ends it")?;
            demand(!lost, "a lost write is a success")?;
            self.next_run()
        });
        next.map_err(|what| format!("{}: {fault:?} at {hit}: {what}; {outcome}", self.way.name))
    }

    fn is_new_or_old(&self) -> (bool, bool) {
        match &self.device {
            Some(device) => {
                ["new", "old"].map(|name| begins_with(&device.0, &self.redeploy.version(name))).into()
            }
            None => {
                let image = self.image();
                let absent = self.way.changes.is_none() && !image.exists();
                (
                    same(&image, &self.redeploy.version("new")),
                    absent || same(&image, &self.redeploy.version("old")),
                )
            }
        }
    }

    /// What the destination is between the runs.
    fn judge(&self, outcome: &Outcome, counts: &mut Counts) -> Result<(), String> {
        let (is_new, is_old) = self.is_new_or_old();
        demand(outcome.code != 0 || is_new, "success, and not equal")?;
        match (is_new, is_old) {
            (true, _) => counts.new += 1,
            (_, true) => counts.old += 1,
            _ if self.way.between == Between::Torn => counts.torn += 1,
            _ => {
                let left = leftovers(self.target.path());
                let sealed = left.len() == 2 && left.iter().any(|name| name.ends_with(".log"));
                demand(sealed && self.way.between == Between::Sealed, "neither old nor new")?;
                demand(!self.waits() || self.is_decided(), "sealed without a decision")?;
                counts.sealed += 1;
            }
        }
        if self.waits() && is_old && !self.is_decided() { self.stays_undecided() } else { Ok(()) }
    }

    /// Without a fault it ends well.
    fn next_run(&self) -> Result<(), String> {
        let (outcome, _) = self.run(When::Unwatched);
        let new = self.redeploy.version("new");
        let equal = match &self.device {
            Some(device) => begins_with(&device.0, &new),
            None => same(&self.image(), &new),
        };
        if self.way.role == Role::Recover {
            // A stage that has lost its log is nothing to recover from. A run removes it.
            let peer = Peer::pipe(self.sources.path());
            run(peer.holesync().args(self.redeploy.push("new"))).ok();
        }
        let left = leftovers(self.target.path());
        demand(outcome.code == 0 && equal && left.is_empty(), "").map_err(|_| {
            format!("after the next run equal: {equal}, left behind: {left:?}; it was {outcome}; before it")
        })
    }
}

pub fn demand(holds: bool, or: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(or.to_owned()) }
}

/// Whether a device holds this image from its start on.
fn begins_with(device: &Path, image: &Path) -> bool {
    let image = std::fs::read(image).expect("read");
    let mut there = vec![0; image.len()];
    let device = std::fs::File::open(device).expect("open");
    std::os::unix::fs::FileExt::read_exact_at(&device, &mut there, 0).expect("read");
    there == image
}
