//! Entries that become something of another kind between two runs: held against what rsync
//! leaves of the same trees.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use nix::sys::stat::Mode;

use crate::common::lab;
use crate::common::layout::Rng;
use crate::common::process::run;
use crate::common::tree::{Way, assert_trees, mkdir, rsync, set_mtime, slash, small};

/// What may have a name.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Nothing,
    File,
    Empty,
    Directory,
    Symlink,
    Fifo,
    Socket,
    Device,
}

const ALL: [Kind; 8] = [
    Kind::Nothing,
    Kind::File,
    Kind::Empty,
    Kind::Directory,
    Kind::Symlink,
    Kind::Fifo,
    Kind::Socket,
    Kind::Device,
];

const NAMES: [&str; 5] = ["a", "-b", "c d", "e\nf", "g"];

/// Fills a directory with entries of these kinds.
fn grow(dir: &Path, kinds: &[Kind], depth: usize, rng: &mut Rng) {
    for name in NAMES {
        let path = dir.join(name);
        match kinds[rng.below(kinds.len())] {
            Kind::Nothing => {}
            Kind::File => {
                small(path, &"x".repeat(rng.below(3)));
            }
            Kind::Directory if depth > 0 => grow(&mkdir(path), kinds, depth - 1, rng),
            Kind::Empty | Kind::Directory => {
                mkdir(path);
            }
            Kind::Symlink => symlink(["nowhere", ".", "a", "c d"][rng.below(4)], path).expect("symlink"),
            Kind::Fifo => nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("mkfifo"),
            kind => node(kind, &path),
        }
    }
}

fn node(kind: Kind, path: &Path) {
    use nix::sys::stat::{SFlag, makedev, mknod};
    let (kind, device) =
        if kind == Kind::Socket { (SFlag::S_IFSOCK, 0) } else { (SFlag::S_IFBLK, makedev(0, 77)) };
    mknod(path, kind, Mode::S_IRWXU, device).expect("mknod");
}

/// Gives everything a time that is not now.
fn age(dir: &Path, rng: &mut Rng) {
    for entry in walkdir::WalkDir::new(dir).contents_first(true).sort_by_file_name() {
        set_mtime(entry.expect("walk").path(), 1_000_000 + rng.below(1000) as i64, 5);
    }
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to)).ok();
}

/// One tree, over another, with these flags. `None`: this way there is none here.
fn replace(way: Way, flags: &[&str], kinds: &[Kind], seed: u64) -> Option<()> {
    let what = format!("{way:?}, {flags:?}, seed {seed}");
    let (dir, mut rng) = (lab::scratch(), Rng(seed));
    let [from, ours, theirs] = ["from", "ours", "theirs"].map(|name| dir.path().join(name));
    grow(&mkdir(from.clone()), kinds, 2, &mut rng);
    age(&from, &mut rng);
    grow(&mkdir(ours.clone()), &ALL, 2, &mut rng);
    age(&ours, &mut rng);
    copy(&ours, &theirs);
    way.run(&[flags, &["-n"]].concat(), &[&slash(&from)], &slash(&ours))?;
    assert_trees(&ours, &theirs, false, &format!("{what}, dry"));
    let outcome = way.run(flags, &[&slash(&from)], &slash(&ours))?;
    let args = [flags, &["from/", "theirs/"]].concat();
    assert_eq!(outcome.code, rsync(dir.path(), &args), "{what}: {outcome}");
    assert_trees(&ours, &theirs, false, &what);
    Some(())
}

/// So many seeds of each set of flags.
fn replace_all(way: Way, all_flags: &[&[&str]], kinds: &[Kind], most: u64) {
    let rounds = std::env::var("HOLESYNC_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let rounds: u64 = rounds.unwrap_or(most);
    for seed in 0..rounds {
        let flags = all_flags[seed as usize % all_flags.len()];
        if replace(way, flags, kinds, seed).is_none() {
            return;
        }
    }
}

/// What rsync sends without being asked for devices.
const SENT: [Kind; 5] = [Kind::Nothing, Kind::File, Kind::Empty, Kind::Directory, Kind::Symlink];
const FLAGS: [&[&str]; 3] = [&["-rlpt"], &["-rlpt", "--force"], &["-rlpt", "--delete"]];

/// With what it sends if it is asked for them.
const ALL_FLAGS: [&[&str]; 4] =
    [&["-a"], &["-a", "--force"], &["-aH", "--delete"], &["-a", "--delete-during"]];

#[test]
fn what_changed_its_kind_is_replaced_as_rsync_replaces_it() {
    if !lab::is_root() {
        return;
    }
    replace_all(Way::Local, &ALL_FLAGS, &ALL, 60);
    replace_all(Way::Push, &ALL_FLAGS, &ALL, 9);
    replace_all(Way::Pull, &ALL_FLAGS, &ALL, 9);
    replace_all(Way::Local, &FLAGS, &SENT, 20);
    replace_all(Way::Push, &FLAGS, &SENT, 9);
    replace_all(Way::Pull, &FLAGS, &SENT, 9);
    replace_all(Way::PullShell, &FLAGS[..1], &SENT, 3);
    replace_all(Way::PushShell, &FLAGS[..1], &SENT, 6);
}
