//! Copies on one machine, through the library.

mod local;
