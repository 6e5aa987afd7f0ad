//! holesync as its users meet it: the built program as a child process, over a
//! real sshd, on real file systems.
//!
//! `tests/run` prepares the file systems and the sshd. Under a plain
//! `cargo test` the tests that want them are skipped, and say so.

mod apply;
mod cli;
mod common;
mod protocol;
mod remote;
mod scan;
mod shell;
mod store;
mod stream;
mod sync;
