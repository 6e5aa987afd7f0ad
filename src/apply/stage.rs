//! The stage of a destination whose file system cannot clone: new data gathers
//! in a sparse file beside the old one, at its own offsets, and a
//! [log](crate::apply::stage::log) says which ranges are new. Sealed, the two can be written
//! into the old file, as often as it takes, without the source.

pub mod log;
pub mod overlay;

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::apply::ranges::behind::{WriteBehind, share_to_give_back};
use crate::apply::ranges::cover::Cover;
use crate::apply::ranges::{self, make_zero, set_length};
use crate::apply::stage::log::{
    Identity, KIND_SEAL, LogReader, MAX_RUNS, MAX_SEAL, Seal, digest_of, each_stretch, encode, kind_of,
    read_seal,
};
use crate::apply::stage::overlay::{Overlay, RangeKind, Runs};
use crate::scan::FileImage;
use crate::sys;

/// A stage that is being filled.
#[derive(Debug)]
pub struct Stage {
    data: File,
    log: BufWriter<File>,
    /// The record that still grows.
    open: Option<(Range<u64>, RangeKind)>,
    bytes: u64,
    /// At most so many separate ranges are in it.
    records: usize,
    /// How many more of them a record can make: one that falls into what an earlier run
    /// recorded cuts it in two.
    runs_a_record: usize,
    unflushed: u64,
}

/// Data bytes after which the log is flushed, so that a killed run loses little.
const FLUSH_EVERY: u64 = 1 << 20;

impl Stage {
    /// Begins with two empty files.
    pub fn begin(data: File, log: File, identity: Identity) -> io::Result<Stage> {
        log.set_len(0)?;
        let mut stage = Stage::new(data, log);
        stage.log.get_mut().write_all(&identity.header())?;
        Ok(stage)
    }

    /// Goes on with what an interrupted run left, if it fits this file and can
    /// be used: the stage and what it holds already.
    pub fn resume(data: File, log: File, identity: Identity) -> io::Result<Option<(Stage, Runs)>> {
        let Some((runs, at)) = load(&log, identity)? else { return Ok(None) };
        log.set_len(at)?;
        (&log).seek(SeekFrom::Start(at))?;
        // After a crash of the machine it may be shorter than the log says.
        let end = runs.iter().last().map_or(0, |(range, _)| range.end);
        if data.metadata()?.len() < end {
            data.set_len(end)?;
        }
        // What the log does not know of must not become part of the file.
        if !trim(&data, 0..data.metadata()?.len(), &runs)? {
            return Ok(None);
        }
        let (bytes, records) = (runs.data_bytes(), runs.len());
        Ok(Some((Stage { bytes, records, runs_a_record: 2, ..Stage::new(data, log) }, runs)))
    }

    /// What a run would go on from, if the log fits this file and can be used.
    pub fn read(log: &File, identity: Identity) -> io::Result<Option<Runs>> {
        Ok(load(log, identity)?.map(|(runs, _)| runs))
    }

    /// `log` is to be written to where it stands.
    fn new(data: File, log: File) -> Stage {
        let log = BufWriter::with_capacity(32 << 10, log);
        Stage { data, log, open: None, bytes: 0, records: 0, runs_a_record: 1, unflushed: 0 }
    }

    /// Bytes of new data, those of earlier runs included.
    pub fn data_bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether its ranges can be looked at as a whole before a replay: see [`MAX_RUNS`].
    pub fn can_be_sealed(&self) -> bool {
        self.records + usize::from(self.open.is_some()) * self.runs_a_record <= MAX_RUNS
    }

    /// The file that holds the data.
    pub fn data(&self) -> &File {
        &self.data
    }

