//! Reaching hosts through a real sshd: every way to write a location, every
//! login shell, and paths that survive all of them.

mod ciphers;
mod confined;
mod cut;
mod pace;
mod push;
mod silence;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use holesync::protocol::MAX_NOISE;

use crate::common::account::{Account, noting_ssh, odd_names, on, which};
use crate::common::check::assert_same;
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at, shell_word};
use crate::common::process::{Outcome, PROGRAM, holesync, run};

fn image(path: PathBuf, seed: u64) -> PathBuf {
    let mut rng = Rng(seed);
    Layout::hole("image", 300_001).data(70_000..150_000, &mut rng).write(&path);
    path
}

#[track_caller]
fn go(command: &mut Command, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> Outcome {
    run(command.arg(from).arg(to))
}

#[test]
fn every_way_to_write_a_location_reaches_the_host() {
    let Some(peer) = Peer::sshd() else { return };
    let port = fs::read_to_string(lab::root().expect("a lab").join("sshd/port")).expect("read the port");
    let port = port.trim();
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("users").expect("this user").name;
    let dir = lab::scratch();
    let path = dir.path().to_str().expect("a plain path");
    let prefixes = [
        format!("peer:{path}"),
        format!("{user}@peer:{path}"),
        format!("[::1]:{path}"),
        format!("{user}@[::1]:{path}"),
        format!("[127.0.0.1]:{path}"),
        format!("ssh://peer{path}"),
        format!("ssh://{user}@peer:{port}{path}"),
        format!("ssh://[::1]{path}"),
        format!("ssh://{user}@[::1]:{port}{path}"),
        // Reachable only with both spelt out: they get as far as ssh.
        format!("ssh://{user}@elsewhere:{port}{path}"),
    ];
    let source = image(dir.path().join("source"), 1);
    for (nth, prefix) in prefixes.iter().enumerate() {
        let (pushed, pulled) = (format!("pushed {nth}"), dir.path().join(format!("pulled {nth}")));
        go(&mut peer.holesync(), &source, format!("{prefix}/{pushed}")).ok();
        assert_same(&source, &dir.path().join(&pushed));
        go(&mut peer.holesync(), format!("{prefix}/source"), &pulled).ok();
        assert_same(&source, &pulled);
    }
    for prefix in [format!("elsewhere:{path}"), format!("ssh://{user}@elsewhere{path}")] {
        go(&mut peer.holesync(), &source, format!("{prefix}/no")).code(255);
    }
}

/// Pushes and pulls files with odd names, to and from a directory with one.
fn exchange_odd_names(account: &Account, peer: &Peer) {
    let names = odd_names();
    let odd = Path::new("-in a $HOME 'dir' \"of\" `odd`\nnames;*\\");
    let dir = lab::scratch();
    for (nth, name) in names.iter().enumerate() {
        fs::write(dir.path().join(name), format!("pushed {nth}")).expect("write");
        account.keep(odd.join("there").join(name), format!("pulled {nth}").as_bytes());
    }
    // "./", since "a:b" would be on a host.
    let mut push = account.holesync(peer);
    push.current_dir(dir.path()).args(names.iter().map(|name| Path::new(".").join(name)));
    run(push.arg(on(&account.host(), odd.join("pushed")))).ok();
    let mut pull = account.holesync(peer);
    pull.args(names.iter().map(|name| on(&account.host(), odd.join("there").join(name))));
    run(pull.arg(dir.path().join("-pulled"))).ok();
    for (nth, name) in names.iter().enumerate() {
        let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_else(|e| format!("{name:?}: {e}"));
        assert_eq!(read(account.home.join(odd).join("pushed").join(name)), format!("pushed {nth}"));
        assert_eq!(read(dir.path().join("-pulled").join(name)), format!("pulled {nth}"));
    }
    // Each as a destination of its own.
    let one = fs::canonicalize(dir.path()).expect("resolve").join("it's");
    let single = Path::new("$(x) '\"é\n").as_os_str();
    go(&mut account.holesync(peer), &one, on(&account.host(), single)).ok();
    assert_same(&one, &account.home.join(single));
}

/// A login shell must not change anything; `noisy` is the file that it reads first.
fn check_login_shell(shell: &Path, noisy: Option<&str>) {
    let Some(peer) = Peer::sshd() else { return };
    let Some(account) = Account::new(shell) else { return };
    exchange_odd_names(&account, &peer);
    let Some(noisy) = noisy else { return };
    let dir = lab::scratch();
    let source = image(dir.path().join("source"), 1);
    let remote = account.keep("remote", &fs::read(&source).expect("read"));
    for (len, fits) in [(30, true), (MAX_NOISE, true), (MAX_NOISE + 1, false)] {
        let noise = format!("yes loud | head -c {len}\n");
        account.keep(noisy, noise.as_bytes());
        let push = go(&mut account.holesync(&peer), &source, on(&account.host(), "pushed"));
        let pull = go(&mut account.holesync(&peer), on(&account.host(), "remote"), dir.path().join("pulled"));
        for outcome in [push, pull] {
            match fits {
                true => outcome.ok(),
                false => outcome.code(5).says(&[&account.host(), r#"saying "loud\#012loud"#, "login shell"]),
            };
        }
        if fits {
            for (copy, of) in [(account.home.join("pushed"), &source), (dir.path().join("pulled"), &remote)] {
                assert_same(of, &copy);
                fs::remove_file(copy).expect("remove");
            }
        }
    }
}

#[test]
fn bash_as_login_shell_changes_nothing() {
    check_login_shell(&which("bash"), Some(".bashrc"));
}

#[test]
fn dash_as_login_shell_changes_nothing() {
    check_login_shell(&which("dash"), None);
}

#[test]
fn zsh_as_login_shell_changes_nothing() {
    check_login_shell(&which("zsh"), Some(".zshenv"));
}

#[test]
fn fish_as_login_shell_changes_nothing() {
    check_login_shell(&which("fish"), Some(".config/fish/config.fish"));
}

#[test]
fn tcsh_as_login_shell_changes_nothing() {
    check_login_shell(&which("tcsh"), Some(".cshrc"));
}

#[test]
fn busybox_ash_as_login_shell_changes_nothing() {
    let dir = lab::scratch();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    // Its name makes it a shell.
    let ash = dir.path().join("ash");
    std::os::unix::fs::symlink(which("busybox"), &ash).expect("symlink");
    check_login_shell(&ash, None);
}

#[test]
fn a_relative_path_is_relative_to_the_home_there() {
    let Some(peer) = Peer::sshd() else { return };
    let Some(account) = Account::new(&which("bash")) else { return };
    let dir = lab::scratch();
    let source = image(dir.path().join("source"), 1);
    account.keep("sub/kept", b"");
    account.keep("~/kept", b"");
    let host = account.host();
    for (to, arrives) in [
        (on(&host, ""), "source"),
        (on(&host, "plain"), "plain"),
        (on(&host, "sub"), "sub/source"),
        (on(&host, "sub/x"), "sub/x"),
        (on(&host, "~/tilde"), "tilde"),
        (on(&host, "~/sub/"), "sub/source"),
        (on(&host, "~"), "source"),
        (on(&host, "~/"), "source"),
        (on(&host, "./~/x"), "~/x"),
        (on(&host, "new/"), "new/source"),
        (on(&host, &account.home), "source"),
    ] {
        let arrived = account.home.join(arrives);
        go(&mut account.holesync(&peer), &source, &to).ok();
        assert_same(&source, &arrived);
        fs::remove_file(arrived).expect("remove");
    }
    account.keep("disk", &fs::read(&source).expect("read"));
    account.keep("~/disk", b"in a directory that is named like this");
    for from in ["disk", "~/disk", "./disk", "sub/../disk"] {
        let to = dir.path().join("pulled");
        go(&mut account.holesync(&peer), on(&host, from), &to).ok();
        assert_same(&source, &to);
        fs::remove_file(to).expect("remove");
    }
    for (nth, from) in ["", "~", "~/", "."].into_iter().enumerate() {
        let to = dir.path().join(format!("all {nth}"));
        go(&mut account.holesync(&peer), on(&host, from), &to).ok();
        assert_same(&source, &to.join("disk"));
    }
}

#[test]
fn the_program_is_found_in_the_path_of_the_far_side() {
    let Some(peer) = Peer::sshd() else { return };
    let Some(account) = Account::new(&which("bash")) else { return };
    let log = account.home.join("ran");
    let text =
        format!("#!/bin/sh\necho ran >>{}\nexec {} \"$@\"\n", log.display(), account.program.display());
    account.keep_script("bin/holesync", &text);
    account.keep(".bashrc", b"PATH=$HOME/bin:$PATH\n");
    let source = image(account.place.path().join("source"), 1);
    go(holesync().args(["-e", peer.rsh()]), &source, on(&account.host(), "to")).ok();
    assert_same(&source, &account.home.join("to"));
    assert_eq!(fs::read_to_string(log).expect("read"), "ran\n");
}

#[test]
fn the_command_that_reaches_a_host_is_split_as_a_shell_would() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let port = fs::read_to_string(lab::root().expect("a lab").join("sshd/port")).expect("read the port");
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("users").expect("this user").name;
    let source = image(dir.path().join("source"), 1);
    let (script, log) = noting_ssh(dir.path(), &peer);
    let quoted = script.to_str().expect("a plain path");
    for (nth, rsh) in [
        format!("sh '{quoted}' -o 'Port {}' -o \"User {user}\"", port.trim()),
        format!("sh {} -o Port\\ {} -o User={user}", quoted.replace(' ', "\\ "), port.trim()),
    ]
    .iter()
    .enumerate()
    {
        let to = dir.path().join(format!("to {nth}"));
        let mut command = holesync();
        command.args(["-e", rsh, "--remote-path", PROGRAM]);
        go(&mut command, &source, on("elsewhere", &to)).ok();
        assert_same(&source, &to);
    }
    assert_eq!(fs::read_to_string(log).expect("read").lines().count(), 2);
}

#[test]
fn rsync_rsh_is_the_default_and_the_option_wins() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let source = image(dir.path().join("source"), 1);
    let (script, log) = noting_ssh(dir.path(), &peer);
    let rsh = format!("sh {}", shell_word(&script));
    let to = dir.path().join("to");
    go(holesync().env("RSYNC_RSH", &rsh).args(["--remote-path", PROGRAM]), &source, at(&to)).ok();
    assert_same(&source, &to);
    run(holesync().env("RSYNC_RSH", &rsh).args(["digest", "--remote-path", PROGRAM]).arg(at(&source))).ok();
    assert_eq!(fs::read_to_string(&log).expect("read").lines().count(), 2);
    go(peer.holesync().env("RSYNC_RSH", "/no/such/ssh"), &source, at(dir.path().join("by option"))).ok();
    go(holesync().env("RSYNC_RSH", "/no/such/ssh"), &source, at(&to)).code(5).says(&["/no/such/ssh"]);
    // Nothing is no command, so ssh it is, which knows no such host.
    go(holesync().env("RSYNC_RSH", "").env("PATH", "/nowhere"), &source, at(&to)).code(5).says(&["\"ssh\""]);
    assert_eq!(fs::read_to_string(&log).expect("read").lines().count(), 2);
}

/// What was named by hand is not replaced by the shell, nor by a program that was brought.
#[test]
fn a_remote_path_that_does_not_run_is_an_error_and_nothing_else_is_tried() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let source = dir.path().join("source");
    fs::write(&source, "x").expect("write");
    for path in ["/no/such/holesync", "env X=1 /no/such/holesync", "false"] {
        for option in ["--remote-path", "--rsync-path"] {
            let to = dir.path().join("to");
            let outcome =
                run(holesync().args(["-e", peer.rsh(), option, path]).arg(&source).arg(at(&to))).code(5);
            assert!(outcome.stderr.contains(path) && !to.exists(), "{outcome}");
        }
    }
}

