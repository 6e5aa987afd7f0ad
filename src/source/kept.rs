//! Which part of the path of a source it keeps at the destination: its last name, or with
//! `--relative` all that comes behind `/./`; and the names of a list (`--files-from`), each of
//! which becomes a source below the only one that was named.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::confinement::{Keeps, NamedPath};
use crate::error::{Error, Result, printable};
use crate::options::Options;
use crate::source::named::{base_name, names_contents};
use crate::source::path::slashes;

/// The sources that were named: with a list, what it names below the first of them.
///
/// # Errors
///
/// [`Error::Usage`] for a `..` in what is to be kept of a path, and for a list without a
/// source.
pub fn choose(
    sources: Vec<NamedPath>,
    listed: Option<Vec<Vec<u8>>>,
    options: &Options,
) -> Result<Vec<NamedPath>> {
    let Some(names) = listed else {
        let kept = |source| if options.directories.relative { kept_path(&source, None) } else { Ok(source) };
        return sources.into_iter().map(kept).collect();
    };
    let [source] = sources.as_slice() else {
        return Err(Error::Usage("--files-from wants one source, which its names are relative to".into()));
    };
    names.iter().map(|name| listed_path(source, name, options.directories.relative)).collect()
}

/// A name of a list, which leads nowhere above the source.
fn listed_path(source: &NamedPath, name: &[u8], relative: bool) -> Result<NamedPath> {
    let name = below(name);
    if relative {
        return kept_path(source, Some(&name));
    }
    let path = source.path().join(OsStr::from_bytes(&name));
    Ok(source.elsewhere(&path).keeping(Keeps { is_listed: true, ..Keeps::default() }))
}

/// A name of a list without the slashes before it, and without `..`: none leads above where
/// it begins. A `.` in it stays, and a slash at its end.
fn below(name: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" => {}
            b".." => while names.pop() == Some(b".") {},
            part => names.push(part),
        }
    }
    let mut path = if names == [b"."] { Vec::new() } else { names.join(&b'/') };
    if !path.is_empty() && (name.ends_with(b"/") || name.ends_with(b"/..")) {
        path.push(b'/');
    }
    path
}

