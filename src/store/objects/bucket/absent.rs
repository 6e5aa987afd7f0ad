//! What stands for a bucket in a program that was built without them.

use std::fs::File;
use std::ops::Range;
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::store::objects::{BucketOptions, Content, Listed, Objects, Served, Take, WritableObjects};

/// There is none.
#[derive(Debug)]
pub enum Bucket {}

impl Bucket {
    /// # Errors
    ///
    /// Always.
    pub fn open(url: &str, _: &BucketOptions) -> Result<Bucket> {
        Err(Error::Usage(format!(
            "{url}: this holesync was built without buckets: the released program has them, and so has one that \
             was built with the feature \"bucket\""
        )))
    }
}

impl Objects for Bucket {
    fn address(&self, _: &str) -> String {
        match *self {}
    }

    fn get(&self, _: &str, _: u64) -> Result<Option<Vec<u8>>> {
        match *self {}
    }

    fn read(&self, _: &str, _: Range<u64>, _: &mut Take) -> Result<Served> {
        match *self {}
    }

    fn read_whole(&self, _: &str, _: u64, _: &mut Take) -> Result<()> {
        match *self {}
    }

    fn read_front(&self, _: &str, _: u64, _: &mut Take) -> Result<()> {
        match *self {}
    }
}

impl WritableObjects for Bucket {
    fn put(&self, _: &str, _: Content) -> Result<()> {
        match *self {}
    }

    fn put_if(&self, _: &str, _: Option<&[u8]>, _: &[u8]) -> Result<bool> {
        match *self {}
    }

    fn list(&self, _: &str) -> Result<Vec<Listed>> {
        match *self {}
    }

    fn length(&self, _: &str) -> Result<Option<u64>> {
        match *self {}
    }

    fn have_last(&self, _: &str) -> Result<()> {
        match *self {}
    }

    fn remove(&self, _: &str) -> Result<()> {
        match *self {}
    }

    fn remove_unfinished(&self, _: &str, _: SystemTime) -> Result<()> {
        match *self {}
    }

    fn as_file(&self, _: &str) -> Result<Option<File>> {
        match *self {}
    }
}