/// Of several sources on one host all but the first may leave the host out; `~` is the home.
#[test]
fn sources_on_one_host_and_in_its_home() {
    let Some(peer) = Peer::sshd() else { return };
    let Some(account) = Account::new(Path::new("/bin/sh")) else { return };
    let dir = lab::scratch();
    let host = account.host();
    for name in ["one", "two", "three"] {
        account.keep(Path::new(name), name.as_bytes());
    }
    for (nth, mut command) in [account.holesync(&peer), peer.shell()].into_iter().enumerate() {
        let to = dir.path().join(format!("to {nth}"));
        let sources = [format!("{host}:one"), ":~/two".into(), format!(":{}/three", account.home.display())];
        run(command.args(sources).arg(&to)).ok();
        for name in ["one", "two", "three"] {
            assert_eq!(fs::read_to_string(to.join(name)).expect("read"), name);
        }
    }
    for (name, to) in [("to home", ""), ("tilde", "~/"), ("named", "~/named")] {
        let source = dir.path().join(name);
        fs::write(&source, name).expect("write");
        run(account.holesync(&peer).arg(&source).arg(format!("{host}:{to}"))).ok();
        assert_eq!(fs::read_to_string(account.home.join(name)).expect("read"), name);
    }
}

#[test]
fn ssh_is_told_which_addresses_to_use() {
    let dir = lab::scratch();
    let program = dir.path().join("bin/ssh");
    fs::create_dir(dir.path().join("bin")).expect("create a directory");
    let log = dir.path().join("log");
    let real = "/usr/bin/ssh";
    let script = format!("#!/bin/sh\necho \"$*\" >>{}\nexec {real} \"$@\"\n", shell_word(&log));
    lab::script(&program, script);
    let path = format!("{}:/usr/bin:/bin", dir.path().join("bin").display());
    for (options, family) in
        [(&["-4"][..], "inet"), (&["-6"], "inet6"), (&["-4", "-6"], "inet6"), (&["-64"], "inet")]
    {
        let _ = fs::remove_file(&log);
        // Nobody listens there.
        let to = "ssh://localhost:1/to";
        run(holesync().env("PATH", &path).args(options).arg(&program).arg(to)).code(255);
        let calls = fs::read_to_string(&log).expect("read");
        assert!(calls.contains(&format!("-o AddressFamily={family} ")), "{options:?}: {calls}");
    }
}

