//! The rules that hold in one directory of a tree: those of the user, and those in files of
//! the directory and of the ones above it.

use std::sync::Arc;

use crate::error::escape;
use crate::filter::FilterRules;
use crate::filter::parse::{Files, Parser};
use crate::filter::rule::{DirMerge, Item, MAX_DIR_MERGES, Rule, Sides};

/// Memory for the rules that a directory has from files, in bytes.
const MAX_WEIGHT: usize = 16 << 20;
/// What a rule takes beside its text.
const RULE_WEIGHT: usize = 256;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterSide {
    /// Who has the sources.
    Sender,
    /// Who has the destination.
    Receiver {
        /// What is excluded is deleted, too: then rules protect nothing unless they say so.
        delete_excluded: bool,
    },
}

/// The rules that hold in one directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DirectoryRules {
    run: Arc<RunRules>,
    /// The files that directories may have, the user's first.
    merges: Vec<Arc<DirMerge>>,
    /// What was found in each of them here and above.
    found: Vec<Option<Arc<Found>>>,
}

#[derive(Debug)]
struct RunRules {
    rules: FilterRules,
    side: FilterSide,
    /// The directory that paths are relative to, on this machine; no slash at its end.
    root: Vec<u8>,
}

/// The rules in a file of a directory.
#[derive(Debug)]
struct Found {
    items: Vec<Item>,
    /// The directory, as an absolute path; no slash at its end.
    directory: Vec<u8>,
    /// Those of the directory above, which count after these.
    above: Option<Arc<Found>>,
    weight: usize,
}

/// What is asked about a name.
#[derive(Clone, Copy)]
struct Question<'a> {
    path: &'a [u8],
    is_directory: bool,
    in_deleted: bool,
    of_attributes: bool,
}

/// Reads a file of rules: the directory as an absolute path, and its name there. `None`:
/// there is none.
pub type ReadRules<'a> = dyn FnMut(&[u8], &[u8]) -> Result<Option<Vec<u8>>, String> + 'a;

impl DirectoryRules {
    /// The user's rules. `root`: the absolute path that the paths of a transfer are below.
    pub fn new(rules: &FilterRules, side: FilterSide, root: &[u8]) -> DirectoryRules {
        let root = root.strip_suffix(b"/").unwrap_or(root).to_vec();
        let merges: Vec<_> = rules.items.iter().filter_map(dir_merge).cloned().map(Arc::new).collect();
        let found = vec![None; merges.len()];
        DirectoryRules { run: Arc::new(RunRules { rules: rules.clone(), side, root }), merges, found }
    }

    /// Whether the sender leaves something out. `path` is that within the transfer, its
    /// directory the one that these rules hold in.
    pub fn hides(&self, path: &[u8], is_directory: bool) -> bool {
        !self.includes(Question { path, is_directory, in_deleted: false, of_attributes: false })
    }

    /// Whether a sender on another machine leaves something out, as far as that is known here:
    /// not the files of rules in its directories, nor the path that the transfer has there.
    pub fn surely_hides(&self, path: &[u8], is_directory: bool) -> bool {
        self.surely_excludes(Question { path, is_directory, in_deleted: false, of_attributes: false })
    }

    /// The same of an extended attribute.
    pub fn surely_hides_attribute(&self, name: &[u8]) -> bool {
        let question = Question { path: name, is_directory: false, in_deleted: false, of_attributes: true };
        self.surely_excludes(question)
    }

    /// Whether the receiver may not delete something that the sender has not. `in_deleted`:
    /// its directory is being deleted, where perishable rules do not hold.
    pub fn protects(&self, path: &[u8], is_directory: bool, in_deleted: bool) -> bool {
        !self.includes(Question { path, is_directory, in_deleted, of_attributes: false })
    }

    /// Whether an extended attribute of this name is left out, or left alone.
    pub fn hides_attribute(&self, name: &[u8]) -> bool {
        !self.includes(Question { path: name, is_directory: false, in_deleted: false, of_attributes: true })
    }

    /// The rules that hold in a directory below this one, or in the first of a transfer, with
    /// those that its own files have.
    ///
    /// # Errors
    ///
    /// What is wrong with one of these files. Then what they hide is not known.
    pub fn enter(&self, path: &[u8], read: &mut ReadRules) -> Result<DirectoryRules, String> {
        if self.merges.is_empty() {
            return Ok(self.clone());
        }
        self.read_in(self.run.absolute(path), |_| true, read)
    }

