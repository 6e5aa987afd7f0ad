//! Writes into a destination what a comparison found, from the bytes that were compared.

use std::ops::Range;
use std::path::Path;

use crate::apply::Sink;
use crate::error::{Error, Result};
use crate::hashmap::compare::{BlockDiff, Hashing, OldContent, ReadError, Stretch, compare};
use crate::hashmap::{Grid, Hash, MapRecord, Maps, Recorder, page_runs};
use crate::report::{Event, Phase};
use crate::scan::Image;
use crate::sync::local::LocalCopy;
use crate::sync::local::file::FileError;

/// What a comparison came to.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Bytes of data in blocks that differ.
    pub sent: u64,
    /// Bytes of data that stay where they are.
    pub kept: u64,
}

/// Why an update ended early.
pub(super) enum UpdateError {
    /// One of the two files could not be read.
    Read(ReadError),
    /// The destination could not be written.
    Write(Error),
}

impl From<ReadError> for UpdateError {
    fn from(error: ReadError) -> UpdateError {
        UpdateError::Read(error)
    }
}

impl From<Error> for UpdateError {
    fn from(error: Error) -> UpdateError {
        UpdateError::Write(error)
    }
}

impl UpdateError {
    /// With the names of the files.
    pub fn named(self, source: &Path, destination: &Path) -> FileError {
        match self {
            UpdateError::Read(ReadError::New(error)) => FileError::Source(Error::file("read", source)(error)),
            UpdateError::Read(ReadError::Old(error)) => {
                FileError::Destination(Error::file("read the old", destination)(error))
            }
            UpdateError::Write(error) => FileError::Destination(error),
        }
    }
}

/// A file that is being held against its source.
pub(super) struct Update<'a> {
    copy: &'a LocalCopy<'a>,
    destination: &'a mut Sink,
    grid: Grid,
    hashing: Hashing,
    root: Recorder,
    counts: Compared,
}

impl<'a> Update<'a> {
    /// For a source of this length; `saved`: what its map goes to.
    pub fn new(
        copy: &'a LocalCopy<'a>,
        destination: &'a mut Sink,
        length: u64,
        (hashing, saved): (Hashing, Option<MapRecord>),
    ) -> Update<'a> {
        let grid = Grid { length, block: copy.options.block_size };
        let root = Recorder::new(&grid, Maps { kept: None, saved });
        let counts = Compared::default();
        Update { copy, destination, grid, hashing, root, counts }
    }

    /// Compares source and old content, but for blocks that are the `same`, and writes what differs.
    pub fn run(
        &mut self,
        source: &dyn Image,
        old: OldContent,
        same: &[Range<u64>],
    ) -> Result<(), UpdateError> {
        let (grid, hashing) = (self.grid, self.hashing);
        let is_unknown = matches!(old, OldContent::Unknown);
        compare(source, old, &grid, hashing, same, |stretch| Ok(self.stretch(&stretch, is_unknown)?))
    }

    /// Everything is compared: the root hash of the source, if it was wanted, and its map, if that is
    /// saved.
    pub fn end(self) -> (Hash, Compared, Option<MapRecord>) {
        let (root, maps) = self.root.finish();
        (root, self.counts, maps.saved)
    }

    fn stretch(&mut self, stretch: &Stretch, is_unknown: bool) -> Result<()> {
        self.count(stretch);
        let mut at = stretch.range.start;
        for block in &stretch.blocks {
            if block.data != 0 && self.hashing == Hashing::Wanted {
                self.root.add(block.index, block.data, &block.hash);
            }
            if is_unknown {
                self.zero(self.grid.bytes(&(at..block.index)))?;
                at = block.index + 1;
            }
            let Update { destination, grid, .. } = self;
            let ranges = |mask| page_runs(mask).map(|run| grid.pages(block.index, &run));
            ranges(block.zero).try_for_each(|range| destination.zero(range))?;
            ranges(block.free).try_for_each(|range| destination.free(range))?;
            ranges(block.data & !block.new).try_for_each(|range| destination.keep_range(range))?;
        }
        if is_unknown {
            self.zero(self.grid.bytes(&(at..stretch.range.end)))?;
        }
        self.write(stretch)
    }

    fn count(&mut self, stretch: &Stretch) {
        let (mut same, mut differing) = (0, 0);
        let (mut matched, mut sent, mut believed) = (0, 0, 0);
        for block in &stretch.blocks {
            let bytes = |mask| self.grid.masked_bytes(block.index, mask);
            if block.differs() {
                (differing, sent) = (differing + bytes(block.read), sent + bytes(block.data));
            } else {
                (same, matched) = (same + bytes(block.read), matched + bytes(block.data));
            }
            believed += if block.is_known { bytes(block.data) } else { 0 };
            self.counts.kept += bytes(block.data & !block.new);
        }
        self.counts.sent += sent;
        let mut stats = self.copy.stats();
        stats.data_bytes += same + differing;
        stats.matched_bytes += matched;
        stats.believed_bytes += believed;
        stats.sent_data_bytes += sent;
        if self.hashing == Hashing::Wanted {
            stats.hashed_bytes += same + differing;
        }
        drop(stats);
        for (phase, bytes) in [(Phase::Mapping, same), (Phase::Sending, differing)] {
            if bytes > 0 {
                self.copy.reporter.event(Event::Done(phase, bytes));
            }
        }
    }

    /// Writes the new pages of a stretch; what adjoins in the file is written at once.
    fn write(&mut self, stretch: &Stretch) -> Result<()> {
        let mut bytes = stretch.bytes.as_slice();
        let mut pending = 0..0;
        for range in stretch.blocks.iter().flat_map(|block| new_ranges(&self.grid, block)) {
            if pending.end == range.start {
                pending.end = range.end;
                continue;
            }
            write_next(self.destination, &mut bytes, &pending)?;
            pending = range;
        }
        write_next(self.destination, &mut bytes, &pending)?;
        if !self.destination.is_preview() {
            self.copy.pace.wrote(stretch.bytes.len());
        }
        Ok(())
    }

    /// Makes what is in a range zeros.
    fn zero(&mut self, range: Range<u64>) -> Result<()> {
        self.destination.zero(range)
    }
}

/// Where the new pages of a block lie in the file.
fn new_ranges<'a>(grid: &'a Grid, block: &'a BlockDiff) -> impl Iterator<Item = Range<u64>> + 'a {
    page_runs(block.new).map(move |run| grid.pages(block.index, &run))
}

/// Puts the next bytes into a range.
fn write_next(destination: &mut Sink, bytes: &mut &[u8], range: &Range<u64>) -> Result<()> {
    let (now, later) = bytes.split_at((range.end - range.start) as usize);
    *bytes = later;
    if now.is_empty() { Ok(()) } else { destination.write(range, now) }
}
