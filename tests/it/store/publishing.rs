//! What is published while others write to the image or to the store, and what is wrong with it is told.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;

use crate::common::account::which;
use crate::common::check::assert_same;
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::process::{Outcome, run};
use crate::common::trace::{Fault, Tracer, When};
use crate::store::Store;
use crate::store::s3::{KEY, S3, SECRET};

impl Store {
    fn check(&self) -> Outcome {
        run(self.holesync().arg("check").arg(self.image()))
    }
}

/// The newest head, changed, under a name.
fn put_head(store: &Store, name: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let newest = fs::read(store.path("store/disk.newest")).unwrap();
    let mut head = serde_json::from_slice(&newest).unwrap();
    change(&mut head);
    fs::write(store.path("store").join(name), format!("{head}\n")).unwrap();
}

#[test]
fn an_image_that_grows_is_published_as_it_is_then_or_not_at_all() {
    let store = Store::new(lab::scratch());
    let image = store.path("image");
    let (mut published, mut refused) = (0, 0);
    for nth in 0..30_u8 {
        let mut file = fs::File::create(&image).unwrap();
        file.write_all(&[nth; 65536]).unwrap();
        let growing = thread::spawn(move || {
            thread::sleep(Duration::from_millis(nth.into()));
            file.write_all(&[100 + nth; 150_000]).unwrap();
        });
        let done = run(store.holesync().args(["publish", "--json"]).arg(&image).arg(store.image()));
        growing.join().unwrap();
        if done.code == 0 {
            published += 1;
            fs::remove_file(store.copy()).ok();
            store.pull("", &[]).ok();
            let (came, now) = (fs::read(store.copy()).unwrap(), fs::metadata(&image).unwrap());
            let head: serde_json::Value =
                serde_json::from_slice(&fs::read(store.path("store/disk.newest")).unwrap()).unwrap();
            // With the time of what it has grown to it has that length.
            let is_grown = head["modified"] == serde_json::json!([now.mtime(), now.mtime_nsec()]);
            let length = if is_grown { now.len() } else { 65536 };
            assert_eq!(came.len() as u64, length, "{nth}: {done}");
        } else {
            done.code(23).says(&["changed while it was read"]);
            refused += 1;
        }
    }
    lab::count(&format!("images that grew: {published} published, {refused} refused"));
}

#[test]
fn a_time_that_is_taken_is_gone_past() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let later = UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 + 3_600_000_000_000;
    let versions = store.path("store/disk.store/versions");
    // The newest is of a time to come, and what would be behind it has been begun by others.
    put_head(&store, "disk.newest", |head| head["time"] = later.into());
    put_head(&store, "disk.store/versions/future", |head| {
        head["time"] = later.into();
        head["version"] = "future".into();
    });
    layout.clone().data(0..4096, &mut Rng(9)).write(&image);
    let next = store.publish(&image, &[])["version"].as_str().unwrap().to_string();
    fs::write(versions.join(&next), "").unwrap();
    put_head(&store, "disk.newest", |head| head["time"] = later.into());
    layout.data(0..4096, &mut Rng(10)).write(&image);
    let published = run(store.holesync().arg("publish").arg(&image).arg(store.image())).ok();
    assert_eq!(published.stderr.matches("yet to come").count(), 1, "{published}");
    assert!(!published.stdout.contains(&format!("@{next}:")), "{published}");
    // A time of which there is none that is later is none.
    put_head(&store, "disk.newest", |head| head["time"] = u64::MAX.into());
    run(store.holesync().arg("publish").arg(&image).arg(store.image())).ok();
    let _ = fs::remove_file(versions.join(&next));
    fs::remove_file(versions.join("future")).unwrap();
    store.check().ok();
}

