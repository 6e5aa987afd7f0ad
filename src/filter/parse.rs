//! Rules as text, in all of rsync's forms, turned into a list. Files are read by whoever
//! calls this: those that the user named anywhere, those of a directory only from there.

use crate::error::escape;
use crate::filter::rule::{
    DirMerge, Item, MAX_DIR_MERGES, MAX_RULES, Modifiers, Prefixes, Rule, Sides, Style,
};

/// Merge files that name each other end here.
const MAX_DEPTH: usize = 8;

/// What CVS ignores, as rsync(1) lists it.
const CVS: &[u8] = b"RCS SCCS CVS CVS.adm RCSLOG cvslog.* tags TAGS .make.state .nse_depinfo *~ #* .#* ,* \
    _$* *$ *.old *.bak *.BAK *.orig *.rej .del-* *.a *.olb *.o *.obj *.so *.exe *.Z *.elc *.ln core .svn/ \
    .git/ .hg/ .bzr/";

/// What a parser reads beside its text.
pub(super) trait Files {
    /// The file that a merge rule names.
    fn merge(&mut self, path: &[u8]) -> Result<Vec<u8>, String>;
    /// What this user has CVS ignore: `$HOME/.cvsignore` and `$CVSIGNORE`.
    fn cvs(&mut self) -> Result<Vec<u8>, String>;
}

/// A list that is being read.
pub(super) struct Parser<'a> {
    pub items: Vec<Item>,
    /// What stood before was cleared, what is inherited included.
    pub cleared: bool,
    /// Lines end with NUL.
    nul_separated: bool,
    files: &'a mut dyn Files,
    depth: usize,
}

impl<'a> Parser<'a> {
    pub fn new(items: Vec<Item>, nul_separated: bool, files: &'a mut dyn Files) -> Parser<'a> {
        Parser { items, cleared: false, nul_separated, files, depth: 0 }
    }

    /// Reads a file of rules.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and with which rule.
    pub fn file(&mut self, text: &[u8], style: Style) -> Result<(), String> {
        if style.words {
            return self.words(text, style);
        }
        let ends_line =
            |byte: &u8| if self.nul_separated { *byte == 0 } else { matches!(byte, b'\n' | b'\r') };
        let lines: Vec<&[u8]> = text.split(ends_line).collect();
        let counts = |line: &&&[u8]| !matches!(line, [] | [b'#' | b';', ..]);
        lines.iter().filter(counts).try_for_each(|line| self.line(line, style))
    }

    /// Reads one rule.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn line(&mut self, line: &[u8], style: Style) -> Result<(), String> {
        self.rule(line, style).map(drop).map_err(|why| format!("{why}: \"{}\"", shown(line)))
    }

    fn words(&mut self, text: &[u8], style: Style) -> Result<(), String> {
        let mut rest = text;
        loop {
            rest = rest.trim_ascii_start();
            if rest.is_empty() {
                return Ok(());
            }
            let line = rest;
            let read = self.rule(line, style).map_err(|why| format!("{why}: \"{}\"", shown(line)))?;
            rest = &rest[read..];
        }
    }

    /// Reads the rule that a text begins with; how long it is.
    fn rule(&mut self, text: &[u8], style: Style) -> Result<usize, String> {
        let Head { verb, modifiers, file, length, .. } = head(text, style)?;
        let rest = &text[length..];
        let end = if style.words { rest.iter().position(u8::is_ascii_whitespace) } else { None };
        let argument = &rest[..end.unwrap_or(rest.len())];
        self.apply(verb, argument, modifiers, file)?;
        Ok(length + argument.len())
    }

    fn apply(
        &mut self,
        verb: Verb,
        argument: &[u8],
        modifiers: Modifiers,
        file: FileRule,
    ) -> Result<(), String> {
        match verb {
            Verb::Clear if argument.is_empty() => {
                self.items.clear();
                self.cleared = true;
                Ok(())
            }
            Verb::Clear => Err("a ! with something behind it".into()),
            Verb::Cvs if argument.is_empty() => self.cvs(modifiers),
            Verb::Cvs => Err("a -C with something behind it".into()),
            Verb::Include | Verb::Exclude => {
                let rule = Rule::new(argument, verb == Verb::Include, modifiers)?;
                self.push(Item::Rule(rule))
            }
            Verb::Merge | Verb::DirMerge => {
                let path = if argument.is_empty() && file.is_cvs { b".cvsignore" } else { argument };
                if path.is_empty() {
                    return Err("a merge rule without a file".into());
                }
                if file.excludes_itself {
                    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
                    self.push(Item::Rule(Rule::new(name, false, Modifiers::default())?))?;
                }
                if verb == Verb::DirMerge {
                    self.dir_merge(path, file.style)
                } else {
                    self.merge(path, file.style)
                }
            }
        }
    }

