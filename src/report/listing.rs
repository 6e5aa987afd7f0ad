//! The line about an entry in a listing, as rsync's `--list-only` has it.

use crate::error::escape;
use crate::report::format::{grouped, in_units, permissions, time};
use crate::report::{Item, ItemKind, Units};

/// Permissions, size, time and name, and where a symlink leads to.
pub fn line(item: &Item, units: Units) -> String {
    let (kind, size, link) = match item.kind {
        ItemKind::File { length } => ('-', length.unwrap_or(0), String::new()),
        ItemKind::Directory => ('d', 0, String::new()),
        ItemKind::Symlink(link) => ('l', link.len() as u64, format!(" -> {}", escape(link))),
        ItemKind::Device { is_block } => (if is_block { 'b' } else { 'c' }, 0, String::new()),
        ItemKind::Special { is_socket } => (if is_socket { 's' } else { 'p' }, 0, String::new()),
        ItemKind::HardLink(first) => ('-', 0, format!(" => {}", escape(first))),
    };
    let size = match units {
        Units::Both => grouped(size),
        Units::Thousands => in_units(size, 1000),
        Units::Powers => in_units(size, 1024),
    };
    let name = if item.path.is_empty() { ".".into() } else { escape(item.path) };
    let (mode, time) = (permissions(item.mode.unwrap_or(0)), time(item.mtime.map_or(0, |(s, _)| s), ' '));
    format!("{kind}{mode} {size:>14} {time} {name}{link}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_looks_like_one_of_rsync() {
        let item = |kind| Item { mode: Some(0o1751), mtime: Some((0, 0)), ..Item::new(b"a\nb", kind) };
        let file = line(&item(ItemKind::File { length: Some(1_234_567) }), Units::Both);
        let (before, behind) = file.split_at(25);
        assert_eq!((before, &behind[20..]), ("-rwxr-x--t      1,234,567", " a\\#012b"));
        let link = line(&item(ItemKind::Symlink(b"to")), Units::Thousands);
        assert!(
            link.starts_with("lrwxr-x--t              2 ") && link.ends_with(" a\\#012b -> to"),
            "{link}"
        );
        assert!(line(&Item::new(b"", ItemKind::Directory), Units::Powers).ends_with(" ."));
    }
}
