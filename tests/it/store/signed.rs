//! Which version is believed to be the newest, and whose it is.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::common::check::assert_same;
use crate::common::lab;
use crate::common::layout::Rng;
use crate::common::process::run;
use crate::store::Store;

impl Store {
    fn key(&self, name: &str, kind: &str) -> PathBuf {
        let key = self.path(name);
        run(Command::new("ssh-keygen").args(["-q", "-t", kind, "-N", "", "-f"]).arg(&key)).ok();
        key
    }

    /// A new key: what signs with it, and what trusts it.
    fn signing(&self) -> [String; 2] {
        let key = self.key("key", "ed25519");
        [format!("--sign={}", key.display()), format!("--trust={}.pub", key.display())]
    }
}

#[test]
fn what_is_signed_by_a_trusted_key_is_pulled_and_nothing_else() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let (key, other) = (store.key("key", "ed25519"), store.key("other", "ecdsa"));
    let trust = |key: &str| format!("--trust={}", store.path(key).display());
    store.pull("", &["-I", &trust("key.pub")]).code(12).says(&["it is not signed"]);
    let old = fs::read(store.path("store/disk.newest")).unwrap();
    let mut rng = Rng(2);
    let layout = layout.data(0..4096, &mut rng);
    layout.write(&image);
    store.publish(&image, &["--sign", other.to_str().unwrap()]);
    store.pull("", &[&trust("key.pub")]).code(12).says(&["it is not signed by a key of"]);
    store.pull("", &[&trust("other.pub")]).ok();
    layout.data(0..8192, &mut rng).write(&image);
    store.publish(&image, &["--sign", key.to_str().unwrap()]);
    store.pull("", &[&trust("other.pub")]).code(12);
    store.pull("", &[&trust("key.pub")]).ok();
    assert_same(&image, &store.copy());
    // Every byte of what is signed counts.
    let newest = store.path("store/disk.newest");
    let signed = fs::read(&newest).unwrap();
    let line = signed.iter().position(|&byte| byte == b'\n').unwrap();
    for at in (0..line).step_by(7) {
        let mut changed = signed.clone();
        changed[at] ^= 1;
        fs::write(&newest, changed).unwrap();
        store.pull("", &["-I", &trust("key.pub")]).code(12);
    }
    // Nor does a signature speak for another line.
    let of_old = [old, signed[line + 1..].to_vec()].concat();
    fs::write(&newest, of_old).unwrap();
    store.pull("", &["-I", &trust("key.pub")]).code(12);
    assert_same(&image, &store.copy());
}

#[test]
fn what_was_published_unsigned_is_signed_where_it_is_published_again() {
    let store = Store::new(lab::scratch());
    let (_, image) = store.begin();
    let key = store.key("key", "ed25519");
    let (key, trust) = (key.to_str().unwrap(), format!("--trust={key}.pub", key = key.display()));
    store.pull("", &["-I", &trust]).code(12).says(&["it is not signed"]);
    let again = store.publish(&image, &["--sign", key]);
    // What nobody has signed is not built upon; packs that are there just so are.
    assert_eq!((&again["new_blocks"], &again["pack_bytes"]), (&32.into(), &0.into()));
    store.pull("", &["-I", &trust]).ok();
    store.pull(&format!("@{}", again["version"].as_str().unwrap()), &["-I", &trust]).ok();
    // And stays so.
    store.publish(&image, &[]);
    store.pull("", &["-I", &trust]).ok();
    assert_same(&image, &store.copy());
}

#[test]
fn an_old_version_is_not_taken_for_the_newest() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let newest = store.path("store/disk.newest");
    let old = fs::read(&newest).unwrap();
    layout.data(0..4096, &mut Rng(2)).write(&image);
    store.publish(&image, &["--as", "v2"]);
    store.pull("", &[]).ok();
    fs::write(&newest, &old).unwrap();
    store.pull("", &[]).code(12).says(&["is newer: the server may be behind, or pass off an old version"]);
    store.pull("", &["-I", "-n"]).code(12);
    assert_same(&image, &store.copy());
    store.pull("@v2", &["-I"]).ok();
    // Who names it gets it.
    let line: serde_json::Value = serde_json::from_slice(&old).unwrap();
    let version = line["version"].as_str().unwrap();
    store.pull(&format!("@{version}"), &[]).ok();
    store.pull("", &[]).ok();
}

