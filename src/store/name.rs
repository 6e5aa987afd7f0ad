//! The names of images, of their versions, and of the objects that these are made of.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::report::{hex, unhex};
use crate::working::unforeseen;

/// Bytes of a name, or of that of a version.
const MOST: usize = 128;

/// The name of an image in its store: one part of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName(String);

/// The name of a version of an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(String);

/// What the name of an object ends with that is never another one: 16 bytes as hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectId(pub [u8; 16]);

impl ObjectId {
    /// One that nobody foresees, and that nothing had before.
    pub fn unforeseen() -> ObjectId {
        let halves = [unforeseen(), unforeseen()].map(u64::to_le_bytes);
        ObjectId(std::array::from_fn(|nth| halves[nth / 8][nth % 8]))
    }

    /// It as part of the name of an object.
    pub fn name(&self) -> String {
        hex(&self.0)
    }

    /// Reads such a part of a name.
    pub fn parse(name: &str) -> Option<ObjectId> {
        unhex(name).map(ObjectId).filter(|id| id.name() == name)
    }
}

impl TryFrom<String> for ObjectId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<ObjectId, &'static str> {
        ObjectId::parse(&text).ok_or("an id is 32 hexadecimal digits")
    }
}

impl From<ObjectId> for String {
    fn from(id: ObjectId) -> String {
        id.name()
    }
}

/// What the objects of an image are, as parts of their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The heads of versions.
    Version,
    /// Maps.
    Map,
    /// Where the blocks of versions lie.
    Places,
    /// Patches.
    Patches,
    /// Packs of blocks.
    Pack,
    /// What is to be removed, and since when.
    Condemned,
}

impl Kind {
    fn directory(self) -> &'static str {
        match self {
            Kind::Version => "versions",
            Kind::Map => "maps",
            Kind::Places => "places",
            Kind::Patches => "patches",
            Kind::Pack => "packs",
            Kind::Condemned => "condemned",
        }
    }
}

/// Whether a text is one part of a path that is safe everywhere: letters, digits and a few signs,
/// and no dot at its start.
fn is_plain(text: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-~".contains(&byte);
    !text.is_empty() && text.len() <= MOST && !text.starts_with(['.', '-']) && text.bytes().all(is_fine)
}

impl ImageName {
    /// Takes a name that a user wrote, or that a store tells.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`].
    pub fn new(text: &str) -> Result<ImageName> {
        let is_own = [".newest", ".store", ".map"].iter().any(|ending| text.ends_with(ending));
        if !is_plain(text) || is_own {
            let what = "is no name of an image in a store: use letters, digits and . _ + - ~, at most 128, no dot or dash \
                        first, and not .newest, .store or .map last";
            return Err(Error::Usage(format!("{text:?} {what}")));
        }
        Ok(ImageName(text.to_string()))
    }

    /// The object that has the head of the newest version.
    pub fn newest(&self) -> String {
        format!("{}.newest", self.0)
    }

    /// The map of an image that lies there as it is.
    pub fn plain_map(&self) -> String {
        format!("{}.map", self.0)
    }

    /// What the names of all objects of a kind begin with.
    pub fn all(&self, kind: Kind) -> String {
        format!("{}.store/{}/", self.0, kind.directory())
    }

    /// The name of an object of a kind.
    pub fn object(&self, kind: Kind, name: &str) -> String {
        format!("{}{name}", self.all(kind))
    }

    /// The object that has the head of a version.
    pub fn version(&self, version: &Version) -> String {
        self.object(Kind::Version, &version.0)
    }
}

impl Version {
    /// Takes the name of a version.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`].
    pub fn new(text: &str) -> Result<Version> {
        if is_plain(text) {
            return Ok(Version(text.to_string()));
        }
        let what = "is no name of a version: use letters, digits and . _ + - ~, at most 128, and no dot or dash first";
        Err(Error::Usage(format!("{text:?} {what}")))
    }

    /// One that is named after a time, in nanoseconds since 1970:
    /// `20261128T221805.123456789Z`.
    pub fn of_time(time: u64) -> Version {
        let (seconds, rest) = (time / 1_000_000_000, time % 1_000_000_000);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        Version(format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{:02}.{rest:09}Z", second % 60))
    }
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar: the year is taken to begin in
/// March, so that its last day is the one that comes every four years.
fn civil(days: u64) -> (u64, u64, u64) {
    let from_march_0 = days + 719_468;
    let (era, day) = (from_march_0 / 146_097, from_march_0 % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, date)
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_named_after_their_time() {
        for (seconds, name) in [
            (0, "19700101T000000.000000001Z"),
            (951_782_400, "20000229T000000.000000001Z"),
            (1_795_904_285, "20261128T221805.000000001Z"),
            (4_107_542_399, "21000228T235959.000000001Z"),
            (4_107_542_400, "21000301T000000.000000001Z"),
        ] {
            assert_eq!(Version::of_time(seconds * 1_000_000_000 + 1).to_string(), name);
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", "a/b", ".a", "-a", "a b", "a@b", "a.newest", "a.map", "a%2f", "\u{e4}"] {
            assert!(ImageName::new(name).is_err(), "{name}");
        }
        assert_eq!(ImageName::new("disk-1.2_x+y~z").unwrap().newest(), "disk-1.2_x+y~z.newest");
    }
}
