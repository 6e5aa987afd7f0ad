//! Rules as they travel and as they are applied: checked when they are read, whoever wrote
//! them.

use serde::{Deserialize, Serialize};

use crate::filter::pattern::{MAX_PATTERN, Pattern};

/// The most rules of one list.
pub(super) const MAX_RULES: usize = 65536;
/// The most merge files that are read in every directory.
pub(super) const MAX_DIR_MERGES: usize = 64;

/// A rule for names: the first that matches decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WireRule", into = "WireRule")]
pub(super) struct Rule {
    pub pattern: Pattern,
    /// What it matches is transferred, or may be deleted.
    pub includes: bool,
    pub modifiers: Modifiers,
}

/// How a rule is applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Modifiers {
    /// It matches where its pattern does not.
    pub negated: bool,
    /// The path on its machine counts, not that within the transfer.
    pub absolute: bool,
    pub sides: Sides,
    /// It does not hold in directories that are deleted.
    pub perishable: bool,
    /// It is about names of extended attributes.
    pub of_attributes: bool,
}

/// Whom a rule concerns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Sides {
    /// Both, unless what is excluded is to be deleted.
    #[default]
    Unsaid,
    Both,
    Sender,
    Receiver,
}

/// A rule on its way: the text of its pattern, whether it includes, how it is applied.
#[derive(Serialize, Deserialize)]
struct WireRule(Vec<u8>, bool, Modifiers);

impl From<Rule> for WireRule {
    fn from(rule: Rule) -> WireRule {
        WireRule(rule.pattern.text().to_vec(), rule.includes, rule.modifiers)
    }
}

impl TryFrom<WireRule> for Rule {
    type Error = String;

    fn try_from(WireRule(text, includes, modifiers): WireRule) -> Result<Rule, String> {
        Rule::new(&text, includes, modifiers)
    }
}

impl Rule {
    /// # Errors
    ///
    /// When the pattern is empty, or longer than a path.
    pub fn new(text: &[u8], includes: bool, modifiers: Modifiers) -> Result<Rule, String> {
        if text.is_empty() {
            return Err("a rule without a pattern".into());
        }
        if text.len() > MAX_PATTERN {
            return Err(format!("a pattern of more than {MAX_PATTERN} bytes"));
        }
        Ok(Rule { pattern: Pattern::new(text), includes, modifiers })
    }

    /// Whether it goes by the path that something has on its machine.
    pub fn goes_by_its_machine(&self) -> bool {
        self.modifiers.absolute && self.pattern.is_of_paths()
    }
}

/// A file of rules that is looked for in every directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WireDirMerge", into = "WireDirMerge")]
pub(super) struct DirMerge {
    /// Its name in each directory.
    pub name: Vec<u8>,
    /// The directory from which on it is looked for in those above the transfer, too.
    pub from: Option<Vec<u8>>,
    pub style: Style,
}

/// How the rules in a file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Style {
    pub prefixes: Prefixes,
    /// Words in the place of lines, and no comments.
    pub words: bool,
    /// Its rules hold in directories below, too.
    pub inherited: bool,
    /// How its rules are applied, unless they say so themselves.
    pub modifiers: Modifiers,
}

/// What stands before a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Prefixes {
    /// What the rule is to do.
    Full,
    /// `+ ` or `- `, or nothing: then it is included, or not.
    Simple { includes: bool },
    /// Nothing.
    None { includes: bool },
    /// Nothing; `!` clears the list.
    Cvs,
}

impl Style {
    pub fn new(prefixes: Prefixes) -> Style {
        Style { prefixes, words: false, inherited: true, modifiers: Modifiers::default() }
    }

    /// Whether a file that is written so may include something.
    pub fn may_include(&self) -> bool {
        !matches!(self.prefixes, Prefixes::Cvs | Prefixes::None { includes: false })
    }
}

/// A [`DirMerge`] on its way.
#[derive(Serialize, Deserialize)]
struct WireDirMerge(Vec<u8>, Option<Vec<u8>>, Style);

impl From<DirMerge> for WireDirMerge {
    fn from(merge: DirMerge) -> WireDirMerge {
        WireDirMerge(merge.name, merge.from, merge.style)
    }
}

impl TryFrom<WireDirMerge> for DirMerge {
    type Error = String;

    fn try_from(WireDirMerge(name, from, style): WireDirMerge) -> Result<DirMerge, String> {
        let from_is_fine = from.as_ref().is_none_or(|from| is_path(from));
        if !from_is_fine || !is_path(&name) || name.contains(&b'/') || name == b"." || name == b".." {
            return Err("a merge file that has no name".into());
        }
        Ok(DirMerge { name, from, style })
    }
}

fn is_path(path: &[u8]) -> bool {
    (1..=MAX_PATTERN).contains(&path.len()) && !path.contains(&0)
}

impl DirMerge {
    /// Takes a path as a rule names it: the last name counts in every directory, and what is
    /// before it tells where to begin above the transfer.
    ///
    /// # Errors
    ///
    /// When it ends in no name.
    pub fn new(path: &[u8], style: Style) -> Result<DirMerge, String> {
        let at = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let (from, name) = path.split_at(at);
        let from = (!from.is_empty()).then(|| from.to_vec());
        WireDirMerge(name.to_vec(), from, style).try_into()
    }
}

/// One line of a list of rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Item {
    Rule(Rule),
    /// The rules that a directory has of its own, and those above it.
    DirMerge(DirMerge),
}
