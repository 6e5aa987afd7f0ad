//! What is at the destination of a file: equal by size and time, something to compare
//! with, or nothing.

use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::stat::{FileStat, SFlag};

use crate::apply::place::{self, Place};
use crate::apply::recover::{self, Settled};
use crate::apply::tree::LastDirectory;
use crate::apply::{self, Basis, Begin, Destination, Work, open};
use crate::error::{Result, printable};
use crate::report::Event;
use crate::source::Kind;
use crate::sync::local::{Job, LocalCopy};

/// What there is of a file.
pub(super) enum Found {
    /// The file, by size and time; it has its attributes now.
    Equal,
    /// In a dry run: what to compare with.
    Preview(Preview),
    /// Something to write to, and whether what is there has another length.
    Open(Box<Destination>, bool),
}

/// What a dry run finds.
pub(super) struct Preview {
    /// What to compare with, if there is anything.
    pub basis: Option<Basis>,
    /// How to name it to people.
    pub path: PathBuf,
    /// There is no file yet, or one of another length.
    pub resized: bool,
}

impl LocalCopy<'_> {
    /// Finishes what a crash left, looks whether the file is equal, and opens it otherwise.
    pub(super) fn open(&self, job: &Job, last: &mut LastDirectory) -> Result<Found> {
        let options = &self.options;
        let Kind::File { length, allocated, retry, .. } = job.source.kind else { return Ok(Found::Equal) };
        // It is kept as long as nothing is written: somebody may put another in its place.
        let mut directory = std::mem::take(last);
        let Some(place) = self.root.place_after(&mut directory, &job.source.target, options.dry_run)? else {
            return Ok(Found::Preview(Preview { basis: None, path: PathBuf::new(), resized: true }));
        };
        let settled =
            if options.dry_run { Settled::Nothing } else { recover::settle(&place, options.fsync)? };
        if let Some(warning) = warning_of(settled, &place) {
            self.reporter.event(Event::Warning(&warning));
        }
        let attributes = job.attributes.clone();
        let request = apply::Request { length, data: allocated, whole: options.whole_file, attributes };
        let stat = place.stat()?;
        let resized = is_resized(stat.as_ref(), length);
        // A file that is half written may have any size and time.
        if settled != Settled::Damaged
            && !resized
            && !retry
            && let Some(stat) = stat.filter(|stat| self.is_unchanged(stat, job))
        {
            *last = directory;
            if !options.dry_run {
                place::touch_from(&place, &stat, &job.attributes)?;
                recover::tidy(&place)?;
            }
            return Ok(Found::Equal);
        }
        if options.dry_run {
            let basis = open::preview(&place, &request)?;
            return Ok(Found::Preview(Preview { basis, path: place.path, resized }));
        }
        let destination = Destination::open(place, request, Arc::clone(options))?;
        Ok(Found::Open(Box::new(destination), resized))
    }

    /// rsync's quick check, for a file of the right length.
    fn is_unchanged(&self, stat: &FileStat, job: &Job) -> bool {
        let options = &self.options;
        if options.checksum || options.ignore_times || options.verify {
            return false;
        }
        let regular = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
        regular && (options.size_only || same_time(job.attributes.mtime, stat))
    }

    /// Whether completing this destination takes the root hash of the source.
    pub(super) fn wants_root(&self, destination: &Destination) -> bool {
        let may_seal = matches!(destination.work, Work::Stage(_) | Work::Untouched(Begin::Stage));
        may_seal || self.options.verify
    }
}

/// Whether there is nothing yet, or a file of another length. A device keeps its own.
fn is_resized(stat: Option<&FileStat>, length: u64) -> bool {
    stat.is_none_or(|stat| match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => stat.st_size as u64 != length,
        kind => kind != SFlag::S_IFBLK,
    })
}

/// Whether a file has this time; a file system without nanoseconds has it, too.
fn same_time(mtime: Option<(i64, u32)>, stat: &FileStat) -> bool {
    mtime.is_some_and(|(seconds, nanoseconds)| {
        stat.st_mtime == seconds && (stat.st_mtime_nsec == i64::from(nanoseconds) || stat.st_mtime_nsec == 0)
    })
}

/// What the user should know of an interrupted run.
fn warning_of(settled: Settled, place: &Place) -> Option<String> {
    let path = printable(&place.path);
    match settled {
        Settled::Nothing => None,
        Settled::Finished(_) => {
            Some(format!("finished what an interrupted run had begun to write into {path}"))
        }
        Settled::Damaged => Some(format!(
            "what an interrupted run left to finish {path} from is damaged; it is compared with the source instead"
        )),
    }
}
