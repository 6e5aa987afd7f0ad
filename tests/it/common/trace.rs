//! A process whose system calls fail, each at its turn, as they may on a bad day.
//!
//! It is followed with ptrace(2), from its first instruction on: a call is counted, and the one that
//! was chosen fails, is cut short, or is the last thing that the process does. What a call would
//! have done before it fails, it does not do, but for close(2).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{self, c_long};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::peer::Peer;

/// What befalls a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Fails(Errno),
    /// It is asked for half of what the process asked for.
    Short,
    /// The process is killed before it.
    Kill,
    /// It is not done, and the process is told that it was.
    Pretend,
}

/// Which calls suffer it.
#[derive(Debug, Clone, Copy)]
pub enum When {
    /// None, and none is counted.
    Unwatched,
    /// None.
    Never,
    /// The nth of this name, of all threads together; from 1.
    Nth(&'static str, usize, Fault),
    /// All of these names.
    Each(&'static [&'static str], Fault),
}

/// What was seen of a process.
#[derive(Debug, Default)]
pub struct Seen {
    /// How often it made a call.
    pub calls: BTreeMap<&'static str, usize>,
    /// Calls that no list here knows, by number.
    pub unknown: Vec<u64>,
    /// The call that suffered the fault, and what it was made on.
    pub hit: Option<String>,
}

/// The argument that says how many bytes, or buffers, a call moves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Amount {
    None,
    /// A list of buffers.
    Buffers,
    Third,
    Fourth,
    Fifth,
}

/// Calls that can fail for reasons outside the process.
const CALLS: &[(&str, c_long, Amount)] = &[
    ("read", libc::SYS_read, Amount::Third),
    ("write", libc::SYS_write, Amount::Third),
    ("pread64", libc::SYS_pread64, Amount::Third),
    ("pwrite64", libc::SYS_pwrite64, Amount::Third),
    ("readv", libc::SYS_readv, Amount::Buffers),
    ("writev", libc::SYS_writev, Amount::Buffers),
    ("preadv", libc::SYS_preadv, Amount::Buffers),
    ("pwritev", libc::SYS_pwritev, Amount::Buffers),
    ("preadv2", libc::SYS_preadv2, Amount::Buffers),
    ("pwritev2", libc::SYS_pwritev2, Amount::Buffers),
    ("copy_file_range", libc::SYS_copy_file_range, Amount::Fifth),
    ("sendfile", libc::SYS_sendfile, Amount::Fourth),
    ("splice", libc::SYS_splice, Amount::Fifth),
    ("vmsplice", libc::SYS_vmsplice, Amount::Buffers),
    ("tee", libc::SYS_tee, Amount::Third),
    ("getdents64", libc::SYS_getdents64, Amount::None),
    ("open", libc::SYS_open, Amount::None),
    ("openat", libc::SYS_openat, Amount::None),
    ("openat2", libc::SYS_openat2, Amount::None),
    ("close", libc::SYS_close, Amount::None),
    ("stat", libc::SYS_stat, Amount::None),
    ("lstat", libc::SYS_lstat, Amount::None),
    ("fstat", libc::SYS_fstat, Amount::None),
    ("newfstatat", libc::SYS_newfstatat, Amount::None),
    ("statx", libc::SYS_statx, Amount::None),
    ("statfs", libc::SYS_statfs, Amount::None),
    ("fstatfs", libc::SYS_fstatfs, Amount::None),
    ("access", libc::SYS_access, Amount::None),
    ("faccessat", libc::SYS_faccessat, Amount::None),
    ("faccessat2", libc::SYS_faccessat2, Amount::None),
    ("readlink", libc::SYS_readlink, Amount::None),
    ("readlinkat", libc::SYS_readlinkat, Amount::None),
    ("lseek", libc::SYS_lseek, Amount::None),
    ("ftruncate", libc::SYS_ftruncate, Amount::None),
    ("fallocate", libc::SYS_fallocate, Amount::None),
    ("fadvise64", libc::SYS_fadvise64, Amount::None),
    ("cachestat", 451, Amount::None),
    ("ioctl", libc::SYS_ioctl, Amount::None),
    ("fcntl", libc::SYS_fcntl, Amount::None),
    ("flock", libc::SYS_flock, Amount::None),
    ("fchmod", libc::SYS_fchmod, Amount::None),
    ("fchmodat", libc::SYS_fchmodat, Amount::None),
    ("fchmodat2", 452, Amount::None),
    ("fchown", libc::SYS_fchown, Amount::None),
    ("fchownat", libc::SYS_fchownat, Amount::None),
    ("utimensat", libc::SYS_utimensat, Amount::None),
    ("fgetxattr", libc::SYS_fgetxattr, Amount::None),
    ("fsetxattr", libc::SYS_fsetxattr, Amount::None),
    ("flistxattr", libc::SYS_flistxattr, Amount::None),
    ("fremovexattr", libc::SYS_fremovexattr, Amount::None),
    ("getxattr", libc::SYS_getxattr, Amount::None),
    ("setxattr", libc::SYS_setxattr, Amount::None),
    ("listxattr", libc::SYS_listxattr, Amount::None),
    ("fsync", libc::SYS_fsync, Amount::None),
    ("fdatasync", libc::SYS_fdatasync, Amount::None),
    ("syncfs", libc::SYS_syncfs, Amount::None),
    ("sync_file_range", libc::SYS_sync_file_range, Amount::None),
    ("rename", libc::SYS_rename, Amount::None),
    ("renameat", libc::SYS_renameat, Amount::None),
    ("renameat2", libc::SYS_renameat2, Amount::None),
    ("linkat", libc::SYS_linkat, Amount::None),
    ("symlinkat", libc::SYS_symlinkat, Amount::None),
    ("unlink", libc::SYS_unlink, Amount::None),
    ("unlinkat", libc::SYS_unlinkat, Amount::None),
    ("mkdir", libc::SYS_mkdir, Amount::None),
    ("mkdirat", libc::SYS_mkdirat, Amount::None),
    ("mknodat", libc::SYS_mknodat, Amount::None),
    ("getcwd", libc::SYS_getcwd, Amount::None),
    ("pipe2", libc::SYS_pipe2, Amount::None),
    ("inotify_init1", libc::SYS_inotify_init1, Amount::None),
    ("inotify_add_watch", libc::SYS_inotify_add_watch, Amount::None),
    ("dup", libc::SYS_dup, Amount::None),
    ("dup2", libc::SYS_dup2, Amount::None),
    ("sched_getaffinity", libc::SYS_sched_getaffinity, Amount::None),
    ("prlimit64", libc::SYS_prlimit64, Amount::None),
    ("sysinfo", libc::SYS_sysinfo, Amount::None),
    ("uname", libc::SYS_uname, Amount::None),
];

