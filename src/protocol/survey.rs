//! What is asked of an image at the other end, and what is told of it: its length, its
//! extents, its blocks as hashes, the leaves of some of them. No data.

use serde::{Deserialize, Serialize};

use crate::hashmap::MapEntry;

/// The first version of the protocol that has it.
pub const SURVEY: u16 = 6;
/// Entries in one message: extents, stretches of blocks, blocks whose leaves are asked for.
pub const MAX_SURVEYED: usize = 1024;
/// Stretches of blocks that may be told before more are asked for; a batch may go beyond.
pub const SURVEYED_AHEAD: usize = 8192;

/// What the initiator wants to know. Answers come in the order of asking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// The extents from this offset on: [`Told::Extents`], as many as it takes, and [`Told::End`].
    Extents {
        /// The offset, in bytes.
        from: u64,
    },
    /// The blocks of the first bytes: [`Told::Blocks`], as far as [`SURVEYED_AHEAD`] allows, and
    /// [`Told::End`]. Once.
    Blocks {
        /// How many bytes; no more than the image has.
        length: u64,
    },
    /// So many stretches of blocks were taken.
    More {
        /// How many.
        entries: u64,
    },
    /// The leaves, a page each, of these blocks: a frame of leaves.
    Leaves {
        /// Their places on the grid, ascending; [`MAX_DIFFER`](crate::protocol::MAX_DIFFER) at most.
        blocks: Vec<u64>,
    },
    /// Nothing more.
    End,
}

/// What the responder tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// The length of the image in bytes; the first that is said.
    Length(u64),
    /// Data extents: offset and length of each, ascending.
    Extents(Vec<(u64, u64)>),
    /// The next blocks.
    Blocks(Vec<MapEntry>),
    /// All extents, or all blocks, were told.
    End,
}
