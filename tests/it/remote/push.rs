//! A program that is brought along: it is kept where nobody else can write, is
//! run only if it is the same to the last bit, and else the shell does the work.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::account::{Account, noting_ssh, on, which};
use crate::common::check::assert_same;
use crate::common::faults::{Direction, Fault};
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at, shell_word};
use crate::common::process::{Outcome, PROGRAM, holesync, run, start};
use crate::common::tree::{mkdir, set_mode, set_mtime, small};

/// No holesync there.
const PLAIN_PATH: &str = "PATH=/usr/local/bin:/usr/bin:/bin; export PATH\n";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An account that has never seen a holesync.
struct Fresh {
    account: Account,
    peer: Peer,
    source: PathBuf,
}

impl Fresh {
    /// `None`, and a counted skip, where there can be none.
    fn new(shell: &Path) -> Option<Fresh> {
        let (peer, account) = (Peer::sshd()?, Account::new(shell)?);
        let source = account.place.path().join("source");
        let layout = Layout::hole("source", 300_001).data(70_000..74_000, &mut Rng(7));
        layout.write(&source);
        set_mode(&source, 0o666);
        let fresh = Fresh { account, peer, source };
        mkdir(fresh.temporary());
        fresh.account.owns(&fresh.account.home);
        fresh.profile("");
        Some(fresh)
    }

    /// One whose shell is bash.
    fn bash() -> Option<Fresh> {
        Fresh::new(&which("bash"))
    }

    /// What bash does there first.
    fn profile(&self, text: &str) {
        let temporary = shell_word(&self.temporary());
        let text = format!("{PLAIN_PATH}export TMPDIR={temporary}\n{text}\n");
        self.account.keep(".bashrc", text.as_bytes());
    }

    /// Where its mktemp makes things, if its shell is bash.
    fn temporary(&self) -> PathBuf {
        self.account.home.join("temporary")
    }

    fn cache(&self) -> PathBuf {
        self.account.home.join(".cache/holesync")
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = holesync();
        command.args(["-e", self.peer.rsh(), "--json"]).args(flags);
        command
    }

    /// A run that makes a new file there.
    #[track_caller]
    fn run(&self, flags: &[&str]) -> Outcome {
        let to = self.account.home.join("to");
        let outcome = run(self.command(flags).arg(&self.source).arg(on(&self.account.host(), &to))).ok();
        assert_same(&self.source, &to);
        fs::remove_file(to).expect("remove");
        let left = listing(&self.temporary());
        assert!(left.is_empty(), "{left:?} is left of {outcome}");
        outcome
    }

    #[track_caller]
    fn push(&self) -> Outcome {
        self.run(&["--agent=push"])
    }

    /// The same, with what is there.
    #[track_caller]
    fn auto(&self) -> Outcome {
        self.run(&["--agent=auto"])
    }

    /// The program in the cache, the only one.
    #[track_caller]
    fn cached(&self) -> PathBuf {
        let names = listing(&self.cache());
        assert_eq!(names.len(), 1, "{names:?}");
        self.cache().join(&names[0])
    }

    /// A push that brings the program although it was there, or could have been.
    #[track_caller]
    fn brings_it_anew(&self) {
        assert_route(&self.auto(), "shell", false);
        assert_route(&self.push(), "agent", true);
    }
}

