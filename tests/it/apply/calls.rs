//! Which system calls a redeployment makes on its destination, one record a way of
//! committing, held against the files in `tests/it/apply/golden`: so that a change in calls shows
//! in a diff. Reads, seeks and hints are left out; they come from several threads.
//!
//! `HOLESYNC_TEST_ACCEPT=1` writes what was found to the files.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::check::assert_begins_with;
use crate::common::faults::can_trace;
use crate::common::lab::{self, Fs, Loop};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at, shell_word};
use crate::common::process::{run, run_on};
use crate::common::redeploy::{Redeploy, every};

const BLOCK: usize = 64 << 10;
const ACCEPT: &str = "HOLESYNC_TEST_ACCEPT";

const CALLS: &str = "openat2,newfstatat,statx,flock,ioctl,fallocate,ftruncate,pwrite64,write,\
    copy_file_range,flistxattr,fgetxattr,fsetxattr,fremovexattr,fchmod,?fchmodat2,fchownat,utimensat,\
    fsync,fdatasync,renameat,renameat2,unlinkat";

/// An agent whose calls are recorded in `log`; `inject`: what strace does to some.
fn traced(dir: &Path, log: &Path, inject: &str) -> Peer {
    let log = log.to_str().expect("a plain path");
    let strace = format!("strace -f -qq -y -s 64 -o '{log}' -e 'trace={CALLS}' {inject}");
    Peer::script(dir, &format!("RAYON_NUM_THREADS=1 exec {strace} $command"))
}

/// Calls on one destination.
struct Record {
    dir: PathBuf,
    name: String,
}

impl Record {
    fn of(image: &Path) -> Record {
        let name = image.file_name().expect("a name").to_str().expect("a plain name").to_owned();
        Record { dir: image.parent().expect("a directory").to_owned(), name }
    }

    /// What a path is to the destination, if anything.
    fn role(&self, path: &str) -> Option<&'static str> {
        let path = self.dir.join(path.trim_end_matches("(deleted)").trim_end());
        if path == self.dir {
            return Some("dir");
        }
        let name = path.strip_prefix(&self.dir).ok()?.to_str()?;
        let working = |kind: &str| name == format!(".{}.holesync.{kind}", self.name);
        let kinds = ["temp", "clone", "stage", "log"];
        match name {
            _ if name == self.name => Some("image"),
            _ if name.starts_with('#') => Some("probe"),
            _ => kinds.into_iter().find(|kind| working(kind)),
        }
    }

    /// One line of strace in words: the call, what it is about, flags, and an error.
    fn line(&self, call: &str) -> Option<String> {
        let (verb, rest) = call.split_once('(')?;
        let (arguments, result) = rest.rsplit_once(" = ")?;
        let is_data = ["write", "pwrite64"].contains(&verb);
        let arguments = if is_data { arguments.split_once(',')?.0 } else { arguments };
        let mut roles = Vec::new();
        let mut words = Vec::new();
        for part in arguments.split([',', '{', '}', '(', ')', '=']) {
            let part = part.trim();
            let path = part.split_once('<').map(|(_, path)| path.trim_end_matches('>'));
            match path.or(part.strip_prefix('"').map(|name| name.trim_end_matches('"'))) {
                Some("") => {}
                Some(path) => roles.extend(self.role(path)),
                None if part.starts_with("st_") || part.starts_with("stx_") => {}
                None => words.extend(flags(part)),
            }
        }
        // A name in the directory is about that name.
        if roles.len() > 1 {
            roles.retain(|role| *role != "dir");
        }
        if roles.is_empty() || roles == ["dir"] && verb != "fsync" {
            return None;
        }
        let words = words.join(" ");
        let error = result.strip_prefix("-1 ").and_then(|error| error.split(' ').next());
        let error = error.map(|error| format!("= {error}")).unwrap_or_default();
        let line = [verb, &roles.join(" "), &words, &error];
        Some(line.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" "))
    }

    /// All calls of a log of strace; calls alike in a row are one line.
    fn lines(&self, log: &str) -> String {
        let mut rows: Vec<(String, usize)> = Vec::new();
        for line in whole_calls(log).iter().filter_map(|call| self.line(call)) {
            match rows.last_mut() {
                Some((last, count)) if *last == line => *count += 1,
                _ => rows.push((line, 1)),
            }
        }
        let show =
            |(line, count)| if count == 1 { format!("{line}\n") } else { format!("{line} x{count}\n") };
        rows.into_iter().map(show).collect()
    }
}

/// Flags that say what a call does, without those of every call.
fn flags(word: &str) -> Option<String> {
    const SHOWN: [&str; 6] = ["O_", "FALLOC_FL_", "LOCK_", "FICLONE", "FS_IOC_", "BLK"];
    const HIDDEN: [&str; 3] = ["O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"];
    let shown = word.split(['|', ' ']).filter(|flag| SHOWN.iter().any(|start| flag.starts_with(start)));
    let shown: Vec<_> = shown.filter(|flag| !HIDDEN.contains(flag)).collect();
    (!shown.is_empty()).then(|| shown.join("|"))
}

