//! Sources that are removed when the destination has them: what was sent, as long as it is as
//! it was.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag, fstat};

use crate::error::{Error, Result};
use crate::in_use;
use crate::options::Options;
use crate::source::{Kind, Origin, READ, Source};
use crate::sys;

/// What tells that something was changed since it was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    kind: u32,
    size: i64,
    /// The numbers of a device node.
    device: u64,
    mtime: (i64, i64),
    /// `None`: other names of it may come and go.
    ctime: Option<(i64, i64)>,
}

impl Seen {
    pub(super) fn of(stat: &FileStat) -> Seen {
        Seen {
            kind: sys::kind_of(stat).bits(),
            size: stat.st_size,
            device: stat.st_rdev,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_nlink <= 1).then_some((stat.st_ctime, stat.st_ctime_nsec)),
        }
    }

    fn is_still(&self, stat: &FileStat) -> bool {
        let now = Seen::of(stat);
        *self == Seen { ctime: if self.ctime.is_some() { now.ctime } else { None }, ..now }
    }
}

impl Source {
    /// Removes it, now that the destination has it, if its name leads to what was sent and
    /// that is as it was. A symlink that was followed goes in its place. A directory stays, and
    /// a device whose content was sent.
    ///
    /// # Errors
    ///
    /// When something else has its name, it may not be removed, or another program uses it
    /// and the options do not say that this is no matter.
    pub fn remove(&self, options: &Options) -> Result<()> {
        let is_device = self.seen.kind == SFlag::S_IFBLK.bits() && matches!(self.kind, Kind::File { .. });
        if is_device || matches!(self.kind, Kind::Directory | Kind::Missing) {
            return Ok(());
        }
        let failed = || Error::file("remove", &self.path);
        let (dir, name) = self.open_parent()?;
        let Some(now) = sys::stat_at(&dir, &name).map_err(failed())? else { return Ok(()) };
        if !self.is_still_at(&dir, &name, &now)? {
            return Err(Error::refused(
                &self.path,
                "changed after it was sent, and was not removed; run again",
            ));
        }
        // Who may remove a file need not be one who may read it.
        if sys::kind_of(&now) == SFlag::S_IFREG
            && !options.force_in_use
            && let Ok(file) = sys::open_beneath(dir.as_fd(), name.as_ref(), READ, 0).map(File::from)
        {
            in_use::refuse(&file, &file.metadata().map_err(failed())?, &self.path)?;
        }
        sys::unlink_at(&dir, &name).map(drop).map_err(failed())
    }

    /// Whether a name, which leads to what is so `now`, is that of what was sent, as it was.
    fn is_still_at(&self, dir: &OwnedFd, name: &OsStr, now: &FileStat) -> Result<bool> {
        let is_same = |stat: &FileStat| self.is_at(stat) && self.seen.is_still(stat);
        if sys::kind_of(now) == SFlag::S_IFLNK && self.seen.kind != SFlag::S_IFLNK.bits() {
            // Only what was named, or is found behind a symlink that was followed, leads on.
            let Origin::Named(named) = &self.origin else { return Ok(false) };
            let followed = named.open(OFlag::O_PATH).and_then(|fd| Ok(fstat(&fd)?));
            return Ok(is_same(&followed.map_err(Error::file("look at", &self.path))?));
        }
        Ok(is_same(now)
            && match &self.kind {
                Kind::Symlink(target) => {
                    let link = sys::read_link_at(dir, name).map_err(Error::file("read", &self.path))?;
                    link.as_bytes() == target
                }
                _ => true,
            })
    }

