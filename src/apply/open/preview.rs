//! A destination in a dry run: what there is to compare with, also of what an interrupted run
//! left, and what a true run would write. It reads, and neither locks nor makes anything.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};

use crate::apply::aside::similar::From;
use crate::apply::open::alternate::{self, Elsewhere};
use crate::apply::open::basis::image_of;
use crate::apply::open::device::open_device;
use crate::apply::open::{Opened, Opening, Setup};
use crate::apply::others::in_the_way;
use crate::apply::place::Place;
use crate::apply::place::beside::Beside;
use crate::apply::ranges::zeros::{Zeros, ZerosOver};
use crate::apply::recover::{self, Recovered};
use crate::apply::stage::Stage;
use crate::apply::stage::log::Identity;
use crate::apply::stage::overlay::Overlay;
use crate::apply::{Basis, BasisState, Finished, Wanted, check_device_size};
use crate::error::Result;
use crate::hashmap::PAGE;
use crate::in_use;
use crate::options::Commit;
use crate::sys::{self, kind_of};
use crate::working::Working;

/// What a dry run can tell of a destination, and what would be done to it.
pub struct Preview {
    path: PathBuf,
    /// What there is to compare with.
    pub basis: Option<Basis>,
    /// What is compared in the place of that: a file that the user named.
    pub(super) other: Option<Basis>,
    /// Bytes of the block device that it is, if it is one.
    pub device: Option<u64>,
    /// There is nothing yet, or a file of another length.
    pub changes_length: bool,
    /// Where what is new gathers, if all of it is new, so that a file may be cloned into it.
    clones: Option<u64>,
    /// It would be begun from a file elsewhere.
    is_of_another: bool,
    /// It would go on from what an interrupted run left.
    is_resumed: bool,
    /// It is written itself.
    pub(super) is_direct: bool,
    /// Bytes of the blocks in which zeros that take room are given back, if they are.
    gives_back: Option<u64>,
    zeros: Zeros,
    written: u64,
    punched: u64,
    has_changes: bool,
}

impl Preview {
    /// Of a file whose directory is not there either.
    pub fn of_nothing(path: &Path) -> Preview {
        Preview {
            path: path.to_path_buf(),
            basis: None,
            other: None,
            device: None,
            changes_length: true,
            clones: None,
            is_of_another: false,
            is_resumed: false,
            is_direct: false,
            gives_back: None,
            zeros: Zeros::default(),
            written: 0,
            punched: 0,
            has_changes: false,
        }
    }

    /// How to name it to people.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is known of what it has.
    pub fn state(&self) -> BasisState {
        match self.other.as_ref().or(self.basis.as_ref()) {
            Some(_) => BasisState::Mapped,
            None if self.is_direct => BasisState::Unknown,
            None => BasisState::Blank,
        }
    }

    /// Whether a true run has all of a file on this machine shared with it, as far as that shows
    /// without trying.
    pub fn would_clone(&self, source: &File) -> bool {
        source.metadata().is_ok_and(|metadata| self.clones == Some(metadata.dev())) && sys::clones(source)
    }

    /// Data would be put there.
    pub fn write(&mut self, range: &Range<u64>) {
        if self.zeros.overlap(range) {
            let gathered = self.zeros.take();
            self.count(gathered);
        }
        self.wrote(range.end - range.start);
    }

    /// So much data would be put there.
    pub fn wrote(&mut self, bytes: u64) {
        self.written += bytes;
        self.has_changes |= bytes > 0;
    }

    /// A range would become zeros.
    pub fn zero(&mut self, range: Range<u64>) {
        let gathered = self.zeros.gather(range, ZerosOver::Data);
        self.count(gathered);
    }

    /// Zeros that take room would be given back.
    pub fn free(&mut self, range: Range<u64>) {
        if self.gives_back.is_some() {
            let gathered = self.zeros.gather(range, ZerosOver::Zeros);
            self.count(gathered);
        }
    }

    fn count(&mut self, zeros: Option<Zeros>) {
        let Some(zeros) = zeros else { return };
        let range = match (zeros.over, self.gives_back) {
            (ZerosOver::Data, _) => zeros.range,
            (ZerosOver::Zeros, Some(unit)) => zeros.whole_blocks(unit),
            (ZerosOver::Zeros, None) => return,
        };
        self.has_changes |= zeros.over == ZerosOver::Data;
        self.punched = self.punched.saturating_add(range.end.saturating_sub(range.start));
    }

    /// What a true run would come to. `length`: that of the source.
    pub fn finish(mut self, length: u64) -> Finished {
        let gathered = self.zeros.take();
        self.count(gathered);
        let compared = self.basis.is_some() || length == 0;
        let changed = self.is_resumed || !compared || self.changes_length || self.has_changes;
        let (written, punched) = (self.written, self.punched);
        Finished { written, punched, changed, from_cache: false, unset: None, delayed: None, witness: None }
    }
}

