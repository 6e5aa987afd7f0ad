//! Ways in which a kept map could be wrong that take more than a change of the file: what is put back
//! from somewhere, clocks that were set, lost power, and file systems that nobody can vouch for.
//!
//! Nothing else gives the change away: times, inode and device are what they were wherever the trap can
//! have them so, and the tests look at that.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::{BLOCK, Pair, SIZE, assert_equal, overwrite, set_time, tool};
use crate::common::lab::{self, Fs, Loop};
use crate::common::process::{PROGRAM, run, run_on, wait_until};
use crate::common::tree::{Way, mkdir};

/// What a map is kept under, but for boot and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    birth: SystemTime,
    mtime: [i64; 2],
    ctime: [i64; 2],
}

#[track_caller]
fn stamp(path: &Path) -> Stamp {
    let found = fs::metadata(path).expect("look");
    Stamp {
        device: found.dev(),
        inode: found.ino(),
        birth: found.created().expect("a time of birth"),
        mtime: [found.mtime(), found.mtime_nsec()],
        ctime: [found.ctime(), found.ctime_nsec()],
    }
}

/// In processes of its own: see [`overwrite`].
fn sh(script: &str, paths: &[&Path]) {
    run(Command::new("sh").args(["-ec", script, "sh"]).args(paths)).ok();
}

fn is_equal(one: &Path, other: &Path) -> bool {
    run(Command::new("cmp").arg("-s").arg(one).arg(other)).code == 0
}

/// The copy has the first of two versions, of which `keep` keeps something, and then the second, in one
/// inode and with one time. Both ends are believed to have that.
#[track_caller]
fn two_versions(pair: &Pair, keep: impl FnOnce()) {
    set_time(&pair.from, SystemTime::UNIX_EPOCH);
    pair.run(&[]);
    let first = stamp(&pair.to);
    keep();
    overwrite(&pair.from, 5 * BLOCK + 7, b"second");
    set_time(&pair.from, SystemTime::UNIX_EPOCH);
    pair.run(&["--inplace"]);
    pair.run(&[]);
    assert_eq!(pair.believed(&[]), 2 * SIZE);
    let second = stamp(&pair.to);
    assert_eq!((first.inode, first.mtime), (second.inode, second.mtime));
}

/// One end is the first version again, with the time of the second: the other one alone is believed.
#[track_caller]
fn assert_is_read(pair: &Pair, name: &str) {
    assert!(!is_equal(&pair.from, &pair.to), "{name}: nothing was put back");
    assert_eq!(stamp(&pair.from).mtime, stamp(&pair.to).mtime, "{name}");
    assert_eq!(pair.believed(&[]), SIZE, "{name}");
    assert_eq!(pair.believed(&[]), 2 * SIZE, "{name}, afterwards");
}

