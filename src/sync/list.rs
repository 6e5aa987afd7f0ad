//! Shows what sources have, and transfers nothing.

use std::time::Instant;

use crate::confinement::{NamedPath, RequestPath};
use crate::error::{Error, Result, code};
use crate::location::{Host, Location};
use crate::options::{Missing, Options, TellsChanges};
use crate::protocol::Request;
use crate::receiver;
use crate::remote::{FarSide, RemoteOptions};
use crate::report::{Event, KeepsFirst, Reporter, Stats};
use crate::shell;
use crate::source::{self, Found, Kind, Walk};
use crate::sync::{Completed, FilesFrom, Initiator, Origin, Shared, Tries, names, origin, stdin};

/// Tells of everything below `sources`, or of what a list names below the only one.
///
/// # Errors
///
/// What ends the run; [`Error::Partial`](crate::error::Error::Partial) when something could
/// not be read.
pub fn list(
    sources: &[Location],
    listed: Option<&FilesFrom>,
    options: &Options,
    remote: &RemoteOptions,
    reporter: &dyn Reporter,
) -> Result<()> {
    if sources.iter().any(stdin::is_stdin) {
        return Err(Error::Usage("- as SRC is one image from stdin, and there is no DEST".into()));
    }
    let start = Instant::now();
    // Nothing is written at either end, whatever else was asked for.
    let options = Options {
        dry_run: true,
        tells_changes: TellsChanges::No,
        delete: None,
        backup: None,
        remove_source_files: false,
        missing: if options.missing == Missing::Failed { Missing::Failed } else { Missing::Ignored },
        ..options.clone()
    };
    let tries = &Tries::new(Some(0));
    let first = KeepsFirst::new(reporter);
    let reporter: &dyn Reporter = &first;
    let initiator = Initiator {
        options: &options,
        remote,
        reporter,
        tries,
        shared: &Shared::alone(&options),
        saved: None,
    };
    let origin = origin(sources)?;
    let other_end = if let Origin::Remote(host, _) = &origin { Some(host) } else { None };
    let names = listed.map(|listed| initiator.names(listed, other_end)).transpose()?;
    let completed = match origin {
        Origin::Local(sources) => {
            let sources = source::choose(sources, names, &options)?;
            Completed::here(list_here(&sources, &options, reporter))
        }
        Origin::Remote(host, paths) => initiator.list(&host, &paths, names)?,
    };
    initiator.conclude(start, completed, &first)
}

fn list_here(sources: &[NamedPath], options: &Options, reporter: &dyn Reporter) -> Stats {
    let mut stats = Stats::default();
    for found in Walk::new(sources, options) {
        match found {
            Found::Source(source) => {
                if let Kind::File { length, .. } = source.kind {
                    stats.files_total += 1;
                    stats.apparent_bytes = stats.apparent_bytes.saturating_add(length);
                }
                reporter.event(Event::Listed(source.item()));
            }
            Found::Failed(failure) => {
                stats.files_vanished += u64::from(failure.code == code::VANISHED);
                stats.count_failure(failure.code);
                reporter.event(Event::Failed(&failure));
            }
            Found::Skipped(what) => reporter.event(Event::Warning(&what)),
            Found::Contents(_) => {}
        }
    }
    stats
}

impl Initiator<'_> {
    /// What sources have that are on a host.
    fn list(self, host: &Host, paths: &[Vec<u8>], listed: Option<Vec<Vec<u8>>>) -> Result<Completed<Stats>> {
        self.connect(host, self.options.silence(), |far_side, input, mut output| match far_side {
            FarSide::Agent => {
                let sources = paths.iter().cloned().map(RequestPath::from).collect();
                self.request(&mut output, Request::Send { sources, listed: listed.is_some() })?;
                listed.map_or(Ok(()), |listed| names::send(&mut output, listed))?;
                receiver::list(self.connection(input, output))
            }
            FarSide::Shell if listed.is_some() => Err(names::needs_agent("--files-from", host)),
            FarSide::Shell => shell::list(self.shell_session(input, output, &host.to_string()), paths),
        })
    }
}
