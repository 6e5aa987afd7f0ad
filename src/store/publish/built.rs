//! What a version is built upon: the blocks that the versions have which are there.

use std::collections::{HashMap, HashSet};

use crate::error::{Result, Warning};
use crate::report::Event;
use crate::store::fetched::FetchedVersion;
use crate::store::head::Head;
use crate::store::keep::Kept;
use crate::store::name::{Kind, ObjectId};
use crate::store::objects::side_by_side;
use crate::store::places::PackId;
use crate::store::publish::blocks::{KnownBlocks, is_damage};
use crate::store::publish::{IsUsable, Publishing};

/// Versions that are fetched side by side.
const VERSIONS_AT_ONCE: usize = 8;

/// What is built upon.
pub struct Built {
    /// Their blocks.
    pub known: KnownBlocks,
    /// The version before, if it has blocks of this size.
    pub before: Option<FetchedVersion>,
    /// The versions of which everything is there, and their packs.
    pub whole: HashMap<ObjectId, Vec<PackId>>,
}

impl Publishing<'_> {
    /// Which blocks are where; and the version before, if it has blocks of this size. A version that is damaged
    /// is passed over: what it has is written again.
    pub(super) fn known(
        &self,
        kept: &[Kept],
        is_usable: &IsUsable,
        condemned: &HashSet<String>,
    ) -> Result<Built> {
        let mut built = Built { known: KnownBlocks::default(), before: None, whole: HashMap::new() };
        let of_size = |kept: &&Kept| kept.head.grid().is_some_and(|grid| grid.block == self.grid.block);
        // With a key that signs, what others say of where blocks lie is not believed.
        let packed = kept.iter().filter(|kept| kept.head.places.is_some() && self.is_signed_so(kept));
        let newest = packed.clone().next().map(|kept| kept.head.id);
        let packed: Vec<_> = packed.filter(of_size).collect();
        let fetch = |kept: &&Kept| FetchedVersion::fetch(self.objects, self.name, kept.head.clone());
        for some in packed.chunks(VERSIONS_AT_ONCE) {
            if built.known.is_full() {
                break;
            }
            for (kept, fetched) in some.iter().zip(side_by_side(some, fetch)) {
                let added = fetched.and_then(|version| {
                    let has_all = built.known.add_version(&version, is_usable)?;
                    let is_whole = has_all && self.has_parts(&version.head, condemned)?;
                    let packs = is_whole.then(|| version.packs()).transpose()?;
                    Ok((version, packs))
                });
                match added {
                    Ok((version, packs)) => {
                        let id = version.head.id;
                        built.whole.extend(packs.map(|packs| (id, packs)));
                        built.before = built.before.or((newest == Some(id)).then_some(version));
                    }
                    Err(error) if is_damage(&error) => {
                        let what = format!("version {} cannot be built upon: {error}", kept.head.version());
                        self.reporter.event(Event::Warning(&Warning::new(what)));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(built)
    }

    /// Whether map and places of a version, which are there, stay, and the patches that it names are there, too.
    fn has_parts(&self, head: &Head, condemned: &HashSet<String>) -> Result<bool> {
        let part = |kind| self.name.object(kind, &head.id.name());
        if [Kind::Map, Kind::Places, Kind::Patches].iter().any(|kind| condemned.contains(&part(*kind))) {
            return Ok(false);
        }
        Ok(head.patches.is_none() || self.objects.length(&part(Kind::Patches))?.is_some())
    }
}
