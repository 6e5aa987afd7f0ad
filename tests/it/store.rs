//! Images that are published in a store and pulled from there.

mod bucket;
mod change;
mod every_call;
mod kills;
mod known;
mod lies;
mod power;
mod prune;
mod publishing;
mod ranges;
mod s3;
mod signed;
mod stops;
mod web;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::check::{assert_begins_with, assert_holes_kept, assert_no_leftovers, assert_same};
use crate::common::lab::{self, Fs, Loop};
use crate::common::layout::{Change, Layout, Rng, layouts, mutate};
use crate::common::process::{Outcome, holesync, run, start};

/// A store in a directory, an image in it, and where that is pulled to.
struct Store {
    dir: PathBuf,
    /// Removed when this is dropped.
    _own: Option<TempDir>,
}

impl Store {
    fn new(dir: TempDir) -> Store {
        let store = Store::at(dir.path().into());
        Store { _own: Some(dir), ..store }
    }

    /// In a directory that stays, where there may be one.
    fn at(dir: PathBuf) -> Store {
        fs::create_dir_all(dir.join("to")).unwrap();
        Store { dir, _own: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What `publish` and others call the image.
    fn image(&self) -> PathBuf {
        self.path("store/disk")
    }

    /// What a pull calls it, or one version.
    fn url(&self, version: &str) -> OsString {
        format!("file://{}{version}", self.image().display()).into()
    }

    fn copy(&self) -> PathBuf {
        self.path("to/copy")
    }

    /// The program, with a home of its own, in which it records what it pulled.
    fn holesync(&self) -> Command {
        let mut command = holesync();
        command.env("HOME", self.path("home")).env_remove("XDG_STATE_HOME").env_remove("XDG_CACHE_HOME");
        command
    }

    #[track_caller]
    fn publish(&self, image: &Path, flags: &[&str]) -> Value {
        let published =
            run(self.holesync().args(["publish", "--json"]).args(flags).arg(image).arg(self.image())).ok();
        serde_json::from_str(published.stdout.lines().last().unwrap()).unwrap()
    }

    fn pull(&self, version: &str, flags: &[&str]) -> Outcome {
        run(self.holesync().args(flags).arg(self.url(version)).arg(self.copy()))
    }

    /// Publishes an image that has 2 MiB of data, and pulls it.
    #[track_caller]
    fn begin(&self) -> (Layout, PathBuf) {
        let layout = Layout::hole("disk", 8 << 20).data(1 << 20..3 << 20, &mut Rng(1));
        let image = self.path("image");
        layout.write(&image);
        self.publish(&image, &[]);
        self.pull("", &[]).ok();
        assert_same(&image, &self.copy());
        (layout, image)
    }
}

#[test]
fn an_image_of_any_layout_is_pulled_over_whatever_was_there() {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        let (store, image) = (Store::new(dir), lab::scratch());
        let image = image.path().join("image");
        let mut rng = Rng(18);
        for layout in layouts(&mut rng) {
            layout.write(&image);
            store.publish(&image, &[]);
            // Over the version before, which was another layout.
            store.pull("", &["-I"]).ok();
            assert_same(&image, &store.copy());
            fs::remove_file(store.copy()).unwrap();
            store.pull("", &[]).ok();
            assert_same(&image, &store.copy());
            assert_holes_kept(&image, &store.copy());
            assert_no_leftovers(&store.path("to"));
        }
    }
}

#[test]
fn a_version_after_another_is_pulled_over_any_that_was_there() {
    let store = Store::new(lab::scratch());
    let mut rng = Rng(7);
    let mut layout = Layout::hole("disk", 12 << 20).data(1 << 20..9 << 20, &mut rng);
    let image = |nth: usize| store.path(&format!("v{nth}"));
    for nth in 0..8 {
        layout.write(&image(nth));
        store.publish(&image(nth), &["--as", &format!("v{nth}")]);
        for change in
            [Change::Touch, Change::Punch, Change::Grow, Change::Shrink, Change::Zero][..1 + nth % 5].iter()
        {
            layout = mutate(layout, *change, &mut rng);
        }
    }
    for (nth, flags) in [
        (0, &[][..]),
        (7, &[]),
        (3, &[]),
        (4, &["--verify"]),
        (5, &["--inplace"]),
        (1, &["-W"]),
        (6, &["--commit=atomic"]),
        (2, &["--preallocate"]),
        (0, &["--no-hole-map"]),
    ] {
        let foretold = store.pull(&format!("@v{nth}"), &[&["-In", "--json"], flags].concat()).ok();
        let done = store.pull(&format!("@v{nth}"), &[&["-I", "--json"], flags].concat()).ok();
        assert_same(&image(nth), &store.copy());
        let [told, came] = [&foretold, &done].map(fetched);
        assert_eq!(told, came.split_once(" by ").expect("requests").0, "v{nth} {flags:?}");
        for count in ["sent_data_bytes", "matched_bytes", "written_bytes", "punched_bytes", "files_sent"] {
            let [foretold, done] = [&foretold, &done].map(|outcome| outcome.count(count));
            // What is allocated to be kept so is not foretold.
            if flags != ["--preallocate"] {
                assert_eq!(foretold, done, "{count} of v{nth} {flags:?}");
            }
        }
        assert_no_leftovers(&store.path("to"));
    }
}

/// What a run with `--json` says of the blocks that it fetches.
fn fetched(outcome: &Outcome) -> String {
    let events = outcome.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut told = events.filter_map(|event| Some(event["message"].as_str()?.to_string()));
    told.find(|message| message.contains(" of blocks")).unwrap_or_else(|| panic!("{outcome}"))
}

#[test]
fn of_blocks_that_differ_little_only_pages_come() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let mut rng = Rng(5);
    let changed =
        layout.data((1 << 20)..(1 << 20) + 4096, &mut rng).data(2 << 20..(2 << 20) + 8192, &mut rng);
    changed.write(&image);
    let published = store.publish(&image, &[]);
    assert_eq!(published["patches"], 2);
    assert_eq!(published["new_blocks"], 2);
    let done = store.pull("", &["--json"]).ok();
    assert_eq!(done.count("sent_data_bytes"), 3 * 4096);
    assert_eq!(done.count("written_bytes"), 3 * 4096);
    assert_same(&image, &store.copy());
    // Whoever has something else gets whole blocks.
    fs::remove_file(store.copy()).unwrap();
    let done = store.pull("", &["--json"]).ok();
    assert_eq!(done.count("sent_data_bytes"), 2 << 20);
    assert_same(&image, &store.copy());
}

