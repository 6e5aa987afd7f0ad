//! What the user named himself: the only paths that are followed wherever they lead.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag, fstat};

use crate::confinement::NamedPath;
use crate::options::FollowLinks;
use crate::source::path::is_unsafe_link;
use crate::sys;

/// A source that is held: nobody can put another in its place.
pub(super) struct Named {
    /// Gives no access to content.
    pub fd: OwnedFd,
    pub stat: FileStat,
}

impl Named {
    /// Finds a source. A symlink is followed to a file or device, and with a slash behind it,
    /// or where the options say so, to a directory; else the symlink itself is the source.
    pub fn find(path: &NamedPath, follow: FollowLinks) -> io::Result<Named> {
        if names_contents(path.path()) {
            return Named::look(path, OFlag::O_PATH);
        }
        let named = Named::look(path, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
        if !is(&named.stat, SFlag::S_IFLNK) {
            return Ok(named);
        }
        let followed = match Named::look(path, OFlag::O_PATH) {
            // It leads nowhere, and is sent all the same.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !follow.all => return Ok(named),
            other => other?,
        };
        let is_left = || {
            let link = sys::read_link_at(&named.fd, OsStr::new("")).unwrap_or_default();
            is_unsafe_link(link.as_bytes(), &base_name(path.path()))
        };
        let is_followed = follow.all || follow.to_directories || follow.leaving && is_left();
        Ok(if followed.is_directory() && !is_followed { named } else { followed })
    }

    /// What a symlink below a source leads to.
    pub fn follow(path: &NamedPath) -> io::Result<Named> {
        Named::look(path, OFlag::O_PATH)
    }

    fn look(path: &NamedPath, flags: OFlag) -> io::Result<Named> {
        let fd = path.open(flags)?;
        let stat = fstat(&fd)?;
        Ok(Named { fd, stat })
    }

    pub fn is_directory(&self) -> bool {
        is(&self.stat, SFlag::S_IFDIR)
    }
}

/// Whether something is of this kind.
pub(super) fn is(stat: &FileStat, kind: SFlag) -> bool {
    sys::kind_of(stat) == kind
}

/// rsync's rule: `dir/`, `.` and `..` mean what is in the directory.
pub fn names_contents(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/") || matches!(bytes.rsplit(|&b| b == b'/').next(), Some(b"." | b".."))
}

/// The names directly below the destination that a source goes to; none for a source
/// that cannot be read.
pub fn top_names(source: &NamedPath) -> Vec<Vec<u8>> {
    if !names_contents(source.path()) {
        return vec![base_name(source.path())];
    }
    let opened = source.open(OFlag::O_RDONLY | OFlag::O_DIRECTORY);
    let Some(mut dir) = opened.ok().and_then(|fd| Dir::from_fd(fd).ok()) else { return Vec::new() };
    sys::names_in(&mut dir).filter_map(Result::ok).map(|(name, _)| name.into_vec()).collect()
}

/// The names directly below the destination under which what these sources are can go.
/// `None`: any name; so for a home, whose name only its machine knows.
pub fn names_below<'a>(sources: impl IntoIterator<Item = &'a [u8]>) -> Option<HashSet<Vec<u8>>> {
    let paths = sources.into_iter().map(|source| Path::new(OsStr::from_bytes(source)));
    let is_known = |path: &Path| !names_contents(path) && !matches!(path.as_os_str().as_bytes(), b"" | b"~");
    paths.map(|path| is_known(path).then(|| base_name(path))).collect()
}

/// The name under which a source goes that is not meant for its contents.
pub(super) fn base_name(path: &Path) -> Vec<u8> {
    path.file_name().map(OsStr::as_bytes).unwrap_or_default().to_vec()
}
