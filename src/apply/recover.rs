//! Finishes what a crash interrupted between sealing a log and the end of its replay:
//! without the source, as often as it takes. Removes a log only when the file is whole.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::OFlag;

use crate::apply::attributes::Attributes;
use crate::apply::attributes::belongings;
use crate::apply::place::beside::Beside;
use crate::apply::place::mark::Mark;
use crate::apply::place::{Access, Old, Place};
use crate::apply::stage::Sealed;
use crate::apply::stage::log::{self, Identity, LogEnd, UnknownFormat};
use crate::error::{Error, Failure, Result, Warning, printable};
use crate::hashmap::{self, Grid, Hash};
use crate::in_use;
use crate::options::{BlockSize, Options};
use crate::scan::FileImage;
use crate::sys;
use crate::working::{Working, naming_of};

/// What there was to finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    /// Nothing: no log lies there.
    Nothing,
    /// A log that is not sealed: the file is as it was before that run.
    NotBegun,
    /// What waits for the decision of a run to several hosts: the file is as it was before.
    Prepared(Mark),
    /// A log that ends in something that no run wrote: whether it was sealed is not known.
    Unreadable,
    /// A log of another file, which had this name before.
    Replaced,
    /// The file.
    Finished {
        /// What it hashes to now.
        root: Hash,
        /// Attributes that may not be set.
        unset: Option<Failure>,
    },
    /// Something, but it is not what was sealed: it was not touched.
    Damaged,
    /// Something that a run of this user sealed, or may have.
    Foreign(u32),
}

impl Recovered {
    /// Of several logs, that counts which may have cost most.
    fn gravity(&self) -> u8 {
        match self {
            Recovered::Nothing | Recovered::Finished { .. } => 0,
            Recovered::NotBegun | Recovered::Prepared(_) => 1,
            Recovered::Replaced => 2,
            Recovered::Unreadable => 3,
            Recovered::Damaged | Recovered::Foreign(_) => 4,
        }
    }

    /// Whether the file may be half written, as far as is known.
    pub fn is_doubtful(&self) -> bool {
        matches!(self, Recovered::Damaged | Recovered::Unreadable | Recovered::Foreign(_))
    }

    /// What the user should be told of it, where the file is sent anyhow.
    pub fn warning(&self, path: &Path) -> Option<Warning> {
        let shown = printable(path);
        let what = match self {
            Recovered::Finished { .. } => {
                format!("finished what an interrupted run had begun to write into {shown}")
            }
            Recovered::Damaged | Recovered::Unreadable => format!(
                "what an interrupted run left to finish {shown} from is damaged; it is compared with the source instead"
            ),
            Recovered::Replaced => format!(
                "an interrupted run left a sealed log of another file that was {shown}; it goes with this run"
            ),
            _ => return None,
        };
        Some(Warning::about(path, what))
    }
}

/// Finishes what a crash interrupted between sealing a log and the end of its
/// replay: step 2 of [`apply`](crate::apply). `found`: the name of a log or a mark that lies there, if
/// it was found; others than those of all users and of this one are found in no other way. Of
/// the options, those count that say how to read and to sync, and what is in use. What is
/// prepared stays as it is.
///
/// # Errors
///
/// When the log is sealed and the file can't be finished from it, or another version
/// wrote it: then everything stays.
pub fn recover(place: &Place, found: Option<&OsStr>, options: &Options) -> Result<Recovered> {
    let mut place = place.clone();
    let mut beside = place.look_beside()?;
    if let Some(found) = found {
        beside.add_log(&place, found).map_err(place.error("look beside"))?;
    }
    let recovered = finish_beside(&place, &beside, options)?;
    if !matches!(recovered, Recovered::Nothing | Recovered::NotBegun) {
        return Ok(recovered);
    }
    let found = found.and_then(naming_of);
    for naming in beside.logs.iter().copied().chain(found).chain([place.naming]) {
        let mark = place.under(naming).mark().map_err(place.error("read the mark of"))?;
        if let Some(mark) = mark {
            return Ok(Recovered::Prepared(mark));
        }
    }
    Ok(recovered)
}

/// Finishes the file from a log that lies beside it.
pub(super) fn finish_beside(place: &Place, beside: &Beside, options: &Options) -> Result<Recovered> {
    let mut worst = Recovered::Nothing;
    for naming in &beside.logs {
        let found = finish_from_log(&place.under(*naming), options)?;
        if matches!(found, Recovered::Finished { .. }) {
            return Ok(found);
        }
        if found.gravity() > worst.gravity() {
            worst = found;
        }
    }
    match &beside.foreign_log {
        Some((name, uid)) if may_be_sealed(place, name)? => Ok(Recovered::Foreign(*uid)),
        _ => Ok(worst),
    }
}

