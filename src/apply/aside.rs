//! Paths beside the destination that the user names: for backups, and to begin from.

pub mod alternate;
pub mod backup;
mod copied;
pub mod similar;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::confinement::{NamedPath, RequestPath};
use crate::error::Result;
use crate::options::Options;

/// A path beside the destination.
#[derive(Debug, Clone)]
pub enum AsidePath {
    /// Relative to the destination.
    Relative(PathBuf),
    /// Anywhere.
    Named(NamedPath),
}

impl AsidePath {
    fn find(path: &[u8], named: impl FnOnce(RequestPath) -> Result<NamedPath>) -> Result<AsidePath> {
        match path.first() {
            Some(b'/') => named(path.to_vec().into()).map(AsidePath::Named),
            _ => Ok(AsidePath::Relative(OsStr::from_bytes(path).into())),
        }
    }

    /// What it leads to from a destination.
    pub fn resolve(&self, base: &NamedPath) -> NamedPath {
        match self {
            AsidePath::Relative(path) => base.join(path),
            AsidePath::Named(path) => path.clone(),
        }
    }
}

/// All that the options of a run name.
#[derive(Debug, Clone, Default)]
pub struct Asides {
    /// Where backups go; `None`: beside what they are of.
    pub backup_dir: Option<AsidePath>,
    /// What new files are begun from.
    pub basis: Vec<AsidePath>,
    /// Where else entries are looked for.
    pub alternates: Vec<AsidePath>,
    /// Where new content gathers; `None`: beside the files, or in a directory of a certain name
    /// there.
    pub workplace: Option<AsidePath>,
}

impl Asides {
    /// What paths of options mean; `named` opens the way to one that is not relative to the
    /// destination.
    ///
    /// # Errors
    ///
    /// Those of `named`.
    pub fn find(options: &Options, named: impl Fn(RequestPath) -> Result<NamedPath>) -> Result<Asides> {
        let find = |path: &Vec<u8>| AsidePath::find(path, &named);
        let backup_dir = options.backup.as_ref().and_then(|backup| backup.dir.as_ref());
        let alternates = options.alternates.iter().flat_map(|alternates| &alternates.dirs);
        let rules = &options.workplace;
        let is_absolute = |path: &&Vec<u8>| path.first() == Some(&b'/');
        let workplace = match &rules.partial_dir {
            Some(partial_dir) => Some(partial_dir).filter(is_absolute),
            None => rules.temp_dir.as_ref(),
        };
        Ok(Asides {
            workplace: workplace.map(find).transpose()?,
            backup_dir: backup_dir.map(find).transpose()?,
            basis: options.basis.iter().map(find).collect::<Result<_>>()?,
            alternates: alternates.map(find).collect::<Result<_>>()?,
        })
    }
}
