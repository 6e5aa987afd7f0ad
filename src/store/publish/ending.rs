//! What ends a publishing: all objects of the version must be there, then its head is put there, and the
//! newest version is named.

use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result, Warning};
use crate::report::Event;
use crate::store::head::{self, Head, MOST_AHEAD, PatchesHead, Proven, SealedHead, Subject};
use crate::store::keep::{self, Kept};
use crate::store::name::{ImageName, Kind, ObjectId, Version};
use crate::store::objects::{Content, WritableObjects};
use crate::store::places::PackId;
use crate::store::publish::blocks::packs_there;
use crate::store::publish::{Publishing, Read};

/// Nanoseconds that clocks may differ without a word: a minute.
const UNTOLD: u64 = 60_000_000_000;
/// How often somebody else may be faster: from then on nobody is looked at.
const MOST_FASTER: u32 = 100;

/// What became of the head of a version.
pub enum HeadPut {
    /// The version is there with this.
    There(SealedHead),
    /// Another one has its name.
    NameIsTaken,
    /// This object of it is gone, or is about to be, and there is no such version.
    Lost(String),
}

/// The time as heads have it.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

impl Publishing<'_> {
    /// What the version is, of which this was put there.
    pub(super) fn head(
        &self,
        kept: &[Kept],
        read: &Read,
        id: ObjectId,
        places: Option<Proven>,
        patches: Option<PatchesHead>,
    ) -> Result<Head> {
        let (now, last) = (now(), self.last(kept)?);
        if last > now.saturating_add(UNTOLD) {
            let what = "the newest version that is there was published at a time that is yet to come: the clock here is \
                        wrong, or that of who published it was; this version is named and ordered behind it";
            self.reporter.event(Event::Warning(&Warning::new(what)));
        }
        let time = now.max(last.saturating_add(1));
        let version = self.options.version.clone().unwrap_or_else(|| Version::of_time(time));
        let modified = self.state.times().map(|times| (times[0], times[1] as u32));
        let subject = Subject {
            name: self.name,
            version: &version,
            id,
            time,
            modified,
            grid: self.grid,
            data: read.data,
            root: read.root,
        };
        Ok(Head::new(subject, read.proven, places, patches))
    }

    /// When the latest of all versions was published, which the new one follows.
    ///
    /// A time that is more than a day ahead is believed by nobody who pulls, nor is that of who follows it. What
    /// the key that signs has not signed is followed only as far as clocks differ: whoever can put a head there
    /// would lead away from what is believed.
    pub(super) fn last(&self, kept: &[Kept]) -> Result<u64> {
        let (now, newest) = (now(), keep::newest(self.objects, self.name).ok().flatten());
        let is_far = |kept: &&Kept| {
            let ahead = kept.head.time.saturating_sub(now);
            ahead > UNTOLD && (ahead > MOST_AHEAD || !self.is_signed_so(kept))
        };
        let far = kept.iter().filter(is_far);
        let far = far.map(|kept| self.name.object(Kind::Version, kept.head.version()));
        let far = far.chain(newest.iter().filter(is_far).map(|_| self.name.newest()));
        let far: Vec<_> = far.map(|object| self.objects.address(&object)).collect();
        if let Some(first) = far.first() {
            let more = match far.len() - 1 {
                0 => String::new(),
                1 => format!(" and {}", far[1]),
                more => format!(" and {more} more"),
            };
            let by = if self.options.sign.is_some() { ", or is not signed by this key," } else { "" };
            let why = format!(
                "tells of a version of a time that is yet to come: it is more than a day ahead{by} and nobody would believe \
                 what is published after it; look at the clock of this machine first: if it is right, remove {first}{more}, and \
                 publish again"
            );
            return Err(Error::refused(first, why));
        }
        Ok(newest.iter().chain(kept).map(|kept| kept.head.time).max().unwrap_or(0))
    }

    /// What is published stays as it is.
    pub(super) fn is_known(&self, version: &str) -> Error {
        let why = format!(
            "has a version {version} already, and what is published stays as it is: give another name"
        );
        Error::refused(self.objects.address(&self.name.to_string()), why)
    }

    /// The head as it lies in a store, where everybody can read it.
    pub(super) fn seal(&self, head: &Head) -> Result<SealedHead> {
        let line = head.to_line();
        let signature = self.options.sign.as_ref().map(|key| key.sign(&line)).transpose()?;
        let sealed = SealedHead { line, signature: signature.unwrap_or_default() };
        let address = self.objects.address(&self.name.to_string());
        Kept::parse(&sealed.to_bytes(), &address, self.name).map_err(|error| {
            let why = format!("is not published, as nobody could read the head of its version: {error}");
            Error::refused(self.image, why)
        })?;
        Ok(sealed)
    }

    /// The version is there with this, if all of it is there before and after.
    pub(super) fn put_head(&self, head: &Head, packs: &[PackId]) -> Result<HeadPut> {
        let version = Version::new(head.version())?;
        let object = self.name.version(&version);
        let sealed = self.seal(head)?;
        // Some of it was put there by others, of whom it is not known how far they came.
        self.objects.have_last(&self.name.all(Kind::Pack))?;
        if let Some(lost) = lost(self.store(), head, packs)? {
            return Ok(HeadPut::Lost(lost));
        }
        let bytes = sealed.to_bytes();
        let lost = match self.objects.put_if(&object, None, &bytes) {
            Ok(false) => return Ok(HeadPut::NameIsTaken),
            Ok(true) => lost(self.store(), head, packs),
            // It may be there all the same.
            Err(error) => Err(error),
        };
        let is_there = matches!(lost, Ok(None));
        let taken_back = if is_there { Ok(()) } else { self.take_back(&object, &bytes) };
        if let Err(why) = taken_back {
            return Err(self.may_be_there(&object, lost.err(), &why));
        }
        Ok(lost?.map_or(HeadPut::There(sealed), HeadPut::Lost))
    }

    /// That a version may be there of which it is not known whether it is whole.
    fn may_be_there(&self, object: &str, first: Option<Error>, why: &Error) -> Error {
        let first = first.map_or(String::new(), |first| format!("{first}; then, "));
        let why = format!(
            "may be the head of a version that is not whole: {first}{why}; look with holesync check, and publish again"
        );
        Error::refused(self.objects.address(object), why)
    }

    /// The version is not there, if this is its head.
    fn take_back(&self, object: &str, bytes: &[u8]) -> Result<()> {
        if self.objects.get(object, head::MOST)?.as_deref() == Some(bytes) {
            self.objects.remove(object)?;
        }
        // Another publisher may have named it the newest.
        name_newest(self.store(), Vec::new())
    }

    /// That a version is not there: a prune took what it was to be made of.
    pub(super) fn is_lost(&self, object: &str) -> Error {
        let why = "was removed, or is about to be, by a prune that ran meanwhile, and there is no such version: \
                   publish it again, and prune when nobody publishes";
        Error::refused(self.objects.address(object), why)
    }
}

