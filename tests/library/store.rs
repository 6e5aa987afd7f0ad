//! Images as objects.

mod bucket;
mod garbled;
mod liars;
mod server;
mod web;
