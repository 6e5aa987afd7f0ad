//! The one entry to a destination: what counts as equal, what a dry run tells, and what
//! finishing says of a change.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use holesync::apply::recover::{Recovered, recover};
use holesync::apply::stage::Stage;
use holesync::apply::stage::log::{Identity, Seal};
use holesync::apply::{
    Attributes, BasisState, Destination, Opened, Place, Precision, QuickCheck, Setup, Wanted,
};
use holesync::hashmap::{Grid, Hash, root_of};
use holesync::options::{BlockSize, Commit, Options};
use holesync::scan::FileImage;
use tempfile::TempDir;

const TIME: (i64, u32) = (1_000_000_000, 123_456_789);

struct Lab(TempDir);

impl Lab {
    /// A destination that holds these bytes and has another mode, if any.
    fn new(bytes: Option<&[u8]>) -> Lab {
        let lab = Lab(tempfile::tempdir().expect("a directory"));
        if let Some(bytes) = bytes {
            fs::write(lab.path("image"), bytes).expect("write");
            fs::set_permissions(lab.path("image"), PermissionsExt::from_mode(0o600)).expect("chmod");
        }
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn has_time(&self, seconds: i64, nanoseconds: u32) {
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(seconds as u64, nanoseconds);
        File::open(self.path("image")).and_then(|file| file.set_modified(time)).expect("set the time");
    }

    fn place(&self) -> Place {
        let dir = Arc::new(File::open(self.0.path()).expect("open").into());
        Place::new(dir, "image".into(), self.path("image"))
    }

    fn open(&self, wanted: Wanted, options: Options) -> Opened {
        let place = self.place();
        let options = Options { fsync: false, ..options };
        let opening = Destination::open(place, wanted, &Setup::new(Arc::new(options))).expect("open");
        assert!(
            matches!(opening.recovered, Recovered::Nothing | Recovered::NotBegun),
            "{:?}",
            opening.recovered
        );
        opening.opened
    }

    fn mode(&self) -> u32 {
        fs::metadata(self.path("image")).expect("stat").mode() & 0o7777
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.0.path()).expect("list").map(|entry| entry.expect("list").file_name());
        let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn wanted(length: u64, quick_check: QuickCheck) -> Wanted {
    let attributes = Attributes { mode: Some(0o640), mtime: Some(TIME), ..Attributes::default() };
    Wanted { length, data: length, whole: false, quick_check, attributes }
}

fn exactly(length: u64) -> Wanted {
    wanted(length, QuickCheck::Time(Precision::Nanoseconds))
}

fn different(opened: Opened) -> Destination {
    match opened {
        Opened::Different(destination) => *destination,
        _ => panic!("not open"),
    }
}

#[test]
fn an_equal_file_gets_its_attributes_and_loses_what_earlier_runs_left() {
    let lab = Lab::new(Some(b"12345"));
    lab.has_time(TIME.0, TIME.1);
    for kind in ["temp", "clone", "stage"] {
        fs::write(lab.path(&format!(".image.holesync.{kind}")), "left").expect("write");
    }
    assert!(matches!(lab.open(exactly(5), Options::default()), Opened::Equal { .. }));
    assert_eq!(lab.names(), ["image"]);
    assert_eq!(lab.mode(), 0o640);
}

#[test]
fn what_is_not_equal_is_opened_and_left_as_it_is() {
    let lab = Lab::new(Some(b"12345"));
    lab.has_time(TIME.0, 7);
    let checksum = Options { checksum: true, ..Options::default() };
    let size_only = Options { size_only: true, ..Options::default() };
    different(lab.open(exactly(5), Options::default()));
    different(lab.open(exactly(6), size_only.clone()));
    different(lab.open(wanted(5, QuickCheck::Time(Precision::Seconds)), checksum));
    different(lab.open(wanted(5, QuickCheck::Never), size_only.clone()));
    assert_eq!((lab.mode(), lab.names()), (0o600, vec!["image".to_owned()]));
    assert!(matches!(
        lab.open(wanted(5, QuickCheck::Time(Precision::Seconds)), Options::default()),
        Opened::Equal { .. }
    ));
}

#[test]
fn a_dry_run_tells_what_there_is_and_touches_nothing() {
    let dry_run = || Options { dry_run: true, ..Options::default() };
    let lab = Lab::new(Some(b"12345"));
    lab.has_time(TIME.0, TIME.1);
    fs::write(lab.path(".image.holesync.temp"), "left").expect("write");
    let Opened::Preview(found) = lab.open(exactly(6), dry_run()) else { panic!("no preview") };
    assert!(found.changes_length && found.basis.is_some_and(|basis| basis.length == 5));
    let whole = Wanted { whole: true, ..wanted(5, QuickCheck::Never) };
    let Opened::Preview(found) = lab.open(whole, dry_run()) else { panic!("no preview") };
    assert!(!found.changes_length && found.basis.is_none());
    assert!(matches!(lab.open(exactly(5), dry_run()), Opened::Equal { .. }));
    assert_eq!((lab.mode(), lab.names().len()), (0o600, 2));
    let Opened::Preview(found) = Lab::new(None).open(exactly(6), dry_run()) else { panic!("no preview") };
    assert!(found.changes_length && found.basis.is_none());
}

/// What a destination of 3 pages comes to when something is done to it.
fn finish(old: Option<&[u8]>, wanted: Wanted, commit: Commit, change: impl Fn(&mut Destination)) -> bool {
    let lab = Lab::new(old);
    let length = wanted.length;
    let mut destination = different(lab.open(wanted, Options { commit, ..Options::default() }));
    change(&mut destination);
    // Nothing is read back.
    let finished = destination.finish(&Hash::default(), u64::MAX).expect("finish");
    assert_eq!(lab.names(), ["image"]);
    assert_eq!((lab.mode(), fs::metadata(lab.path("image")).expect("stat").len()), (0o640, length));
    finished.changed
}

#[test]
fn finishing_says_whether_the_file_changed() {
    const OLD: &[u8] = &[1; 3 * 4096];
    let compared = |length| wanted(length, QuickCheck::Never);
    let write = |destination: &mut Destination| destination.write(4096, &[2; 10]).expect("write");
    for commit in [Commit::Auto, Commit::Atomic, Commit::InPlace] {
        assert!(!finish(Some(OLD), compared(3 * 4096), commit, |_| {}), "{commit:?}: nothing was done");
        assert!(finish(Some(OLD), compared(3 * 4096), commit, write), "{commit:?}: it was written");
        assert!(finish(Some(OLD), compared(2 * 4096), commit, |_| {}), "{commit:?}: it is shorter");
        assert!(finish(Some(OLD), compared(4 * 4096), commit, |_| {}), "{commit:?}: it is longer");
        assert!(!finish(Some(b""), compared(0), commit, |_| {}), "{commit:?}: both are empty");
        assert!(finish(None, compared(0), commit, |_| {}), "{commit:?}: there was nothing");
    }
    let whole = Wanted { whole: true, ..compared(3 * 4096) };
    assert!(finish(Some(OLD), whole, Commit::Auto, |_| {}), "zeros took the place of data");
}

#[test]
fn what_is_known_of_the_basis_follows_the_way() {
    let state = |old: Option<&[u8]>, whole, commit| {
        let wanted = Wanted { whole, ..wanted(5, QuickCheck::Never) };
        let lab = Lab::new(old);
        different(lab.open(wanted, Options { commit, ..Options::default() })).basis_state()
    };
    assert_eq!(state(None, false, Commit::Auto), BasisState::Blank);
    assert_eq!(state(Some(b""), false, Commit::Auto), BasisState::Blank);
    assert_eq!(state(Some(b"123"), true, Commit::Auto), BasisState::Blank);
    assert_eq!(state(Some(b"123"), false, Commit::Auto), BasisState::Mapped);
    assert_eq!(state(Some(b"123"), true, Commit::InPlace), BasisState::Unknown);
    assert_eq!(state(Some(b"123"), false, Commit::InPlace), BasisState::Mapped);
}

/// A log that is not sealed is of use to a run that goes on from it, and no other removes it
/// before it has something to put in the place of the file.
#[test]
fn a_stage_of_an_earlier_run_stays_until_the_file_is_replaced() {
    let lab = Lab::new(Some(&[1; 3 * 4096]));
    let files = [lab.path(".image.holesync.log"), lab.path(".image.holesync.stage")];
    let mut kept = different(lab.open(wanted(3 * 4096, QuickCheck::Never), Options::default()));
    kept.write(4096, &[2; 4096]).expect("write");
    kept.keep();
    if lab.names().contains(&".image.holesync.temp".to_owned()) {
        // This file system clones: there is no stage.
        return;
    }
    let whole = || Wanted { whole: true, ..wanted(4096, QuickCheck::Never) };
    let mut broken = different(lab.open(whole(), Options::default()));
    broken.write(0, &[3; 100]).expect("write");
    broken.discard();
    drop(broken);
    assert!(files.iter().all(|file| file.exists()), "{:?}", lab.names());
    let mut resumed = different(lab.open(wanted(3 * 4096, QuickCheck::Never), Options::default()));
    let basis = resumed.basis().expect("a basis");
    let mut page = [0; 4096];
    basis.image.read_at(&mut page, 4096).expect("read");
    assert_eq!(page, [2; 4096]);
    // It holds the lock, too.
    drop(basis);
    resumed.write(0, &[4; 10]).expect("write");
    resumed.keep();
    let mut done = different(lab.open(whole(), Options::default()));
    done.write(0, &[5; 4096]).expect("write");
    // Nothing is read back.
    done.finish(&Hash::default(), 0).expect("finish");
    assert_eq!(lab.names(), ["image"]);
    let mut found = [0; 4096];
    File::open(lab.path("image")).and_then(|file| file.read_exact_at(&mut found, 0)).expect("read");
    assert_eq!(found, [5; 4096]);
}

/// Waits for a lock as a second run does, while the first one seals a log and dies: what
/// was looked at before the lock was there must not count.
#[test]
fn a_log_that_was_sealed_while_its_lock_was_awaited_is_finished() {
    let lab = Lab::new(Some(&[1; 8192]));
    let old = File::options().read(true).write(true).open(lab.path("image")).expect("open");
    let identity = Identity::of(&old).expect("identity");
    let stage = || {
        let create = |kind: &str| {
            let path = lab.path(&format!(".image.holesync.{kind}"));
            let _ = fs::remove_file(&path);
            let file = File::options().read(true).write(true).create_new(true).open(&path).expect("create");
            file.set_permissions(PermissionsExt::from_mode(0o600)).expect("chmod");
            file
        };
        let mut stage = Stage::begin(create("stage"), create("log"), identity).expect("begin");
        stage.write(4096, &[2; 4096]).expect("write");
        stage.flush().expect("flush");
        stage
    };
    // What a run left long ago.
    drop(stage());
    let mut new = vec![1; 4096];
    new.extend([2; 4096]);
    let image = FileImage::new(tempfile::tempfile().expect("a file"), true);
    image.file().write_all_at(&new, 0).expect("write");
    let grid = Grid { length: 8192, block: BlockSize::default() };
    let root = root_of(&image, &grid, |_| true).expect("read").expect("not stopped");
    let (block_size, attributes) = (64 << 10, Attributes::default());
    let seal = Seal { length: 8192, block_size, root, attributes, preallocate: false };
    old.lock().expect("lock");
    let recovered = std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| recover(&lab.place(), None, &Options { fsync: false, ..Options::default() }));
        // It has seen that log when it sleeps for the lock.
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(stage().seal(&seal, false).expect("seal"));
        old.unlock().expect("unlock");
        waiting.join().expect("no panic")
    });
    assert!(matches!(recovered.expect("recovered"), Recovered::Finished { .. }));
    assert!(fs::read(lab.path("image")).expect("read") == new);
    assert_eq!(lab.names(), ["image"]);
}

/// Of a run that still fills its temp file, when an image comes by another way.
#[test]
fn what_another_run_is_filling_is_not_removed() {
    let lab = Lab::new(None);
    let mut filling = different(lab.open(wanted(8192, QuickCheck::Never), Options::default()));
    filling.write(0, &[1; 4096]).expect("write");
    fs::write(lab.path("image"), [2; 8192]).expect("write");
    lab.has_time(TIME.0, TIME.1);
    let exactly = wanted(8192, QuickCheck::Time(Precision::Nanoseconds));
    assert!(matches!(lab.open(exactly, Options::default()), Opened::Equal { .. }));
    assert_eq!(lab.names(), [".image.holesync.temp", "image"]);
    drop(different(
        lab.open(wanted(8192, QuickCheck::Never), Options { commit: Commit::InPlace, ..Options::default() }),
    ));
    assert_eq!(lab.names(), [".image.holesync.temp", "image"]);
    filling.keep();
}
