//! Root works in a directory of a user who does his worst there, over and over: he plants working
//! files of every kind, forges sealed logs, links what is outside and swaps names and directories,
//! while root pushes into it, pulls from it, recovers in it, and is killed now and then.
//!
//! Nothing outside changes, nothing of what only root may read comes out, no file appears that
//! runs with root's rights, and a small file of root's holds what a source held, and nothing of his.
//! `tests/soak hostile SECONDS` does it longer.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use holesync::apply::Attributes;
use holesync::apply::stage::Stage;
use holesync::apply::stage::log::{Identity, Seal};
use holesync::hashmap::Grid;
use holesync::options::BlockSize;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::libc;
use nix::sys::stat::Mode;
use tempfile::TempDir;

use crate::common::faults::seconds;
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at};
use crate::common::process::{Running, holesync, start, start_on};

const NOBODY: u32 = 65534;
/// What nobody but root may read.
const SECRET: &str = "what nobody but root may read\n";
/// Names of images in the user's directory, of which he makes what he likes.
const IMAGES: [&str; 4] = ["one", "two", "tree/three", "tree/sub/four"];
/// Directories of many small files, which wait for storage together: one that mostly is there, and
/// one that root often makes anew.
const MANY: [&str; 2] = ["tree/many", "anew"];
/// Files in each of them.
const SMALL: usize = 40;
const KINDS: [&str; 4] = ["temp", "clone", "stage", "log"];
const HOME: &str = "HOLESYNC_TEST_HOSTILE";

#[test]
fn nothing_outside_the_directory_of_a_hostile_user_changes() {
    if !lab::is_root() {
        return;
    }
    // His own directory, and one in which all may make names, and each rename his own.
    for (fs, is_shared) in [(Fs::Ext4, false), (Fs::Xfs, false), (Fs::Ext4, true)] {
        let Some(dir) = lab::dir(fs) else { return };
        let mut lab = Lab::new(dir, is_shared);
        let _hostile = [1, 2].map(|seed| lab.hostile(seed));
        let end = Instant::now() + Duration::from_secs(seconds(24) / 3);
        let (mut rng, mut runs, mut done) = (Rng(5), 0, 0);
        let counted = lab.dir.path().join("tricks");
        let tricks = || fs::metadata(&counted).map_or(0, |file| file.len());
        let is_enough = |runs, done| runs > 5 && done > 0 && tricks() > 100;
        // On a machine that has much to do that takes longer.
        let latest = end + Duration::from_secs(60);
        while Instant::now() < end || !is_enough(runs, done) && Instant::now() < latest {
            done += usize::from(lab.work(&mut rng));
            lab.is_unharmed();
            runs += 1;
        }
        let tricks = tricks();
        lab::count(&format!(
            "hostile: {fs:?}, shared: {is_shared}: {runs} runs of root, {done} without an error, {tricks} tricks, no harm"
        ));
        assert!(is_enough(runs, done), "too little was tried");
    }
}

/// What the hostile user runs; alone it does nothing.
#[test]
#[ignore = "a part of the test above, run as another user"]
fn does_his_worst() {
    if let Some(home) = std::env::var_os(HOME) {
        let seed = std::process::id().into();
        Hostile { home: home.into(), rng: Rng(seed) }.forever();
    }
}

/// A directory of the user's, beside what he has no right to.
struct Lab {
    dir: TempDir,
    peer: Peer,
    before: Vec<String>,
    /// Hashes of what the small files of the source have held.
    held: HashSet<blake3::Hash>,
}

