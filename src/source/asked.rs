//! What was asked of another end, which may send nothing else: where that goes, and what of it
//! the rules of the user leave out. It is the walk of the other end, seen from here. What only
//! that end knows is in its favour: what its files of rules say, and where its home is.

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;

use crate::confinement::NamedPath;
use crate::filter::{DirectoryRules, FilterSide};
use crate::options::Options;
use crate::source::path::slashes;
use crate::source::patterns::{is_path_like, is_pattern};
use crate::source::{Kind, Metadata};

/// What another end may send.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Where sources go, and how many names below that something of them may lie.
    sources: HashMap<Vec<u8>, usize>,
    /// Directories on the way there.
    above: HashSet<Vec<u8>>,
    /// Of both, those that may stand for others.
    source_patterns: Vec<(Vec<u8>, usize)>,
    above_patterns: Vec<Vec<u8>>,
    /// What is known of where sources go that keep their path below a home: its end.
    below_home: Vec<(Vec<u8>, usize)>,
    rules: DirectoryRules,
    /// The directory that something was found to be allowed in last, where all below counts.
    last: Option<Vec<u8>>,
}

impl Asked {
    /// What these sources are, with these options.
    pub fn of(sources: &[NamedPath], options: &Options) -> Asked {
        let mut asked = Asked {
            sources: HashMap::new(),
            above: HashSet::new(),
            source_patterns: Vec::new(),
            above_patterns: Vec::new(),
            below_home: Vec::new(),
            rules: DirectoryRules::new(&options.filter, FilterSide::Sender, b""),
            last: None,
        };
        for source in sources {
            asked.add(source, options.recursive);
        }
        asked
    }

    fn add(&mut self, source: &NamedPath, recursive: bool) {
        let depth = match recursive {
            true => usize::MAX,
            false => usize::from(source.names_contents()),
        };
        let (path, mut target) = (source.path().as_os_str().as_bytes(), source.target());
        if path == b"~" || path.starts_with(b"~/") && source.keeps().from.is_some() && !source.is_listed() {
            if source.keeps().from.is_some() {
                let end = target.strip_prefix(b"~").unwrap_or(&target);
                self.below_home.push((end.strip_prefix(b"/").unwrap_or(end).to_vec(), depth));
                return;
            }
            // One name, or all of what a confined agent has for a home.
            target = b"*".to_vec();
            self.above.insert(Vec::new());
        }
        self.above.extend(source.keeps().is_below_root.then(Vec::new));
        for (_, target) in source.implied() {
            if is_pattern(&target) {
                self.above_patterns.push(target.clone());
            }
            self.above.insert(target);
        }
        if is_pattern(&target) {
            self.source_patterns.push((target.clone(), depth));
        }
        let known = self.sources.entry(target).or_default();
        *known = depth.max(*known);
    }

    /// Whether something of this kind may come that goes there. A source that is missing is one
    /// that was named itself.
    pub fn allows(&mut self, path: &[u8], kind: &Kind) -> bool {
        if *kind == Kind::Missing {
            return self.sources.contains_key(path) || self.is_below_home(path).is_some();
        }
        let is_directory = *kind == Kind::Directory;
        if is_directory && self.is_above(path) {
            return true;
        }
        let is_hidden = !path.is_empty() && self.rules.surely_hides(path, is_directory);
        !is_hidden && self.is_reached(path)
    }

    /// Whether it may be told what a directory holds.
    pub fn allows_what_is_in(&mut self, directory: &[u8]) -> bool {
        let is_hidden = !directory.is_empty() && self.rules.surely_hides(directory, true);
        !is_hidden && self.is_reached(directory)
    }

    /// Whether all of these extended attributes may come.
    pub fn allows_attributes(&self, metadata: &Metadata) -> bool {
        !metadata.xattrs.iter().flatten().any(|(name, _)| self.rules.surely_hides_attribute(name))
    }

