//! The initiator: chooses the way to the other end and takes its role.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout};
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::agent;
use crate::error::{Error, Result, code};
use crate::frames::{FrameReader, FrameWriter};
use crate::hashmap::Hash;
use crate::local;
use crate::location::{Host, Location};
use crate::options::Options;
use crate::protocol::{Frame, MAX_NOISE, Message, Request};
use crate::receiver::{self, Target};
use crate::report::{Event, Reporter, Route, Summary};
use crate::sender::{self, Side};
use crate::transport;

/// How to reach the other end.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// The command that reaches a host; ssh unless given.
    pub rsh: Option<String>,
    /// What to run there; `holesync` in its PATH unless given.
    pub remote_path: Option<String>,
    /// The umask of this process.
    pub umask: u32,
}

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
            let (stats, wire) = with_agent(host, options, request, reach, reporter, |input, output| {
                sender::run(input, output, &sources, options, Side::Initiator, reporter)
            })?;
            (stats, Route::Agent, wire)
        }
        (Origin::Remote(host, paths), Location::Local(path)) => {
            let target = target(path, paths.len(), reach);
            let request = Request::Send { sources: paths };
            let (stats, wire) = with_agent(&host, options, request, reach, reporter, |input, output| {
                receiver::run(input, output, target, options, reporter)
            })?;
            (stats, Route::Agent, wire)
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
            let answer =
                with_agent(host, options, request, reach, reporter, |mut input, _output| {
                    match input.read()? {
                        Frame::Message(Message::Digest { root }) => Ok(root),
                        _ => Err(input.bad("something else than a hash")),
                    }
                });
            answer.map(|(root, _)| root)
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

type Input = FrameReader<ChildStdout>;
type Output = FrameWriter<ChildStdin>;

/// Starts an agent, tells it what is wanted and plays the other role against
/// it. Returns what that came to, with the bytes sent and received.
fn with_agent<T>(
    host: &Host,
    options: &Options,
    request: Request,
    reach: &Reach,
    reporter: &dyn Reporter,
    role: impl FnOnce(Input, Output) -> Result<T>,
) -> Result<(T, (u64, u64))> {
    let (connection, stdout, stdin) =
        transport::connect(host, reach.rsh.as_deref(), reach.remote_path.as_deref())?;
    let peer = host.to_string();
    let mut input = FrameReader::new(stdout, &peer);
    let mut output = FrameWriter::new(stdin, &peer);
    let (sent, received) = (output.sent(), input.received());
    let greeted = input.await_greeting(MAX_NOISE).and_then(|version| {
        reporter.event(Event::Note(&format!("holesync answered on {host}, protocol {version}")));
        output.greet()?;
        output.message(&Message::Start(Box::new(options.clone()), request))?;
        output.flush()
    });
    let result = greeted.and_then(|()| role(input, output));
    let value = connection.finish(result)?;
    Ok((value, (sent.load(Ordering::Relaxed), received.load(Ordering::Relaxed))))
}
