//! Images that casync has published, over old versions of them: what comes is what they lack, and the
//! result is what casync was given.

use std::fs;
use std::path::Path;
use std::process::Command;

use holesync::error::Result;
use holesync::options::{Commit, Options};
use holesync::report::Silent;
use holesync::store::casync::{ChunkStore, Index};
use holesync::store::objects::Directory;
use holesync::stream::casync::{Published, Pulled, pull};

use crate::common::account::which;
use crate::common::check::{assert_begins_with, assert_holes_kept, assert_no_leftovers, assert_same};
use crate::common::lab::{self, Fs, Loop};
use crate::common::layout::{Change, Layout, Rng, layouts, mutate};
use crate::common::process::run;

const MIB: usize = 1 << 20;

/// Whether there is a casync; if not, a counted skip.
fn has_casync() -> bool {
    let found = which("casync").exists();
    if !found {
        lab::skip("there is no casync");
    }
    found
}

/// Has casync publish an image as `dir`/x.caibx.
fn publish(dir: &Path, image: &Path, flags: &[&str]) {
    let store = format!("--store={}", dir.join("default.castr").display());
    run(Command::new("casync").arg("make").args(flags).arg(store).arg(dir.join("x.caibx")).arg(image)).ok();
}

fn pulled(dir: &Path, to: &Path, options: &Options) -> Result<Pulled> {
    let objects = &Directory::open(dir)?;
    let chunks = ChunkStore { objects, prefix: "default.castr/" };
    pull(&Published { objects, index: "x.caibx", chunks, jobs: 12 }, to, options, 0o022, &Silent)
}

/// How many chunks of the image that is published in `dir` an old one lacks at their offsets; and all.
fn lacks(dir: &Path, image: &Path, old: &[u8]) -> (u64, u64) {
    let index = Index::read(&Directory::open(dir).expect("open"), "x.caibx").expect("an index");
    let new = fs::read(image).expect("read");
    assert_eq!(index.length(), new.len() as u64);
    let chunks = (0..).map_while(|nth| index.chunk(nth));
    let (mut lacked, mut all) = (0, 0);
    for chunk in chunks.filter(|chunk| !index.is_zeros(chunk)) {
        let range = chunk.range.start as usize..chunk.range.end as usize;
        all += 1;
        lacked += u64::from(old.get(range.clone()) != Some(&new[range]));
    }
    (lacked, all)
}

#[test]
fn only_chunks_that_differ_come_and_holes_stay() {
    if !has_casync() {
        return;
    }
    let mut rng = Rng(71);
    for fs in [Fs::Ext4, Fs::Btrfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        let store = lab::scratch();
        let [image, to] = ["image", "to"].map(|name| dir.path().join(name));
        for (nth, layout) in layouts(&mut rng).into_iter().enumerate() {
            let name = format!("{fs:?} {}", layout.name);
            layout.write(&image);
            publish(store.path(), &image, &[]);
            // In one process with tests of loop devices, a place that one of them had counts as used for a second.
            let options = Options { verify: nth % 2 == 0, force_in_use: true, ..Options::default() };
            let (_, all) = lacks(store.path(), &image, b"");
            let came = pulled(store.path(), &to, &options).expect(&name);
            assert_eq!(came.chunks, all, "{name}");
            assert_same(&image, &to);
            assert_holes_kept(&image, &to);
            // Over itself nothing comes, and nothing is written.
            let came = pulled(store.path(), &to, &options).expect(&name);
            assert_eq!((came.chunks, came.stats.written_bytes, came.stats.files_sent), (0, 0, 0), "{name}");
            for change in Change::ALL {
                mutate(layout.clone(), change, &mut rng).write(&to);
                let (lacked, _) = lacks(store.path(), &image, &fs::read(&to).expect("read"));
                let options = Options {
                    commit: if nth % 3 == 0 { Commit::InPlace } else { Commit::Atomic },
                    ..options.clone()
                };
                let came = pulled(store.path(), &to, &options).expect(&name);
                assert_eq!(came.chunks, lacked, "{name} {change:?}");
                assert_same(&image, &to);
                assert_no_leftovers(dir.path());
            }
            fs::remove_file(&image).and_then(|()| fs::remove_file(&to)).expect("remove");
        }
    }
}

#[test]
fn digests_and_packings_of_casync_are_read_but_for_xz() {
    if !has_casync() {
        return;
    }
    let dir = lab::scratch();
    let image = dir.path().join("image");
    Layout::hole("image", 5 * MIB).data(MIB..3 * MIB + 77, &mut Rng(72)).write(&image);
    for (nth, flags) in [
        &["--digest=sha256"][..],
        &["--compression=gzip"],
        &["--chunk-size=4K:16K:64K"],
        &["--chunk-size=1M:2M:128M", "--digest=sha256", "--compression=gzip"],
        &["--compression=xz"],
    ]
    .iter()
    .enumerate()
    {
        let store = dir.path().join(format!("store{nth}"));
        let to = dir.path().join(format!("to{nth}"));
        fs::create_dir(&store).expect("mkdir");
        publish(&store, &image, flags);
        match pulled(&store, &to, &Options::default()) {
            Ok(_) if nth < 4 => assert_same(&image, &to),
            Err(error) if nth == 4 => {
                let error = error.to_string();
                assert!(error.contains("xz") && error.contains(".cacnk") && !to.exists(), "{error}");
            }
            other => panic!("{flags:?}: {other:?}"),
        }
    }
}

