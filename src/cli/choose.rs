//! The flags that choose what is sent. Filter rules count in the order in which they were
//! typed, whichever flags they came with.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::{ArgAction, ArgMatches, Args, Command, FromArgMatches};
use holesync::error::{Error, Result};
use holesync::filter::{FilterRules, RulesReader};
use holesync::location::Location;
use holesync::options::{Directories, Missing, OneFileSystem, Options, TransferRules};
use holesync::sync::{FilesFrom, ListPlace};

/// The flags as clap takes them.
#[derive(Debug, Args)]
struct RawFilterArgs {
    /// Leave out what matches PATTERN
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true)]
    exclude: Vec<OsString>,
    /// Send what matches PATTERN, whatever comes behind
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true)]
    include: Vec<OsString>,
    /// Leave out what matches a pattern in FILE, one a line; "-": stdin
    #[arg(long, value_name = "FILE")]
    exclude_from: Vec<OsString>,
    /// Send what matches a pattern in FILE; "-": stdin
    #[arg(long, value_name = "FILE")]
    include_from: Vec<OsString>,
    /// A filter rule in rsync's syntax, as '- *.o', ': .rules' or 'merge FILE'
    #[arg(short, long, value_name = "RULE", allow_hyphen_values = true)]
    filter: Vec<OsString>,
    /// The rules in .rsync-filter of each directory; twice: the files themselves stay here
    #[arg(short = 'F', id = "dir-filter", num_args = 0..=1, require_equals = true, default_missing_value = "", value_parser = [""], hide_possible_values = true)]
    dir_filter: Vec<String>,
    /// Leave out what CVS ignores
    #[arg(short = 'C', long)]
    cvs_exclude: bool,
    /// Lines of files of names and rules end with NUL
    #[arg(short = '0', long)]
    from0: bool,
    /// Send what FILE names below SRC, one name a line; "-": stdin, "[host]:path": at the other end
    #[arg(long, value_name = "FILE")]
    files_from: Option<OsString>,
    /// Directories as rsync 2.6 sent them: -r --exclude='/*/*'
    #[arg(long, visible_alias = "old-d")]
    old_dirs: bool,
}

/// One of these flags that counts by its place.
#[derive(Debug, Clone, Copy)]
enum Given {
    Pattern { includes: bool },
    PatternsFrom { includes: bool },
    Filter,
    DirFilter,
}

/// What they say, in order.
#[derive(Debug)]
pub struct FilterArgs {
    given: Vec<(Given, OsString)>,
    cvs: bool,
    nul_separated: bool,
    files_from: Option<OsString>,
    /// What is below the first directories is left out.
    pub old_dirs: bool,
}

impl FilterArgs {
    /// The list of what is sent.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for what names no file.
    pub fn files_from(&self) -> Result<Option<FilesFrom>> {
        let Some(text) = &self.files_from else { return Ok(None) };
        let place = match text.as_bytes() {
            b"-" => ListPlace::Stdin,
            [b':', path @ ..] if !path.is_empty() => ListPlace::There(None, OsStr::from_bytes(path).into()),
            _ => match Location::parse(text)? {
                Location::Local(path) => ListPlace::Here(path),
                Location::Remote(host, path) => ListPlace::There(Some(host), path),
            },
        };
        Ok(Some(FilesFrom { place, nul_separated: self.nul_separated }))
    }

    /// Whether there is a list of what is sent.
    pub fn has_list(&self) -> bool {
        self.files_from.is_some()
    }

    /// Whether names are picked, by rules or by a list.
    pub fn chooses(&self) -> bool {
        !self.given.is_empty() || self.cvs || self.has_list()
    }

    /// Checks what was chosen against all other options. `through`: a command is in the place
    /// of the destination.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for what excludes each other.
    pub fn check(&self, options: &Options, through: bool) -> Result<()> {
        let chooses =
            !options.filter.is_empty() || options.transfer != TransferRules::default() || self.has_list();
        if through && chooses {
            let what = "--through takes one image: leave filter rules, --files-from, sizes, -u, --existing and --ignore-existing out";
            return Err(Error::Usage(what.into()));
        }
        if options.remove_source_files && options.transfer.look_there() {
            let what = "--remove-source-files would remove what is not sent: leave -u, --existing and \
                        --ignore-existing out";
            return Err(Error::Usage(what.into()));
        }
        Ok(())
    }

