//! The protocol: its messages, what travels beside them, and every limit.
//! `docs/protocol.md` describes the same in tables.

mod believed;
mod compress;
mod credit;
mod frame;
mod image;
mod lines;
mod link_speed;
mod onward;
mod pace;
mod passing;
mod reader;
mod silence;
mod survey;
mod warning;
mod writer;

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

pub use crate::hashmap::MAX_LENGTH;
pub use compress::Compressor;
pub use credit::{CREDIT, Credit, LEAF_BLOCKS, MAX_AHEAD, RESERVED};
pub use image::{IMAGE, ImageMessage, MAX_ASKED, MAX_ASKED_BLOCKS};
pub use lines::Plain;
pub use link_speed::LinkSpeed;
pub use onward::{Onward, OnwardRequest, Said, Speaker, Tap};
pub use pace::Pace;
pub use passing::{Passing, Says};
pub use reader::{FrameReader, Greeting};
pub use silence::{Silence, TimedReader, TimedWriter};
pub use survey::{Ask, MAX_SURVEYED, SURVEY, SURVEYED_AHEAD, Told};
pub use writer::{FrameWriter, keep_alive};

use crate::confinement::RequestPath;
use crate::error::{Error, Failure, Result, escape};
use crate::hashmap::leaves::Leaves;
use crate::hashmap::map_file::SavedMap;
use crate::hashmap::plan::Run;
use crate::hashmap::{Hash, PageMask};
use crate::options::{DeploymentId, Options};
use crate::report::{Changes, Item, Phase, Reporter, Stats};
use crate::source::{self, Kind, Metadata};
pub use crate::source::{MAX_NAME, MAX_PATH};

/// What both ends say first. Not text, and broken by anything that translates
/// line ends or strips the eighth bit.
pub const MAGIC: [u8; 8] = *b"\x89hole\xff\r\n";
/// The newest version this program speaks.
pub const VERSION: u16 = 8;
/// The oldest version this program speaks.
pub const OLDEST: u16 = 5;
/// The oldest version in which a sender describes files in a dry run, too.
const DRY_DESCRIPTIONS: u16 = 7;
/// Whether a sender describes files in a dry run, too, without their data.
pub fn describes_in_dry_runs(version: u16) -> bool {
    version >= DRY_DESCRIPTIONS
}
/// The oldest version in which the receiver copies what it has elsewhere: it may be asked about
/// blocks that are new, too.
pub const COPIES: u16 = 8;
/// The oldest version in which a receiver waits with a file until all hosts of a run have theirs.
pub const TOGETHER: u16 = 8;
/// The oldest version in which a map that the sender has, too, need not travel.
pub const KNOWN_MAPS: u16 = 8;
/// The bits among the features of a greeting that tell whether the processor has
/// instructions for AES; neither is set where that is not known.
pub const FEATURE_AES: u32 = 1;
/// See [`FEATURE_AES`].
pub const FEATURE_NO_AES: u32 = 2;
/// The bit among them that an initiator sets which wants no kept map to be used.
pub const FEATURE_NO_MAP_CACHE: u32 = 4;

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
pub const MAX_UNPATCHED: usize = 4096;
/// Bytes in the names of one message, counted with one more each.
pub const MAX_NAMES: usize = 16 << 10;
/// Root hashes of maps that a sender tells of.
pub const MAX_KNOWN: usize = 16;
/// Bytes of text in a failure or warning of the receiver.
pub const MAX_TEXT: usize = 4 << 10;
/// Sources in one request.
pub const MAX_SOURCES: usize = 1024;

/// What tells the tries of one run from those of others: random bytes.
pub type RunId = [u8; 16];

