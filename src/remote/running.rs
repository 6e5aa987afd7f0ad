//! What a signal has to stop: the children of all connections of this process, and the
//! process groups of its commands. A thread of its own deals with signals, and may wait for a
//! lock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::error::{Again, lock};

/// All that runs now.
static RUNNING: Mutex<Vec<Running>> = Mutex::new(Vec::new());

/// Whether something has asked to stop.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Whether a shell takes part in the transfer.
static BY_SHELL: AtomicBool = AtomicBool::new(false);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Running {
    Child(Pid),
    Group(Pid),
}

impl Running {
    fn stop(self) {
        // It may have ended by itself.
        let _ = match self {
            Running::Child(pid) => kill(pid, Signal::SIGTERM),
            Running::Group(pid) => killpg(pid, Signal::SIGKILL),
        };
    }
}

/// Has something stopped with this process, until this is dropped.
#[derive(Debug)]
pub struct Watch(Running);

impl Watch {
    /// For a child process.
    pub fn child(pid: Pid) -> Watch {
        Watch::over(Running::Child(pid))
    }

    /// For a process group.
    pub fn group(pid: Pid) -> Watch {
        Watch::over(Running::Group(pid))
    }

    fn over(running: Running) -> Watch {
        let mut all = lock(&RUNNING);
        all.push(running);
        if is_interrupted() {
            running.stop();
        }
        Watch(running)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut all = lock(&RUNNING);
        if let Some(at) = all.iter().position(|running| *running == self.0) {
            all.swap_remove(at);
        }
    }
}

/// Keeps that a shell takes part in the transfer, for what is said where it is stopped.
pub fn note_shell() {
    BY_SHELL.store(true, Ordering::Relaxed);
}

/// What the same command does once more after this transfer was stopped.
pub fn again() -> Again {
    if BY_SHELL.load(Ordering::Relaxed) { Again::StartsAnew } else { Again::GoesOn }
}

/// Whether [`interrupt`] was called, or a signal came that does so: nothing new need be begun.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// What the handler of a signal sets. The child may get the same signal, and its end be seen before
/// anybody is told of it.
pub fn interruption() -> Arc<AtomicBool> {
    Arc::clone(&INTERRUPTED)
}

/// What has to be told to its end, once it is decided.
static FINISHING: Mutex<usize> = Mutex::new(0);
static FINISHED: Condvar = Condvar::new();
/// How long a signal waits for that.
const PATIENCE: Duration = Duration::from_secs(60);

/// Has a signal wait until this is dropped.
#[derive(Debug)]
pub struct Finishing(());

/// Has signals that come from now on wait. `None`: one came.
pub fn finish_first() -> Option<Finishing> {
    let mut finishing = lock(&FINISHING);
    if is_interrupted() {
        return None;
    }
    *finishing += 1;
    Some(Finishing(()))
}

impl Drop for Finishing {
    fn drop(&mut self) {
        *lock(&FINISHING) -= 1;
        FINISHED.notify_all();
    }
}

/// Stops all that is running, and what is started from now on, when what has to be finished is.
/// For signal handling.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
    // Whatever became of it.
    let _ = FINISHED.wait_timeout_while(lock(&FINISHING), PATIENCE, |finishing| *finishing > 0);
    lock(&RUNNING).iter().for_each(|running| running.stop());
}
