//! Names of one file. The first that is found is sent; the others become links to it when it
//! is in its place.

use std::collections::{HashMap, HashSet};

use crate::error::{Failure, code, printable};
use crate::source::{Identity, Kind, Source};

/// Names of files that have several, of one run.
#[derive(Debug, Default)]
pub struct Links {
    /// Other names than the first, in the order in which they were found.
    later: Vec<Source>,
    /// Paths of first names of files that could not be sent.
    failed: HashSet<Vec<u8>>,
}

impl Links {
    /// Keeps a name for later; hands anything else back.
    pub fn keep(&mut self, source: Source) -> Option<Source> {
        if !matches!(source.kind, Kind::HardLink(_)) {
            return Some(source);
        }
        self.later.push(source);
        None
    }

    /// A file could not be sent: what has its name there may be an older one.
    pub fn failed(&mut self, source: &Source) {
        if source.has_other_names {
            self.failed.insert(source.target.clone());
        }
    }

    /// All names that were kept: those to be made, and the failures of the others.
    pub fn take(&mut self) -> (Vec<Source>, Vec<Failure>) {
        let has_failed =
            |source: &Source| matches!(&source.kind, Kind::HardLink(first) if self.failed.contains(first));
        let (failed, made): (Vec<_>, _) = std::mem::take(&mut self.later).into_iter().partition(has_failed);
        let failure = |source: &Source| {
            let path = printable(&source.path);
            let message =
                format!("{path}: the file has another name, under which it could not be transferred");
            Failure::new(code::PARTIAL, message).about(&source.path)
        };
        (made, failed.iter().map(failure).collect())
    }
}

/// First names, by file.
#[derive(Debug, Default)]
pub(super) struct FirstNames(HashMap<Identity, Vec<u8>>);

impl FirstNames {
    /// The path of the first name of a file, if this is another one.
    pub fn of(&mut self, source: &Source) -> Option<Vec<u8>> {
        if !source.has_other_names || matches!(source.kind, Kind::Directory) {
            return None;
        }
        match self.0.get(&source.identity) {
            Some(first) => Some(first.clone()),
            None => {
                self.0.insert(source.identity, source.target.clone());
                None
            }
        }
    }
}
