//! The same for a tree: what is made, linked, given attributes, kept as a backup and removed.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tempfile::TempDir;

use super::{Case, cases, demand};
use crate::common::check::leftovers;
use crate::common::lab;
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, holesync, run, start_on};
use crate::common::trace::{Fault, Seen, Tracer, When};
use crate::common::tree::{mkdir, set_mode, set_mtime, slash, small};

const FLAGS: &[&str] = &["-aHAX", "--delete", "--backup-dir=../kept", "--link-dest=../before"];

/// One of how many cases a run of all tests tries.
const SAMPLE: usize = 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Copy,
    Receiver,
    PullSender,
}

#[test]
fn whatever_call_fails_a_tree_loses_nothing_and_the_next_run_makes_it_equal() {
    if !lab::is_root() {
        return;
    }
    for role in [Role::Copy, Role::Receiver, Role::PullSender] {
        fail_everywhere(role, &[]);
    }
    fail_everywhere(Role::Receiver, &["--delay-updates"]);
}

/// Trees, and what must stay as it is.
struct Bench {
    dir: TempDir,
    role: Role,
    /// Beside those of all.
    flags: &'static [&'static str],
}

fn tool(dir: &Path, line: &str) {
    let mut words = line.split(' ');
    run(Command::new(words.next().expect("a program")).args(words).current_dir(dir)).ok();
}

