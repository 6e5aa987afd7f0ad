//! `--bwlimit`: what travels takes its time, whichever end writes it.

use std::fs;
use std::time::{Duration, Instant};

use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::tree::Way;

#[test]
fn a_rate_holds_in_each_direction_and_changes_nothing_else() {
    for way in [Way::Local, Way::Push, Way::Pull, Way::PushShell] {
        let dir = lab::scratch();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        Layout::dense("from", 1 << 20, &mut Rng(7)).write(&from);
        let compress = if way == Way::PushShell { "--compress=auto" } else { "--compress=none" };
        let timed = |flags: &[&str]| {
            let start = Instant::now();
            let outcome = way.run(flags, &[from.as_os_str()], to.as_os_str())?.ok();
            Some((outcome, start.elapsed()))
        };
        // In a local copy a basis keeps it from being cloned.
        fs::write(&to, vec![1; 1 << 20]).expect("write");
        let Some((_, slow)) = timed(&["--bwlimit=500", "-I", compress]) else { return };
        assert!(slow > Duration::from_secs(2), "{way:?}: 1 MiB at 500 KiB/s took {slow:?}");
        assert!(slow < Duration::from_secs(20), "{way:?}: 1 MiB at 500 KiB/s took {slow:?}");
        assert_eq!(fs::read(&from).expect("read"), fs::read(&to).expect("read"), "{way:?}");
        fs::write(&to, vec![2; 1 << 20]).expect("write");
        let Some((_, quick)) = timed(&["--bwlimit=0", "-I", compress]) else { return };
        assert!(quick < slow, "{way:?}: {quick:?} without a limit");
    }
}

#[test]
fn a_shell_that_sends_cannot_keep_to_a_rate() {
    let dir = lab::scratch();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::write(&from, "x").expect("write");
    let Some(outcome) = Way::PullShell.run(&["--bwlimit=1m"], &[from.as_os_str()], to.as_os_str()) else {
        return;
    };
    outcome.code(1).says(&["--bwlimit", "--agent=push"]);
}
