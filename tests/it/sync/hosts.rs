//! One source, several hosts: each has its own connection and verdict, and none waits for another.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::check::{assert_no_leftovers, assert_same, same};
use crate::common::faults::can_trace;
use crate::common::lab;
use crate::common::layout::{Layout, Rng};
use crate::common::peer::Peer;
use crate::common::process::{
    Outcome, PROGRAM, agents, holesync, run, run_on, signal_agents, start, wait_until,
};
use crate::common::redeploy::set_day;
use crate::common::tree::{assert_trees, grow, slash};

const BLOCK: usize = 64 << 10;
/// Far beyond what an end takes to stop.
const LIMIT: Duration = Duration::from_secs(20);

/// In the place of ssh: what a host does follows from its name. `stops`: its program has another name.
const HOSTS: &str = r#"
case $host in
    gone) echo "no route to it" >&2; exit 255 ;;
    refuses) echo "you may not" >&2; exit 1 ;;
    late) sleep 1; agent ;;
    shell) PATH=/usr/sbin:/usr/bin:/sbin:/bin agent ;;
    stops) command=$(printf '%s\n' "$command" | sed "s#[^ ]*holesync agent#$STOPS agent#"); agent ;;
    *) agent ;;
esac
"#;

/// An image, and a place for each of some hosts.
struct Farm {
    dir: tempfile::TempDir,
    image: PathBuf,
    /// A program that runs on the host `stops` alone.
    stops: PathBuf,
}

impl Farm {
    fn new(blocks: usize) -> Farm {
        let dir = lab::scratch();
        let image = dir.path().join("image");
        made_elsewhere(&image, 1, |made| Layout::dense("image", blocks * BLOCK, &mut Rng(17)).write(made));
        let stops = dir.path().join("stopping-holesync");
        std::os::unix::fs::symlink(PROGRAM, &stops).expect("link to the program");
        Farm { dir, image, stops }
    }

    /// Where a host has its image.
    fn on(&self, host: &str) -> PathBuf {
        self.dir.path().join(format!("on {host}"))
    }

    /// As `--to` has it.
    fn to(&self, host: &str) -> OsString {
        format!("--to={host}:{}", self.on(host).display()).into()
    }

    fn command(&self, agent: &str) -> Command {
        let peer = Peer::script(self.dir.path(), HOSTS);
        let mut command = holesync();
        command.env("STOPS", &self.stops).args(["-e", peer.rsh(), "--agent", agent]);
        if agent == "require" {
            command.args(["--remote-path", PROGRAM]);
        }
        command
    }

    /// Changes some blocks.
    fn change(&self) {
        use std::os::unix::fs::FileExt;
        made_elsewhere(&self.image, 2, |made| {
            fs::copy(&self.image, made).expect("copy");
            let file = fs::File::options().write(true).open(made).expect("open");
            (0..3).for_each(|nth| file.write_all_at(&[7; 5000], nth * 5 * BLOCK as u64).expect("write"));
        });
    }

    #[track_caller]
    fn assert_has(&self, hosts: &[&str]) {
        hosts.iter().for_each(|host| assert_same(&self.image, &self.on(host)));
        assert_no_leftovers(self.dir.path());
    }
}

/// What comes to `image`, of that day. A process of its own puts it there: what another test forks
/// meanwhile would have it open for writing for a moment, and what is written is not hashed for all.
fn made_elsewhere(image: &Path, day: u64, make: impl FnOnce(&Path)) {
    let made = image.with_extension("made");
    make(&made);
    set_day(&made, day);
    run(Command::new("cp").arg("-p").arg(&made).arg(image)).ok();
    fs::remove_file(made).expect("remove");
}

/// The events of `--json`, which all name their host, but for the last one.
#[track_caller]
fn events(outcome: &Outcome) -> Vec<Value> {
    let lines: Vec<Value> =
        outcome.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (last, rest) = lines.split_last().expect("events");
    assert_eq!(last["event"], "hosts", "{outcome}");
    assert!(rest.iter().all(|event| event["host"].is_string()), "an event without a host: {outcome}");
    lines
}

/// The hosts in the order in which they ended, with their codes.
fn ended(events: &[Value]) -> Vec<(&str, u64)> {
    let ended = events.iter().filter(|event| event["event"] == "host");
    ended
        .map(|event| (event["host"].as_str().expect("a name"), event["code"].as_u64().expect("a code")))
        .collect()
}

