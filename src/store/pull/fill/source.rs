//! The version that a destination is to have, side by side with what is there.

use crate::error::Result;
use crate::hashmap::MapEntry;
use crate::store::fetched::{VersionBlock, VersionBlocks};

/// The version, read in stretches of any length.
pub struct SourceCursor {
    blocks: VersionBlocks,
    left: Option<VersionBlock>,
}

impl SourceCursor {
    /// From the first block on.
    pub fn new(blocks: VersionBlocks) -> SourceCursor {
        SourceCursor { blocks, left: None }
    }

    /// The next blocks that are alike, at most so many; `None`: there are no more.
    pub fn next(&mut self, most: u64) -> Result<Option<(u64, VersionBlock)>> {
        let Some(block) = self.left.take().map_or_else(|| self.blocks.advance(), |left| Ok(Some(left)))?
        else {
            return Ok(None);
        };
        let count = block.entry.blocks().min(most);
        if let MapEntry::Zero(blocks) = block.entry
            && blocks > count
        {
            let entry = MapEntry::Zero(blocks - count);
            self.left = Some(VersionBlock { index: block.index + count, entry, ..block });
        }
        Ok(Some((count, block)))
    }
}
