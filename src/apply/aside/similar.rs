//! Where nothing is yet: another file at the destination that a new one can be begun from.
//! It is compared like an old file and cloned or copied; whatever differs is written over.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::fcntl::OFlag;

use crate::apply::aside::AsidePath;
use crate::apply::place::{Access, Old, Place};
use crate::apply::{Basis, QuickCheck, Wanted};
use crate::confinement::NamedPath;
use crate::error::{Error, Result, escape, printable};
use crate::scan::FileState;
use crate::sys;
use crate::working::is_working_name;

/// Data of a new file below which a look for another one costs more than it saves.
const WORTH_A_LOOK: u64 = 16 << 10;

/// Names that are looked at in a directory: there may be many new files in it.
const MAX_LOOKS: usize = 4096;

/// For a file that is read. Without waiting: opening a fifo would, for its other end.
pub(in crate::apply) const READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// The files and devices that the user named for that.
#[derive(Debug)]
pub struct Similar {
    files: Vec<File>,
    images: Vec<Basis>,
}

impl Similar {
    /// Opens them; a symlink is followed. `base`: the destination.
    ///
    /// # Errors
    ///
    /// [`Error::Destination`] for what is neither a regular file nor a block device, or cannot be
    /// opened.
    pub fn open(paths: &[AsidePath], base: &NamedPath, hole_map: bool) -> Result<Similar> {
        let mut similar = Similar { files: Vec::new(), images: Vec::new() };
        for path in paths {
            let path = path.resolve(base);
            let failed = |why: String| {
                let shown = printable(path.path());
                let advice = "name a file or block device that is there";
                Error::Destination(format!("cannot begin from {shown}: {why}; {advice}"))
            };
            let file = path.open(READ).map(File::from).map_err(|error| failed(error.to_string()))?;
            let image = Basis::of(&file, hole_map).map_err(|error| {
                let is_odd = error.kind() == io::ErrorKind::InvalidInput;
                let odd = || "it is neither a regular file nor a block device".into();
                failed(if is_odd { odd() } else { error.to_string() })
            })?;
            similar.files.push(file);
            // Of what is copied only hashes tell whether it is as it was.
            similar.images.push(Basis { state: None, ..image });
        }
        Ok(similar)
    }
}

/// A file to begin from.
pub struct From {
    /// Open for reading.
    pub old: Old,
    /// What tells, when the new file is complete, that it is what was compared.
    pub state: FileState,
    /// Its name in the same directory, if it was found by that.
    pub name: Option<OsString>,
    /// The user named it.
    pub is_named: bool,
}

/// Places that are looked at to tell whether two images are versions of one.
const SAMPLES: u64 = 64;
/// Bytes at each.
const SAMPLE: usize = 4 << 10;
/// Of so many places one may differ.
const MOSTLY: usize = 16;

/// Whether one image has what the other one has, in most of the places where that has data. What
/// cannot be read is not alike.
fn is_mostly(one: &Basis, other: &Basis) -> bool {
    let (mut alike, mut looked_at) = (0, 0);
    let mut bytes = [[0; SAMPLE]; 2];
    for nth in 0..SAMPLES {
        let from = other.length / SAMPLES * nth;
        let Some(Ok(extent)) = other.image.extents(from..other.length).next() else { break };
        let [ours, theirs] = &mut bytes;
        let read =
            other.image.read_at(theirs, extent.start).and_then(|()| one.image.read_at(ours, extent.start));
        let has_data = theirs.iter().any(|byte| *byte != 0);
        looked_at += usize::from(has_data || read.is_err());
        alike += usize::from(has_data && read.is_ok() && ours == theirs);
    }
    alike > 0 && (looked_at - alike) * MOSTLY <= looked_at
}