#[test]
fn the_head_of_another_image_or_version_is_refused() {
    let store = Store::new(lab::scratch());
    let (_, image) = store.begin();
    run(store.holesync().arg("publish").arg(&image).arg(store.path("store/other"))).ok();
    fs::copy(store.path("store/other.newest"), store.path("store/disk.newest")).unwrap();
    store.pull("", &[]).code(12).says(&["the head of another image"]);
    let versions = store.path("store/disk.store/versions");
    let there = fs::read_dir(&versions).unwrap().next().unwrap().unwrap().path();
    fs::copy(there, versions.join("v9")).unwrap();
    store.pull("@v9", &[]).code(12).says(&["it is the head of version"]);
}

#[test]
fn a_root_hash_that_is_pinned_is_the_one_that_comes() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let digest = run(store.holesync().arg("digest").arg(&image)).ok();
    let root = format!("--root={}", digest.stdout.split_whitespace().next().unwrap());
    store.pull("", &["-I", &root]).ok();
    layout.data(0..4096, &mut Rng(2)).write(&image);
    store.publish(&image, &[]);
    store.pull("", &[&root]).code(12).says(&["--root wants another"]);
}

#[test]
fn what_a_key_has_not_signed_moves_the_time_of_no_version_that_it_signs() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let [sign, trust] = store.signing();
    let newest = store.path("store/disk.newest");
    store.publish(&image, &[&sign]);
    let old = fs::read(&newest).unwrap();
    // Somebody puts a head there that is of a time to come, less than a day ahead.
    let line = old.split(|&byte| byte == b'\n').next().unwrap();
    let mut head: serde_json::Value = serde_json::from_slice(line).unwrap();
    head["time"] = (head["time"].as_u64().unwrap() + 23 * 3_600_000_000_000).into();
    fs::write(&newest, format!("{head}\n")).unwrap();
    layout.data(0..4096, &mut Rng(2)).write(&image);
    let publish = || run(store.holesync().args(["publish", &sign]).arg(&image).arg(store.image()));
    publish().code(23).says(&["is not signed by this key", &format!("remove {}", newest.display())]);
    fs::remove_file(&newest).unwrap();
    publish().ok();
    store.pull("", &[&trust]).ok();
    fs::write(&newest, &old).unwrap();
    store.pull("", &[&trust]).code(12).says(&["which is newer"]);
    assert_same(&image, &store.copy());
}

#[test]
fn a_signature_that_does_not_fit_is_none() {
    let store = Store::new(lab::scratch());
    let (_, image) = store.begin();
    let [sign, trust] = store.signing();
    let published = store.publish(&image, &[&sign]);
    let heads = [
        store.path("store/disk.newest"),
        store.path("store/disk.store/versions").join(published["version"].as_str().unwrap()),
    ];
    let signed = fs::read(&heads[0]).unwrap();
    let check = || run(store.holesync().arg("check").arg(store.image()));
    check().ok();
    // What is signed says something else: the image was modified at another time.
    let at = signed.windows(10).position(|bytes| bytes == b"\"modified\"").unwrap() + 13;
    let mut changed = signed.clone();
    changed[at] = b'1' + (changed[at] - b'0') % 9;
    heads.iter().for_each(|head| fs::write(head, &changed).unwrap());
    check()
        .code(12)
        .says(&["its signature is none of what it says", &format!("remove {}", heads[1].display())]);
    assert_eq!(store.publish(&image, &[&sign])["new"], true);
    store.pull("", &["-I", &trust]).ok();
    fs::remove_file(&heads[1]).unwrap();
    check().ok();
    // The newest one has lost its signature.
    let signed = fs::read(&heads[0]).unwrap();
    fs::write(&heads[0], &signed[..signed.iter().position(|&byte| byte == b'\n').unwrap() + 1]).unwrap();
    check().code(23).says(&["is signed otherwise than version", "publish again"]);
    assert_eq!(store.publish(&image, &[&sign])["new"], false);
    assert_eq!(fs::read(&heads[0]).unwrap(), signed);
    check().ok();
}

