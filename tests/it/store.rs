//! Images as objects of real servers.

mod bucket;
mod s3;
mod web;
