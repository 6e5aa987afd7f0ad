//! One image, several hosts, together: each has it in place, or none; whoever fails, and when.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::check::{allocated, assert_same, leftovers, same};
use crate::common::lab::{self, Fs};
use crate::common::layout::{Layout, Rng};
use crate::common::peer::{Peer, is_prepared};
use crate::common::process::{
    Outcome, PROGRAM, Running, agents, holesync, run, signal_agents, start, wait_until,
};
use crate::common::redeploy::set_day;
use crate::common::tree::set_mode;

const BLOCK: usize = 64 << 10;
/// Far beyond what an end takes.
const LIMIT: Duration = Duration::from_secs(30);

/// In the place of ssh: what a host does follows from its name, and its program has that name.
const HOSTS: &str = r#"
command=$(printf '%s\n' "$command" | sed "s#[^ ]*holesync agent#$PROGRAMS/$host agent#")
case $host in
    gone) echo "no route to it" >&2; exit 255 ;;
    refuses) echo "you may not" >&2; exit 1 ;;
    shell) exec sh ;;
    late) until [ -e "$GATE" ]; do sleep 0.02; done; agent ;;
    latecomer) until [ -e "$GATE" ]; do sleep 0.02; done; exit 1 ;;
    elder) printf '\211hole\377\r\n\005\000\007\000\000\000\000\000'; cat >/dev/null ;;
    dies) dd bs=4096 count=20 2>/dev/null | agent ;;
    *) noted "$PROGRAMS/$host.said" ;;
esac
"#;

/// An image, and hosts that have it on one file system.
struct Farm {
    dir: TempDir,
    far: TempDir,
    image: PathBuf,
    flags: Vec<&'static str>,
    /// How often the image was changed.
    changes: Cell<u64>,
}

impl Farm {
    /// `None`: there is no such file system.
    fn new(fs: Fs, flags: &[&'static str]) -> Option<Farm> {
        let (dir, far) = (lab::scratch(), lab::dir(fs)?);
        let image = dir.path().join("image");
        Layout::dense("image", 60 * BLOCK, &mut Rng(29)).write(&image);
        set_day(&image, 1);
        fs::create_dir(dir.path().join("programs")).expect("mkdir");
        Some(Farm { dir, far, image, flags: flags.to_vec(), changes: Cell::new(0) })
    }

    fn on(&self, host: &str) -> PathBuf {
        self.far.path().join(host)
    }

    /// What runs on a host, and no other.
    fn program(&self, host: &str) -> PathBuf {
        self.dir.path().join("programs").join(host)
    }

    /// What a host that is none of those with a name of their own has said.
    fn said_by(&self, host: &str) -> PathBuf {
        self.program(host).with_extension("said")
    }

    fn gate(&self) -> PathBuf {
        self.dir.path().join("gate")
    }

    fn command(&self, hosts: &[&str]) -> Command {
        let peer = Peer::script(self.dir.path(), HOSTS);
        let mut command = holesync();
        command.env("PROGRAMS", self.dir.path().join("programs")).env("GATE", self.gate());
        command.env("XDG_STATE_HOME", self.dir.path().join("state"));
        command.args(["-e", peer.rsh(), "--remote-path", PROGRAM, "--agent=require", "--json"]);
        for host in hosts {
            // One that is there is used by another test's process, if it is written.
            let _ = std::os::unix::fs::symlink(PROGRAM, self.program(host));
            // What it said in a run before.
            let _ = fs::remove_file(self.said_by(host));
            let mut to = OsString::from(format!("--to={host}:"));
            to.push(self.on(host));
            command.arg(to);
        }
        command.args(&self.flags).arg(&self.image);
        command
    }

    fn together(&self, hosts: &[&str]) -> Command {
        let mut command = self.command(hosts);
        command.arg("--together");
        command
    }

    /// Another image in the place of this one, in another state each time. What it was.
    fn change(&self) -> PathBuf {
        use std::os::unix::fs::FileExt;
        let nth = self.changes.get() + 1;
        self.changes.set(nth);
        let (old, mut rng) = (self.dir.path().join("old"), Rng(nth));
        fs::copy(&self.image, &old).expect("copy");
        let file = fs::File::options().write(true).open(&self.image).expect("open");
        for _ in 0..10 {
            let at = rng.below(60 * BLOCK - 5000) as u64;
            file.write_all_at(&[nth as u8; 5000], at).expect("write");
        }
        set_day(&self.image, nth + 1);
        old
    }

    #[track_caller]
    fn assert_have(&self, image: &Path, hosts: &[&str]) {
        hosts.iter().for_each(|host| assert_same(image, &self.on(host)));
    }

    /// Nothing is left of any run.
    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(leftovers(self.far.path()), Vec::<String>::new());
        assert_eq!(self.decisions(), 0);
    }

