//! Content that this run did not write, and that is on storage all the same before anything
//! says that it is right. The sync of a file costs a flush of the disk, also where nothing
//! is left to be written: after some of them one sync of the file system serves all files
//! that were there before it.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use nix::fcntl::OFlag;

use crate::error::lock;
use crate::sys;

/// Files of a file system that are synced by themselves. The sync of all of it also waits
/// for what others write there.
const ALONE: u32 = 16;

/// What is on storage, for one run.
#[derive(Debug, Default)]
pub(super) struct Synced {
    /// By device number.
    file_systems: Mutex<HashMap<u64, Arc<Mutex<FileSystem>>>>,
}

#[derive(Debug, Default)]
struct FileSystem {
    /// How many files were synced by themselves.
    alone: u32,
    /// What last changed before this time is on storage: seconds and nanoseconds.
    before: Option<(i64, i64)>,
    /// A sync of all of it by way of this waits for all, and tells of what was lost since it
    /// was opened.
    watched: Watched,
}

#[derive(Debug, Default)]
enum Watched {
    #[default]
    Unknown,
    By(Arc<File>),
    /// It cannot be had.
    Never,
}

impl Synced {
    /// A file was made in a directory, to which nothing was written yet: from now on what is
    /// lost in its file system is told of, where that can be.
    pub fn watch(&self, made: &Metadata, dir: &OwnedFd) {
        let file_system = Arc::clone(lock(&self.file_systems).entry(made.dev()).or_default());
        let mut known = lock(&file_system);
        if matches!(known.watched, Watched::Unknown) {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            let dir = sys::open_beneath(dir.as_fd(), "".as_ref(), flags, 0).map(File::from);
            // The directory may be another file system's, in an overlay.
            let is_same = |dir: &File| dir.metadata().is_ok_and(|metadata| metadata.dev() == made.dev());
            let dir = dir.ok().filter(|dir| is_same(dir) && sys::syncs_wholly(dir));
            known.watched = dir.map_or(Watched::Never, |dir| Watched::By(Arc::new(dir)));
        }
    }

    /// Has all of a file system on storage. `false`: it is not known to be. One failure is told
    /// of once, and may be that of a file whose turn comes later: none is believed after it.
    pub fn all(&self, device: u64) -> bool {
        let file_system = Arc::clone(lock(&self.file_systems).entry(device).or_default());
        let watched = match &lock(&file_system).watched {
            Watched::By(dir) => Arc::clone(dir),
            Watched::Unknown | Watched::Never => return false,
        };
        let synced = sys::sync_file_system(&watched).is_ok();
        if !synced {
            lock(&file_system).watched = Watched::Never;
        }
        synced
    }

    /// Has the content of a file on storage, of which `state` was read before its content.
    ///
    /// # Errors
    ///
    /// Those of the sync.
    pub fn ensure(&self, file: &File, state: &Metadata) -> io::Result<()> {
        let file_system = Arc::clone(lock(&self.file_systems).entry(state.dev()).or_default());
        // Whoever comes while all of it is synced waits for that.
        let mut known = lock(&file_system);
        if known.alone == ALONE {
            known.alone += 1;
            known.before = everything_before_now(file);
        }
        if known.before.is_some_and(|before| (state.ctime(), state.ctime_nsec()) < before) {
            // Which costs no flush, and tells of pages of this file that were lost before.
            return sys::write_back(file);
        }
        known.alone = known.alone.saturating_add(1);
        drop(known);
        file.sync_data()
    }
}

/// Has all of a file's file system on storage; what changed before the returned time is.
/// `None`: that could not be had, or the times there are another machine's.
fn everything_before_now(file: &File) -> Option<(i64, i64)> {
    let now = sys::file_time_now();
    (sys::is_cached(file) && sys::sync_file_system(file).is_ok()).then_some(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sync_serves_the_files_that_were_there_before_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let make = |name: &str| File::create(dir.path().join(name)).expect("create");
        let ensure = |synced: &Synced, file: &File| {
            synced.ensure(file, &file.metadata().expect("look at")).expect("sync");
            let file_systems = lock(&synced.file_systems);
            let known = lock(file_systems.values().next().expect("known"));
            (known.alone, known.before.is_some())
        };
        let files = (0..2 * ALONE).map(|n| make(&n.to_string())).collect::<Vec<_>>();
        // A change within the tick in which all was synced may have come after it.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let synced = Synced::default();
        for (n, file) in (1..).zip(&files[..ALONE as usize]) {
            assert_eq!(ensure(&synced, file), (n, false));
        }
        let is_local = sys::is_cached(&files[0]);
        for (n, file) in (1..).zip(&files[ALONE as usize..]) {
            let alone = if is_local { 0 } else { n };
            assert_eq!(ensure(&synced, file), (ALONE + 1 + alone, is_local));
        }
        let later = make("later");
        assert!(ensure(&synced, &later).0 > ALONE + 1, "it changed since");
    }
}