impl Place {
    /// What a new file can be begun from: what another directory has under its path; of what the
    /// user named the longest; or, with
    /// `fuzzy`, the file in the same directory whose name is most like its own. None where
    /// that would cost more than it saves, or a change of it might not show.
    pub(in crate::apply) fn similar(&self, wanted: &Wanted, fuzzy: bool) -> Result<Option<From>> {
        if wanted.whole || wanted.data < WORTH_A_LOOK {
            return Ok(None);
        }
        let named = self.similar.as_ref().map_or(&[][..], |similar| &similar.files);
        let longest = named.iter().max_by_key(|file| file.metadata().map_or(0, |state| state.len()));
        let longest = longest.filter(|file| file.metadata().is_ok_and(|state| state.is_file()));
        let has_named = !named.is_empty();
        let error = || self.error("open what to begin from for");
        let found = match longest {
            _ if self.alternates.is_some() => self.file_elsewhere(READ).map(|file| (file, None)),
            Some(file) => Some((file.try_clone().map_err(error())?, None)),
            None if fuzzy && !has_named => self.most_alike().map(|(file, name)| (file, Some(name))),
            None => None,
        };
        let Some((file, name)) = found else { return Ok(None) };
        let (state, settled) = FileState::settled(&file).map_err(error())?;
        // All of it is copied first, where it cannot be cloned.
        if !settled || state.length == 0 || state.length / 2 > wanted.length {
            return Ok(None);
        }
        let metadata = file.metadata().map_err(error())?;
        let old = Old { file, state: metadata, access: Access::Read, turn: None };
        let is_named = has_named && self.alternates.is_none();
        Ok(Some(From { old, state, name, is_named }))
    }

    /// What the user named to begin from, as images.
    pub fn named_bases(&self) -> &[Basis] {
        self.similar.as_ref().map_or(&[], |similar| &similar.images)
    }

    /// Which of these is the longest, that new files are begun from.
    pub fn longest_basis(&self) -> Option<usize> {
        let lengths = self.named_bases().iter().map(|basis| basis.length).enumerate();
        lengths.max_by_key(|(_, length)| *length).map(|(nth, _)| nth)
    }

    /// What the user named and is told in the place of what is there: the longest, unless what is
    /// there has mostly the same.
    pub(in crate::apply) fn other_basis(&self, wanted: &Wanted, own: Option<&Basis>) -> Option<Basis> {
        if wanted.whole || wanted.quick_check == QuickCheck::SecondTry || wanted.data < WORTH_A_LOOK {
            return None;
        }
        let longest = &self.named_bases()[self.longest_basis()?];
        let is_fit = longest.length > 0 && longest.length / 2 <= wanted.length;
        let is_there = || own.is_some_and(|own| is_mostly(own, longest));
        (is_fit && !is_there()).then(|| longest.clone())
    }

    /// Whoever may not read the directory, or the file, begins with nothing.
    fn most_alike(&self) -> Option<(File, OsString)> {
        let dir = self.open(OsStr::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY).ok()?;
        let mut dir = Dir::from_fd(OwnedFd::from(dir)).ok()?;
        let names = sys::names_in(&mut dir).map_while(io::Result::ok).map(|(name, _)| name);
        let alike = names.take(MAX_LOOKS).filter(|name| !is_working_name(name) && *name != self.name);
        let alike = alike.filter_map(|name| Some((likeness(name.as_bytes(), self.name.as_bytes())?, name)));
        let (_, name) = alike.max()?;
        let file = self.open(&name, READ).ok()?;
        file.metadata().is_ok_and(|state| state.is_file()).then_some((file, name))
    }
}

/// How many bytes at the ends of two names are the same. `None`: less than half of the
/// longer name.
fn likeness(a: &[u8], b: &[u8]) -> Option<usize> {
    let same = |(a, b): &(&u8, &u8)| a == b;
    let front = a.iter().zip(b).take_while(same).count();
    let back = a.iter().rev().zip(b.iter().rev()).take_while(same).count();
    let alike = front + back.min(a.len().min(b.len()) - front);
    (2 * alike >= a.len().max(b.len())).then_some(alike)
}

/// What is told of a file with this path that is begun from the one of this name beside it.
pub fn choice(path: &[u8], name: &OsStr) -> String {
    let other = Path::new(OsStr::from_bytes(path)).with_file_name(name);
    format!("fuzzy basis selected for {}: {}", escape(path), printable(&other))
}

/// The error of a file that what it was begun from is not any more.
pub(in crate::apply) fn changed(place: &Place) -> Error {
    let why = "what it was begun from changed meanwhile; run again";
    Error::refused(&place.path, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_alike_by_their_ends() {
        let of = |a: &str, b: &str| likeness(a.as_bytes(), b.as_bytes());
        assert_eq!(of("image-v1.img", "image-v2.img"), Some(11));
        assert_eq!(of("image-v9.img", "image-v10.img"), Some(11));
        assert_eq!(of("aaaa", "aaaaaa"), Some(4));
        assert_eq!(of("kernel", "image.img"), None);
        assert!(of("2024-image.img", "2025-image.img") > of("2024-other.img", "2025-image.img"));
    }
}
