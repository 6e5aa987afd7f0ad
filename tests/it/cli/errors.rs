//! Bad input, broken peers and hostile names: each ends with the right exit
//! code and a message that helps, and nothing that was there is lost.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holesync::error::{Failure, escape};
use holesync::protocol::{FrameWriter, IMAGE, MAGIC, MAX_NOISE, Message, OLDEST, SURVEY, VERSION};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::common::check::{assert_no_leftovers, assert_same};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at, shell_word};
use crate::common::process::{Outcome, PROGRAM, holesync, run, run_on, start, wait_until};

/// Far beyond what anything here needs: it only ends hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// The ways a file can go.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Local,
    Push,
    Pull,
    /// Without a holesync at the other end.
    PushShell,
    PullShell,
}

const WAYS: [Way; 5] = [Way::Local, Way::Push, Way::Pull, Way::PushShell, Way::PullShell];

impl Way {
    /// The program, about to take `sources` to `to` this way.
    fn command(self, dir: &Path, sources: &[&Path], to: &Path) -> Command {
        let peer = Peer::pipe(dir);
        let mut command = match self {
            Way::PushShell | Way::PullShell => peer.shell(),
            Way::Local | Way::Push | Way::Pull => peer.holesync(),
        };
        let far = |path: &Path, is_far| if is_far { at(path) } else { path.into() };
        let pulls = matches!(self, Way::Pull | Way::PullShell);
        command.args(sources.iter().map(|source| far(source, pulls)));
        command.arg(far(to, matches!(self, Way::Push | Way::PushShell)));
        command
    }

    #[track_caller]
    fn run(self, dir: &Path, sources: &[&Path], to: &Path) -> Outcome {
        run(&mut self.command(dir, sources, to))
    }
}

/// A small file with data, holes and an odd end; another one, and another
/// length, for each seed.
fn image(path: &Path, seed: u64) -> PathBuf {
    let mut rng = Rng(seed);
    Layout::hole("image", (700 << 10) + 13 + seed as usize)
        .data(0..200_000, &mut rng)
        .data(600_000..600_100, &mut rng)
        .write(path);
    path.to_path_buf()
}

fn mkdir(path: PathBuf) -> PathBuf {
    fs::create_dir_all(&path).expect("create a directory");
    path
}

/// Everything below a directory but its own working files: names and contents.
fn tree(dir: &Path) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
    let below = walkdir::WalkDir::new(dir).min_depth(1).into_iter();
    below
        .map(|entry| {
            let entry = entry.expect("walk");
            let name = entry.path().strip_prefix(dir).expect("below").as_os_str().as_bytes().to_vec();
            (name, entry.file_type().is_file().then(|| fs::read(entry.path()).expect("read")))
        })
        .collect()
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_code_1_and_says_why() {
    let dir = lab::scratch();
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["Usage"]),
        (&["--no-such-option", "a", "b"], &["--no-such-option"]),
        (&["a", ""], &["empty path"]),
        (&["", "b"], &["empty path"]),
        (&["h:a", "i:b", "c"], &["all sources must be on one machine", "h", "i"]),
        (&["a", "h:b", "c"], &["all sources must be on one machine"]),
        (&["u@h:a", "h:b", "c"], &["all sources must be on one machine"]),
        (&["--inplace", "--commit=atomic", "a", "b"], &["--inplace", "--commit=atomic"]),
        (&["--agent=push", "--remote-path", "x", "a", "h:b"], &["--agent=push", "--remote-path"]),
        (&["--rsync-path=sudo /usr/bin/rsync", "a", "h:b"], &["--rsync-path", "sudo holesync"]),
        (&["-4", "-e", "ssh", "a", "h:b"], &["-4 and -6", "--rsh"]),
        (&["h::module/a", "b"], &["rsync daemon", "host:path"]),
        (&["a", ":b"], &[":b", "host"]),
        (&["--remote-path", "two\nlines", "a", "h:b"], &["--remote-path", "more than one line"]),
        (&["--agent=magic", "a", "h:b"], &["magic", "require"]),
        (&["--leaf-size", "5K", "a", "b"], &["5120", "power of two"]),
        (&["digest", "-B", "2K", "a"], &["4K", "256K"]),
        (&["map", "-B", "1M", "a"], &["4K", "256K"]),
        (&["-B", "64Q", "a", "b"], &["64Q", "suffix"]),
        (&["-B", "-4", "a", "b"], &["-4"]),
        (&["-B", "99999999999T", "a", "b"], &["99999999999T", "too much"]),
        (&["--compress=rot13", "a", "b"], &["rot13", "zstd"]),
        (&["--compress-level", "99", "a", "b"], &["99"]),
        (&["--threads", "0", "a", "b"], &["0"]),
        (&["--commit=never", "a", "b"], &["never", "atomic"]),
        (&["-e", "", "a", "h:b"], &["--rsh"]),
        (&["-e", "ssh 'x", "a", "h:b"], &["--rsh", "ssh 'x"]),
        (&["--", "-oProxyCommand=touch owned:/p", "b"], &["host"]),
        (&["--", "a", "-h:/p"], &["-h:/p", "host"]),
        (&["a", "u@-h:/p"], &["u@-h:/p", "host"]),
        (&["--", "a", "-u@h:/p"], &["-u@h:/p", "user"]),
        (&["a", "ssh://-h/p"], &["host"]),
        (&["a", "ssh://h"], &["no path"]),
        (&["a", "ssh://h:99999/p"], &["port"]),
        (&["a", ":/p"], &["host"]),
        (&["map"], &["IMAGE"]),
        (&["digest"], &["FILE"]),
        (&["recover"], &["PATH"]),
    ];
    fs::write(dir.path().join("a"), "kept").expect("write");
    for (args, says) in cases {
        run(holesync().args(*args).current_dir(dir.path())).code(1).says(says);
    }
    let untouched = BTreeMap::from([(b"a".to_vec(), Some(b"kept".to_vec()))]);
    assert_eq!(tree(dir.path()), untouched, "an error of usage touches nothing");
}