    /// Whether something is a source, or there is a way to it from one that no rule hides.
    fn is_reached(&mut self, path: &[u8]) -> bool {
        let ends = slashes(path).chain([path.len()]).chain((!path.is_empty()).then_some(0));
        let mut ends = ends.collect::<Vec<_>>();
        ends.sort_unstable();
        for (names, &end) in ends.iter().rev().enumerate() {
            let above = &path[..end];
            if names == 1 && self.last.as_deref() == Some(above) {
                return true;
            }
            if names > 0 && end > 0 && self.rules.surely_hides(above, true) {
                return false;
            }
            if let Some(depth) = self.depth_below(above)
                && names <= depth
            {
                let directory = ends.iter().rev().nth(1).map(|&end| path[..end].to_vec());
                self.last = directory.filter(|_| depth == usize::MAX && names > 0);
                return true;
            }
        }
        false
    }

    /// How many names below a path something may lie, if a source goes there.
    fn depth_below(&self, path: &[u8]) -> Option<usize> {
        let like = self.source_patterns.iter().filter(|(pattern, _)| is_path_like(pattern, path));
        let like = like.map(|(_, depth)| *depth).max();
        self.sources.get(path).copied().max(like).max(self.is_below_home(path))
    }

    fn is_below_home(&self, path: &[u8]) -> Option<usize> {
        let ends = |end: &[u8]| {
            path.strip_suffix(end).is_some_and(|rest| end.is_empty() || matches!(rest, [] | [.., b'/']))
        };
        self.below_home.iter().filter(|(end, _)| ends(end)).map(|(_, depth)| *depth).max()
    }