    fn decisions(&self) -> usize {
        fs::read_dir(self.dir.path().join("state/holesync/together")).map_or(0, Iterator::count)
    }

    fn is_decided(&self) -> bool {
        let listed = fs::read_dir(self.dir.path().join("state/holesync/together"));
        let mut listed = listed.into_iter().flatten();
        listed.any(|entry| entry.expect("list").path().extension().is_some_and(|name| name == "decision"))
    }

    fn recover(&self) -> Outcome {
        run(holesync().arg("recover").arg(self.far.path())).ok()
    }

    fn is_marked(&self, host: &str) -> bool {
        self.far.path().join(format!(".{host}.holesync.prepared")).exists()
    }

    /// Until a host waits, as far as it tells.
    #[track_caller]
    fn await_mark(&self, host: &str, running: &Running) {
        let is_there = || self.is_marked(host) || running.has_ended();
        assert!(wait_until(LIMIT, is_there) && !running.has_ended(), "{host} was never prepared");
    }

    /// The same, and until it has told.
    #[track_caller]
    fn await_all(&self, hosts: &[&str], running: &Running) {
        for host in hosts {
            self.await_mark(host, running);
            let has_told = || is_prepared(&self.said_by(host)) || running.has_ended();
            assert!(wait_until(LIMIT, has_told) && !running.has_ended(), "{host} never told");
        }
    }

    fn open_gate(&self) {
        fs::write(self.gate(), "").expect("write");
    }

    /// A run of which all hosts have heard the decision but `b`, whose program is stopped.
    #[track_caller]
    fn decided_but_for_b(&self) -> Running {
        let running = start(&mut self.together(&["a", "b", "late"]));
        self.await_all(&["a", "b"], &running);
        signal_agents(&self.program("b"), Signal::SIGSTOP);
        self.open_gate();
        let have_it = || ["a", "late"].iter().all(|host| same(&self.image, &self.on(host)));
        assert!(wait_until(LIMIT, have_it), "nobody was told");
        assert_eq!(self.decisions(), 1);
        running
    }

    /// This end dies, and `a` and `b` are left.
    #[track_caller]
    fn kill(&self, running: Running) {
        running.signal(Signal::SIGKILL);
        running.finish().code(-1);
        let is_gone = || ["a", "b"].iter().all(|host| agents(&self.program(host)).is_empty());
        assert!(wait_until(LIMIT, is_gone), "an agent outlives its connection");
    }

    /// A run of which `b` never hears the decision.
    #[track_caller]
    fn lose_b(&self) -> Outcome {
        let running = self.decided_but_for_b();
        signal_agents(&self.program("b"), Signal::SIGKILL);
        let outcome = running.finish().code(23);
        assert_eq!(failed(&outcome), ["b"], "{outcome}");
        outcome
    }
}

/// Bytes of data that went to a host.
#[track_caller]
fn sent(outcome: &Outcome, host: &str) -> u64 {
    let events = outcome.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let mut summaries = events.filter(|event| event["event"] == "summary" && event["host"] == host);
    summaries.next().expect("a summary")["sent_data_bytes"].as_u64().expect("a number")
}

/// The hosts that failed, in the order in which they were told.
fn failed(outcome: &Outcome) -> Vec<String> {
    let events = outcome.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let failed = events.filter(|event| event["event"] == "host" && event["code"] != 0);
    failed.map(|event| event["host"].as_str().expect("a name").to_owned()).collect()
}

/// The ways in which a file takes its place: file system, flags.
const WAYS: [(Fs, &[&str]); 4] = [
    (Fs::Ext4, &[]),
    (Fs::Ext4, &["--commit=atomic", "--verify"]),
    (Fs::Xfs, &[]),
    (Fs::Btrfs, &["--preallocate"]),
];

fn farms() -> impl Iterator<Item = Farm> {
    WAYS.into_iter().filter_map(|(fs, flags)| Farm::new(fs, flags))
}

