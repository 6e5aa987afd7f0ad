//! What is told of each entry, held against the lines of the real rsync.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{chown, lchown, symlink};
use std::path::Path;
use std::process::Command;

use crate::common::lab;
use crate::common::peer::{Peer, at};
use crate::common::process::{holesync, run};
use crate::common::tree::{WAYS, Way, mkdir, set_mode, set_mtime, slash, small};

/// A tree with what a line can tell of.
fn plant(dir: &Path) {
    for name in ["a", "same", "touched", "mode", "owned", "gone/deep/file", "both", "dir/file"] {
        let path = dir.join(name);
        mkdir(path.parent().expect("a parent").into());
        small(path, name);
    }
    mkdir(dir.join("empty"));
    for name in ["link", "aged link", "owned link"] {
        symlink("a", dir.join(name)).expect("symlink");
    }
    age(dir, 1_000_000_000);
}

/// What becomes of it between two runs: each kind of change by itself, and all at once.
fn change(dir: &Path) {
    small(dir.join("a"), "longer than it was");
    small(dir.join("both"), "longer than it was");
    set_mode(&dir.join("both"), 0o640);
    small(mkdir(dir.join("new")).join("file"), "new");
    symlink("nowhere", dir.join("new/link")).expect("symlink");
    set_mode(&dir.join("mode"), 0o4711);
    set_mode(&dir.join("dir"), 0o1750);
    for name in ["link", "empty"] {
        let path = dir.join(name);
        if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) }.expect("remove");
    }
    symlink("same", dir.join("link")).expect("symlink");
    small(dir.join("empty"), "no directory any more");
    fs::remove_dir_all(dir.join("gone")).expect("remove");
    for name in ["a", "both", "touched", "aged link", "link", "new/link", "new", "empty"] {
        set_mtime(&dir.join(name), 1_100_000_000, 0);
    }
    set_mtime(dir, 1_200_000_000, 0);
    if nix::unistd::geteuid().is_root() {
        chown(dir.join("owned"), Some(77), Some(78)).expect("chown");
        lchown(dir.join("owned link"), Some(77), None).expect("lchown");
        chown(dir.join("dir"), None, Some(78)).expect("chown");
    }
}

fn age(dir: &Path, seconds: i64) {
    for entry in walkdir::WalkDir::new(dir).contents_first(true).into_iter().flatten() {
        set_mtime(entry.path(), seconds, 0);
    }
}

fn lines(stdout: &str) -> BTreeSet<String> {
    // It tells of a destination that it makes; holesync shows that as `cd+++++++++ ./`.
    stdout.lines().filter(|line| !line.starts_with("created directory")).map(str::to_owned).collect()
}

/// What rsync says of the same copy on this machine, with the sign of the direction.
fn told_by_rsync(way: Way, flags: &[&str], from: &Path, to: &Path) -> BTreeSet<String> {
    let mut command = Command::new("rsync");
    command.env("LC_ALL", "C").args(flags).arg(slash(from)).arg(slash(to));
    let told = lines(&run(&mut command).ok().stdout);
    let turned = |line: String| match (way, line.strip_prefix('>')) {
        (Way::Push, Some(rest)) => format!("<{rest}"),
        _ => line,
    };
    told.into_iter().map(turned).collect()
}

#[test]
fn changes_are_listed_as_rsync_lists_them() {
    let sets: [&[&str]; 7] = [
        &["-aii", "--ignore-existing"],
        &["-ai", "--update"],
        &["-ai", "--delete"],
        &["-aic"],
        &["-aii"],
        &["-aI", "--out-format=%i|%-20n|%L|%M|%B"],
        &["-ai", "--no-t"],
    ];
    for (way, flags) in
        WAYS.into_iter().filter(|&way| way != Way::PushShell).flat_map(|way| sets.map(|set| (way, set)))
    {
        if way == Way::PullShell && (flags.contains(&"--delete") || flags.contains(&"-aic")) {
            continue;
        }
        let dir = lab::scratch();
        let dir = dir.path();
        let from = mkdir(dir.join("from"));
        plant(&from);
        let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
        for step in ["first", "once more", "changed"] {
            if step == "changed" {
                change(&from);
            }
            for dry in [true, false] {
                let flags = if dry { [&["-n"], flags].concat() } else { flags.to_vec() };
                let Some(outcome) = way.run(&flags, &[&slash(&from)], &slash(&ours)) else { return };
                let told = lines(&outcome.ok().stdout);
                let what = format!("{way:?} {flags:?}, {step}");
                assert_eq!(told, told_by_rsync(way, &flags, &from, &theirs), "{what}");
            }
        }
    }
}

