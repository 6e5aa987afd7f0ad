//! Working files that another user made, or that are not as this process makes them: they
//! are not believed, and in nobody's way.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holesync::apply::Attributes;
use holesync::apply::stage::Stage;
use holesync::apply::stage::log::{Identity, Seal};
use holesync::hashmap::{Grid, root_of};
use holesync::options::BlockSize;
use holesync::scan::FileImage;
use holesync::working::{Naming, Working};
use tempfile::TempDir;

use crate::common::check::{assert_no_leftovers, assert_same, leftovers};
use crate::common::faults::{can_trace, killed_at};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, PROGRAM, holesync, run, start, wait_until};
use crate::common::redeploy::{Redeploy, every};
use crate::common::users::{as_user, wrapped};

const USER: u32 = 65534;
const BLOCK: usize = 64 << 10;

/// A directory of a user, with an image and a program that they can run.
struct Home {
    dir: TempDir,
    program: PathBuf,
}

impl Home {
    fn new() -> Option<Home> {
        if !lab::is_root() {
            return None;
        }
        let dir = lab::dir(Fs::Ext4)?;
        let program = lab::install(PROGRAM.as_ref(), dir.path());
        let home = Home { dir, program };
        fs::create_dir(home.path("")).expect("mkdir");
        fs::set_permissions(home.dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
        chown(home.path(""), Some(USER), Some(USER)).expect("chown");
        Some(home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("home").join(name)
    }

    /// A file of the user's.
    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("write");
        chown(&path, Some(USER), Some(USER)).expect("chown");
        path
    }

    /// Runs the program as the user.
    fn run(&self, args: &[&Path]) -> Outcome {
        run(wrapped(&as_user("65534", "65534"), &self.program).args(args))
    }
}

/// Seals a log and a stage that make the first block of `image` something else, and the
/// file whatever `attributes` say; they belong to `owner`.
fn forge(image: &Path, owner: u32, mode: u32, attributes: Attributes) -> [PathBuf; 2] {
    let old = File::open(image).expect("open");
    let beside = |kind: &str| {
        let name = format!(".{}.holesync.{kind}", image.file_name().unwrap().to_str().unwrap());
        image.with_file_name(name)
    };
    let create = |path: &Path| {
        let file = File::options().read(true).write(true).create_new(true).open(path).expect("create");
        file.set_permissions(PermissionsExt::from_mode(mode)).expect("chmod");
        chown(path, Some(owner), Some(owner)).expect("chown");
        file
    };
    let paths = [beside("stage"), beside("log")];
    let identity = Identity::of(&old).expect("identity");
    let mut stage = Stage::begin(create(&paths[0]), create(&paths[1]), identity).expect("begin");
    stage.write(0, &[7; BLOCK]).expect("write");
    let mut new = fs::read(image).expect("read");
    new[..BLOCK].fill(7);
    let copy = FileImage::new(tempfile::tempfile().expect("a file"), true);
    copy.file().write_all_at(&new, 0).expect("write");
    let grid = Grid { length: new.len() as u64, block: BlockSize::default() };
    let root = root_of(&copy, &grid, |_| true).expect("hash").expect("a root");
    let seal =
        Seal { length: grid.length, block_size: grid.block.into(), root, attributes, preallocate: false };
    stage.seal(&seal, true).expect("seal");
    paths
}

fn setuid_root() -> Attributes {
    Attributes { mode: Some(0o4755), uid: Some(0), gid: Some(0), ..Attributes::default() }
}

fn owner_and_mode(path: &Path) -> (u32, u32) {
    let found = fs::metadata(path).expect("stat");
    (found.uid(), found.mode() & 0o7777)
}

#[test]
fn a_log_that_the_owner_of_a_file_sealed_gives_nobody_a_program_of_roots() {
    let Some(home) = Home::new() else { return };
    let new = home.dir.path().join("new");
    fs::write(&new, [3; 2 * BLOCK]).expect("write");
    for arguments in
        [vec!["recover".as_ref(), home.path("").leak()], vec!["recover".as_ref(), home.path("img").leak()]]
    {
        let (image, keep) = (home.write("img", &[1; 2 * BLOCK]), home.path("keep"));
        fs::hard_link(&image, &keep).expect("link");
        forge(&image, USER, 0o600, setuid_root());
        let outcome = run(holesync().args(&arguments));
        outcome.code(23).says(&["img", "user 65534"]);
        assert_eq!(owner_and_mode(&keep), (USER, 0o644));
        assert_eq!(fs::read(&image).expect("read"), [1; 2 * BLOCK]);
        // A run is not kept from its work, and finds the image worth comparing.
        run(holesync().arg("--size-only").arg(&new).arg(&image)).ok();
        assert_same(&image, &new);
        assert_eq!(owner_and_mode(&keep), (USER, 0o644));
        assert_ne!(fs::metadata(&image).expect("stat").ino(), fs::metadata(&keep).expect("stat").ino());
        assert!(leftovers(&home.path("")).is_empty());
        fs::remove_file(keep).expect("remove");
    }
}

#[test]
fn a_log_is_sealed_by_this_user_alone_and_for_nobody_else_to_write() {
    let Some(home) = Home::new() else { return };
    let linked = |paths: &[PathBuf; 2]| fs::hard_link(&paths[1], home.path("another name")).expect("link");
    let opened = |paths: &[PathBuf; 2]| {
        fs::set_permissions(&paths[0], PermissionsExt::from_mode(0o660)).expect("chmod")
    };
    let as_it_is = |_: &[PathBuf; 2]| {};
    type Change<'a> = &'a dyn Fn(&[PathBuf; 2]);
    let cases: [(u32, u32, Change, bool); 6] = [
        (0, 0o600, &as_it_is, true),
        (0, 0o644, &as_it_is, false),
        (0, 0o660, &as_it_is, false),
        (USER, 0o600, &as_it_is, false),
        (0, 0o600, &linked, false),
        (0, 0o600, &opened, false),
    ];
    for (index, (owner, mode, change, believed)) in cases.into_iter().enumerate() {
        let image = home.write(&format!("image{index}"), &[1; 2 * BLOCK]);
        let attributes = Attributes { mode: Some(0o640), ..Attributes::default() };
        change(&forge(&image, owner, mode, attributes));
        let outcome = run(holesync().arg("recover").arg(&image));
        assert_eq!(outcome.code == 0, believed, "case {index}: {outcome}");
        let first = fs::read(&image).expect("read")[0];
        assert_eq!(
            (first, owner_and_mode(&image).1),
            if believed { (7, 0o644) } else { (1, 0o644) },
            "case {index}"
        );
    }
}

/// A file of root's may be one that a user had him write: where others may rename, the
/// content of a seal counts, and nothing of its attributes.
#[test]
fn a_seal_gives_nothing_away_where_others_may_rename() {
    let Some(home) = Home::new() else { return };
    let own = home.dir.path().join("own");
    fs::create_dir(&own).expect("mkdir");
    for (dir, mode, applied) in [
        (home.path(""), 0o755, false),
        (own.clone(), 0o1777, false),
        (own.clone(), 0o775, false),
        (own, 0o755, true),
    ] {
        let image = dir.join("image");
        fs::write(&image, [1; 2 * BLOCK]).expect("write");
        chown(&image, Some(USER), Some(USER)).expect("chown");
        forge(&image, 0, 0o600, setuid_root());
        fs::set_permissions(&dir, PermissionsExt::from_mode(mode)).expect("chmod");
        run(holesync().arg("recover").arg(&image)).ok();
        assert_eq!(fs::read(&image).expect("read")[0], 7);
        let expected = if applied { (0, 0o4755) } else { (USER, 0o644) };
        assert_eq!(owner_and_mode(&image), expected, "{} {mode:o}", dir.display());
        fs::remove_file(&image).expect("remove");
    }
}

/// What had one name when its log was sealed is not written where it has two.
#[test]
fn a_file_that_got_another_name_since_is_not_replayed_into() {
    let Some(home) = Home::new() else { return };
    let image = home.write("image", &[1; 2 * BLOCK]);
    fs::hard_link(&image, home.path("another name")).expect("link");
    forge(&image, 0, 0o600, Attributes::default());
    run(holesync().arg("recover").arg(&image)).code(23).says(&["damaged"]);
    assert_eq!(fs::read(&image).expect("read"), [1; 2 * BLOCK]);
}

/// A log that another user sealed under a name of their own, and one that a run of this user
/// has under a name that no later run looks for.
#[test]
fn recover_finds_logs_under_every_name() {
    let Some(home) = Home::new() else { return };
    let uid = nix::unistd::geteuid().as_raw();
    for (owner, naming, code) in [
        (USER, Naming::User(USER), 23),
        (USER, Naming::Once(USER, 5), 23),
        (uid, Naming::User(uid), 0),
        (uid, Naming::Once(uid, 5), 0),
    ] {
        let image = home.write("image", &[1; 2 * BLOCK]);
        let made = forge(&image, owner, 0o600, Attributes::default());
        for (path, kind) in made.iter().zip([Working::Stage, Working::Log]) {
            fs::rename(path, home.path("").join(kind.name_for("image".as_ref(), naming))).expect("rename");
        }
        for path in [home.path("image"), home.path("")] {
            let outcome = run(holesync().arg("recover").arg(&path)).code(code);
            assert!(code == 0 || outcome.stderr.contains("user 65534"), "{naming:?}: {outcome}");
            if code == 0 {
                assert_eq!(fs::read(&image).expect("read")[0], 7, "{naming:?}");
                break;
            }
        }
        leftovers(&home.path("")).iter().for_each(|name| fs::remove_file(home.path(name)).expect("remove"));
    }
}

/// A symlink and a directory of a tree that became something else before they got their
/// attributes.
#[test]
fn attributes_go_to_what_was_made() {
    let Some(home) = Home::new() else { return };
    if !can_trace() {
        return;
    }
    let tree = home.dir.path().join("tree");
    fs::create_dir(&tree).expect("mkdir");
    fs::create_dir(tree.join("d")).expect("mkdir");
    fs::write(tree.join("d/file"), "x").expect("write");
    fs::set_permissions(tree.join("d"), PermissionsExt::from_mode(0o777)).expect("chmod");
    chown(tree.join("d"), Some(USER), Some(USER)).expect("chown");
    let there = home.path("there");
    let secret = home.path("secret");
    fs::create_dir(&secret).expect("mkdir");
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o700)).expect("chmod");
    // The rename of the file waits, and meanwhile its directory is another.
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat,renameat2"]);
    traced.args(["-e", "inject=renameat,renameat2:delay_exit=6000000:when=1"]);
    let running = start(traced.arg(PROGRAM).arg("-a").arg(tree.join("")).arg(&there));
    assert!(wait_until(Duration::from_secs(20), || there.join("d/file").exists()));
    fs::rename(there.join("d"), home.path("moved")).expect("rename");
    fs::rename(&secret, there.join("d")).expect("rename");
    running.finish().code(23).says(&["another directory has its name"]);
    assert_eq!(owner_and_mode(&there.join("d")), (0, 0o700));
}

