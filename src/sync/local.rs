//! Both ends on this machine: the two roles in one process, over two pipes.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result, printable};
use crate::options::{Compress, Options};
use crate::protocol::{Connection, FrameReader, FrameWriter};
use crate::receiver::{self, Target};
use crate::report::{Reporter, Silent, Stats};
use crate::sender::{self, Side};
use crate::source;
use crate::sys;

/// Makes `target` equal to `sources`.
///
/// # Errors
///
/// What either role reports; the receiver's word counts where both have one.
pub fn run(sources: &[PathBuf], target: Target, options: &Options, reporter: &dyn Reporter) -> Result<Stats> {
    if options.recursive {
        sources.iter().try_for_each(|source| refuse_inside(source, &target.path))?;
    }
    // Nothing is saved where nothing travels.
    let leaf_size = options.block_size;
    let options = &Options { leaf_size, compress: Compress::None, ..options.clone() };
    let pipe = || std::io::pipe().map_err(Error::file("create", "a pipe"));
    let (to_receiver_out, to_receiver) = pipe()?;
    let (to_sender_out, to_sender) = pipe()?;
    sys::grow_pipe(&to_receiver);
    let (sent, received) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let input = FrameReader::new(to_receiver_out, "the sender");
            let output = FrameWriter::new(to_sender, "the sender");
            receiver::run(Connection { input, output, options, reporter: &Silent }, target, None)
        });
        let input = FrameReader::new(to_sender_out, "the destination");
        let output = FrameWriter::direct(to_receiver, "the destination");
        let connection = Connection { input, output, options, reporter };
        let sent = sender::run(connection, sources, None, Side::Initiator);
        (sent, receiver.join())
    });
    match (sent, received) {
        (Err(Error::Remote { .. } | Error::Closed { .. }), Ok(Err(error))) => Err(error),
        (sent, _) => sent,
    }
}

/// A directory copied into itself would meet its own copies on the way.
fn refuse_inside(source: &Path, destination: &Path) -> Result<()> {
    let (Ok(from), Some(mut to)) = (source.canonicalize(), resolve(destination)) else { return Ok(()) };
    if !from.is_dir() {
        return Ok(());
    }
    if !source::names_contents(source) {
        to.extend(from.file_name());
    }
    if to == from || !to.starts_with(&from) {
        return Ok(());
    }
    let (from, to) = (printable(source), printable(destination));
    Err(Error::Destination(format!("cannot copy {from} into itself: choose a destination outside, not {to}")))
}

/// The path without symlinks, whether its last name is there or not.
fn resolve(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok().or_else(|| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(parent.canonicalize().ok()?.join(path.file_name()?))
    })
}