    /// Reads the rules, and the files that they name; before them come those that are `first`,
    /// and behind them those that are `last`.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for what is no rule, or a file that cannot be read.
    pub fn rules(&self, first: &[&str], last: [Option<OsString>; 2]) -> Result<FilterRules> {
        let mut rules = RulesReader::new(self.nul_separated);
        first.iter().try_for_each(|rule| rules.filter(rule.as_ref()))?;
        let mut dir_filters = 0;
        for (given, text) in &self.given {
            match *given {
                Given::Pattern { includes } => rules.pattern(text, includes)?,
                Given::PatternsFrom { includes } => rules.patterns_from(text, includes)?,
                Given::Filter => rules.filter(text)?,
                Given::DirFilter => {
                    dir_filters += 1;
                    match dir_filters {
                        1 => rules.filter("dir-merge /.rsync-filter".as_ref())?,
                        2 => rules.filter("exclude .rsync-filter".as_ref())?,
                        _ => {}
                    }
                }
            }
        }
        if self.cvs {
            rules.cvs()?;
        }
        if self.old_dirs {
            rules.filter("- /*/*".as_ref())?;
        }
        last.iter().flatten().try_for_each(|rule| rules.filter(rule))?;
        Ok(rules.finish())
    }
}

impl Args for FilterArgs {
    fn augment_args(command: Command) -> Command {
        RawFilterArgs::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        RawFilterArgs::augment_args_for_update(command)
    }
}