#[test]
fn a_missing_source_is_reported_and_the_others_arrive() {
    for way in WAYS {
        let dir = lab::scratch();
        let (one, two) = (image(&dir.path().join("one"), 1), image(&dir.path().join("two"), 2));
        let to = mkdir(dir.path().join("to"));
        let missing = dir.path().join("missing");
        way.run(dir.path(), &[&one, &missing, &two], &to).code(23).says(&[
            "cannot read",
            missing.to_str().unwrap(),
            "No such file",
            "code 23",
        ]);
        assert_same(&one, &to.join("one"));
        assert_same(&two, &to.join("two"));
        assert_no_leftovers(&to);
    }
}

#[test]
fn a_single_missing_source_leaves_the_destination_alone() {
    for way in WAYS {
        let dir = lab::scratch();
        let old = image(&dir.path().join("old"), 1);
        let before = fs::read(&old).expect("read");
        way.run(dir.path(), &[&dir.path().join("missing")], &old).code(23).says(&["missing", "No such file"]);
        assert_eq!(fs::read(&old).expect("read"), before, "{way:?}");
        way.run(dir.path(), &[&dir.path().join("missing")], &dir.path().join("new")).code(23);
        assert!(!dir.path().join("new").exists(), "{way:?}");
    }
}

/// A directory that another user can reach, with the program in it.
fn shared_place() -> Option<(TempDir, PathBuf)> {
    if !lab::is_root() {
        return None;
    }
    let dir = lab::scratch();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let program = lab::install(PROGRAM.as_ref(), dir.path());
    Some((dir, program))
}

/// The same command as a user without any rights.
fn as_nobody(program: &Path, command: &Command) -> Command {
    let mut nobody = Command::new("setpriv");
    nobody
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(program)
        // The far side runs the same copy.
        .args(command.get_args().map(|arg| if arg == PROGRAM { program.as_os_str() } else { arg }));
    nobody.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    nobody
}

#[test]
fn what_may_not_be_read_is_reported_and_the_rest_arrives() {
    let Some((dir, program)) = shared_place() else { return };
    for way in WAYS {
        let place = mkdir(dir.path().join(format!("{way:?}")));
        fs::set_permissions(&place, PermissionsExt::from_mode(0o777)).expect("chmod");
        let from = mkdir(place.join("from"));
        let (secret, locked) = (image(&from.join("secret"), 1), mkdir(from.join("locked")));
        let (good, last) = (image(&from.join("good"), 2), image(&mkdir(from.join("zz")).join("last"), 3));
        for path in [&secret, &locked] {
            fs::set_permissions(path, PermissionsExt::from_mode(0o000)).expect("chmod");
        }
        let to = place.join("to");
        let command = way.command(&place, &[&from.join("")], &to);
        run(&mut as_nobody(&program, &command)).code(23).says(&[
            secret.to_str().unwrap(),
            locked.to_str().unwrap(),
            "Permission denied",
        ]);
        assert_same(&good, &to.join("good"));
        assert_same(&last, &to.join("zz/last"));
        assert!(!to.join("secret").exists(), "{way:?}");
        assert_no_leftovers(&to);
    }
}

#[test]
fn a_destination_in_a_directory_that_is_missing_ends_with_code_3() {
    for way in WAYS {
        let dir = lab::scratch();
        let source = image(&dir.path().join("source"), 1);
        let from = mkdir(dir.path().join("from"));
        for (source, to) in [(&source, "no/dir"), (&source, "no/dir/"), (&from, "no/dir")] {
            let outcome = way.run(dir.path(), &[source], &dir.path().join(to));
            outcome.code(3).says(&["directory", "/no", "No such file", "create", "first"]);
        }
        assert!(!dir.path().join("no").exists(), "{way:?}");
    }
}

#[test]
fn a_directory_in_the_way_of_a_file_stays() {
    for way in WAYS {
        let dir = lab::scratch();
        let (disk, other) = (image(&dir.path().join("disk"), 1), image(&dir.path().join("other"), 2));
        let inner = image(&mkdir(dir.path().join("to/disk")).join("inner"), 3);
        let before = fs::read(&inner).expect("read");
        let to = dir.path().join("to");
        way.run(dir.path(), &[&disk, &other], &to).code(23).says(&["to/disk", "directory"]);
        assert_eq!(fs::read(&inner).expect("read"), before, "{way:?}");
        assert_same(&other, &to.join("other"));
        assert_no_leftovers(&to);
    }
}

