//! Map files: written of images here and on hosts, and read in the place of images.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::cli::json_lines;
use crate::common::lab::{self, Fs, Loop};
use crate::common::layout::{Layout, Rng, layouts};
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, PROGRAM, holesync, run};

const BLOCK: u64 = 64 << 10;

fn verb(words: &[&dyn AsRef<OsStr>]) -> Command {
    let mut command = holesync();
    command.args(words.iter().map(|word| word.as_ref()));
    command
}

fn save(image: &Path, map: &Path) -> Outcome {
    run(&mut verb(&[&"map", &image, &"-o", &map])).ok()
}

/// The ranges that are told to differ.
fn ranges(outcome: &Outcome) -> Vec<(u64, u64, String)> {
    let lines = json_lines(outcome);
    let ranges = lines.iter().filter(|line| line["event"] == "range");
    let number = |line: &serde_json::Value, name: &str| line[name].as_u64().expect("a number");
    ranges
        .map(|line| (number(line, "offset"), number(line, "length"), line["kind"].as_str().unwrap().into()))
        .collect()
}

#[test]
fn a_map_stands_for_every_layout_on_every_file_system() {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        for layout in layouts(&mut Rng(41)) {
            let [image, map, again] = ["image", "a.map", "again.map"].map(|name| dir.path().join(name));
            layout.write(&image);
            let told = save(&image, &map).stdout;
            run(&mut verb(&[&"verify", &image, &"--map", &map])).ok();
            run(&mut verb(&[&"diff", &map, &image, &"-q"])).ok();
            run(&mut verb(&[&"diff", &map, &map])).ok();
            let digest = |path: &Path| {
                let told = run(&mut verb(&[&"digest", &path])).ok().stdout;
                told.split(' ').next().expect("a hash").to_string()
            };
            assert_eq!(digest(&map), digest(&image), "{fs:?} {}", layout.name);
            assert!(told.contains(&digest(&image)), "{fs:?} {}: {told}", layout.name);
            // A map of a map is that map.
            save(&map, &again);
            assert_eq!(
                fs::read(&again).expect("read"),
                fs::read(&map).expect("read"),
                "{fs:?} {}",
                layout.name
            );
            // Each file has its own place for the next.
            fs::remove_file(&image).expect("remove");
        }
    }
}

#[test]
fn what_differs_from_a_map_is_named_here_and_there() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let [image, map, far] = ["image", "a.map", "far"].map(|name| dir.path().join(name));
    let length = 40 * BLOCK + 777;
    Layout::dense("image", length as usize, &mut Rng(42))
        .punch(4 * BLOCK as usize..8 * BLOCK as usize)
        .write(&image);
    save(&image, &map);
    fs::copy(&image, &far).expect("copy");
    let there = |map: &Path| {
        let mut command = verb(&[&"verify", &"--json", &"-e", &peer.rsh(), &"--remote-path", &PROGRAM]);
        run(command.arg(at(&far)).arg("--map").arg(map))
    };
    let here = || run(&mut verb(&[&"verify", &"--json", &far, &"--map", &map]));
    assert!(ranges(&there(&map).ok()).is_empty());
    let file = fs::File::options().write(true).open(&far).expect("open");
    file.write_all_at(b"x", 2 * BLOCK + 5).expect("write");
    file.write_all_at(b"x", 5 * BLOCK + 4096).expect("write");
    file.write_all_at(&[0; BLOCK as usize], 9 * BLOCK).expect("write");
    let changed = [
        (2 * BLOCK, BLOCK, "changed".to_string()),
        (5 * BLOCK + 4096, 4096, "only_b".into()),
        (9 * BLOCK, BLOCK, "only_a".into()),
    ];
    for outcome in [here().code(1), there(&map).code(1)] {
        assert_eq!(ranges(&outcome), changed);
    }
    run(&mut verb(&[&"verify", &"-q", &far, &"--map", &map])).code(1);
    // A map of the far one, made there, is that of a copy.
    let far_map = dir.path().join("far.map");
    let mut command = verb(&[&"map", &"-e", &peer.rsh(), &"--remote-path", &PROGRAM]);
    run(command.arg(at(&far)).arg("-o").arg(&far_map)).ok();
    run(&mut verb(&[&"verify", &far, &"--map", &far_map])).ok();
    // Cut within a block, and longer.
    for (length, kind) in [(20 * BLOCK + 5000, "beyond_b"), (50 * BLOCK, "beyond_a")] {
        file.set_len(length).expect("set the length");
        for outcome in [here().code(1), there(&map).code(1)] {
            let found = ranges(&outcome);
            assert_eq!(found.last().expect("a range").2, kind, "{outcome}");
            assert_eq!(found[..3], changed, "{outcome}");
        }
    }
}

