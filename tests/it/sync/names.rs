//! Names that no receiver takes, and trees that are deeper than a walk holds open.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::lab;
use crate::common::peer::{Peer, at};
use crate::common::process::{holesync, run};
use crate::common::tree::{Way, assert_trees, mkdir, slash, small};

/// The program, and what names a destination, for sources on this machine.
fn pushing(way: Way, dir: &Path, to: &Path) -> (Command, std::ffi::OsString) {
    match way {
        Way::Local => (holesync(), to.as_os_str().to_owned()),
        Way::PushShell => (Peer::pipe(dir).shell(), at(to)),
        _ => (Peer::pipe(dir).holesync(), at(to)),
    }
}

const WAYS: [Way; 3] = [Way::Local, Way::Push, Way::PushShell];

#[test]
fn a_source_with_the_name_of_a_working_file_fails_by_itself() {
    for way in WAYS {
        let dir = lab::scratch();
        let sources = [".a.holesync.log", "b"].map(|name| small(dir.path().join(name), name));
        let to = mkdir(dir.path().join("to"));
        let (mut command, named) = pushing(way, dir.path(), &to);
        let outcome = run(command.args(sources).arg(named));
        outcome.code(23).says(&[".a.holesync.log", "named like a working file"]);
        assert_eq!(fs::read_to_string(to.join("b")).ok().as_deref(), Some("b"), "{way:?}");
        assert!(!to.join(".a.holesync.log").exists(), "{way:?}");
    }
}

#[test]
fn a_name_that_is_too_long_fails_by_itself() {
    if !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    // A file system whose names may have more than 255 bytes.
    let mounted = lab::Mounted::new(16, &["mkntfs", "-qFf"], &["-t", "ntfs-3g", "-o", "loop"]);
    let long = "\u{8a9e}".repeat(255);
    small(mounted.path().join(&long), "long");
    small(mounted.path().join("short"), "short");
    for way in WAYS {
        let to = mkdir(dir.path().join(format!("to-{way:?}")));
        let (mut command, named) = pushing(way, dir.path(), &to);
        run(command.arg(slash(mounted.path())).arg(&named)).code(23).says(&["may have 255 bytes"]);
        assert_eq!(fs::read_to_string(to.join("short")).ok().as_deref(), Some("short"), "{way:?}");
        let (mut command, named) = pushing(way, dir.path(), &to);
        run(command.arg(mounted.path().join(&long)).arg(&named)).code(23).says(&["give it a shorter one"]);
    }
}

#[test]
fn what_lies_behind_a_deep_directory_is_found() {
    for way in WAYS {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
        let mut below = from.clone();
        for level in 0..100 {
            small(below.join("z"), &level.to_string());
            below = mkdir(below.join("d"));
        }
        let (mut command, named) = pushing(way, dir.path(), &to);
        // A receiver holds more.
        let files = if way == Way::Local { 90 } else { 1024 };
        let few = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
        let mut limited = Command::new("sh");
        limited.args(["-c", &few]).arg(command.get_program()).args(command.get_args());
        command = limited;
        run(command.arg("-a").arg(slash(&from)).arg(named)).ok();
        assert_trees(&from, &to, true, &format!("{way:?}"));
    }
}
