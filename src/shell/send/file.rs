//! One regular file or device for the shell: left out where size and time agree,
//! compared by its blocks where that is asked for and possible, described by records
//! otherwise.

use std::io;

use super::SendJob;
use crate::apply::shortage;
use crate::error::{Error, Result, Stop, Warning, code, printable};
use crate::in_use;
use crate::options::Commit;
use crate::report::{Event, Outcome, Phase};
use crate::scan::{Content, FileImage};
use crate::shell::compare::{self, KeptBlocks};
use crate::shell::pieces::{self, Cutter, DIG, Piece, RecordMerger, SHORT_HOLE, STOP};
use crate::shell::receiver::FarRootKind;
use crate::shell::refusal::Refusal;
use crate::shell::{FarFile, relative};
use crate::source::{self, Kind, Metadata, OpenSource, Source};
use crate::stream::Record;

/// Progress is told after so many bytes.
const PART: usize = 256 << 10;

/// How an attempt to send a file ended.
enum Attempt {
    /// The other end has what it needs, or has refused the file.
    Done,
    /// The source changed while it was read.
    Changed,
}

/// How the records of a file ended.
enum RecordsEnd {
    Complete,
    /// The other end has answered why it does not want the file.
    Refused,
    Unreadable(io::Error),
}

impl SendJob<'_> {
    pub(super) fn send_file(&mut self, source: Source) -> Result<()> {
        let Kind::File { length, allocated, .. } = source.kind else { return Ok(()) };
        let far = self.far_files.get(&source.target);
        if self.options.dry_run && far.is_some_and(FarFile::is_directory) && self.is_full(&source.target) {
            let why = "there is a directory where a file must go; remove it first";
            self.pending.fail_far(&source.target, Refusal::Because(why.into()));
            return Ok(());
        }
        let far = far.filter(|far| far.is_file()).cloned();
        if let Some(far) = &far
            && self.is_unchanged(far, length, &source.metadata)
        {
            self.pending.stats.data_bytes = self.pending.stats.data_bytes.saturating_add(allocated);
            self.reporter.event(Event::Done(Phase::Mapping, allocated));
            return self.skip_content(&source, far);
        }
        self.warn_if_not_comparable(far.as_ref(), &source);
        self.send_content(&source, far.as_ref()).or_else(|error| self.source_failed(error))
    }

    /// Whether a directory at the other end stays where something else is to be.
    fn is_full(&self, target: &[u8]) -> bool {
        let below = [target, b"/"].concat();
        self.root.kind == FarRootKind::Name || self.far_files.keys().any(|path| path.starts_with(&below))
    }

    /// Sends the content of a file, once more if it changes meanwhile.
    fn send_content(&mut self, source: &Source, far: Option<&FarFile>) -> Result<()> {
        if let Attempt::Done = self.try_content(source, far)? {
            return Ok(());
        }
        let mut source = source.look_again(self.options)?;
        if let Kind::File { retry, .. } = &mut source.kind {
            *retry = true;
        }
        match self.try_content(&source, far)? {
            Attempt::Done => Ok(()),
            Attempt::Changed => {
                let why = "kept changing while it was read; send a snapshot";
                self.pending.fail(Error::refused(&source.path, why).to_failure());
                Ok(())
            }
        }
    }

    /// Counts a source that fails; any other error ends the run.
    fn source_failed(&mut self, error: Error) -> Result<()> {
        if !matches!(error, Error::File { .. } | Error::Refused { .. }) {
            return Err(error);
        }
        let failure = source::lost(&error);
        if failure.code == code::VANISHED {
            self.pending.stats.files_vanished += 1;
        }
        self.pending.fail(failure);
        Ok(())
    }

    fn is_unchanged(&self, far: &FarFile, length: u64, metadata: &Metadata) -> bool {
        let options = self.options;
        let same_time = options.times && far.has_time(metadata, options, self.root.times);
        far.size == length && !self.wants_comparison() && (options.size_only || same_time)
    }

    /// Sets the attributes of a file whose content is right, where they are not.
    fn skip_content(&mut self, source: &Source, far: &FarFile) -> Result<()> {
        self.pending.report(&source.target, Outcome::Unchanged);
        if self.options.dry_run || self.has_attributes(far, &source.metadata) {
            return Ok(());
        }
        self.set_attributes(source)
    }

    fn wants_comparison(&self) -> bool {
        self.options.checksum || self.options.ignore_times
    }

    /// Whether contents are to be compared, and there is something to compare with.
    fn has_basis(&self, far: Option<&FarFile>) -> bool {
        self.wants_comparison() && !self.options.whole_file && far.is_some()
    }

    /// Whether the contents of both ends are compared.
    fn compares(&self, far: Option<&FarFile>) -> bool {
        self.has_basis(far) && self.root.can_hash
    }

    fn warn_if_not_comparable(&self, far: Option<&FarFile>, source: &Source) {
        if self.has_basis(far) && !self.root.can_hash {
            let (host, path) = (self.host, printable(&source.path));
            let what = format!("sha256sum on {host} is missing: {path} is sent whole, not compared");
            self.reporter.event(Event::Warning(&Warning::about(&source.path, what)));
        }
    }

    fn try_content(&mut self, source: &Source, far: Option<&FarFile>) -> Result<Attempt> {
        let Kind::File { length, retry, .. } = source.kind else { return Ok(Attempt::Done) };
        let Some(opened) = source.open(self.options)? else { return Ok(Attempt::Changed) };
        self.refuse_unfit(source, &opened)?;
        if !retry && let Some(warning) = in_use::warning(opened.image.file(), &source.path) {
            self.reporter.event(Event::Warning(&warning));
        }
        let timeless;
        let source = if opened.settled {
            source
        } else {
            self.reporter.event(Event::Warning(&source::doubt(&source.path)));
            timeless = source.without_time();
            &timeless
        };
        let image = &opened.image;
        let mut kept = KeptBlocks::default();
        if self.compares(far) {
            let blocks = compare::candidates(image, length).map_err(Error::file("read", &source.path))?;
            kept = self.compare(source, image, length, &blocks)?;
            let resized = far.is_none_or(|far| far.size != length);
            let is_same = !resized && kept.is_everything(length);
            if is_same && !opened.is_unchanged() {
                return Ok(Attempt::Changed);
            }
            if is_same {
                self.count(kept.bytes(length), 0);
                self.pending.report(&source.target, Outcome::Unchanged);
                let attributes = if self.options.dry_run { Ok(()) } else { self.set_attributes(source) };
                return attributes.map(|()| Attempt::Done);
            }
        }
        if self.options.dry_run {
            return self.foretell(source, image, length, &kept, far);
        }
        let described = self.describe(source, image, length, &kept, far)?;
        self.end_description(source, length, described, opened.is_unchanged())
    }

    /// Whether a device is written, for all that the other end tells, and not with what is there
    /// on purpose.
    fn needs_fitting(&self, source: &Source) -> bool {
        let far = self.far_files.get(&source.target);
        !self.options.as_is && (self.root.is_device || far.is_some_and(FarFile::is_device))
    }

    /// Refuses what does not belong onto a device, where one is written, as far as the other end
    /// can tell.
    fn refuse_unfit(&self, source: &Source, opened: &OpenSource) -> Result<()> {
        if !self.needs_fitting(source) {
            return Ok(());
        }
        let content = Content::read(&opened.image, opened.state.length);
        match content.map_err(Error::file("read", &source.path))? {
            Some(content) => Err(content.refuse(&source.path, true)),
            None => Ok(()),
        }
    }

    /// Ends the records of a file, as its description went. `same`: the source did not
    /// change while it was read.
    fn end_description(
        &mut self,
        source: &Source,
        length: u64,
        described: RecordsEnd,
        same: bool,
    ) -> Result<Attempt> {
        match described {
            RecordsEnd::Refused => {}
            RecordsEnd::Complete if same => {
                self.pending.shell.write(Record::End(length).to_string().as_bytes())?;
            }
            RecordsEnd::Complete | RecordsEnd::Unreadable(_) => {
                self.pending.shell.write(STOP)?;
                self.pending.set_last_stopped();
            }
        }
        match described {
            RecordsEnd::Unreadable(error) => Err(Error::file("read", &source.path)(error)),
            RecordsEnd::Complete if !same => Ok(Attempt::Changed),
            RecordsEnd::Complete | RecordsEnd::Refused => self.pending.shell.flush().map(|()| Attempt::Done),
        }
    }

    /// Warns of a file for which there will be no room, as far as was told at the start and is
    /// known of what was sent since.
    fn warn_of_shortage(&mut self, source: &Source, far: Option<&FarFile>) {
        let Kind::File { length, allocated, retry, .. } = source.kind else { return };
        let is_device =
            self.root.is_device || self.far_files.get(&source.target).is_some_and(FarFile::is_device);
        let Some(free) = self.root.free.as_mut().filter(|_| !retry && !is_device) else { return };
        let new = if self.options.preallocate { length } else { allocated };
        let old = far.map_or(0, |far| far.size);
        let needed = if self.options.commit == Commit::InPlace { new.saturating_sub(old) } else { new };
        if let Some(shortage) = shortage(&self.pending.path_of(&source.target), needed, || Some(*free)) {
            self.reporter.event(Event::Warning(&shortage.on(self.host)));
        }
        *free = free.saturating_add(old).saturating_sub(new);
    }

    /// Which blocks both ends have.
    fn compare(
        &mut self,
        source: &Source,
        image: &FileImage,
        length: u64,
        blocks: &[std::ops::Range<u64>],
    ) -> Result<KeptBlocks> {
        // Hashes are the next that is answered.
        self.pending.wait_for_all()?;
        let kept = compare::compare(&mut self.pending.shell, &source.target, image, length, blocks)
            .map_err(|stop| stop.or_read(Error::file("read", &source.path)))?;
        let bytes = compare::bytes_in(blocks, length);
        self.pending.stats.hashed_bytes += bytes;
        self.pending.stats.basis_hashed_bytes += bytes;
        Ok(kept)
    }

    /// Counts the data of a file that is described to its end.
    fn count(&mut self, matched: u64, sent: u64) {
        let stats = &mut self.pending.stats;
        stats.matched_bytes += matched;
        stats.data_bytes = stats.data_bytes.saturating_add(matched + sent);
        stats.sent_data_bytes += sent;
        stats.written_bytes += sent;
    }

    /// What makes records of an image.
    fn cutter(&self, far: Option<&FarFile>) -> Cutter {
        let in_place = self.options.commit == Commit::InPlace && far.is_some();
        let fills = self.options.preallocate || self.root.can_dig_holes && !self.root.has_bulk_writer;
        Cutter::new(in_place, if fills { SHORT_HOLE } else { 0 })
    }

    /// Counts and reports what would be sent of a file.
    fn foretell(
        &mut self,
        source: &Source,
        image: &FileImage,
        length: u64,
        kept: &KeptBlocks,
        far: Option<&FarFile>,
    ) -> Result<Attempt> {
        let (mut sent, mut matched) = (0, 0);
        let cut = self.cutter(far).cut(image, length, kept, |piece| {
            match piece {
                Piece::Data(data) => sent += data.len() as u64,
                Piece::Keep(len) => matched += len,
                Piece::Hole(_) => {}
            }
            Ok(true)
        });
        cut.map_err(|stop| stop.or_read(Error::file("read", &source.path)))?;
        self.count(matched, sent);
        self.pending.stats.files_sent += 1;
        self.pending.report(&source.target, Outcome::Sent(sent));
        Ok(Attempt::Done)
    }

    /// Sends the command for a file, and its records but for the last.
    fn describe(
        &mut self,
        source: &Source,
        image: &FileImage,
        length: u64,
        kept: &KeptBlocks,
        far: Option<&FarFile>,
    ) -> Result<RecordsEnd> {
        self.mark_parent_changed(&source.target);
        self.warn_of_shortage(source, far);
        self.send_file_command(source, image, length, far)?;
        let mut cutter = self.cutter(far);
        let mut merger = RecordMerger::default();
        let (mut sent, mut matched) = (0, 0);
        let cut = cutter.cut(image, length, kept, |piece| {
            self.pending.shell.write(merger.add(&piece).as_bytes())?;
            match piece {
                Piece::Data(data) => {
                    for part in data.chunks(PART) {
                        self.pending.shell.write(part)?;
                        self.reporter.event(Event::Done(Phase::Sending, part.len() as u64));
                    }
                    sent += data.len() as u64;
                }
                Piece::Keep(len) => matched += len,
                Piece::Hole(_) => {}
            }
            self.pending.last_is_live()
        });
        match cut {
            Ok(true) => {
                self.pending.shell.write(merger.flush().as_bytes())?;
                // A few more zeros are not worth reading the file again there.
                if cutter.filled > sent / 100 && !self.options.preallocate {
                    self.pending.shell.write(DIG)?;
                }
                self.pending.set_last_sent(sent);
                self.count(matched, sent);
                Ok(RecordsEnd::Complete)
            }
            Ok(false) => {
                self.pending.shell.write(STOP)?;
                Ok(RecordsEnd::Refused)
            }
            Err(Stop::Read(error)) => Ok(RecordsEnd::Unreadable(error)),
            Err(Stop::Taken(error)) => Err(error),
        }
    }

    fn send_file_command(
        &mut self,
        source: &Source,
        image: &FileImage,
        length: u64,
        far: Option<&FarFile>,
    ) -> Result<()> {
        let how: &[u8] = if self.options.commit == Commit::InPlace { b"inplace" } else { b"fresh" };
        let sync: &[u8] = if self.options.fsync { b"sync" } else { b"nosync" };
        let zeros: &[u8] = match (self.options.preallocate, pieces::is_dense(image, length)) {
            (true, _) => b"allocated",
            (false, true) => b"dense",
            (false, false) => b"hole",
        };
        let (size, words) =
            (length.to_string(), self.root.attributes(&source.metadata, false, far, self.options));
        let (temp, path) = (self.temp_names.of(&source.target), relative(&source.target));
        let mut command: Vec<&[u8]> = vec![b"file", how, sync, zeros, size.as_bytes()];
        command.extend(words.iter().map(|word| word.as_bytes()));
        command.extend([temp.as_slice(), path.as_slice()]);
        self.pending.send_file(&command, &source.target)
    }
}
