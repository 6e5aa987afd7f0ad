//! What is sent under which path: `-R`, lists of names, `-d`, `-m`, sources that are not there.
//! rsync gets the same arguments, and the trees must be equal afterwards.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::common::lab;
use crate::common::layout::Rng;
use crate::common::peer::{Peer, at};
use crate::common::process::{holesync, run, run_on};
use crate::common::tree::{WAYS, Way, assert_trees, mkdir, rsync, set_mode, set_mtime, small};

/// A time of what nobody touches.
const OLD: i64 = 1_500_000_000;

/// Some directories and files, a symlink, and empty directories.
fn grow(dir: &Path, rng: &mut Rng) -> PathBuf {
    let from = dir.join("from");
    for path in ["a/b/c", "a/b/d e/deep", "a/x", "g/h", "b/c", "hollow/out", "a/hollow/out"] {
        mkdir(from.join(path));
    }
    for path in
        ["top", "a/one", "a/b/two", "a/b/c/f", "a/b/d e/deep/f", "a/x/-n", "g/h/i", "g/top", "b/c/two"]
    {
        small(from.join(path), &path.repeat(1 + rng.below(9)));
    }
    symlink("b", from.join("a/link")).expect("symlink");
    for (nth, entry) in walkdir::WalkDir::new(&from).into_iter().flatten().enumerate() {
        // Further from it than any file system rounds.
        set_mtime(entry.path(), OLD + 60 * (1 + nth as i64), 0);
    }
    set_mode(&from.join("a/b"), 0o750);
    from
}

/// Two equal destinations that have some of it, and more.
fn destinations(dir: &Path, rng: &mut Rng) -> [PathBuf; 2] {
    let seed = rng.below(1 << 30) as u64;
    ["ours", "theirs"].map(|name| {
        let (to, mut rng) = (mkdir(dir.join(name)), Rng(seed + 1));
        for path in ["a", "a/b", "a/b/c", "a/x", "from/a/b", "g", "g/h", "c", "from/g/h", "hollow", "b/c"] {
            if rng.chance(60) {
                let below = mkdir(to.join(path));
                small(below.join("extra"), "extra");
                small(mkdir(below.join("more")).join("deep"), "extra");
            }
        }
        for entry in walkdir::WalkDir::new(&to).into_iter().flatten() {
            set_mtime(entry.path(), OLD, 0);
        }
        to
    })
}

/// One run of each program with these arguments, sources relative to `dir`.
fn compare(way: Way, dir: &Path, args: &[&str], sources: &[&str], [ours, theirs]: &[PathBuf; 2]) -> bool {
    let slashed = |path: &Path| path.join("").into_os_string();
    let sources: Vec<OsString> = sources.iter().map(|source| dir.join(source).into_os_string()).collect();
    let sources: Vec<&OsStr> = sources.iter().map(OsString::as_os_str).collect();
    let what = format!("{way:?} {args:?} {sources:?}");
    for dry in [&["-n"][..], &[]] {
        let args = [args, dry].concat();
        let Some(outcome) = way.run(&args, &sources, &slashed(ours)) else { return false };
        let theirs = [slashed(theirs)];
        let all = args.iter().map(OsStr::new).chain(sources.iter().copied());
        let all: Vec<_> = all.chain(theirs.iter().map(OsString::as_os_str)).collect();
        let code = rsync(dir, &all);
        assert_eq!(outcome.code, code, "{what}: {}", outcome.stderr);
    }
    // What was made in a directory that was not sent changed its time.
    for to in [ours, theirs] {
        for entry in walkdir::WalkDir::new(to).into_iter().flatten() {
            let recent = entry.metadata().expect("stat").modified().expect("a time").elapsed();
            if recent.is_ok_and(|age| age.as_secs() < 86_400) {
                set_mtime(entry.path(), OLD, 0);
            }
        }
    }
    assert_trees(ours, theirs, true, &what);
    true
}

/// Runs every case on every way, each with destinations of its own.
fn compare_all(cases: &[(&[&str], &[&str])], ways: &[Way]) {
    for (nth, (args, sources)) in cases.iter().enumerate() {
        for &way in ways {
            let scratch = lab::scratch();
            let dir = scratch.path();
            let mut rng = Rng(nth as u64 + 7);
            grow(dir, &mut rng);
            let to = destinations(dir, &mut rng);
            if !compare(way, dir, args, sources, &to) {
                return;
            }
        }
    }
}

