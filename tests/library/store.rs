//! Images as objects.

mod bucket;
mod server;
mod web;
