//! What is in the way of something of another kind: it goes, as rsync has it go, unless it is
//! a directory with something in it, and nobody asked for that.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::{FileStat, SFlag};

use super::{DIRECTORY, Open, Removal, Removed, Root, names_of};
use crate::apply::place::Place;
use crate::apply::tree::Unsynced;
use crate::error::{Error, Result};
use crate::filter::{DirectoryRules, FilterSide};
use crate::options::Options;
use crate::sys::{self, kind_of};

/// The kind of what is in the way of a file and goes: what is no file, symlink, or device to be
/// written. `is_for_nodes`: whether the place is where devices lie, which then stay.
///
/// # Errors
///
/// [`Error::Refused`] for what stays.
pub fn find(
    place: &Place,
    stat: Option<&FileStat>,
    options: &Options,
    is_for_nodes: impl FnOnce() -> bool,
) -> Result<Option<SFlag>> {
    let Some(kind) = stat.map(kind_of) else { return Ok(None) };
    if matches!(kind, SFlag::S_IFLNK | SFlag::S_IFREG) {
        return Ok(None);
    }
    if place.is_named_itself || is_for_nodes() {
        return if kind == SFlag::S_IFBLK { Ok(None) } else { Err(refuse(place, kind)) };
    }
    check(place, options)?;
    Ok(Some(kind))
}

/// Refuses what has a name that something of another kind is to have, where it may not go: a
/// directory that is not empty, unless `--force` or `--delete` was given.
///
/// # Errors
///
/// [`Error::Refused`] for such a directory.
pub fn check(place: &Place, options: &Options) -> Result<()> {
    let is_directory = place.stat()?.is_some_and(|stat| kind_of(&stat) == SFlag::S_IFDIR);
    if !is_directory || goes_whole(options) {
        return Ok(());
    }
    let opened = sys::open_beneath(place.dir.as_fd(), place.name.as_ref(), DIRECTORY, 0);
    let dir = opened.map_err(place.error("read"))?;
    let open = Open { dir: Arc::new(dir), ..above(place, options) };
    if names_of(&open)?.is_empty() { Ok(()) } else { Err(is_full(place)) }
}

/// Removes what has a name that something of another kind is to have. In a dry run it stays.
///
/// # Errors
///
/// Those of [`check`]; when something in a directory cannot be removed, or is in use.
pub fn remove(place: &Place, options: &Options) -> Result<()> {
    check(place, options)?;
    let Some(stat) = place.stat()? else { return Ok(()) };
    let mut kept = None;
    let mut each = |removed: Removed| {
        if let Removed::Stays(failure) = removed {
            kept.get_or_insert(failure);
        }
        Ok(())
    };
    let above = above(place, options);
    let backups = place.backup.as_ref().map(|backup| &backup.backups);
    let workplaces = place.workplaces.as_deref();
    let root = Root { dir: &place.dir, shown: &above.shown, backups, workplaces, follow: false };
    let rules = above.rules.clone();
    // What comes in its place is synced, and so is that it went.
    let unsynced = &mut Unsynced::default();
    let mut removal = Removal {
        root,
        options,
        most: None,
        rules,
        removed: 0,
        is_limited: false,
        unsynced,
        each: &mut each,
    };
    match kind_of(&stat) {
        SFlag::S_IFREG => return removal.remove_file(place.clone()),
        SFlag::S_IFDIR => {}
        _ => return removal.unlink(place),
    }
    if goes_whole(options) && !removal.below(&above, &place.name)? {
        let why = kept.map_or_else(String::new, |failure| format!(": {}", failure.message));
        let why = format!("is in the way, and something in it cannot be removed{why}");
        return Err(Error::refused(&place.path, why));
    }
    removal.remove_directory(place).map_err(|error| match error {
        Error::File { source, .. } if source.kind() == io::ErrorKind::DirectoryNotEmpty => is_full(place),
        other => other,
    })
}

/// Whether a directory goes with all that is in it. Filter rules may protect something there.
fn goes_whole(options: &Options) -> bool {
    (options.force || options.delete.is_some()) && options.filter.end_with_their_directory()
}

/// The directory that a place lies in.
fn above(place: &Place, options: &Options) -> Open {
    let below = place.backup.as_ref().map(|backup| backup.below.as_os_str().as_bytes().to_vec());
    let shown = place.path.parent().unwrap_or(Path::new("")).to_path_buf();
    let side = FilterSide::Receiver { delete_excluded: false };
    // None that says something about what goes: see `goes_whole`.
    let rules = DirectoryRules::new(&options.filter, side, b"/");
    Open { dir: Arc::clone(&place.dir), path: below.unwrap_or_default(), shown, depth: 0, rules }
}

/// The error for what stays although a file must go there.
pub fn refuse(place: &Place, kind: SFlag) -> Error {
    Error::refused(
        &place.path,
        match kind {
            SFlag::S_IFDIR => "there is a directory where a file must go; remove it first",
            _ => "is neither a regular file nor a block device",
        },
    )
}

fn is_full(place: &Place) -> Error {
    let why = "a directory that is not empty is in the way; remove it first, or have it removed by --force, \
               unless a filter rule protects what is in it";
    Error::refused(&place.path, why)
}
