//! The destination of one file: where new content gathers. What is there already is
//! [`approach`](crate::apply::open)'s business, how it becomes the file that of `commit`.
//! Knows no protocol.
//!
//! | there | how |
//! |---|---|
//! | nothing | a temp file beside it, renamed |
//! | a file, and the file system can clone | a clone, patched and renamed |
//! | a file, `Commit::Atomic` | a copy, patched and renamed |
//! | a file otherwise | a [`stage`]: written in place from a sealed log, or completed and renamed, whichever costs less |
//! | a file and `Commit::InPlace`, a block device | written directly |

pub(crate) mod commit;
pub mod copy;
pub mod open;
pub mod overlay;
pub mod place;
pub mod ranges;
pub mod recover;
pub(crate) mod root;
pub mod stage;
pub mod stage_log;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use crate::apply::copy::{CopyError, copy_data};
use crate::apply::place::{Attributes, Place};
use crate::apply::stage::Stage;
use crate::apply::stage_log::Identity;
use crate::error::{Error, Result};
use crate::hashmap::PAGE;
use crate::options::{Commit, Options};
use crate::report::human;
use crate::scan::{FileImage, FileState, Image};
use crate::sys;
use crate::working::Working;

/// What is wanted of a destination.
#[derive(Debug, Clone)]
pub struct Request {
    /// The length of the source.
    pub length: u64,
    /// Bytes of data in the source, for messages.
    pub data: u64,
    /// Do not compare with what is there.
    pub whole: bool,
    /// What the file is to carry.
    pub attributes: Attributes,
}

/// What a destination has already, to compare with.
#[derive(Clone)]
pub struct Basis {
    /// Its bytes.
    pub image: Arc<dyn Image + Send + Sync>,
    /// Its length.
    pub length: u64,
    /// The state it is in, if it is a file as it is.
    pub seen: Option<FileState>,
}

/// One file that is being made equal.
pub struct Destination {
    pub(crate) place: Place,
    pub(crate) request: Request,
    pub(crate) options: Arc<Options>,
    pub(crate) old: Option<Old>,
    pub(crate) basis: Option<Basis>,
    pub(crate) work: Work,
    pub(crate) written: u64,
    pub(crate) punched: u64,
    dirty: Dirty,
    /// The log is sealed: it is needed until the file is finished from it.
    pub(crate) sealed: bool,
    /// The file system gives ranges back; found out when it is first asked to.
    pub(crate) frees: Option<bool>,
}

/// Written and not yet on its way to storage.
#[derive(Default)]
struct Dirty {
    /// It lies in here.
    span: Range<u64>,
    bytes: u64,
}

/// The file that was there, locked.
pub(crate) struct Old {
    pub(crate) file: File,
    pub(crate) seen: std::fs::Metadata,
}

/// Where new content goes.
pub(crate) enum Work {
    /// Nothing differs so far.
    Untouched(Begin),
    /// A temp file, to be renamed.
    Temp(File),
    /// A stage beside the old file.
    Stage(Stage),
    /// The old file itself, or a device.
    InPlace,
    /// Nowhere any more: it is becoming the destination.
    Finishing,
}

/// How work begins when the first difference shows.
#[derive(Clone, Copy)]
pub(crate) enum Begin {
    Empty,
    Copy,
    Stage,
}

/// File systems that call more than this a block mean something else by it.
const MAX_UNIT: u64 = 1 << 20;

/// Bytes written before they are pushed towards storage.
const WRITEBACK: u64 = 8 << 20;

/// Fails when a device holds fewer than `length` bytes; `state`: what became of it.
pub(crate) fn check_device_size(place: &Place, size: u64, length: u64, state: &str) -> Result<()> {
    if size < length {
        let why = format!("the device holds {size} bytes and the image has {length}; {state}");
        return Err(Error::refused(&place.path, why));
    }
    Ok(())
}

impl Destination {
    pub(crate) fn new(
        place: Place,
        request: Request,
        options: Arc<Options>,
        old: Option<Old>,
        basis: Option<Basis>,
        work: Work,
    ) -> Destination {
        let basis = basis.filter(|basis| basis.length > 0);
        Destination {
            place,
            request,
            options,
            old,
            basis,
            work,
            written: 0,
            punched: 0,
            dirty: Dirty::default(),
            sealed: false,
            frees: None,
        }
    }

    /// What to compare with; `None`: nothing, all of the source is needed.
    pub fn basis(&self) -> Option<Basis> {
        self.basis.clone()
    }

    /// How to name it to people.
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// Whether anything was written or zeroed.
    pub fn is_changed(&self) -> bool {
        self.written + self.punched > 0
    }

    /// For a source whose length shows only as it arrives: it is so long at least.
    ///
    /// # Errors
    ///
    /// When the file cannot be made as long, or the device is not.
    pub fn extend(&mut self, length: u64) -> Result<()> {
        self.begin()?;
        self.request.length = length;
        if self.is_device() {
            let size = sys::device_size(self.target()?).map_err(self.place.error("find the size of"))?;
            let state = if self.is_changed() { "it is partly written" } else { "nothing was written" };
            return check_device_size(&self.place, size, length, state);
        }
        let extended = ranges::set_length(self.target()?, length, self.options.preallocate);
        extended.map_err(|error| self.failed("set the length of", error))
    }

