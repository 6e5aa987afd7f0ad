//! A plain image whose length shows only at its end, on its way to the other end: its blocks
//! that are not zero are asked about by their hashes, in order, and those that the other end
//! lacks are sent.

use serde::{Deserialize, Serialize};

/// The first version of the protocol that has it.
pub const IMAGE: u16 = 7;
/// Questions that may be without an answer: the answers fit into what the way back buffers, so
/// that no end has to read while it writes.
pub const MAX_ASKED: usize = 256;
/// Blocks that were found to be lacking and are not sent yet.
pub const MAX_ASKED_BLOCKS: usize = 8192;

/// What is said behind the request, beside questions (frames of blocks that differ) and data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageMessage {
    /// Responder: the destination is open.
    Opened {
        /// It is a block device.
        device: bool,
    },
    /// Responder, to each question in its order: which of its blocks it has not, ascending,
    /// counted from the first. In a dry run they are not sent.
    Lacks(Vec<u8>),
    /// Initiator, once, before the question about the last block where that is short: the length
    /// of the image in bytes.
    Length(u64),
}
