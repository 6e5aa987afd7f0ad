//! The way of a file where the file system cannot clone: new content gathers in a
//! [`Stage`] beside it. In the end either the stage gets the rest from the old file and takes
//! its name, or its log is sealed and the old file is written from it: whichever writes less.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;

use crate::apply::attributes::belongings;
use crate::apply::commit::witness::Writes;
use crate::apply::commit::{OldFile, Task};
use crate::apply::place::Old;
use crate::apply::ranges;
use crate::apply::recover::{ReadBack, forget_stage, replay};
use crate::apply::stage::log::{Identity, Seal};
use crate::apply::stage::{Sealed, Stage};
use crate::error::{Failure, Result};
use crate::hashmap::Hash;
use crate::sys;
use crate::working::Working;

pub struct Staged {
    old: Old,
    /// Made when there is something to change.
    stage: Option<Stage>,
    is_resumed: bool,
    /// From here on log and stage are what the file is finished from.
    is_sealed: bool,
}

impl Staged {
    pub fn new(old: Old) -> Staged {
        Staged { old, stage: None, is_resumed: false, is_sealed: false }
    }

    /// Goes on with the stage of an earlier run.
    pub fn resumed(old: Old, stage: Stage) -> Staged {
        Staged { stage: Some(stage), is_resumed: true, ..Staged::new(old) }
    }

    pub fn old(&self) -> &Old {
        &self.old
    }

    pub fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    pub fn has_begun(&self) -> bool {
        self.stage.is_some()
    }

    /// The file in which data gathers, if there is one.
    pub fn data(&self) -> Option<&File> {
        self.stage.as_ref().map(Stage::data)
    }

    /// The same; it is made where there is none.
    pub fn file(&mut self, task: &Task) -> Result<&File> {
        Ok(self.stage(task)?.data())
    }

    pub fn write(&mut self, task: &Task, at: u64, bytes: &[u8]) -> Result<()> {
        let written = self.stage(task)?.write(at, bytes);
        written.map_err(|error| task.failed("write", error, OldFile::Whole))
    }

    pub fn zero(&mut self, task: &Task, range: Range<u64>) -> Result<()> {
        let recorded = self.stage(task)?.zero(range);
        recorded.map_err(|error| task.failed("punch holes into", error, OldFile::Whole))
    }

    pub fn free(&mut self, task: &Task, range: Range<u64>) -> Result<()> {
        let recorded = self.stage(task)?.free(range);
        recorded.map_err(|error| task.failed("punch holes into", error, OldFile::Whole))
    }

    pub fn is_sealed(&self) -> bool {
        self.is_sealed
    }

    /// Gives back the last of what came. What the log does not know of is given back by who
    /// goes on from it.
    pub fn give_back(&mut self) {
        if let Some(stage) = &mut self.stage {
            // The disk is in trouble already.
            let _ = stage.give_back();
        }
    }

    /// Has all records reach the log, for the next run.
    pub fn keep(&mut self) {
        if let Some(stage) = &mut self.stage {
            // Unflushed records only mean that their data is sent again.
            let _ = stage.flush();
        }
    }

    fn stage(&mut self, task: &Task) -> Result<&mut Stage> {
        match &mut self.stage {
            Some(stage) => Ok(stage),
            none => Ok(none.insert(begin(task, &self.old)?)),
        }
    }

    /// Step 7 of [`apply`](crate::apply): the cheaper of its two ends. `kept`: bytes of the
    /// old file that stay.
    pub fn finish(&mut self, task: &Task, root: &Hash, kept: u64) -> Result<Option<Failure>> {
        let ready = self.ready(task, kept)?;
        self.conclude(task, root, ready)
    }

    /// All of that before a seal or a rename.
    pub fn ready(&mut self, task: &Task, kept: u64) -> Result<Ready> {
        self.stage(task)?;
        task.watch(&self.old.file, Writes::Replay);
        let Staged { old, stage: Some(stage), .. } = self else { return Err(task.place.replaced()) };
        match prepare(task, old, stage, kept)? {
            End::Complete => {
                // Until here the lock on the old file kept other runs away.
                let data =
                    task.place.locked(stage.data().try_clone().map_err(task.place.error("finish"))?)?;
                Ok(Ready::Complete(data))
            }
            End::Seal => {
                let reserved = old.file.metadata().map_err(task.place.error("look at"))?;
                task.claim(old)?;
                Ok(Ready::Reserved(reserved))
            }
        }
    }

    /// The rest of it.
    pub fn conclude(&mut self, task: &Task, root: &Hash, ready: Ready) -> Result<Option<Failure>> {
        let Staged { old, stage: Some(stage), .. } = self else { return Err(task.place.replaced()) };
        match ready {
            Ready::Complete(data) => task.replace(&data, Working::Stage, Some(old), root),
            Ready::Reserved(reserved) => {
                let sealed = seal(task, old, stage, root, &reserved)?;
                self.is_sealed = true;
                end(task, &self.old, &sealed, root, &reserved)
            }
        }
    }