#[test]
fn the_remote_path_may_be_several_words() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let log = dir.path().join("log");
    let wrapper = dir.path().join("wrap.sh");
    fs::write(&wrapper, format!("echo \"$X $Y\" >>{}\nexec \"$@\"\n", shell_word(&log))).expect("write");
    let remote_path = format!("env X=1 Y='two words' sh {} {PROGRAM}", shell_word(&wrapper));
    let source = image(dir.path().join("source"), 1);
    let to = dir.path().join("to");
    go(holesync().args(["-e", peer.rsh(), "--remote-path", &remote_path]), &source, at(&to)).ok();
    assert_same(&source, &to);
    go(
        holesync().args(["-e", peer.rsh(), "--remote-path", &remote_path]),
        at(&source),
        dir.path().join("back"),
    )
    .ok();
    assert_eq!(fs::read_to_string(log).expect("read"), "1 two words\n1 two words\n");
}

#[test]
fn a_run_makes_exactly_one_connection() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let (script, log) = noting_ssh(dir.path(), &peer);
    let rsh = format!("sh {}", shell_word(&script));
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).expect("create a directory");
    let (one, two) = (image(tree.join("one"), 1), image(tree.join("two"), 2));
    let to = dir.path().join("to");
    let cases: [(&[&str], Vec<OsString>); 7] = [
        (&[], vec![one.clone().into(), at(dir.path().join("single"))]),
        (&[], vec![tree.clone().into(), at(&to)]),
        (&["-I"], vec![tree.clone().into(), at(&to)]),
        (&["-n"], vec![tree.clone().into(), at(&to)]),
        (&[], vec![at(&one), at(&two), dir.path().join("pulled/").into()]),
        (&["-c", "--verify"], vec![at(&tree), dir.path().join("pulled").into()]),
        (&["-z", "--inplace"], vec![one.clone().into(), two.clone().into(), at(&to)]),
    ];
    for (options, paths) in cases {
        let mut command = holesync();
        command.args(["-e", &rsh, "--remote-path", PROGRAM]).args(options).args(&paths);
        run(&mut command).ok();
        let noted = fs::read_to_string(&log).expect("read");
        assert_eq!(noted.lines().count(), 1, "{paths:?}: {noted}");
        fs::remove_file(&log).expect("remove");
    }
    assert_same(&one, &dir.path().join("single"));
    assert_same(&two, &dir.path().join("pulled/two"));
}

