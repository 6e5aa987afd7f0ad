//! Looks whether the versions of an image are whole: each block lies where it is said to, and has its hash.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Again, Error, Result};
use crate::hashmap::{self, MapEntry};
use crate::remote;
use crate::report::{Event, Phase, Reporter};
use crate::scan::FileImage;
use crate::store::fetched::{FetchedVersion, fetch};
use crate::store::head::Proven;
use crate::store::keep::{self, Kept};
use crate::store::name::{ImageName, Kind};
use crate::store::objects::WritableObjects;
use crate::store::places::PackId;
use crate::store::pull::JOBS;
use crate::store::pull::fetch::{Asked, Fetch, From, Wanted};
use crate::store::signature;

/// What was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checked {
    /// Blocks that are not zero.
    pub blocks: u64,
    /// Bytes that were read for them.
    pub bytes: u64,
}

/// Reads all that a version is made of. After an error `objects` may tell of interruptions alone.
///
/// # Errors
///
/// What is wrong with it first, with its address, and what to do about it.
pub fn check(
    at: (&dyn WritableObjects, &ImageName),
    kept: &Kept,
    reporter: &dyn Reporter,
) -> Result<Checked> {
    check_parts(at, kept, reporter).map_err(|error| match error {
        Error::Protocol { peer, what } => {
            let what = format!("{what}; {}", what_to_do(at, kept, &peer));
            Error::Protocol { peer, what }
        }
        Error::File { path, source, .. } if source.kind() == io::ErrorKind::NotFound => {
            let why = format!("is not there; {}", what_to_do(at, kept, &path.to_string_lossy()));
            Error::refused(path, why)
        }
        other => other,
    })
}

/// What to do about a version of which the object at an address is damaged. Of a pack other versions may need what
/// is right in it, and whoever publishes believes what versions say that it holds, as long as they are there.
fn what_to_do((objects, name): (&dyn WritableObjects, &ImageName), kept: &Kept, address: &str) -> String {
    let version = kept.head.version();
    if kept.head.places.is_none() {
        // What lies there as it is may be all that there is of the image.
        return "if it lies there like that, publish the image again".into();
    }
    let is_pack = address.starts_with(&objects.address(&name.all(Kind::Pack)));
    let leave = if is_pack { "; leave the pack, of which other versions may need the rest" } else { "" };
    let head = objects.address(&name.object(Kind::Version, version));
    format!(
        "if it lies there like that, version {version} is not whole: remove {head}, which gives up that version, and \
         publish its image again if it is still wanted{leave}"
    )
}

fn check_parts(
    (objects, name): (&dyn WritableObjects, &ImageName),
    kept: &Kept,
    reporter: &dyn Reporter,
) -> Result<Checked> {
    let Kept { head, sealed } = kept;
    if !sealed.signature.is_empty() && !signature::fits(&sealed.line, &sealed.signature) {
        let object = match head.places {
            Some(_) => name.object(Kind::Version, head.version()),
            None => name.newest(),
        };
        let what = "its signature is none of what it says: it was damaged, or changed by another".into();
        return Err(Error::Protocol { peer: objects.address(&object), what });
    }
    let version = FetchedVersion::fetch(objects, name, head.clone())?;
    reporter.event(Event::Found(head.data));
    let checked = match head.places {
        Some(_) => check_blocks((objects, name), &version, reporter)?,
        None => check_plain((objects, name), &version, reporter)?,
    };
    if let Some(patches) = &head.patches {
        let object = name.object(Kind::Patches, &head.id.name());
        let missing = || {
            let what = "it is not there, and a version names it".into();
            Error::Protocol { peer: objects.address(&object), what }
        };
        let length = objects.length(&object)?.ok_or_else(missing)?;
        fetch(objects, &object, &Proven { digest: patches.object, length })?;
    }
    Ok(checked)
}

