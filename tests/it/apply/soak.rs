//! Hours of redeployments of which most are disturbed: random changes, every way of committing, several
//! file systems, kills, links that die, disks that are full. Only `tests/soak SECONDS` runs it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use crate::common::check::{leftovers, same};
use crate::common::faults::{Direction, Fault, seconds};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Change, Layout, Rng, layouts, mutate};
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, PROGRAM, agents, holesync, run, start_on};
use crate::common::redeploy::set_day;

const FILE_SYSTEMS: [Fs; 5] = [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs, Fs::Small];
const FLAGS: [&[&str]; 8] = [
    &[],
    &["--commit=atomic"],
    &["--inplace"],
    &["-W"],
    &["-c"],
    &["--preallocate"],
    &["--no-fsync"],
    &["--verify", "-a"],
];

/// Ways from here to there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Push,
    Pull,
    Ssh,
    Shell,
    Copy,
    Stream,
}

/// What happens meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// This end is killed.
    KillHere,
    /// The other end is.
    KillThere,
    /// This end stops for a while, and is killed then.
    Freeze,
    /// The connection breaks.
    Cut,
    /// There is little room.
    Full,
}

const ROUTES: [Route; 6] = [Route::Push, Route::Pull, Route::Ssh, Route::Shell, Route::Copy, Route::Stream];
const TROUBLES: [Trouble; 6] =
    [Trouble::None, Trouble::KillHere, Trouble::KillThere, Trouble::Freeze, Trouble::Cut, Trouble::Full];

#[test]
#[ignore = "takes as long as it is told: tests/soak SECONDS"]
fn a_soak() {
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds(60));
    let seed = std::env::var("HOLESYNC_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let mut rng = Rng(seed.unwrap_or(u64::from(std::process::id())));
    lab::count(&format!("soak: seed {}", rng.0));
    let mut counts = BTreeMap::new();
    let mut told = begun;
    while Instant::now() < end {
        let Some(mut image) = Soaked::new(FILE_SYSTEMS[rng.below(5)], &mut rng) else { return };
        for _ in 0..6 {
            image.redeploy(&mut rng, &mut counts);
        }
        if told.elapsed() > Duration::from_secs(60) {
            told = Instant::now();
            let runs: usize = counts.values().sum();
            lab::count(&format!("soak: {} s, {runs} runs, nothing lost", begun.elapsed().as_secs()));
        }
    }
    for (what, count) in &counts {
        lab::count(&format!("soak: {count:6} {what}"));
    }
    let runs: usize = counts.values().sum();
    lab::count(&format!("soak: {} s, {runs} runs, nothing lost", begun.elapsed().as_secs()));
}

/// An image that is redeployed again and again.
struct Soaked {
    fs: Fs,
    /// Kept while the small file system is used.
    _alone: Option<lab::Small>,
    target: TempDir,
    sources: TempDir,
    agent: PathBuf,
    layout: Layout,
    day: u64,
}

impl Soaked {
    fn new(fs: Fs, rng: &mut Rng) -> Option<Soaked> {
        let (alone, target) = match fs {
            Fs::Small => {
                let small = lab::small()?;
                let target = tempfile::tempdir_in(small.dir.path()).expect("a directory");
                (Some(small), target)
            }
            fs => (None, lab::dir(fs)?),
        };
        let sources = lab::scratch();
        let agent = sources.path().join("holesync");
        std::os::unix::fs::symlink(PROGRAM, &agent).expect("link to the program");
        let kinds = layouts(rng);
        let layout = kinds[rng.below(kinds.len())].clone();
        layout.write(&sources.path().join("new"));
        if rng.chance(80) {
            std::fs::copy(sources.path().join("new"), target.path().join("image")).expect("copy");
        }
        Some(Soaked { fs, _alone: alone, target, sources, agent, layout, day: 1 })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sources.path().join(name)
    }

    fn image(&self) -> PathBuf {
        self.target.path().join("image")
    }

    /// One more version, disturbed, and then in peace.
    fn redeploy(&mut self, rng: &mut Rng, counts: &mut BTreeMap<String, usize>) {
        for _ in 0..1 + rng.below(5) {
            self.layout = mutate(self.layout.clone(), Change::ALL[rng.below(Change::ALL.len())], rng);
        }
        self.day += 1;
        if self.image().exists() {
            std::fs::copy(self.image(), self.path("old")).expect("keep the old image");
        } else {
            let _ = std::fs::remove_file(self.path("old"));
        }
        self.layout.write(&self.path("new"));
        set_day(&self.path("new"), self.day);
        let (route, trouble) = (ROUTES[rng.below(6)], TROUBLES[rng.below(6)]);
        let flags = if route == Route::Stream { &[][..] } else { FLAGS[rng.below(FLAGS.len())] };
        let what = format!("{:?} {route:?} {} {trouble:?}", self.fs, flags.join(" "));
        let outcome = self.disturbed(route, flags, trouble, rng);
        let ended = self.judge(flags, &outcome, &what);
        if route == Route::Shell {
            self.forget_temps();
        }
        *counts.entry(format!("{route:?}, {trouble:?}: {ended}")).or_default() += 1;
        if ended == "sealed" && rng.chance(50) {
            let outcome = run(holesync().arg("recover").arg(self.image()));
            let whole = same(&self.image(), &self.path("new"));
            assert!(outcome.code == 0 && whole, "{what}: recover: {outcome}");
        }
        let peer = Peer::pipe(self.sources.path()).with_program(&self.agent);
        let outcome = run(peer.holesync().arg(self.path("new")).arg(at(self.image())));
        let left = leftovers(self.target.path());
        let equal = same(&self.image(), &self.path("new"));
        assert!(outcome.code == 0 && equal && left.is_empty(), "{what}: equal {equal}, {left:?}: {outcome}");
    }