#[test]
fn a_time_that_nobody_would_believe_is_followed_by_nobody() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    layout.data(0..4096, &mut Rng(9)).write(&image);
    let newest = store.path("store/disk.newest");
    let other = store.path("store/disk.store/versions/other");
    let publish = || run(store.holesync().arg("publish").arg(&image).arg(store.image()));
    let in_two_days = UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 + 2 * 86_400_000_000_000;
    // The latest time that there is has none behind it.
    for time in [in_two_days, i64::MAX as u64] {
        let there = fs::read(&newest).unwrap();
        put_head(&store, "disk.newest", |head| head["time"] = time.into());
        put_head(&store, "disk.store/versions/other", |head| head["version"] = "other".into());
        let both = format!("remove {} and {}", other.display(), newest.display());
        publish().code(23).says(&["a time that is yet to come", &both]);
        fs::remove_file(&other).unwrap();
        publish().code(23).says(&[&format!("remove {}, and publish again", newest.display())]);
        assert_eq!(
            fs::read_dir(store.path("store/disk.store/packs")).unwrap().count(),
            1,
            "it is told at once"
        );
        fs::write(&newest, there).unwrap();
    }
    publish().ok();
    store.pull("", &[]).ok();
    assert_same(&image, &store.copy());
}

#[test]
fn what_is_wrong_is_told_with_all_that_is_right() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    layout.clone().data(0..4096, &mut Rng(9)).write(&image);
    store.publish(&image, &["--as=v2"]);
    let (versions, newest) = (store.path("store/disk.store/versions"), store.path("store/disk.newest"));
    fs::write(versions.join("long"), vec![b'x'; 20_000]).unwrap();
    fs::write(versions.join("short"), "").unwrap();
    let whole = fs::read(&newest).unwrap();
    fs::write(&newest, "damaged\n").unwrap();
    for verb in ["check", "versions"] {
        let told = run(store.holesync().arg(verb).arg(store.image())).code(12);
        assert_eq!(told.stdout.lines().count(), 2, "{told}");
        assert!(told.stdout.contains("v2 "), "{told}");
        told.says(&[
            "versions/long: it is longer than",
            "versions/short: ",
            "publish the image again, which",
        ]);
    }
    // Whoever publishes passes over both, and names the newest again.
    layout.data(0..4096, &mut Rng(10)).write(&image);
    let published = run(store.holesync().arg("publish").arg(&image).arg(store.image())).ok();
    published.says(&["passed over: ", "versions/long", "versions/short"]);
    assert_ne!(fs::read(&newest).unwrap(), whole);
    store.pull("", &[]).ok();
    assert_same(&image, &store.copy());
    for name in ["long", "short"] {
        fs::remove_file(versions.join(name)).unwrap();
    }
    store.check().ok();
}

#[test]
fn one_version_of_a_bucket_that_is_damaged_does_not_end_the_look_at_others() {
    let Some(server) = S3::start() else { return };
    let store = Store::new(lab::scratch());
    let go = |words: &[&str]| {
        let mut command = store.holesync();
        command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET).args(words);
        run(command
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ENDPOINT_URL", format!("http://{}", server.address())))
    };
    let image = store.path("image");
    for version in ["v1", "v2", "v3"] {
        Layout::dense("disk", 1 << 20, &mut Rng(version.as_bytes()[1].into())).write(&image);
        let began = SystemTime::now();
        go(&["publish", "--as", version, image.to_str().unwrap(), "s3://images/disk"]).ok();
        let packs = fs::read_dir(server.file("disk.store/packs")).unwrap().map(|pack| pack.unwrap().path());
        let new = packs.max_by_key(|pack| fs::metadata(pack).unwrap().modified().unwrap()).unwrap();
        assert!(fs::metadata(&new).unwrap().modified().unwrap() >= began - Duration::from_secs(1));
        if version == "v3" {
            let mut bytes = fs::read(&new).unwrap();
            bytes[500_000] ^= 1;
            fs::write(&new, bytes).unwrap();
        }
    }
    let told = go(&["check", "s3://images/disk"]).code(12);
    for version in ["v1", "v2"] {
        assert!(told.stdout.contains(&format!("disk@{version} is whole")), "{told}");
    }
    let told = told.says(&["remove s3://images/disk.store/versions/v3, which gives up"]);
    assert!(!told.stderr.contains("interrupted"), "{told}");
}

