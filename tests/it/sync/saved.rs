//! The map of what was sent, saved by the run that sends it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::common::check::{assert_no_leftovers, assert_same};
use crate::common::lab::{self, Fs, Loop};
use crate::common::layout::{Layout, Rng, layouts};
use crate::common::peer::Peer;
use crate::common::process::{Outcome, holesync, run, start};
use crate::common::redeploy::{every, set_day};
use crate::common::tree::Way;

const BLOCK: usize = 64 << 10;
const AGENTS: [Way; 3] = [Way::Local, Way::Push, Way::Pull];

struct Run {
    dir: TempDir,
    from: PathBuf,
    to: PathBuf,
    map: PathBuf,
}

impl Run {
    fn on(fs: Fs) -> Option<Run> {
        let dir = lab::dir(fs)?;
        let [from, to, map] = ["from", "to", "saved.map"].map(|name| dir.path().join(name));
        Some(Run { dir, from, to, map })
    }

    fn sync(&self, way: Way, flags: &[&str], source: &Path) -> Outcome {
        let peer = Peer::pipe(self.dir.path());
        let mut command = way.command(Some(&peer), flags, &[source.as_os_str()], self.to.as_os_str());
        run(command.arg("--save-map").arg(&self.map))
    }

    /// The map is that of the image, which the destination has.
    #[track_caller]
    fn assert_saved(&self, what: &str) {
        assert_same(&self.from, &self.to);
        let right = self.dir.path().join("right.map");
        run(holesync().arg("map").arg(&self.from).arg("-o").arg(&right)).ok();
        assert!(fs::read(&self.map).expect("a map") == fs::read(&right).expect("a map"), "{what}");
        assert_no_leftovers(self.dir.path());
    }
}

/// Also where size and time agree, and nothing would be looked at.
#[test]
fn the_map_of_what_was_sent_is_saved_whatever_was_there() {
    for fs in [Fs::Ext4, Fs::Btrfs, Fs::Tmpfs] {
        for way in AGENTS {
            let Some(place) = Run::on(fs) else { continue };
            let rng = &mut Rng(51);
            for layout in layouts(rng) {
                let what = format!("{fs:?} {way:?} {}", layout.name);
                let _ = fs::remove_file(&place.to);
                let _ = fs::remove_file(&place.from);
                layout.write(&place.from);
                set_day(&place.from, 1);
                for flags in [&[][..], &["-W"], &["--no-hole-map"]] {
                    place.sync(way, flags, &place.from).ok();
                    place.assert_saved(&what);
                }
                every(3, &layout, rng).write(&place.from);
                set_day(&place.from, 2);
                place.sync(way, &["--inplace"], &place.from).ok();
                place.assert_saved(&what);
            }
        }
    }
}

/// What differs in single pages is known to the receiver before it has them.
#[test]
fn blocks_that_come_in_parts_are_in_their_place() {
    for way in AGENTS {
        let Some(place) = Run::on(Fs::Ext4) else { return };
        let rng = &mut Rng(52);
        let old = Layout::dense("old", 300 * BLOCK + 777, rng);
        old.write(&place.to);
        let new = (0..300).step_by(2).fold(old, |layout, block| {
            let start = block * BLOCK + 8192;
            layout.data(start..start + 4096, rng)
        });
        new.write(&place.from);
        place.sync(way, &[], &place.from).ok();
        place.assert_saved(&format!("{way:?}"));
    }
}

/// That a device has changed does not show: what is hashed for the map is what is written.
#[test]
fn the_map_of_a_device_is_that_of_its_copy() {
    if !lab::is_root() {
        return;
    }
    let Some(place) = Run::on(Fs::Ext4) else { return };
    let backing = place.dir.path().join("backing");
    Layout::dense("device", 100 * BLOCK, &mut Rng(55)).write(&backing);
    let device = Loop::over(&backing);
    for way in AGENTS {
        let _ = fs::remove_file(&place.to);
        let copied = place.sync(way, &["--json"], &device.0).ok();
        assert_eq!(copied.count("hashed_bytes") as usize, 100 * BLOCK, "{way:?} {copied}");
        fs::copy(&place.to, &place.from).expect("copy");
        place.assert_saved(&format!("{way:?}"));
    }
    // Also while it is written.
    let write = r#"while :; do dd if=/dev/urandom of="$0" bs=64K count=100 conv=notrunc status=none; done"#;
    let _writer = start(Command::new("sh").args(["-c", write]).arg(&device.0));
    for way in AGENTS {
        for is_new in [true, false] {
            if is_new {
                fs::remove_file(&place.to).expect("remove");
            }
            place.sync(way, &["--compress=none"], &device.0).ok();
            fs::copy(&place.to, &place.from).expect("copy");
            place.assert_saved(&format!("{way:?}, new: {is_new}"));
        }
    }
}

