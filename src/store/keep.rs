//! The versions that a store keeps, and what of it nobody needs any more.
//!
//! A version is kept as long as its head is there. What no kept version names is condemned first, by a
//! dated object: whoever publishes from then on writes anew what is condemned. It is removed when it was
//! condemned for long enough and no kept version names it still: by then whoever had begun before has
//! published, or finds out that a pack is gone.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::store::fetched::FetchedVersion;
use crate::store::head::{self, Head, SealedHead};
use crate::store::name::{ImageName, Kind, Version};
use crate::store::objects::{Content, Objects, WritableObjects};
use crate::store::places::PackId;
use crate::working::unforeseen;

/// Bytes of an object that condemns others.
const MOST_CONDEMNED: u64 = 64 << 20;
/// Objects that one such object condemns.
const MOST_AT_ONCE: usize = 1 << 16;
/// The kinds of objects that versions are made of.
const PARTS: [Kind; 4] = [Kind::Pack, Kind::Patches, Kind::Places, Kind::Map];

/// A version that is there.
#[derive(Debug, Clone)]
pub struct Kept {
    /// What it is.
    pub head: Head,
    /// As it lies there.
    pub sealed: SealedHead,
}

/// Reads the head of a version; `None`: there is none. Its signature is not looked at.
///
/// # Errors
///
/// When it is none, or cannot be had.
pub fn read_head(objects: &dyn Objects, object: &str, name: &ImageName) -> Result<Option<Kept>> {
    let Some(bytes) = objects.get(object, head::MOST)? else { return Ok(None) };
    let address = objects.address(object);
    let sealed = SealedHead::parse(&bytes, &address)?;
    Ok(Some(Kept { head: Head::parse(&sealed.line, &address, name)?, sealed }))
}

/// The head of the newest version.
///
/// # Errors
///
/// Those of [`read_head`].
pub fn newest(objects: &dyn Objects, name: &ImageName) -> Result<Option<Kept>> {
    read_head(objects, &name.newest(), name)
}

/// The versions that are there, the newest first.
///
/// # Errors
///
/// When they cannot be listed, or one is damaged.
pub fn kept_versions(objects: &dyn WritableObjects, name: &ImageName) -> Result<Vec<Kept>> {
    let mut kept = Vec::new();
    for object in objects.list(&name.all(Kind::Version))? {
        let found = read_head(objects, &object.name, name)?;
        // What lies under another name is a copy that somebody made.
        kept.extend(found.filter(|found| object.name == name.object(Kind::Version, found.head.version())));
    }
    kept.sort_by_key(|kept: &Kept| std::cmp::Reverse(kept.head.time));
    Ok(kept)
}

/// Objects that are to be removed, by their names.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Condemned {
    /// Since when, in seconds since 1970.
    since: u64,
    objects: Vec<String>,
}

/// What is condemned, by the objects that say so.
fn condemned(objects: &dyn WritableObjects, name: &ImageName) -> Result<Vec<(String, Condemned)>> {
    let mut found = Vec::new();
    for object in objects.list(&name.all(Kind::Condemned))? {
        // Another prune may have been faster.
        let Some(bytes) = objects.get(&object.name, MOST_CONDEMNED)? else { continue };
        let what =
            |error| format!("is no list of what is to be removed, as holesync prune writes it: {error}");
        let list = serde_json::from_slice(&bytes);
        let list = list.map_err(|error| Error::refused(objects.address(&object.name), what(error)))?;
        found.push((object.name, list));
    }
    Ok(found)
}

/// The packs that are condemned.
///
/// # Errors
///
/// When that cannot be read.
pub fn condemned_packs(objects: &dyn WritableObjects, name: &ImageName) -> Result<HashSet<PackId>> {
    let prefix = name.all(Kind::Pack);
    let lists = condemned(objects, name)?;
    let names = lists.iter().flat_map(|(_, list)| &list.objects);
    Ok(names.filter_map(|object| PackId::parse(object.strip_prefix(&prefix)?)).collect())
}

/// What is kept.
#[derive(Debug, Clone, Copy)]
pub struct PruneRules {
    /// So many versions at least, the newest.
    pub keep: usize,
    /// And those that are no older.
    pub older_than: Option<Duration>,
    /// How long what no version names stays.
    pub grace: Duration,
    /// Nothing is changed.
    pub dry_run: bool,
}

/// What became of a store.
#[derive(Debug, Clone, Default)]
pub struct Pruned {
    /// Versions that are gone.
    pub versions: Vec<String>,
    /// Versions that are kept.
    pub kept: usize,
    /// Objects that were condemned: how many, and their bytes.
    pub condemned: (u64, u64),
    /// Objects that were removed: how many, and their bytes.
    pub removed: (u64, u64),
}

