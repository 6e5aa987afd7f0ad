//! Programs that use a file besides.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::stat::{major, minor};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};

use super::process::{Running, start, wait_until};

/// Waits until a program holds a lock on a file.
pub fn await_lock(file: &Path, kind: &str) {
    let is_there = || is_locked(file, kind);
    assert!(wait_until(Duration::from_secs(60), is_there), "nobody locks {}", file.display());
}

/// Waits until no program does: an agent may outlive its run for a moment, and so does a file that was closed
/// here in a process that another test has just forked.
pub fn await_no_lock(file: &Path, kind: &str) {
    let is_free = || !is_locked(file, kind);
    assert!(wait_until(Duration::from_secs(60), is_free), "somebody locks {}", file.display());
}

fn is_locked(file: &Path, kind: &str) -> bool {
    let look = fs::metadata(file).expect("look");
    let mut inode = format!(":{} ", look.ino());
    // btrfs shows other devices than the kernel has.
    if statfs(file).expect("look").filesystem_type() != BTRFS_SUPER_MAGIC {
        inode = format!(" {:02x}:{:02x}{inode}", major(look.dev()), minor(look.dev()));
    }
    let locks = fs::read_to_string("/proc/locks").expect("read /proc/locks");
    locks.lines().any(|line| line.contains(&inode) && line.contains(kind))
}

/// QEMU with an image, which it may write unless `flags` say otherwise.
pub fn qemu(image: &Path, flags: &[&str]) -> Running {
    let running = start(
        Command::new("qemu-io").args(["-f", "raw"]).args(flags).args(["-c", "sleep 100000"]).arg(image),
    );
    await_lock(image, "OFDLCK");
    running
}