#[test]
fn a_device_is_held_against_a_map() {
    if !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    let [image, map, backing] = ["image", "a.map", "backing"].map(|name| dir.path().join(name));
    Layout::dense("image", 16 * BLOCK as usize, &mut Rng(43)).write(&image);
    fs::copy(&image, &backing).expect("copy");
    let device = Loop::over(&backing);
    save(&image, &map);
    run(&mut verb(&[&"verify", &device.0, &"--map", &map])).ok();
}

#[test]
fn a_map_that_is_none_is_an_error_and_what_was_there_stays() {
    let dir = lab::scratch();
    let [image, map, bad, other] =
        ["image", "a.map", "bad.map", "other.map"].map(|name| dir.path().join(name));
    Layout::dense("image", 70 * BLOCK as usize, &mut Rng(44)).write(&image);
    save(&image, &map);
    let whole = fs::read(&map).expect("read");
    let verify = |map: &Path| run(&mut verb(&[&"verify", &image, &"--map", &map]));
    let mut changed = whole.clone();
    changed[1000] ^= 1;
    for (bytes, says) in [
        (&whole[..whole.len() - 1], "is a damaged map (it ends too early)"),
        (&whole[..20], "is a damaged map (its head)"),
        (&changed, "is a damaged map (a section was changed)"),
        (b"holesync map 7\r\nof a later one", "is a map of another version of holesync (format 7)"),
        (b"no map", "is no map of an image"),
        (b"", "is no map of an image"),
    ] {
        fs::write(&bad, bytes).expect("write");
        verify(&bad).code(23).says(&[bad.to_str().unwrap(), says]);
        run(&mut verb(&[&"diff", &bad, &image])).code(23).says(&[says]);
        run(&mut verb(&[&"digest", &bad])).code(23).says(&[says]);
        // What is written in its place is whole or not at all.
        fs::write(&other, "as it was").expect("write");
        run(&mut verb(&[&"map", &bad, &"-o", &other])).code(23);
        assert_eq!(fs::read(&other).expect("read"), b"as it was");
    }
    assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 4);
    run(&mut verb(&[&"map", &image, &"-B", &"4K", &"-o", &other])).ok();
    run(&mut verb(&[&"diff", &map, &other])).code(2).says(&["4096", "65536", "-B"]);
    run(&mut verb(&[&"verify", &image, &"--map", &other])).ok();
    run(&mut verb(&[&"verify", &image])).code(2).says(&["--map"]);
}

#[test]
fn no_output_takes_the_place_of_an_image() {
    let dir = lab::scratch();
    let [image, map, link] = ["image", "a.map", "link.map"].map(|name| dir.path().join(name));
    Layout::dense("image", 2 * BLOCK as usize, &mut Rng(45)).write(&image);
    fs::hard_link(&image, &link).expect("link");
    save(&image, &map);
    let before = [&image, &map].map(|path| fs::read(path).expect("read"));
    for words in [
        [&"map" as &dyn AsRef<OsStr>, &image, &"-o", &link],
        [&"map", &image, &"--svg", &link],
        [&"diff", &map, &image, &"--svg"],
    ] {
        let mut command = verb(&words);
        if words[3].as_ref() == "--svg" {
            command.arg(&map);
        }
        run(&mut command).says(&["is the image itself"]).code(23);
    }
    assert_eq!([&image, &map].map(|path| fs::read(path).expect("read")), before);
    if lab::is_root() {
        let backing = dir.path().join("backing");
        fs::write(&backing, vec![7; 1 << 20]).expect("write");
        let device = Loop::over(&backing);
        run(&mut verb(&[&"map", &image, &"--svg", &device.0])).code(23).says(&["is a block device"]);
        assert_eq!(fs::read(&backing).expect("read"), vec![7; 1 << 20]);
    }
}

/// A guest may write a map into its disk; that is content, and says nothing of the disk.
#[test]
fn the_content_of_an_image_does_not_make_it_a_map() {
    let dir = lab::scratch();
    let [image, map, disk] = ["image", "a.map", "disk"].map(|name| dir.path().join(name));
    Layout::dense("image", 3 * BLOCK as usize, &mut Rng(46)).write(&image);
    save(&image, &map);
    fs::copy(&map, &disk).expect("copy");
    run(&mut verb(&[&"diff", &"-q", &image, &disk])).code(1);
    run(&mut verb(&[&"diff", &"-q", &image, &map])).ok();
    let digest = |path: &Path| run(&mut verb(&[&"digest", &path])).ok().stdout[..64].to_string();
    assert_eq!(digest(&image), digest(&map));
    assert_ne!(digest(&image), digest(&disk));
    run(&mut verb(&[&"verify", &image, &"--map", &disk])).code(2).says(&["ends in .map"]);
    run(&mut verb(&[&"map", &image, &"-o", &disk])).code(1).says(&["ends in .map"]);
}
