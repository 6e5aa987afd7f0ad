//! The command line: parsed with clap, turned into [`Options`] and the like.
//! Knows every flag and nothing about how the work is done.

mod attributes;
mod beside;
mod choose;
mod delete;
mod help;
mod info;
mod mistakes;
mod reach;
mod record;
mod rsync;
mod values;
mod verb;
mod verbs;
mod when;
mod workplace;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgAction, Args, FromArgMatches, Parser};
use holesync::error::{Error, Result};
use holesync::location::Location;
use holesync::options::{BlockSize, Commit, Compress, Options, TellsChanges};
use holesync::report::Verbosity;
use holesync::sync::{FilesFrom, Pulling};

use attributes::AttributeArgs;
use beside::BesideArgs;
pub use choose::{DirectoriesArgs, FilterArgs, TransferRulesArgs};
use delete::DeleteArgs;
use info::InfoArgs;
use reach::StoreArgs;
pub use reach::{AgentArg, BetweenArgs, FailedList, RemoteArgs, SeveralHosts};
use record::{Record, RecordArgs};
use values::block_size;
use values::{CommitArg, CompressArg, rate, size, unit_of_comparison};
pub use verb::Verb;
pub use verbs::{run, usage_code};
use when::StopArgs;
use workplace::WorkplaceArgs;

/// Make a disk image on one machine equal to one on another, at the cost of the
/// data that is allocated and changed.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    args_override_self = true,
    subcommand_negates_reqs = true,
    disable_help_flag = true,
    disable_version_flag = true,
    args = [help_flag(), version_flag()],
    mut_subcommands = |verb| verb.arg(help_flag().short('h')),
    override_usage = "holesync [OPTIONS] SRC... DEST\n       holesync [OPTIONS] SRC\n       holesync COMMAND"
)]
pub struct Cli {
    /// Something else than a transfer.
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// The transfer.
    #[command(flatten)]
    pub transfer: TransferArgs,
}

/// Where there are operands, `-h` is rsync's.
fn help_flag() -> Arg {
    Arg::new("help").long("help").action(ArgAction::Help).help("Print help")
}

fn version_flag() -> Arg {
    Arg::new("version").short('V').long("version").action(ArgAction::Version).help("Print version")
}

impl Cli {
    /// Parses a command line. `-h` is help where nothing else is there, and rsync's
    /// `--human-readable` beside operands.
    ///
    /// # Errors
    ///
    /// Those of clap; help and version are such.
    pub fn read(arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
        let is_h_alone = matches!(arguments.as_slice(), [_, only] if only == "-h");
        if let Some(told) = is_h_alone.then(help::short).and_then(info::page) {
            return Err(told);
        }
        let words = || arguments.iter().map_while(|word| word.to_str().filter(|word| *word != "--"));
        if let Some(told) = info::help(words()).or_else(|| help::version::in_detail(words().skip(1))) {
            return Err(told);
        }
        let command = help::command();
        let meant = mistakes::options_before_a_verb(&arguments);
        let read = rsync::rewrite(arguments, command.clone())
            .and_then(|arguments| Cli::from_arg_matches(&command.clone().try_get_matches_from(arguments)?));
        read.map_err(|error| meant.filter(|_| error.use_stderr()).unwrap_or(error))
    }
}

