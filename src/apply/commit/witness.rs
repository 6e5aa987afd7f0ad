//! That nobody else had a file open while it became what it is: then its state tells of this
//! content, and of no other.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::scan::FileState;
use crate::sys;

/// A file that is watched.
#[derive(Debug)]
pub struct Witness {
    file: File,
    opened: Inotify,
}

impl Witness {
    /// Watches a file from now on; inotify(7). `None`: somebody has it open or mapped, or that
    /// cannot be told.
    pub fn of(file: &File) -> Option<Witness> {
        let watch = || -> io::Result<Witness> {
            let opened = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            opened.add_watch(path.as_str(), AddWatchFlags::IN_OPEN)?;
            Ok(Witness { file: file.try_clone()?, opened })
        };
        // In this order: who opens it in between is seen by one of them.
        let witness = watch().ok()?;
        sys::is_open_here_alone(file).then_some(witness)
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

    use super::*;

    #[test]
    fn who_opens_the_file_meanwhile_is_seen() {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
        let own = file.reopen().expect("open");
        assert!(Witness::of(&own).is_none(), "it is open twice");
        let path = file.into_temp_path();
        let witness = Witness::of(&own).expect("nobody else has it open");
        (&own).write_all(b"ours").expect("write");
        assert!(witness.state().is_some());
        let witness = Witness::of(&own).expect("nobody else has it open");
        drop(File::open(&path).expect("open"));
        assert!(witness.state().is_none());
    }
}