    /// Whether it must be told of every zero, since nobody knows what is there.
    pub fn is_blank(&self) -> bool {
        self.basis.is_none() && !matches!(self.work, Work::InPlace)
    }

    /// Whether all that will be in it is still to come: into a temp file of its own.
    pub fn is_empty(&self) -> bool {
        matches!(self.work, Work::Untouched(Begin::Empty))
    }

    /// Puts data at its place.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.begin()?;
        self.grow()?;
        let result = match &mut self.work {
            Work::Stage(stage) => stage.write(at, bytes),
            _ => self.target()?.write_all_at(bytes, at),
        };
        result.map_err(|error| self.failed("write", error))?;
        self.written += bytes.len() as u64;
        self.push_out(at..at + bytes.len() as u64)
    }

    /// Fills a destination that [is empty](Destination::is_empty) with all that another
    /// file on this machine has, zeros left out; shares it where the file system can.
    /// `progress` is told bytes. Returns bytes of data.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] for a destination that is not empty; what reading and writing
    /// report.
    pub fn copy_from(
        &mut self,
        source: &File,
        path: &Path,
        hole_map: bool,
        mut progress: impl FnMut(u64),
    ) -> Result<u64> {
        if !self.is_empty() {
            return Err(Error::refused(&self.place.path, "there is something already"));
        }
        self.begin()?;
        if sys::clone_file(source, self.target()?).map_err(|error| self.failed("clone into", error))? {
            self.written = self.request.data;
            progress(self.written);
            return Ok(self.written);
        }
        self.grow()?;
        let image = FileImage::new(source.try_clone().map_err(Error::file("read", path))?, hole_map);
        let target = self.target()?;
        let mut written = 0;
        let copied = copy_data(&image, target, self.request.length, |range, bytes| {
            written += bytes;
            progress(bytes);
            if self.options.fsync {
                sys::start_writeback(target, range);
            }
        });
        copied.map_err(|error| match error {
            CopyError::Read(error) => Error::file("read", path)(error),
            CopyError::Write(error) => self.failed("write", error),
        })?;
        self.written = written;
        Ok(written)
    }

    /// Makes a range zero: a hole, unless zeros are to stay allocated.
    pub fn zero(&mut self, range: Range<u64>) -> Result<()> {
        self.begin()?;
        self.punched = self.punched.saturating_add(range.end - range.start);
        let keep = self.options.preallocate;
        // A hole that reaches the end of the file may take the rest of its page along.
        let at_end = range.end == self.request.length && !keep;
        let to_page = range.start..if at_end { ranges::page_up(range.end) } else { range.end };
        let device = self.is_device();
        let result = match &mut self.work {
            Work::Stage(stage) => stage.zero(range),
            _ if device => ranges::zero_device(self.target()?, range),
            _ => ranges::make_zero(self.target()?, to_page, keep),
        };
        result.map_err(|error| self.failed("punch holes into", error))
    }

    /// Gives allocated zeros back to the file system, unless they are to stay; on
    /// one that cannot take them nothing happens.
    pub fn free(&mut self, range: Range<u64>) -> Result<()> {
        if self.options.preallocate || self.is_device() || !self.can_free() {
            return Ok(());
        }
        let unit = self.old.as_ref().map_or(PAGE, |old| old.seen.blksize().clamp(PAGE, MAX_UNIT));
        let whole = range.start.div_ceil(unit) * unit..range.end / unit * unit;
        if whole.is_empty() {
            return Ok(());
        }
        self.begin()?;
        self.punched = self.punched.saturating_add(whole.end - whole.start);
        let result = match &mut self.work {
            Work::Stage(stage) => stage.free(whole),
            _ => sys::punch_hole(self.target()?, whole).map(drop),
        };
        result.map_err(|error| self.failed("punch holes into", error))
    }

    /// Whether holes can be punched here, found out with an unnamed file.
    fn can_free(&mut self) -> bool {
        *self.frees.get_or_insert_with(|| {
            let probe = self.place.unnamed();
            probe.is_ok_and(|probe| sys::punch_hole(&probe, 0..PAGE).unwrap_or(false))
        })
    }

    /// Removes what was gathered: on a full disk it would only be in the way.
    pub fn discard(&self) {
        // The disk is in trouble already; what cannot be removed is found by the next run.
        let _ = self.place.remove(&Working::ALL);
    }

    /// Keeps what was gathered for the next run.
    pub fn keep(mut self) {
        if let Work::Stage(stage) = &mut self.work {
            // Unflushed records only mean that their data is sent again.
            let _ = stage.flush();
        }
    }

    /// The file that is written or, before anything differs, the old one.
    pub(crate) fn target(&self) -> Result<&File> {
        match (&self.work, &self.old) {
            (Work::Temp(file), _) => Ok(file),
            (Work::Stage(stage), _) => Ok(stage.data()),
            (_, Some(old)) => Ok(&old.file),
            (_, None) => Err(Error::refused(&self.place.path, "it was removed meanwhile")),
        }
    }

    pub(crate) fn is_device(&self) -> bool {
        self.old.as_ref().is_some_and(|old| !old.seen.is_file())
    }

    /// Creates what new content goes into, when the first difference shows.
    pub(crate) fn begin(&mut self) -> Result<()> {
        let Work::Untouched(begin) = self.work else { return Ok(()) };
        let place = &self.place;
        self.work = match (begin, &self.old) {
            (Begin::Stage, Some(old)) => {
                let files = || -> io::Result<Stage> {
                    place.remove(&[Working::Stage, Working::Log])?;
                    let identity = Identity::of(&old.file)?;
                    Stage::begin(place.create(Working::Stage)?, place.create(Working::Log)?, identity)
                };
                Work::Stage(files().map_err(|error| self.failed("create the stage of", error))?)
            }
            (Begin::Copy, Some(old)) => {
                place.remove(&[Working::Clone]).map_err(place.error("clean up after"))?;
                let temp = place.create(Working::Clone).map_err(place.error("create the temp file of"))?;
                let temp = place.locked(temp)?;
                ranges::copy_all(&old.file, &temp).map_err(|error| self.failed("copy", error))?;
                if self.is_loose(&old.file).map_err(place.error("look at"))? {
                    let all = 0..ranges::page_up(old.seen.len());
                    ranges::free_holes_of(&old.file, &temp, all).map_err(place.error("punch holes into"))?;
                }
                let names = [Working::Clone, Working::Temp].map(|kind| kind.name_for(&place.name));
                sys::rename_at(&place.dir, &names[0], &names[1])
                    .map_err(place.error("create the temp file of"))?;
                Work::Temp(temp)
            }
            _ => {
                let temp =
                    match place.leftover(Working::Temp).map_err(place.error("open the temp file of"))? {
                        Some(leftover) => leftover,
                        None => place
                            .create(Working::Temp)
                            .map_err(|error| self.failed("create the temp file of", error))?,
                    };
                let temp = place.locked_temp(temp)?;
                // ext4 writes back at its close what was emptied once (auto_da_alloc, ext4(5)).
                if temp.metadata().map_err(place.error("look at"))?.len() > 0 {
                    temp.set_len(0).map_err(place.error("write"))?;
                }
                if self.options.preallocate {
                    sys::allocate(&temp, 0..self.request.length)
                        .map_err(|error| self.failed("allocate", error))?;
                }
                Work::Temp(temp)
            }
        };
        Ok(())
    }

    /// Before the first write the file gets its length: some file systems (xfs)
    /// allocate ahead of writes that make a file longer, and leave that in its holes.
    fn grow(&self) -> Result<()> {
        if self.written > 0 || self.is_device() {
            return Ok(());
        }
        let file = self.target()?;
        let length = file.metadata().map_err(self.place.error("look at"))?.len();
        if length < self.request.length {
            let grown = ranges::set_length(file, self.request.length, self.options.preallocate);
            grown.map_err(|error| self.failed("set the length of", error))?;
        }
        Ok(())
    }

    /// Starts writing back early, so that the sync at the end is short.
    fn push_out(&mut self, range: Range<u64>) -> Result<()> {
        let bytes = self.dirty.bytes + (range.end - range.start);
        let span = if self.dirty.bytes == 0 {
            range
        } else {
            self.dirty.span.start.min(range.start)..self.dirty.span.end.max(range.end)
        };
        self.dirty = Dirty { span, bytes };
        if self.options.fsync && bytes >= WRITEBACK {
            let Dirty { span, .. } = std::mem::take(&mut self.dirty);
            sys::start_writeback(self.target()?, span);
        }
        Ok(())
    }

    /// An error while content was being put together.
    pub(crate) fn failed(&self, doing: &'static str, source: io::Error) -> Error {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        let path = self.place.path.clone();
        if !matches!(source.kind(), StorageFull | QuotaExceeded) {
            return Error::File { doing, path, source };
        }
        let free = sys::free_space(&self.place.dir).map_or("an unknown amount".into(), human);
        let needed = if self.options.preallocate { self.request.length } else { self.request.data };
        let needed = match needed {
            // A stream does not say how much comes.
            0 => "it is not known how much is needed".into(),
            bytes => format!("up to {} were needed for the data of this image", human(bytes)),
        };
        let written = human(self.written);
        let state = if self.sealed {
            "it is partly written, and will be finished without the source"
        } else if self.is_device() || self.old.is_some() && self.options.commit == Commit::InPlace {
            "it is partly written"
        } else {
            "the old file, if any, is untouched"
        };
        let needed = format!(
            "{needed}, {written} were written, {free} are free now ({source}); {state}; \
             make room and run the same command again"
        );
        Error::Space { path, needed, source }
    }
}