#[test]
fn what_ssh_and_the_far_shell_say_reaches_the_user() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let source = image(dir.path().join("source"), 1);
    let verbose = format!("{} -v", peer.rsh());
    let remote_path = format!("echo from the far side >&2; {PROGRAM}");
    let command = |to: &str| {
        let mut command = holesync();
        command
            .args(["-e", &verbose, "--remote-path", &remote_path])
            .arg(&source)
            .arg(at(dir.path().join(to)));
        command
    };
    let outcome = run(&mut command("to")).ok();
    assert_same(&source, &dir.path().join("to"));
    outcome.says(&["debug1: Connecting to", "from the far side\n"]);
    run(&mut command("no/to")).code(3).says(&["from the far side\n", "no: No such file"]);
}

#[test]
fn a_bad_path_there_is_named_with_its_host() {
    let Some(peer) = Peer::sshd() else { return };
    let Some(account) = Account::new(&which("bash")) else { return };
    let dir = lab::scratch();
    let source = image(dir.path().join("source"), 1);
    let locked = account.keep("locked/file", b"x");
    for path in [locked.parent().expect("a parent"), &locked] {
        run(Command::new("chown").arg("root").arg(path)).ok();
        fs::set_permissions(path, PermissionsExt::from_mode(0o700)).expect("chmod");
    }
    let host = account.host();
    for (from, to) in [
        (source.clone().into_os_string(), on(&host, "no/dir/disk")),
        (source.into_os_string(), on(&host, "no/dir/")),
    ] {
        go(&mut account.holesync(&peer), from, to).code(3).says(&[&host, "no/dir", "No such file"]);
    }
    go(&mut account.holesync(&peer), dir.path().join("source"), on(&host, "locked/file"))
        .code(23)
        .says(&["locked/file", "Permission denied"]);
    for (from, says) in [("locked/file", "Permission denied"), ("missing", "No such file")] {
        let to = dir.path().join("to");
        go(&mut account.holesync(&peer), on(&host, from), &to).code(23).says(&[from, says]);
        assert!(!to.exists());
    }
    let unread = OsStr::from_bytes(b"\xffmissing");
    go(&mut account.holesync(&peer), on(&host, unread), dir.path().join("to"))
        .code(23)
        .says(&[r"\#377missing"]);
    run(account_digest(&account, &peer).arg(on(&host, "missing"))).code(23).says(&[
        &host,
        "missing",
        "No such file",
    ]);
}