/// The names in a directory; none if there is no such directory.
fn listing(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// Demands that who took part is this, and that the program was brought or not.
#[track_caller]
fn assert_route(outcome: &Outcome, route: &str, brought: bool) {
    assert_eq!(outcome.summary()["route"], route, "{outcome}");
    let sent = outcome.count("wire_bytes_sent");
    let size = fs::metadata(PROGRAM).expect("stat").len();
    assert_eq!(outcome.stdout.contains("bringing "), brought, "{outcome}");
    assert!(if brought { sent > size } else { sent < 40_000 }, "{sent} bytes: {outcome}");
}

/// Demands that there is a warning that says this.
#[track_caller]
fn assert_warns(outcome: &Outcome, parts: &[&str]) {
    let lines = outcome.stdout.lines().filter(|line| line.contains(r#""event":"warning""#));
    let found = lines.into_iter().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(found, "{parts:?} is in no warning of {outcome}");
}

/// Brings the program to an account with this login shell, and uses it again.
fn check_login_shell(shell: &Path) {
    let Some(fresh) = Fresh::new(shell) else { return };
    assert_route(&fresh.push(), "agent", true);
    let cached = fresh.cached();
    assert_same(PROGRAM.as_ref(), &cached);
    let mode = |path: &Path| fs::metadata(path).expect("stat").mode() & 0o7777;
    assert_eq!((mode(&fresh.cache()), mode(&cached)), (0o700, 0o700));
    assert_route(&fresh.push(), "agent", false);
    assert_route(&fresh.run(&["--agent=auto", "--remote-path=/nowhere/holesync"]), "agent", false);
    let back = fresh.account.place.path().join("back");
    let remote = fresh.account.keep("remote", &fs::read(&fresh.source).expect("read"));
    for (flags, brought) in [(&["--agent=push"][..], false), (&["--agent=push"], true)] {
        if brought {
            fs::remove_dir_all(fresh.cache()).expect("remove");
        }
        let outcome = run(fresh.command(flags).arg(on(&fresh.account.host(), "remote")).arg(&back)).ok();
        assert_route(&outcome, "agent", brought);
        assert_same(&remote, &back);
        fs::remove_file(&back).expect("remove");
    }
}

/// Names below a directory, with when each changed last in any way.
fn states(dir: &Path) -> Vec<(PathBuf, (i64, i64), u64)> {
    let entries =
        walkdir::WalkDir::new(dir).sort_by_file_name().into_iter().map(|entry| entry.expect("walk"));
    entries
        .map(|entry| {
            let stat = entry.metadata().expect("stat");
            (entry.into_path(), (stat.ctime(), stat.ctime_nsec()), stat.len())
        })
        .filter(|(path, ..)| !path.ends_with("temporary"))
        .collect()
}

#[test]
fn a_dry_run_leaves_nothing_of_the_program_that_it_brought() {
    let Some(fresh) = Fresh::bash() else { return };
    let home = &fresh.account.home;
    let dry = |brought: bool| {
        let before = states(home);
        let to = on(&fresh.account.host(), home.join("to"));
        let outcome = run(fresh.command(&["-n", "--agent=push"]).arg(&fresh.source).arg(to)).ok();
        assert_route(&outcome, "agent", brought);
        assert!(!outcome.stdout.contains(r#""event":"warning""#), "{outcome}");
        assert_eq!(states(home), before, "{outcome}");
    };
    dry(true);
    // The directory of caches is there, then one that this user has to himself, then another program in it.
    mkdir(home.join(".cache"));
    fresh.account.owns(&home.join(".cache"));
    dry(true);
    fresh.push();
    dry(false);
    let kept = fresh.cached();
    let old = fresh.cache().join("agent-0.0.1-0123456789abcdef");
    fs::write(&old, "old").expect("write");
    dry(false);
    fs::write(kept, "damaged").expect("write");
    dry(true);
}

#[test]
fn bash_as_login_shell_gets_the_program_once() {
    check_login_shell(&which("bash"));
}

#[test]
fn dash_as_login_shell_gets_the_program_once() {
    check_login_shell(&which("dash"));
}

#[test]
fn zsh_as_login_shell_gets_the_program_once() {
    check_login_shell(&which("zsh"));
}

#[test]
fn fish_as_login_shell_gets_the_program_once() {
    check_login_shell(&which("fish"));
}

#[test]
fn tcsh_as_login_shell_gets_the_program_once() {
    check_login_shell(&which("tcsh"));
}

#[test]
fn busybox_ash_as_login_shell_gets_the_program_once() {
    let dir = lab::scratch();
    set_mode(dir.path(), 0o755);
    let ash = dir.path().join("ash");
    symlink(which("busybox"), &ash).expect("symlink");
    check_login_shell(&ash);
}

#[test]
fn what_was_brought_is_found_where_no_holesync_is_in_the_path() {
    let Some(fresh) = Fresh::bash() else { return };
    assert_route(&fresh.auto(), "shell", false);
    assert_route(&fresh.push(), "agent", true);
    assert_route(&fresh.auto(), "agent", false);
    assert_route(&fresh.run(&["--agent=none"]), "shell", false);
}

#[test]
fn a_run_that_brings_the_program_makes_exactly_one_connection() {
    let Some(fresh) = Fresh::bash() else { return };
    let (script, log) = noting_ssh(fresh.account.place.path(), &fresh.peer);
    let rsh = format!("sh {}", shell_word(&script));
    for (nth, brought) in [true, false].into_iter().enumerate() {
        let to = on(&fresh.account.host(), "to");
        let mut command = holesync();
        command.args(["-e", &rsh, "--json", "--agent=push", "-I"]).arg(&fresh.source).arg(to);
        assert_route(&run(&mut command).ok(), "agent", brought);
        assert_eq!(fs::read_to_string(&log).expect("read").lines().count(), nth + 1);
    }
}

#[test]
fn two_runs_at_once_bring_it_both() {
    let Some(fresh) = Fresh::bash() else { return };
    for _ in 0..4 {
        let running: Vec<_> = ["one", "two", "three"]
            .map(|name| {
                let to = on(&fresh.account.host(), name);
                start(fresh.command(&["--agent=push"]).arg(&fresh.source).arg(to))
            })
            .into();
        for running in running {
            let outcome = running.finish().ok();
            assert_eq!(outcome.summary()["route"], "agent", "{outcome}");
        }
        assert_same(PROGRAM.as_ref(), &fresh.cached());
        fs::remove_dir_all(fresh.cache()).expect("remove");
        for name in ["one", "two", "three"] {
            assert_same(&fresh.source, &fresh.account.home.join(name));
            fs::remove_file(fresh.account.home.join(name)).expect("remove");
        }
    }
}

#[test]
fn a_cached_program_that_is_not_the_same_to_the_last_bit_is_replaced_and_never_run() {
    let Some(fresh) = Fresh::bash() else { return };
    fresh.push();
    let cached = fresh.cached();
    let ran = fresh.account.home.join("ran");
    let program = fs::read(PROGRAM).expect("read");
    let write = |bytes: &[u8]| {
        fs::write(&cached, bytes).expect("write");
        set_mode(&cached, 0o700);
    };
    let mut flipped = program.clone();
    flipped[program.len() / 2] ^= 1;
    let spy = format!("#!/bin/sh\n: >{}\nexec {PROGRAM} \"$@\"\n", shell_word(&ran));
    let elsewhere = fresh.account.home.join("elsewhere");
    let changes: [&dyn Fn(); 6] = [
        &|| write(&flipped),
        &|| write(&program[..program.len() - 1]),
        &|| write(&[&program[..], b"\0"].concat()),
        &|| write(b""),
        &|| write(spy.as_bytes()),
        &|| {
            fs::rename(&cached, &elsewhere).expect("rename");
            symlink(&elsewhere, &cached).expect("symlink");
        },
    ];
    for (nth, change) in changes.iter().enumerate() {
        eprintln!("change {nth}");
        fs::remove_file(&cached).expect("remove");
        write(&program);
        change();
        fresh.account.owns(&fresh.account.home);
        fresh.brings_it_anew();
        assert!(!ran.exists(), "what was there was run");
        assert_eq!(fresh.cached(), cached);
        assert!(fs::symlink_metadata(&cached).expect("stat").is_file());
        assert_same(PROGRAM.as_ref(), &cached);
        assert_route(&fresh.auto(), "agent", false);
    }
}

#[test]
fn a_cache_that_others_could_write_to_is_never_used() {
    let Some(fresh) = Fresh::bash() else { return };
    let (cache, aside) = (fresh.cache(), fresh.account.home.join("aside"));
    let owner = fs::metadata(&fresh.account.home).expect("stat").uid();
    let changes: [&dyn Fn(); 6] = [
        &|| set_mode(&cache, 0o755),
        &|| set_mode(&cache, 0o720),
        &|| set_mode(&cache, 0o702),
        &|| {
            fs::rename(&cache, &aside).expect("rename");
            symlink(&aside, &cache).expect("symlink");
        },
        &|| chown(&cache, Some(0), None).expect("chown"),
        &|| {
            chown(&cache, Some(0), None).expect("chown");
            set_mode(&cache, 0o755);
        },
    ];
    for (nth, change) in changes.iter().enumerate() {
        eprintln!("change {nth}");
        fresh.push();
        let name = fresh.cached();
        small(cache.join("agent-0.0.1-0123456789abcdef"), "old");
        change();
        let before = fs::symlink_metadata(&cache).expect("stat");
        fresh.brings_it_anew();
        assert_warns(&fresh.push(), &["is not for this user alone", "not kept"]);
        // Neither used nor cleared up.
        assert!(name.exists() && cache.join("agent-0.0.1-0123456789abcdef").exists());
        let after = fs::symlink_metadata(&cache).expect("stat");
        let what = |metadata: &fs::Metadata| (metadata.mode(), metadata.uid(), metadata.ctime_nsec());
        assert_eq!(what(&before), what(&after));
        if before.is_symlink() {
            fs::remove_file(&cache).expect("remove");
            fs::rename(&aside, &cache).expect("rename");
        }
        set_mode(&cache, 0o700);
        chown(&cache, Some(owner), None).expect("chown");
        assert_route(&fresh.auto(), "agent", false);
    }
}

#[test]
fn the_cache_is_where_the_environment_there_says() {
    let Some(fresh) = Fresh::bash() else { return };
    let home = fresh.account.home.clone();
    let odd = home.join("it's \"the\"\n $HOME `cache`");
    let cases = [
        (format!("export XDG_CACHE_HOME={}", shell_word(&odd)), Some(odd.clone())),
        (format!("export XDG_CACHE_HOME={}", shell_word(&home.join("a/b/c"))), Some(home.join("a/b/c"))),
        ("export XDG_CACHE_HOME=".into(), Some(home.join(".cache"))),
        ("unset XDG_CACHE_HOME".into(), Some(home.join(".cache"))),
        // What is relative could be anywhere.
        ("export XDG_CACHE_HOME=relative".into(), None),
        ("unset HOME XDG_CACHE_HOME".into(), None),
        ("export HOME= XDG_CACHE_HOME=".into(), None),
    ];
    for (profile, cache) in cases {
        eprintln!("{profile}");
        fresh.profile(&profile);
        assert_route(&fresh.push(), "agent", true);
        match cache {
            Some(cache) => {
                assert_eq!(listing(&cache.join("holesync")).len(), 1, "{profile}");
                assert_route(&fresh.auto(), "agent", false);
                assert_route(&fresh.push(), "agent", false);
                let top = cache.strip_prefix(&home).expect("below").components().next().expect("a name");
                fs::remove_dir_all(home.join(top)).expect("remove");
            }
            None => {
                assert_route(&fresh.auto(), "shell", false);
                assert_route(&fresh.push(), "agent", true);
            }
        }
        assert_eq!(listing(&home), [".bashrc", "temporary"], "{profile}");
    }
    assert!(!Path::new("/.cache").exists());
}

#[test]
fn older_versions_are_removed_and_nothing_else() {
    let Some(fresh) = Fresh::bash() else { return };
    let cache = mkdir(fresh.cache());
    set_mode(&cache, 0o700);
    let other = format!("agent-{VERSION}-0123456789abcdef");
    for name in ["agent-0.0.1-0123456789abcdef", "agent-99.0.0-x", &other, "agent", "notes", ".agent-x"] {
        small(cache.join(name), "kept");
    }
    // What another run is bringing at this moment, and what one left long ago.
    small(cache.join("new-1"), "kept");
    set_mtime(&small(cache.join("new-2"), "old"), 1_000_000_000, 0);
    small(mkdir(fresh.account.home.join(".cache")).join("agent-0.0.1-other"), "kept");
    fresh.account.owns(&fresh.account.home);
    assert_route(&fresh.push(), "agent", true);
    let names = listing(&cache);
    let kept: Vec<_> =
        names.iter().filter(|name| fs::read(cache.join(name)).is_ok_and(|c| c == b"kept")).collect();
    assert_eq!(kept, [".agent-x", "agent", "new-1", "notes"]);
    assert_eq!(names.len(), 5, "{names:?}");
    assert!(fresh.account.home.join(".cache/agent-0.0.1-other").exists());
}

/// A tmpfs that the account owns; it goes when this is dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(fresh: &Fresh, path: PathBuf, options: &str) -> Mount {
        let path = mkdir(path);
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path)).ok();
        fresh.account.owns(&fresh.account.home);
        Mount(path)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.0.display());
        }
    }
}

