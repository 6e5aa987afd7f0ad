//! Getting to a host: a child process as a pair of streams, and in that one connection
//! the best far side that there is: a holesync, one that is brought along, or a shell.

pub mod bootstrap;
pub mod child;
pub mod cipher;