#[test]
fn a_file_in_the_way_of_the_destination_stays() {
    for way in WAYS {
        let dir = lab::scratch();
        let from = mkdir(dir.path().join("from"));
        mkdir(from.join("d"));
        let (below, beside) = (image(&from.join("d/below"), 1), image(&from.join("e"), 2));
        let file = image(&dir.path().join("file"), 3);
        let before = fs::read(&file).expect("read");
        // The destination itself.
        way.run(dir.path(), &[&from], &file).code(3).says(&[file.to_str().unwrap(), "not a directory"]);
        way.run(dir.path(), &[&below, &beside], &file).code(3).says(&["not a directory"]);
        way.run(dir.path(), &[&below], &file.join("")).code(3).says(&["irectory"]);
        assert_eq!(fs::read(&file).expect("read"), before, "{way:?}");
    }
}

/// Runs a command of the system that has to succeed.
#[track_caller]
fn system(program: &str, args: &[&OsStr]) {
    run(Command::new(program).args(args)).ok();
}

/// Undoes something at the end of a test, however that ends.
struct Undo(&'static str, Vec<OsString>);

impl Drop for Undo {
    fn drop(&mut self) {
        let undone = Command::new(self.0).args(&self.1).status();
        // A panic within a panic would hide the first one.
        if !undone.is_ok_and(|status| status.success()) {
            eprintln!("cannot undo: {} {:?}", self.0, self.1);
        }
    }
}

#[test]
fn a_destination_that_may_not_be_written_stays_as_it_is() {
    let Some((dir, program)) = shared_place() else { return };
    for way in WAYS {
        let place = mkdir(dir.path().join(format!("{way:?}")));
        let source = image(&place.join("source"), 1);
        let to = mkdir(place.join("to"));
        let old = image(&to.join("old"), 2);
        let before = tree(&to);
        for name in ["old", "new"] {
            let command = way.command(&place, &[&source], &to.join(name));
            run(&mut as_nobody(&program, &command))
                .code(23)
                .says(&[to.join(name).to_str().unwrap(), "Permission denied"]);
            assert_eq!(tree(&to), before, "{way:?} {name}");
        }
        // A directory that may be written, and a file in it that may not.
        fs::set_permissions(&to, PermissionsExt::from_mode(0o777)).expect("chmod");
        fs::set_permissions(&old, PermissionsExt::from_mode(0o444)).expect("chmod");
        let command = way.command(&place, &[&source], &old);
        let outcome = run(as_nobody(&program, &command).arg("--inplace"));
        outcome.code(23).says(&[old.to_str().unwrap(), "in place"]);
        assert_eq!(tree(&to), before, "{way:?}");
        // As for rsync, the directory decides whether it may be replaced.
        run(&mut as_nobody(&program, &command)).ok();
        assert_same(&source, &old);
        assert_eq!(tree(&to).len(), 1, "{way:?}");
    }
}

/// Only the owner of a file may set its times: what fails for that must not fail when the
/// old image is written over already.
#[test]
fn a_file_that_belongs_to_another_is_replaced_where_the_group_may_write() {
    let Some((dir, program)) = shared_place() else { return };
    let source = image(&dir.path().join("source"), 1);
    let to = mkdir(dir.path().join("to"));
    let old = image(&to.join("old"), 1);
    File::options().write(true).open(&old).and_then(|file| file.write_all_at(b"old", 5)).expect("change");
    for (path, mode) in [(&source, 0o644), (&to, 0o2775), (&old, 0o664)] {
        std::os::unix::fs::chown(path, None, Some(65534)).expect("chown");
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod");
    }
    for _ in 0..2 {
        run(as_nobody(&program, holesync().arg("-c")).arg(&source).arg(&old)).ok();
        assert_same(&source, &old);
        assert_eq!(tree(&to).len(), 1);
    }
}

#[test]
fn a_read_only_mount_and_an_immutable_file_stay_as_they_are() {
    if !lab::is_root() {
        return;
    }
    let Some(dir) = lab::dir(Fs::Ext4) else { return };
    let source = image(&dir.path().join("source"), 1);
    let mount = mkdir(dir.path().join("mount"));
    system(
        "mount",
        &["-t", "tmpfs", "tmpfs"]
            .map(OsStr::new)
            .iter()
            .copied()
            .chain([mount.as_os_str()])
            .collect::<Vec<_>>(),
    );
    let _unmount = Undo("umount", vec![mount.clone().into()]);
    let old = image(&mount.join("old"), 2);
    system("mount", &[OsStr::new("-o"), OsStr::new("remount,ro"), mount.as_os_str()]);
    let to = mkdir(dir.path().join("to"));
    let fixed = image(&to.join("fixed"), 3);
    system("chattr", &[OsStr::new("+i"), fixed.as_os_str()]);
    let _mutable = Undo("chattr", vec!["-i".into(), fixed.clone().into()]);
    let before = (tree(&mount), tree(&to));
    for way in WAYS {
        for path in [old.clone(), mount.join("new")] {
            let outcome = way.run(dir.path(), &[&source], &path);
            outcome.code(23).says(&[path.to_str().unwrap(), "the file system is read-only"]);
        }
        let outcome = way
            .run(dir.path(), &[&source], &fixed)
            .code(23)
            .says(&[fixed.to_str().unwrap(), "not permitted"]);
        if !matches!(way, Way::PushShell) {
            outcome.says(&["lsattr shows whether it or its directory is immutable"]);
        }
        for option in ["--inplace", "--commit=atomic", "-W"] {
            let mut command = way.command(dir.path(), &[&source], &fixed);
            run(command.arg(option)).code(23).says(&[fixed.to_str().unwrap(), "not permitted"]);
        }
        assert_eq!((tree(&mount), tree(&to)), before, "{way:?}");
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_named_and_so_is_each_file_of_it() {
    if !lab::is_root() {
        return;
    }
    let Some(dir) = lab::dir(Fs::Ext4) else { return };
    let source = mkdir(dir.path().join("tree"));
    image(&mkdir(source.join("below")).join("file"), 1);
    File::open(&source).expect("open").set_modified(std::time::UNIX_EPOCH).expect("set a time");
    let to = mkdir(dir.path().join("to"));
    system("chattr", &[OsStr::new("+i"), to.as_os_str()]);
    let _mutable = Undo("chattr", vec!["-i".into(), to.clone().into()]);
    for way in [Way::Local, Way::Push, Way::Pull] {
        let mut command = way.command(dir.path(), &[&source.join("")], &to);
        let outcome = run(command.arg("-a")).code(23).says(&[
            &format!("cannot create the directory {}/below: Operation not permitted; lsattr", to.display()),
            &format!("cannot reach {}/below/file: its directory is missing", to.display()),
            "is in place, but its time could not be set: Operation not permitted\n",
            "2 of the files could not be transferred, 1 is in place without all of its attributes",
        ]);
        assert!(!outcome.stderr.contains("os error"), "{way:?}: {outcome}");
    }
}

#[test]
fn what_max_delete_keeps_is_not_said_to_be_transferred() {
    let dir = lab::scratch();
    let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
    for name in ["a", "b"] {
        image(&to.join(name), 1);
    }
    for way in [Way::Local, Way::Push, Way::Pull] {
        let mut command = way.command(dir.path(), &[&from.join("")], &to);
        let outcome = run(command.args(["-a", "--delete", "--max-delete=0"])).code(25);
        let outcome = outcome.says(&["stays, and so does what else would be removed (see above) (code 25)"]);
        assert!(!outcome.stderr.contains("transferred"), "{way:?}: {outcome}");
    }
}

#[test]
fn a_host_that_cannot_be_reached_ends_with_code_255() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let source = image(&dir.path().join("source"), 1);
    for (host, says) in [
        ("nowhere.invalid:to", "nowhere.invalid"),
        ("ssh://peer:1/to", "refused"),
        ("elsewhere-unknown@peer:to", "denied"),
    ] {
        run(peer.holesync().arg(&source).arg(host)).code(255).says(&["ssh to", says, "code 255"]);
        run(peer.holesync().arg(host).arg(dir.path().join("got"))).code(255).says(&["ssh to", says]);
    }
    assert!(!dir.path().join("got").exists());
    run(holesync().args(["-e", "/no/such/ssh"]).arg(&source).arg(at("to"))).code(5).says(&[
        "/no/such/ssh",
        "peer",
        "--rsh",
    ]);
}

#[test]
fn a_host_without_the_program_is_named_with_the_remedy() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let source = image(&dir.path().join("source"), 1);
    for program in ["holesync-is-not-there", "/no/such/dir/holesync", "/etc/passwd"] {
        let says = ["peer", program, "--remote-path", "code 5"];
        let require = || {
            let mut command = holesync();
            command.args(["-e", peer.rsh(), "--remote-path", program, "--agent=require"]);
            command
        };
        run(require().arg(&source).arg(at(dir.path().join("to")))).code(5).says(&says);
        run(require().arg(at(&source)).arg(dir.path().join("to"))).code(5).says(&says);
    }
    assert!(!dir.path().join("to").exists());
}

/// A peer that says these bytes and then does what `then` says.
fn talker(dir: &Path, bytes: &[u8], then: &str) -> Peer {
    fs::write(dir.join("says"), bytes).expect("write");
    Peer::script(dir, &format!("cat {}\n{then}", shell_word(&dir.join("says"))))
}

/// Runs a push and a pull of something there is already, against `peer`, and
/// demands that the old file stays. Returns both outcomes.
fn both_ways(dir: &Path, peer: &Peer, args: &[&str]) -> [Outcome; 2] {
    let (source, old) = (image(&dir.join("source"), 1), image(&dir.join("old"), 2));
    let before = fs::read(&old).expect("read");
    let push = run(peer.holesync().args(args).arg(&source).arg(at(&old)));
    let pull = run(peer.holesync().args(args).arg(at(&source)).arg(&old));
    assert_eq!(fs::read(&old).expect("read"), before, "{push} {pull}");
    [push, pull]
}

fn greeting(oldest: u16, newest: u16) -> Vec<u8> {
    [&MAGIC[..], &oldest.to_le_bytes(), &newest.to_le_bytes(), &[0; 4]].concat()
}

/// The first frame of a stream, with the checks that belong to it. `len` is what
/// its header claims.
fn first_frame(kind: u8, len: u32, body: &[u8]) -> Vec<u8> {
    let head = [&[kind], &len.to_le_bytes()[..]].concat();
    let check = |parts: &[&[u8]]| blake3::hash(&parts.concat()).as_bytes()[..4].to_vec();
    [head.clone(), check(&[&0u64.to_le_bytes(), &head]), body.to_vec(), check(&[body])].concat()
}

#[test]
fn another_version_of_the_protocol_ends_with_code_2_and_names_both() {
    let ours = format!("protocol {OLDEST} to {VERSION}; install");
    for (oldest, newest, theirs, renew) in [
        (0, 0, "protocol 0,", "the holesync on peer is older"),
        (OLDEST - 1, OLDEST - 1, "protocol ", "on peer, or have a transfer with --agent=push"),
        (VERSION + 1, VERSION + 1, "protocol ", "the holesync on peer is newer"),
        (300, 400, "protocol 300 to 400,", "the release of peer here"),
    ] {
        let dir = lab::scratch();
        let peer = talker(dir.path(), &greeting(oldest, newest), "cat >/dev/null");
        for outcome in both_ways(dir.path(), &peer, &[]) {
            outcome.code(2).says(&[theirs, &ours, renew, "code 2"]);
        }
    }
}

#[test]
fn a_peer_that_also_speaks_newer_versions_is_fine() {
    let dir = lab::scratch();
    let source = image(&dir.path().join("source"), 1);
    let body = format!(
        "agent | {{ dd bs=16 count=1 iflag=fullblock of=/dev/null 2>/dev/null; cat {}; cat; }}",
        shell_word(&dir.path().join("says"))
    );
    fs::write(dir.path().join("says"), greeting(0, VERSION + 3)).expect("write");
    let peer = Peer::script(dir.path(), &body);
    run(peer.holesync().arg(&source).arg(at(dir.path().join("to")))).ok();
    assert_same(&source, &dir.path().join("to"));
}

#[test]
fn an_agent_of_an_older_version_is_spoken_with_and_asked_for_nothing_it_cannot() {
    let dir = lab::scratch();
    let source = image(&dir.path().join("source"), 1);
    let body = format!(
        "agent | {{ dd bs=16 count=1 iflag=fullblock of=/dev/null 2>/dev/null; cat {}; cat; }}",
        shell_word(&dir.path().join("says"))
    );
    let peer = Peer::script(dir.path(), &body);
    let reach = ["-e", peer.rsh(), "--remote-path", PROGRAM];
    let says = ["the holesync on peer is older", "install"];
    for newest in OLDEST..VERSION {
        fs::write(dir.path().join("says"), greeting(OLDEST, newest)).expect("write");
        let to = dir.path().join(format!("to-{newest}"));
        run(peer.holesync().arg(&source).arg(at(&to))).ok();
        assert_same(&source, &to);
        for (args, since) in [(&["map"][..], SURVEY), (&["diff", "Cargo.toml"], SURVEY), (&["-"], IMAGE)] {
            let mut command = holesync();
            command.args(args).args(reach).arg(at(&source));
            if newest < since {
                run_on(&mut command, b"image").code(2).says(&says);
            }
        }
    }
}

#[test]
fn a_peer_that_talks_garbage_is_refused_and_named() {
    let mut noise = vec![0; 100_000];
    Rng(7).fill(&mut noise);
    let greeted = |rest: &[u8]| [&greeting(VERSION, VERSION)[..], rest].concat();
    let frame = |kind: u8, len: u32, body: &[u8]| greeted(&first_frame(kind, len, body));
    let cases: &[(&str, Vec<u8>, &str, i32, &str)] = &[
        ("endless text", vec![], "yes garbage", 5, "no holesync answered on peer"),
        ("binary", noise.clone(), "", 5, "no holesync answered on peer"),
        ("silence", vec![], "", 5, "without a word"),
        ("silence and an error", vec![], "exit 9", 5, "without a word"),
        ("silence and the code of ssh", vec![], "exit 255", 255, "ssh to peer failed"),
        ("half a magic", MAGIC[..5].to_vec(), "", 5, "no holesync answered on peer"),
        ("a magic alone", MAGIC.to_vec(), "", 12, "peer closed the connection"),
        ("a greeting alone", greeted(&[]), "", 12, "peer closed the connection"),
        ("garbage behind the greeting", greeted(&noise), "cat >/dev/null", 12, "bad data from peer"),
        // Whether the garbage or the broken pipe is noticed first, is a matter of luck.
        ("garbage behind the greeting, and gone", greeted(&noise), "", 12, "peer"),
        ("endless text behind the greeting", greeted(&[]), "yes garbage", 12, "bad data from peer"),
        ("an endless frame", frame(1, u32::MAX, &noise), "cat /dev/zero", 12, "bad data from peer"),
        ("an endless data frame", frame(2, u32::MAX, &noise), "cat /dev/zero", 12, "bad data from peer"),
        ("an endless map", frame(4, u32::MAX, &noise), "cat /dev/zero", 12, "bad data from peer"),
        ("a frame of an unknown type", frame(99, 1, &[0]), "cat >/dev/null", 12, "bad data from peer"),
        ("an empty frame", frame(1, 0, &[]), "cat >/dev/null", 12, "bad data from peer"),
        ("a message that is none", frame(1, 3, &[250, 250, 250]), "cat >/dev/null", 12, "bad data from peer"),
        ("half a frame", frame(1, 100, &[1; 50]), "", 12, "peer closed the connection"),
    ];
    for (name, bytes, then, code, says) in cases {
        eprintln!("case: {name}");
        let dir = lab::scratch();
        let peer = talker(dir.path(), bytes, then);
        for outcome in both_ways(dir.path(), &peer, &[]) {
            outcome.code(*code).says(&[says]);
        }
    }
}

#[test]
fn a_peer_that_never_answers_is_ended_by_an_interrupt() {
    for (name, bytes) in [("silent", vec![]), ("greeted", greeting(VERSION, VERSION))] {
        let dir = lab::scratch();
        let begun = dir.path().join("begun");
        let peer = talker(dir.path(), &bytes, &format!(": >{}\ncat >/dev/null\nexit", shell_word(&begun)));
        let source = image(&dir.path().join("source"), 1);
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            for pull in [false, true] {
                let mut command = peer.holesync();
                command.arg("--json");
                match pull {
                    false => command.arg(&source).arg(at(dir.path().join("to"))),
                    true => command.arg(at(&source)).arg(dir.path().join("to")),
                };
                let running = start(&mut command);
                assert!(wait_until(LIMIT, || begun.exists()), "{name}: the peer did not start");
                running.signal(signal);
                let outcome = running.finish_within(LIMIT).code(20).says(&["interrupted", "code 20"]);
                let last = super::json_lines(&outcome).pop().expect("a line");
                assert_eq!((&last["event"], &last["code"]), (&"error".into(), &20.into()), "{outcome}");
                fs::remove_file(&begun).expect("remove");
            }
        }
        assert!(!dir.path().join("to").exists(), "{name}");
    }
}

