//! What names an image in a store: `https://host/path/NAME`, `s3://bucket/prefix/NAME`,
//! `file:///path/NAME`, and where a store is to be written a path of a directory and NAME.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::store::name::{ImageName, Version};
use crate::store::objects::web::address::refuse_secrets;
use crate::store::objects::{Bucket, BucketOptions, Directory, Objects, Web, WebOptions, WritableObjects};

/// Where objects are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// In a directory here.
    Directory(PathBuf),
    /// Below this URL.
    Web(String),
    /// In a bucket, below a prefix.
    Bucket(String),
}

/// What is named in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// An image, and perhaps a version of it.
    Image(ImageName, Option<Version>),
    /// An index of casync or desync.
    Index(String),
}

/// What was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Where it is.
    pub base: Base,
    /// What.
    pub named: Named,
}

/// How a store is reached.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// A web server.
    pub web: WebOptions,
    /// A bucket.
    pub bucket: BucketOptions,
}

impl Reach {
    /// What the environment says.
    ///
    /// # Errors
    ///
    /// When it makes no sense.
    pub fn from_environment() -> Result<Reach> {
        Ok(Reach { web: WebOptions::from_environment()?, bucket: BucketOptions::from_environment()? })
    }
}

impl Base {
    /// Reads what stands before the name of an image.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`].
    pub fn parse(text: &str) -> Result<Base> {
        match text.split_once("://") {
            Some(("http" | "https", _)) => Ok(Base::Web(text.into())),
            Some(("s3", _)) => Ok(Base::Bucket(text.into())),
            Some(("file", path)) if path.starts_with('/') || path.is_empty() => {
                Ok(Base::Directory(if path.is_empty() { "/".into() } else { path.into() }))
            }
            Some(("file", _)) => {
                Err(Error::Usage(format!("{text:?} names no file here: write file:///path/NAME")))
            }
            _ => Ok(Base::Directory(if text.is_empty() { ".".into() } else { text.into() })),
        }
    }

    /// The objects there.
    ///
    /// # Errors
    ///
    /// When they cannot be reached as they are named.
    pub fn open(&self, reach: &Reach) -> Result<Box<dyn Objects>> {
        Ok(match self {
            Base::Directory(path) => Box::new(Directory::open(path)?),
            Base::Web(url) => Box::new(Web::open(url, &reach.web)?),
            Base::Bucket(url) => Box::new(Bucket::open(url, &reach.bucket)?),
        })
    }

    /// The same, to be written.
    ///
    /// # Errors
    ///
    /// When that cannot be; [`Error::Usage`] for a web server.
    pub fn open_writable(&self, reach: &Reach) -> Result<Box<dyn WritableObjects>> {
        match self {
            Base::Directory(path) => Ok(Box::new(Directory::open(path)?)),
            Base::Web(url) => {
                let what = "is a web server, which is read alone: publish into the directory that it serves, or into a \
                            bucket, s3://bucket/prefix/NAME";
                Err(Error::Usage(format!("{url} {what}")))
            }
            Base::Bucket(url) => Ok(Box::new(Bucket::open(url, &reach.bucket)?)),
        }
    }
}

impl Address {
    /// What a SRC names, if it names something in a store: a URL of `http`, `https`, `s3` or `file`.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for one that names no image.
    pub fn of_source(text: &OsStr) -> Result<Option<Address>> {
        let Some(text) = text.to_str() else { return Ok(None) };
        let is_url =
            ["http://", "https://", "s3://", "file://"].iter().any(|scheme| text.starts_with(scheme));
        if is_url { Address::parse(text).map(Some) } else { Ok(None) }
    }

    /// What STORE/NAME names.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`].
    pub fn parse(text: &str) -> Result<Address> {
        refuse_secrets(text)?;
        let (base, name) = match text.rfind('/') {
            Some(0) => ("/", &text[1..]),
            Some(at) => (&text[..at], &text[at + 1..]),
            None => ("", text),
        };
        let ends_early = base.ends_with(":/") || base.ends_with(':');
        if name.is_empty() || ends_early && !base.starts_with("file:") {
            return Err(Error::Usage(format!("{text:?} names no image: write STORE/NAME")));
        }
        // `file:///NAME`
        let base = Base::parse(if base == "file:/" || base == "file://" { "file://" } else { base })?;
        if name.ends_with(".caibx") {
            return Ok(Address { base, named: Named::Index(name.into()) });
        }
        let (name, version) = match name.split_once('@') {
            Some((name, version)) => (name, Some(Version::new(version)?)),
            None => (name, None),
        };
        Ok(Address { base, named: Named::Image(ImageName::new(name)?, version) })
    }

    /// The image that it names, where a store is meant and no version.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`].
    pub fn image(&self) -> Result<&ImageName> {
        match &self.named {
            Named::Image(name, None) => Ok(name),
            Named::Image(name, Some(version)) => {
                Err(Error::Usage(format!("{name}@{version} is one version: write STORE/{name}")))
            }
            Named::Index(index) => {
                Err(Error::Usage(format!("{index} is an index of casync, which holesync reads alone")))
            }
        }
    }
}

/// Where the chunks of an index lie, unless that is told: beside it, as casync has them.
pub const CHUNKS: &str = "default.castr";

/// Whether a path is that of a directory which can be made into a store.
///
/// # Errors
///
/// When it cannot be made.
pub fn make_directory(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::file("make the store", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Base, String)> {
        let Address { base, named } = Address::parse(text)?;
        let named = match named {
            Named::Image(name, version) => {
                format!("{name}{}", version.map_or(String::new(), |version| format!("@{version}")))
            }
            Named::Index(index) => format!("index {index}"),
        };
        Ok((base, named))
    }

    #[test]
    fn stores_and_images_are_told_apart() {
        let directory = |path: &str| Base::Directory(path.into());
        for (text, base, named) in [
            ("https://h:8/a/disk", Base::Web("https://h:8/a".into()), "disk"),
            ("http://h/disk@v1", Base::Web("http://h".into()), "disk@v1"),
            ("s3://bucket/pre/fix/disk", Base::Bucket("s3://bucket/pre/fix".into()), "disk"),
            ("s3://bucket/disk", Base::Bucket("s3://bucket".into()), "disk"),
            ("file:///srv/store/disk", directory("/srv/store"), "disk"),
            ("file:///disk", directory("/"), "disk"),
            ("/srv/store/disk", directory("/srv/store"), "disk"),
            ("/disk", directory("/"), "disk"),
            ("disk", directory("."), "disk"),
            ("https://h/x.caibx", Base::Web("https://h".into()), "index x.caibx"),
        ] {
            assert_eq!(read(text).unwrap(), (base, named.into()), "{text}");
        }
        for text in
            ["https://h/", "https://h", "s3://bucket", "http://", "file://host/a/b", "a/.b", "a/b@", "a/"]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
