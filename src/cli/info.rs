//! `--info` and `--debug`: what is told, by name and level, as far as there is such a thing
//! here.

use std::fmt::Write;

use clap::{Args, Command};
use holesync::error::{Error, Result};
use holesync::report::{Progress, Units, Verbosity};

use crate::cli::TransferArgs;

/// What is told, by name.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// What is told, with levels: progress2, name0, stats2, del, skip, backup, all, none; see
    /// --info=help
    #[arg(long, value_name = "FLAGS", value_delimiter = ',', conflicts_with = "json")]
    info: Vec<String>,
    /// What is told of connections and choices, by rsync's flags; see --debug=help
    #[arg(long, value_name = "FLAGS", value_delimiter = ',')]
    debug: Vec<String>,
}

/// What is told of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Telling {
    /// What the reporter shows.
    pub show: Verbosity,
    /// Names of entries that are made or sent; with 2, of all.
    pub names: u8,
    /// What rules leave as it is.
    pub skipped: bool,
    /// Where backups are.
    pub backups: bool,
}

/// What becomes of an item of `--info` with a level above 0.
enum Told {
    /// Something here that has such levels.
    Here(fn(&mut Telling, u8)),
    /// It is always told, and cannot be turned off.
    Always,
    /// There is no such thing to tell of.
    Nothing,
}

use Told::{Always, Here, Nothing};

/// The items of `--info`, what each tells, and what becomes of it here.
const ITEMS: &[(&str, &str, Told)] = &[
    ("backup", "where --backup keeps what was there", Here(|telling, level| telling.backups = level > 0)),
    ("copy", "", Nothing),
    ("del", "names of what is removed", Here(|telling, level| telling.show.removals = level > 0)),
    ("flist", "", Nothing),
    ("misc", "what goes on besides", Here(|telling, level| telling.show.notes = level > 0)),
    ("mount", "", Nothing),
    ("name", "1 names of what is sent, 2 of all", Here(|telling, level| telling.names = level)),
    ("nonreg", "names of special files that are skipped, always", Always),
    ("progress", "1 and 2 the progress of the whole, 0 none", Here(progress)),
    ("remove", "", Nothing),
    ("skip", "what -u and the like leave as it is", Here(|telling, level| telling.skipped = level > 0)),
    ("stats", "1 a line at the end, 2 and 3 a table", Here(stats)),
    ("symsafe", "names of symlinks that --safe-links ignores, always", Always),
];

/// The items of `--debug`. Fuzzy and nstr show what was chosen of several, and each other one
/// what goes on besides.
const DEBUG: &str = "acl backup bind chdir connect cmd del deltasum dup exit filter flist fuzzy genr hash hlink iconv \
    io nstr own proto recv send time";

fn progress(telling: &mut Telling, level: u8) {
    telling.show.progress = if level > 0 { Progress::Shown } else { Progress::Hidden };
}

fn stats(telling: &mut Telling, level: u8) {
    (telling.show.totals, telling.show.stats) = (level == 1, level > 1);
}

impl TransferArgs {
    /// What is told of the run.
    ///
    /// # Errors
    ///
    /// Those of [`InfoArgs::apply`].
    pub(super) fn telling(&self) -> Result<Telling> {
        let has_lines = self.record.shows_lines();
        let names_would_be_sent = self.dry_run && !has_lines;
        let names = self.verbose.max(u8::from(names_would_be_sent));
        let show = Verbosity {
            quiet: self.quiet,
            removals: names > 0 || has_lines,
            notes: names > 1,
            choices: false,
            totals: names > 0,
            progress: if self.progress { Progress::Shown } else { Progress::Bar },
            stats: self.stats,
            units: Units::asked_for(self.human_readable),
        };
        let mut telling = Telling { show, names, skipped: names > 1, backups: names > 1 };
        self.info.apply(&mut telling)?;
        if !self.quiet {
            return Ok(telling);
        }
        let Verbosity { quiet, progress, stats, units, .. } = telling.show;
        let show = Verbosity { quiet, progress, stats, units, ..Verbosity::default() };
        Ok(Telling { show, ..Telling::default() })
    }
}

