//! A directory in which somebody else does something meanwhile, for tests.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::Result;
use crate::options::BlockSize;
use crate::report::Silent;
use crate::store::name::{ImageName, Version};
use crate::store::objects::{Content, Directory, Listed, Objects, Served, Take, WritableObjects};
use crate::store::publish::{PublishOptions, Published, publish};

/// Writes an image that is `byte` throughout, but for what tells blocks from each other.
pub fn image(dir: &Path, byte: u8) -> PathBuf {
    let blocks = (0..4_u8).flat_map(|nth| [[byte; 65_535].as_slice(), &[nth]].concat());
    let path = dir.join(format!("image{byte}"));
    std::fs::write(&path, blocks.collect::<Vec<_>>()).unwrap();
    path
}

/// Publishes it.
pub fn put(image: &Path, at: (&dyn WritableObjects, &ImageName), version: Option<&str>) -> Published {
    try_to_put(image, at, version).unwrap()
}

/// The same, where it may fail.
pub fn try_to_put(
    image: &Path,
    at: (&dyn WritableObjects, &ImageName),
    version: Option<&str>,
) -> Result<Published> {
    let options = PublishOptions {
        version: version.map(|version| Version::new(version).unwrap()),
        block_size: BlockSize::default(),
        hole_map: true,
        level: 3,
        raw: false,
        sign: None,
    };
    publish(image, at, &options, &Silent)
}

/// What is being done when somebody else has a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// An object was read.
    Got,
    /// Objects were listed.
    Listed,
    /// An object is about to be put there.
    Putting,
    /// An object is about to be removed.
    Removing,
}

/// See the module. What is done is told with the name of the object, and fails where the turn does.
pub struct Meanwhile<'a, F> {
    directory: &'a Directory,
    turn: F,
}

impl<'a, F: Fn(Op, &str) -> Result<()>> Meanwhile<'a, F> {
    /// `turn` is what somebody else does.
    pub fn new(directory: &'a Directory, turn: F) -> Meanwhile<'a, F> {
        Meanwhile { directory, turn }
    }
}

impl<F: Fn(Op, &str) -> Result<()> + Send + Sync> Objects for Meanwhile<'_, F> {
    fn address(&self, name: &str) -> String {
        self.directory.address(name)
    }

    fn get(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let got = self.directory.get(name, most);
        (self.turn)(Op::Got, name)?;
        got
    }

    fn read(&self, name: &str, range: Range<u64>, take: &mut Take) -> Result<Served> {
        self.directory.read(name, range, take)
    }

    fn read_whole(&self, name: &str, length: u64, take: &mut Take) -> Result<()> {
        self.directory.read_whole(name, length, take)
    }

    fn read_front(&self, name: &str, length: u64, take: &mut Take) -> Result<()> {
        self.directory.read_front(name, length, take)
    }
}

impl<F: Fn(Op, &str) -> Result<()> + Send + Sync> WritableObjects for Meanwhile<'_, F> {
    fn put(&self, name: &str, content: Content) -> Result<()> {
        (self.turn)(Op::Putting, name)?;
        self.directory.put(name, content)
    }

    fn put_if(&self, name: &str, there: Option<&[u8]>, bytes: &[u8]) -> Result<bool> {
        (self.turn)(Op::Putting, name)?;
        self.directory.put_if(name, there, bytes)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let listed = self.directory.list(prefix);
        (self.turn)(Op::Listed, prefix)?;
        listed
    }

    fn length(&self, name: &str) -> Result<Option<u64>> {
        self.directory.length(name)
    }

    fn have_last(&self, prefix: &str) -> Result<()> {
        self.directory.have_last(prefix)
    }

    fn remove(&self, name: &str) -> Result<()> {
        (self.turn)(Op::Removing, name)?;
        self.directory.remove(name)
    }

    fn remove_unfinished(&self, prefix: &str, before: SystemTime) -> Result<()> {
        self.directory.remove_unfinished(prefix, before)
    }

    fn as_file(&self, name: &str) -> Result<Option<File>> {
        self.directory.as_file(name)
    }
}