#[test]
fn all_have_it_and_who_has_it_already_need_not_wait() {
    for farm in farms() {
        let hosts = ["a", "b", "c"];
        run(&mut farm.together(&hosts)).ok();
        farm.assert_have(&farm.image, &hosts);
        farm.assert_clean();
        farm.change();
        run(&mut farm.command(&["b"])).ok();
        let outcome = run(farm.together(&["a", "b", "c", "d"]).args(["--jobs=1"])).ok();
        farm.assert_have(&farm.image, &["a", "b", "c", "d"]);
        farm.assert_clean();
        assert!(sent(&outcome, "a") < 20 * BLOCK as u64 && sent(&outcome, "b") == 0, "{outcome}");
        run(&mut farm.together(&hosts)).ok();
        run(farm.together(&hosts).arg("-c")).ok();
        run(farm.together(&hosts).args(["-n", "-I"])).ok();
        let mut to = OsString::from("--to=a:");
        to.push(farm.on("directory/"));
        run(farm.together(&["b"]).arg(to)).ok();
        assert_same(&farm.image, &farm.on("directory/image"));
        farm.assert_clean();
    }
}

/// Before the decision, at every step.
#[test]
fn where_one_host_fails_no_host_has_it_whatever_comes_next() {
    let Some(small) = lab::small() else { return };
    for (farm, bad) in farms().zip(["gone", "refuses", "dies", "full"].into_iter().cycle()) {
        for bad in [bad, "gone", "refuses", "dies", "full"] {
            let hosts = ["a", "b", "c"];
            run(&mut farm.command(&hosts)).ok();
            let old = farm.change();
            let list = farm.dir.path().join("failed");
            let mut command = farm.together(&["a", "b", "c", "new"]);
            let mut to = OsString::from(format!("--to={bad}:"));
            to.push(if bad == "full" { small.dir.path().join("x") } else { farm.on(bad) });
            if bad == "full" {
                let mut filler = fs::File::create(small.dir.path().join("filler")).expect("create");
                // Until there is no room.
                let _ = std::io::copy(&mut std::io::repeat(1), &mut filler);
            }
            let _ = std::os::unix::fs::symlink(PROGRAM, farm.program(bad));
            let outcome = run(command.arg(to).arg("--failed").arg(&list)).code(23);
            assert_eq!(failed(&outcome)[0], bad, "{outcome}");
            assert_eq!(failed(&outcome).len(), 5, "{outcome}");
            assert_eq!(fs::read_to_string(&list).expect("the list").lines().count(), 5);
            assert!(outcome.stdout.contains("failed before all hosts were prepared"), "{outcome}");
            for _ in 0..2 {
                farm.assert_have(&old, &hosts);
                assert!(!farm.on("new").exists());
                let told = farm.recover();
                assert!(!told.stdout.contains("prepared by run"), "it was decided against: {told}");
            }
            // The next one fails, too.
            run(&mut farm.together(&["a", "b", "gone"])).code(23);
            farm.assert_have(&old, &hosts);
            run(&mut farm.together(&["a", "b", "c", "new"])).ok();
            farm.assert_have(&farm.image, &["a", "b", "c", "new"]);
            fs::remove_file(farm.on("new")).expect("remove");
            farm.assert_clean();
        }
    }
}

