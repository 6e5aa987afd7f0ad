//! New data that gathers in another directory than that of its file: `--temp-dir` and
//! `--partial-dir`. rsync says what the outcome has to be.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::check::{assert_no_leftovers, assert_same, leftovers, taken};
use crate::common::faults::{Direction, Fault};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at};
use crate::common::process::{holesync, run, start, wait_until};
use crate::common::redeploy::every;
use crate::common::tree::{Way, assert_trees, change, grow, mkdir, rsync, set_mode, set_mtime, slash, small};

const WAYS: [Way; 3] = [Way::Local, Way::Push, Way::Pull];
const LIMIT: Duration = Duration::from_secs(20);
const BLOCK: usize = 64 << 10;

/// The names in a directory.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("list").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// What differs between two directories, as rsync has it.
fn differences(dir: &Path, from: &str, to: &str) -> String {
    let args = ["-an", "--delete", "-c", "-i", from, to];
    let output = Command::new("rsync").current_dir(dir).args(args).output().expect("run rsync");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The options for a directory `dir`, beside a destination that lies there, too.
fn options(dir: &Path) -> [String; 4] {
    let dir = dir.display();
    [
        format!("--temp-dir={dir}/work"),
        "-T../work".into(),
        format!("--partial-dir={dir}/work"),
        "--partial-dir=.part".into(),
    ]
}

#[test]
fn a_tree_arrives_by_another_directory_and_nothing_is_left_there() {
    if !lab::is_root() {
        return;
    }
    for way in WAYS {
        for nth in 0..4 {
            let dir = lab::scratch();
            let path = |name: &str| dir.path().join(name);
            let (from, to, work) = (mkdir(path("from")), path("to"), mkdir(path("work")));
            let option = &options(dir.path())[nth];
            let mut rng = Rng(nth as u64);
            grow(&from, &mut rng);
            for round in 0..2 {
                let flags = ["-a", "--delete", option];
                let Some(outcome) = way.run(&flags, &[&slash(&from)], &slash(&to)) else { return };
                outcome.ok();
                let what = format!("{way:?} {option}, round {round}");
                assert_eq!(differences(dir.path(), "from/", "to/"), "", "{what}");
                assert_eq!(names(&work), Vec::<String>::new(), "{what}");
                let parts = walkdir::WalkDir::new(&to).into_iter().flatten();
                assert!(parts.into_iter().all(|entry| entry.file_name() != ".part"), "{what}");
                if round == 0 {
                    change(&from, &mut rng);
                }
            }
        }
    }
}

/// Where the file system clones, and where it does not; also with other names of the old file,
/// over a read-only file, and with a stage and a temp file that other runs left beside it.
#[test]
fn an_image_is_put_together_there_on_every_file_system() {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        let Some(dir) = lab::dir(fs) else { return };
        mkdir(dir.path().join("work"));
        for option in options(dir.path()) {
            let mut rng = Rng(5);
            let old = Layout::dense("old", 2 << 20, &mut rng);
            let (v1, v2) = (dir.path().join("v1"), dir.path().join("v2"));
            old.write(&v1);
            every(5, &old, &mut rng).write(&v2);
            let to = mkdir(dir.path().join("to"));
            let image = to.join("image");
            for flags in [&[][..], &["--whole-file"], &["--preallocate"], &["--verify"]] {
                fs::copy(&v1, &image).expect("copy");
                set_mtime(&image, 1000, 0);
                set_mode(&image, 0o440);
                for kind in ["temp", "clone", "stage"] {
                    small(to.join(format!(".image.holesync.{kind}")), "of another run");
                }
                let mut command = holesync();
                run(command.arg("--json").arg(&option).args(flags).args([&v2, &image])).ok();
                assert_same(&v2, &image);
                assert_no_leftovers(dir.path());
                assert_eq!(names(&to), ["image"], "{option}");
            }
            fs::remove_dir_all(&to).expect("remove");
        }
    }
}

