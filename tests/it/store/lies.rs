//! Stores that were damaged, or lie: what comes is equal, or an error, and the destination as it was.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use holesync::hashmap::map_file::{MapReader, MapWriter};
use holesync::hashmap::{self, MapEntry};
use holesync::store::patches::PatchesWriter;
use serde_json::{Value, json};

use crate::common::check::{assert_no_leftovers, same};
use crate::common::lab::{self, Fs, Loop};
use crate::common::layout::{Layout, Rng};
use crate::common::process::run;
use crate::store::Store;

/// What is done to an object.
const DAMAGES: [&str; 7] = ["first", "middle", "last", "short", "long", "empty", "gone"];

fn damage(path: &Path, how: &str) {
    let mut bytes = fs::read(path).unwrap();
    let (len, flip) = (bytes.len(), |bytes: &mut Vec<u8>, at: usize| bytes[at] ^= 0x10);
    match how {
        "first" => flip(&mut bytes, 0),
        "middle" => flip(&mut bytes, len / 2),
        "last" => flip(&mut bytes, len - 1),
        "short" => bytes.truncate(len - 1),
        "long" => bytes.push(0),
        "empty" => bytes.clear(),
        _ => return fs::remove_file(path).unwrap(),
    }
    fs::write(path, bytes).unwrap();
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn damage_to_any_object_is_an_error_or_does_not_matter() {
    let store = Store::new(lab::scratch());
    let mut rng = Rng(11);
    let layout = Layout::hole("disk", 6 << 20).data(1 << 20..3 << 20, &mut rng);
    let (image, old) = (store.path("image"), store.path("old"));
    layout.write(&old);
    store.publish(&old, &[]);
    layout.data(2 << 20..(2 << 20) + 4096, &mut rng).data(4 << 20..5 << 20, &mut rng).write(&image);
    store.publish(&image, &[]);
    let (mut refused, mut harmless) = (0, 0);
    for path in files(&store.path("store")) {
        let whole = fs::read(&path).unwrap();
        for how in DAMAGES {
            damage(&path, how);
            for begins in ["old", "nothing"] {
                let _ = fs::remove_file(store.copy());
                let _ = fs::remove_dir_all(store.path("home"));
                if begins == "old" {
                    fs::copy(&old, store.copy()).unwrap();
                }
                let outcome = store.pull("", &["-I"]);
                let what = format!("{} {how}, over {begins}: {outcome}", path.display());
                let is_extra = path.to_str().unwrap().contains("/patches/");
                assert!(!is_extra || outcome.code == 0, "blocks lie whole, too: {what}");
                if outcome.code == 0 {
                    assert!(same(&image, &store.copy()), "{what}");
                    harmless += 1;
                } else {
                    assert!([10, 12, 23].contains(&outcome.code), "{what}");
                    assert!(outcome.stderr.contains("/store/disk"), "{what}");
                    match begins {
                        "old" => assert!(same(&old, &store.copy()), "{what}"),
                        _ => assert!(!store.copy().exists(), "{what}"),
                    }
                    refused += 1;
                }
            }
            fs::write(&path, &whole).unwrap();
        }
    }
    assert!(refused > 50, "{refused}");
    lab::count(&format!("damaged objects refused {refused}, of no use {harmless}"));
    let _ = fs::remove_file(store.copy());
    store.pull("", &[]).ok();
    assert_no_leftovers(&store.path("to"));
}

/// The head of the newest version, changed; without a signature.
fn change_head(store: &Store, change: impl FnOnce(&mut Value)) {
    let newest = store.path("store/disk.newest");
    let mut head: Value = serde_json::from_slice(&fs::read(&newest).unwrap()).unwrap();
    change(&mut head);
    fs::write(&newest, format!("{head}\n")).unwrap();
}

/// Puts an object of the newest version there. Returns what its head says of it.
fn put(store: &Store, kind: &str, bytes: &[u8]) -> Value {
    let head: Value = serde_json::from_slice(&fs::read(store.path("store/disk.newest")).unwrap()).unwrap();
    let id = head["id"].as_str().unwrap();
    fs::write(store.path(&format!("store/disk.store/{kind}/{id}")), bytes).unwrap();
    let digest = blake3::hash(bytes).to_hex().to_string();
    json!({"digest": digest, "length": bytes.len()})
}

#[test]
fn a_time_that_is_not_proven_makes_nothing_equal_to_a_root_hash_that_is_pinned() {
    let store = Store::new(lab::scratch());
    let (layout, image) = store.begin();
    let modified = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        json!([metadata.mtime(), metadata.mtime_nsec()])
    };
    let old = modified(&image);
    layout.data(0..4096, &mut Rng(2)).write(&image);
    let root = store.publish(&image, &[])["root"].as_str().unwrap().to_string();
    change_head(&store, |head| head["modified"] = old);
    let root = format!("--root={root}");
    for flags in [&[root.as_str()][..], &[&root, "--size-only"]] {
        store.pull("", flags).ok();
        assert!(same(&image, &store.copy()), "{flags:?}");
    }
}

