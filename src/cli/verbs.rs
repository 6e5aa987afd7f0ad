//! What each verb of the command line does.

mod cache;
mod diff;
mod digest;
mod draw;
mod look;
mod manual;
mod many;
mod map;
pub(super) mod output;
mod publish;
mod recover;
mod stores;
mod verify;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use holesync::confinement::{Access, Confinement};
use holesync::error::{Again, Error, Result, code, escape};
use holesync::location::Location;
use holesync::options::{Compress, Options};
use holesync::remote;
use holesync::report::{
    Ends, Event, InOrder, JsonLines, LogFile, Logged, Reporter, Terminal, Verbosity, print_error,
};
use holesync::stream::{self, ImageStream};
use holesync::sync::{self, RemoteOptions};
use holesync::sys;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::reach::{HAS_STORES, without_stores};
use crate::cli::record::Record;
use crate::cli::{Cli, FailedList, Transfer, Verb};
use many::HostsShown;

pub use cache::CacheArgs;
pub use diff::DiffArgs;
pub use digest::DigestArgs;
pub use map::MapArgs;
pub use publish::PublishArgs;
pub use stores::{CheckArgs, PruneArgs, VersionsArgs};
pub use verify::VerifyArgs;

/// The exit code of a command line that makes no sense: of `diff` and
/// `verify`, 1 is that images differ.
pub fn usage_code(arguments: &[OsString]) -> u8 {
    let verb = arguments.get(1).and_then(|word| word.to_str());
    if matches!(verb, Some("diff" | "verify")) { diff::TROUBLE } else { code::USAGE }
}