/// A peer whose agent dies, as far as anyone can see, after `offset` bytes.
fn dying_peer(dir: &Path, offset: usize) -> Peer {
    // This shell gives up its own hold on the stream, or nobody would see it end.
    let body = format!(
        r#"exec 3<&0; sh -c "$command" <&3 3<&- | stdbuf -o0 head -c {offset} & exec >&- <&- 3<&-; wait"#
    );
    Peer::script(dir, &body)
}

/// How much an agent says in a transfer, in which nothing fails.
fn said_in(dir: &Path, source: &Path, to: &Path, pull: bool) -> usize {
    let record = dir.join("record");
    let peer = Peer::script(dir, &format!("agent | tee {}", shell_word(&record)));
    transfer(&peer, source, to, pull).ok();
    fs::metadata(record).expect("stat").len() as usize
}

#[track_caller]
fn transfer(peer: &Peer, source: &Path, to: &Path, pull: bool) -> Outcome {
    let mut command = peer.holesync();
    match pull {
        true => command.arg(at(source)).arg(to),
        false => command.arg(source).arg(at(to)),
    };
    run(&mut command)
}

#[test]
fn a_peer_that_dies_after_any_byte_is_an_error_and_the_next_run_succeeds() {
    for pull in [false, true] {
        let dir = lab::scratch();
        let (source, old) = (image(&dir.path().join("source"), 1), image(&dir.path().join("old"), 2));
        let to = mkdir(dir.path().join("to")).join("disk");
        let reset = || {
            fs::copy(&old, &to).expect("copy");
        };
        reset();
        let whole = said_in(dir.path(), &source, &to, pull);
        let mut rng = Rng(3);
        let first = (0..60.min(whole)).step_by(if pull { 5 } else { 3 });
        let last = (whole.saturating_sub(40)..whole).step_by(4).chain([whole - 1]);
        let offsets = first.chain((0..8).map(|_| rng.below(whole))).chain(last);
        for offset in offsets {
            reset();
            let outcome = transfer(&dying_peer(dir.path(), offset), &source, &to, pull);
            assert!([5, 12].contains(&outcome.code), "cut after {offset} of {whole}: {outcome}");
            // Whole, old or new: a push may be complete before the peer could say so.
            let now = fs::read(&to).expect("read");
            let is = |path: &Path| now == fs::read(path).expect("read");
            assert!(is(&old) || is(&source), "cut after {offset} of {whole}: {outcome}");
            transfer(&Peer::pipe(dir.path()), &source, &to, pull).ok();
            assert_same(&source, &to);
            assert_no_leftovers(&dir.path().join("to"));
        }
    }
}

