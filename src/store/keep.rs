//! The versions that a store keeps, and what of it nobody needs any more.
//!
//! A version is kept as long as its head is there. What no kept version names, and was there for long enough
//! not to be of somebody who publishes just now, is condemned first, by a dated object: whoever publishes
//! from then on writes anew what is condemned. It is removed when it was condemned for long enough and no
//! kept version names it still: by then whoever had begun before has published, or finds out that something
//! is gone or condemned. It stays condemned for as long once more: another prune may have begun to remove it,
//! too, and would take what was put there under its name since.

mod condemned;
#[cfg(test)]
pub mod meanwhile;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::store::fetched;
use crate::store::head::{self, Head, SealedHead};
use crate::store::name::{ImageName, Kind, ObjectId, Version};
use crate::store::objects::{Objects, WritableObjects, side_by_side};
use crate::working::unforeseen;
use condemned::Condemned;
pub use condemned::{condemned_objects, packs_of};

/// Objects that one such object condemns.
const MOST_AT_ONCE: usize = 1 << 16;
/// How long the heads that were looked for are all that there are, while objects go.
const LOOKED_FOR: Duration = Duration::from_secs(1);
/// How long a file may stay as it is until it is finished, however short the grace: whoever writes it would fail.
const UNFINISHED_FOR: Duration = Duration::from_secs(3600);
/// Heads that are read side by side.
const HEADS_AT_ONCE: usize = 16;
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

impl Kept {
    /// That which these bytes are, found at `address`, where `name` is looked for.
    ///
    /// # Errors
    ///
    /// When they are none.
    pub fn parse(bytes: &[u8], address: &str, name: &ImageName) -> Result<Kept> {
        let sealed = SealedHead::parse(bytes, address)?;
        Ok(Kept { head: Head::parse(&sealed.line, address, name)?, sealed })
    }
}

/// Reads the head of a version; `None`: there is none. Its signature is not looked at.
///
/// # Errors
///
/// When it is none, or cannot be had.
pub fn read_head(objects: &dyn Objects, object: &str, name: &ImageName) -> Result<Option<Kept>> {
    let bytes = objects.get(object, head::MOST)?;
    bytes.map(|bytes| Kept::parse(&bytes, &objects.address(object), name)).transpose()
}

/// The head of the newest version.
///
/// # Errors
///
/// Those of [`read_head`].
pub fn newest(objects: &dyn Objects, name: &ImageName) -> Result<Option<Kept>> {
    read_head(objects, &name.newest(), name).map_err(|error| match error {
        Error::Protocol { peer, what } => {
            Error::Protocol { peer, what: format!("{what}; publish the image again, which replaces it") }
        }
        other => other,
    })
}

/// The versions that are there.
#[derive(Default)]
pub struct Versions {
    /// The newest first.
    pub kept: Vec<Kept>,
    /// What is wrong with heads that are none.
    pub damaged: Vec<Error>,
}

impl Versions {
    /// All of them.
    ///
    /// # Errors
    ///
    /// When one is damaged.
    pub fn whole(mut self) -> Result<Vec<Kept>> {
        if self.damaged.is_empty() { Ok(self.kept) } else { Err(self.damaged.swap_remove(0)) }
    }
}

/// The versions that are there.
///
/// # Errors
///
/// When they cannot be listed or read.
pub fn versions(objects: &dyn WritableObjects, name: &ImageName) -> Result<Versions> {
    versions_from(objects, name, Vec::new())
}

