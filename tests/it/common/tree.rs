//! Directory trees: odd ones to send, what happens to them between two runs,
//! and what rsync makes of the same input.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::layout::{Change, Layout, Rng, layouts, mutate};
use super::peer::{Peer, at};
use super::process::{Outcome, holesync, run};

/// Between which machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Local,
    Push,
    Pull,
    /// To a host without a holesync.
    PushShell,
    /// From one.
    PullShell,
}

pub const WAYS: [Way; 5] = [Way::Local, Way::Push, Way::Pull, Way::PushShell, Way::PullShell];

impl Way {
    /// Whether there is a holesync at both ends.
    pub fn has_agent(self) -> bool {
        !matches!(self, Way::PushShell | Way::PullShell)
    }

    /// Runs the program, over sshd unless it is local; `None`, and a counted
    /// skip, where there is no sshd. Paths may end in a slash.
    #[track_caller]
    pub fn run(self, flags: &[&str], sources: &[&OsStr], to: &OsStr) -> Option<Outcome> {
        let mut command = match self {
            Way::Local => self.command(None, flags, sources, to),
            _ => self.command(Some(&Peer::sshd()?), flags, sources, to),
        };
        Some(run(&mut command))
    }

    /// The command for it; one on this machine needs no peer.
    pub fn command(self, peer: Option<&Peer>, flags: &[&str], sources: &[&OsStr], to: &OsStr) -> Command {
        let mut command = match peer {
            Some(peer) if matches!(self, Way::Push | Way::Pull) => peer.holesync(),
            Some(peer) if self != Way::Local => peer.shell(),
            _ => holesync(),
        };
        command.args(flags);
        match self {
            Way::Pull | Way::PullShell => command.args(sources.iter().map(at)),
            _ => command.args(sources),
        };
        command.arg(if matches!(self, Way::Push | Way::PushShell) { at(to) } else { to.to_owned() });
        command
    }
}

/// Runs rsync in `dir`; its exit code.
pub fn rsync(dir: &Path, args: &[impl AsRef<OsStr>]) -> i32 {
    let mut command = Command::new("rsync");
    let output = command.current_dir(dir).env("LC_ALL", "C").args(args).output().expect("run rsync");
    output.status.code().expect("rsync ends by itself")
}

/// What is compared of a name in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    kind: Kind,
    mode: u32,
    mtime: Time,
    owner: Option<(u32, u32)>,
}

/// A time that was set; what was made or changed by the test has another.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Time {
    Set(i64, i64),
    Now,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    File { length: u64, hash: String },
    Directory,
    Symlink(OsString),
    Other(u32),
}

/// Everything below `dir`, itself included, its owners only if they count.
pub fn snapshot(dir: &Path, owners: bool) -> BTreeMap<PathBuf, Node> {
    let entries = walkdir::WalkDir::new(dir).into_iter().map(|entry| entry.expect("walk"));
    entries
        .map(|entry| {
            let name = entry.path().strip_prefix(dir).expect("below").to_path_buf();
            (name, node(entry.path(), owners))
        })
        .collect()
}

fn node(path: &Path, owners: bool) -> Node {
    let metadata = fs::symlink_metadata(path).expect("stat");
    let kind = if metadata.is_file() {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(fs::File::open(path).expect("open")).expect("read");
        Kind::File { length: metadata.len(), hash: hasher.finalize().to_hex().to_string() }
    } else if metadata.is_dir() {
        Kind::Directory
    } else if metadata.is_symlink() {
        Kind::Symlink(fs::read_link(path).expect("readlink").into_os_string())
    } else {
        Kind::Other(metadata.mode())
    };
    Node {
        kind,
        mode: metadata.mode() & 0o7777,
        mtime: time_of(&metadata),
        owner: owners.then_some((metadata.uid(), metadata.gid())),
    }
}