#[test]
fn noise_before_the_greeting_is_skipped_up_to_64_kib() {
    let most = "\x1b]0;owned\x07\n".repeat(MAX_NOISE / 11 + 1).into_bytes();
    for (len, fits) in [(1, true), (MAX_NOISE, true), (MAX_NOISE + 1, false), (10 * MAX_NOISE, false)] {
        let dir = lab::scratch();
        let mut noise = most.repeat(len / most.len() + 1);
        noise.truncate(len);
        let peer = talker(dir.path(), &noise, "agent");
        let (source, to) = (image(&dir.path().join("source"), 1), dir.path().join("to"));
        for pull in [false, true] {
            let outcome = transfer(&peer, &source, &to, pull);
            if fits {
                outcome.ok();
                assert_same(&source, &to);
                fs::remove_file(&to).expect("remove");
            } else {
                let outcome =
                    outcome.code(5).says(&["peer", r#"saying "\#033]0;owned\#007\#012"#, "login shell"]);
                assert!(!outcome.stderr.contains('\x1b') && !outcome.stderr.contains('\x07'), "{outcome}");
                assert!(!to.exists());
            }
        }
    }
}

/// Names that shells, terminals and text encodings stumble over.
fn odd_names() -> Vec<OsString> {
    let mut names: Vec<OsString> =
        ["a b", " ", "-rf", "--help", "*", "$HOME", "`id`", "'", "\"", "\\", "~", "#x", "a:b", "h:"]
            .map(OsString::from)
            .into();
    names.extend(
        ["new\nline", "\r", "\t", "\x1b[31mred", "\x07", "\u{9b}2J", "ünï", "\u{202e}x"].map(OsString::from),
    );
    names.extend(
        [&b"\xff\xfe"[..], b"latin-\xe9", b"\x80", &[b'x'; 255]]
            .map(|name| OsString::from_vec(name.to_vec())),
    );
    names
}

#[test]
fn odd_names_survive_byte_for_byte_and_are_shown_escaped() {
    for way in WAYS {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), dir.path().join("to"));
        for (nth, name) in odd_names().iter().enumerate() {
            fs::write(from.join(name), format!("content {nth}")).expect("write");
            if nth % 3 == 0 {
                let mut link = OsString::from("link to ");
                link.push(name.as_bytes().get(..200).map_or(name.as_os_str(), OsStr::from_bytes));
                symlink(name, from.join(link)).expect("symlink");
            }
        }
        let mut command = way.command(dir.path(), &[&from.join("")], &to);
        let outcome = run(command.arg("-v")).ok();
        assert_eq!(tree(&to), tree(&from), "{way:?}");
        for name in odd_names() {
            let shown = escape(name.as_bytes());
            assert!(outcome.stdout.lines().any(|line| line == shown), "{way:?}: {shown} is not in {outcome}");
        }
        assert!(!outcome.stdout.contains(|c: char| c.is_control() && c != '\n'), "{way:?}: {outcome}");
    }
}

