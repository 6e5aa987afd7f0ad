//! holesync makes a file on one machine equal to a file on another at the cost
//! of the data that is allocated and changed.
pub mod apply;
pub mod error;
pub mod hashmap;
pub mod location;
pub mod options;
pub mod protocol;
pub mod report;
pub mod scan;
pub mod stage;
pub mod sys;
