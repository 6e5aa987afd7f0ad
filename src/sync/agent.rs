//! The responder: greets, reads a request, and takes the other role. It works over any
//! pair of streams; `holesync agent` gives it stdin and stdout.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::hashmap::{self, Grid, Hash};
use crate::options::Options;
use crate::protocol::{
    Connection, Frame, FrameReader, FrameWriter, MAX_NOISE, MAX_SOURCES, Message, Request, RunId, Silence,
    TimedReader, TimedWriter,
};
use crate::receiver::{self, Target};
use crate::remote;
use crate::report::{Phase, Silent};
use crate::scan::{self, FileImage};
use crate::sender::{self, Side};
use crate::stream;
use crate::sync::takeover;

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
) -> Result<()> {
    let silence = Arc::<Silence>::default();
    silence.limit(Some(Duration::from_secs(Options::TIMEOUT.into())));
    let mut input = FrameReader::new(TimedReader::new(input, Arc::clone(&silence)), PEER);
    let mut output = FrameWriter::direct(TimedWriter::new(output, Arc::clone(&silence)), PEER);
    output.greet(remote::aes_here())?;
    // What is meant for a shell may come before the greeting: here there is none.
    input.await_greeting(MAX_NOISE)?;
    let (options, request, run) = match input.read()? {
        Frame::Message(Message::Start(options, request, run)) => (options, request, run),
        _ => return Err(input.bad("something else than a request")),
    };
    // A stream of records has no room for signs of life.
    silence.limit(options.silence().filter(|_| !matches!(request, Request::Through { .. })));
    if let (Some(run), Request::Receive { .. } | Request::Send { .. }) = (run, &request) {
        replace_earlier(&run, &options, &mut output)?;
        takeover::end_when_asked(run, silence);
    }
    let served = match request {
        Request::Receive { destination, directory } => {
            let target = Target { path: home(&path_of(destination)), directory, umask };
            let connection = Connection { input, output, options: &options, reporter: &Silent };
            receiver::run(connection, target, None).map(drop)
        }
        Request::Send { sources } => {
            if sources.len() > MAX_SOURCES {
                return Err(input.bad("too many sources"));
            }
            let sources: Vec<PathBuf> = sources.into_iter().map(|path| home(&path_of(path))).collect();
            let connection = Connection { input, output, options: &options, reporter: &Silent };
            sender::run(connection, &sources, None, Side::Responder).map(drop)
        }
        Request::Through { command, destination, size } => {
            let (command, destination) = (OsString::from_vec(command), home(&path_of(destination)));
            let mut input = input.into_plain();
            let served = stream::run_command(&command, &destination, size, |sink| {
                let (_, ended) = stream::read_records(&mut input, PEER, Some(size), sink)?;
                let broken = || Error::Closed { peer: PEER.into(), detail: String::new() };
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
        Request::Digest { paths } => answer_digests(paths, &options, &mut output),
    };
    served.map_err(|error| Error::Reported { code: error.exit_code() })
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
    paths: Vec<Vec<u8>>,
    options: &Options,
    output: &mut FrameWriter<W>,
) -> Result<()> {
    for path in paths {
        let path = home(&path_of(path));
        let root = std::thread::scope(|scope| {
            let (root_in, root) = sync_channel(1);
            scope.spawn(move || root_in.send(digest(&path, options)));
            loop {
                match root.recv_timeout(options.life_sign()) {
                    Err(RecvTimeoutError::Timeout) => output.keep_alive(Phase::Mapping)?,
                    root => return root.unwrap_or(Err(Error::Interrupted)),
                }
            }
        });
        let root = root.inspect_err(|error| output.give_up(error))?;
        output.message(&Message::Digest { root })?;
    }
    output.flush()
}

/// The root hash of a file or device.
///
/// # Errors
///
/// When it cannot be opened or read.
pub fn digest(path: &Path, options: &Options) -> Result<Hash> {
    let (file, length) = scan::open_image(path)?;
    let grid = Grid { length, block: options.block_size };
    let image = FileImage::new(file, options.hole_map);
    let root = hashmap::root_of(&image, &grid, |_| true).map_err(Error::file("read", path))?;
    root.ok_or(Error::Interrupted)
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

/// A path with `~/` replaced, as a shell at this end would do it.
fn home(path: &Path) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(rest) => {
            let slash = path.as_os_str().as_encoded_bytes().ends_with(b"/");
            let home = std::env::home_dir().unwrap_or_default().join(rest);
            if slash { home.join("") } else { home }
        }
        Err(_) => path.to_path_buf(),
    }
}
