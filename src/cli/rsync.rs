//! What becomes of the options of rsync (3.5, its `--help` and rsync(1)) that clap does not
//! know, before clap sees the command line: there is nothing to do, or a sentence says what
//! to use instead. An option that clap knows is taken, and has no row here.
//! `docs/rsync.md` shows all of them.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::error::ErrorKind;
use clap::{Command, Error};

/// What becomes of an option.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Becomes {
    /// Nothing has to be done: what it asks for is so anyway.
    Nothing,
    /// Another way to write this.
    Same(&'static str),
    /// Refused, with what to do in its place.
    Refused(&'static str),
    /// Refused with any other value than these.
    Unless(&'static [&'static str], &'static str),
}

use Becomes::{Nothing, Refused, Same, Unless};

/// Names of an option, `=` behind them if it takes a value, and what becomes of it.
#[rustfmt::skip]
const ROWS: &[(&str, Becomes)] = &[
    ("--8-bit-output -8", Refused("control characters in names are always escaped; leave it out")),
    ("--address=", Refused("name the address to ssh: -e 'ssh -b ADDRESS'")),
    ("--blocking-io", Nothing),
    ("--checksum-choice= --cc=", Unless(&["blake3", "auto"], "contents are compared by BLAKE3; name that, or leave it out")),
    ("--checksum-seed=", Nothing),
    ("--compress-choice= --zc=", Same("--compress")),
    ("--compress-threads= --zt=", Refused("threads follow the connection; leave it out, or see --threads")),
    ("--confine-root=", Refused("bind the key to holesync agent --root DIR")),
    ("--copy-as=", Refused("log in as that user: USER@HOST:PATH")),
    ("--copy-devices", Refused("a device that is named as SRC is sent as what it holds; leave it out")),
    ("--crtimes -N", Refused("Linux sets no birth times; leave it out")),
    ("--daemon", Refused("there is no daemon: ssh starts holesync agent")),
    ("--drop-D", Refused("devices and special files are never made below it; leave it out")),
    ("--early-input=", Refused("there is no daemon to read it; leave it out")),
    ("--fake-super", Refused("owners are kept where the other end is root: --remote-path='sudo holesync'")),
    ("--fsync", Nothing),
    ("--iconv=", Refused("names are kept byte for byte; leave it out, and rename with convmv")),
    ("--inc-recursive --i-r", Nothing),
    ("--insecure-links", Refused("what you name is followed anyway, what is found below never; leave it out")),
    ("--max-alloc=", Nothing),
    ("--munge-links", Refused("symlinks are never followed below DEST; leave it out")),
    ("--no-compress --no-z", Same("--compress=none")),
    ("--no-timeout", Same("--timeout=0")),
    ("--only-write-batch=", Refused("write a stream with holesync send, and read it with holesync recv")),
    ("--outbuf=", Nothing),
    ("--partial", Nothing),
    ("--password-file=", Refused("there is no daemon: ssh asks for passwords, or has a key")),
    ("--port=", Refused("write ssh://HOST:PORT/PATH, or -e 'ssh -p PORT'")),
    ("--protocol=", Nothing),
    ("--read-batch=", Refused("write a stream with holesync send, and read it with holesync recv")),
    ("--remote-option= -M=", Refused("an agent gets all options; leave it out, or see --remote-path")),
    ("--secluded-args --protect-args -s", Nothing),
    ("--skip-compress=", Nothing),
    ("--sockopts=", Refused("ssh has the connection; leave it out, or see ssh_config(5)")),
    ("--stderr=", Refused("errors and warnings go to stderr, all else to stdout; leave it out")),
    ("--msgs2stderr", Refused("errors and warnings go to stderr, all else to stdout; leave it out")),
    ("--trust-sender", Nothing),
    ("--write-batch=", Refused("write a stream with holesync send, and read it with holesync recv")),
    ("--write-devices", Refused("a device that is named as DEST is written as it is; leave it out")),
];

/// What `--no-` may stand before in rsync: it undoes what came before it.
const NEGATABLE: &str = "8 8-bit-output A D H J N O R S U W X acls append atimes backup blocking-io bwlimit c \
    checksum compress contimeout crtimes d drop-D delay-updates devices dirs force from0 fuzzy g group h hard-links \
    human-readable i i-d i-r iconv ignore-errors implied-dirs inc-recursive inplace insecure-links \
    itemize-changes l links m mkpath motd msgs2stderr munge-links numeric-ids o old-args omit-dir-times \
    omit-link-times one-file-system open-noatime owner p partial perms progress protect-args prune-empty-dirs r \
    recursive relative s secluded-args sparse specials super t timeout times v verbose whole-file \
    write-devices x xattrs y z";

/// What `-a` turns on again, whatever came before it.
const ARCHIVE: &[&str] = &[
    "no-recursive",
    "no-links",
    "no-perms",
    "no-times",
    "no-group",
    "no-owner",
    "no-D",
    "no-devices",
    "no-specials",
];

/// What `-D` stands for.
const NODES: &[&str] = &["devices", "specials"];

/// An option as clap has it.
#[derive(Clone)]
struct Known {
    /// What it is called here: its first long name, else its letter.
    name: String,
    value: Value,
}

#[derive(Clone, Copy, PartialEq)]
enum Value {
    No,
    /// Only behind `=`.
    Optional,
    Yes,
}

/// Rewrites a command line in which options of rsync stand into one for clap: letters by
/// themselves, without what there is nothing to do for, and what is undone later left out.
///
/// # Errors
///
/// Those of clap, with a sentence of its own for each option that is refused.
pub fn rewrite(arguments: Vec<OsString>, mut command: Command) -> Result<Vec<OsString>, Error> {
    command.build();
    let is_verb = |word: &OsString| command.get_subcommands().any(|verb| verb.get_name() == word);
    if arguments.get(1).is_some_and(is_verb) {
        return Ok(arguments);
    }
    let mut words = Words { known: known(&command), rest: arguments.into_iter(), out: Vec::new() };
    words.out.extend(words.rest.next().map(|program| (String::new(), program)));
    while let Some(word) = words.rest.next() {
        match word.as_bytes() {
            b"--" => {
                words.out.push((String::new(), word));
                let operands = words.rest.by_ref().map(|operand| (String::new(), operand));
                words.out.extend(operands);
            }
            [b'-', b'-', name @ ..] => words.long(&word, name)?,
            [b'-', letters @ ..] if !letters.is_empty() => words.cluster(&word, letters)?,
            _ => words.out.push((String::new(), word)),
        }
    }
    Ok(words.out.into_iter().map(|(_, word)| word).collect())
}

/// Every name that clap knows, without its hyphens.
fn known(command: &Command) -> HashMap<String, Known> {
    let mut names = HashMap::new();
    for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
        let letter = arg.get_short().map(String::from);
        let name = arg.get_long().map(String::from).or_else(|| letter.clone()).unwrap_or_default();
        let value = match (arg.get_action().takes_values(), arg.is_require_equals_set()) {
            (false, _) => Value::No,
            (true, true) => Value::Optional,
            (true, false) => Value::Yes,
        };
        let aliases = arg.get_all_aliases().unwrap_or_default().into_iter().map(String::from);
        for other in aliases.chain(letter).chain([name.clone()]) {
            names.insert(other, Known { name: name.clone(), value });
        }
    }
    names
}