/// Frames of about 256 KiB lie in the order of the image.
#[test]
fn what_is_to_be_done_about_a_damaged_pack_harms_no_version_that_is_whole() {
    let store = Store::new(lab::scratch());
    let (image, second) = (store.path("image"), store.path("second"));
    let layout = Layout::hole("disk", 8 << 20).data(1 << 20..3 << 20, &mut Rng(1));
    layout.write(&image);
    layout.punch(1 << 20..3 << 19).write(&second);
    store.publish(&image, &["--as=v1"]);
    let packs =
        || fs::read_dir(store.path("store/disk.store/packs")).unwrap().map(|pack| pack.unwrap().path());
    let (pack, head) = (packs().next().unwrap(), |version: &str| {
        store.path(&format!("store/disk.store/versions/{version}"))
    });
    let mut bytes = fs::read(&pack).unwrap();
    bytes[1000] ^= 1;
    // Nothing else has what it had: it is written anew under that name.
    fs::write(&pack, &bytes).unwrap();
    store.check().code(12).says(&[pack.to_str().unwrap(), &format!("remove {}", head("v1").display())]);
    fs::remove_file(head("v1")).unwrap();
    assert_eq!(store.publish(&image, &["--as=v1"])["new_blocks"], 32);
    store.check().ok();
    // Another version needs what is right in it.
    store.publish(&second, &["--as=v2"]);
    fs::write(&pack, &bytes).unwrap();
    let told = store.check().code(12).says(&[&format!("remove {}", head("v1").display()), "leave the pack"]);
    assert!(told.stdout.contains("disk@v2 is whole"), "{told}");
    fs::remove_file(head("v1")).unwrap();
    assert_eq!(store.publish(&image, &["--as=v3"])["new_blocks"], 8);
    store.check().ok();
    for (version, image) in [("@v2", &second), ("@v3", &image)] {
        store.pull(version, &["-I"]).ok();
        assert_same(image, &store.copy());
    }
    // What is not there is told with what to do, too.
    let maps = store.path("store/disk.store/maps");
    fs::remove_dir_all(&maps).unwrap();
    store.check().code(23).says(&[maps.to_str().unwrap(), "is not there", "which gives up that version"]);
}

/// What is to be removed is never what may be all that there is of an image.
#[test]
fn a_plain_image_that_is_another_one_is_to_be_published_again() {
    let store = Store::new(lab::scratch());
    fs::create_dir(store.path("store")).unwrap();
    let image = store.image();
    Layout::dense("disk", 1 << 20, &mut Rng(1)).write(&image);
    store.publish(&image, &["--raw"]);
    store.check().ok();
    let mut bytes = fs::read(&image).unwrap();
    bytes[500_000] ^= 1;
    fs::write(&image, bytes).unwrap();
    let told = store.check().code(12).says(&["publish the image again"]);
    assert!(!told.stderr.contains("remove"), "{told}");
    store.publish(&image, &["--raw"]);
    store.check().ok();
    // Where it had no data, and behind its end.
    Layout::hole("disk", 1 << 20).data(0..1 << 19, &mut Rng(1)).write(&image);
    store.publish(&image, &["--raw"]);
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(b"x", 900_000).unwrap();
    store.check().code(12).says(&["it is another image than was published"]);
    file.write_all_at(b"\0", 900_000).unwrap();
    store.check().ok();
    file.write_all_at(b"xyz", 1 << 20).unwrap();
    store.check().code(12).says(&["it has 1048579 bytes, and 1048576 were published"]);
    fs::remove_file(&image).unwrap();
    store.check().code(12).says(&["it is not there"]);
}

