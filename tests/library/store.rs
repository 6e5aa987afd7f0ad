//! Images as objects.

mod bucket;
mod garbled;
mod liars;
pub mod server;
pub mod stops;
mod web;