    /// The same for the first directory of a transfer: files that are looked for above it,
    /// too, are read there first.
    ///
    /// # Errors
    ///
    /// Those of [`DirectoryRules::enter`].
    pub fn enter_first(&self, path: &[u8], read: &mut ReadRules) -> Result<DirectoryRules, String> {
        let mut rules = self.clone();
        let directory = self.run.absolute(path);
        let root = &self.run.root;
        let from = |merge: &DirMerge| Some(cleaned(&[root, &b"/"[..], merge.from.as_ref()?].concat(), merge));
        for at in (0..directory.len()).filter(|&at| directory[at] == b'/') {
            let above = &directory[..at];
            let is_wanted = |merge: &DirMerge| from(merge).is_some_and(|from| is_below(above, &from));
            if rules.merges.iter().any(|merge| is_wanted(merge)) {
                rules = rules.read_in(above.to_vec(), is_wanted, read)?;
            }
        }
        rules.enter(path, read)
    }

    fn read_in(
        &self,
        directory: Vec<u8>,
        is_wanted: impl Fn(&DirMerge) -> bool,
        read: &mut ReadRules,
    ) -> Result<DirectoryRules, String> {
        let mut next = self.clone();
        let mut index = 0;
        // Files of rules may ask for others.
        while let Some(merge) = next.merges.get(index).cloned() {
            let above = next.found[index].take().filter(|_| merge.style.inherited);
            next.found[index] = match is_wanted(&merge).then(|| read(&directory, &merge.name)).transpose()? {
                None | Some(None) => above,
                Some(Some(text)) => Some(Arc::new(next.parse(&merge, &text, &directory, above, read)?)),
            };
            index += 1;
        }
        Ok(next)
    }

    fn parse(
        &mut self,
        merge: &DirMerge,
        text: &[u8],
        directory: &[u8],
        above: Option<Arc<Found>>,
        read: &mut ReadRules,
    ) -> Result<Found, String> {
        let mut files = FilesOf { directory, read };
        let mut parser = Parser::new(Vec::new(), self.run.rules.nul_separated, &mut files);
        parser.file(text, merge.style)?;
        let (items, cleared) = (parser.items, parser.cleared);
        let above = above.filter(|_| !cleared);
        let is_new = |item: &Item| {
            let known = |merge: &DirMerge| self.merges.iter().any(|known| known.name == merge.name);
            dir_merge(item).is_none_or(|merge| !known(merge))
        };
        let items: Vec<Item> = items.into_iter().filter(is_new).collect();
        if let Some(from) = items.iter().filter_map(dir_merge).find_map(|merge| merge.from.as_ref()) {
            return Err(format!(
                "a dir-merge rule in it begins in {}, above the directory: give that rule as an option",
                escape(from)
            ));
        }
        self.merges.extend(items.iter().filter_map(dir_merge).cloned().map(Arc::new));
        self.found.resize(self.merges.len(), None);
        let weight = text.len() + items.len() * RULE_WEIGHT + above.as_ref().map_or(0, |above| above.weight);
        if self.merges.len() > MAX_DIR_MERGES || weight > MAX_WEIGHT {
            return Err("more rules than a directory may have".into());
        }
        Ok(Found { items, directory: directory.to_vec(), above, weight })
    }

    fn includes(&self, question: Question) -> bool {
        self.decide(&self.run.rules.items, None, question).unwrap_or(true)
    }

    /// Whether no rule that is unknown here can say something else.
    fn surely_excludes(&self, question: Question) -> bool {
        for item in &self.run.rules.items {
            match item {
                Item::DirMerge(merge) if merge.style.may_include() => return false,
                Item::DirMerge(_) => {}
                Item::Rule(rule) if rule.goes_by_its_machine() => {
                    if rule.includes {
                        return false;
                    }
                }
                Item::Rule(rule) if self.run.matches(rule, None, question) => return !rule.includes,
                Item::Rule(_) => {}
            }
        }
        false
    }

