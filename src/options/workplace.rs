//! Where new content gathers until it is a file.

use serde::{Deserialize, Serialize};

/// Where new content gathers, and when it becomes the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkplaceRules {
    /// The directory, relative to the destination, if it is relative. `None`: beside the file.
    pub temp_dir: Option<Vec<u8>>,
    /// The same, and it comes before that one. Relative, it is the name of a directory in each
    /// directory of the destination, which is made and removed as it is needed.
    pub partial_dir: Option<Vec<u8>>,
    /// What is complete there takes its place when everything else has its result.
    pub delay: bool,
}

impl WorkplaceRules {
    /// Whether that is beside the file that it becomes.
    pub fn is_beside(&self) -> bool {
        self.temp_dir.is_none() && self.partial_dir.is_none()
    }
}
