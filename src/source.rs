//! What to send: the sources on this machine in walk order, with their
//! metadata. Knows nothing of destinations, and of the wire only its entries.
//!
//! What the user named is opened wherever that leads. If it is a directory, it is held from
//! then on, and all below it is looked at and opened from there, over no symlink and no
//! `..`: others may write in it. A file that is read is the one that was found (device and
//! inode), or it is looked at again, as after any change.

mod asked;
mod contents;
mod extended;
mod item;
mod kept;
mod links;
mod list;
mod named;
mod owners;
mod path;
mod patterns;
mod removal;
mod rules;
mod together;
mod walk;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag, fstat};
use serde::{Deserialize, Serialize};

use crate::confinement::NamedPath;
use crate::error::{Error, Failure, Result, Warning, code, escape, printable};
use crate::options::Options;
use crate::scan::{self, FileImage, FileState};
use crate::sys;
use crate::sys::xattrs::{Acls, Xattr};

pub use asked::Asked;
pub use contents::{ContentsTold, NOTHING_REMOVED, Told, deletes, tell_contents};
pub use item::item;
pub use kept::choose;
pub use links::Links;
pub use list::{NameList, read_names};
pub use named::{names_contents, top_names};
pub use owners::{Names, has_another_service};
pub use path::{MAX_NAME, MAX_PATH, NOT_SENT, is_plain, is_unsafe_link};
pub use patterns::expand as expand_patterns;
use removal::Seen;
pub use rules::read as read_rules;
pub use together::merges;
pub use walk::{Contents, Found, Tells, Walk};

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
    /// A device node, fifo or socket.
    Node(Node),
    /// Another name of what has this path, which was sent before.
    HardLink(Vec<u8>),
    /// Nothing: it was named, and is not there.
    Missing,
}

/// What makes a device node, fifo or socket; mknod(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Node {
    /// A pipe with a name.
    Fifo,
    /// A socket with a name.
    Socket,
    /// A character device: its major and minor number.
    CharDevice(u32, u32),
    /// A block device, likewise.
    BlockDevice(u32, u32),
}

impl Node {
    /// What something is, if it is one of these.
    pub fn of(stat: &FileStat) -> Option<Node> {
        let (major, minor) = sys::device_numbers(stat.st_rdev);
        Some(match sys::kind_of(stat) {
            SFlag::S_IFIFO => Node::Fifo,
            SFlag::S_IFSOCK => Node::Socket,
            SFlag::S_IFCHR => Node::CharDevice(major, minor),
            SFlag::S_IFBLK => Node::BlockDevice(major, minor),
            _ => return None,
        })
    }

    /// Whether it stands for a device.
    pub fn is_device(self) -> bool {
        matches!(self, Node::CharDevice(..) | Node::BlockDevice(..))
    }

    /// Whether the options ask for it.
    pub fn is_wanted(self, options: &Options) -> bool {
        if self.is_device() { options.kinds.devices } else { options.kinds.specials }
    }
}

/// Metadata of an entry; the receiver's options say what of it is used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Permission bits, `07777`. `None`: the source has none worth keeping (a device).
    pub mode: Option<u32>,
    /// Modification time, seconds and nanoseconds; `None` likewise.
    pub mtime: Option<(i64, u32)>,
    /// Access time, likewise, where it is kept.
    pub atime: Option<(i64, u32)>,
    /// Owner and group, by number and, where known, by name.
    pub owner: Option<Owner>,
    /// ACLs, where they are kept.
    pub acls: Option<Box<Acls>>,
    /// Extended attributes, where they are kept; with the ACLs at most [`MAX_EXTENDED`] bytes.
    pub xattrs: Option<Vec<Xattr>>,
}

impl Metadata {
    /// It without ACLs and extended attributes.
    pub fn without_extended(self) -> Metadata {
        Metadata { acls: None, xattrs: None, ..self }
    }

    /// Bytes that ACLs and extended attributes take on their way, counted with 16 more each.
    fn extended_bytes(&self) -> usize {
        const MORE: usize = 16;
        let acls = self.acls.iter().flat_map(|acls| acls.access.iter().chain(&acls.default));
        let xattrs = self.xattrs.iter().flatten();
        acls.map(|entry| entry.name.len() + MORE).sum::<usize>()
            + xattrs.map(|(name, value)| name.len() + value.len() + MORE).sum::<usize>()
    }
}

