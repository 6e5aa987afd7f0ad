//! The same for many small files, which wait for storage together: new ones, in directories that
//! the run makes, and others in the place of what is there.
//!
//! Besides: what is said of a file is so. One that is told to be sent is in its place, one that is
//! not in its place is named, and so is one that lacks attributes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;

use super::{Case, cases, demand, tries_all};
use crate::common::check::leftovers;
use crate::common::lab::{self, Fs};
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, holesync, start_on};
use crate::common::trace::{Fault, Seen, Tracer, When};
use crate::common::tree::{assert_trees, mkdir, set_mode, set_mtime, slash, small};

/// One of how many cases a run of all tests tries.
const SAMPLE: usize = 79;
/// New files, in two directories that are made.
const NEW: usize = 60;
/// Files that take the place of others.
const CHANGED: usize = 12;

/// Who receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The agent of a push.
    Push,
    /// The initiator of a pull.
    Pull,
    /// A copy on one machine.
    Copy,
}

#[test]
fn whatever_call_fails_small_files_are_old_or_new_and_what_is_said_of_them_is_so() {
    for role in [Role::Push, Role::Pull, Role::Copy] {
        fail_everywhere(role);
    }
}

/// What is looked at of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    content: Vec<u8>,
    is_link: bool,
    /// Permissions and time of a file.
    attributes: Option<(u32, i64, i64)>,
}

impl Node {
    fn has_content_of(&self, other: Option<&Node>) -> bool {
        other.is_some_and(|other| self.content == other.content && self.is_link == other.is_link)
    }
}

/// What is below a directory, without directories and working files.
fn nodes(dir: &Path) -> BTreeMap<String, Node> {
    let entries = walkdir::WalkDir::new(dir).into_iter().flatten();
    let entries = entries.filter(|entry| !entry.file_type().is_dir());
    let entries = entries.filter(|entry| !entry.file_name().to_string_lossy().contains(".holesync"));
    entries
        .map(|entry| {
            let path = entry.path();
            let name = path.strip_prefix(dir).expect("below").to_str().expect("a plain name").to_owned();
            let stat = entry.metadata().expect("stat");
            let node = if stat.is_symlink() {
                let to = fs::read_link(path).expect("readlink").into_os_string().into_encoded_bytes();
                Node { content: to, is_link: true, attributes: None }
            } else {
                let attributes = Some((stat.mode(), stat.mtime(), stat.mtime_nsec()));
                Node { content: fs::read(path).expect("read"), is_link: false, attributes }
            };
            (name, node)
        })
        .collect()
}

struct Bench {
    role: Role,
    sources: TempDir,
    target: TempDir,
    old: BTreeMap<String, Node>,
    new: BTreeMap<String, Node>,
}

impl Bench {
    fn new(role: Role, target: TempDir) -> Bench {
        let sources = lab::scratch();
        let [from, old] = ["from", "old"].map(|name| mkdir(sources.path().join(name)));
        for number in 0..NEW {
            let dir = mkdir(from.join(["made", "made/below"][number % 2]));
            let file = small(dir.join(format!("new-{number}-")), &format!("{number} ").repeat(30 * number));
            set_mode(&file, [0o644, 0o400, 0o750][number % 3]);
        }
        for number in 0..CHANGED {
            let name = format!("changed-{number}-");
            small(mkdir(from.join("there")).join(&name), &format!("new {number} ").repeat(700));
            small(mkdir(old.join("there")).join(&name), &format!("old {number} ").repeat(700 + number % 2));
        }
        for (dir, text) in [(&from, "new"), (&old, "old")] {
            let there = dir.join("there");
            symlink(text, there.join("link-")).expect("symlink");
            small(there.join("stays-"), "stays");
        }
        small(from.join("there/of-a-link-"), "a file");
        symlink("stays-", old.join("there/of-a-link-")).expect("symlink");
        symlink("new-0-", from.join("made/link-that-is-new-")).expect("symlink");
        for dir in [&from, &old] {
            for entry in walkdir::WalkDir::new(dir).contents_first(true) {
                let path = entry.expect("walk").into_path();
                let is_old = *dir == old && !path.ends_with("stays-");
                set_mtime(&path, 1_000_000 + i64::from(is_old), 5);
            }
        }
        let (old, new) = (nodes(&old), nodes(&from));
        Bench { role, sources, target, old, new }
    }

    fn from(&self) -> PathBuf {
        self.sources.path().join("from")
    }

    fn to(&self) -> PathBuf {
        self.target.path().join("to")
    }

    fn reset(&self) {
        let _ = fs::remove_dir_all(self.to());
        let old = self.sources.path().join("old");
        let copy = std::process::Command::new("cp").arg("-a").arg(old).arg(self.to()).status();
        assert!(copy.expect("run cp").success());
    }

    /// One run, in which the receiver is followed.
    fn run(&self, when: When) -> (Outcome, Seen) {
        let (from, to, dir) = (slash(&self.from()), slash(&self.to()), self.sources.path());
        let mut command = holesync();
        let (agent, peer) = match self.role {
            Role::Push => {
                let (tracer, peer) = Tracer::agent(dir, when);
                (Some(tracer), Some(peer))
            }
            Role::Pull => (None, Some(Peer::pipe(dir))),
            Role::Copy => (None, None),
        };
        if let Some(peer) = peer {
            command = peer.holesync();
        }
        command.args(["-a", "--json"]);
        match self.role {
            Role::Push => command.arg(&from).arg(at(&to)),
            Role::Pull => command.arg(at(&from)).arg(&to),
            Role::Copy => command.arg(&from).arg(&to),
        };
        let (tracer, mut command) = match agent {
            Some(tracer) => (tracer, command),
            None => Tracer::command(dir, when, &command),
        };
        let outcome = start_on(&mut command, Stdio::null()).finish();
        (outcome, tracer.seen())
    }

