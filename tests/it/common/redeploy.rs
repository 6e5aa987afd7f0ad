//! A destination that is taken from an old image to a new one, interrupted on
//! the way, and what it may look like then.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::check::{assert_no_leftovers, assert_same, leftovers, same};
use super::layout::{Layout, Rng};
use super::peer::{Peer, at};
use super::process::{Outcome, holesync, run};

const BLOCK: usize = 64 << 10;

/// What an interrupted run left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Old,
    New,
    /// Partly written, with a sealed log that has the rest.
    Replaying,
}

/// Three versions of an image, and the destination.
pub struct Redeploy {
    sources: PathBuf,
    target: PathBuf,
    has_old: bool,
}

impl Redeploy {
    /// Versions in `sources`; the destination has `target` to itself. Without
    /// `old` it is not there in the beginning.
    pub fn new(
        sources: &Path,
        target: &Path,
        old: Option<&Layout>,
        new: &Layout,
        third: &Layout,
    ) -> Redeploy {
        let redeploy =
            Redeploy { sources: sources.to_owned(), target: target.to_owned(), has_old: old.is_some() };
        for (layout, name, day) in [(old, "old", 1), (Some(new), "new", 2), (Some(third), "third", 3)] {
            if let Some(layout) = layout {
                write_at(layout, &redeploy.version(name), day);
            }
        }
        redeploy.reset();
        redeploy
    }

    /// The same, with what is found in another place.
    pub fn on(&self, target: &Path) -> Redeploy {
        Redeploy { sources: self.sources.clone(), target: target.to_owned(), has_old: self.has_old }
    }

    pub fn version(&self, name: &str) -> PathBuf {
        self.sources.join(name)
    }

    pub fn image(&self) -> PathBuf {
        self.target.join("image")
    }

    /// Puts the destination back to where it began.
    pub fn reset(&self) {
        for entry in std::fs::read_dir(&self.target).expect("list the target").flatten() {
            std::fs::remove_file(entry.path()).expect("clear the target");
        }
        if self.has_old {
            std::fs::copy(self.version("old"), self.image()).expect("copy the old image");
            set_day(&self.image(), 1);
            File::open(self.image()).expect("open").sync_all().expect("sync");
        }
        File::open(&self.target).expect("open").sync_all().expect("sync");
    }

    /// The two paths of a run that makes the destination this version.
    pub fn push(&self, name: &str) -> [OsString; 2] {
        [self.version(name).into(), at(self.image())]
    }

    /// The same, with the source at the other end.
    pub fn pull(&self, name: &str) -> [OsString; 2] {
        [at(self.version(name)), self.image().into()]
    }

    /// What the destination is; anything that it may never be fails the test.
    #[track_caller]
    pub fn state(&self) -> State {
        let image = self.image();
        if same(&image, &self.version("new")) {
            State::New
        } else if if self.has_old { same(&image, &self.version("old")) } else { !image.exists() } {
            State::Old
        } else {
            let left = leftovers(&self.target);
            assert_eq!(left.len(), 2, "neither old nor new, nothing to finish it from: {left:?}");
            State::Replaying
        }
    }

    /// Has `holesync recover` finish what is sealed, without the source.
    #[track_caller]
    pub fn recover(&self) -> Outcome {
        let recovered = run(holesync().arg("recover").arg(self.image())).ok();
        assert_same(&self.image(), &self.version("new"));
        assert_no_leftovers(&self.target);
        recovered
    }

    /// Runs to the end, with nothing in the way.
    #[track_caller]
    pub fn finish(&self, peer: &Peer, flags: &[&str], name: &str) -> Outcome {
        self.complete(peer.holesync().args(flags).args(self.push(name)), name)
    }

    /// The same with a command of its own.
    #[track_caller]
    pub fn complete(&self, command: &mut Command, name: &str) -> Outcome {
        let outcome = run(command.arg("--json")).ok();
        assert_same(&self.image(), &self.version(name));
        assert_no_leftovers(&self.target);
        outcome
    }
}

/// Writes a version that is told from the others by its time.
fn write_at(layout: &Layout, path: &Path, day: u64) {
    layout.write(path);
    set_day(path, day);
}

/// Sets the modification time, to some day in 1970.
pub fn set_day(path: &Path, day: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::new(day * 86_400, 1);
    File::options().write(true).open(path).expect("open").set_modified(time).expect("set the time");
}

/// A version of `layout` in which every `nth` block is new.
pub fn every(nth: usize, layout: &Layout, rng: &mut Rng) -> Layout {
    (0..layout.len() / BLOCK).step_by(nth).fold(layout.clone(), |layout, block| {
        let start = block * BLOCK;
        layout.data(start..start + BLOCK, rng)
    })
}