impl Lab {
    fn new(dir: TempDir, is_shared: bool) -> Lab {
        let path = dir.path();
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("let others in");
        for name in ["home", "outside/dir/sub", "source/tree/sub", "out"] {
            fs::create_dir_all(path.join(name)).expect("create a directory");
        }
        fs::set_permissions(path.join("out"), Permissions::from_mode(0o700)).expect("keep others out");
        File::create(path.join("tricks")).expect("create the count of tricks");
        chown(path.join("tricks"), Some(NOBODY), Some(NOBODY)).expect("give it away");
        let mut rng = Rng(9);
        for (name, mode) in [("secret", 0o600), ("victim", 0o644), ("shared", 0o666)] {
            let content = if name == "shared" { "what anybody may read and link\n" } else { SECRET };
            fs::write(path.join("outside").join(name), content.repeat(3000)).expect("write");
            fs::set_permissions(path.join("outside").join(name), Permissions::from_mode(mode))
                .expect("chmod");
        }
        for image in IMAGES {
            let name = Path::new(image).file_name().expect("a name");
            Layout::dense(image, 300_000, &mut rng).write(&path.join("source").join(image));
            fs::write(path.join("outside/dir").join(name), SECRET.repeat(10_000)).expect("write");
            fs::write(path.join("outside/dir/sub").join(name), SECRET.repeat(10_000)).expect("write");
        }
        for name in MANY {
            fs::create_dir_all(path.join("source").join(name)).expect("create a directory");
        }
        // With -a what is his stays his, and what is shared is shared.
        for name in ["", "tree", "tree/sub"].into_iter().chain(MANY) {
            let dirs = if name.is_empty() { &["source", "home"][..] } else { &["source"] };
            for dir in dirs.iter().map(|dir| path.join(dir).join(name)) {
                match is_shared {
                    true => fs::set_permissions(&dir, Permissions::from_mode(0o1777)).expect("chmod"),
                    false => chown(&dir, Some(NOBODY), Some(NOBODY)).expect("chown"),
                }
            }
        }
        // A program with somebody's rights, which are not root's.
        let tool = path.join("source/tree/tool");
        fs::copy("/bin/true", &tool).expect("copy a program");
        chown(&tool, Some(1001), Some(1001)).expect("chown");
        fs::set_permissions(&tool, Permissions::from_mode(0o6755)).expect("chmod");
        let peer = Peer::pipe(path);
        let mut lab = Lab { dir, peer, before: Vec::new(), held: HashSet::new() };
        lab.before = lab.outside();
        for (number, dir) in (0..SMALL).flat_map(|number| MANY.map(|dir| (number, dir))) {
            lab.change_small(dir, number, &mut rng);
        }
        lab
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// One who does his worst until he is ended.
    fn hostile(&self, seed: u64) -> Running {
        let place = self.dir.path().join(format!("bin{seed}"));
        fs::create_dir(&place).expect("create a directory");
        let program = lab::install(&std::env::current_exe().expect("this program"), &place);
        let id = NOBODY.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(program);
        command.args(["--exact", "apply::hostile::does_his_worst", "--ignored"]);
        start(command.env(HOME, self.home()).env_remove("HOLESYNC_TEST_ROOT"))
    }

    /// Gives a small file of the source other content.
    fn change_small(&mut self, dir: &str, number: usize, rng: &mut Rng) {
        let content: Vec<u8> = (0..10 + rng.below(300)).flat_map(|_| rng.next().to_le_bytes()).collect();
        self.held.insert(blake3::hash(&content));
        let path = self.dir.path().join("source").join(dir).join(format!("small-{number}"));
        fs::write(path, content).expect("write");
    }

    /// One thing that root does there; whether it ended well.
    fn work(&mut self, rng: &mut Rng) -> bool {
        for _ in 0..rng.below(2 * SMALL) {
            self.change_small(MANY[rng.below(2)], rng.below(SMALL), rng);
        }
        let (source, home, out) = (self.dir.path().join("source"), self.home(), self.dir.path().join("out"));
        // What root names himself is followed; so he names his directory, and what lies right in it.
        let image = IMAGES[rng.below(2)];
        // What is to be written differs each time.
        let changed = source.join(IMAGES[rng.below(IMAGES.len())]);
        Layout::dense("new", 200_000 + rng.below(200_000), rng).write(&changed);
        let mut command = if rng.chance(50) { holesync() } else { self.peer.holesync() };
        command.args(
            [
                &["-a"][..],
                &[],
                &["--commit=atomic"],
                &["-W"],
                &["-c"],
                &["-a", "--delete"],
                &["-aHAX", "--delete", "--backup"],
                &["-aHAX", "--link-dest=tree"],
                &["-aHAX", "--temp-dir=tree"],
                &["-aAX", "--delete", "--partial-dir=sub"],
            ][rng.below(10)],
        );
        let mut input = std::process::Stdio::null();
        match rng.below(8) {
            0 => command.arg(source.join(image)).arg(home.join("")),
            1 => command.arg(source.join(image)).arg(at(home.join(""))),
            2 | 3 => command.arg(source.join("")).arg(home.join("")),
            4 => command.arg(at(source.join(""))).arg(home.join("")),
            5 => command.arg(home.join("")).arg(out.join("")),
            6 => {
                let sent = holesync().arg("send").arg(source.join(image)).output().expect("run");
                let stream = out.join("stream");
                fs::write(&stream, sent.stdout).expect("keep the stream");
                input = File::open(stream).expect("open").into();
                command = holesync();
                command.arg("recv").arg(home.join(image))
            }
            _ => {
                command = holesync();
                command.arg("recover").arg(&home)
            }
        };
        let running = start_on(&mut command, input);
        if rng.chance(30) {
            std::thread::sleep(Duration::from_millis(rng.below(60) as u64));
            if !running.has_ended() {
                running.signal(nix::sys::signal::Signal::SIGKILL);
            }
        }
        let outcome = running.finish();
        assert!(outcome.code != 101 && !outcome.stderr.contains("panicked"), "it panics: {outcome}");
        outcome.code == 0
    }

    /// Everything outside, with what may not change of it.
    fn outside(&self) -> Vec<String> {
        let entries = walkdir::WalkDir::new(self.dir.path().join("outside")).sort_by_file_name();
        let describe = |entry: walkdir::DirEntry| {
            let stat = entry.metadata().expect("stat");
            // Whoever may write a file may link it, which is a change of its inode.
            let shared = entry.file_name() == "shared";
            let changed = if shared { (0, 0, 0) } else { (stat.ctime(), stat.ctime_nsec(), stat.nlink()) };
            let content = if stat.is_file() { fs::read(entry.path()).expect("read") } else { Vec::new() };
            let digest = blake3::hash(&content);
            let (mode, owner) = (stat.mode(), (stat.uid(), stat.gid()));
            format!("{:?} {mode:o} {owner:?} {} {changed:?} {digest}", entry.path(), stat.mtime_nsec())
        };
        entries.into_iter().map(|entry| describe(entry.expect("walk"))).collect()
    }

    fn is_unharmed(&self) {
        assert_eq!(self.outside(), self.before, "something outside has changed");
        for (number, dir) in (0..SMALL).flat_map(|number| MANY.map(|dir| (number, dir))) {
            // He may have put something else there: what is looked at is what is open.
            let path = self.home().join(dir).join(format!("small-{number}"));
            let Ok(mut file) = open(&path, libc::O_NOFOLLOW) else { continue };
            let stat = file.metadata().expect("stat");
            if !stat.is_file() || stat.uid() != 0 || stat.nlink() > 1 {
                continue;
            }
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut file, &mut content).expect("read");
            assert!(self.held.contains(&blake3::hash(&content)), "{dir}/small-{number} is no source's");
        }
        for (place, is_his) in [("home", true), ("out", false)] {
            for entry in walkdir::WalkDir::new(self.dir.path().join(place)).into_iter().flatten() {
                let Ok(stat) = entry.metadata() else { continue };
                let (uid, gid, mode) = (stat.uid() == 0, stat.gid() == 0, stat.mode());
                let power = stat.is_file() && (uid && mode & 0o4000 != 0 || gid && mode & 0o2010 == 0o2010);
                assert!(!power, "{:?} has mode {mode:o} and belongs to root", entry.path());
                // His own link to what he may read anyway is no leak.
                if !is_his && stat.is_file() && stat.len() > 0 {
                    let content = fs::read(entry.path()).unwrap_or_default();
                    assert!(!content.starts_with(SECRET.as_bytes()), "{:?} holds the secret", entry.path());
                }
            }
        }
    }
}

