//! What is said where one host sends to another by itself: whether it reaches the one that is meant,
//! and what the two say to each other, for the initiator.

use std::borrow::Cow;
use std::sync::mpsc::SyncSender;

use serde::{Deserialize, Serialize};

use crate::confinement::RequestPath;
use crate::error::{Error, Result};
use crate::location::Host;
use crate::options::Options;
use crate::protocol::{Message, RunId};

/// What a host is to send, and where. The names of what is `listed` come behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnwardRequest {
    /// What was asked for.
    pub options: Options,
    /// What tells this run from others, if that may try again.
    pub run: Option<RunId>,
    /// The host, as the user wrote it.
    pub to: Host,
    /// What to run there; `holesync` in its PATH unless given.
    pub remote_path: Option<String>,
    /// As root, by sudo.
    pub sudo: bool,
    /// ssh alone chooses the cipher.
    pub cipher_of_ssh: bool,
    /// What the host that is meant has borne witness of.
    pub token: RunId,
    /// The destination as the user wrote it.
    pub destination: RequestPath,
    /// It must be a directory: trailing slash, or several sources.
    pub directory: bool,
    /// The sources as the user wrote them.
    pub sources: Vec<RequestPath>,
    /// Names below the only one of them follow: these are what is to be sent.
    pub listed: bool,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Onward {
    /// Initiator, before a request: bear witness of this token until that comes, or the end.
    Witness(RunId),
    /// Initiator, before a request: tell whether the witness of this token is where you are.
    Meet(RunId),
    /// Agent, to `Meet`: whether it is.
    Met(bool),
    /// Initiator, in the place of a request, or before one: send to another host, and tell of it.
    Send(Box<OnwardRequest>),
    /// Agent, to `Send`: why it does not reach that host. A request may follow.
    Apart(String),
    /// Agent: it does, and sends.
    Joined,
    /// Agent: what one of the two said to the other.
    Heard(Speaker, Said),
    /// Agent: that was all.
    Over {
        /// Bytes that it sent to the other host.
        sent: u64,
        /// Bytes that came from there.
        received: u64,
    },
}

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Speaker {
    /// The sender.
    Sender,
    /// The receiver.
    Receiver,
}

/// What one said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// A control message, encoded.
    Message(Vec<u8>),
    /// So many bytes of data.
    Data(u64),
}

/// Tells somebody who stands by what passes a connection in one direction.
#[derive(Debug, Clone)]
pub struct Tap {
    speaker: Speaker,
    told: SyncSender<Onward>,
}

impl Tap {
    /// For what `speaker` says.
    pub fn new(speaker: Speaker, told: SyncSender<Onward>) -> Tap {
        Tap { speaker, told }
    }

    /// A message passes.
    ///
    /// # Errors
    ///
    /// When nobody listens any more.
    pub fn message(&self, message: &Message) -> Result<()> {
        let Some(message) = message.for_bystander() else { return Ok(()) };
        let broken = |error| Error::Protocol { peer: "this end".into(), what: format!("{error}") };
        self.tell(Said::Message(postcard::to_stdvec(&message).map_err(broken)?))
    }

    /// So many bytes of data pass.
    ///
    /// # Errors
    ///
    /// When nobody listens any more.
    pub fn data(&self, bytes: usize) -> Result<()> {
        self.tell(Said::Data(bytes as u64))
    }

    fn tell(&self, said: Said) -> Result<()> {
        self.told.send(Onward::Heard(self.speaker, said)).map_err(|_| Error::closed("the initiator"))
    }
}

impl Message {
    /// What of it is of interest for who reports a run; `None`: nothing.
    fn for_bystander(&self) -> Option<Cow<'_, Message>> {
        match self {
            Message::Keep { .. } | Message::Zero { .. } | Message::Granted { .. } | Message::Fatal(_) => None,
            Message::Entry(entry) => Some(Cow::Owned(Message::Entry(entry.without_extended()))),
            message => Some(Cow::Borrowed(message)),
        }
    }
}
