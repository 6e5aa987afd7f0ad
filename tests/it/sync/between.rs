//! From a host to another one: what each says to the other goes through here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::check::{assert_holes_kept, assert_no_leftovers, assert_same, leftovers, same};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng, layouts};
use crate::common::peer::{Peer, at};
use crate::common::process::{Outcome, PROGRAM, run, signal_agents, start, wait_until};
use crate::common::redeploy::{every, set_day};
use crate::common::tree::{Way, assert_trees, change, grow, mkdir, slash};

const BLOCK: usize = 64 << 10;
/// Far beyond what an end takes to stop.
const LIMIT: Duration = Duration::from_secs(20);

/// In the place of ssh: the program of one host has a name of its own.
const HOSTS: &str = r#"
case $host in
    shell) PATH=/usr/sbin:/usr/bin:/sbin:/bin agent ;;
    dies) kill -9 $$ ;;
    gone) echo "no route to it" >&2; exit 255 ;;
    stops) command=$(printf '%s\n' "$command" | sed "s#[^ ]*holesync agent#$STOPS agent#"); agent ;;
    *) agent ;;
esac
"#;

fn on(host: &str, path: &Path) -> String {
    format!("{host}:{}", path.display())
}

/// What is told of each entry.
fn entries(outcome: &Outcome) -> Vec<Value> {
    let lines = outcome.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let entries =
        lines.filter(|line| line["event"] == "entry" || line["event"] == "removed").map(|mut line| {
            let fields = line.as_object_mut().expect("an object");
            fields.retain(|name, _| !matches!(name.as_str(), "host" | "direction"));
            line
        });
    let mut entries: Vec<Value> = entries.collect();
    entries.sort_by_key(ToString::to_string);
    entries
}

#[test]
fn images_arrive_as_from_here() {
    for (fs, is_ssh) in [(Fs::Ext4, true), (Fs::Tmpfs, false)] {
        let Some(dir) = lab::dir(fs) else { continue };
        let Some(peer) = (if is_ssh { Peer::sshd() } else { Some(Peer::pipe(dir.path())) }) else { return };
        let rng = &mut Rng(61);
        for layout in layouts(rng) {
            let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
            let sync = |flags: &[&str]| {
                let outcome = run(peer.holesync().arg("--json").args(flags).arg(at(&from)).arg(at(&to))).ok();
                assert_same(&from, &to);
                assert_no_leftovers(dir.path());
                outcome
            };
            layout.write(&from);
            set_day(&from, 1);
            let first = sync(&[]);
            assert_eq!(first.count("files_sent"), 1, "{first}");
            assert_holes_kept(&from, &to);
            assert_eq!(sync(&[]).count("hashed_bytes"), 0, "the quick check");
            every(3, &layout, rng).write(&from);
            set_day(&from, 2);
            let foretold = run(peer.holesync().args(["--json", "-n"]).arg(at(&from)).arg(at(&to))).ok();
            let again = sync(&[]);
            for field in ["sent_data_bytes", "files_sent", "written_bytes", "punched_bytes"] {
                assert_eq!(again.count(field), foretold.count(field), "{fs:?} {} {field}", layout.name);
            }
            if !is_ssh {
                for flags in [&["-I", "--verify"][..], &["-W", "-I", "-z"], &["-I", "--inplace"], &["-c"]] {
                    sync(flags);
                }
            }
            [&from, &to].into_iter().for_each(|path| fs::remove_file(path).expect("remove"));
        }
    }
}

/// The same is told of it as of what is sent from here.
#[test]
fn trees_arrive_and_are_told_of_as_from_here() {
    if !lab::is_root() {
        return;
    }
    let dir = lab::scratch();
    let peer = Peer::pipe(dir.path());
    let from = mkdir(dir.path().join("from"));
    let [to, other] = ["to", "other"].map(|name| dir.path().join(name));
    let rng = &mut Rng(62);
    grow(&from, rng);
    let flags = ["-aHAX", "--delete", "--json"];
    for round in 0..3 {
        let between = run(peer.holesync().args(flags).arg(at(slash(&from))).arg(at(&to)));
        let from_here = slash(&from);
        let push =
            run(&mut Way::Push.command(Some(&peer), &flags, &[from_here.as_os_str()], other.as_os_str()));
        assert_eq!(between.code, push.code, "{round}: {between}\n{push}");
        assert_eq!(entries(&between), entries(&push), "{round}");
        for field in ["files_total", "files_sent", "files_failed", "removed", "apparent_bytes"] {
            assert_eq!(between.summary()[field], push.summary()[field], "{round} {field}");
        }
        assert_trees(&from, &to, true, "between hosts");
        if round == 0 {
            change(&from, rng);
        }
    }
}

