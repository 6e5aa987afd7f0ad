//! Which names are transferred and which may be deleted: rsync's filter rules. The user's
//! rules are a [`FilterRules`], which travels; a [`DirectoryRules`] is what of them, and of
//! the files of rules in directories, holds in one directory. Knows no walk and no
//! destination: both ask it.

mod listing;
mod parse;
mod pattern;
mod read;
mod rule;
mod tree;

use serde::{Deserialize, Serialize};

use crate::filter::rule::{Item, MAX_DIR_MERGES, MAX_RULES};

pub use listing::ListingRules;
pub use read::RulesReader;
pub use tree::{DirectoryRules, FilterSide};

/// The most bytes of all rules of a run: they travel in one message.
const MAX_TEXT: usize = 40 << 10;

/// Whether a name without slashes is like a pattern with rsync's wildcards.
pub fn is_like(pattern: &[u8], name: &[u8]) -> bool {
    pattern::Pattern::new(pattern).matches(name, false)
}

/// The rules of a run, in the order in which they count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WireRules", into = "WireRules")]
pub struct FilterRules {
    items: Vec<Item>,
    /// Lines of files in directories end with NUL.
    nul_separated: bool,
}

/// [`FilterRules`] on their way.
#[derive(Serialize, Deserialize)]
struct WireRules(Vec<Item>, bool);

impl From<FilterRules> for WireRules {
    fn from(rules: FilterRules) -> WireRules {
        WireRules(rules.items, rules.nul_separated)
    }
}

impl TryFrom<WireRules> for FilterRules {
    type Error = &'static str;

    fn try_from(WireRules(items, nul_separated): WireRules) -> Result<FilterRules, &'static str> {
        let rules = FilterRules { items, nul_separated };
        if rules.items.len() > MAX_RULES || rules.dir_merges() > MAX_DIR_MERGES {
            return Err("too many filter rules");
        }
        Ok(rules)
    }
}

impl FilterRules {
    /// Whether every name is transferred.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether they say nothing about what is in a directory that is being deleted.
    pub fn end_with_their_directory(&self) -> bool {
        let ends = |item: &Item| matches!(item, Item::Rule(rule) if rule.modifiers.perishable);
        self.items.iter().all(ends)
    }

    /// Whether directories may have rules of their own.
    pub fn has_dir_merges(&self) -> bool {
        self.dir_merges() > 0
    }

    /// Whether a rule goes by the path that something has on its machine.
    pub fn has_absolute(&self) -> bool {
        self.items.iter().any(|item| matches!(item, Item::Rule(rule) if rule.modifiers.absolute))
    }

    /// Whether they fit into the message that takes them to another machine.
    pub fn can_travel(&self) -> bool {
        let bytes = self.items.iter().map(|item| match item {
            Item::Rule(rule) => rule.pattern.text().len() + 10,
            Item::DirMerge(merge) => merge.name.len() + merge.from.as_ref().map_or(0, Vec::len) + 20,
        });
        bytes.sum::<usize>() <= MAX_TEXT
    }

    fn dir_merges(&self) -> usize {
        self.items.iter().filter(|item| matches!(item, Item::DirMerge(_))).count()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;
    use crate::filter::rule::{DirMerge, Modifiers, Prefixes, Rule, Sides, Style};

    fn read(lines: &[&str]) -> crate::error::Result<FilterRules> {
        let mut reader = RulesReader::new(false);
        lines.iter().try_for_each(|line| reader.filter(OsStr::new(line)))?;
        Ok(reader.finish())
    }

    fn rule(pattern: &str, includes: bool, modifiers: Modifiers) -> Item {
        Item::Rule(Rule::new(pattern.as_bytes(), includes, modifiers).unwrap())
    }

    #[test]
    fn rules_in_all_forms() {
        let none = Modifiers::default();
        let (negated, side) =
            (Modifiers { negated: true, ..none }, Modifiers { sides: Sides::Sender, ..none });
        for (line, expected) in [
            ("- x y", rule("x y", false, none)),
            ("-_x", rule("x", false, none)),
            ("exclude x", rule("x", false, none)),
            ("include,! x", rule("x", true, negated)),
            ("+!  x", rule(" x", true, negated)),
            ("-,s x", rule("x", false, side)),
            ("hide x", rule("x", false, side)),
            ("S x", rule("x", true, side)),
            ("-sr x", rule("x", false, Modifiers { sides: Sides::Both, ..none })),
            ("P x", rule("x", false, Modifiers { sides: Sides::Receiver, ..none })),
        ] {
            assert_eq!(read(&[line]).unwrap().items, [expected], "{line}");
        }
        let cvs = Style { words: true, inherited: false, ..Style::new(Prefixes::Cvs) };
        let merge = |name: &[u8], style| Item::DirMerge(DirMerge::new(name, style).unwrap());
        assert_eq!(read(&[":C"]).unwrap().items, [merge(b".cvsignore", cvs)]);
        let simple = Style { inherited: false, ..Style::new(Prefixes::None { includes: false }) };
        assert_eq!(read(&["dir-merge,n- .x"]).unwrap().items, [merge(b".x", simple)]);
        let own = rule(".x", false, none);
        assert_eq!(read(&[":e .x"]).unwrap().items, [own, merge(b".x", Style::new(Prefixes::Full))]);
        assert!(read(&["- x", "!"]).unwrap().is_empty() && read(&["- x", "clear"]).unwrap().is_empty());
        assert!(read(&["-C"]).unwrap().items.len() > 30);
        for bad in
            ["", "-", "- ", "x", "included x", "-e x", ":! x", ":", "P,s x", "! x", "-C x", ". /no/such"]
        {
            assert_eq!(read(&[bad]).unwrap_err().exit_code(), 1, "{bad}");
        }
    }

    #[test]
    fn they_travel_and_are_checked() {
        let rules = read(&["- *.o", ":n /.f", "+!/ /x"]).unwrap();
        let bytes = postcard::to_stdvec(&rules).unwrap();
        assert_eq!(postcard::from_bytes::<FilterRules>(&bytes).unwrap(), rules);
        let merges = |count| vec![rules.items[1].clone(); count];
        let taken = |items| {
            postcard::from_bytes::<FilterRules>(&postcard::to_stdvec(&WireRules(items, false)).unwrap())
        };
        assert!(taken(merges(MAX_DIR_MERGES)).is_ok() && taken(merges(MAX_DIR_MERGES + 1)).is_err());
        assert!(!read(&["- xxxxxxxx"; 4000]).unwrap().can_travel());
        let empty = Item::Rule(Rule {
            pattern: crate::filter::pattern::Pattern::new(b""),
            ..match &rules.items[0] {
                Item::Rule(rule) => rule.clone(),
                Item::DirMerge(_) => unreachable!("the first is a rule"),
            }
        });
        assert!(taken(vec![empty]).is_err());
    }
}