#[test]
fn a_patch_with_pages_that_its_block_does_not_have_is_passed_over() {
    let store = Store::new(lab::scratch());
    let (one, other) = (store.path("one"), store.path("other"));
    let layout = Layout::hole("disk", 1 << 20).data(0..4096, &mut Rng(1));
    layout.write(&one);
    store.publish(&one, &[]);
    store.pull("", &[]).ok();
    // Behind its data a second page, and beyond that zeros.
    layout.data(4096..8192, &mut Rng(2)).write(&other);
    store.publish(&other, &[]);
    let bytes = fs::read(&one).unwrap();
    let new = fs::read(&other).unwrap();
    put_patch(&store, &bytes[..4096], 0b10_0010, &[&new[4096..8192], &[7; 4096]].concat());
    store.pull("", &["-I"]).ok().says(&["whole blocks are fetched", "/store/disk.store/patches/"]);
    assert!(same(&other, &store.copy()));
}

#[test]
fn a_patch_of_no_pages_that_does_not_make_its_block_is_passed_over() {
    let store = Store::new(lab::scratch());
    let (one, other) = (store.path("one"), store.path("other"));
    let layout = Layout::hole("disk", 1 << 20).data(0..4096, &mut Rng(1));
    layout.write(&one);
    store.publish(&one, &[]);
    store.pull("", &[]).ok();
    layout.data(0..4096, &mut Rng(2)).write(&other);
    store.publish(&other, &[]);
    put_patch(&store, &fs::read(&one).unwrap()[..4096], 0, &[]);
    store.pull("", &["-I"]).ok().says(&["whole blocks are fetched", "/store/disk.store/patches/"]);
    assert!(same(&other, &store.copy()));
}

/// Gives the newest version a patch of its first block, over what had one page.
fn put_patch(store: &Store, over: &[u8], pages: u64, bytes: &[u8]) {
    let base = hashmap::key(&hashmap::hash_block(1, std::iter::once(over)));
    let mut patches = PatchesWriter::new(3).unwrap();
    patches.add(0, &base, pages, bytes).unwrap();
    let (index, mut file) = patches.finish().unwrap().unwrap();
    let mut whole = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut whole).unwrap();
    fs::create_dir_all(store.path("store/disk.store/patches")).unwrap();
    let object = put(store, "patches", &whole)["digest"].clone();
    let index = json!({"digest": blake3::hash(&index).to_hex().to_string(), "length": index.len()});
    change_head(store, |head| head["patches"] = json!({"object": object, "index": index}));
}

/// Makes a map end with another root hash than its blocks have.
fn forge(map: &mut Vec<u8>, root: &[u8]) {
    // As docs/map.md has it: a section is its kind, its length, its body and a check over all before it.
    const HEAD: usize = 8;
    const CHECK: usize = 16;
    let end = map.len() - (HEAD + root.len() + CHECK);
    let body = end + HEAD;
    map[body..body + root.len()].copy_from_slice(root);
    let check = blake3::Hasher::new().update(&map[end - CHECK..body + root.len()]).finalize();
    map.truncate(body + root.len());
    map.extend(&check.as_bytes()[..CHECK]);
}

