//! `--since`: what an image shares with the one that it was made from is not read, and whatever it
//! does not share is. `--changed`: what a list names is read, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::common::check::{assert_no_leftovers, assert_same};
use crate::common::lab::{self, Fs, Mounted};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::Peer;
use crate::common::process::{Outcome, holesync, run, run_on, start};
use crate::common::tree::Way;

mod as_known;

const MIB: usize = 1 << 20;
const SIZE: usize = 24 * MIB;
const BLOCK: usize = 64 << 10;

/// An image, what is made from it, and a copy at the other end; a cache of maps that both ends share.
struct Rig {
    dir: TempDir,
    old: PathBuf,
    image: PathBuf,
    to: PathBuf,
}

impl Rig {
    fn on(fs: Fs) -> Option<Rig> {
        Some(Rig::in_dir(lab::dir(fs)?))
    }

    fn in_dir(dir: TempDir) -> Rig {
        let [old, image, to] = ["old", "image", "to"].map(|name| dir.path().join(name));
        let rig = Rig { dir, old, image, to };
        rig.write(&Layout::dense("old", SIZE, &mut Rng(1)));
        rig
    }

    fn write(&self, layout: &Layout) {
        let made = self.dir.path().join("made");
        layout.write(&made);
        tool("cp", &["--reflink=never"], &[&made, &self.old]);
        fs::remove_file(made).expect("remove");
    }

    /// Makes the image from the old one.
    fn clone_old(&self) {
        tool("cp", &["--reflink=auto"], &[&self.old, &self.image]);
    }

    fn push(&self, flags: &[&str], source: &Path) -> Outcome {
        let peer = Peer::pipe(self.dir.path());
        let all = [&["--json", "-I"], flags].concat();
        let mut command = Way::Push.command(Some(&peer), &all, &[source.as_os_str()], self.to.as_os_str());
        run(command.env("XDG_CACHE_HOME", self.dir.path().join("cache")))
    }

    /// Has the old one at the other end, known at both.
    fn send_old(&self) {
        self.push(&[], &self.old).ok();
    }

    /// Sends the image, made from the old one. It is equal then.
    #[track_caller]
    fn since(&self, flags: &[&str]) -> Outcome {
        let since = format!("--since={}", self.old.display());
        let outcome = self.push(&[&[&since[..]], flags].concat(), &self.image).ok();
        if !flags.contains(&"-n") {
            tool("cmp", &[], &[&self.image, &self.to]);
        }
        outcome
    }
}

fn tool(program: &str, args: &[&str], paths: &[&Path]) -> Outcome {
    run(Command::new(program).args(args).args(paths)).ok()
}

/// In a process of its own, as all that opens the files here: what another test forks meanwhile
/// would have them open, too, for a moment.
fn overwrite(path: &Path, at: usize, bytes: &[u8]) {
    let mut dd = Command::new("dd");
    dd.args(["conv=notrunc", "status=none", "iflag=fullblock", "oflag=seek_bytes"]);
    dd.arg(format!("seek={at}")).arg(format!("of={}", path.display()));
    run_on(&mut dd, bytes).ok();
}

/// What was read to be hashed here, and what was believed at both ends.
fn counts(outcome: &Outcome) -> (usize, usize) {
    (outcome.count("hashed_bytes") as usize, outcome.count("believed_bytes") as usize)
}

#[test]
fn what_an_image_shares_with_a_known_one_is_not_read() {
    for fs in [Fs::Xfs, Fs::Btrfs] {
        let Some(rig) = Rig::on(fs) else { return };
        rig.send_old();
        rig.clone_old();
        overwrite(&rig.image, 5 * BLOCK, &[7; BLOCK]);
        overwrite(&rig.image, 100 * BLOCK + 5000, &[8; 9]);
        let dry = rig.since(&["-n"]);
        assert_eq!(counts(&dry), (2 * BLOCK, 2 * SIZE - 2 * BLOCK), "{fs:?}");
        let outcome = rig.since(&[]);
        assert_eq!(counts(&outcome), (2 * BLOCK, 2 * SIZE - 2 * BLOCK), "{fs:?}");
        assert!(outcome.count("sent_data_bytes") as usize <= 2 * BLOCK, "{fs:?}");
        assert!(!outcome.stdout.contains("\"warning\""), "{outcome}");
        // What was learned of it is kept as if all had been read.
        assert_eq!(counts(&rig.push(&[], &rig.image).ok()), (0, 2 * SIZE), "{fs:?}");
        // It is the old one of the next.
        let next = Rig { old: rig.image.clone(), image: rig.dir.path().join("next"), ..rig };
        next.clone_old();
        overwrite(&next.image, 7 * BLOCK, &[7; 10]);
        assert_eq!(counts(&next.since(&[])), (BLOCK, 2 * SIZE - BLOCK), "{fs:?}");
        assert_no_leftovers(next.dir.path());
    }
}

