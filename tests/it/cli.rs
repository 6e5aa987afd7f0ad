//! The verbs beside a transfer, and the shapes of everything that is printed.

mod diff;
mod errors;
mod help;
mod json;
mod map_file;
mod mistakes;
mod rsync;
mod terminal;
mod words;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::common::check::{assert_no_leftovers, assert_same, data_extents};
use crate::common::lab::{self, Fs, Loop};
use crate::common::layout::{Layout, Rng, layouts};
use crate::common::peer::{Peer, at, shell_word};
use crate::common::process::{Outcome, PROGRAM, holesync, run, start};

/// Far beyond what anything here needs: it only ends hangs.
const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn image(path: PathBuf) -> PathBuf {
    let mut rng = Rng(1);
    let layout =
        Layout::hole("image", 3_000_001).data(70_000..450_000, &mut rng).data(2_999_000..3_000_001, &mut rng);
    layout.write(&path);
    path
}

/// The lines of some output, each of which has to be a JSON object.
#[track_caller]
fn json_lines(outcome: &Outcome) -> Vec<Value> {
    let parse =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?} of {outcome}"));
    let lines: Vec<Value> = outcome.stdout.lines().map(parse).collect();
    assert!(lines.iter().all(Value::is_object), "{outcome}");
    lines
}

/// What `map` says: offset, length, kind.
#[derive(Debug, PartialEq)]
struct Row(u64, u64, String);

#[track_caller]
fn map(path: &Path, options: &[&str]) -> Vec<Row> {
    let outcome = run(holesync().arg("map").args(options).arg(path)).ok();
    let mut lines = outcome.stdout.lines();
    assert_eq!(
        lines.next().map(|head| head.split_whitespace().collect()),
        Some(vec!["offset", "length", "kind"])
    );
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let hashed = options.contains(&"--hashes") && words[2] == "data";
            assert_eq!(words.len(), if hashed { 4 } else { 3 }, "{line}");
            assert!(!hashed || words[3].len() == 64, "{line}");
            Row(words[0].parse().expect("offset"), words[1].parse().expect("length"), words[2].into())
        })
        .collect()
}

/// Demands rows that adjoin, and end where the file does.
#[track_caller]
fn assert_covers(rows: &[Row], len: u64) {
    let end = rows.iter().fold(0, |at, Row(offset, length, kind)| {
        assert_eq!(*offset, at, "{rows:?}");
        assert!(*length > 0 && ["data", "hole", "zero"].contains(&kind.as_str()), "{rows:?}");
        at + length
    });
    assert_eq!(end, len, "{rows:?}");
}

#[test]
fn map_shows_the_extents_that_the_file_system_reports() {
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        let Some(dir) = lab::dir(fs) else { continue };
        for layout in layouts(&mut Rng(5)) {
            let path = dir.path().join(&layout.name);
            layout.write(&path);
            let file = File::open(&path).expect("open");
            // What is not yet on storage may be reported in another way a moment later.
            file.sync_all().expect("sync");
            let rows = map(&path, &[]);
            assert_covers(&rows, layout.len() as u64);
            let data: Vec<_> =
                rows.iter().filter(|row| row.2 == "data").map(|row| row.0..row.0 + row.1).collect();
            let extents = data_extents(&file, layout.len() as u64).expect("extents");
            let sum = |ranges: &[std::ops::Range<u64>]| ranges.iter().map(|r| r.end - r.start).sum::<u64>();
            assert_eq!(sum(&data), sum(&extents), "{fs:?} {}: {rows:?}", layout.name);
            assert!(
                extents.iter().all(|e| data.iter().any(|d| d.start <= e.start && e.end <= d.end)),
                "{rows:?}"
            );
        }
    }
}

