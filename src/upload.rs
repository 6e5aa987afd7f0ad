//! The sending role towards a shell: everything below the sources as commands
//! and records for `receiver.sh`. Files whose size and time agree are skipped;
//! contents are compared only if that is asked for, by what hashes files there.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::base::Target;
use crate::error::{Error, Failure, Result, code, printable};
use crate::ladder::{Input, Output};
use crate::options::{Commit, Options};
use crate::place::Working;
use crate::protocol::{Kind, Metadata};
use crate::receiving_shell::{Base, BaseKind, Shell};
use crate::records::{self, Cutter, Kept, Piece, Run};
use crate::report::{Event, Outcome, Phase, Reporter, Stats};
use crate::scan::{FileImage, Image, Seen};
use crate::shell::{self, Answer, There, Times, below};
use crate::stream::Record;
use crate::tree::{self, Found, Source};

/// Names that are looked at one by one; beyond, all that is there.
const MAX_ROOTS: usize = 1000;

const TYPE: u32 = libc::S_IFMT;

/// Sends everything below `sources` to `target` at the other end.
///
/// # Errors
///
/// What ends the run; files that fail are counted in what is returned.
pub fn run(
    input: Input,
    output: Output,
    sources: &[PathBuf],
    target: &Target,
    options: &Options,
    host: &str,
    reporter: &dyn Reporter,
) -> Result<Stats> {
    shell::refuse_what_needs_an_agent(options, host)?;
    let mut shell = Shell::begin(input, output, host)?;
    let path = target.path.as_os_str().as_bytes();
    let single = tree::is_single(sources) && !target.directory;
    let base = shell.base(path, single, options.dry_run)?;
    let rename = (base.kind == BaseKind::Name).then(|| target.path.file_name()).flatten();
    let rename = rename.map(|name| name.as_bytes().to_vec());
    if options.times && base.times == Times::No {
        let what = format!("touch on {host} cannot set times: the next run will send everything again");
        reporter.event(Event::Warning(&what));
    }
    let mut upload = Upload {
        there: HashMap::new(),
        shell,
        base,
        options,
        host,
        root: &target.path,
        reporter,
        stats: Stats::default(),
        waiting: VecDeque::new(),
        directories: Vec::new(),
        touched: HashSet::new(),
        mark: mark(),
    };
    upload.look(sources, rename.as_deref())?;
    for found in tree::walk(sources, options) {
        match found {
            Found::Failed(failure) => upload.fail(failure),
            Found::Skipped(what) => reporter.event(Event::Warning(&what)),
            Found::Source(mut source) => {
                if let Some(name) = &rename {
                    source.target.clone_from(name);
                }
                upload.source(source)?;
            }
        }
    }
    upload.finish()
}

/// What tells the temp files of this run from those of others.
fn mark() -> String {
    use std::hash::{BuildHasher, Hasher};
    format!("{:016x}", std::hash::RandomState::new().build_hasher().finish())
}

/// One run.
struct Upload<'a> {
    shell: Shell,
    base: Base,
    /// What is there, by its path below the base.
    there: HashMap<Vec<u8>, There>,
    options: &'a Options,
    host: &'a str,
    /// The destination as the user wrote it.
    root: &'a Path,
    reporter: &'a dyn Reporter,
    stats: Stats,
    /// What was asked for and not yet answered.
    waiting: VecDeque<Waiting>,
    /// Those to be given their attributes when everything is in them.
    directories: Vec<Source>,
    /// Directories in which something was made.
    touched: HashSet<Vec<u8>>,
    mark: String,
}

struct Waiting {
    path: Vec<u8>,
    /// A file of which so much was sent.
    sent: Option<u64>,
    /// Its description was broken off here.
    stopped: bool,
}

/// The last record of a file that cannot be described to its end.
const STOP: &[u8] = b"STOP\n0\n";

