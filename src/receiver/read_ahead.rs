//! What arrives from the sender, read ahead by a thread of its own: the
//! connection goes on while a frame is hashed and written.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

use crate::error::{Error, Result};
use crate::protocol::{Data, Frame, FrameReader, Message};

/// Batches of frames that are read and not yet handled.
const QUEUED: usize = 4;
/// Bytes after which a batch of frames is full. Small frames that have
/// arrived together are handed on together, so that the threads wake less often.
const TOGETHER: usize = 64 << 10;

/// Frames in the order in which they arrive.
pub struct ReadAhead {
    queue: Receiver<Vec<Result<Frame>>>,
    frames: VecDeque<Result<Frame>>,
    used: Sender<Data>,
    peer: String,
}

impl ReadAhead {
    /// Reads until the stream ends, or the sender's totals have come. The thread
    /// outlives the role when that fails: it ends with the connection.
    pub fn open<R: Read + Send + 'static>(mut input: FrameReader<R>) -> ReadAhead {
        let (queue_in, queue) = sync_channel(QUEUED);
        let (used, used_out) = channel();
        let peer = input.peer().to_string();
        std::thread::spawn(move || {
            loop {
                used_out.try_iter().for_each(|data| input.reuse(data));
                let frames = next_frames(&mut input);
                let last = matches!(frames.last(), Some(Err(_) | Ok(Frame::Message(Message::End(_)))));
                if queue_in.send(frames).is_err() || last {
                    return;
                }
            }
        });
        ReadAhead { queue, frames: VecDeque::new(), used, peer }
    }

    /// The next frame.
    pub fn next(&mut self) -> Result<Frame> {
        if self.frames.is_empty() {
            self.frames.extend(self.queue.recv().unwrap_or_default());
        }
        self.frames.pop_front().unwrap_or_else(|| Err(self.bad("something behind its end")))
    }

    /// Takes the buffer of a data frame back, for another one.
    pub fn recycle(&self, data: Data) {
        // A reader that is gone needs none.
        let _ = self.used.send(data);
    }

    /// Who the sender is, for people.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// An error that blames the sender.
    pub fn bad(&self, what: impl Into<String>) -> Error {
        Error::Protocol { peer: self.peer.clone(), what: what.into() }
    }
}

/// The next frame, and those behind it that are here already. An error or the
/// sender's totals come last.
fn next_frames<R: Read>(input: &mut FrameReader<R>) -> Vec<Result<Frame>> {
    let mut frames = Vec::new();
    let mut bytes = 0;
    loop {
        let frame = input.read();
        let last = matches!(frame, Err(_) | Ok(Frame::Message(Message::End(_))));
        bytes += size_of_val(&frame)
            + match &frame {
                Ok(Frame::Data(data)) => data.bytes.len() + size_of_val(&data.masks[..]),
                Ok(Frame::Patch(patch)) => patch.bytes.len() + 2 * size_of_val(&patch.masks[..]),
                _ => 0,
            };
        frames.push(frame);
        if last || bytes >= TOGETHER || !input.has_arrived() {
            return frames;
        }
    }
}
