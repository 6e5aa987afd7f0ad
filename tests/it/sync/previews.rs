//! What a dry run foretells, against what the same command then does.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use nix::sys::signal::Signal;

use crate::common::check::{assert_same, leftovers};
use crate::common::faults::{Direction, Fault, can_trace};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::Peer;
use crate::common::process::{Outcome, agents, run, start, wait_until};
use crate::common::redeploy::{Redeploy, every};
use crate::common::tree::{Way, mkdir, set_mtime, slash, small, snapshot};

const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 256;

/// An image at both ends, with pages that differ in a third of its blocks, some of them new
/// holes and some new data, and whole blocks that differ.
fn images(from: &Path, to: &Path) {
    let old = Layout::dense("image", BLOCKS * BLOCK, &mut Rng(1)).zeros(9 * BLOCK..30 * BLOCK);
    old.write(to);
    old.write(from);
    let file = fs::File::options().write(true).open(from).expect("open");
    for block in (0..BLOCKS).step_by(3) {
        let at = block * BLOCK + block % 16 * 4096;
        file.write_all_at(&block.to_le_bytes(), at as u64).expect("write");
    }
    file.write_all_at(&[7; 3 * BLOCK], 100 * BLOCK as u64 + 5).expect("write");
    file.write_all_at(&[0; 2 * BLOCK], 200 * BLOCK as u64).expect("write");
    set_mtime(to, 1, 0);
}

/// Runs with `-n`, and then truly; what each of these counts.
fn twice(way: Way, flags: &[&str], from: &OsStr, to: &OsStr) -> Option<[Outcome; 2]> {
    let run = |dry: &[&str]| way.run(&[&["--json"], flags, dry].concat(), &[from], to);
    Some([run(&["-n"])?.ok(), run(&[])?.ok()])
}

#[track_caller]
fn assert_foretold(case: &str, [dry, real]: &[Outcome; 2]) {
    let [foretold, sent] = [dry, real].map(|outcome| outcome.count("sent_data_bytes"));
    assert!(sent > 0 && foretold.abs_diff(sent) <= sent / 100, "{case}: {foretold} for {sent}: {dry} {real}");
    for field in ["files_sent", "files_deleted", "files_total"] {
        assert_eq!(dry.count(field), real.count(field), "{case}: {field}");
    }
    for field in ["written_bytes", "punched_bytes"] {
        assert_eq!(dry.count(field), real.count(field), "{case}: {field}: {dry} {real}");
    }
}

/// What becomes of [`images`].
const CHANGES: [&str; 5] = ["in it", "grown", "shrunk", "new", "zeros that take room"];

fn change(how: &str, from: &Path, to: &Path) {
    images(from, to);
    let open = |path: &Path| fs::File::options().write(true).open(path).expect("open");
    let len = (BLOCKS * BLOCK) as u64;
    match how {
        "grown" => {
            open(from).set_len(len + 700_001).expect("make longer");
            open(from).write_all_at(&[3; 100_000], len + 300_000).expect("write");
        }
        "shrunk" => open(from).set_len(len - 12_345_678).expect("make shorter"),
        "new" => fs::remove_file(to).expect("remove"),
        "zeros that take room" => {
            open(to).write_all_at(&vec![0; 5 * BLOCK + 9000], 10 * BLOCK as u64 + 4096).expect("write");
            open(from).write_all_at(&[9; 5000], 12 * BLOCK as u64).expect("write");
        }
        _ => {}
    }
    if to.exists() {
        set_mtime(to, 1, 0);
    }
}

#[test]
fn as_much_of_an_image_travels_and_is_written_as_a_dry_run_says() {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        for (nth, (way, flags)) in [
            (Way::Push, &[][..]),
            (Way::Pull, &[]),
            (Way::Local, &[]),
            (Way::Push, &["-W"]),
            (Way::Local, &["-W"]),
            (Way::Push, &["--leaf-size=16K"]),
            (Way::Push, &["--leaf-size=64K", "-B", "16K"]),
            (Way::Push, &["--inplace"]),
            (Way::Pull, &["--inplace", "-W"]),
            (Way::Local, &["--inplace"]),
            (Way::Pull, &["--commit=atomic"]),
            (Way::Push, &["--preallocate"]),
            (Way::PushShell, &["-c"]),
            (Way::PushShell, &[]),
        ]
        .into_iter()
        .enumerate()
        {
            let hows = [CHANGES[nth % CHANGES.len()], CHANGES[(nth + 2) % CHANGES.len()]];
            for how in hows.into_iter().take(if fs == Fs::Ext4 { 2 } else { 1 }) {
                let (from, to) = (dir.path().join("from"), dir.path().join("to"));
                let _ = fs::remove_file(&to);
                change(how, &from, &to);
                let Some(both) = twice(way, flags, from.as_os_str(), to.as_os_str()) else { return };
                assert_same(&from, &to);
                assert_foretold(&format!("{way:?} {flags:?} on {fs:?}, {how}"), &both);
            }
        }
    }
}