/// An object that a version names and that is not there, or is about to go; `None`: there is none.
///
/// # Errors
///
/// When that cannot be told.
pub fn lost(
    (objects, name): (&dyn WritableObjects, &ImageName),
    head: &Head,
    packs: &[PackId],
) -> Result<Option<String>> {
    // First what is condemned, then what is there. What is condemned later was so when the head was there, and
    // whoever removes it looks for heads before that. What was removed earlier is not there.
    let condemned: HashSet<String> = keep::condemned_objects(objects, name)?;
    let there = packs_there(objects, name)?;
    let parts = [(Kind::Map, true), (Kind::Places, true), (Kind::Patches, head.patches.is_some())];
    let parts = parts.into_iter().filter(|(_, is_named)| *is_named);
    let parts: Vec<_> = parts.map(|(kind, _)| name.object(kind, &head.id.name())).collect();
    for part in &parts {
        if objects.length(part)?.is_none() {
            return Ok(Some(part.clone()));
        }
    }
    let missing = packs.iter().find(|pack| !there.contains_key(pack));
    let object = |pack: &PackId| name.object(Kind::Pack, &pack.name());
    let mut all = packs.iter().map(object).chain(parts);
    Ok(missing.map(object).or_else(|| all.find(|object| condemned.contains(object))))
}

