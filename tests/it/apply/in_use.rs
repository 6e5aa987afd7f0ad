//! What other programs use is not written: locks of QEMU and others, loop devices, swap.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::common::check::{assert_no_leftovers, assert_same, leftovers};
use crate::common::faults::{Direction, Fault, await_pause, can_trace, killed_at, resume};
use crate::common::guests::{await_lock, await_no_lock, qemu};
use crate::common::lab::{self, Fs, Loop};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at};
use crate::common::process::{holesync, run, run_on, start};

const BLOCK: usize = 64 << 10;

/// An image, and another version of it elsewhere.
struct Pair {
    dir: tempfile::TempDir,
    new: PathBuf,
    image: PathBuf,
    old: Vec<u8>,
}

impl Pair {
    fn on(dir: tempfile::TempDir) -> Pair {
        let layout = Layout::dense("old", 64 * BLOCK, &mut Rng(7));
        let [image, new] = ["image", "new"].map(|name| dir.path().join(name));
        layout.write(&image);
        layout.data(9 * BLOCK..10 * BLOCK, &mut Rng(8)).write(&new);
        let old = fs::read(&image).expect("read");
        set_day(&new, 2);
        Pair { dir, new, image, old }
    }

    fn inode(&self) -> u64 {
        fs::metadata(&self.image).expect("look").ino()
    }

    #[track_caller]
    fn assert_untouched(&self, inode: u64) {
        assert_eq!(self.inode(), inode);
        assert!(fs::read(&self.image).expect("read") == self.old, "written");
    }

    fn records(&self) -> Vec<u8> {
        let bytes = fs::read(&self.new).expect("read");
        [format!("DATA\n{}\n", bytes.len()).as_bytes(), &bytes].concat()
    }
}

/// Both versions may be written within one tick of the clock.
fn set_day(path: &Path, day: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(day * 86_400);
    File::options().write(true).open(path).and_then(|file| file.set_modified(time)).expect("set the time");
}

#[test]
fn an_image_that_qemu_has_open_is_not_written_on_any_way() {
    for fs in [Fs::Ext4, Fs::Xfs] {
        let Some(dir) = lab::dir(fs) else { return };
        let pair = Pair::on(dir);
        let (peer, inode) = (Peer::pipe(pair.dir.path()), pair.inode());
        let guest = qemu(&pair.image, &[]);
        let says = ["image", "in use", "qemu-io", "holds a lock", "--force-in-use"];
        for flags in [&[][..], &["-c"], &["--inplace"], &["--commit=atomic"], &["-W"], &["-n"]] {
            run(holesync().args(flags).args([&pair.new, &pair.image])).code(23).says(&says);
            run(peer.holesync().args(flags).arg(&pair.new).arg(at(&pair.image))).code(23).says(&says);
            run(peer.holesync().args(flags).arg(at(&pair.new)).arg(&pair.image)).code(23).says(&says);
        }
        run_on(holesync().arg("recv").arg(&pair.image), &pair.records()).code(23).says(&says);
        assert_no_leftovers(pair.dir.path());
        drop(guest);
        pair.assert_untouched(inode);
        run(peer.holesync().arg(&pair.new).arg(at(&pair.image))).ok();
        assert_same(&pair.new, &pair.image);
    }
}

#[test]
fn force_is_the_way_past_it_here_and_there() {
    for flags in [&[][..], &["--inplace"], &["--commit=atomic"]] {
        for remote in [true, false] {
            let Some(dir) = lab::dir(Fs::Ext4) else { return };
            let pair = Pair::on(dir);
            let peer = Peer::pipe(pair.dir.path());
            let _guest = qemu(&pair.image, &[]);
            let mut command = if remote { peer.holesync() } else { holesync() };
            command.arg("--force-in-use").args(flags).arg(&pair.new);
            run(if remote { command.arg(at(&pair.image)) } else { command.arg(&pair.image) }).ok();
            assert_same(&pair.new, &pair.image);
        }
    }
    let Some(dir) = lab::dir(Fs::Ext4) else { return };
    let pair = Pair::on(dir);
    let _guest = qemu(&pair.image, &[]);
    run_on(holesync().args(["recv", "--force-in-use"]).arg(&pair.image), &pair.records()).ok();
    assert_same(&pair.new, &pair.image);
}