/// What rsync and holesync tell with -v, without what only one of them says: before the first
/// empty line, and no word of how rsync goes about it.
fn names_told(stdout: &str, to: &Path) -> Vec<String> {
    let chatter = [
        "sending incremental",
        "receiving incremental",
        "building file",
        "delta-transmission",
        "total: ",
        "(new) backup_dir",
    ];
    let lines = stdout.lines().take_while(|line| !line.is_empty());
    let lines = lines.filter(|line| !chatter.iter().any(|start| line.starts_with(start)));
    lines.map(|line| line.replace(to.to_str().expect("plain"), "TO")).collect()
}

#[test]
fn names_are_told_in_the_words_and_the_order_of_rsync() {
    let sets: [&[&str]; 9] = [
        &["-av", "--delete-before"],
        &["-avn"],
        &["-avv", "--update"],
        &["-avv", "--backup"],
        &["-av"],
        &["-avv", "--existing"],
        &["-avv", "--ignore-existing"],
        &["-avb", "--info=backup,skip", "--backup-dir=../kept"],
        &["-ai"],
    ];
    let ways = [(Way::Local, 9), (Way::Push, 4), (Way::Pull, 4)];
    for (way, flags) in
        ways.into_iter().flat_map(|(way, most)| sets.map(|set| (way, set)).into_iter().take(most))
    {
        let dir = lab::scratch();
        let dir = dir.path();
        let from = mkdir(dir.join("from"));
        plant(&from);
        let (ours, theirs) = (dir.join("ours/to"), dir.join("theirs/to"));
        [&ours, &theirs].into_iter().for_each(|to| drop(mkdir(to.parent().expect("a parent").into())));
        for step in ["first", "once more", "changed"] {
            if step == "changed" {
                change(&from);
                for to in [&ours, &theirs].into_iter().filter(|to| to.exists()) {
                    small(to.join("touched"), "newer");
                }
            }
            let Some(outcome) = way.run(flags, &[&slash(&from)], &slash(&ours)) else { return };
            let mut command = Command::new("rsync");
            command.env("LC_ALL", "C").args(flags).arg(slash(&from)).arg(slash(&theirs));
            let want = names_told(&run(&mut command).ok().stdout, &theirs);
            let sign = if way == Way::Push { "<" } else { ">" };
            let want: Vec<_> = want
                .iter()
                .map(|line| line.strip_prefix('>').map_or(line.clone(), |rest| sign.to_owned() + rest))
                .collect();
            let (mut told, mut want) = (names_told(&outcome.ok().stdout, &ours), want);
            if ["-avv", "-avb"].contains(&flags[0]) {
                // Two processes of rsync write to one stdout then.
                told.sort();
                want.sort();
            }
            assert_eq!(told, want, "{way:?} {flags:?}, {step}");
        }
    }
}

