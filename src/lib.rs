//! holesync makes a file on one machine equal to a file on another, at a cost
//! that follows the data that is allocated and changed.
//!
//! The modules, from the top down; each uses only those below it:
//!
//! - [`sync`]: the initiator; [`sync::agent`]: the responder
//! - [`sync::local`]: both ends on this machine; `stream::receive`: a stream from stdin
//! - without an agent at the other end: `shell::send` (with `shell::pending`, `shell::pieces`) and
//!   `shell::receiver`; `shell::receive` and `shell::sender` (with `shell::sparse_tar`); `shell`, what
//!   both say and hear; [`remote::bootstrap`]: agent, pushed agent or shell
//! - `stream::through`: a command in the place of a destination
//! - [`sender`]: the sending role, over any pair of streams, made of `sender::merge`
//!   (what differs; with `sender::deferred`), `sender::describe` (how it is told; with `sender::file_state`),
//!   `sender::hasher` (reading) and `sender::announce` (entries)
//! - [`receiver`]: the receiving role, made of `receiver::assemble` (one file), `receiver::answer`
//!   (answers), `receiver::inbox` and `receiver::outbox` (both ways of the connection) and `apply::root` (where it
//!   all goes)
//! - [`stream`]: an image as text records
//! - [`hashmap::ahead`]: a file hashed ahead; [`source`]: what to send; [`protocol::compress`]: whether to
//!   compress it; [`protocol::link_speed`]: how fast it goes
//! - [`protocol::frame`]: frames on the wire; [`protocol::lines`]: bytes in none; [`protocol`]: messages and their limits
//! - [`apply::open`]: what is at a destination, and how to go about it; [`apply`]: where
//!   its new content gathers, and how it is completed (`apply::commit`);
//!   [`apply::recover`]: what a crash left of it
//! - [`apply::stage`]: where changes gather beside it; [`apply::stage_log`]: which ranges those are;
//!   [`apply::overlay`]: both over the old file
//! - [`apply::place`]: a name in a directory; [`apply::copy`]: all of a file; [`apply::ranges`]: copying
//!   and zeroing
//! - [`hashmap::plan`]: block maps, and what turns one file into another; [`hashmap::leaves`]: the
//!   parts of a block that differs
//! - [`hashmap`]: files as blocks, hashed in parallel
//! - [`scan`]: data extents, and the test for zeros
//! - [`remote::cipher`]: which cipher ssh is asked for; [`remote::child`]: a child process as a
//!   pair of streams; [`report`]: what the user is told; [`sys`]: system calls
//! - [`location`], [`options`], [`error`]

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
