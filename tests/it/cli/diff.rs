//! `diff`, and `map` of an image on a host: what they say, against a page by page comparison
//! of bytes.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::cli::json_lines;
use crate::common::lab;
use crate::common::layout::{Change, Layout, Rng, layouts, mutate};
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, PROGRAM, holesync, run};

const PAGE: usize = 4096;

fn diff(options: &[&str]) -> Command {
    let mut command = holesync();
    command.arg("diff").args(options);
    command
}

/// A verb that reaches the far side.
fn remote(verb: &str, peer: &Peer, options: &[&str]) -> Command {
    let mut command = holesync();
    command.arg(verb).args(["-e", peer.rsh(), "--remote-path", PROGRAM]).args(options);
    command
}

/// The pages in which two files differ, and what `diff` calls that.
fn differing_pages(a: &Path, b: &Path) -> Vec<(usize, &'static str)> {
    let (a, b) = (fs::read(a).expect("read"), fs::read(b).expect("read"));
    let common = a.len().min(b.len());
    let is_zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    let pages = (0..common.div_ceil(PAGE)).map(|page| page * PAGE..common.min((page + 1) * PAGE));
    let differing = pages.filter(|page| a[page.clone()] != b[page.clone()]);
    let kind = |page: &std::ops::Range<usize>| match (is_zero(&a[page.clone()]), is_zero(&b[page.clone()])) {
        (false, true) => "only_a",
        (true, false) => "only_b",
        _ => "changed",
    };
    let mut found: Vec<_> = differing.map(|page| (page.start, kind(&page))).collect();
    let kind = if a.len() > b.len() { "beyond_b" } else { "beyond_a" };
    found.extend(starts(common, a.len().max(b.len())).map(|at| (at, kind)));
    found
}

/// Where a range begins, and the pages in it do.
fn starts(from: usize, to: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(from), |at| Some((at / PAGE + 1) * PAGE)).take_while(move |&at| at < to)
}

/// The same, as `--json` tells it.
#[track_caller]
fn told_pages(outcome: &Outcome) -> Vec<(usize, &'static str)> {
    let mut lines = json_lines(outcome);
    let summary = lines.pop().expect("a summary");
    assert_eq!((&summary["event"], summary["equal"].as_bool()), (&"summary".into(), Some(lines.is_empty())));
    assert_eq!(outcome.code, i32::from(!lines.is_empty()), "{outcome}");
    let number = |line: &Value, key: &str| line[key].as_u64().expect("a number") as usize;
    assert_eq!(
        lines.iter().map(|line| number(line, "length")).sum::<usize>(),
        number(&summary, "differing_bytes")
    );
    let kinds = ["changed", "only_a", "only_b", "beyond_a", "beyond_b"];
    let pages = lines.iter().flat_map(|line| {
        let kind = kinds.into_iter().find(|kind| line["kind"] == *kind).expect("a kind");
        let start = number(line, "offset");
        starts(start, start + number(line, "length")).map(move |at| (at, kind))
    });
    pages.collect()
}

#[test]
fn what_differs_is_told_page_by_page_wherever_the_images_are() {
    let dir = lab::scratch();
    let peer = Peer::pipe(dir.path());
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let mut rng = Rng(16);
    for (nth, layout) in layouts(&mut rng).into_iter().enumerate() {
        layout.write(&a);
        let other = mutate(layout.clone(), Change::ALL[nth % Change::ALL.len()], &mut rng);
        let other = if nth % 3 == 0 { mutate(other, Change::Touch, &mut rng) } else { other };
        other.write(&b);
        let expected = differing_pages(&a, &b);
        let here = run(diff(&["--json"]).arg(&a).arg(&b));
        assert_eq!(told_pages(&here), expected, "{}", layout.name);
        let far = run(remote("diff", &peer, &["--json"]).arg(&a).arg(at(&b)));
        assert_eq!(told_pages(&far), expected, "{}", layout.name);
        let back = run(remote("diff", &peer, &["--json", "-B", "4K"]).arg(at(&a)).arg(&b));
        assert_eq!(told_pages(&back), expected, "{}", layout.name);
        let text = run(diff(&[]).arg(&a).arg(&b));
        assert_eq!(text.stdout.contains("are equal"), expected.is_empty(), "{text}");
    }
}

#[test]
fn two_images_on_hosts_are_compared_and_no_data_travels() {
    let dir = lab::scratch();
    let wire = dir.path().join("wire");
    let peer = Peer::script(dir.path(), &format!("agent | tee -a '{}'", wire.display()));
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let layout = Layout::dense("dense", 24 << 20, &mut Rng(3));
    layout.write(&a);
    layout.write(&b);
    let file = fs::File::options().write(true).open(&b).expect("open");
    // Enough of them that questions are asked by the hundred.
    (0..300).for_each(|block| file.write_all_at(b"x", block * 65536 + 5).expect("write"));
    let outcome = run(remote("diff", &peer, &["--json"]).arg(at(&a)).arg(at(&b)));
    assert_eq!(told_pages(&outcome), differing_pages(&a, &b));
    let told = fs::metadata(&wire).expect("what was told").len();
    assert!(told < 256 << 10, "{told}");
}