/// What the table has for a name without its hyphens, and whether it takes a value.
fn row(name: &str) -> Option<(Becomes, bool)> {
    ROWS.iter().find_map(|(names, becomes)| {
        let mut names = names.split(' ').map(|other| other.trim_start_matches('-'));
        let found = names.find(|other| other.strip_suffix('=').unwrap_or(other) == name)?;
        Some((*becomes, found.ends_with('=')))
    })
}

/// A command line that is being rewritten.
struct Words {
    known: HashMap<String, Known>,
    rest: std::vec::IntoIter<OsString>,
    /// Each word with the name of its option; operands have none.
    out: Vec<(String, OsString)>,
}

impl Words {
    /// `--name` or `--name=value`.
    fn long(&mut self, word: &OsStr, text: &[u8]) -> Result<(), Error> {
        let equals = text.iter().position(|&b| b == b'=').unwrap_or(text.len());
        let name = String::from_utf8_lossy(&text[..equals]).into_owned();
        let value = text.get(equals + 1..).map(<[u8]>::to_vec);
        if let Some(known) = self.known.get(&name).cloned() {
            return self.taken(&name, &known, value, word);
        }
        if let Some((becomes, wants)) = row(&name) {
            return self.other(&format!("--{name}"), becomes, wants, value);
        }
        match name.strip_prefix("no-") {
            Some(undone) if NEGATABLE.split_whitespace().any(|other| other == undone) => {
                let undone = self.known.get(undone).map_or(undone.into(), |known| known.name.clone());
                self.out.retain(|(name, _)| *name != undone);
            }
            // Clap knows a way to say it.
            _ => self.out.push((String::new(), word.into())),
        }
        Ok(())
    }

