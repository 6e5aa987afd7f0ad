//! A map that both ends have does not travel.

use serde_json::Value;

use super::*;

/// Bytes of a map that travels.
const MAP: u64 = (SIZE / BLOCK * 16) as u64;

impl Rig {
    /// Makes the image from the old one, and changes it.
    fn make(&self) {
        self.clone_old();
        overwrite(&self.image, 5 * BLOCK, &[7; BLOCK]);
        overwrite(&self.image, 100 * BLOCK + 5000, &[8; 9]);
    }

    /// What came from the other end while the image was sent; it is equal then.
    #[track_caller]
    fn came(&self, flags: &[&str]) -> u64 {
        let outcome = self.since(flags);
        assert!(!outcome.stdout.contains("\"warning\""), "{outcome}");
        outcome.count("wire_bytes_received")
    }
}

#[test]
fn no_map_travels_where_the_copy_has_what_the_old_one_has() {
    for fs in [Fs::Xfs, Fs::Btrfs] {
        let Some(rig) = Rig::on(fs) else { return };
        rig.send_old();
        rig.make();
        assert!(rig.came(&["-n"]) < MAP / 2, "{fs:?}");
        let map = rig.dir.path().join("saved.map");
        assert!(rig.came(&["--save-map", map.to_str().expect("text")]) < MAP / 2, "{fs:?}");
        run(holesync().arg("diff").arg(&map).arg(&rig.image)).ok();
        // What is there by now is no longer that.
        assert!(rig.came(&[]) < MAP / 2, "{fs:?}: the map of the image itself");
        assert_no_leftovers(rig.dir.path());
    }
}

#[test]
fn a_map_travels_where_it_may_be_another_one() {
    let Some(rig) = Rig::on(Fs::Xfs) else { return };
    let begin = || {
        rig.send_old();
        rig.make();
    };
    // Whoever wants content looked at, or no map used.
    for flags in [&["-c"][..], &["--verify"], &["--no-map-cache"]] {
        begin();
        assert!(rig.since(flags).count("wire_bytes_received") > MAP, "{flags:?}");
    }
    // Written since.
    begin();
    overwrite(&rig.to, 40 * BLOCK + 77, b"other");
    assert!(rig.came(&[]) > MAP);
    // Nobody knows what is there, although it is the same.
    begin();
    tool("touch", &[], &[&rig.to]);
    assert!(rig.came(&[]) > MAP);
    // Another image is known there.
    let other = rig.dir.path().join("other");
    Layout::dense("other", SIZE, &mut Rng(2)).write(&other);
    rig.push(&[], &other).ok();
    rig.make();
    assert!(rig.came(&[]) > MAP);
    // Blocks of another size.
    begin();
    assert!(rig.since(&["-B", "32K"]).count("wire_bytes_received") > MAP);
    // The old one is not known yet when it is reached.
    begin();
    fs::remove_file(&rig.image).expect("remove");
    overwrite(&rig.old, 50 * BLOCK, b"changed");
    rig.make();
    rig.since(&[]);
}

#[test]
fn images_that_grew_and_shrank_come_out_right() {
    let lengths = [SIZE + 5000, SIZE + 3 * BLOCK, SIZE - 3 * BLOCK, SIZE - 5000, 17 * MIB + 4096];
    for (length, cuts_a_block) in lengths.into_iter().zip([false, false, false, true, true]) {
        for cut in [0, 4099] {
            let Some(rig) = Rig::on(Fs::Xfs) else { return };
            let rng = &mut Rng(3);
            let layout = Layout::hole("old", SIZE - cut).data(0..MIB, rng).data(2 * MIB..SIZE - cut, rng);
            rig.write(&layout.punch(19 * MIB..20 * MIB));
            rig.send_old();
            rig.make();
            tool("truncate", &["-s", &length.to_string()], &[&rig.image]);
            overwrite(&rig.image, length - 3000, b"the end");
            let came = rig.came(&[]);
            assert_eq!(came > MAP / 2, cuts_a_block && length < SIZE - cut, "{length}, {cut}: {came}");
        }
    }
}

