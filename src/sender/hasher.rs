//! Reads and hashes the sender's files, one after the other, as the receiver
//! asks for them (step 3 of [`sender`](crate::sender)).

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use crate::error::{Error, Result, Warning};
use crate::hashmap::ahead::{Ahead, Head, Likely, await_job};
use crate::hashmap::cache::{self, Found, MapCache};
use crate::hashmap::shared::SharedMaps;
use crate::hashmap::since::{Known, Since};
use crate::hashmap::{self, Batch, Grid, Item, MapRecord};
use crate::in_use;
use crate::options::{Compress, Options};
use crate::scan::{self, Content, Image};
use crate::sender::known::KnownMaps;
use crate::source::{Kind, OpenSource, Source};
use crate::sys;

/// Batches that wait for the merging thread.
const QUEUED_BATCHES: usize = 2;
/// Bytes of small files that go to the merging thread together, so that it wakes less
/// often.
const SMALL_FILES: usize = 256 << 10;
/// What a file counts for at least.
const LEAST: usize = 4 << 10;

/// A file that the receiver wants.
pub struct WantedFile {
    pub source: Source,
    /// The receiver has something to compare it with.
    pub compared: bool,
    /// It goes onto a block device.
    pub device: bool,
    /// Its bytes can be sent without being read.
    pub direct: bool,
}

/// What the hasher finds.
pub enum Hashed {
    Batch(Batch),
    /// One without its bytes, which are to be had from the file.
    Bare(Batch, Arc<OpenSource>),
    /// It goes onto a device, and holds what does not belong there.
    Unfit(Content),
    /// What the user should know of the file.
    Warning(Warning),
    /// So many bytes of another file were hashed for it.
    Aside(u64),
    /// The file is through.
    End {
        /// It stayed the same meanwhile, as far as that shows.
        same: bool,
        /// It would have shown.
        settled: bool,
    },
    Failed(Error),
}

/// The thread that reads and hashes. It may start before there is a connection, and ends
/// when this is dropped, or what it gave away.
pub struct Hasher {
    pub(super) jobs: Sender<WantedFile>,
    pub(super) hashed: Receiver<Vec<Hashed>>,
    /// Room that the merging thread is done with.
    pub(super) buffers: Sender<Vec<u8>>,
    /// Others send the same files from here.
    pub(super) is_shared: bool,
    /// Maps that need not travel.
    pub(super) known: KnownMaps,
}

impl Hasher {
    /// `likely`: the file that will be asked for first, if that is known. `shared`: what others
    /// hash that send the same files. `since`: what the only file was made from.
    pub fn start(
        options: &Options,
        likely: Option<&Path>,
        shared: Option<Arc<SharedMaps>>,
        since: Option<Arc<Since>>,
    ) -> Hasher {
        let is_shared = shared.is_some();
        let (jobs_in, jobs) = channel();
        let (queue, hashed) = sync_channel(QUEUED_BATCHES);
        let (buffers_in, buffers) = channel();
        let options = options.clone();
        let (block, hole_map) = (options.block_size, options.hole_map);
        let maps = MapCache::open(&options).map(Arc::new);
        // Who wants content looked at believes nothing.
        let since = since.filter(|_| !options.checksum && !options.verify);
        let likely = likely.filter(|_| since.is_none());
        let likely =
            likely.map(|path| Likely { path: path.to_path_buf(), block, hole_map, maps: maps.clone() });
        let known = KnownMaps::new(maps.clone(), since.clone());
        std::thread::spawn(move || {
            let outgoing = HashedQueue { queue, held: Vec::new(), bytes: 0 };
            let mut hasher = FileHasher { options, shared, buffers, outgoing, maps, since };
            hasher.prepare();
            hash_files(hasher, likely, &jobs);
        });
        Hasher { jobs: jobs_in, hashed, buffers: buffers_in, is_shared, known }
    }
}

fn hash_files(mut hasher: FileHasher, likely: Option<Likely>, jobs: &Receiver<WantedFile>) {
    let Some((mut job, mut ahead)) = await_job(jobs, likely, hasher.shared.as_deref()) else { return };
    loop {
        let go_on = match hasher.hash(&job, ahead.take()) {
            Ok(go_on) => go_on,
            Err(error) => hasher.outgoing.add(Hashed::Failed(error)),
        };
        let next = if go_on { hasher.outgoing.next_job(jobs) } else { None };
        let Some(next) = next else { return };
        job = next;
    }
}

/// What was hashed, on its way to the merging thread.
struct HashedQueue {
    queue: SyncSender<Vec<Hashed>>,
    held: Vec<Hashed>,
    bytes: usize,
}

