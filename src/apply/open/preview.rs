//! A destination in a dry run, which writes nothing.

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};

use crate::apply::open::alternate::{self, Elsewhere};
use crate::apply::open::{Opened, Opening, Setup, basis_of, open_device};
use crate::apply::others::in_the_way;
use crate::apply::place::Place;
use crate::apply::recover::Recovered;
use crate::apply::{Basis, Wanted, check_device_size};
use crate::error::Result;
use crate::in_use;
use crate::sys::kind_of;

/// What a dry run can tell of a destination.
pub struct Preview {
    /// What there is to compare with.
    pub basis: Option<Basis>,
    /// It is a block device.
    pub device: bool,
    /// There is nothing yet, or a file of another length.
    pub changes_length: bool,
}

/// Steps 1 and 3 of a dry run, which writes nothing.
pub fn preview(place: &Place, stat: Option<FileStat>, wanted: &Wanted, setup: &Setup) -> Result<Opening> {
    let recovered = Recovered::Nothing;
    if stat.is_none()
        && let Elsewhere::Done(changes) = alternate::take(place, wanted, setup)?
    {
        return Ok(Opening { changes, ..Opening::as_it_is(recovered, None) });
    }
    if let Some(stat) = stat.filter(|stat| setup.is_equal(place, stat, wanted)) {
        let changes = setup.changes(place, Some(&stat), wanted);
        return Ok(Opening { recovered, opened: Opened::Equal { unset: None }, changes });
    }
    let changes = setup.changes_to_transfer(place, stat.as_ref(), wanted);
    let opening = |opened| Ok(Opening { recovered, opened, changes });
    let file = match stat.as_ref().map(kind_of) {
        None | Some(SFlag::S_IFLNK) => {
            let similar = place.similar(wanted, setup.options.fuzzy)?;
            let basis = similar.map(|from| basis_of(&from.old.file, setup.options.hole_map)).transpose();
            let basis = basis.map_err(place.error("open what to begin from for"))?;
            return opening(Opened::Preview(Preview { basis, device: false, changes_length: true }));
        }
        Some(SFlag::S_IFBLK) => open_device(place, OFlag::O_RDONLY, &setup.options)?,
        Some(SFlag::S_IFREG) => place.open(&place.name, OFlag::O_RDONLY).map_err(place.error("open"))?,
        Some(other) => return Err(in_the_way::refuse(place, other)),
    };
    let state = file.metadata().map_err(place.error("look at"))?;
    if !setup.options.force_in_use {
        in_use::refuse(&file, &state, &place.path)?;
    }
    let basis = basis_of(&file, setup.options.hole_map).map_err(place.error("open"))?;
    let is_file = state.is_file();
    if !is_file {
        check_device_size(place, basis.length, wanted.length, "nothing was written")?;
    }
    let changes_length = is_file && basis.length != wanted.length;
    let basis = Some(basis).filter(|basis| basis.length > 0 && !wanted.whole);
    opening(Opened::Preview(Preview { basis, device: !is_file, changes_length }))
}
