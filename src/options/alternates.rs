//! Other directories that may have what is to be at the destination.

use serde::{Deserialize, Serialize};

/// Directories in which entries that are not at the destination are looked for, under their
/// own paths. What differs there is begun from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alternates {
    /// What is done about an entry that is there as it is wanted.
    pub kind: AlternateKind,
    /// Relative to the destination, if they are relative. The first that has an entry counts.
    pub dirs: Vec<Vec<u8>>,
}

/// What is done about an entry that another directory has as it is wanted, attributes
/// included. A file of which only these differ is copied there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AlternateKind {
    /// It is not made.
    Compare,
    /// It is copied.
    Copy,
    /// It becomes another name of that one.
    Link,
}
