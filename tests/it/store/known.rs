//! What is known of a destination, and of files elsewhere, without reading all of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::common::check::{assert_same, same};
use crate::common::lab::{self, Loop};
use crate::common::layout::{Layout, Rng};
use crate::common::nginx::Nginx;
use crate::common::process::run;
use crate::common::tree::set_mode;
use crate::store::Store;

/// Two versions of one length and time, of which the newest is published; the files.
fn of_one_time(store: &Store) -> [std::path::PathBuf; 2] {
    let time = std::time::SystemTime::now() - std::time::Duration::from_secs(1000);
    [1, 2].map(|seed| {
        let image = store.path(&format!("v{seed}"));
        Layout::hole("disk", 4 << 20).data(1 << 20..2 << 20, &mut Rng(seed)).write(&image);
        fs::File::open(&image).unwrap().set_modified(time).unwrap();
        store.publish(&image, &["--as", &format!("v{seed}")]);
        image
    })
}

#[test]
fn a_file_elsewhere_is_taken_for_the_version_by_its_content_alone() {
    let store = Store::new(lab::scratch());
    let [old, new] = of_one_time(&store);
    let other = store.path("other");
    fs::create_dir(&other).unwrap();
    let root = {
        let listed = run(store.holesync().args(["versions", "--json"]).arg(store.image())).ok();
        let newest: serde_json::Value = serde_json::from_str(listed.stdout.lines().next().unwrap()).unwrap();
        format!("--root={}", newest["root"].as_str().unwrap())
    };
    for (option, pin) in [("link", ""), ("copy", ""), ("compare", ""), ("link", &root), ("copy", &root)] {
        let option = format!("--{option}-dest=../other");
        let flags: Vec<&str> = [option.as_str(), pin].into_iter().filter(|flag| !flag.is_empty()).collect();
        let pull = |version: &str, more: &[&str]| {
            let mut command = store.holesync();
            command.args(&flags).args(more).args(["--json"]).arg(store.url(version));
            run(command.arg(store.path("to/"))).ok()
        };
        let (there, copy) = (other.join("disk"), store.path("to/disk"));
        // The other version is there, with the same length and time.
        fs::copy(&old, &there).unwrap();
        let time = fs::metadata(&old).unwrap().modified().unwrap();
        fs::File::open(&there).unwrap().set_modified(time).unwrap();
        pull("", &[]);
        assert_same(&new, &copy);
        // And where it is what is to be replaced.
        fs::copy(&there, &copy).unwrap();
        fs::File::open(&copy).unwrap().set_modified(time).unwrap();
        pull("", &[]);
        assert_same(&new, &copy);
        fs::remove_file(&copy).unwrap();
        // The right one is.
        fs::copy(&new, &there).unwrap();
        fs::File::open(&there).unwrap().set_modified(time).unwrap();
        let foretold = pull("", &["-n"]);
        let done = pull("", &[]);
        for outcome in [foretold, done] {
            assert_eq!(outcome.count("sent_data_bytes"), 0, "{flags:?}");
        }
        match option.starts_with("--compare") {
            true => assert!(!copy.exists()),
            false => assert_same(&new, &copy),
        }
        let links = if option.starts_with("--link") { 2 } else { 1 };
        assert_eq!(fs::metadata(&there).unwrap().nlink(), links, "{flags:?}");
        let _ = fs::remove_file(&copy);
        fs::remove_file(&there).unwrap();
    }
    // The destination that was linked has come from the newest: what is older is refused.
    fs::copy(&new, other.join("disk")).unwrap();
    let to = store.path("to/");
    run(store.holesync().arg("--link-dest=../other").arg(store.url("")).arg(&to)).ok();
    fs::copy(store.path("store/disk.store/versions/v1"), store.path("store/disk.newest")).unwrap();
    run(store.holesync().arg(store.url("")).arg(&to)).code(12).says(&["which is newer"]);
}

