//! Publishes an image that lies in the store as it is: its map and its head are written beside it.

use std::os::unix::fs::{FileExt, MetadataExt};

use crate::error::{Again, Error, Result};
use crate::hashmap;
use crate::remote;
use crate::scan::FileImage;
use crate::store::fetched;
use crate::store::keep::{self, Kept};
use crate::store::name::{ObjectId, Version};
use crate::store::objects::Content;
use crate::store::publish::{Counts, Published, Publishing, Read, ending};

impl Publishing<'_> {
    /// The image as it lies there.
    pub(super) fn raw(&self, kept: &[Kept]) -> Result<Published> {
        let plain = self.name.to_string();
        if self.objects.length(&plain)? != Some(self.grid.length) {
            let why = "is not there with the length of the image: --raw is for an image that a web server has as it is; \
                       put it there first, or leave --raw out";
            return Err(Error::refused(self.objects.address(&plain), why));
        }
        // The versions in packs keep their names.
        let named = self.options.version.as_ref().map(Version::to_string);
        if let Some(known) = kept.iter().find(|kept| Some(kept.head.version()) == named.as_deref()) {
            return Err(self.is_known(known.head.version()));
        }
        let read = self.read(|_, _| Ok(()))?;
        self.check_plain(&read)?;
        let told = keep::newest(self.objects, self.name).ok().flatten();
        let is_same = |told: &&Kept| {
            let head = &told.head;
            head.places.is_none()
                && head.map == read.proven
                && head.root.0 == read.root
                && named.as_deref().is_none_or(|version| head.version() == version)
                && self.is_signed_so(told)
        };
        if let Some(same) = told.as_ref().filter(is_same) {
            // Whoever pulls just now reads it: it stays if it is right.
            let map = fetched::fetch(self.objects, &self.name.plain_map(), &read.proven);
            map.map(drop).or_else(|_| self.put_plain_map(&read))?;
            return Ok(Published::already(same));
        }
        let head = self.head(kept, &read, ObjectId::unforeseen(), None, None)?;
        let sealed = self.seal(&head)?;
        let stored = read.proven.length + sealed.to_bytes().len() as u64;
        let time = head.time;
        self.have_plain_last(&plain)?;
        // From here to the next it is the map of no head.
        self.put_plain_map(&read)?;
        let newest = Kept { head: head.clone(), sealed };
        if ending::put_newest(self.store(), &newest, |told| Ok(told.head.time >= time))? {
            let why = "names a version that somebody published meanwhile, and the map may not be that of it: publish again";
            return Err(Error::refused(self.objects.address(&self.name.newest()), why));
        }
        Ok(Published { head, is_old: false, counts: Counts::default(), stored, patches: 0 })
    }

    fn put_plain_map(&self, read: &Read) -> Result<()> {
        self.objects.put(&self.name.plain_map(), Content::File(&read.map))
    }

    /// An image that lies there as a file lasts, before what tells of it does.
    fn have_plain_last(&self, plain: &str) -> Result<()> {
        let Some(file) = self.objects.as_file(plain)? else { return Ok(()) };
        file.sync_all().map_err(Error::file("sync", self.objects.address(plain)))?;
        self.objects.have_last("")
    }

    /// What lies there must be this image.
    fn check_plain(&self, read: &Read) -> Result<()> {
        let plain = self.name.to_string();
        let address = self.objects.address(&plain);
        let other = || {
            let why = format!("is not the image that is published, {}", self.image.display());
            Error::refused(&address, why)
        };
        let Some(file) = self.objects.as_file(&plain)? else { return self.compare_plain(&plain, &other) };
        let this = self.source.file().metadata().map_err(Error::file("look at", self.image))?;
        let that = file.metadata().map_err(Error::file("look at", &address))?;
        if (this.dev(), this.ino()) == (that.dev(), that.ino()) {
            return Ok(());
        }
        let image = FileImage::new(file, self.options.hole_map);
        let root = hashmap::root_of(&image, &self.grid, |_| !remote::is_interrupted());
        match root.map_err(Error::file("read", &address))? {
            None => Err(Error::Interrupted(Again::Puts)),
            Some(root) if root == read.root => Ok(()),
            Some(_) => Err(other()),
        }
    }

    /// The same where it lies elsewhere: all of it comes.
    fn compare_plain(&self, plain: &str, other: &dyn Fn() -> Error) -> Result<()> {
        let (mut at, mut here) = (0, Vec::new());
        self.objects.read_whole(plain, self.grid.length, &mut |bytes| {
            here.resize(bytes.len(), 0);
            let read = self.source.file().read_exact_at(&mut here, at);
            read.map_err(Error::file("read", self.image))?;
            at += bytes.len() as u64;
            if here == bytes { Ok(()) } else { Err(other()) }
        })
    }
}
