//! The names of working files: what a run keeps beside its destination while it works.
//! Senders leave them out, receivers take none from the other end. And where what runs learn is
//! kept.

use std::ffi::{OsStr, OsString};
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::location::directory_of;
use crate::sys;

/// The files that a run keeps beside its destination while it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Working {
    /// The new file, complete or in the making.
    Temp,
    /// A copy of the old file in the making.
    Clone,
    /// New data of a file that is to be changed in place.
    Stage,
    /// Which ranges of the stage count.
    Log,
    /// That temp file or stage are all of the new file, and wait for the other hosts of a run.
    Prepared,
}

impl Working {
    /// All of them, in the order in which they go: no log outlives its stage.
    pub const ALL: [Working; 5] =
        [Working::Prepared, Working::Temp, Working::Clone, Working::Log, Working::Stage];
    /// Those that hold something of the new file.
    pub const CONTENT: [Working; 4] = [Working::Temp, Working::Clone, Working::Log, Working::Stage];

    fn extension(self) -> &'static str {
        match self {
            Working::Temp => ".temp",
            Working::Clone => ".clone",
            Working::Stage => ".stage",
            Working::Log => ".log",
            Working::Prepared => ".prepared",
        }
    }

    /// The name of the working file of `name`. Always the same, so that the next run finds it.
    pub fn name_for(self, name: &OsStr, naming: Naming) -> OsString {
        with_suffix(name.as_bytes(), format!("{}{}", naming.mark(), self.extension()).as_bytes())
    }
}

/// A hidden name; one that gets too long is cut, and marked with its hash.
fn with_suffix(name: &[u8], suffix: &[u8]) -> OsString {
    const NAME_MAX: usize = 255;
    let mut working = vec![b'.'];
    if 1 + name.len() + suffix.len() <= NAME_MAX {
        working.extend(name);
    } else {
        let mark = format!("~{}", &blake3::hash(name).to_hex()[..16]);
        working.extend(cut(name, NAME_MAX - 1 - suffix.len() - mark.len()));
        working.extend(mark.bytes());
    }
    working.extend(suffix);
    OsString::from_vec(working)
}

/// Whose name a working file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Naming {
    /// `.NAME.holesync.KIND`, the same for every user.
    #[default]
    Common,
    /// `.NAME.holesync-UID.KIND`, of this user: where the common name is another's.
    User(u32),
    /// `.NAME.holesync-UID-RANDOM.KIND`: where both are another's. No later run finds it.
    Once(u32, u64),
}

impl Naming {
    /// A name that nobody can have foreseen.
    pub fn once(uid: u32) -> Naming {
        Naming::Once(uid, unforeseen())
    }

    fn mark(self) -> String {
        match self {
            Naming::Common => MARK.into(),
            Naming::User(uid) => format!("{MARK}-{uid}"),
            Naming::Once(uid, random) => format!("{MARK}-{uid}-{random:016x}"),
        }
    }
}

/// A number that nobody can have foreseen, for a name.
pub fn unforeseen() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// What all working files have in their names.
const MARK: &str = ".holesync";

/// Where this user's cache of holesync lies. `None`: the user has no home.
pub fn cache_dir() -> Option<PathBuf> {
    base_dir("XDG_CACHE_HOME", ".cache")
}

/// Where this user's state of holesync lies, which is of use after the run that left it. `None`: the
/// user has no home.
pub fn state_dir() -> Option<PathBuf> {
    base_dir("XDG_STATE_HOME", ".local/state")
}