    /// Whether a directory may be on the way to a source.
    fn is_above(&self, path: &[u8]) -> bool {
        self.above.contains(path)
            || !self.below_home.is_empty()
            || self.above_patterns.iter().any(|pattern| is_path_like(pattern, path))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;

    use super::*;
    use crate::filter::RulesReader;
    use crate::options::Options;
    use crate::source::{Node, choose};

    const FILE: Kind = Kind::Node(Node::Fifo);

    /// What is asked for with rules; `relative`: paths are kept.
    fn asked(sources: &[&str], listed: &[&str], relative: bool, rules: &[&str]) -> Asked {
        let mut reader = RulesReader::new(false);
        rules.iter().for_each(|rule| reader.filter(OsStr::new(rule)).unwrap());
        let mut options = Options { filter: reader.finish(), ..Options::default() };
        options.directories.relative = relative;
        let listed: Vec<_> = listed.iter().map(|name| name.as_bytes().to_vec()).collect();
        let listed = (!listed.is_empty()).then_some(listed);
        let sources = sources.iter().map(NamedPath::here).collect();
        Asked::of(&choose(sources, listed, &options).unwrap(), &options)
    }

    /// Whether a file may come, a directory, and what is in that.
    fn found(asked: &mut Asked, path: &str) -> (bool, bool, bool) {
        let path = path.as_bytes();
        let (file, directory) = (asked.allows(path, &FILE), asked.allows(path, &Kind::Directory));
        (file, directory, asked.allows_what_is_in(path))
    }

    #[test]
    fn only_what_was_asked_for_may_come() {
        let mut list = asked(&["src"], &["a/b/c", "./d"], true, &[]);
        for (path, as_file, as_directory, all) in [
            ("a/b/c", true, true, true),
            ("a/b/c/x", true, true, true),
            ("a/b/c/x/y/z", true, true, true),
            ("d", true, true, true),
            ("a", false, true, false),
            ("a/b", false, true, false),
            ("", false, true, false),
            ("a/x", false, false, false),
            ("a/b/cc", false, false, false),
            ("e", false, false, false),
        ] {
            assert_eq!(found(&mut list, path), (as_file, as_directory, all), "{path}");
        }
        assert!(list.allows(b"a/b/c", &Kind::Missing) && !list.allows(b"a/b/c/x", &Kind::Missing));
        let mut contents = asked(&["src/"], &[], false, &[]);
        assert_eq!(found(&mut contents, "any/where"), (true, true, true));
        assert!(!contents.allows(b"any", &Kind::Missing));
    }

    #[test]
    fn a_home_has_a_name_that_is_not_known() {
        for (source, relative, path, expected) in [
            ("~/a", true, "home/me/a", true),
            ("~/a", true, "home/me/a/b", true),
            ("~/a", true, "home/me/aa", false),
            ("~/a", false, "a", true),
            ("~/a", false, "b", false),
            ("~", false, "me", true),
            ("~", false, "me/x/y", true),
            ("~", true, "home/me/x", true),
            ("~/", false, "x/y", true),
        ] {
            let mut asked = asked(&[source], &[], relative, &[]);
            assert_eq!(asked.allows(path.as_bytes(), &FILE), expected, "{source} {path}");
        }
        assert!(asked(&["~"], &[], false, &[]).allows(b"", &Kind::Directory));
        assert!(asked(&["~/a"], &[], true, &[]).allows(b"home", &Kind::Directory));
    }

    #[test]
    fn without_recursion_nothing_lies_below() {
        let path = |path: &str| vec![NamedPath::here(Path::new(path))];
        let options = Options { recursive: false, ..Options::default() };
        for (source, name, expected) in
            [("d", "d", true), ("d", "d/x", false), ("d/", "x", true), ("d/", "x/y", false)]
        {
            assert_eq!(Asked::of(&path(source), &options).allows(name.as_bytes(), &FILE), expected, "{name}");
        }
    }

    #[test]
    fn what_rules_hide_may_not_come() {
        for (source, rules, path, expected) in [
            ("d/", &["- secret"][..], "secret", (false, false, false)),
            ("d/", &["- secret"], "x/secret", (false, false, false)),
            ("d/", &["- secret/"], "secret", (true, false, false)),
            ("d/", &["- secret/"], "secret/x/y", (false, false, false)),
            ("d/", &["- /x/y"], "x/y/z", (false, false, false)),
            ("d/", &["+ secret/x", "- secret"], "secret/x", (false, false, false)),
            ("d/", &["+ */", "+ *.img", "- *"], "a/b.img", (true, true, true)),
            ("d/", &["+ */", "+ *.img", "- *"], "a/b", (false, true, true)),
            // They begin with what was named.
            ("d/secret", &["- /secret"], "secret/x", (false, false, false)),
            ("d/secret", &["- d"], "secret/x", (true, true, true)),
            ("*", &["- secret"], "secret", (false, false, false)),
            ("*.img", &["- b.img"], "a.img", (true, true, true)),
            ("*.img", &["- b.img"], "b.img", (false, false, false)),
            // Those of the receiver say nothing of what is sent.
            ("d/", &["P secret", "-r secret"], "secret", (true, true, true)),
            ("d/", &["H secret"], "secret", (false, false, false)),
            // What is not known here may include it.
            ("d/", &[": .f", "- secret"], "secret", (true, true, true)),
            ("d/", &["- secret", ": .f"], "secret", (false, false, false)),
            ("d/", &[":+ .f", "- secret"], "secret", (true, true, true)),
            ("d/", &[":n- .f", "- secret"], "secret", (false, false, false)),
            ("d/", &[":C", "- secret"], "secret", (false, false, false)),
            ("d/", &["+/ /home/secret", "- secret"], "secret", (true, true, true)),
            ("d/", &["-/ /home/x", "- secret"], "secret", (false, false, false)),
            ("d/", &["-/ /secret"], "secret", (true, true, true)),
        ] {
            let mut asked = asked(&[source], &[], false, rules);
            assert_eq!(found(&mut asked, path), expected, "{source} {rules:?} {path}");
            assert_eq!(found(&mut asked, path), expected, "again: {source} {rules:?} {path}");
        }
    }

    #[test]
    fn rules_hold_from_a_source_on_and_not_on_the_way_to_it() {
        let mut asked = asked(&["src"], &["a/b/c", "a/./secret"], true, &["- b", "- secret"]);
        for (path, expected) in [
            ("a/b", (false, true, false)),
            ("a/b/c", (true, true, true)),
            ("a/b/c/d", (true, true, true)),
            ("a/b/c/b", (false, false, false)),
            ("secret", (false, false, false)),
        ] {
            assert_eq!(found(&mut asked, path), expected, "{path}");
        }
    }

    #[test]
    fn attributes_that_rules_leave_out_may_not_come() {
        let asked = asked(&["d/"], &[], false, &["-x user.secret", "- user.y"]);
        let having = |name: &str| {
            let xattrs = Some(vec![(b"user.x".to_vec(), vec![]), (name.as_bytes().to_vec(), vec![])]);
            asked.allows_attributes(&Metadata { xattrs, ..Metadata::default() })
        };
        assert!(having("user.y") && !having("user.secret"));
        assert!(asked.allows_attributes(&Metadata::default()));
    }
}
