//! What every test needs: a place to work in, files to send, a way to run the
//! program and a way to look at the result.

pub mod account;
pub mod check;
pub mod disk;
pub mod faults;
pub mod guests;
pub mod lab;
pub mod layout;
pub mod nginx;
pub mod peer;
pub mod process;
pub mod redeploy;
pub mod trace;
pub mod tree;
pub mod users;
