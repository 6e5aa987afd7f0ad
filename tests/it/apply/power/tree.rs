//! The same of a tree: files that are replaced, made, linked and removed, with backups.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{SAMPLE, demand, sample, waiter};
use crate::common::check::leftovers;
use crate::common::disk::{Event, Format, Loss, Mounted, Recorder};
use crate::common::lab::{self, Fs};
use crate::common::process::{holesync, run};
use crate::common::tree::{mkdir, set_mtime, slash, small};

/// Files of the old tree, and of the new one.
const OLD: [(&str, &str); 6] = [
    ("changed", "old"),
    ("dir/changed", "old, too"),
    ("linked", "old names"),
    ("same", "same"),
    ("gone", "gone"),
    ("gone dir/gone", "gone, too"),
];
const NEW: [(&str, &str); 6] = [
    ("changed", "new"),
    ("dir/changed", "new, too"),
    ("linked", "new names"),
    ("same", "same"),
    ("new", "only new"),
    ("new dir/new", "only new, too"),
];
/// Another name of a file, before and afterwards.
const OTHER_NAME: (&str, &str) = ("linked", "dir/other name");

#[test]
fn without_power_a_tree_has_old_or_new_files_and_all_backups() {
    lose_power("tree", &["-aH", "--delete", "--backup-dir=../kept"]);
}

/// What is written over is kept, whatever became of it.
#[test]
fn without_power_files_that_are_written_in_place_have_backups() {
    lose_power("tree, in place", &["-a", "--delete", "-b", "--inplace"]);
}

#[test]
fn without_power_a_tree_of_which_all_waits_has_old_or_new_files_and_all_backups() {
    lose_power("tree, delayed", &["-aH", "--delete", "--backup-dir=../kept", "--delay-updates"]);
}

/// What is said of each file whatever was lost.
struct Bench {
    place: tempfile::TempDir,
    sources: tempfile::TempDir,
    flags: &'static [&'static str],
    events: Vec<Event>,
    said: usize,
}

fn plant(dir: &Path, files: &[(&str, &str)], seconds: i64) {
    for (name, content) in files {
        let path = dir.join(name);
        mkdir(path.parent().expect("a parent").into());
        // Large enough to have blocks of its own, and data that is written late.
        set_mtime(&small(path, &content.repeat(2000)), seconds, 0);
    }
    fs::hard_link(dir.join(OTHER_NAME.0), dir.join(OTHER_NAME.1)).expect("link");
}

fn content(text: &str) -> Vec<u8> {
    text.repeat(2000).into_bytes()
}

fn lose_power(name: &str, flags: &'static [&'static str]) {
    let all = std::env::var_os("HOLESYNC_TEST_FAULTS").is_some_and(|what| what == "all");
    for restless in [false, true] {
        let Some(bench) = Bench::record(flags, restless) else { return };
        let losses = Loss::all(&bench.events, if all { 32 } else { 1 });
        let losses = if all { losses } else { sample(losses, SAMPLE) };
        let mut seen = BTreeMap::new();
        let broken: Vec<String> = losses
            .iter()
            .filter_map(|&loss| {
                bench
                    .after(loss, &mut seen)
                    .err()
                    .map(|what| format!("{loss:?} of {}: {what}", bench.events.len()))
            })
            .collect();
        lab::count(&format!(
            "power: {name:13} {}: {:4} states of the disk: {seen:?}; {} broke a promise",
            if restless { "restless" } else { "quiet   " },
            losses.len(),
            broken.len(),
        ));
        assert!(broken.is_empty(), "{flags:?}: {}", broken.join("\n\n"));
        assert!(["old", "new", "kept"].iter().all(|what| seen.contains_key(what)), "{seen:?}");
    }
}