#[test]
fn a_posix_lock_names_its_process() {
    let pair = Pair::on(lab::scratch());
    let script = "import fcntl, sys, time; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX, 10, 5); time.sleep(1000)";
    let holder = start(Command::new("python3").args(["-c", script]).arg(&pair.image));
    await_lock(&pair.image, "POSIX");
    let inode = pair.inode();
    run(holesync().args([&pair.new, &pair.image])).code(23).says(&[
        "in use",
        "process ",
        "(python3",
        "--force-in-use",
    ]);
    drop(holder);
    pair.assert_untouched(inode);
}

#[test]
fn a_file_behind_a_loop_device_is_not_written_whatever_leads_to_it() {
    if !lab::is_root() {
        return;
    }
    let pair = Pair::on(lab::scratch());
    let other = pair.dir.path().join("other");
    fs::hard_link(&pair.image, &other).expect("link");
    let device = Loop::over(&other);
    fs::rename(&other, pair.dir.path().join("moved")).expect("rename");
    let inode = pair.inode();
    let name = device.0.to_str().expect("a plain name");
    run(holesync().args([&pair.new, &pair.image])).code(23).says(&["in use", name, "--force-in-use"]);
    run(holesync().arg("--inplace").args([&pair.new, &pair.image])).code(23).says(&["in use", name]);
    pair.assert_untouched(inode);
    // As a source it is read all the same.
    let copy = pair.dir.path().join("copy");
    run(holesync().args([&pair.image, &copy])).ok().says(&["in use", name, "may be inconsistent"]);
    drop(device);
    run(holesync().args([&pair.new, &pair.image])).ok();
    assert_same(&pair.new, &pair.image);
}

#[test]
fn swap_space_is_not_written() {
    let Some(dir) = lab::dir(Fs::Ext4) else { return };
    let pair = Pair::on(dir);
    fs::set_permissions(&pair.image, fs::Permissions::from_mode(0o600)).expect("chmod");
    run(Command::new("mkswap").arg("-q").arg(&pair.image)).ok();
    let before = fs::read(&pair.image).expect("read");
    if run(Command::new("swapon").arg(&pair.image)).code != 0 {
        return lab::skip("this kernel cannot swap to a file");
    }
    let outcome = run(holesync().args([&pair.new, &pair.image]));
    run(Command::new("swapoff").arg(&pair.image)).ok();
    outcome.code(23).says(&["in use", "swap", "--force-in-use"]);
    assert!(fs::read(&pair.image).expect("read") == before);
}

/// A push whose agent stops for two seconds before the `nth` call of this name, when its
/// own locks are there already; meanwhile `meddle` does something to the image.
fn meddled_before(call: &str, nth: usize, meddle: impl FnOnce(&Path) -> File) -> Option<Pair> {
    if !can_trace() {
        return None;
    }
    let pair = Pair::on(lab::dir(Fs::Ext4)?);
    let delay = format!("-e trace={call} -e inject={call}:delay_enter=2000000:when={nth}");
    let peer = Peer::script(pair.dir.path(), &format!("exec strace -f -qq -o /dev/null {delay} $command"));
    let inode = pair.inode();
    let running = start(peer.holesync().arg(&pair.new).arg(at(&pair.image)));
    await_lock(&pair.image, "OFDLCK");
    // From here on it is up to the delay: the look that follows it must see this.
    let held = meddle(&pair.image);
    running.finish().code(23).says(&["image"]);
    assert_eq!(pair.inode(), inode);
    drop(held);
    await_no_lock(&pair.image, "OFDLCK");
    Some(pair)
}

fn lock_a_byte(image: &Path) -> File {
    let file = File::options().read(true).write(true).open(image).expect("open");
    let request = nix::libc::flock {
        l_type: nix::libc::F_RDLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 100,
        l_len: 1,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&request)).expect("lock");
    file
}

fn write_a_page(image: &Path) -> File {
    let file = File::options().write(true).open(image).expect("open");
    file.write_all_at(&[42; 4096], 30 * BLOCK as u64).expect("write");
    file
}

#[test]
fn a_guest_that_starts_while_the_stage_is_synced_keeps_its_disk() {
    // The stage, and then the log.
    for nth in [1, 2] {
        let Some(pair) = meddled_before("fdatasync", nth, lock_a_byte) else { return };
        assert!(fs::read(&pair.image).expect("read") == pair.old, "{nth}: written");
        run(Peer::pipe(pair.dir.path()).holesync().arg(&pair.new).arg(at(&pair.image))).ok();
        assert_same(&pair.new, &pair.image);
        assert_no_leftovers(pair.dir.path());
    }
}