/// A copy within one file system that clones is hashed as well, and a clone all the same.
#[test]
fn a_clone_stays_one() {
    let Some(place) = Run::on(Fs::Btrfs) else { return };
    Layout::dense("image", 100 * BLOCK, &mut Rng(53)).write(&place.from);
    let copied = place.sync(Way::Local, &["--json"], &place.from).ok();
    assert_eq!(copied.count("hashed_bytes") as usize, 100 * BLOCK, "{copied}");
    place.assert_saved("a clone");
}

#[test]
fn where_the_image_does_not_arrive_the_old_map_stays() {
    for way in AGENTS {
        let Some(place) = Run::on(Fs::Ext4) else { return };
        Layout::dense("image", 20 * BLOCK, &mut Rng(54)).write(&place.from);
        fs::write(&place.map, "old").expect("write");
        let assert_old = || assert_eq!(fs::read(&place.map).expect("read"), b"old", "{way:?}");
        place.sync(way, &["-n"], &place.from).ok();
        assert_old();
        place.sync(way, &["--existing"], &place.from).code(23).says(&["was not written", "--update"]);
        assert_old();
        fs::create_dir(&place.to).expect("make");
        fs::create_dir_all(place.to.join("from/x")).expect("make");
        assert_ne!(place.sync(way, &[], &place.from).code, 0);
        assert_old();
        assert_no_leftovers(place.dir.path());
    }
}

#[test]
fn what_has_no_map_is_refused_before_anything_is_written() {
    let Some(place) = Run::on(Fs::Ext4) else { return };
    let tree = place.dir.path().join("tree");
    fs::create_dir(&tree).expect("make");
    fs::write(tree.join("x"), "x").expect("write");
    for way in AGENTS {
        place.sync(way, &["-a"], &tree).code(1).says(&["is for one image, and SRC is a directory"]);
    }
    fs::write(&place.from, "x").expect("write");
    for way in [Way::PushShell, Way::PullShell] {
        place.sync(way, &["--agent=none"], &place.from).code(1).says(&["--save-map needs a holesync on"]);
    }
    assert!(!place.to.exists());
    let refused = |args: &[&dyn AsRef<OsStr>], says: &str| {
        let outcome = run(holesync().current_dir(place.dir.path()).args(args.iter().map(|arg| arg.as_ref())));
        assert!([1, 11, 23].contains(&outcome.code), "{outcome}");
        let outcome = outcome.says(&[says]);
        assert!(!place.to.exists() && fs::read(&place.from).expect("read") == b"x", "{outcome}");
    };
    refused(&[&"--save-map=x", &"from", &"to"], "the name of a map ends in .map");
    refused(&[&"--save-map=./a.map", &"from", &"a.map"], "is the image itself");
    fs::hard_link(&place.from, place.dir.path().join("link.map")).expect("link");
    refused(&[&"--save-map=link.map", &"from", &"to"], "is the image itself");
    refused(&[&"--save-map=a.map", &"--size-only", &"from", &"to"], "leave --size-only out");
    refused(&[&"--save-map=a.map", &"-", &"to"], "is for one image");
    refused(&[&"--save-map=a.map", &"from", &"tree/x", &"to"], "is for one image");
    refused(&[&"--save-map=a.map", &"from"], "--save-map is for SRC and one DEST");
    refused(&[&"--save-map=a.map", &"--to=h:/x", &"from"], "--save-map is for SRC and one DEST");
    refused(&[&"--save-map=none/a.map", &"from", &"to"], "none/a.map");
    fs::create_dir(place.dir.path().join("d.map")).expect("make");
    refused(&[&"--save-map=d.map", &"from", &"to"], "is no place for a map");
}