#[test]
fn as_much_of_a_tree_travels_goes_and_is_written_as_a_dry_run_says() {
    let dir = lab::scratch();
    for way in [Way::Push, Way::Pull, Way::Local] {
        let name = |what: &str| mkdir(dir.path().join(format!("{way:?} {what}")));
        let (from, to) = (name("from"), name("to"));
        // More files than a receiver has open for questions.
        for number in 0..100 {
            small(from.join(format!("small {number}")), &number.to_string());
            let [new, old] = [&from, &to].map(|side| side.join(format!("image {number}")));
            small(new, &"x".repeat(300_000));
            let old = small(old, &["x".repeat(150_000 + number), "y".repeat(150_000 - number)].concat());
            set_mtime(&old, 1, 0);
            small(to.join(format!("gone {number}")), "x");
        }
        images(&from.join("image"), &to.join("image"));
        small(mkdir(from.join("new/directory")).join("file"), "new");
        let Some(both) = twice(way, &["-a", "--delete"], &slash(&from), &slash(&to)) else { return };
        assert_foretold(&format!("{way:?}"), &both);
    }
}

/// A run that is killed half way, with an old image there or without; what `-n` then says the
/// next run has to send, and what that sends.
#[test]
fn what_an_interrupted_run_left_counts_as_there() {
    for (fs, has_old, flags) in [
        (Fs::Ext4, false, &[][..]),
        (Fs::Ext4, true, &[]),
        (Fs::Ext4, true, &["--commit=atomic"]),
        (Fs::Ext4, true, &["--partial-dir=.partial"]),
        (Fs::Xfs, true, &[]),
        (Fs::Tmpfs, false, &[]),
    ] {
        let Some(dir) = lab::dir(fs) else { continue };
        let case = format!("{fs:?}, old image: {has_old}, {flags:?}");
        let (sources, target) = (mkdir(dir.path().join("sources")), mkdir(dir.path().join("target")));
        let rng = &mut Rng(83);
        let old = Layout::dense("old", 128 * BLOCK, rng);
        let new = every(2, &old, rng);
        let redeploy = Redeploy::new(&sources, &target, has_old.then_some(&old), &new, &new);
        interrupt(dir.path(), &redeploy, flags, &target);
        let left = leftovers(&target);
        let before = snapshot(&target, true);
        let peer = Peer::pipe(dir.path());
        let command = |dry: &[&str]| {
            let mut command = peer.holesync();
            command.args(flags).args(dry).args(redeploy.push("new"));
            run(&mut command).ok()
        };
        let said = command(&["-n", "-v"]);
        assert!(said.stdout.contains("are there already)"), "{case}: {said}");
        let dry = command(&["-n", "--json"]);
        assert!(
            !left.is_empty() && left == leftovers(&target) && before == snapshot(&target, true),
            "{case}"
        );
        let real = command(&["--json"]);
        let differs = (if has_old { 64 } else { 128 } * BLOCK) as u64;
        let sent = real.count("sent_data_bytes");
        assert!(sent < differs - 10 * BLOCK as u64, "{case}: {real}");
        assert_foretold(&case, &[dry, real]);
        assert_same(&redeploy.version("new"), &redeploy.image());
    }
}

/// Kills both ends when some data has come.
fn interrupt(dir: &Path, redeploy: &Redeploy, flags: &[&str], target: &Path) {
    let has_old = redeploy.image().exists();
    let agent = dir.join("holesync");
    std::os::unix::fs::symlink(crate::common::process::PROGRAM, &agent).expect("link to the program");
    let stalled = Fault::Stall(40 * BLOCK as u64).peer(dir, Direction::ToAgent).with_program(&agent);
    let running = start(stalled.holesync().args(flags).args(redeploy.push("new")));
    let limit = std::time::Duration::from_secs(60);
    // Blocks that only the new image has, more than what is kept in any case. They come in any order.
    let blocks = |path: &Path| fs::read(path).unwrap_or_default();
    let new = blocks(&redeploy.version("new"));
    let some = || {
        let files = walkdir::WalkDir::new(target).into_iter().flatten();
        files.filter(|entry| entry.file_type().is_file()).any(|entry| {
            let there = blocks(entry.path());
            let pairs = there.chunks(BLOCK).zip(new.chunks(BLOCK)).step_by(2);
            pairs.filter(|(there, new)| there == new).count() >= if has_old { 20 } else { 12 }
        })
    };
    assert!(wait_until(limit, some), "nothing came");
    running.signal(Signal::SIGKILL);
    drop(running);
    assert!(wait_until(limit, || agents(&agent).is_empty()), "an agent outlives its connection");
}

