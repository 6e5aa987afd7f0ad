//! The command line, held against that of the real rsync.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::common::check::assert_same;
use crate::common::lab;
use crate::common::process::{holesync, run};

/// The options that the real rsync shows.
fn shown_by_rsync() -> BTreeSet<String> {
    let output = Command::new("rsync").arg("--help").output().expect("run rsync");
    let help = String::from_utf8(output.stdout).expect("text");
    let lines = help.lines().skip_while(|line| *line != "Options").filter(|line| line.starts_with('-'));
    let mut options = BTreeSet::new();
    for line in lines {
        let words = line.split_whitespace().take_while(|word| word.starts_with('-'));
        let names =
            words.map(|word| word.trim_end_matches(',').split('=').next().expect("a name").to_owned());
        options.extend(names.filter(|name| name != "--no-OPTION"));
    }
    assert!(options.len() > 150, "{options:?}");
    options
}

#[test]
fn every_option_of_rsync_is_in_the_documentation() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/rsync.md");
    let document = fs::read_to_string(document).expect("docs/rsync.md");
    let rows = document.lines().filter(|line| line.starts_with("| `-"));
    let names: BTreeSet<&str> =
        rows.flat_map(|row| row.split('|').nth(1).expect("a cell").split('`')).collect();
    let missing: Vec<_> =
        shown_by_rsync().into_iter().filter(|name| !names.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "docs/rsync.md lacks {missing:?}");
}

/// What rsync lets anybody turn off can be turned off here.
#[test]
fn every_option_that_rsync_turns_off_may_be_turned_off() {
    let mut accepted = 0;
    for option in shown_by_rsync() {
        let no = format!("--no-{}", option.trim_start_matches('-'));
        let by_rsync = Command::new("rsync").args([&no, "--version"]).output().expect("run rsync");
        if by_rsync.status.success() {
            run(holesync().args([&no, "--version"])).ok();
            accepted += 1;
        }
    }
    assert!(accepted > 60, "{accepted}");
    run(holesync().args(["--no-dry-run", "a", "b"])).code(1);
}

#[test]
fn command_lines_that_people_quote_run_unchanged() {
    let dir = lab::scratch();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::write(&from, vec![7; 300_000]).expect("write");
    for options in [
        &["-avzh", "--partial"][..],
        &["-avzhP", "-S"],
        &["-aSvP", "--inplace", "--no-whole-file"],
        &["-rlptgo", "--no-W", "-s", "--no-inc-recursive", "--no-D"],
        &["-av", "-v", "-a", "--timeout=5", "--timeout=50", "--stats", "--stats", "--sparse"],
        &["-vW", "--no-W", "--protect-args", "--old-args", "--blocking-io", "--zl=3", "--zc=zstd"],
    ] {
        let _ = fs::remove_file(&to);
        run(holesync().args(options).args([&from, &to])).ok();
        assert_same(&from, &to);
    }
}

/// An option that is refused is refused before anything is done, in a cluster too.
#[test]
fn what_is_refused_changes_nothing_and_says_what_to_use() {
    let dir = lab::scratch();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::write(&from, "x").expect("write");
    for (option, parts) in [
        ("-avN", &["-N is not supported", "birth times"][..]),
        ("--daemon", &["--daemon is not supported", "holesync agent"]),
        ("--write-batch=x", &["holesync send"]),
        ("-aQ", &["-aQ", "no option -Q", "--help"]),
    ] {
        let outcome = run(holesync().arg(option).args([&from, &to])).code(1).says(parts);
        assert!(!outcome.stderr.contains("tip:"), "{outcome}");
        assert!(!to.exists());
    }
}

/// `--no-p` before `-a` counts for nothing, behind it it does.
#[test]
fn the_last_of_several_counts_as_it_does_for_rsync() {
    let dir = lab::scratch();
    let from = dir.path().join("from");
    fs::write(&from, "x").expect("write");
    fs::set_permissions(&from, fs::Permissions::from_mode(0o751)).expect("chmod");
    for (nth, options) in
        [["--no-p", "-a"], ["-a", "--no-p"], ["--no-p", "-p"], ["-p", "--no-perms"]].iter().enumerate()
    {
        let modes = ["rsync", "holesync"].map(|program| {
            let to = dir.path().join(format!("{program}{nth}"));
            let mut command = if program == "rsync" { Command::new("rsync") } else { holesync() };
            run(command.args(options).args([&from, &to])).ok();
            fs::metadata(&to).expect("metadata").permissions().mode()
        });
        assert_eq!(modes[0], modes[1], "{options:?}");
    }
}