fn account_digest(account: &Account, peer: &Peer) -> Command {
    let mut command = holesync();
    command.args(["digest", "-e", peer.rsh(), "--remote-path"]).arg(&account.program);
    command
}

#[test]
fn a_connection_that_ssh_keeps_open_for_later_does_not_hold_up_the_end() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let source = image(dir.path().join("source"), 1);
    // A socket's path has to be short.
    let sockets = tempfile::tempdir().expect("a directory");
    let socket = sockets.path().join("s");
    let keep = format!(
        "{} -v -o ControlMaster=auto -o ControlPath={} -o ControlPersist=600",
        peer.rsh(),
        socket.display()
    );
    for nth in 0..2 {
        let to = dir.path().join(format!("to {nth}"));
        go(holesync().args(["-e", &keep, "--remote-path", PROGRAM]), &source, at(&to)).ok();
        assert_same(&source, &to);
        assert!(socket.exists(), "ssh keeps its connection");
    }
    run(Command::new(peer.rsh())
        .args(["-O", "exit", "-o"])
        .arg(format!("ControlPath={}", socket.display()))
        .arg("peer"))
    .ok();
}

#[test]
fn words_in_a_path_on_a_host_are_paths_where_that_is_asked_for() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    for name in ["a", "b c"] {
        fs::write(dir.path().join(name), name).expect("write");
    }
    let shown = dir.path().display();
    let source = at(format!("{shown}/a  '{shown}/b c'"));
    for (nth, (option, variable)) in
        [(Some("--old-args"), None), (None, Some("RSYNC_OLD_ARGS"))].iter().enumerate()
    {
        let to = dir.path().join(format!("to {nth}/"));
        let mut command = peer.holesync();
        command.args(*option).envs(variable.map(|name| (name, "1"))).arg(&source).arg(&to);
        run(&mut command).ok();
        assert!(to.join("a").exists() && to.join("b c").exists());
    }
    run(peer.holesync().arg(&source).arg(dir.path().join("to"))).code(23);
}

