//! `holesync recover`, and runs that find what a crash left: a sealed log is
//! finished without the source, anything else is left alone.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use holesync::working::{Naming, Working};
use tempfile::TempDir;

use crate::common::check::{assert_no_leftovers, assert_same, leftovers};
use crate::common::faults::{Direction, Fault, can_trace, killed_at};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::Peer;
use crate::common::process::{Outcome, holesync, run, run_on};
use crate::common::redeploy::{Redeploy, State, every};

const BLOCK: usize = 64 << 10;

/// A redeployment that was killed.
struct Crashed {
    sources: TempDir,
    target: TempDir,
    redeploy: Redeploy,
}

impl Crashed {
    /// Killed at the `nth` call of this name; `None`, and a counted skip, where
    /// that cannot be done.
    fn at(call: &str, nth: usize) -> Option<Crashed> {
        let target = lab::dir(Fs::Ext4).filter(|_| can_trace())?;
        let sources = lab::scratch();
        let mut rng = Rng(23);
        let old = Layout::dense("old", 24 * BLOCK, &mut rng);
        let new = every(6, &old, &mut rng).resize(25 * BLOCK + 5);
        let redeploy = Redeploy::new(sources.path(), target.path(), Some(&old), &new, &new);
        let peer = killed_at(sources.path(), call, nth);
        let outcome = run(peer.holesync().args(redeploy.push("new")));
        assert_ne!(outcome.code, 0, "{outcome}");
        Some(Crashed { sources, target, redeploy })
    }

    /// Killed in the middle of writing a sealed stage into the old file.
    fn replaying() -> Option<Crashed> {
        let crashed = Crashed::at("copy_file_range", 3)?;
        assert_eq!(crashed.redeploy.state(), State::Replaying);
        Some(crashed)
    }

    fn beside(&self, kind: &str) -> PathBuf {
        self.target.path().join(format!(".image.holesync.{kind}"))
    }

    fn run_again(&self) -> Outcome {
        self.redeploy.finish(&Peer::pipe(self.sources.path()), &[], "new")
    }
}

fn recover(path: &Path) -> Outcome {
    run(holesync().arg("recover").arg(path))
}

/// Changes one byte.
fn damage(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).expect("open what is to be damaged");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read a byte");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("damage a byte");
}

#[test]
fn a_sealed_log_is_finished_without_the_source() {
    let Some(crashed) = Crashed::replaying() else { return };
    let outcome = crashed.redeploy.recover();
    assert!(outcome.stdout.contains("finished from its log and verified"), "{outcome}");
    let (image, new) = (crashed.redeploy.image(), crashed.redeploy.version("new"));
    let time = |path: &Path| std::fs::metadata(path).expect("stat").modified().expect("a time");
    assert_eq!(time(&image), time(&new));
    let again = recover(&image).ok();
    assert!(again.stdout.contains("nothing to finish"), "{again}");
    // Equal in every respect that a run looks at.
    assert_eq!(crashed.run_again().count("files_sent"), 0);
}

#[test]
fn recovery_can_be_interrupted_and_repeated() {
    for nth in 1..5 {
        let Some(crashed) = Crashed::replaying() else { return };
        let image = crashed.redeploy.image();
        let inject = format!("inject=copy_file_range,unlinkat:signal=KILL:when={nth}");
        let mut traced = std::process::Command::new("strace");
        traced.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=copy_file_range,unlinkat", "-e", &inject]);
        let killed = run(traced.arg(env!("CARGO_BIN_EXE_holesync")).arg("recover").arg(&image));
        assert_ne!(killed.code, 0, "{killed}");
        crashed.redeploy.recover();
    }
}

#[test]
fn recover_finds_every_sealed_log_below_a_directory() {
    let Some(crashed) = Crashed::replaying() else { return };
    let above = crashed.target.path();
    let outcome = recover(above).ok();
    assert!(outcome.stdout.contains("image: finished"), "{outcome}");
    assert_same(&crashed.redeploy.image(), &crashed.redeploy.version("new"));
    assert_no_leftovers(above);
}