#[test]
fn an_image_and_a_tree_go_to_several_places_over_a_real_sshd() {
    let Some(peer) = Peer::sshd() else { return };
    let dir = lab::scratch();
    let (image, tree) = (dir.path().join("image"), dir.path().join("tree"));
    Layout::dense("image", 40 * BLOCK, &mut Rng(3)).write(&image);
    fs::create_dir(&tree).expect("mkdir");
    grow(&tree, &mut Rng(4));
    let place = |nth: usize| dir.path().join(format!("place {nth}"));
    let lines: String = (0..4).map(|nth| format!("peer:{}\n", place(nth).display())).collect();
    let list = format!("# places\n\n  {lines}");
    for jobs in ["--jobs=1", "--jobs=3", "-c"] {
        let outcome = run_on(peer.holesync().args(["--hosts=-", jobs]).arg(&image), list.as_bytes()).ok();
        (0..4).for_each(|nth| assert_same(&image, &place(nth)));
        assert_eq!(outcome.stdout.matches("place ").count(), 8, "a line and a row each: {outcome}");
        assert!(outcome.stdout.contains("4 of 4 hosts done"), "{outcome}");
    }
    (0..4).for_each(|nth| fs::remove_file(place(nth)).expect("remove"));
    run_on(peer.holesync().args(["-a", "--hosts=-"]).arg(slash(&tree)), list.as_bytes()).ok();
    (0..4).for_each(|nth| assert_trees(&tree, &place(nth), true, "tree"));
}

#[test]
fn each_host_has_its_own_verdict_and_what_failed_is_tried_again_from_a_list() {
    let farm = Farm::new(200);
    let failed = farm.dir.path().join("failed");
    let hosts = ["a", "gone", "b", "refuses", "c"];
    let list =
        |command: &mut Command| run(command.args(["--json", "--failed"]).arg(&failed).arg(&farm.image));
    for round in 0..2 {
        let outcome = list(farm.command("require").args(hosts.map(|host| farm.to(host)))).code(23);
        farm.assert_has(&["a", "b", "c"]);
        let events = events(&outcome);
        let mut ended = ended(&events);
        ended.sort_unstable();
        assert_eq!(ended, [("a", 0), ("b", 0), ("c", 0), ("gone", 255), ("refuses", 5)], "{outcome}");
        let last = events.last().expect("one");
        assert_eq!((&last["hosts_total"], &last["hosts_failed"]), (&5.into(), &2.into()));
        let sent: Vec<u64> = events.iter().filter_map(|event| event["sent_data_bytes"].as_u64()).collect();
        assert!(round == 0 || sent.iter().all(|&sent| sent < 20 * BLOCK as u64), "{outcome}");
        let lines = fs::read_to_string(&failed).expect("the list");
        assert_eq!(
            lines,
            format!("gone:{}\nrefuses:{}\n", farm.on("gone").display(), farm.on("refuses").display())
        );
        farm.change();
    }
    // Mended.
    let peer = Peer::pipe(farm.dir.path());
    let left = fs::read_to_string(&failed).expect("the list");
    list(peer.holesync().arg("-n").arg("--hosts").arg(&failed)).ok();
    assert_eq!(fs::read_to_string(&failed).expect("the list"), left, "a dry run makes nobody equal");
    list(peer.holesync().arg("--hosts").arg(&failed)).ok();
    farm.assert_has(&["gone", "refuses"]);
    assert_eq!(fs::read_to_string(&failed).expect("the list"), "");
    list(peer.holesync().arg("--hosts").arg(&failed)).code(1).says(&["there is no host in it"]);
}