impl HashedQueue {
    /// Adds something; `false`: nobody listens any more.
    fn add(&mut self, hashed: Hashed) -> bool {
        self.bytes += match &hashed {
            Hashed::Batch(batch) | Hashed::Bare(batch, _) => batch.bytes_read + batch.believed,
            Hashed::Unfit(_) | Hashed::Warning(_) | Hashed::Aside(_) => LEAST,
            Hashed::End { .. } | Hashed::Failed(_) => LEAST,
        };
        self.held.push(hashed);
        self.bytes < SMALL_FILES || self.pass_on()
    }

    fn pass_on(&mut self) -> bool {
        self.bytes = 0;
        self.held.is_empty() || self.queue.send(std::mem::take(&mut self.held)).is_ok()
    }

    /// The next file. What is held goes on before this waits for one.
    fn next_job(&mut self, jobs: &Receiver<WantedFile>) -> Option<WantedFile> {
        match jobs.try_recv() {
            Ok(job) => Some(job),
            Err(_) if self.pass_on() => jobs.recv().ok(),
            Err(_) => None,
        }
    }
}

struct FileHasher {
    options: Options,
    shared: Option<Arc<SharedMaps>>,
    buffers: Receiver<Vec<u8>>,
    outgoing: HashedQueue,
    /// Maps that were kept.
    maps: Option<Arc<MapCache>>,
    /// What the only file was made from.
    since: Option<Arc<Since>>,
}

impl FileHasher {
    /// Has the map of what the only file was made from, if it can be had.
    fn prepare(&mut self) {
        let Some((since, maps)) = self.since.as_ref().zip(self.maps.as_ref()) else { return };
        let read = since.prepare(maps, self.options.block_size);
        if read > 0 {
            // That nobody listens any more shows at once.
            self.outgoing.add(Hashed::Aside(read));
        }
    }

    /// Hashes a file; `false`: nobody listens any more.
    fn hash(&mut self, job: &WantedFile, ahead: Option<Ahead>) -> Result<bool> {
        let WantedFile { source, compared, .. } = job;
        let Kind::File { length, allocated, retry, .. } = source.kind else {
            return Ok(self.outgoing.add(Hashed::End { same: true, settled: true }));
        };
        // Small files do not wait for a large one.
        let data = scan::may_hold(allocated, length);
        let is_small = data < SMALL_FILES as u64;
        if !is_small && !self.outgoing.pass_on() {
            return Ok(false);
        }
        let io = |doing| Error::file(doing, &source.path);
        let Some(opened) = source.open(&self.options)? else {
            return Ok(self.outgoing.add(Hashed::End { same: false, settled: true }));
        };
        if job.device
            && !self.options.as_is
            && let Some(content) = Content::read(&opened.image, length).map_err(io("read"))?
        {
            return Ok(self.outgoing.add(Hashed::Unfit(content)));
        }
        if !retry && let Some(warning) = in_use::warning(opened.image.file(), &source.path) {
            self.outgoing.add(Hashed::Warning(warning));
        }
        let opened = Arc::new(opened);
        let OpenSource { image, state, settled } = opened.as_ref();
        let grid = Grid { length, block: self.options.block_size };
        let exceeds_cache = scan::exceeds_cache(data);
        // One that changed unseen before may do so again.
        let is_read_once = is_small || exceeds_cache || retry || !state.shows_changes();
        let mut keeps_bytes = is_read_once || !sys::is_cached(image.file()) || self.wants_bytes(job);
        let mut head = self.head(job, &opened, (&grid, data), ahead);
        if !job.compared && matches!(head, Head::Known { .. }) {
            // All of it is sent.
            image.expect_scattered_reads(false);
        }
        // What was hashed for another is read again by each who sends it.
        keeps_bytes &= !matches!(head, Head::Shared { .. });
        let mut record = self.record(&head, &opened, (&grid, data));
        let mut at = 0;
        let mut keep = |batch: &Batch| {
            if let Some(record) = &mut record {
                record.add_items(at, &batch.items);
            }
            at += batch.items.iter().map(Item::blocks).sum::<u64>();
        };
        while let Some((first, batch)) = head.batch(&grid, image).map_err(io("read"))? {
            keep(&batch);
            let hashed = if keeps_bytes && !*compared {
                Hashed::Batch(self.read(&opened, &grid, first, batch).map_err(io("read"))?)
            } else {
                Hashed::Bare(batch, Arc::clone(&opened))
            };
            if !self.outgoing.add(hashed) {
                return Ok(false);
            }
        }
        let mut go_on = true;
        hashmap::map_rest(image, &grid, head.next_block(), keeps_bytes, |batch| {
            keep(batch);
            let hashed = std::mem::take(batch);
            if keeps_bytes {
                go_on = self.outgoing.add(Hashed::Batch(hashed));
                batch.buffer = self.buffers.try_recv().unwrap_or_default();
            } else {
                go_on = self.outgoing.add(Hashed::Bare(hashed, Arc::clone(&opened)));
            }
            Ok::<_, io::Error>(go_on)
        })
        .map_err(io("read"))?;
        let same = opened.is_unchanged();
        if let (true, true, Some(maps), Some(record)) = (go_on, same, &self.maps, record) {
            maps.keep(record, image.file(), state);
        }
        Ok(go_on && self.outgoing.add(Hashed::End { same, settled: *settled }))
    }