impl Upload<'_> {
    /// Asks once for everything that may have to be compared.
    fn look(&mut self, sources: &[PathBuf], rename: Option<&[u8]>) -> Result<()> {
        if self.base.kind == BaseKind::Absent {
            return Ok(());
        }
        if !self.base.lists {
            let what = format!(
                "find and stat on {} cannot tell what is there: every file is sent, whether it changed or not",
                self.host
            );
            self.reporter.event(Event::Warning(&what));
            return Ok(());
        }
        let roots: Vec<Vec<u8>> = match rename {
            Some(name) => vec![name.to_vec()],
            None => sources.iter().flat_map(|source| tree::top_names(source)).take(MAX_ROOTS + 1).collect(),
        };
        let all: &[u8] = b"";
        self.there = match roots.len() {
            0 => HashMap::new(),
            1..=MAX_ROOTS => self.shell.list(roots.iter().map(Vec::as_slice))?,
            _ => self.shell.list(std::iter::once(all))?,
        };
        Ok(())
    }

    fn source(&mut self, source: Source) -> Result<()> {
        match &source.kind {
            Kind::File { length, allocated, .. } => {
                self.stats.files_total += 1;
                self.stats.apparent_bytes = self.stats.apparent_bytes.saturating_add(*length);
                self.reporter.event(Event::Found(*allocated));
                self.file(source)
            }
            _ if self.options.dry_run => Ok(()),
            Kind::Directory => {
                let is_there =
                    self.there.get(&source.target).is_some_and(|there| there.mode & TYPE == libc::S_IFDIR);
                if !is_there && !source.target.is_empty() {
                    self.touch_parent(&source.target);
                    self.touched.insert(source.target.clone());
                    self.ask(&[b"dir", &below(&source.target)], &source.target, None)?;
                }
                self.directories.push(source);
                Ok(())
            }
            Kind::Symlink(link) => {
                let is_link = |there: &&There| there.mode & TYPE == libc::S_IFLNK;
                let there = self.there.get(&source.target).filter(is_link);
                let same = there.is_some_and(|there| self.has_attributes(there, &source.metadata));
                let [_, mtime, user, uid, group, gid] = self.attribute_words(&source.metadata, None);
                self.touch_parent(&source.target);
                let (path, temp) = (below(&source.target), self.temp(&source.target));
                let mut command: Vec<&[u8]> = vec![b"link", if same { b"same" } else { b"set" }];
                command.extend([&mtime, &user, &uid, &group, &gid].map(|word| word.as_bytes()));
                command.extend([temp.as_slice(), &path, link]);
                self.ask(&command, &source.target, None)
            }
        }
    }

    fn file(&mut self, source: Source) -> Result<()> {
        let Kind::File { length, allocated, .. } = source.kind else { return Ok(()) };
        let there =
            self.there.get(&source.target).filter(|there| there.mode & TYPE == libc::S_IFREG).cloned();
        if let Some(there) = &there
            && self.is_unchanged(there, length, &source.metadata)
        {
            self.stats.data_bytes = self.stats.data_bytes.saturating_add(allocated);
            self.reporter.event(Event::Done(Phase::Mapping, allocated));
            return self.unchanged(&source, there);
        }
        self.say_what_cannot_be_compared(there.as_ref(), &source);
        if self.options.dry_run && !self.compares(there.as_ref()) {
            self.stats.files_sent += 1;
            self.stats.data_bytes = self.stats.data_bytes.saturating_add(allocated);
            self.report(&source.target, Outcome::Sent(allocated));
            return Ok(());
        }
        match self.send(&source, there.as_ref()) {
            Ok(true) => Ok(()),
            // It changed meanwhile: once more.
            Ok(false) => {
                match tree::look_again(&source).and_then(|source| self.send(&source, there.as_ref())) {
                    Ok(true) => Ok(()),
                    Ok(false) => {
                        let why = "kept changing while it was read; send a snapshot";
                        self.fail(Error::refused(&source.path, why).to_failure());
                        Ok(())
                    }
                    Err(error) => self.source_failed(error),
                }
            }
            Err(error) => self.source_failed(error),
        }
    }

    /// A source that fails is counted; anything else ends the run.
    fn source_failed(&mut self, error: Error) -> Result<()> {
        if !matches!(error, Error::File { .. } | Error::Refused { .. }) {
            return Err(error);
        }
        let failure = tree::lost(&error);
        if failure.code == code::VANISHED {
            self.stats.files_vanished += 1;
        }
        self.fail(failure);
        Ok(())
    }

    fn is_unchanged(&self, there: &There, length: u64, metadata: &Metadata) -> bool {
        let options = self.options;
        let compare = options.checksum || options.ignore_times;
        let same_time = options.times && there.has_time(metadata, self.base.times);
        there.size == length && !compare && (options.size_only || same_time)
    }

    /// Content is right; the rest may not be.
    fn unchanged(&mut self, source: &Source, there: &There) -> Result<()> {
        self.report(&source.target, Outcome::Unchanged);
        if self.options.dry_run || self.has_attributes(there, &source.metadata) {
            return Ok(());
        }
        self.attributes(source)
    }

    fn has_attributes(&self, there: &There, metadata: &Metadata) -> bool {
        there.has_attributes(metadata, self.options, self.base.times)
    }

    fn attributes(&mut self, source: &Source) -> Result<()> {
        let words = self.attribute_words(&source.metadata, None);
        let path = below(&source.target);
        let mut command: Vec<&[u8]> = vec![b"attr"];
        command.extend(words.iter().map(|word| word.as_bytes()));
        command.push(&path);
        self.ask(&command, &source.target, None)
    }

    /// Whether the contents of both ends are compared.
    fn compares(&self, there: Option<&There>) -> bool {
        let asked = self.options.checksum || self.options.ignore_times;
        asked && !self.options.whole_file && there.is_some() && self.base.sums
    }

    /// Sends one file. `false`: it changed while it was read.
    fn send(&mut self, source: &Source, there: Option<&There>) -> Result<bool> {
        let Kind::File { length, .. } = source.kind else { return Ok(true) };
        let (file, _) = tree::open_image(&source.path)?;
        let before = Seen::of(&file).map_err(Error::file("look at", &source.path))?;
        if before.length != length {
            return Ok(false);
        }
        let image = FileImage::new(file, self.options.hole_map);
        let mut kept = Kept::default();
        if self.compares(there) {
            let read = Error::file("read", &source.path);
            let blocks = records::candidates(&image, length).map_err(read)?;
            kept = self.compare(source, &image, length, &blocks)?;
            let resized = there.is_none_or(|there| there.size != length);
            let is_same = !resized && kept.is_everything(length);
            if is_same || self.options.dry_run {
                let differing = records::bytes_in(&blocks, length) - kept.bytes(length);
                self.count(kept.bytes(length), differing);
                return self.compared(source, (!is_same).then_some(differing));
            }
        }
        let described = self.describe(source, &image, length, &kept, there)?;
        let same = Seen::of(image.file()).map_err(Error::file("look at", &source.path))? == before;
        match described {
            Described::Refused => {}
            Described::Whole if same => self.shell.write(Record::End(length).to_string().as_bytes())?,
            Described::Whole | Described::Unreadable(_) => {
                self.shell.write(STOP)?;
                // There will be an answer, and it is no news.
                self.waiting.back_mut().into_iter().for_each(|last| last.stopped = true);
            }
        }
        match described {
            Described::Unreadable(error) => Err(Error::file("read", &source.path)(error)),
            Described::Whole if !same => Ok(false),
            Described::Whole | Described::Refused => self.shell.flush().map(|()| true),
        }
    }

    fn say_what_cannot_be_compared(&self, there: Option<&There>, source: &Source) {
        if self.options.checksum && !self.options.whole_file && there.is_some() && !self.base.sums {
            let (host, path) = (self.host, printable(&source.path));
            let what = format!("sha256sum on {host} is missing: {path} is sent whole, not compared");
            self.reporter.event(Event::Warning(&what));
        }
    }

    /// Which blocks both ends have.
    fn compare(
        &mut self,
        source: &Source,
        image: &FileImage,
        length: u64,
        blocks: &[Range<u64>],
    ) -> Result<Kept> {
        // What comes next are sums.
        while !self.waiting.is_empty() {
            let answer = self.shell.answer()?;
            self.take(answer);
        }
        self.shell.ask_sums(&source.target, blocks)?;
        let ours = records::sums(image, length, blocks);
        let theirs = self.shell.sums()?;
        let ours = ours.map_err(Error::file("read", &source.path))?;
        let bytes = records::bytes_in(blocks, length);
        self.stats.hashed_bytes += bytes;
        self.stats.basis_hashed_bytes += bytes;
        Ok(Kept::new(blocks, &ours, &theirs))
    }

    /// What a comparison came to where nothing is sent for it.
    fn compared(&mut self, source: &Source, would_send: Option<u64>) -> Result<bool> {
        self.stats.files_sent += u64::from(would_send.is_some());
        self.report(&source.target, would_send.map_or(Outcome::Unchanged, Outcome::Sent));
        if !self.options.dry_run {
            self.attributes(source)?;
        }
        Ok(true)
    }

    fn count(&mut self, matched: u64, sent: u64) {
        let stats = &mut self.stats;
        stats.matched_bytes += matched;
        stats.data_bytes = stats.data_bytes.saturating_add(matched + sent);
        if !self.options.dry_run {
            stats.sent_data_bytes += sent;
            stats.written_bytes += sent;
        }
        self.reporter.event(Event::Done(Phase::Sending, matched + sent));
    }

    /// The command for a file, and its records but for the last.
    fn describe(
        &mut self,
        source: &Source,
        image: &FileImage,
        length: u64,
        kept: &Kept,
        there: Option<&There>,
    ) -> Result<Described> {
        self.touch_parent(&source.target);
        self.file_command(source, image, length, there)?;
        let in_place = self.options.commit == Commit::InPlace && there.is_some();
        let fills = self.options.preallocate || self.base.digs && !self.base.bulk;
        let mut cutter = Cutter::new(in_place, !fills);
        let mut run = Run::default();
        let mut sent = 0;
        let cut = cutter.cut(image, length, kept, |piece| {
            self.shell.write(run.add(&piece).as_bytes())?;
            match piece {
                Piece::Data(data) => {
                    self.shell.write(data)?;
                    sent += data.len() as u64;
                    self.count(0, data.len() as u64);
                }
                Piece::Keep(len) => self.count(len, 0),
                Piece::Hole(_) => {}
            }
            self.is_wanted()
        });
        match cut {
            Ok(true) => {
                self.shell.write(run.flush().as_bytes())?;
                // Few zeros more are not worth reading the file again there.
                if cutter.filled > sent / 100 && !self.options.preallocate {
                    self.shell.write(b"DIG\n0\n")?;
                }
                self.waiting.back_mut().into_iter().for_each(|last| last.sent = Some(sent));
                Ok(Described::Whole)
            }
            Ok(false) => {
                self.shell.write(STOP)?;
                Ok(Described::Refused)
            }
            Err(Cut::Source(error)) => Ok(Described::Unreadable(error)),
            Err(Cut::Run(error)) => Err(error),
        }
    }

    fn file_command(
        &mut self,
        source: &Source,
        image: &FileImage,
        length: u64,
        there: Option<&There>,
    ) -> Result<()> {
        let how: &[u8] = if self.options.commit == Commit::InPlace { b"inplace" } else { b"fresh" };
        let sync: &[u8] = if self.options.fsync { b"sync" } else { b"nosync" };
        let is_dense =
            image.extents(0..length).next().is_none_or(|first| first.is_ok_and(|e| e == (0..length)));
        let zeros: &[u8] = match (self.options.preallocate, is_dense) {
            (true, _) => b"allocated",
            (false, true) => b"dense",
            (false, false) => b"hole",
        };
        let (size, words) = (length.to_string(), self.attribute_words(&source.metadata, there));
        let (temp, path) = (self.temp(&source.target), below(&source.target));
        let mut command: Vec<&[u8]> = vec![b"file", how, sync, zeros, size.as_bytes()];
        command.extend(words.iter().map(|word| word.as_bytes()));
        command.extend([temp.as_slice(), path.as_slice()]);
        self.ask(&command, &source.target, Some(0))
    }

    /// Whether the other end still wants the file that is being described: it is
    /// the last that was asked for, and answered early only if it failed.
    fn is_wanted(&mut self) -> Result<bool, Cut> {
        self.take_what_came()?;
        Ok(!self.waiting.is_empty())
    }

    /// Mode, time, user and group (name, number) of something; `there` is what it replaces.
    fn attribute_words(&self, metadata: &Metadata, there: Option<&There>) -> [String; 6] {
        let none = || "-".to_string();
        let options = self.options;
        let in_place = options.commit == Commit::InPlace;
        let kept = there.filter(|_| !in_place);
        let mode = match (metadata.mode.filter(|_| options.perms), kept) {
            (Some(mode), _) => format!("{:o}", mode & 0o7777),
            (None, Some(there)) => format!("{:o}", there.mode & 0o7777),
            (None, None) if there.is_some() => none(),
            (None, None) => format!("{:o}", metadata.mode.unwrap_or(0o666) & 0o777 & !self.base.umask),
        };
        let owner = metadata.owner.as_ref();
        let kept = kept.filter(|_| self.base.is_root);
        let pair = |wanted: Option<(&String, u32)>, kept: Option<u32>| match (wanted, kept) {
            (Some((name, number)), _) => {
                [if name.is_empty() { none() } else { name.clone() }, number.to_string()]
            }
            (None, Some(number)) => [none(), number.to_string()],
            (None, None) => [none(), none()],
        };
        let user = owner.filter(|_| options.owner).map(|owner| (&owner.user, owner.uid));
        let group = owner.filter(|_| options.group).map(|owner| (&owner.group, owner.gid));
        let [user, uid] = pair(user, kept.map(|there| there.uid));
        let [group, gid] = pair(group, kept.map(|there| there.gid));
        [mode, self.mtime(metadata), user, uid, group, gid]
    }

    fn mtime(&self, metadata: &Metadata) -> String {
        match (metadata.mtime.filter(|_| self.options.times), self.base.times) {
            (Some((seconds, nanoseconds)), Times::Nanoseconds) => shell::stamp(seconds, nanoseconds),
            (Some((seconds @ ..0, _)), Times::Seconds) => {
                let what = format!("touch on {} cannot set a time before 1970 ({seconds})", self.host);
                self.reporter.event(Event::Warning(&what));
                "-".into()
            }
            (Some((seconds, _)), Times::Seconds) => seconds.to_string(),
            (Some(_), Times::No) | (None, _) => "-".into(),
        }
    }

    /// The temp file of something: its name is this run's alone.
    fn temp(&self, target: &[u8]) -> Vec<u8> {
        let path = Path::new(OsStr::from_bytes(target));
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".");
        name.push(&self.mark);
        below(path.with_file_name(Working::Temp.name_for(&name)).as_os_str().as_bytes())
    }

    fn touch_parent(&mut self, target: &[u8]) {
        let end = target.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        self.touched.insert(target[..end].to_vec());
    }

    /// Sends a command that is answered with how it went.
    fn ask(&mut self, command: &[&[u8]], path: &[u8], sent: Option<u64>) -> Result<()> {
        self.shell.command(command)?;
        self.waiting.push_back(Waiting { path: path.to_vec(), sent, stopped: false });
        self.take_what_came()
    }

    /// Takes note of the answers that have come already.
    fn take_what_came(&mut self) -> Result<()> {
        while !self.waiting.is_empty()
            && let Some(answer) = self.shell.answer_so_far()?
        {
            self.take(answer);
        }
        Ok(())
    }

    /// Takes note of the answer to what was asked for first.
    fn take(&mut self, answer: Answer) {
        let Some(Waiting { path, sent, stopped }) = self.waiting.pop_front() else { return };
        match (answer, sent) {
            (Ok(()), Some(sent)) => {
                self.stats.files_sent += 1;
                self.report(&path, Outcome::Sent(sent));
            }
            (Ok(()), None) => {}
            (Err(_), _) if stopped => {}
            (Err(why), _) => {
                let path = Path::new(OsStr::from_bytes(&path));
                let path =
                    if self.base.kind == BaseKind::Name { self.root.into() } else { self.root.join(path) };
                let message = format!("{}: {}: {why}", self.host, printable(&path));
                self.fail(Failure { code: code::PARTIAL, message });
            }
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.stats.count_failure(failure.code);
        self.reporter.event(Event::Failed(&failure));
    }

    fn report(&self, target: &[u8], outcome: Outcome) {
        self.reporter.event(Event::File(Path::new(OsStr::from_bytes(target)), outcome));
    }

    /// Directories get their attributes last: what is made in them changes their times.
    fn finish(mut self) -> Result<Stats> {
        for source in std::mem::take(&mut self.directories).into_iter().rev() {
            let there = self.there.get(&source.target);
            let same = there.is_some_and(|there| self.has_attributes(there, &source.metadata));
            if !same || self.touched.contains(&source.target) {
                self.attributes(&source)?;
            }
        }
        self.shell.flush()?;
        while !self.waiting.is_empty() {
            let answer = self.shell.answer()?;
            self.take(answer);
        }
        self.shell.end()?;
        Ok(self.stats)
    }
}

/// How the description of a file went.
enum Described {
    Whole,
    /// The other end has said why it does not want it.
    Refused,
    Unreadable(io::Error),
}

/// What ends a description.
enum Cut {
    Source(io::Error),
    Run(Error),
}

impl From<io::Error> for Cut {
    fn from(error: io::Error) -> Cut {
        Cut::Source(error)
    }
}

impl From<Error> for Cut {
    fn from(error: Error) -> Cut {
        Cut::Run(error)
    }
}