/// It is stopped as soon as it is there; the others come before it, though it was first.
#[test]
fn a_host_that_hangs_and_one_that_is_full_hold_up_nobody() {
    let Some(small) = lab::small() else { return };
    let farm = Farm::new(1200);
    let failed = farm.dir.path().join("failed");
    let full = small.dir.path().join("image");
    let mut command = farm.command("require");
    command
        .args(["--json", "--timeout=3", "--contimeout=3", "--jobs=2", "--bwlimit=40000", "--failed"])
        .arg(&failed)
        .arg(farm.to("stops"));
    command.arg({
        let mut to = OsString::from("--to=full:");
        to.push(&full);
        to
    });
    let running = start(command.args(["a", "b", "c", "d"].map(|host| farm.to(host))).arg(&farm.image));
    assert!(wait_until(LIMIT, || !agents(&farm.stops).is_empty()), "it was never reached");
    signal_agents(&farm.stops, Signal::SIGSTOP);
    let outcome = running.finish().code(23);
    let events = events(&outcome);
    assert_eq!(ended(&events).len(), 6, "{outcome}");
    let codes = |host: &str| ended(&events).into_iter().find(|(name, _)| *name == host).expect("it").1;
    assert_eq!(["full", "stops", "a", "b", "c", "d"].map(codes), [11, 30, 0, 0, 0, 0], "{outcome}");
    ["a", "b", "c", "d"].iter().for_each(|host| assert_same(&farm.image, &farm.on(host)));
    assert!(!same(&farm.image, &full));
    assert_eq!(fs::read_to_string(&failed).expect("the list").lines().count(), 2, "{outcome}");
}

#[test]
fn a_shell_takes_part_beside_agents() {
    let Some(sshd) = Peer::sshd() else { return };
    drop(sshd);
    let farm = Farm::new(30);
    let path = format!("{}:/usr/bin:/bin", Path::new(PROGRAM).parent().expect("a directory").display());
    let mut command = farm.command("auto");
    command.env("PATH", path).arg("--json").args(["shell", "a", "b"].map(|host| farm.to(host)));
    let outcome = run(command.arg(&farm.image)).ok();
    farm.assert_has(&["shell", "a", "b"]);
    let routes = events(&outcome);
    let route = |host: &str| {
        let summary = routes.iter().find(|event| event["event"] == "summary" && event["host"] == host);
        summary.expect("a summary")["route"].as_str().expect("a route").to_owned()
    };
    assert_eq!(["shell", "a", "b"].map(route), ["shell", "agent", "agent"], "{outcome}");
}

#[test]
fn a_signal_ends_all_connections_and_the_list_has_who_is_left() {
    let farm = Farm::new(400);
    let failed = farm.dir.path().join("failed");
    let mut command = farm.command("require");
    command.args(["--bwlimit=500", "--failed"]).arg(&failed);
    let running = start(command.args(["stops", "stops:22", "a"].map(|host| farm.to(host))).arg(&farm.image));
    assert!(wait_until(LIMIT, || agents(&farm.stops).len() == 2), "they were never reached");
    running.signal(Signal::SIGINT);
    let outcome = running.finish_within(LIMIT).code(20).says(&["interrupted", "goes on from there"]);
    assert!(outcome.stdout.is_empty() && outcome.stderr.lines().count() == 1, "{outcome}");
    assert!(wait_until(LIMIT, || agents(&farm.stops).is_empty()), "an agent outlives its connection");
    assert_eq!(fs::read_to_string(&failed).expect("the list").lines().count(), 3);
}

#[test]
fn the_rate_is_that_of_all_together() {
    let farm = Farm::new(8);
    let hosts = ["a", "b", "c", "d"];
    let start = std::time::Instant::now();
    let mut command = farm.command("require");
    run(command
        .args(["--bwlimit=1000", "--compress=none"])
        .args(hosts.map(|host| farm.to(host)))
        .arg(&farm.image))
    .ok();
    // 2 MiB at 1000 KiB a second: it could not be quicker.
    assert!(start.elapsed() > Duration::from_millis(1900), "{:?}", start.elapsed());
    farm.assert_has(&hosts);
}

#[test]
fn lines_and_the_log_name_their_host() {
    let farm = Farm::new(3);
    let log = farm.dir.path().join("log");
    let mut command = farm.command("require");
    command
        .args(["-i", "--stats", "--log-file"])
        .arg(&log)
        .args(["a", "gone", "b"].map(|host| farm.to(host)));
    let outcome =
        run(command.arg(&farm.image)).code(23).says(&["holesync: gone: ssh to gone failed", "code 255"]);
    for line in ["a: <f+++++++++ image", "b: <f+++++++++ image", "a: matched", "b: matched"] {
        assert!(outcome.stdout.contains(line), "{line}: {outcome}");
    }
    let log = fs::read_to_string(log).expect("the log");
    for line in
        ["] a: <f+++++++++ image", "] b: <f+++++++++ image", "] gone: ssh to gone failed", "] a: equal"]
    {
        assert!(log.contains(line), "{line}: {log}");
    }
    assert_eq!(log.lines().filter(|line| line.ends_with(": equal")).count(), 2, "{log}");
}

