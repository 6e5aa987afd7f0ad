//! The initiator: chooses the way to the other end and takes its role. The responder that
//! it talks to is in `sync/agent.rs`, a run with both ends here in `sync/local.rs`.

mod agent;
mod between;
mod hosts;
mod list;
mod local;
mod origin;
mod pull;
mod retry;
mod saved;
mod since;
mod stdin;
pub mod survey;
mod takeover;
mod through;
mod together;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::confinement::{NamedPath, RequestPath};
use crate::error::{Error, Result};
use crate::hashmap::ahead::Likely;
use crate::hashmap::cache::MapCache;
use crate::hashmap::map_file::SavedMap;
use crate::hashmap::shared::SharedMaps;
use crate::hashmap::since::Since;
use crate::location::{Host, Location};
use crate::options::Options;
use crate::protocol::{
    Connection, FrameReader, FrameWriter, Message, Pace, Request, RunId, Silence, TimedReader, TimedWriter,
};
use crate::receiver::{self, Answerer, Asides, Target};
use crate::remote::{self, FarSide, Incoming, Input, Outgoing, Output, Ssh};
use crate::report::{Event, KeepsFirst, Reporter, Route, Stats, Summary, Traffic, human};
use crate::sender::{self, Hasher, Side};
use crate::shell;
use crate::source::{self, Asked};

pub use crate::remote::{Addresses, Agent, Cipher, RemoteOptions};
pub use agent::serve;
use between::FarSources;
pub use hosts::{Deployment, deploy};
pub use list::list;
pub use origin::names::{FilesFrom, ListPlace};
use origin::{Origin, names, origin};
pub use pull::{Pulling, pull};
use retry::Tries;
pub use survey::digest;
pub use through::through;
use together::Seat;

/// How much data has to go to a shell before an agent is suggested.
const WORTH_AN_AGENT: u64 = 64 << 20;

/// Makes `destination` equal to `sources`, or to what a list names below the only one, and
/// reports it. `save`: where the map of the image that is sent is put when the destination has it.
///
/// # Errors
///
/// What ends the run; [`Error::Partial`] when some files failed.
pub fn run(
    sources: &[Location],
    listed: Option<&FilesFrom>,
    destination: &Location,
    save: Option<&Path>,
    options: &Options,
    remote: &RemoteOptions,
    reporter: &dyn Reporter,
) -> Result<()> {
    let start = Instant::now();
    let tries = &Tries::of(options, remote.retries)?;
    let first = KeepsFirst::new(reporter);
    let reporter: &dyn Reporter = &first;
    let saved = &save.map(SavedMap::open).transpose()?;
    let saved = saved.as_ref();
    if let Some(saved) = saved {
        saved::check(saved, sources, listed, destination)?;
    }
    let since = since::open(sources, listed, Some(destination), options)?;
    let shared = &Shared { since, ..Shared::alone(options) };
    let initiator = Initiator { options, remote, reporter, tries, shared, saved };
    if sources.iter().any(stdin::is_stdin) {
        stdin::check(sources, listed, options, remote)?;
        let completed = initiator.send_stdin(destination)?;
        return initiator.conclude(start, completed, &first);
    }
    let origin = origin(sources)?;
    let other_end = match (&origin, destination) {
        (Origin::Remote(host, _), _) | (_, Location::Remote(host, _)) => Some(host),
        _ => None,
    };
    let names = listed.map(|listed| initiator.names(listed, other_end)).transpose()?;
    let completed = match (origin, destination) {
        (Origin::Local(sources), Location::Local(path)) => {
            let target = initiator.target(path, names.is_some() || sources.len() > 1)?;
            let sources = source::choose(sources, names, options)?;
            Completed::here(local::run(&sources, target, options, (reporter, saved))?)
        }
        (Origin::Local(sources), Location::Remote(host, path)) => {
            let directory = names.is_some() || sources.len() > 1;
            let sources = source::choose(sources, names, options)?;
            tries.run_until_done(reporter, || initiator.send(&sources, directory, host, path))?
        }
        (Origin::Remote(host, paths), Location::Local(path)) => {
            tries.run_until_done(reporter, || initiator.receive(&host, &paths, names.as_ref(), path))?
        }
        (Origin::Remote(host, paths), Location::Remote(to, path)) => {
            let from = FarSources { host: &host, paths: &paths, listed: names.as_ref() };
            tries.run_until_done(reporter, || initiator.pass_on(&from, to, path))?
        }
    };
    initiator.conclude(start, completed, &first)?;
    // A dry run has nothing to save.
    saved.filter(|_| !options.dry_run).map_or(Ok(()), SavedMap::put)
}

/// The file that the only one of these sources becomes, if there is one.
fn file_below(destination: &Path, sources: &[Vec<u8>]) -> Option<PathBuf> {
    let [source] = sources else { return None };
    let name = Path::new(OsStr::from_bytes(source)).file_name();
    let path = if destination.is_dir() { destination.join(name?) } else { destination.to_path_buf() };
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_file()).then_some(path)
}

/// The result of a run that was completed, and the route that it took.
#[derive(Clone)]
struct Completed<T> {
    value: T,
    route: Route,
    /// Bytes sent and received.
    wire: (u64, u64),
}