#[test]
fn a_cache_where_nothing_can_be_run_is_only_kept_in() {
    let Some(fresh) = Fresh::bash() else { return };
    let _mount = Mount::new(&fresh, fresh.account.home.join(".cache"), "noexec,size=200m,mode=700");
    assert_route(&fresh.push(), "agent", true);
    small(fresh.cache().join("agent-0.0.1-0123456789abcdef"), "old");
    fresh.account.owns(&fresh.account.home);
    assert_route(&fresh.push(), "agent", false);
    assert_same(PROGRAM.as_ref(), &fresh.cached());
    assert_route(&fresh.auto(), "agent", false);
}

#[test]
fn where_nothing_can_be_run_at_all_the_shell_takes_part() {
    let Some(fresh) = Fresh::bash() else { return };
    let _cache = Mount::new(&fresh, fresh.account.home.join(".cache"), "noexec,size=200m,mode=700");
    let _temporary = Mount::new(&fresh, fresh.temporary(), "noexec,size=200m,mode=700");
    for brought in [true, false] {
        let outcome = fresh.push();
        assert_eq!(outcome.stdout.contains("bringing "), brought, "{outcome}");
        assert_eq!(outcome.summary()["route"], "shell", "{outcome}");
        assert_warns(&outcome, &["cannot be run here", &fresh.account.host()]);
    }
    assert_route(&fresh.auto(), "shell", false);
}

