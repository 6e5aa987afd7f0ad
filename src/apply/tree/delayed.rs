//! Files that wait for everything else: in the end they take their places.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use crate::apply::Delayed;
use crate::apply::open::Setup;
use crate::apply::place::Turns;
use crate::apply::tree::{DestinationRoot, DestinationTree, LastDirectory};
use crate::error::{Error, Failure, Result, lock};

/// Files that are synced and renamed side by side.
const WORKERS: usize = 4;

/// One of them.
#[derive(Debug)]
pub struct DelayedFile {
    /// The caller's number for it.
    pub id: u64,
    /// Its path below the destination.
    pub path: Vec<u8>,
    /// What waits.
    pub delayed: Delayed,
}

impl DestinationTree {
    /// Has them take their places. `each` gets the number of every file, and which attributes
    /// may not be set, or why the old one stays.
    pub fn put_delayed(
        &mut self,
        files: Vec<DelayedFile>,
        setup: &Setup,
        mut each: impl FnMut(u64, Result<Option<Failure>>),
    ) {
        let DestinationTree { root, failed, .. } = self;
        let root = &*root;
        // No other destination is open any more.
        let turns = Arc::<Turns>::default();
        let workers = WORKERS.min(files.len());
        let files = Mutex::new(files.into_iter());
        let (done_in, done) = channel();
        std::thread::scope(|scope| {
            for _ in 0..workers {
                let (done_in, files, turns) = (done_in.clone(), &files, &turns);
                scope.spawn(move || {
                    let mut last = LastDirectory::default();
                    loop {
                        let next = lock(files).next();
                        let Some(DelayedFile { id, path, delayed }) = next else { return };
                        let place = root.place_after(&mut last, &path, false);
                        let put = place.and_then(|place| {
                            let place = place.ok_or_else(|| is_gone(root, &path))?;
                            delayed.put_in_place(place, setup, turns)
                        });
                        // Whoever takes it outlives this.
                        let _ = done_in.send((id, path, put));
                    }
                });
            }
            drop(done_in);
            for (id, path, put) in done {
                if put.is_err() {
                    failed.insert(path);
                }
                each(id, put);
            }
        });
    }
}

fn is_gone(root: &DestinationRoot, path: &[u8]) -> Error {
    Error::refused(root.path_of(path), "its directory is gone; run again")
}
