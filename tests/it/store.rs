//! Images as objects.

mod bucket;
mod s3;