/// Calls about memory, threads, signals, time and the process itself. The C library and Rust's own
/// start with them, and end the process where they fail.
const OTHERS: &[c_long] = &[
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_kill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_arch_prctl,
    libc::SYS_prctl,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_getrandom,
    libc::SYS_sched_yield,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_capget,
    libc::SYS_umask,
    libc::SYS_setpgid,
    libc::SYS_getpgid,
    libc::SYS_setpriority,
    // A pair of sockets, in which a process tells itself of a signal.
    libc::SYS_socketpair,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
];

/// The names of the calls that move an amount and may move less.
pub fn moves_an_amount(call: &str) -> bool {
    CALLS.iter().any(|&(name, _, amount)| name == call && amount != Amount::None)
}

/// Follows one process to its end.
pub struct Tracer {
    pid_file: PathBuf,
    over: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What a process does first, so that nothing of it is missed: it tells who it is, and stops.
fn prologue(pid_file: &Path) -> String {
    let path = pid_file.to_str().expect("a plain path");
    format!("echo $$ >'{path}.new'; mv '{path}.new' '{path}'; kill -STOP $$;")
}

impl Tracer {
    /// Waits for a process that says in `dir` that it is there.
    fn new(dir: &Path, when: When) -> Tracer {
        let (pid_file, over) = (dir.join("traced"), Arc::new(AtomicBool::new(false)));
        // One that a run before left.
        let _ = std::fs::remove_file(&pid_file);
        let (path, ends) = (pid_file.clone(), over.clone());
        let thread = thread::spawn(move || match await_pid(&path, &ends) {
            Some(pid) => Follower::new(when).follow(pid),
            None => Seen::default(),
        });
        Tracer { pid_file, over, thread }
    }

    /// Follows the agent at the other end of two pipes.
    pub fn agent(dir: &Path, when: When) -> (Tracer, Peer) {
        let tracer = Tracer::new(dir, when);
        let peer = Peer::script(dir, &format!("{} exec $command", prologue(&tracer.pid_file)));
        (tracer, peer)
    }

    /// Follows what `command` starts; run the command that is returned in its place.
    pub fn command(dir: &Path, when: When, command: &Command) -> (Tracer, Command) {
        let tracer = Tracer::new(dir, when);
        let mut traced = Command::new("sh");
        // A process that is a child of this one would be waited for by the tracer, and by the test.
        let script = format!("{} exec \"$@\"", prologue(&tracer.pid_file));
        traced.args(["-c", "sh -c \"$0\" sh \"$@\"; exit $?", &script]).arg(command.get_program());
        traced.args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => traced.env(key, value),
                None => traced.env_remove(key),
            };
        }
        (tracer, traced)
    }

    /// After the end of the run: what was seen.
    pub fn seen(self) -> Seen {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the tracer")
    }
}

