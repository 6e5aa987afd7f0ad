//! Lines about entries in the format of rsync: `--out-format` of rsync(1), whose escapes are
//! those of `log format` in rsyncd.conf(5), and the list of changes behind `-i`.

use std::fmt::Write;
use std::path::Path;

use crate::error::{Error, Result, escape};
use crate::report::{Changes, Item, ItemKind, Outcome, Remarks};
use crate::sys;

/// What `-i` alone stands for.
pub const ITEMIZED: &str = "%i %n%L";
/// What `-v` alone stands for.
pub const NAMES: &str = "%n%L";

/// What lines have to know of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunFacts {
    /// The destination is on another machine.
    pub pushes: bool,
    /// The source is.
    pub pulls: bool,
    /// Modification times are set.
    pub times: bool,
    /// Contents are compared where size and time agree.
    pub checksum: bool,
}

/// How a line about an entry looks, and which entries have one.
#[derive(Debug, Clone)]
pub struct LineFormat {
    parts: Vec<Part>,
    facts: RunFacts,
    /// Entries that are as they were have lines, too.
    unchanged: bool,
    remarks: Remarks,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Escape(Escape),
}

/// `%`, how its value is laid out, and a letter that says what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Escape {
    letter: char,
    /// The fewest characters.
    width: usize,
    left: bool,
    /// How many apostrophes: 1 groups digits, 2 and 3 use units of 1000 and 1024.
    units: usize,
}

/// An entry, and what became of it.
struct Told<'a> {
    item: Item<'a>,
    changes: Changes,
    outcome: Outcome,
}

