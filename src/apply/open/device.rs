//! A block device as a destination.

use std::fs::File;

use nix::fcntl::OFlag;

use crate::apply::commit::Task;
use crate::apply::place::{Access, Old, Place};
use crate::apply::way::Way;
use crate::apply::way::direct::Direct;
use crate::apply::{Basis, Destination, check_device_size};
use crate::error::{Error, Result};
use crate::in_use;
use crate::options::Options;
use crate::sys;

/// Opens a device that nobody holds, unless that is to be no matter.
pub(super) fn open_device(place: &Place, access: OFlag, options: &Options) -> Result<File> {
    // O_EXCL without O_CREAT: fails when the device is mounted or otherwise held (open(2)).
    let alone = if options.force_in_use { OFlag::empty() } else { OFlag::O_EXCL };
    place.open(&place.name, access | alone).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => {
            in_use::refuse_held(&place.path, place.stat().ok().flatten().map_or(0, |stat| stat.st_rdev))
        }
        _ => place.error("open")(error),
    })
}

/// It is written itself.
pub(super) fn device(task: Task) -> Result<Destination> {
    let place = &task.place;
    if place.backup.is_some() {
        let why = "is a device: --backup cannot keep what is on it; leave that out";
        return Err(Error::refused(&place.path, why));
    }
    let file = place.locked(open_device(place, OFlag::O_RDWR, &task.options)?)?;
    let size = sys::device_size(&file).map_err(place.error("find the size of"))?;
    check_device_size(place, size, task.wanted.length, "nothing was written")?;
    let state = file.metadata().map_err(place.error("look at"))?;
    let basis = if task.wanted.whole {
        None
    } else {
        Some(Basis::of(&file, task.options.hole_map).map_err(place.error("open"))?)
    };
    let old = Old { file, state, access: Access::Write, turn: None };
    task.claim(&old)?;
    Ok(Destination::new(task, Way::Direct(Direct::new(old)), basis))
}
