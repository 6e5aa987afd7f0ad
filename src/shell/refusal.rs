//! Why a command failed at the other end, as a shell tells it: in its own words, or in those
//! of a tool that names the error of the system.

use std::io;
use std::path::PathBuf;

use crate::error::{Error, Failure, Result, escape, is_quota};
use crate::shell;

/// What became of a command: done, or why it failed.
pub type CommandResult<T = ()> = std::result::Result<T, Refusal>;

/// Why a command failed.
#[derive(Debug)]
pub enum Refusal {
    /// What stands behind the name of the file.
    Because(String),
    /// What could not be done to the file, and why.
    Failed { doing: &'static str, source: io::Error },
}

/// What a script may say that it cannot do to a file.
const DOINGS: [&str; 10] = [
    "write",
    WRITE_IN_PLACE,
    "replace",
    "create the temp file of",
    "create the directory",
    "create the symlink",
    "remove what is in the way of the directory",
    "set the length of",
    "copy what stays of",
    READ,
];
/// Among them: it did so to a source.
const READ: &str = "read";
/// What was there is lost in part.
const WRITE_IN_PLACE: &str = "write in place";

/// What tools call the errors of the system: the GNU C library and musl, and the shells, of
/// which some have their own words for a directory that is not there.
const ERRORS: [(&str, i32); 31] = [
    ("No space left on device", libc::ENOSPC),
    ("Disk quota exceeded", libc::EDQUOT),
    ("Quota exceeded", libc::EDQUOT),
    ("File too large", libc::EFBIG),
    ("Input/output error", libc::EIO),
    ("I/O error", libc::EIO),
    ("Read-only file system", libc::EROFS),
    ("Permission denied", libc::EACCES),
    ("Operation not permitted", libc::EPERM),
    ("No such file or directory", libc::ENOENT),
    ("Directory nonexistent", libc::ENOENT),
    ("nonexistent directory", libc::ENOENT),
    ("File exists", libc::EEXIST),
    ("Not a directory", libc::ENOTDIR),
    ("Is a directory", libc::EISDIR),
    ("Directory not empty", libc::ENOTEMPTY),
    ("File name too long", libc::ENAMETOOLONG),
    ("Filename too long", libc::ENAMETOOLONG),
    ("Text file busy", libc::ETXTBSY),
    ("Device or resource busy", libc::EBUSY),
    ("Resource busy", libc::EBUSY),
    ("Too many levels of symbolic links", libc::ELOOP),
    ("Symbolic link loop", libc::ELOOP),
    ("No such device or address", libc::ENXIO),
    ("No such device", libc::ENODEV),
    ("Invalid argument", libc::EINVAL),
    ("Stale file handle", libc::ESTALE),
    ("Cannot allocate memory", libc::ENOMEM),
    ("Out of memory", libc::ENOMEM),
    ("Operation not supported", libc::EOPNOTSUPP),
    ("Not supported", libc::EOPNOTSUPP),
];

impl Refusal {
    /// Reads `failed` and why, or `cannot` and what, and behind a colon the error.
    pub fn read(line: &[u8]) -> Option<Refusal> {
        if let Some(why) = line.strip_prefix(b"failed ") {
            return Some(Refusal::Because(escape(why)));
        }
        let text = escape(line.strip_prefix(b"cannot ")?);
        let (doing, error) = text.split_once(": ")?;
        let doing = *DOINGS.iter().find(|known| **known == doing)?;
        Some(Refusal::Failed { doing, source: known_error(error) })
    }

    /// Reads what find or stat say of a name that they could not look at: `find: './a': why`,
    /// `stat: cannot statx 'a': why`. Returns the name, and why.
    pub fn read_complaint(line: &[u8]) -> Option<(Vec<u8>, Refusal)> {
        let colon = line.windows(2).rposition(|pair| pair == b": ")?;
        let (named, error) = (&line[..colon], escape(&line[colon + 2..]));
        let named = &named[find(named, b": ")? + 2..];
        let quote = if named.starts_with(b"'") { Some(0) } else { find(named, b" '").map(|at| at + 1) };
        let quoted = quote.and_then(|at| named.get(at + 1..)?.strip_suffix(b"'"));
        let name = match quoted {
            Some(quoted) => unescape(quoted),
            None => Some(named.to_vec()).filter(|name| name.starts_with(b"./") || name.starts_with(b"/"))?,
        };
        Some((name, Refusal::Failed { doing: READ, source: known_error(&error) }))
    }

