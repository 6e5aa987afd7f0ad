//! A change of a store, or of what was pulled from one, that may be cut off, and what holds afterwards.
//!
//! Each version that the store tells of is whole, one that was to stay is there, and what was pulled over
//! is the old image, the new one, or one that a sealed log finishes. The next run ends well.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::common::check::{leftovers, same};
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::process::{Outcome, run};
use crate::common::redeploy::every;
use crate::store::Store;

const BLOCK: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A second version is published.
    Publish,
    /// The first of two versions goes, and what it alone needs.
    Prune,
    /// The second version is pulled over the first.
    Pull,
}

/// What is changed, and the two versions.
pub struct Change {
    pub role: Role,
    images: TempDir,
}

impl Change {
    pub fn new(role: Role) -> Change {
        let (images, mut rng) = (lab::scratch(), Rng(29));
        let old = Layout::dense("old", 12 * BLOCK + 777, &mut rng).punch(8 * BLOCK..10 * BLOCK);
        // Blocks that are new, and one of which a page is.
        let new = every(4, &old, &mut rng).data(6 * BLOCK..6 * BLOCK + 4096, &mut rng);
        let change = Change { role, images };
        old.write(&change.image("v1"));
        new.write(&change.image("v2"));
        change
    }

    fn image(&self, version: &str) -> PathBuf {
        self.images.path().join(version)
    }

    /// Makes an empty store what it is before.
    pub fn prepare(&self, store: &Store) {
        store.publish(&self.image("v1"), &["--as=v1"]);
        store.pull("", &[]).ok();
        if self.role != Role::Publish {
            store.publish(&self.image("v2"), &["--as=v2"]);
        }
    }

    /// What makes the change.
    pub fn command(&self, store: &Store) -> Command {
        let mut command = store.holesync();
        match self.role {
            Role::Publish => command.args(["publish", "--as=v2"]).arg(self.image("v2")).arg(store.image()),
            Role::Prune => command.args(["prune", "--keep=1", "--grace=0s"]).arg(store.image()),
            Role::Pull => command.arg(store.url("@v2")).arg(store.copy()),
        };
        command
    }

    /// What there is after it was cut off: whether it was made, and why it must not be so.
    pub fn is_made(&self, store: &Store) -> Result<bool, String> {
        if self.role == Role::Pull {
            let is = |version: &str| same(&store.copy(), &self.image(version));
            let left = leftovers(&store.path("to"));
            let is_sealed = left.len() == 2 && left.iter().any(|name| name.ends_with(".log"));
            return match is("v1") || is("v2") || is_sealed {
                true => Ok(is("v2")),
                false => Err(format!("neither old nor new, beside {left:?}")),
            };
        }
        let versions = self.whole(store)?;
        let has = |version: &str| versions.iter().any(|other| other == version);
        let (stays, is_made) =
            if self.role == Role::Publish { ("v1", has("v2")) } else { ("v2", !has("v1")) };
        if has(stays) { Ok(is_made) } else { Err(format!("{stays} is gone, of {versions:?}")) }
    }

    /// The versions that the store tells of, each of which is whole.
    fn whole(&self, store: &Store) -> Result<Vec<String>, String> {
        let listed = run(store.holesync().arg("versions").arg(store.image()));
        if listed.code != 0 {
            return Err(format!("what it tells of: {listed}"));
        }
        let versions = listed.stdout.lines().map(|line| line.split(' ').next().expect("a name").to_owned());
        let versions: Vec<String> = versions.collect();
        for version in &versions {
            self.arrives(store, &format!("@{version}"), version)?;
        }
        Ok(versions)
    }

    /// What the store has by this name is that version.
    fn arrives(&self, store: &Store, name: &str, version: &str) -> Result<(), String> {
        let copy = self.image("copy");
        let _ = fs::remove_file(&copy);
        let pulled = run(store.holesync().arg(store.url(name)).arg(&copy));
        let is_whole = pulled.code == 0 && same(&copy, &self.image(version));
        if is_whole { Ok(()) } else { Err(format!("{name:?} is not {version}: {pulled}")) }
    }

    /// The next run ends well, and so all is well.
    pub fn next_run(&self, store: &Store) -> Result<(), String> {
        let ends_well = |outcome: Outcome| match outcome.code {
            0 => Ok(outcome.stdout),
            _ => Err(format!("of the next run: {outcome}")),
        };
        ends_well(run(&mut self.command(store)))?;
        ends_well(run(store.holesync().arg("check").arg(store.image())))?;
        self.arrives(store, "", "v2")?;
        if !self.is_made(store)? {
            return Err("the next run did nothing".into());
        }
        let left = leftovers(&store.path("to"));
        if !left.is_empty() {
            return Err(format!("the next run leaves {left:?}"));
        }
        if self.role == Role::Prune {
            let prune = ["prune", "--json", "--keep=1", "--grace=0s", "-n"];
            let more = ends_well(run(store.holesync().args(prune).arg(store.image())))?;
            if !(more.contains("\"condemned\":0") && more.contains("\"removed\":0")) {
                return Err(format!("the next run leaves what no version needs: {more}"));
            }
        }
        Ok(())
    }
}