#[test]
fn a_plain_image_is_pulled_still_where_it_could_not_be_published_again() {
    let store = Store::new(lab::scratch());
    fs::create_dir(store.path("store")).unwrap();
    let (image, map, newest) = (store.image(), store.path("store/disk.map"), store.path("store/disk.newest"));
    Layout::dense("disk", 1 << 20, &mut Rng(1)).write(&image);
    store.publish(&image, &["--raw", "--as=v1"]);
    let inode = || fs::metadata(&map).unwrap().ino();
    let (old, is_old) = (inode(), |version: &str| {
        store.publish(&image, &["--raw", &format!("--as={version}")])["new"] == false
    });
    assert!(is_old("v1"));
    assert_eq!(inode(), old, "it is being read, perhaps");
    fs::write(&map, "damaged").unwrap();
    assert!(is_old("v1"));
    store.check().ok();
    // A key that signs no more when the head is there.
    let (bin, asked, real) = (store.path("bin"), store.path("asked"), which("ssh-keygen"));
    let key = store.path("key");
    run(Command::new(&real).args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)).ok();
    fs::create_dir(&bin).unwrap();
    let once = format!("#!/bin/sh\nmkdir '{}' && exec '{}' \"$@\"\n", asked.display(), real.display());
    fs::write(bin.join("ssh-keygen"), once).unwrap();
    fs::set_permissions(bin.join("ssh-keygen"), PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut command = store.holesync();
    command.env("PATH", path).args(["publish", "--raw", "-B", "128K", "--sign"]).arg(&key);
    run(command.arg(&image).arg(&image)).code(23).says(&["cannot sign"]);
    assert!(asked.exists());
    store.check().ok();
    store.pull("", &["-I"]).ok();
    // What lasts first is the image.
    let head = fs::read(&newest).unwrap();
    let mut command = store.holesync();
    command.args(["publish", "--raw", "--as=v2"]).arg(&image).arg(&image);
    let when = When::Nth("fsync", 1, Fault::Fails(Errno::EIO));
    let (tracer, mut command) = Tracer::command(&store.path(""), when, &command);
    run(&mut command).code(11).says(&[&format!("cannot sync {}", image.display())]);
    tracer.seen();
    assert_eq!(fs::read(&newest).unwrap(), head);
}

#[test]
fn a_plain_image_gets_the_name_of_no_version_in_packs() {
    let store = Store::new(lab::scratch());
    let (_, image) = store.begin();
    store.publish(&image, &["--as=v8"]);
    fs::copy(&image, store.image()).unwrap();
    let published =
        run(store.holesync().args(["publish", "--raw", "--as=v8"]).arg(&image).arg(store.image()));
    published.code(23).says(&["has a version v8 already"]);
    assert!(!store.path("store/disk.map").exists());
    store.publish(&image, &["--raw", "--as=v9"]);
    // Nor does one in packs get its name.
    let published = run(store.holesync().args(["publish", "--as=v9"]).arg(&image).arg(store.image()));
    published.code(23).says(&["has a version v9 already"]);
}

#[test]
fn a_version_of_which_a_part_is_condemned_is_published_anew() {
    let store = Store::new(lab::scratch());
    let (_, image) = store.begin();
    let map = fs::read_dir(store.path("store/disk.store/maps")).unwrap().next().unwrap().unwrap();
    let map = format!("disk.store/maps/{}", map.file_name().to_str().unwrap());
    let condemned = store.path("store/disk.store/condemned");
    fs::create_dir_all(&condemned).unwrap();
    let list = serde_json::json!({"since": 1_700_000_000, "objects": [map]});
    fs::write(condemned.join("1-00000000000000000000000000000000"), list.to_string()).unwrap();
    let again = store.publish(&image, &[]);
    assert_eq!((&again["new"], &again["new_blocks"]), (&true.into(), &0.into()), "{again}");
    assert_eq!(store.publish(&image, &[])["new"], false);
}