impl<T> Completed<T> {
    /// A run with both ends on this machine.
    fn here(value: T) -> Completed<T> {
        Completed { value, route: Route::Local, wire: (0, 0) }
    }
}

/// What every route has to know.
#[derive(Clone, Copy)]
struct Initiator<'a> {
    options: &'a Options,
    remote: &'a RemoteOptions,
    reporter: &'a dyn Reporter,
    tries: &'a Tries,
    shared: &'a Shared,
    /// What the map of the image is saved as.
    saved: Option<&'a SavedMap>,
}

/// What runs to several hosts have in common.
struct Shared {
    /// How fast what is sent may go.
    pace: Arc<Pace>,
    /// What is hashed here once for all of them.
    maps: Option<Arc<SharedMaps>>,
    /// What the only source was made from.
    since: Option<Arc<Since>>,
    /// The place of a host among those that put a file in place together.
    seat: Option<Seat>,
}

impl Shared {
    /// That of a run by itself.
    fn alone(options: &Options) -> Shared {
        let pace = Arc::<Pace>::default();
        pace.limit(options.bandwidth);
        Shared { pace, maps: None, since: None, seat: None }
    }

    /// The same for one of them.
    fn of(&self, seat: Option<Seat>) -> Shared {
        let Shared { pace, maps, since, .. } = self;
        Shared { pace: Arc::clone(pace), maps: maps.clone(), since: since.clone(), seat }
    }
}