fn time_of(metadata: &fs::Metadata) -> Time {
    const DAY: Duration = Duration::from_secs(86_400);
    let recent = metadata.modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age < DAY));
    if recent { Time::Now } else { Time::Set(metadata.mtime(), metadata.mtime_nsec()) }
}

/// Demands that two trees are the same; names up to five differences.
#[track_caller]
pub fn assert_trees(ours: &Path, theirs: &Path, owners: bool, what: &str) {
    let (left, right) = (snapshot(ours, owners), snapshot(theirs, owners));
    let names = left.keys().chain(right.keys()).collect::<std::collections::BTreeSet<_>>();
    let differ: Vec<_> = names.into_iter().filter(|name| left.get(*name) != right.get(*name)).collect();
    let show = |name: &&PathBuf| format!("{name:?}\n  {:?}\n  {:?}\n", left.get(*name), right.get(*name));
    let shown: String = differ.iter().take(5).map(show).collect();
    assert!(differ.is_empty(), "{what}: {} names differ, first\n{shown}", differ.len());
}

/// Sets the modification time of anything, links included.
pub fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = TimeSpec::new(seconds, nanoseconds);
    let flag = UtimensatFlags::NoFollowSymlink;
    utimensat(nix::fcntl::AT_FDCWD, path, &TimeSpec::UTIME_OMIT, &time, flag).expect("set a time");
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod");
}

/// Makes directories, and returns the path.
pub fn mkdir(path: PathBuf) -> PathBuf {
    fs::create_dir_all(&path).expect("mkdir");
    path
}

/// Makes a small file, and returns the path.
pub fn small(path: PathBuf, content: &str) -> PathBuf {
    fs::write(&path, content).expect("write");
    path
}

/// The path with a slash behind it.
pub fn slash(path: &Path) -> OsString {
    path.join("").into_os_string()
}

/// Names that something on the way could stumble over.
pub fn odd_names() -> Vec<OsString> {
    let long = |byte: u8| vec![byte; 255];
    let names: [&[u8]; 16] = [
        b"with space ",
        b" ",
        b"new\nline",
        b"\xff\xfe\x80",
        b"tab\tbell\x07\x1b[31m",
        b".hidden",
        b"-rf",
        b"--delete",
        b"a:b",
        b"*?[x]",
        b"'\"$`\\!",
        b"~",
        b"...",
        b"name.holesync.temp",
        b".name.holesync.temp~",
        b".holesync.",
    ];
    let names = names.iter().map(|name| name.to_vec()).chain([long(b'n'), long(0xfe)]);
    names.map(OsString::from_vec).collect()
}

/// A tree with one of everything. `owners`: as root, things of many owners.
pub fn grow(dir: &Path, rng: &mut Rng) {
    let images = mkdir(dir.join("images/deep/er"));
    for (nth, layout) in layouts(rng).iter().enumerate() {
        let place = if nth % 2 == 0 { &dir.join("images") } else { &images };
        layout.write(&place.join(&layout.name));
    }
    mkdir(dir.join("empty"));
    mkdir(dir.join("nested/empty/empty"));
    grow_links(&mkdir(dir.join("links")));
    grow_modes(&mkdir(dir.join("modes")));
    for name in odd_names() {
        small(mkdir(dir.join("names")).join(&name), "odd");
        small(mkdir(dir.join("names/below").join(&name)).join("file"), "odd");
    }
    for (nth, owner) in [(0, 0), (1234, 4321), (65534, 0), (0, 65534)].into_iter().enumerate() {
        let file = small(mkdir(dir.join("owners")).join(format!("{nth}")), "owned");
        chown(&file, Some(owner.0), Some(owner.1)).expect("chown");
        let link = dir.join(format!("owners/link{nth}"));
        symlink("anywhere", &link).expect("symlink");
        lchown(&link, Some(owner.0), Some(owner.1)).expect("lchown");
    }
    age(dir);
}