#[test]
fn what_makes_no_sense_is_told_before_anything_is_reached() {
    let farm = Farm::new(1);
    let hosts = farm.dir.path().join("hosts");
    fs::write(&hosts, "# these\na\nb:/x\n\nu@h y\n").expect("write");
    let list = || format!("--hosts={}", hosts.display());
    let image = farm.image.display().to_string();
    for (args, says) in [
        (vec![list(), image.clone(), ":/x".into()], "hosts, line 5: \"u@h y:\" has a bad host name"),
        (vec![list(), image.clone()], "hosts, line 2: \"a\" names no path there"),
        (vec![list(), ":/x".into()], "there is no SRC"),
        (vec!["--hosts=/dev/null".into(), image.clone()], "there is no host in it"),
        (vec!["--hosts=/none".into(), image.clone()], "cannot read the hosts in /none"),
        (vec!["--to=a:/x".into(), "--to=a:/x".into(), image.clone()], "is the same place as \"a:/x\""),
        (
            vec!["--to=a".into(), "--to=a:/x".into(), image.clone(), ":/x".into()],
            "is the same place as \"a\"",
        ),
        (vec!["--to=/x".into(), image.clone()], "\"/x\" is a path here"),
        (vec!["--to=a:/x".into(), image.clone(), "b:/x".into()], "b:/x stands beside --to or --hosts"),
        (vec!["--to=a:/x".into(), image.clone(), "/none/x".into()], "/none/x is not here"),
        (vec!["--to=a:/x".into(), "--together".into(), "b:/x".into()], "--together is decided where SRC is"),
        (vec!["--jobs=2".into(), image.clone(), "b:/x".into()], "--jobs and --failed are for several hosts"),
        (vec!["--to=a:/x".into(), "-".into()], "stdin can be read once"),
        (vec!["--to=a:/x".into(), "--remove-source-files".into(), image.clone()], "leave it out"),
        (vec!["--to=a:/x".into(), "--list-only".into(), image.clone()], "--list-only"),
        (vec!["--to=a:/x".into(), "--through=cat".into(), image.clone()], "--through wants SRC and one DEST"),
        (vec!["--to=a:/x".into(), "--files-from=:/n".into(), image.clone()], "on a host that takes no part"),
        (vec!["--to=a:/x".into(), format!("--failed={image}"), image.clone()], "is the image itself"),
    ] {
        let outcome = run(holesync().args(["-e", "false"]).args(&args));
        assert!([1, 11, 23].contains(&outcome.code), "{outcome}");
        outcome.says(&[says]);
    }
    assert_eq!(farm.image.metadata().expect("it is there").len(), BLOCK as u64);
}

/// Of each host's own, only what differs is read once more; also by one that begins when the map of the
/// image is kept already.
#[test]
fn what_is_here_is_read_and_hashed_once_for_all_hosts() {
    if !can_trace() {
        return;
    }
    let farm = Farm::new(1600);
    let hosts = ["a", "b", "c", "d", "late"];
    let data = 1600 * BLOCK as u64;
    let to = || hosts.map(|host| farm.to(host));
    let outcome = run(farm.command("require").arg("--json").args(to()).arg(&farm.image)).ok();
    let hashed = events(&outcome).iter().filter_map(|event| event["hashed_bytes"].as_u64()).sum::<u64>();
    assert_eq!(hashed, data, "{outcome}");
    farm.assert_has(&hosts);
    farm.change();
    let trace = farm.dir.path().join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-s0", "-e", "trace=pread64,preadv2,read,sendfile", "-o"]).arg(&trace);
    command.arg("-P").arg(&farm.image);
    let program = farm.command("require");
    command.arg(program.get_program()).args(program.get_args()).args(to()).arg(&farm.image);
    run(command.env("STOPS", &farm.stops)).ok();
    farm.assert_has(&hosts);
    let trace = fs::read_to_string(trace).expect("the trace");
    let read = |line: &str| line.rsplit_once(" = ").and_then(|(_, count)| count.parse::<u64>().ok());
    let read = trace.lines().filter_map(read).sum::<u64>();
    // Three blocks differ.
    assert!((data..data + hosts.len() as u64 * 8 * BLOCK as u64).contains(&read), "{read} of {data}");
    fs::remove_file(farm.dir.path().join("trace")).expect("remove");
}
