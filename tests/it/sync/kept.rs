//! Maps that are kept: what did not change is not read, and whatever did shows.

mod traps;

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use tempfile::TempDir;

use crate::common::check::assert_no_leftovers;
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::Peer;
use crate::common::process::{Outcome, holesync, run, run_on};
use crate::common::tree::{Way, mkdir};

const SIZE: usize = 24 << 20;
const BLOCK: usize = 64 << 10;
/// Bytes in an entry before its map.
const HEAD: usize = 120;

/// An image and its copy, and a cache that both ends share: each file has its own maps in it.
struct Pair {
    dir: TempDir,
    way: Way,
    from: PathBuf,
    to: PathBuf,
}

impl Pair {
    fn on(fs: Fs, way: Way) -> Option<Pair> {
        let dir = lab::dir(fs)?;
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let image = dir.path().join("image");
        Layout::dense("image", SIZE, &mut Rng(1)).write(&image);
        run(Command::new("cp").arg(&image).arg(&from)).ok();
        fs::remove_file(image).expect("remove");
        Some(Pair { dir, way, from, to })
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache/holesync/maps")
    }

    fn entries(&self) -> Vec<PathBuf> {
        let listed = fs::read_dir(self.cache()).map_or_else(|_| Vec::new(), |entries| entries.collect());
        listed.into_iter().map(|entry| entry.expect("list").path()).collect()
    }

    /// What runs it, whatever size and time say.
    fn command(&self, flags: &[&str]) -> Command {
        let peer = Peer::pipe(self.dir.path());
        let all = [&["--json", "-I"], flags].concat();
        let mut command = self.way.command(Some(&peer), &all, &[self.from.as_os_str()], self.to.as_os_str());
        command.env("XDG_CACHE_HOME", self.dir.path().join("cache"));
        command
    }

    /// Runs it. The copy is equal then.
    #[track_caller]
    fn run(&self, flags: &[&str]) -> Outcome {
        let outcome = run(&mut self.command(flags)).ok();
        if !flags.contains(&"-n") {
            assert_equal(&self.to, &self.from);
        }
        outcome
    }

    /// How much was believed.
    #[track_caller]
    fn believed(&self, flags: &[&str]) -> usize {
        self.run(flags).count("believed_bytes") as usize
    }
}

/// In a process of its own, as all that opens the files here: what another test forks meanwhile
/// would have them open, too, for a moment.
fn overwrite(path: &Path, at: usize, bytes: &[u8]) {
    let mut dd = Command::new("dd");
    dd.args(["conv=notrunc", "status=none", "iflag=fullblock", "oflag=seek_bytes"]);
    dd.arg(format!("seek={at}")).arg(format!("of={}", path.display()));
    run_on(&mut dd, bytes).ok();
}

fn assert_equal(one: &Path, other: &Path) {
    run(Command::new("cmp").arg(one).arg(other)).ok();
}

#[test]
fn what_is_as_it_was_is_not_read() {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
        for way in [Way::Push, Way::Pull] {
            let Some(pair) = Pair::on(fs, way) else { return };
            assert_eq!(pair.believed(&[]), 0, "{fs:?} {way:?}");
            assert_eq!(pair.entries().len(), 2, "{fs:?} {way:?}");
            let again = pair.run(&[]);
            assert_eq!(again.count("believed_bytes") as usize, 2 * SIZE, "{fs:?} {way:?}");
            assert_eq!(again.count("hashed_bytes"), 0, "{fs:?} {way:?}");
            // The next version is read, and its copy need not be.
            overwrite(&pair.from, 5 * BLOCK + 7, &[7; 3 * BLOCK]);
            let changed = pair.run(&[]);
            assert_eq!(changed.count("believed_bytes") as usize, SIZE, "{fs:?} {way:?}");
            assert_eq!(changed.count("hashed_bytes") as usize, SIZE, "{fs:?} {way:?}");
            assert_eq!(pair.believed(&[]), 2 * SIZE, "{fs:?} {way:?}");
            assert_no_leftovers(pair.dir.path());
        }
    }
}

/// Also where lengths differ: then the last block of one of them is another in the other.
#[test]
fn images_that_grow_and_shrink_are_held_against_maps_of_other_lengths() {
    for length in [SIZE - 5000, SIZE + 5000, SIZE - BLOCK, 3 * SIZE / 4 + 1, SIZE + 3 * BLOCK] {
        let Some(pair) = Pair::on(Fs::Ext4, Way::Push) else { return };
        pair.run(&[]);
        tool("truncate", &["-s", &length.to_string()], &pair.from);
        overwrite(&pair.from, length - 1, &[1]);
        let believed = pair.believed(&[]);
        assert!(believed >= length.min(SIZE) - BLOCK, "{length}: {believed}");
        assert_eq!(pair.believed(&[]), fs_data(&pair.from) * 2, "{length}");
    }
}

