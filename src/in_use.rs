//! Who else uses a file or a device: locks of other programs, loop devices, swap, mounts.
//! What is in use is not written, and what is being written is kept from QEMU.
//!
//! QEMU (`block/file-posix.c`) holds a shared lock on byte 100 + N of an image for each
//! permission N that it uses, and on byte 200 + N for each that it shares with nobody; it
//! does not open one where somebody else's locks say that a permission that it wants is not
//! shared. Other programs (libvirt, databases) lock bytes of their own. Here any byte counts.
//!
//! Loop devices and swap hold no locks. They are listed once for all files of a second:
//! small files cost nothing, and large ones take longer.

mod device;

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, Warning, lock, printable};
use crate::sys::{self, LockKind};

pub use device::refuse_held;

/// Bytes whose locks say that an image is written, or made longer: permissions 1 to 3 of
/// `BLK_PERM_*` (write, write unchanged, resize).
const WRITERS: std::ops::Range<u64> = 101..104;
/// Bytes whose locks keep QEMU from opening an image: all permissions are used, and none is
/// shared. Those between have no meaning.
const ALL_TO_OURSELVES: std::ops::Range<u64> = 100..205;
const ANY_BYTE: std::ops::Range<u64> = 0..u64::MAX;

/// What to do about it.
const WAY_OUT: &str = "stop that first, or write all the same with --force-in-use";

/// Who uses a file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum User {
    /// A program holds a lock; its process, if that is known.
    Lock(Option<Process>),
    Loop(LoopDevice),
    Swap,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    id: u32,
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct LoopDevice {
    name: String,
    is_read_only: bool,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Lock(Some(Process { id, name })) => write!(f, "process {id} ({name}) holds a lock on it"),
            User::Lock(None) => f.write_str("a program holds a lock on it (QEMU?)"),
            User::Loop(LoopDevice { name, .. }) => write!(f, "the loop device /dev/{name} is made of it"),
            User::Swap => f.write_str("it is swap space"),
        }
    }
}

/// Refuses a file that somebody else uses; what the kernel uses of small files, as it was
/// known within the last second. `state`: what it is like, at any time.
///
/// # Errors
///
/// [`Error::Refused`], with who it is; what the system calls report.
pub fn refuse(file: &File, state: &Metadata, path: &Path) -> Result<()> {
    let age = if state.len() < LARGE { SHORT } else { Duration::ZERO };
    refuse_user(user_of(file, Some(state), &kernel_users(age)), path)
}

/// Bytes of a file for which listing what the kernel uses takes no time.
const LARGE: u64 = 16 << 20;

/// Keeps QEMU from opening a file for as long as it is open here, and then refuses one that
/// somebody uses already.
///
/// # Errors
///
/// Those of [`refuse`].
pub fn claim(file: &File, state: &Metadata, path: &Path) -> Result<()> {
    if !sys::hold_shared(file, ALL_TO_OURSELVES).map_err(Error::file("lock", path))? {
        return refuse_user(Ok(Some(User::Lock(process_with(file)))), path);
    }
    refuse_user(user_of(file, Some(state), &kernel_users(Duration::ZERO)), path)
}

fn refuse_user(found: io::Result<Option<User>>, path: &Path) -> Result<()> {
    match found.map_err(Error::file("look for locks on", path))? {
        Some(user) => Err(Error::refused(path, format!("is in use: {user}; {WAY_OUT}"))),
        None => Ok(()),
    }
}

/// What to tell of a source that somebody may be writing meanwhile, as far as that shows.
pub fn warning(file: &File, path: &Path) -> Option<Warning> {
    let is_device = || file.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
    let why = match user_of(file, None, &kernel_users(SHORT)) {
        Ok(None) if is_device() => device::writer_of(file)?,
        Ok(Some(User::Lock(process))) => {
            let is_locked =
                |kind, bytes| sys::lock_in_the_way(file, kind, bytes).is_ok_and(|lock| lock.is_some());
            if !is_locked(LockKind::Shared, ANY_BYTE) && !is_locked(LockKind::Exclusive, WRITERS) {
                return None;
            }
            User::Lock(process).to_string()
        }
        Ok(Some(user)) if !matches!(&user, User::Loop(device) if device.is_read_only) => user.to_string(),
        // What cannot be looked at cannot be read either, and that is an error.
        _ => return None,
    };
    let what = format!("{} is in use: {why}; the copy may be inconsistent, send a snapshot", printable(path));
    Some(Warning::about(path, what))
}