/// Opens a directory of this user alone, which lasts; `make`: makes it, and those that it lies in, where
/// there is none.
///
/// # Errors
///
/// `PermissionDenied` for one that is another user's, or that others may use; what the system reports.
pub fn own_directory(path: &Path, make: bool) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let opened = sys::open(path, flags).or_else(|error| {
        if !make || error.kind() != io::ErrorKind::NotFound {
            return Err(error);
        }
        make_directories(path, 0o700)?;
        sys::open(path, flags)
    });
    let directory = opened?;
    let found = nix::sys::stat::fstat(&directory)?;
    let is_ours = found.st_uid == sys::effective_user() && found.st_mode & 0o077 == 0;
    if is_ours { Ok(directory) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

/// Makes a directory and those that it lies in, with a mode less the umask, and has their names on storage.
///
/// # Errors
///
/// What the system reports.
pub fn make_directories(path: &Path, mode: u32) -> io::Result<()> {
    let parent = directory_of(path);
    if !parent.is_dir() {
        make_directories(parent, mode)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Where a directory cannot be synced, nothing more can be done.
    sys::sync_dir(sys::open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?.as_fd()).map(drop)
}

/// XDG Base Directory Specification, by which a relative path counts for none.
fn base_dir(variable: &str, usual: &str) -> Option<PathBuf> {
    let base = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| std::env::home_dir().map(|home| home.join(usual)));
    base.filter(|path| path.is_absolute()).map(|path| path.join("holesync"))
}

/// The first `most` bytes of a name, or less: some file systems take whole characters only.
fn cut(name: &[u8], most: usize) -> &[u8] {
    let is_start = |&at: &usize| name[at] & 0xc0 != 0x80;
    let start = (most.saturating_sub(3)..=most).rev().find(is_start);
    &name[..start.unwrap_or(most)]
}

/// Whether a name is that of a working file, which is nobody's data.
pub fn is_working_name(name: &OsStr) -> bool {
    suffix_of(name).is_some()
}

/// The name of what this is a working file of one kind of, if it was not cut.
pub fn image_of(name: &OsStr, kind: Working) -> Option<&OsStr> {
    let suffix = suffix_of(name).filter(|suffix| suffix.ends_with(kind.extension().as_bytes()))?;
    Some(OsStr::from_bytes(&name.as_bytes()[1..name.len() - suffix.len()]))
}

/// Under which of its names a working file is there.
pub fn naming_of(name: &OsStr) -> Option<Naming> {
    let mark = str::from_utf8(suffix_of(name)?).ok()?.strip_prefix(MARK)?;
    let mut parts = mark.split('.').next()?.split('-').skip(1);
    match (parts.next(), parts.next()) {
        (None, _) => Some(Naming::Common),
        (Some(uid), None) => uid.parse().ok().map(Naming::User),
        (Some(uid), Some(random)) => {
            Some(Naming::Once(uid.parse().ok()?, u64::from_str_radix(random, 16).ok()?))
        }
    }
}

/// Whether a working file belongs to `image`.
pub fn is_working_file_of(name: &OsStr, image: &OsStr) -> bool {
    suffix_of(name).is_some_and(|suffix| with_suffix(image.as_bytes(), suffix) == name)
}

/// What marks a name as that of a working file: from [`MARK`] on.
fn suffix_of(name: &OsStr) -> Option<&[u8]> {
    let bytes = name.as_bytes();
    let at = bytes.windows(MARK.len()).rposition(|part| part == MARK.as_bytes())?;
    let suffix = &bytes[at..];
    let of = |kind: &Working| suffix.strip_suffix(kind.extension().as_bytes());
    let mark = Working::ALL.iter().find_map(of)?;
    (bytes[0] == b'.' && at > 0 && is_mark(mark)).then_some(suffix)
}

/// Whether this is what a [`Naming`] makes.
fn is_mark(mark: &[u8]) -> bool {
    let mut parts = mark.split(|&byte| byte == b'-').skip(1);
    let uid = parts.next().is_none_or(|uid| !uid.is_empty() && uid.iter().all(u8::is_ascii_digit));
    let random = parts.next().is_none_or(|part| part.len() == 16 && part.iter().all(u8::is_ascii_hexdigit));
    let is_whole = mark.len() == MARK.len() || mark[MARK.len()] == b'-';
    uid && random && is_whole && parts.next().is_none()
}

/// Whether a path leads to or through a working file, which is nobody's data.
pub fn names_working_file(path: &[u8]) -> bool {
    path.split(|&byte| byte == b'/').any(|name| is_working_name(OsStr::from_bytes(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_working(name: &str) -> bool {
        is_working_name(OsStr::new(name))
    }

    #[test]
    fn the_names_of_working_files_are_known_again() {
        let namings = [Naming::Common, Naming::User(0), Naming::User(u32::MAX), Naming::Once(7, u64::MAX)];
        for name in ["x".to_string(), "a-b.holesync-9".into(), "\u{20ac}".repeat(85)] {
            for (kind, naming) in
                Working::ALL.into_iter().flat_map(|kind| namings.map(|naming| (kind, naming)))
            {
                let working = kind.name_for(OsStr::new(&name), naming);
                assert!(is_working_name(&working), "{working:?}");
                assert_eq!(naming_of(&working), Some(naming));
                assert!(working.len() <= 255 && working.to_str().is_some(), "{working:?}");
            }
        }
        assert_eq!(Working::Log.name_for(OsStr::new("x"), Naming::User(12)), ".x.holesync-12.log");
    }

    #[test]
    fn other_names_are_data() {
        for name in
            ["x.holesync.temp", ".x.holesync.tempo", ".x.holesync", ".holesync-.temp", ".x.holesync-1a.log"]
        {
            assert!(!is_working(name), "{name}");
        }
        for name in
            [".x.holesync-1-2.log", ".x.holesync-1-0123456789abcdef-3.log", ".x.holesync1.log", ".x.log"]
        {
            assert!(!is_working(name), "{name}");
        }
    }
}
