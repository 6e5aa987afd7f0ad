//! What is hashed while the connection is still being made.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::check::assert_same;
use crate::common::faults::can_trace;
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, run, start, wait_until};

const MIB: usize = 1 << 20;
const BLOCK: usize = 64 << 10;
const PAGE: usize = 4 << 10;
/// Of the image.
const SIZE: usize = 40 * MIB;

/// An image, an older one at the other end, which differs in a page near the end, and a
/// connection that takes a second. `meanwhile` happens before that is made, in the
/// directory of both; then a file `met` is there.
struct Slow {
    dir: tempfile::TempDir,
    command: Command,
}

impl Slow {
    fn new(meanwhile: &str) -> Slow {
        let dir = lab::scratch();
        let mut rng = Rng(77);
        let image = Layout::dense("image", SIZE, &mut rng);
        // What another test forks meanwhile holds none of them open that another process made.
        let make = |name: &str, image: &Layout| {
            let made = dir.path().join("made");
            image.write(&made);
            run(Command::new("cp").arg(&made).arg(dir.path().join(name))).ok();
            fs::remove_file(made).expect("remove");
        };
        make("old", &image);
        let page = SIZE - MIB + PAGE;
        make("source", &image.data(page..page + PAGE, &mut rng));
        let script = format!("cd {}; sleep 1; {meanwhile}\ntouch met; agent", dir.path().display());
        let mut command = Peer::script(dir.path(), &script).holesync();
        command.arg("--json").arg(dir.path().join("source")).arg(at(dir.path().join("old")));
        Slow { dir, command }
    }

    /// The other way: the older one is here, in a directory `here`.
    fn pull(meanwhile: &str) -> Slow {
        let Slow { dir, .. } = Slow::new("");
        let here = dir.path().join("here");
        fs::create_dir(&here).expect("mkdir");
        fs::rename(dir.path().join("old"), here.join("source")).expect("rename");
        std::os::unix::fs::symlink("here/source", dir.path().join("old")).expect("symlink");
        let script = format!("cd {}; sleep 1; {meanwhile}\ntouch met; agent", dir.path().display());
        let mut command = Peer::script(dir.path(), &script).holesync();
        command.arg("--json").arg(at(dir.path().join("source"))).arg(&here);
        Slow { dir, command }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same run, in which something happens to some system calls on the source by the
    /// thread that merges, which is the first one: it reads again what was hashed by
    /// others, or has it sent unread.
    fn traced(&self, calls: &str, what: &str) -> Command {
        self.strace("source", &["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{what}")])
    }

    /// The same run, whose system calls on a file are logged in `trace`.
    fn strace(&self, file: &str, arguments: &[&str]) -> Command {
        let mut traced = Command::new("strace");
        traced.arg("-qq").args(arguments).arg("-o").arg(self.at("trace")).arg("-P").arg(self.at(file));
        traced.arg(self.command.get_program()).args(self.command.get_args());
        traced.envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        traced
    }

    #[track_caller]
    fn run(mut self) -> Outcome {
        let outcome = run(&mut self.command).ok();
        assert_same(&self.at("source"), &self.at("old"));
        outcome
    }
}

#[test]
fn it_is_not_hashed_again() {
    let outcome = Slow::new("").run();
    assert_eq!(outcome.count("hashed_bytes"), 2 * SIZE as u64, "{outcome}");
    assert!((1..=BLOCK as u64).contains(&outcome.count("sent_data_bytes")), "{outcome}");
}

#[test]
fn it_is_hashed_again_if_it_changes_meanwhile() {
    let changes = [
        "printf changed | dd of=source conv=notrunc bs=1 seek=5000000 2>/dev/null",
        // Another one takes its place.
        "cp source other; printf new | dd of=other conv=notrunc bs=1 seek=9000000 2>/dev/null; mv other source",
    ];
    for change in changes {
        let outcome = Slow::new(change).run();
        assert!((1..=2 * BLOCK as u64).contains(&outcome.count("sent_data_bytes")), "{outcome}");
    }
}

#[test]
fn it_is_as_good_for_a_first_copy() {
    let outcome = Slow::new("rm old").run();
    assert_eq!(outcome.count("sent_data_bytes"), SIZE as u64, "{outcome}");
}

#[test]
fn what_is_here_to_compare_with_is_hashed_once_and_before_the_connection_is_made() {
    if !can_trace() {
        return;
    }
    // If nothing is hashed while there is no connection, there never is one.
    let slow = Slow::pull("until grep -q ' = 65536' trace; do sleep 0.1; done");
    run(&mut slow.strace("here/source", &["-f", "-e", "trace=pread64"])).ok();
    assert_same(&slow.at("source"), &slow.at("here/source"));
    let reads = fs::read_to_string(slow.at("trace")).expect("read").matches(" = 65536").count();
    // Blocks that differ are read again.
    assert!(reads <= SIZE / BLOCK + 4, "{reads} reads");
}