/// Each host that it goes to has its own connection to the one that has it.
#[test]
fn one_host_sends_to_several() {
    let pair = Pair::new();
    let places = ["b", "c", "d"].map(|host| (host, pair.dir.path().join(host)));
    let peer = Peer::script(pair.dir.path(), HOSTS);
    let mut command = peer.holesync();
    command.arg(on("a", &pair.from)).args(["--json", "--to=gone:/x"]);
    let outcome = run(command.args(places.iter().map(|(host, path)| format!("--to={}", on(host, path)))));
    let outcome = outcome.code(23);
    assert!(outcome.stdout.contains("ssh to gone failed"), "{outcome}");
    places.iter().for_each(|(_, path)| assert_same(&pair.from, path));
    for host in ["b", "c", "d"] {
        let line = format!("\"event\":\"host\",\"host\":\"{host}\"");
        assert!(
            outcome.stdout.lines().any(|ended| ended.contains(&line) && ended.contains("\"code\":0")),
            "{outcome}"
        );
    }
}

struct Pair {
    dir: TempDir,
    from: PathBuf,
    to: PathBuf,
    /// A program that runs on the host `stops` alone.
    stops: PathBuf,
}

impl Pair {
    fn new() -> Pair {
        let dir = lab::scratch();
        let [from, to, stops] = ["from", "to", "stopping-holesync"].map(|name| dir.path().join(name));
        Layout::dense("old", 40 * BLOCK, &mut Rng(63)).write(&to);
        Layout::dense("new", 4000 * BLOCK, &mut Rng(64)).write(&from);
        std::os::unix::fs::symlink(PROGRAM, &stops).expect("link to the program");
        Pair { dir, from, to, stops }
    }

    fn command(&self, from: &str, to: &str) -> Command {
        let peer = Peer::script(self.dir.path(), HOSTS);
        let mut command = peer.holesync();
        command.env("STOPS", &self.stops).args(["--retries=0", "--bwlimit=20m"]);
        command.args([on(from, &self.from), on(to, &self.to)]);
        command
    }
}

#[test]
fn an_end_that_dies_ends_the_other_and_the_old_image_stays() {
    for (from, to) in [("stops", "b"), ("a", "stops")] {
        let pair = Pair::new();
        let old = fs::read(&pair.to).expect("read");
        let running = start(&mut pair.command(from, to));
        assert!(wait_until(LIMIT, || !leftovers(pair.dir.path()).is_empty()), "data come");
        signal_agents(&pair.stops, Signal::SIGKILL);
        let outcome = running.finish_within(LIMIT);
        assert!([12, 30].contains(&outcome.code), "{outcome}");
        outcome.says(&["stops"]);
        assert!(fs::read(&pair.to).expect("read") == old, "the old image is whole");
        // The next run goes on from there.
        run(pair.command("a", "b").arg("--bwlimit=0")).ok();
        assert!(same(&pair.from, &pair.to));
        assert_no_leftovers(pair.dir.path());
    }
}

#[test]
fn what_a_host_lacks_is_said_of_it() {
    let pair = Pair::new();
    for (from, to, code, says) in [
        ("shell", "b", 1, "a transfer between two hosts needs a holesync on "),
        ("a", "shell", 1, "a transfer between two hosts needs a holesync on "),
        ("gone", "b", 255, "ssh to gone failed"),
        ("dies", "b", 5, "be run on dies, and does its login shell keep quiet? See --remote-path (code 5)"),
        ("a", "gone", 255, "ssh to gone failed"),
    ] {
        let mut command = pair.command(from, to);
        if [from, to].contains(&"shell") {
            command.args(["--agent=auto", "--remote-path=holesync-is-not-there"]);
        }
        run(&mut command).code(code).says(&[says]);
    }
    fs::remove_file(&pair.from).expect("remove");
    run(&mut pair.command("a", "b")).code(23).says(&["a: ", "from", "No such file or directory"]);
    assert_eq!(fs::metadata(&pair.to).expect("it is there").len() as usize, 40 * BLOCK);
    // Both names may be those of one file.
    let only = pair.dir.path().join("only");
    fs::write(&only, "the only copy").expect("write");
    let mut command = Peer::script(pair.dir.path(), HOSTS).holesync();
    command.args(["--remove-source-files", "-I", &on("a", &only), &on("b", &only)]);
    run(&mut command).code(1).says(&["--remove-source-files is not for a transfer between two hosts"]);
    assert_eq!(fs::read(&only).expect("it is there"), b"the only copy");
    let map = pair.dir.path().join("a.map");
    let mut command = pair.command("a", "b");
    run(command.arg("--save-map").arg(&map)).code(1).says(&["--save-map wants one end on this machine"]);
}
