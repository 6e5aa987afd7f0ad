//! A far side without a holesync: a POSIX shell takes part, with the tools beside it.
//! The roles here are `send` and `receive`; `receiver` and `sender` speak to the scripts
//! that the shell runs. What all of them share is in this file: words, times, records
//! of a listing, results of commands. `docs/remote.md` has the conversation.

mod compare;
mod pending;
mod pieces;
mod receive;
mod receiver;
mod refusal;
mod send;
mod sender;
pub mod sparse_tar;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::apply::{Grain, Precision, TimeRule};
use crate::error::{Error, Failure, Result, Warning, code, escape};
use crate::options::{Compress, Missing, OneFileSystem, Options};
use crate::remote::{Input, Output};
use crate::report::{Event, Reporter};
use crate::source::{Metadata, Owner};
use crate::working::{Naming, Working, unforeseen};

pub use receive::{list, run as receive};
pub use receiver::run_command;
pub use send::run as send;

/// What every conversation with a shell needs.
pub struct ShellSession<'a> {
    pub input: Input,
    pub output: Output,
    pub options: &'a Options,
    /// The host, for messages.
    pub host: &'a str,
    pub reporter: &'a dyn Reporter,
}

/// The script that comes before each of those that a shell at the other end runs.
const COMMON_SCRIPT: &str = include_str!("shell/words.sh");

/// The most bytes in a record of a listing: a path, names and numbers.
const MAX_RECORD: usize = 16 << 10;

/// A file, directory or symlink that the other end has.
#[derive(Debug, Clone)]
pub struct FarFile {
    /// Type and permissions, as stat(2) has them.
    pub mode: u32,
    pub size: u64,
    pub mtime: i64,
    /// `None` where the tools there do not tell.
    pub nanoseconds: Option<u32>,
    pub uid: u32,
    pub gid: u32,
    pub user: String,
    pub group: String,
}

impl FarFile {
    pub fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }

    pub fn is_directory(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    pub fn is_device(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFBLK
    }

    pub fn is_symlink(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFLNK
    }

    /// Whether mode, owner and time are what the options ask for.
    pub fn has_attributes(&self, metadata: &Metadata, options: &Options, times: Times) -> bool {
        let owner = metadata.owner.as_ref();
        // By name where both ends have one: there, a number may mean another user.
        let same = |ours: &str, theirs: &str, our_number: u32, their_number: u32| {
            let named = !ours.is_empty() && !theirs.is_empty() && theirs != "UNKNOWN";
            if named { ours == theirs } else { our_number == their_number }
        };
        let same_user = |o: &Owner| !options.owner || same(&o.user, &self.user, o.uid, self.uid);
        let same_group = |o: &Owner| !options.group || same(&o.group, &self.group, o.gid, self.gid);
        let mode = metadata.mode.filter(|_| options.perms && !self.is_symlink());
        let mode = mode.map(|mode| {
            let (user, group) = (owner.is_some_and(same_user), owner.is_some_and(same_group));
            if self.is_directory() { mode } else { safe_mode(mode, options, user, group) }
        });
        mode.is_none_or(|mode| mode & 0o7777 == self.mode & 0o7777)
            && owner.is_none_or(|owner| same_user(owner) && same_group(owner))
            && (!options.times || self.has_time(metadata, options, times))
    }

    /// Whether the time is that of the source. A time that was set in whole seconds, or is
    /// told in them, is compared in whole seconds. The file system there is not asked for
    /// its grain: what any would make of the time of the source is that time.
    pub fn has_time(&self, metadata: &Metadata, options: &Options, times: Times) -> bool {
        let is_exact = times == Times::Nanoseconds && self.nanoseconds.is_some();
        let precision = if is_exact { Precision::Nanoseconds } else { Precision::Seconds };
        let rule = TimeRule { precision, window: options.modify_window };
        let there = (self.mtime, self.nanoseconds.unwrap_or(0));
        let is_same = |source| rule.is_same(source, there, || Grain::between(source, there));
        metadata.mtime.is_some_and(is_same)
    }
}

/// A program keeps the bits that let it run as its owner or group only where these are
/// asked for, and are those that it has.
pub fn safe_mode(mode: u32, options: &Options, has_owner: bool, has_group: bool) -> u32 {
    let lost_user = if options.owner && has_owner { 0 } else { 0o4000 };
    mode & !lost_user & !if options.group && has_group { 0 } else { 0o2000 }
}

/// How exactly the tools at the other end can set times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    No,
    Seconds,
    Nanoseconds,
}

/// Passes a line on, unless it is one of those that end the run.
pub fn check_line(line: Vec<u8>, host: &str) -> Result<Vec<u8>> {
    let (verb, rest) = line.split_at(line.iter().position(|&b| b == b' ').map_or(line.len(), |at| at + 1));
    let rest = escape(rest);
    let (code, message) = match verb {
        b"fatal " => (code::FILE_IO, rest),
        b"refused " => (code::SELECT, rest),
        b"lacks " => (
            code::START,
            format!(
                "there is no {rest}, without which its shell cannot take part: install coreutils or a newer \
                 BusyBox there, or use --agent=push"
            ),
        ),
        _ => return Ok(line),
    };
    Err(Error::Remote { peer: host.into(), failure: Failure::new(code, message) })
}

