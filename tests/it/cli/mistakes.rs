//! Typical mistakes on the command line, as a table: what is typed, the exit code, what is
//! said. None of them changes anything at the destination.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::lab;
use crate::common::peer::Peer;
use crate::common::process::{holesync, start_on};

/// What is typed in a directory that has `img`, an image; `old`, another one; `dir` with files
/// in it, of which `none` is empty; `a:b` and `map`, images with odd names; `img.gz`; and `rec`, a stream of records.
const HERE: &[(&str, i32, &str)] = &[
    // Options and commands in the wrong order, and commands that are none.
    (
        "-v map img",
        1,
        "map is a command, and its options go behind it: holesync map ...; for a file of that name write ./map",
    ),
    ("-v map img --svg x.svg", 1, "its options go behind it: holesync map ..."),
    ("-P digest img", 1, "holesync digest ..."),
    ("--json send img", 1, "for a file of that name write ./send"),
    ("-P diff img old", 1, "holesync diff ..."),
    ("map img old", 1, "unexpected argument 'old'"),
    // What would do nothing.
    ("map img -B8K", 1, "-B is the unit of hashes, and none are made: say --hashes or -o FILE.map"),
    ("map img --bmap -B8K", 1, "-B is the unit of hashes, and none are made"),
    ("map img --bmap --agent=push", 1, "--bmap reads one that is here"),
    (
        "cp img old",
        1,
        "there is no command cp, and no file of that name: write SRC and DEST alone, holesync SRC DEST",
    ),
    ("push img peer:old", 1, "there is no command push"),
    ("if=img of=old bs=4M", 1, "if=img is a word of dd: write img alone, as in holesync SRC DEST"),
    // Hosts that read as files, and files that read as hosts.
    (
        "img user@host",
        1,
        "user@host has no colon, and would be a file here: write user@host: for a path on that host, or ./user@host for the \
         file",
    ),
    ("img user@host/dir/img", 1, "write user@host:/dir/img for a path on that host"),
    ("img 10.0.0.1", 1, "write 10.0.0.1: for a path on that host, or ./10.0.0.1 for the file"),
    ("user@host/img old", 1, "write user@host:/img for a path on that host"),
    (
        "img 'host;/dir/img'",
        1,
        "host;/dir/img has a semicolon where host and path have a colon: write host:/dir/img",
    ),
    (
        "a:b old",
        1,
        "a:b is a file here, and reads as the path b on the host a: write ./a:b for the file, [a]:b for the host",
    ),
    (r"img 'C:\img'", 1, "is a path of Windows: write /dir/file, or host:/dir/file for ssh"),
    (r"img 'D:/img'", 1, "a host of that name is [X]:/path"),
    (r"'\\server\img' old", 1, "is a path of Windows"),
    ("ftp://host/img old", 1, "pipe it in, with curl -fL URL | holesync - DEST"),
    ("img https://host/img", 1, "holesync publish IMG STORE/NAME puts it there"),
    ("img sftp://host/img", 1, "is reached over ssh: write ssh://[user@]host[:port]/path"),
    ("img file:///old", 1, "write its path alone, without file://"),
    ("host::module/img old", 1, "names an rsync daemon, which holesync does not speak to"),
    // Options of ssh.
    ("img old -o Port=22", 1, "Port=22 looks like an option of ssh: write -e 'ssh -o Port=22'"),
    ("-p 2222 img peer:old", 1, "if it is the port of ssh, write ssh://host:2222/path, or -e 'ssh -p 2222'"),
    // SRC and DEST that are missing, or too many.
    ("--verify img", 1, "there is no DEST: SRC alone is listed"),
    ("- < img", 1, "- as SRC is one image from stdin, and there is no DEST"),
    ("- dir old < img", 1, "leave the other sources out; a file of that name is ./-"),
    ("- dir < img", 23, "what comes has no name, so name the file or device itself"),
    ("- old < dir/none", 23, "nothing at all came from it, and DEST was left alone"),
    ("img -", 1, "DEST cannot be stdout: holesync send IMG | holesync recv - writes an image there"),
    (
        "img one:old two:old",
        1,
        "the last operand alone is DEST; several hosts are named with --to or --hosts",
    ),
    ("nosuch old", 23, "cannot read nosuch: No such file or directory"),
    (
        "img old/",
        3,
        "old/ is no directory, which a slash at the end asks for: leave the slash out to name a file",
    ),
    ("dir old", 3, "old is not a directory, and more than one file is to go there"),
    ("img old/img", 3, "cannot open the directory old: Not a directory (code 3)"),
    ("img nodir/img", 3, "cannot open the directory nodir: No such file or directory; create it first"),
    // Devices.
    (
        "img /dev/holesync-none",
        23,
        "/dev/holesync-none: there is no such device, and a file in its place would be of no use: set the device up first \
         (lsblk shows which there are)",
    ),
    ("img /dev/holesync-none/x", 3, "lsblk shows which devices there are"),
    // Streams of records and images.
    ("recv old < img", 12, "no stream of records, as holesync send writes it: a plain image is sent with"),
    ("recv old < img.gz", 12, "a packed one when it is unpacked"),
];