#[test]
fn a_full_cache_is_an_error_that_says_so_and_nothing_is_left_of_it() {
    let Some(fresh) = Fresh::bash() else { return };
    let _mount = Mount::new(&fresh, fresh.account.home.join(".cache"), "size=1m,mode=700");
    for _ in 0..5 {
        let mut command = fresh.command(&["--agent=push"]);
        command.arg(&fresh.source).arg(on(&fresh.account.host(), "to"));
        run(&mut command).code(5).says(&[&fresh.account.host(), "is there room in the cache directory"]);
        assert!(listing(&fresh.cache()).is_empty());
        assert!(!fresh.account.home.join("to").exists());
    }
    assert_route(&fresh.auto(), "shell", false);
}

#[test]
fn a_program_that_does_not_arrive_whole_is_not_kept() {
    let dir = lab::scratch();
    let (home, to) = (mkdir(dir.path().join("home")), dir.path().join("to"));
    let source = small(dir.path().join("source"), "content");
    let size = fs::metadata(PROGRAM).expect("stat").len();
    let push = |peer: &Peer| {
        let mut command = holesync();
        command.env("HOME", &home).env_remove("XDG_CACHE_HOME");
        command.args(["-e", peer.rsh(), "--json", "--agent=push"]);
        run(command.arg(&source).arg(at(&to)))
    };
    let cache = home.join(".cache/holesync");
    for fault in [Fault::Cut(10_000), Fault::Cut(size / 2), Fault::Cut(size), Fault::Flip(size / 2, 1)] {
        let outcome = push(&fault.peer(dir.path(), Direction::ToAgent));
        assert_ne!(outcome.code, 0, "{fault:?}: {outcome}");
        assert!(listing(&cache).is_empty(), "{fault:?}: {:?}", listing(&cache));
        assert!(!to.exists());
    }
    assert_route(&push(&Peer::pipe(dir.path())).ok(), "agent", true);
    assert_same(PROGRAM.as_ref(), &cache.join(&listing(&cache)[0]));
}

