//! Images as objects.

mod server;
mod web;
