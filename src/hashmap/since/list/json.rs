//! Lists as JSON: an array with an object for each range, as `nbdinfo --map --json` and
//! `rbd diff --format json` print it.

use std::fmt;
use std::io::Read;

use serde::de::{DeserializeSeed, Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Ranges, Says};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    offset: u64,
    length: u64,
    /// Of nbdinfo.
    #[serde(rename = "type")]
    kind: Option<u64>,
    description: Option<String>,
    /// Of rbd: it is data, and no hole now.
    #[serde(rename = "exists")]
    _exists: Option<IgnoredAny>,
}

/// Reads all of it.
pub fn read(input: impl Read, ranges: &mut Ranges) -> Result<(), String> {
    let mut json = serde_json::Deserializer::from_reader(input);
    let told = Entries(ranges).deserialize(&mut json).and_then(|()| json.end());
    told.map_err(|error| error.to_string())
}

struct Entries<'a>(&'a mut Ranges);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects with offset and length")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut at = 0u32;
        while let Some(Entry { offset, length, kind, description, .. }) = entries.next_element()? {
            at = at.saturating_add(1);
            let says = match kind {
                None => Ok(Says::Changed),
                Some(kind) => Says::of_nbd(kind, description.as_deref().unwrap_or_default()),
            };
            let added = says.and_then(|says| self.0.add((offset, length), 1, says, at));
            added.map_err(A::Error::custom)?;
        }
        Ok(())
    }
}