    /// What the first rule that matches says.
    fn decide(&self, items: &[Item], directory: Option<&[u8]>, question: Question) -> Option<bool> {
        items.iter().find_map(|item| match item {
            Item::Rule(rule) => self.run.matches(rule, directory, question).then_some(rule.includes),
            Item::DirMerge(merge) => {
                let index = self.merges.iter().position(|known| known.name == merge.name)?;
                let mut found = self.found[index].as_deref();
                while let Some(Found { items, directory, above, .. }) = found {
                    if let Some(includes) = self.decide(items, Some(directory), question) {
                        return Some(includes);
                    }
                    found = above.as_deref();
                }
                None
            }
        })
    }
}

impl RunRules {
    fn absolute(&self, path: &[u8]) -> Vec<u8> {
        if path.is_empty() { self.root.clone() } else { [&self.root, &b"/"[..], path].concat() }
    }

    /// Whether a rule says something about a name. `directory`: that of the file which it
    /// stands in.
    fn matches(&self, rule: &Rule, directory: Option<&[u8]>, question: Question) -> bool {
        let Rule { pattern, modifiers, .. } = rule;
        let concerns = match (self.side, modifiers.sides) {
            (FilterSide::Receiver { delete_excluded }, Sides::Unsaid) => !delete_excluded,
            (_, Sides::Unsaid | Sides::Both) => true,
            (FilterSide::Sender, sides) => sides == Sides::Sender,
            (FilterSide::Receiver { .. }, sides) => sides == Sides::Receiver,
        };
        let perished = modifiers.perishable && question.in_deleted;
        if !concerns || perished || modifiers.of_attributes != question.of_attributes {
            return false;
        }
        let Question { path, is_directory, .. } = question;
        let matched = match directory.filter(|_| pattern.is_anchored() && !modifiers.absolute) {
            Some(directory) => {
                let absolute = self.absolute(path);
                let below = absolute.strip_prefix(directory).and_then(|rest| rest.strip_prefix(b"/"));
                below.is_some_and(|below| pattern.matches(below, is_directory))
            }
            None if rule.goes_by_its_machine() => pattern.matches(&self.absolute(path)[1..], is_directory),
            None => pattern.matches(path, is_directory),
        };
        matched != modifiers.negated
    }
}

fn dir_merge(item: &Item) -> Option<&DirMerge> {
    match item {
        Item::DirMerge(merge) => Some(merge),
        Item::Rule(_) => None,
    }
}

/// Where a search begins: an absolute path without `.`, `..` and a slash at its end.
fn cleaned(below_root: &[u8], merge: &DirMerge) -> Vec<u8> {
    let absolute = merge.from.as_ref().filter(|from| from.starts_with(b"/"));
    let path = absolute.map_or(below_root, Vec::as_slice);
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.iter().flat_map(|name| [b"/", *name].concat()).collect()
}

fn is_below(path: &[u8], above: &[u8]) -> bool {
    path.strip_prefix(above).is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
}

/// The files of one directory: a rule in one of them names no other place.
struct FilesOf<'a, 'b> {
    directory: &'a [u8],
    read: &'a mut ReadRules<'b>,
}

impl Files for FilesOf<'_, '_> {
    fn merge(&mut self, path: &[u8]) -> Result<Vec<u8>, String> {
        if path.contains(&b'/') || matches!(path, b"-" | b"." | b"..") {
            return Err("a file of rules in a directory may merge only files beside it".into());
        }
        (self.read)(self.directory, path)?.ok_or_else(|| "the file that it merges is not there".into())
    }

    fn cvs(&mut self) -> Result<Vec<u8>, String> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;
    use crate::filter::RulesReader;

    fn rules(lines: &[&str]) -> FilterRules {
        let mut reader = RulesReader::new(false);
        lines.iter().for_each(|line| reader.filter(OsStr::new(line)).unwrap());
        reader.finish()
    }

    const RECEIVER: FilterSide = FilterSide::Receiver { delete_excluded: false };

    fn at(lines: &[&str], side: FilterSide) -> DirectoryRules {
        DirectoryRules::new(&rules(lines), side, b"/home/me")
    }