/// A user who does his worst.
struct Hostile {
    home: PathBuf,
    rng: Rng,
}

impl Hostile {
    fn forever(&mut self) {
        // So that he could read and write whatever comes his way.
        nix::sys::stat::umask(Mode::empty());
        // Root removes from his directory what is not in the source.
        let tricks = File::options().append(true).open(self.home.with_file_name("tricks"));
        let mut tricks = tricks.expect("count the tricks");
        loop {
            // Most fail: root is at work, and so is the other one.
            let _ = self.trick();
            std::io::Write::write_all(&mut tricks, b".").expect("count");
            // Root gets further where he is left alone for a moment.
            if self.rng.chance(15) {
                std::thread::sleep(Duration::from_millis(self.rng.below(6) as u64));
            }
        }
    }

    fn trick(&mut self) -> std::io::Result<()> {
        let image = match self.rng.chance(50) {
            true => self.home.join(IMAGES[self.rng.below(IMAGES.len())]),
            false => self.small(),
        };
        let _ = fs::create_dir_all(self.home.join("tree/sub"));
        match self.rng.below(13) {
            0..3 => {
                let working = self.working(&image);
                self.plant(&working)
            }
            3 => self.plant(&image),
            4 | 5 => self.forge(&image),
            6 => {
                let dir = ["tree", "tree/sub", MANY[0], MANY[1]][self.rng.below(4)];
                self.swap(dir)
            }
            7 => {
                let working = self.working(&image);
                fs::rename(working, self.home.join("kept"))
            }
            8 => fs::hard_link(&image, self.home.join(format!("keep{}", self.rng.below(4)))),
            9 => {
                let gone = self.home.join(format!("gone{}", self.rng.below(4)));
                let _ = fs::remove_dir_all(&gone);
                let dir = ["tree", MANY[0], MANY[1]][self.rng.below(3)];
                fs::rename(self.home.join(dir), gone)
            }
            // What waits for storage changes its name for another one's, or its directory.
            10 => {
                let (one, other) = (self.small(), self.small());
                let (one, other) = (self.working(&one), self.working(&other));
                Ok(renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE)?)
            }
            11 => {
                let [one, other] = MANY.map(|dir| self.home.join(dir));
                Ok(renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE)?)
            }
            _ => write(&image, &[7; 100_000]),
        }
    }

    fn small(&mut self) -> PathBuf {
        self.home.join(MANY[self.rng.below(2)]).join(format!("small-{}", self.rng.below(SMALL)))
    }

    fn working(&mut self, image: &Path) -> PathBuf {
        let (name, kind) = (image.file_name().expect("a name"), KINDS[self.rng.below(4)]);
        let mark = ["", "-0"][self.rng.below(2)];
        working_name(image, name, mark, kind)
    }

    /// Something of his in the place of whatever is there.
    fn plant(&mut self, path: &Path) -> std::io::Result<()> {
        let outside = self.home.with_file_name("outside");
        let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
        match self.rng.below(9) {
            0 => symlink(outside.join("victim"), path),
            1 => symlink(outside.join("dir"), path),
            2 => symlink(outside.join("secret"), path),
            3 => Ok(nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o666))?),
            4 => fs::create_dir_all(path.join("full/of")),
            5 => fs::hard_link(outside.join("shared"), path),
            6 => fs::hard_link(outside.join("secret"), path),
            7 => symlink(outside.join("new"), path),
            _ => {
                write(path, &[9; 200_000])?;
                let mode = [0o600, 0o666, 0o6755][self.rng.below(3)];
                fs::set_permissions(path, Permissions::from_mode(mode))
            }
        }
    }

    /// A sealed log that would make root's program of his file.
    fn forge(&mut self, image: &Path) -> std::io::Result<()> {
        if !fs::symlink_metadata(image).is_ok_and(|stat| stat.is_file() && stat.uid() == NOBODY) {
            let _ = fs::remove_file(image).or_else(|_| fs::remove_dir_all(image));
            write(image, &fs::read("/bin/true")?)?;
        }
        let _ = fs::hard_link(image, self.home.join("keep"));
        let (old, name) = (open(image, 0)?, image.file_name().expect("a name"));
        let working = |kind| {
            let path = working_name(image, name, "", kind);
            let _ = fs::remove_file(&path);
            let file = File::options().read(true).write(true).create_new(true).open(path)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            Ok::<_, std::io::Error>(file)
        };
        let mut stage = Stage::begin(working("stage")?, working("log")?, Identity::of(&old)?)?;
        let length = old.metadata()?.len();
        let block = BlockSize::default();
        let grid = Grid { length, block };
        let image = holesync::scan::FileImage::new(old, true);
        let root = holesync::hashmap::root_of(&image, &grid, |_| true)?.expect("nobody stops it");
        let attributes =
            Attributes { mode: Some(0o6755), uid: Some(0), gid: Some(0), ..Attributes::default() };
        let seal = Seal { length, block_size: block.bytes() as u32, root, attributes, preallocate: false };
        stage.seal(&seal, false)?;
        Ok(())
    }

    /// A directory and a link to one outside change their places, and back.
    fn swap(&mut self, name: &str) -> std::io::Result<()> {
        let (link, dir) = (self.home.join("link"), self.home.join(name));
        if fs::symlink_metadata(&link).is_err() {
            symlink(self.home.with_file_name("outside/dir"), &link)?;
        }
        for _ in 0..20 {
            renameat2(AT_FDCWD, &link, AT_FDCWD, &dir, RenameFlags::RENAME_EXCHANGE)?;
        }
        Ok(())
    }
}

/// For reading, but never waiting for the other end of a fifo.
fn open(path: &Path, flags: libc::c_int) -> std::io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK | flags).open(path)
}

/// A new file: what another name of it leads to is not his to write.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
    std::io::Write::write_all(&mut File::options().write(true).create_new(true).open(path)?, bytes)
}

fn working_name(image: &Path, name: &std::ffi::OsStr, mark: &str, kind: &str) -> PathBuf {
    let mut working = OsString::from(".");
    working.push(name);
    working.push(format!(".holesync{mark}.{kind}"));
    image.with_file_name(working)
}