#[test]
fn map_with_hashes_shows_equal_blocks_as_equal_and_zeros_as_zero() {
    let dir = lab::scratch();
    let path = dir.path().join("disk");
    let file = File::create(&path).expect("create");
    let block = [[7; 1000].as_slice(), &[0; 65536 - 1000]].concat();
    for index in [0, 2, 4] {
        file.write_all_at(&block, index * 65536).expect("write");
    }
    file.write_all_at(&[0; 65536], 5 * 65536).expect("write");
    file.write_all_at(b"tail", 6 * 65536).expect("write");
    let lines = json_lines(&run(holesync().args(["map", "--hashes", "--json"]).arg(&path)).ok());
    let kinds: Vec<_> = lines.iter().map(|line| line["kind"].as_str().unwrap_or("none")).collect();
    assert_eq!(kinds, ["data", "zero", "data", "zero", "data", "zero", "data"]);
    let hash = |nth: usize| lines[nth]["hash"].as_str().map(str::to_owned);
    assert!(hash(0).is_some_and(|hash| hash.len() == 64) && hash(0) == hash(2) && hash(2) == hash(4));
    assert!(hash(6).is_some() && hash(6) != hash(0) && hash(1).is_none());
    assert_covers(&map(&path, &["--hashes"]), 6 * 65536 + 4);
    assert_eq!(map(&path, &["--hashes", "-B", "4K"]).iter().filter(|row| row.2 == "data").count(), 4);
}

#[test]
fn map_tells_programs_the_same_as_people() {
    let dir = lab::scratch();
    let path = image(dir.path().join("disk"));
    for options in [&["--json"][..], &["--json", "--hashes"]] {
        let lines = json_lines(&run(holesync().arg("map").args(options).arg(&path)).ok());
        let number =
            |line: &Value, key: &str| line[key].as_u64().unwrap_or_else(|| panic!("{key} in {line}"));
        let row = |line: &Value| {
            Row(number(line, "offset"), number(line, "length"), line["kind"].as_str().expect("kind").into())
        };
        let rows: Vec<Row> = lines.iter().map(row).collect();
        assert_eq!(rows, map(&path, &options[1..]));
        assert_covers(&rows, 3_000_001);
    }
}

#[test]
fn map_of_nothing_of_a_hole_and_of_16_tib() {
    let Some(dir) = lab::dir(Fs::Xfs) else { return };
    let path = dir.path().join("disk");
    let file = File::create(&path).expect("create");
    assert_eq!(map(&path, &[]), []);
    assert_eq!(map(&path, &["--hashes"]), []);
    assert_eq!(run(holesync().args(["map", "--json"]).arg(&path)).ok().stdout, "");
    let len = 16 << 40;
    file.set_len(len).expect("set the length");
    assert_eq!(map(&path, &[]), [Row(0, len, "hole".into())]);
    assert_eq!(map(&path, &["--hashes"]), [Row(0, len, "zero".into())]);
    file.write_all_at(b"x", len - 1).expect("write");
    file.write_all_at(b"x", len / 2).expect("write");
    for options in [&[][..], &["--hashes"]] {
        let rows = map(&path, options);
        assert_covers(&rows, len);
        assert_eq!(rows.iter().filter(|row| row.2 == "data").count(), 2, "{rows:?}");
    }
}

#[test]
fn map_and_digest_take_block_devices() {
    if !lab::is_root() {
        return;
    }
    let Some(dir) = lab::dir(Fs::Ext4) else { return };
    let path = dir.path().join("disk");
    Layout::hole("disk", 2 * MIB as usize).data(100_000..200_000, &mut Rng(3)).write(&path);
    let device = Loop::over(&path);
    let rows = map(&device.0, &[]);
    assert_covers(&rows, 2 * MIB);
    assert_eq!(map(&device.0, &["--hashes"]), map(&path, &["--hashes"]));
    assert_eq!(digest(&device.0), digest(&path));
}

#[test]
fn map_and_digest_of_what_is_no_image_are_errors_that_name_it() {
    let dir = lab::scratch();
    run(Command::new("mkfifo").arg(dir.path().join("fifo"))).ok();
    for (name, says) in [("missing", "No such file"), (".", "is a directory")] {
        let path = dir.path().join(name);
        for verb in ["map", "digest"] {
            let outcome = run(holesync().arg(verb).arg(&path)).code(23);
            outcome.says(&[path.to_str().unwrap(), says, "code 23"]);
        }
    }
    for verb in ["map", "digest"] {
        for path in [Path::new("/dev/null"), &dir.path().join("fifo")] {
            run(holesync().arg(verb).arg(path)).code(23).says(&[path.to_str().unwrap()]);
        }
    }
}

