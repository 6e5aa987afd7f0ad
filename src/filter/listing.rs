//! Rules over a listing that somebody else made: it may be in any order.

use crate::filter::{DirectoryRules, FilterRules, FilterSide};

/// The user's rules for a listing that is gone through from its beginning.
pub struct ListingRules {
    rules: DirectoryRules,
    /// The directory that was asked about last, and whether it is left out.
    last: Option<(Vec<u8>, bool)>,
}

impl ListingRules {
    /// Files of rules in directories, and paths on the other machine, are not known here.
    pub fn new(rules: &FilterRules) -> ListingRules {
        ListingRules { rules: DirectoryRules::new(rules, FilterSide::Sender, b""), last: None }
    }

    /// Whether an entry is left out, or lies in a directory that is.
    pub fn hides(&mut self, path: &[u8], is_directory: bool) -> bool {
        let above = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash);
        self.hides_directory(&path[..above]) || !path.is_empty() && self.rules.hides(path, is_directory)
    }

    fn hides_directory(&mut self, path: &[u8]) -> bool {
        if path.is_empty() {
            return false;
        }
        match &self.last {
            Some((last, hides)) if last == path => *hides,
            _ => {
                let slashes = (0..path.len()).filter(|&at| path[at] == b'/');
                let hides = slashes.chain([path.len()]).any(|end| self.rules.hides(&path[..end], true));
                self.last = Some((path.to_vec(), hides));
                hides
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;
    use crate::filter::RulesReader;

    #[test]
    fn what_lies_in_a_directory_that_is_left_out_is_so_in_any_order() {
        let mut reader = RulesReader::new(false);
        ["- a/", "- b/"].into_iter().for_each(|rule| reader.filter(OsStr::new(rule)).unwrap());
        let mut rules = ListingRules::new(&reader.finish());
        for (path, is_directory, expected) in [
            ("", true, false),
            ("a", true, true),
            ("b", true, true),
            ("a/x", false, true),
            ("c/b/x/y", false, true),
            ("c/b", false, false),
            ("c/x", false, false),
            ("a", false, false),
        ] {
            assert_eq!(rules.hides(path.as_bytes(), is_directory), expected, "{path}");
        }
    }
}