#[test]
fn odd_names_are_escaped_in_errors() {
    for way in WAYS {
        let dir = lab::scratch();
        let good = image(&dir.path().join("good"), 1);
        let to = mkdir(dir.path().join("to"));
        for name in odd_names().into_iter().filter(|name| name.len() < 200) {
            let missing = dir.path().join("none").join(&name);
            let outcome = way.run(dir.path(), &[&missing, &good], &to).code(23);
            assert!(!outcome.stderr.contains(|c: char| c.is_control() && c != '\n'), "{way:?}: {outcome}");
            outcome.says(&[&format!("none/{}", escape(name.as_bytes()))]);
        }
    }
}

#[test]
fn what_a_peer_says_cannot_steer_the_terminal() {
    let evil = "\x1b]0;owned\x07\x1b[2J\u{9b}31m";
    let dir = lab::scratch();
    let mut fatal = greeting(VERSION, VERSION);
    let mut writer = FrameWriter::new(&mut fatal, "nobody");
    let failure = Failure::new(11, format!("disk\nfull{evil}"));
    writer
        .message(&Message::Warning(evil.into()))
        .and_then(|()| writer.message(&Message::Fatal(failure)))
        .expect("encode");
    writer.flush().expect("encode");
    drop(writer);
    fs::write(dir.path().join("evil"), format!("{evil}\nsecond line")).expect("write");
    let stderr = format!("cat {} >&2; exit 3", shell_word(&dir.path().join("evil")));
    for (bytes, then, code) in [(&fatal[..], "cat >/dev/null", 11), (b"", stderr.as_str(), 5)] {
        for outcome in both_ways(dir.path(), &talker(dir.path(), bytes, then), &["-vv"]) {
            let outcome = outcome.code(code).says(&[r"\#033]0;owned\#007\#033[2J\#302\#23331m"]);
            assert!(!outcome.stderr.contains(|c: char| c.is_control() && c != '\n'), "{outcome}");
        }
    }
}

