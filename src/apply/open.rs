//! What is at a destination already, and how its new content is gone about: see the
//! table in [`apply`](crate::apply).

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;

use crate::apply::overlay::Overlay;
use crate::apply::place::{Access, Place};
use crate::apply::recover::forget_stage;
use crate::apply::stage::Stage;
use crate::apply::stage_log::Identity;
use crate::apply::{Basis, Begin, Destination, Old, Request, Work, check_device_size};
use crate::error::{Error, Result};
use crate::options::{Commit, Options};
use crate::scan::{FileImage, FileState};
use crate::sys;
use crate::working::Working;

/// What is there to compare with, for a run that changes nothing.
///
/// # Errors
///
/// Those of [`Destination::open`], as far as they show without writing.
pub fn preview(place: &Place, request: &Request) -> Result<Option<Basis>> {
    let file = match kind_of(place)? {
        None | Some(SFlag::S_IFLNK) => return Ok(None),
        Some(SFlag::S_IFREG | SFlag::S_IFBLK) => {
            place.open(&place.name, OFlag::O_RDONLY).map_err(place.error("open"))?
        }
        Some(other) => return Err(in_the_way(place, other)),
    };
    let basis = basis_of(&file).map_err(place.error("open"))?;
    if !file.metadata().map_err(place.error("look at"))?.is_file() {
        check_device_size(place, basis.length, request.length, "nothing was written")?;
    }
    Ok(Some(basis).filter(|basis| basis.length > 0 && !request.whole))
}

fn kind_of(place: &Place) -> Result<Option<SFlag>> {
    Ok(place.stat()?.map(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT))
}

fn in_the_way(place: &Place, kind: SFlag) -> Error {
    Error::refused(
        &place.path,
        match kind {
            SFlag::S_IFDIR => "there is a directory where a file must go; remove it first",
            _ => "is neither a regular file nor a block device",
        },
    )
}

impl Destination {
    /// Looks at what is there, locks it and decides how to go about it.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when a directory or something odd is there, when
    /// another run holds it, or when a device is too small.
    pub fn open(place: Place, request: Request, options: Arc<Options>) -> Result<Destination> {
        match kind_of(&place)? {
            None | Some(SFlag::S_IFLNK) => Destination::fresh(place, request, options, None),
            Some(SFlag::S_IFREG) => Destination::existing(place, request, options),
            Some(SFlag::S_IFBLK) => Destination::device(place, request, options),
            Some(other) => Err(in_the_way(&place, other)),
        }
    }

    /// Into a temp file that starts empty, or with what an earlier run left.
    fn fresh(place: Place, request: Request, options: Arc<Options>, old: Option<Old>) -> Result<Destination> {
        let leftover = place.leftover(Working::Temp).map_err(place.error("open the temp file of"))?;
        place
            .remove(&[Working::Clone, Working::Log, Working::Stage])
            .map_err(place.error("clean up after"))?;
        let mut work = Work::Untouched(Begin::Empty);
        let mut basis = None;
        if let Some(file) = leftover
            && !request.whole
        {
            let file = place.locked_temp(file)?;
            basis = Some(basis_of(&file).map_err(place.error("open the temp file of"))?);
            work = Work::Temp(file);
        }
        Ok(Destination::new(place, request, options, old, basis, work))
    }

    fn existing(place: Place, request: Request, options: Arc<Options>) -> Result<Destination> {
        let (file, access) = place.open_old().map_err(place.error("open"))?;
        let file = place.locked(file)?;
        let seen = file.metadata().map_err(place.error("look at"))?;
        let old = Old { file, seen };
        let (in_place, writable) = (options.commit == Commit::InPlace, access == Access::Write);
        if in_place && !writable {
            return Err(Error::refused(&place.path, "cannot be written in place (read-only, or busy)"));
        }
        if (request.whole || access == Access::None) && !in_place {
            return Destination::fresh(place, request, options, Some(old));
        }
        let basis =
            if request.whole { None } else { Some(basis_of(&old.file).map_err(place.error("open"))?) };
        if in_place {
            place.remove(&[Working::Temp, Working::Clone]).map_err(place.error("clean up after"))?;
            forget_stage(&place, options.fsync).map_err(place.error("clean up after"))?;
            return Ok(Destination::new(place, request, options, Some(old), basis, Work::InPlace));
        }
        // What has another name elsewhere must not change there, too.
        let shared = old.seen.nlink() > 1;
        if options.commit == Commit::Atomic || !writable || shared || can_clone(&place, &old.file) {
            let mut found = Destination::fresh(place, request, options, Some(old))?;
            if matches!(found.work, Work::Untouched(_)) {
                (found.work, found.basis) = (Work::Untouched(Begin::Copy), basis);
            }
            return Ok(found);
        }
        Destination::staged(place, request, options, old, basis)
    }

    /// Beside the old file, going on with what an earlier run left.
    fn staged(
        place: Place,
        request: Request,
        options: Arc<Options>,
        old: Old,
        basis: Option<Basis>,
    ) -> Result<Destination> {
        place.remove(&[Working::Temp, Working::Clone]).map_err(place.error("clean up after"))?;
        let leftovers =
            || -> io::Result<_> { Ok(place.leftover(Working::Stage)?.zip(place.leftover(Working::Log)?)) };
        let mut basis = basis;
        let mut work = Work::Untouched(Begin::Stage);
        if let Some((data, log)) = leftovers().map_err(place.error("open the stage of"))? {
            let resume = || -> io::Result<_> {
                let over = data.try_clone()?;
                let Some((stage, runs)) = Stage::resume(data, log, Identity::of(&old.file)?)? else {
                    return Ok(None);
                };
                let overlay = Overlay::new(FileImage::new(old.file.try_clone()?, true), over, runs);
                let length = overlay.length()?;
                Ok(Some((stage, Basis { image: Arc::new(overlay), length, seen: None })))
            };
            if let Some((stage, over)) = resume().map_err(place.error("resume the stage of"))? {
                work = Work::Stage(stage);
                basis = Some(over);
            }
        }
        if matches!(work, Work::Untouched(_)) {
            place.remove(&[Working::Log, Working::Stage]).map_err(place.error("clean up after"))?;
        }
        Ok(Destination::new(place, request, options, Some(old), basis, work))
    }

    fn device(place: Place, request: Request, options: Arc<Options>) -> Result<Destination> {
        // O_EXCL without O_CREAT: fails when the device is mounted or otherwise held (open(2)).
        let file = match place.open(&place.name, OFlag::O_RDWR | OFlag::O_EXCL) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(Error::refused(&place.path, "the device is in use (mounted?); free it first"));
            }
            other => place.locked(other.map_err(place.error("open"))?)?,
        };
        let size = sys::device_size(&file).map_err(place.error("find the size of"))?;
        check_device_size(&place, size, request.length, "nothing was written")?;
        let seen = file.metadata().map_err(place.error("look at"))?;
        let basis = if request.whole { None } else { Some(basis_of(&file).map_err(place.error("open"))?) };
        Ok(Destination::new(place, request, options, Some(Old { file, seen }), basis, Work::InPlace))
    }
}

fn basis_of(file: &File) -> io::Result<Basis> {
    let seen = FileState::of(file)?;
    let image = Arc::new(FileImage::new(file.try_clone()?, true));
    Ok(Basis { image, length: seen.length, seen: Some(seen) })
}

/// Whether a clone of this file can be made beside it, found out with an
/// unnamed file.
fn can_clone(place: &Place, file: &File) -> bool {
    place.unnamed().is_ok_and(|probe| sys::clone_file(file, &probe).unwrap_or(false))
}