    /// One call suffers one fault. Returns the exit code, if it did.
    fn suffers(&self, case: Case) -> Result<Option<i32>, String> {
        let Case { call, nth, fault } = case;
        self.reset();
        eprintln!("group, {:?}: {fault:?} at {call} {nth}", self.role);
        let (outcome, seen) = self.run(When::Nth(call, nth, fault));
        let Some(hit) = seen.hit else { return Ok(None) };
        let judged = self.judge(&outcome, fault).and_then(|()| {
            let (next, _) = self.run(When::Unwatched);
            let (left, now) = (leftovers(&self.to()), nodes(&self.to()));
            let differ: Vec<_> =
                self.new.iter().filter(|(name, node)| now.get(*name) != Some(*node)).collect();
            demand(next.code == 0 && left.is_empty() && differ.is_empty(), "").map_err(|_| {
                format!("after the next run differ: {differ:?}, left behind: {left:?}; it was {next}")
            })
        });
        judged.map_err(|what| format!("group, {:?}: {fault:?} at {hit}: {what}; {outcome}", self.role))?;
        Ok(Some(outcome.code))
    }

    fn judge(&self, outcome: &Outcome, fault: Fault) -> Result<(), String> {
        demand(outcome.code != 101 && !outcome.stderr.contains("panicked"), "it panics")?;
        demand((0..128).contains(&outcome.code) || fault == Fault::Kill, "a signal ends it")?;
        let events: Vec<Value> = outcome.stdout.lines().flat_map(serde_json::from_str).collect();
        let last = events.last().map_or("", |event| event["event"].as_str().unwrap_or_default());
        let is_killed = fault == Fault::Kill && self.role != Role::Push;
        demand(is_killed || ["summary", "error"].contains(&last), "nothing tells how it ended")?;
        let now = nodes(&self.to());
        for (name, new) in &self.new {
            let (there, old) = (now.get(name), self.old.get(name));
            let is_new = there.is_some_and(|there| there.has_content_of(Some(new)));
            let is_old = there == old;
            demand(is_new || is_old, &format!("{name} is neither old nor new"))?;
            let is_whole = there == Some(new);
            // Of a directory that cannot be read nobody knows what is in it.
            let dirs = [self.from(), self.from().join("made"), self.from().join("there")];
            let names = |event: &Value| {
                let text = |key: &str| event[key].as_str().unwrap_or_default();
                text("message").contains(name.as_str())
                    || dirs
                        .iter()
                        .any(|dir| text("path").trim_end_matches('/') == dir.to_str().expect("a path"))
            };
            let named = |kind: &str| events.iter().filter(|event| event["event"] == kind).any(names);
            let (fails, is_warned_of) = (named("error"), named("warning"));
            let is_named = fails || is_warned_of;
            // A source of which a change might not show gets no time.
            let is_doubted = is_new && is_warned_of;
            demand(is_whole || outcome.code != 0 || is_doubted, &format!("success, and {name} is not new"))?;
            demand(is_whole || is_old || is_named, &format!("{name} lacks attributes, and is not named"))?;
            demand(is_whole || is_named || last != "summary", &format!("{name} fails, and is not named"))?;
            let is_told = events.iter().any(|event| {
                event["path"] == name.as_str() && ["sent", "made"].iter().any(|done| event["action"] == *done)
            });
            demand(is_new || !is_told, &format!("{name} is told to be in its place, and is not"))?;
        }
        Ok(())
    }
}

fn fail_everywhere(role: Role) {
    let Some(target) = lab::dir(Fs::Ext4) else { return };
    let bench = Bench::new(role, target);
    bench.reset();
    let (outcome, undisturbed) = bench.run(When::Never);
    outcome.ok();
    assert_trees(&bench.to(), &bench.from(), true, "undisturbed");
    assert!(undisturbed.unknown.is_empty(), "calls that no list knows: {:?}", undisturbed.unknown);
    // Files are alike: of each call the first, the last and some between them tell all.
    let (calls, turns) = (undisturbed.calls.clone(), if tries_all() { 8 } else { 3 });
    let telling = |case: &Case| {
        let most = calls[case.call];
        case.nth == 1 || (1..=turns).any(|turn| case.nth == (turn * most).div_ceil(turns))
    };
    let (mut faults, mut failed, mut broken) = (0, 0, Vec::new());
    for case in cases(&undisturbed, telling, SAMPLE, role as usize) {
        match bench.suffers(case) {
            Ok(None) => {}
            Ok(Some(code)) => {
                faults += 1;
                failed += usize::from(code != 0);
            }
            Err(what) => broken.push(what),
        }
    }
    let calls: usize = undisturbed.calls.values().sum();
    lab::count(&format!(
        "faults: group, {role:?} {calls:5} calls {faults:5} faults: {failed} runs failed; {} broke a promise",
        broken.len()
    ));
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
    assert!(failed > 0, "no fault was felt");
}
