//! Images as objects below one address: a directory, a web server, a bucket. `docs/store.md` has the
//! layout and the formats.

pub mod address;
pub mod casync;
pub mod check;
pub mod fetched;
pub mod head;
pub mod keep;
pub mod name;
pub mod objects;
pub mod pack;
pub mod patches;
pub mod places;
pub mod publish;
pub mod pull;
pub mod signature;