/// The same, where some are known: these are not read again, as what is published stays as it is.
///
/// # Errors
///
/// Those of [`versions`].
pub fn versions_from(objects: &dyn WritableObjects, name: &ImageName, known: Vec<Kept>) -> Result<Versions> {
    let object_of = |kept: &Kept| name.object(Kind::Version, kept.head.version());
    let mut known: HashMap<String, Kept> = known.into_iter().map(|kept| (object_of(&kept), kept)).collect();
    let (mut found, mut unread) = (Versions::default(), Vec::new());
    for object in objects.list(&name.all(Kind::Version))? {
        match known.remove(&object.name) {
            Some(known) => found.kept.push(known),
            None => unread.push(object.name),
        }
    }
    for some in unread.chunks(HEADS_AT_ONCE) {
        let read = side_by_side(some, |object| read_head(objects, object, name));
        for (object, head) in some.iter().zip(read) {
            match head {
                // What lies under another name is a copy that somebody made.
                Ok(head) => found.kept.extend(head.filter(|kept| object_of(kept) == *object)),
                Err(Error::Protocol { peer, what }) => {
                    let what = format!("{what}; remove it if nobody needs it");
                    found.damaged.push(Error::Protocol { peer, what });
                }
                Err(error) => return Err(error),
            }
        }
    }
    found.kept.sort_by(|one, other| other.head.order().cmp(&one.head.order()));
    Ok(found)
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
    let mut kept = versions(objects, name)?.whole()?;
    let is_old = |kept: &Kept| {
        let age = now.duration_since(kept.head.published()).unwrap_or_default();
        rules.older_than.is_none_or(|most| age > most)
    };
    let beyond = kept.split_off(rules.keep.clamp(1, kept.len().max(1)).min(kept.len()));
    let (old, more): (Vec<_>, Vec<_>) = beyond.into_iter().partition(is_old);
    kept.extend(more);
    let mut named = Named::default();
    // What is told to be the newest is pulled, whether or not it is among these.
    let newest = newest(objects, name)?;
    let plain = newest.iter().filter(|newest| newest.head.places.is_none()).count();
    let mut pruned = Pruned { kept: kept.len() + plain, ..Pruned::default() };
    named.learn((objects, name), kept.iter().chain(&newest))?;
    if kept.is_empty() && newest.as_ref().is_some_and(|newest| newest.head.places.is_some()) {
        let why = "names a version, and there is none: nothing is removed; are the heads of the versions elsewhere?";
        return Err(Error::refused(objects.address(&name.newest()), why));
    }
    for version in old {
        if !rules.dry_run {
            objects.remove(&name.version(&Version::new(version.head.version())?))?;
        }
        pruned.versions.push(version.head.version().to_string());
    }
    let began = now.checked_sub(rules.grace).unwrap_or(UNIX_EPOCH);
    let (mut unnamed, mut is_empty) = (HashMap::new(), newest.is_none() && pruned.kept == 0);
    for kind in PARTS {
        for object in objects.list(&name.all(kind))? {
            is_empty = false;
            if !named.objects.contains(&object.name) {
                unnamed.insert(
                    object.name,
                    Unnamed { length: object.length, is_young: object.modified > began },
                );
            }
        }
    }
    if is_empty && pruned.versions.is_empty() {
        return Err(nothing_there(objects, name));
    }
    Pruning { objects, name, rules, now, kept, named, unnamed, pruned }.run()
}

/// That nothing was published under this name.
pub fn nothing_there(objects: &dyn Objects, name: &ImageName) -> Error {
    let why = "no image of this name was published there: look at the name, and at the store";
    Error::refused(objects.address(&name.to_string()), why)
}

/// The objects that versions are made of.
#[derive(Default)]
struct Named {
    objects: HashSet<String>,
    /// The versions that are known.
    versions: HashSet<ObjectId>,
}

impl Named {
    /// What versions are made of which are not known yet.
    fn learn<'a>(
        &mut self,
        (objects, name): (&dyn Objects, &ImageName),
        kept: impl Iterator<Item = &'a Kept>,
    ) -> Result<()> {
        for Kept { head, .. } in kept {
            if head.places.is_none() || !self.versions.insert(head.id) {
                continue;
            }
            let parts = [Kind::Map, Kind::Places, Kind::Patches];
            self.objects.extend(parts.map(|kind| name.object(kind, &head.id.name())));
            let packs = fetched::packs_of(objects, name, head).map_err(|error| {
                let why = format!(
                    "names version {}, of which it cannot be told what it needs, and nothing more is removed: {error}; if it \
                     is lost, remove {} and publish again",
                    head.version(),
                    objects.address(&name.object(Kind::Version, head.version()))
                );
                Error::refused(objects.address(&name.to_string()), why)
            })?;
            self.objects.extend(packs.iter().map(|pack| name.object(Kind::Pack, &pack.name())));
        }
        Ok(())
    }
}

/// An object that no version names.
struct Unnamed {
    length: u64,
    /// It may be of somebody who publishes just now.
    is_young: bool,
}

/// A time as lists have it, since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A prune that knows what no version names.
struct Pruning<'a> {
    objects: &'a dyn WritableObjects,
    name: &'a ImageName,
    rules: &'a PruneRules,
    now: SystemTime,
    /// The versions that are kept, as far as they are known.
    kept: Vec<Kept>,
    named: Named,
    /// What no version names that is kept.
    unnamed: HashMap<String, Unnamed>,
    pruned: Pruned,
}