fn await_pid(path: &Path, over: &AtomicBool) -> Option<Pid> {
    loop {
        let ended = over.load(Ordering::Relaxed);
        if let Ok(text) = std::fs::read_to_string(path) {
            return Some(Pid::from_raw(text.trim().parse().expect("a pid")));
        }
        if ended {
            return None;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

struct Follower {
    when: When,
    seen: Seen,
    /// Whether the program has taken the place of the shell that started it.
    started: bool,
    /// Threads within a call, and what is to be its result.
    inside: HashMap<Pid, Option<i64>>,
}

impl Follower {
    fn new(when: When) -> Follower {
        Follower { when, seen: Seen::default(), started: false, inside: HashMap::new() }
    }

    fn follow(mut self, pid: Pid) -> Seen {
        let options = Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_EXITKILL;
        // It may have been ended together with the run.
        if ptrace::seize(pid, options).is_err() {
            return self.seen;
        }
        let _ = kill(pid, Signal::SIGCONT);
        // Of this thread alone: others wait for children of their own.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let (thread, signal) = match waitpid(None, Some(flags)) {
                Ok(WaitStatus::PtraceSyscall(thread)) => {
                    // One that is killed meanwhile answers nothing more.
                    let _ = self.at_call(thread, pid);
                    (thread, None)
                }
                Ok(WaitStatus::PtraceEvent(thread, _, event)) => {
                    self.started |= event == libc::PTRACE_EVENT_EXEC;
                    (thread, None)
                }
                Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => return self.seen,
            };
            let _ = match self.watches(thread) {
                true => ptrace::syscall(thread, signal),
                false => ptrace::cont(thread, signal),
            };
        }
    }

    /// Whether the next call of a thread, or the end of this one, matters: two stops a call take longer
    /// than most calls.
    fn watches(&self, thread: Pid) -> bool {
        let is_over = match self.when {
            When::Unwatched => true,
            When::Nth(..) => self.seen.hit.is_some(),
            When::Never | When::Each(..) => false,
        };
        !is_over || matches!(self.inside.get(&thread), Some(Some(_)))
    }

    /// A thread enters or leaves a call.
    fn at_call(&mut self, thread: Pid, process: Pid) -> nix::Result<()> {
        let mut regs = ptrace::getregs(thread)?;
        if let Some(result) = self.inside.remove(&thread) {
            if let Some(result) = result {
                regs.rax = result as u64;
                ptrace::setregs(thread, regs)?;
            }
            return Ok(());
        }
        self.inside.insert(thread, None);
        if !self.started {
            return Ok(());
        }
        let number = regs.orig_rax as c_long;
        let Some(&(name, _, amount)) = CALLS.iter().find(|call| call.1 == number) else {
            if !OTHERS.contains(&number) {
                self.seen.unknown.push(regs.orig_rax);
            }
            return Ok(());
        };
        let nth = self.seen.calls.entry(name).or_default();
        *nth += 1;
        let fault = match self.when {
            When::Nth(call, n, fault) if call == name && n == *nth => fault,
            When::Each(calls, fault) if calls.contains(&name) => fault,
            _ => return Ok(()),
        };
        self.seen.hit = Some(format!("{name} {nth} on {}", object(thread, regs.rdi)));
        match fault {
            Fault::Kill => return kill(process, Signal::SIGKILL),
            Fault::Short => shorten(thread, &mut regs, amount)?,
            // What fails to be closed is closed all the same.
            Fault::Fails(errno) if name == "close" => {
                self.inside.insert(thread, Some(-i64::from(errno as i32)));
                return Ok(());
            }
            Fault::Fails(errno) => {
                regs.orig_rax = u64::MAX;
                self.inside.insert(thread, Some(-i64::from(errno as i32)));
            }
            Fault::Pretend => {
                regs.orig_rax = u64::MAX;
                self.inside.insert(thread, Some(0));
            }
        }
        ptrace::setregs(thread, regs)
    }
}

/// What the first argument of a call stands for, if it is a descriptor.
fn object(thread: Pid, argument: u64) -> String {
    match std::fs::read_link(format!("/proc/{thread}/fd/{}", argument as i32)) {
        Ok(path) => path.display().to_string(),
        Err(_) => "no descriptor".to_owned(),
    }
}

/// Half of it, but something.
fn shorten(thread: Pid, regs: &mut libc::user_regs_struct, amount: Amount) -> nix::Result<()> {
    let count = match amount {
        Amount::None => return Ok(()),
        Amount::Buffers => {
            // Half of the first buffer alone: its length lies behind its address (readv(2)).
            let length = (regs.rsi + 8) as ptrace::AddressType;
            let half = (ptrace::read(thread, length)? as u64).div_ceil(2);
            ptrace::write(thread, length, half as c_long)?;
            regs.rdx = regs.rdx.min(1);
            return Ok(());
        }
        Amount::Third => &mut regs.rdx,
        Amount::Fourth => &mut regs.r10,
        Amount::Fifth => &mut regs.r8,
    };
    *count = count.div_ceil(2);
    Ok(())
}
