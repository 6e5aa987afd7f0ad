//! The sending role towards a shell: everything below the sources as commands
//! and records for `receiver.sh`. Files whose size and time agree are skipped;
//! contents are compared only if that is asked for, by what hashes files there.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::apply::root::Target;
use crate::error::{Error, Result, code, printable};
use crate::options::{Commit, Options};
use crate::remote::bootstrap::{Input, Output};
use crate::report::{Event, Outcome, Phase, Reporter, Stats};
use crate::scan::{self, FileImage, FileState};
use crate::shell::pending::Asked;
use crate::shell::pieces::{self, CutError, Cutter, Kept, Piece, Run, SHORT};
use crate::shell::receiver::{Base, BaseKind, ReceivingShell};
use crate::shell::{self, TempNames, There, Times, below};
use crate::source::Kind;
use crate::source::Metadata;
use crate::source::{self, Found, Source};
use crate::stream::Record;
use crate::working::names_working_file;

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
    shell::refuse_what_needs_an_agent(options, host, reporter)?;
    let mut shell = ReceivingShell::begin(input, output, host)?;
    let path = target.path.as_os_str().as_bytes();
    let single = source::is_single(sources) && !target.directory;
    let base = shell.base(path, single, options.dry_run)?;
    let rename = (base.kind == BaseKind::Name).then(|| target.path.file_name()).flatten();
    let rename = rename.map(|name| name.as_bytes().to_vec());
    if options.times && base.times == Times::No {
        let what = format!("touch on {host} cannot set times: the next run will send everything again");
        reporter.event(Event::Warning(&what));
    }
    let mut upload = Upload {
        there: HashMap::new(),
        asked: Asked::new(shell, host, &target.path, rename.is_some(), reporter),
        base,
        options,
        host,
        reporter,
        directories: Vec::new(),
        touched: HashSet::new(),
        temps: TempNames::default(),
    };
    upload.look(sources, rename.as_deref())?;
    for found in source::walk(sources, options) {
        match found {
            Found::Failed(failure) => upload.asked.fail(failure),
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

/// One run.
struct Upload<'a> {
    asked: Asked<'a>,
    base: Base,
    /// What is there, by its path below the base.
    there: HashMap<Vec<u8>, There>,
    options: &'a Options,
    host: &'a str,
    reporter: &'a dyn Reporter,
    /// Those to be given their attributes when everything is in them.
    directories: Vec<Source>,
    /// Directories in which something was made.
    touched: HashSet<Vec<u8>>,
    temps: TempNames,
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
            None => sources.iter().flat_map(|source| source::top_names(source)).take(MAX_ROOTS + 1).collect(),
        };
        let all: &[u8] = b"";
        self.there = match roots.len() {
            0 => HashMap::new(),
            1..=MAX_ROOTS => self.asked.shell.list(roots.iter().map(Vec::as_slice))?,
            _ => self.asked.shell.list(std::iter::once(all))?,
        };
        Ok(())
    }

    fn source(&mut self, source: Source) -> Result<()> {
        if self.options.times && !self.base.can_set(source.metadata.mtime) {
            let what = format!("touch on {} cannot set the time of {}", self.host, printable(&source.path));
            self.reporter.event(Event::Warning(&what));
        }
        if names_working_file(&source.target) {
            let error = Error::refused(&source.path, "is named like a working file: give it another name");
            self.asked.fail(error.to_failure());
            return Ok(());
        }
        match &source.kind {
            Kind::File { length, allocated, .. } => {
                self.asked.stats.files_total += 1;
                self.asked.stats.apparent_bytes = self.asked.stats.apparent_bytes.saturating_add(*length);
                self.reporter.event(Event::Found(*allocated));
                self.file(source)
            }
            _ if self.options.dry_run => Ok(()),
            Kind::Directory => {
                // One that is there may have to be opened, to be filled.
                let is_open = |there: &There| {
                    there.mode & TYPE == libc::S_IFDIR && (self.base.is_root || there.mode & 0o700 == 0o700)
                };
                let is_ready = self.there.get(&source.target).is_some_and(is_open);
                if !is_ready && !source.target.is_empty() {
                    self.touch_parent(&source.target);
                    self.touched.insert(source.target.clone());
                    self.asked.ask(&[b"dir", &below(&source.target)], &source.target, None)?;
                }
                self.directories.push(source);
                Ok(())
            }
            Kind::Symlink(link) => {
                let is_link = |there: &&There| there.mode & TYPE == libc::S_IFLNK;
                let there = self.there.get(&source.target).filter(is_link);
                let same = there.is_some_and(|there| self.has_attributes(there, &source.metadata));
                let [_, mtime, user, uid, group, gid] =
                    self.base.attributes(&source.metadata, None, self.options);
                self.touch_parent(&source.target);
                let (path, temp) = (below(&source.target), self.temps.of(&source.target));
                let mut command: Vec<&[u8]> = vec![b"link", if same { b"same" } else { b"set" }];
                command.extend([&mtime, &user, &uid, &group, &gid].map(|word| word.as_bytes()));
                command.extend([temp.as_slice(), &path, link]);
                self.asked.ask(&command, &source.target, None)
            }
        }
    }

    fn file(&mut self, source: Source) -> Result<()> {
        let Kind::File { length, allocated, .. } = source.kind else { return Ok(()) };
        let there = self.there.get(&source.target);
        if self.options.dry_run && there.is_some_and(|there| there.mode & TYPE == libc::S_IFDIR) {
            self.asked
                .fail_there(&source.target, "there is a directory where a file must go; remove it first");
            return Ok(());
        }
        let there = there.filter(|there| there.mode & TYPE == libc::S_IFREG).cloned();
        if let Some(there) = &there
            && self.is_unchanged(there, length, &source.metadata)
        {
            self.asked.stats.data_bytes = self.asked.stats.data_bytes.saturating_add(allocated);
            self.reporter.event(Event::Done(Phase::Mapping, allocated));
            return self.unchanged(&source, there);
        }
        self.say_what_cannot_be_compared(there.as_ref(), &source);
        if self.options.dry_run && !self.compares(there.as_ref()) {
            self.asked.stats.files_sent += 1;
            self.count(0, allocated);
            self.asked.report(&source.target, Outcome::Sent(allocated));
            return Ok(());
        }
        match self.send(&source, there.as_ref()) {
            Ok(true) => Ok(()),
            // It changed meanwhile: once more.
            Ok(false) => {
                match source::look_again(&source).and_then(|source| self.send(&source, there.as_ref())) {
                    Ok(true) => Ok(()),
                    Ok(false) => {
                        let why = "kept changing while it was read; send a snapshot";
                        self.asked.fail(Error::refused(&source.path, why).to_failure());
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
        let failure = source::lost(&error);
        if failure.code == code::VANISHED {
            self.asked.stats.files_vanished += 1;
        }
        self.asked.fail(failure);
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
        self.asked.report(&source.target, Outcome::Unchanged);
        if self.options.dry_run || self.has_attributes(there, &source.metadata) {
            return Ok(());
        }
        self.attributes(source)
    }

    fn has_attributes(&self, there: &There, metadata: &Metadata) -> bool {
        there.has_attributes(metadata, self.options, self.base.times)
    }

    fn attributes(&mut self, source: &Source) -> Result<()> {
        let there = self.there.get(&source.target);
        let words = self.base.attributes(&source.metadata, there, self.options);
        let mut path = below(&source.target);
        if source.kind == Kind::Directory {
            // Then it is one, or nothing is done.
            path.extend(b"/.");
        }
        let mut command: Vec<&[u8]> = vec![b"attr"];
        command.extend(words.iter().map(|word| word.as_bytes()));
        command.push(&path);
        self.asked.ask(&command, &source.target, None)
    }

    /// Whether the contents of both ends are compared.
    fn compares(&self, there: Option<&There>) -> bool {
        let asked = self.options.checksum || self.options.ignore_times;
        asked && !self.options.whole_file && there.is_some() && self.base.sums
    }

    /// Sends one file. `false`: it changed while it was read.
    fn send(&mut self, source: &Source, there: Option<&There>) -> Result<bool> {
        let Kind::File { length, .. } = source.kind else { return Ok(true) };
        let (file, _) = scan::open_image(&source.path)?;
        let before = FileState::of(&file).map_err(Error::file("look at", &source.path))?;
        if before.length != length {
            return Ok(false);
        }
        let image = FileImage::new(file, self.options.hole_map);
        let mut kept = Kept::default();
        if self.compares(there) {
            let read = Error::file("read", &source.path);
            let blocks = pieces::candidates(&image, length).map_err(read)?;
            kept = self.compare(source, &image, length, &blocks)?;
            let resized = there.is_none_or(|there| there.size != length);
            let is_same = !resized && kept.is_everything(length);
            if is_same && !before.is_still(image.file()) {
                return Ok(false);
            }
            if is_same || self.options.dry_run {
                let differing = pieces::bytes_in(&blocks, length) - kept.bytes(length);
                self.count(kept.bytes(length), differing);
                return self.compared(source, (!is_same).then_some(differing));
            }
        }
        let described = self.describe(source, &image, length, &kept, there)?;
        let same = before.is_still(image.file());
        match described {
            Described::Refused => {}
            Described::Whole if same => self.asked.shell.write(Record::End(length).to_string().as_bytes())?,
            Described::Whole | Described::Unreadable(_) => {
                self.asked.shell.write(STOP)?;
                self.asked.last_is_stopped();
            }
        }
        match described {
            Described::Unreadable(error) => Err(Error::file("read", &source.path)(error)),
            Described::Whole if !same => Ok(false),
            Described::Whole | Described::Refused => self.asked.shell.flush().map(|()| true),
        }
    }

    fn say_what_cannot_be_compared(&self, there: Option<&There>, source: &Source) {
        let asked = self.options.checksum || self.options.ignore_times;
        if asked && !self.options.whole_file && there.is_some() && !self.base.sums {
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
        self.asked.settle()?;
        self.asked.shell.ask_sums(&source.target, blocks)?;
        let ours = pieces::sums(image, length, blocks);
        let count = blocks.iter().map(|run| (run.end - run.start) as usize).sum();
        let theirs = self.asked.shell.sums(count)?;
        let ours = ours.map_err(Error::file("read", &source.path))?;
        let bytes = pieces::bytes_in(blocks, length);
        self.asked.stats.hashed_bytes += bytes;
        self.asked.stats.basis_hashed_bytes += bytes;
        Ok(Kept::new(blocks, &ours, &theirs))
    }

    /// What a comparison came to where nothing is sent for it.
    fn compared(&mut self, source: &Source, would_send: Option<u64>) -> Result<bool> {
        self.asked.stats.files_sent += u64::from(would_send.is_some());
        self.asked.report(&source.target, would_send.map_or(Outcome::Unchanged, Outcome::Sent));
        if !self.options.dry_run {
            self.attributes(source)?;
        }
        Ok(true)
    }

    /// Counts the data of a file that is described to its end.
    fn count(&mut self, matched: u64, sent: u64) {
        let stats = &mut self.asked.stats;
        stats.matched_bytes += matched;
        stats.data_bytes = stats.data_bytes.saturating_add(matched + sent);
        stats.sent_data_bytes += sent;
        if !self.options.dry_run {
            stats.written_bytes += sent;
        }
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
        let mut cutter = Cutter::new(in_place, if fills { SHORT } else { 0 });
        let mut run = Run::default();
        let (mut sent, mut matched) = (0, 0);
        let cut = cutter.cut(image, length, kept, |piece| {
            self.asked.shell.write(run.add(&piece).as_bytes())?;
            match piece {
                Piece::Data(data) => {
                    self.asked.shell.write(data)?;
                    sent += data.len() as u64;
                    self.reporter.event(Event::Done(Phase::Sending, data.len() as u64));
                }
                Piece::Keep(len) => matched += len,
                Piece::Hole(_) => {}
            }
            self.asked.wants_the_last()
        });
        match cut {
            Ok(true) => {
                self.asked.shell.write(run.flush().as_bytes())?;
                // Few zeros more are not worth reading the file again there.
                if cutter.filled > sent / 100 && !self.options.preallocate {
                    self.asked.shell.write(b"DIG\n0\n")?;
                }
                self.asked.last_has(sent);
                self.count(matched, sent);
                Ok(Described::Whole)
            }
            Ok(false) => {
                self.asked.shell.write(STOP)?;
                Ok(Described::Refused)
            }
            Err(CutError::Source(error)) => Ok(Described::Unreadable(error)),
            Err(CutError::Taker(error)) => Err(error),
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
        let zeros: &[u8] = match (self.options.preallocate, pieces::is_dense(image, length)) {
            (true, _) => b"allocated",
            (false, true) => b"dense",
            (false, false) => b"hole",
        };
        let (size, words) = (length.to_string(), self.base.attributes(&source.metadata, there, self.options));
        let (temp, path) = (self.temps.of(&source.target), below(&source.target));
        let mut command: Vec<&[u8]> = vec![b"file", how, sync, zeros, size.as_bytes()];
        command.extend(words.iter().map(|word| word.as_bytes()));
        command.extend([temp.as_slice(), path.as_slice()]);
        self.asked.ask(&command, &source.target, Some(0))
    }

    fn touch_parent(&mut self, target: &[u8]) {
        let end = target.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        self.touched.insert(target[..end].to_vec());
    }

    /// Directories get their attributes last: what is made in them changes their times.
    fn finish(mut self) -> Result<Stats> {
        self.asked.settle()?;
        for source in std::mem::take(&mut self.directories).into_iter().rev() {
            if self.asked.failed.contains(&source.target) {
                continue;
            }
            let there = self.there.get(&source.target);
            let same = there.is_some_and(|there| self.has_attributes(there, &source.metadata));
            if !same || self.touched.contains(&source.target) {
                self.attributes(&source)?;
            }
        }
        self.asked.settle()?;
        self.asked.shell.end()?;
        Ok(self.asked.stats)
    }
}

/// How the description of a file went.
enum Described {
    Whole,
    /// The other end has said why it does not want it.
    Refused,
    Unreadable(io::Error),
}