    /// Stages new data.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.data.write_all_at(bytes, at)?;
        self.bytes += bytes.len() as u64;
        self.unflushed += bytes.len() as u64;
        self.record(at..at + bytes.len() as u64, RangeKind::Data)?;
        if self.unflushed >= FLUSH_EVERY {
            self.unflushed = 0;
            self.flush()?;
        }
        Ok(())
    }

    /// Records that a range becomes zeros.
    pub fn zero(&mut self, range: Range<u64>) -> io::Result<()> {
        self.record(range, RangeKind::Zero)
    }

    /// Records that a range of allocated zeros is to be given back.
    pub fn free(&mut self, range: Range<u64>) -> io::Result<()> {
        self.record(range, RangeKind::Free)
    }

    /// Has every record reach the log file, so that the next run finds it.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Some((range, new)) = self.open.take() {
            self.put(range, kind_of(new))?;
        }
        self.log.flush()
    }

    fn record(&mut self, range: Range<u64>, new: RangeKind) -> io::Result<()> {
        match &mut self.open {
            Some((open, same)) if *same == new && open.end == range.start => open.end = range.end,
            _ => {
                if let Some((range, new)) = self.open.replace((range, new)) {
                    self.put(range, kind_of(new))?;
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, range: Range<u64>, kind: u32) -> io::Result<()> {
        self.records += self.runs_a_record;
        self.log.write_all(&encode(range, kind))
    }

    /// Has the data on storage, which may take long.
    pub fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.data.sync_data()
    }

    /// The same of the log, too.
    pub fn sync_all(&mut self) -> io::Result<()> {
        self.sync()?;
        self.log.get_ref().sync_data()
    }

    /// Makes old file, stage and log a unit that can be finished whatever
    /// happens, if the data is on storage: the log is when this returns (unless `sync` is
    /// false: then only a crash of the machine can still undo it).
    ///
    /// # Errors
    ///
    /// Then the log has no seal, as far as the system allows it.
    pub fn seal(&mut self, seal: &Seal, sync: bool) -> io::Result<Sealed> {
        self.flush()?;
        let end = self.log.get_ref().metadata()?.len();
        self.put_seal(seal, sync).or_else(|error| {
            self.log.get_ref().set_len(end)?;
            Err(error)
        })
    }

    fn put_seal(&mut self, seal: &Seal, sync: bool) -> io::Result<Sealed> {
        let mut log = self.log.get_ref().try_clone()?;
        let body = postcard::to_stdvec(seal).map_err(io::Error::other)?;
        // What cannot be read back must not be relied on.
        if body.len() as u64 > MAX_SEAL {
            return Err(io::Error::other("its attributes are too many to be kept in a log"));
        }
        log.write_all(&encode(0..body.len() as u64, KIND_SEAL))?;
        log.write_all(&body)?;
        let digest = digest_of(&log, log.metadata()?.len())?;
        log.write_all(&digest)?;
        if sync {
            log.sync_data()?;
        }
        Ok(Sealed { data: self.data.try_clone()?, log, seal: seal.clone() })
    }

    /// Allocates in the old file what replaying will need, so that a full disk
    /// shows before the point of no return. `false`: the file system cannot. An
    /// error gives back what was allocated.
    pub fn reserve(&mut self, old: &File, length: u64, hole_map: bool) -> io::Result<bool> {
        self.flush()?;
        let result = self.each_data_range(old, length, |range| sys::allocate(old, range));
        if result.is_err() {
            self.give_up_reserve(old, length, hole_map)?;
        }
        result
    }

    /// Gives back what was reserved: where there is no data, nothing but that can be lost.
    pub fn give_up_reserve(&self, old: &File, length: u64, hole_map: bool) -> io::Result<()> {
        let free = |range| ranges::free_holes(old, range, hole_map).map(|()| true);
        self.each_data_range(old, length, free).map(drop)
    }

    /// Gives back the last of what came, on a full disk: the last records leave the log, and
    /// what they held the stage.
    pub fn give_back(&mut self) -> io::Result<()> {
        // What does not reach the log is sent again, and must not follow what is cut off.
        let _ = self.flush();
        let log = self.log.get_ref().try_clone()?;
        let unwritten = std::mem::replace(&mut self.log, BufWriter::with_capacity(32 << 10, log));
        let (mut log, _) = unwritten.into_parts();
        let share = share_to_give_back(512 * self.data.metadata()?.blocks());
        let (end, records) = log::last_records(&log, share)?;
        log.set_len(end)?;
        log.seek(SeekFrom::Start(end))?;
        for range in records {
            sys::punch_hole(&self.data, range)?;
        }
        Ok(())
    }

    /// Until `each` says `false`; whether it never did.
    fn each_data_range(
        &self,
        old: &File,
        length: u64,
        each: impl Fn(Range<u64>) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let Some(mut reader) = LogReader::open(self.log.get_ref(), Identity::of(old)?)? else {
            return Ok(false);
        };
        while let Some((range, new)) = reader.next_record()? {
            let range = range.start.min(length)..range.end.min(length);
            if new == RangeKind::Data && !each(range)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Copies what is `kept`, and not new, from the old file, so that the stage is all of the
    /// new one. Returns bytes copied.
    ///
    /// # Errors
    ///
    /// Then the stage is as it was, as far as the system allows it.
    pub fn complete(&mut self, old: &File, kept: &Cover, length: u64, identity: Identity) -> io::Result<u64> {
        self.flush()?;
        self.complete_in_stretches((old, kept), length, identity, MAX_RUNS)
    }

    fn complete_in_stretches(
        &self,
        (old, kept): (&File, &Cover),
        length: u64,
        identity: Identity,
        most: usize,
    ) -> io::Result<u64> {
        let (data, log) = (&self.data, self.log.get_ref());
        let there = old.metadata()?;
        let mut behind = WriteBehind::new(false, 512 * there.blocks());
        let mut copied = 0;
        let completed = each_stretch(log, identity, 0..length, most, &mut |stretch, runs| {
            let stretch = stretch.start..stretch.end.min(there.len()).max(stretch.start);
            for extent in runs.kept_extents(kept.within(stretch).map(Ok)) {
                let extent = extent?;
                copied += extent.end - extent.start;
                behind.copy(old, data, extent)?;
            }
            for (range, new) in runs.iter() {
                if new != RangeKind::Data && range.start < data.metadata()?.len() {
                    make_zero(data, range, false)?;
                }
            }
            Ok(())
        });
        completed.or_else(|error| {
            // Whoever goes on in place needs the room.
            let all = 0..data.metadata()?.len();
            each_stretch(log, identity, all, most, &mut |stretch, runs| trim(data, stretch, runs).map(drop))?;
            Err(error)
        })?;
        Ok(copied)
    }
}

/// What a log without a seal holds, if it fits this file and can be used, and where it ends.
fn load(log: &File, identity: Identity) -> io::Result<Option<(Runs, u64)>> {
    let Some(mut reader) = LogReader::open(log, identity)? else { return Ok(None) };
    let Some(runs) = reader.load()? else { return Ok(None) };
    if reader.seal()?.is_some() {
        return Err(io::Error::other("another run has just sealed it and ended; run again"));
    }
    Ok(Some((runs, reader.at)))
}

/// Leaves nothing in a stretch of a stage but the data that its log knows of. `false`: the
/// file system cannot.
fn trim(data: &File, stretch: Range<u64>, runs: &Runs) -> io::Result<bool> {
    for gap in runs.gaps_in_data(stretch) {
        if !sys::punch_hole(data, gap)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A stage whose log is sealed.
#[derive(Debug)]
pub struct Sealed {
    data: File,
    log: File,
    /// What the log says about the finished file.
    pub seal: Seal,
}

impl Sealed {
    /// The sealed log that belongs to a file, if it is whole.
    pub fn open(data: File, log: File, identity: Identity) -> io::Result<Option<Sealed>> {
        let seal = read_seal(&log, identity)?;
        Ok(seal.map(|seal| Sealed::new(data, log, seal)))
    }

    /// A stage and the log that this is the seal of.
    pub(super) fn new(data: File, log: File, seal: Seal) -> Sealed {
        Sealed { data, log, seal }
    }

    /// What the old file is with the stage over it, however much of the stage it
    /// has already. `None`: there are too many ranges.
    pub fn overlay(&self, old: &File, hole_map: bool) -> io::Result<Option<Overlay>> {
        let Some(mut reader) = LogReader::open(&self.log, Identity::of(old)?)? else { return Ok(None) };
        let Some(runs) = reader.load()? else { return Ok(None) };
        Ok(Some(Overlay::new(FileImage::new(old.try_clone()?, hole_map), self.data.try_clone()?, runs)))
    }

    /// Has everything on storage that finishing needs, whoever sealed it.
    pub fn sync(&self) -> io::Result<()> {
        self.data.sync_data()?;
        self.log.sync_data()
    }

    /// Writes the stage into the old file. Doing it twice does no harm. Returns
    /// bytes written and bytes made zero.
    pub fn replay(&self, old: &File) -> io::Result<(u64, u64)> {
        let Seal { length, preallocate, .. } = self.seal;
        let (mut written, mut zeroed) = (0, 0);
        let mut behind = WriteBehind::new(false, 512 * self.data.metadata()?.blocks());
        let reader = LogReader::open(&self.log, Identity::of(old)?)?;
        let mut reader = reader.ok_or_else(|| io::Error::other("the log is damaged"))?;
        while let Some((range, new)) = reader.next_record()? {
            let range = range.start.min(length)..range.end.min(length);
            let bytes = range.end - range.start;
            match new {
                RangeKind::Data => {
                    written += bytes;
                    behind.copy(&self.data, old, range)?;
                }
                RangeKind::Zero => {
                    zeroed += bytes;
                    make_zero(old, range, preallocate)?;
                }
                RangeKind::Free => {
                    zeroed += bytes;
                    // They are zeros, whether or not the file system takes them.
                    sys::punch_hole(old, range)?;
                }
            }
        }
        set_length(old, length, preallocate)?;
        Ok((written, zeroed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every other page of the old file is changed, some of them twice.
    #[test]
    fn a_log_of_more_ranges_than_fit_in_memory_is_completed_all_the_same() {
        let file = || tempfile::tempfile().unwrap();
        let (old, data, log, page) = (file(), file(), file(), 4096);
        let mut wanted = vec![1; 64 * page];
        old.write_all_at(&wanted, 0).unwrap();
        let identity = Identity::of(&old).unwrap();
        let mut stage = Stage::begin(data.try_clone().unwrap(), log, identity).unwrap();
        for at in (0..64).step_by(2).rev().map(|index| index * page) {
            stage.write(at as u64, &vec![2; page]).unwrap();
            wanted[at..at + page].fill(2);
        }
        for at in (0..64).step_by(8).map(|index| index * page + 7) {
            stage.zero(at as u64..(at + 99) as u64).unwrap();
            wanted[at..at + 99].fill(0);
        }
        stage.flush().unwrap();
        let length = wanted.len() as u64;
        let mut kept = Cover::default();
        kept.add(0..length);
        let copied = stage.complete_in_stretches((&old, &kept), length, identity, 5).unwrap();
        assert_eq!(copied, length / 2);
        let mut found = vec![0; wanted.len()];
        data.read_exact_at(&mut found, 0).unwrap();
        assert!(found == wanted);
    }
}