impl LineFormat {
    /// Reads a format. `unchanged`: entries that are as they were have lines, too.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for what there is not, or makes no sense here.
    pub fn new(text: &str, facts: RunFacts, unchanged: bool) -> Result<LineFormat> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('%') {
            parts.push(Part::Text(before.into()));
            let (part, behind) = read_escape(behind)?;
            parts.push(part);
            rest = behind;
        }
        parts.push(Part::Text(rest.into()));
        Ok(LineFormat { parts, facts, unchanged, remarks: Remarks::default() })
    }

    /// The same with remarks.
    #[must_use]
    pub fn with_remarks(self, remarks: Remarks) -> LineFormat {
        LineFormat { remarks, ..self }
    }

    /// The same for another destination: one of several.
    #[must_use]
    pub fn to(mut self, destination: &Path) -> LineFormat {
        if let Some(named) = &mut self.remarks.destination {
            *named = destination.components().collect();
        }
        self
    }

    /// Whether the source is on another machine.
    pub(super) fn pulls(&self) -> bool {
        self.facts.pulls
    }

    fn has(&self, letters: &[char]) -> bool {
        let is_one = |part: &Part| matches!(part, Part::Escape(escape) if letters.contains(&escape.letter));
        self.parts.iter().any(is_one)
    }

    /// The lines about a file.
    pub fn file(&self, item: Item, outcome: Outcome, changes: Changes) -> Vec<String> {
        self.lines(&Told { item, changes, outcome })
    }

    /// The lines about a directory or symlink.
    pub fn made(&self, item: Item, changes: Changes) -> Vec<String> {
        self.lines(&Told { item, changes, outcome: Outcome::Unchanged })
    }

    fn lines(&self, told: &Told) -> Vec<String> {
        let Told { item, changes, outcome } = told;
        if changes.has(Changes::LEFT) {
            return self.remarks.skipped(item, *changes).into_iter().collect();
        }
        let created = self.remarks.created(item, *changes);
        let backed_up = self.remarks.backed_up(item, *outcome, *changes);
        [created, self.line(told), backed_up].into_iter().flatten().collect()
    }

    fn line(&self, told: &Told) -> Option<String> {
        let is_directory = told.item.kind == ItemKind::Directory;
        let is_changed = told.is_transferred() || !told.changes.is_empty();
        if self.has(&['i']) {
            return (is_changed || self.unchanged).then(|| self.render(|letter| self.value(letter, told)));
        }
        if told.is_transferred() || told.is_made() || is_directory && is_changed {
            return Some(self.render(|letter| self.value(letter, told)));
        }
        let name = (self.unchanged && !is_directory).then(|| escape(told.item.path))?;
        Some(if is_changed { name } else { format!("{name} is uptodate") })
    }

    /// The lines about something that was removed; a directory has a slash behind its path.
    pub fn removed(&self, path: &[u8]) -> Vec<String> {
        [self.remarks.kept(path), Some(self.removal(path))].into_iter().flatten().collect()
    }

    fn removal(&self, path: &[u8]) -> String {
        let name = escape(path);
        if !self.has(&['i', 'o']) {
            return format!("deleting {name}");
        }
        self.render(|letter| match letter {
            'i' => format!("{:<11}", "*deleting"),
            'o' => "del.".into(),
            'n' => name.clone(),
            'f' => name.trim_end_matches('/').into(),
            'b' | 'l' => "0".into(),
            'p' | 't' => of_the_run(letter),
            _ => String::new(),
        })
    }

    fn render(&self, value: impl Fn(char) -> String) -> String {
        let mut line = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Escape(escape) => escape.lay_out(&value(escape.letter), &mut line),
            }
        }
        line
    }

    fn value(&self, letter: char, told: &Told) -> String {
        let Told { item, outcome, .. } = told;
        match letter {
            'i' => self.list(told),
            'n' => match (item.kind, item.path) {
                (ItemKind::Directory, b"") => "./".into(),
                (ItemKind::Directory, path) => escape(path) + "/",
                (_, path) => escape(path),
            },
            'f' => long_name(item),
            'L' => match item.kind {
                ItemKind::Symlink(link) => format!(" -> {}", escape(link)),
                ItemKind::HardLink(first) if told.is_made() => format!(" => {}", escape(first)),
                _ => String::new(),
            },
            'l' => match item.kind {
                ItemKind::File { length } => length.unwrap_or(0).to_string(),
                ItemKind::Symlink(link) => link.len().to_string(),
                _ => "0".into(),
            },
            'b' => if let Outcome::Sent(bytes) = outcome { *bytes } else { 0 }.to_string(),
            'o' => if self.facts.pulls { "recv" } else { "send" }.into(),
            'M' => item.mtime.map_or(String::new(), |(seconds, _)| time(seconds, '-')),
            'B' => item.mode.map_or(String::new(), permissions),
            'U' => item.owner.map_or("DEFAULT".into(), |(uid, _)| uid.to_string()),
            'G' => item.owner.map_or("DEFAULT".into(), |(_, gid)| gid.to_string()),
            other => of_the_run(other),
        }
    }

    /// The list of changes, of eleven characters: what is done, to what, and a letter for
    /// whatever differed.
    fn list(&self, told: &Told) -> String {
        let Told { item, changes, .. } = *told;
        let done = match (told.is_transferred(), told.is_made()) {
            (true, _) => {
                if self.facts.pushes {
                    '<'
                } else {
                    '>'
                }
            }
            (_, true) => 'c',
            _ => '.',
        };
        let kind = match item.kind {
            ItemKind::File { .. } => 'f',
            ItemKind::Directory => 'd',
            ItemKind::Symlink(_) => 'L',
            ItemKind::Device { .. } => 'D',
            ItemKind::Special { .. } => 'S',
            ItemKind::HardLink(_) => 'f',
        };
        let done = if matches!(item.kind, ItemKind::HardLink(_)) { 'h' } else { done };
        let mut list = String::from_iter([done, kind]);
        if changes.has(Changes::NEW) {
            list.push_str("+++++++++");
            return list;
        }
        let content = match item.kind {
            ItemKind::File { .. } => self.facts.checksum && told.outcome != Outcome::Unchanged,
            ItemKind::Directory | ItemKind::HardLink(_) => false,
            _ => changes.has(Changes::VALUE),
        };
        // It gets the time at which it is written.
        let is_stamped = !self.facts.times && matches!(done, '<' | '>' | 'c');
        let rest = [
            (content, 'c'),
            (changes.has(Changes::SIZE), 's'),
            (is_stamped || changes.has(Changes::TIME), if is_stamped { 'T' } else { 't' }),
            (changes.has(Changes::MODE), 'p'),
            (changes.has(Changes::OWNER), 'o'),
            (changes.has(Changes::GROUP), 'g'),
            (changes.has(Changes::ACCESS_TIME), 'u'),
            (changes.has(Changes::ACL), 'a'),
            (changes.has(Changes::XATTRS), 'x'),
        ];
        let nothing =
            if matches!(done, '.' | 'h') && rest.iter().all(|(is_so, _)| !is_so) { ' ' } else { '.' };
        list.extend(rest.map(|(is_so, letter)| if is_so { letter } else { nothing }));
        list
    }
}

impl Told<'_> {
    /// Whether content of a file travelled, or would have where it differed.
    fn is_transferred(&self) -> bool {
        self.changes.has(Changes::TRANSFER) || self.outcome != Outcome::Unchanged
    }

    /// Whether it was made anew.
    fn is_made(&self) -> bool {
        self.changes.has(Changes::NEW.with(Changes::VALUE, true))
    }
}

