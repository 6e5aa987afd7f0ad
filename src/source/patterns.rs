//! Sources of another end that are patterns: `*`, `?` and `[...]` in a path stand for names as
//! they do for a shell, which rsync has expand them. A path that something has as it stands is
//! no pattern.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::fcntl::OFlag;

use crate::confinement::NamedPath;
use crate::error::{Error, Result, printable};
use crate::filter;
use crate::sys;

/// The most names that one pattern may stand for.
const MAX_MATCHES: usize = 1 << 16;

/// Whether a path may stand for others.
pub fn is_pattern(path: &[u8]) -> bool {
    path.iter().any(|byte| b"*?[".contains(byte))
}

/// The paths that these stand for, each that of something that is there, or as it was where
/// nothing is like it.
///
/// # Errors
///
/// [`Error::Usage`] for a pattern that stands for too many.
pub fn expand(sources: Vec<NamedPath>) -> Result<Vec<NamedPath>> {
    let mut expanded = Vec::new();
    for source in sources {
        let is_meant = is_pattern(source.path().as_os_str().as_bytes()) && source.is_missing();
        let found = if is_meant { matches_of(&source)? } else { Vec::new() };
        match found.as_slice() {
            [] => expanded.push(source),
            _ => expanded.extend(found),
        }
    }
    Ok(expanded)
}

/// What is like a pattern, name by name from its begin on.
fn matches_of(source: &NamedPath) -> Result<Vec<NamedPath>> {
    let text = source.path().as_os_str().as_bytes();
    let mut paths: Vec<Vec<u8>> = vec![Vec::new()];
    let parts: Vec<&[u8]> = text.split_inclusive(|&byte| byte == b'/').collect();
    for part in parts {
        let (name, slash) = part.strip_suffix(b"/").map_or((part, &b""[..]), |name| (name, b"/"));
        let mut longer = Vec::new();
        for path in &paths {
            let names = if is_pattern(name) { names_like(source, path, name) } else { vec![name.to_vec()] };
            longer.extend(names.iter().map(|name| [path, name.as_slice(), slash].concat()));
            if longer.len() > MAX_MATCHES {
                let shown = printable(source.path());
                return Err(Error::Usage(format!(
                    "{shown} stands for more than {MAX_MATCHES} names: name fewer"
                )));
            }
        }
        paths = longer;
    }
    let found = paths.iter().map(|path| source.elsewhere(Path::new(OsStr::from_bytes(path))));
    Ok(found.filter(|path| path.symlink_metadata().is_ok()).collect())
}

/// The names in a directory that are like a pattern, in order; hidden ones only for one that
/// begins with a dot. None where it cannot be read.
fn names_like(source: &NamedPath, dir: &[u8], pattern: &[u8]) -> Vec<Vec<u8>> {
    let dir = if dir.is_empty() { b"." } else { dir };
    let opened =
        source.elsewhere(Path::new(OsStr::from_bytes(dir))).open(OFlag::O_RDONLY | OFlag::O_DIRECTORY);
    let Some(mut dir) = opened.ok().and_then(|fd| Dir::from_fd(fd).ok()) else { return Vec::new() };
    let is_like = |name: &[u8]| (pattern[0] == b'.' || name[0] != b'.') && filter::is_like(pattern, name);
    let names = sys::names_in(&mut dir).filter_map(|found| found.ok());
    let mut names: Vec<Vec<u8>> =
        names.map(|(name, _)| name.as_bytes().to_vec()).filter(|name| is_like(name)).collect();
    names.sort_unstable();
    names
}

/// Whether a path below the destination is like a pattern, name by name.
pub fn is_path_like(pattern: &[u8], path: &[u8]) -> bool {
    let (patterns, names) = (pattern.split(|&byte| byte == b'/'), path.split(|&byte| byte == b'/'));
    patterns.clone().count() == names.clone().count()
        && patterns.zip(names).all(|(pattern, name)| pattern == name || filter::is_like(pattern, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_what_is_there_as_for_a_shell() {
        let place = tempfile::tempdir().unwrap();
        for name in ["a.img", "b.img", ".c.img", "[x].img", "d", "sub1/e.img", "sub2/f"] {
            let path = place.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        for (pattern, expected) in [
            ("*.img", &["[x].img", "a.img", "b.img"][..]),
            ("[ab].img", &["a.img", "b.img"]),
            ("[x].img", &["[x].img"]),
            (".*.img", &[".c.img"]),
            ("sub*/", &["sub1/", "sub2/"]),
            ("sub?/*.img", &["sub1/e.img"]),
            ("./*/f", &["./sub2/f"]),
            ("none*", &["none*"]),
            ("d", &["d"]),
        ] {
            let named = NamedPath::here(format!("{}/{pattern}", place.path().display()));
            let found = expand(vec![named]).unwrap();
            let below = |path: &NamedPath| {
                let path = path.path().as_os_str().to_str().unwrap().to_owned();
                path[place.path().as_os_str().len() + 1..].to_owned()
            };
            assert_eq!(found.iter().map(below).collect::<Vec<_>>(), expected, "{pattern}");
        }
    }

    #[test]
    fn a_path_is_like_a_pattern_name_by_name() {
        for (pattern, path, expected) in [
            ("*.img", "a.img", true),
            ("*.img", "a/b.img", false),
            ("a*/b", "ax/b", true),
            ("a[1].img", "a[1].img", true),
            ("a[1].img", "a1.img", true),
            ("*", "a/b", false),
        ] {
            assert_eq!(is_path_like(pattern.as_bytes(), path.as_bytes()), expected, "{pattern} {path}");
        }
    }
}
