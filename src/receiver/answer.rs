//! The receiver's answers: for each announced file whether it is equal already,
//! or the map of what is there, hashed while it is sent.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};

use crate::apply::tree::{DestinationRoot, LastDirectory};
use crate::apply::{Basis, BasisState, Destination, Opened, Place, Preview, Wanted};
use crate::error::{Error, Result};
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
    pub wanted: Wanted,
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
    let Job { id, entry, root, wanted } = job;
    // It is kept as long as nothing is written: somebody may put another in its place.
    let mut directory = std::mem::take(last);
    let Some(place) = root.place_after(&mut directory, &entry, options.dry_run)? else {
        return Ok(shared.tell(Message::NoBasis { id, resized: true }));
    };
    let (length, whole) = (wanted.length, wanted.whole);
    let opening = Destination::open(place.clone(), wanted, &shared.setup)?;
    let warning = opening.recovered.warning(&place.path);
    if let Some(Err(gone)) = warning.map(|warning| shared.warn(warning)) {
        return Ok(Err(gone));
    }
    let grid = Grid { length, block: options.block_size };
    let destination = match opening.opened {
        Opened::Equal => {
            *last = directory;
            shared.report(&entry, Outcome::Unchanged);
            return Ok(shared.tell(Message::Unchanged { id }));
        }
        Opened::Preview(Preview { basis, changes_length: resized }) => {
            return Ok(match basis {
                Some(basis) => {
                    map_basis(shared, Answer { id, resized, place, grid, early }, &basis, |_| true)
                }
                None => shared.tell(Message::NoBasis { id, resized }),
            });
        }
        Opened::Different(destination) => *destination,
    };
    let basis = destination.basis();
    let (has_map, blank) = (basis.is_some(), destination.basis_state() == BasisState::Blank);
    // Where it shall be read back, or zeros are to be allocated, the long way is needed.
    let can_borrow = shared.beside_source && blank && length > 0 && !options.verify && !options.preallocate;
    let resized = destination.changes_length();
    let begun = Begun { id, entry, destination, grid, has_map, blank, whole };
    shared.asked.fetch_add(1, Ordering::Relaxed);
    // The applying thread may be gone only when the run is over.
    let pass_on = |mapped| maps.send(mapped).is_ok();
    if !pass_on(Mapped::Begin(Box::new(begun))) {
        return Ok(Ok(()));
    }
    Ok(match basis {
        Some(basis) => map_basis(shared, Answer { id, resized, place, grid, early }, &basis, pass_on),
        None if can_borrow => shared.tell(Message::Borrow { id }),
        None => shared.tell(Message::NoBasis { id, resized }),
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
    let early = basis.state.as_ref().and_then(|state| early?.end().filter(|early| early.fit(state, &grid)));
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
