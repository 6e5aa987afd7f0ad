//! Times on file systems that round them.

use std::path::Path;

use nix::sys::time::TimeSpec;

use crate::common::check::assert_same;
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, holesync, run};

const MIB: usize = 1 << 20;

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = TimeSpec::new(seconds, nanoseconds);
    let follow = nix::sys::stat::UtimensatFlags::FollowSymlink;
    nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, follow).expect("set the time");
}

/// NTFS by way of FUSE, which keeps times in units of 100 ns. `None`: the test may not mount.
fn ntfs() -> Option<lab::Mounted> {
    lab::is_root().then(|| lab::Mounted::new(64, &["mkntfs", "-qFf"], &["-t", "ntfs-3g", "-o", "loop"]))
}

fn hashed(outcome: &Outcome) -> u64 {
    outcome.count("hashed_bytes")
}

#[test]
fn a_time_that_was_rounded_where_it_had_to_be_is_the_same() {
    let Some(ntfs) = ntfs() else { return };
    let beside = lab::scratch();
    let source = beside.path().join("source");
    Layout::dense("source", MIB, &mut Rng(31)).write(&source);
    set_time(&source, 1_700_000_001, 123_456_789);
    let peer = Peer::pipe(beside.path());
    let (near, far, shell) = (ntfs.path().join("near"), ntfs.path().join("far"), ntfs.path().join("shell"));
    let copy = |extra: &[&str]| run(holesync().arg("--json").args(extra).arg(&source).arg(&near)).ok();
    let push = || run(peer.holesync().arg("--json").arg(&source).arg(at(&far))).ok();
    let by_shell = || run(peer.shell().arg("--json").arg(&source).arg(at(&shell))).ok();
    for outcome in [copy(&[]), push(), by_shell()] {
        assert_eq!(outcome.count("files_sent"), 1, "{outcome}");
    }
    for outcome in [copy(&[]), push(), by_shell()] {
        assert_eq!((outcome.count("files_sent"), hashed(&outcome)), (0, 0), "{outcome}");
    }
    assert!(copy(&["-c"]).count("data_bytes") > 0 && copy(&["-@", "-1"]).count("matched_bytes") > 0);
    set_time(&source, 1_700_000_001, 123_456_889);
    assert!(copy(&["-n"]).count("matched_bytes") > 0, "100 ns are more than nothing");
    [near, far, shell].iter().for_each(|path| assert_same(path, &source));
}

#[test]
fn a_rounded_time_is_another_time_where_nothing_rounds() {
    let dir = lab::scratch();
    let [source, image] = ["source", "image"].map(|name| dir.path().join(name));
    Layout::dense("source", MIB, &mut Rng(32)).write(&source);
    set_time(&source, 1_700_000_001, 123_456_789);
    let peer = Peer::pipe(dir.path());
    run(holesync().arg(&source).arg(&image)).ok();
    for (nanoseconds, flags, is_read) in [
        (123_456_700, &[][..], true),
        (0, &[], true),
        (0, &["--modify-window=0"], false),
        (0, &["--modify-window=-1"], true),
        (123_456_789, &[], false),
    ] {
        for push in [false, true] {
            set_time(&image, 1_700_000_001, nanoseconds);
            let mut command = if push { peer.holesync() } else { holesync() };
            let destination = if push { at(&image) } else { image.clone().into() };
            let outcome = run(command.args(flags).arg("--json").arg(&source).arg(destination)).ok();
            let read = outcome.count("hashed_bytes") + outcome.count("matched_bytes");
            assert_eq!(read > 0, is_read, "{nanoseconds} {flags:?} {outcome}");
        }
    }
    set_time(&image, 1_700_000_000, 0);
    let outcome = run(holesync().args(["-@1", "--json"]).arg(&source).arg(&image)).ok();
    assert_eq!(outcome.count("matched_bytes"), 0, "{outcome}");
}
