//! The one entry to a destination: what is there already, whether it is equal, what earlier
//! runs left, and which way the new content goes. See steps 1 to 5 of
//! [`apply`](crate::apply).

mod alternate;
mod basis;
mod device;
mod preview;
mod setup;
mod sink;

use std::cell::{Cell, OnceCell};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};

use crate::apply::commit::{Counts, Task};
use crate::apply::others::in_the_way;
use crate::apply::place::beside::Beside;
use crate::apply::place::{Access, Old, Place};
use crate::apply::ranges::Abilities;
use crate::apply::ranges::behind::WriteBehind;
use crate::apply::ranges::cover::Cover;
use crate::apply::ranges::zeros::Zeros;
use crate::apply::recover::{self, Recovered};
use crate::apply::stage::Stage;
use crate::apply::stage::log::Identity;
use crate::apply::stage::overlay::Overlay;
use crate::apply::way::Way;
use crate::apply::way::clone::Replica;
use crate::apply::way::direct::Direct;
use crate::apply::way::fresh::Fresh;
use crate::apply::way::staged::Staged;
use crate::apply::{Basis, Destination, Wanted};
use crate::error::{Error, Failure, Result};
use crate::options::Commit;
use crate::report::Changes;
use crate::sys::kind_of;
use crate::working::Working;
use alternate::Elsewhere;
use basis::image_of;
use device::device;
pub use preview::Preview;
use preview::preview;
pub use setup::Setup;
pub use sink::Sink;

/// What became of an attempt to open a destination.
pub struct Opening {
    /// What an interrupted run had left: the caller warns about it.
    pub recovered: Recovered,
    /// What there is now.
    pub opened: Opened,
    /// How it differs from what is wanted, as far as that shows from outside.
    pub changes: Changes,
}

impl Opening {
    /// Where something stays as it is, or is not made.
    fn as_it_is(recovered: Recovered, stat: Option<&FileStat>) -> Opening {
        let changes = Changes::LEFT.with(Changes::NEW, stat.is_none());
        Opening { recovered, opened: Opened::Equal { unset: None }, changes }
    }
}

/// What there is at a destination.
pub enum Opened {
    /// What is wanted, or what is to stay as it is.
    Equal {
        /// Attributes that may not be set.
        unset: Option<Failure>,
    },
    /// In a dry run, what there is to compare with.
    Preview(Box<Preview>),
    /// Something else.
    Different(Box<Destination>),
}

impl Destination {
    /// Finishes what a crash left, looks whether what is there is equal already, and if not
    /// locks it and decides how to go about it. A dry run changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when a directory or something odd is there that stays, when another run
    /// holds it, when a device is too small, or when another version of this program left
    /// a log.
    pub fn open(mut place: Place, wanted: Wanted, setup: &Setup) -> Result<Opening> {
        if place.is_own {
            return in_own_directory(place, wanted, setup);
        }
        let options = &setup.options;
        let mut stat = place.stat()?;
        if let None | Some(SFlag::S_IFLNK) = stat.as_ref().map(kind_of) {
            setup.nodes.refuse_missing(&place, stat.is_some())?;
        }
        let kind = stat.as_ref().map(kind_of);
        // What may be half written is completed first.
        if (options.dry_run || kind != Some(SFlag::S_IFREG)) && setup.stays(stat.as_ref(), &wanted) {
            return Ok(Opening::as_it_is(Recovered::Nothing, stat.as_ref()));
        }
        let replaces = in_the_way::find(&place, stat.as_ref(), options, || setup.nodes.contains(&place))?;
        stat.take_if(|_| replaces.is_some());
        if options.dry_run {
            return preview(place, stat, &wanted, setup);
        }
        place.enter_workplace()?;
        let is_clean = place.workplace.is_none() && setup.listing.is_clean_around(&place);
        let mut beside = if is_clean { Beside::default() } else { place.look_beside()? };
        let mut recovered = Recovered::Nothing;
        if replaces.is_none() && stat.as_ref().map(kind_of) != Some(SFlag::S_IFBLK) {
            recovered = recover::finish_beside(&place, &beside, options)?;
            if matches!(recovered, Recovered::Finished { .. }) {
                (stat, beside) = (place.stat()?, place.look_beside()?);
            }
        }
        if setup.stays(stat.as_ref(), &wanted) {
            return Ok(Opening::as_it_is(recovered, stat.as_ref()));
        }
        let elsewhere = match (stat, replaces) {
            (None, None) => alternate::take(&place, &wanted, setup)?,
            _ => Elsewhere::No,
        };
        if let Elsewhere::Done(changes) = elsewhere {
            place.remove_leftovers(&beside.leftovers);
            place.remove_litter(&beside);
            return Ok(Opening { changes, ..Opening::as_it_is(recovered, None) });
        }
        if !recovered.is_doubtful()
            && let Some(stat) = stat.filter(|stat| setup.is_equal(&place, stat, &wanted))
        {
            let changes = setup.changes(&place, Some(&stat), &wanted);
            let synced = options.fsync.then_some(&*setup.synced);
            // Whoever has another name of it open wants to find it as it was.
            let differs = !wanted.attributes.are_those_of(&stat);
            let _turn = differs.then(|| setup.turns.take(&place, &stat)).transpose()?;
            let unset = place.set_attributes_of(&stat, &wanted.attributes, synced)?;
            remove_leftovers(&place, &beside)?;
            return Ok(Opening { recovered, opened: Opened::Equal { unset }, changes });
        }
        let found = Found { stat, replaces, beside, recovered, elsewhere };
        begin(place, wanted, setup, found)
    }

