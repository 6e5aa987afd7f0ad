//! One source, several hosts: a run for each of them, on a thread of its own, so many at once.
//! Each has its own connection, comparison, tries and verdict, and waits for no other; what they
//! share is what is hashed here, and the rate of all together.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::confinement::NamedPath;
use crate::error::{Error, Result, Warning, in_words, lock, printable};
use crate::hashmap::shared::SharedMaps;
use crate::location::{Host, Location};
use crate::options::Options;
use crate::remote::{self, RemoteOptions};
use crate::report::{Ends, Event, HostsReporter, KeepsFirst, Reporter, Silent, Summary, Verdict};
use crate::source;
use crate::sync::between::FarSources;
use crate::sync::origin::{Origin, origin};
use crate::sync::retry::Tries;
use crate::sync::together::{self, Seat, Together};
use crate::sync::{FilesFrom, Initiator, Shared, since, stdin};

/// Hosts that are sent to at once, unless another number is named.
const USUAL_JOBS: usize = 16;

/// The hosts that a run goes to, and how.
#[derive(Debug)]
pub struct Deployment {
    /// Where it goes, no place twice.
    pub destinations: Vec<(Host, PathBuf)>,
    /// How many at once; `None`: 16.
    pub jobs: Option<usize>,
    /// No host puts anything in place until all could.
    pub together: bool,
}

impl Deployment {
    /// What each destination is called beside the others.
    pub fn names(&self) -> Vec<String> {
        let shares = |host: &Host| self.destinations.iter().filter(|(other, _)| other == host).count() > 1;
        let name = |(host, path): &(Host, PathBuf)| match shares(host) {
            true => format!("{host}:{}", path.display()),
            false => host.to_string(),
        };
        self.destinations.iter().map(name).collect()
    }

    /// What a record of a decision calls each.
    fn places(&self) -> Vec<String> {
        let place = |(host, path): &(Host, PathBuf)| format!("{host}:{}", printable(path));
        self.destinations.iter().map(place).collect()
    }

    fn jobs(&self) -> usize {
        self.jobs.unwrap_or(USUAL_JOBS).clamp(1, self.destinations.len().max(1))
    }
}

/// Makes every destination equal to `sources`, or to what a list names below the only one, and
/// reports it. One that fails leaves the others alone.
///
/// # Errors
///
/// What makes no sense for several hosts; [`Error::Interrupted`]; [`Error::Hosts`] when some
/// failed.
pub fn deploy(
    sources: &[Location],
    listed: Option<&FilesFrom>,
    deployment: &Deployment,
    options: &Options,
    remote: &RemoteOptions,
    reporter: &dyn HostsReporter,
) -> Result<()> {
    let start = Instant::now();
    let since = since::open(sources, listed, None, options)?;
    let sources = chosen(sources, listed, options, remote)?;
    let together = deployment.together_with(&sources, options, remote)?;
    let jobs = deployment.jobs();
    // Those at the far ends do not know of each other.
    let rate = options.bandwidth.map(|rate| (rate / jobs as u64).max(1));
    let maps = (deployment.destinations.len() > 1).then(Arc::<SharedMaps>::default);
    let shared = Shared { maps, since, ..Shared::alone(options) };
    let run = HostsRun {
        sources: &sources,
        options: &Options { bandwidth: rate, ..options.clone() },
        remote,
        shared: &shared,
        together: together.as_ref(),
        reporter,
    };
    let verdicts = run.send_all(deployment, jobs);
    let told = together.as_ref().map_or(Ok(()), |together| together.end());
    let has_decided = together.as_ref().is_some_and(|together| together.has_decided());
    if remote::is_interrupted() && !has_decided {
        return Err(Error::Interrupted(remote::again()));
    }
    reporter.finish(&verdicts, start.elapsed());
    // Hosts that have it are still in the record.
    told?;
    let failed: Vec<&Verdict> = verdicts.iter().filter(|verdict| verdict.failure.is_some()).collect();
    let reason = together.as_ref().and_then(|together| together.reason());
    match failed.first().map(|first| reason.unwrap_or(&first.name)) {
        None => Ok(()),
        Some(first) => Err(Error::Hosts { failed: failed.len(), total: verdicts.len(), first: first.into() }),
    }
}

impl Deployment {
    /// What all hosts wait for, if they do. A dry run puts nothing in place.
    fn together_with(
        &self,
        sources: &Chosen,
        options: &Options,
        remote: &RemoteOptions,
    ) -> Result<Option<Arc<Together>>> {
        if !self.together {
            return Ok(None);
        }
        let Chosen::Here(sources, directory) = sources else {
            let what =
                "--together is decided where SRC is: run holesync there, or copy SRC to this machine first";
            return Err(Error::Usage(what.into()));
        };
        let source = together::check(sources, *directory, options, remote)?;
        if options.dry_run {
            return Ok(None);
        }
        Together::begin(source, self.names(), self.places(), self.jobs()).map(Some)
    }
}

/// What goes to all hosts.
enum Chosen {
    /// Files here, and whether each destination must be a directory.
    Here(Vec<NamedPath>, bool),
    /// What lies on a host, and what is transferred below the only one of these paths.
    There(Host, Vec<Vec<u8>>, Option<Vec<Vec<u8>>>),
}

