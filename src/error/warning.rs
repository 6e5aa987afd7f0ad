//! Something unexpected that is no failure, as the user is told of it.

use std::path::Path;

use crate::error::told;

/// What is told, of what, and on which host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The text, without a line end. Unescaped: see [`escape`](crate::error::escape).
    pub message: String,
    /// What it is about, as it is named where it is, if it is about one file.
    pub path: Option<Vec<u8>>,
    /// The host that told of it, if that is another one than the user's.
    pub host: Option<String>,
    /// The host that it is about: the text names it.
    pub of: Option<String>,
}

impl Warning {
    /// A warning that is about no file.
    pub fn new(message: impl Into<String>) -> Warning {
        Warning { message: message.into(), path: None, host: None, of: None }
    }

    /// A warning about a file, which the text names.
    pub fn about(path: impl AsRef<Path>, message: impl Into<String>) -> Warning {
        let path = path.as_ref().as_os_str().as_encoded_bytes().to_vec();
        Warning { path: Some(path), ..Warning::new(message) }
    }

    /// It, as a host told of it.
    #[must_use]
    pub fn on(self, host: &str) -> Warning {
        Warning { host: Some(host.into()), ..self }
    }

    /// It, about a host, which the text names.
    #[must_use]
    pub fn of(self, host: impl ToString) -> Warning {
        Warning { of: Some(host.to_string()), ..self }
    }

    /// It for people: who told of it, and what.
    pub fn told(&self) -> String {
        told(self.host.as_deref(), &self.message)
    }
}