/// Puts a directory with these links to tools first in the PATH there, or makes
/// it the whole of it.
fn tools(fresh: &Fresh, names: &[&str], path: &str) {
    let dir = mkdir(fresh.account.home.join("tools"));
    names.iter().for_each(|name| symlink(which(name), dir.join(name)).expect("symlink"));
    fresh.account.owns(&fresh.account.home);
    fresh.profile(&format!("PATH={}{path}", shell_word(&dir)));
}

#[test]
fn a_machine_that_cannot_run_the_program_is_left_to_its_shell() {
    let Some(fresh) = Fresh::bash() else { return };
    for system in ["Linux sparc64", "FreeBSD x86_64", "", "Linux"] {
        fresh.account.keep_script("tools/uname", &format!("#!/bin/sh\necho '{system}'\n"));
        tools(&fresh, &[], ":$PATH");
        let outcome = fresh.push();
        assert_route(&outcome, "shell", false);
        assert_warns(
            &outcome,
            &[&fresh.account.host(), &format!(r#"\"{system}\""#), "its shell takes part instead"],
        );
        assert!(listing(&fresh.cache()).is_empty());
    }
}

#[test]
fn what_is_brought_is_a_program_for_that_machine() {
    let Some(fresh) = Fresh::bash() else { return };
    let given = fresh.source.with_file_name("given");
    let to = on(&fresh.account.host(), fresh.account.home.join("to"));
    // The head of a program for s390x, of which this machine is none.
    let head = [b"\x7fELF\x02\x02\x01", &[0; 9][..], &[0, 3, 0, 22]].concat();
    for (program, says) in
        [(&head[..], "is a program for s390x"), (b"#!/bin/sh\n", "is no program for Linux")]
    {
        fs::write(&given, program).expect("write");
        let mut command = fresh.command(&["--agent=push"]);
        let outcome = run(command.arg("--agent-program").arg(&given).arg(&fresh.source).arg(&to)).code(1);
        outcome.says(&["--agent-program", says, &fresh.account.host(), "name one that runs there"]);
    }
    assert!(listing(&fresh.cache()).is_empty());
    fs::copy(PROGRAM, &given).expect("copy");
    let mut command = fresh.command(&["--agent=push"]);
    let outcome = run(command.arg("--agent-program").arg(&given).arg(&fresh.source).arg(&to)).ok();
    assert_route(&outcome, "agent", true);
    // None lies beside this program under such a name.
    fresh.account.keep_script("tools/uname", "#!/bin/sh\necho 'Linux s390x'\n");
    tools(&fresh, &[], ":$PATH");
    assert_warns(&fresh.push(), &["beside this program, as holesync-s390x", "--agent-program"]);
}

#[test]
fn what_lies_beside_the_program_for_such_a_machine_is_brought_if_it_is_of_this_version() {
    let Some(fresh) = Fresh::bash() else { return };
    let installed = mkdir(fresh.account.place.path().join("installed"));
    let program = lab::install(PROGRAM.as_ref(), &mkdir(installed.join("bin")));
    let name = format!("holesync-{}", run(Command::new("uname").arg("-m")).ok().stdout.trim());
    let push = || {
        let mut command = Command::new(&program);
        command.args(["-e", fresh.peer.rsh(), "--json", "--agent=push"]).arg(&fresh.source);
        run(command.arg(on(&fresh.account.host(), fresh.account.home.join("to")))).ok()
    };
    for place in ["lib/holesync", "bin"] {
        let beside = mkdir(installed.join(place)).join(&name);
        // Another program, as it has a line more; what writes it has ended when it is run.
        let script = r#"{ cat "$0"; echo "$1"; } >"$2" && chmod 755 "$2""#;
        run(Command::new("sh").args(["-c", script, PROGRAM, place]).arg(&beside)).ok();
        let outcome = push();
        assert!(outcome.stdout.contains("bringing "), "{outcome}");
        assert_eq!(outcome.summary()["route"], "agent", "{outcome}");
        assert_same(&beside, &fresh.cached());
        assert!(!push().stdout.contains("bringing "));
        let script = r#"printf '#!/bin/sh\necho holesync 0.0.1\n' >"$0" && chmod 755 "$0""#;
        run(Command::new("sh").args(["-c", script]).arg(&beside)).ok();
        let outcome = push();
        assert!(outcome.stdout.contains("is not of this version"), "{outcome}");
        assert_eq!(outcome.summary()["route"], "agent", "{outcome}");
        assert_same(&program, &fresh.cached());
    }
}

#[test]
fn without_the_tools_to_bring_it_safely_the_shell_takes_part() {
    const NEEDED: &[&str] = &[
        "sh",
        "dd",
        "cat",
        "chmod",
        "chown",
        "chgrp",
        "find",
        "mkdir",
        "mv",
        "rm",
        "ln",
        "readlink",
        "id",
        "stat",
        "touch",
        "cut",
        "grep",
        "ls",
        "cp",
        "mktemp",
        "uname",
        "fallocate",
        "sha256sum",
        "wc",
        "truncate",
        "head",
    ];
    for (without, says) in [("sha256sum", "sha256sum"), ("dd", "dd"), ("uname", "another")] {
        let Some(fresh) = Fresh::bash() else { return };
        let names: Vec<_> = NEEDED.iter().copied().filter(|&name| name != without).collect();
        tools(&fresh, &names, "");
        if without == "dd" {
            // One that knows nothing of bytes.
            let old = format!(
                "#!/bin/sh\ncase $* in *iflag*) exit 1 ;; esac\nexec {} \"$@\"\n",
                which("dd").display()
            );
            fresh.account.keep_script("tools/dd", &old);
            let mut command = fresh.command(&["--agent=push"]);
            command.arg(&fresh.source).arg(on(&fresh.account.host(), "to"));
            // Without it the shell cannot take part either.
            assert_warns(&run(&mut command).code(5), &[says]);
        } else {
            let outcome = fresh.push();
            assert_route(&outcome, "shell", false);
            assert_warns(&outcome, &[says]);
        }
        assert!(listing(&fresh.cache()).is_empty());
    }
}

#[test]
fn without_a_place_to_keep_it_the_shell_takes_part() {
    let Some(fresh) = Fresh::bash() else { return };
    fresh.profile("unset HOME XDG_CACHE_HOME; export TMPDIR=/nowhere");
    let outcome = fresh.push();
    assert_route(&outcome, "shell", false);
    assert_warns(&outcome, &["no directory to keep it in"]);
}

#[test]
fn a_program_that_was_brought_makes_files_with_the_usual_modes() {
    let Some(fresh) = Fresh::bash() else { return };
    let tree = mkdir(fresh.account.place.path().join("tree"));
    set_mode(&mkdir(tree.join("inner")), 0o777);
    set_mode(&small(tree.join("inner/file"), "content"), 0o666);
    let program = fresh.account.program.to_str().expect("a plain path");
    for umask in [0o077, 0o022, 0o027] {
        fresh.profile(&format!("umask {umask:03o}"));
        for flags in
            [&["--agent=push"][..], &["--agent=push"], &["--agent=require", "--remote-path", program]]
        {
            let outcome =
                run(fresh.command(flags).arg("--no-perms").arg(&tree).arg(on(&fresh.account.host(), "to")))
                    .ok();
            assert_eq!(outcome.summary()["route"], "agent", "{outcome}");
            let to = fresh.account.home.join("to");
            let mode = |name: &str| fs::metadata(to.join(name)).expect("stat").mode() & 0o7777;
            let inner = if to.join("inner").exists() { "inner" } else { "tree/inner" };
            let found = (mode(inner), mode(&format!("{inner}/file")));
            assert_eq!(found, (0o777 & !umask, 0o666 & !umask), "{umask:03o} {flags:?}");
            fs::remove_dir_all(to).expect("remove");
        }
        assert_eq!(fs::metadata(fresh.cached()).expect("stat").mode() & 0o7777, 0o700);
        fs::remove_dir_all(fresh.cache()).expect("remove");
    }
}

#[test]
fn the_program_is_brought_to_where_a_command_is_to_run() {
    let Some(fresh) = Fresh::bash() else { return };
    let to = on(&fresh.account.host(), "~/to");
    let mut command = fresh.command(&["--agent=push", "--through", r#"cat >"$HOLESYNC_DEST""#]);
    assert_route(&run(command.arg(&fresh.source).arg(to)).ok(), "agent", true);
    assert_same(&fresh.source, &fresh.account.home.join("to"));
}

#[test]
fn what_looks_at_images_brings_the_program_and_finds_it_again() {
    let Some(fresh) = Fresh::bash() else { return };
    fs::copy(&fresh.source, fresh.account.home.join("to")).expect("copy");
    let there = on(&fresh.account.host(), fresh.account.home.join("to"));
    let look = |verb: &str, flags: &[&str]| {
        let mut command = holesync();
        command.args([verb, "-e", fresh.peer.rsh()]).args(flags).arg(&there);
        if verb == "diff" {
            command.arg(&fresh.source);
        }
        run(&mut command)
    };
    for verb in ["digest", "map", "diff"] {
        look(verb, &[]).code(5).says(&["there is no holesync", "--agent=push"]);
        look(verb, &["--agent=none"]).code(if verb == "diff" { 2 } else { 1 }).says(&["--agent=none"]);
    }
    let digest = look("digest", &["--agent=push"]).ok().stdout;
    let here = run(holesync().arg("digest").arg(&fresh.source)).ok().stdout;
    assert_eq!(digest.split(' ').next(), here.split(' ').next());
    fresh.cached();
    for verb in ["digest", "map", "diff"] {
        look(verb, &[]).ok();
    }
}