/// Bytes of data in pages that are not zero.
fn fs_data(path: &Path) -> usize {
    let bytes = fs::read(path).expect("read");
    bytes.chunks(4096).filter(|page| page.iter().any(|&byte| byte != 0)).map(<[u8]>::len).sum()
}

fn tool(program: &str, args: &[&str], path: &Path) {
    run(Command::new(program).args(args).arg(path)).ok();
}

fn set_time(path: &Path, time: SystemTime) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).expect("a time");
    let time = format!("@{}.{:09}", since.as_secs(), since.subsec_nanos());
    tool("touch", &["-m", "-d", &time], path);
}

/// What somebody else does to a file, and its name.
type Trick = (&'static str, fn(&Path));

#[test]
fn every_change_of_the_copy_shows() {
    let tricks: [Trick; 5] = [
        ("written, its time put back", |path| {
            let time = fs::metadata(path).expect("look").modified().expect("a time");
            overwrite(path, 77, b"x");
            set_time(path, time);
        }),
        ("stored into through a mapping, its time put back", |path| {
            let time = fs::metadata(path).expect("look").modified().expect("a time");
            tool("xfs_io", &["-c", "mmap -rw 0 65536", "-c", "mwrite -S 0x5a 4096 1"], path);
            set_time(path, time);
        }),
        ("replaced by another of its size and time", |path| {
            let other = path.with_file_name("other");
            run(Command::new("cp").arg("-p").arg(path).arg(&other)).ok();
            overwrite(&other, 5 << 20, b"other");
            run(Command::new("touch").arg("-r").arg(path).arg(&other)).ok();
            fs::rename(&other, path).expect("rename");
        }),
        ("cut and made longer", |path| {
            tool("truncate", &["-s", "1M"], path);
            tool("truncate", &["-s", "24M"], path);
        }),
        ("punched", |path| tool("fallocate", &["-p", "-o", "1M", "-l", "64K"], path)),
    ];
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
        let Some(pair) = Pair::on(fs, Way::Push) else { return };
        pair.run(&[]);
        for (name, trick) in tricks {
            assert_eq!(pair.believed(&[]), 2 * SIZE, "{fs:?} before it is {name}");
            trick(&pair.to);
            assert_eq!(pair.believed(&[]), SIZE, "{fs:?}: {name}");
        }
        // The source likewise.
        assert_eq!(pair.believed(&[]), 2 * SIZE, "{fs:?}");
        tricks[1].1(&pair.from);
        assert_eq!(pair.believed(&[]), SIZE, "{fs:?}");
    }
}

#[test]
fn a_map_of_other_content_is_found_out_and_told_of() {
    let Some(pair) = Pair::on(Fs::Ext4, Way::Push) else { return };
    pair.run(&[]);
    let (other, map) = (pair.dir.path().join("other"), pair.dir.path().join("other.map"));
    Layout::dense("image", SIZE, &mut Rng(2)).write(&other);
    run(holesync().arg("map").arg(&other).arg("-o").arg(&map)).ok();
    for entry in pair.entries() {
        let head = fs::read(&entry).expect("read")[..HEAD].to_vec();
        fs::write(&entry, [head, fs::read(&map).expect("read")].concat()).expect("write");
    }
    let outcome = pair.run(&[]);
    let warnings = outcome.stdout.lines().filter(|line| line.contains("\"warning\""));
    let told = warnings.filter(|line| line.contains("has changed since its map was kept")).count();
    assert_eq!(told, 2, "{outcome}");
    assert_eq!(outcome.count("believed_bytes"), 0);
    assert_eq!(pair.believed(&[]), 2 * SIZE);
}

#[test]
fn a_damaged_map_is_as_none() {
    let Some(pair) = Pair::on(Fs::Ext4, Way::Push) else { return };
    for (name, damage) in [
        ("a byte of the map", (|bytes| bytes[HEAD + 5000] ^= 1) as fn(&mut Vec<u8>)),
        ("the boot", |bytes| bytes[20] ^= 1),
        ("the ctime", |bytes| bytes[HEAD - 1] ^= 1),
        ("cut", |bytes| bytes.truncate(HEAD + 6000)),
        ("cut within its head", |bytes| bytes.truncate(30)),
        ("longer", |bytes| bytes.push(0)),
        ("empty", Vec::clear),
    ] {
        pair.run(&[]);
        assert_eq!(pair.believed(&[]), 2 * SIZE, "before {name}");
        for entry in pair.entries() {
            let mut bytes = fs::read(&entry).expect("read");
            damage(&mut bytes);
            fs::write(&entry, bytes).expect("write");
        }
        let outcome = pair.run(&[]);
        assert_eq!(outcome.count("believed_bytes"), 0, "{name}");
        assert!(!outcome.stdout.contains("kept"), "{name}: {outcome}");
    }
}