#[test]
fn a_dry_run_foretells_what_the_true_one_does() {
    if !has_casync() {
        return;
    }
    let dir = lab::scratch();
    let [image, to] = ["image", "to"].map(|name| dir.path().join(name));
    let mut rng = Rng(73);
    let layout = Layout::hole("image", 5 * MIB).data(MIB..3 * MIB, &mut rng);
    layout.write(&image);
    publish(dir.path(), &image, &[]);
    layout.data(2 * MIB..2 * MIB + 5000, &mut rng).write(&to);
    let before = fs::read(&to).expect("read");
    let dry = pulled(dir.path(), &to, &Options { dry_run: true, ..Options::default() }).expect("a dry run");
    assert_eq!(fs::read(&to).expect("read"), before);
    assert_no_leftovers(dir.path());
    let real = pulled(dir.path(), &to, &Options::default()).expect("a run");
    assert_same(&image, &to);
    let told =
        |pulled: &Pulled| (pulled.stats.sent_data_bytes, pulled.stats.files_sent, pulled.stats.matched_bytes);
    assert_eq!(told(&dry), told(&real));
    assert_eq!(real.stats.sent_data_bytes, 2 * 4096);
}

#[test]
fn a_device_gets_zeros_too_and_one_that_is_too_small_nothing() {
    if !has_casync() || !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    let [image, backing, small] = ["image", "backing", "small"].map(|name| dir.path().join(name));
    Layout::hole("image", 3 * MIB).data(MIB..MIB + 70_000, &mut Rng(74)).write(&image);
    publish(dir.path(), &image, &[]);
    fs::write(&backing, vec![7; 4 * MIB]).expect("write");
    fs::write(&small, vec![7; 2 * MIB]).expect("write");
    let device = Loop::over(&backing);
    pulled(dir.path(), &device.0, &Options { verify: true, ..Options::default() }).expect("a run");
    assert_begins_with(&device.0, &image);
    let again = pulled(dir.path(), &device.0, &Options::default()).expect("a run");
    assert_eq!((again.chunks, again.stats.written_bytes), (0, 0));
    let device = Loop::over(&small);
    let error = pulled(dir.path(), &device.0, &Options::default()).expect_err("no room").to_string();
    assert!(error.contains("2097152") && error.contains("3145728"), "{error}");
    drop(device);
    assert_eq!(fs::read(&small).expect("read"), vec![7; 2 * MIB]);
}

/// A packed image comes onto no device by mistake.
#[test]
fn what_is_no_disk_comes_onto_no_device() {
    if !has_casync() || !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    let [image, backing] = ["image", "backing"].map(|name| dir.path().join(name));
    fs::write(&image, [&b"\x1f\x8b\x08\0"[..], &[9; 100_000]].concat()).expect("write");
    publish(dir.path(), &image, &[]);
    fs::write(&backing, vec![7; MIB]).expect("write");
    let device = Loop::over(&backing);
    let error = pulled(dir.path(), &device.0, &Options::default()).expect_err("refused").to_string();
    assert!(error.contains("is packed (gzip)") && error.contains("x.caibx"), "{error}");
    pulled(dir.path(), &device.0, &Options { as_is: true, ..Options::default() }).expect("as it is");
    assert_begins_with(&device.0, &image);
}

/// What came before a chunk was missing is not fetched again.
#[test]
fn a_run_that_failed_is_gone_on_from() {
    if !has_casync() {
        return;
    }
    for fs in [Fs::Ext4, Fs::Btrfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        let store = lab::scratch();
        let [image, to] = ["image", "to"].map(|name| dir.path().join(name));
        Layout::dense("image", 30 * MIB, &mut Rng(75)).write(&image);
        publish(store.path(), &image, &[]);
        fs::write(&to, "as it was").expect("write");
        let index = Index::read(&Directory::open(store.path()).expect("open"), "x.caibx").expect("an index");
        let id = index.chunk(index.len() - 1).expect("a chunk").id;
        let name: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let chunk = store.path().join("default.castr").join(&name[..4]).join(format!("{name}.cacnk"));
        fs::rename(&chunk, store.path().join("aside")).expect("rename");
        let error =
            pulled(store.path(), &to, &Options::default()).expect_err("a chunk is missing").to_string();
        assert!(error.contains(&name) && error.contains("is not there"), "{error}");
        assert_eq!(fs::read(&to).expect("read"), b"as it was");
        fs::rename(store.path().join("aside"), &chunk).expect("rename");
        let came = pulled(store.path(), &to, &Options::default()).expect("a run");
        assert!(came.chunks < index.len() as u64 / 2, "{} of {}", came.chunks, index.len());
        assert_same(&image, &to);
        assert_no_leftovers(dir.path());
    }
}
