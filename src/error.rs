//! The one error type: what was being done, to which path or host, and why it
//! failed. Exit codes follow rsync(1), section "EXIT VALUES". Beside it, what every
//! layer needs where something fails: [`Stop`], [`lock`], text made safe to show.

mod warning;
mod words;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

pub use warning::Warning;
pub use words::{Again, failed, in_words, is_quota};
use words::{full, partial, silent, strangers};

/// A result whose error is [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Anything that ends a run, or the transfer of one file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line asks for something that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The two ends share no version of the protocol.
    #[error("{}", strangers(.peer, *.theirs, *.ours))]
    Version {
        /// Who the peer is, for people.
        peer: String,
        /// The oldest and the newest version the peer speaks.
        theirs: (u16, u16),
        /// The oldest and the newest version of this program that would do.
        ours: (u16, u16),
    },
    /// The destination as a whole cannot be used.
    #[error("{0}")]
    Destination(String),
    /// What has to take part at the other end was not reached, or may not.
    #[error("{0}")]
    Start(String),
    /// Nobody greeted at the other end, as a holesync does; why is not known yet.
    #[error("no holesync answered on {peer}: the connection {how}")]
    Unanswered {
        /// Who the peer is, for people.
        peer: String,
        /// How it ended, in words.
        how: String,
    },
    /// A system call on a file failed.
    #[error("{}", failed(.doing, .path, .source))]
    File {
        /// What was being done: a verb that fits between "cannot" and the path.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file system of the destination is full, or a quota.
    #[error("{} {}: {needed}", full(.source), printable(.path))]
    Space {
        /// The file that was being written.
        path: PathBuf,
        /// How much was needed, in words.
        needed: String,
        /// The error of the system.
        source: io::Error,
    },
    /// A file as a whole cannot be transferred; nothing was done to it.
    #[error("{}: {why}", printable(.path))]
    Refused {
        /// The file.
        path: PathBuf,
        /// The reason, and what to do about it.
        why: String,
    },
    /// Reading from or writing to the other end failed.
    #[error("connection to {peer} failed while {doing}: {}; {}", in_words(.source), .again)]
    Link {
        /// What was being done.
        doing: &'static str,
        /// Who the peer is, for people.
        peer: String,
        /// The error of the system.
        source: io::Error,
        /// What the same command does then.
        again: Again,
    },
    /// The other end is silent, or the way to it.
    #[error("connection to {peer} timed out while {doing}: {source}; {again}")]
    Timeout {
        /// What was being done.
        doing: &'static str,
        /// Who the peer is, for people.
        peer: String,
        /// How long it was silent, and which option says so, in words.
        source: io::Error,
        /// What the same command does then.
        again: Again,
    },
    /// The other end closed the connection, or died, before it was done.
    #[error("{peer} closed the connection before it was done{detail}; {again}")]
    Closed {
        /// Who the peer is, for people.
        peer: String,
        /// How its process ended, and the end of its stderr; empty if unknown.
        detail: String,
        /// What the same command does then.
        again: Again,
    },
    /// The process at the other end ended by itself, with a status that tells of a failure
    /// of its own: it would fail again.
    #[error("{peer} closed the connection before it was done{detail}")]
    Exited {
        /// Who the peer is, for people.
        peer: String,
        /// How its process ended, and the end of its stderr.
        detail: String,
    },
    /// The other end sent something that the protocol forbids.
    #[error("bad data from {peer}: {what}")]
    Protocol {
        /// Who the peer is, for people.
        peer: String,
        /// What was wrong.
        what: String,
    },
    /// The other end reported a fatal error of its own.
    #[error("{peer}: {}", .failure.message)]
    Remote {
        /// Who the peer is, for people.
        peer: String,
        /// What it reported.
        failure: Failure,
    },
    /// An agent failed, and has reported that to its initiator, which shows it.
    #[error("the failure was reported to the initiator")]
    Reported {
        /// The exit code that goes with the failure.
        code: u8,
    },
    /// ssh itself failed (exit status 255).
    #[error("ssh to {host} failed{}", silent(.detail))]
    Ssh {
        /// The host.
        host: String,
        /// The end of the stderr of ssh; empty if there was nothing.
        detail: String,
    },
    /// A signal asked to stop.
    #[error("interrupted; {0}")]
    Interrupted(Again),
    /// The run has taken as long as it may.
    #[error("the time that --stop-after or --stop-at allows is over; {0}")]
    TimeIsUp(Again),
    /// A file is in place, without all of its attributes.
    #[error("{}", .0.message)]
    Unset(Failure),
    /// Some files were not transferred, or not with all of their attributes; each was
    /// reported on its own.
    #[error("{}", partial(*.failed, *.unset, .first, *.code))]
    Partial {
        /// How many were not transferred.
        failed: u64,
        /// How many are in place without all of their attributes.
        unset: u64,
        /// The name of the first one; empty: not known.
        first: String,
        /// The exit code that fits the worst of them.
        code: u8,
    },
    /// Not all of several hosts were prepared: none of them was told to put anything in place.
    #[error("nothing was put in place, as {why}; what came stays there for the next run")]
    Together {
        /// The reason, as it stands behind "as".
        why: String,
    },
    /// Some of several hosts do not have what was to be sent; each was reported on its own.
    #[error("{failed} of {total} hosts failed, the first of them {first}")]
    Hosts {
        /// How many.
        failed: usize,
        /// Of so many.
        total: usize,
        /// The name of the first one.
        first: String,
    },
}