/// Reads which sources these are.
fn chosen(
    sources: &[Location],
    listed: Option<&FilesFrom>,
    options: &Options,
    remote: &RemoteOptions,
) -> Result<Chosen> {
    let refuse = |what: &str| Err(Error::Usage(what.into()));
    if sources.iter().any(stdin::is_stdin) {
        return refuse("stdin can be read once, and not for several hosts: write it to a file first");
    }
    if options.remove_source_files {
        return refuse(
            "--remove-source-files would remove what one host has and another still needs: leave it out",
        );
    }
    let initiator = Initiator {
        options,
        remote,
        reporter: &Silent,
        tries: &Tries::new(Some(0)),
        shared: &Shared::alone(options),
        saved: None,
    };
    let origin = origin(sources)?;
    let host = if let Origin::Remote(host, _) = &origin { Some(host) } else { None };
    let names = listed.map(|listed| initiator.names(listed, host)).transpose()?;
    Ok(match origin {
        Origin::Local(sources) => {
            let directory = names.is_some() || sources.len() > 1;
            Chosen::Here(source::choose(sources, names, options)?, directory)
        }
        Origin::Remote(host, paths) => Chosen::There(host, paths, names),
    })
}

/// What the runs to all hosts have in common.
struct HostsRun<'a> {
    sources: &'a Chosen,
    options: &'a Options,
    remote: &'a RemoteOptions,
    shared: &'a Shared,
    together: Option<&'a Arc<Together>>,
    reporter: &'a dyn HostsReporter,
}

/// Whether a host has the image: also one on which an attribute could not be set.
fn has_it(summary: Option<&Summary>) -> bool {
    summary.is_some_and(|summary| summary.stats.files_failed == 0)
}

/// A host that is begun: dropped, it will come to no end.
struct Lost<'a>(Option<&'a Arc<Together>>);

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|together| together.give_up("a host came to no end here".into()));
    }
}

impl HostsRun<'_> {
    /// Sends to all hosts, to so many at once; what became of each, in their order.
    fn send_all(&self, deployment: &Deployment, jobs: usize) -> Vec<Verdict> {
        let names = deployment.names();
        let next = AtomicUsize::new(0);
        let verdicts = Mutex::new(Vec::new());
        // Who waits for others is no job.
        let threads = if self.together.is_some() { names.len() } else { jobs };
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let work = || {
                    while let at = next.fetch_add(1, Ordering::Relaxed)
                        && let (Some((host, path)), Some(name)) =
                            (deployment.destinations.get(at), names.get(at))
                        && (self.together.is_some() || !remote::is_interrupted())
                    {
                        // Others wait for it, also where it comes to no end.
                        let lost = Lost(self.together);
                        let verdict = self.send(at, host, path, name);
                        self.tell(&verdict);
                        std::mem::forget(lost);
                        lock(&verdicts).push(verdict);
                    }
                };
                if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, work) {
                    let why = format!("no thread can be started for each host: {}", in_words(&error));
                    self.together.iter().for_each(|together| together.give_up(why.clone()));
                    // Those that run take the other hosts as well.
                    work();
                    break;
                }
            }
        });
        let mut verdicts = std::mem::take(&mut *lock(&verdicts));
        verdicts.sort_by_key(|verdict| verdict.at);
        verdicts
    }

    /// A host is through: the user is told, and then those who wait for it.
    fn tell(&self, verdict: &Verdict) {
        let has_failed = verdict.failure.is_some();
        let is_decided = self.together.is_some_and(|together| together.has_decided_for(verdict.at));
        // What broke off because a signal came is told as that alone, unless it should not have.
        if !(has_failed && remote::is_interrupted() && !is_decided) {
            self.reporter.ended(verdict);
        }
        let lacks_it = has_failed && !has_it(verdict.summary.as_ref());
        self.together.iter().for_each(|together| together.ended(verdict.at, lacks_it));
    }

    /// Sends to one host, as a run to it alone would.
    fn send(&self, at: usize, host: &Host, path: &Path, name: &str) -> Verdict {
        let ends = Ends { host: Some(host.to_string()), verifies: self.options.verify, ..Ends::default() };
        let shown = self.reporter.part(&ends, name, path);
        let seat = self.together.map(|together| together.seat(at));
        let (summary, error) = match self.attempt(seat.as_ref(), host, path, &*shown) {
            Ok((summary, ended)) => (Some(summary), ended.err()),
            Err(error) => (None, Some(error)),
        };
        let host = host.to_string();
        let failure = error.map(|error| {
            let failure = error.as_failure();
            let failure = if failure.host.is_some() { failure } else { failure.on(&host) };
            match &seat {
                Some(seat) if !has_it(summary.as_ref()) => seat.explained(failure),
                _ => failure,
            }
        });
        Verdict { at, host, name: name.into(), path: path.into(), summary, failure }
    }

    /// What was done, and whether some of it failed. `seat`: its place among those that wait for each
    /// other.
    fn attempt(
        &self,
        seat: Option<&Seat>,
        host: &Host,
        path: &Path,
        shown: &dyn Reporter,
    ) -> Result<(Summary, Result<()>)> {
        let start = Instant::now();
        let first = KeepsFirst::new(shown);
        let HostsRun { options, remote, shared, .. } = *self;
        let tries = &Tries::of(options, remote.retries)?;
        let shared = &shared.of(seat.cloned());
        let initiator = Initiator { options, remote, reporter: &first, tries, shared, saved: None };
        if let Some(note) = seat.and_then(Seat::note) {
            first.event(Event::Warning(&Warning::new(note)));
        }
        let send = || {
            let _turn = seat.map(Seat::begin).transpose()?;
            match self.sources {
                Chosen::Here(sources, directory) => initiator.send(sources, *directory, host, path),
                Chosen::There(from, paths, names) => {
                    let from = FarSources { host: from, paths, listed: names.as_ref() };
                    initiator.pass_on(&from, host, path)
                }
            }
        };
        let summary = initiator.summary(start, tries.run_until_done(&first, send)?);
        first.summary(&summary);
        let ended = first.verdict(&summary.stats);
        Ok((summary, ended))
    }
}
