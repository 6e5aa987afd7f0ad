//! A disk that remembers each write and each flush in their order, and what it may hold after the
//! power has gone at any moment: everything up to a flush, and of what came later any part.
//!
//! It is a file of a FUSE file system below a loop device. The loop driver writes and syncs that file
//! as its device is written and flushed; nothing lies between that would keep a write back.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, WriteFlags,
};

use super::lab::Loop;
use super::layout::Rng;
use super::process::{run, wait_until};

/// What storage writes whole, or not at all.
const SECTORS: usize = 4 << 10;
const DISK: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

/// Something that a disk was told to do.
#[derive(Debug, Clone)]
pub enum Event {
    Write { at: u64, bytes: Vec<u8> },
    Flush,
}

/// A file system and how it is made and mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Ext4,
    Xfs,
}

impl Format {
    /// Makes an empty one in a new file.
    pub fn make(self, disk: &Path) {
        let (len, mut mkfs) = match self {
            Format::Ext4 => (24 << 20, Command::new("mkfs.ext4")),
            // The least that mkfs.xfs takes.
            Format::Xfs => (300 << 20, Command::new("mkfs.xfs")),
        };
        File::create(disk).expect("create a disk").set_len(len).expect("set its size");
        if self == Format::Ext4 {
            mkfs.args(["-E", "lazy_itable_init=0,lazy_journal_init=0"]);
        }
        run(mkfs.arg("-q").arg(disk)).ok();
    }

    /// Nothing is to be written that nobody waits for: not by the clock, and not because ext4 takes pity
    /// on programs that forget to. A copy has the UUID of its original.
    fn options(self) -> &'static str {
        match self {
            Format::Ext4 => "commit=600,noauto_da_alloc",
            Format::Xfs => "nouuid",
        }
    }
}

/// A mounted disk, unmounted when dropped.
pub struct Mounted {
    at: PathBuf,
    /// Detached when nothing is mounted on it any more.
    _device: Loop,
}

impl Mounted {
    /// Mounts what `file` holds, at `at`, which is made.
    pub fn new(format: Format, file: &Path, at: &Path) -> Mounted {
        std::fs::create_dir_all(at).expect("create a mount point");
        let device = Loop::over(file);
        // A device stays read-only if the one before us left it so.
        run(Command::new("blockdev").arg("--setrw").arg(&device.0)).ok();
        // Nor is it told to flush anything, if the one before us wanted none of it, as those of `tests/run`.
        let name = device.0.file_name().expect("a name").display();
        let _ = std::fs::write(format!("/sys/block/{name}/queue/write_cache"), "write back");
        run(Command::new("mount").args(["-o", format.options()]).arg(&device.0).arg(at)).ok();
        Mounted { at: at.to_owned(), _device: device }
    }

    /// The directory that images are put into.
    pub fn target(&self) -> PathBuf {
        let target = self.at.join("target");
        std::fs::create_dir_all(&target).expect("create the target");
        target
    }

    /// Has everything written that was not yet.
    pub fn sync(&self) {
        let dir = File::open(&self.at).expect("open the file system");
        nix::unistd::syncfs(&dir).expect("sync the file system");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A process that another test has just forked may hold it for a moment longer. Nothing better
        // than trying can be done while a test fails.
        let unmount = || Command::new("umount").arg("-q").arg(&self.at).status().is_ok_and(|s| s.success());
        wait_until(Duration::from_secs(10), unmount);
    }
}

/// A disk that remembers. Unmount what lies on it first.
pub struct Recorder {
    state: Arc<Mutex<State>>,
    mount_point: PathBuf,
    _session: BackgroundSession,
}

/// What a disk holds, and what happened to it.
struct State {
    content: File,
    events: Vec<Event>,
}

