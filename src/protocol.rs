//! The protocol: its messages, what travels beside them, and every limit.
//! `docs/protocol.md` describes the same in tables.

mod compress;
mod frame;
mod lines;
mod link_speed;
mod reader;
mod writer;

use serde::{Deserialize, Serialize};

pub use compress::Compressor;
pub use lines::Plain;
pub use link_speed::Link;
pub use reader::{FrameReader, Greeting};
pub use writer::FrameWriter;

use crate::error::{Error, Failure, Result, escape};
use crate::hashmap::leaves::Leaves;
use crate::hashmap::plan::Run;
use crate::hashmap::{Hash, PageMask};
use crate::options::Options;
use crate::report::{Phase, Stats};
use crate::source::{Kind, Metadata};

/// What both ends say first. Not text, and broken by anything that translates
/// line ends or strips the eighth bit.
pub const MAGIC: [u8; 8] = *b"\x89hole\xff\r\n";
/// The newest version this program speaks.
pub const VERSION: u16 = 1;
/// The oldest version this program speaks.
pub const OLDEST: u16 = 1;
/// The bits among the features of a greeting that tell whether the processor has
/// instructions for AES; neither is set where that is not known.
pub const FEATURE_AES: u32 = 1;
/// See [`FEATURE_AES`].
pub const FEATURE_NO_AES: u32 = 2;

/// Bytes that may come before the responder's magic: login scripts talk.
pub const MAX_NOISE: usize = 64 << 10;
/// Bytes in the body of a control frame.
pub const MAX_CONTROL: usize = 64 << 10;
/// Bytes of file data in one data frame, before compression.
pub const MAX_DATA: usize = 1 << 20;
/// Blocks in one data frame.
pub const MAX_DATA_BLOCKS: usize = 4096;
/// Keys in one map frame.
pub const MAX_MAP_KEYS: usize = 4096;
/// Runs in one map frame.
pub const MAX_MAP_RUNS: usize = 4096;
/// Blocks in one frame that asks for leaves, or answers.
pub const MAX_DIFFER: usize = 256;
/// Blocks whose leaves were asked for and that are not patched yet.
pub const MAX_ASKED: usize = 4096;
/// Bytes in a path.
pub const MAX_PATH: usize = 4096;
/// Bytes in one name of a path: `NAME_MAX`.
pub const MAX_NAME: usize = 255;
/// Files announced and not yet answered.
pub const MAX_UNANSWERED: usize = 1024;
/// The largest file: the largest offset the system calls take.
pub const MAX_LENGTH: u64 = i64::MAX as u64;
/// Sources in one request.
pub const MAX_SOURCES: usize = 1024;

/// A control message. Sender and receiver each accept only their part of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Initiator: what is wanted.
    Start(Box<Options>, Request),
    /// Sender: whether there is a single source that is no directory.
    Layout {
        /// Then the destination may be the name of the file itself.
        single: bool,
    },
    /// Sender: something to be made equal. Regular files are answered.
    Entry(Entry),
    /// Sender: what follows describes this file.
    Content {
        /// The entry.
        id: u64,
    },
    /// Sender: so many blocks stay as the basis has them.
    Keep {
        /// How many.
        blocks: u64,
    },
    /// Sender: so many blocks become zero.
    Zero {
        /// How many.
        blocks: u64,
    },
    /// Sender: the file is described to its end.
    Finish {
        /// The root hash of the source.
        root: Hash,
    },
    /// Sender: the source cannot be read further, or changed; keep what is there.
    Abandon,
    /// Receiver: size and modification time agree.
    Unchanged {
        /// The entry.
        id: u64,
    },
    /// Receiver: nothing to compare with; send everything.
    NoBasis {
        /// The entry.
        id: u64,
        /// See [`Message::Map`].
        resized: bool,
    },
    /// Receiver: map frames of this file follow, then `MapEnd`.
    Map {
        /// The entry.
        id: u64,
        /// There is no file yet, or one of another length: the file changes
        /// even if every block stays.
        resized: bool,
    },
    /// Receiver: the basis has no more blocks.
    MapEnd,
    /// Receiver: the entry cannot be made equal.
    Failed {
        /// The entry.
        id: u64,
        /// Why.
        failure: Failure,
        /// Whether this is the answer to the entry, or came later.
        answer: bool,
    },
    /// Receiver: the file is complete, verified and in its place.
    Done {
        /// The entry.
        id: u64,
    },
    /// Receiver: what was put together does not match the root hash; send it whole.
    Again {
        /// The entry.
        id: u64,
        /// It was lent and changed while it was copied; else something went wrong on
        /// the way, and it shall come whole.
        changed: bool,
    },
    /// Receiver: what it is busy with, so that the sender can show it.
    Busy(Phase),
    /// Either: a warning for the user at the other end.
    Warning(String),
    /// Sender: this source could not be read; counted, for the initiator to show.
    SourceFailed(Failure),
    /// Either: that was all.
    End(Box<Stats>),
    /// Either: it cannot go on.
    Fatal(Failure),
    /// Responder: the root hash of a file, in answer to `Request::Digest`.
    Digest {
        /// The hash.
        root: Hash,
    },
    /// Sender, in a dry run: what a comparison came to, for the initiator to show.
    Compared {
        /// The entry's path.
        path: Vec<u8>,
        /// Bytes of data that would be sent; `None` if nothing differs.
        would_send: Option<u64>,
    },
    /// Receiver, where both ends are in one process: nothing to compare with, and it
    /// can copy the source itself.
    Borrow {
        /// The entry.
        id: u64,
    },
    /// Sender, likewise, in the place of a description and its end: here it is.
    Lend {
        /// As this process opens it.
        path: Vec<u8>,
    },
    /// Receiver: it has copied so much more of what was lent, in bytes.
    Copied(u64),
}