/// Reads an image that lies there as it is: all of it, where it is a file, or what has data.
fn check_plain(
    (objects, name): (&dyn WritableObjects, &ImageName),
    version: &FetchedVersion,
    reporter: &dyn Reporter,
) -> Result<Checked> {
    let (plain, head) = (name.to_string(), &version.head);
    let wrong = |what| Err(Error::Protocol { peer: objects.address(&plain), what });
    match objects.length(&plain)? {
        Some(there) if there == head.length => {}
        Some(there) => return wrong(format!("it has {there} bytes, and {} were published", head.length)),
        None => return wrong("it is not there".into()),
    }
    let Some(file) = objects.as_file(&plain)? else {
        return check_blocks((objects, name), version, reporter);
    };
    let root = hashmap::root_of(&FileImage::new(file, true), &version.grid(), |bytes| {
        reporter.event(Event::Done(Phase::Mapping, bytes));
        !remote::is_interrupted()
    });
    let root = root.map_err(Error::file("read", objects.address(&plain)))?;
    if root.ok_or(Error::Interrupted(Again::Anew))? != head.root.0 {
        return wrong("it is another image than was published".into());
    }
    let (mut all, mut blocks) = (version.blocks()?, 0);
    while let Some(block) = all.advance()? {
        blocks += u64::from(matches!(block.entry, MapEntry::Data { .. }));
    }
    Ok(Checked { blocks, bytes: head.data })
}

/// Reads all blocks of a version that have data.
fn check_blocks(
    (objects, name): (&dyn WritableObjects, &ImageName),
    version: &FetchedVersion,
    reporter: &dyn Reporter,
) -> Result<Checked> {
    let grid = version.grid();
    let mut blocks = 0;
    let mut names: HashMap<PackId, Arc<str>> = HashMap::new();
    let plain: Arc<str> = name.to_string().into();
    let asked = Asked::default();
    let fetching = Fetch { objects, grid, jobs: JOBS, whole: false, dry_run: false };
    fetching.run(
        &asked,
        |planner| {
            let mut all = version.blocks()?;
            while let Some(block) = all.advance()? {
                let MapEntry::Data { pages, hash } = block.entry else { continue };
                let from = match block.place {
                    None => From::Plain { object: Arc::clone(&plain) },
                    Some((pack, place)) => {
                        let object = names.entry(pack);
                        let object = object.or_insert_with(|| name.object(Kind::Pack, &pack.name()).into());
                        From::Frame { object: Arc::clone(object), range: place.frame(), raw: place.raw }
                    }
                };
                blocks += 1;
                planner.want(Wanted { index: block.index, pages, hash, patched: None, from })?;
            }
            Ok(())
        },
        &|had| {
            reporter.event(Event::Done(Phase::Mapping, had.bytes.len() as u64));
            Ok(())
        },
    )?;
    Ok(Checked { blocks, bytes: asked.bytes.load(Ordering::Relaxed) })
}

/// Looks whether what is told to be the newest version is. Returns it if it is none of those that are kept, but
/// an image that lies there as it is.
///
/// # Errors
///
/// When it is not.
pub fn check_newest(
    (objects, name): (&dyn WritableObjects, &ImageName),
    kept: &[Kept],
) -> Result<Option<Kept>> {
    let address = objects.address(&name.newest());
    let told = keep::newest(objects, name)?;
    match (told, kept.first()) {
        (None, None) => {
            Err(Error::refused(address, "is not there, nor is any version: nothing was published"))
        }
        (Some(told), Some(newest)) if told.sealed == newest.sealed => Ok(None),
        // An image that lies there as it is has no other head.
        (Some(told), newest)
            if told.head.places.is_none()
                && newest.is_none_or(|newest| told.head.order() > newest.head.order()) =>
        {
            Ok(Some(told))
        }
        (None, Some(newest)) => {
            let why =
                format!("is not there, and {} is the newest version: publish again", newest.head.version());
            Err(Error::refused(address, why))
        }
        (Some(told), Some(newest)) if told.head == newest.head => {
            let why = format!("is signed otherwise than version {}: publish again", told.head.version());
            Err(Error::refused(address, why))
        }
        (Some(told), _) => {
            let why = format!(
                "names {}, which is not the newest version that is there: publish again",
                told.head.version()
            );
            Err(Error::refused(address, why))
        }
    }
}