/// Forgets versions, and removes what none names that is kept.
///
/// # Errors
///
/// When the store cannot be read or written: what was not removed is found by the next run.
pub fn prune((objects, name): (&dyn WritableObjects, &ImageName), rules: &PruneRules) -> Result<Pruned> {
    let now = SystemTime::now();
    let mut kept = kept_versions(objects, name)?;
    let is_old = |kept: &Kept| {
        let age = now.duration_since(kept.head.published()).unwrap_or_default();
        rules.older_than.is_none_or(|most| age > most)
    };
    let beyond = kept.split_off(rules.keep.clamp(1, kept.len().max(1)).min(kept.len()));
    let (old, more): (Vec<_>, Vec<_>) = beyond.into_iter().partition(is_old);
    kept.extend(more);
    let mut pruned = Pruned { kept: kept.len(), ..Pruned::default() };
    for version in old {
        if !rules.dry_run {
            objects.remove(&name.version(&Version::new(version.head.version())?))?;
        }
        pruned.versions.push(version.head.version().to_string());
    }
    // What is told to be the newest is pulled, whether or not it is among these.
    let newest = newest(objects, name)?;
    let named = named_by(objects, name, &[kept.as_slice(), newest.as_slice()].concat())?;
    let mut unnamed = HashMap::new();
    for kind in PARTS {
        let listed = objects.list(&name.all(kind))?;
        let listed = listed.into_iter().filter(|object| !named.contains(&object.name));
        unnamed.extend(listed.map(|object| (object.name, object.length)));
    }
    Pruning { objects, name, rules, now, unnamed, pruned }.run()
}

/// The objects that versions are made of.
fn named_by(objects: &dyn Objects, name: &ImageName, kept: &[Kept]) -> Result<HashSet<String>> {
    let mut named = HashSet::new();
    for Kept { head, .. } in kept {
        let Some(places) = head.places else { continue };
        named.insert(name.object(Kind::Map, &head.map.digest.name()));
        named.insert(name.object(Kind::Places, &places.digest.name()));
        let patches = head.patches.as_ref();
        named.extend(patches.map(|patches| name.object(Kind::Patches, &patches.object.name())));
        let version = FetchedVersion::fetch(objects, name, head.clone())?;
        named.extend(version.packs()?.iter().map(|pack| name.object(Kind::Pack, &pack.name())));
    }
    Ok(named)
}

/// A prune that knows what no version names.
struct Pruning<'a> {
    objects: &'a dyn WritableObjects,
    name: &'a ImageName,
    rules: &'a PruneRules,
    now: SystemTime,
    /// What no version names that is kept, and how long it is.
    unnamed: HashMap<String, u64>,
    pruned: Pruned,
}

impl Pruning<'_> {
    fn run(mut self) -> Result<Pruned> {
        let lists = condemned(self.objects, self.name)?;
        let known: HashSet<&String> = lists.iter().flat_map(|(_, list)| &list.objects).collect();
        let mut new: Vec<_> = self.unnamed.keys().filter(|object| !known.contains(object)).cloned().collect();
        new.sort();
        drop(known);
        let lists = lists.into_iter().map(|(object, list)| (Some(object), list)).collect();
        let lists = self.condemn(new, lists)?;
        for (object, list) in lists {
            self.carry_out(object, list)?;
        }
        Ok(self.pruned)
    }

    /// Condemns what is new among what nobody names.
    fn condemn(
        &mut self,
        new: Vec<String>,
        mut lists: Vec<(Option<String>, Condemned)>,
    ) -> Result<Vec<(Option<String>, Condemned)>> {
        let since = self.now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        for objects in new.chunks(MOST_AT_ONCE) {
            let bytes = objects.iter().map(|object| self.unnamed[object]).sum::<u64>();
            self.pruned.condemned.0 += objects.len() as u64;
            self.pruned.condemned.1 += bytes;
            let list = Condemned { since, objects: objects.to_vec() };
            let object = self.name.object(Kind::Condemned, &format!("{since}-{:016x}", unforeseen()));
            if !self.rules.dry_run {
                self.put(&object, &list)?;
            }
            lists.push((Some(object), list));
        }
        Ok(lists)
    }

    fn put(&self, object: &str, list: &Condemned) -> Result<()> {
        // A struct of numbers and texts.
        let bytes = serde_json::to_vec(list).unwrap_or_default();
        self.objects.put(object, Content::Bytes(&bytes))
    }

    /// Removes what was condemned for long enough.
    fn carry_out(&mut self, object: Option<String>, list: Condemned) -> Result<()> {
        let since = UNIX_EPOCH.checked_add(Duration::from_secs(list.since)).unwrap_or(self.now);
        let age = self.now.duration_since(since).unwrap_or_default();
        let is_due = age >= self.rules.grace;
        let before = list.objects.len();
        // What has a version again is condemned no more.
        let mut left: Vec<_> =
            list.objects.into_iter().filter(|one| self.unnamed.contains_key(one)).collect();
        if is_due {
            let named = match self.rules.dry_run {
                true => HashSet::new(),
                // Somebody may have published meanwhile.
                false => named_by(self.objects, self.name, &kept_versions(self.objects, self.name)?)?,
            };
            for one in left.drain(..).filter(|one| !named.contains(one)) {
                if !self.rules.dry_run {
                    self.objects.remove(&one)?;
                }
                self.pruned.removed.0 += 1;
                self.pruned.removed.1 += self.unnamed[&one];
            }
        }
        let Some(object) = object.filter(|_| !self.rules.dry_run) else { return Ok(()) };
        match left.len() {
            0 => self.objects.remove(&object),
            len if len < before => self.put(&object, &Condemned { since: list.since, objects: left }),
            _ => Ok(()),
        }
    }
}
