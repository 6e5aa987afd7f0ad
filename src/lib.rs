//! holesync makes a file on one machine equal to a file on another, at a cost
//! that follows the data that is allocated and changed.
//!
//! Five modules, read in this order, have the whole product: the program (`main.rs`,
//! `cli.rs`), [`scan`] (extents and zeros), [`hashmap`] (blocks, hashes and the plan),
//! `protocol` (messages and limits) and `apply` (the destination of one file).
//! `docs/design.md` has the layers that all modules form, and three walks through them.
//!
//! What a program that embeds holesync needs, and all that these pages describe:
//!
//! - [`options::Options`]: how a transfer is to be done
//! - [`location::Location`]: where its ends are
//! - [`sync::run`], [`sync::digest`]: the transfer, and the root hash of a file
//! - [`sync::serve`], [`confinement::Confinement`]: the other end, and what it may be asked for
//! - [`report::Reporter`]: what is told meanwhile
//! - [`scan::Image`], [`scan::data_extents`]: extents; [`hashmap::map_image`]: maps
//!
//! The other modules are reachable for tests and benches, and promise nothing.

pub mod confinement;
pub mod error;
pub mod filter;
pub mod hashmap;
pub mod location;
pub mod options;
pub mod report;
pub mod scan;
pub mod sync;

#[doc(hidden)]
pub mod apply;
#[doc(hidden)]
pub mod in_use;
#[doc(hidden)]
pub mod protocol;
#[doc(hidden)]
pub mod receiver;
#[doc(hidden)]
pub mod remote;
#[doc(hidden)]
pub mod sender;
#[doc(hidden)]
pub mod shell;
#[doc(hidden)]
pub mod source;
#[doc(hidden)]
pub mod store;
#[doc(hidden)]
pub mod stream;
#[doc(hidden)]
pub mod sys;
#[doc(hidden)]
pub mod working;