    /// What need not be read of a file with about so much data, or not by this thread alone.
    fn head(
        &mut self,
        job: &WantedFile,
        opened: &OpenSource,
        (grid, data): (&Grid, u64),
        ahead: Option<Ahead>,
    ) -> Head {
        let OpenSource { image, state, settled } = opened;
        let is_retry = matches!(job.source.kind, Kind::File { retry: true, .. });
        // One that changed unseen before may do so again.
        if is_retry {
            return Head::Unread;
        }
        if self.since.as_ref().is_some_and(|since| since.is_listed()) {
            return self.known_of_old(job, opened).unwrap_or(Head::Unread);
        }
        if !settled || !state.shows_changes() {
            return Head::Unread;
        }
        if let Some(ahead) = ahead.and_then(|ahead| ahead.fitting(state, grid)) {
            return ahead.into();
        }
        // What this run hashes is better than what another one kept: all have it, and no samples
        // are read.
        if let Some(map) = self.shared.as_ref().and_then(|maps| maps.begun(state, grid)) {
            return map.into();
        }
        match self.maps.as_ref().map(|maps| maps.find(image, state, grid.block)) {
            Some(Found::Known(map)) => return Head::Known(map),
            Some(Found::Other) => {
                // That nobody listens any more shows at once.
                self.outgoing.add(Hashed::Warning(cache::differs(&job.source.path)));
            }
            Some(Found::Nothing) | None => {}
        }
        if let Some(head) = self.known_of_old(job, opened) {
            return head;
        }
        // A write that is under way has left its time already.
        let is_kept = self.maps.as_ref().is_some_and(|maps| maps.may_keep(grid));
        let maps = self.shared.as_ref().filter(|_| !is_kept || sys::is_written_by_nobody(image.file()));
        let shared = maps.and_then(|maps| maps.of(data, state, grid));
        shared.map_or(Head::Unread, Head::from)
    }

    /// What a file has of that which it was made from.
    fn known_of_old(&mut self, job: &WantedFile, opened: &OpenSource) -> Option<Head> {
        let since = self.since.clone()?;
        let OpenSource { image, state, .. } = opened;
        // A write that is under way has left its time already. What a list says is not kept.
        let is_kept = !since.is_listed() && sys::is_written_by_nobody(image.file());
        let known = match self.options.hole_map || since.is_listed() {
            true => since.find(self.maps.as_deref(), image, state, self.options.block_size),
            false => Known::Nothing("with --no-hole-map nothing that file systems say is believed"),
        };
        let warning = match known {
            Known::Found(Found::Known(map)) if is_kept => return Some(Head::Alike(map)),
            Known::Found(Found::Known(map)) => return Some(Head::Known(map)),
            Known::Found(Found::Other) => since.differs(&job.source.path),
            Known::Found(Found::Nothing) => since.is_of_no_use("its map cannot be read"),
            Known::Nothing(why) => since.is_of_no_use(why),
        };
        self.outgoing.add(Hashed::Warning(warning));
        None
    }

    /// What the map of a file goes to, of which more is hashed than is known.
    fn record(&self, head: &Head, opened: &OpenSource, (grid, data): (&Grid, u64)) -> Option<MapRecord> {
        let maps = self.maps.as_ref().filter(|maps| maps.may_keep(grid))?;
        let is_ours = match head {
            Head::Known(_) => false,
            Head::Shared { map, .. } => map.claim(),
            // It was asked before it was hashed.
            Head::Hashed { .. } | Head::Alike(_) => true,
            Head::Unread => {
                let shows = opened.settled && opened.state.shows_changes();
                shows && sys::is_written_by_nobody(opened.image.file())
            }
        };
        if is_ours { maps.record(grid, data) } else { None }
    }

    /// Whether the merging thread needs all bytes: most are sent, and not past us.
    /// Otherwise what is only hashed stays in the cache of a processor.
    fn wants_bytes(&self, job: &WantedFile) -> bool {
        let passes_them_by = job.direct && self.options.compress != Compress::Zstd;
        !job.compared && !self.options.dry_run && !passes_them_by
    }

    /// Reads the bytes of a batch whose first block is the one with this index.
    fn read(&self, opened: &OpenSource, grid: &Grid, index: u64, mut batch: Batch) -> io::Result<Batch> {
        batch.buffer = self.buffers.try_recv().unwrap_or_default();
        let blocks = Batch::blocks_of(&mut batch.items, index);
        hashmap::read_blocks(&opened.image, grid, blocks, &mut batch.buffer)?;
        Ok(batch)
    }
}