#[test]
fn where_patches_are_damaged_whole_blocks_come() {
    for fs in [Fs::Ext4, Fs::Btrfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        let store = Store::new(dir);
        let (layout, image) = store.begin();
        let mut rng = Rng(5);
        let changed = (0..20).fold(layout, |layout, nth| {
            let at = (1 << 20) + nth * 65536;
            layout.data(at..at + 4096, &mut rng)
        });
        changed.write(&image);
        assert_eq!(store.publish(&image, &[])["patches"], 20);
        let old = store.path("old");
        fs::copy(store.copy(), &old).unwrap();
        let patches = fs::read_dir(store.path("store/disk.store/patches")).unwrap().next().unwrap().unwrap();
        let whole = fs::read(patches.path()).unwrap();
        // The frames lie behind the index.
        for (at, flags) in
            [(1, &[][..]), (whole.len() / 2, &["--verify"]), (1, &["--inplace"]), (9, &["--commit=atomic"])]
        {
            let mut damaged = whole.clone();
            let last = damaged.len() - at;
            damaged[last] ^= 1;
            fs::write(patches.path(), &damaged).unwrap();
            let done = store.pull("", &[&["-I", "--json"], flags].concat()).ok();
            assert!(done.stdout.contains("whole blocks are fetched where pages would do"), "{done}");
            assert_eq!(done.count("sent_data_bytes"), 20 << 16);
            assert_eq!(done.count("sent_data_bytes") + done.count("matched_bytes"), 2 << 20);
            assert_same(&image, &store.copy());
            assert_no_leftovers(&store.path("to"));
            fs::copy(&old, store.copy()).unwrap();
        }
    }
}