/// `state`: what the file is like, if that is known.
fn user_of(file: &File, state: Option<&Metadata>, kernel: &[KernelUser]) -> io::Result<Option<User>> {
    if let Some(process) = sys::lock_in_the_way(file, LockKind::Exclusive, ANY_BYTE)? {
        return Ok(Some(User::Lock(process.map(Process::with_id).or_else(|| process_with(file)))));
    }
    if kernel.is_empty() {
        return Ok(None);
    }
    let id =
        state.map_or_else(|| file.metadata().map(|metadata| id_of(&metadata)), |state| Ok(id_of(state)))?;
    Ok(kernel.iter().find(|used| used.file == id).map(|used| used.by.clone()))
}

impl Process {
    fn with_id(id: u32) -> Process {
        let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        Process { id, name: name.trim_end().into() }
    }
}

/// Another process that has this file open, if this one may know.
fn process_with(file: &File) -> Option<Process> {
    let wanted = id_of(&file.metadata().ok()?);
    let own = std::process::id();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut others =
        processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|id| *id != own);
    let has_it = |id: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
        descriptors.filter_map(|entry| fs::metadata(entry.path()).ok()).any(|open| id_of(&open) == wanted)
    };
    others.find(has_it).map(Process::with_id)
}

fn id_of(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// A file that the kernel uses, by device and inode.
#[derive(Debug, Clone)]
struct KernelUser {
    file: (u64, u64),
    by: User,
}

/// How long the list of [`KernelUser`]s is taken to be right where nothing is decided for good.
const SHORT: Duration = Duration::from_secs(1);

/// The files that the kernel uses, as they were listed not longer than `age` ago.
fn kernel_users(age: Duration) -> Arc<[KernelUser]> {
    static KNOWN: Mutex<Option<(Instant, Arc<[KernelUser]>)>> = Mutex::new(None);
    let mut known = lock(&KNOWN);
    match known.as_ref() {
        Some((then, list)) if then.elapsed() < age => Arc::clone(list),
        _ => {
            let list: Arc<[KernelUser]> = loop_devices().into_iter().chain(swap_files()).collect();
            *known = Some((Instant::now(), Arc::clone(&list)));
            list
        }
    }
}

/// The files behind loop devices. sysfs tells which there are, and a path; the device itself
/// tells which file it is, whatever leads to it, to those who may open it.
fn loop_devices() -> Vec<KernelUser> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = devices.filter_map(|entry| entry.file_name().into_string().ok());
    let file_of = |name: &str| {
        let path = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let device = File::options().read(true).custom_flags(flags).open(format!("/dev/{name}"));
        match device.and_then(|device| sys::loop_backing(&device)) {
            Ok(file) => Some(file),
            Err(_) => Some(id_of(&fs::metadata(path.trim_end_matches('\n')).ok()?)),
        }
    };
    let users = names.filter(|name| name.starts_with("loop")).filter_map(|name| {
        let file = file_of(&name)?;
        let is_read_only =
            fs::read_to_string(format!("/sys/block/{name}/ro")).is_ok_and(|ro| ro.trim() == "1");
        Some(KernelUser { file, by: User::Loop(LoopDevice { name, is_read_only }) })
    });
    users.collect()
}

/// Files that are swapped to. Devices are held besides.
fn swap_files() -> Vec<KernelUser> {
    let files = device::swap_names().into_iter().filter_map(|name| fs::metadata(name).ok());
    let files = files.filter(Metadata::is_file);
    files.map(|metadata| KernelUser { file: id_of(&metadata), by: User::Swap }).collect()
}
