//! holesync makes a file on one machine equal to a file on another, at a cost
//! that follows the data that is allocated and changed.
//!
//! Five modules, read in this order, have the whole product: the program (`main.rs`,
//! `cli.rs`), [`scan`] (extents and zeros), [`hashmap`] (blocks, hashes and the plan),
//! [`protocol`] (messages and limits) and [`apply`] (the destination of one file).
//! `docs/design.md` has the layers that all modules form, and three walks through them.
//!
//! What a program that embeds holesync needs:
//!
//! - [`options::Options`]: how a transfer is to be done
//! - [`location::Location`]: where its ends are
//! - [`sync::run`], [`sync::digest`]: the transfer, and the root hash of a file
//! - [`report::Reporter`]: what is told meanwhile
//! - [`scan::Image`], [`scan::data_extents`]: extents; [`hashmap::map_image`]: maps

pub mod apply;
pub mod error;
pub mod hashmap;
pub mod location;
pub mod options;
pub mod protocol;
pub mod receiver;
pub mod remote;
pub mod report;
pub mod scan;
pub mod sender;
mod shell;
pub mod source;
pub mod stream;
pub mod sync;
pub mod sys;
pub mod working;

// For its tests, which are outside.
#[doc(hidden)]
pub use shell::sparse_tar;
