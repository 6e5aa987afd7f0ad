//! How warnings travel: with what they are about, where the other end is new enough for that.

use crate::error::Warning;
use crate::protocol::{MAX_PATH, Message, shortened};

/// The oldest version in which a warning tells what it is about.
const NAMED_WARNINGS: u16 = 7;

impl Message {
    /// A warning, for an end that speaks this version.
    pub fn warning(warning: Warning, version: u16) -> Message {
        let text = shortened(warning.message);
        match warning.path {
            Some(path) if version >= NAMED_WARNINGS && path.len() <= MAX_PATH => {
                Message::WarningAbout { path, text }
            }
            _ => Message::Warning(text),
        }
    }

    /// The warning that this is, as `peer` told of it.
    pub fn into_warning(self, peer: &str) -> Option<Warning> {
        let warning = match self {
            Message::Warning(text) => Warning::new(text),
            Message::WarningAbout { path, text } => Warning { path: Some(path), ..Warning::new(text) },
            _ => return None,
        };
        Some(warning.on(peer))
    }
}
