//! The receiver's answers: for each announced file whether it is equal already, or the
//! map of what is there, hashed while it is sent. Step 2 of [`receiver`](crate::receiver).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use crate::apply::tree::{DestinationRoot, LastDirectory};
use crate::apply::{Basis, BasisState, Destination, Opened, Place, Preview, Sink, Wanted};
use crate::error::{Error, Result, Stop, Warning, in_words, printable};
use crate::hashmap::ahead::{Ahead, Head, Likely, await_job};
use crate::hashmap::cache::{self, Found};
use crate::hashmap::plan::Run;
use crate::hashmap::{self, Batch, Grid, Hash, Item, Maps};
use crate::protocol::{Entry, MAX_MAP_KEYS, MAX_MAP_RUNS, Message};
use crate::receiver::basis_feed::FeedEnd;
use crate::receiver::shared::{ReceiverShared, Settles};
use crate::report::{Changes, Event, Outcome};
use crate::source::Kind;

/// A file that was announced.
pub struct AnnouncedFile<'a> {
    pub shared: Arc<ReceiverShared<'a>>,
    pub entry: Entry,
    pub root: DestinationRoot,
    pub wanted: Wanted,
}

/// A file that the sender may describe as soon as it has the answer.
pub struct Begun {
    pub id: u64,
    pub entry: Entry,
    /// How what was there differed from it.
    pub changes: Changes,
    pub destination: Sink,
    pub grid: Grid,
    pub whole: bool,
    /// What its map goes to, if that is kept.
    pub maps: Maps,
    /// Its basis among those in which blocks are looked for.
    pub image: Option<u32>,
    /// Where it goes.
    pub place: Option<Place>,
}

/// The thread that answers, and hashes what is there. It may start before there is a
/// connection, and ends when this is dropped.
pub struct Answerer<'a> {
    pub(super) jobs: Sender<AnnouncedFile<'a>>,
}

impl<'a> Answerer<'a> {
    /// `likely`: what will be hashed first, if that is known.
    pub fn start<'scope>(scope: &'scope Scope<'scope, '_>, likely: Option<Likely>) -> Answerer<'a>
    where
        'a: 'scope,
    {
        let (jobs_in, jobs) = channel();
        scope.spawn(move || answer_files(&jobs, likely));
        Answerer { jobs: jobs_in }
    }
}

/// Answers files in the order in which they were announced.
fn answer_files(jobs: &Receiver<AnnouncedFile>, likely: Option<Likely>) {
    let mut last = LastDirectory::default();
    let mut next = await_job(jobs, likely, None);
    while let Some((job, ahead)) = next {
        let (shared, id) = (Arc::clone(&job.shared), job.entry.id);
        if shared.is_stopped() {
            return;
        }
        let answered = answer(&shared, &mut last, job, ahead).unwrap_or_else(|error| {
            shared.settled();
            shared.fail(id, &error, Settles::Entry)
        });
        // A connection that is gone ends the applying thread, too, which says so: it must not
        // wait for more of a map.
        if answered.is_err() {
            shared.feeds.stop();
            return;
        }
        next = jobs.recv().ok().map(|job| (job, None));
    }
}