#[test]
fn of_blocks_that_have_only_less_nothing_comes() {
    for fs in [Fs::Ext4, Fs::Btrfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        let store = Store::new(dir);
        let (layout, image) = store.begin();
        let trimmed = layout.punch(1 << 20..(1 << 20) + 8192).punch((2 << 20) + 4096..(2 << 20) + 12288);
        trimmed.write(&image);
        assert_eq!(store.publish(&image, &[])["patches"], 2);
        let foretold = store.pull("", &["--json", "-n"]).ok();
        let done = store.pull("", &["--json", "--verify"]).ok();
        for count in ["sent_data_bytes", "written_bytes", "punched_bytes"] {
            assert_eq!(foretold.count(count), done.count(count), "{count}");
        }
        assert_eq!(done.count("sent_data_bytes"), 0);
        assert_eq!(done.count("punched_bytes"), 16384);
        assert_same(&image, &store.copy());
        assert_holes_kept(&image, &store.copy());
    }
}

#[test]
fn blocks_that_any_version_has_are_not_written_again() {
    let store = Store::new(lab::scratch());
    let mut rng = Rng(6);
    let one = Layout::dense("one", 4 << 20, &mut rng);
    let other = Layout::dense("other", 4 << 20, &mut rng);
    let image = store.path("image");
    one.write(&image);
    assert_eq!(store.publish(&image, &[])["new_blocks"], 64);
    other.write(&image);
    assert_eq!(store.publish(&image, &[])["new_blocks"], 64);
    one.write(&image);
    let back = store.publish(&image, &[]);
    assert_eq!((&back["new_blocks"], &back["new"]), (&0.into(), &true.into()));
    store.pull("", &[]).ok();
    assert_same(&image, &store.copy());
    assert_eq!(store.publish(&image, &[])["new"], false, "the same again is no version");
}

#[test]
fn a_destination_with_size_and_time_of_the_version_is_not_read() {
    let store = Store::new(lab::scratch());
    let (_, image) = store.begin();
    assert_eq!(
        fs::metadata(&image).unwrap().modified().unwrap(),
        fs::metadata(store.copy()).unwrap().modified().unwrap()
    );
    fs::remove_dir_all(store.path("store/disk.store")).unwrap();
    store.pull("", &["-v"]).ok();
    store.pull("", &["-I"]).code(23);
}

#[test]
fn a_directory_gets_the_image_under_its_name_and_a_device_its_bytes() {
    let Some(dir) = lab::dir(Fs::Ext4) else { return };
    let store = Store::new(dir);
    let (layout, image) = store.begin();
    run(store.holesync().arg(store.url("")).arg(store.path("to/"))).ok();
    assert_same(&image, &store.path("to/disk"));
    if !lab::is_root() {
        return lab::skip("loop devices need root");
    }
    let backing = store.path("backing");
    Layout::dense("device", 9 << 20, &mut Rng(3)).write(&backing);
    let device = Loop::over(&backing);
    // What begins like a packed image would come onto it packed.
    let packed = store.path("packed");
    fs::write(&packed, [&[0x1f, 0x8b, 8][..], &[7; 90_000]].concat()).unwrap();
    store.publish(&packed, &[]);
    for flags in [&[][..], &["-n"]] {
        let refused = run(store.holesync().args(flags).arg(store.url("")).arg(&device.0));
        refused.code(23).says(&["store/disk", "is packed (gzip)"]);
    }
    assert_begins_with(&device.0, &backing);
    run(store.holesync().arg("--as-is").arg(store.url("")).arg(&device.0)).ok();
    assert_begins_with(&device.0, &packed);
    store.publish(&image, &[]);
    run(store.holesync().arg(store.url("")).arg(&device.0)).ok();
    assert_begins_with(&device.0, &image);
    layout.data(5 << 20..6 << 20, &mut Rng(9)).write(&image);
    store.publish(&image, &[]);
    let done = run(store.holesync().arg("--json").arg(store.url("")).arg(&device.0)).ok();
    assert_eq!(done.count("sent_data_bytes"), 1 << 20);
    assert_begins_with(&device.0, &image);
}

