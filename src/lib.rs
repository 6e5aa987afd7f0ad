//! holesync makes a file on one machine equal to a file on another, at a cost
//! that follows the data that is allocated and changed.
//!
//! The modules, from the top down; each uses only those below it:
//!
//! - [`sync`]: the initiator; [`agent`]: the responder
//! - [`local`]: both ends on this machine
//! - [`sender`], [`receiver`]: the two roles, over any pair of streams
//! - [`tree`]: what to send; [`compress`]: whether to compress it
//! - [`protocol`]: greeting, frames, messages and their limits
//! - [`apply`]: the destination; [`stage`]: where changes gather beside it
//! - [`hashmap`]: blocks, hashes, maps and the plan
//! - [`scan`]: data extents, and the test for zeros
//! - [`transport`]: a child process as a pair of streams; [`report`]: what the
//!   user is told; [`sys`]: system calls
//! - [`location`], [`options`], [`error`]

pub mod agent;
pub mod apply;
pub mod compress;
pub mod error;
pub mod hashmap;
pub mod local;
pub mod location;
pub mod options;
pub mod protocol;
pub mod receiver;
pub mod report;
pub mod scan;
pub mod sender;
pub mod stage;
pub mod sync;
pub mod sys;
pub mod transport;
pub mod tree;
