//! The names of `--files-from`: from a file here or at the other end, and on their way there.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::confinement::NamedPath;
use crate::error::{Error, Result, printable};
use crate::location::Host;
use crate::protocol::{Frame, FrameReader, FrameWriter, Message, Request, in_pieces};
use crate::remote::FarSide;
use crate::source::{NameList, read_names};
use crate::sync::Initiator;

/// Where the names are that are to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesFrom {
    /// The file.
    pub place: ListPlace,
    /// Its lines end with NUL.
    pub nul_separated: bool,
}

/// A file of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListPlace {
    /// Stdin.
    Stdin,
    /// On this machine.
    Here(PathBuf),
    /// At the other end; `None`: which one is not said.
    There(Option<Host>, PathBuf),
}

/// Reads a file of names on this machine.
///
/// # Errors
///
/// When it cannot be read, or is no such file.
pub fn read_file(path: &NamedPath, nul_separated: bool) -> Result<Vec<Vec<u8>>> {
    let opened = path.open(OFlag::O_RDONLY).map(File::from);
    opened
        .and_then(|file| read_names(BufReader::new(file), nul_separated))
        .map_err(Error::file("read the names in", path.path()))
}

impl Initiator<'_> {
    /// The names that are to be sent. `other_end`: the host of this run.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub(in crate::sync) fn names(self, from: &FilesFrom, other_end: Option<&Host>) -> Result<Vec<Vec<u8>>> {
        let nul_separated = from.nul_separated;
        match (&from.place, other_end) {
            (ListPlace::Stdin, _) => read_names(std::io::stdin().lock(), nul_separated)
                .map_err(Error::file("read the names in", "stdin")),
            (ListPlace::Here(path), _) => read_file(&NamedPath::here(path), nul_separated),
            (ListPlace::There(named, path), Some(host))
                if named.as_ref().is_none_or(|named| named == host) =>
            {
                self.far_names(host, path, nul_separated)
            }
            (ListPlace::There(_, path), _) => Err(Error::Usage(format!(
                "--files-from names {} on a host that takes no part: name a file here, or on the host of SRC or DEST",
                printable(path)
            ))),
        }
    }

    /// Has an agent read a file of names.
    fn far_names(self, host: &Host, path: &Path, nul_separated: bool) -> Result<Vec<Vec<u8>>> {
        let request = Request::Names { path: path.into(), nul_separated };
        let completed = self.connect(host, self.options.silence(), |far_side, mut input, mut output| {
            if far_side == FarSide::Shell {
                return Err(Error::Usage(format!(
                    "--files-from with a file on {host} needs a holesync there: install it, bring it with \
                     --agent=push, or read the file with ssh and give it to --files-from=-"
                )));
            }
            self.request(&mut output, request)?;
            receive(&mut input)
        })?;
        Ok(completed.value)
    }
}

/// The error for a list of what a shell is to send.
pub fn needs_agent(option: &str, host: &Host) -> Error {
    Error::Usage(format!(
        "{option} needs a holesync on {host}: install it there, or bring it with --agent=push"
    ))
}

/// Sends names to the other end.
///
/// # Errors
///
/// When the connection fails.
pub fn send<W: Write>(output: &mut FrameWriter<W>, names: Vec<Vec<u8>>) -> Result<()> {
    let pieces = in_pieces(names);
    let last = pieces.len() - 1;
    for (nth, names) in pieces.into_iter().enumerate() {
        output.message(&Message::Names { names, is_last: nth == last })?;
    }
    output.flush()
}

/// Receives names from the other end.
///
/// # Errors
///
/// When the connection fails, or what comes is something else.
pub fn receive<R: Read>(input: &mut FrameReader<R>) -> Result<Vec<Vec<u8>>> {
    let mut list = NameList::default();
    loop {
        match input.read()? {
            Frame::Message(Message::Names { names, is_last }) => {
                for name in names {
                    list.add(name).map_err(|what| input.bad(format!("a list, and {what}")))?;
                }
                if is_last {
                    return Ok(list.into_names());
                }
            }
            Frame::Message(Message::Busy(_)) => {}
            _ => return Err(input.bad("something else than names")),
        }
    }
}
