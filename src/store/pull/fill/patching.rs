//! Patches: of blocks that differ little from what is there only some pages are fetched. Where patches are not
//! what they should be, blocks come whole.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::{Plan, There};
use crate::error::{Error, Result, Warning};
use crate::hashmap::{self, PageMask};
use crate::report::Event;
use crate::scan::At;
use crate::store::fetched::damaged;
use crate::store::patches::{Patch, PatchesReader};
use crate::store::pull::fetch::{Had, Wanted};

/// The patches of a version, as they are needed.
pub struct Patches {
    /// Their index.
    pub reader: PatchesReader<At<Arc<File>>>,
    /// The name of their object.
    pub object: Arc<str>,
    /// Bytes of the index, behind which their frames lie.
    pub behind: u64,
    /// The address of their object.
    pub address: String,
}

/// That blocks come whole, and why.
pub fn without_patches(why: &Error) -> Warning {
    Warning::new(format!("whole blocks are fetched where pages would do: {why}"))
}

impl Plan<'_, '_, '_> {
    /// The patch that goes on top of what is there.
    pub(super) fn patch(&mut self, pages: PageMask, there: There) -> Option<(Patch, Arc<str>, u64)> {
        let (Some(patches), There::Block(block)) = (&mut self.patches, there) else { return None };
        let patch = match patches.reader.find(self.at) {
            Ok(Some(patch)) if patch.pages & !pages == 0 => patch,
            Ok(None) => return None,
            wrong => {
                let error = wrong.err().unwrap_or_else(|| io::ErrorKind::InvalidData.into());
                let why = damaged(&patches.address, &error);
                self.go_without_patches(&why);
                return None;
            }
        };
        // Its other pages are there.
        let has_others = pages & !patch.pages & !block.data == 0;
        let fits = block.data != 0 && has_others && patch.base == hashmap::key(&block.hash);
        fits.then(|| (patch, Arc::clone(&patches.object), patches.behind))
    }

    fn go_without_patches(&mut self, why: &Error) {
        self.filling.reporter.event(Event::Warning(&without_patches(why)));
        self.patches = None;
    }

    /// A block has some of the pages of what is there, and no others, as its patch has it: nothing is fetched.
    pub(super) fn take_less(&mut self, pages: PageMask, wanted: Wanted) -> Result<()> {
        if self.filling.fetch.dry_run {
            return Ok(());
        }
        let address = self.patches.as_ref().map_or("", |patches| &patches.address);
        let (index, hash, patched) = (wanted.index, wanted.hash, Some(pages));
        match self.target.put(&Had { index, pages: 0, bytes: &[], hash, patched, address }) {
            Err(why @ Error::Protocol { .. }) => {
                self.go_without_patches(&why);
                let bytes = self.target.grid.masked_bytes(index, pages);
                (self.kept, self.new) = (self.kept - bytes, self.new + bytes);
                self.planner.want(wanted.whole())
            }
            put => put,
        }
    }
}
