//! Somebody who may write in a source puts symlinks in the place of what was found there.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::faults::can_trace;
use crate::common::lab;
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, Running, holesync, run, start, wait_until};
use crate::common::tree::{Way, mkdir, set_mode, small};

const NOBODY: u32 = 65534;
const SECRET: &str = "topsecret";
const PLAIN: &str = "ninebytes";
const WAYS: [Way; 4] = [Way::Local, Way::Push, Way::Pull, Way::PushShell];

/// A directory in which nobody may write, beside one that is root's alone.
struct Ground {
    dir: TempDir,
    from: PathBuf,
    private: PathBuf,
    to: PathBuf,
}

impl Ground {
    fn new() -> Ground {
        let dir = lab::scratch();
        set_mode(dir.path(), 0o755);
        let path = |name: &str| dir.path().join(name);
        let (from, private, to) = (path("from"), mkdir(path("private")), path("to"));
        for below in [from.join("sub"), private.clone()] {
            mkdir(below);
        }
        set_mode(&small(private.join("inner"), SECRET), 0o600);
        set_mode(&private, 0o700);
        for path in [from.join("a"), from.join("sub/inner")] {
            small(path.clone(), PLAIN);
            set_mode(&path, 0o644);
        }
        for path in [from.clone(), from.join("a"), from.join("sub"), from.join("sub/inner")] {
            chown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
        }
        Ground { dir, from, private, to }
    }

    /// The program, whose sender is run by `wrapped`: nothing, or strace with its options.
    fn command(&self, way: Way, wrapped: &str) -> Command {
        let peer = |body: &str| Peer::script(self.dir.path(), body);
        let mut command = match way {
            Way::Local => holesync(),
            Way::Push => peer("agent").holesync(),
            Way::Pull => peer(&format!("exec {wrapped} $command")).holesync(),
            Way::PushShell | Way::PullShell => peer("agent").shell(),
        };
        let from = self.from.join("");
        if way == Way::Pull {
            command.arg(at(from)).arg(&self.to);
            return command;
        }
        command.arg(from).arg(if way == Way::Local { self.to.clone().into() } else { at(&self.to) });
        let mut words = wrapped.split_whitespace();
        let Some(first) = words.next() else { return command };
        let mut outer = Command::new(first);
        outer.args(words).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => outer.env(name, value),
                None => outer.env_remove(name),
            };
        }
        outer
    }

    /// Starts a run whose sender takes a long time to open what is called `name`, during which this happens.
    #[track_caller]
    fn held(way: Way, name: &str, meanwhile: impl Fn(&Ground)) -> (Ground, Running) {
        let tries = (0..10).find_map(|_| {
            let ground = Ground::new();
            let log = ground.dir.path().join("calls");
            let what = format!("-P {} -e trace=openat2", ground.from.display());
            let inject = "-e inject=openat2:delay_enter=1500000";
            let strace = format!("strace -f -qq -o {} {what} {inject}", log.display());
            let running = start(&mut ground.command(way, &strace));
            let calls = || fs::read_to_string(&log).unwrap_or_default();
            let is_open = || has_opened(&calls(), name);
            assert!(
                wait_until(Duration::from_secs(60), || is_open().is_some()),
                "{way:?}: {name} is not opened"
            );
            meanwhile(&ground);
            (is_open() == Some(false)).then_some((ground, running))
        });
        tries.unwrap_or_else(|| panic!("{way:?}: {name} was always open before anything happened"))
    }

    #[track_caller]
    fn assert_kept(&self, way: Way, outcome: &Outcome) {
        for entry in walkdir::WalkDir::new(&self.to).into_iter().flatten() {
            if !entry.file_type().is_file() {
                continue;
            }
            let content = fs::read(entry.path()).expect("read");
            assert_ne!(content, SECRET.as_bytes(), "{way:?}: {} in {outcome}", entry.path().display());
            let metadata = entry.metadata().expect("stat");
            let is_working = entry.file_name().to_string_lossy().contains(".holesync.");
            assert!(is_working || metadata.mode() & 0o7777 == 0o644, "{way:?}: {metadata:?}");
        }
    }
}

/// Whether the first call that opens what is called so has ended, as strace tells; `None`: it has not begun.
fn has_opened(calls: &str, name: &str) -> Option<bool> {
    let opens = format!("\"{name}\"");
    let mut lines = calls.lines().skip_while(|line| !line.contains(&opens));
    let first = lines.next()?;
    let process = first.split(' ').next()?;
    let ends = |line: &str| line.starts_with(process) && line.contains("openat2 resumed");
    Some(first.contains(" = ") || lines.any(ends))
}

