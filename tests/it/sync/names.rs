//! Names that no receiver takes, and trees that are deeper than a walk holds open.

use std::fs;
use std::path::{Path, PathBuf};
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

/// A file system whose names may have more than 255 bytes; it goes when this is dropped.
struct LongNames(PathBuf);

impl LongNames {
    fn mount(dir: &Path) -> Option<LongNames> {
        let (image, at) = (dir.join("ntfs"), mkdir(dir.join("mounted")));
        fs::File::create(&image).and_then(|file| file.set_len(16 << 20)).expect("make an image");
        let works = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        if works(Command::new("mkntfs").arg("-qFf").arg(&image))
            && works(Command::new("mount").args(["-t", "ntfs-3g", "-o", "loop"]).arg(&image).arg(&at))
        {
            return Some(LongNames(at));
        }
        lab::skip("no ntfs-3g");
        None
    }
}

impl Drop for LongNames {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_name_that_is_too_long_fails_by_itself() {
    if !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    let Some(mounted) = LongNames::mount(dir.path()) else { return };
    let long = "\u{8a9e}".repeat(255);
    small(mounted.0.join(&long), "long");
    small(mounted.0.join("short"), "short");
    for way in WAYS {
        let to = mkdir(dir.path().join(format!("to-{way:?}")));
        let (mut command, named) = pushing(way, dir.path(), &to);
        run(command.arg(slash(&mounted.0)).arg(&named)).code(23).says(&["may have 255 bytes"]);
        assert_eq!(fs::read_to_string(to.join("short")).ok().as_deref(), Some("short"), "{way:?}");
        let (mut command, named) = pushing(way, dir.path(), &to);
        run(command.arg(mounted.0.join(&long)).arg(&named)).code(23).says(&["give it a shorter one"]);
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
