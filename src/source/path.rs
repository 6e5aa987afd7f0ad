//! Which paths can be sent: what a receiver takes, and what a sender need not try.

use crate::working::names_working_file;

/// Bytes in a path.
pub const MAX_PATH: usize = 4096;
/// Bytes in one name of a path: `NAME_MAX`.
pub const MAX_NAME: usize = 255;

/// Why something that was named itself is not sent; within a directory it is skipped.
pub const NOT_SENT: &str = "is no file, directory, symlink or block device, and cannot be sent: leave it out";

/// Whether a path below the destination is one: plain names between single slashes, no
/// `.`, `..`, NUL, nothing too long. Empty is allowed: the destination itself.
pub fn is_plain(path: &[u8]) -> bool {
    let name_is_plain = |name: &[u8]| {
        !name.is_empty() && name.len() <= MAX_NAME && name != b"." && name != b".." && !name.contains(&0)
    };
    path.len() <= MAX_PATH && (path.is_empty() || path.split(|&b| b == b'/').all(name_is_plain))
}

/// Whether a symlink is unsafe as rsync sees it: its target is absolute, has a `..` behind
/// anything else, or leads out of what is transferred. `path`: its own.
pub fn is_unsafe_link(target: &[u8], path: &[u8]) -> bool {
    let is_up = |name: &&[u8]| *name == b"..";
    let names = || target.split(|&byte| byte == b'/');
    let ups = names().take_while(|name| is_up(name) || name.is_empty()).filter(is_up).count();
    let depth = path.iter().filter(|&&byte| byte == b'/').count();
    matches!(target, [] | [b'/', ..])
        || target.ends_with(b"/..")
        || names().filter(is_up).count() > ups
        || ups > depth
}

/// Why no receiver takes something under this path, and what to do about it.
pub(super) fn why_not_sent(path: &[u8]) -> Option<String> {
    if names_working_file(path) {
        return Some("is named like a working file: give it another name".into());
    }
    (!is_plain(path)).then(|| {
        format!(
            "cannot go under this name: a name may have {MAX_NAME} bytes and a path {MAX_PATH}; \
             give it a shorter one"
        )
    })
}

/// Where the slashes of a path are.
pub fn slashes(path: &[u8]) -> impl Iterator<Item = usize> + '_ {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_safe_as_rsync_has_it() {
        for (target, at_the_top, below) in [
            ("x", true, true),
            ("..", false, true),
            ("../", false, true),
            ("../x", false, true),
            ("..x", true, true),
            ("../..", false, false),
            ("../../x", false, false),
            ("./../x", false, false),
            ("d/../x", false, false),
            ("a/..", false, false),
            ("d//x", true, true),
            ("/x", false, false),
            ("", false, false),
        ] {
            assert_eq!(!is_unsafe_link(target.as_bytes(), b"link"), at_the_top, "{target}");
            assert_eq!(!is_unsafe_link(target.as_bytes(), b"d/link"), below, "{target}");
        }
    }

    #[test]
    fn what_no_receiver_takes_is_not_sent() {
        for fine in [&b""[..], b"a/b", &[b'n'; MAX_NAME]] {
            assert_eq!(why_not_sent(fine), None, "{fine:?}");
        }
        let (long, deep) = (vec![b'n'; MAX_NAME + 1], b"n/".repeat(MAX_PATH / 2 + 1));
        for bad in [&long[..], &deep, b"..", b"a//b", b"a\0", b"a/.b.holesync.log"] {
            assert!(why_not_sent(bad).is_some(), "{bad:?}");
        }
    }
}
