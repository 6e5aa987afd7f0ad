//! What a store keeps, and what goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::common::account::which;
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

    /// Makes all objects three days older: what is young may be of somebody who publishes just now.
    fn age(&self) {
        let past = SystemTime::now() - Duration::from_secs(3 * 86_400);
        for kind in ["packs", "patches", "places", "maps"] {
            for object in fs::read_dir(self.path(&format!("store/disk.store/{kind}"))).into_iter().flatten() {
                fs::File::open(object.unwrap().path()).unwrap().set_modified(past).unwrap();
            }
        }
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
    store.age();
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
fn pulls_while_versions_go_are_right_or_an_error() {
    let store = Store::new(lab::scratch());
    let images = store.ten();
    let is_pruned = AtomicBool::new(false);
    let pull = |worker: usize| {
        let copy = store.path(&format!("to/copy{worker}"));
        let (mut right, mut refused, mut nth, mut left) = (0, 0, worker, 10);
        // Some more when all that goes is gone.
        while left > 0 {
            left -= u32::from(is_pruned.load(Ordering::Relaxed));
            nth = (nth + 3) % images.len();
            let pulled = run(store.holesync().arg("-I").arg(store.url(&format!("@v{nth}"))).arg(&copy));
            if pulled.code == 0 {
                assert_same(&images[nth], &copy);
                right += 1;
            } else {
                assert!(nth < 7, "a version that is kept: {pulled}");
                refused += 1;
            }
        }
        (right, refused)
    };
    let pulls = thread::scope(|scope| {
        let pulls: Vec<_> = (0..3).map(|worker| scope.spawn(move || pull(worker))).collect();
        thread::sleep(Duration::from_millis(300));
        for keep in (3..10).rev() {
            store.prune(&[&format!("--keep={keep}"), "--grace=0s"]).ok();
        }
        is_pruned.store(true, Ordering::Relaxed);
        pulls.into_iter().map(|pull| pull.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(pulls.iter().all(|(right, refused)| *right > 0 && *refused > 0), "{pulls:?}");
    assert_eq!(store.versions(), ["v9", "v8", "v7"]);
    let unneeded = value(&store.prune(&["--keep=3", "--grace=0s"]).ok());
    assert_eq!((&unneeded["condemned"], &unneeded["removed"]), (&0.into(), &0.into()));
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
    store.age();
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
fn what_a_prune_takes_from_a_publisher_is_published_anew() {
    let store = Store::new(lab::scratch());
    let mut rng = Rng(4);
    let (image, key) = (store.path("image"), store.path("key"));
    for version in ["v1", "v2"] {
        Layout::dense("disk", 2 << 20, &mut rng).write(&image);
        store.publish(&image, &["--as", version]);
        fs::rename(&image, store.path(version)).unwrap();
    }
    store.age();
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)).ok();
    // Just before its head is put there, all that the new version is made of goes with the old one. The first
    // time it is asked which key that is.
    let (program, real) = (store.holesync().get_program().to_owned(), which("ssh-keygen"));
    let stand_in = format!(
        "#!/bin/sh\nmkdir '{asked}' 2>/dev/null || {{ mkdir '{once}' 2>/dev/null && '{program}' prune --keep=1 --grace=0s '{image}' >&2; }}\nexec '{real}' \"$@\"\n",
        asked = store.path("asked").display(),
        once = store.path("once").display(),
        program = program.display(),
        image = store.image().display(),
        real = real.display()
    );
    fs::create_dir(store.path("bin")).unwrap();
    lab::script(&store.path("bin/ssh-keygen"), stand_in);
    let path = format!("{}:{}", store.path("bin").display(), std::env::var("PATH").unwrap());
    let published = run(store.holesync().env("PATH", path).args(["publish", "--as=v3", "--sign"]).args([
        &key,
        &store.path("v1"),
        &store.image(),
    ]))
    .ok();
    published.says(&["by a prune that ran meanwhile: all is looked at anew"]);
    assert_eq!(store.versions(), ["v3", "v2"]);
    run(store.holesync().arg("check").arg(store.image())).ok();
    store.pull("", &[]).ok();
    assert_same(&store.path("v1"), &store.copy());
}

#[test]
fn what_is_young_may_be_of_somebody_who_publishes_just_now() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    layout.data(0..4096, &mut Rng(9)).write(&image);
    store.publish(&image, &[]);
    let first = value(&store.prune(&["--keep=1"]).ok());
    assert_eq!((&first["condemned"], &first["removed"]), (&0.into(), &0.into()), "{first}");
    store.age();
    // A pack of the first version is in use; its map and its places are not.
    let then = value(&store.prune(&["--keep=1"]).ok());
    assert_eq!((&then["condemned"], &then["removed"]), (&2.into(), &0.into()), "{then}");
}

#[test]
fn what_was_condemned_by_a_clock_that_was_ahead_goes_all_the_same() {
    let store = Store::new(lab::scratch());
    store.begin();
    let pack = "disk.store/packs/0123456789abcdef0123456789abcdef";
    fs::write(store.path(&format!("store/{pack}")), "half").unwrap();
    store.age();
    store.prune(&["--keep=1"]).ok();
    let condemned =
        || fs::read_dir(store.path("store/disk.store/condemned")).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(condemned()).unwrap();
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    let since = list["since"].as_u64().unwrap();
    fs::write(condemned(), text.replace(&since.to_string(), &(since + 1_000_000_000).to_string())).unwrap();
    store.prune(&["--keep=1"]).ok();
    let list: serde_json::Value = serde_json::from_slice(&fs::read(condemned()).unwrap()).unwrap();
    assert!(list["since"].as_u64().unwrap() < since + 1000, "{list}");
    store.prune(&["--keep=1", "--grace=0s"]).ok();
    assert_eq!(store.packs(), 1);
}

#[test]
fn what_a_killed_publisher_had_not_finished_goes_after_its_grace() {
    let store = Store::new(lab::scratch());
    store.begin();
    let of = |name: &str| store.path(&format!("store/{name}.holesync-0123456789abcdef"));
    let unfinished = ["disk.store/packs/.aa", "disk.store/versions/.v1", ".disk.newest"].map(of);
    for path in &unfinished {
        fs::write(path, "half").unwrap();
    }
    let other = of(".disk2.newest");
    fs::write(&other, "half").unwrap();
    for grace in ["1d", "0s"] {
        store.prune(&["--keep=1", &format!("--grace={grace}")]).ok();
        assert!(unfinished.iter().all(|path| path.exists()), "they may be written to just now");
    }
    let past = SystemTime::now() - Duration::from_secs(2 * 3600);
    unfinished.iter().for_each(|path| fs::File::open(path).unwrap().set_modified(past).unwrap());
    store.prune(&["--keep=1"]).ok();
    assert!(unfinished.iter().all(|path| path.exists()), "the grace is a day");
    store.prune(&["--keep=1", "--grace=0s", "-n"]).ok();
    assert!(unfinished.iter().all(|path| path.exists()));
    store.prune(&["--keep=1", "--grace=0s"]).ok();
    assert!(!unfinished.iter().any(|path| path.exists()));
    assert!(other.exists(), "it is of another image");
}

#[test]
fn a_version_that_is_damaged_hinders_no_other() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let places = fs::read_dir(store.path("store/disk.store/places")).unwrap().next().unwrap().unwrap();
    fs::write(places.path(), "damaged").unwrap();
    layout.data(0..4096, &mut Rng(9)).write(&image);
    let published = run(store.holesync().arg("publish").arg(&image).arg(store.image())).ok();
    published.says(&["cannot be built upon"]);
    store.pull("", &[]).ok();
    assert_same(&image, &store.copy());
    let pruned = store.prune(&["--keep=2"]).code(23);
    pruned.says(&[places.path().to_str().unwrap(), "store/disk.store/versions/", "nothing more is removed"]);
    store.prune(&["--keep=1"]).ok();
    run(store.holesync().arg("check").arg(store.image())).ok();
}

#[test]
fn a_name_under_which_nothing_was_published_is_told() {
    let store = Store::new(lab::scratch());
    store.begin();
    let other = store.path("store/dsik");
    for verb in [&["versions"][..], &["check"], &["prune", "--keep=3"]] {
        let told = run(store.holesync().args(verb).arg(&other)).code(23);
        told.says(&[other.to_str().unwrap(), "published"]);
    }
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

#[test]
fn a_newest_version_that_is_not_whole_is_published_again() {
    let store = Store::new(lab::scratch());
    let (_, image) = store.begin();
    let remove = |kind: &str| {
        let dir = store.path(&format!("store/disk.store/{kind}"));
        fs::read_dir(dir).unwrap().for_each(|object| fs::remove_file(object.unwrap().path()).unwrap());
    };
    for kind in ["maps", "places", "packs"] {
        assert_eq!(store.publish(&image, &[])["new"], false, "{kind}");
        remove(kind);
        assert_eq!(store.publish(&image, &[])["new"], true, "{kind}");
        store.pull("", &["-I"]).ok();
        assert_same(&image, &store.copy());
    }
    // A pack that is too short is none.
    for pack in fs::read_dir(store.path("store/disk.store/packs")).unwrap() {
        let pack = fs::OpenOptions::new().write(true).open(pack.unwrap().path()).unwrap();
        pack.set_len(pack.metadata().unwrap().len() / 2).unwrap();
    }
    assert_eq!(store.publish(&image, &[])["new"], true);
    fs::remove_file(store.copy()).unwrap();
    store.pull("", &["-I"]).ok();
    assert_same(&image, &store.copy());
}

#[test]
fn a_publisher_that_was_killed_before_the_newest_is_run_again() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let newest = store.path("store/disk.newest");
    let old = fs::read(&newest).unwrap();
    layout.clone().data(0..4096, &mut Rng(9)).write(&image);
    assert_eq!(store.publish(&image, &["--as=v2"])["new"], true);
    fs::write(&newest, &old).unwrap();
    assert_eq!(store.publish(&image, &["--as=v2"])["new"], false);
    assert_ne!(fs::read(&newest).unwrap(), old);
    run(store.holesync().arg("check").arg(store.image())).ok();
    layout.data(0..4096, &mut Rng(10)).write(&image);
    let other = run(store.holesync().args(["publish", "--as=v2"]).arg(&image).arg(store.image()));
    other.code(23).says(&["has a version v2 already"]);
}

#[test]
fn what_lies_elsewhere_is_not_nothing() {
    let store = Store::new(lab::scratch());
    let (_, image) = store.begin();
    let (versions, elsewhere) = (store.path("store/disk.store/versions"), store.path("elsewhere"));
    fs::rename(&versions, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &versions).unwrap();
    for verb in [&["versions"][..], &["check"], &["prune", "--keep=1", "--grace=0s"]] {
        run(store.holesync().args(verb).arg(store.image())).code(23).says(&["symlink"]);
    }
    run(store.holesync().arg("publish").arg(&image).arg(store.image())).code(23).says(&["symlink"]);
    fs::remove_file(&versions).unwrap();
    let pruned = store.prune(&["--keep=1", "--grace=0s"]).code(23);
    pruned.says(&["nothing is removed"]);
    fs::rename(&elsewhere, &versions).unwrap();
    run(store.holesync().arg("check").arg(store.image())).ok();
}

#[test]
fn a_head_that_is_damaged_hinders_nobody_who_publishes() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let damaged = store.path("store/disk.store/versions/v0");
    fs::write(&damaged, "").unwrap();
    fs::create_dir(store.path("store/disk.store/versions/directory")).unwrap();
    layout.data(0..4096, &mut Rng(9)).write(&image);
    let published = run(store.holesync().arg("publish").arg(&image).arg(store.image())).ok();
    published.says(&["passed over", damaged.to_str().unwrap()]);
    store.pull("", &[]).ok();
    assert_same(&image, &store.copy());
    let listed = run(store.holesync().arg("versions").arg(store.image())).code(12);
    assert_eq!(listed.stdout.lines().count(), 2);
    store.prune(&["--keep=1", "--grace=0s"]).code(12).says(&["remove it if nobody needs it"]);
    fs::remove_file(damaged).unwrap();
    store.prune(&["--keep=1", "--grace=0s"]).ok();
}