#[test]
fn one_that_cannot_be_recovered_does_not_keep_the_others_from_it() {
    // Found in the order of their names, so the damaged one comes first.
    let (Some(damaged), Some(whole)) = (Crashed::replaying(), Crashed::replaying()) else { return };
    damage(&damaged.beside("stage"), 18 * BLOCK as u64 + 10);
    let (above, below) = (damaged.target.path(), damaged.target.path().join("below"));
    std::fs::rename(whole.target.path(), &below).expect("move a directory");
    let outcome = recover(above).code(23).says(&["damaged"]);
    assert!(outcome.stdout.contains("below/image: finished"), "{outcome}");
    assert_same(&below.join("image"), &whole.redeploy.version("new"));
    assert_eq!(leftovers(above).len(), 2);
}

#[test]
fn the_next_run_finishes_a_sealed_log_first_and_says_so() {
    let Some(crashed) = Crashed::replaying() else { return };
    let outcome = crashed.run_again();
    assert!(outcome.stdout.contains("finished what an interrupted run"), "{outcome}");
    assert_eq!(outcome.count("sent_data_bytes"), 0);
}

#[test]
fn a_log_that_is_not_sealed_is_left_alone_and_its_data_not_sent_again() {
    // The first fdatasync is that of the stage, before the seal is written.
    let Some(crashed) = Crashed::at("fdatasync", 1) else { return };
    let before = leftovers(crashed.target.path());
    assert_eq!(before.len(), 2, "{before:?}");
    let outcome = recover(&crashed.redeploy.image()).ok();
    assert!(outcome.stdout.contains("nothing to finish"), "{outcome}");
    assert_eq!(leftovers(crashed.target.path()), before);
    assert_same(&crashed.redeploy.image(), &crashed.redeploy.version("old"));
    let outcome = crashed.run_again();
    assert_eq!(outcome.count("sent_data_bytes"), 0, "{outcome}");
}

#[test]
fn a_damaged_log_is_never_applied() {
    let Some(crashed) = Crashed::at("copy_file_range", 1) else { return };
    let (log, image) = (crashed.beside("log"), crashed.redeploy.image());
    let whole = std::fs::read(&log).expect("read the log");
    for at in (0..whole.len()).step_by(5) {
        damage(&log, at as u64);
        recover(&image).code(23).says(&["image", "log"]);
        assert_same(&image, &crashed.redeploy.version("old"));
        std::fs::write(&log, &whole).expect("mend the log");
    }
    for len in (0..whole.len()).step_by(7) {
        std::fs::write(&log, &whole[..len]).expect("cut the log");
        // Where the seal is cut off in its middle, it shows that there was one.
        let outcome = recover(&image);
        assert!(outcome.code == 0 || outcome.code == 23, "cut to {len}: {outcome}");
        assert!(
            outcome.code == 23 || outcome.stdout.contains("nothing to finish"),
            "cut to {len}: {outcome}"
        );
        assert_same(&image, &crashed.redeploy.version("old"));
    }
    crashed.run_again();
}

#[test]
fn a_damaged_stage_is_never_applied() {
    let Some(crashed) = Crashed::at("copy_file_range", 1) else { return };
    damage(&crashed.beside("stage"), 6 * BLOCK as u64 + 10);
    let image = crashed.redeploy.image();
    recover(&image).code(23).says(&["image", "damaged"]);
    assert_same(&image, &crashed.redeploy.version("old"));
    // With the source at hand, the damage is no obstacle.
    crashed.run_again();
}