    fn disturbed(&self, route: Route, flags: &[&str], trouble: Trouble, rng: &mut Rng) -> Outcome {
        let dir = self.sources.path();
        let peer = match trouble {
            Trouble::Cut => {
                let direction = if rng.chance(50) { Direction::ToAgent } else { Direction::FromAgent };
                Fault::Cut(rng.below(self.layout.len() + 2000) as u64).peer(dir, direction)
            }
            _ if route == Route::Ssh => Peer::sshd().expect("a private sshd"),
            _ => Peer::pipe(dir),
        };
        let peer = peer.with_program(&self.agent);
        let mut command = if route == Route::Shell { peer.shell() } else { peer.holesync() };
        let (new, image) = (self.path("new"), self.image());
        let mut input = Stdio::null();
        match route {
            Route::Push | Route::Ssh | Route::Shell => command.args(flags).arg(new).arg(at(image)),
            Route::Pull => command.args(flags).arg(at(new)).arg(image),
            Route::Copy => command.args(flags).arg(new).arg(image),
            Route::Stream => {
                let stream = File::create(self.path("stream")).expect("create");
                let sent = holesync().arg("send").arg(new).stdout(stream).status();
                assert!(sent.is_ok_and(|status| status.success()), "send fails");
                input = File::open(self.path("stream")).expect("open").into();
                command = holesync();
                command.arg("recv").arg(image)
            }
        };
        let _filler =
            (trouble == Trouble::Full && self.fs == Fs::Small).then(|| Filler::new(&self.target, rng));
        let running = start_on(&mut command, input);
        let mut pause = |most: usize| std::thread::sleep(Duration::from_micros(rng.below(most) as u64));
        match trouble {
            Trouble::KillHere => {
                pause(150_000);
                running.signal(Signal::SIGKILL);
            }
            Trouble::KillThere => {
                pause(150_000);
                end_agents(&self.agent);
            }
            Trouble::Freeze => {
                pause(100_000);
                running.signal(Signal::SIGSTOP);
                pause(300_000);
                running.signal(Signal::SIGKILL);
            }
            Trouble::None | Trouble::Cut | Trouble::Full => {}
        }
        running.finish()
    }

    /// What the image is now; nothing else may be.
    fn judge(&self, flags: &[&str], outcome: &Outcome, what: &str) -> &'static str {
        let panicked = outcome.code == 101 || outcome.stderr.contains("panicked");
        assert!(!panicked, "{what}: it panics: {outcome}");
        let is_new = same(&self.image(), &self.path("new"));
        assert!(outcome.code != 0 || is_new, "{what}: success, and not equal: {outcome}");
        let is_old = match self.path("old").exists() {
            true => same(&self.image(), &self.path("old")),
            false => !self.image().exists(),
        };
        let left = leftovers(self.target.path());
        let sealed = left.len() == 2 && left.iter().any(|name| name.ends_with(".log"));
        match (is_new, is_old) {
            (true, _) if outcome.code == 0 => "done",
            (true, _) => "new",
            (_, true) => "old",
            _ if flags.contains(&"--inplace") => "partly written",
            _ if sealed => "sealed",
            _ => panic!("{what}: neither old nor new: {left:?}: {outcome}"),
        }
    }
}

impl Soaked {
    /// A shell that is killed by force leaves one behind, as docs/remote.md has it.
    fn forget_temps(&self) {
        for name in leftovers(self.target.path()).iter().filter(|name| name.ends_with(".temp")) {
            std::fs::remove_file(self.target.path().join(name)).expect("remove what a shell left");
        }
    }
}

/// Ends those that run this program as an agent.
fn end_agents(program: &Path) {
    for pid in agents(program) {
        // It may have ended by itself.
        let _ = kill(pid, Signal::SIGKILL);
    }
}

/// Takes almost all of the room, until it is dropped.
struct Filler(PathBuf);

impl Filler {
    fn new(target: &TempDir, rng: &mut Rng) -> Filler {
        let path = target.path().with_file_name("filler");
        let file = File::create(&path).expect("create the filler");
        file.sync_all().expect("sync");
        let stat = nix::sys::statvfs::statvfs(target.path()).expect("ask for free space");
        let free = stat.blocks_free() * stat.fragment_size();
        let len = free.saturating_sub((256 << 10) + rng.below(4 << 20) as u64).max(1);
        // What others have written may not have its room yet; then there is less, and none is left.
        let _ = fallocate(&file, FallocateFlags::empty(), 0, len as i64);
        Filler(path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).expect("remove the filler");
    }
}
