//! `--prune-empty-dirs`: a directory below which there are only directories is none of the
//! source, unless a rule of the user's protects it. It is held back until something else is
//! found below it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::filter::{DirectoryRules, FilterSide};
use crate::options::Options;
use crate::source::named::base_name;
use crate::source::{Contents, Found, Source};

/// The directories that a walk is in.
pub struct Pruning {
    /// Those on the way to where it began, as long as they are held back.
    above: Vec<Source>,
    levels: Vec<Level>,
    /// The user's, as they protect what the destination has.
    rules: DirectoryRules,
}

/// A directory that the walk is in.
struct Level {
    target: Vec<u8>,
    /// As long as it is held back.
    held: Option<Source>,
    is_kept: bool,
    /// What it holds as far as that is kept.
    names: Vec<Vec<u8>>,
    /// All of its names could be read.
    is_whole: bool,
}

impl Pruning {
    /// For one source. `above`: the directories on the way to it.
    /// Returns, too, those of them that are not held back.
    pub fn new(options: &Options, mut above: Vec<Source>) -> (Pruning, Vec<Source>) {
        let side = FilterSide::Receiver { delete_excluded: true };
        let rules = DirectoryRules::new(&options.filter, side, b"");
        let stays = |source: &Source| rules.protects(&source.target, true, false);
        let kept = above.iter().rposition(stays).map_or(0, |last| last + 1);
        let first = above.drain(..kept).collect();
        (Pruning { above, levels: Vec::new(), rules }, first)
    }

    /// The walk enters a directory. Returns what is held back no longer.
    pub fn enter(&mut self, source: Source) -> Vec<Found> {
        let target = source.target.clone();
        let stays = target.is_empty() || self.protects(&source);
        let held = Some(source);
        self.levels.push(Level { target, held, is_kept: false, names: Vec::new(), is_whole: false });
        if stays { self.release() } else { Vec::new() }
    }

    /// The directory that was entered last holds these `files`. Returns what is held back no
    /// longer.
    pub fn holds(&mut self, files: Vec<Vec<u8>>, is_whole: bool) -> Vec<Found> {
        let is_empty = files.is_empty();
        if let Some(level) = self.levels.last_mut() {
            (level.names, level.is_whole) = (files, is_whole);
        }
        if is_empty { Vec::new() } else { self.release() }
    }

    /// There is a directory that is not entered. Returns what of it and of those above is told.
    pub fn pass(&mut self, source: Source) -> Vec<Found> {
        let found = self.enter(source);
        // Nobody looked what it holds.
        self.leave();
        found
    }

    /// The walk leaves a directory. Returns what it holds, if all of that is known.
    pub fn leave(&mut self) -> Option<Contents> {
        let Level { target, names, is_kept, is_whole, .. } = self.levels.pop()?;
        if !is_kept {
            return None;
        }
        if let Some(above) = self.levels.last_mut() {
            above.names.push(base_name(Path::new(OsStr::from_bytes(&target))));
        }
        is_whole.then_some(Contents { directory: target, names, is_whole })
    }

    fn protects(&self, source: &Source) -> bool {
        self.rules.protects(&source.target, true, false)
    }

    fn release(&mut self) -> Vec<Found> {
        let mut told: Vec<_> = self.above.drain(..).map(Found::from).collect();
        for level in &mut self.levels {
            level.is_kept = true;
            told.extend(level.held.take().map(Found::from));
        }
        told
    }
}