/// Why something was not read to its end, where what is read is handed on part by part.
#[derive(Debug)]
pub enum Stop<E = Error> {
    /// Reading failed.
    Read(io::Error),
    /// What takes the parts failed.
    Taken(E),
}

impl<E> From<io::Error> for Stop<E> {
    fn from(error: io::Error) -> Stop<E> {
        Stop::Read(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Taken(error)
    }
}

impl Stop {
    /// The error as a whole, with `read` made of a failure to read.
    pub fn or_read(self, read: impl FnOnce(io::Error) -> Error) -> Error {
        match self {
            Stop::Read(source) => read(source),
            Stop::Taken(error) => error,
        }
    }
}

/// Locks a mutex. A thread that panicked while it held the lock takes the run down by
/// itself; what the mutex holds is in order all the same.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// An error in the form in which it travels to the other end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The exit code it leads to.
    pub code: u8,
    /// The text, without a line end. Unescaped: see [`escape`].
    pub message: String,
    /// What it is about, as it is named where it is, if it is about one file.
    pub path: Option<Vec<u8>>,
    /// The host on which it happened, where that is another one than the user's. Known to
    /// whom it is told.
    #[serde(skip)]
    pub host: Option<String>,
}

impl Failure {
    /// A failure that is about no file.
    pub fn new(code: u8, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), path: None, host: None }
    }

    /// It, about a file.
    #[must_use]
    pub fn about(self, path: impl AsRef<Path>) -> Failure {
        Failure { path: Some(path.as_ref().as_os_str().as_encoded_bytes().to_vec()), ..self }
    }

    /// It, as it happened on a host.
    #[must_use]
    pub fn on(self, host: &str) -> Failure {
        Failure { host: Some(host.into()), ..self }
    }

    /// It for people: on which host, and what.
    pub fn told(&self) -> String {
        told(self.host.as_deref(), &self.message)
    }

    /// What it is about, with its host; empty: that is not known.
    pub fn subject(&self) -> String {
        let Some(path) = &self.path else { return String::new() };
        let path = String::from_utf8_lossy(path);
        self.host.as_ref().map_or(path.to_string(), |host| format!("{host}:{path}"))
    }
}

/// What is said of another host for people, safe to show.
pub fn told(host: Option<&str>, message: &str) -> String {
    let message = escape(message.as_bytes());
    host.map_or(message.clone(), |host| format!("{}: {message}", escape(host.as_bytes())))
}

/// Exit codes, as in rsync(1).
pub mod code {
    /// Command line.
    pub const USAGE: u8 = 1;
    /// Protocol incompatibility.
    pub const VERSION: u8 = 2;
    /// Selecting input or output files.
    pub const SELECT: u8 = 3;
    /// Starting the client-server protocol.
    pub const START: u8 = 5;
    /// Socket or pipe I/O.
    pub const LINK: u8 = 10;
    /// File I/O.
    pub const FILE_IO: u8 = 11;
    /// Error in the protocol data stream.
    pub const STREAM: u8 = 12;
    /// SIGINT, SIGTERM or SIGHUP.
    pub const INTERRUPTED: u8 = 20;
    /// Partial transfer: some files failed.
    pub const PARTIAL: u8 = 23;
    /// Some source files vanished before they could be read.
    pub const VANISHED: u8 = 24;
    /// `--max-delete` kept entries from being removed.
    pub const DELETE_LIMIT: u8 = 25;
    /// Timeout in data send/receive.
    pub const TIMEOUT: u8 = 30;
    /// ssh failed.
    pub const SSH: u8 = 255;
}

impl Error {
    /// Wraps an I/O error on `path`; `doing` is a verb ("open", "write").
    pub fn file(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::File { doing, path, source }
    }

    /// Refuses to touch `path`, with a reason.
    pub fn refused(path: impl Into<PathBuf>, why: impl Into<String>) -> Error {
        Error::Refused { path: path.into(), why: why.into() }
    }

    /// A connection that failed while it was used.
    pub fn link(doing: &'static str, peer: &str, source: io::Error) -> Error {
        Error::Link { doing, peer: peer.into(), source, again: Again::GoesOn }
    }

    /// A connection that came to its end too early; how is not known yet.
    pub fn closed(peer: &str) -> Error {
        Error::Closed { peer: peer.into(), detail: String::new(), again: Again::GoesOn }
    }

    /// It, where a shell takes part.
    #[must_use]
    pub fn by_shell(mut self) -> Error {
        use Error::*;
        if let Link { again, .. } | Timeout { again, .. } | Closed { again, .. } = &mut self {
            *again = Again::StartsAnew;
        }
        self
    }