impl InfoArgs {
    /// Changes what is told as was asked for.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for an item that there is not.
    pub fn apply(&self, telling: &mut Telling) -> Result<()> {
        for item in &self.info {
            let (name, level) = split(item);
            match name.as_str() {
                "none" => all(telling, 0),
                "all" => all(telling, level),
                name => {
                    let found = ITEMS.iter().find(|(known, ..)| *known == name);
                    let (.., told) = found.ok_or_else(|| unknown("info", item))?;
                    apply_item(told, item, level, telling)?;
                }
            }
        }
        for item in &self.debug {
            let (name, level) = split(item);
            let is_known =
                name == "all" || name == "none" || DEBUG.split_whitespace().any(|known| known == name);
            if !is_known {
                return Err(unknown("debug", item));
            }
            telling.show.choices |= level > 0 && ["all", "fuzzy", "nstr"].contains(&name.as_str());
            telling.show.notes |= level > 0 && !["none", "fuzzy", "nstr"].contains(&name.as_str());
        }
        Ok(())
    }
}

fn apply_item(told: &Told, item: &str, level: u8, telling: &mut Telling) -> Result<()> {
    match told {
        Here(set) => set(telling, level),
        Always if level == 0 => {
            let why = "that is a warning, and always shown without -q";
            return Err(Error::Usage(format!("--info={item} is not supported: {why}; leave it out")));
        }
        Always | Nothing => {}
    }
    Ok(())
}

fn all(telling: &mut Telling, level: u8) {
    for (.., told) in ITEMS {
        if let Here(set) = told {
            set(telling, level);
        }
    }
}

/// An item is a name in any case, with a level behind it; without one it is 1.
fn split(item: &str) -> (String, u8) {
    let name = item.trim_end_matches(|c: char| c.is_ascii_digit());
    let level = item[name.len()..].parse().unwrap_or(if name.len() == item.len() { 1 } else { u8::MAX });
    (name.to_ascii_lowercase(), level)
}

fn unknown(option: &str, item: &str) -> Error {
    Error::Usage(format!("there is no --{option} item {item:?}; see --{option}=help"))
}

/// What `--info=help` and `--debug=help` print, if one of them is there.
pub fn help<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<clap::Error> {
    let option = words.find_map(|word| match word.to_ascii_lowercase().as_str() {
        "--info=help" => Some("info"),
        "--debug=help" => Some("debug"),
        _ => None,
    })?;
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = match option {
        "info" => {
            let told = ITEMS.iter().filter(|(_, what, _)| !what.is_empty());
            let lines = told.map(|(name, what, _)| format!("{:<9} {what}\n", name.to_uppercase()));
            let lines = lines.collect::<String>();
            write!(
                text,
                "NAME or NAME1 is level 1, NAME0 silences. Other items of rsync are taken, and tell nothing.\n\n\
                 {lines}ALL       all of these\nNONE      the same as ALL0\n"
            )
        }
        _ => writeln!(
            text,
            "FUZZY shows what --fuzzy begins from, NSTR how data is compared and compressed; every other item of rsync\n\
             is taken, and shows what -vv shows of connections; NONE shows nothing."
        ),
    };
    page(text)
}

/// A text to be shown in the place of a run, as clap shows its help.
pub fn page(text: String) -> Option<clap::Error> {
    Command::new("holesync").override_help(text).try_get_matches_from(["holesync", "--help"]).err()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(info: &[&str], debug: &[&str]) -> Result<Telling> {
        let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        let show = Verbosity { totals: true, removals: true, ..Verbosity::default() };
        let mut telling = Telling { show, names: 1, ..Telling::default() };
        InfoArgs { info: owned(info), debug: owned(debug) }.apply(&mut telling).map(|()| telling)
    }

    #[test]
    fn items_change_what_is_told() {
        let Telling { show, names, .. } =
            told(&["progress2", "NAME0", "stats2", "flist2"], &["none", "io0"]).unwrap();
        assert_eq!((show.progress, names, show.stats, show.totals), (Progress::Shown, 0, true, false));
        assert!(show.removals && !show.notes);
        let none = told(&["none"], &[]).unwrap();
        let show = Verbosity { progress: Progress::Hidden, ..Verbosity::default() };
        assert_eq!(none, Telling { show, ..Telling::default() });
        let all = told(&["all4", "del0", "nonreg"], &[]).unwrap();
        assert!(all.names > 1 && all.show.stats && all.show.notes && !all.show.removals);
        assert!(all.skipped && all.backups);
        let fuzzy = told(&[], &["FUZZY2"]).unwrap().show;
        assert!(fuzzy.choices && !fuzzy.notes && told(&[], &["io"]).unwrap().show.notes);
    }

    #[test]
    fn what_there_is_not_is_an_error_with_a_sentence() {
        for (info, debug, part) in [
            (&["foo"][..], &[][..], "no --info item \"foo\""),
            (&["nonreg0"], &[], "always shown"),
            (&[], &["foo"], "no --debug item"),
        ] {
            let error = told(info, debug).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