const AGENTS: [Way; 3] = [Way::Local, Way::Push, Way::Pull];
const TO_ALL: [Way; 4] = [Way::Local, Way::Push, Way::Pull, Way::PushShell];

#[test]
fn paths_are_kept_as_rsync_keeps_them() {
    compare_all(
        &[
            (&["-aR"], &["./from/a/b/c"]),
            (&["-aR"], &["from/./a/b/c/", "from/./g"]),
            (&["-aR"], &["from/a/./b/./d e/deep/f", "from/a/b/./c/f"]),
            (&["-aR", "--no-implied-dirs"], &["from/./a/b/c/f", "from/./a/b"]),
            (&["-aR", "--exclude=/a/b/c", "--exclude=i"], &["from/./a", "from/./g/"]),
            (&["-aR"], &["from/./a/link/c"]),
        ],
        &TO_ALL,
    );
    compare_all(
        &[
            (&["-aR", "--delete"], &["from/./a/b", "from/./g/h/"]),
            (&["-aR", "--delete-during"], &["from/./", "from/a/./x/-n"]),
            (&["-aR", "--delete-before", "--no-implied-dirs"], &["from/./a/b/c", "from/./a/x"]),
        ],
        &AGENTS,
    );
}

#[test]
fn directories_are_made_and_pruned_as_rsync_does_it() {
    compare_all(
        &[
            (&["-lptd"], &["from/a/b", "from/top"]),
            (&["-lptd"], &["from/a/b/"]),
            (&["-lptdR"], &["from/./a/b/"]),
            (&["-a", "--old-dirs"], &["from/a/"]),
            (&["-am"], &["from/"]),
            (&["-am", "-f", "P hollow/"], &["from/"]),
            (&["-amR", "--exclude=*.o", "--exclude=two"], &["from/./hollow", "from/./a/b/c"]),
            (&["-am", "--max-size=1"], &["from/"]),
        ],
        &TO_ALL,
    );
    compare_all(
        &[
            (&["-am", "--delete"], &["from/"]),
            (&["-am", "--delete-during", "--exclude=f"], &["from/"]),
            (&["-am", "--delete-before", "-f", "P hollow/"], &["from/a", "from/hollow"]),
            (&["-lptd", "--delete"], &["from/a/"]),
        ],
        &AGENTS,
    );
}

#[test]
fn sources_that_are_not_there_are_left_out_or_removed() {
    compare_all(
        &[
            (&["-a", "--ignore-missing-args"], &["from/a", "from/nothing"]),
            (&["-aR", "--ignore-missing-args"], &["from/./a/b", "from/./nothing"]),
            (&["-a"], &["from/a", "from/nothing"]),
        ],
        &TO_ALL,
    );
    compare_all(
        &[
            (&["-a", "--delete-missing-args", "--force"], &["from/a", "from/c"]),
            (&["-aR", "--delete-missing-args", "--delete"], &["from/./a/b/more", "from/./g"]),
            (&["-a", "--delete-missing-args"], &["from/a/b/extra", "from/c"]),
            (&["-aR", "--delete-missing-args", "--exclude=extra"], &["from/./a/b/extra"]),
            (&["-aR", "--delete-missing-args", "-f", "P x/extra"], &["from/./a/b/extra", "from/./a/x/extra"]),
        ],
        &AGENTS,
    );
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let source = dir.path().join("nothing");
    let mut command = peer.shell();
    command.args(["-a", "--delete-missing-args"]).arg(source).arg(at(dir.path().join("to/").as_os_str()));
    run(&mut command).code(1).says(&["--delete-missing-args needs a holesync"]);
}

/// The lists that both programs get.
const LISTS: [&str; 8] = [
    "a/b/c/f\ntop\n",
    "a/b\n/g/h/\n\n# no\n;no\na/b/./c/f\n",
    "./top\r\n../a/x/-n\nx/../b\n",
    "a/b/\na/link\nhollow\n",
    "a/one\nnothing\ng\n",
    "a/\n",
    ".\n",
    "a/./b/\na/link/c/f\n",
];

