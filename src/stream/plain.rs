//! A plain image that comes in order, and whose length may show only at its end, becomes a file or
//! device: compared with what is there as it comes. Knows neither where it comes from nor a protocol.
//!
//! A file that is there is cloned, or copied, before it is changed, so that it stays whole
//! until the image has come to its end; what an interrupted run left is gone on from. A stage
//! would not do: its seal needs a root hash, which begins with the length.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::apply::tree::{DestinationRoot, Target};
use crate::apply::{
    Attributes, Basis, BasisState, Destination, Finished, Opened, Preview, QuickCheck, Setup, Wanted,
};
use crate::confinement::NamedPath;
use crate::error::{Error, Result, Warning};
use crate::hashmap::{self, Grid, Hash, PAGE, RootHasher};
use crate::options::{BlockSize, Commit, Options};
use crate::protocol::MAX_LENGTH;
use crate::scan::{self, Extent};

/// Where an image goes.
enum Into {
    Destination(Box<Destination>),
    /// A dry run: it would go there.
    Nothing {
        /// The size of the device, if it is one.
        device: Option<u64>,
        /// Content or length would change.
        changes: bool,
        /// What would be written, as far as bytes come.
        preview: Box<Preview>,
    },
}

/// What is there before anything is written.
#[derive(Clone)]
pub struct Old {
    path: PathBuf,
    basis: Option<Basis>,
    state: BasisState,
}

impl Old {
    /// What is there; zeros where nobody knows.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut old = vec![0; len];
        if let Some(basis) = &self.basis
            && at < basis.length
        {
            basis.image.read_at(&mut old, at).map_err(Error::file("read the old", &self.path))?;
        }
        Ok(old)
    }

    /// Whether all of a range may have data that can stay.
    pub fn reaches(&self, range: &Range<u64>) -> bool {
        self.state == BasisState::Mapped && self.basis.as_ref().is_some_and(|basis| range.end <= basis.length)
    }

    /// Its extents within a range.
    fn data(&self, range: Range<u64>) -> impl Iterator<Item = Result<Extent>> {
        let range = self.basis.as_ref().map(|basis| (basis, range.start..range.end.min(basis.length)));
        let extents =
            range.filter(|(_, range)| !range.is_empty()).map(|(basis, range)| basis.image.extents(range));
        extents.into_iter().flatten().map(|extent| extent.map_err(Error::file("read the old", &self.path)))
    }
}

/// An image that is being received.
pub struct PlainImage {
    path: PathBuf,
    into: Into,
    old: Old,
    /// Bytes that may be written without making the file longer that is written to.
    room: u64,
    /// The length that the destination was told last.
    wanted: u64,
    /// The length of the image, as far as it has come.
    length: u64,
    block: BlockSize,
    /// The blocks that are not zero, where it is read back in the end.
    hashes: Option<Vec<(u64, Hash)>>,
    /// Bytes of data that the destination had.
    pub kept: u64,
    /// Bytes of data that it had not.
    pub lacked: u64,
    /// What is to be told of what an interrupted run had left.
    pub warning: Option<Warning>,
}

/// What becomes of a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PageFate {
    /// It is zero, and was.
    Zero,
    /// It has the data that it had.
    Kept,
    Written,
    Zeroed,
}

