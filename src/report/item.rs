//! What can be told of an entry: what it is, and how what was there differed from it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// An entry of the destination, as the source has it.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// Its path relative to the destination; empty for the destination itself.
    pub path: &'a [u8],
    /// Where it was read, if that is on this machine.
    pub source: Option<&'a Path>,
    /// How many entries were found before it, if that is known.
    pub order: Option<u64>,
    /// What it is.
    pub kind: ItemKind<'a>,
    /// Permission bits, `07777`; `None`: it has none worth telling.
    pub mode: Option<u32>,
    /// Modification time, seconds and nanoseconds; `None` likewise.
    pub mtime: Option<(i64, u32)>,
    /// Numbers of owner and group, if they are known.
    pub owner: Option<(u32, u32)>,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemKind<'a> {
    /// A regular file, or a device that is read as one.
    File {
        /// Its length, if that is known.
        length: Option<u64>,
    },
    /// A directory.
    Directory,
    /// A symlink with this target.
    Symlink(&'a [u8]),
    /// A device node.
    Device {
        /// Of a block device, not of a character device.
        is_block: bool,
    },
    /// A fifo or socket.
    Special {
        /// A socket, not a fifo.
        is_socket: bool,
    },
    /// Another name of what has this path.
    HardLink(&'a [u8]),
}

impl<'a> Item<'a> {
    /// An entry of which no more than path and kind is known.
    pub fn new(path: &'a [u8], kind: ItemKind<'a>) -> Item<'a> {
        Item { path, source: None, order: None, kind, mode: None, mtime: None, owner: None }
    }
}

/// An item that stays when what it was taken from is gone.
#[derive(Debug)]
pub(super) struct KeptItem {
    path: Vec<u8>,
    source: Option<PathBuf>,
    /// Without what a link leads to.
    kind: ItemKind<'static>,
    /// That.
    leads_to: Vec<u8>,
    mode: Option<u32>,
    mtime: Option<(i64, u32)>,
    owner: Option<(u32, u32)>,
}

impl KeptItem {
    /// A copy of an item.
    pub fn of(item: &Item) -> KeptItem {
        let (kind, leads_to) = match item.kind {
            ItemKind::Symlink(to) => (ItemKind::Symlink(b""), to),
            ItemKind::HardLink(to) => (ItemKind::HardLink(b""), to),
            ItemKind::File { length } => (ItemKind::File { length }, &b""[..]),
            ItemKind::Directory => (ItemKind::Directory, &b""[..]),
            ItemKind::Device { is_block } => (ItemKind::Device { is_block }, &b""[..]),
            ItemKind::Special { is_socket } => (ItemKind::Special { is_socket }, &b""[..]),
        };
        let &Item { path, source, mode, mtime, owner, .. } = item;
        let (path, source, leads_to) = (path.to_vec(), source.map(Path::to_path_buf), leads_to.to_vec());
        KeptItem { path, source, kind, leads_to, mode, mtime, owner }
    }

    /// The item, whose place in the order is of no interest any more.
    pub fn item(&self) -> Item<'_> {
        let kind = match self.kind {
            ItemKind::Symlink(_) => ItemKind::Symlink(&self.leads_to),
            ItemKind::HardLink(_) => ItemKind::HardLink(&self.leads_to),
            other => other,
        };
        let &KeptItem { mode, mtime, owner, .. } = self;
        Item { source: self.source.as_deref(), mode, mtime, owner, ..Item::new(&self.path, kind) }
    }
}

/// How an entry of the destination differed from what it was to be. A set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes(u16);

impl Changes {
    /// There was nothing, or something of another kind.
    pub const NEW: Changes = Changes(1);
    /// Size and time did not show that a file's content is equal: it is transferred, as far
    /// as that is needed.
    pub const TRANSFER: Changes = Changes(1 << 1);
    /// A symlink led elsewhere, a device was another one, a name another file.
    pub const VALUE: Changes = Changes(1 << 2);
    /// A file had another length.
    pub const SIZE: Changes = Changes(1 << 3);
    /// It had another modification time.
    pub const TIME: Changes = Changes(1 << 4);
    /// It had other permission bits.
    pub const MODE: Changes = Changes(1 << 5);
    /// It had another owner.
    pub const OWNER: Changes = Changes(1 << 6);
    /// It had another group.
    pub const GROUP: Changes = Changes(1 << 7);
    /// It had another access time, which is kept.
    pub const ACCESS_TIME: Changes = Changes(1 << 8);
    /// It had another ACL.
    pub const ACL: Changes = Changes(1 << 9);
    /// It had other extended attributes.
    pub const XATTRS: Changes = Changes(1 << 10);
    /// A rule had it left as it is or, with `NEW`, not made: how it differs was not looked at.
    pub const LEFT: Changes = Changes(1 << 11);
    /// It lies below a directory that is not made: that is told of the directory alone.
    pub const BELOW: Changes = Changes(1 << 12);

    /// These, and `more` if that is so.
    #[must_use]
    pub fn with(self, more: Changes, is_so: bool) -> Changes {
        if is_so { Changes(self.0 | more.0) } else { self }
    }

    /// These without `others`.
    #[must_use]
    pub fn without(self, others: Changes) -> Changes {
        Changes(self.0 & !others.0)
    }

    /// Whether any of `others` is among them.
    pub fn has(self, others: Changes) -> bool {
        self.0 & others.0 != 0
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}