#[test]
fn what_is_written_while_the_stage_is_synced_is_not_replayed_over() {
    for nth in [1, 2] {
        let Some(pair) = meddled_before("fdatasync", nth, write_a_page) else { return };
        let mut expected = pair.old.clone();
        expected[30 * BLOCK..30 * BLOCK + 4096].fill(42);
        assert!(fs::read(&pair.image).expect("read") == expected, "{nth}: replayed over");
        // Nothing is left that a later recovery would write over it.
        run(holesync().arg("recover").arg(pair.dir.path())).ok();
        assert!(fs::read(&pair.image).expect("read") == expected, "{nth}: recovered over");
        run(holesync().args([&pair.new, &pair.image])).ok();
        assert_same(&pair.new, &pair.image);
        assert_eq!(leftovers(pair.dir.path()), Vec::<String>::new());
    }
}

#[test]
fn qemu_does_not_start_on_an_image_that_is_being_written() {
    let Some(dir) = lab::dir(Fs::Ext4) else { return };
    let pair = Pair::on(dir);
    Layout::dense("new", 64 * BLOCK, &mut Rng(70)).write(&pair.new);
    set_day(&pair.new, 3);
    let peer = Fault::Pause(20 * BLOCK as u64).peer(pair.dir.path(), Direction::ToAgent);
    let running =
        start(peer.holesync().args(["--inplace", "-W", "-z=none"]).arg(&pair.new).arg(at(&pair.image)));
    await_pause(pair.dir.path());
    await_lock(&pair.image, "OFDLCK");
    let open = |flags: &[&str]| {
        run(Command::new("qemu-io").args(flags).args(["-f", "raw", "-c", "quit"]).arg(&pair.image))
    };
    let during = [open(&[]), open(&["-r"])];
    resume(pair.dir.path());
    running.finish().ok();
    assert!(during.iter().all(|outcome| outcome.code != 0 && outcome.stderr.contains("lock")), "{during:?}");
    open(&[]).ok();
    assert_same(&pair.new, &pair.image);
}

#[test]
fn a_source_that_a_guest_may_write_is_told_of_once() {
    let pair = Pair::on(lab::scratch());
    let peer = Peer::pipe(pair.dir.path());
    let copy = pair.dir.path().join("copy");
    let commands = || {
        let mut local = holesync();
        local.args([&pair.image, &copy]);
        let (mut push, mut pull, mut shell) = (peer.holesync(), peer.holesync(), peer.shell());
        push.arg(&pair.image).arg(at(&copy));
        pull.arg(at(&pair.image)).arg(&copy);
        shell.arg(&pair.image).arg(at(&copy));
        [local, push, pull, shell]
    };
    for (flags, times) in [(&[][..], 1), (&["-r"], 0)] {
        let _guest = qemu(&pair.image, flags);
        for mut command in commands() {
            let outcome = run(&mut command).ok();
            assert_eq!(outcome.stderr.matches("may be inconsistent").count(), times, "{outcome}");
            assert_same(&pair.image, &copy);
            fs::remove_file(&copy).expect("remove");
        }
    }
}

#[test]
fn a_sealed_log_waits_until_the_guest_has_ended() {
    let Some(dir) = lab::dir(Fs::Ext4) else { return };
    if !can_trace() {
        return;
    }
    let pair = Pair::on(dir);
    let killed = killed_at(pair.dir.path(), "copy_file_range", 1);
    assert_ne!(run(killed.holesync().arg(&pair.new).arg(at(&pair.image))).code, 0);
    let says = ["image", "in use", "qemu-io", "--force-in-use"];
    let sealed = leftovers(pair.dir.path());
    assert_eq!(sealed.len(), 2, "{sealed:?}");
    let recover = || {
        let mut command = holesync();
        command.arg("recover").arg(&pair.image);
        command
    };
    let guest = qemu(&pair.image, &[]);
    run(&mut recover()).code(23).says(&says);
    run(holesync().args([&pair.new, &pair.image])).code(23).says(&says);
    assert_eq!(leftovers(pair.dir.path()), sealed);
    pair.assert_untouched(pair.inode());
    run(recover().arg("--force-in-use")).ok();
    drop(guest);
    assert_same(&pair.new, &pair.image);
    assert_no_leftovers(pair.dir.path());
}
