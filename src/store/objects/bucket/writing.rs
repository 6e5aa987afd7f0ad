//! What changes a bucket, and what is there.

use std::collections::HashSet;
use std::fs::File;
use std::time::SystemTime;

use object_store::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};

use super::failure::{Asking, READING, Trouble};
use super::part;
use super::store::Bucket;
use crate::error::{Error, Result};
use crate::store::objects::web::client::lie;
use crate::store::objects::web::failure::Failed;
use crate::store::objects::{Content, Listed, Objects, WritableObjects};

const WRITING: &str = "writing to it";
const REMOVING: &str = "removing it";
/// As many objects are listed: a bucket that has more is no store of this program.
const MOST: usize = 4_000_000;
/// Bytes of an object that is put where nothing else was, at most.
const MOST_SMALL: u64 = 1 << 20;

impl Bucket {
    /// Puts what one request takes.
    fn put_at_once(&self, path: &Path, asking: Asking, content: Content, length: u64) -> Result<()> {
        let payload = part::read(content, 0, length).map_err(unreadable(asking))?;
        let put = || {
            self.run(async {
                let put = self.store.put_opts(path, payload.clone(), PutOptions::default()).await;
                put.map(drop).map_err(|error| asking.trouble(&error))
            })
        };
        self.expect(asking, put)
    }

    fn put_in_mode(&self, path: &Path, asking: Asking, bytes: &[u8], mode: PutMode) -> Result<bool, Trouble> {
        self.run(async {
            let payload = PutPayload::from(bytes.to_vec());
            let put = self.store.put_opts(path, payload, mode.into()).await;
            put.map(|_| true).map_err(|error| asking.trouble(&error))
        })
    }

    /// How a small object is replaced, if it is this.
    fn replacing(&self, path: &Path, asking: Asking, content: &[u8]) -> Result<Option<PutMode>, Trouble> {
        let got = self.run(async {
            let got = self.store.get_opts(path, GetOptions::default()).await;
            let got = got.map_err(|error| asking.trouble(&error))?;
            let mode = match got.meta.e_tag.clone() {
                Some(e_tag) => PutMode::Update(UpdateVersion { e_tag: Some(e_tag), version: None }),
                None => PutMode::Overwrite,
            };
            if got.meta.size != content.len() as u64 {
                return Ok(None);
            }
            let bytes = got.bytes().await.map_err(|error| asking.trouble(&error))?;
            Ok((bytes == content).then_some(mode))
        });
        match got {
            Err(Trouble::Missing(_)) => Ok(None),
            got => got,
        }
    }

    /// Puts what is longer, in parts, of which one is in memory. `false`: it is not known what became of
    /// them, and they have to be put once more.
    fn put_in_parts(&self, path: &Path, asking: Asking, content: Content, length: u64) -> Result<bool> {
        let upload = self.expect(asking, || {
            self.run(async {
                self.store.create_multipart(path).await.map_err(|error| asking.trouble(&error))
            })
        })?;
        let put = self.put_parts(path, asking, &upload, content, length).and_then(|parts| {
            let mut may_be_done = false;
            let mut complete = || {
                let parts = parts.clone();
                let done = self.run(async {
                    let done = self.store.complete_multipart(path, &upload, parts).await;
                    done.map(|_| true).map_err(|error| asking.trouble(&error))
                });
                match done {
                    // The upload is there no more after an attempt of which the answer was lost.
                    Err(Trouble::Missing(_) | Trouble::Other(Failed::Lasting(Error::Refused { .. })))
                        if may_be_done =>
                    {
                        Ok(false)
                    }
                    done => {
                        may_be_done = true;
                        done
                    }
                }
            };
            self.expect(asking, &mut complete)
        });
        if put.is_err() {
            // What stays of it does not count, and a rule of the bucket may remove it.
            let _ = self.run(async {
                self.store.abort_multipart(path, &upload).await.map_err(|error| asking.trouble(&error))
            });
        }
        put
    }

    fn put_parts(
        &self,
        path: &Path,
        asking: Asking,
        upload: &String,
        content: Content,
        length: u64,
    ) -> Result<Vec<PartId>> {
        let size = part::size(length);
        let mut parts = Vec::new();
        while let at = parts.len() as u64 * size
            && at < length
        {
            let payload = part::read(content, at, size.min(length - at)).map_err(unreadable(asking))?;
            parts.push(self.expect(asking, || {
                self.run(async {
                    let put = self.store.put_part(path, upload, parts.len(), payload.clone()).await;
                    put.map_err(|error| asking.trouble(&error))
                })
            })?);
        }
        Ok(parts)
    }

    /// Does it until it goes well; that something is not there is an error.
    fn expect<T>(&self, asking: Asking, mut once: impl FnMut() -> Result<T, Trouble>) -> Result<T> {
        let done = self.persist(asking, || match once() {
            Err(Trouble::Missing(answered)) => Err(asking.failed(Trouble::Missing(answered)).into()),
            done => done,
        })?;
        done.ok_or_else(|| Error::refused(asking.address, "is not there"))
    }

