//! The place where tests work. `tests/run` names it in `HOLESYNC_TEST_ROOT`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tempfile::TempDir;

use super::process::{run, run_on, wait_until};

/// A file system that `tests/run` mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fs {
    Ext4,
    Xfs,
    Btrfs,
    Tmpfs,
    /// 64 MiB of ext4, to be filled up.
    Small,
}

impl Fs {
    fn name(self) -> &'static str {
        match self {
            Fs::Ext4 => "ext4",
            Fs::Xfs => "xfs",
            Fs::Btrfs => "btrfs",
            Fs::Tmpfs => "tmpfs",
            Fs::Small => "small",
        }
    }
}

/// The directory that `tests/run` prepared.
pub fn root() -> Option<PathBuf> {
    std::env::var_os("HOLESYNC_TEST_ROOT").map(PathBuf::from)
}

/// A directory of the test's own on `fs`; `None`, and a counted skip, where
/// that file system is not mounted.
pub fn dir(fs: Fs) -> Option<TempDir> {
    let mounted = root().map(|root| root.join(fs.name())).filter(|path| path.is_dir());
    if mounted.is_none() {
        skip(&format!("no {} is mounted", fs.name()));
    }
    mounted.map(|path| fresh(&path))
}

/// A directory on the small file system, which no other test fills meanwhile.
pub struct Small {
    pub dir: TempDir,
    /// Goes last: the directory is removed before the next test comes.
    _alone: MutexGuard<'static, ()>,
}

/// The small file system for one test at a time; `None`, and a counted skip,
/// where it is not mounted.
pub fn small() -> Option<Small> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    Some(Small { dir: dir(Fs::Small)?, _alone: alone })
}

/// A directory of the test's own wherever there is room.
pub fn scratch() -> TempDir {
    let mounted = root().map(|root| root.join("ext4")).filter(|path| path.is_dir());
    fresh(&mounted.unwrap_or_else(std::env::temp_dir))
}

fn fresh(parent: &Path) -> TempDir {
    tempfile::Builder::new().prefix("test-").tempdir_in(parent).expect("a directory for the test")
}

/// Whether the test may use devices, mounts and other users; if not, a counted
/// skip.
pub fn is_root() -> bool {
    let yes = nix::unistd::geteuid().is_root() && root().is_some();
    if !yes {
        skip("needs root and tests/run");
    }
    yes
}

/// Says that the running test cannot do its work here, and has it counted.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    note("HOLESYNC_TEST_SKIPS", &format!("SKIPPED {}: {why}", thread.name().unwrap_or("a test")));
}

/// Says what a test has counted; `tests/run` shows it at its end.
pub fn count(what: &str) {
    note("HOLESYNC_TEST_COUNTS", what);
}

/// Says it, and adds it to the file that a variable of the environment names.
fn note(variable: &str, line: &str) {
    let line = format!("{line}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os(variable) {
        // One write in append mode, so that lines of parallel tests stay whole.
        let mut file = OpenOptions::new().append(true).create(true).open(path).expect("open the list");
        file.write_all(line.as_bytes()).expect("note it");
    }
}

/// A copy of `program` in `dir`, where other users can run it.
pub fn install(program: &Path, dir: &Path) -> PathBuf {
    let path = dir.join("holesync");
    // In a process of its own: a file just written may still be open for
    // writing in a child that another test forks at this moment (ETXTBSY).
    let status = Command::new("install").args(["-m", "755"]).arg(program).arg(&path).status();
    assert!(status.is_ok_and(|status| status.success()), "cannot install {}", path.display());
    path
}

/// A script as a program, which can be run at once: see [`install`].
pub fn script(path: &Path, text: impl AsRef<[u8]>) {
    let mut command = Command::new("install");
    run_on(command.args(["-m", "755", "/dev/stdin"]).arg(path), text.as_ref()).ok();
}

/// A loop device over a file; it goes when this is dropped.
pub struct Loop(pub PathBuf);

impl Loop {
    pub fn over(file: &Path) -> Loop {
        let outcome = run(Command::new("losetup").args(["--find", "--show"]).arg(file)).ok();
        Loop(PathBuf::from(outcome.stdout.trim()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let name = self.0.file_name().expect("a name of a device");
        let behind = Path::new("/sys/block").join(name).join("loop/backing_file");
        let file = || std::fs::read(&behind).ok();
        let before = file();
        let detached = Command::new("losetup").arg("--detach").arg(&self.0).status();
        // Who has it open for a moment, as udev may, keeps it for as long.
        let is_gone = || file().is_none_or(|file| Some(file) != before);
        if !detached.is_ok_and(|status| status.success()) || !wait_until(Duration::from_secs(10), is_gone) {
            eprintln!("cannot detach {}", self.0.display());
        }
    }
}

/// A file system of a test's own, on a loop device; it goes when this is dropped.
pub struct Mounted {
    at: PathBuf,
    /// Goes last.
    _dir: TempDir,
}

impl Mounted {
    /// Makes and mounts one of `mebibytes`. `make` is the command that makes it, `options`
    /// those of `mount`.
    pub fn new(mebibytes: u64, make: &[&str], options: &[&str]) -> Mounted {
        let dir = scratch();
        let (image, at) = (dir.path().join("image"), dir.path().join("mount"));
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
        File::create(&image).and_then(|file| file.set_len(mebibytes << 20)).expect("make room");
        run(Command::new(make[0]).args(&make[1..]).arg(&image)).ok();
        std::fs::create_dir(&at).expect("mkdir");
        // Others take loop devices at the same time, and the first free one may be gone.
        let mount = || {
            let mounted = Command::new("mount").args(options).arg(&image).arg(&at).status();
            mounted.is_ok_and(|status| status.success())
        };
        assert!(wait_until(Duration::from_secs(10), mount), "cannot mount {}", image.display());
        Mounted { at, _dir: dir }
    }

    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A process that was just ended may hold it for a moment longer.
        let unmount = || Command::new("umount").arg("-q").arg(&self.at).status().is_ok_and(|s| s.success());
        wait_until(Duration::from_secs(5), unmount);
    }
}