#[test]
fn a_failure_with_code_0_from_a_peer_is_no_success() {
    let dir = lab::scratch();
    let mut fatal = greeting(VERSION, VERSION);
    let mut writer = FrameWriter::new(&mut fatal, "nobody");
    writer.message(&Message::Fatal(Failure::new(0, "all is well"))).expect("encode");
    writer.flush().expect("encode");
    drop(writer);
    for outcome in both_ways(dir.path(), &talker(dir.path(), &fatal, "cat >/dev/null"), &[]) {
        outcome.code(12).says(&["all is well"]);
    }
}

#[test]
fn a_file_copied_onto_itself_survives() {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        let disk = image(&dir.path().join("disk"), 1);
        let before = fs::read(&disk).expect("read");
        fs::hard_link(&disk, dir.path().join("hard")).expect("link");
        symlink("disk", dir.path().join("soft")).expect("symlink");
        let options = [
            &[][..],
            &["-I"],
            &["-W", "-I"],
            &["--inplace", "-I"],
            &["--inplace", "-IW"],
            &["--commit=atomic", "-I"],
        ];
        // Each way with each of them on one file system, then one way on each.
        let ways = if fs == Fs::Ext4 { &WAYS[..] } else { &[Way::Push] };
        for way in ways {
            for options in options {
                for to in ["disk", "hard", "soft", "../disk", "."] {
                    let to = match to {
                        "../disk" => {
                            dir.path().join(".").join("..").join(dir.path().file_name().unwrap()).join("disk")
                        }
                        other => dir.path().join(other),
                    };
                    let outcome = run(way.command(dir.path(), &[&disk], &to).args(options));
                    assert!([0, 23].contains(&outcome.code), "{fs:?}: {outcome}");
                    for name in ["disk", "hard", "soft"] {
                        assert_eq!(
                            fs::read(dir.path().join(name)).expect("read"),
                            before,
                            "{fs:?} {name}: {outcome}"
                        );
                    }
                }
            }
        }
        assert_no_leftovers(dir.path());
    }
}

