//! What is to be removed, as a store has it: lists of objects, with their dates.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::store::name::{ImageName, Kind};
use crate::store::objects::{Content, WritableObjects};
use crate::store::places::PackId;

/// Bytes of an object that condemns others.
const MOST_CONDEMNED: u64 = 64 << 20;

/// Objects that are to be removed, by their names.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condemned {
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Some of them may be gone: their names are given to nothing else for as long.
    pub objects: Vec<String>,
}

impl Condemned {
    /// Puts it there as this object.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn put(&self, objects: &dyn WritableObjects, object: &str) -> Result<()> {
        // A struct of numbers and texts.
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        objects.put(object, Content::Bytes(&bytes))
    }
}

/// What is condemned, by the objects that say so.
///
/// # Errors
///
/// When that cannot be read.
pub fn all(objects: &dyn WritableObjects, name: &ImageName) -> Result<Vec<(String, Condemned)>> {
    let mut found = Vec::new();
    for object in objects.list(&name.all(Kind::Condemned))? {
        // Another prune may have been faster.
        let Some(bytes) = objects.get(&object.name, MOST_CONDEMNED)? else { continue };
        let what = |error| {
            format!(
                "is no list of what is to be removed, as holesync prune writes it: {error}; remove it, and prune again"
            )
        };
        let list = serde_json::from_slice(&bytes);
        let list = list.map_err(|error| Error::refused(objects.address(&object.name), what(error)))?;
        found.push((object.name, list));
    }
    Ok(found)
}

/// What is condemned.
///
/// # Errors
///
/// When that cannot be read.
pub fn condemned_objects(objects: &dyn WritableObjects, name: &ImageName) -> Result<HashSet<String>> {
    Ok(all(objects, name)?.into_iter().flat_map(|(_, list)| list.objects).collect())
}

/// Those of some objects that are packs.
pub fn packs_of(objects: &HashSet<String>, name: &ImageName) -> HashSet<PackId> {
    let prefix = name.all(Kind::Pack);
    objects.iter().filter_map(|object| PackId::parse(object.strip_prefix(&prefix)?)).collect()
}