    /// The error that it is for the file with this path.
    pub fn error(self, path: impl Into<PathBuf>) -> Error {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        let path = path.into();
        match self {
            Refusal::Because(why) => Error::Refused { path, why },
            Refusal::Failed { doing, source } if matches!(source.kind(), StorageFull | QuotaExceeded) => {
                let state = match doing {
                    WRITE_IN_PLACE => "it is partly written",
                    _ => "it is as it was before",
                };
                let todo =
                    if is_quota(&source) { "have the quota raised, or make room," } else { "make room" };
                let needed = format!(
                    "{state}; {todo} and run the same command again: where there is only a shell the file \
                     starts anew"
                );
                Error::Space { path, needed, source }
            }
            Refusal::Failed { doing, source } => Error::File { doing, path, source },
        }
    }

    /// What it is of a directory that could not be made.
    pub fn about_a_parent(self, path: impl Into<PathBuf>) -> Failure {
        let is_orphan =
            matches!(&self, Refusal::Failed { source, .. } if source.kind() == io::ErrorKind::NotFound);
        let failure = self.error(path).to_failure();
        let next = if is_orphan { "; create its parent first" } else { "" };
        Failure { message: format!("{}{next}", failure.message), ..failure }
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// A name without the escapes that GNU tools give it between quotes: those of C.
fn unescape(quoted: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(quoted.len());
    let mut rest = quoted;
    while let [first, behind @ ..] = rest {
        let (byte, used) = match (first, behind) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), 4)
            }
            (b'\\', [letter, ..]) => match b"abtnvfr".iter().position(|known| known == letter) {
                Some(nth) => (b"\x07\x08\t\n\x0b\x0c\r"[nth], 2),
                None => (*letter, 2),
            },
            _ => (*first, 1),
        };
        name.push(byte);
        rest = &rest[used..];
    }
    name
}

/// The error of the system that a tool names.
fn known_error(name: &str) -> io::Error {
    match ERRORS.iter().find(|(known, _)| *known == name) {
        Some((_, number)) => io::Error::from_raw_os_error(*number),
        None if name.is_empty() => io::Error::other("its tools do not tell why"),
        None => io::Error::other(name.to_owned()),
    }
}

/// Reads an answer: `good`, or why there is none.
pub fn read_result(line: &[u8], good: &[u8], host: &str) -> Result<CommandResult> {
    match Refusal::read(line) {
        Some(refusal) => Ok(Err(refusal)),
        None if line == good => Ok(Ok(())),
        None => Err(shell::unexpected(line, host)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::code;

    #[test]
    fn what_a_tool_says_is_the_error_of_the_system() {
        let told = |line: &[u8]| Refusal::read(line).unwrap().error("/x").to_failure();
        let failure = told(b"cannot write: Input/output error");
        assert_eq!((failure.code, failure.path), (code::FILE_IO, Some(b"/x".to_vec())));
        assert!(failure.message.starts_with("cannot write /x: "), "{}", failure.message);
        let failure = told(b"cannot write in place: No space left on device");
        assert_eq!(failure.code, code::FILE_IO);
        assert!(failure.message.starts_with("no space left for /x: "), "{}", failure.message);
        assert!(failure.message.contains("partly written"), "{}", failure.message);
        let failure = told(b"cannot replace: \x1b[1mbad");
        assert_eq!(failure.code, code::PARTIAL);
        assert_eq!(failure.message, "cannot replace /x: \\#033[1mbad");
        assert_eq!(told(b"failed is busy").message, "/x: is busy");
        let (name, refusal) = Refusal::read_complaint(b"find: './a: b': Permission denied").unwrap();
        assert_eq!((name.as_slice(), refusal.error("/x").exit_code()), (&b"./a: b"[..], code::PARTIAL));
        let (name, _) =
            Refusal::read_complaint(b"stat: cannot statx '/a': No such file or directory").unwrap();
        assert_eq!(name, b"/a");
        let (name, _) = Refusal::read_complaint(b"find: ./a: Permission denied").unwrap();
        assert_eq!(name, b"./a");
        let (name, _) = Refusal::read_complaint(b"find: ./it's 'x: Permission denied").unwrap();
        assert_eq!(name, b"./it's 'x");
        let (name, _) = Refusal::read_complaint(b"find: './it\\'s\\\\ \\303\\t': x").unwrap();
        assert_eq!(name, b"./it's\\ \xc3\t");
        for line in [b"".as_slice(), b"find: x", b": ", b"a: ': b", b"a: 'b: c"] {
            assert!(Refusal::read_complaint(line).is_none(), "{}", escape(line));
        }
        for line in [b"cannot fly: x".as_slice(), b"cannot write", b"done", b""] {
            assert!(Refusal::read(line).is_none());
        }
    }
}