fn grow_links(dir: &Path) {
    let targets = ["../images/dense", "/etc/passwd", "not/there", "../images", "loop", "..", "/"];
    for (nth, target) in targets.iter().enumerate() {
        symlink(target, dir.join(format!("{nth}"))).expect("symlink");
    }
    symlink("loop", dir.join("loop")).expect("symlink");
    symlink(OsStr::from_bytes(b"\xff\n \\"), dir.join("odd")).expect("symlink");
    symlink("x".repeat(1000), dir.join("long")).expect("symlink");
}

fn grow_modes(dir: &Path) {
    for mode in [0o000, 0o400, 0o644, 0o666, 0o755, 0o4755, 0o2755, 0o6711, 0o1644, 0o2644] {
        let file = small(dir.join(format!("file{mode:o}")), "mode");
        set_mode(&file, mode);
    }
    for mode in [0o000, 0o500, 0o700, 0o1777, 0o2775, 0o4755] {
        let below = mkdir(dir.join(format!("dir{mode:o}")));
        small(below.join("inside"), "mode");
        set_mode(&below, mode);
    }
}

/// Gives everything a time that is easily lost.
fn age(dir: &Path) {
    let times = [
        (0, 0),
        // rsync takes times for equal that differ in less than a second.
        (10, 1),
        (-1, 999_999_999),
        (-1_234_567_890, 123_456_789),
        (1_000_000_000, 999_999_999),
        (1_700_000_000, 0),
        (8_000_000_000, 42),
    ];
    let entries: Vec<_> = walkdir::WalkDir::new(dir).contents_first(true).into_iter().flatten().collect();
    for (nth, entry) in entries.iter().enumerate() {
        let (seconds, nanoseconds) = times[nth % times.len()];
        set_mtime(entry.path(), seconds, nanoseconds);
    }
}

/// What may happen to a tree of [`grow`] between two runs.
pub fn change(dir: &Path, rng: &mut Rng) {
    let images = dir.join("images/deep/er");
    for (nth, change) in Change::ALL.into_iter().enumerate() {
        let layout = Layout::dense("changed", 700_000, rng);
        let path = images.join(format!("changed{nth}"));
        // The second time around there is an old version.
        mutate(layout, change, rng).write(&path);
    }
    mutate(layouts(rng).remove(8), Change::Touch, rng).write(&dir.join("images/dense"));
    fs::remove_file(dir.join("names/-rf")).expect("remove");
    fs::remove_dir_all(dir.join("names/below/-rf")).expect("remove");
    small(mkdir(dir.join("added/here")).join("file"), "new");
    let swap = |name: &str, make: &dyn Fn(&Path)| {
        let path = dir.join(name);
        fs::remove_file(&path).expect("remove");
        make(&path);
    };
    swap("modes/file644", &|path| symlink("file600", path).expect("symlink"));
    swap("links/0", &|path| fs::write(path, "no link any more").expect("write"));
    swap("links/1", &|path| symlink("elsewhere", path).expect("symlink"));
    fs::remove_dir(dir.join("empty")).expect("remove");
    age(dir);
    set_mode(&dir.join("modes/file666"), 0o640);
    set_mode(&dir.join("modes/dir700"), 0o750);
    chown(dir.join("owners/0"), Some(77), Some(78)).expect("chown");
    lchown(dir.join("owners/link0"), Some(77), Some(78)).expect("lchown");
    set_mtime(&dir.join("modes/file755"), 1_600_000_001, 7);
    set_mtime(&dir.join("links/2"), 1_600_000_002, 8);
    set_mtime(&dir.join("nested"), 1_600_000_003, 9);
    // What was written must not look as before by chance.
    for entry in walkdir::WalkDir::new(dir.join("images")).into_iter().flatten() {
        set_mtime(entry.path(), 1_650_000_000 + rng.below(1 << 20) as i64, rng.below(1_000_000_000) as i64);
    }
}
