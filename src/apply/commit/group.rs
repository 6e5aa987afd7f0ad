//! Files that wait for storage together. A sync waits for the disk, and costs about as much for
//! five hundred small files as for one: so files are gathered, have their content and their
//! attributes, and then
//!
//! 1. all of them are on storage: by one sync of their file system, where that is known to wait
//!    for everything and to tell of every error, and others have little to be written there; or
//!    each by its own, side by side;
//! 2. each is looked at once more, and takes its place;
//! 3. each directory is synced once;
//! 4. what earlier runs left beside them goes.
//!
//! Guaranteed: what [`Destination::finish`] guarantees, of each file by itself; no result is
//! told before all of that. A group is bounded in files and bytes, and waits for no more than a
//! moment.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::stat::fstat;

use crate::apply::commit::{LARGE, OldFile, Placed};
use crate::apply::synced::Synced;
use crate::apply::{Destination, Finished};
use crate::error::{Error, Failure, Result, lock};
use crate::hashmap::Hash;
use crate::sys;
use crate::working::Working;

/// Files of a group at most.
const FILES: usize = 500;
/// Bytes that were written to those of a group, about.
const BYTES: u64 = 64 << 20;
/// How long a group waits for more.
const PATIENCE: Duration = Duration::from_millis(200);
/// Syncs that wait side by side.
const SIDE_BY_SIDE: usize = 8;
/// Fewer files than this are synced by themselves: others may have more to be written.
const WORTH_ALL: usize = 4;
/// More directories than this are synced with their file system.
const DIRECTORIES: usize = 16;
/// Of what others have to be written a sync of the file system may wait for this, in bytes.
const OTHERS: u64 = 64 << 20;

/// A file that has its content and its attributes, and takes its place when it is on storage.
pub struct Waiting {
    pub(in crate::apply) destination: Destination,
    pub(in crate::apply) root: Hash,
    /// Attributes that may not be set.
    pub(in crate::apply) unset: Option<Failure>,
    /// Whether content or length changed.
    pub(in crate::apply) changed: bool,
}

impl Waiting {
    /// Whether it may as well wait with others: it is soon on storage, and nobody waits for it.
    pub fn may_gather(&self) -> bool {
        let task = &self.destination.task;
        task.options.fsync && self.destination.is_renamed() && task.counts.written < LARGE
    }

    /// Has it on storage, and take its place.
    ///
    /// # Errors
    ///
    /// Those of [`Destination::finish`].
    pub fn commit(self) -> Result<Finished> {
        let mut result = Err(self.destination.task.place.replaced());
        commit(vec![(self, ())], &mut |finished, ()| result = finished);
        result
    }

    /// The file that takes the name; there is one, as it is complete.
    fn new_file(&self) -> Option<&File> {
        self.destination.way.temp()
    }

    fn take_place(&self) -> Result<Placed> {
        let Destination { task, way, .. } = &self.destination;
        let new = self.new_file().ok_or_else(|| task.place.replaced())?;
        task.take_place(new, Working::Temp, way.old(), &self.root)
    }

    fn end(mut self, placed: Result<()>) -> Result<Finished> {
        match placed {
            Ok(()) => Ok(self.destination.finished(self.changed, self.unset.take())),
            // A temp file that has its attributes is no working file that a run goes on from.
            Err(error @ Error::Space { .. }) if !self.destination.task.delays => {
                Err(self.destination.discard_after(error))
            }
            Err(error) => Err(self.destination.make_room_after(error)),
        }
    }
}

/// Has files take their places, each of which is on storage before. `each` is told what became
/// of every one, in their order.
pub fn commit<T>(group: Vec<(Waiting, T)>, each: &mut dyn FnMut(Result<Finished>, T)) {
    let Some(task) = group.first().map(|(file, _)| &file.destination.task) else { return };
    let (fsync, synced) = (task.options.fsync, Arc::clone(&task.synced));
    let stored = store(&group);
    let mut directories = Directories::default();
    let placed = group.iter().zip(stored).map(|((file, _), stored)| {
        let placed = stored.and_then(|()| file.take_place())?;
        let dir = &file.destination.task.place.dir;
        let directory = (fsync && placed == Placed::InPlace).then(|| directories.add(dir));
        Ok((placed, directory))
    });
    let placed = placed.collect::<Vec<Result<_>>>();
    directories.sync(&synced);
    for ((file, tag), placed) in group.into_iter().zip(placed) {
        let task = &file.destination.task;
        let ended = placed.and_then(|(placed, directory)| {
            let synced = directory.map_or(Ok(()), |directory| directories.synced(directory));
            synced.map_err(task.place.error("sync the directory of"))?;
            if placed == Placed::InPlace { task.forget_leftovers(Working::Temp) } else { Ok(()) }
        });
        each(file.end(ended), tag);
    }
}