#[test]
fn an_old_one_that_nobody_knows_is_hashed_once() {
    let Some(rig) = Rig::on(Fs::Xfs) else { return };
    rig.clone_old();
    overwrite(&rig.image, 5 * BLOCK, &[7; BLOCK]);
    assert_eq!(counts(&rig.since(&[])), (SIZE + BLOCK, SIZE - BLOCK));
    fs::remove_file(&rig.to).expect("remove");
    rig.clone_old();
    overwrite(&rig.image, 6 * BLOCK, &[7; BLOCK]);
    assert_eq!(counts(&rig.since(&[])), (BLOCK, SIZE - BLOCK));
}

#[test]
fn holes_zeros_and_ends_are_as_they_were() {
    for fs in [Fs::Xfs, Fs::Btrfs] {
        for (length, cut) in [(0, 0), (5000, 0), (0, 5000), (3 * BLOCK + 1, 0), (0, 3 * BLOCK + 1)] {
            let Some(rig) = Rig::on(fs) else { return };
            let rng = &mut Rng(3);
            let layout = Layout::hole("old", SIZE + length).data(0..MIB, rng).data(2 * MIB..22 * MIB, rng);
            let layout = layout.zeros(3 * MIB..4 * MIB).punch(5 * MIB + 4096..5 * MIB + 8192);
            rig.write(&layout.data(SIZE - 7..SIZE + length, rng));
            rig.send_old();
            rig.clone_old();
            tool("truncate", &["-s", &(SIZE + length - cut).to_string()], &[&rig.image]);
            tool("truncate", &["-s", &(SIZE + 2 * length - cut).to_string()], &[&rig.image]);
            tool("fallocate", &["-p", "-o", "10M", "-l", "1M"], &[&rig.image]);
            overwrite(&rig.image, 23 * MIB, b"new");
            let (hashed, believed) = counts(&rig.since(&[]));
            assert!(hashed <= 4 * BLOCK, "{fs:?} {length} {cut}: {hashed}");
            assert!(believed >= 2 * 18 * MIB, "{fs:?} {length} {cut}: {believed}");
        }
    }
}