#[test]
fn a_pull_is_right_however_it_is_gone_about() {
    for option in
        ["--inplace", "--commit=atomic", "--verify", "--preallocate", "--whole-file", "--no-hole-map"]
    {
        let mut slow = Slow::pull("");
        run(slow.command.arg(option)).ok();
        assert_same(&slow.at("source"), &slow.at("here/source"));
    }
    let mut slow = Slow::pull("");
    let before = fs::read(slow.at("old")).expect("read");
    let outcome = run(slow.command.arg("--dry-run")).ok();
    assert!((1..=BLOCK as u64).contains(&outcome.count("sent_data_bytes")), "{outcome}");
    assert!(fs::read(slow.at("old")).expect("read") == before, "a dry run wrote");
}

#[test]
fn what_is_here_is_hashed_again_if_it_changes_meanwhile() {
    let changes = [
        "printf changed | dd of=old conv=notrunc bs=1 seek=5000000 2>/dev/null",
        "cp old other; printf new | dd of=other conv=notrunc bs=1 seek=9000000 2>/dev/null; mv other here/source",
        "truncate -s 30000000 here/source",
        "rm here/source",
        "cp old here/.source.holesync.temp; truncate -s 10000000 here/.source.holesync.temp",
    ];
    for change in changes {
        let mut slow = Slow::pull(change);
        run(&mut slow.command).ok();
        assert_same(&slow.at("source"), &slow.at("here/source"));
    }
}

#[test]
fn a_block_that_cannot_be_read_again_fails_the_file() {
    if !can_trace() {
        return;
    }
    let slow = Slow::new("");
    let before = fs::read(slow.at("old")).expect("read");
    let outcome = run(&mut slow.traced("pread64,sendfile", "error=EIO"));
    let outcome = outcome.code(11);
    for part in ["cannot read", "source", "Input/output error"] {
        assert!(outcome.stdout.contains(part), "no {part} in {outcome}");
    }
    assert!(fs::read(slow.at("old")).expect("read") == before, "the old file was touched");
}

#[test]
fn a_first_copy_is_sent_unread() {
    if !can_trace() {
        return;
    }
    let slow = Slow::new("rm old");
    run(&mut slow.traced("pread64,sendfile", "delay_enter=1")).ok();
    assert_same(&slow.at("source"), &slow.at("old"));
    let calls = fs::read_to_string(slow.at("trace")).expect("read");
    // All but the few frames with which compressing is tried.
    assert!(calls.matches("sendfile(").count() >= SIZE / MIB * 3 / 4, "{calls}");
}

#[test]
fn a_block_that_cannot_be_sent_unread_is_read() {
    if !can_trace() {
        return;
    }
    for meanwhile in ["", "rm old"] {
        for what in ["error=EIO:when=1", "error=EINVAL", "retval=0:when=1", "error=EINTR:when=1"] {
            let slow = Slow::new(meanwhile);
            run(&mut slow.traced("sendfile", what)).ok();
            assert_same(&slow.at("source"), &slow.at("old"));
            let calls = fs::read_to_string(slow.at("trace")).expect("read");
            assert!(calls.contains("(INJECTED)"), "{calls}");
        }
    }
}

#[test]
fn a_first_copy_that_cannot_be_read_leaves_nothing() {
    if !can_trace() {
        return;
    }
    let slow = Slow::new("rm old");
    let outcome = run(&mut slow.traced("pread64,sendfile", "error=EIO:when=20+")).code(11);
    assert!(outcome.stdout.contains("Input/output error"), "{outcome}");
    assert!(!slow.at("old").exists(), "half a copy is there");
}

/// Waits for the connection, and then until all has been hashed.
fn await_hashes(dir: &Path) {
    assert!(wait_until(Duration::from_secs(60), || dir.join("met").exists()), "no connection");
    std::thread::sleep(Duration::from_secs(1));
}

#[test]
fn a_block_that_changes_before_it_is_read_again_is_not_taken_for_what_was_hashed() {
    if !can_trace() {
        return;
    }
    let slow = Slow::new("");
    let running = start(&mut slow.traced("pread64,sendfile", "delay_enter=4000000"));
    await_hashes(slow.dir.path());
    let source = fs::File::options().write(true).open(slow.at("source")).expect("open");
    source.write_all_at(b"late", (SIZE - MIB + PAGE) as u64).expect("write");
    let outcome = running.finish();
    assert_eq!(outcome.code, 0, "{outcome}");
    assert_same(&slow.at("source"), &slow.at("old"));
    // Compared once more, not sent as a whole.
    assert!(outcome.count("sent_data_bytes") <= 4 * BLOCK as u64, "{outcome}");
}