/// Steps 1 to 5 of a dry run.
pub fn preview(mut place: Place, stat: Option<FileStat>, wanted: &Wanted, setup: &Setup) -> Result<Opening> {
    place.is_dry = true;
    place.enter_workplace()?;
    let beside = place.look_beside()?;
    let recovered = Recovered::Nothing;
    if stat.is_none()
        && let Elsewhere::Done(changes) = alternate::take(&place, wanted, setup)?
    {
        return Ok(Opening { changes, ..Opening::as_it_is(recovered, None) });
    }
    let sealed = match &stat {
        Some(stat) if kind_of(stat) == SFlag::S_IFREG => recovered_basis(&place, &beside, setup)?,
        _ => None,
    };
    if let Some(stat) = stat.filter(|stat| sealed.is_none() && setup.is_equal(&place, stat, wanted)) {
        let changes = setup.changes(&place, Some(&stat), wanted);
        return Ok(Opening { recovered, opened: Opened::Equal { unset: None }, changes });
    }
    let changes = setup.changes_to_transfer(&place, stat.as_ref(), wanted);
    let kind = stat.as_ref().map(kind_of);
    let mut preview = match (stat, kind) {
        (_, None | Some(SFlag::S_IFLNK)) => new(&place, &beside, wanted, setup)?,
        (_, Some(SFlag::S_IFBLK)) => device(&place, wanted, setup)?,
        (Some(stat), Some(SFlag::S_IFREG)) => existing(&place, &stat, &beside, sealed, (wanted, setup))?,
        (_, Some(other)) => return Err(in_the_way::refuse(&place, other)),
    };
    if setup.copies && !preview.is_resumed && !preview.is_of_another {
        preview.other = place.other_basis(wanted, preview.basis.as_ref());
    }
    Ok(Opening { recovered, opened: Opened::Preview(Box::new(preview)), changes })
}

/// Where there is nothing.
fn new(place: &Place, beside: &Beside, wanted: &Wanted, setup: &Setup) -> Result<Preview> {
    let preview = Preview::of_nothing(&place.path);
    let dir = nix::sys::stat::fstat(&place.dir).map_err(|errno| place.error("look at")(errno.into()))?;
    if let Some(temp) = resumable(place, beside, wanted)? {
        return resumed(place, &temp, preview, setup);
    }
    if beside.leftovers.contains(&Working::Temp) {
        return Ok(preview);
    }
    let similar = place.similar(wanted, setup.options.fuzzy)?;
    let is_copied = |from: &From| {
        setup.copies && from.is_named && !(from.old.state.dev() == dir.st_dev && sys::clones(&from.old.file))
    };
    let similar = similar.filter(|from| !is_copied(from));
    let is_of_another = similar.is_some();
    let basis = similar.map(|from| Basis::of(&from.old.file, setup.options.hole_map)).transpose();
    let basis = basis.map_err(place.error("open what to begin from for"))?.filter(|basis| basis.length > 0);
    let clones = basis.is_none().then_some(dir.st_dev);
    let gives_back = gives_back(&place.dir, PAGE, setup);
    Ok(Preview { basis, clones, gives_back, is_of_another, ..preview })
}

fn device(place: &Place, wanted: &Wanted, setup: &Setup) -> Result<Preview> {
    let file = open_device(place, OFlag::O_RDONLY, &setup.options)?;
    refuse_in_use(place, &file, setup)?;
    let basis = Basis::of(&file, setup.options.hole_map).map_err(place.error("open"))?;
    let size = basis.length;
    check_device_size(place, size, wanted.length, "nothing was written")?;
    let basis = Some(basis).filter(|basis| basis.length > 0 && !wanted.whole);
    let preview = Preview::of_nothing(&place.path);
    Ok(Preview { basis, device: Some(size), changes_length: false, is_direct: true, ..preview })
}

