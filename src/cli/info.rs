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
    /// What is told, with levels: progress2, name0, stats2, del, misc, all, none; see --info=help
    #[arg(long, value_name = "FLAGS", value_delimiter = ',', conflicts_with = "json")]
    info: Vec<String>,
    /// Of rsync's flags none is there but NONE; see --debug=help
    #[arg(long, value_name = "FLAGS", value_delimiter = ',')]
    debug: Vec<String>,
}

/// What becomes of an item of `--info` with a level above 0.
enum Told {
    /// Something here that has such levels.
    Here(fn(&mut Verbosity, u8)),
    /// It is always told, and cannot be turned off.
    Always,
    /// It never is, with what to do in its place.
    Never(&'static str),
}

use Told::{Always, Here, Never};

/// The items of `--info`, what each tells, and what becomes of it here.
const ITEMS: &[(&str, &str, Told)] = &[
    ("backup", "", Never("what was there before is named by --backup's suffix or directory")),
    ("copy", "", Never("files are not copied from elsewhere at the destination")),
    ("del", "names of what is removed", Here(|show, level| show.removals = level > 0)),
    ("flist", "", Never("entries are found while others are transferred, and not counted before")),
    ("misc", "what goes on besides", Here(|show, level| show.notes = level > 0)),
    ("mount", "", Never("find mounts with findmnt")),
    ("name", "1 names of what is sent, 2 of all files", Here(|show, level| show.names = level)),
    ("nonreg", "names of special files that are skipped, always", Always),
    ("progress", "1 and 2 the progress of the whole, 0 none", Here(progress)),
    ("remove", "", Never("of files that --remove-source-files keeps there is a failure")),
    ("skip", "", Never("use -ii to see what is left as it is")),
    ("stats", "1 a line at the end, 2 and 3 a table", Here(stats)),
    ("symsafe", "names of symlinks that --safe-links skips, always", Always),
];

/// The items of `--debug`.
const DEBUG: &str = "acl backup bind chdir connect cmd del deltasum dup exit filter flist fuzzy genr hash hlink iconv \
    io nstr own proto recv send time";

fn progress(show: &mut Verbosity, level: u8) {
    show.progress = if level > 0 { Progress::Shown } else { Progress::Hidden };
}

fn stats(show: &mut Verbosity, level: u8) {
    (show.totals, show.stats) = (level == 1, level > 1);
}

impl TransferArgs {
    /// What is shown of the run.
    ///
    /// # Errors
    ///
    /// Those of [`InfoArgs::apply`].
    pub(super) fn show(&self) -> Result<Verbosity> {
        let names_would_be_sent = self.dry_run && !self.record.shows_lines();
        let names = self.verbose.max(u8::from(names_would_be_sent));
        let mut show = Verbosity {
            names,
            quiet: self.quiet,
            removals: names > 0,
            notes: names > 0,
            totals: names > 0,
            progress: if self.progress { Progress::Shown } else { Progress::Bar },
            stats: self.stats,
            units: Units::asked_for(self.human_readable),
        };
        self.info.apply(&mut show)?;
        if !self.quiet {
            return Ok(show);
        }
        let Verbosity { quiet, progress, stats, units, .. } = show;
        Ok(Verbosity { quiet, progress, stats, units, ..Verbosity::default() })
    }
}

impl InfoArgs {
    /// Changes what is shown as was asked for.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for an item that there is not.
    pub fn apply(&self, show: &mut Verbosity) -> Result<()> {
        for item in &self.info {
            let (name, level) = split(item);
            match name.as_str() {
                "none" => all(show, 0),
                "all" => all(show, level),
                name => {
                    let found = ITEMS.iter().find(|(known, ..)| *known == name);
                    let (.., told) = found.ok_or_else(|| unknown("info", item))?;
                    apply_item(told, item, level, show)?;
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
            if level > 0 && name != "none" {
                let what = "follows what rsync does inside; use -vv, or strace -f";
                return Err(Error::Usage(format!("--debug={item} is not supported: it {what}")));
            }
        }
        Ok(())
    }
}

fn apply_item(told: &Told, item: &str, level: u8, show: &mut Verbosity) -> Result<()> {
    let refuse =
        |why: &str| Err(Error::Usage(format!("--info={item} is not supported: {why}; leave it out")));
    match told {
        Here(set) => {
            set(show, level);
            Ok(())
        }
        Always if level == 0 => refuse("that is a warning, and always shown without -q"),
        Never(why) if level > 0 => refuse(why),
        Always | Never(_) => Ok(()),
    }
}

fn all(show: &mut Verbosity, level: u8) {
    for (.., told) in ITEMS {
        if let Here(set) = told {
            set(show, level);
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
                "NAME or NAME1 is level 1, NAME0 silences.\n\n{lines}ALL       all of these\nNONE      the same as ALL0\n"
            )
        }
        _ => writeln!(text, "NONE is all there is: use -vv, or strace -f."),
    };
    Command::new("holesync").override_help(text).try_get_matches_from(["holesync", "--help"]).err()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(info: &[&str], debug: &[&str]) -> Result<Verbosity> {
        let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        let mut show = Verbosity { names: 1, totals: true, removals: true, ..Verbosity::default() };
        InfoArgs { info: owned(info), debug: owned(debug) }.apply(&mut show).map(|()| show)
    }

    #[test]
    fn items_change_what_is_shown() {
        let show = shown(&["progress2", "NAME0", "stats2", "flist0"], &["none", "io0"]).unwrap();
        assert_eq!((show.progress, show.names, show.stats, show.totals), (Progress::Shown, 0, true, false));
        assert!(show.removals);
        let none = shown(&["none"], &[]).unwrap();
        assert_eq!(none, Verbosity { progress: Progress::Hidden, ..Verbosity::default() });
        let all = shown(&["all4", "del0", "nonreg"], &[]).unwrap();
        assert!(all.names > 1 && all.stats && all.notes && !all.removals);
    }

    #[test]
    fn what_there_is_not_is_an_error_with_a_sentence() {
        for (info, debug, part) in [
            (&["foo"][..], &[][..], "no --info item \"foo\""),
            (&["skip2"], &[], "use -ii"),
            (&["nonreg0"], &[], "always shown"),
            (&[], &["foo"], "no --debug item"),
            (&[], &["filter"], "use -vv"),
        ] {
            let error = shown(info, debug).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
