//! RangeKind ranges over an old file: what an interrupted run has, as an image that
//! can be compared.

use std::fs::File;
use std::io;
use std::ops::Range;

use crate::scan::{self, Extent, FileImage, Image};

/// What a logged range holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeKind {
    /// The bytes that the stage has there.
    Data,
    /// Zeros, where there may have been data.
    Zero,
    /// Zeros that were zeros before, and only take room.
    Free,
}

/// The ranges of a log, later ones over earlier ones, neighbours merged.
#[derive(Debug, Clone, Default)]
pub struct Runs(std::collections::BTreeMap<u64, (u64, RangeKind)>);

impl Runs {
    /// How many separate ranges there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (Range<u64>, RangeKind)> + '_ {
        self.0.iter().map(|(&start, &(end, new))| (start..end, new))
    }

    /// Puts a range over what was there.
    pub fn insert(&mut self, range: Range<u64>, new: RangeKind) {
        let (mut start, mut end) = (range.start, range.end);
        let touched: Vec<u64> = self
            .0
            .range(..=range.end)
            .rev()
            .take_while(|&(_, &(end, _))| end >= range.start)
            .map(|(&start, _)| start)
            .collect();
        for at in touched {
            let Some((old_end, old)) = self.0.remove(&at) else { continue };
            if old == new {
                (start, end) = (start.min(at), end.max(old_end));
                continue;
            }
            if at < range.start {
                self.0.insert(at, (range.start, old));
            }
            if old_end > range.end {
                self.0.insert(range.end, (old_end, old));
            }
        }
        self.0.insert(start, (end, new));
    }

    /// Bytes of new data.
    pub fn data_bytes(&self) -> u64 {
        self.iter().filter(|(_, new)| *new == RangeKind::Data).map(|(range, _)| range.end - range.start).sum()
    }

    /// The run at or after a place.
    pub fn at_or_after(&self, at: u64) -> Option<(Range<u64>, RangeKind)> {
        let before = self.0.range(..=at).next_back().filter(|(_, (end, _))| *end > at);
        before.or_else(|| self.0.range(at..).next()).map(|(&start, &(end, new))| (start..end, new))
    }

    /// What lies between the data runs within a stretch of the file.
    pub fn gaps_in_data(&self, stretch: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = stretch.start;
        for (range, _) in self.iter().filter(|(_, new)| *new == RangeKind::Data) {
            gaps.push(at..range.start.min(stretch.end));
            at = range.end;
        }
        gaps.push(at..stretch.end);
        gaps.retain(|gap| gap.start < gap.end);
        gaps
    }

    /// The parts of ascending extents that no run covers.
    pub fn kept_extents<'a>(
        &'a self,
        extents: impl Iterator<Item = io::Result<Extent>> + 'a,
    ) -> impl Iterator<Item = io::Result<Extent>> + 'a {
        extents.flat_map(|extent| {
            let mut parts = Vec::new();
            match extent {
                Err(error) => parts.push(Err(error)),
                Ok(extent) => {
                    let mut at = extent.start;
                    while at < extent.end {
                        let run = self.at_or_after(at).map(|(run, _)| run).filter(|r| r.start < extent.end);
                        let end = run.as_ref().map_or(extent.end, |run| run.start.max(at));
                        if at < end {
                            parts.push(Ok(at..end));
                        }
                        at = run.map_or(extent.end, |run| run.end);
                    }
                }
            }
            parts
        })
    }
}

/// The old file with an interrupted run's stage over it.
#[derive(Debug)]
pub struct Overlay {
    old: FileImage,
    stage: File,
    runs: Runs,
}

impl Overlay {
    /// What the file would be if the log ended here.
    pub fn new(old: FileImage, stage: File, runs: Runs) -> Overlay {
        Overlay { old, stage, runs }
    }

    /// Its length in bytes: new data may reach beyond the old end.
    pub fn length(&self) -> io::Result<u64> {
        let end = self.runs.iter().last().map_or(0, |(range, _)| range.end);
        Ok(self.old.file().metadata()?.len().max(end))
    }
}

impl Image for Overlay {
    fn extents<'a>(&'a self, range: Range<u64>) -> Box<dyn Iterator<Item = io::Result<Extent>> + Send + 'a> {
        let clip = move |run: Range<u64>| run.start.max(range.start)..run.end.min(range.end);
        let new = self.runs.iter().filter(|(_, new)| *new == RangeKind::Data).map(move |(run, _)| clip(run));
        let new = new.filter(|run| run.start < run.end).map(Ok);
        let kept = self.runs.kept_extents(self.old.extents(range));
        Box::new(merge(kept.peekable(), new.peekable()))
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let here = at + done as u64;
            let run = self.runs.at_or_after(here);
            let (len, new) = match run {
                Some((run, new)) if run.start <= here => (run.end - here, Some(new)),
                Some((run, _)) => (run.start - here, None),
                None => (u64::MAX, None),
            };
            let len = len.min((buffer.len() - done) as u64) as usize;
            let part = &mut buffer[done..done + len];
            match new {
                None => self.old.read_at(part, here)?,
                Some(RangeKind::Data) => scan::read_or_zeros(&self.stage, part, here)?,
                Some(RangeKind::Zero | RangeKind::Free) => part.fill(0),
            }
            done += len;
        }
        Ok(())
    }
}

/// Two ascending rows of extents, which do not overlap, as one.
fn merge<'a>(
    mut a: std::iter::Peekable<impl Iterator<Item = io::Result<Extent>> + 'a>,
    mut b: std::iter::Peekable<impl Iterator<Item = io::Result<Extent>> + 'a>,
) -> impl Iterator<Item = io::Result<Extent>> + 'a {
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(Ok(x)), Some(Ok(y))) if y.start < x.start => b.next(),
        (Some(_), _) => a.next(),
        (None, _) => b.next(),
    })
}
