//! The destination that blocks go to, from the thread that compares and from those that fetch.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::apply::{Basis, Own, Sink};
use crate::error::{Error, Result, lock};
use crate::hashmap::{self, Grid, PageMask};
use crate::store::pull::fetch::Had;

/// Where blocks go.
pub struct Target<'a> {
    pub grid: Grid,
    pub basis: Option<Basis>,
    pub own: Option<Own>,
    pub path: PathBuf,
    pub sink: Mutex<&'a mut Sink>,
}

impl Target<'_> {
    /// A block came, or what it lacks.
    pub fn put(&self, had: &Had) -> Result<()> {
        let Some(pages) = had.patched else { return self.write(had.index, had.pages, had.bytes) };
        let stay = pages & !had.pages;
        let old = self.read_basis(had.index, stay)?;
        let mut whole = Vec::with_capacity(self.grid.masked_bytes(had.index, pages) as usize);
        let (mut old, mut new) = (old.as_slice(), had.bytes);
        for page in hashmap::page_runs(pages).flatten() {
            let from = if stay >> page & 1 == 1 { &mut old } else { &mut new };
            let (bytes, behind) = from.split_at(self.grid.masked_bytes(had.index, 1 << page) as usize);
            *from = behind;
            whole.extend(bytes);
        }
        let is_all = old.is_empty() && new.is_empty();
        if !is_all || hashmap::hash_block(pages, std::iter::once(whole.as_slice())) != had.hash {
            let what = format!(
                "a patch does not make block {} of the image what its map says, or the destination changed meanwhile; -W \
                 does without patches",
                had.index
            );
            return Err(Error::Protocol { peer: had.address.into(), what });
        }
        match self.own {
            Some(_) => self.write(had.index, pages, &whole),
            None => self.write(had.index, had.pages, had.bytes),
        }
    }

    /// Writes pages of a block.
    pub fn write(&self, index: u64, pages: PageMask, mut bytes: &[u8]) -> Result<()> {
        let mut sink = lock(&self.sink);
        for run in hashmap::page_runs(pages) {
            let range = self.grid.pages(index, &run);
            let (now, later) = bytes.split_at((range.end - range.start) as usize);
            bytes = later;
            sink.write(&range, now)?;
        }
        Ok(())
    }

    /// What the destination has itself in a block, where it is compared with another file: its pages with
    /// data, and all of its bytes.
    pub fn read_own(&self, index: u64) -> Result<(PageMask, Vec<u8>)> {
        let range = self.grid.bytes(&(index..index + 1));
        let mut bytes = vec![0; (range.end - range.start) as usize];
        match &self.own {
            Some(Own::There(own)) if range.start < own.length => {
                let read = own.image.read_at(&mut bytes, range.start);
                read.map_err(Error::file("read the old", &self.path))?;
            }
            _ => return Ok((0, bytes)),
        }
        Ok((hashmap::unhashed_block_of(&bytes).data, bytes))
    }

    /// Makes a block these pages, where it is compared with another file than is there.
    pub fn put_over_own(&self, index: u64, pages: PageMask, mut bytes: &[u8]) -> Result<()> {
        let (own, there) = self.read_own(index)?;
        self.each(index, own & !pages, Sink::zero)?;
        let start = self.grid.bytes(&(index..index + 1)).start;
        for page in hashmap::page_runs(pages).flatten() {
            let range = self.grid.pages(index, &(page..page + 1));
            let (new, behind) = bytes.split_at((range.end - range.start) as usize);
            bytes = behind;
            let at = (range.start - start) as usize;
            let mut sink = lock(&self.sink);
            if own >> page & 1 == 1 && there[at..at + new.len()] == *new {
                sink.keep_range(range)?;
            } else {
                sink.write(&range, new)?;
            }
        }
        Ok(())
    }

    /// Some pages of a block of what there is to compare with, packed.
    pub fn read_basis(&self, index: u64, pages: PageMask) -> Result<Vec<u8>> {
        let Some(basis) = &self.basis else { return Ok(Vec::new()) };
        let mut bytes = Vec::new();
        for run in hashmap::page_runs(pages) {
            let range = self.grid.pages(index, &run);
            let at = bytes.len();
            bytes.resize(at + (range.end - range.start) as usize, 0);
            let read = basis.image.read_at(&mut bytes[at..], range.start);
            read.map_err(Error::file("read the old", &self.path))?;
        }
        Ok(bytes)
    }

    pub fn each(
        &self,
        index: u64,
        pages: PageMask,
        mut what: impl FnMut(&mut Sink, Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let mut sink = lock(&self.sink);
        hashmap::page_runs(pages).try_for_each(|run| what(&mut sink, self.grid.pages(index, &run)))
    }

    /// Makes blocks zeros of which it is not known what they have, or that another file has.
    pub fn clear(&self, range: Range<u64>) -> Result<()> {
        let mut sink = lock(&self.sink);
        let Some(own) = &self.own else { return sink.zero(range) };
        let Own::There(basis) = own else { return Ok(()) };
        let end = range.end.min(basis.length);
        for extent in basis.image.extents(range.start.min(end)..end) {
            sink.zero(extent.map_err(Error::file("read the old", &self.path))?)?;
        }
        Ok(())
    }
}