#[test]
fn a_log_file_has_what_is_listed_and_what_failed() {
    let dir = lab::scratch();
    let dir = dir.path();
    let (from, to, log) = (mkdir(dir.join("from")), dir.join("to"), dir.join("log"));
    small(from.join("file"), "x");
    small(mkdir(to.join("full")).join("file"), "x");
    small(from.join("full"), "a file");
    let flag = format!("--log-file={}", log.display());
    let outcome = run(holesync().args(["-a", &flag]).args([slash(&from), slash(&to)])).code(23);
    assert_eq!(outcome.stdout, "");
    let text = fs::read_to_string(&log).expect("a log");
    let told: Vec<&str> = text.lines().map(|line| line.split_once("] ").expect("a process").1).collect();
    assert_eq!(told.first(), Some(&"building file list"), "{text}");
    assert!(told.contains(&">f+++++++++ file"), "{text}");
    assert!(told.iter().any(|line| line.contains("full") && line.contains("directory")), "{text}");
    let [.., totals, end] = told.as_slice() else { panic!("{text}") };
    assert!(totals.starts_with("sent 0 bytes  received 0 bytes  total size"), "{text}");
    assert!(end.contains("full could not be transferred") && end.ends_with("(code 23)"), "{text}");
    let date = text.split(' ').next().expect("a date");
    assert!(date.len() == 10 && date.split('/').all(|part| part.parse::<u32>().is_ok()), "{text}");
    let format = "--log-file-format=%o %n %l %%";
    run(holesync().args(["-aI", &flag, format]).args([from.join("file").into_os_string(), slash(&to)])).ok();
    let text = fs::read_to_string(&log).expect("a log");
    assert!(text.lines().any(|line| line.ends_with("] send file 1 %")), "{text}");
    // A run that ends before there is anything to list.
    run(holesync().args(["-a", &flag, "-e", "false"]).arg(&from).arg("host:to")).code(5);
    let text = fs::read_to_string(&log).expect("a log");
    assert!(
        text.lines().last().is_some_and(|line| line.contains("host") && line.ends_with("(code 5)")),
        "{text}"
    );
}

#[test]
fn a_shell_at_the_other_end_cannot_tell_what_it_changes() {
    let dir = lab::scratch();
    let from = small(dir.path().join("from"), "x");
    for flag in ["-i", "--out-format=%n", "--log-file=/dev/null"] {
        let to = dir.path().join("to");
        let Some(outcome) = Way::PushShell.run(&[flag], &[from.as_os_str()], to.as_os_str()) else { return };
        outcome.code(1).says(&["--agent=push"]);
        assert!(!to.exists());
    }
}

/// The lines of a listing, without the sizes of directories: each file system has its own.
fn listed(stdout: &str) -> BTreeSet<String> {
    let line = |line: &str| match (line.starts_with('d'), line.get(25..)) {
        (true, Some(rest)) => format!("{}{rest}", &line[..10]),
        _ => line.to_owned(),
    };
    stdout.lines().map(line).collect()
}

#[test]
fn a_source_without_a_destination_is_listed_as_by_rsync() {
    let dir = lab::scratch();
    let from = mkdir(dir.path().join("from"));
    plant(&from);
    File::create(from.join("large")).and_then(|file| file.set_len(1_234_567)).expect("write");
    for way in WAYS {
        for (flags, slash_behind) in [
            (&["-l"][..], true),
            (&["-l"], false),
            (&["-a"], true),
            (&["-alh"], true),
            (&["-rl", "--exclude=dir"], false),
        ] {
            let source = if slash_behind { slash(&from) } else { from.clone().into_os_string() };
            let mut command = match way {
                Way::PushShell | Way::Push => continue,
                Way::Local => holesync(),
                Way::Pull => match Peer::sshd() {
                    Some(peer) => peer.holesync(),
                    None => return,
                },
                Way::PullShell => match Peer::sshd() {
                    Some(peer) => peer.shell(),
                    None => return,
                },
            };
            command.args(flags).arg(if way == Way::Local { source.clone() } else { at(&source) });
            let ours = run(&mut command).ok().stdout;
            let mut command = Command::new("rsync");
            let theirs = run(command.env("LC_ALL", "C").args(flags).arg(&source)).ok().stdout;
            assert_eq!(listed(&ours), listed(&theirs), "{way:?} {flags:?} {source:?}");
            assert!(!ours.is_empty());
        }
    }
}