/// Runs what the command line asks for. Returns the exit code of a run without an error.
///
/// # Errors
///
/// Those that decide the exit code.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let umask = sys::umask();
    sys::raise_open_files();
    let done = match cli.verb {
        None => {
            let readers = Readers { json: cli.transfer.prints_json(), log: None };
            let wanted = cli.transfer.into_transfer(umask).inspect_err(|error| readers.tell(error));
            wanted.and_then(|wanted| logged_transfer(wanted, readers, umask))
        }
        Some(Verb::Agent { root, read_only, write_only, no_delete }) => {
            let confinement = confinement(root.as_deref(), read_only, write_only)?.keeping_all(no_delete);
            end_the_command_on_signals()?;
            let (input, output) = (own(std::io::stdin())?, own(std::io::stdout())?);
            [&input, &output].into_iter().for_each(sys::grow_pipe);
            // The only one that is left: where it is dropped after an error, the other end learns of it.
            nix::unistd::dup2_stdout(std::io::stderr())
                .map_err(|errno| Error::file("use", "stdin and stdout")(errno.into()))?;
            sync::serve(File::from(input), File::from(output), umask, &confinement)
        }
        Some(Verb::Map(map)) => map.run(umask),
        Some(Verb::Diff(diff)) => return diff.run(umask),
        Some(Verb::Verify(verify)) => return verify.run(umask),
        Some(Verb::Digest(digest)) => digest.run(umask),
        Some(Verb::Cache(cache)) => cache.run(),
        Some(Verb::Publish(_) | Verb::Versions(_) | Verb::Check(_) | Verb::Prune(_)) if !HAS_STORES => {
            Err(without_stores())
        }
        Some(Verb::Publish(publish)) => in_a_store(Again::Puts, || publish.run()),
        Some(Verb::Versions(versions)) => in_a_store(Again::Anew, || versions.run()),
        Some(Verb::Check(check)) => in_a_store(Again::Anew, || check.run()),
        Some(Verb::Prune(prune)) => in_a_store(Again::Anew, || prune.run()),
        Some(Verb::Send { image, end }) => send(&image, end),
        Some(Verb::Recv { file, size, no_fsync, force_in_use }) => {
            let options = Options { fsync: !no_fsync, force_in_use, ..Options::default() };
            let input = File::from(own(std::io::stdin())?);
            if file == Path::new("-") {
                stream::expand(input, File::from(own(std::io::stdout())?), size)
            } else {
                stream::receive_file(input, &file, size, options, umask, warn)
            }
        }
        Some(Verb::Manual { dir }) => manual::run(&dir),
        Some(Verb::Recover { paths, no_fsync, force_in_use }) => {
            recover::run(&paths, &Options { fsync: !no_fsync, force_in_use, ..Options::default() })
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn confinement(root: Option<&Path>, read_only: bool, write_only: bool) -> Result<Confinement> {
    let access = match (read_only, write_only) {
        (true, _) => Access::ReadOnly,
        (_, true) => Access::WriteOnly,
        _ => Access::Full,
    };
    root.map_or_else(|| Ok(Confinement::default()), |root| Confinement::below(root, access))
}

/// Does `work` for each item, also after one that failed. The last failure is that of the
/// run; those before it are shown here.
pub(super) fn each<T>(
    items: impl IntoIterator<Item = T>,
    mut work: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let mut result = Ok(());
    for error in items.into_iter().filter_map(|item| work(item).err()) {
        if let Err(earlier) = std::mem::replace(&mut result, Err(error)) {
            // A failure to write to stderr cannot be shown anywhere else.
            let _ = writeln!(std::io::stderr(), "holesync: {}", escape(earlier.to_string().as_bytes()));
        }
    }
    result
}

/// Stdin or stdout without the buffer and the lock that std puts around it.
fn own(stream: impl std::os::fd::AsFd) -> Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned().map_err(Error::file("use", "stdin and stdout"))
}

/// Runs what looks at a store or changes it. A signal ends that with its words and its code.
fn in_a_store(again: Again, run: impl FnOnce() -> Result<()>) -> Result<()> {
    AGAIN.get_or_init(|| again);
    stop_on_signals(Readers { json: false, log: None })?;
    run().map_err(why_it_ended)
}

/// Why the run was asked to end before it was done.
static ENDING: OnceLock<Ending> = OnceLock::new();
/// What the same command does once more, where that is not what a transfer does.
static AGAIN: OnceLock<Again> = OnceLock::new();

#[derive(Debug, Clone, Copy)]
enum Ending {
    Signal,
    Time,
}

impl Ending {
    fn error(self) -> Error {
        let again = AGAIN.get().copied().unwrap_or_else(remote::again);
        match self {
            Ending::Signal => Error::Interrupted(again),
            Ending::Time => Error::TimeIsUp(again),
        }
    }
}

/// What reads how a run ended, besides people.
#[derive(Clone)]
struct Readers {
    json: bool,
    log: Option<Arc<LogFile>>,
}

impl Readers {
    /// Tells what ended the run. Behind failures of single files and hosts a program has the summary.
    fn tell(&self, error: &Error) {
        if let Some(log) = &self.log {
            log.ended(error);
        }
        if self.json && !matches!(error, Error::Partial { .. } | Error::Hosts { .. }) {
            print_error(error);
        }
    }
}

fn logged_transfer(wanted: Transfer, readers: Readers, umask: u32) -> Result<()> {
    let log = wanted.record.log.as_ref().map(|(path, _)| LogFile::open(path)).transpose();
    let log = log.inspect_err(|error| readers.tell(error))?;
    let readers = Readers { log: log.map(Arc::new), ..readers };
    transfer(wanted, &readers, umask).inspect_err(|error| readers.tell(error))
}

fn transfer(transfer: Transfer, readers: &Readers, umask: u32) -> Result<()> {
    stop_on_signals(readers.clone())?;
    transfer.limit.into_iter().for_each(|limit| stop_after(limit, readers.clone()));
    if let Some(threads) = transfer.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global();
        pool.map_err(|error| Error::Usage(format!("cannot start {threads} threads: {error}")))?;
    }
    let ends = ends(&transfer);
    let remote = RemoteOptions {
        retries: transfer.retries,
        dry_run: transfer.options.dry_run,
        no_map_cache: !transfer.options.map_cache,
        forward_agent: transfer.between.forward_agent,
        relay: transfer.between.relay,
        ..transfer.remote.options(transfer.agent, umask)
    };
    let listed = transfer.listed.as_ref();
    if let Some(several) = &transfer.several {
        // A dry run makes nobody equal.
        let list = match transfer.options.dry_run {
            true => None,
            false => FailedList::begin(several, &transfer.sources)?,
        };
        let deployment = &several.deployment;
        let reporter = HostsShown::new(readers, transfer.show, transfer.record, &deployment.names(), list);
        let sent = sync::deploy(&transfer.sources, listed, deployment, &transfer.options, &remote, &reporter);
        return sent.map_err(why_it_ended);
    }
    let reporter = reporter(readers, transfer.show, transfer.record, &ends);
    let reporter = reporter.as_ref();
    tell_choices(&transfer.options, reporter);
    if HAS_STORES && let (Some(pulling), Some(destination)) = (&transfer.pulling, &transfer.destination) {
        let pulled = sync::pull(pulling, destination, &transfer.options, umask, reporter);
        return pulled.map_err(why_it_ended);
    }
    let result = match (&transfer.through, transfer.sources.as_slice(), &transfer.destination) {
        (_, sources, None) => sync::list(sources, listed, &transfer.options, &remote, reporter),
        (Some(command), [source], Some(destination)) => {
            sync::through(source, destination, command, &transfer.options, &remote, reporter)
        }
        (Some(_), ..) => Err(Error::Usage("--through wants one source: the command reads one image".into())),
        (None, sources, Some(destination)) => {
            let save = transfer.save_map.as_deref();
            sync::run(sources, listed, destination, save, &transfer.options, &remote, reporter)
        }
    };
    result.map_err(why_it_ended)
}

