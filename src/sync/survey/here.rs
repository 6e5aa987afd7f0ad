//! An image on this machine that is held against one that is not: a thread hashes it ahead.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use crate::error::{Error, Result};
use crate::hashmap::leaves::Leaves;
use crate::hashmap::{self, Grid, MapEntry};
use crate::scan::{Extent, FileImage};
use crate::sync::survey::{Surveyed, each_extent, leaves_of};

/// How many batches of hashes wait to be held against the other image.
const AHEAD: usize = 8;

/// See the module.
pub struct HereImage<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    path: &'env Path,
    image: &'env FileImage,
    length: u64,
    /// What blocks are told on, once that is known.
    grid: Option<Grid>,
    told: Option<Receiver<Result<Vec<MapEntry>>>>,
    answers: VecDeque<Vec<Leaves>>,
}

impl<'scope, 'env> HereImage<'scope, 'env> {
    /// Which may have a thread in this scope.
    pub fn new(
        scope: &'scope Scope<'scope, 'env>,
        path: &'env Path,
        image: &'env FileImage,
        length: u64,
    ) -> HereImage<'scope, 'env> {
        HereImage { scope, path, image, length, grid: None, told: None, answers: VecDeque::new() }
    }
}

impl Surveyed for HereImage<'_, '_> {
    fn length(&self) -> u64 {
        self.length
    }

    fn extents(&mut self, from: u64, sink: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
        each_extent(self.path, self.image, from..self.length, sink)
    }

    fn start(&mut self, grid: &Grid) -> Result<()> {
        let (tell, told) = sync_channel(AHEAD);
        let (path, image, grid) = (self.path, self.image, *grid);
        self.scope.spawn(move || {
            let hashed = hashmap::hash_image(image, &grid, |batch| {
                Ok(tell.send(Ok(MapEntry::of(&batch.items))).is_ok())
            });
            if let Err(error) = hashed {
                // Nobody waits for it where the other image failed.
                let _ = tell.send(Err(Error::file("read", path)(error)));
            }
        });
        (self.grid, self.told) = (Some(grid), Some(told));
        Ok(())
    }

    fn blocks(&mut self) -> Result<Option<Vec<MapEntry>>> {
        self.told.as_ref().and_then(|told| told.recv().ok()).transpose()
    }

    fn ask(&mut self, blocks: &[u64]) -> Result<()> {
        let Some(grid) = &self.grid else { return Ok(()) };
        self.answers.push_back(leaves_of(self.path, self.image, grid, blocks)?);
        Ok(())
    }

    fn answer(&mut self) -> Result<Vec<Leaves>> {
        Ok(self.answers.pop_front().unwrap_or_default())
    }
}