    /// Has what was gathered on storage, to wait.
    pub fn sync(&mut self, task: &Task) -> Result<()> {
        let stage = self.stage.as_mut().filter(|_| task.options.fsync);
        let synced = stage.map_or(Ok(()), Stage::sync_all);
        synced.map_err(|error| task.failed("sync", error, OldFile::Whole))
    }

    /// Gives back what was made ready.
    pub fn give_room_back(&self, task: &Task, ready: Ready) {
        if let (Some(stage), Ready::Reserved(_)) = (&self.stage, ready) {
            // What stays allocated is found by the next run.
            let _ = stage.give_up_reserve(&self.old.file, task.wanted.length, task.options.hole_map);
        }
    }
}

/// What a stage is made ready for.
pub enum Ready {
    /// To take the name of the old file: it is all of the new one, and locked.
    Complete(File),
    /// To be written into the old file, which is in this state since there is room in it.
    Reserved(Metadata),
}

/// How a stage becomes the file.
enum End {
    /// It is all of the new file.
    Complete,
    /// The old file has room for what is in it.
    Seal,
}

fn begin(task: &Task, old: &Old) -> Result<Stage> {
    let place = &task.place;
    let create = || -> io::Result<Stage> {
        if task.has_leftover_stage() {
            place.remove(&[Working::Log, Working::Stage])?;
        }
        let identity = Identity::of(&old.file)?;
        let data = place.create(Working::Stage)?;
        belongings::prepare(Some(old), &data);
        Stage::begin(data, place.create(Working::Log)?, identity)
    };
    create().map_err(|error| task.failed("create the stage of", error, OldFile::Whole))
}

/// Completes the stage, or reserves room in the old file: both may fail, and nothing is
/// decided by then. `kept`: how much of the old file stays.
fn prepare(task: &Task, old: &Old, stage: &mut Stage, kept: u64) -> Result<End> {
    task.check_old(Some(old))?;
    let (length, hole_map) = (task.wanted.length, task.options.hole_map);
    let identity = Identity::of(&old.file).map_err(task.place.error("look at"))?;
    let complete = |stage: &mut Stage| {
        let completed = stage.complete(&old.file, &task.data, length, identity);
        completed.map(|_| End::Complete)
    };
    let failed = |doing| move |error| task.failed(doing, error, OldFile::Whole);
    if !stage.can_be_sealed() {
        return complete(stage).map_err(failed("copy"));
    }
    if stage.data_bytes() > kept {
        match complete(stage) {
            // A full disk is no failure yet: writing in place needs less.
            Err(error) if ranges::is_full(&error) => {}
            other => return other.map_err(failed("copy")),
        }
    }
    if task.options.preallocate {
        sys::allocate(&old.file, 0..length).map_err(|error| {
            // The error to report is that there is no room.
            let _ = ranges::free_holes(&old.file, 0..length.max(old.state.len()), hole_map);
            failed("allocate")(error)
        })?;
    }
    // Single files may lack what their file system has: those of ext4 that ext3 made.
    match stage.reserve(&old.file, length, hole_map).map_err(failed("make room in"))? {
        true => Ok(End::Seal),
        false => complete(stage).map_err(failed("copy")),
    }
}

/// From here on the file can be finished without the source, and nothing else may become
/// of it: log and stage stay until it is. `reserved`: the state of the old file since room
/// was reserved in it.
fn seal(task: &Task, old: &Old, stage: &mut Stage, root: &Hash, reserved: &Metadata) -> Result<Sealed> {
    let fsync = task.options.fsync;
    let seal = Seal {
        length: task.wanted.length,
        block_size: task.options.block_size.into(),
        root: *root,
        attributes: task.wanted.attributes.clone(),
        preallocate: task.options.preallocate,
    };
    let given_up = |stage: &mut Stage, error| {
        // The error to report is the first one.
        let _ = stage.give_up_reserve(&old.file, seal.length, task.options.hole_map);
        task.failed("seal", error, OldFile::Whole)
    };
    if fsync {
        stage.sync().map_err(|error| given_up(stage, error))?;
    }
    // What somebody else has begun to use keeps the room, too: there may be data in it.
    task.check_state(old, reserved)?;
    stage.seal(&seal, fsync).map_err(|error| given_up(stage, error))
}

/// Finishes what is sealed.
fn end(task: &Task, old: &Old, sealed: &Sealed, root: &Hash, reserved: &Metadata) -> Result<Option<Failure>> {
    let (place, fsync) = (&task.place, task.options.fsync);
    task.sync_dir()?;
    // Nothing is written yet: what somebody else wrote meanwhile must not be replayed over.
    task.check_state(old, reserved).or_else(|error| {
        forget_stage(place, fsync).map_err(place.error("clean up after"))?;
        Err(error)
    })?;
    let tidy = || task.free_excess(&old.file).map_err(place.error("punch holes into"));
    let replayed = replay(place, sealed, &old.file, fsync, tidy)?;
    forget_stage(place, fsync).map_err(place.error("clean up after"))?;
    let unset = replayed?;
    task.verify(&old.file, root, ReadBack::Written)?;
    Ok(unset)
}
