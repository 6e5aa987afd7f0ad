//! The wire between two programs.

mod damage;
