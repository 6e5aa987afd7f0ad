//! The filter rules of a walk: where its paths begin on this machine, and the files of rules
//! in its directories, which are read from the descriptors that it holds.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;

use crate::confinement::NamedPath;
use crate::error::in_words;
use crate::filter::{DirectoryRules, FilterSide};
use crate::options::Options;
use crate::sys;

/// The largest file of rules in a directory, in bytes.
const MAX_RULES_FILE: u64 = 256 << 10;

/// For a file of rules. Without waiting: opening a fifo would, for its other end.
const RULES: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// The rules that hold where the paths of a source begin.
pub(super) fn rules_for(source: &NamedPath, options: &Options) -> DirectoryRules {
    let mut root = absolute(source.kept_below().as_ref().unwrap_or(source));
    if source.kept_below().is_none() && !source.names_contents() {
        root.pop();
    }
    DirectoryRules::new(&options.filter, FilterSide::Sender, root.as_os_str().as_bytes())
}

/// The path of a source, from the root that can be reached, without `.` and `..`.
fn absolute(source: &NamedPath) -> PathBuf {
    let here =
        if source.is_confined() { PathBuf::from("/") } else { std::env::current_dir().unwrap_or_default() };
    let mut path = PathBuf::from("/");
    for component in here.join(source.path()).components() {
        match component {
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path
}

/// The rules that hold in the directory that was named as `source`, whose path is `target`:
/// some are read above it. `dir` is the directory.
///
/// # Errors
///
/// What is wrong with a file of rules.
pub(super) fn enter_first(
    rules: &DirectoryRules,
    target: &[u8],
    source: &NamedPath,
    dir: BorrowedFd,
) -> Result<DirectoryRules, String> {
    let own = absolute(source);
    rules.enter_first(target, &mut |directory, name| {
        let path = Path::new(OsStr::from_bytes(if directory.is_empty() { b"/" } else { directory }));
        if path == own {
            return read(dir, dir, Path::new(""), name);
        }
        let opened = source.elsewhere(path).open(OFlag::O_PATH | OFlag::O_DIRECTORY);
        match opened {
            Ok(above) => read(above.as_fd(), above.as_fd(), Path::new(""), name),
            // Who may not look there has no rules from there.
            Err(_) => Ok(None),
        }
    })
}

/// The rules that hold in a directory whose path is `target`, `below` the `root` of a walk.
///
/// # Errors
///
/// What is wrong with a file of rules.
pub(super) fn enter(
    rules: &DirectoryRules,
    target: &[u8],
    dir: BorrowedFd,
    root: BorrowedFd,
    below: &Path,
) -> Result<DirectoryRules, String> {
    rules.enter(target, &mut |_, name| read(dir, root, below, name))
}

/// Reads a file of rules in the directory `dir`, which is `below` the `root` of a tree. A
/// symlink is followed as far as it stays in the tree. `None`: there is none.
///
/// # Errors
///
/// Why it cannot be read.
pub fn read(dir: BorrowedFd, root: BorrowedFd, below: &Path, name: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let name = OsStr::from_bytes(name);
    let failed =
        |error: io::Error| format!("cannot read the rules in {}: {}", name.display(), in_words(&error));
    let opened = match sys::open_beneath(dir, Path::new(name), RULES, 0) {
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            sys::open_below(root, &below.join(name), RULES)
        }
        other => other,
    };
    match opened {
        Ok(fd) => read_file(fd).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
            Err(format!("{} is a symlink that leads out of the source", name.display()))
        }
        Err(error) => Err(failed(error)),
    }
}

fn read_file(fd: OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let file = File::from(fd);
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Ok(None);
    }
    if !kind.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = Vec::new();
    file.take(MAX_RULES_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_RULES_FILE {
        return Err(io::Error::other(format!("it has more than {MAX_RULES_FILE} bytes")));
    }
    Ok(Some(text))
}
