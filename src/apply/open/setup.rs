//! What all destinations of one run share, and what it tells of a file that is there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::sync::{Arc, Mutex};

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};

use crate::apply::attributes::times::{Grain, Precision, TimeRule};
use crate::apply::nodes::NodeDirectories;
use crate::apply::place::listing::Listing;
use crate::apply::place::{Place, Turns};
use crate::apply::ranges::{Abilities, Probe};
use crate::apply::synced::Synced;
use crate::apply::{QuickCheck, Wanted};
use crate::error::lock;
use crate::options::{Options, SizeAndTime};
use crate::report::Changes;
use crate::sys::kind_of;

/// What all destinations of one run share: what was asked for, and what the file systems
/// can do that were met so far.
#[derive(Debug)]
pub struct Setup {
    pub(in crate::apply) options: Arc<Options>,
    /// By device number.
    probed: Mutex<HashMap<u64, Arc<Probe>>>,
    /// Likewise.
    grains: Mutex<HashMap<u64, Grain>>,
    pub(in crate::apply) synced: Arc<Synced>,
    pub(in crate::apply) turns: Arc<Turns>,
    pub(super) nodes: NodeDirectories,
    pub(super) listing: Listing,
    /// Whoever has this puts files in place that wait for it.
    pub(super) delays: bool,
    /// Whoever has this copies what stays of another file.
    pub(super) copies: bool,
}

impl Setup {
    /// For one run.
    pub fn new(options: Arc<Options>) -> Setup {
        Setup {
            options,
            probed: Mutex::default(),
            grains: Mutex::default(),
            synced: Arc::default(),
            turns: Arc::default(),
            nodes: NodeDirectories::default(),
            listing: Listing::default(),
            delays: false,
            copies: false,
        }
    }

    /// The same for a caller that has what is [delayed](crate::apply::Delayed) take its place
    /// in the end, where the options want that.
    pub fn delaying(self) -> Setup {
        Setup { delays: true, ..self }
    }

    /// The same for a caller that copies what stays of another file that is compared with in the
    /// place of a destination; see [`Destination::own`](crate::apply::Destination::own).
    pub fn copying(self) -> Setup {
        Setup { copies: true, ..self }
    }

    /// What can be done about an old file. What its file system can do is tried once, with
    /// an unnamed file.
    pub(super) fn abilities(&self, place: &Place, old: &File, device: u64) -> Abilities {
        let mut probed = lock(&self.probed);
        let probe = match probed.entry(device) {
            Entry::Occupied(known) => Ok(Arc::clone(known.get())),
            Entry::Vacant(unknown) => {
                let probe = place.unnamed().and_then(Probe::of);
                probe.map(|probe| Arc::clone(unknown.insert(Arc::new(probe))))
            }
        };
        drop(probed);
        // It may be this directory that is in the way, and nothing need be written to it.
        let unknown = Abilities { clone: false, reserve: true, punch: true };
        probe.and_then(|probe| probe.abilities(old)).unwrap_or(unknown)
    }

    /// The grain of times in the file system of a file, asked once with an unnamed file.
    /// Where nobody can tell, every difference counts.
    fn grain(&self, place: &Place, device: u64) -> Grain {
        *lock(&self.grains).entry(device).or_insert_with(|| {
            let unnamed = if self.options.dry_run { place.unnamed_at_once() } else { place.unnamed() };
            unnamed.and_then(|file| Grain::of(&file)).unwrap_or_default()
        })
    }

    /// Step 3: rsync's quick check, or what is known.
    pub(super) fn is_equal(&self, place: &Place, stat: &FileStat, wanted: &Wanted) -> bool {
        self.may_be_equal(stat, wanted)
            && match wanted.quick_check {
                QuickCheck::Time(precision) => {
                    self.options.size_only || self.has_time(place, stat, wanted, precision)
                }
                QuickCheck::Content { is_known, .. } => is_known,
                QuickCheck::Never | QuickCheck::SecondTry => false,
            }
    }

    /// Whether it is a file of the length that is wanted, of which less than all of its content may tell that it
    /// is equal.
    pub(super) fn may_be_equal(&self, stat: &FileStat, wanted: &Wanted) -> bool {
        let options = &self.options;
        kind_of(stat) == SFlag::S_IFREG
            && stat.st_size as u64 == wanted.length
            && !(options.checksum || options.ignore_times || options.verify)
    }

    /// Whether it has the time that is wanted, which is known so exactly.
    fn has_time(&self, place: &Place, stat: &FileStat, wanted: &Wanted, precision: Precision) -> bool {
        let there = (stat.st_mtime, stat.st_mtime_nsec as u32);
        let rule = TimeRule { precision, window: self.options.modify_window };
        let is_same = |source| rule.is_same(source, there, || self.grain(place, stat.st_dev));
        wanted.attributes.mtime.is_some_and(is_same)
    }

    /// How what is there differs from what is wanted, as far as that shows from outside.
    pub(super) fn changes(&self, place: &Place, stat: Option<&FileStat>, wanted: &Wanted) -> Changes {
        let kinds = [SFlag::S_IFREG, SFlag::S_IFBLK];
        let Some(stat) = stat.filter(|stat| kinds.contains(&kind_of(stat))) else { return Changes::NEW };
        let is_file = kind_of(stat) == SFlag::S_IFREG;
        let precision = match wanted.quick_check {
            QuickCheck::Time(precision) => precision,
            QuickCheck::Never | QuickCheck::SecondTry | QuickCheck::Content { .. } => Precision::Nanoseconds,
        };
        let open = || place.open(&place.name, OFlag::O_PATH);
        let changes = match self.options.tells_changes.is_asked() {
            true => wanted.attributes.all_changes(stat, open),
            false => wanted.attributes.changes(stat),
        };
        let keeps_time = changes.has(Changes::TIME) && self.has_time(place, stat, wanted, precision);
        let changes = if keeps_time { changes.without(Changes::TIME) } else { changes };
        changes.with(Changes::SIZE, is_file && stat.st_size as u64 != wanted.length)
    }

    /// The same of a file that size and time do not show to be equal.
    pub(super) fn changes_to_transfer(
        &self,
        place: &Place,
        stat: Option<&FileStat>,
        wanted: &Wanted,
    ) -> Changes {
        // With these nothing follows from size and time.
        let compares = self.options.checksum || self.options.verify;
        let changes = self.changes(place, stat, wanted);
        changes.with(Changes::TRANSFER, !compares || changes.has(Changes::NEW))
    }

    /// Whether something stays as it is, or is not made, whatever is wanted.
    pub(super) fn stays(&self, stat: Option<&FileStat>, wanted: &Wanted) -> bool {
        let there = stat.map(|stat| match kind_of(stat) {
            SFlag::S_IFREG => {
                SizeAndTime { time: Some(stat.st_mtime), length: u64::try_from(stat.st_size).ok() }
            }
            _ => SizeAndTime::default(),
        });
        let source = SizeAndTime { time: wanted.attributes.source_time, length: Some(wanted.length) };
        self.options.transfer.stays(source, there, self.options.modify_window)
    }

    /// The run is over: nobody has to wait for a destination that is still open.
    pub fn end(&self) {
        self.turns.end();
    }
}