impl Recorder {
    /// A disk that holds what `content` does, and is that file, reached below `mount_point`.
    pub fn new(content: &Path, mount_point: &Path) -> Recorder {
        std::fs::create_dir_all(mount_point).expect("create a mount point");
        let content = OpenOptions::new().read(true).write(true).open(content).expect("open the disk");
        let length = content.metadata().expect("stat").len();
        let state = Arc::new(Mutex::new(State { content, events: Vec::new() }));
        let server = Server { state: state.clone(), length };
        let session = fuser::spawn_mount(server, mount_point, &Config::default()).expect("mount with FUSE");
        Recorder { state, mount_point: mount_point.to_owned(), _session: session }
    }

    /// The disk as a file.
    pub fn file(&self) -> PathBuf {
        self.mount_point.join("disk")
    }

    /// Keeps a copy of what it holds, and forgets what happened until now.
    pub fn begin(&self, content: &Path, copy: &Path) {
        let mut state = self.state.lock().expect("the state");
        std::fs::copy(content, copy).expect("copy the disk");
        state.events.clear();
    }

    /// How much has happened.
    pub fn events(&self) -> usize {
        self.state.lock().expect("the state").events.len()
    }

    /// What has happened.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.state.lock().expect("the state").events)
    }
}

/// The file system with one file.
struct Server {
    state: Arc<Mutex<State>>,
    length: u64,
}

impl Server {
    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let (kind, perm, size) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0o700, 0),
            _ => (FileType::RegularFile, 0o600, self.length),
        };
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn with_state<T>(&self, each: impl FnOnce(&mut State) -> std::io::Result<T>) -> Result<T, Errno> {
        let mut state = self.state.lock().map_err(|_| Errno::EIO)?;
        each(&mut state).map_err(|_| Errno::EIO)
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match parent == INodeNo::ROOT && name == "disk" {
            true => reply.entry(&TTL, &self.attributes(DISK), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(ino));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; (size as usize).min(self.length.saturating_sub(offset) as usize)];
        match self.with_state(|state| state.content.read_exact_at(&mut bytes, offset)) {
            Ok(()) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.with_state(|state| {
            state.content.write_all_at(data, offset)?;
            state.events.push(Event::Write { at: offset, bytes: data.to_vec() });
            Ok(())
        });
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let flushed = self.with_state(|state| {
            state.events.push(Event::Flush);
            Ok(())
        });
        match flushed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }
}

/// The power goes after so many events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    pub after: usize,
    /// Everything until then is there; with a seed, of what came after the last flush only a part.
    pub seed: Option<u64>,
}

impl Loss {
    /// Each moment at which something can be lost, `parts` times with a part of what may be.
    pub fn all(events: &[Event], parts: u64) -> Vec<Loss> {
        let mut losses = vec![Loss { after: 0, seed: None }];
        let mut pending = 0;
        for (nth, event) in events.iter().enumerate() {
            match event {
                // Nothing has changed, but for what can no longer be lost.
                Event::Flush => pending = 0,
                Event::Write { .. } => {
                    pending += 1;
                    let after = nth + 1;
                    losses.push(Loss { after, seed: None });
                    let parts = if pending > 1 { parts } else { 0 };
                    losses
                        .extend((0..parts).map(|part| Loss { after, seed: Some(part + after as u64 * 64) }));
                }
            }
        }
        losses
    }

    /// Makes `disk`, a copy of what it was in the beginning, what it may be after this.
    pub fn apply(self, events: &[Event], disk: &Path) {
        let disk = OpenOptions::new().write(true).open(disk).expect("open the copy");
        let last_flush = events[..self.after].iter().rposition(|event| matches!(event, Event::Flush));
        let mut rng = Rng(self.seed.unwrap_or_default());
        // How much of it is kept is another thing each time.
        let percent = 10 + rng.below(80);
        for (nth, event) in events[..self.after].iter().enumerate() {
            let Event::Write { at, bytes } = event else { continue };
            let is_safe = self.seed.is_none() || last_flush.is_some_and(|flush| nth < flush);
            for (piece, bytes) in bytes.chunks(SECTORS).enumerate() {
                if is_safe || rng.chance(percent) {
                    disk.write_all_at(bytes, at + (piece * SECTORS) as u64).expect("write to the copy");
                }
            }
        }
    }
}
