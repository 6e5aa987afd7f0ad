//! The shape of the source tree, held against what `docs/design.md` says of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The modules of the table of layers, from the top down.
fn layers() -> Vec<String> {
    let design = fs::read_to_string(at("docs/design.md")).unwrap();
    let (_, section) = design.split_once("\n## The layers\n").expect("a section of layers");
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, _)| name.to_string()).collect()
}

/// Every Rust file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
    found
}

/// The top-level module that a file belongs to.
fn module_of(path: &Path) -> String {
    let relative = path.strip_prefix(at("src")).unwrap();
    let first = relative.iter().next().unwrap().to_str().unwrap();
    first.trim_end_matches(".rs").to_string()
}

/// The top-level modules that some code names, comments left out.
fn uses(code: &str) -> BTreeSet<String> {
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let mut found = BTreeSet::new();
    for root in ["crate::", "holesync::"] {
        for (at, _) in code.match_indices(root) {
            let rest = &code[at + root.len()..];
            let names = match rest.strip_prefix('{') {
                Some(list) => list.split('}').next().unwrap().split(',').collect(),
                None => vec![rest],
            };
            for name in names {
                let end = |c: char| !c.is_alphanumeric() && c != '_';
                found.insert(name.trim().split(end).next().unwrap().to_string());
            }
        }
    }
    found
}

#[test]
fn the_table_of_layers_names_every_module_once() {
    let layers = layers();
    let listed: BTreeSet<String> = layers.iter().cloned().collect();
    assert_eq!(listed.len(), layers.len());
    let there = fs::read_dir(at("src")).unwrap().map(|entry| module_of(&entry.unwrap().path()));
    assert_eq!(listed, there.filter(|name| name != "lib").collect());
}

#[test]
fn imports_point_downwards() {
    let layers = layers();
    let layer = |name: &str| layers.iter().position(|other| other == name);
    let mut looked = 0;
    for path in files(&at("src")) {
        let Some(own) = layer(&module_of(&path)) else { continue };
        for name in uses(&fs::read_to_string(&path).unwrap()) {
            if let Some(other) = layer(&name) {
                looked += 1;
                assert!(other >= own, "{} uses {name}, which stands above it", path.display());
            }
        }
    }
    assert!(looked > 100, "{looked}");
}

#[test]
fn sender_and_receiver_do_not_know_each_other_nor_apply_the_protocol() {
    for (module, other) in [("sender", "receiver"), ("receiver", "sender"), ("apply", "protocol")] {
        for path in files(&at("src")).iter().filter(|path| module_of(path) == module) {
            let uses = uses(&fs::read_to_string(path).unwrap());
            assert!(!uses.contains(other), "{} uses {other}", path.display());
        }
    }
}

#[test]
fn folders_stay_small_and_unsafe_in_its_place() {
    let mut folders = vec![at("src")];
    while let Some(dir) = folders.pop() {
        let entries: Vec<PathBuf> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        let (below, here): (Vec<_>, Vec<_>) = entries.into_iter().partition(|path| path.is_dir());
        folders.extend(below);
        let most = if dir == at("src") { 24 } else { 15 };
        assert!(here.len() <= most, "{} files in {}", here.len(), dir.display());
        for path in here {
            let text = fs::read_to_string(&path).unwrap();
            let lifts = text.contains(concat!("allow(unsafe", "_code)"));
            assert!(!lifts || path == at("src/sys.rs"), "{}", path.display());
        }
    }
}