/// A source that keeps what of its path comes behind the first `/./`, or all of it. With a
/// name that is `listed` this is looked for in that, and all of the source comes before it.
fn kept_path(source: &NamedPath, listed: Option<&[u8]>) -> Result<NamedPath> {
    let text = listed.unwrap_or(source.path().as_os_str().as_bytes());
    let mark = text.windows(3).position(|bytes| bytes == b"/./");
    let (before, kept) = match mark {
        Some(at) => (&text[..at.max(1)], &text[at + 3..]),
        None if text.starts_with(b"/") => (&b"/"[..], text),
        None => (&b""[..], text),
    };
    let mut path = match listed {
        Some(_) => source.path().join(OsStr::from_bytes(before)).into_os_string().into_vec(),
        None => before.to_vec(),
    };
    let names: Vec<&[u8]> =
        kept.split(|&byte| byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    if names.contains(&&b".."[..]) {
        let shown = printable(Path::new(OsStr::from_bytes(text)));
        let what = format!("{shown}: what --relative keeps of a path has no \"..\"; write /./ behind it");
        return Err(Error::Usage(what));
    }
    if names.is_empty() && path.is_empty() {
        path.push(b'.');
    }
    if !path.is_empty() && !path.ends_with(b"/") {
        path.push(b'/');
    }
    let from = path.len();
    path.extend(names.join(&b'/'));
    if !names.is_empty() && names_contents(Path::new(OsStr::from_bytes(kept))) {
        path.push(b'/');
    }
    let source_path = source.elsewhere(Path::new(OsStr::from_bytes(&path)));
    let is_below_root = mark.is_none() && text.starts_with(b"./") && !names.is_empty();
    Ok(source_path.keeping(Keeps { from: Some(from), is_below_root, is_listed: listed.is_some() }))
}

impl NamedPath {
    /// rsync's rule: a path with a slash or `.` at its end means what is in the directory.
    pub fn names_contents(&self) -> bool {
        names_contents(self.path())
    }

    /// Whether it stands in a list.
    pub fn is_listed(&self) -> bool {
        self.keeps().is_listed
    }

    /// Its path below the destination; empty for what is in a directory.
    pub fn target(&self) -> Vec<u8> {
        match self.kept_from() {
            Some(from) => {
                let kept = &self.path().as_os_str().as_bytes()[from..];
                kept.strip_suffix(b"/").unwrap_or(kept).to_vec()
            }
            None if self.names_contents() => Vec::new(),
            None => base_name(self.path()),
        }
    }

    /// The directory that [`NamedPath::target`] is relative to; `None`: the one that it lies in, or it
    /// itself.
    pub(super) fn kept_below(&self) -> Option<NamedPath> {
        let from = self.kept_from()?;
        let base = OsStr::from_bytes(&self.path().as_os_str().as_bytes()[..from]);
        Some(self.elsewhere(if base.is_empty() { Path::new(".") } else { Path::new(base) }))
    }

    /// The directories that are kept on the way to it, the first first: each with its path
    /// below the destination.
    pub(super) fn implied(&self) -> Vec<(NamedPath, Vec<u8>)> {
        let Some(from) = self.kept_from() else { return Vec::new() };
        let (path, target) = (self.path().as_os_str().as_bytes(), self.target());
        let directory = |at: usize| {
            let path = self.elsewhere(Path::new(OsStr::from_bytes(&path[..from + at])));
            (path, target[..at].to_vec())
        };
        slashes(&target).map(directory).collect()
    }

    fn kept_from(&self) -> Option<usize> {
        self.keeps().from.map(|from| from.min(self.path().as_os_str().len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(source: &str, listed: &[&str], relative: bool) -> Vec<NamedPath> {
        let mut options = Options::default();
        options.directories.relative = relative;
        let listed: Vec<_> = listed.iter().map(|name| name.as_bytes().to_vec()).collect();
        let listed = (!listed.is_empty()).then_some(listed);
        choose(vec![NamedPath::here(source)], listed, &options).unwrap()
    }

    /// The path that is opened, that below the destination, and those on the way there.
    fn shown(path: &NamedPath) -> (String, String, Vec<String>) {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let implied = path.implied().into_iter().map(|(_, target)| text(&target)).collect();
        (text(path.path().as_os_str().as_bytes()), text(&path.target()), implied)
    }

    #[test]
    fn what_comes_behind_the_mark_is_kept() {
        for (source, path, target, implied) in [
            ("a/b/c", "a/b/c", "a/b/c", &["a", "a/b"][..]),
            ("/a//b/", "/a/b/", "a/b", &["a"]),
            ("a/./b/./c", "a/b/c", "b/c", &["b"]),
            ("/./a/b", "/a/b", "a/b", &["a"]),
            ("./a/b", "a/b", "a/b", &["a"]),
            ("x/./", "x/", "", &[]),
            (".", "./", "", &[]),
            ("/", "/", "", &[]),
            ("a/.", "a/", "a", &[]),
        ] {
            let expected = (path.into(), target.into(), implied.iter().map(|&name| name.into()).collect());
            assert_eq!(shown(&chosen(source, &[], true)[0]), expected, "{source}");
        }
        for bad in ["..", "a/../b", "x/./..", "/.."] {
            let mut options = Options::default();
            options.directories.relative = true;
            assert_eq!(
                choose(vec![NamedPath::here(bad)], None, &options).unwrap_err().exit_code(),
                1,
                "{bad}"
            );
        }
    }

    #[test]
    fn no_name_of_a_list_leads_out_of_the_source() {
        for (name, path, target) in [
            ("a/b", "src/a/b", "a/b"),
            ("/a/b", "src/a/b", "a/b"),
            ("../../etc/passwd", "src/etc/passwd", "etc/passwd"),
            ("a/../../b", "src/b", "b"),
            ("a/./../../../b/", "src/b/", "b"),
            ("..", "src/", ""),
            (".", "src/", ""),
            ("/", "src/", ""),
        ] {
            let (opened, goes, _) = shown(&chosen("src", &[name], true)[0]);
            assert_eq!((opened.as_str(), goes.as_str()), (path, target), "{name}");
            let opened = shown(&chosen("src", &[name], false)[0]).0;
            assert_eq!(opened, path, "{name}");
        }
    }
}
