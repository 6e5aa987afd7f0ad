//! The responder: greets, reads a request, and takes the other role, as far as it is not
//! confined. It works over any
//! pair of streams; `holesync agent` gives it stdin and stdout.

mod onward;
mod witness;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use crate::confinement::{Confinement, NamedPath, RequestPath};
use crate::error::{Again, Error, Result};
use crate::hashmap::{self, Grid, Hash};
use crate::options::Options;
use crate::protocol::{
    Connection, FrameReader, FrameWriter, MAX_NOISE, MAX_SOURCES, Message, Pace, Request, RunId, Silence,
    TimedReader, TimedWriter,
};
use crate::receiver::{self, Asides, Target};
use crate::remote;
use crate::report::{Phase, Silent};
use crate::scan::{self, FileImage};
use crate::sender::{self, Side};
use crate::source;
use crate::stream;
use crate::sync::{names, stdin, survey, takeover};

/// The name of the other end in errors.
const PEER: &str = "the initiator";

/// Serves one request.
///
/// # Errors
///
/// [`Error::Reported`] when a request fails: that was reported to the initiator, if it could
/// be. Other errors before there is a request.
pub fn serve<R: Read + AsFd + Send + 'static, W: Write + AsFd + Send>(
    input: R,
    output: W,
    umask: u32,
    confinement: &Confinement,
) -> Result<()> {
    let silence = Arc::<Silence>::default();
    silence.limit(Some(Duration::from_secs(Options::TIMEOUT.into())));
    let mut input = FrameReader::new(TimedReader::new(input, Arc::clone(&silence)), PEER);
    let pace = Arc::<Pace>::default();
    let output = TimedWriter::new(output, Arc::clone(&silence)).paced(&pace);
    let mut output = FrameWriter::direct(output, PEER);
    output.greet(remote::aes_here(), true)?;
    // What is meant for a shell may come before the greeting: here there is none.
    let greeting = input.await_greeting(MAX_NOISE)?;
    let me = onward::Me { confinement, umask };
    let asked = onward::await_request(&mut input, &mut output, &silence, greeting.map_cache, &me)?;
    let Some((mut options, request, run)) = asked else { return Ok(()) };
    pace.limit(options.bandwidth);
    // A stream of records has no room for signs of life.
    silence.limit(options.silence().filter(|_| !matches!(request, Request::Through { .. })));
    if let Request::Together { run, .. } = &request {
        options.together = Some(*run);
    }
    let resumes =
        matches!(request, Request::Receive { .. } | Request::Together { .. } | Request::Send { .. });
    let names = match request {
        Request::Send { listed: true, .. } => Some(names::receive(&mut input)?),
        _ => None,
    };
    let admitted = confinement.allow(&options).and_then(|()| admit(request, names, &options, confinement));
    let served = match admitted {
        Ok(admitted) => {
            if let Some(run) = run.filter(|_| resumes) {
                replace_earlier(&run, &options, &mut output)?;
                takeover::end_when_asked(run, silence);
            }
            perform(admitted, &options, input, output, umask)
        }
        Err(error) => {
            output.give_up(&error);
            Err(error)
        }
    };
    served.map_err(|error| Error::Reported { code: error.exit_code() })
}

/// A request that the confinement allows, with paths that can be opened.
enum Admitted {
    Receive { destination: NamedPath, directory: bool, asides: Asides },
    Send { sources: Vec<NamedPath> },
    Names { path: NamedPath, nul_separated: bool },
    Digest { paths: Vec<NamedPath> },
    Survey { path: NamedPath },
    Image { destination: NamedPath },
    Through { command: OsString, destination: PathBuf, size: u64 },
}

/// `listed`: names that came behind the request.
fn admit(
    request: Request,
    listed: Option<Vec<Vec<u8>>>,
    options: &Options,
    confinement: &Confinement,
) -> Result<Admitted> {
    Ok(match request {
        Request::Receive { destination, directory } | Request::Together { destination, directory, .. } => {
            let asides = Asides::find(options, |path| confinement.writable(path))?;
            Admitted::Receive { destination: confinement.writable(destination)?, directory, asides }
        }
        Request::Send { sources, .. } => {
            Admitted::Send { sources: chosen(sources, listed, options, confinement)? }
        }
        Request::Names { path, nul_separated } => {
            Admitted::Names { path: confinement.readable(path)?, nul_separated }
        }
        Request::Digest { paths } => Admitted::Digest { paths: readable(paths, confinement)? },
        Request::Survey { path } => Admitted::Survey { path: confinement.readable(path)? },
        Request::Image { destination } => Admitted::Image { destination: confinement.writable(destination)? },
        Request::Through { command, destination, size } => Admitted::Through {
            command: OsString::from_vec(command),
            destination: confinement.unconfined(destination)?,
            size,
        },
    })
}

