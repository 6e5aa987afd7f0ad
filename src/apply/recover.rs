//! Finishes what a crash interrupted between sealing a log and the end of its replay:
//! without the source, as often as it takes. Removes a log only when the file is whole.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::apply::place::{Access, Old, Place};
use crate::apply::stage::Sealed;
use crate::apply::stage::log::{self, Identity, UnknownFormat};
use crate::error::{Error, Result, printable};
use crate::hashmap::{self, Grid, Hash};
use crate::options::BlockSize;
use crate::scan::FileImage;
use crate::working::Working;

/// What there was to finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// Nothing.
    Nothing,
    /// The file, which now has this root hash.
    Finished(Hash),
    /// Something, but it is not what was sealed: it was not touched.
    Damaged,
}

impl Recovered {
    /// What the user should be told of it.
    pub fn warning(&self, path: &Path) -> Option<String> {
        let path = printable(path);
        match self {
            Recovered::Nothing => None,
            Recovered::Finished(_) => {
                Some(format!("finished what an interrupted run had begun to write into {path}"))
            }
            Recovered::Damaged => Some(format!(
                "what an interrupted run left to finish {path} from is damaged; it is compared with the source instead"
            )),
        }
    }
}

/// Finishes what a crash interrupted between sealing a log and the end of its
/// replay: step 2 of [`apply`](crate::apply).
///
/// # Errors
///
/// When the log is sealed and the file can't be finished from it, or another version
/// wrote it: then everything stays.
pub fn recover(place: &Place, sync: bool) -> Result<Recovered> {
    let peek = || place.peek(Working::Log).map_err(place.error("open the log of"));
    let Some((log, _)) = peek()? else { return Ok(Recovered::Nothing) };
    log::read_header(&log).map_err(|error| log_error(place, error))?;
    let old = match place.open_old() {
        // Nothing is there, or a symlink, which no log belongs to.
        Err(Error::File { source, .. })
            if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ELOOP)) =>
        {
            return Ok(Recovered::Nothing);
        }
        other => other?,
    };
    // Only what is there under the lock counts: whoever held it may have finished, or
    // sealed another log and died.
    let Some((log, log_owner)) = peek()? else { return Ok(Recovered::Nothing) };
    match look(place, &old.file, log, log_owner)? {
        Left::Nothing => Ok(Recovered::Nothing),
        Left::Incomplete => Ok(Recovered::Damaged),
        Left::Whole(sealed) => finish(place, &old, &sealed, sync),
    }
}

/// Whether a sealed log belongs to a file, which is locked.
pub(super) fn is_sealed(place: &Place, old: &File) -> Result<bool> {
    let log = place.peek(Working::Log).map_err(place.error("open the log of"))?;
    let Some((log, _)) = log else { return Ok(false) };
    let identity = Identity::of(old).map_err(place.error("look at"))?;
    let seal = log::read_seal(&log, identity).map_err(|error| log_error(place, error))?;
    Ok(seal.is_some())
}

/// What an interrupted run left of a sealed log and its stage.
enum Left {
    /// There is no seal, or it is not this file's.
    Nothing,
    /// A log without its stage.
    Incomplete,
    Whole(Box<Sealed>),
}

/// Looks for the seal in a log. Log and stage must be ours, or the old file's owner's, who
/// could write it anyway.
fn look(place: &Place, old: &File, log: File, log_owner: u32) -> Result<Left> {
    let data = place.peek(Working::Stage).map_err(place.error("open the stage of"))?;
    let metadata = old.metadata().map_err(place.error("look at"))?;
    let identity = Identity::of(old).map_err(place.error("look at"))?;
    let seal = log::read_seal(&log, identity).map_err(|error| log_error(place, error))?;
    let Some(seal) = seal else { return Ok(Left::Nothing) };
    let trusted = [nix::unistd::geteuid().as_raw(), metadata.uid()];
    if !trusted.contains(&log_owner) || data.as_ref().is_some_and(|(_, owner)| !trusted.contains(owner)) {
        let why = "an interrupted run of another user left a log to finish it from; run holesync recover as that \
                   user, or remove its .holesync. files";
        return Err(Error::refused(&place.path, why));
    }
    Ok(match data {
        Some((data, _)) => Left::Whole(Box::new(Sealed::new(data, log, seal))),
        None => Left::Incomplete,
    })
}

fn finish(place: &Place, old: &Old, sealed: &Sealed, sync: bool) -> Result<Recovered> {
    if old.access == Access::None {
        return Ok(Recovered::Damaged);
    }
    let root = sealed.seal.root;
    let block = BlockSize::try_from(sealed.seal.block_size)?;
    let grid = Grid { length: sealed.seal.length, block };
    let overlay = sealed.overlay(&old.file).map_err(place.error("read the log of"))?;
    let Some(overlay) = overlay else { return Ok(Recovered::Damaged) };
    if hashmap::root_of(&overlay, &grid, |_| true).map_err(place.error("read the stage of"))? != Some(root) {
        return Ok(Recovered::Damaged);
    }
    let mut attributes_set = Ok(());
    if old.access == Access::Write {
        if sync {
            sealed.sync().and_then(|()| place.sync_dir()).map_err(place.error("sync the log of"))?;
        }
        attributes_set = replay(place, sealed, &old.file, sync)?;
    }
    // What may not be written may have been made so at the end of the replay.
    check_root(place, &old.file, &grid, &root)?;
    forget_stage(place, sync).map_err(place.error("remove the log of"))?;
    attributes_set.map(|()| Recovered::Finished(root))
}

/// An error of reading a log; one of another version is named.
fn log_error(place: &Place, error: io::Error) -> Error {
    if !UnknownFormat::is_in(&error) {
        return place.error("read the log of")(error);
    }
    let log = place.path.with_file_name(Working::Log.name_for(&place.name));
    let why = "another version of holesync wrote this log, and its image may have to be finished from it: run \
               holesync recover of that version, or remove it and the stage beside it";
    Error::refused(log, why)
}

/// Writes a sealed stage into the old file and has it on storage. The inner result is that
/// of the attributes: whatever becomes of them, the log is of no more use.
pub(super) fn replay(place: &Place, sealed: &Sealed, old: &File, sync: bool) -> Result<Result<()>> {
    sealed.replay(old).map_err(place.error("finish writing"))?;
    let set = sealed.seal.attributes.set(old).map_err(place.error("set the attributes of"));
    if sync {
        old.sync_all().map_err(place.error("sync"))?;
    }
    Ok(set)
}

/// Removes log and stage, in an order that never leaves a log alone.
pub(super) fn forget_stage(place: &Place, sync: bool) -> io::Result<()> {
    if !place.has(Working::Log)? {
        return place.remove(&[Working::Stage]);
    }
    place.remove(&[Working::Log])?;
    if sync {
        place.sync_dir()?;
    }
    place.remove(&[Working::Stage])
}

/// Demands that a file has this root hash.
pub(super) fn check_root(place: &Place, file: &File, grid: &Grid, root: &Hash) -> Result<()> {
    let image = FileImage::new(file.try_clone().map_err(place.error("read"))?, true);
    let found = hashmap::root_of(&image, grid, |_| true).map_err(place.error("read back"))?;
    if found.as_ref() != Some(root) {
        return Err(Error::refused(
            &place.path,
            "what was written does not read back as it was sent; check the storage, then run again with --checksum",
        ));
    }
    Ok(())
}
