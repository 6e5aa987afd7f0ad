//! Stores that give whole objects alone: a web server, and what is read as a bucket.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::check::{assert_begins_with, same};
use crate::common::lab::{self, Loop};
use crate::common::layout::{Layout, Rng};
use crate::common::nginx::Nginx;
use crate::common::process::{Outcome, run};
use crate::store::Store;

/// nginx, which answers a request for a part with all.
struct Whole {
    nginx: Nginx,
    store: Store,
}

impl Whole {
    fn start() -> Option<Whole> {
        let nginx = Nginx::start(1, "server { listen 127.0.0.1:PORT0; max_ranges 0; }")?;
        fs::create_dir(nginx.root().join("images")).unwrap();
        Some(Whole { nginx, store: Store::new(lab::scratch()) })
    }

    fn publish(&self, image: &Path, name: &str, flags: &[&str]) {
        let to = self.nginx.root().join("images").join(name);
        if flags.contains(&"--raw") {
            fs::copy(image, &to).unwrap();
        }
        run(self.store.holesync().arg("publish").args(flags).arg(image).arg(to)).ok();
    }

    /// The ways to it.
    fn urls(&self, name: &str) -> [String; 2] {
        [self.nginx.url(&format!("images/{name}")), format!("s3://images/{name}")]
    }

    fn holesync(&self) -> Command {
        let mut command = self.store.holesync();
        command.env("AWS_ENDPOINT_URL", self.nginx.url("").trim_end_matches('/'));
        command.env("AWS_SKIP_SIGNATURE", "true");
        command
    }

    fn pull(&self, flags: &[&str], url: &str, to: &Path) -> Outcome {
        run(self.holesync().args(flags).arg(url).arg(to))
    }
}

#[test]
fn whole_objects_make_a_first_deploy_and_w_and_no_redeploy() {
    let Some(whole) = Whole::start() else { return };
    let mut rng = Rng(31);
    let layout = Layout::hole("disk", 24 << 20).data(1 << 20..14 << 20, &mut rng);
    let (image, old) = (whole.store.path("image"), whole.store.path("old"));
    layout.write(&image);
    layout.data(1 << 20..9 << 20, &mut rng).write(&old);
    whole.publish(&image, "packs", &[]);
    whole.publish(&image, "plain", &["--raw"]);
    let to = whole.store.path("to/copy");
    for url in ["packs", "plain"].into_iter().flat_map(|name| whole.urls(name)) {
        let _ = fs::remove_dir_all(whole.store.path("home"));
        let _ = fs::remove_file(&to);
        whole.pull(&[], &url, &to).ok();
        assert!(same(&image, &to), "{url}");
        for flags in [&["-W"][..], &["-W", "--inplace"], &["-W", "--jobs=1"]] {
            fs::copy(&old, &to).unwrap();
            whole.pull(flags, &url, &to).ok();
            assert!(same(&image, &to), "{url} {flags:?}");
        }
        fs::copy(&old, &to).unwrap();
        whole.pull(&[], &url, &to).code(12).says(&["-W"]);
        assert!(same(&old, &to), "{url}");
    }
}

#[test]
fn a_device_gets_all_of_whole_objects() {
    let Some(whole) = Whole::start().filter(|_| lab::is_root()) else { return };
    let mut rng = Rng(32);
    let image = whole.store.path("image");
    Layout::hole("disk", 12 << 20).data(1 << 20..11 << 20, &mut rng).write(&image);
    whole.publish(&image, "packs", &[]);
    whole.publish(&image, "plain", &["--raw"]);
    for url in ["packs", "plain"].into_iter().flat_map(|name| whole.urls(name)) {
        let disk = whole.store.path("disk");
        fs::write(&disk, vec![7; 12 << 20]).unwrap();
        let device = Loop::over(&disk);
        whole.pull(&["-W"], &url, &device.0).ok();
        assert_begins_with(&device.0, &image);
    }
}
