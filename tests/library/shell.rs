//! What a far shell sends, read without one.

mod sparse_tar;