    fn page(&self, prefix: &str, asking: Asking, token: Option<String>) -> Result<PaginatedListResult> {
        self.expect(asking, || {
            let delimiter = Some("/".into());
            let options = PaginatedListOptions { delimiter, page_token: token.clone(), ..Default::default() };
            self.run(async {
                let listed = self.store.list_paginated(Some(prefix), options).await;
                listed.map_err(|error| asking.trouble(&error))
            })
        })
    }
}

/// The condition of a server that compares ETags without their quotes, as Ceph 16 does.
fn without_quotes(mode: PutMode) -> Option<PutMode> {
    let PutMode::Update(UpdateVersion { e_tag: Some(e_tag), version }) = mode else { return None };
    let bare = e_tag.trim_matches('"').to_string();
    (bare != e_tag).then_some(PutMode::Update(UpdateVersion { e_tag: Some(bare), version }))
}

/// What is put cannot be read.
fn unreadable(asking: Asking) -> impl FnOnce(std::io::Error) -> Error {
    Error::file("read what is to become", asking.address)
}

impl WritableObjects for Bucket {
    fn put(&self, name: &str, content: Content) -> Result<()> {
        let (address, path) = (self.address(name), self.address.path(name)?);
        let asking = self.asking(&address, WRITING);
        let length = content.length().map_err(unreadable(asking))?;
        self.forget(name);
        if length <= part::size(length) {
            return self.put_at_once(&path, asking, content, length);
        }
        let put = self.persist(asking, || match self.put_in_parts(&path, asking, content, length)? {
            true => Ok(()),
            false => Err(asking.passing("it is not known whether all is there").into()),
        });
        put.map(drop)
    }

    fn put_if(&self, name: &str, there: Option<&[u8]>, bytes: &[u8]) -> Result<bool> {
        let (address, path) = (self.address(name), self.address.path(name)?);
        let asking = self.asking(&address, WRITING);
        self.forget(name);
        // An attempt of which the answer was lost may have put it there.
        let is = |bytes: Option<&[u8]>| self.get(name, MOST_SMALL).map(|found| found.as_deref() == bytes);
        let is_there = || is(Some(bytes));
        let put = self.persist(asking, || {
            let mode = match there {
                // Garage 2 knows no conditions, and says nothing of it.
                None if self.length(name)?.is_some() => return Ok(is_there()?),
                None => PutMode::Create,
                Some(there) => match self.replacing(&path, asking, there)? {
                    Some(mode) => mode,
                    None => return Ok(false),
                },
            };
            match self.put_in_mode(&path, asking, bytes, mode.clone()) {
                Err(Trouble::Changed | Trouble::Missing(_)) => match without_quotes(mode) {
                    Some(mode) if is(there)? => match self.put_in_mode(&path, asking, bytes, mode) {
                        Err(passes @ Trouble::Other(Failed::Passing { .. })) => Err(passes),
                        Err(_) => Ok(is_there()?),
                        put => put,
                    },
                    _ => Ok(is_there()?),
                },
                // It has no such conditions.
                Err(Trouble::Unknown(_)) => self.put_in_mode(&path, asking, bytes, PutMode::Overwrite),
                put => put,
            }
        });
        // That it is not there was said of what is to be replaced.
        put.map(|put| put.unwrap_or(false))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let (address, key) = (self.address(prefix), self.address.key(prefix));
        let asking = self.asking(&address, READING);
        let (mut listed, mut tokens, mut token) = (Vec::new(), HashSet::new(), None);
        loop {
            let page = self.page(&key, asking, token)?;
            for object in page.result.objects {
                let Some(last) = object.location.as_ref().strip_prefix(&key) else { continue };
                // That which only stands for the directory has no name of its own.
                if !last.is_empty() && !last.contains('/') {
                    let name = format!("{prefix}{last}");
                    listed.push(Listed { name, length: object.size, modified: object.last_modified.into() });
                }
            }
            token = page.page_token;
            let Some(next) = &token else { break };
            if listed.len() > MOST || !tokens.insert(next.clone()) {
                let what = format!("the list of what is there has no end: {} objects so far", listed.len());
                return match lie(&address, what) {
                    Failed::Lasting(error) | Failed::Passing { error, .. } => Err(error),
                };
            }
        }
        listed.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(listed)
    }

    fn length(&self, name: &str) -> Result<Option<u64>> {
        let (address, path) = (self.address(name), self.address.path(name)?);
        let asking = self.asking(&address, READING);
        self.persist(asking, || {
            let options = GetOptions { head: true, ..GetOptions::default() };
            self.run(async {
                let found = self.store.get_opts(&path, options).await;
                found.map(|found| found.meta.size).map_err(|error| asking.trouble(&error))
            })
        })
    }

    /// A bucket has what it answers for.
    fn have_last(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        let (address, path) = (self.address(name), self.address.path(name)?);
        let asking = self.asking(&address, REMOVING);
        self.forget(name);
        let removed = self.persist(asking, || {
            self.run(async { self.store.delete(&path).await.map_err(|error| asking.trouble(&error)) })
        });
        removed.map(drop)
    }

    /// What is unfinished here are uploads in parts, of which others know nothing: a rule of the bucket removes
    /// them.
    fn remove_unfinished(&self, _: &str, _: SystemTime) -> Result<()> {
        Ok(())
    }

    fn as_file(&self, _: &str) -> Result<Option<File>> {
        Ok(None)
    }
}