#[test]
fn a_map_that_does_not_lead_to_the_root_hash_is_found_out_before_anything_is_written() {
    if !lab::is_root() {
        return;
    }
    let store = Store::new(lab::scratch());
    let (image, evil) = (store.path("image"), store.path("evil"));
    // More than one request asks for.
    let layout = Layout::hole("disk", 24 << 20).data(1 << 20..21 << 20, &mut Rng(1));
    layout.write(&image);
    let root = store.publish(&image, &[])["root"].as_str().unwrap().to_string();
    layout.data(1 << 20..21 << 20, &mut Rng(2)).write(&evil);
    store.publish(&evil, &[]);
    let head: Value = serde_json::from_slice(&fs::read(store.path("store/disk.newest")).unwrap()).unwrap();
    let map = store.path("store/disk.store/maps").join(head["id"].as_str().unwrap());
    let mut bytes = fs::read(map).unwrap();
    let of_evil = head["root"].as_str().unwrap().to_string();
    let [right, wrong] = [&root, &of_evil].map(|root| root.parse::<blake3::Hash>().unwrap());
    assert_eq!(bytes[bytes.len() - 48..bytes.len() - 16], *wrong.as_bytes());
    let whole = bytes.clone();
    forge(&mut bytes, wrong.as_bytes());
    assert!(bytes == whole, "the check is as this test has it");
    forge(&mut bytes, right.as_bytes());
    let map = put(&store, "maps", &bytes);
    change_head(&store, |head| (head["map"], head["root"]) = (map, root.clone().into()));
    let root = format!("--root={root}");
    let (disk, content) = (store.path("device"), vec![7; 24 << 20]);
    fs::write(&disk, &content).unwrap();
    let device = Loop::over(&disk);
    let says = ["/store/disk.store/maps/", "it is not the map of its image"];
    run(store.holesync().args([&root, "-W"]).arg(store.url("")).arg(&device.0)).code(12).says(&says);
    fs::write(store.copy(), &content).unwrap();
    store.pull("", &[&root, "--inplace"]).code(12).says(&says);
    drop(device);
    assert!(fs::read(disk).unwrap() == content && fs::read(store.copy()).unwrap() == content);
}

#[test]
fn a_map_with_other_pages_than_a_block_has_is_found_out() {
    let store = Store::new(lab::scratch());
    let (_, image) = store.begin();
    let maps = store.path("store/disk.store/maps");
    let map = fs::read_dir(&maps).unwrap().next().unwrap().unwrap().path();
    let mut reader = MapReader::new(File::open(&map).unwrap()).unwrap();
    let mut writer = MapWriter::new(Vec::new(), &reader.grid()).unwrap();
    let mut left = 32;
    while let Some(entries) = reader.entries().unwrap() {
        for entry in entries {
            // The last block with data: it is there already, and nothing behind it moves.
            let is_last = matches!(entry, MapEntry::Data { .. }) && {
                left -= 1;
                left == 0
            };
            writer
                .add(&match entry {
                    MapEntry::Data { pages, hash } if is_last => MapEntry::Data { pages: pages & !1, hash },
                    other => other,
                })
                .unwrap();
        }
    }
    assert_eq!(left, 0);
    let (bytes, root) = writer.finish().unwrap();
    assert_eq!(Some(root), reader.root(), "the root hash does not tell");
    let map = put(&store, "maps", &bytes);
    change_head(&store, |head| head["map"] = map);
    store.pull("", &["-I"]).code(12).says(&["the head of its version says"]);
    change_head(&store, |head| head["data"] = (head["data"].as_u64().unwrap() - 4096).into());
    store.pull("", &["-I"]).code(12).says(&["has another hash than its map says"]);
    assert!(same(&image, &store.copy()));
}

#[test]
fn a_version_of_another_block_size_is_read_back_and_finished_after_a_crash() {
    let Some(dir) = lab::dir(Fs::Ext4) else { return };
    let store = Store::new(dir);
    let layout = Layout::hole("disk", 8 << 20).data(1 << 20..3 << 20, &mut Rng(1));
    let image = store.path("image");
    for (nth, size) in ["4K", "256K", "16K"].iter().enumerate() {
        layout.clone().data(0..4096 * (nth + 1), &mut Rng(nth as u64)).write(&image);
        store.publish(&image, &["-B", size]);
        store.pull("", &["--verify"]).ok();
        assert!(same(&image, &store.copy()), "{size}");
    }
}
