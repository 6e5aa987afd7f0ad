//! The same of a host that waits for others: before the decision the old image is whole, and no seal
//! makes it another one; after it the second run puts the new one in place, and sends nothing that is still
//! this user's alone.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{Between, STAGED, Way, demand, images, sample, waiter};
use crate::common::check::{leftovers, same};
use crate::common::disk::{Event, Format, Loss, Mounted, Recorder};
use crate::common::lab::{self, Fs};
use crate::common::peer::{Peer, is_prepared};
use crate::common::process::{PROGRAM, Running, holesync, run, signal_agents, start, wait_until};
use crate::common::redeploy::Redeploy;
use crate::common::tree::mkdir;

/// Far beyond what an end takes.
const LIMIT: Duration = Duration::from_secs(30);

/// States of a disk that a run of all tests looks at, for each recording.
const SAMPLE: usize = 20;

/// `disk` loses its power, `late` keeps the others waiting, and `held` runs a program of its own, which can
/// be stopped.
const HOSTS: &str = r#"
case $host in
    late) until [ -e "$GATE" ]; do sleep 0.01; done ;;
    held) command=$(printf '%s\n' "$command" | sed "s#[^ ]*holesync agent#$HELD agent#") ;;
esac
noted "$SAID.$host""#;

#[test]
fn without_power_a_staged_image_that_waits_is_old_until_the_decision() {
    lose_power(Way { name: "together", ..STAGED });
}

#[test]
fn without_power_a_completed_stage_that_waits_is_old_until_the_decision() {
    lose_power(Way { name: "together, all", changes: Some(1), between: Between::Nothing, ..STAGED });
}

#[test]
fn without_power_a_new_image_that_waits_is_absent_until_the_decision() {
    lose_power(Way { name: "together, new", changes: None, between: Between::Nothing, ..STAGED });
}

#[test]
fn without_power_a_clone_that_waits_is_old_until_the_decision() {
    lose_power(Way { name: "together, xfs", format: Format::Xfs, between: Between::Nothing, ..STAGED });
}

fn lose_power(way: Way) {
    let all = std::env::var_os("HOLESYNC_TEST_FAULTS").is_some_and(|what| what == "all");
    for restless in [false, true] {
        let Some(bench) = Bench::record(way, restless) else { return };
        let losses = Loss::all(&bench.events, if all { 32 } else { 1 });
        let mut losses = if all { losses } else { sample(losses, SAMPLE) };
        // All is ready, and nobody has decided.
        losses.push(Loss { after: bench.prepared, seed: Some(7) });
        let mut seen = Seen::default();
        let broken: Vec<String> = losses
            .iter()
            .filter_map(|&loss| {
                let what = bench.after(loss, &mut seen).err()?;
                Some(format!("{loss:?} of {}, prepared at {}: {what}", bench.events.len(), bench.prepared))
            })
            .collect();
        lab::count(&format!(
            "power: {:13} {}: {:4} states of the disk: {seen:?}; {} broke a promise",
            way.name,
            if restless { "restless" } else { "quiet   " },
            losses.len(),
            broken.len(),
        ));
        assert!(broken.is_empty(), "{}: {}", way.name, broken.join("\n\n"));
        assert!(seen.before > 0 && seen.new > 0, "{}: {seen:?}", way.name);
    }
}

/// What was on the disk.
#[derive(Debug, Default)]
struct Seen {
    /// Before the decision: the old image.
    before: usize,
    /// After it.
    old: usize,
    partly: usize,
    new: usize,
    /// What had its attributes, and not yet its name.
    sent_again: usize,
}

/// A run as the disk of one of its hosts saw it.
struct Bench {
    way: Way,
    place: tempfile::TempDir,
    sources: tempfile::TempDir,
    redeploy: Redeploy,
    events: Vec<Event>,
    /// How much had happened before the decision, and when the run had been told that it is over.
    prepared: usize,
    said: usize,
}

impl Bench {
    fn record(way: Way, restless: bool) -> Option<Bench> {
        if !lab::is_root() {
            return None;
        }
        let (place, sources) = (lab::dir(Fs::Xfs)?, lab::scratch());
        let disk = place.path().join("disk");
        way.format.make(&disk);
        let recorder = Recorder::new(&disk, &place.path().join("recorder"));
        let mounted = Mounted::new(way.format, &recorder.file(), &place.path().join("mounted"));
        let (old, new) = images(way.changes);
        let redeploy = Redeploy::new(sources.path(), &mounted.target(), old.as_ref(), &new, &new);
        mounted.sync();
        recorder.begin(&disk, &place.path().join("before"));
        let mut bench = Bench { way, place, sources, redeploy, events: Vec::new(), prepared: 0, said: 0 };
        bench.prepared = bench.run_until_held(&recorder, restless.then(|| waiter(&mounted.target())));
        bench.said = recorder.events();
        mounted.sync();
        drop(mounted);
        bench.events = recorder.take();
        Some(bench)
    }

