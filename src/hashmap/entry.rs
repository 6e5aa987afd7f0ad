//! What a map has of each block: the entries of map files, and of what one end tells the other.

use serde::{Deserialize, Serialize};

use crate::hashmap::{Block, Hash, Item, PageMask};

/// One block that is not zero, or a stretch of blocks that are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MapEntry {
    /// So many zero blocks, holes or not.
    Zero(u64),
    /// One block that is not zero.
    Data {
        /// Its pages that are not all zeros.
        pages: PageMask,
        /// See [`type@Hash`].
        hash: Hash,
    },
}

impl MapEntry {
    /// How many blocks it stands for.
    pub fn blocks(&self) -> u64 {
        match self {
            MapEntry::Zero(blocks) => *blocks,
            MapEntry::Data { .. } => 1,
        }
    }

    /// Those of blocks that were hashed, in order; zero blocks that follow each other are one.
    pub fn of(items: &[Item]) -> Vec<MapEntry> {
        let mut entries = Vec::new();
        for item in items {
            match (item, entries.last_mut()) {
                (Item::Block(Block { data, hash, .. }), _) if *data != 0 => {
                    entries.push(MapEntry::Data { pages: *data, hash: *hash });
                }
                (item, Some(MapEntry::Zero(blocks))) => *blocks += item.blocks(),
                (item, _) => entries.push(MapEntry::Zero(item.blocks())),
            }
        }
        entries
    }
}