/// Bytes of ACLs and extended attributes that an entry may have: they travel with it in one
/// message.
pub const MAX_EXTENDED: usize = 48 << 10;

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
    /// Which file it is.
    identity: Identity,
    /// What it was when it was found.
    seen: Seen,
    /// It has other names.
    has_other_names: bool,
    /// How many were handed out before it.
    order: u64,
    /// What it is opened from.
    origin: Origin,
}

/// Where a source was found.
#[derive(Debug, Clone)]
enum Origin {
    /// It was named itself.
    Named(NamedPath),
    /// Below a directory that was named.
    Below(Arc<SourceRoot>),
}

/// A directory that the user named. It is held: nobody can put another in its place.
#[derive(Debug)]
struct SourceRoot {
    /// Gives no access to content.
    fd: OwnedFd,
    /// As the user named it.
    path: PathBuf,
}

/// What tells one file from another on this machine: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity(u64, u64);

impl Identity {
    fn of(stat: &FileStat) -> Identity {
        Identity(stat.st_dev, stat.st_ino)
    }

    fn of_state(state: &FileState) -> Identity {
        Identity(state.device, state.inode)
    }

    /// Demands that what was opened is this.
    fn check(self, fd: OwnedFd) -> io::Result<OwnedFd> {
        let same = Identity::of(&fstat(&fd)?) == self;
        if same { Ok(fd) } else { Err(io::Error::other("another one has its name by now")) }
    }
}

/// A file to be sent that is open, and the state in which it was opened.
pub struct OpenSource {
    /// Its bytes.
    pub image: FileImage,
    /// The state that it was in before anything was read.
    pub state: FileState,
    /// Whether every change since then shows; a device's show never.
    pub settled: bool,
}

impl OpenSource {
    /// Whether it is still in the state in which it was opened.
    pub fn is_unchanged(&self) -> bool {
        self.state.is_still(self.image.file())
    }
}

impl Source {
    /// Opens a file, and its holes are read, too, where the options have it so. A file that
    /// takes more of the page cache than one file should is read past it. `None`: it is another
    /// file than was found, or has another length.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or is no longer a file or device.
    pub fn open(&self, options: &Options) -> Result<Option<OpenSource>> {
        let Kind::File { length, allocated, .. } = self.kind else { return Ok(None) };
        // Only for its owner; open(2).
        let quietly = options.open_noatime.then(|| self.open_as(READ | OFlag::O_NOATIME));
        let file = match quietly {
            Some(Ok(file)) => File::from(file),
            _ => File::from(self.open_as(READ)?),
        };
        let (state, settled) = FileState::settled(&file).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => changed(&self.path),
            _ => Error::file("look at", &self.path)(error),
        })?;
        let image =
            FileImage::new(file, options.hole_map).sparing_cache_for(scan::may_hold(allocated, length));
        let same = state.length == length && self.identity == Identity::of_state(&state);
        Ok(same.then_some(OpenSource { image, state, settled }))
    }

    /// It with a time that tells the next run to read it again.
    pub fn without_time(&self) -> Source {
        let mut source = self.clone();
        source.metadata.mtime = source.metadata.mtime.map(|_| (0, 0));
        source
    }

    /// Looks at a file again, after it changed while it was read. Another file may have its
    /// name now: then that one is sent.
    ///
    /// # Errors
    ///
    /// When it is gone, or no longer something that can be sent, or that the options want.
    pub fn look_again(&self, options: &Options) -> Result<Source> {
        let fd = self.open_as(OFlag::O_PATH)?;
        let stat = fstat(&fd).map_err(|errno| Error::file("look at", &self.path)(errno.into()))?;
        let identity = Identity::of(&stat);
        let before = &self.metadata;
        let metadata = Metadata {
            atime: before.atime.and(Some((stat.st_atime, stat.st_atime_nsec as u32))),
            acls: before.acls.clone(),
            xattrs: before.xattrs.clone(),
            ..metadata_of(&stat)
        };
        let mut found = Source { metadata, identity, seen: Seen::of(&stat), ..self.clone() };
        // The names go with the numbers, which are what they were, or nearly always.
        let same = |a: &Owner, b: &Owner| (a.uid, a.gid) == (b.uid, b.gid);
        if let (Some(now), Some(before)) = (&mut found.metadata.owner, &self.metadata.owner)
            && same(now, before)
        {
            now.clone_from(before);
        }
        let found = match sys::kind_of(&stat) {
            SFlag::S_IFREG => regular(found, &stat),
            SFlag::S_IFBLK if matches!(self.origin, Origin::Named(_)) => found.device(),
            _ => Err(changed(&self.path)),
        }?;
        match found.kind {
            Kind::File { length, .. } if !options.transfer.takes_size(length) => {
                let why = "got a size while it was read that --max-size or --min-size leaves out";
                Err(Error::refused(found.path, why))
            }
            _ => Ok(found),
        }
    }

    /// Whether other names of it may be sources, too.
    pub fn has_other_names(&self) -> bool {
        self.has_other_names
    }

    /// Whether it is a directory on the way to a source, of which only the name is told.
    fn is_bare_directory(&self) -> bool {
        self.kind == Kind::Directory && self.metadata == Metadata::default()
    }

    /// A source that is a block device.
    fn device(self) -> Result<Source> {
        let file = File::from(self.open_as(READ)?);
        let length = sys::device_size(&file).map_err(Error::file("find the size of", &self.path))?;
        Ok(Source { kind: Kind::File { length, allocated: length, whole: false, retry: false }, ..self })
    }

    /// Whether this is the file that is so.
    pub fn is_at(&self, stat: &FileStat) -> bool {
        self.identity == Identity::of(stat)
    }

    /// A device node, fifo or socket, which is made at the destination as it is here.
    fn node(self, node: Node, stat: &FileStat) -> Source {
        Source { kind: Kind::Node(node), metadata: metadata_of_inode(stat), ..self }
    }

    /// Its path below the directory that was named.
    fn below(&self) -> &Path {
        match &self.origin {
            Origin::Named(_) => &self.path,
            Origin::Below(root) => self.path.strip_prefix(&root.path).unwrap_or(&self.path),
        }
    }

    /// Opens it: what was named wherever that may lead, all else below the directory that
    /// is held, over no symlink.
    fn open_as(&self, flags: OFlag) -> Result<OwnedFd> {
        match &self.origin {
            Origin::Named(named) => named.open(flags).map_err(Error::file("open", &self.path)),
            Origin::Below(root) => {
                sys::open_beneath(root.fd.as_fd(), self.below(), flags, 0).map_err(|error| {
                    match error.raw_os_error() {
                        Some(libc::ELOOP | libc::ENOTDIR | libc::EXDEV) => changed(&self.path),
                        _ => Error::file("open", &self.path)(error),
                    }
                })
            }
        }
    }
}