    /// The directory that it lies in, and its name there.
    fn open_parent(&self) -> Result<(OwnedFd, OsString)> {
        const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);
        let opened = match &self.origin {
            Origin::Named(named) => named.parent().open(DIRECTORY),
            Origin::Below(root) => {
                let parent = self.below().parent().unwrap_or(Path::new(""));
                sys::open_beneath(root.fd.as_fd(), parent, DIRECTORY, 0)
            }
        };
        let dir = opened.map_err(Error::file("open the directory of", &self.path))?;
        Ok((dir, self.path.file_name().unwrap_or_default().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::sys::stat::Mode;

    use super::*;
    use crate::confinement::NamedPath;
    use crate::source::{Found, Walk};

    /// A file, a symlink and a fifo below `dir`, found with these options.
    fn found(dir: &Path, options: &Options) -> Vec<Source> {
        fs::write(dir.join("file"), "data").unwrap();
        symlink("file", dir.join("link")).unwrap();
        nix::unistd::mkfifo(&dir.join("fifo"), Mode::S_IRWXU).unwrap();
        let sources = [NamedPath::here(dir.join(""))];
        let entries = Walk::new(&sources, options).filter_map(|found| match found {
            Found::Source(source) if source.kind != Kind::Directory => Some(*source),
            _ => None,
        });
        entries.collect()
    }

    /// What happens to something.
    type Act = (&'static str, fn(&Path));

    fn options() -> Options {
        let mut options = Options::default();
        options.kinds.specials = true;
        options.kinds.hard_links = true;
        options
    }

    #[test]
    fn what_was_sent_goes_and_what_came_in_its_place_stays() {
        let replace: [Act; 4] = [
            ("nothing", |_| {}),
            ("another file", |path| {
                fs::remove_file(path).unwrap();
                fs::write(path, "data").unwrap();
            }),
            ("another symlink", |path| {
                fs::remove_file(path).unwrap();
                symlink("elsewhere", path).unwrap();
            }),
            ("a directory", |path| {
                fs::remove_file(path).unwrap();
                fs::create_dir(path).unwrap();
            }),
        ];
        for (what, replace) in replace {
            let place = tempfile::tempdir().unwrap();
            for source in found(place.path(), &options()) {
                let path = &source.path;
                // Or what comes may get its number.
                let _held = sys::open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW).unwrap();
                replace(path);
                let removed = source.remove(&options());
                assert_eq!(removed.is_ok(), what == "nothing", "{what}");
                assert_eq!(path.symlink_metadata().is_ok(), what != "nothing", "{what} {path:?}");
            }
        }
    }

    #[test]
    fn what_was_changed_stays() {
        let change: [Act; 3] = [
            ("mode", |path| fs::set_permissions(path, PermissionsExt::from_mode(0o640)).unwrap()),
            ("content", |path| {
                let time = path.metadata().unwrap().modified().unwrap();
                fs::write(path, "DATA").unwrap();
                fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
            }),
            ("length", |path| fs::write(path, "more data").unwrap()),
        ];
        for (what, change) in change {
            let place = tempfile::tempdir().unwrap();
            let sources = found(place.path(), &options());
            let source = sources.iter().find(|source| matches!(source.kind, Kind::File { .. })).unwrap();
            // The clock ticks in steps.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change(&source.path);
            assert!(source.remove(&options()).is_err() && source.path.exists(), "{what}");
        }
    }

    #[test]
    fn names_of_one_file_go_one_after_the_other() {
        let place = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            match name {
                "a" => fs::write(place.path().join(name), "data").unwrap(),
                _ => fs::hard_link(place.path().join("a"), place.path().join(name)).unwrap(),
            }
        }
        for source in found(place.path(), &options()) {
            source.remove(&options()).unwrap();
        }
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn of_a_symlink_that_is_followed_the_name_goes() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("file"), "data").unwrap();
        symlink("file", place.path().join("link")).unwrap();
        let sources = [NamedPath::here(place.path().join("link"))];
        let options = Options::default();
        let mut walk = Walk::new(&sources, &options);
        let Some(Found::Source(source)) = walk.next() else { panic!("nothing found") };
        fs::write(place.path().join("file"), "changed").unwrap();
        assert!(source.remove(&options).is_err() && sources[0].path().is_symlink());
        let mut walk = Walk::new(&sources, &options);
        let Some(Found::Source(source)) = walk.next() else { panic!("nothing found") };
        source.remove(&options).unwrap();
        assert!(!sources[0].path().is_symlink() && place.path().join("file").exists());
    }
}