#[test]
fn what_was_pulled_and_not_touched_costs_one_request_whatever_its_time() {
    let Some(nginx) = Nginx::plain() else { return };
    let store = Store::new(lab::scratch());
    let (backing, image) = (store.path("backing"), store.path("image"));
    Layout::hole("disk", 4 << 20).data(1 << 20..2 << 20, &mut Rng(1)).write(&image);
    fs::copy(&image, &backing).unwrap();
    // A device has no time.
    let device = lab::is_root().then(|| Loop::over(&backing));
    let sources = [Some(image.as_path()), device.as_ref().map(|device| device.0.as_path())];
    for (nth, source) in sources.into_iter().flatten().enumerate() {
        let name = format!("disk{nth}");
        run(store.holesync().arg("publish").arg(source).arg(nginx.root().join(&name))).ok();
        for flags in [&[][..], &["--no-times"]] {
            let copy = store.path("to/copy");
            let pull = || run(store.holesync().args(flags).arg(nginx.url(&name)).arg(&copy)).ok();
            pull();
            assert_same(&image, &copy);
            nginx.forget();
            pull();
            assert_eq!(nginx.answered(1).len(), 1, "{name} {flags:?}");
            fs::remove_file(&copy).unwrap();
        }
    }
}

#[test]
fn a_record_that_cannot_be_read_lets_no_older_version_in() {
    let store = Store::new(lab::scratch());
    let [_, new] = of_one_time(&store);
    store.pull("", &[]).ok();
    fs::copy(store.path("store/disk.store/versions/v1"), store.path("store/disk.newest")).unwrap();
    let pulled = store.path("home/.local/state/holesync/pulled");
    let record = fs::read_dir(&pulled).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&record).unwrap();
    let refused = |why: &str| {
        let outcome = store.pull("", &[]).code(23);
        outcome.says(&[record.to_str().unwrap(), why, "name the version"]);
        assert_same(&new, &store.copy());
    };
    for damaged in [&b""[..], &whole[..whole.len() / 2]] {
        fs::write(&record, damaged).unwrap();
        refused("it is damaged");
    }
    fs::write(&record, &whole).unwrap();
    set_mode(&pulled, 0o755);
    refused("must be yours alone");
    // What was never pulled has none.
    let other = store.path("to/other");
    run(store.holesync().arg(store.url("")).arg(&other)).ok().says(&["cannot record the version"]);
    // Who names a version knows which one is wanted, and where it can be written the record is right again.
    store.pull("@v2", &["-I"]).ok();
    set_mode(&pulled, 0o700);
    fs::write(&record, "").unwrap();
    store.pull("@v2", &["-I"]).ok();
    store.pull("", &[]).code(12).says(&["which is newer"]);
}

#[test]
fn a_device_is_known_by_the_link_that_names_it() {
    if !lab::is_root() {
        return;
    }
    let store = Store::new(lab::scratch());
    let [old, new] = of_one_time(&store);
    let (disk, link) = (store.path("disk"), store.path("by-id"));
    fs::write(&disk, vec![0; 4 << 20]).unwrap();
    let pull = |to: &Path| run(store.holesync().arg(store.url("")).arg(to));
    let first = Loop::over(&disk);
    std::os::unix::fs::symlink(&first.0, &link).unwrap();
    pull(&link).ok();
    assert!(same(&new, &disk));
    // After a start of the machine it is another device, and another disk has its name.
    let second = Loop::over(&disk);
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&second.0, &link).unwrap();
    fs::copy(store.path("store/disk.store/versions/v1"), store.path("store/disk.newest")).unwrap();
    drop(first);
    pull(&link).code(12).says(&["which is newer"]);
    assert!(same(&new, &disk));
    let other = store.path("other");
    fs::write(&other, vec![0; 4 << 20]).unwrap();
    let third = Loop::over(&other);
    pull(&third.0).ok();
    assert!(same(&old, &other));
}
