//! The flags that choose what is sent. Filter rules count in the order in which they were
//! typed, whichever flags they came with.

use std::ffi::OsString;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use holesync::error::Result;
use holesync::filter::{FilterRules, RulesReader};

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
}

impl FilterArgs {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.given.is_empty() && !self.cvs
    }

    /// Reads the rules, and the files that they name.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`](holesync::error::Error::Usage) for what is no rule, or a file that cannot be read.
    pub fn rules(&self) -> Result<FilterRules> {
        let mut rules = RulesReader::new(self.nul_separated);
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
        Ok(FilterArgs { given, cvs: raw.cvs_exclude, nul_separated: raw.from0 })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = FilterArgs::from_arg_matches(matches)?;
        Ok(())
    }
}
