//! Images as objects below one address: a directory, a web server, a bucket. `docs/store.md` has the
//! layout and the formats.

pub mod casync;
pub mod objects;