/// Names the newest of the versions that are there, of which some are known. Whoever publishes at the same
/// time does the same.
///
/// # Errors
///
/// When the store cannot be read or written.
pub fn name_newest((objects, name): (&dyn WritableObjects, &ImageName), mut known: Vec<Kept>) -> Result<()> {
    for _ in 0..MOST_FASTER {
        known = keep::versions_from(objects, name, known)?.kept;
        let Some(newest) = known.first() else { break };
        // Another one may have its name since.
        let object = name.object(Kind::Version, newest.head.version());
        if objects.get(&object, head::MOST)?.is_none_or(|bytes| bytes != newest.sealed.to_bytes()) {
            known.remove(0);
            continue;
        }
        // A version that was taken back is not named any longer.
        let is_newer = |told: &Kept| {
            if told.sealed == newest.sealed || told.head.order() <= newest.head.order() {
                return Ok(told.sealed == newest.sealed);
            }
            // It may have come since.
            let object = name.object(Kind::Version, told.head.version());
            let is_there =
                || objects.get(&object, head::MOST).map(|there| there == Some(told.sealed.to_bytes()));
            Ok(told.head.places.is_none() || is_there()?)
        };
        if put_newest((objects, name), newest, is_newer)? {
            break;
        }
    }
    Ok(())
}