#[test]
fn a_sealed_log_without_its_stage_is_damage() {
    let Some(crashed) = Crashed::replaying() else { return };
    let (image, old) = (crashed.redeploy.image(), crashed.redeploy.version("old"));
    std::fs::remove_file(crashed.beside("stage")).expect("remove the stage");
    recover(&image).code(23).says(&["image", "damaged"]);
    assert_eq!(leftovers(crashed.target.path()).len(), 1);
    let outcome = run(Peer::pipe(crashed.sources.path())
        .holesync()
        .arg("--size-only")
        .args(crashed.redeploy.push("old")));
    outcome.ok().says(&["damaged"]);
    assert_same(&image, &old);
    assert_no_leftovers(crashed.target.path());
}

#[test]
fn an_image_that_was_replaced_after_the_crash_is_left_alone() {
    let Some(crashed) = Crashed::replaying() else { return };
    let (image, old) = (crashed.redeploy.image(), crashed.redeploy.version("old"));
    // The new file is likely to get the number of the one that is gone.
    std::fs::remove_file(&image).expect("remove the image");
    std::fs::copy(&old, &image).expect("restore a backup");
    recover(&image).code(23).says(&["a file that is no longer there"]);
    assert_same(&image, &old);
    crashed.run_again();
}

#[test]
fn an_image_that_was_overwritten_after_the_crash_is_left_alone_and_can_be_redeployed() {
    let Some(crashed) = Crashed::replaying() else { return };
    let (image, third) = (crashed.redeploy.image(), crashed.target.path().join("third"));
    Layout::dense("third", 24 * BLOCK, &mut Rng(5)).write(&third);
    std::fs::copy(&third, &image).expect("overwrite the image");
    recover(&image).code(23).says(&["image"]);
    assert_same(&image, &third);
    std::fs::remove_file(&third).expect("remove");
    crashed.run_again();
}

/// The ways of a destination that compare nothing: a stream, and a shell that sends.
#[test]
fn whoever_opens_a_destination_finishes_a_sealed_log_first() {
    let Some(crashed) = Crashed::replaying() else { return };
    let image = crashed.redeploy.image();
    let broken = run_on(holesync().arg("recv").arg(&image), b"DATA\n100\nabc");
    broken.code(12).says(&["finished what an interrupted run had begun"]);
    assert_eq!(crashed.redeploy.state(), State::New);
    assert_no_leftovers(crashed.target.path());

    let Some(crashed) = Crashed::replaying() else { return };
    let cut = Fault::Cut(40_000).peer(crashed.sources.path(), Direction::FromAgent);
    let outcome = run(cut.shell().args(crashed.redeploy.pull("third")));
    assert_ne!(outcome.code, 0, "{outcome}");
    assert!(outcome.stderr.contains("finished what an interrupted run had begun"), "{outcome}");
    assert_eq!(crashed.redeploy.state(), State::New);
    assert_no_leftovers(crashed.target.path());
}

#[test]
fn a_torn_image_of_the_right_size_is_not_taken_for_equal() {
    let Some(crashed) = Crashed::replaying() else { return };
    let (image, old) = (crashed.redeploy.image(), crashed.redeploy.version("old"));
    let size = |path: &Path| std::fs::metadata(path).expect("stat").len();
    assert_eq!(size(&image), size(&old), "the length comes last");
    let peer = Peer::pipe(crashed.sources.path());
    run(peer.shell().arg("--size-only").args(crashed.redeploy.pull("old"))).ok();
    assert_same(&image, &old);
    assert_no_leftovers(crashed.target.path());
}

