//! That nobody else had a file open while it became what it is: then its state tells of this
//! content, and of no other.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};

use crate::scan::FileState;
use crate::sys;

/// Files that are watched at once: users get 128 instances of inotify(7), all their programs
/// together.
const MOST: usize = 32;
static WATCHED: AtomicUsize = AtomicUsize::new(0);

/// What a watched file has from this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// Attributes at most: see [`Witness::past_own_times`].
    None,
    /// Content, so that nobody knows who else writes by its name: truncate(2) does.
    Replay,
}

/// A file that is watched.
#[derive(Debug)]
pub struct Witness {
    file: File,
    opened: Inotify,
    _place: Watched,
}

/// One of those that may be watched.
#[derive(Debug)]
struct Watched;

impl Watched {
    fn take() -> Option<Watched> {
        let taken = |count| (count < MOST).then_some(count + 1);
        WATCHED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).ok().map(|_| Watched)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        WATCHED.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Witness {
    /// Watches a file from now on; inotify(7). `None`: somebody has it open or mapped, or that
    /// cannot be told.
    pub fn of(file: &File, writes: Writes) -> Option<Witness> {
        let place = Watched::take()?;
        let others = match writes {
            Writes::None => AddWatchFlags::IN_OPEN | AddWatchFlags::IN_MODIFY,
            Writes::Replay => AddWatchFlags::IN_OPEN,
        };
        let watch = || -> io::Result<Witness> {
            let opened = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            opened.add_watch(path.as_str(), others)?;
            Ok(Witness { file: file.try_clone()?, opened, _place: place })
        };
        // In this order: who opens it in between is seen by one of them.
        let witness = watch().ok()?;
        sys::is_open_here_alone(file).then_some(witness)
    }

    /// The same, after a time was set from here, which counts as a change of content; inotify(7) does not
    /// say so, but `fsnotify_change` in the kernel does. `None`: somebody opened it.
    pub fn past_own_times(self) -> Option<Witness> {
        let is_own = |event: &InotifyEvent| !event.mask.contains(AddWatchFlags::IN_OPEN);
        let unseen = match self.opened.read_events() {
            Ok(events) => events.iter().all(is_own),
            Err(errno) => errno == Errno::EAGAIN,
        };
        unseen.then_some(self)
    }

    /// The file and its state, if nobody else opened it since: whatever changes from now on
    /// gives it another.
    pub fn state(self) -> Option<(File, FileState)> {
        let state = FileState::of(&self.file).ok()?;
        if !state.will_show_stores() {
            return None;
        }
        let unseen = matches!(self.opened.read_events(), Err(Errno::EAGAIN));
        (unseen && state.is_still(&self.file)).then_some((self.file, state))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use super::*;

    /// What other tests fork has all files open for a moment.
    fn watched(file: &File, writes: Writes) -> Witness {
        let again = || {
            std::thread::sleep(std::time::Duration::from_millis(5));
            Witness::of(file, writes)
        };
        (0..1000).find_map(|_| again()).expect("nobody else has it open")
    }

    #[test]
    fn who_opens_the_file_meanwhile_is_seen() {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
        let own = file.reopen().expect("open");
        assert!(Witness::of(&own, Writes::None).is_none(), "it is open twice");
        let path = file.into_temp_path();
        let witness = watched(&own, Writes::Replay);
        (&own).write_all(b"ours").expect("write");
        assert!(witness.state().is_some());
        let witness = watched(&own, Writes::None);
        assert!(witness.state().is_some());
        let open = |path: &Path| drop(File::open(path).expect("open"));
        let cut = |path: &Path| nix::unistd::truncate(path, 1).expect("truncate");
        for meddle in [open as fn(&Path), cut] {
            let witness = watched(&own, Writes::None);
            meddle(&path);
            assert!(witness.state().is_none());
        }
    }
}