#[track_caller]
fn digest(path: &Path) -> String {
    let outcome = run(holesync().arg("digest").arg(path)).ok();
    let (hash, name) = outcome.stdout.trim_end().split_once("  ").unwrap_or_else(|| panic!("{outcome}"));
    assert_eq!(Path::new(name), path);
    assert!(hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{outcome}");
    hash.to_owned()
}

#[test]
fn a_digest_depends_on_content_and_length_alone() {
    let dir = lab::scratch();
    let path = |name: &str| dir.path().join(name);
    let layout = Layout::hole("disk", MIB as usize + 77).data(10_000..300_000, &mut Rng(9));
    layout.clone().write(&path("sparse"));
    fs::write(path("dense"), fs::read(path("sparse")).expect("read")).expect("write");
    let of = |name: &str| digest(&path(name));
    let want = of("sparse");
    assert_eq!(of("dense"), want, "written zeros count like holes");
    for at in [0, 10_000, 299_999, 65_535, 65_536, MIB + 76] {
        fs::copy(path("dense"), path("other")).expect("copy");
        let file = File::options().read(true).write(true).open(path("other")).expect("open");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 1], at).expect("write");
        assert_ne!(of("other"), want, "a bit at {at}");
    }
    for len in [MIB + 76, MIB + 78] {
        layout.clone().resize(len as usize).write(&path("other"));
        assert_ne!(of("other"), want, "{len} bytes");
    }
    layout.clone().shift(65536, &mut Rng(2)).punch(0..65536).write(&path("other"));
    assert_ne!(of("other"), want, "the same blocks elsewhere");
}

#[test]
fn a_digest_is_the_same_here_and_there() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let path = image(dir.path().join("disk"));
    for block in ["4K", "64K", "256K"] {
        let mut command = holesync();
        command.args(["digest", "-B", block, "-e", peer.rsh(), "--remote-path", PROGRAM]);
        let outcome = run(command.arg(&path).arg(at(&path))).ok();
        let hashes: Vec<_> = outcome.stdout.lines().filter_map(|line| line.split_once("  ")).collect();
        assert_eq!(hashes.len(), 2, "{outcome}");
        assert_eq!(hashes[0].0, hashes[1].0, "{block}");
        assert_eq!(hashes[1].1, at(&path).to_str().unwrap());
    }
}

#[test]
fn a_digest_of_many_goes_on_after_one_that_fails() {
    let dir = lab::scratch();
    let (one, two) = (image(dir.path().join("one")), dir.path().join("two"));
    fs::write(&two, "two").expect("write");
    let outcome = run(holesync().arg("digest").args([&one, &dir.path().join("missing"), &two])).code(23);
    assert_eq!(outcome.stdout.lines().count(), 2, "{outcome}");
    outcome.says(&["missing", "No such file"]);
}

#[test]
fn recover_finds_nothing_to_finish_and_touches_nothing() {
    let dir = lab::scratch();
    let path = image(dir.path().join("disk"));
    let before = fs::read(&path).expect("read");
    let outcome = run(holesync().arg("recover").arg(&path)).ok();
    assert_eq!(outcome.stdout, format!("{}: nothing to finish\n", path.display()));
    run(holesync().arg("recover").arg(dir.path())).ok();
    run(holesync().args(["recover", "disk"]).current_dir(dir.path())).ok();
    assert_eq!(fs::read(&path).expect("read"), before);
    assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    run(holesync().arg("recover").arg(dir.path().join("no/disk"))).code(23).says(&["/no", "No such file"]);
    run(holesync().args(["recover", "/"]).arg("--no-such")).code(1);
}

