//! The small object that says what a version is, and that may be signed: what it names is proven by
//! the hashes in it, so that nothing large is parsed before it is proven.
//!
//! One line of JSON, and behind it the signature of that line, if there is one.

use std::fs::File;
use std::io;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::hashmap::{Grid, Hash, MAX_LENGTH, PAGE};
use crate::options::BlockSize;
use crate::report::{hex, unhex};
use crate::scan::At;
use crate::store::name::{ImageName, ObjectId, Version};

/// The format that this program writes, and the only one that it reads.
const FORMAT: u32 = 1;
/// Bytes of an index of patches: two numbers, key and mask of each, and the lengths of frames.
const MOST_INDEX: u64 = 64 << 20;
/// What an image without a head has in the place of the name of a version.
const PLAIN: &str = "unversioned";
/// The latest time of a head, of the year 2262.
const LATEST: u64 = i64::MAX as u64;
/// Nanoseconds that the time of a head may be ahead of the clock of who is to believe it: a day.
pub const MOST_AHEAD: u64 = 86_400_000_000_000;
/// Bytes of a head with its signature.
pub const MOST: u64 = 16 << 10;

/// A hash as hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub Hash);

impl FromStr for Digest {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Digest, &'static str> {
        unhex(text).map(Digest).ok_or("a hash is 64 hexadecimal digits")
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Digest, &'static str> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        hex(&digest.0)
    }
}

/// An object, proven by its BLAKE3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proven {
    /// BLAKE3 of its bytes.
    pub digest: Digest,
    /// How many these are.
    pub length: u64,
}

impl Proven {
    /// All of a file, wherever it stands.
    ///
    /// # Errors
    ///
    /// What reading reports.
    pub fn of(file: &File) -> io::Result<Proven> {
        let mut hasher = blake3::Hasher::new();
        let length = io::copy(&mut At::new(file, 0), &mut hasher)?;
        Ok(Proven { digest: Digest(*hasher.finalize().as_bytes()), length })
    }
}

/// The patches of a version against the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchesHead {
    /// The BLAKE3 of all of them.
    pub object: Digest,
    /// The index that their object begins with.
    pub index: Proven,
}

/// What a version is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    holesync: u32,
    /// The name of the image.
    name: String,
    /// The name of the version.
    version: String,
    /// What its map, its places and its patches are named: of no other version.
    pub id: ObjectId,
    /// When it was published, in nanoseconds since 1970: later than all versions before.
    pub time: u64,
    /// When the image was modified, in seconds and nanoseconds, if that is known.
    pub modified: Option<(i64, u32)>,
    /// Bytes of the image.
    pub length: u64,
    /// Bytes of a block.
    block_size: u64,
    /// Bytes of data in the image.
    pub data: u64,
    /// Its root hash.
    pub root: Digest,
    /// Its map.
    pub map: Proven,
    /// Where its blocks lie. `None`: the image lies there as it is.
    pub places: Option<Proven>,
    /// What blocks that differ little can be made of.
    pub patches: Option<PatchesHead>,
}

/// What a version is of.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// The name of the image.
    pub name: &'a ImageName,
    /// That of the version.
    pub version: &'a Version,
    /// That of its objects.
    pub id: ObjectId,
    /// When it is published.
    pub time: u64,
    /// When the image was modified.
    pub modified: Option<(i64, u32)>,
    /// Length and block size.
    pub grid: Grid,
    /// Bytes of data.
    pub data: u64,
    /// The root hash.
    pub root: Hash,
}

/// A head as it lies in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedHead {
    /// The line that may be signed, its end included.
    pub line: Vec<u8>,
    /// What follows it.
    pub signature: Vec<u8>,
}

impl Head {
    /// That of a version whose map this is.
    pub fn new(subject: Subject, map: Proven, places: Option<Proven>, patches: Option<PatchesHead>) -> Head {
        Head {
            holesync: FORMAT,
            name: subject.name.to_string(),
            version: subject.version.to_string(),
            id: subject.id,
            time: subject.time,
            modified: subject.modified,
            length: subject.grid.length,
            block_size: subject.grid.block.bytes(),
            data: subject.data,
            root: Digest(subject.root),
            map,
            places,
            patches,
        }
    }

    /// That of an image of which there is a map alone.
    pub fn plain(name: &ImageName, grid: Grid, data: u64, root: Digest, map: Proven) -> Head {
        Head {
            holesync: FORMAT,
            name: name.to_string(),
            version: PLAIN.into(),
            id: ObjectId([0; 16]),
            time: 0,
            modified: None,
            length: grid.length,
            block_size: grid.block.bytes(),
            data,
            root,
            map,
            places: None,
            patches: None,
        }
    }