impl PlainImage {
    /// Opens a destination, which must be a file or a block device, or not there.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn open(path: &NamedPath, options: &Options, umask: u32) -> Result<PlainImage> {
        let options = Arc::new(options_for(options));
        let shown = path.path();
        let names_directory = shown.as_os_str().as_encoded_bytes().ends_with(b"/");
        let directory = || {
            Error::refused(shown, "is a directory: what comes has no name, so name the file or device itself")
        };
        if names_directory {
            return Err(directory());
        }
        let target = Target::new(path.clone(), false, umask);
        let root = DestinationRoot::find(&target, true, &options)?;
        if !root.is_file() {
            return Err(directory());
        }
        let length = path.metadata().map_or(0, |there| if there.is_file() { there.len() } else { 0 });
        let attributes = Attributes { new_mode: 0o666 & !umask, ..Attributes::default() };
        let whole = options.whole_file;
        let wanted = Wanted { length, data: 0, whole, quick_check: QuickCheck::Never, attributes };
        let (block, hashes) = (options.block_size, options.verify.then(Vec::new));
        let image = |into, basis: Option<Basis>, state, warning| PlainImage {
            path: shown.to_path_buf(),
            into,
            room: basis.as_ref().map_or(length, |basis| basis.length.max(length)),
            old: Old { path: shown.to_path_buf(), basis, state },
            wanted: length,
            length: 0,
            block,
            hashes,
            kept: 0,
            lacked: 0,
            warning,
        };
        let Some(place) = root.place(b"", options.dry_run)? else {
            let preview = Box::new(Preview::of_nothing(shown));
            let into = Into::Nothing { device: None, changes: true, preview };
            return Ok(image(into, None, BasisState::Blank, None));
        };
        let opening = Destination::open(place, wanted, &Setup::new(Arc::clone(&options)))?;
        let warning = opening.recovered.warning(shown);
        Ok(match opening.opened {
            Opened::Different(destination) => {
                let (basis, state) = (destination.basis(), destination.basis_state());
                image(Into::Destination(destination), basis, state, warning)
            }
            Opened::Preview(preview) => {
                let basis = preview.basis.clone();
                let device = preview.device;
                let (state, changes) = (preview.state(), preview.changes_length);
                image(Into::Nothing { device, changes, preview }, basis, state, warning)
            }
            // Without a quick check, and with nothing that is to stay, nothing is.
            Opened::Equal { .. } => return Err(Error::refused(shown, "stays as it is")),
        })
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        match &self.into {
            Into::Destination(destination) => destination.is_device(),
            Into::Nothing { device, .. } => device.is_some(),
        }
    }

    /// What is there before anything is written. Where the file itself is written, it is so from the end
    /// of what was taken on.
    pub fn old(&self) -> Old {
        self.old.clone()
    }

    /// How much of the image was taken.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The image is going to have so many bytes, if that is known.
    ///
    /// # Errors
    ///
    /// When there is no room for as many.
    pub fn expect(&mut self, length: u64) -> Result<()> {
        self.make_room(length)
    }

    /// The next bytes, a whole number of blocks unless they are the last.
    ///
    /// # Errors
    ///
    /// When they cannot be written, or the old ones not be read.
    pub fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let old = self.old.read(self.length, bytes.len())?;
        self.take_over(bytes, &old)
    }

    /// The same, where it was read [what is there](PlainImage::old).
    ///
    /// # Errors
    ///
    /// When they cannot be written.
    pub fn take_over(&mut self, bytes: &[u8], old: &[u8]) -> Result<()> {
        let at = self.length;
        self.grow(at + bytes.len() as u64)?;
        if self.hashes.is_some() {
            let size = self.block.bytes();
            for (index, block) in (at / size..).zip(bytes.chunks(size as usize)) {
                let found = hashmap::block_of(block);
                self.told(index, found.data != 0, &found.hash);
            }
        }
        self.keep_data(at, old)?;
        self.put(at, bytes, old)
    }

    /// The next bytes are zeros.
    ///
    /// # Errors
    ///
    /// Those of [`PlainImage::take`].
    pub fn zero(&mut self, len: u64) -> Result<()> {
        const PIECE: usize = 1 << 20;
        static ZEROS: [u8; PIECE] = [0; PIECE];
        let end = self.length.saturating_add(len);
        self.grow(end)?;
        let all = end - len..end;
        if self.old.state != BasisState::Mapped {
            return if self.old.state == BasisState::Unknown { self.make_zero(all) } else { Ok(()) };
        }
        let there = self.old.clone();
        let mut at = all.start;
        for data in there.data(all) {
            let data = data?;
            at = at.max(data.start / PAGE * PAGE);
            while at < data.end {
                // Whole pages, unless they are the last.
                let piece = (data.end.next_multiple_of(PAGE).min(end) - at).min(PIECE as u64) as usize;
                let old = there.read(at, piece)?;
                self.put(at, &ZEROS[..piece], &old)?;
                at += piece as u64;
            }
        }
        Ok(())
    }

    /// Whether the next block, of so many bytes, has this hash already. If it has not, its bytes
    /// [come later](PlainImage::fill).
    ///
    /// # Errors
    ///
    /// Those of [`PlainImage::take`].
    pub fn has(&mut self, len: usize, hash: &Hash) -> Result<bool> {
        let at = self.length;
        self.grow(at + len as u64)?;
        self.told(at / self.block.bytes(), true, hash);
        let old = self.old.read(at, len)?;
        self.keep_data(at, &old)?;
        let found = hashmap::block_of(&old);
        let is_same = self.old.state == BasisState::Mapped && found.data != 0 && found.hash == *hash;
        if is_same {
            let grid = Grid { length: self.length, block: self.block };
            self.kept += grid.masked_bytes(at / self.block.bytes(), found.data);
        } else if let Into::Nothing { changes, .. } = &mut self.into {
            *changes = true;
        }
        Ok(is_same)
    }

    /// The bytes of a block that came before.
    ///
    /// # Errors
    ///
    /// Those of [`PlainImage::take`].
    pub fn fill(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let old = self.old.read(at, bytes.len())?;
        self.put(at, bytes, &old)
    }

    /// Makes it the file. The other is whether anything changed, or would.
    ///
    /// # Errors
    ///
    /// Then the old file is as it was; a device is written.
    pub fn finish(self) -> Result<(Finished, bool)> {
        let length = self.length;
        let mut root = RootHasher::new(&Grid { length, block: self.block });
        self.hashes.iter().flatten().for_each(|(index, hash)| root.add(*index, hash));
        match self.into {
            Into::Destination(mut destination) => {
                if length != self.wanted && !destination.is_device() {
                    destination.extend(length)?;
                }
                let finished = destination.finish(&root.finish(), self.kept)?;
                let changed = finished.changed;
                Ok((finished, changed))
            }
            Into::Nothing { device, changes, preview } => {
                let changed = changes || self.lacked > 0 || device.is_none() && length != self.wanted;
                Ok((preview.finish(length), changed))
            }
        }
    }

    /// Gives up, and keeps what came for the next run. Returns the error.
    pub fn give_up(self, error: Error) -> Error {
        match self.into {
            Into::Destination(destination) => destination.give_up(error),
            Into::Nothing { .. } => error,
        }
    }

    /// It is so long at least.
    fn grow(&mut self, length: u64) -> Result<()> {
        if length > MAX_LENGTH {
            return Err(Error::refused(&self.path, "is to be longer than a file can be"));
        }
        self.length = length;
        self.make_room(length)
    }

    fn make_room(&mut self, length: u64) -> Result<()> {
        match &mut self.into {
            Into::Destination(destination) if destination.is_device() => destination.extend(length),
            Into::Destination(destination) if length > self.room => {
                (self.room, self.wanted) = (length, length);
                destination.extend(length)
            }
            Into::Nothing { device: Some(size), .. } if length > *size => {
                let why = format!("the device holds {size} bytes and the image has {length} at least");
                Err(Error::refused(&self.path, why))
            }
            _ => Ok(()),
        }
    }

    fn told(&mut self, index: u64, is_data: bool, hash: &Hash) {
        self.hashes.iter_mut().filter(|_| is_data).for_each(|hashes| hashes.push((index, *hash)));
    }

    /// The data that is there stays until something is written over it: it is said in order, as
    /// a copy of the old file wants it.
    fn keep_data(&mut self, at: u64, old: &[u8]) -> Result<()> {
        let (Into::Destination(destination), BasisState::Mapped) = (&mut self.into, self.old.state) else {
            return Ok(());
        };
        for (is_zero, range) in runs(old.chunks(PAGE as usize).map(scan::is_zero), old.len()) {
            if !is_zero {
                destination.keep_range(at + range.start as u64..at + range.end as u64)?;
            }
        }
        Ok(())
    }

    /// Puts bytes in the place of old ones, by page.
    fn put(&mut self, at: u64, bytes: &[u8], old: &[u8]) -> Result<()> {
        let (is_mapped, is_unknown) =
            (self.old.state == BasisState::Mapped, self.old.state == BasisState::Unknown);
        let pages = bytes.chunks(PAGE as usize).zip(old.chunks(PAGE as usize));
        let fates = pages.map(|(new, old)| match scan::is_zero(new) {
            true if is_unknown || !scan::is_zero(old) => PageFate::Zeroed,
            true => PageFate::Zero,
            false if is_mapped && new == old => PageFate::Kept,
            false => PageFate::Written,
        });
        for (fate, range) in runs(fates, bytes.len()) {
            let place = at + range.start as u64..at + range.end as u64;
            match fate {
                PageFate::Zero => {}
                PageFate::Kept => self.kept += range.len() as u64,
                PageFate::Zeroed => self.make_zero(place)?,
                PageFate::Written => {
                    self.lacked += range.len() as u64;
                    match &mut self.into {
                        Into::Destination(destination) => destination.write(place.start, &bytes[range])?,
                        Into::Nothing { preview, .. } => preview.write(&place),
                    }
                }
            }
        }
        Ok(())
    }

    fn make_zero(&mut self, range: Range<u64>) -> Result<()> {
        match &mut self.into {
            Into::Destination(destination) => destination.zero(range),
            Into::Nothing { changes, preview, .. } => {
                *changes = true;
                preview.zero(range);
                Ok(())
            }
        }
    }
}

/// Of what was asked for, what such an image can be given. A file is cloned or copied unless it
/// is to be written itself.
fn options_for(options: &Options) -> Options {
    Options {
        commit: if options.commit == Commit::InPlace { Commit::InPlace } else { Commit::Atomic },
        dry_run: options.dry_run,
        mkpath: options.mkpath,
        whole_file: options.whole_file,
        preallocate: options.preallocate,
        hole_map: options.hole_map,
        verify: options.verify,
        fsync: options.fsync,
        force_in_use: options.force_in_use,
        block_size: options.block_size,
        ..Options::default()
    }
}

/// Stretches of pages that are alike, in bytes of what has `len` of them.
fn runs<T: Copy + PartialEq>(pages: impl Iterator<Item = T>, len: usize) -> Vec<(T, Range<usize>)> {
    let mut runs: Vec<(T, Range<usize>)> = Vec::new();
    for (nth, kind) in pages.enumerate() {
        let range = nth * PAGE as usize..len.min((nth + 1) * PAGE as usize);
        match runs.last_mut() {
            Some((last, run)) if *last == kind => run.end = range.end,
            _ => runs.push((kind, range)),
        }
    }
    runs
}