#[test]
fn help_and_version_go_to_stdout_and_succeed() {
    let help = run(holesync().arg("--help")).ok();
    assert_eq!(help.stderr, "");
    for part in ["Usage: holesync", "SRC... DEST", "--checksum", "--rsh", "map", "digest", "recover", "agent"]
    {
        assert!(help.stdout.contains(part), "{part}: {help}");
    }
    for verb in ["map", "digest", "recover", "agent"] {
        let outcome = run(holesync().args([verb, "--help"])).ok();
        assert!(outcome.stdout.contains(&format!("Usage: holesync {verb}")), "{outcome}");
    }
    let version = run(holesync().arg("--version")).ok();
    assert_eq!(version.stdout, format!("holesync {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(run(holesync().arg("-V")).ok().stdout, version.stdout);
    let nothing = run(&mut holesync()).code(1);
    assert!(nothing.stderr.contains("Usage: holesync") && nothing.stdout.is_empty(), "{nothing}");
}

#[test]
fn files_may_be_named_like_verbs() {
    let dir = lab::scratch();
    for name in ["map", "digest", "recover", "agent", "help"] {
        image(dir.path().join(name));
        let copy = format!("{name}.copy");
        run(holesync().arg(format!("./{name}")).arg(&copy).current_dir(dir.path())).ok();
        assert_same(&dir.path().join(name), &dir.path().join(&copy));
        fs::remove_file(dir.path().join(name)).expect("remove");
        run(holesync().args([&copy, name]).current_dir(dir.path())).ok();
        run(holesync().args(["-I", &copy, name]).current_dir(dir.path())).ok();
        assert_same(&dir.path().join(name), &dir.path().join(&copy));
        run(holesync().args(["digest", name]).current_dir(dir.path())).ok();
    }
}

#[test]
fn a_tilde_is_a_plain_name_on_this_side() {
    let dir = lab::scratch();
    let home = dir.path().join("home");
    fs::create_dir_all(dir.path().join("sub/~")).expect("create a directory");
    fs::create_dir(&home).expect("create a directory");
    let source = image(dir.path().join("source"));
    let peer = Peer::pipe(dir.path());
    for from in [source.clone().into_os_string(), at(&source)] {
        for (to, arrives) in [("~", "sub/~/source"), ("~/x", "sub/~/x")] {
            let mut command = peer.holesync();
            command.env("HOME", &home).current_dir(dir.path().join("sub")).arg(&from).arg(to);
            run(&mut command).ok();
            assert_same(&source, &dir.path().join(arrives));
            fs::remove_file(dir.path().join(arrives)).expect("remove");
        }
    }
    assert_eq!(fs::read_dir(home).expect("list").count(), 0);
}

/// The agent, fed with bytes and then with the end of its input.
fn agent_fed(bytes: &[u8]) -> Outcome {
    let dir = lab::scratch();
    fs::write(dir.path().join("input"), bytes).expect("write");
    let script = format!("exec {PROGRAM} agent <{}", shell_word(&dir.path().join("input")));
    start(Command::new("sh").arg("-c").arg(script)).finish_within(LIMIT)
}

#[test]
fn an_agent_that_hears_garbage_or_nothing_ends_with_an_error() {
    let version = holesync::protocol::VERSION as u8;
    let greeting = [&holesync::protocol::MAGIC[..], &[version, 0, version, 0, 0, 0, 0, 0]].concat();
    let greeted = |rest: &[u8]| [&greeting[..], rest].concat();
    let mut noise = vec![0; 300_000];
    Rng(11).fill(&mut noise);
    let newer = [&holesync::protocol::MAGIC[..], &[9, 0, 9, 0, 0, 0, 0, 0]].concat();
    for (name, bytes, codes) in [
        ("nothing", vec![], &[5][..]),
        ("text", b"GET / HTTP/1.1\r\n\r\n".repeat(10), &[5]),
        ("noise", noise.clone(), &[5]),
        ("another version", newer, &[2]),
        ("a greeting", greeted(&[]), &[12]),
        ("a greeting and noise", greeted(&noise), &[12]),
        ("a greeting and zeros", greeted(&[0; 100_000]), &[12]),
        ("a huge frame", greeted(&[1, 255, 255, 255, 255, 0, 0]), &[12]),
        ("an empty frame", greeted(&[1, 0, 0, 0, 0]), &[12]),
    ] {
        let outcome = agent_fed(&bytes);
        assert!(codes.contains(&outcome.code), "{name}: {outcome}");
        assert!(outcome.stdout.starts_with('\u{fffd}'), "{name}: it greets first: {outcome}");
        assert!(outcome.stderr.starts_with("holesync: "), "{name}: {outcome}");
        assert!(!outcome.stderr.contains("panicked"), "{name}: {outcome}");
    }
    let closed = |redirect: &str| {
        start(Command::new("sh").arg("-c").arg(format!("exec {PROGRAM} agent {redirect}")))
            .finish_within(LIMIT)
    };
    for redirect in ["<&-", "</dev/null >&-", "<&- >&- 2>&-", "</dev/null >/dev/full"] {
        let outcome = closed(redirect);
        assert!([5, 10, 12].contains(&outcome.code), "{redirect}: {outcome}");
    }
}

/// A small tree: two files, a directory, a link.
fn tree(dir: &Path) -> PathBuf {
    let from = dir.join("from");
    if from.exists() {
        return from.join("");
    }
    fs::create_dir_all(from.join("sub")).expect("create a directory");
    image(from.join("disk"));
    fs::write(from.join("sub/small"), "small").expect("write");
    std::os::unix::fs::symlink("disk", from.join("link")).expect("symlink");
    from.join("")
}

/// Local, push and pull commands for the tree, with options.
fn each_way(dir: &Path, options: &[&str]) -> Vec<Command> {
    let (from, peer) = (tree(dir), Peer::pipe(dir));
    let ways = [
        (from.clone().into(), dir.join("to").into()),
        (from.clone().into(), at(dir.join("to"))),
        (at(&from), dir.join("to").into()),
    ];
    let command = |(from, to): &(std::ffi::OsString, std::ffi::OsString)| {
        let mut command = peer.holesync();
        command.args(options).arg(from).arg(to);
        command
    };
    ways.iter().map(command).collect()
}

/// Runs the tree each way, into nothing and then once more.
fn outputs(options: &[&str]) -> Vec<[Outcome; 2]> {
    let dir = lab::scratch();
    let both = |mut command: Command| {
        let first = run(&mut command).ok();
        let again = run(&mut command).ok();
        // A dry run leaves nothing.
        let _ = fs::remove_dir_all(dir.path().join("to"));
        [first, again]
    };
    each_way(dir.path(), options).into_iter().map(both).collect()
}

/// The lines before the last one about files: not every way tells of directories and symlinks.
fn names(outcome: &Outcome) -> Vec<&str> {
    let mut lines: Vec<&str> = outcome.stdout.lines().collect();
    let last = lines.pop().unwrap_or_else(|| panic!("no total in {outcome}"));
    let is_total = last.starts_with("would send ") || last.starts_with("sent ") && last.contains(" files, ");
    assert!(is_total, "{outcome}");
    assert_eq!(lines.pop(), Some(""), "{outcome}");
    let is_other = |line: &str| ["created directory ", "link "].iter().any(|start| line.starts_with(start));
    lines.retain(|line| !line.ends_with('/') && !is_other(line));
    lines
}

#[test]
fn nothing_is_printed_unless_it_is_asked_for() {
    for outcome in outputs(&[]).iter().chain(&outputs(&["-q"])).flatten() {
        assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", ""), "{outcome}");
    }
}

#[test]
fn verbose_names_what_was_sent_and_twice_verbose_everything() {
    for [first, again] in outputs(&["-v"]) {
        assert_eq!(names(&first), ["disk", "sub/small"], "{first}");
        assert_eq!(names(&again), [""; 0], "{again}");
        assert!(first.stdout.ends_with(" s\n") && first.stdout.contains("sent 2 of 2 files"), "{first}");
        assert!(again.stdout.contains("sent 0 of 2 files"), "{again}");
    }
    for [first, again] in outputs(&["-vv"]) {
        assert_eq!(names(&first), ["disk", "sub/small"], "{first}");
        assert_eq!(names(&again), ["disk is uptodate", "sub/small is uptodate"], "{again}");
    }
    // The last word counts.
    for [first, _] in outputs(&["-v", "-q"]) {
        assert_eq!(first.stdout, "", "{first}");
    }
}

#[test]
fn a_dry_run_names_what_would_be_sent_and_sends_nothing() {
    for options in [&["-n"][..], &["-n", "-v"]] {
        for [first, again] in outputs(options) {
            for outcome in [&first, &again] {
                assert_eq!(names(outcome), ["disk", "sub/small"], "{outcome}");
                let last = outcome.stdout.lines().last().unwrap_or_default();
                assert!(last.starts_with("would send "), "{outcome}");
                assert!(last.contains(" of 2 files, "), "{outcome}");
            }
        }
    }
}

#[test]
fn stats_are_a_table_of_what_was_done() {
    for outcome in outputs(&["--stats"]).iter().flatten() {
        let names: Vec<_> = outcome.stdout.lines().map(|line| line[..14].trim_end()).collect();
        let want = [
            "files",
            "apparent size",
            "data",
            "holes",
            "matched",
            "sent",
            "received",
            "hashed",
            "written",
            "punched",
            "time",
            "rate",
            "speed-up",
        ];
        assert_eq!(names, want, "{outcome}");
        assert!(outcome.stdout.contains("apparent size  3000006 B"), "{outcome}");
    }
}

#[test]
fn json_is_one_object_a_line_and_the_summary_comes_last() {
    for (way, [first, again]) in outputs(&["--json"]).into_iter().enumerate() {
        for (outcome, action, sent) in [(&first, "sent", 2), (&again, "unchanged", 0)] {
            let lines = json_lines(outcome);
            let of = |kind: &str| lines.iter().filter(|line| line["event"] == kind).collect::<Vec<_>>();
            assert_eq!(of("summary").len(), 1, "{outcome}");
            assert_eq!(lines.last().map(|line| &line["event"]), Some(&"summary".into()), "{outcome}");
            let mut files: Vec<_> =
                of("file").iter().map(|line| line["path"].as_str().unwrap_or("")).collect();
            files.sort_unstable();
            assert_eq!(files, ["disk", "sub/small"], "{outcome}");
            assert!(of("file").iter().all(|line| line["action"] == action), "{outcome}");
            assert_eq!(outcome.stderr, "", "{outcome}");
            assert_eq!((outcome.count("files_total"), outcome.count("files_sent")), (2, sent), "{outcome}");
            // Nothing counts where nothing changed; two directories and a symlink do where they
            // were made.
            assert_eq!(outcome.count("entries_changed"), if sent > 0 { 5 } else { 0 }, "{outcome}");
            assert_eq!(outcome.count("apparent_bytes"), 3_000_006, "{outcome}");
            assert_eq!(outcome.count("data_bytes") + outcome.count("hole_bytes"), 3_000_006, "{outcome}");
            assert_eq!(outcome.summary()["route"], ["local", "agent", "agent"][way], "{outcome}");
            assert_eq!(outcome.summary()["dry_run"], false, "{outcome}");
        }
    }
}

#[test]
fn json_ends_with_the_error_where_the_run_breaks_off() {
    let dir = lab::scratch();
    let source = image(dir.path().join("disk"));
    let to = dir.path().join("no/such/to");
    let no_ssh = |command: &mut Command| run(command.args(["--json", "-e", "/no/such/ssh"]));
    let outcomes = [
        run(holesync().arg("--json").arg(&source).arg(&to)).code(3),
        run(Peer::pipe(dir.path()).holesync().arg("--json").arg(&source).arg(at(&to))).code(3),
        no_ssh(holesync().arg(&source).arg("peer:to")).code(5),
        run(holesync().args(["--json", "--inplace", "--commit=atomic", "a", "b"])).code(1),
    ];
    for outcome in outcomes {
        let lines = json_lines(&outcome);
        let last = lines.last().unwrap_or_else(|| panic!("no output from {outcome}"));
        assert_eq!((&last["event"], last["code"].as_i64()), (&"error".into(), Some(outcome.code.into())));
        assert!(last["message"].as_str().is_some_and(|text| !text.is_empty()), "{outcome}");
    }
}

#[test]
fn json_tells_of_errors_and_warnings_too() {
    let dir = lab::scratch();
    run(Command::new("mkfifo").arg(Path::new(&tree(dir.path())).join("pi\npe"))).ok();
    for mut command in each_way(dir.path(), &["--json"]) {
        // disk is in the way of a file, sub of a directory.
        fs::create_dir_all(dir.path().join("to/disk/full")).expect("create a directory");
        let outcome = run(&mut command).code(23);
        let lines = json_lines(&outcome);
        let of = |kind: &str| lines.iter().filter(|line| line["event"] == kind).collect::<Vec<_>>();
        assert_eq!(of("error").len(), 1, "{outcome}");
        assert_eq!(of("error")[0]["code"], 23, "{outcome}");
        assert!(of("error")[0]["message"].as_str().is_some_and(|text| text.contains("to/disk")), "{outcome}");
        assert!(
            of("warning")[0]["message"].as_str().is_some_and(|text| text.contains("pi\\#012pe")),
            "{outcome}"
        );
        assert_eq!((outcome.count("files_failed"), outcome.count("files_sent")), (1, 1), "{outcome}");
        fs::remove_dir_all(dir.path().join("to")).expect("remove");
    }
}

#[test]
fn an_output_that_nobody_reads_stops_nothing_and_panics_nowhere() {
    for options in [&["-vv"][..], &["--stats"], &["--json"], &["-P"], &["-n"]] {
        let dir = lab::scratch();
        fs::create_dir_all(dir.path().join("to")).expect("create a directory");
        for mut command in each_way(dir.path(), options) {
            assert_eq!(run_unread(&mut command), Some(0), "{options:?}");
        }
        if options != ["-n"] {
            assert_same(&dir.path().join("from/disk"), &dir.path().join("to/disk"));
        }
        assert_no_leftovers(dir.path());
    }
    let dir = lab::scratch();
    let (path, missing) = (image(dir.path().join("disk")), dir.path().join("missing"));
    for (args, codes) in [
        (vec!["map"], [0, 23]),
        (vec!["map", "--json"], [0, 23]),
        (vec!["digest"], [0, 23]),
        (vec!["--help"], [0, 0]),
        (vec!["--version"], [0, 0]),
    ] {
        let code = run_unread(holesync().args(&args).arg(&path));
        assert!(code.is_some_and(|code| codes.contains(&code)), "{args:?}: {code:?}");
    }
    // Also where there is an error to tell.
    assert_eq!(run_unread(holesync().arg(missing).arg(dir.path().join("to"))), Some(23));
    assert_eq!(run_unread(holesync().arg("--no-such-option")), Some(1));
}

/// Runs a command whose stdout and stderr are pipes that nobody reads.
fn run_unread(command: &mut Command) -> Option<i32> {
    let unread = || {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        Stdio::from(OwnedFd::from(writer))
    };
    command.stdin(Stdio::null()).stdout(unread()).stderr(unread()).status().expect("run").code()
}

#[test]
fn a_run_that_takes_long_tells_of_its_progress_when_asked_to() {
    let dir = lab::scratch();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).expect("create a directory");
    image(from.join("a"));
    let go = dir.path().join("go");
    run(Command::new("mkfifo").arg(&go)).ok();
    // The clock of the report runs while this waits: half a second is between two.
    let body = format!("agent | {{ head -c 16; : <{}; sleep 0.6; cat; }}", shell_word(&go));
    let peer = Peer::script(dir.path(), &body);
    let told = |option: &str| {
        let running = start(peer.holesync().arg(option).args(["-I"]).arg(&from).arg(at(&to)));
        File::options().write(true).open(&go).expect("open the fifo");
        running.finish().ok()
    };
    let people = told("-P");
    assert!(people.stderr.lines().any(|line| line.trim_end().ends_with("of data")), "{people}");
    let programs = told("--json");
    let lines = json_lines(&programs);
    let progress: Vec<_> = lines.iter().filter(|line| line["event"] == "progress").collect();
    assert!(!progress.is_empty(), "{programs}");
    for line in progress {
        assert!(
            ["comparing", "sending", "writing", "waiting", "removing"]
                .contains(&line["phase"].as_str().unwrap_or("")),
            "{line}"
        );
        assert!(line["done_bytes"].as_u64() <= line["data_bytes"].as_u64(), "{line}");
    }
}

#[test]
fn h_among_other_letters_copies_and_shortens_numbers() {
    let dir = lab::scratch();
    let (source, copy) = (dir.path().join("source"), dir.path().join("copy"));
    Layout::dense("source", 3_000_000, &mut Rng(3)).write(&source);
    for (letters, size) in [("-avh", "3.00 MB"), ("-avhh", "2.86 MiB"), ("-av", "3000000 B (2.86 MiB)")] {
        let outcome = run(holesync().args([letters, "--stats"]).args([&source, &copy])).ok();
        let row = outcome.stdout.lines().find(|line| line.starts_with("apparent size")).expect("a table");
        assert_eq!(row.trim_start_matches("apparent size").trim(), size, "{letters}");
        assert_same(&source, &copy);
    }
}