#[test]
fn who_dies_when_it_is_prepared_or_is_left_then_waits_for_the_next_run() {
    for farm in farms() {
        let hosts = ["a", "b", "late"];
        farm.open_gate();
        run(&mut farm.command(&hosts)).ok();
        let old = farm.change();
        fs::remove_file(farm.gate()).expect("remove");
        for victim in ["agent", "initiator", "signal"] {
            let running = start(&mut farm.together(&["a", "b", "new", "late"]));
            farm.await_all(&["a", "b", "new"], &running);
            farm.assert_have(&old, &hosts);
            match victim {
                "agent" => {
                    signal_agents(&farm.program("a"), Signal::SIGKILL);
                    assert!(wait_until(LIMIT, || !farm.is_marked("b")), "nobody was told");
                    farm.open_gate();
                    let outcome = running.finish().code(23);
                    assert_eq!(failed(&outcome)[0], "a", "{outcome}");
                    fs::remove_file(farm.gate()).expect("remove");
                }
                "initiator" => {
                    running.signal(Signal::SIGKILL);
                    running.finish().code(-1);
                }
                _ => {
                    running.signal(Signal::SIGTERM);
                    running.finish().code(20);
                }
            }
            let is_gone = || ["a", "b", "new"].iter().all(|host| agents(&farm.program(host)).is_empty());
            assert!(wait_until(LIMIT, is_gone), "an agent outlives its connection");
            let told = farm.recover();
            if victim != "signal" {
                // It cannot know what was decided.
                let lines: Vec<_> = told.stdout.lines().filter(|line| line.contains("/a: ")).collect();
                let [line] = lines[..] else { panic!("{told}") };
                assert!(line.contains("prepared by run") && line.contains("the same command"), "{told}");
                assert!(told.stdout.contains("/new: prepared by run") || victim == "agent", "{told}");
            }
            farm.assert_have(&old, &hosts);
            assert!(!farm.on("new").exists());
            assert_eq!(farm.decisions(), 0);
        }
        // Without --together, or of another run, it is what any interrupted run leaves.
        let outcome = run(&mut farm.command(&["a"])).ok();
        assert!(sent(&outcome, "a") == 0 && !farm.is_marked("a"), "{outcome}");
        farm.open_gate();
        let outcome = run(&mut farm.together(&["a", "b", "new", "late"])).ok();
        farm.assert_have(&farm.image, &["a", "b", "new", "late"]);
        assert_eq!(["a", "b", "new"].map(|host| sent(&outcome, host)), [0; 3], "{outcome}");
        farm.assert_clean();
    }
}

/// Told of the decision, one host hears nothing of it any more.
#[test]
fn who_is_lost_after_the_decision_is_named_and_has_it_with_the_second_run() {
    for (farm, fresh) in farms().flat_map(|farm| [(farm, false)]).chain(farms().map(|farm| (farm, true))) {
        let hosts = ["a", "b", "late"];
        let mut old = None;
        if !fresh {
            farm.open_gate();
            run(&mut farm.command(&hosts)).ok();
            old = Some(farm.change());
            fs::remove_file(farm.gate()).expect("remove");
        }
        let outcome = farm.lose_b();
        assert!(outcome.stdout.contains("has decided to put the image in place"), "{outcome}");
        for _ in 0..2 {
            match &old {
                Some(old) => farm.assert_have(old, &["b"]),
                None => assert!(!farm.on("b").exists()),
            }
            let told = farm.recover();
            assert!(told.stdout.contains("/b: prepared by run"), "{told}");
        }
        // Though another host is gone for good.
        let outcome = run(&mut farm.together(&["a", "b", "gone"])).code(23);
        let failed = failed(&outcome);
        assert!(failed[0] == "gone" && !failed.contains(&"b".into()), "{outcome}");
        assert!(outcome.stdout.contains("which is done now"), "{outcome}");
        assert_eq!(sent(&outcome, "b"), 0, "{outcome}");
        farm.assert_have(&farm.image, &hosts);
        farm.assert_clean();
    }
}

#[test]
fn an_image_that_changed_since_the_decision_is_a_new_run() {
    let Some(farm) = Farm::new(Fs::Ext4, &[]) else { return };
    farm.lose_b();
    let before = fs::read(farm.on("a")).expect("read");
    farm.change();
    let outcome = run(&mut farm.together(&["a", "b", "gone"])).code(23);
    assert!(outcome.stdout.contains("has changed since: this is a new run"), "{outcome}");
    assert_eq!(failed(&outcome).len(), 3, "{outcome}");
    assert!(fs::read(farm.on("a")).expect("read") == before && !farm.on("b").exists());
    run(&mut farm.together(&["a", "b", "late"])).ok();
    farm.assert_have(&farm.image, &["a", "b", "late"]);
    farm.assert_clean();
}

#[test]
fn nothing_more_is_sent_once_a_host_has_failed() {
    let Some(farm) = Farm::new(Fs::Ext4, &["--bwlimit=4m", "--compress=none"]) else { return };
    Layout::dense("image", 400 * BLOCK, &mut Rng(31)).write(&farm.image);
    let running = start(&mut farm.together(&["a", "latecomer"]));
    let temp = farm.far.path().join(".a.holesync.temp");
    assert!(wait_until(LIMIT, || temp.exists()), "nothing came");
    farm.open_gate();
    running.finish().code(23);
    let came = allocated(&temp);
    assert!(came < 300 * BLOCK as u64, "{came}");
}