/// The error of a run, or that it was asked to end.
fn why_it_ended(error: Error) -> Error {
    match ENDING.get() {
        Some(ending) => ending.error(),
        None if remote::is_interrupted() => Ending::Signal.error(),
        None => error,
    }
}

/// Tells how data is compared and compressed, as rsync does of what two ends agree on.
fn tell_choices(options: &Options, reporter: &dyn Reporter) {
    reporter.event(Event::Choice("checksum: blake3"));
    let level = || options.compress_level.map_or("3".into(), |level| level.to_string());
    reporter.event(Event::Choice(&match options.compress {
        Compress::Zstd => format!("compress: zstd (level {})", level()),
        Compress::Auto => "compress: zstd where it pays".into(),
        Compress::None => "compress: none".into(),
    }));
}

/// Between whom a run goes on.
fn ends(transfer: &Transfer) -> Ends {
    let host = |location: &Location| match location {
        Location::Remote(host, _) => Some(host.to_string()),
        Location::Local(_) => None,
    };
    let (to, from) = (transfer.destination.as_ref().and_then(host), transfer.sources.first().and_then(host));
    let verifies = transfer.options.verify;
    Ends { pulls: to.is_none(), host: to.or(from), verifies, reads: false }
}

/// What shows the run, and writes it down.
fn reporter(readers: &Readers, show: Verbosity, record: Record, ends: &Ends) -> Box<dyn Reporter> {
    let shown: Box<dyn Reporter> = if readers.json {
        Box::new(JsonLines::new(ends))
    } else {
        Box::new(Terminal::new(show, ends).with_lines(record.lines.clone()))
    };
    written_down(readers, record, None, shown)
}

/// The same, and what writes it down; of one of several hosts, which has a name.
fn written_down(
    readers: &Readers,
    record: Record,
    name: Option<&str>,
    shown: Box<dyn Reporter>,
) -> Box<dyn Reporter> {
    let has_lines = record.lines.is_some() && !readers.json;
    match (&readers.log, record.log) {
        (Some(log), Some((_, lines))) => {
            Box::new(InOrder::new(Box::new(Logged::new(Arc::clone(log), lines, name, shown))))
        }
        _ if has_lines => Box::new(InOrder::new(shown)),
        _ => shown,
    }
}

/// The signals that ask to stop. A hangup that is ignored, as below nohup(1), stays so.
fn ending_signals() -> Result<Signals> {
    let mut signals = vec![SIGINT, SIGTERM];
    if !sys::is_ignored(SIGHUP) {
        signals.push(SIGHUP);
    }
    let register = || -> io::Result<Signals> {
        for signal in &signals {
            signal_hook::flag::register(*signal, remote::interruption())?;
        }
        Signals::new(&signals)
    };
    register().map_err(Error::file("listen for", "signals"))
}

/// Ends the run on the first signal.
fn stop_on_signals(readers: Readers) -> Result<()> {
    let mut signals = ending_signals()?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            stop(Ending::Signal, &readers);
        }
    });
    Ok(())
}

/// Ends the run when its time is over.
fn stop_after(limit: Duration, readers: Readers) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        stop(Ending::Time, &readers);
    });
}

/// Closes the connection, which ends the run by itself. A run that does not end soon is
/// ended: the next one goes on from any point.
fn stop(ending: Ending, readers: &Readers) {
    const GRACE: Duration = Duration::from_millis(700);
    let error = ENDING.get_or_init(|| ending).error();
    remote::interrupt();
    std::thread::sleep(GRACE);
    readers.tell(&error);
    let _ = writeln!(std::io::stderr(), "holesync: {error} (code {})", error.exit_code());
    std::process::exit(error.exit_code().into());
}

/// Stops the command of an agent that is stopped: it must not take the part of its image
/// that came for the whole.
fn end_the_command_on_signals() -> Result<()> {
    let mut signals = ending_signals()?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            remote::interrupt();
            // This ends the process.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
    Ok(())
}

/// Writes an image to stdout as a stream of records.
fn send(image: &Path, end: bool) -> Result<()> {
    let mut out = File::from(own(std::io::stdout())?);
    let image = ImageStream::open(image, true)?;
    let sent = image.send(end, |bytes| out.write_all(bytes).map_err(Error::file("write to", "stdout")));
    sent.map(drop)
}

/// Shows something on stderr that is no failure.
fn warn(text: &str) {
    // There is nowhere else to show it.
    let _ = writeln!(std::io::stderr(), "holesync: {}", escape(text.as_bytes()));
}

/// Prints a line. A reader that is gone is an error, as for any filter.
pub(super) fn print_line(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").map_err(Error::file("write to", "stdout"))
}