#[test]
fn a_directory_that_cannot_be_used_is_said_before_anything_is_written() {
    let Some(elsewhere) = lab::dir(Fs::Tmpfs) else { return };
    for way in WAYS {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
        small(from.join("file"), "new");
        small(to.join("file"), "old one");
        let run = |option: &str| way.run(&["-a", option], &[&slash(&from)], &slash(&to));
        for option in ["--temp-dir", "--partial-dir"] {
            let Some(outcome) = run(&format!("{option}={}", elsewhere.path().display())) else { return };
            outcome.code(23).says(&["another file system", "leave that out"]);
            let Some(outcome) = run(&format!("{option}={}/missing", dir.path().display())) else { return };
            outcome.code(3).says(&["missing", "create it first"]);
            assert_eq!(names(elsewhere.path()), Vec::<String>::new());
        }
        // A symlink in the destination may be another's, and lead anywhere.
        let outside = mkdir(dir.path().join("outside"));
        set_mtime(&outside, 1000, 0);
        symlink(&outside, to.join("work")).expect("symlink");
        run("--temp-dir=work").expect("a run").code(3).says(&["a symlink to one by an absolute path"]);
        assert_eq!(fs::metadata(&outside).expect("stat").mtime(), 1000);
        fs::remove_file(to.join("work")).expect("remove");
        small(to.join(".part"), "a file");
        run("--partial-dir=.part").expect("a run").code(23).says(&["is no directory", "--partial-dir"]);
        fs::remove_file(to.join(".part")).expect("remove");
        symlink(elsewhere.path(), to.join(".part")).expect("symlink");
        run("--partial-dir=.part").expect("a run").code(23).says(&["is no directory"]);
        assert_eq!(fs::read_to_string(to.join("file")).expect("read"), "old one");
        assert_eq!(names(elsewhere.path()), Vec::<String>::new());
        assert_no_leftovers(dir.path());
        // What is not to be changed needs no room.
        fs::remove_file(to.join(".part")).expect("remove");
        rsync(dir.path(), &["-a", "from/", "to/"]);
        run(&format!("-T{}", elsewhere.path().display())).expect("a run").ok();
    }
}

/// A run that is stopped half way, and its leftover.
struct Interrupted {
    dir: tempfile::TempDir,
    flags: Vec<String>,
    /// Where the leftover lies.
    at: PathBuf,
}