impl Initiator<'_> {
    /// `directory`: the destination must be one.
    fn send(
        self,
        sources: &[NamedPath],
        directory: bool,
        host: &Host,
        path: &Path,
    ) -> Result<Completed<Stats>> {
        let Initiator { options, remote, .. } = self;
        let target = self.target(path, directory)?;
        let request = Request::Receive { destination: path.into(), directory: target.directory };
        let likely = match sources {
            // Of several, it is not known which the receiver wants.
            [source] if remote.agent != Agent::None => Some(source.path()),
            _ => None,
        };
        let hasher =
            Some(Hasher::start(options, likely, self.shared.maps.clone(), self.shared.since.clone()));
        let completed =
            self.connect(host, options.silence(), |far_side, input, mut output| match far_side {
                FarSide::Agent => {
                    let Some(seat) = &self.shared.seat else {
                        self.request(&mut output, request)?;
                        return sender::run(self.connection(input, output), sources, hasher, Side::Initiator);
                    };
                    self.request(&mut output, seat.request(host, &target, input.version())?)?;
                    sender::run_together(self.connection(input, output), sources, hasher, seat)
                }
                FarSide::Shell if self.shared.seat.is_some() => Err(together::no_holesync(host)),
                FarSide::Shell => {
                    drop(hasher);
                    self.refuse_to_save(host)?;
                    let host = host.to_string();
                    remote::note_shell();
                    shell::send(self.shell_session(input, output, &host), sources, &target)
                        .map_err(Error::by_shell)
                }
            })?;
        self.suggest_agent(&completed, host);
        Ok(completed)
    }

    /// Receives sources that are on a host, or what is `listed` below the only one.
    fn receive(
        self,
        host: &Host,
        paths: &[Vec<u8>],
        listed: Option<&Vec<Vec<u8>>>,
        path: &Path,
    ) -> Result<Completed<Stats>> {
        let Initiator { options, remote, .. } = self;
        let target = self.target(path, listed.is_some() || paths.len() > 1)?;
        let sources = paths.iter().map(|path| NamedPath::here(OsStr::from_bytes(path))).collect();
        let asked = Asked::of(&source::choose(sources, listed.cloned(), options)?, options);
        let target = Target { asked: Some(asked), ..target };
        let is_plain = listed.is_none() && !options.directories.relative;
        let compares = remote.agent != Agent::None && !options.whole_file && is_plain;
        let old = if compares { file_below(path, paths) } else { None };
        let maps = MapCache::open(options).map(Arc::new);
        let likely = old.map(|path| Likely { path, block: options.block_size, hole_map: true, maps });
        std::thread::scope(|scope| {
            let answerer = likely.map(|likely| Answerer::start(scope, Some(likely)));
            self.connect(host, options.silence(), |far_side, input, mut output| match far_side {
                FarSide::Agent => {
                    let sources = paths.iter().cloned().map(RequestPath::from).collect();
                    self.request(&mut output, Request::Send { sources, listed: listed.is_some() })?;
                    if let Some(names) = listed {
                        names::send(&mut output, names.clone())?;
                    }
                    receiver::run(self.connection(input, output), target, answerer)
                }
                FarSide::Shell => {
                    drop(answerer);
                    if listed.is_some() {
                        return Err(names::needs_agent("--files-from", host));
                    }
                    self.refuse_to_save(host)?;
                    let host = host.to_string();
                    remote::note_shell();
                    shell::receive(self.shell_session(input, output, &host), paths, &target)
                        .map_err(Error::by_shell)
                }
            })
        })
    }

    /// `directory`: it must be one.
    fn target(self, path: &Path, directory: bool) -> Result<Target> {
        let slash = path.as_os_str().as_bytes().ends_with(b"/");
        let here = |path: RequestPath| Ok(NamedPath::here(path.into_path()));
        let asides = Asides::find(self.options, here)?;
        Ok(Target { asides, ..Target::new(NamedPath::here(path), slash || directory, self.remote.umask) })
    }

    fn connection<'a>(&'a self, input: Input, output: Output) -> Connection<'a, Incoming, Outgoing> {
        let Initiator { options, reporter, saved, .. } = *self;
        Connection { input, output, options, reporter, saved }
    }

    /// Nobody hashes what goes to a shell, or comes from one.
    fn refuse_to_save(self, host: &Host) -> Result<()> {
        self.saved.map_or(Ok(()), |_| Err(names::needs_agent("--save-map", host)))
    }

    fn shell_session<'a>(&'a self, input: Input, output: Output, host: &'a str) -> shell::ShellSession<'a> {
        shell::ShellSession { input, output, options: self.options, host, reporter: self.reporter }
    }

    /// Reaches the other end, takes part as `role` does, and ends the connection. An agent
    /// there may be silent for so long.
    fn connect<T>(
        self,
        host: &Host,
        agent_silence: Option<Duration>,
        role: impl FnOnce(FarSide, Input, Output) -> Result<T>,
    ) -> Result<Completed<T>> {
        let Initiator { remote, reporter, .. } = self;
        let (command, program) = remote::command(remote)?;
        let ssh = Ssh::prepare(host, remote, self.options.silence(), reporter)?;
        self.tries.connecting(ssh.is_batch);
        let (connection, stdout, stdin) = remote::connect(host, remote, &ssh.options, &command, program)?;
        let peer = host.to_string();
        let silence = Arc::<Silence>::default();
        silence.limit_start((remote.contimeout > 0).then(|| Duration::from_secs(remote.contimeout.into())));
        let mut input = FrameReader::new(TimedReader::new(stdout, Arc::clone(&silence)), &peer);
        let stdin = TimedWriter::new(stdin, Arc::clone(&silence)).paced(&self.shared.pace);
        let mut output = FrameWriter::direct(stdin, &peer);
        let traffic = Traffic { sent: output.sent(), received: input.received() };
        let mut route = Route::Agent;
        let bootstrapped = remote::bootstrap(&mut input, &mut output, &silence, host, remote, reporter);
        let result = bootstrapped.and_then(|found| {
            self.tries.answered();
            reporter.event(Event::Connected(&traffic));
            // A dry run leaves nothing, here either.
            if let (None, Cipher::Auto, Some(aes), false) =
                (&remote.rsh, remote.cipher, found.aes, remote.dry_run)
            {
                remote::remember_aes(host, aes);
            }
            // A shell says nothing while a tool works.
            silence.limit(agent_silence.filter(|_| found.far_side == FarSide::Agent));
            if found.far_side == FarSide::Shell {
                route = Route::Shell;
            }
            role(found.far_side, input, output)
        });
        let result = connection.finish(result);
        let wire =
            self.tries.wire(traffic.sent.load(Ordering::Relaxed), traffic.received.load(Ordering::Relaxed));
        Ok(Completed { value: result?, route, wire })
    }

    /// Sends an agent its request, with the options.
    fn request(self, output: &mut Output, request: Request) -> Result<()> {
        self.request_in(self.tries.run(), output, request)
    }

    /// The same, and what tells this run from others.
    fn request_in(self, run: Option<RunId>, output: &mut Output, request: Request) -> Result<()> {
        output.message(&Message::Start(Box::new(self.travelling_options()?), request, run))?;
        output.flush()
    }

    /// The options, for another machine.
    fn travelling_options(self) -> Result<Options> {
        if self.options.filter.can_travel() {
            return Ok(self.options.clone());
        }
        let what =
            "there are more filter rules than can be sent to another machine: at most 40 KiB of patterns";
        Err(Error::Usage(what.into()))
    }

    /// Warns a user who sends much to a shell, which compares nothing by itself.
    fn suggest_agent(self, completed: &Completed<Stats>, host: &Host) {
        let sent = completed.value.sent_data_bytes;
        if completed.route == Route::Shell && self.remote.agent == Agent::Auto && sent > WORTH_AN_AGENT {
            let what = format!(
                "{} went to the shell on {host}, which has no holesync: with --agent=push only what differs would travel",
                human(sent)
            );
            self.reporter.event(Event::Hint(&what));
        }
    }

    /// Summarizes a run, and tells whether something failed.
    fn conclude(self, start: Instant, completed: Completed<Stats>, first: &KeepsFirst) -> Result<()> {
        let summary = self.summary(start, completed);
        self.reporter.summary(&summary);
        first.verdict(&summary.stats)
    }

    fn summary(self, start: Instant, completed: Completed<Stats>) -> Summary {
        let (wire_sent, wire_received) = completed.wire;
        Summary {
            stats: completed.value,
            tries: self.tries.count(),
            wire_sent,
            wire_received,
            route: completed.route,
            elapsed: start.elapsed(),
            dry_run: self.options.dry_run,
        }
    }
}
