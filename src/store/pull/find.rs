//! Finds the version that is wanted: the first step of a pull.

use std::io;

use crate::error::{Error, Result};
use crate::hashmap::map_file::nameless;
use crate::store::fetched::FetchedVersion;
use crate::store::head::{Digest, Head, Proven};
use crate::store::keep::{self, Kept};
use crate::store::pull::Pull;

/// Bytes of a map of which there is no head.
const MOST_PLAIN_MAP: u64 = 128 << 20;

/// What was found in a store.
pub enum Source {
    /// A version with a head, which lies there.
    Version(Box<Kept>, String),
    /// A map alone.
    Plain(Box<FetchedVersion>),
}

impl Pull<'_> {
    /// Step 1, but for what the destination came from.
    pub(super) fn find(&self) -> Result<Source> {
        let object = match &self.pull.version {
            Some(version) => self.name.version(version),
            None => self.name.newest(),
        };
        let address = self.objects.address(&object);
        let found = match keep::read_head(self.objects, &object, self.name)? {
            Some(kept) => Some((kept, address.clone())),
            None => self.newest_if_named()?.map(|kept| (kept, self.objects.address(&self.name.newest()))),
        };
        let Some((kept, address)) = found else { return self.plain(&address) };
        if let Some(trusted) = &self.pull.trusted {
            trusted.check(&kept.sealed.line, &kept.sealed.signature, &address)?;
        }
        if let Some(version) = &self.pull.version
            && kept.head.version() != version.to_string()
        {
            let what = format!("it is the head of version {}", kept.head.version());
            return Err(Error::Protocol { peer: address, what });
        }
        self.check_root(&kept.head, &address)?;
        Ok(Source::Version(Box::new(kept), address))
    }

    /// An image that lies there as it is has one version, the newest: that, if it has the name that is wanted.
    fn newest_if_named(&self) -> Result<Option<Kept>> {
        let Some(version) = &self.pull.version else { return Ok(None) };
        let newest = keep::newest(self.objects, self.name)?;
        Ok(newest.filter(|kept| kept.head.places.is_none() && kept.head.version() == version.to_string()))
    }

    fn check_root(&self, head: &Head, address: &str) -> Result<()> {
        match self.pull.root {
            Some(root) if root != head.root => {
                let what = format!(
                    "version {} has the root hash {}, and --root wants another",
                    head.version(),
                    String::from(head.root)
                );
                Err(Error::Protocol { peer: address.into(), what })
            }
            _ => Ok(()),
        }
    }

    /// An image that lies there as it is, beside its map.
    fn plain(&self, looked_at: &str) -> Result<Source> {
        let object = self.name.plain_map();
        if let Some(version) = &self.pull.version {
            let why = format!("is not there: the store has no version {version} of {}", self.name);
            return Err(Error::refused(looked_at, why));
        }
        if self.pull.trusted.is_some() {
            return Err(Error::refused(
                looked_at,
                "is not there, and --trust wants a signature, which it would have",
            ));
        }
        let failed = |error| Error::file("write a working file for", self.objects.address(&object))(error);
        let Some(bytes) = self.objects.get(&object, MOST_PLAIN_MAP)? else {
            let map = self.objects.address(&object);
            let why = format!("is not there, nor is {map}: nothing was published under this name");
            return Err(Error::refused(looked_at, why));
        };
        let mut file = nameless().map_err(failed)?;
        io::Write::write_all(&mut file, &bytes).map_err(failed)?;
        let digest = Digest(*blake3::hash(&bytes).as_bytes());
        let proven = Proven { digest, length: bytes.len() as u64 };
        let version = FetchedVersion::plain(self.objects, self.name, file, proven)?;
        self.check_root(&version.head, &self.objects.address(&object))?;
        Ok(Source::Plain(Box::new(version)))
    }
}