impl Interrupted {
    fn new(nth: usize, has_old: bool) -> Interrupted {
        let dir = lab::scratch();
        let path = |name: &str| dir.path().join(name);
        let (from, to, work) = (mkdir(path("from")), mkdir(path("to")), mkdir(path("work")));
        let mut rng = Rng(79);
        let old = Layout::dense("old", 128 * BLOCK, &mut rng);
        every(2, &old, &mut rng).write(&from.join("image"));
        if has_old {
            old.write(&to.join("image"));
            set_mtime(&to.join("image"), 1000, 0);
        }
        let flags = vec!["-a".to_string(), options(dir.path())[nth].clone()];
        let peer = Fault::Stall(40 * BLOCK as u64).peer(dir.path(), Direction::ToAgent);
        let mut command = peer.holesync();
        let running = start(command.args(&flags).arg(slash(&from)).arg(at(slash(&to))));
        let part = to.join(".part");
        let at = if nth == 3 { part } else { work };
        let is_large = |name: &String| taken(&at.join(name)) > 30 * BLOCK as u64;
        let has_come = || at.is_dir() && leftovers(&at).iter().any(is_large);
        assert!(wait_until(LIMIT, has_come), "nothing came: {:?}", names(&to));
        running.signal(Signal::SIGINT);
        running.finish_within(LIMIT).code(20);
        Interrupted { dir, flags, at }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The only leftover.
    fn leftover(&self) -> PathBuf {
        // The agent may still be going down.
        let is_one = || leftovers(&self.at).len() == 1 && leftovers(self.dir.path()).len() == 1;
        assert!(wait_until(LIMIT, is_one), "{:?}", leftovers(self.dir.path()));
        self.at.join(&leftovers(&self.at)[0])
    }

    /// Goes on; how many bytes of data were sent.
    fn go_on(&self) -> u64 {
        let mut command = Peer::pipe(self.dir.path()).holesync();
        command
            .args(&self.flags)
            .arg("--json")
            .arg(slash(&self.path("from")))
            .arg(at(slash(&self.path("to"))));
        let outcome = run(&mut command).ok();
        assert_same(&self.path("from/image"), &self.path("to/image"));
        assert_eq!(names(&self.path("to")), ["image"]);
        outcome.count("sent_data_bytes")
    }
}

#[test]
fn what_an_interrupted_run_left_there_is_gone_on_from() {
    for nth in 0..4 {
        for has_old in [false, true] {
            let interrupted = Interrupted::new(nth, has_old);
            let leftover = interrupted.leftover();
            assert_eq!(fs::metadata(&leftover).expect("stat").mode() & 0o7777, 0o600);
            let old = interrupted.path("to/image");
            assert_eq!(old.exists(), has_old);
            let differs = if has_old { 64 } else { 128 };
            let most = ((differs - 40 + 20) * BLOCK) as u64;
            let sent = interrupted.go_on();
            assert!(sent <= most, "{:?}: {sent} of {most}", interrupted.flags);
            assert_eq!(names(&interrupted.path("work")), Vec::<String>::new());
        }
    }
}

/// In a directory where everybody may write, what another user put under the name of a working
/// file is neither believed nor followed.
#[test]
fn what_others_put_there_is_not_believed() {
    if !lab::is_root() {
        return;
    }
    for sticky in [0o1777, 0o777] {
        for plant in ["another's", "readable", "symlink", "link", "directory"] {
            let interrupted = Interrupted::new(0, true);
            let leftover = interrupted.leftover();
            set_mode(&interrupted.path("work"), sticky);
            let victim = small(interrupted.path("victim"), "nobody's business");
            set_mode(&victim, 0o600);
            let junk = vec![0x5a; 128 * BLOCK];
            fs::remove_file(&leftover).expect("remove");
            match plant {
                "symlink" => symlink(&victim, &leftover).expect("symlink"),
                "link" => fs::hard_link(&victim, &leftover).expect("link"),
                "directory" => drop(mkdir(leftover.clone())),
                _ => fs::write(&leftover, &junk).expect("write"),
            }
            if plant == "another's" {
                set_mode(&leftover, 0o600);
                chown(&leftover, Some(1234), None).expect("chown");
            }
            interrupted.go_on();
            assert_eq!(fs::read_to_string(&victim).expect("read"), "nobody's business", "{plant}");
            // Root may remove it, and it would be in the way for ever.
            assert_eq!(names(&interrupted.path("work")), Vec::<String>::new(), "{plant}");
        }
    }
}

/// Who may rename in that directory gets nothing of his own into the destination.
#[test]
fn nothing_that_is_swapped_there_takes_the_place_of_a_file() {
    let dir = lab::scratch();
    let path = |name: &str| dir.path().join(name);
    let (from, to, work) = (mkdir(path("from")), mkdir(path("to")), mkdir(path("work")));
    for nth in 0..400 {
        small(from.join(format!("file{nth}")), &"good".repeat(500));
    }
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                for name in names(&work) {
                    let evil = small(path("evil"), "evil");
                    set_mode(&evil, 0o600);
                    // It may be gone, or put in place at this moment.
                    let _ = fs::rename(&evil, work.join(name));
                }
            }
        });
        for _ in 0..5 {
            let outcome = run(holesync()
                .arg(format!("-T{}", work.display()))
                .arg("-aI")
                .args([slash(&from), slash(&to)]));
            assert!([0, 23].contains(&outcome.code), "{outcome}");
            for entry in fs::read_dir(&to).expect("list").flatten() {
                let content = fs::read(entry.path()).expect("read");
                assert!(!content.starts_with(b"evil"), "{entry:?}");
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    run(holesync().arg(format!("-T{}", work.display())).arg("-aI").args([slash(&from), slash(&to)])).ok();
    assert_no_leftovers(dir.path());
    assert_eq!(differences(dir.path(), "from/", "to/"), "");
}

/// A new file has what one has that is made where it goes: group and ACL come from there.
#[test]
fn the_other_directory_leaves_no_mark_on_a_file() {
    if !lab::is_root() {
        return;
    }
    for marked in ["work", "to", "neither"] {
        let dir = lab::scratch();
        let path = |name: &str| dir.path().join(name);
        let from = mkdir(path("from"));
        small(from.join("new"), "new");
        small(from.join("old"), "new content");
        let look = |option: Option<&str>| {
            let (to, work) = (mkdir(path("to")), mkdir(path("work")));
            small(to.join("old"), "old");
            if let Some(marked) = [&to, &work].into_iter().find(|dir| dir.ends_with(marked)) {
                run(Command::new("setfacl").args(["-d", "-m", "u:1234:rwx,g::r,o::-"]).arg(marked)).ok();
                chown(marked, None, Some(4321)).expect("chown");
                set_mode(marked, 0o2755);
            }
            let mut command = holesync();
            run(command.arg("--no-perms").args(option).args([slash(&from), slash(&to)])).ok();
            let shown = run(Command::new("getfacl").current_dir(&to).args(["-n", "new", "old"])).ok().stdout;
            assert!(work.is_dir());
            [to, work].iter().for_each(|dir| fs::remove_dir_all(dir).expect("remove"));
            shown
        };
        let plain = look(None);
        for option in &options(dir.path()) {
            assert_eq!(look(Some(option)), plain, "{marked} {option}");
        }
    }
}

/// As rsync has it: neither sent nor removed, but with the directory that it lies in.
#[test]
fn directories_for_partial_files_are_left_out() {
    for way in WAYS {
        for delete in ["--delete", "--delete-excluded", "--delete-before", "-v"] {
            let dir = lab::scratch();
            let from = mkdir(dir.path().join("from"));
            small(mkdir(from.join("sub/.pa[rt")).join("sent"), "sent?");
            small(from.join("sub/file"), "file");
            for to in ["ours", "theirs"] {
                let to = mkdir(dir.path().join(to));
                small(mkdir(to.join(".pa[rt")).join("kept"), "kept?");
                small(mkdir(to.join("gone/.pa[rt")).join("gone"), "gone?");
                set_mode(&to.join(".pa[rt"), 0o700);
            }
            let flags = ["-a", delete, "--partial-dir=.pa[rt"];
            let ours = slash(&dir.path().join("ours"));
            let Some(outcome) = way.run(&flags, &[&slash(&from)], &ours) else { return };
            outcome.ok();
            let flags = ["-a", delete, "--partial-dir=.pa[[]rt", "from/", "theirs/"];
            assert_eq!(rsync(dir.path(), &flags), 0);
            let what = format!("{way:?} {delete}");
            assert_trees(&dir.path().join("ours"), &dir.path().join("theirs"), false, &what);
        }
    }
}

/// What a run of rsync left under the plain name goes with the directory, where nobody else can
/// have put it there.
#[test]
fn what_rsync_left_there_goes() {
    for (mode, stays) in [(0o700, false), (0o755, false), (0o777, true)] {
        for is_equal in [false, true] {
            let dir = lab::scratch();
            let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
            small(from.join("file"), "new");
            small(mkdir(to.join(".part")).join("file"), "stale");
            set_mode(&to.join(".part"), mode);
            if is_equal {
                assert_eq!(rsync(dir.path(), &["-a", "from/file", "to/"]), 0);
            }
            run(holesync().args(["-a", "--partial-dir=.part"]).args([slash(&from), slash(&to)])).ok();
            assert_same(&from.join("file"), &to.join("file"));
            assert_eq!(to.join(".part").exists(), stays, "{mode:o} {is_equal}");
        }
    }
}

/// Names as long as can be, of files whose directories have the same names.
#[test]
fn no_two_files_have_one_working_name() {
    let dir = lab::scratch();
    let path = |name: &str| dir.path().join(name);
    let (from, to, work) = (mkdir(path("from")), path("to"), mkdir(path("work")));
    for below in ["a", "b", "c"] {
        for name in ["same".to_string(), "n".repeat(255), "\u{20ac}".repeat(85)] {
            small(mkdir(from.join(below)).join(&name), &format!("{below} {name}"));
        }
        let odd = OsStr::from_bytes(b"\xff\n~0123456789abcdef");
        small(from.join(below).join(odd), below);
    }
    run(holesync().arg("-a").arg(format!("-T{}", work.display())).args([slash(&from), slash(&to)])).ok();
    assert_eq!(differences(dir.path(), "from/", "to/"), "");
    assert_eq!(names(&work), Vec::<String>::new());
}

#[test]
fn it_is_refused_where_it_cannot_be() {
    let dir = lab::scratch();
    let (from, to) = (small(dir.path().join("from"), "new"), dir.path().join("to"));
    for (flags, parts) in [
        (&["--inplace", "--partial-dir=p"][..], &["--inplace", "--partial-dir"][..]),
        (&["--partial-dir=a/b"], &["the name of a directory"]),
        (&["--partial-dir=.."], &["the name of a directory"]),
        (&["--through=cat", "-Twork"], &["--temp-dir", "--through"]),
    ] {
        run(holesync().args(flags).args([&from, &to])).code(1).says(parts);
    }
    for option in ["-Twork", "--partial-dir=.part"] {
        let Some(peer) = Peer::sshd() else { return };
        let outcome = run(peer.shell().args(["-a", option]).arg(&from).arg(at(&to)));
        outcome.code(1).says(&["--temp-dir or --partial-dir", "needs a holesync"]);
    }
    run(holesync().args(["-a", "--partial-dir=", "--temp-dir="]).args([&from, &to])).ok();
    run(holesync().args(["-a", "-n", "-Tnowhere"]).arg(&from).arg(dir.path().join("new/"))).ok();
    assert_eq!(fs::metadata(&to).expect("stat").permissions().mode() & 0o7777, 0o644);
}
