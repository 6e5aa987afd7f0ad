//! holesync as its users meet it: the built program as a child process, over a
//! real sshd, on real file systems.
//!
//! `tests/run` prepares the file systems and the sshd. Under a plain
//! `cargo test` the tests that want them are skipped, and say so.

mod calls;
mod ciphers;
mod cli;
mod common;
mod crash;
mod damage;
mod deploy;
mod devices;
mod early;
mod errors;
mod every_call;
mod full;
mod images;
mod interrupt;
mod meddling;
mod power;
mod push;
mod recover;
mod remote;
mod shell;
mod streams;
mod through;
mod trees;