/// `holesync [OPTIONS] SRC... DEST`.
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// SRC... DEST, each a path, [user@]host:path or ssh://[user@]host[:port]/path
    #[arg(required = true, num_args = 1.., value_name = "SRC... DEST", hide = true)]
    paths: Vec<OsString>,

    /// Archive: -rlptgoD
    #[arg(short, long)]
    archive: bool,
    /// Descend into directories (default)
    #[arg(short, long, overrides_with = "no_recursive")]
    recursive: bool,
    #[arg(long, visible_alias = "no-r", help = "Skip directories")]
    no_recursive: bool,
    /// Copy symlinks as symlinks (default)
    #[arg(short, long, overrides_with = "no_links")]
    links: bool,
    #[arg(long, visible_alias = "no-l", help = "Skip symlinks")]
    no_links: bool,
    /// Keep permissions (default)
    #[arg(short, long, overrides_with = "no_perms")]
    perms: bool,
    #[arg(long, visible_alias = "no-p", help = "Leave permissions to the umask")]
    no_perms: bool,
    /// Keep modification times (default)
    #[arg(short, long, overrides_with = "no_times")]
    times: bool,
    #[arg(long, visible_alias = "no-t", help = "Leave modification times alone")]
    no_times: bool,
    /// Keep the owner (root only)
    #[arg(short, long, overrides_with = "no_owner")]
    owner: bool,
    #[arg(long, visible_alias = "no-o", help = "Leave the owner alone")]
    no_owner: bool,
    /// Keep the group
    #[arg(short, long, overrides_with = "no_group")]
    group: bool,
    #[arg(long, visible_alias = "no-g", help = "Leave the group alone")]
    no_group: bool,
    #[command(flatten)]
    kept: AttributeArgs,

    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    rules: TransferRulesArgs,
    #[command(flatten)]
    directories: DirectoriesArgs,
    /// Words in a path of host: are paths by themselves, as a shell there would have it
    #[arg(long)]
    old_args: bool,

    /// Name the files that are sent; twice: all files
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Change nothing, find out what would be sent
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Compare contents even where size and time agree
    #[arg(short, long)]
    checksum: bool,
    /// Compare contents of all files, whatever their size and time
    #[arg(short = 'I', long)]
    ignore_times: bool,
    /// Times no more than so many seconds apart are equal; less than 0: to the nanosecond
    /// [default: as the destination's file system keeps them]
    #[arg(short = '@', long, value_name = "NUM", allow_negative_numbers = true)]
    modify_window: Option<i32>,
    /// Take files of equal size for equal
    #[arg(long)]
    size_only: bool,
    #[command(flatten)]
    beside: BesideArgs,
    #[command(flatten)]
    workplace: WorkplaceArgs,
    #[command(flatten)]
    delete: DeleteArgs,
    /// Send all data, whatever the destination has
    #[arg(short = 'W', long)]
    whole_file: bool,
    /// Write into the destination directly (same as --commit=inplace)
    #[arg(long)]
    inplace: bool,
    /// How new content becomes the destination
    #[arg(long, value_enum, default_value_t = CommitArg::Auto)]
    commit: CommitArg,
    /// Keep zeros allocated on the destination, unless -S is there
    #[arg(long)]
    preallocate: bool,
    /// Zeros become holes (default)
    #[arg(short = 'S', long)]
    sparse: bool,
    /// Reading files of SRC leaves their access times alone, where that may be
    #[arg(long)]
    open_noatime: bool,
    /// Read holes, too, at both ends: for file systems that report them wrongly
    #[arg(long)]
    no_hole_map: bool,
    /// Read the destination back from storage and check it again
    #[arg(long)]
    verify: bool,
    /// Do not wait until data is on storage
    #[arg(long)]
    no_fsync: bool,
    /// Write also what other programs use: locked files, mounted devices
    #[arg(long)]
    force_in_use: bool,
    /// Write also what is packed, or the disk of a virtual machine in a format of its own, to a
    /// device as it is
    #[arg(long)]
    as_is: bool,
    /// Unit of comparison, a power of two from 4K to 256K, or the next to SIZE [default: 64K]
    #[arg(short = 'B', long, value_name = "SIZE", value_parser = size)]
    block_size: Option<u64>,
    /// Parts of a block that are compared by themselves when it differs, a power of
    /// two from 4K on; a whole block: none [default: 4K]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    leaf_size: Option<u64>,
    /// Compress data on its way
    #[arg(short = 'z', long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "zstd", default_value = "auto", value_name = "HOW")]
    compress: CompressArg,
    /// zstd level [default: 3 with -z; else one that suits the connection]
    #[arg(long, alias = "zl", value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-7..=19))]
    compress_level: Option<i32>,
    /// What has to run at the other end [default: auto; with --remote-path: require]
    #[arg(long, value_enum)]
    agent: Option<AgentArg>,
    /// In the place of DEST, run CMD where it is, with the image on its stdin
    /// ($HOLESYNC_DEST, $HOLESYNC_SIZE)
    #[arg(long, value_name = "CMD")]
    through: Option<OsString>,
    /// How much each end writes a second: in KiB, or with a suffix (500K, 1.5m, 2MB); 0: any
    #[arg(long, value_name = "RATE", value_parser = rate)]
    bwlimit: Option<u64>,
    #[command(flatten)]
    stop: StopArgs,
    /// Tries that may follow one whose connection died [default: 3 if ssh asks nothing
    /// (BatchMode), else 0]
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    #[command(flatten)]
    remote: RemoteArgs,
    #[command(flatten)]
    between: BetweenArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// Show progress, also where there is no terminal
    #[arg(short = 'P', long)]
    progress: bool,
    #[command(flatten)]
    record: RecordArgs,
    #[command(flatten)]
    info: InfoArgs,
    /// Show a table of what was done
    #[arg(long)]
    stats: bool,
    /// Numbers in units of 1000; twice: of 1024. Alone, -h shows the options that are often used
    #[arg(short, long, action = ArgAction::Count)]
    human_readable: u8,
    /// One JSON object a line on stdout, the summary last
    #[arg(long)]
    json: bool,
    /// Threads that hash [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// A transfer, ready to run.
