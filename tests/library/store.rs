//! Images as objects.

mod bucket;
mod liars;
mod server;
mod web;