/// Everything that can have the name of a working file, made by root and by another user, in
/// a directory where the user may remove it and in one where they may not.
#[test]
fn what_has_the_name_of_a_working_file_is_in_nobodys_way() {
    let Some(home) = Home::new() else { return };
    let secret = home.dir.path().join("secret");
    fs::write(&secret, "secret").expect("write");
    let old = [1; 3 * BLOCK];
    let mut bytes = old;
    bytes[5] = 2;
    let new = home.write("new", &bytes);
    for (sticky, kind) in [false, true]
        .into_iter()
        .flat_map(|sticky| ["temp", "clone", "log", "stage"].map(|kind| (sticky, kind)))
    {
        let mode = if sticky { 0o1777 } else { 0o755 };
        for what in ["empty", "file", "readable", "link", "dangling", "fifo", "directory", "hard link"] {
            for is_there in [false, true] {
                let dir = home.path("dir");
                fs::create_dir(&dir).expect("mkdir");
                fs::set_permissions(&dir, PermissionsExt::from_mode(mode)).expect("chmod");
                chown(&dir, Some(if sticky { 0 } else { USER }), None).expect("chown");
                let image = if is_there { home.write("dir/image", &old) } else { dir.join("image") };
                let planted = dir.join(format!(".image.holesync.{kind}"));
                plant(&planted, what, &secret);
                let case = format!("{what} as {kind}, sticky {sticky}, image {is_there}");
                let outcome = home.run(&["-I".as_ref(), &new, &image]);
                assert_eq!(outcome.code, 0, "{case}: {outcome}");
                assert_same(&image, &new);
                let left = leftovers(&dir);
                assert!(
                    left.is_empty() || sticky && left == [format!(".image.holesync.{kind}")],
                    "{case}: {left:?}"
                );
                assert_eq!(fs::read(&secret).expect("read"), b"secret", "{case}");
                // What root's own run finds planted, it removes.
                fs::write(&new, old).expect("write");
                run(holesync().arg("-I").arg(&new).arg(&image)).ok();
                assert_same(&image, &new);
                assert_eq!(fs::read(&secret).expect("read"), b"secret", "{case}");
                home.write("new", &bytes);
                fs::remove_dir_all(&dir).expect("remove");
            }
        }
    }
}

