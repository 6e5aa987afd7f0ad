//! The initiator: chooses the way to the other end and takes its role.

pub mod agent;
pub mod local;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::error::{Error, Result, code};
use crate::hashmap::Hash;
use crate::hashmap::ahead::Likely;
use crate::location::{Host, Location};
use crate::options::Options;
use crate::protocol::{Connection, Frame, FrameReader, FrameWriter, Message, Request};
use crate::receiver::{self, Answerer, Target};
use crate::remote::bootstrap::{self, Far, Input, Output};
pub use crate::remote::bootstrap::{Agent, Reach};
use crate::remote::child;
use crate::remote::cipher;
pub use crate::remote::cipher::Cipher;
use crate::report::{Event, Phase, Reporter, Route, Stats, Summary, human};
use crate::sender::{self, Hasher, Side};
use crate::shell;
use crate::stream::Outgoing;
use crate::stream::through;

/// Data that went to a shell and is worth a hint at something faster.
const WORTH_A_HINT: u64 = 64 << 20;

/// Makes `destination` equal to `sources` and reports it.
///
/// # Errors
///
/// What ends the run; [`Error::Partial`] when some files failed.
pub fn run(
    sources: &[Location],
    destination: &Location,
    options: &Options,
    reach: &Reach,
    reporter: &dyn Reporter,
) -> Result<()> {
    let start = Instant::now();
    let (stats, route, wire) = match (origin(sources)?, destination) {
        (Origin::Local(sources), Location::Local(path)) => {
            let target = target(path, sources.len(), reach);
            (local::run(&sources, target, options, reporter)?, Route::Local, (0, 0))
        }
        (Origin::Local(sources), Location::Remote(host, path)) => {
            let target = target(path, sources.len(), reach);
            let destination = path.as_os_str().as_bytes().to_vec();
            let request = Request::Receive { destination, directory: target.directory };
            let hasher = match &sources[..] {
                // Of several, it is not known which the receiver wants.
                [source] if reach.agent != Agent::None => Some(Hasher::start(options, Some(source))),
                _ => None,
            };
            let ends = with_far(host, reach, reporter, |far, input, mut output| match far {
                Far::Agent => {
                    ask(&mut output, options, request)?;
                    let connection = Connection { input, output, options, reporter };
                    sender::run(connection, &sources, hasher, Side::Initiator)
                }
                Far::Shell => {
                    drop(hasher);
                    let host = host.to_string();
                    shell::send::run(input, output, &sources, &target, options, &host, reporter)
                }
            })?;
            hint(&ends, host, reach, reporter);
            (ends.value, ends.route, ends.wire)
        }
        (Origin::Remote(host, paths), Location::Local(path)) => {
            let target = target(path, paths.len(), reach);
            let compares = reach.agent != Agent::None && !options.whole_file;
            let old = if compares { file_below(path, &paths) } else { None };
            let ends = std::thread::scope(|scope| {
                let block = options.block_size;
                let likely = old.map(|path| Likely { path, block, hole_map: true });
                let answerer = likely.map(|likely| Answerer::start(scope, Some(likely)));
                with_far(&host, reach, reporter, |far, input, mut output| match far {
                    Far::Agent => {
                        ask(&mut output, options, Request::Send { sources: paths })?;
                        receiver::run(Connection { input, output, options, reporter }, target, answerer)
                    }
                    Far::Shell => {
                        drop(answerer);
                        let host = host.to_string();
                        shell::receive::run(input, output, &paths, &target, options, &host, reporter)
                    }
                })
            })?;
            (ends.value, ends.route, ends.wire)
        }
        (Origin::Remote(..), Location::Remote(..)) => {
            return Err(Error::Usage(
                "source and destination cannot both be remote; run holesync on one of the two hosts".into(),
            ));
        }
    };
    let (wire_sent, wire_received) = wire;
    let elapsed = start.elapsed();
    let dry_run = options.dry_run;
    let failed = stats.files_failed;
    // What failed there may not say how.
    let code = if stats.worst_code == 0 { code::PARTIAL } else { stats.worst_code };
    reporter.summary(&Summary { stats, wire_sent, wire_received, route, elapsed, dry_run });
    if failed > 0 { Err(Error::Partial { failed, code }) } else { Ok(()) }
}

