//! Publishers, pulls and servers that are killed: what is there is whole, and the next run goes on.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::check::{assert_no_leftovers, assert_same, same, taken};
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::nginx::Nginx;
use crate::common::process::{holesync, run, start, wait_until};
use crate::store::Store;
use crate::store::s3::{KEY, S3, SECRET};

/// How many runs are killed; `HOLESYNC_TEST_KILLS` names another number.
fn kills() -> u64 {
    std::env::var("HOLESYNC_TEST_KILLS").ok().and_then(|count| count.parse().ok()).unwrap_or(6)
}

#[test]
fn a_bucket_has_whole_versions_whoever_is_killed() {
    let Some(server) = S3::start() else { return };
    let store = Store::new(lab::scratch());
    let go = |words: &[&str]| -> Command {
        let mut command = store.holesync();
        command
            .env("AWS_ACCESS_KEY_ID", KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("AWS_REGION", "us-east-1");
        command.env("AWS_ENDPOINT_URL", format!("http://{}", server.address())).args(words);
        command
    };
    let name = "s3://images/pre/disk";
    let mut rng = Rng(5);
    let mut layout = Layout::hole("disk", 24 << 20).data(1 << 20..17 << 20, &mut rng);
    let (image, copy) = (store.path("image"), store.copy());
    layout.write(&image);
    let image_text = image.to_str().unwrap();
    run(&mut go(&["publish", image_text, name])).ok();
    run(go(&[name]).arg(&copy)).ok();
    let old = store.path("old");
    fs::copy(&image, &old).unwrap();
    let (mut publishers, mut pulls) = (0, 0);
    for nth in 0..kills() {
        let at = rng.below(22) << 20;
        layout = layout.data(at..at + (2 << 20), &mut rng);
        layout.write(&image);
        let pause = |rng: &mut Rng, most: usize| thread::sleep(Duration::from_millis(rng.below(most) as u64));
        let publisher = start(&mut go(&["publish", image_text, name]));
        pause(&mut rng, 250);
        publisher.signal(Signal::SIGKILL);
        publishers += u64::from(publisher.finish().code == -1);
        if nth % 3 == 0 {
            server.restart();
        }
        // The newest version may not be named yet: that is done when it is published again.
        let checked = run(&mut go(&["check", name]));
        let is_unnamed = checked.code == 23 && checked.stderr.lines().count() == 1;
        if checked.code != 0 {
            assert!(
                is_unnamed && checked.stderr.contains("is not the newest version that is there"),
                "{checked}"
            );
        }
        // What was the newest, or is.
        let there = store.path("there");
        let _ = fs::remove_file(&there);
        run(go(&[name]).arg(&there)).ok();
        assert!(same(&there, &image) || same(&there, &old), "{nth}");
        run(&mut go(&["publish", image_text, name])).ok();
        run(&mut go(&["check", name])).ok();
        let pull = start(go(&["-I", name]).arg(&copy));
        pause(&mut rng, 60);
        if nth % 4 == 1 {
            server.restart();
        } else {
            pull.signal(Signal::SIGKILL);
        }
        pulls += u64::from(pull.finish().code != 0);
        // A log that was sealed is finished; what else there is stays for the next run.
        run(store.holesync().arg("recover").arg(&copy)).ok();
        assert!(same(&copy, &image) || same(&copy, &old), "{nth}");
        run(go(&["-I", name]).arg(&copy)).ok();
        assert_same(&image, &copy);
        assert_no_leftovers(&store.path("to"));
        fs::copy(&image, &old).unwrap();
        if nth % 5 == 4 {
            run(&mut go(&["prune", name, "--keep=2", "--grace=0s"])).ok();
        }
    }
    run(&mut go(&["prune", name, "--keep=1", "--grace=0s"])).ok();
    run(&mut go(&["check", name])).ok();
    lab::count(&format!("killed at a bucket: {publishers} publishers, {pulls} pulls"));
}

#[test]
fn a_pull_from_nginx_goes_on_from_what_it_had() {
    let Some(nginx) = Nginx::plain() else { return };
    let store = Store::new(lab::scratch());
    let layout = Layout::dense("disk", 24 << 20, &mut Rng(4));
    let image = store.path("image");
    layout.write(&image);
    run(holesync().arg("publish").arg(&image).arg(nginx.root().join("disk"))).ok();
    let pull = |flags: &[&str]| {
        let mut command = store.holesync();
        command.args(flags).arg(nginx.url("disk")).arg(store.copy());
        command
    };
    let slow = start(&mut pull(&["--bwlimit=4000", "--jobs=2"]));
    let temp = || {
        let dir = fs::read_dir(store.path("to")).unwrap().next().transpose().unwrap();
        dir.is_some_and(|entry| taken(&entry.path()) > 3 << 20)
    };
    assert!(wait_until(Duration::from_secs(60), temp), "nothing came");
    slow.signal(Signal::SIGKILL);
    slow.finish().code(-1);
    assert!(!store.copy().exists());
    let rest = run(&mut pull(&["--json"])).ok();
    assert!(rest.count("sent_data_bytes") <= 21 << 20, "{}", rest.count("sent_data_bytes"));
    assert_same(&image, &store.copy());
    // What was gone on from is read once; then one that has it asks for the head alone.
    let read = run(&mut pull(&["--json"])).ok();
    assert_eq!((read.count("sent_data_bytes"), read.count("files_sent")), (0, 0));
    nginx.forget();
    run(&mut pull(&[])).ok();
    assert_eq!(nginx.answered(1).len(), 1);
    // A signal says that the same command goes on.
    fs::remove_file(store.copy()).unwrap();
    let slow = start(&mut pull(&["--bwlimit=2000"]));
    assert!(wait_until(Duration::from_secs(60), || fs::read_dir(store.path("to")).unwrap().next().is_some()));
    slow.signal(Signal::SIGINT);
    slow.finish().code(20);
}

#[test]
fn a_server_without_ranges_does_for_a_first_deploy() {
    let Some(nginx) = Nginx::start(1, "server { listen 127.0.0.1:PORT0; max_ranges 0; }") else {
        return;
    };
    let store = Store::new(lab::scratch());
    let layout = Layout::hole("disk", 12 << 20).data(1 << 20..5 << 20, &mut Rng(4));
    let image = store.path("image");
    layout.write(&image);
    let root = nginx.root();
    run(holesync().arg("publish").arg(&image).arg(root.join("disk"))).ok();
    let pull =
        |name: &str, flags: &[&str]| run(store.holesync().args(flags).arg(nginx.url(name)).arg(store.copy()));
    // One that was interrupted is a first one still.
    let mut slow = store.holesync();
    let slow = start(slow.args(["--bwlimit=2000", "--jobs=1"]).arg(nginx.url("disk")).arg(store.copy()));
    let temp = || {
        let dir = fs::read_dir(store.path("to")).unwrap().next().transpose().unwrap();
        dir.is_some_and(|entry| taken(&entry.path()) > 1 << 20)
    };
    assert!(wait_until(Duration::from_secs(60), temp), "nothing came");
    slow.signal(Signal::SIGKILL);
    slow.finish().code(-1);
    assert!(!store.copy().exists());
    pull("disk", &[]).ok().says(&[&nginx.url("disk"), "the server has no ranges"]);
    assert_same(&image, &store.copy());
    fs::remove_file(store.copy()).unwrap();
    let first = pull("disk", &[]).ok();
    assert!(!first.stderr.contains("has no ranges"), "{first}");
    assert_same(&image, &store.copy());
    let changed = layout.data(2 << 20..(2 << 20) + 65536, &mut Rng(5));
    changed.write(&image);
    run(holesync().arg("publish").arg(&image).arg(root.join("disk"))).ok();
    pull("disk", &[]).code(12).says(&["that does for a first deploy alone"]);
    pull("disk", &["-W"]).ok();
    assert_same(&image, &store.copy());
    // A plain image, which ends with zeros.
    fs::copy(&image, root.join("plain")).unwrap();
    run(holesync().args(["publish", "--raw"]).arg(root.join("plain")).arg(root.join("plain"))).ok();
    fs::remove_file(store.copy()).unwrap();
    pull("plain", &[]).ok();
    assert_same(&image, &store.copy());
    // One of many pieces is read once, as far as it has data.
    let image = (0..3000).fold(Layout::hole("pieces", 64 << 20), |layout, nth| {
        layout.data(nth * 8192..nth * 8192 + 4096, &mut Rng(nth as u64 + 1))
    });
    image.write(&root.join("pieces"));
    run(holesync().args(["publish", "--raw", "-B4K"]).arg(root.join("pieces")).arg(root.join("pieces"))).ok();
    for flags in [&["-IW"][..], &["-IW", "--jobs=1"], &["-IW", "--inplace"]] {
        nginx.forget();
        pull("pieces", flags).ok();
        assert_same(&root.join("pieces"), &store.copy());
        let asked = nginx.answered(4);
        assert_eq!(asked.iter().filter(|asked| asked.path == "/pieces").count(), 2, "{asked:?}");
    }
}
