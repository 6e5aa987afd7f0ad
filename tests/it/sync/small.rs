//! Many small files: what they cost the receiver, and what becomes of them when storage fails.

use std::fs;
use std::path::Path;

use crate::common::check::assert_no_leftovers;
use crate::common::faults::can_trace;
use crate::common::lab::{self, Fs};
use crate::common::peer::Peer;
use crate::common::process::{Outcome, holesync, run};

const DIRS: usize = 4;
const FILES: usize = 150;

/// Four directories of 150 files of 1 to 7 KiB.
fn make(dir: &Path) {
    for number in 0..DIRS * FILES {
        let sub = dir.join(format!("from/{}", number % DIRS));
        fs::create_dir_all(&sub).expect("make a directory");
        let bytes = vec![1 + (number % 250) as u8; 1024 + 10 * number];
        fs::write(sub.join(number.to_string()), bytes).expect("write");
    }
}

/// Pushes them to an agent under strace, and returns what that says.
fn push(dir: &Path, to: &Path, strace: &str, flags: &[&str]) -> (Outcome, String) {
    let log = dir.join("log");
    let peer = Peer::script(dir, &format!("exec strace -f -o '{}' {strace} $command", log.display()));
    let from = format!("{}/from/", dir.display());
    let outcome = run(peer.holesync().args(flags).arg(from).arg(format!("peer:{}", to.display())));
    (outcome, fs::read_to_string(log).expect("read the log"))
}

fn assert_same(dir: &Path, to: &Path) {
    let same = std::process::Command::new("diff").arg("-r").arg(dir.join("from")).arg(to).output();
    assert!(same.expect("run diff").status.success(), "the trees differ");
    assert_no_leftovers(to);
}

#[test]
fn a_new_one_costs_the_receiver_eight_calls() {
    let (Some(place), true) = (lab::dir(Fs::Ext4), can_trace()) else { return };
    let dir = lab::scratch();
    make(dir.path());
    let to = place.path().join("to");
    let (outcome, log) = push(dir.path(), &to, "-c", &["-a", "--no-fsync"]);
    outcome.ok();
    assert_same(dir.path(), &to);
    // Threads that wait, and what travels, depend on how things fall; fcntl comes with debug builds,
    // where the standard library looks whether what it closes is open.
    let others = [
        "futex",
        "fcntl",
        "clock_nanosleep",
        "poll",
        "read",
        "write",
        "sched_yield",
        "madvise",
        "munmap",
        "mmap",
        "mprotect",
    ];
    let rows = log.lines().filter_map(|row| {
        let words: Vec<&str> = row.split_whitespace().collect();
        let count = words.get(3)?.parse::<usize>().ok()?;
        Some((count, *words.last()?))
    });
    let rows: Vec<_> = rows.filter(|(_, name)| *name != "total" && !others.contains(name)).collect();
    let calls: usize = rows.iter().map(|(count, _)| count).sum();
    let files = DIRS * FILES;
    assert!(calls >= 6 * files, "{calls} calls cannot be all: {log}");
    // What a run, and a directory, cost comes on top.
    assert!(calls <= 8 * files + 400, "{calls} calls for {files} files: {log}");
}

#[test]
fn they_get_their_names_on_storage_and_directories_are_synced_by_the_group() {
    for place in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        let (Some(place), true) = (lab::dir(place), can_trace()) else { return };
        let dir = lab::scratch();
        make(dir.path());
        let to = place.path().join("to");
        let traced = "-y -e trace=fsync,fdatasync,syncfs,renameat2";
        let (outcome, log) = push(dir.path(), &to, traced, &["-a"]);
        outcome.ok();
        assert_same(dir.path(), &to);
        let lines: Vec<&str> = log.lines().collect();
        let at = |call: &str| lines.iter().position(|line| line.contains(call));
        let (synced, renamed) = (at("sync"), at("renameat2"));
        assert!(synced.is_some() && synced < renamed, "renamed before anything was on storage: {log}");
        // Each file by itself would be one a file; how many groups there are follows the clock.
        let directories = (0..DIRS).map(|number| format!("/to/{number}>"));
        let is_directory =
            |line: &&&str| line.contains("fsync(") && directories.clone().any(|name| line.contains(&name));
        let synced = lines.iter().filter(is_directory).count();
        assert!((DIRS..DIRS * FILES / 2).contains(&synced), "{synced} syncs of directories: {log}");
    }
}

/// The sync of a whole file system that fails is not believed, nor is it an error of all files;
/// and what it told of may be lost of a later group, too, for which it is told of no more.
#[test]
fn a_sync_of_everything_that_fails_is_none() {
    let (Some(place), true) = (lab::dir(Fs::Ext4), can_trace()) else { return };
    let dir = lab::scratch();
    make(dir.path());
    let to = place.path().join("to");
    let inject = "-e trace=fsync,syncfs -e inject=syncfs:error=EIO:when=1";
    let (outcome, log) = push(dir.path(), &to, inject, &["-a"]);
    outcome.ok();
    assert_same(dir.path(), &to);
    let synced = log.lines().filter(|line| line.contains("fsync(")).count();
    assert!(synced >= DIRS * FILES, "{synced} syncs: {log}");
    let whole = log.matches("syncfs(").count();
    assert!(whole <= 1, "{whole} syncs of the file system: {log}");
}

/// A file whose own sync fails is the only one that is lost. On tmpfs none is synced with the others.
#[test]
fn a_file_that_does_not_get_to_storage_fails_alone() {
    let (Some(place), true) = (lab::dir(Fs::Tmpfs), can_trace()) else { return };
    let dir = lab::scratch();
    make(dir.path());
    let to = place.path().join("to");
    let temp = to.join("2/.302.holesync.temp");
    let inject = format!("-P {} -e trace=fsync -e inject=fsync:error=EIO", temp.display());
    let (outcome, _) = push(dir.path(), &to, &inject, &["-a"]);
    let failed = outcome.code(11).stderr.matches("cannot sync").count();
    let there = walkdir::WalkDir::new(&to).into_iter().flatten();
    let there = there.filter(|entry| entry.file_type().is_file());
    let (left, whole): (Vec<_>, Vec<_>) =
        there.partition(|entry| entry.file_name().to_string_lossy().contains(".holesync."));
    assert_eq!((whole.len(), failed, left.len()), (DIRS * FILES - 1, 1, 1));
    run(holesync().args(["-a"]).arg(format!("{}/from/", dir.path().display())).arg(&to)).ok();
    assert_same(dir.path(), &to);
}
