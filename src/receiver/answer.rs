//! The receiver's answers: for each announced file whether it is equal already,
//! or the map of what is there, hashed while it is sent.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};

use nix::sys::stat::{FileStat, SFlag};

use crate::apply::open;
use crate::apply::place::{self, Place};
use crate::apply::recover::{self, Settled};
use crate::apply::tree::{DestinationRoot, LastDirectory};
use crate::apply::{self, Basis, Destination};
use crate::error::{Error, Result, printable};
use crate::hashmap::ahead::{EarlyHashes, EarlyStart};
use crate::hashmap::plan::Run;
use crate::hashmap::{self, Batch, Grid, Item};
use crate::protocol::{MAX_MAP_KEYS, MAX_MAP_RUNS, Message};
use crate::receiver::outbox::Shared;
use crate::report::Outcome;

/// A file that was announced.
pub(crate) struct Job {
    pub id: u64,
    pub entry: Vec<u8>,
    pub root: DestinationRoot,
    pub request: apply::Request,
    pub retry: bool,
}

/// What the mapper hands to the applying thread, per file in this order.
pub(crate) enum Mapped {
    Begin(Box<Begun>),
    Items(Vec<Item>),
    End,
    /// The basis cannot be read; the sender was told.
    Broken,
}

/// A file that the sender may describe as soon as it has the answer.
pub(crate) struct Begun {
    pub id: u64,
    pub entry: Vec<u8>,
    pub destination: Destination,
    pub grid: Grid,
    pub has_map: bool,
    pub blank: bool,
    pub whole: bool,
    pub resized: bool,
}

/// Answers files in the order in which they were announced. `early`: what is there in
/// the place of the first one may have been begun.
pub(crate) fn answer_files(
    shared: &Shared,
    mut early: Option<EarlyStart>,
    jobs: Receiver<Job>,
    maps: SyncSender<Mapped>,
) {
    let mut last = LastDirectory::default();
    for job in jobs {
        if shared.stopped.load(Ordering::Relaxed) {
            return;
        }
        let id = job.id;
        let answered = answer(shared, &mut last, job, early.take(), &maps)
            .unwrap_or_else(|error| shared.fail(id, &error, true));
        // A connection that is gone ends the applying thread, too; it says so.
        if answered.is_err() {
            return;
        }
    }
}

/// The inner result is the connection's, the outer one the file's.
fn answer(
    shared: &Shared,
    last: &mut LastDirectory,
    job: Job,
    early: Option<EarlyStart>,
    maps: &SyncSender<Mapped>,
) -> Result<Result<()>> {
    let options = &shared.options;
    let id = job.id;
    // It is kept as long as nothing is written: somebody may put another in its place.
    let mut directory = std::mem::take(last);
    let Some(place) = job.root.place_after(&mut directory, &job.entry, options.dry_run)? else {
        return Ok(shared.tell(Message::NoBasis { id, resized: true }));
    };
    let settled = if options.dry_run { Settled::Nothing } else { recover::settle(&place, options.fsync)? };
    if let Some(warning) = warning_of(settled, &place)
        && let Err(gone) = shared.warn(warning)
    {
        return Ok(Err(gone));
    }
    let stat = place.stat()?;
    let resized = is_resized(stat.as_ref(), &job.request);
    // A file that is half written may have any size and time.
    if settled != Settled::Damaged
        && !resized
        && let Some(stat) = stat.filter(|stat| is_unchanged(shared, stat, &job))
    {
        *last = directory;
        if !options.dry_run {
            place::touch_from(&place, &stat, &job.request.attributes)?;
            recover::tidy(&place)?;
        }
        shared.report(&job.entry, Outcome::Unchanged);
        return Ok(shared.tell(Message::Unchanged { id }));
    }
    let grid = Grid { length: job.request.length, block: options.block_size };
    if options.dry_run {
        return Ok(match open::preview(&place, &job.request)? {
            Some(basis) => map_basis(shared, Answer { id, resized, place, grid, early }, &basis, |_| true),
            None => shared.tell(Message::NoBasis { id, resized }),
        });
    }
    let Job { id, entry, request, .. } = job;
    let whole = request.whole;
    let destination = Destination::open(place.clone(), request, Arc::clone(options))?;
    let (basis, blank) = (destination.basis(), destination.is_blank());
    // Where it shall be read back, or zeros are to be allocated, the long way is needed.
    let is_empty = destination.is_empty() && !options.verify && !options.preallocate;
    let has_map = basis.is_some();
    let begun = Begun { id, entry, destination, grid, has_map, blank, whole, resized };
    // The applying thread may be gone only when the run is over.
    let pass_on = |mapped| maps.send(mapped).is_ok();
    shared.asked.fetch_add(1, Ordering::Relaxed);
    if !pass_on(Mapped::Begin(Box::new(begun))) {
        return Ok(Ok(()));
    }
    Ok(match basis {
        Some(basis) => map_basis(shared, Answer { id, resized, place, grid, early }, &basis, pass_on),
        None if shared.beside_source && is_empty => shared.tell(Message::Borrow { id }),
        None => shared.tell(Message::NoBasis { id, resized }),
    })
}

