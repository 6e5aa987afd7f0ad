//! What to send: the sources on this machine in walk order, with their
//! metadata. Knows nothing of destinations, and of the wire only its entries.

mod owners;

use std::collections::HashSet;
use std::fs::{self, File, Metadata as FileMetadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use crate::error::{Error, Failure, Result, code, printable};
use crate::options::Options;
use crate::scan::{self, FileImage, FileState};
use crate::sys;
use crate::working::is_working_name;

pub use owners::Names;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file, or a block device read as one.
    File {
        /// Its length.
        length: u64,
        /// Bytes it occupies.
        allocated: u64,
        /// Do not compare with what is there.
        whole: bool,
        /// This is a second try: do not skip it by size and time.
        retry: bool,
    },
    /// A directory.
    Directory,
    /// A symlink with this target.
    Symlink(Vec<u8>),
}

/// Metadata of an entry; the receiver's options say what of it is used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Permission bits, `07777`. `None`: the source has none worth keeping (a device).
    pub mode: Option<u32>,
    /// Modification time, seconds and nanoseconds; `None` likewise.
    pub mtime: Option<(i64, u32)>,
    /// Owner and group, by number and, where known, by name.
    pub owner: Option<Owner>,
}

/// Who owns an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// User name, empty if unknown.
    pub user: String,
    /// Group name, empty if unknown.
    pub group: String,
}

/// A file, directory or symlink to send.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its path on this machine.
    pub path: PathBuf,
    /// Its path below the destination.
    pub target: Vec<u8>,
    /// Whether it is a file, a directory or a symlink.
    pub kind: Kind,
    /// Mode, time and owner.
    pub metadata: Metadata,
}

/// A file to be sent that is open, and the state in which it was opened.
pub struct OpenSource {
    /// Its bytes.
    pub image: FileImage,
    /// The state that it was in before anything was read.
    pub state: FileState,
}

impl OpenSource {
    /// Whether it is still in the state in which it was opened.
    pub fn is_unchanged(&self) -> bool {
        self.state.is_still(self.image.file())
    }
}

impl Source {
    /// Opens a file. `hole_map` false: its holes are read, too. A file that takes more of
    /// the page cache than one file should is read past it. `None`: it has another length
    /// than when it was found.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or is no longer a file or device.
    pub fn open(&self, hole_map: bool) -> Result<Option<OpenSource>> {
        let Kind::File { length, allocated, .. } = self.kind else { return Ok(None) };
        let (file, _) = scan::open_image(&self.path)?;
        let state = FileState::of(&file).map_err(Error::file("look at", &self.path))?;
        let image = FileImage::new(file, hole_map);
        let image = if scan::exceeds_cache(allocated) { image.sparing_cache() } else { image };
        Ok((state.length == length).then_some(OpenSource { image, state }))
    }
}

/// What a walk finds.
#[derive(Debug)]
pub enum Found {
    /// An entry to send.
    Source(Source),
    /// An entry that cannot be read.
    Failed(Failure),
    /// An entry that is left out on purpose.
    Skipped(String),
}

/// Whether there is a single source and it is no directory: then the
/// destination may name the file itself.
pub fn is_single(sources: &[PathBuf]) -> bool {
    let look =
        |path: &Path| if names_contents(path) { fs::metadata(path) } else { fs::symlink_metadata(path) };
    matches!(sources, [one] if !look(one).is_ok_and(|metadata| metadata.is_dir()))
}

/// Everything below the sources, parents before children, names in order. A
/// symlink that is named as a source is followed to a file or device.
pub fn walk<'a>(sources: &'a [PathBuf], options: &'a Options) -> impl Iterator<Item = Found> + 'a {
    let mut names = Names::default();
    let mut taken = HashSet::new();
    let several = sources.len() > 1;
    sources.iter().flat_map(|path| walk_one(path, options)).filter_map(move |found| match found {
        // As with rsync, of several sources with one name the first counts.
        Found::Source(source) if several && !taken.insert(source.target.clone()) => None,
        Found::Source(mut source) => {
            if let Some(owner) = &mut source.metadata.owner {
                names.fill(owner);
            }
            Some(Found::Source(source))
        }
        other => Some(other),
    })
}