#[derive(Debug)]
pub struct Transfer {
    pub sources: Vec<Location>,
    /// A list of names below the only source.
    pub listed: Option<FilesFrom>,
    /// `None`: the sources are listed, or go to several hosts.
    pub destination: Option<Location>,
    pub several: Option<SeveralHosts>,
    /// What is pulled from a store, in the place of the sources.
    pub pulling: Option<Pulling>,
    pub options: Options,
    pub remote: RemoteArgs,
    pub between: BetweenArgs,
    /// What has to run there.
    pub agent: AgentArg,
    /// Tries after the first.
    pub retries: Option<u32>,
    /// How long it may take; `None`: as long as it takes.
    pub limit: Option<Duration>,
    /// A command in the place of the destination.
    pub through: Option<OsString>,
    /// Where the map of the image is saved.
    pub save_map: Option<PathBuf>,
    /// What to show.
    pub show: Verbosity,
    /// What is told of each entry.
    pub record: Record,
    /// Threads that hash.
    pub threads: Option<u16>,
}

impl TransferArgs {
    /// Turns flags into what the library takes, in a process with this umask.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for what makes no sense.
    pub fn into_transfer(mut self, umask: u32) -> Result<Transfer> {
        self.remote.check(self.agent)?;
        let compares = self.checksum || self.ignore_times || self.verify;
        if self.through.is_some() && (compares || self.inplace || self.preallocate) {
            let what = "--through has no file to compare or to write into: leave -c, -I, --verify, --inplace and \
                        --preallocate out";
            return Err(Error::Usage(what.into()));
        }
        if self.through.is_some() && self.record.tells_changes() {
            let what = "--through sends one image, of which nothing is listed: leave -i, --out-format and --log-file out";
            return Err(Error::Usage(what.into()));
        }
        if self.through.is_some() && self.retries.is_some() {
            return Err(Error::Usage("--through runs its command once: leave --retries out".into()));
        }
        if self.inplace && self.commit == CommitArg::Atomic {
            return Err(Error::Usage("--inplace and --commit=atomic exclude each other".into()));
        }
        let several = self.remote.hosts.several(&mut self.paths)?;
        let is_listing = self.record.list_only || self.paths.len() == 1 && several.is_none();
        several.as_ref().map_or(Ok(()), |several| several.check(self.record.list_only))?;
        if self.through.is_some() && (is_listing || several.is_some()) {
            return Err(Error::Usage("--through wants SRC and one DEST".into()));
        }
        let mut options = self.options(umask)?;
        // Every name is shown for itself.
        options.kinds.hard_links &= !is_listing;
        if is_listing && !self.recursive && !self.archive && !self.directories.dirs && !self.filter.has_list()
        {
            options.filter = self.filter.rules(&["- /*/*"], [None, None])?;
        }
        mistakes::refuse(&self.paths)?;
        mistakes::check_dest(is_listing, self.inplace || self.verify || self.preallocate || self.as_is)?;
        self.beside.check(!is_listing && self.through.is_none(), several.is_some(), self.size_only)?;
        workplace::check(&options, self.through.is_some())?;
        self.filter.check(&options, self.through.is_some())?;
        delete::check(&options, self.through.is_some())?;
        let has_dest = several.is_none() && self.paths.len() > 1;
        let destination = if has_dest { self.paths.pop() } else { None };
        let destination = destination.map(|path| Location::parse(&path)).transpose()?;
        let pulling = self.pulling(destination.as_ref(), &options, several.is_some())?;
        if pulling.is_some() {
            self.paths.clear();
        }
        let sources = if self.old_args() {
            Location::split_all(&self.paths)
        } else {
            Location::parse_all(&self.paths)
        }?;
        let is_far = matches!(destination, Some(Location::Remote(..)));
        self.between.check(&sources, is_far || several.is_some())?;
        let telling = self.telling()?;
        if (telling.names > 0 || self.json) && options.tells_changes == TellsChanges::No {
            options.tells_changes = TellsChanges::WherePossible;
        }
        let first = several.as_ref().and_then(SeveralHosts::first);
        let record =
            self.record.record(&telling, &options, &sources, destination.as_ref().or(first.as_ref()))?;
        Ok(Transfer {
            sources,
            listed: self.filter.files_from()?,
            destination: destination.filter(|_| !is_listing),
            several,
            pulling,
            options,
            agent: self.remote.agent(self.agent),
            remote: self.remote,
            between: self.between,
            retries: self.retries,
            limit: self.stop.limit(),
            through: self.through,
            save_map: self.beside.save_map().map(Path::to_path_buf),
            show: telling.show,
            record,
            threads: self.threads,
        })
    }