impl Escape {
    fn lay_out(&self, value: &str, line: &mut String) {
        let number = value.parse().ok().filter(|_| self.units > 0);
        let value = match (number, self.units) {
            (Some(number), 1) => grouped(number),
            (Some(number), 2) => in_units(number, 1000),
            (Some(number), _) => in_units(number, 1024),
            (None, _) => value.into(),
        };
        let width = self.width;
        // Writing to a string does not fail.
        let _ = if self.left { write!(line, "{value:<width$}") } else { write!(line, "{value:>width$}") };
    }
}

/// Reads what stands behind a `%`, and returns it with the rest.
fn read_escape(text: &str) -> Result<(Part, &str)> {
    const LONGEST: usize = 4;
    let rest = text.trim_start_matches('\'');
    let mut units = text.len() - rest.len();
    let left = rest.starts_with('-');
    let digits = rest.strip_prefix('-').unwrap_or(rest);
    let rest = digits.trim_start_matches(|c: char| c.is_ascii_digit());
    let width = &digits[..digits.len() - rest.len()];
    units += rest.len() - rest.trim_start_matches('\'').len();
    let mut letters = rest.trim_start_matches('\'').chars();
    let letter = letters.next();
    let usage = |what: String| Err(Error::Usage(what));
    if width.len() > LONGEST {
        return usage(format!("a format has a width of {width}: at most {LONGEST} digits"));
    }
    let no_daemon = "there is no daemon that it could tell of; leave it out";
    let no_sum = "blocks are compared by BLAKE3, and no checksum of a whole file is at hand; leave it out";
    match letter {
        Some('%') => Ok((Part::Text("%".into()), letters.as_str())),
        Some(letter) if "inLflobMBUGpt".contains(letter) => {
            let escape = Escape { letter, width: width.parse().unwrap_or(0), left, units };
            Ok((Part::Escape(escape), letters.as_str()))
        }
        Some(letter @ ('a' | 'h' | 'm' | 'P' | 'u')) => {
            usage(format!("%{letter} in a format is not supported: {no_daemon}"))
        }
        Some(letter @ ('c' | 'C')) => usage(format!("%{letter} in a format is not supported: {no_sum}")),
        Some(letter) => usage(format!("there is no %{letter} in a format; a % itself is %%")),
        None => usage("a format ends in %; a % itself is %%".into()),
    }
}

/// What is the same for every entry.
fn of_the_run(letter: char) -> String {
    match letter {
        'p' => std::process::id().to_string(),
        't' => time(sys::now(), ' '),
        _ => String::new(),
    }
}

/// With the path that was read, where that is on this machine; no slash before or behind it.
fn long_name(item: &Item) -> String {
    let name = match (item.source, item.path) {
        (Some(source), _) => {
            use std::os::unix::ffi::OsStrExt;
            escape(source.as_os_str().as_bytes())
        }
        (None, b"") => ".".into(),
        (None, path) => escape(path),
    };
    name.trim_start_matches('/').into()
}

/// A moment in local time, with `between` date and time of day.
pub fn time(seconds: i64, between: char) -> String {
    let Some(time) = sys::local_time(seconds) else { return seconds.to_string() };
    let sys::LocalTime { year, month, day, hour, minute, second } = time;
    format!("{year:04}/{month:02}/{day:02}{between}{hour:02}:{minute:02}:{second:02}")
}