    /// Runs it to its end, but for one host that is told of the decision and does not hear it; keeps the
    /// record of that. How much had happened before it.
    fn run_until_held(&self, recorder: &Recorder, waiter: Option<Running>) -> usize {
        let held = self.sources.path().join("held");
        std::os::unix::fs::symlink(PROGRAM, &held).expect("link");
        let running = start(&mut self.together(&["disk", "held", "late"]));
        // When both have told, nothing more is written.
        let has_told = |host: &str| {
            let said = self.said_by().with_extension(host);
            wait_until(LIMIT, || is_prepared(&said) || running.has_ended())
        };
        assert!(has_told("disk") && has_told("held") && !running.has_ended());
        drop(waiter);
        let prepared = recorder.events();
        signal_agents(&held, Signal::SIGSTOP);
        fs::write(self.sources.path().join("gate"), "").expect("write");
        let new = self.redeploy.version("new");
        assert!(wait_until(LIMIT, || same(&self.redeploy.image(), &new)), "it was not decided");
        run(Command::new("cp").arg("-a").arg(self.state()).arg(self.sources.path().join("decided"))).ok();
        signal_agents(&held, Signal::SIGKILL);
        running.finish().code(23);
        prepared
    }

    /// Where an image goes on another host than that of the disk.
    fn on(&self, host: &str) -> PathBuf {
        mkdir(self.sources.path().join("others")).join(host)
    }

    /// Where this end has its record of decisions.
    fn state(&self) -> PathBuf {
        self.sources.path().join("state")
    }

    /// What the agents said, but for the name of the host.
    fn said_by(&self) -> PathBuf {
        self.sources.path().join("said")
    }

    fn together(&self, hosts: &[&str]) -> Command {
        let dir = self.sources.path();
        let mut command = Peer::script(dir, HOSTS).holesync();
        command.env("GATE", dir.join("gate")).env("HELD", dir.join("held")).env("SAID", self.said_by());
        command.env("XDG_STATE_HOME", self.state()).args(["--together", "--json"]).args(self.way.flags);
        for &host in hosts {
            let image = if host == "disk" { self.redeploy.image() } else { self.on(host) };
            command.arg(format!("--to={host}:{}", image.display()));
        }
        command.arg(self.redeploy.version("new"));
        command
    }

    /// What a disk with this loss holds, and what becomes of it.
    fn after(&self, loss: Loss, seen: &mut Seen) -> Result<(), String> {
        let copy = self.place.path().join("copy");
        fs::copy(self.place.path().join("before"), &copy).expect("copy the disk");
        loss.apply(&self.events, &copy);
        // Where it was, which is what the record has.
        let mounted = Mounted::new(self.way.format, &copy, &self.place.path().join("mounted"));
        let image = self.redeploy.image();
        let is_new = || same(&image, &self.redeploy.version("new"));
        let is_old = || match self.way.changes {
            Some(_) => same(&image, &self.redeploy.version("old")),
            None => !image.exists(),
        };
        let (may_be_new, is_decided) = (loss.after > self.prepared, loss.after >= self.prepared);
        let found = leftovers(&mounted.target());
        // In the last moment before it has its name, where others may have opened it.
        let is_open_to_others = |name: &String| {
            let path = mounted.target().join(name);
            fs::metadata(path).expect("look").mode() & 0o777 != 0o600
        };
        let has_attributes = may_be_new && found.iter().any(is_open_to_others);
        let count = match (may_be_new, is_new(), is_old()) {
            (false, ..) => &mut seen.before,
            (_, true, _) => &mut seen.new,
            (.., true) => &mut seen.old,
            _ => &mut seen.partly,
        };
        *count += 1;
        let is_whole = || is_old() || may_be_new && is_new();
        demand(is_whole() || may_be_new && self.way.between == Between::Sealed, "neither old nor new")?;
        demand(loss.after < self.said || is_new(), "success was told, and it is not there")?;
        let recovered = run(holesync().arg("recover").arg(mounted.target()));
        let told = |what: &str| format!("{what}, with {found:?} before: {recovered}");
        demand(recovered.code != 101 && is_whole(), &told("recover leaves it neither old nor new"))?;
        let is_waiting = loss.after == self.prepared;
        demand(
            !is_waiting || recovered.stdout.contains("/image: prepared by run"),
            &told("it is not named"),
        )?;
        self.decide(is_decided);
        let outcome = run(&mut self.together(&["disk"]));
        let left = leftovers(&mounted.target());
        let equal = is_new();
        let told = format!("after the next run equal: {equal}, left behind: {left:?}: {outcome}");
        demand(outcome.code == 0 && equal && left.is_empty(), &told)?;
        let sends_nothing =
            outcome.stdout.lines().last().is_some_and(|line| line.contains(r#""sent_data_bytes":0,"#));
        seen.sent_again += usize::from(is_decided && !sends_nothing);
        let told = format!("what was prepared is sent again, with {found:?} before: {recovered} {outcome}");
        demand(!is_decided || sends_nothing || has_attributes, &told)
    }

    /// Puts the record of the decision where the next run looks for it, or has none there.
    fn decide(&self, is_decided: bool) {
        let state = self.state();
        let _ = fs::remove_dir_all(&state);
        if is_decided {
            run(Command::new("cp").arg("-a").arg(self.sources.path().join("decided")).arg(&state)).ok();
        }
    }
}