#[test]
fn what_is_damaged_in_a_pack_of_an_unsigned_version_is_not_signed() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let [sign, trust] = store.signing();
    let pack = fs::read_dir(store.path("store/disk.store/packs")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&pack).unwrap();
    bytes[1000] ^= 1;
    fs::write(&pack, &bytes).unwrap();
    layout.data(5 << 20..6 << 20, &mut Rng(2)).write(&store.path("other"));
    for image in [store.path("other"), image] {
        let version = store.publish(&image, &[&sign])["version"].as_str().unwrap().to_string();
        fs::remove_file(store.copy()).unwrap();
        store.pull(&format!("@{version}"), &["-I", &trust]).ok();
        assert_same(&image, &store.copy());
    }
    assert_eq!(fs::read(&pack).unwrap(), bytes, "it is of another version");
}

#[test]
fn a_key_that_is_changed_signs_a_version_of_its_own() {
    let store = Store::new(lab::scratch());
    let (_, image) = store.begin();
    let (key, other) = (store.key("key", "ed25519"), store.key("other", "ecdsa"));
    let [key, other] = [&key, &other].map(|key| key.to_str().unwrap());
    for (key, is_new) in [(key, true), (key, false), (other, true), (other, false)] {
        assert_eq!(store.publish(&image, &["--sign", key])["new"], is_new, "{key}");
        store.pull("", &["-I", &format!("--trust={key}.pub")]).ok();
    }
    // A public key will do, where an agent has the other; here none does.
    let published =
        |key: &str| run(store.holesync().args(["publish", "--sign", key]).arg(&image).arg(store.image()));
    published(&format!("{key}.pub")).ok();
    let rsa = store.key("rsa", "rsa");
    published(rsa.to_str().unwrap()).code(23).says(&["use a key of ed25519"]);
    let trust = format!("--trust={}.pub", rsa.display());
    store.pull("", &["-I", &trust]).code(23).says(&[rsa.to_str().unwrap(), "has no key of a kind"]);
    store.pull("", &["-I", &format!("--trust={other}.pub")]).code(12);
    assert_same(&image, &store.copy());
}

#[test]
fn a_time_makes_no_image_equal_to_another() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let time = fs::metadata(&image).unwrap().modified().unwrap();
    // As where builds are reproducible: the same length and the same time.
    layout.data(1 << 20..(1 << 20) + 4096, &mut Rng(2)).write(&image);
    fs::File::open(&image).unwrap().set_modified(time).unwrap();
    store.publish(&image, &["--as=v2"]);
    for version in ["", "@v2"] {
        store.pull(version, &[]).ok();
        assert_same(&image, &store.copy());
    }
    // Who says that lengths are enough is believed.
    layout_of_other(&store, &image, time);
    let pulled = store.pull("", &["--size-only", "--json"]).ok();
    assert_eq!(pulled.count("files_sent"), 0);
    store.pull("", &[]).ok();
    assert_same(&image, &store.copy());
}

/// Publishes another image of the same length and time.
fn layout_of_other(store: &Store, image: &std::path::Path, time: std::time::SystemTime) {
    let mut bytes = fs::read(image).unwrap();
    bytes[2 << 20] ^= 1;
    fs::write(image, bytes).unwrap();
    fs::File::open(image).unwrap().set_modified(time).unwrap();
    store.publish(image, &[]);
}

#[test]
fn what_a_root_hash_does_not_prove_is_not_remembered() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let [sign, trust] = store.signing();
    let newest = store.path("store/disk.newest");
    store.publish(&image, &[&sign]);
    let old = fs::read(&newest).unwrap();
    layout.data(0..4096, &mut Rng(2)).write(&image);
    let root = store.publish(&image, &[&sign])["root"].as_str().unwrap().to_string();
    let new = fs::read(&newest).unwrap();
    store.pull("", &[&trust]).ok();
    // A head that lies about its time, of the version whose root hash is pinned.
    let line = new.split(|&byte| byte == b'\n').next().unwrap();
    let root = format!("--root={root}");
    for time in ["1", "9223372036854775807"] {
        let mut head: serde_json::Value = serde_json::from_slice(line).unwrap();
        head["time"] = time.parse::<u64>().unwrap().into();
        fs::write(&newest, format!("{head}\n")).unwrap();
        for flags in [&[root.as_str()][..], &["-I"]] {
            // Without a root hash it is too old, or taken as it is.
            let pulled = store.pull("", flags);
            assert!(pulled.code == 0 || flags == ["-I"], "{pulled}");
        }
        fs::write(&newest, &old).unwrap();
        store.pull("", &[&trust]).code(12).says(&["which is newer"]);
        fs::write(&newest, &new).unwrap();
        store.pull("", &[&trust]).ok();
        assert_same(&image, &store.copy());
    }
}