    fn new(task: Task, way: Way, basis: Option<Basis>) -> Destination {
        let basis = basis.filter(|basis| basis.length > 0);
        let behind = WriteBehind::new(task.options.fsync, task.wanted.data);
        Destination { task, way, basis, other: None, cloned_from: None, behind, zeros: Zeros::default() }
    }
}

/// What was found where a destination is to be.
struct Found {
    stat: Option<FileStat>,
    /// The kind of what is there and to be replaced, if that is neither a file nor a symlink.
    replaces: Option<SFlag>,
    beside: Beside,
    recovered: Recovered,
    elsewhere: Elsewhere,
}

/// The same where nothing can be there yet, nor working files.
fn in_own_directory(place: Place, wanted: Wanted, setup: &Setup) -> Result<Opening> {
    if setup.stays(None, &wanted) {
        return Ok(Opening::as_it_is(Recovered::Nothing, None));
    }
    let recovered = Recovered::Nothing;
    let elsewhere = alternate::take(&place, &wanted, setup)?;
    if let Elsewhere::Done(changes) = elsewhere {
        return Ok(Opening { changes, ..Opening::as_it_is(recovered, None) });
    }
    let found = Found { stat: None, replaces: None, beside: Beside::default(), recovered, elsewhere };
    begin(place, wanted, setup, found)
}

/// Decides how to go about what is not equal.
fn begin(mut place: Place, wanted: Wanted, setup: &Setup, found: Found) -> Result<Opening> {
    let options = &setup.options;
    let Found { stat, replaces, beside, recovered, elsewhere } = found;
    let is_written_itself = match stat.as_ref().map(kind_of) {
        Some(SFlag::S_IFREG) => options.commit == Commit::InPlace,
        kind => kind == Some(SFlag::S_IFBLK),
    };
    if !is_written_itself {
        place.make_workplace()?;
    }
    let changes = setup.changes_to_transfer(&place, stat.as_ref(), &wanted);
    let (options, can) = (Arc::clone(options), Abilities::default());
    let (counts, data) = (Counts::default(), Cover::default());
    let synced = Arc::clone(&setup.synced);
    let waits = options.workplace.delay && !options.remove_source_files && place.workplace.is_some();
    let delays = setup.delays && waits && !is_written_itself;
    let task = Task {
        place,
        wanted,
        options,
        can,
        replaces,
        beside,
        recovered: recovered.clone(),
        counts,
        synced,
        data,
        begun_from: None,
        delays,
        delayed: OnceCell::new(),
        watches: false,
        witness: Cell::default(),
    };
    if is_written_itself && task.options.together.is_some() {
        return Err(task.no_preparing());
    }
    // Whoever waits has it locked.
    remove_drafts(&task, &[Working::Prepared]);
    if let Elsewhere::Copied(from) = elsewhere {
        let task = Task { delays: false, ..task };
        remove_drafts(&task, &[Working::Clone]);
        return alternate::copy(task, from);
    }
    let destination = match stat.map(|stat| (kind_of(&stat), stat)) {
        Some((SFlag::S_IFREG, stat)) => existing(task, stat, setup),
        Some((SFlag::S_IFBLK, _)) => device(task),
        _ => {
            remove_drafts(&task, &[Working::Clone]);
            new(task, setup)
        }
    };
    let mut destination = destination?;
    if setup.copies && !destination.way.is_resumed() && !destination.way.is_of_another() {
        let Destination { task, basis, .. } = &destination;
        destination.other = task.place.other_basis(&task.wanted, basis.as_ref());
    }
    Ok(Opening { recovered, opened: Opened::Different(Box::new(destination)), changes })
}