/// The inner result is the connection's, the outer one the file's.
fn answer(
    shared: &ReceiverShared,
    last: &mut LastDirectory,
    job: AnnouncedFile,
    ahead: Option<Ahead>,
) -> Result<Result<()>> {
    let options = &shared.options;
    let AnnouncedFile { entry, root, wanted, .. } = job;
    let id = entry.id;
    let may_lack = options.dry_run || options.transfer.existing;
    let Some(place) = root.place_after(last, &entry.path, may_lack)? else {
        if options.transfer.existing {
            shared.settled();
            let changes = Changes::LEFT.with(Changes::BELOW, true);
            return Ok(shared.tell(Message::Unchanged { id, changes }, Settles::Entry));
        }
        let sink = Sink::Preview(Box::new(Preview::of_nothing(&root.path_of(&entry.path))));
        let changes = Changes::NEW.with(Changes::TRANSFER, true);
        return Ok(ask_for(shared, (entry, changes), (sink, None), (&wanted, None)));
    };
    let opening = Destination::open(place.clone(), wanted.clone(), &shared.setup);
    last.after(&opening);
    let opening = opening?;
    let warning = opening.recovered.warning(&place.path);
    if let Some(Err(gone)) = warning.map(|warning| shared.warn(warning)) {
        return Ok(Err(gone));
    }
    let changes = opening.changes;
    let sink = match opening.opened {
        Opened::Equal { unset } => {
            shared.report(&entry, Outcome::Unchanged, changes);
            shared.settled();
            let told = shared.unset(unset);
            return Ok(told.and_then(|()| shared.tell(Message::Unchanged { id, changes }, Settles::Entry)));
        }
        Opened::Preview(preview) => Sink::Preview(preview),
        Opened::Different(destination) => Sink::Destination(destination),
    };
    if let Sink::Destination(destination) = &sink {
        if let Some(choice) = destination.choice(&entry.path) {
            shared.reporter.event(Event::Choice(&choice));
        }
        if let Some(Err(gone)) = destination.shortage().map(|shortage| shared.warn(shortage)) {
            return Ok(Err(gone));
        }
    }
    Ok(ask_for(shared, (entry, changes), (sink, Some(place)), (&wanted, ahead)))
}

/// Asks for a file, and tells of its basis.
fn ask_for(
    shared: &ReceiverShared,
    (entry, changes): (Entry, Changes),
    (mut sink, place): (Sink, Option<Place>),
    (wanted, ahead): (&Wanted, Option<Ahead>),
) -> Result<()> {
    let id = entry.id;
    let (grid, whole) = (Grid { length: wanted.length, block: shared.options.block_size }, wanted.whole);
    let (basis, device, mapped) = (sink.basis(), sink.is_device(), sink.basis().is_some());
    let answer = match &sink {
        Sink::Preview(preview) => {
            Message::Preview { id, device, mapped, resized: preview.changes_length, changes }
        }
        Sink::Destination(_) if mapped => Message::Map { id, device },
        Sink::Destination(_) => Message::NoBasis { id, device },
    };
    let (path, is_other) = (sink.path().to_path_buf(), sink.own().is_some());
    let may_be_known = !matches!(entry.kind, Kind::File { retry: true, .. });
    let unwritten = sink.unwritten_basis().filter(|_| shared.copies && shared.describes);
    let image = unwritten.and_then(|basis| shared.places.open(&basis.image, basis.length));
    let mut settles = Settles::Nothing;
    if shared.describes {
        // Before the sender can know of it.
        let end = match sink.basis_state() {
            BasisState::Mapped => None,
            BasisState::Blank => Some(FeedEnd::Whole),
            BasisState::Unknown => Some(FeedEnd::Unknown),
        };
        let maps = maps_of(shared, &mut sink, (wanted, &grid));
        let begun = Begun { id, entry, changes, destination: sink, grid, whole, image, place, maps };
        if !shared.feeds.open(Box::new(begun), end) {
            return Ok(());
        }
    } else {
        shared.settled();
        settles = if mapped { Settles::Nothing } else { Settles::Entry };
    }
    shared.tell(answer, settles)?;
    basis.map_or(Ok(()), |basis| {
        tell_basis(shared, Told { id, path, grid, basis, is_other, image, ahead, may_be_known })
    })
}

/// A file of whose basis the sender is told.
struct Told {
    id: u64,
    path: PathBuf,
    grid: Grid,
    basis: Basis,
    /// It is another file than is there.
    is_other: bool,
    image: Option<u32>,
    ahead: Option<Ahead>,
    /// The sender may know the map of it.
    may_be_known: bool,
}