/// Without `--since` too: a source that has not changed is known at both ends.
#[test]
fn a_source_that_is_known_at_both_ends_has_no_map_travel() {
    let Some(rig) = Rig::on(Fs::Ext4) else { return };
    rig.send_old();
    assert!(rig.push(&[], &rig.old).ok().count("wire_bytes_received") < MAP / 2);
    // Also there, where the source is.
    let peer = Peer::pipe(rig.dir.path());
    let pull = || {
        let mut command =
            Way::Pull.command(Some(&peer), &["--json", "-I"], &[rig.old.as_os_str()], rig.to.as_os_str());
        run(command.env("XDG_CACHE_HOME", rig.dir.path().join("cache"))).ok().count("wire_bytes_sent")
    };
    assert!(pull() < MAP / 2);
    tool("touch", &[], &[&rig.to]);
    assert!(pull() > MAP);
}

/// What is copied from another file is hashed as it is copied, and no kept map of that is believed.
#[test]
fn of_another_file_that_is_begun_from_the_map_travels() {
    for flag in ["--fuzzy", "--basis=to"] {
        let Some(rig) = Rig::on(Fs::Xfs) else { return };
        rig.send_old();
        rig.make();
        let new = Rig { to: rig.dir.path().join("to2"), ..rig };
        assert!(new.came(&[flag]) > MAP, "{flag}");
        tool("cmp", &[], &[&new.old, &new.dir.path().join("to")]);
    }
}

#[test]
fn each_of_several_hosts_has_its_own() {
    for together in [false, true] {
        let Some(rig) = Rig::on(Fs::Xfs) else { return };
        let to = |nth: usize| rig.dir.path().join(format!("to {nth}"));
        let peer = Peer::pipe(rig.dir.path());
        let send = |source: &Path, flags: &[&str]| {
            let mut command = peer.holesync();
            command.args(["--json", "-I"]).args(flags).arg(source);
            command.args((0..3).map(|nth| format!("--to=h{nth}:{}", to(nth).display())));
            run(command.env("XDG_CACHE_HOME", rig.dir.path().join("cache"))).ok()
        };
        send(&rig.old, &[]);
        rig.make();
        overwrite(&to(1), 40 * BLOCK + 77, b"other");
        let since = format!("--since={}", rig.old.display());
        let flags = if together { &[&since[..], "--together"][..] } else { &[&since[..]] };
        let outcome = send(&rig.image, flags);
        (0..3).for_each(|nth| drop(tool("cmp", &[], &[&rig.image, &to(nth)])));
        let events = outcome.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let mut came: Vec<_> = events
            .filter(|event| event["event"] == "summary" && event["host"].is_string())
            .map(|event| {
                (event["host"].to_string(), event["wire_bytes_received"].as_u64().expect("a number") > MAP)
            })
            .collect();
        came.sort();
        assert_eq!(came.iter().map(|(_, came)| *came).collect::<Vec<_>>(), [false, true, false], "{came:?}");
    }
}

/// The map of the old one is damaged, and its root hash is not: that shows on the way, and the map
/// of the copy travels.
#[test]
fn a_map_that_is_damaged_here_is_found_out_while_it_is_used() {
    let Some(rig) = Rig::on(Fs::Xfs) else { return };
    let maps = |rig: &Rig| {
        let listed = fs::read_dir(rig.dir.path().join("cache/holesync/maps")).expect("list");
        listed.map(|entry| entry.expect("list").path()).collect::<Vec<_>>()
    };
    let other = Rig { to: rig.dir.path().join("other"), ..rig };
    other.send_old();
    let known = maps(&other);
    let rig = Rig { to: other.dir.path().join("to"), ..other };
    rig.send_old();
    for entry in known {
        let mut bytes = fs::read(&entry).expect("read");
        bytes[5120] ^= 1;
        fs::write(&entry, bytes).expect("write");
    }
    rig.make();
    let outcome = rig.since(&[]);
    assert!(outcome.stdout.contains("its map cannot be read"), "{outcome}");
    assert!(outcome.count("wire_bytes_received") > MAP, "{outcome}");
    assert_no_leftovers(rig.dir.path());
}