/// Far longer than an end may be silent; and one whose connection died, and was made again.
#[test]
fn who_waits_is_heard_of_and_who_was_lost_may_come_back() {
    let Some(farm) = Farm::new(Fs::Ext4, &[]) else { return };
    let running = start(farm.together(&["a", "b", "late"]).args(["--timeout=3", "--retries=1"]));
    farm.await_all(&["a", "b"], &running);
    std::thread::sleep(Duration::from_secs(8));
    signal_agents(&farm.program("a"), Signal::SIGKILL);
    assert!(wait_until(LIMIT, || agents(&farm.program("a")).is_empty()), "it lives");
    assert!(wait_until(LIMIT, || !agents(&farm.program("a")).is_empty()), "it was not tried again");
    farm.await_all(&["a", "b"], &running);
    assert!(!farm.on("a").exists() && !farm.on("b").exists());
    farm.open_gate();
    running.finish().ok();
    farm.assert_have(&farm.image, &["a", "b", "late"]);
    farm.assert_clean();
}

#[test]
fn an_image_that_changes_meanwhile_is_put_in_place_nowhere() {
    for again in [false, true] {
        let Some(farm) = Farm::new(Fs::Ext4, &[]) else { return };
        let running = start(&mut farm.together(&["a", "b", "late"]));
        farm.await_all(&["a", "b"], &running);
        farm.change();
        if again {
            // In the state in which it was, as far as that shows.
            set_day(&farm.image, 1);
        }
        farm.open_gate();
        let outcome = running.finish().code(23);
        assert_eq!(failed(&outcome).len(), 3, "{outcome}");
        assert!(outcome.stdout.contains("is not what run"), "{outcome}");
        assert!(["a", "b", "late"].iter().all(|host| !farm.on(host).exists()), "{outcome}");
        assert_eq!(farm.decisions(), 0);
        run(&mut farm.together(&["a", "b", "late"])).ok();
        farm.assert_have(&farm.image, &["a", "b", "late"]);
        farm.assert_clean();
    }
}

#[test]
fn a_signal_after_the_decision_waits_until_all_are_told() {
    let Some(farm) = Farm::new(Fs::Ext4, &[]) else { return };
    let running = farm.decided_but_for_b();
    running.signal(Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(100));
    signal_agents(&farm.program("b"), Signal::SIGCONT);
    running.finish().ok();
    farm.assert_have(&farm.image, &["a", "b", "late"]);
    farm.assert_clean();
}

#[test]
fn what_cannot_wait_is_told_before_anything_is_reached() {
    let Some(farm) = Farm::new(Fs::Ext4, &[]) else { return };
    let dir = farm.dir.path().display().to_string();
    for (args, says) in [
        (vec!["--inplace"], "leave --inplace out"),
        (vec!["--no-fsync"], "leave --no-fsync out"),
        (vec!["--delay-updates"], "leave --temp-dir"),
        (vec!["--backup"], "leave --backup out"),
        (vec!["--existing"], "leave out what keeps a file as it is"),
        (vec!["-u"], "leave out what keeps a file as it is"),
        (vec!["--link-dest=/x"], "leave --compare-dest"),
        (vec![dir.as_str()], "name one SRC"),
        (vec!["--files-from=/dev/null"], "name one SRC"),
    ] {
        run(farm.together(&["gone", "refuses"]).args(args)).code(1).says(&[says]);
    }
    let image = farm.image.display().to_string();
    run(holesync().args(["--together", &image, "gone:/x"]))
        .code(1)
        .says(&["--together is for several hosts"]);
    run(holesync().args(["--together", "--to=gone:/x", &dir])).code(1).says(&["sends one image"]);
    let outcome = run(holesync().args(["--together", "--agent=none", "--to=gone:/x", &image]));
    outcome.code(1).says(&["leave --agent=none out"]);
    let outcome = run(farm.together(&["a", "shell"]).args(["--agent=auto", "--remote-path=/none/holesync"]));
    assert!(outcome.code(23).stdout.contains("there is no holesync, which --together needs"));
    let outcome = run(&mut farm.together(&["a", "elder"]));
    assert!(outcome.code(23).stdout.contains("is too old for --together"));
    assert!(!farm.on("a").exists());
    let empty = || {
        fs::remove_dir_all(farm.far.path()).and_then(|()| fs::create_dir(farm.far.path())).expect("empty it");
    };
    empty();
    if lab::is_root() {
        let behind = farm.dir.path().join("behind");
        fs::write(&behind, vec![1; 8 << 20]).expect("write");
        let device = lab::Loop::over(&behind);
        let mut to = OsString::from("--to=b:");
        to.push(&device.0);
        let outcome = run(farm.together(&["b", "a"]).arg(to)).code(23);
        assert!(
            outcome.stdout.contains("devices, and files that are written in place, are not"),
            "{outcome}"
        );
        assert!(fs::read(&device.0).expect("read") == vec![1; 8 << 20] && !farm.on("a").exists());
        empty();
    }
    assert_eq!(leftovers(farm.far.path()), Vec::<String>::new());
}