    /// The exit code of a run that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => code::USAGE,
            Error::Version { .. } => code::VERSION,
            Error::Destination(_) => code::SELECT,
            Error::Start(_) | Error::Unanswered { .. } => code::START,
            Error::Space { .. } => code::FILE_IO,
            Error::File { source, .. } if is_file_io(source) => code::FILE_IO,
            Error::File { .. } | Error::Refused { .. } => code::PARTIAL,
            Error::Hosts { .. } | Error::Together { .. } => code::PARTIAL,
            Error::Link { .. } => code::LINK,
            Error::Timeout { .. } | Error::TimeIsUp(_) => code::TIMEOUT,
            Error::Closed { .. } | Error::Exited { .. } | Error::Protocol { .. } => code::STREAM,
            Error::Remote { failure, .. } | Error::Unset(failure) => failure.code,
            Error::Ssh { .. } => code::SSH,
            Error::Interrupted(_) => code::INTERRUPTED,
            Error::Partial { code, .. } | Error::Reported { code } => *code,
        }
    }

    /// The error as it travels to the other end.
    pub fn to_failure(&self) -> Failure {
        let failure = Failure::new(self.exit_code(), self.to_string());
        self.path().map_or(failure.clone(), |path| failure.about(path))
    }

    /// What it is about, if that is one file of this machine.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::File { path, .. } | Error::Space { path, .. } | Error::Refused { path, .. } => Some(path),
            _ => None,
        }
    }

    /// The failure that it is for a program: of a remote one what was reported, and where.
    pub fn as_failure(&self) -> Failure {
        match self {
            Error::Remote { peer, failure } => failure.clone().on(peer),
            Error::Unset(failure) => failure.clone(),
            Error::Link { peer, .. } | Error::Timeout { peer, .. } => self.to_failure().on(peer),
            Error::Closed { peer, .. } | Error::Exited { peer, .. } => self.to_failure().on(peer),
            Error::Protocol { peer, .. } | Error::Version { peer, .. } => self.to_failure().on(peer),
            Error::Ssh { host, .. } => self.to_failure().on(host),
            _ => self.to_failure(),
        }
    }
}

/// Whether the medium failed or is full, as opposed to a name or a permission.
fn is_file_io(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.raw_os_error(), Some(libc::EIO))
        || matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge | WriteZero | UnexpectedEof)
}

/// A path as it may be shown on a terminal: see [`escape`].
pub fn printable(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes())
}

/// Text from outside made safe to show: control characters, characters that are not seen
/// or change the order of others, and bytes that are not UTF-8, become `\#ooo` in octal, as
/// rsync shows them.
pub fn escape(bytes: &[u8]) -> String {
    let octal = |bytes: &[u8]| bytes.iter().map(|b| format!("\\#{b:03o}")).collect::<String>();
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || is_format(c) {
                out.push_str(&octal(c.encode_utf8(&mut [0; 4]).as_bytes()));
            } else {
                out.push(c);
            }
        }
        out.push_str(&octal(chunk.invalid()));
    }
    out
}

/// Characters that show nothing, or that change how others are shown: the general category
/// Cf, the line and paragraph separators, fillers and variation selectors (Unicode 17,
/// UnicodeData.txt and DerivedCoreProperties.txt, Default_Ignorable_Code_Point).
fn is_format(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_seen_or_turns_others_round_is_escaped() {
        assert_eq!(escape("a\u{202e}gmi.exe".as_bytes()), "a\\#342\\#200\\#256gmi.exe");
        for c in
            ['\u{200b}', '\u{200f}', '\u{2066}', '\u{2069}', '\u{feff}', '\u{ad}', '\u{2028}', '\u{e0041}']
        {
            assert!(!escape(c.to_string().as_bytes()).contains(c), "{c:?}");
        }
        for c in ["dísk", "磁盘", "диск", "قرص", "डिस्क", "💾", "\u{a0}"] {
            assert_eq!(escape(c.as_bytes()), c);
        }
    }

    #[test]
    fn escape_leaves_plain_text_alone_and_disarms_the_rest() {
        assert_eq!(escape("dísk 1.img".as_bytes()), "dísk 1.img");
        assert_eq!(escape(b"a\nb\x1b[31m\xff"), "a\\#012b\\#033[31m\\#377");
        assert_eq!(escape("\u{9b}2J".as_bytes()), "\\#302\\#2332J");
    }

    #[test]
    fn a_full_disk_is_file_io_and_a_missing_file_is_partial() {
        let error = |errno| Error::file("open", "x")(io::Error::from_raw_os_error(errno)).exit_code();
        assert_eq!(error(libc::ENOSPC), code::FILE_IO);
        assert_eq!(error(libc::EIO), code::FILE_IO);
        assert_eq!(error(libc::ENOENT), code::PARTIAL);
        assert_eq!(error(libc::EACCES), code::PARTIAL);
    }
}