/// Removes what interrupted runs left beside a file that needs nothing, unless another run
/// is at work there.
fn remove_leftovers(place: &Place, beside: &Beside) -> Result<()> {
    if !beside.is_empty() {
        // A file that is locked, or not ours to open, is another's to clean up after.
        match place.open(&place.name, OFlag::O_RDONLY | OFlag::O_NONBLOCK).map(|file| place.locked(file)) {
            // Another run may have sealed a log since they were looked for, and ended.
            Ok(Ok(locked)) if !recover::is_sealed(place, &locked)? => {
                place.remove_leftovers(&beside.leftovers);
                place.remove_litter(beside);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes leftovers that no file can be finished from.
fn remove_drafts(task: &Task, kinds: &[Working]) {
    let there = kinds.iter().copied().filter(|kind| task.beside.leftovers.contains(kind)).collect::<Vec<_>>();
    task.place.remove_leftovers(&there);
}

/// What failed where a file that is like a new one cannot be had.
const OPEN_SIMILAR: &str = "open what to begin from for";

/// Where there is nothing: with what an earlier run left, or from a file that is like it.
fn new(mut task: Task, setup: &Setup) -> Result<Destination> {
    if task.beside.leftovers.contains(&Working::Temp) {
        return fresh(task, setup, None);
    }
    let Some(from) = task.place.similar(&task.wanted, task.options.fuzzy)? else {
        return fresh(task, setup, None);
    };
    let dir = nix::sys::stat::fstat(&task.place.dir);
    let device = dir.map_err(|errno| task.place.error(OPEN_SIMILAR)(errno.into()))?.st_dev;
    let can = setup.abilities(&task.place, &from.old.file, device);
    if setup.copies && from.is_named && !can.clone {
        // What stays of it is hashed as it is copied.
        return fresh(task, setup, None);
    }
    task.can = can;
    task.begun_from.clone_from(&from.name);
    let mut basis =
        Basis::of(&from.old.file, task.options.hole_map).map_err(task.place.error(OPEN_SIMILAR))?;
    let (mut replica, mut cloned_from) = (Replica::of_another(from), None);
    if setup.copies
        && can.clone
        && let Some(snapshot) = replica.snapshot(&task)?
    {
        let clone = Basis::of(snapshot, task.options.hole_map).map_err(task.place.error(OPEN_SIMILAR))?;
        cloned_from = Some(std::mem::replace(&mut basis, clone));
    }
    let destination = Destination::new(task, Way::Replica(replica), Some(basis));
    Ok(Destination { cloned_from, ..destination })
}

/// Into a temp file that starts empty, or with what an earlier run left. Stage and log of an
/// earlier run stay until it has taken its place.
fn fresh(task: Task, setup: &Setup, old: Option<Old>) -> Result<Destination> {
    if !task.wanted.whole
        && let Some(temp) = resumable_temp(&task)?
    {
        return resumed(task, setup, old, temp);
    }
    Ok(Destination::new(task, Way::Fresh(Fresh::new(old)), None))
}

fn resumed(mut task: Task, setup: &Setup, old: Option<Old>, temp: File) -> Result<Destination> {
    let error = || task.place.error("open the temp file of");
    let basis = Basis::of(&temp, task.options.hole_map).map_err(error())?;
    let device = temp.metadata().map_err(error())?.dev();
    task.can = setup.abilities(&task.place, &temp, device);
    Ok(Destination::new(task, Way::Fresh(Fresh::resumed(old, temp)), Some(basis)))
}

/// The temp file of an earlier run, locked, to go on from.
fn resumable_temp(task: &Task) -> Result<Option<File>> {
    let place = &task.place;
    if !task.beside.leftovers.contains(&Working::Temp) {
        return Ok(None);
    }
    let leftover = place.leftover(Working::Temp).map_err(place.error("open the temp file of"))?;
    leftover.map(|temp| place.locked_temp(temp)).transpose()
}

/// Steps 4 and 5 where there is a file.
fn existing(mut task: Task, stat: FileStat, setup: &Setup) -> Result<Destination> {
    let turn = setup.turns.take(&task.place, &stat)?;
    let old = Old { turn, ..task.place.open_old()? };
    refuse_new_log(&task, setup)?;
    task.refuse_in_use(&old)?;
    remove_drafts(&task, &[Working::Clone]);
    let commit = task.options.commit;
    if commit == Commit::InPlace {
        return in_place(task, setup, old);
    }
    if task.wanted.whole || old.access == Access::None || old.state.len() == 0 {
        return fresh(task, setup, Some(old));
    }
    task.can = setup.abilities(&task.place, &old.file, old.state.dev());
    // What has another name elsewhere, or is kept, must not change there, too; what a sealed log belongs
    // to is left to it until it is replaced; nothing may fail behind a seal; and a stage lies beside.
    let may_change = old.access == Access::Write
        && old.state.nlink() == 1
        && !task.recovered.is_doubtful()
        && task.wanted.attributes.may_be_set_on(&old)
        && task.place.finds_again()
        && task.place.backup.is_none()
        && task.place.workplace.is_none()
        && task.can.reserve
        && task.can.punch;
    if commit == Commit::Auto && may_change && !task.can.clone {
        return staged(task, old);
    }
    if let Some(temp) = resumable_temp(&task)? {
        return resumed(task, setup, Some(old), temp);
    }
    let basis = Basis::of(&old.file, task.options.hole_map).map_err(task.place.error("open"))?;
    Ok(Destination::new(task, Way::Replica(Replica::new(old)), Some(basis)))
}

/// Whoever held the lock may have sealed a log since working files were looked for, and died.
fn refuse_new_log(task: &Task, setup: &Setup) -> Result<()> {
    let place = &task.place;
    if setup.listing.is_clean_around(place) {
        return Ok(());
    }
    let is_new = !task.beside.leftovers.contains(&Working::Log)
        && place.peek(Working::Log).map_err(place.error("open the log of"))?.is_some();
    if is_new {
        return Err(Error::refused(
            &place.path,
            "another holesync run was at work there meanwhile; run again",
        ));
    }
    Ok(())
}

fn in_place(mut task: Task, setup: &Setup, old: Old) -> Result<Destination> {
    let place = &task.place;
    if old.access != Access::Write {
        return Err(Error::refused(&place.path, "cannot be written in place (read-only, or busy)"));
    }
    task.claim(&old)?;
    remove_drafts(&task, &[Working::Temp]);
    let mut basis = None;
    if !task.wanted.whole {
        basis = Some(Basis::of(&old.file, task.options.hole_map).map_err(place.error("open"))?);
        task.can = setup.abilities(place, &old.file, old.state.dev());
    }
    Ok(Destination::new(task, Way::Direct(Direct::new(old)), basis))
}

/// Beside the old file, going on with what an earlier run left.
fn staged(task: Task, old: Old) -> Result<Destination> {
    remove_drafts(&task, &[Working::Temp]);
    let place = &task.place;
    let resume = |data: File, log: File| -> io::Result<_> {
        let over = data.try_clone()?;
        let Some((stage, runs)) = Stage::resume(data, log, Identity::of(&old.file)?)? else {
            return Ok(None);
        };
        let overlay = Overlay::new(
            image_of(&old.file, 512 * old.state.blocks(), old.state.len(), task.options.hole_map)?,
            over,
            runs,
        );
        let length = overlay.length()?;
        Ok(Some((stage, Basis { image: Arc::new(overlay), length, state: None })))
    };
    if [Working::Stage, Working::Log].iter().all(|kind| task.beside.leftovers.contains(kind)) {
        let leftovers =
            || -> io::Result<_> { Ok(place.leftover(Working::Stage)?.zip(place.leftover(Working::Log)?)) };
        if let Some((data, log)) = leftovers().map_err(place.error("open the stage of"))?
            && let Some((stage, over)) = resume(data, log).map_err(place.error("resume the stage of"))?
        {
            return Ok(Destination::new(task, Way::Staged(Staged::resumed(old, stage)), Some(over)));
        }
    }
    let basis = Basis::of(&old.file, task.options.hole_map).map_err(place.error("open"))?;
    Ok(Destination::new(task, Way::Staged(Staged::new(old)), Some(basis)))
}
