//! Images as they are read.

mod images;
mod seeks;