    #[test]
    fn each_side_goes_by_its_own_rules() {
        let lines = ["H h", "P p", "-s s", "-r r", "- both", "-p perishable", "-x user.*", "-/ /home/me/abs"];
        let (sender, receiver) = (at(&lines, FilterSide::Sender), at(&lines, RECEIVER));
        let deleting = at(&lines, FilterSide::Receiver { delete_excluded: true });
        for (name, hidden, protected, still) in [
            ("h", true, false, false),
            ("p", false, true, true),
            ("s", true, false, false),
            ("r", false, true, true),
            ("both", true, true, false),
            ("perishable", true, true, false),
            ("abs", true, true, false),
            ("user.x", false, false, false),
        ] {
            let name = name.as_bytes();
            assert_eq!(sender.hides(name, false), hidden);
            assert_eq!(receiver.protects(name, false, false), protected);
            assert_eq!(deleting.protects(name, false, false), still);
        }
        assert!(!receiver.protects(b"perishable", false, true));
        assert!(sender.hides_attribute(b"user.x") && !sender.hides_attribute(b"both"));
    }

    #[test]
    fn directories_have_rules_of_their_own() {
        let top = at(&["+ keep", "dir-merge .rules", "- *.o"], FilterSide::Sender);
        let mut read = |directory: &[u8], name: &[u8]| {
            assert_eq!(name, b".rules");
            Ok(match directory {
                b"/home/me" => Some(b"# comment\n- /top\n- low\n+ x.o\n".to_vec()),
                b"/home/me/sub" => Some(b"+ low\n- keep\n".to_vec()),
                b"/home/me/sub/clear" => Some(b"!\n".to_vec()),
                _ => None,
            })
        };
        let root = top.enter_first(b"", &mut read).unwrap();
        assert!(root.hides(b"top", false) && root.hides(b"low", true) && root.hides(b"a.o", false));
        assert!(!root.hides(b"x.o", false));
        let sub = root.enter(b"sub", &mut read).unwrap();
        assert!(!sub.hides(b"sub/top", false) && !sub.hides(b"sub/low", false));
        assert!(!sub.hides(b"sub/keep", false) && sub.hides(b"sub/a.o", false));
        let clear = sub.enter(b"sub/clear", &mut read).unwrap();
        assert!(!clear.hides(b"sub/clear/low", false) && clear.hides(b"sub/clear/x.o", false));
    }

    #[test]
    fn files_above_the_transfer_are_read_from_where_the_rule_says() {
        for (rule, expected) in [
            (": /.f", &["", "/home", "/home/me"][..]),
            (": ../.f", &["/home", "/home/me"]),
            (": .f", &["/home/me"]),
            (": /elsewhere/.f", &["/home/me"]),
        ] {
            let mut looked = Vec::new();
            let mut read = |directory: &[u8], _: &[u8]| {
                looked.push(String::from_utf8(directory.to_vec()).unwrap());
                Ok(None)
            };
            at(&[rule], FilterSide::Sender).enter_first(b"", &mut read).unwrap();
            assert_eq!(looked, expected, "{rule}");
        }
    }

    #[test]
    fn a_bad_file_of_rules_is_an_error_and_so_are_too_many() {
        let top = at(&[": .f"], FilterSide::Sender);
        let enter = |text: Vec<u8>| top.enter(b"d", &mut |_, _| Ok(Some(text.clone())));
        for bad in ["what", "-", ". /etc/passwd", ". -", "-Q x", "!x"] {
            assert!(enter(bad.into()).is_err(), "{bad}");
        }
        assert!(enter(b"- x\n".repeat(70_000)).is_err());
        let nested: String = (0..70).map(|index| format!(": .f{index}\n")).collect();
        assert!(enter(nested.into()).is_err());
    }

    #[test]
    fn a_file_of_rules_may_ask_for_another() {
        let top = at(&[": .f"], FilterSide::Sender);
        let mut read = |directory: &[u8], name: &[u8]| {
            Ok(match (directory, name) {
                (b"/home/me", b".f") => Some(b": .g\n: .f\n".to_vec()),
                (b"/home/me/d", b".g") => Some(b"- x\n".to_vec()),
                _ => None,
            })
        };
        let root = top.enter(b"", &mut read).unwrap();
        assert!(!root.hides(b"x", false));
        assert!(root.enter(b"d", &mut read).unwrap().hides(b"d/x", false));
    }
}
