//! How what was put together becomes the destination: attributes, sync, check,
//! rename; or a sealed log, and the old file written from it. In that order, and
//! every failure is an error.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::SFlag;

use crate::apply::place::set_attributes;
use crate::apply::ranges;
use crate::apply::recover::{check_root, forget_stage, replay};
use crate::apply::stage::Stage;
use crate::apply::stage_log::{Identity, Seal};
use crate::apply::{Destination, Work};
use crate::error::{Error, Result};
use crate::hashmap::{Grid, Hash};
use crate::scan;
use crate::sys;
use crate::working::Working;

impl Destination {
    /// Makes what was put together the file. `root` is what it must hash to
    /// (the caller has compared hashes; `--verify` reads it back), `kept` how
    /// many bytes of data were kept. Returns bytes written and bytes punched.
    ///
    /// # Errors
    ///
    /// Then the old file is as it was, except where it is written directly, or
    /// a sealed log is there to finish it.
    pub fn finish(mut self, root: &Hash, kept: u64) -> Result<(u64, u64)> {
        let same_length = self.old.as_ref().is_some_and(|old| old.seen.len() == self.request.length);
        // Without a basis nobody has looked at what is there.
        let compared = self.basis.is_some() || self.request.length == 0;
        if matches!(self.work, Work::Untouched(_)) && same_length && compared && !self.has_loose_room()? {
            self.check_old()?;
            let wanted = &self.request.attributes;
            let old = self.target()?;
            self.verify(old, root)?;
            set_attributes(old, wanted, wanted.mode).map_err(self.place.error("set the attributes of"))?;
            return Ok((0, 0));
        }
        let finished = self.begin().and_then(|()| match std::mem::replace(&mut self.work, Work::Finishing) {
            Work::Stage(stage) => self.finish_stage(stage, root, kept),
            Work::Temp(temp) => self.finish_temp(&temp, Working::Temp, root),
            Work::InPlace | Work::Untouched(_) | Work::Finishing => self.finish_in_place(root),
        });
        match finished {
            Ok(()) => Ok((self.written, self.punched)),
            Err(error) => {
                if matches!(error, Error::Space { .. }) && !self.sealed {
                    self.discard();
                }
                Err(error)
            }
        }
    }

    /// The working file has all of the new content: it takes the place of the old one.
    fn finish_temp(&mut self, temp: &File, kind: Working, root: &Hash) -> Result<()> {
        self.set_length(temp).map_err(|error| self.failed("set the length of", error))?;
        let mode = self.request.attributes.mode;
        let old_mode = self.old.as_ref().map(|old| old.seen.mode() & 0o7777);
        let mode = mode.or(old_mode).unwrap_or(self.request.attributes.new_mode);
        let mut wanted = self.request.attributes.clone();
        if let Some(old) = &self.old {
            wanted.uid = wanted.uid.or(Some(old.seen.uid()));
            wanted.gid = wanted.gid.or(Some(old.seen.gid()));
        }
        set_attributes(temp, &wanted, Some(mode)).map_err(self.place.error("set the attributes of"))?;
        self.sync(temp)?;
        sys::allocate_exactly(temp, false);
        self.verify(temp, root)?;
        self.check_old()?;
        let name = kind.name_for(&self.place.name);
        let named = sys::stat_at(&self.place.dir, &name).map_err(self.place.error("put in place"))?;
        let ours = temp.metadata().map_err(self.place.error("put in place"))?;
        if named.map(|stat| (stat.st_dev, stat.st_ino)) != Some((ours.dev(), ours.ino())) {
            return Err(self.gone());
        }
        sys::rename_at(&self.place.dir, &name, &self.place.name).map_err(self.place.error("put in place"))?;
        self.sync_dir()
    }

    fn finish_stage(&mut self, mut stage: Stage, root: &Hash, kept: u64) -> Result<()> {
        self.check_old()?;
        let Some(old) = &self.old else { return Err(self.gone()) };
        let identity = Identity::of(&old.file).map_err(self.place.error("look at"))?;
        if stage.data_bytes() > kept {
            // A full disk is no failure yet: writing in place needs less.
            let copied = stage.complete(&old.file, self.request.length, identity).or_else(full_is_none);
            let copied = copied.map_err(|error| self.failed("copy", error))?;
            if copied.is_some() {
                let data = stage.data().try_clone().map_err(self.place.error("finish"))?;
                self.finish_temp(&data, Working::Stage, root)?;
                return self.place.remove(&[Working::Log]).map_err(self.place.error("clean up after"));
            }
        }
        if self.options.preallocate {
            sys::allocate(&old.file, 0..self.request.length).map_err(|error| {
                // The error to report is that there is no room.
                let _ = ranges::free_holes(&old.file, 0..self.request.length.max(old.seen.len()));
                self.failed("allocate", error)
            })?;
        }
        let reserved = stage.reserve(&old.file, self.request.length);
        let reserved = reserved.map_err(|error| self.failed("make room in", error))?;
        if !reserved || stage.is_scattered() {
            return self.finish_copy(stage, identity, root);
        }
        let seal = Seal {
            length: self.request.length,
            block_size: self.options.block_size.into(),
            root: *root,
            attributes: self.request.attributes.clone(),
            preallocate: self.options.preallocate,
        };
        let sealed = stage.seal(&seal, self.options.fsync).map_err(|error| self.failed("seal", error))?;
        self.sealed = true;
        self.sync_dir()?;
        replay(&self.place, &sealed, &old.file, self.options.fsync)?;
        forget_stage(&self.place, self.options.fsync).map_err(self.place.error("clean up after"))?;
        self.dig(&old.file).map_err(self.place.error("punch holes into"))?;
        self.restore_mtime(&old.file)?;
        self.verify(&old.file, root)
    }

