//! The destination of one file, in memory or on a plain file system.

mod destination;
mod open;
mod replay;
mod stage;
