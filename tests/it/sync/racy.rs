//! Changes to a source that its times do not show by themselves: stores through a mapping,
//! and what happens within a tick of the clock.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::check::assert_same;
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, holesync, run, wait_until};
use crate::common::tree::Way;

const WAYS: [Way; 4] = [Way::Local, Way::Push, Way::Pull, Way::PushShell];

fn sync(way: Way, dir: &Path, from: &Path, to: &Path) -> Outcome {
    let mut command = match way {
        Way::Local => holesync(),
        Way::PushShell => Peer::pipe(dir).shell(),
        _ => Peer::pipe(dir).holesync(),
    };
    match way {
        Way::Local => command.arg(from).arg(to),
        Way::Pull => command.arg(at(from)).arg(to),
        _ => command.arg(from).arg(at(to)),
    };
    run(command.arg("--json"))
}

/// Stores into a file through a mapping, for each line that it reads.
const STORES: &str = r#"
import mmap, sys
file = open(sys.argv[1], "r+b")
pages = mmap.mmap(file.fileno(), 0)
for number, _ in enumerate(sys.stdin):
    pages[100:101] = bytes([number])
    print("stored", flush=True)
"#;

struct Mapping {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Mapping {
    fn of(path: &Path) -> Option<Mapping> {
        let mut command = Command::new("python3");
        command.args(["-c", STORES]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut child) = command.spawn() else {
            lab::skip("no python3");
            return None;
        };
        let said = BufReader::new(child.stdout.take().expect("a pipe"));
        Some(Mapping { child, said })
    }

    fn store(&mut self) {
        self.child.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("ask for a store");
        let mut line = String::new();
        self.said.read_line(&mut line).expect("hear of it");
        assert_eq!(line, "stored\n");
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follows_a_mapping_on(fs: Fs) {
    let Some(dir) = lab::dir(fs) else { return };
    let mut rng = Rng(77);
    for way in WAYS {
        let (from, to) = ["from", "to"].map(|name| dir.path().join(format!("{name}-{way:?}"))).into();
        Layout::dense("image", 300_000, &mut rng).write(&from);
        File::open(&from).and_then(|file| file.sync_all()).expect("sync");
        let Some(mut mapping) = Mapping::of(&from) else { return };
        mapping.store();
        sync(way, dir.path(), &from, &to).ok();
        for _ in 0..2 {
            // Into the page that the run found dirty.
            mapping.store();
            let outcome = sync(way, dir.path(), &from, &to).ok();
            assert_eq!(outcome.count("files_sent"), 1, "{way:?}: {outcome}");
            assert_same(&to, &from);
        }
        assert_eq!(sync(way, dir.path(), &from, &to).ok().count("files_sent"), 0, "{way:?}: at rest");
    }
}

#[test]
fn a_store_through_a_mapping_is_seen_by_the_next_run_on_ext4() {
    follows_a_mapping_on(Fs::Ext4);
}

#[test]
fn a_store_through_a_mapping_is_seen_by_the_next_run_on_xfs() {
    follows_a_mapping_on(Fs::Xfs);
}

#[test]
fn a_store_through_a_mapping_is_seen_by_the_next_run_on_btrfs() {
    follows_a_mapping_on(Fs::Btrfs);
}

/// A run whose source is written all the time, always the same: whatever is read is right, which no time
/// tells. Also the longest time in which nothing was written.
fn sync_while_written(way: Way, dir: &Path, from: &Path, to: &Path) -> (Outcome, Duration) {
    let (begun, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let write = || {
        let file = File::options().write(true).open(from).expect("open");
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        while !over.load(Ordering::Relaxed) {
            file.write_all_at(&[0; 4096], 0).expect("write");
            longest = longest.max(last.elapsed());
            last = Instant::now();
            begun.store(true, Ordering::Relaxed);
        }
        longest.max(last.elapsed())
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(write);
        let has_begun = wait_until(Duration::from_secs(60), || begun.load(Ordering::Relaxed));
        let outcome = has_begun.then(|| sync(way, dir, from, to));
        over.store(true, Ordering::Relaxed);
        let longest = writer.join().expect("a writer");
        (outcome.expect("it writes"), longest)
    })
}

#[test]
fn what_may_have_changed_unseen_gets_no_time() {
    if !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    // Inodes of 128 bytes have no room for less than seconds.
    let mounted = lab::Mounted::new(16, &["mkfs.ext4", "-q", "-I", "128"], &["-o", "loop"]);
    let from = mounted.path().join("image");
    fs::write(&from, [0; 4096]).expect("write");
    for way in WAYS {
        let to = dir.path().join(format!("to-{way:?}"));
        // A writer that did not get its turn for half a second may have left a file at rest.
        let warned = (0..20).any(|_| {
            let _ = fs::remove_file(&to);
            let (outcome, longest) = sync_while_written(way, dir.path(), &from, &to);
            let outcome = outcome.ok();
            let warned = outcome.stdout.contains("image may have been changed unseen");
            assert!(warned || longest > Duration::from_millis(400), "{way:?}: {outcome}");
            warned
        });
        assert!(warned, "{way:?}: it was never written all the time");
        assert_eq!(fs::metadata(&to).expect("stat").mtime(), 0, "{way:?}");
        assert_same(&to, &from);
        let outcome = sync(way, dir.path(), &from, &to).ok();
        assert!(!outcome.stdout.contains("unseen"), "{way:?}: {outcome}");
        let mtime = |path: &Path| fs::metadata(path).expect("stat").mtime();
        assert_eq!(mtime(&to), mtime(&from), "{way:?}: at rest it keeps its time");
    }
}