    fn push(&mut self, item: Item) -> Result<(), String> {
        if self.items.len() >= MAX_RULES {
            return Err(format!("more than {MAX_RULES} rules"));
        }
        self.items.push(item);
        Ok(())
    }

    /// A file that was mentioned already is read at its first place alone.
    pub fn dir_merge(&mut self, path: &[u8], style: Style) -> Result<(), String> {
        let merge = DirMerge::new(path, style)?;
        let others = || {
            self.items.iter().filter_map(|item| match item {
                Item::DirMerge(other) => Some(other),
                Item::Rule(_) => None,
            })
        };
        if others().any(|other| other.name == merge.name) {
            return Ok(());
        }
        if others().count() >= MAX_DIR_MERGES {
            return Err(format!("more than {MAX_DIR_MERGES} merge files in every directory"));
        }
        self.push(Item::DirMerge(merge))
    }

    fn merge(&mut self, path: &[u8], style: Style) -> Result<(), String> {
        if self.depth >= MAX_DEPTH {
            return Err(format!("merge-file include depth limit: more than {MAX_DEPTH} levels"));
        }
        let text = self.files.merge(path)?;
        self.depth += 1;
        let read = self.file(&text, style);
        self.depth -= 1;
        read
    }

    /// What CVS ignores, and what this user has it ignore.
    pub fn cvs(&mut self, modifiers: Modifiers) -> Result<(), String> {
        let style = Style { words: true, ..Style::new(Prefixes::Cvs) };
        let (items, cleared) = (std::mem::take(&mut self.items), self.cleared);
        // A ! there clears what CVS ignores, and nothing else.
        let read = (|| {
            let own = self.files.cvs()?;
            let perishable = Modifiers { perishable: true, ..modifiers };
            self.words(CVS, Style { modifiers: perishable, ..style })?;
            self.words(&own, Style { modifiers, ..style })
        })();
        let ignored = std::mem::replace(&mut self.items, items);
        self.cleared = cleared;
        read?;
        ignored.into_iter().try_for_each(|item| self.push(item))
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Verb {
    Include,
    Exclude,
    Clear,
    Merge,
    DirMerge,
    /// What CVS ignores.
    Cvs,
}

/// What stands before the argument of a rule.
struct Head {
    verb: Verb,
    modifiers: Modifiers,
    /// Of a merge rule.
    file: FileRule,
    /// The prefix said whom it concerns.
    has_side: bool,
    /// Bytes of it.
    length: usize,
}

/// What a merge rule says of its file.
struct FileRule {
    style: Style,
    is_cvs: bool,
    excludes_itself: bool,
}

/// Reads what stands before the argument.
fn head(text: &[u8], style: Style) -> Result<Head, String> {
    let file = FileRule {
        style: Style { modifiers: style.modifiers, ..Style::new(Prefixes::Full) },
        is_cvs: false,
        excludes_itself: false,
    };
    let mut head = Head { verb: Verb::Exclude, modifiers: style.modifiers, file, has_side: false, length: 0 };
    let includes = |includes| if includes { Verb::Include } else { Verb::Exclude };
    let word = || if style.words { text.split(u8::is_ascii_whitespace).next().unwrap_or(text) } else { text };
    (head.verb, head.length) = match (style.prefixes, text) {
        (Prefixes::Full, _) => return full_head(text, style, head),
        (Prefixes::Simple { .. }, [sign @ (b'+' | b'-'), b' ', ..]) => (includes(*sign == b'+'), 2),
        (Prefixes::Simple { .. } | Prefixes::Cvs, _) if word() == b"!" => (Verb::Clear, 1),
        (Prefixes::Simple { includes: include } | Prefixes::None { includes: include }, _) => {
            (includes(include), 0)
        }
        (Prefixes::Cvs, _) => (Verb::Exclude, 0),
    };
    Ok(head)
}

const NAMES: [(&[u8], u8); 9] = [
    (b"clear", b'!'),
    (b"dir-merge", b':'),
    (b"exclude", b'-'),
    (b"hide", b'H'),
    (b"include", b'+'),
    (b"merge", b'.'),
    (b"protect", b'P'),
    (b"risk", b'R'),
    (b"show", b'S'),
];

/// Reads a letter or a name, modifiers, and one space or underscore.
fn full_head(text: &[u8], style: Style, mut head: Head) -> Result<Head, String> {
    let named = NAMES.iter().find_map(|&(name, letter)| {
        let rest = text.strip_prefix(name)?;
        let ends =
            matches!(rest, [] | [b',' | b' ' | b'_', ..]) || style.words && rest[0].is_ascii_whitespace();
        ends.then_some((letter, name.len()))
    });
    let (letter, mut at) = match named {
        Some(named) => named,
        None => (*text.first().ok_or("an empty rule")?, 1),
    };
    let (verb, sides) = match letter {
        b'+' => (Verb::Include, None),
        b'-' => (Verb::Exclude, None),
        b'S' => (Verb::Include, Some(Sides::Sender)),
        b'H' => (Verb::Exclude, Some(Sides::Sender)),
        b'R' => (Verb::Include, Some(Sides::Receiver)),
        b'P' => (Verb::Exclude, Some(Sides::Receiver)),
        b'.' => (Verb::Merge, None),
        b':' => (Verb::DirMerge, None),
        b'!' => (Verb::Clear, None),
        _ => return Err("no filter rule".into()),
    };
    head.verb = verb;
    if let Some(sides) = sides {
        head.set_side(sides, style)?;
        head.has_side = true;
    }
    at += usize::from(text.get(at) == Some(&b',') && verb != Verb::Clear);
    while verb != Verb::Clear
        && let Some(&modifier) = text.get(at)
        && modifier != b' '
        && modifier != b'_'
        && !(style.words && modifier.is_ascii_whitespace())
    {
        head.modify(modifier, style)?;
        at += 1;
    }
    // What is behind it is the argument.
    at += usize::from(matches!(text.get(at), Some(b' ' | b'_')));
    head.length = at;
    Ok(head)
}

impl Head {
    /// A file whose rule says whom it concerns leaves that to none of its own.
    fn set_side(&mut self, side: Sides, style: Style) -> Result<(), String> {
        if self.has_side || style.modifiers.sides != Sides::Unsaid {
            return Err("it is said already whom the rule concerns".into());
        }
        let sides = &mut self.modifiers.sides;
        *sides = if *sides == Sides::Unsaid || *sides == side { side } else { Sides::Both };
        Ok(())
    }

    fn modify(&mut self, modifier: u8, style: Style) -> Result<(), String> {
        let of_file = matches!(self.verb, Verb::Merge | Verb::DirMerge);
        let own = &mut self.file;
        match modifier {
            b'-' | b'+' if of_file && own.style.prefixes == Prefixes::Full => {
                own.style.prefixes = Prefixes::None { includes: modifier == b'+' };
            }
            b'C' if of_file && own.style.prefixes == Prefixes::Full => {
                own.is_cvs = true;
                own.style = Style { prefixes: Prefixes::Cvs, words: true, inherited: false, ..own.style };
            }
            b'C' if self.verb == Verb::Exclude => self.verb = Verb::Cvs,
            b'e' if of_file => own.excludes_itself = true,
            b'n' if of_file => own.style.inherited = false,
            b'w' if of_file => own.style.words = true,
            b'!' if !of_file => self.modifiers.negated = true,
            b'/' => self.modifiers.absolute = true,
            b'p' => self.modifiers.perishable = true,
            b'x' => self.modifiers.of_attributes = true,
            b's' => self.set_side(Sides::Sender, style)?,
            b'r' => self.set_side(Sides::Receiver, style)?,
            other => return Err(format!("'{}' is no modifier here", escape(&[other]))),
        }
        self.file.style.modifiers = self.modifiers;
        Ok(())
    }
}

fn shown(line: &[u8]) -> String {
    escape(&line[..line.len().min(256)])
}
