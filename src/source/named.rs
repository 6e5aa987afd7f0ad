//! What the user named himself: the only paths that are followed wherever they lead.

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
    /// Finds a source. A symlink is followed with a slash behind it, or where the options say
    /// so; and, unless it keeps being one, to a file or device. Else the symlink itself is the
    /// source. So it is in a list, unless the options say otherwise.
    pub fn find(path: &NamedPath, follow: FollowLinks) -> io::Result<Named> {
        if names_contents(path.path()) {
            return Named::look(path, OFlag::O_PATH);
        }
        let named = Named::look(path, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
        if !is(&named.stat, SFlag::S_IFLNK) || path.is_listed() && !follow.any() {
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
        let is_directory = followed.is_directory();
        let is_followed = follow.all || follow.to_directories && is_directory || follow.leaving && is_left();
        let is_kept = is_directory || follow.keeps_named || path.is_listed();
        Ok(if is_kept && !is_followed { named } else { followed })
    }

    /// What a symlink below a source leads to.
    pub fn follow(path: &NamedPath) -> io::Result<Named> {
        Named::look(path, OFlag::O_PATH)
    }

    pub fn look(path: &NamedPath, flags: OFlag) -> io::Result<Named> {
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
    let target = source.target();
    if !target.is_empty() {
        return target.split(|&byte| byte == b'/').next().map(<[u8]>::to_vec).into_iter().collect();
    }
    let opened = source.open(OFlag::O_RDONLY | OFlag::O_DIRECTORY);
    let Some(mut dir) = opened.ok().and_then(|fd| Dir::from_fd(fd).ok()) else { return Vec::new() };
    sys::names_in(&mut dir).filter_map(Result::ok).map(|(name, _)| name.into_vec()).collect()
}

/// The name under which a source goes that is not meant for its contents.
pub(super) fn base_name(path: &Path) -> Vec<u8> {
    path.file_name().map(OsStr::as_bytes).unwrap_or_default().to_vec()
}