    /// `-abc`, of which the last may have a value behind it.
    fn cluster(&mut self, word: &OsStr, letters: &[u8]) -> Result<(), Error> {
        for (at, &letter) in letters.iter().enumerate() {
            let rest = &letters[at + 1..];
            let value = (!rest.is_empty()).then(|| rest.strip_prefix(b"=").unwrap_or(rest).to_vec());
            let name = char::from(letter).to_string();
            match (self.known.get(&name).cloned(), row(&name)) {
                (Some(known), _) => {
                    let takes =
                        known.value == Value::Yes || known.value == Value::Optional && rest.starts_with(b"=");
                    let value = if takes { value } else { None };
                    self.taken(&name, &known, value, OsStr::new(&format!("-{name}")))?;
                    if takes {
                        return Ok(());
                    }
                }
                (None, Some((becomes, wants))) => {
                    self.other(&format!("-{name}"), becomes, wants, if wants { value } else { None })?;
                    if wants {
                        return Ok(());
                    }
                }
                (None, None) => {
                    let shown = word.to_string_lossy();
                    let letter = letter.escape_ascii();
                    let what = format!("{shown}: there is no option -{letter}; see holesync --help");
                    return Err(refusal(what));
                }
            }
        }
        Ok(())
    }

    /// An option that clap takes. What it undoes goes.
    fn taken(
        &mut self,
        name: &str,
        known: &Known,
        value: Option<Vec<u8>>,
        word: &OsStr,
    ) -> Result<(), Error> {
        let value = match known.value {
            Value::Yes => value.or_else(|| self.rest.next().map(OsString::into_vec)),
            Value::Optional | Value::No => value,
        };
        if known.name == "archive" {
            self.out.retain(|(name, _)| !ARCHIVE.contains(&name.as_str()));
        }
        if let Some(undone) = known.name.strip_prefix("no-") {
            self.out.retain(|(name, _)| name != undone && !(undone == "D" && NODES.contains(&name.as_str())));
        }
        self.undo(&known.name);
        if known.name == "D" {
            NODES.iter().for_each(|option| self.undo(option));
        }
        let word = match value {
            Some(value) if name.len() > 1 || known.name.len() > 1 => {
                let value = OsString::from_vec(value);
                let mut joined = OsString::from(format!("--{}=", known.name));
                joined.push(value);
                joined
            }
            _ => word.into(),
        };
        self.out.push((known.name.clone(), word));
        Ok(())
    }

    /// An option that stands in the table.
    fn other(
        &mut self,
        shown: &str,
        becomes: Becomes,
        wants: bool,
        value: Option<Vec<u8>>,
    ) -> Result<(), Error> {
        let value = if wants { value.or_else(|| self.rest.next().map(OsString::into_vec)) } else { value };
        match (becomes, value) {
            (Nothing | Same(_) | Unless(..), None) if wants => Err(refusal(format!("{shown} needs a value"))),
            (Nothing | Same(_), Some(_)) if !wants => Err(refusal(format!("{shown} takes no value"))),
            (Nothing, _) => {
                let name = shown.trim_start_matches('-');
                self.undo(name);
                if let Some(undone) = name.strip_prefix("no-") {
                    let undone = self.known.get(undone).map_or(undone.into(), |known| known.name.clone());
                    self.out.retain(|(name, _)| *name != undone);
                }
                Ok(())
            }
            (Same(other), value) => {
                let mut text = other.trim_start_matches('-').as_bytes().to_vec();
                if let Some(value) = value {
                    text.push(b'=');
                    text.extend(value);
                }
                let word = OsString::from_vec([b"--", text.as_slice()].concat());
                self.long(&word, &text)
            }
            (Unless(values, _), Some(value)) if values.iter().any(|&known| known.as_bytes() == value) => {
                Ok(())
            }
            (Refused(instead) | Unless(_, instead), _) => {
                Err(refusal(format!("{shown} is not supported: {instead}")))
            }
        }
    }

    /// Takes back an earlier `--no-` of this option.
    fn undo(&mut self, option: &str) {
        let no = format!("no-{option}");
        self.out.retain(|(name, _)| *name != no);
    }
}