/// For a file that is read. Without waiting: opening a fifo would, for its other end.
const READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// The failure of a source that was there before: a source that is gone has vanished.
pub fn lost(error: &Error) -> Failure {
    let failure = error.to_failure();
    match error {
        Error::File { source, path, .. } if source.kind() == io::ErrorKind::NotFound => {
            let message = format!("{} vanished before it was read", printable(path));
            Failure { code: code::VANISHED, message, ..failure }
        }
        _ => failure,
    }
}

/// A device's mode and times say nothing about its content.
fn metadata_of(stat: &FileStat) -> Metadata {
    if named::is(stat, SFlag::S_IFBLK) { Metadata::default() } else { metadata_of_inode(stat) }
}

/// That of anything, a device node too.
fn metadata_of_inode(stat: &FileStat) -> Metadata {
    Metadata {
        mode: Some(stat.st_mode & 0o7777),
        mtime: Some((stat.st_mtime, stat.st_mtime_nsec as u32)),
        atime: Some((stat.st_atime, stat.st_atime_nsec as u32)),
        owner: Some(Owner { uid: stat.st_uid, gid: stat.st_gid, ..Owner::default() }),
        ..Metadata::default()
    }
}

/// A source that is a regular file.
fn regular(source: Source, stat: &FileStat) -> Result<Source> {
    let Ok(length) = u64::try_from(stat.st_size) else {
        return Err(Error::refused(source.path, "has a length that is none"));
    };
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512).min(length);
    Ok(Source { kind: Kind::File { length, allocated, whole: false, retry: false }, ..source })
}

/// What is said of a symlink that is left out since it leads out of what is sent.
pub fn ignored_link(path: &Path, link: &[u8]) -> Warning {
    Warning::about(path, format!("ignoring unsafe symlink {} -> {}", printable(path), escape(link)))
}

/// What is said of a source that was read while changes to it might not have shown.
pub fn doubt(path: &Path) -> Warning {
    let what =
        "may have been changed unseen while it was read: its time is not kept, the next run reads it again";
    Warning::about(path, format!("{} {what}", printable(path)))
}

fn changed(path: &Path) -> Error {
    Error::refused(path, "changed into something else while it was read")
}