#[test]
fn a_sealed_log_that_is_damaged_stays_until_the_image_was_replaced() {
    let Some(crashed) = Crashed::replaying() else { return };
    let (image, dir) = (crashed.redeploy.image(), crashed.target.path());
    damage(&crashed.beside("stage"), 18 * BLOCK as u64 + 10);
    let before = [crashed.beside("log"), crashed.beside("stage")].map(|path| std::fs::read(path).unwrap());
    let unchanged = |what: &str| {
        let now = [crashed.beside("log"), crashed.beside("stage")].map(|path| std::fs::read(path).ok());
        assert!(now == before.clone().map(Some), "{what}: log or stage is not what it was");
        assert_eq!(leftovers(dir).len(), 2, "{what}");
    };
    run_on(holesync().arg("recv").arg(&image), b"DATA\n100\nabc").code(12).says(&["damaged"]);
    unchanged("a stream");
    let cut = Fault::Cut(40_000).peer(crashed.sources.path(), Direction::FromAgent);
    let outcome = run(cut.shell().args(crashed.redeploy.pull("new")));
    assert_ne!(outcome.code, 0, "{outcome}");
    unchanged("a shell");
    for flags in [&[][..], &["-W"], &["--commit=atomic"]] {
        // Killed before it has anything to put in the place of the old image.
        let peer = killed_at(crashed.sources.path(), "renameat", 1);
        let outcome = run(peer.holesync().args(flags).args(crashed.redeploy.push("third")));
        assert_ne!(outcome.code, 0, "{outcome}");
        for kind in ["temp", "clone"] {
            let _ = std::fs::remove_file(crashed.beside(kind));
        }
        unchanged(&format!("an agent with {flags:?}"));
    }
    crashed.run_again();
}

#[test]
fn a_log_of_another_version_is_an_error_that_names_it_and_stays() {
    let Some(crashed) = Crashed::replaying() else { return };
    let (image, log) = (crashed.redeploy.image(), crashed.beside("log"));
    File::options().write(true).open(&log).unwrap().write_all_at(b"holesync log 27\r", 0).unwrap();
    let files = || [&image, &log, &crashed.beside("stage")].map(|path| std::fs::read(path).ok());
    let peer = Peer::pipe(crashed.sources.path());
    let push = |flags: &[&str]| run(peer.holesync().args(flags).args(crashed.redeploy.push("new")));
    for gone in [false, true] {
        if gone {
            std::fs::remove_file(&image).unwrap();
        }
        let before = files();
        for outcome in [
            push(&[]),
            push(&["-W"]),
            push(&["--inplace"]),
            push(&["--size-only"]),
            run(peer.shell().args(crashed.redeploy.pull("new"))),
            run(holesync().args([crashed.redeploy.version("new"), image.clone()])),
            run_on(holesync().arg("recv").arg(&image), b"DATA\n3\nabcEND\n3\n"),
            recover(&image),
        ] {
            outcome.code(23).says(&[".image.holesync.log", "another version of holesync"]);
            assert!(files() == before, "something was touched");
            assert_eq!(leftovers(crashed.target.path()).len(), 2);
        }
    }
}

/// What is said of a log without an image, and of one in a directory that cannot be read,
/// keeps nothing else from being finished.
#[test]
fn recover_tells_of_every_log_and_goes_on() {
    let (Some(whole), Some(gone)) = (Crashed::replaying(), Crashed::replaying()) else { return };
    let above = gone.target.path();
    std::fs::remove_file(gone.redeploy.image()).expect("remove the image");
    std::fs::rename(whole.target.path(), above.join("whole")).expect("move a directory");
    let outcome =
        recover(above).code(23).says(&["image: the sealed log that lies beside it belongs to a file"]);
    assert!(outcome.stdout.contains("whole/image: finished"), "{outcome}");
    assert_same(&above.join("whole/image"), &whole.redeploy.version("new"));
}

#[test]
fn the_log_of_a_name_that_was_cut_is_found_below_a_directory() {
    let Some(crashed) = Crashed::replaying() else { return };
    let above = crashed.target.path();
    let long = "n".repeat(250);
    for (kind, working) in [("log", Working::Log), ("stage", Working::Stage)] {
        let name = working.name_for(OsStr::new(&long), Naming::Common);
        std::fs::rename(crashed.beside(kind), above.join(name)).expect("rename");
    }
    std::fs::rename(crashed.redeploy.image(), above.join(&long)).expect("rename");
    let outcome = recover(above).ok();
    assert!(outcome.stdout.contains("finished from its log"), "{outcome}");
    assert_same(&above.join(&long), &crashed.redeploy.version("new"));
    assert_no_leftovers(above);
}
