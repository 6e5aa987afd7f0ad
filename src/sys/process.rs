//! What this process may do and have, and what the machine has for it.

use std::fs::File;
use std::sync::OnceLock;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Gid;

/// The user that this process acts as, which never changes; geteuid(2).
pub fn effective_user() -> u32 {
    static USER: OnceLock<u32> = OnceLock::new();
    *USER.get_or_init(|| nix::unistd::geteuid().as_raw())
}

/// Whether that is root.
pub fn is_root() -> bool {
    effective_user() == 0
}

/// Whether this process may do with an open file what its owner may: open(2), `O_NOATIME`,
/// which nobody else may set and which is harmless.
pub fn acts_as_owner(file: &File) -> bool {
    let flags = |flags| nix::fcntl::fcntl(file, FcntlArg::F_SETFL(flags));
    let now = nix::fcntl::fcntl(file, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate);
    now.is_ok_and(|now| flags(now | OFlag::O_NOATIME).is_ok() && flags(now).is_ok())
}

/// Whether this process is in a group.
pub fn is_in_group(gid: u32) -> bool {
    let gid = Gid::from_raw(gid);
    nix::unistd::getegid() == gid || nix::unistd::getgroups().is_ok_and(|groups| groups.contains(&gid))
}

/// How many files this process may have open; getrlimit(2).
pub fn open_files_limit() -> usize {
    /// What Linux gives where nobody says anything.
    const USUAL: usize = 1024;
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, _)| usize::try_from(soft));
    limit.ok().and_then(Result::ok).unwrap_or(USUAL)
}

/// Lets this process have as many files open as it may: the lower limit is there for programs
/// that use select(2). Only a hint.
pub fn raise_open_files_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// How long a processor has worked for this thread; zero where nobody knows.
pub fn thread_time() -> Duration {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    nix::time::clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

/// How much memory this machine has, in bytes; `None` where nobody knows.
pub fn memory() -> Option<u64> {
    use nix::unistd::{SysconfVar, sysconf};
    let [pages, size] =
        [SysconfVar::_PHYS_PAGES, SysconfVar::PAGE_SIZE].map(|var| sysconf(var).ok().flatten());
    u64::try_from(pages?).ok()?.checked_mul(u64::try_from(size?).ok()?)
}