    /// The stage is written into a copy of the old file: where it could run out of
    /// room half way, or has too many ranges to be looked at before a replay.
    fn finish_copy(&mut self, mut stage: Stage, identity: Identity, root: &Hash) -> Result<()> {
        let Some(old) = &self.old else { return Err(self.gone()) };
        self.place.remove(&[Working::Temp]).map_err(self.place.error("clean up after"))?;
        let temp = self.place.create(Working::Temp);
        let temp = temp.map_err(|error| self.failed("create the temp file of", error))?;
        let (length, keep) = (self.request.length, self.options.preallocate);
        ranges::copy_all(&old.file, &temp)
            .and_then(|()| stage.write_into(&temp, identity, length, keep))
            .map_err(|error| self.failed("copy", error))?;
        self.finish_temp(&temp, Working::Temp, root)?;
        self.place.remove(&[Working::Log, Working::Stage]).map_err(self.place.error("clean up after"))
    }

    /// Content first: a time that is right says that the content is.
    fn finish_in_place(&mut self, root: &Hash) -> Result<()> {
        let file = self.target()?;
        if self.is_device() {
            self.sync(file)?;
            return self.verify(file, root);
        }
        self.set_length(file).map_err(|error| self.failed("set the length of", error))?;
        self.sync(file)?;
        self.verify(file, root)?;
        let wanted = &self.request.attributes;
        set_attributes(file, wanted, wanted.mode).map_err(self.place.error("set the attributes of"))?;
        self.sync(file)?;
        let named = self.place.stat()?.map(|stat| (stat.st_dev, stat.st_ino));
        let ours = file.metadata().map_err(self.place.error("look at"))?;
        if named == Some((ours.dev(), ours.ino())) { Ok(()) } else { Err(self.gone()) }
    }

    fn set_length(&self, file: &File) -> io::Result<()> {
        ranges::set_length(file, self.request.length, self.options.preallocate)?;
        if self.options.preallocate {
            sys::allocate(file, 0..self.request.length)?;
            return Ok(());
        }
        self.dig(file)
    }

    /// Whether the old file has room set aside in its holes, which a comparison
    /// does not see.
    fn has_loose_room(&self) -> Result<bool> {
        let Some(old) = &self.old else { return Ok(false) };
        self.is_loose(&old.file).map_err(self.place.error("look at"))
    }

    /// Frees what is allocated and holds no data: no seek tells it from a hole.
    fn dig(&self, file: &File) -> io::Result<()> {
        if self.old.is_none() || !self.is_loose(file)? {
            return Ok(());
        }
        ranges::free_holes(file, 0..ranges::page_up(self.request.length))
    }

    /// Whether notably more is allocated than there is data, and is to be freed.
    pub(crate) fn is_loose(&self, file: &File) -> io::Result<bool> {
        const SLACK: u64 = 1 << 20;
        if self.options.preallocate || self.is_device() {
            return Ok(false);
        }
        let allocated = file.metadata()?.blocks() * 512;
        if allocated <= SLACK {
            return Ok(false);
        }
        let mut data = 0;
        for extent in scan::data_extents(file, 0..self.request.length) {
            data += extent.map(|extent| extent.end - extent.start)?;
        }
        Ok(allocated > data + data / 64 + SLACK)
    }

    /// Punching after the attributes were set moves the modification time.
    fn restore_mtime(&self, file: &File) -> Result<()> {
        let Some((seconds, nanoseconds)) = self.request.attributes.mtime else { return Ok(()) };
        sys::set_mtime(file, seconds, nanoseconds).map_err(self.place.error("set the attributes of"))
    }

    fn sync(&self, file: &File) -> Result<()> {
        if self.options.fsync {
            file.sync_all().map_err(|error| self.failed("sync", error))?;
        }
        Ok(())
    }

    fn sync_dir(&self) -> Result<()> {
        if self.options.fsync {
            self.place.sync_dir().map_err(self.place.error("sync the directory of"))?;
        }
        Ok(())
    }

    fn verify(&self, file: &File, root: &Hash) -> Result<()> {
        if !self.options.verify {
            return Ok(());
        }
        file.sync_data().map_err(self.place.error("sync"))?;
        sys::drop_cache(file);
        let grid = Grid { length: self.request.length, block: self.options.block_size };
        check_root(&self.place, file, &grid, root).inspect_err(|_| {
            // The next run must not take it for equal by its time.
            let _ = sys::set_mtime(file, 0, 0);
        })
    }

    /// Whether the old file is still what the basis was read from; nothing, or a
    /// symlink, where there was none.
    fn check_old(&self) -> Result<()> {
        let stat = self.place.stat()?;
        let same = match &self.old {
            Some(old) => {
                let now = old.file.metadata().map_err(self.place.error("look at"))?;
                let state = |m: &Metadata| (m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
                let named = stat.map(|stat| (stat.st_dev, stat.st_ino));
                state(&now) == state(&old.seen) && named == Some((now.dev(), now.ino()))
            }
            None => stat
                .is_none_or(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK),
        };
        if !same {
            let why = "changed while it was being updated; it was left alone: see what writes to it, then run again";
            return Err(Error::refused(&self.place.path, why));
        }
        Ok(())
    }

    fn gone(&self) -> Error {
        Error::refused(&self.place.path, "it was removed or replaced meanwhile; run again")
    }
}

fn full_is_none(error: io::Error) -> io::Result<Option<u64>> {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    if matches!(error.kind(), StorageFull | QuotaExceeded) { Ok(None) } else { Err(error) }
}