/// Puts the head of the newest version there, unless what is there is newer. Returns whether that is so:
/// where it was replaced, a newer one may have come meanwhile.
///
/// # Errors
///
/// When the store cannot be read or written.
pub fn put_newest(
    (objects, name): (&dyn WritableObjects, &ImageName),
    newest: &Kept,
    is_newer: impl Fn(&Kept) -> Result<bool>,
) -> Result<bool> {
    let (object, bytes) = (name.newest(), newest.sealed.to_bytes());
    for _ in 0..MOST_FASTER {
        let there = match objects.get(&object, head::MOST) {
            // What is no head is replaced.
            Err(Error::Refused { .. } | Error::Protocol { .. }) => break,
            there => there?,
        };
        let told = there.as_ref().and_then(|there| Kept::parse(there, &object, name).ok());
        if told.map_or(Ok(false), |told| is_newer(&told))? {
            return Ok(true);
        }
        if objects.put_if(&object, there.as_deref(), &bytes)? {
            return Ok(false);
        }
    }
    objects.put(&object, Content::Bytes(&bytes)).map(|()| false)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::hashmap::Grid;
    use crate::options::BlockSize;
    use crate::store::head::Digest;
    use crate::store::keep::meanwhile::{Meanwhile, Op, image, try_to_put};
    use crate::store::objects::Directory;

    fn version(name: &ImageName, version: &str, time: u64) -> Kept {
        let version = Version::new(version).unwrap();
        let proven = Proven { digest: Digest([7; 32]), length: 9 };
        let grid = Grid { length: 70_000, block: BlockSize::default() };
        let (id, modified, data, root) = (ObjectId::unforeseen(), None, 9, [1; 32]);
        let subject = Subject { name, version: &version, id, time, modified, grid, data, root };
        let head = Head::new(subject, proven, Some(proven), None);
        Kept { sealed: SealedHead { line: head.to_line(), signature: Vec::new() }, head }
    }

    #[test]
    fn the_newest_is_the_one_that_is_there() {
        let (dir, name) = (tempfile::tempdir().unwrap(), ImageName::new("disk").unwrap());
        let store = Directory::open(dir.path()).unwrap();
        let put = |kept: &Kept| {
            let object = name.object(Kind::Version, kept.head.version());
            store.put(&object, Content::Bytes(&kept.sealed.to_bytes())).unwrap();
        };
        let told = || keep::newest(&store, &name).unwrap().unwrap().head;
        let [one, two, other] =
            [("one", 1), ("two", 2), ("uno", 2)].map(|(text, time)| version(&name, text, time));
        put(&one);
        put(&two);
        name_newest((&store, &name), Vec::new()).unwrap();
        assert_eq!(told(), two.head);
        // Of two of one moment everybody takes the same.
        put(&other);
        name_newest((&store, &name), vec![one.clone(), two.clone()]).unwrap();
        assert_eq!(told(), other.head);
        // What was taken back is named no longer.
        store.remove(&name.object(Kind::Version, "uno")).unwrap();
        name_newest((&store, &name), vec![other]).unwrap();
        assert_eq!(told(), two.head);
        // An image that lies there as it is, and is newer, stays the newest; what is no head does not.
        let mut raw = Head::plain(&name, one.head.grid().unwrap(), 9, Digest([1; 32]), one.head.map);
        raw.time = 3;
        store.put("disk.newest", Content::Bytes(&raw.to_line())).unwrap();
        name_newest((&store, &name), Vec::new()).unwrap();
        assert_eq!(told(), raw);
        store.put("disk.newest", Content::Bytes(&[b'x'; 20_000])).unwrap();
        name_newest((&store, &name), Vec::new()).unwrap();
        assert_eq!(told(), two.head);
    }

    #[test]
    fn a_head_that_could_not_be_taken_back_is_told_of() {
        let (dir, name) = (tempfile::tempdir().unwrap(), ImageName::new("disk").unwrap());
        std::fs::create_dir(dir.path().join("store")).unwrap();
        let store = Directory::open(&dir.path().join("store")).unwrap();
        let is_away = AtomicBool::new(false);
        // It goes away when the head has been put there.
        let meanwhile = Meanwhile::new(&store, |op, object| {
            let goes = op == Op::Putting && object.contains("/versions/");
            match is_away.fetch_or(goes, Ordering::Relaxed) {
                true => Err(Error::refused(object, "is away")),
                false => Ok(()),
            }
        });
        let put = try_to_put(&image(dir.path(), 1), (&meanwhile, &name), Some("v1"));
        let told = put.unwrap_err().to_string();
        assert!(told.contains("store/disk.store/versions/v1: may be the head of a version"), "{told}");
        assert!(told.contains("condemned/: is away; then, "), "{told}");
        assert_eq!(keep::versions(&store, &name).unwrap().kept.len(), 1);
    }

    /// It came when the versions had been listed.
    #[test]
    fn a_newer_one_that_is_named_since_is_not_replaced() {
        let (dir, name) = (tempfile::tempdir().unwrap(), ImageName::new("disk").unwrap());
        let store = Directory::open(dir.path()).unwrap();
        let [one, two] = [("one", 1), ("two", 2)].map(|(text, time)| version(&name, text, time));
        let put = |kept: &Kept, object: &str| {
            store.put(object, Content::Bytes(&kept.sealed.to_bytes())).unwrap();
        };
        put(&one, &name.object(Kind::Version, "one"));
        let meanwhile = Meanwhile::new(&store, |op, object| {
            assert!(op != Op::Putting, "{object} is replaced by an older one");
            if op == Op::Listed && object == name.all(Kind::Version) {
                put(&two, &name.object(Kind::Version, "two"));
                put(&two, &name.newest());
            }
            Ok(())
        });
        name_newest((&meanwhile, &name), Vec::new()).unwrap();
        assert_eq!(keep::newest(&store, &name).unwrap().unwrap().head, two.head);
    }

    #[test]
    fn a_pack_that_goes_while_it_is_looked_for_is_lost() {
        let (dir, name) = (tempfile::tempdir().unwrap(), ImageName::new("disk").unwrap());
        let store = Directory::open(dir.path()).unwrap();
        let head = version(&name, "v", 1).head;
        let pack = ObjectId([5; 16]);
        let object = name.object(Kind::Pack, &pack.name());
        let list = name.object(Kind::Condemned, "1-1");
        let parts = [Kind::Map, Kind::Places].map(|kind| name.object(kind, &head.id.name()));
        parts.iter().chain([&object]).for_each(|object| store.put(object, Content::Bytes(b"x")).unwrap());
        assert_eq!(lost((&store, &name), &head, &[pack]).unwrap(), None);
        let condemned = format!("{{\"since\":1,\"objects\":[\"{object}\"]}}");
        store.put(&list, Content::Bytes(condemned.as_bytes())).unwrap();
        // Somebody removes it once it was listed, and what said so.
        let meanwhile = Meanwhile::new(&store, |op, prefix| {
            if op == Op::Listed && prefix.ends_with("/packs/") {
                [&object, &list].into_iter().for_each(|object| store.remove(object).unwrap());
            }
            Ok(())
        });
        assert_eq!(lost((&meanwhile, &name), &head, &[pack]).unwrap(), Some(object.clone()));
        assert_eq!(lost((&store, &name), &head, &[pack]).unwrap(), Some(object.clone()));
        store.put(&object, Content::Bytes(b"x")).unwrap();
        store.remove(&parts[1]).unwrap();
        assert_eq!(lost((&store, &name), &head, &[pack]).unwrap().as_ref(), Some(&parts[1]));
    }
}