impl Message {
    /// What to say before leaving because of an error; nothing where the other
    /// side has said so itself, or is gone.
    pub fn farewell(error: &Error) -> Option<Message> {
        let known = matches!(error, Error::Remote { .. } | Error::Closed { .. });
        (!known).then(|| Message::Fatal(error.to_failure()))
    }

    /// Whether, said after the map of a file, it is about a file that comes later.
    pub fn is_about_later(&self) -> bool {
        self.is_answer() || matches!(self, Message::MapEnd)
    }

    /// Whether it is the one answer that each announced file gets.
    pub fn is_answer(&self) -> bool {
        matches!(
            self,
            Message::Unchanged { .. }
                | Message::NoBasis { .. }
                | Message::Borrow { .. }
                | Message::Map { .. }
                | Message::Failed { answer: true, .. }
        )
    }
}

/// What the initiator wants of the responder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Be the receiver.
    Receive {
        /// The destination as the user wrote it.
        destination: Vec<u8>,
        /// It must be a directory: trailing slash, or several sources.
        directory: bool,
    },
    /// Be the sender.
    Send {
        /// The sources as the user wrote them.
        sources: Vec<Vec<u8>>,
    },
    /// Answer with the root hash of each file.
    Digest {
        /// The files.
        paths: Vec<Vec<u8>>,
    },
    /// Run a command on what follows, a [stream](crate::stream) in the place of frames.
    Through {
        /// For a shell.
        command: Vec<u8>,
        /// The destination as the user wrote it; the command may use it.
        destination: Vec<u8>,
        /// Bytes in the image.
        size: u64,
    },
}

/// Something that the destination shall have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts up from 0; regular files are answered under it.
    pub id: u64,
    /// Relative to the destination; see [`check_path`]. Empty: the destination itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Its metadata.
    pub metadata: Metadata,
}

/// Data of consecutive blocks: for each the pages that are not zero, and their
/// bytes, packed. How many bytes that must be, only the file's grid tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Data {
    /// Index of the first block.
    pub first: u64,
    /// One mask a block.
    pub masks: Vec<PageMask>,
    /// The pages of all blocks.
    pub bytes: Vec<u8>,
}

/// Consecutive blocks that differ, and what they are to be: the receiver answers
/// with its [`Answer`] and gets a [`Patch`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differ {
    /// Index of the first block.
    pub first: u64,
    /// The hash of each in the source.
    pub hashes: Vec<Hash>,
}

/// What the receiver has of the blocks of one [`Differ`], in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// The entry.
    pub id: u64,
    /// One each.
    pub blocks: Vec<Leaves>,
}

/// What the next blocks that were asked about lack, in the order of asking. They
/// need not be neighbours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Patch {
    /// Index of the first block.
    pub first: u64,
    /// For each block the pages that are not zero.
    pub masks: Vec<PageMask>,
    /// Which of them are sent; the others the basis has.
    pub sent: Vec<PageMask>,
    /// The sent pages of all blocks, packed.
    pub bytes: Vec<u8>,
}

/// What a frame holds.
#[derive(Debug, PartialEq)]
pub enum Frame {
    /// A control message.
    Message(Message),
    /// File data.
    Data(Data),
    /// A stretch of the basis's map.
    Map(Vec<Run>),
    /// Sender: blocks that differ.
    Differ(Differ),
    /// Receiver: what it has of them.
    Leaves(Answer),
    /// Sender: what it lacks.
    Patch(Patch),
}

/// Checks a relative path from the other side: plain names between single
/// slashes, no `.`, `..`, NUL, nothing too long. Empty is allowed.
pub fn check_path(path: &[u8]) -> Result<(), String> {
    let name_is_plain = |name: &[u8]| {
        !name.is_empty() && name.len() <= MAX_NAME && name != b"." && name != b".." && !name.contains(&0)
    };
    if path.len() > MAX_PATH || !(path.is_empty() || path.split(|&b| b == b'/').all(name_is_plain)) {
        return Err(format!("it names the path \"{}\"", escape(&path[..path.len().min(256)])));
    }
    Ok(())
}
