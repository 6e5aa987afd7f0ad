//! What begins as something that a disk would have to be made of first is not written to a device: the
//! first block of an image tells.

use std::sync::Mutex;

use crate::error::{Result, lock};
use crate::hashmap::{MapEntry, PAGE};
use crate::scan::Content;
use crate::store::fetched::{FetchedVersion, VersionBlock};
use crate::store::name::{ImageName, Kind};
use crate::store::pull::fetch::{Asked, Fetch, From, Wanted};

/// What an image holds, if it is no disk as it is.
///
/// # Errors
///
/// When its first block cannot be had.
pub fn of(fetch: &Fetch, name: &ImageName, version: &FetchedVersion) -> Result<Option<Content>> {
    let Some(VersionBlock { index, entry: MapEntry::Data { pages, hash }, place }) =
        version.blocks()?.advance()?
    else {
        return Ok(None);
    };
    if pages & 1 == 0 {
        return Ok(None);
    }
    let object = place.as_ref().map(|(pack, _)| name.object(Kind::Pack, &pack.name()));
    let object = object.unwrap_or_else(|| name.to_string()).into();
    let from = From::of(object, place.as_ref().map(|(_, place)| place));
    let wanted = Wanted { index, pages, hash, patched: None, from };
    let found = Mutex::new(None);
    fetch.run(&Asked::default(), |planner| planner.want(wanted), &|had| {
        let head = had.bytes.len().min(PAGE as usize);
        *lock(&found) = Content::of(&had.bytes[..head]);
        Ok(())
    })?;
    Ok(found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
}