/// Paths that may be read.
fn readable(paths: Vec<RequestPath>, confinement: &Confinement) -> Result<Vec<NamedPath>> {
    if paths.len() > MAX_SOURCES {
        let what = "too many sources".into();
        return Err(Error::Protocol { peer: PEER.into(), what });
    }
    paths.into_iter().map(|path| confinement.readable(path)).collect()
}

/// What is to be sent: sources, or what is `listed` below the only one of them.
fn chosen(
    sources: Vec<RequestPath>,
    listed: Option<Vec<Vec<u8>>>,
    options: &Options,
    confinement: &Confinement,
) -> Result<Vec<NamedPath>> {
    let sources = source::expand_patterns(readable(sources, confinement)?)?;
    source::choose(sources, listed, options)
}

fn perform<R: Read + Send + 'static, W: Write + Send>(
    request: Admitted,
    options: &Options,
    input: FrameReader<R>,
    mut output: FrameWriter<W>,
    umask: u32,
) -> Result<()> {
    match request {
        Admitted::Receive { destination, directory, asides } => {
            let target = Target { asides, ..Target::new(destination, directory, umask) };
            let connection = Connection { input, output, options, reporter: &Silent, saved: None };
            receiver::run(connection, target, None).map(drop)
        }
        Admitted::Send { sources } => {
            let connection = Connection { input, output, options, reporter: &Silent, saved: None };
            sender::run(connection, &sources, None, Side::Responder).map(drop)
        }
        Admitted::Through { command, destination, size } => {
            let mut input = input.into_plain();
            let served = stream::run_command(&command, &destination, size, |sink| {
                let (_, ended) = stream::read_records(&mut input, PEER, Some(size), sink)?;
                let broken = || Error::closed(PEER);
                if ended { Ok(()) } else { Err(broken()) }
            });
            match served {
                Ok(()) => output.message(&Message::End(Box::default())).and_then(|()| output.flush()),
                Err(error) => {
                    output.give_up(&error);
                    Err(error)
                }
            }
        }
        Admitted::Names { path, nul_separated } => {
            let names = names::read_file(&path, nul_separated).inspect_err(|error| output.give_up(error))?;
            names::send(&mut output, names)
        }
        Admitted::Digest { paths } => answer_digests(&paths, options, &mut output),
        Admitted::Survey { path } => survey::answer(&path, options, input, output),
        Admitted::Image { destination } => stdin::answer(&destination, options, umask, input, output),
    }
}

/// Has the agent of an earlier try of this run end, which may hold locks.
fn replace_earlier<W: Write>(run: &RunId, options: &Options, output: &mut FrameWriter<W>) -> Result<()> {
    let mut told = false;
    takeover::end_earlier(run, options.life_sign(), || {
        if !std::mem::replace(&mut told, true) {
            let what = "an earlier try of this run is still at work there, and is waited for";
            output.message(&Message::Warning(what.into()))?;
        }
        output.message(&Message::Busy(Phase::Waiting))?;
        output.flush()
    })
}

fn answer_digests<W: Write>(
    paths: &[NamedPath],
    options: &Options,
    output: &mut FrameWriter<W>,
) -> Result<()> {
    for path in paths {
        let is_wanted = AtomicBool::new(true);
        let root = std::thread::scope(|scope| {
            let (root_in, root) = sync_channel(1);
            let is_wanted = &is_wanted;
            scope.spawn(move || root_in.send(digest(path, options, || is_wanted.load(Ordering::Relaxed))));
            loop {
                match root.recv_timeout(options.life_sign()) {
                    Err(RecvTimeoutError::Timeout) => {
                        let heard = output.keep_alive(Phase::Mapping);
                        // Nobody is left to tell: the file is not read to its end.
                        heard.inspect_err(|_| is_wanted.store(false, Ordering::Relaxed))?;
                    }
                    root => return root.unwrap_or(Err(Error::Interrupted(Again::GoesOn))),
                }
            }
        });
        let root = root.inspect_err(|error| output.give_up(error))?;
        output.message(&Message::Digest { root })?;
    }
    output.flush()
}

/// The root hash of a file or device, for as long as it `is_wanted`.
///
/// # Errors
///
/// When it cannot be opened or read; [`Error::Interrupted`] when it is not wanted any more.
pub fn digest(path: &NamedPath, options: &Options, is_wanted: impl Fn() -> bool) -> Result<Hash> {
    let (file, length) = scan::open_image(path)?;
    let grid = Grid { length, block: options.block_size };
    let image = FileImage::new(file, options.hole_map);
    let root = hashmap::root_of(&image, &grid, |_| is_wanted()).map_err(Error::file("read", path.path()))?;
    root.ok_or(Error::Interrupted(Again::GoesOn))
}
