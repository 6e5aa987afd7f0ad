//! What names an image in a store: `https://host/path/NAME`, `s3://bucket/prefix/NAME`,
//! `file:///path/NAME`, and where a store is to be written a path of a directory and NAME.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::location;
use crate::store::name::{ImageName, Version};
use crate::store::objects::web::address::{Origin, parse_base, refuse_secrets};
use crate::store::objects::{
    Bucket, BucketOptions, DIRECTORY_MODE, Directory, Objects, Web, WebOptions, WritableObjects,
};
use crate::working::make_directories;

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

/// What begins the URLs that a store has.
const SCHEMES: [&str; 4] = ["http", "https", "s3", "file"];

/// The scheme of a URL that a store has, and what follows; `None`: it is none.
fn scheme_of(text: &str) -> Option<(&'static str, &str)> {
    SCHEMES.into_iter().find_map(|scheme| {
        let rest = location::behind_scheme(text.as_bytes(), scheme)?;
        Some((scheme, &text[text.len() - rest.len()..]))
    })
}

impl Base {
    /// Reads what stands before the name of an image.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`].
    pub fn parse(text: &str) -> Result<Base> {
        match scheme_of(text) {
            Some((scheme @ ("http" | "https"), rest)) => Ok(Base::Web(format!("{scheme}://{rest}"))),
            Some((scheme @ "s3", rest)) => Ok(Base::Bucket(format!("{scheme}://{rest}"))),
            Some((_, path)) if path.starts_with('/') || path.is_empty() => {
                Ok(Base::Directory(if path.is_empty() { "/".into() } else { path.into() }))
            }
            Some(_) => Err(Error::Usage(format!("{text:?} names no file here: write file:///path/NAME"))),
            None => Ok(Base::Directory(if text.is_empty() { ".".into() } else { text.into() })),
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

    /// Whether both are below URLs of one server: what may be told to one may be told to the other.
    pub fn is_on_server_of(&self, other: &Base) -> bool {
        let origin = |base: &Base| match base {
            Base::Web(url) => parse_base(url).ok().map(|url| Origin::of(&url)),
            Base::Directory(_) | Base::Bucket(_) => None,
        };
        origin(self).is_some_and(|origin_of_self| Some(origin_of_self) == origin(other))
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
        scheme_of(text).map(|_| Address::parse(text)).transpose()
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
        if name.is_empty() || base.ends_with(":/") || base.ends_with(':') {
            return Err(Error::Usage(format!("{text:?} names no image: write STORE/NAME")));
        }
        let base = Base::parse(base)?;
        if is_index(name) {
            return Ok(Address { base, named: Named::Index(name.into()) });
        }
        let (name, version) = match name.split_once('@') {
            Some((name, _)) if is_index(name) => {
                return Err(Error::Usage(format!(
                    "{text:?}: an index of casync has no versions: leave @ out"
                )));
            }
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

/// Whether this is the name of an index of casync or desync.
fn is_index(name: &str) -> bool {
    name.ends_with(".caibx")
}

/// Where the chunks of an index lie, unless that is told: beside it, as casync has them.
pub const CHUNKS: &str = "default.castr";

/// Makes the directory of a store, where there is none.
///
/// # Errors
///
/// When it cannot be made.
pub fn make_directory(path: &Path) -> Result<()> {
    let made = if path.is_dir() { Ok(()) } else { make_directories(path, DIRECTORY_MODE) };
    made.map_err(Error::file("make the store", path))
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
    fn a_server_is_its_scheme_its_host_and_its_port() {
        let base = |url: &str| Base::parse(url).unwrap();
        let here = base("https://Host/images");
        for (other, is_same) in [
            ("https://host:443/chunks/x", true),
            ("HTTPS://host", true),
            ("http://host/images", false),
            ("https://host:8443/images", false),
            ("https://other/images", false),
            ("s3://host/images", false),
            ("/images", false),
        ] {
            assert_eq!(base(other).is_on_server_of(&here), is_same, "{other}");
        }
        assert!(!base("/images").is_on_server_of(&base("/images")), "nobody is told anything");
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
            ("HTTPS://h/x@1.caibx", Base::Web("https://h".into()), "index x@1.caibx"),
            ("File:///disk", directory("/"), "disk"),
            ("S3://Bucket/disk", Base::Bucket("s3://Bucket".into()), "disk"),
        ] {
            assert_eq!(read(text).unwrap(), (base, named.into()), "{text}");
        }
        for text in [
            "https://h/",
            "https://h",
            "s3://bucket",
            "http://",
            "file://host/a/b",
            "file://host",
            "a/.b",
            "a/b@",
            "a/",
            "a/b.caibx@v1",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