/// The lines of a log without process numbers, calls that were interrupted put together.
fn whole_calls(log: &str) -> Vec<String> {
    let mut begun = std::collections::HashMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let Some((pid, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if let Some(start) = call.strip_suffix("<unfinished ...>") {
            begun.insert(pid, start.trim_end().to_owned());
        } else if call.starts_with("<... ") {
            let start = begun.remove(pid).unwrap_or_default();
            calls.push(format!("{start}{}", call.split_once("resumed>").map_or("", |(_, end)| end)));
        } else {
            calls.push(call.to_owned());
        }
    }
    calls
}

/// Holds the calls of a way against its record.
#[track_caller]
fn compare(way: &str, found: &str) {
    let golden =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/apply/golden").join(format!("{way}.calls"));
    if std::env::var_os(ACCEPT).is_some() {
        std::fs::write(&golden, found).expect("write the record");
        return;
    }
    let diff = run_on(Command::new("diff").arg("-u").arg(&golden).arg("-"), found.as_bytes());
    assert!(
        diff.code == 0,
        "other calls than recorded; {ACCEPT}=1 accepts them\n{}{}",
        diff.stdout,
        diff.stderr
    );
}

/// A redeployment, and what it did; `changes`: every how many blocks one differs.
fn redeploy(way: &str, fs: Fs, flags: &[&str], changes: Option<usize>) {
    redeploy_with(way, fs, flags, changes, "");
}

fn redeploy_with(way: &str, fs: Fs, flags: &[&str], changes: Option<usize>, inject: &str) {
    let (Some(target), true) = (lab::dir(fs), can_trace()) else { return };
    let (sources, mut rng) = (lab::scratch(), Rng(29));
    let old = Layout::dense("old", 20 * BLOCK + 777, &mut rng).punch(8 * BLOCK..10 * BLOCK);
    let new = every(changes.unwrap_or(4), &old, &mut rng).punch(14 * BLOCK..15 * BLOCK);
    let redeploy = Redeploy::new(sources.path(), target.path(), changes.map(|_| &old), &new, &new);
    let log = sources.path().join("calls");
    // What is asked and what is packed follows the clock.
    let flags = &[flags, &["--leaf-size=64K", "--compress=none"]].concat();
    let inject = inject.replace("IMAGE", &shell_word(&redeploy.image()));
    redeploy.finish(&traced(sources.path(), &log, &inject), flags, "new");
    compare(way, &Record::of(&redeploy.image()).lines(&std::fs::read_to_string(log).expect("read the log")));
}

#[test]
fn a_new_image() {
    redeploy("fresh", Fs::Ext4, &[], None);
}

#[test]
fn a_clone() {
    redeploy("clone", Fs::Xfs, &[], Some(4));
}

#[test]
fn a_copy() {
    redeploy("copy", Fs::Ext4, &["--commit=atomic"], Some(4));
}

#[test]
fn a_sealed_stage() {
    redeploy("sealed", Fs::Ext4, &[], Some(4));
}

#[test]
fn a_completed_stage() {
    redeploy("completed", Fs::Ext4, &[], Some(1));
}

/// What a file system cannot is found before data comes: a copy is patched from the start.
#[test]
fn a_copy_where_no_room_can_be_reserved() {
    redeploy_with("no-reserve", Fs::Ext4, &[], Some(4), "-e inject=fallocate:error=EOPNOTSUPP");
}

/// A single file may lack what its file system has, which shows at the end. Only calls on
/// that file are recorded here.
#[test]
fn a_stage_of_a_file_in_which_no_room_can_be_reserved() {
    let inject = "-P IMAGE -e inject=fallocate:error=EOPNOTSUPP";
    redeploy_with("file-without-reserve", Fs::Ext4, &[], Some(4), inject);
}

#[test]
fn in_place() {
    redeploy("in-place", Fs::Ext4, &["--inplace"], Some(4));
}

#[test]
fn an_image_that_is_equal() {
    let (Some(target), true) = (lab::dir(Fs::Ext4), can_trace()) else { return };
    let sources = lab::scratch();
    let new = Layout::dense("new", 3 * BLOCK, &mut Rng(31));
    let redeploy = Redeploy::new(sources.path(), target.path(), None, &new, &new);
    redeploy.finish(&Peer::pipe(sources.path()), &[], "new");
    let log = sources.path().join("calls");
    redeploy.finish(&traced(sources.path(), &log, ""), &[], "new");
    compare(
        "equal",
        &Record::of(&redeploy.image()).lines(&std::fs::read_to_string(log).expect("read the log")),
    );
}

#[test]
fn a_device() {
    if !lab::is_root() || !can_trace() {
        return;
    }
    let dir = lab::scratch();
    let (behind, new, log) = (dir.path().join("behind"), dir.path().join("new"), dir.path().join("calls"));
    let old = Layout::dense("behind", 20 * BLOCK, &mut Rng(33));
    old.write(&behind);
    every(4, &old, &mut Rng(34)).punch(14 * BLOCK..15 * BLOCK).write(&new);
    let device = Loop::over(&behind);
    run(traced(dir.path(), &log, "").holesync().arg(&new).arg(at(&device.0))).ok();
    assert_begins_with(&device.0, &new);
    compare("device", &Record::of(&device.0).lines(&std::fs::read_to_string(log).expect("read the log")));
}