/// A control message. Sender and receiver each accept only their part of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Initiator: what is wanted, and in which run, if that may try again.
    Start(Box<Options>, Request, Option<RunId>),
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
        /// The source did not change while it was read. Otherwise it may have, unseen: the
        /// file gets the time 0.
        settled: bool,
    },
    /// Sender: the source cannot be read further, or changed; keep what is there.
    Abandon,
    /// Receiver: size and modification time agree.
    Unchanged {
        /// The entry.
        id: u64,
        /// How its attributes differed.
        changes: Changes,
    },
    /// Receiver: nothing to compare with; send everything.
    NoBasis {
        /// The entry.
        id: u64,
        /// It goes onto a block device.
        device: bool,
    },
    /// Receiver: map frames of this file follow, then `MapEnd`.
    Map {
        /// The entry.
        id: u64,
        /// It goes onto a block device.
        device: bool,
    },
    /// Receiver, in a dry run: in the place of `Map` or `NoBasis`.
    Preview {
        /// The entry.
        id: u64,
        /// It goes onto a block device.
        device: bool,
        /// Whether a map follows.
        mapped: bool,
        /// There is no file yet, or one of another length: it would change even if every
        /// block stayed.
        resized: bool,
        /// How it differs from what is wanted.
        changes: Changes,
    },
    /// Receiver: the basis of this file has no more blocks.
    MapEnd {
        /// The entry.
        id: u64,
    },
    /// Receiver: the entry cannot be made equal.
    Failed {
        /// The entry.
        id: u64,
        /// Why.
        failure: Failure,
    },
    /// Receiver: the file is complete, verified and in its place.
    Done {
        /// The entry.
        id: u64,
        /// Bytes that were written or made into holes; `None`: it was equal already.
        changed: Option<u64>,
        /// How it differed before.
        changes: Changes,
    },
    /// Receiver: what was put together does not match the root hash; send it whole.
    Again {
        /// The entry.
        id: u64,
    },
    /// Either: what it is busy with, for the other end to show; also the sign that it is alive.
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
    /// Sender, in a dry run without descriptions: what a comparison came to, for the initiator to
    /// show.
    Compared {
        /// The entry.
        entry: Entry,
        /// What the receiver said of it.
        changes: Changes,
        /// Bytes of data that would be sent; `None` if nothing differs.
        would_send: Option<u64>,
    },
    /// Receiver: so much credit is free again. Sender, in a dry run without descriptions: so many
    /// keys and runs of zeros were compared. See [`Credit`].
    Granted {
        /// Units.
        units: u64,
    },
    /// Receiver: something is in its place, or is about to be, and not all of its attributes
    /// could be set. Its result is another message.
    Unset(Failure),
    /// Sender: a directory of the source has these names, and maybe more.
    Contents {
        /// Where it goes; see [`check_path`].
        directory: Vec<u8>,
        /// Plain names, [`MAX_NAMES`] bytes of them at most.
        names: Vec<Vec<u8>>,
        /// All that it has is told of before the next [`Message::RemoveOthers`]. Otherwise these
        /// names count only where somebody else tells all.
        is_whole: bool,
    },
    /// Sender: what else is in the directories of which it told by [`Message::Contents`] since
    /// this was said last is to be removed.
    RemoveOthers,
    /// Receiver: these were removed, or would be: paths below the destination, with a slash
    /// behind a directory's; [`MAX_NAMES`] bytes at most.
    Removed {
        /// The paths.
        paths: Vec<Vec<u8>>,
    },
    /// Receiver: something that the source does not have stays, and why.
    Stays(Failure),
    /// Receiver, where [`Options::tells_others`] asks for it: what became of an entry that is no
    /// file.
    Made {
        /// The entry.
        id: u64,
        /// The destination has it; otherwise it would be made, or is left out there.
        is_there: bool,
        /// How it differed before.
        changes: Changes,
    },
    /// Names of a list: the initiator's for `Request::Send`, or in answer to `Request::Names`.
    Names {
        /// As they were written: [`MAX_NAMES`] bytes of them at most.
        names: Vec<Vec<u8>>,
        /// There are no more.
        is_last: bool,
    },
    /// Initiator behind `Request::Survey`: what it wants to know of the image.
    Ask(Ask),
    /// Responder: what it has.
    Told(Told),
    /// Either end behind `Request::Image`.
    Image(ImageMessage),
    /// Either: a warning about something that has a name. From version 7 on.
    WarningAbout {
        /// Its path, as it is named where it is.
        path: Vec<u8>,
        /// The warning.
        text: String,
    },
    /// Receiver: what the file was compared with is not as it was; compare what there is of it by
    /// now. From version [`COPIES`] on.
    Lacking {
        /// The entry.
        id: u64,
    },
    /// Responder, before its `End`: so many bytes of data it did not read, since it had kept a map of
    /// them. From version 8 on.
    Believed {
        /// How many.
        bytes: u64,
    },
    /// Receiver behind `Request::Together`, in the place of its result, which follows: the file
    /// could be put in its place.
    Prepared {
        /// The entry.
        id: u64,
    },
    /// Sender, behind that: it is to be put there.
    Commit,
    /// Sender, before its only entry: it has maps of files with these root hashes, and the basis may be
    /// one of them. From version [`KNOWN_MAPS`] on.
    Knows {
        /// [`MAX_KNOWN`] at most.
        roots: Vec<Hash>,
    },
    /// Receiver, in the place of map frames and `MapEnd`: the basis has one of these root hashes.
    AsKnown {
        /// The entry.
        id: u64,
        /// Which.
        root: Hash,
    },
    /// Where one host sends to another by itself. From version 8 on.
    Onward(Onward),
}

impl Message {
    /// What to say before leaving because of an error; nothing where the other
    /// side has said so itself, or is gone.
    pub fn farewell(error: &Error) -> Option<Message> {
        let known = matches!(error, Error::Remote { .. } | Error::Closed { .. });
        (!known).then(|| Message::Fatal(error.to_failure()))
    }
}

/// A text that travels in a failure or warning, cut where it is too long.
pub fn shortened(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT - '…'.len_utf8()));
        text.push('…');
    }
    text
}