/// System calls that change something, or keep others from it.
const CALLS: &str = "open,openat,openat2,creat,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,\
                     linkat,symlink,symlinkat,mknod,mknodat,chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,\
                     utimensat,truncate,ftruncate,fallocate,setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,\
                     fremovexattr,flock,fcntl";

/// What the calls of a trace change.
fn changes(trace: &str) -> Vec<&str> {
    let is_open = |line: &str| {
        ["open(", "openat(", "openat2(", "open_by_handle"].iter().any(|call| line.contains(call))
    };
    let writes =
        |line: &str| ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"].iter().any(|flag| line.contains(flag));
    let locks = |line: &str| line.contains("SETLK") || line.contains("F_SETLEASE");
    let changes = |line: &&str| match line {
        line if line.contains("resumed>") || line.contains("+++") || line.contains("---") => false,
        // A shell tries what touch and dd can do on it, and below it, where nothing can be.
        line if line.contains("\"/dev/null") => false,
        line if is_open(line) => writes(line),
        line if line.contains("fcntl(") => locks(line),
        _ => true,
    };
    trace.lines().filter(changes).collect()
}

/// Both ends of dry runs, traced: an image that differs and one that is new, other names, what
/// would be deleted, what an interrupted run left, an empty directory for partial files.
#[test]
fn a_dry_run_opens_nothing_for_writing_and_locks_nothing() {
    if !can_trace() {
        return;
    }
    let dir = lab::scratch();
    let (from, to, trace) = (dir.path().join("from"), dir.path().join("to"), dir.path().join("trace"));
    for side in [&from, &to] {
        mkdir(side.join("below/.partial"));
    }
    images(&from.join("image"), &to.join("image"));
    small(from.join("below/new"), "new");
    fs::hard_link(from.join("below/new"), from.join("below/other")).expect("link");
    std::os::unix::fs::symlink("image", from.join("link")).expect("link");
    small(to.join("below/gone"), "gone");
    let left = small(to.join("below/.new.holesync.temp"), "left");
    fs::set_permissions(left, fs::Permissions::from_mode(0o600)).expect("set the mode");
    let peer = Peer::pipe(dir.path());
    let remote = |way: Way, flags: &[&str], from: &Path, to: &Path| {
        way.command(Some(&peer), &[&["-n"], flags].concat(), &[&slash(from)], &slash(to))
    };
    let cases = [
        (Way::Push, &["-aH", "--delete"][..]),
        (Way::Push, &["-aH", "--partial-dir=.partial", "--fuzzy", "--mkpath"]),
        (Way::Push, &["-a", "-b", "--backup-dir=bak", "--inplace"]),
        (Way::Pull, &["-aH", "--delete", "--commit=atomic"]),
        (Way::Local, &["-aH", "--delete"]),
        (Way::PushShell, &["-a"]),
        (Way::PullShell, &["-a"]),
    ];
    let before = snapshot(&to, true);
    for (way, flags) in cases {
        let cache = mkdir(dir.path().join("cache"));
        let traced = remote(way, flags, &from, &to);
        let mut strace = std::process::Command::new("strace");
        strace.args(["-f", "-qq", "-o"]).arg(&trace).args(["-e", &format!("trace={CALLS}")]);
        strace.arg(traced.get_program()).args(traced.get_args());
        strace.env("XDG_CACHE_HOME", &cache).env("LC_ALL", "C");
        run(&mut strace).ok();
        let text = fs::read_to_string(&trace).expect("read the trace");
        let found = changes(&text);
        assert!(found.is_empty(), "{way:?} {flags:?}: {found:#?}");
        assert_eq!(fs::read_dir(&cache).expect("list").count(), 0, "{way:?}");
        assert_eq!(before, snapshot(&to, true), "{way:?} {flags:?}");
    }
}
