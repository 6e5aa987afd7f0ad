//! `-` as SRC: a plain image from stdin, whose length shows only at its end, into a file or
//! device here or on a host. The responder's part is in `sync/stdin/answer.rs`.
//!
//! 1. A thread reads stdin, a piece ahead.
//! 2. Blocks that are not zero are asked about by their hashes, in order; what is between them is
//!    zero. Their bytes are held until the answer is there, within a bound.
//! 3. What the other end lacks is sent, in the order of the answers.
//! 4. Behind the last answer come the totals, and the other end makes what it has the file.
//!
//! Guaranteed: the old file is whole until stdin has ended and all of it came and was written.
//! Not guaranteed: that the end of stdin is the end of the image. A pipe whose writer has died
//! ends like one whose writer was through.

mod answer;
mod sending;

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel, sync_channel};

pub use answer::answer;
use sending::Sending;

use crate::error::{Error, Failure, Result, code, lock};
use crate::location::{Host, Location};
use crate::options::{Missing, Options, TransferRules, WorkplaceRules};
use crate::protocol::{IMAGE, MAX_DATA, Request, VERSION, keep_alive};
use crate::remote::{Agent, FarSide, RemoteOptions};
use crate::report::{Event, Phase, Stats};
use crate::scan::Content;
use crate::stream;
use crate::sync::{Completed, FilesFrom, Initiator};

/// The name of stdin in errors.
const STDIN: &str = "stdin";
/// Bytes that are read, compared and sent at a time: whole blocks of any size, and no more than
/// a question may ask about.
const PIECE: usize = MAX_DATA;

/// Whether a source is stdin.
pub fn is_stdin(source: &Location) -> bool {
    matches!(source, Location::Local(path) if path == Path::new("-"))
}

/// Refuses what does not go with an image from stdin.
///
/// # Errors
///
/// [`Error::Usage`].
pub fn check(
    sources: &[Location],
    listed: Option<&FilesFrom>,
    options: &Options,
    remote: &RemoteOptions,
) -> Result<()> {
    let refused = |what: &str| Err(Error::Usage(format!("- as SRC is one image from stdin: {what}")));
    if sources.len() > 1 {
        return refused("leave the other sources out; a file of that name is ./-");
    }
    if listed.is_some() {
        return refused("leave --files-from out");
    }
    if remote.retries.is_some_and(|retries| retries > 0) {
        return refused("what was read of it cannot be read again, so leave --retries out");
    }
    if options.checksum || options.ignore_times || options.size_only {
        return refused("it is always compared by its content, so leave -c, -I and --size-only out");
    }
    let picks = options.transfer != TransferRules::default() || options.missing != Missing::Failed;
    if picks || options.removes() || options.remove_source_files || options.directories.relative {
        return refused("leave out what picks, places or removes files by their names, sizes and times");
    }
    let has_aside = options.backup.is_some() || options.fuzzy || options.alternates.is_some();
    if has_aside || !options.basis.is_empty() || options.workplace != WorkplaceRules::default() {
        return refused(
            "leave --backup, --temp-dir, --partial-dir, --delay-updates, --basis, --fuzzy and the like out",
        );
    }
    if io::stdin().is_terminal() {
        return refused(
            "it is a terminal here; pipe an image into it, as in xz -dc IMG.xz | holesync - DEST",
        );
    }
    Ok(())
}

/// Pieces of stdin: all of [`PIECE`] bytes but the last.
struct Pieces {
    queue: Receiver<Result<Vec<u8>>>,
    /// The one that was looked at.
    first: Option<Vec<u8>>,
}

