//! Images as objects.

mod bucket;
mod garbled;
mod liars;
mod pull;
pub mod server;
pub mod stops;
mod web;
