//! What a store keeps, and what goes.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::check::assert_same;
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::process::{Outcome, run};
use crate::store::Store;

impl Store {
    fn prune(&self, flags: &[&str]) -> Outcome {
        run(self.holesync().args(["prune", "--json"]).args(flags).arg(self.image()))
    }

    fn versions(&self) -> Vec<String> {
        let listed = run(self.holesync().arg("versions").arg(self.image())).ok();
        listed.stdout.lines().map(|line| line.split(' ').next().unwrap().to_string()).collect()
    }

    fn packs(&self) -> usize {
        fs::read_dir(self.path("store/disk.store/packs")).unwrap().count()
    }

    /// Ten versions, each of which has a MiB that the others have not.
    fn ten(&self) -> Vec<PathBuf> {
        let mut rng = Rng(10);
        let mut layout = Layout::hole("disk", 16 << 20).data(0..1 << 20, &mut rng);
        let mut images = Vec::new();
        for nth in 0..10 {
            layout = layout.data((nth + 1) << 20..(nth + 2) << 20, &mut rng);
            let image = self.path(&format!("v{nth}"));
            layout.write(&image);
            self.publish(&image, &["--as", &format!("v{nth}")]);
            images.push(image);
        }
        images
    }
}

fn value(outcome: &Outcome) -> serde_json::Value {
    serde_json::from_str(outcome.stdout.trim()).unwrap()
}

#[test]
fn versions_that_are_kept_stay_whole_and_what_none_needs_goes_after_its_grace() {
    let store = Store::new(lab::scratch());
    let images = store.ten();
    assert_eq!(store.versions().len(), 10);
    let foretold = store.prune(&["--keep=3", "-n"]).ok();
    assert_eq!(store.versions().len(), 10);
    let first = store.prune(&["--keep=3"]).ok();
    assert_eq!(value(&foretold)["condemned"], value(&first)["condemned"]);
    assert_eq!(value(&first)["removed"], 0, "the grace is a day");
    assert_eq!(store.versions(), ["v9", "v8", "v7"]);
    let before = store.packs();
    store.prune(&["--keep=3"]).ok();
    assert_eq!(store.packs(), before);
    let last = value(&store.prune(&["--keep=3", "--grace=0s"]).ok());
    assert!(last["removed"].as_u64().unwrap() >= 14, "{last}");
    for (nth, image) in images.iter().enumerate() {
        let pulled = store.pull(&format!("@v{nth}"), &["-I"]);
        if nth < 7 {
            pulled.code(23).says(&["the store has no version"]);
        } else {
            pulled.ok();
            assert_same(image, &store.copy());
        }
    }
    run(store.holesync().arg("check").arg(store.image())).ok();
    let unneeded = value(&store.prune(&["--keep=3", "--grace=0s"]).ok());
    assert_eq!((&unneeded["condemned"], &unneeded["removed"]), (&0.into(), &0.into()));
    let condemned = store.path("store/disk.store/condemned");
    assert_eq!(fs::read_dir(condemned).unwrap().count(), 0);
}

#[test]
fn what_is_condemned_is_written_anew_and_what_is_needed_again_stays() {
    let store = Store::new(lab::scratch());
    let mut rng = Rng(3);
    let (one, other) = (Layout::dense("one", 2 << 20, &mut rng), Layout::dense("other", 2 << 20, &mut rng));
    let image = store.path("image");
    let publish = |layout: &Layout| {
        layout.write(&image);
        store.publish(&image, &[])
    };
    publish(&one);
    publish(&other);
    store.prune(&["--keep=1"]).ok();
    // The blocks of the first one are there, in a pack that will go.
    assert_eq!(publish(&one)["new_blocks"], 32);
    assert_eq!(store.packs(), 3);
    store.prune(&["--keep=1", "--grace=0s"]).ok();
    store.pull("", &[]).ok();
    assert_same(&image, &store.copy());
    assert_eq!(store.packs(), 1);
}

#[test]
fn versions_that_are_young_stay() {
    let store = Store::new(lab::scratch());
    store.ten();
    store.prune(&["--keep=3", "--older-than=1h"]).ok();
    assert_eq!(store.versions().len(), 10);
    store.prune(&["--keep=3", "--older-than=0s"]).ok();
    assert_eq!(store.versions().len(), 3);
    store.prune(&["--keep=0"]).code(1);
}

#[test]
fn what_a_publisher_left_that_was_killed_goes_and_hurts_nobody() {
    let store = Store::new(lab::scratch());
    let (_, image) = store.begin();
    let litter = |path: &str| {
        let path: &Path = &store.path(path);
        fs::write(path, "half").unwrap();
    };
    litter("store/disk.store/packs/0123456789abcdef0123456789abcdef");
    litter("store/disk.store/maps/0123456789abcdef0123456789abcdef");
    store.pull("", &["-I"]).ok();
    store.prune(&["--keep=1", "--grace=0s"]).ok();
    assert_eq!(store.packs(), 1);
    store.pull("", &["-I"]).ok();
    assert_same(&image, &store.copy());
}

#[test]
fn a_pack_that_is_gone_is_written_anew_by_who_publishes() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let packs = store.path("store/disk.store/packs");
    for pack in fs::read_dir(&packs).unwrap() {
        fs::remove_file(pack.unwrap().path()).unwrap();
    }
    run(store.holesync().arg("check").arg(store.image())).code(23);
    layout.data(0..4096, &mut Rng(9)).write(&image);
    assert_eq!(store.publish(&image, &[])["new_blocks"], 33);
    store.pull("", &[]).ok();
    assert_same(&image, &store.copy());
    store.prune(&["--keep=1", "--grace=0s"]).ok();
    run(store.holesync().arg("check").arg(store.image())).ok();
}

#[test]
fn the_newest_is_named_again_where_a_publisher_was_killed_before_that() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let newest = store.path("store/disk.newest");
    let old = fs::read(&newest).unwrap();
    layout.data(0..4096, &mut Rng(9)).write(&image);
    store.publish(&image, &[]);
    fs::write(&newest, &old).unwrap();
    run(store.holesync().arg("check").arg(store.image())).code(23).says(&["publish again"]);
    // What is named as the newest stays, whatever is kept.
    store.prune(&["--keep=1", "--grace=0s"]).ok();
    store.pull("", &["-I"]).ok();
    assert_eq!(store.publish(&image, &[])["new"], false);
    store.pull("", &[]).ok();
    assert_same(&image, &store.copy());
    run(store.holesync().arg("check").arg(store.image())).ok();
}