#[test]
fn exit_codes_are_those_of_cmp() {
    let dir = lab::scratch();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&a, b"1").and_then(|()| fs::write(&b, b"2")).expect("write");
    run(diff(&["-q"]).arg(&a).arg(&a)).code(0);
    assert_eq!(run(diff(&["-q"]).arg(&a).arg(&b)).code(1).stdout, "");
    run(diff(&[]).arg(&a)).code(2).says(&["required"]);
    run(diff(&["--no-such-option"]).arg(&a).arg(&b)).code(2);
    run(diff(&["-B", "5"]).arg(&a).arg(&b)).code(2);
    run(diff(&[]).arg("rsync://host/x").arg(&b)).code(2).says(&["daemon", "(code 2)"]);
    run(diff(&[]).arg(&a).arg(dir.path())).code(23).says(&["is a directory"]);
    let missing = run(diff(&["--json"]).arg(&a).arg(dir.path().join("none"))).code(23);
    let lines = json_lines(&missing);
    assert_eq!((&lines[0]["event"], &lines[0]["code"], lines.len()), (&"error".into(), &23.into(), 1));
    let peer = Peer::pipe(dir.path());
    let missing = run(remote("diff", &peer, &[]).arg(&a).arg(at(dir.path().join("none"))));
    missing.code(23).says(&["peer", "none"]);
    // A shell answers, and is not asked.
    let outcome = run(diff(&["-e", peer.rsh()]).arg(&a).arg(at(&b)).env("PATH", "/usr/bin:/bin"));
    outcome.code(5).says(&["there is no holesync", "--remote-path"]);
}

#[test]
fn a_map_of_an_image_on_a_host_is_that_of_the_image() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let path = dir.path().join("image");
    layouts(&mut Rng(8)).into_iter().find(|layout| layout.name == "mixed").expect("a layout").write(&path);
    fs::File::open(&path).and_then(|file| file.sync_all()).expect("sync");
    for options in [&[][..], &["--hashes"], &["--json"], &["--hashes", "-B", "16K"]] {
        let here = run(holesync().arg("map").args(options).arg(&path)).ok();
        let there = run(remote("map", &peer, options).arg(at(&path))).ok();
        assert_eq!(there.stdout, here.stdout, "{options:?}");
    }
}

#[test]
fn a_key_that_only_writes_learns_nothing() {
    let dir = lab::scratch();
    fs::write(dir.path().join("image"), b"secret").expect("write");
    let bound = |access: &str| {
        let body = format!("{PROGRAM} agent --root {} {access}", dir.path().display());
        Peer::script(dir.path(), &body)
    };
    run(remote("map", &bound("--write-only"), &[]).arg(at("image"))).code(5).says(&["only takes"]);
    run(remote("map", &bound("--read-only"), &[]).arg(at("../etc/passwd"))).code(23);
    run(remote("map", &bound("--read-only"), &[]).arg(at("image"))).ok().says(&[]);
}

#[test]
fn pictures_are_put_in_place_whole() {
    let dir = lab::scratch();
    let (a, b, svg) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("p.svg"));
    Layout::hole("a", 8 << 20).data(0..100_000, &mut Rng(1)).write(&a);
    Layout::hole("b", 9 << 20).data(0..100_000, &mut Rng(2)).write(&b);
    fs::write(&svg, "an older picture").expect("write");
    let drawn =
        run(diff(&["--chart", "--svg"]).arg(&svg).arg(&a).arg(&b).env("LC_ALL", "C").env("NO_COLOR", "1"));
    let drawn = drawn.code(1);
    let picture = fs::read_to_string(&svg).expect("a picture");
    assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"), "{picture}");
    for part in ["differ, in 2 ranges", "8 MiB", "class=\"differs\"", "class=\"data", "hole or zeros"] {
        assert!(picture.contains(part), "{part}: {picture}");
    }
    assert!(drawn.stdout.is_ascii() && drawn.stdout.contains("differs "), "{drawn}");
    run(holesync().args(["map", "--svg"]).arg(&svg).arg(&a)).ok();
    assert!(fs::read_to_string(&svg).expect("a picture").contains("of data in 8.00 MiB"));
    let nowhere = dir.path().join("none/p.svg");
    run(diff(&["--svg"]).arg(&nowhere).arg(&a).arg(&b)).code(23).says(&["p.svg", "No such file"]);
    let names = fs::read_dir(dir.path()).expect("list").map(|entry| entry.expect("an entry").file_name());
    assert_eq!(names.filter(|name| name.to_string_lossy().contains("holesync")).count(), 0);
}
