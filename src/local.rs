//! Both ends on this machine: the two roles in one process, over two pipes.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::frames::{FrameReader, FrameWriter};
use crate::options::Options;
use crate::receiver::{self, Target};
use crate::report::{Reporter, Silent, Stats};
use crate::sender::{self, Side};
use crate::sys;

/// Makes `target` equal to `sources`.
///
/// # Errors
///
/// What either role reports; the receiver's word counts where both have one.
pub fn run(sources: &[PathBuf], target: Target, options: &Options, reporter: &dyn Reporter) -> Result<Stats> {
    let pipe = || std::io::pipe().map_err(Error::file("create", "a pipe"));
    let (to_receiver_out, to_receiver) = pipe()?;
    let (to_sender_out, to_sender) = pipe()?;
    sys::grow_pipe(&to_receiver);
    let (sent, received) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let input = FrameReader::new(to_receiver_out, "the sender");
            receiver::run(input, FrameWriter::new(to_sender, "the sender"), target, options, &Silent)
        });
        let input = FrameReader::new(to_sender_out, "the destination");
        let output = FrameWriter::new(to_receiver, "the destination");
        let sent = sender::run(input, output, sources, options, Side::Initiator, reporter);
        (sent, receiver.join())
    });
    match (sent, received) {
        (Err(Error::Remote { .. } | Error::Closed { .. }), Ok(Err(error))) => Err(error),
        (sent, _) => sent,
    }
}
