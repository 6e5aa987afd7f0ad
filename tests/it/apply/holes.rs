//! File systems that tell of holes where there is data: `--no-hole-map` believes them at
//! neither end, and `--verify` not in what it reads back; and storage that gives other bytes back.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::common::check::{assert_no_leftovers, assert_same};
use crate::common::faults::can_trace;
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at};
use crate::common::process::{holesync, run};
use crate::common::redeploy::set_day;

const MIB: usize = 1 << 20;
/// Every seek says that there is no data.
const LIE: [&str; 4] = ["-e", "trace=lseek", "-e", "inject=lseek:error=ENXIO"];

fn liar(dir: &Path) -> Peer {
    let lie = LIE.join(" ");
    Peer::script(dir, &format!("exec strace -f -qq -o /dev/null {lie} $command"))
}

/// An old image and a new one, in which so many MiB are new.
fn images(dir: &TempDir, new: usize) -> [std::path::PathBuf; 2] {
    let [image, source] = ["image", "new"].map(|name| dir.path().join(name));
    let mut rng = Rng(21);
    let old = Layout::hole("image", 12 * MIB).data(MIB..9 * MIB, &mut rng).data(10 * MIB..11 * MIB, &mut rng);
    old.write(&image);
    set_day(&image, 1);
    old.data(4 * MIB..(4 + new) * MIB, &mut rng).punch(2 * MIB..3 * MIB).write(&source);
    [image, source]
}

#[test]
fn no_hole_map_means_neither_end() {
    if !can_trace() {
        return;
    }
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
        for (flags, new) in [
            (&[][..], 1),
            (&[][..], 5),
            (&["--commit=atomic"][..], 1),
            (&["--inplace"], 1),
            (&["--verify"], 1),
        ] {
            let Some(dir) = lab::dir(fs) else { return };
            eprintln!("{fs:?} {flags:?} {new}");
            let [image, source] = images(&dir, new);
            let mut push = liar(dir.path()).holesync();
            run(push.args(flags).arg("--no-hole-map").arg(&source).arg(at(&image))).ok();
            assert_same(&image, &source);
            assert_no_leftovers(dir.path());

            let [image, source] = images(&dir, new);
            let mut copy = Command::new("strace");
            copy.args(["-f", "-qq", "-o", "/dev/null"]).args(LIE).arg(holesync().get_program());
            run(copy.args(flags).arg("--no-hole-map").arg(&source).arg(&image)).ok();
            assert_same(&image, &source);
            assert_no_leftovers(dir.path());
        }
    }
}

#[test]
fn what_is_read_back_is_not_read_by_the_map() {
    let Some(dir) = lab::dir(Fs::Ext4) else { return };
    if !can_trace() {
        return;
    }
    let [_, source] = images(&dir, 1);
    let image = dir.path().join("fresh");
    let outcome = run(liar(dir.path()).holesync().arg("--verify").arg(&source).arg(at(&image))).ok();
    assert!(!outcome.stderr.contains("memory"), "{outcome}");
    assert_same(&image, &source);
}

#[test]
fn what_does_not_read_back_is_told_and_only_in_place_it_is_there() {
    let Some(dir) = lab::dir(Fs::Ext4) else { return };
    if !can_trace() {
        return;
    }
    for (flags, name, said) in [
        (&["-W"][..], ".image.holesync.temp", "as it was sent, and was not put in place"),
        (&["-W", "--inplace"], "image", "as it was sent: it is damaged"),
    ] {
        let [image, source] = images(&dir, 1);
        let before = std::fs::read(&image).expect("read");
        let mut copy = Command::new("strace");
        copy.args(["-f", "-qq", "-o", "/dev/null", "-P"]).arg(dir.path().join(name));
        copy.args(["-e", "inject=pread64,preadv2:poke_exit=@arg2=4242424242"]);
        let copy = copy.arg(holesync().get_program()).args(flags).arg("--verify").arg(&source).arg(&image);
        run(copy).code(23).says(&["/image: ", "does not read back", said, "check the storage"]);
        let is_as_it_was = std::fs::read(&image).expect("read") == before;
        assert_eq!(is_as_it_was, name != "image");
        run(holesync().args(flags).arg("--verify").arg(&source).arg(&image)).ok();
        assert_same(&image, &source);
        assert_no_leftovers(dir.path());
    }
}

#[test]
fn what_comes_from_memory_is_no_proof_and_is_said() {
    let Some(dir) = lab::dir(Fs::Tmpfs) else { return };
    let [_, source] = images(&dir, 1);
    let fresh = |name: &str| dir.path().join(name);
    let said = "was read back, but from memory";
    run(Peer::pipe(dir.path()).holesync().arg("--verify").arg(&source).arg(at(fresh("far"))))
        .ok()
        .says(&[said]);
    run(holesync().arg("--verify").arg(&source).arg(fresh("near"))).ok().says(&[said]);
    assert_same(&fresh("far"), &source);
    assert_same(&fresh("near"), &source);
}