fn finish_from_log(place: &Place, options: &Options) -> Result<Recovered> {
    let peek = || place.peek(Working::Log).map_err(place.error("open the log of"));
    let Some(log) = peek()? else { return Ok(Recovered::Nothing) };
    log::read_header(&log).map_err(|error| log_error(place, error))?;
    let old = match place.open_old() {
        // Nothing is there, or a symlink, which no log belongs to.
        Err(Error::File { source, .. }) if is_gone(&source) => return without_seal(place, &log),
        other => other?,
    };
    // Only what is there under the lock counts: whoever held it may have finished, or
    // sealed another log and died.
    let Some(log) = peek()? else { return Ok(Recovered::Nothing) };
    match look(place, &old.file, log)? {
        Left::Nothing(found) => Ok(found),
        Left::Incomplete => Ok(Recovered::Damaged),
        Left::Whole(sealed) => finish(place, &old, &sealed, options),
    }
}

/// Whether another user's log may be the seal of this file, as far as it may be read. It is
/// not believed: the file is compared, whatever its size and time.
fn may_be_sealed(place: &Place, name: &OsStr) -> Result<bool> {
    let read = || -> io::Result<bool> {
        let log = place.open(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        if !log.metadata()?.is_file() {
            return Ok(false);
        }
        let old = place.open(&place.name, OFlag::O_PATH)?;
        Ok(log::read_seal(&log, Identity::of(&old)?)?.is_some())
    };
    match read() {
        // It may not be read, or is leased (fcntl(2), F_SETLEASE).
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::WouldBlock) => {
            Ok(true)
        }
        Err(error) if UnknownFormat::is_in(&error) => Ok(true),
        Err(error) if is_gone(&error) => Ok(false),
        other => other.map_err(place.error("read the log of")),
    }
}

/// Whether an error of opening says that there is nothing to open, or nothing that holds
/// content.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ELOOP | libc::ENXIO))
}

/// What a log is that has no seal of the file that is there.
fn without_seal(place: &Place, log: &File) -> Result<Recovered> {
    let end = log::end_of(log).map_err(|error| log_error(place, error))?;
    Ok(match end {
        LogEnd::Open => Recovered::NotBegun,
        LogEnd::Damaged => Recovered::Unreadable,
        LogEnd::OfAnotherFile => Recovered::Replaced,
    })
}

/// Whether a sealed log belongs to a file, which is locked.
pub(super) fn is_sealed(place: &Place, old: &File) -> Result<bool> {
    let log = place.peek(Working::Log).map_err(place.error("open the log of"))?;
    let Some(log) = log else { return Ok(false) };
    let identity = Identity::of(old).map_err(place.error("look at"))?;
    let seal = log::read_seal(&log, identity).map_err(|error| log_error(place, error))?;
    Ok(seal.is_some())
}

/// The sealed log, with its stage, from which the next run finishes a file first.
pub(super) fn sealed(place: &Place, beside: &Beside, old: &File) -> Result<Option<Sealed>> {
    for naming in &beside.logs {
        let place = place.under(*naming);
        let log = place.peek(Working::Log).map_err(place.error("open the log of"))?;
        let Some(log) = log else { continue };
        if let Left::Whole(sealed) = look(&place, old, log)? {
            return Ok(Some(*sealed));
        }
    }
    Ok(None)
}

/// What an interrupted run left of a log and its stage.
enum Left {
    /// Nothing to finish this file from.
    Nothing(Recovered),
    /// A sealed log without its stage.
    Incomplete,
    Whole(Box<Sealed>),
}

/// Looks for the seal in a log. Where others may rename, a file that this user wrote may be
/// one that somebody else filled, and where a file system shows one owner for all files,
/// anybody may have made it: its content is checked, its attributes are left out.
fn look(place: &Place, old: &File, log: File) -> Result<Left> {
    let data = place.peek(Working::Stage).map_err(place.error("open the stage of"))?;
    let identity = Identity::of(old).map_err(place.error("look at"))?;
    let seal = log::read_seal(&log, identity).map_err(|error| log_error(place, error))?;
    let Some(mut seal) = seal else { return without_seal(place, &log).map(Left::Nothing) };
    if place.is_shared().map_err(place.error("look at the directory of"))? {
        seal.attributes = Attributes::default();
    }
    Ok(match data {
        Some(data) => Left::Whole(Box::new(Sealed::new(data, log, seal))),
        None => Left::Incomplete,
    })
}

fn finish(place: &Place, old: &Old, sealed: &Sealed, options: &Options) -> Result<Recovered> {
    let (sync, hole_map) = (options.fsync, options.hole_map);
    if old.state.nlink() != 1 {
        // It had no other name when its log was sealed.
        return Ok(Recovered::Damaged);
    }
    let Some((file, access, mut opened_up)) = open_up(place, old)? else { return Ok(Recovered::Damaged) };
    let root = sealed.seal.root;
    let block = BlockSize::try_from(sealed.seal.block_size)?;
    let grid = Grid { length: sealed.seal.length, block };
    let overlay = sealed.overlay(&file, hole_map).map_err(place.error("read the log of"))?;
    let Some(overlay) = overlay else { return Ok(Recovered::Damaged) };
    if hashmap::root_of(&overlay, &grid, |_| true).map_err(place.error("read the stage of"))? != Some(root) {
        return Ok(Recovered::Damaged);
    }
    let mut unset = Ok(None);
    if access == Access::Write {
        if !options.force_in_use {
            in_use::claim(&file, &old.state, &place.path)?;
        }
        if sync {
            sealed.sync().and_then(|()| place.sync_dir()).map_err(place.error("sync the log of"))?;
        }
        if let Some(opened_up) = &mut opened_up {
            opened_up.mode &= 0o1777;
        }
        unset = replay(place, sealed, &file, sync, || Ok(()))?;
        if sealed.seal.attributes.mode.is_some() {
            // It was set.
            std::mem::forget(opened_up);
        }
    }
    // What may not be written may have been made so at the end of the replay.
    check_root(place, &file, &grid, &root, hole_map, ReadBack::Written)?;
    forget_stage(place, sync).map_err(place.error("remove the log of"))?;
    place.remove_leftovers(&[Working::Prepared]);
    Ok(Recovered::Finished { root, unset: unset? })
}