/// Has the files of a group on storage.
fn store<T>(group: &[(Waiting, T)]) -> Vec<Result<()>> {
    let Some((first, _)) = group.first() else { return Vec::new() };
    let task = &first.destination.task;
    if !task.options.fsync || store_all_at_once(group, &task.synced) {
        return group.iter().map(|_| Ok(())).collect();
    }
    let files = group.iter().map(|(file, _)| file.new_file()).collect::<Vec<_>>();
    let synced = sync_side_by_side(&files);
    let sync_failed = |(file, synced): (&(Waiting, T), io::Result<()>)| {
        synced.map_err(|error| file.0.destination.task.failed("sync", error, OldFile::Whole))
    };
    group.iter().zip(synced).map(sync_failed).collect()
}

fn sync_side_by_side(files: &[Option<&File>]) -> Vec<io::Result<()>> {
    let sync = |files: &[Option<&File>]| {
        files.iter().map(|file| file.map_or(Ok(()), File::sync_all)).collect::<Vec<_>>()
    };
    if files.len() < 2 {
        return sync(files);
    }
    // What one of them waits for is on its way for all.
    files.iter().flatten().for_each(|file| sys::start_writeback(file, 0..0));
    let share = files.len().div_ceil(SIDE_BY_SIDE);
    std::thread::scope(|scope| {
        let syncing = files.chunks(share).map(|files| scope.spawn(move || sync(files)));
        let syncing = syncing.collect::<Vec<_>>();
        let synced = syncing.into_iter().map(|thread| thread.join());
        synced.flat_map(|results| results.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// Syncs the file system that all of a group lie on, where that is sure to be enough. `false`:
/// each file must be synced.
fn store_all_at_once<T>(group: &[(Waiting, T)], synced: &Synced) -> bool {
    let mut devices = group.iter().map(|(file, _)| file.destination.way.device());
    let Some(Some(device)) = devices.next() else { return false };
    if group.len() < WORTH_ALL || devices.any(|other| other != Some(device)) {
        return false;
    }
    let ours = group.iter().map(|(file, _)| file.destination.task.counts.written).sum::<u64>();
    sync_all(device, ours, synced)
}

/// Has all of a file system on storage, unless others have much to be written; `ours`: what we
/// have, in bytes. `false`: that could not be had.
fn sync_all(device: u64, ours: u64, synced: &Synced) -> bool {
    sys::unwritten().is_some_and(|unwritten| unwritten <= ours + OTHERS) && synced.all(device)
}

/// The directories in which files took their places.
#[derive(Default)]
struct Directories {
    known: Vec<Directory>,
    /// By device and inode.
    by_id: HashMap<(u64, u64), usize>,
}

struct Directory {
    dir: Arc<OwnedFd>,
    device: u64,
    /// The error of its sync.
    error: Option<io::Error>,
}

impl Directories {
    /// A file took its place in this one. Returns its number.
    fn add(&mut self, dir: &Arc<OwnedFd>) -> usize {
        let next = self.known.len();
        if self.known.last().is_some_and(|last| Arc::ptr_eq(&last.dir, dir)) {
            return next - 1;
        }
        // One that cannot be looked at is synced by itself.
        let id = fstat(dir).map_or((u64::MAX, next as u64), |stat| (stat.st_dev, stat.st_ino));
        let number = *self.by_id.entry(id).or_insert(next);
        if number == next {
            self.known.push(Directory { dir: Arc::clone(dir), device: id.0, error: None });
        }
        number
    }

    /// Has the names in them on storage.
    fn sync(&mut self, synced: &Synced) {
        let Some(device) = self.known.first().map(|first| first.device) else { return };
        let is_one_file_system = self.known.iter().all(|directory| directory.device == device);
        if self.known.len() > DIRECTORIES && is_one_file_system && sync_all(device, 0, synced) {
            return;
        }
        for directory in &mut self.known {
            directory.error = sys::sync_dir(directory.dir.as_fd()).err();
        }
    }

    /// How that went with one of them.
    fn synced(&self, number: usize) -> io::Result<()> {
        let error = self.known.get(number).and_then(|directory| directory.error.as_ref());
        // Each of its files fails with it.
        error.map_or(Ok(()), |error| {
            Err(error.raw_os_error().map_or(error.kind().into(), io::Error::from_raw_os_error))
        })
    }
}

/// Files that wait for storage, from whoever completes them to the one thread that has them
/// take their places.
pub struct Committer<T> {
    gathered: Mutex<Gathered<T>>,
    changed: Condvar,
    /// Files of a group at most: each is open.
    files: usize,
}

struct Gathered<T> {
    group: Vec<(Waiting, T)>,
    bytes: u64,
    /// When the first of them came.
    since: Instant,
    /// Nobody need wait for more.
    hurries: bool,
    /// There will be no more.
    closed: bool,
    /// A thread waits. Waking nobody is a system call, too.
    waiting: bool,
}

impl<T> Gathered<T> {
    fn is_full(&self, files: usize) -> bool {
        self.group.len() >= files || self.bytes >= BYTES
    }
}

impl<T> Default for Committer<T> {
    fn default() -> Committer<T> {
        let (group, since) = (Vec::new(), Instant::now());
        let gathered = Gathered { group, bytes: 0, since, hurries: false, closed: false, waiting: false };
        // A group is gathered while another one is written, each with the old file and the new
        // one, and other files are open, too.
        let files = (sys::open_files_limit().saturating_sub(256) / 16).clamp(1, FILES);
        Committer { gathered: Mutex::new(gathered), changed: Condvar::new(), files }
    }
}

impl<T> Committer<T> {
    /// Adds a file; waits while the group is full. `hurries`: no other will come soon.
    pub fn add(&self, file: Waiting, tag: T, hurries: bool) {
        let mut gathered = self
            .wait_while(lock(&self.gathered), |gathered| gathered.is_full(self.files) && !gathered.closed);
        if gathered.group.is_empty() {
            gathered.since = Instant::now();
        }
        gathered.bytes += file.destination.task.counts.written;
        gathered.group.push((file, tag));
        gathered.hurries |= hurries;
        if gathered.group.len() == 1 || gathered.hurries || gathered.is_full(self.files) {
            self.wake(&mut gathered);
        }
    }

    /// What was gathered need wait for no more.
    pub fn hurry(&self) {
        let mut gathered = lock(&self.gathered);
        gathered.hurries = !gathered.group.is_empty();
        if gathered.hurries {
            self.wake(&mut gathered);
        }
    }

    /// There will be no more.
    pub fn close(&self) {
        let mut gathered = lock(&self.gathered);
        gathered.closed = true;
        self.wake(&mut gathered);
    }

    /// Has files take their places, group by group, until there will be no more. `begun` is
    /// told of every group, `each` what became of every file.
    pub fn run<B>(&self, begun: impl Fn() -> B, mut each: impl FnMut(Result<Finished>, T)) {
        loop {
            let group = self.next();
            if group.is_empty() {
                return;
            }
            let _begun = begun();
            commit(group, &mut each);
        }
    }

    /// The next group; an empty one is the last.
    fn next(&self) -> Vec<(Waiting, T)> {
        let mut gathered =
            self.wait_while(lock(&self.gathered), |gathered| gathered.group.is_empty() && !gathered.closed);
        while !(gathered.closed || gathered.hurries || gathered.is_full(self.files)) {
            let Some(left) = PATIENCE.checked_sub(gathered.since.elapsed()) else { break };
            gathered.waiting = true;
            gathered = match self.changed.wait_timeout(gathered, left) {
                Ok((gathered, _)) => gathered,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        (gathered.bytes, gathered.hurries) = (0, false);
        let group = std::mem::take(&mut gathered.group);
        self.wake(&mut gathered);
        group
    }

    fn wait_while<'a>(
        &self,
        mut gathered: MutexGuard<'a, Gathered<T>>,
        condition: impl Fn(&Gathered<T>) -> bool,
    ) -> MutexGuard<'a, Gathered<T>> {
        while condition(&gathered) {
            gathered.waiting = true;
            gathered = self.changed.wait(gathered).unwrap_or_else(PoisonError::into_inner);
        }
        gathered
    }

    fn wake(&self, gathered: &mut Gathered<T>) {
        if std::mem::take(&mut gathered.waiting) {
            self.changed.notify_all();
        }
    }
}