#[test]
fn what_another_file_has_is_copied_from_there() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let basis = store.path("to/basis");
    fs::rename(store.copy(), &basis).unwrap();
    layout.data(1 << 20..(1 << 20) + 4096, &mut Rng(4)).write(&image);
    store.publish(&image, &[]);
    let basis = format!("--basis={}", basis.display());
    let done = store.pull("", &["--json", &basis]).ok();
    assert_eq!(done.count("sent_data_bytes"), 4096);
    assert_same(&image, &store.copy());
    // Over something that is there as well.
    Layout::dense("other", 8 << 20, &mut Rng(8)).write(&store.copy());
    let done = store.pull("", &["--json", "-I", &basis]).ok();
    assert_eq!(done.count("sent_data_bytes"), 4096);
    assert_same(&image, &store.copy());
}

#[test]
fn a_plain_image_is_pulled_by_its_map() {
    let store = Store::new(lab::scratch());
    fs::create_dir(store.path("store")).unwrap();
    let layout = Layout::hole("disk", 8 << 20).data(1 << 20..3 << 20, &mut Rng(1));
    layout.write(&store.image());
    store.publish(&store.image(), &["--raw"]);
    store.pull("", &[]).ok();
    assert_same(&store.image(), &store.copy());
    assert_holes_kept(&store.image(), &store.copy());
    layout.data(2 << 20..(2 << 20) + 65536, &mut Rng(2)).write(&store.image());
    // What is there is what the map says still.
    store.pull("", &["-I"]).ok();
    let other = run(store.holesync().arg(store.url("")).arg(store.path("to/other")));
    other.code(12).says(&["has another hash than its map says"]);
    store.publish(&store.image(), &["--raw"]);
    assert_eq!(store.pull("", &["--json"]).ok().count("sent_data_bytes"), 65536);
    assert_same(&store.image(), &store.copy());
    // A map alone does, where nothing is known of a version.
    fs::remove_file(store.path("store/disk.newest")).unwrap();
    store.pull("", &[]).code(12).says(&["the destination has come from"]);
    let other = store.path("to/third");
    run(store.holesync().arg(store.url("")).arg(&other)).ok();
    assert_same(&store.image(), &other);
}

#[test]
fn options_about_the_destination_do_what_they_do_elsewhere() {
    let store = Store::new(lab::scratch());
    let (_, image) = store.begin();
    let (to, old) = (store.path("to"), store.path("old"));
    let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let pull = |before: &[&str], flags: &[&str], operand: &str| {
        let _ = (fs::remove_dir_all(&to), fs::remove_dir_all(&old));
        fs::create_dir(&to).unwrap();
        fs::create_dir(&old).unwrap();
        for name in before {
            let way = Command::new("cp").arg("-p").arg(&image).arg(store.path(name)).status();
            assert!(way.unwrap().success());
        }
        run(store.holesync().arg("--json").args(flags).arg(store.url("")).arg(store.path(operand))).ok()
    };
    pull(&[], &["-a"], "to/copy");
    assert_eq!(modified(&image), modified(&to.join("copy")));
    pull(&[], &["--no-t"], "to/copy");
    assert_ne!(modified(&image), modified(&to.join("copy")));
    pull(&["to/copy"], &["-bI", "--suffix=.old", "-W"], "to/copy");
    assert_same(&image, &to.join("copy.old"));
    pull(&["to/copy"], &["-I", "-W", "--backup-dir=../old"], "to/copy");
    assert_same(&image, &old.join("copy"));
    pull(&[], &["--mkpath"], "to/a/b/copy");
    assert_same(&image, &to.join("a/b/copy"));
    assert_eq!(pull(&["to/disk-1"], &["-y"], "to/").count("sent_data_bytes"), 0);
    assert_same(&image, &to.join("disk"));
    for (option, made) in [("link", true), ("copy", true), ("compare", false)] {
        let done = pull(&["old/disk"], &[&format!("--{option}-dest=../old")], "to/");
        assert_eq!((done.count("sent_data_bytes"), to.join("disk").exists()), (0, made), "{option}");
    }
    pull(&[], &["--partial-dir=part", "--threads=1", "--no-fsync", "--jobs=1"], "to/");
    assert_no_leftovers(&to);
    pull(&[], &["--log-file", store.path("log").to_str().unwrap()], "to/");
    assert!(fs::read_to_string(store.path("log")).unwrap().contains(">f+++++++++ disk"));
}

