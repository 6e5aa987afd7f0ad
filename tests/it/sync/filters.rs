//! Filter rules: generated ones, over generated trees, choose what rsync chooses; every way
//! goes by them.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::lab;
use crate::common::layout::Rng;
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, holesync, run};
use crate::common::tree::{WAYS, Way, assert_trees, mkdir, rsync, slash, small};

const NAMES: [&str; 14] =
    ["a", "b", "ab", "foo", "bar", "foo.o", "x.c", "a b", "[x]", "b\\c", "st*r", "core", ".svn", "-x"];

fn pick(rng: &mut Rng, from: &[&'static str]) -> &'static str {
    from[rng.below(from.len())]
}

/// Directories and files below `dir`, some with rules of their own.
fn grow(dir: &Path, rng: &mut Rng, depth: usize) {
    for name in NAMES {
        let path = dir.join(name);
        match rng.below(10) {
            0..3 => drop(small(path, "")),
            // rsync takes a backslash in the path of a directory for an escape in its own rules.
            3..5 if depth > 0 && !name.contains('\\') => grow(&mkdir(path), rng, depth - 1),
            9 => symlink(".", path).expect("symlink"),
            _ => {}
        }
    }
    for (name, simple) in [(".f", false), (".g", true), (".rsync-filter", false), (".cvsignore", true)] {
        if rng.chance(25) {
            let lines = (0..1 + rng.below(3)).map(|_| if simple { pattern(rng) } else { rule(rng) });
            let lines = lines.map(|line| line.replace('\n', "")).collect::<Vec<_>>();
            small(dir.join(name), &(lines.join("\n") + "\n"));
        }
    }
}

fn pattern(rng: &mut Rng) -> String {
    const PIECES: [&str; 14] =
        ["*", "?", "**", "[a-f]", "[!a]", "o", ".", "\\", "[[:alpha:]]", "[^b]*", "/", "*/", "a", "x"];
    let mut pattern = String::new();
    if rng.chance(25) {
        pattern.push('/');
    }
    for nth in 0..1 + rng.below(3) {
        if nth > 0 && rng.chance(60) {
            pattern.push('/');
        }
        pattern += if rng.chance(55) { pick(rng, &NAMES) } else { pick(rng, &PIECES) };
    }
    pattern += pick(rng, &["", "", "", "", "/", "/**", "/***", "***"]);
    pattern
}

/// A rule for names in rsync's syntax.
fn rule(rng: &mut Rng) -> String {
    let prefix = pick(
        rng,
        &[
            "- ",
            "- ",
            "- ",
            "+ ",
            "+ ",
            "-! ",
            "H ",
            "S ",
            "-s ",
            "+s ",
            "P ",
            "R ",
            "-p ",
            "exclude,p ",
            "show ",
        ],
    );
    format!("{prefix}{}", pattern(rng))
}

/// Arguments for both programs.
fn rules(dir: &Path, rng: &mut Rng) -> Vec<OsString> {
    let mut args = Vec::new();
    for nth in 0..1 + rng.below(6) {
        let list = |rng: &mut Rng, line: fn(&mut Rng) -> String| {
            let lines = (0..rng.below(4)).map(|_| line(rng)).collect::<Vec<_>>().join("\n");
            let path = small(dir.join(format!("list{nth}")), &format!("# comment\n\n; another\n{lines}\n"));
            path.to_str().expect("plain").to_owned()
        };
        args.push(match rng.below(16) {
            0..4 => format!("--exclude={}", pattern(rng)),
            4..6 => format!("--include={}", pattern(rng)),
            6..10 => format!("--filter={}", rule(rng)),
            10 => format!("--exclude-from={}", list(rng, pattern)),
            11 => format!("--include-from={}", list(rng, pattern)),
            12 => format!("--filter=. {}", list(rng, rule)),
            13 => pick(rng, &["-F", "-C", "-f:C", "-f-C", "-FF", "-f!"]).to_owned(),
            14 => format!("--filter={}", pick(rng, &[": .f", ":n .f", ":e .f", "dir-merge .f", ": .f"])),
            _ => {
                format!("--filter={}", pick(rng, &[":- .g", ":+ .g", ":w- .g", ":C .g", ":-/ .g", ":ns- .g"]))
            }
        });
    }
    args.into_iter().map(OsString::from).collect()
}

/// The names that are there.
fn names(dir: &Path) -> BTreeSet<PathBuf> {
    let entries = walkdir::WalkDir::new(dir).into_iter().filter_map(Result::ok);
    entries.map(|entry| entry.path().strip_prefix(dir).expect("below").to_path_buf()).collect()
}

/// What rsync would transfer, and its exit code.
fn chosen_by_rsync(dir: &Path, args: &[OsString], sources: &[OsString]) -> (BTreeSet<PathBuf>, Outcome) {
    let mut command = Command::new("rsync");
    command.current_dir(dir).env("HOME", dir).env_remove("CVSIGNORE");
    // -8: names as they are.
    let outcome = run(command.args(["-rln8", "--out-format=%n"]).args(args).args(sources).arg("no/such/"));
    let paths = outcome.stdout.lines().map(|line| PathBuf::from(line.trim_end_matches('/')));
    let paths = paths.map(|path| if path == Path::new(".") { PathBuf::new() } else { path });
    (paths.collect(), outcome)
}

#[test]
fn generated_rules_choose_what_they_choose_with_rsync() {
    let dir = lab::scratch();
    let dir = dir.path();
    mkdir(dir.join("no/such"));
    let (mut wrong, mut refused, mut chosen_in_all) = (Vec::new(), 0, 0);
    for seed in 1..=300 {
        let mut rng = Rng(seed);
        let from = mkdir(dir.join(format!("{seed}/from")));
        grow(&from, &mut rng, 1 + usize::from(seed % 4 == 0));
        let args = rules(dir, &mut rng);
        let sources = match rng.below(4) {
            0 => vec![from.clone().into_os_string()],
            1 => vec![from.join("a").into_os_string(), slash(&from.join("foo"))],
            _ => vec![slash(&from)],
        };
        let what = format!("seed {seed}: {args:?} {sources:?}");
        let (theirs, outcome) = chosen_by_rsync(dir, &args, &sources);
        let to = mkdir(dir.join(format!("{seed}/to")));
        let mut command = holesync();
        command.env("HOME", dir).env_remove("CVSIGNORE").current_dir(dir);
        let ours = run(command.args(["-q", "--no-fsync"]).args(&args).args(&sources).arg(slash(&to)));
        // What is not there, both miss; what is no rule ends rsync.
        let mut found = names(&to);
        if !theirs.contains(Path::new("")) {
            found.remove(Path::new(""));
        }
        let differ = found.symmetric_difference(&theirs).collect::<Vec<_>>();
        if (ours.code == 0) != (outcome.code == 0) || outcome.code != 1 && !differ.is_empty() {
            wrong.push(format!("{what}: {differ:?}\n{outcome}\n{ours}"));
        }
        refused += u64::from(outcome.code == 1);
        chosen_in_all += theirs.len();
        fs::remove_dir_all(dir.join(format!("{seed}"))).expect("remove");
    }
    assert!(wrong.is_empty(), "{} of 300, first\n{}", wrong.len(), wrong[..wrong.len().min(5)].join("\n"));
    assert!(chosen_in_all > 2000 && refused < 30, "{chosen_in_all} chosen, {refused} refused");
}

/// Flags and sources, and the same as rsync is to have it.
type Question = (Vec<OsString>, Vec<OsString>, Vec<OsString>);

/// A way to ask for something of `from`, and what to ask rsync for.
fn question(dir: &Path, from: &Path, rng: &mut Rng) -> Question {
    let same = |flags: &[&str], sources: Vec<OsString>| {
        (flags.iter().map(OsString::from).collect(), sources.clone(), sources)
    };
    let below = |path: &str| from.join(path).into_os_string();
    let top = fs::read_dir(from).expect("list").map(|entry| entry.expect("an entry").file_name());
    let top = top.map(|name| name.into_string().expect("plain")).collect::<BTreeSet<_>>();
    match rng.below(8) {
        0 => same(&[], vec![from.into()]),
        1 => same(&[], vec![slash(from)]),
        2 => same(&[], vec![below("a"), slash(&from.join("foo")), below("b")]),
        3 => {
            let named = if from.join("foo").is_dir() { "./foo/" } else { "./foo" };
            same(&["-R"], vec![below("./a/b"), below(named), below("./x.c")])
        }
        4 => same(&["-R", "--no-implied-dirs"], vec![below("./ab/foo"), below("a")]),
        5 => {
            let mut listed = names(from).into_iter().filter(|_| rng.chance(30)).collect::<Vec<_>>();
            listed.retain(|path| path != Path::new(""));
            let list = listed.iter().flat_map(|path| [path.as_os_str().as_encoded_bytes(), b"\0"].concat());
            let path = dir.join("listed");
            fs::write(&path, list.collect::<Vec<_>>()).expect("write");
            let flags = ["-0", &format!("--files-from={}", path.display())];
            match rng.below(3) {
                0 => same(&[&flags[..], &["-r"]].concat(), vec![slash(from)]),
                1 => same(&[&flags[..], &["--no-R"]].concat(), vec![slash(from)]),
                _ => same(&flags, vec![slash(from)]),
            }
        }
        6 => {
            let like = top.iter().filter(|name| name.contains('o') && !name.starts_with('.'));
            let like = like.map(|name| below(name)).collect::<Vec<_>>();
            if like.is_empty() {
                return same(&[], vec![slash(from)]);
            }
            (Vec::new(), vec![below("*o*")], like)
        }
        _ => {
            let file = top.iter().find(|name| from.join(name).is_file());
            same(&[], vec![file.map_or_else(|| slash(from), |name| below(name))])
        }
    }
}

/// A receiver that refuses what it did not ask for refuses nothing of an honest sender.
#[test]
fn all_that_rules_leave_comes_from_another_machine() {
    let rounds = std::env::var("HOLESYNC_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let rounds = rounds.unwrap_or(100);
    let dir = lab::scratch();
    let dir = dir.path();
    let peer = Peer::pipe(dir);
    let (mut wrong, mut came) = (Vec::new(), 0);
    for seed in 1..=rounds {
        let mut rng = Rng(seed + 5000);
        let from = mkdir(dir.join(format!("{seed}/from")));
        grow(&from, &mut rng, 1 + usize::from(seed % 4 == 0));
        let args = rules(dir, &mut rng);
        let (flags, sources, theirs) = question(dir, &from, &mut rng);
        let what = format!("seed {seed}: {args:?} {flags:?} {sources:?}");
        let [ours_to, theirs_to] = ["ours", "theirs"].map(|to| mkdir(dir.join(format!("{seed}/{to}"))));
        let is_listed = flags.iter().any(|flag| flag.to_string_lossy().starts_with("--files-from"));
        let kinds = if is_listed { "-l" } else { "-rl" };
        let mut command = Command::new("rsync");
        command.current_dir(dir).env("HOME", dir).env_remove("CVSIGNORE").arg(kinds);
        let outcome = run(command.args(&flags).args(&args).args(&theirs).arg(slash(&theirs_to)));
        let mut command = peer.holesync();
        command.current_dir(dir).env("HOME", dir).env_remove("CVSIGNORE").args(["-q", "--no-fsync"]);
        let sources = sources.iter().map(at);
        let ours = run(command.args(&flags).args(&args).args(sources).arg(slash(&ours_to)));
        // Of what is named below a directory with rules of its own, those say nothing here.
        let is_kept = flags.iter().any(|flag| flag == "-R") || is_listed;
        let has_merges = args.iter().any(|arg| {
            let arg = arg.to_string_lossy();
            ["-F", "-C", "-f:C"].iter().any(|rule| arg.starts_with(rule))
                || arg.contains("=:")
                || arg.contains("dir-merge")
        });
        let (found, expected) = (names(&ours_to), names(&theirs_to));
        if is_kept && has_merges {
            assert_eq!(ours.code, outcome.code, "{what}: {ours}");
            assert!(found.is_superset(&expected), "{what}: {expected:?} {found:?}");
            continue;
        }
        let (lacks, more) = (expected.difference(&found), found.difference(&expected));
        let differ = format!("lacks {:?}, has {:?}", lacks.collect::<Vec<_>>(), more.collect::<Vec<_>>());
        if (ours.code == 0) != (outcome.code == 0) || outcome.code != 1 && found != expected {
            wrong.push(format!("{what}: {differ}\n{outcome}\n{ours}"));
        }
        came += expected.len();
        fs::remove_dir_all(dir.join(format!("{seed}"))).expect("remove");
    }
    assert!(
        wrong.is_empty(),
        "{} of {rounds}, first\n{}",
        wrong.len(),
        wrong[..wrong.len().min(5)].join("\n")
    );
    assert!(came as u64 > 3 * rounds, "{came} came");
}

/// A tree for rules of every kind.
fn tree(dir: &Path) -> PathBuf {
    let from = mkdir(dir.join("from"));
    for name in
        ["a.o", "a.c", "keep.o", "skip/a.c", "skip/deep/a.c", "deep/a.o", "deep/er/a.c", "deep/er/low", "top"]
    {
        mkdir(from.join(name).parent().expect("a parent").to_path_buf());
        small(from.join(name), name);
    }
    small(from.join("deep/.rsync-filter"), "- low\n- /a.o\n");
    symlink("a.c", from.join("link")).expect("symlink");
    from
}

#[test]
fn every_way_goes_by_the_rules() {
    for way in WAYS {
        let dir = lab::scratch();
        let dir = dir.path();
        let from = tree(dir);
        let list = small(dir.join("list"), "skip/\n+ keep.o\n*.o\n");
        let list = format!("--exclude-from={}", list.display());
        for (nth, rules) in
            [&["--include=keep.o", "--exclude=*.o", "-f- skip/"][..], &[&list], &["-F"], &["-f-! */"]]
                .into_iter()
                .enumerate()
        {
            let (ours, theirs) = (dir.join(format!("ours{nth}/")), dir.join(format!("theirs{nth}/")));
            [&ours, &theirs].into_iter().for_each(|path| drop(mkdir(path.clone())));
            let source = slash(&from);
            let args = [&["-a"][..], rules].concat();
            let Some(outcome) = way.run(&args, &[&source], ours.as_os_str()) else { return };
            if way == Way::PullShell && rules == ["-F"] {
                outcome.code(1).says(&["rules in files of directories", "--agent=push"]);
                continue;
            }
            outcome.ok();
            let args = args.iter().map(OsStr::new).chain([source.as_os_str(), theirs.as_os_str()]);
            assert_eq!(rsync(dir, &args.collect::<Vec<_>>()), 0, "rsync");
            assert_trees(&ours, &theirs, true, &format!("{way:?} {rules:?}"));
        }
    }
}

#[test]
fn a_directory_whose_rules_are_not_known_is_not_sent() {
    let dir = lab::scratch();
    let dir = dir.path();
    let from = tree(dir);
    let secret = small(dir.join("secret"), "a line that is no rule\n");
    let rules = from.join("deep/.rsync-filter");
    let outcome_of =
        |to: &str| run(holesync().args(["-aF"]).arg(slash(&from)).arg(slash(&mkdir(dir.join(to)))));
    fs::remove_file(&rules).expect("remove");
    symlink(&secret, &rules).expect("symlink");
    let outcome =
        outcome_of("out").code(23).says(&["deep: has rules that cannot be used", "leads out of the source"]);
    assert!(!outcome.stderr.contains("no rule"), "{outcome}");
    assert!(dir.join("out/top").exists() && !dir.join("out/deep/er").exists());
    // One that stays in the tree is followed.
    small(from.join("common"), "- er\n");
    fs::remove_file(&rules).expect("remove");
    symlink("../common", &rules).expect("symlink");
    outcome_of("in").ok();
    assert!(dir.join("in/deep/a.o").exists() && !dir.join("in/deep/er").exists());
    fs::remove_file(&rules).expect("remove");
    nix::unistd::mkfifo(&rules, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    outcome_of("fifo").code(23).says(&["no regular file"]);
    small(from.join(".rsync-filter"), "what is this\n");
    outcome_of("bad").code(23).says(&["no filter rule", "what is this"]);
}

#[test]
fn rules_that_cannot_be_used_end_the_run_before_it_begins() {
    let dir = lab::scratch();
    let from = tree(dir.path());
    let to = slash(&mkdir(dir.path().join("to")));
    for (args, why) in [
        (&["-f", "what"][..], "no filter rule"),
        (&["-f", ". /no/such/file"], "/no/such/file"),
        (&["--exclude-from=/no/such/file"], "/no/such/file"),
        (&["--through", "cat", "--exclude=x"], "--through"),
    ] {
        run(holesync().args(args).arg(slash(&from)).arg(&to)).code(1).says(&[why]);
    }
    assert_eq!(fs::read_dir(&to).expect("list").count(), 0);
}