#[test]
fn a_pattern_on_a_host_stands_for_what_is_there() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("deep er")).expect("create directories");
    for name in ["a b.img", "c.img", "other", ".d.img", "deep er/e.img", "[x]"] {
        fs::write(from.join(name), name).expect("write");
    }
    let arrived = |to: &Path| {
        let names = fs::read_dir(to).map(|entries| {
            let mut names: Vec<_> = entries
                .map(|entry| entry.expect("read").file_name().into_string().expect("a plain name"))
                .collect();
            names.sort();
            names
        });
        names.unwrap_or_default()
    };
    for (nth, (pattern, flags, expected)) in [
        ("*.img", "-a", &["a b.img", "c.img"][..]),
        ("?.img", "-a", &["c.img"]),
        ("[x]", "-a", &["[x]"]),
        ("d*/*.img", "-a", &["e.img"]),
        ("d*/*.img", "-aR", &["deep er"]),
        ("d*/", "-a", &["e.img"]),
    ]
    .into_iter()
    .enumerate()
    {
        let to = dir.path().join(format!("to {nth}"));
        let pattern = match flags {
            "-aR" => format!("{}/./{pattern}", from.display()),
            _ => format!("{}/{pattern}", from.display()),
        };
        let to_slash = to.join("");
        let outcome = run(peer.holesync().arg(flags).arg(at(&pattern)).arg(&to_slash)).ok();
        assert_eq!(arrived(&to), expected, "{pattern}: {outcome}");
    }
    let to = dir.path().join("none");
    let nothing = run(peer.holesync().arg("-a").arg(at(from.join("none*"))).arg(to.join(""))).code(23);
    nothing.says(&["none*", "No such file"]);
}

#[test]
fn sudo_works_for_whatever_takes_part_there() {
    let Some(peer) = Peer::sshd() else { return };
    let Some(account) = Account::new(&which("sh")) else { return };
    let rule = Path::new("/etc/sudoers.d").join(account.name().replace('.', "-"));
    // What is brought along is kept in a home that goes with the test.
    let name = account.name();
    let allowed = format!("Defaults:{name} env_keep += HOME\n{name} ALL=(root) NOPASSWD: ALL\n");
    fs::write(&rule, allowed).expect("write a rule");
    let _gone = Gone(&rule);
    let source = image(account.place.path().join("source"), 1);
    let private = account.place.path().join("private");
    fs::create_dir(&private).expect("create a directory");
    fs::set_permissions(&private, PermissionsExt::from_mode(0o700)).expect("chmod");
    for (nth, flags) in
        [&["--agent=require"][..], &["--agent=push"], &["--agent=none"]].into_iter().enumerate()
    {
        let to = private.join(format!("to {nth}"));
        let command = |sudo: &[&str]| {
            let mut command = holesync();
            command.args(["-e", peer.rsh()]).args(flags).args(sudo);
            if flags == ["--agent=require"] {
                command.arg("--remote-path").arg(&account.program);
            }
            command
        };
        let refused = go(&mut command(&[]), &source, on(&account.host(), &to));
        assert_ne!(refused.code, 0, "{refused}");
        go(&mut command(&["--sudo"]), &source, on(&account.host(), &to)).ok();
        assert_same(&source, &to);
        assert_eq!(fs::metadata(&to).expect("stat").uid(), 0);
    }
}

/// A file that goes with the test.
struct Gone<'a>(&'a Path);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        // Nothing is left to tell of it.
        let _ = fs::remove_file(self.0);
    }
}