/// The error for a line that is no answer.
pub fn unexpected(line: &[u8], host: &str) -> Error {
    let what = format!("\"{}\" where an answer must be", escape(&line[..line.len().min(256)]));
    Error::Protocol { peer: host.into(), what }
}

/// The lines of one record of a listing, which ends in two slashes: a name may have
/// line ends in it, but no path that find prints has two slashes.
#[derive(Default)]
pub struct RecordLines(Vec<u8>);

impl RecordLines {
    /// Whether no record is open: then the next line begins one, or is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the record, when this line completes it. An empty one ends a record that
    /// was broken off.
    pub fn add(&mut self, line: &[u8], host: &str) -> Result<Option<Vec<u8>>> {
        self.0.extend(line);
        if self.0.ends_with(b"//") {
            self.0.truncate(self.0.len() - 2);
            return Ok(Some(std::mem::take(&mut self.0)).filter(|record| !record.is_empty()));
        }
        self.0.push(b'\n');
        if self.0.len() > MAX_RECORD { Err(unexpected(&self.0, host)) } else { Ok(None) }
    }
}

/// Refuses the options that a shell cannot serve, or warns of them: none of them is left
/// out in silence.
pub fn refuse_what_needs_an_agent(options: &Options, host: &str, reporter: &dyn Reporter) -> Result<()> {
    let rules = &options.attributes;
    let has_names = rules.user_map.has_names() || rules.group_map.has_names();
    let needs = [
        ("--verify", options.verify),
        ("--basis", !options.basis.is_empty()),
        ("--compare-dest, --copy-dest or --link-dest", options.alternates.is_some()),
        ("--fuzzy", options.fuzzy),
        ("--delay-updates", options.workplace.delay),
        ("--temp-dir or --partial-dir", !options.workplace.is_beside()),
        ("--backup", options.backup.is_some()),
        ("--delete", options.delete.is_some()),
        ("--delete-missing-args", options.missing == Missing::Deleted),
        ("--remove-source-files", options.remove_source_files),
        ("--force", options.force),
        ("-H", options.kinds.hard_links),
        ("-K", options.kinds.keep_dir_links),
        ("-A", rules.acls),
        ("-X", rules.xattrs),
        ("-U", rules.atimes),
        ("-E", rules.executability),
        ("--super", rules.superuser.is_some()),
        ("a name in --chown, --usermap or --groupmap", has_names),
    ];
    if let Some((option, _)) = needs.into_iter().find(|(_, wanted)| *wanted) {
        return Err(Error::Usage(format!(
            "{option} needs a holesync on {host}: install it there, or bring it with --agent=push"
        )));
    }
    if options.compress == Compress::Zstd {
        let what =
            format!("{host} has no holesync to unpack what -z compresses; ssh compresses with -e 'ssh -C'");
        reporter.event(Event::Warning(&Warning::new(what).of(host)));
    }
    Ok(())
}

/// Refuses what cannot be told from a listing of the other end.
pub fn refuse_what_a_listing_lacks(options: &Options, host: &str) -> Result<()> {
    if options.kinds.follow.any() {
        return Err(Error::Usage(format!(
            "-L, -k and --copy-unsafe-links need a holesync on {host}: install it there, or bring it with --agent=push"
        )));
    }
    let directories = options.directories;
    let needs = [
        ("--relative", directories.relative),
        ("--dirs", directories.without_recursion && !options.recursive),
        ("--prune-empty-dirs", directories.prune_empty),
        ("--ignore-missing-args", options.missing == Missing::Ignored),
    ];
    if let Some((option, _)) = needs.into_iter().find(|(_, wanted)| *wanted) {
        return Err(Error::Usage(format!(
            "{option} needs a holesync on {host}: install it there, or bring it with --agent=push"
        )));
    }
    let has_rules_there = options.filter.has_dir_merges() || options.filter.has_absolute();
    let what = match options.one_file_system {
        OneFileSystem::No if !has_rules_there => return Ok(()),
        OneFileSystem::No => {
            "rules in files of directories (-F, -C, dir-merge) or for absolute paths need a holesync"
        }
        _ => "-x needs a holesync",
    };
    Err(Error::Usage(format!("{what} on {host}: install it there, or bring it with --agent=push")))
}

/// A path below the root at the other end, in a form that no tool takes for an option.
pub fn relative(path: &[u8]) -> Vec<u8> {
    if path.is_empty() { b".".to_vec() } else { [b"./", path].concat() }
}

/// The names of the temp files of one run, which no other run uses.
pub struct TempNames(String);

impl Default for TempNames {
    fn default() -> TempNames {
        TempNames(format!("{:016x}", unforeseen()))
    }
}