impl Pieces {
    /// Reads the first piece, and goes on in a thread, which ends with the process: nobody knows
    /// when a pipe has more.
    fn open() -> Result<Pieces> {
        let input = io::stdin().as_fd().try_clone_to_owned().map_err(Error::file("use", STDIN))?;
        let mut input = File::from(input);
        let (queue_in, queue) = sync_channel(1);
        std::thread::spawn(move || {
            loop {
                let piece = read_piece(&mut input);
                let is_last = piece.as_ref().map_or(true, |piece| piece.len() < PIECE);
                if queue_in.send(piece).is_err() || is_last {
                    return;
                }
            }
        });
        let mut pieces = Pieces { queue, first: None };
        let first = pieces.next()?.filter(|piece| !piece.is_empty()).ok_or_else(|| {
            let why = "nothing at all came from it, and DEST was left alone: see why its writer has ended";
            Error::refused(STDIN, why)
        })?;
        pieces.first = Some(first);
        Ok(pieces)
    }

    /// Refuses to write what is no disk as it is to a device.
    fn check_content(&self, device: bool, options: &Options) -> Result<()> {
        let head = self.first.as_deref().filter(|_| device && !options.as_is);
        match head.and_then(Content::of) {
            Some(content) => Err(content.refuse(Path::new("-"), false)),
            None => Ok(()),
        }
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.queue.recv().ok().transpose(),
        }
    }
}

fn read_piece(input: &mut impl Read) -> Result<Vec<u8>> {
    let mut piece = Vec::with_capacity(PIECE);
    let read = input.take(PIECE as u64).read_to_end(&mut piece);
    read.map(|_| piece).map_err(Error::file("read", STDIN))
}

impl Initiator<'_> {
    /// Makes `destination` the image that stdin holds.
    pub(super) fn send_stdin(self, destination: &Location) -> Result<Completed<Stats>> {
        let pieces = Pieces::open()?;
        let completed = match destination {
            Location::Local(path) => Completed::here(self.take_stdin(pieces, path)?),
            Location::Remote(host, path) => self.send_pieces(pieces, host, path)?,
        };
        let (Location::Local(path) | Location::Remote(_, path)) = destination;
        stream::report(path, &completed.value, self.reporter);
        Ok(completed)
    }

    /// Into a file or device here.
    fn take_stdin(self, mut pieces: Pieces, path: &Path) -> Result<Stats> {
        stream::make(path, self.options, self.remote.umask, self.reporter, |image| {
            pieces.check_content(image.is_device(), self.options)?;
            while let Some(piece) = pieces.next()? {
                image.take(&piece)?;
                self.reporter.event(Event::Done(Phase::Sending, piece.len() as u64));
            }
            Ok(())
        })
    }

    /// Into a file or device on a host.
    fn send_pieces(self, pieces: Pieces, host: &Host, path: &Path) -> Result<Completed<Stats>> {
        let options = self.options;
        self.connect(host, options.silence(), |far_side, input, mut output| {
            if far_side == FarSide::Shell {
                return Err(no_holesync(host, self.remote.agent));
            }
            if input.version() < IMAGE {
                let version = input.version();
                let (theirs, ours) = ((version, version), (IMAGE, VERSION));
                return Err(Error::Version { peer: host.to_string(), theirs, ours });
            }
            self.request(&mut output, Request::Image { destination: path.into() })?;
            let output = Mutex::new(output);
            std::thread::scope(|scope| {
                let (_until_here, over) = channel();
                let output = &output;
                scope.spawn(move || keep_alive(output, options.life_sign(), &over));
                let mut sending = Sending::new(input, output, options, self.reporter);
                match sending.run(pieces) {
                    Ok(()) => Ok(sending.stats),
                    // What the other end reports is why nothing could be sent to it.
                    Err(error @ (Error::Link { .. } | Error::Closed { .. })) => {
                        Err(sending.last_words().unwrap_or(error))
                    }
                    Err(error) => {
                        lock(output).give_up(&error);
                        Err(error)
                    }
                }
            })
        })
    }
}

fn no_holesync(host: &Host, agent: Agent) -> Error {
    let todo = if agent == Agent::None { "leave --agent=none out, and " } else { "" };
    let message = format!(
        "an image from stdin needs a holesync there, to compare it as it comes: {todo}install one, or bring it along \
         with --agent=push"
    );
    Error::Remote { peer: host.to_string(), failure: Failure::new(code::START, message) }
}