impl Bench {
    fn new(role: Role, flags: &'static [&'static str]) -> Bench {
        let dir = lab::scratch();
        let path = |name: &str| dir.path().join(name);
        let [from, old, before] = ["from", "old", "before"].map(|name| mkdir(path(name)));
        small(from.join("changed"), &"new".repeat(30_000));
        small(mkdir(from.join("dir")).join("plain"), "plain");
        fs::hard_link(from.join("changed"), from.join("dir/other name")).expect("link");
        symlink("dir", from.join("link")).expect("symlink");
        mknod(&from.join("fifo"), SFlag::S_IFIFO, Mode::S_IRWXU, 0).expect("mkfifo");
        mknod(&from.join("node"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 3)).expect("mknod");
        small(from.join("linked"), "linked");
        for line in [
            "setfacl -m u:daemon:rw dir/plain",
            "setfacl -d -m u:bin:rx dir",
            "setfattr -n user.one -v 1 changed",
            "chown 7:8 dir/plain",
        ] {
            tool(&from, line);
        }
        tool(dir.path(), "cp -a from/linked before/");
        small(before.join("changed"), "another");
        small(old.join("changed"), &"old".repeat(30_000));
        for name in ["gone", "link", "other"] {
            small(old.join(name), name);
        }
        small(mkdir(mkdir(old.join("full")).join("sub")).join("deep"), "deep");
        symlink("../../before", old.join("full/out")).expect("symlink");
        small(old.join("fifo"), "a file");
        set_mode(&from.join("dir"), 0o750);
        for dir in [&from, &old] {
            for entry in walkdir::WalkDir::new(dir).contents_first(true) {
                set_mtime(entry.expect("walk").path(), 1_000_000 + (*dir == old) as i64, 5);
            }
        }
        tool(dir.path(), "cp -a --no-dereference --preserve=all from/linked before/");
        Bench { dir, role, flags }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn reset(&self) {
        tool(self.dir.path(), "rm -rf to kept");
        tool(self.dir.path(), "cp -a old to");
    }

    /// One run, in which one process is followed.
    fn run(&self, when: When) -> (Outcome, Seen) {
        let (from, to, dir) = (slash(&self.path("from")), slash(&self.path("to")), self.dir.path());
        let (agent, peer) = if self.role == Role::Copy {
            (None, Peer::pipe(dir))
        } else {
            let (tracer, peer) = Tracer::agent(dir, when);
            (Some(tracer), peer)
        };
        let mut command = if self.role == Role::Copy { holesync() } else { peer.holesync() };
        command.args(FLAGS).args(self.flags);
        match self.role {
            Role::Copy => command.arg(&from).arg(&to),
            Role::Receiver => command.arg(&from).arg(at(&to)),
            Role::PullSender => command.arg(at(&from)).arg(&to),
        };
        let (tracer, mut command) = match agent {
            Some(tracer) => (tracer, command),
            None => Tracer::command(dir, when, &command),
        };
        let outcome = start_on(&mut command, Stdio::null()).finish();
        (outcome, tracer.seen())
    }

    fn suffers(&self, case: Case) -> Result<Option<i32>, String> {
        let Case { call, nth, fault } = case;
        self.reset();
        eprintln!("tree, {:?}: {fault:?} at {call} {nth}", self.role);
        let (outcome, seen) = self.run(When::Nth(call, nth, fault));
        let Some(hit) = seen.hit else { return Ok(None) };
        let judged = self.judge(&outcome, call, fault).and_then(|()| {
            let (next, _) = self.run(When::Unwatched);
            let (left, differ) = (leftovers(&self.path("to")), self.differences());
            demand(next.code == 0 && left.is_empty() && differ.is_empty(), "").map_err(|_| {
                format!("after the next run differ: {differ:?}, left behind: {left:?}; it was {next}")
            })?;
            self.keeps_backups()
        });
        judged.map_err(|what| format!("tree, {:?}: {fault:?} at {hit}: {what}; {outcome}", self.role))?;
        Ok(Some(outcome.code))
    }

    fn judge(&self, outcome: &Outcome, call: &str, fault: Fault) -> Result<(), String> {
        let panicked = outcome.code == 101 || outcome.stderr.contains("panicked");
        demand(!panicked, "it panics")?;
        demand((0..128).contains(&outcome.code) || fault == Fault::Kill, "a signal ends it")?;
        let there = fs::read(self.path("to/changed")).unwrap_or_default();
        let is_whole = ["from", "old"]
            .iter()
            .any(|tree| fs::read(self.path(tree).join("changed")).is_ok_and(|content| content == there));
        demand(is_whole, "a file is neither old nor new")?;
        let before = fs::metadata(self.path("before/linked")).is_ok_and(|it| it.mtime() == 1_000_000);
        demand(before, "what was linked to is another")?;
        demand(
            fs::read(self.path("before/changed")).is_ok_and(|it| it == b"another"),
            "what lies beside changed",
        )?;
        // An empty directory that could not be removed is the next run's to remove.
        let differ: String = self
            .differences()
            .lines()
            .filter(|line| !line.ends_with("/.~tmp~/") && !line.ends_with(" .~tmp~/"))
            .collect();
        // A source of which a change might not show gets no time, and that is said.
        let is_doubted = call == "sync_file_range" && outcome.stderr.contains("may have been changed unseen");
        let is_equal = differ.is_empty() || is_doubted;
        demand(outcome.code != 0 || is_equal, &format!("success, and not equal: {differ}"))?;
        self.keeps_backups()
    }

    /// What the source does not have is at the destination, or below the backups.
    fn keeps_backups(&self) -> Result<(), String> {
        for name in ["gone", "other", "full/sub/deep"] {
            let content = Path::new(name).file_name().expect("a name").to_string_lossy().into_owned();
            let is_kept = ["to", "kept"]
                .iter()
                .any(|tree| fs::read_to_string(self.path(tree).join(name)).is_ok_and(|kept| kept == content));
            demand(is_kept, &format!("{name} is lost"))?;
        }
        Ok(())
    }

    /// What rsync finds to differ.
    fn differences(&self) -> String {
        let args = ["-aHAXn", "--delete", "-c", "-i", "from/", "to/"];
        let output =
            Command::new("rsync").current_dir(self.dir.path()).args(args).output().expect("run rsync");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn fail_everywhere(role: Role, flags: &'static [&'static str]) {
    let bench = Bench::new(role, flags);
    bench.reset();
    let (outcome, undisturbed) = bench.run(When::Never);
    outcome.ok();
    assert_eq!(bench.differences(), "");
    assert!(undisturbed.unknown.is_empty(), "calls that no list knows: {:?}", undisturbed.unknown);
    let (mut faults, mut failed, mut broken) = (0, 0, Vec::new());
    for case in cases(&undisturbed, |_| true, SAMPLE + 1, role as usize) {
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
        "faults: tree, {role:?} {flags:?} {calls:5} calls {faults:5} faults: {failed} runs failed; {} broke a promise",
        broken.len()
    ));
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
    assert!(failed > 0, "no fault was felt");
}