#[test]
fn a_listing_writes_nothing_whatever_else_is_asked_for() {
    let dir = lab::scratch();
    let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
    small(from.join("a"), "x");
    small(to.join("b"), "x");
    for way in [Way::Local, Way::Pull] {
        let flags = ["-a", "--list-only", "--delete", "--remove-source-files"];
        let Some(outcome) = way.run(&flags, &[&slash(&from)], &slash(&to)) else { return };
        assert_eq!(outcome.ok().stdout.lines().count(), 2);
        assert!(from.join("a").exists() && to.join("b").exists() && !to.join("a").exists());
    }
    let missing = run(holesync().arg(dir.path().join("missing"))).code(23);
    missing.says(&["missing"]);
    run(holesync().args(["--through", "cat", "a"])).code(1).says(&["DEST"]);
}

/// What lines tell of special files, other names of files, ACLs and extended attributes.
#[test]
fn kinds_and_attributes_are_listed_as_rsync_lists_them() {
    let by = |program: &str, args: &[&str], path: &Path| {
        run(Command::new(program).args(args).arg(path)).ok();
    };
    for (way, flags) in [Way::Local, Way::Push, Way::Pull]
        .into_iter()
        .flat_map(|way| [&["-ai"][..], &["-aHAXi"], &["-aAXii"]].map(|flags| (way, flags)))
    {
        let dir = lab::scratch();
        let dir = dir.path();
        let from = mkdir(dir.join("from"));
        for name in ["plain", "name 1", "with xattr", "with acl", "dir/file"] {
            let path = from.join(name);
            mkdir(path.parent().expect("a parent").into());
            small(path, name);
        }
        fs::hard_link(from.join("name 1"), from.join("name 2")).expect("link");
        by("mkfifo", &[], &from.join("fifo"));
        let is_root = nix::unistd::geteuid().is_root();
        let device =
            |minor: &str| run(Command::new("mknod").arg(from.join("device")).args(["c", "1", minor])).ok();
        if is_root {
            device("3");
        }
        by("setfattr", &["-n", "user.a", "-v", "1"], &from.join("with xattr"));
        by("setfacl", &["-m", "u:77:r"], &from.join("with acl"));
        age(&from, 1_000_000_000);
        for changed in [false, true] {
            if changed {
                by("setfattr", &["-n", "user.a", "-v", "2"], &from.join("with xattr"));
                by("setfattr", &["-n", "user.b", "-v", "2"], &from.join("dir"));
                by("setfacl", &["-m", "u:78:r"], &from.join("with acl"));
                set_mode(&from.join("fifo"), 0o600);
                fs::remove_file(from.join("plain")).expect("remove");
                fs::hard_link(from.join("dir/file"), from.join("plain")).expect("link");
                if is_root {
                    fs::remove_file(from.join("device")).expect("remove");
                    device("5");
                    set_mtime(&from.join("device"), 1_000_000_000, 0);
                }
                set_mtime(&from, 1_000_000_000, 0);
            }
            for dry in [true, false] {
                let flags = if dry { [&["-n"], flags].concat() } else { flags.to_vec() };
                let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
                let Some(outcome) = way.run(&flags, &[&slash(&from)], &slash(&ours)) else { return };
                let theirs = told_by_rsync(way, &flags, &from, &theirs);
                let ours = lines(&outcome.ok().stdout);
                // Which of two names is that of the file is not told alike.
                let rest = |lines: BTreeSet<String>| {
                    let names = ["plain", "dir/file", "name 1", "name 2"];
                    let is_name = |line: &String| names.iter().any(|name| line.contains(name));
                    lines.into_iter().filter(|line| !is_name(line)).collect::<BTreeSet<_>>()
                };
                let links =
                    |lines: &BTreeSet<String>| lines.iter().filter(|line| line.starts_with("hf")).count();
                let what = format!("{way:?} {flags:?}, changed: {changed}");
                assert_eq!(links(&ours), links(&theirs), "{what}: {ours:?} {theirs:?}");
                assert_eq!(rest(ours), rest(theirs), "{what}");
            }
        }
    }
}