#[test]
fn what_is_put_back_from_a_copy_is_read() {
    let clone = ("a clone over it", r#"cp -a --reflink=always "$1" "$2""#);
    let all = [
        ("cp over it", r#"cp -a "$1" "$2""#),
        ("cp", r#"cp -a --remove-destination "$1" "$2""#),
        ("rsync over it", r#"rsync -aI --inplace "$1" "$2""#),
        ("rsync", r#"rsync -aI "$1" "$2""#),
        ("tar", r#"tar -C "${1%/*}" -c kept | tar -C "${2%/*}" --transform s/kept/to/ -xp"#),
        ("mv", r#"cp -a "$1" "$2.new"; mv "$2.new" "$2""#),
    ];
    for (fs, tricks) in [(Fs::Ext4, &all[..]), (Fs::Xfs, &[clone, all[0]]), (Fs::Btrfs, &[clone, all[0]])] {
        let Some(pair) = Pair::on(fs, Way::Push) else { return };
        let kept = pair.dir.path().join("kept");
        two_versions(&pair, || sh(r#"cp -a "$1" "$2""#, &[&pair.to, &kept]));
        for (name, script) in tricks {
            sh(script, &[&kept, &pair.to]);
            assert_is_read(&pair, &format!("{fs:?}: {name}"));
        }
        // The source likewise.
        sh(tricks[0].1, &[&kept, &pair.from]);
        assert_is_read(&pair, &format!("{fs:?}: the source"));
    }
}

/// A snapshot has files with the inodes and times of those that it is of, and may take their names.
#[test]
fn what_is_put_back_from_a_snapshot_of_btrfs_is_read() {
    if !lab::is_root() {
        return;
    }
    for (name, script) in [
        ("the snapshot", r#"mv "$2" "$2.old"; mv "$1" "$2""#),
        ("a snapshot of it", r#"btrfs subvolume delete "$2"; btrfs subvolume snapshot "$1" "$2""#),
        ("its file", r#"cp -a --reflink=always "$1/to" "$2/to""#),
        ("its file, under a new name", r#"cp -a --reflink=always "$1/to" "$2/new"; mv "$2/new" "$2/to""#),
    ] {
        let Some(mut pair) = Pair::on(Fs::Btrfs, Way::Push) else { return };
        let (kept, volume) = (pair.dir.path().join("kept"), pair.dir.path().join("volume"));
        sh(r#"btrfs subvolume create "$1""#, &[&volume]);
        pair.to = volume.join("to");
        let mut first = None;
        two_versions(&pair, || {
            first = Some(stamp(&pair.to));
            sh(r#"btrfs subvolume snapshot "$1" "$2""#, &[&volume, &kept]);
        });
        sh(script, &[&kept, &volume]);
        if name.contains("snapshot") {
            let first = first.expect("looked at");
            assert_eq!(Stamp { device: first.device, ..stamp(&pair.to) }, first, "{name}");
        }
        assert_is_read(&pair, name);
    }
}

/// A file system on a device of its own, where nothing is written that nobody waits for.
struct Disk {
    at: PathBuf,
    file: PathBuf,
    options: &'static str,
    device: Loop,
    dir: TempDir,
}

impl Disk {
    fn new(fs: Fs) -> Option<Disk> {
        if !lab::is_root() {
            return None;
        }
        // In memory, where flushes cost nothing.
        let dir = lab::dir(Fs::Tmpfs)?;
        let file = dir.path().join("disk");
        let (make, options) = match fs {
            Fs::Xfs => (r#"truncate -s 300M "$1"; mkfs.xfs -q "$1""#, "defaults"),
            _ => (r#"truncate -s 96M "$1"; mkfs.ext4 -q "$1""#, "commit=600,noauto_da_alloc"),
        };
        sh(make, &[&file]);
        let device = Loop::over(&file);
        let disk = Disk { at: mkdir(dir.path().join("mount")), file, options, device, dir };
        disk.mount();
        Some(disk)
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-o", self.options]).arg(&self.device.0).arg(&self.at)).ok();
    }

    fn unmount(&self) {
        assert!(unmounted(&self.at), "{} stays mounted", self.at.display());
    }

    /// What has been written to the disk until now, and nothing that still waits for that.
    fn snapshot(&self) -> PathBuf {
        let path = self.dir.path().join("snapshot");
        sh(r#"cp --sparse=always "$1" "$2""#, &[&self.file, &path]);
        path
    }

    /// Has it hold that again.
    fn put_back(&self, snapshot: &Path) {
        self.unmount();
        sh(r#"dd if="$1" of="$2" bs=1M conv=fsync status=none"#, &[snapshot, &self.device.0]);
        self.mount();
    }

    /// Gives a file times that no system call gives it: those of a clock that was set.
    fn set_times(&self, path: &Path, mtime: [i64; 2], ctime: [i64; 2]) {
        let inode = fs::metadata(path).expect("look").ino();
        self.unmount();
        let set = |field: &str, [seconds, nanoseconds]: [i64; 2]| {
            let extra = nanoseconds << 2;
            format!("sif <{inode}> {field} @{seconds}\nsif <{inode}> {field}_extra {extra}\n")
        };
        let commands = set("mtime", mtime) + &set("ctime", ctime);
        let mut debugfs = Command::new("debugfs");
        run_on(debugfs.args(["-w", "-f", "-"]).arg(&self.device.0), commands.as_bytes()).ok();
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Nothing better than trying can be done while a test fails.
        unmounted(&self.at);
    }
}

/// A process that another test has just forked may hold it for a moment longer.
fn unmounted(at: &Path) -> bool {
    wait_until(Duration::from_secs(10), || {
        Command::new("umount").arg("-q").arg(at).status().is_ok_and(|status| status.success())
    })
}

/// The copy is on a disk.
fn on_disk(fs: Fs) -> Option<(Disk, Pair)> {
    let (disk, mut pair) = (Disk::new(fs)?, Pair::on(fs, Way::Push)?);
    pair.to = disk.at.join("to");
    Some((disk, pair))
}

#[test]
fn what_is_on_a_disk_that_was_put_back_is_read() {
    for fs in [Fs::Ext4, Fs::Xfs] {
        let Some((disk, pair)) = on_disk(fs) else { return };
        let mut first = None;
        two_versions(&pair, || {
            disk.unmount();
            first = Some(disk.snapshot());
            disk.mount();
        });
        disk.unmount();
        disk.mount();
        assert_eq!(pair.believed(&[]), 2 * SIZE, "{fs:?}: it was only mounted again");
        let second = stamp(&pair.to);
        disk.put_back(&first.expect("a snapshot"));
        assert_eq!(Stamp { ctime: second.ctime, ..stamp(&pair.to) }, second, "{fs:?}");
        assert_is_read(&pair, &format!("{fs:?}"));
    }
}

#[test]
fn a_file_that_has_the_inode_of_another_is_read() {
    let Some((_disk, pair)) = on_disk(Fs::Ext4) else { return };
    let kept = pair.dir.path().join("kept");
    two_versions(&pair, || sh(r#"cp -a "$1" "$2""#, &[&pair.to, &kept]));
    let before = stamp(&pair.to);
    sh(r#"rm "$2"; cp -a "$1" "$2""#, &[&kept, &pair.to]);
    assert_eq!(stamp(&pair.to).inode, before.inode);
    assert_is_read(&pair, "it");
}

/// The clock is everybody's, so it stays. Instead the file gets the ctime, while nobody has its disk
/// mounted, that a change would have given it with the clock set to just then.
#[test]
fn what_changes_while_the_clock_is_set_back_is_read_but_for_the_very_nanosecond() {
    let Some((disk, pair)) = on_disk(Fs::Ext4) else { return };
    pair.run(&[]);
    let hour = 3600;
    for (name, by) in [("back", -hour), ("forward", 24 * hour), ("back from there", -hour)] {
        assert_eq!(pair.believed(&[]), 2 * SIZE, "before it is set {name}");
        let before = stamp(&pair.to);
        overwrite(&pair.to, 7 * BLOCK, name.as_bytes());
        let ctime = [before.ctime[0] + by, before.ctime[1]];
        disk.set_times(&pair.to, before.mtime, ctime);
        assert_eq!(stamp(&pair.to), Stamp { ctime, ..before });
        assert_eq!(pair.believed(&[]), SIZE, "{name}");
    }
    // The file has a time that is to come, and then one that is not.
    let before = stamp(&pair.to);
    disk.set_times(&pair.to, before.mtime, [before.ctime[0] + 48 * hour, 1]);
    assert_eq!((pair.believed(&[]), pair.believed(&[])), (SIZE, 2 * SIZE));
    overwrite(&pair.to, 7 * BLOCK, b"now");
    assert!(stamp(&pair.to).ctime < [before.ctime[0] + 24 * hour, 0]);
    assert_eq!(pair.believed(&[]), SIZE);
}

/// What `docs/cache.md` says is not noticed, but by those blocks that are read all the same: 64 of them.
#[test]
fn a_change_that_leaves_the_ctime_is_found_among_the_blocks_that_are_looked_at() {
    let Some((disk, pair)) = on_disk(Fs::Ext4) else { return };
    let change = |at: usize, bytes: &[u8]| {
        let before = stamp(&pair.to);
        overwrite(&pair.to, at, bytes);
        disk.set_times(&pair.to, before.mtime, before.ctime);
        assert_eq!(stamp(&pair.to), before);
        assert!(!is_equal(&pair.from, &pair.to));
    };
    let is_told = |stdout: &str| stdout.contains("to has changed since its map was kept");
    pair.run(&[]);
    // All of its blocks, or five of six.
    for share in [SIZE, SIZE / 6 * 5] {
        assert_eq!(pair.believed(&[]), 2 * SIZE);
        change(0, &vec![7; share]);
        let outcome = pair.run(&[]);
        assert!(is_told(&outcome.stdout), "{outcome}");
        assert_eq!(outcome.count("believed_bytes") as usize, SIZE);
    }
    // One, of 96 of which 64 are looked at, until it was among these and until it was not.
    let (mut found, mut unnoticed) = (0, 0);
    while found == 0 || unnoticed == 0 {
        let large = ["-B", "256K"];
        pair.run(&large);
        assert_eq!(pair.believed(&large), 2 * SIZE);
        change(9 * BLOCK, &[found, unnoticed, 9]);
        let outcome = run(&mut pair.command(&large)).ok();
        let told = is_told(&outcome.stdout);
        assert_eq!(outcome.count("believed_bytes") as usize, if told { SIZE } else { 2 * SIZE }, "{outcome}");
        assert_eq!(is_equal(&pair.from, &pair.to), told, "{outcome}");
        if told {
            found += 1
        } else {
            unnoticed += 1
        }
        // Who wants all of it looked at gets that.
        pair.run(&["-c"]);
    }
    lab::count(&format!(
        "kept: a block of 96 that changed and left the ctime: found {found}, not noticed {unnoticed}"
    ));
}

/// This machine after its next boot: the program finds another id of that there.
struct NextBoot {
    /// What is mounted below the root, which goes last.
    mounted: Vec<PathBuf>,
    root: TempDir,
}

impl NextBoot {
    /// With these directories, which it has under their names. No namespace of mounts, which would keep
    /// what the other tests have mounted.
    fn with(dirs: &[&Path]) -> NextBoot {
        let mut boot = NextBoot { mounted: Vec::new(), root: lab::scratch() };
        let root = boot.root.path().to_owned();
        let copy = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/copy-alone");
        sh(
            r#""$3" "$(command -v busybox)" "$1" bin/sh
            install -D "$2" "$1/$2"
            mkdir "$1/dev" "$1/proc"
            mknod "$1/dev/null" c 1 3
            echo 0123abcd-0123-4567-89ab-0123456789ab >"$1/id""#,
            &[&root, Path::new(PROGRAM), Path::new(copy)],
        );
        boot.mount(&["-t", "proc"], Path::new("proc"), &root.join("proc"));
        boot.mount(&["--bind"], &root.join("id"), &root.join("proc/sys/kernel/random/boot_id"));
        for dir in dirs {
            let at = root.join(dir.strip_prefix("/").expect("an absolute path"));
            fs::create_dir_all(&at).expect("mkdir");
            boot.mount(&["--bind"], dir, &at);
        }
        boot
    }

    fn mount(&mut self, options: &[&str], what: &Path, at: &Path) {
        run(Command::new("mount").args(options).arg(what).arg(at)).ok();
        self.mounted.push(at.to_owned());
    }

    /// What is believed there.
    #[track_caller]
    fn believed(&self, pair: &Pair) -> usize {
        let command = pair.command(&[]);
        let mut there = Command::new("chroot");
        there.arg(self.root.path()).arg(command.get_program()).args(command.get_args());
        there.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let believed = run(&mut there).ok().count("believed_bytes") as usize;
        assert_equal(&pair.from, &pair.to);
        believed
    }
}

impl Drop for NextBoot {
    fn drop(&mut self) {
        for at in self.mounted.iter().rev() {
            // Nothing better than trying can be done while a test fails.
            unmounted(at);
        }
    }
}

#[test]
fn the_maps_of_another_boot_or_machine_are_of_no_use() {
    let Some(pair) = Pair::on(Fs::Ext4, Way::Push).filter(|_| lab::is_root()) else { return };
    pair.run(&[]);
    assert_eq!(pair.believed(&[]), 2 * SIZE);
    let boot = NextBoot::with(&[pair.dir.path()]);
    assert_eq!((boot.believed(&pair), boot.believed(&pair)), (0, 2 * SIZE));
    // Each has its own.
    assert_eq!(pair.believed(&[]), 2 * SIZE);
}

/// Content that fdatasync(2) waited for is there after the power went, its time is not.
#[test]
fn what_a_power_cut_left_is_read_after_the_next_boot() {
    for fs in [Fs::Ext4, Fs::Xfs] {
        let Some((disk, pair)) = on_disk(fs) else { return };
        pair.run(&[]);
        assert_eq!(pair.believed(&[]), 2 * SIZE);
        // The times of the copy are on storage.
        disk.unmount();
        disk.mount();
        let before = stamp(&pair.to);
        sh(r#"dd if=/dev/zero of="$1" bs=64K count=1 conv=notrunc,fdatasync status=none"#, &[&pair.to]);
        assert_ne!(stamp(&pair.to), before);
        let lost = disk.snapshot();
        disk.put_back(&lost);
        assert_eq!(stamp(&pair.to), before, "{fs:?}");
        assert!(!is_equal(&pair.from, &pair.to), "{fs:?}");
        let boot = NextBoot::with(&[pair.dir.path(), &disk.at]);
        assert_eq!(boot.believed(&pair), 0, "{fs:?}");
    }
}

/// Both files are below an overlay, the source in its lower layer, the copy in its upper one.
#[test]
fn of_files_below_an_overlay_no_maps_are_kept() {
    if !lab::is_root() {
        return;
    }
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
        let Some(mut pair) = Pair::on(fs, Way::Push) else { return };
        let [lower, upper, work, at] =
            ["lower", "upper", "work", "merged"].map(|name| mkdir(pair.dir.path().join(name)));
        let below = lower.join("from");
        sh(r#"mv "$1" "$2""#, &[&pair.from, &below]);
        let layers =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &layers]).arg(&at)).ok();
        (pair.from, pair.to) = (at.join("from"), at.join("to"));
        let mounted = Overlay(at);
        for (seen, new) in [(&below, "lower"), (&upper.join("to"), "upper")] {
            pair.run(&[]);
            assert_eq!(pair.entries().len(), 0, "{fs:?}");
            let time = fs::metadata(seen).expect("look").modified().expect("a time");
            overwrite(seen, 6 * BLOCK, new.as_bytes());
            set_time(seen, time);
            assert!(!is_equal(&pair.from, &pair.to), "{fs:?}");
            assert_eq!(pair.believed(&[]), 0, "{fs:?}");
        }
        drop(mounted);
    }
}

/// An overlay that is mounted.
struct Overlay(PathBuf);

impl Drop for Overlay {
    fn drop(&mut self) {
        // Nothing better than trying can be done while a test fails.
        unmounted(&self.0);
    }
}

/// Stores through a mapping, within the second of the last change.
#[test]
fn changes_that_leave_no_time_are_read() {
    let coarse = lab::Mounted::new(96, &["mkfs.ext4", "-q", "-I", "128"], &[]);
    let Some(memory) = lab::dir(Fs::Tmpfs) else { return };
    for at in [coarse.path(), memory.path()] {
        let Some(mut pair) = Pair::on(Fs::Ext4, Way::Push) else { return };
        pair.to = at.join("to");
        pair.run(&[]);
        for _ in 0..2 {
            assert_eq!(pair.believed(&[]), SIZE, "{}", at.display());
            let time = fs::metadata(&pair.to).expect("look").modified().expect("a time");
            tool("xfs_io", &["-c", "mmap -rw 0 65536", "-c", "mwrite -S 0x5a 4096 1"], &pair.to);
            set_time(&pair.to, time);
        }
        assert_eq!(pair.believed(&[]), SIZE, "{}", at.display());
        assert_eq!(pair.entries().len(), 1, "{}", at.display());
    }
}