#[test]
fn a_directory_is_not_copied_into_itself() {
    let dir = lab::scratch();
    let from = mkdir(dir.path().join("from"));
    image(&from.join("disk"), 1);
    mkdir(from.join("sub"));
    symlink("from/sub", dir.path().join("link")).expect("symlink");
    let before = tree(&from);
    let cases = [
        ("from", "from"),
        ("from", "from/sub"),
        ("from", "from/new"),
        ("from/", "from/sub"),
        ("from/", "from/sub/"),
        ("from/", "from/new/"),
        ("from/.", "from/sub/new"),
        ("from/sub/..", "from/new"),
        ("link/..", "link"),
        ("from/", "link"),
    ];
    for (source, to) in cases {
        Way::Local.run(dir.path(), &[&dir.path().join(source)], &dir.path().join(to)).code(3).says(&[
            "into itself",
            source,
            to,
            "outside",
        ]);
        assert_eq!(tree(&from), before, "{source} {to}");
    }
    for (source, to) in [("from/", "from"), ("from/", "from/"), ("from", ".")] {
        Way::Local.run(dir.path(), &[&dir.path().join(source)], &dir.path().join(to)).ok();
        assert_eq!(tree(&from), before, "{source} {to}");
    }
    run(holesync().args(["--no-recursive", "from/disk", "from", "from/sub"]).current_dir(dir.path())).ok();
    assert_same(&from.join("disk"), &from.join("sub/disk"));
    Way::Local.run(dir.path(), &[&from], &dir.path().join("from2")).ok();
    assert_eq!(tree(&dir.path().join("from2/from")), tree(&from));
}

#[test]
fn a_source_that_vanishes_after_it_was_found_ends_with_code_24() {
    vanish(0);
}

#[test]
fn a_source_that_vanishes_does_not_hold_up_the_rest_while_much_is_mapped() {
    // More than the mapper may be ahead.
    vanish(300 << 20);
}

/// A source goes after it was announced; the destination has so many bytes of it.
fn vanish(old: usize) {
    let dir = lab::scratch();
    let from = mkdir(dir.path().join("from"));
    let (gone, stays) = (image(&from.join("gone"), 1), image(&from.join("stays"), 2));
    let to = mkdir(dir.path().join("to"));
    if old > 0 {
        fs::write(to.join("gone"), vec![0; old]).expect("write");
    }
    let [heard, go] = ["heard", "go"].map(|name| dir.path().join(name));
    system("mkfifo", &[go.as_os_str()]);
    // What the agent has to say behind its greeting waits until the fifo is opened.
    let peer = Peer::script(
        dir.path(),
        &format!("tee {} | agent | {{ head -c 16; : <{}; cat; }}", shell_word(&heard), shell_word(&go)),
    );
    let running = start(peer.holesync().arg(from.join("")).arg(at(&to)));
    let announced = || fs::read(&heard).is_ok_and(|bytes| bytes.windows(5).any(|name| name == b"stays"));
    assert!(wait_until(LIMIT, announced), "the files were not announced");
    fs::remove_file(&gone).expect("remove");
    File::options().write(true).open(&go).expect("open the fifo");
    running.finish().code(24).says(&[gone.to_str().unwrap(), "vanished before it was read", "code 24"]);
    assert_same(&stays, &to.join("stays"));
    assert_eq!(fs::metadata(to.join("gone")).map_or(0, |file| file.len()), old as u64);
    assert_no_leftovers(&to);
}

#[test]
fn a_device_a_socket_and_a_fifo_are_skipped_with_a_word() {
    for way in WAYS {
        let dir = lab::scratch();
        let (from, to) = (mkdir(dir.path().join("from")), dir.path().join("to"));
        let good = image(&from.join("good"), 1);
        system("mkfifo", &[from.join("fifo").as_os_str()]);
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).expect("bind");
        way.run(dir.path(), &[&from.join("")], &to).ok().says(&[
            "from/fifo",
            "from/socket",
            "skipping special file",
        ]);
        assert_same(&good, &to.join("good"));
        assert_eq!(tree(&to).len(), 1, "{way:?}");
        // One that is named is more than skipped.
        for named in ["fifo", "socket"] {
            let outcome = way.run(dir.path(), &[&from.join(named), &good], &to.join("")).code(23);
            outcome.says(&[&format!("from/{named}"), "cannot be sent"]);
            way.run(dir.path(), &[&from.join(named)], &dir.path().join("alone")).code(23);
            assert!(!dir.path().join("alone").exists(), "{way:?}");
        }
        // One that is in the way stays, and nobody waits for its other end.
        system("mkfifo", &[to.join("pipe").as_os_str()]);
        way.run(dir.path(), &[&good], &to.join("pipe")).code(23).says(&["to/pipe"]);
        assert!(fs::metadata(to.join("pipe")).is_ok_and(|found| !found.is_file()), "{way:?}");
    }
}

#[test]
fn a_process_that_the_connection_leaves_behind_does_not_hold_up_the_end() {
    let dir = lab::scratch();
    let (source, to) = (image(&dir.path().join("source"), 1), dir.path().join("to"));
    // It keeps stderr open for longer than any test may take.
    let peer = Peer::script(dir.path(), "sleep 1000 </dev/null >/dev/null & agent");
    for pull in [false, true] {
        transfer(&peer, &source, &to, pull).ok();
        assert_same(&source, &to);
        fs::remove_file(&to).expect("remove");
    }
    let broken = Peer::script(dir.path(), "sleep 1000 </dev/null >/dev/null & exit 255");
    transfer(&broken, &source, &to, false).code(255).says(&["ssh to peer failed"]);
}
