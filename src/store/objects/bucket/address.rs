//! `s3://bucket/prefix`

use object_store::path::Path;

use crate::error::{Error, Result, escape};

/// Where objects lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The bucket.
    pub bucket: String,
    /// What all names begin with, before a `/`; empty: they begin where the bucket does.
    prefix: String,
}

impl Address {
    /// That of a URL.
    pub fn parse(url: &str) -> Result<Address> {
        let shown = escape(url.as_bytes());
        let bad =
            |why: &str| Error::Usage(format!("{shown} names no bucket: {why}; write s3://bucket/prefix"));
        let rest = url.strip_prefix("s3://").ok_or_else(|| bad("it does not begin with s3://"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if rest.contains('@') && !bucket.is_empty() && bucket.contains('@') {
            // What stands there may be a secret.
            return Err(Error::Usage(
                "a URL of a bucket has no keys in it: everybody on this machine would see them; set AWS_ACCESS_KEY_ID \
                 and AWS_SECRET_ACCESS_KEY, or write them into ~/.aws/credentials"
                    .into(),
            ));
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if bucket.is_empty() || !bucket.chars().all(is_plain) || bucket.starts_with('.') {
            return Err(bad("the name of a bucket has letters, digits, \".\", \"-\" and \"_\" alone"));
        }
        let prefix = prefix.trim_end_matches('/');
        if !prefix.is_empty() {
            plain_path(prefix).ok_or_else(|| bad("its prefix has a part that no name can have"))?;
        }
        Ok(Address { bucket: bucket.into(), prefix: prefix.into() })
    }

    /// The key of an object.
    pub fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.into() } else { format!("{}/{name}", self.prefix) }
    }

    /// It, for requests.
    pub fn path(&self, name: &str) -> Result<Path> {
        let bad = || Error::refused(self.shown(name), "is no name that an object of a store can have");
        plain_path(&self.key(name)).ok_or_else(bad)
    }

    /// The URL of an object, for messages.
    pub fn shown(&self, name: &str) -> String {
        escape(format!("s3://{}/{}", self.bucket, self.key(name)).as_bytes())
    }
}

/// A path that is taken as it stands.
fn plain_path(path: &str) -> Option<Path> {
    Path::parse(path).ok().filter(|parsed| parsed.as_ref() == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_and_what_all_names_begin_with() {
        for (url, key) in [
            ("s3://images", "a/b"),
            ("s3://images/", "a/b"),
            ("s3://images/x/y/", "x/y/a/b"),
            ("s3://images/a b%20ü", "a b%20ü/a/b"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!((address.bucket.as_str(), address.key("a/b").as_str()), ("images", key));
            assert_eq!(address.path("a/b").unwrap().as_ref(), key);
            assert_eq!(address.shown("a/b"), format!("s3://images/{key}"));
        }
    }

    #[test]
    fn what_is_no_address_is_told_without_secrets() {
        for bad in
            ["s3:/x", "s3://", "s3:///x", "s3://a:b", "s3://b//x", "s3://b/../x", "s3://.b", "http://b"]
        {
            assert_eq!(Address::parse(bad).unwrap_err().exit_code(), 1, "{bad}");
        }
        let error = Address::parse("s3://AKIA:sesame@b/x").unwrap_err();
        assert!(!error.to_string().contains("sesame"), "{error}");
        let address = Address::parse("s3://b/x").unwrap();
        for bad in ["", "a//b", "../a", "/a", "a/", "a\n"] {
            assert!(address.path(bad).is_err(), "{bad:?}");
        }
    }
}