impl FromArgMatches for FilterArgs {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<FilterArgs, clap::Error> {
        let raw = RawFilterArgs::from_arg_matches(matches)?;
        let places = |id: &str| matches.indices_of(id).into_iter().flatten().collect::<Vec<_>>();
        let mut given = Vec::new();
        let mut take = |id: &str, kind: Given, values: Vec<OsString>| {
            given.extend(places(id).into_iter().zip(values).map(|(at, value)| (at, kind, value)));
        };
        take("exclude", Given::Pattern { includes: false }, raw.exclude);
        take("include", Given::Pattern { includes: true }, raw.include);
        take("exclude_from", Given::PatternsFrom { includes: false }, raw.exclude_from);
        take("include_from", Given::PatternsFrom { includes: true }, raw.include_from);
        take("filter", Given::Filter, raw.filter);
        take("dir-filter", Given::DirFilter, raw.dir_filter.into_iter().map(OsString::from).collect());
        given.sort_by_key(|&(at, ..)| at);
        let given = given.into_iter().map(|(_, kind, value)| (kind, value)).collect();
        Ok(FilterArgs {
            given,
            cvs: raw.cvs_exclude,
            nul_separated: raw.from0,
            files_from: raw.files_from,
            old_dirs: raw.old_dirs,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = FilterArgs::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The flags that choose which directories are made, and what a source keeps of its path.
#[derive(Debug, Args)]
pub struct DirectoriesArgs {
    /// Keep the whole path of each SRC, or what comes behind /./ in it
    #[arg(short = 'R', long, overrides_with = "no_relative")]
    relative: bool,
    #[arg(long, visible_alias = "no-R", help = "Keep only last names, also with --files-from")]
    no_relative: bool,
    /// With -R, make the directories on the way to SRC as they are at the source (default)
    #[arg(long, alias = "i-d", overrides_with = "no_implied_dirs")]
    implied_dirs: bool,
    #[arg(long, alias = "no-i-d", help = "With -R, leave those directories as they are, or to the umask")]
    no_implied_dirs: bool,
    /// Make directories without descending into them
    #[arg(short, long, overrides_with = "no_dirs")]
    pub dirs: bool,
    #[arg(long, visible_alias = "no-d", help = "Skip directories, also with --files-from")]
    no_dirs: bool,
    /// Leave out directories below which there are only directories
    #[arg(short = 'm', long)]
    prune_empty_dirs: bool,
    /// Say nothing of a SRC that is not there
    #[arg(long)]
    ignore_missing_args: bool,
    /// Remove at the destination what is not there as SRC
    #[arg(long)]
    delete_missing_args: bool,
}

impl DirectoriesArgs {
    /// What the library takes. `has_list`: names come from a file.
    pub fn directories(&self, has_list: bool) -> Directories {
        Directories {
            relative: (self.relative || has_list) && !self.no_relative,
            implied: !self.no_implied_dirs,
            without_recursion: (self.dirs || has_list) && !self.no_dirs,
            prune_empty: self.prune_empty_dirs,
        }
    }

    /// What becomes of a source that is not there.
    pub fn missing(&self) -> Missing {
        if self.delete_missing_args {
            Missing::Deleted
        } else if self.ignore_missing_args {
            Missing::Ignored
        } else {
            Missing::Failed
        }
    }
}

/// The flags that choose by what a file is, and by what the destination has.
#[derive(Debug, Args)]
pub struct TransferRulesArgs {
    /// Leave out files of more than SIZE
    #[arg(long, value_name = "SIZE", value_parser = limit)]
    max_size: Option<u64>,
    /// Leave out files of less than SIZE
    #[arg(long, value_name = "SIZE", value_parser = limit)]
    min_size: Option<u64>,
    /// Leave files alone that are newer at the destination
    #[arg(short, long)]
    update: bool,
    /// Make nothing that the destination does not have
    #[arg(long, visible_alias = "ignore-non-existing")]
    existing: bool,
    /// Leave alone what the destination has
    #[arg(long)]
    ignore_existing: bool,
    /// Leave files alone that are as long at the destination, or longer. What is there of
    /// others is compared, not trusted
    #[arg(long, visible_alias = "append-verify")]
    append: bool,
    /// Leave out symlinks that lead out of what is sent
    #[arg(long)]
    pub safe_links: bool,
    /// Make the directories that DEST lies in
    #[arg(long)]
    pub mkpath: bool,
    /// Do not go into other file systems; twice: leave out their mount points, too
    #[arg(short = 'x', long, action = ArgAction::Count)]
    one_file_system: u8,
}

impl TransferRulesArgs {
    /// What of it goes by files.
    pub fn rules(&self) -> TransferRules {
        TransferRules {
            max_size: self.max_size,
            min_size: self.min_size,
            update: self.update,
            existing: self.existing,
            ignore_existing: self.ignore_existing,
            append: self.append,
        }
    }

    /// Where a walk ends.
    pub fn one_file_system(&self) -> OneFileSystem {
        match self.one_file_system {
            0 => OneFileSystem::No,
            1 => OneFileSystem::Yes,
            _ => OneFileSystem::WithoutMountPoints,
        }
    }
}

/// A size as rsync reads it: a number, which may have a fraction; K, M, G, T or P, in powers
/// of 1024, with B behind it of 1000; and +1 or -1.
fn limit(text: &str) -> std::result::Result<u64, String> {
    let (size, step) = match text.len().checked_sub(2).and_then(|at| text.split_at_checked(at)) {
        Some((size, "+1")) => (size, 1),
        Some((size, "-1")) => (size, -1),
        _ => (text, 0),
    };
    let at = size.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(size.len());
    let (number, suffix) = size.split_at(at);
    let suffix = suffix.to_ascii_uppercase();
    let unit = match suffix.get(1..).unwrap_or_default() {
        "" | "IB" => 1024_u64,
        "B" => 1000,
        _ => return Err(format!("{suffix:?} is no suffix: use K, M, G, T or P")),
    };
    let power = match suffix.chars().next() {
        None | Some('B') if suffix.len() < 2 => 0,
        Some('K') => 1,
        Some('M') => 2,
        Some('G') => 3,
        Some('T') => 4,
        Some('P') => 5,
        _ => return Err(format!("{suffix:?} is no suffix: use K, M, G, T or P")),
    };
    let unit = u128::from(unit.pow(power));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fault = || format!("{number:?} is no number");
    let digits =
        |digits: &str| if digits.is_empty() { Ok(0) } else { digits.parse::<u64>().map_err(|_| fault()) };
    if number.trim_matches('.').is_empty() || fraction.len() > 12 {
        return Err(fault());
    }
    let part = u128::from(digits(fraction)?) * unit / 10_u128.pow(fraction.len() as u32);
    let bytes =
        u64::try_from(u128::from(digits(whole)?) * unit + part).map_err(|_| format!("{text} is too much"))?;
    bytes.checked_add_signed(step).ok_or_else(|| format!("{text} is less than nothing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_rsync_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("100", 100),
            ("100b", 100),
            ("1k", 1024),
            ("1K-1", 1023),
            ("1kb+1", 1001),
            ("1.5M", 3 << 19),
            ("2MiB", 2 << 20),
            (".5k", 512),
            ("1P", 1 << 50),
        ] {
            assert_eq!(limit(text), Ok(bytes), "{text}");
        }
        for bad in ["", "x", "1X", "1kx", "-1", "0-1", "1.2.3", "99999999P", ".", "é1"] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }
}