/// What bears the name of a mark is in nobody's way: a mark is for people. What was prepared is found
/// again beside it.
#[test]
fn what_others_put_in_the_place_of_a_mark_keeps_nothing() {
    let Some(farm) = Farm::new(Fs::Ext4, &[]) else { return };
    let hosts = ["a", "b", "late"];
    let running = start(&mut farm.together(&hosts));
    farm.await_all(&["a", "b"], &running);
    farm.kill(running);
    let mark = farm.far.path().join(".b.holesync.prepared");
    // One that lies beside nothing tells of nothing.
    let alone = mark.with_file_name(".c.holesync.prepared");
    fs::rename(&mark, &alone).expect("rename");
    let told = farm.recover();
    assert!(told.stdout.contains("/a: prepared by run") && told.stdout.contains("/c: nothing"), "{told}");
    fs::remove_file(alone).expect("remove");
    fs::create_dir_all(mark.join("in it")).expect("mkdir");
    farm.open_gate();
    let outcome = run(&mut farm.together(&hosts)).ok();
    farm.assert_have(&farm.image, &hosts);
    assert_eq!(["a", "b"].map(|host| sent(&outcome, host)), [0; 2], "{outcome}");
    farm.change();
    run(&mut farm.together(&hosts)).ok();
    farm.assert_have(&farm.image, &hosts);
    assert!(mark.join("in it").exists());
}

/// Where the usual names are taken, working files have others, and so has the mark.
#[test]
fn a_mark_is_told_of_under_whatever_name_it_is_there() {
    let Some(farm) = Farm::new(Fs::Ext4, &[]) else { return };
    let hosts = ["a", "b", "late"];
    let taken = farm.far.path().join(".b.holesync.temp");
    fs::create_dir_all(taken.join("in it")).expect("mkdir");
    let running = start(&mut farm.together(&hosts));
    let has_mark = || {
        leftovers(farm.far.path()).iter().any(|name| name.starts_with(".b.") && name.ends_with(".prepared"))
    };
    assert!(wait_until(LIMIT, has_mark) && !farm.is_marked("b"));
    farm.await_all(&["a"], &running);
    farm.kill(running);
    fs::remove_dir_all(taken).expect("remove");
    let told = farm.recover();
    assert!(told.stdout.contains("/b: prepared by run"), "{told}");
    farm.open_gate();
    run(&mut farm.together(&hosts)).ok();
    farm.assert_have(&farm.image, &hosts);
    farm.assert_clean();
}

/// Whoever may write there could decide for this user.
#[test]
fn a_record_is_believed_of_nobody_else() {
    let Some(farm) = Farm::new(Fs::Ext4, &[]) else { return };
    let records = farm.dir.path().join("state/holesync/together");
    fs::create_dir_all(&records).expect("mkdir");
    set_mode(&records, 0o777);
    run(&mut farm.together(&["a"])).code(23).says(&["as a directory of this user alone"]);
    assert!(!farm.on("a").exists());
    set_mode(&records, 0o700);
    let planted = records.join("planted.decision");
    std::os::unix::fs::symlink("/etc/passwd", &planted).expect("link");
    assert_ne!(run(&mut farm.together(&["a"])).code, 0);
    fs::remove_file(&planted).expect("remove");
    mkfifo(&planted, Mode::from_bits_truncate(0o600)).expect("make");
    assert_ne!(run(&mut farm.together(&["a"])).code, 0);
    fs::remove_file(&planted).expect("remove");
    assert!(!farm.on("a").exists());
    // What a run that was killed had not finished goes.
    fs::write(records.join(".new-0123456789abcdef"), "{").expect("write");
    run(&mut farm.together(&["a"])).ok();
    farm.assert_have(&farm.image, &["a"]);
    farm.assert_clean();
}