fn refusal(sentence: String) -> Error {
    Error::raw(ErrorKind::UnknownArgument, sentence + "\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn rewritten(args: &str) -> Result<String, String> {
        let words = ["holesync"].into_iter().chain(args.split(' ')).map(OsString::from).collect();
        let words = rewrite(words, Cli::command()).map_err(|error| error.to_string())?;
        let words: Vec<_> = words[1..].iter().map(|word| word.to_str().unwrap()).collect();
        Ok(words.join(" "))
    }

    fn names(cell: &str) -> Vec<String> {
        cell.split('`').skip(1).step_by(2).map(|name| name.trim_start_matches('-').to_string()).collect()
    }

    #[test]
    fn letters_and_what_there_is_nothing_to_do_for() {
        for (given, want) in [
            ("-avzhP a b", "-a -v -z -h -P a b"),
            ("-aSv --partial -s --no-i-r a b", "-a -S -v a b"),
            ("-ave ssh\t-4 a b", "-a -v --rsh=ssh\t-4 a b"),
            (
                "-vessh -B4K -@-1 -@ -2 a",
                "-v --rsh=ssh --block-size=4K --modify-window=-1 --modify-window=-2 a",
            ),
            ("-z=none a b", "--compress=none a b"),
            ("--zc=none --zc zstd a b", "--compress=none --compress=zstd a b"),
            ("--skip-compress gz/zip --max-alloc=1G a b", "a b"),
            ("-Wcv --no-W --no-checksum a b", "-v a b"),
            ("-Wv --no-whole-file a -W b", "-v a -W b"),
            ("--no-fsync --fsync a b", "a b"),
            ("--no-o --no-perms -a a b", "-a a b"),
            ("-a --no-o --no-D a b", "-a --no-o --no-D a b"),
            ("--devices --no-D --no-devices -aD --no-specials a b", "-a -D --no-specials a b"),
            ("--no-z a -- -S --exclude=x", "--compress=none a -- -S --exclude=x"),
            ("map --exclude x", "map --exclude x"),
            ("--nonsense -", "--nonsense -"),
        ] {
            assert_eq!(rewritten(given).as_deref(), Ok(want), "{given}");
        }
    }

    #[test]
    fn what_is_refused_is_told_what_to_use() {
        for (given, parts) in [
            ("-avN a b", &["-N is not supported: Linux"][..]),
            ("--crtimes a b", &["--crtimes is not supported: ", "leave it out"]),
            ("--port=5 a b", &["--port is not supported: ", "ssh://HOST:PORT"]),
            ("-avQ a b", &["-avQ", "no option -Q"]),
            ("-\u{e9} a b", &["no option -\\xc3"]),
            ("--partial=yes a b", &["--partial takes no value"]),
            ("a b --outbuf", &["--outbuf needs a value"]),
        ] {
            let error = rewritten(given).expect_err(given);
            assert!(parts.iter().all(|part| error.contains(part)), "{given}: {error}");
        }
    }

    #[test]
    fn clap_knows_nothing_that_has_a_row_and_no_name_has_two() {
        let mut command = Cli::command();
        command.build();
        let known = known(&command);
        let mut seen = BTreeSet::new();
        for name in ROWS.iter().flat_map(|(names, _)| names.split(' ')) {
            let name = name.trim_start_matches('-').trim_end_matches('=');
            assert!(!known.contains_key(name), "clap takes {name}: remove its row, and change docs/rsync.md");
            assert!(seen.insert(name), "{name} stands there twice");
        }
    }

    /// Every row of the table in docs/rsync.md says what becomes of its option, and every
    /// row of the table above is there.
    #[test]
    fn the_documentation_tells_what_becomes_of_each_option() {
        let mut command = Cli::command();
        command.build();
        let known = known(&command);
        let mut seen = BTreeSet::new();
        let document = include_str!("../../docs/rsync.md");
        for line in document.lines().filter(|line| line.starts_with("| `-")) {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            for name in names(cells[0]) {
                let want = match (known.contains_key(&name), row(&name)) {
                    (true, _) => "taken".into(),
                    (false, Some((Nothing, _))) => "nothing to do".into(),
                    (false, Some((Same(other), _))) => format!("`{other}`"),
                    (false, Some((Refused(what) | Unless(_, what), _))) => format!("refused | {what}"),
                    (false, None) if name.starts_with("no-") => "nothing to do".into(),
                    (false, None) => panic!("{name} is not known at all"),
                };
                assert_eq!(
                    cells[1..].join(" | ").trim_end_matches([' ', '|']),
                    want,
                    "docs/rsync.md: {line}"
                );
                seen.insert(name);
            }
        }
        for name in ROWS.iter().flat_map(|(names, _)| names.split(' ')) {
            let name = name.trim_start_matches('-').trim_end_matches('=');
            assert!(seen.contains(name), "docs/rsync.md lacks {name}");
        }
    }
}
