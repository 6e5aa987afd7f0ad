//! What arrives from the sender, read ahead by a thread of its own: the
//! connection goes on while a frame is hashed and written.

use std::io::Read;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

use crate::error::{Error, Result};
use crate::frames::FrameReader;
use crate::protocol::{Data, Frame, Message};

/// Frames that are read and not yet handled.
const QUEUED_FRAMES: usize = 4;

/// Frames in the order in which they arrive.
pub(crate) struct Inbox {
    frames: Receiver<Result<Frame>>,
    used: Sender<Data>,
    peer: String,
}

impl Inbox {
    /// Reads until the stream ends, or the sender's totals have come. The thread
    /// outlives the role when that fails: it ends with the connection.
    pub fn open<R: Read + Send + 'static>(mut input: FrameReader<R>) -> Inbox {
        let (frames_in, frames) = sync_channel(QUEUED_FRAMES);
        let (used, used_out) = channel();
        let peer = input.peer().to_string();
        std::thread::spawn(move || {
            loop {
                used_out.try_iter().for_each(|data| input.reuse(data));
                let frame = input.read();
                let last = matches!(frame, Err(_) | Ok(Frame::Message(Message::End(_))));
                if frames_in.send(frame).is_err() || last {
                    return;
                }
            }
        });
        Inbox { frames, used, peer }
    }

    /// The next frame.
    pub fn next(&self) -> Result<Frame> {
        self.frames.recv().unwrap_or_else(|_| Err(self.bad("something behind its end")))
    }

    /// Takes the room of a data frame back, for another one.
    pub fn recycle(&self, data: Data) {
        // A reader that is gone needs none.
        let _ = self.used.send(data);
    }

    /// An error that blames the sender.
    pub fn bad(&self, what: impl Into<String>) -> Error {
        Error::Protocol { peer: self.peer.clone(), what: what.into() }
    }
}