/// `HOLESYNC_TEST_ROUNDS` says how often.
#[test]
fn killed_at_random_all_have_it_or_are_whole_until_the_next_run() {
    let rounds =
        std::env::var("HOLESYNC_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(10);
    kill_at_random(Fs::Ext4, rounds, 97);
    kill_at_random(Fs::Xfs, rounds, 98);
}

fn kill_at_random(fs: Fs, rounds: u64, seed: u64) {
    let Some(mut farm) = Farm::new(fs, &[]) else { return };
    let hosts = ["a", "b", "c"];
    let (mut rng, mut seen) = (Rng(seed), [0; 5]);
    let begun = Instant::now();
    run(&mut farm.together(&hosts)).ok();
    let length = begun.elapsed();
    for round in 0..rounds {
        farm.flags = if rng.chance(50) { vec!["--commit=atomic"] } else { Vec::new() };
        let is_new = rng.chance(25);
        let mut old = None;
        if is_new {
            hosts.iter().for_each(|host| drop(fs::remove_file(farm.on(host))));
        } else {
            run(&mut farm.command(&hosts)).ok();
        }
        let before = farm.change();
        if !is_new {
            old = Some(before);
        }
        let running = start(&mut farm.together(&hosts));
        let begun = Instant::now();
        // What matters most takes a moment.
        if rng.chance(70) {
            while !hosts.iter().any(|host| farm.is_marked(host)) && !running.has_ended() {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let longest = if begun.elapsed() > Duration::from_millis(1) { 20e-3 } else { length.as_secs_f64() };
        let after = Duration::from_secs_f64(longest * rng.fraction());
        std::thread::sleep(after);
        let victim = ["initiator", "a", "b", "c"][rng.below(4)];
        eprintln!("round {round}: {victim} is killed after {after:?}; new: {is_new}");
        match victim {
            "initiator" => running.signal(Signal::SIGKILL),
            host => signal_agents(&farm.program(host), Signal::SIGKILL),
        }
        let outcome = running.finish();
        let was_whole = outcome.code == 0;
        let is_gone = || hosts.iter().all(|host| agents(&farm.program(host)).is_empty());
        assert!(wait_until(LIMIT, is_gone), "an agent outlives its connection");
        // A replay that was killed is finished from its log; nothing else is finished.
        let told = farm.recover();
        let state = |host: &&str| match &old {
            _ if farm.on(host).exists() && same(&farm.image, &farm.on(host)) => Some(true),
            Some(old) if same(old, &farm.on(host)) => Some(false),
            None if !farm.on(host).exists() => Some(false),
            _ => None,
        };
        let states: Vec<bool> = hosts
            .iter()
            .map(|host| state(host).unwrap_or_else(|| panic!("{host}: neither: {told}")))
            .collect();
        let switched = states.iter().filter(|is_new| **is_new).count();
        assert!(!was_whole || switched == 3, "{outcome}");
        let is_decided = farm.is_decided();
        assert!(
            is_decided || switched == 0 || switched == 3,
            "{switched} before the decision: {outcome} {told}"
        );
        let marked: Vec<bool> = hosts.iter().map(|host| farm.is_marked(host)).collect();
        let kind = match (was_whole, is_decided, switched) {
            (true, ..) => 0,
            (_, true, 3) => 1,
            (_, true, _) => 2,
            (_, false, _) if marked.contains(&true) => 3,
            _ => 4,
        };
        seen[kind] += 1;
        let outcome = run(&mut farm.together(&hosts)).ok();
        farm.assert_have(&farm.image, &hosts);
        farm.assert_clean();
        for (host, is_marked) in hosts.iter().zip(marked) {
            assert!(!is_marked || sent(&outcome, host) == 0, "{host} was prepared: {outcome}");
        }
    }
    let [whole, all, some, prepared, none] = seen;
    eprintln!(
        "{rounds} rounds on {fs:?}: {whole} were not disturbed; killed after the decision, when all had it: {all}, some: {some}; \
         before it, when some were prepared: {prepared}, none: {none}"
    );
}