fn plant(path: &Path, what: &str, secret: &Path) {
    let mode = |mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod");
    match what {
        "link" => symlink(secret, path).expect("symlink"),
        "dangling" => symlink("nowhere", path).expect("symlink"),
        "fifo" => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo"),
        "directory" => fs::create_dir(path).expect("mkdir"),
        "hard link" => fs::hard_link(secret, path).expect("link"),
        _ => {
            fs::write(path, if what == "empty" { &[][..] } else { &[9; 100_000] }).expect("write");
            mode(if what == "readable" { 0o644 } else { 0o600 });
        }
    }
}

/// Where the common names are another's, what an interrupted run left is found again under
/// names of this user, a sealed log too.
#[test]
fn an_interrupted_run_goes_on_beside_the_files_of_another_user() {
    for (call, nth) in [("fdatasync", 1), ("copy_file_range", 3)] {
        let Some(target) = lab::dir(Fs::Ext4).filter(|_| lab::is_root() && can_trace()) else { return };
        let sources = lab::scratch();
        let mut rng = Rng(29);
        let old = Layout::dense("old", 24 * BLOCK, &mut rng);
        let new = every(6, &old, &mut rng);
        let redeploy = Redeploy::new(sources.path(), target.path(), Some(&old), &new, &new);
        let planted = target.path().join(".image.holesync.stage");
        fs::write(&planted, "another's").expect("write");
        chown(&planted, Some(USER), None).expect("chown");
        let killed = run(killed_at(sources.path(), call, nth).holesync().args(redeploy.push("new")));
        assert_ne!(killed.code, 0, "{killed}");
        let left = leftovers(target.path());
        assert!(left.contains(&".image.holesync-0.log".to_owned()), "{left:?}");
        // The other user's file goes, and nobody looks for the other names any more.
        if nth == 3 {
            fs::remove_file(&planted).expect("remove");
        }
        let outcome = redeploy.finish(&Peer::pipe(sources.path()), &[], "new");
        assert_eq!(outcome.count("sent_data_bytes"), 0, "{outcome}");
        assert_no_leftovers(target.path());
    }
}

