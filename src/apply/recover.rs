//! Finishes what a crash interrupted between sealing a log and the end of its
//! replay: without the source, as often as it takes.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::fcntl::OFlag;

use crate::apply::place::{Access, Place, set_attributes};
use crate::apply::stage::Sealed;
use crate::apply::stage_log::Identity;
use crate::error::{Error, Result};
use crate::hashmap::{self, Grid, Hash};
use crate::options::BlockSize;
use crate::scan::FileImage;
use crate::sys;
use crate::working::Working;

/// What there was to finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Nothing.
    Nothing,
    /// The file, which now has this root hash.
    Finished(Hash),
    /// Something, but it is not what was sealed: it was not touched.
    Damaged,
}

/// Finishes what a crash interrupted between sealing a log and the end of its
/// replay.
///
/// # Errors
///
/// When the log is sealed and the file can't be finished from it: then both stay.
pub fn settle(place: &Place, sync: bool) -> Result<Settled> {
    if !place.has(Working::Log).map_err(place.error("look beside"))? {
        return Ok(Settled::Nothing);
    }
    let (old, access) = match place.open_old() {
        // Nothing is there, or a symlink, which no log belongs to.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ELOOP)) => {
            return Ok(Settled::Nothing);
        }
        other => other.map_err(place.error("open"))?,
    };
    let old = place.locked(old)?;
    let Some(sealed) = open_sealed(place, &old)? else { return Ok(Settled::Nothing) };
    if access == Access::None {
        return Ok(Settled::Damaged);
    }
    let root = sealed.seal.root;
    let block = BlockSize::try_from(sealed.seal.block_size)?;
    let grid = Grid { length: sealed.seal.length, block };
    let overlay = sealed.overlay(&old).map_err(place.error("read the log of"))?;
    let Some(overlay) = overlay else { return Ok(Settled::Damaged) };
    if hashmap::root_of(&overlay, &grid, |_| true).map_err(place.error("read the stage of"))? != Some(root) {
        return Ok(Settled::Damaged);
    }
    if access == Access::Write {
        if sync {
            sealed.sync().and_then(|()| place.sync_dir()).map_err(place.error("sync the log of"))?;
        }
        replay(place, &sealed, &old, sync)?;
    }
    // What may not be written may have been made so at the end of the replay.
    check_root(place, &old, &grid, &root)?;
    forget_stage(place, sync).map_err(place.error("remove the log of"))?;
    Ok(Settled::Finished(root))
}

/// The sealed log of a file, with its stage. Both must be ours, or its owner's,
/// who could write it anyway.
fn open_sealed(place: &Place, old: &File) -> Result<Option<Sealed>> {
    let log = place.peek(Working::Log).map_err(place.error("open the log of"))?;
    let data = place.peek(Working::Stage).map_err(place.error("open the stage of"))?;
    let Some(((log, log_owner), (data, data_owner))) = log.zip(data) else { return Ok(None) };
    let metadata = old.metadata().map_err(place.error("look at"))?;
    let trusted = [nix::unistd::geteuid().as_raw(), metadata.uid()];
    let identity = Identity::of(old).map_err(place.error("look at"))?;
    let sealed = Sealed::open(data, log, identity).map_err(place.error("read the log of"))?;
    if sealed.is_some() && !(trusted.contains(&log_owner) && trusted.contains(&data_owner)) {
        let why = "an interrupted run of another user left a log to finish it from; run holesync recover as that \
                   user, or remove its .holesync. files";
        return Err(Error::refused(&place.path, why));
    }
    Ok(sealed)
}

/// Removes what an interrupted run left beside a file that turned out to need
/// nothing, unless another run is at work there.
///
/// # Errors
///
/// What the system calls report.
pub fn tidy(place: &Place) -> Result<()> {
    let left = |kind: &Working| sys::stat_at(&place.dir, &kind.name_for(&place.name));
    let found = Working::ALL.iter().map(left).collect::<io::Result<Vec<_>>>();
    if found.map_err(place.error("look beside"))?.iter().all(Option::is_none) {
        return Ok(());
    }
    // A file that is locked, or not ours to open, is another's to clean up after.
    match place.open(&place.name, OFlag::O_RDONLY | OFlag::O_NONBLOCK).map(|file| place.locked(file)) {
        Ok(Ok(_lock)) => place.remove(&Working::ALL).map_err(place.error("clean up after")),
        _ => Ok(()),
    }
}

/// Writes a sealed stage into the old file and has it on storage.
pub(crate) fn replay(place: &Place, sealed: &Sealed, old: &File, sync: bool) -> Result<(u64, u64)> {
    let counts = sealed.replay(old).map_err(place.error("finish writing"))?;
    let wanted = &sealed.seal.attributes;
    set_attributes(old, wanted, wanted.mode).map_err(place.error("set the attributes of"))?;
    if sync {
        old.sync_all().map_err(place.error("sync"))?;
    }
    Ok(counts)
}

/// Removes log and stage, in an order that never leaves a log alone.
pub(crate) fn forget_stage(place: &Place, sync: bool) -> io::Result<()> {
    if !place.has(Working::Log)? {
        return place.remove(&[Working::Stage]);
    }
    place.remove(&[Working::Log])?;
    if sync {
        place.sync_dir()?;
    }
    place.remove(&[Working::Stage])
}

pub(crate) fn check_root(place: &Place, file: &File, grid: &Grid, root: &Hash) -> Result<()> {
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