/// Tells what is there, block by block, and passes it on to the applying thread first: it
/// has it when the sender describes it.
fn tell_basis(shared: &ReceiverShared, told: Told) -> Result<()> {
    let Told { id, path, grid: wanted, basis, is_other, image, ahead, may_be_known } = told;
    let describes = shared.describes;
    let grid = Grid { length: wanted.length.min(basis.length), ..wanted };
    let mut head = head_of(shared, &basis, &grid, (&path, ahead))?;
    let known = known_root(shared, &head, &wanted).filter(|_| may_be_known);
    if let Some(root) = known {
        shared.feeds.known(id);
        shared.tell(Message::AsKnown { id, root }, Settles::Nothing)?;
    }
    let mut at = 0;
    let mut tell = |batch: &mut Batch| {
        let mut stats = shared.lock_stats();
        stats.basis_hashed_bytes += batch.bytes_read as u64;
        stats.believed_bytes += batch.believed as u64;
        drop(stats);
        let frames = runs_of(&batch.items);
        let entries = frames.iter().flatten().map(Run::entries).sum();
        let items = std::mem::take(&mut batch.items);
        if let Some(image) = image {
            shared.places.learn(image, at, &items);
        }
        at += items.iter().map(Item::blocks).sum::<u64>();
        let may_go_on =
            if describes { shared.feeds.push(id, items) } else { shared.feeds.take_credit(entries) };
        if !may_go_on {
            return Ok(false);
        }
        let frames = if known.is_some() { Vec::new() } else { frames };
        frames.into_iter().try_for_each(|runs| shared.outbox.map(id, runs)).map_err(Stop::Taken)?;
        Ok(true)
    };
    let image = basis.image.as_ref();
    let mut tell_head = || {
        while let Some((_, mut batch)) = head.batch(&grid, image).map_err(Stop::Read)? {
            if !tell(&mut batch)? {
                return Ok(None);
            }
        }
        Ok(Some(head.next_block()))
    };
    let result = match tell_head() {
        Ok(Some(next)) => hashmap::map_rest(image, &grid, next, false, tell),
        other => other.map(drop),
    };
    let is_over = if describes { !shared.feeds.is_needed(id) } else { shared.is_stopped() };
    if is_over {
        return Ok(());
    }
    let settles = if describes { Settles::Nothing } else { Settles::Entry };
    let result = match result {
        Err(Stop::Read(source)) if is_other => {
            // The rest is sent.
            let why =
                format!("cannot read what to begin from for {}: {}", printable(&path), in_words(&source));
            shared.warn(Warning::about(&path, why)).map_err(Stop::Taken)
        }
        other => other,
    };
    match result {
        Ok(()) => {
            shared.feeds.end(id, FeedEnd::Whole);
            if known.is_some() { Ok(()) } else { shared.tell(Message::MapEnd { id }, settles) }
        }
        Err(Stop::Taken(error)) => Err(error),
        Err(Stop::Read(source)) => {
            let error = Error::file("read the old", &path)(source);
            let fail = || shared.fail(id, &error, settles);
            if describes { shared.feeds.end_broken(id, fail) } else { fail() }
        }
    }
}

/// What need not be read of a basis.
fn head_of(
    shared: &ReceiverShared,
    basis: &Basis,
    grid: &Grid,
    (path, ahead): (&Path, Option<Ahead>),
) -> Result<Head> {
    let Some(state) = &basis.state else { return Ok(Head::Unread) };
    if let Some(ahead) = ahead.and_then(|ahead| ahead.fitting(state, grid)) {
        return Ok(ahead.into());
    }
    Ok(match shared.maps.as_ref().map(|maps| maps.find(basis.image.as_ref(), state, grid.block)) {
        Some(Found::Known(map)) => Head::Known(map),
        Some(Found::Other) => {
            shared.warn(cache::differs(path))?;
            Head::Unread
        }
        Some(Found::Nothing) | None => Head::Unread,
    })
}

/// The root hash of a basis whose map the sender has, too, as far as it describes `wanted` by it.
fn known_root(shared: &ReceiverShared, head: &Head, wanted: &Grid) -> Option<Hash> {
    let Head::Known(map) = head else { return None };
    let (root, grid) = map.whole();
    let is_known = shared.known.get()?.contains(&root) && wanted.cuts_no_block_of(&grid);
    is_known.then_some(root)
}

/// What the map of a file goes to.
fn maps_of(shared: &ReceiverShared, sink: &mut Sink, (wanted, grid): (&Wanted, &Grid)) -> Maps {
    let saved = shared.saved.filter(|_| matches!(sink, Sink::Destination(_)));
    let saved = saved.and_then(|saved| saved.begin(grid));
    let kept = shared.maps.as_ref().and_then(|maps| sink.record_map(maps, grid, wanted.data));
    Maps { kept, saved }
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