    /// The line that it is written as.
    pub fn to_line(&self) -> Vec<u8> {
        // A struct of numbers and texts.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// Reads a line that was found at `address`, where `name` is looked for.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] for what is none, of another format or of another image.
    pub fn parse(line: &[u8], address: &str, name: &ImageName) -> Result<Head> {
        let wrong = |what: String| Error::Protocol { peer: address.into(), what };
        #[derive(Deserialize)]
        struct Format {
            holesync: u32,
        }
        let none = |_| wrong("is no head of a version, as holesync publish writes it".into());
        let Format { holesync } = serde_json::from_slice(line).map_err(none)?;
        if holesync != FORMAT {
            return Err(wrong(format!("a head of format {holesync}: it takes another holesync to pull it")));
        }
        let head: Head =
            serde_json::from_slice(line).map_err(|error| wrong(format!("a damaged head: {error}")))?;
        if head.name != name.to_string() {
            return Err(wrong(format!("the head of another image: {:?}", head.name)));
        }
        if !head.is_possible() {
            return Err(wrong("a head of what cannot be".into()));
        }
        Ok(head)
    }

    /// Whether there can be such a version, with objects of such lengths.
    fn is_possible(&self) -> bool {
        let Some(grid) = self.grid() else { return false };
        // Two numbers, mask and hash of a block; a run of one block. Each has a page at least, of which the last
        // of an image may be short.
        let blocks = grid.blocks().min(self.data / PAGE + 1);
        let most = blocks.saturating_mul(64).saturating_add(1 << 16);
        let lengths = [Some(self.map), self.places].map(|object| object.map_or(0, |object| object.length));
        let index = self.patches.as_ref().map_or(0, |patches| patches.index.length);
        self.data <= self.length
            && self.time <= LATEST
            && self.modified.is_none_or(|(_, nanoseconds)| nanoseconds < 1_000_000_000)
            && lengths.into_iter().all(|length| length <= most)
            && index <= MOST_INDEX
            && Version::new(&self.version).is_ok()
    }

    /// The same of a version that is named by its time, a nanosecond later.
    #[must_use]
    pub fn a_moment_later(self) -> Head {
        let time = self.time.saturating_add(1);
        Head { time, version: Version::of_time(time).to_string(), ..self }
    }

    /// The name of the version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether there is no version, but an image of which there is a map alone.
    pub fn is_unversioned(&self) -> bool {
        self.version == PLAIN
    }

    /// What versions are ordered by: the newest has the greatest.
    pub fn order(&self) -> (u64, &str) {
        (self.time, &self.version)
    }

    /// What the image is laid out on; `None`: there is no such image.
    pub fn grid(&self) -> Option<Grid> {
        let block = BlockSize::new(self.block_size).ok()?;
        (self.length <= MAX_LENGTH).then_some(Grid { length: self.length, block })
    }

    /// When it was published.
    pub fn published(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.time)
    }
}

impl SealedHead {
    /// It as it lies in a store.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] where no line is.
    pub fn parse(bytes: &[u8], address: &str) -> Result<SealedHead> {
        let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(|| {
            let what = "is no head of a version, as holesync publish writes it".into();
            Error::Protocol { peer: address.into(), what }
        })?;
        let (line, signature) = bytes.split_at(end + 1);
        Ok(SealedHead { line: line.to_vec(), signature: signature.to_vec() })
    }

    /// The bytes that lie in a store.
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.line.as_slice(), &self.signature].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        let (name, version) = (ImageName::new("disk").unwrap(), Version::new("v1").unwrap());
        let grid = Grid { length: 70_000, block: BlockSize::default() };
        let proven = Proven { digest: Digest([7; 32]), length: 9 };
        let subject = Subject {
            name: &name,
            version: &version,
            id: ObjectId([9; 16]),
            time: 5,
            modified: Some((1, 2)),
            grid,
            data: 4096,
            root: [1; 32],
        };
        Head::new(subject, proven, Some(proven), None)
    }

    #[test]
    fn a_head_is_read_as_it_was_written_and_of_no_other_image() {
        let head = head();
        let sealed = SealedHead { line: head.to_line(), signature: b"signed\n".to_vec() };
        let sealed = SealedHead::parse(&sealed.to_bytes(), "here").unwrap();
        assert_eq!(sealed.signature, b"signed\n");
        assert_eq!(Head::parse(&sealed.line, "here", &ImageName::new("disk").unwrap()).unwrap(), head);
        let other = Head::parse(&sealed.line, "here", &ImageName::new("disk2").unwrap()).unwrap_err();
        assert!(other.to_string().contains("another image"), "{other}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let name = ImageName::new("disk").unwrap();
        let line = String::from_utf8(head().to_line()).unwrap();
        for (from, to) in [
            ("\"holesync\":1", "\"holesync\":2"),
            ("\"length\":70000", "\"length\":9300000000000000000"),
            ("\"block_size\":65536", "\"block_size\":65535"),
            ("\"version\":\"v1\"", "\"version\":\"../v1\""),
            ("\"data\":4096", "\"data\":70001"),
            ("\"id\":\"09", "\"id\":\"..%2f09"),
            ("\"root\":\"01", "\"root\":\"0x"),
            ("\"time\":5", "\"time\":-5"),
            ("\"time\":5", "\"time\":9223372036854775808"),
            ("\"modified\":[1,2]", "\"modified\":[1,1073741823]"),
            ("\"length\":9}", "\"length\":9000000000}"),
        ] {
            let changed = line.replace(from, to);
            assert_ne!(changed, line, "{from}");
            assert!(Head::parse(changed.as_bytes(), "here", &name).is_err(), "{to}");
        }
        // A map has as much to say as there is data, however long the image is.
        let long = line.replace("\"length\":70000", "\"length\":1099511627776");
        assert!(Head::parse(long.as_bytes(), "here", &name).is_ok());
        let long = long.replace("\"length\":9}", "\"length\":1000000}");
        assert!(Head::parse(long.as_bytes(), "here", &name).is_err());
    }
}
