//! Rules over a listing, in which a directory comes before what is in it.

use crate::filter::{DirectoryRules, FilterRules, FilterSide};

/// The user's rules for a listing that is gone through from its beginning.
pub struct ListingRules {
    rules: DirectoryRules,
    /// The directory that was left out last, with a slash at its end.
    hidden: Option<Vec<u8>>,
}

impl ListingRules {
    /// Files of rules in directories, and paths on the other machine, are not known here.
    pub fn new(rules: &FilterRules) -> ListingRules {
        ListingRules { rules: DirectoryRules::new(rules, FilterSide::Sender, b""), hidden: None }
    }

    /// Whether the next entry is left out, or lies in a directory that is.
    pub fn hides(&mut self, path: &[u8], is_directory: bool) -> bool {
        if self.hidden.as_ref().is_some_and(|hidden| path.starts_with(hidden)) {
            return true;
        }
        let hides = !path.is_empty() && self.rules.hides(path, is_directory);
        if hides && is_directory {
            self.hidden = Some([path, b"/"].concat());
        }
        hides
    }
}
