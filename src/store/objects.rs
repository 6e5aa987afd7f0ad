//! Objects below one address, by name. Whoever has them is believed in nothing: what they hold is
//! proven by who asked for it.

mod bucket;
mod directory;
pub mod web;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::time::SystemTime;

use crate::error::{Error, Result};

pub use bucket::{Bucket, BucketOptions};
pub use directory::{DIRECTORY_MODE, Directory};
pub use web::{Credentials, Proxies, Web, WebOptions};

/// How a part of an object was served. Who takes no notice has nothing where there were no ranges.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// All of the range was told.
    Range,
    /// Nothing was told: who has it gives whole objects alone.
    WholeOnly,
}

/// What was asked, and what came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests, repeated ones and redirected ones included.
    pub requests: u64,
    /// Bytes of objects that came, those that came twice included.
    pub bytes: u64,
    /// Bytes that came over connections, with headers and TLS.
    pub received: u64,
    /// Bytes that went.
    pub sent: u64,
}

/// Takes the bytes of an object as they come. An error ends the reading, and is returned.
pub type Take<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// Objects that can be read.
pub trait Objects: Send + Sync {
    /// The address of an object, for messages: nothing secret is in it.
    fn address(&self, name: &str) -> String;

    /// What was asked so far, and what came; of files here that is nothing.
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    /// Ends what is being read, and refuses what is asked from now on, both as an interruption does: what it
    /// was for has failed.
    fn stop(&self) {}

    /// All of an object of at most `most` bytes; `None`: there is none.
    ///
    /// # Errors
    ///
    /// When it is longer, and when it cannot be had: each names the address.
    fn get(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>>;

    /// Tells the bytes of a range of an object, in order, exactly these or an error: what was told
    /// before an error may be wrong. A `name` is read in one version throughout the life of this.
    ///
    /// # Errors
    ///
    /// When they cannot be had, an object that is not there included; and what `take` returns.
    fn read(&self, name: &str, range: Range<u64>, take: &mut Take) -> Result<Served>;

    /// Tells all of an object that has `length` bytes, by one request.
    ///
    /// # Errors
    ///
    /// Those of [`Objects::read`]; when the object has another length.
    fn read_whole(&self, name: &str, length: u64, take: &mut Take) -> Result<()>;

    /// Tells the first `length` bytes of an object that has so many at least, where ranges cannot be had.
    ///
    /// # Errors
    ///
    /// Those of [`Objects::read`].
    fn read_front(&self, name: &str, length: u64, take: &mut Take) -> Result<()>;
}

/// Does the same for several things at once, which mostly wait for somebody: the results, in their order.
pub fn side_by_side<T: Sync, R: Send>(of: &[T], ask: impl Fn(&T) -> Result<R> + Sync) -> Vec<Result<R>> {
    std::thread::scope(|scope| {
        let asking: Vec<_> = of.iter().map(|one| scope.spawn(|| ask(one))).collect();
        let ended = |_| Err(Error::Start("a thread ended early".into()));
        asking.into_iter().map(|thread| thread.join().unwrap_or_else(ended)).collect()
    })
}

/// What is put somewhere.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// All of this file, wherever it stands.
    File(&'a File),
}

impl Content<'_> {
    /// How many bytes that are.
    ///
    /// # Errors
    ///
    /// What looking at the file reports.
    pub fn length(&self) -> io::Result<u64> {
        match self {
            Content::Bytes(bytes) => Ok(bytes.len() as u64),
            Content::File(file) => Ok(file.metadata()?.len()),
        }
    }
}

/// An object that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub length: u64,
    /// When it was put there.
    pub modified: SystemTime,
}

/// Objects that can be written, too.
pub trait WritableObjects: Objects {
    /// Puts an object there, in the place of what has its name: readers find the old or the new one,
    /// wholly, and once this returns it lasts.
    ///
    /// # Errors
    ///
    /// When it cannot be put there: then the old one is there, or the new one.
    fn put(&self, name: &str, content: Content) -> Result<()>;

    /// Puts a small object there if nothing else did meanwhile: if what has its name is still `there`;
    /// `None`: nothing had it. Returns false where something else is there. A store that cannot promise that
    /// to who puts at the same moment looks first.
    ///
    /// # Errors
    ///
    /// Those of [`WritableObjects::put`].
    fn put_if(&self, name: &str, there: Option<&[u8]>, bytes: &[u8]) -> Result<bool>;

    /// Those whose names begin with `prefix`, which ends with `/`, by their names.
    ///
    /// # Errors
    ///
    /// When they cannot be listed.
    fn list(&self, prefix: &str) -> Result<Vec<Listed>>;

    /// How long an object is; `None`: there is none.
    ///
    /// # Errors
    ///
    /// When that cannot be told.
    fn length(&self, name: &str) -> Result<Option<u64>>;

    /// Has what was listed below a prefix, which ends with `/`, last, whoever put it there.
    ///
    /// # Errors
    ///
    /// When that cannot be told.
    fn have_last(&self, prefix: &str) -> Result<()>;

    /// Removes an object, if there is one.
    ///
    /// # Errors
    ///
    /// When it stays.
    fn remove(&self, name: &str) -> Result<()>;

    /// Removes what whoever was killed left of objects whose names begin with `prefix`, if nothing was
    /// written to it since `before`. Objects are not touched.
    ///
    /// # Errors
    ///
    /// When it stays.
    fn remove_unfinished(&self, prefix: &str, before: SystemTime) -> Result<()>;

    /// An object as a file of this machine; `None`: it is none, or there is none.
    ///
    /// # Errors
    ///
    /// When the object cannot be opened.
    fn as_file(&self, name: &str) -> Result<Option<File>>;
}