/// What means nothing for an image in a store, each option alone, and what is said of it.
const OF_A_STORE: &[(&str, &str)] = &[
    (
        "--exclude=x --include=x -f-_x -F -C --files-from=x --max-size=1 --min-size=1 -u --existing --ignore-existing \
         --append --delete --delete-excluded --ignore-missing-args --delete-missing-args -R --remove-source-files \
         --through=cat",
        "an image from a store is one file: leave out what picks, places or removes files, and --through",
    ),
    (
        "-essh --remote-path=x --agent-program=x --sudo -4 -6 --cipher=ssh --agent=auto",
        "no ssh takes part: leave out what names, reaches or runs something on hosts",
    ),
    (
        "-p -o -g -A -X -U -E --chmod=F600 --chown=x --usermap=0:1 --groupmap=0:1 --numeric-ids --super --no-super",
        "a store has the time of an image, and neither its permissions nor its owner",
    ),
    (
        "-B8K --leaf-size=8K -z --compress=none --compress-level=3",
        "is published with a unit of comparison, and packed",
    ),
    ("--delay-updates --save-map=x.map", "leave --delay-updates and --save-map out"),
    ("--since=img --open-noatime", "the image is read where it is published"),
    ("--chunks=dir", "--chunks is for an index of casync"),
    ("--list-only", "holesync versions STORE/NAME"),
    ("--relay --forward-agent", "are for a SRC on one host and a DEST on another"),
    ("--together --failed=x", "for several hosts"),
];

/// The same of an index of casync.
const OF_AN_INDEX: &[(&str, &str)] = &[
    ("--size-only -@1", "an index of casync has no time"),
    (
        "-b --backup-dir=x -y --basis=old --compare-dest=x --copy-dest=x --link-dest=x -Tx --partial-dir=x",
        "what an index of casync names is laid over DEST",
    ),
];

/// The same with a host; `D` is the directory there.
const THERE: &[(&str, i32, &str)] = &[
    (
        "img peer:D/old/",
        3,
        "is no directory, which a slash at the end asks for: leave the slash out to name a file",
    ),
    ("img peer:D/nodir/img", 3, "peer: cannot open the directory"),
    ("img peer:/dev/holesync-none", 23, "peer: /dev/holesync-none: there is no such device"),
    ("peer:D/nosuch old", 23, "peer: cannot read"),
    ("dir peer:D/old", 3, "is not a directory, and more than one file is to go there"),
    ("--agent=none img peer:/dev/holesync-none", 23, "lsblk shows which there are"),
];

fn make(dir: &Path) {
    let image: Vec<u8> = (0..70_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(dir.join("img"), &image).expect("write");
    for name in ["a:b", "map", "old"] {
        fs::write(dir.join(name), &image[..8192]).expect("write");
    }
    fs::write(dir.join("img.gz"), b"\x1f\x8b\x08\0packed").expect("write");
    fs::create_dir(dir.join("dir")).expect("create a directory");
    fs::write(dir.join("dir/file"), "kept").expect("write");
    fs::write(dir.join("dir/none"), "").expect("write");
    let records = File::create(dir.join("rec")).expect("create");
    let sent = Command::new(crate::common::process::PROGRAM)
        .arg("send")
        .arg(dir.join("img"))
        .stdout(records)
        .status();
    assert!(sent.expect("run").success());
}

fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = walkdir::WalkDir::new(dir).into_iter().map(|entry| entry.expect("walk").into_path());
    files.map(|path| (path.clone(), fs::read(&path).unwrap_or_default())).collect()
}

/// Types each line, and demands its exit code, what it says, and that everything is as it was.
#[track_caller]
fn check(dir: &Path, table: &[(&str, i32, &str)], program: impl Fn() -> Command) {
    let before = tree(dir);
    for (line, code, says) in table {
        let (line, input) = line.split_once(" < ").map_or((*line, None), |(line, input)| (line, Some(input)));
        let words = shlex::split(line).expect("words of a shell");
        let words = words.iter().map(|word| word.replace(":D/", &format!(":{}/", dir.display())));
        let stdin = input.map_or(Stdio::null(), |name| File::open(dir.join(name)).expect("open").into());
        let mut command = program();
        start_on(command.args(words).current_dir(dir), stdin).finish().code(*code).says(&[says]);
        assert_eq!(tree(dir), before, "{line} changes nothing");
    }
}

#[test]
fn what_was_probably_meant_is_said_and_nothing_changes() {
    let dir = lab::scratch();
    make(dir.path());
    check(dir.path(), HERE, holesync);
}

#[test]
fn the_same_with_a_host() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    make(dir.path());
    check(dir.path(), THERE, || {
        let mut command = holesync();
        command.args(["-e", peer.rsh()]);
        command
    });
}

#[test]
fn what_means_nothing_for_an_image_in_a_store_is_refused() {
    let dir = lab::scratch();
    make(dir.path());
    // Nobody is asked.
    let (image, index) = ("https://store.invalid/disk", "https://store.invalid/x.caibx");
    let of_both = OF_A_STORE.iter().filter(|(options, _)| !options.starts_with("--chunks"));
    let rows = OF_A_STORE.iter().map(|row| (image, row)).chain(of_both.map(|row| (index, row)));
    let rows = rows.chain(OF_AN_INDEX.iter().map(|row| (index, row)));
    let here = ["--ca=x", "--bwlimit=9"].map(|option| ("file:///store/disk", (option, "in a directory")));
    let rows = rows.map(|(source, row)| (source, *row)).chain(here);
    for (source, (options, says)) in rows {
        for option in options.split_whitespace() {
            // A rule has a space in it.
            let line = format!("'{}' {source} old", option.replace('_', " "));
            check(dir.path(), &[(&line, 1, says)], holesync);
        }
    }
    let line = format!("--to=h:x {image}");
    check(dir.path(), &[(&line, 1, "no ssh takes part")], holesync);
    for option in ["--root=ROOT", "--trust=img", "--ca=img", "--chunks=dir"] {
        let option = option.replace("ROOT", &"0".repeat(64));
        for operands in ["img old", "peer:img old", "img peer:old", "- old < img"] {
            check(dir.path(), &[(&format!("{option} {operands}"), 1, "are for a SRC in a store")], holesync);
        }
    }
}