#[test]
fn what_makes_no_sense_is_said() {
    let store = Store::new(lab::scratch());
    let (_, image) = store.begin();
    store.pull("@none", &[]).code(23).says(&["the store has no version none of disk"]);
    store.pull("@..", &[]).code(1).says(&["is no name of a version"]);
    store.pull("", &["--delete"]).code(1).says(&["an image from a store is one file"]);
    store.pull("", &["--root=12"]).code(1).says(&["64 hexadecimal digits"]);
    run(store.holesync().arg(store.url("")).arg("peer:x"))
        .code(1)
        .says(&["pulled by the machine that wants it"]);
    run(store.holesync().arg(store.url(""))).code(1).says(&["holesync versions STORE/NAME"]);
    run(store.holesync().args(["--root", &"0".repeat(64)]).arg(&image).arg(store.copy())).code(1);
    run(store.holesync().args(["publish"]).arg(&image).arg("https://h/x")).code(1).says(&["is read alone"]);
    run(store.holesync().args(["publish"]).arg(&image).arg(store.path("store/a.map"))).code(1);
    let again = ["publish", "--as", "v1"];
    run(store.holesync().args(again).arg(&image).arg(store.image())).ok();
    Layout::dense("other", 1 << 20, &mut Rng(2)).write(&image);
    run(store.holesync().args(again).arg(&image).arg(store.image()))
        .code(23)
        .says(&["has a version v1 already"]);
    run(store.holesync().arg(store.url("x")).arg(store.copy()))
        .code(23)
        .says(&["nothing was published under this name"]);
}

#[test]
fn of_many_who_publish_a_version_of_one_name_one_does() {
    let store = Store::new(lab::scratch());
    let mut rng = Rng(3);
    let images: Vec<_> = (0..6).map(|nth| store.path(&format!("image{nth}"))).collect();
    for image in &images {
        Layout::dense("disk", 1 << 20, &mut rng).write(image);
    }
    let publish = |image| start(store.holesync().args(["publish", "--as=v1"]).arg(image).arg(store.image()));
    let publishers: Vec<_> = images.iter().map(publish).collect();
    let ended: Vec<_> = publishers.into_iter().map(|publisher| publisher.finish()).collect();
    let winner = ended.iter().position(|outcome| outcome.code == 0).unwrap();
    for (nth, outcome) in ended.into_iter().enumerate().filter(|(nth, _)| *nth != winner) {
        assert_eq!(outcome.code, 23, "{nth}");
        outcome.says(&["has a version v1 already"]);
    }
    for version in ["", "@v1"] {
        store.pull(version, &["-I"]).ok();
        assert_same(&images[winner], &store.copy());
    }
    run(store.holesync().arg("check").arg(store.image())).ok();
}

#[test]
fn many_publish_at_once_and_the_newest_is_the_last_one() {
    let store = Store::new(lab::scratch());
    let mut rng = Rng(3);
    let images: Vec<_> = (0..6).map(|nth| store.path(&format!("image{nth}"))).collect();
    for image in &images {
        Layout::dense("disk", 1 << 20, &mut rng).write(image);
    }
    let publish = |(nth, image)| {
        start(store.holesync().args(["publish", &format!("--as=v{nth}")]).arg(image).arg(store.image()))
    };
    let publishers: Vec<_> = images.iter().enumerate().map(publish).collect();
    publishers.into_iter().for_each(|publisher| assert_eq!(publisher.finish().code, 0));
    run(store.holesync().arg("check").arg(store.image())).ok();
    for (nth, image) in images.iter().enumerate() {
        store.pull(&format!("@v{nth}"), &["-I"]).ok();
        assert_same(image, &store.copy());
    }
}