/// Permission bits as ls(1) shows them, without the kind.
pub fn permissions(mode: u32) -> String {
    let special = [(0o4000, 's', 'S'), (0o2000, 's', 'S'), (0o1000, 't', 'T')];
    let mut text = String::new();
    for (class, (bit, with_x, without_x)) in [6, 3, 0].into_iter().zip(special) {
        let bits = mode >> class;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & bit != 0, bits & 1 != 0) {
            (true, true) => with_x,
            (true, false) => without_x,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// A number whose digits are in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number with two decimals in the unit of that size that leaves it below one more.
pub fn in_units(number: u64, unit: u64) -> String {
    let unit = unit as f64;
    let (mut value, mut letter) = (number as f64, None);
    for next in ['K', 'M', 'G', 'T', 'P'] {
        if value < unit {
            break;
        }
        (value, letter) = (value / unit, Some(next));
    }
    letter.map_or(number.to_string(), |letter| format!("{value:.2}{letter}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: RunFacts = RunFacts { pushes: true, pulls: false, times: true, checksum: false };

    fn file(path: &str) -> Item<'_> {
        let kind = ItemKind::File { length: Some(1_234_567) };
        let mode = Some(0o4751);
        Item { mode, owner: Some((7, 8)), ..Item::new(path.as_bytes(), kind) }
    }

    fn all(changes: &[Changes]) -> Changes {
        changes.iter().fold(Changes::default(), |all, &one| all.with(one, true))
    }

    #[test]
    fn changes_are_listed_with_a_letter_each() {
        let lines = LineFormat::new(ITEMIZED, FACTS, false).unwrap();
        let (sent, equal) = (Outcome::Sent(5), Outcome::Unchanged);
        let most = all(&[Changes::SIZE, Changes::TIME, Changes::MODE, Changes::OWNER, Changes::GROUP]);
        for (outcome, changes, want) in [
            (sent, Changes::NEW, Some("<f+++++++++ a")),
            (sent, most, Some("<f.stpog... a")),
            (equal, Changes::TRANSFER, Some("<f......... a")),
            (equal, Changes::MODE, Some(".f...p..... a")),
            (equal, Changes::default(), None),
            (equal, Changes::LEFT, None),
        ] {
            assert_eq!(lines.file(file("a"), outcome, changes), Vec::from_iter(want));
        }
        let facts = RunFacts { pushes: false, times: false, checksum: true, ..FACTS };
        let lines = LineFormat::new(ITEMIZED, facts, true).unwrap();
        assert_eq!(lines.file(file("a"), sent, Changes::SIZE), [">fcsT...... a"]);
        assert_eq!(lines.file(file("a"), equal, Changes::default()), [".f          a"]);
        let name = Item::new(b"b", ItemKind::HardLink(b"a"));
        for (changes, want) in [
            (Changes::NEW, "hf+++++++++ b => a"),
            (Changes::VALUE, "hf          b => a"),
            (Changes::default(), "hf          b"),
        ] {
            assert_eq!(lines.made(name, changes), [want]);
        }
        let device = Item::new(b"d", ItemKind::Device { is_block: false });
        let changes = all(&[Changes::VALUE, Changes::ACL, Changes::XATTRS]);
        assert_eq!(lines.made(device, changes), ["cDc.T....ax d"]);
        let link = Item::new(b"l", ItemKind::Symlink(b"to\n"));
        assert_eq!(lines.made(link, Changes::VALUE), ["cLc.T...... l -> to\\#012"]);
        let root = Item::new(b"", ItemKind::Directory);
        assert_eq!(lines.made(root, Changes::NEW), ["cd+++++++++ ./"]);
        assert_eq!(lines.removed(b"x/"), ["*deleting   x/"]);
    }

    #[test]
    fn values_are_laid_out_as_rsync_lays_them_out() {
        for (format, want) in [
            ("%l|%10l|%-10l|%'l|%''l|%'''l", "1234567|   1234567|1234567   |1,234,567|1.23M|1.18M"),
            ("%n %f %o %b %%", "d/a d/a send 5 %"),
            ("%B %U %G", "rwsr-x--x 7 8"),
            ("%-5nX%5oX", "d/a  X sendX"),
            ("", ""),
        ] {
            let lines = LineFormat::new(format, FACTS, false).unwrap();
            let line = lines.file(file("d/a"), Outcome::Sent(5), Changes::NEW);
            assert_eq!(line, [want], "{format}");
        }
        for wrong in ["%", "a%q", "%C", "%h", "%123456n", "%-"] {
            assert_eq!(LineFormat::new(wrong, FACTS, false).unwrap_err().exit_code(), 1, "{wrong}");
        }
    }

    #[test]
    fn without_a_list_of_changes_only_what_was_made_or_sent_has_a_line() {
        let (directory, link) =
            (Item::new(b"d", ItemKind::Directory), Item::new(b"l", ItemKind::Symlink(b"a")));
        let lines = LineFormat::new(NAMES, FACTS, false).unwrap();
        assert_eq!(lines.file(file("a"), Outcome::Sent(0), Changes::NEW), ["a"]);
        assert_eq!(lines.file(file("a"), Outcome::Unchanged, Changes::MODE), [""; 0]);
        assert_eq!(lines.made(directory, Changes::TIME), ["d/"]);
        assert_eq!(lines.made(link, Changes::NEW), ["l -> a"]);
        assert_eq!(lines.made(link, Changes::TIME), [""; 0]);
        assert_eq!(lines.removed(b"x/"), ["deleting x/"]);
        // Of what is as it was, too.
        let lines = LineFormat::new(NAMES, FACTS, true).unwrap();
        assert_eq!(lines.file(file("a"), Outcome::Unchanged, Changes::MODE), ["a"]);
        assert_eq!(lines.file(file("a"), Outcome::Unchanged, Changes::default()), ["a is uptodate"]);
        assert_eq!(lines.made(link, Changes::default()), ["l is uptodate"]);
        assert_eq!(lines.made(directory, Changes::default()), [""; 0]);
    }
}
