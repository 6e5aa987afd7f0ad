//! What the receiver says of files that come after the one being described.

use std::collections::VecDeque;

use crate::hashmap::Key;
use crate::protocol::{Frame, Message};

/// Frames that are put off, in order.
#[derive(Default)]
pub(crate) struct Later {
    frames: VecDeque<Frame>,
    weight: usize,
}

impl Later {
    /// Puts a frame off.
    pub fn push(&mut self, frame: Frame) {
        self.weight += weight_of(&frame);
        self.frames.push_back(frame);
    }

    /// Takes the first one.
    pub fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        self.weight -= weight_of(&frame);
        Some(frame)
    }

    /// What they take in memory, in keys of a map.
    pub fn weight(&self) -> usize {
        self.weight
    }
}

/// What a frame takes in memory, in keys.
fn weight_of(frame: &Frame) -> usize {
    const FRAME: usize = 16;
    match frame {
        Frame::Map(runs) => FRAME + runs.iter().map(|run| 2 + run.entries()).sum::<usize>(),
        Frame::Message(Message::Failed { failure, .. }) => FRAME + failure.message.len() / size_of::<Key>(),
        _ => FRAME,
    }
}