/// What happens between the clone and the run, its name, and whether all of the image is read then.
type Trap = (&'static str, fn(&Rig), bool);

#[test]
fn what_was_written_since_is_read_however_that_was_done() {
    let traps: [Trap; 8] = [
        ("stored into through a mapping", |rig| mmap_write(&rig.image, 4 * BLOCK), false),
        ("the old one stored into through a mapping", |rig| mmap_write(&rig.old, 4 * BLOCK), true),
        ("the old one rewritten", |rig| overwrite(&rig.old, 4 * BLOCK, &[9; 100]), true),
        (
            "the old one rewritten where the image is, too, with the same",
            |rig| [&rig.old, &rig.image].into_iter().for_each(|path| overwrite(path, 4 * BLOCK, &[9; 100])),
            true,
        ),
        (
            "written with its time put back",
            |rig| {
                overwrite(&rig.image, 4 * BLOCK, &[9; 100]);
                tool("touch", &["-r", rig.old.to_str().expect("text")], &[&rig.image]);
            },
            false,
        ),
        ("written directly", |rig| direct_write(&rig.image, 4 * BLOCK), false),
        (
            "a part of it moved within it",
            |rig| {
                let from = rig.old.to_str().expect("text");
                let reflink = format!("reflink {from} 1048576 2097152 1048576");
                tool("xfs_io", &["-c", &reflink], &[&rig.image]);
            },
            false,
        ),
        ("room set aside in a hole", |rig| drop(tool("fallocate", &["-l", "25M"], &[&rig.image])), false),
    ];
    for fs in [Fs::Xfs, Fs::Btrfs] {
        for (name, trap, reads_old) in traps {
            let Some(rig) = Rig::on(fs) else { return };
            rig.send_old();
            rig.clone_old();
            trap(&rig);
            let (hashed, believed) = counts(&rig.since(&[]));
            let old = if reads_old { SIZE } else { 0 };
            assert!((old..=old + MIB + BLOCK).contains(&hashed), "{fs:?}, {name}: {hashed}");
            assert!(believed >= 2 * SIZE - MIB - 2 * BLOCK, "{fs:?}, {name}: {believed}");
        }
    }
}

fn mmap_write(path: &Path, at: usize) {
    let (map, write) = (format!("mmap -rw {at} 65536"), format!("mwrite -S 0x5a {} 1", at + 4096));
    tool("xfs_io", &["-c", &map, "-c", &write], &[path]);
}

fn direct_write(path: &Path, at: usize) {
    tool("xfs_io", &["-d", "-c", &format!("pwrite -S 0x5a {at} 4096")], &[path]);
}

#[test]
fn where_nothing_can_be_shared_all_is_read_and_the_user_is_told() {
    for (fs, read) in [(Fs::Ext4, SIZE), (Fs::Tmpfs, 2 * SIZE)] {
        let Some(rig) = Rig::on(fs) else { return };
        rig.send_old();
        rig.clone_old();
        let outcome = rig.since(&[]);
        assert_eq!(outcome.count("hashed_bytes") as usize, read, "{fs:?}");
        assert!(outcome.stdout.contains("all is read, whatever --since"), "{fs:?}: {outcome}");
    }
    // On another file system, and a copy that shares nothing.
    let (Some(rig), Some(elsewhere)) = (Rig::on(Fs::Xfs), lab::dir(Fs::Btrfs)) else { return };
    rig.send_old();
    tool("cp", &["--reflink=never"], &[&rig.old, &rig.image]);
    assert_eq!(counts(&rig.since(&[])).0, SIZE);
    let there = Rig { image: elsewhere.path().join("image"), ..rig };
    there.clone_old();
    assert_eq!(counts(&there.since(&[])).0, SIZE);
    // The old one is the image: its map tells.
    let same = Rig { image: there.old.clone(), ..there };
    assert_eq!(counts(&same.since(&[])).0, 0);
    // Who wants content read gets that, and no warning.
    for flags in [&["-c"][..], &["--verify"]] {
        let outcome = same.since(flags);
        assert_eq!(counts(&outcome), (2 * SIZE, 0), "{flags:?}");
        assert!(!outcome.stdout.contains("\"warning\""), "{outcome}");
    }
    let outcome = same.since(&["--no-map-cache"]);
    assert_eq!(counts(&outcome), (2 * SIZE, 0));
    assert!(outcome.stdout.contains("--no-map-cache"), "{outcome}");
}

#[test]
fn subvolumes_of_one_btrfs_share_and_compressed_extents_are_read() {
    if !lab::is_root() {
        return;
    }
    let btrfs = Mounted::new(300, &["mkfs.btrfs", "-q"], &[]);
    let rig = Rig::in_dir(TempDir::new_in(btrfs.path()).expect("a directory"));
    rig.send_old();
    let subvolume = rig.dir.path().join("subvolume");
    tool("btrfs", &["-q", "subvolume", "create"], &[&subvolume]);
    let rig = Rig { image: subvolume.join("image"), ..rig };
    rig.clone_old();
    overwrite(&rig.image, 5 * BLOCK, &[7; BLOCK]);
    assert_eq!(counts(&rig.since(&[])).0, BLOCK);
    drop(rig);
    drop(btrfs);
    let packed = Mounted::new(300, &["mkfs.btrfs", "-q"], &["-o", "compress-force=zstd"]);
    let rig = Rig::in_dir(TempDir::new_in(packed.path()).expect("a directory"));
    let letters: Vec<u8> = (0..SIZE).map(|at| b'a' + (at / 4096 % 23) as u8).collect();
    overwrite(&rig.old, 0, &letters);
    tool("sync", &[], &[&rig.old]);
    rig.send_old();
    rig.clone_old();
    assert_eq!(counts(&rig.since(&[])).0, SIZE);
}

#[test]
fn a_map_that_is_wrong_or_damaged_is_found_out() {
    let Some(rig) = Rig::on(Fs::Xfs) else { return };
    let maps = || {
        let listed = fs::read_dir(rig.dir.path().join("cache/holesync/maps")).expect("list");
        listed.map(|entry| entry.expect("list").path()).collect::<Vec<_>>()
    };
    rig.send_old();
    rig.clone_old();
    for entry in maps() {
        let mut bytes = fs::read(&entry).expect("read");
        bytes[5120] ^= 1;
        fs::write(&entry, bytes).expect("write");
    }
    let outcome = rig.since(&[]);
    assert_eq!(counts(&outcome), (2 * SIZE, 0));
    assert!(outcome.stdout.contains("its map cannot be read"), "{outcome}");
    // That of another image, under the state of this one.
    rig.send_old();
    let (other, map) = (rig.dir.path().join("other"), rig.dir.path().join("other.map"));
    Layout::dense("other", SIZE, &mut Rng(2)).write(&other);
    run(holesync().arg("map").arg(&other).arg("-o").arg(&map)).ok();
    for entry in maps() {
        let head = fs::read(&entry).expect("read")[..120].to_vec();
        fs::write(&entry, [head, fs::read(&map).expect("read")].concat()).expect("write");
    }
    fs::remove_file(&rig.image).expect("remove");
    rig.clone_old();
    let outcome = rig.since(&[]);
    assert_eq!(counts(&outcome), (2 * SIZE, 0), "{outcome}");
    assert!(outcome.stdout.contains("does not have what it shares"), "{outcome}");
}

/// Whatever happens meanwhile: a run that succeeds has made the copy equal.
#[test]
fn extents_that_move_and_files_that_are_written_during_the_run_do_no_harm() {
    if !lab::is_root() {
        return;
    }
    let btrfs = Mounted::new(600, &["mkfs.btrfs", "-q"], &[]);
    let rig = Rig::in_dir(TempDir::new_in(btrfs.path()).expect("a directory"));
    rig.send_old();
    let (at, old, image) = (btrfs.path().display(), rig.old.display(), rig.image.display());
    for (name, disturb) in [
        ("balance", format!("while :; do btrfs -q balance start -f -dusage=100 {at}; done")),
        (
            "defragmentation",
            format!("while :; do btrfs -q filesystem defragment -f -t 64K {old} {image}; done"),
        ),
        (
            "a writer of the old one",
            format!(
                "n=0; while :; do n=$((n+1)); echo $n | dd of={old} bs=64K seek=$((n%300)) conv=notrunc,fsync status=none; done"
            ),
        ),
    ] {
        rig.clone_old();
        overwrite(&rig.image, 5 * BLOCK, &[7; BLOCK]);
        let _disturbed = start(Command::new("sh").args(["-c", &disturb]));
        for round in 0..10 {
            overwrite(&rig.image, (20 + round) * BLOCK, &[round as u8 + 1; 3 * BLOCK]);
            let since = format!("--since={}", rig.old.display());
            rig.push(&[&since], &rig.image).ok();
            let equal = run(Command::new("cmp").arg(&rig.image).arg(&rig.to));
            assert_eq!(equal.code, 0, "{name}, round {round}");
        }
    }
}

#[test]
fn an_image_that_is_written_meanwhile_is_sent_as_it_is_then_or_fails() {
    let Some(rig) = Rig::on(Fs::Xfs) else { return };
    rig.send_old();
    rig.clone_old();
    let writes = format!(
        "n=0; while [ $n -lt 400 ]; do n=$((n+1)); echo $n | dd of={} bs=64K seek=$((n%300)) conv=notrunc status=none; done",
        rig.image.display()
    );
    let writer = start(Command::new("sh").args(["-c", &writes]));
    let since = format!("--since={}", rig.old.display());
    for _ in 0..5 {
        let outcome = rig.push(&[&since], &rig.image);
        assert!([0, 23].contains(&outcome.code), "{outcome}");
    }
    writer.finish().ok();
    rig.since(&[]);
}

/// On one machine the same holds between an image and its copy, without being asked for.
#[test]
fn what_an_image_shares_with_its_copy_here_is_not_read() {
    let copy = |rig: &Rig, flags: &[&str]| {
        let outcome = run(holesync().args(["--json", "-I"]).args(flags).arg(&rig.image).arg(&rig.to)).ok();
        tool("cmp", &[], &[&rig.image, &rig.to]);
        outcome.count("believed_bytes") as usize
    };
    for fs in [Fs::Xfs, Fs::Btrfs] {
        let Some(rig) = Rig::on(fs) else { return };
        let begin = || {
            rig.clone_old();
            tool("cp", &["--reflink=always"], &[&rig.old, &rig.to]);
            overwrite(&rig.image, 5 * BLOCK, &[7; BLOCK]);
            overwrite(&rig.to, 100 * BLOCK + 5000, &[8; 9]);
            tool("fallocate", &["-p", "-o", "10M", "-l", "1M"], &[&rig.image]);
        };
        for flags in [&[][..], &["--inplace"], &["--commit=atomic"]] {
            begin();
            let believed = copy(&rig, flags);
            assert!(
                (SIZE - MIB - 4 * BLOCK..=SIZE - MIB - 2 * BLOCK).contains(&believed),
                "{fs:?}: {believed}"
            );
        }
        for flags in [&["-c"][..], &["--verify"], &["--no-hole-map"]] {
            begin();
            assert_eq!(copy(&rig, flags), 0, "{fs:?} {flags:?}");
        }
        begin();
        mmap_write(&rig.to, 4 * BLOCK);
        direct_write(&rig.image, 7 * BLOCK);
        assert!(copy(&rig, &[]) >= SIZE - MIB - 8 * BLOCK, "{fs:?}");
        assert_no_leftovers(rig.dir.path());
    }
    for fs in [Fs::Ext4, Fs::Tmpfs] {
        let Some(rig) = Rig::on(fs) else { return };
        rig.clone_old();
        tool("cp", &[], &[&rig.old, &rig.to]);
        overwrite(&rig.image, 5 * BLOCK, &[7; BLOCK]);
        assert_eq!(copy(&rig, &[]), 0, "{fs:?}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_early() {
    let Some(rig) = Rig::on(Fs::Ext4) else { return };
    let (old, image, to) = (rig.old.to_str().expect("text"), "host:/image", "host:/to");
    let dir = rig.dir.path().to_str().expect("text");
    for (args, why) in [
        (&["--since", old, "-", to][..], "stdin"),
        (&["--since", old, image, dir], "another machine"),
        (&["--since", old, dir, to], "directory"),
        (&["--since", old, old, "/nowhere/to"], "not read anyway"),
        (&["--since", old, old, old, to], "one SRC"),
        (&["--since", old, "--through", "cat", old, to], "--through"),
        (&["--since", old, old], "listed"),
    ] {
        run(holesync().args(args)).code(1).says(&[why]);
    }
    run(holesync().args(["--since", "/nowhere/old", old, to])).code(23).says(&["/nowhere/old"]);
    run(holesync().args(["--since", dir, old, to])).says(&["is a directory"]);
}

/// Each host has its own comparison; the old one is hashed for the first of them.
#[test]
fn several_hosts_are_served_alike() {
    let Some(rig) = Rig::on(Fs::Xfs) else { return };
    rig.clone_old();
    overwrite(&rig.image, 5 * BLOCK, &[7; BLOCK]);
    let peer = Peer::pipe(rig.dir.path());
    let mut command = peer.holesync();
    let to = |nth: usize| rig.dir.path().join(format!("to {nth}"));
    command.arg("--json").arg("--since").arg(&rig.old).arg(&rig.image);
    command.args((0..3).map(|nth| format!("--to=h{nth}:{}", to(nth).display())));
    let outcome = run(command.env("XDG_CACHE_HOME", rig.dir.path().join("cache"))).ok();
    (0..3).for_each(|nth| drop(tool("cmp", &[], &[&rig.image, &to(nth)])));
    assert!(!outcome.stdout.contains("\"warning\""), "{outcome}");
}

/// A range that changes, and how lists tell of it.
const CHANGES: [(usize, usize); 3] =
    [(5 * BLOCK, BLOCK), (100 * BLOCK + 4096, 8192), (200 * BLOCK, 2 * BLOCK)];
/// Bytes in the blocks that they touch.
const TOUCHED: usize = 4 * BLOCK;

/// As nbdinfo tells of every byte: offset, length, type.
fn every_byte() -> Vec<(usize, usize, usize)> {
    let (mut all, mut at) = (Vec::new(), 0);
    for (start, length) in CHANGES {
        all.extend([(at, start - at, 0), (start, length, 1)]);
        at = start + length;
    }
    all.push((at, SIZE - at, 0));
    all
}

fn word(kind: usize) -> &'static str {
    if kind == 1 { "dirty" } else { "clean" }
}

/// A list of the changes in each form.
fn lists() -> Vec<(&'static str, String)> {
    let each = |line: &dyn Fn(usize, usize) -> String| CHANGES.map(|(at, length)| line(at, length));
    let table = |(at, length, kind): (usize, usize, usize)| {
        format!("{at:>10} {length:>11} {kind:>4}  {}\n", word(kind))
    };
    let json = |(offset, length, kind): (usize, usize, usize)| {
        format!(
            "{{ \"offset\": {offset}, \"length\": {length}, \"type\": {kind}, \"description\": \"{}\"}}",
            word(kind)
        )
    };
    let rbd = |offset, length| format!("{{\"offset\":{offset},\"length\":{length},\"exists\":\"true\"}}");
    let thin = |at: usize, length: usize| {
        format!("<different begin=\"{}\" length=\"{}\"/>\n", at / 4096, length / 4096)
    };
    vec![
        ("plain", each(&|at, length| format!("{at} {length:#x}\n")).concat()),
        ("nbdinfo", every_byte().into_iter().map(table).collect()),
        (
            "nbdinfo --json",
            format!("[\n{}\n]\n", every_byte().into_iter().map(json).collect::<Vec<_>>().join(",\n")),
        ),
        (
            "rbd",
            [
                "Offset   Length  Type \n".to_owned(),
                each(&|at, length| format!("{at} {length} zero \n")).concat(),
            ]
            .concat(),
        ),
        ("rbd --format json", format!("[{}]", each(&rbd).join(","))),
        (
            "thin_delta",
            format!(
                "<superblock uuid=\"\" time=\"1\" transaction=\"1\" data_block_size=\"8\" nr_data_blocks=\"9\">\n<diff \
                 left=\"0\" right=\"1\">\n{}</diff>\n</superblock>\n",
                each(&thin).concat()
            ),
        ),
    ]
}

impl Rig {
    /// Makes the image, which shares nothing, and the map of the old one, which the other end has.
    fn change(&self) -> PathBuf {
        tool("cp", &["--reflink=never"], &[&self.old, &self.image]);
        for (nth, (at, length)) in CHANGES.into_iter().enumerate() {
            overwrite(&self.image, at, &vec![nth as u8 + 1; length]);
        }
        let map = self.dir.path().join("old.map");
        run(holesync().arg("map").arg(&self.old).arg("-o").arg(&map)).ok();
        tool("cp", &["--reflink=never"], &[&self.old, &self.to]);
        map
    }

    fn changed(&self, list: &str, since: &Path, flags: &[&str]) -> Outcome {
        let path = self.dir.path().join("list");
        fs::write(&path, list).expect("write the list");
        let (list, since) = (format!("--changed={}", path.display()), format!("--since={}", since.display()));
        self.push(&[&[&list[..], &since], flags].concat(), &self.image)
    }
}

#[test]
fn what_a_list_does_not_name_is_not_read() {
    let Some(rig) = Rig::on(Fs::Ext4) else { return };
    for (name, list) in lists() {
        let map = rig.change();
        let outcome = rig.changed(&list, &map, &["--no-map-cache"]).ok();
        assert_same(&rig.image, &rig.to);
        assert_eq!(counts(&outcome), (SIZE + TOUCHED, SIZE - TOUCHED), "{name}");
        assert!(!outcome.stdout.contains("\"warning\""), "{name}: {outcome}");
    }
    // The old one itself, which is hashed once, and then known; what is known of the copy is beside that.
    fs::remove_file(&rig.to).expect("remove");
    let old = rig.old.clone();
    let (_, list) = lists().swap_remove(0);
    assert_eq!(counts(&rig.changed(&list, &old, &[]).ok()), (SIZE + TOUCHED, SIZE - TOUCHED));
    assert_eq!(counts(&rig.changed(&list, &old, &[]).ok()), (TOUCHED, 2 * SIZE - TOUCHED));
    assert_same(&rig.image, &rig.to);
    // Nothing that only a list says is kept as if it had been read.
    assert_eq!(counts(&rig.push(&[], &rig.image).ok()), (SIZE, SIZE));
    // What is listed is read, zeros or not, also if more is listed than has changed.
    tool("fallocate", &["-p", "-o", "10M", "-l", "1M"], &[&rig.image]);
    let more = format!("{list}{} {}\n", 10 * MIB, MIB);
    rig.changed(&more, &old, &[]).ok();
    assert_same(&rig.image, &rig.to);
}

#[test]
fn images_of_other_lengths_than_their_map_are_read_where_they_are_cut() {
    for length in [SIZE - 5000, SIZE + 5000, SIZE - BLOCK, SIZE + 3 * BLOCK, MIB] {
        let Some(rig) = Rig::on(Fs::Ext4) else { return };
        let map = rig.change();
        overwrite(&rig.image, SIZE, &vec![9; length.saturating_sub(SIZE)]);
        tool("truncate", &["-s", &length.to_string()], &[&rig.image]);
        let list: String = CHANGES.iter().map(|(at, bytes)| format!("{at} {bytes}\n")).collect();
        let list = if length == MIB {
            format!("{} {BLOCK}\n", 5 * BLOCK)
        } else {
            format!("{list}{} 1\n", length - 1)
        };
        let outcome = rig.changed(&list, &map, &[]).ok();
        assert_same(&rig.image, &rig.to);
        let believed = counts(&outcome).1;
        assert!(believed >= length.min(SIZE) - TOUCHED - 2 * BLOCK, "{length}: {believed}");
    }
}

#[test]
fn a_list_that_is_not_that_of_the_image_is_found_out_or_read_past() {
    let Some(rig) = Rig::on(Fs::Ext4) else { return };
    let map = rig.change();
    Layout::dense("image", SIZE, &mut Rng(9)).write(&rig.image);
    let outcome = rig.changed("# nothing\n", &map, &[]).ok();
    assert_same(&rig.image, &rig.to);
    assert!(outcome.stdout.contains("where --changed tells of no change"), "{outcome}");
    // Who wants content read gets that, whatever the list does not name.
    for flag in ["-c", "--verify"] {
        let map = rig.change();
        rig.changed("# nothing\n", &map, &[flag]).ok();
        assert_same(&rig.image, &rig.to);
    }
}

#[test]
fn a_list_of_changes_serves_a_device_too() {
    if !lab::is_root() {
        return;
    }
    let Some(rig) = Rig::on(Fs::Ext4) else { return };
    let map = rig.change();
    let device = lab::Loop::over(&rig.image);
    let (list, since) = (rig.dir.path().join("list"), format!("--since={}", map.display()));
    fs::write(&list, &lists()[1].1).expect("write the list");
    let list = format!("--changed={}", list.display());
    let outcome = rig.push(&["--no-map-cache", &list, &since], &device.0).ok();
    assert_same(&rig.image, &rig.to);
    assert_eq!(counts(&outcome), (SIZE + TOUCHED, SIZE - TOUCHED));
}

#[test]
fn lists_and_maps_that_make_no_sense_are_refused_and_nothing_is_written() {
    let Some(rig) = Rig::on(Fs::Ext4) else { return };
    let map = rig.change();
    let refused = |list: &str, since: &Path, flags: &[&str], parts: &[&str]| {
        rig.changed(list, since, flags).code(1).says(parts);
        assert_same(&rig.old, &rig.to);
    };
    let beyond = format!("0 4096\n{SIZE} 1\n");
    refused(&beyond, &map, &[], &["/list", "line 2", "outside"]);
    refused("0 4096\n4095 1\n", &map, &[], &["/list", "1 and 2", "overlap"]);
    refused("0 4096\nten 1\n", &map, &[], &["/list", "line 2", "ten"]);
    refused("[{\"offset\":0}]", &map, &[], &["/list", "line 1", "length"]);
    refused("<thin/>", &map, &[], &["/list", "thin"]);
    refused("", &map, &[], &["/list", "nothing"]);
    refused("0 4096\n", &map, &["-B", "16K"], &["old.map", "65536"]);
    let mut bytes = fs::read(&map).expect("read");
    bytes[9000] ^= 1;
    fs::write(&map, bytes).expect("write");
    rig.changed("0 4096\n", &map, &[]).says(&["old.map", "damaged"]);
    let (list, image) = (rig.dir.path().join("list"), &rig.image);
    run(holesync().arg("--changed").arg(&list).arg(image).arg("host:/to")).code(1).says(&["--since"]);
    run(holesync().arg("--since").arg(&map).arg(image).arg("host:/to")).code(1).says(&["--changed"]);
    assert_same(&rig.old, &rig.to);
}