/// Where there is a file: as a true run chooses its way, as far as that decides what is compared.
/// `sealed`: what it becomes from a sealed log.
fn existing(
    place: &Place,
    stat: &FileStat,
    beside: &Beside,
    sealed: Option<Basis>,
    (wanted, setup): (&Wanted, &Setup),
) -> Result<Preview> {
    let options = &setup.options;
    let file = place.open(&place.name, OFlag::O_RDONLY).map_err(place.error("open"))?;
    let state = refuse_in_use(place, &file, setup)?;
    let there = sealed.as_ref().map_or(state.len(), |sealed| sealed.length);
    let is_direct = options.commit == Commit::InPlace;
    let gives_back = gives_back(&place.dir, state.blksize(), setup);
    let changes_length = there != wanted.length;
    let is_unknown = is_direct && there > 0;
    let preview =
        Preview { changes_length, is_direct: is_unknown, gives_back, ..Preview::of_nothing(&place.path) };
    if !is_direct && (wanted.whole || there == 0) {
        return match resumable(place, beside, wanted)? {
            Some(temp) => resumed(place, &temp, preview, setup),
            None => Ok(Preview { clones: Some(state.dev()), ..preview }),
        };
    }
    if wanted.whole {
        return Ok(preview);
    }
    // Where a new one is put together in any case, no stage is gone on from.
    let is_staged = options.commit == Commit::Auto
        && stat.st_nlink == 1
        && sealed.is_none()
        && place.finds_again()
        && place.backup.is_none()
        && place.workplaces.is_none()
        && !sys::clones(&file);
    let left = if is_staged { staged(place, &file, beside, setup)? } else { None };
    if left.is_some() {
        return Ok(Preview { basis: left, is_resumed: true, ..preview });
    }
    if !is_direct
        && !is_staged
        && let Some(temp) = resumable(place, beside, wanted)?
    {
        return resumed(place, &temp, preview, setup);
    }
    let basis = match sealed {
        Some(sealed) => sealed,
        None => Basis::of(&file, options.hole_map).map_err(place.error("open"))?,
    };
    Ok(Preview { basis: Some(basis).filter(|basis| basis.length > 0), ..preview })
}

fn refuse_in_use(place: &Place, file: &File, setup: &Setup) -> Result<std::fs::Metadata> {
    let state = file.metadata().map_err(place.error("look at"))?;
    if !setup.options.force_in_use {
        in_use::refuse(file, &state, &place.path)?;
    }
    Ok(state)
}

/// Bytes of the blocks in which a file with blocks of `unit` gives room back, where it does.
fn gives_back(dir: &Arc<std::os::fd::OwnedFd>, unit: u64, setup: &Setup) -> Option<u64> {
    let is_wanted = !setup.options.preallocate && setup.options.hole_map;
    (is_wanted && sys::may_punch(dir)).then_some(unit)
}

/// The temp file of an interrupted run, from which the next one goes on.
fn resumable(place: &Place, beside: &Beside, wanted: &Wanted) -> Result<Option<File>> {
    if wanted.whole || !beside.leftovers.contains(&Working::Temp) {
        return Ok(None);
    }
    place.peek(Working::Temp).map_err(place.error("open the temp file of"))
}

fn resumed(place: &Place, temp: &File, preview: Preview, setup: &Setup) -> Result<Preview> {
    let basis = Basis::of(temp, setup.options.hole_map).map_err(place.error("open the temp file of"))?;
    let basis = Some(basis).filter(|basis| basis.length > 0);
    let gives_back = gives_back(&place.dir, preview.gives_back.unwrap_or(PAGE), setup);
    Ok(Preview { basis, is_resumed: true, gives_back, ..preview })
}

/// The old file with the stage of an interrupted run over it.
fn staged(place: &Place, old: &File, beside: &Beside, setup: &Setup) -> Result<Option<Basis>> {
    if ![Working::Stage, Working::Log].iter().all(|kind| beside.leftovers.contains(kind)) {
        return Ok(None);
    }
    let read = || -> io::Result<Option<Basis>> {
        let (Some(data), Some(log)) = (place.peek(Working::Stage)?, place.peek(Working::Log)?) else {
            return Ok(None);
        };
        let Some(runs) = Stage::read(&log, Identity::of(old)?)? else { return Ok(None) };
        let state = old.metadata()?;
        let old = image_of(old, 512 * state.blocks(), state.len(), setup.options.hole_map)?;
        let overlay = Overlay::new(old, data, runs);
        let length = overlay.length()?;
        Ok(Some(Basis { image: Arc::new(overlay), length, state: None }))
    };
    read().map_err(place.error("read the stage of"))
}

/// What a file becomes from a sealed log, which the next run does first.
fn recovered_basis(place: &Place, beside: &Beside, setup: &Setup) -> Result<Option<Basis>> {
    if beside.logs.is_empty() {
        return Ok(None);
    }
    let old = match place.open(&place.name, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        other => other.map_err(place.error("open"))?,
    };
    let Some(sealed) = recover::sealed(place, beside, &old)? else { return Ok(None) };
    let overlay = sealed.overlay(&old, setup.options.hole_map).map_err(place.error("read the log of"))?;
    Ok(overlay.map(|overlay| Basis { image: Arc::new(overlay), length: sealed.seal.length, state: None }))
}