/// Whether there is nothing yet, or a file of another length. A device keeps its own.
fn is_resized(stat: Option<&FileStat>, request: &apply::Request) -> bool {
    stat.is_none_or(|stat| match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => stat.st_size as u64 != request.length,
        kind => kind != SFlag::S_IFBLK,
    })
}

/// What the user should know of an interrupted run.
fn warning_of(settled: Settled, place: &Place) -> Option<String> {
    let path = printable(&place.path);
    match settled {
        Settled::Nothing => None,
        Settled::Finished(_) => {
            Some(format!("finished what an interrupted run had begun to write into {path}"))
        }
        Settled::Damaged => Some(format!(
            "what an interrupted run left to finish {path} from is damaged; it is compared with the source instead"
        )),
    }
}

/// rsync's quick check, for a file of the right length.
fn is_unchanged(shared: &Shared, stat: &FileStat, job: &Job) -> bool {
    let options = &shared.options;
    if options.checksum || options.ignore_times || options.verify || job.retry {
        return false;
    }
    let regular = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
    regular && (options.size_only || same_time(job.request.attributes.mtime, stat))
}

/// Whether a file has this time; a file system without nanoseconds has it, too.
fn same_time(mtime: Option<(i64, u32)>, stat: &FileStat) -> bool {
    mtime.is_some_and(|(seconds, nanoseconds)| {
        stat.st_mtime == seconds && (stat.st_mtime_nsec == i64::from(nanoseconds) || stat.st_mtime_nsec == 0)
    })
}

/// The file that is being answered.
struct Answer {
    id: u64,
    resized: bool,
    place: Place,
    grid: Grid,
    early: Option<EarlyStart>,
}

/// Answers with what is there, block by block, and passes it on.
fn map_basis(shared: &Shared, answer: Answer, basis: &Basis, pass_on: impl Fn(Mapped) -> bool) -> Result<()> {
    let Answer { id, resized, place, grid, early } = answer;
    let grid = Grid { length: grid.length.min(basis.length), ..grid };
    shared.tell(Message::Map { id, resized })?;
    let tell = |batch: &mut Batch| {
        if shared.is_given_up(id) {
            return Ok(false);
        }
        shared.lock_stats().basis_hashed_bytes += batch.bytes_read as u64;
        for runs in runs_of(&batch.items) {
            shared.outbox.map(runs).map_err(MapError::Link)?;
        }
        Ok(pass_on(Mapped::Items(std::mem::take(&mut batch.items))))
    };
    let early = basis.seen.as_ref().and_then(|seen| early?.end().filter(|early| early.fit(seen, &grid)));
    let first = early.as_ref().map_or(0, |early| early.blocks);
    let mut batches = early.into_iter().flat_map(EarlyHashes::into_batches);
    let told = batches.try_fold(true, |go_on, (_, mut batch)| Ok(go_on && tell(&mut batch)?));
    let result = match told {
        Ok(true) => hashmap::map_rest(basis.image.as_ref(), &grid, first, false, tell),
        other => other.map(drop),
    };
    match result {
        Ok(()) => {
            pass_on(Mapped::End);
            shared.tell(Message::MapEnd)
        }
        Err(MapError::Link(error)) => Err(error),
        Err(MapError::Read(source)) => {
            let error = Error::file("read the old", &place.path)(source);
            pass_on(Mapped::Broken);
            if !shared.is_given_up(id) {
                shared.fail(id, &error, false)?;
            }
            shared.tell(Message::MapEnd)
        }
    }
}

enum MapError {
    Read(std::io::Error),
    Link(Error),
}

impl From<std::io::Error> for MapError {
    fn from(error: std::io::Error) -> MapError {
        MapError::Read(error)
    }
}

/// The items of a batch as map frames.
fn runs_of(items: &[Item]) -> Vec<Vec<Run>> {
    let mut frames = vec![Vec::new()];
    let mut keys = 0;
    for item in items {
        if frames.last().is_some_and(|runs: &Vec<Run>| runs.len() >= MAX_MAP_RUNS) || keys >= MAX_MAP_KEYS {
            frames.push(Vec::new());
            keys = 0;
        }
        let Some(runs) = frames.last_mut() else { continue };
        match (item, runs.last_mut()) {
            (Item::Hole(blocks), Some(Run::Zero(zeros))) => *zeros += blocks,
            (Item::Hole(blocks), _) => runs.push(Run::Zero(*blocks)),
            (Item::Block(block), Some(Run::Zero(zeros))) if block.data == 0 => *zeros += 1,
            (Item::Block(block), _) if block.data == 0 => runs.push(Run::Zero(1)),
            (Item::Block(block), last) => {
                keys += 1;
                let key = hashmap::key(&block.hash);
                match last {
                    Some(Run::Keys(keys)) => keys.push(key),
                    _ => runs.push(Run::Keys(vec![key])),
                }
            }
        }
    }
    frames
}