/// A file of ours that its mode keeps from being written is writable until this is dropped.
struct OpenedUp<'a> {
    old: &'a File,
    mode: u32,
}

impl Drop for OpenedUp<'_> {
    fn drop(&mut self) {
        // Else it stays writable for its owner, no more.
        let _ = sys::set_mode(self.old, self.mode);
    }
}

/// The old file, open for writing if that may be; what keeps it so. `None`: it cannot even be
/// read.
fn open_up<'a>(place: &Place, old: &'a Old) -> Result<Option<(File, Access, Option<OpenedUp<'a>>)>> {
    let mode = old.state.mode() & 0o7777;
    let is_ours = sys::effective_user() == old.state.uid();
    if old.access != Access::Write && is_ours && mode & 0o600 != 0o600 {
        sys::set_mode(&old.file, mode | 0o600).map_err(place.error("open"))?;
        let guard = OpenedUp { old: &old.file, mode };
        let file = place.open(&place.name, OFlag::O_RDWR | OFlag::O_NONBLOCK).map_err(place.error("open"))?;
        let opened = file.metadata().map_err(place.error("look at"))?;
        if (opened.dev(), opened.ino()) != (old.state.dev(), old.state.ino()) {
            return Err(place.replaced());
        }
        return Ok(Some((file, Access::Write, Some(guard))));
    }
    if old.access == Access::None {
        return Ok(None);
    }
    let file = old.file.try_clone().map_err(place.error("open"))?;
    Ok(Some((file, old.access, None)))
}

/// An error of reading a log; one of another version is named.
fn log_error(place: &Place, error: io::Error) -> Error {
    if !UnknownFormat::is_in(&error) {
        return place.error("read the log of")(error);
    }
    let log = place.path.with_file_name(place.name_of(Working::Log));
    let why = "another version of holesync wrote this log, and its image may have to be finished from it: run \
               holesync recover of that version, or remove it and the stage beside it";
    Error::refused(log, why)
}

/// Writes a sealed stage into the old file and has it on storage; then, as a time that is
/// right says that the content is, attributes. The inner result is of what makes the log no
/// less of no use: which attributes may not be set, and what `tidy` came to, which gives room
/// back before the time is set.
pub(super) fn replay(
    place: &Place,
    sealed: &Sealed,
    old: &File,
    sync: bool,
    tidy: impl FnOnce() -> Result<()>,
) -> Result<Result<Option<Failure>>> {
    let sync = || if sync { old.sync_all().map_err(place.error("sync")) } else { Ok(()) };
    belongings::end_privileges(old).map_err(place.error("finish writing"))?;
    sealed.replay(old).map_err(place.error("finish writing"))?;
    let tidied = tidy();
    sync()?;
    let set = sealed.seal.attributes.set(old, &place.path);
    sync()?;
    Ok(tidied.and(set))
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

/// What a file that does not read back as it was sent is to its destination.
#[derive(Debug, Clone, Copy)]
pub(super) enum ReadBack {
    /// The temp file.
    Temp,
    /// The file, which was written.
    Written,
    /// The file, to which nothing was written.
    AsItWas,
}

impl ReadBack {
    fn refusal(self) -> &'static str {
        match self {
            ReadBack::Temp => {
                "what was written does not read back as it was sent, and was not put in place; check the storage, \
                 then run again"
            }
            ReadBack::Written => {
                "what was written into it does not read back as it was sent: it is damaged; check the storage, then \
                 run again with --checksum"
            }
            ReadBack::AsItWas => {
                "it was equal, and does not read back so: it is damaged; check the storage, then run again with \
                 --checksum"
            }
        }
    }
}

/// Demands that a file, which is `what`, has this root hash.
pub(super) fn check_root(
    place: &Place,
    file: &File,
    grid: &Grid,
    root: &Hash,
    hole_map: bool,
    what: ReadBack,
) -> Result<()> {
    let image = FileImage::new(file.try_clone().map_err(place.error("read"))?, hole_map);
    let image = image.sparing_cache_for(grid.length);
    let found = hashmap::root_of(&image, grid, |_| true).map_err(place.error("read back"))?;
    if found.as_ref() != Some(root) {
        return Err(Error::refused(&place.path, what.refusal()));
    }
    Ok(())
}