#[test]
fn what_lies_there_as_it_is_must_be_the_image() {
    let store = Store::new(lab::scratch());
    let layout = Layout::hole("disk", 8 << 20).data(1 << 20..3 << 20, &mut Rng(1));
    let image = store.path("image");
    layout.write(&image);
    fs::create_dir(store.path("store")).unwrap();
    layout.clone().data(1 << 20..(1 << 20) + 4096, &mut Rng(2)).write(&store.image());
    let publish = || run(store.holesync().args(["publish", "--raw"]).arg(&image).arg(store.image()));
    publish().code(23).says(&["is not the image that is published"]);
    assert!(!store.path("store/disk.newest").exists() && !store.path("store/disk.map").exists());
    // What has zeros there, too, and what lies elsewhere.
    layout.clone().data(5 << 20..(5 << 20) + 4096, &mut Rng(2)).write(&store.image());
    publish().code(23).says(&["is not the image that is published"]);
    layout.write(&store.image());
    publish().ok();
    store.pull("", &[]).ok();
    assert_same(&image, &store.copy());
    assert_eq!(store.publish(&image, &["--raw"])["new"], false);
    // Published in packs since, then as it is: each is the newest in its turn.
    for flags in [&[][..], &["--raw"], &[]] {
        assert_eq!(store.publish(&image, flags)["new"], true, "{flags:?}");
        store.pull("", &["-I"]).ok();
        assert_same(&image, &store.copy());
        run(store.holesync().arg("check").arg(store.image())).ok();
        let listed = run(store.holesync().arg("versions").arg(store.image())).ok();
        let published: Value =
            serde_json::from_slice(&fs::read(store.path("store/disk.newest")).unwrap()).unwrap();
        assert!(listed.stdout.starts_with(published["version"].as_str().unwrap()), "{listed}");
    }
}

#[test]
fn no_store_is_made_for_an_image_that_is_not_there() {
    let store = Store::new(lab::scratch());
    run(store.holesync().arg("publish").arg(store.path("none")).arg(store.image())).code(23);
    assert!(!store.path("store").exists());
}

#[test]
fn a_key_that_is_not_there_is_told_before_anything_is_written() {
    let store = Store::new(lab::scratch());
    let image = store.path("image");
    Layout::dense("disk", 1 << 20, &mut Rng(1)).write(&image);
    let published = run(store.holesync().args(["publish", "--sign=/none"]).arg(&image).arg(store.image()));
    published.code(23).says(&["/none"]);
    assert!(!store.path("store").exists());
}

#[test]
fn a_plain_image_has_one_version_which_can_be_named() {
    let store = Store::new(lab::scratch());
    fs::create_dir(store.path("store")).unwrap();
    let layout = Layout::hole("disk", 8 << 20).data(1 << 20..3 << 20, &mut Rng(1));
    layout.write(&store.image());
    store.publish(&store.image(), &["--raw", "--as=r1"]);
    let [old, old_map] =
        ["store/disk.newest", "store/disk.map"].map(|name| fs::read(store.path(name)).unwrap());
    let bytes = fs::read(store.image()).unwrap();
    layout.data(0..4096, &mut Rng(2)).write(&store.image());
    store.publish(&store.image(), &["--raw", "--as=r2"]);
    store.pull("@r2", &[]).ok();
    store.pull("@r1", &[]).code(23).says(&["the store has no version r1"]);
    // The server goes back.
    fs::write(store.image(), bytes).unwrap();
    fs::write(store.path("store/disk.newest"), old).unwrap();
    fs::write(store.path("store/disk.map"), old_map).unwrap();
    store.pull("", &[]).code(12).says(&["disk@r1", "--root"]);
    store.pull("@r1", &[]).ok();
    assert_same(&store.image(), &store.copy());
}

#[test]
fn patches_that_are_lost_are_done_without() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    layout.data(1 << 20..(1 << 20) + 4096, &mut Rng(2)).write(&image);
    assert_eq!(store.publish(&image, &[])["patches"], 1);
    let patches =
        fs::read_dir(store.path("store/disk.store/patches")).unwrap().next().unwrap().unwrap().path();
    fs::write(&patches, "damaged").unwrap();
    store.pull("", &[]).ok().says(&["whole blocks are fetched", patches.to_str().unwrap()]);
    assert_same(&image, &store.copy());
}

#[test]
fn what_may_be_a_secret_in_a_url_is_not_repeated() {
    for url in [
        "http://u:sesame@h",
        "https://u:sesame@h/",
        "https://h/disk?sig=sesame",
        "https://h/disk@v1?sig=sesame",
    ] {
        for verb in [&[][..], &["versions"], &["check"], &["prune", "--keep=1"]] {
            let mut command = holesync();
            command.args(verb).arg(url);
            if verb.is_empty() {
                command.arg("/none");
            }
            let refused = run(&mut command).code(1);
            assert!(!refused.to_string().replace(url, "").contains("sesame"), "{refused}");
        }
    }
}