impl TempNames {
    /// The temp file of a file, beside it.
    pub fn of(&self, target: &[u8]) -> Vec<u8> {
        let path = Path::new(OsStr::from_bytes(target));
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".");
        name.push(&self.0);
        relative(path.with_file_name(Working::Temp.name_for(&name, Naming::Common)).as_os_str().as_bytes())
    }
}

/// A command as a line: a verb and its words.
pub fn command_line(words: &[&[u8]]) -> Vec<u8> {
    let words: Vec<Vec<u8>> = words.iter().map(|word| encode(word)).collect();
    let mut line = words.join(&b' ');
    line.push(b'\n');
    line
}

/// A word that `read` does not take apart and that printf's %b turns back.
fn encode(word: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(word.len());
    for &byte in word {
        if byte.is_ascii_alphanumeric() || b"/._+,@%=:-".contains(&byte) {
            encoded.push(byte);
        } else {
            encoded.extend(format!("\\0{byte:03o}").bytes());
        }
    }
    encoded
}

/// Reads `mode size mtime uid gid user/group/ ./name`, as stat prints it; the mode in hex.
pub fn read_far_file(record: &[u8]) -> Option<(Vec<u8>, FarFile)> {
    let mut words = record.splitn(6, |&byte| byte == b' ');
    let mut word = || std::str::from_utf8(words.next()?).ok();
    let mode = u32::from_str_radix(word()?, 16).ok()?;
    let size = word()?.parse().ok()?;
    let (mtime, nanoseconds) = read_time(word()?)?;
    let (uid, gid) = (word()?.parse().ok()?, word()?.parse().ok()?);
    let (user, group, name) = read_names(words.next()?)?;
    Some((name, FarFile { mode, size, mtime, nanoseconds, uid, gid, user, group }))
}

/// Reads `user/group/ ./name`: there is a slash in no name of a user or group, but there
/// may be spaces. The path is relative, and empty for the source itself.
pub fn read_names(text: &[u8]) -> Option<(String, String, Vec<u8>)> {
    let mut parts = text.splitn(3, |&byte| byte == b'/');
    let mut name = || Some(String::from_utf8_lossy(parts.next()?).into_owned());
    let (user, group) = (name()?, name()?);
    let path = parts.next()?.strip_prefix(b" ")?;
    let path = if path == b"." { b"" } else { path.strip_prefix(b"./").unwrap_or(path) };
    Some((user, group, path.to_vec()))
}

/// Reads seconds since 1970 as stat and touch write them: a decimal number, with a minus
/// before all of it. Seconds are rounded down, as the system calls have them; no
/// nanoseconds are given without nine digits for them.
pub fn read_time(text: &str) -> Option<(i64, Option<u32>)> {
    let (seconds, fraction) = text.split_once('.').map_or((text, None), |(s, f)| (s, Some(f)));
    let whole: i64 = seconds.parse().ok()?;
    let nanoseconds = fraction.filter(|digits| digits.len() == 9).and_then(|digits| digits.parse().ok());
    match nanoseconds {
        Some(above @ 1..) if text.starts_with('-') => {
            Some((whole.checked_sub(1)?, Some(1_000_000_000 - above)))
        }
        other => Some((whole, other)),
    }
}

/// Writes seconds since 1970 in the form that [`read_time`] reads.
pub fn format_time(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (..0, 1..) => format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds),
        _ => format!("{seconds}.{nanoseconds:09}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_their_way_through_text() {
        for time in [(0, 0), (-1, 999_999_999), (-1, 0), (-2, 1), (10, 1), (1_700_000_000, 999_999_999)] {
            let (seconds, nanoseconds) = time;
            assert_eq!(read_time(&format_time(seconds, nanoseconds)), Some((seconds, Some(nanoseconds))));
        }
        assert_eq!(format_time(-1, 999_999_999), "-0.000000001");
        assert_eq!(read_time("-5"), Some((-5, None)));
        assert_eq!(read_time("7.5"), Some((7, None)));
        assert_eq!(read_time("x"), None);
    }

    #[test]
    fn words_hold_nothing_that_a_shell_takes_apart() {
        assert_eq!(encode(b"./a b'c\n\xff"), b"./a\\0040b\\0047c\\0012\\0377");
        assert_eq!(command_line(&[b"dir", b"./x"]), b"dir ./x\n");
    }

    #[test]
    fn a_name_with_line_ends_is_one_record() {
        let mut record = RecordLines::default();
        assert_eq!(record.add(b"81a4 5 7.000000001 0 0 domain users/a b/ ./a", "h").unwrap(), None);
        let found = record.add(b"b//", "h").unwrap().and_then(|record| read_far_file(&record));
        let (name, far) = found.expect("a record");
        assert_eq!((name.as_slice(), far.size, far.nanoseconds), (&b"a\nb"[..], 5, Some(1)));
        assert_eq!((far.user.as_str(), far.group.as_str()), ("domain users", "a b"));
        assert!(record.is_empty());
        assert_eq!(record.add(b"//", "h").unwrap(), None);
    }
}