impl Bench {
    fn record(flags: &'static [&'static str], restless: bool) -> Option<Bench> {
        if !lab::is_root() {
            return None;
        }
        let (place, sources) = (lab::dir(Fs::Xfs)?, lab::scratch());
        let disk = place.path().join("disk");
        Format::Ext4.make(&disk);
        let recorder = Recorder::new(&disk, &place.path().join("recorder"));
        let mounted = Mounted::new(Format::Ext4, &recorder.file(), &place.path().join("mounted"));
        plant(sources.path(), &NEW, 2_000);
        plant(&mkdir(mounted.target().join("to")), &OLD, 1_000);
        mounted.sync();
        recorder.begin(&disk, &place.path().join("before"));
        let waiter = restless.then(|| waiter(&mounted.target()));
        let outcome =
            run(holesync().args(flags).args([slash(sources.path()), slash(&mounted.target().join("to"))]));
        drop(waiter);
        outcome.ok();
        let said = recorder.events();
        mounted.sync();
        drop(mounted);
        Some(Bench { place, sources, flags, events: recorder.take(), said })
    }

    /// What a disk with this loss holds, and what becomes of it.
    fn after(&self, loss: Loss, seen: &mut BTreeMap<&'static str, usize>) -> Result<(), String> {
        let copy = self.place.path().join("copy");
        fs::copy(self.place.path().join("before"), &copy).expect("copy the disk");
        loss.apply(&self.events, &copy);
        let mounted = Mounted::new(Format::Ext4, &copy, &self.place.path().join("after"));
        let to = mounted.target().join("to");
        let is_over = loss.after >= self.said;
        self.is_old_or_new(&to, is_over, true, seen)?;
        let outcome = run(holesync().args(self.flags).args([slash(self.sources.path()), slash(&to)]));
        demand(outcome.code == 0, &format!("the next run fails: {outcome}"))?;
        // What is half written is what the next run keeps.
        let looks_at_kept = !self.flags.contains(&"--inplace");
        self.is_old_or_new(&to, true, looks_at_kept, &mut BTreeMap::new())
            .map_err(|what| format!("after the next run: {what}"))?;
        let left = leftovers(&mounted.target());
        demand(left.is_empty(), &format!("left behind: {left:?}"))
    }

    /// Each file is the old one or the new one, and the old one is kept when it is not there
    /// any more; `is_over`: all of it is new.
    fn is_old_or_new(
        &self,
        to: &Path,
        is_over: bool,
        looks_at_kept: bool,
        seen: &mut BTreeMap<&'static str, usize>,
    ) -> Result<(), String> {
        let kept = |name: &str| match self.flags.contains(&"-b") {
            true => to.join(format!("{name}~")),
            false => to.with_file_name("kept").join(name),
        };
        let (is_torn, is_linked) = (self.flags.contains(&"--inplace"), self.flags.contains(&"-aH"));
        let of = |files: &[(&str, &str)], name: &str| {
            files.iter().find(|(known, _)| *known == name).map(|(_, text)| content(text))
        };
        let names = OLD.iter().chain(&NEW).map(|(name, _)| *name);
        for name in names {
            let (old, new, now) = (of(&OLD, name), of(&NEW, name), fs::read(to.join(name)).ok());
            let is_whole = now == old || now == new || is_torn && now.is_some();
            demand(is_whole, &format!("{name} is neither old nor new"))?;
            demand(!is_over || now == new, &format!("{name} is told to be new, and is not"))?;
            *seen.entry(if now == new { "new" } else { "old" }).or_default() += 1;
            if now != old && old.is_some() && looks_at_kept {
                let is_kept = fs::read(kept(name)).ok() == old;
                demand(is_kept, &format!("{name} is not old any more, and the old one is not kept"))?;
                *seen.entry("kept").or_default() += 1;
            }
        }
        let stat = |name: &str| fs::metadata(to.join(name)).ok().map(|stat| stat.ino());
        let (first, other) = (stat(OTHER_NAME.0), stat(OTHER_NAME.1));
        demand(
            !is_over || !is_linked || first.is_some() && first == other,
            "two names are no names of one file",
        )?;
        // Where backups lie beside what they are of it stays.
        let is_gone = !to.join("gone dir").exists() || to.join("gone dir/gone~").exists();
        demand(!is_over || is_gone, "a directory is told to be gone, and is not")
    }
}
