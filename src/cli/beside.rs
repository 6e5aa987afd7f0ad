//! The flags that name files beside the destination, which may have what is to be there.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use holesync::error::{Error, Result};
use holesync::options::{AlternateKind, Alternates, Since};

use crate::cli::verbs::output;

/// What new files are begun from, linked to, or held against, and what is known of old ones.
#[derive(Debug, Args)]
pub struct BesideArgs {
    /// Begin new files from the one beside them whose name is most like their own
    #[arg(short = 'y', long)]
    pub fuzzy: bool,
    /// Take what the destination lacks from this file or device, which is where it is
    #[arg(long, value_name = "PATH")]
    basis: Vec<OsString>,
    /// Read all that is compared, also what has not changed since a map of it was kept
    #[arg(long)]
    pub no_map_cache: bool,
    /// SRC was made from this image, which is here: on xfs and btrfs do not read what both share
    #[arg(long, value_name = "OLD")]
    since: Option<PathBuf>,
    /// What has changed in SRC since OLD, or since the map OLD.map was made, is in this list: what is
    /// not is not read
    #[arg(long, value_name = "FILE")]
    changed: Option<PathBuf>,
    /// Save the map of the image in FILE.map once DEST has it; all of it is compared
    #[arg(long, value_name = "FILE.map")]
    save_map: Option<PathBuf>,
    /// Do not make what DIR has
    #[arg(long, value_name = "DIR")]
    compare_dest: Vec<OsString>,
    /// Copy what DIR has from there
    #[arg(long, value_name = "DIR")]
    copy_dest: Vec<OsString>,
    /// Link to what DIR has
    #[arg(long, value_name = "DIR")]
    link_dest: Vec<OsString>,
}

impl BesideArgs {
    /// Files that new ones are begun from.
    pub fn basis(&self) -> Vec<Vec<u8>> {
        bytes(&self.basis)
    }

    /// What the only source was made from.
    pub fn since(&self) -> Option<Since> {
        let changed = self.changed.clone();
        self.since.clone().map(|old| Since { old, changed })
    }

    /// Refuses what is about an image that is compared with DEST, where nothing is; and to save a map
    /// where there is not one image and one DEST.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`].
    pub fn check(&self, compares: bool, several: bool, size_only: bool) -> Result<()> {
        let what = if self.changed.is_some() && self.since.is_none() {
            "--changed does not say since when: add --since OLD.map, the map of the image before it changed, or --since OLD"
        } else if self.since.is_some() && !compares {
            "--since is about an image that is compared with DEST: leave it out where SRC is listed, and with --through"
        } else if self.save_map.is_some() && (!compares || several) {
            "--save-map is for SRC and one DEST: holesync map SRC -o FILE.map writes a map otherwise"
        } else if self.save_map.is_some() && size_only {
            "--save-map compares all of the image: leave --size-only out"
        } else {
            return self.save_map().map_or(Ok(()), output::check_map);
        };
        Err(Error::Usage(what.into()))
    }

    /// Where the map of the image is saved.
    pub fn save_map(&self) -> Option<&Path> {
        self.save_map.as_deref()
    }

    /// Directories that may have what is missing.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for those of several kinds.
    pub fn alternates(&self) -> Result<Option<Alternates>> {
        let given = [
            (AlternateKind::Compare, &self.compare_dest),
            (AlternateKind::Copy, &self.copy_dest),
            (AlternateKind::Link, &self.link_dest),
        ];
        let mut given = given.into_iter().filter(|(_, dirs)| !dirs.is_empty());
        let first = given.next().map(|(kind, dirs)| Alternates { kind, dirs: bytes(dirs) });
        if given.next().is_some() {
            return Err(Error::Usage(
                "--compare-dest, --copy-dest and --link-dest exclude each other".into(),
            ));
        }
        if first.as_ref().is_some_and(|first| first.dirs.len() > 20) {
            return Err(Error::Usage("no more than 20 directories can be looked in for each file".into()));
        }
        Ok(first)
    }
}

fn bytes(paths: &[OsString]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| path.as_bytes().to_vec()).collect()
}
