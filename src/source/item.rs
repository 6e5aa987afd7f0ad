//! A source as the user is told of it.

use crate::report::{Item, ItemKind};
use crate::source::{Kind, Metadata, Node, Source};

impl Source {
    /// It, for the user.
    pub fn item(&self) -> Item<'_> {
        Item {
            source: Some(&self.path),
            order: Some(self.order),
            ..item(&self.target, &self.kind, &self.metadata)
        }
    }
}

/// An entry that is so, for the user.
pub fn item<'a>(path: &'a [u8], kind: &'a Kind, metadata: &Metadata) -> Item<'a> {
    let kind = match kind {
        Kind::File { length, .. } => ItemKind::File { length: Some(*length) },
        // Of what is missing only that is told what is removed for it.
        Kind::Directory | Kind::Missing => ItemKind::Directory,
        Kind::Symlink(link) => ItemKind::Symlink(link),
        Kind::Node(Node::CharDevice(..)) => ItemKind::Device { is_block: false },
        Kind::Node(Node::BlockDevice(..)) => ItemKind::Device { is_block: true },
        Kind::Node(Node::Fifo) => ItemKind::Special { is_socket: false },
        Kind::Node(Node::Socket) => ItemKind::Special { is_socket: true },
        Kind::HardLink(first) => ItemKind::HardLink(first),
    };
    let owner = metadata.owner.as_ref().map(|owner| (owner.uid, owner.gid));
    Item { mode: metadata.mode, mtime: metadata.mtime, owner, ..Item::new(path, kind) }
}
