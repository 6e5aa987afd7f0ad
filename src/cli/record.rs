//! The flags that tell what is shown of each entry, and what is written down of it.

use std::path::{Path, PathBuf};

use clap::{ArgAction, Args};
use holesync::error::Result;
use holesync::location::Location;
use holesync::options::{Options, TellsChanges};
use holesync::report::{ITEMIZED, LineFormat, NAMES, Remarks, RunFacts};

use crate::cli::info::Telling;

/// What is shown of each entry, and where it is written down.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// List what changed, and how, as rsync does; twice, or with -vv: also what did not
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "json")]
    itemize_changes: u8,
    /// The line about each entry, with the escapes of rsync [with -i: "%i %n%L"]
    #[arg(long, value_name = "FORMAT", conflicts_with = "json")]
    out_format: Option<String>,
    /// List what SRC... have and transfer nothing; so does a single SRC without DEST, which is
    /// listed one level deep unless -r or -a is there
    #[arg(long)]
    pub list_only: bool,
    /// Write down what is done
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// The line about each entry in that file [default: "%i %n%L"]
    #[arg(long, value_name = "FORMAT", requires = "log_file")]
    log_file_format: Option<String>,
}

/// What is told of each entry.
#[derive(Debug, Clone)]
pub struct Record {
    /// The line that is shown.
    pub lines: Option<LineFormat>,
    /// The log file, and the line in it.
    pub log: Option<(PathBuf, LineFormat)>,
}

impl Record {
    /// The same for another destination: one of several.
    pub fn to(&self, destination: &Path) -> Record {
        Record {
            lines: self.lines.clone().map(|lines| lines.to(destination)),
            log: self.log.clone().map(|(path, lines)| (path, lines.to(destination))),
        }
    }
}

impl RecordArgs {
    /// Whether how entries differed is shown or written down.
    pub fn tells_changes(&self) -> bool {
        self.shows_lines() || self.log_file.is_some()
    }

    /// The same for the library.
    pub fn tells(&self) -> TellsChanges {
        if self.tells_changes() { TellsChanges::Always } else { TellsChanges::No }
    }

    /// Whether the lines that are shown have a format.
    pub fn shows_lines(&self) -> bool {
        self.itemize_changes > 0 || self.out_format.is_some()
    }

    /// Reads the formats.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`](holesync::error::Error::Usage) for those that make no sense.
    pub fn record(
        &self,
        telling: &Telling,
        options: &Options,
        sources: &[Location],
        destination: Option<&Location>,
    ) -> Result<Record> {
        let facts = RunFacts {
            pushes: matches!(destination, Some(Location::Remote(..))),
            pulls: sources.iter().any(|source| matches!(source, Location::Remote(..))),
            times: options.times,
            checksum: options.checksum,
        };
        let unchanged = self.itemize_changes > 1 || telling.names > 1;
        let usual = if self.itemize_changes > 0 { ITEMIZED } else { NAMES };
        let format = self.out_format.as_deref().unwrap_or(usual);
        let shows_lines = self.shows_lines() || telling.names > 0;
        let remarks = Remarks {
            skipped: telling.skipped.then_some(options.transfer),
            backups: options.backup.clone().filter(|_| telling.backups && !options.dry_run),
            destination: destination.map(|destination| match destination {
                Location::Local(path) | Location::Remote(_, path) => path.components().collect(),
            }),
        };
        let lines = LineFormat::new(format, facts, unchanged)?.with_remarks(remarks);
        let format = self.log_file_format.as_deref().unwrap_or(ITEMIZED);
        let log = self
            .log_file
            .as_ref()
            .map(|path| LineFormat::new(format, facts, unchanged).map(|lines| (path.clone(), lines)));
        Ok(Record { lines: shows_lines.then_some(lines), log: log.transpose()? })
    }
}