fn walk_one<'a>(path: &'a Path, options: &'a Options) -> Box<dyn Iterator<Item = Found> + 'a> {
    let one = |found| Box::new(std::iter::once(found));
    let contents = names_contents(path);
    let named = fs::symlink_metadata(path).and_then(|metadata| {
        let target = if metadata.is_symlink() { fs::metadata(path) } else { Ok(metadata.clone()) };
        match target {
            Ok(target) if target.is_dir() && metadata.is_symlink() && !contents => Ok(metadata),
            other => other,
        }
    });
    let metadata = match named {
        Ok(metadata) => metadata,
        Err(error) => return one(Found::Failed(Error::file("read", path)(error).to_failure())),
    };
    let prefix = if contents { Vec::new() } else { base_name(path) };
    if !metadata.is_dir() {
        return one(inspect(path, prefix, &metadata, options));
    }
    if !options.recursive {
        return one(skipped("directory", path));
    }
    // The slash follows a symlink, since the contents of its directory are meant.
    let root = if contents { path.join("") } else { path.to_path_buf() };
    let entries = WalkDir::new(root).sort_by_file_name().into_iter();
    let entries = entries.filter_entry(|entry| !(entry.depth() > 0 && is_working_name(entry.file_name())));
    Box::new(entries.map(move |entry| {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => return unreadable(error, path),
        };
        let below = entry.path().components().rev().take(entry.depth()).collect::<Vec<_>>();
        let mut target = prefix.clone();
        for name in below.iter().rev() {
            if !target.is_empty() {
                target.push(b'/');
            }
            target.extend(name.as_os_str().as_bytes());
        }
        match entry.metadata() {
            // Only a device that is named itself is read, as one reads an image.
            Ok(metadata) if metadata.file_type().is_block_device() => skipped("special file", entry.path()),
            Ok(metadata) => inspect(entry.path(), target, &metadata, options),
            Err(error) => unreadable(error, path),
        }
    }))
}

/// rsync's rule: `dir/`, `.` and `..` mean what is in the directory.
pub fn names_contents(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/") || matches!(bytes.rsplit(|&b| b == b'/').next(), Some(b"." | b".."))
}

/// The names directly below the destination that a source goes to; none for a source
/// that cannot be read.
pub fn top_names(source: &Path) -> Vec<Vec<u8>> {
    if !names_contents(source) {
        return vec![base_name(source)];
    }
    let entries = fs::read_dir(source).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_vec()).collect()
}

fn base_name(path: &Path) -> Vec<u8> {
    path.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default()
}

fn unreadable(error: walkdir::Error, root: &Path) -> Found {
    let path = error.path().unwrap_or(root).to_path_buf();
    let source = error.into_io_error().unwrap_or_else(|| io::Error::other("a loop of links"));
    Found::Failed(lost(&Error::file("read", path)(source)))
}

/// The failure of a source that was there before: a source that is gone has vanished.
pub fn lost(error: &Error) -> Failure {
    let failure = error.to_failure();
    match error {
        Error::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Failure { code: code::VANISHED, ..failure }
        }
        _ => failure,
    }
}

fn skipped(what: &str, path: &Path) -> Found {
    Found::Skipped(format!("skipping {what} {}", printable(path)))
}

fn inspect(path: &Path, target: Vec<u8>, metadata: &FileMetadata, options: &Options) -> Found {
    let kind = metadata.file_type();
    let kind = if kind.is_dir() {
        Ok(Kind::Directory)
    } else if kind.is_symlink() && options.links {
        fs::read_link(path).map(|target| Kind::Symlink(target.into_os_string().into_vec()))
    } else if kind.is_file() {
        let allocated = metadata.blocks().saturating_mul(512).min(metadata.len());
        Ok(Kind::File { length: metadata.len(), allocated, whole: false, retry: false })
    } else if kind.is_block_device() {
        let size = File::open(path).and_then(|device| sys::device_size(&device));
        size.map(|length| Kind::File { length, allocated: length, whole: false, retry: false })
    } else {
        let what = if kind.is_symlink() { "symlink" } else { "special file" };
        return skipped(what, path);
    };
    match kind {
        Ok(kind) => {
            Found::Source(Source { path: path.to_path_buf(), target, kind, metadata: metadata_of(metadata) })
        }
        Err(error) => Found::Failed(Error::file("read", path)(error).to_failure()),
    }
}

/// A device's mode and times say nothing about its content.
fn metadata_of(metadata: &FileMetadata) -> Metadata {
    if metadata.file_type().is_block_device() {
        return Metadata::default();
    }
    Metadata {
        mode: Some(metadata.mode() & 0o7777),
        mtime: Some((metadata.mtime(), metadata.mtime_nsec() as u32)),
        owner: Some(Owner { uid: metadata.uid(), gid: metadata.gid(), ..Owner::default() }),
    }
}

/// Looks at a source again, after it changed while it was read.
///
/// # Errors
///
/// When it is gone, or no longer something that can be sent.
pub fn look_again(source: &Source) -> Result<Source> {
    let metadata = fs::metadata(&source.path).map_err(Error::file("read", &source.path))?;
    match inspect(&source.path, source.target.clone(), &metadata, &Options::default()) {
        Found::Source(mut found) if matches!(found.kind, Kind::File { .. }) => {
            // The names go with the numbers, which are what they were, or nearly always.
            let same = |a: &Owner, b: &Owner| (a.uid, a.gid) == (b.uid, b.gid);
            if let (Some(now), Some(before)) = (&mut found.metadata.owner, &source.metadata.owner)
                && same(now, before)
            {
                now.clone_from(before);
            }
            Ok(found)
        }
        _ => Err(Error::refused(&source.path, "changed into something else while it was read")),
    }
}
