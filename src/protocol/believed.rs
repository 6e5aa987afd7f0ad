//! What an end did not read, since it had kept a map: told for the totals.

use crate::protocol::Message;
use crate::report::Stats;

/// The first version of the protocol that has it.
const BELIEVED: u16 = 8;

impl Message {
    /// How much this end believed, for an end that speaks this version; `None`: nothing.
    pub fn believed(stats: &Stats, version: u16) -> Option<Message> {
        let bytes = stats.believed_bytes;
        (bytes > 0 && version >= BELIEVED).then_some(Message::Believed { bytes })
    }
}
