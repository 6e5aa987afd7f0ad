//! Files that somebody else writes during a run: a source that does not hold
//! still is an error, a destination that was changed is left alone.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::check::{assert_no_leftovers, assert_same, leftovers};
use crate::common::faults::{Direction, Fault, await_pause, resume};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::Peer;
use crate::common::process::{run, start, wait_until};
use crate::common::redeploy::{Redeploy, State, every};

const BLOCK: usize = 64 << 10;

#[test]
fn a_source_that_never_holds_still_is_an_error_and_the_old_image_stays() {
    let Some(target) = lab::dir(Fs::Ext4) else { return };
    let (sources, mut rng) = (lab::scratch(), Rng(41));
    let old = Layout::dense("old", 256 * BLOCK, &mut rng);
    let new = every(3, &old, &mut rng);
    let redeploy = Redeploy::new(sources.path(), target.path(), Some(&old), &new, &new);
    let over = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            let source = File::options().write(true).open(redeploy.version("new")).expect("open the source");
            let mut rng = Rng(42);
            while !over.load(Ordering::Relaxed) {
                let block = rng.next().to_le_bytes();
                source.write_all_at(&block, rng.below(250 * BLOCK) as u64).expect("touch the source");
            }
        });
        let outcome = run(Peer::pipe(sources.path()).holesync().args(redeploy.push("new")));
        over.store(true, Ordering::Relaxed);
        outcome
    });
    outcome.code(23).says(&["new", "changed while it was read", "snapshot"]);
    assert_same(&redeploy.image(), &redeploy.version("old"));
    redeploy.finish(&Peer::pipe(sources.path()), &[], "new");
}

#[test]
fn a_source_that_changes_once_is_read_again() {
    let Some(target) = lab::dir(Fs::Ext4) else { return };
    let (sources, mut rng) = (lab::scratch(), Rng(43));
    // Too long for the pipes and queues: the pause holds the hasher up, too.
    let new = Layout::dense("new", 640 * BLOCK, &mut rng);
    let redeploy = Redeploy::new(sources.path(), target.path(), None, &new, &new);
    let peer = Fault::Pause(3 * BLOCK as u64).peer(sources.path(), Direction::ToAgent);
    let running = start(peer.holesync().args(redeploy.push("new")));
    await_pause(sources.path());
    let source = File::options().write(true).open(redeploy.version("new")).expect("open the source");
    source.write_all_at(b"changed", 10).expect("change the source");
    resume(sources.path());
    running.finish().ok();
    assert_eq!(redeploy.state(), State::New);
    assert_no_leftovers(target.path());
}

/// What somebody does to an image while it is updated.
type Meddle = fn(&Path);

const MEDDLERS: [(&str, Meddle); 3] = [
    ("written", |image| {
        let file = File::options().write(true).open(image).expect("open the image");
        file.write_all_at(b"mine", 5).expect("write into the image");
    }),
    ("replaced", |image| {
        let other = image.with_file_name("other");
        std::fs::write(&other, "another image").expect("write another image");
        std::fs::rename(other, image).expect("replace the image");
    }),
    ("removed", |image| std::fs::remove_file(image).expect("remove the image")),
];

#[test]
fn a_destination_that_somebody_changed_is_left_alone() {
    for (fs, flags) in
        [(Fs::Ext4, &[][..]), (Fs::Xfs, &[]), (Fs::Ext4, &["--commit=atomic"]), (Fs::Ext4, &["-W"])]
    {
        for (what, meddle) in MEDDLERS {
            eprintln!("{what} on {fs:?} with {flags:?}");
            let Some(target) = lab::dir(fs) else { return };
            change_destination(target.path(), flags, meddle);
        }
    }
}

fn change_destination(target: &Path, flags: &[&str], meddle: Meddle) {
    let (sources, mut rng) = (lab::scratch(), Rng(47));
    let old = Layout::dense("old", 16 * BLOCK, &mut rng);
    let new = every(4, &old, &mut rng);
    let redeploy = Redeploy::new(sources.path(), target, Some(&old), &new, &new);
    let peer = Fault::Pause(2 * BLOCK as u64).peer(sources.path(), Direction::ToAgent);
    let running = start(peer.holesync().args(flags).args(redeploy.push("new")));
    await_pause(sources.path());
    meddle(&redeploy.image());
    let theirs = std::fs::read(redeploy.image()).ok();
    resume(sources.path());
    running.finish().code(23).says(&["changed while it was being updated", "left alone"]);
    assert!(std::fs::read(redeploy.image()).ok() == theirs, "it was not left alone");
    redeploy.finish(&Peer::pipe(sources.path()), flags, "new");
}

#[test]
fn a_destination_that_appeared_meanwhile_is_left_alone() {
    let Some(target) = lab::dir(Fs::Ext4) else { return };
    let (sources, mut rng) = (lab::scratch(), Rng(59));
    let new = Layout::dense("new", 16 * BLOCK, &mut rng);
    let redeploy = Redeploy::new(sources.path(), target.path(), None, &new, &new);
    let peer = Fault::Pause(2 * BLOCK as u64).peer(sources.path(), Direction::ToAgent);
    let running = start(peer.holesync().args(redeploy.push("new")));
    await_pause(sources.path());
    std::fs::write(redeploy.image(), "mine").expect("write an image");
    resume(sources.path());
    running.finish().code(23).says(&["changed while it was being updated", "left alone"]);
    assert_eq!(std::fs::read(redeploy.image()).expect("read the image"), b"mine");
    redeploy.finish(&Peer::pipe(sources.path()), &[], "new");
}

#[test]
fn a_second_run_on_the_same_destination_is_refused() {
    let Some(target) = lab::dir(Fs::Ext4) else { return };
    let (sources, mut rng) = (lab::scratch(), Rng(53));
    let old = Layout::dense("old", 48 * BLOCK, &mut rng);
    let new = every(4, &old, &mut rng);
    // Into a new file, one frame of a MiB passes first, so that it is begun.
    for (old, blocks) in [(Some(&old), 2), (None, 20)] {
        let redeploy = Redeploy::new(sources.path(), target.path(), old, &new, &new);
        let (first, second) = (lab::scratch(), lab::scratch());
        let peer = Fault::Pause(blocks * BLOCK as u64).peer(first.path(), Direction::ToAgent);
        let running = start(peer.holesync().args(redeploy.push("new")));
        await_pause(first.path());
        let begun = || old.is_some() || !leftovers(target.path()).is_empty();
        assert!(wait_until(Duration::from_secs(60), begun), "never begun");
        let outcome = run(Peer::pipe(second.path()).holesync().args(redeploy.push("third")));
        outcome.code(23).says(&["another holesync run is writing it"]);
        resume(first.path());
        running.finish().ok();
        assert_eq!(redeploy.state(), State::New);
        assert_no_leftovers(target.path());
    }
}