#[test]
fn lists_choose_what_they_choose_with_rsync() {
    for (nth, list) in LISTS.into_iter().enumerate() {
        let sets = [
            &["-a"][..],
            &["-a", "-r", "--delete"],
            &["-a", "--no-R"],
            &["-a", "-m", "-r"],
            &["-lpt", "--no-implied-dirs"],
            &["-a", "--no-dirs"],
            &["-a", "-L"],
            &["-a", "-r", "-k"],
            &["-a", "--copy-unsafe-links"],
        ];
        for (set, options) in sets.into_iter().enumerate() {
            // Each list goes each way with some of the options.
            let ways = [Way::Local, WAYS[1 + (nth + set) % 4]];
            for way in ways {
                let scratch = lab::scratch();
                let dir = scratch.path();
                let mut rng = Rng(nth as u64 + 70);
                grow(dir, &mut rng);
                let to = destinations(dir, &mut rng);
                let from = small(dir.join("list"), list);
                let from = format!("--files-from={}", from.display());
                let args = [options, &[&from]].concat();
                if way == Way::PullShell || way == Way::PushShell && options.contains(&"--delete") {
                    let Some(outcome) = way.run(&args, &[dir.join("from").as_os_str()], to[0].as_os_str())
                    else {
                        return;
                    };
                    outcome.code(1).says(&["needs a holesync"]);
                } else if !compare(way, dir, &args, &["from"], &to) {
                    return;
                }
            }
        }
    }
}

#[test]
fn a_list_may_be_at_the_other_end_or_come_on_stdin() {
    let Some(peer) = Peer::sshd() else { return };
    let scratch = lab::scratch();
    let dir = scratch.path();
    grow(dir, &mut Rng(3));
    let list = small(dir.join("list"), "a/b/c/f\0top\0g/h/\0");
    let (from, to) = (dir.join("from"), dir.join("to/"));
    let expected = ["a/b/c/f", "top", "g/h/i"];
    let check = |what: &str| {
        for name in expected {
            assert!(to.join(name).exists(), "{what}: {name}");
        }
        let count = walkdir::WalkDir::new(&to).into_iter().count();
        assert_eq!(count, 1 + 8, "{what}");
        fs::remove_dir_all(&to).expect("remove");
    };
    for pushes in [true, false] {
        let (from, to) = if pushes {
            (from.clone().into_os_string(), at(to.as_os_str()))
        } else {
            (at(from.as_os_str()), to.clone().into_os_string())
        };
        for place in [format!(":{}", list.display()), at(list.as_os_str()).into_string().expect("plain")] {
            let mut command = peer.holesync();
            command.args(["-a", "-0", &format!("--files-from={place}")]).args([&from, &to]);
            run(&mut command).ok();
            check(&format!("{pushes} {place}"));
        }
        let mut command = peer.holesync();
        command.args(["-a", "-0", "--files-from=-"]).args([&from, &to]);
        run_on(&mut command, &fs::read(&list).expect("read")).ok();
        check("stdin");
        let mut command = peer.shell();
        command.args(["-a", "-0", &format!("--files-from=:{}", list.display())]).args([&from, &to]);
        run(&mut command).code(1).says(&["needs a holesync"]);
    }
    let mut command = holesync();
    command.args(["-a", "--files-from=:list"]).args([&from, &to]);
    run(&mut command).code(1).says(&["takes no part"]);
    let mut command = holesync();
    command.args(["-a", "--files-from=/nothing"]).args([&from, &to]);
    run(&mut command).code(23).says(&["read the names in"]);
    let mut command = holesync();
    command.args(["-a", "--files-from=-", "a", "b"]).arg(&to);
    run(&mut command).code(1).says(&["one source"]);
}

/// Nobody's symlink is replaced or followed by what is only on the way.
#[test]
fn what_is_on_the_way_is_no_symlink() {
    for way in TO_ALL {
        let scratch = lab::scratch();
        let dir = scratch.path();
        grow(dir, &mut Rng(3));
        let to = mkdir(dir.join("to"));
        let elsewhere = mkdir(dir.join("elsewhere"));
        symlink(&elsewhere, to.join("a")).expect("symlink");
        let source = dir.join("from/./a/b/c/f");
        let args = ["-aR", "--no-implied-dirs"];
        let Some(outcome) = way.run(&args, &[source.as_os_str()], to.as_os_str()) else { return };
        outcome.code(23).says(&["in the way of a directory"]);
        assert!(fs::read_link(to.join("a")).is_ok());
        assert_eq!(fs::read_dir(&elsewhere).expect("read").count(), 0);
    }
}

#[test]
fn what_leads_up_is_refused() {
    for (args, source) in [(&["-aR"][..], "from/./a/../.."), (&["-aR"], "../x/from")] {
        let scratch = lab::scratch();
        let mut command = holesync();
        command.current_dir(scratch.path()).args(args).args([source, "to"]);
        run(&mut command).code(1).says(&["--relative", ".."]);
    }
}
