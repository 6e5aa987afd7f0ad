//! holesync makes a file on one machine equal to a file on another, at a cost
//! that follows the data that is allocated and changed.
//!
//! The modules, from the top down; each uses only those below it:
//!
//! - [`sync`]: the initiator; [`agent`]: the responder
//! - [`local`]: both ends on this machine; [`recv`]: a stream from stdin
//! - without an agent at the other end: `upload` (with `asked`, `records`) and
//!   `receiving_shell`; `download` and `sending_shell` (with `tarball`); `shell`, what
//!   both say and hear; [`ladder`]: agent, pushed agent or shell
//! - `through`: a command in the place of a destination
//! - [`sender`]: the sending role, over any pair of streams, made of `merge`
//!   (what differs; with `later`), `describe` (how it is told; with `description`),
//!   `hasher` (reading) and `announce` (entries)
//! - [`receiver`]: the receiving role, made of `assemble` (one file), `mapper`
//!   (answers), `inbox` and `outbox` (both ways of the connection) and `base` (where it
//!   all goes)
//! - [`stream`]: an image as text records
//! - [`early`]: a file hashed ahead; [`tree`]: what to send; [`compress`]: whether to
//!   compress it; [`link`]: how fast it goes
//! - [`frames`]: frames on the wire; [`plain`]: bytes in none; [`protocol`]: messages and their limits
//! - [`approach`]: what is at a destination, and how to go about it; [`apply`]: where
//!   its new content gathers, and how it is completed (`commit`);
//!   [`settle`]: what a crash left of it
//! - [`stage`]: where changes gather beside it; [`log`]: which ranges those are;
//!   [`overlay`]: both over the old file
//! - [`place`]: a name in a directory; [`copy`]: all of a file; [`ranges`]: copying
//!   and zeroing
//! - [`plan`]: block maps, and what turns one file into another; [`leaves`]: the
//!   parts of a block that differs
//! - [`hashmap`]: files as blocks, hashed in parallel
//! - [`scan`]: data extents, and the test for zeros
//! - [`cipher`]: which cipher ssh is asked for; [`transport`]: a child process as a
//!   pair of streams; [`report`]: what the user is told; [`sys`]: system calls
//! - [`location`], [`options`], [`error`]

pub mod agent;
mod announce;
pub mod apply;
pub mod approach;
mod asked;
mod assemble;
mod base;
pub mod cipher;
mod commit;
pub mod compress;
pub mod copy;
mod describe;
mod description;
mod download;
pub mod early;
pub mod error;
pub mod frames;
mod hasher;
pub mod hashmap;
mod inbox;
pub mod ladder;
mod later;
pub mod leaves;
pub mod link;
pub mod local;
pub mod location;
pub mod log;
mod mapper;
mod merge;
pub mod options;
mod outbox;
pub mod overlay;
pub mod place;
pub mod plain;
pub mod plan;
pub mod protocol;
pub mod ranges;
pub mod receiver;
mod receiving_shell;
mod records;
pub mod recv;
pub mod report;
pub mod scan;
pub mod sender;
mod sending_shell;
pub mod settle;
mod shell;
pub mod stage;
pub mod stream;
pub mod sync;
pub mod sys;
mod tarball;
mod through;
pub mod transport;
pub mod tree;
mod upload;
