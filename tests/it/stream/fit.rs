//! What is no disk as it is does not come onto a device by mistake: packed images, those of
//! virtual machines, streams of records. What the message says works.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::common::check::assert_begins_with;
use crate::common::lab::{self, Loop};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::Peer;
use crate::common::process::{Outcome, PROGRAM, holesync, run, run_on};
use crate::common::tree::{WAYS, Way};

const MIB: usize = 1 << 20;

/// An image, and a device that it fits.
struct Bench {
    dir: TempDir,
    image: PathBuf,
    device: Loop,
}

impl Bench {
    /// `None`: only root has devices.
    fn new() -> Option<Bench> {
        if !lab::is_root() {
            return None;
        }
        let dir = lab::scratch();
        let image = dir.path().join("image");
        Layout::dense("image", MIB, &mut Rng(5)).punch(200_000..500_000).write(&image);
        let behind = dir.path().join("behind");
        Layout::dense("behind", 2 * MIB, &mut Rng(6)).write(&behind);
        Some(Bench { image, device: Loop::over(&behind), dir })
    }

    /// What a command makes of the image on its stdin; `None`, and a counted skip, without it.
    fn packed(&self, by: &str) -> Option<PathBuf> {
        let packed = self.dir.path().join(format!("x.{by}"));
        let script = format!("{by} -c <\"$0\" >\"$1\"");
        let made =
            Command::new("sh").arg("-c").arg(script).args([&self.image, &packed]).status().expect("run sh");
        if !made.success() {
            lab::skip(&format!("no {by}"));
        }
        made.success().then_some(packed)
    }

    fn run(&self, way: Way, flags: &[&str], source: &Path, to: &Path) -> Outcome {
        let peer = Peer::pipe(self.dir.path());
        run(&mut way.command(Some(&peer), flags, &[source.as_os_str()], to.as_os_str()))
    }
}

#[test]
fn a_packed_image_comes_onto_no_device_but_as_the_message_says() {
    let Some(bench) = Bench::new() else { return };
    let before = fs::read(&bench.device.0).expect("read");
    let tools = ["gzip", "zstd", "xz", "bzip2"];
    for (way, by) in WAYS.into_iter().zip(["zstd", "gzip", "xz", "zstd", "bzip2"]) {
        assert!(tools.contains(&by));
        let Some(packed) = bench.packed(by) else { continue };
        let says = format!("({by}), and would come onto the device packed");
        let refused = bench.run(way, &[], &packed, &bench.device.0).code(23);
        assert!(refused.stderr.contains(&says) && refused.stderr.contains("--as-is"), "{refused}");
        if way != Way::PullShell {
            bench.run(way, &["-n"], &packed, &bench.device.0).code(23).says(&[&says]);
        }
        assert!(fs::read(&bench.device.0).expect("read") == before, "{way:?}: something was written");
        bench.run(way, &["--as-is"], &packed, &bench.device.0).ok();
        assert_begins_with(&bench.device.0, &packed);
        // Onto a file it is what it is.
        bench.run(way, &[], &packed, &bench.dir.path().join("copy")).ok();
        if let Some((_, behind)) = refused.stderr.split_once("--through '") {
            let (command, _) = behind.split_once('\'').expect("a quote that ends");
            bench.run(way, &["--through", command], &packed, &bench.device.0).ok();
            assert_begins_with(&bench.device.0, &bench.image);
        } else {
            assert!(matches!(way, Way::Pull | Way::PullShell), "{refused}");
        }
        fs::write(&bench.device.0, &before).expect("write");
    }
}

#[test]
fn neither_does_the_disk_of_a_virtual_machine_or_a_stream_of_records() {
    let Some(bench) = Bench::new() else { return };
    let source = bench.dir.path().join("source");
    for (head, says) in [
        (&b"QFI\xfb\0\0\0\x03"[..], "qemu-img convert -O raw"),
        (b"vhdxfile", "VHDX"),
        (b"DATA\n3\nabc", "holesync recv DEST <"),
    ] {
        fs::write(&source, [head, &[7; 9000]].concat()).expect("write");
        for way in [Way::Local, Way::Push] {
            bench.run(way, &[], &source, &bench.device.0).code(23).says(&[says]);
        }
    }
    let plain = fs::read(&bench.image).expect("read");
    let file = bench.dir.path().join("file");
    run_on(holesync().arg("recv").arg(&file), &plain)
        .code(12)
        .says(&["no stream of records", "holesync IMG FILE"]);
    assert!(!file.exists());
    // A device that holds it is a source like another.
    fs::write(&bench.device.0, b"conectix").expect("write");
    let other = bench.dir.path().join("other");
    fs::write(&other, vec![0; 2 * MIB]).expect("write");
    let other = Loop::over(&other);
    bench.run(Way::Local, &[], &bench.device.0, &other.0).code(23).says(&["VHD"]);
}

#[test]
fn what_the_message_says_of_a_qcow2_makes_an_image() {
    let Some(bench) = Bench::new() else { return };
    let qcow2 = bench.dir.path().join("x.qcow2");
    let made =
        Command::new("qemu-img").args(["convert", "-O", "qcow2"]).args([&bench.image, &qcow2]).status();
    if !made.is_ok_and(|status| status.success()) {
        return lab::skip("no qemu-img");
    }
    let refused = bench.run(Way::Local, &[], &qcow2, &bench.device.0).code(23);
    let (_, behind) = refused.stderr.split_once("with qemu-img").expect("a command");
    let (arguments, _) = behind.split_once(',').expect("an end of it");
    let script = format!("cd '{}' && qemu-img {arguments}", bench.dir.path().display());
    run(Command::new("sh").args(["-c", &script])).ok();
    let raw = bench.dir.path().join("disk.img");
    run(Command::new(PROGRAM).arg(&raw).arg(&bench.device.0)).ok();
    assert_begins_with(&bench.device.0, &bench.image);
}
