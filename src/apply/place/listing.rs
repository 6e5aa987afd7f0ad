//! Directories in which no working file lies: of many files in one, listed once in the place
//! of looks beside each.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Mutex;

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;

use crate::apply::place::Place;
use crate::error::lock;
use crate::sys;
use crate::working::is_working_name;

/// After so many looks at a directory that stays as it is, it is listed.
const LOOKS: u32 = 16;

/// A change this long ago has another time than one that comes now, on every file system;
/// seconds. FAT has the coarsest times, of two.
const TICK: i64 = 3;
/// The same in nanoseconds, where times have them: the kernel gives files the time of its last
/// tick, of which there are 100 a second at least.
const KERNEL_TICK: i64 = 100_000_000;
/// Nanoseconds of a second.
const SECOND: i64 = 1_000_000_000;

/// What a run knows of the directory that it looked at last: mostly the next name lies in
/// it, too.
#[derive(Debug, Default)]
pub(in crate::apply) struct Listing {
    last: Mutex<Option<Directory>>,
}

/// What tells one directory from another, and from itself with other names in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    device: u64,
    inode: u64,
    /// When a name in it was last made, removed or changed: its ctime.
    changed: (i64, i64),
}

#[derive(Debug)]
struct Directory {
    state: State,
    /// How often it was found like that.
    looks: u32,
    /// Whether no name in it was that of a working file.
    is_clean: bool,
}

impl Listing {
    /// Whether no working file can lie beside a place, of this destination or another.
    pub fn is_clean_around(&self, place: &Place) -> bool {
        let Ok(now) = fstat(&place.dir) else { return false };
        let changed = (now.st_ctime, now.st_ctime_nsec);
        let state = State { device: now.st_dev, inode: now.st_ino, changed };
        let mut last = lock(&self.last);
        let Some(known) = last.as_mut().filter(|known| known.state == state) else {
            *last = Some(Directory { state, looks: 1, is_clean: false });
            return false;
        };
        known.looks = known.looks.saturating_add(1);
        if known.looks != LOOKS || !is_at_rest(changed, sys::file_time_now()) {
            return known.is_clean;
        }
        // Others look beside their files meanwhile.
        drop(last);
        let is_clean = is_clean(place).unwrap_or(false);
        if let Some(known) = lock(&self.last).as_mut().filter(|known| known.state == state) {
            known.is_clean = is_clean;
        }
        is_clean
    }
}

/// Whether a directory that changes from now on gets another time than it has.
fn is_at_rest(changed: (i64, i64), now: (i64, i64)) -> bool {
    let passed = (now.0 - changed.0).saturating_mul(SECOND) + now.1 - changed.1;
    // Without nanoseconds, times may be those of whole seconds, or of two.
    passed >= if changed.1 == 0 { TICK * SECOND } else { KERNEL_TICK }
}

/// Whether a directory whose times can be relied on holds no working file.
fn is_clean(place: &Place) -> io::Result<bool> {
    let dir = place.open(OsStr::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    if !sys::is_cached(&dir) {
        return Ok(false);
    }
    for entry in Dir::from_fd(OwnedFd::from(dir))? {
        if is_working_name(OsStr::from_bytes(entry?.file_name().to_bytes())) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_at_rest_once_the_tick_of_its_last_change_is_over() {
        let fine = (1000, 999_999_999);
        assert!(!is_at_rest(fine, fine));
        assert!(!is_at_rest(fine, (1001, 99_999_998)));
        assert!(is_at_rest(fine, (1001, 99_999_999)));
        let coarse = (1000, 0);
        assert!(!is_at_rest(coarse, (1002, 999_999_999)));
        assert!(is_at_rest(coarse, (1003, 0)));
        // A clock that was set back.
        assert!(!is_at_rest(fine, (900, 0)));
    }
}