    /// Whether a program reads what is printed.
    pub fn prints_json(&self) -> bool {
        self.json
    }

    /// Whether paths on a host are words for its shell, also as the environment has it.
    fn old_args(&self) -> bool {
        let is_set = |name| std::env::var(name).is_ok_and(|value| value.parse::<i64>().is_ok_and(|n| n > 0));
        self.old_args || is_set("RSYNC_OLD_ARGS") && !is_set("RSYNC_PROTECT_ARGS")
    }

    /// Whether directories are descended into: a list, and `-d`, leave that to `-r`, the first
    /// whatever `-a` says.
    fn recursive(&self) -> bool {
        let is_implied = if self.filter.has_list() { false } else { self.archive || !self.directories.dirs };
        (self.recursive || self.filter.old_dirs || is_implied) && !self.no_recursive
    }

    fn options(&self, umask: u32) -> Result<Options> {
        let (maps_users, maps_groups) = self.kept.maps();
        Ok(Options {
            recursive: self.recursive(),
            directories: self.directories.directories(self.filter.has_list()),
            missing: self.directories.missing(),
            links: !self.no_links,
            filter: self.filter.rules(&[], [self.delete.protects_backups()?, self.workplace.last_rule()?])?,
            one_file_system: self.rules.one_file_system(),
            transfer: self.rules.rules(),
            safe_links: self.rules.safe_links,
            mkpath: self.rules.mkpath,
            perms: !self.no_perms,
            times: !self.no_times,
            destination_perms: (self.perms || self.archive) && !self.no_perms,
            destination_times: (self.times || self.archive) && !self.no_times,
            owner: (self.owner || self.archive || maps_users) && !self.no_owner,
            group: (self.group || self.archive || maps_groups) && !self.no_group,
            attributes: self.kept.rules(umask, self.delete.renames_beside())?,
            kinds: self.kept.kinds(self.archive, (self.links || self.archive) && !self.no_links),
            dry_run: self.dry_run,
            tells_changes: self.record.tells(),
            checksum: self.checksum,
            ignore_times: self.ignore_times || self.beside.save_map().is_some(),
            modify_window: self.modify_window,
            size_only: self.size_only,
            whole_file: self.whole_file,
            commit: match self.commit {
                _ if self.inplace => Commit::InPlace,
                CommitArg::Auto => Commit::Auto,
                CommitArg::Atomic => Commit::Atomic,
                CommitArg::Inplace => Commit::InPlace,
            },
            preallocate: self.preallocate && !self.sparse,
            hole_map: !self.no_hole_map,
            open_noatime: self.open_noatime,
            verify: self.verify,
            fsync: !self.no_fsync,
            force_in_use: self.force_in_use,
            as_is: self.as_is,
            block_size: unit_of_comparison(self.block_size)?,
            leaf_size: self.leaf_size.map_or(Ok(BlockSize::SMALLEST), BlockSize::new)?,
            compress: match self.compress {
                CompressArg::Auto => Compress::Auto,
                CompressArg::Zstd => Compress::Zstd,
                CompressArg::None => Compress::None,
            },
            compress_level: self.compress_level,
            timeout: self.remote.timeout,
            bandwidth: self.bwlimit.filter(|&rate| rate > 0),
            basis: self.beside.basis(),
            alternates: self.beside.alternates()?,
            fuzzy: self.beside.fuzzy,
            workplace: self.workplace.rules()?,
            backup: self.delete.backup()?,
            map_cache: !self.beside.no_map_cache,
            since: self.beside.since(),
            together: None,
            remove_source_files: self.delete.remove_source_files,
            force: self.delete.force,
            delete: self.delete.options(
                self.recursive() || self.directories.directories(self.filter.has_list()).without_recursion,
            )?,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use holesync::report::Units;

    use super::*;

    fn read(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::read(["holesync"].iter().chain(args).map(OsString::from).collect())
    }

    fn transfer(args: &[&str]) -> Result<Transfer> {
        read(args).expect("clap takes it").transfer.into_transfer(0o022)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn rsync_habits() {
        let plain = transfer(&["a", "b"]).unwrap().options;
        assert_eq!(plain, Options::default());
        let archive = transfer(&["-a", "--no-o", "--no-t", "a", "b"]).unwrap().options;
        assert!(archive.group && !archive.owner && !archive.times && archive.perms);
        assert_eq!(transfer(&["-z", "a", "b"]).unwrap().options.compress, Compress::Zstd);
        assert_eq!(transfer(&["--compress=auto", "a", "b"]).unwrap().options.compress, Compress::Auto);
        assert_eq!(transfer(&["--inplace", "a", "b"]).unwrap().options.commit, Commit::InPlace);
        for (size, unit) in [("5K", 8192), ("700", 4096), ("1G", 256 << 10), ("0", 64 << 10)] {
            let block = transfer(&["-B", size, "a", "b"]).unwrap().options.block_size;
            assert_eq!(block.bytes(), unit, "{size}");
        }
        assert_eq!(transfer(&["--agent=push", "--remote-path=x", "a", "h:b"]).unwrap_err().exit_code(), 1);
    }

    #[test]
    fn h_is_rsyncs_beside_operands_and_help_alone() {
        for (args, units) in [
            (&["-h", "a", "b"][..], Units::Thousands),
            (&["-avh", "a", "b"], Units::Thousands),
            (&["-avzh", "a", "b"], Units::Thousands),
            (&["a", "b", "-hh"], Units::Powers),
            (&["-ah", "--stats", "--human-readable", "a", "b"], Units::Powers),
            (&["-a", "a", "b"], Units::Both),
        ] {
            assert_eq!(transfer(args).unwrap().show.units, units, "{args:?}");
        }
        for args in
            [&["-h"][..], &["--help"], &["-avh", "a", "b", "--help"], &["map", "--help"], &["map", "-h"]]
        {
            assert_eq!(read(args).unwrap_err().kind(), clap::error::ErrorKind::DisplayHelp, "{args:?}");
        }
        assert_eq!(read(&["-vh"]).unwrap_err().kind(), clap::error::ErrorKind::MissingRequiredArgument);
    }
}