/// Has `command`, run where `destination` is, read the image `source` whole, and
/// reports it.
///
/// # Errors
///
/// When the image cannot be read, the host cannot be reached, or the command fails.
pub fn through(
    source: &Location,
    destination: &Location,
    command: &OsStr,
    options: &Options,
    reach: &Reach,
    reporter: &dyn Reporter,
) -> Result<()> {
    let start = Instant::now();
    let Location::Local(source) = source else {
        return Err(Error::Usage("--through wants a source on this machine".into()));
    };
    if options.dry_run {
        return Err(Error::Usage("--through and --dry-run exclude each other: the command would run".into()));
    }
    let image = Outgoing::open(source, options.hole_map)?;
    let watch = |bytes: &[u8]| reporter.event(Event::Done(Phase::Sending, bytes.len() as u64));
    let (sent, route, wire) = match destination {
        Location::Local(path) => {
            let mut sent = 0;
            through::run(command, path, image.length, |sink| {
                sent = image.pour(sink)?;
                Ok(())
            })?;
            (sent, Route::Local, (0, 0))
        }
        Location::Remote(host, path) => {
            let (command, destination) = (command.as_bytes(), path.as_os_str().as_bytes());
            let ends = with_far(host, reach, reporter, |far, mut input, mut output| match far {
                Far::Shell => shell::receiver::through(
                    input,
                    output,
                    &image,
                    command,
                    destination,
                    &host.to_string(),
                    watch,
                ),
                Far::Agent => {
                    let (command, destination) = (command.to_vec(), destination.to_vec());
                    let request = Request::Through { command, destination, size: image.length };
                    ask(&mut output, options, request)?;
                    let write = |bytes: &[u8]| {
                        watch(bytes);
                        output.plain(bytes)
                    };
                    let sent = image.send(true, write).and_then(|sent| output.flush().map(|()| sent));
                    drop(output);
                    match input.read() {
                        Ok(Frame::Message(Message::End(_))) => sent,
                        Ok(_) => Err(input.bad("something else than the end")),
                        // What the other end says is why nothing could be sent to it.
                        Err(told @ Error::Remote { .. }) => Err(told),
                        Err(error) => sent.and(Err(error)),
                    }
                }
            })?;
            (ends.value, ends.route, ends.wire)
        }
    };
    let stats = Stats { files_total: 1, files_sent: 1, apparent_bytes: image.length, ..Stats::default() };
    let stats = Stats { data_bytes: sent, sent_data_bytes: sent, ..stats };
    let (wire_sent, wire_received) = wire;
    let elapsed = start.elapsed();
    reporter.summary(&Summary { stats, wire_sent, wire_received, route, elapsed, dry_run: false });
    Ok(())
}

/// The root hash of a file here or on a host.
///
/// # Errors
///
/// When it cannot be read, or the host cannot be reached.
pub fn digest(
    location: &Location,
    options: &Options,
    reach: &Reach,
    reporter: &dyn Reporter,
) -> Result<Hash> {
    match location {
        Location::Local(path) => agent::digest(path, options),
        Location::Remote(host, path) => {
            let request = Request::Digest { paths: vec![path.as_os_str().as_bytes().to_vec()] };
            let reach = Reach { agent: Agent::Require, ..reach.clone() };
            let ends = with_far(host, &reach, reporter, |_, mut input, mut output| {
                ask(&mut output, options, request)?;
                match input.read()? {
                    Frame::Message(Message::Digest { root }) => Ok(root),
                    _ => Err(input.bad("something else than a hash")),
                }
            })?;
            Ok(ends.value)
        }
    }
}