/// What a role talks over, as whom, and to whom it reports.
pub struct Connection<'a, R: Read, W: Write> {
    /// What the other end says.
    pub input: FrameReader<R>,
    /// The way there.
    pub output: FrameWriter<W>,
    /// What was asked for.
    pub options: &'a Options,
    /// Who is told.
    pub reporter: &'a dyn Reporter,
    /// What the map of the image is saved as.
    pub saved: Option<&'a SavedMap>,
}

/// What the initiator wants of the responder. Its paths are opened through the responder's
/// [`Confinement`](crate::confinement::Confinement).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Be the receiver.
    Receive {
        /// The destination as the user wrote it.
        destination: RequestPath,
        /// It must be a directory: trailing slash, or several sources.
        directory: bool,
    },
    /// Be the sender.
    Send {
        /// The sources as the user wrote them.
        sources: Vec<RequestPath>,
        /// Names below the only one of them follow: these are what is to be sent.
        listed: bool,
    },
    /// Tell the names in a file.
    Names {
        /// The file.
        path: RequestPath,
        /// Its lines end with NUL.
        nul_separated: bool,
    },
    /// LeafAnswer with the root hash of each file.
    Digest {
        /// The files.
        paths: Vec<RequestPath>,
    },
    /// Run a command on what follows, a [stream](crate::stream) in the place of frames.
    Through {
        /// For a shell.
        command: Vec<u8>,
        /// The destination as the user wrote it; the command may use it.
        destination: RequestPath,
        /// Bytes in the image.
        size: u64,
    },
    /// Answer what is asked of an image, by [`Ask`]. From version [`SURVEY`] on.
    Survey {
        /// The image.
        path: RequestPath,
    },
    /// Receive a plain image, by [`ImageMessage`]. From version [`IMAGE`] on.
    Image {
        /// The file or device as the user wrote it.
        destination: RequestPath,
    },
    /// Be the receiver of a file that is put in its place when all hosts of a run have theirs ready.
    /// From version [`TOGETHER`] on.
    Together {
        /// The destination as the user wrote it.
        destination: RequestPath,
        /// It must be a directory: trailing slash.
        directory: bool,
        /// What tells the run from others.
        run: DeploymentId,
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

impl Entry {
    /// A copy without ACLs and extended attributes.
    pub fn without_extended(&self) -> Entry {
        let Entry { id, path, kind, metadata } = self;
        let Metadata { mode, mtime, atime, owner, .. } = metadata;
        let metadata = Metadata {
            mode: *mode,
            mtime: *mtime,
            atime: *atime,
            owner: owner.clone(),
            ..Metadata::default()
        };
        Entry { id: *id, path: path.clone(), kind: kind.clone(), metadata }
    }

    /// It, for the user.
    pub fn item(&self) -> Item<'_> {
        Item { order: Some(self.id), ..source::item(&self.path, &self.kind, &self.metadata) }
    }
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
/// with its [`LeafAnswer`] and gets a [`Patch`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differ {
    /// Index of the first block.
    pub first: u64,
    /// The hash of each in the source.
    pub hashes: Vec<Hash>,
}

/// What the receiver has of the blocks of one [`Differ`], in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeafAnswer {
    /// The entry.
    pub id: u64,
    /// One each.
    pub blocks: Vec<BlockAnswer>,
}

/// What the receiver has of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockAnswer {
    /// All of it, from elsewhere: nothing is to be sent. From version [`COPIES`] on.
    Had,
    /// These leaves of what is there.
    Leaves(Leaves),
}

impl From<Leaves> for BlockAnswer {
    fn from(leaves: Leaves) -> BlockAnswer {
        BlockAnswer::Leaves(leaves)
    }
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
    /// A stretch of the map of what the receiver has of a file.
    Map(u64, Vec<Run>),
    /// Sender: blocks that differ.
    Differ(Differ),
    /// Receiver: what it has of them.
    Leaves(LeafAnswer),
    /// Sender: what it lacks.
    Patch(Patch),
}

/// What names count of [`MAX_NAMES`].
pub fn size_of_names(names: &[Vec<u8>]) -> usize {
    names.iter().map(|name| name.len() + 1).sum()
}

/// Names in pieces of [`MAX_NAMES`] bytes; one piece without names where there are none.
pub fn in_pieces(names: Vec<Vec<u8>>) -> Vec<Vec<Vec<u8>>> {
    let (mut pieces, mut piece, mut left) = (Vec::new(), Vec::new(), MAX_NAMES);
    for name in names {
        let size = name.len() + 1;
        if size > left {
            pieces.push(std::mem::take(&mut piece));
            left = MAX_NAMES;
        }
        left = left.saturating_sub(size);
        piece.push(name);
    }
    pieces.push(piece);
    pieces
}

/// Checks a relative path from the other side: plain names between single
/// slashes, no `.`, `..`, NUL, nothing too long. Empty is allowed.
pub fn check_path(path: &[u8]) -> Result<(), String> {
    if source::is_plain(path) {
        return Ok(());
    }
    Err(format!("it names the path \"{}\"", escape(&path[..path.len().min(256)])))
}
