//! What is said where something fails here, on a host with a holesync, or on the way to it: who,
//! which path, what failed in words of the job; the last line names what was lost, with the code.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, at};
use crate::common::process::{PROGRAM, holesync, run};
use crate::common::tree::{mkdir, set_mode, slash, small};

const MIB: usize = 1 << 20;

/// What is at the destination, its name, the exit code, and what is said of it.
type Row<'a> = (&'a str, &'a str, i32, &'a [&'a str]);

const ROWS: [Row; 5] = [
    (
        "a directory is missing",
        "none/img",
        3,
        &["cannot open the directory {}/none: No such file or directory; create it first"],
    ),
    ("its way is a file", "file/img", 3, &["cannot open the directory {}/file: Not a directory"]),
    ("a slash behind a file", "file/", 3, &["{}/file/ is no directory, which a slash at the end asks for"]),
    ("a fifo", "fifo", 23, &["{}/fifo", "{host}{}/fifo could not be transferred"]),
    ("a directory that is full", "full", 23, &["{}/full/img"]),
];

/// A destination at which all of these are.
fn place(dir: &Path) -> PathBuf {
    let to = mkdir(dir.join("to"));
    small(to.join("file"), "x");
    nix::unistd::mkfifo(&to.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    small(mkdir(to.join("full/img")).join("inside"), "x");
    to
}

#[test]
fn what_fails_is_told_by_host_and_path_in_words_of_the_job() {
    let dir = lab::scratch();
    let img = small(dir.path().join("img"), "new");
    let to = place(dir.path());
    let peer = Peer::pipe(dir.path());
    for (what, name, code, says) in ROWS {
        for is_remote in [false, true] {
            let target = to.join(name);
            let mut command = holesync();
            command.args(["--remote-path", PROGRAM, "-e", peer.rsh()]);
            // A slash at the end is lost on the way through a path.
            let target = if name.ends_with('/') { slash(&target) } else { target.into_os_string() };
            command.arg(&img).arg(if is_remote { at(&target) } else { target });
            let host = if is_remote { "peer:" } else { "" };
            let says = says
                .iter()
                .map(|text| text.replace("{}", to.to_str().expect("UTF-8")).replace("{host}", host));
            let says: Vec<String> = says.collect();
            let outcome = run(&mut command).code(code);
            eprintln!("{what}: {}", outcome.stderr);
            let outcome = outcome.says(&says.iter().map(String::as_str).collect::<Vec<_>>());
            let last = outcome.stderr.lines().last().unwrap_or_default();
            assert!(last.starts_with("holesync: ") && last.ends_with(&format!("(code {code})")), "{outcome}");
            assert!(
                !outcome.stderr.contains("os error") && !outcome.stderr.contains("peer: peer"),
                "{outcome}"
            );
            assert!(!is_remote || outcome.stderr.lines().all(|line| line.contains("peer")), "{outcome}");
        }
    }
}

#[test]
fn of_several_files_that_fail_the_first_is_named_again() {
    let dir = lab::scratch();
    let (from, to) = (mkdir(dir.path().join("from")), mkdir(dir.path().join("to")));
    for name in ["a", "b", "c"] {
        small(from.join(name), name);
    }
    for name in ["a", "b"] {
        small(mkdir(to.join(name)).join("inside"), "x");
    }
    let outcome = run(holesync().arg("-a").args([slash(&from), slash(&to)])).code(23);
    // They are copied side by side.
    let named =
        outcome.stderr.lines().next().and_then(|line| line.strip_prefix("holesync: ")?.split_once(": "));
    let (named, _) = named.unwrap_or_else(|| panic!("no failure is named in {outcome}"));
    let first =
        format!("2 of the files could not be transferred (see above), the first is {named} (code 23)");
    outcome.says(&[&format!("{}/a: ", to.display()), &format!("{}/b: ", to.display()), &first]);
    assert!(to.join("c").exists());
}

#[test]
fn a_disk_that_is_too_small_is_told_before_and_the_old_image_stays() {
    let Some(small) = lab::small() else { return };
    let dir = lab::scratch();
    let image = dir.path().join("image");
    Layout::dense("image", 90 * MIB, &mut Rng(1)).write(&image);
    let peer = Peer::pipe(dir.path());
    for to in [small.dir.path().join("to").into_os_string(), at(small.dir.path().join("to"))] {
        let outcome =
            run(holesync().args(["--remote-path", PROGRAM, "-e", peer.rsh()]).arg(&image).arg(to)).code(11);
        let outcome = outcome.says(&[
            "/to will need up to 90.00 MiB, and ",
            "MiB are free there",
            "no space left for ",
        ]);
        let warned = outcome.stderr.find("will need up to").expect("a warning");
        assert!(warned < outcome.stderr.find("no space left for").expect("an error"), "{outcome}");
        outcome.says(&[
            " came and are kept, ",
            "are free now; make room and run the same command again",
            "(code 11)",
        ]);
        for entry in std::fs::read_dir(small.dir.path()).expect("list").flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".to.holesync") {
                std::fs::remove_file(entry.path()).expect("remove");
            }
        }
    }
}

#[test]
fn what_ssh_says_is_said_once() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let img = small(dir.path().join("img"), "new");
    set_mode(&img, 0o644);
    for (options, host, says) in [
        ("", "no-such-host.invalid", "Could not resolve hostname"),
        ("-p 1", "peer", "Connection refused"),
        (
            "-o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes",
            "peer",
            "Host key verification failed.",
        ),
        ("-o PubkeyAuthentication=no", "peer", "Permission denied"),
    ] {
        let rsh = format!("{} {options}", peer.rsh());
        let mut to = OsStr::new(host).to_os_string();
        to.push(":");
        to.push(dir.path().join("never"));
        let outcome = run(holesync().args(["-e", &rsh]).arg(&img).arg(to)).code(255);
        let last = outcome.stderr.lines().last().unwrap_or_default();
        // ssh may take a moment between what it says and its end; then the error has it no more.
        assert!(last.starts_with(&format!("holesync: ssh to {host} failed")), "{outcome}");
        assert_eq!(outcome.stderr.matches(says).count(), 1, "{outcome}");
        assert!(!outcome.stderr.contains("\\#015") && !outcome.stderr.contains('\r'), "{outcome}");
    }
}