impl Pruning<'_> {
    fn run(mut self) -> Result<Pruned> {
        let lists = condemned::all(self.objects, self.name)?;
        let known: HashSet<&String> = lists.iter().flat_map(|(_, list)| &list.objects).collect();
        let new = self.unnamed.iter().filter(|(object, one)| !one.is_young && !known.contains(object));
        let mut new: Vec<String> = new.map(|(object, _)| object.clone()).collect();
        new.sort();
        drop(known);
        // What goes makes room for what is condemned now.
        for (object, list) in lists {
            self.carry_out(object, list)?;
        }
        for (object, list) in self.condemn(new)? {
            self.carry_out(object, list)?;
        }
        if !self.rules.dry_run {
            self.remove_unfinished()?;
        }
        Ok(self.pruned)
    }

    /// Removes what whoever was killed left.
    fn remove_unfinished(&self) -> Result<()> {
        let before = self.now.checked_sub(self.rules.grace.max(UNFINISHED_FOR)).unwrap_or(UNIX_EPOCH);
        let directories =
            PARTS.iter().chain(&[Kind::Version, Kind::Condemned]).map(|kind| self.name.all(*kind));
        let single = [self.name.newest(), self.name.plain_map()];
        directories.chain(single).try_for_each(|prefix| self.objects.remove_unfinished(&prefix, before))
    }

    /// Condemns what is new among what nobody names.
    fn condemn(&mut self, new: Vec<String>) -> Result<Vec<(String, Condemned)>> {
        let mut lists = Vec::new();
        let since = seconds(self.now);
        for objects in new.chunks(MOST_AT_ONCE) {
            let bytes = objects.iter().map(|object| self.unnamed[object].length).sum::<u64>();
            self.pruned.condemned.0 += objects.len() as u64;
            self.pruned.condemned.1 += bytes;
            let list = Condemned { since, objects: objects.to_vec() };
            let object = self.name.object(Kind::Condemned, &format!("{since}-{:016x}", unforeseen()));
            if !self.rules.dry_run {
                list.put(self.objects, &object)?;
            }
            lists.push((object, list));
        }
        Ok(lists)
    }

    /// Removes what was condemned for long enough, which stays condemned while somebody else may remove it, too.
    fn carry_out(&mut self, object: String, list: Condemned) -> Result<()> {
        let today = seconds(self.now);
        // A clock was wrong: it is condemned from now on.
        let since = list.since.min(today);
        let is_due = Duration::from_secs(today - since) >= self.rules.grace;
        if is_due && !self.rules.dry_run {
            self.look_again()?;
        }
        // What has a version again is condemned no more.
        let left: Vec<_> =
            list.objects.iter().filter(|one| !self.named.objects.contains(*one)).cloned().collect();
        let there: Vec<_> = left.iter().filter(|one| is_due && self.unnamed.contains_key(*one)).collect();
        if self.rules.dry_run {
            return self.remove(&there);
        }
        if left.is_empty() || is_due && there.is_empty() {
            return self.objects.remove(&object);
        }
        // First, so that whoever looks while it goes, or after a kill, knows that it went just now.
        let since = if is_due { seconds(SystemTime::now()) } else { since };
        let new = Condemned { since, objects: left.clone() };
        if new != list {
            new.put(self.objects, &object)?;
        }
        self.remove(&there)
    }

    /// Removes objects. Where that takes its time, somebody may have published meanwhile what names them.
    fn remove(&mut self, objects: &[&String]) -> Result<()> {
        let mut looked = Instant::now();
        for one in objects {
            if looked.elapsed() > LOOKED_FOR && !self.rules.dry_run {
                self.look_again()?;
                looked = Instant::now();
            }
            if self.named.objects.contains(*one) {
                continue;
            }
            if !self.rules.dry_run {
                self.objects.remove(one)?;
            }
            self.pruned.removed.0 += 1;
            self.pruned.removed.1 += self.unnamed[*one].length;
        }
        Ok(())
    }

    /// Somebody may have published meanwhile.
    fn look_again(&mut self) -> Result<()> {
        let kept = std::mem::take(&mut self.kept);
        self.kept = versions_from(self.objects, self.name, kept)?.whole()?;
        let newest = newest(self.objects, self.name)?;
        self.named.learn((self.objects, self.name), self.kept.iter().chain(&newest))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::meanwhile::{Meanwhile, Op, image, put};
    use super::*;
    use crate::report::Silent;
    use crate::store::check::check;
    use crate::store::objects::Directory;

    #[test]
    fn what_a_slower_prune_removes_still_is_nobody_elses_meanwhile() {
        let (dir, name) = (tempfile::tempdir().unwrap(), ImageName::new("disk").unwrap());
        std::fs::create_dir(dir.path().join("store")).unwrap();
        let store = Directory::open(&dir.path().join("store")).unwrap();
        let (one, other) = (image(dir.path(), 1), image(dir.path(), 2));
        put(&one, (&store, &name), Some("v1"));
        put(&other, (&store, &name), Some("v2"));
        let rules = PruneRules { keep: 1, older_than: None, grace: Duration::ZERO, dry_run: false };
        // A prune ends, and one is published that has what it removed, while another is about to remove that.
        let once = AtomicBool::new(false);
        let slow = Meanwhile::new(&store, |op, object| {
            let is_pack = op == Op::Removing && object.contains("/packs/");
            if is_pack && !once.swap(true, Ordering::Relaxed) {
                prune((&store, &name), &rules).unwrap();
                put(&one, (&store, &name), Some("v3"));
            }
            Ok(())
        });
        prune((&slow, &name), &rules).unwrap();
        assert!(once.into_inner());
        let kept = versions(&store, &name).unwrap().whole().unwrap();
        assert_eq!(kept[0].head.version(), "v3");
        check((&store, &name), &kept[0], &Silent).unwrap();
        // The names are free again, a grace later.
        prune((&store, &name), &PruneRules { keep: 2, ..rules }).unwrap();
        assert_eq!(store.list(&name.all(Kind::Condemned)).unwrap(), []);
    }
}