fn swap(path: &Path, target: &Path) {
    fs::rename(path, path.with_extension("away")).expect("rename");
    symlink(target, path).expect("symlink");
}

#[test]
fn a_file_that_becomes_a_symlink_is_not_read() {
    if !lab::is_root() || !can_trace() {
        return;
    }
    for way in WAYS {
        let (ground, running) = Ground::held(way, "a", |ground| {
            swap(&ground.from.join("a"), &ground.private.join("inner"));
        });
        let outcome = running.finish();
        ground.assert_kept(way, &outcome);
        let outcome = outcome.code(23).says(&["from/a", "changed into something else"]);
        assert_eq!(fs::read_to_string(ground.to.join("sub/inner")).ok().as_deref(), Some(PLAIN), "{outcome}");
    }
}

#[test]
fn a_directory_that_becomes_a_symlink_is_not_entered() {
    if !lab::is_root() || !can_trace() {
        return;
    }
    for way in WAYS {
        let (ground, running) =
            Ground::held(way, "sub", |ground| swap(&ground.from.join("sub"), &ground.private));
        let outcome = running.finish();
        ground.assert_kept(way, &outcome);
        let outcome = outcome.ok();
        assert_eq!(fs::read_link(ground.to.join("sub")).ok(), Some(ground.private.clone()), "{outcome}");
    }
}

#[test]
fn a_file_below_a_directory_that_becomes_a_symlink_is_not_read() {
    if !lab::is_root() || !can_trace() {
        return;
    }
    for way in WAYS {
        let (ground, running) =
            Ground::held(way, "sub/inner", |ground| swap(&ground.from.join("sub"), &ground.private));
        let outcome = running.finish();
        ground.assert_kept(way, &outcome);
        outcome.code(23).says(&["from/sub/inner", "changed into something else"]);
    }
}

#[test]
fn a_file_that_is_replaced_by_another_is_sent_as_what_it_is() {
    if !lab::is_root() || !can_trace() {
        return;
    }
    for way in WAYS {
        let (ground, running) = Ground::held(way, "a", |ground| {
            let new = small(ground.from.join("new"), "different");
            set_mode(&new, 0o600);
            fs::rename(new, ground.from.join("a")).expect("rename");
        });
        let outcome = running.finish().ok();
        let (sent, there) =
            (fs::metadata(ground.from.join("a")).expect("stat"), fs::metadata(ground.to.join("a")));
        assert_eq!(fs::read_to_string(ground.to.join("a")).ok().as_deref(), Some("different"), "{outcome}");
        assert_eq!(there.expect("stat").mode(), sent.mode(), "{way:?}: not the mode of the old one");
    }
}

#[test]
fn a_file_that_is_gone_when_it_is_read_has_vanished() {
    if !lab::is_root() || !can_trace() {
        return;
    }
    for way in WAYS {
        let (_ground, running) =
            Ground::held(way, "a", |ground| fs::remove_file(ground.from.join("a")).expect("remove"));
        running.finish().code(24).says(&["from/a"]);
    }
}

/// Puts symlinks in the place of a file and a directory, and back, for as long as it lives.
const SWAPPER: &str = r#"
chdir $ARGV[0] or die;
while (getppid() != 1) {
    rename "a", "away"; symlink "../private/inner", "a"; unlink "a"; rename "away", "a";
    rename "sub", "gone"; symlink "../private", "sub"; unlink "sub"; rename "gone", "sub";
    rename "sub/inner", "sub/x"; symlink "../../private/inner", "sub/inner"; unlink "sub/inner";
    rename "sub/x", "sub/inner";
}
"#;

/// How long the test below goes on, unless `HOLESYNC_TEST_SECONDS` says otherwise.
const SECONDS: u64 = 4;

#[test]
fn whoever_swaps_all_the_time_gets_nothing_out() {
    if !lab::is_root() {
        return;
    }
    let seconds = std::env::var("HOLESYNC_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    let ground = Ground::new();
    let mut swapper = Command::new("setpriv");
    swapper.args(["--reuid=65534", "--regid=65534", "--clear-groups", "perl", "-e", SWAPPER]);
    let swapper = start(swapper.arg(&ground.from));
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(SECONDS));
    for (runs, way) in WAYS.into_iter().cycle().enumerate() {
        if Instant::now() > end && runs >= 2 * WAYS.len() {
            break;
        }
        let outcome = run(&mut ground.command(way, ""));
        assert!([0, 23, 24].contains(&outcome.code), "{outcome}");
        ground.assert_kept(way, &outcome);
        if ground.to.exists() {
            fs::remove_dir_all(&ground.to).expect("remove");
        }
    }
    assert!(!swapper.has_ended(), "nothing was swapped");
}
