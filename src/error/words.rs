//! What errors say: the words of the job for what the system reports, and what to do next.

use std::fmt;
use std::io;
use std::path::Path;

use super::{code, printable};

/// What the same command does once more where a run broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It goes on from what came.
    GoesOn,
    /// A shell takes part, which keeps nothing of a file that was under way.
    StartsAnew,
    /// Objects are fetched from a web server or a bucket.
    Fetches,
    /// Objects are put there.
    Puts,
    /// What it looks at, or removes, is nothing that could be gone on from.
    Anew,
}

impl fmt::Display for Again {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Again::GoesOn => "run the same command again: between two holesyncs it goes on from there",
            Again::Fetches => "run the same command again: only what has not come yet is fetched",
            Again::Puts => "run the same command again: what is there already is not put there once more",
            Again::Anew => "run the same command again",
            Again::StartsAnew => {
                "the old file is whole, unless it is a device or written in place; run the same command again: where \
                 there is only a shell, the file that was under way starts anew, and complete ones are not sent again"
            }
        })
    }
}

/// What a file or directory with the attribute "immutable" refuses even to root.
const CHANGES_NAMES: [&str; 5] =
    ["open", "create the temp file of", "create the stage of", "create the directory", "replace"];

/// Which of two ends that share no version is to be renewed.
pub(super) fn strangers(peer: &str, theirs: (u16, u16), ours: (u16, u16)) -> String {
    let span = |(a, b): (u16, u16)| if a == b { format!("{a}") } else { format!("{a} to {b}") };
    let release = env!("CARGO_PKG_VERSION");
    let [theirs_spoken, ours_spoken] = [theirs, ours].map(span);
    let each =
        format!("it speaks protocol {theirs_spoken}, and the one here ({release}) protocol {ours_spoken}");
    if theirs.1 < ours.0 {
        format!(
            "the holesync on {peer} is older: {each}; install {release} on {peer}, or have a transfer with \
             --agent=push bring this one along"
        )
    } else {
        format!("the holesync on {peer} is newer: {each}; install the release of {peer} here")
    }
}

/// What could not be done to a file, and why. The file system may be what forbids it, whatever
/// was the first call to notice.
pub fn failed(doing: &str, path: &Path, source: &io::Error) -> String {
    let path = printable(path);
    match source.raw_os_error() {
        Some(libc::EROFS) => format!("cannot write {path}: the file system is read-only"),
        // The directory of a file of a tree, which could not be made or has gone since.
        Some(libc::ENOENT) if doing == "open the directory of" => {
            format!("cannot reach {path}: its directory is missing")
        }
        Some(libc::EPERM) if CHANGES_NAMES.contains(&doing) => format!(
            "cannot {doing} {path}: {}; lsattr shows whether it or its directory is immutable",
            in_words(source)
        ),
        Some(libc::EIO) => format!(
            "cannot {doing} {path}: {}; its storage may be failing: dmesg on that machine tells more",
            in_words(source)
        ),
        _ => format!("cannot {doing} {path}: {}", in_words(source)),
    }
}

/// An error of the system without its number.
pub fn in_words(error: &io::Error) -> String {
    let text = error.to_string();
    error
        .raw_os_error()
        .and_then(|number| text.strip_suffix(&format!(" (os error {number})")))
        .unwrap_or(&text)
        .into()
}

/// Whether it is a quota that is full, and not the file system.
pub fn is_quota(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::QuotaExceeded
}

/// What is full.
pub(super) fn full(error: &io::Error) -> &'static str {
    if is_quota(error) { "the disk quota leaves no space for" } else { "no space left for" }
}

/// What ssh said before it failed, or what would make it speak.
pub(super) fn silent(detail: &str) -> &str {
    match detail {
        "" => " without a word: it was killed, or the line broke; ssh -v tells more",
        detail => detail,
    }
}

/// What became of some of the files.
pub(super) fn partial(failed: u64, unset: u64, first: &str, code: u8) -> String {
    match (failed, unset, first) {
        (_, _, "") => {}
        (1, 0, first) if code == code::DELETE_LIMIT => {
            return format!("{first} stays, and so does what else would be removed (see above)");
        }
        (1, 0, first) => return format!("{first} could not be transferred (see above)"),
        (0, 1, first) => return format!("{first} is in place without all of its attributes (see above)"),
        _ => {}
    }
    let failed = (failed > 0).then(|| format!("{failed} of the files could not be transferred"));
    let unset = match unset {
        0 => None,
        1 => Some("1 is in place without all of its attributes".into()),
        unset => Some(format!("{unset} are in place without all of their attributes")),
    };
    let parts = failed.into_iter().chain(unset).collect::<Vec<_>>();
    match first {
        "" => format!("{} (see above)", parts.join(", ")),
        first => format!("{} (see above), the first is {first}", parts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_reports_is_said_in_words_of_the_job() {
        let said = |doing, number| failed(doing, Path::new("d/x"), &io::Error::from_raw_os_error(number));
        assert_eq!(said("remove", libc::EROFS), "cannot write d/x: the file system is read-only");
        assert_eq!(said("open the directory of", libc::ENOENT), "cannot reach d/x: its directory is missing");
        assert_eq!(
            said("create the stage of", libc::EPERM),
            "cannot create the stage of d/x: Operation not permitted; \
             lsattr shows whether it or its directory is immutable"
        );
        // Without the right to make one; nothing is immutable.
        let node = "create the special file";
        assert_eq!(said(node, libc::EPERM), "cannot create the special file d/x: Operation not permitted");
        assert_eq!(said("open", libc::EACCES), "cannot open d/x: Permission denied");
        assert_eq!(
            said("read", libc::EIO),
            "cannot read d/x: Input/output error; its storage may be failing: dmesg on that machine tells more"
        );
    }

    #[test]
    fn the_last_line_says_what_became_of_the_first() {
        let said = |failed, unset, code| partial(failed, unset, "host:x", code);
        assert_eq!(said(1, 0, code::PARTIAL), "host:x could not be transferred (see above)");
        assert_eq!(
            said(1, 0, code::DELETE_LIMIT),
            "host:x stays, and so does what else would be removed (see above)"
        );
        assert_eq!(
            said(3, 1, code::PARTIAL),
            "3 of the files could not be transferred, 1 is in place without all of its attributes \
             (see above), the first is host:x"
        );
        assert_eq!(
            partial(0, 2, "", code::PARTIAL),
            "2 are in place without all of their attributes (see above)"
        );
    }
}