/// A file system that shows one owner and one mode for all files, as servers do that squash
/// root, and mounts with fixed numbers.
fn squashed() -> Option<lab::Mounted> {
    lab::is_root().then(|| {
        lab::Mounted::new(
            64,
            &["mkntfs", "-q", "-F", "-f"],
            &["-t", "ntfs-3g", "-o", "loop,uid=65534,gid=65534,umask=022"],
        )
    })
}

#[test]
fn where_all_files_have_one_owner_a_run_finds_its_own_again() {
    let Some(squashed) = squashed().filter(|_| can_trace()) else { return };
    let sources = lab::scratch();
    let image = squashed.path().join("image");
    let layout = Layout::dense("new", 64 * BLOCK, &mut Rng(31));
    let new = sources.path().join("new");
    layout.write(&new);
    let to = |peer: &Peer| run(peer.holesync().arg("--json").arg(&new).arg(at(&image)));
    let killed = to(&killed_at(sources.path(), "pwrite64", 3));
    assert_ne!(killed.code, 0, "{killed}");
    assert_eq!(leftovers(squashed.path()), [".image.holesync.temp"]);
    let outcome = to(&Peer::pipe(sources.path())).ok();
    let sent = outcome.count("sent_data_bytes");
    assert!(sent > 0 && sent < layout.len() as u64, "{outcome}");
    assert_same(&image, &new);
    assert_no_leftovers(squashed.path());
}

#[test]
fn where_all_files_have_one_owner_a_seal_counts_for_its_content_alone() {
    let Some(squashed) = squashed() else { return };
    let image = squashed.path().join("image");
    fs::write(&image, [1; 2 * BLOCK]).expect("write");
    let attributes = Attributes { mtime: Some((1_000_000_000, 0)), ..setuid_root() };
    forge(&image, USER, 0o600, attributes);
    let outcome = run(holesync().arg("recover").arg(&image)).ok();
    assert!(outcome.stdout.contains("finished"), "{outcome}");
    assert_eq!(fs::read(&image).expect("read")[..BLOCK], [7; BLOCK]);
    assert_ne!(fs::metadata(&image).expect("stat").mtime(), 1_000_000_000);
}