/// All sources, which are on one machine.
enum Origin {
    Local(Vec<PathBuf>),
    Remote(Host, Vec<Vec<u8>>),
}

fn origin(sources: &[Location]) -> Result<Origin> {
    let mut local = Vec::new();
    let mut remote: Option<(Host, Vec<Vec<u8>>)> = None;
    for source in sources {
        match source {
            Location::Local(path) => local.push(path.clone()),
            Location::Remote(host, path) => {
                let (first, paths) = remote.get_or_insert_with(|| (host.clone(), Vec::new()));
                if first != host {
                    return Err(Error::Usage(format!(
                        "all sources must be on one machine, not on {first} and {host}"
                    )));
                }
                paths.push(path.as_os_str().as_bytes().to_vec());
            }
        }
    }
    match remote {
        None => Ok(Origin::Local(local)),
        Some((host, paths)) if local.is_empty() => Ok(Origin::Remote(host, paths)),
        Some(_) => Err(Error::Usage("all sources must be on one machine".into())),
    }
}

fn target(path: &Path, sources: usize, reach: &Reach) -> Target {
    let slash = path.as_os_str().as_bytes().ends_with(b"/");
    Target { path: path.to_path_buf(), directory: slash || sources > 1, umask: reach.umask }
}

/// The file that the only one of these sources becomes, if there is one.
fn file_below(destination: &Path, sources: &[Vec<u8>]) -> Option<PathBuf> {
    let [source] = sources else { return None };
    let name = Path::new(OsStr::from_bytes(source)).file_name();
    let path = if destination.is_dir() { destination.join(name?) } else { destination.to_path_buf() };
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_file()).then_some(path)
}

/// What a conversation came to.
struct Ends<T> {
    value: T,
    route: Route,
    /// Bytes sent and received.
    wire: (u64, u64),
}

/// Reaches the other end, takes part as `role` says, and takes leave.
fn with_far<T>(
    host: &Host,
    reach: &Reach,
    reporter: &dyn Reporter,
    role: impl FnOnce(Far, Input, Output) -> Result<T>,
) -> Result<Ends<T>> {
    let (command, program) = bootstrap::command(reach)?;
    // A command that was given is left as it is.
    let choose = reach.rsh.is_none() && reach.cipher == Cipher::Auto;
    let ciphers = if choose { cipher::choose(host, reporter) } else { None };
    let (connection, stdout, stdin) =
        child::connect(host, reach.rsh.as_deref(), ciphers.as_deref(), &command, program)?;
    let peer = host.to_string();
    let mut input = FrameReader::new(stdout, &peer);
    let mut output = FrameWriter::direct(stdin, &peer);
    let (sent, received) = (output.sent(), input.received());
    let mut route = Route::Agent;
    let result = bootstrap::climb(&mut input, &mut output, host, reach, reporter).and_then(|found| {
        if let (true, Some(aes)) = (choose, found.aes) {
            cipher::learn(host, aes);
        }
        if found.far == Far::Shell {
            route = Route::Shell;
        }
        role(found.far, input, output)
    });
    let value = connection.finish(result)?;
    Ok(Ends { value, route, wire: (sent.load(Ordering::Relaxed), received.load(Ordering::Relaxed)) })
}

/// Tells an agent what is wanted of it.
fn ask(output: &mut Output, options: &Options, request: Request) -> Result<()> {
    output.message(&Message::Start(Box::new(options.clone()), request))?;
    output.flush()
}

/// A shell compares nothing by itself: one who sends much may want to know.
fn hint(ends: &Ends<Stats>, host: &Host, reach: &Reach, reporter: &dyn Reporter) {
    let sent = ends.value.sent_data_bytes;
    if ends.route == Route::Shell && reach.agent == Agent::Auto && sent > WORTH_A_HINT {
        let what = format!(
            "{} went to the shell on {host}, which has no holesync: with --agent=push only what differs would travel",
            human(sent)
        );
        reporter.event(Event::Warning(&what));
    }
}
