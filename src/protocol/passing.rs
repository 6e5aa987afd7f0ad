//! Frames that go from one connection to another: their bodies as they came, and what they say to
//! who stands between.

use std::io::{Read, Write};

use crate::error::{Failure, Result};
use crate::protocol::frame::*;
use crate::protocol::{Frame, FrameReader, FrameWriter, Message};

/// A frame on its way through.
#[derive(Debug)]
pub struct Passing {
    kind: u8,
    body: Vec<u8>,
    /// What it says.
    pub says: Says,
}

/// What a frame says to who passes it on.
#[derive(Debug)]
pub enum Says {
    /// A control message.
    Message(Box<Message>),
    /// So many bytes of data come.
    Data(u64),
    /// What the two ends alone need to know.
    Other,
}

impl<R: Read> FrameReader<R> {
    /// The next frame, for another connection. `room`: a body that is done with.
    ///
    /// # Errors
    ///
    /// Those of [`FrameReader::read`], but for what is wrong within a frame that is no message:
    /// the end that it goes to finds that.
    pub fn pass(&mut self, room: Option<Passing>) -> Result<Passing> {
        let (kind, len) = self.header()?;
        let mut body = room.map(|passed| passed.body).unwrap_or_default();
        self.body(kind, len, &mut body)?;
        let says = match kind {
            TYPE_CONTROL => match self.decode_message(&body)? {
                Frame::Message(message) => Says::Message(Box::new(message)),
                _ => Says::Other,
            },
            _ if is_data(kind) => {
                Says::Data(data_bytes(&body).ok_or_else(|| self.bad("a data frame without its head"))?)
            }
            _ => Says::Other,
        };
        Ok(Passing { kind, body, says })
    }
}

impl<W: Write> FrameWriter<W> {
    /// Writes a frame of another connection.
    ///
    /// # Errors
    ///
    /// When the other side is gone.
    pub fn pass(&mut self, passing: &Passing) -> Result<()> {
        self.frame(passing.kind, &[&passing.body])
    }

    /// Tells the other side why it is being left, which knows nothing of who failed.
    pub fn give_up_for(&mut self, failure: Failure) {
        // It may be gone, too.
        let _ = self.message(&Message::Fatal(failure)).and_then(|()| self.flush());
    }
}

/// How many bytes of data a data frame stands for, as its head has it.
fn data_bytes(body: &[u8]) -> Option<u64> {
    let bytes = body.get(DATA_HEAD - 4..DATA_HEAD)?.first_chunk().copied()?;
    Some(u32::from_le_bytes(bytes).into())
}