#[test]
fn who_wants_content_looked_at_gets_that() {
    let Some(pair) = Pair::on(Fs::Ext4, Way::Push) else { return };
    pair.run(&["--no-map-cache"]);
    assert_eq!(pair.entries().len(), 0);
    pair.run(&["-n"]);
    assert_eq!(pair.entries().len(), 0, "a dry run");
    pair.run(&[]);
    for flags in [&["-c"][..], &["--verify"], &["--no-map-cache"], &["-B", "16K"]] {
        assert_eq!(pair.believed(flags), 0, "{flags:?}");
    }
    assert_eq!(pair.believed(&[]), 2 * SIZE);
    assert_eq!(pair.believed(&["-n"]), 2 * SIZE);
}

#[test]
fn what_nobody_can_vouch_for_is_not_kept() {
    // Of a file on tmpfs a store through a mapping leaves no time.
    let Some(pair) = Pair::on(Fs::Tmpfs, Way::Push) else { return };
    pair.run(&[]);
    assert_eq!(pair.entries().len(), 0, "tmpfs");
    // Times of whole seconds, as of the smallest inodes.
    let coarse = lab::Mounted::new(96, &["mkfs.ext4", "-q", "-I", "128"], &[]);
    let Some(mut pair) = Pair::on(Fs::Ext4, Way::Push) else { return };
    pair.to = coarse.path().join("to");
    pair.run(&[]);
    assert_eq!(pair.entries().len(), 1, "whole seconds");
    let Some(pair) = Pair::on(Fs::Ext4, Way::Push) else { return };
    // A new file nobody else can have open.
    pair.run(&[]);
    let held = File::open(&pair.to).expect("open");
    overwrite(&pair.from, 5 << 20, &[7; 100]);
    pair.run(&[]);
    drop(held);
    assert_eq!(pair.believed(&[]), SIZE, "it was open while it was written");
    overwrite(&pair.from, 5 << 20, &[8; 100]);
    pair.run(&["--inplace"]);
    assert_eq!(pair.believed(&[]), SIZE, "it was written in place");
    assert_eq!(pair.believed(&[]), 2 * SIZE);
    // A source that somebody may be writing.
    let writer = OpenOptions::new().write(true).open(&pair.from).expect("open");
    writer.write_all_at(&[9; 100], 5 << 20).expect("write");
    pair.run(&[]);
    drop(writer);
    assert_eq!(pair.believed(&[]), SIZE, "it was open for writing");
    // A directory that others may write to, or read.
    fs::set_permissions(pair.cache(), Permissions::from_mode(0o770)).expect("chmod");
    assert_eq!(pair.believed(&[]), 0);
}

#[test]
fn small_files_are_hashed_sooner_than_looked_up() {
    let Some(pair) = Pair::on(Fs::Ext4, Way::Push) else { return };
    Layout::dense("image", 1 << 20, &mut Rng(1)).write(&pair.from);
    pair.run(&[]);
    assert_eq!(pair.entries().len(), 0);
}

#[test]
fn the_cache_is_shown_and_cleared() {
    let Some(pair) = Pair::on(Fs::Ext4, Way::Push) else { return };
    let cache = |verb: &str| {
        run(holesync().args(["cache", verb]).env("XDG_CACHE_HOME", pair.dir.path().join("cache"))).ok().stdout
    };
    assert!(cache("show").contains(": 0 maps"), "{}", cache("show"));
    pair.run(&[]);
    let shown = cache("show");
    assert!(shown.contains(": 2 maps") && shown.contains("of at most 1.00 GiB"), "{shown}");
    assert_eq!(cache("clear"), "2 maps removed\n");
    assert_eq!(pair.entries().len(), 0);
    assert_eq!(pair.believed(&[]), 0);
    // One that was left in the making goes, too, and is none.
    fs::write(pair.cache().join("new-0123"), "x").expect("write");
    assert!(cache("show").contains(": 2 maps"));
    assert_eq!(cache("clear"), "2 maps removed\n");
    assert_eq!(pair.entries().len(), 0);
}

/// Over a real connection, each end with the cache of its user.
#[test]
fn both_ends_of_a_connection_keep_what_they_learn() {
    let (Some(pair), Some(peer)) = (Pair::on(Fs::Ext4, Way::Push), Peer::sshd()) else { return };
    let (here, there) = (mkdir(pair.dir.path().join("here")), mkdir(pair.dir.path().join("there")));
    let program = format!("env XDG_CACHE_HOME={} {}", there.display(), crate::common::process::PROGRAM);
    let push = || {
        let flags = ["--json", "-I", "--agent=require", "--remote-path", &program];
        let sources = [pair.from.as_os_str()];
        let mut command = holesync();
        command.args(["-e", peer.rsh()]).args(flags).args(sources);
        command.arg(crate::common::peer::at(pair.to.as_os_str())).env("XDG_CACHE_HOME", &here);
        run(&mut command).ok()
    };
    push();
    for end in [&here, &there] {
        assert_eq!(fs::read_dir(end.join("holesync/maps")).expect("list").count(), 1);
    }
    assert_eq!(push().count("believed_bytes") as usize, 2 * SIZE);
    assert_equal(&pair.to, &pair.from);
}
